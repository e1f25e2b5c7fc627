/* kernels/cuda/cuda_dspark_plain.h - a DSpark head of any shape and format on the GPU, with the very bits of model/dspark.h: a part of libsluice_cuda.so.
 *
 * For heads that cuda_dspark.h is not made for (the demo's). Only opening differs: places, absorbing, rounds and answers are that header's functions, on the handle that
 * comes out here. Activations, logits and confidences are those of model/dspark.c bit by bit, whatever the other sequences of a round and the cut of what is absorbed; guesses are the sampler's
 * (model/sampler.h) but for penalties and logit_bias, which are not looked at, and a top_k beyond 64, or none beside a top_p or min_p, which counts as 64. A block may have up to
 * 16 rows; a round proposes at most CUDA_DSPARK_GUESSES_MAX of its guesses.
 *
 * Matrices lie on the device as the checkpoint has them, in every format of kernels/stored.h. Embedding table and output matrix that are the target's are read in its arena; only where
 * that is packed for other kernels the output matrix is the handle's own, unpacked. Sums in f32 on CUDA cores: speed comes second. */
#ifndef SLUICE_CUDA_DSPARK_PLAIN_H
#define SLUICE_CUDA_DSPARK_PLAIN_H

#include "kernels/cuda/cuda_dspark.h"

#ifdef __cplusplus
extern "C" {
#endif

struct dspark_weights;                /* model/dspark.h */

/* Copies the head's weights to the device; `weights` may be freed when it returns. target: the spec of the model it drafts for, whose weights must be in
 * place. options->weights_device is not looked at, features may be bf16 or f32. own_bytes: device memory that the weights take; may be NULL.
 * 0, -E_UNSUPPORTED (a shape or format; cuda_backend_error() says which), -E_RANGE, -E_NOMEM, -E_IO. */
int cuda_dspark_plain_open(struct cuda_dspark **dspark, const struct dspark_weights *weights, const struct cuda_model_spec *target, const struct cuda_dspark_options *options,
                           struct cuda_left_out left_out, uint64_t *own_bytes);

/* For tests: f32 [rows][vocab], the Markov head's part of the last guess of each of the last round's sequences; device memory. NULL without one. */
const float *cuda_dspark_plain_markov(const struct cuda_dspark *dspark);

#ifdef __cplusplus
}
#endif
#endif
