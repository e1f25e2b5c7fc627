/* tests/unit/killpoints_test.c - a process killed after each single instruction of its work with a ring.
 *
 * A child does a batch of what a stage does: as producer it writes a step into its table, commits it and announces it
 * in the ring; as consumer it takes messages, applies the effect of each step to its own table and commits that. The
 * parent lets it run instruction by instruction (PTRACE_SINGLESTEP). At each one it does what happens when the child
 * is killed there: the surviving neighbour goes on, the role starts anew as shm/ring.h demands. Then it checks: every
 * step has its effect, none has it twice, no message was seen in pieces, nobody waits for a wake-up that never comes.
 *
 * Two ways: a small batch whose child really is killed with SIGKILL, a new child for every instruction; and a longer
 * batch with one child, where the recovery works on a copy of the shared memory as it stands at that instruction,
 * which is all that a killed process leaves.
 *
 * The last tests seed the mistakes that the rules forbid; this harness must find each of them. */
#include "schemas/table.h"
#include "shm/atomic.h"
#include "shm/error.h"
#include "shm/ring.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#define SLOTS 3u
#define STEPS 3u
#define KILLED_SLOTS 1u /* the small batch: each kill costs all instructions before it */
#define KILLED_STEPS 2u
#define GENERATION 7u
#define INSTRUCTIONS_MAX 20000u /* a batch that is longer is a batch that hangs */

enum mistake {
    NONE,
    TAIL_BEFORE_MESSAGE,    /* ring: publish the place before the message is in it */
    COMMIT_BEFORE_DATA,     /* table: commit word before the value it covers */
    NO_SCAN_AFTER_RESTART,  /* consumer: trusts the ring to hold what its predecessor took */
    EFFECT_WITHOUT_KEY,     /* consumer: adds instead of writing to the step's own place */
    NO_ANNOUNCE_AFTER_RESTART /* producer: trusts its predecessor to have told everybody */
};

struct producer_side {
    struct ring_producer ring;
    uint64_t commit[SLOTS]; /* generation | steps whose value is there */
    uint32_t value[SLOTS][STEPS];
    uint64_t phase; /* 1 while the child is at the work that counts */
};

struct consumer_side {
    struct ring_consumer ring;
    uint64_t commit[SLOTS]; /* generation | steps whose effect is there */
    uint64_t effect[SLOTS][STEPS];
    uint64_t garbled; /* messages that were no messages */
    uint64_t phase;
};

struct world {
    struct producer_side *p;
    struct consumer_side *c;
    struct ring ring;
    enum mistake mistake;
    bool tight;            /* nothing covers up a lost message: the reader is always up to date, each slot gets one message */
    uint32_t slots, steps; /* of the batch */
};

static uint32_t right_value(uint32_t slot, uint32_t step) { return 1000 + slot * 100 + step; }

/* ---- what the two stages do ------------------------------------------------------------ */

static struct ring_msg message_for(uint32_t slot)
{
    struct ring_msg m = {.slot = slot, .generation = GENERATION, .base = ~slot, .count = RING_TOKENS_MAX};

    for (uint32_t i = 0; i < RING_TOKENS_MAX; i++) m.tokens[i] = slot * 31 + i;
    return m;
}

static void publish(struct world *w, uint32_t slot)
{
    const struct ring_msg m = message_for(slot);

    if (w->mistake == TAIL_BEFORE_MESSAGE) {
        const uint64_t tail = w->p->ring.tail, one = 1;
        shm_store_release(&w->p->ring.tail, tail + 1);
        w->p->ring.slots[tail & (RING_SLOTS - 1)] = m;
        if (shm_load_acquire(&w->c->ring.sleeping) && write(w->ring.event_fd, &one, sizeof one) < 0) abort();
    } else {
        ring_publish(&w->ring, &m);
    }
}

static void produce_step(struct world *w, uint32_t slot, uint32_t step, bool announce)
{
    volatile uint32_t *value = &w->p->value[slot][step];

    if (w->mistake == COMMIT_BEFORE_DATA) shm_store_release(&w->p->commit[slot], word_pack(GENERATION, step + 1));
    *value = right_value(slot, step);
    shm_store_release(&w->p->commit[slot], word_pack(GENERATION, step + 1));
    if (announce) publish(w, slot);
}

static void produce(struct world *w, bool restarted)
{
    for (uint32_t slot = 0; restarted && w->mistake != NO_ANNOUNCE_AFTER_RESTART && slot < w->slots; slot++)
        if (word_for(&w->p->commit[slot], GENERATION)) publish(w, slot);
    for (uint32_t step = 0; step < w->steps; step++)
        for (uint32_t slot = 0; slot < w->slots; slot++)
            if (word_for(&w->p->commit[slot], GENERATION) <= step) produce_step(w, slot, step, true);
}

static void handle(struct world *w, uint32_t slot)
{
    const uint32_t there = word_for(&w->p->commit[slot], GENERATION);

    for (uint32_t step = word_for(&w->c->commit[slot], GENERATION); step < there; step++) {
        const uint64_t value = w->p->value[slot][step];
        volatile uint64_t *effect = &w->c->effect[slot][step];
        if (w->mistake == EFFECT_WITHOUT_KEY) *effect += value;
        else *effect = value;
        shm_store_release(&w->c->commit[slot], word_pack(GENERATION, step + 1));
    }
}

static void consume(struct world *w, bool restarted)
{
    struct ring_msg m;

    if (restarted && w->mistake != NO_SCAN_AFTER_RESTART) {
        ring_skip(&w->ring);
        for (uint32_t slot = 0; slot < w->slots; slot++) handle(w, slot);
    }
    while (ring_take(&w->ring, &m) == 1) {
        const struct ring_msg want = message_for(m.slot < w->slots ? m.slot : 0);
        if (memcmp(&m, &want, sizeof m) != 0) w->c->garbled++;
        else handle(w, m.slot);
    }
}

/* An event loop's turn: it acts only if its eventfd was written since it went to sleep, then sleeps again. */
static void consume_if_woken(struct world *w)
{
    struct ring *const in[] = {&w->ring};
    uint64_t count;

    while (read(w->ring.event_fd, &count, sizeof count) == sizeof count) {
        ring_disarm(in, 1);
        do consume(w, false);
        while (ring_arm(in, 1));
    }
}

/* ---- one world, one child --------------------------------------------------------------- */

static void *shared(size_t bytes)
{
    void *at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

    assert_ptr_not_equal(at, MAP_FAILED);
    return at;
}

static void open_world(struct world *w, enum mistake mistake, uint32_t slots, uint32_t steps)
{
    *w = (struct world){.p = shared(sizeof *w->p), .c = shared(sizeof *w->c), .mistake = mistake, .slots = slots, .steps = steps};
    w->ring = (struct ring){.producer = &w->p->ring, .consumer = &w->c->ring, .event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)};
}

static void close_world(struct world *w)
{
    close(w->ring.event_fd);
    munmap(w->p, sizeof *w->p);
    munmap(w->c, sizeof *w->c);
}

/* The words of an earlier request in the same slots, and old messages in the ring. */
static void reset_world(struct world *w, uint64_t start)
{
    struct ring *const in[] = {&w->ring};
    uint64_t count;

    memset(w->p, 0xa5, sizeof *w->p);
    memset(w->c, 0, sizeof *w->c);
    w->p->ring.lost = w->ring.lost_seen = 0;
    w->p->ring.tail = w->c->ring.head = start;
    for (uint32_t slot = 0; slot < SLOTS; slot++) w->p->commit[slot] = w->c->commit[slot] = word_pack(GENERATION - 1, STEPS);
    w->p->phase = w->c->phase = 0;
    while (read(w->ring.event_fd, &count, sizeof count) == sizeof count) {}
    ring_arm(in, 1); /* the consumer sleeps */
}

static void run_child(struct world *w, bool as_producer)
{
    uint64_t *phase = as_producer ? &w->p->phase : &w->c->phase;

    if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) != 0) _exit(77);
    raise(SIGSTOP);
    shm_store_release(phase, 1);
    if (as_producer) produce(w, false);
    else consume(w, false);
    shm_store_release(phase, 2);
    _exit(0);
}

static bool step(pid_t pid)
{
    int status;

    return ptrace(PTRACE_SINGLESTEP, pid, NULL, NULL) == 0 && waitpid(pid, &status, 0) == pid && WIFSTOPPED(status);
}

/* What is wrong after everybody has done their part; NULL: nothing. */
static const char *fault_of(const struct world *w)
{
    if (w->c->garbled) return "a message was seen in pieces";
    for (uint32_t slot = 0; slot < w->slots; slot++) {
        if (word_for(&w->p->commit[slot], GENERATION) != w->steps) return "the producer did not finish";
        if (word_for(&w->c->commit[slot], GENERATION) != w->steps) return "a step is lost, or its reader sleeps for ever";
        for (uint32_t s = 0; s < w->steps; s++)
            if (w->c->effect[slot][s] != right_value(slot, s)) return "an effect is wrong or was applied twice";
    }
    return NULL;
}

struct outcome {
    unsigned points, faults;
    unsigned first; /* instruction of the first fault */
    const char *what;
};

static void note(struct outcome *o, const char *fault, unsigned instructions)
{
    o->points++;
    if (!fault) return;
    if (o->faults++ == 0) {
        o->first = instructions;
        o->what = fault;
    }
}

/* A child stopped before the first instruction of its batch, or -E_UNSUPPORTED where ptrace is forbidden. */
static pid_t start_child(struct world *w, bool as_producer)
{
    const uint64_t *phase = as_producer ? &w->p->phase : &w->c->phase;
    int status;
    const pid_t pid = fork();

    if (pid == 0) run_child(w, as_producer);
    if (pid < 0 || waitpid(pid, &status, 0) != pid || !WIFSTOPPED(status)) return -E_UNSUPPORTED;
    ptrace(PTRACE_SETOPTIONS, pid, NULL, PTRACE_O_EXITKILL);
    while (shm_load_acquire(phase) != 1 && step(pid)) {}
    return pid;
}

static void end_child(pid_t pid)
{
    int status;

    kill(pid, SIGKILL);
    while (waitpid(pid, &status, 0) == pid && !WIFEXITED(status) && !WIFSIGNALED(status)) {}
}

/* What happens before the batch, and after its process was killed. */
static void prepare(struct world *w, bool producer, uint64_t start)
{
    reset_world(w, start);
    if (producer) return;
    const uint32_t before = w->tight ? w->steps : w->steps - 1; /* not tight: more comes while the reader is dead */
    for (uint32_t step = 0; step < before; step++)
        for (uint32_t slot = 0; slot < w->slots; slot++) produce_step(w, slot, step, !w->tight || step + 1 == before);
}

static void recover(struct world *w, bool producer)
{
    if (producer) {
        consume_if_woken(w); /* an event loop that lives on, before a new producer is there */
        produce(w, true);
        consume_if_woken(w);
    } else {
        produce(w, false); /* while its reader is dead */
        consume(w, true);
    }
}

/* A child for every instruction, killed there. */
static int explore_by_kills(struct world *w, bool producer, uint64_t start, struct outcome *o)
{
    const uint64_t *phase = producer ? &w->p->phase : &w->c->phase;

    for (unsigned n = 0; n < INSTRUCTIONS_MAX; n++) {
        prepare(w, producer, start);
        const pid_t pid = start_child(w, producer);
        if (pid < 0) return pid;
        for (unsigned i = 0; i < n && shm_load_acquire(phase) == 1; i++) {
            step(pid);
            if (producer && w->tight) consume_if_woken(w);
        }
        const bool over = shm_load_acquire(phase) == 2;
        end_child(pid);
        recover(w, producer);
        note(o, fault_of(w), n);
        if (over) return 0;
    }
    return -E_LIMIT;
}

/* `copy` becomes what `w` is now: memory, and whether its event descriptor was written. */
static void copy_world(struct world *copy, const struct world *w)
{
    uint64_t count = 0, old;

    memcpy(copy->p, w->p, sizeof *w->p);
    memcpy(copy->c, w->c, sizeof *w->c);
    copy->ring.lost_seen = w->ring.lost_seen;
    copy->mistake = w->mistake;
    copy->tight = w->tight;
    while (read(copy->ring.event_fd, &old, sizeof old) == sizeof old) {}
    if (read(w->ring.event_fd, &count, sizeof count) != sizeof count) return;
    assert_int_equal(write(w->ring.event_fd, &count, sizeof count), sizeof count);
    assert_int_equal(write(copy->ring.event_fd, &count, sizeof count), sizeof count);
}

/* One child; at every instruction the recovery runs on a copy. */
static int explore_by_copies(struct world *w, bool producer, uint64_t start, struct outcome *o)
{
    const uint64_t *phase = producer ? &w->p->phase : &w->c->phase;
    struct world copy;

    open_world(&copy, w->mistake, w->slots, w->steps);
    prepare(w, producer, start);
    const pid_t pid = start_child(w, producer);
    if (pid < 0) return pid;
    unsigned n = 0;
    for (; n < INSTRUCTIONS_MAX && shm_load_acquire(phase) == 1; n++) {
        copy_world(&copy, w);
        recover(&copy, producer);
        note(o, fault_of(&copy), n);
        step(pid);
        if (producer && w->tight) consume_if_woken(w);
    }
    end_child(pid);
    close_world(&copy);
    return n < INSTRUCTIONS_MAX ? 0 : -E_LIMIT;
}

/* In this process first: the dynamic linker's work is done once, here, and not at every kill point. */
static void warm_up(struct world *w)
{
    reset_world(w, 0);
    produce(w, true);
    consume_if_woken(w);
    consume(w, true);
}

static bool can_trace(struct world *w)
{
    reset_world(w, 0);
    const pid_t pid = start_child(w, true);
    if (pid > 0) {
        end_child(pid);
        return true;
    }
    print_message("SKIP: ptrace is forbidden here\n");
    return false;
}

/* ---- tests -------------------------------------------------------------------------------- */

static const uint64_t starts[] = {0, RING_SLOTS - 4, (1ull << 32) - 4, UINT64_MAX - 3};

static void survives(bool producer, bool by_kills, unsigned points_least)
{
    struct world w;
    struct outcome o = {0};

    open_world(&w, NONE, by_kills ? KILLED_SLOTS : SLOTS, by_kills ? KILLED_STEPS : STEPS);
    warm_up(&w);
    assert_null(fault_of(&w));
    if (!can_trace(&w)) skip();
    for (unsigned i = 0; i < 2 * sizeof starts / sizeof starts[0]; i++) {
        const uint64_t start = starts[i / 2];
        w.tight = i % 2;
        if (by_kills && w.tight != (i / 2) % 2) continue; /* one of the two each: real deaths take their time */
        assert_int_equal(by_kills ? explore_by_kills(&w, producer, start, &o) : explore_by_copies(&w, producer, start, &o), 0);
    }
    print_message("%u points of the %s, %u faults\n", o.points, producer ? "producer" : "consumer", o.faults);
    if (o.faults) fail_msg("killed after instruction %u: %s", o.first, o.what);
    assert_true(o.points > points_least); /* else the harness does not see the work */
    close_world(&w);
}

static void test_a_producer_killed_anywhere(void **state) { (void)state, survives(true, true, 400); }
static void test_a_consumer_killed_anywhere(void **state) { (void)state, survives(false, true, 200); }
static void test_a_producer_gone_anywhere_in_a_batch(void **state) { (void)state, survives(true, false, 2000); }
static void test_a_consumer_gone_anywhere_in_a_batch(void **state) { (void)state, survives(false, false, 1000); }

static void is_found(enum mistake mistake, bool producer)
{
    struct world w;
    struct outcome o = {0};

    open_world(&w, NONE, SLOTS, STEPS);
    warm_up(&w);
    if (!can_trace(&w)) skip();
    w.mistake = mistake;
    w.tight = true;
    assert_int_equal(explore_by_copies(&w, producer, starts[2], &o), 0);
    print_message("%u of %u points show it, the first: %s\n", o.faults, o.points, o.what ? o.what : "none");
    assert_true(o.faults > 0);
    assert_true(o.faults < o.points); /* and it is the death that shows it */
    close_world(&w);
}

static void test_finds_a_tail_published_before_its_message(void **state) { (void)state, is_found(TAIL_BEFORE_MESSAGE, true); }
static void test_finds_a_commit_before_its_data(void **state) { (void)state, is_found(COMMIT_BEFORE_DATA, true); }
static void test_finds_a_missing_announcement(void **state) { (void)state, is_found(NO_ANNOUNCE_AFTER_RESTART, true); }
static void test_finds_a_missing_scan(void **state) { (void)state, is_found(NO_SCAN_AFTER_RESTART, false); }
static void test_finds_an_effect_without_key(void **state) { (void)state, is_found(EFFECT_WITHOUT_KEY, false); }

int main(void)
{
#ifdef __SANITIZE_ADDRESS__
    printf("the instructions of a sanitizer are not ours; the plain build covers this\n");
    return 77;
#endif
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_producer_killed_anywhere),
        cmocka_unit_test(test_a_consumer_killed_anywhere),
        cmocka_unit_test(test_a_producer_gone_anywhere_in_a_batch),
        cmocka_unit_test(test_a_consumer_gone_anywhere_in_a_batch),
        cmocka_unit_test(test_finds_a_tail_published_before_its_message),
        cmocka_unit_test(test_finds_a_commit_before_its_data),
        cmocka_unit_test(test_finds_a_missing_announcement),
        cmocka_unit_test(test_finds_a_missing_scan),
        cmocka_unit_test(test_finds_an_effect_without_key),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
