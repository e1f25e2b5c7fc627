/* kernels/cuda/sample.cu - picking the tokens of plain rows on the device (contract in sample.h). */
#include "sample.h"
#include "device.cuh"
#include "launch.h"
#include "sample_pick.cuh"
#include "states.h"
#include "shm/error.h"

#define SAMPLE_THREADS PICK_THREADS
#define TILE_TOKENS 16
#define TILES_PER_THREAD 17           /* 1024 threads x 17 tiles x 16 tokens = SAMPLE_VOCAB_MAX */

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
__device__ uint32_t gather(const sample_args &a, const float *logits, const float (&top)[TILES_PER_THREAD], uint32_t bound, pick_shared &sh)
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
            if (at < PICK_MAX) sh.found[at].logit = x[j], sh.found[at].token = tile * TILE_TOKENS + j;
        }
    }
    __syncthreads();
    return sh.count;
}

/* Candidates of a bound that hardly more than `wanted` logits reach: raises it while there are more than there is room for. */
__device__ uint32_t find_candidates(const sample_args &a, const float *logits, const float (&top)[TILES_PER_THREAD], float own_top, uint32_t wanted, pick_shared &sh)
{
    uint32_t low = pick_bound(sample_ordered(own_top), wanted), high = 0xff800000u, n = gather(a, logits, top, low, sh);

    /* Some threads' tiles hold many of the best: halve until at least `wanted` and at most the room reach it. */
    while (n > PICK_MAX && high - low > 1) {
        const uint32_t middle = low + (high - low) / 2, reached = gather(a, logits, top, middle, sh);

        if (reached >= wanted) low = middle, n = reached;
        else high = middle;
    }
    if (sh.count != n) n = gather(a, logits, top, low, sh);
    return n < PICK_MAX ? n : PICK_MAX;      /* see sample.h: ties beyond the room are dropped */
}

__device__ void pick_filtered(const sample_args &a, const step_sampling &p, uint64_t position, const float *logits, const float (&top)[TILES_PER_THREAD],
                              float own_top, float &logit, uint32_t &token, bool greedy, pick_shared &sh)
{
    const uint32_t i = threadIdx.x, n = find_candidates(a, logits, top, own_top, greedy ? 1 : p.top_k, sh);

    token = 0xffffffffu;
    logit = -CUDART_INF_F;
    if (greedy) {
        if (i < n) logit = sh.found[i].logit, token = sh.found[i].token;
        pick_best(logit, token, sh.best, sh);
        return;
    }
    pick_sort(n, sh);
    token = pick_draw(p, position, n, sh);
    if (token != 0xffffffffu) logit = __ldcg(logits + token);
}

/* The row's hidden state, for whoever drafts behind it. */
__device__ __forceinline__ void keep_state(const sample_args &a, uint32_t row)
{
    const step_row own = a.state->row[row];
    float *to = a.states + states_at(a.state->group[own.group].seq, own.position, a.hidden);

    for (uint32_t i = 4 * threadIdx.x; i < a.hidden; i += 4 * SAMPLE_THREADS) {
        const uint64_t from = (uint64_t)row * a.hidden + i;

        if (a.hidden_form == STATES_F32) {
            *(float4 *)(to + i) = __ldcg((const float4 *)((const float *)a.hidden_rows + from));
            continue;
        }
        const uint2 x = __ldcg((const uint2 *)((const __nv_bfloat16 *)a.hidden_rows + from));
        *(float4 *)(to + i) = make_float4(bf16_low(x.x), bf16_high(x.x), bf16_low(x.y), bf16_high(x.y));
    }
}

__global__ void __launch_bounds__(SAMPLE_THREADS) sample_kernel(const __grid_constant__ sample_args a)
{
    __shared__ pick_shared sh;
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
    if (live && a.states) keep_state(a, row);
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
    if (a.states) __syncthreads();       /* all of the row's state is written before the flag */
    if (threadIdx.x == 0) sample_finish(a, gridDim.x, a.state->general_rows == 0);
}

int sample_init(void) { return launch_prepare((const void *)sample_kernel, 0); }

int sample_launch(const struct sample_args *args, uint32_t rows, void *stream)
{
    sample_args a = *args;
    void *params[] = { &a };

    if (a.vocab == 0 || a.vocab % TILE_TOKENS || a.vocab > SAMPLE_VOCAB_MAX || a.suppress_count > SAMPLE_SUPPRESS_MAX) return -E_RANGE;
    if (rows == 0 || rows > STEP_ROWS_MAX || a.hidden % 4) return -E_RANGE;
    return launch_chained((const void *)sample_kernel, rows, SAMPLE_THREADS, 0, params, stream);
}
