/* kernels/cuda/sample_pick.cuh - one block of 1024 threads picks a token from a short list of candidates (used by both sampling kernels).
 *
 * The list must hold everything that top_k leaves; its order does not matter, for it is sorted first. */
#ifndef SLUICE_CUDA_SAMPLE_PICK_CUH
#define SLUICE_CUDA_SAMPLE_PICK_CUH

#include "sample_common.cuh"

#define PICK_THREADS 1024
#define PICK_MAX 1024                 /* candidates */

struct pick_candidate { float logit; uint32_t token; };

struct pick_shared {
    pick_candidate found[PICK_MAX], sorted[PICK_MAX];
    float mass[PICK_MAX];       /* exp of the distance to the best */
    float best[32];
    double noisy[32];
    uint32_t best_token[32], count;
};

__device__ __forceinline__ bool pick_better(float a, uint32_t a_token, float b, uint32_t b_token)
{
    return a > b || (a == b && a_token < b_token);
}

/* Largest value, the lowest token among equals; the same in every thread. */
template <typename T>
__device__ __forceinline__ void pick_best(T &value, uint32_t &token, T *values, pick_shared &sh)
{
    for (int round = 0; round < 2; round++) {
        for (int d = 16; d; d >>= 1) {
            const T v = __shfl_xor_sync(0xffffffffu, value, d);
            const uint32_t t = __shfl_xor_sync(0xffffffffu, token, d);

            if (v > value || (v == value && t < token)) value = v, token = t;
        }
        if (round == 1) return;
        __syncthreads();
        if (threadIdx.x % 32 == 0) values[threadIdx.x / 32] = value, sh.best_token[threadIdx.x / 32] = token;
        __syncthreads();
        value = values[threadIdx.x % 32], token = sh.best_token[threadIdx.x % 32];
    }
}

/* A bound that at least `wanted` logits reach and hardly more: the wanted-th largest of the threads' own keys. */
__device__ __forceinline__ uint32_t pick_bound(uint32_t key, uint32_t wanted)
{
    uint32_t bound = 0;

    for (int bit = 31; bit >= 0; bit--) {
        const uint32_t probe = bound | 1u << bit;

        if (__syncthreads_count(key >= probe) >= (int)wanted) bound = probe;
    }
    return bound;
}

/* logit / temperature + noise. */
__device__ __forceinline__ double pick_noisy(const step_sampling &p, uint64_t position, float logit, uint32_t token)
{
    const uint4 words = sample_philox(p.seed, position, token / 4);

    return (double)(logit / p.temperature) + sample_gumbel(sample_above(sample_word(words, token % 4)));
}

/* Which of the n sorted candidates are left after top_k, top_p and min_p: all conditions hold for a front part of the list. */
__device__ __forceinline__ bool pick_keeps(const step_sampling &p, const pick_shared &sh, uint32_t n, uint32_t i)
{
    uint32_t kept = p.top_k;

    if (i >= n) return false;
    if (kept > n) kept = n;
    while (kept < n && sh.sorted[kept].logit == sh.sorted[p.top_k - 1].logit) kept++;
    if (i >= kept) return false;
    if (p.min_p > 0.0f && sh.mass[i] < p.min_p) return false;
    if (!(p.top_p > 0.0f && p.top_p < 1.0f)) return true;
    double total = 0.0, before = 0.0;

    for (uint32_t j = 0; j < kept; j++) {
        total += (double)sh.mass[j];
        if (j < i) before = total;
    }
    return i == 0 || before < (double)p.top_p * total;
}

/* sorted: the first n of found, largest logit first, equal ones by id. */
__device__ __forceinline__ void pick_sort(uint32_t n, pick_shared &sh)
{
    const uint32_t i = threadIdx.x;

    if (i < n) {
        const pick_candidate own = sh.found[i];
        uint32_t rank = 0;

        for (uint32_t j = 0; j < n; j++) rank += pick_better(sh.found[j].logit, sh.found[j].token, own.logit, own.token);
        sh.sorted[rank] = own;
    }
    __syncthreads();
}

/* The token that top_k, top_p, min_p and the noise leave of the sorted list; 0xffffffff when n is 0. */
__device__ __forceinline__ uint32_t pick_draw(const step_sampling &p, uint64_t position, uint32_t n, pick_shared &sh)
{
    const uint32_t i = threadIdx.x;
    uint32_t token = 0xffffffffu;
    double value = -CUDART_INF;

    if (i < n) sh.mass[i] = sample_exp(sh.sorted[i].logit / p.temperature - sh.sorted[0].logit / p.temperature);
    __syncthreads();
    if (pick_keeps(p, sh, n, i)) token = sh.sorted[i].token, value = pick_noisy(p, position, sh.sorted[i].logit, token);
    pick_best(value, token, sh.noisy, sh);
    return token;
}

#endif
