/* kernels/cuda/attn_head.cuh - norm and rotation of one head of q, k or v by one warp, on its way from the qkv product into attention.
 *
 * f32 throughout, one rounding at the end: to bf16, or with a cache of E4M3 to that (q: to f16). Norm weights and rotations come from shared memory: attn.cu loads them before its wait. */
#ifndef SLUICE_CUDA_ATTN_HEAD_CUH
#define SLUICE_CUDA_ATTN_HEAD_CUH

#include "device.cuh"
#include "tags.cuh"

/* ---- norm and rotation of one head vector by one warp: lane l owns elements 4l.. of each block of 128 ---- */

template <int D> struct head_vector { float x[D / 128][4]; };

template <int D>
__device__ __forceinline__ void head_load(head_vector<D> &v, const float *from, uint32_t lane)
{
#pragma unroll
    for (int i = 0; i < D / 128; i++) {
        const float4 f = ld_tagged((const float4 *)(from + i * 128 + lane * 4));

        v.x[i][0] = f.x, v.x[i][1] = f.y, v.x[i][2] = f.z, v.x[i][3] = f.w;
    }
}

/* Do its tags say that it is there? The same for all of a warp. */
template <int D> __device__ __forceinline__ bool head_is_there(const head_vector<D> &v, uint32_t tag)
{
    uint32_t wrong = 0;

#pragma unroll
    for (int i = 0; i < D / 128; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) wrong = tag_wrong(wrong, v.x[i][e], tag);
    return !__any_sync(0xffffffffu, wrong & 1);
}

/* Loads again until the tags say that all of it is there; after so many times the predecessor's end is waited for. A warp at once. */
template <int D>
__device__ __forceinline__ void head_settle(head_vector<D> &v, const float *from, uint32_t tag, uint32_t lane)
{
#pragma unroll 1
    for (uint32_t polls = 0; polls <= TAG_POLLS_MAX; polls++) {
        if (head_is_there<D>(v, tag)) return;
        if (polls == TAG_POLLS_MAX) chain_wait();
        head_load<D>(v, from, lane);
    }
}

/* bias: what is added to the weights, 1 where a model stores w - 1. */
template <int D>
__device__ __forceinline__ void head_norm(head_vector<D> &v, const __nv_bfloat16 *w, float eps, uint32_t lane, float bias = 0.0f)
{
    float sum = 0.0f;

#pragma unroll
    for (int i = 0; i < D / 128; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) sum += v.x[i][e] * v.x[i][e];
    const float inv = rsqrtf(warp_sum(sum) * (1.0f / D) + eps);

#pragma unroll
    for (int i = 0; i < D / 128; i++) {
        const uint2 pair = w ? *(const uint2 *)(w + i * 128 + lane * 4) : make_uint2(0x3f803f80u, 0x3f803f80u);
        const float add = w ? bias : 0.0f, weight[4] = { bf16_low(pair.x) + add, bf16_high(pair.x) + add, bf16_low(pair.y) + add, bf16_high(pair.y) + add };

#pragma unroll
        for (int e = 0; e < 4; e++) v.x[i][e] = v.x[i][e] * inv * weight[e];
    }
}

/* Pairs (i, i + D/2) for i < turned. */
template <int D>
__device__ __forceinline__ void head_rotate(head_vector<D> &v, const float2 *rope, uint32_t turned, uint32_t lane)
{
#pragma unroll
    for (int i = 0; i < D / 256; i++) {
        const uint32_t at = i * 128 + lane * 4;

        if (at >= turned) continue;
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const float2 cs = rope[at + e];
            const float low = v.x[i][e], high = v.x[i + D / 256][e];

            v.x[i][e] = low * cs.x - high * cs.y;
            v.x[i + D / 256][e] = high * cs.x + low * cs.y;
        }
    }
}

template <int D>
__device__ __forceinline__ void head_store(const head_vector<D> &v, __nv_bfloat16 *to, float scale, uint32_t lane)
{
#pragma unroll
    for (int i = 0; i < D / 128; i++)
        *(uint2 *)(to + i * 128 + lane * 4) = make_uint2(pack_bf16(v.x[i][0] * scale, v.x[i][1] * scale), pack_bf16(v.x[i][2] * scale, v.x[i][3] * scale));
}

/* A query for keys of E4M3, which the tensor cores take as f16: cut at the largest. */
__device__ __forceinline__ uint32_t pack_f16_cut(float low, float high) { return pack_f16(fminf(fmaxf(low, -65504.0f), 65504.0f), fminf(fmaxf(high, -65504.0f), 65504.0f)); }

template <int D, bool F8>
__device__ __forceinline__ void head_store_query(const head_vector<D> &v, __nv_bfloat16 *to, float scale, uint32_t lane)
{
#pragma unroll
    for (int i = 0; i < D / 128; i++) {
        const float x = v.x[i][0] * scale, y = v.x[i][1] * scale, z = v.x[i][2] * scale, w = v.x[i][3] * scale;

        *(uint2 *)(to + i * 128 + lane * 4) = F8 ? make_uint2(pack_f16_cut(x, y), pack_f16_cut(z, w)) : make_uint2(pack_bf16(x, y), pack_bf16(z, w));
    }
}

/* K or V, D elements of the cache: bf16 or E4M3. */
template <int D, bool F8>
__device__ __forceinline__ void head_store_key(const head_vector<D> &v, uint8_t *to, uint32_t lane)
{
#pragma unroll
    for (int i = 0; i < D / 128; i++) {
        if (F8) *(uint32_t *)(to + i * 128 + lane * 4) = pack_e4m3(v.x[i][0], v.x[i][1]) | pack_e4m3(v.x[i][2], v.x[i][3]) << 16;
        else *(uint2 *)(to + (i * 128 + lane * 4) * 2) = make_uint2(pack_bf16(v.x[i][0], v.x[i][1]), pack_bf16(v.x[i][2], v.x[i][3]));
    }
}

#endif
