/* tests/gpu/prefill_mm_test.cu - the products of the prefill against sums in f64, on random data; exit 0 pass, 1 fail, 77 no GPU.
 *
 * For each shape and format: (1) 300 rows agree with f64 sums over the same bf16 inputs; (2) a row's bits are the same for every width of
 * tile, every number of rows and every place among them, and in repeated launches (a moving bit is a race); (3) nothing is
 * written behind the last row. Outputs are poisoned before each launch. "both": FP8 weights times activations rounded to FP8 (round.h). Weights of small codes show that subnormal E4M3 count. */
#include "kernels/cuda/launch.h"
#include "kernels/cuda/pack.h"
#include "kernels/cuda/prefill_mm.h"
#include "kernels/cuda/round.h"
#include "rows.cuh"
#include <algorithm>
#include <cuda_runtime.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

#define CHECK(x) do { const cudaError_t e_ = (x); if (e_ != cudaSuccess) { fprintf(stderr, "%s:%d %s: %s\n", __FILE__, __LINE__, #x, cudaGetErrorString(e_)); exit(1); } } while (0)
#define OK(x) do { const int r_ = (x); if (r_ < 0) { fprintf(stderr, "%s:%d %s: error %d (%s)\n", __FILE__, __LINE__, #x, r_, launch_error()); exit(1); } } while (0)

#define ROWS_MAX 300
#define ROWS_PER_WARP 10
#define BOTH_LIMIT 5e-4
#define BOTH ((uint32_t)WEIGHT_FORMATS)          /* in place of a format: FP8 times FP8 */

enum codes { CODES_ALL, CODES_SMALL };
struct shape { const char *name; uint32_t rows, k; enum prefill_out kind; enum codes codes; };

/* A warp: one weight row times ROWS_PER_WARP activation rows. x_scale NULL: 1. */
__global__ void reference_kernel(const float *w, const __nv_bfloat16 *x, const float *x_scale, double *out, uint32_t rows, uint32_t k)
{
    const uint32_t r = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32, m = blockIdx.y * ROWS_PER_WARP;
    double sum[ROWS_PER_WARP] = {};

    if (r >= rows) return;
    for (uint32_t i = lane; i < k; i += 32)
        for (int j = 0; j < ROWS_PER_WARP; j++) sum[j] += (double)w[(uint64_t)r * k + i] * (double)__bfloat162float(x[(uint64_t)(m + j) * k + prefill_k(i)]);
    for (int j = 0; j < ROWS_PER_WARP; j++) {
        for (int d = 16; d; d >>= 1) sum[j] += __shfl_xor_sync(0xffffffffu, sum[j], d);
        if (lane == 0) out[(uint64_t)(m + j) * rows + r] = sum[j] * (x_scale ? (double)x_scale[m + j] : 1.0);
    }
}

/* E4M3 codes of either sign with magnitudes below 16: the eight subnormals and the smallest normals. */
__global__ void small_codes_kernel(uint8_t *to, float *scale, uint64_t n, uint32_t rows)
{
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (uint64_t)gridDim.x * blockDim.x) {
        const uint32_t bits = (uint32_t)((i * 0x9e3779b97f4a7c15ull) >> 40);

        to[i] = (uint8_t)((bits & 15) | (bits & 16) << 3);
        if (i < rows) scale[i] = 0.5f + (float)(i % 7);
    }
}

/* Counts the 32-bit words in which two row sets differ, and words behind the last row that are not poison. */
__global__ void compare_kernel(const uint32_t *got, const uint32_t *want, uint64_t words, uint64_t all, unsigned long long *count)
{
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < all; i += (uint64_t)gridDim.x * blockDim.x)
        if (got[i] != (i < words ? want[i] : 0xffffffffu)) atomicAdd(count, 1ull);
}

struct bench {
    struct packed_matrix w;
    __nv_bfloat16 *x;
    uint8_t *codes;                   /* of x, with their scales: when both sides are FP8; NULL otherwise */
    float *x_scale;
    uint8_t *out, *base;              /* base: 300 rows at once, in the widest tiles */
    unsigned long long *count;        /* managed */
    uint64_t row_bytes;
    uint32_t columns;                 /* of out */
};

static int launch(const struct bench *b, const struct shape *s, uint32_t first, uint32_t m, void *out, uint32_t width)
{
    const uint64_t at = (uint64_t)first * s->k;

    if (b->codes) return prefill_mm_launch_codes(&b->w, b->codes + at, b->x_scale + first, m, out, s->kind, b->columns, width, NULL);
    return prefill_mm_launch_columns(&b->w, b->x + at, m, out, s->kind, b->columns, width, NULL);
}

static unsigned long long differences(struct bench *b, const struct shape *s, uint32_t first, uint32_t m, uint32_t width)
{
    const uint64_t all = (uint64_t)ROWS_MAX * b->row_bytes / 4, words = (uint64_t)m * b->row_bytes / 4;

    CHECK(cudaMemset(b->out, 0xff, 4 * all));
    OK(launch(b, s, first, m, b->out, width));
    compare_kernel<<<256, 256>>>((const uint32_t *)b->out, (const uint32_t *)(b->base + first * b->row_bytes), words, all, b->count);
    CHECK(cudaDeviceSynchronize());
    const unsigned long long n = *b->count;

    *b->count = 0;
    if (n) printf("  %s: rows %u.. of %u in tiles of %u: %llu words differ\n", s->name, first, m, width, n);
    return n;
}

/* In f64 from the reference sums: what belongs at place i of row m. */
static double expected(const struct shape *s, const double *sums, uint32_t m, uint32_t i)
{
    if (s->kind == PREFILL_F32) return sums[(uint64_t)m * s->rows + i];
    const double g = sums[(uint64_t)m * s->rows + i / 8 * 16 + i % 8], u = sums[(uint64_t)m * s->rows + i / 8 * 16 + 8 + i % 8];

    return 0.5 * g * (1.0 + tanh(0.7978845608028654 * (g + 0.044715 * g * g * g))) * u;
}

/* The largest relative error (2-norm) of a row of base. */
static double worst_error(const struct bench *b, const struct shape *s, const double *sums_device)
{
    std::vector<double> sums((uint64_t)ROWS_MAX * s->rows);
    std::vector<uint8_t> raw(ROWS_MAX * b->row_bytes);
    double worst = 0.0;

    CHECK(cudaMemcpy(sums.data(), sums_device, 8 * sums.size(), cudaMemcpyDeviceToHost));
    CHECK(cudaMemcpy(raw.data(), b->base, raw.size(), cudaMemcpyDeviceToHost));
    for (uint32_t m = 0; m < ROWS_MAX; m++) {
        const uint8_t *row = raw.data() + m * b->row_bytes;
        double error = 0.0, norm = 0.0;

        for (uint32_t i = 0; i < b->columns; i++) {
            const uint32_t bits = (uint32_t)((const uint16_t *)row)[prefill_k(i)] << 16;
            float v;

            if (s->kind == PREFILL_GEGLU) memcpy(&v, &bits, 4);
            else v = ((const float *)row)[i];
            const double e = expected(s, sums.data(), m, i);
            error += (v - e) * (v - e), norm += e * e;
        }
        worst = std::max(worst, isfinite(error) ? sqrt(error / norm) : 1e9);
    }
    return worst;
}

static void fill(struct bench *b, const struct shape *s)
{
    const uint64_t n = (uint64_t)s->rows * s->k;
    uint8_t *source;
    float *scratch;

    CHECK(cudaMalloc(&source, 2 * n));
    CHECK(cudaMalloc(&scratch, 4 * s->rows + n / 4096 + 4));
    const float factor = 8.0f / (sqrtf((float)s->k) * 2688.0f);
    uint8_t *codes;
    struct pack_source from = { source, NULL, 0, WEIGHT_BF16, s->rows, 0, PACK_WHOLE, NULL };
    if (s->codes == CODES_SMALL) {
        small_codes_kernel<<<256, 256>>>(source, scratch, n, s->rows);
        from.format = WEIGHT_FP8, from.scale = scratch, from.scale_stride = 1;
    } else {
        OK(fill_normal_launch(source, n, 1.0f / sqrtf((float)s->k), 100 + s->rows + b->w.format, NULL));
    }
    CHECK(cudaMalloc(&codes, n));
    if (b->w.format == WEIGHT_FP8_BLOCK || b->w.format == WEIGHT_FP4) {
        OK(quantise_launch(b->w.format, source, s->rows, s->k, codes, scratch, factor, NULL));
        if (b->w.format == WEIGHT_FP4) CHECK(cudaMemcpy(scratch, &factor, sizeof factor, cudaMemcpyHostToDevice));
        from.group = b->w.format == WEIGHT_FP4 ? codes + n / 2 : NULL;
        from.data = codes, from.format = b->w.format, from.scale = scratch, from.scale_stride = s->k / WEIGHT_BLOCK;
    }
    OK(fill_normal_launch(b->x, (uint64_t)ROWS_MAX * s->k, 3.0f, 200 + s->k, NULL));
    OK(pack_launch(&b->w, &from, scratch, NULL));
    if (b->codes) {                   /* in this order: the second leaves in x what the codes mean */
        const struct round_args round = { b->x, b->codes, b->x_scale, s->k, 0.0f, {} }, values = { b->x, b->x, b->x_scale, s->k, 0.0f, {} };

        OK(round_launch(&round, ROUND_CODES, ROWS_MAX, NULL));
        OK(round_launch(&values, ROUND_VALUES, ROWS_MAX, NULL));
        rows_to_bf16_kernel<<<256, 256>>>((uint16_t *)b->x, (uint64_t)ROWS_MAX * s->k);
    }
    CHECK(cudaDeviceSynchronize());
    CHECK(cudaFree(source));
    CHECK(cudaFree(codes));
    CHECK(cudaFree(scratch));
}

/* Sums in two places need twice the registers. */
static uint32_t widest(uint32_t format) { return format == BOTH || format == WEIGHT_FP8_BLOCK ? 160 : 256; }

static unsigned long long all_differences(struct bench *b, const struct shape *s)
{
    unsigned long long different = 0;

    for (int i = 0; prefill_mm_columns[i]; i++) {
        const uint32_t n = prefill_mm_columns[i];

        if (n > widest(b->codes ? BOTH : b->w.format)) break;
        for (uint32_t m : { 1u, n - 1, n + 1, 145u, 300u })
            if (m <= ROWS_MAX) different += differences(b, s, (ROWS_MAX - m) * 2 / 3, m, n);
        for (uint32_t m : { 1u, n - 1, n + 1, 145u, 300u })
            if (m <= ROWS_MAX && b->w.k > b->w.slice_k && !b->codes) different += differences(b, s, (ROWS_MAX - m) / 2, m, n | PREFILL_MM_SPLIT);
    }
    for (uint32_t m : { 1u, 3u, 8u, 15u, 16u, 17u, 33u, 64u, 100u, 129u, 145u, 177u, 256u, 299u }) different += differences(b, s, ROWS_MAX - m, m, 0);
    for (int i = 0; i < 10; i++) different += differences(b, s, i, 145, 0);
    return different;
}

static const char *const format_name[WEIGHT_FORMATS + 1] = { "", "fp8", "bf16", "f32", "block", "fp4", "both" };

static int run(const struct shape *s, uint32_t wanted)
{
    const uint32_t format = wanted == BOTH ? (uint32_t)WEIGHT_FP8 : wanted;
    struct bench b = {};
    float *unpacked;
    double *sums;

    b.w.rows = s->rows, b.w.k = s->k, b.w.slice_k = packed_slice_k(s->k), b.w.format = format;
    b.columns = s->kind == PREFILL_GEGLU ? s->rows / 2 : s->rows;
    b.row_bytes = (uint64_t)b.columns * (s->kind == PREFILL_GEGLU ? 2 : 4);
    CHECK(cudaMalloc((void **)&b.w.data, packed_bytes(format, s->rows, s->k)));
    CHECK(cudaMalloc(&unpacked, 4ull * s->rows * s->k));
    CHECK(cudaMalloc(&b.x, 2ull * ROWS_MAX * s->k));
    if (wanted == BOTH) CHECK(cudaMalloc(&b.codes, (uint64_t)ROWS_MAX * s->k));
    if (wanted == BOTH) CHECK(cudaMalloc(&b.x_scale, 4 * ROWS_MAX));
    CHECK(cudaMalloc(&sums, 8ull * ROWS_MAX * s->rows));
    CHECK(cudaMalloc(&b.out, ROWS_MAX * b.row_bytes));
    CHECK(cudaMalloc(&b.base, ROWS_MAX * b.row_bytes));
    CHECK(cudaMallocManaged(&b.count, sizeof *b.count));
    *b.count = 0;
    fill(&b, s);
    OK(unpack_launch(&b.w, unpacked, NULL));
    reference_kernel<<<dim3((s->rows + 3) / 4, ROWS_MAX / ROWS_PER_WARP), 128>>>(unpacked, b.x, b.x_scale, sums, s->rows, s->k);
    CHECK(cudaMemset(b.base, 0xff, ROWS_MAX * b.row_bytes));
    OK(launch(&b, s, 0, ROWS_MAX, b.base, widest(wanted)));
    CHECK(cudaDeviceSynchronize());

    /* The tensor cores cut each sum of 16 products short instead of rounding it: 2^-25 of the sum on average for each step of a
     * slice's chain, all one way. One rounding to bf16 in the GEGLU: up to 2^-9. FP8 on both sides: a sum of 32 products is cut at about
     * 2^-14 of its largest, four times in 128 of k, and those sums are added in f32. */
    const double limit = wanted == BOTH && s->kind == PREFILL_F32 ? BOTH_LIMIT : s->kind == PREFILL_GEGLU ? 2.5e-3 : ldexp(b.w.slice_k / 16.0, -25), error = worst_error(&b, s, sums);
    const unsigned long long different = all_differences(&b, s);
    const int bad = !(error < limit) || different;

    printf("%-4s %-12s %6u x %5u %-5s error %.2e (limit %.1e) words with other bits %llu\n", bad ? "FAIL" : "ok", s->name, s->rows, s->k,
           format_name[wanted], error, limit, different);
    fflush(stdout);
    for (void *p : { (void *)b.w.data, (void *)unpacked, (void *)b.x, (void *)sums, (void *)b.out, (void *)b.base, (void *)b.count, (void *)b.codes, (void *)b.x_scale }) CHECK(cudaFree(p));
    return bad;
}

/* What cannot be launched is refused, and nothing is launched. */
static int refusals()
{
    struct packed_matrix w = { (const uint8_t *)256, 3840, 3840, 3840, WEIGHT_FP8 }, odd = w, narrow = w;
    __nv_bfloat16 *x = (__nv_bfloat16 *)512;
    int bad = 0;

    odd.rows = 24, narrow.k = 3000;
    bad += prefill_mm_launch(&w, x, 0, x, PREFILL_F32, 3840, NULL) >= 0;                 /* no rows */
    bad += prefill_mm_launch(&w, x, 1, x, PREFILL_F32, 3839, NULL) >= 0;                 /* rows of out would overlap */
    bad += prefill_mm_launch(&w, x + 1, 1, x, PREFILL_F32, 3840, NULL) >= 0;             /* x not aligned */
    bad += prefill_mm_launch(&odd, x, 1, x, PREFILL_F32, 3840, NULL) >= 0;
    bad += prefill_mm_launch(&narrow, x, 1, x, PREFILL_F32, 3840, NULL) >= 0;
    bad += prefill_mm_launch_columns(&w, x, 1, x, PREFILL_F32, 3840, 24, NULL) >= 0;     /* no such width */
    bad += prefill_mm_launch_columns(&w, x, 1, x, PREFILL_F32, 3840, 16 | PREFILL_MM_SPLIT, NULL) >= 0;  /* one slice */
    printf("%-4s refusals\n", bad ? "FAIL" : "ok");
    return bad;
}

/* Arguments: a shape's name, a format's name; none: all. */
int main(int argc, char **argv)
{
    static const struct shape shapes[] = {
        { "one tile", 16, 3840, PREFILL_F32, CODES_ALL },          { "ragged", 208, 4096, PREFILL_F32, CODES_ALL },
        { "ragged, long", 176, 7680, PREFILL_F32, CODES_ALL },
        { "small codes", 256, 3840, PREFILL_F32, CODES_SMALL },    { "qkv", 8192, 3840, PREFILL_F32, CODES_ALL },
        { "qkv full", 8704, 3840, PREFILL_F32, CODES_ALL },        { "o", 3840, 4096, PREFILL_F32, CODES_ALL },
        { "o full", 3840, 8192, PREFILL_F32, CODES_ALL },          { "gate_up", 30720, 3840, PREFILL_GEGLU, CODES_ALL },
        { "down", 3840, 15360, PREFILL_F32, CODES_ALL },
    };
    int count = 0, bad = 0;

    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) return printf("skip: no GPU\n"), 77;
    OK(prefill_mm_init());
    OK(round_init());
    bad += refusals();
    for (const struct shape &s : shapes)
        for (uint32_t format : { (uint32_t)WEIGHT_FP8, (uint32_t)WEIGHT_BF16, (uint32_t)WEIGHT_FP8_BLOCK, (uint32_t)WEIGHT_FP4, BOTH })
            if ((argc < 2 || strcmp(argv[1], s.name) == 0) && (argc < 3 || strcmp(argv[2], format_name[format]) == 0) && (format == WEIGHT_FP8 || format == BOTH || s.codes == CODES_ALL) && (format != WEIGHT_FP8_BLOCK || s.rows % WEIGHT_BLOCK == 0))
                bad += run(&s, format);
    return bad ? 1 : 0;
}
