/* tests/gpu/plain_test.c - the CUDA kernels for other shapes (kernels/cuda/plain.h) against model/forward.c: logits, every byte of the KV arena, the
 * hidden states and the picked tokens must be EQUAL, not close.
 *
 * Both sides run the same checkpoint (the demo model, and random ones of both families made by tests/synthetic.h) on arenas of the same
 * geometry whose pages lie in no order and begin as NaN, so that a stale read shows. The CPU runs prompts in other pieces than the GPU.
 * Run from the top of the repository. Exit 0 pass, 1 fail, 77 no GPU.
 *   cuda_plain_test [NAME]      NAME: only models whose name begins so */
#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_prefill.h"
#include "kernels/cuda/cuda_weights.h"
#include "model/engine.h"
#include "model/sampler.h"
#include "model/states.h"
#include "shm/error.h"
#include "tests/gpu/check.h"
#include "tests/synthetic.h"
#include <cuda_runtime_api.h>
#include <stdarg.h>
#include <time.h>

#define SEQS 40
#define CHUNK_CPU 61                  /* rows of a sequence in one CPU call */
#define ROWS_CPU 64
#define FAILURES_SHOWN 40             /* of picked tokens: a wrong forward pass makes them all wrong */

static int failures;
static const char *only;              /* models to run; NULL: all */

static uint32_t word_state = 12345;

static uint32_t next_word(uint32_t below)
{
    word_state ^= word_state << 13;
    word_state ^= word_state >> 17;
    word_state ^= word_state << 5;
    return word_state % below;
}

/* A model on both devices. */
struct rig {
    const char *name;
    struct model_files files;
    struct model_config config;
    struct generation_config generation;
    struct model_weights weights;
    struct kv_geometry geo;
    struct cuda_model_spec spec;
    uint8_t *arena, *copy;            /* the CPU's, and the GPU's brought here */
    uint8_t *states, *states_copy, *states_device;
    struct forward *forward;
    uint32_t *pages[2];               /* per layer type: [SEQS][pages of a sequence] */
    uint32_t per_seq[2];
    struct forward_seq seqs[SEQS];
    uint32_t length[SEQS];            /* tokens in the cache */
    void *weights_device;
    uint8_t *kv_device;
    struct cuda_backend *backend;
    struct cuda_prefill *prefill;
    uint64_t step;
    float *logits_cpu, *logits_gpu;
};

static const struct tensor *find(const struct safetensors *index, const char *name)
{
    static const char *const prefixes[] = { "model.language_model.", "language_model.model.", "model.", "language_model.", "" };
    char full[256];

    for (size_t i = 0; i < sizeof(prefixes) / sizeof(prefixes[0]); i++) {
        const struct tensor *t;

        snprintf(full, sizeof(full), "%s%s", prefixes[i], name);
        if ((t = safetensors_find(index, full)) != NULL) return t;
    }
    return NULL;
}

/* As the loader in the keeper may do it: whole tensors by cuda_weights_load. */
static void put_tensor(struct cuda_weights *w, enum cuda_tensor which, uint32_t layer, const struct tensor *t)
{
    void *device;

    cuda_ok(cudaMalloc(&device, t->byte_count), "memory");
    cuda_ok(cudaMemcpy(device, t->data, t->byte_count, cudaMemcpyHostToDevice), "copy");
    cuda_ok(cudaDeviceSynchronize(), "copy");          /* a copy from pageable memory may still be under way, and the handle's stream does not wait for it */
    ok(cuda_weights_load(w, which, layer, device, t->dtype == DTYPE_BF16 ? WEIGHT_BF16 : WEIGHT_F32, NULL, 0), t->name);
    cudaFree(device);
}

static void *to_device(const void *from, uint64_t bytes, uint64_t room)
{
    void *device;

    cuda_ok(cudaMalloc(&device, room), "memory");
    cuda_ok(cudaMemcpy(device, from, bytes, cudaMemcpyHostToDevice), "copy");
    return device;
}

/* A matrix as it is stored: codes, FP4's group scales behind them, and the f32 that scale it. */
static void put_matrix(struct cuda_weights *w, enum cuda_tensor which, uint32_t layer, const struct stored_matrix *m)
{
    const uint32_t format = engine_matrix_format(m), stride = stored_scale_stride(m);
    const uint64_t bytes = stored_code_bytes(m->element, (uint64_t)m->rows * m->k), groups = m->element == STORED_E2M1 ? (uint64_t)m->rows * m->k / STORED_GROUP : 0;
    const float factor = m->global_divides ? -m->global : m->global, *scale = format == WEIGHT_FP4 ? &factor : m->scale;
    const uint64_t scales = format == WEIGHT_FP4 ? 1 : format == WEIGHT_FP8 || format == WEIGHT_FP8_BLOCK ? (uint64_t)((m->rows + m->scale_rows - 1) / m->scale_rows) * stride : 0;
    uint8_t *codes = to_device(m->data, bytes, bytes + groups), *scale_device = scales ? to_device(scale, 4 * scales, 4 * scales) : NULL;

    if (groups) cuda_ok(cudaMemcpy(codes + bytes, m->group_scale, groups, cudaMemcpyHostToDevice), "copy");
    cuda_ok(cudaDeviceSynchronize(), "copy");
    ok(cuda_weights_load(w, which, layer, codes, format, scale_device, format == WEIGHT_FP8_BLOCK ? stride : format == WEIGHT_FP8 && m->scale_rows == 1), model_matrix_name(which));
    cudaFree(codes);
    cudaFree(scale_device);
}

static void put_one(struct cuda_weights *w, enum cuda_tensor which, uint32_t layer)
{
    const float one = 1.0f;
    void *device;

    cuda_ok(cudaMalloc(&device, 4), "memory");
    cuda_ok(cudaMemcpy(device, &one, 4, cudaMemcpyHostToDevice), "copy");
    cuda_ok(cudaDeviceSynchronize(), "copy");
    ok(cuda_weights_load(w, which, layer, device, WEIGHT_F32, NULL, 0), "scalar");
    cudaFree(device);
}

static void load_gpu(struct rig *g)
{
    static const char *const names[CUDA_TENSORS] = {
        [CUDA_INPUT_NORM] = "input_layernorm.weight", [CUDA_POST_ATTENTION_NORM] = "post_attention_layernorm.weight",
        [CUDA_PRE_FF_NORM] = "pre_feedforward_layernorm.weight", [CUDA_POST_FF_NORM] = "post_feedforward_layernorm.weight",
        [CUDA_Q_NORM] = "self_attn.q_norm.weight", [CUDA_K_NORM] = "self_attn.k_norm.weight", [CUDA_LAYER_SCALAR] = "layer_scalar",
    };
    struct safetensors index;
    struct model_error err = { "" };
    struct cuda_weights *w;
    char name[128];

    safetensors_init(&index);
    if (safetensors_load(&index, &g->files, &err) != 0) die("%s", err.text);
    cuda_ok(cudaMalloc(&g->weights_device, cuda_weights_bytes(&g->spec)), "weights");
    ok(cuda_weights_open(&w, &g->spec, g->weights_device), "weights");
    for (uint32_t i = 0; i < g->config.layer_count; i++)
        for (int t = 0; t < CUDA_TENSORS; t++) {
            const struct tensor *found;

            if (!names[t]) continue;
            snprintf(name, sizeof(name), "layers.%u.%s", i, names[t]);
            if ((found = find(&index, name)) != NULL) put_tensor(w, (enum cuda_tensor)t, i, found);
            else if (t == CUDA_LAYER_SCALAR) put_one(w, CUDA_LAYER_SCALAR, i);
            else die("%s is missing", name);
        }
    for (uint32_t i = 0; i < g->config.layer_count; i++)
        for (uint32_t which = 0; which < MODEL_MATRICES; which++)
            if (model_matrix(&g->weights, i, which)->data) put_matrix(w, (enum cuda_tensor)which, i, model_matrix(&g->weights, i, which));
    put_tensor(w, CUDA_EMBED, 0, find(&index, "embed_tokens.weight"));
    put_tensor(w, CUDA_FINAL_NORM, 0, find(&index, "norm.weight"));
    ok(cuda_weights_finish(w), "weights");
    cuda_weights_close(w);
    safetensors_free(&index);
}

/* Pages of the sequences, in no order: those of one sequence lie apart and backwards. */
static void make_pages(struct rig *g)
{
    g->per_seq[CUDA_FULL] = g->geo.full_pages_per_seq, g->per_seq[CUDA_SLIDING] = g->geo.sliding_pages_per_seq;
    for (int type = 0; type < 2; type++) g->pages[type] = malloc(4 * SEQS * g->per_seq[type]);
    for (uint32_t s = 0; s < SEQS; s++) {
        uint32_t *full = g->pages[CUDA_FULL] + s * g->per_seq[CUDA_FULL], *sliding = g->pages[CUDA_SLIDING] + s * g->per_seq[CUDA_SLIDING];

        for (uint32_t i = 0; i < g->per_seq[CUDA_FULL]; i++) full[i] = (g->per_seq[CUDA_FULL] - 1 - i) * SEQS + s;
        for (uint32_t i = 0; i < g->per_seq[CUDA_SLIDING]; i++) sliding[i] = i * SEQS + (SEQS - 1 - s);
        g->seqs[s] = (struct forward_seq){ full, sliding, g->per_seq[CUDA_FULL], g->per_seq[CUDA_SLIDING] };
    }
}

static void open_cpu(struct rig *g, enum kv_dtype dtype, uint32_t context, uint32_t rows_max)
{
    const struct forward_options options = { .threads = 0, .rows_max = ROWS_CPU };

    ok(kv_geometry_init(&g->geo, &g->config, dtype, context, rows_max, 0, 0), "geometry");
    ok(kv_geometry_init(&g->geo, &g->config, dtype, context, rows_max, g->geo.full_pages_per_seq * SEQS, g->geo.sliding_pages_per_seq * SEQS), "geometry");
    if (posix_memalign((void **)&g->arena, 4096, g->geo.arena_bytes) != 0) abort();
    g->copy = malloc(g->geo.arena_bytes);
    memset(g->arena, 0xff, g->geo.arena_bytes);
    make_pages(g);
    ok(forward_open(&g->forward, &g->weights, &g->geo, g->arena, &options), "forward");
    g->states = malloc(states_bytes(SEQS, g->config.hidden));
    g->states_copy = malloc(states_bytes(SEQS, g->config.hidden));
    memset(g->states, 0xff, states_bytes(SEQS, g->config.hidden));
    g->logits_cpu = malloc(4ull * STEP_ROWS_MAX * g->config.vocab);
    g->logits_gpu = malloc(4ull * STEP_ROWS_MAX * g->config.vocab);
}

static void open_gpu(struct rig *g, uint32_t prefill_rows)
{
    struct cuda_options options = { .seqs_max = SEQS, .context_max = g->geo.max_context, .ring_pages = g->geo.sliding_pages_per_seq, .graph_rows_mask = 63 };
    struct cuda_layer_format formats[MODEL_LAYERS_MAX];
    struct model_error err = { "" };

    if (engine_cuda_formats(formats, &g->config, &g->weights, true, &err) != 0) die("%s", err.text);
    if (engine_cuda_spec(&g->spec, &g->config, &g->generation, &g->geo, g->weights.dtype == DTYPE_BF16 ? WEIGHT_BF16 : WEIGHT_F32, formats, &err) != 0) die("%s", err.text);
    if (cuda_weights_bytes(&g->spec) == 0) die("%s: the shape is refused", g->name);
    load_gpu(g);
    cuda_ok(cudaMalloc((void **)&g->kv_device, g->geo.arena_bytes), "cache");
    cuda_ok(cudaMemset(g->kv_device, 0xff, g->geo.arena_bytes), "cache");
    cuda_ok(cudaMalloc((void **)&g->states_device, states_bytes(SEQS, g->config.hidden)), "states");
    cuda_ok(cudaMemset(g->states_device, 0xff, states_bytes(SEQS, g->config.hidden)), "states");
    cuda_ok(cudaDeviceSynchronize(), "cache");
    options.weights_device = g->weights_device;
    options.kv_device[CUDA_FULL] = g->kv_device;
    options.kv_device[CUDA_SLIDING] = g->kv_device + g->geo.sliding_offset;
    options.states_device = (float *)g->states_device;
    ok(cuda_backend_open(&g->backend, &g->spec, &options), "backend");
    ok(cuda_prefill_open(&g->prefill, &g->spec, &options, prefill_rows), "prefill");
    for (uint32_t s = 0; s < SEQS; s++)
        for (int type = 0; type < 2; type++) {
            const uint32_t *pages = g->pages[type] + s * g->per_seq[type];

            ok(cuda_backend_pages(g->backend, s, (enum cuda_layer_type)type, 0, pages, g->per_seq[type]), "pages");
            ok(cuda_prefill_pages(g->prefill, s, (enum cuda_layer_type)type, 0, pages, g->per_seq[type]), "pages");
        }
}

static void close_rig(struct rig *g)
{
    cuda_prefill_close(g->prefill);
    cuda_backend_close(g->backend);
    cudaFree(g->kv_device);
    cudaFree(g->states_device);
    cudaFree(g->weights_device);
    forward_close(g->forward);
    model_weights_free(&g->weights);
    model_files_close(&g->files);
    free(g->arena);
    free(g->copy);
    free(g->pages[0]);
    free(g->pages[1]);
    free(g->logits_cpu);
    free(g->logits_gpu);
    free(g->states);
    free(g->states_copy);
}

static void load_model(struct rig *g)
{
    struct model_error err = { "" };

    if (model_load(&g->config, &g->generation, &g->weights, &g->files, &err) != 0) die("%s", err.text);
}

/* Bytes of K (or V) of one layer that differ, over all pages; `where` is the first. */
static uint64_t count_wrong(const struct rig *g, uint32_t layer, bool value, char *where, size_t where_bytes)
{
    const struct kv_layer *l = &g->geo.layer[layer];
    const uint32_t pages = l->type == LAYER_FULL ? g->geo.full_page_count : g->geo.sliding_page_count;
    const uint64_t bytes = (uint64_t)l->kv_heads * KV_PAGE_TOKENS * l->head_dim * g->geo.element_bytes;
    uint64_t wrong = 0;

    for (uint32_t page = 0; page < pages; page++) {
        const uint64_t at = kv_token_offset(&g->geo, layer, value, page, 0, 0);

        if (memcmp(g->copy + at, g->arena + at, bytes) == 0) continue;
        for (uint64_t i = 0; i < bytes; i++) {
            const uint64_t element = i / g->geo.element_bytes;

            if (g->copy[at + i] == g->arena[at + i] || wrong++ != 0) continue;
            snprintf(where, where_bytes, "page %u head %llu token %llu element %llu", page, (unsigned long long)(element / l->head_dim / KV_PAGE_TOKENS),
                     (unsigned long long)(element / l->head_dim % KV_PAGE_TOKENS), (unsigned long long)(element % l->head_dim));
        }
    }
    return wrong;
}

/* Every byte of the cache. */
static void compare_cache(struct rig *g, const char *when)
{
    char where[128];

    cuda_ok(cudaMemcpy(g->copy, g->kv_device, g->geo.arena_bytes, cudaMemcpyDeviceToHost), "copy");
    if (memcmp(g->copy, g->arena, g->geo.arena_bytes) == 0) return;
    failures++;
    printf("  %s, %s: the caches differ\n", g->name, when);
    for (uint32_t i = 0; i < 2 * g->config.layer_count; i++) {
        const uint64_t wrong = count_wrong(g, i / 2, i % 2, where, sizeof(where));

        if (wrong) printf("    layer %u %s: %llu bytes, the first: %s\n", i / 2, i % 2 ? "V" : "K", (unsigned long long)wrong, where);
    }
}

static void *state_cpu(const struct rig *g, uint32_t seq, uint32_t position) { return g->states + states_offset(seq, position, g->config.hidden); }

static void compare_states(struct rig *g, const char *when)
{
    uint64_t wrong = 0;

    cuda_ok(cudaMemcpy(g->states_copy, g->states_device, states_bytes(SEQS, g->config.hidden), cudaMemcpyDeviceToHost), "copy");
    for (uint64_t i = 0; i < SEQS * STATES_ROWS; i++)
        wrong += memcmp(g->states_copy + i * 4 * g->config.hidden, g->states + i * 4 * g->config.hidden, 4ull * g->config.hidden) != 0;
    if (wrong) printf("  %s, %s: %llu of %u hidden states differ\n", g->name, when, (unsigned long long)wrong, SEQS * STATES_ROWS);
    failures += wrong != 0;
}

/* Rows of one sequence on the CPU, without logits; the state of the last one if it is to be left. */
static void prefill_cpu(struct rig *g, uint32_t seq, const uint32_t *tokens, uint32_t count, bool leaves_state)
{
    struct forward_row rows[CHUNK_CPU];

    for (uint32_t at = 0; at < count; at += CHUNK_CPU) {
        const uint32_t n = count - at < CHUNK_CPU ? count - at : CHUNK_CPU;

        for (uint32_t i = 0; i < n; i++)
            rows[i] = (struct forward_row){ .token = tokens[at + i], .position = g->length[seq] + at + i, .seq = seq, .want_logits = leaves_state && at + i + 1 == count };
        ok(forward_run(g->forward, rows, n, g->seqs, SEQS, NULL, state_cpu(g, seq, g->length[seq] + count - 1)), "forward");
    }
}

/* A GPU prefill by `layers` layers at a time; 0: in one call. */
static void prefill_gpu(struct rig *g, const struct cuda_prefill_span *spans, uint32_t count, const uint32_t *tokens, uint32_t layers)
{
    int more = 1;

    if (layers == 0) {
        ok(cuda_prefill_run(g->prefill, spans, count, tokens), "prefill");
        return;
    }
    ok(cuda_prefill_begin(g->prefill, spans, count, tokens), "prefill");
    while (more) {
        if ((more = cuda_prefill_go(g->prefill, layers)) < 0) ok(more, "prefill");
        ok(cuda_prefill_wait(g->prefill, 10000000), "prefill");
    }
}

/* Continues `count` sequences by lengths[i] random tokens each, on both sides: the GPU all rows in one call, or some layers at a time. */
static void prefill(struct rig *g, const uint32_t *seq, const uint32_t *lengths, uint32_t count)
{
    struct cuda_prefill_span spans[CUDA_PREFILL_SPANS_MAX];
    uint32_t *tokens, total = 0;

    for (uint32_t i = 0; i < count; i++) total += lengths[i];
    tokens = malloc(4 * total);
    for (uint32_t i = 0; i < total; i++) tokens[i] = next_word(g->config.vocab);
    total = 0;
    for (uint32_t i = 0; i < count; i++) {
        spans[i] = (struct cuda_prefill_span){ seq[i], g->length[seq[i]], total, lengths[i], i % 2 };
        total += lengths[i];
    }
    prefill_gpu(g, spans, count, tokens, next_word(4));
    for (uint32_t i = 0; i < count; i++) {
        prefill_cpu(g, seq[i], tokens + spans[i].first_row, lengths[i], spans[i].leaves_state);
        g->length[seq[i]] += lengths[i];
    }
    ok(cuda_prefill_wait(g->prefill, 10000000), "prefill");
    free(tokens);
}

static void compare_logits(struct rig *g, uint32_t rows, const char *when)
{
    uint64_t wrong = 0, n = (uint64_t)rows * g->config.vocab;

    cuda_ok(cudaMemcpy(g->logits_gpu, cuda_backend_buffer(g->backend, CUDA_LOGITS), 4 * n, cudaMemcpyDeviceToHost), "copy");
    for (uint64_t i = 0; i < n; i++) {
        if (memcmp(&g->logits_gpu[i], &g->logits_cpu[i], 4) == 0 && g->logits_cpu[i] == g->logits_cpu[i]) continue;
        if (wrong++ == 0)
            printf("  %s, %s: row %llu token %llu: %a, the CPU has %a\n", g->name, when, (unsigned long long)(i / g->config.vocab),
                   (unsigned long long)(i % g->config.vocab), (double)g->logits_gpu[i], (double)g->logits_cpu[i]);
    }
    if (wrong) printf("  %s, %s: %llu of %llu logits differ\n", g->name, when, (unsigned long long)wrong, (unsigned long long)n);
    failures += wrong != 0;
}

static void random_sampling(struct sampling_params *p, struct step_sampling *s)
{
    static const float temperatures[] = { 0.0f, 0.7f, 1.0f, 1.3f }, top_p[] = { 0.0f, 0.5f, 0.9f, 1.0f }, min_p[] = { 0.0f, 0.0f, 0.05f, 0.3f };
    static const uint32_t top_k[] = { 1, 5, 40, 64 };

    *p = (struct sampling_params){ .seed = (uint64_t)next_word(UINT32_MAX) << 32 | next_word(UINT32_MAX), .temperature = temperatures[next_word(4)],
                                   .top_p = top_p[next_word(4)], .min_p = min_p[next_word(4)], .top_k = top_k[next_word(4)] };
    *s = (struct step_sampling){ .seed = p->seed, .temperature = p->temperature, .top_p = p->top_p, .min_p = p->min_p, .top_k = p->top_k };
}

/* One step: `counts[i]` rows of sequence seq[i], random sampling; logits and tokens must be equal. Tokens are random, or with `follow` those that
 * the same rows picked in the step before, which the GPU knows by itself. keep: the rows stay in the cache. */
static void step(struct rig *g, struct sampler *sampler, const uint32_t *seq, const uint32_t *counts, uint32_t groups, bool follow, bool keep, const char *when)
{
    static struct step_state state;
    static struct step_result result, again;
    float *hidden = malloc(4ull * STEP_ROWS_MAX * g->config.hidden);
    struct forward_row rows[STEP_ROWS_MAX];
    struct sampling_params params[STEP_ROWS_MAX];
    struct sample_out out;
    uint32_t n = 0;

    memset(&state, 0, sizeof(state));
    state.step = ++g->step;
    state.groups = groups;
    for (uint32_t i = 0; i < groups; i++) {
        state.group[i] = (struct step_group){ n, counts[i], g->length[seq[i]], seq[i] };
        for (uint32_t j = 0; j < counts[i]; j++, n++) {
            const uint32_t token = follow ? result.token[n] : next_word(g->config.vocab);

            rows[n] = (struct forward_row){ .token = token, .position = g->length[seq[i]] + j, .seq = seq[i], .want_logits = 1 };
            state.row[n] = (struct step_row){ follow ? STEP_TOKEN_LAST : token, rows[n].position, i, 0 };
            random_sampling(&params[n], &state.sampling[n]);
        }
        if (keep) g->length[seq[i]] += counts[i];
    }
    state.rows = n;
    ok(cuda_backend_step(g->backend, &state), "step");
    ok(forward_run(g->forward, rows, n, g->seqs, SEQS, g->logits_cpu, hidden), "forward");
    for (uint32_t i = 0; i < n; i++) memcpy(state_cpu(g, rows[i].seq, rows[i].position), hidden + (uint64_t)i * g->config.hidden, 4ull * g->config.hidden);
    ok(cuda_backend_wait(g->backend, g->step, 10000000, &result), "wait");
    compare_logits(g, n, when);
    compare_states(g, when);
    again = result;
    state.step = ++g->step;
    state.from_states = 1; /* the same rows by the states that they have just left */
    cuda_ok(cudaMemset(cuda_backend_buffer(g->backend, CUDA_LOGITS), 0xff, 4ull * n * g->config.vocab), "logits");
    ok(cuda_backend_step(g->backend, &state), "step from states");
    ok(cuda_backend_wait(g->backend, g->step, 10000000, &again), "wait");
    compare_logits(g, n, when);
    if (memcmp(again.token, result.token, n * sizeof *again.token) != 0) failures++, printf("  %s, %s: other tokens by the states\n", g->name, when);
    for (uint32_t i = 0; i < n; i++) {
        ok(sampler_pick(sampler, &params[i], g->logits_cpu + (uint64_t)i * g->config.vocab, rows[i].position + 1, NULL, &out), "sampler");
        if (out.token == result.token[i] && !result.bad[i]) continue;
        failures++;
        if (failures > FAILURES_SHOWN) continue;
        printf("  %s, %s: row %u picked %u, the CPU %u (T %g k %u p %g min %g)\n", g->name, when, i, result.token[i], out.token, (double)params[i].temperature,
               params[i].top_k, (double)params[i].top_p, (double)params[i].min_p);
    }
    free(hidden);
}

/* Prompts in pieces, decode of 1 to 32 rows in every mixture, prompts continued behind it. */
static void run_rig(struct rig *g, uint32_t piece)
{
    const uint32_t room = g->geo.max_context, before = (uint32_t)failures;
    struct sampler *sampler;
    uint32_t seq[SEQS], counts[SEQS];
    const double start = now_ms();

    ok(sampler_open(&sampler, g->config.vocab, g->generation.suppress_token, g->generation.suppress_count), "sampler");
    for (uint32_t s = 0; s < SEQS; s++) seq[s] = s;
    prefill(g, (uint32_t[]){ 0, 7, 3 }, (uint32_t[]){ 1, piece, piece / 3 + 1 }, 3);
    prefill(g, (uint32_t[]){ 7, 0 }, (uint32_t[]){ piece / 2, piece - 1 }, 2);
    while (g->length[7] + piece < room - 60) prefill(g, (uint32_t[]){ 7, 4 }, (uint32_t[]){ piece, 1 }, 2);
    compare_cache(g, "prompts");
    for (uint32_t rows = 1; rows <= 32; rows += rows < 6 ? 1 : 5) {
        for (uint32_t i = 0; i < rows; i++) counts[i] = 1;
        step(g, sampler, seq, counts, rows, false, true, "one row each");
        step(g, sampler, seq, counts, rows, true, true, "one row each, following");
    }
    for (uint32_t rows = 1; rows <= 8; rows++) step(g, sampler, (uint32_t[]){ 7 }, &rows, 1, false, rows < 4, "a block");
    step(g, sampler, (uint32_t[]){ 5, 7, 0, 31 }, (uint32_t[]){ 3, 8, 1, 4 }, 4, false, true, "blocks of several");
    prefill(g, (uint32_t[]){ 0, 31 }, (uint32_t[]){ piece / 4 + 1, piece }, 2);
    step(g, sampler, (uint32_t[]){ 31, 0 }, (uint32_t[]){ 1, 2 }, 2, false, true, "behind a continued prompt");
    compare_cache(g, "end");
    sampler_close(sampler);
    printf("%-28s %u layers, hidden %u, context %u, window %u: %s (%.0f ms)\n", g->name, g->config.layer_count, g->config.hidden, room, g->config.window,
           (uint32_t)failures == before ? "every bit equal" : "FAIL", now_ms() - start);
}

static char *read_text(const char *path)
{
    FILE *file = fopen(path, "rb");
    char *text = calloc(1, 1 << 16);

    if (!file || fread(text, 1, (1 << 16) - 1, file) == 0) die("cannot read %s: run this from the top of the repository", path);
    fclose(file);
    return text;
}

static void run_synthetic(const char *name, const char *json, bool f32, enum kv_dtype dtype, uint32_t context, uint32_t rows_max)
{
    struct rig *g;
    char title[64];

    if (only && strncmp(name, only, strlen(only)) != 0) return;
    g = calloc(1, sizeof(*g));
    snprintf(title, sizeof(title), "%s%s, cache %s", name, f32 ? " (f32)" : "", kv_dtype_name(dtype));
    g->name = title;
    synthetic_checkpoint(&g->files, json, &(struct synthetic_options){ .f32 = f32 });
    load_model(g);
    open_cpu(g, dtype, context, rows_max);
    open_gpu(g, 3 * rows_max);
    run_rig(g, rows_max);
    close_rig(g);
    free(g);
}

static void run_golden(const char *name, bool f32, enum kv_dtype dtype, uint32_t context, uint32_t rows_max)
{
    char path[128], *json;

    snprintf(path, sizeof(path), "tests/golden/forward/%s/config.json", name);
    json = read_text(path);
    run_synthetic(name, json, f32, dtype, context, rows_max);
    free(json);
}

/* What the others do not have: positions scaled, Gemma 3's larger vocabulary, a wide MLP, a head of 96, sizes that are multiples of 16 only, no full layer. */
#define GEMMA3_SCALED "{\"model_type\":\"gemma3_text\",\"vocab_size\":262208,\"hidden_size\":48,\"intermediate_size\":4176,\"num_hidden_layers\":3," \
    "\"layer_types\":[\"sliding_attention\",\"full_attention\",\"sliding_attention\"],\"num_attention_heads\":6,\"num_key_value_heads\":3,\"head_dim\":96," \
    "\"sliding_window\":300,\"query_pre_attn_scalar\":168,\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":8.0},\"eos_token_id\":1}"
#define GEMMA4_SLIDING "{\"model_type\":\"gemma4_unified_text\",\"vocab_size\":112,\"hidden_size\":80,\"intermediate_size\":16,\"num_hidden_layers\":2," \
    "\"layer_types\":[\"sliding_attention\",\"sliding_attention\"],\"num_attention_heads\":3,\"num_key_value_heads\":1,\"head_dim\":160," \
    "\"sliding_window\":513,\"max_position_embeddings\":4096,\"eos_token_id\":1}"

static void run_demo(void)
{
    struct rig *g;
    struct model_error err = { "" };

    if (only && strncmp("demo", only, strlen(only)) != 0) return;
    g = calloc(1, sizeof(*g));
    g->name = "demo model";
    if (model_files_open_dir(&g->files, "model/demo", &err) != 0) die("%s", err.text);
    load_model(g);
    open_cpu(g, KV_BF16, 1500, 256);
    open_gpu(g, 768);
    run_rig(g, 256);
    close_rig(g);
    free(g);
}

/* A checkpoint that the package which owns its format has written. The CPU rounds activations as the format says, and so must the GPU. */
static void run_format(const char *name, enum kv_dtype dtype)
{
    struct rig *g;
    struct model_error err = { "" };
    char path[128];

    if (only && strncmp(name, only, strlen(only)) != 0) return;
    g = calloc(1, sizeof(*g));
    g->name = name;
    snprintf(path, sizeof(path), "tests/golden/formats/%s", name);
    if (model_files_open_dir(&g->files, path, &err) != 0) die("%s", err.text);
    load_model(g);
    open_cpu(g, dtype, 700, 64);
    open_gpu(g, 192);
    run_rig(g, 64);
    close_rig(g);
    free(g);
}

int main(int argc, char **argv)
{
    int devices = 0;

    if (argc > 1) only = argv[1];
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        puts("skip: no GPU");
        return 77;
    }
    run_golden("shards", true, KV_F32, 700, 48);
    run_golden("shards", false, KV_BF16, 700, 33);
    run_golden("gemma3_bf16", false, KV_BF16, 700, 100);
    run_golden("real_heads_bf16", false, KV_BF16, 700, 64);
    run_golden("real_heads_f32", true, KV_BF16, 600, 64);
    run_golden("real_heads_f32", true, KV_FP8, 600, 64);
    run_golden("shards", false, KV_FP8, 700, 33);
    run_synthetic("scaled gemma3", GEMMA3_SCALED, false, KV_BF16, 900, 128);
    run_synthetic("sliding gemma4", GEMMA4_SLIDING, true, KV_BF16, 1400, 200);
    run_demo();
    run_format("torchao_row", KV_BF16);
    run_format("compressed_dynamic", KV_BF16);
    run_format("modelopt_static", KV_F32);
    run_format("modelopt_block128", KV_BF16);
    run_format("modelopt_nvfp4_mlp", KV_BF16);
    run_format("compressed_nvfp4a16", KV_F32);
    puts(failures ? "FAILED" : "plain: passed");
    return failures != 0;
}
