/* kernels/cuda/norm_block.cuh - the two norms of one row by the warps of a block (used by norm.cu and persist.cu; contract in norm.h).
 *
 * 15 lots of 2 pieces of 128 elements; a warp takes one lot, or with fewer warps two. Sums: a lot's two pieces, its lanes, then the lots: the same
 * tree for any number of warps, so the same bits. */
#ifndef SLUICE_CUDA_NORM_BLOCK_CUH
#define SLUICE_CUDA_NORM_BLOCK_CUH

#include "norm.h"
#include "device.cuh"

#define NORM_LOTS 15
#define NORM_PIECES 2                 /* of 128 elements, in a lot */
#define NORM_HIDDEN_MAX (NORM_LOTS * NORM_PIECES * 128)

struct norm_shared {
    uint2 post[NORM_HIDDEN_MAX / 4], next[NORM_HIDDEN_MAX / 4];
    float sum[2][32];
};

__device__ __forceinline__ float4 ld_now(const float *p)
{
    float4 v;

    /* volatile: issued here and in this order, not moved to its first use */
    asm volatile("ld.global.cg.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "l"(p));
    return v;
}

__device__ __forceinline__ float norm_square(float4 x) { return (x.x * x.x + x.y * x.y) + (x.z * x.z + x.w * x.w); }

/* What does not depend on the predecessor. */
__device__ __forceinline__ void norm_weights(const norm_args &a, norm_shared &sh, uint32_t thread, uint32_t threads)
{
    for (uint32_t i = thread; i < a.hidden / 4; i += threads) {
        sh.post[i] = __ldg((const uint2 *)a.w_post + i);
        sh.next[i] = __ldg((const uint2 *)a.w_next + i);
    }
}

/* own: sums of the warp's lots. Every thread gets the same bits. */
template <int WARPS, int TURNS, class SYNC>
__device__ __forceinline__ float norm_sum(const float (&own)[TURNS], float *sums, uint32_t warp, uint32_t lane, SYNC sync)
{
#pragma unroll
    for (int t = 0; t < TURNS; t++) {
        const float total = warp_sum(own[t]);

        if (lane == 0 && warp + t * WARPS < NORM_LOTS) sums[warp + t * WARPS] = total;
    }
    sync();
    return warp_sum(lane < NORM_LOTS ? sums[lane] : 0.0f);
}

/* One row by WARPS warps; sync() lets them wait for each other. */
template <int SPLIT, int WARPS, class SYNC>
__device__ __forceinline__ void norm_row(const norm_args &a, norm_shared &sh, float scalar, uint32_t row_index, uint32_t warp, uint32_t lane, SYNC sync)
{
    constexpr int TURNS = (NORM_LOTS + WARPS - 1) / WARPS;
    const float inv_n = 1.0f / (float)a.hidden;
    const uint64_t row = (uint64_t)row_index * a.hidden;
    float4 part[TURNS][SPLIT][NORM_PIECES], h[TURNS][NORM_PIECES];
    float sum[TURNS];

#pragma unroll
    for (int t = 0; t < TURNS; t++)
#pragma unroll
        for (int j = 0; j < NORM_PIECES; j++) {
            const uint32_t i = (warp + t * WARPS + NORM_LOTS * j) * 128 + lane * 4;
            const uint64_t at = row + (i < a.hidden ? i : 0);

#pragma unroll
            for (int s = 0; s < SPLIT; s++) part[t][s][j] = ld_now(a.part + s * a.part_stride + at);
            h[t][j] = ld_now(a.residual + at);
        }
#pragma unroll
    for (int t = 0; t < TURNS; t++) {
        sum[t] = 0.0f;
#pragma unroll
        for (int j = 0; j < NORM_PIECES; j++) {
            const uint32_t lot = warp + t * WARPS;
            float4 *p = &part[t][0][j];

#pragma unroll
            for (int s = 1; s < SPLIT; s++)
                p->x += part[t][s][j].x, p->y += part[t][s][j].y, p->z += part[t][s][j].z, p->w += part[t][s][j].w;
            sum[t] += lot < NORM_LOTS && (lot + NORM_LOTS * j) * 128 < a.hidden ? norm_square(*p) : 0.0f;
        }
    }
    const float inv_a = rsqrtf(norm_sum<WARPS>(sum, sh.sum[0], warp, lane, sync) * inv_n + a.eps);

#pragma unroll
    for (int t = 0; t < TURNS; t++) {
        sum[t] = 0.0f;
#pragma unroll
        for (int j = 0; j < NORM_PIECES; j++) {
            const uint32_t lot = warp + t * WARPS, i = (lot + NORM_LOTS * j) * 128 + lane * 4;
            const bool live = lot < NORM_LOTS && i < a.hidden;
            const uint2 w = sh.post[live ? i / 4 : 0];
            const float4 p = part[t][0][j];
            float4 &x = h[t][j];

            x.x = (x.x + p.x * inv_a * bf16_low(w.x)) * scalar;
            x.y = (x.y + p.y * inv_a * bf16_high(w.x)) * scalar;
            x.z = (x.z + p.z * inv_a * bf16_low(w.y)) * scalar;
            x.w = (x.w + p.w * inv_a * bf16_high(w.y)) * scalar;
            sum[t] += live ? norm_square(x) : 0.0f;
            if (live && a.residual_out) *(float4 *)(a.residual_out + row + i) = x;
        }
    }
    const float inv_h = rsqrtf(norm_sum<WARPS>(sum, sh.sum[1], warp, lane, sync) * inv_n + a.eps);

#pragma unroll
    for (int t = 0; t < TURNS; t++)
#pragma unroll
        for (int j = 0; j < NORM_PIECES; j++) {
            const uint32_t lot = warp + t * WARPS, i = (lot + NORM_LOTS * j) * 128 + lane * 4;

            if (lot >= NORM_LOTS || i >= a.hidden) continue;
            const uint2 w = sh.next[i / 4];
            const float4 x = h[t][j];

            *(uint2 *)(a.y + row + i) = make_uint2(pack_bf16(x.x * inv_h * bf16_low(w.x), x.y * inv_h * bf16_high(w.x)),
                                                    pack_bf16(x.z * inv_h * bf16_low(w.y), x.w * inv_h * bf16_high(w.y)));
        }
}

#endif
