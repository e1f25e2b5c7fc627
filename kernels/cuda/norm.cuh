/* kernels/cuda/norm.cuh - the two norms between the blocks of a layer, for one row, by WARPS warps of one thread block.
 *
 *   a = sum of the split-K partial results;  h = (r + a * w_post / rms(a)) * scalar;  y = bf16(h * w_next / rms(h))
 *
 * Called from the norm kernel (15 warps, one block per row) and, for a single row, by the 8 consumer warps of every
 * block of the next matrix product, which saves a kernel on the critical path. Both give the same bits: elements belong to
 * virtual warps of 128 consecutive elements whose sums are taken by the same butterfly, and the virtual warps' sums are
 * joined by one more butterfly, whoever computed them. */
#ifndef SLUICE_CUDA_NORM_CUH
#define SLUICE_CUDA_NORM_CUH

#include "device.cuh"
#include "layout.h"

#define NORM_ROW_MAX 4096             /* hidden size at most: 32 virtual warps */
#define NORM_SPLIT_MAX 4

struct norm_args {
    const float *part;                /* [split][rows_max][hidden] f32, written by the last kernel */
    uint64_t part_stride;             /* elements between splits */
    uint32_t split;                   /* 1, 2 or 4 */
    uint32_t hidden;                  /* multiple of 128, <= NORM_ROW_MAX */
    const float *residual;            /* [rows_max][hidden] f32; never equal to residual_out: others still read it */
    float *residual_out;
    const __nv_bfloat16 *w_post, *w_next;   /* [hidden] constant */
    const float *scalar;              /* layer_scalar, or NULL: 1 */
    float eps;
    __nv_bfloat16 *y_out;             /* fused use: the first block also writes y here; NULL: nobody needs it */
    unsigned long long *trace;        /* of the norm kernel (device.cuh); NULL outside benches */
};

/* Two 32-float lines of scratch for the sums of the virtual warps. */
struct norm_scratch { float sum[2][32]; };

template <int THREADS, int BARRIER>
__device__ __forceinline__ void norm_barrier()
{
    asm volatile("bar.sync %0, %1;" ::"n"(BARRIER), "n"(THREADS) : "memory");
}

/* The sum over all virtual warps, the same bits in every thread. */
__device__ __forceinline__ float norm_join(const float *sums, uint32_t virtual_warps, uint32_t lane)
{
    return warp_sum(lane < virtual_warps ? sums[lane] : 0.0f);
}

/* Weights of the elements of this thread, loaded before chain_wait. */
template <int V> struct norm_weights { uint2 post[V], next[V]; float scalar; };

template <int WARPS, int V>
__device__ __forceinline__ void norm_load_weights(norm_weights<V> &w, const norm_args &a, uint32_t warp, uint32_t lane)
{
#pragma unroll
    for (int j = 0; j < V; j++) {
        const uint32_t i = (warp + WARPS * j) * 128 + lane * 4;

        w.post[j] = w.next[j] = make_uint2(0, 0);
        if (i < a.hidden) {
            w.post[j] = __ldg((const uint2 *)(a.w_post + i));
            w.next[j] = __ldg((const uint2 *)(a.w_next + i));
        }
    }
    w.scalar = a.scalar ? __ldg(a.scalar) : 1.0f;
}

__device__ __forceinline__ float4 norm_widen(uint2 w)
{
    return make_float4(bf16_low(w.x), bf16_high(w.x), bf16_low(w.y), bf16_high(w.y));
}

__device__ __forceinline__ float norm_square(float4 x) { return (x.x * x.x + x.y * x.y) + (x.z * x.z + x.w * x.w); }

/* y[j] receives the 4 results of virtual warp warp + WARPS * j as bf16. */
template <int WARPS, int V, int SPLIT, int BARRIER>
__device__ __forceinline__ void norm_row_split(uint2 (&y)[V], const norm_args &a, const norm_weights<V> &w, uint32_t row,
                                               bool store, norm_scratch *scratch, uint32_t warp, uint32_t lane)
{
    const uint32_t virtual_warps = a.hidden / 128;
    const float inv_n = 1.0f / (float)a.hidden;
    float4 part[SPLIT][V], h[V];

    /* All loads before the first use: one round trip to the L2, not one per operand. */
#pragma unroll
    for (int j = 0; j < V; j++) {
        const uint32_t v = warp + WARPS * j;
        const uint64_t i = (uint64_t)row * a.hidden + v * 128 + lane * 4;

#pragma unroll
        for (int s = 0; s < SPLIT; s++)
            part[s][j] = v < virtual_warps ? ld_l2((const float4 *)(a.part + s * a.part_stride + i)) : make_float4(0, 0, 0, 0);
        h[j] = v < virtual_warps ? ld_l2((const float4 *)(a.residual + i)) : make_float4(0, 0, 0, 0);
    }
#pragma unroll
    for (int j = 0; j < V; j++) {
#pragma unroll
        for (int s = 1; s < SPLIT; s++) {
            part[0][j].x += part[s][j].x;
            part[0][j].y += part[s][j].y;
            part[0][j].z += part[s][j].z;
            part[0][j].w += part[s][j].w;
        }
        const float sum = warp_sum(norm_square(part[0][j]));
        const uint32_t v = warp + WARPS * j;

        if (lane == 0 && v < virtual_warps) scratch->sum[0][v] = sum;
    }
    norm_barrier<WARPS * 32, BARRIER>();
    const float inv_a = rsqrtf(norm_join(scratch->sum[0], virtual_warps, lane) * inv_n + a.eps);

#pragma unroll
    for (int j = 0; j < V; j++) {
        const float4 wp = norm_widen(w.post[j]);
        const uint32_t v = warp + WARPS * j;

        h[j].x = (h[j].x + part[0][j].x * inv_a * wp.x) * w.scalar;
        h[j].y = (h[j].y + part[0][j].y * inv_a * wp.y) * w.scalar;
        h[j].z = (h[j].z + part[0][j].z * inv_a * wp.z) * w.scalar;
        h[j].w = (h[j].w + part[0][j].w * inv_a * wp.w) * w.scalar;
        const float sum = warp_sum(norm_square(h[j]));

        if (lane == 0 && v < virtual_warps) scratch->sum[1][v] = sum;
        if (store && v < virtual_warps)
            *(float4 *)(a.residual_out + (uint64_t)row * a.hidden + v * 128 + lane * 4) = h[j];
    }
    norm_barrier<WARPS * 32, BARRIER>();
    const float inv_h = rsqrtf(norm_join(scratch->sum[1], virtual_warps, lane) * inv_n + a.eps);

#pragma unroll
    for (int j = 0; j < V; j++) {
        const float4 wn = norm_widen(w.next[j]);

        y[j].x = pack_bf16(h[j].x * inv_h * wn.x, h[j].y * inv_h * wn.y);
        y[j].y = pack_bf16(h[j].z * inv_h * wn.z, h[j].w * inv_h * wn.w);
    }
}

template <int WARPS, int V, int BARRIER>
__device__ __forceinline__ void norm_row(uint2 (&y)[V], const norm_args &a, const norm_weights<V> &w, uint32_t row,
                                         bool store, norm_scratch *scratch, uint32_t warp, uint32_t lane)
{
    if (a.split == 4) norm_row_split<WARPS, V, 4, BARRIER>(y, a, w, row, store, scratch, warp, lane);
    else if (a.split == 2) norm_row_split<WARPS, V, 2, BARRIER>(y, a, w, row, store, scratch, warp, lane);
    else norm_row_split<WARPS, V, 1, BARRIER>(y, a, w, row, store, scratch, warp, lane);
}

#endif
