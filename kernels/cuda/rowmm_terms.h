/* rowmm_terms: the product of rowmm.h for FP8 weights on the FP8 tensor cores, which need no unpacking: activations as two E4M3 terms (terms.cuh).
 * Same contract as rowmm_launch; other bits: the tensor cores cut sums of E4M3 products to about 14 bits. The bits of out[m, :] depend on x[m, :] only.
 * Checked   tests/gpu/rowmm_test.cu (terms). */
#ifndef SLUICE_CUDA_ROWMM_TERMS_H
#define SLUICE_CUDA_ROWMM_TERMS_H

#include "rowmm.h"

/* args as rowmm_launch has filled them, but for the ring; w FP8. 0, -E_IO. */
int rowmm_terms_launch(const struct packed_matrix *w, struct rowmm_args args, const struct rowmm_tuning *tuning, uint32_t blocks, void *stream);

/* Once per process and device. 0 or -E_IO. */
int rowmm_terms_init(void);

#endif
