/* kernels/cpu/vec.h - sixteen f32 lanes, spelled for each instruction set.
 *
 * kernels/cpu/ops.h is written once in these words and compiled three times. Every word does the same IEEE operation in
 * each lane, rounded once, so that the three tables agree bit for bit; sums across lanes use one fixed tree. Fused
 * multiply-add is explicit: -ffp-contract=off keeps the compiler from making its own. */
#ifndef SLUICE_KERNELS_CPU_VEC_H
#define SLUICE_KERNELS_CPU_VEC_H

#include <math.h>
#include <stdint.h>
#include <string.h>

/* Sanitizers check every access: unrolled and inlined as below that is minutes of compiling for one file, so they get plain calls. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define VEC static __attribute__((unused))
#define UNROLL
#else
#define VEC static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__)
#include <immintrin.h>

typedef __m512 vec;
typedef __mmask16 vec_mask;

VEC vec vec_zero(void) { return _mm512_setzero_ps(); }
VEC vec vec_set(float x) { return _mm512_set1_ps(x); }
VEC vec vec_load(const float *p) { return _mm512_loadu_ps(p); }
VEC void vec_store(float *p, vec a) { _mm512_storeu_ps(p, a); }
VEC vec vec_load_bf16(const uint16_t *p)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}
/* Codes of kernels/stored.h. An E4M3 code is put into the f16 with the same exponent field: 2^-8 of its value, exact, small numbers included. */
VEC vec vec_load_e4m3(const uint8_t *p)
{
    const __m256i code = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p));   /* the sign fills the upper half: one shift puts all in place */

    return _mm512_cvtph_ps(_mm256_and_si256(_mm256_slli_epi16(code, 7), _mm256_set1_epi16((short)0xbfff)));
}
/* The same number as 16 bits: what vec_load_half takes back. */
VEC void vec_half_e4m3(uint16_t *to, const uint8_t *p)
{
    const __m256i code = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p));

    _mm256_storeu_si256((__m256i *)to, _mm256_and_si256(_mm256_slli_epi16(code, 7), _mm256_set1_epi16((short)0xbfff)));
}
VEC vec vec_load_half(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }
/* Numbers that are BF16 already. */
VEC void vec_cut_bf16(uint16_t *p, vec a) { _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(a), 16))); }
VEC void vec_load2_e4m3(vec *a, vec *b, const uint8_t *p)
{
    const __m512i code = _mm512_cvtepi8_epi16(_mm256_loadu_si256((const __m256i *)p));
    const __m512i half = _mm512_and_si512(_mm512_slli_epi16(code, 7), _mm512_set1_epi16((short)0xbfff));

    *a = _mm512_cvtph_ps(_mm512_castsi512_si256(half));
    *b = _mm512_cvtph_ps(_mm512_extracti64x4_epi64(half, 1));
}
VEC vec vec_pick_e2m1(__m128i code)
{
    const __m512 table = _mm512_setr_ps(0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6);

    return _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(code), table);       /* looks at the lowest four bits only */
}
VEC vec vec_load_e2m1(const uint8_t *p)
{
    const __m128i low = _mm_loadl_epi64((const __m128i *)p);

    return vec_pick_e2m1(_mm_unpacklo_epi8(low, _mm_srli_epi16(low, 4)));
}
VEC void vec_load2_e2m1(vec *a, vec *b, const uint8_t *p)
{
    const __m128i low = _mm_loadu_si128((const __m128i *)p), high = _mm_srli_epi16(low, 4);

    *a = vec_pick_e2m1(_mm_unpacklo_epi8(low, high));
    *b = vec_pick_e2m1(_mm_unpackhi_epi8(low, high));
}
/* The power of two at or below |a|, for normal a. */
VEC vec vec_exponent(vec a) { return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(0x7f800000))); }
VEC vec vec_add(vec a, vec b) { return _mm512_add_ps(a, b); }
VEC vec vec_sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
VEC vec vec_mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
VEC vec vec_div(vec a, vec b) { return _mm512_div_ps(a, b); }
VEC vec vec_fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
VEC vec vec_min(vec a, vec b) { return _mm512_min_ps(a, b); }
VEC vec vec_max(vec a, vec b) { return _mm512_max_ps(a, b); }
VEC vec vec_round(vec a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
/* 2^a for integral a in [-126, 127] */
VEC vec vec_pow2(vec a)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(a), _mm512_set1_epi32(127)), 23));
}
VEC vec vec_abs(vec a) { return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(0x7fffffff))); }
VEC vec_mask vec_less(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
VEC vec vec_select(vec_mask m, vec yes, vec no) { return _mm512_mask_blend_ps(m, no, yes); }
VEC void vec_store_bf16(uint16_t *p, vec a)
{
    const __m512i bits = _mm512_castps_si512(a);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));

    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}
VEC __m256 vec_fold8(vec a)
{
    return _mm256_add_ps(_mm512_castps512_ps256(a), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a), 1)));
}

#elif defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>

typedef struct { __m256 lo, hi; } vec;
typedef vec vec_mask;

VEC vec vec_zero(void) { return (vec){ _mm256_setzero_ps(), _mm256_setzero_ps() }; }
VEC vec vec_set(float x) { return (vec){ _mm256_set1_ps(x), _mm256_set1_ps(x) }; }
VEC vec vec_load(const float *p) { return (vec){ _mm256_loadu_ps(p), _mm256_loadu_ps(p + 8) }; }
VEC void vec_store(float *p, vec a) { _mm256_storeu_ps(p, a.lo); _mm256_storeu_ps(p + 8, a.hi); }
VEC __m256 vec_widen8(const uint16_t *p)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16));
}
VEC vec vec_load_bf16(const uint16_t *p) { return (vec){ vec_widen8(p), vec_widen8(p + 8) }; }
/* As above: f16 with the exponent field of the code. */
VEC vec vec_load_e4m3(const uint8_t *p)
{
    const __m256i code = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p));
    const __m256i half = _mm256_and_si256(_mm256_slli_epi16(code, 7), _mm256_set1_epi16((short)0xbfff));

    return (vec){ _mm256_cvtph_ps(_mm256_castsi256_si128(half)), _mm256_cvtph_ps(_mm256_extracti128_si256(half, 1)) };
}
VEC void vec_half_e4m3(uint16_t *to, const uint8_t *p)
{
    const __m256i code = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)p));

    _mm256_storeu_si256((__m256i *)to, _mm256_and_si256(_mm256_slli_epi16(code, 7), _mm256_set1_epi16((short)0xbfff)));
}
VEC vec vec_load_half(const uint16_t *p)
{
    return (vec){ _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8))) };
}
VEC void vec_cut_bf16(uint16_t *p, vec a)
{
    const __m256i packed = _mm256_packus_epi32(_mm256_srli_epi32(_mm256_castps_si256(a.lo), 16), _mm256_srli_epi32(_mm256_castps_si256(a.hi), 16));

    _mm256_storeu_si256((__m256i *)p, _mm256_permute4x64_epi64(packed, 0xd8));
}
VEC void vec_load2_e4m3(vec *a, vec *b, const uint8_t *p)
{
    *a = vec_load_e4m3(p);
    *b = vec_load_e4m3(p + 16);
}
VEC vec vec_pick_e2m1(__m128i code)
{
    const __m128i table = _mm_setr_epi8(0, 0x38, 0x3c, 0x3e, 0x40, 0x42, 0x44, 0x46, (char)0x80, (char)0xb8, (char)0xbc, (char)0xbe,
                                        (char)0xc0, (char)0xc2, (char)0xc4, (char)0xc6);     /* upper halves of f16 */
    const __m128i high = _mm_shuffle_epi8(table, _mm_and_si128(code, _mm_set1_epi8(15)));

    return (vec){ _mm256_cvtph_ps(_mm_unpacklo_epi8(_mm_setzero_si128(), high)), _mm256_cvtph_ps(_mm_unpackhi_epi8(_mm_setzero_si128(), high)) };
}
VEC vec vec_load_e2m1(const uint8_t *p)
{
    const __m128i low = _mm_loadl_epi64((const __m128i *)p);

    return vec_pick_e2m1(_mm_unpacklo_epi8(low, _mm_srli_epi16(low, 4)));
}
VEC void vec_load2_e2m1(vec *a, vec *b, const uint8_t *p)
{
    const __m128i low = _mm_loadu_si128((const __m128i *)p), high = _mm_srli_epi16(low, 4);

    *a = vec_pick_e2m1(_mm_unpacklo_epi8(low, high));
    *b = vec_pick_e2m1(_mm_unpackhi_epi8(low, high));
}
VEC vec vec_exponent(vec a)
{
    const __m256 keep = _mm256_castsi256_ps(_mm256_set1_epi32(0x7f800000));

    return (vec){ _mm256_and_ps(a.lo, keep), _mm256_and_ps(a.hi, keep) };
}
#define VEC_EACH(name, op) VEC vec name(vec a, vec b) { return (vec){ op(a.lo, b.lo), op(a.hi, b.hi) }; }
VEC_EACH(vec_add, _mm256_add_ps)
VEC_EACH(vec_sub, _mm256_sub_ps)
VEC_EACH(vec_mul, _mm256_mul_ps)
VEC_EACH(vec_div, _mm256_div_ps)
VEC_EACH(vec_min, _mm256_min_ps)
VEC_EACH(vec_max, _mm256_max_ps)
VEC vec vec_fma(vec a, vec b, vec c) { return (vec){ _mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi) }; }
VEC __m256 vec_round8(__m256 a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
VEC vec vec_round(vec a) { return (vec){ vec_round8(a.lo), vec_round8(a.hi) }; }
VEC __m256 vec_pow28(__m256 a)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(a), _mm256_set1_epi32(127)), 23));
}
VEC vec vec_pow2(vec a) { return (vec){ vec_pow28(a.lo), vec_pow28(a.hi) }; }
VEC vec vec_abs(vec a)
{
    const __m256 keep = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));

    return (vec){ _mm256_and_ps(a.lo, keep), _mm256_and_ps(a.hi, keep) };
}
VEC vec_mask vec_less(vec a, vec b) { return (vec){ _mm256_cmp_ps(a.lo, b.lo, _CMP_LT_OQ), _mm256_cmp_ps(a.hi, b.hi, _CMP_LT_OQ) }; }
VEC vec vec_select(vec_mask m, vec yes, vec no)
{
    return (vec){ _mm256_blendv_ps(no.lo, yes.lo, m.lo), _mm256_blendv_ps(no.hi, yes.hi, m.hi) };
}
VEC __m256i vec_narrow8(__m256 a)
{
    const __m256i bits = _mm256_castps_si256(a);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));

    return _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
}
VEC void vec_store_bf16(uint16_t *p, vec a)
{
    const __m256i packed = _mm256_packus_epi32(vec_narrow8(a.lo), vec_narrow8(a.hi));

    _mm256_storeu_si256((__m256i *)p, _mm256_permute4x64_epi64(packed, 0xd8));
}
VEC __m256 vec_fold8(vec a) { return _mm256_add_ps(a.lo, a.hi); }

#else

typedef struct { float f[16]; } vec;
typedef struct { uint8_t m[16]; } vec_mask;

#define VEC_FOR for (int i = 0; i < 16; i++)
VEC vec vec_set(float x) { vec r; VEC_FOR r.f[i] = x; return r; }
VEC vec vec_zero(void) { return vec_set(0); }
VEC vec vec_load(const float *p) { vec r; memcpy(r.f, p, sizeof(r.f)); return r; }
VEC void vec_store(float *p, vec a) { memcpy(p, a.f, sizeof(a.f)); }
VEC float vec_float(uint32_t bits) { float f; memcpy(&f, &bits, 4); return f; }
VEC uint32_t vec_bits(float f) { uint32_t bits; memcpy(&bits, &f, 4); return bits; }
VEC vec vec_load_bf16(const uint16_t *p) { vec r; VEC_FOR r.f[i] = vec_float((uint32_t)p[i] << 16); return r; }
VEC vec vec_load_e4m3(const uint8_t *p)
{
    vec r;

    VEC_FOR r.f[i] = vec_float((uint32_t)(p[i] & 0x80) << 24 | (uint32_t)(p[i] & 0x7f) << 20) * 0x1p112f;  /* f32 of the same exponent field, times 2^120 / 2^8 */
    return r;
}
VEC void vec_load2_e4m3(vec *a, vec *b, const uint8_t *p)
{
    *a = vec_load_e4m3(p);
    *b = vec_load_e4m3(p + 16);
}
VEC void vec_cut_bf16(uint16_t *p, vec a) { VEC_FOR p[i] = (uint16_t)(vec_bits(a.f[i]) >> 16); }
VEC void vec_half_e4m3(uint16_t *to, const uint8_t *p) { vec_cut_bf16(to, vec_load_e4m3(p)); }
VEC vec vec_load_half(const uint16_t *p) { return vec_load_bf16(p); }
VEC vec vec_load_e2m1(const uint8_t *p)
{
    static const float table[16] = { 0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6 };
    vec r;

    VEC_FOR r.f[i] = table[p[i / 2] >> (i % 2 * 4) & 15];
    return r;
}
VEC void vec_load2_e2m1(vec *a, vec *b, const uint8_t *p)
{
    *a = vec_load_e2m1(p);
    *b = vec_load_e2m1(p + 8);
}
VEC vec vec_exponent(vec a) { VEC_FOR a.f[i] = vec_float(vec_bits(a.f[i]) & 0x7f800000); return a; }
VEC vec vec_add(vec a, vec b) { VEC_FOR a.f[i] += b.f[i]; return a; }
VEC vec vec_sub(vec a, vec b) { VEC_FOR a.f[i] -= b.f[i]; return a; }
VEC vec vec_mul(vec a, vec b) { VEC_FOR a.f[i] *= b.f[i]; return a; }
VEC vec vec_div(vec a, vec b) { VEC_FOR a.f[i] /= b.f[i]; return a; }
/* Without a fused instruction this is a library call in every lane: right, and slow. */
VEC vec vec_fma(vec a, vec b, vec c) { VEC_FOR c.f[i] = __builtin_fmaf(a.f[i], b.f[i], c.f[i]); return c; }
/* As the x86 instructions: the second operand when either is NaN. */
VEC vec vec_min(vec a, vec b) { VEC_FOR a.f[i] = a.f[i] < b.f[i] ? a.f[i] : b.f[i]; return a; }
VEC vec vec_max(vec a, vec b) { VEC_FOR a.f[i] = a.f[i] > b.f[i] ? a.f[i] : b.f[i]; return a; }
VEC vec vec_round(vec a) { VEC_FOR a.f[i] = __builtin_rintf(a.f[i]); return a; }
VEC vec vec_pow2(vec a) { VEC_FOR a.f[i] = a.f[i] == a.f[i] ? vec_float((uint32_t)((int32_t)a.f[i] + 127) << 23) : 1.0f; return a; }
VEC vec vec_abs(vec a) { VEC_FOR a.f[i] = vec_float(vec_bits(a.f[i]) & 0x7fffffff); return a; }
VEC vec_mask vec_less(vec a, vec b) { vec_mask r; VEC_FOR r.m[i] = a.f[i] < b.f[i]; return r; }
VEC vec vec_select(vec_mask m, vec yes, vec no) { VEC_FOR no.f[i] = m.m[i] ? yes.f[i] : no.f[i]; return no; }
VEC void vec_store_bf16(uint16_t *p, vec a)
{
    VEC_FOR {
        const uint32_t bits = vec_bits(a.f[i]);

        p[i] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
}
VEC float vec_sum(vec a)
{
    for (int n = 8; n > 0; n /= 2)
        for (int i = 0; i < n; i++) a.f[i] += a.f[i + n];
    return a.f[0];
}
VEC float vec_top(vec a)
{
    for (int n = 8; n > 0; n /= 2)
        for (int i = 0; i < n; i++) a.f[i] = a.f[i] > a.f[i + n] ? a.f[i] : a.f[i + n];
    return a.f[0];
}
#define VEC_PORTABLE 1
#endif

#ifndef VEC_PORTABLE
/* The tree (l, l+8), (l, l+4), (l, l+2), (0, 1). */
VEC float vec_sum(vec a)
{
    const __m256 s8 = vec_fold8(a);
    const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
    const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));

    return _mm_cvtss_f32(_mm_add_ss(s2, _mm_shuffle_ps(s2, s2, 1)));
}
VEC float vec_top(vec a)
{
    float f[16], top;

    vec_store(f, a);
    top = f[0];
    for (int i = 1; i < 16; i++) top = top > f[i] ? top : f[i];
    return top;
}
#endif

#endif
