/* norm: h = (r + a * w_post / rms(a)) * scalar; y = bf16(h * w_next / rms(h)), a = sum of the split partials (norm.cuh).
 *   one block of 480 threads per row; r, h [rows, hidden] f32; partials [split][rows_max][hidden] f32; y [rows, hidden] bf16
 * Needs     hidden % 128 == 0, hidden <= 3840. Never synchronizes; a link of a chain (launch.h).
 * Checked   tests/gpu/ops_test.cu against f64; tests/gpu/logits.py in the whole step. */
#ifndef SLUICE_CUDA_NORM_H
#define SLUICE_CUDA_NORM_H

#include "norm.cuh"

/* 0, -E_RANGE, -E_IO. */
int norm_launch(const struct norm_args *args, __nv_bfloat16 *y, uint32_t rows, void *stream);
int norm_init(void);

#endif
