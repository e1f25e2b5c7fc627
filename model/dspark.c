/* model/dspark.c - the DSpark drafter on the CPU: features into the cache, a block through the layers, guesses from it. See dspark.h. */
#include "model/dspark.h"

#include "shm/error.h"
#include "shm/must.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define ABSORB_ROWS_MIN 32u           /* feature rows that go through fc together, if blocks need fewer */

struct dspark {
    const struct dspark_weights *weights;
    const struct dspark_cache *cache;
    struct drafter_math math;         /* the pool is owned */
    struct rope_table rope;
    struct attention_scratch *scratch; /* [threads] */
    dspark_hidden_fn *hook;
    void *hook_context;
    uint32_t rows_max;                /* blocks in one call */
    uint32_t lines_max;               /* rows of activations */
    uint32_t *pages;                  /* [ring pages] 0, 1, 2 ...: a sequence's ring is one piece */
    uint32_t *positions;              /* [lines_max] */
    void **caches;                    /* [lines_max] */
    float *sources;                   /* [lines_max, source_count * hidden] */
    float *x, *y, *normed;            /* [lines_max, hidden]; the last block's states stay in normed */
    float *q, *attended;              /* [lines_max, q_heads * head_dim] */
    float *k, *v;                     /* [lines_max, kv_heads * head_dim] */
    float *gate, *up;                 /* [lines_max, intermediate] */
    float *cosine, *sine;             /* [lines_max, turned] */
    float *chosen;                    /* [rows_max * block, hidden], then [.., rank]: what meets the head, what meets W2 */
    float *base;                      /* [rows_max, block, vocab]: logits of the last block without the Markov head */
    float *memory;
    /* the last block */
    const struct dspark_row *rows;    /* only during dspark_block */
    uint32_t count, wanted;
};

int dspark_cache_init(struct dspark_cache *cache, const struct dspark_config *config, enum kv_dtype dtype, uint32_t window, uint32_t max_context)
{
    const struct model_config *c = &config->layers;
    uint64_t bytes = 0;

    if (window == 0 || max_context == 0) return -E_RANGE;
    if (window > max_context) window = max_context;
    *cache = (struct dspark_cache){.dtype = dtype, .element_bytes = kv_dtype_bytes(dtype), .window = window, .max_context = max_context};
    cache->ring_tokens = (window + config->block + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS * KV_PAGE_TOKENS;
    for (uint32_t i = 0; i < c->layer_count; i++) bytes += 2ull * model_kv_dim(c, i) * KV_PAGE_TOKENS * cache->element_bytes;
    cache->page_bytes = (bytes + 63) / 64 * 64;
    cache->slot_bytes = cache->page_bytes * (cache->ring_tokens / KV_PAGE_TOKENS);
    return 0;
}

/* Bytes from a page's start to K (or V) of a head of a layer. */
static uint64_t head_offset(const struct dspark *d, uint32_t layer, uint32_t head, bool value)
{
    const struct model_config *c = &d->weights->config.layers;
    uint64_t elements = 0;

    for (uint32_t i = 0; i < layer; i++) elements += 2ull * model_kv_dim(c, i);
    elements += value ? model_kv_dim(c, layer) : 0;
    return (elements + (uint64_t)head * c->layer[layer].head_dim) * KV_PAGE_TOKENS * d->cache->element_bytes;
}

/* ---- open and close --------------------------------------------------------------------------------- */

static int make_room(struct dspark *d)
{
    const struct dspark_config *s = &d->weights->config;
    const struct model_config *c = &s->layers;
    const uint64_t lines = d->lines_max, hidden = c->hidden, q = model_q_dim(c, 0), kv = model_kv_dim(c, 0), guesses = (uint64_t)d->rows_max * s->block;
    const uint32_t pages = d->cache->ring_tokens / KV_PAGE_TOKENS;
    const struct { float **at; uint64_t floats; } parts[] = {
        {&d->sources, lines * dspark_feature_floats(s)}, {&d->x, lines * hidden}, {&d->y, lines * hidden}, {&d->normed, lines * hidden}, {&d->q, lines * q},
        {&d->attended, lines * q}, {&d->k, lines * kv}, {&d->v, lines * kv}, {&d->gate, lines * c->intermediate}, {&d->up, lines * c->intermediate},
        {&d->cosine, lines * d->rope.turned}, {&d->sine, lines * d->rope.turned}, {&d->chosen, guesses * (hidden > s->markov_rank ? hidden : s->markov_rank)},
        {&d->base, guesses * c->vocab},
    };
    uint64_t floats = 0;

    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) floats += (parts[i].floats + 15) / 16 * 16;
    d->memory = aligned_alloc(64, floats * sizeof(float));
    d->scratch = malloc(sizeof *d->scratch * pool_threads(d->math.pool));
    d->pages = malloc(sizeof *d->pages * pages);
    d->positions = malloc(sizeof *d->positions * lines);
    d->caches = malloc(sizeof *d->caches * lines);
    if (!d->memory || !d->scratch || !d->pages || !d->positions || !d->caches) return -E_NOMEM;
    floats = 0;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        *parts[i].at = d->memory + floats;
        floats += (parts[i].floats + 15) / 16 * 16;
    }
    for (uint32_t i = 0; i < pages; i++) d->pages[i] = i;
    return 0;
}

int dspark_open(struct dspark **out, const struct dspark_weights *weights, const struct dspark_cache *cache, const struct forward_options *options)
{
    const struct model_config *c = &weights->config.layers;
    const struct kernels *kernels = kernels_get((enum kernels_isa)options->kernels);
    struct dspark *d;

    *out = NULL;
    if (options->rows_max == 0 || options->rows_max > DSPARK_BLOCKS_MAX) return -E_RANGE;
    if (!kernels) return -E_UNSUPPORTED;
    if (!(d = calloc(1, sizeof *d))) return -E_NOMEM;
    d->weights = weights;
    d->cache = cache;
    d->math.kernels = kernels;
    d->rows_max = options->rows_max;
    d->lines_max = options->rows_max * weights->config.block;
    if (d->lines_max < ABSORB_ROWS_MIN) d->lines_max = ABSORB_ROWS_MIN;
    rope_table_init(&d->rope, &c->rope[LAYER_FULL], c->layer[0].head_dim);
    int rc = pool_open(&d->math.pool, options->threads, (int)options->pin);
    if (rc == 0) rc = make_room(d);
    if (rc != 0) {
        dspark_close(d);
        return rc;
    }
    *out = d;
    return 0;
}

void dspark_close(struct dspark *d)
{
    if (!d) return;
    if (d->math.pool) pool_close(d->math.pool);
    free(d->scratch);
    free(d->pages);
    free(d->positions);
    free(d->caches);
    free(d->memory);
    free(d);
}

void dspark_set_hook(struct dspark *d, dspark_hidden_fn *fn, void *context)
{
    d->hook = fn;
    d->hook_context = context;
}

/* ---- keys and values ---------------------------------------------------------------------------------- */

static void find_angles(struct dspark *d, uint32_t lines)
{
    for (uint64_t r = 0; r < lines; r++) rope_table_angles(&d->rope, d->positions[r], d->cosine + r * d->rope.turned, d->sine + r * d->rope.turned);
}

/* Keys and values of the lines `from` [lines, hidden] in one layer, into the caches of positions[] and caches[]. */
static void put_keys(struct dspark *d, uint32_t layer, const float *from, uint32_t lines)
{
    const struct model_config *c = &d->weights->config.layers;
    const struct layer_config *l = &c->layer[layer];
    const enum kernels_dtype dtype = (enum kernels_dtype)d->cache->dtype;
    const uint32_t kv = model_kv_dim(c, layer);

    drafter_multiply(&d->math, d->k, from, &d->weights->layer[layer].k, lines);
    for (uint64_t r = 0; r < lines; r++) {
        const uint32_t place = d->positions[r] % d->cache->ring_tokens;
        uint8_t *page = (uint8_t *)d->caches[r] + place / KV_PAGE_TOKENS * d->cache->page_bytes;
        for (uint32_t h = 0; h < l->kv_heads; h++) {
            float *k = d->k + r * kv + h * l->head_dim, *v = d->v + r * kv + h * l->head_dim;
            const uint64_t at = (uint64_t)place % KV_PAGE_TOKENS * l->head_dim * d->cache->element_bytes;
            d->math.kernels->rmsnorm(v, k, NULL, l->head_dim, c->norm_eps);
            drafter_turn(&d->math, k, d->weights->layer[layer].k_norm, 1, l->head_dim, c->norm_eps, &d->rope, d->cosine + r * d->rope.turned, d->sine + r * d->rope.turned);
            d->math.kernels->narrow(page + head_offset(d, layer, h, false) + at, dtype, k, l->head_dim);
            d->math.kernels->narrow(page + head_offset(d, layer, h, true) + at, dtype, v, l->head_dim);
        }
    }
}

static void absorb_lines(struct dspark *d, const struct dspark_feature *rows, uint32_t lines)
{
    const struct dspark_weights *w = d->weights;
    const struct model_config *c = &w->config.layers;
    const uint32_t floats = dspark_feature_floats(&w->config);
    const struct drafter_rows activations = {.count = lines, .x = d->x, .normed = d->normed};

    for (uint32_t r = 0; r < lines; r++) {
        memcpy(d->sources + (uint64_t)r * floats, rows[r].feature, floats * sizeof(float));
        d->positions[r] = rows[r].position;
        d->caches[r] = rows[r].cache;
    }
    find_angles(d, lines);
    drafter_multiply(&d->math, d->x, d->sources, &w->fc, lines);
    drafter_norm(&d->math, c, &activations, w->hidden_norm);
    if (d->hook) d->hook(d->hook_context, -1, d->normed, lines);
    for (uint32_t i = 0; i < c->layer_count; i++) put_keys(d, i, d->normed, lines);
}

int dspark_absorb(struct dspark *d, const struct dspark_feature *rows, uint32_t count)
{
    for (uint32_t r = 0; r < count; r++)
        if (rows[r].position >= d->cache->max_context) return -E_RANGE;
    d->count = 0; /* the states of the last block are overwritten */
    for (uint32_t r = 0; r < count; r += d->lines_max) absorb_lines(d, rows + r, count - r < d->lines_max ? count - r : d->lines_max);
    return 0;
}

/* ---- a block ------------------------------------------------------------------------------------------- */

struct attention { struct dspark *d; uint32_t layer, cuts; };

/* Up to KERNELS_QUERIES_MAX queries of one kv head of one block. */
static void attention_task(void *context, uint32_t task, uint32_t thread)
{
    const struct attention *t = context;
    struct dspark *d = t->d;
    const struct model_config *c = &d->weights->config.layers;
    const struct layer_config *l = &c->layer[t->layer];
    const uint32_t block = d->weights->config.block, group = c->q_heads / l->kv_heads;
    const uint32_t b = task / (t->cuts * l->kv_heads), kv_head = task / t->cuts % l->kv_heads, from = task % t->cuts * KERNELS_QUERIES_MAX;
    const struct dspark_row *row = &d->rows[b];
    const uint32_t start = row->position, far = start > d->cache->window ? start - d->cache->window : 0, first = row->low > far ? row->low : far;
    const struct attention_keys keys = {
        .arena = row->cache, .pages = d->pages, .page_bytes = d->cache->page_bytes, .k_offset = head_offset(d, t->layer, kv_head, false),
        .v_offset = head_offset(d, t->layer, kv_head, true), .page_tokens = KV_PAGE_TOKENS, .ring_tokens = d->cache->ring_tokens, .head_dim = l->head_dim,
        .dtype = d->cache->dtype, .scale = c->attention_scale,
    };
    struct attention_query query[KERNELS_QUERIES_MAX];
    uint32_t n = 0;

    for (uint32_t i = from; i < block * group && n < KERNELS_QUERIES_MAX; i++) {
        const uint64_t line = (uint64_t)b * block + i / group, at = (line * c->q_heads + kv_head * group + i % group) * l->head_dim;
        query[n++] = (struct attention_query){d->q + at, d->attended + at, first, start + block - 1};
    }
    d->math.kernels->attention(query, n, &keys, &d->scratch[thread]);
}

static void run_layer(struct dspark *d, uint32_t i, uint32_t lines)
{
    const struct dspark_weights *w = d->weights;
    const struct model_config *c = &w->config.layers;
    const struct dspark_layer *l = &w->layer[i];
    const uint32_t q = model_q_dim(c, i), dim = c->layer[i].head_dim, kv_heads = c->layer[i].kv_heads, per_head = w->config.block * c->q_heads / kv_heads;
    const struct drafter_rows rows = {lines, d->x, d->y, d->normed, d->attended, d->gate, d->up};
    struct attention t = {d, i, (per_head + KERNELS_QUERIES_MAX - 1) / KERNELS_QUERIES_MAX};
    uint64_t keys = 0;

    put_keys(d, i, d->normed, lines);
    drafter_multiply(&d->math, d->q, d->normed, &l->shared.q, lines);
    for (uint64_t r = 0; r < lines; r++)
        drafter_turn(&d->math, d->q + r * q, l->shared.q_norm, c->q_heads, dim, c->norm_eps, &d->rope, d->cosine + r * d->rope.turned, d->sine + r * d->rope.turned);
    for (uint32_t b = 0; b < d->count; b++) keys += d->rows[b].position - d->rows[b].low + w->config.block;
    drafter_tasks(&d->math, attention_task, &t, d->count * kv_heads * t.cuts, 2 * keys * w->config.block * q);
    drafter_finish_layer(&d->math, &l->shared, c, &rows, i + 1 == c->layer_count ? w->norm : w->layer[i + 1].shared.input_norm);
    if (d->hook) d->hook(d->hook_context, (int)i + 1, d->x, lines);
}

static void embed_block(struct dspark *d)
{
    const struct dspark_config *s = &d->weights->config;
    const uint32_t hidden = s->layers.hidden;
    const enum kernels_dtype dtype = d->weights->embed_dtype == DTYPE_BF16 ? KERNELS_BF16 : KERNELS_F32;
    const uint64_t row_bytes = (uint64_t)hidden * (dtype == KERNELS_BF16 ? 2 : 4);

    for (uint32_t b = 0; b < d->count; b++)
        for (uint32_t i = 0; i < s->block; i++) {
            const uint64_t line = (uint64_t)b * s->block + i;
            const uint32_t token = i == 0 ? d->rows[b].token : s->mask_token;
            d->math.kernels->widen(d->x + line * hidden, (const char *)d->weights->embed + token * row_bytes, dtype, d->weights->embed_scale, hidden);
            d->positions[line] = d->rows[b].position + i;
            d->caches[line] = d->rows[b].cache;
        }
    if (d->hook) d->hook(d->hook_context, 0, d->x, d->count * s->block);
}

/* Logits without the Markov head of the first `wanted` rows of each block. */
static void find_base(struct dspark *d)
{
    const struct dspark_config *s = &d->weights->config;
    const struct model_config *c = &s->layers;

    for (uint32_t b = 0; b < d->count; b++)
        memcpy(d->chosen + (uint64_t)b * d->wanted * c->hidden, d->normed + (uint64_t)b * s->block * c->hidden, (uint64_t)d->wanted * c->hidden * sizeof(float));
    drafter_multiply(&d->math, d->base, d->chosen, &d->weights->head, d->count * d->wanted);
    if (c->final_softcap != 0)
        for (uint64_t r = 0; r < d->count * d->wanted; r++) d->math.kernels->softcap(d->base + r * c->vocab, c->final_softcap, c->vocab);
}

static bool row_ok(const struct dspark *d, const struct dspark_row *row)
{
    const struct dspark_config *s = &d->weights->config;

    return row->token < s->layers.vocab && row->low <= row->position && s->block <= d->cache->max_context && row->position <= d->cache->max_context - s->block;
}

int dspark_block(struct dspark *d, const struct dspark_row *rows, uint32_t count, uint32_t wanted)
{
    const struct dspark_config *s = &d->weights->config;

    if (count == 0 || count > d->rows_max || wanted == 0 || wanted > s->block) return -E_RANGE;
    for (uint32_t r = 0; r < count; r++)
        if (!row_ok(d, &rows[r])) return -E_RANGE;
    d->rows = rows;
    d->count = count;
    d->wanted = wanted;
    embed_block(d);
    find_angles(d, count * s->block);
    const struct drafter_rows lines = {.count = count * s->block, .x = d->x, .normed = d->normed};
    drafter_norm(&d->math, &s->layers, &lines, d->weights->layer[0].shared.input_norm);
    for (uint32_t i = 0; i < s->layers.layer_count; i++) run_layer(d, i, count * s->block);
    find_base(d);
    d->rows = NULL;
    return 0;
}

/* ---- guesses ------------------------------------------------------------------------------------------- */

static bool guess_ok(const struct dspark *d, const struct dspark_guess *g)
{
    return g->row < d->count && g->index < d->wanted && g->previous < d->weights->config.layers.vocab;
}

/* W1[token] */
static void markov_row(const struct dspark *d, float *out, uint32_t token)
{
    const enum kernels_dtype dtype = d->weights->markov_dtype == DTYPE_BF16 ? KERNELS_BF16 : KERNELS_F32;
    const uint32_t rank = d->weights->config.markov_rank;

    d->math.kernels->widen(out, (const char *)d->weights->markov_in + (uint64_t)token * rank * (dtype == KERNELS_BF16 ? 2 : 4), dtype, 1.0f, rank);
}

int dspark_logits(struct dspark *d, const struct dspark_guess *guesses, uint32_t count, float *logits)
{
    const struct dspark_config *s = &d->weights->config;
    const uint64_t vocab = s->layers.vocab;

    if (count == 0 || count > d->rows_max) return -E_RANGE;
    for (uint32_t i = 0; i < count; i++)
        if (!guess_ok(d, &guesses[i])) return -E_RANGE;
    if (s->markov_rank > 0) {
        for (uint32_t i = 0; i < count; i++) markov_row(d, d->chosen + (uint64_t)i * s->markov_rank, guesses[i].previous);
        drafter_multiply(&d->math, logits, d->chosen, &d->weights->markov_out, count);
    } else memset(logits, 0, count * vocab * sizeof *logits);
    for (uint32_t i = 0; i < count; i++) {
        const float *base = d->base + ((uint64_t)guesses[i].row * d->wanted + guesses[i].index) * vocab;
        float *out = logits + i * vocab;
        for (uint64_t t = 0; t < vocab; t++) out[t] += base[t]; /* behind the cap: the sum is not capped */
    }
    return 0;
}

float dspark_confidence(const struct dspark *d, const struct dspark_guess *g)
{
    const struct dspark_weights *w = d->weights;
    const uint32_t hidden = w->config.layers.hidden;
    float token[DSPARK_RANK_MAX], sum;
    double total;

    if (!guess_ok(d, g)) return -E_RANGE;
    if (!w->confidence) return 1;
    d->math.kernels->linear(&sum, 1, d->normed + ((uint64_t)g->row * w->config.block + g->index) * hidden, hidden, 1, w->confidence, KERNELS_F32, hidden, 0, 1);
    total = (double)sum + w->confidence_bias;
    if (w->config.confidence_sees_token) {
        markov_row(d, token, g->previous);
        d->math.kernels->linear(&sum, 1, token, w->config.markov_rank, 1, w->confidence + hidden, KERNELS_F32, w->config.markov_rank, 0, 1);
        total += sum;
    }
    return (float)(1 / (1 + exp(-total)));
}
