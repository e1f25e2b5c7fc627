/* prefill_ops: what stands between the products of a prefill. f32 throughout, one rounding to bf16 at the end, as in the decode step's kernels.
 *   embed   h = bf16(E[token] * scale) as f32; x = bf16(h * w / rms(h)); the row's rotation table
 *   norm    h = (h + a * w_post / rms(a)) * scalar;  x = bf16(h * w_next / rms(h))
 *   rotary  norm and rotation of the heads of q and k, norm of v (without weight): q to a buffer, k and v to the pages
 * Shapes: h, a [rows][hidden] f32; x [rows][hidden] bf16 with k permuted as prefill_mm.h wants it; qkv [rows][stride] f32: the heads of q, then of
 * k, then of v (no v part in layers where v is the key projection before norm and rotation); q [rows][16 * d] bf16 in plain order.
 * One block per row: what a row gets does not depend on the others. Links of a chain (launch.h). Never synchronize.
 * Needs     hidden % 128 == 0, hidden <= 3840; d = 256 or 512; turned <= d / 2, turned % 4 == 0.
 * Checked   tests/gpu/prefill.py in the whole prefill. */
#ifndef SLUICE_CUDA_PREFILL_OPS_H
#define SLUICE_CUDA_PREFILL_OPS_H

#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#define PREFILL_HEADS 16
#define PREFILL_PAGE_TOKENS 32

/* What a kernel knows of a row. Written by the host for each run. row: its number; among the packed last rows of prompts, the number it had before. */
struct prefill_row { uint32_t token, position, seq, row; };

/* Where K and V of one layer lie. */
struct prefill_kv {
    uint8_t *arena;                   /* pool of the layer's type */
    uint64_t page_bytes, k_offset, v_offset;
    const uint32_t *pages;            /* [seqs][ring_pages]; NULL (attention): a tile's seq is what is added to p / 32 */
    uint32_t ring_pages;              /* entry of position p: (p / 32) % ring_pages */
    uint32_t kv_heads;
    uint32_t fp8;                     /* 1: E4M3, scale 1 (not for attention: prefill_expand.h); 0: bf16 */
};

struct prefill_embed_args {
    const struct prefill_row *row;    /* [rows] */
    const uint8_t *table;             /* packed, WEIGHT_BF16 */
    const __nv_bfloat16 *w_next;      /* [hidden] */
    const float *inv_freq;            /* [turned] sliding, then full */
    const float *soft;                /* [rows][hidden]: rows of tokens from SOFT_TOKEN on (soft.h); NULL: there are none */
    float *residual;                  /* [rows][hidden] */
    __nv_bfloat16 *x;                 /* [rows][hidden] permuted */
    float2 *rope;                     /* [rows][turned] cos, sin */
    uint32_t hidden, slice_k, slices, turned;
    float scale, eps, bias;           /* bias: of w_next, 1 where a model stores w - 1; so too below */
};

struct prefill_norm_args {
    const float *a;                   /* [rows][hidden] */
    float *residual;                  /* [rows][hidden], updated in place */
    const __nv_bfloat16 *w_post, *w_next;   /* [hidden] */
    const float *scalar;              /* layer scalar, or NULL: 1 */
    __nv_bfloat16 *x;                 /* [rows][hidden] permuted */
    uint32_t hidden;
    float eps, bias;
};

struct prefill_rotary_args {
    const struct prefill_row *row;
    const float *qkv;                 /* [rows][qkv_stride] */
    uint32_t qkv_stride;              /* elements */
    uint32_t q_heads;                 /* PREFILL_HEADS, or 0: qkv begins with k */
    uint32_t has_v;                   /* 0: v is made from the k part */
    uint32_t has_v_norm;              /* 0: v is taken as it is */
    const __nv_bfloat16 *q_norm, *k_norm;   /* [d] */
    const float2 *rope;               /* [rows][rope_stride], this layer type's part first */
    uint32_t rope_stride, turned;
    struct prefill_kv kv;
    __nv_bfloat16 *q;                 /* [rows][16 * d] */
    float eps, scale, bias;           /* scale: of q, after its rotation; bias: of the norms */
};

/* 0, -E_RANGE, -E_IO. */
int prefill_embed_launch(const struct prefill_embed_args *args, uint32_t rows, void *stream);
int prefill_norm_launch(const struct prefill_norm_args *args, uint32_t rows, void *stream);
int prefill_rotary_launch(const struct prefill_rotary_args *args, uint32_t head_dim, uint32_t rows, void *stream);
int prefill_ops_init(void);

#endif
