/* model/sampler_counts.c - which tokens a sequence has seen, for the penalties: an append-only list with a hash over it.
 *
 * Entries stay in order of first appearance; the hash only finds them. Nothing is ever removed but by a reset. */
#include "model/sampler.h"
#include "shm/error.h"
#include <stdlib.h>
#include <string.h>

#define COUNTS_TOKENS_MAX (1u << 24)

int penalty_counts_open(struct penalty_counts *counts, uint32_t max_tokens)
{
    uint32_t slots = 16;

    if (max_tokens == 0 || max_tokens > COUNTS_TOKENS_MAX) return -E_RANGE;
    while (slots < 2 * max_tokens) slots *= 2;
    *counts = (struct penalty_counts){ .capacity = max_tokens, .slot_count = slots };
    counts->entry = malloc(max_tokens * sizeof(*counts->entry));
    counts->slot = calloc(slots, sizeof(*counts->slot));
    if (counts->entry && counts->slot) return 0;
    penalty_counts_close(counts);
    return -E_NOMEM;
}

void penalty_counts_close(struct penalty_counts *counts)
{
    free(counts->entry);
    free(counts->slot);
    *counts = (struct penalty_counts){ 0 };
}

void penalty_counts_reset(struct penalty_counts *counts)
{
    counts->count = 0;
    memset(counts->slot, 0, counts->slot_count * sizeof(*counts->slot));
}

int penalty_counts_add(struct penalty_counts *counts, uint32_t token, int generated)
{
    uint32_t at = token * 0x9e3779b1u & (counts->slot_count - 1);

    while (counts->slot[at] != 0 && counts->entry[counts->slot[at] - 1].token != token) at = (at + 1) & (counts->slot_count - 1);
    if (counts->slot[at] == 0) {
        if (counts->count == counts->capacity) return -E_FULL;
        counts->entry[counts->count++] = (struct penalty_entry){ token, 0 };
        counts->slot[at] = counts->count;
    }
    counts->entry[counts->slot[at] - 1].generated += generated != 0;
    return 0;
}
