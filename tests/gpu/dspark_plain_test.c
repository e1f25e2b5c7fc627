/* tests/gpu/dspark_plain_test.c - a DSpark head of any shape on the GPU (cuda_dspark_plain.h) against model/dspark.c on the CPU: not a bit may differ.
 *
 * Small heads with random weights, each in other shapes and formats (BF16, F32, FP8 with scales of rows, of the matrix and of blocks, FP4; tables of the target or their own, packed ones among them; with
 * and without Markov head and confidences; outputs of layers in f32 and bf16). Positions are absorbed in pieces, rings go round. Of every guess the logits, the confidence and the choice, greedy and
 * sampled, are the CPU's. Also: sequences together and alone, a position whose outputs are another's, questions that make no sense. Run from anywhere. Exit 0 pass, 1 fail, 77 no GPU.
 * --time: what absorbing a step and a round of 1, 2, 4 and 8 sequences take besides. --shape N: that one alone. */
#include "kernels/cuda/cuda_dspark_plain.h"
#include "kernels/cuda/cuda_memory.h"
#include "kernels/cuda/cuda_weights.h"
#include "model/dspark.h"
#include "model/engine.h"
#include "model/features.h"
#include "model/kv.h"
#include "model/quantize.h"
#include "model/sampler.h"
#include "tests/gpu/drafter_rig.h"

#define TARGET_LAYERS 6u
#define CONTEXT 1024u
#define PLACES 8u
#define MASK 4u
#define GENERATION 9u
#define SUPPRESSED 7u
#define TIMED 51u                     /* rounds, of which the median is told */

struct shape {
    const char *name;
    uint32_t hidden, wide, vocab, layers, q_heads, kv_heads, dim;
    uint32_t sources, block, rank, window;
    uint32_t element_bytes;           /* of outputs of layers */
    uint32_t format;                  /* enum weight_format of the matrices; 0: F32, else from BF16 */
    bool f32, own_tables, confidence, sees_token;
    float softcap, turned, scale;     /* share of a head that turns; attention's factor */
};

static const struct shape shapes[] = {
    {"the demo's, BF16", 256, 768, 2048, 2, 4, 1, 256, 5, 7, 64, 300, 4, WEIGHT_BF16, false, false, true, true, 30, 0.25f, 1},
    {"F32, own tables, no Markov head", 96, 160, 528, 3, 6, 2, 64, 2, 12, 0, 40, 2, WEIGHT_F32, true, true, true, false, 0, 1, 0.125f},
    {"FP8 rows, no confidence", 128, 256, 1024, 1, 8, 8, 32, 1, 16, 16, 100, 2, WEIGHT_FP8, false, false, false, false, 30, 0.5f, 1},
    {"FP8 blocks, own tables", 384, 256, 1024, 2, 2, 1, 512, 3, 5, 256, 64, 4, WEIGHT_FP8_BLOCK, false, true, true, true, 50, 0.25f, 0.5f},
    {"FP4", 256, 512, 2048, 2, 4, 2, 96, 4, 7, 32, 700, 4, WEIGHT_FP4, false, false, true, true, 30, 1, 1},
    {"beside a packed target", 3840, 512, 4096, 1, 2, 1, 128, 2, 7, 48, 90, 2, WEIGHT_BF16, false, false, true, true, 30, 0.25f, 1},
};

struct rig {
    const struct shape *shape;
    struct model_config target;
    struct generation_config generation;
    struct kv_geometry geo;
    struct cuda_model_spec target_spec;
    struct dspark_weights w;
    struct dspark_cache cache;
    struct dspark *cpu;
    struct cuda_dspark *gpu;
    struct sampler *sampler;
    struct features features;         /* base: host copy */
    uint8_t *features_device;
    void *target_device;
    uint16_t *table;                  /* [vocab][hidden], the target's */
    float *outputs;                   /* [PLACES][CONTEXT][sources * hidden] */
    uint8_t *caches[PLACES];
    uint32_t filled[PLACES];
    uint64_t layers;
};

/* ---- what both sides have ---- */

static void set_target(struct rig *r)
{
    struct model_config *c = &r->target;
    const bool packed = r->shape->hidden == 3840;

    *c = (struct model_config){.family = MODEL_GEMMA4_UNIFIED, .hidden = r->shape->hidden, .intermediate = packed ? 3840 : r->shape->wide, .vocab = r->shape->vocab, .layer_count = TARGET_LAYERS,
                               .q_heads = packed ? 16 : 4, .window = 128, .max_position = CONTEXT, .norm_eps = 1e-6f, .attention_scale = 1, .final_softcap = 30, .has_v_norm = true, .has_layer_scalar = true};
    for (uint32_t i = 0; i < TARGET_LAYERS; i++) {
        const bool full = i + 1 == TARGET_LAYERS;
        c->layer[i] = (struct layer_config){.type = full ? LAYER_FULL : LAYER_SLIDING, .kv_heads = full ? 1 : packed ? 8 : 2, .head_dim = full ? 512 : 256, .has_v = !full};
        c->layer[i].type_index = c->type_count[c->layer[i].type]++;
    }
    c->rope[LAYER_SLIDING] = (struct rope_config){ROPE_DEFAULT, 1e4, 1.0, 1.0};
    c->rope[LAYER_FULL] = (struct rope_config){ROPE_PROPORTIONAL, 1e6, 0.25, 1.0};
    r->generation = (struct generation_config){.suppress_count = 3, .suppress_token = {SUPPRESSED, SUPPRESSED + 1, r->shape->vocab - 1}};
}

/* Only its table matters. */
static void make_target(struct rig *r)
{
    const uint64_t elements = (uint64_t)r->shape->vocab * r->shape->hidden;
    struct model_error err = {""};

    set_target(r);
    ok(kv_geometry_init(&r->geo, &r->target, KV_BF16, CONTEXT, 16, 16, 16), "geometry");
    if (engine_cuda_spec(&r->target_spec, &r->target, &r->generation, &r->geo, WEIGHT_BF16, NULL, &err) != 0) die("%s", err.text);
    r->table = room(2 * elements);
    for (uint64_t i = 0; i < elements; i++) r->table[i] = bf16_of(uniform() / 16);
    r->target_device = load_table(&r->target_spec, r->table, 2 * elements, true);
}

static struct stored_matrix widened(const struct stored_matrix *m)
{
    float *data = room(4ull * m->rows * m->k);

    for (uint64_t i = 0; i < (uint64_t)m->rows * m->k; i++) data[i] = stored_value(m, i / m->k, i % m->k) * 1.0009765625f; /* more bits than BF16 has */
    return (struct stored_matrix){.data = data, .rows = m->rows, .k = m->k, .element = STORED_F32};
}

/* Of the shape's format; FP8 with one scale for all where `whole`. */
static struct stored_matrix matrix(const struct rig *r, uint32_t rows, uint32_t k, bool whole)
{
    const struct stored_matrix plain = make_matrix(rows, k);
    const uint32_t format = r->shape->format;
    const enum quantize_format how = whole ? QUANTIZE_FP8_STATIC : format == WEIGHT_FP8 ? QUANTIZE_FP8_ROW : format == WEIGHT_FP8_BLOCK ? QUANTIZE_FP8_BLOCK128 : QUANTIZE_NVFP4A16;
    struct quantize_job job = {.from = &plain, .format = how};

    if (format == WEIGHT_F32) return widened(&plain);
    if (format == WEIGHT_BF16) return plain;
    job.whole = quantize_whole(how, quantize_largest(&plain, 0, rows));
    job.codes = room((uint64_t)rows * k);
    job.scales = how == QUANTIZE_FP8_STATIC ? NULL : room(quantize_scale_bytes(how, rows, k));
    quantize_rows(&job, 0, rows);
    if (how == QUANTIZE_NVFP4A16)
        return (struct stored_matrix){.data = job.codes, .group_scale = job.scales, .rows = rows, .k = k, .scale_rows = 1, .scale_columns = STORED_GROUP, .element = STORED_E2M1, .global_divides = 1, .global = job.whole};
    struct stored_matrix m = {.data = job.codes, .scale = job.scales, .rows = rows, .k = k, .scale_rows = 1, .scale_columns = k, .element = STORED_E4M3};
    if (how == QUANTIZE_FP8_BLOCK128) m.scale_rows = m.scale_columns = STORED_BLOCK;
    if (whole) {
        float *one = room(sizeof *one);
        *one = job.whole;
        m.scale = one, m.scale_rows = rows;
    }
    return m;
}

static void make_config(struct rig *r)
{
    const struct shape *s = r->shape;
    struct dspark_config *c = &r->w.config;

    *c = (struct dspark_config){.target_layer_count = TARGET_LAYERS, .source_count = s->sources, .block = s->block, .mask_token = MASK, .markov_rank = s->rank, .confidence = s->confidence,
                                .confidence_sees_token = s->sees_token};
    for (uint32_t i = 0; i < s->sources; i++) c->source[i] = i, r->layers |= 1ull << i;
    c->layers = (struct model_config){.family = MODEL_GEMMA4_UNIFIED, .hidden = s->hidden, .intermediate = s->wide, .vocab = s->vocab, .layer_count = s->layers, .q_heads = s->q_heads, .max_position = CONTEXT,
                                      .norm_eps = 1e-6f, .attention_scale = s->scale, .final_softcap = s->softcap};
    c->layers.rope[LAYER_FULL] = s->turned < 1 ? (struct rope_config){ROPE_PROPORTIONAL, 1e6, s->turned, 1.0} : (struct rope_config){ROPE_DEFAULT, 1e4, 1.0, 1.0};
    for (uint32_t i = 0; i < s->layers; i++) c->layers.layer[i] = (struct layer_config){.type = LAYER_FULL, .kv_heads = s->kv_heads, .head_dim = s->dim, .type_index = i};
}

static void make_tables(struct rig *r)
{
    const struct shape *s = r->shape;
    struct dspark_weights *w = &r->w;

    w->embed = r->table, w->embed_dtype = DTYPE_BF16, w->embed_is_shared = w->head_is_shared = !s->own_tables;
    w->embed_scale = 8.0625f;
    w->head = drafter_plain(r->table, DTYPE_BF16, s->vocab, s->hidden);
    if (s->own_tables) {
        const struct stored_matrix own = make_matrix(s->vocab, s->hidden);
        if (s->f32) w->embed = widened(&own).data, w->embed_dtype = DTYPE_F32;
        else w->embed = own.data;
        w->head = matrix(r, s->vocab, s->hidden, false);
    }
    if (s->rank == 0) return;
    w->markov_in = make_matrix(s->vocab, s->rank).data;
    w->markov_dtype = DTYPE_BF16;
    w->markov_out = matrix(r, s->vocab, s->rank, false);
}

static void make_head(struct rig *r)
{
    const struct shape *s = r->shape;
    struct dspark_weights *w = &r->w;
    const uint32_t q = s->q_heads * s->dim, kv = s->kv_heads * s->dim;
    const bool fp8 = s->format == WEIGHT_FP8;

    make_config(r);
    w->fc = matrix(r, s->hidden, s->sources * s->hidden, fp8);
    w->hidden_norm = make_vector(s->hidden, 1);
    w->norm = make_vector(s->hidden, 1);
    for (uint32_t i = 0; i < s->layers; i++) {
        struct drafter_layer *l = &w->layer[i].shared;
        l->q = matrix(r, q, s->hidden, fp8);
        w->layer[i].k = matrix(r, kv, s->hidden, false);
        l->o = matrix(r, s->hidden, q, false);
        l->gate = matrix(r, s->wide, s->hidden, false);
        l->up = matrix(r, s->wide, s->hidden, false);
        l->down = matrix(r, s->hidden, s->wide, false);
        l->q_norm = make_vector(s->dim, 1 / sqrtf((float)s->dim));
        w->layer[i].k_norm = make_vector(s->dim, 1);
        l->input_norm = make_vector(s->hidden, 1);
        l->post_attention_norm = make_vector(s->hidden, 1);
        l->pre_feedforward_norm = make_vector(s->hidden, 1);
        l->post_feedforward_norm = make_vector(s->hidden, 1);
        l->scalar = 0.75f;
    }
    make_tables(r);
    if (s->confidence) w->confidence = make_vector(s->hidden + (s->sees_token ? s->rank : 0), 0.01f);
    w->confidence_bias = -0.25f;
}

static void make_outputs(struct rig *r)
{
    struct features *f = &r->features;

    r->outputs = make_features(f, PLACES, CONTEXT, r->shape->hidden, r->shape->sources, r->shape->element_bytes, r->layers, GENERATION);
    r->features_device = to_device(f->base, features_bytes(f));
}

static void open_both(struct rig *r)
{
    const struct forward_options options = {.threads = 8, .rows_max = PLACES};
    const struct features *f = &r->features;
    const struct cuda_dspark_options o = {.target_device = r->target_device, .window = r->shape->window, .context_max = CONTEXT,
                                          .features = {.device = r->features_device, .row_bytes = f->row_bytes, .places = f->place_count, .rows = f->rows, .sources_max = f->source_max, .element_bytes = f->element_bytes}};
    uint64_t bytes = 0;

    ok(dspark_cache_init(&r->cache, &r->w.config, KV_BF16, r->shape->window, CONTEXT), "cache");
    ok(dspark_open(&r->cpu, &r->w, &r->cache, &options), "CPU");
    ok(cuda_dspark_plain_open(&r->gpu, &r->w, &r->target_spec, &o, (struct cuda_left_out){r->generation.suppress_token, r->generation.suppress_count}, &bytes), "open");
    ok(sampler_open(&r->sampler, r->shape->vocab, r->generation.suppress_token, r->generation.suppress_count), "sampler");
    for (uint32_t p = 0; p < PLACES; p++) {
        r->caches[p] = room(r->cache.slot_bytes);
        ok(cuda_dspark_place(r->gpu, p, 0), "place");
    }
    printf("%s: %u of %u, %u layers, blocks of %u, %llu bytes of weights of its own\n", r->shape->name, r->shape->q_heads, r->shape->dim, r->shape->layers, r->shape->block, (unsigned long long)bytes);
}

/* ---- comparing ---- */

/* Both sides absorb up to `position`, in pieces of at most `step`. */
static void absorb(struct rig *r, uint32_t place, uint32_t position, uint32_t step)
{
    const uint64_t floats = r->shape->sources * r->shape->hidden;

    while (r->filled[place] < position) {
        const uint32_t first = r->filled[place], left = position - first, n = left < step ? left : step;
        const struct cuda_dspark_absorb item = {place, GENERATION + place, first, n};
        struct dspark_feature rows[CUDA_DSPARK_ABSORB_MAX];
        for (uint32_t i = 0; i < n; i++) rows[i] = (struct dspark_feature){r->outputs + ((uint64_t)place * CONTEXT + first + i) * floats, r->caches[place], first + i};
        ok(dspark_absorb(r->cpu, rows, n), "CPU absorbs");
        ok(cuda_dspark_absorb(r->gpu, &item, 1, r->layers), "GPU absorbs");
        r->filled[place] += n;
    }
}

static void round_of(struct rig *r, const struct cuda_dspark_question *q, uint32_t count, struct cuda_dspark_answer *a)
{
    int rc;

    ok(cuda_dspark_round(r->gpu, q, count), "round");
    while ((rc = cuda_dspark_wait(r->gpu, 100000, a)) == -E_TIMEOUT) continue;
    ok(rc, "round");
}

static uint32_t guesses_most(const struct rig *r) { return r->shape->block < CUDA_DSPARK_GUESSES_MAX ? r->shape->block : CUDA_DSPARK_GUESSES_MAX; }

static struct cuda_dspark_question ask(const struct rig *r, uint32_t place, uint32_t position, const struct sampling_params *p)
{
    return (struct cuda_dspark_question){.place = place, .token = 100 + 31 * place, .position = position, .guesses = guesses_most(r), .temperature = p->temperature, .seed = p->seed, .top_p = p->top_p,
                                         .min_p = p->min_p, .top_k = p->top_k};
}

/* Logits of guess `index` of sequence `at` of the device's last round, whose last guess it was. */
static void device_logits(const struct rig *r, uint32_t at, uint32_t index, float *out)
{
    const uint64_t vocab = r->shape->vocab;
    const float *z = cuda_dspark_plain_markov(r->gpu);
    float *bias = room(vocab * sizeof *bias);

    memset(bias, 0, vocab * sizeof *bias);
    cuda_ok(cudaMemcpy(out, cuda_dspark_logits(r->gpu) + ((uint64_t)at * r->shape->block + index) * vocab, vocab * sizeof *out, cudaMemcpyDeviceToHost), "logits");
    if (z) cuda_ok(cudaMemcpy(bias, z + at * vocab, vocab * sizeof *bias, cudaMemcpyDeviceToHost), "logits");
    for (uint64_t t = 0; t < vocab; t++) out[t] += bias[t];
    free(bias);
}

static uint32_t words_that_differ(const void *a, const void *b, uint64_t count)
{
    uint32_t wrong = 0;

    for (uint64_t i = 0; i < count; i++) wrong += memcmp((const uint32_t *)a + i, (const uint32_t *)b + i, 4) != 0;
    return wrong;
}

/* Rounds of 1, 2 ... guesses of one sequence: the last guess of each is compared. */
static void test_guesses(struct rig *r, uint32_t place, uint32_t position, uint32_t step, const struct sampling_params *p)
{
    struct cuda_dspark_question q = ask(r, place, position, p);
    const struct dspark_row row = {.cache = r->caches[place], .token = q.token, .position = position, .low = 0};
    const uint32_t vocab = r->shape->vocab, most = q.guesses, low = position > r->shape->window ? position - r->shape->window : 0;
    float *logits = room(vocab * sizeof(float)), *mine = room(vocab * sizeof(float));
    uint32_t wrong = 0, confidences = 0, choices = 0, lows = 0, previous = q.token;

    absorb(r, place, position, step);
    ok(dspark_block(r->cpu, &row, 1, most), "CPU block");
    for (uint32_t i = 0; i < most; i++) {
        const struct dspark_guess guess = {.row = 0, .index = i, .previous = previous};
        struct cuda_dspark_answer a;
        float lead, confidence = dspark_confidence(r->cpu, &guess);
        q.guesses = i + 1;
        round_of(r, &q, 1, &a);
        ok(dspark_logits(r->cpu, &guess, 1, logits), "CPU logits");
        device_logits(r, 0, i, mine);
        wrong += words_that_differ(mine, logits, vocab);
        confidences += memcmp(&confidence, &a.confidence[i], sizeof confidence) != 0;
        ok(sampler_guess(r->sampler, p, logits, (uint64_t)position + 1 + i, NULL, &previous, &lead), "choice");
        choices += previous != a.token[i];
        lows += a.low != low;
    }
    expect(wrong + confidences + choices + lows == 0, "  place %u at %u, pieces of %u, temperature %.1f, top_k %u, top_p %.2f, min_p %.2f: of %u guesses %u logits, %u confidences, %u choices differ", place, position, step,
           (double)p->temperature, p->top_k, (double)p->top_p, (double)p->min_p, most, wrong, confidences, choices);
    free(logits), free(mine);
}

/* Answers of a round of several sequences against each alone. */
static void test_together(struct rig *r, uint32_t count, const struct sampling_params *p)
{
    struct cuda_dspark_question q[PLACES];
    struct cuda_dspark_answer alone[PLACES], all[PLACES];
    uint32_t wrong = 0;

    memset(alone, 0, sizeof alone), memset(all, 0, sizeof all);
    for (uint32_t i = 0; i < count; i++) {
        absorb(r, i, 800 + 3 * i, 60);
        q[i] = ask(r, i, 800 + 3 * i, p);
        q[i].guesses = 1 + (i + 2) % guesses_most(r);
        round_of(r, &q[i], 1, &alone[i]);
    }
    round_of(r, q, count, all);
    for (uint32_t i = 0; i < count; i++)
        wrong += all[i].low != alone[i].low || words_that_differ(all[i].token, alone[i].token, q[i].guesses) || words_that_differ(all[i].confidence, alone[i].confidence, q[i].guesses);
    expect(wrong == 0, "  %u sequences of one round: %u answers differ from each alone", count, wrong);
}

/* What several sequences commit is absorbed together. */
static void test_steps(struct rig *r, const struct sampling_params *greedy)
{
    const uint64_t floats = r->shape->sources * r->shape->hidden;
    struct cuda_dspark_absorb items[PLACES];
    struct dspark_feature rows[CUDA_DSPARK_ABSORB_MAX];
    uint32_t n = 0;

    for (uint32_t p = 0; p < PLACES; p++) {
        items[p] = (struct cuda_dspark_absorb){p, GENERATION + p, r->filled[p], 1 + p};
        for (uint32_t i = 0; i < 1 + p; i++) rows[n++] = (struct dspark_feature){r->outputs + ((uint64_t)p * CONTEXT + r->filled[p] + i) * floats, r->caches[p], r->filled[p] + i};
        r->filled[p] += 1 + p;
    }
    ok(dspark_absorb(r->cpu, rows, n), "CPU absorbs");
    ok(cuda_dspark_absorb(r->gpu, items, PLACES, r->layers), "GPU absorbs");
    for (uint32_t p = 0; p < PLACES; p += 3) test_guesses(r, p, r->filled[p], 1, greedy);
}

static void test_gap(struct rig *r, const struct sampling_params *greedy)
{
    const uint32_t place = 3, from = r->filled[place], gap = from + 5, position = from + 20;
    const struct cuda_dspark_absorb item = {place, GENERATION + place, from, 20};
    const struct cuda_dspark_question q = ask(r, place, position, greedy);
    struct feature_row other = *(const struct feature_row *)(r->features.base + features_offset(&r->features, place, gap));
    struct cuda_dspark_answer a = {0}, b = {0};

    other.of++;
    cuda_ok(cudaMemcpy(r->features_device + features_offset(&r->features, place, gap), &other, sizeof other, cudaMemcpyHostToDevice), "copy");
    cuda_ok(cudaDeviceSynchronize(), "copy");      /* a small copy may return before it has arrived, and the drafter's stream does not wait for it */
    ok(cuda_dspark_absorb(r->gpu, &item, 1, r->layers), "absorb");
    round_of(r, &q, 1, &a);
    expect(a.low == gap + 1, "  behind a gap at %u the block sees from %u on", gap, a.low);
    const struct cuda_dspark_absorb rest = {place, GENERATION + place, gap + 1, position - gap - 1};
    ok(cuda_dspark_place(r->gpu, place, gap + 1), "place");
    ok(cuda_dspark_absorb(r->gpu, &rest, 1, r->layers), "absorb");
    round_of(r, &q, 1, &b);
    expect(b.low == gap + 1 && words_that_differ(a.token, b.token, q.guesses) == 0, "  a sequence that begins behind the gap gets the same guesses");
    r->filled[place] = position;
}

static void test_refusals(struct rig *r, const struct sampling_params *greedy)
{
    const struct cuda_dspark_question good = ask(r, 0, 10, greedy), twice[2] = {good, good};
    struct cuda_dspark_question bad[5] = {good, good, good, good, good};
    const struct cuda_dspark_absorb far = {0, 1, CONTEXT - 1, 2}, same[2] = {{1, 1, 0, 1}, {1, 1, 1, 1}};
    struct cuda_dspark *none = NULL;
    struct cuda_dspark_options o = {.target_device = r->target_device, .window = 10, .context_max = CONTEXT};
    uint32_t refused = 0;

    refused += cuda_dspark_absorb(r->gpu, &far, 1, r->layers) == -E_RANGE;
    refused += cuda_dspark_absorb(r->gpu, same, 2, r->layers) == -E_RANGE;
    refused += cuda_dspark_absorb(r->gpu, same, 1, 0) == -E_RANGE;
    refused += cuda_dspark_place(r->gpu, PLACES, 0) == -E_RANGE;
    refused += cuda_dspark_round(r->gpu, twice, 2) == -E_RANGE;
    bad[0].position = CONTEXT - r->shape->block + 1, bad[1].temperature = NAN, bad[2].guesses = guesses_most(r) + 1, bad[3].token = r->shape->vocab, bad[4].top_p = 2;
    for (uint32_t i = 0; i < 5; i++) refused += cuda_dspark_round(r->gpu, &bad[i], 1) == -E_RANGE;
    refused += cuda_dspark_plain_open(&none, &r->w, &r->target_spec, &o, (struct cuda_left_out){0}, NULL) == -E_RANGE && !none;
    expect(refused == 11, "  %u of 11 calls that make no sense are refused", refused);
}

static int by_size(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return x < y ? -1 : x > y;
}

/* Medians, as the host sees them: the last positions absorbed once more, a round of whole blocks. */
static void print_times(struct rig *r, const struct sampling_params *p)
{
    printf("  temperature %.1f, us:", (double)p->temperature);
    for (uint32_t count = 1; count <= PLACES; count *= 2) {
        double ms[TIMED];
        for (uint32_t k = 0; k < TIMED; k++) {
            struct cuda_dspark_question q[PLACES];
            struct cuda_dspark_absorb items[PLACES];
            struct cuda_dspark_answer a[PLACES];
            for (uint32_t i = 0; i < count; i++) {
                q[i] = ask(r, i, r->filled[i], p);
                items[i] = (struct cuda_dspark_absorb){i, GENERATION + i, r->filled[i] - 4, 4};
            }
            const double begin = now_ms();
            ok(cuda_dspark_absorb(r->gpu, items, count, r->layers), "absorb");
            round_of(r, q, count, a);
            ms[k] = now_ms() - begin;
        }
        qsort(ms, TIMED, sizeof *ms, by_size);
        printf("  %u: %.0f", count, 1e3 * ms[TIMED / 2]);
    }
    printf("\n");
}

static void test_shape(const struct shape *shape, bool timed)
{
    static const struct sampling_params sampled[] = {{.temperature = 1, .seed = 77, .top_p = 1}, {.temperature = 1, .top_k = 64, .top_p = 0.95f, .seed = 78}, {.temperature = 0.7f, .top_k = 20, .top_p = 1, .seed = 79},
                                                     {.temperature = 1.3f, .top_k = 12, .top_p = 0.8f, .min_p = 0.05f, .seed = 80}};
    const struct sampling_params greedy = {.top_p = 1};
    const uint32_t positions[] = {1, 9, 60, 101, 255, 257, 700};
    struct rig *r = calloc(1, sizeof *r);

    if (!r) die("out of memory");
    r->shape = shape;
    make_target(r);
    make_head(r);
    make_outputs(r);
    open_both(r);
    for (uint32_t i = 0; i < sizeof positions / sizeof *positions; i++) {
        test_guesses(r, 0, positions[i], 1 + 7 * i, &greedy);
        test_guesses(r, 1, positions[i] + 5, 40, &sampled[i % 4]);
    }
    test_together(r, 2, &greedy);
    test_together(r, PLACES, &sampled[0]);
    test_steps(r, &greedy);
    if (timed) print_times(r, &greedy), print_times(r, &sampled[0]), print_times(r, &sampled[1]);
    test_gap(r, &greedy);
    test_refusals(r, &greedy);
    cuda_dspark_close(r->gpu);
    dspark_close(r->cpu);
    cuda_ok(cudaFree(r->features_device), "memory");
    cuda_ok(cudaFree(r->target_device), "memory");
    for (uint32_t p = 0; p < PLACES; p++) free(r->caches[p]);
    free(r->features.base), free(r->outputs), free(r);
}

int main(int argc, char **argv)
{
    struct cuda_device_facts facts;
    uint32_t from = 0, to = sizeof shapes / sizeof *shapes;
    bool timed = false;

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--time") == 0) timed = true;
        else if (strcmp(argv[i], "--shape") == 0 && i + 1 < argc && (uint32_t)atoi(argv[i + 1]) < to) from = (uint32_t)atoi(argv[++i]), to = from + 1;
        else return printf("usage: %s [--time] [--shape N]\n", argv[0]), 1;
    }
    if (cuda_device_open(&facts) != 0) {
        printf("SKIP: %s\n", cuda_backend_error());
        return 77;
    }
    for (uint32_t i = from; i < to; i++) test_shape(&shapes[i], timed);
    printf(failures ? "%d failed\n" : "dspark_plain: passed\n", failures);
    return failures != 0;
}
