/* kernels/cuda/attn_many_copy.cuh - what the kernels of attn_many share: page numbers and asynchronous copies. */
#ifndef SLUICE_CUDA_ATTN_MANY_COPY_CUH
#define SLUICE_CUDA_ATTN_MANY_COPY_CUH

#include "attn.h"
#include "attn_head.cuh"
#include "device.cuh"

__device__ __forceinline__ const uint32_t *page_entry(const attn_args &a, uint32_t seq, uint32_t position)
{
    return a.pages + (uint64_t)seq * a.pages_stride + position / ATTN_PAGE_TOKENS % a.ring_pages;
}

/* ---- asynchronous copies ---- */

/* 16 bytes; bytes 0: zeros instead. */
__device__ __forceinline__ void copy_async(uint32_t to, const void *from, uint32_t bytes)
{
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int LEFT> __device__ __forceinline__ void copies_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(LEFT) : "memory"); }

#endif
