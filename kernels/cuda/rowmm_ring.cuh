/* kernels/cuda/rowmm_ring.cuh - the ring of a small-row product: the lane that fills it, and the warp that adds and stores what the consumers leave
 * (used by rowmm.cu). */
#ifndef SLUICE_CUDA_ROWMM_RING_CUH
#define SLUICE_CUDA_ROWMM_RING_CUH

#include "rowmm_block.cuh"
#include "rowmm_store.cuh"

#define RING_MAX 11
#define PARTIAL_BUFFERS 2

/* volatile: all are asked for before the first is used */
__device__ __forceinline__ uint4 ld_l2_now(const void *p)
{
    uint4 v;

    asm volatile("ld.global.cg.v4.u32 {%0,%1,%2,%3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}

struct rowmm_shared {                 /* behind the ring */
    uint64_t full[RING_MAX], empty[RING_MAX];
    uint64_t part_full[PARTIAL_BUFFERS], part_empty[PARTIAL_BUFFERS];
    uint32_t ready, done;             /* 1: the consumers are past their wait; the last unit is stored */
    float scale[PARTIAL_BUFFERS][TILE_ROWS];
};

/* Our weights are all in the ring and the predecessor still runs: the memory would be idle. What the next product reads first goes to the
 * L2, at no more than the memory's own pace: a burst would stand in the way of the loads that we wait for. */
__device__ __forceinline__ void prefetch_next(const rowmm_args &a, rowmm_shared *sh)
{
    const rowmm_next &n = a.next;
    const uint32_t piece = n.slot_bytes / 2;

    uint32_t unit = blockIdx.x, slot = 0;

    if (unit >= n.blocks) return;
#pragma unroll 1
    for (uint32_t i = 0; i < 2 * n.count; i++) {
        const uint8_t *from = n.w + (uint64_t)unit * n.unit_bytes + slot * n.slot_bytes + i % 2 * piece;

        if (unit >= n.units || *(volatile uint32_t *)&sh->done) return;
        bulk_prefetch(from, piece + n.header_bytes);      /* the unit's header shifts its slots */
        __nanosleep(n.pace_ns);
        if (i % 2)
            for (slot += n.stride; slot >= n.unit_slots; slot -= n.unit_slots) unit += n.blocks;
    }
}

template <uint32_t FORMAT, int SLICE>
__device__ __forceinline__ void produce(const rowmm_args &a, uint8_t *ring, rowmm_shared *sh)
{
    using G = geometry<FORMAT, SLICE>;
    const uint64_t policy = policy_evict_first();
    uint32_t stage = 0, phase = 0, behind = 0, behind_phase = 0, in_flight = 0, window = a.wait_slots;

    for (uint32_t unit = blockIdx.x; unit < a.units; unit += gridDim.x) {
        const uint8_t *from = a.w + (uint64_t)unit * G::UNIT_BYTES;

#pragma unroll 1
        for (int slot = 0; slot < G::SLOTS; slot++) {
            const uint32_t bytes = (slot == 0 ? G::HEADER_BYTES : 0) + (slot + 1 < G::SLOTS ? G::DATA_BYTES : G::LAST_BYTES);

            mbar_wait(&sh->empty[stage], phase ^ 1);
            /* While others still compute what we wait for, few copies in flight: every one of them makes their loads slower. */
            if (window != a.window_slots && *(volatile uint32_t *)&sh->ready) window = a.window_slots;
            for (; in_flight >= window; in_flight--) {
                mbar_wait(&sh->full[behind], behind_phase);
                if (++behind == a.ring_slots) behind = 0, behind_phase ^= 1;
            }
            mbar_arrive_expect(&sh->full[stage], bytes);
            bulk_load(ring + stage * G::SLOT_BYTES, from, bytes, &sh->full[stage], policy);
            from += bytes;
            in_flight++;
            if (++stage == a.ring_slots) stage = 0, phase ^= 1;
        }
    }
    if (a.next.w == NULL) return;
#pragma unroll 1
    for (; in_flight > 0; in_flight--) {
        mbar_wait(&sh->full[behind], behind_phase);
        if (++behind == a.ring_slots) behind = 0, behind_phase ^= 1;
    }
    prefetch_next(a, sh);
}

__device__ __forceinline__ round_by rule_of_row(const rowmm_shared *sh, uint32_t lane);

template <bool LATE, int TILES, enum kernel_kind KIND>
__device__ __forceinline__ void epilogue(const rowmm_args &a, const uint8_t *partials, rowmm_shared *sh, uint32_t lane)
{
    uint32_t buffer = 0, phase = 0;
    const row_powers power = row_powers_of(a);
    float2 x_scale[TILES];

    chain_wait();
#pragma unroll
    for (int n = 0; n < TILES; n++) x_scale[n] = row_scales(a, n * 8 + lane % 4 * 2, power);
    if (KIND == KERNEL_ROUNDS) x_scale[0].x = x_scale[0].y = rule_of_row(sh, lane).scale;
    for (uint32_t unit = blockIdx.x; unit < a.units; unit += gridDim.x) {
        float4 sum[TILES];
        float low = 1.0f, high = 1.0f;
        uint32_t read = 0;

        mbar_wait(&sh->part_full[buffer], phase);
        if (LATE) low = sh->scale[buffer][lane / 4], high = sh->scale[buffer][lane / 4 + 8];
#pragma unroll
        for (int n = 0; n < TILES; n++) {
            sum[n] = make_float4(0, 0, 0, 0);
#pragma unroll
            for (int w = 0; w < CONSUMER_WARPS; w++) {
                const float4 p = ((const float4 *)(partials + (buffer * CONSUMER_WARPS + w) * (TILES * 512)))[n * 32 + lane];

                sum[n].x += p.x, sum[n].y += p.y, sum[n].z += p.z, sum[n].w += p.w;
            }
            sum[n].x *= low, sum[n].y *= low, sum[n].z *= high, sum[n].w *= high;
            read |= __float_as_uint(sum[n].x) | __float_as_uint(sum[n].z);
        }
        __syncwarp();
        /* As in rowmm.cu: an arrival that does not depend on what was read is moved in front of the last loads (seen: 16 rows, one position of 40). */
        if (lane == 0) mbar_arrive_at(smem_address(&sh->part_empty[buffer]) + (read & a.zero));
#pragma unroll
        for (int n = 0; n < TILES; n++)
            store_tile<KIND>(a, sum[n], tile_of(a.slices, unit), slice_of(a.slices, unit), n * 8 + lane % 4 * 2, lane / 4, x_scale[n], power.out);
        if (++buffer == PARTIAL_BUFFERS) buffer = 0, phase ^= 1;
    }
    if (lane == 0) *(volatile uint32_t *)&sh->done = 1;
    if (lane == 0) trace_mark(a.trace, TRACE_END);
}

#endif
