/* kernels/cuda/plain_ops.cu - embedding, norms, heads and logits in the CPU's order (contract in plain_ops.cuh). */
#include "plain_ops.cuh"
#include "soft.h"
#include "device.cuh"
#include "plain_launch.cuh"
#include "plain_math.cuh"
#include "kernels/stored.h"
#include <math_constants.h>

#define E4M3_SCALE_MIN (1.0f / (448.0f * 512.0f))   /* KERNELS_E4M3_SCALE_MIN: zeros stay zeros */
#define NORM_THREADS 256
#define NORM_CHUNK 4096               /* elements of a row in shared memory at a time */
#define LOGITS_THREADS 256

__global__ void plain_rows_kernel(plain_row *row, const step_state *state, const uint32_t *last_token, uint32_t rows)
{
    const uint32_t r = blockIdx.x * blockDim.x + threadIdx.x;
    plain_row out = { 0, 0, 0, 0 };

    chain_trigger();
    chain_wait();
    if (r >= rows) return;
    if (r < state->rows) {
        const step_row *in = &state->row[r];

        out.token = in->token == STEP_TOKEN_LAST ? ld_l2(last_token + r) : in->token;
        out.position = in->position;
        out.seq = state->group[in->group].seq;
        out.live = 1;
    }
    row[r] = out;
}

int plain_rows_launch_from_state(struct plain_row *row, const struct step_state *state, const uint32_t *last_token, uint32_t rows, void *stream)
{
    void *params[] = { &row, &state, &last_token, &rows };

    return launch_first((const void *)plain_rows_kernel, (rows + 31) / 32, 32, 0, params, stream);
}

__global__ void plain_embed_kernel(const __grid_constant__ plain_embed a)
{
    chain_trigger();
    chain_wait();
    const uint32_t token = ld_l2(&a.row[blockIdx.x].token);
    const uint64_t from = (uint64_t)token * a.hidden, to = (uint64_t)blockIdx.x * a.hidden;

    if (token >= SOFT_TOKEN && a.soft) {
        for (uint32_t i = threadIdx.x; i < a.hidden; i += blockDim.x) a.h[to + i] = ld_l2(&a.soft[(uint64_t)(token - SOFT_TOKEN) * a.hidden + i]);
        return;
    }
    for (uint32_t i = threadIdx.x; i < a.hidden; i += blockDim.x) {
        const float w = a.weight_bytes == 2 ? plain_widen(((const uint16_t *)a.table)[from + i]) : ((const float *)a.table)[from + i];

        a.h[to + i] = plain_mul(w, a.scale);
    }
}

int plain_embed_launch(const struct plain_embed *args, uint32_t rows, void *stream)
{
    return plain_chained(plain_embed_kernel, rows, NORM_THREADS, 0, stream, *args);
}

/* The tree (l, l + 8), (l, l + 4), (l, l + 2), (0, 1): lane l % 16 of a warp holds lane l. The same in every thread. */
__device__ __forceinline__ float tree16(float lane)
{
#pragma unroll
    for (int d = 8; d >= 1; d >>= 1) lane = plain_add(lane, __shfl_xor_sync(0xffffffffu, lane, d));
    return lane;
}

/* Sum of squares of row[0 .. n) in 16 lanes, the same in every thread of the block. The row goes through shared memory in pieces: the sum is a
 * chain of n / 16 dependent steps, so what feeds it must be near. */
__device__ float row_squares(const float *row, uint32_t n, float *chunk, float *result)
{
    float lane = 0.0f;

    for (uint32_t at = 0; at < n; at += NORM_CHUNK) {
        const uint32_t count = n - at < NORM_CHUNK ? n - at : NORM_CHUNK;

        __syncthreads();              /* the last piece has been read */
        for (uint32_t i = threadIdx.x; i < count; i += blockDim.x) chunk[i] = ld_l2(row + at + i);
        __syncthreads();
        if (threadIdx.x < 32) {
#pragma unroll 16
            for (uint32_t i = threadIdx.x % 16; i < count; i += 16) lane = plain_fma(chunk[i], chunk[i], lane);
        }
    }
    if (threadIdx.x < 32) {
        const float sum = tree16(lane);

        if (threadIdx.x == 0) *result = sum;
    }
    __syncthreads();
    return *result;
}

__global__ void __launch_bounds__(NORM_THREADS) plain_norm_kernel(const __grid_constant__ plain_norm a)
{
    __shared__ float chunk[NORM_CHUNK], result[2];
    const uint64_t at = (uint64_t)blockIdx.x * a.hidden;
    float *h = a.h + at;

    chain_trigger();
    chain_wait();
    if (a.y) {
        const float *y = a.y + at, scalar = a.scalar ? *a.scalar : 1.0f;
        const float scale = plain_norm_scale(row_squares(y, a.hidden, chunk, &result[0]), a.hidden, a.eps);

        for (uint32_t i = threadIdx.x; i < a.hidden; i += blockDim.x)
            h[i] = plain_mul(plain_add(ld_l2(h + i), plain_mul(plain_mul(ld_l2(y + i), scale), a.w_post[i])), scalar);
        __syncthreads();
    }
    if (!a.w_next) return;
    const float scale = plain_norm_scale(row_squares(h, a.hidden, chunk, &result[1]), a.hidden, a.eps);

    for (uint32_t i = threadIdx.x; i < a.hidden; i += blockDim.x) {
        const float x = plain_mul(plain_mul(ld_l2(h + i), scale), a.w_next[i]);

        a.x[at + i] = x;
        if (a.hidden_out) a.hidden_out[at + i] = plain_narrow(x);
    }
}

int plain_norm_launch(const struct plain_norm *args, uint32_t rows, void *stream)
{
    return plain_chained(plain_norm_kernel, rows, NORM_THREADS, 0, stream, *args);
}

/* A block per row. The largest of numbers does not depend on their order. */
__global__ void __launch_bounds__(NORM_THREADS) plain_round_kernel(const __grid_constant__ plain_round a)
{
    __shared__ float tops[NORM_THREADS / 32];
    const float *x = a.x + (uint64_t)blockIdx.x * a.k;
    float *y = a.y + (uint64_t)blockIdx.x * a.k, scale = a.fixed, top = 0.0f;

    chain_trigger();
    chain_wait();
    if (a.fixed == 0.0f) {
        for (uint32_t i = threadIdx.x; i < a.k; i += NORM_THREADS) top = fmaxf(top, fabsf(ld_l2(x + i)));
        for (int d = 16; d >= 1; d >>= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, d));
        if (threadIdx.x % 32 == 0) tops[threadIdx.x / 32] = top;
        __syncthreads();
        for (int i = 0; i < NORM_THREADS / 32; i++) top = fmaxf(top, tops[i]);
        scale = plain_div(top, STORED_E4M3_MAX);
        if (scale < E4M3_SCALE_MIN) scale = E4M3_SCALE_MIN;
    }
    const float inverse = a.fixed == 0.0f ? 0.0f : plain_div(1.0f, a.fixed);
    for (uint32_t i = threadIdx.x; i < a.k; i += NORM_THREADS) {
        const float v = ld_l2(x + i);

        y[i] = plain_to_e4m3(a.fixed == 0.0f ? plain_div(v, scale) : plain_mul(v, inverse));
    }
    if (threadIdx.x == 0) a.scale[blockIdx.x] = scale;
}

int plain_round_launch(const struct plain_round *args, uint32_t rows, void *stream)
{
    return plain_chained(plain_round_kernel, rows, NORM_THREADS, 0, stream, *args);
}

/* One warp, one head: its norm in place. Both halves of the warp hold the 16 lanes. */
__device__ __forceinline__ void head_norm(float *x, const float *w, uint32_t dim, float eps)
{
    const uint32_t t = threadIdx.x;
    float lane = 0.0f;

#pragma unroll 16
    for (uint32_t i = t % 16; i < dim; i += 16) lane = plain_fma(x[i], x[i], lane);
    const float scale = plain_norm_scale(tree16(lane), dim, eps);

    __syncwarp();
    for (uint32_t i = t; i < dim; i += 32) {
        const float a = plain_mul(x[i], scale);

        x[i] = w ? plain_mul(a, w[i]) : a;
    }
    __syncwarp();
}

__device__ __forceinline__ void head_turn(float *x, const float2 *angle, uint32_t half, uint32_t turned)
{
    for (uint32_t i = threadIdx.x; i < turned; i += 32) {
        const float a = x[i], b = x[half + i];

        x[i] = plain_turn_low(a, b, angle[i].x, angle[i].y);
        x[half + i] = plain_turn_high(a, b, angle[i].x, angle[i].y);
    }
    __syncwarp();
}

__device__ __forceinline__ void head_store(uint8_t *to, const float *x, uint32_t dim, uint32_t kv_bytes)
{
    for (uint32_t i = threadIdx.x; i < dim; i += 32) {
        if (kv_bytes == 2) ((uint16_t *)to)[i] = plain_narrow(x[i]);
        else if (kv_bytes == 1) to[i] = (uint8_t)pack_e4m3(x[i], 0.0f);
        else ((float *)to)[i] = x[i];
    }
}

__global__ void __launch_bounds__(32) plain_heads_kernel(const __grid_constant__ plain_heads a)
{
    __shared__ float x[PLAIN_HEAD_DIM_MAX], v[PLAIN_HEAD_DIM_MAX];
    const uint32_t head = blockIdx.x, dim = a.dim;
    chain_trigger();
    chain_wait();
    const uint4 record = ld_l2((const uint4 *)&a.row[blockIdx.y]);
    const plain_row row = { record.x, record.y, record.z, record.w };
    float *from = a.qkv + blockIdx.y * a.stride + (uint64_t)head * dim;
    const float2 *angle = a.angle + (uint64_t)row.position * a.turned;

    if (!row.live) return;
    for (uint32_t i = threadIdx.x; i < dim; i += 32) x[i] = ld_l2(from + i);
    __syncwarp();
    if (head < a.q_heads) {
        head_norm(x, a.q_norm, dim, a.eps);
        head_turn(x, angle, dim / 2, a.turned);
        for (uint32_t i = threadIdx.x; i < dim; i += 32) from[i] = x[i];
        return;
    }
    const uint32_t kv = head - a.q_heads, page = ld_l2(a.pages + (uint64_t)row.seq * a.pages_stride + row.position / PLAIN_PAGE_TOKENS % a.ring_pages);
    uint8_t *to = a.pool + page * a.page_bytes + ((uint64_t)kv * PLAIN_PAGE_TOKENS + row.position % PLAIN_PAGE_TOKENS) * dim * a.kv_bytes;

    for (uint32_t i = threadIdx.x; i < dim; i += 32) v[i] = a.has_v ? ld_l2(from + (uint64_t)a.kv_heads * dim + i) : x[i];   /* else the bare key projection */
    __syncwarp();
    if (a.has_v_norm) head_norm(v, NULL, dim, a.eps);
    head_norm(x, a.k_norm, dim, a.eps);
    head_turn(x, angle, dim / 2, a.turned);
    head_store(to + a.k_offset, x, dim, a.kv_bytes);
    head_store(to + a.v_offset, v, dim, a.kv_bytes);
}

int plain_heads_launch(const struct plain_heads *args, uint32_t rows, void *stream)
{
    return plain_chained(plain_heads_kernel, dim3(args->q_heads + args->kv_heads, rows), 32, 0, stream, *args);
}

__global__ void __launch_bounds__(LOGITS_THREADS) plain_logits_kernel(const __grid_constant__ plain_logits a)
{
    const uint32_t i = blockIdx.x * LOGITS_THREADS + threadIdx.x;
    float *logit = a.logits + (uint64_t)blockIdx.y * a.vocab + i;
    float x = -CUDART_INF_F;

    chain_trigger();
    chain_wait();
    if (i < a.vocab) {
        x = ld_l2(logit);
        if (a.softcap != 0.0f) x = plain_softcap(x, a.softcap);
        *logit = x;
    }
    for (int d = 8; d >= 1; d >>= 1) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, d));
    if (i < a.vocab && i % 16 == 0) a.tile_top[(uint64_t)blockIdx.y * (a.vocab / 16) + i / 16] = x;
}

int plain_logits_launch(const struct plain_logits *args, uint32_t rows, void *stream)
{
    return plain_chained(plain_logits_kernel, dim3((args->vocab + LOGITS_THREADS - 1) / LOGITS_THREADS, rows), LOGITS_THREADS, 0, stream, *args);
}

/* All kernels of a step ask for the same carveout: an SM that must change it between two kernels loses some 40 us. */
int plain_ops_init(void)
{
    const void *const kernels[] = { (const void *)plain_rows_kernel, (const void *)plain_embed_kernel, (const void *)plain_norm_kernel,
                                    (const void *)plain_heads_kernel, (const void *)plain_round_kernel, (const void *)plain_logits_kernel };
    int rc = 0;

    for (const void *kernel : kernels)
        if (rc == 0) rc = launch_prepare(kernel, 0);
    return rc;
}
