/* kernels/cuda/tower_attn.cu - see tower_attn.h. */
#include "tower_attn.h"
#include "launch.h"
#include "tower_mma.cuh"
#include "shm/error.h"
#include <cuda_runtime.h>

#define QUERIES 128
#define KEYS 64
#define STAGES 2
#define THREADS 256
#define NEVER (-1.0e30f)              /* finite: differences are never NaN */

/* Rows of ROOM elements, 16 bytes apart from a multiple of 128: 8 successive rows lie in 8 different groups of banks. */
template <int ROOM> struct shape {
    static constexpr uint32_t ROW_BYTES = ROOM * 2 + 16, CHUNKS = ROOM / 8;
    static constexpr uint32_t Q_BYTES = QUERIES * ROW_BYTES, BLOCK_BYTES = KEYS * ROW_BYTES;
    static constexpr uint32_t SHARED_BYTES = Q_BYTES + STAGES * 2 * BLOCK_BYTES;
};
static_assert(shape<16>::ROW_BYTES / 16 % 2 == 1 && shape<80>::ROW_BYTES / 16 % 2 == 1 && shape<128>::ROW_BYTES / 16 % 2 == 1, "an odd number of chunks");

template <int ROOM, int ROWS>
__device__ __forceinline__ void fetch(uint32_t to, const __nv_bfloat16 *from, uint32_t first, const tower_attn &p)
{
    using S = shape<ROOM>;

    for (uint32_t i = threadIdx.x; i < ROWS * S::CHUNKS; i += THREADS) {
        const uint32_t row = i / S::CHUNKS, chunk = i % S::CHUNKS;
        const bool live = first + row < p.count;

        tower_copy(to + row * S::ROW_BYTES + chunk * 16, from + ((uint64_t)(live ? first + row : 0) * p.heads + blockIdx.y) * ROOM + chunk * 8, live);
    }
}

__device__ __forceinline__ float exp2_fast(float x)
{
    float y;

    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Scores of the warp's 16 queries with a piece's keys. */
template <int ROOM>
__device__ __forceinline__ void score(float (&s)[KEYS / 8][4], const uint32_t (&q)[ROOM / 16][4], uint32_t k, uint32_t lane)
{
#pragma unroll
    for (int step = 0; step < ROOM / 16; step++)
#pragma unroll
        for (int j = 0; j < KEYS / 16; j++) {
            uint32_t b[4];

            tower_fragments(b, k + (j * 16 + lane / 16 * 8 + lane % 8) * shape<ROOM>::ROW_BYTES + (step * 2 + lane / 8 % 2) * 16);
            mma_bf16(s[2 * j], q[step][0], q[step][1], q[step][2], q[step][3], b[0], b[1]);
            mma_bf16(s[2 * j + 1], q[step][0], q[step][1], q[step][2], q[step][3], b[2], b[3]);
        }
}

/* s becomes weights; out and sum shrink by what the maximum grew. */
template <int ROOM>
__device__ __forceinline__ void weigh(float (&s)[KEYS / 8][4], float (&out)[ROOM / 8][4], float (&top)[2], float (&sum)[2], uint32_t keys, uint32_t lane)
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float best = top[h], part = 0.0f;

#pragma unroll
        for (int t = 0; t < KEYS / 8; t++)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                if (keys < KEYS && t * 8 + lane % 4 * 2 + e >= keys) s[t][h * 2 + e] = NEVER;
                best = fmaxf(best, s[t][h * 2 + e]);
            }
        best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, 1));
        best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, 2));
        const float factor = exp2_fast(top[h] - best);

        top[h] = best;
#pragma unroll
        for (int t = 0; t < KEYS / 8; t++)
#pragma unroll
            for (int e = 0; e < 2; e++) part += s[t][h * 2 + e] = exp2_fast(s[t][h * 2 + e] - best);
        sum[h] = sum[h] * factor + part;
#pragma unroll
        for (int t = 0; t < ROOM / 8; t++) out[t][h * 2] *= factor, out[t][h * 2 + 1] *= factor;
    }
}

template <int ROOM>
__device__ __forceinline__ void accumulate(float (&out)[ROOM / 8][4], const float (&s)[KEYS / 8][4], uint32_t v, uint32_t lane)
{
#pragma unroll
    for (int j = 0; j < KEYS / 16; j++) {
        const uint32_t a0 = pack_bf16(s[2 * j][0], s[2 * j][1]), a1 = pack_bf16(s[2 * j][2], s[2 * j][3]);
        const uint32_t a2 = pack_bf16(s[2 * j + 1][0], s[2 * j + 1][1]), a3 = pack_bf16(s[2 * j + 1][2], s[2 * j + 1][3]);

#pragma unroll
        for (int t = 0; t < ROOM / 16; t++) {
            uint32_t b[4];

            tower_fragments_turned(b, v + (j * 16 + lane / 8 % 2 * 8 + lane % 8) * shape<ROOM>::ROW_BYTES + (t * 2 + lane / 16) * 16);
            mma_bf16(out[2 * t], a0, a1, a2, a3, b[0], b[1]);
            mma_bf16(out[2 * t + 1], a0, a1, a2, a3, b[2], b[3]);
        }
    }
}

template <int ROOM>
__device__ __forceinline__ void store(const tower_attn &p, const float (&out)[ROOM / 8][4], float (&sum)[2], uint32_t first, uint32_t lane)
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const uint32_t row = first + h * 8 + lane / 4;

        sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 1);
        sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 2);
        if (row >= p.count) continue;
        const float inv = 1.0f / sum[h];
        __nv_bfloat16 *to = p.out + (uint64_t)row * p.stride + blockIdx.y * p.head;

#pragma unroll
        for (int t = 0; t < ROOM / 8; t++) {
            const uint32_t at = t * 8 + lane % 4 * 2;

            if (at < p.head) *(uint32_t *)(to + at) = pack_bf16(out[t][h * 2] * inv, out[t][h * 2 + 1] * inv);
        }
    }
}

template <int ROOM>
__global__ void __launch_bounds__(THREADS, ROOM <= 80 ? 2 : 1) tower_attn_kernel(const __grid_constant__ tower_attn p)
{
    using S = shape<ROOM>;
    extern __shared__ __align__(128) uint8_t shared_bytes[];
    const uint32_t base = smem_address(shared_bytes), stages = base + S::Q_BYTES, warp = threadIdx.x / 32, lane = threadIdx.x % 32, first = blockIdx.x * QUERIES;
    const uint32_t pieces = (p.count + KEYS - 1) / KEYS;
    float out[ROOM / 8][4] = {}, top[2] = { NEVER, NEVER }, sum[2] = { 0.0f, 0.0f };
    uint32_t q[ROOM / 16][4];

    fetch<ROOM, QUERIES>(base, p.q, first, p);
    fetch<ROOM, KEYS>(stages, p.k, 0, p);
    fetch<ROOM, KEYS>(stages + S::BLOCK_BYTES, p.v, 0, p);
    tower_commit();
    for (uint32_t i = 0; i < pieces; i++) {
        const uint32_t own = stages + i % STAGES * 2 * S::BLOCK_BYTES, next = stages + (i + 1) % STAGES * 2 * S::BLOCK_BYTES;
        float s[KEYS / 8][4] = {};

        tower_await<0>();
        __syncthreads();              /* piece i is there, and everybody has read piece i - 1 */
        if (i + 1 < pieces) fetch<ROOM, KEYS>(next, p.k, (i + 1) * KEYS, p), fetch<ROOM, KEYS>(next + S::BLOCK_BYTES, p.v, (i + 1) * KEYS, p);
        tower_commit();
        if (i == 0) {
#pragma unroll
            for (int step = 0; step < ROOM / 16; step++) tower_fragments(q[step], base + (warp * 16 + lane % 16) * S::ROW_BYTES + (step * 2 + lane / 16) * 16);
        }
        score<ROOM>(s, q, own, lane);
        weigh<ROOM>(s, out, top, sum, p.count - i * KEYS, lane);
        accumulate<ROOM>(out, s, own + S::BLOCK_BYTES, lane);
    }
    store<ROOM>(p, out, sum, first + warp * 16, lane);
}

int tower_attn_init(void)
{
    int rc = launch_prepare((const void *)tower_attn_kernel<16>, shape<16>::SHARED_BYTES);

    if (rc == 0) rc = launch_prepare((const void *)tower_attn_kernel<80>, shape<80>::SHARED_BYTES);
    return rc ? rc : launch_prepare((const void *)tower_attn_kernel<128>, shape<128>::SHARED_BYTES);
}

template <int ROOM>
static int launch(tower_attn p, void *stream)
{
    void *params[] = { &p };

    return launch_check(cudaLaunchKernel((const void *)tower_attn_kernel<ROOM>, dim3((p.count + QUERIES - 1) / QUERIES, p.heads), dim3(THREADS), params, shape<ROOM>::SHARED_BYTES, (cudaStream_t)stream), "tower attention");
}

int tower_attn_launch(const struct tower_attn *args, void *stream)
{
    if (args->count == 0 || args->heads == 0 || args->head % 2) return -E_RANGE;
    switch (tower_attn_room(args->head)) {
    case 16: return launch<16>(*args, stream);
    case 80: return launch<80>(*args, stream);
    case 128: return launch<128>(*args, stream);
    default: return -E_RANGE;
    }
}
