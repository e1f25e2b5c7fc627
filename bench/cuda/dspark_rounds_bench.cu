/* bench/cuda/dspark_rounds_bench.cu - whole rounds of a DSpark head at Gemma 4 12B's shapes through its interface (cuda_dspark.h), for one sequence and several.
 *
 *   cuda_dspark_rounds_bench [--format fp8|bf16] [--context N] [--absorb N] [--sequences 1,2,4,8]
 *
 * A round: absorbing the newest N positions of each sequence (default 5: four drafts accepted), then blocks and seven guesses, from the first launch to the answers, seen by the
 * host; medians of 30. Weights and outputs of layers are constants: what is computed means nothing, and takes as long. Also: absorbing a prompt, 64 positions at a time.
 * floor = bytes that must cross HBM / read bandwidth measured in the same run. */
#include "bench/cuda/gemma_12b.h"
#include "bench/cuda/measure.cuh"
#include "kernels/cuda/cuda_dspark.h"
#include "kernels/cuda/dspark_layout.h"
#include <chrono>
#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

#define REPEATS 33
#define WINDOW 4096u
#define LAYERS_WANTED 0x1full

static void *filled(uint64_t bytes, int value)
{
    void *p;

    CHECK(cudaMalloc(&p, bytes));
    CHECK(cudaMemset(p, value, bytes));
    return p;
}

struct bench {
    struct cuda_dspark *d;
    struct cuda_dspark_spec spec;
    uint32_t context, absorb;
    uint64_t matrix_bytes;            /* of all that a round reads once; the Markov head apart */
};

static double round_us(struct bench *b, uint32_t sequences, float temperature)
{
    struct cuda_dspark_absorb item[CUDA_DSPARK_ROWS_MAX];
    struct cuda_dspark_question q[CUDA_DSPARK_ROWS_MAX];
    struct cuda_dspark_answer answer[CUDA_DSPARK_ROWS_MAX];
    std::vector<double> t;

    for (uint32_t i = 0; i < sequences; i++) {
        item[i] = { i, 1, b->context - b->absorb, b->absorb };
        q[i] = { i, 1000 + i, b->context, b->spec.block, temperature, 42 + i, 1, 0, 0 };
        OK(cuda_dspark_place(b->d, i, 0));
    }
    for (int i = 0; i < REPEATS; i++) {
        const auto begin = std::chrono::steady_clock::now();
        OK(cuda_dspark_absorb(b->d, item, sequences, LAYERS_WANTED));
        OK(cuda_dspark_round(b->d, q, sequences));
        while (cuda_dspark_wait(b->d, 1000000, answer) != 0) continue;
        const auto end = std::chrono::steady_clock::now();
        if (i >= 3) t.push_back(std::chrono::duration<double, std::micro>(end - begin).count());
    }
    return median(t);
}

static double prompt_us(struct bench *b, uint32_t positions)
{
    std::vector<double> t;

    for (int i = 0; i < 5; i++) {
        CHECK(cudaDeviceSynchronize());
        const auto begin = std::chrono::steady_clock::now();
        for (uint32_t at = 0; at < positions; at += CUDA_DSPARK_ABSORB_MAX) {
            const struct cuda_dspark_absorb item = { 0, 1, at, CUDA_DSPARK_ABSORB_MAX };
            OK(cuda_dspark_absorb(b->d, &item, 1, LAYERS_WANTED));
        }
        CHECK(cudaStreamSynchronize((cudaStream_t)cuda_dspark_stream(b->d)));
        const auto end = std::chrono::steady_clock::now();
        if (i) t.push_back(std::chrono::duration<double, std::micro>(end - begin).count());
    }
    return median(t);
}

static uint64_t bytes_of(const struct arena_matrix *m) { return packed_bytes(m->format, m->rows, m->k); }

static void open_bench(struct bench *b, uint32_t format, uint32_t choices)
{
    const struct cuda_model_spec target = gemma_12b_target(6, WEIGHT_FP8, 2);
    struct cuda_dspark_options o = {};
    struct dspark_plan plan;
    struct arena arena;

    b->spec = { 3840, 15360, 262144, 5, 16, 1, 512, 5, 7, 256, 4, format, choices, 1, 0, 0, 1e-6f, 30.0f, 1.0f, 62.0f, 1e6, 64 };
    OK(dspark_plan_make(&plan, &b->spec));
    OK(arena_plan(&arena, &target));
    o.weights_device = filled(plan.bytes, 0x2c);      /* 2^-1.4 and smaller, whatever the format: no NaN */
    o.target_device = filled(arena.bytes, 0x2c);
    o.features.rows = WINDOW + 32, o.features.places = CUDA_DSPARK_ROWS_MAX, o.features.sources_max = 5, o.features.element_bytes = 2;
    o.features.row_bytes = 64 + 5 * 3840 * 2;
    o.features.device = filled(o.features.row_bytes * o.features.rows * o.features.places, 0);
    o.window = WINDOW, o.context_max = 16384;
    std::vector<uint32_t> choice(choices);
    for (uint32_t i = 0; i < choices; i++) choice[i] = (uint32_t)((uint64_t)i * b->spec.vocab / choices);
    if (choices) OK(cuda_dspark_weights_put(&b->spec, (void *)o.weights_device, CUDA_DSPARK_CHOICE, 0, choice.data(), choices));
    OK(cuda_dspark_open(&b->d, &b->spec, &target, &o, 0.0f));
    for (uint32_t i = 0; i < b->spec.sources; i++) b->matrix_bytes += bytes_of(&plan.fc[i]);
    b->matrix_bytes += bytes_of(&plan.keys) + bytes_of(&plan.head);
    for (uint32_t i = 0; i < b->spec.layers; i++)
        b->matrix_bytes += bytes_of(&plan.layer[i].qkv) + bytes_of(&plan.layer[i].o) + bytes_of(&plan.layer[i].gate_up) + bytes_of(&plan.layer[i].down);
}

int main(int argc, char **argv)
{
    std::vector<uint32_t> sequences = { 1, 2, 4, 8 };
    uint32_t format = WEIGHT_FP8, choices = 0;
    struct bench b = {};

    b.context = 1100, b.absorb = 5;
    for (int i = 1; i < argc; i++) {
        if (i + 1 < argc && !strcmp(argv[i], "--format")) format = !strcmp(argv[++i], "bf16") ? WEIGHT_BF16 : WEIGHT_FP8;
        else if (i + 1 < argc && !strcmp(argv[i], "--context")) b.context = (uint32_t)atoi(argv[++i]);
        else if (i + 1 < argc && !strcmp(argv[i], "--absorb")) b.absorb = (uint32_t)atoi(argv[++i]);
        else if (i + 1 < argc && !strcmp(argv[i], "--choices")) choices = (uint32_t)atoi(argv[++i]);
        else if (i + 1 < argc && !strcmp(argv[i], "--sequences")) {
            sequences.clear();
            for (char *p = argv[++i]; *p; p += *p == ',') sequences.push_back((uint32_t)strtoul(p, &p, 10));
        } else return fprintf(stderr, "unknown option %s\n", argv[i]), 2;
    }
    if (b.absorb == 0 || b.absorb > 8 || b.context < 8) return fprintf(stderr, "--absorb: 1 to 8; --context: at least 8\n"), 2;
    open_bench(&b, format, choices);
    void *data = filled(2ull << 30, 1);
    const double gbps = read_gbps(data, 2ull << 30);
    const uint32_t rows = dspark_head_rows(&b.spec);
    const uint64_t markov = dspark_markov_bytes(rows, b.spec.block, format == WEIGHT_FP8);
    printf("DSpark rounds, %s, %u tokens to choose from, %u positions, %u absorbed; read bandwidth %.0f GB/s\nsequences      MB  floor us  greedy us  sampled us  floor/greedy\n", format == WEIGHT_FP8 ? "FP8" : "BF16",
           rows, b.context, b.absorb, gbps);
    for (uint32_t n : sequences) {
        if (n == 0 || n > CUDA_DSPARK_ROWS_MAX) return fprintf(stderr, "--sequences: 1 to %u\n", CUDA_DSPARK_ROWS_MAX), 2;
        const uint64_t seen = b.context < WINDOW ? b.context : WINDOW, keys = n * (uint64_t)b.spec.layers * seen * DSPARK_DIM * 4, logits = (n - 1) * (uint64_t)b.spec.block * rows * 4;
        const double mb = (double)(b.matrix_bytes + markov + keys + logits) / 1e6, floor_us = mb / gbps * 1e3, greedy = round_us(&b, n, 0.0f), sampled = round_us(&b, n, 1.0f);

        printf("%9u %7.0f %9.0f %10.0f %11.0f %11.0f %%\n", n, mb, floor_us, greedy, sampled, 100 * floor_us / greedy);
    }
    printf("absorbing %u positions, %u at a time: %.0f us\n", WINDOW, CUDA_DSPARK_ABSORB_MAX, prompt_us(&b, WINDOW));
    cuda_dspark_close(b.d);
    return 0;
}
