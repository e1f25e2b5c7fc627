/* kernels/cuda/dspark_markov.cu - see dspark_markov.h.
 *
 * A warp takes batches of 16 rows of w2: in FP8 a row is 16 lanes of 16 bytes, a lane loads 8 rows' parts at once and has the next batch under way
 * while it works on this one; in BF16 a row is all 32 lanes. The barrier and the best guess so far are words in memory. */
#include "dspark_markov.h"

#include "device.cuh"
#include "launch.h"
#include "sample_common.cuh"
#include "shm/error.h"
#include <cuda_fp8.h>

#define THREADS 512u
#define WARPS (THREADS / 32)
#define BATCH 16u                     /* rows of a warp */
#define LOADS 8u                      /* of a lane, for one batch in FP8 */
#define WAIT_CLOCKS (8ll << 30)       /* some seconds */

struct scratch { unsigned long long best[DSPARK_GUESSES_MAX]; unsigned int arrived; };
static_assert(sizeof(struct scratch) <= DSPARK_MARKOV_SCRATCH, "scratch");

/* Larger score, larger key; among equals the lower token. */
__device__ __forceinline__ unsigned long long key_of(float score, uint32_t token)
{
    return (unsigned long long)sample_ordered(score) << 32 | (0xffffffffu - token);
}

template <bool FP8> struct batch { uint4 part[FP8 ? LOADS : BATCH]; };

/* A lane's parts of the 16 rows from `row`. */
template <bool FP8>
__device__ __forceinline__ batch<FP8> load(const dspark_markov_args &a, uint32_t row, uint32_t lane)
{
    const uint4 *w = (const uint4 *)a.w2 + (uint64_t)row * (FP8 ? 16 : 32) + lane;      /* FP8: the upper half warp has the next row */
    batch<FP8> b;

#pragma unroll
    for (uint32_t i = 0; i < (FP8 ? LOADS : BATCH); i++) b.part[i] = __ldg(w + i * 32);
    return b;
}

__device__ __forceinline__ float dot_fp8(const uint4 &v, const float *x)
{
    const uint32_t word[4] = { v.x, v.y, v.z, v.w };
    float sum = 0;

#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const __half2_raw raw = __nv_cvt_fp8x2_to_halfraw2((__nv_fp8x2_storage_t)(word[i] >> (16 * h)), __NV_E4M3);
            const float2 f = __half22float2(*(const __half2 *)&raw);

            sum = fmaf(f.x, x[4 * i + 2 * h], sum);
            sum = fmaf(f.y, x[4 * i + 2 * h + 1], sum);
        }
    return sum;
}

__device__ __forceinline__ float dot_bf16(const uint4 &v, const float *x)
{
    const uint32_t word[4] = { v.x, v.y, v.z, v.w };
    float sum = 0;

#pragma unroll
    for (int i = 0; i < 4; i++) {
        sum = fmaf(__uint_as_float(word[i] << 16), x[2 * i], sum);
        sum = fmaf(__uint_as_float(word[i] & 0xffff0000u), x[2 * i + 1], sum);
    }
    return sum;
}

/* Sums N values of each lane over groups of 2 N lanes, so that each lane ends with one of them: value index by its bits from the top. */
template <int N>
__device__ __forceinline__ float scatter_sum(float *v, uint32_t lane)
{
#pragma unroll
    for (int n = N / 2; n > 0; n /= 2) {
        const bool upper = lane & (2 * n);

#pragma unroll
        for (int i = 0; i < n; i++) {
            const float send = upper ? v[i] : v[i + n], keep = upper ? v[i + n] : v[i];

            v[i] = keep + __shfl_xor_sync(0xffffffffu, send, 2 * n);
        }
    }
    return v[0] + __shfl_xor_sync(0xffffffffu, v[0], 1);
}

/* The bias of one of the batch's rows: *row says which. */
template <bool FP8>
__device__ __forceinline__ float bias_of(const batch<FP8> &b, const float *x, uint32_t lane, uint32_t *row)
{
    float v[FP8 ? LOADS : BATCH];

#pragma unroll
    for (uint32_t i = 0; i < (FP8 ? LOADS : BATCH); i++) v[i] = FP8 ? dot_fp8(b.part[i], x) : dot_bf16(b.part[i], x);
    *row = FP8 ? 2 * (lane / 2 % 8) + lane / 16 : lane / 2;
    return scatter_sum<FP8 ? LOADS : BATCH>(v, lane);
}

__device__ __forceinline__ float score_of(const dspark_markov_args &a, float z, uint32_t token, uint64_t position)
{
    if (a.temperature == 0.0f) return z;
    return (float)((double)(z / a.temperature) + sample_gumbel(sample_above(sample_word(sample_philox(a.seed, position, token / 4), token % 4))));
}

__device__ void confide(const dspark_markov_args &a, uint32_t guess, uint32_t previous)
{
    __shared__ float part[WARPS];
    const uint32_t all = a.hidden_size + DSPARK_RANK;
    float sum = 0;

    for (uint32_t i = threadIdx.x; i < all; i += THREADS) {
        const __nv_bfloat16 x = i < a.hidden_size ? a.hidden[(uint64_t)guess * a.hidden_size + i] : a.w1[(uint64_t)previous * DSPARK_RANK + i - a.hidden_size];

        sum = fmaf(__bfloat162float(x), __bfloat162float(a.confidence[i]), sum);
    }
    for (int d = 16; d; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (uint32_t w = 1; w < WARPS; w++) sum += part[w];
        a.chance[guess] = 1.0f / (1.0f + expf(-(sum + a.confidence_bias)));
    }
    __syncthreads();
}

/* Every block's best is in memory when it returns. */
__device__ void meet(struct scratch *s, uint32_t times)
{
    __syncthreads();
    if (threadIdx.x == 0) {
        const long long begin = clock64();

        __threadfence();
        atomicAdd(&s->arrived, 1);
        while (*(volatile unsigned int *)&s->arrived < times * gridDim.x)
            if (clock64() - begin > WAIT_CLOCKS) __trap();
        __threadfence();
    }
    __syncthreads();
}

template <bool FP8>
__global__ void __launch_bounds__(THREADS, 1) markov_kernel(const dspark_markov_args a)
{
    struct scratch *s = (struct scratch *)a.scratch;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, stride = gridDim.x * WARPS * BATCH, first = (blockIdx.x * WARPS + warp) * BATCH;
    const uint32_t batches = first < a.vocab ? (a.vocab - first + stride - 1) / stride : 0;
    __shared__ unsigned long long best_of[WARPS];
    uint32_t previous = a.token;
    batch<FP8> next;

    if (batches) next = load<FP8>(a, first, lane);
    for (uint32_t g = 0; g < a.guesses; g++) {
        const __nv_bfloat16 *in = a.w1 + (uint64_t)previous * DSPARK_RANK + (FP8 ? lane % 16 * 16 : lane * 8);
        unsigned long long best = 0;
        float x[FP8 ? 16 : 8];

#pragma unroll
        for (int i = 0; i < (FP8 ? 16 : 8); i++) x[i] = __bfloat162float(in[i]);
        if (a.confidence && blockIdx.x == gridDim.x - 1) confide(a, g, previous);
        for (uint32_t i = 0; i < batches; i++) {
            const batch<FP8> now = next;
            const uint32_t at = g % 2 ? batches - 1 - i : i, row0 = first + at * stride;
            uint32_t row;

            if (i + 1 < batches) next = load<FP8>(a, first + (g % 2 ? at - 1 : at + 1) * stride, lane);     /* the last one stays: the next guess begins with it */
            const float bias = bias_of<FP8>(now, x, lane, &row);
            const uint32_t token = row0 + row;
            const float z = __ldg(a.base + (uint64_t)g * a.vocab + token) + (FP8 ? bias * __ldg(a.w2_scale + token) : bias);
            const unsigned long long key = key_of(score_of(a, z, token, (uint64_t)a.position + 1 + g), token);

            if (key > best) best = key;
        }
        for (int d = 16; d; d /= 2) {
            const unsigned long long other = __shfl_xor_sync(0xffffffffu, best, d);

            if (other > best) best = other;
        }
        if (lane == 0) best_of[warp] = best;
        __syncthreads();
        if (threadIdx.x == 0) {
            for (uint32_t w = 1; w < WARPS; w++)
                if (best_of[w] > best) best = best_of[w];
            atomicMax(&s->best[g], best);
        }
        meet(s, g + 1);
        previous = 0xffffffffu - (uint32_t)*(volatile unsigned long long *)&s->best[g];
        if (blockIdx.x == 0 && threadIdx.x == 0) a.guess[g] = previous;
    }
}

int dspark_markov_launch(const struct dspark_markov_args *args, uint32_t sm_count, void *stream)
{
    struct dspark_markov_args a = *args;
    void *params[] = { &a };

    if (a.vocab % BATCH != 0 || a.guesses == 0 || a.guesses > DSPARK_GUESSES_MAX || a.token >= a.vocab || a.hidden_size % 8 != 0 || !(a.temperature >= 0)) return -E_RANGE;
    const int rc = launch_check(cudaMemsetAsync(a.scratch, 0, sizeof(struct scratch), (cudaStream_t)stream), "dspark_markov scratch");
    if (rc != 0) return rc;
    const void *kernel = a.w2_scale ? (const void *)markov_kernel<true> : (const void *)markov_kernel<false>;
    return launch_check(cudaLaunchCooperativeKernel(kernel, dim3(sm_count), dim3(THREADS), params, 0, (cudaStream_t)stream), "dspark_markov");
}
