/* bench/cuda/shapes.cuh - shapes of models for the benches: those of Gemma 4 12B are turned into those of Gemma 3 12B. */
#ifndef SLUICE_BENCH_CUDA_SHAPES_CUH
#define SLUICE_BENCH_CUDA_SHAPES_CUH

#include "kernels/cuda/cuda_backend.h"
#include <string.h>

/* Full layers have the heads of sliding ones and V of their own; norms are stored as w - 1, values are not normed, 64 tokens more, no softcap. */
static inline void shape_gemma_3(struct cuda_model_spec *s)
{
    const uint64_t bytes = s->layer[0].v_offset - s->layer[0].k_offset;      /* of K of a sliding layer, in the type of the cache */
    uint64_t at[2] = { 0, 0 };

    s->vocab = 262208, s->softcap = 0.0f, s->attention_scale = 1.0f / 16.0f, s->norm_plus_one = 1, s->has_v_norm = 0, s->full_ahead = 1;
    s->kv_heads[1] = 8, s->head_dim[1] = 256, s->rope_turned[1] = 128, s->rope_divisor[1] = 8.0, s->suppress_count = 0;
    for (uint32_t i = 0; i < s->layers; i++) {
        const uint32_t type = s->layer[i].type;

        s->layer[i].has_v = 1, s->layer[i].k_offset = at[type], s->layer[i].v_offset = at[type] + bytes;
        at[type] += 2 * bytes;
    }
    s->page_bytes[0] = at[0], s->page_bytes[1] = at[1] ? at[1] : 64;
}

/* 0, or -1: no such model. */
static inline int shape_apply(struct cuda_model_spec *s, const char *model)
{
    if (!strcmp(model, "gemma-3-12b")) shape_gemma_3(s);
    else if (strcmp(model, "gemma-4-12b")) return -1;
    return 0;
}

#endif
