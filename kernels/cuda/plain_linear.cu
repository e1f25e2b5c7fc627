/* kernels/cuda/plain_linear.cu - products in the CPU's order (contract in plain_linear.cuh).
 *
 * A quad of threads takes one row of w (two where there are many rows of x, or a gate and an up row) against XROWS rows of x: thread t holds the
 * lanes 4t .. 4t + 3, and the quad's shuffles are the upper half of the fixed tree. The sum over k has k / 16 dependent steps
 * whatever the machine, so nothing may be waited for inside it: pieces of w and x are on their way to shared memory
 * STAGES - 1 pieces ahead, the first of w before the kernel that makes x has ended. The warps of a block share the piece of w; each has its
 * own rows of x. (Copies of 16 bytes pass by the L1, as everything must that an earlier kernel of the chain wrote.) */
#include "plain_linear.cuh"
#include "device.cuh"
#include "plain_launch.cuh"
#include "plain_math.cuh"
#include <cuda_pipeline_primitives.h>

#define W_ROWS 8                      /* quads of a warp */
#define PAD 16                        /* elements behind a row of w in shared memory: 4 rows side by side fall into different banks */

/* The shape of a block. */
template <typename E, int WARPS, int XROWS, int WROWS, bool GATE, int K_PIECE>
struct tile {
    using element = E;
    static constexpr int THREADS = 32 * WARPS, ROWS = WARPS * XROWS;      /* rows of x of a block */
    static constexpr int PER_QUAD = WROWS, COLUMNS = W_ROWS * (GATE ? 1 : WROWS);   /* columns of y of a block */
    static constexpr int PIECE = K_PIECE, STAGES = 3;
    static constexpr int W_PITCH = PIECE + PAD, X_PITCH = PIECE;
    static constexpr int W_BYTES = W_ROWS * WROWS * W_PITCH * (int)sizeof(E), STAGE_BYTES = W_BYTES + ROWS * X_PITCH * 4;
    static constexpr int SHARED = STAGES * STAGE_BYTES;
    static constexpr bool GATED = GATE;
    static constexpr int X_PER_WARP = XROWS;
};

__device__ __forceinline__ float4 four(const uint16_t *w)
{
    const uint2 v = *(const uint2 *)w;

    return make_float4(plain_float(v.x << 16), plain_float(v.x & 0xffff0000u), plain_float(v.y << 16), plain_float(v.y & 0xffff0000u));
}

__device__ __forceinline__ float4 four(const float *w) { return *(const float4 *)w; }

__device__ __forceinline__ void add(float4 &acc, const float4 &w, const float4 &x)
{
    acc.x = plain_fma(w.x, x.x, acc.x);
    acc.y = plain_fma(w.y, x.y, acc.y);
    acc.z = plain_fma(w.z, x.z, acc.z);
    acc.w = plain_fma(w.w, x.w, acc.w);
}

/* The tree (l, l + 8), (l, l + 4), (l, l + 2), (0, 1) over a quad's lanes. All 32 threads take part. */
__device__ __forceinline__ float tree(float4 a)
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

/* Row `row` of the block's piece of w: of a gated product the first 8 are gate, the next 8 up; else quad q has the rows q * PER_QUAD and on. */
template <typename T>
__device__ __forceinline__ const typename T::element *w_row(const plain_linear &a, uint32_t row)
{
    const uint32_t column = blockIdx.x * T::COLUMNS + (T::GATED ? row % W_ROWS : row);
    const void *matrix = T::GATED && row >= W_ROWS ? a.up : a.w;

    return (const typename T::element *)matrix + (uint64_t)(column < a.n ? column : a.n - 1) * a.k;
}

/* Start the copies of elements [at, at + PIECE) of the block's rows of w, of x; beyond k there is nothing to copy. */
template <typename T>
__device__ __forceinline__ void fetch_w(const plain_linear &a, uint8_t *stage, uint32_t at)
{
    constexpr int E = sizeof(typename T::element), W_RUN = T::PIECE * E / 16;    /* 16-byte runs of a row */

    for (int i = threadIdx.x; i < W_ROWS * T::PER_QUAD * W_RUN; i += T::THREADS) {
        const uint32_t row = i / W_RUN, element = i % W_RUN * (16 / E);

        if (at + element < a.k) __pipeline_memcpy_async(stage + (row * T::W_PITCH + element) * E, w_row<T>(a, row) + at + element, 16);
    }
}

template <typename T>
__device__ __forceinline__ void fetch_x(const plain_linear &a, uint8_t *stage, uint32_t at)
{
    constexpr int X_RUN = T::PIECE / 4;

    for (int i = threadIdx.x; i < T::ROWS * X_RUN; i += T::THREADS) {
        const uint32_t row = i / X_RUN, element = i % X_RUN * 4, r = blockIdx.y * T::ROWS + row;

        if (at + element < a.k && r < a.rows) __pipeline_memcpy_async(stage + T::W_BYTES + (row * T::X_PITCH + element) * 4, a.x + r * a.x_stride + at + element, 16);
    }
}

template <typename T>
__device__ __forceinline__ void multiply(const uint8_t *stage, uint32_t count, float4 (&acc)[T::PER_QUAD][T::X_PER_WARP])
{
    using E = typename T::element;
    const uint32_t quad = threadIdx.x % 32 / 4, t = threadIdx.x % 4, warp = threadIdx.x / 32;
    const E *w = (const E *)stage + 4 * t;
    const float *x = (const float *)(stage + T::W_BYTES) + warp * T::X_PER_WARP * T::X_PITCH + 4 * t;

#pragma unroll 4
    for (uint32_t i = 0; i < count; i += 16) {
        float4 weight[T::PER_QUAD];

#pragma unroll
        for (int j = 0; j < T::PER_QUAD; j++) weight[j] = four(w + (T::GATED ? quad + j * W_ROWS : quad * T::PER_QUAD + j) * T::W_PITCH + i);
#pragma unroll
        for (int m = 0; m < T::X_PER_WARP; m++) {
            const float4 v = *(const float4 *)(x + m * T::X_PITCH + i);

#pragma unroll
            for (int j = 0; j < T::PER_QUAD; j++) add(acc[j][m], weight[j], v);
        }
    }
}

template <typename T>
__device__ __forceinline__ void finish(const plain_linear &a, const float4 (&acc)[T::PER_QUAD][T::X_PER_WARP])
{
    const uint32_t quad = threadIdx.x % 32 / 4, first = blockIdx.y * T::ROWS + threadIdx.x / 32 * T::X_PER_WARP;

#pragma unroll
    for (int m = 0; m < T::X_PER_WARP; m++) {
        float sum[T::PER_QUAD];

#pragma unroll
        for (int j = 0; j < T::PER_QUAD; j++) sum[j] = tree(acc[j][m]);
        if (threadIdx.x % 4 != 0 || first + m >= a.rows) continue;
        float *y = a.y + (first + m) * a.y_stride;
        const uint32_t column = blockIdx.x * T::COLUMNS + quad * (T::GATED ? 1 : T::PER_QUAD);

        if (T::GATED) {
            if (column < a.n) y[column] = plain_geglu(sum[0], sum[T::PER_QUAD - 1]);
        } else {
#pragma unroll
            for (int j = 0; j < T::PER_QUAD; j++)
                if (column + j < a.n) y[column + j] = sum[j];
        }
    }
}

template <typename T>
__global__ void __launch_bounds__(T::THREADS) plain_linear_kernel(const __grid_constant__ plain_linear a)
{
    extern __shared__ __align__(16) uint8_t stages[];
    const uint32_t pieces = (a.k + T::PIECE - 1) / T::PIECE;
    float4 acc[T::PER_QUAD][T::X_PER_WARP] = {};

    chain_trigger();
    for (uint32_t i = 0; i < T::STAGES - 1 && i < pieces; i++) fetch_w<T>(a, stages + i * T::STAGE_BYTES, i * T::PIECE);
    chain_wait();
    for (uint32_t i = 0; i < T::STAGES - 1; i++) {
        if (i < pieces) fetch_x<T>(a, stages + i * T::STAGE_BYTES, i * T::PIECE);
        __pipeline_commit();
    }
    for (uint32_t i = 0; i < pieces; i++) {
        const uint32_t next = i + T::STAGES - 1, left = a.k - i * T::PIECE;

        __pipeline_wait_prior(T::STAGES - 2);
        __syncthreads();              /* everybody's copies of piece i are there, and everybody has read piece i - 1 */
        if (next < pieces) {
            fetch_w<T>(a, stages + next % T::STAGES * T::STAGE_BYTES, next * T::PIECE);
            fetch_x<T>(a, stages + next % T::STAGES * T::STAGE_BYTES, next * T::PIECE);
        }
        __pipeline_commit();
        multiply<T>(stages + i % T::STAGES * T::STAGE_BYTES, left < T::PIECE ? left : T::PIECE, acc);
    }
    finish<T>(a, acc);
}

template <typename T>
static int launch(const plain_linear &a, void *stream)
{
    const dim3 grid((a.n + T::COLUMNS - 1) / T::COLUMNS, (a.rows + T::ROWS - 1) / T::ROWS);

    return plain_chained(plain_linear_kernel<T>, grid, T::THREADS, T::SHARED, stream, a);
}

/* Few rows of x: as many blocks as possible; many: as much work per element brought in. */
#define CHOICES(one) \
    (a.rows == 1  ? one(1, 1, 1, 512) : a.rows == 2 ? one(2, 1, 1, 512) : a.rows <= 4 ? one(4, 1, 1, 512) : \
     a.rows <= 8  ? one(4, 2, 1, 256) : a.rows <= 16 ? one(8, 2, 1, 256) : one(8, 4, 2, 128))

template <typename E>
static int choose(const plain_linear &a, void *stream)
{
#define GATED_ONE(warps, xrows, wrows, piece) launch<tile<E, warps, xrows, 2, true, piece>>(a, stream)
#define PLAIN_ONE(warps, xrows, wrows, piece) launch<tile<E, warps, xrows, wrows, false, piece>>(a, stream)
    return a.up ? CHOICES(GATED_ONE) : CHOICES(PLAIN_ONE);
}

template <typename E>
static int prepare()
{
    int rc = 0;

#define PREPARE(warps, xrows, wrows, piece) \
    if (rc == 0) rc = launch_prepare((const void *)plain_linear_kernel<tile<E, warps, xrows, 2, true, piece>>, tile<E, warps, xrows, 2, true, piece>::SHARED); \
    if (rc == 0) rc = launch_prepare((const void *)plain_linear_kernel<tile<E, warps, xrows, wrows, false, piece>>, tile<E, warps, xrows, wrows, false, piece>::SHARED)
    PREPARE(1, 1, 1, 512);
    PREPARE(2, 1, 1, 512);
    PREPARE(4, 1, 1, 512);
    PREPARE(4, 2, 1, 256);
    PREPARE(8, 2, 1, 256);
    PREPARE(8, 4, 2, 128);
    return rc;
}

int plain_linear_init(void)
{
    const int rc = prepare<uint16_t>();

    return rc ? rc : prepare<float>();
}

int plain_linear_launch(const struct plain_linear *args, void *stream)
{
    return args->weight_bytes == 2 ? choose<uint16_t>(*args, stream) : choose<float>(*args, stream);
}
