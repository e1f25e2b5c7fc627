/* kernels/cuda/layout.h - how a weight matrix lies in GPU memory after packing.
 *
 * A matrix [rows, k] is cut into tiles of 16 rows, and k into slices of 3840 or 4096. A unit is one tile of one slice: one
 * contiguous run that one block streams through its shared memory.
 *
 *   matrix = units in the order (tile, slice)
 *   unit   = header, then slots
 *   header = FP8: 128 bytes, 16 row scales f32, 64 bytes unused; FP8_BLOCK: 256 bytes, [rows 0..7, rows 8..15][32] f32, a scale for every 128 of k
 *            of the slice; BF16: none
 *   slot   = [8 warps][loads][32 lanes][16 bytes], loads = 5 (slice 3840) or 4 (slice 4096)
 *
 * FP4 has units of 4 tiles, see packed_fp4_word.
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

enum weight_format {
    WEIGHT_FP8 = 1,                   /* E4M3 with an f32 scale per row */
    WEIGHT_BF16 = 2,
    WEIGHT_F32 = 3,                   /* plain.h only */
    WEIGHT_FP8_BLOCK = 4,             /* E4M3 with an f32 scale per 128 x 128 */
    WEIGHT_FP4 = 5,                   /* E2M1 with an E4M3 scale per 16 of a row and an f32 factor per row */
    WEIGHT_FORMATS
};

#define TILE_ROWS 16
#define CONSUMER_WARPS 8
#define UNIT_HEADER_BYTES 128         /* FP8 */
#define BLOCK_HEADER_BYTES 256        /* FP8_BLOCK */
#define WEIGHT_BLOCK 128              /* rows and columns of a scale of FP8_BLOCK */
#define WEIGHT_GROUP 16               /* columns of a scale of FP4 */
#define BLOCK_SCALES_MAX 32           /* along a slice */

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

LAYOUT_FN uint32_t packed_header_bytes(uint32_t format)
{
    return format == WEIGHT_FP8_BLOCK ? BLOCK_HEADER_BYTES : format == WEIGHT_FP8 ? UNIT_HEADER_BYTES : 0;
}

#define FP4_TILES 4                   /* of a unit: what the tensor cores take at once */
#define FP4_HEADER_BYTES (FP4_TILES * TILE_ROWS * 4)
#define FP4_RUN_K 64
#define FP4_RUN_CODES 512             /* 64 of k of a tile */
#define FP4_RUN_BYTES (FP4_RUN_CODES + 64)

/* FP4: of a quarter of a unit, a tile's share. */
LAYOUT_FN uint32_t packed_unit_bytes(uint32_t format, uint32_t slice_k)
{
    if (format == WEIGHT_FP4) return slice_k / FP4_RUN_K * FP4_RUN_BYTES + FP4_HEADER_BYTES / FP4_TILES;
    return TILE_ROWS * slice_k * (format == WEIGHT_BF16 ? 2 : 1) + packed_header_bytes(format);
}

/* Rows that may not be cut: a matrix has a multiple of them. */
LAYOUT_FN uint32_t packed_rows(uint32_t format) { return format == WEIGHT_FP4 ? FP4_TILES * TILE_ROWS : TILE_ROWS; }

LAYOUT_FN uint64_t packed_bytes(uint32_t format, uint32_t rows, uint32_t k)
{
    const uint32_t slice = packed_slice_k(k);

    return (uint64_t)(rows / TILE_ROWS) * (k / slice) * packed_unit_bytes(format, slice);
}

/* Byte offset inside its unit of element (row in tile, k in slice). Not FP4. */
LAYOUT_FN uint32_t packed_element_offset(uint32_t format, uint32_t slice_k, uint32_t row, uint32_t k)
{
    const uint32_t per_warp = slice_k / CONSUMER_WARPS, loads = slice_k == 3840 ? 5 : 4;
    const uint32_t warp = k / per_warp, in_warp = k % per_warp, block = in_warp / 32;
    const uint32_t t = in_warp % 32 / 8, e = in_warp % 8;          /* lane of the quad, element of the lane */
    const uint32_t lane = (row % 8) * 4 + t, high = row / 8;       /* rows 0..7 and 8..15 share a lane */
    uint32_t load, byte;

    if (format != WEIGHT_BF16) {
        load = block;
        byte = (e / 4 * 2 + high) * 4 + e % 4;
    } else {
        load = block * 2 + e / 4;
        byte = ((e % 4 / 2) * 2 + high) * 4 + e % 2 * 2;
    }
    return packed_header_bytes(format)
         + (((load / loads * CONSUMER_WARPS + warp) * loads + load % loads) * 32 + lane) * 16 + byte;
}

/* FP4: a unit is 64 rows of a slice: a header, the factor of each row f32 times 2^14 (an E5M2 made of a code's bits is 2^-14 of its value), then the runs of 64 of k in their order, of each
 * run the 4 tiles'. A tile's run is 512 bytes of codes, 128 words, then 64 bytes of scales, [8 rows][2 groups of a block of 32][4 bytes]: (row g, row g + 8) of block 0, the same of
 * block 1. Word (g, h, t, block) holds elements 4t..4t+3 of group h of a block of 32, of the rows g and g + 8, and lies so that two readers have no bank conflicts: one
 * takes both blocks of (g, h, t), 8 bytes a lane (rowmm_fp4.cu), one those of (g, h, t) and (g, h, t + 1), 16 bytes (prefill_mm.cu). */
LAYOUT_FN uint32_t packed_fp4_word(uint32_t g, uint32_t h, uint32_t t, uint32_t block) { return g * 16 + (h ^ (g >> 1 & 1)) * 8 + t * 2 + block; }

/* Bits of an E2M1 code (sign, exponent, exponent, fraction) in its word: element 0..3 of the four; high: row g + 8. Row g's are the bytes of E5M2 numbers in place, (word & 0x8e8e8e8e); row
 * g + 8's sizes three bits higher, their signs at the other end of the byte. As halves, elements 0 and 1 are high bytes, 2 and 3 low ones. */
LAYOUT_FN uint32_t packed_fp4_bits(uint32_t code, uint32_t element, uint32_t high)
{
    const uint32_t size = code & 7, sign = code >> 3 & 1;

    return (high ? size << 4 | sign : sign << 7 | size << 1) << (element < 2 ? 8 + 16 * element : 16 * (element - 2));
}

/* The inverse. */
LAYOUT_FN uint32_t packed_fp4_code(uint32_t word, uint32_t element, uint32_t high)
{
    const uint32_t bits = word >> (element < 2 ? 8 + 16 * element : 16 * (element - 2)) & 0xff;

    return high ? (bits << 3 & 8) | (bits >> 4 & 7) : (bits >> 4 & 8) | (bits >> 1 & 7);
}

/* Byte offset of a tile's run in its unit. */
LAYOUT_FN uint32_t packed_fp4_run(uint32_t tile, uint32_t k_in_slice) { return FP4_HEADER_BYTES + (k_in_slice / FP4_RUN_K * FP4_TILES + tile % FP4_TILES) * FP4_RUN_BYTES; }

/* Byte offset of the unit in its matrix. */
LAYOUT_FN uint64_t packed_fp4_unit(uint32_t tile, uint32_t slices, uint32_t slice, uint32_t slice_k)
{
    return ((uint64_t)(tile / FP4_TILES) * slices + slice) * (FP4_TILES * packed_unit_bytes(WEIGHT_FP4, slice_k));
}

#endif
