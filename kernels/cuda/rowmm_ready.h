/* rowmm_ready: activation rows as the tensor cores of rowmm_many take them out of shared memory.
 *   x      [m, k] bf16 or f16, row-major, 16-byte aligned
 *   image   [column tile][k / 16][2][columns][16 bytes]: 16 of k of a tile are 32 * columns bytes, k 0..7 of each row, then k 8..15, in the order of k
 *          that packed weights have (layout.h). Rows from m up to the tile's end are zeros. All sizes multiples of 128 bytes.
 * Needs     k a multiple of slice_k in {3840, 4096}, columns % 8 == 0, image 128-byte aligned. Never synchronizes. A link of a chain of programmatic dependent launches.
 * Checked   tests/gpu/wide_test.cu, by the products that take it.
 * Measured  bench/RESULTS_cuda.md. */
#ifndef SLUICE_CUDA_ROWMM_READY_H
#define SLUICE_CUDA_ROWMM_READY_H

#include "layout.h"

struct rowmm_ready { uint8_t *image; };      /* device; borrowed from who launches */

struct rowmm_ready_shape { uint32_t m, k, slice_k, columns; };      /* columns: rows of a column tile */

/* Bytes for up to so many rows of k, in tiles of any of the widths of rowmm_many. */
static inline uint64_t rowmm_ready_image_bytes(uint32_t rows, uint32_t k) { return 2ull * ((rows + 127) / 128 * 128) * k; }

/* 0, -E_RANGE, -E_IO. */
int rowmm_ready_launch(const void *x, struct rowmm_ready_shape shape, struct rowmm_ready out, void *stream);

/* Once per process and device. 0 or -E_IO. */
int rowmm_ready_init(void);

#endif
