/* kernels/cuda/dspark_attn.cu - see dspark_attn.h.
 *
 * One key head serves 7 x 16 queries: 112 rows of a matrix product, so the keys of a span are read once for all of them. Seven warps take 16 queries
 * each for the scores; eight take 64 columns each of p v. */
#include "dspark_attn.h"

#include "device.cuh"
#include "launch.h"
#include "shm/error.h"
#include <cuda_runtime.h>

#define HEAD_THREADS 128u
#define HEAD_EACH (DSPARK_DIM / HEAD_THREADS)
#define ATTEND_THREADS 256u
#define ATTEND_WARPS (ATTEND_THREADS / 32)
#define ROW_STRIDE (DSPARK_DIM + 8)       /* bf16, rows fall into different banks */
#define P_STRIDE (DSPARK_SPAN + 8)
#define M_TILES (DSPARK_QUERIES / 16)
#define NEVER (-3.0e38f)

static_assert(M_TILES <= ATTEND_WARPS && DSPARK_DIM == ATTEND_WARPS * 64, "tiles of the warps");

/* Tiles of queries of a block: all, or, while spans are fewer than multiprocessors, a part: several blocks then read a span's keys. The bits are the same. */
#define TILES_FEW 2u
#define BLOCKS_FEW 264u               /* of TILES_FEW tiles, two fit on a multiprocessor */

template <uint32_t TILES> struct attend_shared {
    __nv_bfloat16 q[TILES * 16][ROW_STRIDE], k[DSPARK_SPAN][ROW_STRIDE], v[DSPARK_SPAN][ROW_STRIDE], p[TILES * 16][P_STRIDE];
};
static_assert(sizeof(attend_shared<M_TILES>) <= LAUNCH_SHARED_MAX && 2 * sizeof(attend_shared<TILES_FEW>) <= LAUNCH_SHARED_MAX, "shared memory");

/* Position of the first row, and the first position that its window holds. Behind chain_wait. */
struct block_place { uint32_t position, low; };

__device__ __forceinline__ block_place place_of(const dspark_attn_args &a, const dspark_attn_seq &s)
{
    return a.newest ? block_place{ ld_l2(&a.newest->position), ld_l2(&a.newest->low) } : block_place{ s.position, s.low };
}

/* ---- heads: 128 threads for one head of one row; thread t has elements t, t + 128, t + 256, t + 384 ---- */

__device__ float head_scale(const float x[HEAD_EACH], float eps)
{
    __shared__ float part[HEAD_THREADS / 32];
    float sum = 0;

    for (uint32_t i = 0; i < HEAD_EACH; i++) sum += x[i] * x[i];
    for (int d = 16; d; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
    for (uint32_t w = 0; w < HEAD_THREADS / 32; w++) sum += part[w];
    return rsqrtf(sum / DSPARK_DIM + eps);
}

/* to = bf16(turn(x * scale * weight)): elements j and j + 256 are a pair, both in one thread. */
__device__ void turn_head(const float x[HEAD_EACH], float scale, const __nv_bfloat16 *weight, const float *inv_freq, uint32_t position, __nv_bfloat16 *to)
{
    float y[HEAD_EACH];

    for (uint32_t i = 0; i < HEAD_EACH; i++) y[i] = x[i] * scale * __bfloat162float(weight[threadIdx.x + i * HEAD_THREADS]);
    if (threadIdx.x < DSPARK_TURNED) {
        float s, c;

        sincosf(inv_freq[threadIdx.x] * (float)position, &s, &c);
        const float a = y[0], b = y[2];

        y[0] = a * c - b * s, y[2] = b * c + a * s;
    }
    for (uint32_t i = 0; i < HEAD_EACH; i++) to[threadIdx.x + i * HEAD_THREADS] = __float2bfloat16(y[i]);
}

__device__ void put_key(const float x[HEAD_EACH], float eps, const __nv_bfloat16 *weight, const float *inv_freq, uint32_t position, __nv_bfloat16 *k, __nv_bfloat16 *v)
{
    const float scale = head_scale(x, eps);

    turn_head(x, scale, weight, inv_freq, position, k);
    for (uint32_t i = 0; i < HEAD_EACH; i++) v[threadIdx.x + i * HEAD_THREADS] = __float2bfloat16(x[i] * scale);
}

__global__ void __launch_bounds__(HEAD_THREADS) heads_kernel(const dspark_attn_args a)
{
    const uint32_t row = blockIdx.x / (DSPARK_HEADS + 1), head = blockIdx.x % (DSPARK_HEADS + 1);
    const dspark_attn_seq &s = a.seq[blockIdx.y];
    float x[HEAD_EACH];

    chain_trigger();
    chain_wait();
    for (uint32_t i = 0; i < HEAD_EACH; i++) x[i] = ld_l2(a.qkv + ((uint64_t)blockIdx.y * a.rows + row) * a.qkv_stride + head * DSPARK_DIM + threadIdx.x + i * HEAD_THREADS);
    const uint32_t position = place_of(a, s).position + row;

    if (head < DSPARK_HEADS) {
        turn_head(x, head_scale(x, a.eps), a.q_norm, a.inv_freq, position, a.q + ((uint64_t)blockIdx.y * DSPARK_QUERIES + row * DSPARK_HEADS + head) * DSPARK_DIM);
        return;
    }
    const uint64_t at = (uint64_t)(position % a.ring_rows) * DSPARK_DIM;
    put_key(x, a.eps, a.k_norm, a.inv_freq, position, s.k + at, s.v + at);
}

__global__ void __launch_bounds__(HEAD_THREADS) keys_kernel(const dspark_keys_args a)
{
    const uint32_t row = blockIdx.x / a.layers, layer = blockIdx.x % a.layers;
    float x[HEAD_EACH];

    chain_trigger();
    chain_wait();
    if (a.newest && row >= ld_l2(&a.newest->absorb)) return;
    for (uint32_t i = 0; i < HEAD_EACH; i++) x[i] = ld_l2(a.keys + ((uint64_t)row * a.layers + layer) * DSPARK_DIM + threadIdx.x + i * HEAD_THREADS);
    const uint64_t at = ((uint64_t)layer * a.ring_rows + (a.position + row) % a.ring_rows) * DSPARK_DIM;
    put_key(x, a.eps, a.k_norm + layer * DSPARK_DIM, a.inv_freq, a.position + row, a.k + at, a.v + at);
}

/* ---- all queries over the keys of a span ---- */

__device__ __forceinline__ void load_matrices(uint32_t r[4], const void *p)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(smem_address(p)) : "memory");
}

__device__ __forceinline__ void load_turned(uint32_t r[4], const void *p)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(smem_address(p)) : "memory");
}

__device__ __forceinline__ void multiply_add(float c[4], const uint32_t a[4], uint32_t b0, uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* Queries, and the span's keys and values; what is not there is zero. */
template <uint32_t TILES>
__device__ void load_span(const dspark_attn_args &a, const dspark_attn_seq &seq, const __nv_bfloat16 *q, attend_shared<TILES> *s, uint32_t query0, uint32_t first, uint32_t begin, uint32_t end)
{
    const uint4 none = make_uint4(0, 0, 0, 0);

#pragma unroll
    for (uint32_t n = 0; n < DSPARK_SPAN * DSPARK_DIM / 8 / ATTEND_THREADS; n++) {
        const uint32_t i = threadIdx.x + n * ATTEND_THREADS;
        const uint32_t key = first + i / (DSPARK_DIM / 8), at = i % (DSPARK_DIM / 8) * 8;
        const bool there = key >= begin && key < end;
        const uint64_t from = (uint64_t)(key % a.ring_rows) * DSPARK_DIM + at;

        *(uint4 *)&s->k[key - first][at] = there ? __ldcg((const uint4 *)(seq.k + from)) : none;
        *(uint4 *)&s->v[key - first][at] = there ? __ldcg((const uint4 *)(seq.v + from)) : none;
    }
#pragma unroll 14
    for (uint32_t n = 0; n < TILES * 16 * DSPARK_DIM / 8 / ATTEND_THREADS; n++) {
        const uint32_t i = threadIdx.x + n * ATTEND_THREADS;
        const uint32_t query = i / (DSPARK_DIM / 8), at = i % (DSPARK_DIM / 8) * 8;

        *(uint4 *)&s->q[query][at] = query0 + query < a.rows * DSPARK_HEADS ? __ldcg((const uint4 *)(q + (uint64_t)(query0 + query) * DSPARK_DIM + at)) : none;
    }
    __syncthreads();
}

/* Scores of 16 queries with all keys of the span, their exponentials into p, maximum and sum into part_ml. */
template <uint32_t TILES>
__device__ void score(float2 *ml, attend_shared<TILES> *s, uint32_t tile, uint32_t lane, uint32_t first, uint32_t begin, uint32_t end)
{
    float c[DSPARK_SPAN / 8][4] = {};

    for (uint32_t k = 0; k < DSPARK_DIM; k += 32) {
        uint32_t q[2][4];

        load_matrices(q[0], &s->q[tile * 16 + lane % 16][k + lane / 16 * 8]);
        load_matrices(q[1], &s->q[tile * 16 + lane % 16][k + 16 + lane / 16 * 8]);
#pragma unroll
        for (uint32_t n = 0; n < DSPARK_SPAN / 8; n++) {
            uint32_t b[4];

            load_matrices(b, &s->k[n * 8 + lane % 8][k + lane / 8 * 8]);
            multiply_add(c[n], q[0], b[0], b[1]);
            multiply_add(c[n], q[1], b[2], b[3]);
        }
    }
    for (uint32_t h = 0; h < 2; h++) {
        const uint32_t query = tile * 16 + lane / 4 + 8 * h;
        float top = NEVER, sum = 0;

        for (uint32_t n = 0; n < DSPARK_SPAN / 8; n++)
            for (uint32_t e = 0; e < 2; e++) {
                const uint32_t key = first + n * 8 + lane % 4 * 2 + e;

                if (key < begin || key >= end) c[n][2 * h + e] = NEVER;
                top = fmaxf(top, c[n][2 * h + e]);
            }
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 1));
        top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, 2));
        for (uint32_t n = 0; n < DSPARK_SPAN / 8; n++) {
            __nv_bfloat162 pair;
            const float x = c[n][2 * h] == NEVER ? 0.0f : expf(c[n][2 * h] - top), y = c[n][2 * h + 1] == NEVER ? 0.0f : expf(c[n][2 * h + 1] - top);

            pair.x = __float2bfloat16(x), pair.y = __float2bfloat16(y);
            sum += __bfloat162float(pair.x) + __bfloat162float(pair.y);      /* of what multiplies the values */
            *(__nv_bfloat162 *)&s->p[query][n * 8 + lane % 4 * 2] = pair;
        }
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        if (lane % 4 == 0) ml[query] = make_float2(top, sum);
    }
}

template <uint32_t TILES>
__global__ void __launch_bounds__(ATTEND_THREADS, TILES == M_TILES ? 1 : 2) attend_kernel(const dspark_attn_args a)
{
    extern __shared__ __align__(16) uint8_t memory[];
    attend_shared<TILES> *s = (attend_shared<TILES> *)memory;
    const dspark_attn_seq &seq = a.seq[blockIdx.y];
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, span = blockIdx.x;

    chain_trigger();
    chain_wait();
    const block_place place = place_of(a, seq);
    const uint32_t first = (place.low / DSPARK_SPAN + span) * DSPARK_SPAN, end = place.position + a.rows;

    if (first >= end) return;
    const uint32_t begin = seq.low_device ? max(place.low, min(ld_l2(seq.low_device), place.position)) : place.low;
    const uint32_t query0 = blockIdx.z * TILES * 16, tiles = M_TILES - blockIdx.z * TILES < TILES ? M_TILES - blockIdx.z * TILES : TILES;
    const uint64_t at = ((uint64_t)blockIdx.y * a.spans_max + span) * DSPARK_QUERIES + query0;

    load_span(a, seq, a.q + (uint64_t)blockIdx.y * DSPARK_QUERIES * DSPARK_DIM, s, query0, first, begin, end);
    if (warp < tiles) score(a.part_ml + at, s, warp, lane, first, begin, end);
    __syncthreads();
    for (uint32_t n = 0; n < 64; n += 8) {
        const uint32_t column = warp * 64 + n;
        uint32_t v[4];

        load_turned(v, &s->v[lane][column]);
        for (uint32_t tile = 0; tile < tiles; tile++) {
            float c[4] = {};
            uint32_t p[4];

            load_matrices(p, &s->p[tile * 16 + lane % 16][lane / 16 * 8]);
            multiply_add(c, p, v[0], v[1]);
            load_matrices(p, &s->p[tile * 16 + lane % 16][16 + lane / 16 * 8]);
            multiply_add(c, p, v[2], v[3]);
            float *to = a.part + (at + tile * 16 + lane / 4) * DSPARK_DIM + column + lane % 4 * 2;
            *(float2 *)to = make_float2(c[0], c[1]);
            *(float2 *)(to + 8 * DSPARK_DIM) = make_float2(c[2], c[3]);
        }
    }
}

/* ---- the spans of one query, in ascending order ---- */

__host__ __device__ static inline uint32_t span_count(uint32_t position, uint32_t rows, uint32_t low) { return (position + rows - 1) / DSPARK_SPAN - low / DSPARK_SPAN + 1; }

#define COMBINE_SPANS 256u            /* weights that are kept at a time */

__global__ void __launch_bounds__(HEAD_THREADS) combine_kernel(const dspark_attn_args a)
{
    __shared__ float weight[COMBINE_SPANS], part_top[HEAD_THREADS / 32];
    const dspark_attn_seq &seq = a.seq[blockIdx.y];
    const uint32_t query = blockIdx.x;
    const uint64_t first = (uint64_t)blockIdx.y * a.spans_max * DSPARK_QUERIES + query;
    const float4 *part = (const float4 *)(a.part + first * DSPARK_DIM) + threadIdx.x;
    const float2 *part_ml = a.part_ml + first;
    const float power = power_or_one(a.out_power);
    float top = NEVER, sum = 0, out[HEAD_EACH] = {};

    chain_trigger();
    chain_wait();
    const block_place place = place_of(a, seq);
    const uint32_t spans = span_count(place.position, a.rows, place.low);

    for (uint32_t s = threadIdx.x; s < spans; s += HEAD_THREADS) top = fmaxf(top, __ldcg(&part_ml[(uint64_t)s * DSPARK_QUERIES].x));
    for (int d = 16; d; d /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, d));
    if (threadIdx.x % 32 == 0) part_top[threadIdx.x / 32] = top;
    __syncthreads();
    for (uint32_t w = 0; w < HEAD_THREADS / 32; w++) top = fmaxf(top, part_top[w]);
    for (uint32_t from = 0; from < spans; from += COMBINE_SPANS) {
        const uint32_t n = spans - from < COMBINE_SPANS ? spans - from : COMBINE_SPANS;

        for (uint32_t s = threadIdx.x; s < n; s += HEAD_THREADS) {
            const float2 ml = __ldcg(&part_ml[(uint64_t)(from + s) * DSPARK_QUERIES]);

            weight[s] = ml.y > 0.0f ? expf(ml.x - top) : 0.0f;
        }
        __syncthreads();
#pragma unroll 16
        for (uint32_t s = 0; s < n; s++) {
            const float4 p = ld_l2(part + (uint64_t)(from + s) * DSPARK_QUERIES * (DSPARK_DIM / 4));

            sum += weight[s] * __ldcg(&part_ml[(uint64_t)(from + s) * DSPARK_QUERIES].y);
            out[0] += weight[s] * p.x, out[1] += weight[s] * p.y, out[2] += weight[s] * p.z, out[3] += weight[s] * p.w;
        }
        __syncthreads();
    }
    uint32_t *to = (uint32_t *)(a.out + place_of(a.out_places, DSPARK_HEADS * DSPARK_DIM, blockIdx.y * a.rows + query / DSPARK_HEADS, query % DSPARK_HEADS * DSPARK_DIM + threadIdx.x * HEAD_EACH));

    for (uint32_t i = 0; i < HEAD_EACH / 2; i++) to[i] = pack_row(out[2 * i] / sum * power, out[2 * i + 1] / sum * power, a.out_power != NULL);
}

static int launch_grid(const void *fn, uint32_t x, uint32_t y, uint32_t z, uint32_t threads, uint32_t shared_bytes, void **params, void *stream)
{
    cudaLaunchAttribute attribute[1];
    cudaLaunchConfig_t config = {};

    attribute[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attribute[0].val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = dim3(x, y, z), config.blockDim = dim3(threads), config.dynamicSmemBytes = shared_bytes, config.stream = (cudaStream_t)stream;
    config.attrs = attribute, config.numAttrs = 1;
    return launch_check(cudaLaunchKernelExC(&config, fn, params), "dspark attention");
}

int dspark_attn_launch(const struct dspark_attn_args *args, void *stream)
{
    struct dspark_attn_args a = *args;
    const uint32_t parts = (M_TILES + TILES_FEW - 1) / TILES_FEW;
    uint32_t spans = 0;
    void *params[] = { &a };

    a.out_places = places_known(a.out_places, DSPARK_HEADS * DSPARK_DIM);
    if (a.rows == 0 || a.rows > DSPARK_ROWS_MAX || a.count == 0 || a.count > (a.newest ? 1 : DSPARK_SEQUENCES_MAX)) return -E_RANGE;
    for (uint32_t i = 0; i < a.count; i++) {
        const struct dspark_attn_seq *s = &a.seq[i];

        if (s->low > s->position || (!a.newest && s->position + a.rows - s->low > a.ring_rows)) return -E_RANGE;
        uint32_t own = span_count(s->position, a.rows, s->low);
        if (a.newest && own > a.spans_max) own = a.spans_max;      /* bounds of two positions: what a ring holds is never more */
        if (own > a.spans_max) return -E_RANGE;
        if (own > spans) spans = own;
    }
    int rc = launch_grid((const void *)heads_kernel, a.rows * (DSPARK_HEADS + 1), a.count, 1, HEAD_THREADS, 0, params, stream);
    if (rc == 0) rc = parts * spans * a.count <= BLOCKS_FEW ? launch_grid((const void *)attend_kernel<TILES_FEW>, spans, a.count, parts, ATTEND_THREADS, sizeof(attend_shared<TILES_FEW>), params, stream)
                                                        : launch_grid((const void *)attend_kernel<M_TILES>, spans, a.count, 1, ATTEND_THREADS, sizeof(attend_shared<M_TILES>), params, stream);
    if (rc == 0) rc = launch_grid((const void *)combine_kernel, a.rows * DSPARK_HEADS, a.count, 1, HEAD_THREADS, 0, params, stream);
    return rc;
}

int dspark_keys_launch(const struct dspark_keys_args *args, void *stream)
{
    struct dspark_keys_args a = *args;
    void *params[] = { &a };

    if (a.count == 0 || a.layers == 0 || a.count > a.ring_rows) return -E_RANGE;
    return launch_chained((const void *)keys_kernel, a.count * a.layers, HEAD_THREADS, 0, params, stream);
}

int dspark_attn_init(void)
{
    int rc = launch_prepare((const void *)heads_kernel, 0);

    if (rc == 0) rc = launch_prepare((const void *)keys_kernel, 0);
    if (rc == 0) rc = launch_prepare((const void *)attend_kernel<M_TILES>, sizeof(attend_shared<M_TILES>));
    if (rc == 0) rc = launch_prepare((const void *)attend_kernel<TILES_FEW>, sizeof(attend_shared<TILES_FEW>));
    if (rc == 0) rc = launch_prepare((const void *)combine_kernel, 0);
    return rc;
}
