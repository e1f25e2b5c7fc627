/* kernels/cuda/setup.cu - see setup.h. */
#include "setup.h"
#include "launch.h"
#include <cuda_runtime.h>
#include <math.h>
#include <string.h>
extern "C" {
#include "shm/must.h"
}

#define PAIRS_MAX 256u                      /* of a head of 512 */

int setup_slab(uint8_t **slab, const struct setup_part *parts, uint32_t count, const char *what)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < count; i++) bytes += setup_aligned(parts[i].bytes);
    int rc = launch_check(cudaMalloc((void **)slab, bytes), what);
    if (rc == 0) rc = launch_check(cudaMemset(*slab, 0, bytes), what);
    bytes = 0;
    for (uint32_t i = 0; i < count && rc == 0; i++) {
        *parts[i].at = *slab + bytes;
        bytes += setup_aligned(parts[i].bytes);
    }
    return rc;
}

int setup_mapped(void **host, void **device, uint64_t bytes)
{
    int rc = launch_check(cudaHostAlloc(host, bytes, cudaHostAllocMapped), "mapped memory");

    if (rc == 0) rc = launch_check(cudaHostGetDevicePointer(device, *host, 0), "mapped memory");
    if (rc == 0) memset(*host, 0, bytes);
    return rc;
}

int setup_frequencies(float *device, double theta, double divisor, uint32_t dim, uint32_t turned)
{
    float table[PAIRS_MAX];

    must(turned <= PAIRS_MAX);
    for (uint32_t i = 0; i < turned; i++) table[i] = 1.0f / powf((float)theta, (float)(2 * i) / (float)dim) / (float)divisor;
    return turned ? launch_check(cudaMemcpy(device, table, turned * sizeof *table, cudaMemcpyHostToDevice), "frequencies") : 0;
}
