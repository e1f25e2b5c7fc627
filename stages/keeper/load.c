/* stages/keeper/load.c - the checkpoint's weights into the GPU's memory (contract in keeper.h).
 *
 * Reads    the *.safetensors files, with several threads at once: one copies about 5 GB/s out of the page cache, and a disk wants many requests
 * Writes   the weight arena, through the library's pinned buffers: while the GPU takes one and packs it, the threads fill the other
 * Counts   KEEPER_BYTES_DONE of KEEPER_BYTES_TOTAL
 * Fails    a file that cannot be read or holds NaN codes, a device that fails: exit 111 or 100 with the reason. Killed: the next keeper begins again. */
#include "stages/keeper/keeper.h"

#include "kernels/cuda/cuda_weights.h"
#include "kernels/pool.h"
#include "schemas/counters.h"
#include "shm/error.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

#define READ_THREADS_MAX 8u
#define SLICE_BYTES (4u << 20)        /* of one read */
#define RANDOM_SEED 1u

struct loader {
    struct keeper *k;
    struct cuda_weights *to;
    struct pool *pool;
};

struct piece { /* one buffer being filled */
    int fd;
    uint64_t offset, bytes;           /* in the file */
    uint8_t *to;
    bool e4m3;                        /* look for NaN codes on the way */
    atomic_int failed;                /* errno, or -1: the file has ended; -2: a NaN */
};

__attribute__((noreturn)) static void fail_gpu(struct loader *l, const char *what, int rc)
{
    stage_exit(&l->k->stage, rc == -E_UNSUPPORTED || rc == -E_RANGE ? EXIT_CONFIG : EXIT_MISSING, "%s: %s", what, l->k->lib.backend_error());
}

static bool has_nan(const uint8_t *code, uint64_t count)
{
    uint32_t found = 0;

    for (uint64_t i = 0; i < count; i++) found |= (code[i] & 0x7f) == 0x7f; /* the compiler makes vectors of it */
    return found;
}

static void read_slice(void *context, uint32_t task, uint32_t thread)
{
    struct piece *p = context;
    uint64_t at = (uint64_t)task * SLICE_BYTES;
    const uint64_t begin = at, end = p->bytes - at < SLICE_BYTES ? p->bytes : at + SLICE_BYTES;

    (void)thread;
    while (at < end) {
        const ssize_t got = pread(p->fd, p->to + at, end - at, (off_t)(p->offset + at));
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) {
            atomic_store(&p->failed, got < 0 ? errno : -1);
            return;
        }
        at += (uint64_t)got;
    }
    if (p->e4m3 && has_nan(p->to + begin, end - begin)) atomic_store(&p->failed, -2);
}

/* The file that a pointer into the mapped checkpoint belongs to. */
static const struct model_file *file_of(const struct keeper *k, const void *data)
{
    const uint8_t *at = data;

    for (uint32_t i = 0; i < k->files.count; i++)
        if (at >= k->files.file[i].bytes && at < k->files.file[i].bytes + k->files.file[i].byte_count) return &k->files.file[i];
    return NULL;
}

static void fill_buffer(struct loader *l, struct piece *p, const void *data, const char *name)
{
    const struct model_file *file = file_of(l->k, data);

    if (!file) stage_exit(&l->k->stage, EXIT_CONFIG, "%s lies in no file of the checkpoint", name);
    p->fd = file->fd;
    p->offset = (uint64_t)((const uint8_t *)data - file->bytes);
    pool_run(l->pool, read_slice, p, (uint32_t)((p->bytes + SLICE_BYTES - 1) / SLICE_BYTES));
    const int failed = atomic_load(&p->failed);
    if (failed == -2) stage_exit(&l->k->stage, EXIT_CONFIG, "%s in %s holds NaN codes", name, file->name);
    if (failed) stage_exit(&l->k->stage, EXIT_MISSING, "reading %s failed: %s", file->name, failed < 0 ? "it has become shorter" : strerror(failed));
    stage_count(&l->k->stage, KEEPER_BYTES_DONE, p->bytes);
    if (!stage_running(&l->k->stage)) keeper_leave(l->k);
}

/* Rows at a time: codes, FP4's group scales behind them in the buffer. */
static void load_matrix(struct loader *l, enum cuda_tensor tensor, uint32_t layer, const struct stored_matrix *m, const char *name)
{
    const uint64_t code_bytes = stored_code_bytes(m->element, m->k), group_bytes = m->element == STORED_E2M1 ? m->k / STORED_GROUP : 0, row_bytes = code_bytes + group_bytes;
    const float factor = m->global_divides ? -m->global : m->global; /* below 0: divides */
    const uint32_t format = engine_matrix_format(m), cut = format == WEIGHT_FP8_BLOCK ? STORED_BLOCK : TILE_ROWS, stride = stored_scale_stride(m);

    for (uint32_t row = 0; row < m->rows;) {
        uint64_t room;
        void *to;
        int rc = l->k->lib.weights_buffer(l->to, &to, &room);
        if (rc != 0) fail_gpu(l, "loading", rc);
        uint64_t rows = room / row_bytes / cut * cut;
        if (rows > CUDA_WEIGHTS_ROWS_MAX) rows = CUDA_WEIGHTS_ROWS_MAX;
        if (rows > m->rows - row) rows = m->rows - row;
        struct piece codes = {.bytes = rows * code_bytes, .to = to, .e4m3 = m->element == STORED_E4M3};
        struct piece groups = {.bytes = rows * group_bytes, .to = (uint8_t *)to + rows * code_bytes, .e4m3 = true};
        fill_buffer(l, &codes, (const uint8_t *)m->data + row * code_bytes, name);
        if (group_bytes) fill_buffer(l, &groups, m->group_scale + row * group_bytes, name);
        const float *scale = format == WEIGHT_FP4 ? &factor : format == WEIGHT_FP8_BLOCK ? m->scale + (uint64_t)(row / STORED_BLOCK) * stride
                             : format == WEIGHT_FP8 ? m->scale + (m->scale_rows == 1 ? row : 0) : NULL;
        rc = l->k->lib.weights_put(l->to, tensor, layer, row, (uint32_t)rows, format, scale, format == WEIGHT_FP8_BLOCK ? stride : format == WEIGHT_FP8 && m->scale_rows == 1);
        if (rc != 0) fail_gpu(l, name, rc);
        row += (uint32_t)rows;
    }
}

static void load_vector(struct loader *l, enum cuda_tensor tensor, uint32_t layer, const float *value, uint32_t count)
{
    uint64_t room;
    void *to;
    int rc = l->k->lib.weights_buffer(l->to, &to, &room);

    if (rc != 0) fail_gpu(l, "loading", rc);
    memcpy(to, value, count * sizeof *value);
    rc = l->k->lib.weights_put(l->to, tensor, layer, 0, count, WEIGHT_F32, NULL, 0);
    if (rc != 0) fail_gpu(l, "norm weights", rc);
}

static void load_layer(struct loader *l, uint32_t i)
{
    static const enum cuda_tensor tensor[MODEL_MATRICES] = {CUDA_Q, CUDA_K, CUDA_V, CUDA_O, CUDA_GATE, CUDA_UP, CUDA_DOWN};
    const struct model_config *c = &l->k->config;
    const struct layer_weights *w = &l->k->weights.layer[i];

    for (uint32_t which = 0; which < MODEL_MATRICES; which++) {
        const struct stored_matrix *m = model_matrix(&l->k->weights, i, which);
        if (m->data) load_matrix(l, tensor[which], i, m, model_matrix_name(which));
    }
    load_vector(l, CUDA_INPUT_NORM, i, w->input_norm, c->hidden);
    load_vector(l, CUDA_POST_ATTENTION_NORM, i, w->post_attention_norm, c->hidden);
    load_vector(l, CUDA_PRE_FF_NORM, i, w->pre_feedforward_norm, c->hidden);
    load_vector(l, CUDA_POST_FF_NORM, i, w->post_feedforward_norm, c->hidden);
    load_vector(l, CUDA_Q_NORM, i, w->q_norm, c->layer[i].head_dim);
    load_vector(l, CUDA_K_NORM, i, w->k_norm, c->layer[i].head_dim);
    load_vector(l, CUDA_LAYER_SCALAR, i, &w->scalar, 1);
}

static void load_checkpoint(struct loader *l)
{
    const struct model_config *c = &l->k->config;
    const struct model_weights *w = &l->k->weights;
    const struct stored_matrix embed = {.data = w->embed, .rows = c->vocab, .k = c->hidden, .element = w->dtype == DTYPE_F32 ? STORED_F32 : STORED_BF16};
    const long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    const int rc = pool_open(&l->pool, cpus > (long)READ_THREADS_MAX ? READ_THREADS_MAX : cpus > 0 ? (uint32_t)cpus : 1, 0);

    if (rc != 0) stage_exit(&l->k->stage, EXIT_MISSING, "the reading threads cannot be made: %s", error_text(rc));
    for (uint32_t i = 0; i < c->layer_count; i++) load_layer(l, i);
    load_matrix(l, CUDA_EMBED, 0, &embed, "embed_tokens");
    load_vector(l, CUDA_FINAL_NORM, 0, w->final_norm, c->hidden);
    pool_close(l->pool);
}

void load_weights(struct keeper *k, int weights_fd)
{
    struct loader l = {.k = k};
    void *device = NULL;
    int rc = k->lib.memory_map(weights_fd, k->weights_bytes, 1, &device);

    if (rc == 0) rc = k->lib.weights_open(&l.to, &k->spec, device);
    if (rc != 0) fail_gpu(&l, "the weights' memory cannot be opened", rc);
    if (k->random) rc = k->lib.weights_fill_random(l.to, RANDOM_SEED);
    else load_checkpoint(&l);
    if (rc == 0) rc = k->lib.weights_finish(l.to);
    if (rc != 0) fail_gpu(&l, "loading", rc);
    k->lib.weights_close(l.to);
}
