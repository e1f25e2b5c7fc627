/* tests/unit/draft_test.c - the draft stage's parts: what a text says about its own future, and what guesses turn out to be worth. */
#include "stages/draft/draft.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static struct text text_of(const uint32_t *prompt, uint32_t prompt_count, const uint32_t *output, uint32_t output_count)
{
    return (struct text){.prompt = prompt, .output = output, .prompt_count = prompt_count, .count = prompt_count + output_count};
}

static void test_lookup_takes_the_longest_match_then_the_latest(void **state)
{
    const uint32_t prompt[] = {1, 2, 3, 90, 8, 2, 3, 91, 1, 2, 3, 92, 7, 2, 3, 93}, output[] = {5, 1, 2, 3};
    const struct text t = text_of(prompt, 16, output, 4);
    struct guess g;

    (void)state;
    assert_int_equal(lookup_guess(&t, 3, &g), 3); /* 1 2 3, twice in the prompt: the second, although 2 3 stands behind it once more */
    assert_int_equal(g.count, 3);
    assert_int_equal(g.base, 4);
    assert_int_equal(g.token[0], 92);
    assert_int_equal(g.token[1], 7);
    assert_int_equal(g.class[2], 3);
}

static void test_lookup_goes_round_in_circles(void **state)
{
    const uint32_t prompt[] = {9}, output[] = {4, 5, 6, 4, 5, 6, 4, 5};
    const struct text t = text_of(prompt, 1, output, 8);
    struct guess g;

    (void)state;
    assert_true(lookup_guess(&t, RING_TOKENS_MAX, &g) >= 2);
    assert_int_equal(g.count, RING_TOKENS_MAX);
    for (uint32_t i = 0; i < g.count; i++) assert_int_equal(g.token[i], 4 + (i + 2) % 3);
}

static void test_lookup_finds_nothing_in_a_text_without_pairs(void **state)
{
    const uint32_t prompt[] = {1, 2, 3, 4, 5, 6}, output[] = {7, 3};
    struct guess g;

    (void)state;
    for (uint32_t n = 0; n <= 6; n++) {
        const struct text t = text_of(prompt, n, output, 0);
        assert_int_equal(lookup_guess(&t, 7, &g), 0);
        assert_int_equal(g.count, 0);
    }
    const struct text t = text_of(prompt, 6, output, 2); /* one token alone is chance */
    assert_int_equal(lookup_guess(&t, 7, &g), 0);
}

static void test_classes_are_in_order(void **state)
{
    uint8_t last = 0;

    (void)state;
    assert_int_equal(chance_class(0), 0);
    assert_int_equal(chance_class(-1), 0);
    assert_int_equal(chance_class(NAN), 0);
    assert_int_equal(chance_class(1), CHANCE_CLASSES - 1);
    assert_int_equal(chance_class(2), CHANCE_CLASSES - 1);
    for (float c = 0; c < 1; c += 0.001f) {
        const uint8_t now = chance_class(c);
        assert_true(now >= last && now < CHANCE_CLASSES);
        last = now;
    }
    assert_true(chance_class(0.5f) < chance_class(0.9f) && chance_class(0.9f) < chance_class(0.99f));
}

/* A guess of three tokens of class 5, of which `right` are what came out. */
static void judge(struct chance_table *c, uint32_t right)
{
    const uint32_t output[] = {1, 2, 3, 4};
    const struct text t = text_of(NULL, 0, output, 4);
    struct guess g = {.base = 1, .count = 3, .token = {2, 3, 4}, .class = {5, 5, 5}};

    if (right < 3) g.token[right] = 77;
    chances_judge(c, &g, &t);
    assert_int_equal(g.count, 0);
}

static void test_learns_what_a_class_is_worth(void **state)
{
    const struct sampling_params greedy = {.temperature = 0}, sampled = {.temperature = 1};
    struct chances all;

    (void)state;
    chances_init(&all);
    struct chance_table *c = chances_of(&all, &greedy, false, GUESS_NEURAL);
    const float other = c->rate[6];
    for (int i = 0; i < 200; i++) judge(c, 3);
    assert_true(c->rate[5] > 0.97f && c->all > 0.9f);
    for (int i = 0; i < 200; i++) judge(c, 0); /* what lies behind a wrong token says nothing */
    assert_true(c->rate[5] < 0.2f);
    for (int i = 0; i < 400; i++) judge(c, 1);
    assert_true(fabsf(c->rate[5] - 0.5f) < 0.15f);
    assert_float_equal(c->rate[6], other, 0);
    assert_ptr_not_equal(chances_of(&all, &sampled, false, GUESS_NEURAL), c);
    assert_ptr_not_equal(chances_of(&all, &greedy, true, GUESS_NEURAL), c);
    assert_ptr_not_equal(chances_of(&all, &greedy, false, GUESS_LOOKUP), c);
}

static void test_judges_only_what_has_come_out(void **state)
{
    const uint32_t output[] = {1, 2};
    const struct text t = text_of(NULL, 0, output, 2);
    struct guess g = {.base = 1, .count = 3, .token = {2, 9, 9}, .class = {1, 2, 3}};
    struct chances all;

    (void)state;
    chances_init(&all);
    struct chance_table *c = &all.of[0][0][GUESS_NEURAL];
    const float second = c->rate[2], third = c->rate[3];
    chances_judge(c, &g, &t);
    assert_float_equal(c->rate[2], second, 0);
    assert_float_equal(c->rate[3], third, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lookup_takes_the_longest_match_then_the_latest), cmocka_unit_test(test_lookup_goes_round_in_circles),
        cmocka_unit_test(test_lookup_finds_nothing_in_a_text_without_pairs), cmocka_unit_test(test_classes_are_in_order),
        cmocka_unit_test(test_learns_what_a_class_is_worth), cmocka_unit_test(test_judges_only_what_has_come_out),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
