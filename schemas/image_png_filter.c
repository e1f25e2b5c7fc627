/* schemas/image_png_filter.c - see image_png_filter.h. Pixels of three and four bytes, which is what large pictures have, go the faster way of image_png_filter_avx2.c. */
#include "schemas/image_png_filter.h"

#include "shm/error.h"

#include <string.h>

static uint8_t paeth(int left, int above, int corner)
{
    const int p = left + above - corner, a = p > left ? p - left : left - p, b = p > above ? p - above : above - p, c = p > corner ? p - corner : corner - p;

    return (uint8_t)(a <= b && a <= c ? left : b <= c ? above : corner);
}

/* Any pixel; the filter is known where this is called, so that each has its own loop. */
static inline __attribute__((always_inline)) void plain(enum image_png_filter filter, const uint8_t *in, const uint8_t *above, uint8_t *out, size_t bytes, size_t pixel)
{
    for (size_t i = 0; i < bytes; i++) {
        const uint8_t left = i < pixel ? 0 : out[i - pixel], corner = i < pixel ? 0 : above[i - pixel];
        const uint8_t guess = filter == FILTER_SUB ? left : filter == FILTER_AVERAGE ? (uint8_t)((left + above[i]) >> 1) : paeth(left, above[i], corner);
        out[i] = (uint8_t)(in[i] + guess);
    }
}

static void up(const uint8_t *in, const uint8_t *above, uint8_t *out, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) out[i] = (uint8_t)(in[i] + above[i]);
}

static bool fast(uint8_t filter, const uint8_t *in, const uint8_t *above, uint8_t *out, size_t bytes, size_t pixel)
{
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2")) return image_png_unfilter_avx2(filter, in, above, out, bytes, pixel);
#endif
    (void)filter, (void)in, (void)above, (void)out, (void)bytes, (void)pixel;
    return false;
}

int image_png_unfilter(uint8_t filter, const uint8_t *in, const uint8_t *above, uint8_t *out, size_t bytes, size_t pixel)
{
    if (filter > FILTER_PAETH) return -E_FORMAT;
    if (filter == FILTER_NONE) memcpy(out, in, bytes);
    else if (fast(filter, in, above, out, bytes, pixel)) return 0;
    else if (filter == FILTER_UP) up(in, above, out, bytes);
    else if (filter == FILTER_SUB) plain(FILTER_SUB, in, above, out, bytes, pixel);
    else if (filter == FILTER_AVERAGE) plain(FILTER_AVERAGE, in, above, out, bytes, pixel);
    else plain(FILTER_PAETH, in, above, out, bytes, pixel);
    return 0;
}
