/* stages/prefill/prefix.h - which prompt pages are in the KV cache, whoever wrote them: the index behind the prefix cache.
 *
 * A node is KV_PAGE_TOKENS consecutive tokens behind a certain beginning (its parent), with the page of the full layers that holds their K and V and,
 * maybe, one of the sliding layers. What prefill writes at a position depends on nothing but the tokens, pictures and sounds up to it, so a node's pages serve every
 * prompt that begins that way, bit for bit. Equal means compared, token by token: a hash only says where to look.
 *
 * A node is held by the sequences that begin with it; their holders always hold its parents, too. What nobody holds stays until its room is wanted, the longest
 * unused first: a node never goes before the last of its children has gone. Pages of the sliding layers are only ever copied from, so they may go at any time.
 *
 * Data structure only, in private memory: it knows nothing of the table. A restarted prefill begins with an empty one. Not for several threads. */
#ifndef SLUICE_PREFILL_PREFIX_H
#define SLUICE_PREFILL_PREFIX_H

#include "model/kv.h"

#include <stdbool.h>
#include <stdint.h>

#define PREFIX_NONE UINT32_MAX        /* no node, no page; as a parent: the beginning of a prompt */
#define PREFIX_MARK_WORDS 4u

struct prefix_page {                  /* what tells one page of a prompt from another with the same beginning */
    uint32_t token[KV_PAGE_TOKENS];
    uint64_t mark[PREFIX_MARK_WORDS]; /* what tokens do not tell, hashed: the salt, contents of pictures and sounds; all 0: nothing */
};

struct prefix_node {
    struct prefix_page page;
    uint64_t hash;
    uint32_t parent, next;            /* next of its bucket, or free one */
    uint32_t children, holders;
    uint32_t full_page, sliding_page; /* PREFIX_NONE: none. full_page is never none while the node is in use */
    uint32_t donor;                   /* the caller's note: a slot whose own ring may still hold the sliding page, or PREFIX_NONE */
    uint32_t writer, writer_generation; /* the caller's note: the sequence that had these tokens last */
    uint32_t older[LAYER_TYPES], newer[LAYER_TYPES]; /* in the lists below */
};

struct prefix_list { uint32_t oldest, newest, count; };

struct prefix {
    struct prefix_node *node;         /* [node_max]; owned */
    uint32_t *bucket;                 /* [bucket_mask + 1]; owned */
    uint32_t node_max, node_count, bucket_mask;
    uint32_t free_first, fresh;       /* nodes that were given back; the first that never was used: nothing behind it has been touched */
    uint64_t seed;                    /* of the hash: nobody outside can choose prompts that share a bucket */
    struct prefix_list list[LAYER_TYPES]; /* LAYER_FULL: nodes that nobody holds; LAYER_SLIDING: nodes with a sliding page */
};

/* Room for node_max nodes: as many as there are full pages, so that adding never fails. 0 or -E_NOMEM. */
int prefix_open(struct prefix *x, uint32_t node_max, uint64_t seed);
void prefix_close(struct prefix *x);

/* The node of this page behind `parent`, or PREFIX_NONE. */
uint32_t prefix_find(const struct prefix *x, uint32_t parent, const struct prefix_page *page);

/* Makes it; the caller found that there is none, holds `parent`, and holds the new one. full_page is the index's until prefix_evict. */
uint32_t prefix_add(struct prefix *x, uint32_t parent, const struct prefix_page *page, uint32_t full_page);

/* A sequence holds its nodes from the beginning of the prompt on and lets them go from its end: so children are evicted before their parents. */
void prefix_hold(struct prefix *x, uint32_t node);
void prefix_let_go(struct prefix *x, uint32_t node);

/* The longest unused node goes; its pages are the caller's again (sliding: maybe PREFIX_NONE). false: every node is held. */
bool prefix_evict(struct prefix *x, uint32_t *full_page, uint32_t *sliding_page);

/* A page of the sliding layers: given to a node that has none, used, taken back, and the longest unused one taken back (PREFIX_NONE: there is none). */
void prefix_give_sliding(struct prefix *x, uint32_t node, uint32_t page);
void prefix_use_sliding(struct prefix *x, uint32_t node);
uint32_t prefix_take_sliding(struct prefix *x, uint32_t node);
uint32_t prefix_evict_sliding(struct prefix *x);

#endif
