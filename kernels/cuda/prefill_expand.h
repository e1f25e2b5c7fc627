/* prefill_expand: what prefill attention does with a KV cache of E4M3. Its tensor cores want bf16 in shared memory, as tensor maps bring it; so K and V of one
 * layer become bf16 (exactly) in pages of a scratch pool first, for the texts in hand.
 *   from  E4M3 pages of 32 positions as model/kv.h lays them out
 *   to    bf16 pages: K [kv_heads][32][d], then V
 * The pool holds the pages of a group of spans; a run of more goes group after group, each expanded in front of its attention. At 32,768 tokens that is
 * 96 MB moved a full layer and chunk of 2,048 rows, against some 3 ms of attention.
 * Needs     d = 256 or 512. Links of a chain (launch.h). Never synchronizes. The caller keeps args alive until the run is over.
 * Checked   tests/gpu/prefill.py --kv fp8.
 * Measured  bench/RESULTS_cuda.md. */
#ifndef SLUICE_CUDA_PREFILL_EXPAND_H
#define SLUICE_CUDA_PREFILL_EXPAND_H

#include "cuda_prefill.h"
#include "prefill_attn.h"

#define PREFILL_GROUP_ROUNDS (1u << 16)   /* attention's rounds of a group: number / this is the group */

/* Pages [first_page, first_page + pages) of a text, in the pool from `base` on. */
struct prefill_expand_span { uint32_t seq, first_page, pages, base; };

struct prefill_expand_group { uint32_t first_span, spans, pages; };

/* Of layers of one type. */
struct prefill_expand {
    uint8_t *pool;                    /* device, borrowed */
    uint32_t pool_pages;
    uint32_t kv_heads, d, window;     /* window 0: full layers */
    struct prefill_attn_maps maps;    /* of the pool */
    /* of a run */
    uint32_t groups;
    struct prefill_expand_group group[CUDA_PREFILL_SPANS_MAX];
    struct prefill_expand_span span[CUDA_PREFILL_SPANS_MAX];
    uint32_t group_of[CUDA_PREFILL_SPANS_MAX];
    uint64_t spans_at;                /* bytes from the start of the job */
};

static inline uint64_t prefill_expand_page_bytes(uint32_t kv_heads, uint32_t d) { return 2ull * 2 * kv_heads * d * PREFILL_PAGE_TOKENS; }
/* Pages that the pool must have for runs of `rows` rows of texts of `context` tokens: at least those of one span. */
uint32_t prefill_expand_pages(uint32_t kv_heads, uint32_t d, uint32_t window, uint32_t rows, uint32_t context);

/* Once per process and device. 0 or -E_IO. */
int prefill_expand_init(void);
/* Remembers the pool (prefill_expand_pages pages) and makes its maps. 0 or -E_. */
int prefill_expand_open(struct prefill_expand *e, uint8_t *pool, uint32_t pool_pages, uint32_t kv_heads, uint32_t d, uint32_t window);
/* Cuts a run's spans into groups. */
void prefill_expand_plan(struct prefill_expand *e, const struct cuda_prefill_span *spans, uint32_t span_count);
/* What a tile of span i has in place of its sequence: the page of position p in the pool is this + p / 32. */
static inline uint32_t prefill_expand_shift(const struct prefill_expand *e, uint32_t i) { return e->span[i].base - e->span[i].first_page; }
/* Where attention finds the pool. */
struct prefill_kv prefill_expand_kv(const struct prefill_expand *e);
/* spans: e->span on the device. from: the cache of the layer. 0, -E_RANGE, -E_IO. */
int prefill_expand_launch(const struct prefill_expand *e, uint32_t group, const struct prefill_expand_span *spans, const struct prefill_kv *from, void *stream);

#endif
