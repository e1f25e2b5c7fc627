/* model/engine_cuda.c - the engine's GPU device: libsluice_cuda.so computes and picks, on memory that the keeper made.
 *
 * Reads    the weights (descriptor gpu.weights, mapped read-only on the device)
 * Writes   the KV arena (descriptor arena.kv: GPU memory, laid out by model/kv.h), the hidden states (arena.states, model/states.h) and, while a drafter
 *          wants them, outputs of layers (arena.features, model/features.h)
 * Owns     the library's handle: scratch memory and graphs, nothing of value
 * Fails    no library, no device: exit 100 or 111 with the reason. A lost context, or a step that does not end: exit 112; the
 *          memory belongs to descriptors that the launcher holds, so a new process goes on where this one was. */
#include "kernels/cuda/sample.h"
#include "model/cuda_library.h"
#include "model/engine.h"
#include "model/engine_gpu.h"
#include "model/features.h"
#include "model/states.h"
#include "schemas/counters.h"
#include "schemas/media.h"
#include "schemas/turns.h"
#include "shm/clock.h"
#include "shm/error.h"
#include "shm/must.h"
#include "shm/atomic.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define WAIT_US 10000u                /* between two heartbeats */
#define STEP_LIMIT_NS 5000000000ull   /* a step takes milliseconds; another process may have the GPU for some time */
#define FILL_LIMIT_NS 30000000000ull
#define FILL_ROWS_SHARED 512u         /* while sequences run, of a call that could have more: fewer would read the weights too often, */
#define SLICE_LAYERS 8u               /* and many more make long layers: so many fit into a slice, which ends behind a whole one */
#define PREFILL_SHARE 40u             /* percent of the GPU's time that prompts get while sequences run */
#define GRAPH_ROWS_MIN 16u            /* enough for a block and a few neighbours */
#define GRAPH_ROWS_BLOCKS 64u         /* up to so many every sequence has a whole block */

_Static_assert(STEP_ROWS_MAX == ENGINE_ROWS_MAX, "a step's rows");
_Static_assert(STEP_GROUP_ROWS_MAX <= STATES_ROWS - STATES_HISTORY, "a step in flight does not touch the committed states");
_Static_assert(CUDA_PREFILL_SPANS_MAX >= ENGINE_FILL_SPANS_MAX, "prefill's sequences in one call");
_Static_assert(STEP_STATES_ROWS == STATES_ROWS, "where states lie");
_Static_assert(STEP_BIAS_MAX == SAMPLER_BIAS_MAX && STEP_LOGPROBS_MAX == SAMPLER_LOGPROBS_MAX, "the device samples as model/sampler.h says");
_Static_assert(sizeof(struct step_bias) == sizeof(((struct sampling_params *)0)->logit_bias[0]), "logit_bias is passed on as it is");
_Static_assert((int)CUDA_SLIDING == (int)LAYER_SLIDING && (int)CUDA_FULL == (int)LAYER_FULL, "layer types");

struct gpu_sequence {
    const struct sampling_params *sampling;   /* borrowed until leave */
    uint32_t prompt_count;
};

struct gpu {
    struct cuda_library lib;
    struct cuda_device_facts facts;
    struct cuda_model_spec spec;
    struct cuda_backend *backend;     /* ENGINE_STEP */
    struct cuda_prefill *prefill;     /* ENGINE_FILL */
    struct gpu_sequence *seq;         /* [slot_count] */
    struct turns turns;               /* ENGINE_FILL; what a layer of each type costs goes by the slices so far */
    double layer_ns[LAYER_TYPES], layer_rows[LAYER_TYPES];
    struct cuda_prefill_piece *piece; /* [rows_max]; ENGINE_FILL, when the server takes pictures or sound; else NULL */
    const uint64_t *wanted_layers;    /* of the draft role's segment; NULL: nothing is kept */
    uint64_t refused_layers;          /* wanted, and there is no room for them: said once */
    struct step_state state;
    struct step_result result;
    bool hands_over;                  /* drafts may come over the device */
};

__attribute__((noreturn)) static void lost(struct engine *e, const char *what, int rc)
{
    struct gpu *g = e->state;

    engine_gpu_lost(&g->lib, e->stage, what, rc);
}

static void check(struct engine *e, const char *what, int rc)
{
    const struct gpu *g = e->state;

    engine_gpu_check(&g->lib, e->stage, what, rc);
}

/* ---- outputs of layers -------------------------------------------------------------------- */

/* Before each call: what a drafter wants now. */
static void keep_outputs(struct engine *e)
{
    struct gpu *g = e->state;
    uint64_t layers = g->wanted_layers ? shm_load_acquire(g->wanted_layers) : 0;

    if (!g->wanted_layers) return;
    if (!features_layers_ok(layers, e->config.layer_count)) layers = 0; /* advice: a wrong one is none */
    const int rc = g->backend ? g->lib.backend_outputs(g->backend, layers) : g->lib.prefill_outputs(g->prefill, layers);
    if (rc != -E_RANGE) {
        check(e, "outputs of layers", rc);
        return;
    }
    if (g->refused_layers != layers) stage_log(e->stage, LOG_WARN, "outputs-refused", "layers=%llx reason=\"arena.features has no room for so many\"", (unsigned long long)layers);
    g->refused_layers = layers;
}

static void open_outputs(struct engine *e, struct cuda_options *options)
{
    struct gpu *g = e->state;

    if (!e->stage->segment[ROLE_DRAFT]) return;
    engine_gpu_features(&g->lib, e->stage, &e->config, e->geometry.max_context, true, &options->features, NULL);
    if (options->features.device) g->wanted_layers = &((const struct stage_status *)(e->stage->segment[ROLE_DRAFT] + SEGMENT_STATUS_OFFSET))->counters[DRAFT_SOURCES];
}

/* ---- sequences ------------------------------------------------------------------------- */

static void send_pages(struct engine *e, uint32_t slot, enum cuda_layer_type type, const uint32_t *pages, uint32_t count)
{
    struct gpu *g = e->state;

    if (count == 0) return;
    check(e, "page table", g->backend ? g->lib.backend_pages(g->backend, slot, type, 0, pages, count) : g->lib.prefill_pages(g->prefill, slot, type, 0, pages, count));
}

static void gpu_leave(struct engine *e, uint32_t slot)
{
    struct gpu *g = e->state;

    memset(&g->seq[slot], 0, sizeof g->seq[slot]);
}

static void gpu_admit(struct engine *e, uint32_t slot, const struct engine_sequence *seq)
{
    struct gpu *g = e->state;
    const struct sampling_params *p = seq->sampling;

    g->seq[slot] = (struct gpu_sequence){.sampling = p, .prompt_count = seq->prompt_count};
    if (g->wanted_layers) check(e, "generation", g->backend ? g->lib.backend_generation(g->backend, slot, seq->generation) : g->lib.prefill_generation(g->prefill, slot, seq->generation));
    send_pages(e, slot, CUDA_SLIDING, seq->sliding_pages, seq->sliding_page_count);
    send_pages(e, slot, CUDA_FULL, seq->full_pages, seq->full_page_count);
    if (!p) return;
    if (p->logit_bias_count) {
        struct step_bias bias[STEP_BIAS_MAX];
        for (uint32_t i = 0; i < p->logit_bias_count; i++) bias[i] = (struct step_bias){p->logit_bias[i].token, p->logit_bias[i].bias};
        check(e, "logit bias", g->lib.backend_bias(g->backend, slot, bias, p->logit_bias_count));
    }
    if (!sampling_params_need_counts(p)) return;
    check(e, "history", g->lib.backend_history(g->backend, slot, 0, seq->prompt, seq->prompt_count));
    if (seq->output_count) check(e, "history", g->lib.backend_history(g->backend, slot, seq->prompt_count, seq->output, seq->output_count));
}

/* A page table that leads nowhere: what an illegal address of a kernel does to everybody. */
static void fault_if_asked(struct engine *e, const struct engine_span *spans, uint32_t span_count)
{
    const uint32_t nowhere = 0x7fffffff;

    for (uint32_t i = 0; i < span_count; i++) {
        if (!engine_fault_hook(e->stage, spans[i].slot)) continue;
        send_pages(e, spans[i].slot, CUDA_SLIDING, &nowhere, 1);
        send_pages(e, spans[i].slot, CUDA_FULL, &nowhere, 1);
    }
}

/* ---- work ---------------------------------------------------------------------------------- */

static struct step_sampling row_sampling(const struct gpu_sequence *q)
{
    const struct sampling_params *p = q->sampling;

    return (struct step_sampling){.seed = p->seed, .temperature = p->temperature, .top_p = p->top_p, .min_p = p->min_p, .top_k = p->top_k,
                                  .presence_penalty = p->presence_penalty, .frequency_penalty = p->frequency_penalty,
                                  .repetition_penalty = p->repetition_penalty, .bias_count = p->logit_bias_count, .prompt_tokens = q->prompt_count,
                                  .want_logprobs = p->want_logprobs, .top_logprob_count = p->top_logprob_count};
}

/* tag: of the drafts that the step waits for; 0: none. */
static void launch(struct engine *e, const struct engine_span *spans, uint32_t span_count, const uint32_t *tokens, uint32_t rows, bool from_states, uint64_t tag)
{
    struct gpu *g = e->state;
    struct step_state *s = &g->state;

    must(rows <= e->rows_max && span_count <= rows);
    if (engine_fault_hook) fault_if_asked(e, spans, span_count);
    s->step++;
    s->rows = rows;
    s->from_states = from_states;
    s->groups = span_count;
    for (uint32_t i = 0; i < span_count; i++) {
        const struct engine_span *span = &spans[i];
        const struct step_sampling sampling = row_sampling(&g->seq[span->slot]);
        s->group[i] = (struct step_group){.first_row = span->first_row, .rows = span->rows, .first_position = span->first_position, .seq = span->slot};
        for (uint32_t r = 0; r < span->rows; r++) {
            s->row[span->first_row + r] = (struct step_row){.token = tokens[span->first_row + r], .position = span->first_position + r, .group = i};
            s->sampling[span->first_row + r] = sampling;
        }
    }
    check(e, "step", tag ? g->lib.backend_step_behind(g->backend, s, tag) : g->lib.backend_step(g->backend, s));
}

static void gpu_step(struct engine *e, const struct engine_span *spans, uint32_t span_count, const uint32_t *tokens, uint32_t rows)
{
    keep_outputs(e);
    launch(e, spans, span_count, tokens, rows, false, 0);
}

static void gpu_first(struct engine *e, const struct engine_span *spans, uint32_t span_count, const uint32_t *tokens)
{
    launch(e, spans, span_count, tokens, span_count, true, 0);
}

/* ---- drafts that come over the device ---- */

static bool gpu_hands_over(const struct engine *e, uint32_t slot)
{
    const struct gpu *g = e->state;

    if (!g->hands_over || !g->seq[slot].sampling) return false;
    const struct step_sampling sampling = row_sampling(&g->seq[slot]);
    return !sample_is_general(&sampling);
}

static void gpu_step_behind(struct engine *e, const struct engine_span *span, const uint32_t *tokens, uint64_t tag)
{
    keep_outputs(e);
    launch(e, span, 1, tokens, span->rows, false, tag);
}

static bool gpu_begun(const struct engine *e)
{
    const struct gpu *g = e->state;

    return g->lib.backend_begun(g->backend);
}

static void gpu_release(struct engine *e)
{
    struct gpu *g = e->state;

    check(e, "going on without drafts", g->lib.backend_release(g->backend));
}

static uint32_t gpu_scored(const struct engine *e, uint32_t *tokens)
{
    const struct gpu *g = e->state;

    return g->lib.backend_scored(g->backend, tokens);
}

static void open_signals(struct engine *e)
{
    struct gpu *g = e->state;
    struct cuda_handover_record *record = engine_gpu_signals(&g->lib, e->stage);
    const int rc = record ? g->lib.backend_hand_over(g->backend, record) : -E_UNSUPPORTED;

    if (rc == -E_UNSUPPORTED) return; /* host flags do */
    check(e, "the memory of drafts", rc);
    g->hands_over = true;
}

static void gpu_wait(struct engine *e)
{
    struct gpu *g = e->state;
    const uint64_t until = clock_ns() + STEP_LIMIT_NS;
    int rc;

    while ((rc = g->lib.backend_wait(g->backend, g->state.step, WAIT_US, &g->result)) == -E_TIMEOUT && clock_ns() < until) stage_beat(e->stage);
    check(e, "step", rc);
}

static uint32_t gpu_fill_rows(const struct engine *e)
{
    const struct gpu *g = e->state;
    double rows = e->rows_max;

    if (!turns_are_taken(&g->turns)) return e->rows_max;
    const double layer_most_ns = (double)turns_slice_ns(&g->turns, e->beginners) / SLICE_LAYERS;
    for (uint32_t t = 0; t < LAYER_TYPES; t++) {
        if (g->layer_ns[t] <= 0 || g->layer_rows[t] <= 0) rows = FILL_ROWS_SHARED; /* nothing is known yet */
        else if (rows * g->layer_ns[t] > layer_most_ns * g->layer_rows[t]) rows = layer_most_ns * g->layer_rows[t] / g->layer_ns[t];
    }
    if (rows < FILL_ROWS_SHARED) rows = FILL_ROWS_SHARED;
    return rows < e->rows_max ? (uint32_t)rows : e->rows_max;
}

/* What a layer of so many rows takes, by those of its type so far: with more rows than the last longer in proportion at most. */
static double layer_ns(const struct gpu *g, uint32_t type, uint32_t rows)
{
    return g->layer_ns[type] * (rows > g->layer_rows[type] && g->layer_rows[type] > 0 ? rows / g->layer_rows[type] : 1);
}

/* Layers from `first` on that fit the time, to the nearest; at least one. */
static uint32_t slice_layers(const struct gpu *g, uint32_t first, uint32_t rows, double ns)
{
    uint32_t count = 0;

    for (uint32_t i = first; i < g->spec.layers; i++, count++) {
        const double own_ns = layer_ns(g, g->spec.layer[i].type, rows);
        if (own_ns <= 0 || own_ns / 2 > ns) break;
        ns -= own_ns;
    }
    return count ? count : 1;
}

static void note_slice(struct gpu *g, uint32_t first, uint32_t count, uint32_t rows, double ns)
{
    uint32_t of[LAYER_TYPES] = {0};

    if (first + count >= g->spec.layers) return; /* the last layer is cheap: nobody reads more of it than K and V */
    for (uint32_t i = first; i < first + count; i++) of[g->spec.layer[i].type]++;
    if (of[LAYER_FULL] && of[LAYER_SLIDING]) { /* what the sliding ones do not explain, the full ones have taken: their keys grow */
        const double sliding = layer_ns(g, LAYER_SLIDING, rows), rest = (ns - of[LAYER_SLIDING] * sliding) / of[LAYER_FULL];
        if (rest < sliding) g->layer_ns[LAYER_SLIDING] = ns / count, g->layer_rows[LAYER_SLIDING] = rows; /* fewer rows, or relatively more, than they were measured with */
        g->layer_ns[LAYER_FULL] = rest < sliding ? ns / count : rest;
        g->layer_rows[LAYER_FULL] = rows;
        return;
    }
    const uint32_t type = of[LAYER_FULL] ? LAYER_FULL : LAYER_SLIDING;
    g->layer_ns[type] = ns / count;
    g->layer_rows[type] = rows;
}

/* Of one slice: with the turns of others between them, a whole call may well take longer. */
static void await_prefill(struct engine *e)
{
    struct gpu *g = e->state;
    const uint64_t until = clock_ns() + FILL_LIMIT_NS;
    int rc;

    while ((rc = g->lib.prefill_wait(g->prefill, WAIT_US)) == -E_TIMEOUT && clock_ns() < until) stage_beat(e->stage);
    check(e, "prefill", rc);
}

/* Soft tokens of pictures and sound are made in turns of their own, so that what layers cost is not told by them. */
static void make_soft(struct engine *e, const struct engine_piece *pieces, uint32_t piece_count, uint32_t beginners)
{
    struct gpu *g = e->state;
    int more;

    for (uint32_t i = 0; i < piece_count; i++)
        g->piece[i] = (struct cuda_prefill_piece){.first_row = pieces[i].row, .rows = pieces[i].rows, .sees_ahead = pieces[i].kind != MEDIA_SOUND,
                                                  .data = pieces[i].data, .columns = pieces[i].kind == MEDIA_SOUND ? 0 : pieces[i].columns};
    check(e, "pictures and sound", g->lib.prefill_soft(g->prefill, g->piece, piece_count));
    do {
        turns_ask(&g->turns, beginners);
        more = g->lib.prefill_soft_go(g->prefill);
        if (more < 0) check(e, "pictures and sound", more);
        await_prefill(e);
        turns_end(&g->turns);
    } while (more > 0);
}

static void gpu_fill(struct engine *e, const struct engine_span *spans, uint32_t span_count, const uint32_t *tokens, uint32_t rows, const struct engine_piece *pieces, uint32_t piece_count)
{
    struct gpu *g = e->state;
    struct cuda_prefill_span out[CUDA_PREFILL_SPANS_MAX];
    uint32_t count = 0, layer = 0;
    int more;

    must(span_count <= CUDA_PREFILL_SPANS_MAX && rows <= e->rows_max);
    if (engine_fault_hook) fault_if_asked(e, spans, span_count);
    for (uint32_t i = 0; i < span_count; i++) { /* one may have nothing left but to be handed over */
        if (spans[i].rows == 0) continue;
        out[count++] = (struct cuda_prefill_span){.seq = spans[i].slot, .first_position = spans[i].first_position, .first_row = spans[i].first_row, .rows = spans[i].rows,
                                                .leaves_state = spans[i].leaves_state};
    }
    keep_outputs(e);
    if (piece_count) make_soft(e, pieces, piece_count, e->beginners > count ? e->beginners : count);
    check(e, "prefill", g->lib.prefill_begin(g->prefill, out, count, tokens));
    do {
        const uint64_t ns = turns_ask(&g->turns, e->beginners > count ? e->beginners : count);
        const uint32_t layers = slice_layers(g, layer, rows, (double)ns);
        more = g->lib.prefill_go(g->prefill, layers);
        if (more < 0) check(e, "prefill", more);
        await_prefill(e);
        if (more > 0) note_slice(g, layer, layers, rows, (double)turns_end(&g->turns)); /* the last slice's turn ends in gpu_told */
        layer += layers;
    } while (more > 0);
}

static void gpu_told(struct engine *e)
{
    struct gpu *g = e->state;

    turns_end(&g->turns);
}

static void gpu_copy(struct engine *e, enum layer_type type, const uint32_t *from, const uint32_t *to, uint32_t count)
{
    struct gpu *g = e->state;

    check(e, "copying pages", g->lib.prefill_copy(g->prefill, (enum cuda_layer_type)type, from, to, count));
    await_prefill(e);
}

static void gpu_copy_outputs(struct engine *e, uint32_t from_slot, uint32_t from_generation, uint32_t slot, uint32_t first, uint32_t count)
{
    struct gpu *g = e->state;

    keep_outputs(e);
    if (g->wanted_layers) check(e, "outputs of layers", g->lib.prefill_outputs_copy(g->prefill, from_slot, from_generation, slot, first, count));
}

static int gpu_pick(struct engine *e, const struct engine_span *span, uint32_t row, struct sample_out *out)
{
    struct gpu *g = e->state;
    const uint32_t r = span->first_row + row;

    if (g->result.bad[r]) return -E_RANGE;
    must(g->result.token[r] < e->config.vocab);
    out->token = g->result.token[r];
    out->candidate_count = 0; /* the device does not count them */
    out->logprob = 0;
    out->top_count = 0;
    if (!g->seq[span->slot].sampling->want_logprobs) return 0;
    out->logprob = g->result.logprob[r];
    out->top_count = g->result.top_count[r];
    for (uint32_t i = 0; i < out->top_count; i++) out->top[i] = (struct sample_logprob){g->result.top[r][i].token, g->result.top[r][i].logprob};
    return 0;
}

static const struct engine_device gpu_device = {gpu_admit, gpu_leave, gpu_fill, gpu_told, gpu_step, gpu_first, gpu_wait, gpu_copy, gpu_copy_outputs, gpu_pick, gpu_fill_rows,
                                               gpu_hands_over, gpu_step_behind, gpu_begun, gpu_release, gpu_scored, 1};

/* ---- setting up -------------------------------------------------------------------------------- */

static void *map_memory(struct engine *e, const char *name, uint64_t bytes, bool writable)
{
    struct gpu *g = e->state;

    return engine_gpu_map(&g->lib, e->stage, name, bytes, writable);
}

/* Rows of the largest graph: two for every sequence that may run, so that there is room for drafts; a whole block for each where they are few. */
static uint32_t choose_rows(const struct engine *e)
{
    const uint64_t sequences = wiring_u64(&e->stage->wiring, "max_sequences", 32), blocks = sequences * STEP_GROUP_ROWS_MAX;
    const uint64_t wanted = 2 * sequences > GRAPH_ROWS_BLOCKS ? 2 * sequences : blocks < GRAPH_ROWS_BLOCKS ? blocks : GRAPH_ROWS_BLOCKS;
    uint32_t rows = GRAPH_ROWS_MIN;

    while (rows < wanted && rows < STEP_ROWS_MAX) rows *= 2;
    return rows;
}

static void open_senses(struct engine *e, struct engine_senses *senses)
{
    struct gpu *g = e->state;
    struct cuda_soft_weights w = {.hidden = e->config.hidden, .tower = &senses->tower};

    if (!senses->by_tower) engine_describe_soft(&w, &senses->soft);
    const int rc = g->lib.prefill_soft_weights(g->prefill, &w);
    if (rc == -E_IO) lost(e, "setting up pictures and sound", rc);
    if (rc != 0) stage_exit(e->stage, rc == -E_NOMEM ? EXIT_MISSING : EXIT_CONFIG, "the GPU cannot take pictures and sound (%s): %s", error_text(rc), g->lib.backend_error());
    engine_free_senses(senses);
    free(senses);
}

void engine_open_cuda(struct engine *e, enum engine_use use, uint32_t rows_max)
{
    const uint64_t begin_ns = clock_ns();
    struct gpu *g = calloc(1, sizeof *g);
    struct cuda_options options = {.seqs_max = e->slot_count, .context_max = e->geometry.max_context, .ring_pages = e->geometry.sliding_pages_per_seq,
                                   .l2_slots = CUDA_L2_DEFAULT};

    if (!g) stage_exit(e->stage, EXIT_MISSING, "out of memory");
    e->state = g;
    e->device = &gpu_device;
    g->seq = calloc(e->slot_count, sizeof *g->seq);
    if (!g->seq) stage_exit(e->stage, EXIT_MISSING, "out of memory");
    if (use == ENGINE_FILL) setenv("CUDA_MODULE_LOADING", "EAGER", 0); /* a kernel that is loaded at its first use stops the whole device then */
    if (use == ENGINE_FILL) turns_open_prefill(&g->turns, e->stage, (uint32_t)wiring_u64(&e->stage->wiring, "prefill.share", PREFILL_SHARE));
    engine_gpu_open(&g->lib, &g->facts, e->stage);
    const uint64_t context_ns = clock_ns();
    engine_gpu_spec(e->stage, &g->spec, &e->config, &e->generation, &e->geometry);
    const uint64_t weight_bytes = g->lib.weights_bytes(&g->spec);
    if (weight_bytes == 0 || weight_bytes != wiring_u64(&e->stage->wiring, "gpu.weights_bytes", 0))
        stage_exit(e->stage, EXIT_CONFIG, "the keeper laid out weights of another size: use executables and library of one build");
    options.weights_device = map_memory(e, "gpu.weights", weight_bytes, false);
    uint8_t *kv = map_memory(e, "arena.kv", e->geometry.arena_bytes, true);
    options.kv_device[CUDA_FULL] = kv;
    options.kv_device[CUDA_SLIDING] = kv + e->geometry.sliding_offset;
    options.states_device = map_memory(e, "arena.states", states_bytes(e->slot_count, e->config.hidden), true);
    open_outputs(e, &options);
    stage_beat(e->stage);
    const uint64_t mapped_ns = clock_ns();
    e->block_max = STEP_GROUP_ROWS_MAX;
    e->rows_max = use == ENGINE_STEP ? choose_rows(e) : rows_max;
    options.graph_rows_mask = 2 * e->rows_max - 1;
    struct engine_senses *senses = use == ENGINE_FILL ? calloc(1, sizeof *senses) : NULL;
    const bool sees = senses && engine_load_senses(e, senses);
    options.soft_rows = sees ? CUDA_SOFT_MADE : CUDA_SOFT_NONE;
    if (use == ENGINE_FILL && (!senses || !(g->piece = calloc(e->rows_max, sizeof *g->piece)))) stage_exit(e->stage, EXIT_MISSING, "out of memory");
    const int rc = use == ENGINE_STEP ? g->lib.backend_open(&g->backend, &g->spec, &options) : g->lib.prefill_open(&g->prefill, &g->spec, &options, rows_max);
    if (rc == -E_IO) lost(e, "setting up", rc);
    if (rc != 0) stage_exit(e->stage, rc == -E_NOMEM ? EXIT_MISSING : EXIT_CONFIG, "the GPU cannot be set up (%s): %s", error_text(rc), g->lib.backend_error());
    if (sees) open_senses(e, senses);
    if (use == ENGINE_STEP) open_signals(e);
    stage_beat(e->stage);
    stage_log(e->stage, LOG_DEBUG, "gpu-open", "context_ms=%.1f memory_ms=%.1f kernels_ms=%.1f", (double)(context_ns - begin_ns) / 1e6, (double)(mapped_ns - context_ns) / 1e6,
              (double)(clock_ns() - mapped_ns) / 1e6);
}
