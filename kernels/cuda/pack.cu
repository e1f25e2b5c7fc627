/* kernels/cuda/pack.cu - row-major weights into the packed layout, and back (contract in pack.h). */
#include "pack.h"
#include "device.cuh"
#include "launch.h"
#include "shm/error.h"
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#define FP8_LARGEST 448.0f

/* One warp per row. A row of zeros gets scale 1, so that nothing divides by it. */
__global__ void row_scale_kernel(const __nv_bfloat16 *w, float *scale, uint32_t rows, uint32_t k)
{
    const uint32_t row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
    float top = 0.0f;

    if (row >= rows) return;
    for (uint32_t i = lane * 8; i < k; i += 256) {
        const uint4 v = *(const uint4 *)(w + (uint64_t)row * k + i);
        const uint32_t word[4] = { v.x, v.y, v.z, v.w };

        for (int j = 0; j < 4; j++) top = fmaxf(top, fmaxf(fabsf(bf16_low(word[j])), fabsf(bf16_high(word[j]))));
    }
    for (int d = 16; d; d >>= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, d));
    if (lane == 0) scale[row] = top > 0.0f ? top / FP8_LARGEST : 1.0f;
}

struct pack_job {
    const uint8_t *src;
    const float *scale;
    uint32_t scale_stride, src_format, dst_format, half, tile_first, tiles, k, slice_k;
    uint8_t *dst;
};

__device__ __forceinline__ uint8_t to_e4m3(float x) { return (uint8_t)__nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3); }

/* Eight consecutive elements of a row as FP8 bytes. */
__device__ __forceinline__ uint2 pack_fp8_octet(const pack_job &j, uint64_t row, uint32_t k)
{
    const uint64_t at = row * j.k + k;
    uint8_t out[8];

    if (j.src_format == WEIGHT_FP8) return *(const uint2 *)(j.src + at);
    const float scale = j.scale[row * j.scale_stride];
    const uint4 v = *(const uint4 *)(j.src + at * 2);
    const uint32_t word[4] = { v.x, v.y, v.z, v.w };

#pragma unroll
    for (int i = 0; i < 4; i++) out[2 * i] = to_e4m3(bf16_low(word[i]) / scale), out[2 * i + 1] = to_e4m3(bf16_high(word[i]) / scale);
    return make_uint2(out[0] | out[1] << 8 | out[2] << 16 | (uint32_t)out[3] << 24, out[4] | out[5] << 8 | out[6] << 16 | (uint32_t)out[7] << 24);
}

/* A thread handles 8 consecutive k of one row: exactly what one lane owns of it. */
__global__ void pack_kernel(pack_job j)
{
    const uint32_t octets = j.k / 8, rows_per_tile = j.half == PACK_WHOLE ? 16 : 8, slices = j.k / j.slice_k;
    const uint64_t index = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    const uint64_t row = index / octets;                       /* of the source */
    const uint32_t k = (uint32_t)(index % octets) * 8, tile = (uint32_t)(row / rows_per_tile);

    if (tile >= j.tiles) return;
    const uint32_t in_tile = (uint32_t)(row % rows_per_tile) + (j.half == 1 ? 8 : 0), in_slice = k % j.slice_k;
    uint8_t *unit = j.dst + ((uint64_t)(j.tile_first + tile) * slices + k / j.slice_k) * packed_unit_bytes(j.dst_format, j.slice_k);

    if (j.dst_format == WEIGHT_FP8) {
        const uint2 v = pack_fp8_octet(j, row, k);

        *(uint32_t *)(unit + packed_element_offset(WEIGHT_FP8, j.slice_k, in_tile, in_slice)) = v.x;
        *(uint32_t *)(unit + packed_element_offset(WEIGHT_FP8, j.slice_k, in_tile, in_slice + 4)) = v.y;
        if (in_slice == 0) ((float *)unit)[in_tile] = j.scale[row * j.scale_stride];
    } else {
        const uint4 v = *(const uint4 *)(j.src + (row * j.k + k) * 2);

        *(uint32_t *)(unit + packed_element_offset(WEIGHT_BF16, j.slice_k, in_tile, in_slice)) = v.x;
        *(uint32_t *)(unit + packed_element_offset(WEIGHT_BF16, j.slice_k, in_tile, in_slice + 2)) = v.y;
        *(uint32_t *)(unit + packed_element_offset(WEIGHT_BF16, j.slice_k, in_tile, in_slice + 4)) = v.z;
        *(uint32_t *)(unit + packed_element_offset(WEIGHT_BF16, j.slice_k, in_tile, in_slice + 6)) = v.w;
    }
}

__global__ void unpack_kernel(packed_matrix m, float *out)
{
    const uint64_t index = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x, row = index / m.k;
    const uint32_t k = (uint32_t)(index % m.k), in_tile = (uint32_t)(row % TILE_ROWS), in_slice = k % m.slice_k;

    if (row >= m.rows) return;
    const uint8_t *unit = m.data + ((row / TILE_ROWS) * (m.k / m.slice_k) + k / m.slice_k) * packed_unit_bytes(m.format, m.slice_k);
    const uint8_t *at = unit + packed_element_offset(m.format, m.slice_k, in_tile, in_slice);

    if (m.format == WEIGHT_FP8) {
        const __half_raw h = __nv_cvt_fp8_to_halfraw(*at, __NV_E4M3);

        out[index] = __half2float(*(const __half *)&h) * ((const float *)unit)[in_tile];
    } else {
        out[index] = __bfloat162float(*(const __nv_bfloat16 *)at);
    }
}

int pack_launch(const struct packed_matrix *to, const struct pack_source *from, float *scratch, void *stream)
{
    const uint32_t rows_per_tile = from->half == PACK_WHOLE ? 16 : 8;
    pack_job j = { (const uint8_t *)from->data, from->scale, from->scale_stride, from->format, to->format, from->half,
                   from->tile_first, from->rows / rows_per_tile, to->k, to->slice_k, (uint8_t *)to->data };

    if (from->half > PACK_WHOLE || from->rows % rows_per_tile || from->tile_first + j.tiles > to->rows / TILE_ROWS) return -E_RANGE;
    if (packed_slice_k(to->k) != to->slice_k || to->slice_k == 0) return -E_RANGE;
    if (from->format == WEIGHT_FP8 && (to->format != WEIGHT_FP8 || from->scale == NULL)) return -E_UNSUPPORTED;
    if (to->format == WEIGHT_FP8 && from->format == WEIGHT_BF16) {
        if (scratch == NULL) return -E_RANGE;
        row_scale_kernel<<<(from->rows + 7) / 8, 256, 0, (cudaStream_t)stream>>>((const __nv_bfloat16 *)from->data, scratch, from->rows, to->k);
        j.scale = scratch;
        j.scale_stride = 1;
    }
    const uint64_t threads = (uint64_t)from->rows * (to->k / 8);

    pack_kernel<<<(uint32_t)((threads + 255) / 256), 256, 0, (cudaStream_t)stream>>>(j);
    return launch_check(cudaGetLastError(), "pack");
}

int unpack_launch(const struct packed_matrix *from, float *out, void *stream)
{
    unpack_kernel<<<(uint32_t)(((uint64_t)from->rows * from->k + 255) / 256), 256, 0, (cudaStream_t)stream>>>(*from, out);
    return launch_check(cudaGetLastError(), "unpack");
}

__device__ __forceinline__ uint64_t mix(uint64_t x)
{
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

__global__ void fill_normal_kernel(__nv_bfloat162 *out, uint64_t pairs, float deviation, uint64_t seed)
{
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < pairs; i += (uint64_t)gridDim.x * blockDim.x) {
        const uint64_t bits = mix(seed * 0x100000001b3ull + i);
        const float u = ((float)(uint32_t)bits + 1.0f) * 2.3283064e-10f, angle = (float)(uint32_t)(bits >> 32) * 1.4629180e-9f;
        const float r = deviation * sqrtf(-2.0f * __logf(fminf(u, 1.0f)));

        out[i] = __floats2bfloat162_rn(r * __cosf(angle), r * __sinf(angle));
    }
}

__global__ void fill_constant_kernel(__nv_bfloat16 *out, uint64_t n, float value)
{
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (uint64_t)gridDim.x * blockDim.x) out[i] = __float2bfloat16_rn(value);
}

int fill_normal_launch(void *out_bf16, uint64_t n, float deviation, uint64_t seed, void *stream)
{
    fill_normal_kernel<<<2048, 256, 0, (cudaStream_t)stream>>>((__nv_bfloat162 *)out_bf16, n / 2, deviation, seed);
    return launch_check(cudaGetLastError(), "fill");
}

int fill_constant_launch(void *out_bf16, uint64_t n, float value, void *stream)
{
    fill_constant_kernel<<<256, 256, 0, (cudaStream_t)stream>>>((__nv_bfloat16 *)out_bf16, n, value);
    return launch_check(cudaGetLastError(), "fill");
}

/* For benches and tests: the same on the default stream, finished on return. */
extern "C" int cuda_fill_normal(void *out_bf16, uint64_t n, float deviation, uint64_t seed)
{
    const int rc = fill_normal_launch(out_bf16, n, deviation, seed, NULL);

    return rc ? rc : launch_check(cudaDeviceSynchronize(), "fill");
}
