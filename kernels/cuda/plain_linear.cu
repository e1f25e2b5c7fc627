/* kernels/cuda/plain_linear.cu - products in the CPU's order (contract in plain_linear.cuh).
 *
 * A quad of threads takes one row of w (or two) against M rows of x: thread t holds the lanes 4t .. 4t + 3, and the quad's
 * shuffles are the upper half of the fixed tree. The sum over k has k / 16 dependent steps whatever the machine, so the loads
 * of eight steps are in flight at a time. */
#include "plain_linear.cuh"
#include "launch.h"
#include "plain_math.cuh"
#include <cuda_runtime.h>

#define LINEAR_THREADS 128
#define LINEAR_QUADS (LINEAR_THREADS / 4)

__device__ __forceinline__ float4 linear_weight(const uint16_t *w)
{
    const uint2 v = __ldg((const uint2 *)w);

    return make_float4(plain_float(v.x << 16), plain_float(v.x & 0xffff0000u), plain_float(v.y << 16), plain_float(v.y & 0xffff0000u));
}

__device__ __forceinline__ float4 linear_weight(const float *w) { return __ldg((const float4 *)w); }

__device__ __forceinline__ void linear_add(float4 &acc, const float4 &w, const float4 &x)
{
    acc.x = plain_fma(w.x, x.x, acc.x);
    acc.y = plain_fma(w.y, x.y, acc.y);
    acc.z = plain_fma(w.z, x.z, acc.z);
    acc.w = plain_fma(w.w, x.w, acc.w);
}

/* The tree (l, l + 8), (l, l + 4), (l, l + 2), (0, 1) over a quad's lanes. All 32 threads take part. */
__device__ __forceinline__ float linear_tree(float4 a)
{
#pragma unroll
    for (int d = 2; d >= 1; d >>= 1) {
        a.x = plain_add(a.x, __shfl_xor_sync(0xffffffffu, a.x, d));
        a.y = plain_add(a.y, __shfl_xor_sync(0xffffffffu, a.y, d));
        a.z = plain_add(a.z, __shfl_xor_sync(0xffffffffu, a.z, d));
        a.w = plain_add(a.w, __shfl_xor_sync(0xffffffffu, a.w, d));
    }
    return plain_add(plain_add(a.x, a.z), plain_add(a.y, a.w));
}

/* N rows of w (N = 2 with GATED: the same row of both matrices) against M rows of x. */
template <typename W, int N, int M, bool GATED>
__global__ void __launch_bounds__(LINEAR_THREADS) plain_linear_kernel(const __grid_constant__ plain_linear a)
{
    const uint32_t quad = blockIdx.x * LINEAR_QUADS + threadIdx.x / 4, t = threadIdx.x % 4, first = blockIdx.y * M;
    const uint32_t step = GATED ? 1 : N;          /* rows of w that a quad takes */
    const W *w[N];
    const float *x[M];
    float4 acc[N][M] = {};

#pragma unroll
    for (int j = 0; j < N; j++) {
        const uint32_t row = GATED ? quad : quad * N + j;

        w[j] = (const W *)(GATED && j == 1 ? a.up : a.w) + (uint64_t)(row < a.n ? row : 0) * a.k + 4 * t;
    }
#pragma unroll
    for (int m = 0; m < M; m++) x[m] = a.x + (first + m < a.rows ? first + m : first) * a.x_stride + 4 * t;
#pragma unroll 8
    for (uint32_t i = 0; i < a.k; i += 16) {
        float4 weight[N];

#pragma unroll
        for (int j = 0; j < N; j++) weight[j] = linear_weight(w[j] + i);
#pragma unroll
        for (int m = 0; m < M; m++) {
            const float4 v = *(const float4 *)(x[m] + i);

#pragma unroll
            for (int j = 0; j < N; j++) linear_add(acc[j][m], weight[j], v);
        }
    }
#pragma unroll
    for (int m = 0; m < M; m++) {
        float sum[N];

#pragma unroll
        for (int j = 0; j < N; j++) sum[j] = linear_tree(acc[j][m]);
        if (t != 0 || first + m >= a.rows) continue;
        float *y = a.y + (first + m) * a.y_stride + quad * step;

        if (GATED) {
            if (quad < a.n) *y = plain_geglu(sum[0], sum[N - 1]);
        } else {
#pragma unroll
            for (int j = 0; j < N; j++)
                if (quad * N + j < a.n) y[j] = sum[j];
        }
    }
}

template <typename W, int N, int M, bool GATED>
static int launch(const plain_linear &a, cudaStream_t stream)
{
    const uint32_t per_block = LINEAR_QUADS * (GATED ? 1 : N);

    plain_linear_kernel<W, N, M, GATED><<<dim3((a.n + per_block - 1) / per_block, (a.rows + M - 1) / M), LINEAR_THREADS, 0, stream>>>(a);
    return launch_check(cudaGetLastError(), "product");
}

template <typename W>
static int choose(const plain_linear &a, cudaStream_t stream)
{
    if (a.up) {
        if (a.rows == 1) return launch<W, 2, 1, true>(a, stream);
        if (a.rows == 2) return launch<W, 2, 2, true>(a, stream);
        return a.rows <= 4 ? launch<W, 2, 4, true>(a, stream) : launch<W, 2, 8, true>(a, stream);
    }
    if (a.rows == 1) return launch<W, 1, 1, false>(a, stream);
    if (a.rows == 2) return launch<W, 1, 2, false>(a, stream);
    if (a.rows <= 4) return launch<W, 1, 4, false>(a, stream);
    return a.rows <= 64 ? launch<W, 1, 8, false>(a, stream) : launch<W, 2, 8, false>(a, stream);
}

int plain_linear_launch(const struct plain_linear *args, void *stream)
{
    return args->weight_bytes == 2 ? choose<uint16_t>(*args, (cudaStream_t)stream) : choose<float>(*args, (cudaStream_t)stream);
}
