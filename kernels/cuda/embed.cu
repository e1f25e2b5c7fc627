/* kernels/cuda/embed.cu - embedding lookup, first norm and rotation table (contract in embed.h). */
#include "embed.h"
#include "device.cuh"
#include "launch.h"
#include "shm/error.h"

#define EMBED_WARPS 15
#define EMBED_PER_WARP 2

__device__ __forceinline__ float4 embed_gather(const embed_args &a, uint32_t token, uint32_t i)
{
    const uint64_t unit = (uint64_t)(token / TILE_ROWS) * a.slices + i / a.slice_k;
    const uint8_t *from = a.table + unit * packed_unit_bytes(WEIGHT_BF16, a.slice_k);
    const uint32_t p = *(const uint32_t *)(from + packed_element_offset(WEIGHT_BF16, a.slice_k, token % TILE_ROWS, i % a.slice_k));
    const uint32_t q = *(const uint32_t *)(from + packed_element_offset(WEIGHT_BF16, a.slice_k, token % TILE_ROWS, i % a.slice_k + 2));

    return make_float4(bf16_low(p), bf16_high(p), bf16_low(q), bf16_high(q));
}

__device__ __forceinline__ float round_bf16(float x) { return __bfloat162float(__float2bfloat16_rn(x)); }

__global__ void embed_kernel(const __grid_constant__ embed_args a)
{
    __shared__ float sums[32];
    const uint32_t warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32, row = blockIdx.x;
    float4 h[EMBED_PER_WARP];

    chain_trigger();
    chain_wait();
    const bool live = row < a.state->rows;
    uint32_t token = live ? a.state->row[row].token : 0;
    const float position = live ? (float)a.state->row[row].position : 0.0f;

    if (token == STEP_TOKEN_LAST) token = a.last_token[row];
#pragma unroll
    for (int j = 0; j < EMBED_PER_WARP; j++) {
        const uint32_t v = warp + EMBED_WARPS * j, i = v * 128 + lane * 4;

        h[j] = make_float4(0, 0, 0, 0);
        if (live && i < a.hidden) {
            const float4 e = embed_gather(a, token, i);

            h[j] = make_float4(round_bf16(e.x * a.scale), round_bf16(e.y * a.scale), round_bf16(e.z * a.scale), round_bf16(e.w * a.scale));
        }
        const float sum = warp_sum(((h[j].x * h[j].x + h[j].y * h[j].y) + (h[j].z * h[j].z + h[j].w * h[j].w)));
        if (lane == 0 && v < a.hidden / 128) sums[v] = sum;
    }
    for (uint32_t i = threadIdx.x; i < a.turned; i += blockDim.x) {
        float s, c;

        sincosf(position * a.inv_freq[i], &s, &c);
        a.rope[(uint64_t)row * a.turned + i] = make_float2(c, s);
    }
    __syncthreads();
    const float inv = rsqrtf(warp_sum(lane < a.hidden / 128 ? sums[lane] : 0.0f) / (float)a.hidden + a.eps) * power_or_one(a.y_power);

#pragma unroll
    for (int j = 0; j < EMBED_PER_WARP; j++) {
        const uint32_t i = (warp + EMBED_WARPS * j) * 128 + lane * 4;

        if (i >= a.hidden) continue;
        const uint2 w = __ldg((const uint2 *)(a.w_next + i));
        const uint64_t at = (uint64_t)row * a.hidden + i;

        *(float4 *)(a.residual + at) = h[j];
        *(uint2 *)(a.y + place_of(a.y_places, a.hidden, row, i)) = make_uint2(pack_row(h[j].x * inv * (bf16_low(w.x) + a.bias), h[j].y * inv * (bf16_high(w.x) + a.bias), a.y_power != NULL),
                                           pack_row(h[j].z * inv * (bf16_low(w.y) + a.bias), h[j].w * inv * (bf16_high(w.y) + a.bias), a.y_power != NULL));
    }
}

int embed_init(void) { return launch_prepare((const void *)embed_kernel, 0); }

int embed_launch(const struct embed_args *args, uint32_t rows, void *stream)
{
    embed_args a = *args;
    void *params[] = { &a };

    if (a.hidden == 0 || a.hidden % 128 || a.hidden > EMBED_WARPS * EMBED_PER_WARP * 128 || rows == 0) return -E_RANGE;
    a.y_places = places_known(a.y_places, a.hidden);
    return launch_first((const void *)embed_kernel, rows, EMBED_WARPS * 32, 0, params, stream);
}
