/* kernels/cuda/rowmm_wide.cu - the product for 17 to 64 rows (contract in rowmm_wide.h).
 *
 * A cluster works on items: 4 tiles of 16 weight rows of one k slice. Each of its SPLIT blocks holds 8 / SPLIT ranges of k. Its 8 consumer warps are two
 * warpgroups that take items by turns, a tile a warp: wgmma reads the weights from registers, as the packed layout has them, and the activations from
 * shared memory. Then each warp sends its sums to the block that adds up and stores its tile, so every item needs one hand-over between
 * blocks and no block waits for another one's weights. Two warps of a block add up and store, but for a warpgroup's last item: that its own warps do. One producer lane streams the block's ranges of the weights into a ring, one
 * stage (a slot's part of 4 tiles) for each warpgroup by turns, and starts before the previous kernel has ended. */
#include "cluster.cuh"
#include "rowmm_wide.h"
#include "rowmm_store.cuh"
#include "launch.h"
#include "shm/error.h"
#include "wide_wgmma.cuh"

#define RANGES 8                      /* of k in a slice: the warps of rowmm.cu */
#define STORE_WARPS 2                 /* each adds up and stores half of what a block gets, but for the last items */
#define THREADS ((CONSUMER_WARPS + STORE_WARPS + 1) * 32)
#define TILES_AT_ONCE 4               /* weight tiles of an item: the warps of a warpgroup */
#define SETS (CONSUMER_WARPS / TILES_AT_ONCE)
#define STAGES_MAX 20

template <bool FP8, int SLICE, int ROWS, int SPLIT> struct wide {
    static constexpr int OWN_RANGES = RANGES / SPLIT;
    static constexpr int LOADS = SLICE == 3840 ? 5 : 4;                     /* 16-byte loads per lane, range and slot */
    static constexpr int SLOTS = SLICE * (FP8 ? 1 : 2) * TILE_ROWS / (RANGES * LOADS * 512);
    static constexpr int RANGE = SLICE / RANGES;                            /* elements */
    static constexpr int BLOCKS = RANGE / 32;                               /* of a range */
    static constexpr int N_TILES = ROWS / 8;
    static constexpr uint32_t SLOT_BYTES = RANGES * LOADS * 512;            /* of a tile, all blocks' parts */
    static constexpr uint32_t PART_BYTES = OWN_RANGES * LOADS * 512;        /* this block's part of it */
    static constexpr uint32_t STAGE_BYTES = TILES_AT_ONCE * PART_BYTES;
    static constexpr uint32_t HEADER_BYTES = FP8 ? UNIT_HEADER_BYTES : 0;
    static constexpr uint32_t UNIT_BYTES = SLOTS * SLOT_BYTES + HEADER_BYTES;
    /* Activations: [own range][block of 32][4 columns][ROWS / 8][8 rows][16 bytes]. A lane's 8 elements 8 t .. of a block go to the 4 columns in pairs,
     * at place t: that is the k order of the weights. The 16 bytes more per block spread the columns' banks while they are written. */
    static constexpr uint32_t COLUMN_BYTES = ROWS * 16;
    static constexpr uint32_t BLOCK_BYTES = 4 * COLUMN_BYTES + 16;
    static constexpr uint32_t X_BYTES = (OWN_RANGES * BLOCKS * BLOCK_BYTES + 127) / 128 * 128;
    /* Sums: the tiles that a block stores: one of each set in a cluster of 4, one of one set in a cluster of 8. */
    static constexpr int ROOMS = SETS * TILES_AT_ONCE / SPLIT;
    static constexpr uint32_t ROOM_BYTES = RANGES * N_TILES * 512;
    static constexpr uint32_t SUMS_BYTES = ROOMS * ROOM_BYTES;
    static constexpr int STORE_N = ROOMS * N_TILES / STORE_WARPS;           /* tiles of 8 activation rows that a storing warp answers: of one room */
    static constexpr uint32_t STORE_BYTES = RANGES * STORE_N * 512;
    static_assert(BLOCK_BYTES / 4 % 32 == 4, "bank conflicts");
};

struct wide_shared {                  /* behind ring, activations and sums */
    uint64_t full[STAGES_MAX], empty[STAGES_MAX];
    uint64_t sums_full[STORE_WARPS];  /* by storing warp: the sums of 8 ranges are here */
    uint64_t sums_empty[CONSUMER_WARPS];      /* by sending warp: its room in the block that stores its tile is free again */
    uint32_t ready;                   /* 1: the consumers are past their wait */
};

/* ---- a cluster ---- */

/* 16 bytes into a peer's shared memory; they count on its barrier like those of a bulk copy, so no fence orders anything. */
__device__ __forceinline__ void peer_store(uint32_t address, float4 v, uint32_t bar)
{
    asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1,%2,%3,%4}, [%5];"
                 ::"r"(address), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w), "r"(bar) : "memory");
}

__device__ __forceinline__ void peer_arrive(uint32_t bar) { asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(bar) : "memory"); }

/* ---- who works on what ---- */

struct wide_work {
    uint32_t items, first, step;      /* this cluster's items: first, first + step, ... below items */
    uint32_t slices;
};

__device__ __forceinline__ wide_work work_of(const rowmm_args &a, uint32_t split)
{
    const wide_work w = { a.units / TILES_AT_ONCE, blockIdx.x / split, gridDim.x / split, a.slices };

    return w;
}

/* Unit of one of an item's tiles. Items keep to one slice: step is a multiple of slices. */
__device__ __forceinline__ uint32_t unit_of(const wide_work &w, uint32_t item, uint32_t tile) { return (tile_of(w.slices, item) * TILES_AT_ONCE + tile) * w.slices + slice_of(w.slices, item); }

/* Sets that have an item in the round that begins with `item`. */
__device__ __forceinline__ uint32_t live_sets(const wide_work &w, uint32_t item)
{
    const uint32_t left = (w.items - item + w.step - 1) / w.step;

    return left < SETS ? left : SETS;
}

/* Addresses are found once an item: with divisions in front of each copy the lane took 0.55 us a stage, longer than the memory takes for 20 KB. */
template <typename W, int SPLIT>
__device__ __forceinline__ void wide_produce(const rowmm_args &a, uint8_t *ring, wide_shared *sh, uint32_t rank)
{
    const uint64_t policy = policy_evict_first(), tile_bytes = (uint64_t)a.slices * W::UNIT_BYTES;
    const wide_work w = work_of(a, SPLIT);
    uint32_t stage = 0, phase = 0, behind = 0, behind_phase = 0, in_flight = 0, window = a.wait_slots;

    for (uint32_t item = w.first; item < w.items; item += SETS * w.step) {
        const uint32_t live = live_sets(w, item);
        const uint8_t *first = a.w + (uint64_t)unit_of(w, item, 0) * W::UNIT_BYTES + W::HEADER_BYTES + rank * W::PART_BYTES;
        const uint64_t set_bytes = (uint64_t)(tile_of(w.slices, w.step) * TILES_AT_ONCE) * tile_bytes;

#pragma unroll 1
        for (uint32_t slot = 0; slot < W::SLOTS; slot++, first += W::SLOT_BYTES)
            for (uint32_t set = 0; set < live; set++) {
                const uint8_t *from = set ? first + set_bytes : first;
                uint8_t *to = ring + stage * W::STAGE_BYTES;

                mbar_wait(&sh->empty[stage], phase ^ 1);
                if (window != a.window_slots && *(volatile uint32_t *)&sh->ready) window = a.window_slots;
                for (; in_flight >= window; in_flight--) {
                    mbar_wait(&sh->full[behind], behind_phase);
                    if (++behind == a.ring_slots) behind = 0, behind_phase ^= 1;
                }
                mbar_arrive_expect(&sh->full[stage], W::STAGE_BYTES);
#pragma unroll
                for (uint32_t tile = 0; tile < TILES_AT_ONCE; tile++, from += tile_bytes, to += W::PART_BYTES) bulk_load(to, from, W::PART_BYTES, &sh->full[stage], policy);
                in_flight++;
                if (++stage == a.ring_slots) stage = 0, phase ^= 1;
            }
    }
}

/* ---- activations ---- */

template <typename W> __device__ __forceinline__ void put_columns(uint8_t *to, uint4 x)
{
    *(uint32_t *)to = x.x, *(uint32_t *)(to + W::COLUMN_BYTES) = x.y, *(uint32_t *)(to + 2 * W::COLUMN_BYTES) = x.z, *(uint32_t *)(to + 3 * W::COLUMN_BYTES) = x.w;
}

/* The block's ranges of all rows into shared memory, a warp's 8 pieces asked for at once (in two rounds they would cost a round trip more); rows that are nobody's are the last one once more: nobody stores what they give. */
template <typename W, int ROWS>
__device__ __forceinline__ void stage_rows(const rowmm_args &a, uint8_t *xs, uint32_t rank, uint32_t warp, uint32_t lane)
{
    constexpr int PIECES = ROWS * W::OWN_RANGES, BATCH = PIECES / CONSUMER_WARPS, VECTORS = W::RANGE / 8;
    const uint16_t *base = (const uint16_t *)a.x + slice_of(a.slices, blockIdx.x / (RANGES / W::OWN_RANGES)) * (W::RANGE * RANGES) + rank * W::OWN_RANGES * W::RANGE;

    static_assert(BATCH == 8 && BATCH % W::OWN_RANGES == 0 && VECTORS > 32 && VECTORS <= 64, "pieces of a row");
    const uint32_t first_row = warp * BATCH / W::OWN_RANGES;
    uint4 x[BATCH][2] = {};

#pragma unroll
    for (uint32_t i = 0; i < BATCH; i++) {
        const uint32_t row = min(first_row + i / W::OWN_RANGES, a.m - 1);
        const uint4 *from = (const uint4 *)(base + (uint64_t)row * a.k + i % W::OWN_RANGES * W::RANGE) + lane;

        x[i][0] = ld_l2(from);
        if (lane + 32 < VECTORS) x[i][1] = ld_l2(from + 32);
    }
#pragma unroll
    for (uint32_t i = 0; i < BATCH; i++) {
        const uint32_t row = first_row + i / W::OWN_RANGES, range = i % W::OWN_RANGES;
        uint8_t *to = xs + (range * W::BLOCKS + lane / 4) * W::BLOCK_BYTES + row / 8 * 128 + row % 8 * 16 + lane % 4 * 4;

        put_columns<W>(to, x[i][0]);
        if (lane + 32 < VECTORS) put_columns<W>(to + 8 * W::BLOCK_BYTES, x[i][1]);
    }
}

/* ---- consumers ---- */

/* The A fragments of one 16-byte load: two of FP8, one of BF16. */
template <bool FP8> __device__ __forceinline__ void fragments(uint32_t (&f)[8], uint4 w)
{
    if (FP8) {
        f[0] = e4m3x2_to_f16x2((uint16_t)w.x), f[1] = e4m3x2_to_f16x2((uint16_t)w.y);
        f[2] = e4m3x2_to_f16x2((uint16_t)(w.x >> 16)), f[3] = e4m3x2_to_f16x2((uint16_t)(w.y >> 16));
        f[4] = e4m3x2_to_f16x2((uint16_t)w.z), f[5] = e4m3x2_to_f16x2((uint16_t)w.w);
        f[6] = e4m3x2_to_f16x2((uint16_t)(w.z >> 16)), f[7] = e4m3x2_to_f16x2((uint16_t)(w.w >> 16));
    } else {
        f[0] = w.x, f[1] = w.y, f[2] = w.z, f[3] = w.w;
    }
}

/* One tile of one item in this block's ranges. acc[range][0 or 1]: two chains a range, as in rowmm.cu. While the tensor cores work on one load, the next
 * one is converted. `live` stages lie between two stages of a set. */
template <bool FP8, typename W>
__device__ __forceinline__ void wide_item(float (&acc)[W::OWN_RANGES][2][W::N_TILES * 4], const rowmm_args &a, const uint8_t *ring, uint32_t xs, wide_shared *sh,
                                          uint32_t &stage, uint32_t &phase, uint32_t live, uint32_t tile, uint32_t lane)
{
    constexpr int STEPS = W::OWN_RANGES * W::LOADS, TOGETHER = STEPS % 2 || (!FP8 && W::LOADS % 2) ? (W::SLOTS % 2 ? W::SLOTS : 2) : 1;
    uint32_t f[2][8];

    /* A loop, and no more of its turns written out than fragments and accumulators need to alternate: a launch's code comes from the L2, too. */
#pragma unroll 1
    for (int first = 0; first < W::SLOTS; first += TOGETHER)
#pragma unroll
    for (int own = 0; own < TOGETHER; own++) {
        const int slot = first + own;
        const uint8_t *from = ring + stage * W::STAGE_BYTES + tile * W::PART_BYTES + lane * 16;
        uint32_t loaded = 0;

        mbar_wait(&sh->full[stage], phase);
        uint4 next = ld_shared(from);
#pragma unroll
        for (int i = 0; i < STEPS; i++) {
            const int turn = (own * STEPS + i) % 2, range = i / W::LOADS, load = slot * W::LOADS + i % W::LOADS, chain = (own * W::LOADS + i % W::LOADS) % 2;
            const uint4 w = next;

            if (i + 1 < STEPS) next = ld_shared(from + (i + 1) * 512);
            wide_wait<1>();           /* the products of the load before the last are through: their registers are free */
            fragments<FP8>(f[turn], w);
            loaded |= FP8 ? f[turn][0] : w.x;
            wide_pin(f[turn]);
            wide_fence();
            if (FP8) {
                const uint32_t block = xs + (range * W::BLOCKS + load) * W::BLOCK_BYTES;

                wide_mma<true>(acc[range][0], f[turn], wide_descriptor(block, W::COLUMN_BYTES));
                wide_mma<true>(acc[range][1], f[turn] + 4, wide_descriptor(block + 2 * W::COLUMN_BYTES, W::COLUMN_BYTES));
            } else {
                const uint32_t block = xs + (range * W::BLOCKS + load / 2) * W::BLOCK_BYTES + load % 2 * 2 * W::COLUMN_BYTES;

                wide_mma<false>(acc[range][chain], f[turn], wide_descriptor(block, W::COLUMN_BYTES));
            }
            wide_commit();
        }
        if (lane == 0) mbar_arrive_at(smem_address(&sh->empty[stage]) + (loaded & a.zero));      /* see rowmm.cu: never before the loads */
        stage += live;
        if (stage >= a.ring_slots) stage -= a.ring_slots, phase ^= 1;
    }
    wide_wait<0>();
#pragma unroll
    for (int r = 0; r < W::OWN_RANGES; r++) wide_pin(acc[r][0]), wide_pin(acc[r][1]);
}

/* What a warp adds up and stores: `count` tiles of 8 activation rows from first_n on, of a room's items item, item + SETS * step, ... below until. */
struct wide_share {
    uint32_t item, until, room, first_n, count;
    uint32_t phase;                   /* of the sums of `item` */
    float low, high;                  /* its row scales */
};

__device__ __forceinline__ void load_scales(const rowmm_args &a, uint32_t unit_bytes, uint32_t unit, uint32_t lane, float &low, float &high)
{
    const float *scales = (const float *)a.w + (uint64_t)unit * (unit_bytes / 4) + lane / 4;

    low = __ldg(scales), high = __ldg(scales + 8);
}

/* Returns the share that this warp stores of its set's last item: nothing if the block has not that room. */
template <bool FP8, typename W, int ROWS, int SPLIT>
__device__ __forceinline__ wide_share wide_consume(const rowmm_args &a, uint8_t *ring, uint8_t *xs, uint8_t *sums, wide_shared *sh, uint32_t rank, uint32_t warp, uint32_t lane)
{
    const uint32_t set = warp / TILES_AT_ONCE, tile = warp % TILES_AT_ONCE, room = set % W::ROOMS;
    const uint32_t storer = W::ROOMS == SETS ? tile : set * TILES_AT_ONCE + tile;      /* block of the cluster that stores this warp's tiles */
    const bool stores = W::ROOMS == SETS || rank / TILES_AT_ONCE == set;
    const wide_work w = work_of(a, SPLIT);
    uint32_t stage = 0, phase = 0, sums_phase = 0;
    wide_share last = { w.items, 0, room, tile * (W::N_TILES / TILES_AT_ONCE), W::N_TILES / TILES_AT_ONCE, 0, 1.0f, 1.0f };

    chain_wait();
    if (a.late_trigger) chain_trigger();
    if (threadIdx.x == 0) *(volatile uint32_t *)&sh->ready = 1;
    cluster_wait();                   /* the peers' barriers exist */
    const uint32_t to = peer_address(sums, storer) + room * W::ROOM_BYTES + rank * W::OWN_RANGES * (W::N_TILES * 512) + lane * 16;
    const uint32_t arrived = peer_address(sh->sums_full, storer);

    stage_rows<W, ROWS>(a, xs, rank, warp, lane);
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");      /* wgmma reads what we wrote by ordinary stores */
    asm volatile("bar.sync 1, %0;" ::"n"(CONSUMER_WARPS * 32) : "memory");
    if (threadIdx.x == 0) trace_mark(a.trace, TRACE_PAST_WAIT);
#pragma unroll 1
    for (uint32_t item = w.first; item < w.items; item += SETS * w.step) {
        const uint32_t live = live_sets(w, item);
        float acc[W::OWN_RANGES][2][W::N_TILES * 4];
        uint32_t own = stage + set, own_phase = phase;

        stage += live * W::SLOTS;
        while (stage >= a.ring_slots) stage -= a.ring_slots, phase ^= 1;
        if (set >= live) break;       /* only in the last round */
        if (stores && item + (SETS + set) * w.step >= w.items) {
            last.item = item + set * w.step, last.until = w.items, last.phase = sums_phase;
            if (FP8) load_scales(a, W::UNIT_BYTES, unit_of(w, last.item, rank % TILES_AT_ONCE), lane, last.low, last.high);
        }
#pragma unroll
        for (int r = 0; r < W::OWN_RANGES; r++)
#pragma unroll
            for (int i = 0; i < W::N_TILES * 4; i++) acc[r][0][i] = acc[r][1][i] = 0.0f;
#pragma unroll
        for (int r = 0; r < W::OWN_RANGES; r++) wide_pin(acc[r][0]), wide_pin(acc[r][1]);
        if (own >= a.ring_slots) own -= a.ring_slots, own_phase ^= 1;
        wide_item<FP8, W>(acc, a, ring, smem_address(xs), sh, own, own_phase, live, tile, lane);

        mbar_wait(&sh->sums_empty[warp], sums_phase ^ 1);
#pragma unroll
        for (int r = 0; r < W::OWN_RANGES; r++)
#pragma unroll
            for (int n = 0; n < W::N_TILES; n++) {
                const float *x = acc[r][0] + n * 4, *y = acc[r][1] + n * 4;

                peer_store(to + (r * W::N_TILES + n) * 512, make_float4(x[0] + y[0], x[1] + y[1], x[2] + y[2], x[3] + y[3]), arrived + (room * W::N_TILES + n) / W::STORE_N * 8);
            }
        sums_phase ^= 1;
    }
    return last;
}

/* ---- adding and storing ---- */

/* A storing warp's share: of one room, all activation rows in a cluster of 4, half of them in a cluster of 8; but not of the room's last item. */
template <bool FP8, typename W, int SPLIT>
__device__ __forceinline__ wide_share share_of_storer(const rowmm_args &a, uint32_t rank, uint32_t part, uint32_t lane)
{
    const wide_work w = work_of(a, SPLIT);
    const uint32_t room = part * W::STORE_N / W::N_TILES, set = W::ROOMS == SETS ? room : rank / TILES_AT_ONCE, around = SETS * w.step;
    wide_share s = { w.first + set * w.step, w.items > around ? w.items - around : 0, room, part * W::STORE_N % W::N_TILES, W::STORE_N, 0, 1.0f, 1.0f };

    if (FP8 && s.item < w.items) load_scales(a, W::UNIT_BYTES, unit_of(w, s.item, rank % TILES_AT_ONCE), lane, s.low, s.high);
    cluster_wait();
    chain_wait();
    return s;
}

/* Storing warps all along, and the warps of a warpgroup for its last item, when they have nothing else to do: a storing warp alone would take 1 us longer, and the next kernel waits
 * for that. One text: the SM has it at hand when the last item comes. Row scales come by ordinary loads, an item ahead. */
template <bool FP8, typename W, int SPLIT>
__device__ __forceinline__ void wide_store(const rowmm_args &a, const uint8_t *sums, wide_shared *sh, uint32_t rank, wide_share s, uint32_t lane)
{
    const wide_work w = work_of(a, SPLIT);
    const uint32_t tile = rank % TILES_AT_ONCE, set = W::ROOMS == SETS ? s.room : rank / TILES_AT_ONCE, part = (s.room * W::N_TILES + s.first_n) / W::STORE_N;
    const float4 *from = (const float4 *)(sums + s.room * W::ROOM_BYTES) + s.first_n * 32 + lane;
    const uint32_t freed = peer_address(&sh->sums_empty[set * TILES_AT_ONCE + tile], lane % SPLIT);
    const row_powers power = row_powers_of(a);

#pragma unroll 1
    for (; s.item < s.until; s.item += SETS * w.step) {
        const uint32_t unit = unit_of(w, s.item, tile), next = s.item + SETS * w.step;
        float next_low = 1.0f, next_high = 1.0f;

        if (FP8 && next < w.items) load_scales(a, W::UNIT_BYTES, unit_of(w, next, tile), lane, next_low, next_high);
        mbar_wait(&sh->sums_full[part], s.phase);
#pragma unroll 1
        for (uint32_t n = 0; n < s.count; n++) {
            const uint32_t m = (s.first_n + n) * 8 + lane % 4 * 2;
            float4 sum = make_float4(0, 0, 0, 0);

#pragma unroll
            for (int r = 0; r < RANGES; r++) {
                const float4 p = from[(r * W::N_TILES + n) * 32];

                sum.x += p.x, sum.y += p.y, sum.z += p.z, sum.w += p.w;
            }
            sum.x *= s.low, sum.y *= s.low, sum.z *= s.high, sum.w *= s.high;
            asm volatile("" ::"f"(sum.x), "f"(sum.y), "f"(sum.z), "f"(sum.w));    /* used before the arrival below */
            store_tile(a, sum, tile_of(w.slices, unit), slice_of(w.slices, unit), m, lane / 4, row_scales(a, m, power), power.out);
        }
        if (next >= w.items) break;   /* nobody waits for this room any more, and a peer may have ended */
        if (lane == 0) mbar_arrive_expect(&sh->sums_full[part], W::STORE_BYTES);      /* of the next item */
        __syncwarp();
        if (lane < SPLIT) peer_arrive(freed);
        s.phase ^= 1;
        s.low = next_low, s.high = next_high;
    }
    if (lane == 0) trace_mark(a.trace, TRACE_END);
}

/* Below 144 registers wgmma is serialized. */
template <bool FP8, int SLICE, int ROWS, int SPLIT>
__global__ void __maxnreg__(144) rowmm_wide_kernel(const __grid_constant__ rowmm_args a)
{
    using W = wide<FP8, SLICE, ROWS, SPLIT>;
    extern __shared__ __align__(128) uint8_t ring[];
    uint8_t *xs = ring + a.ring_slots * W::STAGE_BYTES, *sums = xs + W::X_BYTES;
    wide_shared *sh = (wide_shared *)(sums + W::SUMS_BYTES);
    const uint32_t warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32, rank = cluster_rank();
    wide_share share;

    if (!a.late_trigger) chain_trigger();
    if (threadIdx.x == 0) {
        trace_mark(a.trace, TRACE_START);
        sh->ready = 0;
#pragma unroll 1
        for (uint32_t i = 0; i < a.ring_slots; i++) mbar_init(&sh->full[i], 1), mbar_init(&sh->empty[i], TILES_AT_ONCE);
        for (uint32_t i = 0; i < CONSUMER_WARPS; i++) mbar_init(&sh->sums_empty[i], STORE_WARPS / W::ROOMS);
        for (uint32_t i = 0; i < STORE_WARPS; i++) {
            mbar_init(&sh->sums_full[i], 1);
            mbar_arrive_expect(&sh->sums_full[i], W::STORE_BYTES);
        }
        mbar_init_fence();
    }
    __syncthreads();
    cluster_arrive_relaxed();
    if (warp == CONSUMER_WARPS + STORE_WARPS) {
        if (lane == 0) wide_produce<W, SPLIT>(a, ring, sh, rank);
        __syncwarp();
        cluster_wait();
        return;
    }
    if (warp < CONSUMER_WARPS) share = wide_consume<FP8, W, ROWS, SPLIT>(a, ring, xs, sums, sh, rank, warp, lane);
    else share = share_of_storer<FP8, W, SPLIT>(a, rank, warp - CONSUMER_WARPS, lane);
    wide_store<FP8, W, SPLIT>(a, sums, sh, rank, share, lane);
    /* Nobody has to stay for a peer: what is sent here is waited for here, and that a room is free is not said behind its last item. A barrier
     * at the end would wait for all stores, and the next kernel for our place on the SM. */
}

/* ---- launching ---- */

typedef void wide_fn(const rowmm_args);

struct wide_variant { wide_fn *fn; uint32_t stage_bytes, fixed_bytes, split; uint32_t clusters; };

template <bool FP8, int SLICE, int ROWS, int SPLIT> static struct wide_variant variant()
{
    using W = wide<FP8, SLICE, ROWS, SPLIT>;
    const struct wide_variant v = { rowmm_wide_kernel<FP8, SLICE, ROWS, SPLIT>, W::STAGE_BYTES, W::X_BYTES + W::SUMS_BYTES + (uint32_t)sizeof(wide_shared), SPLIT, 0 };

    return v;
}

static struct wide_variant variants[8];      /* filled by init: by format, slice, rows */

static uint32_t variant_index(bool fp8, bool slice_4096, bool more_rows) { return fp8 | slice_4096 << 1 | more_rows << 2; }

static int launch_cluster(const struct wide_variant *v, uint32_t clusters, uint32_t shared_bytes, void **params, void *stream, bool count, int *active)
{
    cudaLaunchAttribute attribute[2];
    cudaLaunchConfig_t config = {};

    attribute[0].id = cudaLaunchAttributeClusterDimension;
    attribute[0].val.clusterDim.x = v->split, attribute[0].val.clusterDim.y = attribute[0].val.clusterDim.z = 1;
    attribute[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute[1].val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = dim3(clusters * v->split);
    config.blockDim = dim3(THREADS);
    config.dynamicSmemBytes = shared_bytes;
    config.stream = (cudaStream_t)stream;
    config.attrs = attribute;
    config.numAttrs = count ? 1 : 2;
    if (count) return launch_check(cudaOccupancyMaxActiveClusters(active, (const void *)v->fn, &config), "clusters");
    return launch_check(cudaLaunchKernelExC(&config, (const void *)v->fn, params), "kernel launch");
}

int rowmm_wide_init(void)
{
    variants[0] = variant<false, 3840, 32, 4>(), variants[1] = variant<true, 3840, 32, 4>();
    variants[2] = variant<false, 4096, 32, 4>(), variants[3] = variant<true, 4096, 32, 4>();
    variants[4] = variant<false, 3840, 64, 8>(), variants[5] = variant<true, 3840, 64, 8>();
    variants[6] = variant<false, 4096, 64, 8>(), variants[7] = variant<true, 4096, 64, 8>();
    for (struct wide_variant &v : variants) {
        int active = 0, rc = launch_prepare((const void *)v.fn, LAUNCH_SHARED_MAX);

        if (rc == 0) rc = launch_cluster(&v, 1, LAUNCH_SHARED_MAX, NULL, NULL, true, &active);
        if (rc) return rc;
        if (active < 4) return -E_UNSUPPORTED;      /* a cluster for each slice of down */
        v.clusters = (uint32_t)active;
    }
    return 0;
}

/* Formats that have no kernel here: pieces of rows through rowmm, the weights are read for each. */
static int launch_pieces(const struct packed_matrix *w, struct rowmm_args args, const struct rowmm_tuning *tuning, void *stream)
{
    const uint32_t rows = args.m, bytes = args.out_kind == ROWMM_GEGLU ? 2 : 4;
    int rc = 0;

    args.next.w = NULL;
    for (uint32_t first = 0; first < rows && rc == 0; first += ROWMM_ROWS_MAX) {
        args.m = rows - first < ROWMM_ROWS_MAX ? rows - first : ROWMM_ROWS_MAX;
        rc = rowmm_launch(w, args, tuning, stream);
        args.x = (const uint16_t *)args.x + (uint64_t)ROWMM_ROWS_MAX * w->k;
        args.out = (uint8_t *)args.out + (uint64_t)ROWMM_ROWS_MAX * args.out_stride * bytes;
        if (args.x_scale) args.x_scale += ROWMM_ROWS_MAX;
        if (args.tile_top) args.tile_top += (uint64_t)ROWMM_ROWS_MAX * (args.out_stride / TILE_ROWS);
        args.late_trigger = 0, args.trace = NULL;
    }
    return rc;
}

int rowmm_wide_launch(const struct packed_matrix *w, struct rowmm_args args, const struct rowmm_tuning *tuning, void *stream)
{
    const struct wide_variant *v = &variants[variant_index(w->format == WEIGHT_FP8, w->slice_k == 4096, args.m > 32)];
    const uint32_t slices = w->slice_k ? w->k / w->slice_k : 0, slot_bytes = packed_slot_bytes(w->slice_k);
    uint32_t clusters = v->clusters;

    if (args.x_places.block || args.out_places.block) return -E_RANGE;
    if (w->format != WEIGHT_FP8 && w->format != WEIGHT_BF16) return launch_pieces(w, args, tuning, stream);
    if (args.m < 1 || args.m > ROWMM_WIDE_ROWS_MAX || w->rows % (TILE_ROWS * TILES_AT_ONCE) || w->rows == 0) return -E_RANGE;
    if (slices != 1 && slices != 2 && slices != 4) return -E_UNSUPPORTED;
    if (slices > 1 && args.out_kind != ROWMM_PARTIAL) return -E_RANGE;
    args.w = w->data;
    args.zero = 0;
    args.k = w->k;
    args.slices = slices;
    args.units = w->rows / TILE_ROWS * slices;
    args.next.w = NULL;
    clusters -= clusters % slices;    /* a cluster stays on one slice: its activations are in shared memory */
    if (clusters > args.units / TILES_AT_ONCE) clusters = args.units / TILES_AT_ONCE;
    /* The tuning counts slots of 16 to 20 KB. */
    args.ring_slots = tuning->ring_slots * slot_bytes / v->stage_bytes;
    args.window_slots = tuning->window_slots * slot_bytes / v->stage_bytes;
    args.wait_slots = tuning->wait_slots * slot_bytes / v->stage_bytes / 2;      /* clusters end at very different times: what those that are done ask for delays the others (measured) */
    if (args.wait_slots == 0) args.wait_slots = 1;
    if (args.window_slots == 0) args.window_slots = 1;
    while (args.ring_slots * v->stage_bytes + v->fixed_bytes > LAUNCH_SHARED_MAX || args.ring_slots > STAGES_MAX) args.ring_slots--;
    if (args.ring_slots < SETS) return -E_RANGE;      /* a stage of each */
    if (args.window_slots > args.ring_slots) args.window_slots = args.ring_slots;      /* waiting for copies a whole ring back would wait for others */
    if (args.wait_slots > args.window_slots) args.wait_slots = args.window_slots;
    void *params[] = { &args };
    return launch_cluster(v, clusters, args.ring_slots * v->stage_bytes + v->fixed_bytes, params, stream, false, NULL);
}
