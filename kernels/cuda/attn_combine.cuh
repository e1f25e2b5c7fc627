/* kernels/cuda/attn_combine.cuh - the last step of attention over spans: a row's partial results added in ascending order of its spans.
 *
 * Read by attn_long.cu (attn.cu's spans are made of chunks: attn_full.cuh). One block per (row, head), D / 2 threads: two elements each. The first BATCH spans
 * are asked for before anything is known of their weights; the order of the sums does not depend on how many rows there are. */
#ifndef SLUICE_CUDA_ATTN_COMBINE_CUH
#define SLUICE_CUDA_ATTN_COMBINE_CUH

#include "attn_block.cuh"
#include "attn_rule.cuh"

/* BATCH: spans whose loads are in flight together, at most 32; UNIT: of the spans' lengths. */
template <uint32_t D, uint32_t UNIT, uint32_t BATCH> __device__ __forceinline__ void combine_spans(const attn_args &a)
{
    const uint32_t row = blockIdx.x / ATTN_HEADS, lane = threadIdx.x % 32;
    const float2 *ml = a.part_ml + (uint64_t)blockIdx.x * a.spans_max;
    const float *part = a.part + (uint64_t)blockIdx.x * a.spans_max * D + threadIdx.x * 2;
    float top = NEVER, sum = 0.0f;
    float2 out = make_float2(0.0f, 0.0f), x[BATCH];
    __shared__ rule_shared rule;

    chain_trigger();
    if (threadIdx.x == 0) trace_mark(a.trace ? a.trace + TRACE_WORDS : NULL, TRACE_START);
    const bool live = row < a.state->rows;
    const uint32_t spans = live ? cut_spans<UNIT>(group_tokens(a.state->group[a.state->row[row].group])) : 0;
    const float power = power_or_one(a.out_power);

    if (live) rule_begin(a, rule);
    chain_wait();
    if (!live) return;
    if (threadIdx.x == 0) trace_mark(a.trace ? a.trace + TRACE_WORDS : NULL, TRACE_PAST_WAIT);
#pragma unroll
    for (uint32_t s = 0; s < BATCH; s++) x[s] = s < spans ? __ldcg((const float2 *)(part + (uint64_t)s * D)) : make_float2(0.0f, 0.0f);
    for (uint32_t s = lane; s < spans; s += 32) top = fmaxf(top, __ldcg(&ml[s].x));
#pragma unroll
    for (int d = 16; d; d >>= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, d));
    for (uint32_t first = 0; first < spans; first += BATCH) {
        const float2 own = lane < BATCH && first + lane < spans ? __ldcg(ml + first + lane) : make_float2(NEVER, 0.0f);
        const float weight = IS_NEVER(own.x) ? 0.0f : __expf(own.x - top), mass = weight * own.y;

        if (first) {
#pragma unroll
            for (uint32_t s = 0; s < BATCH; s++) x[s] = first + s < spans ? __ldcg((const float2 *)(part + (uint64_t)(first + s) * D)) : make_float2(0.0f, 0.0f);
        }
#pragma unroll
        for (uint32_t s = 0; s < BATCH; s++) {
            const float w = __shfl_sync(0xffffffffu, weight, s);

            sum += __shfl_sync(0xffffffffu, mass, s), out.x += w * x[s].x, out.y += w * x[s].y;
        }
    }
    const float inv = 1.0f / sum * power;

    *(uint32_t *)(a.out + place_of(a.out_places, ATTN_HEADS * D, row, blockIdx.x % ATTN_HEADS * D + partial_dim<D>(threadIdx.x * 2))) = rule_pair(a, rule, out.x * inv, out.y * inv);
    if (threadIdx.x == 0) trace_mark(a.trace ? a.trace + TRACE_WORDS : NULL, TRACE_END);
}

#endif
