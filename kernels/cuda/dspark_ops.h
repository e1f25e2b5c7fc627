/* dspark_ops: what stands between the products of a DSpark round (model/dspark.h).
 *   begin    of a round that follows a step: what that has told, if it can be (at most `most` positions behind those that are absorbed), becomes the round's dspark_newest
 *   gather   x[source][row] = outputs of layers of each absorbed position, from the memory of model/features.h; a row that is another's, or changed meanwhile: zeros, and
 *            low[place] = its position + 1 if that is more
 *   feature  f = bf16(w * a / rms(a)), or f16 of f_power times that, a = the sources' products added in order
 *   start    the block's rows: h = E[token] * scale in f32, y = bf16(w * h / rms(h)), or f16 of y_power times that; the first row of a block is the newest token, the others the mask
 *   publish  guesses, chances and low to mapped host memory, then the flag
 * One block per row (and source). Links of a chain but begin and publish; with `newest` rows and tokens are those that it says. Never synchronize.
 * Needs     hidden % 128 == 0, hidden <= 4096.
 * Checked   tests/gpu/dspark_test.c, in whole rounds. */
#ifndef SLUICE_CUDA_DSPARK_OPS_H
#define SLUICE_CUDA_DSPARK_OPS_H

#include "cuda_dspark.h"
#include "cuda_handover.h"
#include "dspark_newest.h"
#include "row_places.h"
#include <cuda_bf16.h>

struct dspark_begin_args {
    const struct cuda_handover_record *record;
    uint64_t tag;                     /* of the step */
    uint32_t first, most;             /* positions before it are absorbed; the newest token stands at first + 1 .. first + most */
    uint32_t window, vocab;
    struct dspark_newest *newest;
};
int dspark_begin_launch(const struct dspark_begin_args *args, void *stream);

struct dspark_gather_args {
    struct cuda_features features;
    uint64_t layers;                  /* what rows must say */
    uint32_t hidden, sources;
    uint64_t source_stride;           /* elements between sources in x */
    __nv_bfloat16 *x;                 /* [sources][rows_max][hidden] */
    float *x_scale;                   /* [sources][rows_max] f32: x is f16, each row times a power of two of its own, whose inverse goes there; NULL: bf16, as they are */
    uint32_t rows_max;
    uint32_t *low;                    /* [places] */
    const struct dspark_newest *newest;     /* device: only the first newest->absorb rows; NULL: all */
    struct { uint32_t place, generation, position; } row[CUDA_DSPARK_ABSORB_MAX];
};
int dspark_gather_launch(const struct dspark_gather_args *args, uint32_t rows, void *stream);

struct dspark_feature_args {
    const float *part;                /* [sources][rows_max][hidden] */
    uint64_t part_stride;
    uint32_t sources, hidden;
    const __nv_bfloat16 *w;
    float eps;
    __nv_bfloat16 *f;                 /* [rows][hidden] */
    const float *f_power;             /* f is f16, multiplied by it (powers.h); NULL: bf16 */
};
int dspark_feature_launch(const struct dspark_feature_args *args, uint32_t rows, void *stream);

struct dspark_start_args {
    const uint8_t *packed;            /* the target's table, WEIGHT_BF16; NULL: `plain` */
    const __nv_bfloat16 *plain;       /* [vocab][hidden] */
    uint32_t hidden, slice_k, slices, block, mask;
    uint32_t token[CUDA_DSPARK_ROWS_MAX];
    const struct dspark_newest *newest;     /* device: the one block's token; NULL: `token` */
    float scale, eps;
    const __nv_bfloat16 *w;           /* of the first layer */
    float *h;
    __nv_bfloat16 *y;
    struct row_places y_places;       /* zeros: plain */
    const float *y_power;             /* as f_power */
};
int dspark_start_launch(const struct dspark_start_args *args, uint32_t rows, void *stream);

/* In mapped host memory: answers first, then `round` as the flag. */
struct dspark_result {
    struct cuda_dspark_answer answer[CUDA_DSPARK_ROWS_MAX];
    uint64_t round;
};
struct dspark_publish_args {
    const uint32_t *guess;            /* [sequences][guess_stride] */
    const float *chance;              /* NULL: all 1 */
    const uint32_t *low;              /* [places] */
    uint32_t guess_stride, count;
    uint32_t place[CUDA_DSPARK_ROWS_MAX], least[CUDA_DSPARK_ROWS_MAX], guesses[CUDA_DSPARK_ROWS_MAX];   /* least: what the window hides anyway */
    const struct dspark_newest *newest;     /* device: of the one sequence, in place of `least`; NULL: none */
    struct dspark_result *result;
    uint64_t round;
    struct cuda_handover_record *handover;   /* the first sequence's guesses are left there first; NULL: nowhere */
    struct cuda_handover hand;
};
int dspark_publish_launch(const struct dspark_publish_args *args, void *stream);

int dspark_ops_init(void);

#endif
