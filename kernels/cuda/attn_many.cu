/* kernels/cuda/attn_many.cu - sliding attention for many sequences (contract in attn_many.h).
 *
 * One row and kv head need 2 query heads only, so keys are the 16-row operand of the tensor cores and queries the 8-column one: scores come out as
 * [key][head], p v as [d][head]. The 4 warps of a block work on one chunk of 64 keys after the other: each has 16 of its keys for the scores and 64 of the 256 columns of V, which
 * it asks for itself, one chunk ahead (F8: two, the bytes in flight are as many then); they meet once a chunk, when its scores are there. A cluster of blocks shares the
 * chunks of a row when there are few rows. F8: E4M3 in shared memory, f16 at the tensor cores. Products and their order are those of attn.cu: which operand is which changes no bit. */
#include "attn_many.h"
#include "attn_many_copy.cuh"
#include "cluster.cuh"
#include "kv_element.cuh"
#include "launch.h"
#include "round.cuh"
#include "tags.cuh"
#include "shm/error.h"

#define D 256                         /* head size */
#define WINDOW 1024
#define CHUNKS 16
#define CHUNK_KEYS 64
#define NEVER (-3.0e38f)              /* as in attn.cu: below every score, and finite */

#define WARPS 4
#define THREADS (WARPS * 32)
#define STEP_KEYS 16                  /* of one mma in p v; and a warp's keys in q k */
#define COLUMNS (D / WARPS)           /* of V, a warp's */
#define HALF_KEYS 32                  /* of a chunk, in one page */
#define PAGES_MAX (WINDOW / ATTN_PAGE_TOKENS + 1)

static_assert(HALF_KEYS == ATTN_PAGE_TOKENS && CHUNK_KEYS == WARPS * STEP_KEYS, "a chunk");

/* A warp's place for keys: rows 64 bytes apart modulo the banks (F8: 32), so that 16-byte loads (F8: 8-byte) do not collide; and for values: 16, for ldmatrix. F8: there
 * is no room for that; the four pieces of a value's part change places with key / 4 % 4 instead. */
template <bool F8> struct row_of {
    static constexpr uint32_t BYTES = D * kv_bytes<F8>, PART = COLUMNS * kv_bytes<F8>;
    static constexpr uint32_t K_STRIDE = BYTES + (F8 ? 32 : 64), V_STRIDE = PART + (F8 ? 0 : 16);
    static constexpr uint32_t AHEAD = F8 ? 2 : 1;      /* chunks */
};

static_assert(2 * row_of<true>::K_STRIDE <= 2 * D + 64 && 2 * row_of<true>::V_STRIDE <= 2 * COLUMNS + 16, "two chunks of E4M3 where one of bf16 has room");

struct many_shared {
    alignas(128) uint8_t k[WARPS][STEP_KEYS * (2 * D + 64)];      /* [AHEAD] in each */
    alignas(128) uint8_t v[WARPS][CHUNK_KEYS * (2 * COLUMNS + 16)];
    float out[CHUNKS][2][D];          /* p v of each chunk, not yet divided */
    float2 ml[CHUNKS][2];             /* (largest score, sum of weights) */
    float score[2][2][CHUNK_KEYS];    /* of this chunk and the one before */
    alignas(16) __nv_bfloat16 p[WARPS][2][CHUNK_KEYS];
    uint32_t page[PAGES_MAX];         /* of the window's pages, oldest first */
    alignas(16) __nv_bfloat16 q[2][D];        /* F8: f16 */
    alignas(16) __nv_bfloat16 norm[2][D];     /* weights of q and k norm */
    alignas(16) float2 rope[D / 2];   /* of the row's position */
    float power;                      /* of out */
};

/* ---- which key ---- */

/* What a block answers, and what every warp knows of it. */
struct many_row {
    uint32_t row, head, seq, position;
    uint32_t first_fresh;             /* keys from here on are written by this step */
    uint32_t first_page;              /* number of the oldest page in the window: position / 32 */
};

/* The key that the row sees at a place of a chunk; negative: none. */
__device__ __forceinline__ int key_of(const many_row &r, uint32_t chunk, uint32_t place)
{
    const uint32_t span = r.position / CHUNK_KEYS, newest = span - (span - chunk) % CHUNKS;     /* may wrap below 0: then negative */
    const int key = (int)(newest * CHUNK_KEYS + place);

    return key <= (int)r.position ? key : key - WINDOW;
}

/* Chunks in the order in which they are worked on, oldest first: those that hold keys of this step come last. */
__device__ __forceinline__ uint32_t chunk_of(const many_row &r, uint32_t turn) { return (r.position / CHUNK_KEYS + 1 + turn) % CHUNKS; }

/* The first turn whose chunk the row sees any key of. */
__device__ __forceinline__ uint32_t first_turn(const many_row &r) { return r.position >= WINDOW ? 0 : CHUNKS - 1 - r.position / CHUNK_KEYS; }

/* Does a turn's chunk hold keys of this step? */
__device__ __forceinline__ bool is_fresh(const many_row &r, uint32_t turn) { return turn + r.position / CHUNK_KEYS - r.first_fresh / CHUNK_KEYS >= CHUNKS - 1; }

/* Places below it show their newer key (this text's end lies in the chunk), the others the one of 1024 before. */
__device__ __forceinline__ uint32_t newer_places(const many_row &r, uint32_t chunk) { return r.position / CHUNK_KEYS % CHUNKS == chunk ? r.position % CHUNK_KEYS + 1 : CHUNK_KEYS; }

/* p v in steps of 16 places: attn.cu's chain runs over all older keys first, then over the newer ones. So it begins where they end, and a step
 * that holds both is taken twice: first its older keys, last its newer ones. */
__device__ __forceinline__ uint32_t value_steps(uint32_t newer) { return CHUNK_KEYS / STEP_KEYS + (newer % STEP_KEYS != 0); }
__device__ __forceinline__ uint32_t value_place(uint32_t newer, uint32_t step) { return (newer / STEP_KEYS + step) % (CHUNK_KEYS / STEP_KEYS) * STEP_KEYS; }

/* ---- keys on their way ---- */

/* COUNT places of a chunk from `place` on, PART bytes of each key, one instruction for as many keys as have 512 bytes; zeros for keys that the row does not see.
 * base: of the head's part in a page, this lane's 16 bytes included. Nearly always all are neighbours in one page. */
template <uint32_t COUNT, uint32_t PART, uint32_t ROW, bool SWAPS>
__device__ __forceinline__ void ask_places(const many_row &r, const many_shared &sh, const uint8_t *base, uint64_t page_bytes, uint32_t chunk, uint32_t place, uint32_t to,
                                           uint32_t stride, uint32_t lane)
{
    constexpr uint32_t AT_ONCE = 512 / PART;
    const int key = key_of(r, chunk, place), last = key_of(r, chunk, place + COUNT - 1);
    const uint32_t own = lane * 16 / PART;

    /* SWAPS: rows of 64 bytes, 8 at once: their places 4 .. 7 swap neighbours, and every second load halves. */
    to += own * stride + (SWAPS ? (lane % 4 ^ own / 4) * 16 : lane * 16 % PART);
    if (key >= 0 && last == key + (int)COUNT - 1) {
        const uint8_t *from = base + sh.page[key / ATTN_PAGE_TOKENS - r.first_page] * page_bytes + (key % ATTN_PAGE_TOKENS + own) * ROW;

#pragma unroll
        for (uint32_t i = 0; i < COUNT; i += AT_ONCE) copy_async((to + i * stride) ^ (SWAPS ? i / 4 % 4 * 16 : 0), from + i * ROW, 16);
        return;
    }
    if (key < 0 && last < 0) {
#pragma unroll 1
        for (uint32_t i = 0; i < COUNT; i += AT_ONCE) copy_async((to + i * stride) ^ (SWAPS ? i / 4 % 4 * 16 : 0), base, 0);
        return;
    }
#pragma unroll 1
    for (uint32_t i = 0; i < COUNT; i += AT_ONCE) {
        const int k = key_of(r, chunk, place + i + own);
        const uint8_t *from = base;

        if (k >= 0) from += sh.page[k / ATTN_PAGE_TOKENS - r.first_page] * page_bytes + k % ATTN_PAGE_TOKENS * ROW;
        copy_async((to + i * stride) ^ (SWAPS ? i / 4 % 4 * 16 : 0), from, k >= 0 ? 16 : 0);
    }
}

/* The warp's 16 keys of a turn's chunk. Always commits a group, so that waiting can count. */
template <bool F8>
__device__ __forceinline__ void ask_k(const attn_args &a, const many_row &r, const many_shared &sh, uint32_t turn, uint32_t buffer, uint32_t warp, uint32_t lane)
{
    using R = row_of<F8>;

    if (turn < CHUNKS)
        ask_places<STEP_KEYS, R::BYTES, R::BYTES, false>(r, sh, a.arena + a.k_offset + (uint64_t)r.head * ATTN_PAGE_TOKENS * R::BYTES + lane * 16 % R::BYTES, a.page_bytes, chunk_of(r, turn),
                                                  warp * STEP_KEYS, smem_address(sh.k[warp]) + buffer * (STEP_KEYS * R::K_STRIDE), R::K_STRIDE, lane);
    copies_commit();
}

/* The warp's columns of all values of a turn's chunk. */
template <bool F8>
__device__ __forceinline__ void ask_v(const attn_args &a, const many_row &r, const many_shared &sh, uint32_t turn, uint32_t buffer, uint32_t warp, uint32_t lane)
{
    using R = row_of<F8>;

    if (turn < CHUNKS) {
        const uint32_t to = smem_address(sh.v[warp]) + buffer * (CHUNK_KEYS * R::V_STRIDE);
        const uint8_t *base = a.arena + a.v_offset + (uint64_t)r.head * ATTN_PAGE_TOKENS * R::BYTES + warp * R::PART + lane * 16 % R::PART;

#pragma unroll
        for (uint32_t place = 0; place < CHUNK_KEYS; place += HALF_KEYS)
            ask_places<HALF_KEYS, R::PART, R::BYTES, F8>(r, sh, base, a.page_bytes, chunk_of(r, turn), place, to + place * R::V_STRIDE, R::V_STRIDE, lane);
    }
    copies_commit();
}

template <bool F8>
__device__ __forceinline__ void ask_chunk(const attn_args &a, const many_row &r, const many_shared &sh, uint32_t turn, uint32_t buffer, uint32_t warp, uint32_t lane)
{
    ask_k<F8>(a, r, sh, turn, buffer, warp, lane);
    ask_v<F8>(a, r, sh, turn, buffer, warp, lane);
}

/* ---- one chunk ---- */

/* Scores of the warp's 16 keys: column pair 0 of each quad's first lane holds both heads. */
template <bool F8>
__device__ __forceinline__ void score_keys(const many_shared &sh, float (&score)[2][CHUNK_KEYS], const uint4 (&q)[8], uint32_t buffer, uint32_t warp, uint32_t lane)
{
    using words = typename kv_eight<F8>::words;
    const uint8_t *low = sh.k[warp] + (buffer * STEP_KEYS + lane / 4) * row_of<F8>::K_STRIDE + lane % 4 * sizeof(words), *high = low + 8 * row_of<F8>::K_STRIDE;
    float s[4] = {}, other[4] = {};

#pragma unroll
    for (int i = 0; i < 8; i++) {
        const uint4 x = widen8(*(const words *)(low + i * 4 * sizeof(words))), y = widen8(*(const words *)(high + i * 4 * sizeof(words)));

        mma_kv<F8>(s, x.x, y.x, x.y, y.y, q[i].x, q[i].y);
        mma_kv<F8>(other, x.z, y.z, x.w, y.w, q[i].z, q[i].w);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) s[i] += other[i];
    if (lane % 4) return;
    const uint32_t key = warp * STEP_KEYS + lane / 4;

    score[0][key] = s[0], score[1][key] = s[1], score[0][key + 8] = s[2], score[1][key + 8] = s[3];
}

/* Lane 16 h + i holds keys 4 i .. 4 i + 3 of head h. Every warp does it for itself: weights into its p; the first one leaves the largest score and the sum. */
template <bool F8>
__device__ __forceinline__ void weigh_chunk(const many_row &r, many_shared &sh, const float (&score)[2][CHUNK_KEYS], uint32_t chunk, uint32_t warp, uint32_t lane)
{
    const uint32_t h = lane / 16, i = lane % 16;
    const float4 x = *(const float4 *)&score[h][i * 4];
    float s[4] = { x.x, x.y, x.z, x.w }, top = NEVER, part, sum = 0.0f;

#pragma unroll
    for (int e = 0; e < 4; e++) {
        if (key_of(r, chunk, i * 4 + e) < 0) s[e] = NEVER;
        top = fmaxf(top, s[e]);
    }
#pragma unroll
    for (int d = 8; d; d >>= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, d));
#pragma unroll
    for (int e = 0; e < 4; e++) s[e] = s[e] == NEVER ? 0.0f : __expf(s[e] - top);
    *(uint2 *)&sh.p[warp][h][i * 4] = make_uint2(pack_weights<F8>(s[0], s[1]), pack_weights<F8>(s[2], s[3]));
    if (warp) return;
    part = (s[0] + s[1]) + (s[2] + s[3]);
    part += __shfl_xor_sync(0xffffffffu, part, 1);      /* of 8 keys */
#pragma unroll
    for (int t = 0; t < CHUNK_KEYS / 8; t++) sum += __shfl_sync(0xffffffffu, part, h * 16 + t * 2);
    if (i == 0) sh.ml[chunk][h] = make_float2(top, sum);
}

/* Weights of places from `first` to `end` of a pair, the others 0. */
__device__ __forceinline__ uint32_t keep_places(uint32_t pair, int place, int first, int end)
{
    return pair & ((place >= first && place < end ? 0xffffu : 0) | (place + 1 >= first && place + 1 < end ? 0xffff0000u : 0));
}

/* acc += V of the 16 keys at v times their weights. k runs over keys 4 t, 4 t + 1, then 4 t + 2, 4 t + 3 of the quads, as in attn.cu. */
template <bool F8>
__device__ __forceinline__ void add_values(float (&acc)[COLUMNS / 16][4], uint32_t v, uint2 p, uint32_t lane)
{
    /* ldmatrix: lanes 8 m .. 8 m + 7 give the rows of matrix m. 0: the first keys, d 0..7 (F8: 0..15); 1: the same, d 8..15 (16..31); 2 and 3: the second keys. */
    const uint32_t m = lane / 8, key = lane % 8 / 2 * 4 + lane % 2 + m / 2 * 2, row = v + key * row_of<F8>::V_STRIDE, swap = F8 ? key / 4 * 16 : 0;

#pragma unroll
    for (int j = 0; j < COLUMNS / 16; j += F8 ? 2 : 1) {
        uint32_t x[4];

        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(row + ((m % 2 * 16 + j * (row_of<F8>::BYTES / 16)) ^ swap)) : "memory");
        if constexpr (F8) {           /* an element of a matrix is two neighbours of d, which become rows g and g + 8 */
#pragma unroll
            for (int h = 0; h < 2; h++) {      /* d 0..15, d 16..31 */
                const uint32_t y = __byte_perm(x[h], 0, 0x3120), z = __byte_perm(x[h + 2], 0, 0x3120);

                mma_f16(acc[j + h], e4m3x2_to_f16x2((uint16_t)y), e4m3x2_high_to_f16x2(y), e4m3x2_to_f16x2((uint16_t)z), e4m3x2_high_to_f16x2(z), p.x, p.y);
            }
        } else {
            mma_bf16(acc[j], x[0], x[1], x[2], x[3], p.x, p.y);
        }
    }
}

/* The warp's columns of one chunk. */
template <bool F8>
__device__ __forceinline__ void multiply_values(const many_row &r, many_shared &sh, uint32_t chunk, uint32_t buffer, uint32_t warp, uint32_t lane)
{
    const uint32_t newer = newer_places(r, chunk), steps = value_steps(newer);
    const bool both = steps > CHUNK_KEYS / STEP_KEYS;
    float acc[COLUMNS / 16][4] = {};

#pragma unroll 1
    for (uint32_t step = 0; step < steps; step++) {
        const uint32_t from = value_place(newer, step), place = from + lane % 4 * 4;
        const int first = both && step == 0 ? (int)newer : 0, end = both && step == steps - 1 ? (int)newer : CHUNK_KEYS;
        uint2 p = lane / 4 < 2 ? *(const uint2 *)&sh.p[warp][lane / 4][place] : make_uint2(0, 0);

        if (both) p.x = keep_places(p.x, place, first, end), p.y = keep_places(p.y, place + 2, first, end);
        add_values<F8>(acc, smem_address(sh.v[warp]) + (buffer * CHUNK_KEYS + from) * row_of<F8>::V_STRIDE, p, lane);
    }
    if (lane % 4) return;
#pragma unroll
    for (int j = 0; j < COLUMNS / 16; j++) {
        const uint32_t d = warp * COLUMNS + j * 16 + (F8 ? lane / 4 * 2 : lane / 4), next = F8 ? d + 1 : d + 8;

        sh.out[chunk][0][d] = acc[j][0], sh.out[chunk][1][d] = acc[j][1];
        sh.out[chunk][0][next] = acc[j][2], sh.out[chunk][1][next] = acc[j][3];
    }
}

/* ---- the row's result ---- */

/* x[0] becomes the sum of all in the tree of attn.cu. */
__device__ __forceinline__ float chunk_sum(float (&x)[CHUNKS])
{
#pragma unroll
    for (int half = CHUNKS / 2; half; half /= 2)
#pragma unroll
        for (int c = 0; c < CHUNKS / 2; c++)
            if (c < half) x[c] += x[c + half];
    return x[0];
}

/* A word of another block's shared memory. */
__device__ __forceinline__ float peer_float(uint32_t address)
{
    float x;

    asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(x) : "r"(address) : "memory");
    return x;
}

/* Each thread adds some elements of one head over the chunks; chunk c lies in the block that has worked on it. */
template <int SPLIT>
__device__ __forceinline__ void join_chunks(const attn_args &a, const many_row &r, const many_shared &sh, uint32_t rank)
{
    constexpr int OWN = 2 * D / SPLIT / THREADS;
    const uint32_t at = (rank * THREADS + threadIdx.x) * OWN, h = at / D, d = at % D, shift = 2 * CHUNKS - 1 - r.position / CHUNK_KEYS % CHUNKS;
    float top = NEVER, weight[CHUNKS], x[CHUNKS], sum[CHUNKS], own[CHUNKS][OWN], y[OWN];

#pragma unroll
    for (uint32_t c = 0; c < CHUNKS; c++) {
        const uint32_t from = SPLIT == 1 ? 0 : peer_address(&sh.ml[c][h], (c + shift) % CHUNKS % SPLIT);      /* the inverse of chunk_of */
        const float2 ml = SPLIT == 1 ? sh.ml[c][h] : make_float2(peer_float(from), peer_float(from + 4));

        x[c] = with_tag(ml.x, a.part_tag), sum[c] = with_tag(ml.y, a.part_tag);       /* as they lie in memory where attn.cu makes them */
        top = fmaxf(top, x[c]);
    }
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        weight[c] = x[c] < -2.9e38f ? 0.0f : __expf(x[c] - top);
        x[c] = __fmul_rn(weight[c], sum[c]);
    }
    const float inv = 1.0f / chunk_sum(x) * sh.power;
    const bool f16 = a.out_power != NULL;

    /* Everything is asked for first. Chunks that hold no key were never written: their weight is 0. */
#pragma unroll
    for (uint32_t c = 0; c < CHUNKS; c++) {
        const float *from = &sh.out[c][h][d];

        if constexpr (SPLIT == 1) {
            const float4 four = *(const float4 *)from;

            own[c][0] = four.x, own[c][1] = four.y, own[c][2] = four.z, own[c][3] = four.w;
        } else {
#pragma unroll
            for (int e = 0; e < OWN; e++) own[c][e] = peer_float(peer_address(from + e, (c + shift) % CHUNKS % SPLIT));
        }
    }
#pragma unroll
    for (int e = 0; e < OWN; e++) {
#pragma unroll
        for (uint32_t c = 0; c < CHUNKS; c++) x[c] = weight[c] == 0.0f ? 0.0f : __fmul_rn(weight[c], with_tag(own[c][e], a.part_tag));
        y[e] = chunk_sum(x) * inv;
    }
    __nv_bfloat16 *to = a.out + place_of(a.out_places, ATTN_HEADS * D, r.row, (r.head * 2 + h) * D + d);
    if constexpr (OWN == 4) *(uint2 *)to = make_uint2(pack_ruled(y[0], y[1], f16, a.out_inverse), pack_ruled(y[2], y[3], f16, a.out_inverse));
    else if constexpr (OWN == 2) *(uint32_t *)to = pack_ruled(y[0], y[1], f16, a.out_inverse);
    else *(uint16_t *)to = (uint16_t)pack_ruled(y[0], 0.0f, f16, a.out_inverse);
}

/* ---- the row's own q, k and v ---- */

/* What does not depend on the qkv product. */
__device__ __forceinline__ void load_constants(const attn_args &a, const many_row &r, many_shared &sh)
{
    for (uint32_t i = threadIdx.x; i < PAGES_MAX; i += THREADS) sh.page[i] = __ldg(page_entry(a, r.seq, (r.first_page + i) * ATTN_PAGE_TOKENS));
    for (uint32_t i = threadIdx.x; i < D / 4; i += THREADS) ((uint4 *)sh.norm)[i] = __ldg((const uint4 *)(i < D / 8 ? a.q_norm : a.k_norm) + i % (D / 8));
    for (uint32_t i = threadIdx.x; i < a.turned / 2; i += THREADS) ((uint4 *)sh.rope)[i] = ld_l2((const uint4 *)(a.rope + (uint64_t)r.row * a.rope_stride) + i);
    if (threadIdx.x == 0) sh.power = power_or_one(a.out_power);
    if (threadIdx.x < 2 * CHUNKS) sh.ml[threadIdx.x / 2][threadIdx.x % 2] = make_float2(NEVER, 0.0f);
}

/* What the qkv product has left for a task: 0 and 1 are the row's two query heads; then K and V of this position, and those of the sequence's rows in front of it. */
__device__ __forceinline__ const float *task_source(const attn_args &a, const many_row &r, uint32_t task)
{
    const uint32_t back = task < 2 ? 0 : task / 2 - 1, head = task < 2 ? r.head * 2 + task : ATTN_HEADS + (task % 2 && a.has_v ? a.kv_heads : 0) + r.head;

    return a.qkv + (uint64_t)(r.row - back) * a.qkv_stride + head * D;
}

/* K or V of a row of this sequence into its page. */
template <bool F8>
__device__ __forceinline__ void prepare_key(const attn_args &a, const many_row &r, const many_shared &sh, head_vector<D> &v, uint32_t position, bool value, const float2 *rope, uint32_t lane)
{
    if (!value || a.has_v_norm) head_norm<D>(v, value ? NULL : sh.norm[1], a.eps, lane, a.norm_bias);
    if (!value) head_rotate<D>(v, rope, a.turned, lane);
    uint8_t *to = a.arena + sh.page[position / ATTN_PAGE_TOKENS - r.first_page] * a.page_bytes + (value ? a.v_offset : a.k_offset);
    head_store_key<D, F8>(v, to + (r.head * ATTN_PAGE_TOKENS + position % ATTN_PAGE_TOKENS) * row_of<F8>::BYTES, lane);
}

/* Queries go into shared memory, keys and values into their pages: the blocks that answer the rows in front write the same bytes, but nobody waits for them.
 * v: of the warp's first task, asked for already. */
template <bool F8>
__device__ __forceinline__ void prepare_row(const attn_args &a, const many_row &r, many_shared &sh, head_vector<D> v, uint32_t warp, uint32_t lane)
{
#pragma unroll 1
    for (uint32_t task = warp; task < 4 + 2 * (r.position - r.first_fresh); task += WARPS) {
        const uint32_t back = task / 2 - 1;

        if (task != warp) head_load<D>(v, task_source(a, r, task), lane);
        if (task >= 2) {
            prepare_key<F8>(a, r, sh, v, r.position - back, task % 2, back ? a.rope + (uint64_t)(r.row - back) * a.rope_stride : sh.rope, lane);
            continue;
        }
        head_norm<D>(v, sh.norm[0], a.eps, lane, a.norm_bias);
        head_rotate<D>(v, sh.rope, a.turned, lane);
        head_store_query<D, F8>(v, sh.q[task], a.scale, lane);
    }
}

/* All that the step says of a row is asked for at once, row and group and how many rows there are: nearly always each row is a group of its own. */
__device__ __forceinline__ many_row load_row(const attn_args &a, uint32_t row, uint32_t head, uint32_t &rows)
{
    const volatile step_state &state = *a.state;
    const uint32_t position = state.row[row].position, own = state.row[row].group;
    uint32_t seq = state.group[row].seq, first_fresh = state.group[row].first_position;

    rows = state.rows;
    if (own != row) seq = state.group[own].seq, first_fresh = state.group[own].first_position;
    const uint32_t oldest = position < WINDOW ? 0 : position - (WINDOW - 1);

    return many_row{ row, head, seq, position, first_fresh, oldest / ATTN_PAGE_TOKENS };
}

/* A block's turns are those with turn % SPLIT == its rank. */
template <bool F8, int SPLIT>
__global__ void __launch_bounds__(THREADS) many_kernel(const __grid_constant__ attn_args a)
{
    extern __shared__ __align__(128) uint8_t shared_bytes[];
    many_shared &sh = *(many_shared *)shared_bytes;
    const uint32_t warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32, task = blockIdx.x / SPLIT, row = task / a.kv_heads;
    const uint32_t rank = SPLIT == 1 ? 0 : cluster_rank();
    unsigned long long *trace = a.trace ? a.trace + TRACE_WORDS : NULL;

    chain_trigger();
    if (threadIdx.x == 0) trace_mark(a.trace, TRACE_START), trace_mark(trace, TRACE_START);
    constexpr uint32_t AHEAD = row_of<F8>::AHEAD;
    uint32_t asked = 0, rows;
    head_vector<D> own = {};
    uint4 q[8];

    if (a.qkv_poll) head_load<D>(own, task_source(a, many_row{ row, task % a.kv_heads, 0, 0, 0, 0 }, warp), lane);      /* blocks that start last find their vectors ready (tags.cuh) */
    const many_row r = load_row(a, row, task % a.kv_heads, rows);
    const uint32_t first = (first_turn(r) + SPLIT - 1 - rank) / SPLIT * SPLIT + rank;

    if (row >= rows) {
        chain_wait();
        return;
    }
    load_constants(a, r, sh);
    __syncthreads();
    /* Keys of earlier steps do not wait for this one's: a chunk of them is asked for first, then the row's own vectors, then what more chunks there is room for: behind all of them
     * the vectors would come last. One text for all three turns: written out the asking is an eighth of the kernel's code. */
#pragma unroll 1
    for (uint32_t pass = 0;; pass++) {
        for (; asked < (pass ? AHEAD : 1) && (pass == 2 || !is_fresh(r, first + asked * SPLIT)); asked++) ask_chunk<F8>(a, r, sh, first + asked * SPLIT, asked, warp, lane);
        if (pass == 2) break;
        if (pass == 0) {
            if (!a.qkv_poll || r.position != r.first_fresh || !head_is_there<D>(own, a.qkv_tag)) chain_wait(), head_load<D>(own, task_source(a, r, warp), lane);
            if (threadIdx.x == 0) trace_mark(a.trace, TRACE_PAST_WAIT);
            continue;
        }
        prepare_row<F8>(a, r, sh, own, warp, lane);
        __syncthreads();
        if (threadIdx.x == 0) trace_mark(a.trace, TRACE_END), trace_mark(trace, TRACE_PAST_WAIT);
    }
#pragma unroll
    for (int i = 0; i < 8; i++) q[i] = lane / 4 < 2 ? *(const uint4 *)&sh.q[lane / 4][i * 32 + lane % 4 * 8] : make_uint4(0, 0, 0, 0);      /* columns of the other 6 heads are nobody's */

    for (uint32_t turn = first, scores = 0, buffer = 0; turn < CHUNKS; turn += SPLIT, scores ^= 1, buffer = (buffer + 1) % AHEAD) {
        copies_wait<2 * AHEAD - 1>();      /* K; V may be on its way */
        __syncwarp();
        score_keys<F8>(sh, sh.score[scores], q, buffer, warp, lane);
        __syncwarp();                 /* everybody has read the keys */
        ask_k<F8>(a, r, sh, turn + AHEAD * SPLIT, buffer, warp, lane);
        __syncthreads();              /* everybody's scores are there */
        weigh_chunk<F8>(r, sh, sh.score[scores], chunk_of(r, turn), warp, lane);
        copies_wait<2 * AHEAD - 1>();      /* V */
        __syncwarp();
        multiply_values<F8>(r, sh, chunk_of(r, turn), buffer, warp, lane);
        __syncwarp();
        ask_v<F8>(a, r, sh, turn + AHEAD * SPLIT, buffer, warp, lane);
    }
    __syncthreads();
    if (SPLIT > 1) cluster_arrive(), cluster_wait();
    join_chunks<SPLIT>(a, r, sh, rank);
    if (SPLIT > 1) cluster_arrive(), cluster_wait();      /* nobody leaves while a peer still reads here */
    if (threadIdx.x == 0) trace_mark(trace, TRACE_END);
    if (a.qkv_poll) chain_wait();     /* rule 3 of tags.cuh */
}

/* ---- launching ---- */

/* Blocks for a row and head, so that few rows have blocks for all SMs: 128, or 256 with 9 to 16 rows. Twice as many were slower with 8 rows and with 32, and faster with 16. */
static uint32_t split_of(uint32_t rows) { return rows <= 4 ? 4 : rows <= 16 ? 2 : 1; }

static const void *kernel_of(bool f8, uint32_t split)
{
    if (f8) return split == 4 ? (const void *)many_kernel<true, 4> : split == 2 ? (const void *)many_kernel<true, 2> : (const void *)many_kernel<true, 1>;
    return split == 4 ? (const void *)many_kernel<false, 4> : split == 2 ? (const void *)many_kernel<false, 2> : (const void *)many_kernel<false, 1>;
}

int attn_many_init(void)
{
    int rc = 0;

    for (uint32_t i = 0; i < 6 && rc == 0; i++) rc = launch_prepare(kernel_of(i % 2, 1u << i / 2), (uint32_t)sizeof(struct many_shared));
    return rc;
}

int attn_many_launch(const struct attn_args *args, uint32_t rows, void *stream)
{
    const uint32_t split = split_of(rows);
    attn_args a = *args;
    void *params[] = { &a };

    if (a.kv_heads != 8 || a.window != WINDOW) return -E_UNSUPPORTED;
    if (rows == 0 || rows > STEP_ROWS_MAX || a.turned > D / 2 || a.turned % 4) return -E_RANGE;
    a.out_places = places_known(a.out_places, ATTN_HEADS * D);
    return launch_clusters(kernel_of(a.kv_fp8, split), rows * a.kv_heads * split, split, THREADS, (uint32_t)sizeof(struct many_shared), params, stream);
}
