/* tests/unit/turns_test.c - prefill and verify taking turns: two sides in one process, each with a segment of its own. */
#include "schemas/turns.h"
#include "schemas/counters.h"
#include "shm/atomic.h"
#include "shm/clock.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

struct pair {
    struct stage prefill, verify;
    struct turns p, v;
    uint64_t stop;                    /* of the thread */
    uint64_t slices, overlaps;        /* counted by the verify thread: slices seen; of them, inside a step */
    uint64_t in_step, in_slice;
    uint64_t late;                    /* turns whose end was not awaited: the machine stopped a thread for longer than the limit */
};

static int set_up(void **state)
{
    struct pair *t = calloc(1, sizeof *t);

    for (int side = 0; side < 2; side++) {
        uint8_t *segment = calloc(1, SEGMENT_STATUS_OFFSET + sizeof(struct stage_status));
        struct stage *own = side ? &t->verify : &t->prefill, *other = side ? &t->prefill : &t->verify;
        own->status = (struct stage_status *)(segment + SEGMENT_STATUS_OFFSET);
        own->segment[side ? ROLE_VERIFY : ROLE_PREFILL] = segment;
        other->segment[side ? ROLE_VERIFY : ROLE_PREFILL] = segment;
    }
    turns_open_prefill(&t->p, &t->prefill, 50);
    turns_open_verify(&t->v, &t->verify);
    *state = t;
    return 0;
}

static int tear_down(void **state)
{
    struct pair *t = *state;

    free(t->prefill.segment[ROLE_PREFILL]);
    free(t->verify.segment[ROLE_VERIFY]);
    free(t);
    return 0;
}

static void work(uint64_t us)
{
    const struct timespec pause = {0, (long)(1000 * us)};

    nanosleep(&pause, NULL);
}

static void test_a_lone_prompt_asks_nobody(void **state)
{
    struct pair *t = *state;
    const uint64_t begin = clock_ns();

    for (int i = 0; i < 100; i++) {
        assert_true(turns_ask(&t->p, 1) > 5000000);
        turns_end(&t->p);
    }
    assert_true(clock_ns() - begin < 50000000);
    assert_false(turns_asked(&t->v));
}

static void test_without_a_peer_there_are_no_turns(void **state)
{
    struct pair *t = *state;

    t->prefill.segment[ROLE_VERIFY] = t->verify.segment[ROLE_PREFILL] = NULL;
    turns_open_prefill(&t->p, &t->prefill, 50);
    turns_open_verify(&t->v, &t->verify);
    assert_true(turns_ask(&t->p, 1) > 5000000);
    turns_end(&t->p);
    assert_false(turns_asked(&t->v));
}

static void test_slices_follow_the_share(void **state)
{
    static const struct { uint32_t share, ms; } cases[] = {{50, 4}, {75, 12}, {20, 1}, {95, 25}, {100, 25}}; /* no slice is longer than verify waits for */
    struct pair *t = *state;

    turns_note_step(&t->v, 4000000);
    turns_note_idle(&t->v);
    shm_store_release(&t->verify.status->counters[VERIFY_RUNNING], 8);
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        turns_open_prefill(&t->p, &t->prefill, cases[i].share);
        shm_store_release(&t->verify.status->counters[VERIFY_STEPPING], 1);
        shm_store_release(&t->verify.status->counters[VERIFY_TURN_GIVEN], t->prefill.status->counters[PREFILL_TURN_ASKED] + 1); /* given before it is asked */
        assert_int_equal((turns_ask(&t->p, 1) + 500000) / 1000000, cases[i].ms);
    }
}

static void test_a_crowd_gets_more(void **state)
{
    static const struct { uint32_t sequences, running, ms; } cases[] = {{1, 8, 4}, {2, 8, 4}, {4, 8, 8}, {4, 28, 4}, {6, 9, 16}, {8, 8, 25}, {14, 1, 25}};
    struct pair *t = *state;

    turns_note_step(&t->v, 4000000);
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        shm_store_release(&t->verify.status->counters[VERIFY_RUNNING], cases[i].running);
        shm_store_release(&t->verify.status->counters[VERIFY_TURN_GIVEN], t->prefill.status->counters[PREFILL_TURN_ASKED] + 1);
        assert_int_equal((turns_slice_ns(&t->p, cases[i].sequences) + 500000) / 1000000, cases[i].ms); /* known before it is asked: a call's rows go by it */
        assert_int_equal((turns_ask(&t->p, cases[i].sequences) + 500000) / 1000000, cases[i].ms);
    }
}

static void *steps(void *context)
{
    struct pair *t = context;

    while (!shm_load_acquire(&t->stop)) {
        if (turns_asked(&t->v)) {
            const uint64_t asked = clock_ns();
            turns_give(&t->v);
            t->slices++;
            t->late += clock_ns() - asked > 40000000;
        }
        shm_store_release(&t->in_step, 1);
        const uint64_t begin = clock_ns();
        work(200);
        if (shm_load_acquire(&t->in_slice)) t->overlaps++;
        shm_store_release(&t->in_step, 0);
        turns_note_step(&t->v, clock_ns() - begin);
    }
    turns_note_idle(&t->v);
    return NULL;
}

static void test_slices_and_steps_do_not_overlap(void **state)
{
    struct pair *t = *state;
    uint64_t overlaps = 0;
    pthread_t thread;

    turns_note_step(&t->v, 200000);
    assert_int_equal(pthread_create(&thread, NULL, steps, t), 0);
    for (int i = 0; i < 200; i++) {
        turns_ask(&t->p, 1);
        shm_store_release(&t->in_slice, 1);
        overlaps += shm_load_acquire(&t->in_step);
        work(100);
        overlaps += shm_load_acquire(&t->in_step);
        shm_store_release(&t->in_slice, 0);
        turns_end(&t->p);
    }
    shm_store_release(&t->stop, 1);
    pthread_join(thread, NULL);
    if (t->late) {
        print_message("SKIP: the machine is so busy that a side waited past its limit: nothing can be said about overlaps\n");
        skip();
    }
    assert_int_equal(overlaps, 0);
    assert_int_equal(t->overlaps, 0);
    assert_int_equal(t->slices, 200);
    assert_true(t->verify.status->counters[VERIFY_TURN_NS] > 0);
}

static void test_a_dead_verify_costs_its_limit_only(void **state)
{
    struct pair *t = *state;

    turns_note_step(&t->v, 1000000); /* and it never comes back */
    const uint64_t begin = clock_ns();
    assert_true(turns_ask(&t->p, 1) > 500000);
    assert_true(clock_ns() - begin >= 50000000);
    assert_true(t->p.deaf);
    const uint64_t beats = t->prefill.status->heartbeat; /* who waits beats */
    assert_true(beats > 0);
    turns_end(&t->p);
    turns_ask(&t->p, 1); /* it is not waited for twice ... */
    turns_end(&t->p);
    assert_int_equal(t->prefill.status->heartbeat, beats);
    shm_store_release(&t->verify.status->counters[VERIFY_TURN_GIVEN], t->prefill.status->counters[PREFILL_TURN_ASKED]); /* ... until it is back */
    const uint64_t back = clock_ns();
    turns_ask(&t->p, 1);
    assert_true(clock_ns() - back >= 50000000);
    turns_end(&t->p);
}

static void test_a_dead_prefill_costs_its_limit_once(void **state)
{
    struct pair *t = *state;

    shm_store_release(&t->prefill.status->counters[PREFILL_TURN_ASKED], 7); /* asked, and died */
    shm_store_release(&t->prefill.status->counters[PREFILL_TURN_ENDED], 6);
    assert_true(turns_asked(&t->v));
    const uint64_t begin = clock_ns();
    assert_false(turns_give(&t->v)); /* what runs beside it says nothing about a step's time */
    assert_true(clock_ns() - begin >= 25000000);
    assert_true(t->verify.status->heartbeat > 0);
    assert_false(turns_asked(&t->v));
    turns_open_prefill(&t->p, &t->prefill, 50); /* its successor */
    assert_int_equal(t->prefill.status->counters[PREFILL_TURN_ENDED], 7);
    assert_false(turns_asked(&t->v));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_a_lone_prompt_asks_nobody, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_without_a_peer_there_are_no_turns, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_slices_follow_the_share, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_crowd_gets_more, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_slices_and_steps_do_not_overlap, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_dead_verify_costs_its_limit_only, set_up, tear_down),
        cmocka_unit_test_setup_teardown(test_a_dead_prefill_costs_its_limit_once, set_up, tear_down),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
