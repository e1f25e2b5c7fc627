/* tests/gpu/dspark_rig.h - one DSpark head in the shapes of Gemma 4 12B's attention (fewer and narrower layers, a small vocabulary) with weights that FP8 holds exactly, on the GPU, beside
 * random outputs of layers in the memory of model/features.h: what the tests of cuda_dspark.h work on. Any failure ends the program. */
#ifndef SLUICE_TESTS_GPU_DSPARK_RIG_H
#define SLUICE_TESTS_GPU_DSPARK_RIG_H

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

static inline void set_layers(struct model_config *c, uint32_t count, bool full)
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
static inline void make_target(struct rig *r)
{
    struct model_error err = {""};

    set_layers(&r->target, 6, false);
    ok(kv_geometry_init(&r->geo, &r->target, KV_BF16, CONTEXT, 16, 16, 16), "geometry");
    ok(engine_cuda_spec(&r->target_spec, &r->target, &r->generation, &r->geo, WEIGHT_FP8, NULL, &err), "spec");
    r->table = room(2ull * VOCAB * HIDDEN);
    for (uint64_t i = 0; i < (uint64_t)VOCAB * HIDDEN; i++) r->table[i] = bf16_of(uniform() / 16);
    r->target_device = load_table(&r->target_spec, r->table, 2ull * VOCAB * HIDDEN, false);
}

static inline void make_head(struct rig *r)
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

static inline void put(const struct rig *r, void *arena, enum cuda_dspark_tensor tensor, uint32_t layer, const void *data, uint64_t elements)
{
    ok(cuda_dspark_weights_put(&r->spec, arena, tensor, layer, data, elements), "weights of the head");
}

/* With a list of tokens: their rows of the matrices that have one for each token. */
static inline void put_by_token(const struct rig *r, void *arena, enum cuda_dspark_tensor tensor, const uint16_t *rows, uint32_t k, const uint32_t *tokens)
{
    const uint32_t count = r->spec.choices ? r->spec.choices : VOCAB;
    uint16_t *own = room(2ull * count * k);

    for (uint32_t i = 0; i < count; i++) memcpy(own + (uint64_t)i * k, rows + (uint64_t)(tokens ? tokens[i] : i) * k, 2 * k);
    put(r, arena, tensor, 0, own, (uint64_t)count * k);
    free(own);
}

static inline void *load_head(const struct rig *r, const uint32_t *tokens)
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

static inline void make_outputs(struct rig *r)
{
    struct features *f = &r->features;

    r->outputs = make_features(f, PLACES, CONTEXT, HIDDEN, SOURCES, 2, SOURCE_LAYERS, GENERATION);
    r->features_device = to_device(f->base, features_bytes(f));
}

/* tokens NULL: any may be guessed. */
static inline struct cuda_dspark *open_gpu(const struct rig *r, const uint32_t *tokens, struct cuda_handover_record *record)
{
    const struct features *f = &r->features;
    const struct cuda_dspark_options o = {.weights_device = load_head(r, tokens), .target_device = r->target_device, .window = WINDOW, .context_max = CONTEXT, .handover = record,
                                          .features = {.device = r->features_device, .row_bytes = f->row_bytes, .places = f->place_count, .rows = f->rows, .sources_max = f->source_max, .element_bytes = 2}};
    struct cuda_dspark *gpu;

    ok(cuda_dspark_open(&gpu, &r->spec, &r->target_spec, &o, r->w.confidence_bias), "open");
    for (uint32_t p = 0; p < PLACES; p++) ok(cuda_dspark_place(gpu, p, 0), "place");
    return gpu;
}

static inline void open_rig(struct rig *r)
{
    make_target(r);
    make_head(r);
    make_outputs(r);
    r->spec = (struct cuda_dspark_spec){.hidden = HIDDEN, .intermediate = WIDE, .vocab = VOCAB, .layers = LAYERS, .q_heads = 16, .kv_heads = 1, .head_dim = 512, .sources = SOURCES, .block = BLOCK,
                                        .rank = 256, .mask_token = MASK, .format = WEIGHT_FP8, .has_confidence = 1, .norm_eps = 1e-6f, .softcap = 30, .attention_scale = 1,
                                        .embed_scale = r->w.embed_scale, .rope_theta = 1e6, .rope_turned = 64};
    r->gpu = open_gpu(r, NULL, NULL);
}

static inline void wait_for(struct rig *r, struct cuda_dspark_answer *a)
{
    int rc;

    while ((rc = cuda_dspark_wait(r->gpu, 100000, a)) == -E_TIMEOUT) continue;
    ok(rc, "round");
}

static inline struct cuda_dspark_question ask(uint32_t place, uint32_t position, float temperature)
{
    return (struct cuda_dspark_question){.place = place, .token = 100 + 31 * place, .position = position, .guesses = BLOCK, .temperature = temperature, .seed = 77 + place};
}

#endif
