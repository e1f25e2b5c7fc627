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
#define PEEK_TOKENS 32u          /* how often one whose drafts do not pay is asked all the same, ... */
#define PEEK_DRAFTS 3u           /* ... for so many drafts, ... */
#define PEEK_SHARE 0.005         /* ... and for at most this share of the time */
#define SPARE_SHARE 3u           /* of the drafts of a lone sequence, which a round of the other kind scores: going without all of them cost 1 % of the speed */
#define EXPLORE_ROUNDS 192u      /* so many rounds of one kind, then one of the other (none is drafted for, or one sequence): what a row costs shows only where their number differs */
#define WAIT_GUESSES 2           /* a round waits for so many times what the drafter's steps took lately */
#define WAIT_ANSWER_QUARTERS 5u  /* or for so many quarters of what the answers to as many questions took, ... */
#define WAIT_ANSWER_MOST 8       /* ... which is believed up to so many times what the drafter says */
#define ANSWER_FORGET 1024      /* share by which it fades in a step that asks nobody: a drafter that was slow gets another chance, but each costs a round */
#define TIMED_NS 1000000000ull   /* a question that got no answer for so long gets none */
#define ANSWER_SHARE 8u          /* weight of a shorter one in what they take: 1 / this */
#define MILLION 1000000u
#define ANSWERED_NS 200000ull    /* the host's answer comes behind the device's */
#define BEGIN_NS_MAX 1000000000ull /* a step that does not begin even so: its wait tells why */
#define GUESS_NS_MAX 1000000000ull /* a drafter's figure is advice, too */

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

/* The number of answers to as many questions, by powers of two. */
static uint32_t size_of(uint32_t questions)
{
    uint32_t size = 0;

    while (size + 1 < ANSWER_SIZES && 1u << size < questions) size++;
    return size;
}

/* What the drafter says of its own speed; 0 where it says nothing. */
static double drafter_us(const struct verify *k, unsigned counter)
{
    const uint8_t *segment = k->stage.segment[ROLE_DRAFT];
    const struct stage_status *status = (const struct stage_status *)(segment + SEGMENT_STATUS_OFFSET);
    const uint64_t ns = segment ? shm_load_relaxed(&status->counters[counter]) : 0;

    return ns < GUESS_NS_MAX ? (double)ns * 1e-3 : GUESS_NS_MAX * 1e-3;
}

/* A drafter's time grows with the questions of a round: how long the last answers took, late ones too, says how long is worth waiting. */
static void note_time(struct verify *k, const struct ring_msg *msg)
{
    if (k->timed.asked_ns == 0 || msg->slot != k->timed.slot || msg->base < k->timed.base) return; /* a newer question of a slot takes the older one's place */
    uint64_t *answer = &k->answer_ns[k->timed.size], took = clock_ns() - k->timed.asked_ns;
    if (took > *answer) k->late = k->skip_waits = 0; /* now it is known how long they take: worth waiting again */
    *answer = took > *answer ? took : *answer - (*answer - took) / ANSWER_SHARE;
    k->seen_us[k->timed.size] = pace_seen_us(k->seen_us[k->timed.size], (double)took * 1e-3, drafter_us(k, DRAFT_ROUND_NS) + k->draft_tokens * drafter_us(k, DRAFT_STEP_NS), 1u << k->timed.size);
    k->timed.asked_ns = 0;
}

/* Drafts come over the device: those that were asked for, or those behind the step in hand. */
static void note_coming(struct verify *k, uint64_t tag)
{
    if (k->behind.tag && tag == k->behind.tag) k->behind.coming = true;
    else if (k->stepped_tag && tag == k->stepped_tag + 1) k->ahead_tag = tag;
}

static void take_proposal(struct verify *k, const struct ring_msg *msg)
{
    struct sequence *q;

    if (msg->count == RING_DRAFTS_COME) note_coming(k, msg->tokens[0] | (uint64_t)msg->tokens[1] << 32);
    if (msg->slot >= k->table.limits.slot_count || msg->count > RING_TOKENS_MAX) return; /* advice may be nonsense */
    q = &k->seq[msg->slot];
    if (q->generation == 0 || msg->generation != q->generation || msg->base > q->known) return;
    for (uint32_t i = 0; i < msg->count; i++)
        if (msg->tokens[i] >= k->engine.config.vocab) return;
    note_time(k, msg);
    q->draft_base = msg->base;
    q->draft_count = msg->count;
    q->judged = 0;
    memcpy(q->draft, msg->tokens, sizeof q->draft);
    pace_note_answer(&k->pace, &q->pace, msg->count > 0);
    if (q->asked != NOT_ASKED && msg->base >= q->asked) {
        q->asked = NOT_ASKED;
        k->behind.answered_ns = clock_ns();
    }
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

static enum pace_phase phase_of(const struct verify *k, uint32_t slot)
{
    return word_for(&table_detokenize(&k->table, slot)->thinking, k->seq[slot].generation) ? PACE_THINKING : PACE_ANSWER;
}

static double round_us(const struct verify *k, uint32_t questions)
{
    return pace_round_us(drafter_us(k, DRAFT_ROUND_NS), k->draft_tokens * drafter_us(k, DRAFT_STEP_NS), k->seen_us[size_of(questions)], questions);
}

static uint32_t rows_computed(const void *engine, uint32_t rows)
{
    return engine_rows_computed(engine, rows);
}

static struct sequence *in_turn(struct verify *k, uint32_t i)
{
    return &k->seq[k->active[(k->next_active + i) % k->active_count]]; /* in the order in which gather() takes them */
}

static void want(struct sequence *q, uint32_t most, float least, float worth)
{
    q->wants = most > 0;
    q->most = most;
    q->least = least;
    q->worth = worth;
}

static void explore(struct verify *k)
{
    want(in_turn(k, 0), PEEK_DRAFTS, 0, 0);
    k->drafting = k->exploring = true;
}

void drafts_decide(struct verify *k)
{
    const uint32_t count = k->active_count;

    k->drafting = k->exploring = k->sparing = false;
    k->longest_asked = 0;
    k->pace.guess_us = drafter_us(k, DRAFT_STEP_NS);
    k->pace.round_us = round_us(k, count);
    for (uint32_t i = 0; i < count; i++) {
        struct sequence *q = in_turn(k, i);
        want(q, 0, 0, 0);
        pace_turn(&k->pace, &q->pace, phase_of(k, (uint32_t)(q - k->seq)));
        k->asker[i] = (struct pace_asker){.pace = &q->pace};
    }
    if (!drafter_is_up(k)) k->timed.asked_ns = 0; /* its successor's first answer says nothing of how long answers take */
    if (count == 0 || k->draft_tokens == 0 || !drafter_is_up(k)) return;
    if (k->draft_always) {
        for (uint32_t i = 0; i < count; i++) want(in_turn(k, i), k->draft_tokens, 0, 0);
        k->drafting = true;
        return;
    }
    k->drafting = pace_ask(&k->pace, k->asker, count, k->engine.rows_max, k->draft_tokens, rows_computed, &k->engine) > 0;
    k->unexplored = k->drafting == k->drafted ? k->unexplored + 1 : 0;
    k->drafted = k->drafting;
    const bool otherwise = k->unexplored >= EXPLORE_ROUNDS;
    if (otherwise) k->unexplored = 0;
    k->sparing = k->drafting && otherwise && count == 1 && k->asker[0].most >= SPARE_SHARE;
    if (k->drafting && otherwise && !k->sparing) k->drafting = false;
    else if (!k->drafting && otherwise && count < k->engine.rows_max) explore(k);
    else if (k->drafting)
        for (uint32_t i = 0; i < count; i++) want(in_turn(k, i), k->sparing ? k->asker[i].most / SPARE_SHARE : k->asker[i].most, k->asker[i].least, k->asker[i].worth);
    if (k->drafting) return;
    k->seen_us[size_of(count)] -= k->seen_us[size_of(count)] / ANSWER_FORGET;
    stage_count(&k->stage, VERIFY_UNPAID, count);
}

void drafts_begin(struct verify *k, struct sequence *q)
{
    pace_begin(&k->pace, &q->pace, PACE_ANSWER);
    q->draft_base = q->asked = NOT_ASKED;
    q->quiet = PEEK_TOKENS / 2; /* short outputs are seen, too */
}

/* Most drafts that are wanted, and the least chances that one should have; all 0: the drafter may say what it has. tag: they may come over the device; 0: not. */
static void ask(struct verify *k, uint32_t slot, uint32_t most, float least, float worth, uint64_t tag)
{
    struct sequence *q = &k->seq[slot];
    const struct ring_msg msg = {.slot = slot, .generation = q->generation, .base = q->committed, .count = most,
                                 .tokens = {(uint32_t)(least * MILLION), (uint32_t)tag, (uint32_t)(tag >> 32), (uint32_t)(worth * MILLION)}};

    ring_publish(&k->stage.ring[RING_VERIFY_DRAFT], &msg);
    q->told_most = most;
}

/* Is no question: a drafter that goes ahead by itself hears of what is wanted from now on. */
static void say_what_is_wanted(struct verify *k, uint32_t slot)
{
    struct sequence *q = &k->seq[slot];
    const struct ring_msg msg = {.slot = slot, .generation = q->generation, .base = q->committed, .count = q->most,
                                 .tokens = {(uint32_t)(q->least * MILLION), 0, 0, (uint32_t)(q->worth * MILLION), RING_DRAFTS_WANTED}};

    if (q->most == q->told_most || k->sparing) return;
    ring_publish(&k->stage.ring[RING_VERIFY_DRAFT], &msg);
    q->told_most = q->most;
}

/* Tokens between two such questions: a drafter that computes is asked more rarely. */
static uint32_t peek_tokens(const struct verify *k)
{
    const double step = pace_step_us(&k->pace, k->active_count ? k->active_count : 1), drafts = k->pace.round_us + PEEK_DRAFTS * k->pace.guess_us;
    const double apart = step > 0 ? k->active_count * drafts / (step * PEEK_SHARE) : 0;

    return apart > PEEK_TOKENS ? apart < 1e6 ? (uint32_t)apart : 1000000u : PEEK_TOKENS;
}

void drafts_peek(struct verify *k, uint32_t slot)
{
    struct sequence *q = &k->seq[slot];

    if (k->draft_tokens == 0 || q->wants || k->active_count >= k->engine.rows_max || q->quiet < peek_tokens(k)) return;
    q->quiet = 0;
    ask(k, slot, PEEK_DRAFTS, 0, 0, 0);
}

/* A tag if the drafts of this question may come over the device: one that no question has had, whoever asked it. */
static uint64_t tag_for(const struct verify *k, uint32_t slot)
{
    const struct sequence *q = &k->seq[slot];
    const bool suspect = word_for(&table_launcher(&k->table, slot)->strikes, q->generation) != 0;

    return k->active_count == 1 && k->skip_waits == 0 && q->committed > 0 && !suspect && engine_hands_over(&k->engine, slot) ? clock_ns() : 0;
}

/* Does the drafter follow the last step already? Then its drafts come without a question, which would call that round off. */
static bool is_ahead(const struct verify *k, uint64_t tag) { return tag && k->ahead_tag && k->ahead_tag == k->stepped_tag + 1; }

static void ask_all(struct verify *k)
{
    uint32_t last = NOT_ASKED, asked = 0;

    k->behind = (struct handed){0};

    for (uint32_t i = 0; i < k->active_count; i++) {
        struct sequence *q = &k->seq[k->active[i]];
        if (!q->wants || q->draft_base == q->committed || q->asked == q->committed) continue;
        q->quiet = 0;
        q->asked = q->committed;
        if (q->most > k->longest_asked) k->longest_asked = q->most;
        k->behind = (struct handed){.tag = tag_for(k, k->active[i]), .slot = k->active[i], .asked_ns = clock_ns()};
        if (is_ahead(k, k->behind.tag)) {
            k->behind.tag = k->ahead_tag;
            k->behind.coming = true;
            say_what_is_wanted(k, k->active[i]);
            stage_count(&k->stage, VERIFY_AHEAD, 1);
            return;
        }
        ask(k, k->active[i], q->most, q->least, q->worth, k->behind.tag);
        last = k->active[i];
        asked++;
    }
    const uint64_t now = clock_ns();
    if (last == NOT_ASKED || (k->timed.asked_ns && now - k->timed.asked_ns < TIMED_NS)) return; /* one that is late is still awaited */
    k->timed.asked_ns = now;
    k->timed.slot = last;
    k->timed.base = k->seq[last].committed;
    k->timed.size = size_of(asked);
}

static uint32_t open_questions(const struct verify *k)
{
    uint32_t open = 0;

    for (uint32_t i = 0; i < k->active_count; i++) open += k->seq[k->active[i]].asked != NOT_ASKED;
    return open;
}

static bool all_answered(const struct verify *k) { return open_questions(k) == 0; }

/* What the drafter's own work of this round should take. */
static double guesses_us(const struct verify *k)
{
    return k->pace.round_us + k->longest_asked * k->pace.guess_us;
}

static uint64_t wait_limit_ns(const struct verify *k)
{
    const uint64_t share = (uint64_t)(pace_step_us(&k->pace, k->active_count) * 1000) / WAIT_STEP_SHARE;
    const uint64_t own = (uint64_t)((drafter_us(k, DRAFT_ROUND_NS) + k->longest_asked * k->pace.guess_us) * 1000), seen = k->answer_ns[size_of(open_questions(k))], most = own * WAIT_ANSWER_MOST;
    const uint64_t answer = (seen < most ? seen : most) * WAIT_ANSWER_QUARTERS / 4, said = own * WAIT_GUESSES;

    return (share && share < WAIT_NS ? share : WAIT_NS) + (answer > said ? answer : said);
}

static void note_in_time(struct verify *k, uint64_t asked_ns, uint64_t now)
{
    const uint64_t own = (uint64_t)(guesses_us(k) * 1000), waited = now - asked_ns;

    k->late = 0;
    pace_note_wait(&k->pace, waited > own ? waited - own : 0);
    stage_count(&k->stage, VERIFY_DRAFT_WAIT_NS, waited);
}

static void note_late(struct verify *k, uint64_t waited)
{
    k->late = k->late ? k->late * 2 : 1;
    if (k->late > LATE_SKIP_MAX) k->late = LATE_SKIP_MAX;
    k->skip_waits = k->late - 1;
    pace_note_wait(&k->pace, waited);
    stage_count(&k->stage, VERIFY_DRAFT_WAIT_NS, waited);
    stage_count(&k->stage, VERIFY_DRAFT_LATE, 1);
}

/* A live drafter answers every question, with nothing if it has nothing; a late one is waited for ever more rarely. */
void drafts_wait(struct verify *k)
{
    struct ring *const r = &k->stage.ring[RING_DRAFT_VERIFY];
    const uint64_t begin = clock_ns();

    ask_all(k);
    const uint64_t limit = wait_limit_ns(k), until = begin + limit, due = begin + k->answer_ns[size_of(open_questions(k))];
    k->behind.until_ns = until;
    drafts_take(k);
    if (!drafter_is_up(k) || all_answered(k) || k->behind.coming) return;
    if (k->skip_waits > 0) {
        k->skip_waits--;
        return;
    }
    for (uint64_t now = begin; now < until; now = clock_ns()) {
        if (k->behind.tag || k->stage.spin_ns == 0) ring_wait(&r, 1, until - now, k->stage.spin_ns > limit ? limit : k->stage.spin_ns); /* with a tag the answer is there at once: they come */
        else ring_wait_due(&r, 1, due, until);
        drafts_take(k);
        if (k->behind.coming) return;
        if (!all_answered(k)) continue;
        note_in_time(k, begin, clock_ns());
        return;
    }
    note_late(k, limit);
    k->behind = (struct handed){0};
}

uint64_t drafts_await(struct verify *k)
{
    bool released = false;
    uint64_t now = clock_ns();

    while (!engine_begun(&k->engine) && now < k->behind.until_ns + BEGIN_NS_MAX) {
        for (int i = 0; i < 64; i++) shm_pause();
        drafts_take(k);
        now = clock_ns();
        const bool failed = k->behind.answered_ns && now > k->behind.answered_ns + ANSWERED_NS; /* a round that gave nothing leaves nothing on the device */
        if (released || (now < k->behind.until_ns && drafter_is_up(k) && !failed)) continue;
        engine_release(&k->engine);
        released = true;
    }
    if (released) note_late(k, now - k->behind.asked_ns);
    else note_in_time(k, k->behind.asked_ns, now);
    return now;
}
