/* kernels/cuda/draft_product.cuh - the products of draft_round.cu: this block's units of one matrix times up to 8 rows. */
#ifndef SLUICE_CUDA_DRAFT_PRODUCT_CUH
#define SLUICE_CUDA_DRAFT_PRODUCT_CUH

#include "draft_lone.cuh"

#define DRAFT_BLOCKS (DRAFT_SLICE / DRAFT_WARPS / 32)   /* of 32 columns, per warp */

/* A warp's 128 columns of up to 8 rows as B fragments: row lane / 4, 8 columns of each 32. */
typedef uint32_t draft_fragments[DRAFT_BLOCKS][4];

/* From rows in memory that other blocks wrote: columns [slice * 1024, + 1024) of x [rows][stride]. */
__device__ __forceinline__ void fragments_from(draft_fragments &x, const uint16_t *from, uint32_t stride, uint32_t slice, uint32_t rows, const draft_thread &t)
{
    const uint32_t m = t.lane / 4;
    const uint16_t *at = from + (uint64_t)m * stride + slice * DRAFT_SLICE + t.warp * (DRAFT_SLICE / DRAFT_WARPS) + t.lane % 4 * 8;

#pragma unroll
    for (int b = 0; b < (int)DRAFT_BLOCKS; b++) {
        const uint4 v = m < rows ? ld_l2((const uint4 *)(at + b * 32)) : make_uint4(0, 0, 0, 0);

        x[b][0] = v.x, x[b][1] = v.y, x[b][2] = v.z, x[b][3] = v.w;
    }
}

/* From a lone row's words: only the first four lanes have some. */
template <bool FP8> __device__ __forceinline__ void fragments_lone(draft_fragments &x, const draft_round_args &a, const float *from, uint32_t slice, const draft_thread &t)
{
    const float *at = from + slice * DRAFT_SLICE + t.warp * (DRAFT_SLICE / DRAFT_WARPS) + t.lane % 4 * 8;
    float4 v[2 * DRAFT_BLOCKS] = {};

    if (t.lane < 4) lone_load(a, t, v, [&](int i) { return (const float4 *)(at + i / 2 * 32 + i % 2 * 4); });
#pragma unroll
    for (int i = 0; i < (int)(2 * DRAFT_BLOCKS); i++) x[i / 2][i % 2 * 2] = draft_pack<FP8>(v[i].x, v[i].y), x[i / 2][i % 2 * 2 + 1] = draft_pack<FP8>(v[i].z, v[i].w);
    __syncwarp();
}

/* From the block's own normed rows. */
__device__ __forceinline__ void fragments_own(draft_fragments &x, uint32_t rows, const draft_thread &t)
{
    const uint32_t m = t.lane / 4;
    const uint16_t *at = t.sh->x[m] + t.warp * (DRAFT_SLICE / DRAFT_WARPS) + t.lane % 4 * 8;

#pragma unroll
    for (int b = 0; b < (int)DRAFT_BLOCKS; b++) {
        const uint4 v = m < rows ? ld_shared(at + b * 32) : make_uint4(0, 0, 0, 0);

        x[b][0] = v.x, x[b][1] = v.y, x[b][2] = v.z, x[b][3] = v.w;
    }
}

/* One 16-byte load: 32 columns of FP8, 16 of BF16. */
template <bool FP8>
__device__ __forceinline__ void draft_multiply(float (&acc)[2][4], uint4 w, const draft_fragments &x, int load)
{
    if (FP8) {
        mma_f16(acc[0], e4m3x2_to_f16x2((uint16_t)w.x), e4m3x2_to_f16x2((uint16_t)w.y), e4m3x2_to_f16x2((uint16_t)(w.x >> 16)), e4m3x2_to_f16x2((uint16_t)(w.y >> 16)),
                x[load][0], x[load][1]);
        mma_f16(acc[1], e4m3x2_to_f16x2((uint16_t)w.z), e4m3x2_to_f16x2((uint16_t)w.w), e4m3x2_to_f16x2((uint16_t)(w.z >> 16)), e4m3x2_to_f16x2((uint16_t)(w.w >> 16)),
                x[load][2], x[load][3]);
    } else {
        mma_bf16(acc[load % 2], w.x, w.y, w.z, w.w, x[load / 2][load % 2 * 2], x[load / 2][load % 2 * 2 + 1]);
    }
}

/* One unit of the ring into this warp's partial sums. n: its place in the batch. */
template <bool FP8>
__device__ __forceinline__ void draft_unit(const draft_round_args &a, draft_thread &t, const draft_fragments &x, uint32_t n)
{
    using S = draft_shape<FP8>;
    float acc[2][4] = {};

#pragma unroll
    for (int slot = 0; slot < (int)S::SLOTS; slot++) {
        const uint8_t *from = t.ring + t.stage * S::SLOT_BYTES;
        uint4 w[4];
        float scale = 0.0f;

        mbar_wait(&t.sh->full[t.stage], t.phase);
        if (FP8 && t.warp == 0) scale = *(const float *)(from + t.lane % TILE_ROWS * 4);
        from += S::HEADER;
#pragma unroll
        for (int i = 0; i < 4; i++) w[i] = ld_shared(from + ((t.warp * 4 + i) * 32 + t.lane) * 16);
#pragma unroll
        for (int i = 0; i < 4; i++) draft_multiply<FP8>(acc, w[i], x, slot * 4 + i);
        if (FP8 && t.warp == 0 && t.lane < TILE_ROWS) t.sh->scale[n][t.lane] = scale;
        /* The arrival must not overtake the loads: its address depends on them, as in rowmm.cu. */
        uint32_t loaded = __float_as_uint(scale);
#pragma unroll
        for (int i = 0; i < 4; i++) loaded |= w[i].x;
        if (t.lane == 0) mbar_arrive_at(smem_address(&t.sh->empty[t.stage]) + (loaded & a.zero));
        if (++t.stage == a.ring_slots) t.stage = 0, t.phase ^= 1;
    }
    t.sh->u.partial[n][t.warp][t.lane] = make_float4(acc[0][0] + acc[1][0], acc[0][1] + acc[1][1], acc[0][2] + acc[1][2], acc[0][3] + acc[1][3]);
}

/* All of this block's units of a matrix. finish(v, tile, slice) is called by one warp for each unit: v holds, of rows g = lane / 4 and g + 8 of
 * the tile and activation rows m = lane % 4 * 2 and m + 1: (g, m), (g, m + 1), (g + 8, m), (g + 8, m + 1). */
template <bool FP8, typename F>
__device__ __forceinline__ void draft_product(const draft_round_args &a, draft_thread &t, const draft_phase &p, const draft_fragments &x, F finish)
{
    const uint32_t blocks = gridDim.x - gridDim.x % p.slices;
    uint32_t unit = blockIdx.x;

    if (blockIdx.x >= blocks) return;
    forget_place(t);
#pragma unroll 1
    while (unit < p.units) {
        const uint32_t first = unit;
        uint32_t n = 0;

#pragma unroll 1
        for (; n < DRAFT_BATCH && unit < p.units; n++, unit += blocks) draft_unit<FP8>(a, t, x, n);
        compute_sync();
        if (t.warp < n) {
            const uint32_t own = first + t.warp * blocks;
            float4 v = make_float4(0, 0, 0, 0);

#pragma unroll
            for (int w = 0; w < DRAFT_WARPS; w++) {
                const float4 part = t.sh->u.partial[t.warp][w][t.lane];

                v.x += part.x, v.y += part.y, v.z += part.z, v.w += part.w;
            }
            if (FP8) {
                const float low = t.sh->scale[t.warp][t.lane / 4], high = t.sh->scale[t.warp][t.lane / 4 + 8];

                v.x *= low, v.y *= low, v.z *= high, v.w *= high;
            }
            finish(v, own / p.slices, own % p.slices);
        }
        compute_sync();               /* the partial sums and scales are written again */
    }
}

/* finish: plain f32, out[slice][row][stride]. */
__device__ __forceinline__ void finish_plain(float *out, uint64_t slice_stride, uint32_t stride, uint32_t rows, float4 v, uint32_t tile, uint32_t slice, uint32_t lane)
{
    const uint32_t m = lane % 4 * 2;
    float *to = out + slice * slice_stride + (uint64_t)m * stride + tile * TILE_ROWS + lane / 4;

    if (m < rows) to[0] = v.x, to[8] = v.z;
    if (m + 1 < rows) to[stride] = v.y, to[stride + 8] = v.w;
}

/* The same of a lone row, out[slice][stride]. */
__device__ __forceinline__ void finish_lone(const draft_thread &t, float *out, uint32_t stride, float4 v, uint32_t tile, uint32_t slice)
{
    float *to = out + (uint64_t)slice * stride + tile * TILE_ROWS + t.lane / 4;

    if (t.lane % 4 == 0) lone_store(t, to, v.x), lone_store(t, to + 8, v.z);
}

#endif
