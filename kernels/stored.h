/* kernels/stored.h - how a weight matrix is stored: one description for every checkpoint format, and what kernels take.
 *
 *   W[n,k] = code[n,k] * scale(n,k), and for groups that * global (or / global: both kinds exist, and neither is rounded here)
 *
 * A scale belongs to a block of scale_rows x scale_columns elements: the whole matrix, one row, 128 x 128, or 1 x 16. No format has
 * code of its own beyond what these fields say. Codes are never widened in memory: kernels do it in registers.
 * The activation rule says what the format's writer meant x to be when it meets this matrix.
 *
 * Plain C, for the CPU and for nvcc. stored_value() is the slow, exact reading that tests and tools use. */
#ifndef SLUICE_KERNELS_STORED_H
#define SLUICE_KERNELS_STORED_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__CUDACC__)
#define STORED_FN static __host__ __device__ inline
#else
#define STORED_FN static inline
#endif

#define STORED_GROUP 16               /* elements of a row that share a scale: E2M1 */
#define STORED_BLOCK 128              /* rows and columns that share a scale: E4M3 in blocks */
#define STORED_E4M3_MAX 448.0f
#define STORED_E2M1_MAX 6.0f

enum stored_element {                 /* the first two as enum kernels_dtype */
    STORED_BF16 = 1, STORED_F32 = 2,
    STORED_E4M3 = 3,                  /* FP8 without infinities; 0x7f and 0xff are NaN and refused by loaders */
    STORED_E2M1 = 4                   /* FP4, two in a byte, the even column in the low half */
};

enum stored_activation {
    STORED_AS_IS = 0,                 /* weight-only: x keeps its type */
    STORED_TOKEN = 1,                 /* each row of x is rounded to E4M3 with its own scale, largest / 448 */
    STORED_STATIC = 2                 /* x is rounded to E4M3 with the one scale `input_scale`, beyond 448 * input_scale cut off */
};

struct stored_matrix {
    const void *data;                 /* [rows, k] codes, row-major; borrowed from the checkpoint's files; NULL: there is no such matrix */
    const float *scale;               /* E4M3: [ceil(rows / scale_rows)][ceil(k / scale_columns)]; owned by struct model_weights */
    const uint8_t *group_scale;       /* E2M1: [rows][k / 16] E4M3 codes; borrowed from the files */
    uint32_t rows, k;
    uint32_t scale_rows;              /* rows: one scale for all of them; 0: no scale */
    uint32_t scale_columns;           /* k: one scale for a row */
    uint32_t element;                 /* enum stored_element */
    uint32_t activation;              /* enum stored_activation */
    uint32_t global_divides;          /* 1: values are divided by `global`, 0: multiplied */
    float global;                     /* E2M1: of the whole matrix */
    float input_scale;                /* STORED_STATIC */
};

/* Bytes of n codes of an element format. */
STORED_FN uint64_t stored_code_bytes(uint32_t element, uint64_t n)
{
    return element == STORED_F32 ? 4 * n : element == STORED_BF16 ? 2 * n : element == STORED_E4M3 ? n : n / 2;
}

/* Scales along k. */
STORED_FN uint32_t stored_scale_stride(const struct stored_matrix *m)
{
    return m->scale_columns ? (m->k + m->scale_columns - 1) / m->scale_columns : 0;
}

/* Bytes of codes and scales that one reading of the matrix moves. */
STORED_FN uint64_t stored_bytes(const struct stored_matrix *m)
{
    const uint64_t codes = stored_code_bytes(m->element, (uint64_t)m->rows * m->k);

    if (m->scale_rows == 0) return codes;
    return codes + (uint64_t)((m->rows + m->scale_rows - 1) / m->scale_rows) * stored_scale_stride(m) * (m->element == STORED_E2M1 ? 1 : 4);
}

/* Does the scale stay the same along a row? Then it can wait until the row's sum is complete. */
STORED_FN int stored_scale_is_late(const struct stored_matrix *m) { return m->scale_rows == 0 || m->scale_columns >= m->k; }

STORED_FN float stored_from_bf16(uint16_t code)
{
    const uint32_t bits = (uint32_t)code << 16;
    float value;

    memcpy(&value, &bits, sizeof(value));
    return value;
}

STORED_FN float stored_from_e4m3(uint8_t code)
{
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    const float size = exponent == 0 ? ldexpf((float)mantissa, -9) : ldexpf((float)(8 + mantissa), exponent - 10);

    if ((code & 0x7f) == 0x7f) return NAN;
    return code & 0x80 ? -size : size;
}

STORED_FN float stored_from_e2m1(uint32_t code)
{
    const float size[8] = { 0, 0.5f, 1, 1.5f, 2, 3, 4, 6 };

    return code & 8 ? -size[code & 7] : size[code & 7];
}

/* The weight, with every factor, rounded to f32 after each. */
STORED_FN float stored_value(const struct stored_matrix *m, uint64_t row, uint64_t column)
{
    const uint64_t at = row * m->k + column;
    const uint8_t *byte = (const uint8_t *)m->data;
    float value;

    switch (m->element) {
    case STORED_F32: memcpy(&value, byte + 4 * at, sizeof(value)); return value;
    case STORED_BF16: return stored_from_bf16((uint16_t)(byte[2 * at] | byte[2 * at + 1] << 8));
    case STORED_E4M3: return stored_from_e4m3(byte[at]) * m->scale[row / m->scale_rows * stored_scale_stride(m) + column / m->scale_columns];
    default: break;
    }
    value = stored_from_e2m1((uint32_t)byte[at / 2] >> (at % 2 * 4) & 15) * stored_from_e4m3(m->group_scale[row * stored_scale_stride(m) + column / STORED_GROUP]);
    return m->global_divides ? value / m->global : value * m->global;
}

#endif
