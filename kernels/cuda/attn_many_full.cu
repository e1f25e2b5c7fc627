/* kernels/cuda/attn_many_full.cu - full attention for many sequences (contract in attn_many.h).
 *
 * A block of 4 warps works on a chunk of 32 keys: 8 keys a warp in q k, 128 columns a warp in p v. K and V come from the pages straight into registers, as
 * the tensor cores want them, those of the next chunk as soon as their registers are free; two blocks an SM fill each other's waits. Rows
 * are single and their q is ready: products and their order are those of attn.cu. A third kernel adds the spans of a row. */
#include "attn_many.h"
#include "attn_many_prepare.cuh"
#include "attn_block.cuh"
#include "launch.h"
#include "shm/error.h"

#define FULL_D 512
#define FULL_KEYS 32                  /* of a chunk: one page */
#define FULL_WARPS 4
#define FULL_THREADS (FULL_WARPS * 32)
#define FULL_BLOCKS 2                 /* of an SM */
#define WARP_KEYS (FULL_KEYS / FULL_WARPS)
#define WARP_DIMS (FULL_D / FULL_WARPS)
#define SLICE_DIMS 64                 /* of p v at a time */
#define SLICES (WARP_DIMS / SLICE_DIMS)
#define SLICE_TILES (SLICE_DIMS / 8)
#define COMBINE_BATCH 16              /* spans whose loads are in flight together */

static_assert(FULL_KEYS == ATTN_PAGE_TOKENS, "a chunk has one page number");
static_assert(WARP_KEYS == 8, "keys of a tile");

struct full_shared {
    __nv_bfloat16 q[2][ATTN_HEADS][FULL_D + 32];      /* of this chunk's row and of the next one's; rows 16 banks apart */
    __nv_bfloat16 p[ATTN_HEADS][FULL_KEYS + 16];
    float top[ATTN_HEADS][FULL_WARPS], sum[ATTN_HEADS][FULL_WARPS];
    uint32_t first[STEP_ROWS_MAX + 1];      /* items in front of each row */
    uint32_t position[STEP_ROWS_MAX], seq[STEP_ROWS_MAX], fresh[STEP_ROWS_MAX];      /* of each row; first key that this step writes */
};

/* The cut of attn.cu. */
__device__ __forceinline__ span many_span(uint32_t i)
{
    uint32_t first, keys;

    if (i < 64) keys = 32, first = 32 * i;
    else if (i < 112) keys = 128, first = 2048 + 128 * (i - 64);
    else if (i < 160) keys = 512, first = 8192 + 512 * (i - 112);
    else keys = 1024, first = 32768 + 1024 * (i - 160);
    return span{ first, first + keys };
}

__device__ __forceinline__ uint32_t many_spans(uint32_t tokens)
{
    if (tokens <= 2048) return (tokens + 31) / 32;
    if (tokens <= 8192) return 64 + (tokens - 2048 + 127) / 128;
    if (tokens <= 32768) return 112 + (tokens - 8192 + 511) / 512;
    return 160 + (tokens - 32768 + 1023) / 1024;
}

/* Spans of a row: those of its group, for that is what is added up. */
__device__ __forceinline__ uint32_t row_spans(const attn_args &a, uint32_t row)
{
    const step_group g = a.state->group[a.state->row[row].group];

    return many_spans(g.first_position + g.rows);
}

/* ---- which chunk ---- */

/* One item is one span of one row; slot: of its partial result. page: number of the chunk's page; last: of its item. */
struct chunk { uint32_t index, row, seq, position, slot, key, end, page; bool last; };

/* All rows at once, by the first two warps: one after the other they would cost a load's latency each. */
__device__ __forceinline__ void list_rows(const attn_args &a, full_shared &sh)
{
    const uint32_t row = threadIdx.x;
    uint32_t spans = 0;

    if (row < a.state->rows && row < STEP_ROWS_MAX) {
        const step_row own = a.state->row[row];
        const step_group group = a.state->group[own.group];

        sh.position[row] = own.position, sh.seq[row] = group.seq, sh.fresh[row] = group.first_position;
        spans = many_spans(group.first_position + group.rows);
    }
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        const uint32_t below = __shfl_up_sync(0xffffffffu, spans, d);

        if (threadIdx.x % 32 >= d) spans += below;
    }
    if (row < STEP_ROWS_MAX) sh.first[row + 1] = spans;
    if (row == 0) sh.first[0] = 0;
    __syncthreads();
    const uint32_t before = sh.first[32];

    __syncthreads();
    if (row >= 32 && row < STEP_ROWS_MAX) sh.first[row + 1] += before;
    __syncthreads();
}

/* The next chunk of the item: it has one. */
__device__ __forceinline__ void enter_chunk(chunk &c, const attn_args &a)
{
    c.last = c.key + FULL_KEYS >= c.end || c.key + FULL_KEYS > c.position;
    c.page = __ldg(page_entry(a, c.seq, c.key));
}

/* The first chunk of the item of that index; false past the last one. */
__device__ __forceinline__ bool find_chunk(chunk &c, const attn_args &a, const full_shared &sh, uint32_t index)
{
    const uint32_t rows = a.state->rows;
    uint32_t row = 0, step = STEP_ROWS_MAX;

    c.index = index;
    if (index >= sh.first[rows]) return false;
    while (step /= 2)
        if (row + step < rows && sh.first[row + step] <= index) row += step;
    c.row = row, c.seq = sh.seq[row], c.position = sh.position[row];
    c.slot = index - sh.first[row];
    const span s = many_span(c.slot);

    c.key = s.first, c.end = s.end;
    enter_chunk(c, a);
    return true;
}

__device__ __forceinline__ bool next_chunk(chunk &c, const attn_args &a, const full_shared &sh)
{
    if (c.last) return find_chunk(c, a, sh, c.index + gridDim.x);
    c.key += FULL_KEYS;
    enter_chunk(c, a);
    return true;
}

/* ---- keys, values and queries on their way ---- */

/* The warp's 8 keys; zeros for keys that the row does not see. */
__device__ __forceinline__ void ask_k(uint4 (&k)[16], const attn_args &a, const chunk &c, uint32_t warp, uint32_t lane)
{
    const uint32_t key = warp * WARP_KEYS + lane / 4;
    const bool live = c.key + key <= c.position;
    const __nv_bfloat16 *from = (const __nv_bfloat16 *)(a.arena + c.page * a.page_bytes + a.k_offset) + key * FULL_D + lane % 4 * 8;

#pragma unroll
    for (int i = 0; i < 16; i++) k[i] = live ? ld_l2((const uint4 *)(from + i * 32)) : make_uint4(0, 0, 0, 0);
}

/* All keys, one slice of the warp's columns. */
__device__ __forceinline__ void ask_v(uint4 (&v)[8], const attn_args &a, const chunk &c, uint32_t slice, uint32_t warp, uint32_t lane)
{
    const __nv_bfloat16 *from = (const __nv_bfloat16 *)(a.arena + c.page * a.page_bytes + a.v_offset) + lane % 4 * 4 * FULL_D + warp * WARP_DIMS + slice * SLICE_DIMS + lane / 4 * 8;

#pragma unroll
    for (int i = 0; i < 8; i++) {
        const uint32_t key = i / 4 * 16 + i % 4;

        v[i] = c.key + key + lane % 4 * 4 <= c.position ? ld_l2((const uint4 *)(from + key * FULL_D)) : make_uint4(0, 0, 0, 0);
    }
}

__device__ __forceinline__ void ask_queries(const attn_args &a, uint32_t row, full_shared &sh, uint32_t turn)
{
    const __nv_bfloat16 *q = a.out + (uint64_t)row * ATTN_HEADS * FULL_D;      /* out is not written before everybody has read it */

#pragma unroll
    for (uint32_t i = threadIdx.x; i < ATTN_HEADS * FULL_D / 8; i += FULL_THREADS) copy_async(smem_address(&sh.q[turn][i / (FULL_D / 8)][i % (FULL_D / 8) * 8]), q + i * 8, 16);
}

/* ---- a chunk by a block ---- */

/* 16 heads with the warp's 8 keys: the lower half of d, then the upper one, two accumulators each. */
__device__ __forceinline__ void chunk_scores(float (&s)[4], const uint4 (&k)[16], const full_shared &sh, uint32_t turn, uint32_t lane)
{
    float x[2][2][4] = {};

#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const uint32_t at = half * 256 + i * 32 + lane % 4 * 8;
            const uint4 low = *(const uint4 *)&sh.q[turn][lane / 4][at], high = *(const uint4 *)&sh.q[turn][lane / 4 + 8][at];
            const uint4 own = k[half * 8 + i];

            mma_bf16(x[half][0], low.x, high.x, low.y, high.y, own.x, own.y);
            mma_bf16(x[half][1], low.z, high.z, low.w, high.w, own.z, own.w);
        }
#pragma unroll
    for (int i = 0; i < 4; i++) s[i] = (x[0][0][i] + x[0][1][i]) + (x[1][0][i] + x[1][1][i]);
}

/* As softmax_chunk of attn_block.cuh: new maximum, weights into p, sums; factor: what was accumulated so far shrinks by. */
__device__ __forceinline__ void chunk_softmax(float (&s)[4], float (&top)[2], float (&sum)[2], float (&factor)[2], const chunk &c, full_shared &sh, uint32_t warp, uint32_t lane)
{
    const uint32_t g = lane / 4;

#pragma unroll
    for (int h = 0; h < 2; h++) {
        float best = NEVER;

#pragma unroll
        for (int e = 0; e < 2; e++) {
            if (c.key + warp * WARP_KEYS + lane % 4 * 2 + e > c.position) s[h * 2 + e] = NEVER;
            best = fmaxf(best, s[h * 2 + e]);
        }
        best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, 1));
        best = fmaxf(best, __shfl_xor_sync(0xffffffffu, best, 2));
        if (lane % 4 == 0) sh.top[g + 8 * h][warp] = best;
    }
    __syncthreads();
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const uint32_t m = g + 8 * h;
        const float4 tops = *(const float4 *)sh.top[m];
        const float best = fmaxf(fmaxf(fmaxf(fmaxf(top[h], tops.x), tops.y), tops.z), tops.w);

        factor[h] = top[h] == NEVER ? 0.0f : __expf(top[h] - best);
        top[h] = best;
        const float p0 = s[h * 2] == NEVER ? 0.0f : __expf(s[h * 2] - best), p1 = s[h * 2 + 1] == NEVER ? 0.0f : __expf(s[h * 2 + 1] - best);
        float part = p0 + p1;

        part += __shfl_xor_sync(0xffffffffu, part, 1);
        part += __shfl_xor_sync(0xffffffffu, part, 2);
        *(uint32_t *)&sh.p[m][warp * WARP_KEYS + lane % 4 * 2] = pack_bf16(p0, p1);
        if (lane % 4 == 0) sh.sum[m][warp] = part;
    }
    __syncthreads();
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const float4 sums = *(const float4 *)sh.sum[g + 8 * h];

        sum[h] = sum[h] * factor[h] + (((0.0f + sums.x) + sums.y) + sums.z + sums.w);
    }
}

/* out[tile] += p v for one slice; column n of tile j is d = 8 n + j of it. */
__device__ __forceinline__ void chunk_values(float (&out)[SLICE_TILES][4], const uint4 (&v)[8], const full_shared &sh, uint32_t lane)
{
#pragma unroll
    for (int s = 0; s < 2; s++) {
        const int place = s * 16 + lane % 4 * 4;
        const uint2 low = *(const uint2 *)&sh.p[lane / 4][place], high = *(const uint2 *)&sh.p[lane / 4 + 8][place];
        const uint32_t *x = (const uint32_t *)(v + s * 4);

#pragma unroll
        for (int j = 0; j < SLICE_TILES; j++) {
            const uint32_t select = j % 2 ? 0x7632 : 0x5410;   /* the upper or lower bf16 of both */

            mma_bf16(out[j], low.x, high.x, low.y, high.y, __byte_perm(x[j / 2], x[4 + j / 2], select), __byte_perm(x[8 + j / 2], x[12 + j / 2], select));
        }
    }
}

/* The item's result of one slice: 16 consecutive elements a lane and head. */
__device__ __forceinline__ void store_slice(const attn_args &a, const chunk &c, const float (&out)[SLICE_TILES][4], uint32_t slice, uint32_t warp, uint32_t lane)
{
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const uint64_t at = ((uint64_t)c.row * ATTN_HEADS + lane / 4 + 8 * h) * a.spans_max + c.slot;
        float *to = a.part + at * FULL_D + warp * WARP_DIMS + slice * SLICE_DIMS + lane % 4 * (2 * SLICE_TILES);

#pragma unroll
        for (int e = 0; e < 2; e++)
#pragma unroll
            for (int j = 0; j < SLICE_TILES; j += 4)
                *(float4 *)(to + e * SLICE_TILES + j) = make_float4(out[j][h * 2 + e], out[j + 1][h * 2 + e], out[j + 2][h * 2 + e], out[j + 3][h * 2 + e]);
    }
}

__device__ __forceinline__ void store_sums(const attn_args &a, const chunk &c, const float (&top)[2], const float (&sum)[2], uint32_t warp, uint32_t lane)
{
    if (warp || lane % 4) return;
#pragma unroll
    for (int h = 0; h < 2; h++) a.part_ml[((uint64_t)c.row * ATTN_HEADS + lane / 4 + 8 * h) * a.spans_max + c.slot] = make_float2(top[h], sum[h]);
}

__global__ void __launch_bounds__(FULL_THREADS, FULL_BLOCKS) many_full_kernel(const __grid_constant__ attn_args a)
{
    __shared__ __align__(16) full_shared sh;
    const uint32_t warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    float out[SLICES][SLICE_TILES][4] = {}, top[2] = { NEVER, NEVER }, sum[2] = { 0.0f, 0.0f };
    uint4 k[16], v[SLICES][8];
    chunk at, behind;
    uint32_t turn = 0;

    chain_trigger();
    list_rows(a, sh);
    const bool some = find_chunk(at, a, sh, blockIdx.x);
    /* Keys of earlier steps do not wait for this one's. */
    const bool early = some && at.key + FULL_KEYS <= sh.fresh[at.row];

    if (early) ask_k(k, a, at, warp, lane), ask_v(v[0], a, at, 0, warp, lane), ask_v(v[1], a, at, 1, warp, lane);
    chain_wait();
    if (!some) return;
    if (!early) ask_k(k, a, at, warp, lane), ask_v(v[0], a, at, 0, warp, lane), ask_v(v[1], a, at, 1, warp, lane);
    ask_queries(a, at.row, sh, turn);
    copies_commit();
    for (bool more = true; more; at = behind) {
        float s[4], factor[2];

        behind = at;
        more = next_chunk(behind, a, sh);
        const bool turns = more && behind.row != at.row;

        if (turns) ask_queries(a, behind.row, sh, turn ^ 1);      /* whose last reader is behind a barrier of the last chunk */
        copies_commit();
        copies_wait<1>();
        __syncthreads();              /* everybody's copies of q; and p of the last chunk has been read */
        chunk_scores(s, k, sh, turn, lane);
        if (more) ask_k(k, a, behind, warp, lane);
        chunk_softmax(s, top, sum, factor, at, sh, warp, lane);
#pragma unroll
        for (int i = 0; i < SLICES; i++) {
#pragma unroll
            for (int j = 0; j < SLICE_TILES; j++) out[i][j][0] *= factor[0], out[i][j][1] *= factor[0], out[i][j][2] *= factor[1], out[i][j][3] *= factor[1];
            chunk_values(out[i], v[i], sh, lane);
            if (more) ask_v(v[i], a, behind, i, warp, lane);
            if (!at.last) continue;
            store_slice(a, at, out[i], i, warp, lane);
#pragma unroll
            for (int j = 0; j < SLICE_TILES; j++) out[i][j][0] = out[i][j][1] = out[i][j][2] = out[i][j][3] = 0.0f;
        }
        if (at.last) {
            store_sums(a, at, top, sum, warp, lane);
            top[0] = top[1] = NEVER, sum[0] = sum[1] = 0.0f;
        }
        turn ^= turns;
    }
}

/* One block per (row, head): the spans in ascending order, operation by operation as attn.cu's combine. */
__global__ void __launch_bounds__(FULL_D / 2) many_combine_kernel(const __grid_constant__ attn_args a)
{
    const uint32_t row = blockIdx.x / ATTN_HEADS, lane = threadIdx.x % 32;
    const float2 *ml = a.part_ml + (uint64_t)blockIdx.x * a.spans_max;
    const float *part = a.part + (uint64_t)blockIdx.x * a.spans_max * FULL_D + threadIdx.x * 2;
    unsigned long long *trace = a.trace ? a.trace + TRACE_WORDS : NULL;
    float top = NEVER, sum = 0.0f;
    float2 out = make_float2(0.0f, 0.0f);

    chain_trigger();
    if (threadIdx.x == 0) trace_mark(trace, TRACE_START);
    const bool live = row < a.state->rows;
    const uint32_t spans = live ? row_spans(a, row) : 0;

    chain_wait();
    if (!live) return;
    if (threadIdx.x == 0) trace_mark(trace, TRACE_PAST_WAIT);
    for (uint32_t s = lane; s < spans; s += 32) top = fmaxf(top, __ldcg(&ml[s].x));
#pragma unroll
    for (int d = 16; d; d >>= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, d));
    for (uint32_t first = 0; first < spans; first += COMBINE_BATCH) {
        float2 x[COMBINE_BATCH];

#pragma unroll
        for (uint32_t s = 0; s < COMBINE_BATCH; s++) x[s] = first + s < spans ? __ldcg((const float2 *)(part + (uint64_t)(first + s) * FULL_D)) : make_float2(0.0f, 0.0f);
        const float2 own = lane < COMBINE_BATCH && first + lane < spans ? __ldcg(ml + first + lane) : make_float2(NEVER, 0.0f);
        const float weight = own.x == NEVER ? 0.0f : __expf(own.x - top), mass = __fmul_rn(weight, own.y);

#pragma unroll
        for (uint32_t s = 0; s < COMBINE_BATCH; s++) {
            const float w = __shfl_sync(0xffffffffu, weight, s);

            sum = __fadd_rn(sum, __shfl_sync(0xffffffffu, mass, s));
            out.x = __fmaf_rn(w, x[s].x, out.x), out.y = __fmaf_rn(w, x[s].y, out.y);
        }
    }
    const float inv = 1.0f / sum;

    *(uint32_t *)(a.out + (uint64_t)blockIdx.x * FULL_D + threadIdx.x * 2) = pack_bf16(out.x * inv, out.y * inv);
    if (threadIdx.x == 0) trace_mark(trace, TRACE_END);
}

int attn_many_full_init(void)
{
    int rc = launch_prepare((const void *)many_prepare_kernel<FULL_D>, 0);

    if (rc == 0) rc = launch_prepare((const void *)many_full_kernel, 0);
    return rc ? rc : launch_prepare((const void *)many_combine_kernel, 0);
}

int attn_many_full_launch(const struct attn_args *args, uint32_t rows, uint32_t sm_count, void *stream)
{
    attn_args a = *args;
    void *params[] = { &a };

    if (a.kv_heads != 1 || a.window) return -E_UNSUPPORTED;
    if (rows == 0 || rows > STEP_ROWS_MAX || a.turned > FULL_D / 2 || a.turned % 4) return -E_RANGE;
    int rc = launch_chained((const void *)many_prepare_kernel<FULL_D>, many_prepare_blocks(a, rows), PREPARE_WARPS * 32, 0, params, stream);

    if (rc == 0) rc = launch_chained((const void *)many_full_kernel, sm_count * FULL_BLOCKS, FULL_THREADS, 0, params, stream);
    return rc ? rc : launch_chained((const void *)many_combine_kernel, rows * ATTN_HEADS, FULL_D / 2, 0, params, stream);
}
