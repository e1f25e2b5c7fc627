/* tests/gpu/norm_test.cu - the norms between the blocks of a layer; exit 0 pass, 1 fail, 77 no GPU.
 *
 * The norm kernel agrees with f64 for 1, 2 and 4 partial results, and a row's bits are the same alone and among 16 rows, again and again. With an activation rule
 * it leaves what round.h makes of what it leaves without. A product of FP4 weights has the same bits from the image of terms that the norm leaves and from its bf16 rows, which
 * the product splits itself. */
#include "kernels/cuda/launch.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/pack.h"
#include "kernels/cuda/round.h"
#include "kernels/cuda/rowmm.h"
#include "kernels/cuda/terms.cuh"
#include <cuda_runtime.h>
#include <math.h>
#include <random>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <vector>

#define CHECK(x) do { const cudaError_t e_ = (x); if (e_ != cudaSuccess) { fprintf(stderr, "%s:%d %s: %s\n", __FILE__, __LINE__, #x, cudaGetErrorString(e_)); exit(1); } } while (0)
#define OK(x) do { const int r_ = (x); if (r_ < 0) { fprintf(stderr, "%s:%d %s: error %d (%s)\n", __FILE__, __LINE__, #x, r_, launch_error()); exit(1); } } while (0)

#define HIDDEN 3840u
#define ROWS 16u
#define REPEATS 20

static float bf16(float x)
{
    return __bfloat162float(__float2bfloat16_rn(x));
}

struct data {
    std::vector<float> part, residual, post, next;
    float scalar, *part_device, *residual_device, *residual_out, *scalar_device;
    __nv_bfloat16 *post_device, *next_device, *y;
};

template <class T> static T *to_device(const std::vector<T> &v)
{
    T *p;

    CHECK(cudaMalloc(&p, v.size() * sizeof(T)));
    CHECK(cudaMemcpy(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice));
    return p;
}

static __nv_bfloat16 *to_device_bf16(const std::vector<float> &v)
{
    std::vector<__nv_bfloat16> b(v.size());

    for (size_t i = 0; i < v.size(); i++) b[i] = __float2bfloat16_rn(v[i]);
    return to_device(b);
}

static struct data make_data()
{
    std::mt19937 random(7);
    std::normal_distribution<float> normal;
    struct data d;

    for (uint32_t i = 0; i < 4 * ROWS * HIDDEN; i++) d.part.push_back(normal(random) * 0.5f);
    for (uint32_t i = 0; i < ROWS * HIDDEN; i++) d.residual.push_back(normal(random) * (1.0f + (float)(i / HIDDEN)));
    for (uint32_t i = 0; i < HIDDEN; i++) d.post.push_back(bf16(1.0f + 0.3f * normal(random))), d.next.push_back(bf16(1.0f + 0.3f * normal(random)));
    d.scalar = bf16(0.7f);
    d.part_device = to_device(d.part), d.residual_device = to_device(d.residual), d.residual_out = to_device(d.residual);
    d.post_device = to_device_bf16(d.post), d.next_device = to_device_bf16(d.next), d.y = to_device_bf16(d.residual);
    d.scalar_device = to_device(std::vector<float>(1, d.scalar));
    return d;
}

static struct norm_args arguments(const struct data *d, uint32_t split)
{
    struct norm_args n = {};

    n.part = d->part_device, n.part_stride = ROWS * HIDDEN, n.split = split, n.hidden = HIDDEN;
    n.residual = d->residual_device, n.residual_out = d->residual_out;
    n.w_post = d->post_device, n.w_next = d->next_device, n.scalar = d->scalar_device, n.eps = 1e-6f, n.y = d->y;
    return n;
}

template <class T> static std::vector<T> fetch(const T *p, size_t n)
{
    std::vector<T> v(n);

    CHECK(cudaDeviceSynchronize());
    CHECK(cudaMemcpy(v.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost));
    return v;
}

static int test_kernel_agrees_with_f64(const struct data *d, uint32_t split)
{
    const struct norm_args n = arguments(d, split);
    double worst_h = 0.0, worst_y = 0.0;

    OK(norm_launch(&n, ROWS, NULL));
    const std::vector<float> got_h = fetch(d->residual_out, ROWS * HIDDEN);
    const std::vector<__nv_bfloat16> got_y = fetch(d->y, ROWS * HIDDEN);

    for (uint32_t m = 0; m < ROWS; m++) {
        std::vector<double> a(HIDDEN), h(HIDDEN);
        double sum_a = 0.0, sum_h = 0.0;

        for (uint32_t i = 0; i < HIDDEN; i++) {
            for (uint32_t s = 0; s < split; s++) a[i] += d->part[(s * ROWS + m) * HIDDEN + i];
            sum_a += a[i] * a[i];
        }
        for (uint32_t i = 0; i < HIDDEN; i++) {
            h[i] = (d->residual[m * HIDDEN + i] + a[i] / sqrt(sum_a / HIDDEN + 1e-6) * d->post[i]) * d->scalar;
            sum_h += h[i] * h[i];
        }
        for (uint32_t i = 0; i < HIDDEN; i++) {
            const double y = h[i] / sqrt(sum_h / HIDDEN + 1e-6) * d->next[i];

            worst_h = fmax(worst_h, fabs(got_h[m * HIDDEN + i] - h[i]) / (fabs(h[i]) + 1.0));
            worst_y = fmax(worst_y, fabs((double)__bfloat162float(got_y[m * HIDDEN + i]) - y) / (fabs(y) + 1e-3));
        }
    }
    /* f32 sums: a few 1e-7; y has one rounding to bf16: 2^-8. */
    const bool bad = !(worst_h < 2e-6) || !(worst_y < 1.0 / 256 * 1.001);

    printf("%-4s norm kernel, %u partial results: h %.2e, y %.2e\n", bad ? "FAIL" : "ok", split, worst_h, worst_y);
    return bad;
}

static int test_company_changes_no_bit(const struct data *d, uint32_t split)
{
    struct norm_args n = arguments(d, split);
    uint32_t different = 0;

    OK(norm_launch(&n, ROWS, NULL));
    const std::vector<float> want = fetch(d->residual_out, ROWS * HIDDEN);
    const std::vector<uint16_t> want_y = fetch((const uint16_t *)d->y, ROWS * HIDDEN);

    for (int i = 0; i < REPEATS; i++) {
        const uint32_t first = (uint32_t)i % ROWS, rows = (uint32_t)i % 3 + 1 <= ROWS - first ? (uint32_t)i % 3 + 1 : ROWS - first;

        CHECK(cudaMemset(d->residual_out, 0xff, 4ull * ROWS * HIDDEN));
        CHECK(cudaMemset(d->y, 0xff, 2ull * ROWS * HIDDEN));
        n.part = d->part_device + (uint64_t)first * HIDDEN, n.residual = d->residual_device + (uint64_t)first * HIDDEN;
        OK(norm_launch(&n, rows, NULL));
        const std::vector<float> h = fetch(d->residual_out, rows * HIDDEN);
        const std::vector<uint16_t> y = fetch((const uint16_t *)d->y, rows * HIDDEN);

        different += memcmp(h.data(), &want[(uint64_t)first * HIDDEN], 4 * h.size()) || memcmp(y.data(), &want_y[(uint64_t)first * HIDDEN], 2 * y.size());
    }
    printf("%-4s norm kernel, %u partial results: launches with other bits %u\n", different ? "FAIL" : "ok", split, different);
    return different != 0;
}

static int test_rounds_as_the_rule_says(const struct data *d, uint32_t split, float fixed)
{
    struct norm_args n = arguments(d, split);
    float *scale;

    CHECK(cudaMalloc(&scale, 4 * ROWS));
    const struct round_args round = { d->y, d->y, scale, HIDDEN, fixed };
    OK(norm_launch(&n, ROWS, NULL));
    OK(round_launch(&round, ROUND_VALUES, ROWS, NULL));
    const std::vector<float> want_scale = fetch(scale, ROWS);
    const std::vector<uint16_t> want = fetch((const uint16_t *)d->y, ROWS * HIDDEN);

    n.y_scale = scale, n.y_fixed = fixed;
    CHECK(cudaMemset(scale, 0xff, 4 * ROWS));
    CHECK(cudaMemset(d->y, 0xff, 2ull * ROWS * HIDDEN));
    OK(norm_launch(&n, ROWS, NULL));
    const int bad = fetch(scale, ROWS) != want_scale || fetch((const uint16_t *)d->y, ROWS * HIDDEN) != want;

    CHECK(cudaFree(scale));
    printf("%-4s norm kernel, %u partial results, %s: as rounded behind it\n", bad ? "FAIL" : "ok", split, fixed == 0.0f ? "each row by its own scale" : "one scale");
    return bad;
}

/* A random FP4 matrix [rows, HIDDEN]. */
static struct packed_matrix make_matrix(uint32_t rows)
{
    const uint64_t n = (uint64_t)rows * HIDDEN;
    const float factor = 0.01f;
    struct packed_matrix w = { NULL, rows, HIDDEN, packed_slice_k(HIDDEN), WEIGHT_FP4 };
    uint8_t *source, *codes;
    float *scale;

    CHECK(cudaMalloc((void **)&w.data, packed_bytes(w.format, rows, HIDDEN)));
    CHECK(cudaMalloc(&source, 2 * n));
    CHECK(cudaMalloc(&codes, n));
    CHECK(cudaMalloc(&scale, sizeof factor));
    CHECK(cudaMemcpy(scale, &factor, sizeof factor, cudaMemcpyHostToDevice));
    OK(fill_normal_launch(source, n, 0.02f, 11, NULL));
    OK(quantise_launch(w.format, source, rows, HIDDEN, codes, scale, factor, NULL));
    const struct pack_source from = { codes, scale, 0, WEIGHT_FP4, rows, 0, PACK_WHOLE, codes + n / 2 };
    OK(pack_launch(&w, &from, NULL, NULL));
    CHECK(cudaDeviceSynchronize());
    for (void *p : { (void *)source, (void *)codes, (void *)scale }) CHECK(cudaFree(p));
    return w;
}

static int test_image_gives_the_bits_of_the_rows(const struct data *d)
{
    const struct packed_matrix w = make_matrix(8192);
    const uint32_t bytes = terms_offset(HIDDEN, 2 * ROWS);
    uint8_t *images;
    uint32_t *top;
    float *out;
    int bad = 0, sms = 0;

    CHECK(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, 0));
    CHECK(cudaMalloc(&images, bytes));
    CHECK(cudaMalloc(&top, 4 * ROWS));
    CHECK(cudaMalloc(&out, 4ull * ROWS * w.rows));
    CHECK(cudaMemset(images, 0, bytes));
    for (uint32_t rows : { 16u, 1u, 2u, 3u, 4u, 7u, 8u, 11u }) {
        uint8_t *image = images + terms_offset(HIDDEN, terms_rows(rows));
        struct norm_args n = arguments(d, 1);
        struct rowmm_tuning tuning = {};
        std::vector<float> got[2];

        n.terms = image, n.terms_rows = terms_rows(rows), n.terms_top = top;
        OK(norm_launch(&n, rows, NULL));
        tuning.ring_slots = 10, tuning.window_slots = 3, tuning.wait_slots = 2, tuning.sm_count = (uint32_t)sms;
        for (int from_image = 0; from_image < 2; from_image++) {
            struct rowmm_args a = {};

            a.x = d->y, a.terms = from_image ? image : NULL, a.terms_top = top;
            a.out = out, a.out_stride = w.rows, a.out_slice_stride = (uint64_t)ROWS * w.rows, a.m = rows;
            CHECK(cudaMemset(out, 0xff, 4ull * ROWS * w.rows));
            OK(rowmm_launch(&w, a, &tuning, NULL));
            got[from_image] = fetch(out, (size_t)rows * w.rows);
        }
        const bool other = memcmp(got[0].data(), got[1].data(), 4 * got[0].size()) != 0 || !isfinite(got[0][0]);

        printf("%-4s image of terms, %u rows: the product's bits are %s those of the rows\n", other ? "FAIL" : "ok", rows, other ? "NOT" : "");
        bad += other;
    }
    for (void *p : { (void *)images, (void *)top, (void *)out, (void *)w.data }) CHECK(cudaFree(p));
    return bad;
}

int main()
{
    int count = 0, bad = 0;

    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) return printf("skip: no GPU\n"), 77;
    OK(norm_init());
    OK(round_init());
    OK(rowmm_init());
    const struct data d = make_data();

    for (uint32_t split : { 1u, 2u, 4u }) {
        bad += test_kernel_agrees_with_f64(&d, split);
        bad += test_company_changes_no_bit(&d, split);
        for (float fixed : { 0.0f, 0.0123f }) bad += test_rounds_as_the_rule_says(&d, split, fixed);
    }
    bad += test_image_gives_the_bits_of_the_rows(&d);
    return bad ? 1 : 0;
}
