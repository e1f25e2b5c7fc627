/* model/picture.c - sizes, the antialiased resampling of 8-bit pixels, and patches. */
#include "model/picture_passes.h"

#include "shm/error.h"
#include "shm/must.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define CHANNELS PICTURE_CHANNELS
#define WEIGHT_BITS_MAX 22u

int picture_budget_is_known(uint32_t budget)
{
    return budget == 70 || budget == 140 || budget == 280 || budget == 560 || budget == 1120;
}

/* The reference's arithmetic, step by step in double: another order rounds to another multiple. */
int picture_target(uint32_t width, uint32_t height, uint32_t budget, uint32_t *target_width, uint32_t *target_height)
{
    if (width == 0 || height == 0 || width > PICTURE_SIDE_MAX || height > PICTURE_SIDE_MAX || !picture_budget_is_known(budget)) return -E_RANGE;
    const uint64_t target_pixels = (uint64_t)budget * PICTURE_PATCH * PICTURE_PATCH;
    const double factor = sqrt((double)target_pixels / (double)((uint64_t)height * width));
    uint64_t h = (uint64_t)floor(factor * (double)height / PICTURE_PATCH) * PICTURE_PATCH, w = (uint64_t)floor(factor * (double)width / PICTURE_PATCH) * PICTURE_PATCH;
    const uint64_t side_max = (uint64_t)budget * PICTURE_PATCH;

    if (h == 0 && w == 0) return -E_RANGE;
    if (h == 0) {
        h = PICTURE_PATCH;
        w = (uint64_t)(width / height) * PICTURE_PATCH;
        if (w > side_max) w = side_max;
    } else if (w == 0) {
        w = PICTURE_PATCH;
        h = (uint64_t)(height / width) * PICTURE_PATCH;
        if (h > side_max) h = side_max;
    }
    if (h * w > target_pixels) return -E_RANGE;
    *target_width = (uint32_t)w;
    *target_height = (uint32_t)h;
    return 0;
}

/* ---- weights --------------------------------------------------------------------------- */

static double filter_at(enum picture_filter filter, double x)
{
    const double a = -0.5;

    x = fabs(x);
    if (filter == PICTURE_BILINEAR) return x < 1.0 ? 1.0 - x : 0.0;
    if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
    if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
    return 0.0;
}

void picture_taps_close(struct picture_taps *t)
{
    free(t->first);
    free(t->weight);
    free(t->plan);
    memset(t, 0, sizeof *t);
}

/* The most bits with which the largest weight still fits in 16, sign included. */
static uint32_t weight_bits(double largest)
{
    uint32_t bits = 0;

    while (bits < WEIGHT_BITS_MAX && (int64_t)(0.5 + largest * (double)(1u << (bits + 1))) < 1 << 15) bits++;
    return bits;
}

int picture_taps_open(struct picture_taps *t, uint32_t in, uint32_t out, enum picture_filter filter)
{
    const double scale = (double)in / (double)out, reach = (filter == PICTURE_BICUBIC ? 4.0 : 2.0) * 0.5, support = scale >= 1.0 ? reach * scale : reach;
    const double inverse = scale >= 1.0 ? 1.0 / scale : 1.0;
    double largest = 0.0;

    t->stride = ((uint32_t)ceil(support) * 2 + 1 + 3) & ~3u;
    t->first = malloc(2 * sizeof *t->first * out);
    t->weight = calloc((size_t)out * t->stride, sizeof *t->weight);
    double *exact = calloc((size_t)out * t->stride, sizeof *exact);
    if (!t->first || !t->weight || !exact) {
        free(exact);
        picture_taps_close(t);
        return -E_NOMEM;
    }
    t->count = t->first + out;
    for (uint32_t i = 0; i < out; i++) {
        const double center = scale * ((double)i + 0.5);
        const int64_t low = (int64_t)(center - support + 0.5), high = (int64_t)(center + support + 0.5);
        const int64_t first = low > 0 ? low : 0;
        int64_t count = (high < (int64_t)in ? high : (int64_t)in) - first;
        double *w = exact + (size_t)i * t->stride, total = 0.0;

        if (count < 0) count = 0;
        if (count > (int64_t)t->stride) count = t->stride;
        for (int64_t j = 0; j < count; j++) total += w[j] = filter_at(filter, ((double)(j + first) - center + 0.5) * inverse);
        for (int64_t j = 0; j < count; j++) {
            if (total != 0.0) w[j] /= total;
            if (w[j] > largest) largest = w[j];
        }
        t->first[i] = (uint32_t)first;
        t->count[i] = (uint32_t)count;
    }
    t->bits = weight_bits(largest);
    for (size_t i = 0; i < (size_t)out * t->stride; i++) {
        const double v = exact[i] * (double)(1u << t->bits);
        t->weight[i] = (int16_t)(v < 0 ? v - 0.5 : v + 0.5);
    }
    free(exact);
    return 0;
}

/* ---- the two passes ----------------------------------------------------------------------- */

static void across_portable(const uint8_t *in, uint32_t width, uint32_t rows, uint8_t *out, uint32_t out_width, const struct picture_taps *t)
{
    for (uint32_t y = 0; y < rows; y++, in += (size_t)width * CHANNELS)
        for (uint32_t i = 0; i < out_width; i++, out += CHANNELS) picture_pixel(in, out, i, t);
}

static void down_portable(const uint8_t *first, uint32_t bytes, uint8_t *out, uint32_t row, const struct picture_taps *t)
{
    const int16_t *w = t->weight + (size_t)row * t->stride;

    for (uint32_t x = 0; x < bytes; x++) {
        int32_t sum = 1 << (t->bits - 1);
        for (uint32_t j = 0; j < t->count[row]; j++) sum += w[j] * first[(size_t)j * bytes + x];
        out[x] = picture_clamp(sum >> t->bits);
    }
}

void picture_pixel(const uint8_t *in, uint8_t out[3], uint32_t i, const struct picture_taps *t)
{
    const int16_t *w = t->weight + (size_t)i * t->stride;
    const uint8_t *p = in + (size_t)t->first[i] * CHANNELS;
    int32_t r = 1 << (t->bits - 1), g = r, b = r;

    for (uint32_t j = 0; j < t->count[i]; j++, p += CHANNELS) {
        r += w[j] * p[0];
        g += w[j] * p[1];
        b += w[j] * p[2];
    }
    out[0] = picture_clamp(r >> t->bits);
    out[1] = picture_clamp(g >> t->bits);
    out[2] = picture_clamp(b >> t->bits);
}

const struct picture_passes picture_passes_portable = {NULL, across_portable, down_portable};

const struct picture_passes *picture_passes_best(void)
{
#if defined(__x86_64__)
    if (picture_avx512vbmi_is_here()) return &picture_passes_avx512vbmi;
    if (__builtin_cpu_supports("avx2")) return &picture_passes_avx2;
#endif
    return &picture_passes_portable;
}

int picture_resize(const uint8_t *rgb, uint32_t width, uint32_t height, uint8_t *out, uint32_t out_width, uint32_t out_height, enum picture_filter filter)
{
    struct picture_taps across = {0}, down = {0};
    const struct picture_passes *passes = picture_passes_best();
    const uint32_t bytes = out_width * CHANNELS;
    uint8_t *narrowed = NULL;
    int rc = -E_RANGE;

    if (!width || !height || !out_width || !out_height || width > PICTURE_SIDE_MAX || height > PICTURE_SIDE_MAX || out_width > PICTURE_SIDE_MAX || out_height > PICTURE_SIDE_MAX) return rc;
    if ((rc = picture_taps_open(&across, width, out_width, filter)) != 0 || (rc = picture_taps_open(&down, height, out_height, filter)) != 0 ||
        (rc = picture_taps_arrange(&across, out_width, passes)) != 0)
        goto done;
    if (width != out_width) {
        narrowed = height == out_height ? out : malloc((size_t)bytes * height);
        if (!narrowed) {
            rc = -E_NOMEM;
            goto done;
        }
        passes->across(rgb, width, height, narrowed, out_width, &across);
    }
    const uint8_t *rows = narrowed ? narrowed : rgb;
    if (height != out_height)
        for (uint32_t y = 0; y < out_height; y++) passes->down(rows + (size_t)down.first[y] * bytes, bytes, out + (size_t)y * bytes, y, &down);
    else if (rows != out) memcpy(out, rows, (size_t)bytes * height);
done:
    picture_taps_close(&across);
    picture_taps_close(&down);
    if (narrowed != out) free(narrowed);
    return rc;
}

void picture_patches(const uint8_t *rgb, uint32_t width, uint32_t height, uint8_t *out)
{
    must(width % PICTURE_PATCH == 0 && height % PICTURE_PATCH == 0);
    for (uint32_t y = 0; y < height; y += PICTURE_PATCH)
        for (uint32_t x = 0; x < width; x += PICTURE_PATCH)
            for (uint32_t row = 0; row < PICTURE_PATCH; row++, out += PICTURE_PATCH * CHANNELS)
                memcpy(out, rgb + ((size_t)(y + row) * width + x) * CHANNELS, PICTURE_PATCH * CHANNELS);
}
