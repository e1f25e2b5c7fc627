/* kernels/cuda/prefill_mm.cu - the product of packed weights with many rows (contract in prefill_mm.h).
 *
 * A block computes tiles of 128 weight rows times N activation rows. Two consumer warpgroups own 64 weight rows each: the A operand of wgmma
 * comes from registers, and a warp's part of it is exactly the fragment that the packed layout holds, so weights go from shared memory
 * through one 16-byte load and, for FP8 and FP4, a conversion into the tensor cores. Scales of 128 x 128 multiply a chain of products of their own. The B operand is the activations. Four producer threads
 * keep a ring of stages full with the tensor memory accelerator; a stage is 64 elements of k: a box [N][64] of
 * activations and 2 (FP8) or 4 (BF16) runs of 512 bytes of each of the 8 tiles. Stages come in the order of k, which is not the memory's.
 * The sum of each k slice (layout.h) is one chain of wgmma from zero, and slices are added in order, for every m: tiling changes nothing in
 * the bits. Many rows: a block does the slices of a tile one after the other, their sum waits in `out`. Few rows (too few tiles for
 * all SMs): one block per slice, a cluster; they add their sums through distributed shared memory.
 * FP8 weights times FP8 activations: the packed bytes are the fragment of wgmma's e4m3 as they lie, nothing is converted, a stage is 128 of k. These tensor cores keep about 14
 * bits of a sum, so that every 128 of k begin at zero and are added in f32; the total stays in registers over all slices, whoever computes it.
 * Tried and left: warpgroups that take turns at the tensor cores (no difference); halves of a slice as parts (o of 145 rows 27 to 21 us, but
 * 3 to 8 % more for 2,048 and 8,192 rows, for the sums that wait); activations multicast in clusters of two with one release of
 * cluster scope per arrival (half the speed; arrivals without it were not tried). */
#include "prefill_mm_block.cuh"
#include "prefill_mm_store.cuh"
#include "shm/error.h"
#include <cuda_runtime.h>

/* The A fragments of a stage: 4 steps of k 16. FP8_BLOCK: without its scales. */
template <uint32_t FORMAT, int N>
__device__ __forceinline__ void load_weights(uint32_t (&a)[4][4], const uint8_t *own, uint32_t lane)
{
    using G = geometry<FORMAT, N>;

#pragma unroll
    for (int i = 0; i < G::RUNS; i++) {
        const uint4 v = ld_shared(own + i * (BLOCK_TILES * G::RUN_STRIDE));

        if constexpr (FORMAT == WEIGHT_FP4) {
            const uint32_t scales = ld_shared_word(own - lane * 16 + FP4_RUN_CODES + lane / 4 * 8 + lane % 4 / 2 * 4);      /* two blocks of 32, rows g and g + 8 */

            fp4_fragments(a, v, scales);
        } else if constexpr (FORMAT == WEIGHT_BF16) {
            a[i][0] = v.x, a[i][1] = v.y, a[i][2] = v.z, a[i][3] = v.w;
        } else {
            e4m3x4_to_bf16x4(v.x, &a[2 * i % 4][0], &a[2 * i % 4][2]);
            e4m3x4_to_bf16x4(v.y, &a[2 * i % 4][1], &a[2 * i % 4][3]);
            e4m3x4_to_bf16x4(v.z, &a[2 * i % 4 + 1][0], &a[2 * i % 4 + 1][2]);
            e4m3x4_to_bf16x4(v.w, &a[2 * i % 4 + 1][1], &a[2 * i % 4 + 1][3]);
        }
    }
}

/* The A fragments of a stage of FP8_BOTH: 4 steps of k 32, as they lie. */
template <int N>
__device__ __forceinline__ void load_codes(uint32_t (&a)[4][4], const uint8_t *own)
{
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint4 v = ld_shared(own + i * (BLOCK_TILES * geometry<FP8_BOTH, N>::RUN_STRIDE));

        a[i][0] = v.x, a[i][1] = v.y, a[i][2] = v.z, a[i][3] = v.w;
    }
}

/* Rows g take the first scale, rows g + 8 the second. */
template <int N> __device__ __forceinline__ void add_scaled(float (&total)[N / 2], const float (&d)[N / 2], float low, float high)
{
#pragma unroll
    for (int i = 0; i < N / 2; i++) total[i] = __fmaf_rn(d[i], i % 4 < 2 ? low : high, total[i]);
}
template <int N> __device__ __forceinline__ void add_scaled(float (&)[1], const float (&)[N / 2], float, float) {}

/* Where a slice's sums are: FP8_BLOCK keeps them apart from the chain in hand. */
template <int N> __device__ __forceinline__ const float (&sums_of(const float (&)[N / 2], const float (&total)[N / 2]))[N / 2] { return total; }
template <int N> __device__ __forceinline__ const float (&sums_of(const float (&d)[N / 2], const float (&)[1]))[N / 2] { return d; }

template <uint32_t FORMAT, int N>
__device__ __forceinline__ void consume(const prefill_mm_args &a, uint8_t *ring, prefill_mm_shared *sh, uint32_t warp, uint32_t lane)
{
    using G = geometry<FORMAT, N>;
    const uint32_t own = G::BOX_BYTES + warp * G::RUN_STRIDE + lane * 16, tiles = a.row_blocks * a.column_tiles;
    constexpr bool BLOCK = FORMAT == WEIGHT_FP8_BLOCK;
    uint32_t stage = 0, phase = 0, behind = 0, w[2][4][4];     /* behind: the oldest stage not given back */

    mbar_wait(&sh->full[0], 0);
    load_weights<FORMAT, N>(w[0], ring + own, lane);
    chain_wait();                                              /* nothing is stored before all readers of `out` are done */
    FOR_TILES(a, tile) {
        const place at = tile_place(a, tile);
        const uint32_t own_tile = at.row_block * BLOCK_TILES + warp;
        const bool live = own_tile < a.tiles;
        float low = 1.0f, high = 1.0f;

        if (G::LATE && live) low = row_factor<FORMAT>(a, own_tile, lane / 4), high = row_factor<FORMAT>(a, own_tile, lane / 4 + 8);
        FOR_SLICES(a, slice) {
            const bool last = a.split || (tile + gridDim.x >= tiles && slice + 1 == a.slices);
            const float *scale = (const float *)(a.scales + (live ? own_tile : 0) * a.tile_bytes + slice * (a.tile_bytes / a.slices));      /* FP8_BLOCK */
            float d[N / 2], total[BLOCK ? N / 2 : 1];

#pragma unroll
            for (int i = 0; i < N / 2; i++) d[i] = 0.0f;
#pragma unroll
            for (int i = 0; BLOCK && i < N / 2; i++) total[i] = 0.0f;
            pin(d);
            for (uint32_t pair = 0; pair < a.stages; pair += 2) {
                const float block_low = BLOCK ? __ldg(scale + pair / 2) : 1.0f, block_high = BLOCK ? __ldg(scale + BLOCK_SCALES_MAX + pair / 2) : 1.0f;
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const uint64_t b = box_descriptor(smem_address(ring + stage * G::STAGE_BYTES));

                    pin(w[i]);
                    wgmma_fence();
#pragma unroll
                    for (int s = 0; s < 4; s++) wgmma<N>::issue(d, w[i][s], b + 2 * s, !BLOCK || i + s > 0);
                    wgmma_commit();
                    if (++stage == G::STAGES) stage = 0, phase ^= 1;
                    /* The stage before this one is through: its registers are free and it goes back. Its loads are over for certain. */
                    wgmma_wait<1>();
                    pin(w[i ^ 1]);
                    if (pair + i > 0) {
                        if (lane == 0) mbar_arrive(&sh->empty[behind]);
                        if (++behind == G::STAGES) behind = 0;
                    }
                    /* While the tensor cores work: the weights of the next stage, of the next slice or tile behind the last one. */
                    if (!last || pair + i + 1 < a.stages) {
                        mbar_wait(&sh->full[stage], phase);
                        load_weights<FORMAT, N>(w[i ^ 1], ring + stage * G::STAGE_BYTES + own, lane);
                    }
                }
                if (BLOCK) {                                   /* these 128 of k are complete: a chain of their own, which starts at zero */
                    wgmma_wait<0>();
                    pin(d);
                    add_scaled<N>(total, d, block_low, block_high);
                }
            }
            wgmma_wait<0>();
            pin(d);
            if (lane == 0) mbar_arrive(&sh->empty[behind]);
            if (++behind == G::STAGES) behind = 0;
            if (a.split) keep_sums<N>(sums_of<N>(d, total), (float *)ring, warp, lane);
            else if (live) store<N>(a, sums_of<N>(d, total), low, high, own_tile, at.column_tile * N, slice, lane);
        }
    }
}

/* FP8 times FP8: 128 of k are four instructions and then an addition in f32, beside which the other warpgroup has the tensor cores. */
template <int N>
__device__ __forceinline__ void consume_both(const prefill_mm_args &a, uint8_t *ring, prefill_mm_shared *sh, uint32_t warp, uint32_t lane)
{
    using G = geometry<FP8_BOTH, N>;
    const uint32_t own = G::BOX_BYTES + warp * G::RUN_STRIDE + lane * 16, tiles = a.row_blocks * a.column_tiles, stages = a.stages * a.slices;
    uint32_t stage = 0, phase = 0, w[2][4][4];

    mbar_wait(&sh->full[0], 0);
    load_codes<N>(w[0], ring + own);
    chain_wait();
    for (uint32_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
        const place at = tile_place(a, tile);
        const uint32_t own_tile = at.row_block * BLOCK_TILES + warp, first = at.column_tile * N;
        const bool live = own_tile < a.tiles, last = tile + gridDim.x >= tiles;
        const column_scales scales = column_scales_load<N>(a, first);
        float d[N / 2], total[N / 2], low = 1.0f, high = 1.0f;

        if (live) low = row_factor<FP8_BOTH>(a, own_tile, lane / 4), high = row_factor<FP8_BOTH>(a, own_tile, lane / 4 + 8);

#pragma unroll
        for (int i = 0; i < N / 2; i++) d[i] = total[i] = 0.0f;
        pin(d);
        for (uint32_t pair = 0; pair < stages; pair += 2) {
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const uint64_t b = box_descriptor(smem_address(ring + stage * G::STAGE_BYTES));
                const uint32_t here = stage;

                pin(w[i]);
                wgmma_fence();
#pragma unroll
                for (int s = 0; s < 4; s++) wgmma_e4m3<N>::issue(d, w[i][s], b + 2 * s, s > 0);
                wgmma_commit();
                if (++stage == G::STAGES) stage = 0, phase ^= 1;
                if (!last || pair + i + 1 < stages) {          /* meanwhile the weights of the next stage, of the next tile behind the last one */
                    mbar_wait(&sh->full[stage], phase);
                    load_codes<N>(w[i ^ 1], ring + stage * G::STAGE_BYTES + own);
                }
                wgmma_wait<0>();
                pin(d);
                pin(w[i]);
                if (lane == 0) mbar_arrive(&sh->empty[here]);  /* its loads are over for certain: they were multiplied */
#pragma unroll
                for (int j = 0; j < N / 2; j++) total[j] += d[j];
            }
        }
        scale_columns<N>(total, scales, sh, lane);
        if (!live) continue;
        if (a.kind == PREFILL_GEGLU) store_geglu<N>(a, total, low, high, own_tile, first, lane);
        else store_f32<N, false>(a, total, low, high, own_tile, first, lane);
    }
}

template <uint32_t FORMAT, int N>
__global__ void __launch_bounds__(THREADS, 1) prefill_mm_kernel(const __grid_constant__ prefill_mm_args a)
{
    using G = geometry<FORMAT, N>;
    extern __shared__ uint8_t raw[];
    uint8_t *ring = raw + (1024 - smem_address(raw) % 1024) % 1024;        /* the swizzle counts from multiples of 1024 */
    prefill_mm_shared *sh = (prefill_mm_shared *)(ring + G::STAGES * G::STAGE_BYTES);
    const uint32_t warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32;

    chain_trigger();
    if (threadIdx.x == 0) {
        for (int i = 0; i < G::STAGES; i++) mbar_init(&sh->full[i], 1), mbar_init(&sh->empty[i], BLOCK_TILES);
        mbar_init_fence();
    }
    fill_runs<FORMAT>(a, sh);
    __syncthreads();
    if (warp >= CONSUMERS * 4) {
        registers_lower<40>();
        if (lane == 0) produce<FORMAT, N>(a, ring, sh, warp - CONSUMERS * 4);
        __syncwarp();
    } else {
        registers_raise<232>();
        if constexpr (FORMAT == FP8_BOTH) consume_both<N>(a, ring, sh, warp, lane);
        else consume<FORMAT, N>(a, ring, sh, warp, lane);
    }
    if (FORMAT == FP8_BOTH || !a.split) return;
    cluster_sync();
    if (warp < CONSUMERS * 4) add_slices<FORMAT, N>(a, (const float *)ring);
    __syncwarp();
    cluster_sync_relaxed();                                    /* a block's shared memory stays until its neighbours have read it */
}

/* ---- host ---- */

typedef void prefill_mm_fn(const prefill_mm_args);
struct prefill_mm_variant { prefill_mm_fn *fn; uint32_t n, shared_bytes; };

template <uint32_t FORMAT, int N> static struct prefill_mm_variant variant()
{
    const struct prefill_mm_variant v = { prefill_mm_kernel<FORMAT, N>, N, geometry<FORMAT, N>::SHARED_BYTES };

    static_assert(geometry<FORMAT, N>::STAGES < 3840 / stage_k(FORMAT), "the ring must be full before the first slice ends");
    static_assert(geometry<FORMAT, N>::STAGES >= PRODUCERS && 3840 / stage_k(FORMAT) % 2 == 0 && 4096 / stage_k(FORMAT) % 2 == 0, "producers take turns, consumers two stages");
    static_assert(N * SUM_PITCH * 4 <= geometry<FORMAT, N>::STAGES * geometry<FORMAT, N>::STAGE_BYTES, "the sums lie where the ring was");
    return v;
}

#define VARIANTS 6
#define SLICES_SPLIT_MAX 8            /* blocks of a cluster */

const uint32_t prefill_mm_columns[VARIANTS + 1] = { 16, 48, 80, 128, 160, 256, 0 };

template <uint32_t FORMAT> static struct prefill_mm_variant pick_columns(int i)
{
    const struct prefill_mm_variant none = {};

    switch (i) {
    case 0: return variant<FORMAT, 16>();
    case 1: return variant<FORMAT, 48>();
    case 2: return variant<FORMAT, 80>();
    case 3: return variant<FORMAT, 128>();
    default: break;
    }
    if constexpr (FORMAT == WEIGHT_FP8_BLOCK || FORMAT == FP8_BOTH) return i == 4 ? variant<FORMAT, TWICE_N_MAX>() : none;
    else return i == 4 ? variant<FORMAT, 160>() : variant<FORMAT, 256>();
}

static const uint32_t formats[] = { WEIGHT_FP8, WEIGHT_BF16, WEIGHT_FP8_BLOCK, WEIGHT_FP4, FP8_BOTH };

/* fn NULL: there is no such kernel. */
static struct prefill_mm_variant pick(uint32_t format, int i)
{
    const struct prefill_mm_variant none = {};

    switch (format) {
    case WEIGHT_FP8: return pick_columns<WEIGHT_FP8>(i);
    case WEIGHT_BF16: return pick_columns<WEIGHT_BF16>(i);
    case WEIGHT_FP8_BLOCK: return pick_columns<WEIGHT_FP8_BLOCK>(i);
    case WEIGHT_FP4: return pick_columns<WEIGHT_FP4>(i);
    case FP8_BOTH: return pick_columns<FP8_BOTH>(i);
    default: return none;
    }
}

static uint32_t sm_count, cluster_max;                         /* cluster_max: blocks of the largest cluster that this process can run */
static PFN_cuTensorMapEncodeTiled_v12000 encode_map;

/* A share of the GPU (MPS) may leave no place for a cluster: then no slices are split. */
static void find_cluster_max(const struct prefill_mm_variant *v)
{
    cudaLaunchAttribute attribute[1];
    cudaLaunchConfig_t config = {};

    config.blockDim = dim3(THREADS), config.dynamicSmemBytes = v->shared_bytes, config.attrs = attribute, config.numAttrs = 1;
    attribute[0].id = cudaLaunchAttributeClusterDimension;
    attribute[0].val.clusterDim.y = attribute[0].val.clusterDim.z = 1;
    cluster_max = 1;
    for (uint32_t blocks = 2; blocks <= SLICES_SPLIT_MAX; blocks++) {
        int count = 0;

        config.gridDim = dim3(blocks), attribute[0].val.clusterDim.x = blocks;
        if (cudaOccupancyMaxActiveClusters(&count, (const void *)v->fn, &config) == cudaSuccess && count > 0) cluster_max = blocks;
    }
    cudaGetLastError();                                        /* a size that cannot be is an answer, not a failure */
}

int prefill_mm_init(void)
{
    cudaDriverEntryPointQueryResult found;
    void *fn = NULL;
    int device, sms, rc;

    if ((rc = launch_check(cudaGetDevice(&device), "device"))) return rc;
    if ((rc = launch_check(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device), "SM count"))) return rc;
    if ((rc = launch_check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &fn, 12000, cudaEnableDefault, &found), "tensor maps"))) return rc;
    if (found != cudaDriverEntryPointSuccess || fn == NULL) return -E_UNSUPPORTED;
    for (uint32_t format : formats)
        for (int i = 0; i < VARIANTS; i++) {
            const struct prefill_mm_variant v = pick(format, i);

            if (v.fn && (rc = launch_prepare((const void *)v.fn, v.shared_bytes))) return rc;
        }
    sm_count = (uint32_t)sms;
    const struct prefill_mm_variant widest = pick(WEIGHT_FP8, VARIANTS - 1);

    find_cluster_max(&widest);
    encode_map = (PFN_cuTensorMapEncodeTiled_v12000)fn;
    return 0;
}

struct plan { struct prefill_mm_variant v; bool split; };

/* A plain model of the clocks that a way takes, fitted to measurements: a stage takes 4 N clocks of the tensor cores and 300 that nothing hides; a slice that waits in `out` costs
 * 60 N, adding slices across a cluster 5000 and 30 N. FP8 on both sides: the fewer SMs take part, the faster the L2 answers each. */
static uint64_t clocks_of(const struct plan *p, uint32_t format, uint64_t tiles, uint32_t slices, uint32_t slice_k)
{
    const uint64_t waves = (tiles + sm_count - 1) / sm_count, n = p->v.n, stages = slice_k / stage_k(format);

    if (format == FP8_BOTH) return waves * (slices * stages * ((tiles < sm_count ? tiles : sm_count) * 13 / 5 + n * 21 / 5) + 2000 + 15 * n);
    if (p->split) return stages * (300 + 4 * n) + 5000 + 30 * n;
    return waves * (slices * stages * (300 + 4 * n) + (slices - 1) * 60 * n);
}

/* The way with the fewest clocks. */
static struct plan choose(const struct packed_matrix *w, uint32_t format, uint32_t m)
{
    const uint32_t row_blocks = (w->rows + BLOCK_TILES * TILE_ROWS - 1) / (BLOCK_TILES * TILE_ROWS), slices = w->k / w->slice_k;
    struct plan best = { pick(format, 0), false };
    uint64_t least = ~0ull;

    for (int i = 0; i < 2 * VARIANTS; i++) {
        const struct plan p = { pick(format, i / 2), i % 2 == 1 };

        if (p.v.fn == NULL) continue;
        const uint64_t tiles = (uint64_t)row_blocks * ((m + p.v.n - 1) / p.v.n), clocks = clocks_of(&p, format, tiles, slices, w->slice_k);

        if (p.split && (format == FP8_BOTH || slices < 2 || slices > cluster_max || tiles * slices > sm_count * 31 / 32)) continue;
        if (clocks < least) least = clocks, best = p;
    }
    return best;
}

/* Boxes of n rows of 128 bytes, swizzled. */
static CUresult encode_rows(CUtensorMap *map, uint32_t format, const void *x, uint32_t m, uint32_t k, uint32_t n)
{
    const uint32_t element = format == FP8_BOTH ? 1 : 2;
    const cuuint64_t dims[2] = { k, m }, strides[1] = { (cuuint64_t)element * k };
    const cuuint32_t box[2] = { SWIZZLE_BYTES / element, n }, steps[2] = { 1, 1 };

    return encode_map(map, element == 1 ? CU_TENSOR_MAP_DATA_TYPE_UINT8 : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 2, (void *)x, dims, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

/* The weights as words [tile][slice][run][64]; a box is one run of each of a block's tiles. Tiles past the end are zeros. */
static CUresult encode_weights(CUtensorMap *map, const struct packed_matrix *w)
{
    const uint32_t run = w->format == WEIGHT_FP4 ? FP4_RUN_BYTES : RUN_BYTES;
    const uint64_t header = packed_header_bytes(w->format), unit = packed_unit_bytes(w->format, w->slice_k);
    const uint64_t slices = w->k / w->slice_k;
    const cuuint64_t dims[4] = { run / 8, (unit - header) / run, slices, w->rows / TILE_ROWS }, strides[3] = { run, unit, slices * unit };
    const cuuint32_t box[4] = { run / 8, 1, 1, BLOCK_TILES }, steps[4] = { 1, 1, 1, 1 };

    return encode_map(map, CU_TENSOR_MAP_DATA_TYPE_INT64, 4, (void *)(w->data + header), dims, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                      CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}

static int launch_plan(const struct plan *p, const prefill_mm_args *a, cudaStream_t stream)
{
    const uint32_t tiles = a->row_blocks * a->column_tiles;
    cudaLaunchAttribute attributes[2];
    cudaLaunchConfig_t config = {};
    void *params[] = { (void *)a };

    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
    attributes[1].id = cudaLaunchAttributeClusterDimension;
    attributes[1].val.clusterDim.x = a->slices, attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
    config.gridDim = dim3(p->split ? tiles * a->slices : tiles < sm_count ? tiles : sm_count);
    config.blockDim = dim3(THREADS), config.dynamicSmemBytes = p->v.shared_bytes, config.stream = stream;
    config.attrs = attributes, config.numAttrs = p->split ? 2 : 1;
    return launch_check(cudaLaunchKernelExC(&config, (const void *)p->v.fn, params), "prefill product");
}

/* format: of the kernel. */
static int launch_any(const struct packed_matrix *w, uint32_t format, const void *x, const float *x_scale, uint32_t m, void *out, enum prefill_out kind,
                      uint64_t out_stride, uint32_t columns, cudaStream_t stream)
{
    const uint32_t width = columns & ~PREFILL_MM_SPLIT;
    struct prefill_mm_args a = {};
    int i = 0;

    if (encode_map == NULL) return -E_UNSUPPORTED;
    if (m < 1 || w->rows == 0 || w->rows % (kind == PREFILL_GEGLU ? 64 : TILE_ROWS)) return -E_RANGE;
    if (out_stride < (kind == PREFILL_GEGLU ? w->rows / 2 : w->rows)) return -E_RANGE;
    if ((w->slice_k != 3840 && w->slice_k != 4096) || w->k == 0 || w->k % w->slice_k) return -E_RANGE;
    if (kind == PREFILL_GEGLU && w->k != w->slice_k) return -E_RANGE;
    if ((columns & PREFILL_MM_SPLIT) && (format == FP8_BOTH || w->k == w->slice_k || w->k / w->slice_k > cluster_max)) return -E_RANGE;
    while (i < VARIANTS && prefill_mm_columns[i] != width) i++;
    if (columns && i == VARIANTS) return -E_RANGE;
    const struct plan forced = { pick(format, i), (columns & PREFILL_MM_SPLIT) != 0 }, p = columns ? forced : choose(w, format, m);

    if (p.v.fn == NULL) return -E_UNSUPPORTED;
    if (encode_rows(&a.x, format, x, m, w->k, p.v.n) != CUDA_SUCCESS || encode_weights(&a.w, w) != CUDA_SUCCESS) return -E_RANGE;
    a.slices = w->k / w->slice_k, a.slice_k = w->slice_k, a.stages = w->slice_k / stage_k(format);
    a.split = p.split, a.scales = w->data, a.tile_bytes = (uint64_t)a.slices * packed_unit_bytes(w->format, w->slice_k), a.x_scale = x_scale;
    a.out = out, a.out_stride = out_stride, a.kind = kind, a.m = m, a.tiles = w->rows / TILE_ROWS;
    a.row_blocks = (a.tiles + BLOCK_TILES - 1) / BLOCK_TILES, a.column_tiles = (m + p.v.n - 1) / p.v.n;
    return launch_plan(&p, &a, stream);
}

int prefill_mm_launch_columns(const struct packed_matrix *w, const __nv_bfloat16 *x, uint32_t m, void *out, enum prefill_out kind,
                              uint64_t out_stride, uint32_t columns, cudaStream_t stream)
{
    return launch_any(w, w->format, x, NULL, m, out, kind, out_stride, columns, stream);
}

int prefill_mm_launch(const struct packed_matrix *w, const __nv_bfloat16 *x, uint32_t m, void *out, enum prefill_out kind,
                      uint64_t out_stride, cudaStream_t stream)
{
    return launch_any(w, w->format, x, NULL, m, out, kind, out_stride, 0, stream);
}

int prefill_mm_launch_codes(const struct packed_matrix *w, const uint8_t *codes, const float *x_scale, uint32_t m, void *out, enum prefill_out kind,
                            uint64_t out_stride, uint32_t columns, cudaStream_t stream)
{
    if (w->format != WEIGHT_FP8) return -E_UNSUPPORTED;
    return launch_any(w, FP8_BOTH, codes, x_scale, m, out, kind, out_stride, columns, stream);
}

uint32_t prefill_mm_choice(const struct packed_matrix *w, uint32_t m)
{
    const struct plan p = choose(w, w->format, m);

    return p.v.n | (p.split ? PREFILL_MM_SPLIT : 0);
}
