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
#define W_PIECE_BYTES 512             /* of a row of w: a warp copies it with one instruction */
#define COLUMNS_FEW 4096              /* up to here a matrix needs small blocks to reach all SMs */

/* The shape of a block: WN x WM warps; a warp has PER_QUAD * 8 rows of w (the same for the WM warps beside it) and X_ROWS rows of x. */
template <typename E, int WN, int WM, int X_ROWS, int W_PER_QUAD, bool GATE, int STAGE_COUNT>
struct tile {
    using element = E;
    static constexpr bool GATED = GATE;
    static constexpr int WARPS_N = WN, WARPS_M = WM, THREADS = 32 * WN * WM;
    static constexpr int PER_QUAD = W_PER_QUAD, W_PER_WARP = W_ROWS * W_PER_QUAD, X_PER_WARP = X_ROWS;
    static constexpr int ROWS = WM * X_ROWS, COLUMNS_PER_WARP = W_ROWS * (GATE ? 1 : W_PER_QUAD), COLUMNS = WN * COLUMNS_PER_WARP;
    static constexpr int PIECE = W_PIECE_BYTES / (int)sizeof(E), STAGES = STAGE_COUNT;      /* elements of k */
    static constexpr int W_PITCH = PIECE + PAD, X_PITCH = PIECE;
    static constexpr int W_BYTES = WN * W_PER_WARP * W_PITCH * (int)sizeof(E), STAGE_BYTES = W_BYTES + ROWS * X_PITCH * 4;
    static constexpr int SHARED = STAGES * STAGE_BYTES;
    static_assert(W_PER_WARP % WM == 0 && SHARED <= LAUNCH_SHARED_MAX, "the warps that share rows of w fetch equal parts of them");
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

/* Row `row` of a warp's rows of w: of a gated product the first 8 are gate, the next 8 up; else quad q has the rows q * PER_QUAD and on. */
template <typename T>
__device__ __forceinline__ const typename T::element *w_row(const plain_linear &a, uint32_t warp_n, uint32_t row)
{
    const uint32_t column = blockIdx.x * T::COLUMNS + warp_n * T::COLUMNS_PER_WARP + (T::GATED ? row % W_ROWS : row);
    const void *matrix = T::GATED && row >= W_ROWS ? a.up : a.w;

    return (const typename T::element *)matrix + (uint64_t)(column < a.n ? column : a.n - 1) * a.k;
}

/* Start the copies of elements [at, at + PIECE) of the block's rows of w, of x; beyond k there is nothing to copy. */
template <typename T>
__device__ __forceinline__ void fetch_w(const plain_linear &a, uint8_t *stage, uint32_t at)
{
    constexpr int E = sizeof(typename T::element);
    const uint32_t warp = threadIdx.x / 32, warp_n = warp / T::WARPS_M, element = threadIdx.x % 32 * (16 / E);

    if (at + element >= a.k) return;
#pragma unroll
    for (int i = 0; i < T::W_PER_WARP / T::WARPS_M; i++) {
        const uint32_t row = i * T::WARPS_M + warp % T::WARPS_M;

        __pipeline_memcpy_async(stage + ((warp_n * T::W_PER_WARP + row) * T::W_PITCH + element) * E, w_row<T>(a, warp_n, row) + at + element, 16);
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
    const E *w = (const E *)stage + warp / T::WARPS_M * T::W_PER_WARP * T::W_PITCH + 4 * t;
    const float *x = (const float *)(stage + T::W_BYTES) + warp % T::WARPS_M * T::X_PER_WARP * T::X_PITCH + 4 * t;

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
    const uint32_t quad = threadIdx.x % 32 / 4, warp = threadIdx.x / 32, first = blockIdx.y * T::ROWS + warp % T::WARPS_M * T::X_PER_WARP;
    const uint32_t column = blockIdx.x * T::COLUMNS + warp / T::WARPS_M * T::COLUMNS_PER_WARP + quad * (T::GATED ? 1 : T::PER_QUAD);

#pragma unroll
    for (int m = 0; m < T::X_PER_WARP; m++) {
        float sum[T::PER_QUAD];

#pragma unroll
        for (int j = 0; j < T::PER_QUAD; j++) sum[j] = tree(acc[j][m]);
        if (threadIdx.x % 4 != 0 || first + m >= a.rows) continue;
        float *y = a.y + (first + m) * a.y_stride;

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
__global__ void __launch_bounds__(T::THREADS, T::THREADS >= 256 ? 2 : 4) plain_linear_kernel(const __grid_constant__ plain_linear a)
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

/* SHAPE(warps of w, warps of x, rows of x a warp, rows of w a quad, stages) for a number of rows of x. Few columns: as many blocks as possible; many:
 * enough warps on an SM to keep up with memory, and for many rows as much work per element brought in. A gated quad has two rows of w anyway. */
#define SHAPES_FEW(SHAPE, rows) \
    ((rows) == 1 ? SHAPE(1, 1, 1, 1, 3) : (rows) == 2 ? SHAPE(1, 2, 1, 1, 3) : (rows) <= 4 ? SHAPE(1, 4, 1, 1, 3) : \
     (rows) <= 8 ? SHAPE(1, 4, 2, 1, 3) : (rows) <= 16 ? SHAPE(1, 8, 2, 1, 3) : SHAPE(1, 8, 4, 2, 3))
#define SHAPES_MANY(SHAPE, rows) \
    ((rows) == 1 ? SHAPE(4, 1, 1, 1, 3) : (rows) == 2 ? SHAPE(4, 1, 2, 1, 3) : (rows) <= 4 ? SHAPE(4, 1, 4, 1, 3) : \
     (rows) <= 8 ? SHAPE(4, 2, 4, 1, 3) : (rows) <= 16 ? SHAPE(4, 2, 8, 1, 3) : SHAPE(2, 4, 8, 2, 2))
#define SHAPES_MANY_GATED(SHAPE, rows) \
    ((rows) == 1 ? SHAPE(2, 1, 1, 2, 3) : (rows) == 2 ? SHAPE(2, 1, 2, 2, 3) : (rows) <= 4 ? SHAPE(2, 2, 2, 2, 3) : \
     (rows) <= 8 ? SHAPE(2, 2, 4, 2, 3) : (rows) <= 16 ? SHAPE(2, 4, 4, 2, 3) : SHAPE(2, 4, 8, 2, 2))
#define ROWS_MANY 128                 /* from here on rows alone make enough blocks */

template <typename E>
static int choose(const plain_linear &a, void *stream)
{
    const bool few = a.n <= COLUMNS_FEW && a.rows < ROWS_MANY;

#define GATED(wn, wm, x, w, stages) launch<tile<E, wn, wm, x, 2, true, stages>>(a, stream)
#define SINGLE(wn, wm, x, w, stages) launch<tile<E, wn, wm, x, w, false, stages>>(a, stream)
    if (a.up) return few ? SHAPES_FEW(GATED, a.rows) : SHAPES_MANY_GATED(GATED, a.rows);
    return few ? SHAPES_FEW(SINGLE, a.rows) : SHAPES_MANY(SINGLE, a.rows);
}

template <typename T>
static int prepare_one()
{
    return launch_prepare((const void *)plain_linear_kernel<T>, T::SHARED);
}

/* The same choices, to prepare what they choose. */
template <typename E>
static int prepare()
{
    int rc = 0;

#define PREPARE_GATED(wn, wm, x, w, stages) prepare_one<tile<E, wn, wm, x, 2, true, stages>>()
#define PREPARE_SINGLE(wn, wm, x, w, stages) prepare_one<tile<E, wn, wm, x, w, false, stages>>()
    for (uint32_t rows = 1; rows <= 32 && rc == 0; rows *= 2) {
        rc = SHAPES_FEW(PREPARE_GATED, rows);
        if (rc == 0) rc = SHAPES_FEW(PREPARE_SINGLE, rows);
        if (rc == 0) rc = SHAPES_MANY_GATED(PREPARE_GATED, rows);
        if (rc == 0) rc = SHAPES_MANY(PREPARE_SINGLE, rows);
    }
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
