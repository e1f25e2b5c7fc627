/* kernels/cuda/states.cu - hidden states from and to the memory that outlives a step (contract in states.h). */
#include "states.h"
#include "device.cuh"
#include "launch.h"
#include "prefill_mm.h"
#include "shm/error.h"

#define STATES_THREADS 256

__global__ void __launch_bounds__(STATES_THREADS) states_load_kernel(const __grid_constant__ states_args a, const step_state *state)
{
    chain_trigger();
    chain_wait();
    if (blockIdx.x >= state->rows) return;
    const step_row *row = &state->row[blockIdx.x];
    const float *from = a.states + states_at(state->group[row->group].seq, row->position, a.hidden);
    const uint64_t to = (uint64_t)blockIdx.x * a.hidden;

    for (uint32_t i = 4 * threadIdx.x; i < a.hidden; i += 4 * STATES_THREADS) {
        const float4 v = ld_l2((const float4 *)(from + i));

        if (a.form == STATES_F32) *(float4 *)((float *)a.x + to + i) = v;
        else *(uint2 *)((__nv_bfloat16 *)a.x + to + i) = make_uint2(pack_bf16(v.x, v.y), pack_bf16(v.z, v.w));
    }
}

__global__ void __launch_bounds__(STATES_THREADS) states_store_kernel(const __grid_constant__ states_args a, const prefill_row *place, bool packed)
{
    chain_trigger();
    chain_wait();
    const uint4 own = ld_l2((const uint4 *)(place + blockIdx.x));      /* token, position, seq, row */
    const uint64_t from = (uint64_t)(packed ? blockIdx.x : own.w) * a.hidden;
    float *to = a.states + states_at(own.z, own.y, a.hidden);

    for (uint32_t i = 2 * threadIdx.x; i < a.hidden; i += 2 * STATES_THREADS) {
        if (a.form == STATES_F32) {
            *(float2 *)(to + i) = __ldcg((const float2 *)((const float *)a.x + from + i));
            continue;
        }
        const uint32_t v = ld_l2((const uint32_t *)((const __nv_bfloat16 *)a.x + from + (a.form == STATES_BF16_PERMUTED ? prefill_k(i) : i)));
        *(float2 *)(to + i) = make_float2(bf16_low(v), bf16_high(v));
    }
}

__global__ void __launch_bounds__(STATES_THREADS) states_gather_kernel(const __grid_constant__ states_gather a)
{
    chain_trigger();
    chain_wait();
    const uint64_t from = ld_l2((const uint4 *)(a.place + blockIdx.x)).w, to = blockIdx.x;

    for (uint32_t i = threadIdx.x; i < a.hidden / 4; i += STATES_THREADS) {
        ((float4 *)(a.residual_out + to * a.hidden))[i] = ld_l2((const float4 *)(a.residual + from * a.hidden) + i);
        ((uint2 *)(a.x_out + to * a.hidden))[i] = __ldcg((const uint2 *)(a.x + from * a.hidden) + i);
    }
    for (uint32_t i = threadIdx.x; i < a.turned; i += STATES_THREADS) a.rope_out[to * a.turned + i] = __ldcg(a.rope + from * a.turned + i);
}

int states_init(void)
{
    int rc = launch_prepare((const void *)states_load_kernel, 0);

    if (rc == 0) rc = launch_prepare((const void *)states_store_kernel, 0);
    return rc ? rc : launch_prepare((const void *)states_gather_kernel, 0);
}

int states_load_launch(const struct states_args *args, const struct step_state *state, uint32_t rows, void *stream)
{
    states_args a = *args;
    void *params[] = { &a, &state };

    if (a.states == NULL || a.hidden == 0 || a.hidden % 4 || a.form == STATES_BF16_PERMUTED || rows == 0) return -E_RANGE;
    return launch_first((const void *)states_load_kernel, rows, STATES_THREADS, 0, params, stream);
}

int states_store_launch(const struct states_args *args, const struct prefill_row *place, bool packed, uint32_t rows, void *stream)
{
    states_args a = *args;
    void *params[] = { &a, &place, &packed };

    if (a.states == NULL || a.hidden == 0 || a.hidden % 4 || rows == 0) return -E_RANGE;
    return launch_chained((const void *)states_store_kernel, rows, STATES_THREADS, 0, params, stream);
}

int states_gather_launch(const struct states_gather *args, uint32_t rows, void *stream)
{
    states_gather a = *args;
    void *params[] = { &a };

    if (a.hidden == 0 || a.hidden % 4 || rows == 0) return -E_RANGE;
    return launch_chained((const void *)states_gather_kernel, rows, STATES_THREADS, 0, params, stream);
}
