/* kernels/cuda/sample.cu - picking the tokens of plain rows on the device (contract in sample.h). */
#include "sample.h"
#include "device.cuh"
#include "launch.h"
#include "sample_common.cuh"
#include "shm/error.h"

#define SAMPLE_THREADS 1024
#define TILE_TOKENS 16
#define TILES_PER_THREAD 17           /* 1024 threads x 17 tiles x 16 tokens = SAMPLE_VOCAB_MAX */
#define CANDIDATES_MAX 1024

struct candidate { float logit; uint32_t token; };

struct sample_shared {
    candidate found[CANDIDATES_MAX], sorted[CANDIDATES_MAX];
    float mass[CANDIDATES_MAX];       /* exp of the distance to the best */
    float best[32];
    double noisy[32];
    uint32_t best_token[32], count;
};

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
    const uint32_t key = sample_ordered(own_top);
    uint32_t bound = 0;

    for (int bit = 31; bit >= 0; bit--) {
        const uint32_t probe = bound | 1u << bit;

        if (__syncthreads_count(key >= probe) >= (int)wanted) bound = probe;
    }
    return bound;
}

/* A tile's logits, all loads at once; suppressed tokens at -inf. */
__device__ __forceinline__ void load_tile(float (&x)[TILE_TOKENS], const sample_args &a, const float *logits, uint32_t tile)
{
#pragma unroll
    for (int j = 0; j < TILE_TOKENS; j += 4) {
        const float4 v = __ldcg((const float4 *)(logits + tile * TILE_TOKENS + j));

        x[j] = v.x, x[j + 1] = v.y, x[j + 2] = v.z, x[j + 3] = v.w;
    }
    for (uint32_t i = 0; i < a.suppress_count; i++)
#pragma unroll
        for (int j = 0; j < TILE_TOKENS; j++)
            if (tile * TILE_TOKENS + j == a.suppress[i]) x[j] = -CUDART_INF_F;
}

/* The tile's largest without suppressed tokens: the product's own maximum may be one of them. */
__device__ float allowed_top(const sample_args &a, const float *logits, uint32_t tile)
{
    float x[TILE_TOKENS], top = -CUDART_INF_F;

    load_tile(x, a, logits, tile);
#pragma unroll
    for (int j = 0; j < TILE_TOKENS; j++) top = fmaxf(top, x[j]);
    return top;
}

/* Largest logit of each of this thread's tiles. */
__device__ void load_tops(float (&top)[TILES_PER_THREAD], const sample_args &a, const float *logits, const float *tile_top)
{
#pragma unroll
    for (int i = 0; i < TILES_PER_THREAD; i++) {
        const uint32_t tile = i * SAMPLE_THREADS + threadIdx.x;

        top[i] = tile < a.vocab / TILE_TOKENS ? __ldcg(tile_top + tile) : -CUDART_INF_F;
    }
    for (uint32_t j = 0; j < a.suppress_count; j++) {
        const uint32_t tile = a.suppress[j] / TILE_TOKENS;

        if (tile % SAMPLE_THREADS != threadIdx.x || tile >= a.vocab / TILE_TOKENS) continue;
        const float allowed = allowed_top(a, logits, tile);
#pragma unroll
        for (int i = 0; i < TILES_PER_THREAD; i++)
            if (tile / SAMPLE_THREADS == (uint32_t)i) top[i] = allowed;
    }
}

/* Gathers every logit that reaches the bound, looking only into tiles whose largest does; returns how many there are, also beyond the room.
 * The order in `found` is arbitrary: sorting by (logit, token) follows. */
__device__ uint32_t gather(const sample_args &a, const float *logits, const float (&top)[TILES_PER_THREAD], uint32_t bound, sample_shared &sh)
{
    __syncthreads();
    if (threadIdx.x == 0) sh.count = 0;
    __syncthreads();
    for (int i = 0; i < TILES_PER_THREAD; i++) {
        const uint32_t tile = i * SAMPLE_THREADS + threadIdx.x;

        if (top[i] == -CUDART_INF_F || sample_ordered(top[i]) < bound) continue;
        float x[TILE_TOKENS];

        load_tile(x, a, logits, tile);
#pragma unroll
        for (int j = 0; j < TILE_TOKENS; j++) {
            if (!(x[j] > -CUDART_INF_F) || sample_ordered(x[j]) < bound) continue;
            const uint32_t at = atomicAdd(&sh.count, 1);
            if (at < CANDIDATES_MAX) sh.found[at].logit = x[j], sh.found[at].token = tile * TILE_TOKENS + j;
        }
    }
    __syncthreads();
    return sh.count;
}

/* logit / temperature + noise. */
__device__ double noisy(const step_sampling &p, uint64_t position, float logit, uint32_t token)
{
    const uint4 words = sample_philox(p.seed, position, token / 4);

    return (double)(logit / p.temperature) + sample_gumbel(sample_above(sample_word(words, token % 4)));
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

/* Candidates of a bound that hardly more than `wanted` logits reach: raises it while there are more than there is room for. */
__device__ uint32_t find_candidates(const sample_args &a, const float *logits, const float (&top)[TILES_PER_THREAD], float own_top, uint32_t wanted, sample_shared &sh)
{
    uint32_t low = lower_bound_key(own_top, wanted), high = 0xff800000u, n = gather(a, logits, top, low, sh);

    /* Some threads' tiles hold many of the best: halve until at least `wanted` and at most the room reach it. */
    while (n > CANDIDATES_MAX && high - low > 1) {
        const uint32_t middle = low + (high - low) / 2, reached = gather(a, logits, top, middle, sh);

        if (reached >= wanted) low = middle, n = reached;
        else high = middle;
    }
    if (sh.count != n) n = gather(a, logits, top, low, sh);
    return n < CANDIDATES_MAX ? n : CANDIDATES_MAX;      /* see sample.h: ties beyond the room are dropped */
}

__device__ void pick_filtered(const sample_args &a, const step_sampling &p, uint64_t position, const float *logits, const float (&top)[TILES_PER_THREAD],
                              float own_top, float &logit, uint32_t &token, bool greedy, sample_shared &sh)
{
    const uint32_t i = threadIdx.x, n = find_candidates(a, logits, top, own_top, greedy ? 1 : p.top_k, sh);
    const candidate own = i < n ? sh.found[i] : candidate{ -CUDART_INF_F, 0xffffffffu };

    token = 0xffffffffu;
    logit = -CUDART_INF_F;
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
    if (i < n) sh.mass[i] = sample_exp(sh.sorted[i].logit / p.temperature - sh.sorted[0].logit / p.temperature);
    __syncthreads();
    double value = -CUDART_INF;
    if (is_kept(p, sh, n, i)) token = sh.sorted[i].token, value = noisy(p, position, sh.sorted[i].logit, token);
    block_best(value, token, sh.noisy, sh);
    if (token != 0xffffffffu) logit = __ldcg(logits + token);
}

__global__ void __launch_bounds__(SAMPLE_THREADS) sample_kernel(const __grid_constant__ sample_args a)
{
    __shared__ sample_shared sh;
    const uint32_t row = blockIdx.x;

    chain_trigger();
    chain_wait();
    const bool live = row < a.state->rows;
    const step_sampling p = a.state->sampling[live ? row : 0];
    const bool plain = live && !sample_is_general(&p);

    if (live && a.history && threadIdx.x == 0) {
        const step_row own = a.state->row[row];

        a.history[(uint64_t)a.state->group[own.group].seq * a.history_stride + own.position] = own.token == STEP_TOKEN_LAST ? a.last_token[row] : own.token;
    }
    if (plain) {
        const uint64_t position = (uint64_t)a.state->row[row].position + 1;
        const float *logits = a.logits + (uint64_t)row * a.vocab;
        const bool greedy = !(p.temperature >= SAMPLE_TEMPERATURE_MIN);
        float top[TILES_PER_THREAD], own_top = -CUDART_INF_F, logit;
        uint32_t token;

        load_tops(top, a, logits, a.tile_top + (uint64_t)row * (a.vocab / TILE_TOKENS));
#pragma unroll
        for (int i = 0; i < TILES_PER_THREAD; i++) own_top = fmaxf(own_top, top[i]);
        pick_filtered(a, p, position, logits, top, own_top, logit, token, greedy, sh);
        if (threadIdx.x == 0) sample_store(a, row, token >= a.vocab || !(fabsf(logit) < CUDART_INF_F), token, logit, 0.0f, 0);
    }
    if (threadIdx.x == 0) sample_finish(a, gridDim.x, a.state->general_rows == 0);
}

int sample_init(void) { return launch_prepare((const void *)sample_kernel, 0); }

int sample_launch(const struct sample_args *args, uint32_t rows, void *stream)
{
    sample_args a = *args;
    void *params[] = { &a };

    if (a.vocab == 0 || a.vocab % TILE_TOKENS || a.vocab > SAMPLE_VOCAB_MAX || a.suppress_count > SAMPLE_SUPPRESS_MAX) return -E_RANGE;
    if (rows == 0 || rows > STEP_ROWS_MAX) return -E_RANGE;
    return launch_chained((const void *)sample_kernel, rows, SAMPLE_THREADS, 0, params, stream);
}
