/* tests/fuzz/config_fuzz.c - any bytes as config.json (of a model or a drafter) and generation_config.json: no crash; an accepted config keeps its promises. */
#include "model/config.h"
#include "model/kv.h"
#include <stdlib.h>

static void parse_drafters(const uint8_t *data, size_t size)
{
    struct dspark_config d;
    struct model_config c;
    struct model_error err;
    uint32_t backbone;

    if (assistant_config_parse(&c, &backbone, data, size, &err) == 0 && (backbone == 0 || backbone % MODEL_DIM_ALIGN != 0)) abort();
    if (dspark_config_parse(&d, data, size, &err) != 0) return;
    if (d.block == 0 || d.block > DSPARK_BLOCK_MAX || d.mask_token >= d.layers.vocab || d.markov_rank > DSPARK_RANK_MAX || d.markov_rank % MODEL_DIM_ALIGN != 0) abort();
    if (d.source_count == 0 || d.source_count > DSPARK_SOURCES_MAX || (d.confidence_sees_token && d.markov_rank == 0)) abort();
    for (uint32_t i = 0; i < d.source_count; i++)
        if (d.source[i] + 1 >= d.target_layer_count || (i > 0 && d.source[i] <= d.source[i - 1])) abort();
    for (uint32_t i = 0; i < d.layers.layer_count; i++)
        if (d.layers.layer[i].type != LAYER_FULL || d.layers.layer[i].has_v) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct generation_config generation;
    struct kv_geometry geo;
    struct model_config c;
    struct model_error err;

    parse_drafters(data, size);
    if (model_config_parse(&c, data, size, &err) != 0) return 0;
    if (c.layer_count == 0 || c.layer_count > MODEL_LAYERS_MAX || c.hidden % MODEL_DIM_ALIGN != 0 || c.intermediate % MODEL_DIM_ALIGN != 0) abort();
    if (c.type_count[LAYER_FULL] + c.type_count[LAYER_SLIDING] != c.layer_count || c.window == 0 || c.eos_count > MODEL_EOS_MAX) abort();
    for (uint32_t i = 0; i < c.layer_count; i++)
        if (c.layer[i].head_dim % 32 != 0 || c.layer[i].head_dim > MODEL_HEAD_DIM_MAX || c.layer[i].kv_heads == 0 || c.q_heads % c.layer[i].kv_heads != 0) abort();
    if (kv_geometry_init(&geo, &c, KV_BF16, c.max_position, 64, 1000, 1000) == 0 && geo.arena_bytes % 4096 != 0) abort();
    generation_config_parse(&generation, &c, data, size, &err);
    return 0;
}
