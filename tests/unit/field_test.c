/* tests/unit/field_test.c - JSON whose long strings go past the library (schemas/field_long.c) is what the library makes of the whole text, or refused in the same words. */
#include "schemas/field.h"
#include "schemas/field_long.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define TEXT_BYTES (2u << 20)
#define TEXTS 400

static uint64_t state_of = 11;

static uint32_t some(uint32_t below)
{
    state_of = state_of * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)((state_of >> 33) % below);
}

struct text { char *data; size_t bytes; };

static void add(struct text *t, const char *s)
{
    const size_t n = strlen(s);

    if (n > TEXT_BYTES - t->bytes) return;
    memcpy(t->data + t->bytes, s, n);
    t->bytes += n;
}

/* A string just below, at or beyond the length that counts; sometimes with something in it that is not plain. */
static void add_string(struct text *t)
{
    static const char *const odd[] = {"\\\"", "\\\\", "\\u0041", "\\n", "\xc3\xa9", "\x01", "\\u0000", "\xff", "\\", "\x7f"};
    static char plain[FIELD_LONG_BYTES * 2];
    const uint32_t length = some(3) ? some(20) : FIELD_LONG_BYTES - 2 + some(5) + (some(2) ? some(9000) : 0);

    for (uint32_t i = 0; i < length; i++) plain[i] = "ABCxyz019+/=:,{}[] "[some(19)];
    plain[length] = '\0';
    add(t, "\"");
    add(t, plain);
    if (some(4) == 0) add(t, odd[some(40) ? some(5) : some(10)]);
    plain[length / 3] = '\0';
    if (some(2)) add(t, plain);
    add(t, "\"");
}

static void add_value(struct text *t, uint32_t depth)
{
    const uint32_t kind = some(depth > 4 ? 3 : 6), count = some(5);

    if (kind < 2) add_string(t);
    else if (kind == 2) add(t, some(2) ? "17" : "null");
    else {
        add(t, kind == 3 ? "[" : "{");
        for (uint32_t i = 0; i < count; i++) {
            char key[32];
            if (i) add(t, some(9) ? "," : " , ");
            if (kind != 3) {
                if (some(12) == 0) add_string(t);
                else {
                    snprintf(key, sizeof key, "\"k%u\"", some(20) ? i : 0);
                    add(t, key);
                }
                add(t, some(3) ? ":" : " \n: ");
            }
            add_value(t, depth + 1);
        }
        add(t, kind == 3 ? "]" : "}");
    }
}

static void compare(const char *text, size_t bytes, int count[2])
{
    json_error_t error;
    struct fault f = {0};
    json_t *wanted = json_loadb(text, bytes, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &error), *got = field_parse(text, bytes, &f);

    count[got != NULL]++;
    if (wanted && json_is_object(wanted)) {
        assert_non_null(got);
        assert_true(json_equal(got, wanted));
    } else {
        assert_null(got);
        if (!wanted && json_error_code(&error) != json_error_null_character) {
            char where[80];
            snprintf(where, sizeof where, "(line %d, column %d).", error.line, error.column);
            assert_true(strstr(f.message, where) || strstr(f.message, "nested deeper")); /* which is looked at first */
        }
    }
    json_decref(wanted);
    json_decref(got);
}

static void test_what_comes_out_is_what_the_library_makes_of_it(void **state)
{
    struct text t = {.data = malloc(TEXT_BYTES)};
    int count[2] = {0};

    (void)state;
    for (int i = 0; i < TEXTS; i++) {
        t.bytes = 0;
        add(&t, "{\"a\":");
        add_value(&t, 0);
        add(&t, ",\"b\":");
        add_value(&t, 0);
        add(&t, "}");
        compare(t.data, t.bytes, count);
        if (some(3) == 0) t.data[some((uint32_t)t.bytes)] = "\"\\{]:,x"[some(7)];
        compare(t.data, some(3) ? t.bytes : some((uint32_t)t.bytes), count);
    }
    print_message("%d taken, %d refused\n", count[1], count[0]);
    assert_true(count[0] > TEXTS / 4 && count[1] > TEXTS / 4);
    free(t.data);
}

static void test_long_strings_are_cut_out(void **state)
{
    struct text t = {.data = malloc(8 << 20)};
    struct field_long l;
    char *plain = calloc(1, FIELD_LONG_BYTES + 1);

    (void)state;
    memset(plain, 'A', FIELD_LONG_BYTES);
    add(&t, "{\"k\":[");
    for (unsigned i = 0; i < 100; i++) {
        add(&t, i ? ",\"" : "\"");
        add(&t, plain);
        add(&t, "\"");
    }
    add(&t, "]}");
    assert_int_equal(field_long_cut(&l, t.data, t.bytes), 0);
    assert_int_equal(l.count, 100);
    assert_true(l.bytes < 100 * 50);
    field_long_close(&l);
    t.bytes = (size_t)snprintf(t.data, TEXT_BYTES, "{\"%s\":1}", plain); /* a key stays */
    assert_int_equal(field_long_cut(&l, t.data, t.bytes), 0);
    assert_null(l.text);
    field_long_close(&l);
    free(plain);
    free(t.data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_what_comes_out_is_what_the_library_makes_of_it), cmocka_unit_test(test_long_strings_are_cut_out)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
