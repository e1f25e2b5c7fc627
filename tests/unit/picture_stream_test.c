/* tests/unit/picture_stream_test.c - a picture taken row by row gives the bytes of turning, resizing and cutting it as a whole. */
#include "model/picture_stream.h"

#include "shm/error.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static uint64_t state_of = 1;

static uint32_t some(uint32_t below)
{
    state_of = state_of * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)((state_of >> 33) % below);
}

static uint8_t *draw(uint32_t width, uint32_t height)
{
    uint8_t *rgb = malloc((size_t)width * height * 3);

    assert_non_null(rgb);
    for (size_t i = 0; i < (size_t)width * height * 3; i++) rgb[i] = some(3) ? (uint8_t)some(256) : some(2) * 255;
    return rgb;
}

/* Turned upright, pixel by pixel, as EXIF says it. */
static uint8_t *upright(const uint8_t *rgb, uint32_t w, uint32_t h, uint32_t orientation)
{
    const bool turned = orientation >= 5;
    const uint32_t out_w = turned ? h : w, out_h = turned ? w : h;
    uint8_t *out = malloc((size_t)w * h * 3);

    assert_non_null(out);
    for (uint32_t y = 0; y < out_h; y++)
        for (uint32_t x = 0; x < out_w; x++) {
            static const struct { bool swap, flip_x, flip_y; } how[9] = {{0}, {0, 0, 0}, {0, 1, 0}, {0, 1, 1}, {0, 0, 1}, {1, 0, 0}, {1, 0, 1}, {1, 1, 1}, {1, 1, 0}};
            uint32_t sx = how[orientation].swap ? y : x, sy = how[orientation].swap ? x : y;
            if (how[orientation].flip_x) sx = w - 1 - sx;
            if (how[orientation].flip_y) sy = h - 1 - sy;
            memcpy(out + ((size_t)y * out_w + x) * 3, rgb + ((size_t)sy * w + sx) * 3, 3);
        }
    return out;
}

static void compare(uint32_t w, uint32_t h, uint32_t out_w, uint32_t out_h, uint32_t orientation, enum picture_filter filter, enum picture_layout layout)
{
    const size_t bytes = (size_t)out_w * out_h * 3;
    uint8_t *rgb = draw(w, h), *whole = upright(rgb, w, h, orientation), *resized = malloc(bytes), *want = malloc(bytes), *got = malloc(bytes);
    const struct picture_stream_job job = {.width = w, .height = h, .orientation = orientation, .out_width = out_w, .out_height = out_h, .filter = filter, .layout = layout, .out = got};
    struct picture_stream s;

    assert_true(resized && want && got);
    assert_int_equal(picture_resize(whole, orientation >= 5 ? h : w, orientation >= 5 ? w : h, resized, out_w, out_h, filter), 0);
    if (layout == PICTURE_PATCHES) picture_patches(resized, out_w, out_h, want);
    else memcpy(want, resized, bytes);
    assert_int_equal(picture_stream_open(&s, &job), 0);
    for (uint32_t y = 0; y < h;) {
        const uint32_t n = 1 + some(20), rows = n < h - y ? n : h - y;
        uint8_t *part = malloc((size_t)rows * w * 3); /* of its own, so that reading beyond it shows */
        memcpy(part, rgb + (size_t)y * w * 3, (size_t)rows * w * 3);
        picture_stream_rows(&s, part, rows);
        free(part);
        y += rows;
    }
    assert_true(picture_stream_is_whole(&s));
    picture_stream_rows(&s, rgb, 1); /* one too many changes nothing */
    if (memcmp(got, want, bytes) != 0) fail_msg("%u x %u to %u x %u, orientation %u, filter %d, layout %d", w, h, out_w, out_h, orientation, (int)filter, (int)layout);
    picture_stream_close(&s);
    free(rgb), free(whole), free(resized), free(want), free(got);
}

static void test_any_size_and_orientation(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 160; i++)
        compare(1 + some(170), 1 + some(170), 1 + some(120), 1 + some(120), 1 + i % 8, some(2) ? PICTURE_BICUBIC : PICTURE_BILINEAR, PICTURE_ROWS);
}

static void test_patches(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < 24; i++) compare(1 + some(300), 1 + some(200), 48 * (1 + some(3)), 48 * (1 + some(3)), 1 + i % 8, PICTURE_BICUBIC, PICTURE_PATCHES);
}

static void test_sides_that_stay(void **state)
{
    static const uint32_t sizes[][4] = {{48, 96, 48, 96}, {96, 96, 96, 48}, {96, 96, 48, 96}, {1, 1, 1, 1}, {1, 300, 48, 96}, {300, 1, 96, 48}, {1, 1, 48, 48}};

    (void)state;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (uint32_t o = 1; o <= 8; o++) compare(sizes[i][0], sizes[i][1], sizes[i][2], sizes[i][3], o, PICTURE_BICUBIC, PICTURE_ROWS);
}

static void test_long_and_narrow(void **state)
{
    (void)state;
    compare(10000, 10, 96, 48, 1, PICTURE_BICUBIC, PICTURE_PATCHES);
    compare(10, 10000, 48, 96, 6, PICTURE_BICUBIC, PICTURE_ROWS);
    compare(4, 9000, 144, 48, 8, PICTURE_BICUBIC, PICTURE_PATCHES);
}

static void test_refuses(void **state)
{
    uint8_t out[12];
    struct picture_stream s;
    struct picture_stream_job job = {.width = 2, .height = 2, .orientation = 9, .out_width = 2, .out_height = 2, .filter = PICTURE_BICUBIC, .layout = PICTURE_ROWS, .out = out};

    (void)state;
    assert_int_equal(picture_stream_open(&s, &job), -E_RANGE);
    job.orientation = 0;
    assert_int_equal(picture_stream_open(&s, &job), -E_RANGE);
    job.orientation = 1;
    job.height = PICTURE_SIDE_MAX + 1;
    assert_int_equal(picture_stream_open(&s, &job), -E_RANGE);
    job.height = 0;
    assert_int_equal(picture_stream_open(&s, &job), -E_RANGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_any_size_and_orientation),
        cmocka_unit_test(test_patches),
        cmocka_unit_test(test_sides_that_stay),
        cmocka_unit_test(test_long_and_narrow),
        cmocka_unit_test(test_refuses),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
