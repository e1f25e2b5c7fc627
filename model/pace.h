/* model/pace.h - what a row of a step costs, what a drafter's guesses are worth, and so how many drafts a step should score.
 *
 * Kept by verify, from its own step times and from comparing proposals with the tokens that came out: also those that were never
 * scored, so that a drafter that does not pay is watched without a row being spent on it. A step's time is taken as
 * a + b * rows, fitted to the recent steps (older ones fade). While nothing is known about b (all steps had the same
 * rows) it is taken to be small, so that a few drafted steps find out.
 *
 * Decides speed only: no token depends on it. Pure arithmetic, no clock, no failure. */
#ifndef SLUICE_MODEL_PACE_H
#define SLUICE_MODEL_PACE_H

#include <stdbool.h>
#include <stdint.h>

#define PACE_ROWS_MAX 128u

/* Reasoning and answer are drafted with different luck: what was learned of one says little about the other. */
enum pace_phase { PACE_ANSWER = 0, PACE_THINKING = 1, PACE_PHASES = 2 };

struct pace {
    /* recent steps, weights fading: sums of w, w * rows, ... times in microseconds */
    double weight, rows, us, rows_rows, rows_us;
    double base_us, row_us;           /* a and b */
    uint32_t rows_seen;               /* most rows of a step so far: the first step of so many meets cold memory and is no price */
    double wait_us;                   /* what waiting for proposals costs a step, besides the drafter's own work */
    double round_us;                  /* what a round takes the drafter before its first draft */
    double spent_us;                  /* what asking and waiting costs the step in hand; 0: nobody is asked */
    double guess_us;                  /* what one more draft for all who ask takes the drafter; 0: nothing, or not known */
    struct { double accept, found; } of[PACE_PHASES]; /* over all sequences: where a new one begins */
};

struct pace_sequence {                /* of one sequence */
    float accept;                     /* how often a draft is right whose predecessors were right */
    float found;                      /* how often a question brings a proposal with tokens */
    uint32_t phase;                   /* enum pace_phase */
};

void pace_init(struct pace *p);
void pace_begin(const struct pace *p, struct pace_sequence *q, enum pace_phase phase);
/* The sequence is in this phase now; a change forgets what was learned of it in the other one. */
void pace_turn(const struct pace *p, struct pace_sequence *q, enum pace_phase phase);

/* A step that computed `rows` rows took so long. */
void pace_note_step(struct pace *p, uint32_t rows, uint64_t ns);
/* Waiting for proposals took so long in this step; 0 in a step that did not wait. */
void pace_note_wait(struct pace *p, uint64_t ns);
/* A drafter answered, with tokens or without. */
void pace_note_answer(struct pace *p, struct pace_sequence *q, bool has_tokens);
/* Of a proposal `right` tokens were what came out; then one was wrong (missed) or nothing more is known. */
void pace_note_judged(struct pace *p, struct pace_sequence *q, uint32_t right, bool missed);

/* Microseconds of a step of so many rows. */
double pace_step_us(const struct pace *p, uint32_t rows);

/* What a round for so many questions takes a drafter beside its drafts. It speaks of its last round, which may have been one question's: what answers to as many took (seen_us; 0: not
 * known) is believed where it is more, within reason: an answer that waited for the drafter to start, or for a long prompt, would keep drafting off for good. */
double pace_round_us(double said_us, double drafts_us, double seen_us, uint32_t questions);
/* What answers to so many questions take, behind one that took took_us, of a drafter that says own_us of its last round and drafts: less is believed sooner than more. known_us: before; 0: nothing. */
double pace_seen_us(double known_us, double took_us, double own_us, uint32_t questions);

/* The rows that the device computes when given so many. */
typedef uint32_t pace_computed(const void *context, uint32_t rows);

/* A running sequence, about which the drafter may be asked. */
struct pace_asker {
    const struct pace_sequence *pace; /* borrowed */
    uint32_t most;                    /* out: drafts to ask for; 0: do not ask */
    float least;                      /* out: the least chance that one should have to be drafted, ... */
    float worth;                      /* out: ... and to be scored when it is there: a drafter that makes a whole round's drafts at once has spent its time on them already */
};

/* Decides before a step whom to ask and for how much, so that most tokens a second come out, when all `count` of them run and a step has at most rows_most rows; the first have
 * the rows that are left when not all can be drafted for. Returns how many are asked; 0: drafts do not pay now. */
uint32_t pace_ask(struct pace *p, struct pace_asker *asker, uint32_t count, uint32_t rows_most, uint32_t drafts_max, pace_computed *computed, const void *context);

/* One sequence that takes part in a step. */
struct pace_member {
    float accept;
    uint32_t available;               /* drafts that may be scored; 0: none */
    uint32_t taken;                   /* out: the first so many of them should be */
};

/* Chooses the drafts that give most tokens a second, asking and waiting included; p NULL: all that fit. rows_most: of the step, >= members.
 * Returns the rows of the step: one per member and the drafts taken. */
uint32_t pace_share(const struct pace *p, struct pace_member *member, uint32_t members, uint32_t rows_most, pace_computed *computed, const void *context);

#endif
