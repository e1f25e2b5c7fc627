/* kernels/cuda/dspark_ops.cu - see dspark_ops.h. */
#include "dspark_ops.h"
#include "device.cuh"
#include "handover.cuh"
#include "launch.h"
#include "powers.h"
#include "shm/error.h"

#define THREADS 256u
#define WIDE 1024u                    /* threads of a row of HIDDEN_MAX */
#define EACH 4u
#define HIDDEN_MAX (WIDE * EACH)
#define HELD (HIDDEN_MAX / 8 / THREADS)

struct row_head { unsigned long long layers, of; uint8_t pad[48]; };      /* struct feature_row */

__device__ __forceinline__ bool is_there(const row_head *head, uint64_t layers, uint64_t of)
{
    return *(const volatile unsigned long long *)&head->layers == layers && *(const volatile unsigned long long *)&head->of == of;
}

/* A row that the block holds, from bf16 to f16 times the power of two that brings its largest element to [2^14, 2^15): outputs of layers have no bound. Returns the inverse. */
__device__ __forceinline__ float row_to_f16(uint4 (&x)[HELD])
{
    __shared__ float tops[THREADS / 32];
    uint32_t *v = (uint32_t *)x;
    float top = 0.0f;

#pragma unroll
    for (uint32_t i = 0; i < 4 * HELD; i++) top = fmaxf(top, fmaxf(fabsf(bf16_low(v[i])), fabsf(bf16_high(v[i]))));
    for (int d = 16; d; d >>= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, d));
    if (threadIdx.x % 32 == 0) tops[threadIdx.x / 32] = top;
    __syncthreads();
    for (uint32_t i = 0; i < THREADS / 32; i++) top = fmaxf(top, tops[i]);
    const int shift = power_exponent(top);
    const float scale = __uint_as_float((uint32_t)(127 + shift) << 23);

#pragma unroll
    for (uint32_t i = 0; i < 4 * HELD; i++) v[i] = pack_f16(bf16_low(v[i]) * scale, bf16_high(v[i]) * scale);
    return __uint_as_float((uint32_t)(127 - shift) << 23);
}

__device__ __forceinline__ uint64_t now_ns()
{
    uint64_t now;

    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(now));
    return now;
}

__global__ void begin_kernel(const dspark_begin_args a)
{
    uint32_t token = 0, position = 0;
    const bool told = handover_told(a.record, a.tag, &token, &position) && token < a.vocab && position > a.first && position - a.first <= a.most;

    if (!told) token = 0, position = a.first;
    *a.newest = dspark_newest{ told, token, position, position > a.window ? position - a.window : 0, position - a.first, 0, now_ns() };
}

__global__ void __launch_bounds__(THREADS) gather_kernel(const __grid_constant__ dspark_gather_args a)
{
    const uint32_t r = blockIdx.x, source = blockIdx.y, place = a.row[r].place, position = a.row[r].position;
    const row_head *head = (const row_head *)((const uint8_t *)a.features.device + ((uint64_t)place * a.features.rows + position % a.features.rows) * a.features.row_bytes);
    const uint64_t of = (uint64_t)a.row[r].generation << 32 | position;
    uint4 *to = (uint4 *)(a.x + source * a.source_stride + (uint64_t)r * a.hidden), x[HELD];

    chain_trigger();
    chain_wait();
    if (a.newest && r >= ld_l2(&a.newest->absorb)) return;
    const bool there = __syncthreads_and(is_there(head, a.layers, of));
    const uint4 *from = (const uint4 *)((const __nv_bfloat16 *)(head + 1) + (uint64_t)source * a.hidden);

    __threadfence();                  /* F2 of model/features.h */
#pragma unroll
    for (uint32_t i = 0; i < HELD; i++) {
        const uint32_t at = threadIdx.x + i * THREADS;

        x[i] = there && at < a.hidden / 8 ? __ldcg(from + at) : make_uint4(0, 0, 0, 0);
    }
    if (a.x_scale) {
        const float inverse = row_to_f16(x);

        if (threadIdx.x == 0) a.x_scale[source * a.rows_max + r] = inverse;
    }
#pragma unroll
    for (uint32_t i = 0; i < HELD; i++)
        if (threadIdx.x + i * THREADS < a.hidden / 8) to[threadIdx.x + i * THREADS] = x[i];
    __threadfence();                  /* F1 */
    __syncthreads();
    if (threadIdx.x == 0 && !(there && is_there(head, a.layers, of))) atomicMax(a.low + place, position + 1);
}

/* Sum over a block of any whole number of warps. */
__device__ float block_sum(float x)
{
    __shared__ float part[32];

    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = x;
    __syncthreads();
    return warp_sum(threadIdx.x % 32 < blockDim.x / 32 ? part[threadIdx.x % 32] : 0.0f);
}

__device__ __forceinline__ void store_row(__nv_bfloat16 *to, float x, bool f16) { *(uint16_t *)to = (uint16_t)pack_row(x, 0.0f, f16); }

__global__ void __launch_bounds__(WIDE) feature_kernel(const __grid_constant__ dspark_feature_args a)
{
    const uint64_t row = (uint64_t)blockIdx.x * a.hidden;
    const float power = power_or_one(a.f_power);
    float v[EACH], sum = 0;

    chain_trigger();
    chain_wait();
    for (uint32_t i = 0; i < EACH; i++) {
        const uint32_t at = threadIdx.x + i * WIDE;

        v[i] = 0;
        for (uint32_t s = 0; s < a.sources && at < a.hidden; s++) v[i] += ld_l2(a.part + s * a.part_stride + row + at);
        sum += v[i] * v[i];
    }
    const float inv = rsqrtf(block_sum(sum) / (float)a.hidden + a.eps);

    for (uint32_t i = 0; i < EACH; i++) {
        const uint32_t at = threadIdx.x + i * WIDE;

        if (at < a.hidden) store_row(a.f + row + at, v[i] * inv * __bfloat162float(a.w[at]) * power, a.f_power != NULL);
    }
}

__device__ __forceinline__ float table_value(const dspark_start_args &a, uint32_t token, uint32_t i)
{
    if (a.packed == NULL) return __bfloat162float(a.plain[(uint64_t)token * a.hidden + i]);
    const uint64_t unit = (uint64_t)(token / TILE_ROWS) * a.slices + i / a.slice_k;
    const uint8_t *from = a.packed + unit * packed_unit_bytes(WEIGHT_BF16, a.slice_k) + packed_element_offset(WEIGHT_BF16, a.slice_k, token % TILE_ROWS, i % a.slice_k);

    return __bfloat162float(*(const __nv_bfloat16 *)from);
}

__global__ void __launch_bounds__(WIDE) start_kernel(const __grid_constant__ dspark_start_args a)
{
    const uint64_t row = (uint64_t)blockIdx.x * a.hidden;
    const float power = power_or_one(a.y_power);
    float v[EACH], sum = 0;

    chain_trigger();
    chain_wait();
    const uint32_t newest = a.newest ? ld_l2(&a.newest->token) : a.token[blockIdx.x / a.block], token = blockIdx.x % a.block == 0 ? newest : a.mask;

    for (uint32_t i = 0; i < EACH; i++) {
        const uint32_t at = threadIdx.x + i * WIDE;

        v[i] = at < a.hidden ? table_value(a, token, at) * a.scale : 0.0f;
        sum += v[i] * v[i];
    }
    const float inv = rsqrtf(block_sum(sum) / (float)a.hidden + a.eps);

    for (uint32_t i = 0; i < EACH; i++) {
        const uint32_t at = threadIdx.x + i * WIDE;

        if (at >= a.hidden) continue;
        a.h[row + at] = v[i];
        store_row(a.y + place_of(a.y_places, a.hidden, blockIdx.x, at), v[i] * inv * __bfloat162float(a.w[at]) * power, a.y_power != NULL);
    }
}

__global__ void publish_kernel(const __grid_constant__ dspark_publish_args a)
{
    const uint32_t q = threadIdx.x;
    const dspark_newest newest = a.newest ? *a.newest : dspark_newest{ 1 };
    const uint32_t drafts = newest.told ? a.guesses[0] : 0;

    if (q == 0 && a.handover) {
        uint32_t token[CUDA_HANDOVER_TOKENS_MAX];
        float chance[CUDA_HANDOVER_TOKENS_MAX];

#pragma unroll
        for (uint32_t i = 0; i < CUDA_HANDOVER_TOKENS_MAX; i++)
            token[i] = i < drafts ? __ldcg(a.guess + i) : 0, chance[i] = i < drafts && a.chance ? __ldcg(a.chance + i) : 1.0f;
        handover_leave(a.handover, a.hand, newest.position, drafts, token, chance);
    }
    if (q < a.count) {
        cuda_dspark_answer *to = &a.result->answer[q];

        to->low = max(__ldcg(a.low + a.place[q]), a.newest ? newest.low : a.least[q]);
        to->position = newest.told ? newest.position : 0;
        to->ns = a.newest ? (uint32_t)(now_ns() - newest.begun_ns) : 0;
        for (uint32_t i = 0; i < a.guesses[q]; i++) {
            to->token[i] = __ldcg(a.guess + (uint64_t)q * a.guess_stride + i);
            to->confidence[i] = a.chance ? __ldcg(a.chance + (uint64_t)q * a.guess_stride + i) : 1.0f;
        }
        __threadfence_system();
    }
    __syncthreads();
    if (q == 0) *(volatile uint64_t *)&a.result->round = a.round;   /* W1 -> cuda_dspark_wait: the answers are in host memory */
}

int dspark_begin_launch(const struct dspark_begin_args *args, void *stream)
{
    begin_kernel<<<1, 1, 0, (cudaStream_t)stream>>>(*args);
    return launch_check(cudaGetLastError(), "dspark begin");
}

int dspark_gather_launch(const struct dspark_gather_args *args, uint32_t rows, void *stream)
{
    dspark_gather_args a = *args;

    if (rows == 0 || rows > CUDA_DSPARK_ABSORB_MAX || a.hidden % 8 || a.hidden > HIDDEN_MAX || a.sources == 0) return -E_RANGE;
    gather_kernel<<<dim3(rows, a.sources), THREADS, 0, (cudaStream_t)stream>>>(a);
    return launch_check(cudaGetLastError(), "dspark gather");
}

int dspark_feature_launch(const struct dspark_feature_args *args, uint32_t rows, void *stream)
{
    dspark_feature_args a = *args;
    void *params[] = { &a };

    if (rows == 0 || a.hidden > HIDDEN_MAX) return -E_RANGE;
    return launch_chained((const void *)feature_kernel, rows, WIDE, 0, params, stream);
}

int dspark_start_launch(const struct dspark_start_args *args, uint32_t rows, void *stream)
{
    dspark_start_args a = *args;
    void *params[] = { &a };

    if (rows == 0 || a.block == 0 || rows > a.block * CUDA_DSPARK_ROWS_MAX || a.hidden > HIDDEN_MAX) return -E_RANGE;
    a.y_places = places_known(a.y_places, a.hidden);
    return launch_first((const void *)start_kernel, rows, WIDE, 0, params, stream);
}

int dspark_publish_launch(const struct dspark_publish_args *args, void *stream)
{
    publish_kernel<<<1, 32, 0, (cudaStream_t)stream>>>(*args);
    return launch_check(cudaGetLastError(), "dspark answers");
}

int dspark_ops_init(void)
{
    cudaFuncAttributes attributes;
    int rc = launch_prepare((const void *)gather_kernel, 0);

    if (rc == 0) rc = launch_check(cudaFuncGetAttributes(&attributes, (const void *)begin_kernel), "loading a kernel");      /* now: behind a stream's wait, loading would wait for that */
    if (rc == 0) rc = launch_prepare((const void *)feature_kernel, 0);
    return rc ? rc : launch_prepare((const void *)start_kernel, 0);
}
