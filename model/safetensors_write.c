/* model/safetensors_write.c - see safetensors_write.h. */
#include "model/safetensors_write.h"
#include "shm/error.h"
#include "shm/must.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

void safetensors_writer_init(struct safetensors_writer *w) { *w = (struct safetensors_writer){ .fd = -1 }; }

int safetensors_writer_add(struct safetensors_writer *w, const char *name, enum tensor_dtype dtype, uint32_t rank, const uint64_t *shape)
{
    struct written_tensor *t;

    must(rank <= SAFETENSORS_RANK_MAX && w->fd < 0);
    if (w->count == SAFETENSORS_TENSORS_MAX) return -E_LIMIT;
    if (w->count == w->capacity) {
        const uint32_t capacity = w->capacity ? 2 * w->capacity : 256;
        struct written_tensor *bigger = realloc(w->tensor, capacity * sizeof(*bigger));

        if (!bigger) return -E_NOMEM;
        w->tensor = bigger;
        w->capacity = capacity;
    }
    t = &w->tensor[w->count];
    *t = (struct written_tensor){ .name = strdup(name), .dtype = dtype, .rank = rank, .byte_count = tensor_dtype_bytes(dtype) };
    if (!t->name) return -E_NOMEM;
    for (uint32_t i = 0; i < rank; i++) t->byte_count *= t->shape[i] = shape[i];
    return (int)w->count++;
}

static int compare_place(const void *a, const void *b)
{
    const struct written_tensor *x = *(const struct written_tensor *const *)a, *y = *(const struct written_tensor *const *)b;
    const uint32_t left = tensor_dtype_bytes(x->dtype), right = tensor_dtype_bytes(y->dtype);

    return left != right ? (left > right ? -1 : 1) : strcmp(x->name, y->name);
}

/* Gives each tensor its place; the header as text, owned by the caller, or NULL. */
static char *lay_out(struct safetensors_writer *w, const json_t *metadata)
{
    struct written_tensor **order = malloc((w->count + 1) * sizeof(*order));
    json_t *header = json_object();
    char *text;

    if (!order || !header) {
        free(order);
        return NULL;
    }
    for (uint32_t i = 0; i < w->count; i++) order[i] = &w->tensor[i];
    qsort(order, w->count, sizeof(*order), compare_place);
    if (metadata) json_object_set_new(header, "__metadata__", json_deep_copy(metadata));
    for (uint32_t i = 0; i < w->count; i++) {
        struct written_tensor *t = order[i];
        json_t *shape = json_array();

        for (uint32_t d = 0; d < t->rank; d++) json_array_append_new(shape, json_integer((json_int_t)t->shape[d]));
        t->offset = w->data_bytes;
        w->data_bytes += t->byte_count;
        json_object_set_new(header, t->name, json_pack("{s:s, s:o, s:[I, I]}", "dtype", tensor_dtype_name(t->dtype), "shape", shape, "data_offsets",
                                                       (json_int_t)t->offset, (json_int_t)w->data_bytes));
    }
    text = json_dumps(header, JSON_COMPACT);
    json_decref(header);
    free(order);
    return text;
}

static int fail(struct model_error *err, const char *name, const char *what)
{
    return model_error_set(err, -E_IO, "%.200s: %s: %s", name, what, strerror(errno));
}

int safetensors_writer_open(struct safetensors_writer *w, int dir_fd, const char *name, const json_t *metadata, struct model_error *err)
{
    char *text = lay_out(w, metadata);
    uint64_t length, padded;
    int rc = 0;

    if (!text) return model_error_set(err, -E_NOMEM, "%.200s: no memory for its header", name);
    length = strlen(text);
    padded = (length + 7) / 8 * 8;
    w->map_bytes = 8 + padded + w->data_bytes;
    if ((w->fd = openat(dir_fd, name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644)) < 0) rc = fail(err, name, "cannot be made");
    else if ((errno = posix_fallocate(w->fd, 0, (off_t)w->map_bytes)) != 0) rc = fail(err, name, "no room");
    else if ((w->map = mmap(NULL, w->map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, w->fd, 0)) == MAP_FAILED) {
        w->map = NULL;
        rc = fail(err, name, "cannot be mapped");
    } else {
        memcpy(w->map, &padded, 8);
        memset(w->map + 8, ' ', padded);
        memcpy(w->map + 8, text, length);
        w->data = w->map + 8 + padded;
    }
    free(text);
    return rc;
}

uint8_t *safetensors_writer_data(struct safetensors_writer *w, uint32_t index)
{
    must(w->data && index < w->count);
    return w->data + w->tensor[index].offset;
}

int safetensors_writer_close(struct safetensors_writer *w, bool keep, struct model_error *err)
{
    int rc = 0;

    if (w->map && keep && msync(w->map, w->map_bytes, MS_SYNC) != 0) rc = fail(err, "safetensors", "cannot be written");
    if (w->map) munmap(w->map, w->map_bytes);
    if (w->fd >= 0 && keep && rc == 0 && fsync(w->fd) != 0) rc = fail(err, "safetensors", "cannot be written");
    if (w->fd >= 0) close(w->fd);
    for (uint32_t i = 0; i < w->count; i++) free(w->tensor[i].name);
    free(w->tensor);
    safetensors_writer_init(w);
    return rc;
}
