/* attn_many: attention for many rows of many sequences, with the very bits that attn.h gives each row.
 *   qkv, KV pages, out, part, part_ml as in attn.h
 * Sliding layers, one kernel: a block of 4 warps answers one row and kv head, chunk by chunk (by residue, attn.h); with up to 8 rows a cluster of 2 or 4 blocks
 * shares the chunks. It norms and rotates the row's queries, key and value itself, and adds the chunks in attn.h's tree. Keys of earlier steps are fetched before the qkv product has ended.
 * Full layers: a cluster of 4 blocks answers a row of few keys (attn_many_short.cu: up to 1,024, in launches of more than 16 rows) in one kernel. What is longer is left to two more
 * (attn_many_full.cu): a block's 8 warps work on a chunk of 32 keys together while the next chunk of any row is on its way, then the spans are added.
 * Rows of one sequence (verify blocks) read its keys once each, from the L2: for few rows attn.h is better.
 * Needs     d = 256, 16 query heads on 8 kv heads and window 1024, or d = 512 and 1 kv head; ring >= window + 8 tokens. Never synchronizes.
 * Checked   tests/gpu/attn_many_test.cu: bit by bit against attn.h, caches of bf16 and E4M3; tests/gpu/many.py: bits of the logits of 32 and 64 rows against single rows.
 * Measured  bench/RESULTS_cuda.md. */
#ifndef SLUICE_CUDA_ATTN_MANY_H
#define SLUICE_CUDA_ATTN_MANY_H

#include "attn.h"

/* 0, -E_UNSUPPORTED, -E_RANGE, -E_IO. */
int attn_many_launch(const struct attn_args *args, uint32_t rows, void *stream);
int attn_many_init(void);

/* The same for full layers. all_short: no row's sequence reaches beyond attn_many_short_keys(rows) in this step. */
int attn_many_full_launch(const struct attn_args *args, uint32_t rows, uint32_t sm_count, bool all_short, void *stream);

/* Keys of a text that the kernel for short ones has room for, in launches of so many rows; 0: such launches have none. */
uint32_t attn_many_short_keys(uint32_t rows);

int attn_many_full_init(void);

#endif
