/* kernels/cuda/prefill_ops.cu - embedding, norms, rotation and KV writes of a prefill (contract in prefill_ops.h). */
#include "prefill_ops.h"
#include "attn_head.cuh"
#include "device.cuh"
#include "launch.h"
#include "layout.h"
#include "prefill_mm.h"
#include "soft.h"
#include "shm/error.h"

#define ROW_WARPS 15                  /* of embed and norm: 15 warps x 2 pieces of 128 elements */
#define ROW_PIECES 2
#define HIDDEN_MAX (ROW_WARPS * ROW_PIECES * 128)
#define ROTARY_WARPS 8

/* ---- one row of the residual stream, spread over a block ---- */

struct row_piece { float4 x[ROW_PIECES]; };

/* Element of a lane's first value in piece j. */
__device__ __forceinline__ uint32_t piece_at(int j) { return (threadIdx.x / 32 + ROW_WARPS * j) * 128 + threadIdx.x % 32 * 4; }

/* 1 / rms; every thread gets the same bits. */
__device__ __forceinline__ float row_inverse_rms(const row_piece &p, uint32_t hidden, float eps, float *sums)
{
    float own = 0.0f;

#pragma unroll
    for (int j = 0; j < ROW_PIECES; j++) {
        const float4 x = p.x[j];

        if (piece_at(j) < hidden) own += (x.x * x.x + x.y * x.y) + (x.z * x.z + x.w * x.w);
    }
    own = warp_sum(own);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = own;
    __syncthreads();
    const uint32_t lane = threadIdx.x % 32;

    return rsqrtf(warp_sum(lane < ROW_WARPS ? sums[lane] : 0.0f) / (float)hidden + eps);
}

/* x = bf16(h * inv * (w + bias)) in the order in which the products read k. */
__device__ __forceinline__ void row_store_normed(const row_piece &h, float inv, const __nv_bfloat16 *w, float bias, __nv_bfloat16 *x, uint32_t hidden)
{
#pragma unroll
    for (int j = 0; j < ROW_PIECES; j++) {
        const uint32_t i = piece_at(j);

        if (i >= hidden) continue;
        const uint2 weight = __ldg((const uint2 *)(w + i));

        *(uint32_t *)(x + prefill_k(i)) = pack_bf16(h.x[j].x * inv * (bf16_low(weight.x) + bias), h.x[j].y * inv * (bf16_high(weight.x) + bias));
        *(uint32_t *)(x + prefill_k(i + 2)) = pack_bf16(h.x[j].z * inv * (bf16_low(weight.y) + bias), h.x[j].w * inv * (bf16_high(weight.y) + bias));
    }
}

/* ---- embed ---- */

__device__ __forceinline__ float round_bf16(float x) { return __bfloat162float(__float2bfloat16_rn(x)); }

__device__ __forceinline__ float4 embed_gather(const prefill_embed_args &a, uint32_t token, uint32_t i)
{
    const uint64_t unit = (uint64_t)(token / TILE_ROWS) * a.slices + i / a.slice_k;
    const uint8_t *from = a.table + unit * packed_unit_bytes(WEIGHT_BF16, a.slice_k);
    const uint32_t p = __ldg((const uint32_t *)(from + packed_element_offset(WEIGHT_BF16, a.slice_k, token % TILE_ROWS, i % a.slice_k)));
    const uint32_t q = __ldg((const uint32_t *)(from + packed_element_offset(WEIGHT_BF16, a.slice_k, token % TILE_ROWS, i % a.slice_k + 2)));

    return make_float4(round_bf16(bf16_low(p) * a.scale), round_bf16(bf16_high(p) * a.scale), round_bf16(bf16_low(q) * a.scale), round_bf16(bf16_high(q) * a.scale));
}

/* A soft token's row comes as it is, rounded as a row of the table would be. */
__device__ __forceinline__ float4 embed_soft(const prefill_embed_args &a, uint32_t token, uint32_t i)
{
    const float4 x = ld_l2((const float4 *)(a.soft + (uint64_t)(token - SOFT_TOKEN) * a.hidden + i));

    return make_float4(round_bf16(x.x), round_bf16(x.y), round_bf16(x.z), round_bf16(x.w));
}

__global__ void __launch_bounds__(ROW_WARPS * 32) embed_row_kernel(const __grid_constant__ prefill_embed_args a)
{
    __shared__ float sums[32];
    const uint64_t row = blockIdx.x;
    row_piece h;

    chain_trigger();
    chain_wait();
    const uint4 own = ld_l2((const uint4 *)(a.row + row));   /* token, position, seq */

#pragma unroll
    for (int j = 0; j < ROW_PIECES; j++) {
        const uint32_t i = piece_at(j);

        h.x[j] = i >= a.hidden ? make_float4(0, 0, 0, 0) : own.x >= SOFT_TOKEN ? embed_soft(a, own.x, i) : embed_gather(a, own.x, i);
        if (i < a.hidden) *(float4 *)(a.residual + row * a.hidden + i) = h.x[j];
    }
    for (uint32_t i = threadIdx.x; i < a.turned; i += ROW_WARPS * 32) {
        float s, c;

        sincosf((float)own.y * __ldg(a.inv_freq + i), &s, &c);
        a.rope[row * a.turned + i] = make_float2(c, s);
    }
    row_store_normed(h, row_inverse_rms(h, a.hidden, a.eps, sums), a.w_next, a.bias, a.x + row * a.hidden, a.hidden);
}

/* ---- norm ---- */

__global__ void __launch_bounds__(ROW_WARPS * 32) norm_row_kernel(const __grid_constant__ prefill_norm_args a)
{
    __shared__ float sums[2][32];
    const uint64_t row = (uint64_t)blockIdx.x * a.hidden;
    const float scalar = a.scalar ? __ldg(a.scalar) : 1.0f;
    row_piece out, h;

    chain_trigger();
    chain_wait();
#pragma unroll
    for (int j = 0; j < ROW_PIECES; j++) {
        const uint32_t i = piece_at(j);

        out.x[j] = i < a.hidden ? ld_l2((const float4 *)(a.a + row + i)) : make_float4(0, 0, 0, 0);
        h.x[j] = i < a.hidden ? ld_l2((const float4 *)(a.residual + row + i)) : make_float4(0, 0, 0, 0);
    }
    const float inv_a = row_inverse_rms(out, a.hidden, a.eps, sums[0]);

#pragma unroll
    for (int j = 0; j < ROW_PIECES; j++) {
        const uint32_t i = piece_at(j);

        if (i >= a.hidden) continue;
        const uint2 w = __ldg((const uint2 *)(a.w_post + i));

        h.x[j].x = (h.x[j].x + out.x[j].x * inv_a * (bf16_low(w.x) + a.bias)) * scalar;
        h.x[j].y = (h.x[j].y + out.x[j].y * inv_a * (bf16_high(w.x) + a.bias)) * scalar;
        h.x[j].z = (h.x[j].z + out.x[j].z * inv_a * (bf16_low(w.y) + a.bias)) * scalar;
        h.x[j].w = (h.x[j].w + out.x[j].w * inv_a * (bf16_high(w.y) + a.bias)) * scalar;
        *(float4 *)(a.residual + row + i) = h.x[j];
    }
    row_store_normed(h, row_inverse_rms(h, a.hidden, a.eps, sums[1]), a.w_next, a.bias, a.x + row, a.hidden);
}

/* ---- rotary ---- */

template <int D> struct rotary_shared {
    __nv_bfloat16 norm[2][D];         /* of q and k */
    float2 rope[D / 2];
};

/* K (or V) of the row's position, to its place. */
template <int D>
__device__ __forceinline__ void store_key(const head_vector<D> &v, const prefill_kv &kv, uint32_t page, uint32_t position, uint32_t head, uint64_t offset, uint32_t lane)
{
    const uint64_t at = ((uint64_t)head * PREFILL_PAGE_TOKENS + position % PREFILL_PAGE_TOKENS) * D;
    uint8_t *to = kv.arena + page * kv.page_bytes + offset;

    if (kv.fp8) head_store_key<D, true>(v, to + at, lane);
    else head_store_key<D, false>(v, to + 2 * at, lane);
}

template <int D>
__global__ void __launch_bounds__(ROTARY_WARPS * 32) rotary_kernel(const __grid_constant__ prefill_rotary_args a)
{
    __shared__ __align__(16) rotary_shared<D> sh;
    const uint32_t warp = __shfl_sync(0xffffffffu, threadIdx.x / 32, 0), lane = threadIdx.x % 32;
    const uint64_t row = blockIdx.x;

    chain_trigger();
    if (threadIdx.x < D / 4) ((uint4 *)sh.norm)[threadIdx.x] = __ldg((const uint4 *)(threadIdx.x < D / 8 ? a.q_norm : a.k_norm) + threadIdx.x % (D / 8));
    chain_wait();
    const uint4 own = ld_l2((const uint4 *)(a.row + row));
    const uint32_t position = own.y;
    const uint32_t page = ld_l2(a.kv.pages + (uint64_t)own.z * a.kv.ring_pages + position / PREFILL_PAGE_TOKENS % a.kv.ring_pages);

    for (uint32_t i = threadIdx.x; i < a.turned / 2; i += ROTARY_WARPS * 32)
        ((uint4 *)sh.rope)[i] = ld_l2((const uint4 *)(a.rope + row * a.rope_stride) + i);
    __syncthreads();
    for (uint32_t head = warp; head < a.q_heads + 2 * a.kv.kv_heads; head += ROTARY_WARPS) {
        const uint32_t kv_head = head < a.q_heads ? 0 : (head - a.q_heads) % a.kv.kv_heads;
        const bool query = head < a.q_heads, value = head >= a.q_heads + a.kv.kv_heads;
        head_vector<D> v;

        head_load<D>(v, a.qkv + row * a.qkv_stride + (value && !a.has_v ? head - a.kv.kv_heads : head) * D, lane);
        if (!value || a.has_v_norm) head_norm<D>(v, value ? NULL : sh.norm[query ? 0 : 1], a.eps, lane, a.bias);
        if (!value) head_rotate<D>(v, sh.rope, a.turned, lane);
        if (query) head_store<D>(v, a.q + (row * PREFILL_HEADS + head) * D, a.scale, lane);
        else store_key<D>(v, a.kv, page, position, kv_head, value ? a.kv.v_offset : a.kv.k_offset, lane);
    }
}

/* ---- launching ---- */

int prefill_ops_init(void)
{
    int rc = launch_prepare((const void *)embed_row_kernel, 0);

    if (rc == 0) rc = launch_prepare((const void *)norm_row_kernel, 0);
    if (rc == 0) rc = launch_prepare((const void *)rotary_kernel<256>, 0);
    if (rc == 0) rc = launch_prepare((const void *)rotary_kernel<512>, 0);
    return rc;
}

static bool hidden_fits(uint32_t hidden) { return hidden != 0 && hidden % 128 == 0 && hidden <= HIDDEN_MAX; }

int prefill_embed_launch(const struct prefill_embed_args *args, uint32_t rows, void *stream)
{
    prefill_embed_args a = *args;
    void *params[] = { &a };

    if (!hidden_fits(a.hidden) || rows == 0) return -E_RANGE;
    return launch_first((const void *)embed_row_kernel, rows, ROW_WARPS * 32, 0, params, stream);
}

int prefill_norm_launch(const struct prefill_norm_args *args, uint32_t rows, void *stream)
{
    prefill_norm_args a = *args;
    void *params[] = { &a };

    if (!hidden_fits(a.hidden) || rows == 0) return -E_RANGE;
    return launch_chained((const void *)norm_row_kernel, rows, ROW_WARPS * 32, 0, params, stream);
}

int prefill_rotary_launch(const struct prefill_rotary_args *args, uint32_t head_dim, uint32_t rows, void *stream)
{
    prefill_rotary_args a = *args;
    void *params[] = { &a };

    if (rows == 0 || (head_dim != 256 && head_dim != 512) || a.turned > head_dim / 2 || a.turned % 4) return -E_RANGE;
    return launch_chained(head_dim == 256 ? (const void *)rotary_kernel<256> : (const void *)rotary_kernel<512>, rows, ROTARY_WARPS * 32, 0, params, stream);
}
