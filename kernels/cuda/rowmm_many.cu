/* kernels/cuda/rowmm_many.cu - the product for 33 to 128 rows (contract in rowmm_many.h).
 *
 * A block computes tiles of 128 or 64 weight rows times 128 or 64 activation rows. Two consumer warpgroups share a tile, by weight rows or by activation rows: wgmma reads the
 * weights from registers, as the packed layout has them, and the activations from shared memory. One producer lane streams both into a ring; a stage is what a slot
 * holds of one range of k: a run of each weight tile, and the activations it meets, which lie in one piece (rowmm_ready.h). Weights of the first stages
 * are fetched before the previous kernel has ended.
 * Each range begins two chains at zero, and their sum is added to the tile's total in registers: three sums at once are what limits a
 * warpgroup to 64 x 128. While one warpgroup adds, the other has the tensor cores. */
#include "rowmm_many.h"
#include "rowmm_store.cuh"
#include "launch.h"
#include "shm/error.h"
#include "wide_wgmma.cuh"
#include <cuda_runtime.h>

#define RANGES 8                      /* of k in a slice: the warps of rowmm.cu */
#define GROUPS 2                      /* consumer warpgroups */
#define GROUP_TILES 4                 /* weight tiles of a warpgroup: one a warp */
#define THREADS ((GROUPS + 1) * GROUP_TILES * 32)
#define STAGES_MAX 12
#define STORED_TOGETHER 4             /* tiles of 8 activation rows */
#define SLOT_BYTES_MAX 20480u         /* what tuning counts in */

/* N: activation rows of a warpgroup; M_GROUPS: warpgroups side by side along the weight rows, the others are along the activation rows. */
template <bool FP8_, int SLICE, int N_, int M_GROUPS> struct many {
    static constexpr bool FP8 = FP8_;
    static constexpr int N = N_, N_TILES = N / 8;
    static constexpr int LOADS = SLICE == 3840 ? 5 : 4;                     /* 16-byte loads per lane, range and slot */
    static constexpr int SLOTS = SLICE * (FP8 ? 1 : 2) * TILE_ROWS / (RANGES * LOADS * 512);
    static constexpr int TILES = GROUP_TILES * M_GROUPS, COLUMNS = N * GROUPS / M_GROUPS;
    static constexpr uint32_t RUN_BYTES = LOADS * 512, SLOT_BYTES = RANGES * RUN_BYTES;
    static constexpr uint32_t HEADER_BYTES = FP8 ? UNIT_HEADER_BYTES : 0;
    static constexpr uint32_t UNIT_BYTES = SLOTS * SLOT_BYTES + HEADER_BYTES;
    static constexpr uint32_t COLUMN_BYTES = COLUMNS * 16;                  /* 8 of k of all rows */
    static constexpr uint32_t LOAD_BYTES = (FP8 ? 4 : 2) * COLUMN_BYTES;    /* activations that a load of weights meets */
    static constexpr uint32_t W_BYTES = TILES * RUN_BYTES, X_BYTES = LOADS * LOAD_BYTES, STAGE_BYTES = X_BYTES + W_BYTES;
    static constexpr uint32_t SLICE_STAGES = RANGES * SLOTS;
    static constexpr int SLOTS_AT_ONCE = !FP8 && LOADS % 2 ? 2 : 1;         /* of BF16 loads, every other one goes to the same chain */
    static_assert(STAGE_BYTES % 128 == 0 && SLICE_STAGES > STAGES_MAX, "the ring is full before the first slice ends");
};

struct many_args { struct rowmm_args base; const uint8_t *image; uint32_t tiles, items, column_tiles; };      /* tiles: of 16 weight rows */

struct many_shared { uint64_t full[STAGES_MAX], empty[STAGES_MAX]; };

struct many_item { uint32_t row_block, slice, column_tile; };

/* Neighbours share weights. */
__device__ __forceinline__ many_item item_of(const many_args &a, uint32_t i)
{
    const uint32_t rest = i / a.column_tiles;

    return { tile_of(a.base.slices, rest), slice_of(a.base.slices, rest), i % a.column_tiles };
}

/* ---- filling the ring ---- */

__device__ __forceinline__ uint64_t policy_evict_normal()
{
    uint64_t policy;

    asm volatile("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}

template <typename W> __device__ __forceinline__ void ask_weights(const many_args &a, uint8_t *to, uint64_t *bar, const many_item &at, uint32_t stage, uint64_t policy)
{
    const uint64_t tile_bytes = (uint64_t)a.base.slices * W::UNIT_BYTES;
    const uint8_t *from = a.base.w + at.slice * W::UNIT_BYTES + W::HEADER_BYTES + stage % W::SLOTS * W::SLOT_BYTES + stage / W::SLOTS * W::RUN_BYTES;

#pragma unroll
    for (uint32_t i = 0; i < W::TILES; i++) {
        const uint32_t tile = min(at.row_block * W::TILES + i, a.tiles - 1);      /* past the end: any weights, nobody stores what they give */

        bulk_load(to + W::X_BYTES + i * W::RUN_BYTES, from + tile * tile_bytes, W::RUN_BYTES, bar, policy);
    }
}

template <typename W> __device__ __forceinline__ void ask_rows(const many_args &a, uint8_t *to, uint64_t *bar, const many_item &at, uint32_t stage, uint64_t policy)
{
    const uint64_t part = (uint64_t)at.column_tile * a.base.slices + at.slice;

    bulk_load(to, a.image + (part * W::SLICE_STAGES + stage) * W::X_BYTES, W::X_BYTES, bar, policy);
}

template <typename W> __device__ __forceinline__ void many_produce(const many_args &a, uint8_t *ring, many_shared *sh)
{
    const uint64_t normal = policy_evict_normal(), once = a.column_tiles == 1 ? policy_evict_first() : normal;
    uint32_t place = 0, phase = 0;
    bool early = true;                /* the first round of the ring: the rows are not there yet */

    for (uint32_t i = blockIdx.x; i < a.items; i += gridDim.x) {
        const many_item at = item_of(a, i);

#pragma unroll 1
        for (uint32_t stage = 0; stage < W::SLICE_STAGES; stage++) {
            uint8_t *to = ring + place * W::STAGE_BYTES;

            mbar_wait(&sh->empty[place], phase ^ 1);
            mbar_arrive_expect(&sh->full[place], W::STAGE_BYTES);
            ask_weights<W>(a, to, &sh->full[place], at, stage, once);
            if (!early) ask_rows<W>(a, to, &sh->full[place], at, stage, normal);
            if (++place < a.base.ring_slots) continue;
            place = 0, phase ^= 1;
            if (!early) continue;
            chain_wait();
            for (uint32_t j = 0; j < a.base.ring_slots; j++) ask_rows<W>(a, ring + j * W::STAGE_BYTES, &sh->full[j], at, j, normal);
            early = false;
        }
    }
}

/* ---- consumers ---- */

/* The A fragments of one 16-byte load: two of FP8, one of BF16. */
template <bool FP8> __device__ __forceinline__ void many_fragments(uint32_t (&f)[8], uint4 w)
{
    if (FP8) {
        f[0] = e4m3x2_to_f16x2((uint16_t)w.x), f[1] = e4m3x2_to_f16x2((uint16_t)w.y), f[2] = e4m3x2_high_to_f16x2(w.x), f[3] = e4m3x2_high_to_f16x2(w.y);
        f[4] = e4m3x2_to_f16x2((uint16_t)w.z), f[5] = e4m3x2_to_f16x2((uint16_t)w.w), f[6] = e4m3x2_high_to_f16x2(w.z), f[7] = e4m3x2_high_to_f16x2(w.w);
    } else {
        f[0] = w.x, f[1] = w.y, f[2] = w.z, f[3] = w.w;
    }
}

/* Load number `load` of a range: rows are its activations. */
template <typename W> __device__ __forceinline__ void many_multiply(float (&sum)[2][W::N / 2], const uint32_t (&f)[8], uint64_t rows, int chain, uint32_t add)
{
    wide_fence();
    if (W::FP8) {
        wide_mma<true>(sum[0], f, rows, add);
        wide_mma<true>(sum[1], f + 4, rows + (2 * W::COLUMN_BYTES >> 4), add);      /* the address is the low end of a descriptor */
    } else {
        wide_mma<false>(sum[chain], f, rows, add);
    }
    wide_commit();
}

/* One range into the total. While the tensor cores work on one load, the next one is converted. `own`: of our rows and weights in a stage. */
template <typename W>
__device__ __forceinline__ void many_range(float (&total)[W::N / 2], float (&sum)[2][W::N / 2], const many_args &a, uint8_t *ring, many_shared *sh, uint32_t &place, uint32_t &phase,
                                           uint32_t own_rows, uint32_t own_weights, uint32_t lane)
{
    uint32_t f[2][8], before = 0;     /* before: the stage that goes back next */

#pragma unroll 1
    for (int first = 0; first < W::SLOTS; first += W::SLOTS_AT_ONCE)
#pragma unroll
        for (int slot = 0; slot < W::SLOTS_AT_ONCE; slot++) {
            const uint8_t *stage = ring + place * W::STAGE_BYTES, *from = stage + own_weights;
            const uint64_t rows = wide_descriptor(smem_address(stage) + own_rows, W::COLUMN_BYTES);

            mbar_wait(&sh->full[place], phase);
            uint4 next = ld_shared(from);
#pragma unroll
            for (int i = 0; i < W::LOADS; i++) {
                const int load = slot * W::LOADS + i;
                const uint4 w = next;

                if (i + 1 < W::LOADS) next = ld_shared(from + (i + 1) * 512);
                /* The products of the load before the last are through: their registers are free. Behind an odd number of loads they are those of the last one. */
                if (load == 0 && W::LOADS * W::SLOTS_AT_ONCE % 2) wide_wait<0>();
                else wide_wait<1>();
                wide_pin(f[load % 2]);
                if (first + slot > 0 && i == 1 && lane == 0) mbar_arrive(&sh->empty[before]);      /* all of that stage has been multiplied */
                many_fragments<W::FP8>(f[load % 2], w);
                wide_pin(f[load % 2]);
                many_multiply<W>(sum, f[load % 2], rows + (i * W::LOAD_BYTES >> 4), load % 2, first > 0 || load > (W::FP8 ? 0 : 1));
            }
            before = place;
            if (++place == a.base.ring_slots) place = 0, phase ^= 1;
        }
    wide_wait<0>();
    wide_pin(sum[0]), wide_pin(sum[1]);
    if (lane == 0) mbar_arrive(&sh->empty[before]);
#pragma unroll
    for (int i = 0; i < W::N / 2; i++) total[i] = __fadd_rn(total[i], __fadd_rn(sum[0][i], sum[1][i]));
}

template <typename W> __device__ __forceinline__ void many_consume(const many_args &a, uint8_t *ring, many_shared *sh, uint32_t warp, uint32_t lane)
{
    constexpr uint32_t M_GROUPS = W::TILES / GROUP_TILES;
    const uint32_t group = warp / GROUP_TILES, own_tile = group % M_GROUPS * GROUP_TILES + warp % GROUP_TILES, own_row = group / M_GROUPS * W::N;
    const row_powers power = row_powers_of(a.base);
    uint32_t place = 0, phase = 0;

    chain_wait();                     /* nothing is stored before all readers of `out` are done */
    if (a.base.late_trigger) chain_trigger();
    if (threadIdx.x == 0) trace_mark(a.base.trace, TRACE_PAST_WAIT);
    for (uint32_t i = blockIdx.x; i < a.items; i += gridDim.x) {
        const many_item at = item_of(a, i);
        const uint32_t tile = at.row_block * W::TILES + own_tile, m = at.column_tile * W::COLUMNS + own_row + lane % 4 * 2;
        const bool live = tile < a.tiles;
        float total[W::N / 2], sum[2][W::N / 2], low = 1.0f, high = 1.0f;

        if (W::FP8 && live) {
            const float *scales = (const float *)(a.base.w + ((uint64_t)tile * a.base.slices + at.slice) * W::UNIT_BYTES) + lane / 4;

            low = __ldg(scales), high = __ldg(scales + 8);
        }
#pragma unroll
        for (int j = 0; j < W::N / 2; j++) total[j] = sum[0][j] = sum[1][j] = 0.0f;
        wide_pin(sum[0]), wide_pin(sum[1]);
#pragma unroll 1
        for (uint32_t range = 0; range < RANGES; range++)
            many_range<W>(total, sum, a, ring, sh, place, phase, own_row * 16, W::X_BYTES + own_tile * W::RUN_BYTES + lane * 16, lane);
        if (!live) continue;
        /* A loop: written out for all columns, the stores are most of the code that a launch fetches. */
#pragma unroll 1
        for (int first = 0; first < W::N_TILES; first += STORED_TOGETHER) {
#pragma unroll
            for (int n = 0; n < STORED_TOGETHER; n++) {
                const uint32_t row = m + (first + n) * 8;

                store_tile(a.base, make_float4(total[n * 4] * low, total[n * 4 + 1] * low, total[n * 4 + 2] * high, total[n * 4 + 3] * high), tile, at.slice, row, lane / 4,
                           row_scales(a.base, row, power), power.out);
            }
#pragma unroll
            for (int j = 0; j + 4 * STORED_TOGETHER < W::N / 2; j++) total[j] = total[j + 4 * STORED_TOGETHER];
        }
    }
    if (threadIdx.x == 0) trace_mark(a.base.trace, TRACE_END);
}

template <typename W> __global__ void __launch_bounds__(THREADS, 1) many_kernel(const __grid_constant__ many_args a)
{
    extern __shared__ __align__(128) uint8_t ring[];
    many_shared *sh = (many_shared *)(ring + a.base.ring_slots * W::STAGE_BYTES);
    const uint32_t warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32;

    if (!a.base.late_trigger) chain_trigger();
    if (threadIdx.x == 0) {
        trace_mark(a.base.trace, TRACE_START);
#pragma unroll 1
        for (uint32_t i = 0; i < a.base.ring_slots; i++) mbar_init(&sh->full[i], 1), mbar_init(&sh->empty[i], GROUPS * GROUP_TILES);
        mbar_init_fence();
    }
    __syncthreads();
    if (warp >= GROUPS * GROUP_TILES) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 24;");
        if (threadIdx.x == GROUPS * GROUP_TILES * 32) many_produce<W>(a, ring, sh);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 240;");
        many_consume<W>(a, ring, sh, warp, lane);
    }
}

/* ---- launching ---- */

typedef void many_fn(const many_args);

struct many_variant { many_fn *fn; uint32_t stage_bytes, weight_rows, columns; };

template <bool FP8, int SLICE, int N, int M_GROUPS> static struct many_variant variant()
{
    using W = many<FP8, SLICE, N, M_GROUPS>;
    const struct many_variant v = { many_kernel<W>, W::STAGE_BYTES, W::TILES * TILE_ROWS, W::COLUMNS };

    return v;
}

#define SHAPES 3                      /* 128 x 128, 128 x 64, 64 x 64 */

const uint32_t rowmm_many_tiles = SHAPES;

template <bool FP8, int SLICE> static struct many_variant variant_of(uint32_t shape)
{
    return shape == 0 ? variant<FP8, SLICE, 128, 2>() : shape == 1 ? variant<FP8, SLICE, 64, 2>() : variant<FP8, SLICE, 32, 1>();
}

static struct many_variant pick(bool fp8, uint32_t slice_k, uint32_t shape)
{
    if (slice_k == 3840) return fp8 ? variant_of<true, 3840>(shape) : variant_of<false, 3840>(shape);
    return fp8 ? variant_of<true, 4096>(shape) : variant_of<false, 4096>(shape);
}

int rowmm_many_init(void)
{
    int rc = rowmm_ready_init();

    for (uint32_t i = 0; i < 4 * SHAPES && rc == 0; i++) rc = launch_prepare((const void *)pick(i % 2, i / 2 % 2 ? 3840 : 4096, i / 4).fn, LAUNCH_SHARED_MAX);
    return rc;
}

/* How long an item of the shape takes, in clocks for one of k: the tensor cores' time, or that of bytes into an SM's shared memory; and what an item costs besides. */
static uint64_t cost(const struct many_variant *v, const struct packed_matrix *w, uint32_t m, uint32_t sm_count)
{
    const uint64_t weight = w->format == WEIGHT_FP8 ? 1 : 2, products = (uint64_t)v->weight_rows * v->columns / 2048, bytes = (v->weight_rows * weight + 2 * v->columns) / 64;
    const uint64_t items = (uint64_t)((w->rows + v->weight_rows - 1) / v->weight_rows) * (w->k / w->slice_k) * ((m + v->columns - 1) / v->columns);

    return (items + sm_count - 1) / sm_count * ((products > bytes ? products : bytes) * w->slice_k + 3000);
}

uint32_t rowmm_many_choice(const struct packed_matrix *w, uint32_t m, uint32_t sm_count)
{
    uint32_t best = 0;
    uint64_t least = UINT64_MAX;

    for (uint32_t shape = m > 64 ? 0 : 1; shape < SHAPES; shape++) {
        const struct many_variant v = pick(w->format == WEIGHT_FP8, w->slice_k, shape);
        const uint64_t clocks = cost(&v, w, m, sm_count);

        if (clocks < least) least = clocks, best = shape;
    }
    return best;
}

int rowmm_many_launch_tile(const struct packed_matrix *w, struct rowmm_args args, const struct rowmm_ready *ready, const struct rowmm_tuning *tuning, uint32_t tile, void *stream)
{
    const uint32_t slices = w->slice_k ? w->k / w->slice_k : 0;
    const bool fp8 = w->format == WEIGHT_FP8;

    if (!rowmm_many_takes(w->format)) return -E_UNSUPPORTED;
    if (args.m < 1 || args.m > ROWMM_MANY_ROWS_MAX || w->rows % TILE_ROWS || w->rows == 0 || tile >= SHAPES) return -E_RANGE;
    if (slices != 1 && slices != 2 && slices != 4) return -E_UNSUPPORTED;
    if (slices > 1 && args.out_kind != ROWMM_PARTIAL) return -E_RANGE;
    if (args.x_places.block || args.out_places.block) return -E_RANGE;
    const struct many_variant v = pick(fp8, w->slice_k, tile);
    const struct rowmm_ready_shape shape = { args.m, w->k, w->slice_k, v.columns };
    const uint32_t row_blocks = (w->rows + v.weight_rows - 1) / v.weight_rows, ring_bytes = tuning->ring_slots * SLOT_BYTES_MAX;
    struct many_args a = { args, ready->image, w->rows / TILE_ROWS, 0, (args.m + v.columns - 1) / v.columns };
    void *params[] = { &a };

    a.items = row_blocks * slices * a.column_tiles;
    a.base.w = w->data, a.base.zero = 0, a.base.k = w->k, a.base.slices = slices, a.base.units = a.tiles * slices, a.base.next.w = NULL;
    a.base.ring_slots = (LAUNCH_SHARED_MAX - (uint32_t)sizeof(struct many_shared)) / v.stage_bytes;
    if (a.base.ring_slots > STAGES_MAX) a.base.ring_slots = STAGES_MAX;
    while (a.base.ring_slots > 2 && a.base.ring_slots * v.stage_bytes > ring_bytes) a.base.ring_slots--;
    const int rc = rowmm_ready_launch(args.x, shape, *ready, stream);
    if (rc) return rc;
    return launch_chained((const void *)v.fn, a.items < tuning->sm_count ? a.items : tuning->sm_count, THREADS, a.base.ring_slots * v.stage_bytes + (uint32_t)sizeof(struct many_shared), params, stream);
}

int rowmm_many_launch(const struct packed_matrix *w, struct rowmm_args args, const struct rowmm_ready *ready, const struct rowmm_tuning *tuning, void *stream)
{
    return rowmm_many_launch_tile(w, args, ready, tuning, rowmm_many_choice(w, args.m, tuning->sm_count), stream);
}
