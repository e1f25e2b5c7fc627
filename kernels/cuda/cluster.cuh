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

#endif
