/* stages/prefill/prefix.c - nodes, buckets, and who goes first (contract in prefix.h). */
#include "stages/prefill/prefix.h"

#include "shm/error.h"
#include "shm/must.h"

#include <stdlib.h>
#include <string.h>

int prefix_open(struct prefix *x, uint32_t node_max, uint64_t seed)
{
    uint32_t buckets = 16;

    memset(x, 0, sizeof *x);
    while (buckets < node_max && buckets < 1u << 30) buckets *= 2;
    x->node = calloc(node_max ? node_max : 1, sizeof *x->node);
    x->bucket = malloc(buckets * sizeof *x->bucket);
    if (!x->node || !x->bucket) {
        prefix_close(x);
        return -E_NOMEM;
    }
    memset(x->bucket, 0xff, buckets * sizeof *x->bucket);
    x->free_first = PREFIX_NONE;
    x->node_max = node_max;
    x->bucket_mask = buckets - 1;
    x->seed = seed;
    for (int t = 0; t < LAYER_TYPES; t++) x->list[t] = (struct prefix_list){.oldest = PREFIX_NONE, .newest = PREFIX_NONE};
    return 0;
}

void prefix_close(struct prefix *x)
{
    free(x->node);
    free(x->bucket);
    memset(x, 0, sizeof *x);
}

/* ---- lists: older and newer ---- */

static void list_add(struct prefix *x, int type, uint32_t node)
{
    struct prefix_list *l = &x->list[type];

    x->node[node].older[type] = l->newest;
    x->node[node].newer[type] = PREFIX_NONE;
    if (l->newest == PREFIX_NONE) l->oldest = node;
    else x->node[l->newest].newer[type] = node;
    l->newest = node;
    l->count++;
}

static void list_remove(struct prefix *x, int type, uint32_t node)
{
    struct prefix_list *l = &x->list[type];
    const uint32_t older = x->node[node].older[type], newer = x->node[node].newer[type];

    must(l->count > 0);
    if (older == PREFIX_NONE) l->oldest = newer;
    else x->node[older].newer[type] = newer;
    if (newer == PREFIX_NONE) l->newest = older;
    else x->node[newer].older[type] = older;
    l->count--;
}

/* ---- nodes ---- */

static uint64_t hash_of(const struct prefix *x, uint32_t parent, const struct prefix_page *page)
{
    uint64_t hash = x->seed ^ parent;

    for (uint32_t i = 0; i < KV_PAGE_TOKENS; i++) hash = ((hash ^ page->token[i]) * 0x9e3779b97f4a7c15ull) ^ (hash >> 29);
    for (uint32_t i = 0; i < PREFIX_MARK_WORDS; i++) hash = ((hash ^ page->mark[i]) * 0x9e3779b97f4a7c15ull) ^ (hash >> 29);
    return hash ^ hash >> 32;
}

uint32_t prefix_find(const struct prefix *x, uint32_t parent, const struct prefix_page *page)
{
    const uint64_t hash = hash_of(x, parent, page);
    uint32_t node = x->bucket[hash & x->bucket_mask];

    while (node != PREFIX_NONE) {
        const struct prefix_node *n = &x->node[node];
        if (n->hash == hash && n->parent == parent && memcmp(&n->page, page, sizeof *page) == 0) return node;
        node = n->next;
    }
    return PREFIX_NONE;
}

uint32_t prefix_add(struct prefix *x, uint32_t parent, const struct prefix_page *page, uint32_t full_page)
{
    const uint64_t hash = hash_of(x, parent, page);
    const uint32_t node = x->free_first != PREFIX_NONE ? x->free_first : x->fresh;

    must(node < x->node_max && full_page != PREFIX_NONE); /* a node for every page there is */
    must(parent == PREFIX_NONE || x->node[parent].holders > 0);
    if (node == x->fresh) x->fresh++;
    else x->free_first = x->node[node].next;
    x->node_count++;
    x->node[node] = (struct prefix_node){.page = *page, .hash = hash, .parent = parent, .next = x->bucket[hash & x->bucket_mask], .holders = 1,
                                         .full_page = full_page, .sliding_page = PREFIX_NONE, .donor = PREFIX_NONE};
    x->bucket[hash & x->bucket_mask] = node;
    if (parent != PREFIX_NONE) x->node[parent].children++;
    return node;
}

void prefix_hold(struct prefix *x, uint32_t node)
{
    if (x->node[node].holders++ == 0) list_remove(x, LAYER_FULL, node);
}

void prefix_let_go(struct prefix *x, uint32_t node)
{
    must(x->node[node].holders > 0);
    if (--x->node[node].holders == 0) list_add(x, LAYER_FULL, node);
}

static void leave_bucket(struct prefix *x, uint32_t node)
{
    uint32_t *at = &x->bucket[x->node[node].hash & x->bucket_mask];

    while (*at != node) at = &x->node[*at].next;
    *at = x->node[node].next;
}

bool prefix_evict(struct prefix *x, uint32_t *full_page, uint32_t *sliding_page)
{
    const uint32_t node = x->list[LAYER_FULL].oldest;

    if (node == PREFIX_NONE) return false;
    struct prefix_node *n = &x->node[node];
    must(n->holders == 0 && n->children == 0);
    *full_page = n->full_page;
    *sliding_page = n->sliding_page;
    if (n->sliding_page != PREFIX_NONE) list_remove(x, LAYER_SLIDING, node);
    list_remove(x, LAYER_FULL, node);
    leave_bucket(x, node);
    if (n->parent != PREFIX_NONE) x->node[n->parent].children--;
    n->next = x->free_first;
    x->free_first = node;
    x->node_count--;
    return true;
}

/* ---- pages of the sliding layers ---- */

void prefix_give_sliding(struct prefix *x, uint32_t node, uint32_t page)
{
    must(x->node[node].sliding_page == PREFIX_NONE && page != PREFIX_NONE);
    x->node[node].sliding_page = page;
    list_add(x, LAYER_SLIDING, node);
}

void prefix_use_sliding(struct prefix *x, uint32_t node)
{
    list_remove(x, LAYER_SLIDING, node);
    list_add(x, LAYER_SLIDING, node);
}

uint32_t prefix_take_sliding(struct prefix *x, uint32_t node)
{
    const uint32_t page = x->node[node].sliding_page;

    must(page != PREFIX_NONE);
    list_remove(x, LAYER_SLIDING, node);
    x->node[node].sliding_page = PREFIX_NONE;
    return page;
}

uint32_t prefix_evict_sliding(struct prefix *x)
{
    const uint32_t node = x->list[LAYER_SLIDING].oldest;

    return node == PREFIX_NONE ? PREFIX_NONE : prefix_take_sliding(x, node);
}
