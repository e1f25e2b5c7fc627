/* model/jinja_filters.c - the table of filters, and those that make text (model/jinja_filter.h).
 *
 * Owns     nothing
 * Fails    by the run: wrong arguments, a value of the wrong type. */
#include "model/jinja_filter.h"

#include <string.h>

#include "model/jinja_lex.h"
#include "model/jinja_unicode.h"
#include "shm/error.h"

static struct jinja_str *text_of(struct jinja_eval *e, struct jinja_value v) { return jinja_str_of(&e->run, v); }
static bool given(struct jinja_value v) { return v.type != JINJA_MISSING; }

/* ------------------------------------------------------------------ text */

static struct jinja_value filter_upper(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args)
{
    (void)args;
    return jinja_string(jinja_str_upper(&e->run, text_of(e, v[0])));
}

static struct jinja_value filter_lower(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args)
{
    (void)args;
    return jinja_string(jinja_str_lower(&e->run, text_of(e, v[0])));
}

static struct jinja_value filter_capitalize(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args)
{
    (void)args;
    return jinja_string(jinja_str_capitalize(&e->run, text_of(e, v[0])));
}

static bool begins_word(uint32_t c)
{
    return c == '-' || c == '(' || c == '{' || c == '[' || c == '<' || jinja_code_is_space(c);
}

/* Words as the filter sees them: split at blanks and opening signs, unlike str.title(). */
static struct jinja_value filter_title(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args)
{
    struct jinja_str *s = text_of(e, v[0]);
    const char *text = jinja_str_text(&e->run, s);
    struct jinja_buf b = {0};
    size_t at = 0;

    (void)args;
    while (at < s->bytes) {
        size_t begin = at, next = at, end;
        while (next < s->bytes && begins_word(jinja_utf8_next(text, &next))) at = next;
        jinja_buf_put_slice(&e->run, &b, s, (uint32_t)begin, (uint32_t)at);
        if (at == s->bytes) break;
        end = next = at;
        while (next < s->bytes && !begins_word(jinja_utf8_next(text, &next))) end = next;
        next = at;
        jinja_utf8_next(text, &next);
        jinja_buf_put_str(&e->run, &b, jinja_str_upper(&e->run, jinja_str_slice(&e->run, s, (uint32_t)at, (uint32_t)next)));
        jinja_buf_put_str(&e->run, &b, jinja_str_lower(&e->run, jinja_str_slice(&e->run, s, (uint32_t)next, (uint32_t)end)));
        at = end;
    }
    return jinja_string(jinja_buf_finish(&e->run, &b));
}

static struct jinja_value filter_trim(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args)
{
    struct jinja_str *chars = !given(v[1]) || v[1].type == JINJA_NONE ? NULL : jinja_need_str(e, "trim() argument", v[1]);

    (void)args;
    return jinja_string(jinja_str_strip(&e->run, text_of(e, v[0]), chars, true, true));
}

static struct jinja_value filter_replace(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args)
{
    const int64_t count = !given(v[3]) || v[3].type == JINJA_NONE ? -1 : jinja_need_int(e, v[3]);

    (void)args;
    return jinja_string(jinja_str_replace(&e->run, text_of(e, v[0]), text_of(e, v[1]), text_of(e, v[2]), count));
}

static struct jinja_value filter_string(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args)
{
    (void)args;
    return jinja_string(text_of(e, v[0]));
}

static struct jinja_value filter_escape(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args)
{
    struct jinja_str *s = text_of(e, v[0]);

    (void)args;
    return jinja_string(s->markup ? s : jinja_str_escape(&e->run, s));
}

static struct jinja_value filter_forceescape(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args)
{
    (void)args;
    return jinja_string(jinja_str_escape(&e->run, text_of(e, v[0])));
}

static struct jinja_value filter_safe(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args)
{
    struct jinja_str *s = text_of(e, v[0]), *copy = jinja_alloc(&e->run, sizeof *copy);

    (void)args;
    jinja_str_text(&e->run, s);
    *copy = *s;
    copy->markup = 1;
    return jinja_string(copy);
}

static struct jinja_value filter_center(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args)
{
    struct jinja_value width = given(v[1]) ? v[1] : jinja_int(80);
    struct jinja_args one = {.items = &width, .count = 1};
    struct jinja_str *name = jinja_str_constant(&e->run, "center", true);

    (void)args;
    return jinja_call(e, jinja_attribute(e, jinja_string(text_of(e, v[0])), name), &one);
}

static struct jinja_value filter_indent(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args)
{
    struct jinja_str *s = jinja_need_str(e, "indent() input", v[0]), *space;
    const char *text = jinja_str_text(&e->run, s);
    const bool first = given(v[2]) && jinja_truth(&e->run, v[2]), blank = given(v[3]) && jinja_truth(&e->run, v[3]);
    struct jinja_buf b = {0};
    size_t at = 0;

    (void)args;
    if (given(v[1]) && v[1].type == JINJA_STRING) space = v[1].u.str;
    else space = jinja_str_repeat(&e->run, jinja_str_constant(&e->run, " ", true), given(v[1]) ? jinja_need_int(e, v[1]) : 4);
    for (bool begin_text = true; at < s->bytes || begin_text; begin_text = false) {
        const size_t begin = at;
        size_t end = at;
        uint32_t code = 0;
        while (at < s->bytes && !jinja_code_is_line_end(code = jinja_utf8_next(text, &at))) end = at;
        if (code == '\r' && at < s->bytes && text[at] == '\n') at++;
        if (!begin_text) jinja_buf_put(&e->run, &b, "\n", 1, true);
        if (begin_text ? first : (blank || end > begin)) jinja_buf_put_str(&e->run, &b, space);
        jinja_buf_put_slice(&e->run, &b, s, (uint32_t)begin, (uint32_t)end);
        if (at == s->bytes && !jinja_code_is_line_end(code)) break;
        if (at == s->bytes) {   /* the text ends with a line end: Python appends one more and keeps an empty last line */
            jinja_buf_put(&e->run, &b, "\n", 1, true);
            if (blank) jinja_buf_put_str(&e->run, &b, space);
        }
    }
    return jinja_string(jinja_buf_finish(&e->run, &b));
}

static struct jinja_value filter_truncate(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args)
{
    struct jinja_str *s = jinja_need_str(e, "truncate() input", v[0]);
    struct jinja_str *end = given(v[3]) ? jinja_need_str(e, "end", v[3]) : jinja_str_constant(&e->run, "...", true);
    const int64_t length = given(v[1]) ? jinja_need_int(e, v[1]) : 255;
    const int64_t leeway = given(v[4]) && v[4].type != JINJA_NONE ? jinja_need_int(e, v[4]) : 5;
    const int64_t end_chars = jinja_str_chars(&e->run, end);
    struct jinja_value cut;

    (void)args;
    if (length < end_chars) jinja_fail(&e->run, E_FORMAT, "expected length >= %lld, got %lld", (long long)end_chars, (long long)length);
    if (leeway < 0) jinja_fail(&e->run, E_FORMAT, "expected leeway >= 0, got %lld", (long long)leeway);
    if ((int64_t)jinja_str_chars(&e->run, s) - leeway <= length) return v[0];
    cut = jinja_slice(e, v[0], jinja_none(), jinja_int(length - end_chars), jinja_none());
    if (!given(v[2]) || !jinja_truth(&e->run, v[2])) {
        struct jinja_str *c = cut.u.str;
        const char *text = jinja_str_text(&e->run, c), *space = memrchr(text, ' ', c->bytes);
        if (space) cut = jinja_string(jinja_str_slice(&e->run, c, 0, (uint32_t)(space - text)));
    }
    return jinja_binary(e, '+', cut, jinja_string(end));
}

static struct jinja_value filter_wordcount(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args)
{
    struct jinja_str *s = text_of(e, v[0]);
    const char *text = jinja_str_text(&e->run, s);
    int64_t count = 0;
    bool in_word = false;

    (void)args;
    jinja_step_bytes(&e->run, s->bytes);
    for (size_t at = 0; at < s->bytes;) {
        const uint32_t c = jinja_utf8_next(text, &at);
        const bool word = c == '_' || jinja_code_is_alpha(c) || jinja_code_is_numeric(c);
        count += word && !in_word;
        in_word = word;
    }
    return jinja_int(count);
}

static void put_quoted(struct jinja_eval *e, struct jinja_buf *b, struct jinja_str *s, bool for_query)
{
    static const char hex[] = "0123456789ABCDEF";
    const char *text = jinja_str_text(&e->run, s);

    jinja_step(&e->run, s->bytes);
    for (uint32_t i = 0; i < s->bytes; i++) {
        const unsigned char c = (unsigned char)text[i];
        const char out[3] = {'%', hex[c >> 4], hex[c & 15]};
        const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || strchr("_.-~", c) || (c == '/' && !for_query);
        if (c && plain) jinja_buf_put_slice(&e->run, b, s, i, i + 1);
        else if (c == ' ' && for_query) jinja_buf_put(&e->run, b, "+", 1, false);
        else jinja_buf_put(&e->run, b, out, 3, false);
    }
}

static struct jinja_value filter_urlencode(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args)
{
    struct jinja_buf b = {0};
    struct jinja_seq s;

    (void)args;
    if (v[0].type == JINJA_STRING || !jinja_is_iterable(v[0])) {
        put_quoted(e, &b, text_of(e, v[0]), false);
        return jinja_string(jinja_buf_finish(&e->run, &b));
    }
    if (v[0].type == JINJA_DICT) v[0].type = JINJA_ITEMS;
    s = jinja_sequence(&e->run, v[0]);
    for (uint32_t i = 0; i < s.count; i++) {
        const struct jinja_seq pair = jinja_sequence(&e->run, jinja_seq_at(&s, i));
        if (pair.count != 2) jinja_fail(&e->run, E_FORMAT, "urlencode: pairs expected");
        if (i) jinja_buf_put(&e->run, &b, "&", 1, false);
        put_quoted(e, &b, text_of(e, jinja_seq_at(&pair, 0)), true);
        jinja_buf_put(&e->run, &b, "=", 1, false);
        put_quoted(e, &b, text_of(e, jinja_seq_at(&pair, 1)), true);
    }
    return jinja_string(jinja_buf_finish(&e->run, &b));
}

static struct jinja_value filter_format(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args)
{
    struct jinja_str *format = text_of(e, v[0]);
    struct jinja_dict *d = NULL;

    if (args->count && args->named_count) jinja_fail(&e->run, E_FORMAT, "can't handle positional and keyword arguments at the same time");
    if (args->named_count) {
        d = jinja_dict_new(&e->run, args->named_count);
        for (uint32_t i = 0; i < args->named_count; i++) jinja_dict_put(&e->run, d, jinja_string(args->named[i].name), args->named[i].value);
    }
    return jinja_string(jinja_percent_format(e, format, args->items, args->count, d));
}

/* As transformers replaces it: json.dumps, nothing escaped for HTML, and its keyword options. */
static struct jinja_value filter_tojson(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args)
{
    struct jinja_json_style style = {.indent_count = -1};

    (void)args;
    style.ensure_ascii = given(v[1]) && jinja_truth(&e->run, v[1]);
    if (given(v[2]) && v[2].type == JINJA_STRING) style.indent = v[2].u.str;
    else if (given(v[2]) && v[2].type != JINJA_NONE) {
        style.indent_count = jinja_need_int(e, v[2]);
        if (style.indent_count < 0) style.indent_count = 0;
        if (style.indent_count > 1000) jinja_fail(&e->run, E_LIMIT, "tojson: indent is larger than 1000");
    }
    if (given(v[3]) && v[3].type != JINJA_NONE) {
        const struct jinja_seq two = jinja_sequence(&e->run, v[3]);
        if (two.count != 2) jinja_fail(&e->run, E_FORMAT, "tojson: separators must be a pair");
        style.item_separator = jinja_need_str(e, "separator", jinja_seq_at(&two, 0));
        style.key_separator = jinja_need_str(e, "separator", jinja_seq_at(&two, 1));
    }
    style.sort_keys = given(v[4]) && jinja_truth(&e->run, v[4]);
    return jinja_string(jinja_json(&e->run, v[0], &style));
}

/* ------------------------------------------------------------------ any value */

static struct jinja_value filter_default(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args)
{
    const bool boolean = given(v[2]) && jinja_truth(&e->run, v[2]);

    (void)args;
    if (v[0].type != JINJA_UNDEFINED && !(boolean && !jinja_truth(&e->run, v[0]))) return v[0];
    return given(v[1]) ? v[1] : jinja_string(jinja_str_constant(&e->run, "", true));
}

static struct jinja_value filter_attr(struct jinja_eval *e, struct jinja_value *v, struct jinja_args *args)
{
    (void)args;
    return jinja_own_attribute(e, v[0], jinja_need_str(e, "attr() argument", v[1]));
}

/* ------------------------------------------------------------------ the table */

static const struct jinja_filter_entry filters[] = {
    {"abs", jinja_filter_abs, {0}, 0, false},
    {"attr", filter_attr, {"name"}, 1, false},
    {"batch", jinja_filter_batch, {"linecount", "fill_with"}, 1, false},
    {"capitalize", filter_capitalize, {0}, 0, false},
    {"center", filter_center, {"width"}, 0, false},
    {"count", jinja_filter_length, {0}, 0, false},
    {"d", filter_default, {"default_value", "boolean"}, 0, false},
    {"default", filter_default, {"default_value", "boolean"}, 0, false},
    {"dictsort", jinja_filter_dictsort, {"case_sensitive", "by", "reverse"}, 0, false},
    {"e", filter_escape, {0}, 0, false},
    {"escape", filter_escape, {0}, 0, false},
    {"first", jinja_filter_first, {0}, 0, false},
    {"float", jinja_filter_float, {"default"}, 0, false},
    {"forceescape", filter_forceescape, {0}, 0, false},
    {"format", filter_format, {0}, 0, true},
    {"groupby", jinja_filter_groupby, {"attribute", "default", "case_sensitive"}, 1, false},
    {"indent", filter_indent, {"width", "first", "blank"}, 0, false},
    {"int", jinja_filter_int, {"default", "base"}, 0, false},
    {"items", jinja_filter_items, {0}, 0, false},
    {"join", jinja_filter_join, {"d", "attribute"}, 0, false},
    {"last", jinja_filter_last, {0}, 0, false},
    {"length", jinja_filter_length, {0}, 0, false},
    {"list", jinja_filter_list, {0}, 0, false},
    {"lower", filter_lower, {0}, 0, false},
    {"map", jinja_filter_map, {0}, 0, true},
    {"max", jinja_filter_max, {"case_sensitive", "attribute"}, 0, false},
    {"min", jinja_filter_min, {"case_sensitive", "attribute"}, 0, false},
    {"reject", jinja_filter_reject, {0}, 0, true},
    {"rejectattr", jinja_filter_rejectattr, {0}, 0, true},
    {"replace", filter_replace, {"old", "new", "count"}, 2, false},
    {"reverse", jinja_filter_reverse, {0}, 0, false},
    {"round", jinja_filter_round, {"precision", "method"}, 0, false},
    {"safe", filter_safe, {0}, 0, false},
    {"select", jinja_filter_select, {0}, 0, true},
    {"selectattr", jinja_filter_selectattr, {0}, 0, true},
    {"slice", jinja_filter_slice, {"slices", "fill_with"}, 1, false},
    {"sort", jinja_filter_sort, {"reverse", "case_sensitive", "attribute"}, 0, false},
    {"string", filter_string, {0}, 0, false},
    {"sum", jinja_filter_sum, {"attribute", "start"}, 0, false},
    {"title", filter_title, {0}, 0, false},
    {"tojson", filter_tojson, {"ensure_ascii", "indent", "separators", "sort_keys"}, 0, false},
    {"trim", filter_trim, {"chars"}, 0, false},
    {"truncate", filter_truncate, {"length", "killwords", "end", "leeway"}, 0, false},
    {"unique", jinja_filter_unique, {"case_sensitive", "attribute"}, 0, false},
    {"upper", filter_upper, {0}, 0, false},
    {"urlencode", filter_urlencode, {0}, 0, false},
    {"wordcount", filter_wordcount, {0}, 0, false},
};

uint16_t jinja_filter_find(const char *name, size_t bytes)
{
    for (uint16_t i = 0; i < sizeof filters / sizeof *filters; i++)
        if (strlen(filters[i].name) == bytes && memcmp(filters[i].name, name, bytes) == 0) return i;
    return UINT16_MAX;
}

struct jinja_value jinja_filter(struct jinja_eval *e, uint16_t number, struct jinja_value input, struct jinja_args *args)
{
    const struct jinja_filter_entry *f = &filters[number];
    struct jinja_value v[1 + FILTER_PARAMS_MAX] = {input}, out;
    uint32_t count = 0;

    while (count < FILTER_PARAMS_MAX && f->params[count]) count++;
    if (!f->raw) jinja_bind(e, f->name, args, f->params, count, f->required, v + 1);
    jinja_enter(&e->run);
    out = f->run(e, v, args);
    jinja_leave(&e->run);
    return out;
}
