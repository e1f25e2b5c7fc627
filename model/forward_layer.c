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
    const struct stored_matrix *matrix;                /* linear_task, round_task */
    struct forward_input in[FORWARD_PARTS];            /* for each matrix of the loop */
    const float *from;                /* round_task: rows [rows, matrix->k] to be rounded into buffer `part` */
    uint32_t part;
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

/* Columns [begin, end) of out [rows, matrix->rows] = in matrix^T. */
static void layer_product(const struct forward *f, float *out, const struct forward_input *in, const struct stored_matrix *matrix, uint32_t begin, uint32_t end)
{
    if (matrix->element == STORED_BF16 || matrix->element == STORED_F32)
        f->kernels->linear(out, matrix->rows, in->x, matrix->k, f->row_count, matrix->data, (enum kernels_dtype)matrix->element, matrix->k, begin, end);
    else f->kernels->linear_stored(out, matrix->rows, in->x, matrix->k, in->scale, f->row_count, matrix, begin, end);
}

static void round_task(void *context, uint32_t r, uint32_t thread)
{
    const struct layer_task *t = context;
    const uint64_t at = (uint64_t)r * t->matrix->k;
    struct forward *f = t->f;

    (void)thread;
    f->rounded_scale[t->part][r] = f->kernels->to_e4m3(f->rounded[t->part] + at, t->from + at,
                                                       t->matrix->activation == STORED_STATIC ? t->matrix->input_scale : 0, t->matrix->k);
}

/* in[i] = the rows `from` as matrix[i] wants them; matrices of one rule share what is rounded. */
static void layer_inputs(struct forward *f, struct forward_input *in, const float *from, const struct stored_matrix *const *matrix, uint32_t count)
{
    for (uint32_t i = 0; i < count; i++) {
        struct layer_task t = { .f = f, .matrix = matrix[i], .from = from, .part = i };
        uint32_t same = 0;

        in[i] = (struct forward_input){ from, NULL };
        if (f->input_hook && matrix[i]->data) f->input_hook(f->input_context, matrix[i], from, f->row_count);
        if (!f->rounds || !matrix[i]->data || matrix[i]->activation == STORED_AS_IS) continue;
        while (same < i && !(matrix[same]->activation == matrix[i]->activation && matrix[same]->input_scale == matrix[i]->input_scale)) same++;
        if (same == i) forward_tasks(f, round_task, &t, f->row_count, (uint64_t)f->row_count * matrix[i]->k * 8);
        in[i] = same < i ? in[same] : (struct forward_input){ f->rounded[i], f->rounded_scale[i] };
    }
}

static void linear_task(void *context, uint32_t task, uint32_t thread)
{
    const struct layer_task *t = context;
    const uint32_t begin = task * t->chunk, end = layer_min(begin + t->chunk, t->matrix->rows);

    (void)thread;
    layer_product(t->f, t->out, &t->in[0], t->matrix, begin, end);
}

/* out [rows, matrix->rows] = in [rows, matrix->k] matrix^T */
static void layer_linear(struct forward *f, float *out, const float *in, const struct stored_matrix *matrix)
{
    struct layer_task t = { .f = f, .chunk = forward_chunk(f, matrix->rows), .matrix = matrix, .out = out };

    layer_inputs(f, t.in, in, &matrix, 1);
    forward_tasks(f, linear_task, &t, (matrix->rows + t.chunk - 1) / t.chunk, (uint64_t)f->row_count * matrix->rows * matrix->k);
}

/* The q, k and v matrices stand side by side as one, so that the three make one loop. */
static void qkv_task(void *context, uint32_t task, uint32_t thread)
{
    const struct layer_task *t = context;
    const struct forward *f = t->f;
    const struct layer_weights *w = &f->weights->layer[t->layer];
    const struct { const struct stored_matrix *matrix; float *out; } part[FORWARD_PARTS] = { { &w->q, f->q }, { &w->k, f->k }, { &w->v, f->v } };
    uint32_t begin = task * t->chunk, end = begin + t->chunk;

    (void)thread;
    for (int i = 0; i < FORWARD_PARTS && part[i].matrix->data; i++) {
        const uint32_t columns = part[i].matrix->rows;

        if (begin < columns) layer_product(f, part[i].out, &t->in[i], part[i].matrix, begin, layer_min(end, columns));
        if (end <= columns) return;
        begin = begin > columns ? begin - columns : 0;
        end -= columns;
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
    const bool full = l->type == LAYER_FULL, looks_ahead = c->vision_bidirectional && (!full || c->family == MODEL_GEMMA3);
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
        const uint32_t position = f->rows[r].position, last = position + (looks_ahead ? f->rows[r].ahead : 0);

        for (uint32_t i = from; i < to; i++) {
            const uint64_t at = ((uint64_t)r * c->q_heads + kv_head * group + i) * l->head_dim;

            query[count++] = (struct attention_query){ f->q + at, f->attended + at, full || position < c->window ? 0 : position - c->window + 1, last };
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
    const struct layer_weights *w = &f->weights->layer[t->layer];
    const struct stored_matrix *const parts[FORWARD_PARTS] = { &w->q, &w->k, &w->v };
    uint64_t keys = 0;

    layer_inputs(f, t->in, f->x, parts, FORWARD_PARTS);
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
    const uint32_t n = f->config->intermediate;
    const uint32_t begin = task * t->chunk, end = layer_min(begin + t->chunk, n);

    (void)thread;
    layer_product(f, f->gate, &t->in[0], &w->gate, begin, end);
    layer_product(f, f->up, &t->in[1], &w->up, begin, end);
    for (uint64_t r = 0; r < f->row_count; r++) f->kernels->geglu(f->gate + r * n + begin, f->up + r * n + begin, end - begin);
}

void forward_layer(struct forward *f, uint32_t layer)
{
    const struct model_config *c = f->config;
    const struct layer_weights *w = &f->weights->layer[layer];
    const uint64_t row_work = (uint64_t)f->row_count * c->hidden * 4;
    const struct stored_matrix *const gate_up[2] = { &w->gate, &w->up };
    struct layer_task t = { .f = f, .layer = layer };

    forward_tasks(f, enter_task, &t, f->row_count, row_work);
    layer_attention(f, &t);
    layer_linear(f, f->y, f->attended, &w->o);
    forward_tasks(f, between_task, &t, f->row_count, row_work);
    layer_inputs(f, t.in, f->x, gate_up, 2);
    t.chunk = forward_chunk(f, c->intermediate);
    forward_tasks(f, gate_task, &t, (c->intermediate + t.chunk - 1) / t.chunk, 2 * (uint64_t)f->row_count * c->intermediate * c->hidden);
    layer_linear(f, f->y, f->gate, &w->down);
    forward_tasks(f, leave_task, &t, f->row_count, row_work);
}
