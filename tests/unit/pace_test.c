/* tests/unit/pace_test.c - prices of rows, worth of drafts, and the choices that follow, on made-up machines. */
#include "model/pace.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#include <cmocka.h>

static uint32_t as_given(const void *context, uint32_t rows)
{
    (void)context;
    return rows;
}

static uint32_t by_power(const void *context, uint32_t rows)
{
    uint32_t n = 1;

    (void)context;
    while (n < rows) n *= 2;
    return n;
}

/* Steps of a machine that needs base + row * rows microseconds, with noise of a tenth. */
static void run(struct pace *p, unsigned steps, uint32_t rows, uint32_t spread, double base, double row)
{
    for (unsigned i = 0; i < steps; i++) {
        const uint32_t n = rows + i % (spread + 1);
        const double noise = 1 + 0.1 * (((i * 7919u) % 201) / 100.0 - 1);
        pace_note_step(p, n, (uint64_t)(1000 * noise * (base + row * n)));
    }
}

static void judge(struct pace *p, struct pace_sequence *q, unsigned times, uint32_t right, bool missed)
{
    for (unsigned i = 0; i < times; i++) {
        pace_note_answer(p, q, right || missed);
        pace_note_judged(p, q, right, missed);
    }
}

/* Drafts that one of `count` like it would be asked for. */
static struct pace_asker ask_of(struct pace *p, const struct pace_sequence *q, uint32_t count, uint32_t drafts_max)
{
    struct pace_asker asker[64];

    for (uint32_t i = 0; i < count; i++) asker[i] = (struct pace_asker){.pace = q};
    pace_ask(p, asker, count, 64, drafts_max, as_given, NULL);
    return asker[0];
}

static uint32_t asked_of(struct pace *p, const struct pace_sequence *q, uint32_t count, uint32_t drafts_max, float *least)
{
    const struct pace_asker asker = ask_of(p, q, count, drafts_max);

    if (least) *least = asker.least;
    return asker.most;
}

static void test_finds_base_and_row(void **state)
{
    struct pace p;

    (void)state;
    pace_init(&p);
    run(&p, 500, 1, 7, 3000, 40);
    assert_true(fabs(pace_step_us(&p, 1) - 3040) < 150);
    assert_true(fabs(p.row_us - 40) < 25);
    run(&p, 3000, 4, 8, 200, 500); /* the machine became another one */
    assert_true(fabs(p.row_us - 500) < 60);
}

static void test_unknown_rows_are_cheap_until_seen(void **state)
{
    struct pace p;

    (void)state;
    pace_init(&p);
    run(&p, 100, 1, 0, 0, 1000);
    assert_true(p.row_us < 50); /* never saw two rows: drafts will be tried */
    pace_note_step(&p, 5, 50000000); /* the first so large meets cold memory */
    assert_true(p.row_us < 50);
    pace_note_step(&p, 5, 5000000);
    pace_note_step(&p, 5, 5000000);
    assert_true(p.row_us > 300); /* two tries told enough to stop */
}

static void test_one_disturbed_step_is_no_price(void **state)
{
    struct pace p;

    (void)state;
    pace_init(&p);
    run(&p, 400, 1, 7, 3000, 40);
    pace_note_step(&p, 8, 900000000); /* 0.9 s: somebody stopped us */
    assert_true(pace_step_us(&p, 8) < 3700);
}

static void test_drafts_pay_where_rows_are_cheap(void **state)
{
    struct pace gpu, cpu;
    struct pace_sequence good, bad;

    (void)state;
    pace_init(&gpu);
    pace_init(&cpu);
    run(&gpu, 400, 1, 7, 3000, 40);
    run(&cpu, 400, 1, 7, 100, 500);
    pace_begin(&gpu, &good, PACE_ANSWER);
    pace_begin(&gpu, &bad, PACE_ANSWER);
    judge(&gpu, &good, 80, 4, true);
    judge(&gpu, &bad, 160, 0, true);
    assert_true(good.accept > 0.6 && bad.accept < 0.02);
    assert_true(asked_of(&gpu, &good, 1, 7, NULL) >= 4);
    assert_int_equal(asked_of(&gpu, &bad, 1, 7, NULL), 0);
    assert_int_equal(asked_of(&cpu, &good, 8, 7, NULL), 0); /* a row costs nearly what a token gives */
}

static void test_who_never_answers_is_not_worth_asking(void **state)
{
    struct pace p;
    struct pace_sequence q;

    (void)state;
    pace_init(&p);
    run(&p, 400, 1, 7, 3000, 40);
    pace_begin(&p, &q, PACE_ANSWER);
    judge(&p, &q, 160, 0, false);
    assert_true(q.found < 0.001);
    assert_int_equal(asked_of(&p, &q, 1, 7, NULL), 0);
}

static void test_a_slow_drafter_gets_another_chance(void **state)
{
    const struct pace_sequence q = {.accept = 0.45f, .found = 1};
    struct pace p;

    (void)state;
    pace_init(&p);
    run(&p, 400, 1, 7, 3000, 40);
    for (int i = 0; i < 100; i++) pace_note_wait(&p, 2500000);
    assert_int_equal(asked_of(&p, &q, 1, 7, NULL), 0);
    for (int i = 0; i < 3000; i++) pace_note_wait(&p, 0);
    assert_true(asked_of(&p, &q, 1, 7, NULL) > 0);
}

static void test_share_takes_the_likely_ones(void **state)
{
    struct pace p;
    struct pace_member m[3] = {{.accept = 0.9f, .available = 7}, {.accept = 0.02f, .available = 7}, {.accept = 0.9f, .available = 2}};

    (void)state;
    pace_init(&p);
    run(&p, 400, 1, 15, 3000, 60);
    const uint32_t rows = pace_share(&p, m, 3, 64, as_given, NULL);
    assert_int_equal(rows, 3 + m[0].taken + m[1].taken + m[2].taken);
    assert_int_equal(m[0].taken, 7);
    assert_int_equal(m[1].taken, 0);
    assert_int_equal(m[2].taken, 2);
}

static void test_share_keeps_its_limits(void **state)
{
    struct pace_member m[40];

    (void)state;
    for (int i = 0; i < 40; i++) m[i] = (struct pace_member){.accept = 1.0f, .available = 7};
    assert_int_equal(pace_share(NULL, m, 40, 64, as_given, NULL), 64); /* without prices: all that fit */
    uint32_t taken = 0;
    for (int i = 0; i < 40; i++) taken += m[i].taken;
    assert_int_equal(taken, 24);
    assert_int_equal(pace_share(NULL, m, 40, 40, as_given, NULL), 40);
    for (int i = 0; i < 40; i++) assert_int_equal(m[i].taken, 0);
}

static void test_share_fills_rows_that_are_computed_anyway(void **state)
{
    struct pace p;
    struct pace_member m[5] = {{.accept = 0.3f, .available = 7}, {.accept = 0.3f}, {.accept = 0.3f}, {.accept = 0.3f}, {.accept = 0.3f}};

    (void)state;
    pace_init(&p);
    for (int i = 0; i < 400; i++) pace_note_step(&p, i % 2 ? 8 : 16, i % 2 ? 3000000 : 6000000);
    assert_int_equal(pace_share(&p, m, 5, 64, by_power, NULL), 8); /* up to the next graph for nothing, and not beyond */
    assert_int_equal(m[0].taken, 3);
}

/* The longer the drafter takes for a step, and the dearer a row, the fewer drafts are asked for. */
static void test_length_goes_by_what_a_draft_costs(void **state)
{
    const struct pace_sequence good = {.accept = 0.9f, .found = 1}, poor = {.accept = 0.3f, .found = 1};
    struct pace p;
    float least, dear;

    (void)state;
    pace_init(&p);
    run(&p, 400, 1, 7, 3000, 40);
    const uint32_t free = asked_of(&p, &good, 1, 12, &least);
    assert_int_equal(free, 12);
    assert_true(least < 0.1f);
    assert_true(asked_of(&p, &poor, 1, 12, &least) < 6);
    p.guess_us = 1000;
    const uint32_t slow = asked_of(&p, &good, 1, 12, &dear);
    assert_true(slow > 0 && slow < free && dear > least);
    assert_int_equal(asked_of(&p, &poor, 1, 12, NULL), 0);
    p.guess_us = 1e9;
    assert_int_equal(asked_of(&p, &good, 1, 12, NULL), 0);
    p.guess_us = 0;
    p.round_us = 10000; /* as DSpark: a block, then nearly nothing a draft */
    assert_true(asked_of(&p, &good, 1, 12, NULL) == 0 || asked_of(&p, &good, 1, 12, NULL) == 12);
}

/* What the drafter's time costs counts for drafts that are to be made, not for those that are there: they cost a row. */
static void test_a_draft_that_is_there_costs_a_row(void **state)
{
    const struct pace_sequence fair = {.accept = 0.75f, .found = 1};
    struct pace p;

    (void)state;
    pace_init(&p);
    run(&p, 400, 1, 7, 3400, 60);
    p.guess_us = 200;
    const struct pace_asker dear = ask_of(&p, &fair, 1, 6);
    assert_true(dear.most >= 4);
    assert_true(dear.least > 0.1f && dear.worth <= 0.06f); /* 3.5 tokens in 5 ms: 200 us are 0.14 of a token, a row of 60 us 0.04 */
    p.guess_us = 0;
    const struct pace_asker free = ask_of(&p, &fair, 1, 6);
    assert_true(free.least == free.worth && free.worth <= 0.07f);
}

static void test_asks_for_no_more_rows_than_there_are(void **state)
{
    const struct pace_sequence good = {.accept = 0.95f, .found = 1};
    struct pace_asker asker[70];
    struct pace p;
    uint32_t sum = 0;

    (void)state;
    pace_init(&p);
    run(&p, 400, 1, 7, 3000, 1);
    for (uint32_t i = 0; i < 70; i++) asker[i] = (struct pace_asker){.pace = &good};
    assert_true(pace_ask(&p, asker, 60, 64, 7, as_given, NULL) > 0);
    for (uint32_t i = 0; i < 60; i++) sum += asker[i].most;
    assert_true(sum > 0 && sum <= 4);
    assert_int_equal(pace_ask(&p, asker, 64, 64, 7, as_given, NULL), 0);
    assert_int_equal(pace_ask(&p, asker, 70, 64, 7, as_given, NULL), 0);
    for (uint32_t i = 0; i < 70; i++) assert_int_equal(asker[i].most, 0);
    assert_int_equal(pace_ask(&p, asker, 0, 64, 7, as_given, NULL), 0);
}

static void test_phases_are_kept_apart(void **state)
{
    struct pace_sequence q;
    struct pace p;

    (void)state;
    pace_init(&p);
    pace_begin(&p, &q, PACE_ANSWER);
    judge(&p, &q, 100, 4, false);
    const float answer = q.accept;
    pace_turn(&p, &q, PACE_THINKING);
    assert_true(q.accept < 0.9f && answer > 0.95f);
    judge(&p, &q, 100, 0, true);
    assert_true(p.of[PACE_ANSWER].accept > 0.9 && p.of[PACE_THINKING].accept < 0.2);
    pace_turn(&p, &q, PACE_THINKING);
    assert_true(q.accept < 0.2f);
    pace_turn(&p, &q, PACE_ANSWER);
    assert_true(q.accept > 0.9f);
}

/* A drafter of 900 us a round: what answers took is its price, but not what they took while it started. */
static void test_a_round_costs_what_answers_take(void **state)
{
    (void)state;
    assert_true(pace_round_us(800, 100, 0, 8) == 800);           /* nothing is known: what it says */
    assert_true(pace_round_us(800, 100, 700, 8) == 800);
    assert_true(pace_round_us(800, 100, 2500, 8) == 2400);
    assert_true(pace_round_us(800, 100, 10000, 32) == 9900);
    assert_true(pace_round_us(800, 100, 300000, 1) < 1.5 * 900); /* a lone question's round is the one it speaks of */
    assert_true(pace_round_us(800, 100, 300000, 8) < 4 * 900);
    assert_true(pace_round_us(800, 100, 3e9, 1000000) <= 16 * 900);
    assert_true(pace_round_us(0, 1200, 9000, 32) == 7800);       /* one that counts all its time as drafts */
    assert_true(pace_round_us(0, 0, 9000, 32) == 0);             /* one that says nothing */
    double seen = pace_seen_us(0, 300000, 900, 8);
    for (int i = 0; i < 4; i++) seen = pace_seen_us(seen, 2500, 900, 8);
    assert_true(seen >= 2500 && seen < 2600);                    /* a slow first answer is soon forgotten */
    seen = pace_seen_us(seen, 300000, 900, 8);
    assert_true(seen < 2900);                                    /* and a slow one among others hardly counts */
    for (int i = 0; i < 20; i++) seen = pace_seen_us(seen, 3200, 900, 8);
    assert_true(seen > 3150);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_finds_base_and_row),
        cmocka_unit_test(test_length_goes_by_what_a_draft_costs),
        cmocka_unit_test(test_a_draft_that_is_there_costs_a_row), cmocka_unit_test(test_asks_for_no_more_rows_than_there_are), cmocka_unit_test(test_phases_are_kept_apart),
        cmocka_unit_test(test_a_round_costs_what_answers_take),
        cmocka_unit_test(test_unknown_rows_are_cheap_until_seen),
        cmocka_unit_test(test_one_disturbed_step_is_no_price),
        cmocka_unit_test(test_drafts_pay_where_rows_are_cheap),
        cmocka_unit_test(test_who_never_answers_is_not_worth_asking),
        cmocka_unit_test(test_a_slow_drafter_gets_another_chance),
        cmocka_unit_test(test_share_takes_the_likely_ones),
        cmocka_unit_test(test_share_keeps_its_limits),
        cmocka_unit_test(test_share_fills_rows_that_are_computed_anyway),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
