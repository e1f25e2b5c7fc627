/* kernels/cuda/sample.cu - picking tokens on the device (contract in sample.h). */
#include "sample.h"
#include "device.cuh"
#include "launch.h"
#include "shm/error.h"
#include <math_constants.h>

#define SAMPLE_THREADS 1024
#define TILE_TOKENS 16
#define TILES_PER_THREAD 16           /* 1024 threads x 16 tiles x 16 tokens = 2^18 */
#define CANDIDATES_MAX 1024
#define TEMPERATURE_MIN 1e-5f         /* below it: greedy, as in model/sampler.c */
#define NOISE_DOMAIN 0x746f6b65u      /* fourth counter word, as in model/sampler.c */

struct candidate { float logit; uint32_t token; };

struct sample_shared {
    candidate found[CANDIDATES_MAX], sorted[CANDIDATES_MAX];
    float mass[CANDIDATES_MAX];       /* exp of the distance to the best */
    float best[32];
    double noisy[32];
    uint32_t best_token[32], count;
};

/* Larger float, larger integer; no NaN comes here. */
__device__ __forceinline__ uint32_t ordered(float x)
{
    const uint32_t bits = __float_as_uint(x);

    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ bool better(float a, uint32_t a_token, float b, uint32_t b_token)
{
    return a > b || (a == b && a_token < b_token);
}

/* Largest value, the lowest token among equals; the same in every thread. */
template <typename T>
__device__ void block_best(T &value, uint32_t &token, T *values, sample_shared &sh)
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

/* A bound that at least `wanted` logits reach and hardly more: the wanted-th largest of the 1024 threads' own maxima. */
__device__ uint32_t lower_bound_key(float own_top, uint32_t wanted)
{
    const uint32_t key = ordered(own_top);
    uint32_t bound = 0;

    for (int bit = 31; bit >= 0; bit--) {
        const uint32_t probe = bound | 1u << bit;

        if (__syncthreads_count(key >= probe) >= (int)wanted) bound = probe;
    }
    return bound;
}

/* Gathers every logit that reaches the bound, looking only into tiles whose largest does. False: more than there is room for (a flood of
 * equal logits). The order in `found` is arbitrary: sorting by (logit, token) follows. */
__device__ bool gather(const float *logits, const float (&top)[TILES_PER_THREAD], uint32_t bound, sample_shared &sh)
{
    if (threadIdx.x == 0) sh.count = 0;
    __syncthreads();
    for (int i = 0; i < TILES_PER_THREAD; i++) {
        const uint32_t tile = i * SAMPLE_THREADS + threadIdx.x;

        if (top[i] == -CUDART_INF_F || ordered(top[i]) < bound) continue;
        for (uint32_t j = 0; j < TILE_TOKENS; j++) {
            const float x = __ldcg(logits + tile * TILE_TOKENS + j);

            if (x == -CUDART_INF_F || ordered(x) < bound) continue;
            const uint32_t at = atomicAdd(&sh.count, 1);
            if (at < CANDIDATES_MAX) sh.found[at].logit = x, sh.found[at].token = tile * TILE_TOKENS + j;
        }
    }
    __syncthreads();
    return sh.count <= CANDIDATES_MAX;
}

__device__ uint32_t philox_word(uint64_t seed, uint64_t position, uint32_t token)
{
    uint32_t c0 = token / 4, c1 = (uint32_t)position, c2 = (uint32_t)(position >> 32), c3 = NOISE_DOMAIN, k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);

#pragma unroll
    for (int i = 0; i < 10; i++) {
        const uint32_t h0 = __umulhi(0xD2511F53u, c0), l0 = 0xD2511F53u * c0, h1 = __umulhi(0xCD9E8D57u, c2), l1 = 0xCD9E8D57u * c2;

        c0 = h1 ^ c1 ^ k0, c1 = l1, c2 = h0 ^ c3 ^ k1, c3 = l0;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    return token % 4 == 0 ? c0 : token % 4 == 1 ? c1 : token % 4 == 2 ? c2 : c3;
}

/* logit / temperature + Gumbel noise, in f64 as model/sampler.c does it, so that both pick the same token from the same logits. */
__device__ double noisy(const step_sampling &p, uint64_t position, float logit, uint32_t token)
{
    const double above = (4294967295.5 - (double)philox_word(p.seed, position, token)) * 0x1p-32;      /* 1 - u, exact */

    return (double)(logit / p.temperature) - log(-log1p(-above));
}

/* Which of the n sorted candidates are left after top_k, top_p and min_p: all conditions hold for a front part of the list. */
__device__ bool is_kept(const step_sampling &p, const sample_shared &sh, uint32_t n, uint32_t i)
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

__device__ void pick_filtered(const step_sampling &p, uint64_t position, const float *logits, const float (&top)[TILES_PER_THREAD], float own_top,
                              float &logit, uint32_t &token, bool greedy, sample_shared &sh)
{
    const uint32_t i = threadIdx.x, bound = lower_bound_key(own_top, greedy ? 1 : p.top_k);

    token = 0xffffffffu;
    logit = -CUDART_INF_F;
    if (!gather(logits, top, bound, sh)) sh.count = CANDIDATES_MAX;      /* see sample.h: ties beyond the room are dropped */
    const uint32_t n = sh.count;
    const candidate own = i < n ? sh.found[i] : candidate{ -CUDART_INF_F, 0xffffffffu };
    if (greedy) {
        logit = own.logit, token = own.token;
        block_best(logit, token, sh.best, sh);
        return;
    }
    if (i < n) {
        uint32_t rank = 0;

        for (uint32_t j = 0; j < n; j++) rank += better(sh.found[j].logit, sh.found[j].token, own.logit, own.token);
        sh.sorted[rank] = own;
    }
    __syncthreads();
    if (i < n) sh.mass[i] = expf(sh.sorted[i].logit / p.temperature - sh.sorted[0].logit / p.temperature);
    __syncthreads();
    double value = -CUDART_INF;
    if (is_kept(p, sh, n, i)) token = sh.sorted[i].token, value = noisy(p, position, sh.sorted[i].logit, token);
    block_best(value, token, sh.noisy, sh);
    if (token != 0xffffffffu) logit = __ldcg(logits + token);
}

/* top_k off: every token within min_p of the best competes. */
__device__ void pick_unfiltered(const sample_args &a, const step_sampling &p, uint64_t position, const float *logits, float own_top,
                                float &logit, uint32_t &token, sample_shared &sh)
{
    uint32_t none = 0;
    double value = -CUDART_INF;

    block_best(own_top, none, sh.best, sh);
    const float best = own_top / p.temperature;
    token = 0xffffffffu;
    logit = -CUDART_INF_F;
    for (uint32_t i = threadIdx.x; i < a.vocab; i += SAMPLE_THREADS) {
        const float x = __ldcg(logits + i);

        if (x == -CUDART_INF_F || (p.min_p > 0.0f && expf(x / p.temperature - best) < p.min_p)) continue;
        const double v = noisy(p, position, x, i);
        if (v > value || (v == value && i < token)) value = v, token = i;
    }
    block_best(value, token, sh.noisy, sh);
    if (token != 0xffffffffu) logit = __ldcg(logits + token);
}

/* The last row to finish publishes the step: tokens of all rows are in host memory before the flag. */
__device__ void publish(const sample_args &a, uint32_t row, bool live, float logit, uint32_t token)
{
    if (live) {
        const bool bad = token >= a.vocab || !(fabsf(logit) < CUDART_INF_F);

        a.last_token[row] = bad ? 0 : token;
        a.result->token[row] = bad ? 0 : token;
        a.result->logit[row] = logit;
        a.result->bad[row] = bad;
    }
    __threadfence_system();
    if (atomicAdd(a.done, 1) + 1 < gridDim.x) return;
    *a.done = 0;
    __threadfence_system();
    *(volatile uint64_t *)&a.result->step = a.state->step;
}

__global__ void __launch_bounds__(SAMPLE_THREADS) sample_kernel(const __grid_constant__ sample_args a)
{
    __shared__ sample_shared sh;
    const uint32_t row = blockIdx.x;
    float logit = 0.0f;
    uint32_t token = 0;

    chain_trigger();
    chain_wait();
    const bool live = row < a.state->rows;

    if (live) {
        const step_sampling p = a.state->sampling[row];
        const uint64_t position = (uint64_t)a.state->row[row].position + 1;
        const float *logits = a.logits + (uint64_t)row * a.vocab, *tile_top = a.tile_top + (uint64_t)row * (a.vocab / TILE_TOKENS);
        const bool greedy = !(p.temperature >= TEMPERATURE_MIN);
        float top[TILES_PER_THREAD], own_top = -CUDART_INF_F;

#pragma unroll
        for (int i = 0; i < TILES_PER_THREAD; i++) {
            const uint32_t tile = i * SAMPLE_THREADS + threadIdx.x;

            top[i] = tile < a.vocab / TILE_TOKENS ? __ldcg(tile_top + tile) : -CUDART_INF_F;
        }
#pragma unroll
        for (int i = 0; i < TILES_PER_THREAD; i++) own_top = fmaxf(own_top, top[i]);
        if (!greedy && p.top_k == 0) pick_unfiltered(a, p, position, logits, own_top, logit, token, sh);
        else pick_filtered(p, position, logits, top, own_top, logit, token, greedy, sh);
    }
    if (threadIdx.x == 0) publish(a, row, live, logit, token);
}

int sample_init(void) { return launch_prepare((const void *)sample_kernel, 0); }

int sample_launch(const struct sample_args *args, uint32_t rows, void *stream)
{
    sample_args a = *args;
    void *params[] = { &a };

    if (a.vocab == 0 || a.vocab % TILE_TOKENS || a.vocab > SAMPLE_THREADS * TILES_PER_THREAD * TILE_TOKENS) return -E_RANGE;
    if (rows == 0 || rows > STEP_ROWS_MAX) return -E_RANGE;
    return launch_chained((const void *)sample_kernel, rows, SAMPLE_THREADS, 0, params, stream);
}
