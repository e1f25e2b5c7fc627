/* powers: the powers of two by which a step's activations are multiplied when they become f16 for a product of FP8, FP8_BLOCK or FP4 weights.
 *
 * One for each product of a layer, from a bound that no input can break, so that nobody looks for the largest element while a step runs and no f16 can overflow:
 *   qkv, gate_up  |y_i| <= sqrt(hidden) max |w|, w the weights of the norm in front (bias added): ||h / rms(h)|| <= sqrt(hidden)
 *   o             a convex combination of values: sqrt(head size) with a norm of values, else sqrt(hidden) max over rows of Wv of ||row * w||
 *   down          |gelu(g_i) u_i| <= hidden max over i of ||Wg_i * w|| ||Wu_i * w|| (Cauchy-Schwarz; gelu(g) lies between g and 0 or is smaller than 0.17 of it)
 * with weights as the product sees them. A bound in [2^e, 2^(e+1)) gets the power 2^(14-e): the largest f16 is 65504, so what roundings add (of activations to f16 or E4M3, of
 * the cache) fits into the factor 2 that is left; where a rule rounds activations in front of gate_up or qkv (round.h), the bounds that rest on them are loosened further.
 * f16 has 11 bits down to 2^-14, so elements 2^-21 of the bound still have bf16's 8.
 * A bound of 0 or no number: 1. Matrices of BF16 weights take bf16 and no power; one stands here all the same.
 *   out  [POWERS] pairs, f32: the power, which who makes the activations multiplies with; its inverse, which multiplies the product's sums
 * Order     on the caller's stream; writes the same bytes for the same weights. Reads gate_up whole (and qkv's values without a norm): 20 ms for 48 layers of Gemma 4 12B.
 * Checked   tests/gpu/powers_test.cu. */
#ifndef SLUICE_CUDA_POWERS_H
#define SLUICE_CUDA_POWERS_H

#include "arena.h"
#include <cuda_bf16.h>

#define POWERS_SCRATCH 4              /* floats */

struct powers_args {
    const __nv_bfloat16 *input_norm, *pre_ff_norm;   /* [hidden], of qkv and gate_up */
    float bias;                       /* of both */
    uint32_t hidden, head_dim;
    struct packed_matrix qkv, gate_up;
    uint32_t value_first;             /* first row of qkv that makes values; those to its end do. Unused with a norm of values */
    uint32_t has_v_norm;
    uint32_t qkv_rounded, gate_up_rounded;   /* 1: an activation rule stands in front */
    struct row_power *out;            /* [POWERS] device */
    float *scratch;                   /* [POWERS_SCRATCH] device, for as long as the stream needs */
};

/* 0, -E_RANGE, -E_IO. */
int powers_launch(const struct powers_args *args, void *stream);

/* The power for what a norm of these weights leaves, alone. */
int powers_norm_launch(const __nv_bfloat16 *w, uint32_t hidden, struct row_power *out, void *stream);

/* The power for a bound. */
LAYOUT_FN int power_exponent(float bound)
{
    union { float f; uint32_t u; } bits = { bound };
    const int e = (int)(bits.u >> 23 & 255) - 127, shift = 14 - e;

    if (!(bound > 0.0f) || e == 128) return 0;
    return shift < -100 ? -100 : shift > 100 ? 100 : shift;
}

#endif
