/* stages/verify/drafts.c - proposals: whom to ask, how long to wait, what they were worth (the rules are model/pace.h's).
 *
 * Reads    ring draft-verify; the launcher's board (is the drafter up?)
 * Writes   ring verify-draft: questions
 * A proposal is advice: late, wrong, missing or nonsense, it changes how fast text appears and nothing else. Sequences whose drafts do
 * not pay are asked now and then all the same, without waiting and without scoring: comparing the answer with what came out costs
 * nothing and shows when the text has become one that repeats itself. */
#include "shm/clock.h"
#include "stages/verify/verify.h"

#include <string.h>

#define WAIT_NS 500000ull        /* most that a round waits for proposals, ... */
#define WAIT_STEP_SHARE 8        /* ... and most as a share of a step */
#define LATE_SKIP_MAX 64u        /* after repeated lateness so many rounds do not wait at all */
#define PEEK_TOKENS 32u          /* how often one whose drafts do not pay is asked all the same */

static bool drafter_is_up(const struct verify *k)
{
    return shm_load_relaxed(&k->table.board->up_since_ns[ROLE_DRAFT]) != 0;
}

void drafts_judge(struct verify *k, uint32_t slot)
{
    struct sequence *q = &k->seq[slot];
    const uint32_t *output = table_output(&k->table, slot);
    uint32_t right = 0;
    bool missed = false;

    while (q->judged < q->draft_count && q->draft_base + q->judged < q->known && !missed) {
        if (q->draft[q->judged] == output[q->draft_base + q->judged]) right++, q->judged++;
        else missed = true;
    }
    if (right || missed) pace_note_judged(&k->pace, &q->pace, right, missed);
    if (missed) q->judged = UINT32_MAX;
}

static void take_proposal(struct verify *k, const struct ring_msg *msg)
{
    struct sequence *q;

    if (msg->slot >= k->table.limits.slot_count || msg->count > RING_TOKENS_MAX) return; /* advice may be nonsense */
    q = &k->seq[msg->slot];
    if (q->generation == 0 || msg->generation != q->generation || msg->base > q->known) return;
    for (uint32_t i = 0; i < msg->count; i++)
        if (msg->tokens[i] >= k->engine.config.vocab) return;
    q->draft_base = msg->base;
    q->draft_count = msg->count;
    q->judged = 0;
    memcpy(q->draft, msg->tokens, sizeof q->draft);
    pace_note_answer(&k->pace, &q->pace, msg->count > 0);
    if (q->asked != NOT_ASKED && msg->base >= q->asked) q->asked = NOT_ASKED;
    drafts_judge(k, msg->slot);
}

void drafts_take(struct verify *k)
{
    struct ring_msg msg;

    while (ring_take(&k->stage.ring[RING_DRAFT_VERIFY], &msg) == 1) take_proposal(k, &msg);
    ring_overran(&k->stage.ring[RING_DRAFT_VERIFY]); /* lost advice is lost */
}

uint32_t drafts_usable(const struct verify *k, uint32_t slot, const uint32_t **drafts)
{
    const struct sequence *q = &k->seq[slot];
    const uint32_t known = q->known - q->draft_base;

    if (!q->wants || q->draft_base == NOT_ASKED || q->judged == UINT32_MAX || known >= q->draft_count) return 0;
    *drafts = q->draft + known; /* everything before it has been judged right */
    return q->draft_count - known;
}

void drafts_decide(struct verify *k)
{
    double worth = 0;

    k->drafting = false;
    if (k->draft_tokens == 0 || !drafter_is_up(k)) {
        for (uint32_t i = 0; i < k->active_count; i++) k->seq[k->active[i]].wants = false;
        return;
    }
    for (uint32_t i = 0; i < k->active_count; i++) {
        struct sequence *q = &k->seq[k->active[i]];
        const double own = pace_worth(&k->pace, &q->pace, k->active_count, k->draft_tokens);
        q->wants = own > 0 || k->draft_always;
        worth += own;
    }
    k->drafting = k->active_count > 0 && (k->draft_always || pace_pays_waiting(&k->pace, worth, k->active_count));
    if (k->drafting) return;
    for (uint32_t i = 0; i < k->active_count; i++) k->seq[k->active[i]].wants = false;
    stage_count(&k->stage, VERIFY_UNPAID, k->active_count);
}

void drafts_begin(struct verify *k, struct sequence *q)
{
    pace_begin(&k->pace, &q->pace);
    q->draft_base = q->asked = NOT_ASKED;
    q->quiet = PEEK_TOKENS / 2; /* short outputs are seen, too */
}

void drafts_peek(struct verify *k, uint32_t slot)
{
    struct sequence *q = &k->seq[slot];

    if (k->draft_tokens == 0 || q->wants || q->quiet < PEEK_TOKENS) return;
    q->quiet = 0;
    verify_tell(k, RING_VERIFY_DRAFT, slot);
}

static void ask_all(struct verify *k)
{
    for (uint32_t i = 0; i < k->active_count; i++) {
        struct sequence *q = &k->seq[k->active[i]];
        if (!q->wants || q->draft_base == q->committed || q->asked == q->committed) continue;
        q->quiet = 0;
        q->asked = q->committed;
        verify_tell(k, RING_VERIFY_DRAFT, k->active[i]);
    }
}

static bool all_answered(const struct verify *k)
{
    for (uint32_t i = 0; i < k->active_count; i++)
        if (k->seq[k->active[i]].asked != NOT_ASKED) return false;
    return true;
}

static uint64_t wait_limit_ns(const struct verify *k)
{
    const uint64_t share = (uint64_t)(pace_step_us(&k->pace, k->active_count) * 1000) / WAIT_STEP_SHARE;

    return share && share < WAIT_NS ? share : WAIT_NS;
}

/* A live drafter answers every question, with nothing if it has nothing; a late one is waited for ever more rarely. */
void drafts_wait(struct verify *k)
{
    struct ring *const r = &k->stage.ring[RING_DRAFT_VERIFY];
    const uint64_t begin = clock_ns(), limit = wait_limit_ns(k), until = begin + limit;

    ask_all(k);
    drafts_take(k);
    if (!drafter_is_up(k) || all_answered(k)) return;
    if (k->skip_waits > 0) {
        k->skip_waits--;
        return;
    }
    for (uint64_t now = begin; now < until; now = clock_ns()) {
        ring_wait(&r, 1, until - now, k->stage.spin_ns > limit ? limit : k->stage.spin_ns);
        drafts_take(k);
        if (!all_answered(k)) continue;
        k->late = 0;
        pace_note_wait(&k->pace, clock_ns() - begin);
        stage_count(&k->stage, VERIFY_DRAFT_WAIT_NS, clock_ns() - begin);
        return;
    }
    k->late = k->late ? k->late * 2 : 1;
    if (k->late > LATE_SKIP_MAX) k->late = LATE_SKIP_MAX;
    k->skip_waits = k->late - 1;
    pace_note_wait(&k->pace, limit);
    stage_count(&k->stage, VERIFY_DRAFT_WAIT_NS, limit);
    stage_count(&k->stage, VERIFY_DRAFT_LATE, 1);
}
