/* stages/draft/lookup.c - proposes what followed the last time (prompt lookup decoding, Saxena 2023; the n-gram drafter of vLLM).
 * Pure: reads a text, keeps nothing. */
#include "stages/draft/draft.h"

#define MATCH_MAX 8u /* longest suffix compared */
#define MATCH_MIN 2u /* a shorter match is chance */

static uint32_t at(const struct text *t, uint32_t i)
{
    return i < t->prompt_count ? t->prompt[i] : t->output[i - t->prompt_count];
}

/* End (exclusive) of the best earlier match of the text's last tokens, 0 if there is none: the longest, of those the latest. */
static uint32_t find_match(const struct text *t, uint32_t *tokens)
{
    uint32_t best = 0, best_tokens = MATCH_MIN - 1;

    for (uint32_t end = t->count ? t->count - 1 : 0; end >= MATCH_MIN && best_tokens < MATCH_MAX; end--) {
        uint32_t same = 0;
        while (same < MATCH_MAX && same < end && at(t, end - 1 - same) == at(t, t->count - 1 - same)) same++;
        if (same > best_tokens) {
            best_tokens = same;
            best = end;
        }
    }
    *tokens = best ? best_tokens : 0;
    return best;
}

uint32_t lookup_guess(const struct text *t, uint32_t most, struct guess *out)
{
    uint32_t matched;

    out->base = t->count - t->prompt_count;
    out->count = 0;
    for (uint32_t from = find_match(t, &matched); from && out->count < most; from++) {
        out->class[out->count] = (uint8_t)matched;
        out->token[out->count] = from < t->count ? at(t, from) : out->token[from - t->count];
        out->count++;
    }
    return matched;
}
