/* tests/faults/forced.c - forces how many drafts are accepted, to measure speed with weights that know nothing: linked into the draft stage it makes
 * build/faulty/draft_forced, put into a running server by `sluice swap draft`. Never part of a product.
 *
 * Does     notes the text of a request. When an identical one runs again (same prompt, parameters and seed: the same tokens, whatever is drafted), every
 *          draft is replaced, AFTER the drafter has computed it, by the token that is known to follow, or with probability 1 - p by another one.
 *          Drafter and target compute what they always compute; only which proposals are right is forced.
 * Options  SLUICE_FORCED_ACCEPTANCE: p, of each draft given that those before it are right (0.755 with 6 drafts: 3.5 tokens a round)
 * For one stream. Fails: without the option it changes nothing. */
#include "stages/draft/draft.h"

#include <stdlib.h>
#include <string.h>

static uint32_t *known, known_count;

static uint32_t token_at(const struct text *t, uint32_t i) { return i < t->prompt_count ? t->prompt[i] : t->output[i - t->prompt_count]; }

static bool is_known(const struct text *t)
{
    if (known_count <= t->count) return false;
    for (uint32_t i = 0; i < t->count; i++)
        if (known[i] != token_at(t, i)) return false;
    return true;
}

static void note(const struct text *t)
{
    uint32_t *more = realloc(known, t->count * sizeof *known);

    if (!more) return;
    known = more;
    known_count = t->count;
    for (uint32_t i = 0; i < t->count; i++) known[i] = token_at(t, i);
}

/* The same for the same position, in any run. */
static double chance_at(uint32_t position)
{
    uint64_t x = (position + 1) * 0x9e3779b97f4a7c15ull;

    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return (double)((x ^ x >> 31) >> 11) * 0x1p-53;
}

void draft_force_hook(const struct text *t, struct engine_draft_answer *a)
{
    const char *wanted = getenv("SLUICE_FORCED_ACCEPTANCE");

    if (!wanted) return;
    if (!is_known(t)) {
        note(t);
        return;
    }
    for (uint32_t i = 0; i < a->count && t->count + i < known_count; i++)
        a->token[i] = chance_at(t->count + i) < atof(wanted) ? known[t->count + i] : known[t->count + i] ^ 1;
}
