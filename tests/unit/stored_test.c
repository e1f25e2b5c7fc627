/* tests/unit/stored_test.c - products with FP8 and FP4 codes: right against the slow reading, the same bits on every instruction set,
 * in every cut of rows and columns. Codes are random bytes, so that every code value occurs. */
#include "kernels/kernels.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define ROWS 15
#define COLUMNS 150                   /* more than a block of 128, and no multiple of a tile */
#define DEPTH 1072                    /* steps of 256 with a rest; not a multiple of 32 */

static uint64_t state = 1;

static uint32_t word(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}

static float noise(void) { return (float)(int32_t)word() * 0x1p-31f; }

static uint32_t tables(const struct kernels **list)
{
    uint32_t count = 0;

    for (uint32_t isa = KERNELS_PORTABLE; isa <= KERNELS_AVX512; isa++)
        if (kernels_get((enum kernels_isa)isa)) list[count++] = kernels_get((enum kernels_isa)isa);
    return count;
}

struct memory { uint8_t *code, *group; float *scale; };

static uint8_t finite_code(void)
{
    const uint8_t code = (uint8_t)word();

    return (code & 0x7f) == 0x7f ? 0 : code;
}

static void fill(struct memory *m)
{
    m->code = malloc(COLUMNS * DEPTH);
    m->group = malloc(COLUMNS * DEPTH / STORED_GROUP);       /* exactly as long as they may be read */
    m->scale = malloc(COLUMNS * sizeof(float) * (DEPTH / STORED_BLOCK + 1));
    for (uint32_t i = 0; i < COLUMNS * DEPTH; i++) m->code[i] = finite_code();
    for (uint32_t i = 0; i < COLUMNS * DEPTH / STORED_GROUP; i++) m->group[i] = finite_code() & 0x7f;
    for (uint32_t i = 0; i < COLUMNS * (DEPTH / STORED_BLOCK + 1); i++) m->scale[i] = 0.001f * (1.5f + noise());
}

static struct stored_matrix matrix(const struct memory *m, uint32_t kind, uint32_t k)
{
    struct stored_matrix w = { .data = m->code, .rows = COLUMNS, .k = k, .element = STORED_E4M3, .scale = m->scale };

    w.scale_rows = kind == 0 ? COLUMNS : kind == 1 ? 1 : STORED_BLOCK;
    w.scale_columns = kind <= 1 ? k : STORED_BLOCK;
    if (kind >= 3) {
        w.element = STORED_E2M1;
        w.scale = NULL;
        w.group_scale = m->group;
        w.scale_rows = 1;
        w.scale_columns = STORED_GROUP;
        w.global = kind == 3 ? 13440.0f : 7.5e-5f;
        w.global_divides = kind == 3;
    }
    return w;
}

static void same_bits(const char *what, const char *name, const float *a, const float *b, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (memcmp(&a[i], &b[i], 4) != 0) fail_msg("%s %s: element %u is %a, not %a", what, name, i, (double)b[i], (double)a[i]);
}

static void check_values(const struct stored_matrix *w, const float *x, const float *x_scale, float y[ROWS][COLUMNS])
{
    for (uint32_t c = 0; c < COLUMNS; c++) {
        double sum[ROWS] = { 0 }, size[ROWS] = { 0 };

        for (uint32_t i = 0; i < w->k; i++) {
            const double value = (double)stored_value(w, c, i);

            for (uint32_t r = 0; r < ROWS; r++) {
                sum[r] += (double)x[r * DEPTH + i] * value;
                size[r] += fabs((double)x[r * DEPTH + i] * value);
            }
        }
        /* k / 16 + 4 roundings of a sum, two of the factors here and two of stored_value */
        for (uint32_t r = 0; r < ROWS; r++)
            assert_true(fabs((double)y[r][c] - sum[r] * (double)x_scale[r]) <= size[r] * (double)x_scale[r] * (w->k / 16 + 8) * 0x1p-24);
    }
}

static void test_products_are_right_and_equal_everywhere(void **unused)
{
    static const uint32_t depths[] = { 16, 48, 256, 272, 512, DEPTH };
    static float y[ROWS][COLUMNS], reference[ROWS][COLUMNS];
    const struct kernels *list[4];
    const uint32_t count = tables(list);
    float *x = malloc(ROWS * DEPTH * 4), x_scale[ROWS];
    struct memory m;

    (void)unused;
    fill(&m);
    for (uint32_t i = 0; i < ROWS * DEPTH; i++) x[i] = noise();
    for (uint32_t i = 0; i < ROWS; i++) x_scale[i] = 0.5f + (float)i;
    for (uint32_t kind = 0; kind < 5; kind++)
        for (uint32_t d = 0; d < sizeof(depths) / sizeof(depths[0]); d++) {
            const struct stored_matrix w = matrix(&m, kind, depths[d]);

            list[0]->linear_stored(reference[0], COLUMNS, x, DEPTH, x_scale, ROWS, &w, 0, COLUMNS);
            check_values(&w, x, x_scale, reference);
            for (uint32_t t = 0; t < count; t++)
                for (uint32_t rows = 1; rows <= ROWS; rows += rows < 7 ? 1 : 4) {
                    const uint32_t cut = rows * 13 % COLUMNS;

                    memset(y, 0xff, sizeof(y));
                    list[t]->linear_stored(y[0], COLUMNS, x, DEPTH, x_scale, rows, &w, 0, cut);
                    list[t]->linear_stored(y[0], COLUMNS, x, DEPTH, x_scale, rows, &w, cut, COLUMNS);
                    for (uint32_t r = 0; r < rows; r++) same_bits("linear_stored", list[t]->name, reference[r], y[r], COLUMNS);
                }
        }
    free(x);
    free(m.code);
    free(m.group);
    free(m.scale);
}

/* A row of ones in one column and zeros elsewhere reads the codes one by one: exact, every code, every kind of table. */
static void test_every_code_has_its_value(void **unused)
{
    const struct kernels *list[4];
    const uint32_t count = tables(list);
    uint8_t code[16] = { 0 };
    float x[16], y, one = 1.0f;

    (void)unused;
    for (uint32_t t = 0; t < count; t++)
        for (uint32_t at = 0; at < 16; at++)
            for (uint32_t c = 0; c < 256; c++) {
                const struct stored_matrix e4m3 = { .data = code, .scale = &one, .rows = 1, .k = 16, .scale_rows = 1, .scale_columns = 16, .element = STORED_E4M3 };
                const struct stored_matrix e2m1 = { .data = code, .group_scale = code + 8, .rows = 1, .k = 16, .scale_rows = 1, .scale_columns = 16,
                                                    .element = STORED_E2M1, .global = 1 };

                if ((c & 0x7f) == 0x7f) continue;
                for (uint32_t i = 0; i < 16; i++) x[i] = i == at;
                memset(code, 0, sizeof(code));
                code[at] = (uint8_t)c;
                list[t]->linear_stored(&y, 1, x, 16, NULL, 1, &e4m3, 0, 1);
                assert_true(y == stored_from_e4m3((uint8_t)c));
                memset(code, 0, sizeof(code));
                code[at / 2] = (uint8_t)(c << (at % 2 * 4));
                code[8] = 0x38;
                if (at % 2 == 1 || c < 16) {
                    list[t]->linear_stored(&y, 1, x, 16, NULL, 1, &e2m1, 0, 1);
                    assert_true(y == stored_from_e2m1(c & 15));
                }
            }
}

/* The nearest E4M3 number by search, ties to the even code. */
static float nearest(double v)
{
    double best = INFINITY;
    uint8_t code = 0;

    for (uint32_t c = 0; c < 0x7f; c++) {
        const double off = fabs((double)stored_from_e4m3((uint8_t)c) - fabs(v));

        if (off < best || (off == best && c % 2 == 0)) best = off, code = (uint8_t)c;
    }
    return copysignf(stored_from_e4m3(code), (float)v);
}

static void test_activations_round_to_the_nearest_code(void **unused)
{
    static const float given[16] = { 0.5f, -3, 17.25f, 0.010009765625f, 100, -220, 448, -1000, 0x1p-10f, 0x1.8p-10f, 1.0625f, 1.1875f, 464, 0, -0x1p-9f, 1e-30f };
    /* design goldens: input_scale 0.5 of the first eight */
    static const uint8_t expected[8] = { 0x38, 0xcc, 0x61, 0x0a, 0x74, 0xfe, 0x7e, 0xfe };
    const struct kernels *list[4];
    const uint32_t count = tables(list);
    float y[512], x[512], reference[512], top = 0;

    (void)unused;
    for (uint32_t t = 0; t < count; t++) {
        assert_true(list[t]->to_e4m3(y, given, 0.5f, 16) == 0.5f);
        for (uint32_t i = 0; i < 8; i++) assert_true(y[i] == stored_from_e4m3(expected[i]));
        list[t]->to_e4m3(y, given, 1.0f, 16);
        for (uint32_t i = 0; i < 16; i++) assert_true(y[i] == nearest((double)given[i]));
        memset(x, 0, sizeof(x));
        assert_true(list[t]->to_e4m3(y, x, 0, 512) == KERNELS_E4M3_SCALE_MIN && y[7] == 0);
        x[5] = NAN;
        list[t]->to_e4m3(y, x, 0, 512);
        assert_true(isnan(y[5]));
    }
    for (uint32_t i = 0; i < 512; i++) {
        x[i] = noise() * ldexpf(1.0f, -(int)(i % 20));
        top = fmaxf(top, fabsf(x[i]));
    }
    assert_true(list[0]->to_e4m3(reference, x, 0, 512) == top / 448);
    for (uint32_t i = 0; i < 512; i++) assert_true(reference[i] == nearest((double)(x[i] / (top / 448))));
    for (uint32_t t = 1; t < count; t++) {
        memcpy(y, x, sizeof(x));
        assert_true(list[t]->to_e4m3(y, y, 0, 512) == top / 448);      /* in place */
        same_bits("to_e4m3", list[t]->name, reference, y, 512);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_products_are_right_and_equal_everywhere),
        cmocka_unit_test(test_every_code_has_its_value),
        cmocka_unit_test(test_activations_round_to_the_nearest_code),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
