/* tests/unit/features_test.c - rows of layers' outputs: found when they are there, and never another position's, sequence's or set of layers'; a reader beside
 * a writer gets whole rows or none. */
#include "model/features.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define HIDDEN 16u
#define LAYERS 0x25u /* 0, 2, 5 */
#define FLOATS (3 * HIDDEN)

static struct features open_features(uint32_t context, uint32_t context_max)
{
    struct features f;

    features_init(&f, 2, context, context_max, HIDDEN);
    f.base = aligned_alloc(64, features_bytes(&f));
    memset(f.base, 0, features_bytes(&f));
    return f;
}

static void put(const struct features *f, uint32_t slot, uint32_t generation, uint32_t position, uint64_t layers, float value)
{
    float *to = features_begin(f, slot, position);

    for (uint32_t i = 0; i < features_floats(f, layers); i++) to[i] = value + (float)i;
    features_end(f, slot, generation, position, layers);
}

static void test_geometry(void **state)
{
    struct features f;

    (void)state;
    features_init(&f, 3, 100, 4096, HIDDEN);
    assert_int_equal(f.rows, 100 + FEATURES_SLACK_ROWS);
    assert_int_equal(f.row_bytes % 64, 0);
    assert_true(f.row_bytes >= 64 + FEATURES_SOURCES_MAX * HIDDEN * sizeof(float));
    assert_int_equal(features_bytes(&f), 3 * f.rows * f.row_bytes);
    features_init(&f, 3, 4000, 4010, HIDDEN);
    assert_int_equal(f.rows, 4010);
    features_init(&f, 3, UINT32_MAX, 4010, HIDDEN);
    assert_int_equal(f.rows, 4010);
    assert_int_equal(features_floats(&f, LAYERS), FLOATS);
    assert_true(features_layers_ok(LAYERS, 6));
    assert_true(features_layers_ok(0, 6));
    assert_false(features_layers_ok(LAYERS, 5));
    assert_true(features_layers_ok(0xffull << 56, 64));
    assert_true(features_layers_ok(1ull << 63, 128));
    assert_false(features_layers_ok(0x1ff, 48));
}

/* On a GPU: fewer places than slots, a row for just the layers that are wanted, BF16. */
static void test_places(void **state)
{
    struct features f;

    (void)state;
    features_init_device(&f, 5, 100, 4096, HIDDEN, 3, 2);
    assert_int_equal(f.rows, 100 + FEATURES_SLACK_ROWS);
    assert_int_equal(f.row_bytes, (64 + 3 * HIDDEN * 2 + 63) / 64 * 64);
    assert_int_equal(features_bytes(&f), 5 * f.rows * f.row_bytes);
    assert_int_equal(features_offset(&f, 7, 3), features_offset(&f, 2, 3));
    assert_int_equal(features_offset(&f, 4, f.rows + 3), (4ull * f.rows + 3) * f.row_bytes);
    assert_true(features_whose(2, 1) != features_whose(1, 2));
}

static void test_rows(void **state)
{
    struct features f = open_features(8, 1000); /* 40 rows */
    float out[FLOATS];

    (void)state;
    assert_false(features_take(&f, 1, 7, 3, LAYERS, out));
    put(&f, 1, 7, 3, LAYERS, 100);
    assert_true(features_take(&f, 1, 7, 3, LAYERS, out));
    for (uint32_t i = 0; i < FLOATS; i++) assert_true(out[i] == 100 + (float)i);
    assert_false(features_take(&f, 0, 7, 3, LAYERS, out));     /* another slot */
    assert_false(features_take(&f, 1, 8, 3, LAYERS, out));     /* another sequence */
    assert_false(features_take(&f, 1, 7, 43, LAYERS, out));    /* the same row, a later position */
    assert_false(features_take(&f, 1, 7, 3, LAYERS | 2, out)); /* other layers */
    assert_false(features_take(&f, 1, 7, 3, 0, out));
    put(&f, 1, 7, 43, LAYERS, 5);
    assert_false(features_take(&f, 1, 7, 3, LAYERS, out));     /* overwritten */
    assert_true(features_take(&f, 1, 7, 43, LAYERS, out));
    features_begin(&f, 1, 43);                                 /* its writer died here */
    assert_false(features_take(&f, 1, 7, 43, LAYERS, out));
    free(f.base);
}

static void test_a_row_goes_to_another_sequence(void **state)
{
    struct features f = open_features(8, 1000);
    float out[FLOATS];

    (void)state;
    put(&f, 1, 7, 3, LAYERS, 100);
    features_copy(&f, 1, 7, 0, 9, 3, LAYERS);
    assert_true(features_take(&f, 0, 9, 3, LAYERS, out) && out[FLOATS - 1] == 100 + (float)(FLOATS - 1));
    assert_true(features_take(&f, 1, 7, 3, LAYERS, out)); /* it is still its own */
    put(&f, 0, 9, 4, LAYERS, 55);
    features_copy(&f, 1, 7, 0, 9, 4, LAYERS);             /* not there: what is here stays */
    assert_true(features_take(&f, 0, 9, 4, LAYERS, out) && out[0] == 55);
    features_copy(&f, 1, 7, 1, 8, 3, LAYERS);             /* the slot's next sequence */
    assert_true(features_take(&f, 1, 8, 3, LAYERS, out) && out[0] == 100);
    assert_false(features_take(&f, 1, 7, 3, LAYERS, out));
    free(f.base);
}

struct race { struct features f; uint32_t round; int stop; };

/* One row, later and later positions, as a ring that goes round. */
static void *write_always(void *context)
{
    struct race *r = context;

    for (uint32_t round = 1; !__atomic_load_n(&r->stop, __ATOMIC_RELAXED); round = round % 1000000 + 1) {
        put(&r->f, 0, 1, round * r->f.rows, LAYERS, (float)round);
        __atomic_store_n(&r->round, round, __ATOMIC_RELAXED);
    }
    return NULL;
}

/* A reader of the newest position while the writer goes on: a row is that position's, or none. */
static void test_race(void **state)
{
    struct race r = {.f = open_features(8, 1000)};
    uint32_t found = 0;
    pthread_t thread;

    (void)state;
    assert_int_equal(pthread_create(&thread, NULL, write_always, &r), 0);
    while (found < 2000) {
        float out[FLOATS];
        const uint32_t round = __atomic_load_n(&r.round, __ATOMIC_RELAXED);
        if (!features_take(&r.f, 0, 1, round * r.f.rows, LAYERS, out)) continue;
        found++;
        for (uint32_t i = 0; i < FLOATS; i++) assert_true(out[i] == (float)(round + i));
    }
    __atomic_store_n(&r.stop, 1, __ATOMIC_RELAXED);
    pthread_join(thread, NULL);
    free(r.f.base);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_geometry), cmocka_unit_test(test_places), cmocka_unit_test(test_rows), cmocka_unit_test(test_a_row_goes_to_another_sequence), cmocka_unit_test(test_race)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
