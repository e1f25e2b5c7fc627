/* tests/unit/cache_test.c - stages/keeper/cache: page counts stay within the limit, and hold at least one whole sequence. */
#include "model/shapes.h"
#include "shm/error.h"
#include "stages/keeper/keeper.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>

#define GIB (1ull << 30)

static struct model_config config;
static struct kv_geometry g;

static int set_up(void **state)
{
    const struct model_shape *shape = model_shape_find("gemma-4-12b");
    struct model_error err;

    (void)state;
    return model_config_parse(&config, (const uint8_t *)shape->config, strlen(shape->config), &err);
}

static void test_everything_fits_when_there_is_room(void **state)
{
    const struct cache_wish wish = {.dtype = KV_BF16, .context = 4096, .rows_max = 2048, .sequences = 32, .limit_bytes = 100 * GIB};

    (void)state;
    assert_int_equal(cache_size(&g, &config, &wish), 0);
    assert_int_equal(g.full_page_count, 32 * g.full_pages_per_seq);
    assert_int_equal(g.sliding_page_count, 32 * g.sliding_pages_per_seq);
    assert_true(g.arena_bytes <= wish.limit_bytes);
}

static void test_long_contexts_share_the_full_pages(void **state)
{
    const struct cache_wish wish = {.dtype = KV_BF16, .context = 262144, .rows_max = 2048, .sequences = 32, .limit_bytes = 100 * GIB};

    (void)state;
    assert_int_equal(cache_size(&g, &config, &wish), 0);
    assert_int_equal(g.sliding_page_count, 32 * g.sliding_pages_per_seq); /* 1 GB a ring: 32 of them are less than half */
    assert_true(g.full_page_count < 32 * g.full_pages_per_seq && g.full_page_count >= g.full_pages_per_seq);
    assert_true(g.arena_bytes <= wish.limit_bytes && wish.limit_bytes - g.arena_bytes < g.full_page_bytes + 3 * 4096);
}

static void test_every_limit_is_kept(void **state)
{
    struct cache_wish wish = {.dtype = KV_BF16, .rows_max = 128, .sequences = 64};
    uint32_t fitting = 0;

    (void)state;
    for (wish.context = 32; wish.context <= 262144; wish.context *= 4)
        for (wish.limit_bytes = 1; wish.limit_bytes <= 64 * GIB; wish.limit_bytes = wish.limit_bytes * 3 + 4096) {
            const int rc = cache_size(&g, &config, &wish);
            if (rc == -E_LIMIT) continue;
            fitting++;
            assert_int_equal(rc, 0);
            assert_true(g.arena_bytes <= wish.limit_bytes);
            assert_true(g.full_page_count >= g.full_pages_per_seq && g.sliding_page_count >= g.sliding_pages_per_seq);
            assert_true(g.full_page_count <= wish.sequences * g.full_pages_per_seq && g.sliding_page_count <= wish.sequences * g.sliding_pages_per_seq);
            assert_int_equal(g.sliding_page_count % g.sliding_pages_per_seq, 0);
        }
    assert_true(fitting > 30);
}

static void test_one_byte_less_than_a_sequence_is_refused(void **state)
{
    struct cache_wish wish = {.dtype = KV_F32, .context = 1000, .rows_max = 13, .sequences = 8, .limit_bytes = GIB * 64};

    (void)state;
    assert_int_equal(cache_size(&g, &config, &wish), 0);
    wish.limit_bytes = g.full_pages_per_seq * g.full_page_bytes + g.sliding_pages_per_seq * g.sliding_page_bytes + 2 * 4096;
    assert_int_equal(cache_size(&g, &config, &wish), 0);
    assert_int_equal(g.full_page_count, g.full_pages_per_seq);
    wish.limit_bytes--;
    assert_int_equal(cache_size(&g, &config, &wish), -E_LIMIT);
    wish.limit_bytes = 0;
    assert_int_equal(cache_size(&g, &config, &wish), -E_LIMIT);
}

static void test_a_context_beyond_the_model_is_refused(void **state)
{
    const struct cache_wish wish = {.dtype = KV_BF16, .context = 262145, .rows_max = 128, .sequences = 1, .limit_bytes = 64 * GIB};

    (void)state;
    assert_int_equal(cache_size(&g, &config, &wish), -E_RANGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_everything_fits_when_there_is_room),
        cmocka_unit_test(test_long_contexts_share_the_full_pages),
        cmocka_unit_test(test_every_limit_is_kept),
        cmocka_unit_test(test_one_byte_less_than_a_sequence_is_refused),
        cmocka_unit_test(test_a_context_beyond_the_model_is_refused),
    };
    return cmocka_run_group_tests(tests, set_up, NULL);
}
