/* kernels/cuda/cuda_draft_plain.h - an MTP assistant of any shape and format on the GPU, with the very bits of model/assistant.h: a part of libsluice_cuda.so.
 *
 * For shapes that cuda_draft.h is not made for (the demo model). Only opening differs: pages, rounds and answers are that header's functions, on the handle that comes out here. Logits and
 * hidden states are those of model/assistant.c bit by bit, whatever the other rows; tokens are the sampler's (model/sampler.h) but for penalties and logit_bias, which are not looked at, and
 * a top_k beyond 64, or none beside a top_p or min_p, which counts as 64. A confidence is 1 - exp(-lead), lead: by how much the token won, as model/engine_draft_mtp.c has it.
 *
 * Matrices lie on the device as the checkpoint has them, in every format of kernels/stored.h; the target's embedding table is read in its arena, its keys in its pools, states in theirs.
 * All steps of a round are launched at once. Sums in f32 on CUDA cores: speed comes second. */
#ifndef SLUICE_CUDA_DRAFT_PLAIN_H
#define SLUICE_CUDA_DRAFT_PLAIN_H

#include "kernels/cuda/cuda_draft.h"

#ifdef __cplusplus
extern "C" {
#endif

struct assistant_weights;             /* model/assistant.h */

/* Copies the weights to the device; they may be freed when it returns. options: weights_device and what tunes the other kernels are not looked at.
 * 0, -E_UNSUPPORTED (a shape or format; cuda_backend_error() says which), -E_RANGE, -E_NOMEM, -E_IO. */
int cuda_draft_plain_open(struct cuda_draft **draft, const struct assistant_weights *weights, const struct cuda_model_spec *target, const struct cuda_draft_options *options,
                          struct cuda_left_out left_out);

#ifdef __cplusplus
}
#endif
#endif
