/* tests/unit/plain_math_test.c - the arithmetic of the CUDA kernels for other shapes (kernels/cuda/plain_math.cuh), compiled
 * for the host, against the CPU's table of operations: the same bits for every input. What the GPU adds is tested in tests/gpu. */
#include "kernels/cuda/plain_math.cuh"
#include "kernels/kernels.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>

#define COUNT 4096                    /* values of a kind; a multiple of 16 */

static uint32_t state = 1;

static uint32_t next_word(void)
{
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state;
}

/* Of every size that is not NaN, with the edges of exp and tanh and denormals at the front. */
static void fill(float *x, uint32_t n)
{
    static const float edge[] = { 0.0f, -0.0f, 1.0f, -1.0f, 0.625f, -0.625f, 9.1f, -9.1f, 88.3762589f, -87.3365447f, 89.0f, -88.0f, -87.3365f,
                                  1e-40f, -1e-40f, INFINITY, -INFINITY, 0x1p-126f, 0.34657359f, -0.34657359f };
    uint32_t i = 0;

    for (; i < sizeof(edge) / sizeof(edge[0]); i++) x[i] = edge[i];
    for (; i < n; i++) {
        const uint32_t word = next_word();

        x[i] = i % 2 ? plain_float(word) : (float)(int32_t)word * 0x1p-25f;   /* any; or within 64 */
        if (x[i] != x[i]) x[i] = 2.0f;
    }
}

static void assert_same(const char *what, float input, float want, float have)
{
    if (plain_bits(want) != plain_bits(have) && !(want != want && have != have))
        fail_msg("%s of %a: %a, the CPU has %a", what, (double)input, (double)have, (double)want);
}

static const struct kernels *table(void) { return kernels_get(KERNELS_PORTABLE); }

static void test_exp_and_tanh_have_the_cpus_bits(void **unused)
{
    float in[COUNT], out[COUNT];

    (void)unused;
    for (int round = 0; round < 16; round++) {
        fill(in, COUNT);
        memcpy(out, in, sizeof(in));
        table()->exp(out, COUNT);
        for (int i = 0; i < COUNT; i++) assert_same("exp", in[i], out[i], plain_exp(in[i]));
        memcpy(out, in, sizeof(in));
        table()->tanh(out, COUNT);
        for (int i = 0; i < COUNT; i++) assert_same("tanh", in[i], out[i], plain_tanh(in[i]));
    }
}

static void test_activation_and_cap_have_the_cpus_bits(void **unused)
{
    float in[COUNT], up[COUNT], out[COUNT];

    (void)unused;
    fill(in, COUNT);
    for (int i = 0; i < COUNT; i++) up[i] = in[COUNT - 1 - i];
    memcpy(out, in, sizeof(in));
    table()->geglu(out, up, COUNT);
    for (int i = 0; i < COUNT; i++) assert_same("geglu", in[i], out[i], plain_geglu(in[i], up[i]));
    memcpy(out, in, sizeof(in));
    table()->softcap(out, 30.0f, COUNT);
    for (int i = 0; i < COUNT; i++) assert_same("softcap", in[i], out[i], plain_softcap(in[i], 30.0f));
}

/* The sum in 16 lanes and the fixed tree, as every kernel of plain_*.cu takes it. */
static float lanes_squares(const float *x, uint32_t n)
{
    float lane[PLAIN_LANES] = { 0 };

    for (uint32_t i = 0; i < n; i++) lane[i % 16] = plain_fma(x[i], x[i], lane[i % 16]);
    for (int d = 8; d >= 1; d /= 2)
        for (int i = 0; i < d; i++) lane[i] = plain_add(lane[i], lane[i + d]);
    return lane[0];
}

static void test_norm_and_turn_have_the_cpus_bits(void **unused)
{
    float in[512], w[512], cosine[256], sine[256], out[512];

    (void)unused;
    for (int i = 0; i < 512; i++) in[i] = (float)(int32_t)next_word() * 0x1p-30f, w[i] = (float)(int32_t)next_word() * 0x1p-31f;
    for (int i = 0; i < 256; i++) cosine[i] = (float)(int32_t)next_word() * 0x1p-31f, sine[i] = (float)(int32_t)next_word() * 0x1p-31f;
    for (uint32_t n = 16; n <= 512; n += 16) {
        const float scale = plain_norm_scale(lanes_squares(in, n), n, 1e-6f);

        table()->rmsnorm(out, in, w, n, 1e-6f);
        for (uint32_t i = 0; i < n; i++) assert_same("norm", in[i], out[i], plain_mul(plain_mul(in[i], scale), w[i]));
    }
    memcpy(out, in, sizeof(in));
    table()->rope(out, cosine, sine, 256, 64);
    for (int i = 0; i < 64; i++) {
        assert_same("turn", in[i], out[i], plain_turn_low(in[i], in[i + 256], cosine[i], sine[i]));
        assert_same("turn", in[i + 256], out[i + 256], plain_turn_high(in[i], in[i + 256], cosine[i], sine[i]));
    }
}

static void test_narrow_and_widen_have_the_cpus_bits(void **unused)
{
    float in[COUNT], out[COUNT];
    uint16_t half[COUNT];

    (void)unused;
    fill(in, COUNT);
    table()->narrow(half, KERNELS_BF16, in, COUNT);
    table()->widen(out, half, KERNELS_BF16, 1.0f, COUNT);
    for (int i = 0; i < COUNT; i++) {
        assert_int_equal(plain_narrow(in[i]), half[i]);
        assert_same("widen", in[i], out[i], plain_widen(half[i]));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exp_and_tanh_have_the_cpus_bits),
        cmocka_unit_test(test_activation_and_cap_have_the_cpus_bits),
        cmocka_unit_test(test_norm_and_turn_have_the_cpus_bits),
        cmocka_unit_test(test_narrow_and_widen_have_the_cpus_bits),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
