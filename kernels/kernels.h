/* kernels/kernels.h - the tensor operations of the model, one table per instruction set.
 *
 * Every table computes the same bits. A sum over n elements is always taken in 16 lanes: lane l adds the elements
 * l, l + 16, l + 32 ... in that order with fused multiply-add, and the lanes are joined by the fixed tree
 * (l, l+8), (l, l+4), (l, l+2), (0, 1). AVX-512 holds the lanes in one register, AVX2 in two, the portable code in
 * an array. Since each output element has its own lanes, blocking over rows, columns and threads changes no bit. bf16
 * dot-product instructions round in another way and are therefore not used.
 *
 * Activations are f32; matrices are bf16 (or f32: small test checkpoints), widened exactly. Matrices of FP8 and FP4 codes
 * (kernels/stored.h) are widened in registers: a code is exact in f32, a scale of a block or group multiplies it before it
 * meets x (one rounding, of 2^-25; none for groups), a scale of a whole row multiplies the sum.
 * Pointers are aligned to their element only; no operation allocates, none can fail. Needs: k, dim, n
 * multiples of 16 where stated: model/config.c refuses other sizes. */
#ifndef SLUICE_KERNELS_KERNELS_H
#define SLUICE_KERNELS_KERNELS_H

#include "kernels/stored.h"
#include <stdint.h>

#define KERNELS_LANES 16
#define KERNELS_SEGMENT 256           /* attention: keys are reduced in segments of absolute positions [256 i, 256 i + 256) */
#define KERNELS_QUERIES_MAX 16        /* attention: queries in one call */
#define KERNELS_E4M3_SCALE_MIN (1.0f / (448.0f * 512.0f))   /* of a row of activations: zeros stay zeros */

enum kernels_isa { KERNELS_BEST = 0, KERNELS_PORTABLE = 1, KERNELS_AVX2 = 2, KERNELS_AVX512 = 3 };
enum kernels_dtype { KERNELS_BF16 = 1, KERNELS_F32 = 2, KERNELS_E4M3 = 3 };   /* E4M3: rows of keys and values only, without a scale */

static inline uint32_t kernels_dtype_bytes(uint32_t dtype) { return dtype == KERNELS_BF16 ? 2 : dtype == KERNELS_E4M3 ? 1 : 4; }

/* One query of attention: a head of a row. Keys first .. last are visible, both included. */
struct attention_query {
    const float *q;                   /* [head_dim] */
    float *out;                       /* [head_dim] */
    uint32_t first, last;             /* absolute positions, first <= last */
};

/* Keys and values of one kv head, in pages of `page_tokens` consecutive positions. */
struct attention_keys {
    const uint8_t *arena;             /* the pages' base */
    const uint32_t *pages;            /* page numbers; position p is in pages[(p % ring_tokens) / page_tokens] */
    uint64_t pool_offset;             /* byte offset of page p: pool_offset + p * page_bytes + k_offset (v_offset) */
    uint64_t page_bytes;
    uint64_t k_offset, v_offset;      /* of this layer and head inside a page */
    uint32_t page_tokens;             /* divides KERNELS_SEGMENT */
    uint32_t ring_tokens;             /* UINT32_MAX rounded down to page_tokens: no ring */
    uint32_t head_dim;                /* multiple of 16, at most 512 */
    uint32_t dtype;                   /* enum kernels_dtype of the cache */
    uint32_t turned;                  /* 0: keys are [page_tokens][head_dim]. Else they are [turned][page_tokens], so many values each (at most head_dim), f32, page_tokens % 16 == 0; values stay */
    float scale;                      /* multiplies q.k */
};

/* Scratch for attention, one per thread. */
struct attention_scratch {
    float q[KERNELS_QUERIES_MAX][512];
    float score[KERNELS_QUERIES_MAX][KERNELS_SEGMENT];
    float part[KERNELS_QUERIES_MAX][512];
    float acc[KERNELS_QUERIES_MAX][512];
};

struct kernels {
    const char *name;

    /* y[r][j] = sum_i x[r][i] * w[j][i] for j in [n_begin, n_end). x [rows, x_stride], y [rows, y_stride], w [n, k] of `dtype`.
     * k % 16 == 0. Weights are read once per block of rows. */
    void (*linear)(float *y, uint64_t y_stride, const float *x, uint64_t x_stride, uint32_t rows,
                   const void *w, enum kernels_dtype dtype, uint32_t k, uint32_t n_begin, uint32_t n_end);

    /* The same for FP8 and FP4 codes: y[r][j] = (sum_i x[r][i] * W[j][i]) * x_scale[r]; x_scale NULL: all 1. x as to_e4m3 leaves it when
     * the matrix has an activation rule. Bits depend on nothing but the row of x and the row of W. */
    void (*linear_stored)(float *y, uint64_t y_stride, const float *x, uint64_t x_stride, const float *x_scale, uint32_t rows,
                          const struct stored_matrix *w, uint32_t n_begin, uint32_t n_end);

    /* y = the E4M3 number nearest to x / s (ties to even, at most 448 in size); returns s. scale 0: s is the largest |x| / 448, at least
     * KERNELS_E4M3_SCALE_MIN, and x is divided by it. Else s is `scale`, and x is multiplied by 1 / s, as the formats' own
     * kernels do in each case. n % 16 == 0; y may be x. */
    float (*to_e4m3)(float *y, const float *x, float scale, uint32_t n);

    /* y = x * w / sqrt(mean(x^2) + eps); w NULL: without weight. n % 16 == 0; y may be x. */
    void (*rmsnorm)(float *y, const float *x, const float *w, uint32_t n, float eps);

    /* x[i], x[i+half] turned by cos[i], sin[i] for i < turned (the first pairs; the rest stays). half % 16 == 0, turned % 16 == 0. */
    void (*rope)(float *x, const float *cosine, const float *sine, uint32_t half, uint32_t turned);

    /* gate = gelu_tanh(gate) * up. n % 16 == 0. */
    void (*geglu)(float *gate, const float *up, uint32_t n);

    /* h = (h + y) * scalar. n % 16 == 0. */
    void (*add_scaled)(float *h, const float *y, float scalar, uint32_t n);

    /* y = row of `dtype` * scale. n % 16 == 0. */
    void (*widen)(float *y, const void *row, enum kernels_dtype dtype, float scale, uint32_t n);

    /* row of `dtype` = x, rounded to nearest even; E4M3: at most 448 in size, a NaN stays one. n % 16 == 0. */
    void (*narrow)(void *row, enum kernels_dtype dtype, const float *x, uint32_t n);

    /* x = cap * tanh(x / cap). Any n. */
    void (*softcap)(float *x, float cap, uint32_t n);

    /* softmax(q.k * scale) v for 1..KERNELS_QUERIES_MAX queries of one kv head. */
    void (*attention)(const struct attention_query *query, uint32_t query_count, const struct attention_keys *keys,
                      struct attention_scratch *scratch);

    /* exp and tanh as used above, for the tests of their error (stated in kernels/cpu/ops.h). n % 16 == 0. */
    void (*exp)(float *x, uint32_t n);
    void (*tanh)(float *x, uint32_t n);
};

/* The table of an instruction set; NULL when this CPU or this build lacks it. KERNELS_BEST is never NULL. */
const struct kernels *kernels_get(enum kernels_isa isa);

extern const struct kernels kernels_portable;
#if defined(__x86_64__)
extern const struct kernels kernels_avx2;
extern const struct kernels kernels_avx512;
#endif

#endif
