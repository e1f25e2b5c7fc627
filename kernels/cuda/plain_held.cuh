/* plain_held: weights that a drafter's handle holds on the device as its checkpoint has them, for plain_linear.cuh.
 *
 * Each matrix (kernels/stored.h) in its own format with its scales behind it; vectors f32. Memory is taken piece by piece and given back all at once. Host side only.
 * Functions return 0, -E_UNSUPPORTED (cuda_backend_error() says what), -E_NOMEM or -E_IO; what was taken before a failure is freed by plain_held_free, too. Copies are finished on return. */
#ifndef SLUICE_CUDA_PLAIN_HELD_CUH
#define SLUICE_CUDA_PLAIN_HELD_CUH

#include "cuda_backend.h"
#include "plain_linear.cuh"
#include <vector>

struct stored_matrix;
struct drafter_layer;                 /* model/drafter.h */

struct plain_held {
    std::vector<void *> owned;
    uint64_t bytes;                   /* of all of it */
};

struct plain_held_matrix {
    struct plain_codes codes;
    uint32_t rows, k, format;         /* enum weight_format; rows 0: there is none */
};

struct plain_held_layer {             /* of a drafter */
    struct plain_held_matrix q, o, gate, up, down;
    const float *q_norm, *input_norm, *post_attention_norm, *pre_ff_norm, *post_ff_norm, *scalar;
};

int plain_held_take(struct plain_held *held, uint64_t bytes, void **device);
int plain_held_bytes(struct plain_held *held, const void *host, uint64_t bytes, const void **to);
int plain_held_vector(struct plain_held *held, const float *values, uint32_t count, const float **to);
int plain_held_put(struct plain_held *held, const struct stored_matrix *matrix, struct plain_held_matrix *to);
/* dim: of a head. */
int plain_held_put_layer(struct plain_held *held, const struct drafter_layer *layer, uint32_t hidden, uint32_t dim, struct plain_held_layer *to);
/* A set of tokens as bits: bit t % 32 of word t / 32. -E_RANGE: one is no token. */
int plain_held_left_out(struct plain_held *held, struct cuda_left_out left_out, uint32_t vocab, const uint32_t **to);
void plain_held_free(struct plain_held *held);

/* out [rows][out_stride] = in [rows][w.k] w^T; with `up`, of w's shape and format, the gated product. 0 or -E_IO. */
int plain_held_multiply(const struct plain_held_matrix *w, const struct plain_held_matrix *up, const float *in, float *out, uint64_t out_stride, uint32_t rows, void *stream);

#endif
