/* model/engine_draft_cuda.c - the MTP assistant on the GPU: all steps of a round in one launch of libsluice_cuda.so (cuda_draft.h), or, for shapes other than Gemma 4 12B's, in a
 * chain of launches with the CPU's bits (cuda_draft_plain.h).
 *
 * Reads    the drafter's checkpoint (files), the target's packed weights (gpu.weights: its embedding table), arena.kv and arena.states, device memory
 *          mapped read-only
 * Owns     its own weights on the device: a drafter of another checkpoint may take this one's place while the keeper is long gone
 * Fails    a checkpoint that does not fit target or kernels: exit 100; no memory: 111. A lost context: exit 112, as the other GPU stages. A round that the
 *          other stages' kernels keep out for too long: no advice.
 *
 * The drafts are chosen with the target's noise, temperature, top_k, top_p and min_p; penalties and bias are left to the target. */
#include "kernels/bf16.h"
#include "model/assistant.h"
#include "model/engine_draft.h"
#include "model/engine_gpu.h"
#include "model/states.h"
#include "shm/clock.h"
#include "shm/error.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define WAIT_US 10000u                /* between two heartbeats */
#define ROUND_LIMIT_NS 5000000000ull  /* a round takes a millisecond; another process may have the GPU for some time */

_Static_assert(CUDA_DRAFT_STEPS_MAX <= RING_TOKENS_MAX, "a message holds what a round drafts");

struct gpu_drafter {
    struct cuda_library lib;
    struct cuda_device_facts facts;
    struct cuda_model_spec target;
    struct cuda_draft_spec spec;
    struct assistant_weights weights; /* on the host; only while they are loaded */
    void *weights_device;             /* mapped until the process ends; of another shape: the library owns them */
    struct cuda_draft *draft;
};

static void check(struct engine_draft *d, const char *what, int rc)
{
    const struct gpu_drafter *g = d->state;

    engine_gpu_check(&g->lib, d->stage, what, rc);
}

/* ---- sequences and rounds ----------------------------------------------------------------- */

static void gpu_admit(struct engine_draft *d, uint32_t slot, const struct engine_sequence *seq)
{
    struct gpu_drafter *g = d->state;

    if (seq->sliding_page_count) check(d, "page table", g->lib.draft_pages(g->draft, slot, CUDA_SLIDING, 0, seq->sliding_pages, seq->sliding_page_count));
    if (seq->full_page_count) check(d, "page table", g->lib.draft_pages(g->draft, slot, CUDA_FULL, 0, seq->full_pages, seq->full_page_count));
}

static void gpu_leave(struct engine_draft *d, uint32_t slot)
{
    (void)d;
    (void)slot; /* its pages are replaced by the next one's */
}

static struct cuda_draft_question to_question(const struct engine_draft_question *q)
{
    const struct sampling_params *p = q->sampling;

    return (struct cuda_draft_question){.seq = q->slot, .token = q->token, .position = q->position, .steps = q->tokens_max, .temperature = p->temperature, .top_p = p->top_p,
                                        .min_p = p->min_p, .top_k = p->top_k, .seed = p->seed};
}

static void take_answer(struct engine_draft_answer *to, const struct cuda_draft_answer *a)
{
    *to = (struct engine_draft_answer){.count = a->count, .position = a->position, .ns = a->ns};
    memcpy(to->token, a->token, a->count * sizeof *a->token);
    memcpy(to->confidence, a->confidence, a->count * sizeof *a->confidence);
}

/* Up to CUDA_DRAFT_ROWS_MAX questions in one launch. */
static int launch(struct engine_draft *d, const struct engine_draft_question *questions, uint32_t count, struct engine_draft_answer *answers)
{
    struct gpu_drafter *g = d->state;
    struct cuda_draft_question q[CUDA_DRAFT_ROWS_MAX];
    struct cuda_draft_answer a[CUDA_DRAFT_ROWS_MAX];
    const uint64_t until = clock_ns() + ROUND_LIMIT_NS;

    for (uint32_t i = 0; i < count; i++) q[i] = to_question(&questions[i]);
    int rc = g->lib.draft_round(g->draft, q, count);
    if (rc == -E_RANGE) return rc;
    check(d, "draft round", rc);
    while ((rc = g->lib.draft_wait(g->draft, WAIT_US, a)) == -E_TIMEOUT && clock_ns() < until) stage_beat(d->stage);
    if (rc == -E_CANCELLED) return -E_TIMEOUT;
    check(d, "draft round", rc);
    for (uint32_t i = 0; i < count; i++) take_answer(&answers[i], &a[i]);
    return 0;
}

static int gpu_round(struct engine_draft *d, const struct engine_draft_question *questions, uint32_t count, struct engine_draft_answer *answers, engine_draft_go_on_fn *go_on, void *context)
{
    int rc = 0;

    (void)go_on; /* the host is not asked between two steps */
    (void)context;
    if (count > d->rows_max) return -E_RANGE;
    for (uint32_t i = 0; i < count; i++)
        if (questions[i].slot >= d->slot_count || questions[i].tokens_max == 0 || questions[i].tokens_max > d->tokens_max) return -E_RANGE;
    for (uint32_t i = 0; i < count && rc == 0; i += CUDA_DRAFT_ROWS_MAX) {
        const uint32_t rows = count - i < CUDA_DRAFT_ROWS_MAX ? count - i : CUDA_DRAFT_ROWS_MAX;
        rc = launch(d, questions + i, rows, answers + i);
        stage_beat(d->stage);
    }
    return rc;
}

static void gpu_hand_over(struct engine_draft *d, const struct cuda_handover *hand)
{
    struct gpu_drafter *g = d->state;

    check(d, "handing drafts over", g->lib.draft_hand_over(g->draft, hand));
}

/* ---- rounds that follow a step ---- */

static int gpu_ahead(struct engine_draft *d, const struct engine_draft_question *question, uint64_t behind)
{
    struct gpu_drafter *g = d->state;
    const struct cuda_draft_question q = to_question(question);

    int rc = g->lib.draft_follow(g->draft, behind);
    if (rc == 0) rc = g->lib.draft_round(g->draft, &q, 1);
    if (rc == -E_RANGE || rc == -E_UNSUPPORTED) return rc;
    check(d, "draft round", rc);
    return 0;
}

static int gpu_ahead_done(struct engine_draft *d, struct engine_draft_answer *answer)
{
    struct gpu_drafter *g = d->state;
    struct cuda_draft_answer a;
    const int rc = g->lib.draft_wait(g->draft, 0, &a);

    if (rc == -E_TIMEOUT) return 0;
    if (rc == -E_CANCELLED) return -E_TIMEOUT;
    check(d, "draft round", rc);
    take_answer(answer, &a);
    return 1;
}

static void gpu_skip(struct engine_draft *d)
{
    struct gpu_drafter *g = d->state;

    check(d, "following no step", g->lib.draft_skip(g->draft));
}

static const struct engine_draft_device gpu_device = {gpu_admit, gpu_leave, gpu_round, gpu_hand_over, gpu_ahead, gpu_ahead_done, gpu_skip};

/* ---- weights ------------------------------------------------------------------------------- */

static void put_vector(struct engine_draft *d, enum cuda_draft_tensor tensor, uint32_t layer, const float *values, uint32_t count)
{
    struct gpu_drafter *g = d->state;

    check(d, "the drafter's weights", g->lib.draft_weights_put(&g->spec, g->weights_device, tensor, layer, count, 1, values, WEIGHT_F32, NULL, 0));
}

static bool is_row_scaled(const struct stored_matrix *m)
{
    return m->element == STORED_E4M3 && m->scale_columns >= m->k && (m->scale_rows == 1 || m->scale_rows >= m->rows);
}

/* The rows of the tokens that may be proposed, in BF16. */
static void put_choices(struct engine_draft *d, const struct stored_matrix *head)
{
    struct gpu_drafter *g = d->state;
    uint16_t *rows = malloc((uint64_t)d->vocab.count * head->k * sizeof *rows);

    if (!rows) stage_exit(d->stage, EXIT_MISSING, "out of memory for the drafter's weights");
    for (uint64_t i = 0; i < d->vocab.count; i++)
        for (uint64_t k = 0; k < head->k; k++) rows[i * head->k + k] = bf16_of(stored_value(head, d->vocab.token[i], k));
    check(d, "the drafter's weights", g->lib.draft_weights_put(&g->spec, g->weights_device, CUDA_DRAFT_CHOICE, 0, d->vocab.count, 1, d->vocab.token, WEIGHT_F32, NULL, 0));
    check(d, "the drafter's weights", g->lib.draft_weights_put(&g->spec, g->weights_device, CUDA_DRAFT_HEAD, 0, d->vocab.count, head->k, rows, WEIGHT_BF16, NULL, 0));
    free(rows);
    stage_beat(d->stage);
}

/* As it is if the kernels know the format, else by way of BF16. */
static void put_matrix(struct engine_draft *d, enum cuda_draft_tensor tensor, uint32_t layer, const struct stored_matrix *m)
{
    struct gpu_drafter *g = d->state;
    const void *source = m->data;
    uint32_t format = WEIGHT_BF16;
    uint16_t *own = NULL;

    if (is_row_scaled(m) && g->spec.format == WEIGHT_FP8) format = WEIGHT_FP8;
    else if (m->element != STORED_BF16) {
        own = malloc((uint64_t)m->rows * m->k * sizeof *own);
        if (!own) stage_exit(d->stage, EXIT_MISSING, "out of memory for the drafter's weights");
        for (uint64_t row = 0; row < m->rows; row++)
            for (uint64_t k = 0; k < m->k; k++) own[row * m->k + k] = bf16_of(stored_value(m, row, k));
        source = own;
    }
    check(d, "the drafter's weights", g->lib.draft_weights_put(&g->spec, g->weights_device, tensor, layer, m->rows, m->k, source, format, m->scale, m->scale_rows == 1));
    free(own);
    stage_beat(d->stage);
}

static void put_layer(struct engine_draft *d, uint32_t i)
{
    struct gpu_drafter *g = d->state;
    const struct drafter_layer *l = &g->weights.layer[i];
    const struct model_config *c = &g->weights.config;

    put_matrix(d, CUDA_DRAFT_Q, i, &l->q);
    put_matrix(d, CUDA_DRAFT_O, i, &l->o);
    put_matrix(d, CUDA_DRAFT_GATE, i, &l->gate);
    put_matrix(d, CUDA_DRAFT_UP, i, &l->up);
    put_matrix(d, CUDA_DRAFT_DOWN, i, &l->down);
    put_vector(d, CUDA_DRAFT_INPUT_NORM, i, l->input_norm, c->hidden);
    put_vector(d, CUDA_DRAFT_POST_ATTENTION_NORM, i, l->post_attention_norm, c->hidden);
    put_vector(d, CUDA_DRAFT_PRE_FF_NORM, i, l->pre_feedforward_norm, c->hidden);
    put_vector(d, CUDA_DRAFT_POST_FF_NORM, i, l->post_feedforward_norm, c->hidden);
    put_vector(d, CUDA_DRAFT_Q_NORM, i, l->q_norm, c->layer[i].head_dim);
    put_vector(d, CUDA_DRAFT_LAYER_SCALAR, i, &l->scalar, 1);
}

static void load_weights(struct engine_draft *d)
{
    struct gpu_drafter *g = d->state;
    const struct assistant_weights *w = &g->weights;
    put_matrix(d, CUDA_DRAFT_PRE, 0, &w->pre);
    put_matrix(d, CUDA_DRAFT_POST, 0, &w->post);
    if (d->vocab.count) put_choices(d, &w->head);
    else put_matrix(d, CUDA_DRAFT_HEAD, 0, &w->head);
    put_vector(d, CUDA_DRAFT_FINAL_NORM, 0, w->norm, w->config.hidden);
    for (uint32_t i = 0; i < w->config.layer_count; i++) put_layer(d, i);
}

/* ---- setting up ------------------------------------------------------------------------------ */

static void make_spec(struct engine_draft *d)
{
    struct gpu_drafter *g = d->state;
    const struct model_config *c = &g->weights.config;

    g->spec = (struct cuda_draft_spec){.hidden = c->hidden, .intermediate = c->intermediate, .vocab = c->vocab, .layers = c->layer_count, .backbone_hidden = g->weights.backbone_hidden,
                                       .q_heads = c->q_heads, .format = engine_draft_format(d), .norm_eps = c->norm_eps, .softcap = c->final_softcap, .attention_scale = c->attention_scale};
    for (uint32_t type = 0; type < LAYER_TYPES; type++) {
        const struct rope_config *rope = &c->rope[type];
        const uint32_t dim = g->target.head_dim[type]; /* the drafter's, too: assistant_check saw to it */
        if (rope->factor != 1.0) stage_exit(d->stage, EXIT_CONFIG, "the GPU's drafter knows no scaled positions (rope factor %g); use --draft ngram", rope->factor);
        g->spec.rope_theta[type] = rope->theta;
        g->spec.rope_turned[type] = rope->type == ROPE_PROPORTIONAL ? (uint32_t)floor(rope->partial_rotary_factor * dim / 2) : dim / 2;
    }
    for (uint32_t i = 0; i < c->layer_count && i < CUDA_DRAFT_LAYERS_MAX; i++) g->spec.layer_type[i] = c->layer[i].type;
}

/* The target's pools, per layer type. */
static void map_keys(struct engine_draft *d, const struct gpu_drafter *g, const void *kv[2])
{
    const struct kv_geometry *geo = &d->target.geometry;
    const uint8_t *arena = engine_gpu_map(&g->lib, d->stage, "arena.kv", geo->arena_bytes, false);

    kv[CUDA_FULL] = arena;
    kv[CUDA_SLIDING] = arena + geo->sliding_offset;
}

static const float *map_states(struct engine_draft *d, const struct gpu_drafter *g)
{
    return engine_gpu_map(&g->lib, d->stage, "arena.states", states_bytes(d->slot_count, d->target.config.hidden), false);
}

static struct cuda_draft_options options_of(struct engine_draft *d)
{
    const struct gpu_drafter *g = d->state;
    struct cuda_draft_options options = {
        .target_device = engine_gpu_map(&g->lib, d->stage, "gpu.weights", wiring_u64(&d->stage->wiring, "gpu.weights_bytes", 0), false),
        .states_device = map_states(d, g), .states_rows = STATES_ROWS, .seqs_max = d->slot_count, .context_max = d->target.geometry.max_context,
        .ring_pages = d->target.geometry.sliding_pages_per_seq,
    };

    map_keys(d, g, options.kv_device);
    return options;
}

static void open_drafter(struct engine_draft *d, uint64_t bytes)
{
    struct gpu_drafter *g = d->state;
    struct cuda_draft_options options = options_of(d);

    options.weights_device = g->weights_device = engine_gpu_own(&g->lib, d->stage, bytes, "the drafter");
    load_weights(d);
    options.handover = engine_gpu_signals(&g->lib, d->stage);
    d->hands_over = d->goes_ahead = options.handover != NULL;
    engine_draft_accepted(d, &g->lib, g->lib.draft_open(&g->draft, &g->spec, &g->target, &options));
}

/* Of any other shape: weights as the checkpoint has them, or rounded as on the CPU. */
static void open_plain(struct engine_draft *d)
{
    struct gpu_drafter *g = d->state;
    struct cuda_draft_options options = options_of(d);
    const struct cuda_left_out left_out = {d->vocab.left_out, d->vocab.left_out_count};

    if (strcmp(wiring_text(&d->stage->wiring, "draft.dtype", "auto"), "fp8") == 0 && assistant_to_fp8(&g->weights, (uint32_t)wiring_u64(&d->stage->wiring, "threads", 1)) != 0)
        stage_exit(d->stage, EXIT_MISSING, "out of memory for the drafter's weights");
    engine_draft_accepted(d, &g->lib, g->lib.draft_plain_open(&g->draft, &g->weights, &g->target, &options, left_out));
}

void engine_draft_open_cuda(struct engine_draft *d)
{
    struct model_error err = {""};
    struct gpu_drafter *g = calloc(1, sizeof *g);

    if (!g) stage_exit(d->stage, EXIT_MISSING, "out of memory");
    d->state = g;
    d->device = &gpu_device;
    d->tokens_max = CUDA_DRAFT_STEPS_MAX;
    int rc = assistant_load(&g->weights, &d->files, &err);
    if (rc == 0) rc = assistant_check(&g->weights, &d->target.config, &err);
    if (rc != 0) stage_exit(d->stage, EXIT_CONFIG, "the drafter cannot be used: %s", err.text[0] ? err.text : error_text(rc));
    setenv("CUDA_MODULE_LOADING", "EAGER", 0); /* a kernel that is loaded at its first use stops the whole device then */
    engine_gpu_open(&g->lib, &g->facts, d->stage);
    engine_gpu_spec(d->stage, &g->target, &d->target.config, &d->target.generation, &d->target.geometry);
    make_spec(d);
    const bool is_made_for = g->lib.draft_weights_bytes(&g->spec) != 0;
    g->spec.choices = d->vocab.count;
    if (is_made_for) open_drafter(d, g->lib.draft_weights_bytes(&g->spec));
    else open_plain(d);
    assistant_weights_free(&g->weights);
    stage_beat(d->stage);
}
