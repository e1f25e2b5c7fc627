/* kernels/cuda/prefill_mm.cu - the product of packed weights with many rows (contract in prefill_mm.h).
 *
 * A block computes tiles of 128 weight rows times N activation rows. Two consumer warpgroups own 64 weight rows each: the A operand of wgmma
 * comes from registers, and a warp's part of it is exactly the fragment that the packed layout holds, so weights go from shared memory
 * through one 16-byte load and, for FP8, a conversion into the tensor cores. The B operand is the activations. One producer thread
 * keeps a ring of stages full with the tensor memory accelerator; a stage is 64 elements of k: a box [N][64] of
 * activations and 2 (FP8) or 4 (BF16) runs of 512 bytes of each of the 8 tiles. Stages come in the order of k, which is not the memory's.
 * k is never split between blocks, and each output element is one chain of wgmma over k: N and the tiling change nothing in its bits. */
#include "prefill_mm.h"
#include "prefill_mm.cuh"
#include "launch.h"
#include "shm/error.h"
#include <cuda_runtime.h>

#define CONSUMERS 2                                            /* warpgroups */
#define BLOCK_TILES (CONSUMERS * 4)                            /* tiles of 16 rows */
#define THREADS ((CONSUMERS + 1) * WARPGROUP_THREADS)
#define RUN_BYTES 512                                          /* what one load of a warp takes: 32 or 16 elements of k of a tile */
#define STAGE_K 64                                             /* 64 bf16 are one row of the swizzle */
#define STAGES_MAX 22
#define N_GROUP_TILES 8                                        /* column tiles that pass over the weights together */

struct prefill_mm_args {
    CUtensorMap x, w;
    const uint8_t *scales;                                     /* FP8: the header of the first unit */
    void *out;
    uint64_t out_stride, tile_bytes;                           /* tile_bytes: of all slices */
    uint32_t m, tiles, row_blocks, column_tiles;               /* tiles: of 16 rows; row_blocks: of 128 */
    uint32_t stages, slice_k, kind;                            /* stages: of a tile, k / 64 */
};

struct prefill_mm_shared { uint64_t full[STAGES_MAX], empty[STAGES_MAX]; };

template <bool FP8, int N> struct geometry {
    static constexpr int RUNS = STAGE_K / (FP8 ? 32 : 16);     /* of a stage */
    static constexpr uint32_t BOX_BYTES = N * SWIZZLE_BYTES;
    static constexpr uint32_t STAGE_BYTES = BOX_BYTES + RUNS * BLOCK_TILES * RUN_BYTES;
    static constexpr uint32_t FIXED_BYTES = 1024 + sizeof(prefill_mm_shared);      /* 1024: to align the boxes */
    static constexpr int FIT = (LAUNCH_SHARED_MAX - FIXED_BYTES) / STAGE_BYTES;
    static constexpr int STAGES = FIT < STAGES_MAX ? FIT : STAGES_MAX;
    static constexpr uint32_t SHARED_BYTES = FIXED_BYTES + STAGES * STAGE_BYTES;
};

struct place { uint32_t row_block, column_tile; };

/* Column tiles go in groups of 8 that pass over the weights together, so that a wave of blocks shares both operands in the L2. */
__device__ __forceinline__ place tile_place(const prefill_mm_args &a, uint32_t tile)
{
    const uint32_t per_group = a.row_blocks * N_GROUP_TILES, group = tile / per_group, in_group = tile % per_group;
    const uint32_t left = a.column_tiles - group * N_GROUP_TILES, width = left < N_GROUP_TILES ? left : N_GROUP_TILES;

    return { in_group / width, group * N_GROUP_TILES + in_group % width };
}

/* Walks over the runs of a tile in the order of k: a warp of rowmm.cu owns consecutive k, in `loads` runs of each of its slots. */
struct walk { uint32_t load, slot, warp, slice, loads, slots; };

template <bool FP8>
__device__ __forceinline__ uint32_t walk_next(struct walk *w)
{
    const uint32_t run = (w->slot * CONSUMER_WARPS + w->warp) * w->loads + w->load;

    if (++w->load == w->loads) {
        w->load = 0;
        if (++w->slot == w->slots) {
            w->slot = 0;
            if (++w->warp == CONSUMER_WARPS) w->warp = 0, w->slice++;
        }
    }
    return run;
}

/* One lane. The weights of the first stages do not wait for the kernel before us, the activations do. */
template <bool FP8, int N>
__device__ __forceinline__ void produce(const prefill_mm_args &a, uint8_t *ring, prefill_mm_shared *sh)
{
    using G = geometry<FP8, N>;
    const uint32_t tiles = a.row_blocks * a.column_tiles, loads = a.slice_k == 3840 ? 5 : 4;
    const uint32_t slots = a.slice_k * (FP8 ? 1 : 2) * TILE_ROWS / (CONSUMER_WARPS * loads * RUN_BYTES);
    const uint64_t policy = a.column_tiles == 1 ? policy_evict_first() : policy_evict_normal();
    uint32_t stage = 0, phase = 0, early = 0;

    for (uint32_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const place at = tile_place(a, tile);
        struct walk walk = { 0, 0, 0, 0, loads, slots };

        for (uint32_t i = 0; i < a.stages; i++) {
            uint8_t *to = ring + stage * G::STAGE_BYTES;

            mbar_wait(&sh->empty[stage], phase ^ 1);
            mbar_arrive_expect(&sh->full[stage], G::STAGE_BYTES);
#pragma unroll
            for (int r = 0; r < G::RUNS; r++) {
                const uint32_t slice = walk.slice, run = walk_next<FP8>(&walk);

                run_load(to + G::BOX_BYTES + r * (BLOCK_TILES * RUN_BYTES), &a.w, run, slice, at.row_block * BLOCK_TILES, &sh->full[stage], policy);
            }
            if (early < G::STAGES && ++early == G::STAGES) {   /* the ring is full of weights: now the activations that they meet */
                chain_wait();
                for (int j = 0; j < G::STAGES; j++)
                    box_load(ring + j * G::STAGE_BYTES, &a.x, j * STAGE_K, at.column_tile * N, &sh->full[j]);
            } else if (early == G::STAGES) {
                box_load(to, &a.x, i * STAGE_K, at.column_tile * N, &sh->full[stage]);
            }
            if (++stage == G::STAGES) stage = 0, phase ^= 1;
        }
    }
}

/* tanh by the fast exponential: within 2e-7 of tanhf where it matters (both ends saturate correctly). */
__device__ __forceinline__ float gelu_tanh(float x)
{
    const float inner = 0.7978845608028654f * (x + 0.044715f * x * x * x);

    return x * (1.0f - 1.0f / (1.0f + __expf(2.0f * inner)));
}

/* d[4j..4j+3]: rows g, g + 8 of the tile times activation rows 8j + 2t, 8j + 2t + 1. Rows of a warp's 8 lanes make whole sectors. */
template <int N>
__device__ __forceinline__ void store_f32(const prefill_mm_args &a, const float (&d)[N / 2], float low, float high, uint32_t tile, uint32_t first, uint32_t lane)
{
    float *out = (float *)a.out + tile * TILE_ROWS + lane / 4;

#pragma unroll
    for (int j = 0; j < N / 8; j++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint32_t m = first + 8 * j + lane % 4 * 2 + i;

            if (m < a.m) {
                out[m * a.out_stride] = d[4 * j + i] * low;
                out[m * a.out_stride + 8] = d[4 * j + 2 + i] * high;
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

/* The A fragments of a stage. */
template <bool FP8, int N>
__device__ __forceinline__ void load_weights(uint32_t (&a)[4][4], const uint8_t *own)
{
    using G = geometry<FP8, N>;

#pragma unroll
    for (int i = 0; i < G::RUNS; i++) {
        const uint4 v = ld_shared(own + i * (BLOCK_TILES * RUN_BYTES));

        if (FP8) {
            e4m3x4_to_bf16x4(v.x, &a[2 * i % 4][0], &a[2 * i % 4][2]);
            e4m3x4_to_bf16x4(v.y, &a[2 * i % 4][1], &a[2 * i % 4][3]);
            e4m3x4_to_bf16x4(v.z, &a[2 * i % 4 + 1][0], &a[2 * i % 4 + 1][2]);
            e4m3x4_to_bf16x4(v.w, &a[2 * i % 4 + 1][1], &a[2 * i % 4 + 1][3]);
        } else {
            a[i][0] = v.x, a[i][1] = v.y, a[i][2] = v.z, a[i][3] = v.w;
        }
    }
}

template <bool FP8, int N>
__device__ __forceinline__ void consume(const prefill_mm_args &a, uint8_t *ring, prefill_mm_shared *sh, uint32_t warp, uint32_t lane)
{
    using G = geometry<FP8, N>;
    const uint32_t tiles = a.row_blocks * a.column_tiles, own = G::BOX_BYTES + warp * RUN_BYTES + lane * 16;
    uint32_t stage = 0, phase = 0, behind = 0, w[2][4][4];     /* behind: the oldest stage not given back */

    mbar_wait(&sh->full[0], 0);
    load_weights<FP8, N>(w[0], ring + own);
    chain_wait();                                              /* nothing is stored before all readers of `out` are done */
    for (uint32_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const place at = tile_place(a, tile);
        const uint32_t own_tile = at.row_block * BLOCK_TILES + warp;
        const bool live = own_tile < a.tiles, last = tile + gridDim.x >= tiles;
        float d[N / 2], low = 1.0f, high = 1.0f;

        if (FP8 && live) {
            const float *scale = (const float *)(a.scales + own_tile * a.tile_bytes);

            low = __ldg(scale + lane / 4), high = __ldg(scale + lane / 4 + 8);
        }
#pragma unroll
        for (int i = 0; i < N / 2; i++) d[i] = 0.0f;
        pin(d);
        for (uint32_t pair = 0; pair < a.stages; pair += 2) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const uint64_t b = box_descriptor(smem_address(ring + stage * G::STAGE_BYTES));

                pin(w[i]);
                wgmma_fence();
#pragma unroll
                for (int s = 0; s < 4; s++) wgmma<N>::issue(d, w[i][s], b + 2 * s, 1);
                wgmma_commit();
                if (++stage == G::STAGES) stage = 0, phase ^= 1;
                /* The stage before this one is through: its registers are free and it goes back. Its loads are over for certain. */
                wgmma_wait<1>();
                pin(w[i ^ 1]);
                if (pair + i > 0) {
                    if (lane == 0) mbar_arrive(&sh->empty[behind]);
                    if (++behind == G::STAGES) behind = 0;
                }
                /* While the tensor cores work: the weights of the next stage, of the next tile behind the last one. */
                if (!last || pair + i + 1 < a.stages) {
                    mbar_wait(&sh->full[stage], phase);
                    load_weights<FP8, N>(w[i ^ 1], ring + stage * G::STAGE_BYTES + own);
                }
            }
        }
        wgmma_wait<0>();
        pin(d);
        if (lane == 0) mbar_arrive(&sh->empty[behind]);
        if (++behind == G::STAGES) behind = 0;
        if (!live) continue;
        if (a.kind == PREFILL_GEGLU) store_geglu<N>(a, d, low, high, own_tile, at.column_tile * N, lane);
        else store_f32<N>(a, d, low, high, own_tile, at.column_tile * N, lane);
    }
}

template <bool FP8, int N>
__global__ void __launch_bounds__(THREADS, 1) prefill_mm_kernel(const __grid_constant__ prefill_mm_args a)
{
    using G = geometry<FP8, N>;
    extern __shared__ uint8_t raw[];
    uint8_t *ring = raw + (1024 - smem_address(raw) % 1024) % 1024;        /* the swizzle counts from multiples of 1024 */
    prefill_mm_shared *sh = (prefill_mm_shared *)(ring + G::STAGES * G::STAGE_BYTES);
    const uint32_t warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32;

    chain_trigger();
    if (threadIdx.x == 0) {
        for (int i = 0; i < G::STAGES; i++) mbar_init(&sh->full[i], 1), mbar_init(&sh->empty[i], BLOCK_TILES);
        mbar_init_fence();
    }
    __syncthreads();
    if (warp >= CONSUMERS * 4) {
        registers_lower<24>();
        if (warp == CONSUMERS * 4 && lane == 0) produce<FP8, N>(a, ring, sh);
    } else {
        registers_raise<240>();
        consume<FP8, N>(a, ring, sh, warp, lane);
    }
}

/* ---- host ---- */

typedef void prefill_mm_fn(const prefill_mm_args);
struct prefill_mm_variant { prefill_mm_fn *fn; uint32_t n, shared_bytes; };

template <bool FP8, int N> static struct prefill_mm_variant variant()
{
    const struct prefill_mm_variant v = { prefill_mm_kernel<FP8, N>, N, geometry<FP8, N>::SHARED_BYTES };

    static_assert(geometry<FP8, N>::STAGES < 3840 / STAGE_K, "the ring must be full before the first tile ends");
    return v;
}

#define VARIANTS 6

const uint32_t prefill_mm_columns[VARIANTS + 1] = { 16, 48, 80, 128, 160, 256, 0 };

static struct prefill_mm_variant pick(bool fp8, int i)
{
    switch (i) {
    case 0: return fp8 ? variant<true, 16>() : variant<false, 16>();
    case 1: return fp8 ? variant<true, 48>() : variant<false, 48>();
    case 2: return fp8 ? variant<true, 80>() : variant<false, 80>();
    case 3: return fp8 ? variant<true, 128>() : variant<false, 128>();
    case 4: return fp8 ? variant<true, 160>() : variant<false, 160>();
    default: return fp8 ? variant<true, 256>() : variant<false, 256>();
    }
}

static uint32_t sm_count;
static PFN_cuTensorMapEncodeTiled_v12000 encode_map;

int prefill_mm_init(void)
{
    cudaDriverEntryPointQueryResult found;
    void *fn = NULL;
    int device, sms, rc;

    if ((rc = launch_check(cudaGetDevice(&device), "device"))) return rc;
    if ((rc = launch_check(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device), "SM count"))) return rc;
    if ((rc = launch_check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &fn, 12000, cudaEnableDefault, &found), "tensor maps"))) return rc;
    if (found != cudaDriverEntryPointSuccess || fn == NULL) return -E_UNSUPPORTED;
    for (int i = 0; i < 2 * VARIANTS; i++) {
        const struct prefill_mm_variant v = pick(i % 2, i / 2);

        if ((rc = launch_prepare((const void *)v.fn, v.shared_bytes))) return rc;
    }
    sm_count = (uint32_t)sms;
    encode_map = (PFN_cuTensorMapEncodeTiled_v12000)fn;
    return 0;
}

/* The variant with the fewest clocks by a plain model of a stage, fitted to measurements: waves of tiles, 4 N clocks of tensor cores for
 * a stage and about 300 that nothing hides. */
static struct prefill_mm_variant choose(const struct packed_matrix *w, uint32_t m)
{
    const bool fp8 = w->format == WEIGHT_FP8;
    const uint32_t row_blocks = (w->rows + BLOCK_TILES * TILE_ROWS - 1) / (BLOCK_TILES * TILE_ROWS);
    struct prefill_mm_variant best = pick(fp8, 0);
    uint64_t least = ~0ull;

    for (int i = 0; i < VARIANTS; i++) {
        const struct prefill_mm_variant v = pick(fp8, i);
        const uint64_t tiles = (uint64_t)row_blocks * ((m + v.n - 1) / v.n), waves = (tiles + sm_count - 1) / sm_count;
        const uint64_t clocks = waves * (300 + 4 * v.n);

        if (clocks < least) least = clocks, best = v;
    }
    return best;
}

/* Boxes of n rows of 64 elements, swizzled. */
static CUresult encode_rows(CUtensorMap *map, const __nv_bfloat16 *x, uint32_t m, uint32_t k, uint32_t n)
{
    const cuuint64_t dims[2] = { k, m }, strides[1] = { 2ull * k };
    const cuuint32_t box[2] = { STAGE_K, n }, steps[2] = { 1, 1 };

    return encode_map(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, (void *)x, dims, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

/* The weights as words [tile][slice][run][64]; a box is one run of each of a block's tiles. Tiles past the end are zeros. */
static CUresult encode_weights(CUtensorMap *map, const struct packed_matrix *w)
{
    const uint64_t header = w->format == WEIGHT_FP8 ? UNIT_HEADER_BYTES : 0, unit = packed_unit_bytes(w->format, w->slice_k);
    const uint64_t slices = w->k / w->slice_k;
    const cuuint64_t dims[4] = { RUN_BYTES / 8, (unit - header) / RUN_BYTES, slices, w->rows / TILE_ROWS }, strides[3] = { RUN_BYTES, unit, slices * unit };
    const cuuint32_t box[4] = { RUN_BYTES / 8, 1, 1, BLOCK_TILES }, steps[4] = { 1, 1, 1, 1 };

    return encode_map(map, CU_TENSOR_MAP_DATA_TYPE_INT64, 4, (void *)(w->data + header), dims, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                      CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

int prefill_mm_launch_columns(const struct packed_matrix *w, const __nv_bfloat16 *x, uint32_t m, void *out, enum prefill_out kind,
                              uint64_t out_stride, uint32_t columns, cudaStream_t stream)
{
    struct prefill_mm_args a = {};
    int i = 0;

    if (encode_map == NULL) return -E_UNSUPPORTED;
    if (m < 1 || w->rows == 0 || w->rows % (kind == PREFILL_GEGLU ? 64 : TILE_ROWS)) return -E_RANGE;
    if (out_stride < (kind == PREFILL_GEGLU ? w->rows / 2 : w->rows)) return -E_RANGE;
    if ((w->slice_k != 3840 && w->slice_k != 4096) || w->k == 0 || w->k % w->slice_k) return -E_RANGE;
    while (i < VARIANTS && prefill_mm_columns[i] != columns) i++;
    if (columns && i == VARIANTS) return -E_RANGE;
    const struct prefill_mm_variant v = columns ? pick(w->format == WEIGHT_FP8, i) : choose(w, m);

    if (encode_rows(&a.x, x, m, w->k, v.n) != CUDA_SUCCESS || encode_weights(&a.w, w) != CUDA_SUCCESS) return -E_RANGE;
    a.scales = w->data, a.tile_bytes = (uint64_t)(w->k / w->slice_k) * packed_unit_bytes(w->format, w->slice_k);
    a.out = out, a.out_stride = out_stride, a.kind = kind, a.m = m, a.tiles = w->rows / TILE_ROWS;
    a.row_blocks = (a.tiles + BLOCK_TILES - 1) / BLOCK_TILES, a.column_tiles = (m + v.n - 1) / v.n;
    a.stages = w->k / STAGE_K, a.slice_k = w->slice_k;
    const uint32_t tiles = a.row_blocks * a.column_tiles;
    void *params[] = { &a };

    return launch_chained((const void *)v.fn, tiles < sm_count ? tiles : sm_count, THREADS, v.shared_bytes, params, stream);
}

int prefill_mm_launch(const struct packed_matrix *w, const __nv_bfloat16 *x, uint32_t m, void *out, enum prefill_out kind,
                      uint64_t out_stride, cudaStream_t stream)
{
    return prefill_mm_launch_columns(w, x, m, out, kind, out_stride, 0, stream);
}

uint32_t prefill_mm_choice(const struct packed_matrix *w, uint32_t m) { return choose(w, m).n; }
