/* kernels/cuda/norm.cu - the norms between the blocks of a layer (contract in norm.h). */
#include "norm_block.cuh"
#include "launch.h"
#include "shm/error.h"

__global__ void __maxnreg__(56) norm_kernel(const __grid_constant__ norm_args a)
{
    __shared__ norm_shared sh;
    const uint32_t warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32;

    chain_trigger();
    if (threadIdx.x == 0) trace_mark(a.trace, TRACE_START);
    norm_weights(a, sh, threadIdx.x, NORM_LOTS * 32);
    const auto sync = [] { __syncthreads(); };
    const float scalar = a.scalar ? __ldg(a.scalar) : 1.0f;

    __syncthreads();
    chain_wait();
    if (threadIdx.x == 0) trace_mark(a.trace, TRACE_PAST_WAIT);
    if (a.split == 4) norm_row<4, NORM_LOTS>(a, sh, scalar, blockIdx.x, warp, lane, sync);
    else if (a.split == 2) norm_row<2, NORM_LOTS>(a, sh, scalar, blockIdx.x, warp, lane, sync);
    else norm_row<1, NORM_LOTS>(a, sh, scalar, blockIdx.x, warp, lane, sync);
    if (threadIdx.x == 0) trace_mark(a.trace, TRACE_END);
}

int norm_init(void) { return launch_prepare((const void *)norm_kernel, 0); }

int norm_launch(const struct norm_args *args, uint32_t rows, void *stream)
{
    norm_args a = *args;
    void *params[] = { &a };

    if (a.hidden == 0 || a.hidden % 128 || a.hidden > NORM_HIDDEN_MAX || rows == 0) return -E_RANGE;
    if (a.split != 1 && a.split != 2 && a.split != 4) return -E_RANGE;
    return launch_chained((const void *)norm_kernel, rows, NORM_LOTS * 32, 0, params, stream);
}
