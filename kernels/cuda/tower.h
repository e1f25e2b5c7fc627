/* kernels/cuda/tower.h - Gemma 3's SigLIP tower and projector on the device: what model/siglip.h computes, with bf16 operands on the tensor cores.
 *
 * Weights are bf16 (other formats are rounded to it while they are taken), the residual stream, norms, softmax and all sums f32; as the
 * reference computes in its own type, not with the CPU's bits. A picture's bits depend on that picture alone.
 * Owns      weights (834 MB for Gemma 3), the pictures of one call, and the activations of one picture (123 MB).
 * Fails     -E_UNSUPPORTED: heads of more than 128 elements, an odd size.
 * Checked   tests/gpu/tower_test.c against model/siglip.c. Measured: bench/RESULTS_cuda.md. */
#ifndef SLUICE_CUDA_TOWER_H
#define SLUICE_CUDA_TOWER_H

#include "cuda_prefill.h"

struct tower;                         /* opaque */

#ifdef __cplusplus
extern "C" {
#endif

/* rows_max: soft tokens of a call. 0, -E_UNSUPPORTED, -E_NOMEM, -E_IO. */
int tower_open(struct tower **tower, const struct siglip_weights *weights, uint32_t rows_max);
void tower_close(struct tower *tower);

/* Takes the pictures of pieces (data: u8 [image][image][3]; rows: those of one picture) for the next tower_go. 0, -E_RANGE, -E_IO. */
int tower_take(struct tower *tower, const struct cuda_prefill_piece *pieces, uint32_t piece_count, void *stream);

/* Launches the next layers, the rows of a finished picture into out [rows_max][text hidden] (device). 1: there is more, 0: that was all, -E_RANGE, -E_IO. */
int tower_go(struct tower *tower, float *out, void *stream);

#ifdef __cplusplus
}
#endif

#endif
