/* schemas/field_long.c - see field_long.h. */
#include "schemas/field_long.h"

#include "shm/error.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define CHANCE_BYTES 16u

static bool is_blank(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

#define EACH(byte) ((byte) * 0x0101010101010101ull)

/* ASCII from the blank on, without a backslash (quotes are not in it already): what stands for itself. Eight bytes at a time; a borrow from one byte to the next can only
 * come from one that is not plain. */
static bool is_plain(const char *text, size_t bytes)
{
    uint64_t bad = 0, eight;
    size_t i = 0;

    for (; i + sizeof eight <= bytes; i += sizeof eight) {
        memcpy(&eight, text + i, sizeof eight);
        const uint64_t slash = eight ^ EACH('\\');
        bad |= eight | (eight - EACH(' ')) | (slash - EACH(1));
    }
    for (; i < bytes; i++) bad |= (uint8_t)text[i] < ' ' || text[i] == '\\' ? EACH(0x80) : (uint8_t)text[i];
    return (bad & EACH(0x80)) == 0;
}

const char *field_long_end(const char *at, const char *end)
{
    while (at < end) {
        const char *quote = memchr(at, '"', (size_t)(end - at));
        if (!quote) return NULL;
        size_t escapes = 0;
        while (quote - escapes > at && quote[-1 - (ptrdiff_t)escapes] == '\\') escapes++;
        if (escapes % 2 == 0) return quote;
        at = quote + 1;
    }
    return NULL;
}

static bool is_key(const char *behind, const char *end)
{
    while (behind < end && is_blank(*behind)) behind++;
    return behind < end && *behind == ':';
}

static int draw(struct field_long *l)
{
    uint8_t chance[CHANCE_BYTES];

    if (getrandom(chance, sizeof chance, 0) != sizeof chance) return -E_IO;
    for (unsigned i = 0; i < CHANCE_BYTES; i++) snprintf(l->chance + 2 * i, 3, "%02x", chance[i]);
    return 0;
}

/* A copy of text up to `upto`, from what was copied already, and the name in the place of the string behind. */
static void copy(struct field_long *l, const char **from, const char *upto)
{
    memcpy(l->text + l->bytes, *from, (size_t)(upto - *from));
    l->bytes += (size_t)(upto - *from);
    *from = upto;
}

int field_long_cut(struct field_long *l, const char *text, size_t bytes)
{
    const char *end = text + bytes, *copied = text;
    int rc;

    memset(l, 0, offsetof(struct field_long, cut));
    if (bytes < FIELD_LONG_BYTES) return 0;
    for (const char *at = text; at < end && l->count < FIELD_LONG_MAX;) {
        const char *open = memchr(at, '"', (size_t)(end - at)), *close = open ? field_long_end(open + 1, end) : NULL;
        if (!close) break;
        const size_t length = (size_t)(close - open) - 1;
        at = close + 1;
        if (length < FIELD_LONG_BYTES || !is_plain(open + 1, length) || is_key(at, end)) continue;
        if (!l->text) {
            if ((rc = draw(l)) != 0) return rc;
            if (!(l->text = malloc(bytes))) return -E_NOMEM; /* a name is shorter than what it stands for */
        }
        copy(l, &copied, open + 1);
        l->bytes += (size_t)sprintf(l->text + l->bytes, "%s%04x", l->chance, l->count);
        l->cut[l->count].text = open + 1;
        l->cut[l->count++].bytes = length;
        copied = close;
    }
    if (l->text) copy(l, &copied, end);
    return 0;
}

void field_long_close(struct field_long *l)
{
    free(l->text);
    l->text = NULL;
}

/* The string that the value stands for; NULL: it is what it is. *rc: -E_NOMEM. */
static json_t *value_of(const struct field_long *l, const json_t *value, int *rc)
{
    if (!json_is_string(value) || json_string_length(value) != FIELD_LONG_NAME_BYTES || memcmp(json_string_value(value), l->chance, sizeof l->chance - 1) != 0) return NULL;
    const unsigned long i = strtoul(json_string_value(value) + sizeof l->chance - 1, NULL, 16);
    json_t *whole = i < l->count ? json_stringn_nocheck(l->cut[i].text, l->cut[i].bytes) : NULL;

    if (!whole) *rc = -E_NOMEM;
    return whole;
}

/* As deep as the text, whose depth is limited. */
int field_long_restore(const struct field_long *l, json_t *value)
{
    int rc = 0;

    if (json_is_object(value)) {
        for (void *i = json_object_iter(value); i && rc == 0; i = json_object_iter_next(value, i)) {
            json_t *whole = value_of(l, json_object_iter_value(i), &rc);
            if (whole) rc = json_object_iter_set_new(value, i, whole) == 0 ? 0 : -E_NOMEM;
            else if (rc == 0) rc = field_long_restore(l, json_object_iter_value(i));
        }
    } else if (json_is_array(value)) {
        for (size_t i = 0; i < json_array_size(value) && rc == 0; i++) {
            json_t *whole = value_of(l, json_array_get(value, i), &rc);
            if (whole) rc = json_array_set_new(value, i, whole) == 0 ? 0 : -E_NOMEM;
            else if (rc == 0) rc = field_long_restore(l, json_array_get(value, i));
        }
    }
    return rc;
}
