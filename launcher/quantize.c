/* launcher/quantize.c - see quantize.h: the command, the files, the progress.
 *
 * Reads the checkpoint through its map and writes through maps: memory in use is page cache. Text matrices are quantized, all
 * else (embedding table, norms, pictures and sound) is copied byte for byte. */
#include "launcher/quantize.h"
#include "shm/error.h"
#include "shm/stage.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define QUANTIZE_ROWS 128u            /* of a matrix in one task: a whole block of any format */
#define QUANTIZE_COPY_BYTES (64ull << 20)   /* between two reports of progress */
#define QUANTIZE_PATH_BYTES 4096

struct task { const struct quantize_job *job; float *largest; };

static void progress(struct quantize *q, uint64_t bytes)
{
    const bool last = (q->bytes_done += bytes) >= q->bytes_total;
    static time_t shown;
    const time_t now = time(NULL);

    if (now == shown && !last) return;
    shown = now;
    fprintf(stderr, "\rquantizing: %3.0f %% of %.2f GB", 100.0 * (double)q->bytes_done / (double)q->bytes_total, (double)q->bytes_total * 1e-9);
    if (last) fprintf(stderr, "\n");
}

static uint32_t task_rows(const struct stored_matrix *m) { return (m->rows + QUANTIZE_ROWS - 1) / QUANTIZE_ROWS; }

static uint32_t task_end(const struct stored_matrix *m, uint32_t task)
{
    return m->rows - task * QUANTIZE_ROWS < QUANTIZE_ROWS ? m->rows : (task + 1) * QUANTIZE_ROWS;
}

static void largest_task(void *context, uint32_t task, uint32_t thread)
{
    const struct task *t = context;

    (void)thread;
    t->largest[task] = quantize_largest(t->job->from, task * QUANTIZE_ROWS, task_end(t->job->from, task));
}

static void code_task(void *context, uint32_t task, uint32_t thread)
{
    const struct task *t = context;

    (void)thread;
    quantize_rows(t->job, task * QUANTIZE_ROWS, task_end(t->job->from, task));
}

/* The largest size in a matrix, measured once; an infinite or NaN weight is an error. */
static int largest_of(struct quantize *q, uint32_t layer, uint32_t which, float *largest)
{
    const struct stored_matrix *m = model_matrix(&q->weights, layer, which);
    float *known = &q->largest[layer][which];
    struct quantize_job job = { .from = m };
    struct task t = { &job, NULL };

    if (*known < 0) {
        if (!(t.largest = calloc(task_rows(m), sizeof(float)))) return model_error_set(&q->err, -E_NOMEM, "no memory");
        pool_run(q->pool, largest_task, &t, task_rows(m));
        *known = 0;
        for (uint32_t i = 0; i < task_rows(m); i++)
            if (!(t.largest[i] <= *known)) *known = t.largest[i];
        free(t.largest);
    }
    *largest = *known;
    return *known < INFINITY ? 0 : model_error_set(&q->err, -E_FORMAT, "layers.%u.%s has weights that are not finite", layer, model_matrix_name(which));
}

/* The scale of the whole matrix; q, k and v share one divisor of FP4, gate and up too: engines fuse them. */
static int whole_of(struct quantize *q, uint32_t layer, uint32_t which, float *whole)
{
    const uint32_t first = which <= 2 ? 0 : which == 3 ? 3 : which <= 5 ? 4 : 6, last = which <= 2 ? 2 : which == 3 ? 3 : which <= 5 ? 5 : 6;
    float largest = 0, one;
    int rc;

    for (uint32_t i = q->format == QUANTIZE_NVFP4A16 ? first : which; i <= (q->format == QUANTIZE_NVFP4A16 ? last : which); i++) {
        if (!model_matrix(&q->weights, layer, i)->data) continue;
        if ((rc = largest_of(q, layer, i, &one)) != 0) return rc;
        if (one > largest) largest = one;
    }
    *whole = quantize_whole(q->format, largest);
    return 0;
}

/* Plans the tensors of one quantized matrix of module `name`; the index of its codes, which its scales follow. */
static int plan_matrix(const struct quantize *q, struct safetensors_writer *w, const char *name, const struct stored_matrix *m)
{
    const uint64_t codes[2] = { m->rows, q->format == QUANTIZE_NVFP4A16 ? m->k / 2 : m->k }, rows[2] = { m->rows, 1 }, groups[2] = { m->rows, m->k / STORED_GROUP },
                   blocks[4] = { (m->rows + STORED_BLOCK - 1) / STORED_BLOCK, 1, (m->k + STORED_BLOCK - 1) / STORED_BLOCK, 1 }, one[1] = { 1 };
    const bool fp4 = q->format == QUANTIZE_NVFP4A16;
    char full[512];
    int first, rc = 0;

#define PART(suffix, dtype, rank, shape) (snprintf(full, sizeof(full), "%s" suffix, name), safetensors_writer_add(w, full, dtype, rank, shape))
    first = q->format == QUANTIZE_FP8_ROW ? PART("._weight_qdata", DTYPE_E4M3, 2, codes) : fp4 ? PART(".weight_packed", DTYPE_U8, 2, codes) : PART(".weight", DTYPE_E4M3, 2, codes);
    if (first < 0) return first;
    switch (q->format) {
    case QUANTIZE_FP8_ROW: rc = PART("._weight_scale", DTYPE_F32, 2, rows); break;
    case QUANTIZE_FP8_DYNAMIC: rc = PART(".weight_scale", DTYPE_BF16, 2, rows); break;
    case QUANTIZE_FP8_BLOCK128: rc = PART(".weight_scale", DTYPE_F32, 4, blocks); break;
    case QUANTIZE_FP8_STATIC:
        if ((rc = PART(".weight_scale", DTYPE_F32, 0, NULL)) >= 0) rc = PART(".input_scale", DTYPE_F32, 0, NULL);
        break;
    case QUANTIZE_NVFP4A16:
        if ((rc = PART(".weight_scale", DTYPE_E4M3, 2, groups)) >= 0) rc = PART(".weight_global_scale", DTYPE_F32, 1, one);
        break;
    }
#undef PART
    return rc < 0 ? rc : first;
}

static int fill_matrix(struct quantize *q, struct safetensors_writer *w, uint32_t first, uint32_t layer, uint32_t which)
{
    const struct stored_matrix *m = model_matrix(&q->weights, layer, which);
    struct quantize_job job = { .from = m, .format = q->format, .least_squares = q->least_squares, .codes = safetensors_writer_data(w, first) };
    struct task t = { &job, NULL };
    float largest, input;
    int rc;

    if ((rc = largest_of(q, layer, which, &largest)) != 0 || (rc = whole_of(q, layer, which, &job.whole)) != 0) return rc;
    if (q->format == QUANTIZE_FP8_STATIC) {
        input = quantize_whole(q->format, q->input_largest[layer][which]);
        memcpy(safetensors_writer_data(w, first + 1), &job.whole, sizeof(float));
        memcpy(safetensors_writer_data(w, first + 2), &input, sizeof(float));
    } else job.scales = safetensors_writer_data(w, first + 1);
    if (q->format == QUANTIZE_NVFP4A16) memcpy(safetensors_writer_data(w, first + 2), &job.whole, sizeof(float));
    pool_run(q->pool, code_task, &t, task_rows(m));
    progress(q, stored_bytes(m));
    return 0;
}

static bool find_matrix(const struct quantize *q, const struct tensor *t, uint32_t *layer, uint32_t *which)
{
    for (*layer = 0; *layer < q->config.layer_count; ++*layer)
        for (*which = 0; *which < MODEL_MATRICES; ++*which) {
            const struct stored_matrix *m = model_matrix(&q->weights, *layer, *which);

            if (m->data && m->data == t->data) return true;
        }
    return false;
}

static void copy_tensor(struct quantize *q, uint8_t *to, const struct tensor *t)
{
    for (uint64_t at = 0; at < t->byte_count; at += QUANTIZE_COPY_BYTES) {
        const uint64_t n = t->byte_count - at < QUANTIZE_COPY_BYTES ? t->byte_count - at : QUANTIZE_COPY_BYTES;

        memcpy(to + at, (const uint8_t *)t->data + at, n);
        progress(q, n);
    }
}

/* One shard of the result from one shard of the input. map: gets the place of every tensor. */
static int write_shard(struct quantize *q, uint32_t file, const json_t *metadata, json_t *map, uint64_t *total)
{
    const char *name = q->files.file[file].name;
    int *first = malloc((q->index.count + 1) * sizeof(*first));
    struct safetensors_writer w;
    uint32_t layer, which;
    int rc = first ? 0 : model_error_set(&q->err, -E_NOMEM, "no memory");
    char module[512];

    safetensors_writer_init(&w);
    for (uint32_t i = 0; i < q->index.count && rc == 0; i++) {
        const struct tensor *t = &q->index.tensor[i];

        if (t->file_index != file) continue;
        if (find_matrix(q, t, &layer, &which)) {
            snprintf(module, sizeof(module), "%.*s", (int)(strlen(t->name) - strlen(".weight")), t->name);
            first[i] = plan_matrix(q, &w, module, model_matrix(&q->weights, layer, which));
        } else first[i] = safetensors_writer_add(&w, t->name, t->dtype, t->rank, t->shape);
        if (first[i] < 0) rc = model_error_set(&q->err, first[i], "%s: %s", name, error_text(first[i]));
    }
    if (rc == 0) rc = safetensors_writer_open(&w, q->dir_fd, name, metadata, &q->err);
    for (uint32_t i = 0; i < q->index.count && rc == 0; i++) {
        const struct tensor *t = &q->index.tensor[i];

        if (t->file_index != file) continue;
        if (find_matrix(q, t, &layer, &which)) rc = fill_matrix(q, &w, (uint32_t)first[i], layer, which);
        else copy_tensor(q, safetensors_writer_data(&w, (uint32_t)first[i]), t);
    }
    for (uint32_t i = 0; i < w.count && rc == 0; i++) json_object_set_new(map, w.tensor[i].name, json_string(name));
    *total += w.data_bytes;
    free(first);
    if (rc != 0) safetensors_writer_close(&w, false, NULL);
    else rc = safetensors_writer_close(&w, true, &q->err);
    return rc;
}

static int write_bytes(struct quantize *q, const char *name, const void *bytes, size_t count)
{
    const int fd = openat(q->dir_fd, name, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    const uint8_t *at = bytes;
    ssize_t n = 0;

    for (size_t done = 0; fd >= 0 && done < count && n >= 0; done += (size_t)n) n = write(fd, at + done, count - done);
    if (fd < 0 || n < 0 || fsync(fd) != 0) model_error_set(&q->err, -E_IO, "%s: cannot be written: %s", name, strerror(errno)), n = -1;
    if (fd >= 0) close(fd);
    return n < 0 ? -E_IO : 0;
}

/* Takes the reference to `json`. */
static int write_json(struct quantize *q, const char *name, json_t *json)
{
    char *text = json ? json_dumps(json, JSON_INDENT(2)) : NULL;
    const int rc = text ? write_bytes(q, name, text, strlen(text)) : model_error_set(&q->err, -E_NOMEM, "%s: no memory", name);

    free(text);
    json_decref(json);
    return rc;
}

/* config.json with the quantization in it, the index of several shards, everything else as it was. */
static int write_small(struct quantize *q, json_t *map, uint64_t total)
{
    json_t *hf = quantize_hf_config(q), *config;
    const uint8_t *json;
    uint64_t count;
    bool shards = false;
    int rc = 0;

    for (uint32_t i = 0; i < q->files.count && rc == 0; i++) {
        const struct model_file *file = &q->files.file[i];

        if (strcmp(file->name, "model.safetensors.index.json") == 0) shards = true;
        else if (strcmp(file->name, "config.json") != 0 && strcmp(file->name, QUANTIZATION_FILE) != 0 && !strstr(file->name, ".safetensors"))
            rc = write_bytes(q, file->name, file->bytes, file->byte_count);
    }
    if (rc == 0 && shards)
        rc = write_json(q, "model.safetensors.index.json", json_pack("{s:{s:I}, s:O}", "metadata", "total_size", (json_int_t)total, "weight_map", map));
    model_files_find(&q->files, "config.json", &json, &count);
    config = json_loadb((const char *)json, count, 0, NULL);
    if (rc == 0 && hf) rc = write_json(q, QUANTIZATION_FILE, json_incref(hf));
    if (rc == 0) rc = write_json(q, "config.json", json_incref(quantize_config(q, config)));
    json_decref(config);
    json_decref(hf);
    return rc;
}

static int write_all(struct quantize *q)
{
    json_t *map = json_object(), *metadata = quantize_metadata(q);
    uint64_t total = 0;
    int rc = 0;

    for (uint32_t i = 0; i < q->files.count && rc == 0; i++) {
        const char *end = strrchr(q->files.file[i].name, '.');

        if (end && strcmp(end, ".safetensors") == 0) rc = write_shard(q, i, metadata, map, &total);
    }
    if (rc == 0) rc = write_small(q, map, total);
    json_decref(map);
    json_decref(metadata);
    return rc;
}

static int read_input(struct quantize *q)
{
    int rc = model_files_open_dir(&q->files, q->in, &q->err);

    safetensors_init(&q->index);
    if (rc == 0) rc = model_load(&q->config, &q->generation, &q->weights, &q->files, &q->err);
    if (rc == 0) rc = safetensors_load(&q->index, &q->files, &q->err);
    for (uint32_t layer = 0; rc == 0 && layer < q->config.layer_count; layer++)
        for (uint32_t which = 0; which < MODEL_MATRICES && rc == 0; which++) {
            const struct stored_matrix *m = model_matrix(&q->weights, layer, which);

            q->largest[layer][which] = -1;
            if (m->data && m->element != STORED_BF16 && m->element != STORED_F32)
                rc = model_error_set(&q->err, -E_UNSUPPORTED, "%s: layers.%u.%s is quantized already; quantize the BF16 checkpoint it came from", q->in, layer, model_matrix_name(which));
        }
    for (uint32_t i = 0; rc == 0 && i < q->index.count; i++) q->bytes_total += q->index.tensor[i].byte_count;
    if (rc == 0 && pool_open(&q->pool, q->threads, 0) != 0) rc = model_error_set(&q->err, -E_IO, "threads cannot be made");
    return rc;
}

/* OUT.partial, locked and empty: what an interrupted run left there might belong to another format or have more shards. */
static int begin_partial(struct quantize *q, const char *partial)
{
    int copy, rc = 0;
    DIR *dir;

    if (mkdir(partial, 0755) != 0 && errno != EEXIST) return model_error_set(&q->err, -E_IO, "%s: %s", partial, strerror(errno));
    if ((q->dir_fd = open(partial, O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0) return model_error_set(&q->err, -E_IO, "%s: %s", partial, strerror(errno));
    if (flock(q->dir_fd, LOCK_EX | LOCK_NB) != 0) return model_error_set(&q->err, -E_CONFIG, "%s: another process writes it", partial);
    if ((copy = dup(q->dir_fd)) < 0 || !(dir = fdopendir(copy))) return model_error_set(&q->err, -E_IO, "%s: %s", partial, strerror(errno));
    for (const struct dirent *e; (e = readdir(dir)) != NULL;)
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0 && unlinkat(q->dir_fd, e->d_name, 0) != 0)
            rc = model_error_set(&q->err, -E_IO, "%s/%.256s: cannot be removed: %s", partial, e->d_name, strerror(errno));
    closedir(dir);
    return rc;
}

/* The new name reaches the disk, too. */
static int sync_parent(struct quantize *q)
{
    const int parent = openat(q->dir_fd, "..", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    const int rc = parent >= 0 && fsync(parent) == 0 ? 0 : model_error_set(&q->err, -E_IO, "%s: its directory: %s", q->out, strerror(errno));

    if (parent >= 0) close(parent);
    return rc;
}

static int run(struct quantize *q)
{
    char partial[QUANTIZE_PATH_BYTES];
    struct stat st;
    int rc;

    snprintf(partial, sizeof(partial), "%s.partial", q->out);
    if (lstat(q->out, &st) == 0) return model_error_set(&q->err, -E_CONFIG, "%s is there already; name a new directory", q->out);
    if ((rc = read_input(q)) != 0) return rc;
    if (q->format == QUANTIZE_FP8_STATIC && (rc = quantize_calibrate(q)) != 0) return rc;
    if ((rc = begin_partial(q, partial)) != 0) return rc;
    if ((rc = write_all(q)) != 0) return rc;
    if (fsync(q->dir_fd) != 0 || rename(partial, q->out) != 0) return model_error_set(&q->err, -E_IO, "%s: cannot become %s: %s", partial, q->out, strerror(errno));
    return sync_parent(q);
}

static void usage(FILE *out)
{
    fprintf(out, "usage: sluice quantize IN OUT --format FORMAT [--threads N] [--least-squares] [--calibration TEXT-FILE]\n\n"
                 "Writes the BF16 checkpoint IN as OUT with the text model's matrices in FORMAT:\n"
                 "  fp8-row        a scale for each row; activations FP8 by token        (torchao)\n"
                 "  fp8-dynamic    the same, as compressed-tensors writes it             (compressed-tensors)\n"
                 "  fp8-static     a scale for each matrix and for what meets it, found by\n"
                 "                 running the model over --calibration                   (ModelOpt)\n"
                 "  fp8-block128   a scale for each 128x128, weight-only; --least-squares\n"
                 "                 searches the scales, which takes about 12 times longer  (ModelOpt)\n"
                 "  nvfp4a16       FP4 in groups of 16, weight-only                       (compressed-tensors)\n");
}

/* 0, or -1 with a sentence on stderr. */
static int read_arguments(struct quantize *q, int argc, char **argv)
{
    for (int i = 0; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        char *end;

        if (strcmp(argv[i], "--least-squares") == 0) q->least_squares = true;
        else if (strcmp(argv[i], "--format") == 0 && value && (q->format = quantize_format_of(value)) != 0) i++;
        else if (strcmp(argv[i], "--calibration") == 0 && value) q->calibration = argv[++i];
        else if (strcmp(argv[i], "--threads") == 0 && value && (q->threads = (uint32_t)strtoul(value, &end, 10)) <= POOL_THREADS_MAX && end != value && *end == '\0') i++;
        else if (argv[i][0] != '-' && !q->in) q->in = argv[i];
        else if (argv[i][0] != '-' && !q->out) q->out = argv[i];
        else {
            fprintf(stderr, "sluice: quantize: %s%s%s is not understood\n", argv[i], value && argv[i][0] == '-' ? " " : "", value && argv[i][0] == '-' ? value : "");
            return -1;
        }
    }
    if (!q->in || !q->out || q->format == 0) fprintf(stderr, "sluice: quantize: IN, OUT and --format are needed\n");
    else if (strlen(q->out) + sizeof(".partial") > QUANTIZE_PATH_BYTES) fprintf(stderr, "sluice: quantize: OUT is too long\n");
    else if (q->format == QUANTIZE_FP8_STATIC && !q->calibration) fprintf(stderr, "sluice: fp8-static needs --calibration FILE: a text like those that the model will read\n");
    else if (q->format != QUANTIZE_FP8_STATIC && q->calibration) fprintf(stderr, "sluice: only fp8-static calibrates\n");
    else if (q->format != QUANTIZE_FP8_BLOCK128 && q->least_squares) fprintf(stderr, "sluice: --least-squares belongs to fp8-block128\n");
    else return 0;
    return -1;
}

int quantize_command(int argc, char **argv)
{
    struct quantize *q;
    int rc;

    if (argc > 0 && (strcmp(argv[0], "--help") == 0 || strcmp(argv[0], "-h") == 0)) {
        usage(stdout);
        return 0;
    }
    if (!(q = calloc(1, sizeof(*q)))) return 1;
    q->dir_fd = -1;
    model_files_init(&q->files);
    if (read_arguments(q, argc, argv) != 0) {
        fprintf(stderr, "`sluice quantize --help` explains\n");
        free(q);
        return EXIT_CONFIG;
    }
    if ((rc = run(q)) != 0) fprintf(stderr, "\nsluice: %s\n", q->err.text[0] ? q->err.text : error_text(rc));
    if (q->dir_fd >= 0) close(q->dir_fd);
    pool_close(q->pool);
    model_weights_free(&q->weights);
    safetensors_free(&q->index);
    model_files_close(&q->files);
    free(q);
    return rc == 0 ? 0 : 1;
}
