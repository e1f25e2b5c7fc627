/* model/embedder.h - what the parts of a model that see and hear have in common (model/soft.c, model/siglip.c): tensors that checkpoints
 * spell in several ways, LayerNorm, products of any stored format.
 *
 * Numbers that are no matrices are widened to f32 into the owner's room; matrices are borrowed from the checkpoint's files. */
#ifndef SLUICE_MODEL_EMBEDDER_H
#define SLUICE_MODEL_EMBEDDER_H

#include "kernels/kernels.h"
#include "model/format.h"

struct embedder_source {
    struct format_source source;
    float *room;                      /* where the next numbers go: the caller counted them */
};

/* `count` numbers in BF16 or F32 of the tensor `name` under one of the prefixes (the last is NULL), widened. *out points into the room.
 * 0, -E_NOT_FOUND, -E_FORMAT; the error names the tensor. */
int embedder_vector(struct embedder_source *source, const char *const prefixes[], const char *name, uint64_t count, const float **out);

/* The matrix [rows, k] of the module `name` (no ".weight"). As format_matrix, and -E_NOT_FOUND when no prefix has it. */
int embedder_matrix(struct embedder_source *source, const char *const prefixes[], const char *name, uint32_t rows, uint32_t k, struct stored_matrix *out);

/* y = (x - mean) / sqrt(variance + eps) * weight + bias; sums in double, in 16 lanes and the tree of kernels/kernels.h. y may be x. */
void embedder_layer_norm(float *y, const float *x, const float *weight, const float *bias, uint32_t n, float eps);

/* y [count, rows] = x [count, k] times the matrix; weight-only, whatever rule for activations the writer meant for text. */
void embedder_multiply(const struct kernels *kernels, float *y, const float *x, uint32_t count, const struct stored_matrix *matrix);

#endif
