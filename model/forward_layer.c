/* model/forward_layer.c - one decoder layer: attention and feed-forward, each between two norms.
 *
 * Every step is a loop of tasks over rows, columns or heads. A task computes whole elements, so that the cut into tasks never shows
 * in the result. K and V of all rows are in the cache before any row attends. */
#include "model/forward_state.h"
#include "shm/must.h"
#include <stddef.h>

struct layer_task {                   /* what the tasks of a layer share */
    struct forward *f;
    uint32_t layer;
    uint32_t chunk;                   /* columns of a matrix in one task */
    uint32_t columns, k;              /* of `matrix`, for linear_task */
    const void *matrix;
    const float *in;
    float *out;
};

uint32_t forward_chunk(const struct forward *f, uint32_t columns)
{
    const uint32_t tasks = 4 * pool_threads(f->pool), share = columns / tasks / FORWARD_CHUNK * FORWARD_CHUNK;

    return share > FORWARD_CHUNK ? share : FORWARD_CHUNK;
}

void forward_tasks(struct forward *f, pool_task_fn *fn, void *context, uint32_t task_count, uint64_t macs)
{
    if (macs >= FORWARD_MACS_PARALLEL) pool_run(f->pool, fn, context, task_count);
    else for (uint32_t i = 0; i < task_count; i++) fn(context, i, 0);
}

static uint32_t layer_min(uint32_t a, uint32_t b) { return a < b ? a : b; }

static void linear_task(void *context, uint32_t task, uint32_t thread)
{
    const struct layer_task *t = context;
    const uint32_t begin = task * t->chunk, end = layer_min(begin + t->chunk, t->columns);

    (void)thread;
    t->f->kernels->linear(t->out, t->columns, t->in, t->k, t->f->row_count, t->matrix, t->f->weight_dtype, t->k, begin, end);
}

/* out [rows, columns] = in [rows, k] matrix^T */
static void layer_linear(struct forward *f, float *out, const float *in, const void *matrix, uint32_t columns, uint32_t k)
{
    struct layer_task t = { .f = f, .chunk = forward_chunk(f, columns), .columns = columns, .k = k, .matrix = matrix, .in = in, .out = out };

    forward_tasks(f, linear_task, &t, (columns + t.chunk - 1) / t.chunk, (uint64_t)f->row_count * columns * k);
}

/* The q, k and v matrices stand side by side as one, so that the three make one loop. */
static void qkv_task(void *context, uint32_t task, uint32_t thread)
{
    const struct layer_task *t = context;
    const struct forward *f = t->f;
    const struct model_config *c = f->config;
    const struct layer_weights *w = &f->weights->layer[t->layer];
    const uint32_t q = model_q_dim(c, t->layer), kv = model_kv_dim(c, t->layer);
    const struct { const void *matrix; float *out; uint32_t columns; } part[3] = { { w->q, f->q, q }, { w->k, f->k, kv }, { w->v, f->v, kv } };
    uint32_t begin = task * t->chunk, end = begin + t->chunk;

    (void)thread;
    for (int i = 0; i < 3 && part[i].matrix; i++) {
        if (begin < part[i].columns)
            f->kernels->linear(part[i].out, part[i].columns, f->x, c->hidden, f->row_count, part[i].matrix, f->weight_dtype, c->hidden,
                               begin, layer_min(end, part[i].columns));
        if (end <= part[i].columns) return;
        begin = begin > part[i].columns ? begin - part[i].columns : 0;
        end -= part[i].columns;
    }
}

/* Where K (or V) of a row's kv head stands in the arena. */
static void *layer_kv_place(const struct forward *f, uint32_t layer, bool value, const struct forward_row *row, uint32_t head)
{
    const struct forward_seq *seq = &f->seqs[row->seq];
    const uint32_t page = f->geo->layer[layer].type == LAYER_FULL ? seq->full_pages[kv_full_index(row->position)]
                                                                  : seq->sliding_pages[kv_sliding_index(f->geo, row->position)];

    return f->kv + kv_token_offset(f->geo, layer, value, page, head, row->position % KV_PAGE_TOKENS);
}

/* Norms and turns the heads of one row; writes its K and V to the cache. */
static void heads_task(void *context, uint32_t r, uint32_t thread)
{
    const struct layer_task *t = context;
    const struct forward *f = t->f;
    const struct model_config *c = f->config;
    const struct kernels *kernels = f->kernels;
    const struct layer_config *l = &c->layer[t->layer];
    const struct layer_weights *w = &f->weights->layer[t->layer];
    const struct rope_table *rope = &f->rope[l->type];
    const float *cosine = f->cosine[l->type] + (uint64_t)r * rope->turned, *sine = f->sine[l->type] + (uint64_t)r * rope->turned;
    const uint32_t dim = l->head_dim;

    (void)thread;
    for (uint32_t i = 0; i < c->q_heads; i++) {
        float *q = f->q + (uint64_t)r * c->q_heads * dim + i * dim;

        kernels->rmsnorm(q, q, w->q_norm, dim, c->norm_eps);
        kernels->rope(q, cosine, sine, rope->half, rope->turned);
    }
    for (uint32_t i = 0; i < l->kv_heads; i++) {
        float *k = f->k + (uint64_t)r * l->kv_heads * dim + i * dim, *v = f->v + (uint64_t)r * l->kv_heads * dim + i * dim;

        if (!l->has_v) kernels->widen(v, k, KERNELS_F32, 1.0f, dim);     /* the value is the bare key projection */
        if (c->has_v_norm) kernels->rmsnorm(v, v, NULL, dim, c->norm_eps);
        kernels->rmsnorm(k, k, w->k_norm, dim, c->norm_eps);
        kernels->rope(k, cosine, sine, rope->half, rope->turned);
        kernels->narrow(layer_kv_place(f, t->layer, false, &f->rows[r], i), f->kv_dtype, k, dim);
        kernels->narrow(layer_kv_place(f, t->layer, true, &f->rows[r], i), f->kv_dtype, v, dim);
    }
}

uint32_t forward_task_heads(const struct forward *f, uint32_t group)
{
    /* one thread: read each key once for the whole group; more: let two tasks share a group of 16 */
    const uint32_t most = pool_threads(f->pool) == 1 ? KERNELS_QUERIES_MAX : KERNELS_QUERIES_MAX / 2;

    return layer_min(group, most);
}

static void attention_task(void *context, uint32_t task, uint32_t thread)
{
    const struct layer_task *t = context;
    const struct forward *f = t->f;
    const struct model_config *c = f->config;
    const struct layer_config *l = &c->layer[t->layer];
    const struct kv_geometry *geo = f->geo;
    const uint32_t group = c->q_heads / l->kv_heads, heads = forward_task_heads(f, group), cuts = (group + heads - 1) / heads;
    const struct row_block *block = &f->blocks[l->type][task / (cuts * l->kv_heads)];
    const uint32_t kv_head = task / cuts % l->kv_heads, from = task % cuts * heads, to = layer_min(from + heads, group);
    const uint64_t head_bytes = (uint64_t)kv_head * KV_PAGE_TOKENS * l->head_dim * geo->element_bytes;
    const bool full = l->type == LAYER_FULL;
    const struct attention_keys keys = {
        .arena = f->kv, .pages = full ? f->seqs[block->seq].full_pages : f->seqs[block->seq].sliding_pages,
        .pool_offset = kv_page_offset(geo, l->type, 0), .page_bytes = full ? geo->full_page_bytes : geo->sliding_page_bytes,
        .k_offset = geo->layer[t->layer].k_offset + head_bytes, .v_offset = geo->layer[t->layer].v_offset + head_bytes,
        .page_tokens = KV_PAGE_TOKENS, .ring_tokens = full ? UINT32_MAX / KV_PAGE_TOKENS * KV_PAGE_TOKENS : geo->ring_tokens,
        .head_dim = l->head_dim, .dtype = f->kv_dtype, .scale = c->attention_scale,
    };
    struct attention_query query[KERNELS_QUERIES_MAX];
    uint32_t count = 0;

    for (uint32_t r = block->row; r < block->row + block->count; r++) {
        const uint32_t position = f->rows[r].position;

        for (uint32_t i = from; i < to; i++) {
            const uint64_t at = ((uint64_t)r * c->q_heads + kv_head * group + i) * l->head_dim;

            query[count++] = (struct attention_query){ f->q + at, f->attended + at, full || position < c->window ? 0 : position - c->window + 1, position };
        }
    }
    must(count <= KERNELS_QUERIES_MAX);
    f->kernels->attention(query, count, &keys, &f->scratch[thread]);
}

static void layer_attention(struct forward *f, struct layer_task *t)
{
    const struct model_config *c = f->config;
    const struct layer_config *l = &c->layer[t->layer];
    const uint32_t q = model_q_dim(c, t->layer), kv = model_kv_dim(c, t->layer), group = c->q_heads / l->kv_heads;
    const uint32_t columns = q + kv + (l->has_v ? kv : 0), heads = forward_task_heads(f, group);
    uint64_t keys = 0;

    t->chunk = forward_chunk(f, columns);
    forward_tasks(f, qkv_task, t, (columns + t->chunk - 1) / t->chunk, (uint64_t)f->row_count * columns * c->hidden);
    forward_tasks(f, heads_task, t, f->row_count, (uint64_t)f->row_count * columns * 8);
    for (uint32_t r = 0; r < f->row_count; r++)
        keys += l->type == LAYER_FULL ? f->rows[r].position + 1 : layer_min(f->rows[r].position + 1, c->window);
    forward_tasks(f, attention_task, t, f->block_count[l->type] * l->kv_heads * ((group + heads - 1) / heads), 2 * keys * q);
}

/* h += norm(y), then x = norm(h) for what comes next. */
static void between_task(void *context, uint32_t r, uint32_t thread)
{
    const struct layer_task *t = context;
    const struct forward *f = t->f;
    const struct layer_weights *w = &f->weights->layer[t->layer];
    const uint32_t hidden = f->config->hidden;
    float *y = f->y + (uint64_t)r * hidden, *h = f->h + (uint64_t)r * hidden;

    (void)thread;
    f->kernels->rmsnorm(y, y, w->post_attention_norm, hidden, f->config->norm_eps);
    f->kernels->add_scaled(h, y, 1.0f, hidden);
    f->kernels->rmsnorm(f->x + (uint64_t)r * hidden, h, w->pre_feedforward_norm, hidden, f->config->norm_eps);
}

static void enter_task(void *context, uint32_t r, uint32_t thread)
{
    const struct layer_task *t = context;
    const struct forward *f = t->f;
    const uint32_t hidden = f->config->hidden;

    (void)thread;
    f->kernels->rmsnorm(f->x + (uint64_t)r * hidden, f->h + (uint64_t)r * hidden, f->weights->layer[t->layer].input_norm, hidden, f->config->norm_eps);
}

static void leave_task(void *context, uint32_t r, uint32_t thread)
{
    const struct layer_task *t = context;
    const struct forward *f = t->f;
    const struct layer_weights *w = &f->weights->layer[t->layer];
    const uint32_t hidden = f->config->hidden;
    float *y = f->y + (uint64_t)r * hidden;

    (void)thread;
    f->kernels->rmsnorm(y, y, w->post_feedforward_norm, hidden, f->config->norm_eps);
    f->kernels->add_scaled(f->h + (uint64_t)r * hidden, y, w->scalar, hidden);
}

/* gate = gelu(x gate^T) * (x up^T), the same columns of both in one task. */
static void gate_task(void *context, uint32_t task, uint32_t thread)
{
    const struct layer_task *t = context;
    const struct forward *f = t->f;
    const struct layer_weights *w = &f->weights->layer[t->layer];
    const uint32_t hidden = f->config->hidden, n = f->config->intermediate;
    const uint32_t begin = task * t->chunk, end = layer_min(begin + t->chunk, n);

    (void)thread;
    f->kernels->linear(f->gate, n, f->x, hidden, f->row_count, w->gate, f->weight_dtype, hidden, begin, end);
    f->kernels->linear(f->up, n, f->x, hidden, f->row_count, w->up, f->weight_dtype, hidden, begin, end);
    for (uint64_t r = 0; r < f->row_count; r++) f->kernels->geglu(f->gate + r * n + begin, f->up + r * n + begin, end - begin);
}

void forward_layer(struct forward *f, uint32_t layer)
{
    const struct model_config *c = f->config;
    const struct layer_weights *w = &f->weights->layer[layer];
    const uint64_t row_work = (uint64_t)f->row_count * c->hidden * 4;
    struct layer_task t = { .f = f, .layer = layer };

    forward_tasks(f, enter_task, &t, f->row_count, row_work);
    layer_attention(f, &t);
    layer_linear(f, f->y, f->attended, w->o, c->hidden, model_q_dim(c, layer));
    forward_tasks(f, between_task, &t, f->row_count, row_work);
    t.chunk = forward_chunk(f, c->intermediate);
    forward_tasks(f, gate_task, &t, (c->intermediate + t.chunk - 1) / t.chunk, 2 * (uint64_t)f->row_count * c->intermediate * c->hidden);
    layer_linear(f, f->y, f->gate, w->down, c->hidden, c->intermediate);
    forward_tasks(f, leave_task, &t, f->row_count, row_work);
}
