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
#define RATE_FOUND 0.05f              /* weight of the newest answer of one sequence, ... */
#define RATE_ONE 0.03f                /* ... and of its newest draft: with 0.05 drafts of an even 0.755 were cut too often (0.4 % of the speed), and a text that changes gained no more */
#define RATE_ALL 0.02
#define ACCEPT_FIRST 0.8              /* hopeful: what is never tried is never known */
#define FOUND_FIRST 0.5
#define ROUND_MOST 16.0               /* what answers took counts up to so many times what the drafter says of a round, ... */
#define ROUND_QUESTIONS 3.0           /* ... and up to a round for one question and one more for each so many: no drafter known takes longer */
#define SEEN_MORE 0.25                /* weight of an answer that took longer: it may have waited for a step, or for a prompt to be absorbed */
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

/* Of an answer to so many questions, the most that is believed. */
static double believed_us(double seen_us, double own_us, uint32_t questions)
{
    const double times = 1 + questions / ROUND_QUESTIONS, most = (times < ROUND_MOST ? times : ROUND_MOST) * own_us;

    return seen_us < most ? seen_us : most;
}

double pace_seen_us(double known_us, double took_us, double own_us, uint32_t questions)
{
    const double took = believed_us(took_us, own_us, questions);

    if (known_us <= 0) return took;
    return took < known_us ? (known_us + took) / 2 : known_us + (took - known_us) * SEEN_MORE;
}

double pace_round_us(double said_us, double drafts_us, double seen_us, uint32_t questions)
{
    const double taken = believed_us(seen_us, said_us + drafts_us, questions) - drafts_us;

    return taken > said_us ? taken : said_us;
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
    q->found += ((has_tokens ? 1.0f : 0.0f) - q->found) * RATE_FOUND;
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

/* What a step would give whose questions ask for drafts with at least this chance, at most `longest` each. */
struct plan {
    double rate;                      /* tokens a microsecond */
    double spent_us;                  /* asking and waiting */
    double least;
    uint32_t longest, asked;
};

static uint32_t length_of(const struct pace_sequence *q, uint32_t longest, double least, uint32_t left, double *tokens)
{
    double chance = q->accept, sum = 0;
    uint32_t count = 0;

    for (; count < longest && count < left && chance > least; count++, chance *= q->accept) sum += chance;
    *tokens = q->found * sum;
    return count;
}

static void try_plan(const struct pace *p, const struct pace_asker *asker, uint32_t count, uint32_t rows_most, struct plan *plan, pace_computed *computed, const void *context)
{
    double tokens = count, rows = count, more;

    plan->asked = 0;
    plan->spent_us = p->wait_us + p->round_us + plan->longest * p->guess_us;
    for (uint32_t i = 0, left = rows_most - count; i < count; i++) {
        const uint32_t length = length_of(asker[i].pace, plan->longest, plan->least, left, &more);
        left -= length;
        rows += length * (double)asker[i].pace->found;
        tokens += more;
        plan->asked += length > 0;
    }
    plan->rate = tokens / (pace_step_us(p, computed(context, (uint32_t)(rows + 0.5))) + plan->spent_us);
}

static const double cuts[] = {1, 0.25, 0}; /* of the price of a row: rows may be free up to the next size that the device computes */

static struct plan best_plan(const struct pace *p, const struct pace_asker *asker, uint32_t count, uint32_t rows_most, uint32_t drafts_max, pace_computed *computed, const void *context)
{
    struct plan best = {.rate = count / pace_step_us(p, computed(context, count))};
    const double off = best.rate;

    for (uint32_t longest = 1; longest <= drafts_max; longest++) {
        const double row_price = best.rate * p->row_us;
        for (unsigned c = 0; c < sizeof cuts / sizeof *cuts; c++) {
            struct plan plan = {.longest = longest, .least = cuts[c] * row_price};
            try_plan(p, asker, count, rows_most, &plan, computed, context);
            if (plan.asked && plan.rate > best.rate) best = plan;
        }
    }
    if (best.rate < off * (1 + WORTH_LEAST)) best.longest = 0;
    return best;
}

uint32_t pace_ask(struct pace *p, struct pace_asker *asker, uint32_t count, uint32_t rows_most, uint32_t drafts_max, pace_computed *computed, const void *context)
{
    struct plan plan = {.longest = 0};
    double ignored;

    p->spent_us = 0;
    if (count < rows_most && pace_step_us(p, count) > 0) plan = best_plan(p, asker, count, rows_most, drafts_max, computed, context);
    else if (count < rows_most) plan = (struct plan){.longest = drafts_max, .asked = count}; /* nothing is known: try */
    for (uint32_t i = 0, left = count < rows_most ? rows_most - count : 0; i < count; i++) {
        asker[i].most = plan.longest ? length_of(asker[i].pace, plan.longest, plan.least, left, &ignored) : 0;
        asker[i].least = plan.longest ? (float)(plan.least + plan.rate * p->guess_us / plan.asked) : 0;
        if (asker[i].least > 1) asker[i].least = 1;
        asker[i].worth = plan.longest && plan.least < 1 ? (float)plan.least : asker[i].least;
        left -= asker[i].most;
    }
    if (plan.longest == 0) return 0;
    p->spent_us = plan.spent_us;
    return plan.asked;
}

static double rate_of(const struct pace *p, double tokens, uint32_t rows)
{
    return p && pace_step_us(p, rows) > 0 ? tokens / (pace_step_us(p, rows) + p->spent_us) : tokens;
}

uint32_t pace_share(const struct pace *p, struct pace_member *member, uint32_t members, uint32_t rows_most, pace_computed *computed, const void *context)
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
