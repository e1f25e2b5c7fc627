/* tests/gpu/dspark_test.c - the DSpark head on the GPU (cuda_dspark.h) against model/dspark.c on the CPU.
 *
 * The head of dspark_rig.h. Positions are absorbed in pieces, rings go round; logits and confidences must agree up to the rounding of activations, each guess be the best one of the
 * CPU's logits behind the guesses before it. Also: a position whose outputs are another's, sequences together and alone. Run from anywhere. Exit 0 pass, 1 fail, 77 no GPU. */
#include "model/sampler.h"
#include "tests/gpu/dspark_rig.h"

#define CLOSE 1.5e-2                  /* bf16 activations, keys and values: 2^-9 a rounding, some of them in a row */
#define CLOSE_SCORE 0.12f             /* what that can make of a logit of some units */

static void open_cpu(struct rig *r)
{
    const struct forward_options options = {.threads = 8, .rows_max = PLACES};

    ok(dspark_cache_init(&r->cache, &r->w.config, KV_BF16, WINDOW, CONTEXT), "cache");
    ok(dspark_open(&r->cpu, &r->w, &r->cache, &options), "CPU");
    for (uint32_t p = 0; p < PLACES; p++) r->caches[p] = room(r->cache.slot_bytes);
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
    open_rig(&r);
    open_cpu(&r);
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
    test_shared_head(&r, sampler);
    cuda_dspark_close(r.gpu);
    printf(failures ? "%d failed\n" : "dspark: passed\n", failures);
    return failures != 0;
}
