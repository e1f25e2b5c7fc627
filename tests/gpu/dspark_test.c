/* tests/gpu/dspark_test.c - the DSpark head on the GPU (cuda_dspark.h) against model/dspark.c on the CPU.
 *
 * One head in the shapes of Gemma 4 12B's attention (fewer and narrower layers, a small vocabulary) with weights that FP8 holds exactly, random outputs of layers in the memory
 * of model/features.h. Positions are absorbed in pieces, rings go round; logits and confidences must agree up to the rounding of activations, each guess be the best one of the
 * CPU's logits behind the guesses before it. Also: a position whose outputs are another's, sequences together and alone, rounds that begin behind a step and absorb what it committed. Run from anywhere. Exit 0 pass, 1 fail, 77 no GPU. */
#include "kernels/cuda/cuda_dspark.h"
#include "kernels/cuda/cuda_memory.h"
#include "kernels/cuda/cuda_weights.h"
#include "model/dspark.h"
#include "model/engine.h"
#include "model/features.h"
#include "model/kv.h"
#include "model/sampler.h"
#include "tests/gpu/drafter_rig.h"

#define HIDDEN 3840u
#define WIDE 3840u
#define VOCAB 4096u
#define LAYERS 2u
#define SOURCES 3u
#define BLOCK 7u
#define WINDOW 100u
#define CONTEXT 512u
#define PLACES 4u
#define MASK 4u
#define SOURCE_LAYERS 0x16ull         /* 1, 2, 4 */
#define GENERATION 9u
#define CLOSE 1.5e-2                  /* bf16 activations, keys and values: 2^-9 a rounding, some of them in a row */
#define CLOSE_SCORE 0.12f             /* what that can make of a logit of some units */

struct rig {
    struct model_config target;
    struct generation_config generation;
    struct kv_geometry geo;
    struct cuda_model_spec target_spec;
    struct dspark_weights w;
    struct dspark_cache cache;
    struct dspark *cpu;
    struct cuda_dspark_spec spec;
    struct cuda_dspark *gpu;
    struct features features;         /* base: host copy, rows in bf16 */
    uint8_t *features_device;
    void *target_device;
    uint16_t *table;                  /* [VOCAB][HIDDEN] */
    float *outputs;                   /* [PLACES][CONTEXT][SOURCES * HIDDEN] */
    uint8_t *caches[PLACES];
    uint32_t filled[PLACES];
};

static void set_layers(struct model_config *c, uint32_t count, bool full)
{
    c->layer_count = count;
    for (uint32_t i = 0; i < count; i++) {
        c->layer[i].type = full || i + 1 == count ? LAYER_FULL : LAYER_SLIDING;
        c->layer[i].kv_heads = c->layer[i].type == LAYER_FULL ? 1 : 8;
        c->layer[i].head_dim = c->layer[i].type == LAYER_FULL ? 512 : 256;
        c->layer[i].has_v = c->layer[i].type != LAYER_FULL;
        c->layer[i].type_index = c->type_count[c->layer[i].type]++;
    }
    c->rope[LAYER_SLIDING] = (struct rope_config){ROPE_DEFAULT, 1e4, 1.0, 1.0};
    c->rope[LAYER_FULL] = (struct rope_config){ROPE_PROPORTIONAL, 1e6, 0.25, 1.0};
    c->family = MODEL_GEMMA4_UNIFIED;
    c->hidden = HIDDEN;
    c->intermediate = WIDE;
    c->vocab = VOCAB;
    c->q_heads = 16;
    c->window = 128;
    c->max_position = CONTEXT;
    c->norm_eps = 1e-6f;
    c->attention_scale = 1;
    c->final_softcap = 30;
    c->has_v_norm = c->has_layer_scalar = true;
}

/* Only its table matters. */
static void make_target(struct rig *r)
{
    struct cuda_weights *weights;
    struct model_error err = {""};

    set_layers(&r->target, 6, false);
    ok(kv_geometry_init(&r->geo, &r->target, KV_BF16, CONTEXT, 16, 16, 16), "geometry");
    ok(engine_cuda_spec(&r->target_spec, &r->target, &r->generation, &r->geo, WEIGHT_FP8, NULL, &err), "spec");
    r->table = room(2ull * VOCAB * HIDDEN);
    for (uint64_t i = 0; i < (uint64_t)VOCAB * HIDDEN; i++) r->table[i] = bf16_of(uniform() / 16);
    cuda_ok(cudaMalloc(&r->target_device, cuda_weights_bytes(&r->target_spec)), "memory");
    void *table = to_device(r->table, 2ull * VOCAB * HIDDEN);
    ok(cuda_weights_open(&weights, &r->target_spec, r->target_device), "weights");
    ok(cuda_weights_load(weights, CUDA_EMBED, 0, table, WEIGHT_BF16, NULL, 0), "table");
    cuda_weights_close(weights);
    cuda_ok(cudaFree(table), "memory");
}

static void make_head(struct rig *r)
{
    struct dspark_weights *w = &r->w;

    w->config = (struct dspark_config){.target_layer_count = 6, .source_count = SOURCES, .source = {1, 2, 4}, .block = BLOCK, .mask_token = MASK, .markov_rank = 256, .confidence = true,
                                       .confidence_sees_token = true};
    set_layers(&w->config.layers, LAYERS, true);
    w->fc = make_matrix(HIDDEN, SOURCES * HIDDEN);
    w->hidden_norm = make_vector(HIDDEN, 1);
    w->norm = make_vector(HIDDEN, 1);
    for (uint32_t i = 0; i < LAYERS; i++) {
        struct drafter_layer *l = &w->layer[i].shared;
        l->q = make_matrix(16 * 512, HIDDEN);
        w->layer[i].k = make_matrix(512, HIDDEN);
        l->o = make_matrix(HIDDEN, 16 * 512);
        l->gate = make_matrix(WIDE, HIDDEN);
        l->up = make_matrix(WIDE, HIDDEN);
        l->down = make_matrix(HIDDEN, WIDE);
        l->q_norm = make_vector(512, 1 / sqrtf(512));
        w->layer[i].k_norm = make_vector(512, 1);
        l->input_norm = make_vector(HIDDEN, 1);
        l->post_attention_norm = make_vector(HIDDEN, 1);
        l->pre_feedforward_norm = make_vector(HIDDEN, 1);
        l->post_feedforward_norm = make_vector(HIDDEN, 1);
        l->scalar = 0.75f;
    }
    w->embed = r->table;
    w->embed_dtype = DTYPE_BF16;
    w->embed_scale = 62;
    w->head = make_matrix(VOCAB, HIDDEN);
    w->markov_in = make_matrix(VOCAB, 256).data;
    w->markov_dtype = DTYPE_BF16;
    w->markov_out = make_matrix(VOCAB, 256);
    w->confidence = make_vector(HIDDEN + 256, 0.01f);
    w->confidence_bias = -0.25f;
}

static void put(const struct rig *r, void *arena, enum cuda_dspark_tensor tensor, uint32_t layer, const void *data, uint64_t elements)
{
    ok(cuda_dspark_weights_put(&r->spec, arena, tensor, layer, data, elements), "weights of the head");
}

/* With a list of tokens: their rows of the matrices that have one for each token. */
static void put_by_token(const struct rig *r, void *arena, enum cuda_dspark_tensor tensor, const uint16_t *rows, uint32_t k, const uint32_t *tokens)
{
    const uint32_t count = r->spec.choices ? r->spec.choices : VOCAB;
    uint16_t *own = room(2ull * count * k);

    for (uint32_t i = 0; i < count; i++) memcpy(own + (uint64_t)i * k, rows + (uint64_t)(tokens ? tokens[i] : i) * k, 2 * k);
    put(r, arena, tensor, 0, own, (uint64_t)count * k);
    free(own);
}

static void *load_head(const struct rig *r, const uint32_t *tokens)
{
    const struct dspark_weights *w = &r->w;
    const uint64_t square = (uint64_t)HIDDEN * HIDDEN, wide = (uint64_t)WIDE * HIDDEN, heads = 16 * 512ull * HIDDEN;
    void *arena;

    cuda_ok(cudaMalloc(&arena, cuda_dspark_weights_bytes(&r->spec)), "memory");
    put(r, arena, CUDA_DSPARK_FC, 0, w->fc.data, SOURCES * square);
    if (tokens) put(r, arena, CUDA_DSPARK_CHOICE, 0, tokens, r->spec.choices);
    if (!r->spec.shared_head) put_by_token(r, arena, CUDA_DSPARK_HEAD, w->head.data, HIDDEN, tokens);
    put(r, arena, CUDA_DSPARK_MARKOV_IN, 0, w->markov_in, VOCAB * 256);
    put_by_token(r, arena, CUDA_DSPARK_MARKOV_OUT, w->markov_out.data, 256, tokens);
    put(r, arena, CUDA_DSPARK_HIDDEN_NORM, 0, w->hidden_norm, HIDDEN);
    put(r, arena, CUDA_DSPARK_FINAL_NORM, 0, w->norm, HIDDEN);
    put(r, arena, CUDA_DSPARK_CONFIDENCE, 0, w->confidence, HIDDEN + 256);
    for (uint32_t i = 0; i < LAYERS; i++) {
        const struct drafter_layer *l = &w->layer[i].shared;
        put(r, arena, CUDA_DSPARK_Q, i, l->q.data, heads);
        put(r, arena, CUDA_DSPARK_K, i, w->layer[i].k.data, 512ull * HIDDEN);
        put(r, arena, CUDA_DSPARK_O, i, l->o.data, heads);
        put(r, arena, CUDA_DSPARK_GATE, i, l->gate.data, wide);
        put(r, arena, CUDA_DSPARK_UP, i, l->up.data, wide);
        put(r, arena, CUDA_DSPARK_DOWN, i, l->down.data, wide);
        put(r, arena, CUDA_DSPARK_INPUT_NORM, i, l->input_norm, HIDDEN);
        put(r, arena, CUDA_DSPARK_POST_ATTENTION_NORM, i, l->post_attention_norm, HIDDEN);
        put(r, arena, CUDA_DSPARK_PRE_FF_NORM, i, l->pre_feedforward_norm, HIDDEN);
        put(r, arena, CUDA_DSPARK_POST_FF_NORM, i, l->post_feedforward_norm, HIDDEN);
        put(r, arena, CUDA_DSPARK_Q_NORM, i, l->q_norm, 512);
        put(r, arena, CUDA_DSPARK_K_NORM, i, w->layer[i].k_norm, 512);
        put(r, arena, CUDA_DSPARK_SCALAR, i, &l->scalar, 1);
    }
    expect(cuda_dspark_weights_put(&r->spec, arena, CUDA_DSPARK_Q, 0, w->fc.data, 5) == -E_RANGE, "a matrix of another size is refused");
    return arena;
}

static void make_outputs(struct rig *r)
{
    struct features *f = &r->features;

    r->outputs = make_features(f, PLACES, CONTEXT, HIDDEN, SOURCES, 2, SOURCE_LAYERS, GENERATION);
    r->features_device = to_device(f->base, features_bytes(f));
}

/* tokens NULL: any may be guessed. */
static struct cuda_dspark *open_gpu(const struct rig *r, const uint32_t *tokens, struct cuda_handover_record *record)
{
    const struct features *f = &r->features;
    const struct cuda_dspark_options o = {.weights_device = load_head(r, tokens), .target_device = r->target_device, .window = WINDOW, .context_max = CONTEXT, .handover = record,
                                          .features = {.device = r->features_device, .row_bytes = f->row_bytes, .places = f->place_count, .rows = f->rows, .sources_max = f->source_max, .element_bytes = 2}};
    struct cuda_dspark *gpu;

    ok(cuda_dspark_open(&gpu, &r->spec, &r->target_spec, &o, r->w.confidence_bias), "open");
    for (uint32_t p = 0; p < PLACES; p++) ok(cuda_dspark_place(gpu, p, 0), "place");
    return gpu;
}

static void open_both(struct rig *r)
{
    const struct forward_options options = {.threads = 8, .rows_max = PLACES};

    ok(dspark_cache_init(&r->cache, &r->w.config, KV_BF16, WINDOW, CONTEXT), "cache");
    ok(dspark_open(&r->cpu, &r->w, &r->cache, &options), "CPU");
    for (uint32_t p = 0; p < PLACES; p++) r->caches[p] = room(r->cache.slot_bytes);
    r->spec = (struct cuda_dspark_spec){.hidden = HIDDEN, .intermediate = WIDE, .vocab = VOCAB, .layers = LAYERS, .q_heads = 16, .kv_heads = 1, .head_dim = 512, .sources = SOURCES, .block = BLOCK,
                                        .rank = 256, .mask_token = MASK, .format = WEIGHT_FP8, .has_confidence = 1, .norm_eps = 1e-6f, .softcap = 30, .attention_scale = 1,
                                        .embed_scale = r->w.embed_scale, .rope_theta = 1e6, .rope_turned = 64};
    r->gpu = open_gpu(r, NULL, NULL);
}

/* Both sides absorb up to `position`, in pieces of at most `step`. */
static void absorb(struct rig *r, uint32_t place, uint32_t position, uint32_t step)
{
    const uint64_t floats = SOURCES * HIDDEN;

    for (; r->filled[place] < position;) {
        const uint32_t first = r->filled[place], left = position - first, n = left < step ? left : step;
        const struct cuda_dspark_absorb item = {place, GENERATION + place, first, n};
        struct dspark_feature rows[CUDA_DSPARK_ABSORB_MAX];
        for (uint32_t i = 0; i < n; i++) rows[i] = (struct dspark_feature){r->outputs + ((uint64_t)place * CONTEXT + first + i) * floats, r->caches[place], first + i};
        ok(dspark_absorb(r->cpu, rows, n), "CPU absorbs");
        ok(cuda_dspark_absorb(r->gpu, &item, 1, SOURCE_LAYERS), "GPU absorbs");
        r->filled[place] += n;
    }
}

static void wait_for(struct rig *r, struct cuda_dspark_answer *a)
{
    int rc;

    while ((rc = cuda_dspark_wait(r->gpu, 100000, a)) == -E_TIMEOUT) continue;
    ok(rc, "round");
}

static struct cuda_dspark_question ask(uint32_t place, uint32_t position, float temperature)
{
    return (struct cuda_dspark_question){.place = place, .token = 100 + 31 * place, .position = position, .guesses = BLOCK, .temperature = temperature, .seed = 77 + place};
}

static float *base_logits(const struct rig *r, uint32_t rows)
{
    float *base = room(sizeof(float) * rows * VOCAB);

    cuda_ok(cudaMemcpy(base, cuda_dspark_logits(r->gpu), sizeof(float) * rows * VOCAB, cudaMemcpyDeviceToHost), "logits");
    return base;
}

/* The Markov head's part of a logit, in f64. */
static double bias_of(const struct rig *r, uint32_t token, uint32_t previous)
{
    const uint16_t *in = (const uint16_t *)r->w.markov_in + previous * 256, *out = (const uint16_t *)r->w.markov_out.data + token * 256;
    double sum = 0;

    for (uint32_t i = 0; i < 256; i++) sum += (double)stored_from_bf16(in[i]) * stored_from_bf16(out[i]);
    return sum;
}

static void test_round(struct rig *r, struct sampler *sampler, uint32_t place, uint32_t position, uint32_t step, float temperature)
{
    const struct cuda_dspark_question q = ask(place, position, temperature);
    const struct dspark_row row = {.cache = r->caches[place], .token = q.token, .position = position, .low = 0};
    const struct sampling_params params = {.temperature = temperature, .seed = q.seed, .top_p = 1, .repetition_penalty = 1};
    float *logits = room(VOCAB * sizeof(float)), *mine = room(VOCAB * sizeof(float));
    struct cuda_dspark_answer a;
    double worst = 0, confidence = 0;
    uint32_t previous = q.token, same = 0;
    float missed = 0;

    absorb(r, place, position, step);
    ok(cuda_dspark_round(r->gpu, &q, 1), "round");
    wait_for(r, &a);
    float *base = base_logits(r, BLOCK);
    ok(dspark_block(r->cpu, &row, 1, BLOCK), "CPU block");
    for (uint32_t i = 0; i < BLOCK; previous = a.token[i++]) {
        const struct dspark_guess guess = {.row = 0, .index = i, .previous = previous};
        uint32_t choice;
        float lead, best = -1e30f;
        ok(dspark_logits(r->cpu, &guess, 1, logits), "CPU logits");
        for (uint32_t t = 0; t < VOCAB; t++) {
            mine[t] = base[(uint64_t)i * VOCAB + t] + (float)bias_of(r, t, previous);
            if (logits[t] > best) best = logits[t];
        }
        if (difference(mine, logits, VOCAB) > worst) worst = difference(mine, logits, VOCAB);
        if (fabs(a.confidence[i] - dspark_confidence(r->cpu, &guess)) > confidence) confidence = fabs(a.confidence[i] - dspark_confidence(r->cpu, &guess));
        if (a.token[i] >= VOCAB) die("token %u", a.token[i]);
        ok(sampler_guess(sampler, &params, mine, (uint64_t)position + 1 + i, NULL, &choice, &lead), "choice");
        same += choice == a.token[i];
        if (temperature == 0 && best - logits[a.token[i]] > missed) missed = best - logits[a.token[i]];
    }
    expect(worst < CLOSE && confidence < 0.02 && missed < CLOSE_SCORE && same + 1 >= BLOCK && a.low == (position > WINDOW ? position - WINDOW : 0),
           "place %u at %u, pieces of %u, temperature %.1f: logits off by %.1e, confidence by %.1e, best guess missed by %.2g, %u of %u choices are the sampler's, low %u", place, position, step,
           (double)temperature, worst, confidence, (double)missed, same, BLOCK, a.low);
    free(logits), free(mine), free(base);
}

/* Two sequences go through the product for few rows, four through the one for many. */
static void test_together(struct rig *r, uint32_t count)
{
    struct cuda_dspark_question q[PLACES];
    struct cuda_dspark_answer alone[PLACES], all[PLACES];
    uint64_t wrong = 0;

    for (uint32_t p = 0; p < count; p++) {
        absorb(r, p, 200 + 13 * p, 50);
        q[p] = ask(p, r->filled[p], p % 2 ? 1.0f : 0.0f);
    }
    ok(cuda_dspark_round(r->gpu, q, count), "round");
    wait_for(r, all);
    float *together = base_logits(r, count * BLOCK);
    for (uint32_t p = 0; p < count; p++) {
        ok(cuda_dspark_round(r->gpu, &q[p], 1), "round");
        wait_for(r, &alone[p]);
        float *own = base_logits(r, BLOCK);
        wrong += memcmp(own, together + (uint64_t)p * BLOCK * VOCAB, sizeof(float) * BLOCK * VOCAB) != 0 || memcmp(alone[p].token, all[p].token, sizeof all[p].token) != 0;
        free(own);
    }
    expect(wrong == 0, "%u sequences together: %llu differ from what they are alone", count, (unsigned long long)wrong);
    free(together);
}

/* A row that is another position's: nothing before it is seen; what is seen gives the same whatever lay before. */
static void test_gap(struct rig *r)
{
    const uint32_t place = 3, from = r->filled[place], gap = from + 20, position = from + 50;
    struct feature_row *row = (struct feature_row *)(r->features.base + features_offset(&r->features, place, gap)), other = *row;
    const struct cuda_dspark_question q = ask(place, position, 0);
    const struct cuda_dspark_absorb item = {place, GENERATION + place, from, 50};
    struct cuda_dspark_answer a, b;

    other.of++;
    cuda_ok(cudaMemcpy(r->features_device + features_offset(&r->features, place, gap), &other, sizeof other, cudaMemcpyHostToDevice), "copy");
    cuda_ok(cudaDeviceSynchronize(), "copy");      /* a small copy may return before it has arrived, and the drafter's stream does not wait for it */
    ok(cuda_dspark_absorb(r->gpu, &item, 1, SOURCE_LAYERS), "absorb");
    ok(cuda_dspark_round(r->gpu, &q, 1), "round");
    wait_for(r, &a);
    expect(a.low == gap + 1, "behind a gap at %u the block sees from %u on", gap, a.low);
    const struct cuda_dspark_absorb rest = {place, GENERATION + place, gap + 1, position - gap - 1};
    ok(cuda_dspark_place(r->gpu, place, gap + 1), "place");
    ok(cuda_dspark_absorb(r->gpu, &rest, 1, SOURCE_LAYERS), "absorb");
    ok(cuda_dspark_round(r->gpu, &q, 1), "round");
    wait_for(r, &b);
    expect(b.low == gap + 1 && memcmp(a.token, b.token, sizeof a.token) == 0, "a sequence that begins behind the gap gets the same guesses");
}

static void test_refusals(struct rig *r)
{
    struct cuda_dspark_question q = ask(0, 10, 0);
    const struct cuda_dspark_absorb far = {0, 1, CONTEXT - 1, 2}, twice[2] = {{1, 1, 0, 1}, {1, 1, 1, 1}};
    uint32_t refused = 0;

    refused += cuda_dspark_absorb(r->gpu, &far, 1, SOURCE_LAYERS) == -E_RANGE;
    refused += cuda_dspark_absorb(r->gpu, twice, 2, SOURCE_LAYERS) == -E_RANGE;
    refused += cuda_dspark_absorb(r->gpu, twice, 1, 1) == -E_RANGE;
    refused += cuda_dspark_place(r->gpu, PLACES, 0) == -E_RANGE;
    q.position = CONTEXT - BLOCK + 1;
    refused += cuda_dspark_round(r->gpu, &q, 1) == -E_RANGE;
    q = ask(0, 10, NAN);
    refused += cuda_dspark_round(r->gpu, &q, 1) == -E_RANGE;
    q = ask(0, 10, 0), q.guesses = BLOCK + 1;
    refused += cuda_dspark_round(r->gpu, &q, 1) == -E_RANGE;
    expect(refused == 7, "%u of 7 questions that make no sense are refused", refused);
}

/* The guesses of the first `count` places on another handle; they all stand at `position`. */
static void guesses_of(struct rig *r, struct cuda_dspark *gpu, uint32_t count, uint32_t position, float temperature, struct cuda_dspark_answer *a)
{
    struct cuda_dspark *const own = r->gpu;
    struct cuda_dspark_question q[PLACES];

    r->gpu = gpu;
    for (uint32_t p = 0; p < count; p++) {
        ok(cuda_dspark_place(gpu, p, 0), "place");
        for (uint32_t at = 0; at < position; at += 40) {
            const struct cuda_dspark_absorb item = {p, GENERATION + p, at, position - at < 40 ? position - at : 40};
            ok(cuda_dspark_absorb(gpu, &item, 1, SOURCE_LAYERS), "GPU absorbs");
        }
        q[p] = ask(p, position, temperature);
    }
    ok(cuda_dspark_round(gpu, q, count), "round");
    wait_for(r, a);
    r->gpu = own;
}

/* The guesses of one question on a handle that has absorbed up to `from`; 0: whose place begins anew. */
static void guesses_at(struct rig *r, struct cuda_dspark *gpu, const struct cuda_dspark_question *q, uint32_t from, struct cuda_dspark_answer *a)
{
    struct cuda_dspark *const own = r->gpu;

    if (from == 0) ok(cuda_dspark_place(gpu, q->place, 0), "place");
    for (; from < q->position;) {
        const uint32_t left = q->position - from, n = left < 40 ? left : 40;
        const struct cuda_dspark_absorb item = {q->place, GENERATION + q->place, from, n};
        ok(cuda_dspark_absorb(gpu, &item, 1, SOURCE_LAYERS), "GPU absorbs");
        from += n;
    }
    ok(cuda_dspark_round(gpu, q, 1), "round");
    r->gpu = gpu;
    wait_for(r, a);
    r->gpu = own;
}

/* A head with the rows of all tokens in another order guesses what the whole one does; one with every other token none but those. What is left for verify is what the host gets. */
static void test_choices(struct rig *r)
{
    uint32_t *tokens = room(4ull * VOCAB), same = 0, listed = 0, rounds = 0;
    struct cuda_handover_record *record, left;
    struct cuda_handover hand = {.tag = 99};

    cuda_ok(cudaMalloc((void **)&record, sizeof *record), "memory");
    cuda_ok(cudaMemset(record, 0, sizeof *record), "memory");
    for (uint32_t i = 0; i < VOCAB; i++) tokens[i] = VOCAB - 1 - i;
    r->spec.choices = VOCAB;
    struct cuda_dspark *turned = open_gpu(r, tokens, record);
    for (uint32_t i = 0; i < VOCAB / 2; i++) tokens[i] = VOCAB - 2 - 2 * i;
    r->spec.choices = VOCAB / 2;
    struct cuda_dspark *halved = open_gpu(r, tokens, NULL);
    r->spec.choices = 0;
    for (uint32_t count = 1; count <= PLACES; count++)
        for (uint32_t t = 0; t < 2; t++) {
            struct cuda_dspark_answer whole[PLACES], other[PLACES], half[PLACES];
            guesses_of(r, r->gpu, count, 30 + 20 * count, (float)t, whole);
            guesses_of(r, turned, count, 30 + 20 * count, (float)t, other);
            guesses_of(r, halved, count, 30 + 20 * count, (float)t, half);
            for (uint32_t p = 0; p < count; p++, rounds++) {
                same += memcmp(whole[p].token, other[p].token, BLOCK * sizeof *whole[p].token) == 0;
                for (uint32_t i = 0; i < BLOCK; i++) listed += half[p].token[i] % 2 == 0;
            }
        }
    expect(same == rounds && listed == rounds * BLOCK, "%u of %u blocks have the same guesses from a head in another order; %u of %u guesses of one with every other token are its own", same, rounds, listed, rounds * BLOCK);
    struct cuda_dspark_answer answer[PLACES];
    for (uint32_t i = 0; i < CUDA_HANDOVER_CLASSES; i++) hand.rate[i] = 1;
    ok(cuda_dspark_hand_over(turned, &hand), "hand over");
    guesses_of(r, turned, 1, 70, 0, answer);
    cuda_ok(cudaMemcpy(&left, record, sizeof left, cudaMemcpyDeviceToHost), "record");
    expect(left.word == 99 && left.tag == 99 && left.count == BLOCK && memcmp(left.token, answer[0].token, BLOCK * sizeof *left.token) == 0, "a round leaves its %u guesses and the tag", left.count);
    cuda_dspark_close(turned);
    cuda_dspark_close(halved);
    cuda_ok(cudaFree(record), "memory");
    free(tokens);
}

/* ---- rounds that follow a step ---- */

#define STEP_WAIT_US 20000u           /* a stream that waits for nothing would be done by then */

/* As a step does: the newest token under its tag, then the word. */
static void tell(struct cuda_handover_record *record, uint64_t tag, uint32_t token, uint32_t position)
{
    struct cuda_handover_record r = {.next_tag = tag, .next_token = token, .next_position = position};

    cuda_ok(cudaMemcpy(&record->next_tag, &r.next_tag, sizeof r.next_tag + 2 * sizeof r.next_token, cudaMemcpyHostToDevice), "record");
    cuda_ok(cudaMemcpy(&record->next_word, &tag, sizeof tag, cudaMemcpyHostToDevice), "record");
}

/* Its position is where the handle has absorbed to; hands over under tag + 1. Does it wait? */
static bool begin_following(struct cuda_dspark *gpu, const struct cuda_dspark_question *q, uint64_t tag)
{
    struct cuda_handover hand = {.tag = tag + 1};
    struct cuda_dspark_answer a;

    for (uint32_t i = 0; i < CUDA_HANDOVER_CLASSES; i++) hand.rate[i] = 1;
    ok(cuda_dspark_hand_over(gpu, &hand), "hand over");
    ok(cuda_dspark_follow(gpu, tag, GENERATION + q->place, SOURCE_LAYERS), "follow");
    ok(cuda_dspark_round(gpu, q, 1), "round");
    return cuda_dspark_wait(gpu, STEP_WAIT_US, &a) == -E_TIMEOUT;
}

static void ended(struct rig *r, struct cuda_dspark *gpu, struct cuda_dspark_answer *a)
{
    struct cuda_dspark *const own = r->gpu;

    r->gpu = gpu;
    wait_for(r, a);
    r->gpu = own;
}

static bool same_guesses(const struct cuda_dspark_answer *a, const struct cuda_dspark_answer *b)
{
    return a->low == b->low && memcmp(a->token, b->token, BLOCK * sizeof *a->token) == 0 && memcmp(a->confidence, b->confidence, BLOCK * sizeof *a->confidence) == 0;
}

/* From `position` on, behind steps that commit 1, 4, a whole block and one more, .. positions, against rounds that are asked for when all is absorbed. */
static void test_following(struct rig *r, struct cuda_dspark *gpu, struct cuda_handover_record *record, uint32_t place, uint32_t position, float temperature)
{
    const uint32_t steps[] = {1, 4, BLOCK + 1, 2, 3};
    struct cuda_dspark_question q = ask(place, position, temperature);
    struct cuda_dspark_answer wanted, got, again;
    struct cuda_handover_record left;
    uint64_t tag = 1000 * (uint64_t)position;
    uint32_t right = 0, handed = 0, count = sizeof steps / sizeof *steps;

    guesses_at(r, gpu, &q, 0, &got);
    for (uint32_t i = 0; i < count; i++, tag += 2) {
        const bool waited = begin_following(gpu, &q, tag);
        q.position += steps[i], q.token = (q.token * 7 + 5) % VOCAB;
        tell(record, tag, q.token, q.position);
        ended(r, gpu, &got);
        guesses_at(r, r->gpu, &q, 0, &wanted);
        guesses_at(r, gpu, &q, q.position, &again); /* what it absorbed is there */
        cuda_ok(cudaMemcpy(&left, record, sizeof left, cudaMemcpyDeviceToHost), "record");
        right += waited && got.position == q.position && got.ns > 0 && same_guesses(&got, &wanted) && same_guesses(&again, &wanted);
        handed += left.word == tag + 1 && left.tag == tag + 1 && left.count == BLOCK && memcmp(left.token, wanted.token, sizeof left.token[0] * BLOCK) == 0;
    }
    expect(right == count && handed == count, "place %u from %u on, temperature %.0f: %u of %u rounds behind a step guess as those that are asked for, %u leave their guesses", place, position,
           (double)temperature, right, count, handed);
}

/* Skipped, or behind a step that cannot be: no guesses, and nothing is absorbed. */
static void test_not_told(struct rig *r, struct cuda_dspark *gpu, struct cuda_handover_record *record, uint32_t position)
{
    const struct cuda_dspark_question q = ask(2, position, 0);
    struct cuda_dspark_answer before, got, after;
    struct cuda_handover_record left;
    uint64_t tag = 1u << 30;
    uint32_t nothing = 0;

    guesses_at(r, gpu, &q, 0, &before);
    for (uint32_t i = 0; i < 4; i++, tag += 10) {
        const bool waited = begin_following(gpu, &q, tag);
        if (i == 0) ok(cuda_dspark_skip(gpu), "skip");
        else if (i == 1) tell(record, tag + 5, 3, position + 1);
        else tell(record, tag, i == 2 ? 3 : VOCAB, i == 2 ? position + BLOCK + 2 : position + 1);
        ended(r, gpu, &got);
        cuda_ok(cudaMemcpy(&left, record, sizeof left, cudaMemcpyDeviceToHost), "record");
        guesses_at(r, gpu, &q, position, &after);
        nothing += waited && got.position == 0 && left.tag == tag + 1 && left.count == 0 && same_guesses(&before, &after);
    }
    expect(nothing == 4, "%u of 4 rounds (skipped; behind a later step; a position, a token that cannot be) give nothing, and change nothing", nothing);
}

static void test_following_refusals(struct rig *r, struct cuda_dspark *gpu)
{
    const struct cuda_dspark_question twice[2] = {ask(0, 10, 0), ask(1, 10, 0)}, late = ask(0, CONTEXT - 2 * BLOCK, 0);
    uint32_t refused = cuda_dspark_follow(r->gpu, 1, GENERATION, SOURCE_LAYERS) == -E_UNSUPPORTED;

    refused += cuda_dspark_follow(gpu, 0, GENERATION, SOURCE_LAYERS) == -E_RANGE;
    refused += cuda_dspark_follow(gpu, 1, GENERATION, 1) == -E_RANGE;
    ok(cuda_dspark_follow(gpu, 1, GENERATION, SOURCE_LAYERS), "follow");
    refused += cuda_dspark_round(gpu, twice, 2) == -E_RANGE;
    ok(cuda_dspark_follow(gpu, 1, GENERATION, SOURCE_LAYERS), "follow");
    refused += cuda_dspark_round(gpu, &late, 1) == -E_RANGE;
    expect(refused == 5, "%u of 5 rounds that cannot follow a step are refused", refused);
}

static void test_steps(struct rig *r)
{
    struct cuda_handover_record *record;

    cuda_ok(cudaMalloc((void **)&record, sizeof *record), "memory");
    cuda_ok(cudaMemset(record, 0, sizeof *record), "memory");
    struct cuda_dspark *gpu = open_gpu(r, NULL, record);
    test_following(r, gpu, record, 0, 20, 0);
    test_following(r, gpu, record, 1, 85, 1); /* the window becomes full, and then the ring goes round */
    test_following(r, gpu, record, 3, 190, 0);
    test_not_told(r, gpu, record, 120);
    test_following_refusals(r, gpu);
    cuda_dspark_close(gpu);
    cuda_ok(cudaFree(record), "memory");
}

/* In BF16 an output matrix that is the target's is read in the target's memory. */
static void test_shared_head(struct rig *r, struct sampler *sampler)
{
    uint64_t own, shared;

    r->spec.format = WEIGHT_BF16;
    own = cuda_dspark_weights_bytes(&r->spec);
    r->spec.shared_head = 1;
    shared = cuda_dspark_weights_bytes(&r->spec);
    expect(own - shared == 2ull * VOCAB * HIDDEN, "a shared output matrix takes no memory: %llu bytes instead of %llu", (unsigned long long)shared, (unsigned long long)own);
    cuda_dspark_close(r->gpu);
    r->w.head = drafter_plain(r->table, DTYPE_BF16, VOCAB, HIDDEN);
    r->gpu = open_gpu(r, NULL, NULL);
    memset(r->filled, 0, sizeof r->filled);
    test_round(r, sampler, 0, 60, 20, 0);
    test_round(r, sampler, 1, 190, 50, 1);
    test_together(r, PLACES);
}

int main(void)
{
    static struct rig r;
    struct cuda_device_facts facts;
    struct sampler *sampler;
    const uint32_t positions[] = {1, 9, 60, 101, 190};

    setvbuf(stdout, NULL, _IOLBF, 0);
    if (cuda_device_open(&facts) != 0) {
        printf("SKIP: %s\n", cuda_backend_error());
        return 77;
    }
    make_target(&r);
    make_head(&r);
    make_outputs(&r);
    open_both(&r);
    ok(sampler_open(&sampler, VOCAB, NULL, 0), "sampler");
    for (uint32_t i = 0; i < sizeof positions / sizeof *positions; i++) {
        test_round(&r, sampler, 0, positions[i], 1 + 7 * i, 0);
        test_round(&r, sampler, 1, positions[i] + 5, 40, 1);
    }
    test_together(&r, 2);
    test_together(&r, PLACES);
    test_gap(&r);
    test_refusals(&r);
    test_choices(&r);
    test_steps(&r);
    test_shared_head(&r, sampler);
    cuda_dspark_close(r.gpu);
    printf(failures ? "%d failed\n" : "dspark: passed\n", failures);
    return failures != 0;
}
