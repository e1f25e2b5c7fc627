/* kernels/cuda/attn.cu - decode attention over pages (contract in attn.h; the work of one block in attn_block.cuh).
 *
 * Little shared memory (that of K of one chunk in full layers of bf16), so that a block fits beside a rowmm block whose ring takes nearly all of it. Keys of earlier steps are
 * loaded before the qkv product has ended. Partial results go through the L2 to a second kernel: joined in clusters of 16 blocks (one head's chunks)
 * they would save a microsecond a layer, but not every H200 holds 8 such clusters at once (one that holds 7: +0.3 ms). */
#include "attn_block.cuh"
#include "attn_full.cuh"
#include "attn_rule.cuh"
#include "launch.h"
#include "shm/error.h"

#define CHUNKS ATTN_SLIDING_CHUNKS

uint32_t attn_full_spans(uint32_t tokens) { return cut_spans<FULL_UNIT>(tokens); }

/* Item `index` of a sliding layer: chunks vary fastest, then heads, so that 16 successive items are a cluster. False past the last. */
__device__ __forceinline__ bool find_sliding(item &it, const attn_args &a, uint32_t index)
{
    const uint32_t chunk = index % CHUNKS, g = index / (CHUNKS * a.kv_heads);

    if (g >= a.state->groups) return false;
    it.group = a.state->group[g];
    const uint32_t newest = (group_tokens(it.group) - 1) / ATTN_SLIDING_SPAN;

    it.head = index / CHUNKS % a.kv_heads;
    it.slot = chunk;
    it.span.first = (newest < chunk ? chunk : newest - (newest - chunk) % CHUNKS) * ATTN_SLIDING_SPAN;
    it.span.end = it.span.first + ATTN_SLIDING_SPAN;
    it.row_first = 0, it.row_end = it.group.rows;
    return true;
}

/* ---- full layers: a unit is one row of one span, a block gets a run of units ---- */

#define FULL_LENGTHS 4                /* of spans */
#define FULL_ROW_COST 2               /* a unit beside its chunks, in chunks: its query is prepared, its result stored */

/* Units: of chunks or of spans, as full_is_fine says; those not yet worked on are [at, end). apart: a block has one at most, and their order is of no account. */
struct full_walk { uint32_t at, end; bool fine, apart; };

/* Spans of one length: up to this one of all. */
__device__ __forceinline__ uint32_t slots_end(uint32_t length, bool fine)
{
    using C = cut<FULL_UNIT>;

    return length == FULL_LENGTHS - 1 ? UINT32_MAX : (length == 0 ? C::A : length == 1 ? C::B : C::C) - (fine ? 0 : C::A - FULL_GROUPS);
}

__device__ __forceinline__ uint32_t unit_cost(uint32_t length, bool fine) { return (length == 0 ? fine ? 1 : FULL_GROUP : length == 1 ? 4 : length == 2 ? 16 : 32) + FULL_ROW_COST; }

/* A group's spans of one length: [first, end). */
__device__ __forceinline__ span slots_of(const step_group &g, uint32_t length, bool fine)
{
    const uint32_t first = length ? slots_end(length - 1, fine) : 0, end = min(full_slots(group_tokens(g), fine), slots_end(length, fine));

    return span{ first, max(first, end) };
}

/* The first unit that begins at `cost` or behind; *total: the cost of all units. */
__device__ __forceinline__ uint32_t unit_at(const attn_args &a, uint32_t cost, bool fine, uint32_t *total)
{
    uint32_t units = 0, found = UINT32_MAX, before = 0;

#pragma unroll 1
    for (uint32_t length = 0; length < FULL_LENGTHS; length++)
#pragma unroll 1
        for (uint32_t g = 0; g < a.state->groups; g++) {
            const step_group group = a.state->group[g];
            const span s = slots_of(group, length, fine);
            const uint32_t n = (s.end - s.first) * group.rows, each = unit_cost(length, fine);

            if (found == UINT32_MAX && cost < before + n * each) found = units + (max(cost, before) - before + each - 1) / each;
            units += n, before += n * each;
        }
    *total = before;
    return min(found, units);
}

/* One unit each, when that is enough, else runs of equal cost. */
__device__ __forceinline__ full_walk full_begin(const attn_args &a)
{
    const bool fine = full_is_fine(a);
    uint32_t units = 0, total, ignored;

#pragma unroll 1
    for (uint32_t g = 0; g < a.state->groups; g++) units += full_slots(group_tokens(a.state->group[g]), fine) * a.state->group[g].rows;
    if (units <= gridDim.x) return full_walk{ blockIdx.x, min(blockIdx.x + 1, units), fine, true };
    unit_at(a, UINT32_MAX, fine, &total);
    return full_walk{ unit_at(a, (uint32_t)((uint64_t)total * blockIdx.x / gridDim.x), fine, &ignored), unit_at(a, (uint32_t)((uint64_t)total * (blockIdx.x + 1) / gridDim.x), fine, &ignored), fine, false };
}

/* The walk's next item. False past the last. */
__device__ __forceinline__ bool find_full(item &it, const attn_args &a, full_walk &w)
{
    uint32_t unit = w.at;

    if (w.at >= w.end) return false;
    w.at++;
#pragma unroll 1
    for (uint32_t length = 0; length < FULL_LENGTHS; length++)
#pragma unroll 1
        for (uint32_t g = 0; g < a.state->groups; g++) {
            it.group = a.state->group[g];
            const span s = w.apart ? span{ 0, full_slots(group_tokens(it.group), w.fine) } : slots_of(it.group, length, w.fine);
            const uint32_t n = (s.end - s.first) * it.group.rows;

            if (unit >= n) {
                unit -= n;
                continue;
            }
            it.head = 0;
            it.slot = s.first + unit / it.group.rows;
            it.span = full_span(it.slot, w.fine);
            it.row_first = unit % it.group.rows;
            it.row_end = it.row_first + 1;
            return true;
        }
    return false;
}

/* ---- the items ---- */

/* Rows before a new position see, at its place, the key of 1024 before: scores and p v are computed with both. */
template <bool F8>
__device__ __forceinline__ void work_sliding(const attn_args &a, const item &it, bool fresh, fragments<256, F8> &f, float (&out)[4][4], float (&top)[2],
                                             float (&sum)[2], attn_shared<256> &sh, uint32_t warp, uint32_t lane)
{
    float older[4] = {}, s[4] = {}, factor[2];
    int newest[2];

#pragma unroll
    for (int h = 0; h < 2; h++) newest[h] = (int)(it.group.first_position + m_row<256>(lane / 4 + 8 * h, 0)) - (int)it.span.first;
    if (fresh && it.group.rows > 1) scores<256, F8>(older, f, sh, warp, lane);
    if (fresh) patch_k<256, F8>(f, it, it.span.first, sh, warp, lane);
    scores<256, F8>(s, f, sh, warp, lane);
    if (fresh && it.group.rows > 1) {
#pragma unroll
        for (int i = 0; i < 4; i++) s[i] = (int)(warp * 8 + lane % 4 * 2 + i % 2) <= newest[i / 2] ? s[i] : older[i];
    }
    softmax_chunk<256, F8>(s, top, sum, factor, it, it.span.first, 0, sh, warp, lane);
    if (!fresh) newest[0] = newest[1] = attn_shape<256>::KEYS;             /* every place counts; the same code, for a step should fit into the instruction cache */
    if (fresh && it.span.first >= ATTN_WINDOW) accumulate<256, F8, PLACES_OLDER>(out, f, newest, sh, lane);
    if (fresh) patch_v<256, F8>(f, it, it.span.first, sh, warp, lane);
    accumulate<256, F8, PLACES_NEWER>(out, f, newest, sh, lane);
}

/* The thread's number, read anew: what follows from it is computed in each item. Kept across items instead, it cost 76 bytes more of spilled registers in full layers, 20 in sliding ones. */
__device__ __forceinline__ uint32_t thread_again()
{
    uint32_t x;

    asm volatile("mov.u32 %0, %tid.x;" : "=r"(x));
    return x;
}

template <int D, bool F8>
__global__ void __maxnreg__(112) attn_kernel(const __grid_constant__ attn_args a)
{
    extern __shared__ __align__(16) uint8_t shared_bytes[];
    attn_shared<D> &sh = *(attn_shared<D> *)shared_bytes;
    bool waited = false;
    item it;

    chain_trigger();
    if (threadIdx.x == 0) trace_mark(a.trace, TRACE_START);
    full_walk walk = D == 512 ? full_begin(a) : full_walk{ 0, 0, false, false };

    for (uint32_t index = blockIdx.x; D == 256 ? find_sliding(it, a, index) : find_full(it, a, walk); index += gridDim.x) {
        const uint32_t warp = __shfl_sync(0xffffffffu, thread_again() / 32, 0), lane = thread_again() % 32;
        const uint32_t p0 = it.group.first_position;
        const uint32_t first = a.window && p0 + 1 > a.window ? p0 + 1 - a.window : 0;
        const bool fresh = it.span.end > p0;       /* holds positions of this step */
        fragments<D, F8> f;

        load_constants<D>(a, it, sh);
        clear_dead_rows<D>(it, sh);
        if constexpr (D == 512) load_pages(a, it, sh);
        __syncthreads();
        if constexpr (D == 512) {
            full_begin_keys<F8>(f, a, it, sh, warp, lane);
        } else {
            load_k<D, F8>(f, a, it, it.span.first, first, p0, warp, lane);
            load_v<D, F8>(f, a, it, it.span.first, first, p0, warp, lane);
        }
        const uint32_t page = fresh ? fresh_page(a, it, warp) : 0;

        if (!waited && !a.qkv_poll) chain_wait();
        waited = true;
        prepare<D, F8>(a, it, it.row_first, fresh, sh, warp, lane);
        if (threadIdx.x == 0) trace_mark(a.trace, TRACE_PAST_WAIT);
        if (D == 512 && !F8) copies_wait<0>();
        __syncthreads();
        if constexpr (D == 256) {
            float out[4][4] = {}, top[2] = { NEVER, NEVER }, sum[2] = { 0.0f, 0.0f };

            work_sliding<F8>(a, it, fresh, f, out, top, sum, sh, warp, lane);
            store_partial<256>(a, it, 0, out, top, sum, warp, lane);
            if (fresh) store_fresh<D, F8>(a, it, page, sh, warp, lane);   /* last: these blocks are what everybody waits for */
        } else {
            full_work<F8>(a, it, f, sh, warp, lane);
            if (fresh) store_fresh<D, F8>(a, it, page, sh, warp, lane);
        }
        __syncthreads();              /* q and p are written again */
    }
    if (waited && threadIdx.x == 0) trace_mark(a.trace, TRACE_END);
    if (!waited || a.qkv_poll) chain_wait();   /* rule 3 of tags.cuh */
}

#define SUM_COLUMNS 128u              /* that a block of the sum adds at once; 32 registers: two blocks of 12 warps beside one of the o product */

/* Blocks of each row's head. o fetches its weights from when all of them have begun: with 4 to 8 rows as many as two an SM may do so beside attention (0.021 ms of 8 rows), one alone is too slow. */
static uint32_t sum_parts(uint32_t rows) { return rows > 2 && rows <= 8 ? 2 : 512 / SUM_COLUMNS; }

/* Full layers: the results of a row and head, in ascending order. */
__global__ void __maxnreg__(32) full_sum_kernel(const __grid_constant__ attn_args a)
{
    const uint32_t row = blockIdx.x / (ATTN_HEADS * a.sum_parts);

    chain_trigger();
    if (threadIdx.x == 0) trace_mark(a.trace ? a.trace + TRACE_WORDS : NULL, TRACE_START);
    const bool live = row < a.state->rows, fine = full_is_fine(a);
    const uint32_t slots = live ? full_slots(group_tokens(a.state->group[a.state->row[row].group]), fine) : 0;
    const float power = power_or_one(a.out_power);

    chain_wait();
    if (!live) return;
    if (threadIdx.x == 0) trace_mark(a.trace ? a.trace + TRACE_WORDS : NULL, TRACE_PAST_WAIT);
    full_sum<SUM_COLUMNS>(a, slots, fine, power);
    if (threadIdx.x == 0) trace_mark(a.trace ? a.trace + TRACE_WORDS : NULL, TRACE_END);
}

/* A row's partial results, two columns a thread, and lane % 16's (max, sum). Behind the wait, or when all of them are there: few requests until most are, for 16 blocks a row ask. */
__device__ __forceinline__ void join_load(const attn_args &a, float2 (&x)[CHUNKS], float2 &own, uint32_t lane)
{
    const float2 *part = (const float2 *)(a.part + (uint64_t)blockIdx.x * a.spans_max * 256) + threadIdx.x, *ml = a.part_ml + (uint64_t)blockIdx.x * a.spans_max + lane % CHUNKS;
    bool poll = a.part_poll;

    if (!poll) chain_wait();
    for (uint32_t polls = 0; poll && polls < TAG_POLLS_MAX; polls++)
        if (__popc(__ballot_sync(0xffffffffu, tag_wrong(0, ld_tagged(ml), a.part_tag) & 1)) <= 8) break;
#pragma unroll 1
    for (uint32_t polls = 0;; polls++) {
#pragma unroll
        for (uint32_t s = 0; s < CHUNKS; s++) x[s] = ld_tagged(part + (uint64_t)s * 128);
        own = ld_tagged(ml);
        if (!poll) return;
        uint32_t wrong = tag_wrong(0, own, a.part_tag);

#pragma unroll
        for (uint32_t s = 0; s < CHUNKS; s++) wrong = tag_wrong(wrong, x[s], a.part_tag);
        if (!__any_sync(0xffffffffu, wrong & 1)) return;
        if (polls == TAG_POLLS_MAX) chain_wait(), poll = false;
    }
}

/* Sliding layers, one block per (row, head): the 16 chunks in a fixed tree. */
__global__ void __launch_bounds__(128) join_kernel(const __grid_constant__ attn_args a)
{
    const uint32_t row = blockIdx.x / ATTN_HEADS, lane = threadIdx.x % 32;
    float2 x[CHUNKS], own;
    __shared__ rule_shared rule;

    chain_trigger();
    if (threadIdx.x == 0) trace_mark(a.trace ? a.trace + TRACE_WORDS : NULL, TRACE_START);
    const float power = power_or_one(a.out_power);
    const bool live = row < a.state->rows;      /* behind the wait it would cost a round trip of its own */

    if (!live) {
        chain_wait();
        return;
    }
    rule_begin(a, rule);
    join_load(a, x, own, lane);
    if (threadIdx.x == 0) trace_mark(a.trace ? a.trace + TRACE_WORDS : NULL, TRACE_PAST_WAIT);
    float top = own.x;

#pragma unroll
    for (int d = CHUNKS / 2; d; d >>= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, d));
    const float weight = IS_NEVER(own.x) ? 0.0f : __expf(own.x - top);
    float mass = __fmul_rn(weight, own.y);

#pragma unroll
    for (int d = CHUNKS / 2; d; d >>= 1) mass += __shfl_xor_sync(0xffffffffu, mass, d);
    const float inv = 1.0f / mass * power;

#pragma unroll
    for (uint32_t s = 0; s < CHUNKS; s++) {
        const float w = __shfl_sync(0xffffffffu, weight, s);

        x[s].x = __fmul_rn(w, x[s].x), x[s].y = __fmul_rn(w, x[s].y);
    }
#pragma unroll
    for (int step = 1; step < CHUNKS; step *= 2)
#pragma unroll
        for (int s = 0; s < CHUNKS / 2; s++)
            if (s < CHUNKS / 2 / step) x[s].x += x[s + CHUNKS / 2 / step].x, x[s].y += x[s + CHUNKS / 2 / step].y;
    *(uint32_t *)(a.out + place_of(a.out_places, ATTN_HEADS * 256, row, blockIdx.x % ATTN_HEADS * 256 + partial_dim<256>(threadIdx.x * 2))) = rule_pair(a, rule, x[0].x * inv, x[0].y * inv);
    if (threadIdx.x == 0) trace_mark(a.trace ? a.trace + TRACE_WORDS : NULL, TRACE_END);
    if (a.part_poll) chain_wait();    /* rule 3 of tags.cuh */
}

int attn_init(void)
{
    const uint32_t sliding = attn_shared_bytes<256>(STEP_GROUP_ROWS_MAX, 128), full = attn_shared_bytes<512>(STEP_GROUP_ROWS_MAX, 256) + FULL_UNIT * FULL_K_BYTES;
    int rc = launch_prepare((const void *)attn_kernel<256, false>, sliding);

    if (rc == 0) rc = launch_prepare((const void *)attn_kernel<256, true>, sliding);
    if (rc == 0) rc = launch_prepare((const void *)attn_kernel<512, false>, full);
    if (rc == 0) rc = launch_prepare((const void *)attn_kernel<512, true>, full);
    if (rc == 0) rc = rule_prepare((const void *)join_kernel);
    return rc ? rc : launch_prepare((const void *)full_sum_kernel, 0);
}

static int launch_sliding(attn_args *a, uint32_t rows, void *stream)
{
    const uint32_t bytes = attn_shared_bytes<256>(rows, a->turned), items = rows * a->kv_heads * CHUNKS, most = rows == 1 ? 128 : 256;
    const uint32_t blocks = items < most ? items : most;
    void *params[] = { a };
    const int rc = launch_chained(a->kv_fp8 ? (const void *)attn_kernel<256, true> : (const void *)attn_kernel<256, false>, blocks, ATTN_WARPS * 32, bytes, params, stream);

    return rc ? rc : rule_launch((const void *)join_kernel, a, rows, 128, stream);
}

static int launch_full(attn_args *a, uint32_t rows, uint32_t sm_count, void *stream)
{
    void *params[] = { a };

    a->blocks = sm_count;
    a->sum_parts = sum_parts(rows);
    const int rc = launch_chained(a->kv_fp8 ? (const void *)attn_kernel<512, true> : (const void *)attn_kernel<512, false>, sm_count, ATTN_WARPS * 32, attn_shared_bytes<512>(rows, a->turned) + (a->kv_fp8 ? 0 : FULL_UNIT * FULL_K_BYTES), params, stream);

    return rc ? rc : launch_chained((const void *)full_sum_kernel, rows * ATTN_HEADS * a->sum_parts, FULL_SUM_THREADS, 0, params, stream);
}

int attn_launch(const struct attn_args *args, uint32_t head_dim, uint32_t rows, uint32_t sm_count, void *stream)
{
    attn_args a = *args;

    if (head_dim != 256 && head_dim != 512) return -E_UNSUPPORTED;
    if (head_dim == 256 ? a.kv_heads != 8 || a.window != ATTN_WINDOW : a.kv_heads != 1 || a.window) return -E_UNSUPPORTED;
    if (rows == 0 || rows > STEP_ROWS_MAX || a.turned > head_dim / 2 || a.turned % 4) return -E_RANGE;
    a.out_places = places_known(a.out_places, ATTN_HEADS * head_dim);
    a.fresh_rows = rows < STEP_GROUP_ROWS_MAX ? rows : STEP_GROUP_ROWS_MAX;
    return head_dim == 256 ? launch_sliding(&a, rows, stream) : launch_full(&a, rows, sm_count, stream);
}
