/* model/pace.c - step times to prices, proposals to chances, both to numbers of drafts (contract in pace.h). */
#include "model/pace.h"

#include <math.h>
#include <string.h>

#define STEP_FADE 0.998               /* a step's weight halves in about 350 steps */
#define ROW_SHARE_UNKNOWN 0.01        /* b as a share of the mean step while nothing is known */
#define ROW_DOUBT 0.5                 /* rows^2: how much spread of rows outweighs that guess */
#define OUTLIER 3.0                   /* a step that took longer than so often what was expected was disturbed: its time is cut */
#define WAIT_FADE 0.95
#define WAIT_FORGET 0.999             /* in steps that did not wait: a drafter that was slow once gets another chance */
#define WAIT_US_FIRST 20.0
#define RATE_ONE 0.15f                /* weight of the newest observation of one sequence */
#define RATE_ALL 0.02
#define ACCEPT_FIRST 0.5
#define FOUND_FIRST 0.5
#define WORTH_LEAST 0.01              /* share of the tokens of a step: a smaller gain is noise */

void pace_init(struct pace *p)
{
    memset(p, 0, sizeof *p);
    for (int i = 0; i < PACE_PHASES; i++) {
        p->of[i].accept = ACCEPT_FIRST;
        p->of[i].found = FOUND_FIRST;
    }
    p->wait_us = WAIT_US_FIRST;
}

void pace_begin(const struct pace *p, struct pace_sequence *q, enum pace_phase phase)
{
    q->phase = phase;
    q->accept = (float)p->of[phase].accept;
    q->found = (float)p->of[phase].found;
}

void pace_turn(const struct pace *p, struct pace_sequence *q, enum pace_phase phase)
{
    if (q->phase != phase) pace_begin(p, q, phase);
}

static void fit(struct pace *p)
{
    const double rows = p->rows / p->weight, us = p->us / p->weight;
    const double spread = p->rows_rows - p->rows * rows, together = p->rows_us - p->rows * us;

    p->row_us = (together + ROW_DOUBT * ROW_SHARE_UNKNOWN * us) / (spread + ROW_DOUBT);
    if (p->row_us < 0) p->row_us = 0;
    if (p->row_us * rows > us) p->row_us = us / rows; /* nothing is cheaper than no rows */
    p->base_us = us - p->row_us * rows;
}

double pace_step_us(const struct pace *p, uint32_t rows)
{
    return p->base_us + p->row_us * rows;
}

void pace_note_step(struct pace *p, uint32_t rows, uint64_t ns)
{
    const double expected = pace_step_us(p, rows);
    double us = (double)ns * 1e-3;

    if (rows > p->rows_seen) {
        p->rows_seen = rows;
        if (p->weight > 0) return;
    }
    if (expected > 0 && us > OUTLIER * expected) us = OUTLIER * expected;
    p->weight = p->weight * STEP_FADE + 1;
    p->rows = p->rows * STEP_FADE + rows;
    p->us = p->us * STEP_FADE + us;
    p->rows_rows = p->rows_rows * STEP_FADE + (double)rows * rows;
    p->rows_us = p->rows_us * STEP_FADE + rows * us;
    fit(p);
}

void pace_note_wait(struct pace *p, uint64_t ns)
{
    p->wait_us = ns == 0 ? p->wait_us * WAIT_FORGET : p->wait_us * WAIT_FADE + (double)ns * 1e-3 * (1 - WAIT_FADE);
}

void pace_note_answer(struct pace *p, struct pace_sequence *q, bool has_tokens)
{
    q->found += ((has_tokens ? 1.0f : 0.0f) - q->found) * RATE_ONE;
    p->of[q->phase].found += ((has_tokens ? 1.0 : 0.0) - p->of[q->phase].found) * RATE_ALL;
}

void pace_note_judged(struct pace *p, struct pace_sequence *q, uint32_t right, bool missed)
{
    double *all = &p->of[q->phase].accept;

    for (uint32_t i = 0; i < right; i++) {
        q->accept += (1.0f - q->accept) * RATE_ONE;
        *all += (1.0 - *all) * RATE_ALL;
    }
    if (!missed) return;
    q->accept -= q->accept * RATE_ONE;
    *all -= *all * RATE_ALL;
}

/* Tokens that the running sequences would have made in the time of one more draft: of its row, and of its share of the drafter's step. */
static double draft_price(const struct pace *p, uint32_t members, uint32_t askers)
{
    const double us = pace_step_us(p, members);

    return us > 0 ? members * (p->row_us + p->guess_us / askers) / us : 0;
}

double pace_worth(const struct pace *p, const struct pace_sequence *q, uint32_t members, uint32_t drafts_max)
{
    const double price = draft_price(p, members, members);
    double chance = q->accept, worth = 0;

    for (uint32_t i = 0; i < drafts_max && chance > price; i++, chance *= q->accept) worth += chance - price;
    return worth * q->found;
}

uint32_t pace_length(const struct pace *p, const struct pace_sequence *q, uint32_t members, uint32_t askers, uint32_t drafts_max, float *least)
{
    const double price = draft_price(p, members, askers);
    uint32_t count = 1;

    for (double chance = (double)q->accept * q->accept; count < drafts_max && chance > price; chance *= q->accept) count++;
    *least = price < 1 ? (float)price : 1.0f;
    return count;
}

bool pace_pays_waiting(const struct pace *p, double worth, uint32_t members)
{
    const double us = pace_step_us(p, members), lost = us > 0 ? members * (p->wait_us + p->round_us) / us : 0;

    return worth > lost + WORTH_LEAST * members;
}

static double rate_of(const struct pace *p, double tokens, uint32_t rows)
{
    return p && pace_step_us(p, rows) > 0 ? tokens / pace_step_us(p, rows) : tokens;
}

uint32_t pace_share(const struct pace *p, struct pace_member *member, uint32_t members, uint32_t rows_most,
                    uint32_t (*computed)(const void *context, uint32_t rows), const void *context)
{
    float chance[PACE_ROWS_MAX];
    uint32_t order[PACE_ROWS_MAX], count = 0, best = 0; /* draft rows in order of their chance; how many of them are best */
    double tokens = members, best_rate;

    if (rows_most > PACE_ROWS_MAX) rows_most = PACE_ROWS_MAX;
    for (uint32_t i = 0; i < members; i++) {
        chance[i] = member[i].accept;
        member[i].taken = 0;
    }
    best_rate = rate_of(p, tokens, computed(context, members));
    while (members + count < rows_most) {
        uint32_t next = members;
        for (uint32_t i = 0; i < members; i++)
            if (member[i].taken < member[i].available && (next == members || chance[i] > chance[next])) next = i;
        if (next == members) break;
        tokens += chance[next];
        chance[next] *= member[next].accept;
        member[next].taken++;
        order[count++] = next;
        const double rate = rate_of(p, tokens, computed(context, members + count));
        if (rate < best_rate) continue; /* perhaps with more: the next rows may be free */
        best_rate = rate;
        best = count;
    }
    while (count > best) member[order[--count]].taken--;
    return members + best;
}
