/* dspark_attn: attention of a DSpark block (model/dspark.h) over the drafter's own cache. From the f32 output of the qkv product to the input of o:
 *   q and k norm, rotation (pairs j, j + 256 with j < 64), v norm; K and V of the block's rows into the ring; softmax(q k) v over positions
 *   low .. position + rows - 1: every row sees the whole block, there is no scale and no window but the caller's `low`
 *   qkv  [sequences][rows][qkv_stride] f32: 16 query heads of 512, then one key head, which is the value too
 *   ring [ring_rows][512] bf16 each for K and V of a sequence; position p in row p % ring_rows
 *   out  [sequences][rows][16 * 512] bf16, or f16 times out_power
 * Three kernels of a chain: heads; (all queries) x (32 keys) on the tensor cores, partial results; their sum. The key axis is cut by absolute position, so the bits
 * of a block depend on nothing but its sequence.
 * With `newest` (one sequence) position and low are those that stand there; the ones in `seq` are then bounds: no position is higher, no low lower.
 * Needs     16 heads of 512, 1 <= rows <= 7, 1 <= sequences <= 8, ring_rows >= position + rows - low. Never synchronizes.
 * Checked   bench/cuda/dspark_bench.cu against a plain kernel in f64, before it measures.
 * Measured  bench/RESULTS_cuda.md. */
#ifndef SLUICE_CUDA_DSPARK_ATTN_H
#define SLUICE_CUDA_DSPARK_ATTN_H

#include "dspark_newest.h"
#include "row_places.h"
#include <cuda_bf16.h>
#include <stdint.h>

#define DSPARK_HEADS 16u
#define DSPARK_DIM 512u
#define DSPARK_TURNED 64u             /* pairs */
#define DSPARK_ROWS_MAX 7u
#define DSPARK_QUERIES (DSPARK_ROWS_MAX * DSPARK_HEADS)
#define DSPARK_SPAN 32u               /* keys of a block of threads */
#define DSPARK_SEQUENCES_MAX 8u

struct dspark_attn_seq {
    __nv_bfloat16 *k, *v;             /* rings of one layer */
    uint32_t position, low;           /* of the first row; the first position that is seen */
    const uint32_t *low_device;       /* seen is what lies behind both; NULL: `low` alone */
};

struct dspark_attn_args {
    const float *qkv;
    uint32_t qkv_stride;              /* elements */
    uint32_t rows, count;             /* of a sequence; sequences */
    struct dspark_attn_seq seq[DSPARK_SEQUENCES_MAX];
    const struct dspark_newest *newest;     /* device; NULL: seq says all */
    const __nv_bfloat16 *q_norm, *k_norm;   /* [512] */
    const float *inv_freq;            /* [DSPARK_TURNED], device */
    uint32_t ring_rows;
    float eps;
    uint32_t spans_max;               /* of a sequence: what there is scratch for */
    __nv_bfloat16 *q;                 /* scratch [sequences][DSPARK_QUERIES][512] */
    float *part;                      /* scratch [sequences][spans_max][DSPARK_QUERIES][512] */
    float2 *part_ml;                  /* scratch [sequences][spans_max][DSPARK_QUERIES] (max, sum) */
    __nv_bfloat16 *out;               /* [sequences][rows][16 * 512] */
    struct row_places out_places;     /* zeros: plain; rows of all sequences count on */
    const float *out_power;           /* out is f16, multiplied by it (powers.h); NULL: bf16 */
};

/* Spans that positions low .. end - 1 can touch: the size of the partial buffers. */
static inline uint32_t dspark_attn_spans(uint32_t positions) { return positions / DSPARK_SPAN + 2; }

/* Keys and values of absorbed positions, all layers: from keys [count][layers * 512] f32 (the product with the stacked key matrices). */
struct dspark_keys_args {
    const float *keys;
    uint32_t count, layers, position, ring_rows;
    const __nv_bfloat16 *k_norm;      /* [layers][512] */
    const float *inv_freq;
    __nv_bfloat16 *k, *v;             /* [layers][ring_rows][512] */
    float eps;
    const struct dspark_newest *newest;     /* device: only the first newest->absorb of them; NULL: all */
};

#ifdef __cplusplus
extern "C" {
#endif

/* 0, -E_RANGE, -E_IO. */
int dspark_attn_launch(const struct dspark_attn_args *args, void *stream);
int dspark_keys_launch(const struct dspark_keys_args *args, void *stream);

/* Once per process and device. 0 or -E_IO. */
int dspark_attn_init(void);

#ifdef __cplusplus
}
#endif
#endif
