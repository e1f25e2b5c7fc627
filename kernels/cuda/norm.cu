/* kernels/cuda/norm.cu - the norms between the blocks of a layer as a kernel of their own, for several rows (contract in norm.h).
 *
 * 15 warps of 48 registers fit beside a rowmm block that is already prefetching; more registers would make its block wait. */
#include "norm.h"
#include "launch.h"
#include "shm/error.h"

#define NORM_WARPS 15
#define NORM_PER_WARP 2
#define NORM_BARRIER 1

__global__ void __maxnreg__(48) norm_kernel(const __grid_constant__ norm_args a, __nv_bfloat16 *y)
{
    __shared__ norm_scratch scratch;
    const uint32_t warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    norm_weights<NORM_PER_WARP> w;
    uint2 out[NORM_PER_WARP];

    chain_trigger();
    if (threadIdx.x == 0) trace_mark(a.trace, TRACE_START);
    norm_load_weights<NORM_WARPS, NORM_PER_WARP>(w, a, warp, lane);
    chain_wait();
    if (threadIdx.x == 0) trace_mark(a.trace, TRACE_PAST_WAIT);
    norm_row<NORM_WARPS, NORM_PER_WARP, NORM_BARRIER>(out, a, w, blockIdx.x, true, &scratch, warp, lane);
#pragma unroll
    for (int j = 0; j < NORM_PER_WARP; j++) {
        const uint32_t i = (warp + NORM_WARPS * j) * 128 + lane * 4;

        if (i < a.hidden) *(uint2 *)(y + (uint64_t)blockIdx.x * a.hidden + i) = out[j];
    }
    if (threadIdx.x == 0) trace_mark(a.trace, TRACE_END);
}

int norm_init(void) { return launch_prepare((const void *)norm_kernel, 0); }

int norm_launch(const struct norm_args *args, __nv_bfloat16 *y, uint32_t rows, void *stream)
{
    norm_args a = *args;
    void *params[] = { &a, &y };

    if (a.hidden == 0 || a.hidden % 128 || a.hidden > NORM_WARPS * NORM_PER_WARP * 128 || rows == 0) return -E_RANGE;
    if (a.split != 1 && a.split != 2 && a.split != 4) return -E_RANGE;
    return launch_chained((const void *)norm_kernel, rows, NORM_WARPS * 32, 0, params, stream);
}
