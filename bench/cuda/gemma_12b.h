/* bench/cuda/gemma_12b.h - the shapes of Gemma 4 12B and of its MTP assistant, for all benches of the device. */
#ifndef SLUICE_BENCH_CUDA_GEMMA_12B_H
#define SLUICE_BENCH_CUDA_GEMMA_12B_H

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_draft.h"

#include <string.h>

/* `layers` of its 48: every sixth is full. format: of the matrices (WEIGHT_FP8 ...); kv_bytes: of an element of the cache. Pages hold these layers. */
static inline struct cuda_model_spec gemma_12b_target(uint32_t layers, uint32_t format, uint32_t kv_bytes)
{
    struct cuda_model_spec s;
    uint64_t at[2] = { 0, 0 };

    memset(&s, 0, sizeof s);
    s.hidden = 3840, s.intermediate = 15360, s.vocab = 262144, s.layers = layers, s.window = 1024, s.format = format;
    s.norm_eps = 1e-6f, s.softcap = 30.0f, s.embed_scale = 62.0f, s.attention_scale = 1.0f;
    s.q_heads = 16, s.kv_heads[0] = 8, s.kv_heads[1] = 1, s.head_dim[0] = 256, s.head_dim[1] = 512, s.has_v_norm = 1;
    s.rope_divisor[0] = s.rope_divisor[1] = 1.0;
    s.rope_theta[0] = 1e4, s.rope_theta[1] = 1e6, s.rope_turned[0] = 128, s.rope_turned[1] = 64;
    for (uint32_t i = 0; i < s.layers; i++) {
        const uint32_t type = i % 6 == 5 ? CUDA_FULL : CUDA_SLIDING;
        const uint64_t side = 32ull * s.kv_heads[type] * s.head_dim[type] * kv_bytes;

        s.layer[i].type = type, s.layer[i].has_v = type == CUDA_SLIDING;
        s.layer[i].k_offset = at[type], s.layer[i].v_offset = at[type] + side;
        at[type] += 2 * side;
    }
    s.page_bytes[0] = at[0], s.page_bytes[1] = at[1] ? at[1] : 64;
    return s;
}

static inline struct cuda_draft_spec gemma_12b_assistant(uint32_t format)
{
    struct cuda_draft_spec s;

    memset(&s, 0, sizeof s);
    s.hidden = 1024, s.intermediate = 8192, s.vocab = 262144, s.layers = 4, s.backbone_hidden = 3840, s.q_heads = 16, s.format = format;
    s.norm_eps = 1e-6f, s.attention_scale = 1.0f;
    s.rope_theta[0] = 1e4, s.rope_theta[1] = 1e6, s.rope_turned[0] = 128, s.rope_turned[1] = 64;
    s.layer_type[3] = CUDA_FULL;
    return s;
}

#endif
