/* kernels/cuda/soft_matrix.h - a matrix of the parts that see and hear, on the device as the checkpoint has it, and products with it in the CPU's order.
 *
 * Owned by whoever opened it. Host side of plain_linear.cuh: y[r] = x[r] W^T, weight-only, as model/embedder.h's embedder_multiply: the same bits. */
#ifndef SLUICE_CUDA_SOFT_MATRIX_H
#define SLUICE_CUDA_SOFT_MATRIX_H

#include "cuda_prefill.h"

struct soft_matrix {
    uint8_t *memory;                  /* device, owned: codes, scales, factors; NULL: there is no such matrix */
    uint64_t scale_at, factor_at;     /* bytes */
    uint32_t rows, k, format;         /* enum weight_format */
};

/* From host memory, which is taken before the call returns. 0, -E_UNSUPPORTED (a shape or format that plain_linear.cuh does not know), -E_NOMEM, -E_IO. */
int soft_matrix_open(struct soft_matrix *m, const struct cuda_soft_matrix *from);
void soft_matrix_close(struct soft_matrix *m);

/* x [rows][k] and y [rows][y_stride], device; y_stride in elements. 0, -E_IO. */
int soft_matrix_multiply(const struct soft_matrix *m, const float *x, uint32_t rows, float *y, uint64_t y_stride, void *stream);

/* A vector of n numbers on the device, owned by the caller. 0, -E_NOMEM, -E_IO. */
int soft_vector_open(float **device, const float *host, uint64_t n);

#endif
