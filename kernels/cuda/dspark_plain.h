/* kernels/cuda/dspark_plain.h - what stands behind the handle of cuda_dspark_plain_open (cuda_dspark_plain.h): each function as its namesake in cuda_dspark.h. */
#ifndef SLUICE_CUDA_DSPARK_PLAIN_INTERNAL_H
#define SLUICE_CUDA_DSPARK_PLAIN_INTERNAL_H

#include "cuda_dspark_plain.h"

struct dspark_plain;                  /* opaque */

int dspark_plain_open(struct dspark_plain **plain, const struct dspark_weights *weights, const struct cuda_model_spec *target, const struct cuda_dspark_options *options,
                      struct cuda_left_out left_out, uint64_t *own_bytes);
void dspark_plain_close(struct dspark_plain *plain);
int dspark_plain_place(struct dspark_plain *plain, uint32_t place, uint32_t low);
int dspark_plain_absorb(struct dspark_plain *plain, const struct cuda_dspark_absorb *items, uint32_t count, uint64_t layers);
int dspark_plain_hand_over(struct dspark_plain *plain, const struct cuda_handover *hand);
int dspark_plain_round(struct dspark_plain *plain, const struct cuda_dspark_question *questions, uint32_t count);
int dspark_plain_wait(struct dspark_plain *plain, uint32_t timeout_us, struct cuda_dspark_answer *answers);
const float *dspark_plain_logits(const struct dspark_plain *plain);
const float *dspark_plain_markov(const struct dspark_plain *plain);
void *dspark_plain_stream(struct dspark_plain *plain);

#endif
