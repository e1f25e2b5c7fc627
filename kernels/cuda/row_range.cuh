/* kernels/cuda/row_range.cuh - a row's part in one range of k, from bf16 to f16, for the products of many rows (rowmm_wide.cu, rowmm_ready.cu). */
#ifndef SLUICE_CUDA_ROW_RANGE_CUH
#define SLUICE_CUDA_ROW_RANGE_CUH

#include "device.cuh"

/* A warp holds the part, each lane twice 16 bytes of it: to f16 times the power of two that scale_to_f16 (rowmm_block.cuh) chooses, so that the bits of the product are those of
 * the small one. Returns the power's inverse. */
__device__ __forceinline__ float row_range_to_f16(uint4 (&x)[2])
{
    uint32_t *v = (uint32_t *)x;
    __nv_bfloat162 largest = __float2bfloat162_rn(0.0f);

#pragma unroll
    for (int i = 0; i < 8; i++) largest = __hmax2(largest, __habs2(*(const __nv_bfloat162 *)&v[i]));
    float top = fmaxf(__low2float(largest), __high2float(largest));
#pragma unroll
    for (int d = 16; d; d >>= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, d));
    const int e = (int)(__float_as_uint(top) >> 23) - 127;
    const int shift = top == 0.0f ? 0 : min(max(14 - e, -100), 100);
    const float scale = __uint_as_float((uint32_t)(127 + shift) << 23);

#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = pack_f16(bf16_low(v[i]) * scale, bf16_high(v[i]) * scale);
    return __uint_as_float((uint32_t)(127 - shift) << 23);
}

#endif
