/* stages/draft/draft.h - what the parts of the draft stage share: the sequences it follows, and what its guesses turned out to be worth. */
#ifndef SLUICE_STAGES_DRAFT_H
#define SLUICE_STAGES_DRAFT_H

#include "kernels/cuda/cuda_handover.h"
#include "model/engine_draft.h"
#include "schemas/counters.h"
#include "schemas/table.h"
#include "shm/stage.h"

#define CHANCE_CLASSES CUDA_HANDOVER_CLASSES

enum guess_source { GUESS_LOOKUP = 0, GUESS_NEURAL = 1, GUESS_SOURCES = 2 };

/* Guesses of one kind in one kind of text. */
struct chance_table {
    float rate[CHANCE_CLASSES];       /* how often a guess of this class was right, its predecessors being right */
    float seen[CHANCE_CLASSES];       /* how many stand behind that, cut off where older ones are forgotten */
    float all;                        /* over all classes */
};

/* Kept apart: greedy and sampled text, answers and thinking, lookup and neural guesses. */
struct chances { struct chance_table of[2][2][GUESS_SOURCES]; };

struct guess {                        /* for one place; also what was not worth sending: it teaches as well */
    uint32_t base;                    /* committed output tokens that it follows */
    uint32_t count;                   /* 0: none */
    uint32_t token[RING_TOKENS_MAX];
    uint8_t class[RING_TOKENS_MAX];   /* of each, < CHANCE_CLASSES */
};

struct text { /* prompt and output as one sequence */
    const uint32_t *prompt, *output;
    uint32_t prompt_count, count;
};

struct followed {                     /* a sequence as the drafter knows it: all of it can be had again from the table */
    uint32_t generation;              /* 0: nobody */
    bool has_pages;                   /* the neural drafter knows its pages */
    bool can_sample;                  /* its parameters are in order */
    uint32_t counted;                 /* text tokens in `counts` */
    struct sampling_params sampling;  /* private copies: a slot may change hands while we compute */
    struct penalty_counts counts;     /* entry NULL: no penalties */
    uint32_t *full_pages, *sliding_pages; /* [full_pages_max], [sliding_pages_max]; owned */
    struct guess guess[GUESS_SOURCES]; /* not yet judged */
};

/* ---- lookup.c: n-gram drafting ---- */

/* What followed the latest earlier place where the last tokens stood before, at most `most` tokens; a text in circles goes round again. Returns
 * how many tokens matched there, 0: there is no such place. */
uint32_t lookup_guess(const struct text *t, uint32_t most, struct guess *out);

/* ---- chances.c ---- */

void chances_init(struct chances *c);
struct chance_table *chances_of(struct chances *c, const struct sampling_params *p, bool thinking, enum guess_source source);
/* Compares a guess with what came out of it up to the text's end, and forgets it. */
void chances_judge(struct chance_table *c, struct guess *g, const struct text *t);
/* Class of a neural guess of this confidence. */
uint8_t chance_class(float confidence);

/* Only measurements define it (tests/faults/forced.c): replaces what the neural drafter proposed, which is advice, by what shall be proposed behind t and `later` tokens more. */
void draft_force_hook(const struct text *t, uint32_t later, struct engine_draft_answer *answer) __attribute__((weak));

#endif
