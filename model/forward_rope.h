/* model/forward_rope.h - rotary angles: frequencies once, cosines and sines per row.
 *
 * Follows the reference's float32 steps (power, reciprocal, one product for the angle), because at positions near 2^18 one unit in
 * the last place of a frequency turns a pair by 0.01 rad. The angle itself is then turned into cosine and sine in
 * double and rounded once. */
#ifndef SLUICE_MODEL_FORWARD_ROPE_H
#define SLUICE_MODEL_FORWARD_ROPE_H

#include "model/config.h"
#include <stdint.h>

#define ROPE_PAIRS_MAX (MODEL_HEAD_DIM_MAX / 2)

struct rope_table {
    uint32_t half;                    /* pairs of a head: element i turns with i + half */
    uint32_t turned;                  /* the first `turned` pairs turn (multiple of 16; the last may stand still) */
    float inv_freq[ROPE_PAIRS_MAX];   /* [turned] */
};

void rope_table_init(struct rope_table *table, const struct rope_config *rope, uint32_t head_dim);

/* cosine and sine [turned] of one position. */
void rope_table_angles(const struct rope_table *table, uint32_t position, float *cosine, float *sine);

#endif
