/* bench/cuda/draft_bench.cu - a round of the MTP assistant at Gemma 4 12B's shapes on random weights: time, bytes, floor, parts, and whether it is right.
 *
 *   cuda_draft_bench [--format fp8|bf16] [--context N] [--rows 1,2,4,8] [--steps 1,6] [--ring N] [--blocks N] [--no-check] [--parts] [--lone] [--cold]
 *                    [--choices N]
 *
 * --cold measures rounds as they come in the product: behind some milliseconds of other kernels that read everything once, or behind nothing for as long.
 * --choices: the output table has so many rows (cuda_draft.h); the check needs all of them.
 * --lone launches without the driver's promise that all blocks run at once (cuda_draft.h).
 * floor = bytes that must cross HBM / read bandwidth measured in the same run: all matrices once per step, a row's keys once per round. "round" is launch
 * to flag seen by the host, one after the other, medians. The check follows 3 chained steps with plain kernels that add in f64 on the
 * same packed weights: what differs is the rounding of activations (f16, or bf16). */
#include "bench/cuda/gemma_12b.h"
#include "bench/cuda/measure.cuh"
#include "kernels/cuda/arena.h"
#include "kernels/cuda/draft_layout.h"
#include "kernels/cuda/pack.h"
#include <algorithm>
#include <chrono>
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <vector>

extern "C" int cuda_fill_normal(void *out_bf16, uint64_t n, float deviation, uint64_t seed);

#define STATES 16
#define CHECK_STEPS 3

struct settings {
    uint32_t format, context, ring, blocks, choices;
    bool check, parts, lone, cold;
    std::vector<uint32_t> rows, steps;
};

struct bench {
    struct cuda_model_spec target;
    struct cuda_draft_spec spec;
    struct arena arena;
    struct draft_plan plan;
    uint8_t *target_weights, *weights;
    void *kv[2];
    float *states;
    uint32_t ring_pages, full_pages, seqs;
    struct cuda_draft *draft;
};

/* ---- set up ---- */

__global__ void widen_kernel(const __nv_bfloat16 *from, float *to, uint64_t n)
{
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (uint64_t)gridDim.x * blockDim.x) to[i] = __bfloat162float(from[i]);
}

static void fill_states(struct bench *b)
{
    const uint64_t n = (uint64_t)b->seqs * STATES * b->spec.backbone_hidden;
    __nv_bfloat16 *narrow;

    CHECK(cudaMalloc(&b->states, 4 * n));
    CHECK(cudaMalloc(&narrow, 2 * n));
    OK(cuda_fill_normal(narrow, n, 1.0f, 5));
    widen_kernel<<<256, 256>>>(narrow, b->states, n);
    CHECK(cudaDeviceSynchronize());
    CHECK(cudaFree(narrow));
}

static void fill_table(struct bench *b)
{
    const packed_matrix head = { b->target_weights + b->arena.head.offset, b->arena.head.rows, b->arena.head.k, b->arena.head.slice_k, b->arena.head.format };
    const uint64_t n = (uint64_t)head.rows * head.k;
    void *room;

    CHECK(cudaMalloc(&room, 2 * n));
    OK(cuda_fill_normal(room, n, 1.0f / 62.0f, 9));
    const pack_source from = { room, NULL, 0, WEIGHT_BF16, head.rows, 0, PACK_WHOLE, NULL };
    OK(pack_launch(&head, &from, NULL, NULL));
    CHECK(cudaDeviceSynchronize());
    CHECK(cudaFree(room));
}

static void open_bench(struct bench *b, const struct settings *o)
{
    memset(b, 0, sizeof *b);
    b->target = gemma_12b_target(6, WEIGHT_FP8, 2);                            /* its last group of layers is enough: five sliding, one full */
    for (int t = 0; t < 2; t++) b->target.page_bytes[t] *= 8;    /* pages of 48 layers: the strides of the real cache */
    b->target.suppress_count = 2, b->target.suppress[0] = 258883, b->target.suppress[1] = 258882;
    b->spec = gemma_12b_assistant(o->format);
    b->spec.choices = o->choices;
    b->seqs = CUDA_DRAFT_ROWS_MAX;
    b->ring_pages = 33 + 1, b->full_pages = (o->context + 64 + 31) / 32;
    OK(arena_plan(&b->arena, &b->target));
    OK(draft_plan_make(&b->plan, &b->spec));
    CHECK(cudaMalloc(&b->target_weights, b->arena.bytes));
    CHECK(cudaMalloc(&b->weights, b->plan.bytes));
    fill_table(b);
    OK(cuda_draft_weights_fill_random(&b->spec, b->weights, 3));
    const uint64_t bytes[2] = { b->target.page_bytes[0] * b->ring_pages * b->seqs, b->target.page_bytes[1] * b->full_pages * b->seqs };
    for (int t = 0; t < 2; t++) {
        CHECK(cudaMalloc(&b->kv[t], bytes[t]));
        OK(cuda_fill_normal(b->kv[t], bytes[t] / 2, 1.0f, 77 + t));
    }
    fill_states(b);
    const struct cuda_draft_options options = { b->weights, b->target_weights, { b->kv[0], b->kv[1] }, b->states, STATES, b->seqs, b->full_pages * 32, b->ring_pages, 0, o->ring, o->blocks, o->lone, NULL };
    OK(cuda_draft_open(&b->draft, &b->spec, &b->target, &options));
    for (uint32_t s = 0; s < b->seqs; s++)
        for (uint32_t t = 0; t < 2; t++) {
            std::vector<uint32_t> pages(t ? b->full_pages : b->ring_pages);

            for (uint32_t i = 0; i < pages.size(); i++) pages[i] = s * (uint32_t)pages.size() + i;
            OK(cuda_draft_pages(b->draft, s, (enum cuda_layer_type)t, 0, pages.data(), (uint32_t)pages.size()));
        }
}

static struct cuda_draft_question question(uint32_t seq, uint32_t context, uint32_t steps, bool sampled)
{
    struct cuda_draft_question q;

    memset(&q, 0, sizeof q);
    q.seq = seq, q.token = 1000 + 77 * seq, q.position = context - seq, q.steps = steps, q.seed = 11 + seq;
    if (sampled) q.temperature = 1.0f, q.top_k = 64, q.top_p = 0.95f;
    return q;
}

static void run_round(struct bench *b, const struct cuda_draft_question *q, uint32_t rows, struct cuda_draft_answer *answers)
{
    OK(cuda_draft_round(b->draft, q, rows));
    OK(cuda_draft_wait(b->draft, 2000000, answers));
}

/* ---- the reference: plain kernels and f64 sums, one row ---- */

__global__ void dot_kernel(const float *w, const float *x, float *y, uint32_t rows, uint32_t k)
{
    const uint32_t row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    double sum = 0;

    if (row >= rows) return;
    for (uint32_t i = threadIdx.x % 32; i < k; i += 32) sum += (double)w[(uint64_t)row * k + i] * x[i];
    for (int d = 16; d; d >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    if (threadIdx.x % 32 == 0) y[row] = (float)sum;
}

static std::vector<float> reference_product(const struct bench *b, const struct draft_matrix *m, const std::vector<float> &x)
{
    const packed_matrix p = { b->weights + m->offset, m->units / m->slices * TILE_ROWS, m->slices * DRAFT_SLICE, DRAFT_SLICE, b->spec.format };
    std::vector<float> in(p.k, 0.0f), out(p.rows);
    float *w, *dx, *dy;

    std::copy(x.begin(), x.end(), in.begin());
    CHECK(cudaMalloc(&w, 4ull * p.rows * p.k));
    CHECK(cudaMalloc(&dx, 4ull * p.k));
    CHECK(cudaMalloc(&dy, 4ull * p.rows));
    OK(unpack_launch(&p, w, NULL));
    CHECK(cudaMemcpy(dx, in.data(), 4ull * p.k, cudaMemcpyHostToDevice));
    dot_kernel<<<(p.rows + 7) / 8, 256>>>(w, dx, dy, p.rows, p.k);
    CHECK(cudaMemcpy(out.data(), dy, 4ull * p.rows, cudaMemcpyDeviceToHost));
    CHECK(cudaFree(w));
    CHECK(cudaFree(dx));
    CHECK(cudaFree(dy));
    return out;
}

static std::vector<float> vector_at(const struct bench *b, uint64_t offset, uint32_t n)
{
    std::vector<float> v(n);

    CHECK(cudaMemcpy(v.data(), b->weights + offset, 4ull * n, cudaMemcpyDeviceToHost));
    return v;
}

static void reference_norm(float *x, const std::vector<float> &w, double eps)
{
    double sum = 0;

    for (size_t i = 0; i < w.size(); i++) sum += (double)x[i] * x[i];
    for (size_t i = 0; i < w.size(); i++) x[i] = (float)(x[i] / sqrt(sum / (double)w.size() + eps) * w[i]);
}

static float widen(uint16_t x)
{
    const uint32_t bits = (uint32_t)x << 16;
    float out;

    memcpy(&out, &bits, sizeof out);
    return out;
}

/* softmax(q k) v of one row and layer; q [16][d] is normed and turned. */
static std::vector<float> reference_attention(const struct bench *b, uint32_t type, uint32_t seq, uint32_t keys, const std::vector<float> &q)
{
    const uint32_t d = type ? 512 : 256, heads = type ? 1 : 8, group = 16 / heads, layer = type ? 5 : 4, stride = type ? b->full_pages : b->ring_pages;
    const uint32_t first = !type && keys > 1024 ? keys - 1024 : 0;
    std::vector<uint16_t> pages((uint64_t)stride * b->target.page_bytes[type] / 2);
    std::vector<float> out(16 * d);

    CHECK(cudaMemcpy(pages.data(), (const uint8_t *)b->kv[type] + (uint64_t)seq * stride * b->target.page_bytes[type], pages.size() * 2, cudaMemcpyDeviceToHost));
    for (uint32_t h = 0; h < 16; h++) {
        std::vector<double> score(keys - first), sum(d, 0.0);
        double top = -1e30, total = 0;
        const auto at = [&](uint32_t p, bool v) {
            return &pages[(p / 32 % stride * b->target.page_bytes[type] + (v ? b->target.layer[layer].v_offset : b->target.layer[layer].k_offset)) / 2 + (uint64_t)(h / group * 32 + p % 32) * d];
        };

        for (uint32_t p = first; p < keys; p++) {
            double s = 0;
            for (uint32_t i = 0; i < d; i++) s += (double)q[h * d + i] * widen(at(p, false)[i]);
            score[p - first] = s, top = std::max(top, s);
        }
        for (uint32_t p = first; p < keys; p++) {
            const double w = exp(score[p - first] - top);
            total += w;
            for (uint32_t i = 0; i < d; i++) sum[i] += w * widen(at(p, true)[i]);
        }
        for (uint32_t i = 0; i < d; i++) out[h * d + i] = (float)(sum[i] / total);
    }
    return out;
}

static void reference_queries(const struct bench *b, uint32_t i, uint32_t position, std::vector<float> &q)
{
    const uint32_t type = b->spec.layer_type[i], d = type ? 512 : 256;
    const std::vector<float> w = vector_at(b, b->plan.layer[i].q_norm, d);

    for (uint32_t h = 0; h < 16; h++) {
        float *x = &q[h * d];
        reference_norm(x, w, b->spec.norm_eps);
        for (uint32_t j = 0; j < b->spec.rope_turned[type]; j++) {
            const float angle = (float)position * (1.0f / powf((float)b->spec.rope_theta[type], (float)(2 * j) / (float)d));
            const double c = cos((double)angle), s = sin((double)angle), low = x[j], high = x[d / 2 + j];
            x[j] = (float)(low * c - high * s), x[d / 2 + j] = (float)(high * c + low * s);
        }
    }
}

static void join(std::vector<float> &x, std::vector<float> y, const std::vector<float> &w, float scalar, double eps)
{
    reference_norm(y.data(), w, eps);
    for (size_t i = 0; i < x.size(); i++) x[i] = (x[i] + y[i]) * scalar;
}

/* One step of one row: `hidden` in and out; the logits come back. */
static std::vector<float> reference_step(const struct bench *b, const struct cuda_draft_question *q, uint32_t token, std::vector<float> &hidden)
{
    const uint32_t n = b->spec.hidden;
    const double eps = b->spec.norm_eps;
    std::vector<float> joined(2 * b->spec.backbone_hidden);
    std::vector<uint8_t> unit(packed_unit_bytes(WEIGHT_BF16, b->arena.head.slice_k));

    CHECK(cudaMemcpy(unit.data(), b->target_weights + b->arena.head.offset + (uint64_t)(token / TILE_ROWS) * unit.size(), unit.size(), cudaMemcpyDeviceToHost));
    for (uint32_t i = 0; i < b->spec.backbone_hidden; i++) {
        uint16_t e;
        memcpy(&e, &unit[packed_element_offset(WEIGHT_BF16, b->arena.head.slice_k, token % TILE_ROWS, i)], 2);
        joined[i] = __bfloat162float(__float2bfloat16_rn(widen(e) * b->target.embed_scale));
        joined[b->spec.backbone_hidden + i] = hidden[i];
    }
    std::vector<float> x = reference_product(b, &b->plan.pre, joined);
    for (uint32_t i = 0; i < b->spec.layers; i++) {
        const struct draft_layer_plan *l = &b->plan.layer[i];
        std::vector<float> normed = x, act(b->spec.intermediate);

        reference_norm(normed.data(), vector_at(b, l->input_norm, n), eps);
        std::vector<float> heads = reference_product(b, &l->q, normed);
        reference_queries(b, i, q->position, heads);
        join(x, reference_product(b, &l->o, reference_attention(b, b->spec.layer_type[i], q->seq, q->position, heads)), vector_at(b, l->post_attention_norm, n), 1.0f, eps);
        normed = x;
        reference_norm(normed.data(), vector_at(b, l->pre_ff_norm, n), eps);
        const std::vector<float> both = reference_product(b, &l->gate_up, normed);
        for (uint32_t j = 0; j < act.size(); j++) {
            const double g = both[j / 8 * 16 + j % 8];
            act[j] = (float)(0.5 * g * (1 + tanh(0.7978845608028654 * (g + 0.044715 * g * g * g))) * both[j / 8 * 16 + 8 + j % 8]);
        }
        join(x, reference_product(b, &l->down, act), vector_at(b, l->post_ff_norm, n), vector_at(b, l->scalar, 1)[0], eps);
    }
    reference_norm(x.data(), vector_at(b, b->plan.norm, n), eps);
    hidden = reference_product(b, &b->plan.post, x);
    return reference_product(b, &b->plan.head, x);
}

static double relative_error(const std::vector<float> &a, const std::vector<float> &b)
{
    double diff = 0, own = 0;

    for (size_t i = 0; i < a.size(); i++) diff += ((double)a[i] - b[i]) * ((double)a[i] - b[i]), own += (double)b[i] * b[i];
    return sqrt(diff / own);
}

/* Logits of the last step of a sampled round, hidden of any; follows the device's own tokens. */
static int check_row(struct bench *b, uint32_t context, uint32_t seq, bool sampled)
{
    const struct cuda_draft_question q = question(seq, context, CHECK_STEPS, sampled);
    std::vector<float> hidden(b->spec.backbone_hidden), device(b->spec.backbone_hidden), logits, device_logits(draft_head_rows(&b->spec));
    struct cuda_draft_answer answer;
    uint32_t token = q.token;
    double worst_gap = 0, worst_confidence = 0;

    run_round(b, &q, 1, &answer);
    CHECK(cudaMemcpy(device.data(), cuda_draft_hidden(b->draft), 4 * device.size(), cudaMemcpyDeviceToHost));
    CHECK(cudaMemcpy(device_logits.data(), cuda_draft_logits(b->draft), 4 * device_logits.size(), cudaMemcpyDeviceToHost));
    CHECK(cudaMemcpy(hidden.data(), b->states + ((uint64_t)seq * STATES + (q.position - 1) % STATES) * hidden.size(), 4 * hidden.size(), cudaMemcpyDeviceToHost));
    if (answer.count != CHECK_STEPS) { printf("check: %u tokens instead of %u\n", answer.count, CHECK_STEPS); return 1; }
    for (uint32_t step = 0; step < CHECK_STEPS; step++) {
        double top = -1e30, total = 0;

        logits = reference_step(b, &q, token, hidden);
        for (uint32_t i = 0; i < b->target.suppress_count; i++) logits[b->target.suppress[i]] = -3e38f;
        for (float x : logits) top = std::max(top, (double)x);
        for (float x : logits) total += exp(x - top);
        token = answer.token[step];
        for (uint32_t i = 0; i < b->target.suppress_count; i++) logits[b->target.suppress[i]] = device_logits[b->target.suppress[i]] = 0;   /* not worth comparing */
        worst_gap = sampled ? 0 : std::max(worst_gap, top - logits[token]);
        worst_confidence = std::max(worst_confidence, fabs(log(answer.confidence[step] / (exp(logits[token] - top) / total))));
    }
    const double hidden_error = relative_error(device, hidden), logit_error = sampled ? relative_error(device_logits, logits) : 0;
    const double limit = b->spec.format == WEIGHT_FP8 ? 4e-3 : 3e-2;
    const bool fine = hidden_error < limit && logit_error < limit && worst_gap < 20 * limit && worst_confidence < 20 * limit;
    printf("check: sequence %u%s, %d chained steps: hidden %.2e, logits %.2e (relative), choice below the best by %.2e, log confidence off by %.2e: %s\n", seq, sampled ? " sampled" : "", CHECK_STEPS,
           hidden_error, logit_error, worst_gap, worst_confidence, fine ? "ok" : "WRONG");
    return !fine;
}

/* Rows in company answer what they answer alone, to the bit. */
static int check_company(struct bench *b, uint32_t context)
{
    struct cuda_draft_question q[CUDA_DRAFT_ROWS_MAX];
    struct cuda_draft_answer alone[CUDA_DRAFT_ROWS_MAX], together[CUDA_DRAFT_ROWS_MAX];
    int wrong = 0;

    for (uint32_t i = 0; i < CUDA_DRAFT_ROWS_MAX; i++) {
        q[i] = question(i, context, 6, i % 2);
        run_round(b, &q[i], 1, &alone[i]);
    }
    for (uint32_t rows = 2; rows <= CUDA_DRAFT_ROWS_MAX; rows++) {
        run_round(b, q, rows, together);
        for (uint32_t i = 0; i < rows; i++) wrong += together[i].count != alone[i].count || memcmp(together[i].token, alone[i].token, 4 * alone[i].count) != 0;
    }
    printf("check: answers of 2..8 rows against each row alone: %d differ\n", wrong);
    return wrong;
}

/* ---- time ---- */

static void bench_rows(struct bench *b, const struct settings *o, uint32_t rows, uint32_t steps, bool sampled, double gbps)
{
    struct cuda_draft_question q[CUDA_DRAFT_ROWS_MAX];
    struct cuda_draft_answer answers[CUDA_DRAFT_ROWS_MAX];
    std::vector<double> wall, device;
    cudaEvent_t from, to;
    cudaStream_t stream = (cudaStream_t)cuda_draft_stream(b->draft);

    CHECK(cudaEventCreate(&from));
    CHECK(cudaEventCreate(&to));
    for (uint32_t i = 0; i < rows; i++) q[i] = question(i, o->context, steps, sampled);
    for (int i = 0; i < 43; i++) {
        const auto begin = std::chrono::steady_clock::now();
        run_round(b, q, rows, answers);
        const auto end = std::chrono::steady_clock::now();
        if (i >= 3) wall.push_back(std::chrono::duration<double, std::micro>(end - begin).count());
    }
    for (int i = 0; i < 23; i++) {
        float ms;

        CHECK(cudaEventRecord(from, stream));
        run_round(b, q, rows, answers);
        CHECK(cudaEventRecord(to, stream));
        CHECK(cudaEventSynchronize(to));
        CHECK(cudaEventElapsedTime(&ms, from, to));
        if (i >= 3) device.push_back(1e3 * ms);
    }
    const uint64_t keys = o->context, kv = rows * ((uint64_t)(keys < 1024 ? keys : 1024) * 8 * 256 + keys * 512) * 4;
    const double mb = (double)(steps * b->plan.step_bytes + kv) / 1e6, floor_us = mb / gbps * 1e3;

    printf("%4u %5u %8s %9.1f %9.1f %9.1f %9.1f %6.0f %%\n", rows, steps, sampled ? "sampled" : "greedy", mb, floor_us, median(wall), median(device), 100 * floor_us / median(wall));
}

/* Where the time of one step goes, in block 0: for each barrier the work before it and the wait; behind sums of products also the norm. Means over the later steps. */
static void bench_parts(struct bench *b, const struct settings *o, uint32_t rows, bool sampled)
{
    static const char *const of_step[] = { "pre", "wait", "norm" }, *const of_layer[] = { "q", "wait", "attend", "wait", "join", "wait", "o", "wait", "norm", "gate_up", "wait", "down", "wait", "norm" };
    const uint32_t steps = 6, layer_marks = 14, step_marks = 3 + layer_marks * b->spec.layers + 2 + (!sampled ? 0 : rows == 1 ? 2 : 4);
    struct cuda_draft_question q[CUDA_DRAFT_ROWS_MAX];
    struct cuda_draft_answer answers[CUDA_DRAFT_ROWS_MAX];
    std::vector<unsigned long long> words(steps * step_marks + 64);
    std::vector<double> sum(step_marks, 0.0);
    void *device;

    CHECK(cudaMalloc(&device, 8 * words.size()));
    cuda_draft_trace(b->draft, device);
    for (uint32_t i = 0; i < rows; i++) q[i] = question(i, o->context, steps, sampled);
    for (int i = 0; i < 3; i++) run_round(b, q, rows, answers);
    CHECK(cudaStreamSynchronize((cudaStream_t)cuda_draft_stream(b->draft)));
    CHECK(cudaMemcpy(words.data(), device, 8 * words.size(), cudaMemcpyDeviceToHost));
    cuda_draft_trace(b->draft, NULL);
    CHECK(cudaFree(device));
    for (uint32_t i = step_marks; i < steps * step_marks; i++) sum[i % step_marks] += (double)(words[i] - words[i - 1]) / 1e3 / (steps - 1);
    printf("parts of a step, %u rows, %s, us:", rows, sampled ? "sampled" : "greedy");
    for (uint32_t i = 0; i < 3; i++) printf(" %s %.1f", of_step[i], sum[i]);
    for (uint32_t layer : { 1u, b->spec.layers - 1 }) {
        printf("; %s layer:", b->spec.layer_type[layer] ? "full" : "sliding");
        for (uint32_t i = 0; i < layer_marks; i++) printf(" %s %.1f", of_layer[i], sum[3 + layer * layer_marks + i]);
    }
    printf("; post+head %.1f wait %.1f", sum[3 + layer_marks * b->spec.layers], sum[4 + layer_marks * b->spec.layers]);
    if (sampled) printf(" gather %.1f wait %.1f", sum[5 + layer_marks * b->spec.layers], sum[6 + layer_marks * b->spec.layers]);
    if (sampled && rows > 1) printf(" choice %.1f wait %.1f", sum[step_marks - 2], sum[step_marks - 1]);   /* of one row it is part of pre */
    printf("\n");
}

/* What lies between two rounds: nothing; other kernels that read gigabytes, so that neither data nor instructions are left in a cache; an idle GPU. */
static void bench_cold(struct bench *b, const struct settings *o, bool sampled)
{
    static const char *const name[] = { "back to back", "behind 4 ms of reading", "behind 4 ms of nothing", "behind 4 ms of reading, then 1 ms of nothing" };
    const uint32_t steps = 6, step_marks = 3 + 14 * b->spec.layers + 2 + (sampled ? 2 : 0);
    const uint64_t bytes = std::min<uint64_t>(b->arena.bytes, 2ull << 30);
    std::vector<unsigned long long> words(steps * step_marks + 64);
    struct cuda_draft_question q = question(0, o->context, steps, sampled);
    struct cuda_draft_answer answer;
    uint32_t *sink;
    void *device;
    int sms;

    CHECK(cudaMalloc(&device, 8 * words.size()));
    CHECK(cudaMalloc(&sink, 4));
    CHECK(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0));
    for (int how = 0; how < 4; how++) {
        std::vector<double> wall, first, later;

        for (int i = 0; i < 25; i++) {
            cuda_draft_trace(b->draft, i % 2 ? device : NULL);
            for (int r = 0; r < 10 && how % 2; r++) read_kernel<<<sms * 4, 512>>>((const uint4 *)b->target_weights, bytes / 16, sink);
            CHECK(cudaDeviceSynchronize());
            if (how >= 2) usleep(how == 2 ? 4000 : 1000);
            const auto begin = std::chrono::steady_clock::now();
            run_round(b, &q, 1, &answer);
            const auto end = std::chrono::steady_clock::now();
            if (i < 5) continue;
            if (i % 2 == 0) {
                wall.push_back(std::chrono::duration<double, std::micro>(end - begin).count());
                continue;
            }
            CHECK(cudaStreamSynchronize((cudaStream_t)cuda_draft_stream(b->draft)));
            CHECK(cudaMemcpy(words.data(), device, 8 * words.size(), cudaMemcpyDeviceToHost));
            first.push_back((double)(words[step_marks - 1] - words[0]) / 1e3);
            later.push_back((double)(words[steps * step_marks - 1] - words[step_marks - 1]) / 1e3 / (steps - 1));
        }
        printf("1 row, 6 steps, %s, %s: %.1f us; its first step from the first mark on %.1f, a later one %.1f\n", sampled ? "sampled" : "greedy", name[how], median(wall), median(first), median(later));
    }
    cuda_draft_trace(b->draft, NULL);
    CHECK(cudaFree(device));
    CHECK(cudaFree(sink));
}

/* ---- main ---- */

static std::vector<uint32_t> list(const char *text)
{
    std::vector<uint32_t> out;

    for (const char *p = text; *p; p += *p == ',') out.push_back((uint32_t)strtoul(p, (char **)&p, 10));
    return out;
}

int main(int argc, char **argv)
{
    struct settings o = { WEIGHT_FP8, 1100, 0, 0, 0, true, false, false, false, { 1, 2, 4, 8 }, { 1, 6 } };
    struct bench b;
    int wrong = 0;

    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--no-check")) o.check = false;
        else if (!strcmp(argv[i], "--parts")) o.parts = true;
        else if (!strcmp(argv[i], "--lone")) o.lone = true;
        else if (!strcmp(argv[i], "--cold")) o.cold = true;
        else if (i + 1 >= argc) return fprintf(stderr, "%s: unknown option, or no value\n", argv[i]), 2;
        else if (!strcmp(argv[i], "--format")) o.format = !strcmp(argv[++i], "bf16") ? WEIGHT_BF16 : WEIGHT_FP8;
        else if (!strcmp(argv[i], "--context")) o.context = (uint32_t)atoi(argv[++i]);
        else if (!strcmp(argv[i], "--ring")) o.ring = (uint32_t)atoi(argv[++i]);
        else if (!strcmp(argv[i], "--choices")) o.choices = (uint32_t)atoi(argv[++i]);
        else if (!strcmp(argv[i], "--blocks")) o.blocks = (uint32_t)atoi(argv[++i]);
        else if (!strcmp(argv[i], "--rows")) o.rows = list(argv[++i]);
        else if (!strcmp(argv[i], "--steps")) o.steps = list(argv[++i]);
        else return fprintf(stderr, "%s: unknown option\n", argv[i]), 2;
    }
    open_bench(&b, &o);
    const double gbps = read_gbps(b.target_weights, std::min<uint64_t>(b.arena.bytes, 2ull << 30));
    printf("MTP assistant, %s, %u keys; a step reads %.1f MB; read bandwidth %.0f GB/s\n", o.format == WEIGHT_FP8 ? "FP8" : "BF16", o.context, (double)b.plan.step_bytes / 1e6, gbps);
    if (o.check) {
        for (uint32_t s = 0; s < 2; s++) wrong += check_row(&b, o.context, s, false) + check_row(&b, o.context, s, true);
        wrong += check_company(&b, o.context);
    }
    printf("rows steps   choice        MB  floor us  round us device us  floor/round\n");
    for (uint32_t rows : o.rows)
        for (uint32_t steps : o.steps)
            for (int sampled = 0; sampled < 2; sampled++) bench_rows(&b, &o, rows, steps, sampled, gbps);
    for (uint32_t rows : o.rows)
        if (o.parts) bench_parts(&b, &o, rows, false), bench_parts(&b, &o, rows, true);
    if (o.cold) bench_cold(&b, &o, false), bench_cold(&b, &o, true);
    cuda_draft_close(b.draft);
    return wrong != 0;
}
