/* kernels/cuda/rowmm_terms.cu - the small-row product on FP8 tensor cores (contract in rowmm_terms.h).
 *
 * Two warpgroups multiply, a unit each in turns, so that one computes while the other waits; one lane streams weights into the ring, one warp adds and stores. The packed 16 bytes of a lane are its A fragment of a k step of 32 as
 * they are. The four warps take the four ranges of one tile; the instruction has one B for all four, so the columns of B are (range, row, term): each
 * warp's own columns are a quarter of its results, the others are not used. */
#include "rowmm_terms.h"
#include "launch.h"
#include "rowmm_ring.cuh"
#include "terms.cuh"

#define GROUPS_MAX 2
#define NORM_ROOM_BYTES 16896         /* shared memory that a norm's block needs on the same SM: without it a norm starts, and lets its successor start, microseconds later */
#define THREADS(groups) (((groups) * TERM_RANGES + 2) * 32)

template <int SLICE, int ROWS> struct terms_geometry {
    using G = geometry<WEIGHT_FP8, SLICE>;
    static constexpr int COLUMNS = TERM_RANGES * ROWS * 2, SUMS = COLUMNS / 2;       /* SUMS: registers of an instruction's results */
    static constexpr int BLOCKS = SLICE / TERM_RANGES / 32;                          /* steps of a range */
    static constexpr int OWN = ROWS < 4 ? 4 : ROWS;                                  /* results of a lane that are its warp's */
    static constexpr int TOGETHER = ROWS < 4 ? 2 : 1;                               /* chunks under way */
    static constexpr int HALF_BYTES = ROWS * 128, STEP_BYTES = terms_step_bytes(ROWS);   /* k 0..15 of all columns of a step; the step */
    static constexpr int IMAGE_BYTES = terms_image_bytes(SLICE, ROWS), SCALES_AT = terms_bytes(SLICE, ROWS);
    static constexpr int TILES = ROWS > 8 ? 2 : 1;
    static constexpr uint32_t PARTIAL_BYTES = PARTIAL_BUFFERS * TERM_RANGES * TILES * 512;
    static constexpr uint32_t FIXED_BYTES = PARTIAL_BYTES + IMAGE_BYTES + sizeof(rowmm_shared) + sizeof(uint64_t);
};

/* A warp's range of all rows (two warpgroups share 8 rows and more by rows, fewer by turns, each looking for the largest element in all): read, scaled, split, put into the image. */
template <int SLICE, int ROWS>
__device__ __forceinline__ void split_rows(const rowmm_args &a, uint8_t *image, uint32_t range, uint32_t group, uint32_t lane)
{
    using T = terms_geometry<SLICE, ROWS>;
    constexpr int AT_ONCE = ROWS < 4 ? ROWS : 4, GROUPS = 8 / AT_ONCE, TURNS = (T::BLOCKS + GROUPS - 1) / GROUPS;
    const uint32_t first = lane / 4 / AT_ONCE, t = lane % 4, swap = lane >> 4;

#pragma unroll 1
    for (uint32_t m = (ROWS < 8 ? 0 : group * 4) + lane / 4 % AT_ONCE; m < ROWS; m += ROWS < 8 ? ROWS : a.groups * 4) {
        const __nv_bfloat16 *from = a.x + (uint64_t)m * a.k + blockIdx.x % a.slices * SLICE + range * (SLICE / TERM_RANGES) + t * 8;
        uint32_t largest = 0;
        uint4 v[TURNS];
        float own;

#pragma unroll
        for (int i = 0; i < TURNS; i++) {
            const uint32_t block = i * GROUPS + first;

            v[i] = m < a.m && block < T::BLOCKS ? ld_l2((const uint4 *)(from + block * 32)) : make_uint4(0, 0, 0, 0);
        }
#pragma unroll
        for (int i = 0; i < TURNS; i++)
            for (uint32_t pair : { v[i].x, v[i].y, v[i].z, v[i].w }) largest = larger_pair(largest, pair);
        uint32_t top = larger_of_pair(largest);
        top = max(top, __shfl_xor_sync(0xffffffffu, top, 1));
        top = max(top, __shfl_xor_sync(0xffffffffu, top, 2));
#pragma unroll
        for (int d = 4 * AT_ONCE; d < 32; d <<= 1) top = max(top, __shfl_xor_sync(0xffffffffu, top, d));
        const uint32_t scale = terms_scale(top, &own);
        if (t == 0 && first == 0) ((float *)(image + T::SCALES_AT))[range * ROWS + m] = own;

#pragma unroll
        for (int i = 0; i < TURNS; i++) {
            const uint32_t block = i * GROUPS + first;
            uint8_t *to = image + terms_word(SLICE, ROWS, range, m, block * 32) + t * 4;
            uint32_t term[2][2];

            if (block >= T::BLOCKS) break;
            if (ROWS < 8 && a.groups == 2 && i % 2 != (int)group) continue;
            split_four(v[i].x, v[i].y, scale, &term[0][0], &term[1][0]);
            split_four(v[i].z, v[i].w, scale, &term[0][1], &term[1][1]);
#pragma unroll
            for (int j = 0; j < 2; j++)       /* half of the lanes store the second term first: other banks */
#pragma unroll
                for (int h = 0; h < 2; h++) *(uint32_t *)(to + h * T::HALF_BYTES + (j ^ swap) * 16) = j ^ swap ? term[1][h] : term[0][h];
        }
    }
}

/* sum += what of d is this warp's. */
template <int ROWS> __device__ __forceinline__ void add_own(float (&sum)[ROWS < 4 ? 4 : ROWS], const float (&d)[ROWS * 4], uint32_t warp)
{
    constexpr int OWN = ROWS < 4 ? 4 : ROWS;

#pragma unroll
    for (int i = 0; i < OWN; i++) {
        float v = d[i];

        if (ROWS == 2) v = warp & 2 ? d[4 + i] : v;
        if (ROWS >= 4) {
            const float low = warp & 2 ? d[2 * OWN % (ROWS * 4) + i] : v, high = warp & 2 ? d[3 * OWN % (ROWS * 4) + i] : d[OWN % (ROWS * 4) + i];

            v = warp & 1 ? high : low;
        }
        sum[i] += v;
    }
}

/* Returns when the image of this block's slice is in shared memory: copied, or split by these warps. */
template <int SLICE, int ROWS>
__device__ __forceinline__ void fetch_rows(const rowmm_args &a, uint8_t *image, uint64_t *copied, rowmm_shared *sh, uint32_t range, uint32_t group, uint32_t lane)
{
    using T = terms_geometry<SLICE, ROWS>;

    chain_wait();
    if (a.late_trigger) chain_trigger();
    if (threadIdx.x == 0) *(volatile uint32_t *)&sh->ready = 1;
    if (a.terms) {
        if (threadIdx.x == 0) {
            mbar_arrive_expect(copied, T::IMAGE_BYTES);
            bulk_load(image, a.terms + blockIdx.x % a.slices * T::IMAGE_BYTES, T::IMAGE_BYTES, copied, policy_evict_last());
        }
        mbar_wait(copied, 0);
        return;
    }
    split_rows<SLICE, ROWS>(a, image, range, group, lane);
    terms_publish();
    asm volatile("bar.sync 1, %0;" ::"r"(a.groups * TERM_RANGES * 32) : "memory");
}

template <int SLICE, int ROWS>
__device__ __forceinline__ void consume(const rowmm_args &a, uint8_t *image, uint8_t *ring, uint8_t *partials, uint64_t *copied, rowmm_shared *sh, uint32_t group, uint32_t warp,
                                        uint32_t lane)
{
    using T = terms_geometry<SLICE, ROWS>;
    using G = typename T::G;
    const uint64_t b = terms_descriptor(smem_address(image), T::HALF_BYTES);
    const float *inverse = (const float *)(image + T::SCALES_AT);
    uint32_t stage = group * G::SLOTS, phase = 0, turn = group;
    float mine[(T::OWN + 3) / 4];

    fetch_rows<SLICE, ROWS>(a, image, copied, sh, warp, group, lane);
    if (threadIdx.x == 0) trace_mark(a.trace, TRACE_PAST_WAIT);
    /* Columns 2t, 2t + 1 of 8 are the two terms of a row. */
    const bool owner = ROWS == 1 ? lane % 4 == warp : ROWS == 2 ? lane % 4 / 2 == warp % 2 : true;
#pragma unroll
    for (int j = 0; j < T::OWN / 4; j++) mine[j] = inverse[warp * ROWS + (ROWS < 4 ? lane % ROWS : j * 4 + lane % 4)];

    for (uint32_t unit = blockIdx.x + group * gridDim.x; unit < a.units; unit += a.groups * gridDim.x, turn += a.groups) {
        const uint32_t buffer = turn % PARTIAL_BUFFERS;
        float sum[T::OWN] = {}, scale = 1.0f;

#pragma unroll 1                      /* unrolled, ptxas 13.0 waits behind every single product */
        for (int slot = 0; slot < G::SLOTS; slot++) {
            const uint8_t *from = ring + stage * G::SLOT_BYTES;
            float d[T::TOGETHER][T::SUMS];
            uint4 w[T::TOGETHER][G::LOADS];

            mbar_wait(&sh->full[stage], phase);
            if (slot == 0) {
                if (warp == 0) scale = *(const float *)(from + lane % TILE_ROWS * 4);
                from += G::HEADER_BYTES;
            }
            const uint32_t at = smem_address(from) + warp * (2 * G::LOADS * 512) + lane * 16;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const int h = half % T::TOGETHER;

                if (h == 0)
#pragma unroll
                    for (int i = 0; i < T::TOGETHER * G::LOADS; i++) w[i / G::LOADS][i % G::LOADS] = ld_shared_at(at + (half * G::LOADS + i) * 512);
                terms_fence();
#pragma unroll
                for (int i = 0; i < G::LOADS; i++)
                    terms_mma<T::COLUMNS>::issue(d[h], w[h][i], b + (uint32_t)(((slot * 2 + half) * G::LOADS + i) * (T::STEP_BYTES / 16)), i > 0);
                terms_commit();
                if (T::TOGETHER == 2 && half == 0) continue;
                terms_wait<0>();
#pragma unroll
                for (int j = 0; j < T::TOGETHER; j++) {
                    terms_pin(d[j]);
                    add_own<ROWS>(sum, d[j], warp);
                }
            }
            /* Behind the end of the products, whose registers were loaded: the slot is free. The address depends on their results as well (see rowmm.cu). */
            const uint32_t used = __float_as_uint(sum[0]) | __float_as_uint(scale);
            if (lane == 0) mbar_arrive_at(smem_address(&sh->empty[stage]) + (used & a.zero));
            if (++stage == a.ring_slots) stage = 0, phase ^= 1;
        }

        /* The other warpgroup's slots. */
        stage += (a.groups - 1) * G::SLOTS;
        if (stage >= a.ring_slots) stage -= a.ring_slots, phase ^= 1;

        mbar_wait(&sh->part_empty[buffer], ~(turn / PARTIAL_BUFFERS) & 1);
        /* As the epilogue reads them: [tile of 8 rows][lane (g, m / 2)][(g, m), (g, m + 1), (g + 8, m), (g + 8, m + 1)]. */
        float *to = (float *)(partials + (buffer * TERM_RANGES + warp) * (T::TILES * 512));
#pragma unroll
        for (int j = 0; j < T::OWN / 4; j++) {
            const uint32_t m = ROWS < 4 ? lane % ROWS : j * 4 + lane % 4;
            float *cell = to + m / 8 * 128 + (lane / 4 * 4 + m % 8 / 2) * 4 + m % 2;

            if (!owner) continue;
            cell[0] = __fmaf_rn(sum[4 * j + 1], 1.0f / (1 << TERM_SHIFT), sum[4 * j]) * mine[j];
            cell[2] = __fmaf_rn(sum[4 * j + 3], 1.0f / (1 << TERM_SHIFT), sum[4 * j + 2]) * mine[j];
        }
        if (warp == 0 && lane < TILE_ROWS) sh->scale[buffer][lane] = scale;
        __syncwarp();
        if (lane == 0) mbar_arrive(&sh->part_full[buffer]);
    }
}

/* A quarter of an SM holds 16384 registers and up to 3 of these warps: 96 leave 7168 for two warps of attention. */
constexpr int registers_of(int rows) { return rows <= 8 ? 96 : 168; }

template <int SLICE, int ROWS>
__global__ void __maxnreg__(registers_of(ROWS)) terms_kernel(const __grid_constant__ rowmm_args a)
{
    using T = terms_geometry<SLICE, ROWS>;
    extern __shared__ __align__(128) uint8_t image[];
    uint8_t *ring = image + T::IMAGE_BYTES, *partials = ring + a.ring_slots * T::G::SLOT_BYTES;
    rowmm_shared *sh = (rowmm_shared *)(partials + T::PARTIAL_BYTES);
    uint64_t *copied = (uint64_t *)(sh + 1);
    const uint32_t warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32;   /* uniform, and the compiler knows */

    if (!a.late_trigger) chain_trigger();
    if (threadIdx.x == 0) {
        trace_mark(a.trace, TRACE_START);
        sh->ready = sh->done = 0;
        for (uint32_t i = 0; i < a.ring_slots; i++) mbar_init(&sh->full[i], 1), mbar_init(&sh->empty[i], TERM_RANGES);
        for (uint32_t i = 0; i < PARTIAL_BUFFERS; i++) mbar_init(&sh->part_full[i], TERM_RANGES), mbar_init(&sh->part_empty[i], 1);
        mbar_init(copied, 1);
        mbar_init_fence();
    }
    __syncthreads();
    if (warp < a.groups * TERM_RANGES) consume<SLICE, ROWS>(a, image, ring, partials, copied, sh, warp / TERM_RANGES, warp % TERM_RANGES, lane);
    else if (warp == a.groups * TERM_RANGES) epilogue<true, T::TILES, TERM_RANGES>(a, partials, sh, lane);
    else if (lane == 0) produce<WEIGHT_FP8, SLICE>(a, ring, sh);
}

struct terms_variant { void (*fn)(const rowmm_args); uint32_t rows, slice_k, slots, slot_bytes, fixed_bytes; };

template <int SLICE, int ROWS> constexpr terms_variant variant()
{
    return { terms_kernel<SLICE, ROWS>, ROWS, SLICE, geometry<WEIGHT_FP8, SLICE>::SLOTS, geometry<WEIGHT_FP8, SLICE>::SLOT_BYTES, terms_geometry<SLICE, ROWS>::FIXED_BYTES };
}

static const terms_variant variants[] = { variant<3840, 1>(), variant<3840, 2>(), variant<3840, 4>(), variant<3840, 8>(), variant<3840, 16>(),
                                          variant<4096, 1>(), variant<4096, 2>(), variant<4096, 4>(), variant<4096, 8>(), variant<4096, 16>() };

int rowmm_terms_init(void)
{
    int rc = 0;

    for (const terms_variant &v : variants)
        if (rc == 0) rc = launch_prepare((const void *)v.fn, LAUNCH_SHARED_MAX);
    return rc;
}

int rowmm_terms_launch(const struct packed_matrix *w, struct rowmm_args args, const struct rowmm_tuning *tuning, uint32_t blocks, void *stream)
{
    const terms_variant *v = variants;

    while (v->slice_k != w->slice_k || v->rows < args.m) v++;
    uint32_t limit = args.room && tuning->shared_beside < LAUNCH_SHARED_MAX ? tuning->shared_beside : LAUNCH_SHARED_MAX - NORM_ROOM_BYTES;

    if (limit < v->fixed_bytes + 2 * v->slot_bytes) limit = v->fixed_bytes + 2 * v->slot_bytes;
    args.ring_slots = tuning->ring_slots;
    while (args.ring_slots * v->slot_bytes + v->fixed_bytes > limit || args.ring_slots > RING_MAX) args.ring_slots--;
    /* The lane that streams waits for its requests in the ring's order. */
    if (args.window_slots > args.ring_slots) args.window_slots = args.ring_slots;
    if (args.wait_slots > args.ring_slots) args.wait_slots = args.ring_slots;
    /* A warpgroup that skips the other's slots must not come round to a slot whose last filling is still under way: its barrier would seem to be past. */
    args.groups = args.ring_slots > v->slots + args.window_slots ? GROUPS_MAX : 1;
    void *params[] = { &args };
    return launch_chained((const void *)v->fn, blocks, THREADS(args.groups), args.ring_slots * v->slot_bytes + v->fixed_bytes, params, stream);
}
