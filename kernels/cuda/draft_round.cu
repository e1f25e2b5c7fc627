/* kernels/cuda/draft_round.cu - a round of an MTP assistant in one kernel (contract in draft_round.h).
 *
 *   step   = pre_projection, layers, post_projection and head, choice
 *   layer  = q, attention, join, o, norms, gate and up, down, norms: a barrier over all blocks behind each product, attention and join
 *
 * Every block keeps the residual of all rows in registers and computes all norms itself: what travels are sums of products only.
 * Tried: a step as a loop over its matrices, with one text for all products, norms and waits (9,100 instructions in place of 11,000): a product took 0.7 to 1.1 us longer, a step 7. */
#include "draft_attn.cuh"
#include "draft_lone.cuh"
#include "draft_pick.cuh"
#include "draft_product.cuh"
#include "handover.cuh"
#include "launch.h"
#include "rowmm_store.cuh"
#include "shm/error.h"

/* ---- what goes in ---- */

/* The target's scaled embeddings and hidden states of the rows, side by side: this block's slice of them, where normed rows stand otherwise. */
template <bool FP8, int ROWS>
__device__ __forceinline__ void join_inputs(const draft_round_args &a, const draft_thread &t, uint32_t slice, uint32_t step)
{
    const uint32_t hidden = a.backbone_hidden;

#pragma unroll 2
    for (uint32_t i = threadIdx.x; i < ROWS * (DRAFT_SLICE / 8); i += DRAFT_COMPUTE) {
        const uint32_t m = i / (DRAFT_SLICE / 8), column = i % (DRAFT_SLICE / 8) * 8, k = slice * DRAFT_SLICE + column;
        uint32_t x[4] = { 0, 0, 0, 0 };

        if (m < a.rows && k < hidden) {
            const uint32_t token = t.sh->token[m], in_slice = k % a.table_slice_k;
            const uint8_t *from = a.table + ((uint64_t)(token / TILE_ROWS) * a.table_slices + k / a.table_slice_k) * packed_unit_bytes(WEIGHT_BF16, a.table_slice_k);

#pragma unroll
            for (int j = 0; j < 4; j++) {       /* rounded to bf16 as the target's own embedding */
                const uint32_t pair = __ldg((const uint32_t *)(from + packed_element_offset(WEIGHT_BF16, a.table_slice_k, token % TILE_ROWS, in_slice + 2 * j)));
                const uint32_t scaled = pack_bf16(bf16_low(pair) * a.embed_scale, bf16_high(pair) * a.embed_scale);

                x[j] = draft_pack<FP8>(bf16_low(scaled), bf16_high(scaled));
            }
        } else if (m < a.rows && k < 2 * hidden) {
            const float *state = step ? a.hidden + (uint64_t)m * hidden : a.states + ((uint64_t)a.question[m].seq * a.states_rows + (t.sh->position[m] - 1) % a.states_rows) * hidden;
            const float4 low = ld_l2((const float4 *)(state + k - hidden)), high = ld_l2((const float4 *)(state + k - hidden + 4));

            x[0] = draft_pack<FP8>(low.x, low.y), x[1] = draft_pack<FP8>(low.z, low.w);
            x[2] = draft_pack<FP8>(high.x, high.y), x[3] = draft_pack<FP8>(high.z, high.w);
        }
        *(uint4 *)&t.sh->x[m][column] = make_uint4(x[0], x[1], x[2], x[3]);
    }
    compute_sync();
}

__device__ __forceinline__ void make_rope(const draft_round_args &a, const draft_shared *sh)
{
    if (blockIdx.x >= a.rows) return;
    for (uint32_t i = threadIdx.x; i < DRAFT_ROPE_PAIRS; i += DRAFT_COMPUTE) {
        float s, c;

        sincosf((float)sh->position[blockIdx.x] * a.inv_freq[i], &s, &c);
        a.rope[(uint64_t)blockIdx.x * DRAFT_ROPE_PAIRS + i] = make_float2(c, s);
    }
}

/* ---- norms ---- */

/* Sum of squares over a row that WARPS warps share. */
template <int WARPS> __device__ __forceinline__ float row_sum(float x, float *red, const draft_thread &t)
{
    x = warp_sum(x);
    if (WARPS == 1) return x;
    if (t.lane == 0) red[t.warp] = x;
    compute_sync();
    x = 0.0f;
#pragma unroll
    for (int i = 0; i < WARPS; i++) x += red[t.warp / WARPS * WARPS + i];
    return x;
}

/* A lane's part of a norm's weights. */
template <int ROWS> struct draft_weights { float4 w[ROWS]; };

template <int ROWS> __device__ __forceinline__ void load_weights(draft_weights<ROWS> &to, const float *from, uint32_t first)
{
#pragma unroll
    for (int j = 0; j < ROWS; j++) to.w[j] = __ldg((const float4 *)(from + first + j * 128));
}

/* Issued here: the compiler would load a slice, add it, and load the next one into the same registers. */
__device__ __forceinline__ float4 ld_now(const float4 *from)
{
    float4 v;

    asm volatile("ld.global.cg.v4.f32 {%0,%1,%2,%3}, [%4];" : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w) : "l"(from) : "memory");
    return v;
}

/* Waits for the sums; residual = (residual + norm(sums of slices; post)) * scalar, or the sums alone without post; then the block's x =
 * norm(residual; next). False: the peers did not come. */
template <bool FP8, int ROWS, bool LONE>
__device__ __forceinline__ bool draft_norm(const draft_round_args &a, draft_thread &t, float (&residual)[4 * ROWS], uint32_t slices, const float *post, const float *scalar, const float *next)
{
    constexpr int WARPS = DRAFT_WARPS / ROWS;
    forget_place(t);
    const uint32_t row = t.warp / WARPS, first = t.warp % WARPS * (DRAFT_HIDDEN / WARPS) + t.lane * 4;
    const float *from = (LONE ? a.lone_part : a.part + (uint64_t)row * DRAFT_HIDDEN) + first;
    const uint64_t stride = (LONE ? 1 : CUDA_DRAFT_ROWS_MAX) * DRAFT_HIDDEN;
    const float by = scalar ? __ldg(scalar) : 1.0f;
    float y[4 * ROWS] = {}, sum = 0.0f;
    draft_weights<ROWS> own, behind;

    if (ROWS <= 2) {                  /* while we wait; more rows have no registers for it */
        if (post) load_weights<ROWS>(own, post, first);
        load_weights<ROWS>(behind, next, first);
    }
    if (!grid_wait(a, t)) return false;
    if (ROWS <= 2) {                  /* all slices are under way at once */
        float4 v[ROWS <= 2 ? ROWS : 1][8 * ROWS / (ROWS <= 2 ? ROWS : 1)];

        if constexpr (LONE) lone_load(a, t, v[0], [&](int i) { return (const float4 *)(from + min(i, (int)slices - 1) * stride); });
        else
#pragma unroll
            for (int i = 0; i < 8 * ROWS; i++) v[i % ROWS][i / ROWS] = ld_now((const float4 *)(from + min(i / ROWS, (int)slices - 1) * stride + i % ROWS * 128));
#pragma unroll
        for (int i = 0; i < 8 * ROWS; i++) {
            const float4 x = i / ROWS < (int)slices && row < a.rows ? v[ROWS <= 2 ? i % ROWS : 0][i / ROWS] : make_float4(0, 0, 0, 0);
            const int j = i % ROWS;

            y[4 * j] += x.x, y[4 * j + 1] += x.y, y[4 * j + 2] += x.z, y[4 * j + 3] += x.w;
        }
    }
#pragma unroll
    for (int s = 0; s < 8 && ROWS > 2; s++)
        if (s < (int)slices && row < a.rows) {
#pragma unroll
            for (int j = 0; j < ROWS; j++) {
                const float4 v = ld_l2((const float4 *)(from + (uint64_t)s * CUDA_DRAFT_ROWS_MAX * DRAFT_HIDDEN + j * 128));

                y[4 * j] += v.x, y[4 * j + 1] += v.y, y[4 * j + 2] += v.z, y[4 * j + 3] += v.w;
            }
        }
    if (post) {
        if (ROWS > 2) load_weights<ROWS>(own, post, first);
#pragma unroll
        for (int i = 0; i < 4 * ROWS; i++) sum += y[i] * y[i];
        const float inv = rsqrtf(row_sum<WARPS>(sum, t.sh->red[0], t) / (float)DRAFT_HIDDEN + a.eps);
#pragma unroll
        for (int j = 0; j < ROWS; j++) {
            residual[4 * j] = (residual[4 * j] + y[4 * j] * inv * own.w[j].x) * by;
            residual[4 * j + 1] = (residual[4 * j + 1] + y[4 * j + 1] * inv * own.w[j].y) * by;
            residual[4 * j + 2] = (residual[4 * j + 2] + y[4 * j + 2] * inv * own.w[j].z) * by;
            residual[4 * j + 3] = (residual[4 * j + 3] + y[4 * j + 3] * inv * own.w[j].w) * by;
        }
    } else {
#pragma unroll
        for (int i = 0; i < 4 * ROWS; i++) residual[i] = y[i];
    }
    sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 4 * ROWS; i++) sum += residual[i] * residual[i];
    if (ROWS > 2) load_weights<ROWS>(behind, next, first);
    const float inv = rsqrtf(row_sum<WARPS>(sum, t.sh->red[1], t) / (float)DRAFT_HIDDEN + a.eps);
#pragma unroll
    for (int j = 0; j < ROWS; j++)
        *(uint2 *)&t.sh->x[row][first + j * 128] = make_uint2(draft_pack<FP8>(residual[4 * j] * inv * behind.w[j].x, residual[4 * j + 1] * inv * behind.w[j].y),
                                                             draft_pack<FP8>(residual[4 * j + 2] * inv * behind.w[j].z, residual[4 * j + 3] * inv * behind.w[j].w));
    compute_sync();
    mark(a, t);
    return true;
}

/* ---- the head ---- */

/* The best of what one lane has seen, for its two rows. */
struct draft_best { float top[2], sum[2]; uint32_t token[2]; };

__device__ __forceinline__ void best_merge(float &top, float &sum, uint32_t &token, float other, float other_sum, uint32_t other_token)
{
    const float most = fmaxf(top, other);

    sum = sum * __expf(top - most) + other_sum * __expf(other - most);
    if (other > top || (other == top && other_token < token)) token = other_token;
    top = most;
}

__device__ __forceinline__ float draft_logit(const draft_round_args &a, float x, uint32_t token)
{
#pragma unroll 1
    for (uint32_t i = 0; i < a.suppress_count; i++)
        if (a.suppress[i] == token) return DRAFT_NEVER;
    return a.softcap > 0.0f ? a.softcap * tanhf(x / a.softcap) : x;
}

__device__ __forceinline__ bool row_is_sampled(const draft_round_args &a, uint32_t row) { return a.question[row].temperature >= SAMPLE_TEMPERATURE_MIN; }

__device__ __forceinline__ void finish_head(const draft_round_args &a, const draft_thread &t, draft_best &best, float4 v, uint32_t tile, bool sampled)
{
    const uint32_t m = t.lane % 4 * 2, token = tile * TILE_ROWS + t.lane / 4;

#pragma unroll
    for (int i = 0; i < 2; i++) {
        const float low = draft_logit(a, i ? v.y : v.x, token), high = draft_logit(a, i ? v.w : v.z, token + 8), most = fmaxf(fmaxf(low, high), best.top[i]);

        best.sum[i] = best.sum[i] * __expf(best.top[i] - most) + __expf(low - most) + __expf(high - most);
        if (low > best.top[i]) best.token[i] = token;
        if (high > fmaxf(low, best.top[i])) best.token[i] = token + 8;
        best.top[i] = most;
        if (!sampled) continue;
        float top = fmaxf(low, high);

        for (int d = 4; d < 32; d <<= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, d));
        if (m + i >= a.rows || !row_is_sampled(a, m + i)) continue;
        float *to = a.logits + (uint64_t)(m + i) * a.head_rows + token;

        to[0] = low, to[8] = high;
        if (t.lane < 4) a.tile_top[(uint64_t)(m + i) * (a.head_rows / TILE_ROWS) + tile] = top;
    }
}

/* The block's best of each row goes to memory. */
__device__ __forceinline__ void store_best(const draft_round_args &a, const draft_thread &t, draft_best &best)
{
#pragma unroll
    for (int i = 0; i < 2; i++) {
#pragma unroll
        for (int d = 4; d < 32; d <<= 1)
            best_merge(best.top[i], best.sum[i], best.token[i], __shfl_xor_sync(0xffffffffu, best.top[i], d), __shfl_xor_sync(0xffffffffu, best.sum[i], d),
                       __shfl_xor_sync(0xffffffffu, best.token[i], d));
        if (t.lane < 4) t.sh->u.top[t.warp][t.lane * 2 + i] = draft_top{ best.top[i], best.token[i], best.sum[i], 0.0f };
    }
    compute_sync();
    if (threadIdx.x < a.rows) {
        draft_top own = t.sh->u.top[0][threadIdx.x];

#pragma unroll 1
        for (int w = 1; w < DRAFT_WARPS; w++) {
            const draft_top other = t.sh->u.top[w][threadIdx.x];

            best_merge(own.top, own.sum, own.token, other.top, other.sum, other.token);
        }
        a.top[threadIdx.x * DRAFT_CHUNKS_MAX + blockIdx.x] = own;
    }
}

/* ---- the choice ---- */

/* What the blocks found, joined: one warp for each row, which also finds the bound of a sampled row's candidates. */
__device__ __forceinline__ draft_top join_best(const draft_round_args &a, const draft_thread &t, uint32_t row, bool sampled)
{
    draft_top best = { DRAFT_NEVER, 0xffffffffu, 0.0f, 0.0f };
    uint32_t order[DRAFT_CHUNKS_MAX / 32];
    float4 v[DRAFT_CHUNKS_MAX / 32];  /* as struct draft_top */

#pragma unroll
    for (uint32_t i = 0; i < DRAFT_CHUNKS_MAX / 32; i++) {
        const uint32_t block = i * 32 + t.lane;

        v[i] = block < gridDim.x ? ld_l2((const float4 *)(a.top + row * DRAFT_CHUNKS_MAX + block)) : make_float4(DRAFT_NEVER, __uint_as_float(0xffffffffu), 0.0f, 0.0f);
    }
#pragma unroll
    for (uint32_t i = 0; i < DRAFT_CHUNKS_MAX / 32; i++) {
        best.top = fmaxf(best.top, v[i].x);
        order[i] = i * 32 + t.lane < gridDim.x ? sample_ordered(v[i].x) : 0;
    }
    best.top = warp_top(best.top);
#pragma unroll
    for (uint32_t i = 0; i < DRAFT_CHUNKS_MAX / 32; i++) {
        best.sum += v[i].z * __expf(v[i].x - best.top);
        if (v[i].x == best.top) best.token = min(best.token, __float_as_uint(v[i].y));
    }
    best.sum = warp_sum(best.sum);
    best.token = __reduce_min_sync(0xffffffffu, best.token);
    if (sampled) {
        const uint32_t bound = row_is_sampled(a, row) ? pick_bound_of(order, pick_wanted(a.question[row])) : 0;

        if (t.warp < a.rows && t.lane == 0) t.sh->bound[row] = bound;
    }
    return best;
}

/* The tokens of sampled rows: the best of what every block has gathered. One row is chosen by all blocks alike; of several each by one block, behind which all wait. */
template <int ROWS> __device__ __forceinline__ bool choose_sampled(const draft_round_args &a, draft_thread &t, uint32_t step, uint32_t row, draft_top &best, float &confidence)
{
    draft_picked own = {};

    compute_sync();                   /* the bounds */
    pick_gather(a, t.sh, step);
    if (blockIdx.x == 0 && threadIdx.x < CUDA_DRAFT_ROWS_MAX) a.control->found[~step & 1][threadIdx.x] = 0;       /* nobody reads those of the step before any more */
    grid_arrive(a);
    if (!grid_wait(a, t)) return false;
    const uint32_t mine = ROWS == 1 ? 0 : blockIdx.x;

    if (mine < a.rows && row_is_sampled(a, mine)) own = draft_pick(a, t.sh, mine, step);
    if (ROWS > 1) {
        if (threadIdx.x == 0 && mine < a.rows) a.picked[mine] = own;
        grid_arrive(a);
        if (!grid_wait(a, t)) return false;
        own.token = __ldcg(&a.picked[row].token), own.logit = __ldcg(&a.picked[row].logit);
    }
    if (!row_is_sampled(a, row)) return true;
    best.token = own.token;
    confidence = __expf(own.logit - best.top) / best.sum;
    return true;
}

/* Every block finds every row's token; block 0 tells the host. Leaves it in sh->token; false: the peers did not come. */
template <int ROWS> __device__ __forceinline__ bool choose(const draft_round_args &a, draft_thread &t, uint32_t step, bool sampled)
{
    const uint32_t row = t.warp < a.rows ? t.warp : 0;
    draft_top best = join_best(a, t, row, sampled);
    float confidence = 1.0f / best.sum;

    if (sampled && !choose_sampled<ROWS>(a, t, step, row, best, confidence)) return false;
    if (t.warp < a.rows && t.lane == 0) {
        const cuda_draft_question &q = a.question[row];
        const bool alive = t.sh->count[row] == step && step < q.steps;
        const uint32_t token = best.token < a.head_rows ? draft_token(a, best.token) : a.vocab;

        t.sh->product[row] *= confidence;
        t.sh->token[row] = token < a.vocab ? token : 0;
        if (alive && (q.stop_below <= 0.0f || t.sh->product[row] >= q.stop_below) && token < a.vocab) {
            t.sh->count[row] = step + 1;
            if (row == 0) t.sh->drafted[step] = token, t.sh->confidence[step] = confidence;
            if (blockIdx.x == 0) a.result->answer[row].token[step] = token, a.result->answer[row].confidence[step] = confidence;
        }
    }
    compute_sync();
    return true;
}

/* Does any row want a token after this step? */
__device__ __forceinline__ bool goes_on(const draft_round_args &a, const draft_thread &t, uint32_t step)
{
    for (uint32_t r = 0; r < a.rows; r++)
        if (t.sh->count[r] == step + 1 && step + 1 < a.question[r].steps) return true;
    return false;
}

/* ---- the kernel ---- */

template <bool LONE> __device__ __forceinline__ void layer_arrive(const draft_round_args &a)
{
    if (LONE) lone_arrive(a);
    else grid_arrive(a);
}

template <bool FP8, bool KV8, int ROWS>
__device__ __forceinline__ bool draft_layer(const draft_round_args &a, draft_thread &t, float (&residual)[4 * ROWS], uint32_t i)
{
    constexpr bool LONE = ROWS == 1;
    const draft_layer_args &l = a.layer[i];
    const draft_phase *p = &a.phase[1 + 4 * i];

    forget_place(t);
    const uint32_t q_rows = l.type == CUDA_SLIDING ? DRAFT_HEADS * 256 : DRAFT_HEADS * 512;
    const auto finish_sums = [&](float4 v, uint32_t tile, uint32_t slice) {
        if (LONE) finish_lone(t, a.lone_part, DRAFT_HIDDEN, v, tile, slice);
        else finish_plain(a.part, (uint64_t)CUDA_DRAFT_ROWS_MAX * DRAFT_HIDDEN, DRAFT_HIDDEN, a.rows, v, tile, slice, t.lane);
    };
    draft_fragments x;

    fragments_own(x, ROWS, t);
    draft_product<FP8>(a, t, p[0], x, [&](float4 v, uint32_t tile, uint32_t) {
        if (LONE) finish_lone(t, a.lone_q, 0, v, tile, 0);
        else finish_plain(a.q, 0, q_rows, a.rows, v, tile, 0, t.lane);
    });
    layer_arrive<LONE>(a);
    if (!draft_attention<KV8, ROWS>(a, t, l)) return false;
    grid_arrive(a);
    if (!grid_wait(a, t)) return false;
    draft_join<FP8, ROWS>(a, t, l);
    layer_arrive<LONE>(a);
    if (!grid_wait(a, t)) return false;
    if (LONE) fragments_lone<FP8>(x, a, a.lone_out, blockIdx.x % p[1].slices, t);
    else fragments_from(x, a.attn_out, DRAFT_HEADS * 512, blockIdx.x % p[1].slices, a.rows, t);
    draft_product<FP8>(a, t, p[1], x, finish_sums);
    layer_arrive<LONE>(a);
    if (!draft_norm<FP8, ROWS, LONE>(a, t, residual, p[1].slices, l.post_attention_norm, NULL, l.pre_ff_norm)) return false;
    fragments_own(x, ROWS, t);
    draft_product<FP8>(a, t, p[2], x, [&](float4 v, uint32_t tile, uint32_t) {
        const uint32_t m = t.lane % 4 * 2;
        uint16_t *to = a.act + (uint64_t)m * a.intermediate + tile * 8 + t.lane / 4;

        if (LONE && m == 0) lone_store(t, a.lone_act + tile * 8 + t.lane / 4, gelu_tanh(v.x) * v.z);
        if (!LONE && m < a.rows) to[0] = draft_pack1<FP8>(gelu_tanh(v.x) * v.z);
        if (!LONE && m + 1 < a.rows) to[a.intermediate] = draft_pack1<FP8>(gelu_tanh(v.y) * v.w);
    });
    layer_arrive<LONE>(a);
    if (!grid_wait(a, t)) return false;
    if (LONE) fragments_lone<FP8>(x, a, a.lone_act, blockIdx.x % p[3].slices, t);
    else fragments_from(x, a.act, a.intermediate, blockIdx.x % p[3].slices, a.rows, t);
    draft_product<FP8>(a, t, p[3], x, finish_sums);
    layer_arrive<LONE>(a);
    return draft_norm<FP8, ROWS, LONE>(a, t, residual, p[3].slices, l.post_ff_norm, l.scalar, i + 1 == a.layers ? a.norm : a.layer[i + 1].input_norm);
}

/* One step; false: the peers did not come. */
template <bool FP8, bool KV8, int ROWS>
__device__ __forceinline__ bool draft_step(const draft_round_args &a, draft_thread &t, uint32_t step, bool sampled)
{
    const draft_phase &post = a.phase[a.phases - 2], &head = a.phase[a.phases - 1];
    float residual[4 * ROWS];
    draft_best best = { { DRAFT_NEVER, DRAFT_NEVER }, { 0.0f, 0.0f }, { 0xffffffffu, 0xffffffffu } };
    draft_fragments x;

    join_inputs<FP8, ROWS>(a, t, blockIdx.x % a.phase[0].slices, step);
    fragments_own(x, ROWS, t);
    draft_product<FP8>(a, t, a.phase[0], x, [&](float4 v, uint32_t tile, uint32_t slice) {
        finish_plain(a.part, (uint64_t)CUDA_DRAFT_ROWS_MAX * DRAFT_HIDDEN, DRAFT_HIDDEN, a.rows, v, tile, slice, t.lane);
    });
    grid_arrive(a);
    if (!draft_norm<FP8, ROWS, false>(a, t, residual, a.phase[0].slices, NULL, NULL, a.layer[0].input_norm)) return false;
#pragma unroll 1
    for (uint32_t i = 0; i < a.layers; i++)
        if (!draft_layer<FP8, KV8, ROWS>(a, t, residual, i)) return false;
    fragments_own(x, ROWS, t);
    draft_product<FP8>(a, t, post, x, [&](float4 v, uint32_t tile, uint32_t) { finish_plain(a.hidden, 0, a.backbone_hidden, a.rows, v, tile, 0, t.lane); });
    draft_product<FP8>(a, t, head, x, [&](float4 v, uint32_t tile, uint32_t) { finish_head(a, t, best, v, tile, sampled); });
    store_best(a, t, best);
    grid_arrive(a);
    return grid_wait(a, t) && choose<ROWS>(a, t, step, sampled);
}

/* The block's end: block 0 tells the host, the last block makes the words ready for the next round. */
__device__ __forceinline__ void leave(const draft_round_args &a, const draft_thread &t, bool done)
{
    if (blockIdx.x == 0 && threadIdx.x == 0 && done && a.handover) handover_leave(a.handover, a.hand, t.sh->position[0], t.sh->count[0], t.sh->drafted, t.sh->confidence);
    if (blockIdx.x == 0 && done) {
        if (threadIdx.x < a.rows) {
            a.result->answer[threadIdx.x].count = t.sh->count[threadIdx.x];
            a.result->answer[threadIdx.x].position = t.sh->position[threadIdx.x];
            a.result->answer[threadIdx.x].ns = (uint32_t)(now_ns() - t.sh->begun_ns);
            __threadfence_system();
        }
        compute_sync();
    }
    if (threadIdx.x) return;
    __threadfence_system();
    if (!done) *(volatile uint64_t *)&a.result->gave_up = a.round;
    else if (blockIdx.x == 0) *(volatile uint64_t *)&a.result->round = a.round;
    if (atomicAdd(&a.control->left, 1) + 1 < gridDim.x) return;
    a.control->base += t.barriers + (*(volatile uint32_t *)&a.control->gave_up ? LONE_GAP : 0);
    a.control->arrived = 0, a.control->left = 0, a.control->gave_up = 0;
    for (uint32_t i = 0; i < CUDA_DRAFT_ROWS_MAX; i++) a.control->found[0][i] = a.control->found[1][i] = 0;
}

__device__ __forceinline__ void begin_row(const draft_round_args &a, draft_shared *sh, uint32_t row)
{
    uint32_t token = a.question[row].token, position = a.question[row].position;

    if (a.follows && (!handover_told(a.follows, a.follows_tag, &token, &position) || token >= a.vocab || position >= a.context_max)) token = position = 0;
    sh->token[row] = token, sh->position[row] = position, sh->count[row] = 0, sh->product[row] = 1.0f;
}

template <bool FP8, bool KV8, int ROWS>
__global__ void __launch_bounds__(DRAFT_THREADS, 1) draft_kernel(const __grid_constant__ draft_round_args a)
{
    extern __shared__ __align__(128) uint8_t bytes[];
    draft_shared *sh = (draft_shared *)bytes;
    draft_thread t = { bytes + DRAFT_SHARED_BYTES, sh, threadIdx.x / 32, threadIdx.x % 32, 0, 0, 0, ld_l2(&a.control->base), 0 };
    bool sampled = false, done = true;

    if (threadIdx.x == 0) {
        for (uint32_t i = 0; i < a.ring_slots; i++) mbar_init(&sh->full[i], 1), mbar_init(&sh->empty[i], DRAFT_WARPS);
        mbar_init_fence();
        sh->stop = 0, sh->together = 1;
    }
    if (threadIdx.x < a.rows) begin_row(a, sh, threadIdx.x);
    if (threadIdx.x == 0) sh->begun_ns = now_ns();
    __syncthreads();
    if (t.warp >= DRAFT_WARPS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(DRAFT_REGISTERS_STREAM));
        if (threadIdx.x == DRAFT_COMPUTE) draft_stream<FP8>(a, t.ring, sh);
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(DRAFT_REGISTERS));
    make_rope(a, sh);
    if (ROWS == 1) keep_pages<KV8>(a, t);
    for (uint32_t r = 0; r < a.rows; r++) sampled |= row_is_sampled(a, r);
#pragma unroll 1
    for (uint32_t step = 0; step < a.steps && done && sh->position[0]; step++) {
        asm volatile("" : "+r"(step));          /* else the first step gets a copy of the code of its own: twice the instructions to fetch */
        done = draft_step<FP8, KV8, ROWS>(a, t, step, sampled);
        if (done && !goes_on(a, t, step)) break;
    }
    compute_sync();
    if (threadIdx.x == 0) *(volatile uint32_t *)&sh->stop = 1;
    leave(a, t, done);
}

/* ---- host ---- */

/* BF16 is for comparing: one kernel for all counts of rows keeps the build short. */
template <bool KV8> static const void *kernel_of_cache(uint32_t format, uint32_t rows)
{
    if (format != WEIGHT_FP8) return (const void *)draft_kernel<false, KV8, 8>;
    if (rows <= 1) return (const void *)draft_kernel<true, KV8, 1>;
    if (rows <= 2) return (const void *)draft_kernel<true, KV8, 2>;
    return rows <= 4 ? (const void *)draft_kernel<true, KV8, 4> : (const void *)draft_kernel<true, KV8, 8>;
}

static const void *kernel_of(uint32_t format, uint32_t rows, bool kv_fp8) { return kv_fp8 ? kernel_of_cache<true>(format, rows) : kernel_of_cache<false>(format, rows); }

static uint32_t slot_bytes(uint32_t format) { return SLOT_DATA_BYTES + (format == WEIGHT_FP8 ? UNIT_HEADER_BYTES : 0); }

uint32_t draft_round_slots(uint32_t format)
{
    const uint32_t fit = (LAUNCH_SHARED_MAX - DRAFT_SHARED_BYTES) / slot_bytes(format);

    return fit < DRAFT_RING_MAX ? fit : DRAFT_RING_MAX;
}

static uint32_t shared_bytes(uint32_t format, uint32_t slots) { return DRAFT_SHARED_BYTES + slots * slot_bytes(format); }

int draft_round_init(uint32_t format, bool kv_fp8, uint32_t *blocks)
{
    int device, sms, together, fit = 0, rc = launch_check(cudaGetDevice(&device), "device");

    if (rc == 0) rc = launch_check(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device), "device");
    if (rc == 0) rc = launch_check(cudaDeviceGetAttribute(&together, cudaDevAttrCooperativeLaunch, device), "device");
    for (uint32_t rows = 1; rows <= CUDA_DRAFT_ROWS_MAX && rc == 0; rows *= 2) rc = launch_prepare(kernel_of(format, rows, kv_fp8), LAUNCH_SHARED_MAX);
    if (rc == 0) rc = launch_check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&fit, kernel_of(format, CUDA_DRAFT_ROWS_MAX, kv_fp8), DRAFT_THREADS, shared_bytes(format, draft_round_slots(format))), "occupancy");
    if (rc) return rc;
    if (!together || fit < 1) return launch_fail(-E_UNSUPPORTED, "the drafter's kernel cannot have all its blocks at once on this device");
    *blocks = (uint32_t)sms < DRAFT_CHUNKS_MAX ? (uint32_t)sms : DRAFT_CHUNKS_MAX;
    return *blocks < CUDA_DRAFT_ROWS_MAX ? -E_UNSUPPORTED : 0;
}

int draft_round_launch(const struct draft_round_args *args, uint32_t format, uint32_t blocks, void *stream)
{
    draft_round_args a = *args;
    void *params[] = { &a };

    if (a.rows < 1 || a.rows > CUDA_DRAFT_ROWS_MAX || a.steps < 1 || a.steps > CUDA_DRAFT_STEPS_MAX) return -E_RANGE;
    a.zero = 0;
    if (a.ring_slots == 0 || a.ring_slots > draft_round_slots(format)) a.ring_slots = draft_round_slots(format);
    if (a.lone_launch) return launch_first(kernel_of(format, a.rows, a.kv_fp8), blocks, DRAFT_THREADS, shared_bytes(format, a.ring_slots), params, stream);
    return launch_check(cudaLaunchCooperativeKernel(kernel_of(format, a.rows, a.kv_fp8), dim3(blocks), dim3(DRAFT_THREADS), params, shared_bytes(format, a.ring_slots), (cudaStream_t)stream),
                        "draft round");
}
