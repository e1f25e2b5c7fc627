/* kernels/cuda/round.cu - activations to E4M3 codes and a scale for each row (contract in round.h).
 *
 * A thread keeps its elements in registers between looking for the largest and rounding: x is read once. */
#include "round.h"
#include "launch.h"
#include "round.cuh"
#include "shm/error.h"

#define THREADS_MAX 512
#define PIECE 16                      /* elements: 32 bytes of x, 16 of codes */
#define PIECES 2                      /* of a thread */

/* The largest of |x| of the block's elements; a NaN counts as nothing, as on the CPU. */
__device__ __forceinline__ float block_top(const uint4 (&x)[PIECES][2], float *tops)
{
    float top = 0.0f;

#pragma unroll
    for (int i = 0; i < PIECES * 2; i++) {
        const uint4 v = x[i / 2][i % 2];

        for (uint32_t pair : { v.x, v.y, v.z, v.w }) top = fmaxf(top, pair_top(pair));
    }
    top = round_warp_top(top);
    if (threadIdx.x % 32 == 0) tops[threadIdx.x / 32] = top;
    __syncthreads();
    for (uint32_t i = 0; i < blockDim.x / 32; i++) top = fmaxf(top, tops[i]);
    return top;
}

template <enum round_out OUT>
__global__ void __launch_bounds__(THREADS_MAX) round_kernel(const __grid_constant__ round_args a, float inverse)
{
    __shared__ float tops[THREADS_MAX / 32];
    uint4 x[PIECES][2];

    chain_trigger();
    chain_wait();
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        const uint32_t at = (i * blockDim.x + threadIdx.x) * PIECE;

#pragma unroll
        for (int j = 0; j < 2; j++) x[i][j] = at < a.k ? ld_l2((const uint4 *)(a.x + place_of(a.places, a.k, blockIdx.x, at)) + j) : make_uint4(0, 0, 0, 0);
    }
    const round_by by = a.fixed == 0.0f ? round_by_largest(block_top(x, tops)) : round_by{ a.fixed, inverse, false };

#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        const uint32_t at = (i * blockDim.x + threadIdx.x) * PIECE;
        const uint32_t in[8] = { x[i][0].x, x[i][0].y, x[i][0].z, x[i][0].w, x[i][1].x, x[i][1].y, x[i][1].z, x[i][1].w };
        uint32_t out[8];

        if (at >= a.k) continue;
#pragma unroll
        for (int j = 0; j < 8; j++) out[j] = round_pair(in[j], by);
        if (OUT == ROUND_VALUES) {
            for (int j = 0; j < 2; j++)
                ((uint4 *)((uint16_t *)a.out + place_of(a.places, a.k, blockIdx.x, at)))[j] = make_uint4(pair_values(out[4 * j]), pair_values(out[4 * j + 1]), pair_values(out[4 * j + 2]), pair_values(out[4 * j + 3]));
        } else {                      /* places t + 4 (k / 2 % 2) of pairs become 2t + k / 2 % 2: prefill_k's order into round_k's */
            *(uint4 *)((uint8_t *)a.out + (uint64_t)blockIdx.x * a.k + at) = make_uint4(out[0] | out[4] << 16, out[1] | out[5] << 16, out[2] | out[6] << 16, out[3] | out[7] << 16);
        }
    }
    if (threadIdx.x == 0) a.scale[blockIdx.x] = by.scale;
}

int round_init(void)
{
    const int rc = launch_prepare((const void *)round_kernel<ROUND_VALUES>, 0);

    return rc ? rc : launch_prepare((const void *)round_kernel<ROUND_CODES>, 0);
}

int round_launch(const struct round_args *args, enum round_out out, uint32_t rows, void *stream)
{
    round_args a = *args;
    float inverse = 1.0f / a.fixed;

    a.places = places_known(a.places, a.k);
    void *params[] = { &a, &inverse };
    const uint32_t pieces = a.k / PIECE, threads = ((pieces <= THREADS_MAX ? pieces : (pieces + PIECES - 1) / PIECES) + 31) / 32 * 32;

    if (rows == 0 || a.k == 0 || a.k % 32 || a.k > THREADS_MAX * PIECE * PIECES || !(a.fixed >= 0.0f)) return -E_RANGE;
    return launch_chained(out == ROUND_VALUES ? (const void *)round_kernel<ROUND_VALUES> : (const void *)round_kernel<ROUND_CODES>, rows, threads, 0, params, stream);
}
