/* model/jinja_unicode.c - UTF-8 steps and look-ups in the tables of model/jinja_unicode_data.c.
 * Reads constant tables, owns nothing, cannot fail. */
#include "model/jinja_unicode.h"

#define TABLE(name) \
    extern const struct jinja_code_range jinja_##name##_ranges[]; \
    extern const uint32_t jinja_##name##_range_count;
#define CASE_TABLE(name) \
    extern const struct jinja_case_range jinja_##name##_ranges[]; \
    extern const uint32_t jinja_##name##_range_count; \
    extern const struct jinja_case_special jinja_##name##_specials[]; \
    extern const uint32_t jinja_##name##_special_count;

CASE_TABLE(lower)
CASE_TABLE(upper)
CASE_TABLE(title)
TABLE(alpha)
TABLE(digit)
TABLE(decimal)
TABLE(numeric)
TABLE(islower)
TABLE(isupper)
TABLE(istitle)
TABLE(printable)

uint32_t jinja_utf8_next(const char *text, size_t *at)
{
    const unsigned char *p = (const unsigned char *)text + *at;

    if (p[0] < 0x80) { *at += 1; return p[0]; }
    if (p[0] < 0xe0) { *at += 2; return (p[0] & 0x1fu) << 6 | (p[1] & 0x3fu); }
    if (p[0] < 0xf0) { *at += 3; return (p[0] & 0x0fu) << 12 | (p[1] & 0x3fu) << 6 | (p[2] & 0x3fu); }
    *at += 4;
    return (p[0] & 0x07u) << 18 | (p[1] & 0x3fu) << 12 | (p[2] & 0x3fu) << 6 | (p[3] & 0x3fu);
}

unsigned jinja_utf8_put(char out[4], uint32_t code)
{
    if (code < 0x80) { out[0] = (char)code; return 1; }
    if (code < 0x800) { out[0] = (char)(0xc0 | code >> 6); out[1] = (char)(0x80 | (code & 0x3f)); return 2; }
    if (code < 0x10000) {
        out[0] = (char)(0xe0 | code >> 12); out[1] = (char)(0x80 | (code >> 6 & 0x3f)); out[2] = (char)(0x80 | (code & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | code >> 18); out[1] = (char)(0x80 | (code >> 12 & 0x3f));
    out[2] = (char)(0x80 | (code >> 6 & 0x3f)); out[3] = (char)(0x80 | (code & 0x3f));
    return 4;
}

/* The bad prefix of a broken sequence is replaced as a whole, as the Unicode standard advises and Python does. */
unsigned jinja_utf8_check(const char *text, size_t bytes, unsigned *bad)
{
    const unsigned char *p = (const unsigned char *)text;
    unsigned need, low = 0x80, high = 0xbf;

    *bad = 1;
    if (p[0] < 0x80) return 1;
    if (p[0] >= 0xc2 && p[0] <= 0xdf) need = 2;
    else if (p[0] >= 0xe0 && p[0] <= 0xef) need = 3;
    else if (p[0] >= 0xf0 && p[0] <= 0xf4) need = 4;
    else return 0;
    if (p[0] == 0xe0) low = 0xa0;
    if (p[0] == 0xed) high = 0x9f;
    if (p[0] == 0xf0) low = 0x90;
    if (p[0] == 0xf4) high = 0x8f;
    for (unsigned i = 1; i < need; i++) {
        if (i >= bytes || p[i] < low || p[i] > high) { *bad = i; return 0; }
        low = 0x80;
        high = 0xbf;
    }
    return need;
}

size_t jinja_utf8_back(const char *text, size_t at)
{
    do at--; while (at > 0 && ((unsigned char)text[at] & 0xc0) == 0x80);
    return at;
}

size_t jinja_utf8_count(const char *text, size_t bytes)
{
    size_t n = 0;

    for (size_t i = 0; i < bytes; i++) n += ((unsigned char)text[i] & 0xc0) != 0x80;
    return n;
}

static bool in_ranges(const struct jinja_code_range *ranges, uint32_t count, uint32_t code)
{
    uint32_t low = 0, high = count;

    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (code > ranges[middle].last) low = middle + 1;
        else if (code < ranges[middle].first) high = middle;
        else return true;
    }
    return false;
}

static unsigned map_case(const struct jinja_case_range *ranges, uint32_t count, const struct jinja_case_special *specials,
                         uint32_t special_count, uint32_t code, uint32_t to[3])
{
    uint32_t low = 0, high = special_count;

    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (code > specials[middle].code) low = middle + 1;
        else if (code < specials[middle].code) high = middle;
        else {
            unsigned n = 0;
            while (n < 3 && specials[middle].to[n]) { to[n] = specials[middle].to[n]; n++; }
            return n;
        }
    }
    to[0] = code;
    low = 0;
    high = count;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (code > ranges[middle].last) low = middle + 1;
        else if (code < ranges[middle].first) high = middle;
        else {
            if ((code - ranges[middle].first) % (uint32_t)ranges[middle].stride == 0) to[0] = code + (uint32_t)ranges[middle].delta;
            break;
        }
    }
    return 1;
}

#define MAP(name) map_case(jinja_##name##_ranges, jinja_##name##_range_count, jinja_##name##_specials, jinja_##name##_special_count, code, to)

unsigned jinja_code_lower(uint32_t code, uint32_t to[3])
{
    if (code < 0x80) { to[0] = code >= 'A' && code <= 'Z' ? code + 32 : code; return 1; }
    return MAP(lower);
}

unsigned jinja_code_upper(uint32_t code, uint32_t to[3])
{
    if (code < 0x80) { to[0] = code >= 'a' && code <= 'z' ? code - 32 : code; return 1; }
    return MAP(upper);
}

unsigned jinja_code_title(uint32_t code, uint32_t to[3])
{
    if (code < 0x80) { to[0] = code >= 'a' && code <= 'z' ? code - 32 : code; return 1; }
    return MAP(title);
}

bool jinja_code_is_space(uint32_t c)
{
    return (c >= 9 && c <= 13) || (c >= 28 && c <= 32) || c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a)
        || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

bool jinja_code_is_line_end(uint32_t c)
{
    return (c >= 10 && c <= 13) || (c >= 28 && c <= 30) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

#define IS(question, table) \
    bool jinja_code_is_##question(uint32_t code) { return in_ranges(jinja_##table##_ranges, jinja_##table##_range_count, code); }

IS(alpha, alpha)
IS(digit, digit)
IS(decimal, decimal)
IS(numeric, numeric)
IS(lower, islower)
IS(upper, isupper)
IS(title, istitle)
IS(printable, printable)
