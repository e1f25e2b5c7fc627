/* schemas/slots.c - the gateway's side of the sequence table.
 *
 * Life of a slot here: placed (record written, then committed REQUESTED), watched while
 * it runs, closed when every stage is done with it, kept for resume and
 * previous_response_id, reused when a new request needs it: free ones first, then those
 * nobody can ask for again, then the oldest. Never one that runs or is being read. */
#include "schemas/front.h"

#include "schemas/pack.h"
#include "shm/error.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <time.h>

#define PUNCH_BYTES (64u * 1024u) /* a record larger than this gives its pages back */

static struct gateway_slot *record_of(struct front *f, uint32_t s)
{
    return table_gateway(&f->table, s);
}

static enum slot_phase phase_of(struct front *f, uint32_t s)
{
    return (enum slot_phase)word_value(shm_load_relaxed(&record_of(f, s)->commit)); /* we are its only writer */
}

static uint32_t generation_of(struct front *f, uint32_t s)
{
    return word_generation(shm_load_relaxed(&record_of(f, s)->commit));
}

static void drop_view(struct slot_state *st)
{
    if (st->has_view) view_close(&st->view);
    st->has_view = false;
}

struct view *slots_view(struct front *f, uint32_t s)
{
    struct slot_state *st = &f->slot[s];
    const uint32_t generation = generation_of(f, s);

    if (phase_of(f, s) == PHASE_FREE || generation == 0) return NULL;
    if (word_for(&table_launcher(&f->table, s)->verdict, generation) == 1 + ROLE_GATEWAY) return NULL; /* it killed our predecessor */
    if (st->has_view && st->generation == generation) {
        st->view.tokenizer = f->tokenizer;
        return &st->view;
    }
    drop_view(st);
    st->generation = generation;
    if (view_open(&st->view, &f->table, s, generation) != 0) return NULL;
    st->has_view = true;
    st->view.tokenizer = f->tokenizer;
    return &st->view;
}

/* ---- placing ----------------------------------------------------------------------- */

/* Which of two slots is the better one to reuse? Lower is better. */
static uint64_t reuse_cost(struct front *f, uint32_t s)
{
    if (phase_of(f, s) == PHASE_FREE) return 0;
    const struct view *v = slots_view(f, s);
    const uint64_t order = record_of(f, s)->order + 1;
    return v && v->stored ? order | 1ull << 63 : order;
}

static int find_room(struct front *f)
{
    uint64_t best_cost = UINT64_MAX;
    int best = -E_FULL;

    for (uint32_t s = 0; s < f->table.limits.slot_count; s++) {
        if (f->slot[s].watchers || phase_of(f, s) == PHASE_REQUESTED) continue;
        const uint64_t cost = reuse_cost(f, s);
        if (cost >= best_cost) continue;
        best_cost = cost;
        best = (int)s;
        if (cost == 0) break;
    }
    return best;
}

/* Back to nobody's: readers find no request here, and a large record gives its memory back. */
static void release(struct front *f, uint32_t s)
{
    struct gateway_slot *g = record_of(f, s);

    drop_view(&f->slot[s]);
    shm_store_release(&g->commit, word_pack(generation_of(f, s), PHASE_FREE));
    if (g->record_bytes > PUNCH_BYTES) {
        madvise(table_request(&f->table, s), f->table.stride[ROLE_GATEWAY] - f->table.request_offset, MADV_REMOVE); /* refused by the kernel: the pages are merely reused later */
        g->request_bytes = g->record_bytes = 0;
    }
}

static void fill(struct front *f, struct gateway_slot *g, const struct exchange *x, uint32_t choice, const msgpack_sbuffer *record, size_t request_bytes, size_t media_offset, uint32_t s)
{
    request_params_of(&x->request, choice, &g->params);
    memcpy(table_request(&f->table, s), record->data, record->size);
    g->request_bytes = request_bytes;
    g->record_bytes = record->size;
    g->media_offset = media_offset;
    g->media_count = x->request.media.count;
    memset(g->id, 0, sizeof g->id);
    if (choice == 0) snprintf(g->id, sizeof g->id, "%s", x->id);
    else snprintf(g->id, sizeof g->id, "%.48s.%u", x->id, choice);
    g->order = f->next_order++;
    g->accepted_ns = clock_ns();
    g->created_s = (uint64_t)time(NULL);
    g->key_hash = x->connection->key_hash;
}

/* Who works on it first. A ring that is full loses the message; its reader sees that and scans. */
static void announce(struct front *f, uint32_t s, uint32_t generation)
{
    const struct ring_msg msg = {.slot = s, .generation = generation};

    ring_publish(&f->stage.ring[record_of(f, s)->media_count ? RING_GATEWAY_VISION : RING_GATEWAY_TOKENIZE], &msg);
}

int slots_place(struct front *f, struct exchange *x, struct fault *fault)
{
    const int s = find_room(f);
    const uint32_t choice = x->placed;
    msgpack_sbuffer record;

    if (s < 0) return -E_FULL;
    msgpack_sbuffer_init(&record);
    const size_t request_bytes = request_record(&x->request, choice, &record), media_offset = media_pack(&x->request.media, &record);
    if (record.size > f->table.limits.request_bytes_max) {
        msgpack_sbuffer_destroy(&record);
        return fault_set(fault, 413, "request_too_large", NULL, "The request is larger than the %u bytes this server accepts.", f->table.limits.request_bytes_max);
    }
    struct gateway_slot *g = record_of(f, (uint32_t)s);
    const uint32_t generation = generation_of(f, (uint32_t)s) + 1 ? generation_of(f, (uint32_t)s) + 1 : 1;
    release(f, (uint32_t)s); /* first: a crash while the record is half written leaves a free slot */
    fill(f, g, x, choice, &record, request_bytes, media_offset, (uint32_t)s);
    msgpack_sbuffer_destroy(&record);
    shm_store_release(&g->commit, word_pack(generation, PHASE_REQUESTED));
    x->placed++;
    f->slot[s].mark_ns = 0;
    f->slot[s].mark_tokens = 0;
    slots_watch(f, &x->watcher[choice], (uint32_t)s, generation);
    announce(f, (uint32_t)s, generation);
    stage_count(&f->stage, GATEWAY_REQUESTS, 1);
    return 0;
}

void slots_place_waiting(struct front *f)
{
    while (f->waiting) {
        struct exchange *x = f->waiting;
        struct fault fault = {0};
        int rc = 0;

        while (x->placed < x->count && (rc = slots_place(f, x, &fault)) == 0) continue;
        if (rc == -E_FULL) return;
        f->waiting = x->next_waiting;
        f->waiting_count--;
        x->waiting = false;
        if (rc == 0) {
            exchange_is_placed(x);
            exchange_pump(x);
        } else exchange_fail(x, &fault);
    }
}

/* ---- watching ------------------------------------------------------------------------- */

void slots_watch(struct front *f, struct watcher *w, uint32_t s, uint32_t generation)
{
    struct slot_state *st = &f->slot[s];

    w->slot = s;
    w->generation = generation;
    w->next = st->watchers;
    st->watchers = w;
    st->alone_ns = 0;
}

void slots_unwatch(struct front *f, struct watcher *w, bool cancel)
{
    struct slot_state *st = &f->slot[w->slot];

    if (!w->generation) return;
    for (struct watcher **at = &st->watchers; *at; at = &(*at)->next)
        if (*at == w) {
            *at = w->next;
            break;
        }
    if (!st->watchers && generation_of(f, w->slot) == w->generation && phase_of(f, w->slot) == PHASE_REQUESTED) {
        st->alone_ns = clock_ns();
        if (cancel) slots_cancel(f, w->slot, w->generation);
    }
    w->generation = 0;
}

void slots_cancel(struct front *f, uint32_t s, uint32_t generation)
{
    const struct ring_msg msg = {.slot = s, .generation = generation};
    struct gateway_slot *g = record_of(f, s);

    if (word_generation(shm_load_relaxed(&g->commit)) != generation || phase_of(f, s) != PHASE_REQUESTED || word_for(&g->cancel, generation)) return;
    shm_store_release(&g->cancel, word_pack(generation, 1));
    ring_publish(&f->stage.ring[RING_GATEWAY_VERIFY], &msg);
}

int slots_find(struct front *f, const char *id, uint64_t key_hash)
{
    for (uint32_t s = 0; s < f->table.limits.slot_count; s++) {
        const struct gateway_slot *g = record_of(f, s);
        if (phase_of(f, s) != PHASE_FREE && strncmp(g->id, id, sizeof g->id) == 0 && g->key_hash == key_hash) return (int)s;
    }
    return -E_NOT_FOUND;
}

uint32_t slots_running(const struct front *f)
{
    uint32_t running = 0;

    for (uint32_t s = 0; s < f->table.limits.slot_count; s++) running += slot_live(&f->table, s) != 0;
    return running;
}

/* ---- ending ------------------------------------------------------------------------------ */

/* Memory that closed records hold is bounded: the oldest go first. */
static void bound_retained(struct front *f)
{
    for (;;) {
        uint64_t bytes = 0, oldest_order = UINT64_MAX;
        uint32_t oldest = 0;

        for (uint32_t s = 0; s < f->table.limits.slot_count; s++) {
            const struct gateway_slot *g = record_of(f, s);
            if (phase_of(f, s) != PHASE_CLOSED || g->record_bytes <= PUNCH_BYTES) continue;
            bytes += g->record_bytes;
            if (!f->slot[s].watchers && g->order < oldest_order) {
                oldest_order = g->order;
                oldest = s;
            }
        }
        if (bytes <= f->retained_bytes_max || oldest_order == UINT64_MAX) return;
        release(f, oldest);
    }
}

static bool is_over(struct front *f, uint32_t s, uint32_t generation)
{
    const uint32_t prompt = word_for(&table_tokenize(&f->table, s)->commit, generation);
    const uint32_t verdict = word_for(&table_launcher(&f->table, s)->verdict, generation);

    if (prompt > PROMPT_READY) return true;
    if (!slot_is_over(&f->table, s, generation)) return false;
    return word_for(&table_detokenize(&f->table, s)->over, generation) || verdict == 1 + ROLE_GATEWAY;
}

static void close_slot(struct front *f, uint32_t s, uint32_t generation)
{
    const struct view *v = slots_view(f, s);

    if (v) metrics_finished(f, v);
    f->slot[s].alone_ns = 0;
    shm_store_release(&record_of(f, s)->commit, word_pack(generation, PHASE_CLOSED));
    bound_retained(f);
}

/* Time between tokens as clients see it: a round's tokens arrive together and share its time. */
static void mark_growth(struct front *f, uint32_t s, uint32_t generation)
{
    struct slot_state *st = &f->slot[s];
    const uint32_t tokens = word_for(&table_verify(&f->table, s)->commit, generation);
    const uint64_t now = clock_ns();

    if (tokens <= st->mark_tokens) return;
    if (st->mark_ns && st->mark_tokens) metrics_observe(f, HISTOGRAM_INTER_TOKEN, (now - st->mark_ns) / (tokens - st->mark_tokens), tokens - st->mark_tokens);
    st->mark_ns = now;
    st->mark_tokens = tokens;
}

void slots_step(struct front *f, uint32_t s)
{
    const uint32_t generation = generation_of(f, s);
    struct watcher *w, *next;

    if (phase_of(f, s) == PHASE_REQUESTED) {
        mark_growth(f, s, generation);
        if (is_over(f, s, generation)) close_slot(f, s, generation);
    }
    stage_busy(&f->stage, &s, &generation, 1);
    for (w = f->slot[s].watchers; w; w = next) { /* pumping may end the exchange and with it this watcher, never another one */
        next = w->next;
        exchange_pump(w->exchange);
    }
    stage_idle(&f->stage);
    if (phase_of(f, s) == PHASE_CLOSED && !f->slot[s].watchers) {
        const struct view *v = slots_view(f, s);
        if (!v || v->api != API_RESPONSES) release(f, s); /* nobody can ask for it again */
    }
}

void slots_sweep(struct front *f, uint64_t now_ns)
{
    for (uint32_t s = 0; s < f->table.limits.slot_count; s++) {
        struct slot_state *st = &f->slot[s];
        if (phase_of(f, s) == PHASE_FREE) continue;
        if (st->alone_ns && now_ns > st->alone_ns && now_ns - st->alone_ns > f->grace_ns) slots_cancel(f, s, generation_of(f, s));
        slots_step(f, s);
    }
    slots_place_waiting(f);
}

void slots_scan(struct front *f)
{
    const uint64_t now = clock_ns();

    for (uint32_t s = 0; s < f->table.limits.slot_count; s++) {
        const uint32_t generation = generation_of(f, s);
        if (phase_of(f, s) != PHASE_FREE && record_of(f, s)->order >= f->next_order) f->next_order = record_of(f, s)->order + 1;
        if (phase_of(f, s) != PHASE_REQUESTED) continue;
        f->slot[s].alone_ns = now; /* its connection died with our predecessor */
        const struct view *v = slots_view(f, s);
        if (!v || v->api != API_RESPONSES) slots_cancel(f, s, generation);
        if (word_for(&record_of(f, s)->cancel, generation)) {
            const struct ring_msg cancelled = {.slot = s, .generation = generation};
            ring_publish(&f->stage.ring[RING_GATEWAY_VERIFY], &cancelled);
        }
        if (word_for(&table_tokenize(&f->table, s)->commit, generation) != PROMPT_NONE) continue;
        announce(f, s, generation);
    }
}
