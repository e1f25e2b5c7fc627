/* tests/unit/kv_test.c - the arithmetic of the paged arena and of the hidden states: the real sizes, no two things in one place, the ring. */
#include "model/kv.h"
#include "model/states.h"
#include "shm/error.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static void make_config(struct model_config *c, uint32_t layers, uint32_t window)
{
    memset(c, 0, sizeof(*c));
    c->layer_count = layers;
    c->window = window;
    c->max_position = 262144;
    c->q_heads = 16;
    for (uint32_t i = 0; i < layers; i++) {
        const bool full = i % 6 == 5;

        c->layer[i] = (struct layer_config){ .type = full ? LAYER_FULL : LAYER_SLIDING, .head_dim = full ? 512 : 256, .kv_heads = full ? 1 : 8, .has_v = !full };
    }
}

static void test_the_12b_model_has_the_published_sizes(void **state)
{
    struct model_config c;
    struct kv_geometry geo;

    (void)state;
    make_config(&c, 48, 1024);
    assert_int_equal(kv_geometry_init(&geo, &c, KV_BF16, 262144, 64, 1000, 100), 0);
    assert_int_equal(geo.full_page_bytes / KV_PAGE_TOKENS, 16384);
    assert_int_equal(geo.sliding_page_bytes / KV_PAGE_TOKENS, 327680);
    assert_int_equal(geo.full_pages_per_seq, 8192);
    assert_int_equal(geo.ring_tokens, 1088);                 /* 1023 + 64 = 1087, whole pages */
    assert_int_equal(geo.sliding_pages_per_seq, 34);
    assert_int_equal(geo.sliding_offset, 1000 * geo.full_page_bytes);
    assert_int_equal(geo.arena_bytes, 1000 * geo.full_page_bytes + 100 * geo.sliding_page_bytes);
    assert_int_equal(kv_full_pages_needed(&geo, 0), 0);
    assert_int_equal(kv_full_pages_needed(&geo, 33), 2);
    assert_int_equal(kv_sliding_pages_needed(&geo, 1), 1);
    assert_int_equal(kv_sliding_pages_needed(&geo, 5000), 34);
    assert_int_equal(kv_full_pages_needed(&geo, 262144), 8192);
}

static void test_fp8_takes_half_of_the_bytes_and_no_scales(void **state)
{
    struct model_config c;
    struct kv_geometry wide, narrow;

    (void)state;
    make_config(&c, 48, 1024);
    assert_int_equal(kv_geometry_init(&wide, &c, KV_BF16, 8192, 64, 1000, 100), 0);
    assert_int_equal(kv_geometry_init(&narrow, &c, KV_FP8, 8192, 64, 1000, 100), 0);
    assert_int_equal(narrow.element_bytes, 1);
    assert_int_equal(2 * narrow.full_page_bytes, wide.full_page_bytes);
    assert_int_equal(2 * narrow.sliding_page_bytes, wide.sliding_page_bytes);
    for (uint32_t i = 0; i < 48; i++) assert_true(2 * narrow.layer[i].k_offset == wide.layer[i].k_offset && 2 * narrow.layer[i].v_offset == wide.layer[i].v_offset);
    for (uint32_t dtype = KV_BF16; dtype <= KV_FP8; dtype++) assert_int_equal(kv_dtype_named(kv_dtype_name(dtype)), dtype);
    assert_int_equal(kv_dtype_named("auto"), 0);
    assert_int_equal(kv_dtype_named(""), 0);
}

static void test_a_short_context_needs_no_ring(void **state)
{
    struct model_config c;
    struct kv_geometry geo;

    (void)state;
    make_config(&c, 6, 1024);
    assert_int_equal(kv_geometry_init(&geo, &c, KV_F32, 100, 64, 1, 1), 0);
    assert_int_equal(geo.ring_tokens, 128);
    assert_int_equal(geo.element_bytes, 4);
    for (uint32_t p = 0; p < 100; p++) assert_int_equal(kv_sliding_index(&geo, p), p / KV_PAGE_TOKENS);
}

/* Marks every element of every token, head, layer and page of a small arena: each byte is used once at most. */
static void test_no_two_tokens_share_a_byte(void **state)
{
    struct model_config c;
    struct kv_geometry geo;
    uint8_t *used;
    uint64_t total = 0;

    (void)state;
    make_config(&c, 12, 32);
    assert_int_equal(kv_geometry_init(&geo, &c, KV_BF16, 64, 8, 2, 3), 0);
    used = calloc(geo.arena_bytes, 1);
    for (uint32_t layer = 0; layer < 12; layer++) {
        const uint32_t pages = geo.layer[layer].type == LAYER_FULL ? 2 : 3, bytes = geo.layer[layer].head_dim * 2;

        for (uint32_t page = 0; page < pages; page++)
            for (uint32_t head = 0; head < geo.layer[layer].kv_heads; head++)
                for (uint32_t token = 0; token < KV_PAGE_TOKENS; token++)
                    for (int value = 0; value < 2; value++) {
                        const uint64_t at = kv_token_offset(&geo, layer, value, page, head, token);

                        assert_true(at + bytes <= geo.arena_bytes && at % 64 == 0);
                        for (uint32_t i = 0; i < bytes; i += 64) assert_int_equal(used[at + i]++, 0);
                        total += bytes;
                    }
    }
    assert_true(total <= geo.arena_bytes && geo.arena_bytes - total < 2 * 4096);
    free(used);
}

/* While any block of rows_max rows runs, the keys that its rows may see and the rows themselves are all in different places. */
static void test_the_ring_holds_the_window_and_the_block(void **state)
{
    struct model_config c;
    struct kv_geometry geo;

    (void)state;
    for (uint32_t window = 1; window < 100; window += 7)
        for (uint32_t rows = 1; rows < 80; rows += 13) {
            make_config(&c, 6, window);
            assert_int_equal(kv_geometry_init(&geo, &c, KV_BF16, 4096, rows, 0, 0), 0);
            for (uint32_t p = window; p < 600; p += 37) {
                const uint32_t oldest = p - window + 1, newest = p + rows - 1;

                assert_true(newest - oldest < geo.ring_tokens);
                assert_int_equal(geo.ring_tokens, geo.sliding_pages_per_seq * KV_PAGE_TOKENS);
                assert_true(kv_sliding_index(&geo, newest) < geo.sliding_pages_per_seq);
            }
        }
}

static void test_bad_sizes_are_refused(void **state)
{
    struct model_config c;
    struct kv_geometry geo;

    (void)state;
    make_config(&c, 48, 1024);
    assert_int_equal(kv_geometry_init(&geo, &c, KV_BF16, 0, 1, 1, 1), -E_RANGE);
    assert_int_equal(kv_geometry_init(&geo, &c, KV_BF16, 262145, 1, 1, 1), -E_RANGE);
    assert_int_equal(kv_geometry_init(&geo, &c, KV_BF16, 1, 0, 1, 1), -E_RANGE);
    assert_int_equal(kv_geometry_init(&geo, &c, (enum kv_dtype)4, 1, 1, 1, 1), -E_RANGE);
    c.layer[0].kv_heads = 1u << 31;
    assert_int_equal(kv_geometry_init(&geo, &c, KV_BF16, 1, 1, 1, UINT32_MAX), -E_RANGE);
}

static void test_hidden_states_have_a_row_each(void **state)
{
    (void)state;
    assert_int_equal(states_bytes(128, 3840), 128ull * 16 * 3840 * 4);
    assert_int_equal(states_offset(0, 0, 3840), 0);
    assert_int_equal(states_offset(0, STATES_ROWS - 1, 3840) + 3840 * 4, states_offset(1, 0, 3840)); /* slots touch and do not overlap */
    assert_int_equal(states_offset(3, 5 + STATES_ROWS, 3840), states_offset(3, 5, 3840));
    assert_int_equal(states_offset(127, STATES_ROWS - 1, 3840) + 3840 * 4, states_bytes(128, 3840));
    assert_true(states_bytes(4096, 3840) < 1ull << 30);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_12b_model_has_the_published_sizes),
        cmocka_unit_test(test_fp8_takes_half_of_the_bytes_and_no_scales),
        cmocka_unit_test(test_a_short_context_needs_no_ring),
        cmocka_unit_test(test_no_two_tokens_share_a_byte),
        cmocka_unit_test(test_the_ring_holds_the_window_and_the_block),
        cmocka_unit_test(test_bad_sizes_are_refused),
        cmocka_unit_test(test_hidden_states_have_a_row_each),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
