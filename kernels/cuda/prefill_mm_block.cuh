/* kernels/cuda/prefill_mm_block.cuh - what a block of a prefill product works on: its tiles, its ring, and the warps that fill it (used by prefill_mm.cu). */
#ifndef SLUICE_CUDA_PREFILL_MM_BLOCK_CUH
#define SLUICE_CUDA_PREFILL_MM_BLOCK_CUH

#include "launch.h"
#include "prefill_mm.h"
#include "prefill_mm.cuh"

#define CONSUMERS 2                                            /* warpgroups */
#define BLOCK_TILES (CONSUMERS * 4)                            /* tiles of 16 rows */
#define THREADS ((CONSUMERS + 1) * WARPGROUP_THREADS)
#define RUN_BYTES 512                                          /* what one load of a warp takes: 32 or 16 elements of k of a tile */
#define FP8_BOTH WEIGHT_FORMATS                                /* in place of a weight format: FP8 weights with a factor for each row, times FP8 activations */
#define STAGES_MAX 22
#define TWICE_N_MAX 160                                        /* of FP8_BOTH and FP8_BLOCK: their sums are in registers twice */
#define RUNS_MAX 256                                           /* of a unit: 4096 x 16 bf16 */
#define PRODUCERS 4                                            /* warps; one could not issue fast enough */
#define SUM_PITCH (BLOCK_TILES * TILE_ROWS + 4)                /* floats between columns of the sums of a block: no bank conflicts */
#define N_GROUP_TILES 8                                        /* column tiles that pass over the weights together */

struct prefill_mm_args {
    CUtensorMap x, w;
    const uint8_t *scales;                                     /* the header of the first unit */
    const float *x_scale;                                      /* [m] FP8_BOTH */
    void *out;
    uint64_t out_stride, tile_bytes;                           /* tile_bytes: of all slices */
    uint32_t m, tiles, row_blocks, column_tiles;               /* tiles: of 16 rows; row_blocks: of 128 */
    uint32_t stages, slices, slice_k, kind;                    /* stages: of a slice, stage_k elements each */
    uint32_t split;                                            /* 1: a cluster of `slices` blocks does a tile */
};

struct prefill_mm_shared {
    uint64_t full[STAGES_MAX], empty[STAGES_MAX];
    uint16_t run[RUNS_MAX];                                    /* which run of a unit is the next in the order of k */
    float x_scale[CONSUMERS][TWICE_N_MAX];                      /* FP8_BOTH: of a tile's columns */
};

/* Elements of k of a stage: what fills one row of the swizzle, 128 bytes of activations. */
LAYOUT_FN constexpr uint32_t stage_k(uint32_t format) { return format == FP8_BOTH ? 128 : 64; }

template <uint32_t FORMAT, int N> struct geometry {
    static constexpr uint32_t STAGE_K = stage_k(FORMAT);
    static constexpr int RUNS = STAGE_K / (FORMAT == WEIGHT_BF16 ? 16 : FORMAT == WEIGHT_FP4 ? 64 : 32);      /* of a stage */
    static constexpr uint32_t RUN_STRIDE = FORMAT == WEIGHT_FP4 ? FP4_RUN_BYTES : RUN_BYTES;
    static constexpr bool LATE = FORMAT == WEIGHT_FP8 || FORMAT == WEIGHT_FP4 || FORMAT == FP8_BOTH;      /* a factor for each row of the sum */
    static constexpr uint32_t BOX_BYTES = N * SWIZZLE_BYTES;
    static constexpr uint32_t LOADED_BYTES = BOX_BYTES + RUNS * BLOCK_TILES * RUN_STRIDE, STAGE_BYTES = (LOADED_BYTES + 1023) / 1024 * 1024;
    static constexpr uint32_t FIXED_BYTES = 1024 + sizeof(prefill_mm_shared);      /* 1024: to align the boxes */
    static constexpr int FIT = (LAUNCH_SHARED_MAX - FIXED_BYTES) / STAGE_BYTES;
    static constexpr int STAGES = FIT < STAGES_MAX ? FIT : STAGES_MAX;
    static constexpr uint32_t SHARED_BYTES = FIXED_BYTES + STAGES * STAGE_BYTES;
};

struct place { uint32_t row_block, column_tile; };

/* The tiles of this block, and of each tile its slices. */
#define FOR_TILES(a, tile) for (uint32_t tile = blockIdx.x / ((a).split ? (a).slices : 1); tile < (a).row_blocks * (a).column_tiles; \
                                tile += (a).split ? (a).row_blocks * (a).column_tiles : gridDim.x)
#define FOR_SLICES(a, slice) for (uint32_t slice = (a).split ? cluster_rank() : 0, end_ = (a).split ? slice + 1 : (a).slices; slice < end_; slice++)

/* Column tiles go in groups of 8 that pass over the weights together, so that a wave of blocks shares both operands in the L2. */
__device__ __forceinline__ place tile_place(const prefill_mm_args &a, uint32_t tile)
{
    const uint32_t per_group = a.row_blocks * N_GROUP_TILES, group = tile / per_group, in_group = tile % per_group;
    const uint32_t left = a.column_tiles - group * N_GROUP_TILES, width = left < N_GROUP_TILES ? left : N_GROUP_TILES;

    return { in_group / width, group * N_GROUP_TILES + in_group % width };
}

/* A warp of rowmm.cu owns consecutive k, in `loads` runs of each of its slots. All threads of the block. */
template <uint32_t FORMAT>
__device__ __forceinline__ void fill_runs(const prefill_mm_args &a, prefill_mm_shared *sh)
{
    const uint32_t loads = a.slice_k == 3840 ? 5 : 4, runs = a.slice_k * (FORMAT == WEIGHT_BF16 ? 2 : 1) * TILE_ROWS / RUN_BYTES, per_warp = runs / CONSUMER_WARPS;

    for (uint32_t i = threadIdx.x; FORMAT == WEIGHT_FP4 && i < a.slice_k / 64; i += THREADS) sh->run[i] = (uint16_t)packed_fp4_run(a.slice_k, i);
    for (uint32_t i = threadIdx.x; FORMAT != WEIGHT_FP4 && i < runs; i += THREADS)
        sh->run[i] = (uint16_t)((i % per_warp / loads * CONSUMER_WARPS + i / per_warp) * loads + i % per_warp % loads);
}

/* One lane of producer warp number `warp`: every fourth stage. The weights of the first stages do not wait for the kernel before us, the
 * activations do. */
template <uint32_t FORMAT, int N>
__device__ __forceinline__ void produce(const prefill_mm_args &a, uint8_t *ring, prefill_mm_shared *sh, uint32_t warp)
{
    using G = geometry<FORMAT, N>;
    const uint64_t policy = a.column_tiles == 1 ? policy_evict_first() : policy_evict_normal();
    uint32_t stage = warp, phase = 0, i = warp;
    bool early = true;

    FOR_TILES(a, tile) {
        const place at = tile_place(a, tile);

        FOR_SLICES(a, slice) {
            const uint32_t k = slice * a.slice_k, first = at.column_tile * N;

#pragma unroll 1
            for (; i < a.stages; i += PRODUCERS) {
                uint8_t *to = ring + stage * G::STAGE_BYTES;

                mbar_wait(&sh->empty[stage], phase ^ 1);
                mbar_arrive_expect(&sh->full[stage], G::LOADED_BYTES);
#pragma unroll
                for (int r = 0; r < G::RUNS; r++)
                    run_load(to + G::BOX_BYTES + r * (BLOCK_TILES * G::RUN_STRIDE), &a.w, sh->run[i * G::RUNS + r], slice, at.row_block * BLOCK_TILES, &sh->full[stage], policy);
                if (!early) box_load(to, &a.x, k + i * G::STAGE_K, first, &sh->full[stage]);
                stage += PRODUCERS;
                if (stage < G::STAGES) continue;
                if (early) {                                   /* our part of the ring is full of weights: now the activations that they meet */
                    chain_wait();
#pragma unroll 1
                    for (uint32_t j = warp; j < G::STAGES; j += PRODUCERS) box_load(ring + j * G::STAGE_BYTES, &a.x, k + j * G::STAGE_K, first, &sh->full[j]);
                    early = false;
                }
                stage -= G::STAGES, phase ^= 1;
            }
            i -= a.stages;                                     /* turns go on in the next slice */
        }
    }
}

#endif
