/* model/jinja_parse_expr.c - expressions: one function per level of precedence (model/jinja_parse.h).
 *
 * Levels, loosest first: if-else, or, and, not, comparison, + -, ~, * / // %, **, sign, then postfix
 * (attribute, item, call), filters and tests. ** groups to the left and binds looser than a sign, as
 * in jinja2 and unlike Python.
 *
 * Fails    by the run, with the line of the token in hand. */
#include <stdio.h>
#include <string.h>

#include "model/jinja_parse.h"
#include "shm/error.h"

static struct jinja_node *parse_unary(struct jinja_parser *p, bool with_filter);

static bool is_type(const struct jinja_parser *p, enum jinja_token_type type) { return p->at->type == type; }

static struct jinja_node *node2(struct jinja_parser *p, enum jinja_node_kind kind, uint32_t line, struct jinja_node *a, struct jinja_node *b)
{
    struct jinja_node *n = jinja_node_new(p, kind, line);

    n->a = a;
    n->b = b;
    jinja_node_over(p, n, a);
    jinja_node_over(p, n, b);
    return n;
}

/* Takes over a list's nodes as children. */
static void take_list(struct jinja_parser *p, struct jinja_node *n, const struct jinja_node_list *l)
{
    n->list = l->nodes;
    n->count = l->count;
    for (uint32_t i = 0; i < l->count; i++) jinja_node_over(p, n, l->nodes[i]);
}

/* ------------------------------------------------------------------ primaries */

static struct jinja_node *parse_const(struct jinja_parser *p, struct jinja_value v)
{
    struct jinja_node *n = jinja_node_new(p, NODE_CONST, p->at->line);

    n->value = v;
    p->at++;
    return n;
}

/* Strings side by side are one. */
static struct jinja_node *parse_strings(struct jinja_parser *p)
{
    struct jinja_node *n = parse_const(p, p->at->value);

    while (is_type(p, TOKEN_STRING)) {
        n->value.u.str = jinja_str_concat(p->r, n->value.u.str, p->at->value.u.str);
        jinja_str_seal(p->r, n->value.u.str);
        p->at++;
    }
    return n;
}

static struct jinja_node *parse_word(struct jinja_parser *p)
{
    struct jinja_node *n;

    if (jinja_parse_is_word(p, "true") || jinja_parse_is_word(p, "True")) return parse_const(p, jinja_bool(true));
    if (jinja_parse_is_word(p, "false") || jinja_parse_is_word(p, "False")) return parse_const(p, jinja_bool(false));
    if (jinja_parse_is_word(p, "none") || jinja_parse_is_word(p, "None")) return parse_const(p, jinja_none());
    n = jinja_node_new(p, NODE_NAME, p->at->line);
    n->name = jinja_parse_intern(p, p->at->value.u.str);
    p->at++;
    return n;
}

static struct jinja_node *parse_list(struct jinja_parser *p)
{
    struct jinja_node *n = jinja_node_new(p, NODE_LIST, p->at->line);
    struct jinja_node_list l = {0};

    p->at++;
    while (!jinja_parse_is_op(p, ']')) {
        if (l.count) jinja_parse_expect_op(p, ',');
        if (jinja_parse_is_op(p, ']')) break;
        jinja_node_add(p, &l, jinja_parse_expression(p));
    }
    p->at++;
    take_list(p, n, &l);
    return n;
}

static struct jinja_node *parse_dict(struct jinja_parser *p)
{
    struct jinja_node *n = jinja_node_new(p, NODE_DICT, p->at->line);
    struct jinja_node_list l = {0};

    p->at++;
    while (!jinja_parse_is_op(p, '}')) {
        if (l.count) jinja_parse_expect_op(p, ',');
        if (jinja_parse_is_op(p, '}')) break;
        jinja_node_add(p, &l, jinja_parse_expression(p));
        jinja_parse_expect_op(p, ':');
        jinja_node_add(p, &l, jinja_parse_expression(p));
    }
    p->at++;
    take_list(p, n, &l);
    return n;
}

static struct jinja_node *parse_primary(struct jinja_parser *p)
{
    struct jinja_node *n;

    switch (p->at->type) {
    case TOKEN_NAME: return parse_word(p);
    case TOKEN_STRING: return parse_strings(p);
    case TOKEN_INTEGER: case TOKEN_FLOAT: return parse_const(p, p->at->value);
    default: break;
    }
    if (jinja_parse_is_op(p, '[')) return parse_list(p);
    if (jinja_parse_is_op(p, '{')) return parse_dict(p);
    if (!jinja_parse_skip_op(p, '(')) jinja_parse_unexpected(p, NULL);
    n = jinja_parse_tuple(p, true, NULL, true);
    jinja_parse_expect_op(p, ')');
    return n;
}

/* ------------------------------------------------------------------ postfix */

static void add_keyword(struct jinja_parser *p, struct jinja_call_args *args, uint32_t *room, struct jinja_str *name, struct jinja_node *value)
{
    for (uint32_t i = 0; i < args->keyword_count; i++)
        if (jinja_str_equal(p->r, args->keywords[i].name, name)) jinja_parse_fail(p, "keyword argument repeated: %.*s", (int)name->bytes, name->text);
    if (args->keyword_count == *room) {
        const uint32_t more = *room ? 2 * *room : 4;
        args->keywords = jinja_grow(p->r, args->keywords, *room * sizeof *args->keywords, more * sizeof *args->keywords);
        *room = more;
    }
    args->keywords[args->keyword_count++] = (struct jinja_keyword){name, value};
}

/* ( ... ) of a call, filter or test; heights are accounted to `n`. */
static struct jinja_call_args *parse_args(struct jinja_parser *p, struct jinja_node *n)
{
    struct jinja_call_args *args = jinja_alloc_array(p->r, 1, sizeof *args);
    struct jinja_node_list positional = {0};
    uint32_t room = 0;
    bool first = true;

    jinja_parse_expect_op(p, '(');
    while (!jinja_parse_is_op(p, ')')) {
        struct jinja_node *value;
        if (!first) {
            jinja_parse_expect_op(p, ',');
            if (jinja_parse_is_op(p, ')')) break;
        }
        first = false;
        if (jinja_parse_skip_op(p, '*')) {
            if (args->star || args->star_star) jinja_parse_fail(p, "invalid syntax for function call expression");
            value = args->star = jinja_parse_expression(p);
        } else if (jinja_parse_skip_op(p, OP_POW)) {
            if (args->star_star) jinja_parse_fail(p, "invalid syntax for function call expression");
            value = args->star_star = jinja_parse_expression(p);
        } else if (is_type(p, TOKEN_NAME) && p->at[1].type == TOKEN_OPERATOR && p->at[1].op == '=') {
            struct jinja_str *name = p->at->value.u.str;
            if (args->star_star) jinja_parse_fail(p, "invalid syntax for function call expression");
            p->at += 2;
            value = jinja_parse_expression(p);
            add_keyword(p, args, &room, name, value);
        } else {
            if (args->star || args->star_star || args->keyword_count) jinja_parse_fail(p, "invalid syntax for function call expression");
            value = jinja_parse_expression(p);
            jinja_node_add(p, &positional, value);
        }
        jinja_node_over(p, n, value);
    }
    p->at++;
    args->positional = positional.nodes;
    args->count = positional.count;
    return args;
}

static struct jinja_node *parse_call(struct jinja_parser *p, struct jinja_node *callee)
{
    struct jinja_node *n = node2(p, NODE_CALL, p->at->line, callee, NULL);

    n->args = parse_args(p, n);
    return n;
}

/* One index or slice inside [ ]. */
static struct jinja_node *parse_subscribed(struct jinja_parser *p)
{
    const uint32_t line = p->at->line;
    struct jinja_node *parts[3] = {0}, *n;

    if (!jinja_parse_is_op(p, ':')) {
        parts[0] = jinja_parse_expression(p);
        if (!jinja_parse_is_op(p, ':')) return parts[0];
    }
    p->at++;
    for (int i = 1; i < 3; i++) {
        if (!jinja_parse_is_op(p, ':') && !jinja_parse_is_op(p, ']') && !jinja_parse_is_op(p, ',')) parts[i] = jinja_parse_expression(p);
        if (i == 1 && !jinja_parse_skip_op(p, ':')) break;
    }
    n = node2(p, NODE_SLICE, line, parts[0], parts[1]);
    n->c = parts[2];
    jinja_node_over(p, n, n->c);
    return n;
}

static struct jinja_node *parse_subscript(struct jinja_parser *p, struct jinja_node *of)
{
    const uint32_t line = p->at->line;
    struct jinja_node *n, *key;
    struct jinja_node_list l = {0};

    if (jinja_parse_skip_op(p, '.')) {
        if (is_type(p, TOKEN_NAME)) {
            n = node2(p, NODE_ATTRIBUTE, line, of, NULL);
            n->value = p->at->value;
            p->at++;
            return n;
        }
        if (!is_type(p, TOKEN_INTEGER)) jinja_parse_fail(p, "expected name or number");
        return node2(p, NODE_ITEM, line, of, parse_const(p, p->at->value));
    }
    p->at++;
    while (!jinja_parse_is_op(p, ']')) {
        if (l.count) jinja_parse_expect_op(p, ',');
        jinja_node_add(p, &l, parse_subscribed(p));
    }
    p->at++;
    if (l.count == 1) key = l.nodes[0];
    else {
        key = jinja_node_new(p, NODE_TUPLE, line);
        take_list(p, key, &l);
        for (uint32_t i = 0; i < l.count; i++) if (l.nodes[i]->kind == NODE_SLICE) jinja_parse_fail(p, "a slice cannot be part of a tuple here");
    }
    return node2(p, NODE_ITEM, line, of, key);
}

static struct jinja_node *parse_postfix(struct jinja_parser *p, struct jinja_node *n)
{
    for (;;) {
        if (jinja_parse_is_op(p, '.') || jinja_parse_is_op(p, '[')) n = parse_subscript(p, n);
        else if (jinja_parse_is_op(p, '(')) n = parse_call(p, n);
        else return n;
    }
}

/* a.b.c of a filter's or test's name; returns its bytes. */
static size_t parse_dotted(struct jinja_parser *p, char *out, size_t room)
{
    struct jinja_str *s = jinja_parse_name(p);
    size_t n = (size_t)snprintf(out, room, "%.*s", (int)s->bytes, s->text);

    while (jinja_parse_skip_op(p, '.')) {
        s = jinja_parse_name(p);
        n += n < room ? (size_t)snprintf(out + n, room - n, ".%.*s", (int)s->bytes, s->text) : 0;
    }
    return n < room ? n : room - 1;
}

/* As in jinja2, an unknown filter or test inside an if is an error only when it is reached: templates may ask first. */
static void keep_unknown(struct jinja_parser *p, struct jinja_node *n, const char *what, const char *name, size_t bytes)
{
    if (n->op != UINT16_MAX) return;
    if (!p->if_depth) jinja_parse_fail(p, "No %s named '%s'.", what, name);
    n->value = jinja_string(jinja_str_copy(p->r, name, bytes, true));
}

struct jinja_node *jinja_parse_filters(struct jinja_parser *p, struct jinja_node *input, bool is_inline)
{
    char name[80];

    while (is_inline || jinja_parse_is_op(p, '|')) {
        struct jinja_node *n;
        size_t bytes;
        if (!is_inline) p->at++;
        is_inline = false;
        n = node2(p, NODE_FILTER, p->at->line, input, NULL);
        bytes = parse_dotted(p, name, sizeof name);
        n->op = jinja_filter_find(name, bytes);
        keep_unknown(p, n, "filter", name, bytes);
        if (jinja_parse_is_op(p, '(')) n->args = parse_args(p, n);
        input = n;
    }
    return input;
}

/* A test may take one argument without brackets. */
static bool begins_test_argument(const struct jinja_parser *p)
{
    if (is_type(p, TOKEN_NAME)) return !jinja_parse_is_word(p, "else") && !jinja_parse_is_word(p, "or") && !jinja_parse_is_word(p, "and");
    return is_type(p, TOKEN_STRING) || is_type(p, TOKEN_INTEGER) || is_type(p, TOKEN_FLOAT) || jinja_parse_is_op(p, '[') || jinja_parse_is_op(p, '{');
}

static struct jinja_node *parse_test(struct jinja_parser *p, struct jinja_node *input)
{
    const uint32_t line = p->at++->line;
    const bool negated = jinja_parse_skip_word(p, "not");
    struct jinja_node *n = node2(p, NODE_TEST, line, input, NULL), *outer;
    char name[80];
    const size_t bytes = parse_dotted(p, name, sizeof name);

    n->op = jinja_test_find(name, bytes);
    keep_unknown(p, n, "test", name, bytes);
    if (jinja_parse_is_op(p, '(')) n->args = parse_args(p, n);
    else if (begins_test_argument(p)) {
        if (jinja_parse_is_word(p, "is")) jinja_parse_fail(p, "You cannot chain multiple tests with is");
        n->args = jinja_alloc_array(p->r, 1, sizeof *n->args);
        n->args->positional = jinja_alloc_array(p->r, 1, sizeof *n->args->positional);
        n->args->positional[0] = parse_postfix(p, parse_primary(p));
        n->args->count = 1;
        jinja_node_over(p, n, n->args->positional[0]);
    }
    if (!negated) return n;
    outer = node2(p, NODE_NOT, line, n, NULL);
    return outer;
}

static struct jinja_node *parse_filter_expr(struct jinja_parser *p, struct jinja_node *n)
{
    for (;;) {
        if (jinja_parse_is_op(p, '|')) n = jinja_parse_filters(p, n, false);
        else if (jinja_parse_is_word(p, "is")) n = parse_test(p, n);
        else if (jinja_parse_is_op(p, '(')) n = parse_call(p, n);
        else return n;
    }
}

/* ------------------------------------------------------------------ operators */

static struct jinja_node *parse_unary(struct jinja_parser *p, bool with_filter)
{
    const uint32_t line = p->at->line;
    struct jinja_node *n;

    if (++p->depth > JINJA_PARSE_DEPTH_MAX) jinja_parse_fail(p, "the template nests deeper than %u", JINJA_PARSE_DEPTH_MAX);
    if (jinja_parse_skip_op(p, '-')) n = node2(p, NODE_NEG, line, parse_unary(p, false), NULL);
    else if (jinja_parse_skip_op(p, '+')) n = node2(p, NODE_POS, line, parse_unary(p, false), NULL);
    else n = parse_primary(p);
    n = parse_postfix(p, n);
    if (with_filter) n = parse_filter_expr(p, n);
    p->depth--;
    return n;
}

static struct jinja_node *binary(struct jinja_parser *p, struct jinja_node *left, struct jinja_node *(*next)(struct jinja_parser *p))
{
    const uint32_t line = p->at->line;
    const uint16_t op = p->at++->op;
    struct jinja_node *n = node2(p, NODE_BINARY, line, left, next(p));

    n->op = op;
    return n;
}

static struct jinja_node *parse_unary_filtered(struct jinja_parser *p) { return parse_unary(p, true); }

static struct jinja_node *parse_power(struct jinja_parser *p)
{
    struct jinja_node *n = parse_unary(p, true);

    while (jinja_parse_is_op(p, OP_POW)) n = binary(p, n, parse_unary_filtered);
    return n;
}

static struct jinja_node *parse_product(struct jinja_parser *p)
{
    struct jinja_node *n = parse_power(p);

    while (jinja_parse_is_op(p, '*') || jinja_parse_is_op(p, '/') || jinja_parse_is_op(p, OP_FLOORDIV) || jinja_parse_is_op(p, '%'))
        n = binary(p, n, parse_power);
    return n;
}

static struct jinja_node *parse_concat(struct jinja_parser *p)
{
    const uint32_t line = p->at->line;
    struct jinja_node *n = parse_product(p), *whole;
    struct jinja_node_list l = {0};

    if (!jinja_parse_is_op(p, '~')) return n;
    jinja_node_add(p, &l, n);
    while (jinja_parse_skip_op(p, '~')) jinja_node_add(p, &l, parse_product(p));
    whole = jinja_node_new(p, NODE_CONCAT, line);
    take_list(p, whole, &l);
    return whole;
}

static struct jinja_node *parse_sum(struct jinja_parser *p)
{
    struct jinja_node *n = parse_concat(p);

    while (jinja_parse_is_op(p, '+') || jinja_parse_is_op(p, '-')) n = binary(p, n, parse_concat);
    return n;
}

/* The comparison at hand, consumed; or -1. */
static int skip_compare(struct jinja_parser *p)
{
    static const struct { uint16_t op; uint8_t compare; } signs[] = {
        {OP_EQ, COMPARE_EQ}, {OP_NE, COMPARE_NE}, {'<', COMPARE_LT}, {OP_LE, COMPARE_LE}, {'>', COMPARE_GT}, {OP_GE, COMPARE_GE},
    };

    for (size_t i = 0; i < sizeof signs / sizeof *signs; i++) if (jinja_parse_skip_op(p, signs[i].op)) return signs[i].compare;
    if (jinja_parse_skip_word(p, "in")) return COMPARE_IN;
    if (!jinja_parse_is_word(p, "not")) return -1;
    p->at++;
    if (jinja_parse_skip_word(p, "in")) return COMPARE_NOT_IN;
    p->at--;
    return -1;
}

static struct jinja_node *parse_compare(struct jinja_parser *p)
{
    const uint32_t line = p->at->line;
    struct jinja_node *first = parse_sum(p), *n;
    struct jinja_node_list l = {0};
    struct jinja_buf ops = {0};
    int op;

    while ((op = skip_compare(p)) >= 0) {
        const char byte = (char)op;
        jinja_buf_put(p->r, &ops, &byte, 1, false);
        jinja_node_add(p, &l, parse_sum(p));
    }
    if (!l.count) return first;
    n = node2(p, NODE_COMPARE, line, first, NULL);
    take_list(p, n, &l);
    n->ops = (uint8_t *)ops.text;
    return n;
}

static struct jinja_node *parse_not(struct jinja_parser *p)
{
    const uint32_t line = p->at->line;
    struct jinja_node *n;

    if (!jinja_parse_skip_word(p, "not")) return parse_compare(p);
    if (++p->depth > JINJA_PARSE_DEPTH_MAX) jinja_parse_fail(p, "the template nests deeper than %u", JINJA_PARSE_DEPTH_MAX);
    n = node2(p, NODE_NOT, line, parse_not(p), NULL);
    p->depth--;
    return n;
}

static struct jinja_node *parse_and(struct jinja_parser *p)
{
    struct jinja_node *n = parse_not(p);

    while (jinja_parse_is_word(p, "and")) {
        const uint32_t line = p->at++->line;
        n = node2(p, NODE_AND, line, n, parse_not(p));
    }
    return n;
}

static struct jinja_node *parse_or(struct jinja_parser *p)
{
    struct jinja_node *n = parse_and(p);

    while (jinja_parse_is_word(p, "or")) {
        const uint32_t line = p->at++->line;
        n = node2(p, NODE_OR, line, n, parse_and(p));
    }
    return n;
}

struct jinja_node *jinja_parse_expression(struct jinja_parser *p)
{
    struct jinja_node *n = parse_or(p);

    while (jinja_parse_is_word(p, "if")) {
        const uint32_t line = p->at++->line;
        n = node2(p, NODE_IF_ELSE, line, n, parse_or(p));
        if (!jinja_parse_skip_word(p, "else")) continue;
        if (++p->depth > JINJA_PARSE_DEPTH_MAX) jinja_parse_fail(p, "the template nests deeper than %u", JINJA_PARSE_DEPTH_MAX);
        n->c = jinja_parse_expression(p);
        p->depth--;
        jinja_node_over(p, n, n->c);
    }
    return n;
}

/* ------------------------------------------------------------------ tuples and targets */

static bool at_tuple_end(const struct jinja_parser *p, const char *end_word)
{
    return is_type(p, TOKEN_VARIABLE_END) || is_type(p, TOKEN_BLOCK_END) || jinja_parse_is_op(p, ')') || (end_word && jinja_parse_is_word(p, end_word));
}

struct jinja_node *jinja_parse_tuple(struct jinja_parser *p, bool with_condition, const char *end_word, bool in_brackets)
{
    const uint32_t line = p->at->line;
    struct jinja_node_list l = {0};
    struct jinja_node *n;
    bool is_tuple = false;

    for (;;) {
        if (l.count) jinja_parse_expect_op(p, ',');
        if (at_tuple_end(p, end_word)) break;
        jinja_node_add(p, &l, with_condition ? jinja_parse_expression(p) : parse_or(p));
        if (!jinja_parse_is_op(p, ',')) break;
        is_tuple = true;
    }
    if (!is_tuple && l.count) return l.nodes[0];
    if (!is_tuple && !in_brackets) jinja_parse_unexpected(p, "an expression");
    n = jinja_node_new(p, NODE_TUPLE, line);
    take_list(p, n, &l);
    return n;
}

static struct jinja_node *parse_simple_target(struct jinja_parser *p, bool with_namespace)
{
    struct jinja_node *n;

    if (jinja_parse_skip_op(p, '(')) {
        n = jinja_parse_target(p, NULL, true, with_namespace);
        jinja_parse_expect_op(p, ')');
        return n;
    }
    if (!is_type(p, TOKEN_NAME)) jinja_parse_fail(p, "can't assign to this");
    n = parse_word(p);
    if (n->kind != NODE_NAME) jinja_parse_fail(p, "can't assign to a constant");
    if (with_namespace && jinja_parse_skip_op(p, '.')) {
        n->kind = NODE_NS_TARGET;
        n->value = jinja_string(jinja_parse_name(p));
    }
    return n;
}

struct jinja_node *jinja_parse_target(struct jinja_parser *p, const char *end_word, bool with_tuple, bool with_namespace)
{
    const uint32_t line = p->at->line;
    struct jinja_node_list l = {0};
    struct jinja_node *n;
    bool is_tuple = false;

    if (++p->depth > JINJA_PARSE_DEPTH_MAX) jinja_parse_fail(p, "the template nests deeper than %u", JINJA_PARSE_DEPTH_MAX);
    for (;;) {
        if (l.count) jinja_parse_expect_op(p, ',');
        if (l.count && (at_tuple_end(p, end_word) || jinja_parse_is_op(p, '='))) break;
        jinja_node_add(p, &l, parse_simple_target(p, with_namespace));
        if (!with_tuple || !jinja_parse_is_op(p, ',')) break;
        is_tuple = true;
    }
    p->depth--;
    if (!is_tuple) return l.nodes[0];
    n = jinja_node_new(p, NODE_TUPLE, line);
    take_list(p, n, &l);
    return n;
}
