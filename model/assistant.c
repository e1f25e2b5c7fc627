/* model/assistant.c - the MTP assistant's tensors and its step on the CPU. */
#include "model/assistant.h"

#include "kernels/pool.h"
#include "model/format.h"
#include "model/forward_rope.h"
#include "shm/error.h"
#include "shm/must.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK_COLUMNS 64u             /* of a product: what one task computes */
#define VECTORS_PER_LAYER 4u          /* norms of `hidden` numbers */

/* ---- tensors --------------------------------------------------------------------------- */

struct binder {
    struct format_source source;
    struct assistant_weights *weights;
    float *room;
    int rc;                           /* of the first that failed */
};

static void bind_matrix(struct binder *b, struct stored_matrix *m, const char *name, uint32_t rows, uint32_t k)
{
    if (b->rc != 0) return;
    b->rc = format_matrix(m, &b->source, name, rows, k);
    if (b->rc == 0) b->weights->step_bytes += stored_bytes(m);
}

static const struct tensor *find(struct binder *b, const char *name, uint64_t rows, uint64_t columns)
{
    struct tensor *t = safetensors_find(b->source.index, name);
    char shape[128];

    if (b->rc != 0) return NULL;
    if (!t) {
        b->rc = model_error_set(b->source.err, -E_NOT_FOUND, "tensor %s is missing", name);
        return NULL;
    }
    format_shape(t, shape, sizeof shape);
    const uint64_t elements = t->rank == 1 ? t->shape[0] : t->rank == 2 ? t->shape[0] * t->shape[1] : 0;
    if ((t->dtype != DTYPE_BF16 && t->dtype != DTYPE_F32) || elements != rows * columns || (t->rank == 2 && t->shape[0] != rows)) {
        b->rc = model_error_set(b->source.err, -E_FORMAT, "tensor %s is %s; BF16 or F32 of %llu x %llu is needed", name, shape, (unsigned long long)rows, (unsigned long long)columns);
        return NULL;
    }
    t->taken = true;
    return t;
}

static const float *bind_vector(struct binder *b, const char *name, uint32_t count)
{
    const struct tensor *t = find(b, name, count, 1);
    float *own = b->room;

    if (!t) return NULL;
    for (uint32_t i = 0; i < count; i++) own[i] = t->dtype == DTYPE_F32 ? ((const float *)t->data)[i] : stored_from_bf16(((const uint16_t *)t->data)[i]);
    b->room += count;
    return own;
}

static void bind_layer(struct binder *b, uint32_t i)
{
    const struct model_config *c = &b->weights->config;
    struct assistant_layer *l = &b->weights->layer[i];
    const uint32_t q = model_q_dim(c, i);
    char name[128];

#define NAMED(suffix) (snprintf(name, sizeof name, "model.layers.%u." suffix, i), name)
    bind_matrix(b, &l->q, NAMED("self_attn.q_proj"), q, c->hidden);
    bind_matrix(b, &l->o, NAMED("self_attn.o_proj"), c->hidden, q);
    bind_matrix(b, &l->gate, NAMED("mlp.gate_proj"), c->intermediate, c->hidden);
    bind_matrix(b, &l->up, NAMED("mlp.up_proj"), c->intermediate, c->hidden);
    bind_matrix(b, &l->down, NAMED("mlp.down_proj"), c->hidden, c->intermediate);
    l->q_norm = bind_vector(b, NAMED("self_attn.q_norm.weight"), c->layer[i].head_dim);
    l->input_norm = bind_vector(b, NAMED("input_layernorm.weight"), c->hidden);
    l->post_attention_norm = bind_vector(b, NAMED("post_attention_layernorm.weight"), c->hidden);
    l->pre_feedforward_norm = bind_vector(b, NAMED("pre_feedforward_layernorm.weight"), c->hidden);
    l->post_feedforward_norm = bind_vector(b, NAMED("post_feedforward_layernorm.weight"), c->hidden);
    const float *scalar = bind_vector(b, NAMED("layer_scalar"), 1);
    l->scalar = scalar ? *scalar : 1.0f;
#undef NAMED
}

static int bind_all(struct assistant_weights *w, struct safetensors *index, const struct quantization *quantization, struct model_error *err)
{
    const struct model_config *c = &w->config;
    const uint64_t scales = format_floats(index), vectors = (uint64_t)c->layer_count * (VECTORS_PER_LAYER * c->hidden + MODEL_HEAD_DIM_MAX + 1) + c->hidden;
    struct binder b = {.source = {.index = index, .quantization = quantization, .err = err, .room_floats = scales}, .weights = w};

    w->owned = malloc((vectors + scales) * sizeof *w->owned);
    if (!w->owned) return model_error_set(err, -E_NOMEM, "out of memory for the drafter's norms");
    b.room = w->owned;
    b.source.room = w->owned + vectors;
    const struct tensor *embed = find(&b, "model.embed_tokens.weight", c->vocab, c->hidden);
    if (embed) {
        w->embed = embed->data;
        w->dtype = embed->dtype;
        w->step_bytes += embed->byte_count;
    }
    w->norm = bind_vector(&b, "model.norm.weight", c->hidden);
    bind_matrix(&b, &w->pre, "pre_projection", c->hidden, 2 * w->backbone_hidden);
    bind_matrix(&b, &w->post, "post_projection", w->backbone_hidden, c->hidden);
    for (uint32_t i = 0; i < c->layer_count; i++) bind_layer(&b, i);
    return b.rc;
}

int assistant_load(struct assistant_weights *w, const struct model_files *files, struct model_error *err)
{
    struct quantization quantization;
    struct safetensors index;
    const uint8_t *json;
    uint64_t bytes;

    memset(w, 0, sizeof *w);
    if (model_files_find(files, "config.json", &json, &bytes) != 0) return model_error_set(err, -E_NOT_FOUND, "the drafter has no config.json");
    int rc = assistant_config_parse(&w->config, &w->backbone_hidden, json, bytes, err);
    if (rc == 0) rc = quantization_load(&quantization, files, err);
    if (rc != 0) return rc;
    safetensors_init(&index);
    rc = safetensors_load(&index, files, err);
    if (rc == 0) rc = bind_all(w, &index, &quantization, err);
    safetensors_free(&index);
    if (rc != 0) assistant_weights_free(w);
    return rc;
}

void assistant_weights_free(struct assistant_weights *w)
{
    free(w->owned);
    memset(w, 0, sizeof *w);
}

/* The target's last layer of a type; layer_count when it has none. */
static uint32_t last_of(const struct model_config *target, enum layer_type type)
{
    for (uint32_t i = target->layer_count; i-- > 0;)
        if (target->layer[i].type == type) return i;
    return target->layer_count;
}

int assistant_check(const struct assistant_weights *w, const struct model_config *target, struct model_error *err)
{
    if (w->backbone_hidden != target->hidden)
        return model_error_set(err, -E_UNSUPPORTED, "the drafter was made for a model of hidden size %u, this one has %u", w->backbone_hidden, target->hidden);
    if (w->config.vocab != target->vocab) return model_error_set(err, -E_UNSUPPORTED, "the drafter knows %u tokens, the model %u", w->config.vocab, target->vocab);
    for (uint32_t i = 0; i < w->config.layer_count; i++) {
        const struct layer_config *own = &w->config.layer[i];
        const uint32_t from = last_of(target, own->type);
        if (from == target->layer_count) return model_error_set(err, -E_UNSUPPORTED, "layer %u of the drafter needs a kind of layer that the model has not", i);
        if (own->head_dim != target->layer[from].head_dim || own->kv_heads != target->layer[from].kv_heads)
            return model_error_set(err, -E_UNSUPPORTED, "layer %u of the drafter reads %u heads of %u, the model's layer %u has %u of %u", i, own->kv_heads, own->head_dim, from,
                                   target->layer[from].kv_heads, target->layer[from].head_dim);
    }
    return 0;
}

/* ---- a step ------------------------------------------------------------------------------ */

struct assistant {
    const struct assistant_weights *weights;
    const struct kernels *kernels;
    struct pool *pool;
    const uint8_t *kv;
    const struct kv_geometry *geo;
    uint32_t rows_max, window;
    uint32_t source[LAYER_TYPES];     /* the target's layer whose keys are read */
    struct rope_table rope[LAYER_TYPES];
    struct attention_scratch *scratch; /* [threads] */
    float *x, *y, *normed, *joined, *q, *attended, *gate, *up; /* [rows_max][...] */
    float *memory;
    /* of the call at hand */
    const struct assistant_row *rows;
    const struct forward_seq *seqs;
    uint32_t count;
};

static uint64_t widest_q(const struct model_config *c)
{
    uint64_t widest = 0;

    for (uint32_t i = 0; i < c->layer_count; i++)
        if (model_q_dim(c, i) > widest) widest = model_q_dim(c, i);
    return widest;
}

static int make_room(struct assistant *a)
{
    const struct assistant_weights *w = a->weights;
    const uint64_t hidden = w->config.hidden, q = widest_q(&w->config), joined = 2ull * w->backbone_hidden;
    const uint64_t floats = a->rows_max * (3 * hidden + joined + 2 * q + 2ull * w->config.intermediate);

    a->memory = aligned_alloc(64, (floats * sizeof *a->memory + 63) / 64 * 64);
    a->scratch = malloc(sizeof *a->scratch * pool_threads(a->pool));
    if (!a->memory || !a->scratch) return -E_NOMEM;
    a->x = a->memory;
    a->y = a->x + a->rows_max * hidden;
    a->normed = a->y + a->rows_max * hidden;
    a->joined = a->normed + a->rows_max * hidden;
    a->q = a->joined + a->rows_max * joined;
    a->attended = a->q + a->rows_max * q;
    a->gate = a->attended + a->rows_max * q;
    a->up = a->gate + (uint64_t)a->rows_max * w->config.intermediate;
    return 0;
}

int assistant_open(struct assistant **out, const struct assistant_weights *weights, const struct model_config *target, const struct kv_geometry *geo,
                   const void *kv, const struct forward_options *options)
{
    const struct kernels *kernels = kernels_get((enum kernels_isa)options->kernels);
    struct model_error ignored = {""};
    struct assistant *a;
    int rc = assistant_check(weights, target, &ignored);

    *out = NULL;
    if (rc == 0 && (options->rows_max == 0 || options->rows_max > FORWARD_ROWS_LIMIT)) rc = -E_RANGE;
    if (rc == 0 && !kernels) rc = -E_UNSUPPORTED;
    if (rc != 0) return rc;
    if (!(a = calloc(1, sizeof *a))) return -E_NOMEM;
    a->weights = weights;
    a->kernels = kernels;
    a->kv = kv;
    a->geo = geo;
    a->rows_max = options->rows_max;
    a->window = target->window;
    for (int type = 0; type < LAYER_TYPES; type++) a->source[type] = last_of(target, (enum layer_type)type);
    for (uint32_t i = 0; i < weights->config.layer_count; i++) {
        const struct layer_config *l = &weights->config.layer[i];
        rope_table_init(&a->rope[l->type], &weights->config.rope[l->type], l->head_dim);
    }
    rc = pool_open(&a->pool, options->threads, (int)options->pin);
    if (rc == 0) rc = make_room(a);
    if (rc != 0) {
        assistant_close(a);
        return rc;
    }
    *out = a;
    return 0;
}

void assistant_close(struct assistant *a)
{
    if (!a) return;
    if (a->pool) pool_close(a->pool);
    free(a->scratch);
    free(a->memory);
    free(a);
}

struct product { const struct assistant *a; float *y; const float *x; const struct stored_matrix *m; };

static void product_task(void *context, uint32_t task, uint32_t thread)
{
    const struct product *p = context;
    const uint32_t begin = task * CHUNK_COLUMNS, end = begin + CHUNK_COLUMNS < p->m->rows ? begin + CHUNK_COLUMNS : p->m->rows;

    (void)thread;
    if (p->m->element == STORED_BF16 || p->m->element == STORED_F32)
        p->a->kernels->linear(p->y, p->m->rows, p->x, p->m->k, p->a->count, p->m->data, (enum kernels_dtype)p->m->element, p->m->k, begin, end);
    else p->a->kernels->linear_stored(p->y, p->m->rows, p->x, p->m->k, NULL, p->a->count, p->m, begin, end); /* advice needs no rounded activations */
}

static void multiply(const struct assistant *a, float *y, const float *x, const struct stored_matrix *m)
{
    struct product p = {a, y, x, m};

    pool_run(a->pool, product_task, &p, (m->rows + CHUNK_COLUMNS - 1) / CHUNK_COLUMNS);
}

struct attention { struct assistant *a; uint32_t layer; };

/* One kv head of one row: all its query heads, up to KERNELS_QUERIES_MAX at a time. */
static void attention_task(void *context, uint32_t task, uint32_t thread)
{
    const struct attention *t = context;
    struct assistant *a = t->a;
    const struct model_config *c = &a->weights->config;
    const struct layer_config *l = &c->layer[t->layer];
    const uint32_t r = task / l->kv_heads, kv_head = task % l->kv_heads, group = c->q_heads / l->kv_heads, dim = l->head_dim;
    const struct assistant_row *row = &a->rows[r];
    const struct kv_layer *place = &a->geo->layer[a->source[l->type]];
    const bool full = l->type == LAYER_FULL;
    const uint64_t head_bytes = (uint64_t)kv_head * KV_PAGE_TOKENS * dim * a->geo->element_bytes;
    const uint32_t last = row->key_count - 1, first = full || row->key_count <= a->window ? 0 : row->key_count - a->window;
    const struct attention_keys keys = {
        .arena = a->kv, .pages = full ? a->seqs[row->seq].full_pages : a->seqs[row->seq].sliding_pages, .pool_offset = kv_page_offset(a->geo, l->type, 0),
        .page_bytes = full ? a->geo->full_page_bytes : a->geo->sliding_page_bytes, .k_offset = place->k_offset + head_bytes, .v_offset = place->v_offset + head_bytes,
        .page_tokens = KV_PAGE_TOKENS, .ring_tokens = full ? UINT32_MAX / KV_PAGE_TOKENS * KV_PAGE_TOKENS : a->geo->ring_tokens, .head_dim = dim,
        .dtype = a->geo->dtype == KV_BF16 ? KERNELS_BF16 : KERNELS_F32, .scale = c->attention_scale,
    };
    struct attention_query query[KERNELS_QUERIES_MAX];

    for (uint32_t from = 0; from < group; from += KERNELS_QUERIES_MAX) {
        uint32_t n = 0;
        for (uint32_t i = from; i < group && n < KERNELS_QUERIES_MAX; i++) {
            const uint64_t at = ((uint64_t)r * c->q_heads + kv_head * group + i) * dim;
            query[n++] = (struct attention_query){a->q + at, a->attended + at, first, last};
        }
        a->kernels->attention(query, n, &keys, &a->scratch[thread]);
    }
}

static void turn_queries(struct assistant *a, uint32_t layer)
{
    const struct model_config *c = &a->weights->config;
    const struct layer_config *l = &c->layer[layer];
    const struct rope_table *rope = &a->rope[l->type];
    float cosine[ROPE_PAIRS_MAX], sine[ROPE_PAIRS_MAX];

    for (uint32_t r = 0; r < a->count; r++) {
        rope_table_angles(rope, a->rows[r].position, cosine, sine);
        for (uint32_t i = 0; i < c->q_heads; i++) {
            float *q = a->q + ((uint64_t)r * c->q_heads + i) * l->head_dim;
            a->kernels->rmsnorm(q, q, a->weights->layer[layer].q_norm, l->head_dim, c->norm_eps);
            a->kernels->rope(q, cosine, sine, rope->half, rope->turned);
        }
    }
}

/* x = (x + norm(y, post)) * scalar, then normed = norm(x, next). */
static void join(struct assistant *a, const float *post, float scalar, const float *next)
{
    const struct model_config *c = &a->weights->config;

    for (uint32_t r = 0; r < a->count; r++) {
        const uint64_t at = (uint64_t)r * c->hidden;
        a->kernels->rmsnorm(a->y + at, a->y + at, post, c->hidden, c->norm_eps);
        a->kernels->add_scaled(a->x + at, a->y + at, scalar, c->hidden);
        a->kernels->rmsnorm(a->normed + at, a->x + at, next, c->hidden, c->norm_eps);
    }
}

static void run_layer(struct assistant *a, uint32_t i)
{
    const struct assistant_weights *w = a->weights;
    const struct assistant_layer *l = &w->layer[i];
    struct attention t = {a, i};

    multiply(a, a->q, a->normed, &l->q);
    turn_queries(a, i);
    pool_run(a->pool, attention_task, &t, a->count * w->config.layer[i].kv_heads);
    multiply(a, a->y, a->attended, &l->o);
    join(a, l->post_attention_norm, 1.0f, l->pre_feedforward_norm);
    multiply(a, a->gate, a->normed, &l->gate);
    multiply(a, a->up, a->normed, &l->up);
    for (uint32_t r = 0; r < a->count; r++)
        a->kernels->geglu(a->gate + (uint64_t)r * w->config.intermediate, a->up + (uint64_t)r * w->config.intermediate, w->config.intermediate);
    multiply(a, a->y, a->gate, &l->down);
    join(a, l->post_feedforward_norm, l->scalar, i + 1 == w->config.layer_count ? w->norm : w->layer[i + 1].input_norm);
}

static bool row_ok(const struct assistant *a, const struct assistant_row *row, const struct forward_seq *seqs, uint32_t seq_count)
{
    if (row->seq >= seq_count || row->key_count == 0 || row->key_count > row->position || row->position >= a->geo->max_context) return false;
    return seqs[row->seq].full_page_count >= kv_full_pages_needed(a->geo, row->key_count) && seqs[row->seq].sliding_page_count >= kv_sliding_pages_needed(a->geo, row->key_count);
}

int assistant_step(struct assistant *a, const struct assistant_row *rows, uint32_t count, const struct forward_seq *seqs, uint32_t seq_count, float *logits, float *hidden)
{
    const struct assistant_weights *w = a->weights;
    const uint64_t backbone = w->backbone_hidden;
    const struct stored_matrix table = {.data = w->embed, .rows = w->config.vocab, .k = w->config.hidden, .element = w->dtype == DTYPE_F32 ? STORED_F32 : STORED_BF16};

    if (count == 0 || count > a->rows_max) return -E_RANGE;
    for (uint32_t r = 0; r < count; r++)
        if (!row_ok(a, &rows[r], seqs, seq_count)) return -E_RANGE;
    a->rows = rows;
    a->seqs = seqs;
    a->count = count;
    for (uint32_t r = 0; r < count; r++) {
        memcpy(a->joined + 2 * backbone * r, rows[r].embedding, backbone * sizeof(float));
        memcpy(a->joined + 2 * backbone * r + backbone, rows[r].hidden, backbone * sizeof(float));
    }
    multiply(a, a->x, a->joined, &w->pre);
    for (uint32_t r = 0; r < count; r++)
        a->kernels->rmsnorm(a->normed + (uint64_t)r * w->config.hidden, a->x + (uint64_t)r * w->config.hidden, w->layer[0].input_norm, w->config.hidden, w->config.norm_eps);
    for (uint32_t i = 0; i < w->config.layer_count; i++) run_layer(a, i);
    multiply(a, logits, a->normed, &table);
    multiply(a, hidden, a->normed, &w->post);
    for (uint32_t r = 0; r < count && w->config.final_softcap != 0; r++) a->kernels->softcap(logits + (uint64_t)r * w->config.vocab, w->config.final_softcap, w->config.vocab);
    return 0;
}
