/* stages/draft/lookup.c - proposes what followed the last time (prompt lookup decoding, Saxena 2023; the n-gram drafter of vLLM).
 * Pure: reads a text, keeps nothing. */
#include "stages/draft/draft.h"

#define MATCH_MAX 8u /* longest suffix compared */
#define MATCH_MIN 2u /* a shorter match is chance */
#define GROUP 64u    /* tokens looked through together */

static uint32_t at(const struct text *t, uint32_t i)
{
    return i < t->prompt_count ? t->prompt[i] : t->output[i - t->prompt_count];
}

struct match { uint32_t end, tokens; };  /* exclusive; how many of the text's last tokens stand before it */

/* Is `token` among these? Without an exit, so that it is compared many at a time: a text of 100,000 tokens is looked through in every round. */
static bool holds(const uint32_t *tokens, uint32_t token)
{
    uint32_t found = 0;

    for (uint32_t i = 0; i < GROUP; i++) found |= tokens[i] == token;
    return found;
}

/* The text's last tokens before `end`, if they are more than the best so far. */
static void look_at(const struct text *t, uint32_t end, struct match *best)
{
    uint32_t same = 1;

    while (same < MATCH_MAX && same < end && at(t, end - 1 - same) == at(t, t->count - 1 - same)) same++;
    if (same > best->tokens) *best = (struct match){end, same};
}

/* Positions low .. high - 1 of the text, which lie one after the other at `tokens`; from behind. */
static void scan(const struct text *t, const uint32_t *tokens, uint32_t low, uint32_t high, struct match *best)
{
    const uint32_t last = at(t, t->count - 1);

    while (high > low && best->tokens < MATCH_MAX) {
        const uint32_t from = high - low > GROUP ? high - GROUP : low;
        if (high - from < GROUP || holds(tokens + (from - low), last))
            for (uint32_t i = high; i > from && best->tokens < MATCH_MAX; i--)
                if (tokens[i - 1 - low] == last) look_at(t, i, best);
        high = from;
    }
}

/* End (exclusive) of the best earlier match of the text's last tokens, 0 if there is none: the longest, of those the latest. */
static uint32_t find_match(const struct text *t, uint32_t *tokens)
{
    struct match best = {0, MATCH_MIN - 1};
    const uint32_t end = t->count ? t->count - 1 : 0; /* the last token itself is no earlier match */

    if (end > t->prompt_count) scan(t, t->output, t->prompt_count, end, &best);
    if (end > 0) scan(t, t->prompt, 0, end < t->prompt_count ? end : t->prompt_count, &best);
    *tokens = best.end ? best.tokens : 0;
    return best.end;
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
