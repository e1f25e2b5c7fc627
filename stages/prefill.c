/* stages/prefill.c - fills the KV cache with prompts, in chunks, for many sequences at once.
 *
 * Reads    tokenize slots (prompt ids), vision slots (blocks of pictures, frames of sound), gateway slots (order, cancel), verify slots (finished: pages are free)
 * Writes   prefill slots: page tables, tokens filled, handed over; the KV arena at the prompt's positions, the state of the last one (model/states.h)
 * Rings    in: tokenize-prefill, verify-prefill; out: prefill-verify
 * Owns     both pools of KV pages (stages/prefill/pages.h): who holds which page follows from the table, so a restarted prefill rebuilds its
 *          free lists by reading it. Prompts that begin as one before them go on where they differ. Verify makes the first output of the state that the last prompt token leaves.
 * Fails    no pages: the sequence waits its turn (first come, first served); all pages of a sequence are set aside
 *          at the start, so one that runs can always finish. Restarted: goes on at `filled`; a chunk done twice writes the same bytes; what was kept of prompts that are over is forgotten. */
#include "model/engine.h"
#include "schemas/counters.h"
#include "schemas/sound.h"
#include "schemas/table.h"
#include "shm/clock.h"
#include "shm/error.h"
#include "shm/must.h"
#include "shm/stage.h"
#include "stages/prefill/crowd.h"
#include "stages/prefill/pages.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#define FOLLOW_GAIN 4u /* of a chunk: so much less to compute is worth waiting for another prompt */

enum sequence_state { SEQ_NONE = 0, SEQ_WAITING, SEQ_FOLLOWING /* waits for another prompt that begins as it does */, SEQ_FILLING, SEQ_HANDED };

struct sequence { /* private view of one slot, rebuilt from the table at start */
    uint32_t generation;
    enum sequence_state state;
    uint64_t order;
    uint32_t leader, leader_generation, shared; /* FOLLOWING: whom, and for how many pages */
    bool has_looked; /* for a leader, since the last one was done */
};

struct prefill {
    struct stage stage;
    struct table table;
    struct engine engine;
    struct sequence *seq; /* [slot_count] */
    struct pages pages;
    uint32_t held; /* sequences that hold pages */
    uint32_t max_sequences, chunk;
    uint32_t crowd; /* most sequences that waited for their first token since none did */
    struct engine_span *span; /* of the current chunk */
    struct engine_piece *piece; /* its pictures and sounds */
    uint32_t piece_count, piece_max;
    uint64_t sound_token_bytes, picture_token_bytes;
    uint32_t *tokens;
};

/* ---- pages ------------------------------------------------------------------------ */

static void copy_pages(void *context, enum layer_type type, const uint32_t *from, const uint32_t *to, uint32_t count)
{
    struct prefill *k = context;

    engine_copy_pages(&k->engine, type, from, to, count);
}

/* What prompts of the past may hold when nobody says it. A GPU's KV cache is allocated whole; a CPU's takes memory where it is touched: a quarter, but two windows of the sliding layers. */
static uint64_t usual_cache_bytes(const struct prefill *k)
{
    const struct kv_geometry *g = &k->engine.geometry;
    const uint32_t windows = 2 * (g->window / KV_PAGE_TOKENS + 2);

    if (strcmp(wiring_text(&k->stage.wiring, "device", "cpu"), "cuda") == 0 || windows >= g->sliding_page_count) return UINT64_MAX;
    return windows > g->sliding_page_count / 4 ? g->arena_bytes / g->sliding_page_count * (windows + 1) : g->arena_bytes / 4;
}

static void open_pages(struct prefill *k)
{
    const struct wiring *w = &k->stage.wiring;
    uint64_t bytes = wiring_u64(w, "prefix.cache_mib", 0) << 20, seed = 0;

    if (bytes == 0) bytes = usual_cache_bytes(k);
    if (strcmp(wiring_text(w, "prefix.cache", "on"), "off") == 0) bytes = 0;
    if (getrandom(&seed, sizeof seed, 0) != sizeof seed) stage_exit(&k->stage, EXIT_MISSING, "no random number can be drawn");
    if (pages_open(&k->pages, &k->table, &k->engine.geometry, bytes, 2 * k->engine.block_max, seed, copy_pages, k) != 0) /* a step that is decided, and one in flight */
        stage_exit(&k->stage, EXIT_MISSING, "out of memory for the page lists");
}

static void count_pages(struct prefill *k)
{
    uint64_t *c = k->stage.status->counters;

    shm_store_relaxed(&c[PREFILL_FULL_PAGES_USED], pages_used(&k->pages, LAYER_FULL));
    shm_store_relaxed(&c[PREFILL_FULL_PAGES_TOTAL], k->pages.pool[LAYER_FULL].total);
    shm_store_relaxed(&c[PREFILL_SLIDING_PAGES_USED], pages_used(&k->pages, LAYER_SLIDING));
    shm_store_relaxed(&c[PREFILL_SLIDING_PAGES_TOTAL], k->pages.pool[LAYER_SLIDING].total);
    shm_store_relaxed(&c[PREFILL_FULL_PAGES_KEPT], k->pages.prefix.list[LAYER_FULL].count);
    shm_store_relaxed(&c[PREFILL_SLIDING_PAGES_KEPT], k->pages.prefix.list[LAYER_SLIDING].count);
}

/* The sequence has pages. */
static void tell_engine(struct prefill *k, uint32_t s)
{
    const struct prefill_slot *p = table_prefill(&k->table, s);
    const struct engine_sequence seq = {.generation = k->seq[s].generation, .full_pages = table_full_pages(&k->table, s), .sliding_pages = table_sliding_pages(&k->table, s),
                                        .full_page_count = p->full_page_count, .sliding_page_count = p->sliding_page_count};

    engine_admit(&k->engine, s, &seq);
}

/* What a drafter wants of the positions that were found is where their tokens were computed, or copied to. */
static void copy_outputs(struct prefill *k, uint32_t s)
{
    uint32_t writer = 0, generation = 0, count;

    for (uint32_t i = 0; (count = pages_writer(&k->pages, s, i, &writer, &generation)) > 0; i += count)
        engine_copy_outputs(&k->engine, writer, generation, s, i * KV_PAGE_TOKENS, count * KV_PAGE_TOKENS);
    pages_note_writer(&k->pages, s);
}

static bool take_pages(struct prefill *k, uint32_t s)
{
    const uint32_t generation = k->seq[s].generation;
    const int known = pages_take(&k->pages, s, generation);

    if (known < 0) return false;
    tell_engine(k, s);
    k->held++;
    stage_count(&k->stage, PREFILL_PROMPT_TOKENS, table_tokenize(&k->table, s)->prompt_count);
    if (known == 0) return true;
    copy_outputs(k, s);
    shm_store_release(&table_prefill(&k->table, s)->filled, word_pack(generation, (uint32_t)known));
    stage_count(&k->stage, PREFILL_CACHED_TOKENS, (uint64_t)known);
    return true;
}

static void give_back(struct prefill *k, uint32_t s)
{
    if (word_for(&table_prefill(&k->table, s)->pages, k->seq[s].generation)) {
        pages_give_back(&k->pages, s);
        engine_leave(&k->engine, s);
        k->held--;
    }
    k->seq[s].state = SEQ_NONE;
    count_pages(k);
}

/* ---- looking at slots --------------------------------------------------------------- */

static void hand_over(struct prefill *k, uint32_t s)
{
    struct prefill_slot *p = table_prefill(&k->table, s);
    const struct ring_msg msg = {.slot = s, .generation = k->seq[s].generation};

    if (k->seq[s].state == SEQ_FILLING) stage_count(&k->stage, PREFILL_SEQUENCES, 1);
    p->done_ns = clock_ns();
    k->seq[s].state = SEQ_HANDED;
    shm_store_release(&p->ready, word_pack(k->seq[s].generation, 1));
    ring_publish(&k->stage.ring[RING_PREFILL_VERIFY], &msg);
    pages_handed(&k->pages, s); /* behind the message, for which others wait, and at once: later verify may have begun to write over the window, and nothing of it is kept */
}

static bool is_filled(const struct prefill *k, uint32_t s)
{
    return word_for(&table_prefill(&k->table, s)->filled, k->seq[s].generation) >= table_tokenize(&k->table, s)->prompt_count;
}

/* Brings our view of a slot up to date; cheap enough for every message. */
static void look(struct prefill *k, uint32_t s)
{
    struct sequence *q = &k->seq[s];
    const uint32_t generation = slot_occupied(&k->table, s);

    if (q->state != SEQ_NONE && word_for(&table_verify(&k->table, s)->finish, q->generation)) give_back(k, s);
    if (!generation || generation == q->generation || q->state != SEQ_NONE) return;
    if (word_for(&table_tokenize(&k->table, s)->commit, generation) != PROMPT_READY) return;
    q->generation = generation;
    if (word_for(&table_verify(&k->table, s)->finish, generation)) return; /* over before we looked */
    q->order = table_gateway(&k->table, s)->order + 1; /* 0 means "before all" in first_in */
    q->state = SEQ_WAITING;
    q->has_looked = false;
    if (word_for(&table_prefill(&k->table, s)->pages, generation)) { /* a predecessor's work */
        q->state = SEQ_FILLING;
        pages_found(&k->pages, s, generation);
        tell_engine(k, s);
        k->held++;
    }
    if (word_for(&table_prefill(&k->table, s)->ready, generation)) hand_over(k, s);
}

static void scan(struct prefill *k)
{
    for (uint32_t s = 0; s < k->table.limits.slot_count; s++) look(k, s);
}

static void take_messages(struct prefill *k)
{
    static const int rings[] = {RING_TOKENIZE_PREFILL, RING_VERIFY_PREFILL};
    struct ring_msg msg;

    for (unsigned i = 0; i < 2; i++) {
        struct ring *r = &k->stage.ring[rings[i]];
        while (ring_take(r, &msg) == 1)
            if (msg.slot < k->table.limits.slot_count) look(k, msg.slot);
        if (ring_overran(r)) scan(k);
    }
}

/* The waiting (or filling) sequence that came first; slot_count if there is none. */
static uint32_t first_in(const struct prefill *k, enum sequence_state state, uint64_t after_order)
{
    const uint32_t none = k->table.limits.slot_count;
    uint32_t best = none;

    for (uint32_t s = 0; s < none; s++) {
        if (k->seq[s].state != state || k->seq[s].order <= after_order) continue;
        if (best == none || k->seq[s].order < k->seq[best].order) best = s;
    }
    return best;
}

static void look_at_handed(struct prefill *k)
{
    for (uint32_t s = 0; s < k->table.limits.slot_count; s++)
        if (k->seq[s].state == SEQ_HANDED) look(k, s);
}

/* Cancelled or convicted in the middle: verify ends it; nothing of it is computed again. */
static void hand_over_unwanted(struct prefill *k)
{
    for (uint32_t s = 0; s < k->table.limits.slot_count; s++)
        if (k->seq[s].state == SEQ_FILLING && slot_is_unwanted(&k->table, s, k->seq[s].generation)) hand_over(k, s);
}

static bool is_suspect(const struct prefill *k, uint32_t s)
{
    return word_for(&table_launcher(&k->table, s)->strikes, k->seq[s].generation) != 0;
}

static uint32_t filled_of(const struct prefill *k, uint32_t s)
{
    return word_for(&table_prefill(&k->table, s)->filled, k->seq[s].generation);
}

/* Many that begin alike come at once: one computes the beginning, the others wait for it. Only for earlier ones that are being filled, so nobody waits in a circle. */
static bool follow(struct prefill *k, uint32_t s)
{
    struct sequence *q = &k->seq[s];
    uint32_t best = 0, gained, shared;

    if (q->has_looked || is_suspect(k, s)) return false;
    q->has_looked = true;
    for (uint32_t l = 0; l < k->table.limits.slot_count; l++) {
        if (k->seq[l].state != SEQ_FILLING || k->seq[l].order > q->order || is_suspect(k, l)) continue;
        gained = pages_gained(&k->pages, s, l, &shared);
        if (gained <= best || gained * KV_PAGE_TOKENS < k->chunk / FOLLOW_GAIN || filled_of(k, l) >= shared * KV_PAGE_TOKENS) continue;
        best = gained;
        q->leader = l;
        q->leader_generation = k->seq[l].generation;
        q->shared = shared;
    }
    if (best) {
        q->state = SEQ_FOLLOWING;
        pages_want(&k->pages, q->leader, q->shared);
    }
    return best != 0;
}

/* Those whose leader is there, or gone, take their turn again; the others keep telling theirs where they want to go on. */
static void look_at_followers(struct prefill *k)
{
    for (uint32_t s = 0; s < k->table.limits.slot_count; s++) {
        struct sequence *q = &k->seq[s];
        if (q->state != SEQ_FOLLOWING) continue;
        const bool leads = k->seq[q->leader].state == SEQ_FILLING && k->seq[q->leader].generation == q->leader_generation && !is_suspect(k, q->leader);
        if (leads && filled_of(k, q->leader) < q->shared * KV_PAGE_TOKENS && !slot_is_unwanted(&k->table, s, q->generation)) {
            pages_want(&k->pages, q->leader, q->shared);
            continue;
        }
        q->state = SEQ_WAITING;
        q->has_looked = false;
    }
}

static void admit(struct prefill *k)
{
    uint32_t s, waiting = 0;

    hand_over_unwanted(k);
    look_at_followers(k);
    while ((s = first_in(k, SEQ_WAITING, 0)) < k->table.limits.slot_count) {
        if (slot_is_unwanted(&k->table, s, k->seq[s].generation)) {
            hand_over(k, s); /* without pages: verify only ends it */
            continue;
        }
        if (follow(k, s)) continue;
        if (k->held >= k->max_sequences || !take_pages(k, s)) {
            look_at_handed(k); /* verify may have finished one and died before it could say so */
            break;
        }
        k->seq[s].state = SEQ_FILLING;
        if (is_filled(k, s)) hand_over(k, s);
    }
    for (uint32_t i = 0; i < k->table.limits.slot_count; i++) waiting += k->seq[i].state == SEQ_WAITING || k->seq[i].state == SEQ_FOLLOWING;
    shm_store_relaxed(&k->stage.status->counters[PREFILL_WAITING], waiting);
    count_pages(k);
}

/* ---- work ------------------------------------------------------------------------------ */

/* The picture of slot s that begins at `position`: its tokens, else 0. */
static uint32_t picture_at(const struct prefill *k, uint32_t s, uint32_t position)
{
    const struct tokenize_slot *t = table_tokenize(&k->table, s);

    for (uint32_t i = 0; i < t->media_count; i++)
        if (t->media_first[i] == position && table_vision(&k->table, s)->item[i].kind != MEDIA_SOUND) return table_vision(&k->table, s)->item[i].tokens;
    return 0;
}

/* So many of `count` rows from position `first` on that no picture is cut: its first tokens see its last ones. */
static uint32_t whole_pictures(const struct prefill *k, uint32_t s, uint32_t first, uint32_t count)
{
    const struct tokenize_slot *t = table_tokenize(&k->table, s);

    for (uint32_t i = 0; i < t->media_count; i++) {
        const struct media_item *item = &table_vision(&k->table, s)->item[i];
        const uint32_t begin = t->media_first[i], end = begin + item->tokens, cut = first + count;
        if (item->kind != MEDIA_SOUND && begin < cut && cut < end) return begin > first ? begin - first : 0;
    }
    return count;
}

/* The pictures and parts of sounds among the rows of a span. */
static void add_pieces(struct prefill *k, const struct engine_span *span)
{
    const struct tokenize_slot *t = table_tokenize(&k->table, span->slot);
    const struct vision_slot *v = table_vision(&k->table, span->slot);
    const uint32_t first = span->first_position, end = first + span->rows;

    for (uint32_t i = 0; i < t->media_count && span->rows; i++) {
        const struct media_item *item = &v->item[i];
        const uint32_t item_first = t->media_first[i], from = item_first > first ? item_first : first;
        const uint32_t to = item_first + item->tokens < end ? item_first + item->tokens : end;
        if (from >= to) continue;
        must(k->piece_count < k->piece_max);
        const uint64_t token_bytes = item->kind == MEDIA_SOUND ? k->sound_token_bytes : k->picture_token_bytes;
        k->piece[k->piece_count++] = (struct engine_piece){.row = span->first_row + from - first, .rows = to - from, .kind = item->kind, .columns = item->columns,
                                                           .data = table_media(&k->table, span->slot) + item->offset + (from - item_first) * token_bytes};
    }
}

static uint32_t add_rows(struct prefill *k, uint32_t s, uint32_t rows_before, uint32_t rows_most, uint32_t index)
{
    const uint32_t filled = filled_of(k, s), left = table_tokenize(&k->table, s)->prompt_count - filled;
    const uint32_t count = whole_pictures(k, s, filled, pages_stop(&k->pages, s, filled, left < rows_most ? left : rows_most));

    memcpy(k->tokens + rows_before, table_prompt(&k->table, s) + filled, count * sizeof *k->tokens);
    k->span[index] = (struct engine_span){.slot = s, .first_position = filled, .first_row = rows_before, .rows = count, .leaves_state = count == left};
    add_pieces(k, &k->span[index]);
    return count;
}

/* Those behind the first come share what crowd_shared_rows() leaves them, the first takes all the rest. Returns rows; *count sequences. */
static uint32_t gather(struct prefill *k, uint32_t *count)
{
    const uint32_t none = k->table.limits.slot_count, first = first_in(k, SEQ_FILLING, 0), most = engine_fill_rows(&k->engine);
    uint32_t rows = 0, seqs = 0;

    *count = k->piece_count = 0;
    if (first == none) return 0;
    const uint32_t picture = picture_at(k, first, filled_of(k, first)), usual = most < k->chunk ? most : k->chunk;
    const uint32_t chunk = usual > picture ? usual : picture; /* it must fit, whatever the others take */
    const uint32_t shared = crowd_shared_rows(chunk, table_tokenize(&k->table, first)->prompt_count - filled_of(k, first), picture);
    if (!is_suspect(k, first)) {
        uint32_t s = first;
        while (rows < shared && seqs + 1 < ENGINE_FILL_SPANS_MAX && (s = first_in(k, SEQ_FILLING, k->seq[s].order)) != none)
            if (!is_suspect(k, s)) rows += add_rows(k, s, rows, shared - rows, seqs++);
    }
    rows += add_rows(k, first, rows, chunk - rows, seqs++);
    *count = seqs;
    return rows;
}

/* Sequences that wait for their first token (crowd.h); those without pages must wait for others to end. */
static uint32_t count_beginners(struct prefill *k)
{
    uint64_t left = 0;
    uint32_t count = 0;

    for (uint32_t s = 0; s < k->table.limits.slot_count; s++) {
        if (k->seq[s].state != SEQ_FILLING && k->seq[s].state != SEQ_FOLLOWING) continue;
        left += table_tokenize(&k->table, s)->prompt_count - filled_of(k, s);
        count++;
    }
    return crowd_count(&k->crowd, count, left, k->chunk);
}

static void fill(struct prefill *k)
{
    uint32_t slots[ENGINE_FILL_SPANS_MAX], generations[ENGINE_FILL_SPANS_MAX], count, rows;
    const uint64_t begin = clock_ns();

    k->engine.beginners = count_beginners(k);
    rows = gather(k, &count);
    if (count == 0) return;
    for (uint32_t i = 0; i < count; i++) {
        slots[i] = k->span[i].slot;
        generations[i] = k->seq[slots[i]].generation;
    }
    stage_busy(&k->stage, slots, generations, count);
    if (rows) engine_fill(&k->engine, k->span, count, k->tokens, rows, k->piece, k->piece_count);
    for (uint32_t i = 0; i < count; i++) {
        struct prefill_slot *p = table_prefill(&k->table, slots[i]);
        const uint32_t filled = word_for(&p->filled, generations[i]) + k->span[i].rows;
        shm_store_release(&p->filled, word_pack(generations[i], filled));
        pages_filled(&k->pages, slots[i]);
        if (is_filled(k, slots[i])) hand_over(k, slots[i]);
    }
    engine_told(&k->engine);
    count_beginners(k); /* again, for what it notes: when nobody waits any more the crowd is over */
    stage_idle(&k->stage);
    stage_count(&k->stage, PREFILL_TOKENS, rows);
    stage_count(&k->stage, PREFILL_CHUNKS, 1);
    stage_count(&k->stage, PREFILL_WORK_NS, clock_ns() - begin);
}

static void attach(struct prefill *k, int argc, char **argv)
{
    stage_attach(&k->stage, ROLE_PREFILL, "fills the KV cache with prompts", argc, argv);
    table_attach(&k->table, &k->stage);
    k->chunk = (uint32_t)wiring_u64(&k->stage.wiring, "prefill.chunk", 128);
    k->max_sequences = (uint32_t)wiring_u64(&k->stage.wiring, "max_sequences", 32);
    const uint32_t picture = (uint32_t)wiring_u64(&k->stage.wiring, "media.picture_budget", 0), rows_max = k->chunk > picture ? k->chunk : picture;
    engine_open_forward(&k->engine, &k->stage, ENGINE_FILL, k->table.limits.slot_count, rows_max);
    k->seq = calloc(k->table.limits.slot_count, sizeof *k->seq);
    k->span = calloc(ENGINE_FILL_SPANS_MAX, sizeof *k->span);
    k->tokens = calloc(rows_max, sizeof *k->tokens);
    k->piece_max = rows_max;
    k->piece = calloc(k->piece_max, sizeof *k->piece);
    k->sound_token_bytes = SOUND_FRAME * sizeof(float);
    k->picture_token_bytes = wiring_u64(&k->stage.wiring, "media.picture_token_bytes", 0);
    if (!k->seq || !k->span || !k->tokens || !k->piece) stage_exit(&k->stage, EXIT_MISSING, "out of memory");
    open_pages(k);
    scan(k);
    pages_rebuild(&k->pages);
}

int main(int argc, char **argv)
{
    static struct prefill k;

    attach(&k, argc, argv);
    stage_ready(&k.stage);
    while (stage_running(&k.stage)) {
        take_messages(&k);
        admit(&k);
        if (first_in(&k, SEQ_FILLING, 0) < k.table.limits.slot_count) fill(&k);
        else stage_wait(&k.stage, first_in(&k, SEQ_WAITING, 0) < k.table.limits.slot_count ? 20 : 1000); /* one that waits may be cancelled */
    }
    return 0;
}
