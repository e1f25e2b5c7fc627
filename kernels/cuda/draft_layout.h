/* kernels/cuda/draft_layout.h - where the weights of an MTP assistant lie in the drafter's arena: a pure function of its spec.
 *
 * Every matrix is cut into units of 16 rows x 1024 columns (the units of layout.h with slice_k = 1024, in the order (tile, slice)), so that the whole
 * drafter is one stream of equal pieces. Columns beyond a matrix's own (the projection in front has 2 x 3840) are zeros. gate and up share
 * tiles: 8 rows of gate, then their 8 of up. Vectors are f32 at the end. Whoever fills the arena and whoever runs it compute the same offsets. */
#ifndef SLUICE_CUDA_DRAFT_LAYOUT_H
#define SLUICE_CUDA_DRAFT_LAYOUT_H

#include "cuda_draft.h"

#define DRAFT_HIDDEN 1024u            /* of the assistant: one slice */
#define DRAFT_HEADS 16u
#define DRAFT_SLICE 1024u

struct draft_matrix {
    uint64_t offset;                  /* bytes from the start of the arena */
    uint32_t units, slices;           /* units = rows / 16 * slices */
};

struct draft_layer_plan {
    struct draft_matrix q, o, gate_up, down;
    uint64_t input_norm, post_attention_norm, pre_ff_norm, post_ff_norm, q_norm;   /* f32 */
    uint64_t scalar;                  /* f32 */
};

struct draft_plan {
    uint64_t bytes;
    uint64_t step_bytes;              /* of the matrices: what one step reads */
    struct draft_matrix pre, post, head;
    uint64_t norm;                    /* f32 [DRAFT_HIDDEN] */
    uint64_t choice;                  /* u32 [choices] */
    struct draft_layer_plan layer[CUDA_DRAFT_LAYERS_MAX];
};

/* Rows of the output table. */
static inline uint32_t draft_head_rows(const struct cuda_draft_spec *s) { return s->choices ? s->choices : s->vocab; }

static inline uint32_t draft_unit_bytes(uint32_t format) { return packed_unit_bytes(format, DRAFT_SLICE); }

#ifdef __cplusplus
extern "C"
#endif
/* 0 or -E_UNSUPPORTED: a size that the kernel is not built for. */
int draft_plan_make(struct draft_plan *plan, const struct cuda_draft_spec *spec);

#endif
