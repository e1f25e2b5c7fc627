/* tests/unit/video_test.c - video files: frames, times and pixels are the reference's (tests/oracle/make_video_golden.py), in a sandbox as outside of it; what is refused says why. */
#include "model/picture.h"
#include "schemas/video.h"
#include "shm/error.h"
#include "stages/vision/desk.h"
#include "stages/vision/film.h"

#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/desk_await.h"

#define GOLDEN "tests/golden/video/"
#define FILE_BYTES_MAX (1u << 18)
#define MEANS 12
#define OTHER_LIBAV_OFF 3             /* levels that a quarter's mean may be off where libav is another one than the reference's */

static const struct desk_limits limits = {.picture_budget = 70, .picture_positions = 80, .sound_tokens = 750, .frames_max = MEDIA_FRAMES_MAX, .frame_budget = MEDIA_FRAME_BUDGET};
static struct video_library library;

static uint64_t fnv(const uint8_t *data, size_t bytes)
{
    uint64_t h = 0xcbf29ce484222325u;

    for (size_t i = 0; i < bytes; i++) h = (h ^ data[i]) * 0x100000001b3u;
    return h;
}

static uint8_t *load(const char *name, struct media_file_hdr *hdr)
{
    char path[256];

    snprintf(path, sizeof path, GOLDEN "%s", name);
    FILE *f = fopen(path, "rb");
    uint8_t *bytes = malloc(FILE_BYTES_MAX);
    assert_non_null(f);
    *hdr = (struct media_file_hdr){.kind = MEDIA_VIDEO, .budget = MEDIA_FRAME_BUDGET, .bytes = fread(bytes, 1, FILE_BYTES_MAX, f)};
    fclose(f);
    return bytes;
}

static void need_library(void)
{
    char err[512];

    if (library.decode) return;
    const int rc = video_library_open(&library, err, sizeof err);
    if (rc == 0) return;
    assert_int_equal(rc, -E_NOT_FOUND); /* one that is there works */
    printf("SKIP: built without libav: there is no " VIDEO_LIBRARY_NAME "\n");
    skip();
}

/* ---- which frames, and when --------------------------------------------------------------------- */

static void test_frames_are_spread_evenly(void **state)
{
    static const uint32_t totals[] = {1, 2, 31, 32, 33, 50, 63, 64, 65, 100, 1000, 99999, VIDEO_TOTAL_MAX};

    (void)state;
    for (size_t t = 0; t < sizeof totals / sizeof *totals; t++) {
        const uint32_t total = totals[t], frames = total < VIDEO_FRAMES_MAX ? total : VIDEO_FRAMES_MAX;
        for (uint32_t i = 0; i < frames; i++) assert_int_equal(video_index(i, total, frames), (uint64_t)i * total / frames);
    }
}

static void test_times_round_down(void **state)
{
    (void)state;
    assert_int_equal(video_at_ms(0, 25), 0);
    assert_int_equal(video_at_ms(30, 30), 1000);
    assert_int_equal(video_at_ms(30, 29.999999999999996), 1000);
    assert_int_equal(video_at_ms(30, 30.000001), 999);
    assert_int_equal(video_at_ms(1, 3), 333);
    assert_int_equal(video_at_ms(400000, 0.0001), UINT32_MAX);
}

/* ---- the reference's frames -------------------------------------------------------------------------- */

/* The mean colours of the quarters of a frame, as the script has them. */
static void quarters_of(const uint8_t *frame, uint32_t columns, uint32_t rows, int mean[MEANS])
{
    for (uint32_t q = 0; q < 4; q++) {
        const uint32_t y0 = q < 2 ? 0 : rows / 2, y1 = q < 2 ? rows / 2 : rows, x0 = q % 2 ? columns / 2 : 0, x1 = q % 2 ? columns : columns / 2;
        uint64_t sum[3] = {0}, count = (uint64_t)(y1 - y0) * (x1 - x0) * PICTURE_PATCH * PICTURE_PATCH;
        for (uint32_t y = y0; y < y1; y++)
            for (uint32_t x = x0; x < x1; x++) {
                const uint8_t *block = frame + (uint64_t)(y * columns + x) * PICTURE_PATCH_BYTES;
                for (uint32_t i = 0; i < PICTURE_PATCH_BYTES; i++) sum[i % 3] += block[i];
            }
        for (int c = 0; c < 3; c++) mean[3 * q + c] = count ? (int)((sum[c] + count / 2) / count) : 0;
    }
}

static void compare_frame(FILE *list, const char *name, uint32_t i, const uint8_t *frame, uint32_t columns, uint32_t rows, uint32_t at_ms, bool exact)
{
    unsigned minutes, seconds;
    unsigned long long hash;
    int mean[MEANS], wanted;

    assert_int_equal(fscanf(list, " frame %u:%u %llx", &minutes, &seconds, &hash), 3);
    if (at_ms / 1000 != minutes * 60 + seconds) fail_msg("%s: frame %u stands at %u ms, and not at %02u:%02u", name, i, at_ms, minutes, seconds);
    if (exact && fnv(frame, (size_t)columns * rows * PICTURE_PATCH_BYTES) != hash) fail_msg("%s: the pixels of frame %u differ", name, i);
    quarters_of(frame, columns, rows, mean);
    for (int m = 0; m < MEANS; m++) {
        assert_int_equal(fscanf(list, "%d", &wanted), 1);
        if (columns > 1 && rows > 1 && abs(mean[m] - wanted) > (exact ? 1 : OTHER_LIBAV_OFF)) fail_msg("%s: frame %u, mean %d is %d, and not %d", name, i, m, mean[m], wanted);
    }
}

static void test_frames_equal_the_reference(void **state)
{
    FILE *list = fopen(GOLDEN "frames.txt", "r");
    uint8_t *out = malloc(desk_out_bytes(&limits));
    unsigned major, total, frames, columns, rows, files = 0;
    char name[128];
    double fps;

    (void)state;
    need_library();
    assert_non_null(list);
    assert_int_equal(fscanf(list, "libavcodec %u", &major), 1);
    const bool exact = library.libavcodec() == major;
    if (!exact) printf("libavcodec is %u, the reference's was %u: frames are compared by their mean colours\n", library.libavcodec(), major);
    while (fscanf(list, " file %127s %u %lf %u %u %u", name, &total, &fps, &frames, &columns, &rows) == 6) {
        struct media_file_hdr hdr;
        struct desk_result r;
        uint8_t *file = load(name, &hdr);
        desk_decode(&limits, &hdr, file, out, &r);
        free(file);
        if (r.status != MEDIA_READY) fail_msg("%s: %s", name, r.why);
        assert_int_equal(r.frames, frames);
        assert_int_equal(r.columns, columns);
        assert_int_equal(r.tokens, frames * columns * rows);
        const uint32_t frame_bytes = columns * rows * PICTURE_PATCH_BYTES;
        for (uint32_t i = 0; i < frames; i++) {
            uint32_t at_ms;
            memcpy(&at_ms, out + (uint64_t)frames * frame_bytes + i * sizeof at_ms, sizeof at_ms);
            assert_int_equal(at_ms, video_at_ms(video_index(i, total, frames), fps));
            compare_frame(list, name, i, out + (uint64_t)i * frame_bytes, columns, rows, at_ms, exact);
        }
        files++;
    }
    assert_true(files >= 26 && feof(list));
    fclose(list);
    free(out);
}

/* ---- a desk of its own ---------------------------------------------------------------------------------- */

static void test_a_worker_gives_the_same(void **state)
{
    static const char *const names[] = {"h264.mp4", "hevc_10.mkv", "vp8.webm", "vp9.webm", "av1.webm", "animated.gif", "turned_90.mp4", "frames.txt", "mpeg4.mp4"};
    uint8_t *out = malloc(desk_out_bytes(&limits));
    struct desk d;
    int status;

    (void)state;
    need_library();
    assert_int_equal(desk_open(&d, &limits), 0);
    assert_int_equal(d.pid, 0);       /* nobody stands there before there is a video */
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct media_file_hdr hdr;
        struct desk_result wanted, got;
        const uint8_t *data;
        uint64_t bytes;
        uint8_t *file = load(names[i], &hdr);
        desk_decode(&limits, &hdr, file, out, &wanted);
        assert_int_equal(desk_hire(&d), 0);
        assert_int_equal(desk_begin(&d, &hdr, file), 0);
        if (desk_await(&d, &status) != 1) fail_msg("%s: the worker died, status %x", names[i], status);
        desk_result(&d, &got, &data, &bytes);
        assert_int_equal(got.status, wanted.status);
        assert_string_equal(got.why, wanted.why);
        assert_int_equal(got.tokens, wanted.tokens);
        assert_int_equal(got.frames, wanted.frames);
        assert_int_equal(bytes, (uint64_t)wanted.tokens * PICTURE_PATCH_BYTES + 4 * wanted.frames);
        if (bytes) assert_memory_equal(data, out, bytes);
        desk_clear(&d);
        free(file);
    }
    desk_stop(&d);
    free(out);
}

/* ---- refusals ------------------------------------------------------------------------------------------------ */

static void refuse(const char *name, const uint8_t *file, size_t bytes, const char *words)
{
    const struct media_file_hdr hdr = {.kind = MEDIA_VIDEO, .bytes = bytes};
    uint8_t *out = malloc(desk_out_bytes(&limits));
    struct desk_result r;

    desk_decode(&limits, &hdr, file, out, &r);
    if (r.status != MEDIA_BAD || !strstr(r.why, words)) fail_msg("%s: status %u, '%s', and not '%s'", name, r.status, r.why, words);
    free(out);
}

static void test_what_is_no_video(void **state)
{
    static const struct { const char *name, *words; } cases[] = {
        {"frames.txt", "neither MP4"}, {"../image/rgb.png", "neither MP4"}, {"../sound/pcm_16_16000_1.wav", "neither MP4"},
        {"refused/voice.m4a", "no video track"}, {"refused/mjpeg.mov", "mjpeg"},
    };

    (void)state;
    need_library();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct media_file_hdr hdr;
        uint8_t *file = load(cases[i].name, &hdr);
        refuse(cases[i].name, file, hdr.bytes, cases[i].words);
        free(file);
    }
    refuse("nothing", (const uint8_t *)"", 0, "neither MP4");
}

static int begin_none(void *context, const struct video_info *info)
{
    struct video_info *out = context;

    *out = *info;
    return -E_BUSY;
}

static int frame_none(void *context, uint32_t i, const uint8_t *rgb, uint32_t width, uint32_t height)
{
    (void)context;
    (void)i;
    (void)rgb;
    (void)width;
    (void)height;
    fail();
    return 0;
}

static void test_limits(void **state)
{
    const struct { struct video_limits limits; int rc; const char *words; } cases[] = {
        {{.side_max = 127, .pixels_max = 1 << 20, .total_max = 100, .seconds_max = 100, .frames_max = 32}, -E_RANGE, "128 x 96"},
        {{.side_max = 128, .pixels_max = 12287, .total_max = 100, .seconds_max = 100, .frames_max = 32}, -E_RANGE, "12287"},
        {{.side_max = 128, .pixels_max = 12288, .total_max = 49, .seconds_max = 100, .frames_max = 32}, -E_LIMIT, "more than 49 frames"},
        {{.side_max = 128, .pixels_max = 12288, .total_max = 50, .seconds_max = 1, .frames_max = 32}, -E_RANGE, "2 seconds"},
        {{.side_max = 128, .pixels_max = 12288, .total_max = 50, .seconds_max = 2, .frames_max = 5}, -E_BUSY, ""}, /* what the sink says */
    };
    struct media_file_hdr hdr;
    struct video_info info = {0};
    const struct video_sink sink = {.begin = begin_none, .frame = frame_none, .context = &info};
    char why[VIDEO_ERROR_BYTES];

    (void)state;
    need_library();
    uint8_t *file = load("h264.mp4", &hdr);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const int rc = library.decode(file, hdr.bytes, &cases[i].limits, &sink, why);
        if (rc != cases[i].rc || !strstr(why, cases[i].words)) fail_msg("case %zu: %d '%s'", i, rc, why);
    }
    assert_int_equal(info.frames, 5);
    assert_int_equal(info.total, 50);
    free(file);
}

/* Cut off or changed anywhere, a file is decoded or refused with words: in this process, where a sanitizer looks on. */
static void test_damaged_files(void **state)
{
    static const char *const names[] = {"h264.mp4", "hevc_10.mkv", "vp9.webm", "av1_10.mp4", "animated.gif", "mpeg4.mp4"};
    uint8_t *out = malloc(desk_out_bytes(&limits));
    uint64_t seed = 1;

    (void)state;
    need_library();
    for (size_t n = 0; n < sizeof names / sizeof *names; n++) {
        struct media_file_hdr hdr;
        uint8_t *file = load(names[n], &hdr), *copy = malloc(hdr.bytes);
        for (unsigned i = 0; i < 24; i++) {
            struct media_file_hdr h = hdr;
            struct desk_result r;
            memcpy(copy, file, hdr.bytes);
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            if (i % 3 == 0) h.bytes = 1 + (seed >> 33) % hdr.bytes;
            else for (unsigned k = 0; k < i; k++) copy[((seed >> 20) * (k + 1)) % hdr.bytes] ^= (uint8_t)(1 + (seed >> 40) + k);
            desk_decode(&limits, &h, copy, out, &r);
            assert_true(r.status == MEDIA_READY || (r.why[0] && (r.status == MEDIA_BAD || r.status == MEDIA_TOO_LARGE)));
        }
        free(copy);
        free(file);
    }
    free(out);
}

static void test_a_library_that_cannot_be_opened(void **state)
{
    char path[] = "/tmp/sluice-video-test-XXXXXX", err[512];
    struct video_library lib;
    const int fd = mkstemp(path);

    (void)state;
    assert_true(fd >= 0 && write(fd, "no library", 10) == 10);
    close(fd);
    setenv("SLUICE_VIDEO_LIBRARY", "/nonexistent/elsewhere.so", 1);
    assert_int_equal(video_library_open(&lib, err, sizeof err), -E_NOT_FOUND);
    assert_non_null(strstr(err, "elsewhere.so"));
    setenv("SLUICE_VIDEO_LIBRARY", path, 1);
    assert_int_equal(video_library_open(&lib, err, sizeof err), -E_IO);
    setenv("SLUICE_VIDEO_LIBRARY", "/lib/x86_64-linux-gnu/libm.so.6", 1);
    assert_int_equal(video_library_open(&lib, err, sizeof err), -E_VERSION);
    unsetenv("SLUICE_VIDEO_LIBRARY");
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_frames_are_spread_evenly),
        cmocka_unit_test(test_times_round_down),
        cmocka_unit_test(test_a_library_that_cannot_be_opened),
        cmocka_unit_test(test_frames_equal_the_reference),
        cmocka_unit_test(test_a_worker_gives_the_same),
        cmocka_unit_test(test_what_is_no_video),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_damaged_files),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
