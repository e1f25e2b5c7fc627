/* model/tokenizer_utf8.c - UTF-8 decoding with Python's replacement rule. */
#include "model/tokenizer_utf8.h"

#include <string.h>

enum utf8_verdict utf8_decode(const char *text, size_t count, uint32_t *scalar, size_t *used)
{
    const uint8_t *p = (const uint8_t *)text;
    const uint8_t lead = p[0];
    uint8_t low = 0x80, high = 0xBF; /* the range of the second byte; the later ones are always 80..BF */
    size_t need, at;

    *scalar = UTF8_REPLACEMENT;
    *used = 1;
    if (lead < 0x80) {
        *scalar = lead;
        return UTF8_GOOD;
    }
    if (lead >= 0xC2 && lead <= 0xDF)      need = 2;
    else if (lead >= 0xE0 && lead <= 0xEF) need = 3;
    else if (lead >= 0xF0 && lead <= 0xF4) need = 4;
    else                                   return UTF8_BAD;
    if (lead == 0xE0)      low = 0xA0;  /* below: overlong */
    else if (lead == 0xED) high = 0x9F; /* above: surrogates */
    else if (lead == 0xF0) low = 0x90;  /* below: overlong */
    else if (lead == 0xF4) high = 0x8F; /* above: past U+10FFFF */

    uint32_t value = lead & (0xFFu >> (need + 1));
    for (at = 1; at < need; at++) {
        *used = at;
        if (at == count)                    return UTF8_UNFINISHED;
        if (p[at] < low || p[at] > high)    return UTF8_BAD;
        value = value << 6 | (p[at] & 0x3Fu);
        low = 0x80;
        high = 0xBF;
    }
    *used = need;
    *scalar = value;
    return UTF8_GOOD;
}

size_t utf8_encode(uint32_t scalar, char out[4])
{
    if (scalar < 0x80) {
        out[0] = (char)scalar;
        return 1;
    }
    if (scalar < 0x800) {
        out[0] = (char)(0xC0 | scalar >> 6);
        out[1] = (char)(0x80 | (scalar & 0x3F));
        return 2;
    }
    if (scalar < 0x10000) {
        out[0] = (char)(0xE0 | scalar >> 12);
        out[1] = (char)(0x80 | (scalar >> 6 & 0x3F));
        out[2] = (char)(0x80 | (scalar & 0x3F));
        return 3;
    }
    out[0] = (char)(0xF0 | scalar >> 18);
    out[1] = (char)(0x80 | (scalar >> 12 & 0x3F));
    out[2] = (char)(0x80 | (scalar >> 6 & 0x3F));
    out[3] = (char)(0x80 | (scalar & 0x3F));
    return 4;
}

bool utf8_is_valid(const char *text, size_t count)
{
    size_t at = 0, used;
    uint32_t scalar;
    uint64_t word;

    while (at < count) {
        while (count - at >= sizeof word) { /* eight ASCII bytes at a time */
            memcpy(&word, text + at, sizeof word);
            if (word & 0x8080808080808080u) break;
            at += sizeof word;
        }
        if (at == count) break;
        if (utf8_decode(text + at, count - at, &scalar, &used) != UTF8_GOOD) return false;
        at += used;
    }
    return true;
}
