/* model/kv.c - see kv.h. Arithmetic only, checked against overflow. */
#include "model/kv.h"
#include "shm/error.h"
#include <string.h>

#define KV_ALIGN 64
#define KV_POOL_ALIGN 4096

static const char *const kv_names[] = {[KV_BF16] = "bf16", [KV_F32] = "f32", [KV_FP8] = "fp8"};

enum kv_dtype kv_dtype_named(const char *name)
{
    for (uint32_t i = KV_BF16; i <= KV_FP8; i++)
        if (strcmp(name, kv_names[i]) == 0) return i;
    return 0;
}

const char *kv_dtype_name(enum kv_dtype dtype) { return kv_names[dtype]; }

static uint64_t kv_round_up(uint64_t n, uint64_t to) { return (n + to - 1) / to * to; }

/* Places the K and V of each layer of one type in a page; returns the page's bytes. */
static uint64_t kv_lay_page(struct kv_geometry *geo, const struct model_config *config, uint32_t type)
{
    uint64_t bytes = 0;

    for (uint32_t i = 0; i < config->layer_count; i++) {
        struct kv_layer *l = &geo->layer[i];
        const uint64_t half = (uint64_t)config->layer[i].kv_heads * config->layer[i].head_dim * KV_PAGE_TOKENS * geo->element_bytes;

        if (config->layer[i].type != type) continue;
        *l = (struct kv_layer){ type, config->layer[i].kv_heads, config->layer[i].head_dim, bytes, bytes + half };
        bytes += 2 * half;
    }
    return kv_round_up(bytes, KV_ALIGN);
}

int kv_geometry_init(struct kv_geometry *geo, const struct model_config *config, enum kv_dtype dtype,
                     uint32_t max_context, uint32_t rows_max, uint32_t full_page_count, uint32_t sliding_page_count)
{
    uint64_t ring, full_bytes, sliding_bytes;

    if (max_context == 0 || max_context > config->max_position || rows_max == 0 || rows_max > config->max_position) return -E_RANGE;
    if (dtype != KV_BF16 && dtype != KV_F32 && dtype != KV_FP8) return -E_RANGE;
    memset(geo, 0, sizeof(*geo));
    geo->dtype = dtype;
    geo->element_bytes = kv_dtype_bytes(dtype);
    geo->window = config->window;
    geo->rows_max = rows_max;
    geo->max_context = max_context;
    geo->layer_count = config->layer_count;
    geo->full_pages_per_seq = kv_full_pages_needed(geo, max_context);
    ring = (uint64_t)config->window - 1 + rows_max;          /* the oldest key of the first row, up to the last row */
    if (ring > max_context) ring = max_context;
    geo->ring_tokens = (uint32_t)kv_round_up(ring, KV_PAGE_TOKENS);
    geo->sliding_pages_per_seq = geo->ring_tokens / KV_PAGE_TOKENS;
    geo->full_page_count = full_page_count;
    geo->sliding_page_count = sliding_page_count;
    geo->full_page_bytes = kv_lay_page(geo, config, LAYER_FULL);
    geo->sliding_page_bytes = kv_lay_page(geo, config, LAYER_SLIDING);
    if (__builtin_mul_overflow(geo->full_page_bytes, (uint64_t)full_page_count, &full_bytes)
        || __builtin_mul_overflow(geo->sliding_page_bytes, (uint64_t)sliding_page_count, &sliding_bytes)
        || full_bytes > INT64_MAX / 2 || sliding_bytes > INT64_MAX / 2) return -E_RANGE;
    geo->sliding_offset = kv_round_up(full_bytes, KV_POOL_ALIGN);
    geo->arena_bytes = geo->sliding_offset + kv_round_up(sliding_bytes, KV_POOL_ALIGN);
    return 0;
}
