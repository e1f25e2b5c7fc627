/* kernels/cuda/attn_full.cuh - full attention of layers with one kv head: how keys are grouped, a block's work on one item, the sum of a row's results.
 *
 * Read by attn.cu and, for its arithmetic, by attn_many_full.cu. A chunk of 32 keys has a softmax of its own; the chunks of a span are joined in ascending order, spans are added up in ascending order.
 * Below cut::KEYS_A a span is GROUP chunks. A "fine" step leaves the results of its chunks in memory and the sum joins them, operation by operation as a block would: which of both
 * it is depends on how many rows there are, the result does not.
 * In bf16, K of a chunk lies in shared memory, V in registers: both and what is summed up, 16 x 512 f32, are more registers than a block has beside a product.
 * A register that is spilled while it is loaded holds up all loads behind it (measured: 1 us a chunk). */
#ifndef SLUICE_CUDA_ATTN_FULL_CUH
#define SLUICE_CUDA_ATTN_FULL_CUH

#include "attn_block.cuh"
#include "attn_many_copy.cuh"
#include "round.cuh"

#define FULL_UNIT 32u                 /* keys of a chunk: a page */
#define FULL_GROUP 3u                 /* chunks of a span below KEYS_A; 32 in the longest */
#define FULL_GROUPS (cut<FULL_UNIT>::A / FULL_GROUP)

static_assert(FULL_UNIT == ATTN_PAGE_TOKENS && attn_shape<512>::KEYS == FULL_UNIT, "a chunk has one page number");
static_assert(cut<FULL_UNIT>::A % FULL_GROUP == 0, "whole groups below the first border");

/* Partial results of a row of a text of `tokens` keys, and the keys of one of them. */
__device__ __forceinline__ uint32_t full_slots(uint32_t tokens, bool fine)
{
    if (fine) return cut_spans<FULL_UNIT>(tokens);
    return tokens <= cut<FULL_UNIT>::KEYS_A ? (tokens + FULL_GROUP * FULL_UNIT - 1) / (FULL_GROUP * FULL_UNIT) : cut_spans<FULL_UNIT>(tokens) - (cut<FULL_UNIT>::A - FULL_GROUPS);
}

__device__ __forceinline__ span full_span(uint32_t slot, bool fine)
{
    if (fine) return cut_span<FULL_UNIT>(slot);
    if (slot < FULL_GROUPS) return span{ slot * (FULL_GROUP * FULL_UNIT), (slot + 1) * (FULL_GROUP * FULL_UNIT) };
    return cut_span<FULL_UNIT>(slot + (cut<FULL_UNIT>::A - FULL_GROUPS));
}

/* Chunks are left apart while each block has at most one. */
__device__ __forceinline__ bool full_is_fine(const attn_args &a)
{
    uint32_t units = 0;

#pragma unroll 1
    for (uint32_t g = 0; g < a.state->groups; g++) units += cut_spans<FULL_UNIT>(group_tokens(a.state->group[g])) * a.state->group[g].rows;
    return units <= a.blocks;
}

/* ---- how results are joined ---- */

__device__ __forceinline__ float full_weight(float top, float of) { return top == NEVER ? 0.0f : __expf(top - of); }

/* x: what the sum so far is multiplied by, y: what is added; *top becomes that of both. */
__device__ __forceinline__ float2 join_weights(float &top, float chunk_top)
{
    const float best = fmaxf(top, chunk_top);
    const float2 w = make_float2(full_weight(top, best), full_weight(chunk_top, best));

    top = best;
    return w;
}

__device__ __forceinline__ float join(float2 w, float before, float x) { return __fmaf_rn(w.y, x, __fmul_rn(w.x, before)); }

/* out = out joined with this chunk's p v; two tiles at a time, whose sums are all that is needed beside out. */
template <bool F8>
__device__ __forceinline__ void join_values(float (&out)[attn_shape<512>::PV_TILES][4], const fragments<512, F8> &f, const float2 (&w)[2], const attn_shared<512> &sh, uint32_t lane)
{
    using S = attn_shape<512>;
    constexpr int WORDS = fragments<512, F8>::WORDS;
    uint2 low[S::PV_STEPS], high[S::PV_STEPS];

#pragma unroll
    for (int s = 0; s < S::PV_STEPS; s++) low[s] = *(const uint2 *)&sh.p[lane / 4][s * 16 + lane % 4 * 4], high[s] = *(const uint2 *)&sh.p[lane / 4 + 8][s * 16 + lane % 4 * 4];
#pragma unroll
    for (int j = 0; j < S::PV_TILES; j += 2) {
        float x[2][4] = {};

#pragma unroll
        for (int s = 0; s < S::PV_STEPS; s++)
#pragma unroll
            for (int t = 0; t < 2; t++) {
                const uint32_t *v = f.v + s * 4 * WORDS;
                const uint32_t b0 = value_pair<F8>(v, v + WORDS, j + t), b1 = value_pair<F8>(v + 2 * WORDS, v + 3 * WORDS, j + t);

                mma_kv<F8>(x[t], low[s].x, high[s].x, low[s].y, high[s].y, b0, b1);
            }
#pragma unroll
        for (int t = 0; t < 2; t++)
#pragma unroll
            for (int i = 0; i < 4; i++) out[j + t][i] = join(w[i / 2], out[j + t][i], x[t][i]);
    }
}

/* Softmax of a chunk, joined with what there is: leaves p in shared memory and says what join_values is to multiply by. */
template <bool F8>
__device__ __forceinline__ void join_softmax(float (&s)[4], float (&top)[2], float (&sum)[2], float2 (&w)[2], const item &it, uint32_t chunk, uint32_t row, attn_shared<512> &sh, uint32_t warp, uint32_t lane)
{
    float own_top[2] = { NEVER, NEVER }, own_sum[2] = { 0.0f, 0.0f }, factor[2];

    softmax_chunk<512, F8>(s, own_top, own_sum, factor, it, chunk, row, sh, warp, lane);
#pragma unroll
    for (int h = 0; h < 2; h++) w[h] = join_weights(top[h], own_top[h]), sum[h] = join(w[h], sum[h], own_sum[h]);
}

/* ---- a block's work on one row of one span ---- */

/* Page numbers of the span's chunks: looked up for each load they would cost a round trip each. Only those of keys of earlier steps. */
__device__ __forceinline__ void load_pages(const attn_args &a, const item &it, attn_shared<512> &sh)
{
    const uint32_t key = it.span.first + threadIdx.x * FULL_UNIT;

    if (threadIdx.x < 32 && key < it.span.end && key < it.group.first_position)
        sh.page[threadIdx.x] = __ldg(a.pages + (uint64_t)it.group.seq * a.pages_stride + key / ATTN_PAGE_TOKENS % a.ring_pages);
}

__device__ __forceinline__ const uint8_t *page_of(const attn_args &a, const item &it, const attn_shared<512> &sh, uint32_t chunk) { return a.arena + sh.page[(chunk - it.span.first) / FULL_UNIT] * a.page_bytes; }

/* 16 or 8 bytes past the L1, or zeros; asked for where it stands: a load that the compiler moves up among the products takes registers that are not there. */
__device__ __forceinline__ void load_live(uint4 &to, const uint8_t *from, bool live)
{
    asm volatile("{\n.reg .pred live;\nsetp.ne.u32 live, %5, 0;\nmov.u32 %0, 0;\nmov.u32 %1, 0;\nmov.u32 %2, 0;\nmov.u32 %3, 0;\n@live ld.global.cg.v4.u32 {%0,%1,%2,%3}, [%4];\n}"
                 : "=&r"(to.x), "=&r"(to.y), "=&r"(to.z), "=&r"(to.w) : "l"(from), "r"((uint32_t)live) : "memory");
}

__device__ __forceinline__ void load_live(uint2 &to, const uint8_t *from, bool live)
{
    asm volatile("{\n.reg .pred live;\nsetp.ne.u32 live, %3, 0;\nmov.u32 %0, 0;\nmov.u32 %1, 0;\n@live ld.global.cg.v2.u32 {%0,%1}, [%2];\n}" : "=&r"(to.x), "=&r"(to.y) : "l"(from), "r"((uint32_t)live) : "memory");
}

/* K of a chunk; zeros for keys that no earlier step has written. */
template <bool F8>
__device__ __forceinline__ void full_load_k(fragments<512, F8> &f, const attn_args &a, const item &it, const attn_shared<512> &sh, uint32_t chunk, uint32_t warp, uint32_t lane)
{
    const uint32_t key = warp % 4 * 8 + lane / 4;
    const bool live = chunk + key < it.group.first_position;
    const uint8_t *from = page_of(a, it, sh, chunk) + a.k_offset + (key * 512 + warp / 4 * 256 + lane % 4 * 8) * kv_bytes<F8>;

#pragma unroll
    for (int i = 0; i < 8; i++) load_live(f.k[i], from + i * 32 * kv_bytes<F8>, live);
}

template <bool F8>
__device__ __forceinline__ void full_load_v(fragments<512, F8> &f, const attn_args &a, const item &it, const attn_shared<512> &sh, uint32_t chunk, uint32_t warp, uint32_t lane)
{
    constexpr int WORDS = fragments<512, F8>::WORDS;
    const uint32_t first = lane % 4 * 4;
    const uint8_t *from = page_of(a, it, sh, chunk) + a.v_offset + first * (512 * kv_bytes<F8>) + warp * attn_shape<512>::PV_DIMS * kv_bytes<F8> + lane / 4 * (4 * WORDS);

#pragma unroll
    for (int i = 0; i < 8; i++) {
        const uint32_t place = i / 4 * 16 + i % 4;

        load_live(*(typename kv_eight<F8>::words *)(f.v + i * WORDS), from + place * 512 * kv_bytes<F8>, chunk + first + place < it.group.first_position);
    }
}

/* A chunk into the L2: by one thread of the blocks of a span. */
template <bool F8>
__device__ __forceinline__ void full_prefetch(const attn_args &a, const item &it, const attn_shared<512> &sh, uint32_t chunk)
{
    if (chunk >= it.span.end || chunk >= it.group.first_position) return;
    const uint8_t *page = page_of(a, it, sh, chunk);

    bulk_prefetch(page + a.k_offset, FULL_UNIT * 512 * kv_bytes<F8>);
    bulk_prefetch(page + a.v_offset, FULL_UNIT * 512 * kv_bytes<F8>);
}

/* bf16: K of a chunk into shared memory behind the rotations; rows 64 bytes apart modulo the banks: 16-byte loads of a quarter warp never collide. */
#define FULL_K_BYTES (2 * 512 + 64)

__device__ __forceinline__ uint8_t *shared_k(const attn_args &a, attn_shared<512> &sh) { return (uint8_t *)(rotation<512>(sh, a.fresh_rows) + a.fresh_rows * a.turned); }

/* Keys that no earlier step has written stay what lies there: nobody looks at their scores. */
__device__ __forceinline__ void copy_k(const attn_args &a, const item &it, attn_shared<512> &sh, uint32_t chunk)
{
    if (chunk >= it.group.first_position) return;              /* has no page number here */
    const uint8_t *from = page_of(a, it, sh, chunk) + a.k_offset + threadIdx.x * 16;
    const uint32_t to = smem_address(shared_k(a, sh)) + threadIdx.x / 64 * FULL_K_BYTES + threadIdx.x % 64 * 16;

#pragma unroll
    for (uint32_t i = 0; i < FULL_UNIT / 4; i++) copy_async(to + i * 4 * FULL_K_BYTES, from + i * 4 * 1024, chunk + threadIdx.x / 64 + i * 4 < it.group.first_position ? 16 : 0);
    copies_commit();
}

/* A lane's part of K for scores; new keys from where they were made. */
__device__ __forceinline__ void take_k(fragments<512, false> &f, const attn_args &a, const item &it, uint32_t chunk, attn_shared<512> &sh, uint32_t warp, uint32_t lane)
{
    const uint32_t key = warp % 4 * 8 + lane / 4, made = chunk + key - it.group.first_position;
    const uint8_t *from = (made < it.row_end ? (const uint8_t *)sh.fresh[2 * made] : shared_k(a, sh) + key * FULL_K_BYTES) + (warp / 4 * 256 + lane % 4 * 8) * 2;

#pragma unroll
    for (int i = 0; i < 8; i++) f.k[i] = *(const uint4 *)(from + i * 64);
}

/* What can be asked for before the query is there. */
template <bool F8>
__device__ __forceinline__ void full_begin_keys(fragments<512, F8> &f, const attn_args &a, const item &it, attn_shared<512> &sh, uint32_t warp, uint32_t lane)
{
    const uint32_t first = it.span.first;

    if constexpr (F8) full_load_k<F8>(f, a, it, sh, first, warp, lane);
    else copy_k(a, it, sh, first);
    full_load_v<F8>(f, a, it, sh, first, warp, lane);
    if (threadIdx.x == 0) full_prefetch<F8>(a, it, sh, first + FULL_UNIT), full_prefetch<F8>(a, it, sh, first + 2 * FULL_UNIT);
}

/* The first chunk's K and V asked for. The next chunk's are asked for as soon as this one's have been used. */
template <bool F8>
__device__ __forceinline__ void full_work(const attn_args &a, const item &it, fragments<512, F8> &f, attn_shared<512> &sh, uint32_t warp, uint32_t lane)
{
    const uint32_t p0 = it.group.first_position, row = it.row_first, end = min(it.span.end, p0 + it.row_end);
    float out[attn_shape<512>::PV_TILES][4] = {}, top[2] = { NEVER, NEVER }, sum[2] = { 0.0f, 0.0f };

#pragma unroll 1
    for (uint32_t chunk = it.span.first;; chunk += FULL_UNIT) {
        const bool fresh = chunk + FULL_UNIT > p0, more = chunk + FULL_UNIT < end;
        float s[4] = {};
        float2 w[2];

        if (threadIdx.x == 0) full_prefetch<F8>(a, it, sh, chunk + 3 * FULL_UNIT);
        if constexpr (!F8) take_k(f, a, it, chunk, sh, warp, lane);
        else if (fresh) patch_k<512, F8>(f, it, chunk, sh, warp, lane);
        scores<512, F8>(s, f, sh, warp, lane);
        add_halves<512>(s, sh, warp, lane);
        if constexpr (F8) {
            if (more) full_load_k<F8>(f, a, it, sh, chunk + FULL_UNIT, warp, lane);
        } else {
            if (more) copy_k(a, it, sh, chunk + FULL_UNIT);
        }
        join_softmax<F8>(s, top, sum, w, it, chunk, row, sh, warp, lane);
        if (fresh) patch_v<512, F8>(f, it, chunk, sh, warp, lane);
        join_values<F8>(out, f, w, sh, lane);
        if (!more) break;
        full_load_v<F8>(f, a, it, sh, chunk + FULL_UNIT, warp, lane);
        if (!F8) copies_wait<0>();
        if (!F8) __syncthreads();
    }
    store_partial<512>(a, it, row, out, top, sum, warp, lane);
}

/* ---- the sum of a row's results ---- */

#define FULL_SUM_WARPS 12u            /* a warp joins a group: as many as 1,152 keys have */
#define FULL_SUM_THREADS (FULL_SUM_WARPS * 32)

/* COLUMNS of a row and head at once. A lane has four, and four of each 128 behind. */
template <uint32_t COLUMNS> struct full_sum_shared {
    float4 group[FULL_SUM_WARPS][COLUMNS / 4];
    float2 weight[FULL_SUM_WARPS];    /* a group's part of the whole, and that times its sum */
};

/* Of group g of a row's results the first, and how many there are. */
__device__ __forceinline__ span group_slots(uint32_t g, uint32_t slots, bool fine)
{
    uint32_t first = g, end = g + 1;

    if (fine && g < FULL_GROUPS) first = g * FULL_GROUP, end = first + FULL_GROUP;
    else if (fine) first = g + (cut<FULL_UNIT>::A - FULL_GROUPS), end = first + 1;
    return span{ first, min(end, slots) };
}

/* Columns column .. column + COLUMNS - 1 of a row and head. */
template <uint32_t COLUMNS>
__device__ __forceinline__ void sum_columns(const attn_args &a, uint32_t head, uint32_t column, uint32_t slots, bool fine, float power, full_sum_shared<COLUMNS> &sh)
{
    constexpr uint32_t VECTORS = COLUMNS / 128;
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const float2 *ml = a.part_ml + head * a.spans_max;
    const float *part = a.part + (uint64_t)(head * a.spans_max) * 512 + column + lane * 4;
    float2 out = make_float2(0.0f, 0.0f);
    float sum = 0.0f, whole = NEVER;  /* the largest score of all */

#pragma unroll 1
    for (uint32_t first = 0; group_slots(first, slots, fine).first < slots; first += FULL_SUM_WARPS) {
        const span mine = group_slots(first + warp, slots, fine);
        float4 x[FULL_GROUP][VECTORS], joined[VECTORS] = {};
        float2 own[FULL_GROUP], group = make_float2(NEVER, 0.0f);

#pragma unroll
        for (uint32_t i = 0; i < FULL_GROUP; i++) {
            const bool live = mine.first + i < mine.end;

#pragma unroll
            for (uint32_t j = 0; j < VECTORS; j++) x[i][j] = live ? __ldcg((const float4 *)(part + (uint64_t)(mine.first + i) * 512) + j * 32) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            own[i] = live ? __ldcg(ml + mine.first + i) : make_float2(NEVER, 0.0f);
        }
        if (first == 0) {             /* behind the loads above */
#pragma unroll 2
            for (uint32_t s = lane; s < slots; s += 32) whole = fmaxf(whole, __ldcg(&ml[s].x));
#pragma unroll
            for (int d = 16; d; d >>= 1) whole = fmaxf(whole, __shfl_xor_sync(0xffffffffu, whole, d));
        }
#pragma unroll
        for (uint32_t i = 0; i < FULL_GROUP; i++) {
            const float2 w = join_weights(group.x, own[i].x);

            group.y = join(w, group.y, own[i].y);
#pragma unroll
            for (uint32_t j = 0; j < VECTORS; j++)
                joined[j] = make_float4(join(w, joined[j].x, x[i][j].x), join(w, joined[j].y, x[i][j].y), join(w, joined[j].z, x[i][j].z), join(w, joined[j].w, x[i][j].w));
        }
        const float weight = full_weight(group.x, whole);

#pragma unroll
        for (uint32_t j = 0; j < VECTORS; j++) sh.group[warp][j * 32 + lane] = joined[j];
        if (lane == 0) sh.weight[warp] = make_float2(weight, __fmul_rn(weight, group.y));
        __syncthreads();
#pragma unroll 4
        for (uint32_t g = 0; g < FULL_SUM_WARPS && threadIdx.x < COLUMNS / 2; g++) {
            const float2 w = sh.weight[g], y = ((const float2 *)sh.group[g])[threadIdx.x];      /* groups that there are not have the weight 0 */

            sum = __fadd_rn(sum, w.y), out.x = __fmaf_rn(w.x, y.x, out.x), out.y = __fmaf_rn(w.x, y.y, out.y);
        }
        __syncthreads();
    }
    if (threadIdx.x >= COLUMNS / 2) return;
    const float inv = 1.0f / sum * power;

    *(uint32_t *)(a.out + place_of(a.out_places, ATTN_HEADS * 512, head / ATTN_HEADS, head % ATTN_HEADS * 512 + partial_dim<512>(column + threadIdx.x * 2))) = pack_ruled(out.x * inv, out.y * inv, a.out_power != NULL, a.out_inverse);
}

/* Row and head blockIdx.x / a.sum_parts, behind the wait. Small, for its code comes out of the L2 each time: every warp joins a group in its registers, then the groups are added in
 * ascending order. */
template <uint32_t COLUMNS> __device__ __forceinline__ void full_sum(const attn_args &a, uint32_t slots, bool fine, float power)
{
    __shared__ full_sum_shared<COLUMNS> sh;

#pragma unroll 1
    for (uint32_t part = blockIdx.x % a.sum_parts; part < 512 / COLUMNS; part += a.sum_parts) sum_columns(a, blockIdx.x / a.sum_parts, part * COLUMNS, slots, fine, power, sh);
}

#endif
