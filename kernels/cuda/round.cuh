/* kernels/cuda/round.cuh - the arithmetic of the activation rules (round.h): one text for the kernel that only rounds and for those that round what they make. */
#ifndef SLUICE_CUDA_ROUND_CUH
#define SLUICE_CUDA_ROUND_CUH

#include "device.cuh"
#include "kernels/stored.h"

#define ROUND_SCALE_MIN (1.0f / (448.0f * 512.0f))             /* KERNELS_E4M3_SCALE_MIN: zeros stay zeros */

/* How a row is rounded: elements are divided by the scale when it is the row's own, multiplied by its inverse when it is fixed: as the formats' own kernels do in each case. */
struct round_by { float scale, inverse; bool divides; };

__device__ __forceinline__ round_by round_by_largest(float top)
{
    const float part = 1.0f / STORED_E4M3_MAX, guess = top * part;
    const float scale = fmaxf(__fmaf_rn(__fmaf_rn(-guess, STORED_E4M3_MAX, top), part, guess), ROUND_SCALE_MIN);
    float inverse;

    /* As __fdiv_rn and __frcp_rn, without their code for numbers that do not come here. */
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(scale));
    return { scale, __fmaf_rn(__fmaf_rn(-scale, inverse, 1.0f), inverse, inverse), true };
}

/* low in the lower byte. */
__device__ __forceinline__ uint32_t e4m3_pair(float low, float high)
{
    uint16_t pair;

    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(high), "f"(low));
    return pair;
}

/* x over the scale to the nearest f32, with the correctly rounded inverse at hand: the remainder of the first guess corrects it. (A quotient too small for this is one that becomes 0.) */
__device__ __forceinline__ float round_quotient(float x, round_by by)
{
    const float guess = __fmul_rn(x, by.inverse);

    return by.divides ? __fmaf_rn(__fmaf_rn(-guess, by.scale, x), by.inverse, guess) : guess;
}

/* Two bf16 to two codes. */
__device__ __forceinline__ uint32_t round_pair(uint32_t x, round_by by)
{
    return e4m3_pair(round_quotient(bf16_low(x), by), round_quotient(bf16_high(x), by));
}

/* Two codes as f16. */
__device__ __forceinline__ uint32_t pair_values(uint32_t pair) { return e4m3x2_to_f16x2((uint16_t)pair); }

/* What pack_row leaves, or, where the next product wants its activations rounded by a fixed scale, whose inverse this is (not 0): bf16 first, then the codes' values. */
__device__ __forceinline__ uint32_t pack_ruled(float low, float high, bool f16, float inverse)
{
    return inverse != 0.0f ? pair_values(round_pair(pack_bf16(low, high), { 0.0f, inverse, false })) : pack_row(low, high, f16);
}

/* The larger of the two absolute values. A NaN counts as nothing. */
__device__ __forceinline__ float pair_top(uint32_t x) { return fmaxf(fabsf(bf16_low(x)), fabsf(bf16_high(x))); }

/* The largest of a warp's, none of which is negative: they are in the order of their bits. */
__device__ __forceinline__ float round_warp_top(float top) { return __uint_as_float(__reduce_max_sync(0xffffffffu, __float_as_uint(top))); }

#endif
