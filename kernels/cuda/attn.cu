/* kernels/cuda/attn.cu - decode attention over pages (contract in attn.h).
 *
 * A block of 8 warps holds K and V of one chunk (64 keys of 256, or 32 keys of 512) entirely in registers as tensor-core fragments, loaded
 * straight from the pages: no shared memory, so it fits beside a rowmm block whose ring takes nearly all of it. Keys of earlier
 * steps are loaded before the qkv product has ended. The 16 rows of an mma are 8 rows x 2 heads, or the 16 heads of one row. */
#include "attn.h"
#include "attn_head.cuh"
#include "device.cuh"
#include "launch.h"
#include "shm/error.h"

#define ATTN_WARPS 8
#define NEVER (-3.0e38f)              /* below every score; kept finite so that differences are never NaN */

/* ---- the fixed cut of the key axis ---- */

struct span { uint32_t first, end; };

__host__ __device__ static inline struct span full_span(uint32_t i)
{
    struct span s;
    uint32_t keys;

    if (i < 64) keys = 32, s.first = 32 * i;
    else if (i < 112) keys = 128, s.first = 2048 + 128 * (i - 64);
    else if (i < 160) keys = 512, s.first = 8192 + 512 * (i - 112);
    else keys = 1024, s.first = 32768 + 1024 * (i - 160);
    s.end = s.first + keys;
    return s;
}

__host__ __device__ static inline uint32_t full_spans(uint32_t tokens)
{
    if (tokens <= 2048) return (tokens + 31) / 32;
    if (tokens <= 8192) return 64 + (tokens - 2048 + 127) / 128;
    if (tokens <= 32768) return 112 + (tokens - 8192 + 511) / 512;
    return 160 + (tokens - 32768 + 1023) / 1024;
}

uint32_t attn_full_spans(uint32_t tokens) { return full_spans(tokens); }

/* First span and number of spans that a group of rows needs. */
__device__ __forceinline__ uint2 group_spans(const step_group &g, uint32_t window)
{
    const uint32_t tokens = g.first_position + g.rows;

    if (!window) return make_uint2(0, full_spans(tokens));
    const uint32_t first = g.first_position + 1 > window ? (g.first_position + 1 - window) / ATTN_SLIDING_SPAN : 0;

    return make_uint2(first, (tokens + ATTN_SLIDING_SPAN - 1) / ATTN_SLIDING_SPAN - first);
}

struct item {
    step_group group;
    uint32_t head;                    /* kv head */
    uint32_t slot;                    /* of the partial result: spans counted from the group's first */
    struct span span;
    uint32_t paired;                  /* 0, or: key places from here on hold, at first, the group's OLDEST span (slot 0) instead */
};

/* Past its window a group sees the end of its oldest span and the start of its newest: keys of earlier steps together fill less than one
 * span. One block takes both (two partial results, the same bits), so that 8 heads make 128 items and fit on 132 SMs at once. */
__device__ __forceinline__ bool pairs_spans(const step_group &g, uint32_t window, uint32_t spans)
{
    return window == ATTN_SLIDING_SPAN * 16 && spans == 17 && g.first_position >= window && (g.first_position + 1) % ATTN_SLIDING_SPAN != 0;
}

/* Newest spans first: their blocks have the most to do. Returns false past the last item. */
__device__ __forceinline__ bool find_item(item &it, const attn_args &a, uint32_t index)
{
    const uint32_t groups = a.state->groups;

    for (uint32_t g = 0; g < groups; g++) {
        it.group = a.state->group[g];
        const uint2 spans = group_spans(it.group, a.window);
        const bool pairs = pairs_spans(it.group, a.window, spans.y);
        const uint32_t items = (spans.y - pairs) * a.kv_heads;

        if (index < items) {
            it.head = index % a.kv_heads;
            it.slot = spans.y - 1 - index / a.kv_heads;
            it.paired = pairs && it.slot == 16 ? (it.group.first_position + 1) % ATTN_SLIDING_SPAN : 0;
            if (a.window) {
                it.span.first = (spans.x + it.slot) * ATTN_SLIDING_SPAN;
                it.span.end = it.span.first + ATTN_SLIDING_SPAN;
            } else {
                it.span = full_span(it.slot);
            }
            return true;
        }
        index -= items;
    }
    return false;
}

/* ---- fragments ---- */

template <int D> struct attn_shape {
    static constexpr int KEYS = D == 256 ? 64 : 32;            /* keys of a chunk */
    static constexpr int KEY_TILES = KEYS / 8;                 /* warps along the keys in q k */
    static constexpr int DIM_PARTS = ATTN_WARPS / KEY_TILES;   /* warps along d in q k: 1 or 2 */
    static constexpr int PV_DIMS = D / ATTN_WARPS;             /* columns of a warp in p v: 32 or 64 */
    static constexpr int PV_TILES = PV_DIMS / 8;
    static constexpr int PV_STEPS = KEYS / 16;
    static constexpr int Q_STRIDE = D + 32;                    /* bf16; rows 16 banks apart: two rows of a quarter warp never collide */
    static constexpr int P_STRIDE = KEYS + 16;                 /* bf16; rows 8 banks apart */
};

template <int D> struct attn_shared {
    using S = attn_shape<D>;
    __nv_bfloat16 q[16][S::Q_STRIDE];
    __nv_bfloat16 p[16][S::P_STRIDE];
    float4 half[S::DIM_PARTS == 2 ? S::KEY_TILES * 32 : 1];    /* scores over the upper half of d */
    float top[16][8], sum[16][8];                              /* per key tile */
    __nv_bfloat16 norm[2][D];                                  /* weights of q and k norm */
    /* then for each row of the launch, at most 8: K and V of the new position; its rotation (cos, sin) */
    __nv_bfloat16 fresh[][D + 8];
};

template <int D>
__device__ __forceinline__ float2 *rotation(attn_shared<D> &sh, uint32_t fresh_rows) { return (float2 *)sh.fresh[2 * fresh_rows]; }

template <int D> static uint32_t attn_shared_bytes(uint32_t rows, uint32_t turned)
{
    const uint32_t fresh = rows < STEP_GROUP_ROWS_MAX ? rows : STEP_GROUP_ROWS_MAX;

    return (uint32_t)sizeof(attn_shared<D>) + fresh * (2 * (D + 8) * (uint32_t)sizeof(__nv_bfloat16) + turned * (uint32_t)sizeof(float2));
}

/* Address of K (or V) of a key of this item's sequence and head. */
template <int D>
__device__ __forceinline__ const __nv_bfloat16 *key_address(const attn_args &a, const item &it, uint32_t key, uint64_t offset)
{
    const uint32_t page = __ldg(a.pages + (uint64_t)it.group.seq * a.pages_stride + key / ATTN_PAGE_TOKENS % a.ring_pages);

    return (const __nv_bfloat16 *)(a.arena + page * a.page_bytes + offset) + ((uint64_t)it.head * ATTN_PAGE_TOKENS + key % ATTN_PAGE_TOKENS) * D;
}

/* The key at a place of the chunk. */
template <int D>
__device__ __forceinline__ uint32_t key_at(const item &it, uint32_t chunk, uint32_t place)
{
    return chunk + place - (D == 256 && it.paired && place >= it.paired ? 16 * ATTN_SLIDING_SPAN : 0);
}

/* Keys of [first, end) only: others may lie in pages that belong to somebody else, and their bytes may be anything. */
template <int D>
__device__ __forceinline__ void load_k(uint4 (&k)[8], const attn_args &a, const item &it, uint32_t chunk, uint32_t first, uint32_t end, uint32_t warp, uint32_t lane)
{
    const uint32_t key = key_at<D>(it, chunk, warp % attn_shape<D>::KEY_TILES * 8 + lane / 4);
    const bool live = key >= first && key < end;
    const __nv_bfloat16 *from = live ? key_address<D>(a, it, key, a.k_offset) + warp / attn_shape<D>::KEY_TILES * 256 + lane % 4 * 8 : NULL;

#pragma unroll
    for (int i = 0; i < 8; i++) k[i] = live ? ld_l2((const uint4 *)(from + i * 32)) : make_uint4(0, 0, 0, 0);
}

template <int D>
__device__ __forceinline__ void load_v(uint32_t (&v)[32], const attn_args &a, const item &it, uint32_t chunk, uint32_t first, uint32_t end, uint32_t warp, uint32_t lane)
{
    constexpr int WORDS = attn_shape<D>::PV_DIMS / 16;         /* 4-byte words of a lane per key: 2 or 4 */

#pragma unroll
    for (int s = 0; s < attn_shape<D>::PV_STEPS; s++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const uint32_t key = key_at<D>(it, chunk, s * 16 + lane % 4 * 4 + e);
            const bool live = key >= first && key < end;
            uint32_t *to = v + (s * 4 + e) * WORDS;
            const __nv_bfloat16 *from = live ? key_address<D>(a, it, key, a.v_offset) + warp * attn_shape<D>::PV_DIMS + lane / 4 * (2 * WORDS) : NULL;

            if (WORDS == 2) {
                const uint2 x = live ? __ldcg((const uint2 *)from) : make_uint2(0, 0);
                to[0] = x.x, to[1] = x.y;
            } else {
                const uint4 x = live ? ld_l2((const uint4 *)from) : make_uint4(0, 0, 0, 0);
                to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
            }
        }
}

/* Scores of 16 query rows with this warp's 8 keys over its part of d. */
template <int D>
__device__ __forceinline__ void scores(float (&s)[4], const uint4 (&k)[8], const attn_shared<D> &sh, uint32_t warp, uint32_t lane)
{
    const uint32_t at = warp / attn_shape<D>::KEY_TILES * 256 + lane % 4 * 8;
    float other[4] = {};

#pragma unroll
    for (int i = 0; i < 8; i++) {
        const uint4 low = *(const uint4 *)&sh.q[lane / 4][at + i * 32], high = *(const uint4 *)&sh.q[lane / 4 + 8][at + i * 32];

        mma_bf16(s, low.x, high.x, low.y, high.y, k[i].x, k[i].y);
        mma_bf16(other, low.z, high.z, low.w, high.w, k[i].z, k[i].w);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) s[i] += other[i];
}

/* out[tile] += p v for this warp's columns. */
template <int D>
__device__ __forceinline__ void accumulate(float (&out)[attn_shape<D>::PV_TILES][4], const uint32_t (&v)[32], const attn_shared<D> &sh, uint32_t lane)
{
    constexpr int WORDS = attn_shape<D>::PV_DIMS / 16;

#pragma unroll
    for (int s = 0; s < attn_shape<D>::PV_STEPS; s++) {
        const uint2 low = *(const uint2 *)&sh.p[lane / 4][s * 16 + lane % 4 * 4], high = *(const uint2 *)&sh.p[lane / 4 + 8][s * 16 + lane % 4 * 4];
        const uint32_t *x = v + s * 4 * WORDS;

#pragma unroll
        for (int j = 0; j < attn_shape<D>::PV_TILES; j++) {
            const uint32_t select = j % 2 ? 0x7632 : 0x5410;   /* the upper or lower bf16 of both */
            const uint32_t b0 = __byte_perm(x[j / 2], x[WORDS + j / 2], select), b1 = __byte_perm(x[2 * WORDS + j / 2], x[3 * WORDS + j / 2], select);

            mma_bf16(out[j], low.x, high.x, low.y, high.y, b0, b1);
        }
    }
}

/* ---- the item ---- */

/* Query head and row of mma row m. Full layers: row `row`, head m. Sliding: rows and the two heads of the kv head interleaved. */
template <int D> __device__ __forceinline__ uint32_t m_row(uint32_t m, uint32_t row) { return D == 256 ? m / 2 : row; }
template <int D> __device__ __forceinline__ uint32_t m_head(uint32_t m, uint32_t kv_head) { return D == 256 ? kv_head * 2 + m % 2 : m; }

/* One head to norm and rotate. */
struct task { uint32_t head, row; bool query, value, live; };

/* Task i of a block: first the query heads of the mma rows, then (fresh) K and V of the group's new positions inside this span. */
template <int D>
__device__ __forceinline__ task find_task(const attn_args &a, const item &it, uint32_t row, bool fresh, uint32_t i)
{
    const uint32_t queries = D == 256 ? 2 * it.group.rows : 16, tasks = queries + (fresh ? 2 * it.group.rows : 0);
    task t;

    t.query = i < queries;
    t.value = !t.query && (i - queries) % 2;
    t.row = t.query ? m_row<D>(i, row) : (i - queries) / 2;
    t.head = t.query ? m_head<D>(i, it.head) : ATTN_HEADS + (t.value && a.has_v ? a.kv_heads : 0) + it.head;
    const uint32_t key = it.group.first_position + t.row;
    t.live = i < tasks && (t.query || (key >= it.span.first && key < it.span.end));
    return t;
}

/* One task per warp and turn, so that a single row is done in one turn; the next turn's load is in flight meanwhile. New K and V go to their pages and
 * to shared memory. */
template <int D>
__device__ __forceinline__ void prepare(const attn_args &a, const item &it, uint32_t row, bool fresh, attn_shared<D> &sh, uint32_t warp, uint32_t lane)
{
    const float *qkv = a.qkv + (uint64_t)it.group.first_row * a.qkv_stride;
    task t = find_task<D>(a, it, row, fresh, warp), next;
    head_vector<D> v = {}, w = {};

    if (t.live) head_load<D>(v, qkv + (uint64_t)t.row * a.qkv_stride + t.head * D, lane);
#pragma unroll 1
    for (uint32_t i = warp; i < 16 + 2 * STEP_GROUP_ROWS_MAX; i += ATTN_WARPS, t = next, v = w) {
        next = find_task<D>(a, it, row, fresh, i + ATTN_WARPS);
        if (next.live) head_load<D>(w, qkv + (uint64_t)next.row * a.qkv_stride + next.head * D, lane);
        if (!t.live) continue;
        head_norm<D>(v, t.value ? NULL : sh.norm[t.query ? 0 : 1], a.eps, lane);
        if (!t.value) head_rotate<D>(v, rotation<D>(sh, a.fresh_rows) + t.row * a.turned, a.turned, lane);
        if (t.query) {
            head_store<D>(v, sh.q[i], a.scale, lane);
        } else {
            head_store<D>(v, sh.fresh[2 * t.row + t.value], 1.0f, lane);
            head_store<D>(v, (__nv_bfloat16 *)key_address<D>(a, it, it.group.first_position + t.row, t.value ? a.v_offset : a.k_offset), 1.0f, lane);
        }
    }
}

/* What does not depend on the qkv product: norm weights and the rotations of the group's rows. */
template <int D>
__device__ __forceinline__ void load_constants(const attn_args &a, const item &it, attn_shared<D> &sh)
{
    const uint32_t per_row = a.turned / 2, t = threadIdx.x;

    if (t < D / 4) ((uint4 *)sh.norm)[t] = __ldg((const uint4 *)(t < D / 8 ? a.q_norm : a.k_norm) + t % (D / 8));
    for (uint32_t i = t; i < it.group.rows * per_row; i += ATTN_WARPS * 32)
        ((uint4 *)rotation<D>(sh, a.fresh_rows))[i] = ld_l2((const uint4 *)(a.rope + (uint64_t)(it.group.first_row + i / per_row) * a.rope_stride) + i % per_row);
}

/* Rows of an mma that stand for nobody hold zeros. */
template <int D>
__device__ __forceinline__ void clear_dead_rows(const item &it, attn_shared<D> &sh)
{
    for (uint32_t m = 2 * it.group.rows; D == 256 && m < 16; m++)
        for (uint32_t i = threadIdx.x; i < D / 8; i += ATTN_WARPS * 32) *(uint4 *)&sh.q[m][i * 8] = make_uint4(0, 0, 0, 0);
}

/* Puts the new positions' K, just computed, into the fragments. */
template <int D>
__device__ __forceinline__ void patch_k(uint4 (&k)[8], const item &it, const attn_shared<D> &sh, uint32_t warp, uint32_t lane)
{
    const uint32_t key = it.span.first + warp % attn_shape<D>::KEY_TILES * 8 + lane / 4 - it.group.first_position;

    if (key < it.group.rows) {        /* unsigned: earlier keys are huge */
#pragma unroll
        for (int i = 0; i < 8; i++) k[i] = *(const uint4 *)&sh.fresh[2 * key][warp / attn_shape<D>::KEY_TILES * 256 + lane % 4 * 8 + i * 32];
    }
}

/* The same for V. */
template <int D>
__device__ __forceinline__ void patch_v(uint32_t (&v)[32], const item &it, const attn_shared<D> &sh, uint32_t warp, uint32_t lane)
{
    constexpr int WORDS = attn_shape<D>::PV_DIMS / 16;

#pragma unroll
    for (int s = 0; s < attn_shape<D>::PV_STEPS; s++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const uint32_t r = it.span.first + s * 16 + lane % 4 * 4 + e - it.group.first_position;
            const uint32_t *from = (const uint32_t *)&sh.fresh[2 * r + 1][warp * attn_shape<D>::PV_DIMS + lane / 4 * (2 * WORDS)];

            if (r >= it.group.rows) continue;
#pragma unroll
            for (int i = 0; i < WORDS; i++) v[(s * 4 + e) * WORDS + i] = from[i];
        }
}

/* The part of a row's softmax that the blocks of a chunk share: new maximum, weights, sums. Each warp of the first DIM_PARTS group
 * holds the scores of 8 keys. Leaves p in shared memory; factor[h]: what the rows g and g + 8 accumulated so far shrinks by. */
template <int D>
__device__ __forceinline__ void softmax_chunk(float (&s)[4], float (&top)[2], float (&sum)[2], float (&factor)[2], const attn_args &a,
                                              const item &it, uint32_t chunk, bool oldest, uint32_t row, attn_shared<D> &sh, uint32_t warp, uint32_t lane)
{
    using S = attn_shape<D>;
    const uint32_t tile = warp % S::KEY_TILES, g = lane / 4;
    const bool holds = warp < S::KEY_TILES;

    if (S::DIM_PARTS == 2) {
        if (!holds) sh.half[tile * 32 + lane] = make_float4(s[0], s[1], s[2], s[3]);
        __syncthreads();
        if (holds) {
            const float4 h = sh.half[tile * 32 + lane];

            s[0] += h.x, s[1] += h.y, s[2] += h.z, s[3] += h.w;
        }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const uint32_t r = m_row<D>(g + 8 * h, row), position = it.group.first_position + r;

        float best = NEVER;
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const uint32_t place = tile * 8 + lane % 4 * 2 + e, key = chunk + place - (oldest ? 16 * ATTN_SLIDING_SPAN : 0);
            const bool seen = r < it.group.rows && (!oldest || place >= it.paired) && key <= position && (!a.window || key + a.window > position);

            s[h * 2 + e] = seen ? s[h * 2 + e] : NEVER;
            best = fmaxf(best, s[h * 2 + e]);
        }
        best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, 1));
        best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, 2));
        if (holds && lane % 4 == 0) sh.top[g + 8 * h][tile] = best;
    }
    __syncthreads();
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const uint32_t m = g + 8 * h;
        float best = top[h];

#pragma unroll
        for (int t = 0; t < S::KEY_TILES; t++) best = fmaxf(best, sh.top[m][t]);
        factor[h] = top[h] == NEVER ? 0.0f : __expf(top[h] - best);
        top[h] = best;
        const float p0 = s[h * 2] == NEVER ? 0.0f : __expf(s[h * 2] - best), p1 = s[h * 2 + 1] == NEVER ? 0.0f : __expf(s[h * 2 + 1] - best);
        float part = p0 + p1;

        part += __shfl_xor_sync(0xffffffffu, part, 1);
        part += __shfl_xor_sync(0xffffffffu, part, 2);
        if (holds) {
            *(uint32_t *)&sh.p[m][tile * 8 + lane % 4 * 2] = pack_bf16(p0, p1);
            if (lane % 4 == 0) sh.sum[m][tile] = part;
        }
    }
    __syncthreads();
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float part = 0.0f;

#pragma unroll
        for (int t = 0; t < S::KEY_TILES; t++) part += sh.sum[g + 8 * h][t];
        sum[h] = sum[h] * factor[h] + part;
    }
}

template <int D>
__device__ __forceinline__ void store_partial(const attn_args &a, const item &it, uint32_t slot, uint32_t row, const float (&out)[attn_shape<D>::PV_TILES][4],
                                              const float (&top)[2], const float (&sum)[2], uint32_t warp, uint32_t lane)
{
    using S = attn_shape<D>;

#pragma unroll
    for (int h = 0; h < 2; h++) {
        const uint32_t m = lane / 4 + 8 * h, r = m_row<D>(m, row);

        if (r >= it.group.rows) continue;
        const uint64_t at = ((uint64_t)(it.group.first_row + r) * ATTN_HEADS + m_head<D>(m, it.head)) * a.spans_max + slot;
        float *to = a.part + at * D + warp * S::PV_DIMS + lane % 4 * (2 * S::PV_TILES);

        /* Column n of tile j is d = tiles * n + j: lane t holds n = 2t and 2t + 1, so 2 * tiles consecutive elements. */
#pragma unroll
        for (int e = 0; e < 2; e++)
#pragma unroll
            for (int j = 0; j < S::PV_TILES; j += 4)
                *(float4 *)(to + e * S::PV_TILES + j) = make_float4(out[j][h * 2 + e], out[j + 1][h * 2 + e], out[j + 2][h * 2 + e], out[j + 3][h * 2 + e]);
        if (warp == 0 && lane % 4 == 0) a.part_ml[at] = make_float2(top[h], sum[h]);
    }
}

/* Sliding layers: one span; or of a paired item the oldest, then, with the new keys in place, the newest. K is done with before the
 * first p v, else it and V would not fit in the registers. */
__device__ __forceinline__ void work_sliding(const attn_args &a, const item &it, bool fresh, uint4 (&k)[8], uint32_t (&v)[32], attn_shared<256> &sh, uint32_t warp, uint32_t lane)
{
    float old[4] = {}, scored[4] = {};

    if (it.paired) scores<256>(old, k, sh, warp, lane);
    if (fresh) patch_k<256>(k, it, sh, warp, lane);
    scores<256>(scored, k, sh, warp, lane);
#pragma unroll 1
    for (int turn = it.paired ? 0 : 1; turn < 2; turn++) {
        const bool oldest = turn == 0;
        float out[attn_shape<256>::PV_TILES][4] = {}, top[2] = { NEVER, NEVER }, sum[2] = { 0.0f, 0.0f }, factor[2], s[4];

#pragma unroll
        for (int i = 0; i < 4; i++) s[i] = oldest ? old[i] : scored[i];
        if (!oldest && fresh) patch_v<256>(v, it, sh, warp, lane);
        softmax_chunk<256>(s, top, sum, factor, a, it, it.span.first, oldest, 0, sh, warp, lane);
        accumulate<256>(out, v, sh, lane);
        store_partial<256>(a, it, oldest ? 0 : it.slot, 0, out, top, sum, warp, lane);
        __syncthreads();              /* q and p are written again */
    }
}

/* Full layers: row by row; spans of several chunks are read again for each row, from the L2. */
__device__ __forceinline__ void work_full(const attn_args &a, const item &it, uint4 (&k)[8], uint32_t (&v)[32], uint32_t end, attn_shared<512> &sh, uint32_t warp, uint32_t lane)
{
    using S = attn_shape<512>;
    const bool one_chunk = it.span.end - it.span.first == S::KEYS;

    for (uint32_t row = 0; row < it.group.rows; row++) {
        float out[S::PV_TILES][4] = {}, top[2] = { NEVER, NEVER }, sum[2] = { 0.0f, 0.0f }, factor[2];

        if (row) {
            prepare<512>(a, it, row, false, sh, warp, lane);
            __syncthreads();
        }
        for (uint32_t chunk = it.span.first; chunk < it.span.end && chunk < end; chunk += S::KEYS) {
            float s[4] = {};

            if (!one_chunk) load_k<512>(k, a, it, chunk, 0, end, warp, lane), load_v<512>(v, a, it, chunk, 0, end, warp, lane);
            scores<512>(s, k, sh, warp, lane);
            softmax_chunk<512>(s, top, sum, factor, a, it, chunk, false, row, sh, warp, lane);
            if (!one_chunk) {
#pragma unroll
                for (int j = 0; j < S::PV_TILES; j++) out[j][0] *= factor[0], out[j][1] *= factor[0], out[j][2] *= factor[1], out[j][3] *= factor[1];
            }
            accumulate<512>(out, v, sh, lane);
        }
        store_partial<512>(a, it, it.slot, row, out, top, sum, warp, lane);
        __syncthreads();              /* q and p are written again */
    }
}

template <int D>
__global__ void __maxnreg__(112) attn_kernel(const __grid_constant__ attn_args a)
{
    extern __shared__ __align__(16) uint8_t shared_bytes[];
    attn_shared<D> &sh = *(attn_shared<D> *)shared_bytes;
    const uint32_t warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    bool waited = false;
    item it;

    chain_trigger();
    if (threadIdx.x == 0) trace_mark(a.trace, TRACE_START);
    for (uint32_t index = blockIdx.x; find_item(it, a, index); index += gridDim.x) {
        const uint32_t p0 = it.group.first_position, end = p0 + it.group.rows;
        const uint32_t first = a.window && p0 + 1 > a.window ? p0 + 1 - a.window : 0;
        const bool fresh = it.span.end > p0;       /* holds positions of this step */
        uint4 k[8];
        uint32_t v[32];

        load_constants<D>(a, it, sh);
        clear_dead_rows<D>(it, sh);
        __syncthreads();
        load_k<D>(k, a, it, it.span.first, first, p0, warp, lane);
        load_v<D>(v, a, it, it.span.first, first, p0, warp, lane);
        if (!waited) chain_wait();
        if (!waited && threadIdx.x == 0) trace_mark(a.trace, TRACE_PAST_WAIT);
        waited = true;
        prepare<D>(a, it, 0, fresh, sh, warp, lane);
        __syncthreads();
        if constexpr (D == 256) {
            work_sliding(a, it, fresh, k, v, sh, warp, lane);
        } else {
            if (fresh) patch_k<D>(k, it, sh, warp, lane), patch_v<D>(v, it, sh, warp, lane);
            work_full(a, it, k, v, end, sh, warp, lane);
        }
    }
    if (!waited) chain_wait();
    else if (threadIdx.x == 0) trace_mark(a.trace, TRACE_END);
}

#define COMBINE_BATCH 18              /* spans whose loads are in flight together: all of a sliding layer */

/* One block per (row, head): the spans in ascending order, so that spans which a row does not see (weight exactly 0) change no bit. */
template <int D>
__global__ void __launch_bounds__(D / 2) combine_kernel(const __grid_constant__ attn_args a)
{
    const uint32_t row = blockIdx.x / ATTN_HEADS, head = blockIdx.x % ATTN_HEADS, lane = threadIdx.x % 32;
    const float2 *ml = a.part_ml + (uint64_t)blockIdx.x * a.spans_max;
    const float *part = a.part + (uint64_t)blockIdx.x * a.spans_max * D + threadIdx.x * 2;
    float top = NEVER, sum = 0.0f;
    float2 out = make_float2(0.0f, 0.0f), x[COMBINE_BATCH];

    chain_trigger();
    if (threadIdx.x == 0) trace_mark(a.trace ? a.trace + TRACE_WORDS : NULL, TRACE_START);
    const bool live = row < a.state->rows;
    const uint32_t spans = live ? group_spans(a.state->group[a.state->row[row].group], a.window).y : 0;

    chain_wait();
    if (!live) return;
    if (threadIdx.x == 0) trace_mark(a.trace ? a.trace + TRACE_WORDS : NULL, TRACE_PAST_WAIT);
#pragma unroll
    for (uint32_t s = 0; s < COMBINE_BATCH; s++) x[s] = s < spans ? __ldcg((const float2 *)(part + (uint64_t)s * D)) : make_float2(0.0f, 0.0f);
    for (uint32_t s = lane; s < spans; s += 32) top = fmaxf(top, __ldcg(&ml[s].x));
#pragma unroll
    for (int d = 16; d; d >>= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, d));
    for (uint32_t first = 0; first < spans; first += COMBINE_BATCH) {
        const float2 own = lane < COMBINE_BATCH && first + lane < spans ? __ldcg(ml + first + lane) : make_float2(NEVER, 0.0f);
        const float weight = own.x == NEVER ? 0.0f : __expf(own.x - top), mass = weight * own.y;

        if (first) {
#pragma unroll
            for (uint32_t s = 0; s < COMBINE_BATCH; s++) x[s] = first + s < spans ? __ldcg((const float2 *)(part + (uint64_t)(first + s) * D)) : make_float2(0.0f, 0.0f);
        }
#pragma unroll
        for (uint32_t s = 0; s < COMBINE_BATCH; s++) {
            const float w = __shfl_sync(0xffffffffu, weight, s);

            sum += __shfl_sync(0xffffffffu, mass, s), out.x += w * x[s].x, out.y += w * x[s].y;
        }
    }
    const float inv = 1.0f / sum;

    *(uint32_t *)(a.out + ((uint64_t)row * ATTN_HEADS + head) * D + threadIdx.x * 2) = pack_bf16(out.x * inv, out.y * inv);
    if (threadIdx.x == 0) trace_mark(a.trace ? a.trace + TRACE_WORDS : NULL, TRACE_END);
}

int attn_init(void)
{
    int rc = launch_prepare((const void *)attn_kernel<256>, attn_shared_bytes<256>(STEP_ROWS_MAX, 128));

    if (rc == 0) rc = launch_prepare((const void *)attn_kernel<512>, attn_shared_bytes<512>(STEP_ROWS_MAX, 256));
    if (rc == 0) rc = launch_prepare((const void *)combine_kernel<256>, 0);
    if (rc == 0) rc = launch_prepare((const void *)combine_kernel<512>, 0);
    return rc;
}

int attn_launch(const struct attn_args *args, uint32_t head_dim, uint32_t rows, uint32_t sm_count, void *stream)
{
    attn_args a = *args;
    void *params[] = { &a };
    /* One row makes at most 16 items a head. More blocks than items would still take room on an SM from the next product's. */
    const uint32_t items = rows * a.kv_heads * (rows == 1 ? 16 : ATTN_SLIDING_SPANS_MAX);
    int rc;

    if (head_dim != 256 && head_dim != 512) return -E_UNSUPPORTED;
    if (head_dim == 256 ? a.kv_heads != 8 || !a.window : a.kv_heads != 1 || a.window) return -E_UNSUPPORTED;
    if (rows == 0 || rows > STEP_ROWS_MAX || a.turned > head_dim / 2 || a.turned % 4) return -E_RANGE;
    a.fresh_rows = rows < STEP_GROUP_ROWS_MAX ? rows : STEP_GROUP_ROWS_MAX;
    if (head_dim == 256) rc = launch_chained((const void *)attn_kernel<256>, items < 2 * sm_count ? items : 2 * sm_count, ATTN_WARPS * 32, attn_shared_bytes<256>(rows, a.turned), params, stream);
    else rc = launch_chained((const void *)attn_kernel<512>, sm_count, ATTN_WARPS * 32, attn_shared_bytes<512>(rows, a.turned), params, stream);
    if (rc) return rc;
    return launch_chained(head_dim == 256 ? (const void *)combine_kernel<256> : (const void *)combine_kernel<512>, rows * ATTN_HEADS, head_dim / 2, 0, params, stream);
}
