/* model/engine_draft_dspark_cuda.c - a DSpark head beside a target on the GPU: rounds in one chain of launches of libsluice_cuda.so, with kernels made for the 12B model's head (cuda_dspark.h)
 * or, for heads of other shapes, with those that give the CPU's bits (cuda_dspark_plain.h).
 *
 * Reads    the head's checkpoint (files), the target's packed weights (gpu.weights: embedding table and output matrix), arena.features, device memory mapped read-only
 * Writes   counter DRAFT_SOURCES of the draft role: which layers' outputs prefill and verify shall leave in arena.features
 * Owns     its weights on the device, and keys and values of what it has absorbed, draft.context positions a place (model/features.h). They die with the process: its
 *          successor takes them from arena.features again
 * Fails    a head that does not fit target or kernels, a server that keeps no outputs of layers: exit 100 with the reason; no memory: 111. A lost context: exit 112, as the
 *          other GPU stages. Positions whose outputs are gone: the head looks back as far as the ones behind them, and not at all for a while. */
#include "kernels/bf16.h"
#include "model/cuda_library.h"
#include "model/dspark.h"
#include "model/engine_draft.h"
#include "model/engine_gpu.h"
#include "model/features.h"
#include "schemas/counters.h"
#include "shm/atomic.h"
#include "shm/clock.h"
#include "shm/error.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define WAIT_US 10000u                /* between two heartbeats */
#define ROUND_LIMIT_NS 5000000000ull  /* a round takes a millisecond; another process may have the GPU for some time */
#define CATCH_UP_ROWS 1024u           /* positions absorbed in one round: a long prompt takes several, so that the others' drafts are not late for it */
#define STEP_ROWS (CUDA_DSPARK_ABSORB_MAX / CUDA_DSPARK_ROWS_MAX) /* of each sequence, absorbed together */
#define CONTEXT_MIN 8u                /* a head that sees fewer positions is not asked: it was never trained for that, but for a short prompt */

_Static_assert(STEP_ROWS > CUDA_DSPARK_BLOCK_MAX, "what a step of the target commits goes together");
_Static_assert(CUDA_DSPARK_GUESSES_MAX <= RING_TOKENS_MAX, "a message holds what a round drafts");
_Static_assert(DSPARK_SOURCES_MAX <= CUDA_DSPARK_SOURCES_MAX, "outputs of layers");

struct seat {                         /* of a place */
    uint32_t generation;              /* of the sequence whose positions are absorbed; 0: nobody's */
    uint32_t slot, filled;            /* positions up to filled - 1 are absorbed, or are gaps */
};

struct gpu_head {
    struct cuda_library lib;
    struct cuda_device_facts facts;
    struct cuda_model_spec target;
    struct cuda_dspark_spec spec;
    struct model_weights tables;      /* the target's on the host, if it has files: is the head's own table another? */
    struct dspark_weights weights;    /* on the host; only while they are loaded */
    void *weights_device;             /* mapped until the process ends; plain heads own theirs */
    struct cuda_dspark *dspark;
    struct cuda_features features;
    uint64_t layers;
    uint32_t window;
    uint32_t *generation;             /* [slot_count]; 0: no sequence */
    struct seat *seat;                /* [places] */
    struct cuda_dspark_question ahead; /* of the round that follows a step */
};

static void check(struct engine_draft *d, const char *what, int rc)
{
    const struct gpu_head *g = d->state;

    engine_gpu_check(&g->lib, d->stage, what, rc);
}

/* ---- sequences ----------------------------------------------------------------------------- */

static void head_admit(struct engine_draft *d, uint32_t slot, const struct engine_sequence *seq)
{
    ((struct gpu_head *)d->state)->generation[slot] = seq->generation;
}

static void head_leave(struct engine_draft *d, uint32_t slot)
{
    ((struct gpu_head *)d->state)->generation[slot] = 0;
}

/* The sequence's place; it begins anew there if another had it, if its text is shorter than it was, or if it is far ahead. */
static struct seat *take_seat(struct engine_draft *d, uint32_t slot, uint32_t position)
{
    struct gpu_head *g = d->state;
    const uint32_t place = slot % g->features.places;
    struct seat *s = &g->seat[place];
    const bool is_ours = s->generation == g->generation[slot] && s->slot == slot;

    if (is_ours && s->filled <= position && position - s->filled <= g->window) return s;
    *s = (struct seat){.generation = g->generation[slot], .slot = slot, .filled = position > g->window ? position - g->window : 0};
    check(d, "a drafter's place", g->lib.dspark_place(g->dspark, place, s->filled));
    return s;
}

/* Absorbs up to `position`, as far as *budget goes. Is all of it absorbed? */
static bool catch_up(struct engine_draft *d, struct seat *s, uint32_t position, uint32_t *budget)
{
    struct gpu_head *g = d->state;

    while (s->filled < position && *budget > 0) {
        const uint32_t left = position - s->filled < *budget ? position - s->filled : *budget, n = left < CUDA_DSPARK_ABSORB_MAX ? left : CUDA_DSPARK_ABSORB_MAX;
        const struct cuda_dspark_absorb item = {.place = (uint32_t)(s - g->seat), .generation = s->generation, .first = s->filled, .count = n};
        check(d, "absorbing", g->lib.dspark_absorb(g->dspark, &item, 1, g->layers));
        s->filled += n;
        *budget -= n;
        stage_beat(d->stage);
    }
    return s->filled == position;
}

/* ---- rounds -------------------------------------------------------------------------------- */

/* Steps of at most a few positions for several sequences go together. */
static void absorb_steps(struct engine_draft *d, const struct engine_draft_question *questions, const uint32_t *index, uint32_t count)
{
    struct gpu_head *g = d->state;
    struct cuda_dspark_absorb items[CUDA_DSPARK_ROWS_MAX];
    uint32_t n = 0, rows = 0;

    for (uint32_t i = 0; i < count; i++) {
        const struct engine_draft_question *q = &questions[index[i]];
        struct seat *s = &g->seat[q->slot % g->features.places];
        if (s->filled == q->position || q->position - s->filled > CUDA_DSPARK_ABSORB_MAX - rows) continue;
        items[n++] = (struct cuda_dspark_absorb){.place = (uint32_t)(s - g->seat), .generation = s->generation, .first = s->filled, .count = q->position - s->filled};
        rows += q->position - s->filled;
        s->filled = q->position;
    }
    if (n) check(d, "absorbing", g->lib.dspark_absorb(g->dspark, items, n, g->layers));
}

static struct cuda_dspark_question to_question(const struct engine_draft *d, const struct engine_draft_question *q)
{
    const struct sampling_params *p = q->sampling;

    return (struct cuda_dspark_question){.place = q->slot % ((const struct gpu_head *)d->state)->features.places, .token = q->token, .position = q->position,
                                         .guesses = q->tokens_max < d->tokens_max ? q->tokens_max : d->tokens_max, .temperature = p->temperature, .seed = p->seed, .top_p = p->top_p, .min_p = p->min_p,
                                         .top_k = p->top_k};
}

/* Of a head that saw too little there are none. */
static void take_answer(struct engine_draft_answer *to, const struct cuda_dspark_answer *a, uint32_t position, uint32_t guesses)
{
    const uint32_t seen = position - (a->low < position ? a->low : position), all = position < CONTEXT_MIN ? position : CONTEXT_MIN;

    if (seen == 0 || seen < all) return;
    to->count = guesses;
    memcpy(to->token, a->token, guesses * sizeof *to->token);
    memcpy(to->confidence, a->confidence, guesses * sizeof *to->confidence);
}

/* A round of up to CUDA_DSPARK_ROWS_MAX questions that are all caught up. */
static int launch(struct engine_draft *d, const struct engine_draft_question *questions, const uint32_t *index, uint32_t count, struct engine_draft_answer *answers)
{
    struct gpu_head *g = d->state;
    struct cuda_dspark_question q[CUDA_DSPARK_ROWS_MAX];
    struct cuda_dspark_answer a[CUDA_DSPARK_ROWS_MAX];
    const uint64_t until = clock_ns() + ROUND_LIMIT_NS;

    for (uint32_t i = 0; i < count; i++) q[i] = to_question(d, &questions[index[i]]);
    int rc = g->lib.dspark_round(g->dspark, q, count);
    if (rc == -E_RANGE) return rc;
    check(d, "draft round", rc);
    while ((rc = g->lib.dspark_wait(g->dspark, WAIT_US, a)) == -E_TIMEOUT && clock_ns() < until) stage_beat(d->stage);
    check(d, "draft round", rc);
    for (uint32_t i = 0; i < count; i++) take_answer(&answers[index[i]], &a[i], q[i].position, q[i].guesses);
    return 0;
}

struct pending { uint32_t index[CUDA_DSPARK_ROWS_MAX], count; };

static int flush(struct engine_draft *d, const struct engine_draft_question *questions, struct pending *p, struct engine_draft_answer *answers)
{
    const uint64_t begin_ns = clock_ns();

    if (p->count == 0) return 0;
    absorb_steps(d, questions, p->index, p->count);
    const int rc = launch(d, questions, p->index, p->count, answers);
    d->fixed_ns += clock_ns() - begin_ns; /* all of it, however many guesses are made; catching up on a prompt comes once */
    p->count = 0;
    stage_beat(d->stage);
    return rc;
}

/* Slots of one place take turns there. */
static bool has_place(const struct engine_draft *d, const struct engine_draft_question *questions, const struct pending *p, uint32_t slot)
{
    const uint32_t places = ((const struct gpu_head *)d->state)->features.places;

    for (uint32_t i = 0; i < p->count; i++)
        if (questions[p->index[i]].slot % places == slot % places) return true;
    return false;
}

static int head_round(struct engine_draft *d, const struct engine_draft_question *questions, uint32_t count, struct engine_draft_answer *answers, engine_draft_go_on_fn *go_on, void *context)
{
    struct gpu_head *g = d->state;
    struct pending p = {.count = 0};
    uint32_t budget = CATCH_UP_ROWS;
    int rc = 0;

    (void)go_on; /* the guesses of a block are made without asking: they cost little beside it */
    (void)context;
    d->fixed_ns = 0;
    if (count > d->rows_max) return -E_RANGE;
    for (uint32_t i = 0; i < count; i++) answers[i].count = 0;
    for (uint32_t i = 0; i < count && rc == 0; i++) {
        const struct engine_draft_question *q = &questions[i];
        if (q->slot >= d->slot_count || q->token >= d->target.config.vocab) return -E_RANGE;
        if (q->tokens_max == 0 || g->generation[q->slot] == 0 || q->position == 0 || q->position > d->target.geometry.max_context - g->spec.block) continue;
        if (p.count == CUDA_DSPARK_ROWS_MAX || has_place(d, questions, &p, q->slot)) rc = flush(d, questions, &p, answers);
        struct seat *s = take_seat(d, q->slot, q->position);
        if (q->position - s->filled <= STEP_ROWS || catch_up(d, s, q->position, &budget)) p.index[p.count++] = i;
    }
    return rc ? rc : flush(d, questions, &p, answers);
}

static void head_hand_over(struct engine_draft *d, const struct cuda_handover *hand)
{
    struct gpu_head *g = d->state;

    check(d, "handing guesses over", g->lib.dspark_hand_over(g->dspark, hand));
}

/* ---- rounds that follow a step ---- */

/* Only of a sequence that is absorbed up to its newest token: the step that it follows commits the rest. */
static int head_ahead(struct engine_draft *d, const struct engine_draft_question *question, uint64_t behind)
{
    struct gpu_head *g = d->state;
    const struct cuda_dspark_question q = to_question(d, question);
    const struct seat *s = &g->seat[q.place];

    if (s->generation == 0 || s->generation != g->generation[question->slot] || s->slot != question->slot || s->filled != q.position) return -E_RANGE;
    int rc = g->lib.dspark_follow(g->dspark, behind, s->generation, g->layers);
    if (rc == 0) rc = g->lib.dspark_round(g->dspark, &q, 1);
    if (rc == -E_RANGE || rc == -E_UNSUPPORTED) return rc;
    check(d, "draft round", rc);
    g->ahead = q;
    return 0;
}

static int head_ahead_done(struct engine_draft *d, struct engine_draft_answer *answer)
{
    struct gpu_head *g = d->state;
    struct cuda_dspark_answer a;
    const int rc = g->lib.dspark_wait(g->dspark, 0, &a);

    if (rc == -E_TIMEOUT) return 0;
    check(d, "draft round", rc);
    *answer = (struct engine_draft_answer){.position = a.position, .ns = a.ns};
    if (a.position == 0) return 1;
    take_answer(answer, &a, a.position, g->ahead.guesses);
    g->seat[g->ahead.place].filled = a.position;
    d->fixed_ns = a.ns;
    return 1;
}

static void head_skip(struct engine_draft *d)
{
    struct gpu_head *g = d->state;

    check(d, "following no step", g->lib.dspark_skip(g->dspark));
}

static const struct engine_draft_device head_device = {head_admit, head_leave, head_round, head_hand_over, head_ahead, head_ahead_done, head_skip};

/* ---- weights ------------------------------------------------------------------------------- */

void engine_draft_dspark_spec(struct cuda_dspark_spec *spec, const struct dspark_config *s, uint32_t format)
{
    const struct model_config *c = &s->layers;
    const struct rope_config *rope = &c->rope[LAYER_FULL];
    const uint32_t dim = c->layer[0].head_dim;

    *spec = (struct cuda_dspark_spec){.hidden = c->hidden, .intermediate = c->intermediate, .vocab = c->vocab, .layers = c->layer_count, .q_heads = c->q_heads, .kv_heads = c->layer[0].kv_heads,
                                      .head_dim = dim, .sources = s->source_count, .block = s->block, .rank = s->markov_rank, .mask_token = s->mask_token, .format = format,
                                      .has_confidence = s->confidence, .norm_eps = c->norm_eps, .softcap = c->final_softcap, .attention_scale = c->attention_scale, .rope_theta = rope->theta};
    spec->rope_turned = rope->factor != 1.0 ? 0 : rope->type == ROPE_PROPORTIONAL ? (uint32_t)floor(rope->partial_rotary_factor * dim / 2) : dim / 2;
}

/* By way of BF16, if it is not that. */
static void put_matrix(struct engine_draft *d, enum cuda_dspark_tensor tensor, uint32_t layer, const struct stored_matrix *m)
{
    struct gpu_head *g = d->state;
    const uint64_t count = (uint64_t)m->rows * m->k;
    uint16_t *own = m->element == STORED_BF16 ? NULL : malloc(count * sizeof *own);

    if (m->element != STORED_BF16 && !own) stage_exit(d->stage, EXIT_MISSING, "out of memory for the drafter's weights");
    for (uint64_t i = 0; i < count && own; i++) own[i] = bf16_of(stored_value(m, i / m->k, i % m->k));
    check(d, "the drafter's weights", g->lib.dspark_weights_put(&g->spec, g->weights_device, tensor, layer, own ? own : m->data, count));
    free(own);
    stage_beat(d->stage);
}

/* Of a matrix with a row for each token: those of the tokens that may be guessed. */
static void put_rows(struct engine_draft *d, enum cuda_dspark_tensor tensor, const struct stored_matrix *m)
{
    struct gpu_head *g = d->state;
    const uint64_t count = (uint64_t)d->vocab.count * m->k;

    if (d->vocab.count == 0) {
        put_matrix(d, tensor, 0, m);
        return;
    }
    uint16_t *rows = malloc(count * sizeof *rows);
    if (!rows) stage_exit(d->stage, EXIT_MISSING, "out of memory for the drafter's weights");
    for (uint64_t i = 0; i < count; i++) rows[i] = bf16_of(stored_value(m, d->vocab.token[i / m->k], i % m->k));
    check(d, "the drafter's weights", g->lib.dspark_weights_put(&g->spec, g->weights_device, tensor, 0, rows, count));
    free(rows);
    stage_beat(d->stage);
}

static void put_vector(struct engine_draft *d, enum cuda_dspark_tensor tensor, uint32_t layer, const float *values, uint32_t count)
{
    struct gpu_head *g = d->state;

    check(d, "the drafter's weights", g->lib.dspark_weights_put(&g->spec, g->weights_device, tensor, layer, values, count));
}

static void put_layer(struct engine_draft *d, uint32_t i)
{
    const struct gpu_head *g = d->state;
    const struct drafter_layer *l = &g->weights.layer[i].shared;
    const uint32_t hidden = g->spec.hidden;

    put_matrix(d, CUDA_DSPARK_Q, i, &l->q);
    put_matrix(d, CUDA_DSPARK_K, i, &g->weights.layer[i].k);
    put_matrix(d, CUDA_DSPARK_O, i, &l->o);
    put_matrix(d, CUDA_DSPARK_GATE, i, &l->gate);
    put_matrix(d, CUDA_DSPARK_UP, i, &l->up);
    put_matrix(d, CUDA_DSPARK_DOWN, i, &l->down);
    put_vector(d, CUDA_DSPARK_INPUT_NORM, i, l->input_norm, hidden);
    put_vector(d, CUDA_DSPARK_POST_ATTENTION_NORM, i, l->post_attention_norm, hidden);
    put_vector(d, CUDA_DSPARK_PRE_FF_NORM, i, l->pre_feedforward_norm, hidden);
    put_vector(d, CUDA_DSPARK_POST_FF_NORM, i, l->post_feedforward_norm, hidden);
    put_vector(d, CUDA_DSPARK_Q_NORM, i, l->q_norm, g->spec.head_dim);
    put_vector(d, CUDA_DSPARK_K_NORM, i, g->weights.layer[i].k_norm, g->spec.head_dim);
    put_vector(d, CUDA_DSPARK_SCALAR, i, &l->scalar, 1);
}

static void put_confidence(struct engine_draft *d)
{
    const struct gpu_head *g = d->state;
    const uint32_t seen = g->spec.hidden + (g->weights.config.confidence_sees_token ? g->spec.rank : 0);
    float *values = calloc(g->spec.hidden + g->spec.rank, sizeof *values);

    if (!values) stage_exit(d->stage, EXIT_MISSING, "out of memory for the drafter's weights");
    memcpy(values, g->weights.confidence, seen * sizeof *values);
    put_vector(d, CUDA_DSPARK_CONFIDENCE, 0, values, g->spec.hidden + g->spec.rank);
    free(values);
}

static void load_weights(struct engine_draft *d, const void *target_device)
{
    struct gpu_head *g = d->state;
    const struct dspark_weights *w = &g->weights;
    const struct stored_matrix table = drafter_plain(w->embed, w->embed_dtype, g->spec.vocab, g->spec.hidden), markov_in = drafter_plain(w->markov_in, w->markov_dtype, g->spec.vocab, g->spec.rank);

    for (uint32_t i = 0; i < g->spec.layers; i++) put_layer(d, i);
    put_matrix(d, CUDA_DSPARK_FC, 0, &w->fc);
    put_matrix(d, CUDA_DSPARK_MARKOV_IN, 0, &markov_in);
    if (d->vocab.count) check(d, "the drafter's weights", g->lib.dspark_weights_put(&g->spec, g->weights_device, CUDA_DSPARK_CHOICE, 0, d->vocab.token, d->vocab.count));
    put_rows(d, CUDA_DSPARK_MARKOV_OUT, &w->markov_out);
    put_vector(d, CUDA_DSPARK_HIDDEN_NORM, 0, w->hidden_norm, g->spec.hidden);
    put_vector(d, CUDA_DSPARK_FINAL_NORM, 0, w->norm, g->spec.hidden);
    if (w->confidence) put_confidence(d);
    if (g->spec.own_table) put_matrix(d, CUDA_DSPARK_TABLE, 0, &table);
    if (!w->head_is_shared) {
        put_rows(d, CUDA_DSPARK_HEAD, &w->head);
        return;
    }
    engine_await_weights(&d->target);
    if (!g->spec.shared_head) check(d, "the drafter's output matrix", g->lib.dspark_weights_head(&g->spec, g->weights_device, &g->target, target_device));
}

/* ---- setting up ---------------------------------------------------------------------------- */

/* The head, with tables that are the target's where they are not in its files or equal. A target of random weights has no tables on the host. */
static void load_head(struct engine_draft *d)
{
    struct gpu_head *g = d->state;
    struct model_error err = {""};
    int rc = 0;

    g->tables = (struct model_weights){.config = &d->target.config, .dtype = DTYPE_BF16};
    if (!wiring_text(&d->stage->wiring, "model.random", "")[0]) rc = model_load(&d->target.config, &d->target.generation, &g->tables, &d->target.files, &err);
    if (rc == 0) rc = dspark_load(&g->weights, &d->files, &g->tables, &err);
    if (rc == 0) rc = dspark_check(&g->weights.config, &d->target.config, &err);
    if (rc != 0) stage_exit(d->stage, EXIT_CONFIG, "the drafter cannot be used: %s", err.text[0] ? err.text : error_text(rc));
    for (uint32_t i = 0; i < g->weights.config.source_count; i++) {
        if (g->weights.config.source[i] >= 64) stage_exit(d->stage, EXIT_CONFIG, "the drafter reads layer %u; only the first 64 can be had", g->weights.config.source[i]);
        g->layers |= 1ull << g->weights.config.source[i];
    }
}

static void map_features(struct engine_draft *d)
{
    struct gpu_head *g = d->state;

    engine_gpu_features(&g->lib, d->stage, &d->target.config, d->target.geometry.max_context, false, &g->features, NULL);
    if (!g->features.device) stage_exit(d->stage, EXIT_CONFIG, "this server keeps no outputs of layers on the GPU: it must begin with a DSpark drafter (--draft dspark or its folder)");
    if (g->features.sources_max < g->spec.sources)
        stage_exit(d->stage, EXIT_CONFIG, "the drafter reads %u layers, this server keeps the outputs of %u at most: it began with another drafter", g->spec.sources, g->features.sources_max);
}

/* Returns the bytes that the head's weights take on the device. */
static uint64_t open_head(struct engine_draft *d, struct cuda_dspark_options *options)
{
    struct gpu_head *g = d->state;
    const uint64_t bytes = g->lib.dspark_weights_bytes(&g->spec);

    options->weights_device = g->weights_device = engine_gpu_own(&g->lib, d->stage, bytes, "the drafter");
    load_weights(d, options->target_device);
    const int rc = g->lib.dspark_open(&g->dspark, &g->spec, &g->target, options, g->weights.confidence_bias);
    engine_draft_accepted(d, &g->lib, rc);
    return bytes;
}

/* Weights as the checkpoint has them, or rounded as on the CPU. */
static uint64_t open_plain(struct engine_draft *d, const struct cuda_dspark_options *options)
{
    struct gpu_head *g = d->state;
    uint64_t bytes = 0;

    if (strcmp(wiring_text(&d->stage->wiring, "draft.dtype", "auto"), "fp8") == 0 && dspark_to_fp8(&g->weights, (uint32_t)wiring_u64(&d->stage->wiring, "threads", 1)) != 0)
        stage_exit(d->stage, EXIT_MISSING, "out of memory for the drafter's weights");
    engine_await_weights(&d->target); /* its table and, mostly, its output matrix are the head's */
    const struct cuda_left_out left_out = {d->vocab.left_out, d->vocab.left_out_count};
    const int rc = g->lib.dspark_plain_open(&g->dspark, &g->weights, &g->target, options, left_out, &bytes);
    engine_draft_accepted(d, &g->lib, rc);
    return bytes;
}

static void open_device(struct engine_draft *d)
{
    struct gpu_head *g = d->state;
    struct cuda_dspark_options options = {.features = g->features, .window = g->window, .context_max = d->target.geometry.max_context};
    const bool is_made_for = g->lib.dspark_weights_bytes(&g->spec) != 0 && g->features.element_bytes == 2;

    options.handover = engine_gpu_signals(&g->lib, d->stage);
    d->hands_over = options.handover != NULL;
    options.target_device = engine_gpu_map(&g->lib, d->stage, "gpu.weights", wiring_u64(&d->stage->wiring, "gpu.weights_bytes", 0), false);
    d->goes_ahead = d->hands_over && is_made_for;
    const uint64_t bytes = is_made_for ? open_head(d, &options) : open_plain(d, &options);
    stage_log(d->stage, LOG_INFO, "drafter", "kind=dspark block=%u layers=%u mib=%llu kernels=%s shared=%s%s", g->spec.block, g->spec.layers, (unsigned long long)(bytes >> 20),
              is_made_for ? "own" : "plain", g->weights.embed_is_shared ? "embeddings," : "", g->weights.head_is_shared ? "output" : "");
}

void engine_draft_open_dspark_cuda(struct engine_draft *d)
{
    struct gpu_head *g = calloc(1, sizeof *g);

    if (!g) stage_exit(d->stage, EXIT_MISSING, "out of memory");
    d->state = g;
    setenv("CUDA_MODULE_LOADING", "EAGER", 0); /* a kernel that is loaded at its first use stops the whole device then */
    engine_gpu_open(&g->lib, &g->facts, d->stage);
    engine_gpu_spec(d->stage, &g->target, &d->target.config, &d->target.generation, &d->target.geometry);
    load_head(d);
    engine_draft_dspark_spec(&g->spec, &g->weights.config, engine_draft_format(d));
    g->spec.own_table = !g->weights.embed_is_shared;
    g->spec.embed_scale = g->weights.embed_scale;
    g->spec.choices = d->vocab.count;
    g->spec.shared_head = g->weights.head_is_shared && g->spec.format == WEIGHT_BF16 && g->spec.choices == 0;
    map_features(d);
    g->window = (uint32_t)wiring_u64(&d->stage->wiring, "draft.context", 0);
    if (g->window == 0) g->window = 1;
    if (g->window > d->target.geometry.max_context) g->window = d->target.geometry.max_context;
    g->generation = calloc(d->slot_count, sizeof *g->generation);
    g->seat = calloc(g->features.places, sizeof *g->seat);
    if (!g->generation || !g->seat) stage_exit(d->stage, EXIT_MISSING, "out of memory for the drafter");
    open_device(d);
    d->device = &head_device;
    d->tokens_max = g->spec.block < CUDA_DSPARK_GUESSES_MAX ? g->spec.block : CUDA_DSPARK_GUESSES_MAX;
    dspark_weights_free(&g->weights);
    shm_store_release(&d->stage->status->counters[DRAFT_SOURCES], g->layers);
    stage_beat(d->stage);
}
