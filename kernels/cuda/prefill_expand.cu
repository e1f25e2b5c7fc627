/* kernels/cuda/prefill_expand.cu - pages of E4M3 become pages of bf16 (contract in prefill_expand.h). */
#include "prefill_expand.h"
#include "device.cuh"
#include "launch.h"
#include "shm/error.h"

#define THREADS 256
#define POOL_BYTES (128ull << 20)     /* of a pool, when one text needs no more */

struct expand_args {
    struct prefill_kv from;
    uint8_t *to;
    const struct prefill_expand_span *spans;
    uint32_t span_count, d;
};

__device__ __forceinline__ uint32_t widen_pair(uint32_t codes)
{
    const uint32_t halves = e4m3x2_to_f16x2((uint16_t)codes);
    const float2 both = __half22float2(*(const __half2 *)&halves);

    return pack_bf16(both.x, both.y);
}

/* A block: one head of K or V of a page. */
__global__ void __launch_bounds__(THREADS) expand_kernel(const __grid_constant__ expand_args a)
{
    const uint32_t heads = 2 * a.from.kv_heads, head = blockIdx.x % heads, count = PREFILL_PAGE_TOKENS * a.d / 16;
    uint32_t page = blockIdx.x / heads;

    chain_trigger();
    chain_wait();
    for (uint32_t i = 0; i < a.span_count; i++) {
        const uint4 s = ld_l2((const uint4 *)(a.spans + i));      /* seq, first_page, pages, base */

        if (page >= s.z) {
            page -= s.z;
            continue;
        }
        const uint32_t own = ld_l2(a.from.pages + (uint64_t)s.x * a.from.ring_pages + (s.y + page) % a.from.ring_pages);
        const uint64_t at = (uint64_t)(head % a.from.kv_heads) * count;
        const uint4 *from = (const uint4 *)(a.from.arena + own * a.from.page_bytes + (head < a.from.kv_heads ? a.from.k_offset : a.from.v_offset)) + at;
        uint4 *to = (uint4 *)(a.to + (uint64_t)(s.w + page) * heads * count * 32) + (head < a.from.kv_heads ? 0 : 2ull * a.from.kv_heads * count) + 2 * at;

        for (uint32_t j = threadIdx.x; j < count; j += THREADS) {
            const uint4 x = ld_l2(from + j);

            to[2 * j] = make_uint4(widen_pair(x.x), widen_pair(x.x >> 16), widen_pair(x.y), widen_pair(x.y >> 16));
            to[2 * j + 1] = make_uint4(widen_pair(x.z), widen_pair(x.z >> 16), widen_pair(x.w), widen_pair(x.w >> 16));
        }
        return;
    }
}

static uint32_t pages_between(uint32_t first, uint32_t end) { return (end - 1) / PREFILL_PAGE_TOKENS - first / PREFILL_PAGE_TOKENS + 1; }

uint32_t prefill_expand_pages(uint32_t kv_heads, uint32_t d, uint32_t window, uint32_t rows, uint32_t context)
{
    const uint64_t keys = window && (uint64_t)window + rows < context ? (uint64_t)window + rows : context;
    const uint64_t one = keys / PREFILL_PAGE_TOKENS + 2, many = POOL_BYTES / prefill_expand_page_bytes(kv_heads, d);

    return (uint32_t)(one > many ? one : many);
}

int prefill_expand_init(void) { return launch_prepare((const void *)expand_kernel, 0); }

struct prefill_kv prefill_expand_kv(const struct prefill_expand *e)
{
    const uint64_t bytes = prefill_expand_page_bytes(e->kv_heads, e->d);
    const struct prefill_kv kv = { e->pool, bytes, 0, bytes / 2, NULL, 0, e->kv_heads, 0 };

    return kv;
}

int prefill_expand_open(struct prefill_expand *e, uint8_t *pool, uint32_t pool_pages, uint32_t kv_heads, uint32_t d, uint32_t window)
{
    e->pool = pool, e->pool_pages = pool_pages, e->kv_heads = kv_heads, e->d = d, e->window = window;
    const struct prefill_kv kv = prefill_expand_kv(e);

    return prefill_attn_map(&e->maps, &kv, d);
}

void prefill_expand_plan(struct prefill_expand *e, const struct cuda_prefill_span *spans, uint32_t span_count)
{
    struct prefill_expand_group *g = e->group;

    e->groups = 1;
    *g = prefill_expand_group{ 0, 0, 0 };
    for (uint32_t i = 0; i < span_count; i++) {
        const uint32_t position = spans[i].first_position, first = e->window && position + 1 > e->window ? position + 1 - e->window : 0;
        const uint32_t pages = pages_between(first, position + spans[i].rows);

        if (g->spans && pages > e->pool_pages - g->pages) {
            *++g = prefill_expand_group{ i, 0, 0 };
            e->groups++;
        }
        e->span[i] = prefill_expand_span{ spans[i].seq, first / PREFILL_PAGE_TOKENS, pages, g->pages };
        e->group_of[i] = e->groups - 1;
        g->spans++, g->pages += pages;
    }
}

int prefill_expand_launch(const struct prefill_expand *e, uint32_t group, const struct prefill_expand_span *spans, const struct prefill_kv *from, void *stream)
{
    const struct prefill_expand_group *g = &e->group[group];
    expand_args a = { *from, e->pool, spans + g->first_span, g->spans, e->d };
    void *params[] = { &a };

    if (group >= e->groups || g->pages > e->pool_pages) return -E_RANGE;
    return launch_chained((const void *)expand_kernel, g->pages * 2 * e->kv_heads, THREADS, 0, params, stream);
}
