/* tests/unit/ring_test.c - shm/ring: order, wrap, overflow, sleeping, and two processes that share nothing but it. */
#include "shm/atomic.h"
#include "shm/clock.h"
#include "shm/error.h"
#include "shm/ring.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define SECOND_NS 1000000000ull

/* A ring as two stages see it: each has its own side writable and the other's read-only. */
struct pair {
    int producer_fd, consumer_fd;
    struct ring tx, rx;
};

static void *map(int fd, size_t bytes, bool writable)
{
    void *at = mmap(NULL, bytes, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);

    assert_ptr_not_equal(at, MAP_FAILED);
    return at;
}

static int new_memory(size_t bytes)
{
    const int fd = memfd_create("ring-test", MFD_CLOEXEC);

    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)bytes), 0);
    return fd;
}

static int set_up_at(void **state, uint64_t start)
{
    struct pair *p = calloc(1, sizeof *p);

    p->producer_fd = new_memory(sizeof(struct ring_producer));
    p->consumer_fd = new_memory(sizeof(struct ring_consumer));
    p->tx = (struct ring){.producer = map(p->producer_fd, sizeof(struct ring_producer), true),
                          .consumer = map(p->consumer_fd, sizeof(struct ring_consumer), false), .event_fd = -1};
    p->rx = (struct ring){.producer = map(p->producer_fd, sizeof(struct ring_producer), false),
                          .consumer = map(p->consumer_fd, sizeof(struct ring_consumer), true), .event_fd = -1};
    p->tx.producer->tail = start;
    p->rx.consumer->head = start;
    *state = p;
    return 0;
}

static int set_up(void **state) { return set_up_at(state, 0); }
static int set_up_below_2_32(void **state) { return set_up_at(state, (1ull << 32) - 5); }
static int set_up_below_2_64(void **state) { return set_up_at(state, UINT64_MAX - 5); }

static int tear_down(void **state)
{
    struct pair *p = *state;

    munmap(p->tx.producer, sizeof(struct ring_producer));
    munmap(p->rx.producer, sizeof(struct ring_producer));
    munmap(p->tx.consumer, sizeof(struct ring_consumer));
    munmap(p->rx.consumer, sizeof(struct ring_consumer));
    close(p->producer_fd);
    close(p->consumer_fd);
    free(p);
    return 0;
}

static struct ring_msg numbered(uint32_t n)
{
    struct ring_msg m = {.slot = n, .generation = ~n, .base = n * 3, .count = n * 5};

    for (uint32_t i = 0; i < RING_TOKENS_MAX; i++) m.tokens[i] = n * 7 + i;
    return m;
}

static void expect(const struct ring_msg *got, uint32_t n)
{
    const struct ring_msg want = numbered(n);

    assert_memory_equal(got, &want, sizeof want);
}

static void publish(struct pair *p, uint32_t n)
{
    const struct ring_msg m = numbered(n);

    assert_int_equal(ring_publish(&p->tx, &m), 0);
}

static void take(struct pair *p, uint32_t n)
{
    struct ring_msg m;

    assert_int_equal(ring_take(&p->rx, &m), 1);
    expect(&m, n);
}

/* ---- one process --------------------------------------------------------------------- */

static void test_messages_come_whole_and_in_order(void **state)
{
    struct pair *p = *state;
    struct ring_msg m;

    assert_int_equal(ring_take(&p->rx, &m), 0);
    for (uint32_t round = 0; round < 5000; round++) { /* several times round, at many fill levels */
        const uint32_t count = round % 37;
        for (uint32_t i = 0; i < count; i++) publish(p, round + i);
        assert_int_equal(ring_depth(&p->rx), count);
        assert_int_equal(ring_depth(&p->tx), count);
        for (uint32_t i = 0; i < count; i++) take(p, round + i);
        assert_int_equal(ring_take(&p->rx, &m), 0);
    }
    assert_false(ring_overran(&p->rx));
}

static void test_full_ring_drops_counts_and_tells(void **state)
{
    struct pair *p = *state;
    const struct ring_msg extra = numbered(9999);
    struct ring_msg m;

    for (uint32_t i = 0; i < RING_SLOTS; i++) publish(p, i);
    assert_int_equal(ring_depth(&p->rx), RING_SLOTS);
    assert_int_equal(ring_publish(&p->tx, &extra), -E_FULL);
    assert_int_equal(ring_publish(&p->tx, &extra), -E_FULL);
    assert_int_equal(p->tx.producer->lost, 2);
    assert_true(ring_overran(&p->rx));
    assert_false(ring_overran(&p->rx)); /* once, until more are lost */
    take(p, 0);
    publish(p, RING_SLOTS); /* one slot is free again */
    assert_int_equal(ring_publish(&p->tx, &extra), -E_FULL);
    assert_true(ring_overran(&p->rx));
    for (uint32_t i = 1; i <= RING_SLOTS; i++) take(p, i); /* nothing unread was overwritten */
    assert_int_equal(ring_take(&p->rx, &m), 0);
}

static void test_skip_forgets_messages_and_losses(void **state)
{
    struct pair *p = *state;
    const struct ring_msg extra = numbered(1);
    struct ring_msg m;

    for (uint32_t i = 0; i < RING_SLOTS; i++) publish(p, i);
    ring_publish(&p->tx, &extra);
    p->rx.consumer->sleeping = 1; /* the predecessor was killed asleep */
    ring_skip(&p->rx);
    assert_int_equal(ring_depth(&p->rx), 0);
    assert_int_equal(p->rx.consumer->sleeping, 0);
    assert_false(ring_overran(&p->rx));
    assert_int_equal(ring_take(&p->rx, &m), 0);
    publish(p, 77);
    take(p, 77);
}

static void test_a_corrupt_peer_cannot_make_us_write_outside(void **state)
{
    struct pair *p = *state;
    const struct ring_msg m = numbered(4);
    struct ring_msg got;

    publish(p, 1);
    p->rx.consumer->head += 1000; /* beyond tail */
    assert_int_equal(ring_publish(&p->tx, &m), -E_FULL);
    expect(&p->tx.producer->slots[(p->tx.producer->tail - 1) & (RING_SLOTS - 1)], 1);
    p->rx.consumer->head = p->tx.producer->tail;
    p->tx.producer->tail += UINT64_MAX / 3; /* a wild tail: garbage messages, inside the ring's memory */
    for (int i = 0; i < 5000; i++) assert_int_equal(ring_take(&p->rx, &got), 1);
}

static void test_wait_times_out_and_finds_what_is_there(void **state)
{
    struct pair *p = *state;
    struct ring *const in[] = {&p->rx};
    uint64_t begin = clock_ns();

    assert_false(ring_wait(in, 1, 20000000, 0));
    assert_true(clock_ns() - begin >= 19000000);
    assert_int_equal(p->rx.consumer->sleeping, 0);
    begin = clock_ns();
    assert_false(ring_wait(in, 1, 1000000, 10000000)); /* spins first */
    assert_true(clock_ns() - begin >= 10000000);
    publish(p, 5);
    begin = clock_ns();
    assert_true(ring_wait(in, 1, 10 * SECOND_NS, 0));
    assert_true(clock_ns() - begin < SECOND_NS);
    take(p, 5);
}

static void test_wait_for_what_is_due(void **state)
{
    struct pair *p = *state;
    struct ring *const in[] = {&p->rx};
    const uint64_t begin = clock_ns();

    assert_false(ring_wait_due(in, 1, begin + 5000000, begin + 20000000));
    assert_true(clock_ns() - begin >= 19000000 && clock_ns() - begin < SECOND_NS);
    assert_false(ring_wait_due(in, 1, begin, begin)); /* over already */
    assert_int_equal(p->rx.consumer->sleeping, 0);
    publish(p, 5);
    assert_true(ring_wait_due(in, 1, clock_ns() + 10 * SECOND_NS, clock_ns() + 20 * SECOND_NS));
    assert_true(clock_ns() - begin < SECOND_NS);
    take(p, 5);
}

static void test_a_loss_ends_the_wait(void **state)
{
    struct pair *p = *state;
    struct ring *const in[] = {&p->rx};

    shm_store_relaxed(&p->tx.producer->lost, 1);
    assert_true(ring_wait(in, 1, 10 * SECOND_NS, 0));
    assert_true(ring_overran(&p->rx));
    assert_false(ring_wait(in, 1, 1000000, 0));
}

static void test_only_an_armed_event_descriptor_is_written(void **state)
{
    struct pair *p = *state;
    struct ring *const in[] = {&p->rx};
    const int event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    uint64_t count = 0;

    p->tx.event_fd = p->rx.event_fd = event_fd;
    publish(p, 1);
    assert_int_equal(read(event_fd, &count, sizeof count), -1); /* awake: no system call is spent */
    assert_true(ring_arm(in, 1));                               /* do not sleep: a message waits */
    take(p, 1);
    assert_false(ring_arm(in, 1));
    publish(p, 2);
    publish(p, 3);
    assert_int_equal(read(event_fd, &count, sizeof count), sizeof count);
    assert_int_equal(count, 2);
    ring_disarm(in, 1);
    publish(p, 4);
    assert_int_equal(read(event_fd, &count, sizeof count), -1);
    close(event_fd);
}

/* ---- two processes ------------------------------------------------------------------- */

/* A child that ends by itself even if this process fails first. */
static pid_t fork_for_a_while(void)
{
    const pid_t pid = fork();

    if (pid == 0) alarm(50);
    return pid;
}

static void exits_with_0(pid_t pid)
{
    int status = 0;

    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

static bool dies_writing(uint8_t *at)
{
    int status = 0;
    const pid_t pid = fork();

    if (pid == 0) {
        signal(SIGSEGV, SIG_DFL); /* a sanitizer would turn the signal into an exit code */
        *(volatile uint8_t *)at = 1;
        _exit(0);
    }
    waitpid(pid, &status, 0);
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV;
}

static void test_the_peers_side_cannot_be_written(void **state)
{
    struct pair *p = *state;

    assert_true(dies_writing((uint8_t *)&p->rx.producer->tail));
    assert_true(dies_writing((uint8_t *)&p->rx.producer->slots[3]));
    assert_true(dies_writing((uint8_t *)&p->tx.consumer->head));
    assert_false(dies_writing((uint8_t *)&p->rx.consumer->sleeping));
    assert_false(dies_writing((uint8_t *)&p->tx.producer->slots[3]));
}

static void test_a_sleeping_process_is_woken_by_any_of_its_rings(void **state)
{
    struct pair *p = *state;
    void *other_state = NULL;

    set_up(&other_state);
    struct pair *q = other_state;
    for (int which = 0; which < 2; which++) {
        const pid_t pid = fork_for_a_while();
        if (pid == 0) {
            struct ring *const in[] = {&p->rx, &q->rx};
            const uint64_t begin = clock_ns();
            if (!ring_wait(in, 2, 20 * SECOND_NS, 0)) _exit(1);
            if (clock_ns() - begin > 10 * SECOND_NS) _exit(2);
            struct ring_msg m;
            _exit(ring_take(which ? &q->rx : &p->rx, &m) == 1 && m.slot == 42 ? 0 : 3);
        }
        while (!shm_load_acquire(&q->tx.consumer->sleeping)) sched_yield();
        usleep(20000); /* it really sleeps now */
        publish(which ? q : p, 42);
        exits_with_0(pid);
        shm_store_relaxed(&q->rx.consumer->sleeping, 0);
    }
    tear_down(&other_state);
}

/* An early return without a message is a wake-up for a message already taken; the whole time is a lost wake-up. */
static void sleep_once(struct ring *r)
{
    const uint64_t begin = clock_ns();

    ring_wait(&r, 1, 10 * SECOND_NS, 0);
    if (clock_ns() - begin > 9 * SECOND_NS) fail_msg("slept %.1f s: a wake-up was lost", (double)(clock_ns() - begin) / 1e9);
}

static void test_a_million_messages_between_processes(void **state)
{
    struct pair *p = *state;
    const uint32_t total = 1000000;
    const pid_t pid = fork_for_a_while();

    if (pid == 0) {
        for (uint32_t n = 0; n < total;) {
            const struct ring_msg m = numbered(n);
            if (ring_depth(&p->tx) < RING_SLOTS && ring_publish(&p->tx, &m) == 0) n++;
            else sched_yield();
        }
        _exit(0);
    }
    struct ring *const in[] = {&p->rx};
    struct ring_msg m;
    for (uint32_t n = 0; n < total;) {
        if (ring_take(&p->rx, &m) == 1) {
            const struct ring_msg want = numbered(n++);
            if (memcmp(&m, &want, sizeof m) != 0) fail_msg("message %u is damaged or out of order: slot %u", n - 1, m.slot);
        } else {
            sleep_once(in[0]);
        }
    }
    exits_with_0(pid);
    assert_int_equal(p->tx.producer->lost, 0);
}

static uint32_t next_random(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 16;
}

static void dawdle(uint32_t *seed)
{
    for (volatile uint32_t i = next_random(seed) % 400; i > 0; i--) {}
}

/* Each side sleeps until the other has answered, so a lost wake-up shows as a wait that runs into its limit. */
static void test_no_wake_up_is_lost(void **state)
{
    struct pair *p = *state;
    void *back_state = NULL;
    const uint32_t rounds = 10000;

    set_up(&back_state);
    struct pair *back = back_state;
    const pid_t pid = fork_for_a_while();
    struct ring *const in[] = {pid == 0 ? &p->rx : &back->rx};
    struct ring *const out = pid == 0 ? &back->tx : &p->tx;
    uint32_t seed = pid == 0 ? 1 : 2, late = 0;
    for (uint32_t n = 0; n < rounds; n++) {
        const struct ring_msg m = numbered(n);
        struct ring_msg got;
        if (pid != 0) ring_publish(out, &m);
        while (ring_take(in[0], &got) == 0) {
            dawdle(&seed);
            const uint64_t begin = clock_ns();
            ring_wait(in, 1, 10 * SECOND_NS, 0);
            if (clock_ns() - begin > 9 * SECOND_NS) late++;
        }
        if (late > 0 || got.slot != n) break;
        dawdle(&seed);
        if (pid == 0) ring_publish(out, &m);
    }
    if (pid == 0) _exit(late ? 1 : 0);
    assert_int_equal(late, 0);
    exits_with_0(pid);
    tear_down(&back_state);
}

int main(void)
{
#define AT(start, f) {#f "@" #start, f, start, tear_down, NULL}
    const struct CMUnitTest tests[] = {
        AT(set_up, test_messages_come_whole_and_in_order),
        AT(set_up_below_2_32, test_messages_come_whole_and_in_order),
        AT(set_up_below_2_64, test_messages_come_whole_and_in_order),
        AT(set_up, test_full_ring_drops_counts_and_tells),
        AT(set_up_below_2_32, test_full_ring_drops_counts_and_tells),
        AT(set_up_below_2_64, test_full_ring_drops_counts_and_tells),
        AT(set_up, test_skip_forgets_messages_and_losses),
        AT(set_up_below_2_64, test_skip_forgets_messages_and_losses),
        AT(set_up, test_a_corrupt_peer_cannot_make_us_write_outside),
        AT(set_up, test_wait_times_out_and_finds_what_is_there),
        AT(set_up, test_wait_for_what_is_due),
        AT(set_up, test_a_loss_ends_the_wait),
        AT(set_up, test_only_an_armed_event_descriptor_is_written),
        AT(set_up, test_the_peers_side_cannot_be_written),
        AT(set_up, test_a_sleeping_process_is_woken_by_any_of_its_rings),
        AT(set_up_below_2_32, test_a_million_messages_between_processes),
        AT(set_up_below_2_64, test_a_million_messages_between_processes),
        AT(set_up_below_2_32, test_no_wake_up_is_lost),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
