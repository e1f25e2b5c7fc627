/* model/jinja_lex.c - template source to tokens (model/jinja_lex.h).
 *
 * Reads    the source, copied with its newlines normalised
 * Owns     nothing: tokens and texts are in the run's arena
 * Fails    by the run, with the line. */
#include "model/jinja_lex.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "model/jinja_unicode.h"
#include "shm/error.h"

enum { BRACKETS_MAX = 256, NUMBER_BYTES = 64 };

struct lexer {
    struct jinja_run *r;
    const char *text;
    size_t bytes, at;
    uint32_t line;
    bool line_starting;            /* what was consumed last ended a line */
    struct jinja_token *tokens;
    uint32_t count, room;
    char brackets[BRACKETS_MAX];   /* the closing ones that are due */
    uint32_t bracket_count;
};

__attribute__((noreturn))
static void fail(struct lexer *x, const char *what)
{
    x->r->line = x->line;
    jinja_fail(x->r, E_FORMAT, "%s", what);
}

/* Newlines of every kind become \n; one at the very end is dropped. */
static void load(struct lexer *x, const char *source, size_t bytes)
{
    char *copy = jinja_alloc(x->r, bytes);
    size_t n = 0;
    unsigned bad;

    x->line = 1;
    for (size_t i = 0; i < bytes;) {
        const unsigned step = jinja_utf8_check(source + i, bytes - i, &bad);
        if (!step) fail(x, "the template is not valid UTF-8");
        if (source[i] == '\r') {
            copy[n++] = '\n';
            i += i + 1 < bytes && source[i + 1] == '\n' ? 2 : 1;
        } else {
            for (unsigned k = 0; k < step; k++) copy[n++] = source[i++];
        }
        if (copy[n - 1] == '\n') x->line++;
    }
    if (n && copy[n - 1] == '\n') n--;
    x->text = copy;
    x->bytes = n;
    x->line = 1;
}

static struct jinja_token *add(struct lexer *x, enum jinja_token_type type)
{
    if (x->count == x->room) {
        const uint32_t room = x->room ? 2 * x->room : 256;
        x->tokens = jinja_grow(x->r, x->tokens, x->count * sizeof *x->tokens, room * sizeof *x->tokens);
        x->room = room;
    }
    x->tokens[x->count] = (struct jinja_token){.type = type, .line = x->line};
    return &x->tokens[x->count++];
}

static void add_text(struct lexer *x, enum jinja_token_type type, size_t begin, size_t end)
{
    struct jinja_str *s = jinja_str_wrap(x->r, x->text + begin, end - begin, true);

    jinja_str_seal(x->r, s);
    add(x, type)->value = jinja_string(s);
}

static bool looking_at(const struct lexer *x, size_t at, const char *what)
{
    const size_t n = strlen(what);

    return n <= x->bytes - at && memcmp(x->text + at, what, n) == 0;
}

static size_t skip_space(const struct lexer *x, size_t at)
{
    while (at < x->bytes) {
        size_t next = at;
        if (!jinja_code_is_space(jinja_utf8_next(x->text, &next))) break;
        at = next;
    }
    return at;
}

/* Moves to `end`, counting lines. */
static void advance(struct lexer *x, size_t end)
{
    for (; x->at < end; x->at++) if (x->text[x->at] == '\n') x->line++;
    x->line_starting = end > 0 && x->text[end - 1] == '\n';
}

/* Matches the end of a tag at `at`: the position behind it, or 0. trim: a newline after it goes too. */
static size_t tag_end(const struct lexer *x, size_t at, const char *close, bool trim)
{
    if (at < x->bytes && x->text[at] == '-' && looking_at(x, at + 1, close)) return skip_space(x, at + 3);
    if (trim && at < x->bytes && x->text[at] == '+' && looking_at(x, at + 1, close)) return at + 3;
    if (!looking_at(x, at, close)) return 0;
    return at + 2 + (trim && at + 2 < x->bytes && x->text[at + 2] == '\n');
}

/* The data before a tag at `tag`, as '-', '+' or nothing asks; begin_line: data starts at a line start. */
static void add_data(struct lexer *x, size_t begin, size_t tag, char sign, bool is_variable)
{
    size_t end = tag;

    if (sign == '-') {
        while (end > begin) {
            size_t back = jinja_utf8_back(x->text, end), at = back;
            if (!jinja_code_is_space(jinja_utf8_next(x->text, &at))) break;
            end = back;
        }
    } else if (sign != '+' && !is_variable) {
        size_t line = tag;
        while (line > begin && x->text[line - 1] != '\n') line--;
        if ((line > begin || x->line_starting) && skip_space(x, line) >= tag) end = line;
    }
    if (end > begin) add_text(x, TOKEN_DATA, begin, end);
    advance(x, tag);
}

/* {%- raw -%}: the position behind it, or 0. */
static size_t raw_begin(const struct lexer *x, size_t at)
{
    if (at < x->bytes && (x->text[at] == '-' || x->text[at] == '+')) at++;
    at = skip_space(x, at);
    if (!looking_at(x, at, "raw")) return 0;
    at = skip_space(x, at + 3);
    return tag_end(x, at, "%}", false);
}

static void lex_raw(struct lexer *x)
{
    const size_t begin = x->at;

    for (size_t at = begin; at + 1 < x->bytes; at++) {
        size_t in = at + 2, end;
        char sign = 0;
        if (x->text[at] != '{' || x->text[at + 1] != '%') continue;
        if (in < x->bytes && (x->text[in] == '-' || x->text[in] == '+')) sign = x->text[in++];
        in = skip_space(x, in);
        if (!looking_at(x, in, "endraw")) continue;
        end = tag_end(x, skip_space(x, in + 6), "%}", true);
        if (!end) continue;
        add_data(x, begin, at, sign, false);
        advance(x, end);
        return;
    }
    fail(x, "Missing end of raw directive");
}

static void lex_comment(struct lexer *x)
{
    for (size_t at = x->at; at < x->bytes; at++) {
        const size_t end = tag_end(x, at, "#}", true);
        if (!end) continue;
        advance(x, end);
        return;
    }
    fail(x, "Missing end of comment tag");
}

/* ------------------------------------------------------------------ inside tags */

static size_t digits(const struct lexer *x, size_t at, const char *set)
{
    size_t end = at;

    for (;;) {
        size_t next = end > at && end < x->bytes && x->text[end] == '_' ? end + 1 : end;
        if (next >= x->bytes || !strchr(set, x->text[next]) || !x->text[next]) return end;
        end = next + 1;
    }
}

static size_t float_end(const struct lexer *x)
{
    static const char decimal[] = "0123456789";
    size_t end = digits(x, x->at, decimal), fraction = end, exponent;

    if (x->at && x->text[x->at - 1] == '.') return 0;
    if (end == x->at) return 0;
    if (end + 1 < x->bytes && x->text[end] == '.' && digits(x, end + 1, decimal) > end + 1) fraction = digits(x, end + 1, decimal);
    if (fraction < x->bytes && (x->text[fraction] | 32) == 'e') {
        exponent = fraction + 1;
        if (exponent < x->bytes && (x->text[exponent] == '+' || x->text[exponent] == '-')) exponent++;
        if (digits(x, exponent, decimal) > exponent) return digits(x, exponent, decimal);
    }
    return fraction > end ? fraction : 0;
}

static size_t number_copy(struct lexer *x, size_t end, char out[NUMBER_BYTES])
{
    size_t n = 0;

    for (size_t i = x->at; i < end; i++) {
        if (x->text[i] == '_') continue;
        if (n == NUMBER_BYTES - 1) fail(x, "a number has too many digits");
        out[n++] = x->text[i];
    }
    out[n] = 0;
    return n;
}

static bool lex_number(struct lexer *x)
{
    char copy[NUMBER_BYTES];
    size_t end = float_end(x);
    const char *set = "0123456789";
    int base = 10, skip = 0;
    char *rest;

    if (end) {
        number_copy(x, end, copy);
        add(x, TOKEN_FLOAT)->value = jinja_float(strtod(copy, NULL));
        advance(x, end);
        return true;
    }
    if (x->text[x->at] < '0' || x->text[x->at] > '9') return false;
    if (x->text[x->at] == '0' && x->at + 2 < x->bytes) {
        const char kind = (char)(x->text[x->at + 1] | 32);
        const char *other = kind == 'x' ? "0123456789abcdefABCDEF" : kind == 'o' ? "01234567" : kind == 'b' ? "01" : NULL;
        if (other && digits(x, x->at + 2, other) > x->at + 2) {
            set = other;
            base = kind == 'x' ? 16 : kind == 'o' ? 8 : 2;
            skip = 2;
        }
    }
    if (base == 10 && x->text[x->at] == '0') set = "0";
    end = digits(x, x->at + (size_t)skip, set);
    number_copy(x, end, copy);
    errno = 0;
    add(x, TOKEN_INTEGER)->value = jinja_int(strtoll(copy + skip, &rest, base));
    if (errno == ERANGE) fail(x, "an integer does not fit in 64 bits");
    advance(x, end);
    return true;
}

static uint32_t hex_escape(struct lexer *x, const char *p, const char *end, unsigned count)
{
    uint32_t code = 0;

    for (unsigned i = 0; i < count; i++) {
        const char c = p + i < end ? p[i] : 0;
        const int digit = c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
        if (digit < 0) fail(x, "truncated \\x, \\u or \\U escape in a string");
        code = code << 4 | (uint32_t)digit;
    }
    if (code > 0x10ffff || (code >= 0xd800 && code < 0xe000)) fail(x, "a string escape names no character");
    return code;
}

/* Decodes one escape at p (behind the backslash); returns the position behind it. */
static const char *put_escape(struct lexer *x, struct jinja_buf *b, const char *p, const char *end)
{
    static const char from[] = "\\'\"abfnrtv", to[] = "\\'\"\a\b\f\n\r\t\v";
    const char *simple = *p ? strchr(from, *p) : NULL;
    const unsigned hex = *p == 'x' ? 2 : *p == 'u' ? 4 : *p == 'U' ? 8 : 0;

    if (*p == '\n') return p + 1;
    if (simple) {
        jinja_buf_put(x->r, b, &to[simple - from], 1, true);
        return p + 1;
    }
    if (hex) {
        jinja_buf_put_code(x->r, b, hex_escape(x, p + 1, end, hex), true);
        return p + 1 + hex;
    }
    if (*p >= '0' && *p <= '7') {
        uint32_t code = 0;
        for (int i = 0; i < 3 && p < end && *p >= '0' && *p <= '7'; i++) code = code * 8 + (uint32_t)(*p++ - '0');
        jinja_buf_put_code(x->r, b, code, true);
        return p;
    }
    if (*p == 'N') fail(x, "\\N{...} escapes are not supported in strings");
    jinja_buf_put(x->r, b, "\\", 1, true);   /* unknown: the backslash stays */
    return p;
}

static bool lex_string(struct lexer *x)
{
    const char quote = x->text[x->at];
    size_t end = x->at + 1;
    bool escapes = false;
    struct jinja_buf b = {0};
    struct jinja_str *s;

    if (quote != '"' && quote != '\'') return false;
    while (end < x->bytes && x->text[end] != quote) {
        if (x->text[end] == '\\') {
            escapes = true;
            end++;
        }
        end++;
    }
    if (end >= x->bytes) fail(x, "a string does not end");
    if (!escapes) {
        add_text(x, TOKEN_STRING, x->at + 1, end);
        advance(x, end + 1);
        return true;
    }
    for (const char *p = x->text + x->at + 1, *stop = x->text + end; p < stop;) {
        const char *back = memchr(p, '\\', (size_t)(stop - p));
        jinja_buf_put(x->r, &b, p, (size_t)((back ? back : stop) - p), true);
        p = back ? put_escape(x, &b, back + 1, stop) : stop;
    }
    s = jinja_buf_finish(x->r, &b);
    jinja_str_seal(x->r, s);
    add(x, TOKEN_STRING)->value = jinja_string(s);
    advance(x, end + 1);
    return true;
}

static bool is_name_byte(char c, bool first)
{
    return c == '_' || ((c | 32) >= 'a' && (c | 32) <= 'z') || (unsigned char)c >= 0x80 || (!first && c >= '0' && c <= '9');
}

static bool lex_name(struct lexer *x)
{
    size_t end = x->at;

    if (!is_name_byte(x->text[end], true)) return false;
    while (end < x->bytes && is_name_byte(x->text[end], false)) end++;
    add_text(x, TOKEN_NAME, x->at, end);
    advance(x, end);
    return true;
}

static void balance(struct lexer *x, char c)
{
    char what[64] = "unexpected ' '";

    if (c == '{' || c == '(' || c == '[') {
        if (x->bracket_count == BRACKETS_MAX) {
            x->r->line = x->line;
            jinja_fail(x->r, E_LIMIT, "brackets nest deeper than %d", BRACKETS_MAX);
        }
        x->brackets[x->bracket_count++] = c == '{' ? '}' : c == '(' ? ')' : ']';
    } else if (c == '}' || c == ')' || c == ']') {
        what[12] = c;
        if (!x->bracket_count) fail(x, what);
        if (x->brackets[--x->bracket_count] != c) {
            strcat(what, ", expected ' '");
            what[26] = x->brackets[x->bracket_count];
            fail(x, what);
        }
    }
}

static void lex_operator(struct lexer *x)
{
    static const uint16_t twos[] = {OP_POW, OP_FLOORDIV, OP_EQ, OP_NE, OP_GE, OP_LE};
    const char c = x->text[x->at], next = x->at + 1 < x->bytes ? x->text[x->at + 1] : 0;
    uint16_t op = 0;

    for (size_t i = 0; i < sizeof twos / sizeof *twos; i++) if (twos[i] == JINJA_OP2(c, next)) op = twos[i];
    if (!op) {
        if (!c || !strchr("+-/*%~[](){}><=.:|,;", c)) {
            x->r->line = x->line;
            jinja_fail(x->r, E_FORMAT, "unexpected char '%c' at %zu", c, x->at);
        }
        balance(x, c);
        op = (uint16_t)c;
    }
    add(x, TOKEN_OPERATOR)->op = op;
    advance(x, x->at + (op > 255 ? 2 : 1));
}

static void lex_tag(struct lexer *x, bool is_block)
{
    x->bracket_count = 0;
    for (;;) {
        const size_t end = x->bracket_count ? 0 : tag_end(x, x->at, is_block ? "%}" : "}}", is_block);
        size_t space;
        if (end) {
            add(x, is_block ? TOKEN_BLOCK_END : TOKEN_VARIABLE_END);
            advance(x, end);
            return;
        }
        if (x->at >= x->bytes) fail(x, "a tag does not end");
        if ((space = skip_space(x, x->at)) > x->at) advance(x, space);
        else if (!lex_number(x) && !lex_string(x) && !lex_name(x)) lex_operator(x);
    }
}

/* One piece of data and the tag behind it. */
static bool lex_root(struct lexer *x)
{
    size_t tag = x->at, end;
    char kind, sign = 0;

    while (tag + 1 < x->bytes && !(x->text[tag] == '{' && strchr("{%#", x->text[tag + 1]) && x->text[tag + 1])) tag++;
    if (tag + 1 >= x->bytes) {
        if (x->bytes > x->at) add_text(x, TOKEN_DATA, x->at, x->bytes);
        advance(x, x->bytes);
        return false;
    }
    kind = x->text[tag + 1];
    if (tag + 2 < x->bytes && (x->text[tag + 2] == '-' || x->text[tag + 2] == '+')) sign = x->text[tag + 2];
    add_data(x, x->at, tag, sign, kind == '{');
    if (kind == '%' && (end = raw_begin(x, tag + 2)) != 0) {
        advance(x, end);
        lex_raw(x);
        return true;
    }
    if (kind != '#') add(x, kind == '%' ? TOKEN_BLOCK_BEGIN : TOKEN_VARIABLE_BEGIN);
    advance(x, tag + 2 + (sign != 0));
    if (kind == '#') lex_comment(x);
    else lex_tag(x, kind == '%');
    return true;
}

struct jinja_tokens jinja_lex(struct jinja_run *r, const char *source, size_t bytes)
{
    struct lexer x = {.r = r, .line_starting = true};

    load(&x, source, bytes);
    while (lex_root(&x)) {}
    add(&x, TOKEN_EOF);
    r->line = 0;
    return (struct jinja_tokens){x.tokens, x.count};
}
