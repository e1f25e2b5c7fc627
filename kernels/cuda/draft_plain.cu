/* kernels/cuda/draft_plain.cu - the MTP assistant on the kernels of plain.h, whole rounds (contract in cuda_draft_plain.h).
 *
 * As model/assistant.c, operation for operation: pre_projection, per layer norm, q, heads, attention on the target's keys, o, norms, gate and up, down,
 * norms; then head and post_projection; the choice. A row attends from the position before its own and turns by the angles of its own, in every step. */
#include "draft_plain.h"
#include "draft_plain_ops.cuh"
#include "await.h"
#include "launch.h"
#include "setup.h"
#include "plain_attn.cuh"
#include "plain_held.cuh"
#include "plain_ops.cuh"
#include "shm/error.h"
#include <cuda_runtime.h>
#include <math.h>
#include <new>
#include <string.h>
#include <vector>

extern "C" {
#include "model/assistant.h"
}

#define PART_BYTES_MAX (64ull << 20)
#define ROWS CUDA_DRAFT_ROWS_MAX

struct draft_plain {
    struct model_config config;       /* the assistant's own */
    struct cuda_model_spec target;
    struct cuda_draft_options options;
    struct plain_held held;           /* owned; the weights below point into it */
    std::vector<struct plain_held_layer> layer;
    struct plain_held_matrix pre, post, head;
    const float *norm;
    uint32_t backbone;                /* hidden size of the target */
    const uint32_t *left_out;
    struct plain_table table;         /* the target's */
    uint32_t source[2];               /* the target's layer whose keys are read, per type */
    uint32_t pages_stride[2], segments_max[2], batch_rows[2], turned[2];
    float2 *angle[2];                 /* owned; [context_max][turned] */
    cudaStream_t stream;              /* owned */
    struct draft_plain_result *result, *result_device;   /* mapped; owned */
    uint64_t round;                   /* last launched */
    struct cuda_draft_question asked[ROWS];
    uint32_t asked_count;
    uint8_t *slab;                    /* owned; what follows lies in it */
    float *joined, *h, *x, *y, *q, *attended, *gate, *hidden, *logits, *tile_top, *part, *lead;
    float2 *part_top;
    struct plain_row *turn, *see;     /* [ROWS] */
    uint32_t *token;                  /* [ROWS][CUDA_DRAFT_STEPS_MAX] */
    uint32_t *pages[2];               /* [seqs_max][pages_stride] */
};

/* ---- the handle ---- */

static void size_attention(struct draft_plain *d, uint64_t *part, uint64_t *tops)
{
    for (uint32_t i = 0; i < d->config.layer_count; i++) {
        const uint32_t type = d->config.layer[i].type;
        const uint64_t of_row = (uint64_t)d->config.q_heads * (d->segments_max[type] = plain_attn_segments(d->options.context_max, type == CUDA_FULL ? 0 : d->target.window));
        const uint64_t rows = PART_BYTES_MAX / (4 * of_row * d->target.head_dim[type]);

        d->batch_rows[type] = rows == 0 ? 1 : rows < ROWS ? (uint32_t)rows : ROWS;
        if (4 * of_row * d->target.head_dim[type] * d->batch_rows[type] > *part) *part = 4 * of_row * d->target.head_dim[type] * d->batch_rows[type];
        if (8 * of_row * d->batch_rows[type] > *tops) *tops = 8 * of_row * d->batch_rows[type];
    }
}

static int make_scratch(struct draft_plain *d)
{
    const struct model_config *s = &d->config;
    const uint64_t rows = ROWS;
    uint64_t widest = 0, part = 0, tops = 0;

    for (uint32_t i = 0; i < s->layer_count; i++)
        if (model_q_dim(s, i) > widest) widest = model_q_dim(s, i);
    size_attention(d, &part, &tops);
    const struct setup_part want[] = {
        { (void **)&d->joined, 8 * rows * d->backbone }, { (void **)&d->h, 4 * rows * s->hidden }, { (void **)&d->x, 4 * rows * s->hidden }, { (void **)&d->y, 4 * rows * s->hidden },
        { (void **)&d->q, 4 * rows * widest }, { (void **)&d->attended, 4 * rows * widest }, { (void **)&d->gate, 4 * rows * s->intermediate },
        { (void **)&d->hidden, 4 * rows * d->backbone }, { (void **)&d->logits, 4 * rows * s->vocab }, { (void **)&d->tile_top, 4 * rows * (s->vocab / 16) },
        { (void **)&d->part, part }, { (void **)&d->part_top, tops }, { (void **)&d->token, 4 * rows * CUDA_DRAFT_STEPS_MAX }, { (void **)&d->lead, 4 * rows * CUDA_DRAFT_STEPS_MAX },
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

static int load(struct draft_plain *d, const struct assistant_weights *w, struct cuda_left_out left_out)
{
    int rc = plain_held_put(&d->held, &w->pre, &d->pre);

    d->layer.resize(w->config.layer_count);
    if (rc == 0) rc = plain_held_put(&d->held, &w->post, &d->post);
    if (rc == 0) rc = plain_held_put(&d->held, &w->head, &d->head);
    if (rc == 0) rc = plain_held_vector(&d->held, w->norm, w->config.hidden, &d->norm);
    if (rc == 0) rc = plain_held_left_out(&d->held, left_out, w->config.vocab, &d->left_out);
    if (rc == 0) rc = plain_table_of(&d->target, d->options.target_device, &d->table);
    for (uint32_t i = 0; i < w->config.layer_count && rc == 0; i++) rc = plain_held_put_layer(&d->held, &w->layer[i], w->config.hidden, w->config.layer[i].head_dim, &d->layer[i]);
    return rc;
}

/* Angles of the assistant's own kinds of layers, and where the keys of each are. */
static int find_sources(struct draft_plain *d)
{
    int rc = 0;

    for (uint32_t i = 0; i < d->config.layer_count && rc == 0; i++) {
        const struct layer_config *l = &d->config.layer[i];
        struct rope_table table;

        if (d->angle[l->type]) continue;
        rope_table_init(&table, &d->config.rope[l->type], l->head_dim);
        d->turned[l->type] = table.turned;
        rc = plain_angles(&d->angle[l->type], &table, d->options.context_max);
    }
    for (uint32_t i = 0; i < d->target.layers; i++) d->source[d->target.layer[i].type] = i;
    return rc;
}

static int open_all(struct draft_plain *d, const struct assistant_weights *weights, struct cuda_left_out left_out)
{
    int rc = plain_linear_init();

    if (rc == 0) rc = plain_ops_init();
    if (rc == 0) rc = plain_attn_init();
    if (rc == 0) rc = draft_plain_ops_init();
    if (rc == 0) rc = load(d, weights, left_out);
    if (rc == 0) rc = find_sources(d);
    if (rc == 0) rc = make_scratch(d);
    if (rc == 0) rc = setup_mapped((void **)&d->result, (void **)&d->result_device, sizeof *d->result);
    if (rc == 0) rc = launch_check(cudaStreamCreateWithFlags(&d->stream, cudaStreamNonBlocking), "stream");
    return rc ? rc : launch_check(cudaDeviceSynchronize(), "opening the drafter");
}

int draft_plain_open(struct draft_plain **plain, const struct assistant_weights *weights, const struct cuda_model_spec *target, const struct cuda_draft_options *o, struct cuda_left_out left_out)
{
    int rc = check_shape(weights, target);
    struct draft_plain *d;

    *plain = NULL;
    if (rc == 0 && (!o->kv_device[0] || !o->kv_device[1] || !o->states_device || o->states_rows == 0 || o->seqs_max == 0 || o->context_max == 0 || o->ring_pages == 0)) rc = -E_RANGE;
    if (rc) return rc;
    if ((d = new (std::nothrow) draft_plain()) == NULL) return -E_NOMEM;
    d->config = weights->config, d->backbone = weights->backbone_hidden, d->target = *target, d->options = *o;
    d->pages_stride[CUDA_SLIDING] = o->ring_pages;
    d->pages_stride[CUDA_FULL] = (o->context_max + PLAIN_PAGE_TOKENS - 1) / PLAIN_PAGE_TOKENS;
    rc = open_all(d, weights, left_out);
    if (rc) draft_plain_close(d);
    else *plain = d;
    return rc;
}

void draft_plain_close(struct draft_plain *d)
{
    if (d == NULL) return;
    if (d->stream) cudaStreamSynchronize(d->stream), cudaStreamDestroy(d->stream);
    cudaFree(d->slab);
    for (float2 *angle : d->angle) cudaFree(angle);
    if (d->result) cudaFreeHost(d->result);
    plain_held_free(&d->held);
    delete d;
}

/* ---- a step ---- */

static int product(const struct draft_plain *d, float *out, const float *in, const struct plain_held_matrix &w, const struct plain_held_matrix *up, uint32_t rows)
{
    return plain_held_multiply(&w, up, in, out, w.rows, rows, d->stream);
}

static int norms(const struct draft_plain *d, const float *post, const float *scalar, const float *next, uint32_t rows)
{
    const struct plain_norm a = { post ? d->y : NULL, post, scalar, d->h, next, d->x, NULL, d->config.hidden, d->config.norm_eps };

    return plain_norm_launch(&a, rows, d->stream);
}

static uint32_t kv_bytes(const struct draft_plain *d, uint32_t type)
{
    const struct cuda_layer_spec *l = &d->target.layer[d->source[type]];

    return (uint32_t)((l->v_offset - l->k_offset) / ((uint64_t)d->target.kv_heads[type] * d->target.head_dim[type] * PLAIN_PAGE_TOKENS));
}

static int attend(const struct draft_plain *d, uint32_t i, uint32_t rows)
{
    const uint32_t type = d->config.layer[i].type, dim = d->target.head_dim[type];
    const struct cuda_layer_spec *l = &d->target.layer[d->source[type]];
    struct plain_heads h = {};
    struct plain_attn a = {};

    h.row = d->turn, h.qkv = d->q, h.stride = (uint64_t)d->config.q_heads * dim;
    h.q_norm = d->layer[i].q_norm;
    h.angle = d->angle[type];
    h.q_heads = d->config.q_heads, h.kv_heads = 0, h.dim = dim, h.turned = d->turned[type], h.eps = d->config.norm_eps;
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

static int run_layers(const struct draft_plain *d, uint32_t rows)
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

/* ---- rounds ---- */

int draft_plain_pages(struct draft_plain *d, uint32_t seq, enum cuda_layer_type type, uint32_t first, const uint32_t *pages, uint32_t count)
{
    if (type > CUDA_FULL || seq >= d->options.seqs_max || first > d->pages_stride[type] || count > d->pages_stride[type] - first) return -E_RANGE;
    return launch_check(cudaMemcpyAsync(d->pages[type] + (uint64_t)seq * d->pages_stride[type] + first, pages, 4ull * count, cudaMemcpyHostToDevice, d->stream), "pages");
}

static bool is_sound(const struct draft_plain *d, const struct cuda_draft_question *q)
{
    if (q->seq >= d->options.seqs_max || q->token >= d->config.vocab || q->position == 0 || q->position >= d->options.context_max) return false;
    if (q->steps < 1 || q->steps > CUDA_DRAFT_STEPS_MAX) return false;
    return q->temperature >= 0 && q->temperature <= 100 && q->top_p >= 0 && q->top_p <= 1 && q->min_p >= 0 && q->min_p <= 1;      /* false for NaN */
}

static struct draft_plain_step make_step(const struct draft_plain *d, const struct cuda_draft_question *questions, uint32_t count)
{
    struct draft_plain_step a = {};

    memcpy(a.question, questions, count * sizeof *questions);
    a.count = count, a.backbone = d->backbone, a.vocab = d->config.vocab, a.table = d->table, a.embed_scale = d->target.embed_scale;
    a.states = d->options.states_device, a.states_rows = d->options.states_rows, a.turn = d->turn, a.see = d->see, a.joined = d->joined;
    a.hidden = d->hidden, a.logits = d->logits, a.left_out = d->left_out, a.token = d->token, a.lead = d->lead;
    return a;
}

int draft_plain_round(struct draft_plain *d, const struct cuda_draft_question *questions, uint32_t count)
{
    uint32_t longest = 0;

    if (count == 0 || count > ROWS) return -E_RANGE;
    for (uint32_t i = 0; i < count; i++) {
        if (!is_sound(d, &questions[i])) return -E_RANGE;
        if (questions[i].steps > longest) longest = questions[i].steps;
    }
    if (d->round && __atomic_load_n(&d->result->round, __ATOMIC_ACQUIRE) != d->round) return -E_BUSY;
    d->round++, d->asked_count = count;
    memcpy(d->asked, questions, count * sizeof *questions);
    const struct draft_plain_step step = make_step(d, questions, count);
    int rc = draft_plain_start_launch(&step, d->stream);

    for (uint32_t i = 0; i < longest && rc == 0; i++) {
        rc = run_layers(d, count);
        if (rc == 0) rc = draft_plain_pick_launch(&step, i, d->stream);
    }
    return rc ? rc : draft_plain_publish_launch(&step, d->result_device, d->round, d->stream);
}

/* A row ends before a token that there was not, and behind the one that makes it less sure than it must be. */
static void take_answer(const struct draft_plain *d, uint32_t row, struct cuda_draft_answer *a)
{
    float sure = 1;

    a->count = a->ns = 0, a->position = d->asked[row].position;
    for (uint32_t i = 0; i < d->asked[row].steps && d->result->token[row][i] < d->config.vocab; i++) {
        a->token[i] = d->result->token[row][i];
        a->confidence[i] = 1.0f - expf(-d->result->lead[row][i]);
        a->count = i + 1;
        if ((sure *= a->confidence[i]) < d->asked[row].stop_below) return;
    }
}

int draft_plain_wait(struct draft_plain *d, uint32_t timeout_us, struct cuda_draft_answer *answers)
{
    const int rc = await_word(&d->result->round, d->round, NULL, d->stream, timeout_us, "draft round"); /* W1 <- draft_plain_publish_kernel */

    if (rc) return rc;
    for (uint32_t i = 0; i < d->asked_count; i++) take_answer(d, i, &answers[i]);
    return 0;
}

const float *draft_plain_hidden(const struct draft_plain *d) { return d->hidden; }
const float *draft_plain_logits(const struct draft_plain *d) { return d->logits; }
void *draft_plain_stream(struct draft_plain *d) { return d->stream; }
