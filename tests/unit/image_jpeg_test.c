/* tests/unit/image_jpeg_test.c - JPEG codes that are read here (schemas/image_jpeg_entropy.c) and colours that are made here (schemas/image_jpeg_rgb.c) give what the library alone gives, and files that it warns of are refused. */
#include "schemas/image.h"
#include "schemas/image_jpeg_entropy.h"
#include "schemas/image_jpeg_inside.h"
#include "schemas/image_jpeg_rgb.h"

#include "shm/error.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

#include <cmocka.h>

#define DAMAGED 2500

static const struct image_limits limits = {.side_max = IMAGE_SIDE_MAX, .pixels_max = IMAGE_PIXELS_MAX, .scans_max = IMAGE_SCANS_MAX};
static uint64_t state_of = 7;

static uint32_t some(uint32_t below)
{
    state_of = state_of * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)((state_of >> 33) % below);
}

/* ---- files ---------------------------------------------------------------------------------- */

struct recipe { uint32_t width, height; int components, quality, h, v, restart, noise; bool optimize; };

/* What its author wants, with all the bits of noise that he wants. */
static uint8_t *make(const struct recipe *r, unsigned long *bytes)
{
    struct jpeg_compress_struct j;
    struct jpeg_error_mgr errors;
    uint8_t *file = NULL, *row = malloc((size_t)r->width * 3);

    j.err = jpeg_std_error(&errors);
    jpeg_create_compress(&j);
    jpeg_mem_dest(&j, &file, bytes);
    j.image_width = r->width;
    j.image_height = r->height;
    j.input_components = r->components;
    j.in_color_space = r->components == 3 ? JCS_RGB : JCS_GRAYSCALE;
    jpeg_set_defaults(&j);
    jpeg_set_quality(&j, r->quality, TRUE);
    j.optimize_coding = r->optimize;
    j.restart_interval = (unsigned)r->restart;
    j.comp_info[0].h_samp_factor = r->h;
    j.comp_info[0].v_samp_factor = r->v;
    jpeg_start_compress(&j, TRUE);
    for (uint32_t y = 0; y < r->height; y++) {
        for (uint32_t i = 0; i < r->width * (uint32_t)r->components; i++) row[i] = (uint8_t)(128 + (int)(i * 3 + y * 5) % 97 - 48 + (r->noise ? (int)some((uint32_t)r->noise) - r->noise / 2 : 0));
        jpeg_write_scanlines(&j, &row, 1);
    }
    jpeg_finish_compress(&j);
    jpeg_destroy_compress(&j);
    free(row);
    return file;
}

/* ---- the library alone ----------------------------------------------------------------------- */

struct alone { struct jpeg_error_mgr errors; jmp_buf back; };

static void give_up(j_common_ptr j)
{
    longjmp(((struct alone *)j->err)->back, 1);
}

static void say_nothing(j_common_ptr j)
{
    (void)j;
}

/* The picture, NULL when there is none; is the library content with the file? */
static uint8_t *decode_alone(const uint8_t *file, size_t bytes, unsigned shrink, size_t *out_bytes, bool *content)
{
    struct jpeg_decompress_struct j;
    struct alone a;
    uint8_t *volatile out = NULL;
    volatile bool whole = false;

    j.err = jpeg_std_error(&a.errors);
    a.errors.error_exit = give_up;
    a.errors.output_message = say_nothing;
    jpeg_create_decompress(&j);
    if (setjmp(a.back) == 0) {
        jpeg_mem_src(&j, file, bytes);
        jpeg_read_header(&j, TRUE);
        j.scale_num = 1;
        j.scale_denom = shrink;
        j.out_color_space = JCS_RGB;
        jpeg_start_decompress(&j);
        *out_bytes = (size_t)j.output_width * j.output_height * 3;
        out = malloc(*out_bytes);
        while (j.output_scanline < j.output_height) {
            JSAMPROW row = out + (size_t)j.output_scanline * j.output_width * 3;
            jpeg_read_scanlines(&j, &row, 1);
        }
        jpeg_finish_decompress(&j);
        whole = true;
    }
    jpeg_destroy_decompress(&j);
    *content = whole && a.errors.num_warnings == 0;
    if (whole) return out;
    free(out);
    return NULL;
}

/* ---- both ------------------------------------------------------------------------------------- */

struct whole { uint8_t *rgb; size_t bytes; uint32_t width; };

static int begin(void *context, uint32_t width, uint32_t height)
{
    struct whole *w = context;

    w->rgb = malloc((size_t)width * height * 3);
    w->width = width;
    return w->rgb ? 0 : -E_NOMEM;
}

static void take(void *context, const uint8_t *rgb, uint32_t rows)
{
    struct whole *w = context;

    memcpy(w->rgb + w->bytes, rgb, (size_t)rows * w->width * 3);
    w->bytes += (size_t)rows * w->width * 3;
}

enum outcome { TAKEN, REFUSED, REFUSED_BY_US };

/* What the library takes we may refuse when it is damaged: it passes over codes that are none. What we take it shows as we do, even when it warns (of bytes too many at the end). */
static enum outcome compare(const uint8_t *file, size_t bytes, unsigned shrink, const char *what)
{
    struct whole w = {0};
    const struct image_sink sink = {.begin = begin, .rows = take, .context = &w};
    char why[IMAGE_ERROR_BYTES] = "";
    size_t want_bytes = 0;
    bool content;
    uint8_t *copy = malloc(bytes), *want = decode_alone(file, bytes, shrink, &want_bytes, &content); /* of its own, so that reading beyond it shows */

    memcpy(copy, file, bytes);
    const bool good = image_jpeg_decode(copy, bytes, limits.scans_max, shrink, &sink, why) == 0;
    if (good && (!want || w.bytes != want_bytes || memcmp(w.rgb, want, want_bytes) != 0)) fail_msg("%s: another picture", what);
    const enum outcome outcome = good ? TAKEN : content ? REFUSED_BY_US : REFUSED;
    free(copy), free(want), free(w.rgb);
    return outcome;
}

static struct recipe any(void)
{
    static const int factors[][2] = {{1, 1}, {2, 1}, {2, 2}, {1, 2}, {4, 1}};
    const uint32_t f = some(5);
    struct recipe r = {.width = 1 + some(200), .height = 1 + some(150), .components = some(4) ? 3 : 1, .quality = 1 + (int)some(100), .h = factors[f][0], .v = factors[f][1],
                       .restart = some(3) ? 0 : 1 + (int)some(20), .noise = some(3) ? 1 << some(9) : 0, .optimize = some(2)};
    return r;
}

static void test_every_kind_of_file(void **state)
{
    (void)state;
    for (int i = 0; i < 300; i++) {
        const struct recipe r = any();
        unsigned long bytes = 0;
        uint8_t *file = make(&r, &bytes);
        char what[160];

        snprintf(what, sizeof what, "%u x %u, %d components, quality %d, %dx%d, restart %d, noise %d", r.width, r.height, r.components, r.quality, r.h, r.v, r.restart, r.noise);
        for (unsigned shrink = 1; shrink <= 8; shrink *= 2) if (compare(file, bytes, shrink, what) != TAKEN) fail_msg("%s: refused", what);
        free(file);
    }
}

/* A comparison cannot see a step that fell back to the library: it must be ours where it can be. */
static void test_the_usual_file_is_read_here(void **state)
{
    const struct recipe usual = {.width = 200, .height = 100, .components = 3, .quality = 80, .h = 2, .v = 2};
    unsigned long bytes = 0;
    uint8_t *file = make(&usual, &bytes);
    struct jpeg_decompress_struct j;
    struct jpeg_error_mgr errors;

    (void)state;
    j.err = jpeg_std_error(&errors);
    jpeg_create_decompress(&j);
    jpeg_mem_src(&j, file, bytes);
    jpeg_read_header(&j, TRUE);
    jpeg_start_decompress(&j);
    const void *entropy = j.entropy, *post = j.post;
    image_jpeg_read_codes(&j);
    image_jpeg_make_rgb(&j);
#ifdef IMAGE_JPEG_INSIDE
    assert_ptr_not_equal(j.entropy, entropy);
    assert_int_equal(j.post != post, image_jpeg_rgb_is_here());
#else
    assert_true(LIBJPEG_TURBO_VERSION_NUMBER / 1000 != 2001); /* whoever installs that version installs its jpegint.h */
    assert_true(j.entropy == entropy && j.post == post);
#endif
    jpeg_destroy_decompress(&j);
    free(file);
}

static void test_damaged_files(void **state)
{
    int count[3] = {0};

    (void)state;
    for (int i = 0; i < DAMAGED; i++) {
        const struct recipe r = any();
        unsigned long bytes = 0;
        uint8_t *file = make(&r, &bytes);
        char what[200];
        const uint32_t how = some(4), at = some((uint32_t)bytes), kept = how == 3 ? 1 + some((uint32_t)bytes) : (uint32_t)bytes;

        if (how < 3)
            for (uint32_t n = 0; n <= how; n++) file[n ? some((uint32_t)bytes) : at] = some(3) ? (uint8_t)some(256) : 0xff;
        snprintf(what, sizeof what, "file %d (%u x %u, %d components, quality %d, %dx%d, restart %d, noise %d), damage %u at %u of %lu", i, r.width, r.height, r.components, r.quality, r.h, r.v,
                 r.restart, r.noise, how, how == 3 ? kept : at, bytes);
        count[compare(file, kept, 1u << some(4), what)]++;
        free(file);
    }
    print_message("%d damaged files: %d taken, %d refused, %d of which the library would have shown something\n", DAMAGED, count[TAKEN], count[REFUSED] + count[REFUSED_BY_US], count[REFUSED_BY_US]);
    assert_true(count[REFUSED] > DAMAGED / 8 && count[TAKEN] > DAMAGED / 8 && count[REFUSED_BY_US] < DAMAGED / 8);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_every_kind_of_file), cmocka_unit_test(test_the_usual_file_is_read_here), cmocka_unit_test(test_damaged_files)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
