/* model/safetensors.h - an index over the tensors of one or more safetensors files.
 *
 * The header of such a file is outside data: every length, offset, dtype, shape and name is checked
 * before a pointer is made from it, and an error names the file and the tensor. The
 * index owns its names; tensor bytes are borrowed from struct model_files. */
#ifndef SLUICE_MODEL_SAFETENSORS_H
#define SLUICE_MODEL_SAFETENSORS_H

#include "model/files.h"
#include <stdbool.h>
#include <stdint.h>

#define SAFETENSORS_RANK_MAX 8
#define SAFETENSORS_TENSORS_MAX 65536
#define SAFETENSORS_HEADER_BYTES_MAX (16u << 20)  /* the largest real headers are below 1 MiB */
#define SAFETENSORS_VALUES_MAX (16u * SAFETENSORS_TENSORS_MAX)  /* JSON values in a header: parsed, each takes a hundred bytes */

enum tensor_dtype {
    DTYPE_BF16 = 1, DTYPE_F32 = 2, DTYPE_F16 = 3, DTYPE_F64 = 4, DTYPE_E4M3 = 5, DTYPE_U8 = 6,
    DTYPE_E5M2, DTYPE_E8M0, DTYPE_I8, DTYPE_I16, DTYPE_I32, DTYPE_I64, DTYPE_U16, DTYPE_U32, DTYPE_U64, DTYPE_BOOL  /* known, not used here */
};

struct tensor {
    char *name;                       /* owned by the index */
    enum tensor_dtype dtype;
    uint32_t rank;
    uint64_t shape[SAFETENSORS_RANK_MAX];
    const void *data;                 /* borrowed from model_files, aligned to the element */
    uint64_t byte_count;
    uint32_t file_index;              /* in model_files */
    bool taken;                       /* weights.c: some layer uses it */
};

struct safetensors {
    struct tensor *tensor;            /* owned; sorted by name */
    uint32_t count, capacity;
};

void safetensors_init(struct safetensors *index);

/* Adds the tensors of one file; `name` is for messages. 0, -E_FORMAT, -E_LIMIT, -E_NOMEM, -E_UNSUPPORTED. */
int safetensors_add(struct safetensors *index, const char *name, uint32_t file_index,
                    const uint8_t *bytes, uint64_t byte_count, struct model_error *err);

/* Sorts and refuses a name that appears twice; to be called after the last add. */
int safetensors_finish(struct safetensors *index, struct model_error *err);

/* All *.safetensors of the set: add each, then finish. -E_NOT_FOUND when there is none. */
int safetensors_load(struct safetensors *index, const struct model_files *files, struct model_error *err);

/* The tensor called `name`, or NULL. */
struct tensor *safetensors_find(const struct safetensors *index, const char *name);

/* "BF16", "F32", ... */
const char *tensor_dtype_name(enum tensor_dtype dtype);

/* Bytes of one element. */
uint32_t tensor_dtype_bytes(enum tensor_dtype dtype);

void safetensors_free(struct safetensors *index);

#endif
