/* kernels/cuda/outputs.cu - outputs of layers to the memory that a drafter reads (contract in outputs.h). */
#include "outputs.h"
#include "device.cuh"
#include "launch.h"
#include "shm/error.h"

#define THREADS 256

struct row_head { unsigned long long layers, of; uint8_t pad[48]; };      /* struct feature_row */
static_assert(sizeof(struct row_head) == 64, "as model/features.h has it");

struct store_args {
    outputs_keep keep;
    const float *residual;
    uint32_t index, count;            /* of the layer among those wanted */
};

/* What one block writes: the output of row blockIdx.x, which is `position` of the sequence in `slot`. */
__device__ void store(const store_args &a, uint32_t slot, uint32_t position)
{
    const cuda_features &m = a.keep.memory;
    uint8_t *row = (uint8_t *)m.device + ((uint64_t)(slot % m.places) * m.rows + position % m.rows) * m.row_bytes;
    row_head *head = (row_head *)row;
    uint8_t *to = row + sizeof *head + (uint64_t)a.index * a.keep.hidden * m.element_bytes;
    const float *from = a.residual + (uint64_t)blockIdx.x * a.keep.hidden;

    if (a.index == 0) {
        if (threadIdx.x == 0) {
            *(volatile unsigned long long *)&head->layers = 0;
            __threadfence();          /* F1 of model/features.h */
        }
        __syncthreads();
    }
    for (uint32_t i = 4 * threadIdx.x; i < a.keep.hidden; i += 4 * THREADS) {
        const float4 v = ld_l2((const float4 *)(from + i));

        if (m.element_bytes == 4) *(float4 *)(to + 4ull * i) = v;
        else *(uint2 *)(to + 2ull * i) = make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w));
    }
    if (a.index + 1 < a.count) return;
    __syncthreads();
    if (threadIdx.x == 0) {
        *(volatile unsigned long long *)&head->of = (unsigned long long)__ldcg(a.keep.generation + slot) << 32 | position;
        __threadfence();              /* F2: the data of this kernel and of those before it */
        *(volatile unsigned long long *)&head->layers = a.keep.layers;
    }
}

__global__ void __launch_bounds__(THREADS) store_step_kernel(const __grid_constant__ store_args a, const step_state *state)
{
    chain_trigger();
    chain_wait();
    if (blockIdx.x >= state->rows) return;
    const step_row *row = &state->row[blockIdx.x];

    store(a, state->group[row->group].seq, row->position);
}

__global__ void __launch_bounds__(THREADS) store_rows_kernel(const __grid_constant__ store_args a, const uint4 *rows, bool live)
{
    chain_trigger();
    chain_wait();
    const uint4 own = ld_l2(rows + blockIdx.x);
    const uint32_t later = blockIdx.x + a.keep.memory.rows;      /* the rows of a sequence stand one after the other */

    if (live && own.w == 0) return;
    if (later < gridDim.x && ld_l2(rows + later).z == own.z) return;
    store(a, own.z, own.y);
}

struct copy_args {
    outputs_keep keep;
    uint32_t from_seq, from_generation, seq, first;
};

__device__ __forceinline__ uint8_t *row_at(const cuda_features &m, uint32_t seq, uint32_t position)
{
    return (uint8_t *)m.device + ((uint64_t)(seq % m.places) * m.rows + position % m.rows) * m.row_bytes;
}

__device__ __forceinline__ bool is_there(const volatile row_head *head, unsigned long long layers, unsigned long long of) { return head->layers == layers && head->of == of; }

/* A block for each position; no link of a chain. The reader of the source row and the writer of its copy: both look as model/features.h says. */
__global__ void __launch_bounds__(THREADS) copy_kernel(const __grid_constant__ copy_args a)
{
    const cuda_features &m = a.keep.memory;
    const uint32_t position = a.first + blockIdx.x;
    const uint8_t *from = row_at(m, a.from_seq, position);
    uint8_t *to = row_at(m, a.seq, position);
    const volatile row_head *source = (const volatile row_head *)from;
    volatile row_head *head = (volatile row_head *)to;
    const unsigned long long of = (unsigned long long)a.from_generation << 32 | position;

    if (!__syncthreads_and(is_there(source, a.keep.layers, of))) return;
    if (threadIdx.x == 0) {
        head->layers = 0;
        __threadfence();              /* F1 */
    }
    __syncthreads();
    for (uint32_t i = sizeof(row_head) / 16 + threadIdx.x; from != to && i < m.row_bytes / 16; i += THREADS) ((uint4 *)to)[i] = ld_l2((const uint4 *)from + i);
    __threadfence();                  /* F1: of the source, behind the reads; F2: of the copy */
    if (!__syncthreads_and(from == to || is_there(source, a.keep.layers, of)) || threadIdx.x != 0) return;      /* from == to: slots of one place, the row changes hands */
    head->of = (unsigned long long)__ldcg(a.keep.generation + a.seq) << 32 | position;
    __threadfence();
    head->layers = a.keep.layers;
}

int outputs_copy(const struct outputs_keep *keep, uint32_t from_seq, uint32_t from_generation, uint32_t seq, uint32_t first, uint32_t count, void *stream)
{
    const uint32_t most = keep->memory.rows, late = count > most ? count - most : 0;
    copy_args a = { *keep, from_seq, from_generation, seq, first + late };
    void *params[] = { &a };

    if (keep->layers == 0 || count == 0) return 0;
    return launch_first((const void *)copy_kernel, count - late, THREADS, 0, params, stream);
}

int outputs_fit(const struct cuda_features *memory, uint64_t layers, uint32_t layer_count)
{
    return (uint32_t)__builtin_popcountll(layers) <= memory->sources_max && (layer_count > 64 || layers >> (layer_count - 1) == 0);
}

static struct store_args args_of(const struct outputs_keep *keep, uint32_t layer, const float *residual)
{
    const store_args a = { *keep, residual, (uint32_t)__builtin_popcountll(keep->layers & ((1ull << layer) - 1)), (uint32_t)__builtin_popcountll(keep->layers) };

    return a;
}

int outputs_store_step(const struct outputs_keep *keep, uint32_t layer, const float *residual, const struct step_state *state, uint32_t rows, void *stream)
{
    store_args a = args_of(keep, layer, residual);
    void *params[] = { &a, &state };

    return launch_chained((const void *)store_step_kernel, rows, THREADS, 0, params, stream);
}

int outputs_store_rows(const struct outputs_keep *keep, uint32_t layer, const float *residual, const void *rows, bool live, uint32_t count, void *stream)
{
    store_args a = args_of(keep, layer, residual);
    const uint4 *records = (const uint4 *)rows;
    void *params[] = { &a, &records, &live };

    return launch_chained((const void *)store_rows_kernel, count, THREADS, 0, params, stream);
}

int outputs_init(void)
{
    int rc = launch_prepare((const void *)store_step_kernel, 0);

    if (rc == 0) rc = launch_prepare((const void *)copy_kernel, 0);
    return rc ? rc : launch_prepare((const void *)store_rows_kernel, 0);
}
