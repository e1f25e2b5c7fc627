/* model/jinja_text.c - strings with trust: make, slice, join, search, build (model/jinja_text.h).
 *
 * Owns     nothing: all memory is the run's arena
 * Fails    by the run: longer than string_bytes_max, out of budget. */
#include "model/jinja_text.h"

#include <string.h>

#include "model/jinja_unicode.h"
#include "shm/error.h"
#include "shm/must.h"

static struct jinja_str *new_str(struct jinja_run *r, const char *text, size_t bytes)
{
    struct jinja_str *s;

    if (bytes > r->string_bytes_max) jinja_fail(r, E_LIMIT, "the template makes a text longer than %u bytes", r->string_bytes_max);
    s = jinja_alloc(r, sizeof *s);
    *s = (struct jinja_str){.text = text, .bytes = (uint32_t)bytes, .chars = UINT32_MAX};
    return s;
}

struct jinja_str *jinja_str_wrap(struct jinja_run *r, const char *text, size_t bytes, bool trusted)
{
    struct jinja_str *s = new_str(r, text, bytes);

    s->trust = trusted ? JINJA_TRUST_ALL : JINJA_TRUST_NONE;
    return s;
}

struct jinja_str *jinja_str_copy(struct jinja_run *r, const char *text, size_t bytes, bool trusted)
{
    struct jinja_str *s = jinja_str_wrap(r, text, bytes, trusted);
    char *copy = jinja_alloc(r, bytes);

    if (bytes) memcpy(copy, text, bytes);
    s->text = copy;
    return s;
}

struct jinja_str *jinja_str_constant(struct jinja_run *r, const char *text, bool trusted)
{
    return jinja_str_wrap(r, text, strlen(text), trusted);
}

void jinja_str_seal(struct jinja_run *r, struct jinja_str *s)
{
    jinja_str_flatten(r, s);
    jinja_str_chars(r, s);
    jinja_str_hash(r, s);
}

/* Ropes lean left when built in a loop: an explicit stack, not recursion. */
void jinja_str_flatten(struct jinja_run *r, struct jinja_str *s)
{
    struct jinja_buf b = {0};
    struct jinja_str **stack;
    uint32_t count = 0, room = 64;

    if (s->text) return;
    stack = jinja_alloc_array(r, room, sizeof *stack);
    b.text = jinja_alloc(r, s->bytes);
    b.room = s->bytes;
    stack[count++] = s;
    while (count) {
        struct jinja_str *top = stack[--count];
        if (top->text) {
            jinja_buf_put_str(r, &b, top);
            continue;
        }
        if (count + 2 > room) {
            stack = jinja_grow(r, stack, room * sizeof *stack, 2 * room * sizeof *stack);
            room *= 2;
        }
        jinja_step(r, 1);
        stack[count++] = top->right;
        stack[count++] = top->left;
    }
    must(b.bytes == s->bytes);
    s->text = b.text;
    s->spans = b.spans;
    s->span_count = b.span_count;
    s->left = s->right = NULL;
}

uint32_t jinja_str_chars(struct jinja_run *r, struct jinja_str *s)
{
    if (s->chars == UINT32_MAX) {
        jinja_step_bytes(r, s->bytes);
        s->chars = (uint32_t)jinja_utf8_count(jinja_str_text(r, s), s->bytes);
    }
    return s->chars;
}

uint32_t jinja_str_hash(struct jinja_run *r, struct jinja_str *s)
{
    if (!s->hash) {
        const char *text = jinja_str_text(r, s);
        uint64_t h = 0x9e3779b97f4a7c15ull ^ s->bytes;

        jinja_step_bytes(r, s->bytes);
        for (uint32_t i = 0; i < s->bytes; i++) {
            h = (h ^ (unsigned char)text[i]) * 0x100000001b3ull;
            h ^= h >> 32;
        }
        s->hash = (uint32_t)h ? (uint32_t)h : 1;
    }
    return s->hash;
}

uint32_t jinja_str_offset(struct jinja_run *r, struct jinja_str *s, uint32_t index)
{
    const uint32_t chars = jinja_str_chars(r, s);
    const char *text = jinja_str_text(r, s);
    size_t at = 0;

    must(index <= chars);
    if (chars == s->bytes) return index;
    if (index == chars) return s->bytes;
    jinja_step_bytes(r, s->bytes);
    if (index > chars / 2) {
        at = s->bytes;
        for (uint32_t i = chars; i > index; i--) at = jinja_utf8_back(text, at);
    } else {
        for (uint32_t i = 0; i < index; i++) jinja_utf8_next(text, &at);
    }
    return (uint32_t)at;
}

/* Index of the first span that ends behind `byte`. */
static uint32_t span_after(const struct jinja_str *s, uint32_t byte)
{
    uint32_t low = 0, high = s->span_count;

    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (s->spans[middle].end > byte) high = middle;
        else low = middle + 1;
    }
    return low;
}

bool jinja_str_trusted_at(const struct jinja_str *s, uint32_t byte)
{
    uint32_t i;

    if (s->trust != JINJA_TRUST_SOME) return s->trust == JINJA_TRUST_ALL;
    i = span_after(s, byte);
    return i < s->span_count && s->spans[i].begin <= byte;
}

struct jinja_str *jinja_str_slice(struct jinja_run *r, struct jinja_str *s, uint32_t begin, uint32_t end)
{
    const char *text = jinja_str_text(r, s);
    struct jinja_str *part;
    struct jinja_span *spans;
    uint32_t first, last;

    must(begin <= end && end <= s->bytes);
    if (begin == 0 && end == s->bytes) return s;
    part = new_str(r, text + begin, end - begin);
    part->markup = s->markup;
    part->trust = s->trust;
    if (s->chars == s->bytes) part->chars = part->bytes;
    if (s->trust != JINJA_TRUST_SOME) return part;

    first = span_after(s, begin);
    for (last = first; last < s->span_count && s->spans[last].begin < end; last++) {}
    part->trust = JINJA_TRUST_NONE;
    if (first == last) return part;
    if (last == first + 1 && s->spans[first].begin <= begin && s->spans[first].end >= end) {
        part->trust = JINJA_TRUST_ALL;
        return part;
    }
    part->trust = JINJA_TRUST_SOME;
    spans = jinja_alloc_array(r, last - first, sizeof *spans);
    for (uint32_t i = first; i < last; i++) {
        const struct jinja_span x = s->spans[i];
        spans[i - first].begin = (x.begin > begin ? x.begin : begin) - begin;
        spans[i - first].end = (x.end < end ? x.end : end) - begin;
    }
    part->spans = spans;
    part->span_count = last - first;
    return part;
}

struct jinja_str *jinja_str_concat(struct jinja_run *r, struct jinja_str *a, struct jinja_str *b)
{
    struct jinja_str *s;

    if (!a->bytes && a->markup == b->markup) return b;
    if (!b->bytes && a->markup == b->markup) return a;
    s = new_str(r, NULL, (size_t)a->bytes + b->bytes);
    s->markup = a->markup;
    if (!a->bytes || !b->bytes) {
        const uint8_t markup = s->markup;
        *s = a->bytes ? *a : *b;
        s->markup = markup;
        return s;
    }
    s->left = a;
    s->right = b;
    s->trust = a->trust == b->trust ? a->trust : JINJA_TRUST_SOME;
    if (a->chars != UINT32_MAX && b->chars != UINT32_MAX) s->chars = a->chars + b->chars;
    return s;
}

bool jinja_str_equal(struct jinja_run *r, struct jinja_str *a, struct jinja_str *b)
{
    if (a == b) return true;
    if (a->bytes != b->bytes) return false;
    if (a->hash && b->hash && a->hash != b->hash) return false;
    jinja_step_bytes(r, a->bytes);
    return memcmp(jinja_str_text(r, a), jinja_str_text(r, b), a->bytes) == 0;
}

bool jinja_str_is(struct jinja_run *r, struct jinja_str *s, const char *text)
{
    const size_t n = strlen(text);

    return s->bytes == n && memcmp(jinja_str_text(r, s), text, n) == 0;
}

/* Byte order of UTF-8 is code point order, which is how Python compares. */
int jinja_str_compare(struct jinja_run *r, struct jinja_str *a, struct jinja_str *b)
{
    const uint32_t n = a->bytes < b->bytes ? a->bytes : b->bytes;
    const int c = memcmp(jinja_str_text(r, a), jinja_str_text(r, b), n);

    jinja_step_bytes(r, n);
    return c ? c : (a->bytes > b->bytes) - (a->bytes < b->bytes);
}

uint32_t jinja_str_find(struct jinja_run *r, struct jinja_str *s, struct jinja_str *part, uint32_t from)
{
    const char *text = jinja_str_text(r, s), *found;

    if (part->bytes > s->bytes - from) return UINT32_MAX;
    found = memmem(text + from, s->bytes - from, jinja_str_text(r, part), part->bytes);
    jinja_step_bytes(r, (found ? (size_t)(found - text) - from : s->bytes - from) + part->bytes);
    return found ? (uint32_t)(found - text) : UINT32_MAX;
}

/* ------------------------------------------------------------------ building */

static void mark_trusted(struct jinja_run *r, struct jinja_buf *b, uint32_t begin, uint32_t end)
{
    if (begin == end) return;
    if (b->span_count && b->spans[b->span_count - 1].end == begin) {
        b->spans[b->span_count - 1].end = end;
        return;
    }
    if (b->span_count == b->span_room) {
        const uint32_t room = b->span_room ? 2 * b->span_room : 4;
        b->spans = jinja_grow(r, b->spans, b->span_count * sizeof *b->spans, room * sizeof *b->spans);
        b->span_room = room;
    }
    b->spans[b->span_count++] = (struct jinja_span){begin, end};
}

static void put_bytes(struct jinja_run *r, struct jinja_buf *b, const char *text, size_t bytes)
{
    if (bytes > r->string_bytes_max - b->bytes)
        jinja_fail(r, E_LIMIT, "the template makes a text longer than %u bytes", r->string_bytes_max);
    if (bytes > b->room - b->bytes) {
        size_t room = b->room ? 2 * (size_t)b->room : 96;
        while (room < b->bytes + bytes) room *= 2;
        if (room > UINT32_MAX) room = UINT32_MAX;
        b->text = jinja_grow(r, b->text, b->bytes, room);
        b->room = (uint32_t)room;
    }
    if (bytes) memcpy(b->text + b->bytes, text, bytes);
    b->bytes += (uint32_t)bytes;
}

void jinja_buf_put(struct jinja_run *r, struct jinja_buf *b, const char *text, size_t bytes, bool trusted)
{
    const uint32_t begin = b->bytes;

    jinja_step_bytes(r, bytes);
    put_bytes(r, b, text, bytes);
    if (trusted) mark_trusted(r, b, begin, b->bytes);
}

void jinja_buf_put_constant(struct jinja_run *r, struct jinja_buf *b, const char *text, bool trusted)
{
    jinja_buf_put(r, b, text, strlen(text), trusted);
}

void jinja_buf_put_code(struct jinja_run *r, struct jinja_buf *b, uint32_t code, bool trusted)
{
    char utf8[4];

    jinja_buf_put(r, b, utf8, jinja_utf8_put(utf8, code), trusted);
}

void jinja_buf_put_slice(struct jinja_run *r, struct jinja_buf *b, struct jinja_str *s, uint32_t begin, uint32_t end)
{
    const char *text = jinja_str_text(r, s);
    const uint32_t base = b->bytes;

    jinja_step_bytes(r, end - begin);
    put_bytes(r, b, text + begin, end - begin);
    if (s->trust == JINJA_TRUST_ALL) mark_trusted(r, b, base, b->bytes);
    if (s->trust != JINJA_TRUST_SOME) return;
    for (uint32_t i = span_after(s, begin); i < s->span_count && s->spans[i].begin < end; i++) {
        const struct jinja_span x = s->spans[i];
        mark_trusted(r, b, base + (x.begin > begin ? x.begin : begin) - begin, base + (x.end < end ? x.end : end) - begin);
    }
}

void jinja_buf_put_str(struct jinja_run *r, struct jinja_buf *b, struct jinja_str *s)
{
    jinja_buf_put_slice(r, b, s, 0, s->bytes);
}

struct jinja_str *jinja_buf_finish(struct jinja_run *r, struct jinja_buf *b)
{
    struct jinja_str *s = new_str(r, b->text ? b->text : "", b->bytes);

    if (b->span_count == 1 && b->spans[0].begin == 0 && b->spans[0].end == b->bytes) s->trust = JINJA_TRUST_ALL;
    else if (b->span_count) {
        s->trust = JINJA_TRUST_SOME;
        s->spans = b->spans;
        s->span_count = b->span_count;
    }
    memset(b, 0, sizeof *b);
    return s;
}
