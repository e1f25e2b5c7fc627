/* kernels/cuda/dspark_plain_ops.cu - see dspark_plain_ops.cuh. */
#include "dspark_plain_ops.cuh"
#include "device.cuh"
#include "plain_launch.cuh"
#include "plain_math.cuh"
#include "plain_pick.cuh"

#define THREADS 256u

struct row_head { unsigned long long layers, of; uint8_t pad[48]; };      /* struct feature_row */

__device__ __forceinline__ bool is_there(const row_head *head, uint64_t layers, uint64_t of)
{
    return *(const volatile unsigned long long *)&head->layers == layers && *(const volatile unsigned long long *)&head->of == of;
}

__global__ void __launch_bounds__(THREADS) dspark_plain_gather_kernel(const __grid_constant__ dspark_plain_gather a)
{
    const uint32_t r = blockIdx.x, place = a.item[r].place, position = a.item[r].position;
    const row_head *head = (const row_head *)((const uint8_t *)a.features.device + ((uint64_t)place * a.features.rows + position % a.features.rows) * a.features.row_bytes);
    const uint64_t of = (uint64_t)a.item[r].generation << 32 | position;
    float *to = a.sources + (uint64_t)r * a.floats;

    chain_trigger();
    const bool there = __syncthreads_and(is_there(head, a.layers, of));

    __threadfence();                  /* F2 of model/features.h */
    for (uint32_t i = threadIdx.x; i < a.floats; i += THREADS)
        to[i] = !there ? 0.0f : a.features.element_bytes == 4 ? __ldcg((const float *)(head + 1) + i) : plain_widen(__ldcg((const uint16_t *)(head + 1) + i));
    __threadfence();                  /* F1 */
    __syncthreads();
    if (threadIdx.x != 0) return;
    a.row[r] = { 0, position, place, 1 };
    if (!(there && is_there(head, a.layers, of))) atomicMax(a.low + place, position + 1);
}

__global__ void __launch_bounds__(THREADS) dspark_plain_start_kernel(const __grid_constant__ dspark_plain_step a)
{
    const uint32_t r = blockIdx.x, s = r / a.block, i = r % a.block;
    const dspark_plain_question &q = a.question[s];
    const uint32_t token = i == 0 ? q.token : a.mask;

    chain_trigger();
    if (threadIdx.x == 0) {
        a.row[r] = { token, q.position + i, q.place, a.block - i };    /* sees the rest of its block */
        a.first[r] = max(ld_l2(a.low + q.place), q.least);
    }
    for (uint32_t j = threadIdx.x; j < a.hidden; j += THREADS) a.h[(uint64_t)r * a.hidden + j] = plain_mul(plain_table_value(a.embed, token, a.hidden, j), a.embed_scale);
    if (i == 0)
        for (uint32_t j = threadIdx.x; j < a.rank; j += THREADS) a.markov[s * a.rank + j] = plain_table_value(a.markov_in, token, a.rank, j);
}

__global__ void __launch_bounds__(PICK_THREADS) dspark_plain_pick_kernel(const __grid_constant__ dspark_plain_step a, uint32_t index)
{
    __shared__ pick_shared sh;
    const uint32_t s = blockIdx.x;
    const dspark_plain_question &q = a.question[s];
    const plain_choice choice = { a.base + ((uint64_t)s * a.block + index) * a.vocab, a.z ? a.z + (uint64_t)s * a.vocab : NULL, a.left_out, a.vocab, PLAIN_NOBODY };

    chain_trigger();
    chain_wait();
    if (index >= q.guesses) return;
    uint32_t token = plain_pick(choice, plain_sampling(q.seed, q.temperature, q.top_k, q.top_p, q.min_p, a.vocab), (uint64_t)q.position + 1 + index, sh, NULL);

    if (token >= a.vocab) token = 0;  /* no finite logit: advice that is worth nothing */
    if (threadIdx.x == 0) a.guess[s * CUDA_DSPARK_GUESSES_MAX + index] = token;
    for (uint32_t j = threadIdx.x; j < a.rank; j += PICK_THREADS) a.markov[s * a.rank + j] = plain_table_value(a.markov_in, token, a.rank, j);
}

/* ---- confidence ---- */

/* A warp's sum of w * x in 16 lanes and their tree, as kernels/cpu/linear.h; x of the device's memory, or a row of a table. */
__device__ __forceinline__ float lanes_sum(const float *x, const plain_table *table, uint32_t row, const float *w, uint32_t n)
{
    float lane = 0.0f;

    for (uint32_t i = threadIdx.x % 16; i < n; i += 16) lane = plain_fma(w[i], x ? ld_l2(x + i) : plain_table_value(*table, row, n, i), lane);
#pragma unroll
    for (int d = 8; d >= 1; d >>= 1) lane = plain_add(lane, __shfl_xor_sync(0xffffffffu, lane, d));
    return lane;
}

/* A warp for each guess. */
__global__ void __launch_bounds__(32) dspark_plain_confide_kernel(const __grid_constant__ dspark_plain_step a)
{
    const uint32_t s = blockIdx.y, g = blockIdx.x, at = s * CUDA_DSPARK_GUESSES_MAX + g;

    chain_trigger();
    chain_wait();
    if (g >= a.question[s].guesses) return;
    const uint32_t previous = g == 0 ? a.question[s].token : ld_l2(a.guess + at - 1);
    const float seen = lanes_sum(a.x + ((uint64_t)s * a.block + g) * a.hidden, NULL, 0, a.confidence, a.hidden);
    const float heard = a.sees_token ? lanes_sum(NULL, &a.markov_in, previous, a.confidence + a.hidden, a.rank) : 0.0f;

    if (threadIdx.x == 0) a.seen[at] = seen, a.heard[at] = heard;
}

__global__ void dspark_plain_publish_kernel(const __grid_constant__ dspark_plain_step a, dspark_plain_result *result, uint64_t number)
{
    const uint32_t s = threadIdx.x;

    chain_trigger();
    chain_wait();
    if (s < a.count) {
        result->low[s] = max(ld_l2(a.low + a.question[s].place), a.question[s].least);
        for (uint32_t g = 0; g < a.question[s].guesses; g++) {
            const uint32_t at = s * CUDA_DSPARK_GUESSES_MAX + g;

            result->token[s][g] = ld_l2(a.guess + at);
            if (a.confidence) result->seen[s][g] = ld_l2(a.seen + at), result->heard[s][g] = ld_l2(a.heard + at);
        }
        __threadfence_system();
    }
    __syncthreads();
    if (s == 0) *(volatile uint64_t *)&result->round = number;         /* W1 -> dspark_plain_wait: the answers are in host memory */
}

__global__ void dspark_plain_unpack_kernel(const __grid_constant__ plain_table table, uint16_t *to, uint32_t hidden)
{
    for (uint32_t i = threadIdx.x; i < hidden; i += blockDim.x) to[(uint64_t)blockIdx.x * hidden + i] = plain_narrow(plain_table_value(table, blockIdx.x, hidden, i));
}

/* ---- launching ---- */

int dspark_plain_gather_launch(const struct dspark_plain_gather *args, uint32_t rows, void *stream)
{
    dspark_plain_gather_kernel<<<rows, THREADS, 0, (cudaStream_t)stream>>>(*args);
    return launch_check(cudaGetLastError(), "dspark gather");
}

int dspark_plain_start_launch(const struct dspark_plain_step *step, void *stream)
{
    dspark_plain_start_kernel<<<step->count * step->block, THREADS, 0, (cudaStream_t)stream>>>(*step);
    return launch_check(cudaGetLastError(), "dspark start");
}

int dspark_plain_pick_launch(const struct dspark_plain_step *step, uint32_t index, void *stream)
{
    return plain_chained(dspark_plain_pick_kernel, dim3(step->count), PICK_THREADS, 0, stream, *step, index);
}

int dspark_plain_confide_launch(const struct dspark_plain_step *step, void *stream)
{
    return plain_chained(dspark_plain_confide_kernel, dim3(CUDA_DSPARK_GUESSES_MAX, step->count), 32, 0, stream, *step);
}

int dspark_plain_publish_launch(const struct dspark_plain_step *step, struct dspark_plain_result *result, uint64_t number, void *stream)
{
    return plain_chained(dspark_plain_publish_kernel, dim3(1), 32, 0, stream, *step, result, number);
}

int dspark_plain_unpack_launch(const struct plain_table *table, uint16_t *to, uint32_t vocab, uint32_t hidden, void *stream)
{
    dspark_plain_unpack_kernel<<<vocab, THREADS, 0, (cudaStream_t)stream>>>(*table, to, hidden);
    return launch_check(cudaGetLastError(), "dspark unpack");
}

/* The same carveout as the other kernels of the chain (plain_ops.cu says why). */
int dspark_plain_ops_init(void)
{
    const void *const kernels[] = { (const void *)dspark_plain_gather_kernel, (const void *)dspark_plain_start_kernel, (const void *)dspark_plain_pick_kernel,
                                    (const void *)dspark_plain_confide_kernel, (const void *)dspark_plain_publish_kernel };
    int rc = 0;

    for (const void *kernel : kernels)
        if (rc == 0) rc = launch_prepare(kernel, 0);
    return rc;
}
