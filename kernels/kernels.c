/* kernels/kernels.c - chooses the table for this CPU. */
#include "kernels/kernels.h"
#include <stddef.h>

const struct kernels *kernels_get(enum kernels_isa isa)
{
#if defined(__x86_64__)
    const int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");   /* F16C, used too, is older than AVX2 */
    const int avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
                       && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");

    switch (isa) {
    case KERNELS_BEST:
        return avx512 ? &kernels_avx512 : avx2 ? &kernels_avx2 : &kernels_portable;
    case KERNELS_AVX512:
        return avx512 ? &kernels_avx512 : NULL;
    case KERNELS_AVX2:
        return avx2 ? &kernels_avx2 : NULL;
    case KERNELS_PORTABLE:
        return &kernels_portable;
    }
    return NULL;
#else
    return isa == KERNELS_BEST || isa == KERNELS_PORTABLE ? &kernels_portable : NULL;
#endif
}
