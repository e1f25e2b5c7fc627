/* model/engine_cpu.c - the engine's CPU device: model/forward.h computes, model/sampler.h picks.
 *
 * Reads    the weights in the checkpoint's files, mapped read-only
 * Writes   the KV arena, the states and, while a drafter wants them, the outputs of some layers (model/features.h), mapped shared
 * Owns     logits of one step; the weights of pictures and sound, for prefill, and the soft tokens of one call; per slot the pages (borrowed) and the counts of its tokens for the penalties
 * Fails    out of memory: exit 111. A step computes in engine_wait, so that whoever began it can first say what the last one gave. */
#include "model/engine.h"
#include "model/features.h"
#include "model/states.h"
#include "schemas/counters.h"
#include "schemas/media.h"
#include "shm/atomic.h"
#include "shm/error.h"
#include "shm/must.h"

#include <stdlib.h>
#include <string.h>

#define BLOCK_MAX (RING_TOKENS_MAX + 1u)
#define SPANS_MAX ENGINE_ROWS_MAX
#define STEP_ROWS 64u                 /* more only cost time here: a step of so many is bound by arithmetic */

_Static_assert(BLOCK_MAX <= STATES_ROWS - STATES_HISTORY, "a step in flight does not touch the committed states");
_Static_assert(ENGINE_FILL_SPANS_MAX <= SPANS_MAX && STEP_ROWS <= SPANS_MAX, "a call's sequences");

struct cpu_sequence {
    struct forward_seq pages;
    const struct sampling_params *sampling;
    uint32_t prompt_count, generation;
    struct penalty_counts counts;     /* entry NULL: this request has no penalties */
};

struct cpu {
    struct model_weights weights;
    struct forward *forward;
    struct sampler *sampler;          /* NULL for prefill */
    struct cpu_sequence *seq;         /* [slot_count] */
    struct forward_row *rows;         /* of one call */
    struct forward_seq *seqs;
    struct soft_rows *soft;           /* of prefill, when the server takes pictures or sound; else NULL */
    float *logits;                    /* [rows_max, vocab]; NULL for prefill */
    float *hidden;                    /* [rows_max or SPANS_MAX, hidden]: of the rows that leave their state, or begin with it */
    uint8_t *kv;                      /* arena.kv, shared */
    uint8_t *states;                  /* arena.states, shared */
    struct features features;         /* arena.features, shared */
    const uint64_t *wanted_layers;    /* the drafter's word; NULL: there is no drafter */
    uint64_t layers;                  /* of the call in hand */
    float **feature;                  /* [rows_max] where a row's outputs go */
    uint32_t vocab, row_count, seq_count;
    const struct engine_span *spans;  /* of the step in hand; borrowed */
    bool first;                       /* it begins with states */
};

static void beat(void *stage, uint32_t layers_done, uint32_t layer_count)
{
    (void)layers_done;
    (void)layer_count;
    stage_beat(stage);
}

static void cpu_leave(struct engine *e, uint32_t slot)
{
    struct cpu *c = e->state;

    penalty_counts_close(&c->seq[slot].counts);
    memset(&c->seq[slot], 0, sizeof c->seq[slot]);
}

static void cpu_admit(struct engine *e, uint32_t slot, const struct engine_sequence *seq)
{
    struct cpu *c = e->state;
    struct cpu_sequence *q = &c->seq[slot];

    cpu_leave(e, slot);
    q->pages = (struct forward_seq){.full_pages = seq->full_pages, .sliding_pages = seq->sliding_pages,
                                    .full_page_count = seq->full_page_count, .sliding_page_count = seq->sliding_page_count};
    q->sampling = seq->sampling;
    q->prompt_count = seq->prompt_count;
    q->generation = seq->generation;
    if (!seq->sampling || !sampling_params_need_counts(seq->sampling)) return;
    if (penalty_counts_open(&q->counts, seq->prompt_count + seq->output_max) != 0) stage_exit(e->stage, EXIT_MISSING, "out of memory for penalties");
    for (uint32_t i = 0; i < seq->prompt_count; i++) penalty_counts_add(&q->counts, seq->prompt[i], 0);
    for (uint32_t i = 0; i < seq->output_count; i++) penalty_counts_add(&q->counts, seq->output[i], 1);
}

/* step: every row gets logits; else the last rows of those that leave their state are wanted. */
static void lay_rows(struct engine *e, const struct engine_span *spans, uint32_t span_count, const uint32_t *tokens, uint32_t rows, bool step)
{
    struct cpu *c = e->state;

    must(rows <= e->rows_max);
    for (uint32_t s = 0; s < span_count; s++) {
        c->seqs[s] = c->seq[spans[s].slot].pages;
        for (uint32_t i = 0; i < spans[s].rows; i++)
            c->rows[spans[s].first_row + i] = (struct forward_row){.token = tokens[spans[s].first_row + i], .position = spans[s].first_position + i, .seq = s,
                                                                   .want_logits = step || (spans[s].leaves_state && i + 1 == spans[s].rows)};
    }
    c->row_count = rows;
    c->seq_count = span_count;
    c->spans = spans;
    c->first = false;
}

static float *state_of(const struct engine *e, uint32_t slot, uint32_t position)
{
    const struct cpu *c = e->state;

    return (float *)(c->states + states_offset(slot, position, e->config.hidden));
}

/* The wanted rows' states, packed in c->hidden, go where everybody finds them. */
static void keep_states(const struct engine *e)
{
    const struct cpu *c = e->state;
    const float *from = c->hidden;

    for (uint32_t i = 0; i < c->row_count; i++) {
        const struct forward_row *row = &c->rows[i];
        if (!row->want_logits) continue;
        memcpy(state_of(e, c->spans[row->seq].slot, row->position), from, e->config.hidden * sizeof *from);
        from += e->config.hidden;
    }
}

/* ---- outputs of layers, for a drafter ------------------------------------------------------------- */

/* The forward pass shows every layer's rows, the embedding first. */
static void keep_layer(void *context, uint32_t layers_done, const float *hidden, uint32_t row_count)
{
    const struct engine *e = context;
    const struct cpu *c = e->state;
    const uint64_t below = layers_done == 0 ? 0 : (1ull << (layers_done - 1)) - 1;

    if (layers_done == 0 || layers_done > 64 || !(c->layers >> (layers_done - 1) & 1)) return;
    const uint64_t at = (uint64_t)__builtin_popcountll(c->layers & below) * e->config.hidden;
    for (uint64_t r = 0; r < row_count; r++) memcpy(c->feature[r] + at, hidden + r * e->config.hidden, e->config.hidden * sizeof *hidden);
}

static void look_what_is_wanted(struct engine *e)
{
    struct cpu *c = e->state;

    c->layers = c->wanted_layers ? shm_load_acquire(c->wanted_layers) : 0;
    if (!features_layers_ok(c->layers, e->config.layer_count)) c->layers = 0; /* advice: a wrong one is none */
}

static void begin_features(struct engine *e)
{
    struct cpu *c = e->state;

    look_what_is_wanted(e);
    forward_set_hidden_hook(c->forward, c->layers ? keep_layer : NULL, e);
    for (uint32_t i = 0; i < c->row_count && c->layers; i++) c->feature[i] = features_begin(&c->features, c->spans[c->rows[i].seq].slot, c->rows[i].position);
}

static void end_features(const struct engine *e)
{
    const struct cpu *c = e->state;

    for (uint32_t i = 0; i < c->row_count && c->layers; i++) {
        const uint32_t slot = c->spans[c->rows[i].seq].slot;
        features_end(&c->features, slot, c->seq[slot].generation, c->rows[i].position, c->layers);
    }
}

/* Without the arena (a keeper of an older build) or a drafter, nobody wants any. */
static void open_features(struct engine *e)
{
    struct cpu *c = e->state;
    uint64_t bytes = 0;

    features_init(&c->features, e->slot_count, (uint32_t)wiring_u64(&e->stage->wiring, "draft.context", 0), e->geometry.max_context, e->config.hidden);
    c->features.base = stage_map(e->stage, "arena.features", true, &bytes);
    if (!e->stage->segment[ROLE_DRAFT] || !c->features.base) return;
    if (bytes < features_bytes(&c->features))
        stage_exit(e->stage, EXIT_MISSING, "arena.features has %llu bytes, %llu are needed", (unsigned long long)bytes, (unsigned long long)features_bytes(&c->features));
    c->feature = calloc(e->rows_max, sizeof *c->feature);
    if (!c->feature) stage_exit(e->stage, EXIT_MISSING, "out of memory");
    c->wanted_layers = &((const struct stage_status *)(e->stage->segment[ROLE_DRAFT] + SEGMENT_STATUS_OFFSET))->counters[DRAFT_SOURCES];
}

static void compute(struct engine *e)
{
    struct cpu *c = e->state;

    begin_features(e);
    const int rc = forward_run(c->forward, c->rows, c->row_count, c->seqs, c->seq_count, c->logits, c->hidden);

    must(rc == 0); /* positions and pages were set aside and checked before a sequence came here */
    keep_states(e);
    end_features(e);
}

/* Pictures and sound of a call become its soft rows; row i of the call takes row i of them. */
static void lay_pieces(struct engine *e, const struct engine_piece *pieces, uint32_t piece_count)
{
    struct cpu *c = e->state;

    engine_soft_rows(e, c->soft, pieces, piece_count);
    for (uint32_t i = 0; i < piece_count; i++) {
        const struct engine_piece *p = &pieces[i];
        for (uint32_t r = 0; r < p->rows; r++) {
            c->rows[p->row + r].token = FORWARD_SOFT_TOKEN + p->row + r;
            c->rows[p->row + r].ahead = p->kind != MEDIA_SOUND ? (uint16_t)(p->rows - 1 - r) : 0;
        }
    }
}

static void cpu_fill(struct engine *e, const struct engine_span *spans, uint32_t span_count, const uint32_t *tokens, uint32_t rows, const struct engine_piece *pieces, uint32_t piece_count)
{
    lay_rows(e, spans, span_count, tokens, rows, false);
    lay_pieces(e, pieces, piece_count);
    compute(e);
}

static void cpu_step(struct engine *e, const struct engine_span *spans, uint32_t span_count, const uint32_t *tokens, uint32_t rows)
{
    lay_rows(e, spans, span_count, tokens, rows, true);
}

static void cpu_first(struct engine *e, const struct engine_span *spans, uint32_t span_count, const uint32_t *tokens)
{
    struct cpu *c = e->state;

    (void)tokens; /* their states know them */
    must(span_count <= e->rows_max);
    c->spans = spans;
    c->row_count = span_count;
    c->first = true;
}

static void cpu_wait(struct engine *e)
{
    struct cpu *c = e->state;

    if (!c->first) {
        compute(e);
        return;
    }
    for (uint32_t i = 0; i < c->row_count; i++)
        memcpy(c->hidden + (uint64_t)i * e->config.hidden, state_of(e, c->spans[i].slot, c->spans[i].first_position), e->config.hidden * sizeof *c->hidden);
    const int rc = forward_logits(c->forward, c->hidden, c->row_count, c->logits);
    must(rc == 0);
}

static void cpu_copy(struct engine *e, enum layer_type type, const uint32_t *from, const uint32_t *to, uint32_t count)
{
    const struct cpu *c = e->state;
    const uint64_t bytes = type == LAYER_FULL ? e->geometry.full_page_bytes : e->geometry.sliding_page_bytes;

    for (uint32_t i = 0; i < count; i++) {
        memcpy(c->kv + kv_page_offset(&e->geometry, type, to[i]), c->kv + kv_page_offset(&e->geometry, type, from[i]), bytes);
        stage_beat(e->stage);
    }
}

static void cpu_copy_outputs(struct engine *e, uint32_t from_slot, uint32_t from_generation, uint32_t slot, uint32_t first, uint32_t count)
{
    const struct cpu *c = e->state;

    look_what_is_wanted(e);
    for (uint32_t i = 0; i < count && c->layers; i++) {
        if (i % 64 == 0) stage_beat(e->stage);
        features_copy(&c->features, from_slot, from_generation, slot, c->seq[slot].generation, first + i, c->layers);
    }
}

static int cpu_pick(struct engine *e, const struct engine_span *span, uint32_t row, struct sample_out *out)
{
    struct cpu *c = e->state;
    struct cpu_sequence *q = &c->seq[span->slot];
    struct penalty_counts *counts = q->counts.entry ? &q->counts : NULL;
    float *logits = c->logits + (uint64_t)(span->first_row + row) * c->vocab;

    if (sampler_pick(c->sampler, q->sampling, logits, (uint64_t)span->first_position + row + 1, counts, out) != 0) return -E_RANGE;
    if (counts) penalty_counts_add(counts, out->token, 1);
    return 0;
}

static uint32_t cpu_fill_rows(const struct engine *e)
{
    return e->rows_max;
}

static void cpu_told(struct engine *e)
{
    (void)e; /* steps wait for nobody */
}

static const struct engine_device cpu_device = {cpu_admit, cpu_leave, cpu_fill, cpu_told, cpu_step, cpu_first, cpu_wait, cpu_copy, cpu_copy_outputs, cpu_pick, cpu_fill_rows,
                                               NULL, NULL, NULL, NULL, NULL, 0};

static uint8_t *map_arena(struct engine *e)
{
    uint64_t bytes = 0;
    uint8_t *kv = stage_map(e->stage, "arena.kv", true, &bytes);

    if (!kv || bytes != e->geometry.arena_bytes)
        stage_exit(e->stage, EXIT_MISSING, "the KV arena has %llu bytes, %llu are needed", (unsigned long long)bytes, (unsigned long long)e->geometry.arena_bytes);
    return kv;
}

static uint8_t *map_states(struct engine *e)
{
    uint64_t bytes = 0;
    uint8_t *states = stage_map(e->stage, "arena.states", true, &bytes);

    if (!states || bytes < states_bytes(e->slot_count, e->config.hidden))
        stage_exit(e->stage, EXIT_MISSING, "arena.states has %llu bytes, %llu are needed", (unsigned long long)bytes, (unsigned long long)states_bytes(e->slot_count, e->config.hidden));
    return states;
}

void engine_open_cpu(struct engine *e, enum engine_use use, uint32_t rows_max)
{
    struct model_error err = {""};
    struct cpu *c = calloc(1, sizeof *c);
    const struct wiring *w = &e->stage->wiring;
    struct forward_options options = {.threads = (uint32_t)wiring_u64(w, "threads", 1),
                                      .activations = strcmp(wiring_text(w, "activations", "auto"), "bf16") == 0 ? FORWARD_ACTIVATIONS_BF16 : FORWARD_ACTIVATIONS_AUTO};

    if (!c) stage_exit(e->stage, EXIT_MISSING, "out of memory");
    e->state = c;
    e->device = &cpu_device;
    e->rows_max = options.rows_max = use == ENGINE_STEP ? STEP_ROWS : rows_max;
    e->block_max = BLOCK_MAX;
    int rc = model_load(&e->config, &e->generation, &c->weights, &e->files, &err);
    if (rc != 0) stage_exit(e->stage, EXIT_CONFIG, "the model cannot be used: %s", err.text[0] ? err.text : error_text(rc));
    c->kv = map_arena(e);
    rc = forward_open(&c->forward, &c->weights, &e->geometry, c->kv, &options);
    if (rc != 0) stage_exit(e->stage, EXIT_MISSING, "the forward pass cannot be set up: %s", error_text(rc));
    forward_set_progress(c->forward, beat, e->stage);
    c->vocab = e->config.vocab;
    c->seq = calloc(e->slot_count, sizeof *c->seq);
    c->rows = calloc(e->rows_max, sizeof *c->rows);
    c->seqs = calloc(SPANS_MAX, sizeof *c->seqs);
    c->hidden = malloc(sizeof(float) * (e->rows_max > SPANS_MAX ? e->rows_max : SPANS_MAX) * (size_t)e->config.hidden);
    c->states = map_states(e);
    open_features(e);
    if (use == ENGINE_STEP) c->logits = malloc(sizeof(float) * e->rows_max * (size_t)c->vocab);
    if (!c->seq || !c->rows || !c->seqs || !c->hidden || (use == ENGINE_STEP && !c->logits)) stage_exit(e->stage, EXIT_MISSING, "out of memory");
    if (use == ENGINE_FILL) c->soft = engine_open_soft(e);
    if (c->soft) forward_set_soft(c->forward, soft_rows_buffer(c->soft), e->rows_max);
    if (use != ENGINE_STEP) return;
    rc = sampler_open(&c->sampler, c->vocab, e->generation.suppress_token, e->generation.suppress_count);
    if (rc != 0) stage_exit(e->stage, EXIT_CONFIG, "the sampler cannot be set up: %s", error_text(rc));
}
