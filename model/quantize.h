/* model/quantize.h - from plain weights to FP8 and FP4 codes, by the rules of the formats' own writers.
 *
 *   fp8-row       torchao: a scale for a row, bf16(largest / 448)                codes: nearest E4M3 of w / scale
 *   fp8-dynamic   compressed-tensors: the same numbers, stored as BF16
 *   fp8-static    ModelOpt: one scale for the matrix, largest / 448
 *   fp8-block128  ModelOpt: a scale for 128 x 128, largest / 448, or that times what leaves the least squared error
 *   nvfp4a16      compressed-tensors: group scale = nearest E4M3 of global * bf16(group's largest / 6), codes: nearest E2M1
 *
 * A row, block or matrix of zeros gets a scale that readers accept. All is computed in f32 with one rounding per code; where a
 * writer rounds quotients to BF16 first, its codes can differ from ours at ties. Any cut into row ranges gives the same bytes. */
#ifndef SLUICE_MODEL_QUANTIZE_H
#define SLUICE_MODEL_QUANTIZE_H

#include "kernels/stored.h"
#include <stdbool.h>

enum quantize_format {
    QUANTIZE_FP8_ROW = 1, QUANTIZE_FP8_DYNAMIC = 2, QUANTIZE_FP8_STATIC = 3, QUANTIZE_FP8_BLOCK128 = 4, QUANTIZE_NVFP4A16 = 5
};

struct quantize_job {
    const struct stored_matrix *from; /* BF16 or F32; borrowed */
    enum quantize_format format;
    bool least_squares;               /* fp8-block128: search the scale */
    float whole;                      /* fp8-static: the scale; nvfp4a16: the global divisor; see quantize_whole */
    uint8_t *codes;                   /* [rows, k] or [rows, k / 2]; written */
    void *scales;                     /* as in the file: f32, bf16 or E4M3 codes; written; NULL for fp8-static */
};

/* The largest size among rows [begin, end), or NaN if one is among them. */
float quantize_largest(const struct stored_matrix *from, uint32_t begin, uint32_t end);

/* job.whole from the largest size of the matrix (or of all that share it). Always positive and finite. */
float quantize_whole(enum quantize_format format, float largest);

/* Writes codes and scales of rows [begin, end); for blocks both are multiples of 128, or end is the last row. */
void quantize_rows(const struct quantize_job *job, uint32_t begin, uint32_t end);

/* Bytes of the scales in the file. */
uint64_t quantize_scale_bytes(enum quantize_format format, uint32_t rows, uint32_t k);

/* Nearest E4M3 code, ties to even, sizes beyond 448 cut off. */
uint8_t quantize_e4m3(float value);

/* Nearest E2M1 code, ties to even. */
uint8_t quantize_e2m1(float value);

/* "fp8-row", ... and back; 0 for an unknown name. */
const char *quantize_name(enum quantize_format format);
enum quantize_format quantize_format_of(const char *name);

#endif
