/* kernels/cuda/prefill_mm.cu - the product of packed weights with many rows (contract in prefill_mm.h).
 *
 * A block computes tiles of 128 weight rows times N activation rows. Two consumer warpgroups own 64 weight rows each: the A operand of wgmma
 * comes from registers, and a warp's part of it is exactly the fragment that the packed layout holds, so weights go from the ring in
 * shared memory through one 16-byte load and, for FP8, a conversion into the tensor core. The B operand is the activations
 * [N][64], brought by the tensor memory accelerator. Two producer warps keep two rings full:
 *   weights       a chunk = what one warp of rowmm.cu finds in one slot: 4 or 5 runs of 512 bytes per tile of 16 rows. The ring is counted
 *                 in runs; one barrier per chunk. Chunks come in the order of k, which is not the order of memory.
 *   activations   boxes of 64 elements of k; one barrier each.
 * k is never split between blocks, and each output element is one chain of wgmma over k: N and the tiling change nothing in its bits. */
#include "prefill_mm.h"
#include "prefill_mm.cuh"
#include "launch.h"
#include "shm/error.h"
#include <cuda_runtime.h>

#define CONSUMERS 2                                            /* warpgroups */
#define BLOCK_TILES (CONSUMERS * 4)                            /* tiles of 16 rows */
#define THREADS ((CONSUMERS + 1) * WARPGROUP_THREADS)
#define RUN_BYTES 512
#define GROUP_K 64                                             /* elements of k of a box, and of one group of wgmma */
#define BOXES_MAX 12
#define CHUNKS_MAX 10
#define N_GROUP_TILES 8                                        /* column tiles that pass over the weights together */
#define INGEST_BYTES_PER_CLOCK 48                              /* of an SM, from the L2: measured, for choosing N */

struct prefill_mm_args {
    CUtensorMap x;
    const uint8_t *w;
    void *out;
    uint64_t out_stride;
    uint32_t m, tiles, row_blocks, column_tiles;               /* tiles: of 16 rows; row_blocks: of 128 */
    uint32_t slices, slice_k, unit_bytes, kind;
};

struct prefill_mm_shared {
    uint64_t box_full[BOXES_MAX], box_empty[BOXES_MAX];
    uint64_t chunk_full[CHUNKS_MAX], chunk_empty[CHUNKS_MAX];
};

template <bool FP8, int N> struct geometry {
    static constexpr int RUNS = N > 80 ? 20 : 40;              /* of the weight ring: divisible by 4 and 5 */
    static constexpr uint32_t WEIGHT_BYTES = RUNS * BLOCK_TILES * RUN_BYTES;
    static constexpr uint32_t BOX_BYTES = N * SWIZZLE_BYTES;
    static constexpr uint32_t FIXED_BYTES = 1024 + WEIGHT_BYTES + sizeof(prefill_mm_shared);   /* 1024: to align the boxes */
    static constexpr int BOXES_FIT = (LAUNCH_SHARED_MAX - FIXED_BYTES) / BOX_BYTES;
    static constexpr int BOXES = BOXES_FIT < BOXES_MAX ? BOXES_FIT : BOXES_MAX;
    static constexpr uint32_t SHARED_BYTES = FIXED_BYTES + BOXES * BOX_BYTES;
    static constexpr int GROUP_RUNS = GROUP_K / (FP8 ? 32 : 16);
};

struct place { uint32_t row_block, column_tile; };

/* Column tiles go in groups of 8 that pass over the weights together, so that a wave of blocks shares both operands in the L2. */
__device__ __forceinline__ place tile_place(const prefill_mm_args &a, uint32_t tile)
{
    const uint32_t per_group = a.row_blocks * N_GROUP_TILES, group = tile / per_group, in_group = tile % per_group;
    const uint32_t left = a.column_tiles - group * N_GROUP_TILES, width = left < N_GROUP_TILES ? left : N_GROUP_TILES;

    return { in_group / width, group * N_GROUP_TILES + in_group % width };
}

__device__ __forceinline__ uint32_t chunk_runs(const prefill_mm_args &a) { return a.slice_k == 3840 ? 5 : 4; }

/* One warp. Lane i < 8 copies the chunk's runs of tile i; tiles past the end are read as the last one and never stored. */
template <bool FP8, int N>
__device__ __forceinline__ void produce_weights(const prefill_mm_args &a, uint8_t *ring, prefill_mm_shared *sh, uint32_t lane)
{
    using G = geometry<FP8, N>;
    const uint32_t runs = chunk_runs(a), chunks = G::RUNS / runs, bytes = runs * RUN_BYTES, tiles = a.row_blocks * a.column_tiles;
    const uint32_t slots = a.slice_k * (FP8 ? 1 : 2) * TILE_ROWS / (CONSUMER_WARPS * bytes);
    const uint64_t policy = policy_evict_first();
    uint32_t chunk = 0, phase = 0;

    for (uint32_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const uint32_t own = tile_place(a, tile).row_block * BLOCK_TILES + lane % BLOCK_TILES;
        const uint8_t *unit = a.w + (uint64_t)(own < a.tiles ? own : a.tiles - 1) * a.slices * a.unit_bytes + (FP8 ? UNIT_HEADER_BYTES : 0);

        for (uint32_t slice = 0; slice < a.slices; slice++, unit += a.unit_bytes)
            for (uint32_t i = 0; i < CONSUMER_WARPS * slots; i++) {
                if (lane == 0) {
                    mbar_wait(&sh->chunk_empty[chunk], phase ^ 1);
                    mbar_arrive_expect(&sh->chunk_full[chunk], BLOCK_TILES * bytes);
                }
                __syncwarp();
                if (lane < BLOCK_TILES) {
                    const uint8_t *from = unit + ((i % slots) * CONSUMER_WARPS + i / slots) * bytes;
                    uint8_t *to = ring + (lane * G::RUNS + chunk * runs) * RUN_BYTES;

                    if (a.column_tiles == 1) bulk_load(to, from, bytes, &sh->chunk_full[chunk], policy);
                    else bulk_load(to, from, bytes, &sh->chunk_full[chunk]);
                }
                if (++chunk == chunks) chunk = 0, phase ^= 1;
            }
    }
}

/* One lane. */
template <bool FP8, int N>
__device__ __forceinline__ void produce_boxes(const prefill_mm_args &a, uint8_t *ring, prefill_mm_shared *sh)
{
    using G = geometry<FP8, N>;
    const uint32_t groups = a.slices * a.slice_k / GROUP_K, tiles = a.row_blocks * a.column_tiles;
    uint32_t box = 0, phase = 0;

    chain_wait();
    for (uint32_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const uint32_t first = tile_place(a, tile).column_tile * N;

        for (uint32_t g = 0; g < groups; g++) {
            mbar_wait(&sh->box_empty[box], phase ^ 1);
            mbar_arrive_expect(&sh->box_full[box], G::BOX_BYTES);
            box_load(ring + box * G::BOX_BYTES, &a.x, g * GROUP_K, first, &sh->box_full[box]);
            if (++box == G::BOXES) box = 0, phase ^= 1;
        }
    }
}

/* Where a consumer warp stands in the ring of weights. */
struct feed { uint32_t run, in_chunk, chunk, phase; };

/* The A fragments of the next 64 elements of k. Returns the chunk whose last run this was, or CHUNKS_MAX. */
template <bool FP8, int N>
__device__ __forceinline__ uint32_t load_weights(uint32_t (&a)[4][4], struct feed *f, const uint8_t *own, prefill_mm_shared *sh, uint32_t runs)
{
    using G = geometry<FP8, N>;
    uint32_t finished = CHUNKS_MAX;

#pragma unroll
    for (int i = 0; i < G::GROUP_RUNS; i++) {
        if (f->in_chunk == 0) mbar_wait(&sh->chunk_full[f->chunk], f->phase);
        const uint4 v = ld_shared(own + f->run * RUN_BYTES);

        if (FP8) {
            a[2 * i % 4][0] = e4m3x2_to_bf16x2<0x1404>(v.x), a[2 * i % 4][1] = e4m3x2_to_bf16x2<0x1404>(v.y);
            a[2 * i % 4][2] = e4m3x2_to_bf16x2<0x3424>(v.x), a[2 * i % 4][3] = e4m3x2_to_bf16x2<0x3424>(v.y);
            a[2 * i % 4 + 1][0] = e4m3x2_to_bf16x2<0x1404>(v.z), a[2 * i % 4 + 1][1] = e4m3x2_to_bf16x2<0x1404>(v.w);
            a[2 * i % 4 + 1][2] = e4m3x2_to_bf16x2<0x3424>(v.z), a[2 * i % 4 + 1][3] = e4m3x2_to_bf16x2<0x3424>(v.w);
        } else {
            a[i][0] = v.x, a[i][1] = v.y, a[i][2] = v.z, a[i][3] = v.w;
        }
        if (++f->run == G::RUNS) f->run = 0;
        if (++f->in_chunk == runs) {
            finished = f->chunk;
            f->in_chunk = 0;
            if (++f->chunk * runs == G::RUNS) f->chunk = 0, f->phase ^= 1;
        }
    }
    return finished;
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

template <bool FP8, int N>
__device__ __forceinline__ void consume(const prefill_mm_args &a, uint8_t *boxes, const uint8_t *ring, prefill_mm_shared *sh, uint32_t warp, uint32_t lane)
{
    using G = geometry<FP8, N>;
    const uint32_t groups = a.slices * a.slice_k / GROUP_K, tiles = a.row_blocks * a.column_tiles, runs = chunk_runs(a);
    const uint8_t *own = ring + warp * G::RUNS * RUN_BYTES + lane * 16;
    struct feed feed = { 0, 0, 0, 0 };
    uint32_t box = 0, phase = 0, finished[2], w[2][4][4];

    finished[0] = load_weights<FP8, N>(w[0], &feed, own, sh, runs);
    chain_wait();                                              /* nothing is stored before all readers of `out` are done */
    for (uint32_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const place at = tile_place(a, tile);
        const uint32_t own_tile = at.row_block * BLOCK_TILES + warp;
        const bool live = own_tile < a.tiles, last = tile + gridDim.x >= tiles;
        float d[N / 2], low = 1.0f, high = 1.0f;

        if (FP8 && live) {
            const float *scale = (const float *)(a.w + (uint64_t)own_tile * a.slices * a.unit_bytes);

            low = __ldg(scale + lane / 4), high = __ldg(scale + lane / 4 + 8);
        }
#pragma unroll
        for (int i = 0; i < N / 2; i++) d[i] = 0.0f;
        for (uint32_t pair = 0; pair < groups; pair += 2) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const uint64_t b = box_descriptor(smem_address(boxes + box * G::BOX_BYTES));

                mbar_wait(&sh->box_full[box], phase);
                pin(d);
                pin(w[i]);
                wgmma_fence();
#pragma unroll
                for (int s = 0; s < 4; s++) wgmma<N>::issue(d, w[i][s], b + 2 * s, 1);
                wgmma_commit();
                /* While the tensor cores work: the weights of the next group, of the next tile behind the last one. */
                if (!last || pair + i + 1 < groups) finished[i ^ 1] = load_weights<FP8, N>(w[i ^ 1], &feed, own, sh, runs);
                wgmma_wait<0>();
                pin(d);
                pin(w[i]);
                /* A chunk goes back only now: its loads are over for certain, their registers have been used. */
                if (lane == 0) {
                    mbar_arrive(&sh->box_empty[box]);
                    if (finished[i] < CHUNKS_MAX) mbar_arrive(&sh->chunk_empty[finished[i]]);
                }
                if (++box == G::BOXES) box = 0, phase ^= 1;
            }
        }
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
    uint8_t *boxes = raw + (1024 - smem_address(raw) % 1024) % 1024;       /* the swizzle counts from multiples of 1024 */
    uint8_t *ring = boxes + G::BOXES * G::BOX_BYTES;
    prefill_mm_shared *sh = (prefill_mm_shared *)(ring + G::WEIGHT_BYTES);
    const uint32_t warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32;

    chain_trigger();
    if (threadIdx.x == 0) {
        for (int i = 0; i < G::BOXES; i++) mbar_init(&sh->box_full[i], 1), mbar_init(&sh->box_empty[i], BLOCK_TILES);
        for (int i = 0; i < G::RUNS / 4; i++) mbar_init(&sh->chunk_full[i], 1), mbar_init(&sh->chunk_empty[i], BLOCK_TILES);
        mbar_init_fence();
    }
    __syncthreads();
    if (warp >= CONSUMERS * 4) {
        registers_lower<24>();
        if (warp == CONSUMERS * 4) produce_weights<FP8, N>(a, ring, sh, lane);
        else if (warp == CONSUMERS * 4 + 1 && lane == 0) produce_boxes<FP8, N>(a, boxes, sh);
    } else {
        registers_raise<240>();
        consume<FP8, N>(a, boxes, ring, sh, warp, lane);
    }
}

/* ---- host ---- */

typedef void prefill_mm_fn(const prefill_mm_args);
struct prefill_mm_variant { prefill_mm_fn *fn; uint32_t n, shared_bytes; };

template <bool FP8, int N> static struct prefill_mm_variant variant()
{
    const struct prefill_mm_variant v = { prefill_mm_kernel<FP8, N>, N, geometry<FP8, N>::SHARED_BYTES };

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
    encode_map = (PFN_cuTensorMapEncodeTiled_v12000)fn;
    sm_count = (uint32_t)sms;
    for (int i = 0; i < 2 * VARIANTS; i++) {
        const struct prefill_mm_variant v = pick(i % 2, i / 2);

        if ((rc = launch_prepare((const void *)v.fn, v.shared_bytes))) return rc;
    }
    return 0;
}

/* The variant with the fewest clocks by a plain model: waves of tiles, each as long as the slower of tensor cores and loading. */
static struct prefill_mm_variant choose(const struct packed_matrix *w, uint32_t m)
{
    const bool fp8 = w->format == WEIGHT_FP8;
    const uint32_t row_blocks = (w->rows + BLOCK_TILES * TILE_ROWS - 1) / (BLOCK_TILES * TILE_ROWS);
    struct prefill_mm_variant best = pick(fp8, 0);
    uint64_t least = ~0ull;

    for (int i = 0; i < VARIANTS; i++) {
        const struct prefill_mm_variant v = pick(fp8, i);
        const uint64_t tiles = (uint64_t)row_blocks * ((m + v.n - 1) / v.n), waves = (tiles + sm_count - 1) / sm_count;
        const uint64_t ingest = (BLOCK_TILES * RUN_BYTES / (fp8 ? 2 : 1) + v.n * 32) / INGEST_BYTES_PER_CLOCK;
        const uint64_t clocks = waves * (v.n > ingest ? v.n : ingest);

        if (clocks < least) least = clocks, best = v;
    }
    return best;
}

static int encode(CUtensorMap *map, const __nv_bfloat16 *x, uint32_t m, uint32_t k, uint32_t n)
{
    const cuuint64_t dims[2] = { k, m }, strides[1] = { 2ull * k };
    const cuuint32_t box[2] = { GROUP_K, n }, steps[2] = { 1, 1 };
    const CUresult rc = encode_map(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, (void *)x, dims, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                                   CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);

    return rc == CUDA_SUCCESS ? 0 : -E_RANGE;
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

    if (encode(&a.x, x, m, w->k, v.n)) return -E_RANGE;
    a.w = w->data, a.out = out, a.out_stride = out_stride, a.kind = kind;
    a.m = m, a.tiles = w->rows / TILE_ROWS;
    a.row_blocks = (a.tiles + BLOCK_TILES - 1) / BLOCK_TILES, a.column_tiles = (m + v.n - 1) / v.n;
    a.slices = w->k / w->slice_k, a.slice_k = w->slice_k, a.unit_bytes = packed_unit_bytes(w->format, w->slice_k);
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
