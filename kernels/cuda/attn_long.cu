/* kernels/cuda/attn_long.cu - see attn_long.h; the work of one block in attn_block.cuh. */
#include "attn_long.h"
#include "attn_block.cuh"
#include "attn_combine.cuh"
#include "launch.h"
#include "shm/error.h"

#define D 256
#define SPAN_UNIT 64u
#define CHUNK 64                      /* keys that a block holds in registers: attn_shape<D>::KEYS */
#define BLOCKS_PER_SM 2
#define COMBINE_BATCH 16              /* spans whose loads are in flight together */

static_assert(attn_shape<D>::KEYS == CHUNK, "a span is whole chunks");

uint32_t attn_long_spans(uint32_t tokens) { return cut_spans<SPAN_UNIT>(tokens); }

/* Item `index`: heads vary fastest, then spans, the newest first: their blocks wait for qkv. False past the last. */
__device__ __forceinline__ bool find_item(item &it, const attn_args &a, uint32_t index)
{
    const uint32_t groups = a.state->groups;

    for (uint32_t g = 0; g < groups; g++) {
        it.group = a.state->group[g];
        const uint32_t spans = cut_spans<SPAN_UNIT>(group_tokens(it.group)), items = spans * a.kv_heads;

        if (index < items) {
            it.head = index % a.kv_heads;
            it.slot = spans - 1 - index / a.kv_heads;
            it.span = cut_span<SPAN_UNIT>(it.slot);
            it.row_first = 0, it.row_end = it.group.rows;
            return true;
        }
        index -= items;
    }
    return false;
}

/* ---- the kernels ---- */

/* All chunks of the span that a row may see, the first of them in the registers. */
template <bool F8>
__device__ __forceinline__ void work(const attn_args &a, const item &it, fragments<D, F8> &f, attn_shared<D> &sh, uint32_t warp, uint32_t lane)
{
    const uint32_t p0 = it.group.first_position, end = p0 + it.group.rows;
    const int all[2] = { 0, 0 };
    float out[attn_shape<D>::PV_TILES][4] = {}, top[2] = { NEVER, NEVER }, sum[2] = { 0.0f, 0.0f }, factor[2];

    for (uint32_t chunk = it.span.first; chunk < it.span.end && chunk < end; chunk += CHUNK) {
        float s[4] = {};

        if (chunk != it.span.first) load_k<D, F8, false>(f, a, it, chunk, 0, p0, warp, lane), load_v<D, F8, false>(f, a, it, chunk, 0, p0, warp, lane);
        if (chunk + CHUNK > p0) patch_k<D, F8>(f, it, chunk, sh, warp, lane), patch_v<D, F8>(f, it, chunk, sh, warp, lane);
        scores<D, F8>(s, f, sh, warp, lane);
        softmax_chunk<D, F8, false>(s, top, sum, factor, it, chunk, 0, sh, warp, lane);
        if (chunk != it.span.first) {
#pragma unroll
            for (int j = 0; j < attn_shape<D>::PV_TILES; j++) out[j][0] *= factor[0], out[j][1] *= factor[0], out[j][2] *= factor[1], out[j][3] *= factor[1];
        }
        accumulate<D, F8, PLACES_ALL>(out, f, all, sh, lane);
    }
    store_partial<D>(a, it, 0, out, top, sum, warp, lane);
}

template <bool F8>
__global__ void __maxnreg__(112) attn_long_kernel(const __grid_constant__ attn_args a)
{
    extern __shared__ __align__(16) uint8_t shared_bytes[];
    attn_shared<D> &sh = *(attn_shared<D> *)shared_bytes;
    const uint32_t warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    bool waited = false;
    item it;

    chain_trigger();
    if (threadIdx.x == 0) trace_mark(a.trace, TRACE_START);
    for (uint32_t index = blockIdx.x; find_item(it, a, index); index += gridDim.x) {
        const uint32_t p0 = it.group.first_position;
        const bool fresh = it.span.end > p0;       /* holds positions of this step */
        fragments<D, F8> f;

        load_constants<D>(a, it, sh);
        clear_dead_rows<D>(it, sh);
        __syncthreads();
        load_k<D, F8, false>(f, a, it, it.span.first, 0, p0, warp, lane);
        load_v<D, F8, false>(f, a, it, it.span.first, 0, p0, warp, lane);
        const uint32_t page = fresh ? fresh_page(a, it, warp) : 0;

        if (!waited) chain_wait();
        if (!waited && threadIdx.x == 0) trace_mark(a.trace, TRACE_PAST_WAIT);
        waited = true;
        prepare<D, F8>(a, it, 0, fresh, sh, warp, lane);
        __syncthreads();
        if (fresh) store_fresh<D, F8>(a, it, page, sh, warp, lane);
        work<F8>(a, it, f, sh, warp, lane);
        __syncthreads();              /* q and p are written again */
    }
    if (!waited) chain_wait();
    else if (threadIdx.x == 0) trace_mark(a.trace, TRACE_END);
}

/* One block per (row, head): the spans in ascending order. */
__global__ void __launch_bounds__(D / 2) long_combine_kernel(const __grid_constant__ attn_args a) { combine_spans<D, SPAN_UNIT, COMBINE_BATCH>(a); }

int attn_long_init(void)
{
    int rc = launch_prepare((const void *)attn_long_kernel<false>, attn_shared_bytes<D>(STEP_GROUP_ROWS_MAX, D / 2));

    if (rc == 0) rc = launch_prepare((const void *)attn_long_kernel<true>, attn_shared_bytes<D>(STEP_GROUP_ROWS_MAX, D / 2));
    return rc ? rc : rule_prepare((const void *)long_combine_kernel);
}

int attn_long_launch(const struct attn_args *args, uint32_t rows, uint32_t sm_count, void *stream)
{
    attn_args a = *args;
    void *params[] = { &a };

    if (a.kv_heads != 8 || a.window || !a.has_v) return -E_UNSUPPORTED;
    if (rows == 0 || rows > STEP_ROWS_MAX || a.turned > D / 2 || a.turned % 4) return -E_RANGE;
    a.out_places = places_known(a.out_places, ATTN_HEADS * D);
    a.fresh_rows = rows < STEP_GROUP_ROWS_MAX ? rows : STEP_GROUP_ROWS_MAX;
    const void *kernel = a.kv_fp8 ? (const void *)attn_long_kernel<true> : (const void *)attn_long_kernel<false>;
    const int rc = launch_chained(kernel, BLOCKS_PER_SM * sm_count, ATTN_WARPS * 32, attn_shared_bytes<D>(rows, a.turned), params, stream);

    return rc ? rc : rule_launch((const void *)long_combine_kernel, &a, rows, D / 2, stream);
}
