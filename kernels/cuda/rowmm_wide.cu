/* kernels/cuda/rowmm_wide.cu - the product for 17 to 64 rows (contract in rowmm_wide.h).
 *
 * A cluster works on items: two tiles of 16 weight rows of one k slice. Each of its SPLIT blocks holds 8 / SPLIT ranges of k. Its 8 consumer warps form SPLIT
 * sets of one warp per range; set s works on the cluster's items s, s + SPLIT, ..., and block s adds up and stores what set s of all blocks
 * computed. So every item needs one hand-over between blocks and no block waits for another one's weights. One producer lane streams the block's
 * ranges of the weights into a ring, one stage (a slot's part, both tiles) of each set by turns, and starts before the previous kernel has ended. */
#include "rowmm_wide.h"
#include "launch.h"
#include "shm/error.h"

#define RANGES 8                      /* of k in a slice: the warps of rowmm.cu */
#define STORE_WARPS TILES_AT_ONCE     /* each adds up and stores one tile of an item */
#define THREADS ((CONSUMER_WARPS + STORE_WARPS + 1) * 32)
#define TILES_AT_ONCE 2               /* weight tiles of an item */
#define STAGES_MAX 20

template <bool FP8, int SLICE, int ROWS, int SPLIT> struct wide {
    static constexpr int OWN_RANGES = RANGES / SPLIT;
    static constexpr int LOADS = SLICE == 3840 ? 5 : 4;                     /* 16-byte loads per lane, range and slot */
    static constexpr int SLOTS = SLICE * (FP8 ? 1 : 2) * TILE_ROWS / (RANGES * LOADS * 512);
    static constexpr int RANGE = SLICE / RANGES;                            /* elements */
    static constexpr int N_TILES = ROWS / 8;
    static constexpr uint32_t SLOT_BYTES = RANGES * LOADS * 512;            /* of a tile, all blocks' parts */
    static constexpr uint32_t PART_BYTES = OWN_RANGES * LOADS * 512;        /* this block's part of it */
    static constexpr uint32_t STAGE_BYTES = TILES_AT_ONCE * PART_BYTES;
    static constexpr uint32_t HEADER_BYTES = FP8 ? UNIT_HEADER_BYTES : 0;
    static constexpr uint32_t UNIT_BYTES = SLOTS * SLOT_BYTES + HEADER_BYTES;
    /* Rows of the activations 64 bytes apart modulo the banks: the 8 lanes that a load serves at once never collide. */
    static constexpr uint32_t ROW_BYTES = OWN_RANGES * RANGE * 2 + (OWN_RANGES * RANGE * 2 % 128 == 64 ? 0 : 64);
    static constexpr uint32_t X_BYTES = ROWS * ROW_BYTES;
    static constexpr uint32_t SUMS_BYTES = RANGES * TILES_AT_ONCE * N_TILES * 512;
    static_assert(ROW_BYTES % 128 == 64, "bank conflicts");
};

struct wide_shared {                  /* behind ring, activations and sums */
    uint64_t full[STAGES_MAX], empty[STAGES_MAX];
    uint64_t sums_full[TILES_AT_ONCE];      /* the sums of 8 ranges of a tile are here */
    uint64_t sums_empty[RANGES];      /* of the block that stores set s: its room is free again */
    alignas(8) float inverse[RANGES][ROWMM_WIDE_ROWS_MAX];      /* by own range and row; read in pairs */
    uint32_t ready;                   /* 1: the consumers are past their wait */
};

/* ---- a cluster ---- */

__device__ __forceinline__ uint32_t cluster_rank()
{
    uint32_t rank;

    asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    return rank;
}

__device__ __forceinline__ void cluster_arrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void cluster_wait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

/* The address of our shared memory's word in the block of that rank. */
__device__ __forceinline__ uint32_t peer_address(const void *own, uint32_t rank)
{
    uint32_t address;

    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(smem_address(own)), "r"(rank));
    return address;
}

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
__device__ __forceinline__ uint32_t unit_of(const wide_work &w, uint32_t item, uint32_t tile) { return (item / w.slices * TILES_AT_ONCE + tile) * w.slices + item % w.slices; }

/* Sets that have an item in the round that begins with `item`. */
__device__ __forceinline__ uint32_t live_sets(const wide_work &w, uint32_t item, uint32_t split)
{
    const uint32_t left = (w.items - item + w.step - 1) / w.step;

    return left < split ? left : split;
}

template <typename W, int SPLIT>
__device__ __forceinline__ void wide_produce(const rowmm_args &a, uint8_t *ring, wide_shared *sh, uint32_t rank)
{
    const uint64_t policy = policy_evict_first();
    const wide_work w = work_of(a, SPLIT);
    uint32_t stage = 0, phase = 0, behind = 0, behind_phase = 0, in_flight = 0, window = a.wait_slots;

    for (uint32_t item = w.first; item < w.items; item += SPLIT * w.step) {
        const uint32_t live = live_sets(w, item, SPLIT);

        for (uint32_t slot = 0; slot < W::SLOTS; slot++)
            for (uint32_t set = 0; set < live; set++) {
                mbar_wait(&sh->empty[stage], phase ^ 1);
                if (window != a.window_slots && *(volatile uint32_t *)&sh->ready) window = a.window_slots;
                for (; in_flight >= window; in_flight--) {
                    mbar_wait(&sh->full[behind], behind_phase);
                    if (++behind == a.ring_slots) behind = 0, behind_phase ^= 1;
                }
                mbar_arrive_expect(&sh->full[stage], W::STAGE_BYTES);
                for (uint32_t tile = 0; tile < TILES_AT_ONCE; tile++)
                    bulk_load(ring + stage * W::STAGE_BYTES + tile * W::PART_BYTES,
                              a.w + (uint64_t)unit_of(w, item + set * w.step, tile) * W::UNIT_BYTES + W::HEADER_BYTES + slot * W::SLOT_BYTES + rank * W::PART_BYTES,
                              W::PART_BYTES, &sh->full[stage], policy);
                in_flight++;
                if (++stage == a.ring_slots) stage = 0, phase ^= 1;
            }
    }
}

/* ---- activations ---- */

/* One row's elements of one range, 16 bytes twice a lane: to f16 times a power of two as scale_to_f16 in rowmm.cu, which returns its inverse. */
__device__ __forceinline__ float wide_scale(uint4 (&x)[2])
{
    uint32_t *v = (uint32_t *)x;
    __nv_bfloat162 largest = __float2bfloat162_rn(0.0f);

#pragma unroll
    for (int i = 0; i < 8; i++) largest = __hmax2(largest, __habs2(*(const __nv_bfloat162 *)&v[i]));
    float top = fmaxf(__low2float(largest), __high2float(largest));
#pragma unroll
    for (int d = 16; d; d >>= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, d));
    const int e = (int)(__float_as_uint(top) >> 23) - 127;
    const int shift = top == 0.0f ? 0 : min(max(14 - e, -100), 100);
    const float scale = __uint_as_float((uint32_t)(127 + shift) << 23);

#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = pack_f16(bf16_low(v[i]) * scale, bf16_high(v[i]) * scale);
    return __uint_as_float((uint32_t)(127 - shift) << 23);
}

/* The block's ranges of all rows into shared memory, 4 pieces of one range in flight per warp; rows that stand for nobody hold zeros. */
template <bool FP8, typename W, int ROWS>
__device__ __forceinline__ void stage_rows(const rowmm_args &a, uint8_t *xs, wide_shared *sh, uint32_t rank, uint32_t warp, uint32_t lane)
{
    constexpr int PIECES = ROWS * W::OWN_RANGES, BATCH = 4, VECTORS = W::RANGE / 8;
    const __nv_bfloat16 *base = a.x + blockIdx.x / (RANGES / W::OWN_RANGES) % a.slices * (W::RANGE * RANGES) + rank * W::OWN_RANGES * W::RANGE;

    static_assert(PIECES % (CONSUMER_WARPS * BATCH) == 0 && VECTORS > 32 && VECTORS <= 64, "pieces of a row");
    for (uint32_t first = warp * BATCH; first < PIECES; first += CONSUMER_WARPS * BATCH) {
        uint4 x[BATCH][2];

#pragma unroll
        for (uint32_t i = 0; i < BATCH; i++) {
            const uint32_t row = (first + i) / W::OWN_RANGES, range = (first + i) % W::OWN_RANGES;
            const uint4 *from = (const uint4 *)(base + (uint64_t)row * a.k + range * W::RANGE);

            x[i][0] = row < a.m ? ld_l2(from + lane) : make_uint4(0, 0, 0, 0);
            x[i][1] = row < a.m && lane + 32 < VECTORS ? ld_l2(from + lane + 32) : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (uint32_t i = 0; i < BATCH; i++) {
            const uint32_t row = (first + i) / W::OWN_RANGES, range = (first + i) % W::OWN_RANGES;
            uint4 *to = (uint4 *)(xs + row * W::ROW_BYTES + range * (W::RANGE * 2));
            const float inverse = FP8 ? wide_scale(x[i]) : 1.0f;

            to[lane] = x[i][0];
            if (lane + 32 < VECTORS) to[lane + 32] = x[i][1];
            if (lane == 0) sh->inverse[range][row] = inverse;
        }
    }
}

/* ---- consumers ---- */

/* acc[tile][n][0 or 1] += one 16-byte load of each weight tile times the activations that belong to it. */
template <bool FP8, int N_TILES>
__device__ __forceinline__ void wide_multiply(float (&acc)[TILES_AT_ONCE][N_TILES][2][4], const uint4 (&w)[TILES_AT_ONCE], const uint8_t *x, uint32_t row8_bytes, int half)
{
    if (FP8) {
        uint32_t f[TILES_AT_ONCE][8];

#pragma unroll
        for (int t = 0; t < TILES_AT_ONCE; t++) {
            f[t][0] = e4m3x2_to_f16x2((uint16_t)w[t].x), f[t][1] = e4m3x2_to_f16x2((uint16_t)w[t].y);
            f[t][2] = e4m3x2_to_f16x2((uint16_t)(w[t].x >> 16)), f[t][3] = e4m3x2_to_f16x2((uint16_t)(w[t].y >> 16));
            f[t][4] = e4m3x2_to_f16x2((uint16_t)w[t].z), f[t][5] = e4m3x2_to_f16x2((uint16_t)w[t].w);
            f[t][6] = e4m3x2_to_f16x2((uint16_t)(w[t].z >> 16)), f[t][7] = e4m3x2_to_f16x2((uint16_t)(w[t].w >> 16));
        }
#pragma unroll
        for (int n = 0; n < N_TILES; n++) {
            const uint4 b = *(const uint4 *)(x + n * row8_bytes);

#pragma unroll
            for (int t = 0; t < TILES_AT_ONCE; t++) {
                mma_f16(acc[t][n][0], f[t][0], f[t][1], f[t][2], f[t][3], b.x, b.y);
                mma_f16(acc[t][n][1], f[t][4], f[t][5], f[t][6], f[t][7], b.z, b.w);
            }
        }
    } else {
#pragma unroll
        for (int n = 0; n < N_TILES; n++) {
            const uint2 b = *(const uint2 *)(x + n * row8_bytes);

#pragma unroll
            for (int t = 0; t < TILES_AT_ONCE; t++) mma_bf16(acc[t][n][half], w[t].x, w[t].y, w[t].z, w[t].w, b.x, b.y);
        }
    }
}

/* The slots of one item in this warp's range. `live` stages lie between two stages of a set. */
template <bool FP8, typename W, int N_TILES>
__device__ __forceinline__ void wide_item(float (&acc)[TILES_AT_ONCE][N_TILES][2][4], const rowmm_args &a, const uint8_t *ring, const uint8_t *x, wide_shared *sh,
                                          uint32_t &stage, uint32_t &phase, uint32_t live, uint32_t own_range, uint32_t lane)
{
#pragma unroll (FP8 ? 1 : 2)
    for (uint32_t slot = 0; slot < W::SLOTS; slot++) {
        const uint8_t *from = ring + stage * W::STAGE_BYTES + (own_range * W::LOADS * 32 + lane) * 16;
        uint32_t loaded = 0;

        mbar_wait(&sh->full[stage], phase);
#pragma unroll
        for (int i = 0; i < W::LOADS; i++) {
            const uint4 w[TILES_AT_ONCE] = { *(const uint4 *)(from + i * 512), *(const uint4 *)(from + W::PART_BYTES + i * 512) };
            const uint32_t load = slot * W::LOADS + i;

            /* FP8: 16 bytes of a block of 32 elements; BF16: the first or second 8 of them. */
            wide_multiply<FP8, N_TILES>(acc, w, x + (FP8 ? load * 64 : load / 2 * 64 + load % 2 * 8), 8 * W::ROW_BYTES, FP8 ? 0 : (int)(load % 2));
            loaded |= w[0].x | w[1].x;
        }
        if (lane == 0) mbar_arrive_at(smem_address(&sh->empty[stage]) + (loaded & a.zero));      /* see rowmm.cu: never before the loads */
        stage += live;
        if (stage >= a.ring_slots) stage -= a.ring_slots, phase ^= 1;
    }
}

template <bool FP8, typename W, int ROWS, int SPLIT>
__device__ __forceinline__ void wide_consume(const rowmm_args &a, uint8_t *ring, uint8_t *xs, uint8_t *sums, wide_shared *sh, uint32_t rank, uint32_t warp, uint32_t lane)
{
    constexpr int N_TILES = W::N_TILES;
    const uint32_t own_range = warp % W::OWN_RANGES, set = warp / W::OWN_RANGES, range = rank * W::OWN_RANGES + own_range;
    const wide_work w = work_of(a, SPLIT);
    const uint8_t *x = xs + lane / 4 * W::ROW_BYTES + own_range * (W::RANGE * 2) + lane % 4 * 16;
    uint32_t stage = 0, phase = 0, sums_phase = 0;

    chain_wait();
    if (a.late_trigger) chain_trigger();
    if (threadIdx.x == 0) *(volatile uint32_t *)&sh->ready = 1;
    stage_rows<FP8, W, ROWS>(a, xs, sh, rank, warp, lane);
    asm volatile("bar.sync 1, %0;" ::"n"(CONSUMER_WARPS * 32) : "memory");
    if (threadIdx.x == 0) trace_mark(a.trace, TRACE_PAST_WAIT);
    cluster_wait();                   /* the peers' barriers exist */
    const uint32_t to = peer_address(sums, set) + range * (TILES_AT_ONCE * N_TILES * 512) + lane * 16, arrived = peer_address(sh->sums_full, set);

    for (uint32_t item = w.first; item < w.items; item += SPLIT * w.step) {
        const uint32_t live = live_sets(w, item, SPLIT);
        float acc[TILES_AT_ONCE][N_TILES][2][4] = {};

        if (set >= live) break;       /* only in the last round */
        uint32_t own = stage + set, own_phase = phase;
        if (own >= a.ring_slots) own -= a.ring_slots, own_phase ^= 1;
        wide_item<FP8, W, N_TILES>(acc, a, ring, x, sh, own, own_phase, live, own_range, lane);
        stage = own >= set ? own - set : own + a.ring_slots - set, phase = own >= set ? own_phase : own_phase ^ 1;

        mbar_wait(&sh->sums_empty[set], sums_phase ^ 1);
#pragma unroll
        for (int n = 0; n < N_TILES; n++) {
            const float2 inverse = *(const float2 *)&sh->inverse[own_range][n * 8 + lane % 4 * 2];

#pragma unroll
            for (int t = 0; t < TILES_AT_ONCE; t++)
                peer_store(to + (t * N_TILES + n) * 512, make_float4((acc[t][n][0][0] + acc[t][n][1][0]) * inverse.x, (acc[t][n][0][1] + acc[t][n][1][1]) * inverse.y,
                                                                     (acc[t][n][0][2] + acc[t][n][1][2]) * inverse.x, (acc[t][n][0][3] + acc[t][n][1][3]) * inverse.y), arrived + t * 8);
        }
        sums_phase ^= 1;
    }
}

/* ---- adding and storing ---- */

/* As gelu_tanh and finish_logit in rowmm.cu, bit by bit. */
__device__ __forceinline__ float wide_gelu(float x)
{
    const float inner = 0.7978845608028654f * (x + 0.044715f * x * x * x);

    return x * (1.0f - 1.0f / (1.0f + __expf(2.0f * inner)));
}

__device__ __forceinline__ float wide_logit(const rowmm_args &a, float x, uint32_t row)
{
    for (uint32_t i = 0; i < a.suppress_count; i++)
        if (a.suppress[i] == row) return __uint_as_float(0xff800000u);
    return a.softcap > 0.0f ? a.softcap * tanhf(x / a.softcap) : x;
}

/* v: rows g and g + 8 of the tile times activation rows m and m + 1. */
__device__ __forceinline__ void wide_store(const rowmm_args &a, float4 v, uint32_t tile, uint32_t slice, uint32_t m, uint32_t g)
{
#pragma unroll
    for (int i = 0; i < 2; i++) {
        float low = i ? v.y : v.x, high = i ? v.w : v.z;
        const bool live = m + i < a.m;

        if (a.out_kind == ROWMM_GEGLU) {
            if (live) ((__nv_bfloat16 *)a.out)[(uint64_t)(m + i) * a.out_stride + tile * 8 + g] = __float2bfloat16_rn(wide_gelu(low) * high);
            continue;
        }
        if (a.out_kind == ROWMM_LOGITS) {
            low = wide_logit(a, low, tile * TILE_ROWS + g);
            high = wide_logit(a, high, tile * TILE_ROWS + g + 8);
            float top = fmaxf(low, high);

            for (int d = 4; d < 32; d <<= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, d));
            if (live && g == 0) a.tile_top[(uint64_t)(m + i) * (a.out_stride / TILE_ROWS) + tile] = top;
        }
        if (live) {
            float *to = (float *)a.out + slice * a.out_slice_stride + (uint64_t)(m + i) * a.out_stride + tile * TILE_ROWS + g;

            to[0] = low;
            to[8] = high;
        }
    }
}

/* Block `rank` adds up the items of set `rank`, a warp a tile. Row scales come by ordinary loads, an item ahead. */
template <bool FP8, typename W, int SPLIT>
__device__ __forceinline__ void wide_epilogue(const rowmm_args &a, const uint8_t *sums, wide_shared *sh, uint32_t rank, uint32_t t, uint32_t lane)
{
    constexpr int N_TILES = W::N_TILES;
    const wide_work w = work_of(a, SPLIT);
    const float *scales = (const float *)a.w + lane / 4;
    uint32_t phase = 0, item = w.first + rank * w.step;
    float low = 1.0f, high = 1.0f;

    if (FP8 && item < w.items) low = __ldg(scales + (uint64_t)unit_of(w, item, t) * (W::UNIT_BYTES / 4)), high = __ldg(scales + (uint64_t)unit_of(w, item, t) * (W::UNIT_BYTES / 4) + 8);
    cluster_wait();
    chain_wait();
    const uint32_t freed = peer_address(&sh->sums_empty[rank], lane % SPLIT);

    for (; item < w.items; item += SPLIT * w.step) {
        const uint32_t unit = unit_of(w, item, t), next = item + SPLIT * w.step;
        float4 sum[N_TILES];
        float next_low = 1.0f, next_high = 1.0f;

        if (FP8 && next < w.items) next_low = __ldg(scales + (uint64_t)unit_of(w, next, t) * (W::UNIT_BYTES / 4)), next_high = __ldg(scales + (uint64_t)unit_of(w, next, t) * (W::UNIT_BYTES / 4) + 8);
        mbar_wait(&sh->sums_full[t], phase);
#pragma unroll
        for (int n = 0; n < N_TILES; n++) {
            float4 s = make_float4(0, 0, 0, 0);

#pragma unroll
            for (int r = 0; r < RANGES; r++) {
                const float4 p = ((const float4 *)sums)[((r * TILES_AT_ONCE + t) * N_TILES + n) * 32 + lane];

                s.x += p.x, s.y += p.y, s.z += p.z, s.w += p.w;
            }
            s.x *= low, s.y *= low, s.z *= high, s.w *= high;
            asm volatile("" ::"f"(s.x), "f"(s.y), "f"(s.z), "f"(s.w));    /* used before the arrival below */
            sum[n] = s;
        }
        if (lane == 0) mbar_arrive_expect(&sh->sums_full[t], RANGES * N_TILES * 512);      /* of the next item */
        __syncwarp();
        if (lane < SPLIT) peer_arrive(freed);
        phase ^= 1;
#pragma unroll
        for (int n = 0; n < N_TILES; n++) wide_store(a, sum[n], unit / w.slices, unit % w.slices, n * 8 + lane % 4 * 2, lane / 4);
        low = next_low, high = next_high;
    }
    if (lane == 0) trace_mark(a.trace, TRACE_END);
}

/* 120 registers for up to 32 rows leave room for a norm block beside it. */
template <bool FP8, int SLICE, int ROWS, int SPLIT>
__global__ void __maxnreg__(ROWS == 32 ? 120 : 168) rowmm_wide_kernel(const __grid_constant__ rowmm_args a)
{
    using W = wide<FP8, SLICE, ROWS, SPLIT>;
    extern __shared__ __align__(128) uint8_t ring[];
    uint8_t *xs = ring + a.ring_slots * W::STAGE_BYTES, *sums = xs + W::X_BYTES;
    wide_shared *sh = (wide_shared *)(sums + W::SUMS_BYTES);
    const uint32_t warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32, rank = cluster_rank();

    if (!a.late_trigger) chain_trigger();
    if (threadIdx.x == 0) {
        trace_mark(a.trace, TRACE_START);
        sh->ready = 0;
        for (uint32_t i = 0; i < a.ring_slots; i++) mbar_init(&sh->full[i], 1), mbar_init(&sh->empty[i], W::OWN_RANGES);
        for (uint32_t i = 0; i < SPLIT; i++) mbar_init(&sh->sums_empty[i], STORE_WARPS);
        for (uint32_t i = 0; i < TILES_AT_ONCE; i++) {
            mbar_init(&sh->sums_full[i], 1);
            mbar_arrive_expect(&sh->sums_full[i], RANGES * W::N_TILES * 512);
        }
        mbar_init_fence();
    }
    __syncthreads();
    cluster_arrive();
    if (warp < CONSUMER_WARPS) {
        wide_consume<FP8, W, ROWS, SPLIT>(a, ring, xs, sums, sh, rank, warp, lane);
    } else if (warp < CONSUMER_WARPS + STORE_WARPS) {
        wide_epilogue<FP8, W, SPLIT>(a, sums, sh, rank, warp - CONSUMER_WARPS, lane);
    } else {
        if (lane == 0) wide_produce<W, SPLIT>(a, ring, sh, rank);
        __syncwarp();
        cluster_wait();
    }
    __syncwarp();
    cluster_arrive();                 /* nobody leaves while a peer may still write here */
    cluster_wait();
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

int rowmm_wide_launch(const struct packed_matrix *w, struct rowmm_args args, const struct rowmm_tuning *tuning, void *stream)
{
    const struct wide_variant *v = &variants[variant_index(w->format == WEIGHT_FP8, w->slice_k == 4096, args.m > 32)];
    const uint32_t slices = w->slice_k ? w->k / w->slice_k : 0, slot_bytes = packed_slot_bytes(w->slice_k);
    uint32_t clusters = v->clusters;

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
    args.wait_slots = tuning->wait_slots * slot_bytes / v->stage_bytes;
    while (args.ring_slots * v->stage_bytes + v->fixed_bytes > LAUNCH_SHARED_MAX || args.ring_slots > STAGES_MAX) args.ring_slots--;
    if (args.ring_slots < v->split) return -E_RANGE;      /* a stage of every set */
    void *params[] = { &args };
    return launch_cluster(v, clusters, args.ring_slots * v->stage_bytes + v->fixed_bytes, params, stream, false, NULL);
}
