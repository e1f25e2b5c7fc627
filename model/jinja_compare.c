/* model/jinja_compare.c - questions about values: type, truth, equality, order, hash, membership
 * (model/jinja_value.h), each answered as Python answers it.
 *
 * Owns     nothing
 * Fails    by the run: no order between types, not hashable, nested too deep. */
#include <math.h>
#include <string.h>

#include "model/jinja_value.h"
#include "shm/error.h"

const char *jinja_type_name(struct jinja_value v)
{
    static const char *const names[] = {
        [JINJA_MISSING] = "missing", [JINJA_UNDEFINED] = "Undefined", [JINJA_NONE] = "NoneType", [JINJA_BOOL] = "bool",
        [JINJA_INT] = "int", [JINJA_FLOAT] = "float", [JINJA_STRING] = "str", [JINJA_LIST] = "list", [JINJA_TUPLE] = "tuple",
        [JINJA_DICT] = "dict", [JINJA_RANGE] = "range", [JINJA_KEYS] = "dict_keys", [JINJA_VALUES] = "dict_values",
        [JINJA_ITEMS] = "dict_items", [JINJA_ITERATOR] = "generator", [JINJA_NAMESPACE] = "Namespace", [JINJA_MACRO] = "Macro",
        [JINJA_FUNCTION] = "function", [JINJA_METHOD] = "builtin_function_or_method", [JINJA_LOOP] = "LoopContext",
        [JINJA_CYCLER] = "Cycler", [JINJA_JOINER] = "Joiner",
    };
    return v.type == JINJA_STRING && v.u.str->markup ? "Markup" : names[v.type];
}

bool jinja_is_number(struct jinja_value v) { return v.type == JINJA_BOOL || v.type == JINJA_INT || v.type == JINJA_FLOAT; }
bool jinja_is_integer(struct jinja_value v) { return v.type == JINJA_BOOL || v.type == JINJA_INT; }
int64_t jinja_integer_of(struct jinja_value v) { return v.type == JINJA_BOOL ? v.u.truth : v.u.integer; }
double jinja_real_of(struct jinja_value v) { return v.type == JINJA_FLOAT ? v.u.real : (double)jinja_integer_of(v); }

bool jinja_has_length(struct jinja_value v)
{
    switch (v.type) {
    case JINJA_UNDEFINED: case JINJA_STRING: case JINJA_LIST: case JINJA_TUPLE: case JINJA_DICT: case JINJA_RANGE:
    case JINJA_KEYS: case JINJA_VALUES: case JINJA_ITEMS: return true;
    default: return false;
    }
}

bool jinja_is_iterable(struct jinja_value v) { return jinja_has_length(v) || v.type == JINJA_ITERATOR || v.type == JINJA_LOOP; }

int64_t jinja_length(struct jinja_run *r, struct jinja_value v)
{
    switch (v.type) {
    case JINJA_UNDEFINED: return 0;
    case JINJA_STRING: return jinja_str_chars(r, v.u.str);
    case JINJA_LIST: case JINJA_TUPLE: return v.u.list->count;
    case JINJA_DICT: case JINJA_KEYS: case JINJA_VALUES: case JINJA_ITEMS: return v.u.dict->count;
    case JINJA_RANGE: return v.u.range->count;
    default: jinja_fail(r, E_FORMAT, "object of type '%s' has no len()", jinja_type_name(v));
    }
}

bool jinja_truth(struct jinja_run *r, struct jinja_value v)
{
    switch (v.type) {
    case JINJA_MISSING: case JINJA_UNDEFINED: case JINJA_NONE: return false;
    case JINJA_BOOL: return v.u.truth;
    case JINJA_INT: return v.u.integer != 0;
    case JINJA_FLOAT: return v.u.real != 0;
    case JINJA_STRING: return v.u.str->bytes != 0;
    case JINJA_LIST: case JINJA_TUPLE: case JINJA_DICT: case JINJA_RANGE:
    case JINJA_KEYS: case JINJA_VALUES: case JINJA_ITEMS: return jinja_length(r, v) != 0;
    default: return true;
    }
}

bool jinja_same(struct jinja_value a, struct jinja_value b)
{
    if (a.type != b.type) return false;
    switch (a.type) {
    case JINJA_NONE: return true;
    case JINJA_BOOL: return a.u.truth == b.u.truth;
    case JINJA_INT: return a.u.integer == b.u.integer;   /* Python says so for small ones only; templates mean all */
    case JINJA_FLOAT: return a.u.real == b.u.real;
    case JINJA_FUNCTION: return a.u.function == b.u.function;
    case JINJA_STRING:
        return a.u.str == b.u.str || (a.u.str->text && a.u.str->text == b.u.str->text && a.u.str->bytes == b.u.str->bytes);
    default: return a.u.str == b.u.str;   /* the same object */
    }
}

static bool equal_numbers(struct jinja_value a, struct jinja_value b)
{
    if (jinja_is_integer(a) && jinja_is_integer(b)) return jinja_integer_of(a) == jinja_integer_of(b);
    if (a.type == JINJA_FLOAT && b.type == JINJA_FLOAT) return a.u.real == b.u.real;
    return (long double)(a.type == JINJA_FLOAT ? a.u.real : (long double)jinja_integer_of(a))
        == (long double)(b.type == JINJA_FLOAT ? b.u.real : (long double)jinja_integer_of(b));
}

static bool equal_lists(struct jinja_run *r, const struct jinja_list *a, const struct jinja_list *b)
{
    if (a->count != b->count) return false;
    for (uint32_t i = 0; i < a->count; i++)
        if (!jinja_equal(r, a->items[i], b->items[i])) return false;
    return true;
}

static bool equal_dicts(struct jinja_run *r, const struct jinja_dict *a, const struct jinja_dict *b)
{
    if (a->count != b->count) return false;
    for (uint32_t i = 0; i < a->count; i++) {
        const struct jinja_value *other = jinja_dict_get(r, b, a->entries[i].key);
        if (!other || !jinja_equal(r, a->entries[i].value, *other)) return false;
    }
    return true;
}

static bool equal_ranges(const struct jinja_range *a, const struct jinja_range *b)
{
    return a->count == b->count && (!a->count || (a->start == b->start && (a->count == 1 || a->step == b->step)));
}

bool jinja_equal(struct jinja_run *r, struct jinja_value a, struct jinja_value b)
{
    bool equal;

    jinja_step(r, 1);
    if (jinja_is_number(a)) return jinja_is_number(b) && equal_numbers(a, b);
    if (a.type != b.type) return false;
    if (a.type == JINJA_STRING) return jinja_str_equal(r, a.u.str, b.u.str);
    if (a.type == JINJA_NONE || a.type == JINJA_UNDEFINED) return true;
    jinja_enter(r);
    if (a.type == JINJA_LIST || a.type == JINJA_TUPLE) equal = equal_lists(r, a.u.list, b.u.list);
    else if (a.type == JINJA_DICT) equal = equal_dicts(r, a.u.dict, b.u.dict);
    else if (a.type == JINJA_RANGE) equal = equal_ranges(a.u.range, b.u.range);
    else equal = jinja_same(a, b);
    jinja_leave(r);
    return equal;
}

__attribute__((noreturn))
static void fail_order(struct jinja_run *r, struct jinja_value a, struct jinja_value b, const char *sign)
{
    if (a.type == JINJA_UNDEFINED) jinja_fail_undefined(r, a);
    if (b.type == JINJA_UNDEFINED) jinja_fail_undefined(r, b);
    jinja_fail(r, E_FORMAT, "'%s' not supported between instances of '%s' and '%s'", sign, jinja_type_name(a), jinja_type_name(b));
}

int jinja_compare(struct jinja_run *r, struct jinja_value a, struct jinja_value b, const char *sign, bool *unordered)
{
    jinja_step(r, 1);
    *unordered = false;
    if (jinja_is_number(a) && jinja_is_number(b)) {
        long double x, y;
        if (jinja_is_integer(a) && jinja_is_integer(b)) {
            const int64_t i = jinja_integer_of(a), j = jinja_integer_of(b);
            return (i > j) - (i < j);
        }
        x = a.type == JINJA_FLOAT ? a.u.real : (long double)jinja_integer_of(a);
        y = b.type == JINJA_FLOAT ? b.u.real : (long double)jinja_integer_of(b);
        *unordered = isnan(x) || isnan(y);
        return (x > y) - (x < y);
    }
    if (a.type != b.type) fail_order(r, a, b, sign);
    if (a.type == JINJA_STRING) return jinja_str_compare(r, a.u.str, b.u.str);
    if (a.type == JINJA_LIST || a.type == JINJA_TUPLE) {
        const struct jinja_list *x = a.u.list, *y = b.u.list;
        int c = 0;
        uint32_t i = 0;
        while (i < x->count && i < y->count && jinja_equal(r, x->items[i], y->items[i])) i++;
        if (i == x->count || i == y->count) return (x->count > y->count) - (x->count < y->count);
        jinja_enter(r);
        c = jinja_compare(r, x->items[i], y->items[i], sign, unordered);
        jinja_leave(r);
        return c;
    }
    fail_order(r, a, b, sign);
}

static uint32_t mix(uint64_t x)
{
    x *= 0x9e3779b97f4a7c15ull;
    x ^= x >> 29;
    return (uint32_t)(x >> 16);
}

/* Equal values hash alike: 1, 1.0 and True are one key. */
uint32_t jinja_hash(struct jinja_run *r, struct jinja_value v)
{
    switch (v.type) {
    case JINJA_STRING: return jinja_str_hash(r, v.u.str);
    case JINJA_BOOL: case JINJA_INT: return mix((uint64_t)jinja_integer_of(v) + 7);
    case JINJA_FLOAT:
        if (v.u.real >= -9.2e18 && v.u.real <= 9.2e18 && v.u.real == (double)(int64_t)v.u.real) return mix((uint64_t)(int64_t)v.u.real + 7);
        return mix((uint64_t)(v.u.real * 1048576.0 < 9e18 && v.u.real * 1048576.0 > -9e18 ? (int64_t)(v.u.real * 1048576.0) : 1));
    case JINJA_NONE: return 3;
    case JINJA_UNDEFINED: return 5;
    case JINJA_TUPLE: {
        uint32_t h = 17;
        jinja_enter(r);
        for (uint32_t i = 0; i < v.u.list->count; i++) h = mix(h * 31ull + jinja_hash(r, v.u.list->items[i]));
        jinja_leave(r);
        return h;
    }
    case JINJA_LIST: case JINJA_DICT: case JINJA_KEYS: case JINJA_ITEMS:
        jinja_fail(r, E_FORMAT, "unhashable type: '%s'", jinja_type_name(v));
    default: return mix((uint64_t)(uintptr_t)v.u.str);
    }
}

bool jinja_contains(struct jinja_run *r, struct jinja_value holder, struct jinja_value item)
{
    struct jinja_seq s;

    switch (holder.type) {
    case JINJA_STRING:
        if (item.type == JINJA_UNDEFINED) jinja_fail(r, E_FORMAT, "'in <string>' requires string as left operand, not Undefined");
        if (item.type != JINJA_STRING) jinja_fail(r, E_FORMAT, "'in <string>' requires string as left operand, not %s", jinja_type_name(item));
        return jinja_str_find(r, holder.u.str, item.u.str, 0) != UINT32_MAX;
    case JINJA_DICT: case JINJA_KEYS: return jinja_dict_get(r, holder.u.dict, item) != NULL;
    case JINJA_NAMESPACE: case JINJA_MACRO: case JINJA_METHOD: case JINJA_FUNCTION: case JINJA_NONE: case JINJA_BOOL: case JINJA_INT:
    case JINJA_FLOAT: case JINJA_CYCLER: case JINJA_JOINER:
        jinja_fail(r, E_FORMAT, "argument of type '%s' is not iterable", jinja_type_name(holder));
    default: break;
    }
    s = jinja_sequence(r, holder);
    for (uint32_t i = 0; i < s.count; i++)
        if (jinja_equal(r, jinja_seq_at(&s, i), item)) return true;
    return false;
}
