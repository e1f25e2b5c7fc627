/* kernels/cuda/sample_common.cuh - what both sampling kernels share: the order of floats, the noise, the exponential, publishing a row.
 *
 * exp and the noise are those of the CPU (kernels/cpu/ops.h, model/philox.h, model/sampler.c), operation by operation: both pick the same token
 * from the same logits. */
#ifndef SLUICE_CUDA_SAMPLE_COMMON_CUH
#define SLUICE_CUDA_SAMPLE_COMMON_CUH

#include "handover.cuh"
#include "sample.h"
#include <math_constants.h>
#include <stdint.h>

#define SAMPLE_NOISE_DOMAIN 0x746f6b65u   /* fourth counter word, as in model/sampler.c */

/* Larger float, larger integer; NaN above all. */
__device__ __forceinline__ uint32_t sample_ordered(float x)
{
    const uint32_t bits = __float_as_uint(x);

    if (x != x) return 0xffffffffu;
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ uint64_t sample_ordered(double x)
{
    const uint64_t bits = (uint64_t)__double_as_longlong(x);

    return bits >> 63 ? ~bits : bits | 1ull << 63;
}

/* exp of x <= 0 as ops_exp1 of kernels/cpu/ops.h computes it. */
__device__ __forceinline__ float sample_exp(float x)
{
    const float cut = fmaxf(x, -87.3365447f), n = rintf(__fmul_rn(cut, 1.44269504f));
    float r = __fmaf_rn(n, -0.693359375f, cut), p;

    r = __fmaf_rn(n, 2.12194440e-4f, r);
    p = __fmaf_rn(r, 1.9875691500e-4f, 1.3981999507e-3f);
    p = __fmaf_rn(p, r, 8.3334519073e-3f);
    p = __fmaf_rn(p, r, 4.1665795894e-2f);
    p = __fmaf_rn(p, r, 1.6666665459e-1f);
    p = __fmaf_rn(p, r, 5.0000001201e-1f);
    p = __fmaf_rn(p, __fmul_rn(r, r), __fadd_rn(r, 1.0f));
    return x < -87.3365447f ? 0.0f : __fmul_rn(p, __uint_as_float((uint32_t)((int)n + 127) << 23));
}

/* The four noise words of tokens 4 * block .. 4 * block + 3. */
__device__ __forceinline__ uint4 sample_philox(uint64_t seed, uint64_t position, uint32_t block)
{
    uint32_t c0 = block, c1 = (uint32_t)position, c2 = (uint32_t)(position >> 32), c3 = SAMPLE_NOISE_DOMAIN, k0 = (uint32_t)seed, k1 = (uint32_t)(seed >> 32);

#pragma unroll
    for (int i = 0; i < 10; i++) {
        const uint32_t h0 = __umulhi(0xD2511F53u, c0), l0 = 0xD2511F53u * c0, h1 = __umulhi(0xCD9E8D57u, c2), l1 = 0xCD9E8D57u * c2;

        c0 = h1 ^ c1 ^ k0, c1 = l1, c2 = h0 ^ c3 ^ k1, c3 = l0;
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    return make_uint4(c0, c1, c2, c3);
}

__device__ __forceinline__ uint32_t sample_word(const uint4 &w, uint32_t i) { return i == 0 ? w.x : i == 1 ? w.y : i == 2 ? w.z : w.w; }

/* 1 - u of a noise word, exact. */
__device__ __forceinline__ double sample_above(uint32_t word) { return (4294967295.5 - (double)word) * 0x1p-32; }

/* Gumbel noise of 1 - u, in f64 as model/sampler.c does it. */
__device__ __forceinline__ double sample_gumbel(double above) { return -log(-log1p(-above)); }

__device__ __forceinline__ bool sample_suppressed(const sample_args &a, uint32_t token)
{
    for (uint32_t i = 0; i < a.suppress_count; i++)
        if (a.suppress[i] == token) return true;
    return false;
}

__device__ __forceinline__ bool sample_repetition_on(const step_sampling &p) { return p.repetition_penalty != 0.0f && p.repetition_penalty != 1.0f; }

__device__ __forceinline__ bool sample_penalties_on(const step_sampling &p)
{
    return sample_repetition_on(p) || p.presence_penalty != 0.0f || p.frequency_penalty != 0.0f;
}

/* Stores a row's token. `bad`: the token means nothing. */
__device__ __forceinline__ void sample_store(const sample_args &a, uint32_t row, bool bad, uint32_t token, float logit, float logprob, uint32_t top_count)
{
    a.last_token[row] = bad ? 0 : token;
    a.result->token[row] = bad ? 0 : token;
    a.result->logit[row] = bad ? 0.0f : logit;
    a.result->bad[row] = bad;
    a.result->logprob[row] = logprob;
    a.result->top_count[row] = top_count;
}

/* Called by one thread for each of `parts` parts of the step. The last one writes the flag if `flags`: tokens of all rows are in host memory before it. */
__device__ __forceinline__ void sample_finish(const sample_args &a, uint32_t parts, bool flags)
{
    __threadfence_system();
    if (atomicAdd(a.done, 1) + 1 < parts) return;
    *a.done = 0;
    __threadfence_system();
    if (flags && a.state->handed) handover_tell(a.state, a.last_token);
    if (flags) *(volatile uint64_t *)&a.result->step = a.state->step;
}

#endif
