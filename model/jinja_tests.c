/* model/jinja_tests.c - what may stand behind `is` (model/jinja_eval.h).
 *
 * Owns     nothing
 * Fails    by the run: wrong arguments. */
#include <string.h>

#include "model/jinja_eval.h"
#include "model/jinja_lex.h"
#include "model/jinja_unicode.h"
#include "shm/error.h"
#include "shm/must.h"

enum test {
    TEST_BOOLEAN, TEST_CALLABLE, TEST_DEFINED, TEST_DIVISIBLEBY, TEST_EQ, TEST_ESCAPED, TEST_EVEN, TEST_FALSE, TEST_FILTER, TEST_FLOAT,
    TEST_GE, TEST_GT, TEST_IN, TEST_INTEGER, TEST_ITERABLE, TEST_LE, TEST_LOWER, TEST_LT, TEST_MAPPING, TEST_NE, TEST_NONE, TEST_NUMBER,
    TEST_ODD, TEST_SAMEAS, TEST_SEQUENCE, TEST_STRING, TEST_TEST, TEST_TRUE, TEST_UNDEFINED, TEST_UPPER,
};

struct test_name { const char *name; uint8_t test, arguments; };

static const struct test_name tests[] = {
    {"boolean", TEST_BOOLEAN, 0}, {"callable", TEST_CALLABLE, 0}, {"defined", TEST_DEFINED, 0}, {"divisibleby", TEST_DIVISIBLEBY, 1},
    {"eq", TEST_EQ, 1}, {"equalto", TEST_EQ, 1}, {"==", TEST_EQ, 1}, {"escaped", TEST_ESCAPED, 0}, {"even", TEST_EVEN, 0},
    {"false", TEST_FALSE, 0}, {"filter", TEST_FILTER, 0}, {"float", TEST_FLOAT, 0}, {"ge", TEST_GE, 1}, {">=", TEST_GE, 1},
    {"gt", TEST_GT, 1}, {"greaterthan", TEST_GT, 1}, {">", TEST_GT, 1}, {"in", TEST_IN, 1}, {"integer", TEST_INTEGER, 0},
    {"iterable", TEST_ITERABLE, 0}, {"le", TEST_LE, 1}, {"<=", TEST_LE, 1}, {"lower", TEST_LOWER, 0}, {"lt", TEST_LT, 1},
    {"lessthan", TEST_LT, 1}, {"<", TEST_LT, 1}, {"mapping", TEST_MAPPING, 0}, {"ne", TEST_NE, 1}, {"!=", TEST_NE, 1},
    {"none", TEST_NONE, 0}, {"number", TEST_NUMBER, 0}, {"odd", TEST_ODD, 0}, {"sameas", TEST_SAMEAS, 1}, {"sequence", TEST_SEQUENCE, 0},
    {"string", TEST_STRING, 0}, {"test", TEST_TEST, 0}, {"true", TEST_TRUE, 0}, {"undefined", TEST_UNDEFINED, 0}, {"upper", TEST_UPPER, 0},
};

uint16_t jinja_test_find(const char *name, size_t bytes)
{
    for (uint16_t i = 0; i < sizeof tests / sizeof *tests; i++)
        if (strlen(tests[i].name) == bytes && memcmp(tests[i].name, name, bytes) == 0) return i;
    return UINT16_MAX;
}

static bool is_callable(struct jinja_value v)
{
    switch (v.type) {
    case JINJA_FUNCTION: case JINJA_METHOD: case JINJA_MACRO: case JINJA_LOOP: case JINJA_JOINER: case JINJA_UNDEFINED: return true;
    default: return false;
    }
}

static bool is_sequence(struct jinja_value v)
{
    switch (v.type) {   /* has a length and can be indexed; sets of keys cannot */
    case JINJA_UNDEFINED: case JINJA_STRING: case JINJA_LIST: case JINJA_TUPLE: case JINJA_DICT: case JINJA_RANGE: return true;
    default: return false;
    }
}

static bool remainder_is(struct jinja_eval *e, struct jinja_value v, struct jinja_value by, int64_t wanted)
{
    const struct jinja_value rest = jinja_binary(e, '%', v, by);

    if (!jinja_is_number(rest)) jinja_fail(&e->run, E_FORMAT, "not all arguments converted during string formatting");
    return jinja_real_of(rest) == (double)wanted;
}

static bool has_case(struct jinja_eval *e, struct jinja_value v, bool upper)
{
    struct jinja_str *name = jinja_str_constant(&e->run, upper ? "isupper" : "islower", true);
    struct jinja_args none = {0};

    return jinja_call(e, jinja_attribute(e, jinja_string(jinja_str_of(&e->run, v)), name), &none).u.truth;
}

static bool known_name(struct jinja_eval *e, struct jinja_value v, bool filter)
{
    struct jinja_str *s;

    if (v.type != JINJA_STRING) return false;
    s = v.u.str;
    return (filter ? jinja_filter_find(jinja_str_text(&e->run, s), s->bytes) : jinja_test_find(jinja_str_text(&e->run, s), s->bytes)) != UINT16_MAX;
}

bool jinja_test(struct jinja_eval *e, uint16_t number, struct jinja_value v, struct jinja_args *args)
{
    static const char *const params[] = {"other"};
    const struct test_name *t = &tests[number];
    struct jinja_value other = jinja_missing();

    jinja_bind(e, t->name, args, params, t->arguments, t->arguments, &other);
    switch (t->test) {
    case TEST_BOOLEAN: return v.type == JINJA_BOOL;
    case TEST_CALLABLE: return is_callable(v);
    case TEST_DEFINED: return v.type != JINJA_UNDEFINED;
    case TEST_DIVISIBLEBY: return remainder_is(e, v, other, 0);
    case TEST_EQ: return jinja_equal(&e->run, v, other);
    case TEST_NE: return !jinja_equal(&e->run, v, other);
    case TEST_GE: return jinja_compared(e, COMPARE_GE, v, other);
    case TEST_GT: return jinja_compared(e, COMPARE_GT, v, other);
    case TEST_LE: return jinja_compared(e, COMPARE_LE, v, other);
    case TEST_LT: return jinja_compared(e, COMPARE_LT, v, other);
    case TEST_IN: return jinja_contains(&e->run, other, v);
    case TEST_ESCAPED: return v.type == JINJA_STRING && v.u.str->markup;
    case TEST_EVEN: return remainder_is(e, v, jinja_int(2), 0);
    case TEST_ODD: return remainder_is(e, v, jinja_int(2), 1);
    case TEST_FALSE: return v.type == JINJA_BOOL && !v.u.truth;
    case TEST_TRUE: return v.type == JINJA_BOOL && v.u.truth;
    case TEST_FILTER: return known_name(e, v, true);
    case TEST_TEST: return known_name(e, v, false);
    case TEST_FLOAT: return v.type == JINJA_FLOAT;
    case TEST_INTEGER: return v.type == JINJA_INT;
    case TEST_NUMBER: return jinja_is_number(v);
    case TEST_ITERABLE: return jinja_is_iterable(v);
    case TEST_LOWER: return has_case(e, v, false);
    case TEST_UPPER: return has_case(e, v, true);
    case TEST_MAPPING: return v.type == JINJA_DICT;
    case TEST_NONE: return v.type == JINJA_NONE;
    case TEST_SAMEAS: return jinja_same(v, other);
    case TEST_SEQUENCE: return is_sequence(v);
    case TEST_STRING: return v.type == JINJA_STRING;
    case TEST_UNDEFINED: return v.type == JINJA_UNDEFINED;
    default: must(!"a test"); return false;
    }
}
