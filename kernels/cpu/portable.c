/* kernels/cpu/portable.c - the operations in plain C: any CPU, and what the others are compared with. */
#define LINEAR_N 1
#define LINEAR_M 2                    /* lanes live in memory here: a larger tile only grows the code */
#define LINEAR_N1 2
#define STORED_WIDE_LATE 2
#define STORED_WIDE_SCALED 2
#define ATTENTION_Q 1
#define ATTENTION_D 2
#define KERNELS_TABLE kernels_portable
#define KERNELS_NAME "portable"
#include "kernels/cpu/ops.h"
