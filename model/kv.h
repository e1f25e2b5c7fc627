/* model/kv.h - where keys and values live inside one flat arena.
 *
 * The arena is one region of shared (or GPU) memory with two pools of pages. A page holds KV_PAGE_TOKENS
 * consecutive positions of one sequence for ALL layers of one type: a full page serves the full layers and stays for the
 * sequence's life; the sliding pages of a sequence form a ring, so that
 * position p lives at ring index p % ring_tokens whatever the length of the text.
 *
 *   arena  = [full_page_count full pages][sliding_page_count sliding pages]
 *   page   = for each layer of the type: K [kv_heads][KV_PAGE_TOKENS][head_dim], then V the same
 *
 * Head-major inside a page: attention reads all tokens of one head one after the other.
 * This header is arithmetic only: who owns a page is said by the sequence table. Contents of a page are
 * meaningful only for positions that a forward call has written; stale bytes are never read into a result. */
#ifndef SLUICE_MODEL_KV_H
#define SLUICE_MODEL_KV_H

#include "model/config.h"
#include <stdbool.h>
#include <stdint.h>

#define KV_PAGE_TOKENS 32             /* positions in a page; divides every attention segment */

enum kv_dtype { KV_BF16 = 1, KV_F32 = 2, KV_FP8 = 3 };   /* FP8: E4M3 without scales, rounded to nearest even, at most 448 in size. Same numbers as enum kernels_dtype */

/* "bf16", "f32", "fp8"; kv_dtype_named: 0 for any other name. */
enum kv_dtype kv_dtype_named(const char *name);
const char *kv_dtype_name(enum kv_dtype dtype);
static inline uint32_t kv_dtype_bytes(uint32_t dtype) { return dtype == KV_BF16 ? 2 : dtype == KV_FP8 ? 1 : 4; }

struct kv_layer {                     /* layer i of the model */
    uint32_t type;                    /* enum layer_type = the pool */
    uint32_t kv_heads, head_dim;
    uint64_t k_offset, v_offset;      /* bytes from the start of a page of its pool */
};

struct kv_geometry {
    uint32_t dtype;                   /* enum kv_dtype */
    uint32_t element_bytes;
    uint32_t window;                  /* of the sliding layers */
    uint32_t rows_max;                /* most rows of one sequence in one forward call */
    uint32_t max_context;             /* positions 0 .. max_context-1 */
    uint32_t full_pages_per_seq;      /* pages of a sequence of max_context tokens */
    uint32_t sliding_pages_per_seq;   /* pages of a complete ring; ring_tokens = this * KV_PAGE_TOKENS */
    uint32_t ring_tokens;             /* >= window - 1 + rows_max, or >= max_context */
    uint32_t full_page_count, sliding_page_count;   /* in the arena */
    uint64_t full_page_bytes, sliding_page_bytes;   /* multiples of 64 */
    uint64_t sliding_offset;          /* of the sliding pool in the arena, multiple of 4096 */
    uint64_t arena_bytes;             /* multiple of 4096 */
    uint32_t layer_count;
    struct kv_layer layer[MODEL_LAYERS_MAX];
};

/* Computes the geometry. 0 or -E_RANGE (rows_max or max_context 0, max_context above the model's, sizes that overflow).
 * Page counts may be 0 when only per-page figures are wanted (they only scale arena_bytes). */
int kv_geometry_init(struct kv_geometry *geo, const struct model_config *config, enum kv_dtype dtype,
                     uint32_t max_context, uint32_t rows_max, uint32_t full_page_count, uint32_t sliding_page_count);

/* Pages of each pool that hold the first `tokens` positions of a sequence. */
static inline uint32_t kv_full_pages_needed(const struct kv_geometry *geo, uint32_t tokens)
{
    (void)geo;
    return tokens / KV_PAGE_TOKENS + (tokens % KV_PAGE_TOKENS != 0);
}
static inline uint32_t kv_sliding_pages_needed(const struct kv_geometry *geo, uint32_t tokens)
{
    const uint32_t pages = tokens / KV_PAGE_TOKENS + (tokens % KV_PAGE_TOKENS != 0);

    return pages < geo->sliding_pages_per_seq ? pages : geo->sliding_pages_per_seq;
}

/* Index into a sequence's page table (full_pages or sliding_pages) of the page that holds `position`. */
static inline uint32_t kv_full_index(uint32_t position) { return position / KV_PAGE_TOKENS; }
static inline uint32_t kv_sliding_index(const struct kv_geometry *geo, uint32_t position)
{
    return position % geo->ring_tokens / KV_PAGE_TOKENS;
}

/* Byte offset in the arena of page `page` of the pool of `type`. */
static inline uint64_t kv_page_offset(const struct kv_geometry *geo, uint32_t type, uint32_t page)
{
    return type == LAYER_FULL ? page * geo->full_page_bytes : geo->sliding_offset + page * geo->sliding_page_bytes;
}

/* Byte offset in the arena of K (or V) of one token: head `head` of layer `layer`, token index in its page. */
static inline uint64_t kv_token_offset(const struct kv_geometry *geo, uint32_t layer, bool value, uint32_t page,
                                       uint32_t head, uint32_t token)
{
    const struct kv_layer *l = &geo->layer[layer];
    const uint64_t index = ((uint64_t)head * KV_PAGE_TOKENS + token) * l->head_dim;

    return kv_page_offset(geo, l->type, page) + (value ? l->v_offset : l->k_offset) + index * geo->element_bytes;
}

#endif
