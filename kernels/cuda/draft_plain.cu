/* kernels/cuda/draft_plain.cu - the MTP assistant on the kernels of plain.h (contract in cuda_draft_plain.h).
 *
 * As model/assistant.c, operation for operation: pre_projection, per layer norm, q, heads, attention on the target's keys, o, norms, gate and up, down,
 * norms; then head and post_projection. A row attends from position key_count - 1 and turns by the angles of its own position. */
#include "cuda_draft_plain.h"
#include "launch.h"
#include "setup.h"
#include "plain_attn.cuh"
#include "plain_held.cuh"
#include "plain_ops.cuh"
#include "shm/error.h"
#include <cuda_runtime.h>
#include <new>
#include <string.h>
#include <vector>

extern "C" {
#include "model/assistant.h"
}

#define PART_BYTES_MAX (64ull << 20)
#define ROWS_LIMIT 1024u

struct cuda_draft_plain {
    struct model_config config;       /* the assistant's own */
    struct cuda_model_spec target;
    struct cuda_draft_options options;
    struct plain_held held;           /* owned; the weights below point into it */
    std::vector<struct plain_held_layer> layer;
    struct plain_held_matrix pre, post, head;
    const float *norm;
    uint32_t backbone;                /* hidden size of the target */
    struct rope_table rope[2];
    uint32_t source[2];               /* the target's layer whose keys are read, per type */
    uint32_t rows_max, pages_stride[2], segments_max[2], batch_rows[2];
    cudaStream_t stream;              /* owned */
    uint8_t *slab;                    /* owned; what follows lies in it */
    float *joined, *h, *x, *y, *q, *attended, *gate, *hidden, *logits, *tile_top, *part;
    float2 *part_top, *angle[2];
    struct plain_row *turn, *see;     /* [rows_max] */
    uint32_t *pages[2];               /* [seqs_max][pages_stride] */
};

/* ---- the handle ---- */

static void size_attention(struct cuda_draft_plain *d, uint64_t *part, uint64_t *tops)
{
    for (uint32_t i = 0; i < d->config.layer_count; i++) {
        const uint32_t type = d->config.layer[i].type;
        const uint64_t of_row = (uint64_t)d->config.q_heads * (d->segments_max[type] = plain_attn_segments(d->options.context_max, type == CUDA_FULL ? 0 : d->target.window));
        const uint64_t rows = PART_BYTES_MAX / (4 * of_row * d->target.head_dim[type]);

        d->batch_rows[type] = rows == 0 ? 1 : rows < d->rows_max ? (uint32_t)rows : d->rows_max;
        if (4 * of_row * d->target.head_dim[type] * d->batch_rows[type] > *part) *part = 4 * of_row * d->target.head_dim[type] * d->batch_rows[type];
        if (8 * of_row * d->batch_rows[type] > *tops) *tops = 8 * of_row * d->batch_rows[type];
    }
}

static int make_scratch(struct cuda_draft_plain *d)
{
    const struct model_config *s = &d->config;
    const uint64_t rows = d->rows_max;
    uint64_t widest = 0, part = 0, tops = 0;

    for (uint32_t i = 0; i < s->layer_count; i++)
        if (model_q_dim(s, i) > widest) widest = model_q_dim(s, i);
    size_attention(d, &part, &tops);
    const struct setup_part want[] = {
        { (void **)&d->joined, 8 * rows * d->backbone }, { (void **)&d->h, 4 * rows * s->hidden }, { (void **)&d->x, 4 * rows * s->hidden }, { (void **)&d->y, 4 * rows * s->hidden },
        { (void **)&d->q, 4 * rows * widest }, { (void **)&d->attended, 4 * rows * widest }, { (void **)&d->gate, 4 * rows * s->intermediate },
        { (void **)&d->hidden, 4 * rows * d->backbone }, { (void **)&d->logits, 4 * rows * s->vocab }, { (void **)&d->tile_top, 4 * rows * (s->vocab / 16) },
        { (void **)&d->part, part }, { (void **)&d->part_top, tops }, { (void **)&d->angle[0], 8 * rows * ROPE_PAIRS_MAX }, { (void **)&d->angle[1], 8 * rows * ROPE_PAIRS_MAX },
        { (void **)&d->turn, rows * sizeof *d->turn }, { (void **)&d->see, rows * sizeof *d->see },
        { (void **)&d->pages[0], 4ull * d->options.seqs_max * d->pages_stride[0] }, { (void **)&d->pages[1], 4ull * d->options.seqs_max * d->pages_stride[1] },
    };

    return setup_slab(&d->slab, want, sizeof want / sizeof *want, "the drafter's scratch memory");
}

/* Do its heads fit those of the target's layers? */
static int check_shape(const struct assistant_weights *w, const struct cuda_model_spec *t)
{
    const struct model_config *c = &w->config;

    if (w->backbone_hidden != t->hidden || c->vocab != t->vocab || c->layer_count == 0) return launch_fail(-E_UNSUPPORTED, "an assistant of another model");
    for (uint32_t i = 0; i < c->layer_count; i++) {
        const uint32_t type = c->layer[i].type, kv = type <= CUDA_FULL ? t->kv_heads[type] : 0, dim = c->layer[i].head_dim;

        if (kv == 0 || dim != t->head_dim[type] || dim % 32 || dim > PLAIN_HEAD_DIM_MAX || c->q_heads % kv) return launch_fail(-E_UNSUPPORTED, "%u query heads of %u on %u", c->q_heads, dim, kv);
    }
    return 0;
}

static int load(struct cuda_draft_plain *d, const struct assistant_weights *w)
{
    int rc = plain_held_put(&d->held, &w->pre, &d->pre);

    d->layer.resize(w->config.layer_count);
    if (rc == 0) rc = plain_held_put(&d->held, &w->post, &d->post);
    if (rc == 0) rc = plain_held_put(&d->held, &w->head, &d->head);
    if (rc == 0) rc = plain_held_vector(&d->held, w->norm, w->config.hidden, &d->norm);
    for (uint32_t i = 0; i < w->config.layer_count && rc == 0; i++) rc = plain_held_put_layer(&d->held, &w->layer[i], w->config.hidden, w->config.layer[i].head_dim, &d->layer[i]);
    return rc;
}

static void find_sources(struct cuda_draft_plain *d)
{
    for (uint32_t i = 0; i < d->config.layer_count; i++) {
        const struct layer_config *l = &d->config.layer[i];

        rope_table_init(&d->rope[l->type], &d->config.rope[l->type], l->head_dim);
    }
    for (uint32_t i = 0; i < d->target.layers; i++) d->source[d->target.layer[i].type] = i;
}

extern "C" int cuda_draft_plain_open(struct cuda_draft_plain **draft, const struct assistant_weights *weights, const struct cuda_model_spec *target, const struct cuda_draft_options *options,
                                     uint32_t rows_max)
{
    int rc = check_shape(weights, target);
    struct cuda_draft_plain *d;

    *draft = NULL;
    if (rc == 0 && (rows_max == 0 || rows_max > ROWS_LIMIT || options->seqs_max == 0 || options->context_max == 0)) rc = -E_RANGE;
    if (rc) return rc;
    if ((d = new (std::nothrow) cuda_draft_plain()) == NULL) return -E_NOMEM;
    d->config = weights->config, d->backbone = weights->backbone_hidden, d->target = *target, d->options = *options, d->rows_max = rows_max;
    d->pages_stride[CUDA_SLIDING] = options->ring_pages;
    d->pages_stride[CUDA_FULL] = (options->context_max + PLAIN_PAGE_TOKENS - 1) / PLAIN_PAGE_TOKENS;
    find_sources(d);
    rc = plain_linear_init();
    if (rc == 0) rc = plain_ops_init();
    if (rc == 0) rc = plain_attn_init();
    if (rc == 0) rc = load(d, weights);
    if (rc == 0) rc = make_scratch(d);
    if (rc == 0) rc = launch_check(cudaStreamCreateWithFlags(&d->stream, cudaStreamNonBlocking), "stream");
    if (rc == 0) rc = launch_check(cudaDeviceSynchronize(), "opening the drafter");
    if (rc) cuda_draft_plain_close(d);
    else *draft = d;
    return rc;
}

extern "C" void cuda_draft_plain_close(struct cuda_draft_plain *d)
{
    if (d == NULL) return;
    if (d->stream) cudaStreamSynchronize(d->stream), cudaStreamDestroy(d->stream);
    cudaFree(d->slab);
    plain_held_free(&d->held);
    delete d;
}

/* ---- a step ---- */

static int product(const struct cuda_draft_plain *d, float *out, const float *in, const struct plain_held_matrix &w, const struct plain_held_matrix *up, uint32_t rows)
{
    return plain_held_multiply(&w, up, in, out, w.rows, rows, d->stream);
}

static int norms(const struct cuda_draft_plain *d, const float *post, const float *scalar, const float *next, uint32_t rows)
{
    const struct plain_norm a = { post ? d->y : NULL, post, scalar, d->h, next, d->x, NULL, d->config.hidden, d->config.norm_eps };

    return plain_norm_launch(&a, rows, d->stream);
}

static uint32_t kv_bytes(const struct cuda_draft_plain *d, uint32_t type)
{
    const struct cuda_layer_spec *l = &d->target.layer[d->source[type]];

    return (uint32_t)((l->v_offset - l->k_offset) / ((uint64_t)d->target.kv_heads[type] * d->target.head_dim[type] * PLAIN_PAGE_TOKENS));
}

static int attend(const struct cuda_draft_plain *d, uint32_t i, uint32_t rows)
{
    const uint32_t type = d->config.layer[i].type, dim = d->target.head_dim[type];
    const struct cuda_layer_spec *l = &d->target.layer[d->source[type]];
    struct plain_heads h = {};
    struct plain_attn a = {};

    h.row = d->turn, h.qkv = d->q, h.stride = (uint64_t)d->config.q_heads * dim;
    h.q_norm = d->layer[i].q_norm;
    h.angle = d->angle[type];
    h.q_heads = d->config.q_heads, h.kv_heads = 0, h.dim = dim, h.turned = d->rope[type].turned, h.eps = d->config.norm_eps;
    const int rc = plain_heads_launch(&h, rows, d->stream);

    if (rc) return rc;
    a.row = d->see, a.q = d->q, a.out = d->attended, a.part = d->part, a.part_top = d->part_top;
    a.pool = (const uint8_t *)d->options.kv_device[type];
    a.pages = d->pages[type], a.pages_stride = a.ring_pages = d->pages_stride[type];
    a.q_stride = h.stride, a.page_bytes = d->target.page_bytes[type], a.k_offset = l->k_offset, a.v_offset = l->v_offset;
    a.q_heads = d->config.q_heads, a.kv_heads = d->target.kv_heads[type], a.dim = dim, a.kv_bytes = kv_bytes(d, type);
    a.window = type == CUDA_FULL ? 0 : d->target.window;
    a.segments_max = d->segments_max[type], a.batch_rows = d->batch_rows[type], a.scale = d->config.attention_scale;
    return plain_attn_launch(&a, rows, d->stream);
}

static int run_layers(const struct cuda_draft_plain *d, uint32_t rows)
{
    const uint32_t layers = d->config.layer_count;
    int rc = product(d, d->h, d->joined, d->pre, NULL, rows);

    if (rc == 0) rc = norms(d, NULL, NULL, d->layer[0].input_norm, rows);
    for (uint32_t i = 0; i < layers && rc == 0; i++) {
        const struct plain_held_layer *l = &d->layer[i];

        rc = product(d, d->q, d->x, l->q, NULL, rows);
        if (rc == 0) rc = attend(d, i, rows);
        if (rc == 0) rc = product(d, d->y, d->attended, l->o, NULL, rows);
        if (rc == 0) rc = norms(d, l->post_attention_norm, NULL, l->pre_ff_norm, rows);
        if (rc == 0) rc = product(d, d->gate, d->x, l->gate, &l->up, rows);
        if (rc == 0) rc = product(d, d->y, d->gate, l->down, NULL, rows);
        if (rc == 0) rc = norms(d, l->post_ff_norm, l->scalar, i + 1 == layers ? d->norm : d->layer[i + 1].input_norm, rows);
    }
    const struct plain_logits cap = { d->logits, d->tile_top, d->config.vocab, d->config.final_softcap };

    if (rc == 0) rc = product(d, d->logits, d->x, d->head, NULL, rows);
    if (rc == 0) rc = plain_logits_launch(&cap, rows, d->stream);
    return rc ? rc : product(d, d->hidden, d->x, d->post, NULL, rows);
}

static bool row_is_sound(const struct cuda_draft_plain *d, const struct cuda_draft_plain_row *r, const struct cuda_draft_plain_seq *seqs, uint32_t seq_count)
{
    if (r->seq >= seq_count || r->key_count == 0 || r->key_count > r->position || r->position >= d->options.context_max) return false;
    const uint32_t pages = (r->key_count + PLAIN_PAGE_TOKENS - 1) / PLAIN_PAGE_TOKENS, ring = pages < d->pages_stride[CUDA_SLIDING] ? pages : d->pages_stride[CUDA_SLIDING];

    return seqs[r->seq].page_count[CUDA_FULL] >= pages && seqs[r->seq].page_count[CUDA_SLIDING] >= ring;
}

/* From pageable memory: each copy has read its source when the call returns. */
static int send(const struct cuda_draft_plain *d, void *to, const void *from, uint64_t bytes)
{
    return bytes ? launch_check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, d->stream), "the drafter's input") : 0;
}

static int send_rows(const struct cuda_draft_plain *d, const struct cuda_draft_plain_row *rows, uint32_t count)
{
    const uint64_t width = d->backbone;
    std::vector<struct plain_row> turn(count), see(count);
    std::vector<float2> angle[2];
    float cosine[ROPE_PAIRS_MAX], sine[ROPE_PAIRS_MAX];
    int rc = 0;

    for (uint32_t i = 0; i < count && rc == 0; i++) {
        turn[i] = plain_row{ 0, i, rows[i].seq, 1 };           /* `position` finds the row's own angles */
        see[i] = plain_row{ 0, rows[i].key_count - 1, rows[i].seq, 1 };
        rc = send(d, d->joined + 2 * width * i, rows[i].embedding, 4 * width);
        if (rc == 0) rc = send(d, d->joined + 2 * width * i + width, rows[i].hidden, 4 * width);
        for (uint32_t type = 0; type < 2; type++) {
            rope_table_angles(&d->rope[type], rows[i].position, cosine, sine);
            for (uint32_t j = 0; j < d->rope[type].turned; j++) angle[type].push_back(make_float2(cosine[j], sine[j]));
        }
    }
    for (uint32_t type = 0; type < 2 && rc == 0; type++) rc = send(d, d->angle[type], angle[type].data(), sizeof(float2) * angle[type].size());
    if (rc == 0) rc = send(d, d->turn, turn.data(), count * sizeof turn[0]);
    return rc ? rc : send(d, d->see, see.data(), count * sizeof see[0]);
}

extern "C" int cuda_draft_plain_step(struct cuda_draft_plain *d, const struct cuda_draft_plain_row *rows, uint32_t count, const struct cuda_draft_plain_seq *seqs, uint32_t seq_count,
                                     float *logits, float *hidden)
{
    int rc = 0;

    if (count == 0 || count > d->rows_max || seq_count > d->options.seqs_max) return -E_RANGE;
    for (uint32_t i = 0; i < count; i++)
        if (!row_is_sound(d, &rows[i], seqs, seq_count)) return -E_RANGE;
    for (uint32_t s = 0; s < seq_count && rc == 0; s++)
        for (uint32_t type = 0; type < 2 && rc == 0; type++) {
            const uint32_t n = seqs[s].page_count[type] < d->pages_stride[type] ? seqs[s].page_count[type] : d->pages_stride[type];

            rc = send(d, d->pages[type] + (uint64_t)s * d->pages_stride[type], seqs[s].pages[type], 4ull * n);
        }
    if (rc == 0) rc = send_rows(d, rows, count);
    if (rc == 0) rc = run_layers(d, count);
    if (rc == 0) rc = launch_check(cudaMemcpyAsync(logits, d->logits, 4ull * count * d->config.vocab, cudaMemcpyDeviceToHost, d->stream), "the drafter's logits");
    if (rc == 0) rc = launch_check(cudaMemcpyAsync(hidden, d->hidden, 4ull * count * d->backbone, cudaMemcpyDeviceToHost, d->stream), "the drafter's states");
    return rc ? rc : launch_check(cudaStreamSynchronize(d->stream), "draft step");
}

extern "C" int cuda_draft_plain_read(struct cuda_draft_plain *d, const float *from_device, float *to, uint32_t count)
{
    const int rc = launch_check(cudaMemcpyAsync(to, from_device, 4ull * count, cudaMemcpyDeviceToHost, d->stream), "a state");

    return rc ? rc : launch_check(cudaStreamSynchronize(d->stream), "a state");
}
