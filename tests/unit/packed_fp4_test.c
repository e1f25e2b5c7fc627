/* tests/unit/packed_fp4_test.c - a word of FP4 as the kernels read it: every code comes back from every place, in any company, as an f16 of 2^-14 of its value; no GPU. */
#include "kernels/cuda/layout.h"
#include "kernels/stored.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

#define WORDS 200000

/* The value of an f16 that is zero, subnormal or normal. */
static double f16_value(uint16_t bits)
{
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    const double size = exponent ? ldexp(1024 + fraction, exponent - 25) : ldexp(fraction, -24);

    return bits >> 15 ? -size : size;
}

static uint32_t next(uint32_t *seed) { return *seed = *seed * 1664525u + 1013904223u; }

static uint32_t random_word(uint32_t *seed)
{
    const uint32_t high = next(seed) & 0xffff0000u;

    return high | next(seed) >> 16;
}

static void fragments_of(uint32_t word, uint32_t f[4])
{
    for (uint32_t r = 0; r < 4; r++) f[r] = packed_fp4_fragment(word, r);
}

static void any_word_is_eight_codes_and_they_are_that_word(void **state)
{
    uint32_t seed = 1, f[4];

    (void)state;
    for (int i = 0; i < WORDS; i++) {
        const uint32_t word = random_word(&seed);

        fragments_of(word, f);
        assert_int_equal(packed_fp4_word(f), word);
    }
}

static void every_code_comes_back_from_every_place(void **state)
{
    uint32_t seed = 2;

    (void)state;
    for (uint32_t place = 0; place < 8; place++)
        for (uint32_t code = 0; code < 16; code++)
            for (int company = 0; company < 50; company++) {
                const uint32_t r = place / 2, pair = place % 2;
                uint32_t f[4], got[4];

                fragments_of(company ? random_word(&seed) : 0, f);
                f[r] = (f[r] & ~(0xffffu << 16 * pair)) | packed_fp4_bits(code, pair);
                fragments_of(packed_fp4_word(f), got);
                for (uint32_t i = 0; i < 4; i++) assert_int_equal(got[i], f[i]);
                assert_int_equal(packed_fp4_code(got[r], pair), code);
                assert_true(f16_value((uint16_t)(got[r] >> 16 * pair)) * 16384.0 == stored_from_e2m1(code));
            }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_word_is_eight_codes_and_they_are_that_word),
        cmocka_unit_test(every_code_comes_back_from_every_place),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
