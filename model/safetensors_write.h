/* model/safetensors_write.h - one safetensors file, laid out first, then filled in any order through a map.
 *
 * The file is complete and on disk only after safetensors_writer_close returned 0; until then it is the caller's temporary file.
 * Space is reserved before the first byte, so that a full disk is an error here and not a signal later. */
#ifndef SLUICE_MODEL_SAFETENSORS_WRITE_H
#define SLUICE_MODEL_SAFETENSORS_WRITE_H

#include "model/safetensors.h"
#include <jansson.h>

struct written_tensor {
    char *name;                       /* owned */
    enum tensor_dtype dtype;
    uint32_t rank;
    uint64_t shape[SAFETENSORS_RANK_MAX];
    uint64_t offset, byte_count;      /* in the data part; known after safetensors_writer_open */
};

struct safetensors_writer {
    struct written_tensor *tensor;    /* owned; in the order of adding */
    uint32_t count, capacity;
    int fd;
    uint8_t *map, *data;              /* the whole file; where tensors begin */
    uint64_t map_bytes, data_bytes;
};

void safetensors_writer_init(struct safetensors_writer *w);

/* Plans a tensor; its index, or -E_NOMEM, -E_LIMIT. */
int safetensors_writer_add(struct safetensors_writer *w, const char *name, enum tensor_dtype dtype, uint32_t rank, const uint64_t *shape);

/* Makes the file dir_fd/name with header and room: larger elements first, then by name. metadata: object of strings, borrowed.
 * 0, -E_IO (the text says what), -E_NOMEM. */
int safetensors_writer_open(struct safetensors_writer *w, int dir_fd, const char *name, const json_t *metadata, struct model_error *err);

/* Where the bytes of a planned tensor go. */
uint8_t *safetensors_writer_data(struct safetensors_writer *w, uint32_t index);

/* Writes all out to the disk and closes; also frees. keep false: only frees. 0 or -E_IO. */
int safetensors_writer_close(struct safetensors_writer *w, bool keep, struct model_error *err);

#endif
