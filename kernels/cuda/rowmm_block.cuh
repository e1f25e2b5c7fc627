/* kernels/cuda/rowmm_block.cuh - what the warps of a small-row product do with one slot of weights (used by rowmm.cu). */
#ifndef SLUICE_CUDA_ROWMM_BLOCK_CUH
#define SLUICE_CUDA_ROWMM_BLOCK_CUH

#include "device.cuh"
#include "layout.h"

template <uint32_t FORMAT, int SLICE> struct geometry {
    static constexpr bool FP4 = FORMAT == WEIGHT_FP4, F16 = FORMAT != WEIGHT_BF16;   /* F16: weights and activations meet as f16 */
    static constexpr bool LATE = FORMAT == WEIGHT_FP8 || FP4;               /* a factor for each row, which multiplies the sum */
    static constexpr int LOADS = FP4 ? 4 : SLICE == 3840 ? 5 : 4;           /* 16-byte loads per lane and slot */
    /* Loads in flight. All at once would cost FP8 a spilled fragment: local memory lies in what the ring leaves of the L1, which attention's keys and values flush, so that
     * each unit of qkv waited for the L2 (1.5 us a unit in place of 0.85). */
    static constexpr int AHEAD = FORMAT == WEIGHT_FP8 ? 2 : LOADS;
    static constexpr int SLOTS = FP4 ? 2 : SLICE * (F16 ? 1 : 2) * TILE_ROWS / (CONSUMER_WARPS * LOADS * 512);
    static constexpr int BLOCKS = FP4 ? 16 : SLICE / CONSUMER_WARPS / 32;   /* k blocks of 32 per warp, at most */
    static constexpr uint32_t HEADER_BYTES = FORMAT == WEIGHT_BF16 ? 0 : FORMAT == WEIGHT_FP8_BLOCK ? BLOCK_HEADER_BYTES : UNIT_HEADER_BYTES;
    static constexpr uint32_t DATA_BYTES = FP4 ? FP4_SLOT_RUNS * FP4_RUN_BYTES : CONSUMER_WARPS * LOADS * 512;
    static constexpr uint32_t LAST_BYTES = FP4 ? (SLICE / 64 - FP4_SLOT_RUNS) * FP4_RUN_BYTES : DATA_BYTES;     /* of the unit's last slot */
    static constexpr uint32_t SLOT_BYTES = DATA_BYTES + HEADER_BYTES;
    static constexpr uint32_t UNIT_BYTES = (SLOTS - 1) * DATA_BYTES + LAST_BYTES + HEADER_BYTES;
};

/* The A fragments of 16 bytes of FP8: two of k 16. */
__device__ __forceinline__ void fp8_fragments(uint32_t (&f)[2][4], uint4 w)
{
    f[0][0] = e4m3x2_to_f16x2((uint16_t)w.x), f[0][1] = e4m3x2_to_f16x2((uint16_t)w.y);
    f[0][2] = e4m3x2_high_to_f16x2(w.x), f[0][3] = e4m3x2_high_to_f16x2(w.y);
    f[1][0] = e4m3x2_to_f16x2((uint16_t)w.z), f[1][1] = e4m3x2_to_f16x2((uint16_t)w.w);
    f[1][2] = e4m3x2_high_to_f16x2(w.z), f[1][3] = e4m3x2_high_to_f16x2(w.w);
}

__device__ __forceinline__ uint32_t f16x2_times(uint32_t a, uint32_t b)
{
    uint32_t out;

    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
    return out;
}

/* Two f16 as (low, low) and (high, high). Moves and no permutation: ptxas makes them operands of the products (.H0_H0), which cost nothing. */
__device__ __forceinline__ uint32_t f16x2_low(uint32_t pair)
{
    uint32_t out;

    asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %1;\nmov.b32 %0, {low, low};\n}" : "=r"(out) : "r"(pair));
    return out;
}

__device__ __forceinline__ uint32_t f16x2_high(uint32_t pair)
{
    uint32_t out;

    asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %1;\nmov.b32 %0, {high, high};\n}" : "=r"(out) : "r"(pair));
    return out;
}

/* One fragment out of a word of FP4 (packed_fp4_fragment): f16 of 2^-14 of what the codes mean; times the group's scale they are still exact (2 and 4 bits of significand;
 * never below 2^-24). Shifts to the left as products: they run beside the logic. low, high: the scale of row g, of row g + 8, twice each. */
__device__ __forceinline__ void fp4_fragment(uint32_t (&f)[4], uint32_t w, uint32_t low, uint32_t high)
{
    f[0] = f16x2_times(w * 64 & FP4_PATTERN, low);
    f[1] = f16x2_times(w * 512 & FP4_PATTERN, high);
    f[2] = f16x2_times((w ^ w * 4) & FP4_PATTERN, low);
    f[3] = f16x2_times((w ^ __funnelshift_r(w, w, 3)) & FP4_PATTERN, high);
}

/* BF16: one k block of 16 per load. FP8: one of 32. FP4: two of 32, whose scales are `scales`. Alternating accumulators halve the chain of dependent mma. */
template <uint32_t FORMAT, int BLOCKS, int TILES>
__device__ __forceinline__ void multiply(float (&acc)[TILES][2][4], uint4 w, const uint32_t (&x)[TILES][BLOCKS][4], int load, uint32_t scales = 0)
{
    if constexpr (FORMAT == WEIGHT_FP4) {
        const uint32_t word[4] = { w.x, w.y, w.z, w.w };

#pragma unroll
        for (int j = 0; j < 4; j++) {
            const uint32_t pair = j < 2 ? e4m3x2_to_f16x2((uint16_t)scales) : e4m3x2_high_to_f16x2(scales);
            uint32_t f[4];

            fp4_fragment(f, word[j], f16x2_low(pair), f16x2_high(pair));
#pragma unroll
            for (int n = 0; n < TILES; n++)
                mma_f16(acc[n][j % 2], f[0], f[1], f[2], f[3], x[n][2 * load + j / 2][j % 2 * 2], x[n][2 * load + j / 2][j % 2 * 2 + 1]);
        }
    } else if constexpr (FORMAT == WEIGHT_BF16) {
#pragma unroll
        for (int n = 0; n < TILES; n++)
            mma_bf16(acc[n][load % 2], w.x, w.y, w.z, w.w, x[n][load / 2][load % 2 * 2], x[n][load / 2][load % 2 * 2 + 1]);
    } else {
        uint32_t f[2][4];

        fp8_fragments(f, w);
#pragma unroll
        for (int n = 0; n < TILES; n++) {
            mma_f16(acc[n][0], f[0][0], f[0][1], f[0][2], f[0][3], x[n][load][0], x[n][load][1]);
            mma_f16(acc[n][1], f[1][0], f[1][1], f[1][2], f[1][3], x[n][load][2], x[n][load][3]);
        }
    }
}

/* FP8_BLOCK: the products of one load begin at zero, and their sum goes into the total times the scale of its 128 columns: low of rows 0..7, high of 8..15. */
template <int BLOCKS, int TILES>
__device__ __forceinline__ void multiply_scaled(float (&total)[TILES][2][4], uint4 w, float low, float high, const uint32_t (&x)[TILES][BLOCKS][4], int load)
{
    float acc[TILES][2][4] = {};

    multiply<WEIGHT_FP8, BLOCKS, TILES>(acc, w, x, load);
#pragma unroll
    for (int n = 0; n < TILES; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) total[n][0][i] = __fmaf_rn(acc[n][0][i] + acc[n][1][i], i < 2 ? low : high, total[n][0][i]);
}

#endif
