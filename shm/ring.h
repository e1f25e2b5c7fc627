/* shm/ring.h - one ring: one producer process, one consumer process.
 *
 * The producer's words (tail, messages) lie in its own segment, the consumer's
 * (head, sleeping) in its own; each side maps the other's read-only.
 *
 * When a side dies: nothing needs repair. A message not yet published is
 * invisible. A restarted consumer calls ring_skip() and scans the sequence
 * table; a restarted producer goes on at the tail it finds and announces again
 * whatever is unfinished. A message is therefore seen zero, one or more times,
 * and must mean "look there", never "do this once".
 * When the ring is full the message is dropped and counted (`lost`); the
 * consumer sees the count move and scans. A producer never blocks. */
#ifndef SLUICE_SHM_RING_H
#define SLUICE_SHM_RING_H

#include "shm/pipeline.h"

#include <stdbool.h>

struct ring {
    struct ring_producer *producer; /* borrowed from the mapped segments, until the process ends */
    struct ring_consumer *consumer;
    uint64_t lost_seen; /* consumer: `lost` at the last scan */
    int event_fd;       /* >= 0: the consumer sleeps in epoll on this eventfd, not on the futex */
};

/* Producer. Returns 0, or -E_FULL when the message was dropped (and counted). Wakes a sleeping consumer. */
int ring_publish(struct ring *r, const struct ring_msg *msg);

/* Consumer. 1 and a private copy in *out, or 0 when empty. */
int ring_take(struct ring *r, struct ring_msg *out);

/* Consumer. True once after messages were dropped: scan the table. */
bool ring_overran(struct ring *r);

/* Consumer, at start: forget what is waiting; the caller scans the table instead. */
void ring_skip(struct ring *r);

/* Either side: messages waiting now. */
uint64_t ring_depth(const struct ring *r);

/* Consumer. Sleeps until one of the rings has a message, `timeout_ns` passes, or a signal arrives.
 * Spins `spin_ns` first. Returns true when a message waits; false may come early (a wake-up for a message that
 * was already taken). count <= RING_COUNT. */
bool ring_wait(struct ring *const *rings, unsigned count, uint64_t timeout_ns, uint64_t spin_ns);

/* Consumer. The same until `until_ns` (clock_ns()), for a message that is expected at about due_ns: asleep before, awake and spinning around it, so that no wake-up stands in its
 * way, asleep again behind. */
bool ring_wait_due(struct ring *const *rings, unsigned count, uint64_t due_ns, uint64_t until_ns);

/* Consumer in an event loop: declare that we are about to sleep in epoll. True when a message came
 * meanwhile: do not sleep. Undo with ring_disarm() after waking. */
bool ring_arm(struct ring *const *rings, unsigned count);
void ring_disarm(struct ring *const *rings, unsigned count);

#endif
