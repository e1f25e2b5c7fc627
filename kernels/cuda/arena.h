/* kernels/cuda/arena.h - where each weight lies in the weight arena: a pure function of the model spec.
 *
 * Whoever fills the arena (a keeper) and whoever runs the model (a stage) compute the same offsets, so the arena can be shared between
 * processes and outlive both. Matrices in the order in which a step reads them, each on a 256-byte boundary; vectors at the end. */
#ifndef SLUICE_CUDA_ARENA_H
#define SLUICE_CUDA_ARENA_H

#include "cuda_backend.h"

#define ARENA_ALIGN 256

struct arena_matrix {
    uint64_t offset;
    uint32_t rows, k, slice_k, format;
    uint32_t activation;              /* enum stored_activation (kernels/stored.h): what happens to x in front of the product (round.h) */
    float input_scale;                /* STORED_STATIC */
};

/* Of powers.h: a product's activations are multiplied by `up` when they become f16, its sums by `down`. */
enum power_place { POWER_QKV, POWER_O, POWER_GATE_UP, POWER_DOWN, POWERS };
struct row_power { float up, down; };

struct arena_layer {
    struct arena_matrix qkv, o, gate_up, down;
    uint64_t input_norm, post_attention_norm, pre_ff_norm, post_ff_norm, q_norm, k_norm, scalar;   /* bf16, as stored: w - 1 with norm_plus_one; the scalar f32 */
    uint64_t powers;                  /* struct row_power [POWERS] (powers.h): written by the loader when it has what they follow from */
};

struct arena {
    uint64_t bytes;
    struct arena_matrix head;
    uint64_t final_norm;
    struct arena_layer layer[CUDA_LAYERS_MAX];
};

static inline uint32_t spec_head_dim(const struct cuda_model_spec *s, uint32_t layer) { return s->head_dim[s->layer[layer].type]; }
static inline uint32_t spec_kv_heads(const struct cuda_model_spec *s, uint32_t layer) { return s->kv_heads[s->layer[layer].type]; }
static inline uint32_t spec_format(const struct cuda_model_spec *s, uint32_t layer, enum cuda_tensor matrix)
{
    return s->layer[layer].stored.format[matrix] ? s->layer[layer].stored.format[matrix] : s->format;
}
static inline uint32_t spec_q_rows(const struct cuda_model_spec *s, uint32_t layer) { return 16 * spec_head_dim(s, layer); }
#define KV_PAGE_POSITIONS 32

/* Bytes of an element of the KV cache: K and V of a layer stand one behind the other in a page. */
static inline uint32_t spec_kv_bytes(const struct cuda_model_spec *s, uint32_t layer)
{
    const struct cuda_layer_spec *l = &s->layer[layer];

    return (uint32_t)((l->v_offset - l->k_offset) / ((uint64_t)KV_PAGE_POSITIONS * s->kv_heads[l->type] * s->head_dim[l->type]));
}
static inline uint32_t spec_kv_rows(const struct cuda_model_spec *s, uint32_t layer) { return spec_kv_heads(s, layer) * spec_head_dim(s, layer); }

/* What the kernels of this chain add to norm weights. */
static inline float spec_norm_bias(const struct cuda_model_spec *s) { return s->norm_plus_one ? 1.0f : 0.0f; }

#ifdef __cplusplus
extern "C"
#endif
/* 0 or -E_UNSUPPORTED: a size that the kernels are not built for. */
int arena_plan(struct arena *arena, const struct cuda_model_spec *spec);

#endif
