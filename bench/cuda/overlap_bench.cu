/* bench/cuda/overlap_bench.cu - does it pay to draft for one half of a batch while the other half is verified? Gemma 4 12B's shapes, random weights, MTP assistant in FP8.
 *
 *   cuda_overlap_bench [--context N] [--drafts N] [--batch 2,4,8]
 *
 * A batch of n sequences that each draft d tokens can go round like this:
 *   one after the other   drafts of n, then a step of n blocks of 1 + d rows
 *   by halves             twice: the drafts of one half beside the step of the other, each on a stream of its own, until both have ended
 * Times from the first launch to both flags seen by the host, medians. Both ways make the same number of tokens. */
#include "bench/cuda/gemma_12b.h"
#include "bench/cuda/measure.cuh"
#include "kernels/cuda/arena.h"
#include "kernels/cuda/cuda_draft.h"
#include "kernels/cuda/cuda_weights.h"
#include "kernels/cuda/draft_layout.h"
#include <chrono>
#include <cuda_runtime.h>
#include <string.h>

extern "C" int cuda_fill_normal(void *out_bf16, uint64_t n, float deviation, uint64_t seed);

#define SEQS 8u                       /* of the largest batch */
#define STATES 16u
#define REPEATS 23
#define WAIT_US 5000000u

struct bench {
    struct cuda_model_spec target;
    struct cuda_draft_spec spec;
    struct cuda_backend *backend;
    struct cuda_draft *draft;
    uint32_t context, drafts;
    uint64_t step;
};

static void open_bench(struct bench *b)
{
    const uint32_t ring_pages = 34, full_pages = (b->context + 64 + 31) / 32;
    struct cuda_options o;
    struct cuda_draft_options d;
    struct cuda_weights *weights;
    struct draft_plan plan;
    struct arena arena;
    void *own;

    b->target = gemma_12b_target(48, WEIGHT_FP8, 2), b->spec = gemma_12b_assistant(WEIGHT_FP8);
    OK(arena_plan(&arena, &b->target));
    OK(draft_plan_make(&plan, &b->spec));
    memset(&o, 0, sizeof o), memset(&d, 0, sizeof d);
    CHECK(cudaMalloc((void **)&o.weights_device, arena.bytes));
    CHECK(cudaMalloc(&own, plan.bytes));
    CHECK(cudaMalloc((void **)&o.states_device, 4ull * SEQS * STATES * b->target.hidden));
    CHECK(cudaMemset(o.states_device, 0, 4ull * SEQS * STATES * b->target.hidden));
    const uint64_t bytes[2] = { b->target.page_bytes[0] * ring_pages * SEQS, b->target.page_bytes[1] * full_pages * SEQS };
    for (int t = 0; t < 2; t++) {
        CHECK(cudaMalloc(&o.kv_device[t], bytes[t]));
        OK(cuda_fill_normal(o.kv_device[t], bytes[t] / 2, 1.0f, 77 + t));
    }
    o.seqs_max = SEQS, o.context_max = full_pages * 32, o.ring_pages = ring_pages, o.graph_rows_mask = 127, o.l2_slots = CUDA_L2_DEFAULT;
    OK(cuda_backend_open(&b->backend, &b->target, &o));
    OK(cuda_weights_open(&weights, &b->target, o.weights_device));
    OK(cuda_weights_fill_random(weights, 1));
    cuda_weights_close(weights);
    OK(cuda_draft_weights_fill_random(&b->spec, own, 3));
    d.weights_device = own, d.target_device = o.weights_device, d.kv_device[0] = o.kv_device[0], d.kv_device[1] = o.kv_device[1];
    d.states_device = o.states_device, d.states_rows = STATES, d.seqs_max = SEQS, d.context_max = o.context_max, d.ring_pages = ring_pages;
    OK(cuda_draft_open(&b->draft, &b->spec, &b->target, &d));
    for (uint32_t s = 0; s < SEQS; s++)
        for (uint32_t t = 0; t < 2; t++) {
            std::vector<uint32_t> pages(t ? full_pages : ring_pages);

            for (uint32_t i = 0; i < pages.size(); i++) pages[i] = s * (uint32_t)pages.size() + i;
            OK(cuda_backend_pages(b->backend, s, (enum cuda_layer_type)t, 0, pages.data(), (uint32_t)pages.size()));
            OK(cuda_draft_pages(b->draft, s, (enum cuda_layer_type)t, 0, pages.data(), (uint32_t)pages.size()));
        }
}

/* A step of blocks of 1 + drafts rows of sequences first .. first + n - 1. */
static void begin_step(struct bench *b, uint32_t first, uint32_t n)
{
    const uint32_t per = 1 + b->drafts;
    struct step_state s;

    memset(&s, 0, sizeof s);
    s.rows = n * per, s.groups = n, s.step = ++b->step;
    for (uint32_t g = 0; g < n; g++) {
        s.group[g] = { g * per, per, b->context, first + g };
        for (uint32_t i = 0; i < per; i++) {
            s.row[g * per + i] = { 1000 + 10 * g + i, b->context + i, g, 0 };
            s.sampling[g * per + i].temperature = 1.0f, s.sampling[g * per + i].top_k = 64, s.sampling[g * per + i].top_p = 0.95f;
        }
    }
    OK(cuda_backend_step(b->backend, &s));
}

static void end_step(struct bench *b)
{
    struct step_result result;

    OK(cuda_backend_wait(b->backend, b->step, WAIT_US, &result));
}

static void begin_drafts(struct bench *b, uint32_t first, uint32_t n)
{
    struct cuda_draft_question q[SEQS];

    memset(q, 0, sizeof q);
    for (uint32_t i = 0; i < n; i++) q[i].seq = first + i, q[i].token = 1000 + i, q[i].position = b->context, q[i].steps = b->drafts, q[i].temperature = 1.0f, q[i].top_k = 64, q[i].top_p = 0.95f;
    OK(cuda_draft_round(b->draft, q, n));
}

static void end_drafts(struct bench *b)
{
    struct cuda_draft_answer answers[SEQS];

    OK(cuda_draft_wait(b->draft, WAIT_US, answers));
}

template <typename F> static double us(F work)
{
    std::vector<double> t;

    for (int i = 0; i < REPEATS; i++) {
        CHECK(cudaDeviceSynchronize());
        const auto begin = std::chrono::steady_clock::now();
        work();
        if (i >= 3) t.push_back(std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count());
    }
    return median(t);
}

static void measure(struct bench *b, uint32_t n)
{
    const uint32_t half = n / 2;
    const double drafts = us([&] { begin_drafts(b, 0, n), end_drafts(b); }), step = us([&] { begin_step(b, 0, n), end_step(b); });
    const double drafts_half = us([&] { begin_drafts(b, 0, half), end_drafts(b); }), step_half = us([&] { begin_step(b, 0, half), end_step(b); });
    const double both = us([&] { begin_step(b, half, half), begin_drafts(b, 0, half), end_drafts(b), end_step(b); });
    const double drafts_first = us([&] { begin_drafts(b, 0, half), begin_step(b, half, half), end_drafts(b), end_step(b); });
    const double best = both < drafts_first ? both : drafts_first;

    printf("%5u %8.0f %8.0f %10.0f | %8.0f %8.0f | %10.0f %12.0f %10.0f  %+.0f %%\n", n, drafts, step, drafts + step, drafts_half, step_half, both, drafts_first, 2 * best, 100 * (2 * best / (drafts + step) - 1));
}

int main(int argc, char **argv)
{
    std::vector<uint32_t> batch = { 2, 4, 8 };
    struct bench b = {};

    b.context = 1100, b.drafts = 6;
    for (int i = 1; i < argc; i++) {
        if (i + 1 < argc && !strcmp(argv[i], "--context")) b.context = (uint32_t)atoi(argv[++i]);
        else if (i + 1 < argc && !strcmp(argv[i], "--drafts")) b.drafts = (uint32_t)atoi(argv[++i]);
        else if (i + 1 < argc && !strcmp(argv[i], "--batch")) {
            batch.clear();
            for (char *p = argv[++i]; *p; p += *p == ',') batch.push_back((uint32_t)strtoul(p, &p, 10));
        } else return fprintf(stderr, "unknown option %s\n", argv[i]), 2;
    }
    if (b.drafts == 0 || b.drafts > 7 || b.context < 64) return fprintf(stderr, "--drafts: 1 to 7; --context: at least 64\n"), 2;
    open_bench(&b);
    printf("us, %u keys, %u drafts a sequence\nbatch   drafts     step  one after | half: drafts     step | step first  drafts first   by halves\n", b.context, b.drafts);
    for (uint32_t n : batch) {
        if (n < 2 || n > SEQS || n % 2 || n * (1 + b.drafts) > STEP_ROWS_MAX) return fprintf(stderr, "--batch: 2, 4, 6 or 8, with at most %d rows\n", STEP_ROWS_MAX), 2;
        measure(&b, n);
    }
    return 0;
}
