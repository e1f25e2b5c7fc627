/* tests/faults/forced.c - forces how many drafts are accepted, to measure speed with weights that know nothing: linked into the draft stage it makes
 * build/faulty/draft_forced, put into a running server by `sluice swap draft`. Never part of a product.
 *
 * Does     notes the text of a request. When an identical one runs again (same prompt, parameters and seed: the same tokens, whatever is drafted), every
 *          draft is replaced, AFTER the drafter has computed it, by the token that is known to follow, or with probability 1 - p by another one.
 *          Drafter and target compute what they always compute; only which proposals are right is forced.
 * Options  SLUICE_FORCED_ACCEPTANCE: p, of each draft given that those before it are right (0.755 with 6 drafts: 3.5 tokens a round)
            SLUICE_FORCED_TEXTS: a file of texts that are known from the start, 32-bit words: for each its count of prompt tokens, its count of tokens, the tokens
 * Remembers KNOWN_MAX texts, one for each prompt: streams that run together must have different prompts. Fails: without the first option it changes nothing; a file that
 * cannot be read to its end: what was read counts. */
#include "stages/draft/draft.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define KNOWN_MAX 512u
#define TEXT_MAX (1u << 20)

static struct known { uint32_t *tokens, count, room, prompt_count; } known[KNOWN_MAX];
static uint32_t known_count;

/* What is known of a text with this prompt; a new entry if nothing is. NULL: no room. */
static struct known *find(const struct text *t)
{
    for (uint32_t i = 0; i < known_count; i++)
        if (known[i].tokens && known[i].prompt_count == t->prompt_count && memcmp(known[i].tokens, t->prompt, t->prompt_count * sizeof *t->prompt) == 0) return &known[i];
    if (known_count == KNOWN_MAX) return NULL;
    known[known_count].prompt_count = t->prompt_count;
    return &known[known_count++];
}

static bool goes_on(const struct known *k, const struct text *t)
{
    return k->count > t->count && memcmp(k->tokens + t->prompt_count, t->output, (t->count - t->prompt_count) * sizeof *t->output) == 0;
}

static void note(struct known *k, const struct text *t)
{
    if (t->count > k->room) {
        uint32_t *more = realloc(k->tokens, 2 * t->count * sizeof *more);
        if (!more) return;
        k->tokens = more;
        k->room = 2 * t->count;
    }
    memcpy(k->tokens, t->prompt, t->prompt_count * sizeof *t->prompt);
    memcpy(k->tokens + t->prompt_count, t->output, (t->count - t->prompt_count) * sizeof *t->output);
    k->count = t->count;
}

/* Before main, which may give up the right to open files. */
__attribute__((constructor)) static void read_texts(void)
{
    const char *path = getenv("SLUICE_FORCED_TEXTS");
    FILE *f = path ? fopen(path, "rb") : NULL;
    uint32_t counts[2];

    while (f && known_count < KNOWN_MAX && fread(counts, sizeof counts, 1, f) == 1 && counts[0] < counts[1] && counts[1] < TEXT_MAX) {
        struct known *k = &known[known_count];
        *k = (struct known){.tokens = malloc(counts[1] * sizeof *k->tokens), .count = counts[1], .room = counts[1], .prompt_count = counts[0]};
        if (!k->tokens || fread(k->tokens, sizeof *k->tokens, counts[1], f) != counts[1]) break;
        known_count++;
    }
    if (f) fclose(f);
}

/* The same for the same position, in any run. */
static double chance_at(uint32_t position)
{
    uint64_t x = (position + 1) * 0x9e3779b97f4a7c15ull;

    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return (double)((x ^ x >> 31) >> 11) * 0x1p-53;
}

void draft_force_hook(const struct text *t, uint32_t later, struct engine_draft_answer *a)
{
    const char *wanted = getenv("SLUICE_FORCED_ACCEPTANCE");

    struct known *k = wanted ? find(t) : NULL;

    if (!k) return;
    if (!goes_on(k, t)) {
        note(k, t);
        return;
    }
    for (uint32_t i = 0, at = t->count + later; i < a->count && at < k->count; i++, at++) a->token[i] = chance_at(at) < atof(wanted) ? k->tokens[at] : k->tokens[at] ^ 1;
}
