/* tests/unit/corpus_test.c - more than 200 pictures of every codec, mode, size and orientation, and sounds of every format, become what the reference's
 * processor makes of them: pictures byte for byte, sounds as near as resampling by another build of one library comes.
 * Golden data: tests/golden/corpus, made by tests/oracle/make_corpus_golden.py. What differs on purpose, and by how much, is asserted at the end. */
#include "model/picture_stream.h"
#include "schemas/image.h"
#include "schemas/sha256.h"
#include "schemas/sound.h"
#include "stages/vision/desk.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define GOLDEN "tests/golden/corpus"
#define PICTURES_MIN 200u
#define BIN_BYTES_MAX (4u << 20)
#define POSITIONS 1120u
#define SCALED_LEVELS_MAX 6   /* by which a value of a JPEG that was decoded at a half may differ, and on average: smooth pictures */
#define SCALED_LEVELS_MEAN 0.6

static const struct image_limits limits = {.side_max = IMAGE_SIDE_MAX, .pixels_max = IMAGE_PIXELS_MAX, .scans_max = IMAGE_SCANS_MAX};

struct entry {
    char name[96], pixels[20], patches[20];
    unsigned long offset, bytes;
    unsigned width, height, budget, tokens, columns;
};

static uint8_t *bin;

static int load(void **state)
{
    FILE *f = fopen(GOLDEN "/pictures.bin", "rb");

    (void)state;
    bin = malloc(BIN_BYTES_MAX);
    if (!f || !bin || fread(bin, 1, BIN_BYTES_MAX, f) == 0) return -1;
    return fclose(f);
}

static int unload(void **state)
{
    (void)state;
    free(bin);
    return 0;
}

static unsigned for_each(void (*f)(const struct entry *e, const uint8_t *file))
{
    FILE *list = fopen(GOLDEN "/manifest.txt", "r");
    char line[512];
    unsigned count = 0;

    assert_non_null(list);
    for (; fgets(line, sizeof line, list); count++) {
        struct entry e;
        assert_int_equal(sscanf(line, "%95s %lu %lu %u %u %19s %u %u %u %19s", e.name, &e.offset, &e.bytes, &e.width, &e.height, e.pixels, &e.budget, &e.tokens, &e.columns, e.patches), 10);
        uint8_t *file = malloc(e.bytes); /* of its own, so that reading beyond it shows */
        memcpy(file, bin + e.offset, e.bytes);
        f(&e, file);
        free(file);
    }
    fclose(list);
    return count;
}

static void digest(const uint8_t *data, size_t bytes, char text[20])
{
    struct sha256 s;
    uint8_t key[SHA256_BYTES];

    sha256_begin(&s);
    sha256_add(&s, data, bytes);
    sha256_end(&s, key);
    for (int i = 0; i < 8; i++) snprintf(text + 2 * i, 3, "%02x", key[i]);
}

static void check_pixels(const struct entry *e, const uint8_t *file)
{
    char why[IMAGE_ERROR_BYTES] = "", got[20];
    struct image_info info;
    struct image image;

    if (image_probe(file, e->bytes, &limits, &info, why) != 0) fail_msg("%s: %s", e->name, why);
    if (image_decode(file, e->bytes, &limits, &info, 0, 0, &image, why) != 0) fail_msg("%s: %s", e->name, why);
    if (image.width != e->width || image.height != e->height) fail_msg("%s: %u x %u", e->name, image.width, image.height);
    digest(image.rgb, (size_t)e->width * e->height * 3, got);
    if (strcmp(got, e->pixels) != 0) fail_msg("%s: other pixels", e->name);
    free(image.rgb);
}

static uint8_t *soft_tokens(const struct entry *e, const uint8_t *file, bool exact, struct desk_result *r)
{
    const struct desk_limits desk = {.picture_budget = e->budget, .picture_positions = POSITIONS, .exact = exact};
    const struct media_file_hdr hdr = {.kind = MEDIA_PICTURE, .bytes = e->bytes};
    uint8_t *out = malloc(desk_out_bytes(&desk));

    assert_non_null(out);
    desk_decode(&desk, &hdr, file, out, r);
    return out;
}

static void check_soft_tokens(const struct entry *e, const uint8_t *file)
{
    struct desk_result r;
    char got[20];
    uint8_t *out = soft_tokens(e, file, true, &r);

    if (e->tokens == 0) {
        if (r.status != MEDIA_BAD) fail_msg("%s: the reference refuses it", e->name);
    } else {
        if (r.status != MEDIA_READY) fail_msg("%s: %s", e->name, r.why);
        if (r.tokens != e->tokens || r.columns != e->columns) fail_msg("%s: %u tokens in rows of %u", e->name, r.tokens, r.columns);
        digest(out, (size_t)r.tokens * PICTURE_PATCH_BYTES, got);
        if (strcmp(got, e->patches) != 0) fail_msg("%s: other soft tokens", e->name);
    }
    free(out);
}

static unsigned scaled;

/* Without `exact`: the same bytes, but for JPEGs that are much larger than what the model sees. */
static void check_scaled(const struct entry *e, const uint8_t *file)
{
    struct desk_result r, whole;
    uint8_t *out = soft_tokens(e, file, false, &r), *exact = soft_tokens(e, file, true, &whole);
    int worst = 0;
    double sum = 0;

    assert_int_equal(r.status, whole.status);
    assert_int_equal(r.tokens, whole.tokens);
    const size_t bytes = (size_t)r.tokens * PICTURE_PATCH_BYTES;
    for (size_t i = 0; i < bytes; i++) {
        const int d = abs(out[i] - exact[i]);
        sum += d;
        if (d > worst) worst = d;
    }
    const bool large = strstr(e->name, "large_") != NULL;
    if (worst > (large ? SCALED_LEVELS_MAX : 0) || sum > SCALED_LEVELS_MEAN * (double)bytes) fail_msg("%s: off by up to %d, %.3f on average", e->name, worst, sum / (double)bytes);
    scaled += worst > 0;
    free(out);
    free(exact);
}

#define SOUNDS_MIN 60u
#define SOUND_TOLERANCE 2e-5 /* 1.5e-5 are the 16 bits that the golden samples are kept in */

static void test_sounds(void **state)
{
    FILE *list = fopen(GOLDEN "/sounds.txt", "r"), *f = fopen(GOLDEN "/sounds.bin", "rb");
    uint8_t *data = malloc(BIN_BYTES_MAX);
    char line[256], name[96], why[SOUND_ERROR_BYTES] = "";
    unsigned long offset, bytes, samples;
    unsigned frames, count = 0;
    double worst = 0;

    (void)state;
    assert_true(list && f && data && fread(data, 1, BIN_BYTES_MAX, f) > 0);
    for (; fgets(line, sizeof line, list); count++) {
        struct sound sound;
        assert_int_equal(sscanf(line, "%95s %lu %lu %u %lu", name, &offset, &bytes, &frames, &samples), 5);
        if (sound_decode(data + offset, bytes, 30, &sound, why) != 0) fail_msg("%s: %s", name, why);
        if (sound.frame_count != frames) fail_msg("%s: %u frames, not %u", name, sound.frame_count, frames);
        for (size_t i = 0; i < (size_t)frames * SOUND_FRAME; i++) {
            int16_t kept;
            memcpy(&kept, data + samples + 2 * i, sizeof kept);
            const double off = fabs(sound.samples[i] - kept / 32767.0);
            if (off > worst) worst = off;
            if (!(off <= SOUND_TOLERANCE)) fail_msg("%s: sample %zu is %g, not %g", name, i, sound.samples[i], kept / 32767.0);
        }
        free(sound.samples);
    }
    print_message("%u sounds, off by at most %.2g\n", count, worst);
    assert_true(count >= SOUNDS_MIN);
    free(data);
    fclose(list);
    fclose(f);
}

static void test_pixels(void **state)
{
    (void)state;
    assert_true(for_each(check_pixels) >= PICTURES_MIN);
}

static void test_soft_tokens(void **state)
{
    (void)state;
    assert_true(for_each(check_soft_tokens) >= PICTURES_MIN);
}

static void test_scaled_jpegs(void **state)
{
    (void)state;
    for_each(check_scaled);
    assert_true(scaled >= 2); /* else nothing was shown */
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_pixels), cmocka_unit_test(test_soft_tokens), cmocka_unit_test(test_scaled_jpegs), cmocka_unit_test(test_sounds)};

    return cmocka_run_group_tests(tests, load, unload);
}
