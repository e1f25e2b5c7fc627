/* shm/ring.c - publish, take, sleep.
 *
 * Orders:  R1 ring_publish stores tail  ->  A1 ring_take loads tail: the message is whole
 *          R2 ring_take stores head     ->  A2 ring_publish loads head: the slot was copied out
 *          F1/F2 full fences: "published, then saw nobody sleeping" and "went to sleep, then saw
 *          nothing published" cannot both happen. */
#include "shm/ring.h"

#include "shm/atomic.h"
#include "shm/clock.h"
#include "shm/error.h"
#include "shm/must.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifndef SYS_futex_waitv
#define SYS_futex_waitv 449
struct futex_waitv {
    uint64_t val;
    uint64_t uaddr;
    uint32_t flags;
    uint32_t __reserved;
};
#define FUTEX_32 2
#endif

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the futex is the low half of tail, at its address");

#define POLL_WITHOUT_WAITV_NS 200000ull /* kernels before 5.16 cannot sleep on several words: look this often */

static void wake(struct ring *r)
{
    shm_fence_full(); /* F1 */
    if (!shm_load_relaxed(&r->consumer->sleeping)) return;
    if (r->event_fd >= 0) {
        const uint64_t one = 1;
        ssize_t ignored = write(r->event_fd, &one, sizeof one); /* full counter: the reader is awake anyway */
        (void)ignored;
        return;
    }
    syscall(SYS_futex, &r->producer->tail, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

int ring_publish(struct ring *r, const struct ring_msg *msg)
{
    const uint64_t tail = shm_load_relaxed(&r->producer->tail); /* we are its only writer */
    const uint64_t head = shm_load_acquire(&r->consumer->head); /* A2 <- R2 */

    if (tail - head >= RING_SLOTS) { /* also when a corrupt head lies beyond tail: nothing is overwritten unread */
        shm_store_release(&r->producer->lost, shm_load_relaxed(&r->producer->lost) + 1);
        wake(r);
        return -E_FULL;
    }
    r->producer->slots[tail & (RING_SLOTS - 1)] = *msg;
    shm_store_release(&r->producer->tail, tail + 1); /* R1 */
    wake(r);
    return 0;
}

int ring_take(struct ring *r, struct ring_msg *out)
{
    const uint64_t head = shm_load_relaxed(&r->consumer->head); /* we are its only writer */
    const uint64_t tail = shm_load_acquire(&r->producer->tail); /* A1 <- R1 */

    if (tail == head) return 0;
    *out = r->producer->slots[head & (RING_SLOTS - 1)]; /* a private copy: a peer cannot change it after the check */
    shm_store_release(&r->consumer->head, head + 1);    /* R2 */
    return 1;
}

bool ring_overran(struct ring *r)
{
    const uint64_t lost = shm_load_acquire(&r->producer->lost);

    if (lost == r->lost_seen) return false;
    r->lost_seen = lost;
    return true;
}

void ring_skip(struct ring *r)
{
    r->lost_seen = shm_load_acquire(&r->producer->lost);
    shm_store_release(&r->consumer->sleeping, 0);
    shm_store_release(&r->consumer->head, shm_load_acquire(&r->producer->tail));
}

uint64_t ring_depth(const struct ring *r)
{
    const uint64_t head = shm_load_acquire(&r->consumer->head);

    return shm_load_acquire(&r->producer->tail) - head;
}

static bool any_waiting(struct ring *const *rings, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        if (shm_load_acquire(&rings[i]->producer->tail) != shm_load_relaxed(&rings[i]->consumer->head)) return true;
        if (shm_load_acquire(&rings[i]->producer->lost) != rings[i]->lost_seen) return true;
    }
    return false;
}

bool ring_arm(struct ring *const *rings, unsigned count)
{
    for (unsigned i = 0; i < count; i++) shm_store_relaxed(&rings[i]->consumer->sleeping, 1);
    shm_fence_full(); /* F2 */
    return any_waiting(rings, count);
}

void ring_disarm(struct ring *const *rings, unsigned count)
{
    for (unsigned i = 0; i < count; i++) shm_store_relaxed(&rings[i]->consumer->sleeping, 0);
}

/* Sleeps while every tail still reads as given. A dropped message moves no tail: its wake-up is lost if it comes between
 * ring_arm() and the system call (the ring was full just before, so we were not idle); the caller's timeout ends that. */
static void sleep_on(struct ring *const *rings, unsigned count, const uint32_t *tails, uint64_t timeout_ns)
{
    static bool without_waitv;
    struct futex_waitv wait[RING_COUNT];
    const uint64_t until_ns = clock_ns() + timeout_ns;
    struct timespec until = {.tv_sec = (time_t)(until_ns / 1000000000u), .tv_nsec = (long)(until_ns % 1000000000u)};

    memset(wait, 0, sizeof wait);
    for (unsigned i = 0; i < count; i++) {
        wait[i].val = tails[i];
        wait[i].uaddr = (uintptr_t)&rings[i]->producer->tail;
        wait[i].flags = FUTEX_32;
    }
    if (!without_waitv) {
        if (syscall(SYS_futex_waitv, wait, count, 0, &until, CLOCK_MONOTONIC) >= 0 || (errno != ENOSYS && errno != EPERM)) return; /* EPERM: an old sandbox that does not know the call */
        without_waitv = true;
    }
    const uint64_t slice_ns = timeout_ns < POLL_WITHOUT_WAITV_NS ? timeout_ns : POLL_WITHOUT_WAITV_NS;
    const struct timespec slice = {.tv_sec = 0, .tv_nsec = (long)slice_ns};
    syscall(SYS_futex, &rings[0]->producer->tail, FUTEX_WAIT, tails[0], &slice, NULL, 0);
}

bool ring_wait(struct ring *const *rings, unsigned count, uint64_t timeout_ns, uint64_t spin_ns)
{
    uint32_t tails[RING_COUNT];

    must(count >= 1 && count <= RING_COUNT);
    if (any_waiting(rings, count)) return true;
    if (spin_ns > 0) {
        const uint64_t until_ns = clock_ns() + spin_ns;
        do {
            for (int i = 0; i < 64; i++) shm_pause();
            if (any_waiting(rings, count)) return true;
        } while (clock_ns() < until_ns);
    }
    for (unsigned i = 0; i < count; i++) tails[i] = (uint32_t)shm_load_acquire(&rings[i]->producer->tail);
    if (!ring_arm(rings, count)) sleep_on(rings, count, tails, timeout_ns);
    ring_disarm(rings, count);
    return any_waiting(rings, count);
}

#define DUE_EARLY_NS 200000ull /* a timed sleep may end so late: timer slack, a core that wakes up */
#define DUE_LATE_NS 200000ull

bool ring_wait_due(struct ring *const *rings, unsigned count, uint64_t due_ns, uint64_t until_ns)
{
    const uint64_t now = clock_ns(), early = due_ns > DUE_EARLY_NS ? due_ns - DUE_EARLY_NS : 0, late = due_ns + DUE_LATE_NS < until_ns ? due_ns + DUE_LATE_NS : until_ns;

    if (now < early && early < until_ns && ring_wait(rings, count, early - now, 0)) return true;
    const uint64_t awake = clock_ns(), spin_ns = late > awake ? late - awake : 0;
    return ring_wait(rings, count, until_ns > awake + spin_ns ? until_ns - awake - spin_ns : 0, spin_ns);
}
