/* stages/verify.c - the only stage that decides tokens: scores the newest token and the drafts behind it, samples, commits.
 *
 * Reads    tokenize slots (prompt), prefill slots (pages, ready), gateway slots (parameters, cancel), detokenize slots
 *          (stop strings), proposals of draft, the weights and the KV arena
 * Writes   verify slots: output tokens, how many are committed, why the output ended; K, V and states from position prompt_count on
 * Rings    in: prefill-verify, draft-verify, detokenize-verify, gateway-verify; out: verify-detokenize, verify-draft, verify-prefill
 * Owns     the order of things in a round; nothing that its successor could not read from the table
 * Fails    no draft, a late or a wrong one: the round goes without. Restarted: goes on behind the last commit; rows
 *          scored twice write the same bytes.
 *
 * What is emitted is what plain decoding with the request's seed emits: every token is the sampler's own
 * choice at its position; a draft is kept exactly when it equals that choice.
 *
 * A round: decide what the last step gave; begin the next step; while it runs, commit and tell what the last one gave. A token is decided once the
 * sampler chose it, and others see it from its commit on. Whoever dies in between has decided nothing: the same rows give the same tokens again. Only
 * when drafts pay is the commit before the next step, because the drafter goes by it. */
#include "stages/verify/verify.h"

#include "shm/clock.h"
#include "shm/error.h"
#include "shm/must.h"

#include <stdlib.h>
#include <string.h>

/* ---- sequences come and go ------------------------------------------------------------ */

void verify_tell(struct verify *k, int ring, uint32_t slot)
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

static void leave_work(struct verify *k, uint32_t slot)
{
    for (uint32_t i = 0; i < k->active_count; i++) {
        if (k->active[i] != slot) continue;
        k->active[i] = k->active[--k->active_count];
        return;
    }
}

/* Makes what is known of the output the truth. */
static void commit(struct verify *k, uint32_t slot)
{
    struct sequence *q = &k->seq[slot];
    struct verify_slot *v = table_verify(&k->table, slot);

    if (q->known == q->committed) return;
    v->last_ns = clock_ns();
    if (!v->first_ns) v->first_ns = v->last_ns;
    stage_count(&k->stage, VERIFY_TOKENS, q->known - q->committed);
    q->quiet += q->known - q->committed;
    q->committed = q->known;
    shm_store_release(&v->commit, word_pack(q->generation, q->committed));
}

static void finish(struct verify *k, uint32_t slot, enum finish_reason reason)
{
    struct sequence *q = &k->seq[slot];

    commit(k, slot);
    shm_store_release(&table_verify(&k->table, slot)->finish, word_pack(q->generation, reason));
    tell_of_finish(k, slot, q->generation);
    leave_work(k, slot);
    engine_leave(&k->engine, slot);
    memset(q, 0, sizeof *q);
    stage_count(&k->stage, VERIFY_FINISHED, 1);
}

/* Others may see what the last step gave. */
static void tell_decided(struct verify *k)
{
    for (uint32_t i = 0; i < k->pending_count; i++) {
        const uint32_t slot = k->pending[i];
        const struct sequence *q = &k->seq[slot];
        if (q->generation == 0 || (q->known == q->committed && !q->finish)) continue; /* has ended meanwhile */
        if (q->finish) {
            finish(k, slot, (enum finish_reason)q->finish);
            continue;
        }
        commit(k, slot);
        verify_tell(k, RING_VERIFY_DETOKENIZE, slot);
        drafts_peek(k, slot);
    }
    k->pending_count = 0;
    k->first_tokens = false;
}

static void admit(struct verify *k, uint32_t slot)
{
    const struct sequence *q = &k->seq[slot];
    const struct prefill_slot *p = table_prefill(&k->table, slot);
    const struct tokenize_slot *t = table_tokenize(&k->table, slot);
    const struct engine_sequence seq = {.generation = q->generation, .full_pages = table_full_pages(&k->table, slot), .sliding_pages = table_sliding_pages(&k->table, slot),
                                        .full_page_count = p->full_page_count, .sliding_page_count = p->sliding_page_count,
                                        .sampling = &table_gateway(&k->table, slot)->params.sampling, .prompt = table_prompt(&k->table, slot),
                                        .output = table_output(&k->table, slot), .prompt_count = t->prompt_count, .output_count = q->committed,
                                        .output_max = t->max_output};

    if (word_for(&p->pages, q->generation)) engine_admit(&k->engine, slot, &seq); /* without pages it was handed over only to be ended */
}

static void begin(struct verify *k, uint32_t slot, uint32_t generation)
{
    struct verify_slot *v = table_verify(&k->table, slot);
    struct sequence *q = &k->seq[slot];
    const char *field = "";

    memset(q, 0, sizeof *q);
    q->generation = generation;
    drafts_begin(k, q);
    if (word_generation(shm_load_relaxed(&v->commit)) != generation) { /* new to us, not a predecessor's */
        v->first_ns = v->last_ns = 0;
        v->rounds = v->drafted = v->accepted = 0;
        memset(v->drafted_at, 0, sizeof v->drafted_at);
        memset(v->accepted_at, 0, sizeof v->accepted_at);
        shm_store_release(&v->commit, word_pack(generation, 0));
    }
    q->known = q->committed = word_for(&v->commit, generation);
    k->active[k->active_count++] = slot;
    if (sampling_params_check(&table_gateway(&k->table, slot)->params.sampling, k->engine.config.vocab, &field) != 0) {
        stage_log(&k->stage, LOG_ERROR, "bad-params", "slot=%u field=%s", slot, field);
        finish(k, slot, FINISH_FAILED);
        return;
    }
    admit(k, slot);
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
        else if (generation && k->seq[s].generation == generation) verify_tell(k, RING_VERIFY_DETOKENIZE, s);
    }
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
    drafts_take(k);
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
        else if (k->seq[s].known >= table_tokenize(&k->table, s)->max_output) finish(k, s, FINISH_LENGTH);
    }
}

/* A predecessor may have committed the last token and died before it said that it was the last. */
static void end_by_last_token(struct verify *k, uint32_t slot)
{
    const struct sequence *q = &k->seq[slot];
    const uint32_t reason = q->committed == 0 ? FINISH_NONE
                                              : engine_finish_by_token(&k->engine.generation, &table_gateway(&k->table, slot)->params,
                                                                       table_output(&k->table, slot)[q->committed - 1]);
    if (reason != FINISH_NONE) finish(k, slot, (enum finish_reason)reason);
}

static bool is_suspect(const struct verify *k, uint32_t slot)
{
    const uint32_t strikes = word_for(&table_launcher(&k->table, slot)->strikes, k->seq[slot].generation);

    return strikes != 0 && k->seq[slot].steps < suspect_steps(strikes);
}

/* One sequence's rows in the step: the newest token, and drafts behind it. */
static void add_block(struct verify *k, uint32_t slot, uint32_t draft_count)
{
    const struct sequence *q = &k->seq[slot];
    const uint32_t *drafts = NULL;
    uint32_t *token = k->tokens + k->row_count;

    token[0] = newest_token(k, slot);
    if (draft_count && k->behind.coming) memset(token + 1, 0, draft_count * sizeof *token);
    else if (draft_count && draft_count <= drafts_usable(k, slot, &drafts)) memcpy(token + 1, drafts, draft_count * sizeof *token);
    k->span[k->block_count++] = (struct engine_span){.slot = slot, .first_position = table_tokenize(&k->table, slot)->prompt_count - 1 + q->known,
                                                     .first_row = k->row_count, .rows = 1 + draft_count};
    k->row_count += 1 + draft_count;
}

static uint32_t drafts_available(const struct verify *k, uint32_t slot)
{
    const uint32_t *drafts = NULL, left = table_tokenize(&k->table, slot)->max_output - k->seq[slot].known - 1;
    uint32_t count = k->behind.coming ? k->seq[slot].most : drafts_usable(k, slot, &drafts);

    if (count > k->draft_tokens) count = k->draft_tokens;
    if (count > k->engine.block_max - 1) count = k->engine.block_max - 1;
    return count < left ? count : left;
}

static uint32_t rows_computed(const void *engine, uint32_t rows)
{
    return engine_rows_computed(engine, rows);
}

/* Those without a token have a step of their own: a short one, of nothing but LM head and sampler. */
static void gather_beginners(struct verify *k)
{
    for (uint32_t i = 0; i < k->active_count && k->row_count < k->engine.rows_max; i++)
        if (k->seq[k->active[i]].known == 0) add_block(k, k->active[i], 0);
    k->begins = k->block_count > 0;
}

/* Chooses who takes part, in turn when not all fit. Every one gets a row first; drafts share what is left. */
static void gather(struct verify *k)
{
    struct pace_member member[ENGINE_ROWS_MAX];
    const uint32_t members = k->active_count < k->engine.rows_max ? k->active_count : k->engine.rows_max;

    k->block_count = k->row_count = 0;
    k->begins = false;
    for (uint32_t i = 0; i < k->active_count; i++)
        if (is_suspect(k, k->active[i])) { /* alone, so that nobody else is accused with it */
            tell_decided(k);               /* what others have got is theirs even if this one kills us */
            k->begins = k->seq[k->active[i]].known == 0;
            add_block(k, k->active[i], k->begins ? 0 : drafts_available(k, k->active[i]));
            return;
        }
    gather_beginners(k);
    if (k->begins) return;
    for (uint32_t i = 0; i < members; i++) {
        const uint32_t slot = k->active[(k->next_active + i) % k->active_count];
        member[i] = (struct pace_member){.accept = k->seq[slot].pace.accept, .available = drafts_available(k, slot)};
    }
    pace_share(k->draft_always || k->exploring ? NULL : &k->pace, member, members, k->engine.rows_max, rows_computed, &k->engine);
    for (uint32_t i = 0; i < members; i++) add_block(k, k->active[(k->next_active + i) % k->active_count], member[i].taken);
    k->next_active = k->active_count > members ? (k->next_active + members) % k->active_count : 0;
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

/* Takes the tokens of one block in order, for as long as the drafts turn out right. Returns tokens gained. */
static uint32_t decide_tokens(struct verify *k, const struct engine_span *b)
{
    struct sequence *q = &k->seq[b->slot];
    const struct request_params *params = &table_gateway(&k->table, b->slot)->params;
    const struct tokenize_slot *t = table_tokenize(&k->table, b->slot);
    struct sample_out out;
    uint32_t gained = 0;

    for (uint32_t i = 0; i < b->rows && q->finish == FINISH_NONE; i++) {
        if (engine_pick(&k->engine, b, i, &out) != 0) {
            q->finish = FINISH_FAILED; /* NaN: the model is broken for this input; the others go on */
            stage_log(&k->stage, LOG_ERROR, "bad-logits", "slot=%u position=%u", b->slot, t->prompt_count + q->known);
            break;
        }
        table_output(&k->table, b->slot)[q->known] = out.token;
        if (params->sampling.want_logprobs) note_logprobs(k, b->slot, q->known, &out);
        q->known++;
        gained++;
        q->finish = engine_finish_by_token(&k->engine.generation, params, out.token);
        if (q->finish == FINISH_NONE && q->known >= t->max_output) q->finish = FINISH_LENGTH;
        if (i + 1 < b->rows && out.token != k->tokens[b->first_row + i + 1]) break;
    }
    return gained;
}

static void count_drafts(struct verify *k, const struct engine_span *b, uint32_t gained)
{
    struct verify_slot *v = table_verify(&k->table, b->slot);
    uint64_t *c = k->stage.status->counters;
    const uint32_t drafted = b->rows - 1, accepted = gained > drafted ? drafted : gained > 0 ? gained - 1 : 0;

    v->rounds++;
    v->drafted += drafted;
    v->accepted += accepted;
    for (uint32_t i = 0; i < drafted && i < DRAFT_POSITIONS_MAX; i++) {
        v->drafted_at[i]++;
        shm_store_relaxed(&c[VERIFY_DRAFTED_AT + i], c[VERIFY_DRAFTED_AT + i] + 1);
    }
    for (uint32_t i = 0; i < accepted && i < DRAFT_POSITIONS_MAX; i++) {
        v->accepted_at[i]++;
        shm_store_relaxed(&c[VERIFY_ACCEPTED_AT + i], c[VERIFY_ACCEPTED_AT + i] + 1);
    }
    if (k->seq[b->slot].pace.phase == PACE_THINKING) {
        stage_count(&k->stage, VERIFY_THINKING_ROUNDS, 1);
        stage_count(&k->stage, VERIFY_THINKING_DRAFTED, drafted);
        stage_count(&k->stage, VERIFY_THINKING_ACCEPTED, accepted);
    }
    stage_count(&k->stage, VERIFY_DRAFTED, drafted);
    stage_count(&k->stage, VERIFY_ACCEPTED, accepted);
}

static void decide_block(struct verify *k, const struct engine_span *b)
{
    const uint32_t gained = decide_tokens(k, b);

    count_drafts(k, b, gained);
    drafts_judge(k, b->slot);
    k->seq[b->slot].steps++;
    k->pending[k->pending_count++] = b->slot;
    if (k->seq[b->slot].committed == 0) k->first_tokens = true;
    if (k->seq[b->slot].finish) leave_work(k, b->slot); /* takes part no more; said with its last commit */
}

static void declare_busy(struct verify *k)
{
    uint32_t slots[ENGINE_ROWS_MAX], generations[ENGINE_ROWS_MAX];

    for (uint32_t i = 0; i < k->block_count; i++) {
        slots[i] = k->span[i].slot;
        generations[i] = k->seq[slots[i]].generation;
    }
    stage_busy(&k->stage, slots, generations, k->block_count);
}

static bool has_beginners(const struct verify *k)
{
    for (uint32_t i = 0; i < k->active_count; i++)
        if (k->seq[k->active[i]].known == 0) return true;
    return false;
}

/* Prefill's turn, if it asks for one. Those who wait for LM head and sampler alone go first; those whom it hands over meanwhile are with us behind it. False: it goes on beside the next step. */
static bool give_turn(struct verify *k)
{
    if (!turns_asked(&k->turns) || (turns_are_waited_for(&k->turns) && has_beginners(k))) return true;
    tell_decided(k);
    const bool ended = turns_give(&k->turns);
    take_messages(k);
    end_unwanted(k);
    return ended;
}

static void round_of(struct verify *k)
{
    const bool undisturbed = give_turn(k);

    if (k->active_count == 0) return;
    drafts_decide(k);
    if (k->drafting || k->first_tokens) tell_decided(k);
    if (k->drafting) drafts_wait(k);
    gather(k);
    declare_busy(k);
    uint64_t begin_ns = clock_ns();
    const bool behind = k->behind.coming && k->row_count > 1; /* then it is the only sequence */
    const uint32_t computed = engine_rows_computed(&k->engine, k->row_count);
    k->stepped_tag = behind ? k->behind.tag : 0;
    k->ahead_tag = 0;
    if (behind) engine_step_behind(&k->engine, k->span, k->tokens, k->behind.tag);
    else if (k->begins) engine_first(&k->engine, k->span, k->block_count, k->tokens);
    else engine_step(&k->engine, k->span, k->block_count, k->tokens, k->row_count);
    tell_decided(k); /* of the step before: the device is at work meanwhile */
    if (behind) begin_ns = drafts_await(k);
    engine_wait(&k->engine);
    if (behind) {
        k->span[0].rows = k->row_count = engine_scored(&k->engine, k->tokens);
        stage_count(&k->stage, VERIFY_HANDED, 1);
    }
    k->behind = (struct handed){0};
    if (k->begins) turns_note_running(&k->turns); /* it tells nothing of what steps cost */
    else if (undisturbed) turns_note_step(&k->turns, clock_ns() - begin_ns);
    if (!k->begins) pace_note_step(&k->pace, computed, clock_ns() - begin_ns);
    for (uint32_t i = 0; i < k->block_count; i++) decide_block(k, &k->span[i]);
    stage_idle(&k->stage);
    stage_count(&k->stage, VERIFY_ROUNDS, 1);
    stage_count(&k->stage, VERIFY_ROWS, k->row_count);
    stage_count(&k->stage, VERIFY_WORK_NS, clock_ns() - begin_ns);
}

static void attach(struct verify *k, int argc, char **argv)
{
    stage_attach(&k->stage, ROLE_VERIFY, "scores, samples and commits tokens", argc, argv);
    table_attach(&k->table, &k->stage);
    engine_open_forward(&k->engine, &k->stage, ENGINE_STEP, k->table.limits.slot_count, 0);
    k->draft_tokens = (uint32_t)wiring_u64(&k->stage.wiring, "draft.tokens", 7);
    k->draft_always = strcmp(wiring_text(&k->stage.wiring, "draft.when", "paying"), "always") == 0;
    k->seq = calloc(k->table.limits.slot_count, sizeof *k->seq);
    k->active = calloc(k->table.limits.slot_count, sizeof *k->active);
    k->asker = calloc(k->table.limits.slot_count, sizeof *k->asker);
    if (!k->seq || !k->active || !k->asker) stage_exit(&k->stage, EXIT_MISSING, "out of memory");
    pace_init(&k->pace);
    turns_open_verify(&k->turns, &k->stage);
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
        if (k.active_count > 0) {
            round_of(&k);
            continue;
        }
        tell_decided(&k);
        turns_note_idle(&k.turns);
        stage_wait(&k.stage, 1000);
    }
    tell_decided(&k);
    return 0;
}
