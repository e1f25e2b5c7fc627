/* tests/gpu/norm_test.cu - the norms between the blocks of a layer; exit 0 pass, 1 fail, 77 no GPU.
 *
 * A norm that polls for the tags of its input (tags.cuh) takes no word too early, gives up where they never come, and tags what it leaves.
 * The norm kernel agrees with f64 for 1, 2 and 4 partial results, in bf16 and in f16, and a row's bits are the same alone and among 16 rows, again and again. With an activation rule
 * it leaves what round.h makes of what it leaves without. */
#include "kernels/cuda/launch.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/round.h"
#include "kernels/cuda/tags.cuh"
#include <cuda_fp16.h>
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
#define POWER 256.0f                  /* largest weight about 2: no element reaches 65504 / 256 */

static float bf16(float x)
{
    return __bfloat162float(__float2bfloat16_rn(x));
}

struct data {
    std::vector<float> part, residual, post, next;
    float scalar, *part_device, *residual_device, *residual_out, *scalar_device;
    __nv_bfloat16 *post_device, *next_device, *y;
    float *power;                     /* on the device: POWER */
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
    d.scalar_device = to_device(std::vector<float>(1, d.scalar)), d.power = to_device(std::vector<float>(1, POWER));
    return d;
}

static struct norm_args arguments(const struct data *d, uint32_t split, bool f16 = false)
{
    struct norm_args n = {};

    n.part = d->part_device, n.part_stride = ROWS * HIDDEN, n.split = split, n.hidden = HIDDEN;
    n.residual = d->residual_device, n.residual_out = d->residual_out;
    n.w_post = d->post_device, n.w_next = d->next_device, n.scalar = d->scalar_device, n.eps = 1e-6f, n.y = d->y, n.y_power = f16 ? d->power : NULL;
    return n;
}

template <class T> static std::vector<T> fetch(const T *p, size_t n)
{
    std::vector<T> v(n);

    CHECK(cudaDeviceSynchronize());
    CHECK(cudaMemcpy(v.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost));
    return v;
}

static int test_kernel_agrees_with_f64(const struct data *d, uint32_t split, bool f16)
{
    const struct norm_args n = arguments(d, split, f16);
    double worst_h = 0.0, worst_y = 0.0;

    OK(norm_launch(&n, ROWS, NULL));
    const std::vector<float> got_h = fetch(d->residual_out, ROWS * HIDDEN);
    const std::vector<uint16_t> got_y = fetch((const uint16_t *)d->y, ROWS * HIDDEN);

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
            const double got = f16 ? (double)__half2float(__ushort_as_half(got_y[m * HIDDEN + i])) / POWER : (double)__bfloat162float(__ushort_as_bfloat16(got_y[m * HIDDEN + i]));

            worst_y = fmax(worst_y, fabs(got - y) / (fabs(y) + 1e-3));
        }
    }
    /* f32 sums: a few 1e-7; y has one rounding: to bf16 2^-9, to f16 2^-12 (all elements that count are above 2^-14 times 256). */
    const bool bad = !(worst_h < 2e-6) || !(worst_y < (f16 ? 1.0 / 2048 : 1.0 / 256) * 1.001);

    printf("%-4s norm kernel, %u partial results, %s: h %.2e, y %.2e\n", bad ? "FAIL" : "ok", split, f16 ? "f16" : "bf16", worst_h, worst_y);
    return bad;
}

static int test_company_changes_no_bit(const struct data *d, uint32_t split, bool f16)
{
    struct norm_args n = arguments(d, split, f16);
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

/* And in other places (row_places.h), of every number of rows that a tile may have and of two tiles. */
static int test_tiles_hold_the_same(const struct data *d, bool f16)
{
    struct norm_args n = arguments(d, 1, f16);
    uint32_t wrong = 0;

    OK(norm_launch(&n, ROWS, NULL));
    const std::vector<uint16_t> want = fetch((const uint16_t *)d->y, ROWS * HIDDEN);

    for (uint32_t rows = 1; rows <= ROWS; rows++) {
        n.y_places = places_tiled(rows);
        CHECK(cudaMemset(d->y, 0xff, 2ull * ROWS * HIDDEN));
        OK(norm_launch(&n, rows, NULL));
        const std::vector<uint16_t> y = fetch((const uint16_t *)d->y, ROWS * HIDDEN);

        for (uint32_t m = 0; m < rows; m++)
            for (uint32_t i = 0; i < HIDDEN; i++) wrong += y[place_of(n.y_places, HIDDEN, m, i)] != want[m * HIDDEN + i];
    }
    printf("%-4s norm kernel, %s, tiles of rows: elements that differ %u\n", wrong ? "FAIL" : "ok", f16 ? "f16" : "bf16", wrong);
    return wrong != 0;
}

static int test_rounds_as_the_rule_says(const struct data *d, uint32_t split, float fixed)
{
    struct norm_args n = arguments(d, split);
    float *scale;

    CHECK(cudaMalloc(&scale, 4 * ROWS));
    const struct round_args round = { d->y, d->y, scale, HIDDEN, fixed, {} };
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

/* Stands for a product: copies the sums and the residual a moment after it was started, blocks one after the other and backwards. */
__global__ void late_kernel(float *part, const float *part_from, uint32_t parts, float *residual, const float *residual_from, uint32_t rows)
{
    chain_trigger();
    chain_wait();
    __nanosleep((blockIdx.x * 7 % gridDim.x) * 100);
    for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < parts; i += gridDim.x * blockDim.x) st_tagged(part + parts - 1 - i, part_from[parts - 1 - i]);
    for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < rows; i += gridDim.x * blockDim.x) st_tagged(residual + i, residual_from[i]);
}

static uint32_t bits_of(float x)
{
    uint32_t bits;

    memcpy(&bits, &x, 4);
    return bits;
}

static std::vector<float> tagged(std::vector<float> v, uint32_t tag)
{
    for (float &x : v) {
        const uint32_t bits = (bits_of(x) & ~1u) | tag;

        memcpy(&x, &bits, 4);
    }
    return v;
}

/* Words of other tags are never taken, whatever order they come in; tags that never come are waited for no longer than the kernel in front lasts. */
static int test_polling_changes_no_bit(const struct data *d, uint32_t split, uint32_t tag)
{
    const uint32_t parts = split * ROWS * HIDDEN, row_words = ROWS * HIDDEN;
    struct norm_args n = arguments(d, split, true);
    float *part_from = to_device(tagged(d->part, tag)), *residual_from = to_device(tagged(d->residual, tag ^ 1)), *part = to_device(d->part), *residual = to_device(d->residual);
    const std::vector<float> stale_part[2] = { tagged(std::vector<float>(parts, 1e30f), tag ^ 1), tagged(std::vector<float>(parts, 1e30f), tag) }, stale_residual = tagged(std::vector<float>(row_words, 1e30f), tag);
    uint32_t different = 0, untagged = 0;

    n.part = part_from, n.residual = residual_from, n.out_tag = tag;
    OK(norm_launch(&n, ROWS, NULL));
    const std::vector<float> want = fetch(d->residual_out, row_words);
    const std::vector<uint16_t> want_y = fetch((const uint16_t *)d->y, row_words);

    for (float x : want) untagged += (bits_of(x) & 1) != tag;
    n.part = part, n.residual = residual, n.poll = 1, n.early = 2112 / split;
    for (int i = 0; i < REPEATS; i++) {
        const bool hopeless = i % 5 == 4;        /* a tag that no word ever has */
        uint32_t each = parts, all = row_words;
        void *params[] = { &part, &part_from, &each, &residual, &residual_from, &all };

        n.part_tag = tag ^ hopeless, n.residual_tag = tag ^ 1;
        CHECK(cudaMemcpy(part, stale_part[hopeless].data(), 4ull * parts, cudaMemcpyHostToDevice));
        CHECK(cudaMemcpy(residual, stale_residual.data(), 4ull * row_words, cudaMemcpyHostToDevice));
        CHECK(cudaMemset(d->residual_out, 0xff, 4ull * row_words));
        CHECK(cudaMemset(d->y, 0xff, 2ull * row_words));
        OK(launch_chained((const void *)late_kernel, 40 + i, 256, 0, params, NULL));
        OK(norm_launch(&n, ROWS, NULL));
        different += memcmp(fetch(d->residual_out, row_words).data(), want.data(), 4ull * row_words) || memcmp(fetch((const uint16_t *)d->y, row_words).data(), want_y.data(), 2ull * row_words);
    }
    CHECK(cudaFree(part_from));
    CHECK(cudaFree(residual_from));
    CHECK(cudaFree(part));
    CHECK(cudaFree(residual));
    printf("%-4s norm kernel, %u partial results, polling for tag %u: launches with other bits %u, words of another tag %u\n", different || untagged ? "FAIL" : "ok", split, tag, different, untagged);
    return different || untagged;
}

int main()
{
    int count = 0, bad = 0;

    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) return printf("skip: no GPU\n"), 77;
    OK(norm_init());
    OK(round_init());
    const struct data d = make_data();

    for (bool f16 : { false, true }) bad += test_tiles_hold_the_same(&d, f16);
    for (uint32_t split : { 1u, 2u, 4u }) {
        for (bool f16 : { false, true }) bad += test_kernel_agrees_with_f64(&d, split, f16), bad += test_company_changes_no_bit(&d, split, f16);
        for (uint32_t tag : { 0u, 1u }) bad += test_polling_changes_no_bit(&d, split, tag);
        for (float fixed : { 0.0f, 0.0123f }) bad += test_rounds_as_the_rule_says(&d, split, fixed);
    }
    return bad ? 1 : 0;
}
