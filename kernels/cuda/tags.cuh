/* kernels/cuda/tags.cuh - words that say themselves that they are there.
 *
 * A kernel of the chain is past its wait 0.5 to 1.3 us after its predecessor's last store (blocks end, the end is seen, the next kernel is told), and only then asks the L2 for its
 * input, for another 0.7. With steps of up to 32 rows every one of those is time in which the memory rests. So buffers of f32 that few blocks read carry a tag in the lowest bit of every
 * word, and their readers load and load again until all words have the tag that they wait for: then the input is in registers, and nobody has waited for an end. Neither fence
 * nor counter: a word is data and flag at once.
 *
 * The tag of a buffer is the number of its writing within the step, modulo 2 (chain.cu counts; each layer type has its own buffers where their shapes differ). It stays in the value, for
 * every number of rows and in every kernel that makes or reads the same number, so bits stay a function of the input alone. What it costs: one of 24 bits. (An infinity may become a NaN.)
 *
 * Why nothing old is ever taken for new. Let W(i) be the i-th kernel of a step that writes a buffer, R(i) its reader, one pair a layer (or a layer of the type).
 *   1. `down` lets its successor start only behind its own wait, when gate_up is complete: whatever runs behind down of layer L has started when all up to gate_up of layer L was
 *      complete and visible. R(i) polls only if i > 0. Between W(i - 1) and R(i) lies a gate_up whose successor has waited so, so W(i - 1) and all before it are complete when
 *      R(i) starts: of every word R(i) sees W(i - 1)'s value, which has the other tag, or W(i)'s.
 *   2. Products store behind their own wait: whoever has seen a word of o knows that all before o is complete, and may overwrite what that read. So norm1 of layer L writes x (read by
 *      qkv) and the residual (read by norm2 of layer L - 1), norm2 x (read by gate_up). Attention and its sum write what only kernels of the layer before have read: rule 1.
 *   3. Every kernel executes chain_wait before it ends, in every block: that a kernel is complete still means that all before it are. Readers that poll do so behind their stores.
 *   4. Writers' words may become visible in any order: every word that a reader takes by polling is checked.
 * Attention for many sequences (attn_many.cu) looks once: its blocks are more than the SMs hold, and those that start last find their words there. The others wait.
 * A reader that has polled TAG_POLLS_MAX times (the predecessor was interrupted, or its words are nobody's) waits for the end instead and takes what is there then: polling is only a shortcut,
 * never a condition. Who does not poll (more than 32 rows, parts of a step alone, the first layers) waits for the end as ever. */
#ifndef SLUICE_CUDA_TAGS_CUH
#define SLUICE_CUDA_TAGS_CUH

#include "device.cuh"

#define TAG_POLLS_MAX 256             /* some 0.7 us each */

/* x with the tag in its lowest bit. */
__device__ __forceinline__ float with_tag(float x, uint32_t tag) { return __uint_as_float((__float_as_uint(x) & ~1u) | tag); }

__device__ __forceinline__ float4 with_tag(float4 x, uint32_t tag) { return make_float4(with_tag(x.x, tag), with_tag(x.y, tag), with_tag(x.z, tag), with_tag(x.w, tag)); }

/* `wrong` with bit 0 set if a word has another tag. The other bits mean nothing. */
__device__ __forceinline__ uint32_t tag_wrong(uint32_t wrong, float x, uint32_t tag) { return wrong | (__float_as_uint(x) ^ tag); }
__device__ __forceinline__ uint32_t tag_wrong(uint32_t wrong, float2 x, uint32_t tag) { return tag_wrong(tag_wrong(wrong, x.x, tag), x.y, tag); }

__device__ __forceinline__ uint32_t tag_wrong(uint32_t wrong, float4 x, uint32_t tag)
{
    return tag_wrong(tag_wrong(tag_wrong(tag_wrong(wrong, x.x, tag), x.y, tag), x.z, tag), x.w, tag);
}

/* Relaxed, past the L1; issued here and in this order, not moved to the first use. */
__device__ __forceinline__ float ld_tagged(const float *p)
{
    float v;

    asm volatile("ld.relaxed.gpu.global.f32 %0, [%1];" : "=f"(v) : "l"(p) : "memory");
    return v;
}

__device__ __forceinline__ float2 ld_tagged(const float2 *p)
{
    float2 v;

    asm volatile("ld.relaxed.gpu.global.v2.f32 {%0,%1}, [%2];" : "=f"(v.x), "=f"(v.y) : "l"(p) : "memory");
    return v;
}

__device__ __forceinline__ float4 ld_tagged(const float4 *p)
{
    float4 v;

    asm volatile("ld.relaxed.gpu.global.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "l"(p) : "memory");
    return v;
}

__device__ __forceinline__ void st_tagged(float *p, float x) { asm volatile("st.relaxed.gpu.global.f32 [%0], %1;" ::"l"(p), "f"(x) : "memory"); }
__device__ __forceinline__ void st_tagged(float2 *p, float2 x) { asm volatile("st.relaxed.gpu.global.v2.f32 [%0], {%1,%2};" ::"l"(p), "f"(x.x), "f"(x.y) : "memory"); }

__device__ __forceinline__ void st_tagged(float4 *p, float4 x)
{
    asm volatile("st.relaxed.gpu.global.v4.f32 [%0], {%1,%2,%3,%4};" ::"l"(p), "f"(x.x), "f"(x.y), "f"(x.z), "f"(x.w) : "memory");
}

#endif
