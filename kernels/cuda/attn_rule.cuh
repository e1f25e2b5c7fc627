/* kernels/cuda/attn_rule.cuh - what the blocks that add up attention's partial results leave for the o product: f16 times a power of two, bf16, or, where the product wants its activations
 * in FP8, the values of E4M3 codes (round.h).
 *
 * A row's own scale needs the largest element of all its heads, and each head is another block's. The 16 blocks of a row are a cluster then, and every warp sends its largest to all of
 * them. */
#ifndef SLUICE_CUDA_ATTN_RULE_CUH
#define SLUICE_CUDA_ATTN_RULE_CUH

#include "attn.h"
#include "cluster.cuh"
#include "launch.h"
#include "round.cuh"

#define RULE_WARPS_MAX 8              /* of a block */

struct rule_shared {
    uint64_t told;                    /* every warp of the row has told its largest */
    float top[ATTN_HEADS * RULE_WARPS_MAX];
};

/* By every thread of a row's blocks, long before its sums are there: the others may send from now on. */
__device__ __forceinline__ void rule_begin(const attn_args &a, rule_shared &sh)
{
    if (!a.out_scale) return;
    if (threadIdx.x == 0) {
        mbar_init(&sh.told, 1);
        mbar_init_fence();
        mbar_arrive_expect(&sh.told, ATTN_HEADS * (blockDim.x / 32) * 4);
    }
    __syncthreads();
    cluster_arrive_relaxed();
    cluster_wait();
}

/* Two elements of a row, by every thread of its 16 blocks: what to store. */
__device__ __forceinline__ uint32_t rule_pair(const attn_args &a, rule_shared &sh, float low, float high)
{
    if (!a.out_scale) return pack_ruled(low, high, a.out_power != NULL, a.out_inverse);
    const uint32_t x = pack_bf16(low, high), rank = cluster_rank(), warps = blockDim.x / 32, lane = threadIdx.x % 32;
    float top = round_warp_top(fmaxf(0.0f, pair_top(x)));

    if (lane < ATTN_HEADS) peer_send(peer_address(sh.top + rank * warps + threadIdx.x / 32, lane), __float_as_uint(top), peer_address(&sh.told, lane));
    peer_wait(&sh.told, 0);
    for (uint32_t i = lane; i < ATTN_HEADS * warps; i += 32) top = fmaxf(top, sh.top[i]);
    const round_by by = round_by_largest(round_warp_top(top));

    if (rank == 0 && threadIdx.x == 0) a.out_scale[blockIdx.x / ATTN_HEADS] = by.scale;
    return pair_values(round_pair(x, by));
}

static int rule_prepare(const void *kernel)
{
    const int rc = launch_prepare(kernel, 0);

    return rc ? rc : launch_check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "cluster of 16");
}

/* One block for each row and head. */
static int rule_launch(const void *kernel, attn_args *a, uint32_t rows, uint32_t threads, void *stream)
{
    void *params[] = { a };

    if (a->out_scale) return launch_clusters(kernel, rows * ATTN_HEADS, ATTN_HEADS, threads, 0, params, stream);
    return launch_chained(kernel, rows * ATTN_HEADS, threads, 0, params, stream);
}

#endif
