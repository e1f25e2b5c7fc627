/* kernels/cuda/attn_many_prepare.cuh - the first kernel of attn_many: norm and rotation of every head of every row; and asynchronous copies.
 *
 * One warp per head of q, k and v. New K and V go to their pages, rotated queries to scratch memory: `part` in sliding layers, in
 * full layers, where partial results need that, `out` (which is written when the queries are no longer needed). */
#ifndef SLUICE_CUDA_ATTN_MANY_PREPARE_CUH
#define SLUICE_CUDA_ATTN_MANY_PREPARE_CUH

#include "attn.h"
#include "attn_head.cuh"
#include "device.cuh"

#define PREPARE_WARPS 8

__device__ __forceinline__ const uint32_t *page_entry(const attn_args &a, uint32_t seq, uint32_t position)
{
    return a.pages + (uint64_t)seq * a.pages_stride + position / ATTN_PAGE_TOKENS % a.ring_pages;
}

template <int D, bool F8>
__global__ void __launch_bounds__(PREPARE_WARPS * 32) many_prepare_kernel(const __grid_constant__ attn_args a)
{
    const uint32_t index = blockIdx.x * PREPARE_WARPS + threadIdx.x / 32, tasks = ATTN_HEADS + 2 * a.kv_heads, row = index / tasks, task = index % tasks, lane = threadIdx.x % 32;
    const bool query = task < ATTN_HEADS, value = task >= ATTN_HEADS + a.kv_heads;
    const uint32_t kv_head = (task - ATTN_HEADS) % a.kv_heads;
    head_vector<D> v;

    chain_trigger();
    if (threadIdx.x == 0) trace_mark(a.trace, TRACE_START);
    const bool live = row < a.state->rows;
    const uint32_t position = live ? a.state->row[row].position : 0, seq = live ? a.state->group[a.state->row[row].group].seq : 0;
    const uint64_t page = live && !query ? __ldg(page_entry(a, seq, position)) : 0;

    chain_wait();
    if (!live) return;
    if (threadIdx.x == 0) trace_mark(a.trace, TRACE_PAST_WAIT);
    head_load<D>(v, a.qkv + (uint64_t)row * a.qkv_stride + (query ? task : ATTN_HEADS + (value && a.has_v ? a.kv_heads : 0) + kv_head) * D, lane);
    if (!value || a.has_v_norm) head_norm<D>(v, value ? NULL : query ? a.q_norm : a.k_norm, a.eps, lane, a.norm_bias);
    if (!value) head_rotate<D>(v, a.rope + (uint64_t)row * a.rope_stride, a.turned, lane);
    if (query) {
        head_store_query<D, F8>(v, (D == 256 ? (__nv_bfloat16 *)a.part : a.out) + ((uint64_t)row * ATTN_HEADS + task) * D, a.scale, lane);
    } else {
        const uint64_t key = (uint64_t)kv_head * ATTN_PAGE_TOKENS + position % ATTN_PAGE_TOKENS;

        head_store_key<D, F8>(v, a.arena + page * a.page_bytes + (value ? a.v_offset : a.k_offset) + key * (D * (F8 ? 1 : 2)), lane);
    }
    if (threadIdx.x == 0) trace_mark(a.trace, TRACE_END);
}

static inline uint32_t many_prepare_blocks(const attn_args &a, uint32_t rows)
{
    return (rows * (ATTN_HEADS + 2 * a.kv_heads) + PREPARE_WARPS - 1) / PREPARE_WARPS;
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
