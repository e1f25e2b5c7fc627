/* kernels/cuda/prefill_attn.cu - attention of many rows over pages (contract in prefill_attn.h).
 *
 * One warp fetches K and V by tensor maps, a key block each, two buffers ahead; two warpgroups work. Q of the tile stays in shared memory. While a
 * warpgroup takes the softmax of one block, the tensor cores are at its p v of the block before.
 * d = 256: a warpgroup owns 64 rows (one head), all keys of the block and all of d. d = 512: both share 64 rows; each takes one half
 * of d, both for q k (the two halves of the scores meet in shared memory) and for p v. So in both cases a warpgroup multiplies 64 rows by
 * 256 of d with wgmma, and the output takes 128 registers. Shared memory holds panels of 64 columns, 128 bytes a row, 16-byte chunks XORed
 * with the row as wgmma's 128-byte swizzle has it: K-major for Q and K, and for V as a transposed operand. */
#include "prefill_attn.h"
#include "prefill_attn.cuh"
#include "launch.h"
#include "prefill_mm.h"
#include "shm/error.h"
#include <cudaTypedefs.h>

#define WARPS 8                       /* that compute; one thread of another warpgroup fetches */
#define THREADS (WARPS * 32)
#define FETCH_THREADS 128             /* a warpgroup: registers change hands by warpgroups */
#define FETCH_REGISTERS 24
#define COMPUTE_REGISTERS 240
#define STAGES 2
#define GROUP_D 256                   /* of d, per warpgroup */
#define JOIN_PARTS 4                  /* blocks of a tile that add its segments */
#define PAGES_LIMIT (1u << 24)        /* of a pool, in tensor maps */
#define NEVER (-1.0e38f)              /* score of a key that a row does not see; finite, times log2 e too */
#define LEAST (-1.0e30f)              /* below every score times log2 e, far above NEVER's */
#define LOG2_E 1.44269504f

/* Filled and emptied stages of K and of V. */
struct barriers { uint64_t full[2][STAGES], empty[2][STAGES]; };

template <int D> struct shape {
    static constexpr int KEYS = D == 256 ? 64 : 32;            /* of a key block */
    static constexpr int ROWS = D == 256 ? 128 : 64;           /* (position, head) pairs of a tile */
    static constexpr int POSITIONS = D == 256 ? 64 : 4;
    static constexpr int TILES = KEYS / 8;                     /* mma columns of the scores */
    static constexpr int CHUNKS = D / 8;                       /* 16-byte chunks of a row */
    static constexpr int PANELS = D / 64;
    static constexpr uint32_t ROW_BYTES = D * 2;
    static constexpr uint32_t BLOCK_BYTES = KEYS * ROW_BYTES;
    static constexpr uint32_t Q_BYTES = ROWS * ROW_BYTES;
    static constexpr uint32_t MEET_BYTES = D == 512 ? THREADS * TILES * 16 : 0;   /* halves of the scores; two buffers in turn */
    static constexpr uint32_t SHARED_BYTES = Q_BYTES + STAGES * 2 * BLOCK_BYTES + 2 * MEET_BYTES + sizeof(barriers);
};
static_assert(shape<256>::SHARED_BYTES <= LAUNCH_SHARED_MAX && shape<512>::SHARED_BYTES <= LAUNCH_SHARED_MAX, "shared memory");

/* A block's job and a warp's place in it. */
template <int D> struct place {
    prefill_tile tile;
    uint32_t kv_head;
    uint32_t low, end;                /* keys of this piece that anybody in the tile sees: [low, end) */
    uint32_t oldest, newest;          /* positions of this warp's first and last live row; oldest > newest: none is */
    uint32_t m_first;                 /* first of the warp's 16 rows in the tile */
    uint32_t m_group, d_first;        /* first of its warpgroup's 64 rows, and of its 256 of d */
};

/* ---- loads ---- */

/* Byte of 16-byte chunk `chunk` of a row in panels of `rows` rows. */
__device__ __forceinline__ uint32_t swizzled(uint32_t rows, uint32_t row, uint32_t chunk)
{
    return chunk / 8 * (rows * PANEL_BYTES) + row * PANEL_BYTES + (((chunk & 7) ^ (row & 7)) << 4);
}

/* Rows of the tile that nobody stands for become zeros. */
template <int D>
__device__ __forceinline__ void load_q(uint32_t to, const prefill_attn_args &a, const place<D> &p)
{
    using S = shape<D>;
    const uint32_t chunk = threadIdx.x % S::CHUNKS;

#pragma unroll 4
    for (uint32_t m = threadIdx.x / S::CHUNKS; m < S::ROWS; m += THREADS / S::CHUNKS) {
        const uint32_t row = D == 256 ? m % 64 : m / 16, head = D == 256 ? p.kv_head * 2 + m / 64 : m % 16;
        const bool live = row < p.tile.rows;
        const uint64_t from = ((uint64_t)(p.tile.first_row + (live ? row : 0)) * PREFILL_HEADS + head) * D + chunk * 8;

        copy_async(to + swizzled(S::ROWS, m, chunk), a.q + from, live);
    }
}

/* The other copies: K and V of one key block after the other. A page of which nobody sees a key is replaced by its neighbour: its entry may be
 * anything. */
template <int D>
__device__ __forceinline__ void fetch(uint32_t to, const CUtensorMap *map, uint64_t *bar, const prefill_attn_args &a, const place<D> &p, uint32_t first)
{
    using S = shape<D>;
    constexpr uint32_t PAGES = S::KEYS / PREFILL_PAGE_TOKENS;
    const uint32_t *pages = a.kv.pages ? a.kv.pages + (uint64_t)p.tile.seq * a.kv.ring_pages : NULL;

    mbar_arrive_expect(bar, S::BLOCK_BYTES);
#pragma unroll
    for (uint32_t i = 0; i < PAGES; i++) {
        const uint32_t own = first + i * PREFILL_PAGE_TOKENS;
        const bool live = own < p.end && own + PREFILL_PAGE_TOKENS > p.low;
        const uint32_t key = live ? own : first + (PAGES - 1 - i) * PREFILL_PAGE_TOKENS;
        const uint32_t page = pages ? __ldg(pages + key / PREFILL_PAGE_TOKENS % a.kv.ring_pages) : p.tile.seq + key / PREFILL_PAGE_TOKENS;

#pragma unroll
        for (uint32_t panel = 0; panel < S::PANELS; panel++)
            box_load(to + panel * (S::KEYS * PANEL_BYTES) + i * (PREFILL_PAGE_TOKENS * PANEL_BYTES), map, panel * 64, p.kv_head * PREFILL_PAGE_TOKENS, page, bar);
    }
}

template <int D>
__device__ __forceinline__ void fetch_all(uint32_t stages, barriers *bar, const prefill_attn_args &a, const prefill_attn_maps &maps, const place<D> &p)
{
    using S = shape<D>;
    uint32_t stage = 0, phase = 0;

    for (uint32_t first = p.low / S::KEYS * S::KEYS; first < p.end; first += S::KEYS) {
        mbar_wait(&bar->empty[0][stage], phase ^ 1);
        fetch<D>(stages + stage * S::BLOCK_BYTES, &maps.k, &bar->full[0][stage], a, p, first);
        mbar_wait(&bar->empty[1][stage], phase ^ 1);
        fetch<D>(stages + (STAGES + stage) * S::BLOCK_BYTES, &maps.v, &bar->full[1][stage], a, p, first);
        if (++stage == STAGES) stage = 0, phase ^= 1;
    }
}

/* V of keys outside [low, end) becomes zeros: it may belong to somebody else and be anything, NaN too, which would survive a multiplication by
 * p = 0. Each warpgroup does it for what it reads (d = 256: both do the same). */
template <int D>
__device__ __forceinline__ void clear_dead(uint32_t v, const place<D> &p, uint32_t first)
{
    using S = shape<D>;
    constexpr uint32_t CHUNKS = GROUP_D / 64 * 8;

    if (first >= p.low && first + S::KEYS <= p.end) return;
    for (uint32_t i = threadIdx.x % 128; i < S::KEYS * CHUNKS; i += 128) {
        const uint32_t key = i / CHUNKS, chunk = p.d_first / 8 + i % CHUNKS;

        if (first + key >= p.low && first + key < p.end) continue;
        asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(v + swizzled(S::KEYS, key, chunk)), "r"(0) : "memory");
    }
    copy_publish();
    group_sync(5 + threadIdx.x / 128, 128);
}

/* ---- tensor cores ---- */

/* Scores of the warpgroup's 64 rows over its part of d. Launched, not awaited. */
template <int D>
__device__ __forceinline__ void launch_qk(float (&s)[shape<D>::TILES][4], uint32_t q, uint32_t k, const place<D> &p)
{
    using S = shape<D>;
    const uint64_t a = operand(q + p.d_first / 64 * (S::ROWS * PANEL_BYTES) + p.m_group * PANEL_BYTES, 0), b = operand(k + p.d_first / 64 * (S::KEYS * PANEL_BYTES), 0);

    pin(s);
    wgmma_begin();
#pragma unroll
    for (int i = 0; i < GROUP_D / 16; i++)
        wgmma_scores(s, a + (i / 4 * (S::ROWS * PANEL_BYTES) + i % 4 * 32 >> 4), b + (i / 4 * (S::KEYS * PANEL_BYTES) + i % 4 * 32 >> 4), i == 0);
    wgmma_commit();
}

template <int D>
__device__ __forceinline__ void launch_pv(float (&out)[GROUP_D / 8][4], const uint32_t (&x)[shape<D>::TILES][2], uint32_t v, const place<D> &p)
{
    using S = shape<D>;
    const uint64_t b = operand(v + p.d_first / 64 * (S::KEYS * PANEL_BYTES), S::KEYS * PANEL_BYTES);

    pin(out);
    wgmma_begin();
#pragma unroll
    for (int i = 0; i < S::KEYS / 16; i++) wgmma_values(out, x[2 * i][0], x[2 * i][1], x[2 * i + 1][0], x[2 * i + 1][1], b + (i * 16 * PANEL_BYTES >> 4));
    wgmma_commit();
}

/* The two halves of d meet: both warps of a pair get the same sums (a + b and b + a have the same bits). */
template <int D>
__device__ __forceinline__ void meet(float (&s)[shape<D>::TILES][4], float4 *halves, uint32_t warp, uint32_t lane)
{
#pragma unroll
    for (int t = 0; t < shape<D>::TILES; t++) halves[(warp * shape<D>::TILES + t) * 32 + lane] = make_float4(s[t][0], s[t][1], s[t][2], s[t][3]);
    group_sync(1 + warp % 4, 64);
#pragma unroll
    for (int t = 0; t < shape<D>::TILES; t++) {
        const float4 other = halves[((warp ^ 4) * shape<D>::TILES + t) * 32 + lane];

        s[t][0] += other.x, s[t][1] += other.y, s[t][2] += other.z, s[t][3] += other.w;
    }
}

/* ---- softmax ---- */

__device__ __forceinline__ float exp2_fast(float x)
{
    float y;

    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Position of row m of the warp's 16. */
template <int D> __device__ __forceinline__ uint32_t position_of(const place<D> &p, uint32_t m) { return p.oldest + (D == 256 ? m : 0); }

/* Keys that a row does not see. */
template <int D, bool AHEAD>
__device__ __forceinline__ void mask_block(float (&s)[shape<D>::TILES][4], const place<D> &p, const uint32_t (&last)[2], uint32_t window, uint32_t first, uint32_t lane)
{
    if (first + shape<D>::KEYS - 1 <= p.oldest && (!window || first + window > p.newest)) return;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const uint32_t position = position_of<D>(p, lane / 4 + 8 * h), newest = AHEAD ? last[h] : position;

#pragma unroll
        for (int t = 0; t < shape<D>::TILES; t++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const uint32_t key = first + t * 8 + lane % 4 * 2 + e;

                if (key > newest || (window && key + window <= position)) s[t][h * 2 + e] = NEVER;
            }
    }
}

/* s becomes p; sum shrinks by what the maximum grew, and so shall out. Maxima are kept times log2 e, so that an exponential is one multiplication with
 * addition and one instruction. A row that has seen nothing yet keeps LEAST: p = 0, factor 1. */
template <int D>
__device__ __forceinline__ void softmax_block(float (&s)[shape<D>::TILES][4], float (&top)[2], float (&sum)[2], float (&factor)[2])
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float best = NEVER, part = 0.0f;

#pragma unroll
        for (int t = 0; t < shape<D>::TILES; t++) best = fmaxf(best, fmaxf(s[t][h * 2], s[t][h * 2 + 1]));
        best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, 1));
        best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, 2));
        const float grown = fmaxf(top[h], best * LOG2_E);

        factor[h] = exp2_fast(top[h] - grown);
        top[h] = grown;
#pragma unroll
        for (int t = 0; t < shape<D>::TILES; t++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                s[t][h * 2 + e] = exp2_fast(__fmaf_rn(s[t][h * 2 + e], LOG2_E, -grown));
                part += s[t][h * 2 + e];
            }
        sum[h] = __fmaf_rn(sum[h], factor[h], part);
    }
}

/* When no maximum grew nothing is multiplied: the factors would be exactly 1. */
__device__ __forceinline__ void shrink(float (&out)[GROUP_D / 8][4], const float (&factor)[2])
{
    if (!__any_sync(0xffffffffu, factor[0] != 1.0f || factor[1] != 1.0f)) return;
#pragma unroll
    for (int t = 0; t < GROUP_D / 8; t++) out[t][0] *= factor[0], out[t][1] *= factor[0], out[t][2] *= factor[1], out[t][3] *= factor[1];
}

/* ---- output ---- */

/* Mma tiles [first, first + N) of the warp's 32. Of each 32 columns a lane holds 2t, 2t + 1 of four tiles: 8 elements that stand side by side in
 * the permuted row. */
template <int D, int N>
__device__ __forceinline__ void store_out(const float (&out)[N][4], int first, const float (&sum)[2], const prefill_attn_args &a, const place<D> &p, uint32_t lane)
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const uint32_t m = p.m_first + lane / 4 + 8 * h;
        const uint32_t row = D == 256 ? m % 64 : m / 16, head = D == 256 ? p.kv_head * 2 + m / 64 : m % 16;
        float total = sum[h];

        total += __shfl_xor_sync(0xffffffffu, total, 1);
        total += __shfl_xor_sync(0xffffffffu, total, 2);
        if (row >= p.tile.rows) continue;
        const float inv = 1.0f / total;
        const uint32_t column = head * D + p.d_first + first * 8 + lane % 4 * 2;
        __nv_bfloat16 *to = a.out + (uint64_t)(p.tile.first_row + row) * PREFILL_HEADS * D;

#pragma unroll
        for (int t = 0; t < N; t += 4)
            *(uint4 *)(to + prefill_k(column + t * 8)) =
                make_uint4(pack_bf16(out[t][h * 2] * inv, out[t][h * 2 + 1] * inv), pack_bf16(out[t + 1][h * 2] * inv, out[t + 1][h * 2 + 1] * inv),
                           pack_bf16(out[t + 2][h * 2] * inv, out[t + 2][h * 2 + 1] * inv), pack_bf16(out[t + 3][h * 2] * inv, out[t + 3][h * 2 + 1] * inv));
    }
}

/* A partial result lies as the threads hold it: [32 mma tiles][256 threads] of four sums, then [256] of (top, sum) of both rows. */
__device__ __forceinline__ float4 *part_place(const prefill_attn_args &a, uint32_t slot, uint32_t tile)
{
    return a.part + ((uint64_t)slot * (GROUP_D / 8 + 1) + tile) * THREADS + threadIdx.x;
}

__device__ __forceinline__ void store_part(const float (&out)[GROUP_D / 8][4], const float (&top)[2], const float (&sum)[2], const prefill_attn_args &a, uint32_t slot)
{
#pragma unroll
    for (int t = 0; t < GROUP_D / 8; t++) *part_place(a, slot, t) = make_float4(out[t][0], out[t][1], out[t][2], out[t][3]);
    *part_place(a, slot, GROUP_D / 8) = make_float4(top[0], top[1], sum[0], sum[1]);
}

/* ---- the kernel ---- */

template <int D, bool AHEAD>
__device__ __forceinline__ place<D> find_place(const prefill_attn_args &a, const prefill_tile *tile, uint32_t warp)
{
    const uint4 t = ld_l2((const uint4 *)tile), u = ld_l2((const uint4 *)tile + 1);
    place<D> p;

    p.tile.first_row = t.x, p.tile.rows = t.y, p.tile.first_position = t.z, p.tile.seq = t.w;
    p.tile.segment = u.x, p.tile.segments = u.y, p.tile.slot = u.z, p.tile.round = u.w;
    p.kv_head = blockIdx.x % a.kv.kv_heads;
    const uint32_t end = t.z + t.y;

    p.low = a.window ? (t.z + 1 > a.window ? t.z + 1 - a.window : 0) : u.x * PREFILL_SEGMENT;
    p.end = AHEAD ? u.z : D == 256 ? end : min(end, (u.x + 1) * PREFILL_SEGMENT);
    p.m_first = (D == 256 ? warp : warp % 4) * 16;
    p.m_group = D == 256 ? warp / 4 * 64 : 0;
    p.d_first = D == 256 ? 0 : warp / 4 * GROUP_D;
    p.oldest = t.z + (D == 256 ? p.m_first % 64 : p.m_first / 16);
    p.newest = min(p.oldest + (D == 256 ? 15 : 0), end - 1);
    return p;
}

/* Tells the fetching warp that this warp is done with a stage. */
__device__ __forceinline__ void release(uint64_t *bar, uint32_t lane)
{
    __syncwarp();
    if (lane == 0) mbar_arrive(bar);
}

template <int D>
__device__ __forceinline__ void pack_block(uint32_t (&x)[shape<D>::TILES][2], const float (&s)[shape<D>::TILES][4])
{
#pragma unroll
    for (int t = 0; t < shape<D>::TILES; t++) x[t][0] = pack_bf16(s[t][0], s[t][1]), x[t][1] = pack_bf16(s[t][2], s[t][3]);
}

/* The two warpgroups' work: scores of a block are launched before p v of the block before, and both run while the softmax is taken. */
template <int D, bool AHEAD>
__device__ __forceinline__ void compute(uint32_t q, uint32_t stages, float4 *halves, barriers *bar, const prefill_attn_args &a, const place<D> &p, uint32_t warp, uint32_t lane)
{
    using S = shape<D>;
    float out[GROUP_D / 8][4] = {}, s[S::TILES][4] = {}, top[2] = { LEAST, LEAST }, sum[2] = { 0.0f, 0.0f }, factor[2];
    uint32_t x[S::TILES][2], last[2] = { 0, 0 }, stage = 0, phase = 0, behind = 0, behind_phase = 0, first = p.low / S::KEYS * S::KEYS;

    if (AHEAD)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const uint32_t row = p.m_first % 64 + lane / 4 + 8 * h;      /* of the tile; rows that are not live see what the first sees */

            last[h] = ld_l2(a.last + p.tile.first_row + (row < p.tile.rows ? row : 0));
        }

    mbar_wait(&bar->full[0][0], 0);
    launch_qk<D>(s, q, stages, p);
    wgmma_wait<0>();
    pin(s);
    release(&bar->empty[0][0], lane);
    if (D == 512) meet<D>(s, halves, warp, lane);
    mask_block<D, AHEAD>(s, p, last, a.window, first, lane);
    softmax_block<D>(s, top, sum, factor);
    pack_block<D>(x, s);
#pragma unroll 1
    for (first += S::KEYS; first < p.end; first += S::KEYS) {
        if (++stage == STAGES) stage = 0, phase ^= 1;
        mbar_wait(&bar->full[0][stage], phase);
        launch_qk<D>(s, q, stages + stage * S::BLOCK_BYTES, p);
        mbar_wait(&bar->full[1][behind], behind_phase);
        clear_dead<D>(stages + (STAGES + behind) * S::BLOCK_BYTES, p, first - S::KEYS);
        launch_pv<D>(out, x, stages + (STAGES + behind) * S::BLOCK_BYTES, p);
        wgmma_wait<1>();
        pin(s);
        release(&bar->empty[0][stage], lane);
        if (D == 512) meet<D>(s, halves + (stage & 1) * (S::MEET_BYTES / 16), warp, lane);
        mask_block<D, AHEAD>(s, p, last, a.window, first, lane);
        softmax_block<D>(s, top, sum, factor);
        wgmma_wait<0>();
        pin(out);
        release(&bar->empty[1][behind], lane);
        shrink(out, factor);
        pack_block<D>(x, s);
        behind = stage, behind_phase = phase;
    }
    mbar_wait(&bar->full[1][behind], behind_phase);
    clear_dead<D>(stages + (STAGES + behind) * S::BLOCK_BYTES, p, first - S::KEYS);
    launch_pv<D>(out, x, stages + (STAGES + behind) * S::BLOCK_BYTES, p);
    wgmma_wait<0>();
    pin(out);
    if (D == 512 && p.tile.segments > 1) store_part(out, top, sum, a, p.tile.slot);
    else store_out<D>(out, 0, sum, a, p, lane);
}

template <int D, bool AHEAD>
__global__ void __launch_bounds__(THREADS + FETCH_THREADS, 1) prefill_attn_kernel(const __grid_constant__ prefill_attn_args a, const __grid_constant__ prefill_attn_maps maps)
{
    using S = shape<D>;
    extern __shared__ __align__(1024) uint8_t shared_bytes[];
    const uint32_t warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    const uint32_t q = smem_address(shared_bytes), stages = q + S::Q_BYTES;       /* K's stages, then V's */
    float4 *halves = (float4 *)(shared_bytes + S::Q_BYTES + STAGES * 2 * S::BLOCK_BYTES);
    barriers *bar = (barriers *)((uint8_t *)halves + 2 * S::MEET_BYTES);

    chain_trigger();
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2 * STAGES; i++) mbar_init(&bar->full[0][0] + i, 1), mbar_init(&bar->empty[0][0] + i, WARPS);
        mbar_init_fence();
    }
    __syncthreads();
    chain_wait();
    if (warp >= WARPS) {
        registers_lower<FETCH_REGISTERS>();
        if (threadIdx.x == THREADS) fetch_all<D>(stages, bar, a, maps, find_place<D, AHEAD>(a, a.tiles + blockIdx.x / a.kv.kv_heads, 0));
        return;
    }
    registers_raise<COMPUTE_REGISTERS>();
    const place<D> p = find_place<D, AHEAD>(a, a.tiles + blockIdx.x / a.kv.kv_heads, warp);

    load_q<D>(q, a, p);
    copy_commit();
    copy_wait_all();
    copy_publish();
    group_sync(7, THREADS);
    compute<D, AHEAD>(q, stages, halves, bar, a, p, warp, lane);
}

/* Adds the segments of a tile in ascending order. A segment of which a row sees nothing changes nothing: its factor is 0, the other's 1. */
__global__ void __launch_bounds__(THREADS) prefill_join_kernel(const __grid_constant__ prefill_attn_args a)
{
    constexpr int OWN = GROUP_D / 8 / JOIN_PARTS;              /* mma tiles of this block */
    const uint32_t warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32, first = blockIdx.x % JOIN_PARTS * OWN;

    chain_trigger();
    chain_wait();
    const place<512> p = find_place<512, false>(a, a.joins + blockIdx.x / JOIN_PARTS, warp);
    const float4 ml = ld_l2(part_place(a, p.tile.slot, GROUP_D / 8));
    float out[OWN][4], top[2] = { ml.x, ml.y }, sum[2] = { ml.z, ml.w };

#pragma unroll
    for (int t = 0; t < OWN; t++) {
        const float4 x = ld_l2(part_place(a, p.tile.slot, first + t));

        out[t][0] = x.x, out[t][1] = x.y, out[t][2] = x.z, out[t][3] = x.w;
    }
    for (uint32_t i = 1; i < p.tile.segments; i++) {
        const float4 other = ld_l2(part_place(a, p.tile.slot + i, GROUP_D / 8));
        const float best[2] = { fmaxf(top[0], other.x), fmaxf(top[1], other.y) };
        const float own[2] = { exp2_fast(top[0] - best[0]), exp2_fast(top[1] - best[1]) }, its[2] = { exp2_fast(other.x - best[0]), exp2_fast(other.y - best[1]) };

        sum[0] = sum[0] * own[0] + other.z * its[0], sum[1] = sum[1] * own[1] + other.w * its[1];
        top[0] = best[0], top[1] = best[1];
#pragma unroll
        for (int t = 0; t < OWN; t++) {
            const float4 x = ld_l2(part_place(a, p.tile.slot + i, first + t));

            out[t][0] = out[t][0] * own[0] + x.x * its[0], out[t][1] = out[t][1] * own[0] + x.y * its[0];
            out[t][2] = out[t][2] * own[1] + x.z * its[1], out[t][3] = out[t][3] * own[1] + x.w * its[1];
        }
    }
    store_out<512>(out, (int)first, sum, a, p, lane);
}

static PFN_cuTensorMapEncodeTiled_v12000 encode_map;

int prefill_attn_init(void)
{
    cudaDriverEntryPointQueryResult found;
    void *fn = NULL;
    int rc = launch_check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &fn, 12000, cudaEnableDefault, &found), "tensor maps");

    if (rc == 0 && (found != cudaDriverEntryPointSuccess || fn == NULL)) return -E_UNSUPPORTED;
    encode_map = (PFN_cuTensorMapEncodeTiled_v12000)fn;
    if (rc == 0) rc = launch_prepare((const void *)prefill_attn_kernel<256, false>, shape<256>::SHARED_BYTES);
    if (rc == 0) rc = launch_prepare((const void *)prefill_attn_kernel<256, true>, shape<256>::SHARED_BYTES);
    if (rc == 0) rc = launch_prepare((const void *)prefill_attn_kernel<512, false>, shape<512>::SHARED_BYTES);
    return rc ? rc : launch_prepare((const void *)prefill_join_kernel, 0);
}

/* [page][position of a head][d]; boxes of 64 columns. How many pages the pool has is not known here: the page tables are trusted. */
static int encode(CUtensorMap *map, const struct prefill_kv *kv, uint64_t offset, uint32_t d)
{
    const cuuint64_t dims[3] = { d, kv->kv_heads * PREFILL_PAGE_TOKENS, PAGES_LIMIT }, strides[2] = { 2 * d, kv->page_bytes };
    const cuuint32_t box[3] = { 64, PREFILL_PAGE_TOKENS, 1 }, steps[3] = { 1, 1, 1 };

    return encode_map(map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, kv->arena + offset, dims, strides, box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
                      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS ? 0 : -E_RANGE;
}

int prefill_attn_map(struct prefill_attn_maps *maps, const struct prefill_kv *kv, uint32_t head_dim)
{
    const int rc = encode(&maps->k, kv, kv->k_offset, head_dim);

    return rc ? rc : encode(&maps->v, kv, kv->v_offset, head_dim);
}

int prefill_attn_launch(const struct prefill_attn_args *args, const struct prefill_attn_maps *maps, uint32_t head_dim, void *stream)
{
    prefill_attn_args a = *args;
    void *params[] = { &a, (void *)maps };
    int rc;

    if (head_dim != 256 && head_dim != 512) return -E_UNSUPPORTED;
    if (head_dim == 256 ? a.kv.kv_heads != 8 : a.kv.kv_heads != 1 || a.window) return -E_UNSUPPORTED;
    if (a.tile_count == 0 || (a.join_count && (head_dim == 256 || !a.part)) || (a.last && head_dim != 256)) return -E_RANGE;
    const void *kernel = head_dim == 512 ? (const void *)prefill_attn_kernel<512, false> : a.last ? (const void *)prefill_attn_kernel<256, true> : (const void *)prefill_attn_kernel<256, false>;
    rc = launch_chained(kernel, a.tile_count * a.kv.kv_heads,
                        THREADS + FETCH_THREADS, head_dim == 256 ? shape<256>::SHARED_BYTES : shape<512>::SHARED_BYTES, params, stream);
    if (rc || a.join_count == 0) return rc;
    return launch_chained((const void *)prefill_join_kernel, a.join_count * JOIN_PARTS, THREADS, 0, params, stream);
}
