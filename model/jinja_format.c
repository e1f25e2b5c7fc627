/* model/jinja_format.c - "..." % values and "...".format(...) (model/jinja_eval.h).
 *
 * The text of the format keeps its trust, each value its own.
 *
 * Owns     nothing
 * Fails    by the run: too few or too many values, an unknown conversion. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "model/jinja_eval.h"
#include "model/jinja_lex.h"
#include "model/jinja_unicode.h"
#include "shm/error.h"

enum { WIDTH_MAX = 10000, PRECISION_MAX = 300, NUMBER_BYTES = 768 };

/* How one value is to be laid out; both forms of formatting end here. */
struct layout {
    struct jinja_str *fill;       /* one character; NULL: blank */
    int64_t width, precision;     /* precision < 0: none */
    char align, sign, type;       /* align: '<' '>' '^' '=' or 0; sign '+', ' ' or 0 */
    bool alternate, group;
};

static void put_padded(struct jinja_eval *e, struct jinja_buf *b, struct jinja_str *body, const struct layout *l, char align, uint32_t head)
{
    const int64_t pad = l->width - (int64_t)jinja_str_chars(&e->run, body);
    const int64_t left = pad <= 0 ? 0 : align == '<' ? 0 : align == '^' ? pad / 2 : pad;
    struct jinja_str *fill = l->fill ? l->fill : jinja_str_constant(&e->run, " ", true);

    if (align == '=') jinja_buf_put_slice(&e->run, b, body, 0, head);
    jinja_buf_put_str(&e->run, b, jinja_str_repeat(&e->run, fill, left));
    jinja_buf_put_slice(&e->run, b, body, align == '=' ? head : 0, body->bytes);
    if (pad > left) jinja_buf_put_str(&e->run, b, jinja_str_repeat(&e->run, fill, pad - left));
}

static void put_text(struct jinja_eval *e, struct jinja_buf *b, struct jinja_str *s, const struct layout *l, char align)
{
    if (l->precision >= 0 && l->precision < (int64_t)jinja_str_chars(&e->run, s))
        s = jinja_str_slice(&e->run, s, 0, jinja_str_offset(&e->run, s, (uint32_t)l->precision));
    put_padded(e, b, s, l, l->align ? l->align : align, 0);
}

/* Commas between thousands of the integer part, in place. */
static void group_digits(char *text, size_t room)
{
    char *first = text + strspn(text, "+- "), *end = first + strspn(first, "0123456789");
    size_t count = (size_t)(end - first), commas = count ? (count - 1) / 3 : 0, total = strlen(text);

    if (total + commas >= room) return;
    memmove(end + commas, end, strlen(end) + 1);
    for (char *from = end, *to = end + commas; commas; ) {
        for (int i = 0; i < 3; i++) *--to = *--from;
        *--to = ',';
        commas--;
    }
}

static size_t number_text(struct jinja_eval *e, char text[NUMBER_BYTES], struct jinja_value v, const struct layout *l)
{
    char spec[16];
    const char kind = l->type;

    if (kind && strchr("eEfFgG", kind)) {
        double d = jinja_real_of(v);
        snprintf(spec, sizeof spec, "%%%s.*%c", l->alternate ? "#" : "", kind);
        snprintf(text, NUMBER_BYTES, spec, (int)(l->precision < 0 ? 6 : l->precision), d);
    } else if (kind == 'x' || kind == 'X' || kind == 'o' || kind == 'b') {
        const int64_t i = jinja_need_int(e, v);
        uint64_t u = i < 0 ? 0 - (uint64_t)i : (uint64_t)i;
        char *p = text + NUMBER_BYTES - 1, digits[] = "0123456789abcdef";
        const unsigned base = kind == 'o' ? 8 : kind == 'b' ? 2 : 16;
        *p = 0;
        do *--p = digits[u % base]; while ((u /= base) != 0);
        if (l->alternate) { *--p = (char)(kind | 32); *--p = '0'; }
        if (i < 0) *--p = '-';
        memmove(text, p, strlen(p) + 1);
        if (kind == 'X') for (p = text; *p; p++) if (*p >= 'a' && *p <= 'z') *p = (char)(*p - 32);
    } else if (v.type == JINJA_FLOAT && kind == 0) {
        if (l->precision >= 0) snprintf(text, NUMBER_BYTES, "%.*g", (int)l->precision, v.u.real);
        else jinja_float_text(text, v.u.real);
    } else {
        int64_t i;
        if (v.type == JINJA_FLOAT && !(fabs(v.u.real) < 9223372036854775808.0)) jinja_fail(&e->run, E_RANGE, "a number does not fit in 64 bits");
        i = v.type == JINJA_FLOAT ? (int64_t)v.u.real : jinja_integer_of(v);
        snprintf(text, NUMBER_BYTES, "%lld", (long long)i);
    }
    if (l->sign && text[0] != '-') {
        memmove(text + 1, text, strlen(text) + 1);
        text[0] = l->sign;
    }
    if (l->group) group_digits(text, NUMBER_BYTES);
    return strlen(text);
}

static void put_number(struct jinja_eval *e, struct jinja_buf *b, struct jinja_value v, const struct layout *l)
{
    char text[NUMBER_BYTES];
    struct layout percent = *l;
    size_t n;

    if (l->type == '%') {
        percent.type = 'f';
        v = jinja_binary(e, '*', v, jinja_float(100));
    }
    n = number_text(e, text, v, &percent);
    if (l->type == '%' && n + 1 < sizeof text) text[n++] = '%';
    put_padded(e, b, jinja_str_copy(&e->run, text, n, !v.untrusted), l, l->align ? l->align : '>', n && strchr("+- ", text[0]) ? 1 : 0);
}

static int64_t digits(const char *text, uint32_t bytes, uint32_t *at)
{
    int64_t n = 0;

    for (; *at < bytes && text[*at] >= '0' && text[*at] <= '9'; ++*at) if (n <= WIDTH_MAX) n = n * 10 + (text[*at] - '0');
    return n;
}

static void check_layout(struct jinja_eval *e, const struct layout *l)
{
    if (l->width > WIDTH_MAX || l->precision > PRECISION_MAX) jinja_fail(&e->run, E_LIMIT, "a format's width or precision is too large");
}

/* ------------------------------------------------------------------ % */

struct percent {
    struct jinja_eval *e;
    struct jinja_str *format;
    const char *text;
    uint32_t at, used, count;
    const struct jinja_value *values;
    const struct jinja_dict *named;
    bool by_name;
};

static struct jinja_value percent_next(struct percent *p, struct jinja_str *name)
{
    struct jinja_value *v;

    if (name) {
        p->by_name = true;
        if (!p->named) jinja_fail(&p->e->run, E_FORMAT, "format requires a mapping");
        v = jinja_dict_get_str(&p->e->run, p->named, name);
        if (!v) jinja_fail(&p->e->run, E_FORMAT, "'%.*s'", (int)name->bytes, jinja_str_text(&p->e->run, name));
        return *v;
    }
    if (p->used >= p->count) jinja_fail(&p->e->run, E_FORMAT, "not enough arguments for format string");
    return p->values[p->used++];
}

static void percent_put(struct percent *p, struct jinja_buf *b, struct jinja_value v, struct layout *l)
{
    struct jinja_eval *e = p->e;

    switch (l->type) {
    case 's': put_text(e, b, jinja_str_of(&e->run, v), l, '>'); break;
    case 'r': case 'a': put_text(e, b, jinja_repr(&e->run, v), l, '>'); break;
    case 'c':
        if (jinja_is_integer(v)) {
            struct jinja_buf one = {0};
            const int64_t code = jinja_integer_of(v);
            if (code < 0 || code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) jinja_fail(&e->run, E_FORMAT, "%%c arg not in range(0x110000)");
            jinja_buf_put_code(&e->run, &one, (uint32_t)code, !v.untrusted);
            put_text(e, b, jinja_buf_finish(&e->run, &one), l, '>');
        } else put_text(e, b, jinja_need_str(e, "%c", v), l, '>');
        break;
    default:
        if (!jinja_is_number(v)) jinja_fail(&e->run, E_FORMAT, "%%%c format: a real number is required, not %s", l->type, jinja_type_name(v));
        if (l->type == 'i' || l->type == 'u') l->type = 'd';
        put_number(e, b, v, l);
    }
}

static void percent_one(struct percent *p, struct jinja_buf *b)
{
    const uint32_t bytes = p->format->bytes;
    struct layout l = {.precision = -1};
    struct jinja_str *name = NULL;
    bool zero = false;

    if (p->at < bytes && p->text[p->at] == '(') {
        const char *close = memchr(p->text + p->at, ')', bytes - p->at);
        if (!close) jinja_fail(&p->e->run, E_FORMAT, "incomplete format key");
        name = jinja_str_slice(&p->e->run, p->format, p->at + 1, (uint32_t)(close - p->text));
        p->at = (uint32_t)(close - p->text) + 1;
    }
    for (; p->at < bytes && p->text[p->at] && strchr("-+ #0", p->text[p->at]); p->at++) {
        const char c = p->text[p->at];
        if (c == '-') l.align = '<';
        else if (c == '#') l.alternate = true;
        else if (c == '0') zero = true;
        else if (l.sign != '+') l.sign = c;
    }
    l.width = digits(p->text, bytes, &p->at);
    if (p->at < bytes && p->text[p->at] == '.') { p->at++; l.precision = digits(p->text, bytes, &p->at); }
    check_layout(p->e, &l);
    if (p->at == bytes) jinja_fail(&p->e->run, E_FORMAT, "incomplete format");
    l.type = p->text[p->at++];
    if (l.type == '%') { jinja_buf_put_slice(&p->e->run, b, p->format, p->at - 1, p->at); return; }
    if (!l.type || !strchr("srcdiueEfFgGxXo", l.type))
        jinja_fail(&p->e->run, E_FORMAT, "unsupported format character '%c' at index %u", l.type, p->at - 1);
    if (zero && l.align != '<' && !strchr("src", l.type)) { l.align = '='; l.fill = jinja_str_constant(&p->e->run, "0", true); }
    percent_put(p, b, percent_next(p, name), &l);
}

struct jinja_str *jinja_percent_format(struct jinja_eval *e, struct jinja_str *format, const struct jinja_value *values, uint32_t count,
                                       const struct jinja_dict *named)
{
    struct percent p = {.e = e, .format = format, .text = jinja_str_text(&e->run, format), .count = count, .values = values, .named = named};
    struct jinja_buf b = {0};

    while (p.at < format->bytes) {
        const char *sign = memchr(p.text + p.at, '%', format->bytes - p.at);
        const uint32_t end = sign ? (uint32_t)(sign - p.text) : format->bytes;
        jinja_step(&e->run, 1);
        jinja_buf_put_slice(&e->run, &b, format, p.at, end);
        p.at = end + 1;
        if (!sign) break;
        percent_one(&p, &b);
    }
    if (p.used < count && !named && !p.by_name) jinja_fail(&e->run, E_FORMAT, "not all arguments converted during string formatting");
    return jinja_buf_finish(&e->run, &b);
}

/* ------------------------------------------------------------------ format() */

struct brace {
    struct jinja_eval *e;
    struct jinja_str *format;
    const char *text;
    const struct jinja_args *args;
    int64_t next;                  /* automatic number; -1: numbers are given */
};

static struct jinja_value brace_argument(struct brace *p, uint32_t begin, uint32_t end)
{
    struct jinja_eval *e = p->e;
    uint32_t at = begin;
    int64_t number;
    struct jinja_str *name;

    if (begin == end) {
        if (p->next < 0) jinja_fail(&e->run, E_FORMAT, "cannot switch from manual field specification to automatic field numbering");
        number = p->next++;
    } else {
        number = digits(p->text, end, &at);
        if (at != end) {
            name = jinja_str_slice(&e->run, p->format, begin, end);
            for (uint32_t i = 0; i < p->args->named_count; i++)
                if (jinja_str_equal(&e->run, p->args->named[i].name, name)) return p->args->named[i].value;
            jinja_fail(&e->run, E_FORMAT, "'%.*s'", (int)name->bytes, jinja_str_text(&e->run, name));
        }
        if (p->next > 0) jinja_fail(&e->run, E_FORMAT, "cannot switch from automatic field numbering to manual field specification");
        p->next = -1;
    }
    if (number >= p->args->count) jinja_fail(&e->run, E_FORMAT, "Replacement index %lld out of range for positional args tuple", (long long)number);
    return p->args->items[number];
}

/* name.attribute[item]... */
static struct jinja_value brace_field(struct brace *p, uint32_t begin, uint32_t end)
{
    struct jinja_eval *e = p->e;
    uint32_t at = begin;
    struct jinja_value v;

    while (at < end && p->text[at] != '.' && p->text[at] != '[') at++;
    v = brace_argument(p, begin, at);
    while (at < end) {
        const bool item = p->text[at++] == '[';
        const uint32_t from = at;
        uint32_t check = from;
        struct jinja_str *name;
        while (at < end && (item ? p->text[at] != ']' : p->text[at] != '.' && p->text[at] != '[')) at++;
        if (at == from || (item && at == end)) jinja_fail(&e->run, E_FORMAT, "Empty attribute in format string");
        name = jinja_str_slice(&e->run, p->format, from, at);
        if (item) {
            const int64_t number = digits(p->text, at, &check);
            v = jinja_item(e, v, check == at ? jinja_int(number) : jinja_string(name));
            at++;
        } else v = jinja_attribute(e, v, name);
        if (v.type == JINJA_UNDEFINED && v.u.undefined->unsafe) jinja_fail_undefined(&e->run, v);
    }
    return v;
}

static struct layout brace_layout(struct brace *p, uint32_t at, uint32_t end)
{
    struct layout l = {.precision = -1};
    size_t second = at;

    if (at < end) jinja_utf8_next(p->text, &second);
    if (second < end && at < end && strchr("<>^=", p->text[second]) && p->text[second]) {
        l.fill = jinja_str_slice(&p->e->run, p->format, at, (uint32_t)second);
        l.align = p->text[second];
        at = (uint32_t)second + 1;
    } else if (at < end && p->text[at] && strchr("<>^=", p->text[at])) l.align = p->text[at++];
    if (at < end && p->text[at] && strchr("+- ", p->text[at])) { l.sign = p->text[at] == '-' ? 0 : p->text[at]; at++; }
    if (at < end && p->text[at] == '#') { l.alternate = true; at++; }
    if (at < end && p->text[at] == '0') {
        at++;
        if (!l.align) { l.align = '='; l.fill = jinja_str_constant(&p->e->run, "0", true); }
    }
    l.width = digits(p->text, end, &at);
    if (at < end && p->text[at] == ',') { l.group = true; at++; }
    if (at < end && p->text[at] == '.') { at++; l.precision = digits(p->text, end, &at); }
    check_layout(p->e, &l);
    if (at < end) l.type = p->text[at++];
    if (at != end || (l.type && !strchr("sdnxXobeEfFgG%", l.type))) jinja_fail(&p->e->run, E_FORMAT, "Invalid format specifier");
    return l;
}

static void brace_put(struct brace *p, struct jinja_buf *b, uint32_t begin, uint32_t end)
{
    struct jinja_eval *e = p->e;
    uint32_t name = begin, at;
    struct layout l;
    struct jinja_value v;
    char convert = 0;

    while (name < end && p->text[name] != '!' && p->text[name] != ':') name++;
    at = name;
    v = brace_field(p, begin, name);
    if (at < end && p->text[at] == '!') {
        convert = at + 1 < end ? p->text[at + 1] : 0;
        at += 2;
        if (convert != 's' && convert != 'r') jinja_fail(&e->run, E_FORMAT, "Unknown conversion specifier");
    }
    if (at < end && p->text[at] != ':') jinja_fail(&e->run, E_FORMAT, "expected ':' after conversion specifier");
    l = brace_layout(p, at < end ? at + 1 : end, end);
    if (convert) v = jinja_string(convert == 's' ? jinja_str_of(&e->run, v) : jinja_repr(&e->run, v));
    if (jinja_is_number(v) && !(v.type == JINJA_BOOL && !l.type) && l.type != 's') put_number(e, b, v, &l);
    else if (l.type && l.type != 's') jinja_fail(&e->run, E_FORMAT, "Unknown format code '%c' for object of type '%s'", l.type, jinja_type_name(v));
    else put_text(e, b, jinja_str_of(&e->run, v), &l, '<');
}

struct jinja_str *jinja_brace_format(struct jinja_eval *e, struct jinja_str *format, const struct jinja_args *args)
{
    struct brace p = {.e = e, .format = format, .text = jinja_str_text(&e->run, format), .args = args};
    struct jinja_buf b = {0};

    for (uint32_t at = 0; at < format->bytes;) {
        uint32_t end = at;
        while (end < format->bytes && p.text[end] != '{' && p.text[end] != '}') end++;
        jinja_step(&e->run, 1);
        jinja_buf_put_slice(&e->run, &b, format, at, end);
        at = end + 1;
        if (end == format->bytes) break;
        if (at < format->bytes && p.text[at] == p.text[end]) {   /* {{ and }} */
            jinja_buf_put_slice(&e->run, &b, format, at, at + 1);
            at++;
            continue;
        }
        if (p.text[end] == '}') jinja_fail(&e->run, E_FORMAT, "Single '}' encountered in format string");
        for (end = at; end < format->bytes && p.text[end] != '}' && p.text[end] != '{'; end++) {}
        if (end == format->bytes) jinja_fail(&e->run, E_FORMAT, "expected '}' before end of string");
        if (p.text[end] == '{') jinja_fail(&e->run, E_UNSUPPORTED, "nested fields in format() are not supported");
        brace_put(&p, &b, at, end);
        at = end + 1;
    }
    return jinja_buf_finish(&e->run, &b);
}
