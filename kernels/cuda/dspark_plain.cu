/* kernels/cuda/dspark_plain.cu - a DSpark head of any shape: scratch, rings, absorbing, rounds (contract in cuda_dspark_plain.h).
 *
 *   absorb  gather, fc, norm, then of each layer keys and values into the rings
 *   round   start, norm, then per layer: q, k, heads, attention, o, norms, gate and up, down, norms; output matrix, cap; for each guess the Markov head and the choice; the
 *           confidences, publish
 *
 * As model/dspark.c, operation for operation. Rings have its pages, too: of each place one piece, K and V of every layer in a page of 32 positions, bf16. */
#include "dspark_plain.h"
#include "dspark_plain_ops.cuh"
#include "dspark_plain_weights.cuh"
#include "handover.cuh"
#include "await.h"
#include "launch.h"
#include "setup.h"
#include "plain_attn.cuh"
#include "plain_ops.cuh"
#include "shm/error.h"
#include <cuda_runtime.h>
#include <math.h>
#include <new>
#include <string.h>

extern "C" {
#include "model/dspark.h"
}

#define PART_BYTES_MAX (64ull << 20)  /* attention's parts: more rows go in batches */
#define KV_BYTES 2u                   /* of an element of a ring: bf16, as the CPU's */
#define CONTEXT_LIMIT (1u << 20)

struct dspark_plain {
    struct dspark_config config;
    struct cuda_dspark_options options;
    struct dspark_plain_weights weights;
    float embed_scale, confidence_bias;
    const uint32_t *left_out;         /* in weights.held */
    uint32_t kv_rows, q_rows, dim;    /* of every layer */
    uint32_t lines_max;               /* rows of activations: blocks of a round, or positions absorbed */
    uint32_t ring_pages, turned, segments_max, batch_rows;
    uint64_t page_bytes;
    uint8_t *pool;                    /* owned: [places][ring_pages][page_bytes] */
    float2 *angle;                    /* owned: [context_max][turned] */
    uint8_t *slab;                    /* owned; what follows lies in it */
    float *sources, *h, *x, *y;       /* [lines_max][sources * hidden], [lines_max][hidden] */
    float *qkv, *attended, *gate;     /* [lines_max][q_rows + kv_rows], [lines_max][q_rows], [lines_max][intermediate] */
    float *base, *tile_top, *z, *markov;   /* [lines_max][vocab], [lines_max][vocab / 16], [sequences][vocab], [sequences][rank] */
    float *part, *seen, *heard;
    float2 *part_top;
    struct plain_row *row;            /* [lines_max] */
    uint32_t *first, *low, *pages, *guess;  /* [lines_max], [places], [places][ring_pages], [sequences][guesses] */
    struct dspark_plain_result *result, *result_device;   /* mapped; owned */
    cudaStream_t stream;
    uint64_t round;                   /* last launched */
    uint32_t asked, guesses[CUDA_DSPARK_ROWS_MAX];
    struct cuda_handover hand;        /* of the next round, if it */
    bool hands_over;
};

/* ---- opening ---- */

static int check_shape(const struct dspark_config *c, const struct cuda_model_spec *target)
{
    const struct model_config *l = &c->layers;

    if (l->hidden != target->hidden || l->vocab != target->vocab) return launch_fail(-E_UNSUPPORTED, "a head for another model");
    if (l->layer_count == 0 || c->block == 0 || c->block > DSPARK_BLOCK_MAX || c->source_count == 0 || c->source_count > CUDA_DSPARK_SOURCES_MAX)
        return launch_fail(-E_UNSUPPORTED, "%u layers, %u sources, blocks of %u", l->layer_count, c->source_count, c->block);
    for (uint32_t i = 0; i < l->layer_count; i++)
        if (l->layer[i].head_dim != l->layer[0].head_dim || l->layer[i].kv_heads != l->layer[0].kv_heads) return launch_fail(-E_UNSUPPORTED, "layers of different heads");
    if (l->layer[0].head_dim % 32 || l->layer[0].head_dim > PLAIN_HEAD_DIM_MAX || l->layer[0].kv_heads == 0 || l->q_heads % l->layer[0].kv_heads)
        return launch_fail(-E_UNSUPPORTED, "%u query and %u key heads of %u", l->q_heads, l->layer[0].kv_heads, l->layer[0].head_dim);
    if (l->hidden % 16 || l->intermediate % 16 || l->vocab % 16 || c->markov_rank % 16)
        return launch_fail(-E_UNSUPPORTED, "sizes %u, %u, %u, %u: all must be multiples of 16", l->hidden, l->intermediate, l->vocab, c->markov_rank);
    return 0;
}

static bool options_are_sound(const struct dspark_config *c, const struct cuda_dspark_options *o)
{
    const struct cuda_features *f = &o->features;

    if (!f->device || f->places == 0 || f->rows == 0 || (f->element_bytes != 2 && f->element_bytes != 4) || f->sources_max < c->source_count) return false;
    return o->window != 0 && o->context_max > c->block && o->context_max <= CONTEXT_LIMIT;
}

/* As dspark_cache_init. */
static void size_ring(struct dspark_plain *d)
{
    d->ring_pages = (d->options.window + d->config.block + PLAIN_PAGE_TOKENS - 1) / PLAIN_PAGE_TOKENS;
    d->page_bytes = (uint64_t)d->config.layers.layer_count * 2 * d->kv_rows * PLAIN_PAGE_TOKENS * KV_BYTES;
}

static void size_attention(struct dspark_plain *d, uint64_t *part, uint64_t *tops)
{
    d->segments_max = plain_attn_segments(d->options.context_max, d->options.window + d->config.block);
    const uint64_t of_row = (uint64_t)d->config.layers.q_heads * d->segments_max, rows = PART_BYTES_MAX / (4 * of_row * d->dim);

    d->batch_rows = rows == 0 ? 1 : rows < d->lines_max ? (uint32_t)rows : d->lines_max;
    *part = 4 * of_row * d->dim * d->batch_rows, *tops = 8 * of_row * d->batch_rows;
}

static int make_slab(struct dspark_plain *d)
{
    const struct model_config *c = &d->config.layers;
    const uint64_t lines = d->lines_max, hidden = c->hidden, seqs = CUDA_DSPARK_ROWS_MAX, blocks = seqs * d->config.block, places = d->options.features.places;
    uint64_t part, tops;

    size_attention(d, &part, &tops);
    const struct setup_part want[] = {
        { (void **)&d->sources, 4 * lines * d->config.source_count * hidden }, { (void **)&d->h, 4 * lines * hidden }, { (void **)&d->x, 4 * lines * hidden }, { (void **)&d->y, 4 * lines * hidden },
        { (void **)&d->qkv, 4 * lines * (d->q_rows + d->kv_rows) }, { (void **)&d->attended, 4 * lines * d->q_rows }, { (void **)&d->gate, 4 * lines * c->intermediate },
        { (void **)&d->base, 4 * blocks * c->vocab }, { (void **)&d->tile_top, 4 * blocks * (c->vocab / 16) }, { (void **)&d->z, 4 * seqs * c->vocab },
        { (void **)&d->markov, 4 * seqs * d->config.markov_rank }, { (void **)&d->part, part }, { (void **)&d->part_top, tops },
        { (void **)&d->seen, 4 * seqs * CUDA_DSPARK_GUESSES_MAX }, { (void **)&d->heard, 4 * seqs * CUDA_DSPARK_GUESSES_MAX }, { (void **)&d->guess, 4 * seqs * CUDA_DSPARK_GUESSES_MAX },
        { (void **)&d->row, lines * sizeof *d->row }, { (void **)&d->first, 4 * lines }, { (void **)&d->low, 4 * places }, { (void **)&d->pages, 4 * places * d->ring_pages },
    };

    return setup_slab(&d->slab, want, sizeof want / sizeof *want, "the drafter's scratch memory");
}

static int make_rings(struct dspark_plain *d)
{
    const uint64_t pages = (uint64_t)d->options.features.places * d->ring_pages;
    std::vector<uint32_t> page(pages);
    int rc = launch_check(cudaMalloc((void **)&d->pool, pages * d->page_bytes), "the drafter's keys");

    for (uint64_t i = 0; i < pages; i++) page[i] = (uint32_t)i;    /* a place's ring is one piece */
    if (rc == 0) rc = launch_check(cudaMemcpy(d->pages, page.data(), 4 * pages, cudaMemcpyHostToDevice), "the drafter's pages");
    return rc ? rc : setup_mapped((void **)&d->result, (void **)&d->result_device, sizeof *d->result);
}

static int open_all(struct dspark_plain *d, const struct dspark_weights *weights, const struct cuda_model_spec *target, struct cuda_left_out left_out)
{
    const struct model_config *c = &d->config.layers;
    struct rope_table table;
    int rc = plain_linear_init();

    rope_table_init(&table, &c->rope[LAYER_FULL], d->dim);
    d->turned = table.turned;
    if (rc == 0) rc = plain_ops_init();
    if (rc == 0) rc = plain_attn_init();
    if (rc == 0) rc = dspark_plain_ops_init();
    if (rc == 0) rc = dspark_plain_weights_load(&d->weights, weights, target, d->options.target_device);
    if (rc == 0) rc = plain_held_left_out(&d->weights.held, left_out, c->vocab, &d->left_out);
    if (rc == 0) rc = make_slab(d);
    if (rc == 0) rc = make_rings(d);
    if (rc == 0) rc = plain_angles(&d->angle, &table, d->options.context_max);
    if (rc == 0) rc = launch_check(cudaStreamCreateWithFlags(&d->stream, cudaStreamNonBlocking), "stream");
    return rc ? rc : launch_check(cudaDeviceSynchronize(), "opening the drafter");
}

int dspark_plain_open(struct dspark_plain **plain, const struct dspark_weights *weights, const struct cuda_model_spec *target, const struct cuda_dspark_options *options,
                      struct cuda_left_out left_out, uint64_t *own_bytes)
{
    const struct dspark_config *c = &weights->config;
    int rc = check_shape(c, target);
    struct dspark_plain *d;

    *plain = NULL;
    if (rc == 0 && !options_are_sound(c, options)) rc = -E_RANGE;
    if (rc) return rc;
    if ((d = new (std::nothrow) dspark_plain()) == NULL) return -E_NOMEM;
    d->config = *c, d->options = *options, d->embed_scale = weights->embed_scale, d->confidence_bias = weights->confidence_bias;
    if (d->options.window > options->context_max) d->options.window = options->context_max;
    d->dim = c->layers.layer[0].head_dim, d->q_rows = model_q_dim(&c->layers, 0), d->kv_rows = model_kv_dim(&c->layers, 0);
    d->lines_max = CUDA_DSPARK_ROWS_MAX * c->block > CUDA_DSPARK_ABSORB_MAX ? CUDA_DSPARK_ROWS_MAX * c->block : CUDA_DSPARK_ABSORB_MAX;
    size_ring(d);
    rc = open_all(d, weights, target, left_out);
    if (own_bytes) *own_bytes = d->weights.held.bytes;
    if (rc) dspark_plain_close(d);
    else *plain = d;
    return rc;
}

void dspark_plain_close(struct dspark_plain *d)
{
    if (d == NULL) return;
    if (d->stream) cudaStreamSynchronize(d->stream), cudaStreamDestroy(d->stream);
    cudaFree(d->slab);
    cudaFree(d->pool);
    cudaFree(d->angle);
    if (d->result) cudaFreeHost(d->result);
    plain_held_free(&d->weights.held);
    delete d;
}

/* ---- parts ---- */

static int product(const struct dspark_plain *d, float *out, uint64_t out_stride, const float *in, const struct plain_held_matrix &w, const struct plain_held_matrix *up, uint32_t rows)
{
    return plain_held_multiply(&w, up, in, out, out_stride, rows, d->stream);
}

/* post: h = (h + norm(y, post)) * scalar; then x = norm(h, next). */
static int norms(const struct dspark_plain *d, const float *post, const float *scalar, const float *next, uint32_t rows)
{
    const struct plain_norm a = { post ? d->y : NULL, post, scalar, d->h, next, d->x, NULL, d->config.layers.hidden, d->config.layers.norm_eps };

    return plain_norm_launch(&a, rows, d->stream);
}

static uint64_t k_offset(const struct dspark_plain *d, uint32_t layer) { return (uint64_t)layer * 2 * d->kv_rows * PLAIN_PAGE_TOKENS * KV_BYTES; }
static uint64_t v_offset(const struct dspark_plain *d, uint32_t layer) { return k_offset(d, layer) + (uint64_t)d->kv_rows * PLAIN_PAGE_TOKENS * KV_BYTES; }

/* Norms and turns q_heads query heads and the keys behind them; keys and values go to the rings. */
static int put_heads(const struct dspark_plain *d, uint32_t layer, uint32_t q_heads, uint32_t rows)
{
    const struct model_config *c = &d->config.layers;
    const struct dspark_plain_layer *l = &d->weights.layer[layer];
    struct plain_heads h = {};

    h.row = d->row, h.qkv = d->qkv, h.stride = (uint64_t)q_heads * d->dim + d->kv_rows, h.q_norm = l->shared.q_norm, h.k_norm = l->k_norm, h.angle = d->angle;
    h.pool = d->pool, h.pages = d->pages, h.page_bytes = d->page_bytes, h.k_offset = k_offset(d, layer), h.v_offset = v_offset(d, layer);
    h.pages_stride = h.ring_pages = d->ring_pages;
    h.q_heads = q_heads, h.kv_heads = c->layer[0].kv_heads, h.dim = d->dim, h.turned = d->turned, h.has_v = 0, h.has_v_norm = 1, h.kv_bytes = KV_BYTES, h.eps = c->norm_eps;
    return plain_heads_launch(&h, rows, d->stream);
}

/* ---- absorbing ---- */

int dspark_plain_place(struct dspark_plain *d, uint32_t place, uint32_t low)
{
    if (place >= d->options.features.places) return -E_RANGE;
    return launch_check(cudaMemcpyAsync(d->low + place, &low, sizeof low, cudaMemcpyHostToDevice, d->stream), "the drafter's place");
}

/* Fills the items of the gather; returns how many rows, or -E_RANGE. */
static int lay_rows(const struct dspark_plain *d, const struct cuda_dspark_absorb *items, uint32_t count, struct dspark_plain_gather *g)
{
    uint32_t rows = 0;

    for (uint32_t i = 0; i < count; i++) {
        const struct cuda_dspark_absorb *t = &items[i];

        if (t->place >= d->options.features.places || t->count == 0 || t->count > CUDA_DSPARK_ABSORB_MAX - rows || t->count > d->ring_pages * PLAIN_PAGE_TOKENS) return -E_RANGE;
        if (t->first >= d->options.context_max || t->count > d->options.context_max - t->first) return -E_RANGE;
        for (uint32_t j = 0; j < i; j++)
            if (items[j].place == t->place) return -E_RANGE;
        for (uint32_t j = 0; j < t->count; j++) g->item[rows].place = t->place, g->item[rows].generation = t->generation, g->item[rows++].position = t->first + j;
    }
    return (int)rows;
}

int dspark_plain_absorb(struct dspark_plain *d, const struct cuda_dspark_absorb *items, uint32_t count, uint64_t layers)
{
    const struct dspark_config *c = &d->config;
    const struct dspark_plain_weights *w = &d->weights;
    struct dspark_plain_gather g = {};
    const int rows = count == 0 || (uint32_t)__builtin_popcountll(layers) != c->source_count ? -E_RANGE : lay_rows(d, items, count, &g);

    if (rows < 0) return rows;
    g.features = d->options.features, g.layers = layers, g.floats = c->source_count * c->layers.hidden, g.sources = d->sources, g.row = d->row, g.low = d->low;
    int rc = dspark_plain_gather_launch(&g, (uint32_t)rows, d->stream);

    if (rc == 0) rc = product(d, d->h, c->layers.hidden, d->sources, w->fc, NULL, (uint32_t)rows);
    if (rc == 0) rc = norms(d, NULL, NULL, w->hidden_norm, (uint32_t)rows);
    for (uint32_t i = 0; i < c->layers.layer_count && rc == 0; i++) {
        rc = product(d, d->qkv, d->kv_rows, d->x, w->layer[i].k, NULL, (uint32_t)rows);
        if (rc == 0) rc = put_heads(d, i, 0, (uint32_t)rows);
    }
    return rc;
}

/* ---- a round ---- */

static int attend(const struct dspark_plain *d, uint32_t layer, uint32_t rows)
{
    const struct model_config *c = &d->config.layers;
    struct plain_attn a = {};

    a.row = d->row, a.q = d->qkv, a.out = d->attended, a.part = d->part, a.part_top = d->part_top, a.pool = d->pool, a.pages = d->pages;
    a.q_stride = d->q_rows + d->kv_rows, a.page_bytes = d->page_bytes, a.k_offset = k_offset(d, layer), a.v_offset = v_offset(d, layer);
    a.pages_stride = a.ring_pages = d->ring_pages;
    a.q_heads = c->q_heads, a.kv_heads = c->layer[0].kv_heads, a.dim = d->dim, a.kv_bytes = KV_BYTES;
    a.looks_ahead = 1, a.first = d->first;
    a.segments_max = d->segments_max, a.batch_rows = d->batch_rows, a.scale = c->attention_scale;
    return plain_attn_launch(&a, rows, d->stream);
}

static int run_layer(const struct dspark_plain *d, uint32_t i, uint32_t rows)
{
    const struct dspark_plain_weights *w = &d->weights;
    const struct plain_held_layer *l = &w->layer[i].shared;
    const struct model_config *c = &d->config.layers;
    const uint64_t stride = d->q_rows + d->kv_rows;
    int rc = product(d, d->qkv, stride, d->x, l->q, NULL, rows);

    if (rc == 0) rc = product(d, d->qkv + d->q_rows, stride, d->x, w->layer[i].k, NULL, rows);
    if (rc == 0) rc = put_heads(d, i, c->q_heads, rows);
    if (rc == 0) rc = attend(d, i, rows);
    if (rc == 0) rc = product(d, d->y, c->hidden, d->attended, l->o, NULL, rows);
    if (rc == 0) rc = norms(d, l->post_attention_norm, NULL, l->pre_ff_norm, rows);
    if (rc == 0) rc = product(d, d->gate, c->intermediate, d->x, l->gate, &l->up, rows);
    if (rc == 0) rc = product(d, d->y, c->hidden, d->gate, l->down, NULL, rows);
    return rc ? rc : norms(d, l->post_ff_norm, l->scalar, i + 1 == c->layer_count ? w->norm : w->layer[i + 1].shared.input_norm, rows);
}

static struct dspark_plain_step make_step(const struct dspark_plain *d, const struct cuda_dspark_question *q, uint32_t count)
{
    const struct dspark_plain_weights *w = &d->weights;
    const struct model_config *c = &d->config.layers;
    struct dspark_plain_step a = {};

    a.count = count, a.block = d->config.block, a.mask = d->config.mask_token, a.hidden = c->hidden, a.vocab = c->vocab, a.rank = d->config.markov_rank;
    a.embed = w->embed, a.markov_in = w->markov_in, a.embed_scale = d->embed_scale, a.low = d->low, a.row = d->row, a.first = d->first, a.h = d->h, a.markov = d->markov;
    a.base = d->base, a.z = d->config.markov_rank ? d->z : NULL, a.guess = d->guess, a.left_out = d->left_out;
    a.x = d->x, a.confidence = w->confidence, a.sees_token = d->config.confidence_sees_token, a.seen = d->seen, a.heard = d->heard;
    for (uint32_t i = 0; i < count; i++)
        a.question[i] = { q[i].place, q[i].token, q[i].position, q[i].guesses, q[i].position > d->options.window ? q[i].position - d->options.window : 0, q[i].temperature, q[i].top_p, q[i].min_p,
                          q[i].top_k, 0, q[i].seed };
    return a;
}

/* Logits without the Markov head of all rows. */
static int find_base(const struct dspark_plain *d, uint32_t rows)
{
    const struct plain_logits cap = { d->base, d->tile_top, d->config.layers.vocab, d->config.layers.final_softcap };
    const int rc = product(d, d->base, d->config.layers.vocab, d->x, d->weights.head, NULL, rows);

    return rc || cap.softcap == 0.0f ? rc : plain_logits_launch(&cap, rows, d->stream);
}

static bool is_sound(const struct dspark_plain *d, const struct cuda_dspark_question *q)
{
    if (q->place >= d->options.features.places || q->token >= d->config.layers.vocab || q->position > d->options.context_max - d->config.block) return false;
    if (q->guesses < 1 || q->guesses > d->config.block || q->guesses > CUDA_DSPARK_GUESSES_MAX) return false;
    return q->temperature >= 0 && q->temperature <= 100 && q->top_p >= 0 && q->top_p <= 1 && q->min_p >= 0 && q->min_p <= 1;      /* false for NaN */
}

/* The first sequence's guesses, once they are published, for verify's step on the device. A confidence decides lengths only: f32 does. */
__global__ void leave_kernel(cuda_handover_record *to, const __grid_constant__ cuda_handover hand, const dspark_plain_result *from, uint32_t count, float bias, bool confident, bool hears)
{
    uint32_t token[CUDA_HANDOVER_TOKENS_MAX];
    float confidence[CUDA_HANDOVER_TOKENS_MAX];

    for (uint32_t i = 0; i < CUDA_HANDOVER_TOKENS_MAX; i++) {
        token[i] = i < count ? from->token[0][i] : 0;
        confidence[i] = i < count && confident ? 1.0f / (1.0f + expf(-(bias + from->seen[0][i] + (hears ? from->heard[0][i] : 0.0f)))) : 1.0f;
    }
    handover_leave(to, hand, 0, count, token, confidence);
}

int dspark_plain_round(struct dspark_plain *d, const struct cuda_dspark_question *q, uint32_t count)
{
    const bool hands_over = d->hands_over;
    uint32_t longest = 0;

    d->hands_over = false;            /* also of a round that is refused */
    if (count == 0 || count > CUDA_DSPARK_ROWS_MAX) return -E_RANGE;
    for (uint32_t i = 0; i < count; i++) {
        if (!is_sound(d, &q[i])) return -E_RANGE;
        for (uint32_t j = 0; j < i; j++)
            if (q[j].place == q[i].place) return -E_RANGE;      /* their blocks would stand in the same ring */
        if (q[i].guesses > longest) longest = q[i].guesses;
    }
    if (d->round && __atomic_load_n(&d->result->round, __ATOMIC_ACQUIRE) != d->round) return -E_BUSY;
    d->round++, d->asked = count;
    for (uint32_t i = 0; i < count; i++) d->guesses[i] = q[i].guesses;
    const struct dspark_plain_step step = make_step(d, q, count);
    const uint32_t rows = count * step.block;
    int rc = dspark_plain_start_launch(&step, d->stream);

    if (rc == 0) rc = norms(d, NULL, NULL, d->weights.layer[0].shared.input_norm, rows);
    for (uint32_t i = 0; i < d->config.layers.layer_count && rc == 0; i++) rc = run_layer(d, i, rows);
    if (rc == 0) rc = find_base(d, rows);
    for (uint32_t g = 0; g < longest && rc == 0; g++) {
        if (step.z) rc = product(d, d->z, step.vocab, d->markov, d->weights.markov_out, NULL, count);
        if (rc == 0) rc = dspark_plain_pick_launch(&step, g, d->stream);
    }
    if (rc == 0 && step.confidence) rc = dspark_plain_confide_launch(&step, d->stream);
    if (rc == 0) rc = dspark_plain_publish_launch(&step, d->result_device, d->round, d->stream);
    if (rc == 0 && hands_over && count == 1) {
        leave_kernel<<<1, 1, 0, d->stream>>>(d->options.handover, d->hand, d->result_device, d->guesses[0], d->confidence_bias, d->weights.confidence != NULL, d->config.confidence_sees_token);
        rc = launch_check(cudaGetLastError(), "handing guesses over");
    }
    return rc;
}

int dspark_plain_hand_over(struct dspark_plain *d, const struct cuda_handover *hand)
{
    if (!d->options.handover || hand->tag == 0) return -E_RANGE;
    d->hand = *hand;
    d->hands_over = true;
    return 0;
}

/* As dspark_confidence. */
static float confidence_of(const struct dspark_plain *d, float seen, float heard)
{
    double total = (double)seen + d->confidence_bias;

    if (!d->weights.confidence) return 1;
    if (d->config.confidence_sees_token) total += heard;
    return (float)(1 / (1 + exp(-total)));
}

int dspark_plain_wait(struct dspark_plain *d, uint32_t timeout_us, struct cuda_dspark_answer *answers)
{
    const int rc = await_word(&d->result->round, d->round, NULL, d->stream, timeout_us, "draft round"); /* W1 <- dspark_plain_publish_kernel */

    if (rc) return rc;
    for (uint32_t i = 0; i < d->asked; i++) {
        answers[i].low = d->result->low[i];
        for (uint32_t g = 0; g < d->guesses[i]; g++) {
            answers[i].token[g] = d->result->token[i][g];
            answers[i].confidence[g] = confidence_of(d, d->result->seen[i][g], d->result->heard[i][g]);
        }
    }
    return 0;
}

const float *dspark_plain_logits(const struct dspark_plain *d) { return d->base; }
const float *dspark_plain_markov(const struct dspark_plain *d) { return d->config.markov_rank ? d->z : NULL; }
void *dspark_plain_stream(struct dspark_plain *d) { return d->stream; }
