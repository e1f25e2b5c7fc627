/* kernels/cpu/ops_avx2.c - the operations for CPUs with AVX2 and FMA (x86-64 since 2013). */
#if defined(__x86_64__)
#define LINEAR_N 2                    /* 8 of 16 registers hold lanes; 2 x 3 and 3 x 2 spill: 47 against 66 GFLOP/s */
#define LINEAR_M 2
#define LINEAR_N1 4
#define STORED_WIDE_LATE 2
#define STORED_WIDE_SCALED 2
#define ATTENTION_Q 2
#define ATTENTION_D 2
#define KERNELS_TABLE kernels_avx2
#define KERNELS_NAME "avx2"
#include "kernels/cpu/ops.h"
#else
typedef int kernels_avx2_unused;
#endif
