/* bench/cuda/plain_bench.cu - time of decode steps and prefills of shapes that kernels/cuda/plain.h computes, with random weights.
 *
 *   build/bench/cuda_plain_bench [demo|gemma-3-12b]      default: both
 *
 * "demo" is the shape of model/demo; "gemma-3-12b" that of Gemma 3 12B in BF16 with a cache of F32, which the faster kernels do not take (24 GB of GPU memory). Steps of one row for each of several sequences;
 * the time is the host's, from the launch to the flag, the mean of many. Exit 0, 1 on an error, 77 without a GPU. */
#include "kernels/cuda/cuda_prefill.h"
#include "kernels/cuda/cuda_weights.h"
#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <vector>

#define SEQS 32
#define PAGE_TOKENS 32
#define PREFILL_ROWS 2048

static double now_us()
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

static void ok(int rc, const char *what)
{
    if (rc == 0) return;
    fprintf(stderr, "%s: error %d (%s)\n", what, rc, cuda_backend_error());
    exit(1);
}

static void cuda_ok(cudaError_t status, const char *what)
{
    if (status == cudaSuccess) return;
    fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(status));
    exit(1);
}

struct shape {
    const char *name;
    uint32_t hidden, intermediate, vocab, layers, every;   /* every so many layers one is full */
    uint32_t q_heads, kv_heads[2], head_dim[2], window, context;
    bool gemma3;
};

static const struct shape shapes[] = {
    { "demo", 256, 768, 2048, 6, 3, 4, { 2, 1 }, { 256, 512 }, 256, 8192, false },
    { "gemma-3-12b", 3840, 15360, 262208, 48, 6, 16, { 8, 8 }, { 256, 256 }, 1024, 8192, true },
};

static struct cuda_model_spec make_spec(const struct shape &s)
{
    struct cuda_model_spec spec = {};

    spec.hidden = s.hidden, spec.intermediate = s.intermediate, spec.vocab = s.vocab, spec.layers = s.layers, spec.q_heads = s.q_heads;
    spec.window = s.window;
    spec.format = WEIGHT_BF16;
    spec.norm_plus_one = s.gemma3, spec.has_v_norm = !s.gemma3;
    spec.norm_eps = 1e-6f, spec.softcap = s.gemma3 ? 0.0f : 30.0f, spec.embed_scale = 16.0f, spec.attention_scale = s.gemma3 ? 0.0625f : 1.0f;
    for (int type = 0; type < 2; type++) {
        spec.kv_heads[type] = s.kv_heads[type], spec.head_dim[type] = s.head_dim[type];
        spec.rope_theta[type] = type ? 1e6 : 1e4;
        spec.rope_divisor[type] = s.gemma3 && type ? 8.0 : 1.0;
        spec.rope_turned[type] = s.head_dim[type] / (type && !s.gemma3 ? 8 : 2);
    }
    for (uint32_t i = 0; i < s.layers; i++) {
        const uint32_t type = i % s.every == s.every - 1 ? CUDA_FULL : CUDA_SLIDING;
        const uint64_t half = (s.gemma3 ? 4ull : 2ull) * s.kv_heads[type] * s.head_dim[type] * PAGE_TOKENS;

        spec.layer[i] = { type, s.gemma3 || type == CUDA_SLIDING, spec.page_bytes[type], spec.page_bytes[type] + half, {} };
        spec.page_bytes[type] += 2 * half;
    }
    return spec;
}

struct rig {
    struct cuda_backend *backend;
    struct cuda_prefill *prefill;
    uint64_t step;
};

static struct rig open_rig(const struct shape &s, const struct cuda_model_spec &spec, std::vector<void *> &owned)
{
    const uint32_t ring_pages = (s.window - 1 + PREFILL_ROWS + PAGE_TOKENS - 1) / PAGE_TOKENS, full_pages = s.context / PAGE_TOKENS;
    const uint32_t counts[2] = { ring_pages, full_pages };
    struct cuda_options options = {};
    struct cuda_weights *weights;
    struct rig rig = {};
    void *memory[3];
    const uint64_t bytes[3] = { cuda_weights_bytes(&spec), spec.page_bytes[0] * ring_pages * SEQS, spec.page_bytes[1] * full_pages * SEQS };

    for (int i = 0; i < 3; i++) {
        cuda_ok(cudaMalloc(&memory[i], bytes[i]), "memory");
        cuda_ok(cudaMemset(memory[i], 0, bytes[i]), "memory");
        owned.push_back(memory[i]);
    }
    cuda_ok(cudaDeviceSynchronize(), "memory");
    ok(cuda_weights_open(&weights, &spec, memory[0]), "weights");
    ok(cuda_weights_fill_random(weights, 1), "weights");
    cuda_weights_close(weights);
    options.weights_device = memory[0], options.kv_device[0] = memory[1], options.kv_device[1] = memory[2];
    options.seqs_max = SEQS, options.context_max = s.context, options.ring_pages = ring_pages, options.graph_rows_mask = 63;
    ok(cuda_backend_open(&rig.backend, &spec, &options), "backend");
    ok(cuda_prefill_open(&rig.prefill, &spec, &options, PREFILL_ROWS), "prefill");
    for (uint32_t seq = 0; seq < SEQS; seq++)
        for (int type = 0; type < 2; type++) {
            std::vector<uint32_t> pages(counts[type]);

            for (uint32_t i = 0; i < counts[type]; i++) pages[i] = seq * counts[type] + i;
            ok(cuda_backend_pages(rig.backend, seq, (enum cuda_layer_type)type, 0, pages.data(), counts[type]), "pages");
            ok(cuda_prefill_pages(rig.prefill, seq, (enum cuda_layer_type)type, 0, pages.data(), counts[type]), "pages");
        }
    return rig;
}

static void bench_step(struct rig &rig, uint32_t rows, uint32_t position, int repeats)
{
    static struct step_state state;
    static struct step_result result;
    double start = 0;

    memset(&state, 0, sizeof state);
    state.rows = state.groups = rows;
    for (uint32_t i = 0; i < rows; i++) {
        state.group[i] = { i, 1, position, i };
        state.row[i] = { 5 + i, position, i, 0 };
    }
    for (int i = -5; i < repeats; i++) {
        if (i == 0) start = now_us();
        state.step = ++rig.step;
        ok(cuda_backend_step(rig.backend, &state), "step");
        ok(cuda_backend_wait(rig.backend, rig.step, 10000000, &result), "wait");
    }
    printf("  step of %2u rows at position %4u     %9.1f us\n", rows, position, (now_us() - start) / repeats);
}

static void bench_prefill(struct rig &rig, uint32_t rows, uint32_t position, int repeats)
{
    const struct cuda_prefill_span span = { 0, position, 0, rows, 0 };
    const std::vector<uint32_t> tokens(rows, 7);
    double start = 0;

    for (int i = -1; i < repeats; i++) {
        if (i == 0) start = now_us();
        ok(cuda_prefill_run(rig.prefill, &span, 1, tokens.data()), "prefill");
        ok(cuda_prefill_wait(rig.prefill, 60000000), "prefill");
    }
    printf("  prefill of %4u rows from position %4u %9.1f us\n", rows, position, (now_us() - start) / repeats);
}

static void bench(const struct shape &s)
{
    const struct cuda_model_spec spec = make_spec(s);
    const int repeats = s.hidden < 1024 ? 200 : 10;
    std::vector<void *> owned;

    printf("%s: %.2f GB of weights\n", s.name, (double)cuda_weights_bytes(&spec) * 1e-9);
    struct rig rig = open_rig(s, spec, owned);
    for (uint32_t rows = 1; rows <= 32; rows *= 2) bench_step(rig, rows, 145, repeats);
    bench_step(rig, 1, 4000, repeats);
    bench_step(rig, 16, 4000, repeats);
    bench_prefill(rig, 145, 0, 1 + repeats / 20);
    bench_prefill(rig, 512, 0, 1 + repeats / 20);
    bench_prefill(rig, 2048, 0, 1);
    bench_prefill(rig, 2048, 4096, 1);
    cuda_prefill_close(rig.prefill);
    cuda_backend_close(rig.backend);
    for (void *p : owned) cudaFree(p);
}

int main(int argc, char **argv)
{
    int devices = 0, done = 0;

    setvbuf(stdout, NULL, _IOLBF, 0);
    if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
        puts("skip: no GPU");
        return 77;
    }
    for (const struct shape &s : shapes)
        if (argc < 2 || strcmp(argv[1], s.name) == 0) bench(s), done++;
    if (done == 0) fprintf(stderr, "%s: no such shape; demo or gemma-3-12b\n", argv[1]);
    return done ? 0 : 1;
}
