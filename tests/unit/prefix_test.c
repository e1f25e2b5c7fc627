/* tests/unit/prefix_test.c - the prefix cache: what is found, what goes first, and that no sequence ever reads a position that is not its own text's.
 *
 * The last is tried by playing prefill and verify at random: pages hold, for each position, a number that follows from all tokens up to it. */
#include "shm/error.h"
#include "stages/prefill/pages.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define PAGE KV_PAGE_TOKENS
#define SLOTS 6u
#define CONTEXT 384u
#define WINDOW 65u
#define ROWS 32u
#define RING_LEAST 3u                 /* pages: (WINDOW - 1 + ROWS) / PAGE */
#define RING_WIDE 6u
#define AHEAD 6u
#define FULL_PAGES 40u
#define SLIDING_PAGES 34u             /* at most */
#define BY_VERIFY 0x8000000000000000ull
#define STEPS 40000u

/* ---- the index alone ------------------------------------------------------------------------ */

static struct prefix_page page_of(uint32_t first, uint64_t mark)
{
    struct prefix_page p = {.mark = {mark}};

    for (uint32_t i = 0; i < PAGE; i++) p.token[i] = first + i;
    return p;
}

static void test_a_page_is_known_by_what_is_before_it(void **state)
{
    struct prefix x;
    const struct prefix_page a = page_of(1, 0), b = page_of(100, 0), marked = page_of(1, 9);

    (void)state;
    assert_int_equal(prefix_open(&x, 8, 42), 0);
    assert_int_equal(prefix_find(&x, PREFIX_NONE, &a), PREFIX_NONE);
    const uint32_t n = prefix_add(&x, PREFIX_NONE, &a, 3), m = prefix_add(&x, n, &b, 4);
    assert_int_equal(prefix_find(&x, PREFIX_NONE, &a), n);
    assert_int_equal(prefix_find(&x, n, &b), m);
    assert_int_equal(prefix_find(&x, PREFIX_NONE, &b), PREFIX_NONE);
    assert_int_equal(prefix_find(&x, PREFIX_NONE, &marked), PREFIX_NONE);
    assert_int_equal(x.node[m].full_page, 4);
    prefix_close(&x);
}

static void test_the_longest_unused_goes_first_and_children_before_parents(void **state)
{
    struct prefix x;
    const struct prefix_page a = page_of(1, 0), b = page_of(100, 0), c = page_of(200, 0);
    uint32_t full, sliding;

    (void)state;
    assert_int_equal(prefix_open(&x, 3, 1), 0);
    const uint32_t n = prefix_add(&x, PREFIX_NONE, &a, 0), m = prefix_add(&x, n, &b, 1), o = prefix_add(&x, PREFIX_NONE, &c, 2);
    assert_false(prefix_evict(&x, &full, &sliding)); /* all are held */
    prefix_let_go(&x, m);
    prefix_let_go(&x, n);
    prefix_let_go(&x, o);
    prefix_hold(&x, n); /* used once more: younger than o now, and its child is not */
    prefix_let_go(&x, n);
    prefix_give_sliding(&x, m, 7);
    assert_true(prefix_evict(&x, &full, &sliding));
    assert_int_equal(full, 1);
    assert_int_equal(sliding, 7);
    assert_int_equal(x.list[LAYER_SLIDING].count, 0);
    assert_int_equal(prefix_find(&x, n, &b), PREFIX_NONE);
    assert_true(prefix_evict(&x, &full, &sliding) && full == 2 && sliding == PREFIX_NONE);
    assert_true(prefix_evict(&x, &full, &sliding) && full == 0);
    assert_false(prefix_evict(&x, &full, &sliding));
    assert_int_equal(x.node_count, 0);
    assert_int_equal(prefix_add(&x, PREFIX_NONE, &b, 5) != PREFIX_NONE, 1);
    prefix_close(&x);
}

static void test_sliding_pages_go_by_their_own_use(void **state)
{
    struct prefix x;
    const struct prefix_page a = page_of(1, 0), b = page_of(100, 0);

    (void)state;
    assert_int_equal(prefix_open(&x, 3, 1), 0);
    const uint32_t n = prefix_add(&x, PREFIX_NONE, &a, 0), m = prefix_add(&x, n, &b, 1);
    prefix_give_sliding(&x, n, 10);
    prefix_give_sliding(&x, m, 11);
    prefix_use_sliding(&x, n);
    assert_int_equal(prefix_evict_sliding(&x), 11);
    assert_int_equal(x.node[m].sliding_page, PREFIX_NONE);
    assert_int_equal(prefix_evict_sliding(&x), 10);
    assert_int_equal(prefix_evict_sliding(&x), PREFIX_NONE);
    prefix_close(&x);
}

/* ---- a small world ------------------------------------------------------------------------------ */

struct player { /* what prefill and verify would know of a slot */
    uint32_t generation, prompt_count, max_output, written; /* written: positions, drafts included */
    uint32_t tokens[CONTEXT];
    uint64_t value[CONTEXT];          /* of each position, as its writer makes it */
    enum { FREE, WAITING, FILLING, RUNNING } state;
};

struct world {
    struct table table;
    struct kv_geometry geometry;
    struct pages pages;
    struct player player[SLOTS];
    uint64_t full[FULL_PAGES][PAGE], sliding[SLIDING_PAGES][PAGE];
    uint64_t random, cache_bytes;
    uint32_t taken, found_tokens, prompt_tokens, crashes;
    bool dies_in_copy, verify_races;
};

static uint32_t roll(struct world *w, uint32_t below)
{
    w->random = w->random * 6364136223846793005ull + 1442695040888963407ull;
    return (uint32_t)(w->random >> 33) % below;
}

static void decode(struct world *w, uint32_t s);

static void copy(void *context, enum layer_type type, const uint32_t *from, const uint32_t *to, uint32_t count)
{
    struct world *w = context;

    assert_int_equal(type, LAYER_SLIDING);
    for (uint32_t s = 0; s < SLOTS && w->verify_races; s++) /* verify does not wait for prefill */
        for (uint32_t i = roll(w, 12); i > 0 && w->player[s].state == RUNNING; i--) decode(w, s);
    for (uint32_t i = 0; i < count && !w->dies_in_copy; i++) {
        assert_true(from[i] < SLIDING_PAGES && to[i] < SLIDING_PAGES && from[i] != to[i]);
        memcpy(w->sliding[to[i]], w->sliding[from[i]], sizeof w->sliding[0]);
    }
}

static void open_pages(struct world *w, bool cache) { assert_int_equal(pages_open(&w->pages, &w->table, &w->geometry, cache ? w->cache_bytes : 0, AHEAD, w->random, copy, w), 0); }

static void world_open(struct world *w, bool cache, uint32_t ring)
{
    const struct table_limits limits = {.slot_count = SLOTS, .context_max = CONTEXT, .request_bytes_max = 4096, .full_pages_max = CONTEXT / PAGE, .sliding_pages_max = ring,
                                        .log_bytes_max = 4096, .media_tokens_max = 1};

    memset(w, 0, sizeof *w);
    w->random = 1;
    table_init(&w->table, &limits);
    for (int role = 0; role < ROLE_COUNT; role++)
        if (w->table.stride[role]) w->table.base[role] = calloc(SLOTS, w->table.stride[role]);
    w->geometry = (struct kv_geometry){.window = WINDOW, .rows_max = ROWS, .max_context = CONTEXT, .full_pages_per_seq = CONTEXT / PAGE, .sliding_pages_per_seq = ring,
                                       .ring_tokens = ring * PAGE, .full_page_count = FULL_PAGES, .sliding_page_count = 5 * ring + 2};
    w->geometry.arena_bytes = 1000;
    w->cache_bytes = UINT64_MAX;
    open_pages(w, cache);
    pages_rebuild(&w->pages);
}

static void world_close(struct world *w)
{
    pages_close(&w->pages);
    for (int role = 0; role < ROLE_COUNT; role++) free(w->table.base[role]);
}

static uint64_t mix(uint64_t hash, uint64_t with) { return ((hash ^ with) * 0x9e3779b97f4a7c15ull) ^ (hash >> 31); }

/* A request comes into a free slot. Prompts are cut from few texts at few places, so that many begin alike. picture: at position 40, of 50 tokens. */
static void ask(struct world *w, uint32_t s, uint32_t text, uint32_t prompt_count, uint32_t max_output, uint32_t salt, uint32_t picture)
{
    struct player *q = &w->player[s];
    struct tokenize_slot *t = table_tokenize(&w->table, s);
    struct gateway_slot *g = table_gateway(&w->table, s);
    uint64_t hash = 1 + salt;

    *q = (struct player){.generation = q->generation + 1, .prompt_count = prompt_count, .max_output = max_output, .state = WAITING};
    g->commit = word_pack(q->generation, PHASE_REQUESTED);
    g->params.is_salted = salt != 0;
    memset(g->params.cache_salt, (int)salt, sizeof g->params.cache_salt);
    t->media_count = picture != 0;
    t->media_first[0] = 40;
    table_vision(&w->table, s)->item[0] = (struct media_item){.kind = MEDIA_PICTURE, .tokens = 50, .columns = 5};
    memset(table_vision(&w->table, s)->item[0].content, (int)picture, 32);
    for (uint32_t i = 0; i < CONTEXT; i++) { /* texts part at 40, 100, 170, ... */
        q->tokens[i] = picture && i >= 40 && i < 90 ? 7 : 1000 * (text >> (i / 65)) + i;
        hash = mix(hash, q->tokens[i] + ((uint64_t)(picture && i >= 40 && i < 90 ? picture : 0) << 32));
        q->value[i] = (hash & ~BY_VERIFY) | (i >= prompt_count ? BY_VERIFY : 0);
    }
    memcpy(table_prompt(&w->table, s), q->tokens, prompt_count * sizeof *q->tokens);
    t->prompt_count = prompt_count;
    t->max_output = max_output;
    t->commit = word_pack(q->generation, PROMPT_READY);
}

static uint64_t *full_at(struct world *w, uint32_t s, uint32_t position) { return &w->full[table_full_pages(&w->table, s)[position / PAGE]][position % PAGE]; }
static uint64_t *sliding_at(struct world *w, uint32_t s, uint32_t position) { return &w->sliding[table_sliding_pages(&w->table, s)[position / PAGE % w->geometry.sliding_pages_per_seq]][position % PAGE]; }

/* Reads what a row at this position would, writes what it leaves. */
static void row(struct world *w, uint32_t s, uint32_t position)
{
    const struct player *q = &w->player[s];

    for (uint32_t i = 0; i < position; i++) assert_int_equal(*full_at(w, s, i), q->value[i]);
    for (uint32_t i = position > WINDOW - 1 ? position - (WINDOW - 1) : 0; i < position; i++) assert_int_equal(*sliding_at(w, s, i), q->value[i]);
    *full_at(w, s, position) = *sliding_at(w, s, position) = q->value[position];
}

static uint32_t filled_of(const struct world *w, uint32_t s) { return word_for(&table_prefill(&w->table, s)->filled, w->player[s].generation); }

static bool begin(struct world *w, uint32_t s)
{
    struct player *q = &w->player[s];
    const int known = pages_take(&w->pages, s, q->generation);

    if (known == -E_FULL) return false;
    assert_true(known >= 0 && (uint32_t)known < q->prompt_count && known % PAGE == 0);
    assert_int_equal(table_prefill(&w->table, s)->cached_tokens, known);
    assert_false(prompt_cuts_picture(&w->table, s, (uint32_t)known));
    q->state = FILLING;
    w->taken++;
    if (w->dies_in_copy) return true;
    if (known) table_prefill(&w->table, s)->filled = word_pack(q->generation, (uint32_t)known);
    w->found_tokens += (uint32_t)known;
    w->prompt_tokens += q->prompt_count;
    return true;
}

static void fill(struct world *w, uint32_t s, uint32_t rows)
{
    struct player *q = &w->player[s];
    const uint32_t from = filled_of(w, s), to = from + rows < q->prompt_count ? from + rows : q->prompt_count;

    for (uint32_t i = from; i < to; i++) row(w, s, i);
    table_prefill(&w->table, s)->filled = word_pack(q->generation, to);
    pages_filled(&w->pages, s);
    if (to < q->prompt_count) return;
    q->state = RUNNING;
    q->written = to;
    table_verify(&w->table, s)->commit = word_pack(q->generation, 0);
    pages_handed(&w->pages, s);
}

/* A step of verify: rows behind what is committed, drafts among them; others see less. */
static void decode(struct world *w, uint32_t s)
{
    struct player *q = &w->player[s];
    const uint32_t committed = word_for(&table_verify(&w->table, s)->commit, q->generation), end = q->prompt_count + q->max_output;
    const uint32_t to = q->prompt_count + committed + AHEAD < end ? q->prompt_count + committed + AHEAD : end;

    for (uint32_t i = q->written; i < to; i++) row(w, s, i);
    q->written = to;
    const uint32_t output = committed + 1 + roll(w, AHEAD / 2), most = to - q->prompt_count;
    table_verify(&w->table, s)->commit = word_pack(q->generation, output < most ? output : most);
}

/* Before prefill looks, the next request may be there. Its prompt is one that others have. */
static void reuse_slot(struct world *w, uint32_t s)
{
    table_gateway(&w->table, s)->commit = word_pack(w->player[s].generation + 1, PHASE_REQUESTED);
    for (uint32_t i = 0; i < CONTEXT; i++) table_prompt(&w->table, s)[i] = 1000 * (5u >> (i / 65)) + i;
    table_tokenize(&w->table, s)->prompt_count = CONTEXT - 1;
    table_tokenize(&w->table, s)->max_output = 1;
}

static void finish(struct world *w, uint32_t s, bool slot_is_reused)
{
    struct player *q = &w->player[s];

    table_verify(&w->table, s)->finish = word_pack(q->generation, FINISH_LENGTH);
    if (slot_is_reused) reuse_slot(w, s);
    pages_give_back(&w->pages, s);
    q->state = FREE;
}

/* Prefill dies and comes back: all that it knows is what the table says. */
static void crash(struct world *w, bool cache)
{
    pages_close(&w->pages);
    open_pages(w, cache);
    for (uint32_t s = 0; s < SLOTS; s++)
        if (w->player[s].state >= FILLING) {
            pages_found(&w->pages, s, w->player[s].generation);
            assert_true(table_prefill(&w->table, s)->cached_tokens <= filled_of(w, s));
        }
    const uint32_t ends = w->verify_races ? roll(w, 2 * SLOTS) : SLOTS; /* one that runs ends meanwhile, and another request takes its slot */
    if (ends < SLOTS && w->player[ends].state == RUNNING) reuse_slot(w, ends);
    pages_rebuild(&w->pages);
    if (ends < SLOTS && w->player[ends].state == RUNNING) finish(w, ends, false);
    w->crashes++;
}

/* Prefill dies in a chunk that it has begun to write: rows that nobody says are there lie in the ring, over older ones. */
static void die_in_chunk(struct world *w, uint32_t s, bool cache)
{
    const struct player *q = &w->player[s];
    const uint32_t from = filled_of(w, s), rows = 1 + roll(w, ROWS), to = from + rows < q->prompt_count ? from + rows : q->prompt_count;

    for (uint32_t i = from; i < to; i++) row(w, s, i);
    crash(w, cache);
}

static void check_counts(const struct world *w)
{
    const struct pages *p = &w->pages;
    uint32_t held[LAYER_TYPES] = {0};

    for (int t = 0; t < LAYER_TYPES; t++)
        for (uint32_t i = 0; i < p->pool[t].total; i++) held[t] += p->pool[t].refs[i] != 0;
    for (int t = 0; t < LAYER_TYPES; t++) assert_int_equal(held[t] + p->pool[t].free_count, p->pool[t].total);
    for (uint32_t s = 0; s < SLOTS; s++)
        if (w->player[s].state >= FILLING) return;
    assert_int_equal(pages_used(p, LAYER_FULL), 0); /* nobody runs: all there is can be had */
    assert_int_equal(pages_used(p, LAYER_SLIDING), 0);
}

static void act(struct world *w, bool cache)
{
    const uint32_t s = roll(w, SLOTS);
    struct player *q = &w->player[s];

    switch (q->state) {
    case FREE: {
        const uint32_t prompt = 1 + roll(w, 300), left = CONTEXT - prompt;
        ask(w, s, 1 + roll(w, 6), prompt, 1 + roll(w, left < 120 ? left : 120), roll(w, 8) == 0, roll(w, 4) == 0 ? 1 + roll(w, 2) : 0);
        break;
    }
    case WAITING:
        w->dies_in_copy = roll(w, 40) == 0;
        begin(w, s);
        if (w->dies_in_copy) {
            w->dies_in_copy = false;
            crash(w, cache);
        }
        break;
    case FILLING:
        if (roll(w, 60) == 0) finish(w, s, false); /* cancelled */
        else if (roll(w, 40) == 0) die_in_chunk(w, s, cache);
        else fill(w, s, 1 + roll(w, ROWS));
        break;
    case RUNNING:
        if (roll(w, 12) == 0 || q->written == q->prompt_count + q->max_output) finish(w, s, roll(w, 4) == 0);
        else decode(w, s);
        break;
    }
    if (roll(w, 400) == 0) crash(w, cache);
    check_counts(w);
}

static void play(bool cache, uint32_t ring)
{
    static struct world w;

    world_open(&w, cache, ring);
    w.verify_races = true;
    for (uint32_t i = 0; i < STEPS; i++) act(&w, cache);
    assert_true(w.taken > STEPS / 100 && w.crashes > STEPS / 1000);
    print_message("%u sequences, %u restarts, %u of %u prompt tokens found\n", w.taken, w.crashes, w.found_tokens, w.prompt_tokens);
    if (cache) assert_true(w.found_tokens > w.prompt_tokens / 20);
    else assert_int_equal(w.found_tokens, 0);
    world_close(&w);
}

static void test_nobody_reads_what_is_not_its_own_text(void **state)
{
    (void)state;
    play(true, RING_LEAST);
    play(true, RING_WIDE);
}

static void test_switched_off_nothing_is_kept(void **state)
{
    (void)state;
    play(false, RING_LEAST);
}

/* ---- single cases -------------------------------------------------------------------------------------- */

static void run_whole(struct world *w, uint32_t s, uint32_t steps)
{
    assert_true(begin(w, s));
    while (w->player[s].state == FILLING) fill(w, s, ROWS);
    for (uint32_t i = 0; i < steps && w->player[s].written < w->player[s].prompt_count + w->player[s].max_output; i++) decode(w, s);
}

static uint32_t found(const struct world *w, uint32_t s) { return table_prefill(&w->table, s)->cached_tokens; }

static void test_a_running_sequence_gives_too(void **state)
{
    static struct world w;

    (void)state;
    world_open(&w, true, RING_WIDE);
    ask(&w, 0, 1, 130, 20, 0, 0);
    run_whole(&w, 0, 1);
    ask(&w, 1, 1, 130, 20, 0, 0);
    run_whole(&w, 1, 1);
    assert_int_equal(found(&w, 1), 128);
    for (uint32_t i = 0; i < 4; i++) assert_int_equal(table_full_pages(&w.table, 0)[i], table_full_pages(&w.table, 1)[i]);
    for (uint32_t i = 0; i < 5; i++) assert_int_not_equal(table_sliding_pages(&w.table, 0)[i], table_sliding_pages(&w.table, 1)[i]);
    finish(&w, 0, true);
    ask(&w, 2, 1, 129, 1, 0, 0); /* 128 tokens are known, the last one is computed */
    run_whole(&w, 2, 0);
    assert_int_equal(found(&w, 2), 128);
    ask(&w, 3, 1, 128, 1, 0, 0);
    run_whole(&w, 3, 0);
    assert_int_equal(found(&w, 3), 96);
    world_close(&w);
}

static void test_salts_and_pictures_are_no_tokens(void **state)
{
    static struct world w;

    (void)state;
    world_open(&w, true, RING_WIDE);
    ask(&w, 0, 1, 130, 1, 0, 1);
    run_whole(&w, 0, 0);
    finish(&w, 0, false);
    ask(&w, 1, 1, 130, 1, 1, 1); /* the same under a salt */
    run_whole(&w, 1, 0);
    assert_int_equal(found(&w, 1), 0);
    finish(&w, 1, false);
    ask(&w, 2, 1, 130, 1, 0, 2); /* another picture of the same size; the page before it is the same, and so is the boundary inside the picture, which is none */
    run_whole(&w, 2, 0);
    assert_int_equal(found(&w, 2), 32);
    finish(&w, 2, false);
    ask(&w, 3, 1, 130, 1, 0, 1);
    run_whole(&w, 3, 0);
    assert_int_equal(found(&w, 3), 128);
    finish(&w, 3, false);
    ask(&w, 4, 1, 80, 1, 0, 1); /* never cut: the boundary at 64 lies inside */
    table_tokenize(&w.table, 4)->prompt_count = 95;
    memcpy(table_prompt(&w.table, 4), w.player[4].tokens, 95 * sizeof(uint32_t));
    w.player[4].prompt_count = 95;
    for (uint32_t i = 80; i < 95; i++) w.player[4].value[i] &= ~BY_VERIFY;
    run_whole(&w, 4, 0);
    assert_int_equal(found(&w, 4), 32);
    finish(&w, 4, false);
    ask(&w, 5, 1, 130, 1, 0, 1); /* a picture that nobody identified */
    memset(table_vision(&w.table, 5)->item[0].content, 0, 32);
    for (uint32_t i = 40; i < 130; i++) w.player[5].value[i] ^= 1; /* so what it writes is its own */
    run_whole(&w, 5, 0);
    assert_int_equal(found(&w, 5), 32);
    world_close(&w);
}

static void test_the_cache_gives_way(void **state)
{
    static struct world w;

    (void)state;
    world_open(&w, true, RING_WIDE);
    for (uint32_t i = 0; i < 30; i++) { /* texts without a common token: the cache fills up */
        ask(&w, 0, 100 + 64 * i, 250, 30, 0, 0);
        run_whole(&w, 0, 40);
        finish(&w, 0, false);
    }
    assert_true(w.pages.prefix.node_count > 20);
    for (uint32_t s = 0; s < 4; s++) { /* four sequences fit, as without a cache: 4 x 9 pages of 40, 4 x 6 of 34 */
        ask(&w, s, 7000 + 64 * s, 250, 30, 0, 0);
        run_whole(&w, s, 1);
    }
    assert_int_equal(pages_used(&w.pages, LAYER_FULL), 36);
    ask(&w, 4, 9000, 250, 30, 0, 0);
    assert_false(begin(&w, 4)); /* no room: it waits, and nobody has lost anything */
    for (uint32_t s = 0; s < 4; s++) decode(&w, s);
    finish(&w, 2, false);
    assert_true(begin(&w, 4));
    world_close(&w);
}

static void test_what_is_kept_has_a_limit(void **state)
{
    static struct world w;

    (void)state;
    world_open(&w, true, RING_WIDE);
    w.cache_bytes = 400; /* of 1000: 16 of 40 pages, 12 of 32 */
    crash(&w, true);
    for (uint32_t i = 0; i < 30; i++) {
        ask(&w, 0, 100 + 64 * i, 250, 30, 0, 0);
        run_whole(&w, 0, 40);
        finish(&w, 0, false);
        assert_true(w.pages.prefix.list[LAYER_FULL].count <= 16 && w.pages.prefix.list[LAYER_SLIDING].count <= 12);
    }
    assert_int_equal(w.pages.prefix.list[LAYER_FULL].count, 16);
    ask(&w, 0, 100 + 64 * 29, 250, 30, 0, 0); /* the last one is there */
    run_whole(&w, 0, 1);
    assert_int_equal(found(&w, 0), 224);
    world_close(&w);
}

static void test_room_for_one_alone(void **state)
{
    static struct world w;

    (void)state;
    world_open(&w, true, RING_WIDE);
    w.geometry.full_page_count = CONTEXT / PAGE; /* a server for one sequence */
    w.geometry.sliding_page_count = RING_WIDE;
    crash(&w, true);
    for (uint32_t turn = 0; turn < 4; turn++) { /* its window is what the next turn gets, there is no room for a copy */
        ask(&w, turn, 1, 100 + 64 * turn, 30, 0, 0);
        run_whole(&w, turn, 8);
        assert_int_equal(found(&w, turn), turn ? (100 + 64 * (turn - 1)) / PAGE * PAGE : 0);
        finish(&w, turn, false);
        check_counts(&w);
    }
    world_close(&w);
}

static void test_after_a_restart_running_prompts_are_known(void **state)
{
    static struct world w;

    (void)state;
    world_open(&w, true, RING_WIDE);
    ask(&w, 0, 1, 100, 20, 0, 0);
    run_whole(&w, 0, 1);
    ask(&w, 1, 1, 100, 20, 0, 0);
    run_whole(&w, 1, 1);
    crash(&w, true);
    ask(&w, 2, 1, 100, 20, 0, 0);
    run_whole(&w, 2, 1);
    assert_int_equal(found(&w, 2), 96);
    finish(&w, 1, false);
    finish(&w, 0, true);
    finish(&w, 2, false);
    check_counts(&w);
    world_close(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_page_is_known_by_what_is_before_it),
        cmocka_unit_test(test_the_longest_unused_goes_first_and_children_before_parents),
        cmocka_unit_test(test_sliding_pages_go_by_their_own_use),
        cmocka_unit_test(test_a_running_sequence_gives_too),
        cmocka_unit_test(test_salts_and_pictures_are_no_tokens),
        cmocka_unit_test(test_the_cache_gives_way),
        cmocka_unit_test(test_what_is_kept_has_a_limit),
        cmocka_unit_test(test_room_for_one_alone),
        cmocka_unit_test(test_after_a_restart_running_prompts_are_known),
        cmocka_unit_test(test_nobody_reads_what_is_not_its_own_text),
        cmocka_unit_test(test_switched_off_nothing_is_kept),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
