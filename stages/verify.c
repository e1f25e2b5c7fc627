/* stages/verify.c - the only stage that decides tokens: scores the newest token and the drafts behind it, samples, commits.
 *
 * Reads    tokenize slots (prompt), prefill slots (pages, ready), gateway slots (parameters, cancel), detokenize slots
 *          (stop strings), proposals of draft, the weights and the KV arena
 * Writes   verify slots: output tokens, how many are committed, why the output ended; K and V from position prompt_count - 1 on
 * Rings    in: prefill-verify, draft-verify, detokenize-verify, gateway-verify; out: verify-detokenize, verify-draft, verify-prefill
 * Owns     the order of things in a round; nothing that its successor could not read from the table
 * Fails    no draft, a late or a wrong one: the round goes without. Restarted: goes on behind the last commit; rows
 *          scored twice write the same bytes.
 *
 * What is emitted is what plain decoding with the request's seed emits: every token is the sampler's own
 * choice at its position; a draft is kept exactly when it equals that choice. */
#include "model/engine.h"
#include "schemas/counters.h"
#include "schemas/table.h"
#include "shm/clock.h"
#include "shm/error.h"
#include "shm/must.h"
#include "shm/stage.h"

#include <stdlib.h>
#include <string.h>

#define ROWS_MAX STATUS_BUSY_MAX     /* rows of one step */
#define BLOCK_MAX (RING_TOKENS_MAX + 1)
#define DRAFT_WAIT_NS 500000ull      /* how long a round may wait for proposals; a step costs more */
#define DRAFT_LATE_SKIP_MAX 64u      /* after repeated lateness so many rounds do not wait at all */
#define ACCEPT_DECAY 0.75f

struct sequence { /* private view of one slot, rebuilt from the table at start */
    uint32_t generation; /* 0: not in work */
    uint32_t committed;
    uint32_t steps;             /* that this process has run it: a suspect runs alone for its first ones */
    float accept;               /* running mean of accepted drafts: how far drafting pays */
    uint32_t draft_base, draft_count; /* the newest proposal: follows draft_base committed tokens */
    uint32_t draft[RING_TOKENS_MAX];
    struct penalty_counts counts; /* entry NULL: this request has no penalties */
};

struct block { /* one sequence's rows in the current step */
    uint32_t slot, first_row, draft_count;
};

struct verify {
    struct stage stage;
    struct table table;
    struct engine engine;
    struct sampler *sampler;
    struct sequence *seq; /* [slot_count] */
    uint32_t *active;     /* slots in work, in no order */
    uint32_t active_count, next_active;
    uint32_t draft_tokens;
    uint32_t late, skip_waits;
    struct forward_row rows[ROWS_MAX];
    struct forward_seq seqs[ROWS_MAX];
    struct block block[ROWS_MAX];
    float *logits; /* [ROWS_MAX, vocab] */
};

/* ---- sequences come and go ------------------------------------------------------------ */

static void tell(struct verify *k, int ring, uint32_t slot)
{
    const struct ring_msg msg = {.slot = slot, .generation = k->seq[slot].generation, .base = k->seq[slot].committed};

    ring_publish(&k->stage.ring[ring], &msg);
}

static void tell_of_finish(struct verify *k, uint32_t slot, uint32_t generation)
{
    const struct ring_msg msg = {.slot = slot, .generation = generation};

    ring_publish(&k->stage.ring[RING_VERIFY_DETOKENIZE], &msg);
    ring_publish(&k->stage.ring[RING_VERIFY_PREFILL], &msg);
}

static void finish(struct verify *k, uint32_t slot, enum finish_reason reason)
{
    struct sequence *q = &k->seq[slot];

    shm_store_release(&table_verify(&k->table, slot)->finish, word_pack(q->generation, reason));
    tell_of_finish(k, slot, q->generation);
    penalty_counts_close(&q->counts);
    memset(q, 0, sizeof *q);
    for (uint32_t i = 0; i < k->active_count; i++) {
        if (k->active[i] != slot) continue;
        k->active[i] = k->active[--k->active_count];
        break;
    }
    stage_count(&k->stage, VERIFY_FINISHED, 1);
}

static void open_counts(struct verify *k, uint32_t slot)
{
    struct sequence *q = &k->seq[slot];
    const struct sampling_params *p = &table_gateway(&k->table, slot)->params.sampling;
    const struct tokenize_slot *t = table_tokenize(&k->table, slot);

    if (!sampling_params_need_counts(p)) return;
    if (penalty_counts_open(&q->counts, t->prompt_count + t->max_output) != 0) stage_exit(&k->stage, EXIT_MISSING, "out of memory for penalties");
    for (uint32_t i = 0; i < t->prompt_count; i++) penalty_counts_add(&q->counts, table_prompt(&k->table, slot)[i], 0);
    for (uint32_t i = 0; i < q->committed; i++) penalty_counts_add(&q->counts, table_output(&k->table, slot)[i], 1);
}

static void begin(struct verify *k, uint32_t slot, uint32_t generation)
{
    struct verify_slot *v = table_verify(&k->table, slot);
    struct sequence *q = &k->seq[slot];
    const char *field = "";

    memset(q, 0, sizeof *q);
    q->generation = generation;
    q->accept = 1.0f;
    if (word_generation(shm_load_relaxed(&v->commit)) != generation) { /* new to us, not a predecessor's */
        v->first_ns = v->last_ns = 0;
        v->rounds = v->drafted = v->accepted = 0;
        memset(v->drafted_at, 0, sizeof v->drafted_at);
        memset(v->accepted_at, 0, sizeof v->accepted_at);
        shm_store_release(&v->commit, word_pack(generation, 0));
    }
    q->committed = word_for(&v->commit, generation);
    k->active[k->active_count++] = slot;
    if (sampling_params_check(&table_gateway(&k->table, slot)->params.sampling, k->engine.config.vocab, &field) != 0) {
        stage_log(&k->stage, LOG_ERROR, "bad-params", "slot=%u field=%s", slot, field);
        finish(k, slot, FINISH_FAILED);
        return;
    }
    open_counts(k, slot);
    if (!slot_is_unwanted(&k->table, slot, generation)) tell(k, RING_VERIFY_DRAFT, slot);
}

static void look(struct verify *k, uint32_t slot)
{
    const uint32_t generation = slot_occupied(&k->table, slot);

    if (!generation || generation == k->seq[slot].generation) return;
    if (!word_for(&table_prefill(&k->table, slot)->ready, generation)) return;
    if (word_for(&table_verify(&k->table, slot)->finish, generation)) return;
    begin(k, slot, generation);
}

static void scan(struct verify *k)
{
    for (uint32_t s = 0; s < k->table.limits.slot_count; s++) look(k, s);
}

/* Start: what a predecessor finished, or committed, without telling everybody. */
static void announce_again(struct verify *k)
{
    for (uint32_t s = 0; s < k->table.limits.slot_count; s++) {
        const uint32_t generation = slot_occupied(&k->table, s);
        if (generation && word_for(&table_verify(&k->table, s)->finish, generation)) tell_of_finish(k, s, generation);
        else if (generation && k->seq[s].generation == generation) tell(k, RING_VERIFY_DETOKENIZE, s);
    }
}

/* ---- proposals -------------------------------------------------------------------------- */

static void take_proposal(struct verify *k, const struct ring_msg *msg)
{
    struct sequence *q;

    if (msg->slot >= k->table.limits.slot_count || msg->count > RING_TOKENS_MAX) return; /* advice may be nonsense */
    q = &k->seq[msg->slot];
    if (q->generation == 0 || msg->generation != q->generation || msg->base > q->committed) return;
    for (uint32_t i = 0; i < msg->count; i++)
        if (msg->tokens[i] >= k->engine.config.vocab) return;
    q->draft_base = msg->base;
    q->draft_count = msg->count;
    memcpy(q->draft, msg->tokens, sizeof q->draft);
}

/* The part of the proposal that lies behind what is committed, if it guessed right so far. */
static uint32_t usable_drafts(const struct verify *k, uint32_t slot, const uint32_t **drafts)
{
    const struct sequence *q = &k->seq[slot];
    const uint32_t known = q->committed - q->draft_base;

    if (known >= q->draft_count) return 0;
    if (memcmp(q->draft, table_output(&k->table, slot) + q->draft_base, known * sizeof(uint32_t)) != 0) return 0;
    *drafts = q->draft + known;
    return q->draft_count - known;
}

static bool drafter_is_up(const struct verify *k)
{
    return shm_load_relaxed(&k->table.board->up_since_ns[ROLE_DRAFT]) != 0;
}

static bool all_answered(const struct verify *k)
{
    for (uint32_t i = 0; i < k->active_count; i++)
        if (k->seq[k->active[i]].draft_base != k->seq[k->active[i]].committed) return false;
    return true;
}

static void take_drafts(struct verify *k)
{
    struct ring_msg msg;

    while (ring_take(&k->stage.ring[RING_DRAFT_VERIFY], &msg) == 1) take_proposal(k, &msg);
    ring_overran(&k->stage.ring[RING_DRAFT_VERIFY]); /* lost advice is lost */
}

/* A live drafter answers every commit, with nothing if it has nothing; a late one is waited for ever more rarely. */
static void wait_for_drafts(struct verify *k)
{
    struct ring *const r = &k->stage.ring[RING_DRAFT_VERIFY];
    const uint64_t until = clock_ns() + DRAFT_WAIT_NS;

    take_drafts(k);
    if (!drafter_is_up(k) || all_answered(k)) return;
    if (k->skip_waits > 0) {
        k->skip_waits--;
        return;
    }
    for (uint64_t now = clock_ns(); now < until; now = clock_ns()) {
        ring_wait(&r, 1, until - now, k->stage.spin_ns);
        take_drafts(k);
        if (all_answered(k)) {
            k->late = 0;
            return;
        }
    }
    k->late = k->late ? k->late * 2 : 1;
    if (k->late > DRAFT_LATE_SKIP_MAX) k->late = DRAFT_LATE_SKIP_MAX;
    k->skip_waits = k->late - 1;
    stage_count(&k->stage, VERIFY_DRAFT_LATE, 1);
}

/* ---- a round ----------------------------------------------------------------------------- */

static void take_messages(struct verify *k)
{
    static const int rings[] = {RING_PREFILL_VERIFY, RING_DETOKENIZE_VERIFY, RING_GATEWAY_VERIFY};
    struct ring_msg msg;

    for (unsigned i = 0; i < 3; i++) {
        struct ring *r = &k->stage.ring[rings[i]];
        while (ring_take(r, &msg) == 1)
            if (msg.slot < k->table.limits.slot_count) look(k, msg.slot);
        if (ring_overran(r)) scan(k);
    }
    take_drafts(k);
}

/* Ends what needs no further step: cancelled, convicted, stopped by a string, nothing asked. */
static void end_unwanted(struct verify *k)
{
    for (uint32_t i = k->active_count; i-- > 0;) {
        const uint32_t s = k->active[i], g = k->seq[s].generation;
        const uint32_t verdict = word_for(&table_launcher(&k->table, s)->verdict, g);
        if (word_for(&table_gateway(&k->table, s)->cancel, g)) finish(k, s, FINISH_CANCELLED);
        else if (verdict && verdict != 1 + ROLE_DRAFT) finish(k, s, FINISH_FAILED);
        else if (word_for(&table_detokenize(&k->table, s)->stop, g)) finish(k, s, FINISH_STOP_STRING);
        else if (table_gateway(&k->table, s)->params.flags & REQUEST_PREFILL_ONLY) finish(k, s, FINISH_PREFILLED);
        else if (k->seq[s].committed >= table_tokenize(&k->table, s)->max_output) finish(k, s, FINISH_LENGTH);
    }
}

/* A predecessor may have committed the last token and died before it said that it was the last. */
static bool end_by_last_token(struct verify *k, uint32_t slot)
{
    const struct sequence *q = &k->seq[slot];
    const uint32_t reason = q->committed == 0 ? FINISH_NONE
                                              : engine_finish_by_token(&k->engine.generation, &table_gateway(&k->table, slot)->params,
                                                                       table_output(&k->table, slot)[q->committed - 1]);
    if (reason != FINISH_NONE) finish(k, slot, (enum finish_reason)reason);
    return reason != FINISH_NONE;
}

static bool is_suspect(const struct verify *k, uint32_t slot)
{
    const uint32_t strikes = word_for(&table_launcher(&k->table, slot)->strikes, k->seq[slot].generation);

    return strikes != 0 && k->seq[slot].steps < suspect_steps(strikes);
}

/* How many drafts are worth scoring: about what was accepted lately and one more to find out. */
static uint32_t draft_limit(const struct verify *k, uint32_t slot)
{
    const struct sequence *q = &k->seq[slot];
    const uint32_t left = table_tokenize(&k->table, slot)->max_output - q->committed - 1, worth = (uint32_t)(q->accept * 1.5f + 1.0f);
    uint32_t limit = k->draft_tokens < worth ? k->draft_tokens : worth;

    return limit < left ? limit : left;
}

static uint32_t add_block(struct verify *k, uint32_t slot, uint32_t index, uint32_t row, uint32_t rows_most)
{
    const struct sequence *q = &k->seq[slot];
    const struct prefill_slot *p = table_prefill(&k->table, slot);
    const uint32_t prompt_count = table_tokenize(&k->table, slot)->prompt_count, position = prompt_count - 1 + q->committed;
    const uint32_t *drafts = NULL;
    uint32_t count = usable_drafts(k, slot, &drafts), limit = draft_limit(k, slot);

    if (limit > rows_most - 1) limit = rows_most - 1;
    if (count > limit) count = limit;
    const uint32_t newest = q->committed == 0 ? table_prompt(&k->table, slot)[prompt_count - 1] : table_output(&k->table, slot)[q->committed - 1];
    for (uint32_t i = 0; i <= count; i++)
        k->rows[row + i] = (struct forward_row){.token = i == 0 ? newest : drafts[i - 1], .position = position + i, .seq = index, .want_logits = 1};
    k->seqs[index] = (struct forward_seq){.full_pages = table_full_pages(&k->table, slot), .sliding_pages = table_sliding_pages(&k->table, slot),
                                          .full_page_count = p->full_page_count, .sliding_page_count = p->sliding_page_count};
    k->block[index] = (struct block){.slot = slot, .first_row = row, .draft_count = count};
    return count + 1;
}

/* Chooses who takes part, in turn when not all fit. Every one gets a row first; drafts share what is left. */
static uint32_t gather(struct verify *k, uint32_t *row_count)
{
    uint32_t blocks = 0, rows = 0;
    const uint32_t members = k->active_count < ROWS_MAX ? k->active_count : ROWS_MAX;

    *row_count = 0;
    for (uint32_t i = 0; i < k->active_count; i++)
        if (is_suspect(k, k->active[i])) { /* alone, so that nobody else is accused with it */
            *row_count = add_block(k, k->active[i], 0, 0, BLOCK_MAX);
            return 1;
        }
    for (uint32_t i = 0; i < members; i++) {
        const uint32_t slot = k->active[(k->next_active + i) % k->active_count];
        const uint32_t others = members - i - 1, room = ROWS_MAX - rows - others;
        rows += add_block(k, slot, blocks++, rows, room < BLOCK_MAX ? room : BLOCK_MAX);
    }
    k->next_active = k->active_count > ROWS_MAX ? (k->next_active + members) % k->active_count : 0;
    *row_count = rows;
    return blocks;
}

static void note_logprobs(struct verify *k, uint32_t slot, uint32_t index, const struct sample_out *out)
{
    struct token_logprobs *l = &table_logprobs(&k->table, slot)[index];

    l->logprob = out->logprob;
    l->top_count = out->top_count;
    for (uint32_t i = 0; i < out->top_count; i++) {
        l->top_token[i] = out->top[i].token;
        l->top_logprob[i] = out->top[i].logprob;
    }
}

/* Samples the rows of one block in order, for as long as the drafts turn out right. Returns tokens gained. */
static uint32_t sample_block(struct verify *k, const struct block *b, enum finish_reason *reason)
{
    struct sequence *q = &k->seq[b->slot];
    const struct request_params *params = &table_gateway(&k->table, b->slot)->params;
    const struct tokenize_slot *t = table_tokenize(&k->table, b->slot);
    struct penalty_counts *counts = q->counts.entry ? &q->counts : NULL;
    struct sample_out out;
    uint32_t gained = 0;

    *reason = FINISH_NONE;
    for (uint32_t i = 0; i <= b->draft_count && *reason == FINISH_NONE; i++) {
        const uint32_t index = q->committed + gained;
        float *logits = k->logits + (uint64_t)(b->first_row + i) * k->engine.config.vocab;
        if (sampler_pick(k->sampler, &params->sampling, logits, (uint64_t)t->prompt_count + index, counts, &out) != 0) {
            *reason = FINISH_FAILED; /* NaN: the model is broken for this input; the others go on */
            stage_log(&k->stage, LOG_ERROR, "bad-logits", "slot=%u position=%u", b->slot, t->prompt_count + index);
            break;
        }
        table_output(&k->table, b->slot)[index] = out.token;
        if (params->sampling.want_logprobs) note_logprobs(k, b->slot, index, &out);
        if (counts) penalty_counts_add(counts, out.token, 1);
        gained++;
        *reason = (enum finish_reason)engine_finish_by_token(&k->engine.generation, params, out.token);
        if (*reason == FINISH_NONE && index + 1 >= t->max_output) *reason = FINISH_LENGTH;
        if (i < b->draft_count && out.token != k->rows[b->first_row + i + 1].token) break;
    }
    return gained;
}

static void note_drafts(struct verify *k, const struct block *b, uint32_t gained)
{
    struct verify_slot *v = table_verify(&k->table, b->slot);
    struct sequence *q = &k->seq[b->slot];
    uint64_t *c = k->stage.status->counters;
    const uint32_t accepted = gained > b->draft_count ? b->draft_count : gained > 0 ? gained - 1 : 0;

    v->rounds++;
    v->drafted += b->draft_count;
    v->accepted += accepted;
    for (uint32_t i = 0; i < b->draft_count && i < DRAFT_POSITIONS_MAX; i++) {
        v->drafted_at[i]++;
        shm_store_relaxed(&c[VERIFY_DRAFTED_AT + i], c[VERIFY_DRAFTED_AT + i] + 1);
    }
    for (uint32_t i = 0; i < accepted && i < DRAFT_POSITIONS_MAX; i++) {
        v->accepted_at[i]++;
        shm_store_relaxed(&c[VERIFY_ACCEPTED_AT + i], c[VERIFY_ACCEPTED_AT + i] + 1);
    }
    if (b->draft_count > 0) q->accept = q->accept * ACCEPT_DECAY + (float)accepted * (1 - ACCEPT_DECAY);
    stage_count(&k->stage, VERIFY_DRAFTED, b->draft_count);
    stage_count(&k->stage, VERIFY_ACCEPTED, accepted);
}

static void commit_block(struct verify *k, const struct block *b)
{
    struct sequence *q = &k->seq[b->slot];
    struct verify_slot *v = table_verify(&k->table, b->slot);
    enum finish_reason reason;
    const uint32_t gained = sample_block(k, b, &reason);

    note_drafts(k, b, gained);
    q->committed += gained;
    v->last_ns = clock_ns();
    if (!v->first_ns) v->first_ns = v->last_ns;
    if (gained) shm_store_release(&v->commit, word_pack(q->generation, q->committed));
    stage_count(&k->stage, VERIFY_TOKENS, gained);
    if (reason != FINISH_NONE) {
        finish(k, b->slot, reason);
        return;
    }
    q->steps++;
    tell(k, RING_VERIFY_DETOKENIZE, b->slot);
    tell(k, RING_VERIFY_DRAFT, b->slot);
}

static void round_of(struct verify *k)
{
    uint32_t slots[ROWS_MAX], generations[ROWS_MAX], rows;
    const uint64_t begin_ns = clock_ns();
    const uint32_t blocks = gather(k, &rows);

    for (uint32_t i = 0; i < blocks; i++) {
        slots[i] = k->block[i].slot;
        generations[i] = k->seq[slots[i]].generation;
    }
    stage_busy(&k->stage, slots, generations, blocks);
    const int rc = forward_run(k->engine.forward, k->rows, rows, k->seqs, blocks, k->logits, NULL);
    must(rc == 0); /* positions and pages were set aside by prefill */
    for (uint32_t i = 0; i < blocks; i++) commit_block(k, &k->block[i]);
    stage_idle(&k->stage);
    stage_count(&k->stage, VERIFY_ROUNDS, 1);
    stage_count(&k->stage, VERIFY_ROWS, rows);
    stage_count(&k->stage, VERIFY_WORK_NS, clock_ns() - begin_ns);
}

static void attach(struct verify *k, int argc, char **argv)
{
    stage_attach(&k->stage, ROLE_VERIFY, "scores, samples and commits tokens", argc, argv);
    table_attach(&k->table, &k->stage);
    engine_open_forward(&k->engine, &k->stage, ROWS_MAX);
    k->draft_tokens = (uint32_t)wiring_u64(&k->stage.wiring, "draft.tokens", 7);
    k->seq = calloc(k->table.limits.slot_count, sizeof *k->seq);
    k->active = calloc(k->table.limits.slot_count, sizeof *k->active);
    k->logits = malloc(sizeof(float) * ROWS_MAX * (size_t)k->engine.config.vocab);
    if (!k->seq || !k->active || !k->logits) stage_exit(&k->stage, EXIT_MISSING, "out of memory");
    const int rc = sampler_open(&k->sampler, k->engine.config.vocab, k->engine.generation.suppress_token, k->engine.generation.suppress_count);
    if (rc != 0) stage_exit(&k->stage, EXIT_CONFIG, "the sampler cannot be set up: %s", error_text(rc));
    scan(k);
    announce_again(k);
    for (uint32_t i = k->active_count; i-- > 0;) end_by_last_token(k, k->active[i]);
}

int main(int argc, char **argv)
{
    static struct verify k;

    attach(&k, argc, argv);
    stage_ready(&k.stage);
    while (stage_running(&k.stage)) {
        take_messages(&k);
        end_unwanted(&k);
        shm_store_relaxed(&k.stage.status->counters[VERIFY_RUNNING], k.active_count);
        if (k.active_count == 0) {
            stage_wait(&k.stage, 1000);
            continue;
        }
        wait_for_drafts(&k);
        round_of(&k);
    }
    return 0;
}
