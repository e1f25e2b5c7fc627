/* kernels/pool.c - see pool.h.
 *
 * `ticket` hands out the tasks: task count and next task in one word, so that a thread which comes late sees that nothing
 * is left, and never holds an old loop's task against a new loop's count. The caller waits for tasks, not for threads: one
 * that sleeps through a loop delays nobody. Who holds a task keeps the loop alive (`done` is short of it), hence fn and context are stable while they are used.
 * P1 makes fn and context visible to workers, P2 makes the tasks' results visible to the caller. */
#include "kernels/pool.h"
#include "shm/error.h"
#include "shm/must.h"
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#define POOL_SPIN_CPUS 8              /* fewer CPUs than this: sleep at once */
#define POOL_SPIN_TURNS 2000          /* about 10 us, a few futex calls' worth */
#define POOL_TASKS_BITS 24            /* of the two counts in a ticket; late threads overshoot by at most one each */
#define POOL_TASKS_MAX (1u << (POOL_TASKS_BITS - 1))

struct pool {
    uint32_t threads;                 /* the caller included */
    uint32_t spin_turns;
    int pin;
    pool_task_fn *fn;                 /* the loop: written by the caller between loops */
    void *context;
    uint32_t stop;
    uint64_t ticket __attribute__((aligned(128)));  /* task count << 24 | next task */
    uint32_t round __attribute__((aligned(128)));   /* futex; +1 for each loop */
    uint32_t done __attribute__((aligned(128)));    /* futex; tasks finished in this loop */
    uint32_t waiting;                 /* the caller may be asleep on done */
    pthread_t thread[POOL_THREADS_MAX];
};

struct pool_start { struct pool *pool; uint32_t index; };

static void pool_wait(uint32_t *word, uint32_t value) { syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0); }
static void pool_wake(uint32_t *word, int count) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, NULL, NULL, 0); }

static inline void pool_pause(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/* Runs tasks until none is left. */
static void pool_take(struct pool *p, uint32_t thread)
{
    const uint64_t mask = (1u << POOL_TASKS_BITS) - 1;

    for (;;) {
        const uint64_t ticket = __atomic_fetch_add(&p->ticket, 1, __ATOMIC_ACQUIRE);   /* P1 <- pool_run */
        const uint32_t task = (uint32_t)(ticket & mask), count = (uint32_t)(ticket >> POOL_TASKS_BITS & mask);

        if (task >= count) return;
        p->fn(p->context, task, thread);
        if (__atomic_add_fetch(&p->done, 1, __ATOMIC_SEQ_CST) == count                 /* P2 -> pool_run */
            && thread != 0 && __atomic_load_n(&p->waiting, __ATOMIC_SEQ_CST)) pool_wake(&p->done, 1);
    }
}

/* Returns when *word differs from value. */
static void pool_until_changed(const struct pool *p, uint32_t *word, uint32_t value)
{
    for (uint32_t i = 0; i < p->spin_turns; i++) {
        if (__atomic_load_n(word, __ATOMIC_ACQUIRE) != value) return;
        pool_pause();
    }
    while (__atomic_load_n(word, __ATOMIC_ACQUIRE) == value) pool_wait(word, value);
}

/* The n-th CPU of the set this process may use. */
static void pool_pin(uint32_t n)
{
    cpu_set_t allowed, one;

    if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0 || CPU_COUNT(&allowed) == 0) return;
    n %= (uint32_t)CPU_COUNT(&allowed);
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &allowed) || n-- != 0) continue;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        pthread_setaffinity_np(pthread_self(), sizeof(one), &one);
        return;
    }
}

static void *pool_worker(void *argument)
{
    struct pool_start *start = argument;
    struct pool *p = start->pool;
    const uint32_t index = start->index;

    free(start);
    if (p->pin) pool_pin(index);
    for (;;) {
        const uint32_t round = __atomic_load_n(&p->round, __ATOMIC_ACQUIRE);

        if (__atomic_load_n(&p->stop, __ATOMIC_RELAXED)) return NULL;
        pool_take(p, index);
        pool_until_changed(p, &p->round, round);
    }
}

static uint32_t pool_cpus(void)
{
    cpu_set_t allowed;

    if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return 1;
    return CPU_COUNT(&allowed) > 0 ? (uint32_t)CPU_COUNT(&allowed) : 1;
}

int pool_open(struct pool **pool, uint32_t threads, int pin)
{
    struct pool *p;
    const uint32_t cpus = pool_cpus();

    if (threads == 0) threads = cpus < POOL_THREADS_MAX ? cpus : POOL_THREADS_MAX;
    if (threads > POOL_THREADS_MAX) return -E_RANGE;
    if (posix_memalign((void **)&p, 128, sizeof(*p)) != 0) return -E_NOMEM;
    *p = (struct pool){ .threads = 1, .pin = pin, .spin_turns = cpus >= POOL_SPIN_CPUS && threads <= cpus ? POOL_SPIN_TURNS : 0 };
    if (pin) pool_pin(0);
    for (uint32_t i = 1; i < threads; i++) {
        struct pool_start *start = malloc(sizeof(*start));

        if (!start) {
            pool_close(p);
            return -E_NOMEM;
        }
        *start = (struct pool_start){ p, i };
        if (pthread_create(&p->thread[i], NULL, pool_worker, start) != 0) {
            free(start);
            pool_close(p);
            return -E_IO;
        }
        p->threads = i + 1;
    }
    *pool = p;
    return 0;
}

void pool_close(struct pool *p)
{
    if (!p) return;
    __atomic_store_n(&p->stop, 1, __ATOMIC_RELAXED);        /* visible with round */
    __atomic_add_fetch(&p->round, 1, __ATOMIC_RELEASE);
    pool_wake(&p->round, POOL_THREADS_MAX);
    for (uint32_t i = 1; i < p->threads; i++) pthread_join(p->thread[i], NULL);
    free(p);
}

uint32_t pool_threads(const struct pool *p) { return p->threads; }

void pool_run(struct pool *p, pool_task_fn *fn, void *context, uint32_t task_count)
{
    uint32_t done;

    if (p->threads == 1 || task_count <= 1) {
        for (uint32_t i = 0; i < task_count; i++) fn(context, i, 0);
        return;
    }
    must(task_count <= POOL_TASKS_MAX);
    p->fn = fn;
    p->context = context;
    __atomic_store_n(&p->done, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&p->ticket, (uint64_t)task_count << POOL_TASKS_BITS, __ATOMIC_RELEASE);   /* P1 -> pool_take */
    __atomic_add_fetch(&p->round, 1, __ATOMIC_SEQ_CST);     /* after the ticket: who wakes finds tasks */
    pool_wake(&p->round, (int)(task_count < p->threads ? task_count : p->threads) - 1);
    pool_take(p, 0);
    __atomic_store_n(&p->waiting, 1, __ATOMIC_SEQ_CST);
    while ((done = __atomic_load_n(&p->done, __ATOMIC_SEQ_CST)) != task_count) pool_until_changed(p, &p->done, done);   /* P2 <- pool_take */
    __atomic_store_n(&p->waiting, 0, __ATOMIC_RELAXED);
}
