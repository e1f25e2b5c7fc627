/* kernels/cuda/sample_general.cu - picking tokens with everything that model/sampler.h knows (contract in sample.h).
 *
 * A cluster of 8 blocks works on one row and holds all its logits in shared memory, 4 consecutive tokens per thread and turn. Whatever
 * needs the whole row (maxima, sums, counts above a bound) is added up in a fixed order: thread, warp, block, cluster. top_k, top_p and the list of
 * log probabilities are all the same search: the largest key that so many tokens, or so much weight, reach. */
#include "launch.h"
#include "sample.h"
#include "sample_pick.cuh"
#include "shm/error.h"
#include <cooperative_groups.h>
#include <cuda_runtime.h>

namespace cg = cooperative_groups;

#define GENERAL_BLOCKS 8              /* of a cluster: the most that every GPU grants */
#define GENERAL_THREADS PICK_THREADS
#define SHORT_LIST_MAX 512            /* top_k up to here: candidates are gathered, not searched for */
#define TURN_TOKENS (GENERAL_BLOCKS * GENERAL_THREADS * 4)

#define CELL_LISTED (1u << 30)        /* suppressed, or in logit_bias */
#define CELL_PROMPT (1u << 31)
#define CELL_COUNT (CELL_LISTED - 1)  /* times in the output */

#define NO_TOKEN 0xffffffffu

struct general_sums { double weight[3]; uint64_t counts; };      /* counts: three of 21 bits */
struct general_best { uint64_t key; uint32_t token, pad; };

struct general_shared {               /* behind the cells */
    general_sums warp_sums[32], sums[2];     /* [2]: a peer may still read the last one */
    general_best warp_best[32], best[2];
    uint32_t listed;                  /* of block 0: entries of pick.found */
    pick_shared pick;                 /* of block 0 */
};

#define COUNT_BITS 21
#define COUNT_ONE(i) (1ull << (COUNT_BITS * (i)))

__device__ __forceinline__ uint32_t count_of(const general_sums &s, int i) { return (uint32_t)(s.counts >> (COUNT_BITS * i)) & ((1u << COUNT_BITS) - 1); }

/* What every function here needs. cell: this thread's 4 tokens of each turn lie at turn * 1024 + thread. */
struct row_work {
    const sample_args &a;
    const step_sampling &p;
    const float *logits;
    float4 *cell;
    general_shared &sh;
    uint32_t turns, block, row, seq;
    uint32_t sums_turn, best_turn;
};

__device__ __forceinline__ uint32_t first_token(const row_work &w, uint32_t turn) { return turn * TURN_TOKENS + (w.block * GENERAL_THREADS + threadIdx.x) * 4; }

/* Place of a token among this block's cells, or NO_TOKEN. */
__device__ __forceinline__ uint32_t own_place(const row_work &w, uint32_t token)
{
    const uint32_t in_turn = token % TURN_TOKENS / 4;

    if (token >= w.a.vocab || in_turn / GENERAL_THREADS != w.block) return NO_TOKEN;
    return (token / TURN_TOKENS * GENERAL_THREADS + in_turn % GENERAL_THREADS) * 4 + token % 4;
}

template <typename F>
__device__ __forceinline__ void each_cell(const row_work &w, F f)
{
    for (uint32_t turn = 0; turn < w.turns; turn++) {
        const float4 v = w.cell[turn * GENERAL_THREADS + threadIdx.x];
        const uint32_t token = first_token(w, turn);

        f(v.x, token), f(v.y, token + 1), f(v.z, token + 2), f(v.w, token + 3);
    }
}

template <typename F>
__device__ __forceinline__ void change_cells(const row_work &w, F f)
{
    for (uint32_t turn = 0; turn < w.turns; turn++) {
        const uint32_t at = turn * GENERAL_THREADS + threadIdx.x, token = first_token(w, turn);
        const float4 v = w.cell[at];

        w.cell[at] = make_float4(f(v.x, token), f(v.y, token + 1), f(v.z, token + 2), f(v.w, token + 3));
    }
}

/* ---- over the whole cluster; every thread gets the same bits ---- */

template <int WEIGHTS>
__device__ __forceinline__ general_sums lanes_sum(general_sums s)
{
#pragma unroll
    for (int d = 16; d; d >>= 1) {
#pragma unroll
        for (int i = 0; i < WEIGHTS; i++) s.weight[i] += __shfl_xor_sync(0xffffffffu, s.weight[i], d);
        s.counts += __shfl_xor_sync(0xffffffffu, s.counts, d);
    }
    return s;
}

/* The first WEIGHTS weights and all counts. */
template <int WEIGHTS>
__device__ general_sums cluster_sum(row_work &w, general_sums s)
{
    const uint32_t lane = threadIdx.x % 32;
    general_sums *own = &w.sh.sums[w.sums_turn];

    w.sums_turn ^= 1;
    s = lanes_sum<WEIGHTS>(s);
    if (lane == 0) w.sh.warp_sums[threadIdx.x / 32] = s;
    __syncthreads();
    if (threadIdx.x < 32) {
        s = lanes_sum<WEIGHTS>(w.sh.warp_sums[lane]);
        if (lane == 0) *own = s;
    }
    cg::this_cluster().sync();
    s = general_sums{};
    if (lane < GENERAL_BLOCKS) s = *cg::this_cluster().map_shared_rank(own, lane);
    return lanes_sum<WEIGHTS>(s);
}

__device__ general_best lanes_best(general_best b)
{
    for (int d = 16; d; d >>= 1) {
        const uint64_t key = __shfl_xor_sync(0xffffffffu, b.key, d);
        const uint32_t token = __shfl_xor_sync(0xffffffffu, b.token, d);

        if (key > b.key || (key == b.key && token < b.token)) b.key = key, b.token = token;
    }
    return b;
}

/* Largest key, the lowest token among equals. */
__device__ general_best cluster_best(row_work &w, general_best b)
{
    const uint32_t lane = threadIdx.x % 32;
    general_best *own = &w.sh.best[w.best_turn];

    w.best_turn ^= 1;
    b = lanes_best(b);
    if (lane == 0) w.sh.warp_best[threadIdx.x / 32] = b;
    __syncthreads();
    if (threadIdx.x < 32) {
        b = lanes_best(w.sh.warp_best[lane]);
        if (lane == 0) *own = b;
    }
    cg::this_cluster().sync();
    b = general_best{ 0, NO_TOKEN, 0 };
    if (lane < GENERAL_BLOCKS) b = *cg::this_cluster().map_shared_rank(own, lane);
    return lanes_best(b);
}

/* ---- the search ---- */

/* What a search found: tokens whose key is above `key`, and `ties` that have it exactly (or, when ties is 1, the one token at or just above it). */
struct found { uint32_t key, above_count, ties; double above_weight; };

/* The largest key that tokens of the wanted weight or count reach; all of them together must. key_of: 0 for who does not take part. */
template <bool BY_WEIGHT, typename KEY, typename WEIGHT>
__device__ found search(row_work &w, double wanted, KEY key_of, WEIGHT weight_of)
{
    found f = { 0, 0, NO_TOKEN, 0.0 };
    uint32_t reached = NO_TOKEN;      /* tokens of at least f.key */

    for (int shift = 30; shift >= 0 && f.ties != 1; shift -= 2) {
        const uint32_t probe[3] = { f.key + (1u << shift), f.key + (2u << shift), f.key + (3u << shift) };
        general_sums s = {};

        each_cell(w, [&](float x, uint32_t token) {
            const uint32_t key = key_of(x, token);

            if (key < probe[0]) return;
            const double weight = BY_WEIGHT ? weight_of(x) : 0.0;
#pragma unroll
            for (int i = 0; i < 3; i++) {
                if (key < probe[i]) continue;
                if (BY_WEIGHT) s.weight[i] += weight;
                s.counts += COUNT_ONE(i);
            }
        });
        s = cluster_sum<BY_WEIGHT ? 3 : 0>(w, s);
        for (int i = 2; i >= 0; i--) {
            if ((BY_WEIGHT ? s.weight[i] : (double)count_of(s, i)) >= wanted) {
                f.key = probe[i], reached = count_of(s, i);
                break;
            }
            f.above_count = count_of(s, i), f.above_weight = s.weight[i];
        }
        f.ties = reached == NO_TOKEN ? NO_TOKEN : reached - f.above_count;
    }
    return f;
}

__device__ __forceinline__ uint32_t logit_key(float x) { return x > -CUDART_INF_F ? sample_ordered(x) : 0; }

/* Of the tokens with exactly this key the one up to which `wanted` of them, counted from the lowest, reach. */
__device__ uint32_t last_of_ties(row_work &w, uint32_t key, uint32_t wanted)
{
    const found f = search<false>(w, wanted, [&](float x, uint32_t token) { return logit_key(x) == key ? ~token : 0u; }, [](float) { return 0.0; });

    /* f.key may lie between two tokens' keys: whoever is at least f.key belongs to the first `wanted`. */
    return ~f.key;
}

/* ---- steps of the sampler, in its order ---- */

__device__ void load_logits(row_work &w)
{
    for (uint32_t turn = 0; turn < w.turns; turn++) {
        const uint32_t token = first_token(w, turn);
        const float none = -CUDART_INF_F;

        w.cell[turn * GENERAL_THREADS + threadIdx.x] = token < w.a.vocab ? __ldcg((const float4 *)(w.logits + token)) : make_float4(none, none, none, none);
    }
}

/* Puts who reaches the bound into block 0's list, in any order; returns how many there are, also beyond the room. */
template <typename REACHES>
__device__ uint32_t gather(row_work &w, REACHES reaches)
{
    general_shared *first = cg::this_cluster().map_shared_rank(&w.sh, 0);

    if (threadIdx.x == 0) w.sh.listed = 0;
    cg::this_cluster().sync();
    each_cell(w, [&](float x, uint32_t token) {
        if (!reaches(x, token)) return;
        const uint32_t at = atomicAdd(&first->listed, 1);

        if (at < PICK_MAX) first->pick.found[at].logit = x, first->pick.found[at].token = token;
    });
    cg::this_cluster().sync();
    return *(volatile uint32_t *)&first->listed;
}

/* The `wanted` largest and hardly more into block 0's list. Two bounds are reached by that many for certain: the largest one that one block's own threads
 * reach often enough, and the lowest one that each block's threads reach for their share of them. False: too many reach the higher of the two. */
__device__ bool gather_short(row_work &w, uint32_t wanted)
{
    uint32_t own = 0;

    each_cell(w, [&](float x, uint32_t) { own = max(own, logit_key(x)); });
    const uint32_t one = (uint32_t)cluster_best(w, general_best{ pick_bound(own, wanted), 0, 0 }).key;
    const uint32_t each = ~(uint32_t)cluster_best(w, general_best{ ~pick_bound(own, (wanted + GENERAL_BLOCKS - 1) / GENERAL_BLOCKS), 0, 0 }).key;
    const uint32_t bound = max(max(one, each), 1u);

    return gather(w, [&](float x, uint32_t) { return logit_key(x) >= bound; }) <= PICK_MAX;
}

/* Exactly the `wanted` largest, of equal ones the lower ids. */
__device__ void gather_exactly(row_work &w, uint32_t wanted)
{
    const found f = search<false>(w, wanted, [](float x, uint32_t) { return logit_key(x); }, [](float) { return 0.0; });
    const uint32_t left = wanted - f.above_count, last = left < f.ties ? last_of_ties(w, f.key, left) : NO_TOKEN;

    gather(w, [&](float x, uint32_t token) {
        const uint32_t key = logit_key(x);

        return key && (key > f.key || (key == f.key && token <= last));
    });
}

/* log(sum(exp)) of the logits as they came; the list of the most likely ones goes to block 0. */
__device__ double take_logprobs(row_work &w)
{
    general_best best = { 0, NO_TOKEN, 0 };
    general_sums sum = {};

    load_logits(w);
    each_cell(w, [&](float x, uint32_t) { best.key = max(best.key, (uint64_t)logit_key(x)); });
    best = cluster_best(w, best);
    const uint32_t bits = (uint32_t)best.key;
    const float top = __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);

    each_cell(w, [&](float x, uint32_t) {
        if (x > -CUDART_INF_F) sum.weight[0] += (double)sample_exp(x - top), sum.counts += COUNT_ONE(0);
    });
    sum = cluster_sum<1>(w, sum);
    const uint32_t wanted = min(w.p.top_logprob_count, count_of(sum, 0));

    if (wanted && !gather_short(w, wanted)) gather_exactly(w, wanted);
    if (wanted && w.block == 0) pick_sort(w.sh.listed, w.sh.pick);
    return (double)top + log(sum.weight[0]);
}

/* Marks in this block's cells what changes a logit: tokens in lists, and the history. */
__device__ void mark_cells(const row_work &w)
{
    uint32_t *mark = (uint32_t *)w.cell;

    for (uint32_t turn = 0; turn < w.turns; turn++) w.cell[turn * GENERAL_THREADS + threadIdx.x] = make_float4(0, 0, 0, 0);
    __syncthreads();
    if (threadIdx.x < w.a.suppress_count + w.p.bias_count) {
        const uint32_t i = threadIdx.x, token = i < w.a.suppress_count ? w.a.suppress[i] : w.a.bias[(uint64_t)w.seq * STEP_BIAS_MAX + i - w.a.suppress_count].token;
        const uint32_t at = own_place(w, token);

        if (at != NO_TOKEN) atomicOr(mark + at, CELL_LISTED);
    }
    if (sample_penalties_on(w.p)) {
        const uint32_t tokens = w.a.state->row[w.row].position + 1;
        const uint32_t *history = w.a.history + (uint64_t)w.seq * w.a.history_stride;

        for (uint32_t i = threadIdx.x; i < tokens; i += GENERAL_THREADS) {
            const uint32_t at = own_place(w, __ldcg(history + i));

            if (at == NO_TOKEN) continue;
            if (i < w.p.prompt_tokens) atomicOr(mark + at, CELL_PROMPT);
            else atomicAdd(mark + at, 1);
        }
    }
    __syncthreads();
}

/* suppressed tokens, logit_bias, penalties: the order and the roundings of apply_penalties in model/sampler.c. */
__device__ float changed_logit(const row_work &w, float x, uint32_t mark, uint32_t token)
{
    const step_sampling &p = w.p;

    if (mark & CELL_LISTED) {
        const step_bias *bias = w.a.bias + (uint64_t)w.seq * STEP_BIAS_MAX;

        if (sample_suppressed(w.a, token)) x = -CUDART_INF_F;
        for (uint32_t i = 0; i < p.bias_count; i++)
            if (bias[i].token == token) x = __fadd_rn(x, bias[i].bias);
    }
    if (!(mark & ~CELL_LISTED)) return x;
    if (sample_repetition_on(p)) x = x < 0.0f ? __fmul_rn(x, p.repetition_penalty) : __fdiv_rn(x, p.repetition_penalty);
    if (mark & CELL_COUNT) x = __fsub_rn(x, __fadd_rn(p.presence_penalty, __fmul_rn((float)(mark & CELL_COUNT), p.frequency_penalty)));
    return x;
}

__device__ void load_changed(row_work &w)
{
    mark_cells(w);
    for (uint32_t turn = 0; turn < w.turns; turn++) {
        const uint32_t at = turn * GENERAL_THREADS + threadIdx.x, token = first_token(w, turn);
        const float4 m = w.cell[at];
        const float none = -CUDART_INF_F;
        float4 x = make_float4(none, none, none, none);

        if (token < w.a.vocab) {
            x = __ldcg((const float4 *)(w.logits + token));
            if (__float_as_uint(m.x)) x.x = changed_logit(w, x.x, __float_as_uint(m.x), token);
            if (__float_as_uint(m.y)) x.y = changed_logit(w, x.y, __float_as_uint(m.y), token + 1);
            if (__float_as_uint(m.z)) x.z = changed_logit(w, x.z, __float_as_uint(m.z), token + 2);
            if (__float_as_uint(m.w)) x.w = changed_logit(w, x.w, __float_as_uint(m.w), token + 3);
        }
        w.cell[at] = make_float4(x.x + 0.0f, x.y + 0.0f, x.z + 0.0f, x.w + 0.0f);      /* -0 becomes 0: they are equal logits */
    }
}

/* Drops who does not reach the top_k-th largest, and divides by the temperature. */
__device__ void keep_top_k(row_work &w)
{
    const float none = -CUDART_INF_F, temperature = w.p.temperature;
    uint32_t bound = 1;

    if (w.p.top_k && w.p.top_k < w.a.vocab) {
        general_sums s = {};

        each_cell(w, [&](float x, uint32_t) { s.counts += x > none ? COUNT_ONE(0) : 0; });
        if (count_of(cluster_sum<0>(w, s), 0) > w.p.top_k)
            bound = search<false>(w, w.p.top_k, [](float x, uint32_t) { return logit_key(x); }, [](float) { return 0.0; }).key;
    }
    change_cells(w, [&](float x, uint32_t) { return logit_key(x) >= bound ? __fdiv_rn(x, temperature) : none; });
}

/* Keeps the smallest set of largest candidates whose share reaches top_p. */
__device__ void keep_top_p(row_work &w, float top)
{
    const float none = -CUDART_INF_F;
    general_sums s = {};

    each_cell(w, [&](float x, uint32_t) {
        if (x > none) s.weight[0] += (double)sample_exp(x - top);
    });
    const double wanted = (double)w.p.top_p * cluster_sum<1>(w, s).weight[0];
    const found f = search<true>(w, wanted, [](float x, uint32_t) { return logit_key(x); }, [&](float x) { return (double)sample_exp(x - top); });
    uint32_t last = NO_TOKEN;

    if (f.ties > 1) {                 /* then f.key is theirs exactly; of equal ones the lower ids stay */
        const float x = __uint_as_float(f.key & 0x80000000u ? f.key & 0x7fffffffu : ~f.key);
        const double each = (double)sample_exp(x - top), missing = ceil((wanted - f.above_weight) / each);
        const uint32_t left = missing >= (double)f.ties ? f.ties : missing > 1.0 ? (uint32_t)missing : 1;

        if (left < f.ties) last = last_of_ties(w, f.key, left);
    }
    change_cells(w, [&](float x, uint32_t token) {
        const uint32_t key = logit_key(x);

        return key > f.key || (key == f.key && token <= last) ? x : none;
    });
}

__device__ general_best best_cell(row_work &w)
{
    general_best best = { 0, NO_TOKEN, 0 };

    each_cell(w, [&](float x, uint32_t token) {
        const uint64_t key = sample_ordered(x);

        if (key > best.key) best.key = key, best.token = token;      /* tokens come in ascending order */
    });
    return cluster_best(w, best);
}

/* argmax of logit + noise over who is left, the lowest id among equals. A token wins only if 1 - u <= weight * reach, so few logarithms are taken. */
__device__ uint32_t draw(row_work &w, float top)
{
    const uint32_t best_token = best_cell(w).token;

    const uint64_t seed = w.p.seed, position = (uint64_t)w.a.state->row[w.row].position + 1;
    const float min_p = w.p.min_p;
    const double known = (double)top + sample_gumbel(sample_above(sample_word(sample_philox(seed, position, best_token / 4), best_token % 4)));
    double best = known, reach = exp((double)top - known) * 1.0001;      /* the likeliest token is never dropped: nobody below it can win */
    uint32_t winner = best_token;

    for (uint32_t turn = 0; turn < w.turns; turn++) {
        const float4 v = w.cell[turn * GENERAL_THREADS + threadIdx.x];
        const float x[4] = { v.x, v.y, v.z, v.w };
        const uint32_t token = first_token(w, turn);

        if (!(fmaxf(fmaxf(v.x, v.y), fmaxf(v.z, v.w)) > -CUDART_INF_F)) continue;
        const uint4 words = sample_philox(seed, position, token / 4);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float weight = x[i] > -CUDART_INF_F ? sample_exp(x[i] - top) : 0.0f;
            const double above = sample_above(sample_word(words, i));

            if (!(x[i] > -CUDART_INF_F) || (min_p > 0.0f && weight < min_p) || above > (double)weight * reach) continue;
            const double value = (double)x[i] + sample_gumbel(above);
            if (value > best || (value == best && token + i < winner)) best = value, winner = token + i, reach = exp((double)top - best) * 1.0001;
        }
    }
    return cluster_best(w, general_best{ sample_ordered(best), winner, 0 }).token;
}

/* Writes the list of log probabilities, which block 0 has sorted. Returns its length. */
__device__ uint32_t store_list(const row_work &w, double total)
{
    const uint32_t i = threadIdx.x, n = w.p.top_logprob_count ? min(w.sh.listed, w.p.top_logprob_count) : 0;

    if (i < n) {
        const pick_candidate own = w.sh.pick.sorted[i];

        w.a.result->top[w.row][i] = step_logprob{ own.token, (float)((double)own.logit - total) };
        __threadfence_system();
    }
    __syncthreads();
    return n;
}

/* top_k and what follows. What comes back counts in block 0 only. top, best: of all logits. */
__device__ uint32_t pick_token(row_work &w, float top, uint32_t best)
{
    const step_sampling &p = w.p;

    if (!(p.temperature >= SAMPLE_TEMPERATURE_MIN)) return best;
    if (p.top_k && p.top_k <= SHORT_LIST_MAX && gather_short(w, p.top_k)) {
        if (w.block) return best;
        pick_sort(w.sh.listed, w.sh.pick);
        return pick_draw(p, (uint64_t)w.a.state->row[w.row].position + 1, w.sh.listed, w.sh.pick);
    }
    const float scaled = __fdiv_rn(top, p.temperature);

    keep_top_k(w);
    if (p.top_p > 0.0f && p.top_p < 1.0f) keep_top_p(w, scaled);
    return draw(w, scaled);
}

__global__ void __cluster_dims__(GENERAL_BLOCKS) __launch_bounds__(GENERAL_THREADS) sample_general_kernel(const __grid_constant__ sample_args a)
{
    extern __shared__ __align__(16) uint8_t bytes[];
    const uint32_t row = blockIdx.x / GENERAL_BLOCKS, turns = (a.vocab + TURN_TOKENS - 1) / TURN_TOKENS;
    general_shared &sh = *(general_shared *)(bytes + (uint64_t)turns * GENERAL_THREADS * sizeof(float4));
    const step_sampling p = a.state->sampling[row];
    row_work w = { a, p, a.logits + (uint64_t)row * a.vocab, (float4 *)bytes, sh, turns, blockIdx.x % GENERAL_BLOCKS, row, 0, 0, 0 };
    uint32_t listed = 0;
    double total = 0.0;

    if (row >= a.state->rows || !sample_is_general(&p)) return;      /* the whole cluster */
    w.seq = a.state->group[a.state->row[row].group].seq;
    if (p.want_logprobs) {
        total = take_logprobs(w);
        if (w.block == 0) listed = store_list(w, total);
    }
    load_changed(w);
    const general_best best = best_cell(w);
    const uint32_t key = (uint32_t)best.key;
    const bool bad = key >= sample_ordered(CUDART_INF_F) || key <= sample_ordered(-CUDART_INF_F);
    const uint32_t token = bad ? 0 : pick_token(w, __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key), best.token);

    if (w.block == 0 && threadIdx.x == 0) {
        const float logit = bad ? 0.0f : __ldcg(w.logits + token);

        sample_store(a, row, bad, token, logit, p.want_logprobs && !bad ? (float)((double)logit - total) : 0.0f, listed);
        sample_finish(a, a.state->general_rows, true);
    }
    cg::this_cluster().sync();        /* nobody leaves while a peer may read its shared memory */
}

static uint32_t shared_bytes(uint32_t vocab)
{
    return (vocab + TURN_TOKENS - 1) / TURN_TOKENS * GENERAL_THREADS * (uint32_t)sizeof(float4) + (uint32_t)sizeof(struct general_shared);
}

int sample_general_init(uint32_t vocab)
{
    if (vocab > SAMPLE_VOCAB_MAX) return -E_RANGE;
    return launch_prepare((const void *)sample_general_kernel, shared_bytes(vocab));
}

int sample_general_launch(const struct sample_args *args, uint32_t rows, void *stream)
{
    sample_args a = *args;
    void *params[] = { &a };

    if (a.vocab == 0 || a.vocab % 16 || a.vocab > SAMPLE_VOCAB_MAX || a.suppress_count > SAMPLE_SUPPRESS_MAX) return -E_RANGE;
    if (rows == 0 || rows > STEP_ROWS_MAX || !a.bias || !a.history) return -E_RANGE;
    return launch_first((const void *)sample_general_kernel, rows * GENERAL_BLOCKS, GENERAL_THREADS, shared_bytes(a.vocab), params, stream);
}
