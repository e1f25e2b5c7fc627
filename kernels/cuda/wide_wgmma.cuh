/* kernels/cuda/wide_wgmma.cuh - the warpgroup instructions of rowmm_wide.cu: D[64 weight rows x N] += A[64 x 16] B[16 x N], f32 accumulators.
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
#define WIDE_R16 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}"
#define WIDE_R32 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}"

template <bool F16> __device__ __forceinline__ void wide_mma(float (&d)[16], const uint32_t *a, uint64_t b)
{
    if (F16)
        asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 " WIDE_R16 ", {%16,%17,%18,%19}, %20, 1, 1, 1, 0;"
                     : WIDE_D8(0), WIDE_D8(8) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    else
        asm volatile("wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 " WIDE_R16 ", {%16,%17,%18,%19}, %20, 1, 1, 1, 0;"
                     : WIDE_D8(0), WIDE_D8(8) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

template <bool F16> __device__ __forceinline__ void wide_mma(float (&d)[32], const uint32_t *a, uint64_t b)
{
    if (F16)
        asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 " WIDE_R32 ", {%32,%33,%34,%35}, %36, 1, 1, 1, 0;"
                     : WIDE_D8(0), WIDE_D8(8), WIDE_D8(16), WIDE_D8(24) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    else
        asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " WIDE_R32 ", {%32,%33,%34,%35}, %36, 1, 1, 1, 0;"
                     : WIDE_D8(0), WIDE_D8(8), WIDE_D8(16), WIDE_D8(24) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#endif
