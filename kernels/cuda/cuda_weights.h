/* kernels/cuda/cuda_weights.h - filling the weight arena: a part of libsluice_cuda.so for whoever loads a model (the keeper, tests, benches).
 *
 * Needs no step handle: only a model spec and the arena's memory (cuda_weights_bytes long, 256-byte aligned, maybe shared with other processes).
 * Two ways in: cuda_weights_load packs a tensor that lies in device memory; cuda_weights_buffer and cuda_weights_put move rows from pinned host
 * buffers, so that reading the next rows, copying and packing overlap. Loading the same tensor again writes the same bytes: a loader that died
 * is simply run again. One handle serves one thread.
 *
 * Functions return 0 or a negative -E_CODE; cuda_backend_error() has the text. After -E_IO the CUDA context is lost. */
#ifndef SLUICE_CUDA_WEIGHTS_H
#define SLUICE_CUDA_WEIGHTS_H

#include "kernels/cuda/cuda_backend.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CUDA_WEIGHTS_BUFFERS 2
#define CUDA_WEIGHTS_BUFFER_BYTES (64u << 20)
#define CUDA_WEIGHTS_ROWS_MAX 65536u  /* of one put: their scales have a place of their own */

struct cuda_weights;                  /* opaque */

/* On the current device. The arena is borrowed and must outlive the handle. 0, -E_UNSUPPORTED (the spec), -E_RANGE, -E_NOMEM, -E_IO. */
int cuda_weights_open(struct cuda_weights **weights, const struct cuda_model_spec *spec, void *weights_device);
void cuda_weights_close(struct cuda_weights *weights);

/* Packs one tensor from device memory into the arena. source_format: WEIGHT_BF16, or one with `scale` (f32, device):
 *   WEIGHT_FP8        one per row when scale_stride is 1, one for all when 0
 *   WEIGHT_FP8_BLOCK  [rows / 128 rounded up, scale_stride], scale_stride = k / 128
 *   WEIGHT_FP4        one factor; below 0: what it is the negative of divides. The group scales [rows, k / 16] stand behind the codes [rows, k / 2]
 * BF16 matrices are quantised when the spec says FP8. Returns when the source may be freed. */
int cuda_weights_load(struct cuda_weights *weights, enum cuda_tensor tensor, uint32_t layer, const void *source_device,
                      uint32_t source_format, const void *scale_device, uint32_t scale_stride);

/* The next of the pinned host buffers (owned by the handle), once the GPU has read what it held: to be filled and handed over with one put. */
int cuda_weights_buffer(struct cuda_weights *weights, void **host, uint64_t *bytes);

/* Sends the buffer last given: `rows` rows of a matrix, from row first_row on (a multiple of 16, of 128 in blocks; rows too, but at the matrix's end),
 * or a whole vector as f32 values (rows: their number, as the forward pass multiplies with them: 1 already added where a model stores w - 1).
 * scale: host f32 as above, of these rows alone. Returns at once; errors of the GPU show in a later call. */
int cuda_weights_put(struct cuda_weights *weights, enum cuda_tensor tensor, uint32_t layer, uint32_t first_row, uint32_t rows,
                     uint32_t source_format, const float *scale, uint32_t scale_stride);

/* Behind the last put: computes what follows from the weights (powers.h) and waits until all lies in the arena. No step may begin before. */
int cuda_weights_finish(struct cuda_weights *weights);

/* Fills every weight with random values (norms near 1): the real shapes and speed without a checkpoint. A pure function of the seed. */
int cuda_weights_fill_random(struct cuda_weights *weights, uint64_t seed);

/* Writes a packed matrix back as f32 [rows, k] row-major into device memory, in packed row order: q, k, v one after the other; gate and up by
 * turns of 8 rows. tensor: CUDA_Q (the whole qkv), CUDA_O, CUDA_GATE (gate and up), CUDA_DOWN, CUDA_EMBED. */
int cuda_weights_unpack(struct cuda_weights *weights, enum cuda_tensor tensor, uint32_t layer, void *out_device);

#ifdef __cplusplus
}
#endif
#endif
