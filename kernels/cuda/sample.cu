/* kernels/cuda/sample.cu - picking tokens on the device (contract in sample.h). */
#include "sample.h"
#include "device.cuh"
#include "launch.h"
#include "shm/error.h"
#include <math_constants.h>

#define SAMPLE_THREADS 1024
#define TILE_TOKENS 16
#define TILES_PER_THREAD 16           /* 1024 threads x 16 tiles x 16 tokens = 2^18 */
#define CANDIDATES_MAX (SAMPLE_TOP_K_MAX * TILE_TOKENS)

struct candidate { float logit; uint32_t token; };

struct sample_shared {
    candidate list[CANDIDATES_MAX];
    float mass[CANDIDATES_MAX];
    uint32_t tile[SAMPLE_TOP_K_MAX];
    uint32_t count[32], ties[32], tiles;
    float best[32];
    uint32_t best_token[32], kept;
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

__device__ __forceinline__ uint32_t block_sum(uint32_t x, sample_shared &sh)
{
    const uint32_t part = __reduce_add_sync(0xffffffffu, x);

    __syncthreads();
    if (threadIdx.x % 32 == 0) sh.count[threadIdx.x / 32] = part;
    __syncthreads();
    return __reduce_add_sync(0xffffffffu, sh.count[threadIdx.x % 32]);
}

/* Largest value, the lowest token among equals; the same in every thread. */
__device__ void block_best(float &value, uint32_t &token, sample_shared &sh)
{
    for (int round = 0; round < 2; round++) {
        for (int d = 16; d; d >>= 1) {
            const float v = __shfl_xor_sync(0xffffffffu, value, d);
            const uint32_t t = __shfl_xor_sync(0xffffffffu, token, d);

            if (better(v, t, value, token)) value = v, token = t;
        }
        if (round == 1) return;
        __syncthreads();
        if (threadIdx.x % 32 == 0) sh.best[threadIdx.x / 32] = value, sh.best_token[threadIdx.x / 32] = token;
        __syncthreads();
        value = sh.best[threadIdx.x % 32], token = sh.best_token[threadIdx.x % 32];
    }
}

/* The `wanted` best tiles, equal ones by index: bisection over the bits of the ordered value, then ties in index order.
 * A thread owns 16 consecutive tiles, so the order of threads is the order of tiles. */
__device__ void choose_tiles(const float *tile_top, uint32_t tiles, uint32_t wanted, sample_shared &sh)
{
    uint32_t key[TILES_PER_THREAD], threshold = 0, above = 0, equal = 0;
    const uint32_t first = threadIdx.x * TILES_PER_THREAD, warp = threadIdx.x / 32, lane = threadIdx.x % 32;

#pragma unroll
    for (int i = 0; i < TILES_PER_THREAD; i++) key[i] = first + i < tiles ? ordered(__ldcg(tile_top + first + i)) : 0;
    for (int bit = 31; bit >= 0; bit--) {
        const uint32_t probe = threshold | 1u << bit;
        uint32_t n = 0;

#pragma unroll
        for (int i = 0; i < TILES_PER_THREAD; i++) n += key[i] >= probe;
        if (block_sum(n, sh) >= wanted) threshold = probe;
    }
#pragma unroll
    for (int i = 0; i < TILES_PER_THREAD; i++) above += key[i] > threshold, equal += key[i] == threshold;

    const uint32_t all_above = block_sum(above, sh);
    uint32_t a = above, e = equal;                      /* inclusive scans over the warp, then over the warps */

    for (int d = 1; d < 32; d <<= 1) {
        const uint32_t x = __shfl_up_sync(0xffffffffu, a, d), y = __shfl_up_sync(0xffffffffu, e, d);

        if (lane >= (uint32_t)d) a += x, e += y;
    }
    __syncthreads();
    if (lane == 31) sh.count[warp] = a, sh.ties[warp] = e;
    __syncthreads();
    for (uint32_t w = 0; w < warp; w++) a += sh.count[w], e += sh.ties[w];
    a -= above, e -= equal;
#pragma unroll
    for (int i = 0; i < TILES_PER_THREAD; i++) {
        if (key[i] > threshold) sh.tile[a++] = first + i;
        else if (key[i] == threshold && all_above + e++ < wanted) sh.tile[all_above + e - 1] = first + i;
    }
    __syncthreads();
}

/* Bitonic sort of the candidates, best first. */
__device__ void sort_candidates(sample_shared &sh)
{
    const uint32_t i = threadIdx.x;

    for (uint32_t size = 2; size <= CANDIDATES_MAX; size <<= 1)
        for (uint32_t step = size >> 1; step; step >>= 1) {
            const uint32_t j = i ^ step;

            __syncthreads();
            if (j > i) {
                const candidate x = sh.list[i], y = sh.list[j];
                const bool descending = (i & size) == 0;

                if (better(y.logit, y.token, x.logit, x.token) == descending) sh.list[i] = y, sh.list[j] = x;
            }
        }
    __syncthreads();
}

__device__ __forceinline__ uint32_t philox_first(uint64_t seed, uint64_t position, uint32_t token)
{
    uint32_t c0 = (uint32_t)position, c1 = (uint32_t)(position >> 32), c2 = token, c3 = 0, k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);

#pragma unroll
    for (int i = 0; i < 10; i++) {
        const uint32_t h0 = __umulhi(0xD2511F53u, c0), l0 = 0xD2511F53u * c0, h1 = __umulhi(0xCD9E8D57u, c2), l1 = 0xCD9E8D57u * c2;

        c0 = h1 ^ c1 ^ k0, c1 = l1, c2 = h0 ^ c3 ^ k1, c3 = l0;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    return c0;
}

/* Gumbel noise of a token at the position that it would get. */
__device__ __forceinline__ float gumbel(const step_sampling &p, uint64_t position, uint32_t token)
{
    const float u = ((float)(philox_first(p.seed, position, token) >> 8) + 0.5f) * 5.9604645e-8f;      /* 24 bits: strictly inside (0, 1) */

    return -logf(-logf(u));
}

/* How many of the sorted candidates are left after top_k, top_p and min_p. One thread: at most a few hundred steps. */
__device__ uint32_t keep(const step_sampling &p, sample_shared &sh, uint32_t n)
{
    float total = 0.0f, before = 0.0f;
    uint32_t kept = p.top_k < n ? p.top_k : n;

    while (kept < n && sh.list[kept].logit == sh.list[kept - 1].logit) kept++;
    while (kept > 1 && sh.list[kept - 1].logit == -CUDART_INF_F) kept--;
    if (p.top_p > 0.0f && p.top_p < 1.0f) {
        for (uint32_t i = 0; i < kept; i++) total += sh.mass[i];
        uint32_t i = 0;

        while (i < kept && (i == 0 || before < p.top_p * total)) before += sh.mass[i++];
        kept = i;
    }
    if (p.min_p > 0.0f)
        while (kept > 1 && sh.mass[kept - 1] < p.min_p) kept--;      /* mass is relative to the best */
    return kept;
}

__device__ void pick_filtered(const sample_args &a, const step_sampling &p, uint64_t position, const float *logits, const float *tile_top,
                              float &logit, uint32_t &token, sample_shared &sh)
{
    const bool greedy = !(p.temperature > 0.0f);
    const uint32_t tiles = a.vocab / TILE_TOKENS;
    uint32_t wanted = greedy ? 1 : p.top_k;
    float value = -CUDART_INF_F;

    if (wanted > tiles) wanted = tiles;
    choose_tiles(tile_top, tiles, wanted, sh);
    const uint32_t n = wanted * TILE_TOKENS, i = threadIdx.x;
    candidate c = { -CUDART_INF_F, 0xffffffffu };

    if (i < n) {
        c.token = sh.tile[i / TILE_TOKENS] * TILE_TOKENS + i % TILE_TOKENS;
        c.logit = __ldcg(logits + c.token);
    }
    token = c.token;
    if (greedy) {
        logit = c.logit;
        block_best(logit, token, sh);
        return;
    }
    sh.list[i] = c;
    sort_candidates(sh);
    if (i < n) sh.mass[i] = expf((sh.list[i].logit - sh.list[0].logit) / p.temperature);
    __syncthreads();
    if (i == 0) sh.kept = keep(p, sh, n);
    __syncthreads();
    token = sh.list[i].token;
    if (i < sh.kept) value = sh.list[i].logit / p.temperature + gumbel(p, position, token);
    else token = 0xffffffffu;
    block_best(value, token, sh);
    logit = token < a.vocab ? __ldcg(logits + token) : -CUDART_INF_F;
}

/* top_k off: every token within min_p of the best competes. */
__device__ void pick_unfiltered(const sample_args &a, const step_sampling &p, uint64_t position, const float *logits, const float *tile_top,
                                float &logit, uint32_t &token, sample_shared &sh)
{
    float top = -CUDART_INF_F, value = -CUDART_INF_F;
    uint32_t none = 0;

    for (uint32_t i = threadIdx.x; i < a.vocab / TILE_TOKENS; i += SAMPLE_THREADS) top = fmaxf(top, __ldcg(tile_top + i));
    block_best(top, none, sh);
    const float floor_logit = p.min_p > 0.0f ? top + p.temperature * logf(p.min_p) : -CUDART_INF_F;

    token = 0xffffffffu;
    for (uint32_t i = threadIdx.x; i < a.vocab; i += SAMPLE_THREADS) {
        const float x = __ldcg(logits + i);

        if (x == -CUDART_INF_F || x < floor_logit) continue;
        const float v = x / p.temperature + gumbel(p, position, i);
        if (better(v, i, value, token)) value = v, token = i;
    }
    block_best(value, token, sh);
    logit = token < a.vocab ? __ldcg(logits + token) : -CUDART_INF_F;
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

        if (p.temperature > 0.0f && p.top_k == 0) pick_unfiltered(a, p, position, logits, tile_top, logit, token, sh);
        else pick_filtered(a, p, position, logits, tile_top, logit, token, sh);
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
