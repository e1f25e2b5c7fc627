/* stages/keeper/cache.c - how many pages the KV cache has (contract in keeper.h). Arithmetic only. */
#include "stages/keeper/keeper.h"

#include "shm/error.h"

static uint64_t pages_within(uint64_t bytes, uint64_t page_bytes, uint64_t most)
{
    const uint64_t pages = page_bytes ? bytes / page_bytes : most; /* a model without layers of this type */

    return pages < most ? pages : most;
}

int cache_size(struct kv_geometry *g, const struct model_config *config, const struct cache_wish *wish)
{
    const int rc = kv_geometry_init(g, config, wish->dtype, wish->context, wish->rows_max, 0, 0);

    if (rc != 0) return rc;
    const uint64_t full = g->full_pages_per_seq * g->full_page_bytes, sliding = g->sliding_pages_per_seq * g->sliding_page_bytes;
    const uint64_t spare = 2 * 4096; /* the pools' alignment */
    if (wish->sequences == 0 || wish->limit_bytes < spare || full + sliding > wish->limit_bytes - spare) return -E_LIMIT;
    const uint64_t limit = wish->limit_bytes - spare;
    uint64_t rings = wish->sequences, full_pages = (uint64_t)wish->sequences * g->full_pages_per_seq;
    if (limit / (full + sliding) < wish->sequences) {
        rings = pages_within(limit / 2, sliding, wish->sequences);
        if (rings == 0) rings = 1;
        while (rings > 1 && limit - rings * sliding < full) rings--;
        full_pages = pages_within(limit - rings * sliding, g->full_page_bytes, full_pages);
    }
    if (full_pages > UINT32_MAX || rings * g->sliding_pages_per_seq > UINT32_MAX) return -E_RANGE;
    return kv_geometry_init(g, config, wish->dtype, wish->context, wish->rows_max, (uint32_t)full_pages, (uint32_t)rings * g->sliding_pages_per_seq);
}
