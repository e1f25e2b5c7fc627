/* kernels/cuda/dspark.cu - the DSpark head's handle: scratch, rings, absorbing, rounds (contract in cuda_dspark.h).
 *
 *   absorb  gather, fc of each source, their norm, keys of all layers, into the rings
 *   round   start, then per layer: qkv, attention of each sequence, o, norm, gate_up, down, norm; output matrix, guesses of each sequence, publish
 *
 * All as links of one chain in one stream: what is absorbed is there when the round begins. A round that follows a step is enqueued, absorbing and all, behind a wait for that step's word; where the
 * text then stands its kernels learn from memory (dspark_newest.h), and products have a row for each position that can have been committed. A handle of cuda_dspark_plain_open has nothing but `plain`, to which everything is passed on. */
#include "await.h"
#include "chain.h"
#include "dspark_layout.h"
#include "dspark_ops.h"
#include "dspark_plain.h"
#include "handover.h"
#include "launch.h"
#include "powers.h"
#include "setup.h"
#include "shm/error.h"
#include <new>
#include <string.h>

#define ROWS 64u                      /* of every buffer: blocks of a round, or positions absorbed */
#define GUESS_STRIDE DSPARK_GUESSES_MAX
#define RING_SLOTS 10
#define WINDOW_SLOTS 3
#define WAIT_SLOTS 2

static_assert(CUDA_DSPARK_ROWS_MAX <= DSPARK_SEQUENCES_MAX, "sequences of a round");
static_assert(CUDA_DSPARK_ROWS_MAX * CUDA_DSPARK_BLOCK_MAX <= ROWS && CUDA_DSPARK_ABSORB_MAX <= ROWS && ROWS <= ROWMM_WIDE_ROWS_MAX, "rows of the buffers");

struct cuda_dspark {
    struct dspark_plain *plain;       /* owned; a head of other shapes: nothing below is used */
    struct cuda_dspark_spec spec;
    struct cuda_dspark_options options;
    struct dspark_plan plan;
    struct arena target;              /* where the target's table lies */
    struct rowmm_tuning tuning;
    uint32_t ring_rows;
    float confidence_bias;
    uint8_t *slab;                    /* owned; what follows lies in it */
    struct row_power *powers;         /* [layers][POWERS], then of the keys' and of the output matrix's activations; of FP8 weights, whose activations are f16 */
    float *powers_scratch;
    __nv_bfloat16 *outputs;           /* [sources][ROWS][hidden] */
    float *outputs_scale;             /* [sources][ROWS] FP8: of their powers of two */
    float *part;                      /* [max(sources, NORM_SPLIT_MAX)][ROWS][hidden] */
    __nv_bfloat16 *f;                 /* [ROWS][hidden] */
    float *key_out;                   /* [ROWS][layers * 512] */
    float *residual[2];               /* [ROWS][hidden] */
    __nv_bfloat16 *x, *attended, *act;/* [ROWS][hidden], [ROWS][16 * 512], [ROWS][intermediate]; FP8: f16, like outputs and f */
    float *qkv, *logits, *tile_top;   /* [ROWS][17 * 512], [blocks][head rows], [blocks][head rows / 16] */
    __nv_bfloat16 *q;                 /* attention's scratch */
    float *attn_part;
    float2 *attn_ml;
    float *inv_freq;                  /* [DSPARK_TURNED] */
    uint32_t *low;                    /* [places] */
    uint32_t *guess;                  /* [CUDA_DSPARK_ROWS_MAX][GUESS_STRIDE] */
    float *chance;
    void *markov;                     /* scratch */
    __nv_bfloat16 *k, *v;             /* owned: [places][layers][ring_rows][512] each */
    struct dspark_result *result, *result_device;   /* mapped; owned */
    cudaStream_t stream;
    uint64_t round;                   /* last launched */
    uint32_t asked;                   /* questions of it */
    struct dspark_newest *newest;     /* of a round that follows a step; in slab */
    struct handover words;            /* what such rounds wait for */
    struct { uint64_t tag, layers; uint32_t generation; } follows; /* the step, of the next round; tag 0: it follows none */
    struct cuda_handover hand;        /* of the next round, if it */
    bool hands_over;
};

static const __nv_bfloat16 *vector(const struct cuda_dspark *d, uint64_t offset) { return (const __nv_bfloat16 *)((const uint8_t *)d->options.weights_device + offset); }

/* ---- opening ---- */

static int make_scratch(struct cuda_dspark *d)
{
    const struct cuda_dspark_spec *s = &d->spec;
    const uint64_t hidden = s->hidden, blocks = (uint64_t)CUDA_DSPARK_ROWS_MAX * s->block, spans = dspark_attn_spans(d->ring_rows);
    const uint64_t parts = s->sources > NORM_SPLIT_MAX ? s->sources : NORM_SPLIT_MAX;
    const struct setup_part want[] = {
        { (void **)&d->newest, sizeof *d->newest },
        { (void **)&d->powers, sizeof *d->powers * (s->layers * POWERS + 2) }, { (void **)&d->powers_scratch, 4ull * POWERS_SCRATCH }, { (void **)&d->outputs_scale, 4ull * s->sources * ROWS },
        { (void **)&d->outputs, 2 * s->sources * ROWS * hidden }, { (void **)&d->part, 4 * parts * ROWS * hidden }, { (void **)&d->f, 2 * ROWS * hidden },
        { (void **)&d->key_out, 4ull * ROWS * s->layers * DSPARK_DIM }, { (void **)&d->residual[0], 4 * ROWS * hidden }, { (void **)&d->residual[1], 4 * ROWS * hidden },
        { (void **)&d->x, 2 * ROWS * hidden }, { (void **)&d->attended, 2ull * ROWS * DSPARK_HEADS * DSPARK_DIM }, { (void **)&d->act, 2ull * ROWS * s->intermediate },
        { (void **)&d->qkv, 4ull * ROWS * (DSPARK_HEADS + 1) * DSPARK_DIM }, { (void **)&d->logits, 4 * blocks * dspark_head_rows(s) }, { (void **)&d->tile_top, 4 * blocks * (dspark_head_rows(s) / TILE_ROWS) },
        { (void **)&d->q, 2ull * CUDA_DSPARK_ROWS_MAX * DSPARK_QUERIES * DSPARK_DIM }, { (void **)&d->attn_part, 4 * CUDA_DSPARK_ROWS_MAX * spans * DSPARK_QUERIES * DSPARK_DIM },
        { (void **)&d->attn_ml, 8 * CUDA_DSPARK_ROWS_MAX * spans * DSPARK_QUERIES },
        { (void **)&d->inv_freq, 4ull * DSPARK_TURNED }, { (void **)&d->low, 4ull * d->options.features.places }, { (void **)&d->guess, 4ull * CUDA_DSPARK_ROWS_MAX * GUESS_STRIDE },
        { (void **)&d->chance, 4ull * CUDA_DSPARK_ROWS_MAX * GUESS_STRIDE }, { &d->markov, DSPARK_MARKOV_SCRATCH },
    };
    const uint64_t ring = 2ull * d->options.features.places * s->layers * d->ring_rows * DSPARK_DIM;

    int rc = setup_slab(&d->slab, want, sizeof want / sizeof *want, "the drafter's scratch memory");
    if (rc == 0) rc = launch_check(cudaMalloc((void **)&d->k, ring), "the drafter's keys");
    if (rc == 0) rc = launch_check(cudaMalloc((void **)&d->v, ring), "the drafter's values");
    if (rc == 0) rc = launch_check(cudaMemset(d->k, 0, ring), "the drafter's keys");      /* what is masked is still multiplied: it must be a number */
    if (rc == 0) rc = launch_check(cudaMemset(d->v, 0, ring), "the drafter's values");
    if (rc == 0) rc = setup_mapped((void **)&d->result, (void **)&d->result_device, sizeof *d->result);
    return rc;
}

static int make_frequencies(const struct cuda_dspark *d)
{
    return setup_frequencies(d->inv_freq, d->spec.rope_theta, 1.0, DSPARK_DIM, DSPARK_TURNED);
}

static int check_device(struct cuda_dspark *d)
{
    int device, sms, together, rc = launch_check(cudaGetDevice(&device), "device");

    if (rc == 0) rc = launch_check(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device), "device");
    if (rc == 0) rc = launch_check(cudaDeviceGetAttribute(&together, cudaDevAttrCooperativeLaunch, device), "device");
    if (rc) return rc;
    if (!together) return launch_fail(-E_UNSUPPORTED, "the drafter's kernel cannot have all its blocks at once on this device");
    d->tuning.ring_slots = RING_SLOTS, d->tuning.window_slots = WINDOW_SLOTS, d->tuning.wait_slots = WAIT_SLOTS, d->tuning.sm_count = (uint32_t)sms;
    return 0;
}

static struct packed_matrix matrix(const struct cuda_dspark *d, const struct arena_matrix *m)
{
    const struct packed_matrix w = { (const uint8_t *)d->options.weights_device + m->offset, m->rows, m->k, m->slice_k, m->format };

    return w;
}

/* Places of `powers`. */
static uint32_t of_layer(uint32_t layer, enum power_place place) { return layer * POWERS + place; }
static uint32_t of_keys(const struct cuda_dspark *d) { return d->spec.layers * POWERS; }
static uint32_t of_head(const struct cuda_dspark *d) { return d->spec.layers * POWERS + 1; }

/* What activations are multiplied by, and what undoes it; NULL: they are bf16. */
static const float *up(const struct cuda_dspark *d, uint32_t place) { return d->spec.format == WEIGHT_FP8 ? &d->powers[place].up : NULL; }
static const float *down(const struct cuda_dspark *d, uint32_t place) { return d->spec.format == WEIGHT_FP8 ? &d->powers[place].down : NULL; }

/* From the weights, which are all there. */
static int make_powers(const struct cuda_dspark *d)
{
    const struct cuda_dspark_spec *s = &d->spec;
    int rc = powers_norm_launch(vector(d, d->plan.hidden_norm), s->hidden, d->powers + of_keys(d), NULL);

    if (rc == 0) rc = powers_norm_launch(vector(d, d->plan.final_norm), s->hidden, d->powers + of_head(d), NULL);
    for (uint32_t i = 0; i < s->layers && rc == 0; i++) {
        const struct dspark_layer_plan *l = &d->plan.layer[i];
        const struct powers_args a = { vector(d, l->input_norm), vector(d, l->pre_ff_norm), 0.0f, s->hidden, DSPARK_DIM, matrix(d, &l->qkv), matrix(d, &l->gate_up), 0, 1, 0, 0,
                                       d->powers + of_layer(i, POWER_QKV), d->powers_scratch };

        rc = powers_launch(&a, NULL);
    }
    return rc;
}

static int open_all(struct cuda_dspark *d)
{
    int rc = check_device(d);

    if (rc == 0) rc = rowmm_init();
    if (rc == 0) rc = rowmm_wide_init();
    if (rc == 0) rc = norm_init();
    if (rc == 0) rc = dspark_attn_init();
    if (rc == 0) rc = dspark_ops_init();
    if (rc == 0) rc = make_scratch(d);
    if (rc == 0) rc = make_frequencies(d);
    if (rc == 0 && d->spec.format == WEIGHT_FP8) rc = make_powers(d);
    if (rc == 0) rc = launch_check(cudaStreamCreateWithFlags(&d->stream, cudaStreamNonBlocking), "stream");
    if (rc == 0 && d->options.handover) rc = handover_open_follower(&d->words, d->options.handover);
    if (rc == -E_UNSUPPORTED) rc = 0; /* without those waits rounds begin when they are asked for */
    return rc ? rc : launch_check(cudaDeviceSynchronize(), "opening the drafter");
}

static bool options_are_sound(const struct cuda_dspark_spec *s, const struct cuda_dspark_options *o)
{
    const struct cuda_features *f = &o->features;

    if (!o->weights_device || !o->target_device || !f->device || f->places == 0 || f->rows == 0 || f->element_bytes != 2 || f->sources_max < s->sources) return false;
    return o->window != 0 && o->context_max > s->block && o->context_max <= 1u << 20;
}

extern "C" int cuda_dspark_open(struct cuda_dspark **dspark, const struct cuda_dspark_spec *spec, const struct cuda_model_spec *target, const struct cuda_dspark_options *options, float confidence_bias)
{
    struct cuda_dspark *d = new (std::nothrow) cuda_dspark();

    *dspark = NULL;
    if (d == NULL) return -E_NOMEM;
    int rc = dspark_plan_make(&d->plan, spec);
    if (rc == 0) rc = arena_plan(&d->target, target);
    if (rc || spec->hidden != target->hidden || spec->vocab != target->vocab) rc = launch_fail(-E_UNSUPPORTED, "the drafter's kernels are not made for these shapes");
    if (rc == 0 && !options_are_sound(spec, options)) rc = -E_RANGE;
    d->spec = *spec, d->options = *options, d->confidence_bias = confidence_bias;
    if (d->options.window > options->context_max) d->options.window = options->context_max;
    d->ring_rows = d->options.window + spec->block;
    if (rc == 0) rc = open_all(d);
    if (rc) cuda_dspark_close(d);
    else *dspark = d;
    return rc;
}

extern "C" int cuda_dspark_plain_open(struct cuda_dspark **dspark, const struct dspark_weights *weights, const struct cuda_model_spec *target, const struct cuda_dspark_options *options,
                                      struct cuda_left_out left_out, uint64_t *own_bytes)
{
    struct cuda_dspark *d = new (std::nothrow) cuda_dspark();
    const int rc = d ? dspark_plain_open(&d->plain, weights, target, options, left_out, own_bytes) : -E_NOMEM;

    if (rc) delete d;
    *dspark = rc ? NULL : d;
    return rc;
}

extern "C" void cuda_dspark_close(struct cuda_dspark *d)
{
    if (d == NULL) return;
    dspark_plain_close(d->plain);
    if (d->stream) cudaStreamSynchronize(d->stream), cudaStreamDestroy(d->stream);
    cudaFree(d->slab);
    cudaFree(d->k);
    cudaFree(d->v);
    if (d->result) cudaFreeHost(d->result);
    handover_close(&d->words);
    delete d;
}

/* ---- parts ---- */

/* What a product takes, and what its sums or its result are multiplied by; tiled: x, and what GEGLU leaves (row_places.h). */
struct rows_in { const __nv_bfloat16 *x; const float *x_power, *x_scale, *out_power; bool tiled; };

/* Where a block's rows lie from its start to its last norm: the LM head and the Markov head take plain ones. */
static struct row_places tiles(uint32_t rows)
{
    const struct row_places plain = {};

    return rows <= ROWMM_ROWS_MAX ? places_tiled(rows) : plain;
}

static int product_of(const struct cuda_dspark *d, const struct packed_matrix w, struct rows_in in, void *out, uint32_t rows, enum rowmm_out kind)
{
    struct rowmm_args a = {};

    a.x = in.x, a.x_power = in.x_power, a.x_scale = in.x_scale, a.out_power = in.out_power, a.out = out, a.m = rows, a.out_kind = kind;
    a.out_stride = kind == ROWMM_GEGLU ? w.rows / 2 : w.rows;
    a.out_slice_stride = (uint64_t)ROWS * a.out_stride;
    if (in.tiled) a.x_places = a.out_places = tiles(rows);
    if (kind == ROWMM_LOGITS) a.softcap = d->spec.softcap, a.tile_top = d->tile_top;
    return rows <= ROWMM_ROWS_MAX ? rowmm_launch(&w, a, &d->tuning, d->stream) : rowmm_wide_launch(&w, a, &d->tuning, d->stream);
}

/* place: of x's power. */
static int product(const struct cuda_dspark *d, const struct arena_matrix *m, const __nv_bfloat16 *x, bool tiled, uint32_t place, void *out, uint32_t rows)
{
    return product_of(d, matrix(d, m), rows_in{ x, down(d, place), NULL, NULL, tiled }, out, rows, ROWMM_PARTIAL);
}

static int output(const struct cuda_dspark *d, uint32_t rows)
{
    const struct arena_matrix *t = &d->target.head;
    const struct packed_matrix theirs = { (const uint8_t *)d->options.target_device + t->offset, t->rows, t->k, t->slice_k, t->format };

    return product_of(d, d->spec.shared_head ? theirs : matrix(d, &d->plan.head), rows_in{ d->x, down(d, of_head(d)), NULL, NULL, false }, d->logits, rows, ROWMM_LOGITS);
}

/* residual[flip ^ 1] = (residual[flip] + norm(sum of the product's slices)) * scalar; x = norm of it, with the power of that place. */
static int norm(const struct cuda_dspark *d, const struct arena_matrix *from, uint32_t flip, uint64_t w_post, uint64_t w_next, bool tiled, uint32_t next, const float *scalar, uint32_t rows)
{
    struct norm_args n = {};

    n.part = d->part, n.part_stride = (uint64_t)ROWS * d->spec.hidden, n.split = from->k / from->slice_k, n.hidden = d->spec.hidden;
    n.residual = d->residual[flip], n.residual_out = d->residual[flip ^ 1];
    n.w_post = vector(d, w_post), n.w_next = vector(d, w_next), n.scalar = scalar, n.eps = d->spec.norm_eps, n.y = d->x, n.y_power = up(d, next);
    if (tiled) n.y_places = tiles(rows);
    return norm_launch(&n, rows, d->stream);
}

static __nv_bfloat16 *ring_of(const struct cuda_dspark *d, __nv_bfloat16 *rings, uint32_t place, uint32_t layer)
{
    return rings + ((uint64_t)place * d->spec.layers + layer) * d->ring_rows * DSPARK_DIM;
}

/* The first position that the window leaves. */
static uint32_t window_low(const struct cuda_dspark *d, uint32_t position) { return position > d->options.window ? position - d->options.window : 0; }

/* ---- absorbing ---- */

extern "C" int cuda_dspark_place(struct cuda_dspark *d, uint32_t place, uint32_t low)
{
    if (d->plain) return dspark_plain_place(d->plain, place, low);
    if (place >= d->options.features.places) return -E_RANGE;
    return launch_check(cudaMemcpyAsync(d->low + place, &low, sizeof low, cudaMemcpyHostToDevice, d->stream), "the drafter's place");
}

static int put_keys(const struct cuda_dspark *d, const struct cuda_dspark_absorb *item, uint32_t first_row, const struct dspark_newest *newest)
{
    struct dspark_keys_args a = {};

    a.keys = d->key_out + (uint64_t)first_row * d->spec.layers * DSPARK_DIM;
    a.count = item->count, a.layers = d->spec.layers, a.position = item->first, a.ring_rows = d->ring_rows, a.newest = newest;
    a.k_norm = vector(d, d->plan.k_norms), a.inv_freq = d->inv_freq, a.eps = d->spec.norm_eps;
    a.k = ring_of(d, d->k, item->place, 0), a.v = ring_of(d, d->v, item->place, 0);
    return dspark_keys_launch(&a, d->stream);
}

/* Fills the rows of the gather; returns how many, or -E_RANGE. */
static int lay_rows(const struct cuda_dspark *d, const struct cuda_dspark_absorb *items, uint32_t count, struct dspark_gather_args *g)
{
    uint32_t rows = 0;

    for (uint32_t i = 0; i < count; i++) {
        const struct cuda_dspark_absorb *t = &items[i];

        if (t->place >= d->options.features.places || t->count == 0 || t->count > CUDA_DSPARK_ABSORB_MAX - rows || t->count > d->ring_rows) return -E_RANGE;
        if (t->first >= d->options.context_max || t->count > d->options.context_max - t->first) return -E_RANGE;
        for (uint32_t j = 0; j < i; j++)
            if (items[j].place == t->place) return -E_RANGE;
        for (uint32_t j = 0; j < t->count; j++) g->row[rows].place = t->place, g->row[rows].generation = t->generation, g->row[rows++].position = t->first + j;
    }
    return (int)rows;
}

/* newest: says how many of the rows there are; NULL: all. */
static int absorb(struct cuda_dspark *d, const struct cuda_dspark_absorb *items, uint32_t count, uint64_t layers, const struct dspark_newest *newest)
{
    const struct cuda_dspark_spec *s = &d->spec;
    struct dspark_gather_args g = {};
    const int rows = count == 0 || (uint32_t)__builtin_popcountll(layers) != s->sources ? -E_RANGE : lay_rows(d, items, count, &g);
    uint32_t first = 0;

    if (rows < 0) return rows;
    g.features = d->options.features, g.layers = layers, g.hidden = s->hidden, g.sources = s->sources, g.source_stride = (uint64_t)ROWS * s->hidden, g.x = d->outputs, g.low = d->low, g.newest = newest;
    if (s->format == WEIGHT_FP8) g.x_scale = d->outputs_scale, g.rows_max = ROWS;
    const struct dspark_feature_args feature = { d->part, (uint64_t)ROWS * s->hidden, s->sources, s->hidden, vector(d, d->plan.hidden_norm), s->norm_eps, d->f, up(d, of_keys(d)) };
    int rc = dspark_gather_launch(&g, (uint32_t)rows, d->stream);

    for (uint32_t i = 0; i < s->sources && rc == 0; i++)
        rc = product_of(d, matrix(d, &d->plan.fc[i]), rows_in{ d->outputs + i * g.source_stride, NULL, g.x_scale ? g.x_scale + i * ROWS : NULL, NULL, false }, d->part + i * feature.part_stride, (uint32_t)rows, ROWMM_PARTIAL);
    if (rc == 0) rc = dspark_feature_launch(&feature, (uint32_t)rows, d->stream);
    if (rc == 0) rc = product(d, &d->plan.keys, d->f, false, of_keys(d), d->key_out, (uint32_t)rows);
    for (uint32_t i = 0; i < count && rc == 0; first += items[i++].count) rc = put_keys(d, &items[i], first, newest);
    return rc;
}

extern "C" int cuda_dspark_absorb(struct cuda_dspark *d, const struct cuda_dspark_absorb *items, uint32_t count, uint64_t layers)
{
    return d->plain ? dspark_plain_absorb(d->plain, items, count, layers) : absorb(d, items, count, layers, NULL);
}

/* ---- a round; newest: of one that follows a step ---- */

/* Positions that a step commits at most: all drafts and one more. */
static uint32_t committed_max(const struct cuda_dspark *d) { return d->spec.block + 1; }

static int attend(const struct cuda_dspark *d, uint32_t layer, const struct cuda_dspark_question *q, uint32_t count, const struct dspark_newest *newest)
{
    const uint32_t later = newest ? committed_max(d) : 0;
    struct dspark_attn_args a = {};

    a.qkv = d->qkv, a.qkv_stride = (DSPARK_HEADS + 1) * DSPARK_DIM, a.rows = d->spec.block, a.count = count;
    for (uint32_t i = 0; i < count; i++)
        a.seq[i] = dspark_attn_seq{ ring_of(d, d->k, q[i].place, layer), ring_of(d, d->v, q[i].place, layer), q[i].position + later, window_low(d, q[i].position), d->low + q[i].place };
    a.q_norm = vector(d, d->plan.layer[layer].q_norm), a.k_norm = vector(d, d->plan.k_norms) + layer * DSPARK_DIM, a.inv_freq = d->inv_freq;
    a.ring_rows = d->ring_rows, a.eps = d->spec.norm_eps, a.spans_max = dspark_attn_spans(d->ring_rows);
    a.q = d->q, a.part = d->attn_part, a.part_ml = d->attn_ml, a.out = d->attended, a.out_places = tiles(a.rows * count), a.out_power = up(d, of_layer(layer, POWER_O)), a.newest = newest;
    return dspark_attn_launch(&a, d->stream);
}

static int run_layer(const struct cuda_dspark *d, uint32_t i, const struct cuda_dspark_question *q, uint32_t count, const struct dspark_newest *newest)
{
    const struct dspark_layer_plan *l = &d->plan.layer[i];
    const uint32_t rows = count * d->spec.block;
    const bool last = i + 1 == d->spec.layers;
    const uint64_t next = last ? d->plan.final_norm : d->plan.layer[i + 1].input_norm;
    const uint32_t next_place = last ? of_head(d) : of_layer(i + 1, POWER_QKV);
    int rc = product(d, &l->qkv, d->x, true, of_layer(i, POWER_QKV), d->qkv, rows);

    if (rc == 0) rc = attend(d, i, q, count, newest);
    if (rc == 0) rc = product(d, &l->o, d->attended, true, of_layer(i, POWER_O), d->part, rows);
    if (rc == 0) rc = norm(d, &l->o, 0, l->post_attention_norm, l->pre_ff_norm, true, of_layer(i, POWER_GATE_UP), NULL, rows);
    if (rc == 0) rc = product_of(d, matrix(d, &l->gate_up), rows_in{ d->x, down(d, of_layer(i, POWER_GATE_UP)), NULL, up(d, of_layer(i, POWER_DOWN)), true }, d->act, rows, ROWMM_GEGLU);
    if (rc == 0) rc = product(d, &l->down, d->act, true, of_layer(i, POWER_DOWN), d->part, rows);
    return rc ? rc : norm(d, &l->down, 1, l->post_ff_norm, next, !last, next_place, (const float *)((const uint8_t *)d->options.weights_device + l->scalar), rows);
}

/* What all sequences have in common. */
static struct dspark_markov_args markov_args(const struct cuda_dspark *d)
{
    const struct cuda_dspark_spec *s = &d->spec;
    struct dspark_markov_args a = {};

    a.base = d->logits, a.hidden = d->x, a.hidden_size = s->hidden, a.rows = dspark_head_rows(s), a.vocab = s->vocab;
    a.choice = s->choices ? (const uint32_t *)((const uint8_t *)d->options.weights_device + d->plan.choice) : NULL;
    a.w1 = vector(d, d->plan.w1), a.w2 = (const uint8_t *)d->options.weights_device + d->plan.w2;
    a.w2_scale = s->format == WEIGHT_FP8 ? (const float *)((const uint8_t *)d->options.weights_device + d->plan.w2_scale) : NULL;
    a.confidence = s->has_confidence ? vector(d, d->plan.confidence) : NULL, a.confidence_bias = d->confidence_bias;
    a.guess = d->guess, a.chance = d->chance, a.scratch = d->markov, a.hidden_power = down(d, of_head(d));
    return a;
}

static int guess_alone(const struct cuda_dspark *d, const struct cuda_dspark_question *q, uint32_t index, const struct dspark_newest *newest)
{
    struct dspark_markov_args a = markov_args(d);

    a.base += (uint64_t)index * d->spec.block * dspark_head_rows(&d->spec), a.hidden += (uint64_t)index * d->spec.block * d->spec.hidden;
    a.guesses = q->guesses, a.token = q->token, a.position = q->position, a.seed = q->seed, a.temperature = q->temperature, a.newest = newest;
    a.guess += index * GUESS_STRIDE, a.chance += index * GUESS_STRIDE;
    return dspark_markov_launch(&a, d->tuning.sm_count, d->stream);
}

/* In BF16 one sequence after the other. */
static int guess(const struct cuda_dspark *d, const struct cuda_dspark_question *q, uint32_t count, const struct dspark_newest *newest)
{
    struct dspark_markov_many_args m = {};
    int rc = 0;

    if (count == 1 || d->spec.format != WEIGHT_FP8) {
        for (uint32_t i = 0; i < count && rc == 0; i++) rc = guess_alone(d, &q[i], i, newest);
        return rc;
    }
    m.common = markov_args(d), m.count = count, m.block = d->spec.block;
    for (uint32_t i = 0; i < count; i++)
        m.seq[i].token = q[i].token, m.seq[i].position = q[i].position, m.seq[i].guesses = q[i].guesses, m.seq[i].temperature = q[i].temperature, m.seq[i].seed = q[i].seed;
    return dspark_markov_many_launch(&m, d->tuning.sm_count, d->stream);
}

static int publish(const struct cuda_dspark *d, const struct cuda_dspark_question *q, uint32_t count, bool hands_over, const struct dspark_newest *newest)
{
    struct dspark_publish_args a = {};

    a.guess = d->guess, a.chance = d->spec.has_confidence ? d->chance : NULL, a.low = d->low, a.guess_stride = GUESS_STRIDE, a.count = count;
    for (uint32_t i = 0; i < count; i++) a.place[i] = q[i].place, a.least[i] = window_low(d, q[i].position), a.guesses[i] = q[i].guesses;
    a.result = d->result_device, a.round = d->round, a.newest = newest;
    if (hands_over && count == 1) a.handover = d->options.handover, a.hand = d->hand;
    return dspark_publish_launch(&a, d->stream);
}

static bool is_sound(const struct cuda_dspark *d, const struct cuda_dspark_question *q)
{
    if (q->place >= d->options.features.places || q->token >= d->spec.vocab || q->position > d->options.context_max - d->spec.block) return false;
    return q->guesses >= 1 && q->guesses <= d->spec.block && q->temperature >= 0 && q->temperature <= 100;      /* false for NaN */
}

/* All links, behind what is absorbed. */
static int enqueue(const struct cuda_dspark *d, const struct cuda_dspark_question *q, uint32_t count, bool hands_over, const struct dspark_newest *newest)
{
    const struct arena_matrix *table = &d->target.head;
    struct dspark_start_args a = {};

    for (uint32_t i = 0; i < count; i++) a.token[i] = q[i].token;
    if (d->spec.own_table) a.plain = vector(d, d->plan.table);
    else a.packed = (const uint8_t *)d->options.target_device + table->offset, a.slice_k = table->slice_k, a.slices = table->k / table->slice_k;
    a.hidden = d->spec.hidden, a.block = d->spec.block, a.mask = d->spec.mask_token, a.scale = d->spec.embed_scale, a.eps = d->spec.norm_eps, a.newest = newest;
    a.w = vector(d, d->plan.layer[0].input_norm), a.h = d->residual[0], a.y = d->x, a.y_places = tiles(count * d->spec.block), a.y_power = up(d, of_layer(0, POWER_QKV));
    int rc = dspark_start_launch(&a, count * d->spec.block, d->stream);
    for (uint32_t i = 0; i < d->spec.layers && rc == 0; i++) rc = run_layer(d, i, q, count, newest);
    if (rc == 0) rc = output(d, count * d->spec.block);
    if (rc == 0) rc = guess(d, q, count, newest);
    return rc ? rc : publish(d, q, count, hands_over, newest);
}

/* The step's word, where the text then stands, and what the step committed. */
static int begin_behind(struct cuda_dspark *d, const struct cuda_dspark_question *q, uint64_t tag, uint32_t generation, uint64_t layers)
{
    const struct dspark_begin_args a = { d->options.handover, tag, q->position, committed_max(d), d->options.window, d->spec.vocab, d->newest };
    const struct cuda_dspark_absorb item = { q->place, generation, q->position, committed_max(d) };
    int rc = handover_follow(&d->words, tag, d->stream);

    if (rc == 0) rc = dspark_begin_launch(&a, d->stream);
    return rc ? rc : absorb(d, &item, 1, layers, d->newest);
}

static bool can_follow(const struct cuda_dspark *d, const struct cuda_dspark_question *q, uint32_t count)
{
    return count == 1 && q->position >= 1 && q->position + d->spec.block + committed_max(d) <= d->options.context_max;
}

extern "C" int cuda_dspark_round(struct cuda_dspark *d, const struct cuda_dspark_question *q, uint32_t count)
{
    if (d->plain) return dspark_plain_round(d->plain, q, count);
    const bool hands_over = d->hands_over;
    const auto follows = d->follows;
    int rc = 0;

    d->hands_over = false, d->follows.tag = 0;    /* also of a round that is refused */
    if (count == 0 || count > CUDA_DSPARK_ROWS_MAX) return -E_RANGE;
    for (uint32_t i = 0; i < count; i++)
        if (!is_sound(d, &q[i])) return -E_RANGE;
    if (follows.tag && !can_follow(d, q, count)) return -E_RANGE;
    if (d->round && __atomic_load_n(&d->result->round, __ATOMIC_ACQUIRE) != d->round) return -E_BUSY;
    d->round++, d->asked = count;
    if (follows.tag) rc = begin_behind(d, q, follows.tag, follows.generation, follows.layers);
    return rc ? rc : enqueue(d, q, count, hands_over, follows.tag ? d->newest : NULL);
}

extern "C" int cuda_dspark_follow(struct cuda_dspark *d, uint64_t tag, uint32_t generation, uint64_t layers)
{
    if (!d->words.record) return -E_UNSUPPORTED;
    if (tag == 0 || (uint32_t)__builtin_popcountll(layers) != d->spec.sources) return -E_RANGE;
    d->follows = { tag, layers, generation };
    return 0;
}

extern "C" int cuda_dspark_skip(struct cuda_dspark *d) { return d->words.record && d->words.tag ? handover_skip(&d->words) : -E_RANGE; }

extern "C" int cuda_dspark_hand_over(struct cuda_dspark *d, const struct cuda_handover *hand)
{
    if (d->plain) return dspark_plain_hand_over(d->plain, hand);
    if (!d->options.handover || hand->tag == 0) return -E_RANGE;
    d->hand = *hand;
    d->hands_over = true;
    return 0;
}

extern "C" int cuda_dspark_wait(struct cuda_dspark *d, uint32_t timeout_us, struct cuda_dspark_answer *answers)
{
    if (d->plain) return dspark_plain_wait(d->plain, timeout_us, answers);
    const int rc = await_word(&d->result->round, d->round, NULL, d->stream, timeout_us, "draft round"); /* W1 <- publish_kernel */

    if (rc) return rc;
    memcpy(answers, d->result->answer, d->asked * sizeof *answers);
    return 0;
}

extern "C" const float *cuda_dspark_logits(const struct cuda_dspark *d) { return d->plain ? dspark_plain_logits(d->plain) : d->logits; }
extern "C" const float *cuda_dspark_plain_markov(const struct cuda_dspark *d) { return d->plain ? dspark_plain_markov(d->plain) : NULL; }
extern "C" void *cuda_dspark_stream(struct cuda_dspark *d) { return d->plain ? dspark_plain_stream(d->plain) : d->stream; }
