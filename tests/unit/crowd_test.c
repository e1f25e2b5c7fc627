/* tests/unit/crowd_test.c - how prompts that come at once share calls of prefill. */
#include "stages/prefill/crowd.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

static void test_a_long_first_leaves_half(void **state)
{
    (void)state;
    assert_int_equal(crowd_shared_rows(2048, 32768, 0), 1024);
    assert_int_equal(crowd_shared_rows(2048, 1024, 0), 1024);
    assert_int_equal(crowd_shared_rows(129, 1000, 0), 64);
}

static void test_a_short_first_leaves_what_it_does_not_need(void **state)
{
    (void)state;
    assert_int_equal(crowd_shared_rows(2048, 143, 0), 1905); /* 14 prompts in a call, not 8 */
    assert_int_equal(crowd_shared_rows(512, 143, 0), 369);
    assert_int_equal(crowd_shared_rows(2048, 0, 0), 2048); /* it has only to be handed over */
}

static void test_the_first_ones_picture_fits(void **state)
{
    (void)state;
    assert_int_equal(crowd_shared_rows(2048, 3000, 1500), 548);
    assert_int_equal(crowd_shared_rows(2048, 2048, 2048), 0);
    assert_int_equal(crowd_shared_rows(2048, 300, 280), 1748);
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
        cmocka_unit_test(test_a_long_first_leaves_half),
        cmocka_unit_test(test_a_short_first_leaves_what_it_does_not_need),
        cmocka_unit_test(test_the_first_ones_picture_fits),
        cmocka_unit_test(test_the_last_count_as_the_crowd),
        cmocka_unit_test(test_a_long_prompt_is_no_crowd),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
