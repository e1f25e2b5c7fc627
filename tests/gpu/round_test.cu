/* tests/gpu/round_test.cu - activation rules on the device (kernels/cuda/round.h) against the CPU's on the same inputs; exit 0 pass, 1 fail, 77 no GPU.
 *
 * Rows of every length that the model has, with zeros, subnormals, values beyond 448 scales, ties and a NaN; by their own scale and by a fixed one. Scales and what the codes mean
 * must be EQUAL, in place, in tiles (row_places.h) and as bytes in the order of the FP8 products; a row alone and among others gives the same bits. */
#include "kernels/cuda/launch.h"
#include "kernels/cuda/prefill_mm.h"
#include "kernels/cuda/round.h"
extern "C" {
#include "kernels/stored.h"
}
#include "kernels/cuda/plain_math.cuh"
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

#define ROWS 9u
#define TILED_ROWS 16u                /* whole tiles */
#define SCALE_MIN (1.0f / (448.0f * 512.0f))

static float bf16(float x) { return __bfloat162float(__float2bfloat16_rn(x)); }

/* As kernels/cpu/ops.h does it (tests/gpu/plain_test.c holds plain_math.cuh to it, bit by bit). Returns the scale. */
static float rule(std::vector<float> &x, float fixed)
{
    float scale = fixed, top = 0.0f;

    if (fixed == 0.0f) {
        for (float v : x)
            if (fabsf(v) > top) top = fabsf(v);
        scale = top / STORED_E4M3_MAX;
        if (scale < SCALE_MIN) scale = SCALE_MIN;
    }
    for (float &v : x) v = plain_to_e4m3(fixed == 0.0f ? v / scale : v * (1.0f / fixed));
    return scale;
}

static std::vector<float> make_row(uint32_t row, uint32_t k, std::mt19937 &random)
{
    std::normal_distribution<float> normal;
    std::vector<float> x(k);

    for (uint32_t i = 0; i < k; i++) {
        const float wild = ldexpf(normal(random), (int)(random() % 24) - 16);

        x[i] = bf16(row == 1 ? 0.0f : row == 2 ? 1e-30f * normal(random) : row == 3 ? 1e30f * normal(random) : row == 4 ? wild : row == 5 ? (float)(int)(random() % 4096) / 16.0f : normal(random) * (float)(row + 1));
    }
    if (row == 5) x[k - 1] = 448.0f;                           /* scale 1: quotients that are ties */
    if (row == 6) x[7] = x[k / 2 + 1] = nanf("");
    return x;
}

static bool same(float a, float b) { return (isnan(a) && isnan(b)) || a == b; }

static int run(uint32_t k, float fixed)
{
    std::mt19937 random(k + (fixed != 0.0f));
    std::vector<__nv_bfloat16> plain(ROWS * k), permuted(TILED_ROWS * k);
    std::vector<__half> values(ROWS * k);
    std::vector<std::vector<float>> want;
    std::vector<float> scale(ROWS), got(ROWS);
    std::vector<uint8_t> codes(ROWS * k);
    __nv_bfloat16 *x;
    uint8_t *codes_device;
    float *scale_device;
    int bad = 0;

    for (uint32_t r = 0; r < ROWS; r++) {
        want.push_back(make_row(r, k, random));
        for (uint32_t i = 0; i < k; i++) plain[r * k + i] = permuted[r * k + prefill_k(i)] = __float2bfloat16_rn(want[r][i]);
        scale[r] = rule(want[r], fixed);
    }
    CHECK(cudaMalloc(&x, 2 * TILED_ROWS * k));
    CHECK(cudaMalloc(&codes_device, ROWS * k));
    CHECK(cudaMalloc(&scale_device, 4 * ROWS));
    const struct round_args to_codes = { x, codes_device, scale_device, k, fixed, {} }, in_place = { x, x, scale_device, k, fixed, {} };
    const struct row_places tiled = places_tiled(ROWS);
    struct round_args in_tiles = in_place;

    CHECK(cudaMemcpy(x, permuted.data(), 2 * ROWS * k, cudaMemcpyHostToDevice));
    OK(round_launch(&to_codes, ROUND_CODES, ROWS, NULL));
    CHECK(cudaMemcpy(codes.data(), codes_device, ROWS * k, cudaMemcpyDeviceToHost));
    CHECK(cudaMemcpy(got.data(), scale_device, 4 * ROWS, cudaMemcpyDeviceToHost));
    for (uint32_t r = 0; r < ROWS; r++) {
        bad += got[r] != scale[r];
        for (uint32_t i = 0; i < k; i++) bad += !same(stored_from_e4m3(codes[r * k + round_k(i)]), want[r][i]);
    }
    CHECK(cudaMemcpy(x, plain.data(), 2 * ROWS * k, cudaMemcpyHostToDevice));
    OK(round_launch(&in_place, ROUND_VALUES, ROWS, NULL));
    CHECK(cudaMemcpy(values.data(), x, 2 * ROWS * k, cudaMemcpyDeviceToHost));
    CHECK(cudaMemcpy(got.data(), scale_device, 4 * ROWS, cudaMemcpyDeviceToHost));
    for (uint32_t r = 0; r < ROWS; r++) {
        bad += got[r] != scale[r];
        for (uint32_t i = 0; i < k; i++) bad += !same(__half2float(values[r * k + i]), want[r][i]);
    }
    in_tiles.places = tiled;
    for (uint32_t r = 0; r < ROWS; r++)
        for (uint32_t i = 0; i < k; i++) permuted[place_of(tiled, k, r, i)] = plain[r * k + i];
    CHECK(cudaMemcpy(x, permuted.data(), 2 * TILED_ROWS * k, cudaMemcpyHostToDevice));
    OK(round_launch(&in_tiles, ROUND_VALUES, ROWS, NULL));
    CHECK(cudaMemcpy(permuted.data(), x, 2 * TILED_ROWS * k, cudaMemcpyDeviceToHost));
    for (uint32_t r = 0; r < ROWS; r++)
        for (uint32_t i = 0; i < k; i++) bad += memcmp(&permuted[place_of(tiled, k, r, i)], &values[r * k + i], 2) != 0;
    for (uint32_t r = 0; r < ROWS; r++) {                      /* alone */
        CHECK(cudaMemcpy(x, plain.data() + r * k, 2 * k, cudaMemcpyHostToDevice));
        OK(round_launch(&in_place, ROUND_VALUES, 1, NULL));
        CHECK(cudaMemcpy(plain.data() + r * k, x, 2 * k, cudaMemcpyDeviceToHost));
        bad += memcmp(plain.data() + r * k, values.data() + r * k, 2 * k) != 0;
    }
    printf("%-4s k %5u, %s: %d differences\n", bad ? "FAIL" : "ok", k, fixed == 0.0f ? "each row by its own scale" : "one scale", bad);
    for (void *p : { (void *)x, (void *)codes_device, (void *)scale_device }) CHECK(cudaFree(p));
    return bad != 0;
}

static int refusals()
{
    const struct round_args good = { (const __nv_bfloat16 *)512, (void *)512, (float *)512, 3840, 0.0f, {} };
    struct round_args odd = good, long_row = good, negative = good;
    int bad = round_launch(&good, ROUND_VALUES, 0, NULL) >= 0;

    odd.k = 3856, long_row.k = 16416, negative.fixed = -1.0f;
    for (const struct round_args *a : { &odd, &long_row, &negative }) bad += round_launch(a, ROUND_CODES, 1, NULL) >= 0;
    printf("%-4s refusals\n", bad ? "FAIL" : "ok");
    return bad;
}

int main()
{
    int count = 0, bad = 0;

    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) return printf("skip: no GPU\n"), 77;
    OK(round_init());
    bad += refusals();
    for (uint32_t k : { 32u, 3840u, 4096u, 8192u, 15360u, 16384u })
        for (float fixed : { 0.0f, 0.0371f }) bad += run(k, fixed);
    return bad ? 1 : 0;
}
