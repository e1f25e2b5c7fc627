/* kernels/cuda/kv_element.cuh - what attention does with an element of the KV cache, bf16 or (F8) E4M3, on its way into the tensor cores.
 *
 * bf16 goes in as it is. E4M3 becomes f16, exactly; then queries and weights are f16, too. */
#ifndef SLUICE_CUDA_KV_ELEMENT_CUH
#define SLUICE_CUDA_KV_ELEMENT_CUH

#include "device.cuh"

/* 8 elements of a key as they are stored. */
template <bool F8> struct kv_eight { using words = uint4; };
template <> struct kv_eight<true> { using words = uint2; };

template <bool F8> constexpr uint32_t kv_bytes = F8 ? 1 : 2;

__device__ __forceinline__ uint4 widen8(const uint4 &x) { return x; }
__device__ __forceinline__ uint4 widen8(const uint2 &x)
{
    return make_uint4(e4m3x2_to_f16x2((uint16_t)x.x), e4m3x2_high_to_f16x2(x.x), e4m3x2_to_f16x2((uint16_t)x.y), e4m3x2_high_to_f16x2(x.y));
}

__device__ __forceinline__ void load_eight(uint4 &to, const void *from) { to = ld_l2((const uint4 *)from); }
__device__ __forceinline__ void load_eight(uint2 &to, const void *from) { to = __ldcg((const uint2 *)from); }

template <bool F8>
__device__ __forceinline__ void mma_kv(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1)
{
    if constexpr (F8) mma_f16(c, a0, a1, a2, a3, b0, b1);
    else mma_bf16(c, a0, a1, a2, a3, b0, b1);
}

template <bool F8> __device__ __forceinline__ uint32_t pack_weights(float low, float high) { return F8 ? pack_f16(low, high) : pack_bf16(low, high); }

/* Element j of the values of two keys, as an operand. */
template <bool F8>
__device__ __forceinline__ uint32_t value_pair(const uint32_t *x, const uint32_t *y, int j)
{
    if constexpr (!F8) return __byte_perm(x[j / 2], y[j / 2], j % 2 ? 0x7632 : 0x5410);      /* the upper or lower bf16 of both */
    const uint32_t pairs = __byte_perm(x[j / 4], y[j / 4], j % 4 / 2 ? 0x7362 : 0x5140);    /* of this element and its neighbour */

    return j % 2 ? e4m3x2_high_to_f16x2(pairs) : e4m3x2_to_f16x2((uint16_t)pairs);
}

#endif
