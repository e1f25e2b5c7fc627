/* kernels/cuda/layout.h - how a weight matrix lies in GPU memory after packing.
 *
 * A matrix [rows, k] is cut into tiles of 16 rows, and k into slices of 3840 or 4096. A unit is one tile of one slice: one
 * contiguous run that one block streams through its shared memory.
 *
 *   matrix = units in the order (tile, slice)
 *   unit   = [128 bytes: 16 row scales f32, 64 bytes unused; FP8 only] then slots
 *   slot   = [8 warps][loads][32 lanes][16 bytes], loads = 5 (slice 3840) or 4 (slice 4096)
 *
 * The 16 bytes of a lane are its A fragment of mma.m16n8k16 (two of them for FP8), so that no shuffle stands between
 * shared memory and tensor core. k is permuted inside each block of 32: lane t of a quad owns the 8 consecutive elements
 * 8t..8t+7, so that its activations are 16 consecutive bytes of the plain activation row. Warp w owns the
 * elements [w * slice / 8, (w + 1) * slice / 8). Scales ride in the stream: an ordinary load would wait behind it. */
#ifndef SLUICE_CUDA_LAYOUT_H
#define SLUICE_CUDA_LAYOUT_H

#include <stdint.h>

#if defined(__CUDACC__)
#define LAYOUT_FN static __host__ __device__ inline
#else
#define LAYOUT_FN static inline
#endif

enum weight_format { WEIGHT_FP8 = 1, WEIGHT_BF16 = 2, WEIGHT_F32 = 3 };   /* E4M3 with an f32 scale per row; plain bf16; f32 (plain.h only) */

#define TILE_ROWS 16
#define CONSUMER_WARPS 8
#define UNIT_HEADER_BYTES 128         /* FP8 only */

struct packed_matrix {
    const uint8_t *data;              /* 128-byte aligned, packed_bytes() long; borrowed from the weight arena */
    uint32_t rows;                    /* multiple of 16 */
    uint32_t k;                       /* slices * slice_k */
    uint32_t slice_k;                 /* 3840 or 4096 */
    uint32_t format;                  /* enum weight_format */
};

/* The slice that divides k, or 0: not packable. */
LAYOUT_FN uint32_t packed_slice_k(uint32_t k)
{
    return k == 0 ? 0 : k % 3840 == 0 ? 3840 : k % 4096 == 0 ? 4096 : 0;
}

LAYOUT_FN uint32_t packed_slot_bytes(uint32_t slice_k) { return slice_k == 3840 ? 20480 : 16384; }

LAYOUT_FN uint32_t packed_unit_bytes(uint32_t format, uint32_t slice_k)
{
    return format == WEIGHT_FP8 ? TILE_ROWS * slice_k + UNIT_HEADER_BYTES : TILE_ROWS * slice_k * 2;
}

LAYOUT_FN uint64_t packed_bytes(uint32_t format, uint32_t rows, uint32_t k)
{
    const uint32_t slice = packed_slice_k(k);

    return (uint64_t)(rows / TILE_ROWS) * (k / slice) * packed_unit_bytes(format, slice);
}

/* Byte offset inside its unit of element (row in tile, k in slice). */
LAYOUT_FN uint32_t packed_element_offset(uint32_t format, uint32_t slice_k, uint32_t row, uint32_t k)
{
    const uint32_t per_warp = slice_k / CONSUMER_WARPS, loads = slice_k == 3840 ? 5 : 4;
    const uint32_t warp = k / per_warp, in_warp = k % per_warp, block = in_warp / 32;
    const uint32_t t = in_warp % 32 / 8, e = in_warp % 8;          /* lane of the quad, element of the lane */
    const uint32_t lane = (row % 8) * 4 + t, high = row / 8;       /* rows 0..7 and 8..15 share a lane */
    uint32_t load, byte;

    if (format == WEIGHT_FP8) {
        load = block;
        byte = (e / 4 * 2 + high) * 4 + e % 4;
    } else {
        load = block * 2 + e / 4;
        byte = ((e % 4 / 2) * 2 + high) * 4 + e % 2 * 2;
    }
    return (format == WEIGHT_FP8 ? UNIT_HEADER_BYTES : 0)
         + (((load / loads * CONSUMER_WARPS + warp) * loads + load % loads) * 32 + lane) * 16 + byte;
}

#endif
