/* kernels/cuda/rowmm.cu - the small-row matrix product (contract in rowmm.h).
 *
 * One block per SM, 10 warps. 8 consumer warps split k; each keeps its activation fragments in registers for the whole
 * launch and loops over the block's units. One producer lane streams units into a ring of slots with one bulk copy per slot and
 * starts before the previous kernel has ended. One epilogue warp adds the partial sums in a fixed order and stores. */
#include "rowmm_block.cuh"
#include "rowmm_ring.cuh"
#include "rowmm_rule.cuh"
#include "launch.h"
#include "shm/error.h"

#define THREADS ((CONSUMER_WARPS + 2) * 32)
#define PARTIAL_BYTES(tiles) (PARTIAL_BUFFERS * CONSUMER_WARPS * (tiles) * 512)

template <uint32_t FORMAT, int SLICE, int TILES>
__device__ __forceinline__ void load_rows(uint32_t (&x)[TILES][geometry<FORMAT, SLICE>::BLOCKS][4], const rowmm_args &a, rowmm_shared *sh, uint32_t warp, uint32_t lane)
{
    constexpr bool FP4 = FORMAT == WEIGHT_FP4;
    constexpr int BLOCKS = geometry<FORMAT, SLICE>::BLOCKS;
    const uint32_t first = (FP4 ? fp4_warp_first(SLICE, warp) * 64 : warp * (SLICE / CONSUMER_WARPS)) + lane % 4 * 8;
    const bool fewer = FP4 && fp4_warp_runs(SLICE, warp) * 2 < BLOCKS;
    const uint16_t *from[TILES];

    /* All that can be is found in front of the wait: what follows it holds up the whole step. Rows that are nobody's are row 0 once more: nobody stores what they give. */
#pragma unroll
    for (int n = 0; n < TILES; n++) {
        const uint32_t m = n * PLACES_TILE + lane / 4;

        from[n] = (const uint16_t *)a.x + place_of(a.x_places, a.k, m < a.m ? m : 0, slice_of(a.slices, blockIdx.x) * SLICE + first);
        asm volatile("" : "+l"(from[n]));
    }
    chain_wait();
    if (a.late_trigger) chain_trigger();
    if (threadIdx.x == 0) *(volatile uint32_t *)&sh->ready = 1;
#pragma unroll
    for (int n = 0; n < TILES; n++)
#pragma unroll
        for (int b = 0; b < BLOCKS; b++) {
            uint4 v = make_uint4(0, 0, 0, 0);

            if (!FP4 || b < BLOCKS - 2 || !fewer) v = ld_l2_now(from[n] + b * a.x_places.block);
            x[n][b][0] = v.x, x[n][b][1] = v.y, x[n][b][2] = v.z, x[n][b][3] = v.w;
        }
}

/* One slot of a unit: from points behind the header. `scale` of FP8_BLOCK: a lane's share of the scales that this warp needs of the unit, load i those of lanes i and
 * 16 + i. The result depends on the last AHEAD loads; those before were multiplied when the last ones were asked for (after a change look at the machine code: every
 * LDS of a slot is converted or in the LOP3 in front of SYNCS.ARRIVE). */
template <uint32_t FORMAT, int SLICE, int TILES>
__device__ __forceinline__ uint32_t consume_slot(float (&acc)[TILES][2][4], const uint8_t *from, int slot, float scale, const uint32_t (&x)[TILES][geometry<FORMAT, SLICE>::BLOCKS][4],
                                                 uint32_t warp, uint32_t lane)
{
    using G = geometry<FORMAT, SLICE>;
    const bool fewer = G::FP4 && SLICE == 3840 && slot == 1 && warp >= 4;      /* a run less */
    uint32_t loaded = 0, scales[G::LOADS];
    uint4 w[G::LOADS];

    const uint32_t at = smem_address(from) + (G::FP4 ? fp4_slot_first(SLICE, slot, warp) * FP4_RUN_BYTES : warp * G::LOADS * 512) + lane * 16;
    const uint32_t scales_at = at - lane * 16 + FP4_RUN_CODES + lane / 4 * 8 + lane % 4 / 2 * 4;
#pragma unroll
    for (int i = 0; i < G::LOADS; i++) {
        scales[i] = 0;
        w[i] = make_uint4(0, 0, 0, 0);
        if (i >= G::AHEAD || (i == G::LOADS - 1 && fewer)) break;
        w[i] = ld_shared_at(at + i * (G::FP4 ? FP4_RUN_BYTES : 512));
        if (G::FP4) scales[i] = ld_shared_word_at(scales_at + i * FP4_RUN_BYTES);
    }
#pragma unroll
    for (int i = 0; i < G::LOADS; i++) {
        const int load = slot * G::LOADS + i;

        if (i == G::LOADS - 1 && fewer) break;
        if constexpr (FORMAT == WEIGHT_FP8_BLOCK)
            multiply_scaled<G::BLOCKS, TILES>(acc, w[i], __shfl_sync(0xffffffffu, scale, load), __shfl_sync(0xffffffffu, scale, 16 + load), x, load);
        else multiply<FORMAT, G::BLOCKS, TILES>(acc, w[i], x, load, scales[i]);
        if (i + G::AHEAD >= G::LOADS) loaded |= w[i].x;
        if (G::FP4) loaded |= scales[i];
        if (i + G::AHEAD < G::LOADS) w[i + G::AHEAD] = ld_shared_at(at + (i + G::AHEAD) * 512);
    }
    return loaded;
}

template <uint32_t FORMAT, int SLICE, int TILES, enum kernel_kind KIND>
__device__ __forceinline__ void consume(const rowmm_args &a, uint8_t *ring, uint8_t *partials, rowmm_shared *sh, uint32_t warp, uint32_t lane)
{
    using G = geometry<FORMAT, SLICE>;
    uint32_t x[TILES][G::BLOCKS][4], stage = 0, phase = 0, buffer = 0, buffer_phase = 0;

    if constexpr (KIND == KERNEL_ROUNDS) load_row_rounded<SLICE>(x, a, partials, sh, warp, lane);
    else load_rows<FORMAT, SLICE, TILES>(x, a, sh, warp, lane);
    if (threadIdx.x == 0) trace_mark(a.trace, TRACE_PAST_WAIT);
    for (uint32_t unit = blockIdx.x; unit < a.units; unit += gridDim.x) {
        float acc[TILES][2][4] = {}, scale = 1.0f;

#pragma unroll
        for (int slot = 0; slot < G::SLOTS; slot++) {
            const uint8_t *from = ring + stage * G::SLOT_BYTES;

            mbar_wait(&sh->full[stage], phase);
            if (slot == 0) {
                if (G::LATE && warp == 0) scale = *(const float *)(from + lane % TILE_ROWS * 4);
                if (FORMAT == WEIGHT_FP8_BLOCK) scale = *(const float *)(from + (lane / 16 * BLOCK_SCALES_MAX + (warp * G::BLOCKS + lane % 16) / 4) * 4);
                from += G::HEADER_BYTES;
            }
            /* The arrival's address depends on the loads that may still be under way (a.zero is 0, which the compiler cannot know): program
             * order alone does not hold it back, ptxas moves it in front of loads that are still queued, and the slot is refilled
             * under them (seen: rare errors of 1e-2). A load's 32 lanes return together, so lane 0 speaks for all. */
            const uint32_t loaded = consume_slot<FORMAT, SLICE, TILES>(acc, from, slot, scale, x, warp, lane) | __float_as_uint(scale);
            if (lane == 0) mbar_arrive_at(smem_address(&sh->empty[stage]) + (loaded & a.zero));
            if (++stage == a.ring_slots) stage = 0, phase ^= 1;
        }

        mbar_wait(&sh->part_empty[buffer], buffer_phase ^ 1);
        float4 *to = (float4 *)(partials + (buffer * CONSUMER_WARPS + warp) * (TILES * 512)) + lane;
#pragma unroll
        for (int n = 0; n < TILES; n++)
            to[n * 32] = make_float4(acc[n][0][0] + acc[n][1][0], acc[n][0][1] + acc[n][1][1], acc[n][0][2] + acc[n][1][2], acc[n][0][3] + acc[n][1][3]);
        if (G::LATE && warp == 0 && lane < TILE_ROWS) sh->scale[buffer][lane] = scale;
        __syncwarp();
        if (lane == 0) mbar_arrive(&sh->part_full[buffer]);
        if (++buffer == PARTIAL_BUFFERS) buffer = 0, buffer_phase ^= 1;
    }
}

/* The register cap leaves room on the SM for the attention and norm kernels that run beside a prefetching block. A quarter of an
 * SM holds 16384 registers and 3 of these warps: 96 leave 7168, for two warps of 112 or four of 56. */
constexpr int registers_of(uint32_t format, int tiles, bool room)
{
    return tiles == 2 ? 168 : room ? 96 : format == WEIGHT_FP4 ? 128 : format == WEIGHT_FP8_BLOCK ? 120 : 96;
}

/* One for each kind: the code of a layer's kernels should fit into an SM's instruction cache: what is fetched from the L2 holds up every block (400 instructions less: 20 us a step). */
template <uint32_t FORMAT, int SLICE, int TILES, bool ROOM, enum kernel_kind KIND>
__global__ void __maxnreg__(registers_of(FORMAT, TILES, ROOM)) rowmm_kernel(const __grid_constant__ rowmm_args a)
{
    using G = geometry<FORMAT, SLICE>;
    extern __shared__ __align__(128) uint8_t ring[];
    uint8_t *partials = ring + a.ring_slots * G::SLOT_BYTES;
    rowmm_shared *sh = (rowmm_shared *)(partials + PARTIAL_BYTES(TILES));
    const uint32_t warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32;   /* uniform, and the compiler knows */

    if (!a.late_trigger) chain_trigger();
    if (threadIdx.x == 0) {
        trace_mark(a.trace, TRACE_START);
        sh->ready = sh->done = 0;
        /* All that there are room for, whatever the ring has: a loop to ring_slots is unrolled in four lengths, a tenth of the kernel's code; a thread for each barrier takes 1 us. */
#pragma unroll
        for (uint32_t i = 0; i < RING_MAX; i++) mbar_init(&sh->full[i], 1), mbar_init(&sh->empty[i], CONSUMER_WARPS);
#pragma unroll
        for (uint32_t i = 0; i < PARTIAL_BUFFERS; i++) mbar_init(&sh->part_full[i], CONSUMER_WARPS), mbar_init(&sh->part_empty[i], 1);
        mbar_init_fence();
    }
    __syncthreads();
    if (warp < CONSUMER_WARPS) consume<FORMAT, SLICE, TILES, KIND>(a, ring, partials, sh, warp, lane);
    else if (warp == CONSUMER_WARPS) epilogue<G::LATE, TILES, KIND>(a, partials, sh, lane);
    else if (lane == 0) produce<FORMAT, SLICE>(a, ring, sh);
}

typedef void rowmm_fn(const rowmm_args);

struct rowmm_variant { rowmm_fn *fn; uint32_t slot_bytes, fixed_bytes; };

template <uint32_t FORMAT, int SLICE, int TILES, bool ROOM> static struct rowmm_variant variant(enum kernel_kind kind)
{
    struct rowmm_variant v = { kind == KERNEL_LOGITS ? rowmm_kernel<FORMAT, SLICE, TILES, ROOM, KERNEL_LOGITS> : rowmm_kernel<FORMAT, SLICE, TILES, ROOM, KERNEL_SUMS>,
                               geometry<FORMAT, SLICE>::SLOT_BYTES, (uint32_t)(PARTIAL_BYTES(TILES) + sizeof(rowmm_shared)) };

    if constexpr (FORMAT == WEIGHT_FP8)
        if (kind == KERNEL_RULED) v.fn = rowmm_kernel<FORMAT, SLICE, TILES, ROOM, KERNEL_RULED>;
    if constexpr (FORMAT == WEIGHT_FP8 && TILES == 1)
        if (kind == KERNEL_ROUNDS) v.fn = rowmm_kernel<FORMAT, SLICE, TILES, ROOM, KERNEL_ROUNDS>;
    return v;
}

template <uint32_t FORMAT> static struct rowmm_variant pick_shape(bool wide, uint32_t m, bool room, enum kernel_kind kind)
{
    if (m > 8) return wide ? variant<FORMAT, 4096, 2, false>(kind) : variant<FORMAT, 3840, 2, false>(kind);
    if constexpr (registers_of(FORMAT, 1, true) != registers_of(FORMAT, 1, false))
        if (!room) return wide ? variant<FORMAT, 4096, 1, false>(kind) : variant<FORMAT, 3840, 1, false>(kind);
    return wide ? variant<FORMAT, 4096, 1, true>(kind) : variant<FORMAT, 3840, 1, true>(kind);
}

static const uint32_t formats[] = { WEIGHT_FP8, WEIGHT_BF16, WEIGHT_FP8_BLOCK, WEIGHT_FP4 };

/* fn NULL: there is no kernel for the format. */
static struct rowmm_variant pick(uint32_t format, bool wide, uint32_t m, bool room, enum kernel_kind kind)
{
    const struct rowmm_variant none = {};

    if ((kind == KERNEL_RULED || kind == KERNEL_ROUNDS) && format != WEIGHT_FP8) return none;
    switch (format) {
    case WEIGHT_FP8: return pick_shape<WEIGHT_FP8>(wide, m, room, kind);
    case WEIGHT_BF16: return pick_shape<WEIGHT_BF16>(wide, m, room, kind);
    case WEIGHT_FP8_BLOCK: return pick_shape<WEIGHT_FP8_BLOCK>(wide, m, room, kind);
    case WEIGHT_FP4: return pick_shape<WEIGHT_FP4>(wide, m, room, kind);
    default: return none;
    }
}

int rowmm_init(void)
{
    for (uint32_t format : formats)
        for (int i = 0; i < 8 * KERNEL_KINDS; i++) {
            const struct rowmm_variant v = pick(format, i & 1, i & 2 ? 16 : 8, i & 4, (enum kernel_kind)(i / 8));
            const int rc = v.fn ? launch_prepare((const void *)v.fn, LAUNCH_SHARED_MAX) : 0;

            if (rc) return rc;
        }
    return 0;
}

static uint32_t grid_blocks(const struct packed_matrix *w, const struct rowmm_tuning *tuning)
{
    const uint32_t slices = w->k / w->slice_k, units = w->rows / TILE_ROWS * slices;
    const uint32_t blocks = tuning->sm_count - tuning->sm_count % slices;   /* a block stays on one slice: its activations are in registers */

    return units < blocks ? units : blocks;
}

void rowmm_next_of(struct rowmm_next *next, const struct packed_matrix *w, const struct rowmm_tuning *tuning)
{
    next->w = w->data;
    next->blocks = grid_blocks(w, tuning);
    next->units = w->rows / TILE_ROWS * (w->k / w->slice_k);
    next->unit_bytes = packed_unit_bytes(w->format, w->slice_k);
    next->header_bytes = packed_header_bytes(w->format);
    next->slot_bytes = w->format == WEIGHT_FP4 ? (w->slice_k / 128) * FP4_RUN_BYTES : packed_slot_bytes(w->slice_k);      /* FP4: halves of a unit, near enough */
    next->unit_slots = next->unit_bytes / next->slot_bytes;
}

int rowmm_launch(const struct packed_matrix *w, struct rowmm_args args, const struct rowmm_tuning *tuning, void *stream)
{
    const enum kernel_kind kind = args.out_kind == ROWMM_LOGITS ? KERNEL_LOGITS : args.rounds ? KERNEL_ROUNDS : args.out_inverse != 0.0f ? KERNEL_RULED : KERNEL_SUMS;
    const struct rowmm_variant v = pick(w->format, w->slice_k == 4096, args.m, args.room, kind);
    const uint32_t slices = w->slice_k ? w->k / w->slice_k : 0;

    if (args.m < 1 || args.m > ROWMM_ROWS_MAX || w->rows % TILE_ROWS || w->rows == 0) return -E_RANGE;
    if (slices != 1 && slices != 2 && slices != 4) return -E_UNSUPPORTED;
    if (v.fn == NULL) return -E_UNSUPPORTED;
    if (slices > 1 && args.out_kind != ROWMM_PARTIAL) return -E_RANGE;
    if (args.out_inverse != 0.0f && (args.out_kind != ROWMM_GEGLU || args.rounds)) return -E_RANGE;
    if (args.rounds && (args.m != 1 || args.out_kind == ROWMM_LOGITS || args.x_scale || args.x_power)) return -E_RANGE;
    args.w = w->data;
    args.zero = 0;
    args.k = w->k;
    args.x_places = places_known(args.x_places, w->k), args.out_places = places_known(args.out_places, args.out_stride);
    args.slices = slices;
    args.units = w->rows / TILE_ROWS * slices;
    args.ring_slots = tuning->ring_slots;
    args.window_slots = tuning->window_slots;
    args.wait_slots = tuning->wait_slots;
    /* Beside attention no more than a ring of FP8 takes: some hundred bytes more, and none of its blocks fits on the SM (seen: 8 us a layer). */
    const uint32_t beside = args.ring_slots * (packed_slot_bytes(w->slice_k) + UNIT_HEADER_BYTES) + (uint32_t)(PARTIAL_BYTES(args.m > 8 ? 2 : 1) + sizeof(rowmm_shared));
    const uint32_t limit = args.room && beside < LAUNCH_SHARED_MAX ? beside : LAUNCH_SHARED_MAX;
    while (args.ring_slots * v.slot_bytes + v.fixed_bytes > limit || args.ring_slots > RING_MAX) args.ring_slots--;
    void *params[] = { &args };
    return launch_chained((const void *)v.fn, grid_blocks(w, tuning), THREADS, args.ring_slots * v.slot_bytes + v.fixed_bytes, params, stream);
}
