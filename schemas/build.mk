# Rules of schemas/ that wildcards cannot know: the chat page is part of page.o.
$B/obj/schemas/page.o: schemas/page/index.html
