/* schemas/image_png_filter_avx2.c - PNG's filters for pixels of three and four bytes, a pixel at a time, and "up" sixteen bytes at a time. */
#include "schemas/image_png_filter.h"

#if defined(__x86_64__)

#include <immintrin.h>
#include <string.h>

static void up(const uint8_t *in, const uint8_t *above, uint8_t *out, size_t bytes)
{
    for (size_t i = 0; i < bytes; i += 16) /* into the padding */
        _mm_storeu_si128((__m128i *)(out + i), _mm_add_epi8(_mm_loadu_si128((const __m128i *)(in + i)), _mm_loadu_si128((const __m128i *)(above + i))));
}

static inline __m128i load4(const uint8_t *p)
{
    int32_t v;

    memcpy(&v, p, sizeof v);
    return _mm_cvtsi32_si128(v);
}

static inline void store4(uint8_t *p, __m128i v)
{
    const int32_t low = _mm_cvtsi128_si32(v);

    memcpy(p, &low, sizeof low); /* of three bytes the fourth is the next pixel's, which comes next */
}

static inline __attribute__((always_inline)) void sub_pixels(const uint8_t *in, uint8_t *out, size_t bytes, size_t pixel)
{
    __m128i left = _mm_setzero_si128();

    for (size_t i = 0; i < bytes; i += pixel) store4(out + i, left = _mm_add_epi8(left, load4(in + i)));
}

static inline __attribute__((always_inline)) void average_pixels(const uint8_t *in, const uint8_t *above, uint8_t *out, size_t bytes, size_t pixel)
{
    const __m128i one = _mm_set1_epi8(1);
    __m128i left = _mm_setzero_si128();

    for (size_t i = 0; i < bytes; i += pixel) {
        const __m128i b = load4(above + i), half = _mm_sub_epi8(_mm_avg_epu8(left, b), _mm_and_si128(_mm_xor_si128(left, b), one)); /* avg rounds up */
        store4(out + i, left = _mm_add_epi8(load4(in + i), half));
    }
}

static inline __attribute__((always_inline)) void paeth_pixels(const uint8_t *in, const uint8_t *above, uint8_t *out, size_t bytes, size_t pixel)
{
    const __m128i zero = _mm_setzero_si128();
    __m128i a = zero, c = zero; /* 16 bits a channel: left, corner */

    for (size_t i = 0; i < bytes; i += pixel) { /* each pixel waits for the one before: what counts is the way from a to a */
        const __m128i b = _mm_unpacklo_epi8(load4(above + i), zero), x = _mm_unpacklo_epi8(load4(in + i), zero);
        const __m128i to_a = _mm_sub_epi16(b, c), to_b = _mm_sub_epi16(a, c);
        const __m128i far_a = _mm_abs_epi16(to_a), far_b = _mm_abs_epi16(to_b), far_c = _mm_abs_epi16(_mm_add_epi16(to_a, to_b));
        const __m128i nearer = _mm_blendv_epi8(a, b, _mm_cmpgt_epi16(far_a, far_b));
        const __m128i guess = _mm_blendv_epi8(nearer, c, _mm_cmpgt_epi16(_mm_min_epi16(far_a, far_b), far_c));
        a = _mm_add_epi8(x, guess); /* the upper halves stay 0 */
        c = b;
        store4(out + i, _mm_packus_epi16(a, a));
    }
}

bool image_png_unfilter_avx2(uint8_t filter, const uint8_t *in, const uint8_t *above, uint8_t *out, size_t bytes, size_t pixel)
{
    if (filter == FILTER_UP) up(in, above, out, bytes);
    else if (pixel == 3 && filter == FILTER_SUB) sub_pixels(in, out, bytes, 3);
    else if (pixel == 4 && filter == FILTER_SUB) sub_pixels(in, out, bytes, 4);
    else if (pixel == 3 && filter == FILTER_AVERAGE) average_pixels(in, above, out, bytes, 3);
    else if (pixel == 4 && filter == FILTER_AVERAGE) average_pixels(in, above, out, bytes, 4);
    else if (pixel == 3 && filter == FILTER_PAETH) paeth_pixels(in, above, out, bytes, 3);
    else if (pixel == 4 && filter == FILTER_PAETH) paeth_pixels(in, above, out, bytes, 4);
    else return false;
    return true;
}

#endif
