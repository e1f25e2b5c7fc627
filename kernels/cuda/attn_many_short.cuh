/* kernels/cuda/attn_many_short.cuh - the first kernel of full layers for many sequences, used by attn_many_full.cu. */
#ifndef SLUICE_CUDA_ATTN_MANY_SHORT_CUH
#define SLUICE_CUDA_ATTN_MANY_SHORT_CUH

#include "attn.h"

/* Rows of groups that reach beyond attn_many_short_keys() are not answered: their q is left in `out`, their K and V in their pages. */
int attn_many_short_init(void);
int attn_many_short_launch(const struct attn_args *args, uint32_t rows, void *stream);

#endif
