# Rules of schemas/ that wildcards cannot know: the chat page is part of page.o.
$B/obj/schemas/page.o: schemas/page/index.html

# ISA-L inflates PNG two and a half times as fast as zlib; without it libspng does it all.
ifneq ($(shell pkg-config --exists libisal 2>/dev/null && echo yes),)
$B/obj/schemas/image_png.o $B/obj/schemas/image_png_rows.o: CPPFLAGS += -DHAVE_ISAL
features    += isal
media_libs  += -lisal
vision_libs += -lisal
endif
