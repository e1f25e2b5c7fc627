/* kernels/cuda/draft_pick.cuh - choosing the tokens of sampled rows in draft_round.cu.
 *
 * Every block gathers the candidates among its own logits, behind a bound that all find in the blocks' largest ones; behind a barrier, a block sorts and draws.
 * The order and the noise of model/sampler.c (top_k, top_p, min_p, then the largest of logit / temperature + Gumbel noise of seed, position and token), so that
 * drafter and target draw alike. Advice only: top_k beyond 64 or off counts as 64, ties beyond PICK_ROOM are dropped, masses are added in f32. */
#ifndef SLUICE_CUDA_DRAFT_PICK_CUH
#define SLUICE_CUDA_DRAFT_PICK_CUH

#include "draft_block.cuh"
#include "sample_common.cuh"

#define PICK_ROOM DRAFT_FOUND_MAX
#define PICK_TOP_K 64u
#define PICK_BITS_LEFT 10             /* of a float's order that the bound leaves at 0: some more candidates, fewer rounds */

/* The token of a row of the output table. */
__device__ __forceinline__ uint32_t draft_token(const draft_round_args &a, uint32_t row) { return a.choice ? __ldg(a.choice + row) : row; }

/* Candidates of a sampled row that a bound must leave. */
__device__ __forceinline__ uint32_t pick_wanted(const cuda_draft_question &q) { return min(q.top_k && q.top_k < PICK_TOP_K ? q.top_k : PICK_TOP_K, gridDim.x); }

/* A bound that the largest logits of at least `wanted` blocks reach, and hardly more; of each lane some blocks' largest (sample_ordered; 0: no block's). One warp. */
__device__ __forceinline__ uint32_t pick_bound_of(const uint32_t (&top)[DRAFT_CHUNKS_MAX / 32], uint32_t wanted)
{
    uint32_t bound = 0;

#pragma unroll 1
    for (int bit = 31; bit >= PICK_BITS_LEFT; bit--) {
        const uint32_t probe = bound | 1u << bit;
        uint32_t n = 0;

#pragma unroll
        for (uint32_t i = 0; i < DRAFT_CHUNKS_MAX / 32; i++) n += __popc(__ballot_sync(0xffffffffu, top[i] >= probe));
        if (n >= wanted) bound = probe;
    }
    return bound;
}

/* Every block leaves those of its own logits that reach their row's bound (sh->bound) where all can read them: a tile's logits are looked at only if its largest does. */
__device__ __forceinline__ void pick_gather(const draft_round_args &a, const draft_shared *sh, uint32_t step)
{
    const uint32_t tiles = a.head_rows / TILE_ROWS, own = (tiles + gridDim.x - 1) / gridDim.x;

#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < a.rows * own; i += DRAFT_COMPUTE) {
        const uint32_t row = i / own, tile = i % own * gridDim.x + blockIdx.x, bound = sh->bound[row];

        if (bound == 0 || tile >= tiles || sample_ordered(__ldcg(a.tile_top + (uint64_t)row * tiles + tile)) < bound) continue;
        float4 v[TILE_ROWS / 4];

#pragma unroll
        for (uint32_t j = 0; j < TILE_ROWS / 4; j++) v[j] = ld_l2((const float4 *)(a.logits + (uint64_t)row * a.head_rows + tile * TILE_ROWS) + j);
#pragma unroll
        for (uint32_t j = 0; j < TILE_ROWS; j++) {
            const uint32_t x = sample_ordered(j % 4 == 0 ? v[j / 4].x : j % 4 == 1 ? v[j / 4].y : j % 4 == 2 ? v[j / 4].z : v[j / 4].w);

            if (x < bound) continue;
            const uint32_t at = atomicAdd(&a.control->found[step & 1][row], 1);
            if (at < PICK_ROOM) a.found[row * PICK_ROOM + at] = (uint64_t)x << 32 | (uint32_t)~(tile * TILE_ROWS + j);
        }
    }
}

/* A row's candidates, in no order; how many there are. */
__device__ __forceinline__ uint32_t pick_take(const draft_round_args &a, draft_shared *sh, uint32_t row, uint32_t step)
{
    const uint32_t n = min(__ldcg(&a.control->found[step & 1][row]), PICK_ROOM);

    for (uint32_t i = threadIdx.x; i < n; i += DRAFT_COMPUTE) sh->u.pick.key[i] = __ldcg((const unsigned long long *)a.found + row * PICK_ROOM + i);
    compute_sync();
    return n;
}

__device__ __forceinline__ float key_logit(uint64_t key)
{
    const uint32_t ordered = (uint32_t)(key >> 32);

    return __uint_as_float(ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered);
}

/* Sorts the candidates by logit, equal ones by token, and notes their masses. */
__device__ __forceinline__ void draft_sort(draft_shared *sh, uint32_t n, float temperature)
{
    auto &p = sh->u.pick;

#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < n; i += DRAFT_COMPUTE) {
        const uint64_t own = p.key[i];
        uint32_t rank = 0;

#pragma unroll 8
        for (uint32_t j = 0; j < n; j++) rank += p.key[j] > own;
        p.sorted[rank] = key_logit(own), p.sorted_token[rank] = ~(uint32_t)own;
    }
    compute_sync();
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < n; i += DRAFT_COMPUTE) p.mass[i] = sample_exp(p.sorted[i] / temperature - p.sorted[0] / temperature);
    compute_sync();
}

/* Candidates left by top_k (ties kept), top_p and min_p: the first so many. The same in all threads; masses behind the n-th are 0. */
__device__ __forceinline__ uint32_t draft_kept(const draft_shared *sh, const cuda_draft_question &q, uint32_t n)
{
    const auto &p = sh->u.pick;
    uint32_t kept = min(q.top_k && q.top_k < PICK_TOP_K ? q.top_k : PICK_TOP_K, n), left = 0;
    float total = 0.0f, before = 0.0f;

    while (kept < n && p.sorted[kept] == p.sorted[kept - 1]) kept++;
    for (uint32_t i = 0; i < kept; i += 16)
#pragma unroll
        for (uint32_t j = 0; j < 16; j++) total += i + j < kept ? p.mass[i + j] : 0.0f;
    const float reach = q.top_p > 0.0f && q.top_p < 1.0f ? q.top_p * total : CUDART_INF_F;

    for (uint32_t i = 0; i < kept; i += 16)
#pragma unroll
        for (uint32_t j = 0; j < 16; j++) { /* each holds for a front part of the list */
            const float mass = i + j < kept ? p.mass[i + j] : -1.0f;

            left += mass >= q.min_p && (before < reach || i + j == 0);
            before += mass;
        }
    return max(left, 1u);
}

/* The row of the output table that row `row` takes, whose successor stands at `position`; all threads that compute call it. */
__device__ __forceinline__ draft_picked draft_pick(const draft_round_args &a, draft_shared *sh, uint32_t row, uint32_t step)
{
    const cuda_draft_question &q = a.question[row];
    const uint64_t position = (uint64_t)sh->position[row] + step + 1;
    const uint32_t n = pick_take(a, sh, row, step);
    auto &p = sh->u.pick;
    uint32_t token = 0xffffffffu, place = 0;
    double best = -CUDART_INF;

    draft_sort(sh, n, q.temperature);
    const uint32_t kept = draft_kept(sh, q, n);
#pragma unroll 1
    for (uint32_t i = threadIdx.x; i < kept; i += DRAFT_COMPUTE) {
        const uint32_t own_token = p.sorted_token[i], id = draft_token(a, own_token);
        const uint4 words = sample_philox(q.seed, position, id / 4);
        const double noisy = (double)(p.sorted[i] / q.temperature) + sample_gumbel(sample_above(sample_word(words, id % 4)));

        if (noisy > best || (noisy == best && own_token < token)) best = noisy, token = own_token, place = i;
    }
#pragma unroll 1
    for (int d = 16; d; d >>= 1) {
        const double v = __shfl_xor_sync(0xffffffffu, best, d);
        const uint32_t other = __shfl_xor_sync(0xffffffffu, token, d), others = __shfl_xor_sync(0xffffffffu, place, d);

        if (v > best || (v == best && other < token)) best = v, token = other, place = others;
    }
    if (threadIdx.x % 32 == 0) p.noisy[threadIdx.x / 32] = best, p.best[threadIdx.x / 32] = place;
    compute_sync();
    best = p.noisy[0], place = p.best[0];
#pragma unroll 1
    for (int w = 1; w < DRAFT_WARPS; w++)
        if (p.noisy[w] > best || (p.noisy[w] == best && p.sorted_token[p.best[w]] < p.sorted_token[place])) best = p.noisy[w], place = p.best[w];
    const draft_picked picked = { p.sorted_token[place], p.sorted[place] };

    compute_sync();                   /* the scratch is another's */
    return picked;
}

#endif
