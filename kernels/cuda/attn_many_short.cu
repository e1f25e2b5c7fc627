/* kernels/cuda/attn_many_short.cu - full attention of single rows whose text is short (contract in attn_many.h), in one kernel and without partial results in memory.
 *
 * A cluster of 4 blocks answers one row. Each block takes a quarter of the spans of 32 keys: scores of all 16 heads, a span's own largest score, weights and sum,
 * as attn.cu has them; it puts them into the shared memory of all four. Then each block multiplies all weights with its quarter of the columns of V,
 * span by span in ascending order, joined in groups: that is what attn.cu's second kernel adds up (attn_full.cuh, where these spans are called chunks). K goes straight into registers, V through a ring in shared memory that fills meanwhile.
 * Rows with more keys than a block has room for weights are left to attn_many_full.cu; their q, K and V are prepared here. */
#include "attn_many.h"
#include "attn_many_copy.cuh"
#include "attn_many_short.cuh"
#include "attn_full.cuh"
#include "cluster.cuh"
#include "kv_element.cuh"
#include "launch.h"
#include "round.cuh"
#include "shm/error.h"

#define D 512
#define SPLIT 4                       /* blocks of a cluster */
#define WARPS 8
#define THREADS (WARPS * 32)
#define SPAN_KEYS 32
#define STAGE_SPANS 2                 /* of V: what is waited for together */
#define STAGES 2
#define SPANS 32                      /* of a row: what there is room for with two blocks on an SM */
#define MANY_ROWS 17                  /* with fewer, spans spread over all blocks are faster (attn_many_full.cu) */
#define COLUMNS (D / SPLIT)           /* of V, a block's */
#define SCORE_STRIDE 40               /* floats of a span and head: stores of half a warp meet every bank once */
#define Q_STRIDE (D + 32)

static_assert(SPAN_KEYS == FULL_UNIT, "a span is a chunk of attn_full.cuh");
static_assert(SPANS <= 16 * FULL_GROUP, "weigh_all: a lane for each group");

/* Bytes of a key in the ring: ldmatrix meets every bank once. */
template <bool F8> constexpr uint32_t v_stride = COLUMNS * kv_bytes<F8> + 16;

template <bool F8> struct short_shared {
    uint8_t v[STAGES][STAGE_SPANS * SPAN_KEYS * v_stride<F8>];
    alignas(16) __nv_bfloat16 p[ATTN_HEADS][SPANS * SPAN_KEYS + 16];      /* weights of all keys, by every block */
    float2 ml[SPANS][ATTN_HEADS];     /* first (largest score, sum of weights) of a span, then (its weight among the spans, that times its sum) */
    float score[SPANS / SPLIT][ATTN_HEADS][SCORE_STRIDE];
    alignas(16) __nv_bfloat16 q[ATTN_HEADS][Q_STRIDE];
    uint32_t page[SPANS];
};

/* What a cluster answers. */
struct short_row { uint32_t row, seq, position, first_fresh, spans; };

/* ---- this step's q, K and V ---- */

template <bool F8>
__device__ __forceinline__ void prepare_key(const attn_args &a, uint32_t row, uint32_t page, uint32_t position, bool value, uint32_t lane)
{
    head_vector<D> v;

    head_load<D>(v, a.qkv + (uint64_t)row * a.qkv_stride + (ATTN_HEADS + (value && a.has_v ? 1 : 0)) * D, lane);
    if (!value || a.has_v_norm) head_norm<D>(v, value ? NULL : a.k_norm, a.eps, lane, a.norm_bias);
    if (!value) head_rotate<D>(v, a.rope + (uint64_t)row * a.rope_stride, a.turned, lane);
    uint8_t *to = a.arena + page * a.page_bytes + (value ? a.v_offset : a.k_offset);
    head_store_key<D, F8>(v, to + position % ATTN_PAGE_TOKENS * (D * kv_bytes<F8>), lane);
}

/* Queries to q (rows q_stride apart), K and V of the row and of those of its sequence in front of it to their pages: the clusters
 * that answer those write the same bytes, but nobody waits for them. A warp's first tasks are loaded together. */
template <bool F8>
__device__ __forceinline__ void prepare_row(const attn_args &a, const short_row &r, __nv_bfloat16 *q, uint32_t q_stride, uint32_t warp, uint32_t lane)
{
    head_vector<D> v[ATTN_HEADS / WARPS];

#pragma unroll
    for (uint32_t i = 0; i < ATTN_HEADS / WARPS; i++) head_load<D>(v[i], a.qkv + (uint64_t)r.row * a.qkv_stride + (warp + i * WARPS) * D, lane);
#pragma unroll 1
    for (uint32_t i = warp; i < 2 * (r.position + 1 - r.first_fresh); i += WARPS) {
        const uint32_t position = r.position - i / 2;

        prepare_key<F8>(a, r.row - i / 2, __ldg(page_entry(a, r.seq, position)), position, i % 2, lane);
    }
#pragma unroll
    for (uint32_t i = 0; i < ATTN_HEADS / WARPS; i++) {
        head_norm<D>(v[i], a.q_norm, a.eps, lane, a.norm_bias);
        head_rotate<D>(v[i], a.rope + (uint64_t)r.row * a.rope_stride, a.turned, lane);
        head_store_query<D, F8>(v[i], q + (warp + i * WARPS) * q_stride, a.scale, lane);
    }
}

/* ---- scores ---- */

/* K of one key for every quad of the warp: 16 pieces of 8 elements a lane. */
template <bool F8>
__device__ __forceinline__ void load_keys(typename kv_eight<F8>::words (&k)[16], const attn_args &a, const short_row &r, uint32_t page, uint32_t key, uint32_t lane)
{
    const bool live = key <= r.position;
    const uint8_t *from = a.arena + page * a.page_bytes + a.k_offset + (key % ATTN_PAGE_TOKENS * D + lane % 4 * 8) * kv_bytes<F8>;

#pragma unroll
    for (int i = 0; i < 16; i++) {
        k[i] = typename kv_eight<F8>::words();
        if (live) load_eight(k[i], from + i * 32 * kv_bytes<F8>);
    }
}

/* Of 16 heads and 8 keys; the two halves of d apart, as two warps of attn.cu have them. */
template <bool F8>
__device__ __forceinline__ void score_keys(float (&s)[4], const typename kv_eight<F8>::words (&k)[16], const __nv_bfloat16 (*q)[Q_STRIDE], uint32_t lane)
{
    float part[2][4] = {}, other[2][4] = {};

#pragma unroll
    for (int i = 0; i < 8; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const uint4 low = *(const uint4 *)&q[lane / 4][h * 256 + i * 32 + lane % 4 * 8], high = *(const uint4 *)&q[lane / 4 + 8][h * 256 + i * 32 + lane % 4 * 8];
            const uint4 x = widen8(k[h * 8 + i]);

            mma_kv<F8>(part[h], low.x, high.x, low.y, high.y, x.x, x.y);
            mma_kv<F8>(other[h], low.z, high.z, low.w, high.w, x.z, x.w);
        }
#pragma unroll
    for (int i = 0; i < 4; i++) s[i] = (part[0][i] + other[0][i]) + (part[1][i] + other[1][i]);
}

/* ---- softmax of each span ---- */

/* A thread has 8 keys of one head; 4 neighbours have the span. Additions in attn.cu's order: pairs of keys, quads of lanes, then the four tiles. */
template <bool F8, typename SHARED>
__device__ __forceinline__ void weigh_spans(const short_row &r, SHARED &sh, uint32_t first, uint32_t end)
{
    for (uint32_t i = threadIdx.x; i < (end - first) * 64; i += THREADS) {
        const uint32_t tile = i % 4, head = i / 4 % ATTN_HEADS, span = first + i / 64, key = span * SPAN_KEYS + tile * 8;
        const float *from = &sh.score[i / 64][head][tile * 8];
        float s[8], top = NEVER, sum = 0.0f;

        *(float4 *)s = *(const float4 *)from, *(float4 *)(s + 4) = *(const float4 *)(from + 4);
#pragma unroll
        for (uint32_t e = 0; e < 8; e++) {
            if (key + e > r.position) s[e] = NEVER;
            top = fmaxf(top, s[e]);
        }
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
#pragma unroll
        for (int e = 0; e < 8; e++) s[e] = s[e] == NEVER ? 0.0f : __expf(s[e] - top);
        const float part = ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
#pragma unroll
        for (int t = 0; t < 4; t++) sum += __shfl_sync(0xffffffffu, part, (threadIdx.x & 28) + t);
        const uint4 p = make_uint4(pack_weights<F8>(s[0], s[1]), pack_weights<F8>(s[2], s[3]), pack_weights<F8>(s[4], s[5]), pack_weights<F8>(s[6], s[7]));

        for (uint32_t to = 0; to < SPLIT; to++) {
            peer_put(peer_address(&sh.p[head][key], to), p);
            if (tile == 0) peer_put(peer_address(&sh.ml[span][head], to), make_float2(top, sum));
        }
    }
}

/* Half a warp for each head, a lane for each group: what the group's chunks are joined by, operation by operation as attn_full.cuh does it, and the group's part of the whole. In
 * place: of a group's first chunk (the group's part, that times its sum), of the others (what the group so far, what the chunk is multiplied by). */
template <typename SHARED>
__device__ __forceinline__ void weigh_all(SHARED &sh, uint32_t spans, uint32_t warp, uint32_t lane)
{
    const uint32_t head = warp * 2 + lane / 16, first = lane % 16 * FULL_GROUP;
    float2 joined = make_float2(NEVER, 0.0f);

#pragma unroll
    for (uint32_t i = 0; i < FULL_GROUP; i++) {
        if (first + i >= spans) break;
        const float2 own = sh.ml[first + i][head], w = join_weights(joined.x, own.x);

        joined.y = join(w, joined.y, own.y);
        if (i) sh.ml[first + i][head] = w;
    }
    float top = joined.x;

#pragma unroll
    for (int d = 8; d; d >>= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, d));
    const float part = full_weight(joined.x, top);

    if (first < spans) sh.ml[first][head] = make_float2(part, __fmul_rn(part, joined.y));
}

/* ---- p v ---- */

/* This block's columns of a stage of V; zeros for keys that the row does not see. Always a group, so that waiting can count. */
template <bool F8>
__device__ __forceinline__ void ask_values(const attn_args &a, const short_row &r, short_shared<F8> &sh, uint32_t rank, uint32_t stage)
{
    constexpr uint32_t PIECES = COLUMNS * kv_bytes<F8> / 16;

#pragma unroll
    for (uint32_t i = 0; i < STAGE_SPANS; i++) {
        const uint32_t span = stage * STAGE_SPANS + i;

        if (span >= r.spans) break;
        const uint8_t *from = a.arena + sh.page[span] * a.page_bytes + a.v_offset + rank * (COLUMNS * kv_bytes<F8>) + threadIdx.x % PIECES * 16;
        const uint32_t to = smem_address(sh.v[stage % STAGES]) + i * (SPAN_KEYS * v_stride<F8>) + threadIdx.x % PIECES * 16;

#pragma unroll
        for (uint32_t key = threadIdx.x / PIECES; key < SPAN_KEYS; key += THREADS / PIECES)
            copy_async(to + key * v_stride<F8>, from + key * (D * kv_bytes<F8>), span * SPAN_KEYS + key <= r.position ? 16 : 0);
    }
    copies_commit();
}

/* The operands of 16 keys and a warp's 16 columns, two tiles of 8. Matrices as in attn_many.cu: k runs over keys 4 t, 4 t + 1, then 4 t + 2, 4 t + 3 of the quads. F8: an
 * element of a matrix is two neighbouring columns, of which one goes to each tile. */
template <bool F8>
__device__ __forceinline__ void value_operands(uint32_t (&b)[2][2], uint32_t v, uint32_t lane)
{
    const uint32_t m = lane / 8 % (F8 ? 2 : 4), key = lane % 8 / 2 * 4 + lane % 2 + (F8 ? m : m / 2) * 2, from = v + key * v_stride<F8> + (F8 ? 0 : m % 2 * 16);

    if constexpr (F8) {
        uint32_t x[2];

        asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];" : "=r"(x[0]), "=r"(x[1]) : "r"(from) : "memory");
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const uint32_t pairs = __byte_perm(x[h], 0, 0x3120);

            b[0][h] = e4m3x2_to_f16x2((uint16_t)pairs), b[1][h] = e4m3x2_to_f16x2((uint16_t)(pairs >> 16));
        }
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(b[0][0]), "=r"(b[1][0]), "=r"(b[0][1]), "=r"(b[1][1]) : "r"(from) : "memory");
    }
}

/* A warp's columns of one span, times the weights of 16 heads, joined with the group so far. */
template <bool F8, typename SHARED>
__device__ __forceinline__ void add_span(float (&group)[2][4], const SHARED &sh, uint32_t v, uint32_t span, uint32_t lane)
{
    const bool first = span % FULL_GROUP == 0;
    const float2 low_weight = first ? make_float2(0.0f, 1.0f) : sh.ml[span][lane / 4], high_weight = first ? make_float2(0.0f, 1.0f) : sh.ml[span][lane / 4 + 8];
    uint2 low[2], high[2];
    uint32_t b[2][2][2];
    float x[2][4] = {};

#pragma unroll
    for (int step = 0; step < 2; step++) {
        const uint32_t place = span * SPAN_KEYS + step * 16 + lane % 4 * 4;

        low[step] = *(const uint2 *)&sh.p[lane / 4][place], high[step] = *(const uint2 *)&sh.p[lane / 4 + 8][place];
        value_operands<F8>(b[step], v + step * 16 * v_stride<F8>, lane);
    }
#pragma unroll
    for (int step = 0; step < 2; step++)
#pragma unroll
        for (int j = 0; j < 2; j++) mma_kv<F8>(x[j], low[step].x, high[step].x, low[step].y, high[step].y, b[step][j][0], b[step][j][1]);
#pragma unroll
    for (int j = 0; j < 2; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) group[j][i] = join(i < 2 ? low_weight : high_weight, group[j][i], x[j][i]);
}

/* The group of which this is a span, to the row's sum. */
template <typename SHARED>
__device__ __forceinline__ void add_group(float (&out)[2][4], float (&sum)[2], const float (&group)[2][4], const SHARED &sh, uint32_t span, uint32_t lane)
{
    const uint32_t first = span - span % FULL_GROUP;
    const float2 low = sh.ml[first][lane / 4], high = sh.ml[first][lane / 4 + 8];

    sum[0] = __fadd_rn(sum[0], low.y), sum[1] = __fadd_rn(sum[1], high.y);
#pragma unroll
    for (int j = 0; j < 2; j++)
#pragma unroll
        for (int i = 0; i < 4; i++) out[j][i] = __fmaf_rn(i < 2 ? low.x : high.x, group[j][i], out[j][i]);
}

template <bool F8>
__device__ __forceinline__ void add_values(const attn_args &a, const short_row &r, short_shared<F8> &sh, float power, uint32_t rank, uint32_t warp, uint32_t lane)
{
    float out[2][4] = {}, group[2][4] = {}, sum[2] = { 0.0f, 0.0f };

    for (uint32_t stage = 0; stage * STAGE_SPANS < r.spans; stage++) {
        copies_wait<STAGES - 2>();
        __syncthreads();              /* everybody's copies are there, and everybody has read the stage before */
        ask_values(a, r, sh, rank, stage + STAGES - 1);
#pragma unroll
        for (uint32_t i = 0; i < STAGE_SPANS; i++) {
            const uint32_t span = stage * STAGE_SPANS + i;

            if (span >= r.spans) break;
            add_span<F8>(group, sh, smem_address(sh.v[stage % STAGES]) + i * (SPAN_KEYS * v_stride<F8>) + warp * (16 * kv_bytes<F8>), span, lane);
            if (span % FULL_GROUP == FULL_GROUP - 1 || span + 1 == r.spans) add_group(out, sum, group, sh, span, lane);
        }
    }
    const float inv[2] = { 1.0f / sum[0] * power, 1.0f / sum[1] * power };
    const bool f16 = a.out_power != NULL;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        __nv_bfloat16 *to = a.out + ((uint64_t)r.row * ATTN_HEADS + lane / 4 + 8 * h) * D + rank * COLUMNS + warp * 16;
        const float x = out[0][h * 2] * inv[h], y = out[0][h * 2 + 1] * inv[h], z = out[1][h * 2] * inv[h], w = out[1][h * 2 + 1] * inv[h];

        if (F8) *(uint2 *)(to + lane % 4 * 4) = make_uint2(pack_ruled(x, z, f16, a.out_inverse), pack_ruled(y, w, f16, a.out_inverse));
        else *(uint32_t *)(to + lane % 4 * 2) = pack_ruled(x, y, f16, a.out_inverse), *(uint32_t *)(to + lane % 4 * 2 + 8) = pack_ruled(z, w, f16, a.out_inverse);
    }
}

template <bool F8>
__global__ void __launch_bounds__(THREADS, 2) many_short_kernel(const __grid_constant__ attn_args a, uint32_t short_keys)
{
    extern __shared__ __align__(16) uint8_t shared_bytes[];
    short_shared<F8> &sh = *(short_shared<F8> *)shared_bytes;
    const uint32_t warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32, row = blockIdx.x / SPLIT, rank = cluster_rank();
    unsigned long long *trace = a.trace ? a.trace + TRACE_WORDS : NULL;      /* of what would be the second kernel */
    uint32_t asked = 0;

    chain_trigger();
    if (threadIdx.x == 0) trace_mark(a.trace, TRACE_START);
    if (row >= a.state->rows) {
        chain_wait();
        return;
    }
    const step_row own = a.state->row[row];
    const step_group group = a.state->group[own.group];
    const short_row r = { row, group.seq, own.position, group.first_position, own.position / SPAN_KEYS + 1 };

    if (group.first_position + group.rows > short_keys) {      /* as attn_many_full.cu decides */
        chain_wait();
        const short_row alone = { row, group.seq, own.position, own.position, 0 };      /* no row of this kernel waits for the others' keys */
        if (rank == 0) prepare_row<F8>(a, alone, a.out + (uint64_t)row * ATTN_HEADS * D, D, warp, lane);
        return;
    }
    cluster_arrive();
    const uint32_t first = r.spans * rank / SPLIT, end = r.spans * (rank + 1) / SPLIT;
    uint32_t tile = first * 4 + warp;
    typename kv_eight<F8>::words k[16];
    const float power = power_or_one(a.out_power);

    for (uint32_t i = threadIdx.x; i < r.spans; i += THREADS) sh.page[i] = __ldg(page_entry(a, r.seq, i * ATTN_PAGE_TOKENS));
    __syncthreads();
    for (; asked < STAGES - 1 && (asked + 1) * STAGE_SPANS * SPAN_KEYS <= r.first_fresh; asked++) ask_values(a, r, sh, rank, asked);
    chain_wait();
    if (threadIdx.x == 0) trace_mark(a.trace, TRACE_PAST_WAIT);
    prepare_row<F8>(a, r, sh.q[0], Q_STRIDE, warp, lane);
    __syncthreads();
    for (; asked < STAGES - 1; asked++) ask_values(a, r, sh, rank, asked);
    for (; tile < end * 4; tile += WARPS) {
        float s[4];

        load_keys<F8>(k, a, r, sh.page[tile / 4], tile * 8 + lane / 4, lane);
        score_keys<F8>(s, k, sh.q, lane);
        float *to = &sh.score[tile / 4 - first][lane / 4][tile % 4 * 8 + lane % 4 * 2];
        *(float2 *)to = make_float2(s[0], s[1]), *(float2 *)(to + 8 * SCORE_STRIDE) = make_float2(s[2], s[3]);
    }
    __syncthreads();
    cluster_wait();                   /* the peers run: their shared memory may be written */
    weigh_spans<F8>(r, sh, first, end);
    cluster_arrive();
    cluster_wait();
    weigh_all(sh, r.spans, warp, lane);
    __syncthreads();
    if (threadIdx.x == 0) trace_mark(a.trace, TRACE_END), trace_mark(trace, TRACE_START), trace_mark(trace, TRACE_PAST_WAIT);
    add_values(a, r, sh, power, rank, warp, lane);
    if (threadIdx.x == 0) trace_mark(trace, TRACE_END);
}

/* ---- launching ---- */

uint32_t attn_many_short_keys(uint32_t rows) { return rows < MANY_ROWS ? 0 : SPANS * SPAN_KEYS; }

int attn_many_short_init(void)
{
    const int rc = launch_prepare((const void *)many_short_kernel<false>, (uint32_t)sizeof(struct short_shared<false>));

    return rc ? rc : launch_prepare((const void *)many_short_kernel<true>, (uint32_t)sizeof(struct short_shared<true>));
}

int attn_many_short_launch(const struct attn_args *args, uint32_t rows, void *stream)
{
    const uint32_t bytes = (uint32_t)(args->kv_fp8 ? sizeof(struct short_shared<true>) : sizeof(struct short_shared<false>));
    attn_args a = *args;
    uint32_t short_keys = attn_many_short_keys(rows);
    void *params[] = { &a, &short_keys };

    return launch_clusters(a.kv_fp8 ? (const void *)many_short_kernel<true> : (const void *)many_short_kernel<false>, rows * SPLIT, SPLIT, THREADS, bytes, params, stream);
}
