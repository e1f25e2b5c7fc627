/* attn_many: attention for many rows of many sequences, with the very bits that attn.h gives each row.
 *   qkv, KV pages, out, part, part_ml as in attn.h
 * A first kernel norms and rotates: one warp per head of q, k and v of each row; new K and V go to their pages, queries to scratch memory.
 * Sliding layers: the second kernel answers one row and kv head per block: its 4 warps take the 16 chunks of keys (by residue, attn.h) by turns, each streaming keys
 * through a ring of its own in shared memory, so that no warp waits for another until the chunks are added in attn.h's tree. Keys of
 * earlier steps are fetched before the qkv product has ended.
 * Full layers: a block's 8 warps work on a chunk of 32 keys together while the next chunk of any row is on its way; a third kernel adds the spans.
 * Rows of one sequence (verify blocks) read its keys once each, from the L2: for few rows attn.h is better.
 * Needs     d = 256, 16 query heads on 8 kv heads and window 1024, or d = 512 and 1 kv head; ring >= window + 8 tokens. Never synchronizes.
 * Checked   tests/gpu/many.py: bits of the logits of 32 and 64 rows against single rows.
 * Measured  bench/RESULTS_cuda.md. */
#ifndef SLUICE_CUDA_ATTN_MANY_H
#define SLUICE_CUDA_ATTN_MANY_H

#include "attn.h"

/* 0, -E_UNSUPPORTED, -E_RANGE, -E_IO. */
int attn_many_launch(const struct attn_args *args, uint32_t rows, void *stream);
int attn_many_init(void);

/* The same for full layers. */
int attn_many_full_launch(const struct attn_args *args, uint32_t rows, uint32_t sm_count, void *stream);
int attn_many_full_init(void);

#endif
