/* kernels/cuda/plain.cu - the forward pass of plain.h: scratch, tables of angles, and the order of kernels in a layer.
 *
 *   embed, then per layer: norm, qkv, heads, attention (segments, join), o, norms, gate and up, down, norms; then head, logits
 *
 * As model/forward_layer.c, operation for operation. Every kernel lets its successor start at once and itself waits for its predecessor
 * (plain_launch.cuh); products fetch weights before that wait. */
#include "plain.h"
#include "launch.h"
#include "setup.h"
#include "outputs.h"
#include "plain_attn.cuh"
#include "plain_linear.cuh"
#include "plain_ops.cuh"
#include "kernels/stored.h"
#include "shm/error.h"
#include <cuda_runtime.h>
#include <new>
#include <stdlib.h>

extern "C" {
#include "model/forward_rope.h"
}

#define PART_BYTES_MAX (64ull << 20)  /* attention's parts: more rows go in batches */
#define TABLE_PIECE 4096u             /* positions of a table made at a time */

struct plain {
    struct cuda_model_spec spec;
    struct plain_options options;
    struct plain_arena arena;
    uint32_t segments_max[2], batch_rows[2];
    uint32_t turned[2];               /* pairs in a table: spec's, rounded up to 16 as model/forward_rope.c does */
    float2 *angle[2];                 /* owned; [context_max, turned] */
    uint8_t *slab;                    /* owned; what follows lies in it */
    struct plain_row *row;            /* [rows_max] */
    float *h, *x, *y;                 /* [rows_max, hidden] */
    float *qkv;                       /* [rows_max, widest qkv] */
    float *attended;                  /* [rows_max, widest q] */
    float *gate;                      /* [rows_max, intermediate] */
    float *rounded, *rounded_scale;   /* [rows_max, arena.rounded], [rows_max]: activations as E4M3 codes */
    float *part;
    float2 *part_top;
};

static const float *vector(const struct plain *p, uint64_t offset) { return (const float *)((const uint8_t *)p->options.weights + offset); }
static const void *matrix(const struct plain *p, uint64_t offset) { return (const uint8_t *)p->options.weights + offset; }
static uint32_t head_dim(const struct plain *p, uint32_t layer) { return p->spec.head_dim[p->spec.layer[layer].type]; }
static uint32_t q_rows(const struct plain *p, uint32_t layer) { return p->spec.q_heads * head_dim(p, layer); }
static uint32_t qkv_rows(const struct plain *p, uint32_t layer)
{
    return q_rows(p, layer) + (p->spec.layer[layer].has_v ? 2 : 1) * p->spec.kv_heads[p->spec.layer[layer].type] * head_dim(p, layer);
}

/* Rows whose attention parts fit into PART_BYTES_MAX, at least one. */
static void size_attention(struct plain *p, uint64_t *part, uint64_t *part_top)
{
    for (uint32_t i = 0; i < p->spec.layers; i++) {
        const uint32_t type = p->spec.layer[i].type;
        const uint64_t tops = (uint64_t)p->spec.q_heads * (p->segments_max[type] = plain_attn_segments(p->options.context_max, type == CUDA_FULL ? 0 : p->spec.window + (p->options.soft ? p->options.rows_max : 0)));
        const uint64_t row_bytes = 4 * tops * head_dim(p, i), rows = PART_BYTES_MAX / row_bytes;

        p->batch_rows[type] = rows == 0 ? 1 : rows < p->options.rows_max ? (uint32_t)rows : p->options.rows_max;
        if (p->batch_rows[type] * row_bytes > *part) *part = p->batch_rows[type] * row_bytes;
        if (p->batch_rows[type] * tops * 8 > *part_top) *part_top = p->batch_rows[type] * tops * 8;
    }
}

static int make_scratch(struct plain *p)
{
    const uint64_t rows = p->options.rows_max, hidden = p->spec.hidden;
    uint64_t widest = 0, widest_q = 0, part = 0, part_top = 0;

    for (uint32_t i = 0; i < p->spec.layers; i++) {
        if (qkv_rows(p, i) > widest) widest = qkv_rows(p, i);
        if (q_rows(p, i) > widest_q) widest_q = q_rows(p, i);
    }
    size_attention(p, &part, &part_top);
    const struct setup_part want[] = {
        { (void **)&p->row, rows * sizeof *p->row }, { (void **)&p->h, 4 * rows * hidden }, { (void **)&p->x, 4 * rows * hidden },
        { (void **)&p->y, 4 * rows * hidden }, { (void **)&p->qkv, 4 * rows * widest }, { (void **)&p->attended, 4 * rows * widest_q },
        { (void **)&p->gate, 4 * rows * p->spec.intermediate }, { (void **)&p->part, part }, { (void **)&p->part_top, part_top },
        { (void **)&p->rounded, 4 * rows * p->arena.rounded }, { (void **)&p->rounded_scale, p->arena.rounded ? 4 * rows : 0 },
    };

    return setup_slab(&p->slab, want, sizeof want / sizeof *want, "scratch memory");
}

/* Made by the CPU's own function: the device's sine rounds differently once in a while. */
int plain_angles(float2 **device, const struct rope_table *table, uint32_t context)
{
    float cosine[ROPE_PAIRS_MAX], sine[ROPE_PAIRS_MAX];

    if (table->turned == 0) return 0;
    float2 *host = (float2 *)malloc(sizeof(float2) * TABLE_PIECE * table->turned);
    int rc = host ? launch_check(cudaMalloc((void **)device, sizeof(float2) * context * table->turned), "table of angles") : -E_NOMEM;
    for (uint32_t at = 0; at < context && rc == 0; at += TABLE_PIECE) {
        const uint32_t count = context - at < TABLE_PIECE ? context - at : TABLE_PIECE;

        for (uint32_t i = 0; i < count; i++) {
            rope_table_angles(table, at + i, cosine, sine);
            for (uint32_t j = 0; j < table->turned; j++) host[(uint64_t)i * table->turned + j] = make_float2(cosine[j], sine[j]);
        }
        rc = launch_check(cudaMemcpy(*device + (uint64_t)at * table->turned, host, sizeof(float2) * count * table->turned, cudaMemcpyHostToDevice), "table of angles");
    }
    free(host);
    return rc;
}

static int make_table(struct plain *p, uint32_t type)
{
    const uint32_t dim = p->spec.head_dim[type];
    /* half a pair more than `turned`, so that the cut to whole pairs gives it back whatever the head size */
    const struct rope_config config = { ROPE_PROPORTIONAL, p->spec.rope_theta[type], (p->spec.rope_turned[type] + 0.5) * 2.0 / dim, p->spec.rope_divisor[type] };
    struct rope_table table;

    rope_table_init(&table, &config, dim);
    p->turned[type] = table.turned;
    return plain_angles(&p->angle[type], &table, p->options.context_max);
}

extern "C" int plain_open(struct plain **plain, const struct cuda_model_spec *spec, const struct plain_options *options)
{
    struct plain *p = new (std::nothrow) struct plain();
    bool used[2] = {};

    if (p == NULL) return -E_NOMEM;
    p->spec = *spec;
    p->options = *options;
    int rc = plain_plan(&p->arena, spec);
    if (rc == 0 && (options->rows_max == 0 || options->rows_max > PLAIN_ROWS_LIMIT || options->context_max == 0)) rc = -E_RANGE;
    if (rc == 0) rc = plain_linear_init();
    if (rc == 0) rc = plain_ops_init();
    if (rc == 0) rc = plain_attn_init();
    if (rc == 0) rc = make_scratch(p);
    for (uint32_t i = 0; i < spec->layers && rc == 0; i++) used[spec->layer[i].type] = true;
    for (uint32_t type = 0; type < 2 && rc == 0; type++)
        if (used[type]) rc = make_table(p, type);
    if (rc) plain_close(p), p = NULL;
    *plain = p;
    return rc;
}

extern "C" void plain_close(struct plain *p)
{
    if (p == NULL) return;
    cudaFree(p->angle[0]);
    cudaFree(p->angle[1]);
    cudaFree(p->slab);
    delete p;
}

extern "C" void *plain_residual(struct plain *p) { return p->h; }
extern "C" void *plain_hidden(struct plain *p) { return p->x; }

static struct plain_codes codes(const struct plain *p, const struct plain_matrix *m)
{
    return { matrix(p, m->codes), matrix(p, m->scale), vector(p, m->factor) };
}

/* out = in w^T, `n` rows of w and of what stands behind it; with `up` the gated product. What the matrix wants rounded is rounded first. */
static int product(const struct plain *p, float *out, uint32_t out_stride, const float *in, const struct plain_matrix *w, const struct plain_matrix *up, uint32_t n, uint32_t rows, void *stream)
{
    const struct plain_round round = { in, p->rounded, p->rounded_scale, w->k, w->activation == STORED_STATIC ? w->input_scale : 0.0f };
    const bool rounds = w->activation != STORED_AS_IS;
    const struct plain_linear a = { rounds ? p->rounded : in, rounds ? p->rounded_scale : NULL, codes(p, w), up ? codes(p, up) : plain_codes(), out, w->k, out_stride, rows, n, w->k, w->format };
    const int rc = rounds ? plain_round_launch(&round, rows, stream) : 0;

    return rc ? rc : plain_linear_launch(&a, stream);
}

/* q, k and v side by side. */
static int qkv(const struct plain *p, uint32_t layer, uint32_t rows, void *stream)
{
    const struct plain_layer *l = &p->arena.layer[layer];
    const uint32_t all = qkv_rows(p, layer);
    uint32_t at = 0;
    int rc = 0;

    if (l->stacked) return product(p, p->qkv, all, p->x, &l->matrix[CUDA_Q], NULL, all, rows, stream);
    for (int t = CUDA_Q; t <= CUDA_V && rc == 0; at += l->matrix[t++].rows)
        if (l->matrix[t].rows) rc = product(p, p->qkv + at, all, p->x, &l->matrix[t], NULL, l->matrix[t].rows, rows, stream);
    return rc;
}

static int heads(const struct plain *p, uint32_t layer, const struct plain_row *row, uint32_t rows, void *stream)
{
    const struct cuda_layer_spec *l = &p->spec.layer[layer];
    const uint32_t type = l->type, stride = p->options.pages_stride[type];
    struct plain_heads a = {};

    a.row = row;
    a.qkv = p->qkv;
    a.stride = qkv_rows(p, layer);
    a.q_norm = vector(p, p->arena.layer[layer].q_norm);
    a.k_norm = vector(p, p->arena.layer[layer].k_norm);
    a.angle = p->angle[type];
    a.pool = (uint8_t *)p->options.kv[type];
    a.pages = p->options.pages[type];
    a.page_bytes = p->spec.page_bytes[type];
    a.k_offset = l->k_offset;
    a.v_offset = l->v_offset;
    a.pages_stride = a.ring_pages = stride;
    a.q_heads = p->spec.q_heads;
    a.kv_heads = p->spec.kv_heads[type];
    a.dim = p->spec.head_dim[type];
    a.turned = p->turned[type];
    a.has_v = l->has_v;
    a.has_v_norm = p->spec.has_v_norm;
    a.kv_bytes = p->arena.kv_bytes;
    a.eps = p->spec.norm_eps;
    return plain_heads_launch(&a, rows, stream);
}

static int attend(const struct plain *p, uint32_t layer, const struct plain_row *row, uint32_t rows, void *stream)
{
    const struct cuda_layer_spec *l = &p->spec.layer[layer];
    const uint32_t type = l->type, stride = p->options.pages_stride[type];
    struct plain_attn a = {};

    a.row = row;
    a.q = p->qkv;
    a.q_stride = qkv_rows(p, layer);
    a.out = p->attended;
    a.part = p->part;
    a.part_top = p->part_top;
    a.pool = (const uint8_t *)p->options.kv[type];
    a.pages = p->options.pages[type];
    a.page_bytes = p->spec.page_bytes[type];
    a.k_offset = l->k_offset;
    a.v_offset = l->v_offset;
    a.pages_stride = a.ring_pages = stride;
    a.q_heads = p->spec.q_heads;
    a.kv_heads = p->spec.kv_heads[type];
    a.dim = p->spec.head_dim[type];
    a.kv_bytes = p->arena.kv_bytes;
    a.window = type == CUDA_FULL ? 0 : p->spec.window;
    a.looks_ahead = type == CUDA_SLIDING || p->spec.full_ahead;
    a.segments_max = p->segments_max[type];
    a.batch_rows = p->batch_rows[type];
    a.scale = p->spec.attention_scale;
    return plain_attn_launch(&a, rows, stream);
}

/* The norms behind a product: h = (h + norm(y)) * scalar; x = norm(h) with w_next. */
static int norms(const struct plain *p, float *h, uint64_t w_post, const float *scalar, const float *w_next, uint32_t rows, void *hidden_out, void *stream)
{
    const struct plain_norm a = { p->y, vector(p, w_post), scalar, h, w_next, p->x, (uint16_t *)hidden_out, p->spec.hidden, p->spec.norm_eps };

    return plain_norm_launch(&a, rows, stream);
}

/* Layers [first, end): h in and out, x the normed h that the next layer takes, behind the last layer that of the final norm. Not whole: the last layer
 * ends with K and V. */
static int layers(const struct plain *p, float *h, const struct plain_row *row, uint32_t rows, uint32_t first, uint32_t end, bool whole, void *hidden_out, void *stream)
{
    const struct cuda_model_spec *s = &p->spec;
    int rc = 0;

    for (uint32_t i = first; i < end && rc == 0; i++) {
        const struct plain_layer *l = &p->arena.layer[i];
        const bool last = i + 1 == s->layers;
        const float *next = vector(p, last ? p->arena.final_norm : p->arena.layer[i + 1].input_norm);

        rc = qkv(p, i, rows, stream);
        if (rc == 0) rc = heads(p, i, row, rows, stream);
        if (last && !whole) break;
        if (rc == 0) rc = attend(p, i, row, rows, stream);
        if (rc == 0) rc = product(p, p->y, s->hidden, p->attended, &l->matrix[CUDA_O], NULL, s->hidden, rows, stream);
        if (rc == 0) rc = norms(p, h, l->post_attention_norm, NULL, vector(p, l->pre_ff_norm), rows, NULL, stream);
        if (rc == 0) rc = product(p, p->gate, s->intermediate, p->x, &l->matrix[CUDA_GATE], &l->matrix[CUDA_UP], s->intermediate, rows, stream);
        if (rc == 0) rc = product(p, p->y, s->hidden, p->gate, &l->matrix[CUDA_DOWN], NULL, s->hidden, rows, stream);
        if (rc == 0) rc = norms(p, h, l->post_ff_norm, vector(p, l->scalar), next, rows, last ? hidden_out : NULL, stream);
        if (rc == 0 && p->options.keep && outputs_wanted(p->options.keep, i)) rc = outputs_store_rows(p->options.keep, i, h, row, true, rows, stream);
    }
    return rc;
}

/* The table's rows, and their norm for the first layer. */
static int embed(const struct plain *p, float *h, const struct plain_row *row, uint32_t rows, void *stream)
{
    const struct plain_embed a = { row, matrix(p, p->arena.embed), h, p->spec.hidden, p->arena.weight_bytes, p->spec.embed_scale, p->options.soft };
    const struct plain_norm enter = { NULL, NULL, NULL, h, vector(p, p->arena.layer[0].input_norm), p->x, NULL, p->spec.hidden, p->spec.norm_eps };
    const int rc = plain_embed_launch(&a, rows, stream);

    return rc ? rc : plain_norm_launch(&enter, rows, stream);
}

extern "C" int plain_head_launch(struct plain *p, uint32_t rows, const struct plain_step *step, void *stream)
{
    const struct plain_logits cap = { step->logits, step->tile_top, p->spec.vocab, p->spec.softcap };
    const struct plain_matrix table = { p->arena.embed, 0, 0, p->spec.vocab, p->spec.hidden, p->spec.format, STORED_AS_IS, 0.0f };
    const int rc = product(p, step->logits, p->spec.vocab, p->x, &table, NULL, p->spec.vocab, rows, stream);

    return rc ? rc : plain_logits_launch(&cap, rows, stream);
}

extern "C" int plain_step_launch(struct plain *p, uint32_t rows, const struct plain_step *step, void *stream)
{
    if (rows == 0 || rows > p->options.rows_max) return -E_RANGE;
    int rc = plain_rows_launch_from_state(p->row, step->state, step->last_token, rows, stream);
    if (rc == 0) rc = embed(p, step->residual, p->row, rows, stream);
    if (rc == 0) rc = layers(p, step->residual, p->row, rows, 0, p->spec.layers, true, step->hidden, stream);
    return rc ? rc : plain_head_launch(p, rows, step, stream);
}

extern "C" int plain_rows_launch(struct plain *p, const struct plain_row *rows_device, uint32_t rows, uint32_t first, uint32_t count, bool whole, void *stream)
{
    if (rows == 0 || rows > p->options.rows_max || first > p->spec.layers || count > p->spec.layers - first) return -E_RANGE;
    const int rc = first == 0 ? embed(p, p->h, rows_device, rows, stream) : 0;

    return rc ? rc : layers(p, p->h, rows_device, rows, first, first + count, whole, NULL, stream);
}
