/* tests/gpu/rows.cuh - activation rows as products take them (kernels/cuda/powers.h), for the tests of products: BF16 weights bf16, all others f16 times a power of two. */
#ifndef SLUICE_TESTS_GPU_ROWS_CUH
#define SLUICE_TESTS_GPU_ROWS_CUH

#include "kernels/cuda/layout.h"
#include "kernels/cuda/row_places.h"
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define ROWS_UP 512.0f                /* what rows of a test are multiplied by: elements of deviation 3 stay far from both ends of f16 */

static __global__ void rows_to_f16_kernel(uint16_t *x, uint64_t n, float power)
{
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (uint64_t)gridDim.x * blockDim.x)
        x[i] = __half_as_ushort(__float2half_rn(__bfloat162float(__ushort_as_bfloat16(x[i])) * power));
}

/* And back, of f16 that bf16 holds exactly. */
static __global__ void rows_to_bf16_kernel(uint16_t *x, uint64_t n)
{
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (uint64_t)gridDim.x * blockDim.x)
        x[i] = __bfloat16_as_ushort(__float2bfloat16_rn(__half2float(__ushort_as_half(x[i]))));
}

/* m plain rows of k into the places of tiles. One block for each row. */
static __global__ void rows_tile_kernel(const uint16_t *x, uint16_t *tiled, uint32_t k)
{
    for (uint32_t i = threadIdx.x; i < k; i += blockDim.x) tiled[place_of(places_tiled(gridDim.x), k, blockIdx.x, i)] = x[(uint64_t)blockIdx.x * k + i];
}

static inline bool rows_are_f16(uint32_t format) { return format != WEIGHT_BF16; }

/* What an element stands for. */
__host__ __device__ static inline double rows_value(uint16_t bits, bool f16)
{
    return f16 ? (double)__half2float(__ushort_as_half(bits)) / ROWS_UP : (double)__bfloat162float(__ushort_as_bfloat16(bits));
}

/* bf16 on the device to what weights of the format take; *down: what undoes it, on the device, or NULL. */
static inline cudaError_t rows_make(void *x, uint64_t n, uint32_t format, float **down)
{
    const float inverse = 1.0f / ROWS_UP;

    *down = NULL;
    if (!rows_are_f16(format)) return cudaSuccess;
    const cudaError_t status = cudaMalloc(down, sizeof inverse);
    if (status != cudaSuccess) return status;
    rows_to_f16_kernel<<<1024, 256>>>((uint16_t *)x, n, ROWS_UP);
    return cudaMemcpy(*down, &inverse, sizeof inverse, cudaMemcpyHostToDevice);
}

#endif
