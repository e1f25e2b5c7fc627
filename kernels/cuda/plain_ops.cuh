/* kernels/cuda/plain_ops.cuh - embedding, norms, heads and logits of plain.h: launchers of plain_ops.cu.
 *
 * All f32; sums over a row in 16 lanes as kernels/cpu/ops.h. Rows are records of struct plain_row: rows with live == 0 (a graph made
 * for more rows than a step has) compute nothing that anybody reads and write no key or value. Functions return 0 or -E_IO. */
#ifndef SLUICE_CUDA_PLAIN_OPS_CUH
#define SLUICE_CUDA_PLAIN_OPS_CUH

#include "plain.h"
#include <cuda_runtime.h>

/* Once per process, before the first launch. */
int plain_ops_init(void);

/* Cosines and sines of every position, [context][table's turned], in device memory of its own (cudaFree; nothing where no pair turns); finished on return. 0, -E_NOMEM, -E_IO. In plain.cu. */
struct rope_table;
int plain_angles(float2 **device, const struct rope_table *table, uint32_t context);

/* row[r] from the step's state; STEP_TOKEN_LAST becomes the token of last_token[r]. */
int plain_rows_launch_from_state(struct plain_row *row, const struct step_state *state, const uint32_t *last_token, uint32_t rows, void *stream);

/* h[r] = table row of the token * scale. */
struct plain_embed {
    const struct plain_row *row;
    const void *table;                /* [vocab, hidden] of weight_bytes */
    float *h;
    uint32_t hidden, weight_bytes;
    float scale;
    const float *soft;                /* rows of tokens from SOFT_TOKEN on, taken as they are; NULL: none */
};
int plain_embed_launch(const struct plain_embed *args, uint32_t rows, void *stream);

/* y given: h = (h + norm(y, w_post)) * scalar. Then, w_next given: x = norm(h, w_next), and hidden = x as bf16. */
struct plain_norm {
    const float *y, *w_post, *scalar; /* scalar NULL: 1 */
    float *h;                         /* [rows, hidden] */
    const float *w_next;
    float *x;
    uint16_t *hidden_out;             /* may be NULL */
    uint32_t hidden;
    float eps;
};
int plain_norm_launch(const struct plain_norm *args, uint32_t rows, void *stream);

/* y = x rounded to E4M3 codes as kernels/cpu/ops.h does it, scale[r]: what row r's codes are multiplied by. */
struct plain_round {
    const float *x;                   /* [rows, k] */
    float *y, *scale;                 /* [rows, k], [rows] */
    uint32_t k;
    float fixed;                      /* the scale of all rows; 0: of each its largest / 448 */
};
int plain_round_launch(const struct plain_round *args, uint32_t rows, void *stream);

/* Norms and turns the heads of each row: q goes back to its place, k and v go to the cache. */
struct plain_heads {
    const struct plain_row *row;
    float *qkv;                       /* [rows, stride]: q heads, k heads, v heads (if has_v) */
    uint64_t stride;
    const float *q_norm, *k_norm;
    const float2 *angle;              /* [context_max, turned]: cosine, sine */
    uint8_t *pool;
    const uint32_t *pages;
    uint64_t page_bytes, k_offset, v_offset;
    uint32_t pages_stride, ring_pages;/* ring_pages: entries before the table repeats */
    uint32_t q_heads, kv_heads, dim, turned, has_v, has_v_norm, kv_bytes;
    float eps;
};
int plain_heads_launch(const struct plain_heads *args, uint32_t rows, void *stream);

/* Caps the logits and notes the largest of each 16. */
struct plain_logits {
    float *logits, *tile_top;
    uint32_t vocab;
    float softcap;                    /* 0: none */
};
int plain_logits_launch(const struct plain_logits *args, uint32_t rows, void *stream);

#endif
