/* schemas/image_jpeg_rgb_avx512vbmi.c - a row of a JPEG from its planes to RGB with AVX-512 (contract in image_jpeg_rgb.h).
 *
 * The arithmetic is the library's. Chroma: three parts of the nearer sample and one of the farther, first down (sum), then along the row; even pixels are rounded with 8, odd ones with 7.
 * Colours: R = Y + 1.402 Cr, G = Y - 0.34414 Cb - 0.71414 Cr, B = Y + 1.772 Cb, each product in 16 bits behind the point, rounded once. Even and odd pixels
 * are the low and high bytes of 16-bit lanes all the way. */
#include "schemas/image_jpeg_rgb.h"

#if defined(__x86_64__)

#include <immintrin.h>

#define CHUNK 64u                     /* pixels */
#define HALF (CHUNK / 2)
#define CENTER 128
#define RED_CR 26345                  /* 1.402 - 1, times 65536 */
#define BLUE_CB (-14942)              /* 1.772 - 2 */
#define GREEN_CB (-22554)             /* -0.34414 */
#define GREEN_CR 18734                /* 1 - 0.71414 */
#define ROUND 32768

bool image_jpeg_rgb_is_here(void)
{
    return __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}

void image_jpeg_rgb_prepare(struct image_jpeg_rgb *r)
{
    for (uint32_t part = 0; part < 3; part++) {
        r->blue[part] = 0;
        for (uint32_t i = 0; i < 64; i++) {
            const uint32_t byte = part * 64 + i, channel = byte % 3;
            r->pick[part][i] = (uint8_t)(byte / 3 + (channel == 1 ? 64 : 0));
            if (channel == 2) r->blue[part] |= 1ull << i;
        }
    }
}

/* Three parts of one row and one of the other; a copy of the first and last value beside them. */
static void sum_rows(int16_t *sum, const uint8_t *near, const uint8_t *beside, uint32_t width)
{
    for (uint32_t x = 0; x < width; x += HALF) {
        const uint32_t left = width - x;
        const __mmask32 here = left >= HALF ? ~(__mmask32)0 : ~(__mmask32)0 >> (HALF - left);
        const __m512i a = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(here, near + x)), b = _mm512_cvtepu8_epi16(_mm256_maskz_loadu_epi8(here, beside + x));
        _mm512_storeu_si512(sum + 1 + x, _mm512_add_epi16(_mm512_add_epi16(a, b), _mm512_slli_epi16(a, 1)));
    }
    sum[0] = sum[1];
    sum[width + 1] = sum[width];
}

/* Chroma of the even or odd ones of 64 pixels, 0 in the middle: three parts of a sum and one of that beside it. */
static inline __m512i along(__m512i here3, const int16_t *beside, int round)
{
    const __m512i sixteen = _mm512_add_epi16(_mm512_add_epi16(here3, _mm512_loadu_si512(beside)), _mm512_set1_epi16((int16_t)round));

    return _mm512_sub_epi16(_mm512_srli_epi16(sixteen, 4), _mm512_set1_epi16(CENTER));
}

static inline __m512i times3(const int16_t *sum)
{
    const __m512i v = _mm512_loadu_si512(sum);

    return _mm512_add_epi16(v, _mm512_slli_epi16(v, 1));
}

/* v times a factor of 65536ths, rounded: the product with 2 v has a bit more, which rounds. */
static inline __m512i part_of(__m512i twice, int factor)
{
    return _mm512_srai_epi16(_mm512_add_epi16(_mm512_mulhi_epi16(twice, _mm512_set1_epi16((int16_t)factor)), _mm512_set1_epi16(1)), 1);
}

static inline __m512i clamp(__m512i v)
{
    return _mm512_min_epi16(_mm512_max_epi16(v, _mm512_setzero_si512()), _mm512_set1_epi16(255));
}

struct colours { __m512i r, g, b; };  /* of 32 pixels, 16 bits each */

static inline struct colours colours_of(__m512i y, __m512i cb, __m512i cr)
{
    const __m512i factors = _mm512_set1_epi32((int)((uint32_t)GREEN_CR << 16 | (uint16_t)GREEN_CB)), round = _mm512_set1_epi32(ROUND);
    const __m512i twice_cb = _mm512_slli_epi16(cb, 1), twice_cr = _mm512_slli_epi16(cr, 1);
    const __m512i low = _mm512_srai_epi32(_mm512_dpwssd_epi32(round, _mm512_unpacklo_epi16(cb, cr), factors), 16);
    const __m512i high = _mm512_srai_epi32(_mm512_dpwssd_epi32(round, _mm512_unpackhi_epi16(cb, cr), factors), 16);
    struct colours c;

    c.r = clamp(_mm512_add_epi16(_mm512_add_epi16(y, cr), part_of(twice_cr, RED_CR)));
    c.g = clamp(_mm512_add_epi16(_mm512_sub_epi16(y, cr), _mm512_packs_epi32(low, high)));
    c.b = clamp(_mm512_add_epi16(_mm512_add_epi16(y, twice_cb), part_of(twice_cb, BLUE_CB)));
    return c;
}

static inline __m512i weave(__m512i even, __m512i odd) { return _mm512_or_si512(even, _mm512_slli_epi16(odd, 8)); }

/* The first `bytes` of 64. */
static inline __mmask64 first_of(uint32_t bytes) { return bytes >= 64 ? ~(__mmask64)0 : bytes ? ~(__mmask64)0 >> (64 - bytes) : 0; }

void image_jpeg_rgb_row(const struct image_jpeg_rgb *j, const uint8_t *luma, const uint8_t *const near[2], const uint8_t *const beside[2], uint8_t *rgb)
{
    const __m512i pick0 = _mm512_loadu_si512(j->pick[0]), pick1 = _mm512_loadu_si512(j->pick[1]), pick2 = _mm512_loadu_si512(j->pick[2]);

    for (int c = 0; c < 2; c++) sum_rows(j->sum[c], near[c], beside[c], j->chroma_width);
    for (uint32_t x = 0; x < j->width; x += CHUNK, rgb += 3 * CHUNK) {
        const uint32_t left = j->width - x < CHUNK ? j->width - x : CHUNK;
        const int16_t *cb = j->sum[0] + 1 + x / 2, *cr = j->sum[1] + 1 + x / 2;
        const __m512i y = _mm512_maskz_loadu_epi8(first_of(left), luma + x), cb3 = times3(cb), cr3 = times3(cr);
        const struct colours even = colours_of(_mm512_and_si512(y, _mm512_set1_epi16(255)), along(cb3, cb - 1, 8), along(cr3, cr - 1, 8));
        const struct colours odd = colours_of(_mm512_srli_epi16(y, 8), along(cb3, cb + 1, 7), along(cr3, cr + 1, 7));
        const __m512i r = weave(even.r, odd.r), g = weave(even.g, odd.g), b = weave(even.b, odd.b);
        const __m512i first = _mm512_mask_permutexvar_epi8(_mm512_permutex2var_epi8(r, pick0, g), j->blue[0], pick0, b);
        const __m512i second = _mm512_mask_permutexvar_epi8(_mm512_permutex2var_epi8(r, pick1, g), j->blue[1], pick1, b);
        const __m512i third = _mm512_mask_permutexvar_epi8(_mm512_permutex2var_epi8(r, pick2, g), j->blue[2], pick2, b);
        if (left == CHUNK) {
            _mm512_storeu_si512(rgb, first);
            _mm512_storeu_si512(rgb + 64, second);
            _mm512_storeu_si512(rgb + 128, third);
        } else {
            const uint32_t bytes = left * 3;
            _mm512_mask_storeu_epi8(rgb, first_of(bytes), first);
            _mm512_mask_storeu_epi8(rgb + 64, first_of(bytes > 64 ? bytes - 64 : 0), second);
            _mm512_mask_storeu_epi8(rgb + 128, first_of(bytes > 128 ? bytes - 128 : 0), third);
        }
    }
}

#else

bool image_jpeg_rgb_is_here(void) { return false; }
void image_jpeg_rgb_prepare(struct image_jpeg_rgb *r) { (void)r; }
void image_jpeg_rgb_row(const struct image_jpeg_rgb *r, const uint8_t *luma, const uint8_t *const near[2], const uint8_t *const beside[2], uint8_t *rgb)
{
    (void)r, (void)luma, (void)near, (void)beside, (void)rgb;
}

#endif
