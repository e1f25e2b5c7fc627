/* model/jinja_text_edit.c - strings made from strings: strip, replace, repeat, case, HTML escape
 * (model/jinja_text.h). Each keeps the trust of every character it takes over.
 *
 * Owns     nothing: all memory is the run's arena
 * Fails    by the run: longer than string_bytes_max, out of budget. */
#include "model/jinja_text.h"

#include <string.h>

#include "model/jinja_unicode.h"
#include "shm/error.h"

static bool in_set(struct jinja_run *r, uint32_t code, struct jinja_str *chars)
{
    const char *text;
    size_t at = 0;

    if (!chars) return jinja_code_is_space(code);
    text = jinja_str_text(r, chars);
    jinja_step(r, 1 + chars->bytes / 4);
    while (at < chars->bytes) if (jinja_utf8_next(text, &at) == code) return true;
    return false;
}

struct jinja_str *jinja_str_strip(struct jinja_run *r, struct jinja_str *s, struct jinja_str *chars, bool left, bool right)
{
    const char *text = jinja_str_text(r, s);
    size_t begin = 0, end = s->bytes;

    while (left && begin < end) {
        size_t next = begin;
        if (!in_set(r, jinja_utf8_next(text, &next), chars)) break;
        begin = next;
    }
    while (right && end > begin) {
        size_t back = jinja_utf8_back(text, end), at = back;
        if (!in_set(r, jinja_utf8_next(text, &at), chars)) break;
        end = back;
    }
    jinja_step_bytes(r, s->bytes - (end - begin));
    return jinja_str_slice(r, s, (uint32_t)begin, (uint32_t)end);
}

/* An empty `old` matches between all characters, as in Python. */
static struct jinja_str *spread(struct jinja_run *r, struct jinja_str *s, struct jinja_str *fresh, int64_t count)
{
    const char *text = jinja_str_text(r, s);
    struct jinja_buf b = {0};
    size_t at = 0;

    for (int64_t done = 0; count < 0 || done < count; done++) {
        const size_t begin = at;
        jinja_step(r, 1);
        jinja_buf_put_str(r, &b, fresh);
        if (at == s->bytes) break;
        jinja_utf8_next(text, &at);
        jinja_buf_put_slice(r, &b, s, (uint32_t)begin, (uint32_t)at);
    }
    jinja_buf_put_slice(r, &b, s, (uint32_t)at, s->bytes);
    return jinja_buf_finish(r, &b);
}

struct jinja_str *jinja_str_replace(struct jinja_run *r, struct jinja_str *s, struct jinja_str *old, struct jinja_str *fresh, int64_t count)
{
    struct jinja_buf b = {0};
    uint32_t at = 0, found;

    if (count == 0) return s;
    if (!old->bytes) return spread(r, s, fresh, count);
    for (int64_t done = 0; count < 0 || done < count; done++) {
        if ((found = jinja_str_find(r, s, old, at)) == UINT32_MAX) break;
        jinja_step(r, 1);
        jinja_buf_put_slice(r, &b, s, at, found);
        jinja_buf_put_str(r, &b, fresh);
        at = found + old->bytes;
    }
    if (at == 0) return s;
    jinja_buf_put_slice(r, &b, s, at, s->bytes);
    return jinja_buf_finish(r, &b);
}

struct jinja_str *jinja_str_repeat(struct jinja_run *r, struct jinja_str *s, int64_t times)
{
    struct jinja_buf b = {0};

    if (times > 0 && s->bytes && (uint64_t)times > r->string_bytes_max / s->bytes)
        jinja_fail(r, E_LIMIT, "the template makes a text longer than %u bytes", r->string_bytes_max);
    for (int64_t i = 0; i < times && s->bytes; i++) {
        jinja_step(r, 1);
        jinja_buf_put_str(r, &b, s);
    }
    return jinja_buf_finish(r, &b);
}

/* ------------------------------------------------------------------ case */

static bool is_cased(uint32_t c) { return jinja_code_is_lower(c) || jinja_code_is_upper(c) || jinja_code_is_title(c); }

static bool is_case_ignorable(uint32_t c)
{
    return c == '\'' || c == '.' || c == ':' || c == '^' || c == '`' || c == 0xa8 || c == 0xad || c == 0xaf || c == 0xb4
        || c == 0xb7 || c == 0xb8 || (c >= 0x2b0 && c <= 0x36f) || c == 0x2019 || (c >= 0x200b && c <= 0x200f);
}

/* Capital sigma at the end of a word becomes the final form. */
static bool is_final_sigma(const char *text, uint32_t bytes, size_t begin, size_t end)
{
    size_t at = begin;
    uint32_t code = 0;

    while (at > 0) {
        size_t next = at = jinja_utf8_back(text, at);
        code = jinja_utf8_next(text, &next);
        if (!is_case_ignorable(code)) break;
        code = 0;
    }
    if (!code || !is_cased(code)) return false;
    for (at = end; at < bytes;) {
        code = jinja_utf8_next(text, &at);
        if (!is_case_ignorable(code)) return !is_cased(code);
    }
    return true;
}

enum letter_case { LOWER, UPPER, TITLE };

static void put_case(struct jinja_run *r, struct jinja_buf *b, struct jinja_str *s, size_t begin, size_t end, enum letter_case how)
{
    const char *text = s->text;
    uint32_t to[JINJA_CASE_CODES_MAX];
    size_t at = begin;
    const uint32_t code = jinja_utf8_next(text, &at);
    unsigned n;

    if (how == LOWER && code == 0x3a3) {
        to[0] = is_final_sigma(text, s->bytes, begin, end) ? 0x3c2 : 0x3c3;
        n = 1;
    } else {
        n = how == LOWER ? jinja_code_lower(code, to) : how == UPPER ? jinja_code_upper(code, to) : jinja_code_title(code, to);
    }
    for (unsigned i = 0; i < n; i++) jinja_buf_put_code(r, b, to[i], jinja_str_trusted_at(s, (uint32_t)begin));
}

enum case_rule { ALL_LOWER, ALL_UPPER, CAPITALIZED, WORDS_TITLED, SWAPPED };

static enum letter_case case_of(enum case_rule rule, uint32_t code, bool first, bool in_word)
{
    switch (rule) {
    case ALL_LOWER: return LOWER;
    case ALL_UPPER: return UPPER;
    case CAPITALIZED: return first ? TITLE : LOWER;
    case WORDS_TITLED: return in_word ? LOWER : TITLE;
    default: return jinja_code_is_upper(code) ? LOWER : UPPER;
    }
}

static struct jinja_str *map_case(struct jinja_run *r, struct jinja_str *s, enum case_rule rule)
{
    const char *text = jinja_str_text(r, s);
    struct jinja_buf b = {0};
    bool in_word = false;

    jinja_step(r, s->bytes / 4);
    for (size_t at = 0; at < s->bytes;) {
        const size_t begin = at;
        const uint32_t code = jinja_utf8_next(text, &at);
        put_case(r, &b, s, begin, at, case_of(rule, code, begin == 0, in_word));
        in_word = is_cased(code);
    }
    struct jinja_str *out = jinja_buf_finish(r, &b);
    out->markup = s->markup;
    return out;
}

struct jinja_str *jinja_str_lower(struct jinja_run *r, struct jinja_str *s) { return map_case(r, s, ALL_LOWER); }
struct jinja_str *jinja_str_upper(struct jinja_run *r, struct jinja_str *s) { return map_case(r, s, ALL_UPPER); }
struct jinja_str *jinja_str_capitalize(struct jinja_run *r, struct jinja_str *s) { return map_case(r, s, CAPITALIZED); }
struct jinja_str *jinja_str_title(struct jinja_run *r, struct jinja_str *s) { return map_case(r, s, WORDS_TITLED); }
struct jinja_str *jinja_str_swapcase(struct jinja_run *r, struct jinja_str *s) { return map_case(r, s, SWAPPED); }

struct jinja_str *jinja_str_escape(struct jinja_run *r, struct jinja_str *s)
{
    const char *text = jinja_str_text(r, s);
    struct jinja_buf b = {0};
    struct jinja_str *out;
    uint32_t from = 0;

    jinja_step(r, s->bytes / 4);
    for (uint32_t i = 0; i < s->bytes; i++) {
        const char *entity = text[i] == '&' ? "&amp;" : text[i] == '<' ? "&lt;" : text[i] == '>' ? "&gt;"
                           : text[i] == '\'' ? "&#39;" : text[i] == '"' ? "&#34;" : NULL;
        if (!entity) continue;
        jinja_buf_put_slice(r, &b, s, from, i);
        jinja_buf_put_constant(r, &b, entity, jinja_str_trusted_at(s, i));
        from = i + 1;
    }
    jinja_buf_put_slice(r, &b, s, from, s->bytes);
    out = jinja_buf_finish(r, &b);
    out->markup = 1;
    return out;
}
