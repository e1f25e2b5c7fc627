/* kernels/cuda/device.cuh - the few Hopper instructions that the kernels need, one inline function each.
 *
 * Everything that one kernel of a step hands to the next is read with ld_l2*: with programmatic dependent launch a
 * kernel may start before its predecessor ends, so a line that an earlier kernel left in this SM's L1 can be stale. */
#ifndef SLUICE_CUDA_DEVICE_CUH
#define SLUICE_CUDA_DEVICE_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

__device__ __forceinline__ uint32_t smem_address(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }

/* ---- barriers in shared memory ---- */

__device__ __forceinline__ void mbar_init(uint64_t *bar, uint32_t count)
{
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(smem_address(bar)), "r"(count) : "memory");
}

/* Makes the barriers' initialisation visible to the copy engine. */
__device__ __forceinline__ void mbar_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ __forceinline__ void mbar_arrive(uint64_t *bar)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(smem_address(bar)) : "memory");
}

__device__ __forceinline__ void mbar_arrive_at(uint32_t address)
{
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(address) : "memory");
}

__device__ __forceinline__ uint4 ld_shared(const void *p)
{
    uint4 v;

    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(smem_address(p)) : "memory");
    return v;
}

__device__ __forceinline__ uint4 ld_shared_at(uint32_t address)
{
    uint4 v;

    asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(address) : "memory");
    return v;
}

__device__ __forceinline__ uint32_t ld_shared_word_at(uint32_t address)
{
    uint32_t v;

    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address) : "memory");
    return v;
}

__device__ __forceinline__ uint32_t ld_shared_word(const void *p)
{
    uint32_t v;

    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(smem_address(p)) : "memory");
    return v;
}

__device__ __forceinline__ void mbar_arrive_expect(uint64_t *bar, uint32_t bytes)
{
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(smem_address(bar)), "r"(bytes) : "memory");
}

/* Waits until the phase of this parity is over. try_wait suspends the thread for a while: no busy polling. */
__device__ __forceinline__ void mbar_wait(uint64_t *bar, uint32_t parity)
{
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again;\n"
                 "}\n" ::"r"(smem_address(bar)), "r"(parity) : "memory");
}

/* ---- bulk copies ---- */

/* Weights are read once per step: evict_first keeps them from pushing activations and KV out of the L2. */
__device__ __forceinline__ uint64_t policy_evict_first()
{
    uint64_t policy;

    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

/* bytes % 16 == 0, both sides 16-byte aligned. Completes on bar as transferred bytes. */
__device__ __forceinline__ void bulk_load(void *to, const void *from, uint32_t bytes, uint64_t *bar, uint64_t policy)
{
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;"
                 ::"r"(smem_address(to)), "l"(from), "r"(bytes), "r"(smem_address(bar)), "l"(policy) : "memory");
}

/* Brings bytes into the L2 only. Nothing tells when they are there: the caller paces itself. */
__device__ __forceinline__ void bulk_prefetch(const void *from, uint32_t bytes)
{
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
}

/* ---- programmatic dependent launch ---- */

/* Lets the next kernel of the chain start its blocks as soon as there is room. */
__device__ __forceinline__ void chain_trigger() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }

/* Returns when the previous kernel is complete and its writes are visible. EVERY kernel of a chain must wait in every
 * block: only then does "my predecessor is complete" mean "all before me are complete". */
__device__ __forceinline__ void chain_wait() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

/* ---- loads past the L1 ---- */

__device__ __forceinline__ float ld_l2(const float *p) { return __ldcg(p); }
__device__ __forceinline__ float4 ld_l2(const float4 *p) { return __ldcg(p); }
__device__ __forceinline__ uint4 ld_l2(const uint4 *p) { return __ldcg(p); }
__device__ __forceinline__ uint32_t ld_l2(const uint32_t *p) { return __ldcg(p); }

/* A power of two for activations (powers.h), or 1. Constant, and volatile: it is asked for where it stands, in front of a wait. */
__device__ __forceinline__ float power_or_one(const float *p)
{
    float power = 1.0f;

    if (p) asm volatile("ld.global.nc.f32 %0, [%1];" : "=f"(power) : "l"(p));
    return power;
}

/* ---- tensor cores: D[16x8] += A[16x16] B[16x8], f32 accumulators ---- */

__device__ __forceinline__ void mma_f16(float c[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma_bf16(float c[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

/* Two e4m3 (low and high half of `pair`'s low or high 16 bits) to two f16, exact. */
__device__ __forceinline__ uint32_t e4m3x2_to_f16x2(uint16_t pair)
{
    uint32_t out;

    asm volatile("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(out) : "h"(pair));
    return out;
}

/* The E4M3 codes nearest to two numbers, ties to even, at most 448 in size; a NaN stays one. */
__device__ __forceinline__ uint32_t pack_e4m3(float low, float high)
{
    uint16_t out;

    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(out) : "f"(high), "f"(low));
    return out;
}

/* The same of the high half of a word. A move and no shift: ptxas makes the half an operand (.H1). */
__device__ __forceinline__ uint32_t e4m3x2_high_to_f16x2(uint32_t word)
{
    uint32_t out;

    asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %1;\ncvt.rn.f16x2.e4m3x2 %0, high;\n}" : "=r"(out) : "r"(word));
    return out;
}

/* ---- tracing (bench only): first and last time at which the blocks of a kernel started, were past their wait, ended ---- */

enum trace_event { TRACE_START = 0, TRACE_PAST_WAIT = 1, TRACE_END = 2 };
#define TRACE_WORDS 8                 /* per kernel: min, max of each event */

/* One thread per block calls it. trace NULL: nothing happens. */
__device__ __forceinline__ void trace_mark(unsigned long long *trace, int event)
{
    unsigned long long now;

    if (trace == NULL) return;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now)::"memory");
    atomicMin(trace + 2 * event, now);
    atomicMax(trace + 2 * event + 1, now);
}

/* ---- small arithmetic ---- */

__device__ __forceinline__ float warp_sum(float x)
{
#pragma unroll
    for (int d = 16; d >= 1; d >>= 1) x += __shfl_xor_sync(0xffffffffu, x, d);
    return x;
}

__device__ __forceinline__ float bf16_low(uint32_t pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float bf16_high(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }

__device__ __forceinline__ uint32_t pack_bf16(float low, float high)
{
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);

    return *(const uint32_t *)&pair;
}

__device__ __forceinline__ uint32_t pack_f16(float low, float high)
{
    const __half2 pair = __floats2half2_rn(low, high);

    return *(const uint32_t *)&pair;
}

/* Activations for the next product: f16, already multiplied by their power of two, or bf16. */
template <bool F16> __device__ __forceinline__ uint32_t pack_row(float low, float high) { return F16 ? pack_f16(low, high) : pack_bf16(low, high); }
__device__ __forceinline__ uint32_t pack_row(float low, float high, bool f16) { return f16 ? pack_f16(low, high) : pack_bf16(low, high); }

#endif
