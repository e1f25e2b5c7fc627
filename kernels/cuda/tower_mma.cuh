/* kernels/cuda/tower_mma.cuh - loads for mma.sync: copies into shared memory, and fragments out of it. */
#ifndef SLUICE_CUDA_TOWER_MMA_CUH
#define SLUICE_CUDA_TOWER_MMA_CUH

#include "device.cuh"

/* 16 bytes; not live: zeros, and nothing is read. */
__device__ __forceinline__ void tower_copy(uint32_t to, const void *from, bool live)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(live ? 16 : 0) : "memory");
}
__device__ __forceinline__ void tower_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT> __device__ __forceinline__ void tower_await() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory"); }

/* Four 8 x 8 matrices; lane l gives the address of row l % 8 of matrix l / 8. */
__device__ __forceinline__ void tower_fragments(uint32_t (&x)[4], uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(address) : "memory");
}
__device__ __forceinline__ void tower_fragments_turned(uint32_t (&x)[4], uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];" : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(address) : "memory");
}

#endif
