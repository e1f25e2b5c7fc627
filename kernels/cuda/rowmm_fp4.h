/* rowmm_fp4: the product of rowmm.h for FP4 weights on the FP8 tensor cores: eight codes become eight E5M2 in five instructions, activations go in as two E4M3 terms (terms.cuh).
 * Same contract as rowmm_launch. The tensor cores cut a sum of E5M2 times E4M3 to about 14 bits: a group of 16 weights is one such sum for each term; it is multiplied by the group's scale and
 * added in f32. The bits of out[m, :] depend on x[m, :] only.
 * Needs     rows % 64 == 0; no ROWMM_LOGITS (an output matrix is never FP4). Slices of 4096 are worked on in two halves: ROWMM_PARTIAL then has two sums for each of them (rowmm_slices).
 * Checked   tests/gpu/rowmm_test.cu (fp4). Measured: bench/RESULTS_cuda.md. */
#ifndef SLUICE_CUDA_ROWMM_FP4_H
#define SLUICE_CUDA_ROWMM_FP4_H

#include "rowmm.h"

/* args as rowmm_launch has got them. 0, -E_RANGE, -E_UNSUPPORTED, -E_IO. */
int rowmm_fp4_launch(const struct packed_matrix *w, struct rowmm_args args, const struct rowmm_tuning *tuning, void *stream);

/* rowmm_next_of for FP4. */
void rowmm_fp4_next_of(struct rowmm_next *next, const struct packed_matrix *w, const struct rowmm_tuning *tuning);

/* Once per process and device. 0 or -E_IO. */
int rowmm_fp4_init(void);

#endif
