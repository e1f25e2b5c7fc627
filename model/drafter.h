/* model/drafter.h - what the neural drafters (model/assistant.h, model/dspark.h) have in common: their tensors and the parts of a layer that
 * do not look at keys.
 *
 * A drafter's layer is a decoder layer of the target's family. Products are cut over the threads of a pool, and the bits of a row depend
 * neither on the other rows nor on the cut. Owns nothing. */
#ifndef SLUICE_MODEL_DRAFTER_H
#define SLUICE_MODEL_DRAFTER_H

#include "kernels/kernels.h"
#include "kernels/pool.h"
#include "model/config.h"
#include "model/format.h"
#include "model/forward_rope.h"

struct drafter_layer {
    struct stored_matrix q;           /* [q_heads * head_dim, hidden] */
    struct stored_matrix o;           /* [hidden, q_heads * head_dim] */
    struct stored_matrix gate, up;    /* [intermediate, hidden] */
    struct stored_matrix down;        /* [hidden, intermediate] */
    const float *q_norm;              /* [head_dim]   f32, in the weights' own memory as the next ones */
    const float *input_norm, *post_attention_norm, *pre_feedforward_norm, *post_feedforward_norm;  /* [hidden] */
    float scalar;
};

/* ---- tensors: the first failure is kept, what follows does nothing -------------------------------- */

struct drafter_binder {
    struct format_source source;
    float *room;                      /* where the next widened vector goes */
    uint64_t *bytes;                  /* counts the matrices bound */
    int rc;                           /* of the first that failed */
};

/* Floats that drafter_bind_layer takes from `room` for all layers. */
uint64_t drafter_layer_floats(const struct model_config *config);

/* A BF16 or F32 tensor of rows x columns (a vector: columns 1); NULL after a failure, which names it. Marks it as taken. */
const struct tensor *drafter_tensor(struct drafter_binder *binder, const char *name, uint64_t rows, uint64_t columns);

/* The same widened to f32 in `room`. */
const float *drafter_vector(struct drafter_binder *binder, const char *name, uint32_t count);

/* The matrix of a module (name without ".weight") in whatever format. */
void drafter_matrix(struct drafter_binder *binder, struct stored_matrix *matrix, const char *name, uint32_t rows, uint32_t k);

/* Layer i; `prefix` stands before "layers.". */
void drafter_bind_layer(struct drafter_binder *binder, struct drafter_layer *layer, const struct model_config *config, uint32_t i, const char *prefix);

/* A BF16 or F32 tensor as a matrix for drafter_multiply. */
struct stored_matrix drafter_plain(const void *data, enum tensor_dtype dtype, uint32_t rows, uint32_t k);

/* Rounds plain matrices (BF16, F32) to FP8 with a scale for each row, in new memory that *owned gets (to be freed); others and empty ones stay as they are.
 * threads as in pool_open. 0, -E_NOMEM, -E_IO. */
int drafter_to_fp8(struct stored_matrix *const *matrices, uint32_t count, uint32_t threads, void **owned);

/* ---- arithmetic ------------------------------------------------------------------------------------- */

struct drafter_math {                 /* one per drafter; both borrowed */
    const struct kernels *kernels;
    struct pool *pool;
};

/* Tasks on all threads, or here if `macs` multiply-adds are not worth waking them. */
void drafter_tasks(const struct drafter_math *math, pool_task_fn *fn, void *context, uint32_t task_count, uint64_t macs);

/* y [rows, m->rows] = x [rows, m->k] m^T; activations are never rounded: a drafter's answer is advice. */
void drafter_multiply(const struct drafter_math *math, float *y, const float *x, const struct stored_matrix *m, uint32_t rows);

/* The heads of one row [count, dim]: normed with `weight`, then turned. */
void drafter_turn(const struct drafter_math *math, float *heads, const float *weight, uint32_t count, uint32_t dim, float eps, const struct rope_table *rope,
                  const float *cosine, const float *sine);

struct drafter_rows {                 /* activations of `count` rows; borrowed */
    uint32_t count;
    float *x, *y, *normed;            /* [count, hidden]: stream, addition, normed stream */
    float *attended;                  /* [count, q_heads * head_dim] */
    float *gate, *up;                 /* [count, intermediate] */
};

/* The rest of a layer behind its attention: output projection and feed-forward, each normed and added; `normed` then holds norm(x, next). */
void drafter_finish_layer(const struct drafter_math *math, const struct drafter_layer *layer, const struct model_config *config, const struct drafter_rows *rows,
                          const float *next_norm);

/* normed = norm(x, weight), row by row. */
void drafter_norm(const struct drafter_math *math, const struct model_config *config, const struct drafter_rows *rows, const float *weight);

#endif
