/* kernels/cuda/tower_mm.cu - see tower_mm.h. */
#include "tower_mm.h"
#include "launch.h"
#include "tower_mma.cuh"
#include "shm/error.h"
#include <cuda_runtime.h>

#define TILE 128                      /* rows of a; of w 128 or 64 */
#define PIECE 64                      /* of k */
#define STAGES 3
#define THREADS 256
#define SMS 132
#define BLOCKS_FEW (3 * SMS)          /* of large tiles: below, small ones fill the machine better */

/* N rows of w: warps of 64 x 32, or of 32 x 32. */
template <int N> struct shape {
    static constexpr int WARPS_N = N / 32, WARPS_M = THREADS / 32 / WARPS_N, M_TILES = TILE / WARPS_M / 16;
    static constexpr uint32_t A_BYTES = TILE * PIECE * 2, STAGE_BYTES = A_BYTES + N * PIECE * 2;
};

/* Byte of 16-byte chunk `chunk` of a row: 8 successive rows lie in 8 different groups of banks. */
__device__ __forceinline__ uint32_t place(uint32_t row, uint32_t chunk) { return row * (PIECE * 2) + ((chunk ^ (row & 7)) << 4); }

template <int ROWS>
__device__ __forceinline__ void fetch(uint32_t to, const __nv_bfloat16 *from, uint32_t first, uint32_t rows, uint32_t k, uint32_t at)
{
#pragma unroll
    for (int i = 0; i < ROWS * PIECE / 8 / THREADS; i++) {
        const uint32_t index = threadIdx.x + i * THREADS, row = index / (PIECE / 8), chunk = index % (PIECE / 8);
        const bool live = first + row < rows;

        tower_copy(to + place(row, chunk), from + (uint64_t)(live ? first + row : 0) * k + at + chunk * 8, live);
    }
}

template <int N>
__device__ __forceinline__ void multiply(float (&acc)[shape<N>::M_TILES][4][4], uint32_t stage, uint32_t m_first, uint32_t n_first, uint32_t lane)
{
#pragma unroll
    for (int step = 0; step < PIECE / 16; step++) {
        uint32_t a[shape<N>::M_TILES][4], b[2][4];

#pragma unroll
        for (int i = 0; i < shape<N>::M_TILES; i++) tower_fragments(a[i], stage + place(m_first + i * 16 + lane % 16, step * 2 + lane / 16));
#pragma unroll
        for (int j = 0; j < 2; j++) tower_fragments(b[j], stage + shape<N>::A_BYTES + place(n_first + j * 16 + lane / 16 * 8 + lane % 8, step * 2 + lane / 8 % 2));
#pragma unroll
        for (int i = 0; i < shape<N>::M_TILES; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) mma_bf16(acc[i][j], a[i][0], a[i][1], a[i][2], a[i][3], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
    }
}

__device__ __forceinline__ float gelu(float x)
{
    const float inner = 0.797884583f * (x + 0.044715f * x * x * x);

    return x / (1.0f + __expf(-2.0f * inner));                 /* 0.5 (1 + tanh u) = 1 / (1 + e^-2u) */
}

template <enum tower_epilogue E>
__device__ __forceinline__ void store(const tower_mm &p, uint32_t row, uint32_t column, float x, float y)
{
    const uint64_t at = (uint64_t)row * p.stride + column;

    if (p.bias) x += __ldg(p.bias + column), y += __ldg(p.bias + column + 1);
    if constexpr (E == TOWER_F32) *(float2 *)((float *)p.out + at) = make_float2(x, y);
    else if constexpr (E == TOWER_RESIDUAL) {
        float2 *to = (float2 *)((float *)p.out + at);
        const float2 old = *to;

        *to = make_float2(old.x + x, old.y + y);
    } else if constexpr (E == TOWER_GELU) *(uint32_t *)((__nv_bfloat16 *)p.out + at) = pack_bf16(gelu(x), gelu(y));
    else {
        const uint32_t all = p.heads * p.head, part = column / all, own = column % all, head = own / p.head;
        const float scale = part == 0 ? p.scale : 1.0f;

        *(uint32_t *)((__nv_bfloat16 *)p.out + (((uint64_t)part * p.m + row) * p.heads + head) * p.room + own % p.head) = pack_bf16(x * scale, y * scale);
    }
}

template <enum tower_epilogue E, int N>
__global__ void __launch_bounds__(THREADS, N == 128 ? 2 : 3) tower_mm_kernel(const __grid_constant__ tower_mm p)
{
    using S = shape<N>;
    extern __shared__ __align__(128) uint8_t shared_bytes[];
    const uint32_t stages = smem_address(shared_bytes), warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const uint32_t row = blockIdx.y * TILE, column = blockIdx.x * N, pieces = p.k / PIECE, m_first = warp / S::WARPS_N * (S::M_TILES * 16), n_first = warp % S::WARPS_N * 32;
    float acc[S::M_TILES][4][4] = {};

    for (uint32_t i = 0; i < STAGES - 1; i++) {
        if (i < pieces) fetch<TILE>(stages + i * S::STAGE_BYTES, p.a, row, p.m, p.k, i * PIECE), fetch<N>(stages + i * S::STAGE_BYTES + S::A_BYTES, p.w, column, p.n, p.k, i * PIECE);
        tower_commit();
    }
    for (uint32_t i = 0; i < pieces; i++) {
        const uint32_t next = i + STAGES - 1, to = stages + next % STAGES * S::STAGE_BYTES;

        tower_await<STAGES - 2>();
        __syncthreads();              /* piece i is there, and everybody has read piece i - 1 */
        if (next < pieces) fetch<TILE>(to, p.a, row, p.m, p.k, next * PIECE), fetch<N>(to + S::A_BYTES, p.w, column, p.n, p.k, next * PIECE);
        tower_commit();
        multiply<N>(acc, stages + i % STAGES * S::STAGE_BYTES, m_first, n_first, lane);
    }
#pragma unroll
    for (int i = 0; i < S::M_TILES; i++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const uint32_t r = row + m_first + i * 16 + h * 8 + lane / 4;

            if (r >= p.m) continue;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const uint32_t c = column + n_first + j * 8 + lane % 4 * 2;

                if (c < p.n) store<E>(p, r, c, acc[i][j][h * 2], acc[i][j][h * 2 + 1]);
            }
        }
}

template <int N>
static const void *kernel_of(enum tower_epilogue e)
{
    switch (e) {
    case TOWER_HEADS: return (const void *)tower_mm_kernel<TOWER_HEADS, N>;
    case TOWER_GELU: return (const void *)tower_mm_kernel<TOWER_GELU, N>;
    case TOWER_RESIDUAL: return (const void *)tower_mm_kernel<TOWER_RESIDUAL, N>;
    default: return (const void *)tower_mm_kernel<TOWER_F32, N>;
    }
}

int tower_mm_init(void)
{
    int rc = 0;

    for (int e = TOWER_HEADS; e <= TOWER_F32 && rc == 0; e++) {
        rc = launch_prepare(kernel_of<128>((enum tower_epilogue)e), STAGES * shape<128>::STAGE_BYTES);
        if (rc == 0) rc = launch_prepare(kernel_of<64>((enum tower_epilogue)e), STAGES * shape<64>::STAGE_BYTES);
    }
    return rc;
}

int tower_mm_launch(const struct tower_mm *args, enum tower_epilogue epilogue, void *stream)
{
    tower_mm p = *args;
    void *params[] = { &p };

    if (p.m == 0 || p.n == 0 || p.n % 2 || p.k == 0 || p.k % PIECE || (epilogue == TOWER_HEADS && p.head % 2)) return -E_RANGE;
    const uint32_t rows = (p.m + TILE - 1) / TILE;
    const bool few = rows * ((p.n + 127) / 128) < BLOCKS_FEW;
    const void *kernel = few ? kernel_of<64>(epilogue) : kernel_of<128>(epilogue);
    return launch_check(cudaLaunchKernel(kernel, dim3(few ? (p.n + 63) / 64 : (p.n + 127) / 128, rows), dim3(THREADS), params, STAGES * (few ? shape<64>::STAGE_BYTES : shape<128>::STAGE_BYTES), (cudaStream_t)stream), "tower product");
}
