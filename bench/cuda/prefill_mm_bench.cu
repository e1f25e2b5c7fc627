/* bench/cuda/prefill_mm_bench.cu - the products of the prefill against cuBLASLt, shape by shape, and summed to a pass of Gemma 4 12B.
 *
 *   cuda_prefill_mm_bench [--rows 16,64,145,...] [--only fp8,bf16,both,...] [--widths] [--no-cublas] [--exact]
 *
 * Ours: FP8, BF16, FP8-in-blocks and FP4 weights as packed for decoding, times BF16; "both": FP8 weights times FP8 activations with a scale for each row of either.
 * cuBLASLt: BF16 times BF16, and FP8 times FP8 with a scale for each row (fast accumulation, as PyTorch asks for; --exact: without); weights in plain row-major order, the fastest of the algorithms that
 * its heuristic proposes for the shape, f32 output (gate_up: bf16, without the GEGLU that ours includes). Launches go back to back over
 * distinct copies of the weights (200 MB at least: nothing is left in the L2 by the launch before), timed by events, the
 * best of three turns that alternate between the contestants. libcublasLt.so.13 is opened at run time (LD_LIBRARY_PATH); without it
 * its columns are empty. --widths: every tile width of ours. s: the k slices of a tile on different SMs. */
#include "kernels/cuda/launch.h"
#include "kernels/cuda/pack.h"
#include "kernels/cuda/prefill_mm.h"
#include "kernels/cuda/round.h"
#include <algorithm>
#include <cublasLt.h>
#include <cuda_runtime.h>
#include <dlfcn.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

#define CHECK(x) do { const cudaError_t e_ = (x); if (e_ != cudaSuccess) { fprintf(stderr, "%s:%d %s: %s\n", __FILE__, __LINE__, #x, cudaGetErrorString(e_)); exit(1); } } while (0)
#define OK(x) do { const int r_ = (x); if (r_ < 0) { fprintf(stderr, "%s:%d %s: error %d (%s)\n", __FILE__, __LINE__, #x, r_, launch_error()); exit(1); } } while (0)
#define LT(x) do { const cublasStatus_t s_ = (x); if (s_ != CUBLAS_STATUS_SUCCESS) { fprintf(stderr, "%s:%d %s: cuBLASLt status %d\n", __FILE__, __LINE__, #x, (int)s_); exit(1); } } while (0)

#define TURNS 3
#define POOL_BYTES (200ull << 20)
#define COPIES_MAX 16
#define ALGORITHMS 16
#define WORKSPACE_BYTES (64ull << 20)

/* count: in the 48 layers of the model. */
struct shape { const char *name; uint32_t rows, k; enum prefill_out kind; int count; };

static const struct shape shapes[] = { { "qkv", 8192, 3840, PREFILL_F32, 40 }, { "qkv full", 8704, 3840, PREFILL_F32, 8 }, { "o", 3840, 4096, PREFILL_F32, 40 },
                                       { "o full", 3840, 8192, PREFILL_F32, 8 }, { "gate_up", 30720, 3840, PREFILL_GEGLU, 48 }, { "down", 3840, 15360, PREFILL_F32, 48 } };

enum { LT_BF16, LT_FP8, FP8, BF16, BLOCK, FP4, BOTH, CONTESTANTS };
static const char *const who_name[CONTESTANTS] = { "cuBLASLt bf16", "cuBLASLt fp8", "fp8", "bf16", "block", "fp4", "both" };
static const uint32_t who_format[CONTESTANTS] = { 0, 0, WEIGHT_FP8, WEIGHT_BF16, WEIGHT_FP8_BLOCK, WEIGHT_FP4, WEIGHT_FP8 };

struct contest {
    const struct shape *s;
    bool in[CONTESTANTS];
    uint32_t copies[CONTESTANTS];
    uint8_t *pool[CONTESTANTS];                                /* weights */
    uint64_t bytes[CONTESTANTS];
    __nv_bfloat16 *x;
    uint8_t *codes;                                            /* of x */
    float *x_scale, *w_scale;
    void *out, *workspace;
    cudaStream_t stream;
    cudaEvent_t start, end;
};

/* ---- cuBLASLt, opened at run time ---- */

#define LT_FUNCTIONS(f) f(Create) f(Matmul) f(MatmulDescCreate) f(MatmulDescSetAttribute) f(MatmulDescDestroy) f(MatrixLayoutCreate) f(MatrixLayoutDestroy) \
                        f(MatmulPreferenceCreate) f(MatmulPreferenceSetAttribute) f(MatmulPreferenceDestroy) f(MatmulAlgoGetHeuristic)
#define LT_MEMBER(name) decltype(&cublasLt##name) name;
#define LT_FIND(name) lt.name = (decltype(lt.name))dlsym(so, "cublasLt" #name); if (lt.name == NULL) return false;

static struct { LT_FUNCTIONS(LT_MEMBER) cublasLtHandle_t handle; bool there; } lt;

static bool open_cublas(void)
{
    void *so = dlopen("libcublasLt.so.13", RTLD_NOW);

    if (so == NULL) return printf("no cuBLASLt: %s\n", dlerror()), false;
    LT_FUNCTIONS(LT_FIND)
    LT(lt.Create(&lt.handle));
    return true;
}

struct lt_product { cublasLtMatmulDesc_t op; cublasLtMatrixLayout_t w, x, out; cublasLtMatmulHeuristicResult_t found[ALGORITHMS]; int count, best; };

static bool exact;                                             /* --exact */

static struct lt_product lt_prepare(const struct contest *c, int who, uint32_t m)
{
    const struct shape *s = c->s;
    const cudaDataType_t type = who == LT_FP8 ? CUDA_R_8F_E4M3 : CUDA_R_16BF;
    const int32_t mode = CUBLASLT_MATMUL_MATRIX_SCALE_OUTER_VEC_32F;
    const int8_t fast = !exact;
    const cublasOperation_t transposed = CUBLAS_OP_T;
    const uint64_t workspace = WORKSPACE_BYTES;
    cublasLtMatmulPreference_t preference;
    struct lt_product p = {};

    LT(lt.MatmulDescCreate(&p.op, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    LT(lt.MatmulDescSetAttribute(p.op, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed));
    if (who == LT_FP8) {
        LT(lt.MatmulDescSetAttribute(p.op, CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &mode, sizeof mode));
        LT(lt.MatmulDescSetAttribute(p.op, CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &mode, sizeof mode));
        LT(lt.MatmulDescSetAttribute(p.op, CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &c->w_scale, sizeof c->w_scale));
        LT(lt.MatmulDescSetAttribute(p.op, CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &c->x_scale, sizeof c->x_scale));
        LT(lt.MatmulDescSetAttribute(p.op, CUBLASLT_MATMUL_DESC_FAST_ACCUM, &fast, sizeof fast));
    }
    LT(lt.MatrixLayoutCreate(&p.w, type, s->k, s->rows, s->k));
    LT(lt.MatrixLayoutCreate(&p.x, type, s->k, m, s->k));
    LT(lt.MatrixLayoutCreate(&p.out, s->kind == PREFILL_GEGLU ? CUDA_R_16BF : CUDA_R_32F, s->rows, m, s->rows));
    LT(lt.MatmulPreferenceCreate(&preference));
    LT(lt.MatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace));
    LT(lt.MatmulAlgoGetHeuristic(lt.handle, p.op, p.w, p.x, p.out, p.out, preference, ALGORITHMS, p.found, &p.count));
    LT(lt.MatmulPreferenceDestroy(preference));
    return p;
}

static void lt_release(struct lt_product *p)
{
    LT(lt.MatmulDescDestroy(p->op));
    for (cublasLtMatrixLayout_t l : { p->w, p->x, p->out }) LT(lt.MatrixLayoutDestroy(l));
}

/* ---- timing ---- */

static void launch(struct contest *c, int who, struct lt_product *p, uint32_t m, uint32_t width, uint32_t copy)
{
    const float one = 1.0f, zero = 0.0f;
    const uint8_t *w = c->pool[who] + copy % c->copies[who] * c->bytes[who];
    const struct packed_matrix packed = { w, c->s->rows, c->s->k, packed_slice_k(c->s->k), who_format[who] };
    const uint32_t stride = c->s->kind == PREFILL_GEGLU ? c->s->rows / 2 : c->s->rows;

    if (who == BOTH) OK(prefill_mm_launch_codes(&packed, c->codes, c->x_scale, m, c->out, c->s->kind, stride, width, c->stream));
    else if (who >= FP8) OK(prefill_mm_launch_columns(&packed, c->x, m, c->out, c->s->kind, stride, width, c->stream));
    else LT(lt.Matmul(lt.handle, p->op, &one, w, p->w, who == LT_FP8 ? (void *)c->codes : c->x, p->x, &zero, c->out, p->out, c->out, p->out, &p->found[p->best].algo, c->workspace, WORKSPACE_BYTES, c->stream));
}

/* us per launch */
static double timed(struct contest *c, int who, struct lt_product *p, uint32_t m, uint32_t width, uint32_t launches)
{
    float ms;

    launch(c, who, p, m, width, 0);
    CHECK(cudaEventRecord(c->start, c->stream));
    for (uint32_t i = 1; i <= launches; i++) launch(c, who, p, m, width, i);
    CHECK(cudaEventRecord(c->end, c->stream));
    CHECK(cudaEventSynchronize(c->end));
    CHECK(cudaEventElapsedTime(&ms, c->start, c->end));
    return ms * 1e3 / launches;
}

/* Enough launches for 4 ms at 500 TFLOP/s and 2 TB/s. */
static uint32_t launches_for(const struct shape *s, uint32_t m)
{
    const double us = std::max(2e-6 * s->rows * s->k * m / 500.0, 2e-6 * s->rows * s->k / 2.0);

    return (uint32_t)std::min(100.0, std::max(3.0, 4000.0 / us));
}

/* The fastest of the algorithms that cuBLASLt proposes. */
static struct lt_product lt_fastest(struct contest *c, int who, uint32_t m, uint32_t launches)
{
    struct lt_product p = lt_prepare(c, who, m);
    double least = 1e30;
    int winner = 0;

    for (p.best = 0; p.best < p.count; p.best++) {
        const double us = timed(c, who, &p, m, 0, std::max(2u, launches / 4));

        if (us < least) least = us, winner = p.best;
    }
    p.best = winner;
    return p;
}

static void print_widths(struct contest *c, int who, uint32_t m, uint32_t launches)
{
    const uint32_t widest = who == BOTH || who == BLOCK ? 160 : 256;

    printf("      %-5s", who_name[who]);
    for (const uint32_t *n = prefill_mm_columns; *n && *n <= widest; n++)
        for (uint32_t split = 0; split <= (c->s->k > 4096 && m <= 512 && who != BOTH ? PREFILL_MM_SPLIT : 0); split += PREFILL_MM_SPLIT)
            if (m <= *n * 16 && *n < 2 * m + 16) printf(" %u%s %.1f", *n, split ? "s" : "", timed(c, who, NULL, m, *n | split, std::max(3u, launches / 2)));
    printf("\n");
}

static void run(struct contest *c, uint32_t m, bool widths, double *total)
{
    const struct shape *s = c->s;
    const uint32_t launches = launches_for(s, m);
    const double flop = 2e-6 * s->rows * s->k * m;             /* per us: TFLOP/s */
    double best[CONTESTANTS];
    struct lt_product p[CONTESTANTS] = {};

    std::fill(best, best + CONTESTANTS, 1e30);
    for (int who = LT_BF16; who <= LT_FP8; who++)
        if (c->in[who]) p[who] = lt_fastest(c, who, m, launches);
    for (int turn = 0; turn < TURNS; turn++)
        for (int who = 0; who < CONTESTANTS; who++)
            if (c->in[who]) best[who] = std::min(best[who], timed(c, who, &p[who], m, 0, launches));
    printf("%5u %-8s", m, s->name);
    for (int who = 0; who < CONTESTANTS; who++)
        if (c->in[who]) printf(" | %9.1f %5.0f", best[who], flop / best[who]), total[who] += best[who] * s->count * 1e-3;
    printf("\n");
    for (int who = FP8; widths && who < CONTESTANTS; who++)
        if (c->in[who]) print_widths(c, who, m, launches);
    fflush(stdout);
    for (int who = LT_BF16; who <= LT_FP8; who++)
        if (c->in[who]) lt_release(&p[who]);
}

/* ---- buffers ---- */

static uint64_t weight_bytes(int who, const struct shape *s)
{
    const uint64_t n = (uint64_t)s->rows * s->k;

    return who == LT_BF16 ? 2 * n : who == LT_FP8 ? n : packed_bytes(who_format[who], s->rows, s->k);
}

/* Copy i of the weights of a contestant, from bf16. codes, scale: scratch for what a format's writer makes. */
static void make_weights(struct contest *c, int who, uint32_t i, const __nv_bfloat16 *plain, uint8_t *codes, float *scale)
{
    const struct shape *s = c->s;
    const float factor = 8.0f / (sqrtf((float)s->k) * 2688.0f);
    const struct packed_matrix to = { c->pool[who] + i * c->bytes[who], s->rows, s->k, packed_slice_k(s->k), who_format[who] };
    const struct round_args round = { plain, c->pool[who] + i * c->bytes[who], c->w_scale, s->k, 0.0f, {} };
    struct pack_source from = { plain, NULL, 0, WEIGHT_BF16, s->rows, 0, PACK_WHOLE, NULL };

    if (who == LT_BF16) CHECK(cudaMemcpy(c->pool[who] + i * c->bytes[who], plain, c->bytes[who], cudaMemcpyDeviceToDevice));
    else if (who == LT_FP8) OK(round_launch(&round, ROUND_CODES, s->rows, NULL));      /* in some order of k: times are all that counts */
    else {
        if (who == BLOCK || who == FP4) {
            OK(quantise_launch(to.format, plain, s->rows, s->k, codes, scale, factor, NULL));
            if (who == FP4) CHECK(cudaMemcpy(scale, &factor, sizeof factor, cudaMemcpyHostToDevice));
            from.data = codes, from.format = to.format, from.scale = scale, from.scale_stride = s->k / WEIGHT_BLOCK;
            from.group = who == FP4 ? codes + (uint64_t)s->rows * s->k / 2 : NULL;
        }
        OK(pack_launch(&to, &from, scale, NULL));
    }
}

static void prepare(struct contest *c, const struct shape *s, uint32_t m)
{
    const uint64_t n = (uint64_t)s->rows * s->k;
    __nv_bfloat16 *plain;
    uint8_t *codes;
    float *scale;

    c->s = s;
    CHECK(cudaMalloc(&plain, 2 * n));
    CHECK(cudaMalloc(&codes, n));
    CHECK(cudaMalloc(&scale, 4 * s->rows + n / 4096 + 4));
    CHECK(cudaMalloc(&c->w_scale, 4 * s->rows));
    CHECK(cudaMalloc(&c->x_scale, 4 * m));
    CHECK(cudaMalloc(&c->codes, (uint64_t)m * s->k));
    CHECK(cudaMalloc(&c->x, 2ull * m * s->k));
    for (int who = 0; who < CONTESTANTS; who++) {
        c->pool[who] = NULL;
        if (!c->in[who]) continue;
        c->bytes[who] = weight_bytes(who, s);
        c->copies[who] = (uint32_t)std::min<uint64_t>(COPIES_MAX, POOL_BYTES / c->bytes[who] + 1);
        CHECK(cudaMalloc(&c->pool[who], c->copies[who] * c->bytes[who]));
    }
    for (uint32_t i = 0; i < COPIES_MAX; i++) {
        OK(fill_normal_launch(plain, n, 1.0f / sqrtf((float)s->k), i, NULL));
        for (int who = 0; who < CONTESTANTS; who++)
            if (c->in[who] && i < c->copies[who]) make_weights(c, who, i, plain, codes, scale);
    }
    OK(fill_normal_launch(c->x, (uint64_t)m * s->k, 1.0f, 77, NULL));
    const struct round_args round = { c->x, c->codes, c->x_scale, s->k, 0.0f, {} };
    OK(round_launch(&round, ROUND_CODES, m, NULL));
    CHECK(cudaMalloc(&c->out, (s->kind == PREFILL_GEGLU ? 2ull : 4ull) * m * s->rows));
    CHECK(cudaDeviceSynchronize());
    for (void *at : { (void *)plain, (void *)codes, (void *)scale }) CHECK(cudaFree(at));
}

static void release(struct contest *c)
{
    CHECK(cudaDeviceSynchronize());
    for (uint8_t *pool : c->pool) CHECK(cudaFree(pool));
    for (void *at : { (void *)c->x, (void *)c->codes, (void *)c->x_scale, (void *)c->w_scale, c->out }) CHECK(cudaFree(at));
}

/* names: separated by commas. */
static int choose_contestants(struct contest *c, char *names)
{
    for (char *at = strtok(names, ","); at; at = strtok(NULL, ",")) {
        int who = 0;

        while (who < CONTESTANTS && strcmp(at, who_name[who])) who++;
        if (who == CONTESTANTS || who <= LT_FP8) return fprintf(stderr, "unknown format %s\n", at), -1;
        c->in[who] = true;
    }
    return 0;
}

int main(int argc, char **argv)
{
    std::vector<uint32_t> rows = { 16, 64, 145, 256, 512, 2048, 8192 };
    bool widths = false, cublas = true, chosen = false;
    struct contest c = {};
    int count = 0;

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--widths") == 0) widths = true;
        else if (strcmp(argv[i], "--no-cublas") == 0) cublas = false;
        else if (strcmp(argv[i], "--exact") == 0) exact = true;
        else if (strcmp(argv[i], "--only") == 0 && i + 1 < argc) {
            if (choose_contestants(&c, argv[++i]) < 0) return 100;
            chosen = true;
        } else if (strcmp(argv[i], "--rows") == 0 && i + 1 < argc) {
            rows.clear();
            for (char *at = strtok(argv[++i], ","); at; at = strtok(NULL, ",")) rows.push_back((uint32_t)atoi(at));
        } else return fprintf(stderr, "unknown option %s\n", argv[i]), 100;
    }
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) return printf("skip: no GPU\n"), 77;
    OK(prefill_mm_init());
    OK(round_init());
    c.in[LT_BF16] = c.in[LT_FP8] = lt.there = cublas && open_cublas();
    for (int who = FP8; !chosen && who < CONTESTANTS; who++) c.in[who] = true;
    CHECK(cudaStreamCreate(&c.stream));
    CHECK(cudaEventCreate(&c.start));
    CHECK(cudaEventCreate(&c.end));
    CHECK(cudaMalloc(&c.workspace, WORKSPACE_BYTES));
    printf(" rows product ");
    for (int who = 0; who < CONTESTANTS; who++)
        if (c.in[who]) printf(" | %15s", who_name[who]);
    printf("   (us, TFLOP/s)\n");
    std::vector<double> totals(CONTESTANTS * rows.size());
    for (const struct shape &s : shapes) {
        prepare(&c, &s, *std::max_element(rows.begin(), rows.end()));
        for (size_t i = 0; i < rows.size(); i++) run(&c, rows[i], widths, &totals[CONTESTANTS * i]);
        release(&c);
    }
    for (size_t i = 0; i < rows.size(); i++) {
        const double *total = &totals[CONTESTANTS * i];

        printf("%5u rows, 48 layers, ms:", rows[i]);
        for (int who = 0; who < CONTESTANTS; who++)
            if (c.in[who]) printf(" %s %.3f%s", who_name[who], total[who], who + 1 < CONTESTANTS ? "," : "");
        if (lt.there) printf("; of cuBLASLt's rate:");
        for (int who = FP8; lt.there && who < CONTESTANTS; who++)
            if (c.in[who]) printf(" %s %.2f", who_name[who], total[who == BOTH ? LT_FP8 : LT_BF16] / total[who]);
        printf("\n");
    }
    return 0;
}
