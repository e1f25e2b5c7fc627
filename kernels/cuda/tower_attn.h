/* tower_attn: every patch sees every patch. out = softmax(q k^T) v for each head, flash style, bf16 operands, f32 sums (mma.sync).
 *   q, k, v [count][heads][room] bf16, zeros behind the first `head` elements of a head; q times scale * log2 e
 *   out     [count][stride] bf16: heads side by side, `head` elements each
 * A block takes 128 queries of a head, a warp 16; keys in pieces of 64, the next on its way. A query's bits depend on it and the keys alone.
 * Needs     room 16, 80 or 128. Never synchronizes. Checked: tests/gpu/tower_test.c. */
#ifndef SLUICE_CUDA_TOWER_ATTN_H
#define SLUICE_CUDA_TOWER_ATTN_H

#include <cuda_bf16.h>
#include <stdint.h>

struct tower_attn {
    const __nv_bfloat16 *q, *k, *v;
    __nv_bfloat16 *out;
    uint32_t count, heads, head, stride;
};

/* Elements that a head of so many takes; 0: too many. */
static inline uint32_t tower_attn_room(uint32_t head) { return head <= 16 ? 16 : head <= 80 ? 80 : head <= 128 ? 128 : 0; }

int tower_attn_init(void);
/* 0, -E_RANGE, -E_IO. */
int tower_attn_launch(const struct tower_attn *args, void *stream);

#endif
