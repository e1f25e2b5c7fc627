/* shm/must.c - the end of a process whose invariant is broken. */
#include "shm/must.h"

#include <stdio.h>
#include <stdlib.h>

void (*must_hook)(const char *text);

void must_fail(const char *condition, const char *file, int line)
{
    char text[256];

    snprintf(text, sizeof text, "%s:%d: must(%s)", file, line, condition);
    fprintf(stderr, "panic %s\n", text);
    if (must_hook) must_hook(text);
    abort();
}
