/* kernels/cuda/persist.cu - all layers of a step in one kernel (contract in persist.h).
 *
 * Who waits for whom, per layer: qkv (norm of the layer before) -> attention, by groups of heads -> adding of its chunks -> o -> norm -> gate_up ->
 * down, by k slices -> norm. Buffers are used again by the next layer: each step of that chain waits for ALL of the one before it, so whoever
 * writes a buffer again comes behind everybody who read it. */
#include "persist.h"
#include "attn_items.cuh"
#include "launch.h"
#include "norm_block.cuh"
#include "rowmm_block.cuh"
#include "rowmm_store.cuh"
#include "shm/error.h"

#define AUX_WARP CONSUMER_WARPS       /* the first of ATTN_WARPS */
#define EPILOGUE_WARP (AUX_WARP + ATTN_WARPS)
#define PRODUCER_WARP (EPILOGUE_WARP + 1)
#define WARPS (EPILOGUE_WARP + 4)     /* whole groups of 4: registers are dealt out by groups */
#define RING_MAX 10
#define SLOT_BYTES 20608u             /* the largest slot: 20 KB and a unit's header */
#define PARTIAL_BUFFERS 2
#define PARTIAL_BYTES (PARTIAL_BUFFERS * CONSUMER_WARPS * 512)
#define CONSUMER_BARRIER 2
#define SPIN_CLOCKS (1ll << 31)       /* about a second */
#define GROUP_TILES 64                /* of qkv in a sliding layer: a kv head with its two query heads */
#define LINE 32                       /* counters lie 128 bytes apart */
#define TASKS_TOTAL 1024              /* what the (row, head) tasks of a layer add up to, whatever the rows */
#ifndef OWN_NORM_ROWS
#define OWN_NORM_ROWS 1               /* up to so many rows each block computes the norms of all rows: 75 KB out of the L2 for a row */
#endif
#define ROWS_TOTAL 64                 /* the same for rows */

/* Counters of a layer. */
enum { C_QKV = 0, C_ATTN = 8, C_JOINED, C_O, C_NORM1, C_ACT, C_DOWN = C_ACT + NORM_SPLIT_MAX, C_NORM2, COUNTERS };

/* Events of a trace. */
enum { T_QKV_WAIT, T_QKV_END, T_ATTN_WAIT, T_ATTN_END, T_JOIN_WAIT, T_JOIN_END, T_O_WAIT, T_O_END, T_NORM1_WAIT, T_NORM1_END, T_GATE_UP_WAIT, T_GATE_UP_END,
       T_DOWN_WAIT, T_DOWN_END, T_NORM2_WAIT, T_NORM2_END };

struct persist_shared {               /* behind ring and partial sums */
    uint64_t full[RING_MAX], empty[RING_MAX];
    uint64_t part_full[PARTIAL_BUFFERS], part_empty[PARTIAL_BUFFERS];
    uint64_t normed;                  /* own_norms: the activations behind a norm are in shared memory */
    uint32_t waiting;                 /* 1: the consumers wait for other blocks */
    uint32_t step;                    /* number of this step: steps finished before it + 1 */
    float scale[PARTIAL_BUFFERS][TILE_ROWS];
};

/* ---- counters ---- */

/* Head of the counters: steps finished, blocks finished. */
__device__ __forceinline__ uint32_t *epoch_of(const persist_args &a) { return a.counters; }
__device__ __forceinline__ uint32_t *finished_of(const persist_args &a) { return a.counters + LINE; }
__device__ __forceinline__ uint32_t *counter(const persist_args &a, uint32_t layer, uint32_t which) { return a.counters + (2 + layer * COUNTERS + which) * LINE; }

/* W2 <- counter_add. Compared by difference: counters wrap around. */
__device__ __forceinline__ void counter_wait(const uint32_t *c, uint32_t target)
{
    const long long start = clock64();
    uint32_t value;

    for (;;) {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(c) : "memory");
        if ((int32_t)(value - target) >= 0) return;
        if (clock64() - start > SPIN_CLOCKS) __trap();
    }
}

/* W2: what this thread, and threads that it has met at a barrier, wrote before is visible to whoever sees the sum. */
__device__ __forceinline__ void counter_add(uint32_t *c, uint32_t n)
{
    asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(c), "r"(n) : "memory");
}

__device__ __forceinline__ void consumer_sync() { asm volatile("bar.sync %0, %1;" ::"n"(CONSUMER_BARRIER), "n"(CONSUMER_WARPS * 32) : "memory"); }

__device__ __forceinline__ void mark(const persist_args &a, uint32_t layer, uint32_t event)
{
    unsigned long long now, *words = a.trace + (layer * PERSIST_TRACE_EVENTS + event) * 2;

    if (a.trace == NULL) return;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now)::"memory");
    atomicMin(words, now);
    atomicMax(words + 1, now);
}

/* ---- which units, in which order ---- */

/* Where a walk over the step stands: every role of a block walks the same way. */
struct walk { uint32_t layer, start; };

__device__ __forceinline__ uint32_t layer_type(const persist_args &a, uint32_t layer) { return (uint32_t)a.layer[layer].type; }

/* The block's first unit of the next product; moves on. */
__device__ __forceinline__ uint32_t first_unit(walk &w, uint32_t units)
{
    const uint32_t first = (blockIdx.x + gridDim.x - w.start) % gridDim.x;

    w.start = (w.start + units) % gridDim.x;
    return first;
}

/* qkv of a sliding layer in groups: query heads 2g, 2g + 1, then k and v of kv head g. */
__device__ __forceinline__ uint32_t grouped_tile(uint32_t i)
{
    const uint32_t g = i / GROUP_TILES, j = i % GROUP_TILES;

    return j < 32 ? 32 * g + j : j < 48 ? 256 + 16 * g + (j - 32) : 384 + 16 * g + (j - 48);
}

__device__ __forceinline__ uint32_t unit_at(uint32_t phase, uint32_t type, uint32_t i) { return phase == PHASE_QKV && type == CUDA_SLIDING ? grouped_tile(i) : i; }

/* Units that one counter counts together. */
__device__ __forceinline__ uint32_t group_units(const persist_args &a, uint32_t phase, uint32_t type)
{
    if (phase == PHASE_QKV && type == CUDA_SLIDING) return GROUP_TILES;
    if (phase == PHASE_GATE_UP) return a.units[type][phase] / a.slices[type][PHASE_DOWN];
    return a.units[type][phase];
}

/* ---- producer ---- */

struct producer {
    uint32_t stage, phase, behind, behind_phase, in_flight;
    const uint8_t *l2_from;           /* gate_up of this layer, our first unit */
    uint32_t l2_units;                /* ours */
    uint32_t l2_at, l2_left;          /* next slot of it for the L2, counted over our units; slots that may follow */
    uint32_t l2_issued;               /* slots of it that the ring has asked for */
};

/* The ring is full and the consumers wait for other blocks, so the memory would be idle. Some of gate_up's slots go to the L2, at no more than the
 * memory's own pace: a burst would stand in the way of the loads that everybody waits for. Every stride-th: what the L2 holds in a run is read with
 * the memory idle beside it. */
__device__ __forceinline__ void prefetch_while_full(const persist_args &a, producer &p, persist_shared *sh)
{
    using G = geometry<WEIGHT_FP8, 3840>;

    while (p.l2_left && p.l2_at / G::SLOTS < p.l2_units && *(volatile uint32_t *)&sh->waiting) {
        if (p.l2_at >= p.l2_issued) {
            const uint8_t *from = p.l2_from + (uint64_t)(p.l2_at / G::SLOTS) * gridDim.x * G::UNIT_BYTES + p.l2_at % G::SLOTS * G::DATA_BYTES;

            for (uint32_t half = 0; half < 2; half++) {
                if (mbar_test(&sh->empty[p.stage], p.phase ^ 1)) return;
                bulk_prefetch(from + half * (G::DATA_BYTES / 2), G::DATA_BYTES / 2 + UNIT_HEADER_BYTES);      /* the unit's header shifts its slots */
                __nanosleep(a.l2_pace_ns);
            }
            p.l2_left--;
        }
        p.l2_at += a.l2_stride;
    }
}

template <int SLICE>
__device__ __forceinline__ void produce(const persist_args &a, producer &p, uint8_t *ring, persist_shared *sh, const uint8_t *w, uint32_t phase, uint32_t type, uint32_t first,
                                        uint64_t policy)
{
    using G = geometry<WEIGHT_FP8, SLICE>;

    for (uint32_t i = first; i < a.units[type][phase]; i += gridDim.x) {
        const uint8_t *from = w + (uint64_t)unit_at(phase, type, i) * G::UNIT_BYTES;

#pragma unroll 1
        for (int slot = 0; slot < G::SLOTS; slot++) {
            const uint32_t bytes = G::DATA_BYTES + (slot == 0 ? UNIT_HEADER_BYTES : 0);

            if (p.l2_left && !mbar_test(&sh->empty[p.stage], p.phase ^ 1)) prefetch_while_full(a, p, sh);
            mbar_wait(&sh->empty[p.stage], p.phase ^ 1);
            /* While others still compute what we wait for, few copies in flight: every one of them makes their loads slower. */
            const uint32_t window = *(volatile uint32_t *)&sh->waiting ? a.wait_slots : a.window_slots;

            for (; p.in_flight >= window; p.in_flight--) {
                mbar_wait(&sh->full[p.behind], p.behind_phase);
                if (++p.behind == a.ring_slots) p.behind = 0, p.behind_phase ^= 1;
            }
            mbar_arrive_expect(&sh->full[p.stage], bytes);
            bulk_load(ring + p.stage * SLOT_BYTES, from, bytes, &sh->full[p.stage], policy);
            from += bytes;
            p.in_flight++;
            p.l2_issued += phase == PHASE_GATE_UP;
            if (++p.stage == a.ring_slots) p.stage = 0, p.phase ^= 1;
        }
    }
}

__device__ __forceinline__ void producer_role(const persist_args &a, uint8_t *ring, persist_shared *sh)
{
    const uint64_t policy = policy_evict_first();
    producer p = {};
    walk w = {};

    for (; w.layer < a.layers; w.layer++) {
        const uint32_t type = layer_type(a, w.layer);

#pragma unroll 1
        for (uint32_t phase = 0; phase < PHASES; phase++) {
            const uint8_t *from = a.weights + a.layer[w.layer].matrix[phase];
            const uint32_t first = first_unit(w, a.units[type][phase]);

            if (phase == PHASE_O) {
                walk next = w;
                const uint32_t ours = first_unit(next, 0);

                p.l2_from = a.weights + a.layer[w.layer].matrix[PHASE_GATE_UP] + (uint64_t)ours * geometry<WEIGHT_FP8, 3840>::UNIT_BYTES;
                p.l2_units = (a.units[type][PHASE_GATE_UP] - ours + gridDim.x - 1) / gridDim.x;
                p.l2_at = 2, p.l2_left = a.l2_slots, p.l2_issued = 0;
            }
            if (phase == PHASE_DOWN) p.l2_left = 0;
            if (phase == PHASE_O) produce<4096>(a, p, ring, sh, from, phase, type, first, policy);
            else produce<3840>(a, p, ring, sh, from, phase, type, first, policy);
        }
    }
}

/* ---- consumers ---- */

struct consumer { uint32_t stage, phase, buffer, buffer_phase; };

/* The consumers' activations: [m][k] bf16, from element `at` of each row. */
template <int SLICE>
__device__ __forceinline__ void load_rows(uint32_t (&x)[SLICE / CONSUMER_WARPS / 32][4], const __nv_bfloat16 *rows, uint32_t k, uint32_t at, uint32_t m_max, uint32_t warp, uint32_t lane)
{
    const uint32_t m = lane / 4;
    const __nv_bfloat16 *from = rows + (uint64_t)m * k + at + warp * (SLICE / CONSUMER_WARPS) + lane % 4 * 8;

#pragma unroll
    for (int b = 0; b < SLICE / CONSUMER_WARPS / 32; b++) {
        const uint4 v = m < m_max ? ld_l2((const uint4 *)(from + b * 32)) : make_uint4(0, 0, 0, 0);

        x[b][0] = v.x, x[b][1] = v.y, x[b][2] = v.z, x[b][3] = v.w;
    }
}

/* The same of one to a few rows in our own shared memory. */
template <int SLICE>
__device__ __forceinline__ void load_own_rows(uint32_t (&x)[SLICE / CONSUMER_WARPS / 32][4], const __nv_bfloat16 *rows, uint32_t m_max, uint32_t warp, uint32_t lane)
{
    const uint32_t m = lane / 4;
    const __nv_bfloat16 *from = rows + m * SLICE + warp * (SLICE / CONSUMER_WARPS) + lane % 4 * 8;

#pragma unroll
    for (int b = 0; b < SLICE / CONSUMER_WARPS / 32; b++) {
        const uint4 v = m < m_max ? ld_shared(from + b * 32) : make_uint4(0, 0, 0, 0);

        x[b][0] = v.x, x[b][1] = v.y, x[b][2] = v.z, x[b][3] = v.w;
    }
}

/* own_rows: the activations are in shared memory at `rows`. */
template <int SLICE>
__device__ __forceinline__ void consume(const persist_args &a, consumer &c, const uint8_t *ring, uint8_t *partials, persist_shared *sh, const __nv_bfloat16 *rows, bool own_rows, uint32_t k,
                                        uint32_t at, uint32_t first, uint32_t units, uint32_t warp, uint32_t lane)
{
    using G = geometry<WEIGHT_FP8, SLICE>;
    uint32_t x[1][G::BLOCKS][4];

    if (own_rows) load_own_rows<SLICE>(x[0], rows, a.rows, warp, lane);
    else load_rows<SLICE>(x[0], rows, k, at, a.rows, warp, lane);
    const float own = scale_to_f16(x[0]);      /* of row lane / 4; the accumulators hold rows 2t, 2t + 1 */
    const float inverse[2] = { __shfl_sync(0xffffffffu, own, lane % 4 * 8), __shfl_sync(0xffffffffu, own, lane % 4 * 8 + 4) };

#pragma unroll 1
    for (uint32_t i = first; i < units; i += gridDim.x) {
        float acc[1][2][4] = {}, scale = 1.0f;

#pragma unroll
        for (int slot = 0; slot < G::SLOTS; slot++) {
            const uint8_t *from = ring + c.stage * SLOT_BYTES;
            uint4 w[G::LOADS];

            mbar_wait(&sh->full[c.stage], c.phase);
            if (slot == 0) {
                if (warp == 0) scale = *(const float *)(from + lane % TILE_ROWS * 4);
                from += UNIT_HEADER_BYTES;
            }
#pragma unroll
            for (int l = 0; l < G::LOADS; l++) w[l] = ld_shared(from + ((warp * G::LOADS + l) * 32 + lane) * 16);
#pragma unroll
            for (int l = 0; l < G::LOADS; l++) multiply<WEIGHT_FP8, G::BLOCKS, 1>(acc, w[l], x, slot * G::LOADS + l);
            uint32_t loaded = __float_as_uint(scale);      /* why: see rowmm.cu */
#pragma unroll
            for (int l = 0; l < G::LOADS; l++) loaded |= w[l].x;
            if (lane == 0) mbar_arrive_at(smem_address(&sh->empty[c.stage]) + (loaded & a.zero));
            if (++c.stage == a.ring_slots) c.stage = 0, c.phase ^= 1;
        }

        mbar_wait(&sh->part_empty[c.buffer], c.buffer_phase ^ 1);
        float4 *to = (float4 *)(partials + (c.buffer * CONSUMER_WARPS + warp) * 512) + lane;

        *to = make_float4((acc[0][0][0] + acc[0][1][0]) * inverse[0], (acc[0][0][1] + acc[0][1][1]) * inverse[1],
                          (acc[0][0][2] + acc[0][1][2]) * inverse[0], (acc[0][0][3] + acc[0][1][3]) * inverse[1]);
        if (warp == 0 && lane < TILE_ROWS) sh->scale[c.buffer][lane] = scale;
        __syncwarp();
        if (lane == 0) mbar_arrive(&sh->part_full[c.buffer]);
        if (++c.buffer == PARTIAL_BUFFERS) c.buffer = 0, c.buffer_phase ^= 1;
    }
}

/* Until the activations of a product are there. */
__device__ __forceinline__ void consumers_wait(const persist_args &a, persist_shared *sh, uint32_t phase, uint32_t layer, uint32_t slice)
{
    if (threadIdx.x == 0 && (phase != PHASE_QKV || layer != 0)) {
        const uint32_t type = layer_type(a, layer), units = group_units(a, PHASE_GATE_UP, type);
        const uint32_t which = phase == PHASE_QKV ? C_NORM2 : phase == PHASE_O ? C_JOINED : phase == PHASE_GATE_UP ? C_NORM1 : C_ACT + slice;
        const uint32_t total = phase == PHASE_O ? TASKS_TOTAL : phase == PHASE_DOWN ? units : ROWS_TOTAL;

        *(volatile uint32_t *)&sh->waiting = 1;
        if (a.own_norms && total == ROWS_TOTAL) mbar_wait(&sh->normed, phase == PHASE_QKV);     /* behind a layer's first norm gate_up, behind its second qkv */
        else counter_wait(counter(a, layer - (phase == PHASE_QKV), which), sh->step * total);
        *(volatile uint32_t *)&sh->waiting = 0;
    }
    consumer_sync();
    if (threadIdx.x == 0) mark(a, layer, phase == PHASE_QKV ? T_QKV_WAIT : phase == PHASE_O ? T_O_WAIT : phase == PHASE_GATE_UP ? T_GATE_UP_WAIT : T_DOWN_WAIT);
}

__device__ __forceinline__ void consumer_role(const persist_args &a, const uint8_t *ring, uint8_t *partials, const __nv_bfloat16 *normed, persist_shared *sh, uint32_t warp, uint32_t lane)
{
    consumer c = {};
    walk w = {};

    for (; w.layer < a.layers; w.layer++) {
        const uint32_t type = layer_type(a, w.layer);

#pragma unroll 1
        for (uint32_t phase = 0; phase < PHASES; phase++) {
            const uint32_t units = a.units[type][phase], first = first_unit(w, units), slice = first % a.slices[type][phase];

            consumers_wait(a, sh, phase, w.layer, slice);
            if (phase == PHASE_O) {
                consume<4096>(a, c, ring, partials, sh, a.attn_out, false, a.q_rows[type], slice * 4096, first, units, warp, lane);
            } else {
                const bool down = phase == PHASE_DOWN, own = a.own_norms && !down && (phase != PHASE_QKV || w.layer != 0);

                consume<3840>(a, c, ring, partials, sh, own ? normed : down ? a.act : a.x, own, down ? a.intermediate : a.hidden, slice * 3840, first, units, warp, lane);
            }
        }
    }
}

/* ---- epilogue ---- */

/* The sum of a unit over the consumer warps, times its rows' scales. */
__device__ __forceinline__ float4 unit_sum(const uint8_t *partials, persist_shared *sh, uint32_t buffer, uint32_t phase, uint32_t lane)
{
    float4 sum = make_float4(0, 0, 0, 0);

    mbar_wait(&sh->part_full[buffer], phase);
    const float low = sh->scale[buffer][lane / 4], high = sh->scale[buffer][lane / 4 + 8];
#pragma unroll
    for (int w = 0; w < CONSUMER_WARPS; w++) {
        const float4 p = ((const float4 *)(partials + (buffer * CONSUMER_WARPS + w) * 512))[lane];

        sum.x += p.x, sum.y += p.y, sum.z += p.z, sum.w += p.w;
    }
    sum.x *= low, sum.y *= low, sum.z *= high, sum.w *= high;
    asm volatile("" ::"f"(sum.x), "f"(sum.y), "f"(sum.z), "f"(sum.w));    /* used before the arrival below */
    __syncwarp();
    if (lane == 0) mbar_arrive(&sh->part_empty[buffer]);
    return sum;
}

/* Where the sums of a phase go, as store_tile wants it. */
__device__ __forceinline__ rowmm_args store_args(const persist_args &a, uint32_t phase, uint32_t type)
{
    rowmm_args r = {};

    r.m = a.rows;
    r.out_kind = phase == PHASE_GATE_UP ? ROWMM_GEGLU : ROWMM_PARTIAL;
    r.out = phase == PHASE_QKV ? (void *)a.qkv : phase == PHASE_GATE_UP ? (void *)a.act : (void *)a.part;
    r.out_stride = phase == PHASE_QKV ? a.qkv_rows[type] : phase == PHASE_GATE_UP ? a.intermediate : a.hidden;
    r.out_slice_stride = (uint64_t)a.rows_max * a.hidden;
    return r;
}

__device__ __forceinline__ void epilogue_role(const persist_args &a, const uint8_t *partials, persist_shared *sh, uint32_t lane)
{
    uint32_t buffer = 0, buffer_phase = 0;
    walk w = {};

    for (; w.layer < a.layers; w.layer++) {
        const uint32_t type = layer_type(a, w.layer);

#pragma unroll 1
        for (uint32_t phase = 0; phase < PHASES; phase++) {
            const uint32_t units = a.units[type][phase], group = group_units(a, phase, type), slices = a.slices[type][phase];
            const uint32_t base = phase == PHASE_QKV ? C_QKV : phase == PHASE_O ? C_O : phase == PHASE_GATE_UP ? C_ACT : C_DOWN;
            const rowmm_args r = store_args(a, phase, type);
            uint32_t done = 0;

#pragma unroll 1
            for (uint32_t i = first_unit(w, units); i < units; i += gridDim.x) {
                const float4 sum = unit_sum(partials, sh, buffer, buffer_phase, lane);
                const uint32_t unit = unit_at(phase, type, i), next = i + gridDim.x;

                store_tile(r, sum, unit / slices, unit % slices, lane % 4 * 2, lane / 4);
                done++;
                if (next >= units || next / group != i / group) {      /* our last unit of a group: one fence for all of them */
                    __syncwarp();
                    if (lane == 0) counter_add(counter(a, w.layer, base + i / group), done);
                    done = 0;
                }
                if (++buffer == PARTIAL_BUFFERS) buffer = 0, buffer_phase ^= 1;
            }
            if (lane == 0) mark(a, w.layer, phase == PHASE_QKV ? T_QKV_END : phase == PHASE_O ? T_O_END : phase == PHASE_GATE_UP ? T_GATE_UP_END : T_DOWN_END);
        }
    }
}

/* ---- auxiliary warps: attention and norms ---- */

__device__ __forceinline__ void aux_wait(const uint32_t *c, uint32_t target)
{
    if (attn_thread() == 0) counter_wait(c, target);
    attn_sync();
}

__device__ __forceinline__ void aux_arrive(uint32_t *c, uint32_t n)
{
    attn_sync();
    if (attn_thread() == 0) counter_add(c, n);
}

/* One layer's attention: this block's items. Keys of earlier steps are asked for before the wait. */
template <int D>
__device__ __forceinline__ void attend(const persist_args &p, const attn_args &a, uint8_t *shared, uint32_t layer, uint32_t step, uint32_t warp, uint32_t lane)
{
    attn_shared<D> &sh = *(attn_shared<D> *)shared;
    const uint32_t rows_per_item = D == 512 ? full_rows_per_item(a) : 0, target = step * group_units(p, PHASE_QKV, D == 512 ? CUDA_FULL : CUDA_SLIDING);
    item it;

#pragma unroll 1
    for (uint32_t index = blockIdx.x; D == 256 ? find_sliding(it, a, index) : find_full(it, a, rows_per_item, index); index += gridDim.x) {
        const uint32_t p0 = it.group.first_position;
        const uint32_t first = a.window && p0 + 1 > a.window ? p0 + 1 - a.window : 0;
        const bool fresh = it.span.end > p0;       /* holds positions of this step */
        uint4 k[8];
        uint32_t v[32];

        load_constants<D>(a, it, sh);
        clear_dead_rows<D>(it, sh);
        load_k<D>(k, a, it, it.span.first, first, p0, warp, lane);
        load_v<D>(v, a, it, it.span.first, first, p0, warp, lane);
        const uint32_t page = fresh ? fresh_page(a, it, warp) : 0;

        aux_wait(counter(p, layer, C_QKV + (D == 256 ? it.head : 0)), target);
        if (attn_thread() == 0) mark(p, layer, T_ATTN_WAIT);
        prepare<D>(a, it, it.row_first, fresh, sh, warp, lane);
        attn_sync();
        if (fresh) store_fresh<D>(a, it, page, sh, warp, lane);
        if constexpr (D == 256) {
            float out[4][4] = {}, top[2] = { NEVER, NEVER }, sum[2] = { 0.0f, 0.0f };

            work_sliding(a, it, fresh, k, v, out, top, sum, sh, warp, lane);
            store_partial<256>(a, it, 0, out, top, sum, warp, lane);
            attn_sync();              /* q and p are written again */
        } else {
            work_full(a, it, k, v, sh, warp, lane);
        }
    }
    aux_arrive(counter(p, layer, C_ATTN), 1);
    if (attn_thread() == 0) mark(p, layer, T_ATTN_END);
}

/* One (row, head) a block: adds what the items left. */
template <int D>
__device__ __forceinline__ void join(const persist_args &p, const attn_args &a, uint32_t layer, uint32_t step)
{
    const uint32_t task = blockIdx.x;

    if (task >= p.rows * ATTN_HEADS) return;
    const uint32_t spans = D == 512 ? task_spans(a, task) : task / ATTN_HEADS < a.state->rows;

    aux_wait(counter(p, layer, C_ATTN), step * gridDim.x);
    if (attn_thread() == 0) mark(p, layer, T_JOIN_WAIT);
    if (spans) {
        if (D == 512) combine_spans(a, task, spans, attn_thread());
        else if (attn_thread() < 128) join_chunks(a, task, attn_thread());
    }
    aux_arrive(counter(p, layer, C_JOINED), TASKS_TOTAL / ATTN_HEADS / p.rows);
    if (attn_thread() == 0) mark(p, layer, T_JOIN_END);
}

template <int D>
__device__ __forceinline__ void attention(const persist_args &p, uint8_t *shared, uint32_t layer, uint32_t step, uint32_t warp, uint32_t lane)
{
    const persist_layer &l = p.layer[layer];
    attn_args a = p.attn[D == 512 ? CUDA_FULL : CUDA_SLIDING];

    a.k_offset = l.k_offset, a.v_offset = l.v_offset;
    a.q_norm = (const __nv_bfloat16 *)(p.weights + l.q_norm), a.k_norm = (const __nv_bfloat16 *)(p.weights + l.k_norm);
    attend<D>(p, a, shared, layer, step, warp, lane);
    join<D>(p, a, layer, step);
}

/* The norms behind o (second = 0) or down: of one row in each of the last blocks; or with own_norms of all rows in every block, the last of which write
 * down the residual for all. */
__device__ __forceinline__ void norms(const persist_args &p, uint8_t *shared, __nv_bfloat16 *normed, persist_shared *psh, uint32_t layer, uint32_t second, uint32_t step, uint32_t warp,
                                      uint32_t lane)
{
    norm_shared &sh = *(norm_shared *)shared;
    const persist_layer &l = p.layer[layer];
    const uint32_t row = gridDim.x - 1 - blockIdx.x, type = layer_type(p, layer), phase = second ? PHASE_DOWN : PHASE_O, split = p.slices[type][phase];
    const auto sync = [] { attn_sync(); };
    norm_args n = {};

    const bool last = second && layer + 1 == p.layers, own = p.own_norms && !last;     /* the last one is for the LM head: no block of ours reads it */

    if (row >= p.rows && !own) return;
    n.part = p.part;
    n.part_stride = (uint64_t)p.rows_max * p.hidden;
    n.hidden = p.hidden;
    n.residual = second ? p.residual[1] : p.residual[0];
    n.w_post = (const __nv_bfloat16 *)(p.weights + (second ? l.post_ff_norm : l.post_attention_norm));
    n.w_next = (const __nv_bfloat16 *)(p.weights + (second ? l.next_norm : l.pre_ff_norm));
    n.eps = p.eps;
    n.y = own ? normed : p.x;
    norm_weights(n, sh, attn_thread(), ATTN_WARPS * 32);
    const float scalar = second ? __ldg((const float *)(p.weights + l.scalar)) : 1.0f;

    aux_wait(counter(p, layer, second ? C_DOWN : C_O), step * p.units[type][phase]);
    if (attn_thread() == 0) mark(p, layer, second ? T_NORM2_WAIT : T_NORM1_WAIT);
#pragma unroll 1
    for (uint32_t r = own ? 0 : row; r < (own ? p.rows : row + 1); r++) {
        n.residual_out = own && r != row ? NULL : second ? p.residual[0] : p.residual[1];
        if (split == 4) norm_row<4, ATTN_WARPS>(n, sh, scalar, r, warp, lane, sync);
        else if (split == 2) norm_row<2, ATTN_WARPS>(n, sh, scalar, r, warp, lane, sync);
        else norm_row<1, ATTN_WARPS>(n, sh, scalar, r, warp, lane, sync);
    }
    if (own) {
        attn_sync();
        if (attn_thread() == 0) mbar_arrive(&psh->normed);
    } else {
        aux_arrive(counter(p, layer, second ? C_NORM2 : C_NORM1), ROWS_TOTAL / p.rows);
    }
    if (attn_thread() == 0) mark(p, layer, second ? T_NORM2_END : T_NORM1_END);
}

__device__ __forceinline__ void aux_role(const persist_args &p, uint8_t *shared, __nv_bfloat16 *normed, persist_shared *psh, uint32_t step, uint32_t warp, uint32_t lane)
{
#pragma unroll 1
    for (uint32_t layer = 0; layer < p.layers; layer++) {
        if (layer_type(p, layer) == CUDA_FULL) attention<512>(p, shared, layer, step, warp, lane);
        else attention<256>(p, shared, layer, step, warp, lane);
#pragma unroll 1
        for (uint32_t second = 0; second < 2; second++) {
            norms(p, shared, normed, psh, layer, second, step, warp, lane);
            attn_sync();              /* the weights of the last norm were read */
        }
    }
    attn_sync();
    if (attn_thread() == 0) {
        const uint32_t before = atomicAdd(finished_of(p), 1);

        if ((before + 1) % gridDim.x == 0) *(volatile uint32_t *)epoch_of(p) = step;      /* all blocks have read it */
    }
}

/* ---- the kernel ---- */

/* 20 warps with 96 registers fill an SM; the auxiliary warps need 112 (the keys of an item), the last group gives them up. */
#define AUX_REGISTERS 112
#define SERVICE_REGISTERS 64

__global__ void __launch_bounds__(WARPS * 32, 1) persist_kernel(const __grid_constant__ persist_args a)
{
    extern __shared__ __align__(128) uint8_t ring[];
    uint8_t *partials = ring + a.ring_slots * SLOT_BYTES, *aux = partials + PARTIAL_BYTES;
    __nv_bfloat16 *normed = (__nv_bfloat16 *)(aux + a.aux_bytes);
    persist_shared *sh = (persist_shared *)(normed + (a.own_norms ? a.rows * a.hidden : 0));
    const uint32_t warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32;

    chain_wait();
    if (threadIdx.x == 0) {
        sh->waiting = 0;
        sh->step = *(volatile uint32_t *)epoch_of(a) + 1;
        for (uint32_t i = 0; i < a.ring_slots; i++) mbar_init(&sh->full[i], 1), mbar_init(&sh->empty[i], CONSUMER_WARPS);
        for (uint32_t i = 0; i < PARTIAL_BUFFERS; i++) mbar_init(&sh->part_full[i], CONSUMER_WARPS), mbar_init(&sh->part_empty[i], 1);
        mbar_init(&sh->normed, 1);
        mbar_init_fence();
    }
    __syncthreads();
    if (warp < AUX_WARP) {
        consumer_role(a, ring, partials, normed, sh, warp, lane);
    } else if (warp < EPILOGUE_WARP) {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(AUX_REGISTERS));
        aux_role(a, aux, normed, sh, sh->step, warp - AUX_WARP, lane);
    } else {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(SERVICE_REGISTERS));
        if (warp == EPILOGUE_WARP) epilogue_role(a, partials, sh, lane);
        else if (warp == PRODUCER_WARP && lane == 0) producer_role(a, ring, sh);
    }
}

uint64_t persist_counter_bytes(uint32_t layers) { return (2ull + (uint64_t)layers * COUNTERS) * LINE * sizeof(uint32_t); }

int persist_init(void) { return launch_prepare((const void *)persist_kernel, LAUNCH_SHARED_MAX); }

static bool shapes_fit(const struct persist_args *a, uint32_t blocks)
{
    if (a->rows == 0 || a->rows > PERSIST_ROWS_MAX || ROWS_TOTAL % a->rows || a->rows * ATTN_HEADS > blocks) return false;
    if (a->hidden != 3840 || a->layers == 0 || a->layers > CUDA_LAYERS_MAX) return false;
    for (uint32_t t = 0; t < 2; t++)
        for (uint32_t p = 0; p < PHASES && a->units[t][PHASE_QKV]; p++)      /* a model may lack a type of layers */
            if (a->units[t][p] < blocks || blocks % a->slices[t][p]) return false;      /* every block has units of every product; a slice of its own */
    return a->units[CUDA_SLIDING][PHASE_QKV] == 0 || a->units[CUDA_SLIDING][PHASE_QKV] == 8 * GROUP_TILES;
}

int persist_launch(const struct persist_args *args, uint32_t sm_count, void *stream)
{
    persist_args a = *args;
    const uint32_t blocks = sm_count - sm_count % NORM_SPLIT_MAX, sliding = attn_shared_bytes<256>(a.rows, a.attn[0].turned);
    const uint32_t full = attn_shared_bytes<512>(a.rows, a.attn[1].turned), norm = (uint32_t)sizeof(norm_shared);
    cudaLaunchAttribute attribute[1];
    cudaLaunchConfig_t config = {};
    void *params[] = { &a };

    if (!shapes_fit(&a, blocks)) return -E_UNSUPPORTED;
    a.zero = 0;
    a.aux_bytes = ((sliding > full ? sliding > norm ? sliding : norm : full > norm ? full : norm) + 127) / 128 * 128;
    a.own_norms = a.rows <= OWN_NORM_ROWS;
    const uint32_t fixed = PARTIAL_BYTES + a.aux_bytes + (a.own_norms ? a.rows * a.hidden * 2 : 0) + (uint32_t)sizeof(persist_shared);

    while (a.ring_slots > RING_MAX || a.ring_slots * SLOT_BYTES + fixed > LAUNCH_SHARED_MAX) a.ring_slots--;
    if (a.ring_slots < 4) return -E_UNSUPPORTED;
    attribute[0].id = cudaLaunchAttributeCooperative;
    attribute[0].val.cooperative = 1;
    config.gridDim = dim3(blocks);
    config.blockDim = dim3(WARPS * 32);
    config.dynamicSmemBytes = a.ring_slots * SLOT_BYTES + fixed;
    config.stream = (cudaStream_t)stream;
    config.attrs = attribute;
    config.numAttrs = 1;
    return launch_check(cudaLaunchKernelExC(&config, (const void *)persist_kernel, params), "persistent kernel");
}
