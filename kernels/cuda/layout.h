/* kernels/cuda/layout.h - how a weight matrix lies in GPU memory after packing.
 *
 * A matrix [rows, k] is cut into tiles of 16 rows, and k into slices of 3840 or 4096. A unit is one tile of one slice: one
 * contiguous run that one block streams through its shared memory.
 *
 *   matrix = units in the order (tile, slice)
 *   unit   = header, then slots
 *   header = FP8: 128 bytes, 16 row scales f32, 64 bytes unused; FP8_BLOCK: 256 bytes, [rows 0..7, rows 8..15][32] f32, a scale for every 128 of k
 *            of the slice; FP4: as FP8, the factor of each row times 2^14 (packed_fp4_fragment's f16 are 2^-14 of their value); BF16: none
 *   slot   = [8 warps][loads][32 lanes][16 bytes], loads = 5 (slice 3840) or 4 (slice 4096); FP4: see packed_fp4_run
 *
 * The 16 bytes of a lane are its A fragment of mma.m16n8k16 (two of them for FP8), so that no shuffle stands between
 * shared memory and tensor core. k is permuted inside each block of 32: lane t of a quad owns the 8 consecutive elements
 * 8t..8t+7, so that its activations are 16 consecutive bytes of an activation row (row_places.h). Warp w owns the
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
#define UNIT_HEADER_BYTES 128         /* FP8, FP4 */
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
    return format == WEIGHT_FP8_BLOCK ? BLOCK_HEADER_BYTES : format == WEIGHT_FP8 || format == WEIGHT_FP4 ? UNIT_HEADER_BYTES : 0;
}

#define FP4_RUN_CODES 512             /* what a warp loads at once: 64 of k of a tile */
#define FP4_RUN_BYTES (FP4_RUN_CODES + 64)
#define FP4_SLOT_RUNS 32              /* of the first slot; the second has the rest */

LAYOUT_FN uint32_t packed_unit_bytes(uint32_t format, uint32_t slice_k)
{
    if (format == WEIGHT_FP4) return slice_k / 64 * FP4_RUN_BYTES + UNIT_HEADER_BYTES;
    return TILE_ROWS * slice_k * (format == WEIGHT_BF16 ? 2 : 1) + packed_header_bytes(format);
}

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

/* FP4: a run is 64 of k of a tile: 512 bytes of codes, [32 lanes][4 words], then 64 bytes of scales, [8 rows][2 halves of a block of 32][4 bytes]. Lane (g, t)
 * owns the elements 8t..8t+7 of both blocks of 32, of the rows g and g + 8: word j holds elements 4j % 8 .. 4j % 8 + 3 of block j / 2, as packed_fp4_word. The four bytes of scales
 * of (g, t / 2): row g and row g + 8 of block 0, the same of block 1. Warps own whole runs: 8 each of a slice of 4096; of 3840 the first four 8, the others 7 (so that
 * each scheduler has 15). A slot holds up to 4 runs of each warp. */
LAYOUT_FN uint32_t fp4_warp_runs(uint32_t slice_k, uint32_t warp) { return slice_k == 3840 && warp >= 4 ? 7 : 8; }
LAYOUT_FN uint32_t fp4_warp_first(uint32_t slice_k, uint32_t warp) { return slice_k == 3840 && warp >= 4 ? 32 + 7 * (warp - 4) : 8 * warp; }

/* Number of a warp's first run in a slot (0, 1), in memory's order within the slot. */
LAYOUT_FN uint32_t fp4_slot_first(uint32_t slice_k, uint32_t slot, uint32_t warp) { return slot == 1 && slice_k == 3840 && warp >= 4 ? 16 + 3 * (warp - 4) : 4 * warp; }

/* Number of the run, in memory's order, that holds elements 64 i .. 64 i + 63 of the slice. */
LAYOUT_FN uint32_t packed_fp4_run(uint32_t slice_k, uint32_t i)
{
    const uint32_t warp = slice_k == 3840 && i >= 32 ? 4 + (i - 32) / 7 : i / 8, load = i - fp4_warp_first(slice_k, warp);

    return load / 4 * FP4_SLOT_RUNS + fp4_slot_first(slice_k, load / 4, warp) + load % 4;
}

/* A word of FP4 holds the 8 codes of a fragment so that each of its four registers takes a shift and one logic operation. An f16 with the sign of an E2M1 code at bit 15 and
 * its size (exponent, exponent, fraction) at bits 11 to 9 is 2^-14 of its value; four such patterns cannot be laid beside each other in 16 bits by shifts
 * alone, so two registers are the difference of two shifts of the word. As bits, both ways: */
#define FP4_PATTERN 0x8e008e00u

LAYOUT_FN uint32_t packed_fp4_fragment(uint32_t word, uint32_t reg)
{
    const uint32_t shifted = reg == 0 ? word << 6 : reg == 1 ? word << 9 : reg == 2 ? word ^ word << 2 : word ^ (word >> 3 | word << 29);

    return shifted & FP4_PATTERN;
}

/* The inverse: f[r] is register r of the fragment, bits of FP4_PATTERN only. Each line takes what the lines above it made. */
LAYOUT_FN uint32_t packed_fp4_word(const uint32_t f[4])
{
    uint32_t w = f[0] >> 6 | f[1] >> 9;

    w |= (f[3] ^ (w >> 3 | w << 29)) & 0x80008000u;
    w |= ((f[2] ^ w) & 0x80008000u) >> 2;
    w |= (f[2] ^ w << 2) & 0x08000800u;
    w |= ((f[2] ^ w) & 0x02000200u) >> 2;
    w |= ((f[3] ^ w) & 0x08000800u) << 3;
    w |= (f[3] ^ w >> 3) & 0x04000400u;
    w |= ((f[2] ^ w) & 0x04000400u) >> 2;
    w |= ((f[3] ^ w) & 0x02000200u) << 3;
    return w;
}

/* An E2M1 code as element `pair` (0 or 1) of a register, and back. */
LAYOUT_FN uint32_t packed_fp4_bits(uint32_t code, uint32_t pair) { return ((code & 8) << 12 | (code & 7) << 9) << 16 * pair; }
LAYOUT_FN uint32_t packed_fp4_code(uint32_t fragment, uint32_t pair) { return (fragment >> (16 * pair + 12) & 8) | (fragment >> (16 * pair + 9) & 7); }

#endif
