/* model/siglip_run.c - runs the SigLIP tower: parallel loops over blocks of patches, and in between over heads and blocks of queries.
 *
 * Owns     x, the heads' queries, keys, values and results of one picture, and a piece of scratch for each thread: siglip_bytes()
 * Fails    not at all once it is open. Heads are padded with zeros to HEAD_ALIGN: neither a score nor a value changes by them. Keys stand dimension by dimension (attention_keys.turned). */
#include "model/siglip.h"

#include "model/embedder.h"
#include "shm/error.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define ROWS 32u                      /* patches of one task */
#define HEAD_ALIGN 16u                /* kernels/cpu/attention.h */
#define PAGE KERNELS_SEGMENT          /* keys of a page */

struct siglip {
    const struct siglip_weights *w;   /* borrowed, as the next two */
    const struct kernels *kernels;
    struct pool *pool;
    uint32_t count, head, head_room, page_count;   /* patches; elements of a head, and with its padding; pages of its keys */
    float *memory;                    /* all of the following */
    float *x;                         /* [count][hidden] */
    float *q, *attended;              /* [count][heads][head_room] */
    float *kv;                        /* [heads][page_count][keys [head_room][PAGE], values [PAGE][head_room]] */
    float *ones;                      /* [inner] */
    float *thread;                    /* [threads][thread_floats] */
    uint64_t thread_floats;
    struct attention_scratch *attention;   /* [threads] */
    uint32_t *pages;                  /* 0, 1, 2 .. */
    const struct siglip_layer *layer; /* of the loop that runs */
    const uint8_t *rgb;
    float *out;
    void (*progress)(void *context);  /* or NULL */
    void *progress_context;
};

static uint32_t up(uint32_t n, uint32_t align) { return (n + align - 1) / align * align; }
static uint32_t patch_room(const struct siglip_config *c) { return up(c->patch * c->patch * 3, KERNELS_LANES); }

struct sizes { uint64_t x, q, kv, thread, total; };   /* floats */

static struct sizes sizes_of(const struct siglip_config *c, uint32_t threads)
{
    const uint64_t count = (uint64_t)c->side * c->side, head_room = up(c->hidden / c->heads, HEAD_ALIGN), pages = (count + PAGE - 1) / PAGE;
    const uint64_t wide = c->inner > patch_room(c) ? c->inner : patch_room(c);
    struct sizes s = {.x = count * c->hidden, .q = count * c->heads * head_room, .kv = c->heads * pages * 2 * PAGE * head_room, .thread = ROWS * (wide + 2 * (uint64_t)c->hidden)};

    s.total = s.x + 2 * s.q + s.kv + c->inner + threads * s.thread;
    return s;
}

uint64_t siglip_bytes(const struct siglip_config *c, uint32_t threads)
{
    const uint64_t pages = ((uint64_t)c->side * c->side + PAGE - 1) / PAGE;

    return sizes_of(c, threads).total * sizeof(float) + threads * sizeof(struct attention_scratch) + pages * sizeof(uint32_t) + sizeof(struct siglip);
}

int siglip_open(struct siglip **out, const struct siglip_weights *w, const struct kernels *kernels, struct pool *pool)
{
    const struct siglip_config *c = &w->config;

    if (c->image == 0) return -E_RANGE;
    const uint32_t threads = pool_threads(pool);
    const struct sizes n = sizes_of(c, threads);
    struct siglip *s = calloc(1, sizeof *s);
    if (!s) return -E_NOMEM;
    *s = (struct siglip){.w = w, .kernels = kernels, .pool = pool, .count = c->side * c->side, .head = c->hidden / c->heads, .thread_floats = n.thread};
    s->head_room = up(s->head, HEAD_ALIGN);
    s->page_count = (s->count + PAGE - 1) / PAGE;
    s->memory = calloc(n.total, sizeof *s->memory);   /* zeros: the padding of the heads is never written */
    s->attention = malloc(threads * sizeof *s->attention);
    s->pages = malloc(s->page_count * sizeof *s->pages);
    if (!s->memory || !s->attention || !s->pages) {
        siglip_close(s);
        return -E_NOMEM;
    }
    s->x = s->memory;
    s->q = s->x + n.x;
    s->attended = s->q + n.q;
    s->kv = s->attended + n.q;
    s->ones = s->kv + n.kv;
    s->thread = s->ones + c->inner;
    for (uint32_t i = 0; i < c->inner; i++) s->ones[i] = 1.0f;
    for (uint32_t i = 0; i < s->page_count; i++) s->pages[i] = i;
    *out = s;
    return 0;
}

void siglip_close(struct siglip *s)
{
    if (!s) return;
    free(s->memory);
    free(s->attention);
    free(s->pages);
    free(s);
}

static uint32_t rows_of(const struct siglip *s, uint32_t task) { return s->count - task * ROWS < ROWS ? s->count - task * ROWS : ROWS; }
static uint32_t row_tasks(const struct siglip *s) { return (s->count + ROWS - 1) / ROWS; }

static void add(float *y, const float *bias, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) y[i] += bias[i];
}

/* Pixels of a block of patches to rows of the stream. A level v becomes (v - 127.5) / 127.5. */
static void embed_task(void *context, uint32_t task, uint32_t thread)
{
    struct siglip *s = context;
    const struct siglip_config *c = &s->w->config;
    const uint32_t first = task * ROWS, rows = rows_of(s, task), room = patch_room(c), area = c->patch * c->patch;
    float *pixels = s->thread + thread * s->thread_floats, *x = s->x + (uint64_t)first * c->hidden;

    memset(pixels, 0, (uint64_t)rows * room * sizeof *pixels);
    for (uint32_t r = 0; r < rows; r++) {
        const uint32_t top = (first + r) / c->side * c->patch, left = (first + r) % c->side * c->patch;
        for (uint32_t y = 0; y < c->patch; y++)
            for (uint32_t i = 0; i < c->patch * 3; i++) {
                const uint8_t level = s->rgb[((uint64_t)(top + y) * c->image + left) * 3 + i];
                pixels[(uint64_t)r * room + i % 3 * area + y * c->patch + i / 3] = ((float)level - 127.5f) / 127.5f;
            }
    }
    s->kernels->linear(x, c->hidden, pixels, room, rows, s->w->patch, KERNELS_F32, room, 0, c->hidden);
    for (uint32_t r = 0; r < rows; r++) {
        add(x + (uint64_t)r * c->hidden, s->w->patch_bias, c->hidden);
        add(x + (uint64_t)r * c->hidden, s->w->position + (uint64_t)(first + r) * c->hidden, c->hidden);
    }
}

/* The keys of the page of patch `row`, those of a head; values: PAGE * head_room further. */
static float *page_of(const struct siglip *s, uint32_t head, uint32_t row)
{
    return s->kv + ((uint64_t)head * s->page_count + row / PAGE) * 2 * PAGE * s->head_room;
}

/* One head's query, key or value of a patch to where attention looks for it: keys dimension by dimension. */
static void place_head(struct siglip *s, uint32_t part, uint32_t head, uint32_t row, const float *from)
{
    float *page = page_of(s, head, row);

    if (part == 0) memcpy(s->q + ((uint64_t)row * s->w->config.heads + head) * s->head_room, from, s->head * sizeof *from);
    else if (part == 2) memcpy(page + (uint64_t)(PAGE + row % PAGE) * s->head_room, from, s->head * sizeof *from);
    else
        for (uint32_t d = 0; d < s->head; d++) page[(uint64_t)d * PAGE + row % PAGE] = from[d];
}

static void heads_task(void *context, uint32_t task, uint32_t thread)
{
    struct siglip *s = context;
    const struct siglip_config *c = &s->w->config;
    const struct siglip_layer *l = s->layer;
    const struct { const struct stored_matrix *matrix; const float *bias; } parts[] = {{&l->q, l->q_bias}, {&l->k, l->k_bias}, {&l->v, l->v_bias}};
    const uint32_t first = task * ROWS, rows = rows_of(s, task);
    float *normed = s->thread + thread * s->thread_floats, *y = normed + (uint64_t)ROWS * c->hidden;

    for (uint32_t r = 0; r < rows; r++)
        embedder_layer_norm(normed + (uint64_t)r * c->hidden, s->x + (uint64_t)(first + r) * c->hidden, l->ln1_weight, l->ln1_bias, c->hidden, c->eps);
    for (uint32_t part = 0; part < 3; part++) {
        embedder_multiply(s->kernels, y, normed, rows, parts[part].matrix);
        for (uint32_t r = 0; r < rows; r++) {
            add(y + (uint64_t)r * c->hidden, parts[part].bias, c->hidden);
            for (uint32_t h = 0; h < c->heads; h++) place_head(s, part, h, first + r, y + (uint64_t)r * c->hidden + h * s->head);
        }
    }
}

static void attention_task(void *context, uint32_t task, uint32_t thread)
{
    struct siglip *s = context;
    const uint32_t heads = s->w->config.heads, head = task % heads, first = task / heads * KERNELS_QUERIES_MAX;
    const uint32_t count = s->count - first < KERNELS_QUERIES_MAX ? s->count - first : KERNELS_QUERIES_MAX;
    const uint64_t page_floats = 2ull * PAGE * s->head_room;
    const struct attention_keys keys = {
        .arena = (const uint8_t *)(s->kv + head * s->page_count * page_floats), .pages = s->pages, .page_bytes = page_floats * sizeof(float),
        .v_offset = (uint64_t)PAGE * s->head_room * sizeof(float), .page_tokens = PAGE, .ring_tokens = UINT32_MAX / PAGE * PAGE,
        .head_dim = s->head_room, .dtype = KERNELS_F32, .turned = s->head, .scale = (float)(1.0 / sqrt((double)s->head)),
    };
    struct attention_query query[KERNELS_QUERIES_MAX];

    for (uint32_t i = 0; i < count; i++) {
        const uint64_t at = ((uint64_t)(first + i) * heads + head) * s->head_room;
        query[i] = (struct attention_query){s->q + at, s->attended + at, 0, s->count - 1};
    }
    s->kernels->attention(query, count, &keys, &s->attention[thread]);
}

/* What the heads found goes into the stream, then the MLP. */
static void rest_task(void *context, uint32_t task, uint32_t thread)
{
    struct siglip *s = context;
    const struct siglip_config *c = &s->w->config;
    const struct siglip_layer *l = s->layer;
    const uint32_t first = task * ROWS, rows = rows_of(s, task);
    float *a = s->thread + thread * s->thread_floats, *b = a + (uint64_t)ROWS * c->hidden, *wide = b + (uint64_t)ROWS * c->hidden;
    float *x = s->x + (uint64_t)first * c->hidden;

    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t h = 0; h < c->heads; h++)
            memcpy(a + (uint64_t)r * c->hidden + h * s->head, s->attended + ((uint64_t)(first + r) * c->heads + h) * s->head_room, s->head * sizeof *a);
    embedder_multiply(s->kernels, b, a, rows, &l->out);
    for (uint32_t r = 0; r < rows; r++) {
        float *row = x + (uint64_t)r * c->hidden;
        add(b + (uint64_t)r * c->hidden, l->out_bias, c->hidden);
        add(row, b + (uint64_t)r * c->hidden, c->hidden);
        embedder_layer_norm(a + (uint64_t)r * c->hidden, row, l->ln2_weight, l->ln2_bias, c->hidden, c->eps);
    }
    embedder_multiply(s->kernels, wide, a, rows, &l->fc1);
    for (uint32_t r = 0; r < rows; r++) {
        add(wide + (uint64_t)r * c->inner, l->fc1_bias, c->inner);
        s->kernels->geglu(wide + (uint64_t)r * c->inner, s->ones, c->inner);
    }
    embedder_multiply(s->kernels, b, wide, rows, &l->fc2);
    for (uint32_t r = 0; r < rows; r++) {
        add(b + (uint64_t)r * c->hidden, l->fc2_bias, c->hidden);
        add(x + (uint64_t)r * c->hidden, b + (uint64_t)r * c->hidden, c->hidden);
    }
}

static void last_norm_task(void *context, uint32_t task, uint32_t thread)
{
    struct siglip *s = context;
    const struct siglip_config *c = &s->w->config;

    (void)thread;
    for (uint32_t r = 0; r < rows_of(s, task); r++) {
        float *row = s->x + (uint64_t)(task * ROWS + r) * c->hidden;
        embedder_layer_norm(row, row, s->w->post_weight, s->w->post_bias, c->hidden, c->eps);
    }
}

/* One row of soft tokens: the mean of each square of patches, normed, projected. */
static void project_task(void *context, uint32_t task, uint32_t thread)
{
    struct siglip *s = context;
    const struct siglip_config *c = &s->w->config;
    const uint32_t square = c->side / c->tokens_side;
    float *mean = s->thread + thread * s->thread_floats;

    for (uint32_t t = 0; t < c->tokens_side; t++) {
        memset(mean, 0, c->hidden * sizeof *mean);
        for (uint32_t i = 0; i < square * square; i++)
            add(mean, s->x + ((uint64_t)(task * square + i / square) * c->side + t * square + i % square) * c->hidden, c->hidden);
        for (uint32_t k = 0; k < c->hidden; k++) mean[k] /= (float)(square * square);
        s->kernels->rmsnorm(mean, mean, s->w->norm, c->hidden, c->eps);
        s->kernels->linear(s->out + (uint64_t)(task * c->tokens_side + t) * c->text_hidden, c->text_hidden, mean, c->hidden, 1, s->w->projection, KERNELS_F32, c->hidden, 0, c->text_hidden);
    }
}

void siglip_set_progress(struct siglip *s, void (*progress)(void *context), void *context)
{
    s->progress = progress;
    s->progress_context = context;
}

static void run(struct siglip *s, pool_task_fn *task, uint32_t count)
{
    pool_run(s->pool, task, s, count);
    if (s->progress) s->progress(s->progress_context);
}

void siglip_embed(struct siglip *s, const uint8_t *rgb, float *out)
{
    const struct siglip_config *c = &s->w->config;

    s->rgb = rgb;
    s->out = out;
    run(s, embed_task, row_tasks(s));
    for (uint32_t i = 0; i < c->layers; i++) {
        s->layer = &s->w->layer[i];
        run(s, heads_task, row_tasks(s));
        run(s, attention_task, (s->count + KERNELS_QUERIES_MAX - 1) / KERNELS_QUERIES_MAX * c->heads);
        run(s, rest_task, row_tasks(s));
    }
    run(s, last_norm_task, row_tasks(s));
    run(s, project_task, c->tokens_side);
}
