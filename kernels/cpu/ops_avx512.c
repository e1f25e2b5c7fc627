/* kernels/cpu/ops_avx512.c - the operations for CPUs with AVX-512 F, BW, VL and DQ. */
#if defined(__x86_64__)
#define LINEAR_N 4                    /* 24 of 32 registers hold lanes */
#define LINEAR_M 6
#define LINEAR_N1 8
#define STORED_WIDE_LATE UINT32_MAX /* AVX-512 has the registers to widen in place: 11.4 against 12.7 ms for 8 rows */
#define STORED_WIDE_SCALED 3
#define ATTENTION_Q 4                 /* 16 sums, 4 values */
#define ATTENTION_D 4
#define ATTENTION_ODD 5               /* 20 sums, 5 values */
#define KERNELS_TABLE kernels_avx512
#define KERNELS_NAME "avx512"
#include "kernels/cpu/ops.h"
#else
typedef int kernels_avx512_unused;
#endif
