/* model/forward.c - see forward.h: checks a call, embeds its rows, runs the layers, makes the logits.
 *
 * Fails only before anything is written. Owns the buffers in struct forward (forward_state.h). */
#include "model/forward_state.h"
#include "shm/error.h"
#include "shm/must.h"
#include <stdlib.h>
#include <string.h>

static void *forward_alloc(uint64_t count, uint64_t bytes)
{
    void *memory;
    uint64_t total;

    if (__builtin_mul_overflow(count, bytes, &total)) return NULL;
    total = (total + 63) / 64 * 64;
    if (total == 0) total = 64;
    return posix_memalign(&memory, 64, total) == 0 ? memory : NULL;
}

/* Most elements of a row that meets a matrix. */
static uint64_t forward_longest(const struct forward *f)
{
    const uint64_t a = f->config->hidden, b = f->config->intermediate, c = f->q_dim_max;

    return a > b ? (a > c ? a : c) : b > c ? b : c;
}

static int forward_buffers(struct forward *f, uint32_t threads)
{
    const struct model_config *c = f->config;
    const uint64_t rows = f->rows_max;
    bool ok = (f->h = forward_alloc(rows * c->hidden, sizeof(float))) && (f->x = forward_alloc(rows * c->hidden, sizeof(float)))
           && (f->y = forward_alloc(rows * c->hidden, sizeof(float))) && (f->q = forward_alloc(rows * f->q_dim_max, sizeof(float)))
           && (f->k = forward_alloc(rows * f->kv_dim_max, sizeof(float))) && (f->v = forward_alloc(rows * f->kv_dim_max, sizeof(float)))
           && (f->attended = forward_alloc(rows * f->q_dim_max, sizeof(float)))
           && (f->gate = forward_alloc(rows * c->intermediate, sizeof(float))) && (f->up = forward_alloc(rows * c->intermediate, sizeof(float)))
           && (f->scratch = forward_alloc(threads, sizeof(*f->scratch))) && (f->runs = forward_alloc(rows, sizeof(*f->runs)));

    for (int i = 0; i < FORWARD_PARTS && ok && f->rounds; i++)
        ok = (f->rounded[i] = forward_alloc(rows * (i == 0 ? forward_longest(f) : c->hidden), sizeof(float))) && (f->rounded_scale[i] = forward_alloc(rows, sizeof(float)));
    for (int type = 0; type < LAYER_TYPES && ok; type++)
        ok = (f->cosine[type] = forward_alloc(rows * f->rope[type].turned, sizeof(float)))
          && (f->sine[type] = forward_alloc(rows * f->rope[type].turned, sizeof(float)))
          && (f->blocks[type] = forward_alloc(rows, sizeof(*f->blocks[type])));
    return ok ? 0 : -E_NOMEM;
}

/* All layers of one type must have one head size, since they share a table of angles. */
static int forward_heads(struct forward *f)
{
    const struct model_config *c = f->config;
    uint32_t dim[LAYER_TYPES] = { 0 };

    for (uint32_t i = 0; i < c->layer_count; i++) {
        const struct layer_config *l = &c->layer[i];

        if (dim[l->type] != 0 && dim[l->type] != l->head_dim) return -E_UNSUPPORTED;
        dim[l->type] = l->head_dim;
        if (model_q_dim(c, i) > f->q_dim_max) f->q_dim_max = model_q_dim(c, i);
        if (model_kv_dim(c, i) > f->kv_dim_max) f->kv_dim_max = model_kv_dim(c, i);
    }
    for (int type = 0; type < LAYER_TYPES; type++)
        if (dim[type] != 0) rope_table_init(&f->rope[type], &c->rope[type], dim[type]);
    return 0;
}

int forward_open(struct forward **forward, const struct model_weights *weights, const struct kv_geometry *geo,
                 void *kv_base, const struct forward_options *options)
{
    const struct kernels *kernels = kernels_get((enum kernels_isa)options->kernels);
    struct forward *f;
    int rc;

    if (options->rows_max == 0 || options->rows_max > FORWARD_ROWS_LIMIT || options->threads > FORWARD_THREADS_MAX
        || options->activations > FORWARD_ACTIVATIONS_BF16) return -E_RANGE;
    if (geo->layer_count != weights->config->layer_count || (uintptr_t)kv_base % 64 != 0) return -E_RANGE;
    if (!kernels) return -E_UNSUPPORTED;
    if (!(f = calloc(1, sizeof(*f)))) return -E_NOMEM;
    f->weights = weights;
    f->config = weights->config;
    f->geo = geo;
    f->kv = kv_base;
    f->kernels = kernels;
    f->table_dtype = weights->dtype == DTYPE_BF16 ? KERNELS_BF16 : KERNELS_F32;
    f->kv_dtype = (enum kernels_dtype)geo->dtype;    /* the same numbers (kv.h) */
    f->rows_max = options->rows_max;
    f->rounds = weights->rounds_activations && options->activations != FORWARD_ACTIVATIONS_BF16;
    if ((rc = forward_heads(f)) == 0 && (rc = pool_open(&f->pool, options->threads, options->pin != 0)) == 0)
        rc = forward_buffers(f, pool_threads(f->pool));
    if (rc != 0) forward_close(f);
    else *forward = f;
    return rc;
}

void forward_close(struct forward *f)
{
    if (!f) return;
    pool_close(f->pool);
    for (int type = 0; type < LAYER_TYPES; type++) {
        free(f->cosine[type]);
        free(f->sine[type]);
        free(f->blocks[type]);
    }
    for (int i = 0; i < FORWARD_PARTS; i++) {
        free(f->rounded[i]);
        free(f->rounded_scale[i]);
    }
    free(f->h);
    free(f->x);
    free(f->y);
    free(f->q);
    free(f->k);
    free(f->v);
    free(f->attended);
    free(f->gate);
    free(f->up);
    free(f->scratch);
    free(f->runs);
    free(f);
}

void forward_set_progress(struct forward *f, forward_progress_fn *fn, void *context)
{
    f->progress = fn;
    f->progress_context = context;
}

void forward_set_hidden_hook(struct forward *f, forward_hidden_fn *fn, void *context)
{
    f->hidden_hook = fn;
    f->hidden_context = context;
}

void forward_set_input_hook(struct forward *f, forward_input_fn *fn, void *context)
{
    f->input_hook = fn;
    f->input_context = context;
}

void forward_set_soft(struct forward *f, const float *rows, uint32_t count)
{
    f->soft = rows;
    f->soft_count = rows ? count : 0;
}

const char *forward_kernels_name(const struct forward *f) { return f->kernels->name; }

uint32_t forward_threads(const struct forward *f) { return pool_threads(f->pool); }

static bool forward_row_ok(const struct forward *f, const struct forward_row *row, uint32_t seq_count)
{
    const bool soft = row->token >= FORWARD_SOFT_TOKEN;

    return row->seq < seq_count && row->position < f->geo->max_context && row->want_logits <= 1
        && (soft ? row->token - FORWARD_SOFT_TOKEN < f->soft_count : row->token < f->config->vocab);
}

/* Has the sequence a page for every position up to `last`, and is each page in its pool? */
static bool forward_pages_ok(const struct forward *f, const struct forward_seq *seq, uint32_t last)
{
    const uint32_t full = kv_full_pages_needed(f->geo, last + 1), sliding = kv_sliding_pages_needed(f->geo, last + 1);

    if (f->config->type_count[LAYER_FULL] > 0) {
        if (seq->full_page_count < full) return false;
        for (uint32_t i = 0; i < full; i++)
            if (seq->full_pages[i] >= f->geo->full_page_count) return false;
    }
    if (f->config->type_count[LAYER_SLIDING] > 0) {
        if (seq->sliding_page_count < sliding) return false;
        for (uint32_t i = 0; i < sliding; i++)
            if (seq->sliding_pages[i] >= f->geo->sliding_page_count) return false;
    }
    return true;
}

/* Cuts the rows into runs of one sequence each; refuses what forward.h does not allow. */
static int forward_check(struct forward *f, const struct forward_row *rows, uint32_t row_count,
                         const struct forward_seq *seqs, uint32_t seq_count, bool wants)
{
    if (row_count == 0 || row_count > f->rows_max) return -E_RANGE;
    f->run_count = f->wanted = 0;
    for (uint32_t i = 0; i < row_count; i++) {
        struct row_run *run = f->run_count > 0 ? &f->runs[f->run_count - 1] : NULL;

        if (!forward_row_ok(f, &rows[i], seq_count)) return -E_RANGE;
        f->wanted += rows[i].want_logits;
        if (run && run->seq == rows[i].seq) {
            if (rows[i].position != rows[i - 1].position + 1 || ++run->count > f->geo->rows_max) return -E_RANGE;
            continue;
        }
        for (uint32_t j = 0; j < f->run_count; j++)
            if (f->runs[j].seq == rows[i].seq) return -E_RANGE;     /* its rows must stand together */
        f->runs[f->run_count++] = (struct row_run){ i, 1, rows[i].seq };
    }
    if (f->wanted > 0 && !wants) return -E_RANGE;
    for (uint32_t i = 0; i < f->run_count; i++) {
        const struct row_run *run = &f->runs[i];

        if (!forward_pages_ok(f, &seqs[run->seq], rows[run->first + run->count - 1].position)) return -E_RANGE;
        for (uint32_t r = 0; r < run->count; r++)
            if (rows[run->first + r].ahead >= run->count - r) return -E_RANGE; /* its keys would not be there */
    }
    return 0;
}

/* Cuts the runs into blocks of as many rows as one attention task holds. */
static void forward_cut_blocks(struct forward *f, uint32_t type)
{
    const struct model_config *c = f->config;
    uint32_t fewest = UINT32_MAX;     /* rows per block: what the layer with the largest group allows */

    for (uint32_t i = 0; i < c->layer_count; i++) {
        const uint32_t rows = KERNELS_QUERIES_MAX / forward_task_heads(f, c->q_heads / c->layer[i].kv_heads);

        if (c->layer[i].type == type && rows < fewest) fewest = rows;
    }
    f->block_count[type] = 0;
    for (uint32_t i = 0; i < f->run_count && fewest != UINT32_MAX; i++)
        for (uint32_t r = 0; r < f->runs[i].count; r += fewest)
            f->blocks[type][f->block_count[type]++] = (struct row_block){
                f->runs[i].first + r, f->runs[i].count - r < fewest ? f->runs[i].count - r : fewest, f->runs[i].seq };
}

/* The row of the table (or the soft row), and the row's angles. */
static void embed_task(void *context, uint32_t r, uint32_t thread)
{
    struct forward *f = context;
    const uint32_t hidden = f->config->hidden, token = f->rows[r].token;
    const uint64_t element = f->table_dtype == KERNELS_BF16 ? 2 : 4;
    float *h = f->h + (uint64_t)r * hidden;

    (void)thread;
    if (token >= FORWARD_SOFT_TOKEN) memcpy(h, f->soft + (uint64_t)(token - FORWARD_SOFT_TOKEN) * hidden, hidden * sizeof(float));
    else f->kernels->widen(h, (const char *)f->weights->embed + (uint64_t)token * hidden * element, f->table_dtype, f->weights->embed_scale, hidden);
    for (int type = 0; type < LAYER_TYPES; type++)
        rope_table_angles(&f->rope[type], f->rows[r].position, f->cosine[type] + (uint64_t)r * f->rope[type].turned,
                          f->sine[type] + (uint64_t)r * f->rope[type].turned);
}

static void logits_task(void *context, uint32_t task, uint32_t thread)
{
    struct forward *f = context;
    const struct model_config *c = f->config;
    const uint32_t chunk = forward_chunk(f, c->vocab), begin = task * chunk, end = begin + chunk < c->vocab ? begin + chunk : c->vocab;

    (void)thread;
    f->kernels->linear(f->logits, c->vocab, f->x, c->hidden, f->wanted, f->weights->embed, f->table_dtype, c->hidden, begin, end);
    for (uint64_t r = 0; r < f->wanted && c->final_softcap != 0; r++)
        f->kernels->softcap(f->logits + r * c->vocab + begin, c->final_softcap, end - begin);
}

/* Logits of the normed rows at the front of x. */
static void forward_unembed(struct forward *f)
{
    const struct model_config *c = f->config;
    const uint32_t chunk = forward_chunk(f, c->vocab);

    forward_tasks(f, logits_task, f, (c->vocab + chunk - 1) / chunk, (uint64_t)f->wanted * c->vocab * c->hidden);
}

/* The final norm of the wanted rows, packed at the front of x, and their logits. */
static void forward_head(struct forward *f, float *hidden)
{
    const struct model_config *c = f->config;
    uint64_t at = 0;

    for (uint32_t r = 0; r < f->row_count; r++)
        if (f->rows[r].want_logits)
            f->kernels->rmsnorm(f->x + at++ * c->hidden, f->h + (uint64_t)r * c->hidden, f->weights->final_norm, c->hidden, c->norm_eps);
    if (hidden) memcpy(hidden, f->x, f->wanted * (uint64_t)c->hidden * sizeof(float));
    if (f->wanted > 0 && f->logits) forward_unembed(f);
}

int forward_logits(struct forward *f, const float *hidden, uint32_t count, float *logits)
{
    if (count == 0 || count > f->rows_max) return -E_RANGE;
    memcpy(f->x, hidden, count * (uint64_t)f->config->hidden * sizeof(float));
    f->wanted = count;
    f->logits = logits;
    forward_unembed(f);
    return 0;
}

int forward_run(struct forward *f, const struct forward_row *rows, uint32_t row_count,
                const struct forward_seq *seqs, uint32_t seq_count, float *logits, float *hidden)
{
    const uint32_t layers = f->config->layer_count;
    int rc;

    if ((rc = forward_check(f, rows, row_count, seqs, seq_count, logits || hidden)) != 0) return rc;
    f->rows = rows;
    f->seqs = seqs;
    f->row_count = row_count;
    f->logits = logits;
    for (uint32_t type = 0; type < LAYER_TYPES; type++) forward_cut_blocks(f, type);
    forward_tasks(f, embed_task, f, row_count, (uint64_t)row_count * 50000);
    if (f->hidden_hook) f->hidden_hook(f->hidden_context, 0, f->h, row_count);
    for (uint32_t i = 0; i < layers; i++) {
        forward_layer(f, i);
        if (f->hidden_hook) f->hidden_hook(f->hidden_context, i + 1, f->h, row_count);
        if (f->progress) f->progress(f->progress_context, i + 1, layers);
    }
    forward_head(f, hidden);
    if (f->progress) f->progress(f->progress_context, layers, layers);
    return 0;
}
