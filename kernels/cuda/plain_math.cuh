/* kernels/cuda/plain_math.cuh - the arithmetic of kernels/cpu/ops.h, one lane at a time, for host C and device.
 *
 * Every function does the same IEEE operations in the same order as its namesake there, each rounded once: the
 * intrinsics keep the compiler from contracting a product and a sum; on the host that is the Makefile's -ffp-contract=off.
 * Change ops.h and this file together: tests/unit/plain_math_test.c compares them bit by bit. */
#ifndef SLUICE_CUDA_PLAIN_MATH_CUH
#define SLUICE_CUDA_PLAIN_MATH_CUH

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define PLAIN_FN static __host__ __device__ __forceinline__
#else
#define PLAIN_FN static inline
#endif
#define PLAIN_LANES 16                /* KERNELS_LANES */
#define PLAIN_SEGMENT 256             /* KERNELS_SEGMENT */

#ifdef __CUDA_ARCH__
PLAIN_FN float plain_add(float a, float b) { return __fadd_rn(a, b); }
PLAIN_FN float plain_sub(float a, float b) { return __fsub_rn(a, b); }
PLAIN_FN float plain_mul(float a, float b) { return __fmul_rn(a, b); }
PLAIN_FN float plain_div(float a, float b) { return __fdiv_rn(a, b); }
PLAIN_FN float plain_fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
PLAIN_FN float plain_sqrt(float a) { return __fsqrt_rn(a); }
PLAIN_FN float plain_float(uint32_t bits) { return __uint_as_float(bits); }
PLAIN_FN uint32_t plain_bits(float a) { return __float_as_uint(a); }
#else
PLAIN_FN float plain_add(float a, float b) { return a + b; }
PLAIN_FN float plain_sub(float a, float b) { return a - b; }
PLAIN_FN float plain_mul(float a, float b) { return a * b; }
PLAIN_FN float plain_div(float a, float b) { return a / b; }
PLAIN_FN float plain_fma(float a, float b, float c) { return fmaf(a, b, c); }
PLAIN_FN float plain_sqrt(float a) { return sqrtf(a); }
PLAIN_FN float plain_float(uint32_t bits) { float a; memcpy(&a, &bits, 4); return a; }
PLAIN_FN uint32_t plain_bits(float a) { uint32_t bits; memcpy(&bits, &a, 4); return bits; }
#endif

/* As the x86 instructions: the second operand when either is NaN. */
PLAIN_FN float plain_min(float a, float b) { return a < b ? a : b; }
PLAIN_FN float plain_max(float a, float b) { return a > b ? a : b; }

PLAIN_FN float plain_widen(uint16_t bf16) { return plain_float((uint32_t)bf16 << 16); }
PLAIN_FN uint16_t plain_narrow(float a)
{
    const uint32_t bits = plain_bits(a);

    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

PLAIN_FN float plain_exp(float x)
{
    const float low = -87.3365447f, high = 88.3762589f;
    const float cut = plain_max(low, plain_min(high, x));      /* this order lets a NaN through */
    const float n = rintf(plain_mul(cut, 1.44269504f));
    float r = plain_fma(n, -0.693359375f, cut), p;

    r = plain_fma(n, 2.12194440e-4f, r);
    p = plain_fma(r, 1.9875691500e-4f, 1.3981999507e-3f);
    p = plain_fma(p, r, 8.3334519073e-3f);
    p = plain_fma(p, r, 4.1665795894e-2f);
    p = plain_fma(p, r, 1.6666665459e-1f);
    p = plain_fma(p, r, 5.0000001201e-1f);
    p = plain_fma(p, plain_mul(r, r), plain_add(r, 1.0f));
    if (x < low) return 0.0f;
    return plain_mul(p, n == n ? plain_float((uint32_t)((int32_t)n + 127) << 23) : 1.0f);
}

PLAIN_FN float plain_tanh(float x)
{
    const float size = plain_min(9.1f, plain_float(plain_bits(x) & 0x7fffffff)), z = plain_mul(x, x);
    const float e = plain_exp(plain_add(size, size));
    const float big = plain_sub(1.0f, plain_div(2.0f, plain_add(e, 1.0f)));
    float p = plain_fma(z, -5.70498872745e-3f, 2.06390887954e-2f);

    p = plain_fma(p, z, -5.37397155531e-2f);
    p = plain_fma(p, z, 1.33314422036e-1f);
    p = plain_fma(p, z, -3.33332819422e-1f);
    p = plain_fma(plain_mul(p, z), x, x);
    return size < 0.625f ? p : x < 0.0f ? plain_sub(0.0f, big) : big;
}

PLAIN_FN float plain_geglu(float gate, float up)
{
    const float inner = plain_mul(0.797884583f, plain_fma(plain_mul(0.044715f, plain_mul(gate, gate)), gate, gate));

    return plain_mul(plain_mul(plain_mul(0.5f, gate), plain_add(1.0f, plain_tanh(inner))), up);
}

PLAIN_FN float plain_softcap(float x, float cap) { return plain_mul(cap, plain_tanh(plain_div(x, cap))); }

/* What a norm multiplies by, from the sum of squares. */
PLAIN_FN float plain_norm_scale(float sum, uint32_t n, float eps)
{
    return plain_div(1.0f, plain_sqrt(plain_add(plain_div(sum, (float)n), eps)));
}

/* One element of a pair turned by an angle: low = a cos - b sin, high = b cos + a sin. */
PLAIN_FN float plain_turn_low(float a, float b, float c, float s) { return plain_sub(plain_mul(a, c), plain_mul(b, s)); }
PLAIN_FN float plain_turn_high(float a, float b, float c, float s) { return plain_add(plain_mul(b, c), plain_mul(a, s)); }

/* x (times or over its scale) to the nearest number of E4M3, cut off at 448; a NaN stays one. Quanta as in ops.h. */
PLAIN_FN float plain_to_e4m3(float x)
{
    const float cut = plain_max(-448.0f, plain_min(448.0f, x));
    const float magic = plain_mul(plain_max(plain_float(plain_bits(cut) & 0x7f800000), 0.015625f), 1572864.0f);      /* 2^-6, 1.5 * 2^20 */

    return plain_sub(plain_add(cut, magic), magic);
}

#endif
