/* kernels/cuda/plain_linear.cuh - y = x w^T in the CPU's 16 lanes (kernels/cpu/linear.h): launcher of plain_linear.cu.
 *
 *   x [rows, x_stride] f32, w [n, k] BF16 or F32 row-major, y [rows, y_stride] f32
 * With `up`, w is the gate matrix and y = gelu_tanh(x w^T) * (x up^T). A row's bits do not depend on the other rows.
 * Needs     k % 16 == 0, n % 8 == 0, x rows 16-byte aligned, w 16-byte aligned. */
#ifndef SLUICE_CUDA_PLAIN_LINEAR_CUH
#define SLUICE_CUDA_PLAIN_LINEAR_CUH

#include <stdint.h>

struct plain_linear {
    const float *x;
    const void *w, *up;               /* up NULL: a plain product */
    float *y;
    uint64_t x_stride, y_stride;      /* elements */
    uint32_t rows, n, k;
    uint32_t weight_bytes;            /* 2 or 4 */
};

/* Once per process, before the first launch. 0 or -E_IO. */
int plain_linear_init(void);
/* 0 or -E_IO. */
int plain_linear_launch(const struct plain_linear *args, void *stream);

#endif
