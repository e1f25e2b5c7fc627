/* model/picture_avx2.c - the passes of picture_resize with AVX2: two taps a multiply-add, two rows or 16 bytes at a time. */
#include "model/picture_passes.h"

#if defined(__x86_64__)

#include <immintrin.h>
#include <string.h>

#define LOAD_BYTES 16u

static __m256i weights_of(const int16_t *w) /* of two taps, for every channel */
{
    int32_t pair;

    memcpy(&pair, w, sizeof pair);
    return _mm256_set1_epi32(pair);
}

static void store_pixel(__m128i sum, uint32_t bits, uint8_t *out)
{
    const __m128i shifted = _mm_sra_epi32(sum, _mm_cvtsi32_si128((int)bits));
    const uint32_t packed = (uint32_t)_mm_cvtsi128_si32(_mm_packus_epi16(_mm_packs_epi32(shifted, shifted), shifted));

    out[0] = (uint8_t)packed;
    out[1] = (uint8_t)(packed >> 8);
    out[2] = (uint8_t)(packed >> 16);
}

/* Pixel i of two rows: four taps a turn, as pairs of 16-bit values r0 r1 g0 g1 b0 b1. */
static void two_pixels(const uint8_t *upper, const uint8_t *lower, uint8_t *out_upper, uint8_t *out_lower, uint32_t i, const struct picture_taps *t)
{
    const __m256i first = _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1, 0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1);
    const __m256i second = _mm256_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1, 6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
    const int16_t *w = t->weight + (size_t)i * t->stride;
    size_t at = (size_t)t->first[i] * PICTURE_CHANNELS;
    __m256i sum = _mm256_set1_epi32(1 << (t->bits - 1));

    for (uint32_t j = 0; j < t->count[i]; j += 4, w += 4, at += 4 * PICTURE_CHANNELS) {
        const __m256i pixels = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)(upper + at))), _mm_loadu_si128((const __m128i *)(lower + at)), 1);
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_shuffle_epi8(pixels, first), weights_of(w)));
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_shuffle_epi8(pixels, second), weights_of(w + 2)));
    }
    store_pixel(_mm256_castsi256_si128(sum), t->bits, out_upper);
    store_pixel(_mm256_extracti128_si256(sum, 1), t->bits, out_lower);
}

/* A turn reads 16 bytes from its first tap on: the last pixels of a row, whose reads would leave it, go one by one. */
static uint32_t vector_pixels(uint32_t width, uint32_t out_width, const struct picture_taps *t)
{
    uint32_t n = out_width;

    while (n > 0 && ((size_t)t->first[n - 1] + ((t->count[n - 1] + 3) & ~3u)) * PICTURE_CHANNELS + LOAD_BYTES > (size_t)width * PICTURE_CHANNELS) n--;
    return n;
}

static void across(const uint8_t *in, uint32_t width, uint32_t rows, uint8_t *out, uint32_t out_width, const struct picture_taps *t)
{
    const size_t in_bytes = (size_t)width * PICTURE_CHANNELS, out_bytes = (size_t)out_width * PICTURE_CHANNELS;
    const uint32_t vectors = vector_pixels(width, out_width, t);

    for (uint32_t y = 0; y < rows; y += 2) {
        const uint8_t *upper = in + y * in_bytes, *lower = y + 1 < rows ? upper + in_bytes : upper;
        uint8_t *to_upper = out + y * out_bytes, *to_lower = y + 1 < rows ? to_upper + out_bytes : to_upper;
        for (uint32_t i = 0; i < vectors; i++) two_pixels(upper, lower, to_upper + i * PICTURE_CHANNELS, to_lower + i * PICTURE_CHANNELS, i, t);
        for (uint32_t i = vectors; i < out_width; i++) {
            picture_pixel(upper, to_upper + i * PICTURE_CHANNELS, i, t);
            picture_pixel(lower, to_lower + i * PICTURE_CHANNELS, i, t);
        }
    }
}

static void down(const uint8_t *top, uint32_t bytes, uint8_t *out, uint32_t row, const struct picture_taps *t)
{
    const int16_t *w = t->weight + (size_t)row * t->stride;
    const __m128i bits = _mm_cvtsi32_si128((int)t->bits);
    const uint32_t count = t->count[row];
    uint32_t x = 0;

    for (; x + LOAD_BYTES <= bytes; x += LOAD_BYTES) {
        __m256i low = _mm256_set1_epi32(1 << (t->bits - 1)), high = low;
        for (uint32_t j = 0; j < count; j += 2) { /* an odd last tap has a weight of 0 beside it */
            const uint8_t *p = top + (size_t)j * bytes + x;
            const __m256i a = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)p));
            const __m256i b = j + 1 < count ? _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(p + bytes))) : a;
            const __m256i pair = weights_of(w + j);
            low = _mm256_add_epi32(low, _mm256_madd_epi16(_mm256_unpacklo_epi16(a, b), pair));
            high = _mm256_add_epi32(high, _mm256_madd_epi16(_mm256_unpackhi_epi16(a, b), pair));
        }
        const __m256i words = _mm256_packs_epi32(_mm256_sra_epi32(low, bits), _mm256_sra_epi32(high, bits));
        const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi16(words, words), 0x08);
        _mm_storeu_si128((__m128i *)(out + x), _mm256_castsi256_si128(packed));
    }
    for (; x < bytes; x++) {
        int32_t sum = 1 << (t->bits - 1);
        for (uint32_t j = 0; j < count; j++) sum += w[j] * top[(size_t)j * bytes + x];
        out[x] = picture_clamp(sum >> t->bits);
    }
}

const struct picture_passes picture_passes_avx2 = {across, down};

#endif
