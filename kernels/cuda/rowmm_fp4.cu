/* kernels/cuda/rowmm_fp4.cu - the small-row product of FP4 weights (contract in rowmm_fp4.h).
 *
 * As rowmm.cu: one block per SM, one lane that streams weights into a ring, one warp that adds and stores. Between them two warpgroups, which share the k of
 * every slot: a warpgroup's instruction takes 64 rows (4 tiles, one a warp) times 32 of k, two groups of 16. Codes become E5M2 in registers, sums of each group come
 * back apart (terms.cuh: columns for either group) and are multiplied by their scale. While the tensor cores have one run of 64 of k, the next one's codes are made. */
#include "rowmm_fp4.h"
#include "launch.h"
#include "rowmm_ring.cuh"
#include "shm/error.h"
#include "terms.cuh"

#define GROUPS 2                      /* warpgroups */
#define WARPS (GROUPS * FP4_TILES)
#define THREADS ((WARPS + 2) * 32)
#define NORM_ROOM_BYTES 16896         /* shared memory of a norm's block */
#define SLOTS_LEAST 3                 /* of the ring, whoever else wants the room */
#define UNIT_ROWS (FP4_TILES * TILE_ROWS)

/* K: what a block sums, a slice or half of one. */
template <int K, int ROWS> struct fp4 {
    static constexpr int SLOT_RUNS = K == 3840 ? 10 : 8, RUNS = SLOT_RUNS / GROUPS;      /* RUNS: a warpgroup's of a slot */
    static constexpr int SLOTS = K / FP4_RUN_K / SLOT_RUNS, STEPS = 2 * RUNS;
    static constexpr int TILES = terms_octets(ROWS), SUMS = ROWS < 8 ? 4 : 8;            /* of 8 activation rows, and the registers of the results of one */
    static constexpr uint32_t RUN_STRIDE = FP4_TILES * FP4_RUN_BYTES;
    static constexpr uint32_t DATA_BYTES = SLOT_RUNS * RUN_STRIDE, SLOT_BYTES = FP4_HEADER_BYTES + DATA_BYTES;
    static constexpr uint32_t IMAGE_BYTES = terms_bytes(K, ROWS);
    static constexpr uint32_t PARTIAL_BYTES = PARTIAL_BUFFERS * WARPS * TILES * 512;
    static_assert(K / FP4_RUN_K % SLOT_RUNS == 0 && SLOT_RUNS % GROUPS == 0, "slots share k evenly");
};

struct fp4_shared {                   /* behind the ring */
    uint64_t full[RING_MAX], empty[RING_MAX];
    uint64_t part_full[PARTIAL_BUFFERS], part_empty[PARTIAL_BUFFERS];
    uint64_t copied;                  /* the image, where it is copied */
    uint32_t ready, done;             /* 1: the consumers are past their wait; the last unit is stored */
    uint32_t top[ROWMM_ROWS_MAX];     /* largest |x| of a row, the bits of an f32 */
    float scale[PARTIAL_BUFFERS][UNIT_ROWS];
};

/* Unit of 64 rows and its part of k, in the order of `units`. */
__device__ __forceinline__ const uint8_t *unit_of(const rowmm_args &a, uint32_t unit, uint32_t halves, uint32_t slice_k)
{
    return a.w + packed_fp4_unit(unit / a.slices * FP4_TILES, a.slices / halves, unit % a.slices / halves, slice_k);
}

/* ---- streaming ---- */

template <typename F, int HALVES, int K>
__device__ __forceinline__ void fp4_produce(const rowmm_args &a, uint8_t *ring, fp4_shared *sh)
{
    const uint64_t policy = policy_evict_first();
    uint32_t stage = 0, phase = 0, behind = 0, behind_phase = 0, in_flight = 0, window = a.wait_slots;

    for (uint32_t unit = blockIdx.x; unit < a.units; unit += gridDim.x) {
        const uint8_t *header = unit_of(a, unit, HALVES, HALVES * K), *from = header + FP4_HEADER_BYTES + unit % HALVES * (F::SLOTS * F::DATA_BYTES);

#pragma unroll 1
        for (int slot = 0; slot < F::SLOTS; slot++, from += F::DATA_BYTES) {
            mbar_wait(&sh->empty[stage], phase ^ 1);
            if (window != a.window_slots && *(volatile uint32_t *)&sh->ready) window = a.window_slots;
            for (; in_flight >= window; in_flight--) {
                mbar_wait(&sh->full[behind], behind_phase);
                if (++behind == a.ring_slots) behind = 0, behind_phase ^= 1;
            }
            uint8_t *to = ring + stage * F::SLOT_BYTES;
            mbar_arrive_expect(&sh->full[stage], F::DATA_BYTES + (slot == 0 ? FP4_HEADER_BYTES : 0));
            if (slot == 0) bulk_load(to, header, FP4_HEADER_BYTES, &sh->full[stage], policy);
            bulk_load(to + FP4_HEADER_BYTES, from, F::DATA_BYTES, &sh->full[stage], policy);
            in_flight++;
            if (++stage == a.ring_slots) stage = 0, phase ^= 1;
        }
    }
    if (a.next.w == NULL) return;
    for (; in_flight > 0; in_flight--) {
        mbar_wait(&sh->full[behind], behind_phase);
        if (++behind == a.ring_slots) behind = 0, behind_phase ^= 1;
    }
    prefetch_next(a, &sh->done);
}

/* ---- activations ---- */

/* All consumers; returns when the image is in shared memory. A warp reads up to 8 rows at once, so that its stores meet all banks. */
template <int K, int ROWS>
__device__ __forceinline__ void split_rows(const rowmm_args &a, uint32_t rows, uint8_t *image, fp4_shared *sh, uint32_t warp, uint32_t lane)
{
    constexpr int AT_ONCE = ROWS < 8 ? ROWS : 8, PIECES = 32 / AT_ONCE, SHARE = WARPS / (ROWS / AT_ONCE), TURNS = (K / 8 / PIECES + SHARE - 1) / SHARE;
    const uint32_t m = warp / SHARE * AT_ONCE + lane % AT_ONCE, first = warp % SHARE * PIECES + lane / AT_ONCE;
    const __nv_bfloat16 *from = a.x + (uint64_t)m * a.k + blockIdx.x % a.slices * K;
    uint32_t largest = 0;
    float inverse;
    uint4 v[TURNS];

#pragma unroll
    for (int i = 0; i < TURNS; i++) {
        const uint32_t piece = first + i * (SHARE * PIECES);

        v[i] = m < rows && piece < K / 8 ? ld_l2((const uint4 *)from + piece) : make_uint4(0, 0, 0, 0);
    }
#pragma unroll
    for (int i = 0; i < TURNS; i++) largest = larger_pair(larger_pair(larger_pair(larger_pair(largest, v[i].x), v[i].y), v[i].z), v[i].w);
    uint32_t top = larger_of_pair(largest);
#pragma unroll
    for (int d = AT_ONCE; d < 32; d <<= 1) top = max(top, __shfl_xor_sync(0xffffffffu, top, d));
    if (lane < AT_ONCE) atomicMax(&sh->top[m], top);
    asm volatile("bar.sync 1, %0;" ::"n"(WARPS * 32) : "memory");
    const uint32_t scale = terms_scale(*(volatile uint32_t *)&sh->top[m], &inverse);

#pragma unroll
    for (int i = 0; i < TURNS; i++) {
        const uint32_t piece = first + i * (SHARE * PIECES);
        uint2 term[2];

        if (piece >= K / 8) break;
        split_four(v[i].x, v[i].y, scale, &term[0].x, &term[1].x);
        split_four(v[i].z, v[i].w, scale, &term[0].y, &term[1].y);
#pragma unroll
        for (uint32_t j = 0; j < 2; j++) *(uint2 *)(image + terms_cell(K, ROWS, piece / 4, piece / 2 % 2, m, j) + piece % 2 * 8) = term[j];
    }
    terms_publish();
    asm volatile("bar.sync 1, %0;" ::"n"(WARPS * 32) : "memory");
}

/* All consumers: the image as the kernel in front of us has left it. */
template <int K, int ROWS>
__device__ __forceinline__ void copy_image(const rowmm_args &a, uint8_t *image, fp4_shared *sh)
{
    constexpr uint32_t BYTES = terms_bytes(K, ROWS);

    if (threadIdx.x == 0) {
        mbar_arrive_expect(&sh->copied, BYTES);
        bulk_load(image, a.terms, BYTES, &sh->copied, policy_evict_last());
    }
    if (threadIdx.x < ROWS && threadIdx.x < a.m) sh->top[threadIdx.x] = ld_l2(a.terms_top + threadIdx.x);
    asm volatile("bar.sync 1, %0;" ::"n"(WARPS * 32) : "memory");
    mbar_wait(&sh->copied, 0);
}

/* The zeros of the image; before the wait. */
template <int K, int ROWS>
__device__ __forceinline__ void write_zeros(uint8_t *image)
{
    constexpr uint32_t PART = ROWS < 8 ? terms_part(ROWS) : TERM_CORE, STEPS = ROWS < 8 ? K / 32 * 2 : 1, CELLS = PART / TERM_CELL;

    for (uint32_t i = threadIdx.x; i < STEPS * CELLS; i += WARPS * 32)
        *(uint4 *)(image + terms_zero(K, ROWS) + i / CELLS * (3 * PART) + i % CELLS * TERM_CELL) = make_uint4(0, 0, 0, 0);
}

/* ---- multiplying ---- */

__device__ __forceinline__ uint2 ld_shared_pair_at(uint32_t address)
{
    uint2 v;

    asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];" : "=r"(v.x), "=r"(v.y) : "r"(address) : "memory");
    return v;
}

/* What a lane has of a run: of both groups the words of both blocks of 32; the scales of rows g and g + 8, block 0 and block 1, of both groups or (up to 4 rows) of the one
 * whose columns are this lane's. */
struct fp4_run { uint2 code[2]; uint32_t scale[2]; };

template <int ROWS>
__device__ __forceinline__ fp4_run load_run(uint32_t codes, uint32_t more_codes, uint32_t scales)
{
    fp4_run r;

    r.code[0] = ld_shared_pair_at(codes);
    r.code[1] = ld_shared_pair_at(more_codes);
    if (ROWS < 8) {
        r.scale[0] = r.scale[1] = ld_shared_word_at(scales);
    } else {
        const uint2 both = ld_shared_pair_at(scales);

        r.scale[0] = both.x, r.scale[1] = both.y;
    }
    return r;
}

/* Row g's codes and row g + 8's of a word, as E5M2 times 2^-14. The left shift as a product: it runs beside the logic. */
__device__ __forceinline__ void fp4_codes(uint32_t w, uint32_t *low, uint32_t *high)
{
    *low = w & 0x8e8e8e8eu;
    *high = (w >> 3 & 0x0e0e0e0eu) | (w * 128 & 0x80808080u);
}

/* sum += d * scale; d: [group or only one][row g: two activation rows, row g + 8: the same two]. */
template <int SUMS>
__device__ __forceinline__ void add_scaled(float (&sum)[SUMS], const float (&d)[SUMS], const uint32_t (&scale)[2], int block)
{
#pragma unroll
    for (int h = 0; h < SUMS / 4; h++) {
        const uint32_t pair = block ? e4m3x2_high_to_f16x2(scale[h]) : e4m3x2_to_f16x2((uint16_t)scale[h]);
        const float low = __low2float(*(const __half2 *)&pair), high = __high2float(*(const __half2 *)&pair);

#pragma unroll
        for (int i = 0; i < 4; i++) sum[4 * h + i] = __fmaf_rn(d[4 * h + i], i < 2 ? low : high, sum[4 * h + i]);
    }
}

/* What the tensor cores have made of a run. */
template <typename F>
__device__ __forceinline__ void add_run(float (&sum)[F::TILES][F::SUMS], float (&d)[2][F::TILES][F::SUMS], uint32_t (&a)[2][4], const uint32_t (&scale)[2])
{
#pragma unroll
    for (int s = 0; s < 2; s++) {
        terms_pin(a[s]);
#pragma unroll
        for (int n = 0; n < F::TILES; n++) {
            terms_pin(d[s][n]);
            add_scaled(sum[n], d[s][n], scale, s);
        }
    }
}

/* A warpgroup's part of a slot, a run of two steps at a time; returns something that depends on the last loads (a warp's return in their order). */
template <int K, int ROWS>
__device__ __forceinline__ uint32_t consume_slot(float (&sum)[fp4<K, ROWS>::TILES][fp4<K, ROWS>::SUMS], uint32_t codes, uint32_t more_codes, uint32_t scales, uint64_t b)
{
    using F = fp4<K, ROWS>;
    uint32_t a[2][2][4], scale[2][2], loaded = 0;
    float d[2][2][F::TILES][F::SUMS];
    fp4_run next = load_run<ROWS>(codes, more_codes, scales);

#pragma unroll
    for (int i = 0; i < F::RUNS; i++) {
        const int now = i % 2;
        const fp4_run run = next;

        if (i + 1 < F::RUNS) next = load_run<ROWS>(codes + (i + 1) * F::RUN_STRIDE, more_codes + (i + 1) * F::RUN_STRIDE, scales + (i + 1) * F::RUN_STRIDE);
        else loaded = run.code[0].x | run.code[1].y | run.scale[1];
        scale[now][0] = run.scale[0], scale[now][1] = run.scale[1];
#pragma unroll
        for (int s = 0; s < 2; s++) {
            fp4_codes(s ? run.code[0].y : run.code[0].x, &a[now][s][0], &a[now][s][1]);
            fp4_codes(s ? run.code[1].y : run.code[1].x, &a[now][s][2], &a[now][s][3]);
            terms_pin(a[now][s]);
        }
        terms_fence();
        /* Both terms of a sum one behind the other: with the sums of other steps in between, 8 rows take 5 % longer. */
#pragma unroll
        for (int s = 0; s < 2; s++)
#pragma unroll
            for (int n = 0; n < F::TILES; n++) {
                const uint64_t at = b + (uint64_t)(((i * 2 + s) * F::TILES + n) * 2) * terms_descriptor_step<ROWS>();

                terms_mma<false>(d[now][s][n], a[now][s], at);
                terms_mma<true>(d[now][s][n], a[now][s], at + terms_descriptor_step<ROWS>());
            }
        terms_commit();
        if (i == 0) continue;
        terms_wait<1>();
        add_run<F>(sum, d[now ^ 1], a[now ^ 1], scale[now ^ 1]);
    }
    terms_wait<0>();
    add_run<F>(sum, d[(F::RUNS - 1) % 2], a[(F::RUNS - 1) % 2], scale[(F::RUNS - 1) % 2]);
    return loaded;
}

/* A warp's sums of a unit into the cells of the epilogue: [tile of 8 rows][lane][(g, m), (g, m + 1), (g + 8, m), (g + 8, m + 1)], m = lane % 4 * 2. */
template <int ROWS, int TILES, int SUMS>
__device__ __forceinline__ void put_sums(float4 *to, const float (&sum)[TILES][SUMS], const float2 (&inverse)[TILES], uint32_t lane)
{
#pragma unroll
    for (int n = 0; n < TILES; n++) {
        float v[4];

#pragma unroll
        for (int i = 0; i < 4; i++)        /* the even groups' sum, and the odd ones' */
            v[i] = sum[n][i] + (ROWS < 8 ? __shfl_xor_sync(0xffffffffu, sum[n][i], ROWS / 2) : sum[n][SUMS - 4 + i]);
        to[n * 32 + lane] = make_float4(v[0] * inverse[n].x, v[1] * inverse[n].y, v[2] * inverse[n].x, v[3] * inverse[n].y);
    }
}

template <int K, int ROWS>
__device__ __forceinline__ void fp4_consume(const rowmm_args &a, uint8_t *image, uint8_t *ring, uint8_t *partials, fp4_shared *sh, uint32_t warp, uint32_t lane)
{
    using F = fp4<K, ROWS>;
    const uint32_t group = warp / FP4_TILES, tile = warp % FP4_TILES, g = lane / 4, t = lane % 4;
    const uint32_t own = FP4_HEADER_BYTES + group * F::RUNS * F::RUN_STRIDE + tile * FP4_RUN_BYTES;
    const uint32_t codes = smem_address(ring) + own + packed_fp4_word(g, 0, t, 0) * 4, more_codes = smem_address(ring) + own + packed_fp4_word(g, 1, t, 0) * 4;
    const uint32_t scales = smem_address(ring) + own + FP4_RUN_CODES + g * 8 + (ROWS == 2 ? t % 2 : ROWS == 4 ? t / 2 : 0) * 4;
    constexpr uint64_t PER_STEP = (uint64_t)(2 * F::TILES) * terms_descriptor_step<ROWS>();
    uint32_t stage = 0, phase = 0, buffer = 0, buffer_phase = 0;
    float2 inverse[F::TILES];

    if (a.terms == NULL) write_zeros<K, ROWS>(image);
    /* The first pass, before the wait, works on whatever lies there, one slot of a unit, and drops it: it brings the instructions, which come from the L2 when a kernel begins (2 us
     * of a layer of one row, 6 of 8). It waits for nothing: late blocks would start later still. */
#pragma unroll 1
    for (uint32_t pass = 0; pass < 2; pass++) {
        if (pass) {
            chain_wait();
            if (a.late_trigger) chain_trigger();
            if (threadIdx.x == 0) *(volatile uint32_t *)&sh->ready = 1;
            if (a.terms) copy_image<K, ROWS>(a, image, sh);
        }
        if (a.terms == NULL) split_rows<K, ROWS>(a, pass ? a.m : 0, image, sh, warp, lane);
        if (pass && threadIdx.x == 0) trace_mark(a.trace, TRACE_PAST_WAIT);
#pragma unroll
        for (int n = 0; n < F::TILES; n++) {
            const uint32_t m = n * 8 + lane % (ROWS < 8 ? ROWS / 2 : 4) * 2;

            terms_scale(sh->top[m], &inverse[n].x), terms_scale(sh->top[m + 1], &inverse[n].y);
        }

        for (uint32_t unit = blockIdx.x; unit < a.units; unit += gridDim.x) {
            uint64_t b = terms_descriptor<ROWS>(smem_address(image), K) + group * (F::STEPS * PER_STEP);
            float sum[F::TILES][F::SUMS] = {};

#pragma unroll 1                          /* unrolled, ptxas 13.0 waits behind every single product */
            for (int slot = 0; slot < F::SLOTS; slot++) {
                const uint32_t at = stage * F::SLOT_BYTES;

                if (pass) mbar_wait(&sh->full[stage], phase);
                if (slot == 0 && group == 0) {
                    mbar_wait(&sh->part_empty[buffer], buffer_phase ^ 1);
                    if (lane < TILE_ROWS) sh->scale[buffer][tile * TILE_ROWS + lane] = *(const volatile float *)(ring + at + (tile * TILE_ROWS + lane) * 4);
                }
                const uint32_t loaded = consume_slot<K, ROWS>(sum, codes + at, more_codes + at, scales + at, b);

                if (!pass) break;
                b += GROUPS * F::STEPS * PER_STEP;
                if (lane == 0) mbar_arrive_at(smem_address(&sh->empty[stage]) + (loaded & a.zero));      /* see rowmm.cu: never before the loads */
                if (++stage == a.ring_slots) stage = 0, phase ^= 1;
            }
            mbar_wait(&sh->part_empty[buffer], buffer_phase ^ 1);
            put_sums<ROWS>((float4 *)(partials + (buffer * WARPS + warp) * (F::TILES * 512)), sum, inverse, lane);
            if (!pass) break;
            __syncwarp();
            if (lane == 0) mbar_arrive(&sh->part_full[buffer]);
            if (++buffer == PARTIAL_BUFFERS) buffer = 0, buffer_phase ^= 1;
        }
    }
}

/* ---- storing ---- */

template <typename F>
__device__ __forceinline__ void fp4_epilogue(const rowmm_args &a, const uint8_t *partials, fp4_shared *sh, uint32_t lane)
{
    uint32_t buffer = 0, phase = 0;
    float2 x_scale[F::TILES] = {};

    /* As the consumers: the first pass stores nothing, for rows that are nobody's. */
#pragma unroll 1
    for (uint32_t pass = 0; pass < 2; pass++) {
        const uint32_t m = lane % 4 * 2 + (pass ? 0 : ROWMM_ROWS_MAX);

        if (pass) {
            chain_wait();
#pragma unroll
            for (int n = 0; n < F::TILES; n++) x_scale[n] = row_scales(a, n * 8 + m);
        }
        for (uint32_t unit = blockIdx.x; unit < a.units; unit += gridDim.x) {
            if (pass) mbar_wait(&sh->part_full[buffer], phase);
#pragma unroll 1                          /* all kernels of a layer share the cache of instructions */
            for (uint32_t tile = 0; tile < FP4_TILES; tile++) {
                const float low = sh->scale[buffer][tile * TILE_ROWS + lane / 4], high = sh->scale[buffer][tile * TILE_ROWS + lane / 4 + 8];
                const float4 *first = (const float4 *)(partials + (buffer * WARPS + tile) * (F::TILES * 512)) + lane, *second = first + FP4_TILES * F::TILES * 32;

#pragma unroll
                for (int n = 0; n < F::TILES; n++) {
                    const float4 p = first[n * 32], q = second[n * 32];
                    const float4 sum = make_float4((p.x + q.x) * low, (p.y + q.y) * low, (p.z + q.z) * high, (p.w + q.w) * high);

                    store_tile<false>(a, sum, unit / a.slices * FP4_TILES + tile, unit % a.slices, n * 8 + m, lane / 4, x_scale[n]);
                }
            }
            if (!pass) break;
            __syncwarp();
            if (lane == 0) mbar_arrive(&sh->part_empty[buffer]);
            if (++buffer == PARTIAL_BUFFERS) buffer = 0, phase ^= 1;
        }
    }
    if (lane == 0) *(volatile uint32_t *)&sh->done = 1;
    if (lane == 0) trace_mark(a.trace, TRACE_END);
}

/* A quarter of an SM holds 16384 registers and up to 3 of these warps: 96 leave 7168 for two warps of attention. */
constexpr int registers_of(int rows) { return rows <= 8 ? 96 : 168; }

template <int K, int HALVES, int ROWS>
__global__ void __maxnreg__(registers_of(ROWS)) fp4_kernel(const __grid_constant__ rowmm_args a)
{
    using F = fp4<K, ROWS>;
    extern __shared__ __align__(128) uint8_t image[];
    uint8_t *ring = image + F::IMAGE_BYTES, *partials = ring + a.ring_slots * F::SLOT_BYTES;
    fp4_shared *sh = (fp4_shared *)(partials + F::PARTIAL_BYTES);
    const uint32_t warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32;   /* uniform, and the compiler knows */

    if (!a.late_trigger) chain_trigger();
    if (threadIdx.x == 0) {
        trace_mark(a.trace, TRACE_START);
        sh->ready = sh->done = 0;
        for (uint32_t i = 0; i < a.ring_slots; i++) mbar_init(&sh->full[i], 1), mbar_init(&sh->empty[i], WARPS);
        for (uint32_t i = 0; i < PARTIAL_BUFFERS; i++) mbar_init(&sh->part_full[i], WARPS), mbar_init(&sh->part_empty[i], 1);
        mbar_init(&sh->copied, 1);
        mbar_init_fence();
    }
    if (threadIdx.x < ROWMM_ROWS_MAX) sh->top[threadIdx.x] = 0;
    __syncthreads();
    if (warp < WARPS) fp4_consume<K, ROWS>(a, image, ring, partials, sh, warp, lane);
    else if (warp == WARPS) fp4_epilogue<F>(a, partials, sh, lane);
    else if (lane == 0) fp4_produce<F, HALVES, K>(a, ring, sh);
}

struct fp4_variant { void (*fn)(const rowmm_args); uint32_t rows, slice_k, slot_bytes, fixed_bytes; };

template <int K, int HALVES, int ROWS> constexpr fp4_variant variant()
{
    using F = fp4<K, ROWS>;

    return { fp4_kernel<K, HALVES, ROWS>, ROWS, HALVES * K, F::SLOT_BYTES, (uint32_t)(F::IMAGE_BYTES + F::PARTIAL_BYTES + sizeof(fp4_shared)) };
}

static const fp4_variant variants[] = { variant<3840, 1, 2>(), variant<3840, 1, 4>(), variant<3840, 1, 8>(), variant<3840, 1, 16>(),
                                        variant<2048, 2, 2>(), variant<2048, 2, 4>(), variant<2048, 2, 8>(), variant<2048, 2, 16>() };

int rowmm_fp4_init(void)
{
    int rc = 0;

    for (const fp4_variant &v : variants)
        if (rc == 0) rc = launch_prepare((const void *)v.fn, LAUNCH_SHARED_MAX);
    return rc;
}

static uint32_t grid_blocks(const struct packed_matrix *w, const struct rowmm_tuning *tuning)
{
    const uint32_t slices = rowmm_slices(w), units = w->rows / UNIT_ROWS * slices, blocks = tuning->sm_count - tuning->sm_count % slices;

    return units < blocks ? units : blocks;
}

void rowmm_fp4_next_of(struct rowmm_next *next, const struct packed_matrix *w, const struct rowmm_tuning *tuning)
{
    const uint32_t halves = rowmm_slices(w) / (w->k / w->slice_k);

    next->w = w->data;
    next->blocks = grid_blocks(w, tuning);
    next->units = w->rows / UNIT_ROWS * rowmm_slices(w);
    next->unit_bytes = FP4_TILES * packed_unit_bytes(WEIGHT_FP4, w->slice_k) / halves;      /* with halves, near enough */
    next->header_bytes = FP4_HEADER_BYTES;
    next->slot_bytes = (halves == 1 ? 10 : 8) * FP4_TILES * FP4_RUN_BYTES;
    next->unit_slots = next->unit_bytes / next->slot_bytes;
}

int rowmm_fp4_launch(const struct packed_matrix *w, struct rowmm_args args, const struct rowmm_tuning *tuning, void *stream)
{
    const fp4_variant *v = variants;

    if (args.m < 1 || args.m > ROWMM_ROWS_MAX || w->rows == 0 || w->rows % UNIT_ROWS) return -E_RANGE;
    if (w->slice_k != 3840 && w->slice_k != 4096) return -E_UNSUPPORTED;
    args.slices = rowmm_slices(w);
    if (args.slices != 1 && args.slices != 2 && args.slices != 4) return -E_UNSUPPORTED;
    if (args.out_kind == ROWMM_LOGITS) return -E_UNSUPPORTED;
    if (args.slices > 1 && args.out_kind != ROWMM_PARTIAL) return -E_RANGE;
    while (v->slice_k != w->slice_k || v->rows < args.m) v++;
    args.w = w->data;
    args.zero = 0;
    args.k = w->k;
    args.units = w->rows / UNIT_ROWS * args.slices;
    args.ring_slots = tuning->ring_slots;
    args.window_slots = tuning->window_slots;
    args.wait_slots = tuning->wait_slots;
    /* Beside attention no more than rowmm.cu's ring of FP8 takes, elsewhere room for a norm's block: without it a norm starts, and lets its successor start, microseconds later. */
    const uint32_t beside = args.ring_slots * (packed_slot_bytes(w->slice_k) + UNIT_HEADER_BYTES) + PARTIAL_BUFFERS * CONSUMER_WARPS * 512 + (uint32_t)sizeof(rowmm_shared);
    uint32_t limit = args.room && beside < LAUNCH_SHARED_MAX ? beside : LAUNCH_SHARED_MAX - NORM_ROOM_BYTES;

    if (limit < v->fixed_bytes + SLOTS_LEAST * v->slot_bytes) limit = v->fixed_bytes + SLOTS_LEAST * v->slot_bytes;
    while (args.ring_slots * v->slot_bytes + v->fixed_bytes > limit || args.ring_slots > RING_MAX) args.ring_slots--;
    /* The lane that streams waits for its requests in the ring's order. */
    if (args.window_slots > args.ring_slots) args.window_slots = args.ring_slots;
    if (args.wait_slots > args.window_slots) args.wait_slots = args.window_slots;
    void *params[] = { &args };
    return launch_chained((const void *)v->fn, grid_blocks(w, tuning), THREADS, args.ring_slots * v->slot_bytes + v->fixed_bytes, params, stream);
}
