/* kernels/cuda/draft_plain.h - what stands behind the handle of cuda_draft_plain_open (cuda_draft_plain.h): each function as its namesake in cuda_draft.h. */
#ifndef SLUICE_CUDA_DRAFT_PLAIN_INTERNAL_H
#define SLUICE_CUDA_DRAFT_PLAIN_INTERNAL_H

#include "cuda_draft_plain.h"

struct draft_plain;                   /* opaque */

int draft_plain_open(struct draft_plain **plain, const struct assistant_weights *weights, const struct cuda_model_spec *target, const struct cuda_draft_options *options,
                     struct cuda_left_out left_out);
void draft_plain_close(struct draft_plain *plain);
int draft_plain_pages(struct draft_plain *plain, uint32_t seq, enum cuda_layer_type type, uint32_t first, const uint32_t *pages, uint32_t count);
int draft_plain_round(struct draft_plain *plain, const struct cuda_draft_question *questions, uint32_t count);
int draft_plain_wait(struct draft_plain *plain, uint32_t timeout_us, struct cuda_draft_answer *answers);
const float *draft_plain_hidden(const struct draft_plain *plain);
const float *draft_plain_logits(const struct draft_plain *plain);
void *draft_plain_stream(struct draft_plain *plain);

#endif
