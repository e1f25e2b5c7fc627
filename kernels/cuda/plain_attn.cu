/* kernels/cuda/plain_attn.cu - attention in the CPU's order (contract in plain_attn.cuh). */
#include "plain_attn.cuh"
#include "device.cuh"
#include "plain_launch.cuh"
#include "plain_math.cuh"
#include <math_constants.h>

#define ATTN_THREADS 256              /* = PLAIN_SEGMENT: thread i holds the score of position i of the segment */
#define SEGMENT_PAGES (PLAIN_SEGMENT / PLAIN_PAGE_TOKENS)
#define SEGMENT_BLOCKS_MAX 128u       /* blocks along the segments of a row: beyond, each takes several */
#define JOIN_THREADS 128

/* A record of the chain's first kernel. */
__device__ __forceinline__ plain_row read_row(const plain_row *row)
{
    const uint4 v = ld_l2((const uint4 *)row);

    return { v.x, v.y, v.z, v.w };
}

struct span { uint32_t first, last; };          /* positions that a row sees, both included */

/* In layers that look ahead the rest of its picture, too. */
__device__ __forceinline__ span visible(const plain_attn &a, const plain_row &row, uint32_t r)
{
    const uint32_t position = row.position, ahead = !a.looks_ahead || row.live == 0 ? 0 : row.live - 1;

    if (a.first) return { ld_l2(a.first + r), position + ahead };
    return { a.window == 0 || position < a.window ? 0 : position - a.window + 1, position + ahead };
}

struct attn_shared {
    float q[PLAIN_HEAD_DIM_MAX];
    float score[PLAIN_SEGMENT];
    float warp_top[ATTN_THREADS / 32];
    float sum;
    const uint8_t *page[SEGMENT_PAGES];
};

__device__ __forceinline__ float4 load4(const uint16_t *p)
{
    const uint2 v = __ldcg((const uint2 *)p);

    return make_float4(plain_float(v.x << 16), plain_float(v.x & 0xffff0000u), plain_float(v.y << 16), plain_float(v.y & 0xffff0000u));
}
/* E4M3. Exact: every code is an f16. */
__device__ __forceinline__ float2 widen_codes(uint32_t pair)
{
    const uint32_t halves = e4m3x2_to_f16x2((uint16_t)pair);

    return __half22float2(*(const __half2 *)&halves);
}
__device__ __forceinline__ float4 load4(const uint8_t *p)
{
    const uint32_t v = __ldcg((const uint32_t *)p);
    const float2 low = widen_codes(v), high = widen_codes(v >> 16);

    return make_float4(low.x, low.y, high.x, high.y);
}
__device__ __forceinline__ float2 load2(const uint8_t *p) { return widen_codes(__ldcg((const uint16_t *)p)); }
__device__ __forceinline__ float4 load4(const float *p) { return __ldcg((const float4 *)p); }
__device__ __forceinline__ float2 load2(const uint16_t *p)
{
    const uint32_t v = __ldcg((const uint32_t *)p);

    return make_float2(plain_float(v << 16), plain_float(v & 0xffff0000u));
}
__device__ __forceinline__ float2 load2(const float *p) { return __ldcg((const float2 *)p); }

/* score[i] = q . k * scale of positions segment + from .. segment + to; -inf elsewhere. A quad of threads per key, lanes as in plain_linear.cu. */
template <typename E>
__device__ void segment_scores(const plain_attn &a, attn_shared &sh, uint64_t k_at, uint32_t from, uint32_t to)
{
    const uint32_t quad = threadIdx.x / 4, t = threadIdx.x % 4;

    for (uint32_t i = quad; i < PLAIN_SEGMENT; i += ATTN_THREADS / 4) {
        const bool in = i >= from && i <= to;
        float4 s = make_float4(0, 0, 0, 0);

        if (in) {
            const E *k = (const E *)(sh.page[i / PLAIN_PAGE_TOKENS] + k_at) + (uint64_t)(i % PLAIN_PAGE_TOKENS) * a.dim + 4 * t;

#pragma unroll 16
            for (uint32_t d = 0; d < a.dim; d += 16) {
                const float4 w = load4(k + d), x = *(const float4 *)(sh.q + d + 4 * t);

                s.x = plain_fma(w.x, x.x, s.x);
                s.y = plain_fma(w.y, x.y, s.y);
                s.z = plain_fma(w.z, x.z, s.z);
                s.w = plain_fma(w.w, x.w, s.w);
            }
        }
#pragma unroll
        for (int d = 2; d >= 1; d >>= 1) {
            s.x = plain_add(s.x, __shfl_xor_sync(0xffffffffu, s.x, d));
            s.y = plain_add(s.y, __shfl_xor_sync(0xffffffffu, s.y, d));
            s.z = plain_add(s.z, __shfl_xor_sync(0xffffffffu, s.z, d));
            s.w = plain_add(s.w, __shfl_xor_sync(0xffffffffu, s.w, d));
        }
        if (t == 0) sh.score[i] = in ? plain_mul(plain_add(plain_add(s.x, s.z), plain_add(s.y, s.w)), a.scale) : -CUDART_INF_F;
    }
    __syncthreads();
}

/* Turns the scores into exponentials against their maximum; returns both, the same in every thread. Lanes are by position, and positions that are not
 * seen add zero, which changes no sum. */
__device__ float2 segment_softmax(attn_shared &sh)
{
    const uint32_t i = threadIdx.x;
    float score = sh.score[i], top = score;

    for (int d = 16; d >= 1; d >>= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, d));
    if (i % 32 == 0) sh.warp_top[i / 32] = top;
    __syncthreads();
    for (int w = 0; w < ATTN_THREADS / 32; w++) top = fmaxf(top, sh.warp_top[w]);
    sh.score[i] = plain_exp(plain_sub(score, top));
    __syncthreads();
    if (i < 32) {
        float lane = 0.0f;

#pragma unroll
        for (uint32_t j = 0; j < PLAIN_SEGMENT; j += 16) lane = plain_add(lane, sh.score[j + i % 16]);
#pragma unroll
        for (int d = 8; d >= 1; d >>= 1) lane = plain_add(lane, __shfl_xor_sync(0xffffffffu, lane, d));
        if (i == 0) sh.sum = lane;
    }
    __syncthreads();
    return make_float2(top, sh.sum);
}

/* to[d] = the sum of e[i] * value[i][d] in order of position; a thread holds two neighbours d. alone: the row sees this segment only, so the sum is
 * divided at once and needs no joining. */
template <typename E>
__device__ void segment_values(const plain_attn &a, const attn_shared &sh, uint64_t v_at, uint32_t from, uint32_t last, bool alone, float *to)
{
    for (uint32_t d = 2 * threadIdx.x; d < a.dim; d += 2 * ATTN_THREADS) {
        float2 acc = make_float2(0, 0);

#pragma unroll 16
        for (uint32_t i = from; i <= last; i++) {
            const E *v = (const E *)(sh.page[i / PLAIN_PAGE_TOKENS] + v_at) + (uint64_t)(i % PLAIN_PAGE_TOKENS) * a.dim + d;
            const float2 w = load2(v);

            acc.x = plain_fma(sh.score[i], w.x, acc.x);
            acc.y = plain_fma(sh.score[i], w.y, acc.y);
        }
        *(float2 *)(to + d) = alone ? make_float2(plain_div(acc.x, sh.sum), plain_div(acc.y, sh.sum)) : acc;
    }
}

/* Block (segment, head, row): rows `first` and on. */
template <typename E>
__global__ void __launch_bounds__(ATTN_THREADS, 4) plain_segment_kernel(const __grid_constant__ plain_attn a, uint32_t first)
{
    __shared__ attn_shared sh;
    const uint32_t head = blockIdx.y, r = first + blockIdx.z;
    chain_trigger();
    chain_wait();
    const plain_row row = read_row(&a.row[r]);
    const span see = visible(a, row, r);
    const uint32_t begin = see.first / PLAIN_SEGMENT, count = see.last / PLAIN_SEGMENT - begin + 1;
    const uint64_t head_at = (uint64_t)(head / (a.q_heads / a.kv_heads)) * PLAIN_PAGE_TOKENS * a.dim * sizeof(E);

    if (!row.live) return;
    for (uint32_t s = blockIdx.x; s < count; s += gridDim.x) {
        const uint32_t segment = (begin + s) * PLAIN_SEGMENT;
        const uint32_t from = see.first > segment ? see.first - segment : 0, to = see.last - segment < PLAIN_SEGMENT ? see.last - segment : PLAIN_SEGMENT - 1;
        const uint64_t at = ((uint64_t)blockIdx.z * a.q_heads + head) * a.segments_max + s;

        __syncthreads();              /* the last segment is done with shared memory */
        if (threadIdx.x >= from / PLAIN_PAGE_TOKENS && threadIdx.x <= to / PLAIN_PAGE_TOKENS)   /* pages beyond may not exist */
            sh.page[threadIdx.x] = a.pool + a.page_bytes * ld_l2(a.pages + (uint64_t)row.seq * a.pages_stride + (segment / PLAIN_PAGE_TOKENS + threadIdx.x) % a.ring_pages);
        for (uint32_t d = threadIdx.x; d < a.dim; d += ATTN_THREADS) sh.q[d] = ld_l2(a.q + r * a.q_stride + (uint64_t)head * a.dim + d);
        __syncthreads();
        segment_scores<E>(a, sh, a.k_offset + head_at, from, to);
        const float2 top = segment_softmax(sh);

        if (threadIdx.x == 0) a.part_top[at] = top;
        segment_values<E>(a, sh, a.v_offset + head_at, from, to, count == 1, count == 1 ? a.out + ((uint64_t)r * a.q_heads + head) * a.dim : a.part + at * a.dim);
    }
}

/* Joins a row's segments in ascending order: the larger maximum rescales the other side. */
__global__ void __launch_bounds__(JOIN_THREADS) plain_join_kernel(const __grid_constant__ plain_attn a, uint32_t first)
{
    const uint32_t head = blockIdx.x, r = first + blockIdx.y;
    chain_trigger();
    chain_wait();
    const plain_row row = read_row(&a.row[r]);
    const span see = visible(a, row, r);
    const uint32_t count = see.last / PLAIN_SEGMENT - see.first / PLAIN_SEGMENT + 1;
    const uint64_t at = ((uint64_t)blockIdx.y * a.q_heads + head) * a.segments_max;

    if (!row.live || count == 1) return;      /* the segment kernel has written the result of one segment */
    for (uint32_t d = threadIdx.x; d < a.dim; d += JOIN_THREADS) {
        float2 all = __ldcg(&a.part_top[at]);
        float acc = ld_l2(&a.part[at * a.dim + d]);

        for (uint32_t s = 1; s < count; s++) {
            const float2 part = __ldcg(&a.part_top[at + s]);
            const float top = part.x > all.x ? part.x : all.x;
            const float old_scale = plain_exp(plain_sub(all.x, top)), new_scale = plain_exp(plain_sub(part.x, top));

            acc = plain_fma(ld_l2(&a.part[(at + s) * a.dim + d]), new_scale, plain_mul(acc, old_scale));
            all.y = plain_fma(part.y, new_scale, plain_mul(all.y, old_scale));
            all.x = top;
        }
        a.out[((uint64_t)r * a.q_heads + head) * a.dim + d] = plain_div(acc, all.y);
    }
}

int plain_attn_launch(const struct plain_attn *args, uint32_t rows, void *stream)
{
    const uint32_t blocks = args->segments_max < SEGMENT_BLOCKS_MAX ? args->segments_max : SEGMENT_BLOCKS_MAX;

    for (uint32_t first = 0; first < rows; first += args->batch_rows) {
        const uint32_t batch = rows - first < args->batch_rows ? rows - first : args->batch_rows;
        const dim3 grid(blocks, args->q_heads, batch);

        int rc = plain_chained(args->kv_bytes == 1 ? plain_segment_kernel<uint8_t> : args->kv_bytes == 2 ? plain_segment_kernel<uint16_t> : plain_segment_kernel<float>, grid, ATTN_THREADS, 0, stream, *args, first);

        if (rc == 0) rc = plain_chained(plain_join_kernel, dim3(args->q_heads, batch), JOIN_THREADS, 0, stream, *args, first);
        if (rc) return rc;
    }
    return 0;
}

/* The same carveout as the other kernels of a step (plain_ops.cu says why). */
int plain_attn_init(void)
{
    int rc = launch_prepare((const void *)plain_segment_kernel<uint16_t>, 0);

    if (rc == 0) rc = launch_prepare((const void *)plain_segment_kernel<float>, 0);
    if (rc == 0) rc = launch_prepare((const void *)plain_segment_kernel<uint8_t>, 0);
    return rc ? rc : launch_prepare((const void *)plain_join_kernel, 0);
}
