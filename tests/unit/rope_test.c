/* tests/unit/rope_test.c - rotary frequencies and angles against transformers' own. Golden data: tests/golden/forward/rope.*,
 * made by tests/oracle/make_forward_golden.py. */
#include "model/forward_rope.h"

#include "tests/read_whole.h"

#include <math.h>
#include <string.h>

#define GOLDEN "tests/golden/forward/"

static void test_rope_angles_equal_the_reference(void **state)
{
    static const struct { const char *name; struct rope_config rope; uint32_t dim, pairs; } kinds[] = {
        { "sliding_attention", { ROPE_DEFAULT, 1e4, 1, 1 }, 256, 128 },
        { "full_attention", { ROPE_PROPORTIONAL, 1e6, 0.25, 1 }, 512, 256 },
        { "gemma3_full", { ROPE_LINEAR, 1e6, 1, 8 }, 256, 128 },
    };
    uint64_t bytes;
    uint32_t *positions = read_whole(GOLDEN "rope.positions", &bytes);
    const uint32_t count = (uint32_t)bytes / 4;
    char path[128];

    (void)state;
    for (size_t kind = 0; kind < 3; kind++) {
        const uint32_t pairs = kinds[kind].pairs;
        struct rope_table table;
        float *golden, cosine[ROPE_PAIRS_MAX], sine[ROPE_PAIRS_MAX];
        uint32_t off = 0;

        snprintf(path, sizeof(path), GOLDEN "rope.%s", kinds[kind].name);
        golden = read_whole(path, &bytes);
        assert_int_equal(bytes, 4 * pairs * (1 + 2 * count));
        rope_table_init(&table, &kinds[kind].rope, kinds[kind].dim);
        for (uint32_t i = 0; i < pairs; i++) {
            const float ours = i < table.turned ? table.inv_freq[i] : 0.0f;

            if (memcmp(&ours, &golden[i], 4) != 0) off++;
            assert_true(fabsf(ours - golden[i]) <= golden[i] * 1.2e-7f);   /* one unit: their power function is not exact */
        }
        for (uint32_t p = 0; p < count; p++) {
            rope_table_angles(&table, positions[p], cosine, sine);
            for (uint32_t i = 0; i < table.turned; i++) {
                const float c = golden[pairs * (1 + p) + i], s = golden[pairs * (1 + count + p) + i];
                /* the angle may be off by a unit of its frequency and one of the product; cosine and sine by a unit of 1 */
                const float room = golden[i] * (float)positions[p] * 1.2e-7f * 2 + 1.2e-7f;

                assert_true(fabsf(cosine[i] - c) <= room && fabsf(sine[i] - s) <= room);
            }
        }
        print_message("  %s: %u of %u frequencies differ in the last place\n", kinds[kind].name, off, pairs);
        free(golden);
    }
    free(positions);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rope_angles_equal_the_reference)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
