/* kernels/cuda/backend.cu - the handle: scratch memory, page tables, graphs, launching and awaiting steps (contract in cuda_backend.h). */
#include "await.h"
#include "chain.h"
#include "launch.h"
#include "setup.h"
#include "shm/error.h"
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <new>

#define MANY_GROUPS 4                 /* fewer sequences: attention for blocks of rows */
#define GRAPHS_DEFAULT 31              /* 1, 2, 4, 8, 16 rows */
#define RING_SLOTS_DEFAULT 10
#define WAIT_SLOTS_DEFAULT 2
#define L2_SLOTS_DEFAULT 8
#define L2_STRIDE_DEFAULT 5

static int make_scratch(struct cuda_backend *b)
{
    const struct cuda_model_spec *s = &b->spec;
    const uint64_t turned = s->rope_turned[0] + s->rope_turned[1];
    const uint64_t rows = b->rows_max;
    const uint64_t ready_rows = !b->is_plain && rows > CHAIN_WIDE_ROWS ? rows : 0;
    uint64_t qkv_rows = 0, q_rows = 0, part[2] = { 0, 0 }, part_ml[2] = { 0, 0 };

    for (uint32_t i = 0; i < s->layers; i++) {
        const uint32_t type = s->layer[i].type;
        const uint64_t spans = (uint64_t)b->spans_max[type] * rows * ATTN_HEADS;

        if (b->arena.layer[i].qkv.rows > qkv_rows) qkv_rows = b->arena.layer[i].qkv.rows;
        if (spec_q_rows(s, i) > q_rows) q_rows = spec_q_rows(s, i);
        if (spans * spec_head_dim(s, i) > part[type]) part[type] = spans * spec_head_dim(s, i);
        if (spans > part_ml[type]) part_ml[type] = spans;
    }
    const uint32_t longest = (uint32_t)(q_rows > s->intermediate ? q_rows : s->intermediate);      /* k of a product; hidden is less */
    const struct setup_part want[] = {
        { (void **)&b->state, sizeof *b->state },
        { (void **)&b->residual[0], 4ull * rows * s->hidden },
        { (void **)&b->residual[1], 4ull * rows * s->hidden },
        { (void **)&b->part_o[0], 4ull * NORM_SPLIT_MAX * rows * s->hidden },
        { (void **)&b->part_o[1], 4ull * NORM_SPLIT_MAX * rows * s->hidden },
        { (void **)&b->part_down, 4ull * NORM_SPLIT_MAX * rows * s->hidden },
        { (void **)&b->qkv[0], 4ull * rows * qkv_rows },
        { (void **)&b->qkv[1], 4ull * rows * qkv_rows },
        { (void **)&b->x, 2ull * rows * s->hidden },
        { (void **)&b->attn_out, 2ull * rows * q_rows },
        { (void **)&b->act, 2ull * rows * s->intermediate },
        { (void **)&b->x_scale, 4ull * rows },
        { (void **)&b->ready.image, rowmm_ready_image_bytes((uint32_t)ready_rows, longest) },
        { (void **)&b->attn_ml[0], 8 * part_ml[0] },
        { (void **)&b->attn_ml[1], 8 * part_ml[1] },
        { (void **)&b->rope, 8 * rows * turned },
        { (void **)&b->inv_freq, 4 * turned },
        { (void **)&b->attn_part[0], 4 * part[0] },
        { (void **)&b->attn_part[1], 4 * part[1] },
        { (void **)&b->logits, 4ull * rows * s->vocab },
        { (void **)&b->tile_top, 4ull * rows * (s->vocab / TILE_ROWS) },
        { (void **)&b->last_token, 4 * rows },
        { (void **)&b->done, 4 },
        { (void **)&b->bias, sizeof *b->bias * STEP_BIAS_MAX * b->options.seqs_max },
        { (void **)&b->pages[0], 4ull * b->options.seqs_max * b->pages_stride[0] },
        { (void **)&b->pages[1], 4ull * b->options.seqs_max * b->pages_stride[1] },
        { (void **)&b->keep.generation, 4ull * b->options.seqs_max },
        { (void **)&b->history, 4ull * b->options.seqs_max * b->options.context_max },
    };

    int rc = setup_slab(&b->slab, want, sizeof want / sizeof *want, "scratch memory");
    if (rc == 0) rc = launch_check(cudaMallocHost((void **)&b->state_host, sizeof *b->state_host), "pinned memory");
    if (rc == 0) rc = setup_mapped((void **)&b->result, (void **)&b->result_device, sizeof *b->result);
    if (rc == 0) memset(b->state_host, 0, sizeof *b->state_host);
    return rc;
}

static int make_frequencies(struct cuda_backend *b)
{
    const struct cuda_model_spec *s = &b->spec;
    const int rc = setup_frequencies(b->inv_freq, s->rope_theta[0], s->rope_divisor[0], s->head_dim[0], s->rope_turned[0]);

    return rc ? rc : setup_frequencies(b->inv_freq + s->rope_turned[0], s->rope_theta[1], s->rope_divisor[1], s->head_dim[1], s->rope_turned[1]);
}

/* Shapes that the kernels of this backend are not made for (plain.h). Shares page tables, logits and the two buffers that outlive a step. */
static int open_plain(struct cuda_backend *b)
{
    const struct plain_options options = { b->options.weights_device, { b->options.kv_device[0], b->options.kv_device[1] }, { b->pages[0], b->pages[1] },
                                           { b->pages_stride[0], b->pages_stride[1] }, b->rows_max, b->options.context_max, NULL, &b->keep };

    return plain_open(&b->plain, &b->spec, &options);
}

static int prepare_kernels(const struct cuda_backend *b)
{
    int rc = rowmm_init();

    if (rc == 0 && !b->is_plain && b->rows_max > ROWMM_ROWS_MAX) rc = rowmm_wide_init();
    if (rc == 0 && !b->is_plain && b->rows_max > CHAIN_WIDE_ROWS) rc = rowmm_many_init();
    if (rc == 0) rc = norm_init();
    if (rc == 0) rc = round_init();
    if (rc == 0) rc = embed_init();
    if (rc == 0) rc = attn_init();
    if (rc == 0) rc = attn_long_init();
    if (rc == 0) rc = attn_many_init();
    if (rc == 0) rc = attn_many_full_init();
    if (rc == 0) rc = sample_init();
    if (rc == 0) rc = states_init();
    if (rc == 0) rc = outputs_init();
    return rc ? rc : sample_general_init(b->spec.vocab);
}

static int check_device(struct cuda_backend *b)
{
    int device, major, sms, rc = launch_check(cudaGetDevice(&device), "device");

    if (rc == 0) rc = launch_check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "device");
    if (rc == 0) rc = launch_check(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device), "device");
    if (rc == 0 && (major != 9 || sms < 4)) return -E_UNSUPPORTED;
    if (rc == 0) b->tuning.sm_count = (uint32_t)sms;
    return rc;
}

/* All graphs of the handle; those that are there go first. */
static void drop_graphs(struct cuda_backend *b)
{
    for (int i = 0; i < GRAPH_KINDS * GRAPHS; i++) {
        if (b->graph[i % GRAPH_KINDS][i / GRAPH_KINDS]) cudaGraphExecDestroy(b->graph[i % GRAPH_KINDS][i / GRAPH_KINDS]);
        b->graph[i % GRAPH_KINDS][i / GRAPH_KINDS] = NULL;
    }
}

/* Is a kind of graph any use for so many rows? */
static bool has_graph(const struct cuda_backend *b, enum graph_kind kind, uint32_t rows)
{
    if (kind == GRAPH_BLOCKS) return b->is_plain || rows <= ROWMM_ROWS_MAX;
    return !b->is_plain && rows >= MANY_GROUPS && (kind == GRAPH_MANY || attn_many_short_keys(rows) > 0);
}

static int make_graphs(struct cuda_backend *b)
{
    const uint32_t mask = b->options.graph_rows_mask ? b->options.graph_rows_mask : GRAPHS_DEFAULT;
    int rc = 0;

    for (uint32_t i = 0; i < GRAPH_KINDS * GRAPHS && rc == 0; i++) {
        const uint32_t rows = 1u << i / GRAPH_KINDS;

        b->kind = (enum graph_kind)(i % GRAPH_KINDS);
        if (mask & rows && has_graph(b, b->kind, rows)) rc = chain_graph(b, rows, CHAIN_ALL, &b->graph[b->kind][i / GRAPH_KINDS]);
    }
    return rc;
}

static int open_all(struct cuda_backend *b)
{
    const uint32_t mask = b->options.graph_rows_mask ? b->options.graph_rows_mask : GRAPHS_DEFAULT;
    int rc = check_device(b);

    if (rc == 0) rc = prepare_kernels(b);
    if (rc == 0) rc = make_scratch(b);
    if (rc == 0) rc = b->is_plain ? open_plain(b) : make_frequencies(b);
    if (rc == 0) rc = launch_check(cudaStreamCreateWithFlags(&b->stream, cudaStreamNonBlocking), "stream");
    if (rc == 0) rc = make_graphs(b);
    for (uint32_t i = 0; i < GRAPHS && rc == 0; i++)
        if (b->options.states_device && mask & 1u << i && 1u << i <= b->rows_max) rc = chain_graph(b, 1u << i, CHAIN_FIRST, &b->first[i]);
    return rc ? rc : launch_check(cudaDeviceSynchronize(), "open");
}

extern "C" int cuda_backend_open(struct cuda_backend **backend, const struct cuda_model_spec *spec, const struct cuda_options *options)
{
    struct arena arena;
    int rc = arena_plan(&arena, spec);
    const bool is_plain = rc == -E_UNSUPPORTED && plain_weights_bytes(spec) != 0;

    if (rc && !is_plain) return rc;
    if (!options->weights_device || !options->kv_device[0] || !options->kv_device[1] || options->seqs_max == 0) return -E_RANGE;
    if (options->graph_rows_mask >> GRAPHS) return -E_RANGE;
    if (options->context_max == 0 || options->context_max > 1u << 20) return -E_RANGE;
    if (options->ring_pages * ATTN_PAGE_TOKENS < spec->window + STEP_GROUP_ROWS_MAX && options->ring_pages * ATTN_PAGE_TOKENS < options->context_max) return -E_RANGE;
    struct cuda_backend *b = new (std::nothrow) cuda_backend();
    if (b == NULL) return -E_NOMEM;
    b->spec = *spec;
    b->options = *options;
    for (b->rows_max = 1u << (GRAPHS - 1); b->rows_max > ROWMM_ROWS_MAX && !((options->graph_rows_mask & b->rows_max)); ) b->rows_max /= 2;
    b->arena = arena;
    b->is_plain = is_plain;
    b->keep.memory = options->features, b->keep.hidden = spec->hidden;
    b->tuning.ring_slots = options->ring_slots ? options->ring_slots : RING_SLOTS_DEFAULT;
    b->tuning.window_slots = options->window_slots; /* 0: chain.cu chooses */
    b->tuning.wait_slots = options->wait_slots ? options->wait_slots : WAIT_SLOTS_DEFAULT;
    b->tuning_l2.count = options->l2_slots == CUDA_L2_DEFAULT ? L2_SLOTS_DEFAULT : options->l2_slots;
    b->tuning_l2.stride = options->l2_stride ? options->l2_stride : L2_STRIDE_DEFAULT;
    b->tuning_l2.pace_ns = options->l2_pace_ns;
    b->spans_max[CUDA_SLIDING] = is_plain ? 0 : ATTN_SLIDING_SPANS_MAX;
    b->spans_max[CUDA_FULL] = is_plain ? 0 : spec->head_dim[CUDA_FULL] == 256 ? attn_long_spans(options->context_max) : attn_full_spans(options->context_max);
    b->pages_stride[CUDA_SLIDING] = options->ring_pages;
    b->pages_stride[CUDA_FULL] = (options->context_max + ATTN_PAGE_TOKENS - 1) / ATTN_PAGE_TOKENS;
    rc = open_all(b);
    if (rc) cuda_backend_close(b), b = NULL;
    *backend = b;
    return rc;
}

extern "C" void cuda_backend_close(struct cuda_backend *b)
{
    cudaDeviceSynchronize();
    drop_graphs(b);
    for (int i = 0; i < GRAPHS; i++)
        if (b->first[i]) cudaGraphExecDestroy(b->first[i]);
    plain_close(b->plain);
    cudaFree(b->slab);
    if (b->state_host) cudaFreeHost(b->state_host);
    if (b->result) cudaFreeHost(b->result);
    handover_close(&b->handover);
    if (b->stream) cudaStreamDestroy(b->stream);
    delete b;
}

extern "C" int cuda_backend_pages(struct cuda_backend *b, uint32_t seq, enum cuda_layer_type type, uint32_t first, const uint32_t *pages, uint32_t count)
{
    if (type > CUDA_FULL || seq >= b->options.seqs_max || first > b->pages_stride[type] || count > b->pages_stride[type] - first) return -E_RANGE;
    /* From pageable memory: the call returns when the entries have been taken, the stream orders them before later steps. */
    return launch_check(cudaMemcpyAsync(b->pages[type] + (uint64_t)seq * b->pages_stride[type] + first, pages, 4ull * count, cudaMemcpyHostToDevice, b->stream), "pages");
}

extern "C" int cuda_backend_generation(struct cuda_backend *b, uint32_t seq, uint32_t generation)
{
    if (seq >= b->options.seqs_max) return -E_RANGE;
    return launch_check(cudaMemcpyAsync((void *)(b->keep.generation + seq), &generation, sizeof generation, cudaMemcpyHostToDevice, b->stream), "generation");
}

static bool is_under_way(const struct cuda_backend *b) { return b->launched && __atomic_load_n(&b->result->step, __ATOMIC_ACQUIRE) != b->launched; }

extern "C" int cuda_backend_outputs(struct cuda_backend *b, uint64_t layers)
{
    const bool fits = layers == 0 || (b->options.features.device && outputs_fit(&b->options.features, layers, b->spec.layers));
    const uint64_t kept = fits ? layers : 0;

    if (kept != b->keep.layers) {
        if (is_under_way(b)) return -E_BUSY;
        int rc = launch_check(cudaStreamSynchronize(b->stream), "outputs of layers");
        if (rc) return rc;
        b->keep.layers = kept;
        drop_graphs(b);
        rc = make_graphs(b);
        if (rc) return rc;
    }
    return fits ? 0 : -E_RANGE;
}

static int check_group(const struct cuda_backend *b, const struct step_state *s, uint32_t g, uint32_t next_row)
{
    const struct step_group *group = &s->group[g];

    if (group->first_row != next_row || group->rows == 0 || group->rows > STEP_GROUP_ROWS_MAX || group->rows > s->rows - next_row) return -E_RANGE;
    if (group->seq >= b->options.seqs_max || group->first_position >= b->options.context_max) return -E_RANGE;
    if (group->rows > b->options.context_max - group->first_position) return -E_RANGE;
    for (uint32_t i = 0; i < group->rows; i++) {
        const struct step_row *row = &s->row[next_row + i];

        if (row->position != group->first_position + i || row->group != g) return -E_RANGE;
        if (row->token >= b->spec.vocab && row->token != STEP_TOKEN_LAST) return -E_RANGE;
    }
    for (uint32_t i = 0; i < g; i++)
        if (s->group[i].seq == group->seq) return -E_RANGE;      /* its rows would need each other's keys within one kernel */
    return 0;
}

extern "C" int cuda_backend_bias(struct cuda_backend *b, uint32_t seq, const struct step_bias *bias, uint32_t count)
{
    if (seq >= b->options.seqs_max || count > STEP_BIAS_MAX) return -E_RANGE;
    for (uint32_t i = 0; i < count; i++)
        if (bias[i].token >= b->spec.vocab || !(fabsf(bias[i].bias) <= 100.0f)) return -E_RANGE;
    return launch_check(cudaMemcpyAsync(b->bias + (uint64_t)seq * STEP_BIAS_MAX, bias, sizeof *bias * count, cudaMemcpyHostToDevice, b->stream), "logit bias");
}

extern "C" int cuda_backend_history(struct cuda_backend *b, uint32_t seq, uint32_t first, const uint32_t *tokens, uint32_t count)
{
    if (seq >= b->options.seqs_max || first > b->options.context_max || count > b->options.context_max - first) return -E_RANGE;
    return launch_check(cudaMemcpyAsync(b->history + (uint64_t)seq * b->options.context_max + first, tokens, 4ull * count, cudaMemcpyHostToDevice, b->stream), "history");
}

static bool within(float x, float low, float high) { return x >= low && x <= high; }      /* false for NaN */

/* The limits of model/sampler.h. */
static int check_sampling(const struct step_sampling *p)
{
    if (!within(p->temperature, 0, 100) || !within(p->top_p, 0, 1) || !within(p->min_p, 0, 1)) return -E_RANGE;
    if (!within(p->presence_penalty, -2, 2) || !within(p->frequency_penalty, -2, 2)) return -E_RANGE;
    if (p->repetition_penalty != 0.0f && !within(p->repetition_penalty, 0.01f, 100)) return -E_RANGE;
    return p->bias_count > STEP_BIAS_MAX || p->want_logprobs > 1 || p->top_logprob_count > STEP_LOGPROBS_MAX ? -E_RANGE : 0;
}

static int check_state(const struct cuda_backend *b, const struct step_state *s)
{
    uint32_t next_row = 0;
    int rc = 0;

    if (s->from_states && !b->options.states_device) return -E_RANGE;
    if (s->rows == 0 || s->rows > b->rows_max || s->groups == 0 || s->groups > s->rows) return -E_RANGE;
    for (uint32_t g = 0; g < s->groups && rc == 0; g++) {
        rc = check_group(b, s, g, next_row);
        next_row += s->group[g].rows;
    }
    for (uint32_t i = 0; i < s->rows && rc == 0; i++) rc = check_sampling(&s->sampling[i]);
    return rc ? rc : next_row == s->rows ? 0 : -E_RANGE;
}

static uint32_t general_rows(const struct step_state *s)
{
    uint32_t rows = 0;

    for (uint32_t i = 0; i < s->rows; i++) rows += sample_is_general(&s->sampling[i]) != 0;
    return rows;
}

/* Are the rows rather single ones of several sequences than blocks of a few? And are all texts short? */
static enum graph_kind kind_of(const struct cuda_backend *b, const struct step_state *s)
{
    uint32_t keys = 0;

    if (b->is_plain || (s->rows <= ROWMM_ROWS_MAX && (s->groups < MANY_GROUPS || 2 * s->groups <= s->rows))) return GRAPH_BLOCKS;
    for (uint32_t g = 0; g < s->groups; g++)
        if (s->group[g].first_position + s->group[g].rows > keys) keys = s->group[g].first_position + s->group[g].rows;
    return keys <= attn_many_short_keys(s->rows) ? GRAPH_MANY_SHORT : GRAPH_MANY;
}

/* The smallest graph of a kind that holds the rows, or NULL. */
static cudaGraphExec_t smallest(const cudaGraphExec_t (&graph)[GRAPHS], uint32_t rows)
{
    for (uint32_t i = 0; i < GRAPHS; i++)
        if (1u << i >= rows && graph[i]) return graph[i];
    return NULL;
}

static cudaGraphExec_t pick_graph(const struct cuda_backend *b, const struct step_state *s)
{
    if (s->from_states) return smallest(b->first, s->rows);
    const enum graph_kind kind = kind_of(b, s);
    cudaGraphExec_t graph = smallest(b->graph[kind], s->rows);

    if (graph == NULL && kind != GRAPH_MANY) graph = smallest(b->graph[GRAPH_MANY], s->rows);
    return graph ? graph : smallest(b->graph[GRAPH_BLOCKS], s->rows);
}

/* Only what is set: most of a result is room for log probabilities. */
static void copy_result(struct step_result *to, const struct step_result *from, uint32_t rows)
{
    memcpy(to, from, offsetof(struct step_result, top));
    for (uint32_t i = 0; i < rows; i++)
        if (to->top_count[i]) memcpy(to->top[i], from->top[i], to->top_count[i] * sizeof to->top[i][0]);
}

extern "C" int cuda_backend_put_state(struct cuda_backend *b, const struct step_state *state)
{
    const int rc = check_state(b, state);

    if (rc) return rc;
    b->kind = kind_of(b, state);
    return launch_check(cudaMemcpyAsync(b->state, state, sizeof *state, cudaMemcpyHostToDevice, b->stream), "state copy");
}

/* tag: of the drafts that the step waits for; 0: none. */
static int launch_step(struct cuda_backend *b, const struct step_state *state, uint64_t tag)
{
    const int rc = check_state(b, state);

    if (rc) return rc;
    if (is_under_way(b)) return -E_BUSY;   /* state_host may still be read */
    const cudaGraphExec_t graph = pick_graph(b, state);
    if (graph == NULL || state->step == 0 || state->step == b->launched) return -E_RANGE;
    *b->state_host = *state;
    b->state_host->general_rows = general_rows(state);
    b->state_host->handed = tag ? (uint64_t)b->handover.record : 0, b->state_host->handed_tag = tag;
    b->launched = state->step;
    int launched = tag ? handover_await(&b->handover, b->state_host, b->spec.vocab, tag, b->stream) : 0;
    if (launched == 0) launched = launch_check(cudaGraphLaunch(graph, b->stream), "step");
    if (launched == 0 && b->state_host->general_rows) {
        const struct sample_args args = chain_sample_args(b);

        launched = sample_general_launch(&args, state->rows, b->stream);
    }
    return launched;
}

extern "C" int cuda_backend_step(struct cuda_backend *b, const struct step_state *state) { return launch_step(b, state, 0); }

/* ---- drafts that come over the device ---- */

extern "C" int cuda_backend_hand_over(struct cuda_backend *b, struct cuda_handover_record *record) { return handover_open(&b->handover, record); }

extern "C" int cuda_backend_step_behind(struct cuda_backend *b, const struct step_state *state, uint64_t tag)
{
    if (!b->handover.record || tag == 0 || state->groups != 1 || state->from_states || general_rows(state)) return -E_RANGE;
    return launch_step(b, state, tag);
}

/* W2 <- take_kernel: rows and tokens are in host memory before the flag. */
extern "C" int cuda_backend_begun(const struct cuda_backend *b) { return __atomic_load_n(b->handover.seen, __ATOMIC_ACQUIRE) == b->handover.tag; }

extern "C" int cuda_backend_release(struct cuda_backend *b) { return handover_release(&b->handover); }

extern "C" uint32_t cuda_backend_scored(const struct cuda_backend *b, uint32_t *tokens)
{
    const uint32_t rows = b->state_host->rows;

    for (uint32_t i = 0; i < rows; i++) tokens[i] = b->state_host->row[i].token;
    return rows;
}

extern "C" int cuda_backend_wait(struct cuda_backend *b, uint64_t step, uint32_t timeout_us, struct step_result *result)
{
    /* W1 <- publish() in sample.cu: the tokens are in host memory before the flag. */
    const int rc = await_word(&b->result->step, step, NULL, b->stream, timeout_us, "step");

    if (rc) return rc;
    copy_result(result, b->result, b->state_host->rows);
    return 0;
}

extern "C" void *cuda_backend_buffer(struct cuda_backend *b, enum cuda_buffer which)
{
    return which == CUDA_LOGITS ? (void *)b->logits : which == CUDA_HIDDEN ? (void *)b->x : (void *)b->residual[0];   /* 2 norms a layer: back at 0 */
}

extern "C" int cuda_backend_logits(struct cuda_backend *b, uint32_t row, float *logits)
{
    if (row >= b->rows_max) return -E_RANGE;
    int rc = launch_check(cudaMemcpyAsync(logits, b->logits + (uint64_t)row * b->spec.vocab, 4ull * b->spec.vocab, cudaMemcpyDeviceToHost, b->stream), "logits");
    return rc ? rc : launch_check(cudaStreamSynchronize(b->stream), "logits");
}

extern "C" void *cuda_backend_stream(struct cuda_backend *b) { return b->stream; }

extern "C" int cuda_backend_graph(struct cuda_backend *b, uint32_t rows, uint32_t parts, void **graph_exec)
{
    if (rows == 0 || rows > b->rows_max || parts == 0 || parts > CHAIN_ALL) return -E_RANGE;
    return chain_graph(b, rows, parts, (cudaGraphExec_t *)graph_exec);
}

extern "C" void cuda_backend_trace(struct cuda_backend *b, void *words_device) { b->trace = (unsigned long long *)words_device; }

extern "C" const char *cuda_backend_error(void) { return launch_error(); }

extern "C" uint32_t cuda_backend_version(void) { return CUDA_BACKEND_VERSION; }
