/* bench/cuda/prefill_mm_bench.cu - the products of the prefill against cuBLASLt, shape by shape, and summed to a pass of Gemma 4 12B.
 *
 *   cuda_prefill_mm_bench [--rows 16,64,145,...] [--widths] [--no-cublas]
 *
 * Ours: FP8 and BF16 weights as packed for decoding. cuBLASLt: BF16 weights in plain row-major order, the fastest of the algorithms that
 * its heuristic proposes for the shape, f32 output (gate_up: bf16, without the GEGLU that ours includes). Launches go back to back over
 * distinct copies of the weights (200 MB at least: nothing is left in the L2 by the launch before), timed by events, the
 * best of three turns that alternate between the contestants. libcublasLt.so.13 is opened at run time (LD_LIBRARY_PATH); without it
 * its columns are empty. --widths: every tile width of ours. s: the k slices of a tile on different SMs. */
#include "kernels/cuda/launch.h"
#include "kernels/cuda/pack.h"
#include "kernels/cuda/prefill_mm.h"
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

struct contest {
    const struct shape *s;
    uint32_t copies[3];                                        /* plain, FP8, BF16 */
    uint8_t *pool[3];
    uint64_t bytes[3];
    __nv_bfloat16 *x;
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

static struct lt_product lt_prepare(const struct shape *s, uint32_t m)
{
    const cublasOperation_t transposed = CUBLAS_OP_T;
    const uint64_t workspace = WORKSPACE_BYTES;
    cublasLtMatmulPreference_t preference;
    struct lt_product p = {};

    LT(lt.MatmulDescCreate(&p.op, CUBLAS_COMPUTE_32F, CUDA_R_32F));
    LT(lt.MatmulDescSetAttribute(p.op, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed));
    LT(lt.MatrixLayoutCreate(&p.w, CUDA_R_16BF, s->k, s->rows, s->k));
    LT(lt.MatrixLayoutCreate(&p.x, CUDA_R_16BF, s->k, m, s->k));
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

enum { PLAIN, FP8, BF16 };

static void launch(struct contest *c, int who, struct lt_product *p, uint32_t m, uint32_t width, uint32_t copy)
{
    const float one = 1.0f, zero = 0.0f;
    const uint8_t *w = c->pool[who] + copy % c->copies[who] * c->bytes[who];

    if (who == PLAIN) {
        LT(lt.Matmul(lt.handle, p->op, &one, w, p->w, c->x, p->x, &zero, c->out, p->out, c->out, p->out, &p->found[p->best].algo, c->workspace, WORKSPACE_BYTES, c->stream));
    } else {
        const struct packed_matrix packed = { w, c->s->rows, c->s->k, packed_slice_k(c->s->k), who == FP8 ? (uint32_t)WEIGHT_FP8 : (uint32_t)WEIGHT_BF16 };

        OK(prefill_mm_launch_columns(&packed, c->x, m, c->out, c->s->kind, c->s->kind == PREFILL_GEGLU ? c->s->rows / 2 : c->s->rows, width, c->stream));
    }
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

static void run(struct contest *c, uint32_t m, bool widths, double total[3])
{
    const struct shape *s = c->s;
    const uint32_t launches = launches_for(s, m);
    const double flop = 2e-6 * s->rows * s->k * m;             /* per us: TFLOP/s */
    double best[3] = { 1e30, 1e30, 1e30 };
    struct lt_product p = {};
    uint32_t choice[3] = {};

    if (lt.there) {
        double least = 1e30;
        int winner = 0;

        p = lt_prepare(s, m);
        for (p.best = 0; p.best < p.count; p.best++) {
            const double us = timed(c, PLAIN, &p, m, 0, std::max(2u, launches / 4));

            if (us < least) least = us, winner = p.best;
        }
        p.best = winner;
    }
    for (int turn = 0; turn < TURNS; turn++)
        for (int who = lt.there ? PLAIN : FP8; who <= BF16; who++) best[who] = std::min(best[who], timed(c, who, &p, m, 0, launches));
    for (int who = FP8; who <= BF16; who++) {
        const struct packed_matrix w = { NULL, s->rows, s->k, packed_slice_k(s->k), who == FP8 ? (uint32_t)WEIGHT_FP8 : (uint32_t)WEIGHT_BF16 };
        choice[who] = prefill_mm_choice(&w, m);
    }
    if (!lt.there) best[PLAIN] = 0.0;
    printf("%5u %-8s | %8.1f %5.0f |", m, s->name, best[PLAIN], lt.there ? flop / best[PLAIN] : 0.0);
    for (int who = FP8; who <= BF16; who++)
        printf(" %3u%c %8.1f %5.0f %5.2f |", choice[who] & ~PREFILL_MM_SPLIT, choice[who] & PREFILL_MM_SPLIT ? 's' : ' ', best[who], flop / best[who], best[PLAIN] / best[who]);
    for (int who = FP8; widths && who <= BF16; who++, printf(" |"))
        for (const uint32_t *n = prefill_mm_columns; *n; n++)
            for (uint32_t split = 0; split <= (s->k > 4096 && m <= 512 ? PREFILL_MM_SPLIT : 0); split += PREFILL_MM_SPLIT)
                if (m <= *n * 16 && *n < 2 * m + 16) printf(" %u%s %.1f", *n, split ? "s" : "", timed(c, who, &p, m, *n | split, std::max(3u, launches / 2)));
    printf("\n");
    fflush(stdout);
    for (int who = 0; who < 3; who++) total[who] += best[who] * s->count * 1e-3;
    if (lt.there) lt_release(&p);
}

/* ---- buffers ---- */

static void prepare(struct contest *c, const struct shape *s, uint32_t m)
{
    const uint64_t n = (uint64_t)s->rows * s->k;
    float *scratch;

    c->s = s;
    c->bytes[PLAIN] = 2 * n, c->bytes[FP8] = packed_bytes(WEIGHT_FP8, s->rows, s->k), c->bytes[BF16] = packed_bytes(WEIGHT_BF16, s->rows, s->k);
    CHECK(cudaMalloc(&scratch, 4 * s->rows));
    for (int who = 0; who < 3; who++) {
        c->copies[who] = (uint32_t)std::min<uint64_t>(COPIES_MAX, POOL_BYTES / c->bytes[who] + 1);
        CHECK(cudaMalloc(&c->pool[who], c->copies[who] * c->bytes[who]));
    }
    for (uint32_t i = 0; i < c->copies[PLAIN]; i++) OK(fill_normal_launch(c->pool[PLAIN] + i * c->bytes[PLAIN], n, 1.0f / sqrtf((float)s->k), i, NULL));
    for (int who = FP8; who <= BF16; who++)
        for (uint32_t i = 0; i < c->copies[who]; i++) {
            const struct packed_matrix to = { c->pool[who] + i * c->bytes[who], s->rows, s->k, packed_slice_k(s->k), who == FP8 ? (uint32_t)WEIGHT_FP8 : (uint32_t)WEIGHT_BF16 };
            const struct pack_source from = { c->pool[PLAIN] + i % c->copies[PLAIN] * c->bytes[PLAIN], NULL, 0, WEIGHT_BF16, s->rows, 0, PACK_WHOLE, NULL };

            OK(pack_launch(&to, &from, scratch, NULL));
        }
    CHECK(cudaMalloc(&c->x, 2ull * m * s->k));
    OK(fill_normal_launch(c->x, (uint64_t)m * s->k, 1.0f, 77, NULL));
    CHECK(cudaMalloc(&c->out, (s->kind == PREFILL_GEGLU ? 2ull : 4ull) * m * s->rows));
    CHECK(cudaDeviceSynchronize());
    CHECK(cudaFree(scratch));
}

static void release(struct contest *c)
{
    CHECK(cudaDeviceSynchronize());
    for (int who = 0; who < 3; who++) CHECK(cudaFree(c->pool[who]));
    CHECK(cudaFree(c->x));
    CHECK(cudaFree(c->out));
}

int main(int argc, char **argv)
{
    std::vector<uint32_t> rows = { 16, 64, 145, 256, 512, 2048, 8192 };
    bool widths = false, cublas = true;
    struct contest c = {};
    int count = 0;

    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--widths") == 0) widths = true;
        else if (strcmp(argv[i], "--no-cublas") == 0) cublas = false;
        else if (strcmp(argv[i], "--rows") == 0 && i + 1 < argc) {
            rows.clear();
            for (char *at = strtok(argv[++i], ","); at; at = strtok(NULL, ",")) rows.push_back((uint32_t)atoi(at));
        } else return fprintf(stderr, "unknown option %s\n", argv[i]), 100;
    }
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) return printf("skip: no GPU\n"), 77;
    OK(prefill_mm_init());
    lt.there = cublas && open_cublas();
    CHECK(cudaStreamCreate(&c.stream));
    CHECK(cudaEventCreate(&c.start));
    CHECK(cudaEventCreate(&c.end));
    CHECK(cudaMalloc(&c.workspace, WORKSPACE_BYTES));
    printf("                | cuBLASLt BF16  | ours FP8                  | ours BF16\n rows product  |       us TFLOPs | tile     us TFLOPs  speed | tile     us TFLOPs  speed |\n");
    std::vector<double> totals(3 * rows.size());
    for (const struct shape &s : shapes) {
        prepare(&c, &s, *std::max_element(rows.begin(), rows.end()));
        for (size_t i = 0; i < rows.size(); i++) run(&c, rows[i], widths, &totals[3 * i]);
        release(&c);
    }
    for (size_t i = 0; i < rows.size(); i++)
        printf("%5u 48 layers: cuBLASLt %.3f ms, FP8 %.3f ms (%.2f), BF16 %.3f ms (%.2f)\n", rows[i], totals[3 * i], totals[3 * i + 1], totals[3 * i] / totals[3 * i + 1], totals[3 * i + 2],
               totals[3 * i] / totals[3 * i + 2]);
    return 0;
}
