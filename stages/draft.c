/* stages/draft.c - proposes tokens: by looking the text up in itself, or with a neural drafter beside the model.
 *
 * Reads    tokenize slots (prompt), verify slots (committed tokens), prefill slots (pages), gateway slots (parameters), detokenize slots (thinking?);
 *          with a neural drafter: its checkpoint, the KV arena, the state rows
 * Writes   nothing but its ring, and counter DRAFT_SOURCES: which layers' outputs it wants to read; a proposal is advice
 * Rings    in: verify-draft; out: draft-verify (every message is answered, with no tokens if there is no guess)
 * Owns     per sequence its newest guesses, until the text shows what they were worth; learned chances. All of it can be lost
 * Fails    without harm: a missing, dead, slow or wrong drafter changes how fast text appears, never which text. A drafter's checkpoint that
 *          cannot be used: exit 100 with the reason.
 *
 * All questions that wait are answered in one round. For each the better of two guesses is taken: what followed the last time these tokens stood
 * in the text, which costs nothing, or the neural drafter's. Which is better, and how many tokens are worth sending, is learned (draft/chances.c).
 * A lone sequence whose drafts went to verify's step over the device is drafted for ahead: the next round is in the GPU's queue before that step ends, and begins behind it, whoever
 * sleeps. A question that comes all the same is another matter: the round that waits is called off. */
#include "stages/draft/draft.h"

#include "shm/clock.h"

#include <stdlib.h>
#include <string.h>

#define ROWS_MAX 64u            /* questions of one round */
#define STEP_SHARE 16u          /* weight of a slower round in what a step costs: 1 / this */
#define MILLIONTHS 1e-6f
#define DUE_MAX_NS 20000000ull  /* questions further apart are not waited for awake */
#define APART_SHARE 4u          /* weight of the newest: 1 / this */
#define AHEAD_LOOK_NS 200000ull /* between two looks whether a round that was begun ahead is over: the next must be in the queue before a step ends */
#define CALL_OFF_NS 5000000000ull /* a round that was called off and does not end: the launcher shall see that nothing beats */

static_assert(ROWS_MAX <= STATUS_BUSY_MAX, "all questions of a round can be declared");

struct job {                    /* one question of the round */
    uint32_t slot, generation;
    uint32_t most;              /* tokens worth scoring */
    float least, worth;         /* chances below which a token is not worth drafting, and scoring when it has been drafted */
    bool suspect, thinking;
    float chance;               /* of the whole guess so far */
    uint64_t tag;               /* of the hand-over on the device that verify is ready for; 0: none */
    struct text text;
    struct ring_msg answer;
};

struct draft {
    struct stage stage;
    struct table table;
    uint32_t tokens_max;
    bool neural;
    struct engine_draft engine;
    struct chances chances;
    struct followed *seq;       /* [slot_count] */
    struct job job[ROWS_MAX];
    uint32_t job_count;
    /* the neural part of a round */
    struct engine_draft_question question[ROWS_MAX];
    struct engine_draft_answer answer[ROWS_MAX];
    struct job *asker[ROWS_MAX];
    uint32_t asked;
    struct { bool is_armed; struct job job; } ahead; /* a round that waits for verify's step of tag job.tag - 1, or runs; its drafts have job.tag */
    uint64_t answered_ns, apart_ns; /* when the last questions were answered, and how long after such a moment the next ones come */
};

/* ---- sequences ------------------------------------------------------------------------- */

static bool copy_pages(uint32_t *to, const uint32_t *from, uint32_t count, uint32_t count_max, uint32_t pool)
{
    if (count > count_max) return false;
    memcpy(to, from, count * sizeof *to);
    for (uint32_t i = 0; i < count; i++)
        if (to[i] >= pool) return false;
    return true;
}

/* Tells the neural drafter where the sequence's keys are. The pages are copied and checked: they may be another's in a moment. */
static void admit(struct draft *k, uint32_t slot)
{
    struct followed *f = &k->seq[slot];
    const struct prefill_slot *p = table_prefill(&k->table, slot);
    const struct table_limits *l = &k->table.limits;
    struct engine_sequence seq = {.generation = f->generation, .full_pages = f->full_pages, .sliding_pages = f->sliding_pages, .sampling = &f->sampling};

    if (!word_for(&p->pages, f->generation)) return;
    seq.full_page_count = p->full_page_count;
    seq.sliding_page_count = p->sliding_page_count;
    if (!copy_pages(f->full_pages, table_full_pages(&k->table, slot), seq.full_page_count, l->full_pages_max, k->engine.target.geometry.full_page_count)) return;
    if (!copy_pages(f->sliding_pages, table_sliding_pages(&k->table, slot), seq.sliding_page_count, l->sliding_pages_max, k->engine.target.geometry.sliding_page_count)) return;
    __atomic_thread_fence(__ATOMIC_ACQUIRE); /* the copies before the second look */
    if (!word_for(&p->pages, f->generation)) return;
    engine_draft_admit(&k->engine, slot, &seq);
    f->has_pages = true;
}

static void follow(struct draft *k, const struct job *j)
{
    struct followed *f = &k->seq[j->slot];
    const struct tokenize_slot *t = table_tokenize(&k->table, j->slot);
    const char *field;

    if (f->generation != j->generation) {
        if (f->has_pages) engine_draft_leave(&k->engine, j->slot);
        penalty_counts_close(&f->counts);
        *f = (struct followed){.generation = j->generation, .full_pages = f->full_pages, .sliding_pages = f->sliding_pages,
                               .sampling = table_gateway(&k->table, j->slot)->params.sampling};
        f->can_sample = sampling_params_check(&f->sampling, k->neural ? k->engine.target.config.vocab : UINT32_MAX, &field) == 0;
        if (k->neural && f->can_sample && sampling_params_need_counts(&f->sampling) && penalty_counts_open(&f->counts, t->prompt_count + t->max_output) != 0)
            f->can_sample = false;
        f->sampling.want_logprobs = 0;
    }
    if (k->neural && !f->has_pages) admit(k, j->slot);
}

/* The penalties count the committed text; not the drafts of the round, which would have to be taken out again. */
static const struct penalty_counts *count_text(struct followed *f, const struct text *t)
{
    if (!f->counts.entry) return NULL;
    for (; f->counted < t->count; f->counted++)
        if (penalty_counts_add(&f->counts, f->counted < t->prompt_count ? t->prompt[f->counted] : t->output[f->counted - t->prompt_count], f->counted >= t->prompt_count) != 0) break;
    return &f->counts;
}

/* ---- a round --------------------------------------------------------------------------- */

static uint32_t most_of(const struct draft *k, const struct ring_msg *in) { return in->count && in->count < k->tokens_max ? in->count : k->tokens_max; }

/* A question becomes a job; false when it is about nobody. */
static bool take_up(struct draft *k, const struct ring_msg *in, struct job *j)
{
    const uint32_t g = in->slot < k->table.limits.slot_count ? slot_live(&k->table, in->slot) : 0;

    if (!g || g != in->generation) return false;
    const struct tokenize_slot *p = table_tokenize(&k->table, in->slot);
    const uint32_t prompt_count = p->prompt_count, committed = word_for(&table_verify(&k->table, in->slot)->commit, g);
    if (prompt_count > k->table.limits.context_max || committed > k->table.limits.context_max - prompt_count) return false;
    *j = (struct job){.slot = in->slot, .generation = g, .most = most_of(k, in), .least = (float)in->tokens[0] * MILLIONTHS, .worth = (float)in->tokens[3] * MILLIONTHS,
                      .tag = in->tokens[1] | (uint64_t)in->tokens[2] << 32, .suspect = word_for(&table_launcher(&k->table, in->slot)->strikes, g) != 0, .thinking = word_for(&table_detokenize(&k->table, in->slot)->thinking, g) != 0, .chance = 1,
                      .text = {.prompt = table_prompt(&k->table, in->slot), .output = table_output(&k->table, in->slot), .prompt_count = prompt_count, .count = prompt_count + committed},
                      .answer = {.slot = in->slot, .generation = g, .base = committed}};
    return true;
}

/* Is one more token behind these worth it? The engine asks after each step. */
static bool go_on(void *context, uint32_t index, const struct engine_draft_answer *so_far)
{
    struct draft *k = context;
    struct job *j = k->asker[index];
    const struct chance_table *c = chances_of(&k->chances, &k->seq[j->slot].sampling, j->thinking, GUESS_NEURAL);
    const uint32_t newest = so_far->count - 1;

    if (engine_finish_by_token(&k->engine.target.generation, &table_gateway(&k->table, j->slot)->params, so_far->token[newest]) != FINISH_NONE) return false;
    j->chance *= c->rate[chance_class(so_far->confidence[newest])];
    return j->chance >= j->least;
}

/* Judges what was guessed before, and looks the text up; returns how often such a guess is right, 0: there is none. */
static float look_up(struct draft *k, struct job *j)
{
    struct followed *f = &k->seq[j->slot];

    for (int s = 0; s < GUESS_SOURCES; s++)
        if (f->guess[s].count) chances_judge(chances_of(&k->chances, &f->sampling, j->thinking, (enum guess_source)s), &f->guess[s], &j->text);
    const uint32_t matched = lookup_guess(&j->text, j->most, &f->guess[GUESS_LOOKUP]);
    return matched ? chances_of(&k->chances, &f->sampling, j->thinking, GUESS_LOOKUP)->rate[matched] : 0;
}

/* Looks the text up, and asks the neural drafter if that is likely to know better. */
static void plan(struct draft *k, struct job *j)
{
    struct followed *f = &k->seq[j->slot];
    struct guess *found = &f->guess[GUESS_LOOKUP];
    const uint32_t committed = j->answer.base;

    follow(k, j);
    const float rate = look_up(k, j);
    const struct chance_table *neural = chances_of(&k->chances, &f->sampling, j->thinking, GUESS_NEURAL);
    const bool can_ask = k->neural && f->has_pages && f->can_sample && committed > 0;
    if (found->count && !(can_ask && neural->all > rate)) {
        memcpy(j->answer.tokens, found->token, sizeof j->answer.tokens);
        j->answer.count = found->count;
        return;
    }
    if (!can_ask) return;
    k->question[k->asked] = (struct engine_draft_question){.slot = j->slot, .token = j->text.output[committed - 1], .position = j->text.count - 1,
                                                           .tokens_max = j->most < k->engine.tokens_max ? j->most : k->engine.tokens_max, .sampling = &f->sampling, .counts = count_text(f, &j->text)};
    k->asker[k->asked++] = j;
}

/* What shall be proposed in place of drafts behind the text and `later` tokens more. */
static void force(struct cuda_handover *hand, const struct text *t, uint32_t later)
{
    for (bool all = true; all && hand->instead_count < CUDA_HANDOVER_INSTEAD_MAX;) {
        struct engine_draft_answer forced = {.count = CUDA_HANDOVER_TOKENS_MAX};
        memset(forced.token, 0xff, sizeof forced.token);
        draft_force_hook(t, later + hand->instead_count, &forced);
        for (uint32_t i = 0; i < forced.count && (all = forced.token[i] != UINT32_MAX); i++) hand->instead[hand->instead_count++] = forced.token[i];
    }
}

/* What the next round of the engine, for this job, shall leave on the device. */
static void hand_over(struct draft *k, const struct job *j, bool ahead)
{
    const struct chance_table *c = chances_of(&k->chances, &k->seq[j->slot].sampling, j->thinking, GUESS_NEURAL);
    struct cuda_handover hand = {.tag = j->tag, .least = j->worth};

    memcpy(hand.rate, c->rate, sizeof hand.rate);
    if (draft_force_hook) {
        if (ahead) hand.instead_position = j->text.count + 1; /* the step that it follows samples one token at least */
        force(&hand, &j->text, ahead);
    }
    engine_draft_hand_over(&k->engine, &hand);
}

/* Verify can begin a step that waits for them. */
static void say_they_come(struct draft *k, const struct job *j)
{
    const struct ring_msg coming = {.slot = j->slot, .generation = j->generation, .base = j->answer.base, .count = RING_DRAFTS_COME, .tokens = {(uint32_t)j->tag, (uint32_t)(j->tag >> 32)}};

    ring_publish(&k->stage.ring[RING_DRAFT_VERIFY], &coming);
}

/* A neural answer: all of it is remembered for judging, what is likely enough is sent. */
static void settle(struct draft *k, uint32_t index)
{
    struct job *j = k->asker[index];
    const struct engine_draft_answer *a = &k->answer[index];
    struct followed *f = &k->seq[j->slot];
    struct guess *g = &f->guess[GUESS_NEURAL];
    const struct chance_table *c = chances_of(&k->chances, &f->sampling, j->thinking, GUESS_NEURAL);
    float chance = 1;

    g->base = j->answer.base;
    g->count = a->count;
    for (uint32_t i = 0; i < a->count; i++) {
        g->token[i] = a->token[i];
        g->class[i] = chance_class(a->confidence[i]);
        chance *= c->rate[g->class[i]];
        if (chance >= j->worth && j->answer.count == i) j->answer.tokens[j->answer.count++] = a->token[i];
    }
}

static uint32_t longest(const struct draft *k)
{
    uint32_t most = 0;

    for (uint32_t i = 0; i < k->asked; i++)
        if (k->answer[i].count > most) most = k->answer[i].count;
    return most;
}

/* A mean of the newest; less is believed sooner than more: a round may meet cold memory, or a neighbour on its core. */
static void fade(uint64_t *word, uint64_t now)
{
    const uint64_t old = *word;

    shm_store_relaxed(word, old == 0 ? now : now < old ? (old + now) / 2 : old + (now - old) / STEP_SHARE);
}

/* The answers are there: takes them up and counts. */
static void settle_all(struct draft *k)
{
    for (uint32_t i = 0; i < k->asked; i++) {
        if (draft_force_hook) draft_force_hook(&k->asker[i]->text, 0, &k->answer[i]);
        settle(k, i);
    }
    stage_count(&k->stage, DRAFT_NEURAL, k->asked);
    stage_count(&k->stage, DRAFT_STEPS, longest(k));
}

/* What rounds take: all of the last one. */
static void note_round(struct draft *k, uint64_t all)
{
    uint64_t *c = k->stage.status->counters;
    const uint64_t steps = longest(k), fixed = k->engine.fixed_ns < all ? k->engine.fixed_ns : all;

    if (steps == 0) return;
    fade(&c[DRAFT_STEP_NS], (all - fixed) / steps);
    fade(&c[DRAFT_ROUND_NS], fixed);
}

/* False: there is no advice. */
static bool ask_neural(struct draft *k)
{
    const uint64_t begin = clock_ns();

    if (k->asked == 0) return false;
    const int rc = engine_draft_round(&k->engine, k->question, k->asked, k->answer, go_on, k);
    if (rc != 0) { /* a sequence that changed hands under us: its neighbours are asked again soon */
        stage_count(&k->stage, DRAFT_FAILED, 1);
        return false;
    }
    settle_all(k);
    note_round(k, clock_ns() - begin);
    return true;
}

/* ---- rounds ahead: of a lone sequence whose last drafts went to verify's step over the device ---- */

/* j: the job that these drafts were for. The question's own token and position are not the round's: verify's step leaves them on the device. */
static void go_ahead(struct draft *k, const struct job *j)
{
    struct job *next = &k->ahead.job;
    const struct followed *f = &k->seq[j->slot];

    if (!k->engine.goes_ahead || j->suspect) return;
    *next = *j;
    next->tag = j->tag + 1;
    const struct engine_draft_question q = {.slot = j->slot, .token = j->text.output[j->answer.base - 1], .position = j->text.count - 1,
                                            .tokens_max = j->most < k->engine.tokens_max ? j->most : k->engine.tokens_max, .sampling = &f->sampling};
    stage_busy(&k->stage, &next->slot, &next->generation, 1);
    hand_over(k, next, true);
    k->ahead.is_armed = engine_draft_ahead(&k->engine, &q, j->tag) == 0;
    if (k->ahead.is_armed) say_they_come(k, next);
    else stage_idle(&k->stage);
}

/* Called off: somebody asks, or the sequence has ended. */
static void call_off(struct draft *k)
{
    const uint64_t begin = clock_ns();

    if (!k->ahead.is_armed) return;
    engine_draft_skip(&k->engine);
    while (engine_draft_ahead_done(&k->engine, &k->answer[0]) == 0)
        if (clock_ns() - begin < CALL_OFF_NS) stage_beat(&k->stage);
    k->ahead.is_armed = false;
    stage_idle(&k->stage);
}

/* The text up to the token that the round followed; false: it is not committed (verify has died), or nobody's any more. */
static bool catch_up(struct draft *k, struct job *j, uint32_t position)
{
    const uint32_t committed = word_for(&table_verify(&k->table, j->slot)->commit, j->generation), prompt_count = j->text.prompt_count;

    if (slot_live(&k->table, j->slot) != j->generation || position < prompt_count || position - prompt_count >= committed) return false;
    j->text.count = position + 1;
    j->chance = 1;
    j->thinking = word_for(&table_detokenize(&k->table, j->slot)->thinking, j->generation) != 0;
    j->suspect = word_for(&table_launcher(&k->table, j->slot)->strikes, j->generation) != 0;
    j->answer = (struct ring_msg){.slot = j->slot, .generation = j->generation, .base = position + 1 - prompt_count};
    return true;
}

/* Answers as if it had been asked, and goes on ahead unless the text repeats itself. */
static void answer_ahead(struct draft *k, const struct engine_draft_answer *a)
{
    struct job *j = &k->job[0];

    *j = k->ahead.job;
    stage_idle(&k->stage);
    if (!catch_up(k, j, a->position)) return;
    const float rate = look_up(k, j);
    k->asker[0] = j;
    k->asked = 1;
    settle_all(k);
    note_round(k, a->ns);
    ring_publish(&k->stage.ring[RING_DRAFT_VERIFY], &j->answer);
    stage_count(&k->stage, DRAFT_TOKENS, j->answer.count);
    stage_count(&k->stage, DRAFT_PROPOSALS, 1);
    stage_count(&k->stage, DRAFT_WORK_NS, a->ns);
    k->answered_ns = clock_ns();
    if (chances_of(&k->chances, &k->seq[j->slot].sampling, j->thinking, GUESS_NEURAL)->all > rate) go_ahead(k, j);
}

static void await_ahead(struct draft *k)
{
    const struct job *j = &k->ahead.job;
    const int rc = engine_draft_ahead_done(&k->engine, &k->answer[0]);

    if (rc == 0) {
        if (slot_live(&k->table, j->slot) != j->generation) call_off(k);
        else ring_wait(k->stage.in, k->stage.in_count, AHEAD_LOOK_NS, 0);
        stage_beat(&k->stage);
        return;
    }
    k->ahead.is_armed = false;
    if (rc > 0 && k->answer[0].position) {
        answer_ahead(k, &k->answer[0]);
        return;
    }
    stage_idle(&k->stage);
    if (rc > 0) return; /* called off by nobody and told nothing: verify has been replaced, and will ask */
    const struct ring_msg none = {.slot = j->slot, .generation = j->generation, .base = word_for(&table_verify(&k->table, j->slot)->commit, j->generation)};
    ring_publish(&k->stage.ring[RING_DRAFT_VERIFY], &none);
    stage_count(&k->stage, DRAFT_FAILED, 1);
}

static void run_jobs(struct draft *k, struct job *jobs, uint32_t count)
{
    uint32_t slots[ROWS_MAX], generations[ROWS_MAX], busy = 0;
    const uint64_t begin = clock_ns();

    for (uint32_t i = 0; i < count; i++) {
        if (word_for(&table_launcher(&k->table, jobs[i].slot)->verdict, jobs[i].generation)) continue; /* answered, not touched */
        slots[busy] = jobs[i].slot;
        generations[busy++] = jobs[i].generation;
    }
    stage_busy(&k->stage, slots, generations, busy);
    k->asked = 0;
    for (uint32_t i = 0; i < count; i++)
        if (!word_for(&table_launcher(&k->table, jobs[i].slot)->verdict, jobs[i].generation)) plan(k, &jobs[i]);
    const bool handed = count == 1 && k->asked == 1 && jobs[0].tag && k->engine.hands_over;
    if (handed) {
        hand_over(k, &jobs[0], false);
        say_they_come(k, &jobs[0]);
    }
    const bool answered = ask_neural(k);
    for (uint32_t i = 0; i < count; i++) {
        ring_publish(&k->stage.ring[RING_DRAFT_VERIFY], &jobs[i].answer);
        stage_count(&k->stage, DRAFT_TOKENS, jobs[i].answer.count);
    }
    stage_idle(&k->stage);
    stage_count(&k->stage, DRAFT_PROPOSALS, count);
    stage_count(&k->stage, DRAFT_WORK_NS, clock_ns() - begin);
    if (handed && answered) go_ahead(k, &jobs[0]);
}

/* Not a question: what the rounds behind the one that waits shall bring. */
static void hear_what_is_wanted(struct draft *k, const struct ring_msg *msg)
{
    struct job *j = &k->ahead.job;

    if (!k->ahead.is_armed || j->slot != msg->slot || j->generation != msg->generation) return;
    j->most = most_of(k, msg);
    j->least = (float)msg->tokens[0] * MILLIONTHS;
    j->worth = (float)msg->tokens[3] * MILLIONTHS;
}

/* Takes what waits; of several questions about one slot the newest counts. */
static void take_questions(struct draft *k)
{
    struct ring *const in = &k->stage.ring[RING_VERIFY_DRAFT];
    struct ring_msg msg;
    struct job j;

    k->job_count = 0;
    ring_overran(in); /* a lost question is a round without drafts */
    while (k->job_count < ROWS_MAX && ring_take(in, &msg) == 1) {
        if (msg.tokens[4] == RING_DRAFTS_WANTED) {
            hear_what_is_wanted(k, &msg);
            continue;
        }
        if (!take_up(k, &msg, &j)) continue;
        uint32_t at = 0;
        while (at < k->job_count && k->job[at].slot != j.slot) at++;
        k->job[at] = j;
        if (at == k->job_count) k->job_count++;
    }
    if (k->job_count == 0 || k->answered_ns == 0) return;
    const uint64_t apart = clock_ns() - k->answered_ns;
    k->apart_ns = k->apart_ns ? k->apart_ns - k->apart_ns / APART_SHARE + apart / APART_SHARE : apart;
}

/* Suspects are run alone, so that nobody else is accused with them. */
static void answer_all(struct draft *k)
{
    uint32_t plain = 0;

    for (uint32_t i = 0; i < k->job_count; i++) {
        if (k->job[i].suspect) {
            run_jobs(k, &k->job[i], 1);
            continue;
        }
        k->job[plain++] = k->job[i];
    }
    if (plain) run_jobs(k, k->job, plain);
    k->answered_ns = clock_ns();
}

/* Questions come a step of verify apart: when the next one is due we are awake. */
static void await_questions(struct draft *k)
{
    const struct stage *s = &k->stage;

    if (s->spin_ns && k->apart_ns && k->apart_ns < DUE_MAX_NS && clock_ns() < k->answered_ns + DUE_MAX_NS) ring_wait_due(s->in, s->in_count, k->answered_ns + k->apart_ns, k->answered_ns + DUE_MAX_NS);
    else stage_wait(&k->stage, 1000);
}

static void attach(struct draft *k, int argc, char **argv)
{
    stage_attach(&k->stage, ROLE_DRAFT, "proposes tokens", argc, argv);
    table_attach(&k->table, &k->stage);
    const struct table_limits *l = &k->table.limits;
    k->tokens_max = (uint32_t)wiring_u64(&k->stage.wiring, "draft.tokens", 7);
    if (k->tokens_max > RING_TOKENS_MAX) k->tokens_max = RING_TOKENS_MAX;
    k->neural = strcmp(wiring_text(&k->stage.wiring, "draft.kind", "ngram"), "checkpoint") == 0;
    shm_store_release(&k->stage.status->counters[DRAFT_SOURCES], 0); /* a predecessor may have wanted some */
    if (k->neural) engine_draft_open(&k->engine, &k->stage, l->slot_count, ROWS_MAX);
    k->seq = calloc(l->slot_count, sizeof *k->seq);
    uint32_t *pages = k->neural ? malloc(sizeof *pages * l->slot_count * ((uint64_t)l->full_pages_max + l->sliding_pages_max)) : NULL;
    if (!k->seq || (k->neural && !pages)) stage_exit(&k->stage, EXIT_MISSING, "out of memory");
    for (uint32_t s = 0; s < l->slot_count && pages; s++) {
        k->seq[s].full_pages = pages + (uint64_t)s * (l->full_pages_max + l->sliding_pages_max);
        k->seq[s].sliding_pages = k->seq[s].full_pages + l->full_pages_max;
    }
    chances_init(&k->chances);
    k->stage.status->counters[DRAFT_KIND] = k->neural ? k->engine.kind : DRAFT_KIND_NGRAM;
    k->stage.status->counters[DRAFT_STEP_NS] = k->stage.status->counters[DRAFT_ROUND_NS] = 0;
}

int main(int argc, char **argv)
{
    static struct draft k;

    attach(&k, argc, argv);
    stage_ready(&k.stage);
    while (stage_running(&k.stage)) {
        take_questions(&k);
        if (k.job_count) {
            call_off(&k);
            answer_all(&k);
        } else if (k.ahead.is_armed) await_ahead(&k);
        else await_questions(&k);
    }
    return 0;
}
