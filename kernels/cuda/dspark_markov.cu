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
#define NOISE_MOST 23.0f              /* more than any Gumbel noise of a 32-bit word: log of 2^33 is 22.9 */
#define WAIT_CLOCKS (8ll << 30)       /* some seconds */

struct scratch { unsigned long long best[DSPARK_GUESSES_MAX * DSPARK_MARKOV_SEQS]; unsigned int arrived; };      /* [guess][sequence] */
static_assert(sizeof(struct scratch) <= DSPARK_MARKOV_SCRATCH, "scratch");

/* Larger score, larger key; among equals the lower token. */
__device__ __forceinline__ unsigned long long key_of(float score, uint32_t token)
{
    return (unsigned long long)sample_ordered(score) << 32 | (0xffffffffu - token);
}

/* The token of a row of w2. */
__device__ __forceinline__ uint32_t token_of(const dspark_markov_args &a, uint32_t row) { return a.choice && row < a.rows ? __ldg(a.choice + row) : row; }

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

/* The score of a key; below everything for none. */
__device__ __forceinline__ float score_in(uint32_t ordered)
{
    return ordered == 0 ? -INFINITY : __uint_as_float(ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered);
}

/* Can no noise make this logit the best? Most of a vocabulary lies far below: its noise, which takes longer than the product, is not computed. */
__device__ __forceinline__ bool is_hopeless(float temperature, float z, float top) { return temperature != 0.0f && z / temperature + NOISE_MOST < top; }

__device__ __forceinline__ float score_of(float temperature, uint64_t seed, float z, uint32_t token, uint64_t position)
{
    if (temperature == 0.0f) return z;
    return (float)((double)(z / temperature) + sample_gumbel(sample_above(sample_word(sample_philox(seed, position, token / 4), token % 4))));
}

/* hidden: the row of this guess. */
__device__ void confide(const dspark_markov_args &a, const __nv_bfloat16 *hidden, uint32_t previous, float *chance)
{
    __shared__ float part[WARPS];
    const uint32_t all = a.hidden_size + DSPARK_RANK;
    float sum = 0;

    for (uint32_t i = threadIdx.x; i < all; i += THREADS) {
        const bool of_hidden = i < a.hidden_size;
        const __nv_bfloat16 bits = of_hidden ? hidden[i] : a.w1[(uint64_t)previous * DSPARK_RANK + i - a.hidden_size];
        const float x = of_hidden && a.hidden_power ? __half2float(__ushort_as_half(__bfloat16_as_ushort(bits))) * *a.hidden_power : __bfloat162float(bits);

        sum = fmaf(x, __bfloat162float(a.confidence[i]), sum);
    }
    for (int d = 16; d; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (uint32_t w = 1; w < WARPS; w++) sum += part[w];
        *chance = 1.0f / (1.0f + expf(-(sum + a.confidence_bias)));
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
    const uint32_t batches = first < a.rows ? (a.rows - first + stride - 1) / stride : 0;
    __shared__ unsigned long long best_of[WARPS];
    const uint32_t position = a.newest ? __ldcg(&a.newest->position) : a.position;
    uint32_t previous = a.newest ? __ldcg(&a.newest->token) : a.token;
    batch<FP8> next;

    if (batches) next = load<FP8>(a, first, lane);
    for (uint32_t g = 0; g < a.guesses; g++) {
        const __nv_bfloat16 *in = a.w1 + (uint64_t)previous * DSPARK_RANK + (FP8 ? lane % 16 * 16 : lane * 8);
        unsigned long long best = 0;
        float x[FP8 ? 16 : 8], top = -INFINITY;

#pragma unroll
        for (int i = 0; i < (FP8 ? 16 : 8); i++) x[i] = __bfloat162float(in[i]);
        if (a.confidence && blockIdx.x == gridDim.x - 1) confide(a, a.hidden + (uint64_t)g * a.hidden_size, previous, a.chance + g);
        for (uint32_t i = 0; i < batches; i++) {
            const batch<FP8> now = next;
            const uint32_t at = g % 2 ? batches - 1 - i : i, row0 = first + at * stride;
            uint32_t row;

            if (i + 1 < batches) next = load<FP8>(a, first + (g % 2 ? at - 1 : at + 1) * stride, lane);     /* the last one stays: the next guess begins with it */
            const float bias = bias_of<FP8>(now, x, lane, &row);
            const uint32_t token = row0 + row;
            const float z = __ldg(a.base + (uint64_t)g * a.rows + token) + (FP8 ? bias * __ldg(a.w2_scale + token) : bias);
            if (!is_hopeless(a.temperature, z, top)) {
                const unsigned long long key = key_of(score_of(a.temperature, a.seed, z, token_of(a, token), (uint64_t)position + 1 + g), token);

                if (key > best) best = key;
            }
            top = score_in(__reduce_max_sync(0xffffffffu, (uint32_t)(best >> 32)));
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
        previous = token_of(a, 0xffffffffu - (uint32_t)*(volatile unsigned long long *)&s->best[g]);
        if (blockIdx.x == 0 && threadIdx.x == 0) a.guess[g] = previous;
    }
}

/* ---- several sequences ----
 *
 * A batch of 16 rows times the w1 rows of all sequences is a product of 16 x 256 x 8 on the tensor cores. k is permuted so that a lane's operands are 16 consecutive bytes of a row:
 * of each 64 columns the lanes t of a quad own 16 t .. 16 t + 15, four of them in each of four products. Sequence s is column 2 s of the result if there are up to four, else s: the
 * noise of a score is most of its work, and so every lane has some. */

#define K_BLOCKS (DSPARK_RANK / 64)

struct many_shared {
    uint2 in[K_BLOCKS * 4][32];       /* w1's rows as the products take them */
    unsigned long long best[WARPS][DSPARK_MARKOV_SEQS];
    uint32_t previous[DSPARK_MARKOV_SEQS];
};

struct rows16 { uint4 part[2][K_BLOCKS]; };

__device__ __forceinline__ rows16 load_rows(const dspark_markov_args &a, uint32_t row, uint32_t lane)
{
    const uint4 *w = (const uint4 *)a.w2 + (uint64_t)(row + lane / 4) * (DSPARK_RANK / 16) + lane % 4;
    rows16 r;

#pragma unroll
    for (uint32_t b = 0; b < K_BLOCKS; b++) r.part[0][b] = __ldg(w + b * 4), r.part[1][b] = __ldg(w + 8 * (DSPARK_RANK / 16) + b * 4);
    return r;
}

/* The first warp lays out w1's rows of the sequences. */
__device__ void lay_inputs(const dspark_markov_many_args &m, many_shared *s, uint32_t lane)
{
    const uint32_t column = lane / 4, spread = m.count <= DSPARK_MARKOV_SEQS / 2 ? 2 : 1, seq = column / spread;
    const bool live = column % spread == 0 && seq < m.count;

    for (uint32_t b = 0; b < K_BLOCKS; b++) {
        const __nv_bfloat16 *in = m.common.w1 + (uint64_t)(live ? s->previous[seq] : 0) * DSPARK_RANK + b * 64 + lane % 4 * 16;

        for (uint32_t j = 0; j < 4; j++) {
            float x[4];

            for (uint32_t i = 0; i < 4; i++) x[i] = live ? __bfloat162float(in[4 * j + i]) : 0.0f;
            s->in[b * 4 + j][lane] = make_uint2(pack_f16(x[0], x[1]), pack_f16(x[2], x[3]));
        }
    }
}

__device__ __forceinline__ void multiply(const rows16 &r, const many_shared *s, uint32_t lane, float (&c)[4])
{
#pragma unroll
    for (uint32_t b = 0; b < K_BLOCKS; b++) {
        const uint32_t low[4] = { r.part[0][b].x, r.part[0][b].y, r.part[0][b].z, r.part[0][b].w }, high[4] = { r.part[1][b].x, r.part[1][b].y, r.part[1][b].z, r.part[1][b].w };

#pragma unroll
        for (uint32_t j = 0; j < 4; j++) {
            const uint2 in = s->in[b * 4 + j][lane];

            mma_f16(c, e4m3x2_to_f16x2((uint16_t)low[j]), e4m3x2_to_f16x2((uint16_t)high[j]), e4m3x2_to_f16x2((uint16_t)(low[j] >> 16)), e4m3x2_to_f16x2((uint16_t)(high[j] >> 16)), in.x, in.y);
        }
    }
}

/* Scores of a batch: the lane has rows lane / 4 and 8 more, and two columns. top: the best of the columns' scores so far, in this warp. */
__device__ __forceinline__ void score_batch(const dspark_markov_many_args &m, const float (&c)[4], uint32_t row0, uint32_t g, uint32_t lane, unsigned long long (&best)[2], float (&top)[2])
{
    const uint32_t spread = m.count <= DSPARK_MARKOV_SEQS / 2 ? 2 : 1;

#pragma unroll
    for (uint32_t e = 0; e < 4; e++) {
        const uint32_t token = row0 + lane / 4 + e / 2 * 8, column = lane % 4 * 2 + e % 2, seq = column / spread;

        if (column % spread || seq >= m.count || g >= m.seq[seq].guesses) continue;
        const float z = __ldg(m.common.base + ((uint64_t)seq * m.block + g) * m.common.rows + token) + c[e] * __ldg(m.common.w2_scale + token);
        if (is_hopeless(m.seq[seq].temperature, z, top[e % 2])) continue;
        const unsigned long long key = key_of(score_of(m.seq[seq].temperature, m.seq[seq].seed, z, token_of(m.common, token), (uint64_t)m.seq[seq].position + 1 + g), token);

        if (key > best[e % 2]) best[e % 2] = key;
    }
#pragma unroll
    for (uint32_t h = 0; h < 2; h++) {
        uint32_t ordered = (uint32_t)(best[h] >> 32);

        for (int d = 16; d >= 4; d /= 2) ordered = max(ordered, __shfl_xor_sync(0xffffffffu, ordered, d));
        top[h] = score_in(ordered);
    }
}

/* The block's best of each column goes to memory. */
__device__ void send_best(many_shared *s, scratch *to, uint32_t g, uint32_t warp, uint32_t lane, unsigned long long (&best)[2])
{
#pragma unroll
    for (uint32_t h = 0; h < 2; h++)
        for (int d = 16; d >= 4; d /= 2) {
            const unsigned long long other = __shfl_xor_sync(0xffffffffu, best[h], d);

            if (other > best[h]) best[h] = other;
        }
    if (lane < 4) s->best[warp][2 * lane] = best[0], s->best[warp][2 * lane + 1] = best[1];
    __syncthreads();
    if (threadIdx.x < DSPARK_MARKOV_SEQS) {
        unsigned long long top = 0;

        for (uint32_t w = 0; w < WARPS; w++)
            if (s->best[w][threadIdx.x] > top) top = s->best[w][threadIdx.x];
        if (top) atomicMax(&to->best[g * DSPARK_MARKOV_SEQS + threadIdx.x], top);
    }
}

__global__ void __launch_bounds__(THREADS, 1) markov_many_kernel(const __grid_constant__ dspark_markov_many_args m)
{
    __shared__ many_shared s;
    const dspark_markov_args &a = m.common;
    struct scratch *memory = (struct scratch *)a.scratch;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, stride = gridDim.x * WARPS * BATCH, first = (blockIdx.x * WARPS + warp) * BATCH;
    const uint32_t batches = first < a.rows ? (a.rows - first + stride - 1) / stride : 0, spread = m.count <= DSPARK_MARKOV_SEQS / 2 ? 2 : 1;
    const uint32_t confided = gridDim.x - 1 - blockIdx.x;        /* the last blocks each ask for one sequence's confidence */
    rows16 next;

    if (threadIdx.x < m.count) s.previous[threadIdx.x] = m.seq[threadIdx.x].token;
    if (batches) next = load_rows(a, first, lane);
    __syncthreads();
    for (uint32_t g = 0; g < a.guesses; g++) {
        unsigned long long best[2] = {};
        float top[2] = { -INFINITY, -INFINITY };

        if (warp == 0) lay_inputs(m, &s, lane);
        __syncthreads();
        if (a.confidence && confided < m.count && g < m.seq[confided].guesses)
            confide(a, a.hidden + ((uint64_t)confided * m.block + g) * a.hidden_size, s.previous[confided], a.chance + confided * DSPARK_GUESSES_MAX + g);
        for (uint32_t i = 0; i < batches; i++) {
            const rows16 now = next;
            const uint32_t at = g % 2 ? batches - 1 - i : i;
            float c[4] = {};

            if (i + 1 < batches) next = load_rows(a, first + (g % 2 ? at - 1 : at + 1) * stride, lane);      /* the last one stays: the next guess begins with it */
            multiply(now, &s, lane, c);
            score_batch(m, c, first + at * stride, g, lane, best, top);
        }
        send_best(&s, memory, g, warp, lane, best);
        meet(memory, g + 1);
        if (threadIdx.x < m.count && g < m.seq[threadIdx.x].guesses) {
            s.previous[threadIdx.x] = token_of(a, 0xffffffffu - (uint32_t)*(volatile unsigned long long *)&memory->best[g * DSPARK_MARKOV_SEQS + threadIdx.x * spread]);
            if (blockIdx.x == 0) a.guess[threadIdx.x * DSPARK_GUESSES_MAX + g] = s.previous[threadIdx.x];
        }
        __syncthreads();
    }
}

int dspark_markov_many_launch(const struct dspark_markov_many_args *args, uint32_t sm_count, void *stream)
{
    struct dspark_markov_many_args m = *args;
    void *params[] = { &m };

    if (m.common.rows == 0 || m.common.rows % BATCH != 0 || m.common.hidden_size % 8 != 0 || m.common.w2_scale == NULL || m.count == 0 || m.count > DSPARK_MARKOV_SEQS || m.count > sm_count) return -E_RANGE;
    m.common.guesses = 0;
    for (uint32_t i = 0; i < m.count; i++) {
        if (m.seq[i].guesses == 0 || m.seq[i].guesses > DSPARK_GUESSES_MAX || m.seq[i].guesses > m.block || m.seq[i].token >= m.common.vocab || !(m.seq[i].temperature >= 0)) return -E_RANGE;
        if (m.seq[i].guesses > m.common.guesses) m.common.guesses = m.seq[i].guesses;
    }
    const int rc = launch_check(cudaMemsetAsync(m.common.scratch, 0, sizeof(struct scratch), (cudaStream_t)stream), "dspark_markov scratch");
    if (rc != 0) return rc;
    return launch_check(cudaLaunchCooperativeKernel((const void *)markov_many_kernel, dim3(sm_count), dim3(THREADS), params, 0, (cudaStream_t)stream), "dspark_markov");
}

int dspark_markov_launch(const struct dspark_markov_args *args, uint32_t sm_count, void *stream)
{
    struct dspark_markov_args a = *args;
    void *params[] = { &a };

    if (a.rows == 0 || a.rows % BATCH != 0 || a.guesses == 0 || a.guesses > DSPARK_GUESSES_MAX || a.token >= a.vocab || a.hidden_size % 8 != 0 || !(a.temperature >= 0)) return -E_RANGE;
    const int rc = launch_check(cudaMemsetAsync(a.scratch, 0, sizeof(struct scratch), (cudaStream_t)stream), "dspark_markov scratch");
    if (rc != 0) return rc;
    const void *kernel = a.w2_scale ? (const void *)markov_kernel<true> : (const void *)markov_kernel<false>;
    return launch_check(cudaLaunchCooperativeKernel(kernel, dim3(sm_count), dim3(THREADS), params, 0, (cudaStream_t)stream), "dspark_markov");
}
