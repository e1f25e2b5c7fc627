/* tests/unit/sound_test.c - sound files become the samples that the reference's loader hears; broken, endless and odd ones are refused in words.
 * Golden data: tests/golden/sound/, made by tests/oracle/make_sound_golden.py. */
#include "schemas/sound.h"

#include "shm/error.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define GOLDEN "tests/golden/sound"
#define FILE_BYTES_MAX 65536u
#define TOLERANCE 1e-5 /* lossy decoders of other versions: 3e-7 seen */

/* libsndfile 1.2.0 forgets a few KB of libvorbis for a broken file: the decoding process is replaced now and then for such reasons. */
const char *__lsan_default_suppressions(void);
const char *__lsan_default_suppressions(void) { return "leak:vorbis_info_init\nleak:libvorbis\nleak:libsndfile"; }

static uint8_t file[FILE_BYTES_MAX];

static size_t read_file(const char *name)
{
    char path[256];

    snprintf(path, sizeof path, GOLDEN "/%s", name);
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("%s is missing", path);
    const size_t n = fread(file, 1, sizeof file, f);
    fclose(f);
    return n;
}

static void test_samples(void **state)
{
    char line[1024], name[128], why[SOUND_ERROR_BYTES];
    unsigned frames, lines = 0;
    struct sound sound;
    FILE *list = fopen(GOLDEN "/manifest.txt", "r");

    (void)state;
    assert_non_null(list);
    for (; fgets(line, sizeof line, list); lines++) {
        int at, more;
        double wanted;
        assert_int_equal(sscanf(line, "%127s %u%n", name, &frames, &at), 2);
        const size_t n = read_file(name);
        if (sound_decode(file, n, SOUND_SECONDS_MAX, &sound, why) != 0) fail_msg("%s: %s", name, why);
        if (sound.frame_count != frames) fail_msg("%s: %u frames, not %u", name, sound.frame_count, frames);
        for (unsigned i = 0; i < 16; i++, at += more) {
            assert_int_equal(sscanf(line + at, "%lf%n", &wanted, &more), 1);
            const double got = sound.samples[(size_t)i * frames * SOUND_FRAME / 16];
            if (fabs(got - wanted) > TOLERANCE) fail_msg("%s: sample %u is %.7g, not %.7g", name, i, got, wanted);
        }
        free(sound.samples);
    }
    fclose(list);
    assert_true(lines >= 18);
}

static void test_broken(void **state)
{
    static const char *const names[] = {"pcm_16_16000_1.wav", "pcm_16_22050_2.flac", "vorbis_16000_1.ogg", "opus_24000_2.ogg", "mpeg_layer_iii_16000_1.mp3", "float_22050_2.wav"};
    char why[SOUND_ERROR_BYTES];
    struct sound sound;
    uint64_t random = 1;

    (void)state;
    for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
        const size_t n = read_file(names[k]);
        for (int i = 0; i < 120; i++) {
            random = random * 6364136223846793005ull + 1442695040888963407ull;
            const size_t cut = i % 2 ? n : (random >> 33) % n;
            uint8_t *part = malloc(cut + 1);
            memcpy(part, file, cut);
            if (i % 2) part[(random >> 20) % n] = (uint8_t)random;
            why[0] = '\0';
            const int rc = sound_decode(part, cut, SOUND_SECONDS_MAX, &sound, why);
            if (rc != 0) assert_true(why[0] != '\0' && !sound.samples);
            else assert_true(sound.frame_count <= 1 + SOUND_SECONDS_MAX * SOUND_RATE / SOUND_FRAME);
            free(sound.samples);
            free(part);
        }
    }
}

static void refused(size_t bytes, double seconds_max, int code, const char *word)
{
    char why[SOUND_ERROR_BYTES] = "";
    struct sound sound;

    assert_int_equal(sound_decode(file, bytes, seconds_max, &sound, why), code);
    if (!strstr(why, word)) fail_msg("'%s' does not speak of %s", why, word);
    assert_null(sound.samples);
}

static void test_refusals(void **state)
{
    (void)state;
    refused(0, 30, -E_FORMAT, "WAV, FLAC");
    size_t n = read_file("pcm_16_16000_1.wav");
    refused(n, 0.05, -E_RANGE, "0.05 seconds");
    refused(30, 30, -E_FORMAT, "");
    memcpy(file + 24, "\xff\xff\xff\x7f", 4); /* samples a second */
    refused(n, 30, -E_RANGE, "samples a second");
    n = read_file("float_16000_1.wav");
    memcpy(file + n - 8, "\0\0\xc0\x7f", 4);
    refused(n, 30, -E_FORMAT, "no number");
    memcpy(file, "FORM....AIFF", 12); /* libsndfile knows it; nobody needs it */
    refused(n, 30, -E_FORMAT, "WAV, FLAC");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_samples), cmocka_unit_test(test_broken), cmocka_unit_test(test_refusals)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
