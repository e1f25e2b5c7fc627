/* tests/unit/kernels_test.c - the operations against double, and the instruction sets against each other, bit for bit. */
#include "kernels/kernels.h"
#include "model/quantize.h"
#include "kernels/pool.h"
#include "shm/error.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static uint64_t state_word = 1;

/* uniform in [-1, 1) */
static float noise(void)
{
    state_word = state_word * 6364136223846793005u + 1442695040888963407u;
    return (float)((int32_t)(state_word >> 32)) * 0x1p-31f;
}

static uint16_t bf16(float f)
{
    uint32_t bits;

    memcpy(&bits, &f, 4);
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static float from_bf16(uint16_t h)
{
    const uint32_t bits = (uint32_t)h << 16;
    float f;

    memcpy(&f, &bits, 4);
    return f;
}

static void same_bits(const char *what, const char *isa, const float *a, const float *b, uint64_t n)
{
    for (uint64_t i = 0; i < n; i++)
        if (memcmp(&a[i], &b[i], 4) != 0) fail_msg("%s, %s: value %llu is %a, portable has %a", what, isa, (unsigned long long)i, (double)b[i], (double)a[i]);
}

/* Calls fn for the portable table (index 0) and every other one that this CPU has. */
static uint32_t tables(const struct kernels **list)
{
    uint32_t count = 0;

    for (int isa = KERNELS_PORTABLE; isa <= KERNELS_AVX512; isa++) {
        const struct kernels *k = kernels_get((enum kernels_isa)isa);

        if (k) list[count++] = k;
    }
    if (count < 3) print_message("  only %u of 3 instruction sets on this CPU\n", count);
    return count;
}

/* In units of the last place of the exact value. */
static double ulps(float got, double exact)
{
    int exponent;

    frexp(exact, &exponent);
    return fabs((double)got - exact) / ldexp(1.0, exponent - 24);
}

static void test_exp_and_tanh_keep_their_stated_errors(void **unused)
{
    const struct kernels *k = kernels_get(KERNELS_BEST);
    double worst_exp = 0, worst_tanh = 0;
    float x[16], y[16];

    (void)unused;
    for (uint32_t i = 0; i < 200000; i++) {
        const float scale = i % 3 == 0 ? 87.0f : i % 3 == 1 ? 5.0f : 0.7f;

        for (int j = 0; j < 16; j++) x[j] = y[j] = noise() * scale;
        k->exp(y, 16);
        for (int j = 0; j < 16; j++) worst_exp = fmax(worst_exp, ulps(y[j], exp((double)x[j])));
        memcpy(y, x, sizeof(y));
        k->tanh(y, 16);
        for (int j = 0; j < 16; j++) worst_tanh = fmax(worst_tanh, ulps(y[j], tanh((double)x[j])));
    }
    print_message("  exp %.2f ulp, tanh %.2f ulp\n", worst_exp, worst_tanh);
    assert_true(worst_exp <= 2.0);
    assert_true(worst_tanh <= 3.0);
    for (int j = 0; j < 16; j++) x[j] = (float[]){ -88, -1000, -INFINITY, 0 }[j % 4];
    k->exp(x, 16);
    for (int j = 0; j < 4; j++) assert_true(x[j] == (j == 3 ? 1.0f : 0.0f));
    for (int j = 0; j < 16; j++) x[j] = (float[]){ 20, -20, INFINITY, 0 }[j % 4];
    k->tanh(x, 16);
    for (int j = 0; j < 4; j++) assert_true(x[j] == ((float[]){ 1, -1, 1, 0 }[j]));
}

static void test_a_nan_is_not_hidden(void **unused)
{
    const struct kernels *list[4];
    const uint32_t count = tables(list);

    (void)unused;
    for (uint32_t t = 0; t < count; t++) {
        float x[16] = { NAN }, y[16] = { NAN };

        list[t]->softcap(x, 30, 16);
        list[t]->exp(y, 16);
        assert_true(isnan(x[0]) && isnan(y[0]) && !isnan(x[1]));
    }
}

#define ROWS 15
#define COLUMNS 70
#define DEPTH 1072                    /* two pieces and a rest, see kernels/cpu/linear.h */

/* All row counts, column counts that leave tails, both types: right against double, equal across tables and cuts. */
static void test_linear_is_right_and_equal_everywhere(void **unused)
{
    const struct kernels *list[4];
    const uint32_t count = tables(list);
    float *x = malloc(ROWS * DEPTH * 4), *wide = malloc(COLUMNS * DEPTH * 4);
    uint16_t *narrow = malloc(COLUMNS * DEPTH * 2);
    static float y[ROWS][COLUMNS], reference[ROWS][COLUMNS];

    (void)unused;
    for (uint32_t i = 0; i < ROWS * DEPTH; i++) x[i] = noise();
    for (uint32_t i = 0; i < COLUMNS * DEPTH; i++) {
        narrow[i] = bf16(noise());
        wide[i] = from_bf16(narrow[i]);
    }
    for (uint32_t k = 16; k <= DEPTH; k += k == 16 ? 496 : 560) {
        list[0]->linear(reference[0], COLUMNS, x, DEPTH, ROWS, wide, KERNELS_F32, k, 0, COLUMNS);
        for (uint32_t r = 0; r < ROWS; r++)
            for (uint32_t c = 0; c < COLUMNS; c++) {
                double sum = 0, size = 0;

                for (uint32_t i = 0; i < k; i++) {
                    sum += (double)x[r * DEPTH + i] * (double)wide[c * k + i];
                    size += fabs((double)x[r * DEPTH + i] * (double)wide[c * k + i]);
                }
                /* k / 16 + 4 roundings on a path, each of half a unit of at most the sum of sizes */
                assert_true(fabs((double)reference[r][c] - sum) <= size * (k / 16 + 4) * 0x1p-25);
            }
        for (uint32_t t = 0; t < count; t++)
            for (uint32_t rows = 1; rows <= ROWS; rows++)
                for (uint32_t dtype = KERNELS_BF16; dtype <= KERNELS_F32; dtype++) {
                    const uint32_t cut = rows * 4 % COLUMNS;

                    memset(y, 0xff, sizeof(y));
                    list[t]->linear(y[0], COLUMNS, x, DEPTH, rows, dtype == KERNELS_BF16 ? (void *)narrow : wide, dtype, k, 0, cut);
                    list[t]->linear(y[0], COLUMNS, x, DEPTH, rows, dtype == KERNELS_BF16 ? (void *)narrow : wide, dtype, k, cut, COLUMNS);
                    for (uint32_t r = 0; r < rows; r++) same_bits("linear", list[t]->name, reference[r], y[r], COLUMNS);
                }
    }
    free(x);
    free(wide);
    free(narrow);
}

#define N 512

static void test_row_operations_are_right_and_equal_everywhere(void **unused)
{
    const struct kernels *list[4];
    const uint32_t count = tables(list);
    static float x[N], w[N], c[N], s[N], got[6][N], reference[6][N];
    uint16_t half[N], half_reference[N];
    double mean = 0;

    (void)unused;
    for (int i = 0; i < N; i++) {
        x[i] = noise() * 4;
        w[i] = noise();
        c[i] = cosf(w[i] * 3);
        s[i] = sinf(w[i] * 3);
        mean += (double)x[i] * (double)x[i] / N;
    }
    for (uint32_t t = 0; t < count; t++) {
        float (*out)[N] = t == 0 ? reference : got;

        list[t]->rmsnorm(out[0], x, w, N, 1e-6f);
        memcpy(out[1], x, sizeof(x));
        list[t]->rope(out[1], c, s, N / 2, 64);
        memcpy(out[2], x, sizeof(x));
        list[t]->geglu(out[2], w, N);
        memcpy(out[3], x, sizeof(x));
        list[t]->add_scaled(out[3], w, 0.75f, N);
        memcpy(out[4], x, sizeof(x));
        list[t]->softcap(out[4], 3.0f, N - 5);
        list[t]->narrow(t == 0 ? half_reference : half, KERNELS_BF16, x, N);
        list[t]->widen(out[5], t == 0 ? half_reference : half, KERNELS_BF16, 62.0f, N);
        if (t == 0) continue;
        for (int i = 0; i < 6; i++) same_bits("row operation", list[t]->name, reference[i], got[i], N);
        assert_memory_equal(half, half_reference, sizeof(half));
    }
    for (int i = 0; i < N; i++) {
        const double v = (double)x[i], gelu = 0.5 * v * (1 + tanh(sqrt(2 / M_PI) * (v + 0.044715 * v * v * v)));

        assert_true(fabs((double)reference[0][i] - v * (double)w[i] / sqrt(mean + 1e-6)) <= 3e-7 * fabs(v * (double)w[i]));
        assert_true(fabs((double)reference[2][i] - gelu * (double)w[i]) <= 1e-6 * (fabs(gelu) + 0.1));
        assert_true(reference[3][i] == (x[i] + w[i]) * 0.75f);
        assert_true(reference[4][i] == x[i] || i < N - 5);
        assert_true(half_reference[i] == bf16(x[i]));
        assert_true(reference[5][i] == from_bf16(bf16(x[i])) * 62.0f);
    }
    for (int i = 0; i < N / 2; i++) {
        const bool turns = i < 64;

        assert_true(reference[1][i] == (turns ? x[i] * c[i] - x[i + N / 2] * s[i] : x[i]));
        assert_true(reference[1][i + N / 2] == (turns ? x[i + N / 2] * c[i] + x[i] * s[i] : x[i + N / 2]));
    }
}

/* Every code comes back as it was; what lies between two goes to the nearer, at the middle to the even one; beyond 448 stays 448. */
static void test_e4m3_rows_are_rounded_to_nearest_even_everywhere(void **unused)
{
    static const float others[16] = { 448.0f, 463.9f, 464.0f, 1e30f, INFINITY, -INFINITY, 0.0f, -0.0f, 0x1p-10f, 0x1.8p-9f, -0x1p-11f, 0x1.1p-10f, 17.0f, 19.0f, -1.0625f, 1.1875f };
    const struct kernels *list[4];
    const uint32_t count = tables(list);
    float x[3 * 256], y[3 * 256];
    uint8_t codes[3 * 256];
    uint32_t n = 0;

    (void)unused;
    for (uint32_t code = 0; code < 0x7f; code++) x[n++] = stored_from_e4m3((uint8_t)code), x[n++] = -stored_from_e4m3((uint8_t)code);
    for (uint32_t code = 0; code < 0x7e; code++) x[n++] = (stored_from_e4m3((uint8_t)code) + stored_from_e4m3((uint8_t)(code + 1))) / 2;
    while (n % 16) x[n++] = noise() * 500;
    memcpy(x + n, others, sizeof others), n += 16;
    while (n < 3 * 256) x[n] = noise() * ldexpf(1.0f, (int)(n % 20) - 10), n++;
    for (uint32_t t = 0; t < count; t++) {
        memset(codes, 0x55, sizeof codes);
        list[t]->narrow(codes, KERNELS_E4M3, x, n);
        list[t]->widen(y, codes, KERNELS_E4M3, 2.0f, n);
        for (uint32_t i = 0; i < n; i++) {
            if (codes[i] != quantize_e4m3(x[i])) fail_msg("%s: %g is code %02x, not %02x", list[t]->name, (double)x[i], codes[i], quantize_e4m3(x[i]));
            assert_true(y[i] == 2.0f * stored_from_e4m3(codes[i]));
        }
        for (uint32_t i = 0; i < 16; i++) x[i] = i ? 1.0f : NAN;
        list[t]->narrow(codes, KERNELS_E4M3, x, 16);
        assert_true((codes[0] & 0x7f) == 0x7f && codes[1] == 0x38);
        for (uint32_t i = 0; i < 16; i++) x[i] = (i % 2 ? -1.0f : 1.0f) * stored_from_e4m3((uint8_t)(i / 2));
    }
}

#define PAGE 32
#define POSITIONS 700

/* One kv head of pages, in a ring or not. */
struct cache {
    uint8_t *arena;
    uint32_t pages[64];
    struct attention_keys keys;
};

static void cache_make(struct cache *c, uint32_t dim, uint32_t dtype, uint32_t ring, uint32_t turned, const float *k, const float *v)
{
    const uint32_t element = kernels_dtype_bytes(dtype), pages = (ring ? ring : (POSITIONS + PAGE - 1) / PAGE * PAGE) / PAGE;
    const struct kernels *portable = kernels_get(KERNELS_PORTABLE);

    c->keys = (struct attention_keys){ .pages = c->pages, .pool_offset = 64, .page_bytes = 2ull * PAGE * dim * element, .k_offset = 0,
        .v_offset = (uint64_t)PAGE * dim * element, .page_tokens = PAGE, .ring_tokens = ring ? ring : UINT32_MAX / PAGE * PAGE,
        .head_dim = dim, .dtype = dtype, .turned = turned, .scale = 0.5f };
    c->arena = malloc(64 + pages * c->keys.page_bytes);
    memset(c->arena, 0xff, 64 + pages * c->keys.page_bytes);      /* NaN */
    c->keys.arena = c->arena;
    for (uint32_t i = 0; i < pages; i++) c->pages[i] = (i * 7 + 3) % pages;
    if (pages % 7 == 0) for (uint32_t i = 0; i < pages; i++) c->pages[i] = pages - 1 - i;
    for (uint32_t p = 0; p < POSITIONS; p++) {
        uint8_t *page = c->arena + 64 + c->pages[p % c->keys.ring_tokens / PAGE] * c->keys.page_bytes;

        if (turned)
            for (uint32_t d = 0; d < turned; d++) memcpy(page + ((uint64_t)d * PAGE + p % PAGE) * element, k + (uint64_t)p * dim + d, element);
        else portable->narrow(page + (uint64_t)(p % PAGE) * dim * element, dtype, k + (uint64_t)p * dim, dim);
        portable->narrow(page + c->keys.v_offset + (uint64_t)(p % PAGE) * dim * element, dtype, v + (uint64_t)p * dim, dim);
    }
}

/* What a cache of `dtype` gives back. */
static double as_cached(float x, uint32_t dtype)
{
    return (double)(dtype == KERNELS_BF16 ? from_bf16(bf16(x)) : dtype == KERNELS_E4M3 ? stored_from_e4m3(quantize_e4m3(x)) : x);
}

static void check_attention(const struct attention_query *q, uint32_t dim, const float *k, const float *v, float scale, uint32_t dtype)
{
    static double weight[POSITIONS];
    double top = -INFINITY, sum = 0;

    for (uint32_t p = q->first; p <= q->last; p++) {
        weight[p] = 0;
        for (uint32_t d = 0; d < dim; d++)
            weight[p] += (double)q->q[d] * as_cached(k[(uint64_t)p * dim + d], dtype);
        weight[p] *= (double)scale;
        top = fmax(top, weight[p]);
    }
    for (uint32_t p = q->first; p <= q->last; p++) sum += weight[p] = exp(weight[p] - top);
    for (uint32_t d = 0; d < dim; d++) {
        double out = 0;

        for (uint32_t p = q->first; p <= q->last; p++)
            out += weight[p] / sum * as_cached(v[(uint64_t)p * dim + d], dtype);
        /* scores of size 10 carry 1e-6, their exponentials as much relatively, values are below 1 */
        assert_true(fabs((double)q->out[d] - out) <= 1e-5);
    }
}

/* Queries over several segments, windows and a ring; blocks and single queries give the same bits on every table. */
static void test_attention_is_right_and_equal_everywhere(void **unused)
{
    static const struct { uint32_t dim, dtype, ring, window, turned; } settings[] = {
        { 256, KERNELS_BF16, 0, 0, 0 }, { 256, KERNELS_BF16, 320, 300, 0 }, { 512, KERNELS_F32, 0, 0, 0 }, { 32, KERNELS_F32, 64, 40, 0 }, { 96, KERNELS_BF16, 0, 0, 0 },
        { 256, KERNELS_E4M3, 320, 300, 0 }, { 512, KERNELS_E4M3, 0, 0, 0 }, { 32, KERNELS_E4M3, 0, 0, 0 },
        { 80, KERNELS_F32, 0, 0, 0 }, { 48, KERNELS_BF16, 320, 300, 0 }, { 80, KERNELS_F32, 0, 0, 72 }, { 96, KERNELS_F32, 0, 77, 96 }, { 16, KERNELS_F32, 64, 40, 12 },
    };
    const struct kernels *list[4];
    const uint32_t count = tables(list);
    struct attention_scratch *scratch = malloc(sizeof(*scratch));
    static float q[16][512], out[16][512], reference[16][512];

    (void)unused;
    for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++) {
        const uint32_t dim = settings[i].dim, window = settings[i].window;
        float *k = malloc((uint64_t)POSITIONS * dim * 4), *v = malloc((uint64_t)POSITIONS * dim * 4);
        struct attention_query query[16];
        struct cache cache;

        for (uint32_t j = 0; j < POSITIONS * dim; j++) k[j] = noise(), v[j] = noise();
        for (uint32_t j = 0; settings[i].turned && j < POSITIONS * dim; j++) k[j] = j % dim < settings[i].turned ? k[j] : 0; /* the padding of a head */
        cache_make(&cache, dim, settings[i].dtype, settings[i].ring, settings[i].turned, k, v);
        for (uint32_t j = 0; j < 16; j++) {
            const uint32_t last = settings[i].ring ? POSITIONS - 16 + j : (j * 97 + 5) % POSITIONS;

            for (uint32_t d = 0; d < dim; d++) q[j][d] = noise() * 2;
            query[j] = (struct attention_query){ q[j], reference[j], window && last >= window ? last - window + 1 : 0, last };
        }
        list[0]->attention(query, 16, &cache.keys, scratch);
        for (uint32_t j = 0; j < 16; j++) check_attention(&query[j], dim, k, v, 0.5f, settings[i].dtype);
        for (uint32_t t = 0; t < count; t++)
            for (uint32_t block = 1; block <= 16; block = block * 2 + 1) {
                memset(out, 0xff, sizeof(out));
                for (uint32_t j = 0; j < 16; j++) query[j].out = out[j];
                for (uint32_t j = 0; j < 16; j += block) list[t]->attention(query + j, 16 - j < block ? 16 - j : block, &cache.keys, scratch);
                for (uint32_t j = 0; j < 16; j++) same_bits("attention", list[t]->name, reference[j], out[j], dim);
            }
        free(cache.arena);
        free(k);
        free(v);
    }
    free(scratch);
}

struct tally { uint32_t *hits; uint32_t threads; };

static void tally_task(void *context, uint32_t task, uint32_t thread)
{
    struct tally *t = context;

    if (thread >= t->threads) abort();
    __atomic_add_fetch(&t->hits[task], 1, __ATOMIC_RELAXED);
}

static void test_pool_runs_every_task_once(void **unused)
{
    static uint32_t hits[1000];

    (void)unused;
    for (uint32_t threads = 1; threads <= 4; threads++) {
        struct tally t = { hits, threads };
        struct pool *pool;

        assert_int_equal(pool_open(&pool, threads, threads == 2), 0);
        assert_int_equal(pool_threads(pool), threads);
        for (uint32_t round = 0; round < 2000; round++) {
            const uint32_t tasks = round % 100 == 0 ? 1000 : round % 9;

            memset(hits, 0, sizeof(hits));
            pool_run(pool, tally_task, &t, tasks);
            for (uint32_t i = 0; i < 1000; i++) assert_int_equal(hits[i], i < tasks);
        }
        pool_close(pool);
    }
    {
        struct pool *pool;
        assert_int_equal(pool_open(&pool, POOL_THREADS_MAX + 1, 0), -E_RANGE);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exp_and_tanh_keep_their_stated_errors),
        cmocka_unit_test(test_a_nan_is_not_hidden),
        cmocka_unit_test(test_linear_is_right_and_equal_everywhere),
        cmocka_unit_test(test_row_operations_are_right_and_equal_everywhere),
        cmocka_unit_test(test_e4m3_rows_are_rounded_to_nearest_even_everywhere),
        cmocka_unit_test(test_attention_is_right_and_equal_everywhere),
        cmocka_unit_test(test_pool_runs_every_task_once),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
