/* kernels/cuda/terms.cuh - bf16 activations as two E4M3 terms, and the FP8 tensor-core instruction (sm_90a only).
 *
 * A bf16 has 8 significant bits, an E4M3 4: x * 2^s = t1 + t2 * 2^-TERM_SHIFT with t1 the first 4 bits and t2 the other 4. s is such that the largest element of a
 * row's range comes to [2^7, 2^8). That is exact for elements down to 2^-13 of the largest one's binade; below, the error is under 2^-20 of the largest.
 *
 * The tensor cores keep about 14 bits while they add, so no sum of theirs is longer than a chunk. The sums of one row and slice, for every kernel:
 *   chunk  5 (slice 3840) or 4 (slice 4096) steps of 32 of k, beginning at zero: t1 and t2 apart
 *   range  a quarter of the slice; f32 adds of its chunks in the order slot 0 half 0, slot 0 half 1, slot 1 half 0, ...; chunk (slot, half) begins
 *          at k = half * slice / 8 + slot * 32 * steps of the range
 *   out    (((r0 + r1) + r2) + r3) * row scale, r = (sum1 + sum2 * 2^-TERM_SHIFT, one fma) * 2^-s */
#ifndef SLUICE_CUDA_TERMS_CUH
#define SLUICE_CUDA_TERMS_CUH

#include "device.cuh"

#define TERM_SHIFT 4
#define TERM_RANGES 4                 /* of a slice, each with its own power of two */

/* The larger magnitudes of two pairs; a NaN is larger than all. */
__device__ __forceinline__ uint32_t larger_pair(uint32_t magnitudes, uint32_t pair)
{
    const __nv_bfloat162 out = __hmax2_nan(*(const __nv_bfloat162 *)&magnitudes, __habs2(*(const __nv_bfloat162 *)&pair));

    return *(const uint32_t *)&out;
}

/* The larger one of a pair of magnitudes, as the bits of an f32: they compare as integers do. */
__device__ __forceinline__ uint32_t larger_of_pair(uint32_t magnitudes) { return max(magnitudes << 16, magnitudes & 0xffff0000u); }

/* The power of two for a range whose largest magnitude has the bits `top`, twice as bf16; *inverse: what its sums are multiplied with. Both are normal
 * numbers; but *inverse is NaN where an element is not finite. */
__device__ __forceinline__ uint32_t terms_scale(uint32_t top, float *inverse)
{
    const int e = (int)(top >> 23 & 255) - 127, shift = top == 0 ? 0 : min(max(7 - e, -100), 100);

    *inverse = __uint_as_float(e == 128 ? 0x7fffffffu : (uint32_t)(127 - shift) << 23);
    return (uint32_t)(127 + shift) * 0x00800080u;
}

__device__ __forceinline__ uint32_t bf16x2_times(uint32_t a, uint32_t b)
{
    uint32_t out;

    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
    return out;
}

__device__ __forceinline__ uint32_t bf16x2_fma(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t out;

    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
    return out;
}

/* The four codes of two pairs whose bf16 have exponents 0 to 15: the sign, then bits 10..4. */
__device__ __forceinline__ uint32_t e4m3_of_small(uint32_t a, uint32_t b)
{
    return __byte_perm(a >> 4, b >> 4, 0x6420) | (__byte_perm(a, b, 0x7531) & 0x80808080u);
}

/* Two terms each of four elements, scale twice as bf16. Times 2^-120 an E4M3 is a bf16 whose exponent needs 4 bits (and below its normal numbers one of bf16's below
 * normal): cutting it off after 3 bits of fraction converts it. The instructions for E4M3 do an eighth of the work per clock. */
__device__ __forceinline__ void split_four(uint32_t low, uint32_t high, uint32_t scale, uint32_t *t1, uint32_t *t2)
{
    const uint32_t down = 0x03800380u, down_shifted = down + (TERM_SHIFT << 7) * 0x10001u, minus_shift = 0xc1800000u | 0xc180u, keep = 0xfff0fff0u;  /* 2^-120, 2^-116, -16 */
    const uint32_t x[2] = { bf16x2_times(low, scale), bf16x2_times(high, scale) };
    uint32_t first[2], rest[2];

#pragma unroll
    for (int i = 0; i < 2; i++) {
        first[i] = bf16x2_times(x[i], down) & keep;
        rest[i] = bf16x2_fma(first[i], minus_shift, bf16x2_times(x[i], down_shifted)) & keep;
    }
    *t1 = e4m3_of_small(first[0], first[1]);
    *t2 = e4m3_of_small(rest[0], rest[1]);
}

/* ---- the image: the terms of a slice of up to `rows` rows (1, 2, 4, 8 or 16) as the products want them in shared memory ----
 * [steps of a range][k 0..15, 16..31 of the step][column / 8][column % 8][16 bytes], column = (range * rows + row) * 2 + term; then the inverse scales
 * f32 [range][row]. Lane t of a quad owns 8 elements of a step (layout.h): 0..3 are bytes 4t..4t+3 of the first half, 4..7 of the second. */

#define TERMS_FN static __host__ __device__ constexpr

TERMS_FN uint32_t terms_rows(uint32_t m) { return m > 8 ? 16 : m > 4 ? 8 : m > 2 ? 4 : m; }

/* Few rows are padded: no two lanes of a store in one bank. */
TERMS_FN uint32_t terms_step_bytes(uint32_t rows) { return rows * 256 + (rows == 1 ? 32 : rows == 2 ? 64 : 0); }

/* Offset of the inverse scales; the image's size. The ring behind stays aligned: bulk copies to other addresses are slow. */
TERMS_FN uint32_t terms_bytes(uint32_t slice_k, uint32_t rows) { return (slice_k / (32 * TERM_RANGES) * terms_step_bytes(rows) + 127) / 128 * 128; }
TERMS_FN uint32_t terms_image_bytes(uint32_t slice_k, uint32_t rows) { return terms_bytes(slice_k, rows) + (rows * TERM_RANGES * 4 + 127) / 128 * 128; }

/* Offset of the word of the first terms of elements i..i+3 of a range (i % 4 == 0); the second terms are 16 bytes behind. */
TERMS_FN uint32_t terms_word(uint32_t slice_k, uint32_t rows, uint32_t range, uint32_t row, uint32_t i)
{
    const uint32_t half = slice_k / 8, loads = slice_k == 3840 ? 5 : 4, block = i % half / 32, column = (range * rows + row) * 2;

    return ((block / loads * 2 + i / half) * loads + block % loads) * terms_step_bytes(rows) + i / 4 % 2 * (rows * 128) + column / 8 * 128 + column % 8 * 16 + i % 32 / 8 * 4;
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
