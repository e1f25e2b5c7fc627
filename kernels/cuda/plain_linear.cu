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
#include "shm/error.h"
#include <cuda_pipeline_primitives.h>

#define W_ROWS 8                      /* quads of a warp */
#define PIECE_MAX 256                 /* elements of k that lie in shared memory together; F32: half of them */
#define CODE_FACTOR 256.0f            /* the CPU takes codes as 2^-8 of their value, and so do we: where sums are tiny the bits would differ */
#define COLUMNS_FEW 4096              /* up to here a matrix needs small blocks to reach all SMs */

/* The shape of a block: WN x WM warps; a warp has PER_QUAD * 8 rows of w (the same for the WM warps beside it) and X_ROWS rows of x. */
template <uint32_t FMT, int WN, int WM, int X_ROWS, int W_PER_QUAD, bool GATE, int STAGE_COUNT>
struct tile {
    static constexpr uint32_t FORMAT = FMT;
    static constexpr int BITS = FMT == WEIGHT_F32 ? 32 : FMT == WEIGHT_BF16 ? 16 : FMT == WEIGHT_FP4 ? 4 : 8;
    static constexpr bool GATED = GATE;
    static constexpr int WARPS_N = WN, WARPS_M = WM, THREADS = 32 * WN * WM;
    static constexpr int PER_QUAD = W_PER_QUAD, W_PER_WARP = W_ROWS * W_PER_QUAD, X_PER_WARP = X_ROWS;
    static constexpr int ROWS = WM * X_ROWS, COLUMNS_PER_WARP = W_ROWS * (GATE ? 1 : W_PER_QUAD), COLUMNS = WN * COLUMNS_PER_WARP;
    static constexpr int PIECE = FMT == WEIGHT_F32 ? PIECE_MAX / 2 : PIECE_MAX, STAGES = STAGE_COUNT;      /* a warp copies a row of it with one instruction */
    static constexpr int X_PITCH = PIECE;
    /* 16 codes or a little more behind a row: 4 rows side by side fall into different banks. */
    static constexpr int W_PITCH_BYTES = PIECE * BITS / 8 + (BITS > 8 ? 2 * BITS : 16);
    static constexpr int W_BYTES = WN * W_PER_WARP * W_PITCH_BYTES, STAGE_BYTES = W_BYTES + ROWS * X_PITCH * 4;
    static constexpr int SHARED = STAGES * STAGE_BYTES;
    static_assert(W_PER_WARP % WM == 0 && SHARED <= LAUNCH_SHARED_MAX, "the warps that share rows of w fetch equal parts of them");
};

/* Four codes of E4M3 as 2^-8 of their values. */
__device__ __forceinline__ float4 four_e4m3(uint32_t codes)
{
    const uint32_t low = e4m3x2_to_f16x2((uint16_t)codes), high = e4m3x2_to_f16x2((uint16_t)(codes >> 16));
    const float2 a = __half22float2(*(const __half2 *)&low), b = __half22float2(*(const __half2 *)&high);
    const float part = 1.0f / CODE_FACTOR;

    return make_float4(a.x * part, a.y * part, b.x * part, b.y * part);
}

/* 0, 0.5, 1, 1.5, 2, 3, 4, 6 with a sign: the three bits of size where an f32 has its exponent's end and its fraction are 2^-126 of it. */
__device__ __forceinline__ float from_e2m1(uint32_t code) { return plain_float((code & 8) << 28 | (code & 7) << 22) * 0x1p126f; }

/* Elements 4t .. 4t + 3 from `element` on of a row in shared memory. */
template <uint32_t FORMAT> __device__ __forceinline__ float4 four(const uint8_t *row, uint32_t element)
{
    if constexpr (FORMAT == WEIGHT_F32) return *(const float4 *)(row + element * 4);
    else if constexpr (FORMAT == WEIGHT_BF16) {
        const uint2 v = *(const uint2 *)(row + element * 2);

        return make_float4(plain_float(v.x << 16), plain_float(v.x & 0xffff0000u), plain_float(v.y << 16), plain_float(v.y & 0xffff0000u));
    } else if constexpr (FORMAT == WEIGHT_FP4) {
        const uint32_t v = *(const uint16_t *)(row + element / 2);

        return make_float4(from_e2m1(v), from_e2m1(v >> 4), from_e2m1(v >> 8), from_e2m1(v >> 12));
    } else return four_e4m3(*(const uint32_t *)(row + element));
}

__device__ __forceinline__ float4 times(float4 a, float b) { return make_float4(plain_mul(a.x, b), plain_mul(a.y, b), plain_mul(a.z, b), plain_mul(a.w, b)); }

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

/* Which row of which matrix row `row` of a warp's rows of w is: of a gated product the first 8 are gate, the next 8 up; else quad q has the rows q * PER_QUAD and on. */
template <typename T>
__device__ __forceinline__ const plain_codes &w_row(const plain_linear &a, uint32_t warp_n, uint32_t row, uint32_t *column)
{
    *column = blockIdx.x * T::COLUMNS + warp_n * T::COLUMNS_PER_WARP + (T::GATED ? row % W_ROWS : row);
    if (*column >= a.n) *column = a.n - 1;
    return T::GATED && row >= W_ROWS ? a.up : a.w;
}

/* Start the copies of elements [at, at + PIECE) of the block's rows of w, of x; beyond k there is nothing to copy. */
template <typename T>
__device__ __forceinline__ void fetch_w(const plain_linear &a, uint8_t *stage, uint32_t at)
{
    const uint32_t warp = threadIdx.x / 32, warp_n = warp / T::WARPS_M, element = threadIdx.x % 32 * (128 / T::BITS);

    if (element >= T::PIECE || at + element >= a.k) return;
#pragma unroll
    for (int i = 0; i < T::W_PER_WARP / T::WARPS_M; i++) {
        const uint32_t row = i * T::WARPS_M + warp % T::WARPS_M;
        uint32_t column;
        const uint8_t *codes = (const uint8_t *)w_row<T>(a, warp_n, row, &column).codes;

        __pipeline_memcpy_async(stage + (warp_n * T::W_PER_WARP + row) * T::W_PITCH_BYTES + element * T::BITS / 8, codes + ((uint64_t)column * a.k + at + element) * T::BITS / 8, 16);
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

/* What the codes of row `row` (of the warp) at element `at` of k are multiplied with, as the CPU holds it. */
template <typename T>
__device__ __forceinline__ float code_scale(const plain_linear &a, uint32_t row, uint32_t at)
{
    uint32_t column;
    const void *scale = w_row<T>(a, threadIdx.x / 32 / T::WARPS_M, row, &column).scale;

    if (T::FORMAT == WEIGHT_FP8_BLOCK) return __ldg((const float *)scale + (uint64_t)column * ((a.k + WEIGHT_BLOCK - 1) / WEIGHT_BLOCK) + at / WEIGHT_BLOCK);
    const uint32_t pair = e4m3x2_to_f16x2(__ldg((const uint8_t *)scale + (uint64_t)column * (a.k / WEIGHT_GROUP) + at / WEIGHT_GROUP));
    return __low2float(*(const __half2 *)&pair) * (1.0f / CODE_FACTOR);
}

/* at: where the piece begins in k. */
template <typename T>
__device__ __forceinline__ void multiply(const plain_linear &a, const uint8_t *stage, uint32_t at, uint32_t count, float4 (&acc)[T::PER_QUAD][T::X_PER_WARP])
{
    constexpr bool SCALED = T::FORMAT == WEIGHT_FP8_BLOCK || T::FORMAT == WEIGHT_FP4;
    const uint32_t quad = threadIdx.x % 32 / 4, t = threadIdx.x % 4, warp = threadIdx.x / 32;
    const uint8_t *w = stage + warp / T::WARPS_M * T::W_PER_WARP * T::W_PITCH_BYTES;
    const float *x = (const float *)(stage + T::W_BYTES) + warp % T::WARPS_M * T::X_PER_WARP * T::X_PITCH + 4 * t;

#pragma unroll 4
    for (uint32_t i = 0; i < count; i += 16) {
        float4 weight[T::PER_QUAD];

#pragma unroll
        for (int j = 0; j < T::PER_QUAD; j++) {
            const uint32_t row = T::GATED ? quad + j * W_ROWS : quad * T::PER_QUAD + j;

            weight[j] = four<T::FORMAT>(w + row * T::W_PITCH_BYTES, i + 4 * t);
            if (SCALED) weight[j] = times(weight[j], code_scale<T>(a, row, at + i));
        }
#pragma unroll
        for (int m = 0; m < T::X_PER_WARP; m++) {
            const float4 v = *(const float4 *)(x + m * T::X_PITCH + i);

#pragma unroll
            for (int j = 0; j < T::PER_QUAD; j++) add(acc[j][m], weight[j], v);
        }
    }
}

/* A complete sum, scaled in the CPU's order. */
template <uint32_t FORMAT>
__device__ __forceinline__ float finished(const plain_codes &w, float sum, uint32_t column, float x_scale, bool scaled)
{
    if (FORMAT == WEIGHT_BF16 || FORMAT == WEIGHT_F32) return sum;
    sum = plain_mul(sum, CODE_FACTOR);
    if (FORMAT == WEIGHT_FP8) sum = plain_mul(sum, __ldg((const float *)w.scale + column));
    if (FORMAT == WEIGHT_FP4) {
        const float factor = __ldg(w.factor + column);

        sum = factor < 0.0f ? plain_div(sum, -factor) : plain_mul(sum, factor);
    }
    return scaled ? plain_mul(sum, x_scale) : sum;
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
        const float x_scale = a.x_scale ? ld_l2(a.x_scale + first + m) : 1.0f;
#pragma unroll
        for (int j = 0; j < T::PER_QUAD; j++) {
            const uint32_t at = T::GATED ? column : column + j;

            if (at < a.n) sum[j] = finished<T::FORMAT>(T::GATED && j ? a.up : a.w, sum[j], at, x_scale, a.x_scale != NULL);
        }
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
        multiply<T>(a, stages + i % T::STAGES * T::STAGE_BYTES, i * T::PIECE, left < T::PIECE ? left : T::PIECE, acc);
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

template <uint32_t E>
static int choose(const plain_linear &a, void *stream)
{
    const bool few = a.n <= COLUMNS_FEW && a.rows < ROWS_MANY;

#define GATED(wn, wm, x, w, stages) launch<tile<E, wn, wm, x, 2, true, stages>>(a, stream)
#define SINGLE(wn, wm, x, w, stages) launch<tile<E, wn, wm, x, w, false, stages>>(a, stream)
    if (a.up.codes) return few ? SHAPES_FEW(GATED, a.rows) : SHAPES_MANY_GATED(GATED, a.rows);
    return few ? SHAPES_FEW(SINGLE, a.rows) : SHAPES_MANY(SINGLE, a.rows);
}

template <typename T>
static int prepare_one()
{
    return launch_prepare((const void *)plain_linear_kernel<T>, T::SHARED);
}

/* The same choices, to prepare what they choose. */
template <uint32_t E>
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
    int rc = prepare<WEIGHT_BF16>();

    if (rc == 0) rc = prepare<WEIGHT_F32>();
    if (rc == 0) rc = prepare<WEIGHT_FP8>();
    if (rc == 0) rc = prepare<WEIGHT_FP8_BLOCK>();
    return rc ? rc : prepare<WEIGHT_FP4>();
}

int plain_linear_launch(const struct plain_linear *args, void *stream)
{
    switch (args->format) {
    case WEIGHT_BF16: return choose<WEIGHT_BF16>(*args, stream);
    case WEIGHT_F32: return choose<WEIGHT_F32>(*args, stream);
    case WEIGHT_FP8: return choose<WEIGHT_FP8>(*args, stream);
    case WEIGHT_FP8_BLOCK: return choose<WEIGHT_FP8_BLOCK>(*args, stream);
    case WEIGHT_FP4: return choose<WEIGHT_FP4>(*args, stream);
    default: return -E_UNSUPPORTED;
    }
}
