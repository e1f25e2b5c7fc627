/* embed: the start of a step. h = bf16(E[token] * scale) as f32; y = bf16(h * w / rms(h)), or f16 of y_power times that; the rotation table of the row.
 *   E    packed bf16 matrix [vocab, hidden]: the LM head's own copy, gathered; 7.7 KB a row
 *   rope [rows][turned_sliding + turned_full] (cos, sin) f32 of position * inv_freq, accurate at any position
 * One block of 480 threads per row; dead rows write zeros. Never synchronizes; a link of a chain. */
#ifndef SLUICE_CUDA_EMBED_H
#define SLUICE_CUDA_EMBED_H

#include "layout.h"
#include "row_places.h"
#include "state.h"
#include <cuda_bf16.h>
#include <cuda_runtime.h>

struct embed_args {
    const struct step_state *state;
    const uint8_t *table;             /* packed, WEIGHT_BF16 */
    const uint32_t *last_token;       /* [STEP_ROWS_MAX] sampled in the step before */
    const __nv_bfloat16 *w_next;      /* [hidden] */
    const float *inv_freq;            /* [turned] sliding, then full */
    float *residual;                  /* [rows][hidden] */
    __nv_bfloat16 *y;                 /* [rows][hidden] */
    struct row_places y_places;       /* zeros: plain */
    const float *y_power;             /* as in norm.h; NULL: bf16 */
    float2 *rope;                     /* [rows][turned] */
    uint32_t hidden, slice_k, slices, turned;
    float scale, eps, bias;           /* bias: of w_next, 1 where a model stores w - 1 */
};

/* 0, -E_RANGE, -E_IO. */
int embed_launch(const struct embed_args *args, uint32_t rows, void *stream);
int embed_init(void);

#endif
