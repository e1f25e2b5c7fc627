/* tests/unit/image_test.c - picture files decode to the reference loader's pixels; broken and oversized ones are refused in words.
 * Golden data: tests/golden/image, made by tests/oracle/make_image_golden.py. */
#include "schemas/image.h"

#include "shm/error.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define GOLDEN "tests/golden/image"
#define FILE_BYTES_MAX 65536u

static const struct image_limits limits = {.side_max = IMAGE_SIDE_MAX, .pixels_max = IMAGE_PIXELS_MAX, .scans_max = IMAGE_SCANS_MAX};

static size_t read_file(const char *name, uint8_t *data)
{
    char path[256];

    snprintf(path, sizeof path, GOLDEN "/%s", name);
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("%s is missing", path);
    const size_t n = fread(data, 1, FILE_BYTES_MAX, f);
    fclose(f);
    return n;
}

static uint64_t fnv(const uint8_t *data, size_t bytes)
{
    uint64_t h = 0xcbf29ce484222325ull;

    for (size_t i = 0; i < bytes; i++) h = (h ^ data[i]) * 0x100000001b3ull;
    return h;
}

/* Runs f for every line of the manifest: its name, size and hash. */
static unsigned for_each(void (*f)(const char *name, uint32_t width, uint32_t height, uint64_t hash))
{
    char line[256], name[128];
    unsigned w, h, count = 0;
    unsigned long long hash;
    FILE *list = fopen(GOLDEN "/manifest.txt", "r");

    assert_non_null(list);
    for (; fgets(line, sizeof line, list); count++) {
        assert_int_equal(sscanf(line, "%127s %u %u %llx", name, &w, &h, &hash), 4);
        f(name, w, h, hash);
    }
    fclose(list);
    return count;
}

static void check_pixels(const char *name, uint32_t width, uint32_t height, uint64_t hash)
{
    static uint8_t file[FILE_BYTES_MAX];
    char why[IMAGE_ERROR_BYTES] = "";
    struct image_info info;
    struct image image;
    const size_t n = read_file(name, file);

    if (image_probe(file, n, &limits, &info, why) != 0) fail_msg("%s: %s", name, why);
    assert_int_equal(info.width * info.height, width * height);
    if (image_decode(file, n, &limits, &info, 0, 0, &image, why) != 0) fail_msg("%s: %s", name, why);
    if (image.width != width || image.height != height) fail_msg("%s: %u x %u", name, image.width, image.height);
    if (fnv(image.rgb, (size_t)width * height * 3) != hash) fail_msg("%s: other pixels", name);
    free(image.rgb);
}

static void test_pixels(void **state)
{
    (void)state;
    assert_true(for_each(check_pixels) >= 36);
}

/* Every prefix of a file: refused, or (what stands behind the picture is missing) decoded; never a crash. */
static void check_prefixes(const char *name, uint32_t width, uint32_t height, uint64_t hash)
{
    static uint8_t file[FILE_BYTES_MAX];
    const size_t n = read_file(name, file);
    size_t refused = 0;

    (void)hash;
    for (size_t cut = 0; cut < n; cut++) {
        uint8_t *part = malloc(cut ? cut : 1); /* of its own, so that reading beyond it shows */
        char why[IMAGE_ERROR_BYTES] = "";
        struct image_info info;
        struct image image = {0};
        memcpy(part, file, cut);
        int rc = image_probe(part, cut, &limits, &info, why);
        if (rc == 0) rc = image_decode(part, cut, &limits, &info, 0, 0, &image, why);
        if (rc == 0) assert_int_equal((uint64_t)image.width * image.height, (uint64_t)width * height);
        else {
            assert_true(why[0] != '\0' && !image.rgb);
            refused++;
        }
        free(image.rgb);
        free(part);
    }
    if (refused < n / 4) fail_msg("%s: only %zu of %zu prefixes refused", name, refused, n);
}

static void test_prefixes(void **state)
{
    (void)state;
    for_each(check_prefixes);
}

static void check_mutants(const char *name, uint32_t width, uint32_t height, uint64_t hash)
{
    static uint8_t file[FILE_BYTES_MAX];
    const size_t n = read_file(name, file);
    const struct image_limits small = {.side_max = 512, .pixels_max = 512 * 512, .scans_max = 10};
    uint64_t random = hash | 1;

    (void)width;
    (void)height;
    for (int i = 0; i < 60; i++) {
        char why[IMAGE_ERROR_BYTES] = "";
        struct image_info info;
        struct image image = {0};
        uint8_t *copy = malloc(n);
        memcpy(copy, file, n);
        for (int k = 0; k < 1 + i % 4; k++) {
            random = random * 6364136223846793005ull + 1442695040888963407ull;
            copy[(random >> 33) % n] = (uint8_t)(random >> 25);
        }
        if (image_probe(copy, n, &small, &info, why) == 0) {
            assert_true(info.width <= 512 && info.height <= 512);
            if (image_decode(copy, n, &small, &info, 0, 0, &image, why) != 0) assert_true(why[0] != '\0');
        }
        free(image.rgb);
        free(copy);
    }
}

static void test_mutants(void **state)
{
    (void)state;
    for_each(check_mutants);
}

static void refused(const void *file, size_t bytes, int code, const char *word)
{
    char why[IMAGE_ERROR_BYTES] = "";
    struct image_info info;

    assert_int_equal(image_probe(file, bytes, &limits, &info, why), code);
    if (!strstr(why, word)) fail_msg("'%s' does not speak of %s", why, word);
}

static void test_refusals(void **state)
{
    static uint8_t png[64] = "\x89PNG\r\n\x1a\n\0\0\0\rIHDR";
    static const uint8_t jpeg[] = {0xff, 0xd8, 0xff, 0xc0, 0, 17, 8, 0xfd, 0xe8, 0xfd, 0xe8, 3, 1, 0x22, 0, 2, 0x11, 1, 3, 0x11, 1, 0xff, 0xda, 0, 12, 3, 1, 0, 2, 0x11, 3, 0x11, 0, 63, 0};

    (void)state;
    refused("", 0, -E_FORMAT, "JPEG, PNG or WebP");
    refused("hello", 5, -E_FORMAT, "JPEG, PNG or WebP");
    refused("GIF89a....", 10, -E_FORMAT, "GIF");
    refused("\xff\xd8\xff", 3, -E_FORMAT, "JPEG");
    refused(png, 8, -E_FORMAT, "PNG");
    memset(png + 16, 0x7f, 8);
    refused(png, sizeof png, -E_RANGE, "2139062143"); /* a bomb: refused by its header */
    memset(png + 16, 0, 8);
    refused(png, sizeof png, -E_FORMAT, "no pixels");
    png[18] = 0x3f;
    png[22] = 0x3f;
    refused(png, sizeof png, -E_RANGE, "million");
    refused(jpeg, sizeof jpeg, -E_RANGE, "65000");
    refused("RIFF\x10\0\0\0WEBPVP8 ", 16, -E_FORMAT, "WebP");
}

/* More scans than anybody needs cost a pass over the picture each. */
static void test_scans(void **state)
{
    static uint8_t file[FILE_BYTES_MAX];
    const struct image_limits few = {.side_max = 512, .pixels_max = 512 * 512, .scans_max = 3};
    const size_t n = read_file("rgb_progressive.jpg", file);
    char why[IMAGE_ERROR_BYTES] = "";
    struct image_info info;
    struct image image;

    (void)state;
    assert_int_equal(image_probe(file, n, &few, &info, why), 0);
    assert_int_equal(image_decode(file, n, &few, &info, 0, 0, &image, why), -E_LIMIT);
    assert_non_null(strstr(why, "3 scans"));
}

static void test_orientation(void **state)
{
    static const uint8_t little[] = "II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0", big[] = "MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x08\0\0";
    uint8_t copy[sizeof little];

    (void)state;
    assert_int_equal(image_exif_orientation(little, sizeof little - 1), 6);
    assert_int_equal(image_exif_orientation(big, sizeof big - 1), 8);
    for (size_t cut = 0; cut < 22; cut++) assert_int_equal(image_exif_orientation(little, cut), 1);
    memcpy(copy, little, sizeof copy);
    copy[18] = 9; /* no such orientation */
    assert_int_equal(image_exif_orientation(copy, sizeof copy - 1), 1);
    memcpy(copy, little, sizeof copy);
    memset(copy + 4, 0xff, 4); /* a directory beyond the block */
    assert_int_equal(image_exif_orientation(copy, sizeof copy - 1), 1);
}

/* A reduced JPEG has at least twice the sides asked for, and about the same mean colour. */
static void test_shrink(void **state)
{
    static uint8_t file[FILE_BYTES_MAX];
    const size_t n = read_file("rgb_420.jpg", file);
    char why[IMAGE_ERROR_BYTES] = "";
    struct image_info info;
    struct image whole, reduced;
    uint64_t sum[2] = {0, 0};

    (void)state;
    assert_int_equal(image_probe(file, n, &limits, &info, why), 0);
    assert_int_equal(image_decode(file, n, &limits, &info, 0, 0, &whole, why), 0);
    assert_int_equal(image_decode(file, n, &limits, &info, 8, 7, &reduced, why), 0);
    assert_int_equal(reduced.width, 17);
    assert_int_equal(reduced.height, 16);
    for (size_t i = 0; i < (size_t)whole.width * whole.height * 3; i++) sum[0] += whole.rgb[i];
    for (size_t i = 0; i < 17 * 16 * 3; i++) sum[1] += reduced.rgb[i];
    assert_true(llabs((long long)(sum[0] / ((uint64_t)whole.width * whole.height * 3)) - (long long)(sum[1] / (17 * 16 * 3))) <= 3);
    free(reduced.rgb);
    assert_int_equal(image_decode(file, n, &limits, &info, 9, 9, &reduced, why), 0);
    assert_int_equal(reduced.width, 33); /* half of it would be too small */
    free(reduced.rgb);
    free(whole.rgb);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pixels), cmocka_unit_test(test_prefixes),    cmocka_unit_test(test_mutants), cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_scans),  cmocka_unit_test(test_orientation), cmocka_unit_test(test_shrink),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
