/* kernels/cuda/draft_attn.cuh - attention of draft_round.cu: queries only, on the target's pages.
 *
 * A row has 16 query heads. Sliding layers (8 kv heads of 256): an item is a kv head and a sixteenth of the window; its 8 warps share the two query
 * heads and split the keys. Full layers (one kv head of 512): every block takes a run of keys, every warp two query heads and all keys of the run.
 * Partial results go to memory; after a barrier 128 items join them. All in f32 on CUDA cores: there are only two queries per key. */
#ifndef SLUICE_CUDA_DRAFT_ATTN_CUH
#define SLUICE_CUDA_DRAFT_ATTN_CUH

#include "draft_block.cuh"

#define DRAFT_PAGE_TOKENS 32
#define JOIN_ITEMS 128

/* Dimensions of a lane: 8 l .. 8 l + 7, and for 512 also 256 + 8 l ... */
template <int D> struct draft_keys {
    static constexpr int LOADS = D / 256, DIMS = D / 32, BATCH = D == 256 ? 8 : 4;
    uint4 k[BATCH][LOADS], v[BATCH][LOADS];
};

/* Where a row's keys of one layer are. */
struct draft_view {
    const uint8_t *pool;
    const uint32_t *pages;
    uint64_t page_bytes, k_offset, v_offset;
    uint32_t ring_pages, head;
    uint32_t first, end;              /* keys */
};

__device__ __forceinline__ draft_view view_of(const draft_round_args &a, const draft_layer_args &l, uint32_t row)
{
    const cuda_draft_question &q = a.question[row];
    const uint32_t type = l.type, keys = q.position, most = type == CUDA_SLIDING ? a.window : a.context_keys;
    draft_view s;

    s.pool = a.pool[type];
    s.pages = a.pages[type] + (uint64_t)q.seq * a.pages_stride[type];
    s.page_bytes = a.page_bytes[type];
    s.k_offset = l.k_offset, s.v_offset = l.v_offset;
    s.ring_pages = a.pages_stride[type];
    s.head = 0;
    s.first = most && keys > most ? keys - most : 0;
    s.end = keys;
    return s;
}

template <int D>
__device__ __forceinline__ void load_keys(draft_keys<D> &to, const draft_view &s, uint32_t first, uint32_t end, uint32_t lane)
{
    using K = draft_keys<D>;
    const uint32_t own = first + lane % K::BATCH;
    const uint32_t page = own < end ? s.pages[own / DRAFT_PAGE_TOKENS % s.ring_pages] : 0;

#pragma unroll
    for (int i = 0; i < K::BATCH; i++) {
        const uint64_t at = (uint64_t)__shfl_sync(0xffffffffu, page, i) * s.page_bytes + ((uint64_t)s.head * DRAFT_PAGE_TOKENS + (first + i) % DRAFT_PAGE_TOKENS) * (D * 2);
        const bool live = first + i < end;

#pragma unroll
        for (int j = 0; j < K::LOADS; j++) {
            to.k[i][j] = live ? ld_l2((const uint4 *)(s.pool + at + s.k_offset + j * 512 + lane * 16)) : make_uint4(0, 0, 0, 0);
            to.v[i][j] = live ? ld_l2((const uint4 *)(s.pool + at + s.v_offset + j * 512 + lane * 16)) : make_uint4(0, 0, 0, 0);
        }
    }
}

/* One query head of a row: normed, turned, scaled. */
template <int D>
__device__ __forceinline__ void load_query(float (&q)[D / 32], const draft_round_args &a, const draft_layer_args &l, uint32_t row, uint32_t head, uint32_t lane)
{
    const float *from = a.q + ((uint64_t)row * DRAFT_HEADS + head) * D;
    const float2 *rope = a.rope + (uint64_t)row * DRAFT_ROPE_PAIRS + (D == 256 ? 0 : DRAFT_ROPE_SLIDING);
    float sum = 0.0f;

#pragma unroll
    for (int j = 0; j < D / 128; j++) {
        const float4 v = ld_l2((const float4 *)(from + j / 2 * 256 + lane * 8 + j % 2 * 4));

        q[4 * j] = v.x, q[4 * j + 1] = v.y, q[4 * j + 2] = v.z, q[4 * j + 3] = v.w;
    }
#pragma unroll
    for (int i = 0; i < D / 32; i++) sum += q[i] * q[i];
    const float inv = rsqrtf(warp_sum(sum) / (float)D + a.eps);
#pragma unroll
    for (int i = 0; i < D / 32; i++) q[i] *= inv * __ldg(l.q_norm + i / 8 * 256 + lane * 8 + i % 8);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if (D == 256) {               /* the partner is 16 lanes away */
            const float other = __shfl_xor_sync(0xffffffffu, q[i], 16);
            const float2 turn = __ldcg(rope + lane % 16 * 8 + i);

            q[i] = q[i] * turn.x + (lane < 16 ? -other : other) * turn.y;
        } else {
            const float2 turn = __ldcg(rope + lane * 8 + i);
            const float low = q[i], high = q[8 + i];

            q[i] = low * turn.x - high * turn.y;
            q[8 + i] = high * turn.x + low * turn.y;
        }
    }
#pragma unroll
    for (int i = 0; i < D / 32; i++) q[i] *= a.attention_scale;
}

__device__ __forceinline__ void unpack8(float *to, uint4 v)
{
    to[0] = bf16_low(v.x), to[1] = bf16_high(v.x), to[2] = bf16_low(v.y), to[3] = bf16_high(v.y);
    to[4] = bf16_low(v.z), to[5] = bf16_high(v.z), to[6] = bf16_low(v.w), to[7] = bf16_high(v.w);
}

template <int D> struct draft_sums { float top[2], sum[2], out[2][D / 32]; };

template <int D> __device__ __forceinline__ void sums_clear(draft_sums<D> &s)
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        s.top[h] = DRAFT_NEVER, s.sum[h] = 0.0f;
#pragma unroll
        for (int i = 0; i < D / 32; i++) s.out[h][i] = 0.0f;
    }
}

/* Adds a batch of keys: the first `live` of it. */
template <int D>
__device__ __forceinline__ void attend(draft_sums<D> &s, const float (&q)[2][D / 32], const draft_keys<D> &kv, uint32_t live)
{
    using K = draft_keys<D>;
    float score[2][K::BATCH];

#pragma unroll
    for (int i = 0; i < K::BATCH; i++) {
        float k[D / 32], dot[2] = { 0.0f, 0.0f };

#pragma unroll
        for (int j = 0; j < K::LOADS; j++) unpack8(k + 8 * j, kv.k[i][j]);
#pragma unroll
        for (int h = 0; h < 2; h++) {
#pragma unroll
            for (int d = 0; d < D / 32; d++) dot[h] += q[h][d] * k[d];
            score[h][i] = warp_sum(dot[h]);
        }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float top = s.top[h];

#pragma unroll
        for (int i = 0; i < K::BATCH; i++) top = (uint32_t)i < live ? fmaxf(top, score[h][i]) : top;
        const float keep = __expf(s.top[h] - top);

        s.top[h] = top;
        s.sum[h] *= keep;
#pragma unroll
        for (int d = 0; d < D / 32; d++) s.out[h][d] *= keep;
#pragma unroll
        for (int i = 0; i < K::BATCH; i++) {
            score[h][i] = (uint32_t)i < live ? __expf(score[h][i] - top) : 0.0f;
            s.sum[h] += score[h][i];
        }
    }
#pragma unroll
    for (int i = 0; i < K::BATCH; i++) {
        float v[D / 32];

#pragma unroll
        for (int j = 0; j < K::LOADS; j++) unpack8(v + 8 * j, kv.v[i][j]);
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int d = 0; d < D / 32; d++) s.out[h][d] += score[h][i] * v[d];
    }
}

/* Keys of warp `warp` of item `item` of a sliding layer. */
__device__ __forceinline__ void sliding_run(draft_view &s, const draft_round_args &a, uint32_t item, uint32_t warp)
{
    const uint32_t chunk = item % DRAFT_SLIDING_CHUNKS, span = (a.window / DRAFT_SLIDING_CHUNKS + DRAFT_WARPS - 1) / DRAFT_WARPS;   /* of a warp: 8 */
    const uint32_t first = s.first + (chunk * DRAFT_WARPS + warp) * span;

    s.head = item / DRAFT_SLIDING_CHUNKS;
    s.end = min(s.end, first + span);
    s.first = min(first, s.end);
}

/* One row of one item; kv holds the run's first batch. */
__device__ __forceinline__ void sliding_item(const draft_round_args &a, const draft_thread &t, const draft_layer_args &l, const draft_view &s, uint32_t item, uint32_t row, draft_keys<256> &kv)
{
    float q[2][8];
    draft_sums<256> sums;

    sums_clear<256>(sums);
    for (int h = 0; h < 2; h++) load_query<256>(q[h], a, l, row, s.head * 2 + h, t.lane);
    for (uint32_t at = s.first; at < s.end; at += draft_keys<256>::BATCH) {
        if (at != s.first) load_keys<256>(kv, s, at, s.end, t.lane);
        attend<256>(sums, q, kv, s.end - at);
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float4 *to = (float4 *)&t.sh->u.attend.out[t.warp][h][t.lane * 8];

        to[0] = make_float4(sums.out[h][0], sums.out[h][1], sums.out[h][2], sums.out[h][3]);
        to[1] = make_float4(sums.out[h][4], sums.out[h][5], sums.out[h][6], sums.out[h][7]);
        if (t.lane == 0) t.sh->u.attend.ml[t.warp][h] = make_float2(sums.top[h], sums.sum[h]);
    }
    compute_sync();
#pragma unroll
    for (int h = 0; h < 2; h++) {     /* a thread: one dimension of both heads */
        const uint64_t place = ((uint64_t)row * DRAFT_HEADS + s.head * 2 + h) * DRAFT_CHUNKS_MAX + item % DRAFT_SLIDING_CHUNKS;
        float top = DRAFT_NEVER, sum = 0.0f, out = 0.0f;

#pragma unroll
        for (int w = 0; w < DRAFT_WARPS; w++) top = fmaxf(top, t.sh->u.attend.ml[w][h].x);
#pragma unroll
        for (int w = 0; w < DRAFT_WARPS; w++) {
            const float2 ml = t.sh->u.attend.ml[w][h];
            const float weight = __expf(ml.x - top);

            sum += weight * ml.y;
            out += weight * t.sh->u.attend.out[w][h][threadIdx.x];
        }
        a.attn_part[place * 512 + threadIdx.x] = out;
        if (threadIdx.x == 0) a.attn_ml[place] = make_float2(top, sum);
    }
    compute_sync();
}

/* Keys of block `blockIdx.x` of a full layer. */
__device__ __forceinline__ uint32_t full_span(const draft_view &s) { return (s.end - s.first + gridDim.x - 1) / gridDim.x; }

__device__ __forceinline__ void full_run(draft_view &s)
{
    const uint32_t span = full_span(s), first = s.first + blockIdx.x * span;

    s.end = min(s.end, first + span);
    s.first = min(first, s.end);
}

__device__ __forceinline__ void full_item(const draft_round_args &a, const draft_thread &t, const draft_layer_args &l, const draft_view &s, uint32_t row, draft_keys<512> &kv)
{
    float q[2][16];
    draft_sums<512> sums;

    if (s.first >= s.end) return;     /* the join knows how many blocks had keys */
    sums_clear<512>(sums);
    for (int h = 0; h < 2; h++) load_query<512>(q[h], a, l, row, t.warp * 2 + h, t.lane);
    for (uint32_t at = s.first; at < s.end; at += draft_keys<512>::BATCH) {
        if (at != s.first) load_keys<512>(kv, s, at, s.end, t.lane);
        attend<512>(sums, q, kv, s.end - at);
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const uint64_t place = ((uint64_t)row * DRAFT_HEADS + t.warp * 2 + h) * DRAFT_CHUNKS_MAX + blockIdx.x;
        float4 *to = (float4 *)(a.attn_part + place * 512 + t.lane * 8);

        to[0] = make_float4(sums.out[h][0], sums.out[h][1], sums.out[h][2], sums.out[h][3]);
        to[1] = make_float4(sums.out[h][4], sums.out[h][5], sums.out[h][6], sums.out[h][7]);
        to[64] = make_float4(sums.out[h][8], sums.out[h][9], sums.out[h][10], sums.out[h][11]);
        to[65] = make_float4(sums.out[h][12], sums.out[h][13], sums.out[h][14], sums.out[h][15]);
        if (t.lane == 0) a.attn_ml[place] = make_float2(sums.top[h], sums.sum[h]);
    }
}

/* A layer's attention up to the partial results. The first keys are asked for before the queries are there. False: the peers did not come. */
__device__ __forceinline__ bool draft_attention(const draft_round_args &a, draft_thread &t, const draft_layer_args &l)
{
    if (l.type == CUDA_SLIDING) {
        bool waited = false;

        for (uint32_t item = blockIdx.x; item < 8 * DRAFT_SLIDING_CHUNKS; item += gridDim.x)
            for (uint32_t row = 0; row < a.rows; row++) {
                draft_view s = view_of(a, l, row);
                draft_keys<256> kv;

                sliding_run(s, a, item, t.warp);
                load_keys<256>(kv, s, s.first, s.end, t.lane);
                if (!waited && !grid_wait(a, t)) return false;
                waited = true;
                sliding_item(a, t, l, s, item, row, kv);
            }
        return waited || grid_wait(a, t);
    }
    for (uint32_t row = 0; row < a.rows; row++) {
        draft_view s = view_of(a, l, row);
        draft_keys<512> kv;

        full_run(s);
        load_keys<512>(kv, s, s.first, s.end, t.lane);
        if (row == 0 && !grid_wait(a, t)) return false;
        full_item(a, t, l, s, row, kv);
    }
    return true;
}

/* Joins the partial results of all rows for one eighth of a head. */
template <bool FP8, int D>
__device__ __forceinline__ void join_item(const draft_round_args &a, const draft_thread &t, const draft_layer_args &l, uint32_t item)
{
    constexpr int DIMS = D / 8, OWN = DIMS / 32, PARTS = (DRAFT_CHUNKS_MAX + 31) / 32;
    const uint32_t head = item / 8, from = item % 8 * DIMS;

    for (uint32_t row = 0; row < a.rows; row++) {
        const draft_view s = view_of(a, l, row);
        const uint32_t chunks = D == 256 ? DRAFT_SLIDING_CHUNKS : (s.end - s.first + full_span(s) - 1) / full_span(s);
        const uint64_t place = ((uint64_t)row * DRAFT_HEADS + head) * DRAFT_CHUNKS_MAX;
        const float *part = a.attn_part + place * 512 + from + t.lane * OWN;
        float weight[PARTS], sum = 0.0f, top = DRAFT_NEVER, out[2] = { 0.0f, 0.0f };
        float2 ml[PARTS];

#pragma unroll
        for (int i = 0; i < PARTS; i++) ml[i] = i * 32 + t.lane < chunks ? __ldcg(a.attn_ml + place + i * 32 + t.lane) : make_float2(DRAFT_NEVER, 0.0f);
#pragma unroll
        for (int i = 0; i < PARTS; i++) top = fmaxf(top, ml[i].x);
        top = warp_top(top);
#pragma unroll
        for (int i = 0; i < PARTS; i++) weight[i] = i * 32 + t.lane < chunks ? __expf(ml[i].x - top) : 0.0f, sum += weight[i] * ml[i].y;
        sum = warp_sum(sum);
#pragma unroll
        for (int i = 0; i < PARTS; i++) {
            if (i * 32 >= (int)chunks) break;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const uint32_t lane = j * DRAFT_WARPS + t.warp, chunk = i * 32 + lane;
                const float w = __shfl_sync(0xffffffffu, weight[i], lane);

                if (chunk >= chunks) continue;
                if (OWN == 1) out[0] += w * __ldcg(part + (uint64_t)chunk * 512);
                else {
                    const float2 v = __ldcg((const float2 *)(part + (uint64_t)chunk * 512));

                    out[0] += w * v.x, out[1] += w * v.y;
                }
            }
        }
#pragma unroll
        for (int i = 0; i < OWN; i++) t.sh->u.combine.out[row][t.warp][t.lane * OWN + i] = out[i];
        if (t.warp == 0 && t.lane == 0) t.sh->u.combine.sum[row] = sum;
    }
    compute_sync();
    for (uint32_t i = threadIdx.x; i < a.rows * DIMS; i += DRAFT_COMPUTE) {
        const uint32_t row = i / DIMS, dim = i % DIMS;
        float out = 0.0f;

#pragma unroll
        for (int w = 0; w < DRAFT_WARPS; w++) out += t.sh->u.combine.out[row][w][dim];
        a.attn_out[(uint64_t)row * DRAFT_HEADS * 512 + head * D + from + dim] = draft_pack1<FP8>(out / t.sh->u.combine.sum[row]);
    }
    compute_sync();
}

template <bool FP8>
__device__ __forceinline__ void draft_join(const draft_round_args &a, const draft_thread &t, const draft_layer_args &l)
{
    for (uint32_t item = blockIdx.x; item < JOIN_ITEMS; item += gridDim.x) {
        if (l.type == CUDA_SLIDING) join_item<FP8, 256>(a, t, l, item);
        else join_item<FP8, 512>(a, t, l, item);
    }
}

#endif
