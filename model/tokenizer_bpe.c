/* model/tokenizer_bpe.c - byte pair encoding of one stretch of symbols.
 *
 * Merges the pair of lowest rank first, the leftmost on ties, until no pair has a merge:
 * the order of the reference. Short stretches (nearly all: the caller cuts where no token
 * can cross) scan for the lowest rank; long ones use a heap and links, O(n log n), without
 * recursion, so that a line of a megabyte is an ordinary case. Fails only for memory. */
#include <stdlib.h>
#include <string.h>

#include "model/tokenizer_internal.h"
#include "shm/error.h"
#include "shm/must.h"

#define SCAN_SYMBOLS_MAX 40u /* below this, scanning beats the heap */

static inline uint32_t pair_rank(const struct tokenizer *t, uint32_t left, uint32_t right)
{
    const struct tokenizer_merge *m = tokenizer_find_merge(t, left, right);

    return m ? m->rank : UINT32_MAX;
}

static size_t merge_scan(const struct tokenizer *t, uint32_t *ids, size_t count)
{
    uint32_t rank[SCAN_SYMBOLS_MAX]; /* of the pair (i, i + 1) */

    for (size_t i = 0; i + 1 < count; i++) rank[i] = pair_rank(t, ids[i], ids[i + 1]);
    while (count > 1) {
        size_t best = 0;
        for (size_t i = 1; i + 1 < count; i++)
            if (rank[i] < rank[best]) best = i;
        if (rank[best] == UINT32_MAX) break;

        ids[best] = t->rank_id[rank[best]];
        memmove(ids + best + 1, ids + best + 2, (count - best - 2) * sizeof *ids);
        count--;
        if (best + 1 < count) {
            memmove(rank + best + 1, rank + best + 2, (count - best - 2) * sizeof *rank);
            rank[best] = pair_rank(t, ids[best], ids[best + 1]);
        }
        if (best > 0) rank[best - 1] = pair_rank(t, ids[best - 1], ids[best]);
    }
    return count;
}

/* A 4-ary heap of rank << 32 | position: the smallest is the next merge. */
struct heap {
    uint64_t *key;
    size_t count;
};

static void sift_down(struct heap *h, size_t at)
{
    const uint64_t key = h->key[at];

    for (;;) {
        const size_t first = 4 * at + 1, end = first + 4 < h->count ? first + 4 : h->count;
        if (first >= h->count) break;
        size_t least = first;
        for (size_t i = first + 1; i < end; i++)
            if (h->key[i] < h->key[least]) least = i;
        if (h->key[least] >= key) break;
        h->key[at] = h->key[least];
        at = least;
    }
    h->key[at] = key;
}

static void heap_push(struct heap *h, uint64_t key)
{
    size_t at = h->count++;

    while (at > 0 && h->key[(at - 1) / 4] > key) {
        h->key[at] = h->key[(at - 1) / 4];
        at = (at - 1) / 4;
    }
    h->key[at] = key;
}

static uint64_t heap_pop(struct heap *h)
{
    const uint64_t top = h->key[0];

    h->key[0] = h->key[--h->count];
    if (h->count > 0) sift_down(h, 0);
    return top;
}

struct link {
    uint32_t before, after; /* positions; UINT32_MAX: none */
};

static void push_pair(const struct tokenizer *t, struct heap *h, const uint32_t *ids, uint32_t left, uint32_t right)
{
    const uint32_t rank = pair_rank(t, ids[left], ids[right]);

    if (rank != UINT32_MAX) heap_push(h, (uint64_t)rank << 32 | left);
}

/* The work block: n links, then room for 2 n keys (n - 1 pairs, and each merge takes one key and adds two). */
static int64_t merge_heap(const struct tokenizer *t, struct tokenizer_scratch *s, size_t count)
{
    const size_t work_bytes = count * (sizeof(struct link) + 2 * sizeof(uint64_t));
    uint32_t *ids = s->ids;

    must(count < UINT32_MAX);
    if (work_bytes > s->work_bytes) {
        free(s->work);
        s->work_bytes = 0;
        s->work = malloc(work_bytes);
        if (!s->work) return -E_NOMEM;
        s->work_bytes = work_bytes;
    }
    struct heap h = { .key = s->work };
    struct link *link = (struct link *)(h.key + 2 * count);

    for (uint32_t i = 0; i < count; i++) {
        link[i] = (struct link){ i - 1, i + 1 < count ? i + 1 : UINT32_MAX }; /* 0 - 1 is UINT32_MAX */
        if (i + 1 == count) break;
        const uint32_t rank = pair_rank(t, ids[i], ids[i + 1]);
        if (rank != UINT32_MAX) h.key[h.count++] = (uint64_t)rank << 32 | i;
    }
    for (size_t i = h.count / 4 + 1; i-- > 0;)
        if (i < h.count) sift_down(&h, i);

    while (h.count > 0) {
        const uint64_t key = heap_pop(&h);
        const uint32_t left = (uint32_t)key, id = t->rank_id[key >> 32], right = link[left].after;

        /* Is the entry out of date? The left symbol may be gone, or the pair may have changed. */
        if (ids[left] == TOKENIZER_NO_ID || right == UINT32_MAX) continue;
        const struct tokenizer_merge *m = tokenizer_find_merge(t, ids[left], ids[right]);
        if (!m || m->id != id) continue;

        ids[left] = id;
        ids[right] = TOKENIZER_NO_ID;
        link[left].after = link[right].after;
        if (link[left].after != UINT32_MAX) {
            link[link[left].after].before = left;
            push_pair(t, &h, ids, left, link[left].after);
        }
        if (link[left].before != UINT32_MAX) push_pair(t, &h, ids, link[left].before, left);
    }
    size_t kept = 0;
    for (size_t i = 0; i < count; i++)
        if (ids[i] != TOKENIZER_NO_ID) ids[kept++] = ids[i];
    return (int64_t)kept;
}

int64_t tokenizer_bpe_merge(const struct tokenizer *t, struct tokenizer_scratch *s, size_t count)
{
    if (count < 2) return (int64_t)count;
    if (count <= SCAN_SYMBOLS_MAX) return (int64_t)merge_scan(t, s->ids, count);
    return merge_heap(t, s, count);
}
