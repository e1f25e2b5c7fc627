/* kernels/cuda/rowmm_ready.cu - activation rows into the form of rowmm_many (contract in rowmm_ready.h).
 *
 * A block of 8 warps takes one range of k of 8 rows, a row a warp: it puts the elements into shared memory in
 * the image's order, so that what the block writes are runs of 128 bytes. */
#include "rowmm_ready.h"
#include "device.cuh"
#include "launch.h"
#include "shm/error.h"
#include <cuda_runtime.h>

#define ROWS 8                        /* of a block: of one core matrix */
#define THREADS (ROWS * 32)
#define UNITS_MAX (4096 / 8 / 16)     /* 16 of k, of a range */
#define UNIT_PITCH (2 * ROWS * 16 + 16)      /* bytes: the columns' banks differ between units */

struct ready_args {
    const uint16_t *x;
    uint8_t *image;
    uint32_t m, k, range, columns;
};

/* A lane's 8 elements 8 t .. of a block of 32 go to the block's 4 columns in pairs, at place t: that is the k order of the weights. */
__device__ __forceinline__ void put_block(uint8_t *to, uint4 x)
{
    *(uint32_t *)to = x.x, *(uint32_t *)(to + ROWS * 16) = x.y, *(uint32_t *)(to + UNIT_PITCH) = x.z, *(uint32_t *)(to + UNIT_PITCH + ROWS * 16) = x.w;
}

__global__ void __launch_bounds__(THREADS) ready_kernel(const __grid_constant__ ready_args a)
{
    __shared__ __align__(16) uint8_t turned[UNITS_MAX * UNIT_PITCH];
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, ranges = a.k / a.range, vectors = a.range / 8, units = a.range / 16;
    const uint32_t range = blockIdx.x % ranges, row = blockIdx.x / ranges * ROWS + warp, column_tile = row / a.columns;
    const uint4 *from = (const uint4 *)(a.x + (uint64_t)row * a.k + range * a.range);
    uint4 x[2] = { make_uint4(0, 0, 0, 0), make_uint4(0, 0, 0, 0) };

    chain_trigger();
    chain_wait();
    if (row < a.m) {
        x[0] = ld_l2(from + lane);
        if (lane + 32 < vectors) x[1] = ld_l2(from + lane + 32);
    }
    uint8_t *to = turned + lane / 4 * 2 * UNIT_PITCH + warp * 16 + lane % 4 * 4;

    put_block(to, x[0]);
    if (lane + 32 < vectors) put_block(to + 16 * UNIT_PITCH, x[1]);
    __syncthreads();
    const uint32_t first = (row - warp) % a.columns;
    uint8_t *image = a.image + ((uint64_t)column_tile * (a.k / 16) + range * units) * (32 * a.columns) + first * 16;

    for (uint32_t i = threadIdx.x; i < units * 2 * ROWS; i += THREADS) {
        const uint32_t unit = i / (2 * ROWS), column = i / ROWS % 2, piece = i % ROWS;

        *(uint4 *)(image + (uint64_t)(unit * 2 + column) * (a.columns * 16) + piece * 16) = *(const uint4 *)(turned + unit * UNIT_PITCH + (column * ROWS + piece) * 16);
    }
}

int rowmm_ready_init(void) { return launch_prepare((const void *)ready_kernel, 0); }

int rowmm_ready_launch(const void *x, struct rowmm_ready_shape s, struct rowmm_ready out, void *stream)
{
    ready_args a = { (const uint16_t *)x, out.image, s.m, s.k, s.slice_k / 8, s.columns };
    void *params[] = { &a };

    if (s.m == 0 || s.columns == 0 || s.columns % ROWS || (s.slice_k != 3840 && s.slice_k != 4096) || s.k == 0 || s.k % s.slice_k) return -E_RANGE;
    return launch_chained((const void *)ready_kernel, (s.m + s.columns - 1) / s.columns * s.columns / ROWS * (s.k / a.range), THREADS, 0, params, stream);
}
