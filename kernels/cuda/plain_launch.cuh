/* kernels/cuda/plain_launch.cuh - launching the kernels of plain.h as links of a chain (programmatic dependent launch), with grids of any shape.
 *
 * Every kernel begins with chain_trigger() and calls chain_wait() in every block before it touches what others write, as in chain.cu; it reads
 * that with ld_l2, since a line in this SM's L1 may be older. */
#ifndef SLUICE_CUDA_PLAIN_LAUNCH_CUH
#define SLUICE_CUDA_PLAIN_LAUNCH_CUH

#include "launch.h"
#include <cuda_runtime.h>

/* May start before its predecessor in the stream has ended. 0 or -E_IO. */
template <typename... Params, typename... Args>
static int plain_chained(void (*kernel)(Params...), dim3 grid, uint32_t threads, uint32_t shared_bytes, void *stream, const Args &...args)
{
    cudaLaunchAttribute attribute[1];
    cudaLaunchConfig_t config = {};

    attribute[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute[0].val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = grid;
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = (cudaStream_t)stream;
    config.attrs = attribute;
    config.numAttrs = 1;
    return launch_check(cudaLaunchKernelEx(&config, kernel, args...), "kernel launch");
}

#endif
