/* model/safetensors.c - see safetensors.h. The header is parsed once by jansson; nothing in it is believed unchecked. */
#include "model/safetensors.h"
#include "shm/error.h"
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#define SAFETENSORS_NAME_BYTES_MAX 1024

static const struct { const char *name; enum tensor_dtype dtype; uint32_t bytes; } dtypes[] = {
    { "BF16", DTYPE_BF16, 2 }, { "F32", DTYPE_F32, 4 }, { "F16", DTYPE_F16, 2 }, { "F64", DTYPE_F64, 8 },
    { "F8_E4M3", DTYPE_E4M3, 1 }, { "U8", DTYPE_U8, 1 }, { "F8_E5M2", DTYPE_E5M2, 1 }, { "F8_E8M0", DTYPE_E8M0, 1 },
    { "I64", DTYPE_I64, 8 }, { "I32", DTYPE_I32, 4 }, { "I16", DTYPE_I16, 2 }, { "I8", DTYPE_I8, 1 },
    { "U64", DTYPE_U64, 8 }, { "U32", DTYPE_U32, 4 }, { "U16", DTYPE_U16, 2 }, { "BOOL", DTYPE_BOOL, 1 },
};

/* Where a message is about: file and tensor. */
struct place {
    const char *file, *tensor;
    struct model_error *err;
};

static int refuse(const struct place *at, const char *why)
{
    return model_error_set(at->err, -E_FORMAT, "%.120s: tensor %.200s: %s", at->file, at->tensor, why);
}

const char *tensor_dtype_name(enum tensor_dtype dtype)
{
    for (size_t i = 0; i < sizeof(dtypes) / sizeof(dtypes[0]); i++)
        if (dtypes[i].dtype == dtype) return dtypes[i].name;
    return "another type";
}

uint32_t tensor_dtype_bytes(enum tensor_dtype dtype)
{
    for (size_t i = 0; i < sizeof(dtypes) / sizeof(dtypes[0]); i++)
        if (dtypes[i].dtype == dtype) return dtypes[i].bytes;
    return 0;
}

void safetensors_init(struct safetensors *index) { *index = (struct safetensors){ 0 }; }

void safetensors_free(struct safetensors *index)
{
    for (uint32_t i = 0; i < index->count; i++) free(index->tensor[i].name);
    free(index->tensor);
    safetensors_init(index);
}

static int read_dtype(struct tensor *t, uint32_t *element_bytes, const json_t *entry, const struct place *at)
{
    const char *name = json_string_value(json_object_get(entry, "dtype"));

    if (!name) return refuse(at, "no dtype");
    for (size_t i = 0; i < sizeof(dtypes) / sizeof(dtypes[0]); i++) {
        if (strcmp(dtypes[i].name, name) != 0) continue;
        t->dtype = dtypes[i].dtype;
        *element_bytes = dtypes[i].bytes;
        return 0;
    }
    return model_error_set(at->err, -E_FORMAT, "%.120s: tensor %.200s: unknown dtype %.40s", at->file, at->tensor, name);
}

/* Shape and the bytes it asks for; a product that overflows is refused. */
static int read_shape(struct tensor *t, uint32_t element_bytes, const json_t *entry, const struct place *at)
{
    const json_t *shape = json_object_get(entry, "shape");

    if (!json_is_array(shape)) return refuse(at, "no shape");
    if (json_array_size(shape) > SAFETENSORS_RANK_MAX) return refuse(at, "too many dimensions");
    t->rank = (uint32_t)json_array_size(shape);
    t->byte_count = element_bytes;
    for (uint32_t i = 0; i < t->rank; i++) {
        const json_t *size = json_array_get(shape, i);

        if (!json_is_integer(size) || json_integer_value(size) < 0) return refuse(at, "a dimension is not a count");
        t->shape[i] = (uint64_t)json_integer_value(size);
        if (__builtin_mul_overflow(t->byte_count, t->shape[i], &t->byte_count)) return refuse(at, "the shape overflows");
    }
    return 0;
}

static int read_offsets(struct tensor *t, uint32_t element_bytes, const json_t *entry, const uint8_t *data, uint64_t data_bytes,
                        const struct place *at)
{
    const json_t *offsets = json_object_get(entry, "data_offsets");
    const json_t *begin = json_array_get(offsets, 0), *end = json_array_get(offsets, 1);
    uint64_t from, to;

    if (json_array_size(offsets) != 2 || !json_is_integer(begin) || !json_is_integer(end)
        || json_integer_value(begin) < 0 || json_integer_value(end) < 0) return refuse(at, "no data_offsets");
    from = (uint64_t)json_integer_value(begin);
    to = (uint64_t)json_integer_value(end);
    if (from > to) return refuse(at, "data_offsets run backwards");
    if (to > data_bytes) return model_error_set(at->err, -E_FORMAT, "%.120s: tensor %.200s: its data ends at byte %llu of %llu: the file is cut short",
                                                at->file, at->tensor, (unsigned long long)to, (unsigned long long)data_bytes);
    if (to - from != t->byte_count) return refuse(at, "data_offsets do not fit dtype and shape");
    if ((uintptr_t)(data + from) % element_bytes != 0) return refuse(at, "its data is not aligned to its type");
    t->data = data + from;
    return 0;
}

/* Makes room for one more tensor. */
static int index_grow(struct safetensors *index, const struct place *at)
{
    const uint32_t capacity = index->capacity ? 2 * index->capacity : 1024;
    struct tensor *bigger;

    if (index->count < index->capacity) return 0;
    if (index->count >= SAFETENSORS_TENSORS_MAX) return model_error_set(at->err, -E_LIMIT, "%.120s: more than %d tensors", at->file, SAFETENSORS_TENSORS_MAX);
    if (!(bigger = realloc(index->tensor, capacity * sizeof(*bigger)))) return model_error_set(at->err, -E_NOMEM, "%.120s: no memory for the index", at->file);
    index->tensor = bigger;
    index->capacity = capacity;
    return 0;
}

static int compare_data(const void *a, const void *b)
{
    const struct tensor *x = a, *y = b;

    if (x->data != y->data) return (const char *)x->data < (const char *)y->data ? -1 : 1;
    return x->byte_count < y->byte_count ? -1 : x->byte_count > y->byte_count;      /* empty ones first */
}

/* Sorts the tensors of one file by place: they must follow each other without a gap or a shared byte, to the end of the file. */
static int check_layout(struct safetensors *index, uint32_t first, const uint8_t *data, uint64_t data_bytes, struct place *at)
{
    const uint8_t *next = data;

    if (index->count > first) qsort(index->tensor + first, index->count - first, sizeof(struct tensor), compare_data);
    for (uint32_t i = first; i < index->count; i++) {
        const struct tensor *t = &index->tensor[i];

        at->tensor = t->name;
        if ((const uint8_t *)t->data < next) return refuse(at, "overlaps another tensor");
        if ((const uint8_t *)t->data > next) return refuse(at, "there is a hole before its data");
        next = (const uint8_t *)t->data + t->byte_count;
    }
    if (next == data + data_bytes) return 0;
    return model_error_set(at->err, -E_FORMAT, "%.120s: %llu bytes behind the last tensor", at->file, (unsigned long long)(data + data_bytes - next));
}

static int add_all(struct safetensors *index, json_t *header, uint32_t file_index, const uint8_t *data, uint64_t data_bytes,
                   struct place *at)
{
    const uint32_t first = index->count;
    json_t *entry;
    int rc;

    json_object_foreach(header, at->tensor, entry) {
        struct tensor *t;
        uint32_t element_bytes = 1;

        if (strcmp(at->tensor, "__metadata__") == 0) continue;
        if (strlen(at->tensor) > SAFETENSORS_NAME_BYTES_MAX) return refuse(at, "its name is too long");
        if (!json_is_object(entry)) return refuse(at, "its entry is not an object");
        if ((rc = index_grow(index, at)) != 0) return rc;
        t = &index->tensor[index->count];
        *t = (struct tensor){ .file_index = file_index };
        if ((rc = read_dtype(t, &element_bytes, entry, at)) != 0 || (rc = read_shape(t, element_bytes, entry, at)) != 0
            || (rc = read_offsets(t, element_bytes, entry, data, data_bytes, at)) != 0) return rc;
        if (!(t->name = strdup(at->tensor))) return model_error_set(at->err, -E_NOMEM, "%.120s: no memory for the index", at->file);
        index->count++;
    }
    return check_layout(index, first, data, data_bytes, at);
}

/* More values than a full index has? Counted without parsing: some inside strings count, too. */
static bool has_too_many_values(const uint8_t *text, uint64_t bytes)
{
    uint64_t values = 0;

    for (uint64_t i = 0; i < bytes; i++) values += text[i] == ',' || text[i] == '{' || text[i] == '[';
    return values > SAFETENSORS_VALUES_MAX;
}

int safetensors_add(struct safetensors *index, const char *name, uint32_t file_index,
                    const uint8_t *bytes, uint64_t byte_count, struct model_error *err)
{
    struct place at = { .file = name, .tensor = "", .err = err };
    json_error_t problem;
    uint64_t header_bytes = 0;
    json_t *header;
    int rc;

    if (byte_count < 8) return model_error_set(err, -E_FORMAT, "%.120s: %llu bytes are too few for a safetensors file", name, (unsigned long long)byte_count);
    for (int i = 7; i >= 0; i--) header_bytes = header_bytes << 8 | bytes[i];
    if (header_bytes > SAFETENSORS_HEADER_BYTES_MAX || header_bytes > byte_count - 8)
        return model_error_set(err, -E_FORMAT, "%.120s: a header of %llu bytes in a file of %llu: not safetensors, or cut short",
                               name, (unsigned long long)header_bytes, (unsigned long long)byte_count);
    if (has_too_many_values(bytes + 8, header_bytes)) return model_error_set(err, -E_LIMIT, "%.120s: a header of more than %u values", name, SAFETENSORS_VALUES_MAX);
    header = json_loadb((const char *)bytes + 8, (size_t)header_bytes, JSON_REJECT_DUPLICATES, &problem);
    if (!header) return model_error_set(err, -E_FORMAT, "%.120s: header: %s", name, problem.text);
    if (!json_is_object(header)) rc = model_error_set(err, -E_FORMAT, "%.120s: the header is not an object", name);
    else rc = add_all(index, header, file_index, bytes + 8 + header_bytes, byte_count - 8 - header_bytes, &at);
    json_decref(header);
    return rc;
}

static int compare_name(const void *a, const void *b)
{
    return strcmp(((const struct tensor *)a)->name, ((const struct tensor *)b)->name);
}

int safetensors_finish(struct safetensors *index, struct model_error *err)
{
    if (index->count > 0) qsort(index->tensor, index->count, sizeof(struct tensor), compare_name);
    for (uint32_t i = 1; i < index->count; i++)
        if (strcmp(index->tensor[i - 1].name, index->tensor[i].name) == 0)
            return model_error_set(err, -E_FORMAT, "tensor %.200s: stored twice", index->tensor[i].name);
    return 0;
}

int safetensors_load(struct safetensors *index, const struct model_files *files, struct model_error *err)
{
    static const char suffix[] = ".safetensors";
    uint32_t found = 0;
    int rc;

    for (uint32_t i = 0; i < files->count; i++) {
        const struct model_file *file = &files->file[i];
        const size_t length = strlen(file->name);

        if (length < sizeof(suffix) || strcmp(file->name + length - (sizeof(suffix) - 1), suffix) != 0) continue;
        if ((rc = safetensors_add(index, file->name, i, file->bytes, file->byte_count, err)) != 0) return rc;
        found++;
    }
    if (found == 0) return model_error_set(err, -E_NOT_FOUND, "no .safetensors file in the checkpoint");
    return safetensors_finish(index, err);
}

struct tensor *safetensors_find(const struct safetensors *index, const char *name)
{
    uint32_t low = 0, high = index->count;

    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        const int order = strcmp(name, index->tensor[middle].name);

        if (order == 0) return &index->tensor[middle];
        if (order < 0) high = middle;
        else low = middle + 1;
    }
    return NULL;
}
