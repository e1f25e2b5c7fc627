/* attn: one layer's attention for the rows of a step. From the f32 outputs of the qkv product to the input of the o product:
 * q and k norm, rotation, v norm, writing K and V of the new positions, softmax(q k) v over the pages.
 *   qkv  [rows][16 d | kv_heads d | kv_heads d] f32 (no v part in layers where v is the key projection before norm and rotation)
 *   KV   bf16 or (kv_fp8) E4M3 pages of 32 positions as model/kv.h lays them out: K [kv_heads][32][d], then V, of this layer, at an offset in the page
 *   out  [rows][16 d] bf16, or f16 times out_power, in the places that out_places names (row_places.h)
 * The cut of the key axis is fixed by absolute position, whatever the batch, the row or the length of the text:
 *   sliding layers: by residue. Chunk j of 16 holds the keys with key / 64 % 16 == j; a window of 1024 shows a row exactly one key
 *   at each of a chunk's 64 places. Then a second kernel adds the 16 chunks in a fixed tree.
 *   full layers of one kv head (those of several: attn_long.h): chunks of 32 keys with a softmax of their own; spans of 3 chunks below 2112 keys, then of 4, 16 and 32, so that long texts
 *   do not drown in partial results. A span's chunks are joined in ascending order, then a row's spans. One kernel works on (row, span) items, or with few rows below 2112 keys on
 *   (row, chunk) items, whose chunks are then joined by the second kernel as the first would have done.
 * Keys outside a row's own view add exact zeros; where a row shows both a new and an old part of a chunk, p v runs over the old part first.
 * So the bits of a row do not depend on what else is in the step.
 * Needs     d = 256 with 2 query heads per kv head and window 1024, or d = 512 with 16; groups of at most 8 rows; ring >= window + 8 tokens. Never synchronizes.
 * Checked   tests/gpu/logits.py: in the whole step against transformers, positions 0 .. 2600, and bit by bit in any company of rows.
 * Measured  bench/RESULTS_cuda.md. */
#ifndef SLUICE_CUDA_ATTN_H
#define SLUICE_CUDA_ATTN_H

#include "row_places.h"
#include "state.h"
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <stdint.h>

#define ATTN_HEADS 16
#define ATTN_PAGE_TOKENS 32
#define ATTN_SLIDING_SPAN 64
#define ATTN_SLIDING_CHUNKS 16
#define ATTN_WINDOW (ATTN_SLIDING_SPAN * ATTN_SLIDING_CHUNKS)   /* of every sliding layer */
#define ATTN_SLIDING_SPANS_MAX ATTN_SLIDING_CHUNKS              /* partial results per row and head */

struct attn_args {
    const struct step_state *state;
    const float *qkv;
    uint32_t qkv_stride;              /* elements per row */
    uint32_t kv_heads;
    uint32_t has_v;
    uint32_t kv_fp8;                  /* 1: the cache holds E4M3 (scale 1), products are of f16; 0: bf16 */
    uint32_t window;                  /* 0: full layer */
    uint8_t *arena;                   /* base of the pool of this layer type */
    uint64_t page_bytes, k_offset, v_offset;
    const uint32_t *pages;            /* [seqs][pages_stride] page numbers of this layer type */
    uint32_t pages_stride;
    uint32_t ring_pages;              /* entry of position p: (p / 32) % ring_pages; full layers: at least every page of the text */
    const __nv_bfloat16 *q_norm, *k_norm;   /* [d]; plus norm_bias */
    float norm_bias;                  /* 1 where a model stores w - 1, else 0 */
    uint32_t has_v_norm;              /* 0: values are taken as they are */
    const float2 *rope;               /* [rows][rope_stride], this layer type's part first */
    uint32_t rope_stride, turned;     /* pairs that turn */
    uint32_t fresh_rows;              /* set by attn_launch: most rows of a group */
    uint32_t blocks, sum_parts;       /* the same: of the first kernel of a full layer; of each row's head in the second */
    float eps, scale;
    float *part;                      /* [rows][16][spans_max][d] */
    float2 *part_ml;                  /* [rows][16][spans_max] (max, sum) */
    uint32_t spans_max;
    __nv_bfloat16 *out;
    struct row_places out_places;     /* zeros: plain, as launches of more than 16 rows want them */
    const float *out_power;           /* a power of two in constant memory: out is f16, multiplied by it (powers.h); NULL: bf16 */
    float *out_scale;                 /* [rows], attn_launch with heads of 256 and attn_long_launch: out is rounded by each row's largest element (round.h), whose scale goes there, and f16; NULL: not */
    float out_inverse;                /* not 0: out is rounded to E4M3's values by the fixed scale whose inverse this is (round.h), and f16 */
    uint32_t qkv_tag, qkv_poll;       /* 0 or 1 (tags.cuh); poll 1: attn.cu takes qkv as soon as its tags say that it is there, attn_many.cu if they say so when a block starts */
    uint32_t part_tag, part_poll;     /* the same of part and part_ml, of sliding layers; those of full layers carry none */
    unsigned long long *trace;        /* two kernels' words (device.cuh); NULL outside benches */
};

/* Partial results of a full layer that cover `tokens` keys, at most: the size of the buffers. */
uint32_t attn_full_spans(uint32_t tokens);

/* 0, -E_UNSUPPORTED, -E_IO. */
int attn_launch(const struct attn_args *args, uint32_t head_dim, uint32_t rows, uint32_t sm_count, void *stream);
int attn_init(void);

#endif
