/* tests/gpu/draft_test.c - the MTP assistant on the GPU against model/assistant.c on the CPU.
 *
 * One drafter in the head shapes of Gemma 4 12B's (hidden 1024, fewer and narrower layers, a small vocabulary) with weights that FP8 holds exactly, random
 * keys in pages of no order, random states. The round of one launch (cuda_draft.h) must agree up to the rounding of activations, over chained
 * steps, and choose exactly what model/sampler.c chooses from its logits; the steps of plain kernels (cuda_draft_plain.h) must have the CPU's bits.
 * --kv fp8: over a cache of E4M3. Run from anywhere. Exit 0 pass, 1 fail, 77 no GPU. */
#include "kernels/cuda/cuda_draft.h"
#include "kernels/cuda/cuda_draft_plain.h"
#include "kernels/cuda/cuda_memory.h"
#include "kernels/cuda/cuda_weights.h"
#include "model/assistant.h"
#include "model/engine.h"
#include "model/quantize.h"
#include "model/sampler.h"
#include "model/states.h"
#include "shm/error.h"
#include "tests/gpu/drafter_rig.h"

#define BACKBONE 3840u
#define HIDDEN 1024u
#define WIDE 2048u
#define VOCAB 8192u
#define LAYERS 3u
#define SEQS 8u
#define CONTEXT 2304u
#define STEPS 4u
#define CLOSE 4e-3                    /* f16 activations: 2^-11 a rounding, a few dozen of them in a row */

static enum kv_dtype cache = KV_BF16;  /* the target's */

/* ---- both models ---- */

struct rig {
    struct model_config target;
    struct generation_config generation;
    struct kv_geometry geo;
    struct cuda_model_spec spec;
    struct assistant_weights w;
    struct cuda_draft_spec draft;
    uint16_t *table;                  /* the target's, [VOCAB][BACKBONE] */
    uint8_t *kv;
    float *states;
    uint32_t *pages[2], per_seq[2];
    struct forward_seq seqs[SEQS];
    void *kv_device, *states_device, *target_device;
};

static void set_layers(struct model_config *c, uint32_t count)
{
    c->layer_count = count;
    for (uint32_t i = 0; i < count; i++) {
        const bool full = i + 1 == count;
        c->layer[i].type = full ? LAYER_FULL : LAYER_SLIDING;
        c->layer[i].kv_heads = full ? 1 : 8;
        c->layer[i].head_dim = full ? 512 : 256;
        c->layer[i].has_v = !full;
        c->layer[i].type_index = c->type_count[c->layer[i].type]++;
    }
    c->rope[LAYER_SLIDING] = (struct rope_config){ROPE_DEFAULT, 1e4, 1.0, 1.0};
    c->rope[LAYER_FULL] = (struct rope_config){ROPE_PROPORTIONAL, 1e6, 0.25, 1.0};
    c->family = MODEL_GEMMA4_UNIFIED;
    c->vocab = VOCAB;
    c->q_heads = 16;
    c->window = 1024;
    c->max_position = CONTEXT;
    c->norm_eps = 1e-6f;
    c->attention_scale = 1;
    c->has_v_norm = c->has_layer_scalar = true;
}

static void make_drafter(struct rig *r)
{
    struct assistant_weights *w = &r->w;

    set_layers(&w->config, LAYERS);
    w->config.hidden = HIDDEN;
    w->config.intermediate = WIDE;
    w->backbone_hidden = BACKBONE;
    w->dtype = DTYPE_BF16;
    w->head = make_matrix(VOCAB, HIDDEN);
    w->embed = w->head.data;
    w->norm = make_vector(HIDDEN, 1);
    w->pre = make_matrix(HIDDEN, 2 * BACKBONE);
    w->post = make_matrix(BACKBONE, HIDDEN);
    for (uint32_t i = 0; i < LAYERS; i++) {
        struct drafter_layer *l = &w->layer[i];
        const uint32_t dim = w->config.layer[i].head_dim;
        l->q = make_matrix(16 * dim, HIDDEN);
        l->o = make_matrix(HIDDEN, 16 * dim);
        l->gate = make_matrix(WIDE, HIDDEN);
        l->up = make_matrix(WIDE, HIDDEN);
        l->down = make_matrix(HIDDEN, WIDE);
        l->q_norm = make_vector(dim, 1 / sqrtf((float)dim));
        l->input_norm = make_vector(HIDDEN, 1);
        l->post_attention_norm = make_vector(HIDDEN, 1);
        l->pre_feedforward_norm = make_vector(HIDDEN, 1);
        l->post_feedforward_norm = make_vector(HIDDEN, 1);
        l->scalar = 0.75f;
    }
    r->draft = (struct cuda_draft_spec){.hidden = HIDDEN, .intermediate = WIDE, .vocab = VOCAB, .layers = LAYERS, .backbone_hidden = BACKBONE, .q_heads = 16, .format = WEIGHT_FP8,
                                        .norm_eps = 1e-6f, .attention_scale = 1, .rope_theta = {1e4, 1e6}, .rope_turned = {128, 64}};
    r->draft.layer_type[LAYERS - 1] = CUDA_FULL;
}

/* Pages of all sequences, shuffled. */
static void make_pages(struct rig *r)
{
    r->per_seq[CUDA_FULL] = r->geo.full_pages_per_seq;
    r->per_seq[CUDA_SLIDING] = r->geo.sliding_pages_per_seq;
    for (uint32_t type = 0; type < 2; type++) {
        const uint32_t count = SEQS * r->per_seq[type];
        r->pages[type] = room(count * sizeof(uint32_t));
        for (uint32_t i = 0; i < count; i++) r->pages[type][i] = i;
        for (uint32_t i = count - 1; i > 0; i--) {
            const uint32_t j = next_word() % (i + 1), page = r->pages[type][i];
            r->pages[type][i] = r->pages[type][j];
            r->pages[type][j] = page;
        }
    }
    for (uint32_t s = 0; s < SEQS; s++)
        r->seqs[s] = (struct forward_seq){.full_pages = r->pages[CUDA_FULL] + s * r->per_seq[CUDA_FULL], .sliding_pages = r->pages[CUDA_SLIDING] + s * r->per_seq[CUDA_SLIDING],
                                          .full_page_count = r->per_seq[CUDA_FULL], .sliding_page_count = r->per_seq[CUDA_SLIDING]};
}

static void make_target(struct rig *r)
{
    struct model_error err = {""};

    set_layers(&r->target, 3);
    r->target.hidden = BACKBONE;
    r->target.intermediate = 3840;
    r->generation.suppress_count = 2;
    r->generation.suppress_token[0] = 17;
    r->generation.suppress_token[1] = VOCAB - 1;
    ok(kv_geometry_init(&r->geo, &r->target, cache, CONTEXT, 16, SEQS * (CONTEXT / 32), SEQS * 40), "geometry");
    ok(engine_cuda_spec(&r->spec, &r->target, &r->generation, &r->geo, WEIGHT_FP8, NULL, &err), "spec");
    make_pages(r);
    r->kv = room(r->geo.arena_bytes);
    for (uint64_t i = 0; i < r->geo.arena_bytes / r->geo.element_bytes; i++) {
        if (cache == KV_FP8) r->kv[i] = quantize_e4m3(2 * uniform());
        else ((uint16_t *)r->kv)[i] = bf16_of(2 * uniform());
    }
    r->kv_device = to_device(r->kv, r->geo.arena_bytes);
    r->states = room(states_bytes(SEQS, BACKBONE));
    for (uint64_t i = 0; i < states_bytes(SEQS, BACKBONE) / 4; i++) r->states[i] = bf16_round(2 * uniform());
    r->states_device = to_device(r->states, states_bytes(SEQS, BACKBONE));
    r->table = room(2ull * VOCAB * BACKBONE);
    for (uint64_t i = 0; i < (uint64_t)VOCAB * BACKBONE; i++) r->table[i] = bf16_of(uniform() / 32);
    r->target_device = load_table(&r->spec, r->table, 2ull * VOCAB * BACKBONE, false);
}

static void embed(const struct rig *r, uint32_t token, bool rounded, float *out)
{
    for (uint32_t i = 0; i < BACKBONE; i++) {
        const float x = stored_from_bf16(r->table[(uint64_t)token * BACKBONE + i]) * r->spec.embed_scale;
        out[i] = rounded ? bf16_round(x) : x; /* the round of one launch takes it as BF16, as its target does; the CPU and the plain kernels do not */
    }
}

/* ---- the round of one launch ---- */

static void put(const struct rig *r, void *arena, enum cuda_draft_tensor tensor, uint32_t layer, const struct stored_matrix *m)
{
    ok(cuda_draft_weights_put(&r->draft, arena, tensor, layer, m->rows, m->k, m->data, WEIGHT_BF16, NULL, 0), "matrix");
}

static void put_vector(const struct rig *r, void *arena, enum cuda_draft_tensor tensor, uint32_t layer, const float *v, uint32_t count)
{
    ok(cuda_draft_weights_put(&r->draft, arena, tensor, layer, count, 1, v, WEIGHT_F32, NULL, 0), "vector");
}

/* The rows of `tokens`, as the head of a drafter that may propose these only. */
static void put_choices(const struct rig *r, void *arena, const uint32_t *tokens, uint32_t count)
{
    uint16_t *rows = room(2ull * count * HIDDEN);

    for (uint32_t i = 0; i < count; i++) memcpy(rows + (uint64_t)i * HIDDEN, (const uint16_t *)r->w.embed + (uint64_t)tokens[i] * HIDDEN, 2 * HIDDEN);
    ok(cuda_draft_weights_put(&r->draft, arena, CUDA_DRAFT_CHOICE, 0, count, 1, tokens, WEIGHT_F32, NULL, 0), "choices");
    ok(cuda_draft_weights_put(&r->draft, arena, CUDA_DRAFT_HEAD, 0, count, HIDDEN, rows, WEIGHT_BF16, NULL, 0), "their rows");
    free(rows);
}

/* tokens NULL: any token. */
static struct cuda_draft *open_round(struct rig *r, const uint32_t *tokens, uint32_t count, struct cuda_handover_record *record)
{
    struct cuda_draft *draft;
    void *arena;

    r->draft.choices = tokens ? count : 0;

    cuda_ok(cudaMalloc(&arena, cuda_draft_weights_bytes(&r->draft)), "memory");
    put(r, arena, CUDA_DRAFT_PRE, 0, &r->w.pre);
    put(r, arena, CUDA_DRAFT_POST, 0, &r->w.post);
    if (tokens) put_choices(r, arena, tokens, count);
    else put(r, arena, CUDA_DRAFT_HEAD, 0, &r->w.head);
    put_vector(r, arena, CUDA_DRAFT_FINAL_NORM, 0, r->w.norm, HIDDEN);
    for (uint32_t i = 0; i < LAYERS; i++) {
        const struct drafter_layer *l = &r->w.layer[i];
        const struct stored_matrix *matrix[] = {&l->q, &l->o, &l->gate, &l->up, &l->down};
        const float *norm[] = {l->input_norm, l->post_attention_norm, l->pre_feedforward_norm, l->post_feedforward_norm};
        for (uint32_t j = 0; j < 5; j++) put(r, arena, CUDA_DRAFT_Q + j, i, matrix[j]);
        for (uint32_t j = 0; j < 4; j++) put_vector(r, arena, CUDA_DRAFT_INPUT_NORM + j, i, norm[j], HIDDEN);
        put_vector(r, arena, CUDA_DRAFT_Q_NORM, i, l->q_norm, r->w.config.layer[i].head_dim);
        put_vector(r, arena, CUDA_DRAFT_LAYER_SCALAR, i, &l->scalar, 1);
    }
    const struct cuda_draft_options options = {.weights_device = arena, .target_device = r->target_device,
                                               .kv_device = {[CUDA_FULL] = r->kv_device, [CUDA_SLIDING] = (uint8_t *)r->kv_device + r->geo.sliding_offset},
                                               .states_device = r->states_device, .states_rows = STATES_ROWS, .seqs_max = SEQS, .context_max = CONTEXT, .ring_pages = r->per_seq[CUDA_SLIDING],
                                               .handover = record};
    ok(cuda_draft_open(&draft, &r->draft, &r->spec, &options), "open");
    for (uint32_t s = 0; s < SEQS; s++)
        for (uint32_t type = 0; type < 2; type++) ok(cuda_draft_pages(draft, s, type, 0, r->pages[type] + s * r->per_seq[type], r->per_seq[type]), "pages");
    return draft;
}

/* Logits of one row after `steps` chained steps on the CPU, whose inputs are the tokens that the device drafted. */
static void cpu_steps(const struct rig *r, struct assistant *cpu, uint32_t seq, uint32_t position, const uint32_t *tokens, uint32_t steps, bool rounded, float *logits, float *hidden)
{
    float *embedding = room(BACKBONE * sizeof(float));

    memcpy(hidden, (const uint8_t *)r->states + states_offset(seq, position - 1, BACKBONE), BACKBONE * sizeof(float));
    for (uint32_t i = 0; i < steps; i++) {
        const struct assistant_row row = {.embedding = embedding, .hidden = hidden, .position = position, .key_count = position, .seq = seq};
        embed(r, tokens[i], rounded, embedding);
        ok(assistant_step(cpu, &row, 1, r->seqs, SEQS, logits, hidden), "CPU step");
    }
    free(embedding);
}

static struct cuda_draft_question ask(uint32_t seq, uint32_t position, uint32_t steps, const struct sampling_params *p)
{
    return (struct cuda_draft_question){.seq = seq, .token = 100 + 31 * seq, .position = position, .steps = steps, .temperature = p->temperature, .top_p = p->top_p, .min_p = p->min_p,
                                        .top_k = p->top_k, .seed = p->seed};
}

/* One sequence, 1 .. STEPS steps: the device's logits are those of the CPU, its choice is the sampler's from its own logits. */
static void test_chain(const struct rig *r, struct cuda_draft *draft, struct assistant *cpu, struct sampler *sampler, uint32_t seq, uint32_t position, const struct sampling_params *p)
{
    float *logits = room(VOCAB * sizeof(float)), *mine = room(VOCAB * sizeof(float)), *hidden = room(BACKBONE * sizeof(float)), *state = room(BACKBONE * sizeof(float));
    double worst = 0, worst_state = 0;
    uint32_t tokens[STEPS + 1], same = 0;

    for (uint32_t steps = 1; steps <= STEPS; steps++) {
        const struct cuda_draft_question q = ask(seq, position, steps, p);
        struct cuda_draft_answer a;
        uint32_t token;
        float lead;
        ok(cuda_draft_round(draft, &q, 1), "round");
        ok(cuda_draft_wait(draft, 2000000, &a), "wait");
        if (a.count != steps) die("%u tokens instead of %u", a.count, steps);
        tokens[0] = q.token;
        memcpy(tokens + 1, a.token, steps * sizeof *tokens);
        cuda_ok(cudaMemcpy(logits, cuda_draft_logits(draft), VOCAB * sizeof(float), cudaMemcpyDeviceToHost), "logits");
        cuda_ok(cudaMemcpy(state, cuda_draft_hidden(draft), BACKBONE * sizeof(float), cudaMemcpyDeviceToHost), "state");
        cpu_steps(r, cpu, seq, position, tokens, steps, true, mine, hidden);
        worst_state = fmax(worst_state, difference(state, hidden, BACKBONE));
        if (p->temperature > 0) {     /* greedy rows leave no logits */
            for (uint32_t i = 0; i < r->generation.suppress_count; i++) mine[r->generation.suppress_token[i]] = logits[r->generation.suppress_token[i]] = 0;
            worst = fmax(worst, difference(logits, mine, VOCAB));
        } else memcpy(logits, mine, VOCAB * sizeof(float));
        ok(sampler_guess(sampler, p, logits, (uint64_t)position + steps, NULL, &token, &lead), "sampler");
        same += token == a.token[steps - 1] || lead < 1e-3f;
    }
    expect(worst < CLOSE && worst_state < CLOSE && same == STEPS, "sequence %u at %u, temperature %.1f top_k %u top_p %.2f: logits off by %.1e, hidden by %.1e, %u of %u choices are the sampler's", seq, position,
           (double)p->temperature, p->top_k, (double)p->top_p, worst, worst_state, same, STEPS);
    free(logits), free(mine), free(hidden), free(state);
}

/* A row that trusts itself little ends early; the others go on. */
static void test_stop(struct cuda_draft *draft)
{
    const struct sampling_params greedy = {.repetition_penalty = 1};
    struct cuda_draft_question q[2] = {ask(0, 1500, STEPS, &greedy), ask(1, 40, STEPS, &greedy)};
    struct cuda_draft_answer a[2];

    q[0].stop_below = 0.999f;
    ok(cuda_draft_round(draft, q, 2), "round");
    ok(cuda_draft_wait(draft, 2000000, a), "wait");
    expect(a[0].count < STEPS && a[1].count == STEPS, "a row that must be sure ends after %u of %u tokens, its neighbour after %u", a[0].count, STEPS, a[1].count);
}

static struct cuda_draft_answer drafts_of(struct cuda_draft *draft, const struct cuda_draft_question *q)
{
    struct cuda_draft_answer a;

    ok(cuda_draft_round(draft, q, 1), "round");
    ok(cuda_draft_wait(draft, 2000000, &a), "wait");
    return a;
}

/* A head with the rows of all tokens in another order proposes what the whole one does; one with every other token proposes none but those, and where the whole one would have, the same. */
static void test_choices(struct rig *r, struct cuda_draft *draft, const struct sampling_params *params, uint32_t count)
{
    uint32_t *tokens = room(4ull * VOCAB), same = 0, listed = 0, kept = 0, both = 0;

    for (uint32_t i = 0; i < VOCAB; i++) tokens[i] = VOCAB - 1 - i;
    struct cuda_draft *turned = open_round(r, tokens, VOCAB, NULL);
    for (uint32_t i = 0; i < VOCAB / 2; i++) tokens[i] = VOCAB - 2 - 2 * i;
    struct cuda_draft *halved = open_round(r, tokens, VOCAB / 2, NULL);
    for (uint32_t i = 0; i < count; i++) {
        const struct cuda_draft_question q = ask(i % SEQS, 500 + 37 * i, STEPS, &params[i]);
        const struct cuda_draft_answer whole = drafts_of(draft, &q), other = drafts_of(turned, &q), half = drafts_of(halved, &q);
        same += other.count == STEPS && memcmp(whole.token, other.token, STEPS * sizeof *whole.token) == 0;
        for (uint32_t k = 0; k < half.count; k++) listed += half.token[k] % 2 == 0;
        both += params[i].temperature == 0 && whole.token[0] % 2 == 0; /* of a smaller vocabulary top_k leaves others */
        kept += params[i].temperature == 0 && whole.token[0] % 2 == 0 && half.token[0] == whole.token[0];
    }
    expect(same == count && listed == count * STEPS && kept == both, "%u of %u rounds are the same with a head in another order; of one with every other token %u of %u drafts are its own, %u of %u greedy ones the same",
           same, count, listed, count * STEPS, kept, both);
    cuda_draft_close(turned);
    cuda_draft_close(halved);
    r->draft.choices = 0;
    free(tokens);
}

/* What a round leaves for verify's step: its drafts, those that are likely enough, others in their place; nothing when it is not asked to. */
static void test_hand_over(struct rig *r)
{
    const struct sampling_params greedy = {.repetition_penalty = 1};
    const struct cuda_draft_question q = ask(2, 900, STEPS, &greedy);
    struct cuda_handover hand = {.tag = 1ull << 40};
    struct cuda_handover_record *record, left;

    cuda_ok(cudaMalloc((void **)&record, sizeof *record), "memory");
    cuda_ok(cudaMemset(record, 0, sizeof *record), "memory");
    struct cuda_draft *draft = open_round(r, NULL, 0, record);
    for (uint32_t i = 0; i < CUDA_HANDOVER_CLASSES; i++) hand.rate[i] = 0.5f;
    const struct cuda_draft_answer silent = drafts_of(draft, &q);
    cuda_ok(cudaMemcpy(&left, record, sizeof left, cudaMemcpyDeviceToHost), "record");
    expect(left.word == 0 && left.tag == 0 && cuda_draft_hand_over(draft, &(struct cuda_handover){0}) == -E_RANGE, "a round that was not asked to leaves nothing");
    ok(cuda_draft_hand_over(draft, &hand), "hand over");
    drafts_of(draft, &q);
    cuda_ok(cudaMemcpy(&left, record, sizeof left, cudaMemcpyDeviceToHost), "record");
    expect(left.word == hand.tag && left.tag == hand.tag && left.count == STEPS && memcmp(left.token, silent.token, STEPS * sizeof *left.token) == 0, "a round leaves its %u drafts and the tag", left.count);
    hand.tag++, hand.least = 0.2f, hand.instead_count = STEPS;
    for (uint32_t i = 0; i < STEPS; i++) hand.instead[i] = 7 + i;
    ok(cuda_draft_hand_over(draft, &hand), "hand over");
    drafts_of(draft, &q);
    cuda_ok(cudaMemcpy(&left, record, sizeof left, cudaMemcpyDeviceToHost), "record");
    expect(left.word == hand.tag && left.tag == hand.tag && left.count == 2 && left.token[0] == 7 && left.token[1] == 8, "of chances 0.5, 0.25, 0.125 those of 0.2 and more are left: %u", left.count);
    cuda_draft_close(draft);
    cuda_ok(cudaFree(record), "memory");
}

static void test_refusals(struct cuda_draft *draft)
{
    const struct sampling_params greedy = {.repetition_penalty = 1};
    struct cuda_draft_question q = ask(0, 100, 2, &greedy), bad[4] = {q, q, q, q};
    int refused = 0;

    bad[0].seq = SEQS, bad[1].position = 0, bad[2].token = VOCAB, bad[3].steps = CUDA_DRAFT_STEPS_MAX + 1;
    for (uint32_t i = 0; i < 4; i++) refused += cuda_draft_round(draft, &bad[i], 1) == -E_RANGE;
    refused += cuda_draft_round(draft, &q, 0) == -E_RANGE;
    expect(refused == 5, "%d of 5 questions that make no sense are refused", refused);
}

/* ---- the steps of plain kernels ---- */

static struct cuda_draft *open_plain(const struct rig *r)
{
    const struct cuda_draft_options options = {.target_device = r->target_device, .kv_device = {[CUDA_FULL] = r->kv_device, [CUDA_SLIDING] = (uint8_t *)r->kv_device + r->geo.sliding_offset},
                                               .states_device = r->states_device, .states_rows = STATES_ROWS, .seqs_max = SEQS, .context_max = CONTEXT, .ring_pages = r->per_seq[CUDA_SLIDING]};
    const struct cuda_left_out left_out = {r->generation.suppress_token, r->generation.suppress_count};
    struct cuda_draft *draft;

    ok(cuda_draft_plain_open(&draft, &r->w, &r->spec, &options, left_out), "open plain");
    for (uint32_t s = 0; s < SEQS; s++)
        for (uint32_t type = 0; type < 2; type++) ok(cuda_draft_pages(draft, s, type, 0, r->pages[type] + s * r->per_seq[type], r->per_seq[type]), "pages");
    return draft;
}

static uint32_t words_that_differ(const float *a, const float *b, uint32_t count)
{
    uint32_t wrong = 0;

    for (uint32_t i = 0; i < count; i++) wrong += memcmp(&a[i], &b[i], sizeof *a) != 0;
    return wrong;
}

/* Rounds of 1 .. STEPS steps of all sequences: the last step's logits, states, tokens and confidences are the CPU's. */
static void test_plain_rounds(const struct rig *r, struct cuda_draft *draft, struct assistant *cpu, struct sampler *sampler, const char *format, const struct sampling_params *p)
{
    const uint32_t positions[SEQS] = {1, 31, 32, 257, 1023, 1025, 1700, CONTEXT - 1};
    float *logits = room(4ull * SEQS * VOCAB), *states = room(4ull * SEQS * BACKBONE), *mine = room(4ull * VOCAB), *hidden = room(4ull * BACKBONE);
    uint32_t words = 0, tokens = 0, confidences = 0;

    for (uint32_t steps = 1; steps <= STEPS; steps++) {
        struct cuda_draft_question q[SEQS];
        struct cuda_draft_answer a[SEQS];
        for (uint32_t s = 0; s < SEQS; s++) q[s] = ask(s, positions[s], steps, p);
        ok(cuda_draft_round(draft, q, SEQS), "round");
        ok(cuda_draft_wait(draft, 2000000, a), "wait");
        cuda_ok(cudaMemcpy(logits, cuda_draft_logits(draft), 4ull * SEQS * VOCAB, cudaMemcpyDeviceToHost), "logits");
        cuda_ok(cudaMemcpy(states, cuda_draft_hidden(draft), 4ull * SEQS * BACKBONE, cudaMemcpyDeviceToHost), "states");
        for (uint32_t s = 0; s < SEQS; s++) {
            uint32_t input[STEPS + 1] = {q[s].token}, token;
            float lead;
            if (a[s].count != steps) die("%u tokens instead of %u", a[s].count, steps);
            memcpy(input + 1, a[s].token, steps * sizeof *input);
            cpu_steps(r, cpu, s, positions[s], input, steps, false, mine, hidden);
            words += words_that_differ(logits + (uint64_t)s * VOCAB, mine, VOCAB) + words_that_differ(states + (uint64_t)s * BACKBONE, hidden, BACKBONE);
            ok(sampler_guess(sampler, p, mine, (uint64_t)positions[s] + steps, NULL, &token, &lead), "sampler");
            const float confidence = 1.0f - expf(-lead);
            tokens += token != a[s].token[steps - 1];
            confidences += words_that_differ(&confidence, &a[s].confidence[steps - 1], 1);
        }
    }
    expect(words + tokens + confidences == 0, "plain kernels, %s, temperature %.1f top_k %u top_p %.2f min_p %.2f: of %u rows' last steps %u words, %u tokens, %u confidences differ from the CPU's", format,
           (double)p->temperature, p->top_k, (double)p->top_p, (double)p->min_p, STEPS * SEQS, words, tokens, confidences);
    free(logits), free(states), free(mine), free(hidden);
}

/* With the weights as they are: BF16, or what assistant_to_fp8 made of them. */
static void test_plain(const struct rig *r, struct assistant *cpu, struct sampler *sampler, const char *format)
{
    static const struct sampling_params params[] = {{.repetition_penalty = 1}, {.temperature = 1, .seed = 21, .top_p = 1}, {.temperature = 1, .top_k = 64, .top_p = 0.95f, .seed = 22},
                                                    {.temperature = 1.3f, .top_k = 20, .top_p = 0.8f, .min_p = 0.02f, .seed = 23}};
    struct cuda_draft *draft = open_plain(r);

    for (uint32_t i = 0; i < sizeof params / sizeof *params; i++) test_plain_rounds(r, draft, cpu, sampler, format, &params[i]);
    test_stop(draft);
    test_refusals(draft);
    cuda_draft_close(draft);
}

int main(int argc, char **argv)
{
    static struct rig r;
    struct cuda_device_facts facts;
    struct assistant *cpu;
    struct sampler *sampler;
    const struct forward_options options = {.threads = 8, .rows_max = SEQS};
    const struct sampling_params greedy = {.repetition_penalty = 1};
    const struct sampling_params sampled[] = {{.temperature = 1, .top_k = 64, .top_p = 0.95f, .repetition_penalty = 1, .seed = 11}, {.temperature = 0.7f, .top_k = 20, .top_p = 1, .repetition_penalty = 1, .seed = 12},
                                              {.temperature = 1.3f, .top_k = 64, .top_p = 0.5f, .min_p = 0.02f, .repetition_penalty = 1, .seed = 13}};
    const uint32_t positions[] = {1, 33, 700, 1024, 1025, 2200};

    if (argc > 2 && strcmp(argv[1], "--kv") == 0 && (cache = kv_dtype_named(argv[2])) == 0) return printf("unknown cache %s\n", argv[2]), 1;
    if (cuda_device_open(&facts) != 0) {
        printf("SKIP: %s\n", cuda_backend_error());
        return 77;
    }
    make_target(&r);
    make_drafter(&r);
    ok(assistant_open(&cpu, &r.w, &r.target, &r.geo, r.kv, &options), "CPU");
    ok(sampler_open(&sampler, VOCAB, r.generation.suppress_token, r.generation.suppress_count), "sampler");
    struct cuda_draft *draft = open_round(&r, NULL, 0, NULL);
    for (uint32_t i = 0; i < sizeof positions / sizeof *positions; i++) {
        test_chain(&r, draft, cpu, sampler, i % SEQS, positions[i], &greedy);
        test_chain(&r, draft, cpu, sampler, (i + 3) % SEQS, positions[i], &sampled[i % 3]);
    }
    const struct sampling_params mixed[] = {greedy, sampled[0], greedy, sampled[1], greedy, sampled[2], greedy, greedy};
    test_stop(draft);
    test_choices(&r, draft, mixed, sizeof mixed / sizeof *mixed);
    test_hand_over(&r);
    test_refusals(draft);
    cuda_draft_close(draft);
    test_plain(&r, cpu, sampler, "BF16");
    ok(assistant_to_fp8(&r.w, 8), "FP8");
    test_plain(&r, cpu, sampler, "FP8");
    printf(failures ? "%d failed\n" : "draft: passed\n", failures);
    return failures != 0;
}
