/* attn_long: decode attention of full layers with 8 kv heads of 256 (Gemma 3 12B), for any number of rows and sequences.
 *   qkv, KV pages, out, part, part_ml as in attn.h
 * The cut of the key axis is fixed by absolute position: spans of 64 keys below 2048, then 256, 1024 and 2048. One kernel works on (sequence, span, kv
 * head) items, each for all rows of the sequence (8 rows x 2 heads are the 16 rows of an mma), and writes partial results; a second adds
 * them in ascending order. Keys that a row does not see add exact zeros: its bits do not depend on what else is in the step.
 * Needs     d = 256, 16 query heads on 8 kv heads, no window; groups of at most 8 rows. Never synchronizes.
 * Checked   tests/gpu/logits.py --model gemma-3-12b: against transformers, and bit by bit in any company of rows.
 * Measured  bench/RESULTS_cuda.md. */
#ifndef SLUICE_CUDA_ATTN_LONG_H
#define SLUICE_CUDA_ATTN_LONG_H

#include "attn.h"

/* Spans that cover `tokens` keys: the size of the partial buffers. */
uint32_t attn_long_spans(uint32_t tokens);

/* 0, -E_UNSUPPORTED, -E_RANGE, -E_IO. */
int attn_long_launch(const struct attn_args *args, uint32_t rows, uint32_t sm_count, void *stream);
int attn_long_init(void);

#endif
