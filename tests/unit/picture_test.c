/* tests/unit/picture_test.c - sizes, resampling and patches equal the reference processors', bit for bit.
 * Golden data: tests/golden/media/picture.txt, made by tests/oracle/make_picture_golden.py. */
#include "model/picture_passes.h"

#include "shm/error.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#define GOLDEN "tests/golden/media/picture.txt"

static uint8_t *draw(uint32_t width, uint32_t height, uint64_t seed) /* as the golden script draws */
{
    const size_t n = (size_t)width * height * 3;
    uint8_t *rgb = malloc(n);
    uint64_t state = seed * 2 + 1;

    assert_non_null(rgb);
    for (size_t i = 0; i < n; i++) {
        state *= 6364136223846793005ull;
        const uint8_t v = (uint8_t)(state >> 56);
        rgb[i] = seed % 2 ? v : v > 127 ? 255 : 0;
    }
    return rgb;
}

static uint64_t fnv(const uint8_t *data, size_t bytes)
{
    uint64_t h = 0xcbf29ce484222325ull;

    for (size_t i = 0; i < bytes; i++) h = (h ^ data[i]) * 0x100000001b3ull;
    return h;
}

static void check_target(const char *line)
{
    uint32_t w, h, budget, tw, th, got_w = 0, got_h = 0;

    assert_int_equal(sscanf(line, "target %u %u %u %u %u", &w, &h, &budget, &tw, &th), 5);
    const int rc = picture_target(w, h, budget, &got_w, &got_h);
    if (rc != (tw ? 0 : -E_RANGE) || got_w != tw || got_h != th) fail_msg("%s: got %d, %u x %u", line, rc, got_w, got_h);
}

static void check_resize(const char *line)
{
    uint32_t w, h, ow, oh, filter, seed;
    unsigned long long wanted;

    assert_int_equal(sscanf(line, "resize %u %u %u %u %u %u %llx", &w, &h, &ow, &oh, &filter, &seed, &wanted), 7);
    uint8_t *rgb = draw(w, h, seed), *out = malloc((size_t)ow * oh * 3);
    assert_int_equal(picture_resize(rgb, w, h, out, ow, oh, (enum picture_filter)filter), 0);
    if (fnv(out, (size_t)ow * oh * 3) != wanted) fail_msg("%s: other pixels", line);
    free(rgb);
    free(out);
}

static void check_patches(const char *line)
{
    uint32_t w, h, budget, seed, count, tw, th;
    unsigned long long wanted;

    assert_int_equal(sscanf(line, "patches %u %u %u %u %u %llx", &w, &h, &budget, &seed, &count, &wanted), 6);
    assert_int_equal(picture_target(w, h, budget, &tw, &th), 0);
    assert_int_equal(tw / PICTURE_PATCH * (th / PICTURE_PATCH), count);
    const size_t bytes = (size_t)count * PICTURE_PATCH_BYTES;
    uint8_t *rgb = draw(w, h, seed), *resized = malloc(bytes), *out = malloc(bytes);
    assert_int_equal(picture_resize(rgb, w, h, resized, tw, th, PICTURE_BICUBIC), 0);
    picture_patches(resized, tw, th, out);
    if (fnv(out, bytes) != wanted) fail_msg("%s: other patches", line);
    free(rgb);
    free(resized);
    free(out);
}

static void test_golden(void **state)
{
    char line[256];
    unsigned lines = 0;
    FILE *f = fopen(GOLDEN, "r");

    (void)state;
    assert_non_null(f);
    for (; fgets(line, sizeof line, f); lines++) {
        if (line[0] == 't') check_target(line);
        else if (line[0] == 'r') check_resize(line);
        else check_patches(line);
    }
    fclose(f);
    assert_true(lines > 800);
}

static void test_refusals(void **state)
{
    uint8_t pixel[3] = {1, 2, 3}, out[3];
    uint32_t w, h;

    (void)state;
    assert_int_equal(picture_target(0, 5, 280, &w, &h), -E_RANGE);
    assert_int_equal(picture_target(5, 0, 280, &w, &h), -E_RANGE);
    assert_int_equal(picture_target(PICTURE_SIDE_MAX + 1, 5, 280, &w, &h), -E_RANGE);
    assert_int_equal(picture_target(640, 480, 281, &w, &h), -E_RANGE);
    assert_int_equal(picture_resize(pixel, 1, 1, out, 0, 1, PICTURE_BICUBIC), -E_RANGE);
    assert_int_equal(picture_resize(pixel, 1, UINT32_MAX, out, 1, 1, PICTURE_BICUBIC), -E_RANGE);
}

/* ---- instruction sets ------------------------------------------------------------------- */

/* Rows at the end of a page that is followed by one that cannot be read: a load that goes too far ends the test. */
static uint8_t *draw_at_edge(uint32_t width, uint32_t rows, void **mapping, size_t *mapped)
{
    const size_t n = (size_t)width * rows * 3, page = 4096, bytes = (n + page - 1) / page * page;
    uint8_t *drawn = draw(width, rows, width + rows), *at = mmap(NULL, bytes + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    assert_true(at != MAP_FAILED);
    assert_int_equal(mprotect(at + bytes, page, PROT_NONE), 0);
    memcpy(at + bytes - n, drawn, n);
    free(drawn);
    *mapping = at;
    *mapped = bytes + page;
    return at + bytes - n;
}

static void compare_passes(const struct picture_passes *p, uint32_t in, uint32_t out, uint32_t other, enum picture_filter filter)
{
    struct picture_taps t = {0};
    void *mapping;
    size_t mapped;
    const uint8_t *rgb = draw_at_edge(in, other, &mapping, &mapped);
    const size_t bytes = (size_t)out * other * 3;
    uint8_t *want = malloc(bytes), *got = malloc(bytes); /* exact, so that a sanitizer sees a store beyond */

    assert_int_equal(picture_taps_open(&t, in, out, filter), 0);
    assert_int_equal(picture_taps_arrange(&t, out, p), 0);
    picture_passes_portable.across(rgb, in, other, want, out, &t);
    p->across(rgb, in, other, got, out, &t);
    if (memcmp(got, want, bytes) != 0) fail_msg("%u to %u pixels, %u rows, filter %d", in, out, other, (int)filter);
    for (uint32_t i = 0; i < out; i++) { /* the same bytes as `in` rows of `other` pixels */
        picture_passes_portable.down(rgb + (size_t)t.first[i] * other * 3, other * 3, want, i, &t);
        p->down(rgb + (size_t)t.first[i] * other * 3, other * 3, got, i, &t);
        if (memcmp(got, want, (size_t)other * 3) != 0) fail_msg("%u to %u rows, row %u, %u pixels, filter %d", in, out, i, other, (int)filter);
    }
    picture_taps_close(&t);
    munmap(mapping, mapped);
    free(want), free(got);
}

static void test_every_instruction_set_computes_the_same(void **state)
{
    static const struct { uint32_t in, out; } sides[] = {{1920, 1056}, {1080, 576}, {2000, 1008}, {4000, 1008}, {3000, 630}, {9000, 700}, {100, 99}, {5, 480}, {1, 48}, {48, 1}, {7, 3}, {16, 15}, {21, 20}, {64, 5}, {333, 61}, {97, 194}};
    const struct picture_passes *passes[3];
    int count = 0;

    (void)state;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) passes[count++] = &picture_passes_avx2;
    if (picture_avx512vbmi_is_here()) passes[count++] = &picture_passes_avx512vbmi;
#endif
    if (count == 0) skip();
    for (int p = 0; p < count; p++)
        for (size_t i = 0; i < sizeof sides / sizeof *sides; i++)
            for (uint32_t rows = 1; rows <= 25; rows += 3) {
                compare_passes(passes[p], sides[i].in, sides[i].out, rows, PICTURE_BICUBIC);
                if (rows % 2) compare_passes(passes[p], sides[i].in, sides[i].out, rows, PICTURE_BILINEAR);
            }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_golden), cmocka_unit_test(test_refusals), cmocka_unit_test(test_every_instruction_set_computes_the_same)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
