/* schemas/wire.c - the growing buffer and its JSON strings. */
#include "schemas/wire.h"

#include "shm/must.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WIRE_KEEP_BYTES (256u * 1024u) /* a buffer that grew past this is given back when emptied */
#define WIRE_FIRST_BYTES 512u

void wire_free(struct wire *w)
{
    free(w->data);
    memset(w, 0, sizeof *w);
}

void wire_clear(struct wire *w)
{
    if (w->capacity > WIRE_KEEP_BYTES) wire_free(w);
    w->bytes = 0;
    if (w->data) w->data[0] = '\0';
}

static char *room(struct wire *w, size_t bytes)
{
    if (w->capacity - w->bytes <= bytes) { /* one byte stays free for the NUL */
        size_t capacity = w->capacity ? w->capacity : WIRE_FIRST_BYTES;
        must(bytes < SIZE_MAX / 4 && w->bytes < SIZE_MAX / 4);
        while (capacity - w->bytes <= bytes) capacity *= 2;
        w->data = realloc(w->data, capacity);
        must(w->data);
        w->capacity = capacity;
    }
    return w->data + w->bytes;
}

void wire_add(struct wire *w, const char *data, size_t bytes)
{
    char *at = room(w, bytes);

    if (bytes) memcpy(at, data, bytes);
    at[bytes] = '\0';
    w->bytes += bytes;
}

void wire_text(struct wire *w, const char *text)
{
    wire_add(w, text, strlen(text));
}

void wire_format(struct wire *w, const char *format, ...)
{
    char small[512];
    va_list args, again;

    va_start(args, format);
    va_copy(again, args);
    const int n = vsnprintf(small, sizeof small, format, args);
    must(n >= 0);
    if ((size_t)n < sizeof small) wire_add(w, small, (size_t)n);
    else {
        vsnprintf(room(w, (size_t)n + 1), (size_t)n + 1, format, again);
        w->bytes += (size_t)n;
    }
    va_end(again);
    va_end(args);
}

/* Well-formed UTF-8 as the Unicode standard tables it: no overlong forms, no surrogates, nothing past U+10FFFF. */
size_t wire_character(const uint8_t *p, size_t left)
{
    if (left == 0) return 0;
    if (p[0] < 0x80) return 1;
    const size_t n = p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : 2;
    uint8_t low = 0x80, high = 0xbf;

    if (p[0] < 0xc2 || p[0] > 0xf4 || left < n) return 0;
    if (p[0] == 0xe0) low = 0xa0;
    if (p[0] == 0xed) high = 0x9f;
    if (p[0] == 0xf0) low = 0x90;
    if (p[0] == 0xf4) high = 0x8f;
    if (p[1] < low || p[1] > high) return 0;
    for (size_t i = 2; i < n; i++)
        if ((p[i] & 0xc0) != 0x80) return 0;
    return n;
}

static void escape_one(struct wire *w, unsigned char c)
{
    switch (c) {
    case '"': wire_add(w, "\\\"", 2); break;
    case '\\': wire_add(w, "\\\\", 2); break;
    case '\n': wire_add(w, "\\n", 2); break;
    case '\r': wire_add(w, "\\r", 2); break;
    case '\t': wire_add(w, "\\t", 2); break;
    default: wire_format(w, "\\u%04x", c);
    }
}

void wire_escape(struct wire *w, const char *data, size_t bytes)
{
    const uint8_t *p = (const uint8_t *)data;
    size_t plain = 0, i = 0; /* [plain, i) goes out as it is */

    while (i < bytes) {
        const size_t n = wire_character(p + i, bytes - i);
        if (n > 1 || (n == 1 && p[i] >= 0x20 && p[i] != '"' && p[i] != '\\' && p[i] != 0x7f)) {
            i += n;
            continue;
        }
        wire_add(w, data + plain, i - plain);
        if (n == 1) escape_one(w, p[i]);
        else wire_text(w, "\xef\xbf\xbd");
        plain = ++i;
    }
    wire_add(w, data + plain, i - plain);
}

void wire_string_bytes(struct wire *w, const char *data, size_t bytes)
{
    wire_add(w, "\"", 1);
    wire_escape(w, data, bytes);
    wire_add(w, "\"", 1);
}

void wire_string(struct wire *w, const char *text)
{
    wire_string_bytes(w, text, strlen(text));
}

void wire_float(struct wire *w, float value)
{
    char text[40];

    if (!isfinite(value)) {
        wire_text(w, "null");
        return;
    }
    for (int digits = 6; digits <= 9; digits++) {
        snprintf(text, sizeof text, "%.*g", digits, (double)value);
        if (strtof(text, NULL) == value) break;
    }
    wire_text(w, text);
}
