/* tower_mm: y = epilogue(a w^T + bias) for many rows, bf16 operands, f32 sums on the tensor cores (mma.sync m16n8k16).
 *   a [m][k] bf16, w [n][k] bf16, row strides k; bias [n] f32, or NULL: none
 *   TOWER_HEADS     out bf16 [3][m][heads][room]: column c of the 3 * heads * head is part c / (heads * head), ...; the first part times `scale`
 *   TOWER_GELU      out bf16 [m][stride]: gelu_tanh
 *   TOWER_RESIDUAL  out f32 [m][stride]: added to what stands there
 *   TOWER_F32       out f32 [m][stride]
 * For the vision tower of Gemma 3 (tower.h), whose sizes (1152, 4304) the packed products of prefill_mm.h do not have. Tiles of 128 x 128 or 128 x 64, k in pieces of 64, three on
 * the way. A row's bits depend on that row and w alone.
 * Needs     k % 64 == 0, a and w 16-byte aligned. Never synchronizes.
 * Checked   tests/gpu/tower_test.c. Measured: bench/RESULTS_cuda.md. */
#ifndef SLUICE_CUDA_TOWER_MM_H
#define SLUICE_CUDA_TOWER_MM_H

#include <cuda_bf16.h>
#include <stdint.h>

enum tower_epilogue { TOWER_HEADS, TOWER_GELU, TOWER_RESIDUAL, TOWER_F32 };

struct tower_mm {
    const __nv_bfloat16 *a, *w;
    const float *bias;
    void *out;
    uint32_t m, n, k;
    uint32_t stride;                  /* of out, elements */
    uint32_t heads, head, room;       /* TOWER_HEADS: heads, elements of one, and with its padding */
    float scale;                      /* TOWER_HEADS */
};

int tower_mm_init(void);
/* 0, -E_RANGE, -E_IO. */
int tower_mm_launch(const struct tower_mm *args, enum tower_epilogue epilogue, void *stream);

#endif
