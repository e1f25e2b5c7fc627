/* kernels/cpu/ops.h - the operations of kernels/kernels.h, compiled once per instruction set.
 *
 * Included by portable.c, ops_avx2.c and ops_avx512.c, each with its own flags and tile sizes; the table's name is KERNELS_TABLE.
 * linear, linear_stored and attention stand in linear.h, stored.h and attention.h.
 *
 * Errors against exact values (tests/unit/kernels_test.c measures them over the stated ranges):
 *   exp   2 ulp on [-87, 88]; 0 below -87.3 (softmax terms that far down are below the last bit of any sum)
 *   tanh  3 ulp everywhere */
#include "kernels/cpu/vec.h"
#include "kernels/kernels.h"

/* exp by x = n ln2 + r, |r| <= ln2 / 2, and a polynomial of degree 6 in r; ln2 in two parts keeps r exact. */
VEC vec ops_exp1(vec x)
{
    const vec low = vec_set(-87.3365447f), high = vec_set(88.3762589f);
    const vec_mask tiny = vec_less(x, low);
    const vec cut = vec_max(low, vec_min(high, x));      /* this order lets a NaN through: a broken model must show */
    const vec n = vec_round(vec_mul(cut, vec_set(1.44269504f)));
    vec r = vec_fma(n, vec_set(-0.693359375f), cut), p;

    r = vec_fma(n, vec_set(2.12194440e-4f), r);
    p = vec_fma(r, vec_set(1.9875691500e-4f), vec_set(1.3981999507e-3f));
    p = vec_fma(p, r, vec_set(8.3334519073e-3f));
    p = vec_fma(p, r, vec_set(4.1665795894e-2f));
    p = vec_fma(p, r, vec_set(1.6666665459e-1f));
    p = vec_fma(p, r, vec_set(5.0000001201e-1f));
    p = vec_fma(p, vec_mul(r, r), vec_add(r, vec_set(1.0f)));
    return vec_select(tiny, vec_zero(), vec_mul(p, vec_pow2(n)));
}

/* tanh: an odd polynomial below 0.625, where 1 - 2 / (e^2x + 1) would lose digits, that formula above. */
VEC vec ops_tanh1(vec x)
{
    const vec size = vec_min(vec_set(9.1f), vec_abs(x)), z = vec_mul(x, x), one = vec_set(1.0f);
    const vec e = ops_exp1(vec_add(size, size));
    const vec big = vec_sub(one, vec_div(vec_set(2.0f), vec_add(e, one)));
    vec p = vec_fma(z, vec_set(-5.70498872745e-3f), vec_set(2.06390887954e-2f));

    p = vec_fma(p, z, vec_set(-5.37397155531e-2f));
    p = vec_fma(p, z, vec_set(1.33314422036e-1f));
    p = vec_fma(p, z, vec_set(-3.33332819422e-1f));
    p = vec_fma(vec_mul(p, z), x, x);
    return vec_select(vec_less(size, vec_set(0.625f)), p, vec_select(vec_less(x, vec_zero()), vec_sub(vec_zero(), big), big));
}

static void ops_exp(float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i += 16) vec_store(x + i, ops_exp1(vec_load(x + i)));
}

static void ops_tanh(float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i += 16) vec_store(x + i, ops_tanh1(vec_load(x + i)));
}

static void ops_rmsnorm(float *y, const float *x, const float *w, uint32_t n, float eps)
{
    vec sum = vec_zero(), scale;

    for (uint32_t i = 0; i < n; i += 16) {
        const vec a = vec_load(x + i);
        sum = vec_fma(a, a, sum);
    }
    scale = vec_set(1.0f / sqrtf(vec_sum(sum) / (float)n + eps));
    for (uint32_t i = 0; i < n; i += 16) {
        const vec a = vec_mul(vec_load(x + i), scale);
        vec_store(y + i, w ? vec_mul(a, vec_load(w + i)) : a);
    }
}

static void ops_rope(float *x, const float *cosine, const float *sine, uint32_t half, uint32_t turned)
{
    for (uint32_t i = 0; i < turned; i += 16) {
        const vec a = vec_load(x + i), b = vec_load(x + half + i), c = vec_load(cosine + i), s = vec_load(sine + i);

        vec_store(x + i, vec_sub(vec_mul(a, c), vec_mul(b, s)));
        vec_store(x + half + i, vec_add(vec_mul(b, c), vec_mul(a, s)));
    }
}

static void ops_geglu(float *gate, const float *up, uint32_t n)
{
    const vec half = vec_set(0.5f), one = vec_set(1.0f), a = vec_set(0.044715f), b = vec_set(0.797884583f);

    for (uint32_t i = 0; i < n; i += 16) {
        const vec x = vec_load(gate + i);
        const vec inner = vec_mul(b, vec_fma(vec_mul(a, vec_mul(x, x)), x, x));

        vec_store(gate + i, vec_mul(vec_mul(vec_mul(half, x), vec_add(one, ops_tanh1(inner))), vec_load(up + i)));
    }
}

static void ops_add_scaled(float *h, const float *y, float scalar, uint32_t n)
{
    const vec s = vec_set(scalar);

    for (uint32_t i = 0; i < n; i += 16) vec_store(h + i, vec_mul(vec_add(vec_load(h + i), vec_load(y + i)), s));
}

static void ops_widen(float *y, const void *row, enum kernels_dtype dtype, float scale, uint32_t n)
{
    const vec s = vec_set(scale);

    for (uint32_t i = 0; i < n; i += 16) {
        if (dtype == KERNELS_BF16) vec_store(y + i, vec_mul(vec_load_bf16((const uint16_t *)row + i), s));
        else if (dtype == KERNELS_E4M3) vec_store(y + i, vec_mul(vec_mul(vec_load_e4m3((const uint8_t *)row + i), vec_set(0x1p8f)), s));
        else vec_store(y + i, vec_mul(vec_load((const float *)row + i), s));
    }
}

/* The E4M3 number nearest to each x, ties to even, at most 448 in size. Quantum in [2^e, 2^(e+1)): 2^(e-3), and 2^-9 below 2^-6. Adding and taking away
 * 1.5 * 2^23 quanta rounds to one. */
VEC vec ops_nearest_e4m3(vec x)
{
    const vec cut = vec_max(vec_set(-STORED_E4M3_MAX), vec_min(vec_set(STORED_E4M3_MAX), x));    /* this order lets a NaN through */
    const vec magic = vec_mul(vec_max(vec_exponent(cut), vec_set(0x1p-6f)), vec_set(0x1.8p20f));

    return vec_sub(vec_add(cut, magic), magic);
}

/* Codes of 16 numbers. The sign is x's own: a small negative number becomes -0. */
VEC void ops_store_e4m3(uint8_t *to, const float *x)
{
    float nearest[16];

    vec_store(nearest, ops_nearest_e4m3(vec_load(x)));
    for (int i = 0; i < 16; i++) {
        const float size = __builtin_fabsf(nearest[i]);
        uint32_t bits, sign;

        memcpy(&bits, &size, 4);
        memcpy(&sign, &x[i], 4);
        bits = size < 0x1p-6f ? (uint32_t)(size * 512.0f) : size <= STORED_E4M3_MAX ? ((bits >> 23) - 120) << 3 | (bits >> 20 & 7) : 0x7f;
        to[i] = (uint8_t)((sign >> 24 & 0x80) | bits);
    }
}

static void ops_narrow(void *row, enum kernels_dtype dtype, const float *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i += 16) {
        if (dtype == KERNELS_BF16) vec_store_bf16((uint16_t *)row + i, vec_load(x + i));
        else if (dtype == KERNELS_E4M3) ops_store_e4m3((uint8_t *)row + i, x + i);
        else vec_store((float *)row + i, vec_load(x + i));
    }
}

static void ops_softcap(float *x, float cap, uint32_t n)
{
    const vec c = vec_set(cap);
    float rest[16] = { 0 };
    uint32_t i = 0;

    for (; i + 16 <= n; i += 16) vec_store(x + i, vec_mul(c, ops_tanh1(vec_div(vec_load(x + i), c))));
    if (i == n) return;
    memcpy(rest, x + i, (n - i) * sizeof(float));
    vec_store(rest, vec_mul(c, ops_tanh1(vec_div(vec_load(rest), c))));
    memcpy(x + i, rest, (n - i) * sizeof(float));
}

static float ops_to_e4m3(float *y, const float *x, float scale, uint32_t n)
{
    vec top = vec_zero(), factor;
    float s = scale;

    if (scale == 0) {
        for (uint32_t i = 0; i < n; i += 16) top = vec_max(top, vec_abs(vec_load(x + i)));
        s = vec_top(top) / STORED_E4M3_MAX;
        if (s < KERNELS_E4M3_SCALE_MIN) s = KERNELS_E4M3_SCALE_MIN;
    }
    factor = vec_set(scale == 0 ? s : 1.0f / s);
    for (uint32_t i = 0; i < n; i += 16) {
        const vec a = vec_load(x + i), b = scale == 0 ? vec_div(a, factor) : vec_mul(a, factor);
        vec_store(y + i, ops_nearest_e4m3(b));
    }
    return s;
}

#include "kernels/cpu/linear.h"
#include "kernels/cpu/stored.h"
#include "kernels/cpu/attention.h"

const struct kernels KERNELS_TABLE = {
    .name = KERNELS_NAME,
    .linear = linear,
    .linear_stored = linear_stored,
    .to_e4m3 = ops_to_e4m3,
    .rmsnorm = ops_rmsnorm,
    .rope = ops_rope,
    .geglu = ops_geglu,
    .add_scaled = ops_add_scaled,
    .widen = ops_widen,
    .narrow = ops_narrow,
    .softcap = ops_softcap,
    .attention = attention,
    .exp = ops_exp,
    .tanh = ops_tanh,
};
