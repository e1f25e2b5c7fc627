/* kernels/cuda/prefill_mm_store.cuh - the sums of a prefill product on their way out: row factors, GEGLU, slices of k that are added (used by prefill_mm.cu). */
#ifndef SLUICE_CUDA_PREFILL_MM_STORE_CUH
#define SLUICE_CUDA_PREFILL_MM_STORE_CUH

#include "prefill_mm_block.cuh"

/* tanh by the fast exponential: within 2e-7 of tanhf where it matters (both ends saturate correctly). */
__device__ __forceinline__ float gelu_tanh(float x)
{
    const float inner = 0.7978845608028654f * (x + 0.044715f * x * x * x);

    return x * (1.0f - 1.0f / (1.0f + __expf(2.0f * inner)));
}

#define ADD_BATCH 4                                            /* column groups whose old sums are loaded together: 16 loads */

/* d[4j..4j+3]: rows g, g + 8 of the tile times activation rows 8j + 2t, 8j + 2t + 1. Rows of a warp's 8 lanes make whole sectors.
 * ADD: to what this thread stored before; all loads of a batch stand before its stores, which the compiler would not dare. */
template <int N, bool ADD>
__device__ __forceinline__ void store_f32(const prefill_mm_args &a, const float (&d)[N / 2], float low, float high, uint32_t tile, uint32_t first, uint32_t lane)
{
    const uint32_t m = first + lane % 4 * 2;                   /* of j = 0, i = 0 */
    float *out = (float *)a.out + tile * TILE_ROWS + lane / 4 + m * a.out_stride;

#pragma unroll
    for (int j = 0; j < N / 8; j += ADD_BATCH, out += 8 * ADD_BATCH * a.out_stride) {
        float old[4 * ADD_BATCH] = {}, *at = out;

        if (ADD)
#pragma unroll
            for (int i = 0; i < 2 * ADD_BATCH && 4 * j + 2 * i < N / 2; i++, at += i % 2 ? a.out_stride : 7 * a.out_stride)
                if (m + 8 * (j + i / 2) + i % 2 < a.m) old[2 * i] = __ldcg(at), old[2 * i + 1] = __ldcg(at + 8);
        at = out;
#pragma unroll
        for (int i = 0; i < 2 * ADD_BATCH && 4 * j + 2 * i < N / 2; i++, at += i % 2 ? a.out_stride : 7 * a.out_stride)
            if (m + 8 * (j + i / 2) + i % 2 < a.m) {
                const float first_sum = d[4 * j + i / 2 * 4 + i % 2], second_sum = d[4 * j + i / 2 * 4 + i % 2 + 2];

                at[0] = (ADD ? old[2 * i] + first_sum : first_sum) * low;
                at[8] = (ADD ? old[2 * i + 1] + second_sum : second_sum) * high;
            }
    }
}

/* Neighbours in g swap one value each: an even lane then stores both columns of one activation row, an odd lane those of the next. */
template <int N>
__device__ __forceinline__ void store_geglu(const prefill_mm_args &a, const float (&d)[N / 2], float low, float high, uint32_t tile, uint32_t first, uint32_t lane)
{
    const uint32_t g = lane / 4, odd = g & 1;
    __nv_bfloat16 *out = (__nv_bfloat16 *)a.out + prefill_k(tile * 8 + (g & ~1u));

#pragma unroll
    for (int j = 0; j < N / 8; j++) {
        const float even_row = gelu_tanh(d[4 * j] * low) * (d[4 * j + 2] * high), odd_row = gelu_tanh(d[4 * j + 1] * low) * (d[4 * j + 3] * high);
        const float got = __shfl_xor_sync(0xffffffffu, odd ? even_row : odd_row, 4);
        const uint32_t m = first + 8 * j + lane % 4 * 2 + odd;

        if (m < a.m) *(uint32_t *)(out + m * a.out_stride) = odd ? pack_bf16(got, odd_row) : pack_bf16(even_row, got);
    }
}

/* What multiplies the finished sum of a row: the header's factor. FP4's header is made for f16, 2^-14 of the value; bf16 are 2^-8 of it. */
template <uint32_t FORMAT> __device__ __forceinline__ float row_factor(const prefill_mm_args &a, uint32_t tile, uint32_t row)
{
    return __ldg((const float *)(a.scales + tile * a.tile_bytes) + row) * (FORMAT == WEIGHT_FP4 ? 1.0f / 64.0f : 1.0f);
}

/* FP8_BOTH: the scales of a tile's activation rows, asked for by a warpgroup's threads when the tile begins (a wait for the L2 in front of the stores costs 8 % of the product). */
struct column_scales { float own[2]; };

template <int N>
__device__ __forceinline__ column_scales column_scales_load(const prefill_mm_args &a, uint32_t first)
{
    column_scales s = {};

    static_assert(N <= 2 * WARPGROUP_THREADS, "two of a thread");
#pragma unroll
    for (uint32_t i = 0; i < 2; i++) {
        const uint32_t column = threadIdx.x % WARPGROUP_THREADS + i * WARPGROUP_THREADS;

        if (column < N && first + column < a.m) s.own[i] = ld_l2(a.x_scale + first + column);
    }
    return s;
}

/* d times them, by way of the warpgroup's part of the shared memory. */
template <int N>
__device__ __forceinline__ void scale_columns(float (&d)[N / 2], const column_scales &s, prefill_mm_shared *sh, uint32_t lane)
{
    const uint32_t group = threadIdx.x / WARPGROUP_THREADS;
    float *columns = sh->x_scale[group];

    warpgroup_barrier(group);                                  /* the last tile's have been read */
#pragma unroll
    for (uint32_t i = 0; i < 2; i++)
        if (threadIdx.x % WARPGROUP_THREADS + i * WARPGROUP_THREADS < N) columns[threadIdx.x % WARPGROUP_THREADS + i * WARPGROUP_THREADS] = s.own[i];
    warpgroup_barrier(group);
#pragma unroll
    for (int j = 0; j < N / 8; j++) {
        const float2 scale = *(const float2 *)&columns[8 * j + lane % 4 * 2];

        d[4 * j] *= scale.x, d[4 * j + 1] *= scale.y, d[4 * j + 2] *= scale.x, d[4 * j + 3] *= scale.y;
    }
}

/* The sums of this block into its shared memory, once nobody reads the ring: [column][row]. */
template <int N>
__device__ __forceinline__ void keep_sums(const float (&d)[N / 2], float *sums, uint32_t warp, uint32_t lane)
{
    asm volatile("bar.sync 1, %0;" ::"n"(CONSUMERS * WARPGROUP_THREADS) : "memory");
#pragma unroll
    for (int j = 0; j < N / 2; j++) sums[(j / 4 * 8 + lane % 4 * 2 + j % 2) * SUM_PITCH + warp * TILE_ROWS + lane / 4 + j % 4 / 2 * 8] = d[j];
}

/* Behind a cluster_sync: the blocks of the cluster share the columns out, two at a time to a block. One thread per row and column. */
template <uint32_t FORMAT, int N>
__device__ __forceinline__ void add_slices(const prefill_mm_args &a, const float *sums)
{
    const place at = tile_place(a, blockIdx.x / a.slices);
    const uint32_t in_block = threadIdx.x % WARPGROUP_THREADS, row = at.row_block * BLOCK_TILES * TILE_ROWS + in_block;
    const uint32_t first = at.column_tile * N, step = CONSUMERS * a.slices;
    float scale = 1.0f;

    if (row >= a.tiles * TILE_ROWS) return;
    if (geometry<FORMAT, N>::LATE) scale = row_factor<FORMAT>(a, row / TILE_ROWS, row % TILE_ROWS);
#pragma unroll 4
    for (uint32_t n = cluster_rank() * CONSUMERS + threadIdx.x / WARPGROUP_THREADS; n < N && first + n < a.m; n += step) {
        const uint32_t from = smem_address(sums + n * SUM_PITCH + in_block);
        float sum = ld_cluster(from, 0);

        for (uint32_t i = 1; i < a.slices; i++) sum += ld_cluster(from, i);
        ((float *)a.out)[(first + n) * a.out_stride + row] = sum * scale;
    }
}

/* A slice's sum is there. */
template <int N>
__device__ __forceinline__ void store(const prefill_mm_args &a, const float (&d)[N / 2], float low, float high, uint32_t tile, uint32_t first, uint32_t slice, uint32_t lane)
{
    if (slice + 1 < a.slices) low = 1.0f, high = 1.0f;         /* the scale belongs to the whole sum */
    if (a.kind == PREFILL_GEGLU) store_geglu<N>(a, d, low, high, tile, first, lane);
    else if (slice > 0) store_f32<N, true>(a, d, low, high, tile, first, lane);
    else store_f32<N, false>(a, d, low, high, tile, first, lane);
}

#endif
