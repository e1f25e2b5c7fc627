/* kernels/cuda/plain_linear.cuh - y = x w^T in the CPU's 16 lanes (kernels/cpu/linear.h): launcher of plain_linear.cu.
 *
 *   x [rows, x_stride] f32, w [n, k] row-major as stored (plain.h), y [rows, y_stride] f32
 * With `up`, w is the gate matrix and y = gelu_tanh(x w^T) * (x up^T). A row's bits do not depend on the other rows. Codes and scales as
 * kernels/cpu/stored.h takes them: a row's scale multiplies the sum, a block's or group's the code, FP4's factor the sum, x_scale what comes out.
 * Needs     k % 16 == 0 (FP4: 32), n % 8 == 0, x rows 16-byte aligned, w 16-byte aligned. */
#ifndef SLUICE_CUDA_PLAIN_LINEAR_CUH
#define SLUICE_CUDA_PLAIN_LINEAR_CUH

#include "layout.h"
#include <stdint.h>

struct plain_codes {
    const void *codes;                /* [n, k] */
    const void *scale;                /* FP8: f32 [n]; FP8_BLOCK: f32 [n][k / 128 rounded up]; FP4: E4M3 [n][k / 16] */
    const float *factor;              /* FP4: [n], below 0: what it is the negative of divides */
};

struct plain_linear {
    const float *x;
    const float *x_scale;             /* [rows], of rounded rows; NULL: all 1 */
    struct plain_codes w, up;         /* up.codes NULL: a plain product */
    float *y;
    uint64_t x_stride, y_stride;      /* elements */
    uint32_t rows, n, k;
    uint32_t format;                  /* enum weight_format */
};

/* Once per process, before the first launch. 0 or -E_IO. */
int plain_linear_init(void);
/* 0 or -E_IO. */
int plain_linear_launch(const struct plain_linear *args, void *stream);

#endif
