/* kernels/cuda/dspark_layout.h - where the weights of a DSpark head lie in its arena: a pure function of its spec.
 *
 * Matrices are packed as layout.h says, each on a 256-byte boundary; fc is cut into one matrix for each source, since a product adds at most four slices. The keys of all layers
 * are there twice: with their layer's queries, for the block's own rows, and stacked, for what is absorbed. Vectors are bf16. */
#ifndef SLUICE_CUDA_DSPARK_LAYOUT_H
#define SLUICE_CUDA_DSPARK_LAYOUT_H

#include "arena.h"
#include "cuda_dspark.h"
#include "dspark_attn.h"
#include "dspark_markov.h"

struct dspark_layer_plan {
    struct arena_matrix qkv, o, gate_up, down;
    uint64_t input_norm, post_attention_norm, pre_ff_norm, post_ff_norm, q_norm, scalar;
};

struct dspark_plan {
    uint64_t bytes;
    struct arena_matrix fc[CUDA_DSPARK_SOURCES_MAX], keys, head;
    uint64_t table;                   /* [vocab][hidden] bf16, own_table */
    uint64_t w1, w2, w2_scale;        /* [vocab][rank] bf16; [head rows][rank] in the format; f32 [head rows] (FP8) */
    uint64_t choice;                  /* u32 [choices] */
    uint64_t hidden_norm, final_norm, k_norms, confidence;   /* k_norms [layers][512] */
    struct dspark_layer_plan layer[CUDA_DSPARK_LAYERS_MAX];
};

/* Rows of the output matrix and of the Markov head's. */
static inline uint32_t dspark_head_rows(const struct cuda_dspark_spec *s) { return s->choices ? s->choices : s->vocab; }

/* 0 or -E_UNSUPPORTED. */
int dspark_plan_make(struct dspark_plan *plan, const struct cuda_dspark_spec *spec);

#endif
