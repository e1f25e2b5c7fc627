/* schemas/field_long.h - long strings go past the JSON library: a picture in base64 is most of its request, and the library takes each byte of it in a call or two.
 *
 * Strings of FIELD_LONG_BYTES or more that are values and nothing but ASCII from the blank on (no escape, so that text and value are the same) are cut out of a copy of the text
 * before it is parsed; a short string stands in their place, which holds 128 random bits, so that nobody outside can write one. Afterwards each gets its value back.
 * What comes out is what the library alone makes of the text. Used by field_parse (field.c) alone. */
#ifndef SLUICE_SCHEMAS_FIELD_LONG_H
#define SLUICE_SCHEMAS_FIELD_LONG_H

#include <jansson.h>
#include <stddef.h>

#define FIELD_LONG_BYTES (16u << 10)
#define FIELD_LONG_MAX 128u           /* of a text; what is more is left to the library */
#define FIELD_LONG_NAME_BYTES 36u     /* of the string in its place: 32 digits of chance, 4 of its number */

struct field_long {
    char *text;                       /* owned: the shortened text; NULL: nothing was cut out */
    size_t bytes;
    unsigned count;
    char chance[33];
    struct { const char *text; size_t bytes; } cut[FIELD_LONG_MAX]; /* borrowed from the whole text */
};

/* Cuts them out. 0; -E_NOMEM, -E_IO (no chance to be had): parse the whole text instead. field_long_close in any case. */
int field_long_cut(struct field_long *l, const char *text, size_t bytes);
/* Puts the values back into what was parsed of l->text. 0, or -E_NOMEM. */
int field_long_restore(const struct field_long *l, json_t *value);
void field_long_close(struct field_long *l);
/* The closing quote of the string that begins at `at`, behind its opening one; NULL: there is none before `end`. */
const char *field_long_end(const char *at, const char *end);

#endif
