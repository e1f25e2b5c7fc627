/* rowmm_wide: the product of rowmm.h for 17 to 64 activation rows, in one pass over the weights and with the very bits that rowmm gives each row. Steps take
 * it for up to 32; for more rowmm_many is faster.
 *   w, x, out as in rowmm.h (out_slice_stride and the rest of rowmm_args alike; `next` is ignored)
 * Same arithmetic: k in 8 ranges, two accumulators a range, 16 elements at a time in the same order, the 8 sums added from the first to the last.
 * What differs is who does it. A cluster of 4 blocks (up to 32 rows) or 8 (up to 64) shares each weight tile: every block streams 2 (or 1) of the 8 ranges and
 * keeps just those columns of the activations in its shared memory. The products are
 * wgmma, whose bits are those of mma.m16n8k16; each warp sends its sums to the block that adds and stores its tile.
 * FP8_BLOCK and FP4 go in pieces of 16 rows, any number of them, through rowmm, which reads the weights for each piece.
 * Needs     rows % 64 == 0, k a multiple of 3840 or 4096, slices in {1, 2, 4}, 1 <= m <= 64. One block per SM. Never synchronizes.
 * Checked   tests/gpu/wide_test.cu: bit by bit against rowmm on pieces of 16 rows.
 * Measured  bench/RESULTS_cuda.md. */
#ifndef SLUICE_CUDA_ROWMM_WIDE_H
#define SLUICE_CUDA_ROWMM_WIDE_H

#include "rowmm.h"

#define ROWMM_WIDE_ROWS_MAX 64

/* 0, -E_RANGE, -E_UNSUPPORTED, -E_IO. */
int rowmm_wide_launch(const struct packed_matrix *w, struct rowmm_args args, const struct rowmm_tuning *tuning, void *stream);

/* Once per process and device: shared-memory limits, and how many clusters the device holds at once. 0, -E_UNSUPPORTED (not one), -E_IO. */
int rowmm_wide_init(void);

#endif
