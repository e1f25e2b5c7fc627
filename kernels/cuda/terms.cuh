/* kernels/cuda/terms.cuh - bf16 activations as two E4M3 terms, their image in shared memory, and the FP8 tensor-core instruction for E5M2 weights (sm_90a only; used by rowmm_fp4.cu).
 *
 * A bf16 has 8 significant bits, an E4M3 4: x * 2^s = t1 + t2 with t1 the first 4 bits and t2 the other 4. s is such that the largest element of a row comes to [2^7, 2^8).
 * That is exact for elements down to 2^-9 of the largest one's binade; below, the error is under 2^-16 of the largest.
 *
 * The image. A k step of 32 covers two groups of 16 weights, h = 0 and 1, whose sums must stay apart: they get columns of their own, in which the other group's
 * activations are zeros. Both terms go into the same sum, by two instructions. A cell is 16 bytes: one term of one row for one group, element e of each four at the byte that the weights
 * have it at (layout.h). A core matrix of wgmma is 8 cells; an instruction reads those of k 0..15 at `start`, those of k 16..31 LBO on, further columns SBO on. Zeros:
 *   up to 4 rows  an instruction has the columns [h][rows]; its image is [cells of h = 0][as many zeros][cells of h = 1], LBO one such part (2 or 4 cells)
 *   8 rows        an instruction has the columns [h][8 rows], LBO = SBO = x: zeros at `start` + x serve both, h = 1 lies at `start` + 2 x. The zeros' place is fixed, so
 *                 core matrix i of h = 0 lies 128 (i + 1) below them, that of h = 1 as far above: no zeros but 128 bytes. 16 rows: two such instructions
 * Instructions are counted i = (step * octets + row / 8) * 2 + term. */
#ifndef SLUICE_CUDA_TERMS_CUH
#define SLUICE_CUDA_TERMS_CUH

#include "device.cuh"

#define TERM_CELL 16                  /* bytes */
#define TERM_CORE 128

/* The larger magnitudes of two pairs; a NaN is larger than all. */
__device__ __forceinline__ uint32_t larger_pair(uint32_t magnitudes, uint32_t pair)
{
    const __nv_bfloat162 out = __hmax2_nan(*(const __nv_bfloat162 *)&magnitudes, __habs2(*(const __nv_bfloat162 *)&pair));

    return *(const uint32_t *)&out;
}

/* The larger one of a pair of magnitudes, as the bits of an f32: they compare as integers do. */
__device__ __forceinline__ uint32_t larger_of_pair(uint32_t magnitudes) { return max(magnitudes << 16, magnitudes & 0xffff0000u); }

/* The power of two for a row whose largest magnitude has the bits `top`, twice as bf16; *inverse: what its sums are multiplied with. Both are normal
 * numbers; but *inverse is NaN where an element is not finite. */
__device__ __forceinline__ uint32_t terms_scale(uint32_t top, float *inverse)
{
    const int e = (int)(top >> 23 & 255) - 127, shift = top == 0 ? 0 : min(max(7 - e, -100), 100);

    *inverse = __uint_as_float(e == 128 ? 0x7fffffffu : (uint32_t)(127 - shift) << 23);
    return (uint32_t)(127 + shift) * 0x00800080u;
}

__device__ __forceinline__ uint32_t terms_times(uint32_t a, uint32_t b)
{
    uint32_t out;

    asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
    return out;
}

__device__ __forceinline__ uint32_t terms_fma(uint32_t a, uint32_t b, uint32_t c)
{
    uint32_t out;

    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
    return out;
}

/* The four codes of two pairs whose bf16 have exponents 0 to 15: the sign, then bits 10..4. Elements 2, 0, 3, 1: the order of the weights' bytes (layout.h). */
__device__ __forceinline__ uint32_t terms_codes(uint32_t a, uint32_t b)
{
    return __byte_perm(a >> 4, b >> 4, 0x2604) | (__byte_perm(a, b, 0x3715) & 0x80808080u);
}

/* Two terms each of four elements, scale twice as bf16. Times 2^-120 an E4M3 is a bf16 whose exponent needs 4 bits (and below its normal numbers one of bf16's below
 * normal): cutting it off after 3 bits of fraction converts it. The instructions for E4M3 do an eighth of the work per clock. */
__device__ __forceinline__ void split_four(uint32_t low, uint32_t high, uint32_t scale, uint32_t *t1, uint32_t *t2)
{
    const uint32_t down = 0x03800380u, minus = 0xbf80bf80u, keep = 0xfff0fff0u;      /* 2^-120, -1 */
    const uint32_t x[2] = { terms_times(terms_times(low, scale), down), terms_times(terms_times(high, scale), down) };
    uint32_t first[2], rest[2];

#pragma unroll
    for (int i = 0; i < 2; i++) {
        first[i] = x[i] & keep;
        rest[i] = terms_fma(first[i], minus, x[i]) & keep;
    }
    *t1 = terms_codes(first[0], first[1]);
    *t2 = terms_codes(rest[0], rest[1]);
}

/* ---- the image ---- */

#define TERMS_FN static __host__ __device__ constexpr

/* Rows of the image for m. */
TERMS_FN uint32_t terms_rows(uint32_t m) { return m > 8 ? 16 : m > 4 ? 8 : m > 2 ? 4 : 2; }

TERMS_FN uint32_t terms_octets(uint32_t rows) { return rows > 8 ? 2 : 1; }
TERMS_FN uint32_t terms_part(uint32_t rows) { return rows * TERM_CELL; }                                               /* up to 4 rows */

/* Offset of the zeros of 8 rows and more; of fewer: of the first instruction's. */
TERMS_FN uint32_t terms_zero(uint32_t k, uint32_t rows) { return rows < 8 ? terms_part(rows) : k / 32 * 2 * terms_octets(rows) * TERM_CORE; }

/* Behind the end of up to 4 rows an instruction reads some bytes of what follows, whose columns nobody takes. */
TERMS_FN uint32_t terms_bytes(uint32_t k, uint32_t rows)
{
    return ((rows < 8 ? k / 32 * 2 * 3 * terms_part(rows) : 2 * terms_zero(k, rows) + TERM_CORE) + 127) / 128 * 128;
}

/* Images for all numbers of rows lie one behind another where norms write them: the zeros of each stay. */
TERMS_FN uint32_t terms_offset(uint32_t k, uint32_t rows) { return rows == 2 ? 0 : terms_offset(k, rows / 2) + terms_bytes(k, rows / 2); }

/* Offset of the cell of a term of a row's elements 32 step + 16 h .. */
TERMS_FN uint32_t terms_cell(uint32_t k, uint32_t rows, uint32_t step, uint32_t h, uint32_t row, uint32_t term)
{
    const uint32_t i = (step * terms_octets(rows) + row / 8) * 2 + term;

    if (rows < 8) return (3 * i + 2 * h) * terms_part(rows) + row * TERM_CELL;
    return (h ? terms_zero(k, rows) + (i + 1) * TERM_CORE : terms_zero(k, rows) - (i + 1) * TERM_CORE) + row % 8 * TERM_CELL;
}

/* Descriptor of the first instruction's activations, and what the next instruction's adds to it. */
template <int ROWS> __device__ __forceinline__ uint64_t terms_descriptor(uint32_t image, uint32_t k)
{
    const uint64_t apart = ROWS < 8 ? terms_part(ROWS) >> 4 : TERM_CORE >> 4;
    const uint32_t start = ROWS < 8 ? image : image + terms_zero(k, ROWS) - TERM_CORE;

    return (uint64_t)(start >> 4 & 0x3fff) | apart << 16 | apart << 32;
}

template <int ROWS> __device__ __forceinline__ constexpr uint64_t terms_descriptor_step()
{
    return ROWS < 8 ? 3 * terms_part(ROWS) >> 4 : ((uint64_t)(TERM_CORE >> 4) << 32) + ((TERM_CORE >> 4) << 16) - (TERM_CORE >> 4);
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

template <int COUNT> __device__ __forceinline__ void terms_pin(uint32_t (&a)[COUNT])
{
#pragma unroll
    for (int i = 0; i < COUNT; i++) asm volatile("" : "+r"(a[i])::"memory");
}

/* D[64 x 8] or D[64 x 16] = (ADD: +=) A[64 x 32] B[32 x N], E5M2 times E4M3, f32 out. Warp w of the warpgroup gives rows 16w..16w+15. */
template <bool ADD> __device__ __forceinline__ void terms_mma(float (&d)[4], const uint32_t (&a)[4], uint64_t b)
{
    if (ADD)
        asm volatile("wgmma.mma_async.sync.aligned.m64n8k32.f32.e5m2.e4m3 {%0,%1,%2,%3}, {%4,%5,%6,%7}, %8, 1, 1, 1;"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    else
        asm volatile("wgmma.mma_async.sync.aligned.m64n8k32.f32.e5m2.e4m3 {%0,%1,%2,%3}, {%4,%5,%6,%7}, %8, 0, 1, 1;"
                     : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

template <bool ADD> __device__ __forceinline__ void terms_mma(float (&d)[8], const uint32_t (&a)[4], uint64_t b)
{
    if (ADD)
        asm volatile("wgmma.mma_async.sync.aligned.m64n16k32.f32.e5m2.e4m3 {%0,%1,%2,%3,%4,%5,%6,%7}, {%8,%9,%10,%11}, %12, 1, 1, 1;"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
    else
        asm volatile("wgmma.mma_async.sync.aligned.m64n16k32.f32.e5m2.e4m3 {%0,%1,%2,%3,%4,%5,%6,%7}, {%8,%9,%10,%11}, %12, 0, 1, 1;"
                     : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3]), "=f"(d[4]), "=f"(d[5]), "=f"(d[6]), "=f"(d[7])
                     : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#endif
