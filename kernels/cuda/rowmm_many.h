/* rowmm_many: the product of rowmm.h for 33 to 128 activation rows, with the very bits that rowmm gives each row.
 *   w, x, out as in rowmm.h (out_slice_stride and the rest of rowmm_args alike; `next` is ignored); ready: scratch for the rows, written here
 * Same arithmetic: k in 8 ranges, two accumulators a range, 16 elements at a time in the same order, the 8 sums added from the first to the last. A block has a tile of weight rows and
 * activation rows to itself over all of k, so no sums travel between blocks: with so many rows they would be more bytes than the weights
 * (rowmm_wide, up to 32 rows, shares k among blocks instead, and keeps its activations where they are).
 * Two kernels: rowmm_ready.h, then the product.
 * Needs     FP8 or BF16 weights, rows % 16 == 0, k a multiple of 3840 or 4096, slices in {1, 2, 4}, 1 <= m <= 128. One block per SM. Never synchronizes.
 * Checked   tests/gpu/wide_test.cu: bit by bit against rowmm on pieces of 16 rows.
 * Measured  bench/RESULTS_cuda.md. */
#ifndef SLUICE_CUDA_ROWMM_MANY_H
#define SLUICE_CUDA_ROWMM_MANY_H

#include "rowmm.h"
#include "rowmm_ready.h"

#define ROWMM_MANY_ROWS_MAX 128

static inline int rowmm_many_takes(uint32_t format) { return format == WEIGHT_FP8 || format == WEIGHT_BF16; }

/* tuning->ring_slots: room for the ring, in slots of 20 KB; two stages at least. 0, -E_RANGE, -E_UNSUPPORTED, -E_IO. */
int rowmm_many_launch(const struct packed_matrix *w, struct rowmm_args args, const struct rowmm_ready *ready, const struct rowmm_tuning *tuning, void *stream);

/* For tests and benches: with the tile of that index, below rowmm_many_tiles. */
int rowmm_many_launch_tile(const struct packed_matrix *w, struct rowmm_args args, const struct rowmm_ready *ready, const struct rowmm_tuning *tuning, uint32_t tile, void *stream);
extern const uint32_t rowmm_many_tiles;
/* Which tile rowmm_many_launch takes. */
uint32_t rowmm_many_choice(const struct packed_matrix *w, uint32_t m, uint32_t sm_count);

/* Once per process and device: shared-memory limits. 0 or -E_IO. */
int rowmm_many_init(void);

#endif
