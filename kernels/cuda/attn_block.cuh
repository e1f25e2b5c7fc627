/* kernels/cuda/attn_block.cuh - what one block of attention does with one item: fragments, scores, softmax, p v (used by attn.cu).
 *
 * RING: keys are cut by residue, as in sliding layers; full layers with heads of 256 (attn_long.cu) have none.
 * A block of 8 warps holds K and V of one chunk (64 keys of 256, or 32 keys of 512) entirely in registers as tensor-core fragments, loaded
 * straight from the pages (K of 512 in bf16: by way of shared memory, attn_full.cuh). F8: codes of E4M3, which become f16 (exact) on their way into the tensor cores; q and p are f16, too. The 16 rows of an mma are 8 rows x 2 heads, or the 16 heads of one row. */
#ifndef SLUICE_CUDA_ATTN_BLOCK_CUH
#define SLUICE_CUDA_ATTN_BLOCK_CUH

#include "attn.h"
#include "attn_head.cuh"
#include "device.cuh"
#include "kv_element.cuh"

#define ATTN_WARPS 8
static_assert(ATTN_WARPS >= STEP_GROUP_ROWS_MAX, "store_fresh: a warp for each row of a group");
#define IS_NEVER(x) ((x) < -2.9e38f)  /* with a tag, too */
#define NEVER (-3.0e38f)              /* below every score; kept finite so that differences are never NaN */

struct span { uint32_t first, end; };

/* The fixed cut of the key axis in layers that see all keys: spans of UNIT keys (attn.cu: 32, attn_long.cu: 64) up to `first`, of four times as many for 6144 keys, sixteen
 * times for 24576, then 32 times. The first of attn.cu are whole groups of 3 (attn_full.cuh). */
template <uint32_t UNIT> struct cut {
    static constexpr uint32_t KEYS_A = UNIT == 32 ? 2112 : 2048, KEYS_B = KEYS_A + 6144, KEYS_C = KEYS_B + 24576;
    static constexpr uint32_t A = KEYS_A / UNIT, B = A + 1536 / UNIT, C = B + 1536 / UNIT;      /* spans before each border */
};

/* Span i, and how many there are. */
template <uint32_t UNIT> __host__ __device__ static inline struct span cut_span(uint32_t i)
{
    using C = cut<UNIT>;
    struct span s;
    uint32_t keys;

    if (i < C::A) keys = UNIT, s.first = UNIT * i;
    else if (i < C::B) keys = 4 * UNIT, s.first = C::KEYS_A + 4 * UNIT * (i - C::A);
    else if (i < C::C) keys = 16 * UNIT, s.first = C::KEYS_B + 16 * UNIT * (i - C::B);
    else keys = 32 * UNIT, s.first = C::KEYS_C + 32 * UNIT * (i - C::C);
    s.end = s.first + keys;
    return s;
}

template <uint32_t UNIT> __host__ __device__ static inline uint32_t cut_spans(uint32_t tokens)
{
    using C = cut<UNIT>;

    if (tokens <= C::KEYS_A) return (tokens + UNIT - 1) / UNIT;
    if (tokens <= C::KEYS_B) return C::A + (tokens - C::KEYS_A + 4 * UNIT - 1) / (4 * UNIT);
    if (tokens <= C::KEYS_C) return C::B + (tokens - C::KEYS_B + 16 * UNIT - 1) / (16 * UNIT);
    return C::C + (tokens - C::KEYS_C + 32 * UNIT - 1) / (32 * UNIT);
}

__device__ __forceinline__ uint32_t group_tokens(const step_group &g) { return g.first_position + g.rows; }

struct item {
    step_group group;
    uint32_t head;                    /* kv head */
    uint32_t slot;                    /* of the partial result */
    struct span span;                 /* sliding layers: the chunk's newest keys; a place whose key is not there yet shows the key of 1024 before */
    uint32_t row_first, row_end;      /* rows of the group that this item answers */
};

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
    __nv_bfloat16 p[16][S::P_STRIDE];
    union {
        float4 half[S::DIM_PARTS == 2 ? S::KEY_TILES * 32 : 1];    /* scores over the upper half of d; before that */
        __nv_bfloat16 norm[2][D];                              /* weights of q and k norm, of which nobody has need when there are scores */
    };
    float top[16][8], sum[16][8];                              /* per key tile */
    __nv_bfloat16 q[16][S::Q_STRIDE];
    uint32_t page[32];                         /* of the span's chunks (attn_full.cuh) */
    /* then for each row of the launch, at most 8: K and V of the new position (F8: in half of the place); its rotation (cos, sin) */
    __nv_bfloat16 fresh[][D + 8];
};

/* A chunk's keys and values in a lane's registers. */
template <int D, bool F8> struct fragments {
    static constexpr int WORDS = attn_shape<D>::PV_DIMS / (F8 ? 32 : 16);      /* 4-byte words of a lane per value: 1, 2 or 4 */
    typename kv_eight<F8>::words k[8];
    uint32_t v[attn_shape<D>::PV_STEPS * 4 * WORDS];
};

template <int D>
__device__ __forceinline__ float2 *rotation(attn_shared<D> &sh, uint32_t fresh_rows) { return (float2 *)sh.fresh[2 * fresh_rows]; }

template <int D> static uint32_t attn_shared_bytes(uint32_t rows, uint32_t turned)
{
    const uint32_t fresh = rows < STEP_GROUP_ROWS_MAX ? rows : STEP_GROUP_ROWS_MAX;

    return (uint32_t)sizeof(attn_shared<D>) + fresh * (2 * (D + 8) * (uint32_t)sizeof(__nv_bfloat16) + turned * (uint32_t)sizeof(float2));
}

/* Address of K (or V) of a key of this item's sequence and head. */
template <int D, bool F8>
__device__ __forceinline__ const uint8_t *key_address(const attn_args &a, const item &it, uint32_t key, uint64_t offset)
{
    const uint32_t page = __ldg(a.pages + (uint64_t)it.group.seq * a.pages_stride + key / ATTN_PAGE_TOKENS % a.ring_pages);

    return a.arena + page * a.page_bytes + offset + ((uint64_t)it.head * ATTN_PAGE_TOKENS + key % ATTN_PAGE_TOKENS) * (D * kv_bytes<F8>);
}

/* The key of an earlier step at a place of the chunk. Below 0 it wraps and is nobody's key. */
template <bool RING>
__device__ __forceinline__ uint32_t key_at(uint32_t chunk, uint32_t place, uint32_t end)
{
    const uint32_t key = chunk + place;

    return key - (RING && key >= end ? ATTN_WINDOW : 0);
}

/* Keys of [first, end) only: others may lie in pages that belong to somebody else, and their bytes may be anything. */
template <int D, bool F8, bool RING = D == 256>
__device__ __forceinline__ void load_k(fragments<D, F8> &f, const attn_args &a, const item &it, uint32_t chunk, uint32_t first, uint32_t end, uint32_t warp, uint32_t lane)
{
    const uint32_t key = key_at<RING>(chunk, warp % attn_shape<D>::KEY_TILES * 8 + lane / 4, end);
    const bool live = key >= first && key < end;
    const uint8_t *from = live ? key_address<D, F8>(a, it, key, a.k_offset) + (warp / attn_shape<D>::KEY_TILES * 256 + lane % 4 * 8) * kv_bytes<F8> : NULL;

    if (!RING && chunk + attn_shape<D>::KEYS <= end) {         /* nothing to ask for each load */
#pragma unroll
        for (int i = 0; i < 8; i++) load_eight(f.k[i], from + i * 32 * kv_bytes<F8>);
        return;
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        f.k[i] = {};
        if (live) load_eight(f.k[i], from + i * 32 * kv_bytes<F8>);
    }
}

template <int WORDS>
__device__ __forceinline__ void load_words(uint32_t *to, const uint8_t *from)
{
    if (WORDS == 1) {
        to[0] = ld_l2((const uint32_t *)from);
    } else if (WORDS == 2) {
        const uint2 x = __ldcg((const uint2 *)from);

        to[0] = x.x, to[1] = x.y;
    } else {
        const uint4 x = ld_l2((const uint4 *)from);

        to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
    }
}

template <int D, bool F8, bool RING = D == 256>
__device__ __forceinline__ void load_v(fragments<D, F8> &f, const attn_args &a, const item &it, uint32_t chunk, uint32_t first, uint32_t end, uint32_t warp, uint32_t lane)
{
    constexpr int WORDS = fragments<D, F8>::WORDS;
    const uint32_t column = warp * attn_shape<D>::PV_DIMS * kv_bytes<F8> + lane / 4 * (4 * WORDS);

    if (!RING && chunk + attn_shape<D>::KEYS <= end) {         /* one address for each page */
#pragma unroll
        for (int page = 0; page < attn_shape<D>::KEYS / ATTN_PAGE_TOKENS; page++) {
            const uint8_t *from = key_address<D, F8>(a, it, chunk + page * ATTN_PAGE_TOKENS + lane % 4 * 4, a.v_offset) + column;

#pragma unroll
            for (int i = 0; i < ATTN_PAGE_TOKENS / 4; i++) load_words<WORDS>(f.v + (page * (ATTN_PAGE_TOKENS / 4) + i) * WORDS, from + (i / 4 * 16 + i % 4) * D * kv_bytes<F8>);
        }
        return;
    }
    /* The two pages that a place's key may lie in are looked up once for all of them: a division for each would be a sixth of the kernel's code, which is fetched from the L2. */
#pragma unroll
    for (int page = 0; page < attn_shape<D>::KEYS / ATTN_PAGE_TOKENS; page++) {
        const uint32_t mine = chunk + page * ATTN_PAGE_TOKENS + lane % 4 * 4;
        const uint8_t *newer = key_address<D, F8>(a, it, mine, a.v_offset) + column;
        const uint8_t *older = RING ? key_address<D, F8>(a, it, mine - ATTN_WINDOW, a.v_offset) + column : newer;

#pragma unroll
        for (int i = 0; i < ATTN_PAGE_TOKENS / 4; i++) {
            const uint32_t place = i / 4 * 16 + i % 4, key = key_at<RING>(mine, place, end);
            uint32_t *to = f.v + (page * (ATTN_PAGE_TOKENS / 4) + i) * WORDS;

#pragma unroll
            for (int word = 0; word < WORDS; word++) to[word] = 0;
            if (key >= first && key < end) load_words<WORDS>(to, (key == mine + place ? newer : older) + place * D * kv_bytes<F8>);
        }
    }
}

/* Scores of 16 query rows with this warp's 8 keys over its part of d. */
template <int D, bool F8>
__device__ __forceinline__ void scores(float (&s)[4], const fragments<D, F8> &f, const attn_shared<D> &sh, uint32_t warp, uint32_t lane)
{
    const uint32_t at = warp / attn_shape<D>::KEY_TILES * 256 + lane % 4 * 8;
    float other[4] = {};

#pragma unroll
    for (int i = 0; i < 8; i++) {
        const uint4 low = *(const uint4 *)&sh.q[lane / 4][at + i * 32], high = *(const uint4 *)&sh.q[lane / 4 + 8][at + i * 32];
        const uint4 k = widen8(f.k[i]);

        mma_kv<F8>(s, low.x, high.x, low.y, high.y, k.x, k.y);
        mma_kv<F8>(other, low.z, high.z, low.w, high.w, k.z, k.w);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) s[i] += other[i];
}

enum places { PLACES_ALL, PLACES_OLDER, PLACES_NEWER };    /* all; those that show the key of 1024 before; the others */

/* Two weights of neighbouring places, of which those of the other kind become 0. newest: last place that shows its newer key. */
template <enum places PLACES>
__device__ __forceinline__ uint32_t keep_places(uint32_t pair, int place, int newest)
{
    if (PLACES == PLACES_ALL) return pair;
    const uint32_t newer = (place <= newest ? 0xffffu : 0) | (place + 1 <= newest ? 0xffff0000u : 0);

    return pair & (PLACES == PLACES_NEWER ? newer : ~newer);
}

/* out[tile] += p v for this warp's columns. newest[h]: of the rows g and g + 8. */
template <int D, bool F8, enum places PLACES>
__device__ __forceinline__ void accumulate(float (&out)[attn_shape<D>::PV_TILES][4], const fragments<D, F8> &f, const int (&newest)[2], const attn_shared<D> &sh, uint32_t lane)
{
    constexpr int WORDS = fragments<D, F8>::WORDS;

#pragma unroll
    for (int s = 0; s < attn_shape<D>::PV_STEPS; s++) {
        const int place = s * 16 + lane % 4 * 4;
        uint2 low = *(const uint2 *)&sh.p[lane / 4][place], high = *(const uint2 *)&sh.p[lane / 4 + 8][place];
        const uint32_t *x = f.v + s * 4 * WORDS;

        low.x = keep_places<PLACES>(low.x, place, newest[0]), low.y = keep_places<PLACES>(low.y, place + 2, newest[0]);
        high.x = keep_places<PLACES>(high.x, place, newest[1]), high.y = keep_places<PLACES>(high.y, place + 2, newest[1]);
#pragma unroll
        for (int j = 0; j < attn_shape<D>::PV_TILES; j++) {
            const uint32_t b0 = value_pair<F8>(x, x + WORDS, j), b1 = value_pair<F8>(x + 2 * WORDS, x + 3 * WORDS, j);

            mma_kv<F8>(out[j], low.x, high.x, low.y, high.y, b0, b1);
        }
    }
}

/* ---- from the qkv product to q, and to K and V of the new positions ---- */

/* Query head and row of mma row m. Full layers: row `row`, head m. Sliding: rows and the two heads of the kv head interleaved. */
template <int D> __device__ __forceinline__ uint32_t m_row(uint32_t m, uint32_t row) { return D == 256 ? m / 2 : row; }
template <int D> __device__ __forceinline__ uint32_t m_head(uint32_t m, uint32_t kv_head) { return D == 256 ? kv_head * 2 + m % 2 : m; }

/* One head to norm and rotate. */
struct task { uint32_t head, row; bool query, value, live; };

/* Task i of a block: first the query heads of the mma rows, then (fresh) K and V of the new positions in this span that the item's rows see. */
template <int D>
__device__ __forceinline__ task find_task(const attn_args &a, const item &it, uint32_t row, bool fresh, uint32_t i)
{
    const uint32_t queries = D == 256 ? 2 * it.group.rows : 16, tasks = queries + (fresh ? 2 * it.row_end : 0);
    task t;

    t.query = i < queries;
    t.value = !t.query && (i - queries) % 2;
    t.row = t.query ? m_row<D>(i, row) : (i - queries) / 2;
    t.head = t.query ? m_head<D>(i, it.head) : ATTN_HEADS + (t.value && a.has_v ? a.kv_heads : 0) + it.head;
    const uint32_t key = it.group.first_position + t.row;
    t.live = i < tasks && (t.query || (key >= it.span.first && key < it.span.end));
    return t;
}

/* One task per warp and turn, so that a single row is done in one turn; the next turn's load is in flight meanwhile. */
template <int D, bool F8>
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
        if (a.qkv_poll) head_settle<D>(v, qkv + (uint64_t)t.row * a.qkv_stride + t.head * D, a.qkv_tag, lane);
        if (!t.value || a.has_v_norm) head_norm<D>(v, t.value ? NULL : sh.norm[t.query ? 0 : 1], a.eps, lane, a.norm_bias);
        if (!t.value) head_rotate<D>(v, rotation<D>(sh, a.fresh_rows) + t.row * a.turned, a.turned, lane);
        if (t.query) {
            head_store_query<D, F8>(v, sh.q[i], a.scale, lane);
        } else {
            head_store_key<D, F8>(v, (uint8_t *)sh.fresh[2 * t.row + t.value], lane);
        }
    }
}

/* The page of the new position of row `warp`. Asked for before the wait: behind it, this load would hold up the items that everybody waits for. */
__device__ __forceinline__ uint32_t fresh_page(const attn_args &a, const item &it, uint32_t warp)
{
    const uint32_t key = it.group.first_position + (warp < it.row_end ? warp : 0);

    return __ldg(a.pages + (uint64_t)it.group.seq * a.pages_stride + key / ATTN_PAGE_TOKENS % a.ring_pages);
}

/* New K and V of the rows that the item answers, from shared memory to their pages: warp w has row w. */
template <int D, bool F8>
__device__ __forceinline__ void store_fresh(const attn_args &a, const item &it, uint32_t page, const attn_shared<D> &sh, uint32_t warp, uint32_t lane)
{
    const uint32_t key = it.group.first_position + warp;
    uint8_t *to = a.arena + page * a.page_bytes + ((uint64_t)it.head * ATTN_PAGE_TOKENS + key % ATTN_PAGE_TOKENS) * (D * kv_bytes<F8>);

    if (warp < it.row_first || warp >= it.row_end || key < it.span.first || key >= it.span.end) return;
#pragma unroll
    for (uint32_t i = lane; i < D * kv_bytes<F8> / 16; i += 32) {
        ((uint4 *)(to + a.k_offset))[i] = *(const uint4 *)&sh.fresh[2 * warp][i * 8];
        ((uint4 *)(to + a.v_offset))[i] = *(const uint4 *)&sh.fresh[2 * warp + 1][i * 8];
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

/* Puts the new positions' K, just computed, into the fragments. Never from the pages: another block may be the one that writes them. */
template <int D, bool F8>
__device__ __forceinline__ void patch_k(fragments<D, F8> &f, const item &it, uint32_t chunk, const attn_shared<D> &sh, uint32_t warp, uint32_t lane)
{
    const uint32_t key = chunk + warp % attn_shape<D>::KEY_TILES * 8 + lane / 4 - it.group.first_position;

    if (key < it.row_end) {           /* unsigned: earlier keys are huge */
#pragma unroll
        for (int i = 0; i < 8; i++)
            f.k[i] = *(const typename kv_eight<F8>::words *)((const uint8_t *)sh.fresh[2 * key] + (warp / attn_shape<D>::KEY_TILES * 256 + lane % 4 * 8 + i * 32) * kv_bytes<F8>);
    }
}

/* The same for V. */
template <int D, bool F8>
__device__ __forceinline__ void patch_v(fragments<D, F8> &f, const item &it, uint32_t chunk, const attn_shared<D> &sh, uint32_t warp, uint32_t lane)
{
    constexpr int WORDS = fragments<D, F8>::WORDS;

#pragma unroll
    for (int s = 0; s < attn_shape<D>::PV_STEPS; s++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const uint32_t r = chunk + s * 16 + lane % 4 * 4 + e - it.group.first_position;
            const uint32_t *from = (const uint32_t *)((const uint8_t *)sh.fresh[2 * r + 1] + warp * attn_shape<D>::PV_DIMS * kv_bytes<F8>) + lane / 4 * WORDS;

            if (r >= it.row_end) continue;
#pragma unroll
            for (int i = 0; i < WORDS; i++) f.v[(s * 4 + e) * WORDS + i] = from[i];
        }
}

/* ---- softmax ---- */

/* A row sees the key of a place: in sliding layers the newer one, or the one of 1024 before, which is inside the window exactly until then. */
template <bool RING>
__device__ __forceinline__ bool sees(uint32_t key, uint32_t position)
{
    return key <= position || (RING && key >= ATTN_WINDOW);
}

/* Scores over all of d: to the warps of the first DIM_PARTS group, which have 8 keys each. Behind it, everybody is done with K. */
template <int D>
__device__ __forceinline__ void add_halves(float (&s)[4], attn_shared<D> &sh, uint32_t warp, uint32_t lane)
{
    using S = attn_shape<D>;
    const uint32_t tile = warp % S::KEY_TILES;

    if (S::DIM_PARTS == 1) return;
    if (warp >= S::KEY_TILES) sh.half[tile * 32 + lane] = make_float4(s[0], s[1], s[2], s[3]);
    __syncthreads();
    if (warp >= S::KEY_TILES) return;
    const float4 h = sh.half[tile * 32 + lane];

    s[0] += h.x, s[1] += h.y, s[2] += h.z, s[3] += h.w;
}

/* The part of a row's softmax that the warps of a block share, behind add_halves: new maximum, weights, sums. Each warp of the first DIM_PARTS group
 * holds the scores of 8 keys. Leaves p in shared memory; factor[h]: what the rows g and g + 8 accumulated so far shrinks by. */
template <int D, bool F8, bool RING = D == 256>
__device__ __forceinline__ void softmax_chunk(float (&s)[4], float (&top)[2], float (&sum)[2], float (&factor)[2],
                                              const item &it, uint32_t chunk, uint32_t row, attn_shared<D> &sh, uint32_t warp, uint32_t lane)
{
    using S = attn_shape<D>;
    const uint32_t tile = warp % S::KEY_TILES, g = lane / 4;
    const bool holds = warp < S::KEY_TILES;

#pragma unroll
    for (int h = 0; h < 2; h++) {
        const uint32_t r = m_row<D>(g + 8 * h, row), position = it.group.first_position + r;

        float best = NEVER;
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const bool seen = r < it.group.rows && sees<RING>(chunk + tile * 8 + lane % 4 * 2 + e, position);

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
            *(uint32_t *)&sh.p[m][tile * 8 + lane % 4 * 2] = pack_weights<F8>(p0, p1);
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

/* Sliding layers' partial results carry a tag. */
template <int D> __device__ __forceinline__ float partial_tag(const attn_args &a, float x) { return D == 256 ? with_tag(x, a.part_tag) : x; }

/* Partial results lie in an order in which the four lanes of a quad write 64 bytes at once: which d stands at place p. Pairs stay pairs. */
template <int D>
__device__ __forceinline__ uint32_t partial_dim(uint32_t p)
{
    using S = attn_shape<D>;
    const uint32_t run = p % S::PV_DIMS / 16, j = run % (S::PV_TILES / 4) * 4 + p % 4, n = p / 4 % 4 * 2 + run / (S::PV_TILES / 4);

    return p / S::PV_DIMS * S::PV_DIMS + n * S::PV_TILES + j;
}

template <int D>
__device__ __forceinline__ void store_partial(const attn_args &a, const item &it, uint32_t row, const float (&out)[attn_shape<D>::PV_TILES][4],
                                              const float (&top)[2], const float (&sum)[2], uint32_t warp, uint32_t lane)
{
    using S = attn_shape<D>;

#pragma unroll
    for (int h = 0; h < 2; h++) {
        const uint32_t m = lane / 4 + 8 * h, r = m_row<D>(m, row);

        if (r >= it.group.rows) continue;
        const uint64_t at = ((uint64_t)(it.group.first_row + r) * ATTN_HEADS + m_head<D>(m, it.head)) * a.spans_max + it.slot;
        float *to = a.part + at * D + warp * S::PV_DIMS + lane % 4 * 4;

        /* Column n of tile j is d = tiles * n + j: lane t holds n = 2t and 2t + 1. */
#pragma unroll
        for (int e = 0; e < 2; e++)
#pragma unroll
            for (int j = 0; j < S::PV_TILES; j += 4)
                st_tagged((float4 *)(to + (e * S::PV_TILES + j) * 4), make_float4(partial_tag<D>(a, out[j][h * 2 + e]), partial_tag<D>(a, out[j + 1][h * 2 + e]),
                                                                                  partial_tag<D>(a, out[j + 2][h * 2 + e]), partial_tag<D>(a, out[j + 3][h * 2 + e])));
        if (warp == 0 && lane % 4 == 0) st_tagged(a.part_ml + at, make_float2(partial_tag<D>(a, top[h]), partial_tag<D>(a, sum[h])));
    }
}

#endif
