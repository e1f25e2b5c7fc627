/* kernels/cuda/state.h - what one step is about: the words that the host writes before each launch and every kernel of the step reads.
 *
 * The step's graph begins by copying this record from pinned host memory into the device, so the same graph serves
 * every step. Fixed layout: host C, CUDA and Python (ctypes) read it. */
#ifndef SLUICE_CUDA_STATE_H
#define SLUICE_CUDA_STATE_H

#include <stdint.h>

#define STEP_ROWS_MAX 16
#define STEP_GROUP_ROWS_MAX 8         /* rows of one sequence in one step (a verify block) */
#define STEP_TOKEN_LAST 0xffffffffu   /* row.token: the token that this row number sampled in the step before */

/* Sampling of one row; the meaning of each field is that of model/sampler.h. */
struct step_sampling {
    uint64_t seed;
    float temperature;                /* 0: greedy, lowest id among equals */
    float top_p;                      /* 1 or 0: off */
    float min_p;                      /* 0: off */
    uint32_t top_k;                   /* 1..SAMPLE_TOP_K_MAX, or 0: off (then top_p must be off too) */
};

struct step_row {
    uint32_t token;                   /* < vocab, or STEP_TOKEN_LAST */
    uint32_t position;                /* of this token in its sequence */
    uint32_t group;                   /* index in group[] */
    uint32_t pad;
};

/* Rows first_row .. first_row + rows - 1 are consecutive positions of one sequence. */
struct step_group {
    uint32_t first_row, rows;
    uint32_t first_position;
    uint32_t seq;                     /* index of the sequence's page tables */
};

struct step_state {
    uint32_t rows;                    /* 1..STEP_ROWS_MAX: at most the graph's row count; the graph's other rows are dead */
    uint32_t groups;
    uint64_t step;                    /* number of this step; copied to the result as its flag */
    struct step_row row[STEP_ROWS_MAX];
    struct step_group group[STEP_ROWS_MAX];
    struct step_sampling sampling[STEP_ROWS_MAX];
};

/* In mapped host memory, written by the last kernel of the step: tokens first, then `step` as the flag. */
struct step_result {
    uint32_t token[STEP_ROWS_MAX];
    float logit[STEP_ROWS_MAX];       /* of the token, after the softcap */
    uint32_t bad[STEP_ROWS_MAX];      /* 1: no finite logit, the token is meaningless */
    uint64_t step;                    /* flag: equals step_state.step once everything above is there */
};

#endif
