/* kernels/cuda/terms.cuh - bf16 activations as two E4M3 terms, and the FP8 tensor-core instruction (sm_90a only).
 *
 * A bf16 has 8 significant bits, an E4M3 4: x * 2^s = t1 + t2 * 2^-TERM_SHIFT with t1 the nearest E4M3 and t2 the rest. s is such that the largest element of a
 * row's range comes to [2^7, 2^8). That is exact for elements within 2^-14 of the largest; below, the error is under 2^-22 of the largest.
 *
 * The tensor cores keep about 14 bits while they add, so no sum of theirs is longer than a chunk. The sums of one row and slice, for every kernel:
 *   chunk  5 (slice 3840) or 4 (slice 4096) steps of 32 of k, beginning at zero: t1 and t2 apart
 *   range  a quarter of the slice; f32 adds of its chunks in the order slot 0 half 0, slot 0 half 1, slot 1 half 0, ...; chunk (slot, half) begins
 *          at k = half * slice / 8 + slot * 32 * steps of the range
 *   out    (((r0 + r1) + r2) + r3) * row scale, r = (sum1 + sum2 * 2^-TERM_SHIFT, one fma) * 2^-s */
#ifndef SLUICE_CUDA_TERMS_CUH
#define SLUICE_CUDA_TERMS_CUH

#include "device.cuh"

#define TERM_SHIFT 5
#define TERM_RANGES 4                 /* of a slice, each with its own power of two */

__device__ __forceinline__ uint16_t f16x2_to_e4m3x2(uint32_t pair)
{
    uint16_t out;

    asm("cvt.rn.satfinite.e4m3x2.f16x2 %0, %1;" : "=h"(out) : "r"(pair));
    return out;
}

/* The power of two for a range whose largest magnitude is `top`; *inverse: what its sums are multiplied with. Both are normal numbers. */
__device__ __forceinline__ float terms_scale(float top, float *inverse)
{
    const int e = (int)(__float_as_uint(top) >> 23 & 255) - 127, shift = top == 0.0f ? 0 : min(max(7 - e, -100), 100);

    *inverse = __uint_as_float((uint32_t)(127 - shift) << 23);
    return __uint_as_float((uint32_t)(127 + shift) << 23);
}

/* Two elements to two terms each. */
__device__ __forceinline__ void split_pair(uint32_t bf16x2, float scale, uint16_t *t1, uint16_t *t2)
{
    const uint32_t h = pack_f16(bf16_low(bf16x2) * scale, bf16_high(bf16x2) * scale);

    *t1 = f16x2_to_e4m3x2(h);
    const uint32_t back = e4m3x2_to_f16x2(*t1);
    const __half2 rest = __hmul2(__hsub2(*(const __half2 *)&h, *(const __half2 *)&back), __float2half2_rn((float)(1 << TERM_SHIFT)));
    *t2 = f16x2_to_e4m3x2(*(const uint32_t *)&rest);
}

__device__ __forceinline__ void split_four(uint32_t low, uint32_t high, float scale, uint32_t *t1, uint32_t *t2)
{
    uint16_t a[2], b[2];

    split_pair(low, scale, &a[0], &b[0]);
    split_pair(high, scale, &a[1], &b[1]);
    *t1 = a[0] | (uint32_t)a[1] << 16;
    *t2 = b[0] | (uint32_t)b[1] << 16;
}

/* ---- warpgroup products ---- */

__device__ __forceinline__ void terms_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void terms_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> __device__ __forceinline__ void terms_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory"); }

/* Writes of this thread to shared memory are there for the tensor cores (of threads that meet it at a barrier behind). */
__device__ __forceinline__ void terms_publish() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/* Keeps the registers of an asynchronous instruction where they are until here. */
template <int COUNT> __device__ __forceinline__ void terms_pin(float (&d)[COUNT])
{
#pragma unroll
    for (int i = 0; i < COUNT; i++) asm volatile("" : "+f"(d[i])::"memory");
}

/* Columns of core matrices of 8 columns x 16 bytes: half_bytes from k 0..15 to k 16..31, the next 8 columns 128 bytes further. */
__device__ __forceinline__ uint64_t terms_descriptor(uint32_t address, uint32_t half_bytes)
{
    return (uint64_t)(address >> 4 & 0x3fff) | (uint64_t)(half_bytes >> 4) << 16 | (uint64_t)(128 >> 4) << 32;
}

/* D[64 x N] (+)= A[64 x 32] B[32 x N], E4M3 in, f32 out; N / 2 registers of sums. Warp w of the warpgroup gives rows 16w..16w+15 as a packed lane has them (layout.h).
 * add false: D begins at zero. */
template <int N> struct terms_mma;

#define T8(o) "+f"(d[o]), "+f"(d[o + 1]), "+f"(d[o + 2]), "+f"(d[o + 3]), "+f"(d[o + 4]), "+f"(d[o + 5]), "+f"(d[o + 6]), "+f"(d[o + 7])
#define T_R4 "%0,%1,%2,%3"
#define T_R8 T_R4 ",%4,%5,%6,%7"
#define T_R16 T_R8 ",%8,%9,%10,%11,%12,%13,%14,%15"
#define T_R32 T_R16 ",%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31"
#define T_R64 T_R32 ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define T_OUT4 "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
#define T_OUT8 T8(0)
#define T_OUT16 T8(0), T8(8)
#define T_OUT32 T_OUT16, T8(16), T8(24)
#define T_OUT64 T_OUT32, T8(32), T8(40), T8(48), T8(56)

#define DEFINE_TERMS_MMA(n, regs, a0, a1, a2, a3, desc, flag)                                                                          \
    template <> struct terms_mma<n> {                                                                                                  \
        static __device__ __forceinline__ void issue(float (&d)[regs], uint4 a, uint64_t b, bool add)                                  \
        {                                                                                                                              \
            asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #flag ", 0;\n"                                                           \
                         "wgmma.mma_async.sync.aligned.m64n" #n "k32.f32.e4m3.e4m3 {" T_R##regs "}, {%" #a0 ",%" #a1 ",%" #a2          \
                         ",%" #a3 "}, %" #desc ", p, 1, 1;\n}\n"                                                                       \
                         : T_OUT##regs : "r"(a.x), "r"(a.y), "r"(a.z), "r"(a.w), "l"(b), "r"((uint32_t)add));                          \
        }                                                                                                                              \
    };

DEFINE_TERMS_MMA(8, 4, 4, 5, 6, 7, 8, 9)
DEFINE_TERMS_MMA(16, 8, 8, 9, 10, 11, 12, 13)
DEFINE_TERMS_MMA(32, 16, 16, 17, 18, 19, 20, 21)
DEFINE_TERMS_MMA(64, 32, 32, 33, 34, 35, 36, 37)
DEFINE_TERMS_MMA(128, 64, 64, 65, 66, 67, 68, 69)

#undef DEFINE_TERMS_MMA
#undef T8
#undef T_R4
#undef T_R8
#undef T_R16
#undef T_R32
#undef T_R64
#undef T_OUT4
#undef T_OUT8
#undef T_OUT16
#undef T_OUT32
#undef T_OUT64

#endif
