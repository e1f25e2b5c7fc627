/* tests/fuzz/video_fuzz.c - a video file of unknown origin: the frames that come of it are as many and as large as the limits allow, and times grow.
 * libav itself is not instrumented; what is watched is what we make of it, and that nothing it does kills or leaks. */
#include "schemas/video.h"

#include "shm/error.h"

#include <stdlib.h>
#include <string.h>

struct seen { struct video_info info; uint32_t frames; };

static const struct video_limits limits = {.side_max = 256, .pixels_max = 1 << 15, .total_max = 200, .seconds_max = 1000, .frames_max = 4};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static int begin(void *context, const struct video_info *info)
{
    struct seen *s = context;

    if (info->frames == 0 || info->frames > limits.frames_max || info->frames > info->total || info->total > limits.total_max || !(info->fps > 0)) abort();
    if (info->orientation != 1 && info->orientation != 3 && info->orientation != 6 && info->orientation != 8) abort();
    for (uint32_t i = 0; i < info->frames; i++)
        if (video_index(i, info->total, info->frames) >= info->total || (i > 0 && video_index(i, info->total, info->frames) <= video_index(i - 1, info->total, info->frames))) abort();
    s->info = *info;
    return 0;
}

static int frame(void *context, uint32_t i, const uint8_t *rgb, uint32_t width, uint32_t height)
{
    struct seen *s = context;
    volatile uint8_t last = 0;

    if (i != s->frames++ || width == 0 || height == 0 || width > limits.side_max || height > limits.side_max || (uint64_t)width * height > limits.pixels_max) abort();
    for (size_t k = 0; k < (size_t)width * height * 3; k += 61) last ^= rgb[k];
    last ^= rgb[(size_t)width * height * 3 - 1];
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    struct seen seen = {.frames = 0};
    const struct video_sink sink = {.begin = begin, .frame = frame, .context = &seen};
    char why[VIDEO_ERROR_BYTES];
    const int rc = video_decode(data, bytes, &limits, &sink, why);

    if (rc == 0 && (seen.frames == 0 || seen.frames != seen.info.frames)) abort();
    if (rc != 0 && ((rc != -E_FORMAT && rc != -E_RANGE && rc != -E_LIMIT) || !why[0] || !memchr(why, 0, sizeof why))) abort();
    return 0;
}
