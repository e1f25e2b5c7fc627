/* schemas/page.c - the chat page, carried inside the executable.
 *
 * The assembler copies schemas/page/index.html into read-only data (the path is relative
 * to the repository root, where the compiler runs; schemas/build.mk makes a change of
 * the page rebuild this file). */
#include "schemas/front.h"

__asm__(".pushsection .rodata\n"
        ".global sluice_page_begin\n"
        ".global sluice_page_end\n"
        "sluice_page_begin:\n"
        ".incbin \"schemas/page/index.html\"\n"
        "sluice_page_end:\n"
        ".byte 0\n"
        ".popsection\n");

extern const char sluice_page_begin[], sluice_page_end[];

const char *page_html(size_t *bytes)
{
    *bytes = (size_t)(sluice_page_end - sluice_page_begin);
    return sluice_page_begin;
}
