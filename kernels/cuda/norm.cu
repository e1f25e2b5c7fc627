/* kernels/cuda/norm.cu - the norms between the blocks of a layer (contract in norm.h). */
#include "norm.h"
#include "round.cuh"
#include "launch.h"
#include "tags.cuh"
#include "shm/error.h"

enum norm_out { NORM_BF16, NORM_F16, NORM_RULED };      /* of y: a kernel each, without code for the others */

#define WARPS 15
#define PER_WARP 2                    /* pieces of 128 elements */
#define HIDDEN_MAX (WARPS * PER_WARP * 128)

struct norm_shared {
    uint2 post[HIDDEN_MAX / 4], next[HIDDEN_MAX / 4];
    float sum[2][32];
    float scalar, power;              /* of h, of y: in registers ptxas would load them behind the wait */
};

/* rsqrtf without the case of numbers below 2^-126. */
__device__ __forceinline__ float norm_rsqrt(float x)
{
    float y;

    asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float norm_square(float4 x) { return (x.x * x.x + x.y * x.y) + (x.z * x.z + x.w * x.w); }

/* Sum over the block; every thread gets the same bits. */
__device__ __forceinline__ float block_sum(float (&own)[PER_WARP], float *sums, uint32_t warp, uint32_t lane)
{
    float total = 0.0f;

#pragma unroll
    for (int j = 0; j < PER_WARP; j++) total += own[j];
    total = warp_sum(total);
    if (lane == 0) sums[warp] = total;
    __syncthreads();
    return warp_sum(lane < WARPS ? sums[lane] : 0.0f);
}

/* The activation rule of the next product. tops: of the first sum, which every thread has read since. */
__device__ __forceinline__ void round_row(const norm_args &a, uint2 (&y)[PER_WARP], float *tops, uint32_t warp, uint32_t lane)
{
    float top = 0.0f;

    if (a.y_fixed == 0.0f) {
#pragma unroll
        for (int j = 0; j < PER_WARP; j++)
            if ((warp + WARPS * j) * 128 < a.hidden) top = fmaxf(top, fmaxf(pair_top(y[j].x), pair_top(y[j].y)));
        top = round_warp_top(top);
        if (lane == 0) tops[warp] = top;
        __syncthreads();
        top = round_warp_top(lane < WARPS ? tops[lane] : 0.0f);
    }
    const round_by by = a.y_fixed == 0.0f ? round_by_largest(top) : round_by{ a.y_fixed, a.y_inverse, false };

    if (warp + lane == 0 && a.y_scale) a.y_scale[blockIdx.x] = by.scale;
#pragma unroll
    for (int j = 0; j < PER_WARP; j++) y[j] = make_uint2(pair_values(round_pair(y[j].x, by)), pair_values(round_pair(y[j].y, by)));
}

/* Returns when words are there that are written a moment before the last ones. Until then one warp asks, and not all the time: a product has the SM. */
__device__ __forceinline__ void norm_early(const norm_args &a, uint32_t lane)
{
    const uint32_t back = a.early + lane * 16 + 1;
    const float *word = a.part + (uint64_t)blockIdx.x * a.hidden + (back < a.hidden ? a.hidden - back : 0);

    for (uint32_t polls = 0; polls < TAG_POLLS_MAX && __any_sync(0xffffffffu, tag_wrong(0, ld_tagged(word), a.part_tag) & 1); polls++) __nanosleep(100);
}

/* A row's partial results and residual. Behind the wait, or when all of them are there: each half of a thread's share is asked for until its tags are right. */
__device__ __forceinline__ void norm_load(const norm_args &a, float4 (&part)[NORM_SPLIT_MAX][PER_WARP], float4 (&h)[PER_WARP], uint32_t warp, uint32_t lane)
{
    const uint64_t row = (uint64_t)blockIdx.x * a.hidden;
    bool missing[PER_WARP];

    if (!a.poll) chain_wait();
#pragma unroll
    for (int j = 0; j < PER_WARP; j++) {
        const uint32_t i = (warp + WARPS * j) * 128 + lane * 4;

        missing[j] = true;
        h[j] = ld_tagged((const float4 *)(a.residual + row + (i < a.hidden ? i : 0)));
    }
    if (a.poll && warp == 0) norm_early(a, lane);
    __syncthreads();                  /* also without polling: keeps the loads above here, which ptxas puts off until the parts have come, a round trip more */
#pragma unroll 1
    for (uint32_t polls = 0;; polls++) {
        uint32_t first = warp * 128 + lane * 4;
        bool any = false;

        asm volatile("" : "+r"(first));          /* addresses are made anew each time: there are no registers for ten */
#pragma unroll
        for (int j = 0; j < PER_WARP; j++) {
            const uint32_t i = first + WARPS * 128 * j;
            const float *from = a.part + row + (i < a.hidden ? i : 0);

            if (!missing[j]) continue;
#pragma unroll
            for (uint32_t s = 0; s < NORM_SPLIT_MAX; s++, from += a.part_stride)
                if (s < a.split) part[s][j] = ld_tagged((const float4 *)from);
            if (polls) h[j] = ld_tagged((const float4 *)(a.residual + row + (i < a.hidden ? i : 0)));
        }
        if (!a.poll || polls > TAG_POLLS_MAX) return;
#pragma unroll
        for (int j = 0; j < PER_WARP; j++) {
            uint32_t wrong = tag_wrong(0, h[j], a.residual_tag);

#pragma unroll
            for (uint32_t s = 0; s < NORM_SPLIT_MAX; s++)
                if (s < a.split) wrong = tag_wrong(wrong, part[s][j], a.part_tag);
            any |= missing[j] = wrong & 1;
        }
        if (!__any_sync(0xffffffffu, any)) return;
        if (polls < TAG_POLLS_MAX) continue;
        chain_wait();
#pragma unroll
        for (int j = 0; j < PER_WARP; j++) missing[j] = true;
    }
}

/* One text for 1, 2 and 4 partial results: three copies of it would be fetched from the L2 in every layer. */
template <enum norm_out OUT>
__device__ __forceinline__ void norm_row(const norm_args &a, float inv_hidden, norm_shared &sh, uint32_t warp, uint32_t lane)
{
    const uint64_t row = (uint64_t)blockIdx.x * a.hidden;
    float4 part[NORM_SPLIT_MAX][PER_WARP], h[PER_WARP];
    float sum[PER_WARP];

    norm_load(a, part, h, warp, lane);
    if (threadIdx.x == 0) trace_mark(a.trace, TRACE_PAST_WAIT);
#pragma unroll
    for (int j = 0; j < PER_WARP; j++) {
        const bool live = (warp + WARPS * j) * 128 < a.hidden;

#pragma unroll
        for (uint32_t s = 1; s < NORM_SPLIT_MAX; s++)
            if (s < a.split) part[0][j].x += part[s][j].x, part[0][j].y += part[s][j].y, part[0][j].z += part[s][j].z, part[0][j].w += part[s][j].w;
        sum[j] = live ? norm_square(part[0][j]) : 0.0f;
    }
    const float inv_a = norm_rsqrt(block_sum(sum, sh.sum[0], warp, lane) * inv_hidden + a.eps), scalar = sh.scalar;

#pragma unroll
    for (int j = 0; j < PER_WARP; j++) {
        const uint32_t i = (warp + WARPS * j) * 128 + lane * 4;
        const uint2 w = sh.post[i / 4];

        h[j].x = (h[j].x + part[0][j].x * inv_a * (bf16_low(w.x) + a.bias)) * scalar;
        h[j].y = (h[j].y + part[0][j].y * inv_a * (bf16_high(w.x) + a.bias)) * scalar;
        h[j].z = (h[j].z + part[0][j].z * inv_a * (bf16_low(w.y) + a.bias)) * scalar;
        h[j].w = (h[j].w + part[0][j].w * inv_a * (bf16_high(w.y) + a.bias)) * scalar;
        h[j] = with_tag(h[j], a.out_tag);
        sum[j] = i < a.hidden ? norm_square(h[j]) : 0.0f;
        if (i < a.hidden) st_tagged((float4 *)(a.residual_out + row + i), h[j]);
    }
    const float inv_h = norm_rsqrt(block_sum(sum, sh.sum[1], warp, lane) * inv_hidden + a.eps) * (OUT == NORM_F16 ? sh.power : 1.0f);
    uint2 y[PER_WARP];

#pragma unroll
    for (int j = 0; j < PER_WARP; j++) {
        const uint32_t i = (warp + WARPS * j) * 128 + lane * 4;
        const uint2 w = sh.next[i / 4];

        y[j] = make_uint2(pack_row<OUT == NORM_F16>(h[j].x * inv_h * (bf16_low(w.x) + a.bias), h[j].y * inv_h * (bf16_high(w.x) + a.bias)),
                          pack_row<OUT == NORM_F16>(h[j].z * inv_h * (bf16_low(w.y) + a.bias), h[j].w * inv_h * (bf16_high(w.y) + a.bias)));
    }
    if (OUT == NORM_RULED) round_row(a, y, sh.sum[0], warp, lane);
#pragma unroll
    for (int j = 0; j < PER_WARP; j++) {
        const uint32_t i = (warp + WARPS * j) * 128 + lane * 4;

        if (i < a.hidden) *(uint2 *)(a.y + place_of(a.y_places, a.hidden, blockIdx.x, i)) = y[j];
    }
}

template <enum norm_out OUT> __global__ void __maxnreg__(56) norm_kernel(const __grid_constant__ norm_args a, float inv_hidden)
{
    __shared__ norm_shared sh;
    const uint32_t warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32;

    chain_trigger();
    if (threadIdx.x == 0) trace_mark(a.trace, TRACE_START);
#pragma unroll
    for (uint32_t i = threadIdx.x; i < HIDDEN_MAX / 4; i += WARPS * 32)
        if (i < a.hidden / 4) sh.post[i] = __ldg((const uint2 *)a.w_post + i), sh.next[i] = __ldg((const uint2 *)a.w_next + i);
    if (threadIdx.x == 0) sh.scalar = power_or_one(a.scalar), sh.power = power_or_one(a.y_power);

    __syncthreads();
    norm_row<OUT>(a, inv_hidden, sh, warp, lane);
    if (threadIdx.x == 0) trace_mark(a.trace, TRACE_END);
    if (a.poll) chain_wait();         /* rule 3 of tags.cuh */
}

static const void *const kernels[] = { (const void *)norm_kernel<NORM_BF16>, (const void *)norm_kernel<NORM_F16>, (const void *)norm_kernel<NORM_RULED> };

int norm_init(void)
{
    int rc = 0;

    for (const void *kernel : kernels)
        if (rc == 0) rc = launch_prepare(kernel, 0);
    return rc;
}

int norm_launch(const struct norm_args *args, uint32_t rows, void *stream)
{
    norm_args a = *args;
    float inv_hidden = 1.0f / (float)a.hidden;
    const bool ruled = a.y_scale || a.y_fixed != 0.0f;
    void *params[] = { &a, &inv_hidden };

    if (a.hidden == 0 || a.hidden % 128 || a.hidden > HIDDEN_MAX || rows == 0) return -E_RANGE;
    if (a.split != 1 && a.split != 2 && a.split != 4) return -E_RANGE;
    if (a.y_power && ruled) return -E_RANGE;
    a.y_places = places_known(a.y_places, a.hidden);
    a.y_inverse = 1.0f / a.y_fixed;
    return launch_chained(kernels[a.y_power ? NORM_F16 : ruled ? NORM_RULED : NORM_BF16], rows, WARPS * 32, 0, params, stream);
}
