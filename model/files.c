/* model/files.c - see files.h. Owns descriptors and maps; reads nothing but the index of shards. */
#include "model/files.h"
#include "shm/error.h"
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define FILES_INDEX_BYTES_MAX (16u << 20)   /* model.safetensors.index.json */
#define FILES_INDEX "model.safetensors.index.json"
#define FILES_SINGLE "model.safetensors"

static const char *const files_small[] = {
    "generation_config.json", "hf_quant_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json",
    "processor_config.json", "preprocessor_config.json", "draft_vocab.json",
};

int model_error_set(struct model_error *err, int code, const char *format, ...)
{
    va_list list;

    if (!err) return code;
    va_start(list, format);
    vsnprintf(err->text, sizeof(err->text), format, list);
    va_end(list);
    return code;
}

void model_files_init(struct model_files *files) { files->count = 0; }

/* A name that is safe to open below the checkpoint's directory. */
static int files_name_ok(const char *name)
{
    return name[0] != '\0' && name[0] != '.' && !strchr(name, '/') && strlen(name) < MODEL_FILE_NAME_BYTES;
}

int model_files_add(struct model_files *files, const char *name, int fd, struct model_error *err)
{
    struct model_file *file = &files->file[files->count];
    struct stat st;
    void *map = NULL;
    int own;

    if (!files_name_ok(name)) return model_error_set(err, -E_FORMAT, "file name \"%.80s\" is not allowed in a checkpoint", name);
    if (files->count == MODEL_FILES_MAX) return model_error_set(err, -E_LIMIT, "%s: a checkpoint has at most %d files", name, MODEL_FILES_MAX);
    for (uint32_t i = 0; i < files->count; i++)
        if (strcmp(files->file[i].name, name) == 0) return model_error_set(err, -E_FORMAT, "%s: given twice", name);
    if (fstat(fd, &st) != 0) return model_error_set(err, -E_IO, "%s: %s", name, strerror(errno));
    if (!S_ISREG(st.st_mode)) return model_error_set(err, -E_IO, "%s: not a regular file", name);
    if ((own = fcntl(fd, F_DUPFD_CLOEXEC, 0)) < 0) return model_error_set(err, -E_IO, "%s: %s", name, strerror(errno));
    if (st.st_size > 0 && (map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, own, 0)) == MAP_FAILED) {
        model_error_set(err, -E_IO, "%s: cannot map %lld bytes: %s", name, (long long)st.st_size, strerror(errno));
        close(own);
        return -E_IO;
    }
    snprintf(file->name, sizeof(file->name), "%s", name);
    file->fd = own;
    file->bytes = map;
    file->byte_count = (uint64_t)st.st_size;
    files->count++;
    return 0;
}

/* Opens dir/name and adds it. A missing file is -E_NOT_FOUND. */
static int files_open_one(struct model_files *files, int dir_fd, const char *dir, const char *name, struct model_error *err)
{
    int fd, rc;

    if (!files_name_ok(name)) return model_error_set(err, -E_FORMAT, "%s: file name \"%.80s\" is not allowed in a checkpoint", dir, name);
    if ((fd = openat(dir_fd, name, O_RDONLY | O_CLOEXEC)) < 0)
        return model_error_set(err, errno == ENOENT ? -E_NOT_FOUND : -E_IO, "%s/%s: %s", dir, name, strerror(errno));
    rc = model_files_add(files, name, fd, err);
    close(fd);
    return rc;
}

/* Opens each shard that the index's weight_map names, once. */
static int files_open_shards(struct model_files *files, int dir_fd, const char *dir, struct model_error *err)
{
    const uint8_t *bytes, *ignored;
    uint64_t byte_count, ignored_count;
    const char *tensor;
    json_t *root, *map, *shard;
    json_error_t problem;
    int rc = 0;

    if ((rc = model_files_find(files, FILES_INDEX, &bytes, &byte_count)) != 0) return rc;
    if (byte_count == 0 || byte_count > FILES_INDEX_BYTES_MAX) return model_error_set(err, -E_FORMAT, "%s/%s: %llu bytes", dir, FILES_INDEX, (unsigned long long)byte_count);
    if (!(root = json_loadb((const char *)bytes, (size_t)byte_count, JSON_REJECT_DUPLICATES, &problem)))
        return model_error_set(err, -E_FORMAT, "%s/%s: line %d: %s", dir, FILES_INDEX, problem.line, problem.text);
    map = json_object_get(root, "weight_map");
    if (!json_is_object(map) || json_object_size(map) == 0) rc = model_error_set(err, -E_FORMAT, "%s/%s: no weight_map", dir, FILES_INDEX);
    else json_object_foreach(map, tensor, shard) {
        if (!json_is_string(shard)) rc = model_error_set(err, -E_FORMAT, "%s/%s: the shard of %.200s is not a string", dir, FILES_INDEX, tensor);
        else if (model_files_find(files, json_string_value(shard), &ignored, &ignored_count) != 0)
            rc = files_open_one(files, dir_fd, dir, json_string_value(shard), err);
        if (rc != 0) break;
    }
    json_decref(root);
    return rc;
}

static int files_open_all(struct model_files *files, int dir_fd, const char *dir, struct model_error *err)
{
    int rc;

    if ((rc = files_open_one(files, dir_fd, dir, "config.json", err)) != 0) return rc;
    for (uint32_t i = 0; i < sizeof(files_small) / sizeof(files_small[0]); i++) {
        rc = files_open_one(files, dir_fd, dir, files_small[i], err);
        if (rc != 0 && rc != -E_NOT_FOUND) return rc;
    }
    rc = files_open_one(files, dir_fd, dir, FILES_SINGLE, err);
    if (rc != -E_NOT_FOUND) return rc;
    rc = files_open_one(files, dir_fd, dir, FILES_INDEX, err);
    if (rc == -E_NOT_FOUND) return model_error_set(err, -E_NOT_FOUND, "%s: neither %s nor %s", dir, FILES_SINGLE, FILES_INDEX);
    return rc != 0 ? rc : files_open_shards(files, dir_fd, dir, err);
}

int model_files_open_dir(struct model_files *files, const char *dir, struct model_error *err)
{
    const int dir_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc;

    model_files_init(files);
    if (dir_fd < 0) return model_error_set(err, errno == ENOENT ? -E_NOT_FOUND : -E_IO, "%s: %s", dir, strerror(errno));
    rc = files_open_all(files, dir_fd, dir, err);
    close(dir_fd);
    if (rc != 0) model_files_close(files);
    else if (err) err->text[0] = '\0';       /* of the optional files that are not there */
    return rc;
}

int model_files_find(const struct model_files *files, const char *name, const uint8_t **bytes, uint64_t *byte_count)
{
    for (uint32_t i = 0; i < files->count; i++) {
        if (strcmp(files->file[i].name, name) != 0) continue;
        *bytes = files->file[i].bytes;
        *byte_count = files->file[i].byte_count;
        return 0;
    }
    return -E_NOT_FOUND;
}

void model_files_close(struct model_files *files)
{
    for (uint32_t i = 0; i < files->count; i++) {
        if (files->file[i].bytes) munmap((void *)files->file[i].bytes, (size_t)files->file[i].byte_count);
        close(files->file[i].fd);
    }
    files->count = 0;
}
