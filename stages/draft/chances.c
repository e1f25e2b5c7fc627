/* stages/draft/chances.c - learns from the text that came out how often guesses of each kind are right.
 *
 * A neural guess is classed by its confidence, a lookup by how many tokens matched. What a confidence means differs between drafters, texts and
 * temperatures, so nothing is assumed about it but the order. Kept in private memory: a restarted drafter learns again within a few dozen
 * guesses. Decides lengths only. */
#include "stages/draft/draft.h"

#include <math.h>

#define SEEN_MAX 100.0f  /* so many guesses stand behind a rate at most: older ones fade */
#define SEEN_FIRST 4.0f  /* weight of what is assumed before anything is seen */
#define RATE_LEAST 0.3f  /* assumed of the least confident class, ... */
#define RATE_MOST 0.97f  /* ... and of the most confident one */
#define RATE_LOOKUP 0.5f
#define RATE_ALL 0.02f

void chances_init(struct chances *c)
{
    for (unsigned i = 0; i < 2 * 2 * GUESS_SOURCES; i++) {
        struct chance_table *t = &c->of[i / (2 * GUESS_SOURCES)][i / GUESS_SOURCES % 2][i % GUESS_SOURCES];
        for (unsigned k = 0; k < CHANCE_CLASSES; k++) {
            t->seen[k] = SEEN_FIRST;
            t->rate[k] = i % GUESS_SOURCES == GUESS_LOOKUP ? RATE_LOOKUP : RATE_LEAST + (RATE_MOST - RATE_LEAST) * (float)k / (CHANCE_CLASSES - 1);
        }
        t->all = RATE_LOOKUP;
    }
}

struct chance_table *chances_of(struct chances *c, const struct sampling_params *p, bool thinking, enum guess_source source)
{
    return &c->of[p->temperature >= 1e-5f][thinking][source];
}

uint8_t chance_class(float confidence)
{
    const float left = 1.0f - confidence;                   /* halves in a class and a half */
    const float doublings = left > 0 ? -log2f(left) : 1e9f;

    return !(confidence > 0) ? 0 : (uint8_t)cuda_handover_class(doublings);
}

static void note(struct chance_table *c, uint8_t class, bool right)
{
    if (c->seen[class] < SEEN_MAX) c->seen[class]++;
    c->rate[class] += ((float)right - c->rate[class]) / c->seen[class];
    c->all += ((float)right - c->all) * RATE_ALL;
}

void chances_judge(struct chance_table *c, struct guess *g, const struct text *t)
{
    const uint32_t out = t->count - t->prompt_count;
    bool right = true;

    for (uint32_t i = 0; i < g->count && right && g->base + i < out; i++) {
        right = g->token[i] == t->output[g->base + i];
        note(c, g->class[i], right);
    }
    g->count = 0;
}
