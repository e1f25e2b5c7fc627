/* schemas/turns.c - asking and giving turns through words in shared memory (contract in turns.h). */
#include "schemas/turns.h"

#include "schemas/counters.h"
#include "shm/atomic.h"
#include "shm/clock.h"

#include <string.h>
#include <sys/prctl.h>
#include <time.h>

#define IDLE_SLICE_NS 10e6            /* when nobody waits: what a first step may wait all the same */
#define SLICE_LEAST_NS 0.5e6          /* shorter ones cost more in handing over than they give */
#define STEP_UNKNOWN_NS 4e6
#define ASK_LIMIT_NS 100000000ull     /* verify may be dead; a step takes milliseconds */
#define GIVE_LIMIT_NS 50000000ull     /* prefill may be dead; a slice takes milliseconds */
#define SLICE_MOST_NS (GIVE_LIMIT_NS / 2) /* a slice that verify does not wait for runs beside its steps and makes them longer, and the next slice with them */
#define STEP_FADE 0.9
#define PAUSE_NS 5000                 /* between prefill's looks */
#define TIMER_SLACK_NS 1000ul
#define BEAT_LOOKS 4096u

static uint64_t *own(const struct turns *t, unsigned counter)
{
    return &t->stage->status->counters[counter];
}

static void open_side(struct turns *t, struct stage *s, int other)
{
    memset(t, 0, sizeof *t);
    t->stage = s;
    if (s->segment[other]) t->peer = ((const struct stage_status *)(s->segment[other] + SEGMENT_STATUS_OFFSET))->counters;
}

/* ---- prefill ----------------------------------------------------------------------------- */

void turns_open_prefill(struct turns *t, struct stage *s, uint32_t share_percent)
{
    open_side(t, s, ROLE_VERIFY);
    t->share = (share_percent < 1 ? 1 : share_percent > 95 ? 95 : share_percent) / 100.0;
    shm_store_release(own(t, PREFILL_TURN_ENDED), *own(t, PREFILL_TURN_ASKED)); /* a predecessor's slice is over: it is dead */
    prctl(PR_SET_TIMERSLACK, TIMER_SLACK_NS); /* the GPU idles while we oversleep */
}

bool turns_are_taken(const struct turns *t)
{
    return t->peer && shm_load_acquire(&t->peer[VERIFY_STEPPING]);
}

static void await_turn(struct turns *t, uint64_t number)
{
    const struct timespec pause = {0, PAUSE_NS};
    const uint64_t until = clock_ns() + ASK_LIMIT_NS;
    uint64_t given = shm_load_acquire(&t->peer[VERIFY_TURN_GIVEN]);

    if (t->deaf && given == t->given_seen) return;
    t->deaf = false;
    for (; given < number && turns_are_taken(t); given = shm_load_acquire(&t->peer[VERIFY_TURN_GIVEN])) { /* A0 <- G0 */
        if (clock_ns() > until) { /* dead, or a verify that knows nothing of turns */
            t->deaf = true;
            t->given_seen = given;
            return;
        }
        stage_beat(t->stage);
        nanosleep(&pause, NULL);
    }
}

/* Who all begin at once wait for each other: the sooner they run together, the better for everybody, and a step of few rows takes nearly as long as one of many. So
 * beginners count by their square: one alone gets what it is among those who run, the last quarter of a crowd no more than the share. */
static double share_of(const struct turns *t, uint32_t sequences)
{
    const double running = (double)shm_load_relaxed(&t->peer[VERIFY_RUNNING]), begin = (double)sequences * sequences, crowd = begin / (begin + running);

    return crowd <= t->share ? t->share : t->share > TURNS_SHARE_CROWD ? t->share : crowd < TURNS_SHARE_CROWD ? crowd : TURNS_SHARE_CROWD;
}

uint64_t turns_slice_ns(const struct turns *t, uint32_t sequences)
{
    if (!turns_are_taken(t)) return (uint64_t)IDLE_SLICE_NS;
    const double step_ns = (double)shm_load_relaxed(&t->peer[VERIFY_STEP_NS]), share = share_of(t, sequences);
    const double slice_ns = (step_ns > 0 ? step_ns : STEP_UNKNOWN_NS) * share / (1 - share);

    return (uint64_t)(slice_ns < SLICE_LEAST_NS ? SLICE_LEAST_NS : slice_ns > SLICE_MOST_NS ? SLICE_MOST_NS : slice_ns);
}

uint64_t turns_ask(struct turns *t, uint32_t sequences)
{
    const uint64_t number = *own(t, PREFILL_TURN_ASKED) + 1;

    shm_store_release(own(t, PREFILL_TURN_ASKED), number); /* said even when nobody runs: whoever begins now waits for the slice's end */
    const uint64_t slice_ns = turns_slice_ns(t, sequences);
    if (turns_are_taken(t)) await_turn(t, number);
    t->begin_ns = clock_ns();
    return slice_ns;
}

uint64_t turns_end(struct turns *t)
{
    const uint64_t ns = clock_ns() - t->begin_ns;

    shm_store_release(own(t, PREFILL_TURN_ENDED), *own(t, PREFILL_TURN_ASKED)); /* E0 -> V0 in turns_give */
    return ns;
}

/* ---- verify ------------------------------------------------------------------------------- */

void turns_open_verify(struct turns *t, struct stage *s)
{
    open_side(t, s, ROLE_PREFILL);
}

bool turns_asked(const struct turns *t)
{
    if (!t->peer) return false;
    const uint64_t asked = shm_load_acquire(&t->peer[PREFILL_TURN_ASKED]);
    return asked > *own(t, VERIFY_TURN_GIVEN) && asked > shm_load_acquire(&t->peer[PREFILL_TURN_ENDED]);
}

bool turns_are_waited_for(const struct turns *t)
{
    return *own(t, VERIFY_STEPPING) != 0;
}

bool turns_give(struct turns *t)
{
    const uint64_t number = shm_load_acquire(&t->peer[PREFILL_TURN_ASKED]), begin = clock_ns();
    bool ended = true;

    shm_store_release(own(t, VERIFY_TURN_GIVEN), number); /* G0 -> A0 in await_turn */
    for (uint32_t looks = 1; shm_load_acquire(&t->peer[PREFILL_TURN_ENDED]) < number; looks++) { /* V0 <- E0 */
        shm_pause();
        if (looks % BEAT_LOOKS) continue;
        stage_beat(t->stage);
        ended = clock_ns() - begin <= GIVE_LIMIT_NS;
        if (!ended) break;
    }
    stage_count(t->stage, VERIFY_TURN_NS, clock_ns() - begin);
    return ended;
}

void turns_note_step(struct turns *t, uint64_t ns)
{
    t->step_ns = t->step_ns > 0 ? t->step_ns * STEP_FADE + (double)ns * (1 - STEP_FADE) : (double)ns;
    shm_store_relaxed(own(t, VERIFY_STEP_NS), (uint64_t)t->step_ns);
    turns_note_running(t);
}

void turns_note_running(struct turns *t)
{
    if (!*own(t, VERIFY_STEPPING)) shm_store_release(own(t, VERIFY_STEPPING), 1);
}

void turns_note_idle(struct turns *t)
{
    if (*own(t, VERIFY_STEPPING)) shm_store_release(own(t, VERIFY_STEPPING), 0);
}
