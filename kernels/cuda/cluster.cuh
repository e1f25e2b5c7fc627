/* kernels/cuda/cluster.cuh - blocks that reach each other's shared memory: the few instructions of a thread block cluster. */
#ifndef SLUICE_CUDA_CLUSTER_CUH
#define SLUICE_CUDA_CLUSTER_CUH

#include "device.cuh"

__device__ __forceinline__ uint32_t cluster_rank()
{
    uint32_t rank;

    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
/* For barriers in shared memory whose initialisation mbar_init_fence() has released: without waiting for anything else that is on its way. */
__device__ __forceinline__ void cluster_arrive_relaxed() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

/* The address of our shared memory's word in the block of that rank. */
__device__ __forceinline__ uint32_t peer_address(const void *own, uint32_t rank)
{
    uint32_t address;

    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(smem_address(own)), "r"(rank));
    return address;
}

/* Ordinary stores: seen behind the next cluster_arrive and cluster_wait. */
__device__ __forceinline__ void peer_put(uint32_t address, uint4 v)
{
    asm volatile("st.shared::cluster.v4.u32 [%0], {%1,%2,%3,%4};" ::"r"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

__device__ __forceinline__ void peer_put(uint32_t address, float2 v)
{
    asm volatile("st.shared::cluster.v2.f32 [%0], {%1,%2};" ::"r"(address), "f"(v.x), "f"(v.y) : "memory");
}

/* A word for a block that waits for bytes at a barrier of its own: no barrier of the cluster, nothing else that is on its way is waited for. */
__device__ __forceinline__ void peer_send(uint32_t address, uint32_t v, uint32_t barrier)
{
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(address), "r"(v), "r"(barrier) : "memory");
}

/* Of a barrier that others of the cluster complete: what they sent is here. */
__device__ __forceinline__ void peer_wait(uint64_t *bar, uint32_t parity)
{
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again;\n"
                 "}\n" ::"r"(smem_address(bar)), "r"(parity) : "memory");
}

#endif
