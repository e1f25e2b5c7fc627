/* model/jinja_expr.c - expressions: operators, comparisons, literals (model/jinja_eval.h).
 *
 * Reads    the program, which it never changes
 * Owns     nothing: values are in the run's arena
 * Fails    by the run, in Python's words; integers beyond 64 bits are an error here, unlike in Python. */
#include "model/jinja_eval.h"

#include <math.h>
#include <string.h>

#include "model/jinja_lex.h"
#include "shm/error.h"
#include "shm/must.h"

__attribute__((noreturn))
static void fail_overflow(struct jinja_eval *e) { jinja_fail(&e->run, E_RANGE, "an integer does not fit in 64 bits"); }

__attribute__((noreturn))
static void fail_operands(struct jinja_eval *e, const char *sign, struct jinja_value a, struct jinja_value b)
{
    if (a.type == JINJA_UNDEFINED) jinja_fail_undefined(&e->run, a);
    if (b.type == JINJA_UNDEFINED) jinja_fail_undefined(&e->run, b);
    jinja_fail(&e->run, E_FORMAT, "unsupported operand type(s) for %s: '%s' and '%s'", sign, jinja_type_name(a), jinja_type_name(b));
}

/* ------------------------------------------------------------------ arithmetic */

static struct jinja_value mark(struct jinja_value v, struct jinja_value a, struct jinja_value b)
{
    v.untrusted = a.untrusted | b.untrusted;
    return v;
}

static int64_t floor_div(int64_t a, int64_t b) { return a / b - (a % b != 0 && (a < 0) != (b < 0)); }

static struct jinja_value int_power(struct jinja_eval *e, int64_t base, int64_t exponent)
{
    int64_t result = 1;

    if (exponent < 0) {
        if (base == 0) jinja_fail(&e->run, E_FORMAT, "0.0 cannot be raised to a negative power");
        return jinja_float(pow((double)base, (double)exponent));
    }
    for (; exponent; exponent >>= 1) {
        if ((exponent & 1) && __builtin_mul_overflow(result, base, &result)) fail_overflow(e);
        if (exponent > 1 && __builtin_mul_overflow(base, base, &base)) fail_overflow(e);
    }
    return jinja_int(result);
}

static struct jinja_value int_op(struct jinja_eval *e, uint16_t op, int64_t a, int64_t b)
{
    int64_t out = 0;

    if ((op == '/' || op == OP_FLOORDIV || op == '%') && b == 0)
        jinja_fail(&e->run, E_FORMAT, op == '/' ? "division by zero" : "integer division or modulo by zero");
    switch (op) {
    case '+': if (__builtin_add_overflow(a, b, &out)) fail_overflow(e); break;
    case '-': if (__builtin_sub_overflow(a, b, &out)) fail_overflow(e); break;
    case '*': if (__builtin_mul_overflow(a, b, &out)) fail_overflow(e); break;
    case '/': return jinja_float((double)a / (double)b);
    case OP_FLOORDIV:
        if (a == INT64_MIN && b == -1) fail_overflow(e);
        out = floor_div(a, b);
        break;
    case '%': out = b == -1 ? 0 : a - floor_div(a, b) * b; break;
    default: return int_power(e, a, b);
    }
    return jinja_int(out);
}

static struct jinja_value real_op(struct jinja_eval *e, uint16_t op, double a, double b)
{
    double m;

    if ((op == '/' || op == OP_FLOORDIV || op == '%') && b == 0)
        jinja_fail(&e->run, E_FORMAT, op == '/' ? "float division by zero" : op == '%' ? "float modulo" : "float floor division by zero");
    switch (op) {
    case '+': return jinja_float(a + b);
    case '-': return jinja_float(a - b);
    case '*': return jinja_float(a * b);
    case '/': return jinja_float(a / b);
    case OP_FLOORDIV: case '%':
        m = fmod(a, b);
        if (m != 0 && (m < 0) != (b < 0)) m += b;
        else if (m == 0) m = copysign(0, b);
        return jinja_float(op == '%' ? m : round((a - m) / b));
    default:
        if (a == 0 && b < 0) jinja_fail(&e->run, E_FORMAT, "0.0 cannot be raised to a negative power");
        if (a < 0 && b != floor(b)) jinja_fail(&e->run, E_UNSUPPORTED, "complex numbers are not supported");
        return jinja_float(pow(a, b));
    }
}

static struct jinja_value repeat_list(struct jinja_eval *e, struct jinja_value list, int64_t times)
{
    struct jinja_items out = {0};

    for (int64_t k = 0; k < times && list.u.list->count; k++)
        for (uint32_t i = 0; i < list.u.list->count; i++) jinja_items_add(&e->run, &out, list.u.list->items[i]);
    return list.type == JINJA_LIST ? jinja_list_of(&e->run, out.items, out.count) : jinja_tuple_of(&e->run, out.items, out.count);
}

static struct jinja_value join_lists(struct jinja_eval *e, struct jinja_value a, struct jinja_value b)
{
    const uint32_t n = a.u.list->count, m = b.u.list->count;
    struct jinja_value *items;

    if ((uint64_t)n + m > UINT32_MAX / 2) jinja_fail(&e->run, E_LIMIT, "the template makes too long a list");
    jinja_step(&e->run, (uint64_t)n + m);
    items = jinja_alloc(&e->run, ((size_t)n + m) * sizeof *items);
    if (n) memcpy(items, a.u.list->items, n * sizeof *items);
    if (m) memcpy(items + n, b.u.list->items, m * sizeof *items);
    return a.type == JINJA_LIST ? jinja_list_of(&e->run, items, n + m) : jinja_tuple_of(&e->run, items, n + m);
}

static struct jinja_value add_strings(struct jinja_eval *e, struct jinja_str *a, struct jinja_str *b)
{
    struct jinja_str *s;

    if (a->markup && !b->markup) b = jinja_str_escape(&e->run, b);
    if (b->markup && !a->markup) a = jinja_str_escape(&e->run, a);
    s = jinja_str_concat(&e->run, a, b);
    return jinja_string(s);
}

static struct jinja_value percent(struct jinja_eval *e, struct jinja_str *format, struct jinja_value v)
{
    if (v.type == JINJA_TUPLE) return jinja_string(jinja_percent_format(e, format, v.u.list->items, v.u.list->count, NULL));
    return jinja_string(jinja_percent_format(e, format, &v, 1, v.type == JINJA_DICT ? v.u.dict : NULL));
}

struct jinja_value jinja_binary(struct jinja_eval *e, uint16_t op, struct jinja_value a, struct jinja_value b)
{
    char sign[16] = {(char)op, 0};

    if (jinja_is_number(a) && jinja_is_number(b)) {
        if (a.type == JINJA_FLOAT || b.type == JINJA_FLOAT) return mark(real_op(e, op, jinja_real_of(a), jinja_real_of(b)), a, b);
        return mark(int_op(e, op, jinja_integer_of(a), jinja_integer_of(b)), a, b);
    }
    if (op == '%' && a.type == JINJA_STRING && b.type != JINJA_UNDEFINED) return percent(e, a.u.str, b);
    if (op == '+') {
        if (a.type == JINJA_STRING && b.type == JINJA_STRING) return add_strings(e, a.u.str, b.u.str);
        if ((a.type == JINJA_LIST || a.type == JINJA_TUPLE) && a.type == b.type) return join_lists(e, a, b);
        if (a.type == JINJA_STRING && b.type != JINJA_UNDEFINED)
            jinja_fail(&e->run, E_FORMAT, "can only concatenate str (not \"%s\") to str", jinja_type_name(b));
        if ((a.type == JINJA_LIST || a.type == JINJA_TUPLE) && b.type != JINJA_UNDEFINED)
            jinja_fail(&e->run, E_FORMAT, "can only concatenate %s (not \"%s\") to %s", jinja_type_name(a), jinja_type_name(b), jinja_type_name(a));
    }
    if (op == '*') {
        if (jinja_is_integer(a) && b.type != JINJA_UNDEFINED) { const struct jinja_value t = a; a = b; b = t; }
        if (jinja_is_integer(b) && a.type == JINJA_STRING) return jinja_string(jinja_str_repeat(&e->run, a.u.str, jinja_integer_of(b)));
        if (jinja_is_integer(b) && (a.type == JINJA_LIST || a.type == JINJA_TUPLE)) return repeat_list(e, a, jinja_integer_of(b));
        if ((a.type == JINJA_STRING || a.type == JINJA_LIST || a.type == JINJA_TUPLE) && b.type != JINJA_UNDEFINED)
            jinja_fail(&e->run, E_FORMAT, "can't multiply sequence by non-int of type '%s'", jinja_type_name(b));
    }
    if (op > 255) sign[0] = (char)(op >> 8), sign[1] = (char)op, sign[2] = 0;
    if (op == OP_POW) strcpy(sign, "** or pow()");
    fail_operands(e, sign, a, b);
}

static struct jinja_value sign_of(struct jinja_eval *e, struct jinja_value v, bool negative)
{
    if (v.type == JINJA_UNDEFINED) jinja_fail_undefined(&e->run, v);
    if (!jinja_is_number(v)) jinja_fail(&e->run, E_FORMAT, "bad operand type for unary %c: '%s'", negative ? '-' : '+', jinja_type_name(v));
    if (v.type == JINJA_FLOAT) return mark(jinja_float(negative ? -v.u.real : v.u.real), v, v);
    if (negative && jinja_integer_of(v) == INT64_MIN) fail_overflow(e);
    return mark(jinja_int(negative ? -jinja_integer_of(v) : jinja_integer_of(v)), v, v);
}

/* ------------------------------------------------------------------ comparison */

bool jinja_compared(struct jinja_eval *e, uint8_t op, struct jinja_value a, struct jinja_value b)
{
    static const char *const signs[] = {[COMPARE_LT] = "<", [COMPARE_LE] = "<=", [COMPARE_GT] = ">", [COMPARE_GE] = ">="};
    bool unordered;
    int c;

    switch (op) {
    case COMPARE_EQ: return jinja_equal(&e->run, a, b);
    case COMPARE_NE: return !jinja_equal(&e->run, a, b);
    case COMPARE_IN: return jinja_contains(&e->run, b, a);
    case COMPARE_NOT_IN: return !jinja_contains(&e->run, b, a);
    default: break;
    }
    c = jinja_compare(&e->run, a, b, signs[op], &unordered);
    if (unordered) return false;
    return op == COMPARE_LT ? c < 0 : op == COMPARE_LE ? c <= 0 : op == COMPARE_GT ? c > 0 : c >= 0;
}

static struct jinja_value compare_chain(struct jinja_eval *e, const struct jinja_node *n)
{
    struct jinja_value left = jinja_evaluate(e, n->a);

    for (uint32_t i = 0; i < n->count; i++) {
        const struct jinja_value right = jinja_evaluate(e, n->list[i]);
        if (!jinja_compared(e, n->ops[i], left, right)) return jinja_bool(false);
        left = right;
    }
    return jinja_bool(true);
}

/* ------------------------------------------------------------------ literals and the rest */

static struct jinja_value make_list(struct jinja_eval *e, const struct jinja_node *n)
{
    struct jinja_value *items = jinja_alloc_array(&e->run, n->count, sizeof *items);

    for (uint32_t i = 0; i < n->count; i++) items[i] = jinja_evaluate(e, n->list[i]);
    return n->kind == NODE_LIST ? jinja_list_of(&e->run, items, n->count) : jinja_tuple_of(&e->run, items, n->count);
}

static struct jinja_value make_dict(struct jinja_eval *e, const struct jinja_node *n)
{
    struct jinja_dict *d = jinja_dict_new(&e->run, n->count / 2);

    for (uint32_t i = 0; i < n->count; i += 2) {
        const struct jinja_value key = jinja_evaluate(e, n->list[i]);
        jinja_dict_put(&e->run, d, key, jinja_evaluate(e, n->list[i + 1]));
    }
    return (struct jinja_value){.type = JINJA_DICT, .u.dict = d};
}

static struct jinja_value concat(struct jinja_eval *e, const struct jinja_node *n)
{
    struct jinja_buf b = {0};

    for (uint32_t i = 0; i < n->count; i++) jinja_print(&e->run, &b, jinja_evaluate(e, n->list[i]));
    return jinja_string(jinja_buf_finish(&e->run, &b));
}

static struct jinja_value item_of(struct jinja_eval *e, const struct jinja_node *n)
{
    const struct jinja_value of = jinja_evaluate(e, n->a);
    const struct jinja_node *s = n->b;
    struct jinja_value part[3] = {jinja_none(), jinja_none(), jinja_none()};

    if (s->kind != NODE_SLICE) return jinja_item(e, of, jinja_evaluate(e, s));
    if (s->a) part[0] = jinja_evaluate(e, s->a);
    if (s->b) part[1] = jinja_evaluate(e, s->b);
    if (s->c) part[2] = jinja_evaluate(e, s->c);
    return jinja_slice(e, of, part[0], part[1], part[2]);
}

static struct jinja_value call_node(struct jinja_eval *e, const struct jinja_node *n)
{
    const struct jinja_value callee = jinja_evaluate(e, n->a);
    struct jinja_args args;

    jinja_eval_args(e, n->args, &args);
    e->run.line = n->line;
    return jinja_call(e, callee, &args);
}

static void check_known(struct jinja_eval *e, const struct jinja_node *n, const char *what)
{
    if (n->op == UINT16_MAX) jinja_fail(&e->run, E_FORMAT, "No %s named '%.*s'.", what, (int)n->value.u.str->bytes, n->value.u.str->text);
}

struct jinja_value jinja_apply_filters(struct jinja_eval *e, const struct jinja_node *chain, struct jinja_value input)
{
    struct jinja_args args;

    if (!chain) return input;
    check_known(e, chain, "filter");
    input = jinja_apply_filters(e, chain->a, input);
    jinja_eval_args(e, chain->args, &args);
    return jinja_filter(e, chain->op, input, &args);
}

static struct jinja_value evaluate(struct jinja_eval *e, const struct jinja_node *n)
{
    struct jinja_value v;
    struct jinja_args args;

    switch (n->kind) {
    case NODE_CONST: return n->value;
    case NODE_NAME: return jinja_lookup(e, n->name);
    case NODE_LIST: case NODE_TUPLE: return make_list(e, n);
    case NODE_DICT: return make_dict(e, n);
    case NODE_NOT: return jinja_bool(!jinja_truth(&e->run, jinja_evaluate(e, n->a)));
    case NODE_NEG: case NODE_POS: return sign_of(e, jinja_evaluate(e, n->a), n->kind == NODE_NEG);
    case NODE_AND: v = jinja_evaluate(e, n->a); return jinja_truth(&e->run, v) ? jinja_evaluate(e, n->b) : v;
    case NODE_OR: v = jinja_evaluate(e, n->a); return jinja_truth(&e->run, v) ? v : jinja_evaluate(e, n->b);
    case NODE_BINARY: v = jinja_evaluate(e, n->a); return jinja_binary(e, n->op, v, jinja_evaluate(e, n->b));
    case NODE_CONCAT: return concat(e, n);
    case NODE_COMPARE: return compare_chain(e, n);
    case NODE_IF_ELSE:
        if (jinja_truth(&e->run, jinja_evaluate(e, n->b))) return jinja_evaluate(e, n->a);
        return n->c ? jinja_evaluate(e, n->c)
                    : jinja_undefined_hint(&e->run, "the inline if-expression evaluated to false and no else section was defined.");
    case NODE_ATTRIBUTE: return jinja_attribute(e, jinja_evaluate(e, n->a), n->value.u.str);
    case NODE_ITEM: return item_of(e, n);
    case NODE_CALL: return call_node(e, n);
    case NODE_FILTER:
        check_known(e, n, "filter");
        v = jinja_evaluate(e, n->a);
        jinja_eval_args(e, n->args, &args);
        return jinja_filter(e, n->op, v, &args);
    case NODE_TEST:
        check_known(e, n, "test");
        v = jinja_evaluate(e, n->a);
        jinja_eval_args(e, n->args, &args);
        return jinja_bool(jinja_test(e, n->op, v, &args));
    default: must(!"an expression node");
    }
    return jinja_none();
}

struct jinja_value jinja_evaluate(struct jinja_eval *e, const struct jinja_node *n)
{
    struct jinja_value v;

    jinja_step(&e->run, 1);
    jinja_enter(&e->run);
    v = evaluate(e, n);
    jinja_leave(&e->run);
    return v;
}
