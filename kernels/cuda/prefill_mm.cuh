/* kernels/cuda/prefill_mm.cuh - the warpgroup instructions of the prefill products, one inline function each (sm_90a only). */
#ifndef SLUICE_CUDA_PREFILL_MM_CUH
#define SLUICE_CUDA_PREFILL_MM_CUH

#include "device.cuh"
#include <cuda.h>
#include <cudaTypedefs.h>

#define WARPGROUP_THREADS 128
#define WGMMA_ROWS 64                 /* weight rows of one instruction */
#define SWIZZLE_BYTES 128             /* width of a row of the activation box: 64 bf16 */

/* Orders the registers written so far before the next wgmma of this warpgroup. */
__device__ __forceinline__ void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> __device__ __forceinline__ void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory"); }

/* All threads of consumer warpgroup number `group` (0, 1); barrier 0 is the block's, 1 that of all consumers. */
__device__ __forceinline__ void warpgroup_barrier(uint32_t group)
{
    if (group == 0) asm volatile("bar.sync 2, %0;" ::"n"(WARPGROUP_THREADS) : "memory");
    else asm volatile("bar.sync 3, %0;" ::"n"(WARPGROUP_THREADS) : "memory");
}

template <int COUNT> __device__ __forceinline__ void registers_raise() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT)); }
template <int COUNT> __device__ __forceinline__ void registers_lower() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT)); }

/* Matrix descriptor of a box [n][64] bf16 in the 128-byte swizzle, 1024-byte aligned: groups of 8 rows are 1024 bytes apart. The k16 step
 * i of the box is 32 * i bytes further: add 2 * i. */
__device__ __forceinline__ uint64_t box_descriptor(uint32_t address)
{
    return (uint64_t)(address >> 4) | 1ull << 16 | (uint64_t)(8 * SWIZZLE_BYTES >> 4) << 32 | 1ull << 62;
}

__device__ __forceinline__ uint32_t cluster_rank()
{
    uint32_t rank;

    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

/* All threads of all blocks of the cluster; what they wrote before is visible behind it. */
__device__ __forceinline__ void cluster_sync()
{
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

/* The same without making writes visible. */
__device__ __forceinline__ void cluster_sync_relaxed()
{
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}

/* A float at this block's shared address, but in block `rank` of the cluster. */
__device__ __forceinline__ float ld_cluster(uint32_t address, uint32_t rank)
{
    float v;

    asm volatile("{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %1, %2;\nld.shared::cluster.f32 %0, [there];\n}" : "=f"(v) : "r"(address), "r"(rank) : "memory");
    return v;
}

/* A box of activations into shared memory. What lies outside of the tensor arrives as zeros and counts as bytes. */
__device__ __forceinline__ void box_load(void *to, const CUtensorMap *map, uint32_t k, uint32_t row, uint64_t *bar)
{
    asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];"
                 ::"r"(smem_address(to)), "l"(map), "r"(k), "r"(row), "r"(smem_address(bar)) : "memory");
}

/* The same run of 512 bytes of several tiles. */
__device__ __forceinline__ void run_load(void *to, const CUtensorMap *map, uint32_t run, uint32_t slice, uint32_t tile, uint64_t *bar, uint64_t policy)
{
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, %3, %4, %5}], [%6], %7;"
                 ::"r"(smem_address(to)), "l"(map), "r"(0), "r"(run), "r"(slice), "r"(tile), "r"(smem_address(bar)), "l"(policy) : "memory");
}

__device__ __forceinline__ uint64_t policy_evict_normal()
{
    uint64_t policy;

    asm volatile("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

/* D[64 x N] (+)= A[64 x 16] B[16 x N], bf16 in, f32 out. A in registers: warp w of the warpgroup holds rows 16w..16w+15 as
 * the A fragment of mma.m16n8k16. add 0: D starts at zero. Asynchronous: neither a nor d may be touched before the wait. */
template <int N> struct wgmma;

#define R8(a, b, c, d, e, f, g, h) "%" #a ",%" #b ",%" #c ",%" #d ",%" #e ",%" #f ",%" #g ",%" #h
#define REGS_8 R8(0, 1, 2, 3, 4, 5, 6, 7)
#define REGS_24 REGS_8 "," R8(8, 9, 10, 11, 12, 13, 14, 15) "," R8(16, 17, 18, 19, 20, 21, 22, 23)
#define REGS_40 REGS_24 "," R8(24, 25, 26, 27, 28, 29, 30, 31) "," R8(32, 33, 34, 35, 36, 37, 38, 39)
#define REGS_64 REGS_40 "," R8(40, 41, 42, 43, 44, 45, 46, 47) "," R8(48, 49, 50, 51, 52, 53, 54, 55) "," R8(56, 57, 58, 59, 60, 61, 62, 63)
#define REGS_80 REGS_64 "," R8(64, 65, 66, 67, 68, 69, 70, 71) "," R8(72, 73, 74, 75, 76, 77, 78, 79)
#define REGS_96 REGS_80 "," R8(80, 81, 82, 83, 84, 85, 86, 87) "," R8(88, 89, 90, 91, 92, 93, 94, 95)
#define REGS_128 REGS_96 "," R8(96, 97, 98, 99, 100, 101, 102, 103) "," R8(104, 105, 106, 107, 108, 109, 110, 111) \
                 "," R8(112, 113, 114, 115, 116, 117, 118, 119) "," R8(120, 121, 122, 123, 124, 125, 126, 127)

#define D8(o) "+f"(d[o]), "+f"(d[o + 1]), "+f"(d[o + 2]), "+f"(d[o + 3]), "+f"(d[o + 4]), "+f"(d[o + 5]), "+f"(d[o + 6]), "+f"(d[o + 7])
#define OUT_8 D8(0)
#define OUT_24 OUT_8, D8(8), D8(16)
#define OUT_40 OUT_24, D8(24), D8(32)
#define OUT_64 OUT_40, D8(40), D8(48), D8(56)
#define OUT_80 OUT_64, D8(64), D8(72)
#define OUT_128 OUT_80, D8(80), D8(88), D8(96), D8(104), D8(112), D8(120)

/* `shape`: k and the elements' types; `majors`: what the instruction says of B's order behind its two signs, for bf16 alone. */
#define DEFINE_WGMMA(family, shape, majors, n, regs, a0, a1, a2, a3, desc, flag)                                                   \
    template <> struct family<n> {                                                                                                 \
        static __device__ __forceinline__ void issue(float (&d)[regs], const uint32_t (&a)[4], uint64_t b, uint32_t add)           \
        {                                                                                                                          \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #flag ", 0;\n"                                                       \
                         "wgmma.mma_async.sync.aligned.m64n" #n shape " {" REGS_##regs "}, {%" #a0 ",%" #a1 ",%" #a2               \
                         ",%" #a3 "}, %" #desc ", p, 1, 1" majors ";\n}\n"                                                         \
                         : OUT_##regs : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add));                             \
        }                                                                                                                          \
    };
#define DEFINE_WGMMA_BF16(...) DEFINE_WGMMA(wgmma, "k16.f32.bf16.bf16", ", 0", __VA_ARGS__)
#define DEFINE_WGMMA_E4M3(...) DEFINE_WGMMA(wgmma_e4m3, "k32.f32.e4m3.e4m3", "", __VA_ARGS__)

DEFINE_WGMMA_BF16(16, 8, 8, 9, 10, 11, 12, 13)
DEFINE_WGMMA_BF16(48, 24, 24, 25, 26, 27, 28, 29)
DEFINE_WGMMA_BF16(80, 40, 40, 41, 42, 43, 44, 45)
DEFINE_WGMMA_BF16(128, 64, 64, 65, 66, 67, 68, 69)
DEFINE_WGMMA_BF16(160, 80, 80, 81, 82, 83, 84, 85)
DEFINE_WGMMA_BF16(256, 128, 128, 129, 130, 131, 132, 133)

/* The same with E4M3 on both sides: D[64 x N] (+)= A[64 x 32] B[32 x N]. Lane (g, t) of warp w holds bytes 4t..4t+3 of rows g and g + 8, then 16 + 4t.. of both. */
template <int N> struct wgmma_e4m3;

DEFINE_WGMMA_E4M3(16, 8, 8, 9, 10, 11, 12, 13)
DEFINE_WGMMA_E4M3(48, 24, 24, 25, 26, 27, 28, 29)
DEFINE_WGMMA_E4M3(80, 40, 40, 41, 42, 43, 44, 45)
DEFINE_WGMMA_E4M3(128, 64, 64, 65, 66, 67, 68, 69)
DEFINE_WGMMA_E4M3(160, 80, 80, 81, 82, 83, 84, 85)

/* Keeps the registers of an asynchronous instruction where they are until here. */
template <int COUNT> __device__ __forceinline__ void pin(float (&d)[COUNT])
{
#pragma unroll
    for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(d[i])::"memory");
}

__device__ __forceinline__ void pin(uint32_t (&a)[4][4])
{
#pragma unroll
    for (int i = 0; i < 16; i++) asm volatile("" : "+r"(a[i / 4][i % 4])::"memory");
}

__device__ __forceinline__ uint32_t bf16x2_times(uint32_t a, uint32_t b)
{
    uint32_t out;

    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
    return out;
}

/* Four E4M3 as two pairs of bf16, exactly: the 7 magnitude bits move to where bf16 has its exponent's end and its fraction, which is
 * the value times 2^-120 (subnormals too); the product takes it back. Folding 2^120 into the row scale instead would save this
 * product, but the sums would then live among f32's smallest numbers. high and low: the four high and the four low bytes of the bf16. */
__device__ __forceinline__ void e4m3x4_to_bf16x4(uint32_t word, uint32_t *first, uint32_t *second)
{
    const uint32_t high = (word >> 4 & 0x07070707u) | (word & 0x80808080u), low = word << 4 & 0xf0f0f0f0u;
    const uint32_t power = 0x7b807b80u;                        /* 2^120, twice */

    *first = bf16x2_times(__byte_perm(low, high, 0x5140), power);
    *second = bf16x2_times(__byte_perm(low, high, 0x7362), power);
}

/* The four A fragments of 64 of k in FP4 (packed_fp4_fragment), exactly: a code's size goes to where bf16 has the end of its exponent and the start of its
 * fraction, which is 2^-126 of its value; the group's scale comes times 2^118, so that the product is 2^-8 of what it means: 6 bits of significand. */
__device__ __forceinline__ void fp4_fragments(uint32_t (&a)[4][4], uint4 v, uint32_t scales)
{
    const uint32_t word[4] = { v.x, v.y, v.z, v.w }, size = 0x01c001c0u, sign = 0x80008000u, power = 0x7a807a80u;     /* 2^118, twice */
    uint32_t pair[2];

    e4m3x4_to_bf16x4(scales, &pair[0], &pair[1]);              /* of each block of 32: row g low, row g + 8 high */
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const uint32_t both = bf16x2_times(pair[j / 2], power), low = __byte_perm(both, 0, 0x1010), high = __byte_perm(both, 0, 0x3232), w = word[j];
        const uint32_t third = w ^ w << 2, fourth = w ^ __funnelshift_r(w, w, 3);

        a[j][0] = bf16x2_times((w << 3 & size) | (w << 6 & sign), low);
        a[j][1] = bf16x2_times((w << 6 & size) | (w << 9 & sign), high);
        a[j][2] = bf16x2_times((third >> 3 & size) | (third & sign), low);
        a[j][3] = bf16x2_times((fourth >> 3 & size) | (fourth & sign), high);
    }
}

#endif
