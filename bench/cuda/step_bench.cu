/* bench/cuda/step_bench.cu - the decode step of Gemma 4 12B (or Gemma 3 12B) on random weights: each part alone, the whole step, and the floor.
 *
 *   cuda_step_bench [--model gemma-4-12b|gemma-3-12b] [--format fp8|fp8-token|fp8-static|bf16|block|fp4|fp4-mlp] [--kv bf16|fp8] [--layers N] [--context N] [--rows 1,2,4,8,16] [--window N] [--ring N] [--no-parts] [--wait N] [--l2 slots] [--stride N] [--pace ns] [--trace] [--sweep window:wait:ring:l2:stride:pace,...]
 *
 * Fills 12B weights and KV on the device (no checkpoint needed), measures the read bandwidth in the same run, and prints a table.
 * floor = bytes that must cross HBM / measured read bandwidth. Times are medians of graph replays by events; "wall" is
 * launch to flag seen by the host, one step after the other. "one" = rows are one sequence's verify block (16: two of 8), "many" = one row per sequence. */
#include "bench/cuda/measure.cuh"
#include "bench/cuda/gemma_12b.h"
#include "bench/cuda/shapes.cuh"
#include "kernels/cuda/arena.h"
#include "kernels/cuda/cuda_weights.h"
#include <algorithm>
#include <chrono>
#include <cuda_runtime.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

extern "C" int cuda_fill_normal(void *out_bf16, uint64_t n, float deviation, uint64_t seed);

struct format { const char *name; uint32_t attention, mlp, activation; };      /* activation: enum stored_activation */

static const struct format formats[] = { { "fp8", WEIGHT_FP8, WEIGHT_FP8, 0 }, { "bf16", WEIGHT_BF16, WEIGHT_BF16, 0 }, { "block", WEIGHT_FP8_BLOCK, WEIGHT_FP8_BLOCK, 0 },
                                         { "fp4", WEIGHT_FP4, WEIGHT_FP4, 0 }, { "fp4-mlp", WEIGHT_BF16, WEIGHT_FP4, 0 },
                                         { "fp8-token", WEIGHT_FP8, WEIGHT_FP8, 1 }, { "fp8-static", WEIGHT_FP8, WEIGHT_FP8, 2 } };

static const struct format *find_format(const char *name)
{
    for (const struct format &f : formats)
        if (!strcmp(f.name, name)) return &f;
    fprintf(stderr, "unknown format %s\n", name);
    exit(2);
}

struct settings {
    const struct format *format;
    uint32_t kv_bytes;                /* of an element of the KV cache: 2 (bf16) or 1 (E4M3) */
    uint32_t layers, context, window_slots, ring_slots, wait_slots, l2_slots, l2_stride, l2_pace_ns;
    bool parts, trace;
    std::vector<uint32_t> rows;
    const char *model = "gemma-4-12b";
};

/* Sequences with pages of their own: enough for one per row. */
static uint32_t seqs_of(const struct settings *o)
{
    uint32_t seqs = 16;

    for (uint32_t rows : o->rows) seqs = rows > seqs ? rows : seqs;
    return seqs;
}

static struct cuda_model_spec gemma_12b(const struct format *format, uint32_t layers, uint32_t kv_bytes)
{
    struct cuda_model_spec s = gemma_12b_target(layers, format->attention, kv_bytes);

    s.suppress_count = 2, s.suppress[0] = 258883, s.suppress[1] = 258882;
    for (uint32_t i = 0; i < layers; i++) {
        s.layer[i].stored.format[CUDA_GATE] = s.layer[i].stored.format[CUDA_UP] = s.layer[i].stored.format[CUDA_DOWN] = (uint8_t)format->mlp;
        for (int t = CUDA_Q; t <= CUDA_DOWN; t++) s.layer[i].stored.activation[t] = (uint8_t)format->activation, s.layer[i].stored.input_scale[t] = format->activation == 2 ? 0.02f : 0.0f;
    }
    return s;
}

/* ---- what must cross HBM ---- */

static uint64_t matrix_bytes(const struct arena_matrix *m) { return packed_bytes(m->format, m->rows, m->k); }

static uint64_t part_bytes(const struct arena *a, const struct cuda_model_spec *s, uint32_t part, uint32_t context, uint32_t seqs)
{
    uint64_t bytes = 0;

    if (part == CUDA_PART_HEAD) return matrix_bytes(&a->head);
    for (uint32_t i = 0; i < s->layers; i++) {
        const struct arena_layer *l = &a->layer[i];
        const uint32_t keys = s->layer[i].type == CUDA_SLIDING && context > s->window ? s->window : context;

        if (part == CUDA_PART_QKV) bytes += matrix_bytes(&l->qkv);
        if (part == CUDA_PART_O) bytes += matrix_bytes(&l->o);
        if (part == CUDA_PART_GATE_UP) bytes += matrix_bytes(&l->gate_up);
        if (part == CUDA_PART_DOWN) bytes += matrix_bytes(&l->down);
        if (part == CUDA_PART_ATTN) bytes += (uint64_t)seqs * keys * spec_kv_rows(s, i) * 2 * spec_kv_bytes(s, i);
    }
    return bytes;
}

/* Codes of E4M3 below 2 in size. */
__global__ void fill_codes(uint32_t *to, uint64_t words, uint32_t seed)
{
    for (uint64_t i = blockIdx.x * (uint64_t)blockDim.x + threadIdx.x; i < words; i += (uint64_t)gridDim.x * blockDim.x) {
        uint32_t x = (uint32_t)i * 0x9e3779b9u + seed;

        x = (x ^ x >> 16) * 0x85ebca6bu, x = (x ^ x >> 13) * 0xc2b2ae35u;
        to[i] = (x ^ x >> 16) & 0xbfbfbfbfu;
    }
}

/* ---- the model under test ---- */

struct model {
    struct cuda_model_spec spec;
    struct arena arena;
    struct cuda_backend *backend;
    void *weights, *kv[2];
    uint32_t ring_pages, full_pages;
};

/* A handle over the model's memory with the tuning of `o`. */
static struct cuda_backend *open_backend(const struct model *m, const struct settings *o, uint32_t seqs)
{
    struct cuda_backend *backend;
    struct cuda_options options;

    memset(&options, 0, sizeof options);
    CHECK(cudaMalloc((void **)&options.states_device, 4ull * seqs * STEP_STATES_ROWS * m->spec.hidden));
    options.weights_device = m->weights, options.kv_device[0] = m->kv[0], options.kv_device[1] = m->kv[1];
    options.seqs_max = seqs, options.context_max = m->full_pages * 32, options.ring_pages = m->ring_pages;
    options.window_slots = o->window_slots, options.ring_slots = o->ring_slots, options.wait_slots = o->wait_slots;
    for (uint32_t rows : o->rows) options.graph_rows_mask |= rows > 64 ? 128 + 31 : rows > 32 ? 64 + 31 : rows > 16 ? 32 + 31 : 31;
    options.l2_slots = o->l2_slots, options.l2_stride = o->l2_stride, options.l2_pace_ns = o->l2_pace_ns;
    OK(cuda_backend_open(&backend, &m->spec, &options));
    for (uint32_t s = 0; s < seqs; s++)
        for (uint32_t t = 0; t < 2; t++) {
            std::vector<uint32_t> pages(t ? m->full_pages : m->ring_pages);

            for (uint32_t i = 0; i < pages.size(); i++) pages[i] = s * (uint32_t)pages.size() + i;
            OK(cuda_backend_pages(backend, s, (enum cuda_layer_type)t, 0, pages.data(), (uint32_t)pages.size()));
        }
    return backend;
}

static void open_model(struct model *m, const struct settings *o, uint32_t seqs)
{
    memset(m, 0, sizeof *m);
    m->spec = gemma_12b(o->format, o->layers, o->kv_bytes);
    if (shape_apply(&m->spec, o->model)) fprintf(stderr, "unknown model %s\n", o->model), exit(2);
    OK(arena_plan(&m->arena, &m->spec));
    m->ring_pages = 33 + 1;
    m->full_pages = (o->context + 64 + 31) / 32;
    CHECK(cudaMalloc(&m->weights, m->arena.bytes));
    const uint64_t bytes[2] = { m->spec.page_bytes[0] * m->ring_pages * seqs, m->spec.page_bytes[1] * m->full_pages * seqs };
    for (int t = 0; t < 2; t++) {
        CHECK(cudaMalloc(&m->kv[t], bytes[t]));
        if (o->kv_bytes == 2) OK(cuda_fill_normal(m->kv[t], bytes[t] / 2, 1.0f, 77 + t));
        else fill_codes<<<1024, 256>>>((uint32_t *)m->kv[t], bytes[t] / 4, 77 + t);
    }
    m->backend = open_backend(m, o, seqs);
    struct cuda_weights *weights;
    OK(cuda_weights_open(&weights, &m->spec, m->weights));
    OK(cuda_weights_fill_random(weights, 1));
    cuda_weights_close(weights);
}

static struct step_state make_state(uint32_t rows, bool many, uint32_t context, uint64_t step)
{
    const uint32_t per = many ? 1 : rows > 8 ? 8 : rows;
    struct step_state s;

    memset(&s, 0, sizeof s);
    s.rows = rows, s.groups = rows / per, s.step = step;
    for (uint32_t g = 0; g < s.groups; g++) s.group[g].first_row = g * per, s.group[g].rows = per, s.group[g].first_position = context - 1, s.group[g].seq = g;
    for (uint32_t i = 0; i < rows; i++) {
        s.row[i].token = 1000 + i, s.row[i].position = context - 1 + i % per, s.row[i].group = i / per;
        s.sampling[i].temperature = 1.0f, s.sampling[i].top_k = 64, s.sampling[i].top_p = 0.95f, s.sampling[i].seed = i;
    }
    return s;
}

static uint64_t step_number = 1;

static double graph_us(struct model *m, uint32_t rows, uint32_t parts, int replays)
{
    cudaStream_t stream = (cudaStream_t)cuda_backend_stream(m->backend);
    std::vector<float> t;
    cudaEvent_t a, b;
    void *graph;

    OK(cuda_backend_graph(m->backend, rows, parts, &graph));
    CHECK(cudaEventCreate(&a));
    CHECK(cudaEventCreate(&b));
    for (int i = 0; i < replays + 3; i++) {
        float ms;

        CHECK(cudaEventRecord(a, stream));
        CHECK(cudaGraphLaunch((cudaGraphExec_t)graph, stream));
        CHECK(cudaEventRecord(b, stream));
        CHECK(cudaEventSynchronize(b));
        CHECK(cudaEventElapsedTime(&ms, a, b));
        if (i >= 3) t.push_back(ms);
    }
    CHECK(cudaGraphExecDestroy((cudaGraphExec_t)graph));
    return median(t) * 1e3;
}

static double wall_us(struct model *m, uint32_t rows, bool many, uint32_t context)
{
    std::vector<float> t;
    struct step_result result;

    for (int i = 0; i < 33; i++) {
        const struct step_state s = make_state(rows, many, context, step_number++);
        const auto a = std::chrono::steady_clock::now();

        OK(cuda_backend_step(m->backend, &s));
        OK(cuda_backend_wait(m->backend, s.step, 2000000, &result));
        const auto b = std::chrono::steady_clock::now();
        if (i >= 3) t.push_back(std::chrono::duration<float, std::micro>(b - a).count());
    }
    return median(t);
}

/* One traced step: for each kind of kernel the mean over the layers of how its blocks follow the end of the kernel before (us). */
static void trace_rows(struct model *m, const struct settings *o, uint32_t rows, bool many)
{
    static const char *const name[] = { "qkv", "attn", "combine", "o", "norm1", "gate_up", "down", "norm2" };
    const uint32_t per = 8, kernels = per * m->spec.layers + 1;
    std::vector<unsigned long long> words(kernels * 8), first(kernels * 8);
    const struct step_state s = make_state(rows, many, o->context, step_number - 1);
    void *device, *graph;

    for (uint32_t i = 0; i < kernels * 8; i++) first[i] = i % 2 ? 0 : ~0ull;
    CHECK(cudaMalloc(&device, 8 * words.size()));
    cuda_backend_trace(m->backend, device);
    OK(cuda_backend_put_state(m->backend, &s));
    OK(cuda_backend_graph(m->backend, rows, ((1u << CUDA_PARTS) - 1) & ~(1u << CUDA_PART_SAMPLE), &graph));
    for (int i = 0; i < 3; i++) {
        CHECK(cudaMemcpy(device, first.data(), 8 * first.size(), cudaMemcpyHostToDevice));
        CHECK(cudaGraphLaunch((cudaGraphExec_t)graph, (cudaStream_t)cuda_backend_stream(m->backend)));
        CHECK(cudaDeviceSynchronize());
    }
    CHECK(cudaMemcpy(words.data(), device, 8 * words.size(), cudaMemcpyDeviceToHost));
    for (uint32_t k = 0; k < 2 * per; k++) {
        const uint32_t type = k < per ? CUDA_SLIDING : CUDA_FULL;
        double sum[6] = { 0 };
        uint32_t n = 0;

        if (k % per == 0)
            printf("trace, %u rows of %s, mean over %s layers, us after the end of the kernel before: first start, last start, first past wait, last past wait, first end, last end\n", rows,
                   many ? "as many sequences" : "blocks", type == CUDA_FULL ? "full" : "sliding");
        for (uint32_t i = 1; i < m->spec.layers; i++) {
            if (m->spec.layer[i].type != type || m->spec.layer[i - 1].type != CUDA_SLIDING) continue;
            const unsigned long long *w = &words[(i * per + k % per) * 8], base = w[5 - 8];

            for (int e = 0; e < 6; e++) sum[e] += (double)(long long)(w[e] - base) / 1e3;
            n++;
        }
        printf("  %-8s", name[k % per]);
        for (int e = 0; e < 6; e++) printf(" %7.2f", n ? sum[e] / n : 0.0);
        printf("\n");
    }
    cuda_backend_trace(m->backend, NULL);
    CHECK(cudaGraphExecDestroy((cudaGraphExec_t)graph));
    CHECK(cudaFree(device));
}

static const char *part_name[CUDA_PARTS] = { "embed", "qkv", "attn", "o", "norm", "gate_up", "down", "head", "sample" };

static void bench_rows(struct model *m, const struct settings *o, uint32_t rows, bool many, double gbps)
{
    const struct step_state s = make_state(rows, many, o->context, step_number - 1);   /* the flag must stay what the last step left */
    const uint32_t seqs = s.groups;
    uint64_t bytes = 0;
    double each[CUDA_PARTS] = { 0 };

    OK(cuda_backend_put_state(m->backend, &s));
    for (uint32_t p = 0; p < CUDA_PARTS; p++) bytes += part_bytes(&m->arena, &m->spec, p, o->context, seqs);
    if (o->parts && (!many || rows > 16))
        for (uint32_t p = 0; p < CUDA_PARTS; p++)
            each[p] = graph_us(m, rows, 1u << p, 10);
    const double wall = wall_us(m, rows, many, o->context);
    const double step = graph_us(m, rows, (1u << CUDA_PARTS) - 1, 30), floor_us = (double)bytes / gbps / 1e3;

    printf("%-4s %4u %8.3f %8.3f %8.3f %7.3f %9.3f", many ? "many" : "one", rows, (double)bytes / 1e9, floor_us / 1e3, step / 1e3, floor_us / step, wall / 1e3);
    if (o->parts && (!many || rows > 16))
        for (uint32_t p = 0; p < CUDA_PARTS; p++) printf(" %8.1f", each[p]);
    printf("\n");
    fflush(stdout);
}

/* "window:wait:ring:l2 slots:stride:pace,...": the whole step for each tuning over the same weights. */
static void sweep(struct model *m, struct settings o, char *list, double gbps)
{
    for (char *p = strtok(list, ","); p; p = strtok(NULL, ",")) {
        if (sscanf(p, "%u:%u:%u:%u:%u:%u", &o.window_slots, &o.wait_slots, &o.ring_slots, &o.l2_slots, &o.l2_stride, &o.l2_pace_ns) != 6) exit(2);
        struct model other = *m;
        other.backend = open_backend(m, &o, seqs_of(&o));
        printf("tuning %-20s", p);
        for (uint32_t rows : o.rows) {
            const struct step_state s = make_state(rows, rows > 16, o.context, step_number - 1);
            uint64_t bytes = 0;

            struct step_result result;
            struct step_state launched = s;

            launched.step = step_number++;
            OK(cuda_backend_put_state(other.backend, &s));        /* says for which kind of rows graphs are made */
            OK(cuda_backend_step(other.backend, &launched));      /* the graph copies what the last step left in host memory */
            OK(cuda_backend_wait(other.backend, launched.step, 2000000, &result));
            for (uint32_t i = 0; i < CUDA_PARTS; i++) bytes += part_bytes(&m->arena, &m->spec, i, o.context, s.groups);
            const double step = graph_us(&other, rows, (1u << CUDA_PARTS) - 1, 15);
            printf("  %2u: %.3f ms %.3f", rows, step / 1e3, (double)bytes / gbps / 1e3 / step);
        }
        printf("\n");
        fflush(stdout);
        cuda_backend_close(other.backend);
    }
}

int main(int argc, char **argv)
{
    struct settings o = { &formats[0], 2, 48, 1100, 0, 0, 0, CUDA_L2_DEFAULT, 0, 0, true, false, {} };
    struct model m;
    char *tunings = NULL;

    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--no-parts")) o.parts = false;
        else if (!strcmp(argv[i], "--trace")) o.trace = true;
        else if (i + 1 < argc && !strcmp(argv[i], "--model")) o.model = argv[++i];
        else if (i + 1 < argc && !strcmp(argv[i], "--format")) o.format = find_format(argv[++i]);
        else if (i + 1 < argc && !strcmp(argv[i], "--kv")) o.kv_bytes = strcmp(argv[++i], "fp8") ? 2 : 1;
        else if (i + 1 < argc && !strcmp(argv[i], "--layers")) o.layers = (uint32_t)atoi(argv[++i]);
        else if (i + 1 < argc && !strcmp(argv[i], "--context")) o.context = (uint32_t)atoi(argv[++i]);
        else if (i + 1 < argc && !strcmp(argv[i], "--window")) o.window_slots = (uint32_t)atoi(argv[++i]);
        else if (i + 1 < argc && !strcmp(argv[i], "--wait")) o.wait_slots = (uint32_t)atoi(argv[++i]);
        else if (i + 1 < argc && !strcmp(argv[i], "--sweep")) tunings = argv[++i];
        else if (i + 1 < argc && !strcmp(argv[i], "--l2")) o.l2_slots = (uint32_t)atoi(argv[++i]);
        else if (i + 1 < argc && !strcmp(argv[i], "--stride")) o.l2_stride = (uint32_t)atoi(argv[++i]);
        else if (i + 1 < argc && !strcmp(argv[i], "--pace")) o.l2_pace_ns = (uint32_t)atoi(argv[++i]);
        else if (i + 1 < argc && !strcmp(argv[i], "--ring")) o.ring_slots = (uint32_t)atoi(argv[++i]);
        else if (i + 1 < argc && !strcmp(argv[i], "--rows")) for (char *p = strtok(argv[++i], ","); p; p = strtok(NULL, ",")) o.rows.push_back((uint32_t)atoi(p));
        else { fprintf(stderr, "unknown option %s\n", argv[i]); return 2; }
    }
    if (o.rows.empty()) o.rows = { 1, 2, 4, 8, 16 };
    open_model(&m, &o, seqs_of(&o));
    const double gbps = read_gbps(m.weights, m.arena.bytes < (8ull << 30) ? m.arena.bytes : 8ull << 30);

    printf("%s, weights %s + bf16 head, KV %s, %u layers, context %u, window %u wait %u ring %u l2 %d slots, stride %u, pace %u (0: default): read bandwidth %.0f GB/s\n", o.model, o.format->name, o.kv_bytes == 1 ? "fp8" : "bf16", o.layers, o.context,
           o.window_slots, o.wait_slots, o.ring_slots, o.l2_slots == CUDA_L2_DEFAULT ? -1 : (int)o.l2_slots, o.l2_stride, o.l2_pace_ns, gbps);
    printf("%-4s %4s %8s %8s %8s %7s %9s", "kind", "rows", "GB", "floor ms", "step ms", "share", "wall ms");
    for (uint32_t p = 0; p < CUDA_PARTS && o.parts; p++) printf(" %8s", part_name[p]);
    printf("%s\n", o.parts ? "  (us, each part alone, all layers)" : "");
    if (tunings) {
        sweep(&m, o, tunings, gbps);
        return 0;
    }
    for (uint32_t rows : o.rows) bench_rows(&m, &o, rows, false, gbps);
    for (uint32_t rows : o.rows)
        if (rows > 1) bench_rows(&m, &o, rows, true, gbps);
    for (uint32_t rows : o.rows)
        if (o.trace) trace_rows(&m, &o, rows, rows > 16);
    cuda_backend_close(m.backend);
    return 0;
}
