/* kernels/cpu/ops_avx2.c - the operations for CPUs with AVX2 and FMA (x86-64 since 2013). */
#if defined(__x86_64__)
#define LINEAR_N 1                    /* 12 of 16 registers hold lanes, two the widened weight */
#define LINEAR_M 6
#define LINEAR_N1 4
#define KERNELS_TABLE kernels_avx2
#define KERNELS_NAME "avx2"
#include "kernels/cpu/ops.h"
#else
typedef int kernels_avx2_unused;
#endif
