# libcurl is there or it is not: without it the fetch stage says so when it is wanted.
fetch_libs := -lresolv -lseccomp
ifneq ($(shell pkg-config --exists libcurl 2>/dev/null && echo yes),)
$B/obj/stages/fetch.o $B/obj/stages/fetch/get.o $B/obj/tests/unit/fetch_get_test.o: CPPFLAGS += -DHAVE_CURL
fetch_libs += -lcurl
features   += curl
endif
