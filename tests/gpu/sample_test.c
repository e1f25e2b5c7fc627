/* tests/gpu/sample_test.c - sampling on the device against model/sampler.c on the same logits; exit 0 pass, 1 fail, 77 no GPU.
 *
 * Steps of 64 rows with random parameters of every kind over logits of several shapes: smooth, steep, full of equal values, nearly flat. Both kernels
 * work in the same step, as in a real one. Tokens and the tokens of the top list must be equal, log probabilities within the rounding
 * of one f32; a row with a NaN must say so. History and bias are written as cuda_backend_history and cuda_backend_bias write them. Also
 * prints how long a step's sampling takes. */
#include "kernels/cuda/sample.h"
#include "model/sampler.h"
#include <cuda_runtime_api.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROWS STEP_ROWS_MAX
#define HISTORY 4096
#define CHECK(x) do { const cudaError_t e_ = (x); if (e_ != cudaSuccess) { fprintf(stderr, "%s:%d %s: %s\n", __FILE__, __LINE__, #x, cudaGetErrorString(e_)); exit(1); } } while (0)
#define OK(x) do { const int r_ = (x); if (r_ < 0) { fprintf(stderr, "%s:%d %s: error %d\n", __FILE__, __LINE__, #x, r_); exit(1); } } while (0)

static uint64_t random_state = 88172645463325252ull;

static uint32_t random_word(void)
{
    random_state ^= random_state << 13, random_state ^= random_state >> 7, random_state ^= random_state << 17;
    return (uint32_t)(random_state >> 32);
}

static float uniform(void) { return (float)(random_word() >> 8) * 0x1p-24f; }
static float one_of(const float *x, uint32_t n) { return x[random_word() % n]; }

struct bench {
    uint32_t vocab;
    struct step_state state;
    float *logits, *top;              /* host */
    uint32_t *history;
    struct step_bias *bias;
    struct sample_args args;          /* device pointers */
    struct step_result *result;
    struct sampler *sampler;
    struct penalty_counts counts;
};

static void *device(uint64_t bytes)
{
    void *p;

    CHECK(cudaMalloc(&p, bytes));
    CHECK(cudaMemset(p, 0, bytes));
    return p;
}

static void open_bench(struct bench *b, uint32_t vocab)
{
    struct sample_args *a = &b->args;

    memset(b, 0, sizeof *b);
    b->vocab = vocab;
    b->logits = malloc(4ull * ROWS * vocab), b->top = malloc(4ull * ROWS * vocab / 16);
    b->history = malloc(4ull * ROWS * HISTORY), b->bias = calloc(ROWS * STEP_BIAS_MAX, sizeof *b->bias);
    a->vocab = vocab, a->history_stride = HISTORY, a->suppress_count = 2, a->suppress[0] = vocab - 3, a->suppress[1] = 17;
    a->state = device(sizeof b->state), a->logits = device(4ull * ROWS * vocab), a->tile_top = device(4ull * ROWS * vocab / 16);
    a->last_token = device(4 * ROWS), a->done = device(4), a->bias = device(sizeof *b->bias * ROWS * STEP_BIAS_MAX), a->history = device(4ull * ROWS * HISTORY);
    CHECK(cudaHostAlloc((void **)&b->result, sizeof *b->result, cudaHostAllocMapped));
    memset(b->result, 0, sizeof *b->result);
    CHECK(cudaHostGetDevicePointer((void **)&a->result, b->result, 0));
    OK(sample_init());
    OK(sample_general_init(vocab));
    OK(sampler_open(&b->sampler, vocab, a->suppress, a->suppress_count));
    OK(penalty_counts_open(&b->counts, HISTORY + 1));
}

static void close_bench(struct bench *b)
{
    struct sample_args *a = &b->args;
    void *all[] = { (void *)a->state, (void *)a->logits, (void *)a->tile_top, a->last_token, a->done, (void *)a->bias, a->history };

    for (size_t i = 0; i < sizeof all / sizeof *all; i++) CHECK(cudaFree(all[i]));
    CHECK(cudaFreeHost(b->result));
    sampler_close(b->sampler);
    penalty_counts_close(&b->counts);
    free(b->logits), free(b->top), free(b->history), free(b->bias);
}

static void make_logits(float *x, uint32_t vocab, uint32_t shape)
{
    const float spread[] = { 2.0f, 6.0f, 1.0f, 0.02f }, scale = spread[shape % 4];

    for (uint32_t i = 0; i < vocab; i++) {
        const float g = uniform() + uniform() + uniform() + uniform() - 2.0f;      /* deviation 0.58 */

        x[i] = 30.0f * tanhf(g * scale * 1.7f / 30.0f);
        if (shape % 4 == 2) x[i] = rintf(x[i] * 4.0f) / 4.0f;                      /* hundreds of equal ones */
    }
    if (shape % 4 == 1) x[random_word() % vocab] += 8.0f;
}

/* Parameters of row i: a third is plain. */
static struct step_sampling make_sampling(const struct bench *b, uint32_t i)
{
    static const float temperatures[] = { 0.2f, 0.7f, 1.0f, 1.0f, 1.5f, 3.0f }, top_ps[] = { 0, 0.1f, 0.5f, 0.9f, 0.95f, 0.999f, 1 }, min_ps[] = { 0, 0, 0, 0.02f, 0.3f };
    static const uint32_t top_ks[] = { 0, 0, 1, 2, 5, 40, 64, 65, 200, 1000, 50000 };
    struct step_sampling p;

    memset(&p, 0, sizeof p);
    p.seed = (uint64_t)random_word() << 32 | random_word();
    p.temperature = random_word() % 6 == 0 ? 0.0f : one_of(temperatures, 6);
    p.top_p = one_of(top_ps, 7), p.min_p = one_of(min_ps, 5);
    p.top_k = top_ks[random_word() % 11];
    if (i % 3 == 0) {
        p.top_k = top_ks[2 + random_word() % 5];
        return p;
    }
    if (random_word() % 3 == 0) p.presence_penalty = uniform() * 4 - 2;
    if (random_word() % 3 == 0) p.frequency_penalty = uniform() * 4 - 2;
    if (random_word() % 3 == 0) p.repetition_penalty = 0.5f + uniform();
    if (random_word() % 3 == 0) p.bias_count = 1 + random_word() % STEP_BIAS_MAX;
    if (random_word() % 3 == 0) p.want_logprobs = 1, p.top_logprob_count = random_word() % (STEP_LOGPROBS_MAX + 1);
    p.prompt_tokens = random_word() % HISTORY;
    if (p.temperature == 0 && p.top_k > b->vocab) p.top_k = 0;
    return p;
}

static void make_step(struct bench *b, uint32_t round)
{
    struct step_state *s = &b->state;

    memset(s, 0, sizeof *s);
    s->rows = s->groups = ROWS, s->step = round + 1;
    for (uint32_t i = 0; i < ROWS; i++) {
        const uint32_t position = round % 2 ? random_word() % HISTORY : random_word() % 64, seq = (i * 29 + round) % ROWS;

        s->row[i].token = random_word() % b->vocab, s->row[i].position = position, s->row[i].group = i;
        s->group[i].first_row = i, s->group[i].rows = 1, s->group[i].first_position = position, s->group[i].seq = seq;
        s->sampling[i] = make_sampling(b, i);
        s->general_rows += sample_is_general(&s->sampling[i]) != 0;
        make_logits(b->logits + (uint64_t)i * b->vocab, b->vocab, i + round);
        for (uint32_t j = 0; j < HISTORY; j++) b->history[seq * HISTORY + j] = random_word() % 8 ? random_word() % (j % 2 ? 50 : b->vocab) : STEP_NO_TOKEN;
        b->history[seq * HISTORY + position] = 0;      /* the kernel must write the row's own token here */
        for (uint32_t j = 0; j < STEP_BIAS_MAX; j++) b->bias[seq * STEP_BIAS_MAX + j] = (struct step_bias){ random_word() % (j % 3 ? 40 : b->vocab), uniform() * 20 - 10 };
    }
    if (round == 0) b->logits[1 * (uint64_t)b->vocab + b->vocab / 2] = NAN, s->sampling[1].want_logprobs = 1;
    s->general_rows = 0;
    for (uint32_t i = 0; i < ROWS; i++) s->general_rows += sample_is_general(&s->sampling[i]) != 0;
    for (uint64_t t = 0; t < (uint64_t)ROWS * b->vocab / 16; t++) {
        b->top[t] = -INFINITY;
        for (uint32_t j = 0; j < 16; j++) b->top[t] = fmaxf(b->top[t], b->logits[t * 16 + j]);
    }
}

static float run_step(struct bench *b)
{
    cudaEvent_t start, end;
    float ms;

    CHECK(cudaMemcpy((void *)b->args.state, &b->state, sizeof b->state, cudaMemcpyHostToDevice));
    CHECK(cudaMemcpy((void *)b->args.logits, b->logits, 4ull * ROWS * b->vocab, cudaMemcpyHostToDevice));
    CHECK(cudaMemcpy((void *)b->args.tile_top, b->top, 4ull * ROWS * b->vocab / 16, cudaMemcpyHostToDevice));
    CHECK(cudaMemcpy(b->args.history, b->history, 4ull * ROWS * HISTORY, cudaMemcpyHostToDevice));
    CHECK(cudaMemcpy((void *)b->args.bias, b->bias, sizeof *b->bias * ROWS * STEP_BIAS_MAX, cudaMemcpyHostToDevice));
    CHECK(cudaEventCreate(&start));
    CHECK(cudaEventCreate(&end));
    CHECK(cudaEventRecord(start, NULL));
    OK(sample_launch(&b->args, ROWS, NULL));
    if (b->state.general_rows) OK(sample_general_launch(&b->args, ROWS, NULL));
    CHECK(cudaEventRecord(end, NULL));
    CHECK(cudaDeviceSynchronize());
    CHECK(cudaEventElapsedTime(&ms, start, end));
    return ms;
}

/* What the CPU picks for row i. */
static int pick(struct bench *b, uint32_t i, struct sample_out *out)
{
    const struct step_sampling *p = &b->state.sampling[i];
    const uint32_t seq = b->state.group[i].seq, position = b->state.row[i].position;
    struct sampling_params q;

    memset(&q, 0, sizeof q);
    q.seed = p->seed, q.temperature = p->temperature, q.top_p = p->top_p, q.min_p = p->min_p, q.top_k = p->top_k;
    q.presence_penalty = p->presence_penalty, q.frequency_penalty = p->frequency_penalty, q.repetition_penalty = p->repetition_penalty;
    q.want_logprobs = p->want_logprobs, q.top_logprob_count = p->top_logprob_count, q.logit_bias_count = p->bias_count;
    for (uint32_t j = 0; j < p->bias_count; j++) q.logit_bias[j].token = b->bias[seq * STEP_BIAS_MAX + j].token, q.logit_bias[j].bias = b->bias[seq * STEP_BIAS_MAX + j].bias;
    penalty_counts_reset(&b->counts);
    b->history[seq * HISTORY + position] = b->state.row[i].token;
    for (uint32_t j = 0; j <= position; j++)
        if (b->history[seq * HISTORY + j] != STEP_NO_TOKEN) OK(penalty_counts_add(&b->counts, b->history[seq * HISTORY + j], j >= p->prompt_tokens));
    return sampler_pick(b->sampler, &q, b->logits + (uint64_t)i * b->vocab, position + 1ull, &b->counts, out);
}

static uint32_t compare(struct bench *b, uint32_t i)
{
    const struct step_sampling *p = &b->state.sampling[i];
    const struct step_result *r = b->result;
    struct sample_out want;
    const int rc = pick(b, i, &want);
    uint32_t bad = rc != 0 ? !r->bad[i] : r->bad[i] || r->token[i] != want.token;

    if (rc == 0 && p->want_logprobs) {
        bad |= r->top_count[i] != want.top_count || !(fabsf(r->logprob[i] - want.logprob) < 4e-6f);
        for (uint32_t j = 0; j < want.top_count && !bad; j++)
            bad |= r->top[i][j].token != want.top[j].token || !(fabsf(r->top[i][j].logprob - want.top[j].logprob) < 4e-6f);
    }
    if (bad)
        printf("  vocab %u step %llu row %u: token %u instead of %u, bad %u (%d), logprob %g (%g), top %u (%u); T %g k %u p %g min %g penalties %g %g %g bias %u logprobs %u %u\n", b->vocab,
               (unsigned long long)b->state.step, i, r->token[i], want.token, r->bad[i], rc, (double)r->logprob[i], (double)want.logprob, r->top_count[i], want.top_count, (double)p->temperature, p->top_k,
               (double)p->top_p, (double)p->min_p, (double)p->presence_penalty, (double)p->frequency_penalty, (double)p->repetition_penalty, p->bias_count, p->want_logprobs, p->top_logprob_count);
    return bad;
}

/* All rows alike: what a kind of request costs. */
static void print_times(struct bench *b)
{
    const struct { const char *name; struct step_sampling p; } kind[] = {
        { "greedy", { .temperature = 0 } }, { "top_k 64, top_p 0.95", { .temperature = 1, .top_k = 64, .top_p = 0.95f } },
        { "the same with penalties", { .temperature = 1, .top_k = 64, .top_p = 0.95f, .presence_penalty = 0.5f, .frequency_penalty = 0.5f } },
        { "temperature alone", { .temperature = 1 } }, { "top_p 0.95 alone", { .temperature = 1, .top_p = 0.95f } },
        { "greedy, 20 logprobs", { .want_logprobs = 1, .top_logprob_count = 20 } } };

    for (size_t i = 0; i < sizeof kind / sizeof *kind; i++) {
        printf("  %-26s", kind[i].name);
        for (uint32_t rows = 1; rows <= ROWS; rows = rows == 1 ? 8 : rows == 8 ? 32 : rows * 2) {
            float best = 1e9f;

            for (int k = 0; k < 3; k++) {
                b->state.rows = rows;
                for (uint32_t j = 0; j < ROWS; j++) b->state.sampling[j] = kind[i].p, b->state.sampling[j].seed = j;
                b->state.general_rows = sample_is_general(&kind[i].p) ? rows : 0;
                best = fminf(best, run_step(b));
            }
            printf("  %2u rows %6.1f us", rows, (double)best * 1e3);
        }
        printf("\n");
    }
}

int main(void)
{
    static const uint32_t vocabs[] = { 2048, 262144, 262208 };
    int count = 0;
    uint32_t bad = 0, total = 0;
    static struct bench b;

    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) return printf("skip: no GPU\n"), 77;
    for (uint32_t v = 0; v < 3; v++) {
        open_bench(&b, vocabs[v]);
        for (uint32_t round = 0; round < (v == 1 ? 8u : 4u); round++) {
            make_step(&b, round);
            run_step(&b);
            if (b.result->step != b.state.step) bad++, printf("  step %u has no flag\n", round);
            for (uint32_t i = 0; i < ROWS; i++) bad += compare(&b, i), total++;
        }
        if (v == 1) print_times(&b);
        close_bench(&b);
    }
    printf("sampling: %u of %u rows as the CPU's %s\n", total - bad, total, bad ? "FAIL" : "ok");
    return bad ? 1 : 0;
}
