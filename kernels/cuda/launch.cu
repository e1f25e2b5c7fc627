/* kernels/cuda/launch.cu - launching a kernel as a link of a chain; the text of the last CUDA failure. */
#include "launch.h"
#include "shm/error.h"
#include <cuda_runtime.h>
#include <stdarg.h>
#include <stdio.h>

static char last_error[256] = "no CUDA error";

const char *launch_error(void) { return last_error; }

int launch_check(int cuda_status, const char *what)
{
    const cudaError_t status = (cudaError_t)cuda_status;

    if (status == cudaSuccess) return 0;
    snprintf(last_error, sizeof last_error, "%s: %s (%s)", what, cudaGetErrorName(status), cudaGetErrorString(status));
    return status == cudaErrorMemoryAllocation ? -E_NOMEM : -E_IO;
}

int launch_fail(int code, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(last_error, sizeof last_error, format, args);
    va_end(args);
    return code;
}

int launch_prepare(const void *fn, uint32_t shared_bytes)
{
    int rc = 0;

    if (shared_bytes) rc = launch_check(cudaFuncSetAttribute(fn, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)shared_bytes), "shared memory limit");
    if (rc == 0) rc = launch_check(cudaFuncSetAttribute(fn, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared), "carveout");
    return rc;
}

/* cluster: blocks of one, 1: none. chained: with the programmatic attribute. */
static int launch(const void *fn, uint32_t blocks, uint32_t cluster, uint32_t threads, uint32_t shared_bytes, void **params, void *stream, bool chained)
{
    cudaLaunchAttribute attribute[2];
    cudaLaunchConfig_t config = {};

    config.gridDim = dim3(blocks);
    config.blockDim = dim3(threads);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = (cudaStream_t)stream;
    config.attrs = attribute;
    if (chained) {
        attribute[config.numAttrs].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attribute[config.numAttrs++].val.programmaticStreamSerializationAllowed = 1;
    }
    if (cluster > 1) {
        attribute[config.numAttrs].id = cudaLaunchAttributeClusterDimension;
        attribute[config.numAttrs].val.clusterDim.x = cluster;
        attribute[config.numAttrs].val.clusterDim.y = attribute[config.numAttrs].val.clusterDim.z = 1;
        config.numAttrs++;
    }
    return launch_check(cudaLaunchKernelExC(&config, fn, params), "kernel launch");
}

int launch_chained(const void *fn, uint32_t blocks, uint32_t threads, uint32_t shared_bytes, void **params, void *stream)
{
    return launch(fn, blocks, 1, threads, shared_bytes, params, stream, true);
}

int launch_clusters(const void *fn, uint32_t blocks, uint32_t cluster, uint32_t threads, uint32_t shared_bytes, void **params, void *stream)
{
    return launch(fn, blocks, cluster, threads, shared_bytes, params, stream, true);
}

int launch_first(const void *fn, uint32_t blocks, uint32_t threads, uint32_t shared_bytes, void **params, void *stream)
{
    return launch(fn, blocks, 1, threads, shared_bytes, params, stream, false);
}
