/* tests/gpu/rowmm_test.cu - the small-row matrix product against a plain f64 kernel, on fresh random data; exit 0 pass, 1 fail, 77 no GPU.
 *
 * For each shape and format: (1) packing and unpacking give the source back (bit-equal for BF16, within half an E4M3 step for FP8);
 * (2) every row count 1..16 agrees with f64 sums over the same inputs, which BF16 weights take as bf16, all others as f16; (3) a row's bits are the same alone and in any
 * company, of plain rows and of tiled ones (row_places.h); (4) repeated launches give the same bits (a moving error is a race); (5) FP8: a row
 * that the product rounds itself has the bits of one that was rounded before. Outputs are poisoned before each launch. */
#include "kernels/cuda/launch.h"
#include "kernels/cuda/pack.h"
#include "kernels/cuda/round.h"
#include "kernels/cuda/rowmm.h"
#include "kernels/stored.h"
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

struct shape { const char *name; uint32_t rows, k, kind; };

__global__ void reference_kernel(const float *w, const uint16_t *x, bool f16, double *out, uint32_t rows, uint32_t k)
{
    const uint32_t r = blockIdx.x * blockDim.x + threadIdx.x, m = blockIdx.y;
    double sum = 0.0;

    if (r >= rows) return;
    for (uint32_t i = 0; i < k; i++) sum += (double)w[(uint64_t)r * k + i] * rows_value(x[(uint64_t)m * k + i], f16);
    out[(uint64_t)m * rows + r] = sum;
}

/* In f64 from the reference sums: what the kernel stores. */
static double expected(const struct shape *s, const double *sums, uint32_t m, uint32_t i)
{
    if (s->kind == ROWMM_GEGLU) {
        const double g = sums[(uint64_t)m * s->rows + i / 8 * 16 + i % 8], u = sums[(uint64_t)m * s->rows + i / 8 * 16 + 8 + i % 8];

        return 0.5 * g * (1.0 + tanh(0.7978845608028654 * (g + 0.044715 * g * g * g))) * u;
    }
    const double v = sums[(uint64_t)m * s->rows + i];
    return s->kind == ROWMM_LOGITS ? 30.0 * tanh(v / 30.0) : v;
}

struct bench { struct packed_matrix w; uint16_t *x, *tiled; float *x_power, *out_power; void *out; float *tile_top; struct rowmm_tuning tuning; uint64_t out_bytes; uint32_t columns, slices; };

#define OUT_SHARE (ROWS_UP / GEGLU_UP)
#define GEGLU_UP 64.0f                 /* results of GEGLU reach some hundreds */

/* Rows first.. first+m-1 of x; result as f32 [m][columns] (split partials added in order). tiled: x and what GEGLU leaves are. */
static std::vector<float> product(const struct bench *b, const struct shape *s, uint32_t first, uint32_t m, bool tiled = false)
{
    const struct row_places plain = {}, places = tiled ? places_tiled(m) : plain;
    struct rowmm_args a = {};
    std::vector<uint8_t> raw(b->out_bytes);
    std::vector<float> out((uint64_t)m * b->columns);

    CHECK(cudaMemset(b->out, 0xff, b->out_bytes));
    a.x = b->x + (uint64_t)first * s->k, a.x_power = b->x_power, a.out_power = s->kind == ROWMM_GEGLU ? b->out_power : NULL, a.out = b->out, a.out_stride = b->columns, a.out_slice_stride = 16ull * b->columns;
    a.m = m, a.out_kind = s->kind, a.softcap = 30.0f, a.tile_top = b->tile_top;
    a.x_places = a.out_places = places;
    if (tiled) {
        CHECK(cudaMemset(b->tiled, 0xff, 2ull * 16 * s->k));
        rows_tile_kernel<<<m, 256>>>((const uint16_t *)a.x, b->tiled, s->k);
        a.x = b->tiled;
    }
    OK(rowmm_launch(&b->w, a, &b->tuning, NULL));
    CHECK(cudaDeviceSynchronize());
    CHECK(cudaMemcpy(raw.data(), b->out, b->out_bytes, cudaMemcpyDeviceToHost));
    for (uint32_t r = 0; r < m; r++)
        for (uint32_t i = 0; i < b->columns; i++) {
            float v = 0.0f;

            if (s->kind == ROWMM_GEGLU) {
                v = (float)rows_value(((const uint16_t *)raw.data())[place_of(places_known(places, b->columns), b->columns, r, i)], a.out_power != NULL) * (a.out_power ? OUT_SHARE : 1.0f);
            } else {
                for (uint32_t j = 0; j < (s->kind == ROWMM_PARTIAL ? b->slices : 1); j++) v += ((const float *)raw.data())[j * a.out_slice_stride + (uint64_t)r * b->columns + i];
            }
            out[(uint64_t)r * b->columns + i] = v;
        }
    return out;
}

static double relative_error(const struct shape *s, const struct bench *b, const std::vector<float> &out, const std::vector<double> &sums, uint32_t first, uint32_t m)
{
    double worst = 0.0;

    for (uint32_t r = 0; r < m; r++) {
        double error = 0.0, norm = 0.0;

        for (uint32_t i = 0; i < b->columns; i++) {
            const double e = expected(s, sums.data(), first + r, i), d = out[(uint64_t)r * b->columns + i] - e;
            error += d * d, norm += e * e;
        }
        worst = std::max(worst, isfinite(error) ? sqrt(error / norm) : 1e9);
    }
    return worst;
}

static double pack_error(const std::vector<uint16_t> &source, const float *unpacked_device, uint64_t n, uint32_t k, uint32_t format)
{
    std::vector<float> u(n);
    double worst = 0.0;

    CHECK(cudaMemcpy(u.data(), unpacked_device, 4 * n, cudaMemcpyDeviceToHost));
    for (uint64_t row = 0; row < n / k; row++) {
        float top = 0.0f;
        std::vector<float> w(k);

        for (uint32_t i = 0; i < k; i++) {
            const uint32_t bits = (uint32_t)source[row * k + i] << 16;
            memcpy(&w[i], &bits, 4);
            top = std::max(top, fabsf(w[i]));
        }
        /* Half a step of E4M3 is 1/16 of the value, or half a subnormal step (2^-10 of a scale of top / 448). */
        if (format == WEIGHT_FP8_BLOCK) top = (float)(8.0 / sqrt((double)k));      /* of a block, not of a row: no value is larger */
        for (uint32_t i = 0; i < k; i++) {
            const double bound = format == WEIGHT_BF16 ? 0.0 : format == WEIGHT_FP4 ? fabs(w[i]) / 2.0 + top / 10.0 : std::max(fabs(w[i]) / 16.0, top / 448.0 / 1024.0) * 1.0001;
            worst = std::max(worst, fabs((double)u[row * k + i] - w[i]) - bound);
        }
    }
    return worst;
}

static const char *const format_name[WEIGHT_FORMATS] = { "", "fp8", "bf16", "f32", "block", "fp4" };

/* The random matrix as pack takes it: BF16 to be rounded, or codes and scales as a checkpoint has them. */
static struct pack_source store(const struct shape *s, uint32_t format, uint16_t *bf16, uint8_t *codes, float *scale)
{
    struct pack_source from = { bf16, NULL, 0, WEIGHT_BF16, s->rows, 0, PACK_WHOLE, NULL };
    const float factor = -2688.0f / (8.0f / sqrtf((float)s->k));               /* divides, as compressed-tensors writes it */

    if (format == WEIGHT_FP8 || format == WEIGHT_BF16) return from;
    OK(quantise_launch(format, bf16, s->rows, s->k, codes, scale, -1.0f / factor, NULL));
    if (format == WEIGHT_FP4) CHECK(cudaMemcpy(scale, &factor, sizeof factor, cudaMemcpyHostToDevice));
    from.data = codes, from.scale = scale, from.scale_stride = s->k / WEIGHT_BLOCK, from.format = format;
    from.group = format == WEIGHT_FP4 ? codes + (uint64_t)s->rows * s->k / 2 : NULL;
    return from;
}

/* Codes and scales read by kernels/stored.h against what unpack gives: the largest relative difference. */
static double stored_error(const struct shape *s, uint32_t format, const uint8_t *codes_device, const float *scale_device, const float *unpacked_device)
{
    const uint64_t n = (uint64_t)s->rows * s->k;
    std::vector<uint8_t> codes(n);
    std::vector<float> scale(n / WEIGHT_BLOCK / WEIGHT_BLOCK + 1), u(n);
    struct stored_matrix m = {};
    double worst = 0.0;

    CHECK(cudaMemcpy(codes.data(), codes_device, n, cudaMemcpyDeviceToHost));
    CHECK(cudaMemcpy(scale.data(), scale_device, 4 * scale.size(), cudaMemcpyDeviceToHost));
    CHECK(cudaMemcpy(u.data(), unpacked_device, 4 * n, cudaMemcpyDeviceToHost));
    m.data = codes.data(), m.scale = scale.data(), m.group_scale = codes.data() + n / 2, m.rows = s->rows, m.k = s->k;
    m.element = format == WEIGHT_FP4 ? STORED_E2M1 : STORED_E4M3, m.scale_rows = format == WEIGHT_FP4 ? 1 : WEIGHT_BLOCK;
    m.scale_columns = format == WEIGHT_FP4 ? WEIGHT_GROUP : WEIGHT_BLOCK, m.global_divides = 1, m.global = -scale[0];
    for (uint64_t i = 0; i < n; i += 7) {                                      /* every lane, register and half comes by */
        const double want = stored_value(&m, i / s->k, i % s->k);
        worst = std::max(worst, fabs(u[i] - want) / std::max(fabs(want), 1e-20));
    }
    return worst;
}

static std::vector<uint8_t> one_row(const struct bench *b, const struct shape *s, struct rowmm_args a)
{
    std::vector<uint8_t> raw(b->out_bytes);

    CHECK(cudaMemset(b->out, 0xff, b->out_bytes));
    a.out = b->out, a.out_stride = b->columns, a.out_slice_stride = 16ull * b->columns, a.m = 1, a.out_kind = s->kind;
    OK(rowmm_launch(&b->w, a, &b->tuning, NULL));
    CHECK(cudaDeviceSynchronize());
    CHECK(cudaMemcpy(raw.data(), b->out, b->out_bytes, cudaMemcpyDeviceToHost));
    return raw;
}

/* A row that the product rounds itself against the same behind round.h's kernel: the same bits. By columns: largest element in each warp's share of each slice, once; a NaN; zeros. */
static int rounds_alike(const struct bench *b, const struct shape *s)
{
    std::vector<uint16_t> row(s->k);
    uint16_t *plain, *rounded;
    float *scale;
    int different = 0;

    CHECK(cudaMalloc(&plain, 2ull * s->k));
    CHECK(cudaMalloc(&rounded, 2ull * s->k));
    CHECK(cudaMalloc(&scale, 4));
    for (uint32_t i = 0; i < 40; i++) {
        const struct round_args round = { (const __nv_bfloat16 *)rounded, rounded, scale, s->k, 0.0f, {} };
        struct rowmm_args theirs = {}, own = {};

        OK(fill_normal_launch(plain, s->k, i == 38 ? 1e-30f : 3.0f, 300 + i, NULL));
        CHECK(cudaMemcpy(row.data(), plain, 2ull * s->k, cudaMemcpyDeviceToHost));
        if (i < 36) row[(uint64_t)(i * 2 + 1) * s->k / 72] = 0xc2c8;      /* -100 */
        if (i == 36) row[5] = 0x7fc0;
        if (i == 37) std::fill(row.begin(), row.end(), (uint16_t)0);
        CHECK(cudaMemcpy(plain, row.data(), 2ull * s->k, cudaMemcpyHostToDevice));
        CHECK(cudaMemcpy(rounded, row.data(), 2ull * s->k, cudaMemcpyHostToDevice));
        OK(round_launch(&round, ROUND_VALUES, 1, NULL));
        theirs.x = rounded, theirs.x_scale = scale, own.x = plain, own.rounds = 1;
        different += one_row(b, s, theirs) != one_row(b, s, own);
    }
    for (void *p : { (void *)plain, (void *)rounded, (void *)scale }) CHECK(cudaFree(p));
    return different;
}

static int run(const struct shape *s, uint32_t format, uint32_t sms)
{
    const uint64_t n = (uint64_t)s->rows * s->k;
    struct bench b = {};
    uint16_t *source;
    uint8_t *codes;
    float *scratch, *unpacked;
    double *sums;
    int bad = 0;

    b.w.rows = s->rows, b.w.k = s->k, b.w.slice_k = packed_slice_k(s->k), b.w.format = format;
    b.slices = s->k / b.w.slice_k, b.columns = s->kind == ROWMM_GEGLU ? s->rows / 2 : s->rows;
    b.out_bytes = 4ull * 16 * b.columns * b.slices, b.tuning.ring_slots = 10, b.tuning.window_slots = 3, b.tuning.wait_slots = 1, b.tuning.sm_count = sms;
    CHECK(cudaMalloc((void **)&b.w.data, packed_bytes(format, s->rows, s->k)));
    CHECK(cudaMalloc(&source, 2 * n));
    CHECK(cudaMalloc(&codes, n));
    CHECK(cudaMalloc(&scratch, 4 * s->rows + n / 4096 + 4));
    CHECK(cudaMalloc(&unpacked, 4 * n));
    CHECK(cudaMalloc(&b.x, 2ull * 16 * s->k));
    CHECK(cudaMalloc(&b.tiled, 2ull * 16 * s->k));
    CHECK(cudaMalloc(&sums, 8ull * 16 * s->rows));
    CHECK(cudaMalloc(&b.out, b.out_bytes));
    CHECK(cudaMalloc(&b.tile_top, 4ull * 16 * s->rows / 16));
    OK(fill_normal_launch(source, n, 1.0f / sqrtf((float)s->k), 100 + s->rows + format, NULL));
    OK(fill_normal_launch(b.x, 16ull * s->k, 3.0f, 200 + s->k, NULL));
    CHECK(rows_make(b.x, 16ull * s->k, format, &b.x_power));
    if (b.x_power) {
        const float up = GEGLU_UP;

        CHECK(cudaMalloc(&b.out_power, sizeof up));
        CHECK(cudaMemcpy(b.out_power, &up, sizeof up, cudaMemcpyHostToDevice));
    }
    const struct pack_source from = store(s, format, source, codes, scratch);
    OK(pack_launch(&b.w, &from, scratch, NULL));
    OK(unpack_launch(&b.w, unpacked, NULL));
    reference_kernel<<<dim3((s->rows + 127) / 128, 16), 128>>>(unpacked, b.x, rows_are_f16(format), sums, s->rows, s->k);
    CHECK(cudaDeviceSynchronize());

    std::vector<double> want(16ull * s->rows);
    std::vector<uint16_t> plain(s->rows <= 8192 ? n : 0);
    CHECK(cudaMemcpy(want.data(), sums, 8 * want.size(), cudaMemcpyDeviceToHost));
    if (!plain.empty()) CHECK(cudaMemcpy(plain.data(), source, 2 * n, cudaMemcpyDeviceToHost));
    const double lost = plain.empty() ? 0.0 : pack_error(plain, unpacked, n, s->k, format);
    const double moved = plain.empty() || from.format == WEIGHT_BF16 ? 0.0 : stored_error(s, format, codes, scratch, unpacked);

    /* f32 sums of 3840..15360 terms: 1e-6; one rounding to bf16 in the GEGLU: up to 2^-9, to f16: 2^-12. */
    const double limit = s->kind != ROWMM_GEGLU ? 2e-6 : b.out_power ? 3.2e-4 : 2.5e-3;
    const std::vector<float> full = product(&b, s, 0, 16);
    double worst = relative_error(s, &b, full, want, 0, 16);
    uint64_t different = 0;

    for (uint32_t m : { 1u, 2u, 3u, 5u, 8u, 9u, 12u, 16u })
        for (uint32_t first = 0; first + m <= 16; first += m == 1 ? 1 : 3) {
            const std::vector<float> part = product(&b, s, first, m);

            const std::vector<float> of_tiles = product(&b, s, first, m, true);

            worst = std::max(worst, relative_error(s, &b, part, want, first, m));
            different += memcmp(part.data(), full.data() + (uint64_t)first * b.columns, 4 * part.size()) != 0;
            different += memcmp(of_tiles.data(), part.data(), 4 * part.size()) != 0;
        }
    for (int i = 0; i < 20; i++) {
        const std::vector<float> again = product(&b, s, 0, i % 2 ? 16 : 8);
        different += memcmp(again.data(), full.data(), 4 * again.size()) != 0;
    }
    if (format == WEIGHT_FP8 && s->kind != ROWMM_LOGITS) different += rounds_alike(&b, s);
    bad = !(worst < limit) || different || lost > 0.0 || !(moved < 3e-7);
    printf("%-4s %-8s %6u x %5u %-5s error %.2e (limit %.1e) launches with other bits %llu pack excess %.1e, against the stored codes %.1e\n", bad ? "FAIL" : "ok", s->name, s->rows, s->k,
           format_name[format], worst, limit, (unsigned long long)different, lost, moved);
    for (void *p : { (void *)b.w.data, (void *)source, (void *)codes, (void *)scratch, (void *)unpacked, (void *)b.x, (void *)b.tiled, (void *)sums, b.out, (void *)b.tile_top, (void *)b.x_power, (void *)b.out_power }) CHECK(cudaFree(p));
    return bad;
}

/* Argument: a format's name; none: all. */
int main(int argc, char **argv)
{
    static const struct shape shapes[] = { { "qkv", 8192, 3840, ROWMM_PARTIAL }, { "qkv full", 8704, 3840, ROWMM_PARTIAL }, { "o", 3840, 4096, ROWMM_PARTIAL },
                                           { "o full", 3840, 8192, ROWMM_PARTIAL }, { "gate_up", 30720, 3840, ROWMM_GEGLU }, { "down", 3840, 15360, ROWMM_PARTIAL },
                                           { "head", 32768, 3840, ROWMM_LOGITS }, { "tiny", 16, 3840, ROWMM_PARTIAL } };
    int count = 0, sms = 0, bad = 0;

    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) return printf("skip: no GPU\n"), 77;
    CHECK(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0));
    OK(rowmm_init());
    OK(round_init());
    for (const struct shape &s : shapes)
        for (uint32_t format : { (uint32_t)WEIGHT_FP8, (uint32_t)WEIGHT_BF16, (uint32_t)WEIGHT_FP8_BLOCK, (uint32_t)WEIGHT_FP4 })
            if ((argc < 2 || strcmp(argv[1], format_name[format]) == 0) && (format != WEIGHT_FP8_BLOCK || s.rows % WEIGHT_BLOCK == 0)) bad += run(&s, format, (uint32_t)sms);
    return bad ? 1 : 0;
}
