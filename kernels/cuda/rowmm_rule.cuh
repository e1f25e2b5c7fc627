/* kernels/cuda/rowmm_rule.cuh - a product of one row of activations that it rounds itself, by the row's largest element (round.h; used by rowmm.cu).
 *
 * A kernel in front of the product that rounds costs its end and another round trip to the L2: 1.4 us, in front of o nothing hides them. Here each block reads the whole row, of the slices
 * that it does not multiply only for their largest element, and rounds its own: lanes take pieces one after another, 16 values each, and change them for fragments through the
 * shared memory of the partial sums. With more rows each lane would have 120 values to round, 1.1 us: attn_rule.cuh, or a kernel in front. */
#ifndef SLUICE_CUDA_ROWMM_RULE_CUH
#define SLUICE_CUDA_ROWMM_RULE_CUH

#include "rowmm_ring.cuh"

#define RULE_BARRIER 1                /* of the consumers and the epilogue warp; 0 is __syncthreads */

/* The largest |element| of two bf16 in each word so far; a NaN counts as nothing. */
__device__ __forceinline__ void raise_pairs(__nv_bfloat162 &top, uint4 v)
{
#pragma unroll
    for (uint32_t pair : { v.x, v.y, v.z, v.w }) top = __hmax2(top, __habs2(*(const __nv_bfloat162 *)&pair));
}

/* By the consumers, each warp with its largest in place, and by the epilogue warp: how the row is rounded. */
__device__ __forceinline__ round_by rule_of_row(const rowmm_shared *sh, uint32_t lane)
{
    asm volatile("bar.sync %0, %1;" ::"n"(RULE_BARRIER), "n"((CONSUMER_WARPS + 1) * 32) : "memory");
    const float top = round_warp_top(*(volatile const float *)&sh->scale[0][lane % CONSUMER_WARPS]);

    asm volatile("bar.sync %0, %1;" ::"n"(RULE_BARRIER), "n"((CONSUMER_WARPS + 1) * 32) : "memory");      /* the weights' scales go there later */
    return round_by_largest(top);
}

/* load_rows for a.rounds: the values of the codes as fragments. */
template <int SLICE, int BLOCKS>
__device__ __forceinline__ void load_row_rounded(uint32_t (&x)[1][BLOCKS][4], const rowmm_args &a, uint8_t *partials, rowmm_shared *sh, uint32_t warp, uint32_t lane)
{
    constexpr uint32_t SHARE = SLICE / CONSUMER_WARPS, PIECES = SHARE / 8;      /* of a warp: elements, pieces of 16 bytes */
    static_assert(PIECES <= 64, "two for each lane");
    const uint32_t slice = slice_of(a.slices, blockIdx.x), second = lane + 32 < PIECES ? 32 * 8 : 0;      /* a piece twice changes no largest, and has a place that nobody reads */
    const uint16_t *from = (const uint16_t *)a.x + warp * SHARE + lane * 8;
    uint4 own[2], other[3][2];
    __nv_bfloat162 top = __float2bfloat162_rn(0.0f);

    asm volatile("" : "+l"(from));
    chain_wait();
    if (a.late_trigger) chain_trigger();
    if (threadIdx.x == 0) *(volatile uint32_t *)&sh->ready = 1;
    own[0] = ld_l2_now(from + slice * SLICE), own[1] = ld_l2_now(from + slice * SLICE + second);
#pragma unroll
    for (uint32_t s = 1; s < 4; s++) {
        const uint16_t *there = from + (slice ^ s) * SLICE;

        other[s - 1][0] = other[s - 1][1] = make_uint4(0, 0, 0, 0);
        if (s < a.slices) other[s - 1][0] = ld_l2_now(there), other[s - 1][1] = ld_l2_now(there + second);
    }
    raise_pairs(top, own[0]), raise_pairs(top, own[1]);
#pragma unroll
    for (int s = 0; s < 3; s++) raise_pairs(top, other[s][0]), raise_pairs(top, other[s][1]);
    const float largest = round_warp_top(fmaxf(__low2float(top), __high2float(top)));

    if (lane == 0) *(volatile float *)&sh->scale[0][warp] = largest;
    const round_by by = rule_of_row(sh, lane);
    uint4 *stage = (uint4 *)(partials + warp * 512);           /* this warp's partial sums, both buffers */

#pragma unroll
    for (int i = 0; i < 2; i++)
        stage[i * CONSUMER_WARPS * 32 + lane] = make_uint4(pair_values(round_pair(own[i].x, by)), pair_values(round_pair(own[i].y, by)), pair_values(round_pair(own[i].z, by)), pair_values(round_pair(own[i].w, by)));
    uint32_t loaded = 0;

    __syncwarp();
#pragma unroll
    for (int b = 0; b < BLOCKS; b++) {
        const uint4 v = stage[b / 8 * CONSUMER_WARPS * 32 + b % 8 * 4 + lane % 4];

        x[0][b][0] = v.x, x[0][b][1] = v.y, x[0][b][2] = v.z, x[0][b][3] = v.w;
        loaded |= v.x;
    }
    x[0][0][0] |= loaded & a.zero;    /* all are here before the place is the partial sums' again; and tests/gpu/arrivals.py knows (a.zero: see rowmm.cu) */
    __syncwarp();
}

#endif
