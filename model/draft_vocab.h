/* model/draft_vocab.h - the tokens that a drafter may propose: a list in its folder, most frequent first (frequency-ranked drafting: arXiv 2502.14856).
 *
 * What a drafter proposes is advice, and almost all of a text is made of few tokens: a drafter whose output matrix has their rows only reads a fraction of it, and loses those drafts
 * that would have been another token. draft_vocab.json: an array of token numbers, no one twice; model/train/draft_vocab.py writes it. */
#ifndef SLUICE_MODEL_DRAFT_VOCAB_H
#define SLUICE_MODEL_DRAFT_VOCAB_H

#include "model/files.h"

#define DRAFT_VOCAB_FILE "draft_vocab.json"
#define DRAFT_VOCAB_STEP 64u          /* rows that kernels take together: counts are multiples of it */

struct draft_vocab {
    uint32_t count;                   /* 0: every token */
    uint32_t *token;                  /* [count], as listed; owned until draft_vocab_close */
    uint32_t left_out_count;
    uint32_t *left_out;               /* ascending: all others, and those that the target never emits; owned */
};

/* The first `wanted` tokens of the drafter's list, rounded down to a whole number of steps; wanted 0: every token, no list is needed. suppress: tokens that the target never emits.
 * 0, or with the reason -E_NOT_FOUND, -E_FORMAT, -E_RANGE (wanted is less than a step or more than the list has), -E_NOMEM. */
int draft_vocab_open(struct draft_vocab *v, const struct model_files *files, uint32_t wanted, uint32_t vocab, const uint32_t *suppress, uint32_t suppress_count, struct model_error *err);
void draft_vocab_close(struct draft_vocab *v);

#endif
