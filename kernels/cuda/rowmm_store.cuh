/* kernels/cuda/rowmm_store.cuh - what happens to the sums of a small-row product on their way out: GeGLU, the cap of logits, plain f32.
 * One text for the products of few rows and of many: their bits must be the same. */
#ifndef SLUICE_CUDA_ROWMM_STORE_CUH
#define SLUICE_CUDA_ROWMM_STORE_CUH

#include "round.cuh"
#include "rowmm.h"
#include "tags.cuh"
#include <cuda_bf16.h>

/* tanh by the fast exponential: within 3e-7 of tanhf where it matters (both ends saturate correctly). Instructions without the cases of numbers too small for them: those are 0 here. */
__device__ __forceinline__ float gelu_tanh(float x)
{
    const float inner = 0.7978845608028654f * (x + 0.044715f * x * x * x);
    float power, share;

    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(2.8853900817779268f * inner));
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(share) : "f"(1.0f + power));
    return x * (1.0f - share);        /* 0.5 (1 + tanh u) = 1 - 1 / (1 + e^2u) */
}

/* One logit: capped, or -inf when its token must never be picked. */
__device__ __forceinline__ float finish_logit(const rowmm_args &a, float x, uint32_t row)
{
    for (uint32_t i = 0; i < a.suppress_count; i++)
        if (a.suppress[i] == row) return __uint_as_float(0xff800000u);
    return a.softcap > 0.0f ? a.softcap * tanhf(x / a.softcap) : x;
}

/* Kernels without code for what they never do. SUMS: partial sums, GEGLU as it is; LOGITS; RULED: GEGLU whose result is rounded by a fixed scale; ROUNDS: sums and
 * GEGLU of one row that it rounds (rowmm_rule.cuh); all of up to 16 rows, whose results may be tiled (row_places.h). ANY: the first three, of more. */
enum kernel_kind { KERNEL_SUMS, KERNEL_LOGITS, KERNEL_RULED, KERNEL_ROUNDS, KERNEL_KINDS, KERNEL_ANY = KERNEL_KINDS };

struct row_powers { float x, out; };  /* out 0: GEGLU leaves bf16 */

/* They are constant: read before the wait. */
__device__ __forceinline__ row_powers row_powers_of(const rowmm_args &a) { return { a.x_fixed != 0.0f ? a.x_fixed : power_or_one(a.x_power), a.out_power ? power_or_one(a.out_power) : 0.0f }; }

/* What multiplies the sums of activation rows m and m + 1. Behind the wait. */
__device__ __forceinline__ float2 row_scales(const rowmm_args &a, uint32_t m, row_powers power)
{
    return make_float2(a.x_scale && m < a.m ? ld_l2(a.x_scale + m) * power.x : power.x, a.x_scale && m + 1 < a.m ? ld_l2(a.x_scale + m + 1) * power.x : power.x);
}

/* v: rows g and g + 8 of the tile times activation rows m and m + 1, m = 2t: (g, m), (g, m+1), (g+8, m), (g+8, m+1). */
template <enum kernel_kind KIND = KERNEL_ANY>
__device__ __forceinline__ void store_tile(const rowmm_args &a, float4 v, uint32_t tile, uint32_t slice, uint32_t m, uint32_t g, float2 x_scale, float out_power)
{
    constexpr bool FEW = KIND != KERNEL_ANY, LOGITS = KIND == KERNEL_LOGITS || !FEW, RULED = KIND == KERNEL_RULED || !FEW;

#pragma unroll(LOGITS ? 1 : 2)      /* logits take 150 instructions */
    for (int i = 0; i < 2; i++) {
        float low = i ? v.y * x_scale.y : v.x * x_scale.x, high = i ? v.w * x_scale.y : v.z * x_scale.x;
        const bool live = m + i < a.m;

        if (a.out_kind == ROWMM_GEGLU) {
            const float x = gelu_tanh(low) * high;
            const uint64_t at = FEW ? place_of(a.out_places, a.out_stride, m + i, tile * 8 + g) : (uint64_t)(m + i) * a.out_stride + tile * 8 + g;

            if (live) ((uint16_t *)a.out)[at] = out_power != 0.0f ? __half_as_ushort(__float2half_rn(x * out_power)) : (uint16_t)pack_ruled(x, 0.0f, false, RULED ? a.out_inverse : 0.0f);
            continue;
        }
        if (LOGITS && a.out_kind == ROWMM_LOGITS) {
            low = finish_logit(a, low, tile * TILE_ROWS + g);
            high = finish_logit(a, high, tile * TILE_ROWS + g + 8);
            float top = fmaxf(low, high);

            for (int d = 4; d < 32; d <<= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, d));
            if (live && g == 0) a.tile_top[(uint64_t)(m + i) * (a.out_stride / TILE_ROWS) + tile] = top;
        }
        if (live) {
            float *to = (float *)a.out + slice * a.out_slice_stride + (uint64_t)(m + i) * a.out_stride + tile * TILE_ROWS + g;

            if (!LOGITS || a.out_kind == ROWMM_PARTIAL) low = with_tag(low, a.out_tag), high = with_tag(high, a.out_tag);
            st_tagged(to, low);
            st_tagged(to + 8, high);
        }
    }
}

#endif
