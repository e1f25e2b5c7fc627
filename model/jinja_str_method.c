/* model/jinja_str_method.c - the methods of str (model/jinja_eval.h).
 *
 * Owns     nothing: strings are in the run's arena; pieces share the bytes of what they were cut from
 * Fails    by the run: wrong arguments, in Python's words. */
#include <string.h>

#include "model/jinja_eval.h"
#include "model/jinja_method.h"
#include "model/jinja_unicode.h"
#include "shm/error.h"
#include "shm/must.h"

/* An argument that is a string or None; NULL for None or missing. */
static struct jinja_str *optional_str(struct jinja_eval *e, struct jinja_value v)
{
    return v.type == JINJA_MISSING || v.type == JINJA_NONE ? NULL : jinja_need_str(e, "argument", v);
}

static int64_t optional_int(struct jinja_eval *e, struct jinja_value v, int64_t otherwise)
{
    return v.type == JINJA_MISSING || v.type == JINJA_NONE ? otherwise : jinja_need_int(e, v);
}

/* ------------------------------------------------------------------ splitting */

static void add_piece(struct jinja_eval *e, struct jinja_items *out, struct jinja_str *s, size_t begin, size_t end)
{
    jinja_items_add(&e->run, out, jinja_string(jinja_str_slice(&e->run, s, (uint32_t)begin, (uint32_t)end)));
}

static void split_space(struct jinja_eval *e, struct jinja_str *s, int64_t max, struct jinja_items *out)
{
    const char *text = jinja_str_text(&e->run, s);
    size_t at = 0, begin, next;

    for (;;) {
        for (next = at; at < s->bytes && jinja_code_is_space(jinja_utf8_next(text, &next)); at = next) {}
        if (at == s->bytes) return;
        begin = at;
        if (max >= 0 && (int64_t)out->count == max) {
            add_piece(e, out, s, begin, s->bytes);   /* the rest keeps its trailing blanks, as in Python */
            return;
        }
        for (next = at; at < s->bytes && !jinja_code_is_space(jinja_utf8_next(text, &next)); at = next) {}
        add_piece(e, out, s, begin, at);
    }
}

static void rsplit_space(struct jinja_eval *e, struct jinja_str *s, int64_t max, struct jinja_items *out)
{
    const char *text = jinja_str_text(&e->run, s);
    size_t at = s->bytes, end, back, next;

    for (;;) {
        for (; at > 0; at = back) {
            next = back = jinja_utf8_back(text, at);
            if (!jinja_code_is_space(jinja_utf8_next(text, &next))) break;
        }
        if (at == 0) return;
        end = at;
        if (max >= 0 && (int64_t)out->count == max) {
            add_piece(e, out, s, 0, end);
            return;
        }
        for (; at > 0; at = back) {
            next = back = jinja_utf8_back(text, at);
            if (jinja_code_is_space(jinja_utf8_next(text, &next))) break;
        }
        add_piece(e, out, s, at, end);
    }
}

static void reverse(struct jinja_items *l)
{
    for (uint32_t i = 0; i + 1 < l->count - i; i++) {
        const struct jinja_value v = l->items[i];
        l->items[i] = l->items[l->count - 1 - i];
        l->items[l->count - 1 - i] = v;
    }
}

/* Last occurrence that ends at or before byte `end`, or UINT32_MAX. */
static uint32_t find_last(struct jinja_eval *e, struct jinja_str *s, struct jinja_str *part, uint32_t begin, uint32_t end)
{
    const char *text = jinja_str_text(&e->run, s), *what = jinja_str_text(&e->run, part);

    if (end - begin < part->bytes) return UINT32_MAX;
    for (uint32_t at = end - part->bytes + 1; at-- > begin;) {
        jinja_step(&e->run, 1);
        if (memcmp(text + at, what, part->bytes) == 0) return at;
    }
    return UINT32_MAX;
}

static struct jinja_value split(struct jinja_eval *e, struct jinja_str *s, struct jinja_args *args, bool from_right)
{
    static const char *const params[] = {"sep", "maxsplit"};
    struct jinja_value v[2];
    struct jinja_items out = {0};
    struct jinja_str *sep;
    int64_t max;

    jinja_bind(e, from_right ? "rsplit" : "split", args, params, 2, 0, v);
    sep = optional_str(e, v[0]);
    max = optional_int(e, v[1], -1);
    if (sep && !sep->bytes) jinja_fail(&e->run, E_FORMAT, "empty separator");
    if (!sep && from_right) rsplit_space(e, s, max, &out);
    else if (!sep) split_space(e, s, max, &out);
    else if (from_right) {
        uint32_t end = s->bytes, found;
        while ((max < 0 || (int64_t)out.count < max) && (found = find_last(e, s, sep, 0, end)) != UINT32_MAX) {
            add_piece(e, &out, s, found + sep->bytes, end);
            end = found;
        }
        add_piece(e, &out, s, 0, end);
    } else {
        uint32_t at = 0, found;
        while ((max < 0 || (int64_t)out.count < max) && (found = jinja_str_find(&e->run, s, sep, at)) != UINT32_MAX) {
            add_piece(e, &out, s, at, found);
            at = found + sep->bytes;
        }
        add_piece(e, &out, s, at, s->bytes);
    }
    if (from_right && out.count) reverse(&out);
    return jinja_list_of(&e->run, out.items, out.count);
}

static struct jinja_value splitlines(struct jinja_eval *e, struct jinja_str *s, struct jinja_args *args)
{
    static const char *const params[] = {"keepends"};
    const char *text = jinja_str_text(&e->run, s);
    struct jinja_items out = {0};
    struct jinja_value v;
    size_t begin = 0, at = 0;
    bool keep;

    jinja_bind(e, "splitlines", args, params, 1, 0, &v);
    keep = v.type != JINJA_MISSING && jinja_truth(&e->run, v);
    while (at < s->bytes) {
        const size_t end = at;
        const uint32_t code = jinja_utf8_next(text, &at);
        if (!jinja_code_is_line_end(code)) continue;
        if (code == '\r' && at < s->bytes && text[at] == '\n') at++;
        add_piece(e, &out, s, begin, keep ? at : end);
        begin = at;
    }
    if (begin < s->bytes) add_piece(e, &out, s, begin, s->bytes);
    jinja_step_bytes(&e->run, s->bytes);
    return jinja_list_of(&e->run, out.items, out.count);
}

static struct jinja_value partition(struct jinja_eval *e, struct jinja_str *s, struct jinja_args *args, bool last)
{
    static const char *const params[] = {"sep"};
    struct jinja_value v, *three = jinja_alloc(&e->run, 3 * sizeof *three);
    struct jinja_str *sep, *empty = jinja_str_constant(&e->run, "", true);
    uint32_t found;

    jinja_bind(e, "partition", args, params, 1, 1, &v);
    sep = jinja_need_str(e, "argument", v);
    if (!sep->bytes) jinja_fail(&e->run, E_FORMAT, "empty separator");
    jinja_str_text(&e->run, s);
    found = last ? find_last(e, s, sep, 0, s->bytes) : jinja_str_find(&e->run, s, sep, 0);
    if (found == UINT32_MAX) {
        three[0] = jinja_string(last ? empty : s);
        three[1] = jinja_string(empty);
        three[2] = jinja_string(last ? s : empty);
    } else {
        three[0] = jinja_string(jinja_str_slice(&e->run, s, 0, found));
        three[1] = jinja_string(jinja_str_slice(&e->run, s, found, found + sep->bytes));
        three[2] = jinja_string(jinja_str_slice(&e->run, s, found + sep->bytes, s->bytes));
    }
    return jinja_tuple_of(&e->run, three, 3);
}

/* ------------------------------------------------------------------ searching */

/* The optional start and end arguments, in bytes; false when start lies behind the end of the text. */
static bool window(struct jinja_eval *e, struct jinja_str *s, const struct jinja_value *v, uint32_t *begin, uint32_t *end)
{
    const int64_t chars = jinja_str_chars(&e->run, s);
    int64_t from = optional_int(e, v[0], 0), to = optional_int(e, v[1], chars);

    if (from < 0) from = from + chars < 0 ? 0 : from + chars;
    if (to < 0) to = to + chars < 0 ? 0 : to + chars;
    if (to > chars) to = chars;
    if (from > to) return false;
    *begin = jinja_str_offset(&e->run, s, (uint32_t)from);
    *end = jinja_str_offset(&e->run, s, (uint32_t)to);
    return true;
}

static bool begins_with(struct jinja_eval *e, struct jinja_str *s, struct jinja_str *part, uint32_t begin, uint32_t end, bool at_end)
{
    const char *text = jinja_str_text(&e->run, s), *what = jinja_str_text(&e->run, part);

    if (part->bytes > end - begin) return false;
    jinja_step_bytes(&e->run, part->bytes);
    return memcmp(at_end ? text + end - part->bytes : text + begin, what, part->bytes) == 0;
}

static struct jinja_value affix(struct jinja_eval *e, struct jinja_str *s, struct jinja_args *args, bool at_end)
{
    static const char *const params[] = {"prefix", "start", "end"};
    struct jinja_value v[3];
    uint32_t begin, end;

    jinja_bind(e, at_end ? "endswith" : "startswith", args, params, 3, 1, v);
    if (v[0].type != JINJA_STRING && v[0].type != JINJA_TUPLE)
        jinja_fail(&e->run, E_FORMAT, "%s first arg must be str or a tuple of str, not %s", at_end ? "endswith" : "startswith", jinja_type_name(v[0]));
    if (!window(e, s, v + 1, &begin, &end)) return jinja_bool(false);
    if (v[0].type == JINJA_STRING) return jinja_bool(begins_with(e, s, v[0].u.str, begin, end, at_end));
    for (uint32_t i = 0; i < v[0].u.list->count; i++)
        if (begins_with(e, s, jinja_need_str(e, "tuple item", v[0].u.list->items[i]), begin, end, at_end)) return jinja_bool(true);
    return jinja_bool(false);
}

static struct jinja_value find(struct jinja_eval *e, struct jinja_str *s, struct jinja_args *args, uint32_t id)
{
    static const char *const params[] = {"sub", "start", "end"};
    const bool last = id == STR_RFIND || id == STR_RINDEX, must_find = id == STR_INDEX || id == STR_RINDEX;
    struct jinja_value v[3];
    struct jinja_str *part;
    uint32_t begin, end, found = UINT32_MAX;

    jinja_bind(e, "find", args, params, 3, 1, v);
    part = jinja_need_str(e, "argument", v[0]);
    if (window(e, s, v + 1, &begin, &end)) {
        if (last) found = find_last(e, s, part, begin, end);
        else found = jinja_str_find(&e->run, jinja_str_slice(&e->run, s, 0, end), part, begin);
    }
    if (found == UINT32_MAX && must_find) jinja_fail(&e->run, E_FORMAT, "substring not found");
    return jinja_int(found == UINT32_MAX ? -1 : (int64_t)jinja_utf8_count(jinja_str_text(&e->run, s), found));
}

static struct jinja_value count_of(struct jinja_eval *e, struct jinja_str *s, struct jinja_args *args)
{
    static const char *const params[] = {"sub", "start", "end"};
    struct jinja_value v[3];
    struct jinja_str *part, *in;
    uint32_t begin, end, at;
    int64_t count = 0;

    jinja_bind(e, "count", args, params, 3, 1, v);
    part = jinja_need_str(e, "argument", v[0]);
    if (!window(e, s, v + 1, &begin, &end)) return jinja_int(0);
    in = jinja_str_slice(&e->run, s, begin, end);
    if (!part->bytes) return jinja_int((int64_t)jinja_str_chars(&e->run, in) + 1);
    for (at = 0; (at = jinja_str_find(&e->run, in, part, at)) != UINT32_MAX; at += part->bytes) {
        jinja_step(&e->run, 1);
        count++;
    }
    return jinja_int(count);
}

/* ------------------------------------------------------------------ classes */

static bool code_is(uint32_t code, uint32_t id)
{
    switch (id) {
    case STR_ISALPHA: return jinja_code_is_alpha(code);
    case STR_ISALNUM: return jinja_code_is_alpha(code) || jinja_code_is_numeric(code);
    case STR_ISDECIMAL: return jinja_code_is_decimal(code);
    case STR_ISDIGIT: return jinja_code_is_digit(code);
    case STR_ISNUMERIC: return jinja_code_is_numeric(code);
    default: return jinja_code_is_space(code);
    }
}

static bool is_class(struct jinja_eval *e, struct jinja_str *s, uint32_t id)
{
    const char *text = jinja_str_text(&e->run, s);
    bool cased = false, in_word = false;

    jinja_step_bytes(&e->run, s->bytes);
    for (size_t at = 0; at < s->bytes;) {
        const uint32_t code = jinja_utf8_next(text, &at);
        const bool lower = jinja_code_is_lower(code), upper = jinja_code_is_upper(code), title = jinja_code_is_title(code);
        if (id == STR_ISLOWER || id == STR_ISUPPER) {
            if (title || (id == STR_ISLOWER ? upper : lower)) return false;
            cased = cased || lower || upper;
        } else if (id == STR_ISTITLE) {
            if ((upper || title) ? in_word : lower && !in_word) return false;
            in_word = upper || title || lower;
            cased = cased || in_word;
        } else {
            if (!code_is(code, id)) return false;
            cased = true;
        }
    }
    return cased;
}

/* ------------------------------------------------------------------ padding and the rest */

static struct jinja_value pad(struct jinja_eval *e, struct jinja_str *s, struct jinja_args *args, uint32_t id)
{
    static const char *const params[] = {"width", "fillchar"};
    struct jinja_value v[2];
    struct jinja_str *fill;
    struct jinja_buf b = {0};
    int64_t missing, left;

    jinja_bind(e, "center", args, params, 2, 1, v);
    fill = v[1].type == JINJA_MISSING ? jinja_str_constant(&e->run, " ", true) : jinja_need_str(e, "argument", v[1]);
    if (jinja_str_chars(&e->run, fill) != 1) jinja_fail(&e->run, E_FORMAT, "The fill character must be exactly one character long");
    missing = jinja_need_int(e, v[0]);
    if (missing <= (int64_t)jinja_str_chars(&e->run, s)) return jinja_string(s);
    if (missing > (int64_t)e->run.string_bytes_max) jinja_fail(&e->run, E_LIMIT, "the template makes a text longer than %u bytes", e->run.string_bytes_max);
    left = missing;   /* the width, for CPython's choice of the side that gets the odd blank */
    missing -= jinja_str_chars(&e->run, s);
    left = id == STR_LJUST ? 0 : id == STR_RJUST ? missing : missing / 2 + (missing & left & 1);
    jinja_buf_put_str(&e->run, &b, jinja_str_repeat(&e->run, fill, left));
    jinja_buf_put_str(&e->run, &b, s);
    jinja_buf_put_str(&e->run, &b, jinja_str_repeat(&e->run, fill, missing - left));
    return jinja_string(jinja_buf_finish(&e->run, &b));
}

static struct jinja_value zfill(struct jinja_eval *e, struct jinja_str *s, struct jinja_args *args)
{
    static const char *const params[] = {"width"};
    const char *text = jinja_str_text(&e->run, s);
    const bool sign = s->bytes && (text[0] == '-' || text[0] == '+');
    struct jinja_buf b = {0};
    struct jinja_value v;
    int64_t zeros;

    jinja_bind(e, "zfill", args, params, 1, 1, &v);
    zeros = jinja_need_int(e, v);
    if (zeros <= (int64_t)jinja_str_chars(&e->run, s)) return jinja_string(s);
    zeros -= jinja_str_chars(&e->run, s);
    jinja_buf_put_slice(&e->run, &b, s, 0, sign);
    jinja_buf_put_str(&e->run, &b, jinja_str_repeat(&e->run, jinja_str_constant(&e->run, "0", true), zeros));
    jinja_buf_put_slice(&e->run, &b, s, sign, s->bytes);
    return jinja_string(jinja_buf_finish(&e->run, &b));
}

static struct jinja_value join(struct jinja_eval *e, struct jinja_str *s, struct jinja_args *args)
{
    static const char *const params[] = {"iterable"};
    struct jinja_value v;
    struct jinja_seq seq;
    struct jinja_buf b = {0};

    jinja_bind(e, "join", args, params, 1, 1, &v);
    if (!jinja_is_iterable(v)) jinja_fail(&e->run, E_FORMAT, "can only join an iterable");
    seq = jinja_sequence(&e->run, v);
    for (uint32_t i = 0; i < seq.count; i++) {
        const struct jinja_value item = jinja_seq_at(&seq, i);
        if (item.type != JINJA_STRING)
            jinja_fail(&e->run, E_FORMAT, "sequence item %u: expected str instance, %s found", i, jinja_type_name(item));
        if (i) jinja_buf_put_str(&e->run, &b, s);
        jinja_buf_put_str(&e->run, &b, item.u.str);
    }
    return jinja_string(jinja_buf_finish(&e->run, &b));
}

static struct jinja_value replace(struct jinja_eval *e, struct jinja_str *s, struct jinja_args *args)
{
    static const char *const params[] = {"old", "new", "count"};
    struct jinja_value v[3];

    jinja_bind(e, "replace", args, params, 3, 2, v);
    return jinja_string(jinja_str_replace(&e->run, s, jinja_need_str(e, "replace() argument 1", v[0]),
                                          jinja_need_str(e, "replace() argument 2", v[1]), optional_int(e, v[2], -1)));
}

static struct jinja_value strip(struct jinja_eval *e, struct jinja_str *s, struct jinja_args *args, bool left, bool right)
{
    static const char *const params[] = {"chars"};
    struct jinja_value v;

    jinja_bind(e, "strip", args, params, 1, 0, &v);
    return jinja_string(jinja_str_strip(&e->run, s, optional_str(e, v), left, right));
}

static struct jinja_value remove_affix(struct jinja_eval *e, struct jinja_str *s, struct jinja_args *args, bool at_end)
{
    static const char *const params[] = {"prefix"};
    struct jinja_value v;
    struct jinja_str *part;

    jinja_bind(e, at_end ? "removesuffix" : "removeprefix", args, params, 1, 1, &v);
    part = jinja_need_str(e, "argument", v);
    if (!part->bytes || !begins_with(e, s, part, 0, s->bytes, at_end)) return jinja_string(s);
    return jinja_string(at_end ? jinja_str_slice(&e->run, s, 0, s->bytes - part->bytes) : jinja_str_slice(&e->run, s, part->bytes, s->bytes));
}

struct jinja_value jinja_str_method_call(struct jinja_eval *e, struct jinja_str *s, uint32_t id, struct jinja_args *args)
{
    jinja_str_text(&e->run, s);
    switch (id) {
    case STR_SPLIT: case STR_RSPLIT: return split(e, s, args, id == STR_RSPLIT);
    case STR_SPLITLINES: return splitlines(e, s, args);
    case STR_PARTITION: case STR_RPARTITION: return partition(e, s, args, id == STR_RPARTITION);
    case STR_STARTSWITH: case STR_ENDSWITH: return affix(e, s, args, id == STR_ENDSWITH);
    case STR_FIND: case STR_RFIND: case STR_INDEX: case STR_RINDEX: return find(e, s, args, id);
    case STR_COUNT: return count_of(e, s, args);
    case STR_CENTER: case STR_LJUST: case STR_RJUST: return pad(e, s, args, id);
    case STR_ZFILL: return zfill(e, s, args);
    case STR_JOIN: return join(e, s, args);
    case STR_REPLACE: return replace(e, s, args);
    case STR_STRIP: return strip(e, s, args, true, true);
    case STR_LSTRIP: return strip(e, s, args, true, false);
    case STR_RSTRIP: return strip(e, s, args, false, true);
    case STR_REMOVEPREFIX: case STR_REMOVESUFFIX: return remove_affix(e, s, args, id == STR_REMOVESUFFIX);
    case STR_FORMAT: return jinja_string(jinja_brace_format(e, s, args));
    default: break;
    }
    jinja_bind(e, "method", args, NULL, 0, 0, NULL);
    switch (id) {
    case STR_UPPER: return jinja_string(jinja_str_upper(&e->run, s));
    case STR_LOWER: case STR_CASEFOLD: return jinja_string(jinja_str_lower(&e->run, s));
    case STR_TITLE: return jinja_string(jinja_str_title(&e->run, s));
    case STR_CAPITALIZE: return jinja_string(jinja_str_capitalize(&e->run, s));
    case STR_SWAPCASE: return jinja_string(jinja_str_swapcase(&e->run, s));
    default: return jinja_bool(is_class(e, s, id));
    }
}
