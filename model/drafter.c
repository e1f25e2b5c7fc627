/* model/drafter.c - see drafter.h. */
#include "model/drafter.h"

#include "model/quantize.h"
#include "shm/error.h"

#include <stdio.h>
#include <stdlib.h>

#define CHUNK_COLUMNS 64u             /* of a product: what one task computes */
#define MACS_PARALLEL (1u << 20)      /* below this many multiply-adds a loop is not worth waking threads */
#define NAME_BYTES 160
#define VECTORS_PER_LAYER 4u          /* norms of `hidden` numbers */
#define HEAD_VECTORS 2u               /* norms of one head: q, k */

/* ---- tensors ------------------------------------------------------------------------------ */

uint64_t drafter_layer_floats(const struct model_config *c)
{
    return (uint64_t)c->layer_count * (VECTORS_PER_LAYER * c->hidden + HEAD_VECTORS * MODEL_HEAD_DIM_MAX + 1);
}

const struct tensor *drafter_tensor(struct drafter_binder *b, const char *name, uint64_t rows, uint64_t columns)
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

const float *drafter_vector(struct drafter_binder *b, const char *name, uint32_t count)
{
    const struct tensor *found = safetensors_find(b->source.index, name);
    const bool lies = found && found->rank == 2 && found->shape[0] == 1; /* a matrix of one row */
    const struct tensor *t = drafter_tensor(b, name, lies ? 1 : count, lies ? count : 1);
    float *own = b->room;

    if (!t) return NULL;
    for (uint32_t i = 0; i < count; i++) own[i] = t->dtype == DTYPE_F32 ? ((const float *)t->data)[i] : stored_from_bf16(((const uint16_t *)t->data)[i]);
    b->room += count;
    return own;
}

void drafter_matrix(struct drafter_binder *b, struct stored_matrix *m, const char *name, uint32_t rows, uint32_t k)
{
    if (b->rc != 0) return;
    b->rc = format_matrix(m, &b->source, name, rows, k);
    if (b->rc == 0) *b->bytes += stored_bytes(m);
}

void drafter_bind_layer(struct drafter_binder *b, struct drafter_layer *l, const struct model_config *c, uint32_t i, const char *prefix)
{
    const uint32_t q = model_q_dim(c, i);
    char name[NAME_BYTES];

#define NAMED(suffix) (snprintf(name, sizeof name, "%slayers.%u." suffix, prefix, i), name)
    drafter_matrix(b, &l->q, NAMED("self_attn.q_proj"), q, c->hidden);
    drafter_matrix(b, &l->o, NAMED("self_attn.o_proj"), c->hidden, q);
    drafter_matrix(b, &l->gate, NAMED("mlp.gate_proj"), c->intermediate, c->hidden);
    drafter_matrix(b, &l->up, NAMED("mlp.up_proj"), c->intermediate, c->hidden);
    drafter_matrix(b, &l->down, NAMED("mlp.down_proj"), c->hidden, c->intermediate);
    l->q_norm = drafter_vector(b, NAMED("self_attn.q_norm.weight"), c->layer[i].head_dim);
    l->input_norm = drafter_vector(b, NAMED("input_layernorm.weight"), c->hidden);
    l->post_attention_norm = drafter_vector(b, NAMED("post_attention_layernorm.weight"), c->hidden);
    l->pre_feedforward_norm = drafter_vector(b, NAMED("pre_feedforward_layernorm.weight"), c->hidden);
    l->post_feedforward_norm = drafter_vector(b, NAMED("post_feedforward_layernorm.weight"), c->hidden);
    const float *scalar = drafter_vector(b, NAMED("layer_scalar"), 1);
    l->scalar = scalar ? *scalar : 1.0f;
#undef NAMED
}

struct stored_matrix drafter_plain(const void *data, enum tensor_dtype dtype, uint32_t rows, uint32_t k)
{
    return (struct stored_matrix){.data = data, .rows = rows, .k = k, .element = dtype == DTYPE_F32 ? STORED_F32 : STORED_BF16};
}

/* ---- FP8 --------------------------------------------------------------------------------- */

#define ROUND_ROWS 64u                /* of a matrix: what one task rounds */

static bool is_plain(const struct stored_matrix *m) { return m->data && (m->element == STORED_BF16 || m->element == STORED_F32); }

static uint64_t codes_bytes(const struct stored_matrix *m) { return ((uint64_t)m->rows * m->k + 63) / 64 * 64; }
static uint64_t scales_bytes(const struct stored_matrix *m) { return ((uint64_t)m->rows * sizeof(float) + 63) / 64 * 64; }

static void round_task(void *context, uint32_t task, uint32_t thread)
{
    const struct quantize_job *job = context;
    const uint32_t begin = task * ROUND_ROWS, end = begin + ROUND_ROWS < job->from->rows ? begin + ROUND_ROWS : job->from->rows;

    (void)thread;
    quantize_rows(job, begin, end);
}

int drafter_to_fp8(struct stored_matrix *const *matrices, uint32_t count, uint32_t threads, void **owned)
{
    struct pool *pool = NULL;
    uint64_t bytes = 64;

    *owned = NULL;
    for (uint32_t i = 0; i < count; i++)
        if (is_plain(matrices[i])) bytes += codes_bytes(matrices[i]) + scales_bytes(matrices[i]);
    const int rc = pool_open(&pool, threads, 0);
    if (rc != 0) return rc;
    uint8_t *room = aligned_alloc(64, bytes);
    for (uint32_t i = 0; i < count && room; i++) {
        struct stored_matrix *m = matrices[i];
        if (!is_plain(m)) continue;
        struct quantize_job job = {.from = m, .format = QUANTIZE_FP8_ROW, .codes = *owned ? room : (*owned = room), .scales = room + codes_bytes(m)};
        pool_run(pool, round_task, &job, (m->rows + ROUND_ROWS - 1) / ROUND_ROWS);
        room += codes_bytes(m) + scales_bytes(m);
        *m = (struct stored_matrix){.data = job.codes, .scale = job.scales, .rows = m->rows, .k = m->k, .scale_rows = 1, .scale_columns = m->k, .element = STORED_E4M3};
    }
    pool_close(pool);
    return room ? 0 : -E_NOMEM;
}

/* ---- arithmetic ------------------------------------------------------------------------------ */

void drafter_tasks(const struct drafter_math *math, pool_task_fn *fn, void *context, uint32_t task_count, uint64_t macs)
{
    if (macs >= MACS_PARALLEL) pool_run(math->pool, fn, context, task_count);
    else for (uint32_t i = 0; i < task_count; i++) fn(context, i, 0);
}

struct product { const struct drafter_math *math; float *y; const float *x; const struct stored_matrix *m; uint32_t rows; };

static void product_task(void *context, uint32_t task, uint32_t thread)
{
    const struct product *p = context;
    const uint32_t begin = task * CHUNK_COLUMNS, end = begin + CHUNK_COLUMNS < p->m->rows ? begin + CHUNK_COLUMNS : p->m->rows;

    (void)thread;
    if (p->m->element == STORED_BF16 || p->m->element == STORED_F32)
        p->math->kernels->linear(p->y, p->m->rows, p->x, p->m->k, p->rows, p->m->data, (enum kernels_dtype)p->m->element, p->m->k, begin, end);
    else p->math->kernels->linear_stored(p->y, p->m->rows, p->x, p->m->k, NULL, p->rows, p->m, begin, end);
}

void drafter_multiply(const struct drafter_math *math, float *y, const float *x, const struct stored_matrix *m, uint32_t rows)
{
    struct product p = {math, y, x, m, rows};

    drafter_tasks(math, product_task, &p, (m->rows + CHUNK_COLUMNS - 1) / CHUNK_COLUMNS, (uint64_t)rows * m->rows * m->k);
}

void drafter_turn(const struct drafter_math *math, float *heads, const float *weight, uint32_t count, uint32_t dim, float eps, const struct rope_table *rope,
                  const float *cosine, const float *sine)
{
    for (uint32_t i = 0; i < count; i++) {
        math->kernels->rmsnorm(heads + (uint64_t)i * dim, heads + (uint64_t)i * dim, weight, dim, eps);
        math->kernels->rope(heads + (uint64_t)i * dim, cosine, sine, rope->half, rope->turned);
    }
}

/* x = (x + norm(y, post)) * scalar, then normed = norm(x, next). */
static void join(const struct drafter_math *math, const struct model_config *c, const struct drafter_rows *rows, const float *post, float scalar, const float *next)
{
    for (uint32_t r = 0; r < rows->count; r++) {
        const uint64_t at = (uint64_t)r * c->hidden;
        math->kernels->rmsnorm(rows->y + at, rows->y + at, post, c->hidden, c->norm_eps);
        math->kernels->add_scaled(rows->x + at, rows->y + at, scalar, c->hidden);
        math->kernels->rmsnorm(rows->normed + at, rows->x + at, next, c->hidden, c->norm_eps);
    }
}

void drafter_norm(const struct drafter_math *math, const struct model_config *c, const struct drafter_rows *rows, const float *weight)
{
    for (uint64_t r = 0; r < rows->count; r++) math->kernels->rmsnorm(rows->normed + r * c->hidden, rows->x + r * c->hidden, weight, c->hidden, c->norm_eps);
}

void drafter_finish_layer(const struct drafter_math *math, const struct drafter_layer *l, const struct model_config *c, const struct drafter_rows *rows, const float *next_norm)
{
    drafter_multiply(math, rows->y, rows->attended, &l->o, rows->count);
    join(math, c, rows, l->post_attention_norm, 1.0f, l->pre_feedforward_norm);
    drafter_multiply(math, rows->gate, rows->normed, &l->gate, rows->count);
    drafter_multiply(math, rows->up, rows->normed, &l->up, rows->count);
    for (uint64_t r = 0; r < rows->count; r++) math->kernels->geglu(rows->gate + r * c->intermediate, rows->up + r * c->intermediate, c->intermediate);
    drafter_multiply(math, rows->y, rows->gate, &l->down, rows->count);
    join(math, c, rows, l->post_feedforward_norm, l->scalar, next_norm);
}
