/* tests/gpu/powers_test.cu - the powers of two of activations that become f16; exit 0 pass, 1 fail, 77 no GPU.
 *
 * A small layer for each format of weights, norm weights near 1 but one of 100: the powers follow from the bounds of powers.h, computed here in f64 from the unpacked weights; running it
 * again gives the same. Then norm, gate and up, on rows that are as bad as can be: all of a row's size in the heaviest element, and rows that point along the longest rows of gate and
 * up: nothing overflows, and what comes out is right to f16's rounding. Ordinary rows keep more than bf16's precision beside that element. */
#include "kernels/cuda/launch.h"
#include "kernels/cuda/norm.h"
#include "kernels/cuda/pack.h"
#include "kernels/cuda/powers.h"
#include "kernels/cuda/rowmm.h"
#include <algorithm>
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
#define INNER 256u                    /* gate rows */
#define QKV_ROWS 384u
#define VALUE_FIRST 256u
#define HEAD_DIM 256u
#define HEAVY 1234u                   /* element of the norm weights that is 100 */
#define ROWS 6u                       /* activations: 2 ordinary rows, the heavy element alone, along the longest pair, along its gate row, against its up row */

struct rig {
    struct packed_matrix qkv, gate_up;
    std::vector<float> qkv_plain, gate_up_plain, norm;      /* packed order; as the kernels see them */
    __nv_bfloat16 *norm_device, *ones_device;
    struct row_power *powers;
    float *scratch;
};

template <class T> static std::vector<T> fetch(const T *p, size_t n)
{
    std::vector<T> v(n);

    CHECK(cudaDeviceSynchronize());
    CHECK(cudaMemcpy(v.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost));
    return v;
}

static __nv_bfloat16 *to_device(std::vector<float> &v)
{
    std::vector<__nv_bfloat16> b(v.size());
    __nv_bfloat16 *p;

    for (size_t i = 0; i < v.size(); i++) b[i] = __float2bfloat16_rn(v[i]), v[i] = __bfloat162float(b[i]);
    CHECK(cudaMalloc(&p, 2 * v.size()));
    CHECK(cudaMemcpy(p, b.data(), 2 * v.size(), cudaMemcpyHostToDevice));
    return p;
}

static struct packed_matrix random_matrix(uint32_t rows, uint32_t format, uint64_t seed, std::vector<float> &plain)
{
    struct packed_matrix m = { NULL, rows, HIDDEN, HIDDEN, format };
    const uint64_t n = (uint64_t)rows * HIDDEN;
    const float deviation = 1.0f / sqrtf((float)HIDDEN), factor = 8.0f * deviation / 2688.0f;
    struct pack_source from = { NULL, NULL, 0, WEIGHT_BF16, rows, 0, PACK_WHOLE, NULL };
    uint8_t *source, *codes;
    float *scale, *out;

    CHECK(cudaMalloc((void **)&m.data, packed_bytes(format, rows, HIDDEN)));
    CHECK(cudaMalloc(&source, 2 * n));
    CHECK(cudaMalloc(&codes, n));
    CHECK(cudaMalloc(&scale, 4 * (rows + n / 4096)));
    CHECK(cudaMalloc(&out, 4 * n));
    OK(fill_normal_launch(source, n, deviation, seed, NULL));
    from.data = source;
    if (format == WEIGHT_FP8_BLOCK || format == WEIGHT_FP4) {
        OK(quantise_launch(format, source, rows, HIDDEN, codes, scale, factor, NULL));
        if (format == WEIGHT_FP4) CHECK(cudaMemcpy(scale, &factor, sizeof factor, cudaMemcpyHostToDevice));
        from.data = codes, from.scale = scale, from.scale_stride = HIDDEN / WEIGHT_BLOCK, from.format = format, from.group = format == WEIGHT_FP4 ? codes + n / 2 : NULL;
    }
    OK(pack_launch(&m, &from, scale, NULL));
    OK(unpack_launch(&m, out, NULL));
    plain = fetch(out, n);
    for (void *p : { (void *)source, (void *)codes, (void *)scale, (void *)out }) CHECK(cudaFree(p));
    return m;
}

static struct rig make_rig(uint32_t format)
{
    std::mt19937 random(format);
    std::normal_distribution<float> normal;
    std::vector<float> ones(HIDDEN, 1.0f);
    struct rig r;

    for (uint32_t i = 0; i < HIDDEN; i++) r.norm.push_back(i == HEAVY ? 100.0f : 1.0f + 0.2f * normal(random));
    r.norm_device = to_device(r.norm), r.ones_device = to_device(ones);
    r.qkv = random_matrix(QKV_ROWS, format, 11, r.qkv_plain), r.gate_up = random_matrix(2 * INNER, format, 12, r.gate_up_plain);
    CHECK(cudaMalloc(&r.powers, POWERS * sizeof *r.powers));
    CHECK(cudaMalloc(&r.scratch, 4 * POWERS_SCRATCH));
    return r;
}

/* ||row * w|| of a packed matrix. */
static double length(const std::vector<float> &plain, const std::vector<float> &w, uint32_t row)
{
    double sum = 0.0;

    for (uint32_t i = 0; i < HIDDEN; i++) sum += pow((double)plain[(uint64_t)row * HIDDEN + i] * w[i], 2);
    return sqrt(sum);
}

/* The gate row (packed) of the pair whose lengths' product is the largest. */
static uint32_t longest_pair(const struct rig *r, double *product)
{
    uint32_t best = 0;

    *product = 0.0;
    for (uint32_t i = 0; i < INNER; i++) {
        const uint32_t gate = i / 8 * 16 + i % 8;
        const double p = length(r->gate_up_plain, r->norm, gate) * length(r->gate_up_plain, r->norm, gate + 8);

        if (p > *product) *product = p, best = gate;
    }
    return best;
}

static struct powers_args arguments(const struct rig *r, bool v_norm)
{
    const struct powers_args a = { r->norm_device, r->norm_device, 0.0f, HIDDEN, HEAD_DIM, r->qkv, r->gate_up, VALUE_FIRST, v_norm, 0, 0, r->powers, r->scratch };

    return a;
}

static int test_powers_follow_from_the_weights(const struct rig *r, const char *name)
{
    double pair, value = 0.0;
    int bad = 0;

    longest_pair(r, &pair);
    for (uint32_t i = VALUE_FIRST; i < QKV_ROWS; i++) value = std::max(value, length(r->qkv_plain, r->norm, i));
    const double root = sqrt((double)HIDDEN), norm = root * 100.0;
    for (bool v_norm : { true, false, true }) {
        const struct powers_args a = arguments(r, v_norm);
        const double bound[POWERS] = { norm, v_norm ? sqrt((double)HEAD_DIM) : root * value, norm, HIDDEN * pair };

        OK(powers_launch(&a, NULL));
        const std::vector<struct row_power> got = fetch(r->powers, POWERS);
        for (int i = 0; i < POWERS; i++) {
            const double reach = bound[i] * got[i].up;

            bad += !(reach >= 16384.0 * 0.999 && reach < 32768.0 * 1.001) || got[i].up * got[i].down != 1.0f;
        }
        if (!v_norm || bad) printf("%-4s %-5s bounds qkv %.4g, o %.4g, gate_up %.4g, down %.4g: powers 2^%d 2^%d 2^%d 2^%d\n", bad ? "FAIL" : "ok", name, bound[0], bound[1], bound[2], bound[3],
                                   ilogbf(got[0].up), ilogbf(got[1].up), ilogbf(got[2].up), ilogbf(got[3].up));
    }
    return bad != 0;
}

/* Rows as they come out of the layers, of any size: the norm takes it away. */
static std::vector<float> bad_rows(const struct rig *r, uint32_t gate)
{
    std::mt19937 random(5);
    std::normal_distribution<float> normal;
    std::vector<float> x(ROWS * HIDDEN);

    for (uint32_t i = 0; i < HIDDEN; i++) {
        const float g = r->gate_up_plain[(uint64_t)gate * HIDDEN + i] * r->norm[i], u = r->gate_up_plain[(uint64_t)(gate + 8) * HIDDEN + i] * r->norm[i];

        x[i] = normal(random), x[HIDDEN + i] = 1000.0f * normal(random);
        x[2 * HIDDEN + i] = i == HEAVY ? -1e4f : 0.0f;
        x[3 * HIDDEN + i] = g + u, x[4 * HIDDEN + i] = g, x[5 * HIDDEN + i] = g - u;
    }
    return x;
}

struct results { std::vector<uint16_t> y, act; };

static struct results run(const struct rig *r, const std::vector<float> &rows)
{
    struct norm_args n = {};
    struct rowmm_args a = {};
    const struct rowmm_tuning tuning = { 10, 3, 1, 132 };
    float *zero, *h, *h_out;
    uint16_t *y, *act;

    CHECK(cudaMalloc(&zero, 4 * ROWS * HIDDEN));
    CHECK(cudaMemset(zero, 0, 4 * ROWS * HIDDEN));
    CHECK(cudaMalloc(&h, 4 * ROWS * HIDDEN));
    CHECK(cudaMemcpy(h, rows.data(), 4 * ROWS * HIDDEN, cudaMemcpyHostToDevice));
    CHECK(cudaMalloc(&h_out, 4 * ROWS * HIDDEN));
    CHECK(cudaMalloc(&y, 2 * ROWS * HIDDEN));
    CHECK(cudaMalloc(&act, 2 * ROWS * INNER));
    n.part = zero, n.part_stride = ROWS * HIDDEN, n.split = 1, n.hidden = HIDDEN, n.residual = h, n.residual_out = h_out, n.w_post = r->ones_device, n.w_next = r->norm_device;
    n.eps = 1e-6f, n.y = (__nv_bfloat16 *)y, n.y_power = &r->powers[POWER_GATE_UP].up;
    OK(norm_launch(&n, ROWS, NULL));
    a.x = y, a.x_power = &r->powers[POWER_GATE_UP].down, a.out = act, a.out_power = &r->powers[POWER_DOWN].up, a.out_stride = INNER, a.m = ROWS, a.out_kind = ROWMM_GEGLU;
    OK(rowmm_launch(&r->gate_up, a, &tuning, NULL));
    const struct results out = { fetch(y, ROWS * HIDDEN), fetch(act, ROWS * INNER) };
    for (void *p : { (void *)zero, (void *)h, (void *)h_out, (void *)y, (void *)act }) CHECK(cudaFree(p));
    return out;
}

static double value(uint16_t bits, float up) { return (double)__half2float(__ushort_as_half(bits)) / up; }

static double gelu(double x) { return 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x))); }

/* A row's relative error. */
static double off(const std::vector<double> &got, const std::vector<double> &want)
{
    double error = 0.0, size = 0.0;

    for (size_t i = 0; i < got.size(); i++) error += pow(got[i] - want[i], 2), size += pow(want[i], 2);
    return isfinite(error) ? sqrt(error / size) : 1e9;
}

static int test_nothing_overflows(const struct rig *r, const char *name)
{
    double pair, worst_y = 0.0, worst_act = 0.0, top = 0.0;
    const uint32_t gate = longest_pair(r, &pair);
    const std::vector<float> rows = bad_rows(r, gate);
    const struct powers_args a = arguments(r, true);

    OK(powers_launch(&a, NULL));
    const std::vector<struct row_power> power = fetch(r->powers, POWERS);
    const struct results got = run(r, rows);
    for (uint32_t m = 0; m < ROWS; m++) {
        std::vector<double> y(HIDDEN), want_y(HIDDEN), act(INNER), want(INNER);
        double square = 0.0;

        for (uint32_t i = 0; i < HIDDEN; i++) square += pow(rows[m * HIDDEN + i], 2);
        for (uint32_t i = 0; i < HIDDEN; i++) {
            want_y[i] = rows[m * HIDDEN + i] / sqrt(square / HIDDEN + 1e-6) * r->norm[i], y[i] = value(got.y[m * HIDDEN + i], power[POWER_GATE_UP].up);
            /* Each element alone: one rounding of 11 bits, or half a step of f16's smallest. */
            if (!(fabs(y[i] - want_y[i]) <= fabs(want_y[i]) / 2000.0 + ldexp(1.0, -25) * power[POWER_GATE_UP].down)) worst_y = 1e9;
        }
        for (uint32_t i = 0; i < INNER; i++) {
            const uint32_t at = i / 8 * 16 + i % 8;
            double g = 0.0, u = 0.0;

            for (uint32_t j = 0; j < HIDDEN; j++) g += y[j] * r->gate_up_plain[(uint64_t)at * HIDDEN + j], u += y[j] * r->gate_up_plain[(uint64_t)(at + 8) * HIDDEN + j];
            want[i] = gelu(g) * u, act[i] = value(got.act[m * INNER + i], power[POWER_DOWN].up);
            top = std::max(top, fabs((double)__half2float(__ushort_as_half(got.act[m * INNER + i]))));
        }
        worst_y = std::max(worst_y, off(y, want_y)), worst_act = std::max(worst_act, off(act, want));
    }
    const bool bad = !(worst_y < 1.0 / 2048) || !(worst_act < 1.0 / 2048);

    printf("%-4s %-5s rows as bad as can be: norm %.2e, gelu(gate) up %.2e off; largest f16 of it %.0f of 65504\n", bad ? "FAIL" : "ok", name, worst_y, worst_act, top);
    return bad;
}

static int test_bounds_that_are_none()
{
    const float odd[] = { 0.0f, -1.0f, INFINITY, -INFINITY, nanf("") };
    int bad = 0;

    for (float x : odd) bad += power_exponent(x) != 0;
    bad += power_exponent(1.0f) != 14 || power_exponent(1.999f) != 14 || power_exponent(2.0f) != 13 || power_exponent(1e-45f) != 100 || power_exponent(3e38f) != -100;
    printf("%-4s bounds of 0 and no numbers\n", bad ? "FAIL" : "ok");
    return bad != 0;
}

int main()
{
    static const char *const name[WEIGHT_FORMATS] = { "", "fp8", "bf16", "f32", "block", "fp4" };
    int count = 0, bad = 0;

    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) return printf("skip: no GPU\n"), 77;
    OK(norm_init());
    OK(rowmm_init());
    bad += test_bounds_that_are_none();
    for (uint32_t format : { (uint32_t)WEIGHT_FP8, (uint32_t)WEIGHT_FP8_BLOCK, (uint32_t)WEIGHT_FP4, (uint32_t)WEIGHT_BF16 }) {
        const struct rig r = make_rig(format);

        bad += test_powers_follow_from_the_weights(&r, name[format]);
        if (format != WEIGHT_BF16) bad += test_nothing_overflows(&r, name[format]);
    }
    return bad ? 1 : 0;
}
