/* model/quantize.c - see quantize.h. */
#include "model/quantize.h"
#include "kernels/bf16.h"
#include "shm/must.h"
#include <stddef.h>

#define QUANTIZE_ZERO_ROW 0x1p-7f     /* scale of a row or matrix of zeros: what compressed-tensors writes */
#define QUANTIZE_ZERO_GROUP 0x20u     /* 0.125, as above */
#define QUANTIZE_CANDIDATES 11        /* fp8-block128 searched: 0.25, 0.35, ... 1.25 of the largest */
#define QUANTIZE_SCALE_LEAST 0x1p-100f

const char *quantize_name(enum quantize_format format)
{
    static const char *const names[] = { "", "fp8-row", "fp8-dynamic", "fp8-static", "fp8-block128", "nvfp4a16" };

    return names[format];
}

enum quantize_format quantize_format_of(const char *name)
{
    for (int f = QUANTIZE_FP8_ROW; f <= QUANTIZE_NVFP4A16; f++)
        if (strcmp(name, quantize_name((enum quantize_format)f)) == 0) return (enum quantize_format)f;
    return 0;
}

static uint32_t bits_of(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

static float float_of(uint32_t bits)
{
    float value;

    memcpy(&value, &bits, sizeof(value));
    return value;
}

uint8_t quantize_e4m3(float value)
{
    const uint8_t sign = (uint8_t)(bits_of(value) >> 24 & 0x80);
    float size = fabsf(value), magic;
    uint32_t bits;

    if (!(size < STORED_E4M3_MAX)) return sign | 0x7e;
    /* 1.5 * 2^23 quanta: adding them rounds to a whole quantum, 2^(e-3) or 2^-9 */
    magic = float_of(bits_of(size) & 0x7f800000) * 0x1.8p20f;
    if (magic < 0x1.8p14f) magic = 0x1.8p14f;
    size = size + magic - magic;
    if (size < 0x1p-6f) return sign | (uint8_t)(size * 512.0f);
    bits = bits_of(size);
    return sign | (uint8_t)(((bits >> 23) - 120) << 3 | (bits >> 20 & 7));
}

uint8_t quantize_e2m1(float value)
{
    const float a = fabsf(value);
    const uint32_t code = (a > 0.25f) + (a >= 0.75f) + (a > 1.25f) + (a >= 1.75f) + (a > 2.5f) + (a >= 3.5f) + (a > 5.0f);

    return (uint8_t)(code | (bits_of(value) >> 31) << 3);
}

static float weight(const struct stored_matrix *m, uint64_t at)
{
    return m->element == STORED_F32 ? ((const float *)m->data)[at] : stored_from_bf16(((const uint16_t *)m->data)[at]);
}

static float largest_of(const struct stored_matrix *m, uint64_t at, uint32_t count)
{
    float largest = 0;

    for (uint64_t i = at; i < at + count; i++) {
        const float size = fabsf(weight(m, i));

        if (!(size <= largest)) largest = size;      /* a NaN stays */
    }
    return largest;
}

float quantize_largest(const struct stored_matrix *from, uint32_t begin, uint32_t end)
{
    float largest = 0;

    for (uint32_t row = begin; row < end; row++) {
        const float size = largest_of(from, (uint64_t)row * from->k, from->k);

        if (!(size <= largest)) largest = size;
    }
    return largest;
}

/* A scale of FP8 codes: never zero, never so small that a reader's shift of exponents loses it. */
static float fp8_scale(float largest)
{
    const float scale = largest / STORED_E4M3_MAX;

    return scale > QUANTIZE_SCALE_LEAST ? scale : QUANTIZE_ZERO_ROW;
}

float quantize_whole(enum quantize_format format, float largest)
{
    float divisor;

    if (format != QUANTIZE_NVFP4A16) return fp8_scale(largest);
    if (!(largest > QUANTIZE_SCALE_LEAST)) return 1.0f;
    divisor = bf16_round(STORED_E4M3_MAX * STORED_E2M1_MAX * bf16_round(1.0f / bf16_round(largest)));
    return isfinite(divisor) && divisor > 0 ? divisor : 1.0f;
}

uint64_t quantize_scale_bytes(enum quantize_format format, uint32_t rows, uint32_t k)
{
    const uint64_t down = ((uint64_t)rows + STORED_BLOCK - 1) / STORED_BLOCK, across = ((uint64_t)k + STORED_BLOCK - 1) / STORED_BLOCK;

    switch (format) {
    case QUANTIZE_FP8_ROW: return 4ull * rows;
    case QUANTIZE_FP8_DYNAMIC: return 2ull * rows;
    case QUANTIZE_FP8_BLOCK128: return 4 * down * across;
    case QUANTIZE_NVFP4A16: return (uint64_t)rows * (k / STORED_GROUP);
    default: return 4;
    }
}

static void code_run(const struct quantize_job *job, uint64_t at, uint32_t count, float scale)
{
    for (uint64_t i = at; i < at + count; i++) job->codes[i] = quantize_e4m3(weight(job->from, i) / scale);
}

static void rows_fp8(const struct quantize_job *job, uint32_t begin, uint32_t end)
{
    const uint32_t k = job->from->k;

    for (uint32_t row = begin; row < end; row++) {
        const uint64_t at = (uint64_t)row * k;
        const float scale = job->format == QUANTIZE_FP8_STATIC ? job->whole : bf16_round(fp8_scale(largest_of(job->from, at, k)));

        if (job->format == QUANTIZE_FP8_ROW) ((float *)job->scales)[row] = scale;
        if (job->format == QUANTIZE_FP8_DYNAMIC) ((uint16_t *)job->scales)[row] = bf16_of(scale);
        code_run(job, at, k, scale);
    }
}

/* Sum of squared errors of a block under a scale. */
static double block_error(const struct stored_matrix *m, uint32_t row, uint32_t rows, uint32_t column, uint32_t columns, float scale)
{
    double error = 0;

    for (uint32_t r = row; r < row + rows; r++)
        for (uint32_t c = column; c < column + columns; c++) {
            const float w = weight(m, (uint64_t)r * m->k + c);
            const double off = (double)w - (double)(stored_from_e4m3(quantize_e4m3(w / scale)) * scale);

            error += off * off;
        }
    return error;
}

static float block_scale(const struct quantize_job *job, uint32_t row, uint32_t rows, uint32_t column, uint32_t columns)
{
    float largest = 0, best;
    double least;

    for (uint32_t r = row; r < row + rows; r++) {
        const float size = largest_of(job->from, (uint64_t)r * job->from->k + column, columns);

        if (!(size <= largest)) largest = size;
    }
    best = fp8_scale(largest);
    if (!job->least_squares || !(largest > 0)) return best;
    least = block_error(job->from, row, rows, column, columns, best);
    for (int i = 0; i < QUANTIZE_CANDIDATES; i++) {
        const float scale = fp8_scale(largest * (0.25f + 0.1f * (float)i));
        const double error = block_error(job->from, row, rows, column, columns, scale);

        if (error < least) least = error, best = scale;
    }
    return best;
}

static void rows_block(const struct quantize_job *job, uint32_t begin, uint32_t end)
{
    const uint32_t k = job->from->k, across = (k + STORED_BLOCK - 1) / STORED_BLOCK;

    must(begin % STORED_BLOCK == 0 && (end % STORED_BLOCK == 0 || end == job->from->rows));
    for (uint32_t row = begin; row < end; row += STORED_BLOCK) {
        const uint32_t rows = end - row < STORED_BLOCK ? end - row : STORED_BLOCK;

        for (uint32_t column = 0; column < k; column += STORED_BLOCK) {
            const uint32_t columns = k - column < STORED_BLOCK ? k - column : STORED_BLOCK;
            const float scale = block_scale(job, row, rows, column, columns);

            ((float *)job->scales)[(uint64_t)(row / STORED_BLOCK) * across + column / STORED_BLOCK] = scale;
            for (uint32_t r = row; r < row + rows; r++) code_run(job, (uint64_t)r * k + column, columns, scale);
        }
    }
}

static void rows_fp4(const struct quantize_job *job, uint32_t begin, uint32_t end)
{
    const uint64_t first = (uint64_t)begin * job->from->k / STORED_GROUP, last = (uint64_t)end * job->from->k / STORED_GROUP;

    for (uint64_t group = first; group < last; group++) {
        const uint64_t at = group * STORED_GROUP;
        const float ideal = job->whole * bf16_round(largest_of(job->from, at, STORED_GROUP) / STORED_E2M1_MAX);
        uint8_t code = quantize_e4m3(ideal);
        float scale;

        if (code == 0) code = QUANTIZE_ZERO_GROUP;
        ((uint8_t *)job->scales)[group] = code;
        scale = stored_from_e4m3(code) / job->whole;
        for (uint64_t i = at; i < at + STORED_GROUP; i += 2)
            job->codes[i / 2] = (uint8_t)(quantize_e2m1(weight(job->from, i) / scale) | quantize_e2m1(weight(job->from, i + 1) / scale) << 4);
    }
}

void quantize_rows(const struct quantize_job *job, uint32_t begin, uint32_t end)
{
    must(job->from->element == STORED_BF16 || job->from->element == STORED_F32);
    if (job->format == QUANTIZE_NVFP4A16) rows_fp4(job, begin, end);
    else if (job->format == QUANTIZE_FP8_BLOCK128) rows_block(job, begin, end);
    else rows_fp8(job, begin, end);
}
