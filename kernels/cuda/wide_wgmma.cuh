/* kernels/cuda/wide_wgmma.cuh - the warpgroup instructions of rowmm_wide.cu and rowmm_many.cu: D[64 weight rows x N] += A[64 x 16] B[16 x N], f32 accumulators.
 *
 * A in registers: warp w of the warpgroup holds rows 16 w .. 16 w + 15 as the A fragment of mma.m16n8k16. B in shared memory without swizzle:
 * core matrices of 8 activation rows times 16 bytes, each 128 bytes in one run. Asynchronous: neither A nor D may be touched before the wait. */
#ifndef SLUICE_CUDA_WIDE_WGMMA_CUH
#define SLUICE_CUDA_WIDE_WGMMA_CUH

#include "device.cuh"

/* Orders the registers written so far before the next wgmma of this warpgroup. */
__device__ __forceinline__ void wide_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wide_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> __device__ __forceinline__ void wide_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory"); }

/* Keeps the registers of an asynchronous instruction where they are until here. */
template <typename T, int COUNT> __device__ __forceinline__ void wide_pin(T (&x)[COUNT])
{
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        if constexpr (sizeof(T) == sizeof(float) && T(0.5f) != T(0)) asm volatile("" : "+f"(x[i])::"memory");
        else asm volatile("" : "+r"(x[i])::"memory");
    }
}

/* column_bytes: from the core matrices of k 0..7 to those of k 8..15. Those of the next 8 rows lie 128 bytes further. In a cluster the upper bits of
 * a shared address are the rank of the block: they must not get into the next field. */
__device__ __forceinline__ uint64_t wide_descriptor(uint32_t address, uint32_t column_bytes)
{
    return (uint64_t)(address >> 4 & 0x3fff) | (uint64_t)(column_bytes >> 4) << 16 | (uint64_t)(128 >> 4) << 32;
}

#define WIDE_D8(o) "+f"(d[o]), "+f"(d[o + 1]), "+f"(d[o + 2]), "+f"(d[o + 3]), "+f"(d[o + 4]), "+f"(d[o + 5]), "+f"(d[o + 6]), "+f"(d[o + 7])
#define WIDE_OUT_16 WIDE_D8(0), WIDE_D8(8)
#define WIDE_OUT_32 WIDE_OUT_16, WIDE_D8(16), WIDE_D8(24)
#define WIDE_OUT_64 WIDE_OUT_32, WIDE_D8(32), WIDE_D8(40), WIDE_D8(48), WIDE_D8(56)
#define WIDE_R16 "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15"
#define WIDE_R32 WIDE_R16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define WIDE_R64 WIDE_R32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"

/* add 0: D starts at zero. */
#define WIDE_MMA(n, regs, type, a0, a1, a2, a3, desc, flag)                                                                        \
    asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" #flag ", 0;\n"                                                           \
                 "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type " {" WIDE_R##regs "}, {%" #a0 ",%" #a1 ",%" #a2 ",%" #a3    \
                 "}, %" #desc ", add, 1, 1, 0;\n}\n"                                                                               \
                 : WIDE_OUT_##regs : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add))

#define WIDE_DEFINE(n, regs, a0, a1, a2, a3, desc, flag)                                                                           \
    template <bool F16> __device__ __forceinline__ void wide_mma(float (&d)[regs], const uint32_t *a, uint64_t b, uint32_t add = 1) \
    {                                                                                                                              \
        if (F16) WIDE_MMA(n, regs, "f16.f16", a0, a1, a2, a3, desc, flag);                                                         \
        else WIDE_MMA(n, regs, "bf16.bf16", a0, a1, a2, a3, desc, flag);                                                           \
    }

WIDE_DEFINE(32, 16, 16, 17, 18, 19, 20, 21)
WIDE_DEFINE(64, 32, 32, 33, 34, 35, 36, 37)
WIDE_DEFINE(128, 64, 64, 65, 66, 67, 68, 69)

#endif
