/* kernels/cuda/state.h - what one step is about: the words that the host writes before each launch and every kernel of the step reads.
 *
 * The step's graph begins by copying this record from pinned host memory into the device, so the same graph serves
 * every step. Fixed layout: host C, CUDA and Python (ctypes) read it. */
#ifndef SLUICE_CUDA_STATE_H
#define SLUICE_CUDA_STATE_H

#include <stdint.h>

#define STEP_ROWS_MAX 128
#define STEP_GROUP_ROWS_MAX 8         /* rows of one sequence in one step (a verify block) */
#define STEP_TOKEN_LAST 0xffffffffu   /* row.token: the token that this row number sampled in the step before */
#define STEP_BIAS_MAX 64              /* logit_bias entries of a sequence, as SAMPLER_BIAS_MAX */
#define STEP_LOGPROBS_MAX 20          /* as SAMPLER_LOGPROBS_MAX */
#define STEP_STATES_ROWS 16           /* rows of hidden states of a sequence, as STATES_ROWS of model/states.h */
#define STEP_NO_TOKEN 0xffffffffu     /* an entry of the history that no penalty counts */

/* Sampling of one row; the meaning and the limits of each field are those of model/sampler.h. What belongs to a sequence and is long lives
 * on the device: its logit_bias (cuda_backend_bias) and the tokens that penalties count (cuda_backend_history). */
struct step_sampling {
    uint64_t seed;
    float temperature;                /* 0: greedy, lowest id among equals */
    float top_p;                      /* 1 or 0: off */
    float min_p;                      /* 0: off */
    uint32_t top_k;                   /* 0: off */
    float presence_penalty;           /* 0: off */
    float frequency_penalty;          /* 0: off */
    float repetition_penalty;         /* 1 or 0: off */
    uint32_t bias_count;              /* the first so many entries of the sequence's logit_bias; 0..STEP_BIAS_MAX */
    uint32_t prompt_tokens;           /* penalties: history before this position is prompt, from here on output */
    uint32_t want_logprobs;           /* 1: logprob and the top list are filled */
    uint32_t top_logprob_count;       /* 0..STEP_LOGPROBS_MAX */
    uint32_t pad;
};

struct step_bias { uint32_t token; float bias; };      /* as logit_bias of struct sampling_params */

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
    uint32_t general_rows;            /* set by cuda_backend_step: rows that the second sampling kernel picks */
    uint32_t from_states;             /* 1: the rows' hidden states are in memory already (cuda_options.states_device): LM head and sampling only */
    uint64_t handed, handed_tag;      /* set by cuda_backend_step_behind: the hand-over record (device address) that is told what was sampled, and its tag; 0: none */
    struct step_row row[STEP_ROWS_MAX];
    struct step_group group[STEP_ROWS_MAX];
    struct step_sampling sampling[STEP_ROWS_MAX];
};

struct step_logprob { uint32_t token; float logprob; };

/* In mapped host memory, written by the last kernel of the step: everything first, then `step` as the flag. */
struct step_result {
    uint32_t token[STEP_ROWS_MAX];
    float logit[STEP_ROWS_MAX];       /* of the token, as the model gave it */
    uint32_t bad[STEP_ROWS_MAX];      /* 1: no finite logit (or a NaN among those looked at): the token is meaningless */
    float logprob[STEP_ROWS_MAX];     /* of the token, from the logits as the model gave them; 0 unless wanted */
    uint32_t top_count[STEP_ROWS_MAX];/* entries of top; 0 unless wanted */
    uint64_t step;                    /* flag: equals step_state.step once everything is there */
    struct step_logprob top[STEP_ROWS_MAX][STEP_LOGPROBS_MAX];   /* most likely first, equal ones by id; only top_count entries are set */
};

#endif
