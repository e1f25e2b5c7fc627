/* kernels/cuda/attn.cu - decode attention over pages (contract in attn.h; the work of one block in attn_block.cuh).
 *
 * No shared memory for keys, so that a block fits beside a rowmm block whose ring takes nearly all of it. Keys of earlier steps are
 * loaded before the qkv product has ended. Partial results go through the L2 to a second kernel: joined in clusters of 16 blocks (one head's chunks)
 * they would save a microsecond a layer, but not every H200 holds 8 such clusters at once (one that holds 7: +0.3 ms). */
#include "attn_items.cuh"
#include "launch.h"
#include "shm/error.h"

uint32_t attn_full_spans(uint32_t tokens) { return full_spans(tokens); }

template <int D>
__global__ void __maxnreg__(112) attn_kernel(const __grid_constant__ attn_args a)
{
    extern __shared__ __align__(16) uint8_t shared_bytes[];
    attn_shared<D> &sh = *(attn_shared<D> *)shared_bytes;
    const uint32_t warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    bool waited = false;
    item it;

    chain_trigger();
    if (threadIdx.x == 0) trace_mark(a.trace, TRACE_START);
    const uint32_t rows_per_item = D == 512 ? full_rows_per_item(a) : 0;

    for (uint32_t index = blockIdx.x; D == 256 ? find_sliding(it, a, index) : find_full(it, a, rows_per_item, index); index += gridDim.x) {
        const uint32_t p0 = it.group.first_position;
        const uint32_t first = a.window && p0 + 1 > a.window ? p0 + 1 - a.window : 0;
        const bool fresh = it.span.end > p0;       /* holds positions of this step */
        uint4 k[8];
        uint32_t v[32];

        load_constants<D>(a, it, sh);
        clear_dead_rows<D>(it, sh);
        __syncthreads();
        load_k<D>(k, a, it, it.span.first, first, p0, warp, lane);
        load_v<D>(v, a, it, it.span.first, first, p0, warp, lane);
        const uint32_t page = fresh ? fresh_page(a, it, warp) : 0;

        if (!waited) chain_wait();
        if (!waited && threadIdx.x == 0) trace_mark(a.trace, TRACE_PAST_WAIT);
        waited = true;
        prepare<D>(a, it, it.row_first, fresh, sh, warp, lane);
        __syncthreads();
        if (fresh) store_fresh<D>(a, it, page, sh, warp, lane);
        if constexpr (D == 256) {
            float out[4][4] = {}, top[2] = { NEVER, NEVER }, sum[2] = { 0.0f, 0.0f };

            work_sliding(a, it, fresh, k, v, out, top, sum, sh, warp, lane);
            store_partial<256>(a, it, 0, out, top, sum, warp, lane);
            __syncthreads();          /* q and p are written again */
        } else {
            work_full(a, it, k, v, sh, warp, lane);
        }
    }
    if (!waited) chain_wait();
    else if (threadIdx.x == 0) trace_mark(a.trace, TRACE_END);
}

/* Full layers, one block per (row, head). */
__global__ void __launch_bounds__(256) combine_kernel(const __grid_constant__ attn_args a)
{
    unsigned long long *trace = a.trace ? a.trace + TRACE_WORDS : NULL;

    chain_trigger();
    if (threadIdx.x == 0) trace_mark(trace, TRACE_START);
    const uint32_t spans = task_spans(a, blockIdx.x);

    chain_wait();
    if (spans == 0) return;
    if (threadIdx.x == 0) trace_mark(trace, TRACE_PAST_WAIT);
    combine_spans(a, blockIdx.x, spans, threadIdx.x);
    if (threadIdx.x == 0) trace_mark(trace, TRACE_END);
}

/* Sliding layers, one block per (row, head). */
__global__ void __launch_bounds__(128) join_kernel(const __grid_constant__ attn_args a)
{
    unsigned long long *trace = a.trace ? a.trace + TRACE_WORDS : NULL;

    chain_trigger();
    if (threadIdx.x == 0) trace_mark(trace, TRACE_START);
    chain_wait();
    if (blockIdx.x / ATTN_HEADS >= a.state->rows) return;
    if (threadIdx.x == 0) trace_mark(trace, TRACE_PAST_WAIT);
    join_chunks(a, blockIdx.x, threadIdx.x);
    if (threadIdx.x == 0) trace_mark(trace, TRACE_END);
}

int attn_init(void)
{
    int rc = launch_prepare((const void *)attn_kernel<256>, attn_shared_bytes<256>(STEP_GROUP_ROWS_MAX, 128));

    if (rc == 0) rc = launch_prepare((const void *)attn_kernel<512>, attn_shared_bytes<512>(STEP_GROUP_ROWS_MAX, 256));
    if (rc == 0) rc = launch_prepare((const void *)join_kernel, 0);
    return rc ? rc : launch_prepare((const void *)combine_kernel, 0);
}

static int launch_sliding(attn_args *a, uint32_t rows, void *stream)
{
    const uint32_t bytes = attn_shared_bytes<256>(rows, a->turned), items = rows * a->kv_heads * CHUNKS, most = rows == 1 ? 128 : 256;
    const uint32_t blocks = items < most ? items : most;
    void *params[] = { a };
    const int rc = launch_chained((const void *)attn_kernel<256>, blocks, ATTN_WARPS * 32, bytes, params, stream);

    return rc ? rc : launch_chained((const void *)join_kernel, rows * ATTN_HEADS, 128, 0, params, stream);
}

static int launch_full(attn_args *a, uint32_t rows, uint32_t sm_count, void *stream)
{
    void *params[] = { a };
    const int rc = launch_chained((const void *)attn_kernel<512>, sm_count, ATTN_WARPS * 32, attn_shared_bytes<512>(rows, a->turned), params, stream);

    return rc ? rc : launch_chained((const void *)combine_kernel, rows * ATTN_HEADS, 256, 0, params, stream);
}

int attn_launch(const struct attn_args *args, uint32_t head_dim, uint32_t rows, uint32_t sm_count, void *stream)
{
    attn_args a = *args;

    if (head_dim != 256 && head_dim != 512) return -E_UNSUPPORTED;
    if (head_dim == 256 ? a.kv_heads != 8 || a.window != ATTN_WINDOW : a.kv_heads != 1 || a.window) return -E_UNSUPPORTED;
    if (rows == 0 || rows > STEP_ROWS_MAX || a.turned > head_dim / 2 || a.turned % 4) return -E_RANGE;
    a.fresh_rows = rows < STEP_GROUP_ROWS_MAX ? rows : STEP_GROUP_ROWS_MAX;
    return head_dim == 256 ? launch_sliding(&a, rows, stream) : launch_full(&a, rows, sm_count, stream);
}
