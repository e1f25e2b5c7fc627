/* kernels/cuda/soft_norm.cuh - LayerNorm and RMS of a row in shared memory, in the order of model/embedder.c and kernels/cpu/ops.h.
 *
 * Sums in 16 lanes, lane l of elements l, l + 16, .., joined by the fixed tree: LayerNorm's in double, the other in f32. Blocks of at least a
 * warp; every thread takes part, and the row is there for all of them before and behind. */
#ifndef SLUICE_CUDA_SOFT_NORM_CUH
#define SLUICE_CUDA_SOFT_NORM_CUH

#include "plain_math.cuh"

/* The tree (l, l + 8), (l, l + 4), (l, l + 2), (0, 1): lane l % 16 of a warp holds lane l. */
__device__ __forceinline__ double soft_join(double lane)
{
#pragma unroll
    for (int d = 8; d >= 1; d >>= 1) lane = __dadd_rn(lane, __shfl_xor_sync(0xffffffffu, lane, d));
    return lane;
}

/* Sum over the row, or with `mean` of the squares of the distances from it; the same in every thread. */
__device__ __forceinline__ double soft_row_sum(const float *row, uint32_t n, const double *mean)
{
    __shared__ double sum;

    if (threadIdx.x < 32) {
        double lane = 0.0;

#pragma unroll 8
        for (uint32_t i = threadIdx.x % 16; i < n; i += 16) {
            const double v = mean ? __dsub_rn((double)row[i], *mean) : (double)row[i];

            lane = __dadd_rn(lane, mean ? __dmul_rn(v, v) : v);
        }
        lane = soft_join(lane);
        if (threadIdx.x == 0) sum = lane;
    }
    __syncthreads();
    const double all = sum;
    __syncthreads();                  /* the next sum takes its place */
    return all;
}

__device__ __forceinline__ void soft_layer_norm(float *row, const float *weight, const float *bias, uint32_t n, float eps)
{
    const double mean = __ddiv_rn(soft_row_sum(row, n, NULL), (double)n), square = soft_row_sum(row, n, &mean);
    const double scale = __ddiv_rn(1.0, __dsqrt_rn(__dadd_rn(__ddiv_rn(square, (double)n), (double)eps)));

    for (uint32_t i = threadIdx.x; i < n; i += blockDim.x)
        row[i] = plain_add(plain_mul((float)__dmul_rn(__dsub_rn((double)row[i], mean), scale), weight[i]), bias[i]);
    __syncthreads();
}

/* What the row is multiplied by to have a mean square of 1. */
__device__ __forceinline__ float soft_rms_scale(const float *row, uint32_t n, float eps)
{
    __shared__ float scale;

    if (threadIdx.x < 32) {
        float lane = 0.0f;

#pragma unroll 8
        for (uint32_t i = threadIdx.x % 16; i < n; i += 16) lane = plain_fma(row[i], row[i], lane);
#pragma unroll
        for (int d = 8; d >= 1; d >>= 1) lane = plain_add(lane, __shfl_xor_sync(0xffffffffu, lane, d));
        if (threadIdx.x == 0) scale = plain_norm_scale(lane, n, eps);
    }
    __syncthreads();
    return scale;
}

#endif
