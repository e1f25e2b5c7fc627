/* model/weights.h - every weight matrix of the text model, found, shape-checked and named.
 *
 * Pointers go into the mapped checkpoint (struct model_files), which must outlive this. All big matrices are of one
 * type, BF16 or F32 (small test checkpoints); the few vectors (norms, scalars) are widened to F32 and owned here.
 * Fails on a missing, misshapen or unknown text tensor; the message names it. Vision, audio
 * and a redundant lm_head are allowed and left alone. */
#ifndef SLUICE_MODEL_WEIGHTS_H
#define SLUICE_MODEL_WEIGHTS_H

#include "model/config.h"
#include "model/safetensors.h"

struct layer_weights {
    const void *q;                    /* [q_heads * head_dim, hidden]                       matrices: weights.dtype, */
    const void *k;                    /* [kv_heads * head_dim, hidden]                      borrowed from the files */
    const void *v;                    /* like k, or NULL when the layer has no v */
    const void *o;                    /* [hidden, q_heads * head_dim] */
    const void *gate, *up;            /* [intermediate, hidden] */
    const void *down;                 /* [hidden, intermediate] */
    const float *q_norm, *k_norm;     /* [head_dim]   f32, owned, +1 already added for gemma 3 */
    const float *input_norm, *post_attention_norm, *pre_feedforward_norm, *post_feedforward_norm;  /* [hidden] */
    float scalar;                     /* 1 when the family has none */
};

struct model_weights {
    const struct model_config *config;/* borrowed: outlives this */
    enum tensor_dtype dtype;          /* DTYPE_BF16 or DTYPE_F32, of all matrices */
    const void *embed;                /* [vocab, hidden]: lookup and, tied, output matrix */
    const float *final_norm;          /* [hidden] */
    float embed_scale;                /* sqrt(hidden) rounded to the matrices' type, as the reference multiplies */
    struct layer_weights layer[MODEL_LAYERS_MAX];
    uint64_t step_bytes;              /* bytes of weights that one decode step reads (all matrices once) */
    float *owned;                     /* the widened vectors; freed by model_weights_free */
};

/* 0, -E_NOT_FOUND (missing tensor), -E_FORMAT (wrong shape or type, unknown text tensor), -E_NOMEM. */
int model_weights_load(struct model_weights *weights, const struct model_config *config,
                       struct safetensors *index, struct model_error *err);

void model_weights_free(struct model_weights *weights);

/* config + generation + index + weights of a set of files in one call; `config` must live as long as `weights`.
 * The safetensors index is dropped again: weights keep pointers into the files only. */
int model_load(struct model_config *config, struct generation_config *generation, struct model_weights *weights,
               const struct model_files *files, struct model_error *err);

#endif
