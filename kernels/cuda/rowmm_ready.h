/* rowmm_ready: activation rows as the tensor cores of rowmm_many take them out of shared memory.
 *   x       [m, k] bf16 row-major, 16-byte aligned
 *   image   [column tile][k / 16][2][columns][16 bytes]: 16 of k of a tile are 32 * columns bytes, k 0..7 of each row, then k 8..15, in the order of k
 *           that packed weights have (layout.h). FP8 weights: f16, scaled by a power of two per row and range of slice_k / 8, as in rowmm.h. BF16 weights: as they are.
 *           Rows from m up to the tile's end are zeros. All sizes multiples of 128 bytes.
 *   inverse [column tile][k / range][columns] f32, of those powers; FP8 only
 * Needs     k a multiple of slice_k in {3840, 4096}, columns % 8 == 0, image and inverse 128-byte aligned. Never synchronizes. A link of a chain of programmatic dependent launches.
 * Checked   tests/gpu/wide_test.cu, by the products that take it.
 * Measured  bench/RESULTS_cuda.md. */
#ifndef SLUICE_CUDA_ROWMM_READY_H
#define SLUICE_CUDA_ROWMM_READY_H

#include "layout.h"
#include <cuda_bf16.h>

struct rowmm_ready { uint8_t *image; float *inverse; };      /* device; borrowed from who launches */

struct rowmm_ready_shape { uint32_t m, k, slice_k, columns, scaled; };      /* columns: rows of a column tile; scaled: 1 for FP8 weights */

/* Bytes for up to so many rows of k, in tiles of any of the widths of rowmm_many. */
static inline uint64_t rowmm_ready_image_bytes(uint32_t rows, uint32_t k) { return 2ull * ((rows + 127) / 128 * 128) * k; }
static inline uint64_t rowmm_ready_inverse_bytes(uint32_t rows, uint32_t k) { return 4ull * ((rows + 127) / 128 * 128) * (k / 480 + 1); }

/* 0, -E_RANGE, -E_IO. */
int rowmm_ready_launch(const __nv_bfloat16 *x, struct rowmm_ready_shape shape, struct rowmm_ready out, void *stream);

/* Once per process and device. 0 or -E_IO. */
int rowmm_ready_init(void);

#endif
