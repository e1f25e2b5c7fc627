/* stages/prefill/pages.c - giving pages, sharing them, keeping them, taking them back (contract in pages.h). */
#include "stages/prefill/pages.h"

#include "shm/clock.h"
#include "shm/error.h"
#include "shm/must.h"

#include <stdlib.h>
#include <string.h>

static bool is_caching(const struct pages *p) { return p->kept_max[LAYER_FULL] > 0 && p->kept_max[LAYER_SLIDING] > 0; }

int pages_open(struct pages *p, const struct table *table, const struct kv_geometry *geometry, uint64_t cache_bytes, uint32_t ahead, uint64_t seed, pages_copy_fn *copy, void *copy_context)
{
    const struct table_limits *l = &table->limits;
    const uint32_t totals[LAYER_TYPES] = {[LAYER_SLIDING] = geometry->sliding_page_count, [LAYER_FULL] = geometry->full_page_count};

    memset(p, 0, sizeof *p);
    p->table = table;
    p->geometry = geometry;
    const double share = cache_bytes < geometry->arena_bytes ? (double)cache_bytes / (double)geometry->arena_bytes : 1;
    p->ahead = ahead;
    p->copy = copy;
    p->copy_context = copy_context;
    for (int t = 0; t < LAYER_TYPES; t++) {
        p->pool[t].total = totals[t];
        p->kept_max[t] = (uint32_t)(share * totals[t]);
        p->pool[t].free = calloc(totals[t], sizeof *p->pool[t].free);
        p->pool[t].refs = calloc(totals[t], sizeof *p->pool[t].refs);
        if (!p->pool[t].free || !p->pool[t].refs) return -E_NOMEM;
    }
    p->seq = calloc(l->slot_count, sizeof *p->seq);
    p->match = calloc(l->full_pages_max, sizeof *p->match);
    p->source = calloc(l->sliding_pages_max, sizeof *p->source);
    p->from = calloc(l->sliding_pages_max, sizeof *p->from);
    p->to = calloc(l->sliding_pages_max, sizeof *p->to);
    p->nodes = calloc((size_t)l->slot_count * l->full_pages_max, sizeof *p->nodes);
    if (!p->seq || !p->match || !p->source || !p->from || !p->to || !p->nodes) return -E_NOMEM;
    for (uint32_t s = 0; s < l->slot_count; s++) p->seq[s].node = p->nodes + (uint64_t)s * l->full_pages_max;
    return prefix_open(&p->prefix, is_caching(p) ? geometry->full_page_count : 0, seed);
}

void pages_close(struct pages *p)
{
    for (int t = 0; t < LAYER_TYPES; t++) {
        free(p->pool[t].free);
        free(p->pool[t].refs);
    }
    free(p->seq);
    free(p->nodes);
    free(p->match);
    free(p->source);
    free(p->from);
    free(p->to);
    prefix_close(&p->prefix);
    memset(p, 0, sizeof *p);
}

/* ---- free pages -------------------------------------------------------------------------------- */

static void drop(struct pages *p, enum layer_type type, uint32_t page)
{
    struct pages_pool *pool = &p->pool[type];

    must(page < pool->total && pool->refs[page] > 0);
    if (--pool->refs[page] == 0) pool->free[pool->free_count++] = page;
}

/* A page for one owner, at the cost of the cache if need be; PREFIX_NONE: there is none. */
static uint32_t get(struct pages *p, enum layer_type type)
{
    struct pages_pool *pool = &p->pool[type];
    uint32_t full, sliding;

    if (pool->free_count == 0 && type == LAYER_SLIDING && (sliding = prefix_evict_sliding(&p->prefix)) != PREFIX_NONE) drop(p, LAYER_SLIDING, sliding);
    while (pool->free_count == 0 && type == LAYER_FULL && prefix_evict(&p->prefix, &full, &sliding)) {
        drop(p, LAYER_FULL, full); /* one that a sequence has as well is not free by that */
        if (sliding != PREFIX_NONE) drop(p, LAYER_SLIDING, sliding);
    }
    if (pool->free_count == 0) return PREFIX_NONE;
    const uint32_t page = pool->free[--pool->free_count];
    pool->refs[page] = 1;
    return page;
}

/* The longest unused beyond what may be kept. */
static void trim(struct pages *p)
{
    uint32_t full, sliding;

    while (p->prefix.list[LAYER_SLIDING].count > p->kept_max[LAYER_SLIDING]) drop(p, LAYER_SLIDING, prefix_evict_sliding(&p->prefix));
    while (p->prefix.list[LAYER_FULL].count > p->kept_max[LAYER_FULL] && prefix_evict(&p->prefix, &full, &sliding)) {
        drop(p, LAYER_FULL, full);
        if (sliding != PREFIX_NONE) drop(p, LAYER_SLIDING, sliding);
    }
}

static uint32_t available(const struct pages *p, enum layer_type type) { return p->pool[type].free_count + p->prefix.list[type].count; }

uint32_t pages_used(const struct pages *p, enum layer_type type) { return p->pool[type].total - available(p, type); }

/* ---- rings ---------------------------------------------------------------------------------------- */

static uint32_t ring_pages(const struct pages *p) { return p->geometry->sliding_pages_per_seq; }

/* The first page that is needed to go on at page `at`. */
static uint32_t window_first(const struct pages *p, uint32_t at)
{
    const uint32_t position = at * KV_PAGE_TOKENS, behind = p->geometry->window - 1;

    return position > behind ? (position - behind) / KV_PAGE_TOKENS : 0;
}

static uint32_t filled_of(const struct pages *p, uint32_t slot) { return word_for(&table_prefill(p->table, slot)->filled, p->seq[slot].generation); }

/* No position from here on has been written. */
static uint32_t written_most(const struct pages *p, uint32_t slot)
{
    const struct pages_sequence *q = &p->seq[slot];
    const uint32_t filled = filled_of(p, slot);

    if (filled < q->prompt_count) return filled > q->begun ? filled : q->begun;
    const uint32_t output = word_for(&table_verify(p->table, slot)->commit, q->generation) + p->ahead;
    return q->prompt_count + (output < q->max_output ? output : q->max_output);
}

/* Is this page of its prompt in its ring, whole, and as prefill wrote it? */
static bool is_in_ring(const struct pages *p, uint32_t slot, uint32_t index)
{
    if (index < p->seq[slot].ring_first || (index + 1) * KV_PAGE_TOKENS > filled_of(p, slot)) return false;
    return (uint64_t)(index + ring_pages(p)) * KV_PAGE_TOKENS >= written_most(p, slot);
}

static uint32_t ring_page(const struct pages *p, uint32_t slot, uint32_t index) { return table_sliding_pages(p->table, slot)[index % ring_pages(p)]; }

/* A sequence whose ring has the sliding page of this node; PREFIX_NONE: nobody's. */
static uint32_t donor_of(const struct pages *p, uint32_t node, uint32_t index)
{
    const uint32_t slot = p->prefix.node[node].donor;

    if (slot == PREFIX_NONE || p->seq[slot].generation == 0 || p->seq[slot].node_count <= index || p->seq[slot].node[index] != node) return PREFIX_NONE;
    return is_in_ring(p, slot, index) ? slot : PREFIX_NONE;
}

static uint32_t window_source(const struct pages *p, uint32_t node, uint32_t index)
{
    if (p->prefix.node[node].sliding_page != PREFIX_NONE) return p->prefix.node[node].sliding_page;
    const uint32_t donor = donor_of(p, node, index);
    return donor == PREFIX_NONE ? PREFIX_NONE : ring_page(p, donor, index);
}

/* ---- a sequence begins ---------------------------------------------------------------------------------- */

/* Pages of the prompt that are known, into p->match; *usable: those of them with which the prompt can go on. The last token is always computed: its state is wanted. */
static uint32_t find_prefix(struct pages *p, uint32_t slot, uint32_t *usable)
{
    const uint32_t most = is_caching(p) ? prompt_known_pages(p->table, slot, table_tokenize(p->table, slot)->prompt_count - 1) : 0;
    uint32_t count = 0, run = 0, parent = PREFIX_NONE;
    struct prefix_page page;

    *usable = 0;
    while (count < most) {
        prompt_page(p->table, slot, count, &page);
        const uint32_t node = prefix_find(&p->prefix, parent, &page);
        if (node == PREFIX_NONE) break;
        run = window_source(p, node, count) != PREFIX_NONE ? run + 1 : 0;
        p->match[count++] = parent = node;
        if (run >= count - window_first(p, count) && !prompt_cuts_picture(p->table, slot, count * KV_PAGE_TOKENS)) *usable = count;
    }
    return count;
}

/* Would taking this many leave the cached pages alone that are to be used (copies), or at least the sequence with all it needs (else)? */
static bool has_room(const struct pages *p, uint32_t shared, uint32_t full, uint32_t sliding, bool copies)
{
    uint32_t idle = 0, kept = 0;

    for (uint32_t i = 0; i < shared; i++) {
        idle += p->prefix.node[p->match[i]].holders == 0;
        kept += copies && i >= window_first(p, shared) && p->prefix.node[p->match[i]].sliding_page != PREFIX_NONE;
    }
    return full - shared + idle <= available(p, LAYER_FULL) && sliding + kept <= available(p, LAYER_SLIDING);
}

/* The window before page `shared`: where its pages are, into p->source. Those of the cache become the newest, or the ring's own if there is no room for copies. */
static void find_window(struct pages *p, uint32_t slot, uint32_t shared, bool copies)
{
    const uint32_t first = window_first(p, shared);

    for (uint32_t i = first; i < shared; i++) {
        const bool is_cached = p->prefix.node[p->match[i]].sliding_page != PREFIX_NONE;
        p->source[i - first] = window_source(p, p->match[i], i);
        if (is_cached && copies) prefix_use_sliding(&p->prefix, p->match[i]);
        if (is_cached && !copies) table_sliding_pages(p->table, slot)[i % ring_pages(p)] = prefix_take_sliding(&p->prefix, p->match[i]);
    }
}

/* Fills the page tables: `shared` pages as matched, the window's own (is_own), new ones. false: nothing is taken. */
static bool assign(struct pages *p, uint32_t slot, uint32_t shared, uint32_t full, uint32_t sliding)
{
    uint32_t *full_pages = table_full_pages(p->table, slot), *sliding_pages = table_sliding_pages(p->table, slot);
    uint32_t full_count = 0, page = 0;

    for (uint32_t i = 0; i < shared; i++) prefix_hold(&p->prefix, p->match[i]);
    while (full_count < full - shared && (page = get(p, LAYER_FULL)) != PREFIX_NONE) full_pages[shared + full_count++] = page;
    for (uint32_t i = 0; i < sliding && page != PREFIX_NONE; i++)
        if (sliding_pages[i] == PREFIX_NONE) page = sliding_pages[i] = get(p, LAYER_SLIDING);
    if (page == PREFIX_NONE) {
        while (full_count > 0) drop(p, LAYER_FULL, full_pages[shared + --full_count]);
        for (uint32_t i = 0; i < sliding; i++)
            if (sliding_pages[i] != PREFIX_NONE) drop(p, LAYER_SLIDING, sliding_pages[i]);
        for (uint32_t i = shared; i-- > 0;) prefix_let_go(&p->prefix, p->match[i]);
        return false;
    }
    for (uint32_t i = 0; i < shared; i++) {
        full_pages[i] = p->prefix.node[p->match[i]].full_page;
        p->pool[LAYER_FULL].refs[full_pages[i]]++;
    }
    return true;
}

/* The window before page `shared`, into the new ring, as far as it is not there. false: a donor wrote over it meanwhile. */
static bool copy_window_in(struct pages *p, uint32_t slot, uint32_t shared)
{
    const uint32_t first = window_first(p, shared);
    uint32_t count = 0;

    for (uint32_t i = first; i < shared; i++) {
        if (p->source[i - first] == ring_page(p, slot, i)) continue;
        p->from[count] = p->source[i - first];
        p->to[count++] = ring_page(p, slot, i);
    }
    p->copy(p->copy_context, LAYER_SLIDING, p->from, p->to, count);
    for (uint32_t i = first; i < shared; i++)
        if (p->source[i - first] != ring_page(p, slot, i) && window_source(p, p->match[i], i) != p->source[i - first]) return false;
    for (uint32_t i = first; i < shared; i++) p->prefix.node[p->match[i]].donor = slot;
    return true;
}

int pages_take(struct pages *p, uint32_t slot, uint32_t generation)
{
    const struct tokenize_slot *t = table_tokenize(p->table, slot);
    struct prefill_slot *out = table_prefill(p->table, slot);
    struct pages_sequence *q = &p->seq[slot];
    const uint32_t tokens = t->prompt_count + t->max_output, full = kv_full_pages_needed(p->geometry, tokens), sliding = kv_sliding_pages_needed(p->geometry, tokens);
    uint32_t usable, matched = find_prefix(p, slot, &usable);

    must(q->generation == 0);
    if (usable && !has_room(p, usable, full, sliding, false)) matched = usable = 0; /* alone it may have room: what it does not use may go */
    if (!has_room(p, usable, full, sliding, false)) return -E_FULL;
    for (uint32_t i = 0; i < sliding; i++) table_sliding_pages(p->table, slot)[i] = PREFIX_NONE;
    find_window(p, slot, usable, has_room(p, usable, full, sliding, true));
    if (!assign(p, slot, usable, full, sliding)) return -E_FULL;
    *q = (struct pages_sequence){.generation = generation, .prompt_count = t->prompt_count, .max_output = t->max_output, .node = q->node, .node_count = usable,
                                 .ring_first = window_first(p, usable), .branch = matched > usable && !prompt_cuts_picture(p->table, slot, matched * KV_PAGE_TOKENS) ? matched : 0};
    memcpy(q->node, p->match, usable * sizeof *q->node);
    out->full_page_count = full;
    out->sliding_page_count = sliding;
    out->cached_tokens = usable * KV_PAGE_TOKENS;
    out->started_ns = clock_ns();
    shm_store_release(&out->pages, word_pack(generation, 1));
    if (usable && !copy_window_in(p, slot, usable)) { /* too late: the same bytes are written again, into the shared pages, too */
        out->cached_tokens = 0;
        q->ring_first = 0;
    }
    return (int)out->cached_tokens;
}

uint32_t pages_writer(const struct pages *p, uint32_t slot, uint32_t first, uint32_t *writer, uint32_t *generation)
{
    const struct pages_sequence *q = &p->seq[slot];
    uint32_t count = 0;

    for (uint32_t i = first; i < q->node_count; i++, count++) {
        const struct prefix_node *n = &p->prefix.node[q->node[i]];
        if (count && (n->writer != *writer || n->writer_generation != *generation)) break;
        *writer = n->writer;
        *generation = n->writer_generation;
    }
    return count;
}

void pages_note_writer(struct pages *p, uint32_t slot)
{
    const struct pages_sequence *q = &p->seq[slot];

    for (uint32_t i = 0; i < q->node_count; i++) {
        p->prefix.node[q->node[i]].writer = slot;
        p->prefix.node[q->node[i]].writer_generation = q->generation;
    }
}

/* ---- another prompt of the same beginning is being filled ------------------------------------------------ */

uint32_t pages_gained(struct pages *p, uint32_t slot, uint32_t leader, uint32_t *shared)
{
    const uint32_t own = is_caching(p) ? prompt_known_pages(p->table, slot, table_tokenize(p->table, slot)->prompt_count - 1) : 0, its = prompt_known_pages(p->table, leader, p->seq[leader].prompt_count);
    struct prefix_page a, b;
    uint32_t usable;

    for (*shared = 0; *shared < own && *shared < its; ++*shared) {
        prompt_page(p->table, slot, *shared, &a);
        prompt_page(p->table, leader, *shared, &b);
        if (memcmp(&a, &b, sizeof a) != 0) break;
    }
    while (*shared && prompt_cuts_picture(p->table, slot, *shared * KV_PAGE_TOKENS)) --*shared;
    if (*shared == 0) return 0;
    find_prefix(p, slot, &usable);
    return *shared > usable ? *shared - usable : 0;
}

void pages_want(struct pages *p, uint32_t slot, uint32_t at)
{
    struct pages_sequence *q = &p->seq[slot];

    if (q->branch == 0 || at < q->branch) q->branch = at; /* who waits for a later one says so again */
}

uint32_t pages_stop(const struct pages *p, uint32_t slot, uint32_t filled, uint32_t count)
{
    const uint32_t at = p->seq[slot].branch * KV_PAGE_TOKENS;

    return at > filled && at - filled < count ? at - filled : count;
}

/* ---- it goes on ------------------------------------------------------------------------------------------ */

/* Keeps the window before page `at` of a sequence that has it in its ring, if all of it is there and there is room. */
static void keep_window(struct pages *p, uint32_t slot, uint32_t at)
{
    const struct pages_sequence *q = &p->seq[slot];
    const uint32_t first = window_first(p, at);
    uint32_t count = 0, kept = 0;

    if (at > q->node_count) return;
    for (uint32_t i = first; i < at; i++) {
        if (p->prefix.node[q->node[i]].sliding_page != PREFIX_NONE) prefix_use_sliding(&p->prefix, q->node[i]), kept++;
        else if (!is_in_ring(p, slot, i)) return;
        else count++;
    }
    if (count == 0 || count + kept > available(p, LAYER_SLIDING) || count + kept > p->kept_max[LAYER_SLIDING]) return;
    count = 0;
    for (uint32_t i = first; i < at; i++) {
        if (p->prefix.node[q->node[i]].sliding_page != PREFIX_NONE) continue;
        p->from[count] = ring_page(p, slot, i);
        p->to[count++] = get(p, LAYER_SLIDING);
    }
    p->copy(p->copy_context, LAYER_SLIDING, p->from, p->to, count);
    for (uint32_t i = first, n = 0; i < at; i++) {
        if (p->prefix.node[q->node[i]].sliding_page != PREFIX_NONE) continue;
        if (is_in_ring(p, slot, i)) prefix_give_sliding(&p->prefix, q->node[i], p->to[n]);
        else drop(p, LAYER_SLIDING, p->to[n]); /* verify came round while it was copied */
        n++;
    }
    trim(p);
}

/* After reading its prompt: was it this sequence's? One that a predecessor handed over may end, and its slot change hands, while we look. */
static bool is_still_there(const struct pages *p, uint32_t slot)
{
    shm_fence_acquire(); /* the prompt was read before this */
    return slot_occupied(p->table, slot) == p->seq[slot].generation;
}

void pages_filled(struct pages *p, uint32_t slot)
{
    struct pages_sequence *q = &p->seq[slot];
    const uint32_t filled = filled_of(p, slot), whole = is_caching(p) ? prompt_known_pages(p->table, slot, filled) : 0;
    struct prefix_page page;

    while (q->node_count < whole) {
        const uint32_t parent = q->node_count ? q->node[q->node_count - 1] : PREFIX_NONE, own = table_full_pages(p->table, slot)[q->node_count];
        prompt_page(p->table, slot, q->node_count, &page);
        if (!is_still_there(p, slot)) return;
        uint32_t node = prefix_find(&p->prefix, parent, &page);
        if (node != PREFIX_NONE) prefix_hold(&p->prefix, node); /* two wrote the same at the same time: ours stays ours alone */
        else {
            node = prefix_add(&p->prefix, parent, &page, own);
            p->pool[LAYER_FULL].refs[own]++;
        }
        p->prefix.node[node].donor = p->prefix.node[node].writer = slot;
        p->prefix.node[node].writer_generation = q->generation;
        q->node[q->node_count++] = node;
    }
    if (q->branch && filled >= q->branch * KV_PAGE_TOKENS) {
        keep_window(p, slot, q->branch);
        q->branch = 0;
    }
    q->end = q->node_count;
    while (q->end && prompt_cuts_picture(p->table, slot, q->end * KV_PAGE_TOKENS)) q->end--;
    if (!is_still_there(p, slot)) q->end = 0;
}

void pages_handed(struct pages *p, uint32_t slot)
{
    const struct pages_sequence *q = &p->seq[slot];

    if (q->generation == 0 || q->end == 0) return;
    if ((uint64_t)(window_first(p, q->end) + ring_pages(p)) * KV_PAGE_TOKENS < (uint64_t)q->prompt_count + q->max_output) keep_window(p, slot, q->end);
}

void pages_give_back(struct pages *p, uint32_t slot)
{
    struct pages_sequence *q = &p->seq[slot];
    const struct prefill_slot *in = table_prefill(p->table, slot);

    for (uint32_t i = q->ring_first; i < q->node_count; i++) { /* what the output left of the prompt stays where it is */
        if (p->prefix.node[q->node[i]].sliding_page != PREFIX_NONE || !is_in_ring(p, slot, i)) continue;
        p->pool[LAYER_SLIDING].refs[ring_page(p, slot, i)]++;
        prefix_give_sliding(&p->prefix, q->node[i], ring_page(p, slot, i));
    }
    for (uint32_t i = q->node_count; i-- > 0;) prefix_let_go(&p->prefix, q->node[i]);
    for (uint32_t i = in->full_page_count; i-- > 0;) drop(p, LAYER_FULL, table_full_pages(p->table, slot)[i]);
    for (uint32_t i = in->sliding_page_count; i-- > 0;) drop(p, LAYER_SLIDING, table_sliding_pages(p->table, slot)[i]);
    trim(p);
    *q = (struct pages_sequence){.node = q->node};
}

/* ---- after a restart ------------------------------------------------------------------------------------------ */

void pages_found(struct pages *p, uint32_t slot, uint32_t generation)
{
    struct prefill_slot *in = table_prefill(p->table, slot);
    struct pages_sequence *q = &p->seq[slot];

    q->generation = generation;
    q->prompt_count = table_tokenize(p->table, slot)->prompt_count;
    q->max_output = table_tokenize(p->table, slot)->max_output;
    if (filled_of(p, slot) < in->cached_tokens) in->cached_tokens = 0; /* the copy was not sure to be complete: it begins at the beginning */
    q->ring_first = window_first(p, in->cached_tokens / KV_PAGE_TOKENS);
    q->begun = filled_of(p, slot) + p->geometry->rows_max < q->prompt_count ? filled_of(p, slot) + p->geometry->rows_max : q->prompt_count;
}

/* The table says who has a page: of the sliding layers one sequence, of the full ones maybe several. */
void pages_rebuild(struct pages *p)
{
    for (uint32_t s = 0; s < p->table->limits.slot_count; s++) {
        const struct prefill_slot *in = table_prefill(p->table, s);
        if (p->seq[s].generation == 0) continue;
        for (uint32_t i = 0; i < in->full_page_count; i++) {
            must(table_full_pages(p->table, s)[i] < p->pool[LAYER_FULL].total);
            p->pool[LAYER_FULL].refs[table_full_pages(p->table, s)[i]]++;
        }
        for (uint32_t i = 0; i < in->sliding_page_count; i++) {
            must(table_sliding_pages(p->table, s)[i] < p->pool[LAYER_SLIDING].total);
            must(p->pool[LAYER_SLIDING].refs[table_sliding_pages(p->table, s)[i]]++ == 0);
        }
    }
    for (int t = 0; t < LAYER_TYPES; t++)
        for (uint32_t page = p->pool[t].total; page-- > 0;)
            if (p->pool[t].refs[page] == 0) p->pool[t].free[p->pool[t].free_count++] = page;
    for (uint32_t s = 0; s < p->table->limits.slot_count; s++)
        if (p->seq[s].generation) pages_filled(p, s);
}
