/* stages/prefill/pages.h - who has which pages of the KV cache: sequences, the prefix cache (prefix.h), or nobody.
 *
 * A sequence gets all its pages at once, so that one that runs can always finish. Pages of the full layers that hold a whole prompt page are shared, read-only: by all
 * sequences that begin with the same tokens, and by the cache. Pages of the sliding layers are a ring that is written over, so each sequence has its own; what a
 * prompt needs of a beginning that it did not compute, the window before the place where it goes on, is copied (where room is short, it takes the cache's own pages). Copies come from pages that the cache was left by
 * sequences that ended, from copies made while it could still be done, or from the ring of a sequence that runs and has not come round yet.
 *
 * Only what prefill wrote is ever used again, never what verify wrote: on a GPU a step has other arithmetic than a prompt, and outputs are to depend on the request alone.
 * What the cache has counts as free: it goes as soon as somebody needs the room. The truth about sequences is in the table; the cache is private and empty after a restart,
 * but for the prompts of sequences that go on. */
#ifndef SLUICE_PREFILL_PAGES_H
#define SLUICE_PREFILL_PAGES_H

#include "schemas/table.h"
#include "stages/prefill/prompt.h"

struct pages_pool {
    uint32_t *free;                   /* [total]; last freed first used: the hot ones */
    uint32_t *refs;                   /* [total]: in how many page tables it stands, and 1 for the cache */
    uint32_t free_count, total;
};

struct pages_sequence {
    uint32_t generation;              /* 0: it has no pages */
    uint32_t prompt_count, max_output; /* our own copies: once verify is done the slot may change hands before we look */
    uint32_t *node;                   /* [full_pages_max]: of the pages of its prompt, held; part of pages.nodes */
    uint32_t node_count;
    uint32_t ring_first;              /* prompt pages before this one were never in its ring */
    uint32_t begun;                   /* positions before this one may have been written by a prefill that died before it could say so */
    uint32_t branch;                  /* where its prompt left that of others, in pages: the window there is worth keeping. 0: nowhere */
    uint32_t end;                     /* the last page boundary of its prompt at which another could go on */
};

/* Pages of one layer type onto others, complete when it returns. */
typedef void pages_copy_fn(void *context, enum layer_type type, const uint32_t *from, const uint32_t *to, uint32_t count);

struct pages {
    const struct table *table;        /* borrowed; prefill's records are written here */
    const struct kv_geometry *geometry; /* borrowed */
    struct pages_pool pool[LAYER_TYPES];
    struct prefix prefix;
    uint32_t kept_max[LAYER_TYPES];   /* pages that nobody has but the cache; 0: there is no cache */
    uint32_t ahead;                   /* positions that verify may have written behind the committed ones */
    struct pages_sequence *seq;       /* [slot_count] */
    uint32_t *nodes;                  /* of all sequences */
    uint32_t *match;                  /* [full_pages_max]: nodes, of the call in hand */
    uint32_t *source, *from, *to;     /* [sliding_pages_max]: pages, of the call in hand */
    pages_copy_fn *copy;
    void *copy_context;
};

/* cache_bytes: what the cache may keep beyond the pages that sequences have, its share of either pool; 0: nothing is ever found. ahead: see above; seed: prefix_open's. 0 or -E_NOMEM: close it all the same. */
int pages_open(struct pages *p, const struct table *table, const struct kv_geometry *geometry, uint64_t cache_bytes, uint32_t ahead, uint64_t seed, pages_copy_fn *copy, void *copy_context);
void pages_close(struct pages *p);

/* Start: a predecessor gave this sequence pages. When all such are told, pages_rebuild makes the free lists of what is left. */
void pages_found(struct pages *p, uint32_t slot, uint32_t generation);
void pages_rebuild(struct pages *p);

/* Pages for a sequence whose prompt is there, committed in the table. How many tokens of the prompt are in them already (less than all of it, and never a part of a picture), or
 * -E_FULL: not enough room now, nothing is changed for anybody but what the cache lost. */
int pages_take(struct pages *p, uint32_t slot, uint32_t generation);

/* Of the pages that pages_take found, from page `first` on: so many in a row were last had by one other sequence. 0: there are no more. Then pages_note_writer: now it is this one. */
uint32_t pages_writer(const struct pages *p, uint32_t slot, uint32_t first, uint32_t *writer, uint32_t *generation);
void pages_note_writer(struct pages *p, uint32_t slot);

/* Whole pages at the beginning of both prompts, up to a place where `slot`, which has no pages yet, can go on; less those that it would find now. 0: waiting for `leader` gains nothing. */
uint32_t pages_gained(struct pages *p, uint32_t slot, uint32_t leader, uint32_t *shared);

/* Somebody waits for this sequence to have filled its first `at` pages: the window there is kept, and pages_stop says how many of `count` rows from `filled` on to compute before. */
void pages_want(struct pages *p, uint32_t slot, uint32_t at);
uint32_t pages_stop(const struct pages *p, uint32_t slot, uint32_t filled, uint32_t count);

/* After each growth of `filled`: what is whole may be shared from now on. */
void pages_filled(struct pages *p, uint32_t slot);

/* The prompt is in the cache and verify at work: keeps what the output may write over. Costs a copy of the window at most. */
void pages_handed(struct pages *p, uint32_t slot);

/* The sequence is over: verify touches nothing of it any more. */
void pages_give_back(struct pages *p, uint32_t slot);

/* Pages that sequences have. */
uint32_t pages_used(const struct pages *p, enum layer_type type);

#endif
