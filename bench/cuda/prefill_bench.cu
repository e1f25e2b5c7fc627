/* bench/cuda/prefill_bench.cu - the prefill of Gemma 4 12B (or Gemma 3 12B) on random weights: a whole prompt, its parts, and cuBLASLt's rate for the same products.
 *
 *   cuda_prefill_bench [--model gemma-4-12b|gemma-3-12b] [--format fp8|fp8-token|fp8-static|bf16|block|fp4] [--kv bf16|fp8] [--layers N] [--chunk ROWS] [--prompts 145,512,2048,8192,32768] [--turn ROWS] [--repeat N] [--no-cublas]
 *
 * Fills 12B weights on the device (no checkpoint needed). "prompt" is host time from the first cuda_prefill_run to the end of the last chunk's wait;
 * the parts are measured by events, chunk by chunk, with the other parts left out. "turn": a further 145 tokens behind the prompt.
 * TFLOP/s counts what a prompt needs: 2 * rows * weights for the products, 4 * 16 * d per query and visible key for attention.
 * cuBLASLt: bf16 x bf16 -> bf16 with its best of 8 heuristics for each of the shapes; loaded at run time, no part of the library. */
#include "bench/cuda/measure.cuh"
#include "bench/cuda/gemma_12b.h"
#include "bench/cuda/shapes.cuh"
#include "kernels/cuda/cuda_weights.h"
#include "kernels/cuda/prefill.h"
#include <algorithm>
#include <chrono>
#include <cublasLt.h>
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

extern "C" int cuda_fill_normal(void *out_bf16, uint64_t n, float deviation, uint64_t seed);

struct settings {
    uint32_t format, layers, chunk, repeat, turn, kv_bytes, activation;  /* activation: enum stored_activation */
    bool cublas;
    std::vector<uint32_t> prompts;
    const char *model = "gemma-4-12b";
};

static const char *const format_name[WEIGHT_FORMATS] = { "", "fp8", "bf16", "f32", "block", "fp4" };

static const char *const rule_name[3] = { "", "fp8-token", "fp8-static" };      /* formats with an activation rule */

static uint32_t find_format(const char *name, uint32_t *activation)
{
    for (*activation = 2; *activation > 0; --*activation)
        if (!strcmp(rule_name[*activation], name)) return WEIGHT_FP8;
    for (uint32_t i = 1; i < WEIGHT_FORMATS; i++)
        if (!strcmp(format_name[i], name)) return i;
    fprintf(stderr, "unknown format %s\n", name);
    exit(2);
}

static struct cuda_model_spec gemma_12b(uint32_t format, uint32_t layers, uint32_t kv_bytes, uint32_t activation)
{
    struct cuda_model_spec s = gemma_12b_target(layers, format, kv_bytes);

    for (uint32_t i = 0; i < layers; i++)
        for (int t = CUDA_Q; t <= CUDA_DOWN; t++) s.layer[i].stored.activation[t] = (uint8_t)activation, s.layer[i].stored.input_scale[t] = activation == 2 ? 0.02f : 0.0f;
    return s;
}

/* ---- setting up ---- */

static void fill_weights(const struct cuda_model_spec *spec, void *arena)
{
    struct cuda_weights *w;

    OK(cuda_weights_open(&w, spec, arena));
    OK(cuda_weights_fill_random(w, 7));
    cuda_weights_close(w);
}

static struct cuda_prefill *make_prefill(const struct settings *s)
{
    struct cuda_model_spec spec = gemma_12b(s->format, s->layers, s->kv_bytes, s->activation);
    const uint32_t longest = (*std::max_element(s->prompts.begin(), s->prompts.end()) + s->turn + 31) / 32 * 32;
    struct cuda_options o = {};
    struct cuda_prefill *p;
    std::vector<uint32_t> pages(longest / 32 + 128);

    if (shape_apply(&spec, s->model)) fprintf(stderr, "unknown model %s\n", s->model), exit(2);
    for (uint32_t i = 0; i < pages.size(); i++) pages[i] = i;
    o.seqs_max = 1, o.context_max = longest, o.ring_pages = (spec.window - 1 + s->chunk + 31) / 32;
    CHECK(cudaMalloc(&o.weights_device, cuda_weights_bytes(&spec)));
    CHECK(cudaMalloc((void **)&o.states_device, 4ull * STEP_STATES_ROWS * spec.hidden));
    CHECK(cudaMalloc(&o.kv_device[0], spec.page_bytes[0] * o.ring_pages));
    CHECK(cudaMalloc(&o.kv_device[1], spec.page_bytes[1] * (longest / 32)));
    fill_weights(&spec, o.weights_device);
    OK(cuda_prefill_open(&p, &spec, &o, s->chunk));
    OK(cuda_prefill_pages(p, 0, CUDA_SLIDING, 0, pages.data(), o.ring_pages));
    OK(cuda_prefill_pages(p, 0, CUDA_FULL, 0, pages.data(), longest / 32));
    return p;
}

/* ---- a prompt ---- */

static double now_ms()
{
    return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

static void run_chunk(struct cuda_prefill *p, uint32_t first, uint32_t end, const std::vector<uint32_t> &tokens)
{
    const uint32_t rows = std::min(p->rows_max, end - first);
    const struct cuda_prefill_span span = { 0, first, 0, rows, first + rows == end };

    OK(cuda_prefill_run(p, &span, 1, tokens.data() + first));
    OK(cuda_prefill_wait(p, 60000000));
}

/* Milliseconds of the parts over all chunks of a prompt. */
static double parts_ms(struct cuda_prefill *p, uint32_t prompt, const std::vector<uint32_t> &tokens, uint32_t parts)
{
    double sum = 0;
    cudaEvent_t a, b;

    CHECK(cudaEventCreate(&a));
    CHECK(cudaEventCreate(&b));
    for (uint32_t at = 0; at < prompt; at += p->rows_max) {
        float ms, best = 1e30f;

        run_chunk(p, at, prompt, tokens);      /* lays out its job */
        for (int i = 0; i < (prompt > 8192 ? 1 : 3); i++) {
            CHECK(cudaEventRecord(a, p->stream));
            OK(prefill_launch(p, parts));
            CHECK(cudaEventRecord(b, p->stream));
            CHECK(cudaEventSynchronize(b));
            CHECK(cudaEventElapsedTime(&ms, a, b));
            best = std::min(best, ms);
        }
        sum += best;
    }
    CHECK(cudaEventDestroy(a));
    CHECK(cudaEventDestroy(b));
    return sum;
}

/* Of positions [first, end). */
static double prompt_ms(struct cuda_prefill *p, uint32_t first, uint32_t end, const std::vector<uint32_t> &tokens, uint32_t repeat)
{
    std::vector<double> t;

    for (uint32_t i = 0; i <= repeat; i++) {
        const double begin = now_ms();

        for (uint32_t at = first; at < end; at += p->rows_max) run_chunk(p, at, end, tokens);
        if (i) t.push_back(now_ms() - begin);              /* the first warms up */
    }
    std::sort(t.begin(), t.end());
    return t[t.size() / 2];
}

/* ---- what there is to do ---- */

static double product_flop(const struct cuda_prefill *p, uint32_t prompt)
{
    double weights = 0;

    for (uint32_t i = 0; i < p->spec.layers; i++) {
        const struct arena_layer *l = &p->arena.layer[i];
        const bool last = i + 1 == p->spec.layers;

        weights += (double)(l->qkv.rows - (last ? spec_q_rows(&p->spec, i) : 0)) * l->qkv.k;
        if (!last) weights += (double)l->o.rows * l->o.k + (double)l->gate_up.rows * l->gate_up.k + (double)l->down.rows * l->down.k;
    }
    return 2.0 * prompt * weights;
}

static double attention_flop(const struct cuda_prefill *p, uint32_t prompt)
{
    double flop = 0;

    for (uint32_t i = 0; i + 1 < p->spec.layers; i++) {
        const double n = prompt, w = p->spec.layer[i].type == CUDA_SLIDING ? std::min(n, (double)p->spec.window) : n;

        flop += (w * (w + 1) / 2 + (n - w) * w) * 4 * PREFILL_HEADS * spec_head_dim(&p->spec, i);
    }
    return flop;
}

/* ---- cuBLASLt ---- */

struct cublas {
    cublasLtHandle_t lt;
    void *w, *x, *out, *workspace;
    decltype(&cublasLtMatmul) matmul;
    decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
    decltype(&cublasLtMatmulDescCreate) desc;
    decltype(&cublasLtMatmulDescSetAttribute) desc_set;
    decltype(&cublasLtMatrixLayoutCreate) layout;
    decltype(&cublasLtMatmulPreferenceCreate) preference;
    decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
};

#define WORKSPACE (64ull << 20)

static bool open_cublas(struct cublas *c, uint32_t rows)
{
    void *lib = dlopen("libcublasLt.so.13", RTLD_NOW);
    decltype(&cublasLtCreate) create;

    if (!lib) lib = dlopen("libcublasLt.so.12", RTLD_NOW);
    if (!lib) return printf("cuBLASLt: not there (%s)\n", dlerror()), false;
    create = (decltype(create))dlsym(lib, "cublasLtCreate");
    c->matmul = (decltype(c->matmul))dlsym(lib, "cublasLtMatmul");
    c->heuristic = (decltype(c->heuristic))dlsym(lib, "cublasLtMatmulAlgoGetHeuristic");
    c->desc = (decltype(c->desc))dlsym(lib, "cublasLtMatmulDescCreate");
    c->desc_set = (decltype(c->desc_set))dlsym(lib, "cublasLtMatmulDescSetAttribute");
    c->layout = (decltype(c->layout))dlsym(lib, "cublasLtMatrixLayoutCreate");
    c->preference = (decltype(c->preference))dlsym(lib, "cublasLtMatmulPreferenceCreate");
    c->preference_set = (decltype(c->preference_set))dlsym(lib, "cublasLtMatmulPreferenceSetAttribute");
    if (create(&c->lt) != CUBLAS_STATUS_SUCCESS) return printf("cuBLASLt: no handle\n"), false;
    CHECK(cudaMalloc(&c->w, 2ull * 30720 * 3840));
    CHECK(cudaMalloc(&c->x, 2ull * rows * 15360));
    CHECK(cudaMalloc(&c->out, 2ull * rows * 30720));
    CHECK(cudaMalloc(&c->workspace, WORKSPACE));
    OK(cuda_fill_normal(c->w, 30720ull * 3840, 0.02f, 5));
    OK(cuda_fill_normal(c->x, (uint64_t)rows * 15360, 1.0f, 6));
    return true;
}

/* Best time of a product by cuBLASLt, ms: out[n, m] = w[n, k] x[m, k]. */
static float cublas_ms(struct cublas *c, uint32_t n, uint32_t k, uint32_t m, cudaStream_t stream)
{
    const cublasOperation_t t = CUBLAS_OP_T;
    const uint64_t workspace = WORKSPACE;
    const float one = 1.0f, zero = 0.0f;
    cublasLtMatmulHeuristicResult_t found[8];
    cublasLtMatrixLayout_t lw, lx, lo;
    cublasLtMatmulPreference_t pref;
    cublasLtMatmulDesc_t d;
    cudaEvent_t a, b;
    float best = 1e30f;
    int count = 0;

    c->desc(&d, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    c->desc_set(d, CUBLASLT_MATMUL_DESC_TRANSA, &t, sizeof t);
    c->layout(&lw, CUDA_R_16BF, k, n, k);
    c->layout(&lx, CUDA_R_16BF, k, m, k);
    c->layout(&lo, CUDA_R_16BF, n, m, n);
    c->preference(&pref);
    c->preference_set(pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace);
    c->heuristic(c->lt, d, lw, lx, lo, lo, pref, 8, found, &count);
    CHECK(cudaEventCreate(&a));
    CHECK(cudaEventCreate(&b));
    for (int i = 0; i < count; i++)
        for (int turn = 0; turn < 3; turn++) {
            float ms;

            CHECK(cudaEventRecord(a, stream));
            for (int j = 0; j < 3; j++) c->matmul(c->lt, d, &one, c->w, lw, c->x, lx, &zero, c->out, lo, c->out, lo, &found[i].algo, c->workspace, WORKSPACE, stream);
            CHECK(cudaEventRecord(b, stream));
            CHECK(cudaEventSynchronize(b));
            CHECK(cudaEventElapsedTime(&ms, a, b));
            if (turn) best = std::min(best, ms / 3);
        }
    return best;
}

/* All products of a prompt, as prefill cuts it into chunks. */
static double cublas_prompt_ms(struct cublas *c, struct cuda_prefill *p, uint32_t prompt)
{
    double sum = 0;

    for (uint32_t at = 0; at < prompt;) {
        const uint32_t m = std::min(p->rows_max, prompt - at), same = m == p->rows_max ? (prompt - at) / m : 1;
        float sliding = 0, full = 0;

        sliding += cublas_ms(c, 8192, 3840, m, p->stream) + cublas_ms(c, 3840, 4096, m, p->stream);
        full += cublas_ms(c, 8704, 3840, m, p->stream) + cublas_ms(c, 3840, 8192, m, p->stream);
        const float ff = cublas_ms(c, 30720, 3840, m, p->stream) + cublas_ms(c, 3840, 15360, m, p->stream);

        for (uint32_t i = 0; i + 1 < p->spec.layers; i++) sum += same * ((p->spec.layer[i].type == CUDA_FULL ? full : sliding) + ff);
        at += same * m;
    }
    return sum;
}

/* ---- the table ---- */

static void bench(struct cuda_prefill *p, const struct settings *s)
{
    const uint32_t longest = *std::max_element(s->prompts.begin(), s->prompts.end());
    std::vector<uint32_t> tokens(longest + s->turn);
    struct cublas c = {};
    const bool cublas = s->cublas && open_cublas(&c, s->chunk);

    for (uint32_t i = 0; i < tokens.size(); i++) tokens[i] = (uint32_t)((i * 2654435761u) >> 14);
    printf("%-7s %9s %9s %9s %9s %9s %9s %10s %10s %10s %8s\n", "prompt", "all ms", "turn ms", "products", "attention", "rotary", "norms", "all TF/s", "prod TF/s", "attn TF/s", "cuBLASLt");
    for (uint32_t n : s->prompts) {
        const double all = prompt_ms(p, 0, n, tokens, n > 8192 ? 1 : s->repeat), turn = prompt_ms(p, n, n + s->turn, tokens, s->repeat);
        const double products = parts_ms(p, n, tokens, 1u << PREFILL_PRODUCTS);
        const double attention = parts_ms(p, n, tokens, 1u << PREFILL_ATTENTION), rotary = parts_ms(p, n, tokens, 1u << PREFILL_ROTARY);
        const double norms = parts_ms(p, n, tokens, 1u << PREFILL_NORM | 1u << PREFILL_EMBED);
        const double flop = product_flop(p, n), attn_flop = attention_flop(p, n), lt = cublas ? cublas_prompt_ms(&c, p, n) : 0;

        printf("%-7u %9.2f %9.2f %9.2f %9.2f %9.2f %9.2f %10.0f %10.0f %10.0f", n, all, turn, products, attention, rotary, norms, (flop + attn_flop) / all / 1e9, flop / products / 1e9, attn_flop / attention / 1e9);
        if (cublas) printf(" %8.2f ms: products at %.2f of its rate", lt, lt / products);
        printf("\n");
        fflush(stdout);
    }
}

static std::vector<uint32_t> numbers(const char *list)
{
    std::vector<uint32_t> out;

    for (const char *at = list; at; at = strchr(at, ',') ? strchr(at, ',') + 1 : NULL) out.push_back((uint32_t)strtoul(at, NULL, 10));
    return out;
}

int main(int argc, char **argv)
{
    struct settings s = { WEIGHT_FP8, 48, 2048, 5, 145, 2, 0, true, { 145, 512, 2048, 8192, 32768 } };

    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "";

        if (!strcmp(argv[i], "--model")) s.model = value, i++;
        else if (!strcmp(argv[i], "--kv")) s.kv_bytes = strcmp(value, "fp8") ? 2 : 1, i++;
        else if (!strcmp(argv[i], "--format")) s.format = find_format(value, &s.activation), i++;
        else if (!strcmp(argv[i], "--layers")) s.layers = (uint32_t)atoi(value), i++;
        else if (!strcmp(argv[i], "--chunk")) s.chunk = (uint32_t)atoi(value), i++;
        else if (!strcmp(argv[i], "--repeat")) s.repeat = (uint32_t)atoi(value), i++;
        else if (!strcmp(argv[i], "--turn")) s.turn = (uint32_t)atoi(value), i++;
        else if (!strcmp(argv[i], "--prompts")) s.prompts = numbers(value), i++;
        else if (!strcmp(argv[i], "--no-cublas")) s.cublas = false;
        else return fprintf(stderr, "usage: cuda_prefill_bench [--format fp8|fp8-token|fp8-static|bf16|block|fp4] [--kv bf16|fp8] [--layers N] [--chunk ROWS] [--prompts N,N] [--turn ROWS] [--repeat N] [--no-cublas]\n"), 2;
    }
    if (s.layers < 2 || s.layers > CUDA_LAYERS_MAX || s.chunk == 0 || s.repeat == 0 || s.turn == 0) return fprintf(stderr, "layers 2..%u, chunk, turn and repeat above 0\n", CUDA_LAYERS_MAX), 2;
    struct cuda_prefill *p = make_prefill(&s);

    printf("prefill of %s, %s, %u layers, chunks of %u rows, random weights\n", s.model, s.activation ? rule_name[s.activation] : format_name[s.format], s.layers, s.chunk);
    bench(p, &s);
    cuda_prefill_close(p);
    return 0;
}
