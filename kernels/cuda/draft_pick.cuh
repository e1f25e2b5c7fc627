/* kernels/cuda/draft_pick.cuh - choosing the token of a sampled row in draft_round.cu: 256 threads of one block.
 *
 * The order and the noise of model/sampler.c (top_k, top_p, min_p, then the largest of logit / temperature + Gumbel noise of seed, position and token), so that
 * drafter and target draw alike. Advice only: top_k beyond 64 or off counts as 64, ties beyond PICK_ROOM are dropped, masses are added in f32. */
#ifndef SLUICE_CUDA_DRAFT_PICK_CUH
#define SLUICE_CUDA_DRAFT_PICK_CUH

#include "draft_block.cuh"
#include "sample_common.cuh"

#define PICK_ROOM 512u
#define PICK_TOP_K 64u
#define PICK_BITS_LEFT 10             /* of a float's order that the bound leaves at 0: some more candidates, fewer rounds */
#define PICK_TILES 64                 /* of a thread: 256 x 64 x 16 tokens at most */

/* The token of a row of the output table. */
__device__ __forceinline__ uint32_t draft_token(const draft_round_args &a, uint32_t row) { return a.choice ? __ldg(a.choice + row) : row; }

/* The largest logit of each of a thread's tiles: number i is tile i * 256 + thread. */
typedef float draft_tops[PICK_TILES];

/* Notes every logit that reaches the bound; how many there are. Its loop is short on purpose: 64 copies of its body would be fetched for a few hits. */
__device__ __forceinline__ uint32_t draft_gather(draft_shared *sh, const float *logits, const draft_tops &top, uint32_t bound)
{
    auto &p = sh->u.pick;
    uint64_t hits = 0;

    if (threadIdx.x == 0) p.count = 0;
    compute_sync();
#pragma unroll
    for (int i = 0; i < PICK_TILES; i++) hits |= (uint64_t)(sample_ordered(top[i]) >= bound) << i;
#pragma unroll 1
    for (; hits; hits &= hits - 1) {
        const uint32_t tile = (__ffsll((long long)hits) - 1) * DRAFT_COMPUTE + threadIdx.x;
        float4 v[TILE_ROWS / 4];

#pragma unroll
        for (uint32_t j = 0; j < TILE_ROWS / 4; j++) v[j] = ld_l2((const float4 *)(logits + tile * TILE_ROWS) + j);
#pragma unroll
        for (uint32_t j = 0; j < TILE_ROWS; j++) {
            const float x = j % 4 == 0 ? v[j / 4].x : j % 4 == 1 ? v[j / 4].y : j % 4 == 2 ? v[j / 4].z : v[j / 4].w;

            if (sample_ordered(x) < bound) continue;
            const uint32_t at = atomicAdd(&p.count, 1);
            if (at < PICK_ROOM) p.key[at] = (uint64_t)sample_ordered(x) << 32 | (uint32_t)~(tile * TILE_ROWS + j);
        }
    }
    compute_sync();
    const uint32_t n = min(p.count, PICK_ROOM);
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

    for (uint32_t i = threadIdx.x; i < n; i += DRAFT_COMPUTE) {
        const uint64_t own = p.key[i];
        uint32_t rank = 0;

#pragma unroll 8
        for (uint32_t j = 0; j < n; j++) rank += p.key[j] > own;
        p.sorted[rank] = key_logit(own), p.sorted_token[rank] = ~(uint32_t)own;
    }
    compute_sync();
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
__device__ __forceinline__ uint32_t draft_pick(const draft_round_args &a, draft_shared *sh, uint32_t row, uint64_t position)
{
    const cuda_draft_question &q = a.question[row];
    const float *logits = a.logits + (uint64_t)row * a.head_rows, *tops = a.tile_top + (uint64_t)row * (a.head_rows / TILE_ROWS);
    const uint32_t wanted = q.top_k && q.top_k < PICK_TOP_K ? q.top_k : PICK_TOP_K;
    auto &p = sh->u.pick;
    float own = DRAFT_NEVER;
    draft_tops top;
    uint32_t bound = 0, token = 0;
    double best = -CUDART_INF;

#pragma unroll
    for (int i = 0; i < PICK_TILES; i++) {
        const uint32_t tile = i * DRAFT_COMPUTE + threadIdx.x;

        top[i] = tile < a.head_rows / TILE_ROWS ? __ldcg(tops + tile) : -CUDART_INF_F;
    }
#pragma unroll
    for (int i = 0; i < PICK_TILES; i++) own = fmaxf(own, top[i]);
#pragma unroll 1
    for (int bit = 31; bit >= PICK_BITS_LEFT; bit--) {          /* close below the wanted-th largest of the threads' tops: at least so many logits reach it */
        const uint32_t probe = bound | 1u << bit;

        if (compute_count(sample_ordered(own) >= probe) >= wanted) bound = probe;
    }
    const uint32_t n = draft_gather(sh, logits, top, bound);

    draft_sort(sh, n, q.temperature);
    const uint32_t kept = draft_kept(sh, q, n);
    for (uint32_t i = threadIdx.x; i < kept; i += DRAFT_COMPUTE) {
        const uint32_t own_token = p.sorted_token[i], id = draft_token(a, own_token);
        const uint4 words = sample_philox(q.seed, position, id / 4);
        const double noisy = (double)(p.sorted[i] / q.temperature) + sample_gumbel(sample_above(sample_word(words, id % 4)));

        if (noisy > best || (noisy == best && own_token < token)) best = noisy, token = own_token;
    }
    for (int d = 16; d; d >>= 1) {
        const double v = __shfl_xor_sync(0xffffffffu, best, d);
        const uint32_t other = __shfl_xor_sync(0xffffffffu, token, d);

        if (v > best || (v == best && other < token)) best = v, token = other;
    }
    if (threadIdx.x % 32 == 0) p.noisy[threadIdx.x / 32] = best, p.best[threadIdx.x / 32] = token;
    compute_sync();
    for (int w = 0; w < DRAFT_WARPS; w++)
        if (p.noisy[w] > best || (p.noisy[w] == best && p.best[w] < token)) best = p.noisy[w], token = p.best[w];
    compute_sync();
    return token;
}

#endif
