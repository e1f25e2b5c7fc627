/* model/jinja_print.c - values to text as Python prints them (model/jinja_print.h).
 *
 * Owns     nothing: all memory is the run's arena
 * Fails    by the run: nested too deep, a type that JSON has no form for. */
#include "model/jinja_print.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/jinja_unicode.h"
#include "shm/error.h"

/* Scientific below 1e-4 and from 1e16 on, as Python's repr; digits found by trying lengths. */
int jinja_float_text(char out[JINJA_FLOAT_BYTES], double value)
{
    char sci[40], digits[20];
    int exponent, count, n = 0, precision = 0;

    if (isnan(value)) return snprintf(out, JINJA_FLOAT_BYTES, "nan");
    if (isinf(value)) return snprintf(out, JINJA_FLOAT_BYTES, value < 0 ? "-inf" : "inf");
    do snprintf(sci, sizeof sci, "%.*e", precision, value); while (strtod(sci, NULL) != value && ++precision < 17);
    exponent = atoi(strchr(sci, 'e') + 1);
    count = 0;
    for (const char *p = sci; *p != 'e'; p++) if (*p >= '0' && *p <= '9') digits[count++] = *p;
    while (count > 1 && digits[count - 1] == '0') count--;
    if (signbit(value)) out[n++] = '-';
    if (exponent < -4 || exponent >= 16) {
        out[n++] = digits[0];
        if (count > 1) out[n++] = '.';
        for (int i = 1; i < count; i++) out[n++] = digits[i];
        return n + snprintf(out + n, (size_t)(JINJA_FLOAT_BYTES - n), "e%c%02d", exponent < 0 ? '-' : '+', abs(exponent));
    }
    if (exponent < 0) {
        out[n++] = '0';
        out[n++] = '.';
        for (int i = -1; i > exponent; i--) out[n++] = '0';
        for (int i = 0; i < count; i++) out[n++] = digits[i];
    } else {
        for (int i = 0; i <= exponent; i++) out[n++] = i < count ? digits[i] : '0';
        out[n++] = '.';
        if (count <= exponent + 1) out[n++] = '0';
        for (int i = exponent + 1; i < count; i++) out[n++] = digits[i];
    }
    out[n] = 0;
    return n;
}

/* Single quotes unless the text has those and no double ones. */
static void repr_string(struct jinja_run *r, struct jinja_buf *b, struct jinja_str *s)
{
    const char *text = jinja_str_text(r, s);
    const bool all = s->trust == JINJA_TRUST_ALL;
    const char quote = s->bytes && memchr(text, '\'', s->bytes) && !memchr(text, '"', s->bytes) ? '"' : '\'';
    char escaped[16];
    size_t from = 0;

    jinja_step(r, s->bytes / 4);
    jinja_buf_put(r, b, &quote, 1, all);
    for (size_t at = 0; at < s->bytes;) {
        const size_t begin = at;
        const uint32_t c = jinja_utf8_next(text, &at);
        int n = 0;
        if (c == (unsigned char)quote || c == '\\') n = snprintf(escaped, sizeof escaped, "\\%c", (char)c);
        else if (c == '\n') n = snprintf(escaped, sizeof escaped, "\\n");
        else if (c == '\r') n = snprintf(escaped, sizeof escaped, "\\r");
        else if (c == '\t') n = snprintf(escaped, sizeof escaped, "\\t");
        else if (c < 32 || c == 127) n = snprintf(escaped, sizeof escaped, "\\x%02x", c);
        else if (c < 127 || jinja_code_is_printable(c)) continue;
        else n = snprintf(escaped, sizeof escaped, c < 0x100 ? "\\x%02x" : c < 0x10000 ? "\\u%04x" : "\\U%08x", c);
        jinja_buf_put_slice(r, b, s, (uint32_t)from, (uint32_t)begin);
        jinja_buf_put(r, b, escaped, (size_t)n, jinja_str_trusted_at(s, (uint32_t)begin));
        from = at;
    }
    jinja_buf_put_slice(r, b, s, (uint32_t)from, s->bytes);
    jinja_buf_put(r, b, &quote, 1, all);
}

static void repr_value(struct jinja_run *r, struct jinja_buf *b, struct jinja_value v);

static void repr_items(struct jinja_run *r, struct jinja_buf *b, struct jinja_value v, const char *open, const char *close)
{
    const struct jinja_seq s = jinja_sequence(r, v);

    jinja_buf_put_constant(r, b, open, false);
    for (uint32_t i = 0; i < s.count; i++) {
        if (i) jinja_buf_put_constant(r, b, ", ", false);
        repr_value(r, b, jinja_seq_at(&s, i));
    }
    if (v.type == JINJA_TUPLE && s.count == 1) jinja_buf_put_constant(r, b, ",", false);
    jinja_buf_put_constant(r, b, close, false);
}

static void repr_entries(struct jinja_run *r, struct jinja_buf *b, const struct jinja_entry *entries, uint32_t count)
{
    jinja_buf_put_constant(r, b, "{", false);
    for (uint32_t i = 0; i < count; i++) {
        if (i) jinja_buf_put_constant(r, b, ", ", false);
        repr_value(r, b, entries[i].key);
        jinja_buf_put_constant(r, b, ": ", false);
        repr_value(r, b, entries[i].value);
    }
    jinja_buf_put_constant(r, b, "}", false);
}

static void repr_range(struct jinja_run *r, struct jinja_buf *b, const struct jinja_range *g)
{
    char text[96];
    const int64_t stop = g->start + (int64_t)g->count * g->step;
    const int n = g->step == 1 ? snprintf(text, sizeof text, "range(%lld, %lld)", (long long)g->start, (long long)stop)
                               : snprintf(text, sizeof text, "range(%lld, %lld, %lld)", (long long)g->start, (long long)stop, (long long)g->step);
    jinja_buf_put(r, b, text, (size_t)n, false);
}

static void put_number(struct jinja_run *r, struct jinja_buf *b, struct jinja_value v)
{
    char text[JINJA_FLOAT_BYTES];
    const int n = v.type == JINJA_FLOAT ? jinja_float_text(text, v.u.real) : snprintf(text, sizeof text, "%lld", (long long)v.u.integer);

    jinja_buf_put(r, b, text, (size_t)n, !v.untrusted);
}

static void repr_container(struct jinja_run *r, struct jinja_buf *b, struct jinja_value v)
{
    jinja_enter(r);
    switch (v.type) {
    case JINJA_LIST: repr_items(r, b, v, "[", "]"); break;
    case JINJA_TUPLE: repr_items(r, b, v, "(", ")"); break;
    case JINJA_DICT: repr_entries(r, b, v.u.dict->entries, v.u.dict->count); break;
    case JINJA_KEYS: repr_items(r, b, v, "dict_keys([", "])"); break;
    case JINJA_VALUES: repr_items(r, b, v, "dict_values([", "])"); break;
    case JINJA_ITEMS: repr_items(r, b, v, "dict_items([", "])"); break;
    default:
        jinja_buf_put_constant(r, b, "<Namespace ", false);
        repr_entries(r, b, v.u.names->slots, v.u.names->count);
        jinja_buf_put_constant(r, b, ">", false);
    }
    jinja_leave(r);
}

static void repr_value(struct jinja_run *r, struct jinja_buf *b, struct jinja_value v)
{
    jinja_step(r, 1);
    switch (v.type) {
    case JINJA_UNDEFINED: jinja_buf_put_constant(r, b, "Undefined", true); break;
    case JINJA_NONE: jinja_buf_put_constant(r, b, "None", true); break;
    case JINJA_BOOL: jinja_buf_put_constant(r, b, v.u.truth ? "True" : "False", !v.untrusted); break;
    case JINJA_INT: case JINJA_FLOAT: put_number(r, b, v); break;
    case JINJA_STRING:
        if (v.u.str->markup) jinja_buf_put_constant(r, b, "Markup(", false);
        repr_string(r, b, v.u.str);
        if (v.u.str->markup) jinja_buf_put_constant(r, b, ")", false);
        break;
    case JINJA_RANGE: repr_range(r, b, v.u.range); break;
    case JINJA_LIST: case JINJA_TUPLE: case JINJA_DICT: case JINJA_KEYS: case JINJA_VALUES: case JINJA_ITEMS: case JINJA_NAMESPACE:
        repr_container(r, b, v);
        break;
    default:   /* Python would print an address: no prompt can depend on that */
        jinja_fail(r, E_FORMAT, "a '%s' object cannot be printed", jinja_type_name(v));
    }
}

void jinja_print(struct jinja_run *r, struct jinja_buf *b, struct jinja_value v)
{
    if (v.type == JINJA_STRING) jinja_buf_put_str(r, b, v.u.str);
    else if (v.type != JINJA_UNDEFINED) repr_value(r, b, v);
}

struct jinja_str *jinja_str_of(struct jinja_run *r, struct jinja_value v)
{
    struct jinja_buf b = {0};

    if (v.type == JINJA_STRING) return v.u.str;
    jinja_print(r, &b, v);
    return jinja_buf_finish(r, &b);
}

struct jinja_str *jinja_repr(struct jinja_run *r, struct jinja_value v)
{
    struct jinja_buf b = {0};

    repr_value(r, &b, v);
    return jinja_buf_finish(r, &b);
}

/* ------------------------------------------------------------------ JSON */

struct json {
    struct jinja_run *r;
    struct jinja_buf b;
    const struct jinja_json_style *style;
    uint32_t level;
};

static void json_string(struct json *j, struct jinja_str *s)
{
    static const char short_from[] = "\"\\\n\r\t\b\f", short_to[] = "\"\\nrtbf";
    const char *text = jinja_str_text(j->r, s);
    char escaped[32];
    size_t from = 0;

    jinja_step(j->r, s->bytes / 4);
    jinja_buf_put(j->r, &j->b, "\"", 1, s->trust == JINJA_TRUST_ALL);
    for (size_t at = 0; at < s->bytes;) {
        const size_t begin = at;
        const uint32_t c = jinja_utf8_next(text, &at);
        const char *brief = c && c < 128 ? strchr(short_from, (int)c) : NULL;
        int n;
        if (brief) n = snprintf(escaped, sizeof escaped, "\\%c", short_to[brief - short_from]);
        else if (c < 32 || (j->style->ensure_ascii && c > 126 && c < 0x10000)) n = snprintf(escaped, sizeof escaped, "\\u%04x", c);
        else if (j->style->ensure_ascii && c >= 0x10000)
            n = snprintf(escaped, sizeof escaped, "\\u%04x\\u%04x", 0xd800 + ((c - 0x10000) >> 10), 0xdc00 + ((c - 0x10000) & 0x3ff));
        else continue;
        jinja_buf_put_slice(j->r, &j->b, s, (uint32_t)from, (uint32_t)begin);
        jinja_buf_put(j->r, &j->b, escaped, (size_t)n, jinja_str_trusted_at(s, (uint32_t)begin));
        from = at;
    }
    jinja_buf_put_slice(j->r, &j->b, s, (uint32_t)from, s->bytes);
    jinja_buf_put(j->r, &j->b, "\"", 1, s->trust == JINJA_TRUST_ALL);
}

static void json_put(struct json *j, const char *text) { jinja_buf_put_constant(j->r, &j->b, text, false); }

static void json_newline(struct json *j)
{
    if (!j->style->indent && j->style->indent_count < 0) return;
    json_put(j, "\n");
    for (uint32_t i = 0; i < j->level; i++) {
        if (j->style->indent) jinja_buf_put_str(j->r, &j->b, j->style->indent);
        else for (int64_t k = 0; k < j->style->indent_count; k++) jinja_buf_put(j->r, &j->b, " ", 1, false);
    }
}

/* Between items: the default separator loses its space where a newline follows. */
static void json_next(struct json *j)
{
    const bool lines = j->style->indent || j->style->indent_count >= 0;

    if (j->style->item_separator) jinja_buf_put_str(j->r, &j->b, j->style->item_separator);
    else json_put(j, lines ? "," : ", ");
    json_newline(j);
}

static void json_value(struct json *j, struct jinja_value v);

static void json_key(struct json *j, struct jinja_value key)
{
    char text[JINJA_FLOAT_BYTES];

    switch (key.type) {
    case JINJA_STRING: json_string(j, key.u.str); break;
    case JINJA_NONE: json_put(j, "\"null\""); break;
    case JINJA_BOOL: json_put(j, key.u.truth ? "\"true\"" : "\"false\""); break;
    case JINJA_INT:
        snprintf(text, sizeof text, "\"%lld\"", (long long)key.u.integer);
        json_put(j, text);
        break;
    case JINJA_FLOAT:
        json_put(j, "\"");
        json_value(j, key);
        json_put(j, "\"");
        break;
    default: jinja_fail(j->r, E_FORMAT, "keys must be str, int, float, bool or None, not %s", jinja_type_name(key));
    }
}

static int entry_order(struct jinja_run *r, const struct jinja_entry *a, const struct jinja_entry *b)
{
    bool unordered;
    return jinja_compare(r, a->key, b->key, "<", &unordered);
}

/* Insertion into halves: stable, and no recursion into libc with a pointer to the run. */
static const struct jinja_entry **sorted_entries(struct jinja_run *r, const struct jinja_dict *d)
{
    const struct jinja_entry **a = jinja_alloc_array(r, d->count, sizeof *a), **b = jinja_alloc_array(r, d->count, sizeof *b);

    for (uint32_t i = 0; i < d->count; i++) a[i] = &d->entries[i];
    for (uint32_t width = 1; width < d->count; width *= 2) {
        const struct jinja_entry **swap;
        for (uint32_t at = 0; at < d->count; at += 2 * width) {
            const uint32_t middle = at + width < d->count ? at + width : d->count;
            const uint32_t end = at + 2 * width < d->count ? at + 2 * width : d->count;
            uint32_t i = at, k = middle, o = at;
            while (i < middle && k < end) b[o++] = entry_order(r, a[k], a[i]) < 0 ? a[k++] : a[i++];
            while (i < middle) b[o++] = a[i++];
            while (k < end) b[o++] = a[k++];
        }
        swap = a;
        a = b;
        b = swap;
    }
    return a;
}

static void json_dict(struct json *j, const struct jinja_dict *d)
{
    const struct jinja_entry **sorted = j->style->sort_keys ? sorted_entries(j->r, d) : NULL;

    if (!d->count) { json_put(j, "{}"); return; }
    json_put(j, "{");
    j->level++;
    for (uint32_t i = 0; i < d->count; i++) {
        const struct jinja_entry *e = sorted ? sorted[i] : &d->entries[i];
        if (i) json_next(j);
        else json_newline(j);
        json_key(j, e->key);
        if (j->style->key_separator) jinja_buf_put_str(j->r, &j->b, j->style->key_separator);
        else json_put(j, ": ");
        json_value(j, e->value);
    }
    j->level--;
    json_newline(j);
    json_put(j, "}");
}

static void json_list(struct json *j, const struct jinja_list *l)
{
    if (!l->count) { json_put(j, "[]"); return; }
    json_put(j, "[");
    j->level++;
    for (uint32_t i = 0; i < l->count; i++) {
        if (i) json_next(j);
        else json_newline(j);
        json_value(j, l->items[i]);
    }
    j->level--;
    json_newline(j);
    json_put(j, "]");
}

static void json_value(struct json *j, struct jinja_value v)
{
    jinja_step(j->r, 1);
    switch (v.type) {
    case JINJA_NONE: json_put(j, "null"); break;
    case JINJA_BOOL: json_put(j, v.u.truth ? "true" : "false"); break;
    case JINJA_INT: put_number(j->r, &j->b, v); break;
    case JINJA_FLOAT:
        if (isfinite(v.u.real)) put_number(j->r, &j->b, v);
        else json_put(j, isnan(v.u.real) ? "NaN" : v.u.real < 0 ? "-Infinity" : "Infinity");
        break;
    case JINJA_STRING: json_string(j, v.u.str); break;
    case JINJA_LIST: case JINJA_TUPLE: case JINJA_DICT:
        jinja_enter(j->r);
        if (v.type == JINJA_DICT) json_dict(j, v.u.dict);
        else json_list(j, v.u.list);
        jinja_leave(j->r);
        break;
    default: jinja_fail(j->r, E_FORMAT, "Object of type %s is not JSON serializable", jinja_type_name(v));
    }
}

struct jinja_str *jinja_json(struct jinja_run *r, struct jinja_value v, const struct jinja_json_style *style)
{
    struct json j = {.r = r, .style = style};

    json_value(&j, v);
    return jinja_buf_finish(r, &j.b);
}
