/* model/assistant.c - the MTP assistant's tensors and its step on the CPU. */
#include "model/assistant.h"

#include "shm/error.h"

#include <stdlib.h>
#include <string.h>

/* ---- tensors --------------------------------------------------------------------------- */

static int bind_all(struct assistant_weights *w, struct safetensors *index, const struct quantization *quantization, struct model_error *err)
{
    const struct model_config *c = &w->config;
    const uint64_t scales = format_floats(index), vectors = drafter_layer_floats(c) + c->hidden;
    struct drafter_binder b = {.source = {.index = index, .quantization = quantization, .err = err, .room_floats = scales}, .bytes = &w->step_bytes};

    w->owned = malloc((vectors + scales) * sizeof *w->owned);
    if (!w->owned) return model_error_set(err, -E_NOMEM, "out of memory for the drafter's norms");
    b.room = w->owned;
    b.source.room = w->owned + vectors;
    const struct tensor *embed = drafter_tensor(&b, "model.embed_tokens.weight", c->vocab, c->hidden);
    if (embed) {
        w->embed = embed->data;
        w->dtype = embed->dtype;
        w->head = drafter_plain(w->embed, w->dtype, c->vocab, c->hidden);
        w->step_bytes += embed->byte_count;
    }
    w->norm = drafter_vector(&b, "model.norm.weight", c->hidden);
    drafter_matrix(&b, &w->pre, "pre_projection", c->hidden, 2 * w->backbone_hidden);
    drafter_matrix(&b, &w->post, "post_projection", w->backbone_hidden, c->hidden);
    for (uint32_t i = 0; i < c->layer_count; i++) drafter_bind_layer(&b, &w->layer[i], c, i, "model.");
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

#define MATRICES_PER_LAYER 5u

static uint32_t list_matrices(struct assistant_weights *w, struct stored_matrix **list)
{
    uint32_t count = 0;

    list[count++] = &w->head;
    list[count++] = &w->pre;
    list[count++] = &w->post;
    for (uint32_t i = 0; i < w->config.layer_count; i++) {
        struct drafter_layer *l = &w->layer[i];
        list[count++] = &l->q;
        list[count++] = &l->o;
        list[count++] = &l->gate;
        list[count++] = &l->up;
        list[count++] = &l->down;
    }
    return count;
}

int assistant_to_fp8(struct assistant_weights *w, uint32_t threads)
{
    struct stored_matrix *list[3 + MATRICES_PER_LAYER * MODEL_LAYERS_MAX];
    const uint32_t count = list_matrices(w, list);
    const int rc = drafter_to_fp8(list, count, threads, &w->rounded);

    if (rc != 0) return rc;
    w->step_bytes = 0;
    for (uint32_t i = 0; i < count; i++) w->step_bytes += stored_bytes(list[i]);
    return 0;
}

void assistant_weights_free(struct assistant_weights *w)
{
    free(w->rounded);
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
    struct drafter_math math;         /* the pool is owned */
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
    a->scratch = malloc(sizeof *a->scratch * pool_threads(a->math.pool));
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
    a->math.kernels = kernels;
    a->kv = kv;
    a->geo = geo;
    a->rows_max = options->rows_max;
    a->window = target->window;
    for (int type = 0; type < LAYER_TYPES; type++) a->source[type] = last_of(target, (enum layer_type)type);
    for (uint32_t i = 0; i < weights->config.layer_count; i++) {
        const struct layer_config *l = &weights->config.layer[i];
        rope_table_init(&a->rope[l->type], &weights->config.rope[l->type], l->head_dim);
    }
    rc = pool_open(&a->math.pool, options->threads, (int)options->pin);
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
    if (a->math.pool) pool_close(a->math.pool);
    free(a->scratch);
    free(a->memory);
    free(a);
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
        .dtype = a->geo->dtype, .scale = c->attention_scale,
    };
    struct attention_query query[KERNELS_QUERIES_MAX];

    for (uint32_t from = 0; from < group; from += KERNELS_QUERIES_MAX) {
        uint32_t n = 0;
        for (uint32_t i = from; i < group && n < KERNELS_QUERIES_MAX; i++) {
            const uint64_t at = ((uint64_t)r * c->q_heads + kv_head * group + i) * dim;
            query[n++] = (struct attention_query){a->q + at, a->attended + at, first, last};
        }
        a->math.kernels->attention(query, n, &keys, &a->scratch[thread]);
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
        drafter_turn(&a->math, a->q + (uint64_t)r * c->q_heads * l->head_dim, a->weights->layer[layer].q_norm, c->q_heads, l->head_dim, c->norm_eps, rope, cosine, sine);
    }
}

static void run_layer(struct assistant *a, uint32_t i)
{
    const struct assistant_weights *w = a->weights;
    const struct drafter_rows rows = {a->count, a->x, a->y, a->normed, a->attended, a->gate, a->up};
    struct attention t = {a, i};
    uint64_t keys = 0;

    drafter_multiply(&a->math, a->q, a->normed, &w->layer[i].q, a->count);
    turn_queries(a, i);
    for (uint32_t r = 0; r < a->count; r++) keys += a->rows[r].key_count;
    drafter_tasks(&a->math, attention_task, &t, a->count * w->config.layer[i].kv_heads, 2 * keys * model_q_dim(&w->config, i));
    drafter_finish_layer(&a->math, &w->layer[i], &w->config, &rows, i + 1 == w->config.layer_count ? w->norm : w->layer[i + 1].input_norm);
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
    const struct drafter_rows lines = {.count = count, .x = a->x, .normed = a->normed};

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
    drafter_multiply(&a->math, a->x, a->joined, &w->pre, count);
    drafter_norm(&a->math, &w->config, &lines, w->layer[0].input_norm);
    for (uint32_t i = 0; i < w->config.layer_count; i++) run_layer(a, i);
    drafter_multiply(&a->math, logits, a->normed, &w->head, count);
    drafter_multiply(&a->math, hidden, a->normed, &w->post, count);
    for (uint32_t r = 0; r < count && w->config.final_softcap != 0; r++) a->math.kernels->softcap(logits + (uint64_t)r * w->config.vocab, w->config.final_softcap, w->config.vocab);
    return 0;
}
