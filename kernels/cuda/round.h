/* round: activation rules of FP8 formats (kernels/stored.h): a row of x is rounded to E4M3 codes, its scale goes to the product, which multiplies the sum.
 *   x      [rows][k] bf16, 16-byte aligned, in the places of row_places.h
 *   fixed  0: scale = largest / 448, at least 1 / (448 * 512), code = x / scale (one token, one scale); else scale = fixed, code = x * (1 / fixed)
 *   codes to nearest, ties to even, cut off at 448; a NaN stays one: the CPU's rule (kernels/kernels.h, to_e4m3) on the same x, bit for bit
 *   (but for the sign of a zero)
 *   out    ROUND_VALUES  the codes' values as f16 (exact), order untouched: what the small-row products take
 *          ROUND_CODES   [rows][k] E4M3, element k at round_k(k), from x in the order of prefill_k: what the FP8 products of a prompt take
 *   scale  [rows] f32
 * One block per row: what a row gets does not depend on the others. A link of a chain (launch.h). Never synchronizes.
 * Needs     k % 32 == 0, k <= 16384.
 * Checked   tests/gpu/round_test.cu, bit by bit. */
#ifndef SLUICE_CUDA_ROUND_H
#define SLUICE_CUDA_ROUND_H

#include "row_places.h"
#include <cuda_bf16.h>

enum round_out { ROUND_VALUES = 0, ROUND_CODES = 1 };

struct round_args {
    const __nv_bfloat16 *x;
    void *out;                        /* f16, may be x; or bytes */
    float *scale;                     /* [rows] */
    uint32_t k;
    float fixed;
    struct row_places places;         /* ROUND_VALUES: of x and out; zeros: plain */
};

/* Place of element k in a row of codes: inside each block of 32, lane t of a quad holds the elements 8t..8t+7 of the packed weights, which wgmma takes for 4t..4t+3 and
 * 16 + 4t..16 + 4t+3. */
LAYOUT_FN uint32_t round_k(uint32_t k) { return (k & ~31u) | (k & 4) << 2 | (k >> 3 & 3) << 2 | (k & 3); }

/* 0, -E_RANGE, -E_IO. */
int round_launch(const struct round_args *args, enum round_out out, uint32_t rows, void *stream);
int round_init(void);

#endif
