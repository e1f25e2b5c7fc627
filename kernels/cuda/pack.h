/* pack: a plain row-major matrix into the packed layout (layout.h), on the device, once at load.
 *   src BF16 [rows, k] to FP8 (quantised here: scale = rowmax / 448, E4M3 round to nearest even) or BF16 (moved);
 *   src FP8 E4M3 [rows, k] with f32 scales (one per row, or one for all) to FP8 (moved);
 *   src FP8 E4M3 with f32 scales [rows / 128, k / 128] to FP8_BLOCK (moved);
 *   src FP4 E2M1 [rows, k / 2], E4M3 group scales [rows, k / 16] and the matrix's factor to FP4 (moved).
 * A checkpoint's codes and scales are never changed on the way.
 * Several sources can share one packed matrix: q, k and v one after the other (tile_first), gate and up interleaved by 8 rows (half).
 * unpack writes the values back as f32 row-major: for tests and for comparing with other programs. top finds the longest row. */
#ifndef SLUICE_CUDA_PACK_H
#define SLUICE_CUDA_PACK_H

#include "layout.h"

#define PACK_WHOLE 2                  /* half: 0 gate, 1 up, PACK_WHOLE: the source fills all 16 rows of its tiles */

struct pack_source {
    const void *data;                 /* device */
    const float *scale;               /* device. FP8: per row; FP8_BLOCK: rows of blocks; FP4: one factor, below 0: its inverse divides; NULL for BF16 */
    uint32_t scale_stride;            /* FP8: 1: per row, 0: one for all. FP8_BLOCK: from one row of blocks to the next */
    uint32_t format;                  /* enum weight_format of the source */
    uint32_t rows;                    /* multiple of 16 (8 when interleaved) */
    uint32_t tile_first;              /* first tile of the packed matrix that it fills */
    uint32_t half;
    const uint8_t *group;             /* FP4: group scales; NULL otherwise */
};

/* scratch: rows * 4 bytes of device memory, used when quantising. 0, -E_RANGE, -E_UNSUPPORTED (another format than the source's, but for
 * BF16 to FP8), -E_IO. */
int pack_launch(const struct packed_matrix *to, const struct pack_source *from, float *scratch, void *stream);

/* out [rows, k] f32, device; packed row order (tile by tile). */
int unpack_launch(const struct packed_matrix *from, float *out, void *stream);

/* The largest length of a row (PACK_TOP_ROWS), or of the product of the lengths of a gate row and its up row, which lie interleaved (PACK_TOP_PAIRS), each element multiplied by that
 * of w [k] bf16 plus bias: *top becomes the larger of it and what was there, which must not be below 0. */
enum pack_top { PACK_TOP_ROWS, PACK_TOP_PAIRS };
int pack_top_launch(const struct packed_matrix *m, const void *w, float bias, enum pack_top what, float *top, void *stream);

/* BF16 [rows, k] to the codes and scales of FP8_BLOCK (largest / 448 of each block) or FP4 (largest / 6 of each group, over `factor`), as a checkpoint would hold
 * them: for random weights and tests. rows % 128 == 0 (FP8_BLOCK), k % 128 == 0. `group` of FP4 lies behind the codes: codes + rows * k / 2. */
int quantise_launch(uint32_t format, const void *bf16, uint32_t rows, uint32_t k, uint8_t *codes, float *scale, float factor, void *stream);

/* Fills n elements with bf16 of a normal distribution (mean 0), a pure function of seed and index. */
int fill_normal_launch(void *out_bf16, uint64_t n, float deviation, uint64_t seed, void *stream);
int fill_constant_launch(void *out_bf16, uint64_t n, float value, void *stream);

#endif
