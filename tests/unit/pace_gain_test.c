/* tests/unit/pace_gain_test.c - how many tokens a second the rules of model/pace.h make, against no drafting and against all drafts always: on
 * made-up machines, where a step takes base + row * rows and a drafter round + guess * longest, with noise; 1 to 128 streams, good and bad drafters.
 *
 * Asserted: the rules are nowhere more than 2 % under the better of the two. The loop below does what stages/verify does in a round: ask, wait, share the rows, score, judge,
 * look again now and then. It prints its table with PACE_GAIN=1 in the environment; PACE_SEED=N
 * takes other luck. */
#include "model/pace.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define STREAMS_MAX 128u
#define ROWS 64u
#define DRAFTS 7u
#define PEEK_TOKENS 32u               /* as in stages/verify/drafts.c */
#define PEEK_DRAFTS 3u
#define EXPLORE_ROUNDS 192u
#define WARM_UP 3000u                 /* rounds that are not counted: what a server learns once */
#define ROUNDS 4000u
#define UNDER_MOST 0.02

struct machine {
    const char *name;
    double base, row, round, guess, hand_over; /* microseconds */
};

static const struct machine machines[] = {
    {"GPU, 12B, MTP", 3250, 45, 30, 95, 10},
    {"GPU, 12B, DSpark", 3250, 45, 700, 15, 10},
    {"GPU, 12B, n-gram", 3250, 45, 0, 0, 8},
    {"two cores, demo, MTP", 350, 310, 10, 100, 40},
    {"two cores, demo, n-gram", 350, 310, 0, 0, 40},
    {"sixteen cores, demo, MTP", 250, 60, 10, 50, 20},
    {"slow drafter", 3250, 45, 100, 1500, 10},
};

enum way { NONE, ALWAYS, PAYING };

struct stream {
    struct pace_sequence pace;
    uint32_t quiet, drafts;           /* of the proposal in hand */
    double accept;                    /* the truth */
};

struct world {
    const struct machine *m;
    struct pace pace;
    struct stream s[STREAMS_MAX];
    struct pace_asker asker[STREAMS_MAX];
    uint32_t streams, next, unexplored;
    bool drafted;
    uint64_t random;
};

static double chance(struct world *w)
{
    w->random = w->random * 6364136223846793005ull + 1442695040888963407ull;
    return (double)(w->random >> 11) * 0x1p-53;
}

static double noisy(struct world *w, double us) { return us * (0.9 + 0.2 * chance(w)); }

static uint32_t as_given(const void *context, uint32_t rows)
{
    (void)context;
    return rows;
}

static struct stream *in_turn(struct world *w, uint32_t i) { return &w->s[(w->next + i) % w->streams]; }

static uint32_t right_of(struct world *w, const struct stream *s, uint32_t drafts)
{
    uint32_t right = 0;

    while (right < drafts && chance(w) < s->accept) right++;
    return right;
}

/* Whom to ask for how much; the time that asking and waiting take. */
static double ask(struct world *w, enum way way, bool *exploring)
{
    uint32_t asked = 0, longest = 0;

    *exploring = false;
    w->pace.guess_us = w->m->guess;
    w->pace.round_us = w->m->round;
    for (uint32_t i = 0; i < w->streams; i++) w->asker[i] = (struct pace_asker){.pace = &in_turn(w, i)->pace, .most = way == ALWAYS ? DRAFTS : 0};
    if (way == ALWAYS) asked = w->streams;
    if (way == PAYING) {
        asked = pace_ask(&w->pace, w->asker, w->streams, ROWS, DRAFTS, as_given, NULL);
        w->unexplored = (asked > 0) == w->drafted ? w->unexplored + 1 : 0;
        w->drafted = asked > 0;
        if (w->unexplored >= EXPLORE_ROUNDS) {
            *exploring = w->unexplored >= EXPLORE_ROUNDS && asked == 0 && w->streams < ROWS;
            for (uint32_t i = 0; i < w->streams; i++) w->asker[i].most = 0;
            w->asker[0].most = *exploring ? PEEK_DRAFTS : 0;
            asked = *exploring;
            w->unexplored = 0;
        }
    }
    for (uint32_t i = 0; i < w->streams; i++) {
        in_turn(w, i)->drafts = w->asker[i].most;
        if (w->asker[i].most > longest) longest = w->asker[i].most;
        if (w->asker[i].most) pace_note_answer(&w->pace, &in_turn(w, i)->pace, true);
    }
    if (asked == 0) return 0;
    const double hand_over = noisy(w, w->m->hand_over);
    pace_note_wait(&w->pace, (uint64_t)(1000 * hand_over));
    return hand_over + noisy(w, w->m->round + longest * w->m->guess);
}

/* Sequences whose drafts do not pay are looked at now and then: costs the drafter's time, which others have meanwhile. */
static double peek(struct world *w, struct stream *s, uint32_t tokens)
{
    const double step = pace_step_us(&w->pace, w->streams), drafts = w->m->round + PEEK_DRAFTS * w->m->guess, apart = step > 0 ? w->streams * drafts / (step * 0.005) : 0;

    s->quiet += tokens;
    if (w->streams >= ROWS || s->quiet < (apart > PEEK_TOKENS ? apart : PEEK_TOKENS)) return 0;
    s->quiet = 0;
    const uint32_t right = right_of(w, s, PEEK_DRAFTS);
    pace_note_answer(&w->pace, &s->pace, true);
    pace_note_judged(&w->pace, &s->pace, right, right < PEEK_DRAFTS);
    return drafts;
}

/* Tokens of one round; adds its time. */
static uint32_t round_of(struct world *w, enum way way, double *us)
{
    struct pace_member member[ROWS];
    const uint32_t members = w->streams < ROWS ? w->streams : ROWS;
    uint32_t tokens = 0;
    bool exploring;

    *us += ask(w, way, &exploring);
    for (uint32_t i = 0; i < members; i++) member[i] = (struct pace_member){.accept = in_turn(w, i)->pace.accept, .available = in_turn(w, i)->drafts};
    const uint32_t rows = pace_share(way == ALWAYS || exploring ? NULL : &w->pace, member, members, ROWS, as_given, NULL);
    const double step = noisy(w, w->m->base + w->m->row * rows);
    pace_note_step(&w->pace, rows, (uint64_t)(1000 * step));
    *us += step;
    for (uint32_t i = 0; i < members; i++) {
        struct stream *s = in_turn(w, i);
        const uint32_t right = right_of(w, s, member[i].taken);
        tokens += 1 + right;
        if (member[i].taken) pace_note_judged(&w->pace, &s->pace, right, right < member[i].taken);
        if (way == PAYING && !s->drafts) *us += peek(w, s, 1);
        else s->quiet = 0;
    }
    w->next = w->streams > members ? (w->next + members) % w->streams : 0;
    return tokens;
}

/* Tokens a second. accept: of half the streams; other: of the other half. */
static double rate(const struct machine *m, uint32_t streams, double accept, double other, enum way way)
{
    static struct world w;
    double us = 0;
    uint64_t tokens = 0;

    memset(&w, 0, sizeof w);
    w.m = m;
    w.streams = streams;
    w.random = getenv("PACE_SEED") ? strtoull(getenv("PACE_SEED"), NULL, 10) : 1;
    pace_init(&w.pace);
    for (uint32_t i = 0; i < streams; i++) {
        pace_begin(&w.pace, &w.s[i].pace, PACE_ANSWER);
        w.s[i].accept = i % 2 ? other : accept;
    }
    for (uint32_t r = 0; r < WARM_UP + ROUNDS; r++) {
        if (r == WARM_UP) us = 0, tokens = 0;
        tokens += round_of(&w, way, &us);
    }
    return (double)tokens / us * 1e6;
}

static void test_never_far_under_the_better_way(void **state)
{
    static const double accepts[][2] = {{0.9, 0.9}, {0.75, 0.75}, {0.5, 0.5}, {0.2, 0.2}, {0.95, 0.1}};
    static const uint32_t streams[] = {1, 2, 8, 32, 60, 128};
    const bool show = getenv("PACE_GAIN") != NULL;
    double worst = 0;

    (void)state;
    if (show) printf("| machine | accepted | streams | off | always | rules | against the better |\n| --- | --- | --- | --- | --- | --- | --- |\n");
    for (size_t m = 0; m < sizeof machines / sizeof *machines; m++)
        for (size_t a = 0; a < sizeof accepts / sizeof *accepts; a++)
            for (size_t n = 0; n < sizeof streams / sizeof *streams; n++) {
                const double off = rate(&machines[m], streams[n], accepts[a][0], accepts[a][1], NONE), always = rate(&machines[m], streams[n], accepts[a][0], accepts[a][1], ALWAYS);
                const double rules = rate(&machines[m], streams[n], accepts[a][0], accepts[a][1], PAYING), better = off > always ? off : always;
                if (show) printf("| %s | %.2f, %.2f | %u | %.0f | %.0f | %.0f | %+.1f %% |\n", machines[m].name, accepts[a][0], accepts[a][1], streams[n], off, always, rules, 100 * (rules / better - 1));
                if (rules / better - 1 < worst) worst = rules / better - 1;
                if (rules < better * (1 - UNDER_MOST) && !show)
                    fail_msg("%s, accepted %.2f and %.2f, %u streams: %.0f tokens/s by the rules, %.0f without drafts, %.0f with all", machines[m].name, accepts[a][0], accepts[a][1], streams[n], rules, off, always);
            }
    if (show) printf("\nworst %+.1f %%\n", 100 * worst);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_never_far_under_the_better_way)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
