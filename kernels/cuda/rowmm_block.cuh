/* kernels/cuda/rowmm_block.cuh - what the warps of a small-row product do with one slot of weights (used by rowmm.cu and persist.cu).
 * One text for both: their bits must be the same. */
#ifndef SLUICE_CUDA_ROWMM_BLOCK_CUH
#define SLUICE_CUDA_ROWMM_BLOCK_CUH

#include "device.cuh"
#include "layout.h"

template <bool FP8, int SLICE> struct geometry {
    static constexpr int LOADS = SLICE == 3840 ? 5 : 4;                     /* 16-byte loads per lane and slot */
    static constexpr int SLOTS = SLICE * (FP8 ? 1 : 2) * TILE_ROWS / (CONSUMER_WARPS * LOADS * 512);
    static constexpr int BLOCKS = SLICE / CONSUMER_WARPS / 32;              /* k blocks of 32 per warp */
    static constexpr uint32_t DATA_BYTES = CONSUMER_WARPS * LOADS * 512;
    static constexpr uint32_t SLOT_BYTES = DATA_BYTES + (FP8 ? UNIT_HEADER_BYTES : 0);
    static constexpr uint32_t UNIT_BYTES = SLOTS * DATA_BYTES + (FP8 ? UNIT_HEADER_BYTES : 0);
};

/* Turns a row's bf16 fragments into f16 times a power of two; returns the inverse of that power. */
template <int BLOCKS>
__device__ __forceinline__ float scale_to_f16(uint32_t (&x)[BLOCKS][4])
{
    __nv_bfloat162 largest = __float2bfloat162_rn(0.0f);

#pragma unroll
    for (int b = 0; b < BLOCKS; b++)
#pragma unroll
        for (int i = 0; i < 4; i++) largest = __hmax2(largest, __habs2(*(const __nv_bfloat162 *)&x[b][i]));
    float top = fmaxf(__low2float(largest), __high2float(largest));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
    top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));

    /* top in [2^e, 2^(e+1)) goes to [2^14, 2^15); the exponent is kept where both the power and its inverse are normal. */
    const int e = (int)(__float_as_uint(top) >> 23) - 127;
    const int shift = top == 0.0f ? 0 : min(max(14 - e, -100), 100);
    const float scale = __uint_as_float((uint32_t)(127 + shift) << 23);

#pragma unroll
    for (int b = 0; b < BLOCKS; b++)
#pragma unroll
        for (int i = 0; i < 4; i++) x[b][i] = pack_f16(bf16_low(x[b][i]) * scale, bf16_high(x[b][i]) * scale);
    return __uint_as_float((uint32_t)(127 - shift) << 23);
}

/* One k block of 32 per FP8 load, one of 16 per BF16 load; alternating accumulators halve the chain of dependent mma. */
template <bool FP8, int BLOCKS, int TILES>
__device__ __forceinline__ void multiply(float (&acc)[TILES][2][4], uint4 w, const uint32_t (&x)[TILES][BLOCKS][4], int load)
{
    if (FP8) {
        const uint32_t a0 = e4m3x2_to_f16x2((uint16_t)w.x), a1 = e4m3x2_to_f16x2((uint16_t)w.y);
        const uint32_t a2 = e4m3x2_to_f16x2((uint16_t)(w.x >> 16)), a3 = e4m3x2_to_f16x2((uint16_t)(w.y >> 16));
        const uint32_t b0 = e4m3x2_to_f16x2((uint16_t)w.z), b1 = e4m3x2_to_f16x2((uint16_t)w.w);
        const uint32_t b2 = e4m3x2_to_f16x2((uint16_t)(w.z >> 16)), b3 = e4m3x2_to_f16x2((uint16_t)(w.w >> 16));

#pragma unroll
        for (int n = 0; n < TILES; n++) {
            mma_f16(acc[n][0], a0, a1, a2, a3, x[n][load][0], x[n][load][1]);
            mma_f16(acc[n][1], b0, b1, b2, b3, x[n][load][2], x[n][load][3]);
        }
    } else {
#pragma unroll
        for (int n = 0; n < TILES; n++)
            mma_bf16(acc[n][load % 2], w.x, w.y, w.z, w.w, x[n][load / 2][load % 2 * 2], x[n][load / 2][load % 2 * 2 + 1]);
    }
}

#endif
