/* kernels/cuda/soft_make.h - soft tokens made on the device. Gemma 3's by its tower (tower.h); Gemma 4 unified's by model/soft.h's arithmetic in its order, bit for bit:
 *
 *   picture block  x = LN1(pixels) ; x = LN2(dense x + bias) ; x = LN3(x + pos[column, 0] + pos[row, 1]) ; soft = projection (x / rms(x))
 *   sound frame    soft = projection (x / rms(x))
 * Both prefills hold one when options.soft_rows is CUDA_SOFT_MADE. The products are plain_linear.cuh's: f32 in 16 lanes on CUDA cores, which for some
 * hundred rows takes a millisecond; tensor cores could not give these bits.
 * Owns      the weights, the files' data of one call, and scratch for BATCH rows.
 * Fails     -E_UNSUPPORTED: a format that the kernels do not know, or rows too long for a block's shared memory.
 * Checked   tests/gpu/soft_test.c against model/soft.c. Measured: bench/RESULTS_cuda.md. */
#ifndef SLUICE_CUDA_SOFT_MAKE_H
#define SLUICE_CUDA_SOFT_MAKE_H

#include "cuda_prefill.h"

struct soft_make;                     /* opaque */

#ifdef __cplusplus
extern "C" {
#endif

/* rows_max: of a call. 0, -E_UNSUPPORTED, -E_NOMEM, -E_IO. */
int soft_make_open(struct soft_make **make, const struct cuda_soft_weights *weights, uint32_t rows_max);
void soft_make_close(struct soft_make *make);

/* Takes the data of pieces for rows of the next soft_make_go. Returns when the data has been read. 0, -E_RANGE (nothing taken), -E_IO. */
int soft_make_take(struct soft_make *make, const struct cuda_prefill_piece *pieces, uint32_t piece_count, void *stream);

/* Launches the next part of the work, rows into out [rows_max][hidden] (device). 1: there is more, 0: that was all, -E_RANGE (nothing was taken), -E_IO. */
int soft_make_go(struct soft_make *make, float *out, void *stream);

#ifdef __cplusplus
}
#endif

#endif
