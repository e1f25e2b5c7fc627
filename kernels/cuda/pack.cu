/* kernels/cuda/pack.cu - row-major weights into the packed layout, and back (contract in pack.h). */
#include "pack.h"
#include "device.cuh"
#include "kernels/stored.h"
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
    const uint8_t *group;
};

__device__ __forceinline__ uint8_t to_e4m3(float x) { return (uint8_t)__nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3); }

/* Eight consecutive elements of a row as FP8 bytes. */
__device__ __forceinline__ uint2 pack_fp8_octet(const pack_job &j, uint64_t row, uint32_t k)
{
    const uint64_t at = row * j.k + k;
    uint8_t out[8];

    if (j.src_format != WEIGHT_BF16) return *(const uint2 *)(j.src + at);
    const float scale = j.scale[row * j.scale_stride];
    const uint4 v = *(const uint4 *)(j.src + at * 2);
    const uint32_t word[4] = { v.x, v.y, v.z, v.w };

#pragma unroll
    for (int i = 0; i < 4; i++) out[2 * i] = to_e4m3(bf16_low(word[i]) / scale), out[2 * i + 1] = to_e4m3(bf16_high(word[i]) / scale);
    return make_uint2(out[0] | out[1] << 8 | out[2] << 16 | (uint32_t)out[3] << 24, out[4] | out[5] << 8 | out[6] << 16 | (uint32_t)out[7] << 24);
}

/* A thread handles 8 consecutive k of one row: exactly what one lane owns of it. Not FP4. */
__global__ void pack_kernel(pack_job j)
{
    const uint32_t octets = j.k / 8, rows_per_tile = j.half == PACK_WHOLE ? 16 : 8, slices = j.k / j.slice_k;
    const uint64_t index = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    const uint64_t row = index / octets;                       /* of the source */
    const uint32_t k = (uint32_t)(index % octets) * 8, tile = (uint32_t)(row / rows_per_tile);

    if (tile >= j.tiles) return;
    const uint32_t in_tile = (uint32_t)(row % rows_per_tile) + (j.half == 1 ? 8 : 0), in_slice = k % j.slice_k;
    uint8_t *unit = j.dst + ((uint64_t)(j.tile_first + tile) * slices + k / j.slice_k) * packed_unit_bytes(j.dst_format, j.slice_k);

    if (j.dst_format == WEIGHT_BF16) {
        const uint4 v = *(const uint4 *)(j.src + (row * j.k + k) * 2);

        *(uint32_t *)(unit + packed_element_offset(WEIGHT_BF16, j.slice_k, in_tile, in_slice)) = v.x;
        *(uint32_t *)(unit + packed_element_offset(WEIGHT_BF16, j.slice_k, in_tile, in_slice + 2)) = v.y;
        *(uint32_t *)(unit + packed_element_offset(WEIGHT_BF16, j.slice_k, in_tile, in_slice + 4)) = v.z;
        *(uint32_t *)(unit + packed_element_offset(WEIGHT_BF16, j.slice_k, in_tile, in_slice + 6)) = v.w;
        return;
    }
    const uint2 v = pack_fp8_octet(j, row, k);

    *(uint32_t *)(unit + packed_element_offset(j.dst_format, j.slice_k, in_tile, in_slice)) = v.x;
    *(uint32_t *)(unit + packed_element_offset(j.dst_format, j.slice_k, in_tile, in_slice + 4)) = v.y;
    if (j.dst_format == WEIGHT_FP8 && in_slice == 0) ((float *)unit)[in_tile] = j.scale[row * j.scale_stride];
    if (j.dst_format == WEIGHT_FP8_BLOCK && in_tile % 8 == 0 && in_slice % WEIGHT_BLOCK == 0)
        ((float *)unit)[in_tile / 8 * BLOCK_SCALES_MAX + in_slice / WEIGHT_BLOCK] = j.scale[row / WEIGHT_BLOCK * j.scale_stride + k / WEIGHT_BLOCK];
}

#define FP4_FACTOR 16384.0f           /* the f16 that the kernels make of a word are 2^-14 of their value */

/* 8 codes of a row as a number, element 0 lowest. */
__device__ __forceinline__ uint32_t fp4_octet(const pack_job &j, uint64_t row, uint32_t k) { return *(const uint32_t *)(j.src + (row * j.k + k) / 2); }

/* A thread handles 8 consecutive k of rows g and g + 8 of a tile: two words. Gate and up come one after the other and keep each other's codes. */
__global__ void pack_fp4_kernel(pack_job j)
{
    const uint32_t octets = j.k / 8, slices = j.k / j.slice_k;
    const uint64_t index = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    const uint32_t k = (uint32_t)(index % octets) * 8, tile = (uint32_t)(index / octets / 8), g = (uint32_t)(index / octets % 8), in_slice = k % j.slice_k;

    if (tile >= j.tiles) return;
    uint8_t *unit = j.dst + ((uint64_t)(j.tile_first + tile) * slices + k / j.slice_k) * packed_unit_bytes(WEIGHT_FP4, j.slice_k);
    uint8_t *run = unit + UNIT_HEADER_BYTES + packed_fp4_run(j.slice_k, in_slice / 64) * FP4_RUN_BYTES;
    const uint32_t block = in_slice % 64 / 32, t = in_slice % 32 / 8;
    uint32_t *word = (uint32_t *)(run + (g * 4 + t) * 16 + block * 8);

    for (uint32_t high = 0; high < 2; high++) {
        if (j.half != PACK_WHOLE && j.half != high) continue;
        const uint64_t row = j.half == PACK_WHOLE ? (uint64_t)tile * 16 + high * 8 + g : (uint64_t)tile * 8 + g;
        const uint32_t codes = fp4_octet(j, row, k);

        for (uint32_t i = 0; i < 2; i++) {                     /* elements 4i .. 4i + 3 */
            uint32_t f[4];

            for (uint32_t r = 0; r < 4; r++) {                 /* registers 0, 2: row g; 1, 3: row g + 8 */
                const uint32_t own = codes >> (16 * i + r / 2 * 8);

                f[r] = r % 2 == high ? packed_fp4_bits(own & 15, 0) | packed_fp4_bits(own >> 4 & 15, 1) : packed_fp4_fragment(word[i], r);
            }
            word[i] = packed_fp4_word(f);
        }
        if (t % 2 == 0) run[FP4_RUN_CODES + g * 8 + t / 2 * 4 + block * 2 + high] = j.group[(row * j.k + k) / WEIGHT_GROUP];
        if (in_slice == 0) ((float *)unit)[high * 8 + g] = FP4_FACTOR * (j.scale[0] < 0.0f ? 1.0f / -j.scale[0] : j.scale[0]);
    }
}

__device__ __forceinline__ float from_e4m3(uint8_t code)
{
    const __half_raw h = __nv_cvt_fp8_to_halfraw(code, __NV_E4M3);

    return __half2float(*(const __half *)&h);
}

__device__ __forceinline__ float unpack_fp4(const uint8_t *unit, uint32_t slice_k, uint32_t row, uint32_t k)
{
    const uint8_t *run = unit + UNIT_HEADER_BYTES + packed_fp4_run(slice_k, k / 64) * FP4_RUN_BYTES;
    const uint32_t block = k % 64 / 32, t = k % 32 / 8, e = k % 8, g = row % 8, high = row / 8;
    const uint32_t word = ((const uint32_t *)(run + (g * 4 + t) * 16))[block * 2 + e / 4];
    const uint32_t code = packed_fp4_code(packed_fp4_fragment(word, e % 4 / 2 * 2 + high), e % 2);

    return stored_from_e2m1(code) * from_e4m3(run[FP4_RUN_CODES + g * 8 + t / 2 * 4 + block * 2 + high]) * (((const float *)unit)[row] / FP4_FACTOR);
}

__device__ __forceinline__ float unpack_one(const packed_matrix &m, uint32_t row, uint32_t k)
{
    const uint32_t in_tile = row % TILE_ROWS, in_slice = k % m.slice_k;
    const uint8_t *unit = m.data + ((uint64_t)(row / TILE_ROWS) * (m.k / m.slice_k) + k / m.slice_k) * packed_unit_bytes(m.format, m.slice_k);
    const uint8_t *at = unit + packed_element_offset(m.format, m.slice_k, in_tile, in_slice);

    if (m.format == WEIGHT_FP4) return unpack_fp4(unit, m.slice_k, in_tile, in_slice);
    if (m.format == WEIGHT_BF16) return __bfloat162float(*(const __nv_bfloat16 *)at);
    if (m.format == WEIGHT_FP8) return from_e4m3(*at) * ((const float *)unit)[in_tile];
    return from_e4m3(*at) * ((const float *)unit)[in_tile / 8 * BLOCK_SCALES_MAX + in_slice / WEIGHT_BLOCK];
}

__global__ void unpack_kernel(packed_matrix m, float *out)
{
    const uint64_t index = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x, row = index / m.k;

    if (row < m.rows) out[index] = unpack_one(m, (uint32_t)row, (uint32_t)(index % m.k));
}

/* A block takes a tile, a warp a row of it. */
__global__ void __launch_bounds__(TILE_ROWS * 32) top_kernel(packed_matrix m, const __nv_bfloat16 *w, float bias, bool pairs, float *top)
{
    __shared__ float lengths[TILE_ROWS];
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float sum = 0.0f;

    for (uint32_t k = lane; k < m.k; k += 32) {
        const float x = unpack_one(m, blockIdx.x * TILE_ROWS + warp, k) * (__bfloat162float(w[k]) + bias);

        sum += x * x;
    }
    sum = warp_sum(sum);
    if (lane == 0) lengths[warp] = sqrtf(sum);
    __syncthreads();
    if (threadIdx.x >= TILE_ROWS / 2) return;
    const float low = lengths[lane], high = lengths[lane + 8];
    atomicMax((unsigned int *)top, __float_as_uint(pairs ? low * high : fmaxf(low, high)));      /* of numbers that are not below 0 the bits are in order; a NaN stands above all */
}

int pack_launch(const struct packed_matrix *to, const struct pack_source *from, float *scratch, void *stream)
{
    const uint32_t rows_per_tile = from->half == PACK_WHOLE ? 16 : 8;
    pack_job j = { (const uint8_t *)from->data, from->scale, from->scale_stride, from->format, to->format, from->half,
                   from->tile_first, from->rows / rows_per_tile, to->k, to->slice_k, (uint8_t *)to->data, from->group };

    if (from->half > PACK_WHOLE || from->rows % rows_per_tile || from->tile_first + j.tiles > to->rows / TILE_ROWS) return -E_RANGE;
    if (packed_slice_k(to->k) != to->slice_k && (to->slice_k != 1024 || to->k % 1024)) return -E_RANGE;   /* 1024: draft_layout.h */
    if (to->slice_k == 0) return -E_RANGE;
    if (from->format != to->format && !(from->format == WEIGHT_BF16 && to->format == WEIGHT_FP8)) return -E_UNSUPPORTED;
    if (from->format != WEIGHT_BF16 && from->scale == NULL) return -E_UNSUPPORTED;
    if (from->format == WEIGHT_FP4 && from->group == NULL) return -E_UNSUPPORTED;
    if (to->format == WEIGHT_FP8 && from->format == WEIGHT_BF16) {
        if (scratch == NULL) return -E_RANGE;
        row_scale_kernel<<<(from->rows + 7) / 8, 256, 0, (cudaStream_t)stream>>>((const __nv_bfloat16 *)from->data, scratch, from->rows, to->k);
        j.scale = scratch;
        j.scale_stride = 1;
    }
    const uint64_t threads = (uint64_t)(from->format == WEIGHT_FP4 ? j.tiles * 8 : from->rows) * (to->k / 8);

    if (from->format == WEIGHT_FP4) pack_fp4_kernel<<<(uint32_t)((threads + 255) / 256), 256, 0, (cudaStream_t)stream>>>(j);
    else pack_kernel<<<(uint32_t)((threads + 255) / 256), 256, 0, (cudaStream_t)stream>>>(j);
    return launch_check(cudaGetLastError(), "pack");
}

int unpack_launch(const struct packed_matrix *from, float *out, void *stream)
{
    unpack_kernel<<<(uint32_t)(((uint64_t)from->rows * from->k + 255) / 256), 256, 0, (cudaStream_t)stream>>>(*from, out);
    return launch_check(cudaGetLastError(), "unpack");
}

int pack_top_launch(const struct packed_matrix *m, const void *w, float bias, enum pack_top what, float *top, void *stream)
{
    if (m->rows == 0 || m->rows % TILE_ROWS || m->slice_k == 0) return -E_RANGE;
    top_kernel<<<m->rows / TILE_ROWS, TILE_ROWS * 32, 0, (cudaStream_t)stream>>>(*m, (const __nv_bfloat16 *)w, bias, what == PACK_TOP_PAIRS, top);
    return launch_check(cudaGetLastError(), "rows' lengths");
}

/* ---- quantising, for random weights and tests ---- */

/* One block of 128 threads per 128 x 128: thread i has column i. */
__global__ void quantise_block_kernel(const __nv_bfloat16 *w, uint32_t k, uint8_t *codes, float *scale)
{
    __shared__ float tops[WEIGHT_BLOCK / 32];
    const uint64_t at = (uint64_t)blockIdx.y * WEIGHT_BLOCK * k + blockIdx.x * WEIGHT_BLOCK + threadIdx.x;
    float top = 0.0f;

    for (uint32_t r = 0; r < WEIGHT_BLOCK; r++) top = fmaxf(top, fabsf(__bfloat162float(w[at + (uint64_t)r * k])));
    for (int d = 16; d; d >>= 1) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, d));
    if (threadIdx.x % 32 == 0) tops[threadIdx.x / 32] = top;
    __syncthreads();
    top = fmaxf(fmaxf(tops[0], tops[1]), fmaxf(tops[2], tops[3]));
    const float own = top > 0.0f ? top / FP8_LARGEST : 1.0f;
    if (threadIdx.x == 0) scale[blockIdx.y * (k / WEIGHT_BLOCK) + blockIdx.x] = own;
    for (uint32_t r = 0; r < WEIGHT_BLOCK; r++) codes[at + (uint64_t)r * k] = to_e4m3(__bfloat162float(w[at + (uint64_t)r * k]) / own);
}

/* The nearest of 0, 0.5, 1, 1.5, 2, 3, 4, 6; between two the one with the even code. */
__device__ __forceinline__ uint32_t to_e2m1(float x)
{
    const float a = fabsf(x);
    const uint32_t size = a <= 0.25f ? 0 : a < 0.75f ? 1 : a <= 1.25f ? 2 : a < 1.75f ? 3 : a <= 2.5f ? 4 : a < 3.5f ? 5 : a <= 5.0f ? 6 : 7;

    return size | (x < 0.0f ? 8u : 0u);
}

/* A thread per group of 16. */
__global__ void quantise_fp4_kernel(const __nv_bfloat16 *w, uint64_t groups, uint8_t *codes, uint8_t *group, float factor)
{
    const uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    float top = 0.0f;

    if (i >= groups) return;
    for (int e = 0; e < WEIGHT_GROUP; e++) top = fmaxf(top, fabsf(__bfloat162float(w[i * WEIGHT_GROUP + e])));
    group[i] = to_e4m3(top / 6.0f / factor);
    const float own = from_e4m3(group[i]) * factor;
    for (int e = 0; e < WEIGHT_GROUP / 2; e++) {
        const float low = __bfloat162float(w[i * WEIGHT_GROUP + 2 * e]), high = __bfloat162float(w[i * WEIGHT_GROUP + 2 * e + 1]);

        codes[i * WEIGHT_GROUP / 2 + e] = own > 0.0f ? (uint8_t)(to_e2m1(low / own) | to_e2m1(high / own) << 4) : 0;
    }
}

int quantise_launch(uint32_t format, const void *bf16, uint32_t rows, uint32_t k, uint8_t *codes, float *scale, float factor, void *stream)
{
    const uint64_t groups = (uint64_t)rows * k / WEIGHT_GROUP;

    if (k % WEIGHT_BLOCK || rows == 0) return -E_RANGE;
    if (format == WEIGHT_FP8_BLOCK) {
        if (rows % WEIGHT_BLOCK) return -E_RANGE;
        quantise_block_kernel<<<dim3(k / WEIGHT_BLOCK, rows / WEIGHT_BLOCK), WEIGHT_BLOCK, 0, (cudaStream_t)stream>>>((const __nv_bfloat16 *)bf16, k, codes, scale);
    } else if (format == WEIGHT_FP4) {
        quantise_fp4_kernel<<<(uint32_t)((groups + 255) / 256), 256, 0, (cudaStream_t)stream>>>((const __nv_bfloat16 *)bf16, groups, codes, codes + (uint64_t)rows * k / 2, factor);
    } else {
        return -E_UNSUPPORTED;
    }
    return launch_check(cudaGetLastError(), "quantise");
}

/* ---- random values ---- */

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
