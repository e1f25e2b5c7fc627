/* norm: the two norms between the blocks of a layer.
 *   a = sum of the split-K partial results;  h = (r + a * w_post / rms(a)) * scalar;  y = bf16(h * w_next / rms(h)), with `bias` added to both weights;
 *   where the next product takes f16, y = f16(y * y_power); where it wants its activations in FP8, y is rounded on (y_scale, y_fixed)
 *   r, h [rows, hidden] f32; partials [split][rows_max][hidden] f32; y [rows, hidden] bf16 or f16 in the places of row_places.h; sums in f32 in a fixed tree
 * One block of 480 threads per row, a link of a chain. It stands on the critical path of every layer twice, so: weights are in shared memory before
 * the wait, all loads are in flight at once, 56 registers fit beside a rowmm block that is already prefetching.
 * Needs     hidden % 128 == 0, hidden <= 3840, split in {1, 2, 4}. Never synchronizes.
 *           Polls for its input where it may (tags.cuh), else waits for its predecessor's end.
 * Checked   tests/gpu/norm_test.cu; tests/gpu/logits.py in the whole step. */
#ifndef SLUICE_CUDA_NORM_H
#define SLUICE_CUDA_NORM_H

#include "row_places.h"
#include <cuda_bf16.h>
#include <stdint.h>

#define NORM_SPLIT_MAX 4

struct norm_args {
    const float *part;                /* [split][rows_max][hidden] f32, written by the last kernel */
    uint64_t part_stride;             /* elements between splits */
    uint32_t split;                   /* 1, 2 or 4 */
    uint32_t hidden;
    const float *residual;            /* [rows_max][hidden] f32 */
    float *residual_out;
    uint32_t part_tag, residual_tag, out_tag;   /* 0 or 1: of part, residual, residual_out (tags.cuh) */
    uint32_t poll;                    /* 1: takes part and residual as soon as their tags say that they are there */
    uint32_t early;                   /* poll: words so far in front of a row's end are there a moment before the last */
    const __nv_bfloat16 *w_post, *w_next;   /* [hidden] constant */
    const float *scalar;              /* layer_scalar, or NULL: 1 */
    float eps, bias;                  /* bias: 1 where a model stores w - 1, else 0 */
    __nv_bfloat16 *y;                 /* [rows][hidden] bf16, or f16 where y_power, y_scale or y_fixed say so */
    struct row_places y_places;       /* zeros: plain */
    const float *y_power;             /* a power of two in constant memory: y is f16, multiplied by it (powers.h) */
    float *y_scale;                   /* [rows]: y is rounded as round.h says (ROUND_VALUES), by its largest element, its scale goes there */
    float y_fixed;                    /* not 0: y is rounded by this scale */
    float y_inverse;                  /* of it; set by norm_launch */
    unsigned long long *trace;        /* device.cuh; NULL outside benches */
};

/* 0, -E_RANGE, -E_IO. */
int norm_launch(const struct norm_args *args, uint32_t rows, void *stream);
int norm_init(void);

#endif
