/* kernels/cuda/powers.cu - bounds of a layer's activations and the powers of two that follow (contract in powers.h). */
#include "powers.h"
#include "device.cuh"
#include "launch.h"
#include "pack.h"
#include "shm/error.h"
#include <cuda_runtime.h>
#include <math.h>

#define THREADS 256
#define ROUNDED_ONCE 2.0f             /* E4M3 at most doubles an element that it does not make 0 (among its smallest: half a step becomes a step) */
#define ROUNDED_TWICE 4.0f            /* a product of two sums of such elements */

struct make_args {
    const __nv_bfloat16 *norm[2];
    float bias, attention, value_factor, act_factor;   /* attention: the bound in front of o, or 0: value_factor times the rows' */
    uint32_t hidden;
    const float *top;                 /* [2]: of value rows, of products of gate and up rows */
    row_power *out;
};

__device__ float largest_weight(const __nv_bfloat16 *w, float bias, uint32_t n)
{
    __shared__ float tops[THREADS / 32];
    float top = 0.0f;

    for (uint32_t i = threadIdx.x; i < n; i += THREADS) top = fmaxf(top, fabsf(__bfloat162float(w[i]) + bias));
    for (int d = 16; d; d >>= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, d));
    __syncthreads();
    if (threadIdx.x % 32 == 0) tops[threadIdx.x / 32] = top;
    __syncthreads();
    for (uint32_t i = 0; i < THREADS / 32; i++) top = fmaxf(top, tops[i]);
    return top;
}

__device__ row_power power_of(float bound)
{
    const int e = power_exponent(bound);

    return { __uint_as_float((uint32_t)(127 + e) << 23), __uint_as_float((uint32_t)(127 - e) << 23) };
}

__global__ void __launch_bounds__(THREADS) make_kernel(make_args a)
{
    const float root = sqrtf((float)a.hidden), input = largest_weight(a.norm[0], a.bias, a.hidden), ff = largest_weight(a.norm[1], a.bias, a.hidden);
    const float bound[POWERS] = { root * input, a.attention > 0.0f ? a.attention : a.value_factor * root * a.top[0], root * ff, a.act_factor * (float)a.hidden * a.top[1] };

    if (threadIdx.x < POWERS) a.out[threadIdx.x] = power_of(bound[threadIdx.x]);
}

__global__ void __launch_bounds__(THREADS) make_norm_kernel(const __nv_bfloat16 *w, uint32_t hidden, row_power *out)
{
    const float bound = sqrtf((float)hidden) * largest_weight(w, 0.0f, hidden);

    if (threadIdx.x == 0) *out = power_of(bound);
}

int powers_launch(const struct powers_args *a, void *stream)
{
    int rc = launch_check(cudaMemsetAsync(a->scratch, 0, POWERS_SCRATCH * sizeof(float), (cudaStream_t)stream), "powers");

    if (rc) return rc;
    if (!a->has_v_norm) {
        struct packed_matrix values = a->qkv;

        if (a->value_first >= values.rows || a->value_first % TILE_ROWS) return -E_RANGE;
        values.data += packed_bytes(values.format, a->value_first, values.k), values.rows -= a->value_first;
        rc = pack_top_launch(&values, a->input_norm, a->bias, PACK_TOP_ROWS, a->scratch, stream);
    }
    if (rc == 0) rc = pack_top_launch(&a->gate_up, a->pre_ff_norm, a->bias, PACK_TOP_PAIRS, a->scratch + 1, stream);
    if (rc) return rc;
    const make_args m = { { a->input_norm, a->pre_ff_norm }, a->bias, a->has_v_norm ? sqrtf((float)a->head_dim) : 0.0f, a->qkv_rounded ? ROUNDED_ONCE : 1.0f,
                          a->gate_up_rounded ? ROUNDED_TWICE : 1.0f, a->hidden, a->scratch, a->out };
    make_kernel<<<1, THREADS, 0, (cudaStream_t)stream>>>(m);
    return launch_check(cudaGetLastError(), "powers");
}

int powers_norm_launch(const __nv_bfloat16 *w, uint32_t hidden, struct row_power *out, void *stream)
{
    make_norm_kernel<<<1, THREADS, 0, (cudaStream_t)stream>>>(w, hidden, out);
    return launch_check(cudaGetLastError(), "powers");
}
