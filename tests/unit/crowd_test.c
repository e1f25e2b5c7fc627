/* tests/unit/crowd_test.c - how prompts that come at once share calls of prefill. */
#include "stages/prefill/crowd.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

static void test_rows_behind_the_first(void **state)
{
    static const struct { uint32_t rows, left, picture, shared; } cases[] = {
        {2048, 32768, 0, 1024}, {2048, 1024, 0, 1024}, {129, 1000, 0, 64},             /* a long one leaves half */
        {2048, 143, 0, 1905}, {512, 143, 0, 369},                                      /* a short one what it does not need: 14 prompts in a call, not 8 */
        {2048, 0, 0, 2048},                                                            /* it has only to be handed over */
        {2048, 3000, 1500, 548}, {2048, 2048, 2048, 0}, {2048, 300, 280, 1748},        /* its picture fits */
    };

    (void)state;
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) assert_int_equal(crowd_shared_rows(cases[i].rows, cases[i].left, cases[i].picture), cases[i].shared);
}

static void test_the_last_count_as_the_crowd(void **state)
{
    uint32_t most = 0;

    (void)state;
    assert_int_equal(crowd_count(&most, 31, 4433, 2048), 31);
    assert_int_equal(crowd_count(&most, 17, 2385, 2048), 17);
    assert_int_equal(crowd_count(&most, 3, 337, 2048), 31);
    assert_int_equal(crowd_count(&most, 0, 0, 2048), 0); /* over */
    assert_int_equal(crowd_count(&most, 2, 286, 2048), 2);
}

static void test_a_long_prompt_is_no_crowd(void **state)
{
    uint32_t most = 0;

    (void)state;
    assert_int_equal(crowd_count(&most, 9, 33000, 2048), 9);
    assert_int_equal(crowd_count(&most, 1, 31000, 2048), 1); /* the others are gone: it gets what one gets */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_rows_behind_the_first),
        cmocka_unit_test(test_the_last_count_as_the_crowd),
        cmocka_unit_test(test_a_long_prompt_is_no_crowd),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
