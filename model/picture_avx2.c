/* model/picture_avx2.c - the passes of picture_resize with AVX2: two taps a multiply-add, four rows or 16 bytes at a time. */
#include "model/picture_passes.h"

#if defined(__x86_64__)

#include <immintrin.h>
#include <string.h>

#define LOAD_BYTES 16u
#define ROWS 4u /* that share a load of weights */

static __m256i weights_of(const int16_t *w) /* of two taps, for every channel */
{
    int32_t pair;

    memcpy(&pair, w, sizeof pair);
    return _mm256_set1_epi32(pair);
}

static uint32_t packed_pixel(__m128i sum, uint32_t bits)
{
    const __m128i shifted = _mm_sra_epi32(sum, _mm_cvtsi32_si128((int)bits));

    return (uint32_t)_mm_cvtsi128_si32(_mm_packus_epi16(_mm_packs_epi32(shifted, shifted), shifted));
}

/* Two rows of four taps, as pairs of 16-bit values r0 r1 g0 g1 b0 b1 times their weights. */
static inline __m256i two_rows(const uint8_t *upper, const uint8_t *lower, __m256i near, __m256i far)
{
    const __m256i first = _mm256_setr_epi8(0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1, 0, -1, 3, -1, 1, -1, 4, -1, 2, -1, 5, -1, -1, -1, -1, -1);
    const __m256i second = _mm256_setr_epi8(6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1, 6, -1, 9, -1, 7, -1, 10, -1, 8, -1, 11, -1, -1, -1, -1, -1);
    const __m256i pixels = _mm256_inserti128_si256(_mm256_castsi128_si256(_mm_loadu_si128((const __m128i *)upper)), _mm_loadu_si128((const __m128i *)lower), 1);

    return _mm256_add_epi32(_mm256_madd_epi16(_mm256_shuffle_epi8(pixels, first), near), _mm256_madd_epi16(_mm256_shuffle_epi8(pixels, second), far));
}

/* Pixel i of four rows. in, out: those of the rows. */
static inline void four_pixels(const uint8_t *const in[ROWS], uint32_t out[ROWS], uint32_t i, const struct picture_taps *t)
{
    const int16_t *w = t->weight + (size_t)i * t->stride;
    size_t at = (size_t)t->first[i] * PICTURE_CHANNELS;
    __m256i a = _mm256_set1_epi32(1 << (t->bits - 1)), b = a;

    for (uint32_t j = 0; j < t->count[i]; j += 4, w += 4, at += 4 * PICTURE_CHANNELS) {
        const __m256i near = weights_of(w), far = weights_of(w + 2);
        a = _mm256_add_epi32(a, two_rows(in[0] + at, in[1] + at, near, far));
        b = _mm256_add_epi32(b, two_rows(in[2] + at, in[3] + at, near, far));
    }
    out[0] = packed_pixel(_mm256_castsi256_si128(a), t->bits);
    out[1] = packed_pixel(_mm256_extracti128_si256(a, 1), t->bits);
    out[2] = packed_pixel(_mm256_castsi256_si128(b), t->bits);
    out[3] = packed_pixel(_mm256_extracti128_si256(b, 1), t->bits);
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

    for (uint32_t y = 0; y < rows; y += ROWS) {
        const uint8_t *from[ROWS];
        uint8_t *to[ROWS];
        uint32_t pixel[ROWS];
        for (uint32_t r = 0; r < ROWS; r++) { /* rows that are not there: the last one, again */
            const size_t row = y + r < rows ? y + r : rows - 1;
            from[r] = in + row * in_bytes;
            to[r] = out + row * out_bytes;
        }
        for (uint32_t i = 0; i < vectors; i++) { /* the fourth byte is the next pixel's, which comes next; behind the last one another row begins */
            four_pixels(from, pixel, i, t);
            if (i + 1 < vectors)
                for (uint32_t r = 0; r < ROWS; r++) memcpy(to[r] + (size_t)i * PICTURE_CHANNELS, &pixel[r], sizeof pixel[0]);
            else
                for (uint32_t r = 0; r < ROWS; r++) memcpy(to[r] + (size_t)i * PICTURE_CHANNELS, &pixel[r], PICTURE_CHANNELS);
        }
        for (uint32_t i = vectors; i < out_width; i++)
            for (uint32_t r = 0; r < ROWS; r++) picture_pixel(from[r], to[r] + (size_t)i * PICTURE_CHANNELS, i, t);
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

const struct picture_passes picture_passes_avx2 = {NULL, across, down};

#endif
