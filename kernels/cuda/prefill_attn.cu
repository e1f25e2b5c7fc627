/* kernels/cuda/prefill_attn.cu - attention of many rows over pages (contract in prefill_attn.h).
 *
 * Two warpgroups; Q of the tile stays in shared memory, K and V come in two buffers of one key block each: while one is worked on, the next arrives.
 * d = 256: a warpgroup owns 64 rows (one head), all keys of the block and all of d. d = 512: both share 64 rows; each takes one half
 * of d, both for q k (the two halves of the scores meet in shared memory) and for p v. So in both cases a warpgroup multiplies 64 rows by
 * 256 of d with wgmma, and the output takes 128 registers. Shared memory holds panels of 64 columns, 128 bytes a row, 16-byte chunks XORed
 * with the row as wgmma's 128-byte swizzle has it: K-major for Q and K, and for V as a transposed operand. */
#include "prefill_attn.h"
#include "prefill_attn.cuh"
#include "launch.h"
#include "prefill_mm.h"
#include "shm/error.h"

#define WARPS 8
#define THREADS (WARPS * 32)
#define GROUP_D 256                   /* of d, per warpgroup */
#define JOIN_PARTS 4                  /* blocks of a tile that add its segments */
#define NEVER (-3.0e38f)              /* below every score; finite so that differences are never NaN */

template <int D> struct shape {
    static constexpr int KEYS = D == 256 ? 64 : 32;            /* of a key block */
    static constexpr int ROWS = D == 256 ? 128 : 64;           /* (position, head) pairs of a tile */
    static constexpr int POSITIONS = D == 256 ? 64 : 4;
    static constexpr int TILES = KEYS / 8;                     /* mma columns of the scores */
    static constexpr int CHUNKS = D / 8;                       /* 16-byte chunks of a row */
    static constexpr int PASSES = KEYS * CHUNKS / THREADS;     /* chunks of K per thread */
    static constexpr int PASS_KEYS = THREADS / CHUNKS;
    static constexpr uint32_t ROW_BYTES = D * 2;
    static constexpr uint32_t BLOCK_BYTES = KEYS * ROW_BYTES;
    static constexpr uint32_t Q_BYTES = ROWS * ROW_BYTES;
    static constexpr uint32_t MEET_BYTES = D == 512 ? THREADS * TILES * 16 : 0;   /* halves of the scores */
    static constexpr uint32_t SHARED_BYTES = Q_BYTES + 4 * BLOCK_BYTES + MEET_BYTES;
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
    for (uint32_t m = threadIdx.x / S::CHUNKS; m < S::ROWS; m += S::PASS_KEYS) {
        const uint32_t row = D == 256 ? m % 64 : m / 16, head = D == 256 ? p.kv_head * 2 + m / 64 : m % 16;
        const bool live = row < p.tile.rows;
        const uint64_t from = ((uint64_t)(p.tile.first_row + (live ? row : 0)) * PREFILL_HEADS + head) * D + chunk * 8;

        copy_async(to + swizzled(S::ROWS, m, chunk), a.q + from, live);
    }
}

/* K and V of the keys from `first` on. Keys outside [low, end) become zeros: their pages may belong to somebody else, and their bytes may be
 * anything, NaN too, which would survive a multiplication by p = 0. */
template <int D>
__device__ __forceinline__ void load_block(uint32_t k_to, uint32_t v_to, const prefill_attn_args &a, const place<D> &p, uint32_t first)
{
    using S = shape<D>;
    const uint32_t chunk = threadIdx.x % S::CHUNKS, own = threadIdx.x / S::CHUNKS;
    const uint32_t *pages = a.kv.pages + (uint64_t)p.tile.seq * a.kv.ring_pages;
    const uint8_t *page[S::KEYS / PREFILL_PAGE_TOKENS];

#pragma unroll
    for (int i = 0; i < S::KEYS / PREFILL_PAGE_TOKENS; i++) {
        const uint32_t key = first + i * PREFILL_PAGE_TOKENS;
        const bool live = key < p.end && key + PREFILL_PAGE_TOKENS > p.low;

        page[i] = a.kv.arena + (live ? __ldg(pages + key / PREFILL_PAGE_TOKENS % a.kv.ring_pages) * a.kv.page_bytes : 0);
    }
#pragma unroll
    for (int i = 0; i < S::PASSES; i++) {
        const uint32_t key = i * S::PASS_KEYS + own;
        const bool live = first + key >= p.low && first + key < p.end;
        const uint64_t at = (((uint64_t)p.kv_head * PREFILL_PAGE_TOKENS + key % PREFILL_PAGE_TOKENS) * D + chunk * 8) * 2;
        const uint8_t *from = page[i * S::PASS_KEYS / PREFILL_PAGE_TOKENS] + at;

        copy_async(k_to + swizzled(S::KEYS, key, chunk), from + a.kv.k_offset, live);
        copy_async(v_to + swizzled(S::KEYS, key, chunk), from + a.kv.v_offset, live);
    }
}

/* ---- tensor cores ---- */

/* Scores of the warpgroup's 64 rows over its part of d. */
template <int D>
__device__ __forceinline__ void multiply_qk(float (&s)[shape<D>::TILES][4], uint32_t q, uint32_t k, const place<D> &p)
{
    using S = shape<D>;
    const uint64_t a = operand(q + p.d_first / 64 * (S::ROWS * PANEL_BYTES) + p.m_group * PANEL_BYTES, 0), b = operand(k + p.d_first / 64 * (S::KEYS * PANEL_BYTES), 0);

    wgmma_begin();
#pragma unroll
    for (int i = 0; i < GROUP_D / 16; i++)
        wgmma_scores(s, a + (i / 4 * (S::ROWS * PANEL_BYTES) + i % 4 * 32 >> 4), b + (i / 4 * (S::KEYS * PANEL_BYTES) + i % 4 * 32 >> 4), i == 0);
    wgmma_end();
    pin(s);
}

template <int D>
__device__ __forceinline__ void multiply_pv(float (&out)[GROUP_D / 8][4], const float (&s)[shape<D>::TILES][4], uint32_t v, const place<D> &p)
{
    using S = shape<D>;
    const uint64_t b = operand(v + p.d_first / 64 * (S::KEYS * PANEL_BYTES), S::KEYS * PANEL_BYTES);
    uint32_t x[S::TILES][2];

#pragma unroll
    for (int t = 0; t < S::TILES; t++) x[t][0] = pack_bf16(s[t][0], s[t][1]), x[t][1] = pack_bf16(s[t][2], s[t][3]);
    pin(out);
    wgmma_begin();
#pragma unroll
    for (int i = 0; i < S::KEYS / 16; i++) wgmma_values(out, x[2 * i][0], x[2 * i][1], x[2 * i + 1][0], x[2 * i + 1][1], b + (i * 16 * PANEL_BYTES >> 4));
    wgmma_end();
    pin(out);
}

/* The two halves of d meet: both warps of a pair get the same sums (a + b and b + a have the same bits). */
template <int D>
__device__ __forceinline__ void meet(float (&s)[shape<D>::TILES][4], float4 *halves, uint32_t warp, uint32_t lane)
{
#pragma unroll
    for (int t = 0; t < shape<D>::TILES; t++) halves[(warp * shape<D>::TILES + t) * 32 + lane] = make_float4(s[t][0], s[t][1], s[t][2], s[t][3]);
    asm volatile("bar.sync %0, 64;" ::"r"(1 + warp % 4) : "memory");
#pragma unroll
    for (int t = 0; t < shape<D>::TILES; t++) {
        const float4 other = halves[((warp ^ 4) * shape<D>::TILES + t) * 32 + lane];

        s[t][0] += other.x, s[t][1] += other.y, s[t][2] += other.z, s[t][3] += other.w;
    }
}

/* ---- softmax ---- */

/* Position of row m of the warp's 16. */
template <int D> __device__ __forceinline__ uint32_t position_of(const place<D> &p, uint32_t m) { return p.oldest + (D == 256 ? m : 0); }

/* s becomes p; out and sum shrink by what the maximum grew. When no row sees anything new larger than before, nothing is multiplied: the
 * factor would be exactly 1. */
template <int D>
__device__ __forceinline__ void softmax_block(float (&s)[shape<D>::TILES][4], float (&out)[GROUP_D / 8][4], float (&top)[2], float (&sum)[2],
                                              const place<D> &p, uint32_t window, uint32_t first, uint32_t lane)
{
    const bool whole = first + shape<D>::KEYS - 1 <= p.oldest && (!window || first + window > p.newest);
    float factor[2];

#pragma unroll
    for (int h = 0; h < 2; h++) {
        const uint32_t position = position_of<D>(p, lane / 4 + 8 * h);
        float best = top[h];

#pragma unroll
        for (int t = 0; t < shape<D>::TILES; t++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                const uint32_t key = first + t * 8 + lane % 4 * 2 + e;

                if (!whole && (key > position || (window && key + window <= position))) s[t][h * 2 + e] = NEVER;
                best = fmaxf(best, s[t][h * 2 + e]);
            }
        best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, 1));
        best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, 2));
        factor[h] = __expf(top[h] - best);
        top[h] = best;
        float part = 0.0f;

#pragma unroll
        for (int t = 0; t < shape<D>::TILES; t++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float &x = s[t][h * 2 + e];

                x = !whole && x == NEVER ? 0.0f : __expf(x - best);   /* a row that has seen nothing yet: best is NEVER, too */
                part += x;
            }
        sum[h] = sum[h] * factor[h] + part;
    }
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

template <int D>
__device__ __forceinline__ place<D> find_place(const prefill_attn_args &a, const prefill_tile *tile, uint32_t warp)
{
    const uint4 t = ld_l2((const uint4 *)tile), u = ld_l2((const uint4 *)tile + 1);
    place<D> p;

    p.tile.first_row = t.x, p.tile.rows = t.y, p.tile.first_position = t.z, p.tile.seq = t.w;
    p.tile.segment = u.x, p.tile.segments = u.y, p.tile.slot = u.z, p.tile.round = u.w;
    p.kv_head = blockIdx.x % a.kv.kv_heads;
    const uint32_t end = t.z + t.y;

    p.low = a.window ? (t.z + 1 > a.window ? t.z + 1 - a.window : 0) : u.x * PREFILL_SEGMENT;
    p.end = a.window ? end : min(end, (u.x + 1) * PREFILL_SEGMENT);
    p.m_first = (D == 256 ? warp : warp % 4) * 16;
    p.m_group = D == 256 ? warp / 4 * 64 : 0;
    p.d_first = D == 256 ? 0 : warp / 4 * GROUP_D;
    p.oldest = t.z + (D == 256 ? p.m_first % 64 : p.m_first / 16);
    p.newest = min(p.oldest + (D == 256 ? 15 : 0), end - 1);
    return p;
}

template <int D>
__global__ void __launch_bounds__(THREADS, 1) prefill_attn_kernel(const __grid_constant__ prefill_attn_args a)
{
    using S = shape<D>;
    extern __shared__ __align__(1024) uint8_t shared_bytes[];
    const uint32_t warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    const uint32_t q = smem_address(shared_bytes), blocks = q + S::Q_BYTES;       /* two buffers, each K then V */
    float4 *halves = (float4 *)(shared_bytes + S::Q_BYTES + 4 * S::BLOCK_BYTES);
    float out[GROUP_D / 8][4] = {}, top[2] = { NEVER, NEVER }, sum[2] = { 0.0f, 0.0f };
    uint32_t buffer = blocks, other = blocks + 2 * S::BLOCK_BYTES;

    chain_trigger();
    chain_wait();
    const place<D> p = find_place<D>(a, a.tiles + blockIdx.x / a.kv.kv_heads, warp);
    uint32_t first = p.low / S::KEYS * S::KEYS;

    load_q<D>(q, a, p);
    load_block<D>(buffer, buffer + S::BLOCK_BYTES, a, p, first);
    copy_commit();
#pragma unroll 1
    for (; first < p.end; first += S::KEYS) {
        float s[S::TILES][4];

        copy_wait_all();
        copy_publish();
        __syncthreads();              /* this block is there, and everybody is done with the other buffer */
        if (first + S::KEYS < p.end) load_block<D>(other, other + S::BLOCK_BYTES, a, p, first + S::KEYS);
        copy_commit();
        multiply_qk<D>(s, q, buffer, p);
        if (D == 512) meet<D>(s, halves, warp, lane);
        softmax_block<D>(s, out, top, sum, p, a.window, first, lane);
        multiply_pv<D>(out, s, buffer + S::BLOCK_BYTES, p);
        const uint32_t done = buffer;
        buffer = other, other = done;
    }
    if (D == 512 && p.tile.segments > 1) store_part(out, top, sum, a, p.tile.slot);
    else store_out<D>(out, 0, sum, a, p, lane);
}

/* Adds the segments of a tile in ascending order. A segment of which a row sees nothing changes nothing: its factor is 0, the other's 1. */
__global__ void __launch_bounds__(THREADS) prefill_join_kernel(const __grid_constant__ prefill_attn_args a)
{
    constexpr int OWN = GROUP_D / 8 / JOIN_PARTS;              /* mma tiles of this block */
    const uint32_t warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32, first = blockIdx.x % JOIN_PARTS * OWN;

    chain_trigger();
    chain_wait();
    const place<512> p = find_place<512>(a, a.joins + blockIdx.x / JOIN_PARTS, warp);
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
        const float own[2] = { __expf(top[0] - best[0]), __expf(top[1] - best[1]) }, its[2] = { __expf(other.x - best[0]), __expf(other.y - best[1]) };

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

int prefill_attn_init(void)
{
    int rc = launch_prepare((const void *)prefill_attn_kernel<256>, shape<256>::SHARED_BYTES);

    if (rc == 0) rc = launch_prepare((const void *)prefill_attn_kernel<512>, shape<512>::SHARED_BYTES);
    return rc ? rc : launch_prepare((const void *)prefill_join_kernel, 0);
}

int prefill_attn_launch(const struct prefill_attn_args *args, uint32_t head_dim, void *stream)
{
    prefill_attn_args a = *args;
    void *params[] = { &a };
    int rc;

    if (head_dim != 256 && head_dim != 512) return -E_UNSUPPORTED;
    if (head_dim == 256 ? a.kv.kv_heads != 8 || !a.window : a.kv.kv_heads != 1 || a.window) return -E_UNSUPPORTED;
    if (a.tile_count == 0 || (a.join_count && (a.window || !a.part))) return -E_RANGE;
    rc = launch_chained(head_dim == 256 ? (const void *)prefill_attn_kernel<256> : (const void *)prefill_attn_kernel<512>, a.tile_count * a.kv.kv_heads,
                        THREADS, head_dim == 256 ? shape<256>::SHARED_BYTES : shape<512>::SHARED_BYTES, params, stream);
    if (rc || a.join_count == 0) return rc;
    return launch_chained((const void *)prefill_join_kernel, a.join_count * JOIN_PARTS, THREADS, 0, params, stream);
}
