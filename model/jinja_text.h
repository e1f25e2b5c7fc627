/* model/jinja_text.h - strings that know where each byte came from.
 *
 * A jinja_str is immutable UTF-8 with runs of trusted bytes: text of the template's own literals, as
 * opposed to text of the request's data. Slicing, joining and mapping keep the runs. `a + b` makes a
 * rope, flattened once when its bytes are needed, so that building a text piece by piece in a loop is
 * linear. A string made at parse time is sealed (flat, counted): a render only reads it, so templates
 * can be shared by threads.
 *
 * All memory is the run's. Fails by the run: -E_LIMIT for strings longer than string_bytes_max. */
#ifndef SLUICE_MODEL_JINJA_TEXT_H
#define SLUICE_MODEL_JINJA_TEXT_H

#include "model/jinja_run.h"

enum jinja_trust { JINJA_TRUST_NONE, JINJA_TRUST_ALL, JINJA_TRUST_SOME };

struct jinja_span { uint32_t begin, end; };   /* bytes, trusted */

struct jinja_str {
    const char *text;                 /* NULL while a rope; not NUL-terminated */
    const struct jinja_span *spans;   /* trust SOME: ascending, disjoint, not touching */
    struct jinja_str *left, *right;   /* a rope's halves, never empty */
    uint32_t bytes;
    uint32_t chars;                   /* code points; UINT32_MAX: not counted yet */
    uint32_t span_count;
    uint32_t hash;                    /* 0: not computed yet */
    uint8_t trust;                    /* enum jinja_trust */
    uint8_t markup;                   /* 1: made by |safe or |escape: + escapes the other side */
};

/* Wraps bytes that live as long as the run; must be valid UTF-8. */
struct jinja_str *jinja_str_wrap(struct jinja_run *r, const char *text, size_t bytes, bool trusted);
/* The same from a copy. */
struct jinja_str *jinja_str_copy(struct jinja_run *r, const char *text, size_t bytes, bool trusted);
/* A constant of this program. */
struct jinja_str *jinja_str_constant(struct jinja_run *r, const char *text, bool trusted);
/* Counts and hashes, so that later readers need not write. */
void jinja_str_seal(struct jinja_run *r, struct jinja_str *s);
/* Makes the bytes readable at s->text. */
void jinja_str_flatten(struct jinja_run *r, struct jinja_str *s);
static inline const char *jinja_str_text(struct jinja_run *r, struct jinja_str *s)
{
    if (!s->text) jinja_str_flatten(r, s);
    return s->text;
}
uint32_t jinja_str_chars(struct jinja_run *r, struct jinja_str *s);
uint32_t jinja_str_hash(struct jinja_run *r, struct jinja_str *s);
/* Byte offset of code point `index` (0..chars). */
uint32_t jinja_str_offset(struct jinja_run *r, struct jinja_str *s, uint32_t index);
struct jinja_str *jinja_str_slice(struct jinja_run *r, struct jinja_str *s, uint32_t begin_bytes, uint32_t end_bytes);
struct jinja_str *jinja_str_concat(struct jinja_run *r, struct jinja_str *a, struct jinja_str *b);
bool jinja_str_equal(struct jinja_run *r, struct jinja_str *a, struct jinja_str *b);
bool jinja_str_is(struct jinja_run *r, struct jinja_str *s, const char *text);
int jinja_str_compare(struct jinja_run *r, struct jinja_str *a, struct jinja_str *b);
/* First occurrence at or after byte `from`, or UINT32_MAX. */
uint32_t jinja_str_find(struct jinja_run *r, struct jinja_str *s, struct jinja_str *part, uint32_t from);
bool jinja_str_trusted_at(const struct jinja_str *s, uint32_t byte);

/* A string under construction. */
struct jinja_buf {
    char *text;
    struct jinja_span *spans;
    uint32_t bytes, room;
    uint32_t span_count, span_room;
};
void jinja_buf_put(struct jinja_run *r, struct jinja_buf *b, const char *text, size_t bytes, bool trusted);
void jinja_buf_put_constant(struct jinja_run *r, struct jinja_buf *b, const char *text, bool trusted);
void jinja_buf_put_code(struct jinja_run *r, struct jinja_buf *b, uint32_t code, bool trusted);
void jinja_buf_put_str(struct jinja_run *r, struct jinja_buf *b, struct jinja_str *s);
void jinja_buf_put_slice(struct jinja_run *r, struct jinja_buf *b, struct jinja_str *s, uint32_t begin, uint32_t end);
struct jinja_str *jinja_buf_finish(struct jinja_run *r, struct jinja_buf *b);

/* Whitespace trimmed as str.strip; chars NULL: whitespace. */
struct jinja_str *jinja_str_strip(struct jinja_run *r, struct jinja_str *s, struct jinja_str *chars, bool left, bool right);
struct jinja_str *jinja_str_replace(struct jinja_run *r, struct jinja_str *s, struct jinja_str *old, struct jinja_str *fresh, int64_t count);
struct jinja_str *jinja_str_repeat(struct jinja_run *r, struct jinja_str *s, int64_t times);
struct jinja_str *jinja_str_lower(struct jinja_run *r, struct jinja_str *s);
struct jinja_str *jinja_str_upper(struct jinja_run *r, struct jinja_str *s);
struct jinja_str *jinja_str_title(struct jinja_run *r, struct jinja_str *s);       /* str.title() */
struct jinja_str *jinja_str_capitalize(struct jinja_run *r, struct jinja_str *s);
struct jinja_str *jinja_str_swapcase(struct jinja_run *r, struct jinja_str *s);
struct jinja_str *jinja_str_escape(struct jinja_run *r, struct jinja_str *s);      /* &, <, >, ', " as markupsafe */

#endif
