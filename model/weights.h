/* model/weights.h - every weight matrix of the text model, found, shape-checked and named.
 *
 * Pointers go into the mapped checkpoint (struct model_files), which must outlive this. How each matrix is stored (BF16,
 * F32, FP8, FP4) is found out tensor by tensor in model/format.c; the embedding table is BF16 or F32. The few vectors (norms, scalars)
 * and the scales of FP8 matrices are widened to F32 and owned here; everything else stays as it lies in the file.
 * Fails on a missing, misshapen or unknown text tensor; the message names it. Vision, audio
 * and a redundant lm_head are allowed and left alone; scales of a KV cache are known and not applied: the cache
 * holds normed keys and values, for which these factors were not made. */
#ifndef SLUICE_MODEL_WEIGHTS_H
#define SLUICE_MODEL_WEIGHTS_H

#include "kernels/stored.h"
#include "model/config.h"
#include "model/quantization.h"
#include "model/safetensors.h"

struct layer_weights {
    struct stored_matrix q;           /* [q_heads * head_dim, hidden] */
    struct stored_matrix k;           /* [kv_heads * head_dim, hidden] */
    struct stored_matrix v;           /* like k; data is NULL when the layer has no v */
    struct stored_matrix o;           /* [hidden, q_heads * head_dim] */
    struct stored_matrix gate, up;    /* [intermediate, hidden] */
    struct stored_matrix down;        /* [hidden, intermediate] */
    const float *q_norm, *k_norm;     /* [head_dim]   f32, owned, +1 already added for gemma 3 */
    const float *input_norm, *post_attention_norm, *pre_feedforward_norm, *post_feedforward_norm;  /* [hidden] */
    float scalar;                     /* 1 when the family has none */
};

struct model_weights {
    const struct model_config *config;/* borrowed: outlives this */
    enum tensor_dtype dtype;          /* DTYPE_BF16 or DTYPE_F32, of the embedding table */
    const void *embed;                /* [vocab, hidden]: lookup and, tied, output matrix */
    const float *final_norm;          /* [hidden] */
    float embed_scale;                /* sqrt(hidden) rounded to the table's type, as the reference multiplies */
    struct layer_weights layer[MODEL_LAYERS_MAX];
    uint64_t step_bytes;              /* bytes of weights that one decode step reads (all matrices once) */
    bool rounds_activations;          /* some matrix has a rule other than STORED_AS_IS */
    float *owned;                     /* the widened vectors and scales; freed by model_weights_free */
};

#define MODEL_SCAN_BYTES_MAX (1ull << 30)  /* model_load reads all codes of checkpoints up to here; see model_weights_scan */

/* 0, -E_NOT_FOUND (missing tensor), -E_FORMAT (wrong shape or type, unknown text tensor), -E_UNSUPPORTED (a format that is
 * not computed), -E_NOMEM. `quantization`: what config.json says, to be trusted only where the tensors leave a choice. */
int model_weights_load(struct model_weights *weights, const struct model_config *config, const struct quantization *quantization,
                       struct safetensors *index, struct model_error *err);

/* Reads every FP8 code and every group scale: 0, or -E_FORMAT for a NaN among them, naming layer and matrix. One exporter casts
 * without clamping, so real files may have them. To be called by whoever reads all weights anyway (a copy to a GPU,
 * `sluice inspect`); reading 13 GB only for this would hold up a start from the page cache by seconds. */
int model_weights_scan(const struct model_weights *weights, struct model_error *err);

/* The same for one matrix; `name` is for the message. */
int model_matrix_scan(const struct stored_matrix *matrix, const char *name, struct model_error *err);

/* One of the seven matrices of a layer, in the order q k v o gate up down, and its name below "layers.N.". */
#define MODEL_MATRICES 7
const struct stored_matrix *model_matrix(const struct model_weights *weights, uint32_t layer, uint32_t which);
const char *model_matrix_name(uint32_t which);

/* Its shape by the configuration; false when the layer has no such matrix (v of some). */
bool model_matrix_shape(const struct model_config *config, uint32_t layer, uint32_t which, uint32_t *rows, uint32_t *k);

/* What stands before "embed_tokens.weight" and "layers.N" in this checkpoint: 0, or -E_NOT_FOUND. */
int model_weights_prefix(const struct safetensors *index, const char **prefix, struct model_error *err);

/* What embeddings are multiplied by: sqrt(hidden), rounded to the table's type as the reference multiplies. */
float model_embed_scale(uint32_t hidden, enum tensor_dtype dtype);

void model_weights_free(struct model_weights *weights);

/* config + generation + quantization + index + weights of a set of files in one call, codes scanned up to MODEL_SCAN_BYTES_MAX; `config` must live as long as `weights`.
 * The safetensors index is dropped again: weights keep pointers into the files only. */
int model_load(struct model_config *config, struct generation_config *generation, struct model_weights *weights,
               const struct model_files *files, struct model_error *err);

#endif
