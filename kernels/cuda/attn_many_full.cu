/* kernels/cuda/attn_many_full.cu - full attention for many sequences (contract in attn_many.h).
 *
 * Rows with few keys have been answered by attn_many_short.cu, which has prepared the others: they are left.
 * The block's work on a chunk of 32 keys is that of attn.cu, but rows are single, their q, K and V are ready, and K, V and q of the block's next
 * chunk are on their way into shared memory meanwhile. F8: keys and values of E4M3, in half of their places. A third kernel adds the spans of a row. */
#include "attn_many.h"
#include "attn_many_copy.cuh"
#include "attn_many_short.cuh"
#include "attn_full.cuh"
#include "launch.h"
#include "shm/error.h"

#define FULL_D 512
#define FULL_KEYS 32                  /* of a chunk: one page */
#define FULL_THREADS (ATTN_WARPS * 32)
#define Q_VECTORS (FULL_D / 8)        /* 16-byte pieces of a query */
/* Rows of K 64 bytes apart modulo the banks: 16-byte loads of a quarter warp never collide; those of V meet in pairs. */
#define FULL_K_STRIDE (2 * FULL_D + 64)
#define FULL_V_STRIDE (2 * FULL_D + 16)
#define SUM_COLUMNS 256u              /* that a block of the sum adds: 128 take 2 us longer with 8 rows, 512 1 us */

static_assert(FULL_KEYS == ATTN_PAGE_TOKENS, "a chunk has one page number");

struct full_stage {
    uint8_t k[FULL_KEYS * FULL_K_STRIDE], v[FULL_KEYS * FULL_V_STRIDE];
    alignas(16) uint8_t block_bytes[sizeof(attn_shared<FULL_D>)];      /* q, and what attn.cu's functions need */
    __device__ attn_shared<FULL_D> &block() { return *(attn_shared<FULL_D> *)block_bytes; }
};

struct full_shared {
    full_stage stage[2];
    uint32_t first[STEP_ROWS_MAX + 1];      /* items in front of each row */
    uint32_t position[STEP_ROWS_MAX], seq[STEP_ROWS_MAX], fresh[STEP_ROWS_MAX];      /* of each row; first key that this step writes */
};

/* Spans of a row that is left: those of its group, for that is what is added up. 0: it is answered. */
__device__ __forceinline__ uint32_t row_spans(const attn_args &a, uint32_t row, uint32_t short_keys)
{
    const step_group g = a.state->group[a.state->row[row].group];

    return g.first_position + g.rows > short_keys ? cut_spans<FULL_UNIT>(g.first_position + g.rows) : 0;
}

/* ---- which chunk ---- */

struct chunk { uint32_t index; item it; uint32_t key; bool last; };      /* last: of its item */

/* All rows at once: one after the other they would cost a load's latency each. */
__device__ __forceinline__ void list_rows(const attn_args &a, full_shared &sh, uint32_t short_keys)
{
    const uint32_t row = threadIdx.x;

    if (row < STEP_ROWS_MAX) {
        uint32_t spans = 0;

        if (row < a.state->rows) {
            const step_row own = a.state->row[row];
            const step_group group = a.state->group[own.group];

            sh.position[row] = own.position, sh.seq[row] = group.seq, sh.fresh[row] = group.first_position;
            if (group.first_position + group.rows > short_keys) spans = cut_spans<FULL_UNIT>(group.first_position + group.rows);
        }
        sh.first[row + 1] = spans;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        sh.first[0] = 0;
        for (uint32_t i = 1; i <= STEP_ROWS_MAX; i++) sh.first[i] += sh.first[i - 1];
    }
    __syncthreads();
}

/* The item of that index; false past the last one. One item is one span of one row. */
__device__ __forceinline__ bool find_chunk(chunk &c, const attn_args &a, const full_shared &sh, uint32_t index)
{
    const uint32_t rows = a.state->rows;
    uint32_t row = 0, step = STEP_ROWS_MAX;

    c.index = index;
    if (index >= sh.first[rows]) return false;
    while (step /= 2)
        if (row + step < rows && sh.first[row + step] <= index) row += step;
    c.it.group = step_group{ row, 1, sh.position[row], sh.seq[row] };
    c.it.head = 0;
    c.it.slot = index - sh.first[row];
    c.it.span = cut_span<FULL_UNIT>(c.it.slot);
    c.it.row_first = 0, c.it.row_end = 1;
    c.key = c.it.span.first;
    c.last = c.key + FULL_KEYS >= c.it.span.end || c.key + FULL_KEYS > sh.position[row];
    return true;
}

__device__ __forceinline__ bool next_chunk(chunk &c, const attn_args &a, const full_shared &sh)
{
    if (c.last) return find_chunk(c, a, sh, c.index + gridDim.x);
    c.key += FULL_KEYS;
    c.last = c.key + FULL_KEYS >= c.it.span.end || c.key + FULL_KEYS > c.it.group.first_position;
    return true;
}

/* ---- on its way into shared memory ---- */

template <bool F8>
__device__ __forceinline__ void ask_keys(const attn_args &a, const chunk &c, full_stage &to, uint32_t warp, uint32_t lane)
{
    constexpr uint32_t VECTORS = FULL_D * kv_bytes<F8> / 16;   /* 16-byte pieces of a key */
    const uint32_t position = c.it.group.first_position;
    const uint8_t *page = a.arena + __ldg(page_entry(a, c.it.group.seq, c.key)) * a.page_bytes;

#pragma unroll
    for (uint32_t i = 0; i < FULL_KEYS / ATTN_WARPS; i++) {
        const uint32_t key = warp * (FULL_KEYS / ATTN_WARPS) + i, bytes = c.key + key <= position ? 16 : 0;      /* zeros for keys that the row does not see */

#pragma unroll
        for (uint32_t j = lane; j < VECTORS; j += 32) {
            copy_async(smem_address(to.k + key * FULL_K_STRIDE) + j * 16, page + a.k_offset + (key * VECTORS + j) * 16, bytes);
            copy_async(smem_address(to.v + key * FULL_V_STRIDE) + j * 16, page + a.v_offset + (key * VECTORS + j) * 16, bytes);
        }
    }
}

__device__ __forceinline__ void ask_queries(const attn_args &a, const chunk &c, full_stage &to, uint32_t warp, uint32_t lane)
{
    const __nv_bfloat16 *q = a.out + (uint64_t)c.it.group.first_row * ATTN_HEADS * FULL_D;      /* out is not written before everybody has read it */

#pragma unroll
    for (uint32_t i = 0; i < ATTN_HEADS / ATTN_WARPS; i++) {
        const uint32_t head = warp * (ATTN_HEADS / ATTN_WARPS) + i;

#pragma unroll
        for (uint32_t j = lane; j < Q_VECTORS; j += 32) copy_async(smem_address(to.block().q[head]) + j * 16, q + head * FULL_D + j * 8, 16);
    }
}

/* ---- a chunk by a block ---- */

template <bool F8>
__device__ __forceinline__ void load_fragments(fragments<FULL_D, F8> &f, const full_stage &from, uint32_t warp, uint32_t lane)
{
    using S = attn_shape<FULL_D>;
    constexpr uint32_t B = kv_bytes<F8>;
    constexpr int WORDS = fragments<FULL_D, F8>::WORDS;
    const uint8_t *row = from.k + (warp % S::KEY_TILES * 8 + lane / 4) * FULL_K_STRIDE + (warp / S::KEY_TILES * 256 + lane % 4 * 8) * B;

#pragma unroll
    for (int i = 0; i < 8; i++) f.k[i] = *(const typename kv_eight<F8>::words *)(row + i * 32 * B);
#pragma unroll
    for (int s = 0; s < S::PV_STEPS; s++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            *(typename kv_eight<F8>::words *)(f.v + (s * 4 + e) * WORDS) =
                *(const typename kv_eight<F8>::words *)(from.v + (s * 16 + lane % 4 * 4 + e) * FULL_V_STRIDE + (warp * S::PV_DIMS + lane / 4 * 8) * B);
        }
}

template <bool F8>
__global__ void __launch_bounds__(FULL_THREADS) many_full_kernel(const __grid_constant__ attn_args a, uint32_t short_keys)
{
    using S = attn_shape<FULL_D>;
    extern __shared__ __align__(16) uint8_t shared_bytes[];
    full_shared &sh = *(full_shared *)shared_bytes;
    const uint32_t warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    float out[S::PV_TILES][4] = {}, top[2] = { NEVER, NEVER }, sum[2] = { 0.0f, 0.0f };
    chunk at, asked;
    uint32_t turn = 0;

    chain_trigger();
    list_rows(a, sh, short_keys);
    bool more = find_chunk(asked, a, sh, blockIdx.x);
    const bool some = more;

    at = asked;
    /* Keys of earlier steps do not wait for this one's. */
    const bool early = more && asked.key + FULL_KEYS <= sh.fresh[asked.it.group.first_row];
    if (early) ask_keys<F8>(a, asked, sh.stage[0], warp, lane);
    chain_wait();
    if (!some) return;
    if (!early) ask_keys<F8>(a, asked, sh.stage[0], warp, lane);
    ask_queries(a, asked, sh.stage[0], warp, lane);
    copies_commit();
    more = next_chunk(asked, a, sh);
    for (bool left = true; left; turn ^= 1) {
        full_stage &stage = sh.stage[turn], &other = sh.stage[turn ^ 1];
        float s[4] = {};
        float2 w[2];
        fragments<FULL_D, F8> f;

        __syncthreads();              /* everybody is done with the other stage */
        if (more) ask_keys<F8>(a, asked, other, warp, lane), ask_queries(a, asked, other, warp, lane);
        copies_commit();
        copies_wait<1>();
        __syncthreads();
        load_fragments<F8>(f, stage, warp, lane);
        scores<FULL_D, F8>(s, f, stage.block(), warp, lane);
        add_halves<FULL_D>(s, stage.block(), warp, lane);
        join_softmax<F8>(s, top, sum, w, at.it, at.key, 0, stage.block(), warp, lane);
        join_values<F8>(out, f, w, stage.block(), lane);
        if (at.last) {
            store_partial<FULL_D>(a, at.it, 0, out, top, sum, warp, lane);
#pragma unroll
            for (int j = 0; j < S::PV_TILES; j++) out[j][0] = out[j][1] = out[j][2] = out[j][3] = 0.0f;
            top[0] = top[1] = NEVER, sum[0] = sum[1] = 0.0f;
        }
        left = more;
        at = asked;
        if (more) more = next_chunk(asked, a, sh);
    }
}

/* The results of a row and head, chunk by chunk below the first border: as attn.cu's sum of a fine step. */
__global__ void __launch_bounds__(FULL_SUM_THREADS) many_sum_kernel(const __grid_constant__ attn_args a, uint32_t short_keys)
{
    const uint32_t row = blockIdx.x / (ATTN_HEADS * a.sum_parts);
    unsigned long long *trace = a.trace ? a.trace + TRACE_WORDS : NULL;

    chain_trigger();
    if (threadIdx.x == 0) trace_mark(trace, TRACE_START);
    const uint32_t spans = row < a.state->rows ? row_spans(a, row, short_keys) : 0;
    const float power = power_or_one(a.out_power);

    chain_wait();
    if (spans == 0) return;
    if (threadIdx.x == 0) trace_mark(trace, TRACE_PAST_WAIT);
    full_sum<SUM_COLUMNS>(a, spans, true, power);
    if (threadIdx.x == 0) trace_mark(trace, TRACE_END);
}

int attn_many_full_init(void)
{
    int rc = attn_many_short_init();

    if (rc == 0) rc = launch_prepare((const void *)many_full_kernel<false>, (uint32_t)sizeof(struct full_shared));
    if (rc == 0) rc = launch_prepare((const void *)many_full_kernel<true>, (uint32_t)sizeof(struct full_shared));
    return rc ? rc : launch_prepare((const void *)many_sum_kernel, 0);
}

int attn_many_full_launch(const struct attn_args *args, uint32_t rows, uint32_t sm_count, bool all_short, void *stream)
{
    attn_args a = *args;
    uint32_t short_keys = attn_many_short_keys(rows);
    void *params[] = { &a, &short_keys };

    if (a.kv_heads != 1 || a.window) return -E_UNSUPPORTED;
    if (rows == 0 || rows > STEP_ROWS_MAX || a.turned > FULL_D / 2 || a.turned % 4) return -E_RANGE;
    if (all_short && short_keys == 0) return -E_RANGE;
    if (short_keys && a.out_places.block) return -E_RANGE;     /* the kernel for short texts leaves plain rows, and the queries of long ones in out beside them */
    a.out_places = places_known(a.out_places, ATTN_HEADS * FULL_D);
    a.sum_parts = FULL_D / SUM_COLUMNS;
    int rc = attn_many_short_launch(&a, rows, stream);

    if (all_short) return rc;

    if (rc == 0) rc = launch_chained(a.kv_fp8 ? (const void *)many_full_kernel<true> : (const void *)many_full_kernel<false>, sm_count, FULL_THREADS, (uint32_t)sizeof(struct full_shared), params, stream);
    return rc ? rc : launch_chained((const void *)many_sum_kernel, rows * ATTN_HEADS * a.sum_parts, FULL_SUM_THREADS, 0, params, stream);
}
