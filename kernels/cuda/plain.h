/* kernels/cuda/plain.h - every model that the CPU runs, on the GPU, with the CPU backend's very bits.
 *
 * For shapes that the kernels of Gemma 4 12B (arena.h) are not made for: the demo model, Gemma 3, small test checkpoints. The same operations in the
 * same order as kernels/cpu and model/forward*.c (16 lanes and their fixed tree, segments of 256 keys, f32 activations, polynomial exp), on CUDA
 * cores: logits and KV pages are bit-identical to the CPU's for any number of rows and any cut of a prompt. Speed comes second.
 *
 * Matrices lie in the weight arena as the checkpoint has them: row-major, in every format, each with its scales behind it; activations are rounded to E4M3 as the
 * spec says of each matrix. The embedding table is BF16 or F32 (spec.format); norms and scalars are f32 (1 added where the spec says so). The cache is BF16 or F32, told by v_offset - k_offset of the layers (kv heads * head size * 32 positions * element).
 * Functions return 0 or -E_CODE. Needs: hidden, intermediate and vocab multiples of 16, head sizes multiples of 32 up to 512.
 * Bits were compared with the CPU's by tests/gpu/plain_test.c. */
#ifndef SLUICE_CUDA_PLAIN_H
#define SLUICE_CUDA_PLAIN_H

#include "cuda_backend.h"
#include <stdbool.h>

#define PLAIN_PAGE_TOKENS 32          /* KV_PAGE_TOKENS */
#define PLAIN_HEAD_DIM_MAX 512
#define PLAIN_ROWS_LIMIT 32768        /* largest rows_max: rows are a dimension of grids */

struct plain_matrix {                 /* byte offsets in the arena */
    uint64_t codes;                   /* [rows, k] in its format */
    uint64_t scale;                   /* FP8: f32 [rows]; FP8_BLOCK: f32 [rows, k / 128 rounded up]; FP4: E4M3 [rows, k / 16] */
    uint64_t factor;                  /* FP4: f32 [rows]; below 0: what it is the negative of divides the sum */
    uint32_t rows, k, format;         /* rows 0: the layer has no such matrix */
    uint32_t activation;              /* enum stored_activation */
    float input_scale;
};

struct plain_layer {                  /* byte offsets in the arena */
    struct plain_matrix matrix[CUDA_MATRICES];   /* by enum cuda_tensor */
    uint32_t stacked;                 /* 1: q, k and v are stored alike and stand one behind the other, as one matrix */
    uint64_t input_norm, post_attention_norm, pre_ff_norm, post_ff_norm, q_norm, k_norm, scalar;   /* f32 */
};

struct plain_arena {
    uint64_t bytes, embed, final_norm;
    uint32_t weight_bytes;            /* of an element of the embedding table: 2 or 4 */
    uint32_t rounded;                 /* largest k of a matrix whose input is rounded to E4M3; 0: there is none */
    uint32_t kv_bytes;                /* of an element of the cache: 1 (E4M3), 2 (bf16) or 4 (f32) */
    struct plain_layer layer[CUDA_LAYERS_MAX];
};

/* One row of a call, on the device. live: 0, nobody reads it; else 1 + the positions behind it that it sees (the rest of its picture) in sliding layers, and with spec.full_ahead in all. */
struct plain_row { uint32_t token, position, seq, live; };

struct outputs_keep;                  /* outputs.h */

struct plain_options {
    const void *weights;              /* the arena, device */
    void *kv[2];                      /* pool of pages per layer type */
    const uint32_t *pages[2];         /* device, [seqs][pages_stride]; borrowed */
    uint32_t pages_stride[2];         /* entries of a table; the sliding one is the ring */
    uint32_t rows_max, context_max;
    const float *soft;                /* device, [rows_max][hidden]: embeddings of tokens from SOFT_TOKEN on (soft.h); NULL: there are none, and no row sees ahead */
    const struct outputs_keep *keep;  /* looked at by each launch: outputs of layers that a drafter wants; NULL: nobody does */
};

struct plain;                         /* opaque: scratch and tables of one handle */

#ifdef __cplusplus
extern "C" {
#endif

/* Where everything lies. -E_UNSUPPORTED: a size outside the limits above. */
int plain_plan(struct plain_arena *arena, const struct cuda_model_spec *spec);

/* Bytes of the weight arena; 0: not supported. */
uint64_t plain_weights_bytes(const struct cuda_model_spec *spec);

/* Rows of a matrix (elements of a vector) that a tensor has; 0: this layer has no such tensor, or the layer is out of range. */
uint32_t plain_tensor_rows(const struct cuda_model_spec *spec, enum cuda_tensor tensor, uint32_t layer);

/* Takes rows [first, first + rows) of a tensor from device memory into the arena, in stream order: returns at once. Matrices must have the spec's
 * format (scale and scale_stride as in cuda_weights.h, device memory, of these rows alone), vectors may be WEIGHT_BF16 or WEIGHT_F32. A model without layer scalars needs 1 put in every one of them. -E_RANGE, -E_UNSUPPORTED (format). */
int plain_weights_put(const struct cuda_model_spec *spec, void *arena, enum cuda_tensor tensor, uint32_t layer, uint32_t first, uint32_t rows,
                      const void *source, uint32_t format, const float *scale, uint32_t scale_stride, void *stream);

/* Every weight random (norms near 1); and the matrices back as f32 in the order of cuda_weights_unpack. They return when the work is done. */
int plain_weights_fill(const struct cuda_model_spec *spec, void *arena, uint64_t seed, void *stream);
int plain_weights_unpack(const struct cuda_model_spec *spec, const void *arena, enum cuda_tensor tensor, uint32_t layer, void *out, void *stream);

int plain_open(struct plain **plain, const struct cuda_model_spec *spec, const struct plain_options *options);
void plain_close(struct plain *plain);

/* The decode step's forward pass on `stream`: rows of `state` in, logits [rows][vocab] (capped), tile_top
 * [rows][vocab / 16], residual [rows][hidden] and hidden (bf16) out. All device memory. May be captured. */
struct plain_step {
    const struct step_state *state;
    const uint32_t *last_token;       /* [rows] */
    float *logits, *tile_top, *residual;
    void *hidden;
};
int plain_step_launch(struct plain *plain, uint32_t rows, const struct plain_step *step, void *stream);

/* Layers [first, first + count) over `rows` rows given as records (device): K and V are written. The first layer brings the embedding with it; what the
 * next ones need stays in the handle, so that a call may do some layers and a later one the next. whole: the last layer is computed to its
 * end, the residual stays in plain_residual and what the final norm makes of it in plain_hidden; else it ends with its K and V. */
int plain_rows_launch(struct plain *plain, const struct plain_row *rows_device, uint32_t rows, uint32_t first, uint32_t count, bool whole, void *stream);
void *plain_residual(struct plain *plain);
void *plain_hidden(struct plain *plain);      /* f32 [rows][hidden] */

/* The end of plain_step_launch alone: logits and tile_top of the rows in plain_hidden. */
int plain_head_launch(struct plain *plain, uint32_t rows, const struct plain_step *step, void *stream);

/* cuda_prefill.h for these shapes. */
struct plain_prefill;
struct cuda_prefill_span;
struct cuda_prefill_piece;
int plain_prefill_open(struct plain_prefill **prefill, const struct cuda_model_spec *spec, const struct cuda_options *options, uint32_t rows_max);
void plain_prefill_close(struct plain_prefill *prefill);
int plain_prefill_pages(struct plain_prefill *prefill, uint32_t seq, enum cuda_layer_type type, uint32_t first, const uint32_t *pages, uint32_t count);
struct cuda_soft_weights;
int plain_prefill_soft_weights(struct plain_prefill *prefill, const struct cuda_soft_weights *weights);
int plain_prefill_outputs(struct plain_prefill *prefill, uint64_t layers);
int plain_prefill_outputs_copy(struct plain_prefill *prefill, uint32_t from_seq, uint32_t from_generation, uint32_t seq, uint32_t first, uint32_t count);
int plain_prefill_generation(struct plain_prefill *prefill, uint32_t seq, uint32_t generation);
int plain_prefill_soft(struct plain_prefill *prefill, const struct cuda_prefill_piece *pieces, uint32_t piece_count);
int plain_prefill_soft_go(struct plain_prefill *prefill);
int plain_prefill_begin(struct plain_prefill *prefill, const struct cuda_prefill_span *spans, uint32_t span_count, const uint32_t *tokens);
int plain_prefill_go(struct plain_prefill *prefill, uint32_t layers);
int plain_prefill_wait(struct plain_prefill *prefill, uint32_t timeout_us);
void *plain_prefill_residual(struct plain_prefill *prefill);
void *plain_prefill_stream(struct plain_prefill *prefill);
struct CUevent_st *plain_prefill_done(struct plain_prefill *prefill);   /* the event that plain_prefill_wait waits for */

#ifdef __cplusplus
}
#endif
#endif
