/* model/format.h - finds out how one linear layer of a checkpoint is stored, from the tensors that are there.
 *
 *   module M      codes                     scales                                              written by
 *   M.weight      BF16, F32                 none
 *   M.weight      F8_E4M3 [N, K]            M.weight_scale (or _scale_inv): one, [N], [N, 1],   ModelOpt, compressed-tensors
 *                                           [N/128, K/128] or [N/128, 1, K/128, 1]
 *   M._weight_qdata F8_E4M3 [N, K]          M._weight_scale (older: M.weight:qdata, :scale)     torchao
 *   M.weight_packed U8 [N, K/2]             M.weight_scale F8_E4M3 [N, K/16], values divided    compressed-tensors
 *                                           by M.weight_global_scale
 *   M.weight      U8 [N, K/2]               the same, multiplied by M.weight_scale_2            ModelOpt
 *
 * Tensors of one layer may lie in different shards. Scales of FP8 are widened into the caller's floats, all else is pointed to.
 * Fails naming the tensor, its shape and type. Codes and group scales are not read here: model_weights_scan. */
#ifndef SLUICE_MODEL_FORMAT_H
#define SLUICE_MODEL_FORMAT_H

#include "kernels/stored.h"
#include "model/quantization.h"
#include "model/safetensors.h"

#define FORMAT_NAME_BYTES 320

struct format_source {
    struct safetensors *index;
    const struct quantization *quantization;
    struct model_error *err;
    float *room;                      /* where the next scales go */
    uint64_t room_floats;             /* left there */
};

/* Floats that format_matrix may need for all matrices of the index together. */
uint64_t format_floats(const struct safetensors *index);

/* The matrix of module `name` (no ".weight"), which must be [rows, k]. Marks its tensors as taken. 0, or
 * -E_NOT_FOUND (nothing of that name, or codes without scales), -E_FORMAT, -E_UNSUPPORTED (a type that is not computed). */
int format_matrix(struct stored_matrix *matrix, struct format_source *source, const char *name, uint32_t rows, uint32_t k);

/* For people: "BF16", "FP8 per row, activations FP8 per token", ... written to text. */
void format_describe(const struct stored_matrix *matrix, char *text, size_t bytes);

/* "[3, 4] F8_E4M3" */
void format_shape(const struct tensor *tensor, char *text, size_t bytes);

#endif
