/* dspark_plain_weights: a DSpark head's tensors (model/dspark.h) on the device, as the checkpoint has them.
 *
 * What is the target's is borrowed from its arena: a table of plain.h as it is; one packed for the kernels of arena.h is
 * looked up in place, but as output matrix it is unpacked into memory of our own. Host side only. */
#ifndef SLUICE_CUDA_DSPARK_PLAIN_WEIGHTS_CUH
#define SLUICE_CUDA_DSPARK_PLAIN_WEIGHTS_CUH

#include "cuda_backend.h"
#include "plain_held.cuh"
#include "plain_table.cuh"

struct dspark_weights;

struct dspark_plain_layer {
    struct plain_held_layer shared;
    struct plain_held_matrix k;
    const float *k_norm;
};

struct dspark_plain_weights {
    struct plain_held held;           /* all else points into it or into the target's arena */
    std::vector<struct dspark_plain_layer> layer;
    struct plain_held_matrix fc, head, markov_out;   /* markov_out.rows 0: no Markov head */
    struct plain_table embed, markov_in;
    const float *hidden_norm, *norm, *confidence;      /* confidence NULL: none */
};

/* 0, -E_RANGE (no target_device where it is needed), else as plain_held.cuh; plain_held_free(&weights->held) either way. */
int dspark_plain_weights_load(struct dspark_plain_weights *to, const struct dspark_weights *from, const struct cuda_model_spec *target, const void *target_device);

#endif
