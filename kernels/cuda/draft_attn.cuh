/* kernels/cuda/draft_attn.cuh - attention of draft_round.cu: queries only, on the target's pages.
 *
 * A row has 16 query heads. Sliding layers (8 kv heads of 256): an item is a kv head and a sixteenth of the window of all rows; its warps
 * take the two query heads of a row and a part of the keys. Full layers (one kv head of 512): every block takes a run of each row's keys,
 * every warp two query heads and all keys of the run. The target's cache is bf16 or E4M3 (KV8), whose 8 elements are the first half of an uint4 here. Partial results go to memory; after a
 * barrier 128 items join them. All in f32 on CUDA cores: there are only two queries per key. */
#ifndef SLUICE_CUDA_DRAFT_ATTN_CUH
#define SLUICE_CUDA_DRAFT_ATTN_CUH

#include "draft_lone.cuh"

#define DRAFT_PAGE_TOKENS 32
#define JOIN_ITEMS 128

/* Dimensions of a lane: 8 l .. 8 l + 7, and for 512 also 256 + 8 l ... */
template <int D, int BATCH> struct draft_keys { uint4 k[BATCH][D / 256], v[BATCH][D / 256]; };

/* Bytes of a key of d elements. */
template <bool KV8> __device__ __forceinline__ constexpr uint32_t key_bytes(uint32_t d) { return KV8 ? d : 2 * d; }

/* 8 elements of the cache. */
template <bool KV8> __device__ __forceinline__ uint4 load8(const uint8_t *from)
{
    if (!KV8) return ld_l2((const uint4 *)from);
    const uint2 v = __ldcg((const uint2 *)from);

    return make_uint4(v.x, v.y, 0, 0);
}

template <bool KV8> __device__ __forceinline__ uint4 shared8(const uint4 *key, uint32_t index)
{
    if (!KV8) return key[index];
    const uint2 v = ((const uint2 *)key)[index];

    return make_uint4(v.x, v.y, 0, 0);
}

/* A row's keys of one kv head of a sliding layer that this warp looks at: [first, end). */
struct draft_view { const uint32_t *pages; const uint8_t *k, *v; uint32_t first, end; };

template <bool KV8, int WARPS> __device__ __forceinline__ draft_view sliding_run(const draft_round_args &a, const draft_shared *sh, const draft_layer_args &l, uint32_t row, uint32_t item, uint32_t warp)
{
    const uint32_t keys = sh->position[row], span = a.window / DRAFT_SLIDING_CHUNKS / WARPS;
    const uint64_t head = (uint64_t)(item / DRAFT_SLIDING_CHUNKS) * DRAFT_PAGE_TOKENS * key_bytes<KV8>(256);
    const uint32_t first = (keys > a.window ? keys - a.window : 0) + (item % DRAFT_SLIDING_CHUNKS * WARPS + warp % WARPS) * span;
    draft_view s;

    s.pages = a.pages[CUDA_SLIDING] + (uint64_t)a.question[row].seq * a.pages_stride[CUDA_SLIDING];
    s.k = a.pool[CUDA_SLIDING] + l.k_offset + head, s.v = a.pool[CUDA_SLIDING] + l.v_offset + head;
    s.end = min(keys, first + span);
    s.first = min(first, s.end);
    return s;
}

/* The page of a key; of one behind the run, that of its last key, so that there is always something to load: a run has a key in front of its end, its own or the one before. */
__device__ __forceinline__ uint32_t sliding_page(const draft_round_args &a, const draft_view &s, uint32_t key)
{
    return __ldg(s.pages + min(key, s.end - 1) / DRAFT_PAGE_TOKENS % a.pages_stride[CUDA_SLIDING]);
}

/* One row: the pages of a warp's first batch of its block's item are the same in every step and layer, and were looked up once. */
template <bool KV8> __device__ __forceinline__ void keep_pages(const draft_round_args &a, const draft_thread &t)
{
    const draft_view s = sliding_run<KV8, DRAFT_WARPS>(a, t.sh, a.layer[0], 0, blockIdx.x, t.warp);

    if (blockIdx.x < 8 * DRAFT_SLIDING_CHUNKS && t.lane < 8) t.sh->page[t.warp][t.lane] = sliding_page(a, s, s.first + t.lane);
}

/* page: of key first + lane % BATCH. What lies behind the run is loaded and then weighs nothing: a load under a condition made copies of what it brought, and with them three waits for memory in a row. */
template <bool KV8, int BATCH>
__device__ __forceinline__ void load_keys(draft_keys<256, BATCH> &to, const draft_round_args &a, const draft_view &s, uint32_t first, uint32_t lane, uint32_t page)
{

#pragma unroll
    for (int i = 0; i < BATCH; i++) {
        const uint64_t at = (uint64_t)__shfl_sync(0xffffffffu, page, i) * a.page_bytes[CUDA_SLIDING] + (min(first + i, s.end - 1) % DRAFT_PAGE_TOKENS * 32 + lane) * key_bytes<KV8>(8);

        to.k[i][0] = load8<KV8>(s.k + at);
        to.v[i][0] = load8<KV8>(s.v + at);
    }
}

/* What turns and weighs a lane's dimensions of any query head of a row: the same for all heads, there before the queries are. */
template <int D> struct draft_turn { float weight[D / 32]; float2 turn[8]; };

template <int D>
__device__ __forceinline__ void load_turn(draft_turn<D> &to, const draft_round_args &a, const draft_layer_args &l, uint32_t row, uint32_t lane)
{
    const float2 *rope = a.rope + (uint64_t)row * DRAFT_ROPE_PAIRS + (D == 256 ? lane % 16 * 8 : DRAFT_ROPE_SLIDING + lane * 8);

#pragma unroll
    for (int j = 0; j < D / 128; j++) {
        const float4 w = __ldg((const float4 *)(l.q_norm + j / 2 * 256 + lane * 8 + j % 2 * 4));

        to.weight[4 * j] = w.x, to.weight[4 * j + 1] = w.y, to.weight[4 * j + 2] = w.z, to.weight[4 * j + 3] = w.w;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float4 t = ld_l2((const float4 *)(rope + 2 * i));

        to.turn[2 * i] = make_float2(t.x, t.y), to.turn[2 * i + 1] = make_float2(t.z, t.w);
    }
}

/* Those of a lone row. */
template <int D> __device__ __forceinline__ void load_lone_queries(float (&q)[2][D / 32], const draft_round_args &a, const draft_thread &t, uint32_t head)
{
    constexpr int EACH = D / 128;
    float4 v[2 * EACH];

    lone_load(a, t, v, [&](int i) { return (const float4 *)(a.lone_q + (head + i / EACH) * D + i % EACH / 2 * 256 + t.lane * 8 + i % 2 * 4); });
#pragma unroll
    for (int i = 0; i < 2 * EACH; i++) {
        float *to = q[i / EACH] + 4 * (i % EACH);

        to[0] = v[i].x, to[1] = v[i].y, to[2] = v[i].z, to[3] = v[i].w;
    }
}

/* Two query heads of a row as the product left them. */
template <int D> __device__ __forceinline__ void load_queries(float (&q)[2][D / 32], const draft_round_args &a, uint32_t row, uint32_t head, uint32_t lane)
{
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
        for (int j = 0; j < D / 128; j++) {
            const float4 v = ld_l2((const float4 *)(a.q + ((uint64_t)row * DRAFT_HEADS + head + h) * D + j / 2 * 256 + lane * 8 + j % 2 * 4));

            q[h][4 * j] = v.x, q[h][4 * j + 1] = v.y, q[h][4 * j + 2] = v.z, q[h][4 * j + 3] = v.w;
        }
}

/* Normed, turned, scaled. */
template <int D> __device__ __forceinline__ void turn_queries(float (&q)[2][D / 32], const draft_turn<D> &t, const draft_round_args &a, uint32_t lane)
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float sum = 0.0f;

#pragma unroll
        for (int i = 0; i < D / 32; i++) sum += q[h][i] * q[h][i];
        const float inv = rsqrtf(warp_sum(sum) / (float)D + a.eps) * a.attention_scale;
#pragma unroll
        for (int i = 0; i < D / 32; i++) q[h][i] *= inv * t.weight[i];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (D == 256) {           /* the partner is 16 lanes away */
                const float other = __shfl_xor_sync(0xffffffffu, q[h][i], 16);

                q[h][i] = q[h][i] * t.turn[i].x + (lane < 16 ? -other : other) * t.turn[i].y;
            } else {
                const float low = q[h][i], high = q[h][8 + i];

                q[h][i] = low * t.turn[i].x - high * t.turn[i].y;
                q[h][8 + i] = high * t.turn[i].x + low * t.turn[i].y;
            }
        }
    }
}

__device__ __forceinline__ void unpack_codes(float *to, uint32_t pair)
{
    const uint32_t halves = e4m3x2_to_f16x2((uint16_t)pair);
    const float2 both = __half22float2(*(const __half2 *)&halves);

    to[0] = both.x, to[1] = both.y;
}

template <bool KV8> __device__ __forceinline__ void unpack8(float *to, uint4 v)
{
    if (KV8) {
        unpack_codes(to, v.x), unpack_codes(to + 2, v.x >> 16), unpack_codes(to + 4, v.y), unpack_codes(to + 6, v.y >> 16);
        return;
    }
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
template <bool KV8, int D, int BATCH>
__device__ __forceinline__ void attend(draft_sums<D> &s, const float (&q)[2][D / 32], const draft_keys<D, BATCH> &kv, uint32_t live)
{
    float score[2][BATCH];

#pragma unroll
    for (int i = 0; i < BATCH; i++) {
        float k[D / 32], dot[2] = { 0.0f, 0.0f };

#pragma unroll
        for (int j = 0; j < D / 256; j++) unpack8<KV8>(k + 8 * j, kv.k[i][j]);
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
        for (int i = 0; i < BATCH; i++) top = (uint32_t)i < live ? fmaxf(top, score[h][i]) : top;
        const float keep = __expf(s.top[h] - top);

        s.top[h] = top;
        s.sum[h] *= keep;
#pragma unroll
        for (int d = 0; d < D / 32; d++) s.out[h][d] *= keep;
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            score[h][i] = (uint32_t)i < live ? __expf(score[h][i] - top) : 0.0f;
            s.sum[h] += score[h][i];
        }
    }
#pragma unroll
    for (int i = 0; i < BATCH; i++) {
        float v[D / 32];

#pragma unroll
        for (int j = 0; j < D / 256; j++) unpack8<KV8>(v + 8 * j, kv.v[i][j]);
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int d = 0; d < D / 32; d++) s.out[h][d] += score[h][i] * v[d];
    }
}

/* ---- sliding layers: a row belongs to 8 / ROWS warps, each takes as many parts of the item's keys ---- */

/* The warps' results of each row, joined. */
template <int ROWS> __device__ __forceinline__ void sliding_store(const draft_round_args &a, const draft_thread &t, const draft_sums<256> &sums, uint32_t item)
{
    constexpr int WARPS = DRAFT_WARPS / ROWS;

#pragma unroll
    for (int h = 0; h < 2; h++) {
        float4 *to = (float4 *)&t.sh->u.attend.out[t.warp][h][t.lane * 8];

        to[0] = make_float4(sums.out[h][0], sums.out[h][1], sums.out[h][2], sums.out[h][3]);
        to[1] = make_float4(sums.out[h][4], sums.out[h][5], sums.out[h][6], sums.out[h][7]);
        if (t.lane == 0) t.sh->u.attend.ml[t.warp][h] = make_float2(sums.top[h], sums.sum[h]);
    }
    compute_sync();
#pragma unroll
    for (int i = 0; i < 2 * ROWS; i++) {        /* a thread: one dimension */
        const int row = i / 2, h = i % 2;
        const uint64_t place = ((uint64_t)row * DRAFT_HEADS + item / DRAFT_SLIDING_CHUNKS * 2 + h) * DRAFT_CHUNKS_MAX + item % DRAFT_SLIDING_CHUNKS;
        float top = DRAFT_NEVER, sum = 0.0f, out = 0.0f;

        if (row >= (int)a.rows) break;
#pragma unroll
        for (int w = 0; w < WARPS; w++) top = fmaxf(top, t.sh->u.attend.ml[row * WARPS + w][h].x);
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            const float2 ml = t.sh->u.attend.ml[row * WARPS + w][h];
            const float weight = __expf(ml.x - top);

            sum += weight * ml.y;
            out += weight * t.sh->u.attend.out[row * WARPS + w][h][place_of(t)];
        }
        a.attn_part[place * 512 + place_of(t)] = out;
        if (place_of(t) == 0) a.attn_ml[place] = make_float2(top, sum);
    }
    compute_sync();
}

/* One row: the first keys are asked for before the queries are there; a window of more than one batch a warp goes round the same code. False: the peers did not come. */
template <bool KV8> __device__ __forceinline__ bool attend_sliding_one(const draft_round_args &a, draft_thread &t, const draft_layer_args &l)
{
    constexpr int BATCH = 8;
    bool waited = false;

#pragma unroll 1
    for (uint32_t item = blockIdx.x; item < 8 * DRAFT_SLIDING_CHUNKS; item += gridDim.x) {
        forget_place(t);
        const draft_view s = sliding_run<KV8, DRAFT_WARPS>(a, t.sh, l, 0, item, t.warp);
        draft_turn<256> turn;
        draft_keys<256, BATCH> kv;
        draft_sums<256> sums;
        float q[2][8];
        uint32_t at = s.first;

#pragma unroll 1
        do {
            load_keys<KV8>(kv, a, s, at, t.lane, at == s.first && item == blockIdx.x ? t.sh->page[t.warp][t.lane % BATCH] : sliding_page(a, s, at + t.lane % BATCH));
            if (at == s.first) {
                load_turn<256>(turn, a, l, 0, t.lane);
                if (!waited && !grid_wait(a, t)) return false;
                waited = true;
                load_lone_queries<256>(q, a, t, item / DRAFT_SLIDING_CHUNKS * 2);
                turn_queries<256>(q, turn, a, t.lane);
                sums_clear<256>(sums);
            }
            attend<KV8>(sums, q, kv, s.end - at);
            at += BATCH;
        } while (at < s.end);
        sliding_store<1>(a, t, sums, item);
    }
    return waited || grid_wait(a, t);
}

/* Several rows: two batches of keys on their way. */
template <bool KV8, int ROWS> __device__ __forceinline__ bool attend_sliding(const draft_round_args &a, draft_thread &t, const draft_layer_args &l)
{
    constexpr int WARPS = DRAFT_WARPS / ROWS, BATCH = ROWS <= 2 ? 8 : 4;     /* two batches of 8 beside the residual of many rows: too many registers */
    const uint32_t row = t.warp / WARPS < a.rows ? t.warp / WARPS : 0;
    bool waited = false;

#pragma unroll 1
    for (uint32_t item = blockIdx.x; item < 8 * DRAFT_SLIDING_CHUNKS; item += gridDim.x) {
        draft_view s = sliding_run<KV8, WARPS>(a, t.sh, l, row, item, t.warp);
        draft_turn<256> turn;
        draft_keys<256, BATCH> kv, more;
        draft_sums<256> sums;
        float q[2][8];

        if (t.warp / WARPS >= a.rows) s.end = s.first;
        load_keys<KV8>(kv, a, s, s.first, t.lane, sliding_page(a, s, s.first + t.lane % BATCH));
        load_keys<KV8>(more, a, s, s.first + BATCH, t.lane, sliding_page(a, s, s.first + BATCH + t.lane % BATCH));
        load_turn<256>(turn, a, l, row, t.lane);
        if (!waited && !grid_wait(a, t)) return false;
        waited = true;
        load_queries<256>(q, a, row, item / DRAFT_SLIDING_CHUNKS * 2, t.lane);
        turn_queries<256>(q, turn, a, t.lane);
        sums_clear<256>(sums);
#pragma unroll 1
        for (uint32_t at = s.first; at < s.end; at += 2 * BATCH) {
            attend<KV8>(sums, q, kv, s.end - at);
            load_keys<KV8>(kv, a, s, at + 2 * BATCH, t.lane, sliding_page(a, s, at + 2 * BATCH + t.lane % BATCH));
            if (at + BATCH >= s.end) break;
            attend<KV8>(sums, q, more, s.end - at - BATCH);
            load_keys<KV8>(more, a, s, at + 3 * BATCH, t.lane, sliding_page(a, s, at + 3 * BATCH + t.lane % BATCH));
        }
        sliding_store<ROWS>(a, t, sums, item);
    }
    return waited || grid_wait(a, t);
}

/* ---- full layers: the block's keys of each row go through shared memory, every warp has two heads of its own ---- */

/* Keys of a row that full layers look at. */
__device__ __forceinline__ uint32_t full_keys(const draft_round_args &a, const draft_shared *sh, uint32_t row)
{
    return a.context_keys ? min(sh->position[row], a.context_keys) : sh->position[row];
}

/* Keys of a block: few blocks with several keys each rather than all with one, for the join reads them all. */
__device__ __forceinline__ uint32_t full_span(uint32_t keys) { return max((keys + gridDim.x - 1) / gridDim.x, (uint32_t)DRAFT_KEYS); }

__device__ __forceinline__ uint32_t full_chunks(uint32_t keys) { return (keys + full_span(keys) - 1) / full_span(keys); }

/* A walk over (row, DRAFT_KEYS keys of this block's run); keys [at, end) of the row are left. Rows have fewer runs than there are blocks: those of
 * the next row begin at the block behind the last one's. */
struct full_walk { uint32_t row, run, at, end, first_block; };

/* To this block's run of w.row, or of the next row where it has one. */
__device__ __forceinline__ void walk_to(full_walk &w, const draft_round_args &a, const draft_shared *sh)
{
    for (; w.row < a.rows; w.row++) {
        const uint32_t position = sh->position[w.row], keys = full_keys(a, sh, w.row), span = full_span(keys), runs = full_chunks(keys);

        w.run = (blockIdx.x + gridDim.x - w.first_block) % gridDim.x;
        w.first_block = (w.first_block + runs) % gridDim.x;
        if (w.run >= runs) continue;
        w.at = position - keys + w.run * span;
        w.end = min(position, w.at + span);
        return;
    }
}

__device__ __forceinline__ void walk_on(full_walk &w, const draft_round_args &a, const draft_shared *sh)
{
    w.at += DRAFT_KEYS;
    if (w.at < w.end) return;
    w.row++;
    walk_to(w, a, sh);
}

/* Asks for the keys of a place of the walk; completes with cp.async's groups. */
template <bool KV8> __device__ __forceinline__ void full_fetch(const full_walk &w, const draft_round_args &a, const draft_layer_args &l, const draft_thread &t, uint32_t buffer)
{
    if (w.row < a.rows && place_of(t) % 64 * 16 < key_bytes<KV8>(512)) {
        const uint32_t piece = place_of(t) % 64, v = place_of(t) / 64 % 2;
        const uint32_t *pages = a.pages[CUDA_FULL] + (uint64_t)a.question[w.row].seq * a.pages_stride[CUDA_FULL];
        const uint8_t *pool = a.pool[CUDA_FULL] + (v ? l.v_offset : l.k_offset) + piece * 16;

#pragma unroll
        for (uint32_t i = 0; i < DRAFT_KEYS / 2; i++) {         /* 128 pieces of 16 bytes a key: 64 of K, 64 of V (KV8: half of the threads, 32 and 32) */
            const uint32_t key = 2 * i + place_of(t) / 128, p = min(w.at + key, w.end - 1);
            const uint8_t *from = pool + (uint64_t)__ldg(pages + p / DRAFT_PAGE_TOKENS) * a.page_bytes[CUDA_FULL] + p % DRAFT_PAGE_TOKENS * key_bytes<KV8>(512);

            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(smem_address(&t.sh->u.full.key[buffer][key][v][piece])), "l"(from) : "memory");
        }
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
}

__device__ __forceinline__ void full_store(const draft_round_args &a, const draft_thread &t, const draft_sums<512> &sums, uint32_t row, uint32_t run)
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const uint64_t place = ((uint64_t)row * DRAFT_HEADS + t.warp * 2 + h) * DRAFT_CHUNKS_MAX + run;
        float4 *to = (float4 *)(a.attn_part + place * 512 + t.lane * 8);

        to[0] = make_float4(sums.out[h][0], sums.out[h][1], sums.out[h][2], sums.out[h][3]);
        to[1] = make_float4(sums.out[h][4], sums.out[h][5], sums.out[h][6], sums.out[h][7]);
        to[64] = make_float4(sums.out[h][8], sums.out[h][9], sums.out[h][10], sums.out[h][11]);
        to[65] = make_float4(sums.out[h][12], sums.out[h][13], sums.out[h][14], sums.out[h][15]);
        if (t.lane == 0) a.attn_ml[place] = make_float2(sums.top[h], sums.sum[h]);
    }
}

/* A row begins: its queries, normed and turned, and empty sums. */
template <int ROWS> __device__ __forceinline__ void full_begin(draft_sums<512> &sums, float (&q)[2][16], const draft_round_args &a, const draft_thread &t, const draft_layer_args &l, uint32_t row)
{
    draft_turn<512> turn;

    load_turn<512>(turn, a, l, row, t.lane);
    if (ROWS == 1) load_lone_queries<512>(q, a, t, t.warp * 2);
    else load_queries<512>(q, a, row, t.warp * 2, t.lane);
    turn_queries<512>(q, turn, a, t.lane);
    sums_clear<512>(sums);
}

/* Two buffers: each turn takes one that was asked for two turns ago and asks for the next keys into it. */
template <bool KV8, int ROWS> __device__ __forceinline__ bool attend_full(const draft_round_args &a, draft_thread &t, const draft_layer_args &l)
{
    full_walk now = {}, ahead;
    draft_sums<512> sums;
    float q[2][16];
    uint32_t row = a.rows;

    forget_place(t);
    walk_to(now, a, t.sh);
    ahead = now;
#pragma unroll 1
    for (uint32_t turn = 0;; turn++) {
        const uint32_t buffer = turn & 1;

        if (turn == 2 && !grid_wait(a, t)) return false;
        if (turn >= 2) {
            if (now.row >= a.rows) break;
            if (row != now.row) full_begin<ROWS>(sums, q, a, t, l, row = now.row);
            asm volatile("cp.async.wait_group 1;" ::: "memory");
            compute_sync();
            const uint32_t live = min(now.end - now.at, (uint32_t)DRAFT_KEYS), run = now.run;

#pragma unroll 1
            for (uint32_t k = 0; k < live; k += 4) {
                draft_keys<512, 4> kv;

#pragma unroll
                for (int i = 0; i < 4; i++)
#pragma unroll
                    for (int j = 0; j < 2; j++) kv.k[i][j] = shared8<KV8>(t.sh->u.full.key[buffer][k + i][0], j * 32 + t.lane), kv.v[i][j] = shared8<KV8>(t.sh->u.full.key[buffer][k + i][1], j * 32 + t.lane);
                attend<KV8>(sums, q, kv, live - k);
            }
            compute_sync();           /* the buffer is read */
            walk_on(now, a, t.sh);
            if (now.row != row) full_store(a, t, sums, row, run);
        }
        full_fetch<KV8>(ahead, a, l, t, buffer);
        if (ahead.row < a.rows) walk_on(ahead, a, t.sh);
    }
    asm volatile("cp.async.wait_group 0;" ::: "memory");
    compute_sync();
    return true;
}

/* A layer's attention up to the partial results. False: the peers did not come. */
template <bool KV8, int ROWS> __device__ __forceinline__ bool draft_attention(const draft_round_args &a, draft_thread &t, const draft_layer_args &l)
{
    if (l.type != CUDA_SLIDING) return attend_full<KV8, ROWS>(a, t, l);
    if (ROWS == 1) return attend_sliding_one<KV8>(a, t, l);
    return attend_sliding<KV8, ROWS>(a, t, l);
}

/* ---- the join: an eighth of a head of all rows; a row belongs to 8 / ROWS warps ---- */

template <bool FP8, int D, int ROWS>
__device__ __forceinline__ void join_item(const draft_round_args &a, const draft_thread &t, const draft_layer_args &l, uint32_t item)
{
    constexpr int DIMS = D / 8, OWN = DIMS / 32, PARTS = ((D == 256 ? DRAFT_SLIDING_CHUNKS : DRAFT_CHUNKS_MAX) + 31) / 32, WARPS = DRAFT_WARPS / ROWS;
    const uint32_t head = item / 8, from = item % 8 * DIMS, row = t.warp / WARPS;

    if (row < a.rows) {
        const uint32_t chunks = D == 256 ? DRAFT_SLIDING_CHUNKS : full_chunks(full_keys(a, t.sh, row));
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
            constexpr int TURNS = 32 / WARPS;
            float2 v[TURNS];

            if (i * 32 >= (int)chunks) break;
#pragma unroll
            for (int j = 0; j < TURNS; j++) {   /* all loads first */
                const uint32_t chunk = i * 32 + j * WARPS + t.warp % WARPS;

                v[j] = make_float2(0.0f, 0.0f);
                if (chunk < chunks && OWN == 1) v[j].x = __ldcg(part + (uint64_t)chunk * 512);
                if (chunk < chunks && OWN == 2) v[j] = __ldcg((const float2 *)(part + (uint64_t)chunk * 512));
            }
#pragma unroll
            for (int j = 0; j < TURNS; j++) {
                const float w = __shfl_sync(0xffffffffu, weight[i], j * WARPS + t.warp % WARPS);

                out[0] += w * v[j].x, out[1] += w * v[j].y;
            }
        }
#pragma unroll
        for (int i = 0; i < OWN; i++) t.sh->u.combine.out[t.warp][t.lane * OWN + i] = out[i];
        if (t.lane == 0) t.sh->u.combine.sum[t.warp] = sum;
    }
    compute_sync();
    for (uint32_t i = place_of(t); i < a.rows * DIMS; i += DRAFT_COMPUTE) {
        const uint32_t own = i / DIMS, dim = i % DIMS;
        float out = 0.0f;

#pragma unroll
        for (int w = 0; w < WARPS; w++) out += t.sh->u.combine.out[own * WARPS + w][dim];
        out /= t.sh->u.combine.sum[own * WARPS];
        if (ROWS == 1) lone_store(t, a.lone_out + head * D + from + dim, out);
        else a.attn_out[(uint64_t)own * DRAFT_HEADS * 512 + head * D + from + dim] = draft_pack1<FP8>(out);
    }
    compute_sync();
}

template <bool FP8, int ROWS>
__device__ __forceinline__ void draft_join(const draft_round_args &a, draft_thread &t, const draft_layer_args &l)
{
    forget_place(t);
    for (uint32_t item = blockIdx.x; item < JOIN_ITEMS; item += gridDim.x) {
        if (l.type == CUDA_SLIDING) join_item<FP8, 256, ROWS>(a, t, l, item);
        else join_item<FP8, 512, ROWS>(a, t, l, item);
    }
}

#endif
