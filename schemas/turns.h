/* schemas/turns.h - one GPU, two processes: prefill's work goes between verify's steps, a few layers at a time.
 *
 * Two kernels that want the whole GPU slow each other down out of all proportion: a step of 5 ms took 92 ms while a prompt was filled beside it. So
 * prefill cuts its work into slices and asks for a turn before each; verify gives one between two of its steps and waits until it has ended.
 * A slice lasts as long as the share of prefill allows; while no sequence runs, prefill asks nobody and its slices are long.
 *
 * Words (counters of schemas/counters.h, one writer each):
 *   prefill  PREFILL_TURN_ASKED n: slice n is ready; PREFILL_TURN_ENDED n: it is over
 *   verify   VERIFY_TURN_GIVEN n: slice n may run; VERIFY_STEPPING 1: sequences run; VERIFY_STEP_NS: about how long a step takes
 *
 * Courtesy, not safety: results never depend on it, and each side waits with a limit, so that the death of the other one costs
 * that limit once. Restarted, each side goes on at its own words. */
#ifndef SLUICE_SCHEMAS_TURNS_H
#define SLUICE_SCHEMAS_TURNS_H

#include "shm/stage.h"

#define TURNS_SHARE_CROWD 0.9

struct turns {                        /* of either side */
    struct stage *stage;              /* borrowed */
    const uint64_t *peer;             /* counters of the other side; NULL: it is not there, no turns are taken */
    /* prefill */
    double share;                     /* of the GPU's time, while sequences run: 0.01 .. 0.95 */
    uint64_t begin_ns;
    bool deaf;                        /* verify let us wait in vain; asked again once VERIFY_TURN_GIVEN has moved from given_seen */
    uint64_t given_seen;
    /* verify */
    double step_ns;
};

/* ---- prefill ---- */

void turns_open_prefill(struct turns *t, struct stage *s, uint32_t share_percent);
/* How long a slice may take as things are, in ns. So many sequences wait for their first token: when their square is more than run, they get more than
 * their share, up to TURNS_SHARE_CROWD. */
uint64_t turns_slice_ns(const struct turns *t, uint32_t sequences);
/* Waits for the turn, if sequences run; returns how long the slice may take now. */
uint64_t turns_ask(struct turns *t, uint32_t sequences);
/* The slice is over. Returns how long it took, in ns. */
uint64_t turns_end(struct turns *t);
/* Do sequences run? */
bool turns_are_taken(const struct turns *t);

/* ---- verify ---- */

void turns_open_verify(struct turns *t, struct stage *s);
/* Does prefill wait for a turn, or is it in the middle of a slice? */
bool turns_asked(const struct turns *t);
/* Does it wait? Not with the slice that it began while no sequence ran. */
bool turns_are_waited_for(const struct turns *t);
/* Gives the turn and waits until it has ended. False: it did not, and goes on beside the next step, whose time says nothing then. */
bool turns_give(struct turns *t);
/* A step took so long; or none runs. */
void turns_note_step(struct turns *t, uint64_t ns);
void turns_note_idle(struct turns *t);
/* Sequences run, but their step was not one to measure. */
void turns_note_running(struct turns *t);

#endif
