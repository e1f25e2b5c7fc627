/* sample: picks each row's token on the device; logits never cross the bus.
 *   logits [rows, vocab] f32 after the softcap, suppressed tokens like all others; tile_top [rows, vocab / 16] f32, the largest of each tile
 *   of 16 logits (both written by the LM head's epilogue)
 * Order, noise and arithmetic as in model/sampler.c, so that both pick the same token from the same logits: suppressed tokens, logit_bias, penalties,
 * temperature, top_k (ties kept), top_p, min_p, then the largest of logit / temperature + Gumbel noise (Philox4x32-10 of seed, position
 * and token, f64). Greedy: lowest id. Sums of weights are added in another order than the CPU's, in f64: a top_p that falls within 1e-15 of a
 * sum could cut one token earlier or later.
 * Two kernels. sample.cu picks plain rows (sample_is_general below says no) as the last kernel of the step, one block each, looking only into tiles that
 * hold candidates. sample_general.cu picks all others behind the step, a cluster of 8 blocks each that holds all logits in shared memory;
 * it is launched only when there are such rows. The last of the two to run writes the flag.
 * Plain rows keep at most 1024 candidates: more than 1024 equal logits at the edge of top_k are the only case where the tie rule does not hold.
 * History for penalties: the sequence's tokens by position. Both kernels see it complete: sample.cu notes every row's own token first. */
#ifndef SLUICE_CUDA_SAMPLE_H
#define SLUICE_CUDA_SAMPLE_H

#include "state.h"

#define SAMPLE_PLAIN_TOP_K_MAX 64
#define SAMPLE_SUPPRESS_MAX 8
#define SAMPLE_TEMPERATURE_MIN 1e-5f  /* below it: greedy, as in model/sampler.c */
#define SAMPLE_VOCAB_MAX (17 * 16 * 1024)

struct sample_args {
    const struct step_state *state;
    const float *logits;
    const float *tile_top;
    uint32_t vocab;                   /* multiple of 16, at most SAMPLE_VOCAB_MAX */
    uint32_t *last_token;             /* [rows] for STEP_TOKEN_LAST of the next step */
    uint32_t *done;                   /* one zeroed word: rows finished */
    struct step_result *result;       /* mapped host memory */
    const struct step_bias *bias;     /* [seqs][STEP_BIAS_MAX]; NULL: no row has bias_count */
    uint32_t *history;                /* [seqs][history_stride] tokens by position; NULL: no row has penalties */
    uint32_t history_stride;
    uint32_t suppress_count, suppress[SAMPLE_SUPPRESS_MAX];
    float *states;                    /* sample.cu also leaves the rows' hidden states there (states.h), since it has time; NULL: it does not */
    const void *hidden_rows;          /* [rows][hidden] */
    uint32_t hidden, hidden_form;     /* enum states_form */
};

/* Does the second kernel pick this row? */
#ifdef __CUDACC__
__host__ __device__
#endif
static inline int sample_is_general(const struct step_sampling *p)
{
    const int penalties = p->presence_penalty != 0 || p->frequency_penalty != 0 || (p->repetition_penalty != 0 && p->repetition_penalty != 1);

    if (p->bias_count || p->want_logprobs || penalties) return 1;
    return p->temperature >= SAMPLE_TEMPERATURE_MIN && (p->top_k == 0 || p->top_k > SAMPLE_PLAIN_TOP_K_MAX);
}

#ifdef __cplusplus
extern "C" {
#endif

/* 0, -E_RANGE, -E_IO. */
int sample_launch(const struct sample_args *args, uint32_t rows, void *stream);
int sample_init(void);

/* For a step whose state.general_rows is not 0, behind sample_launch on the same stream. rows: of the step. 0, -E_RANGE, -E_IO. */
int sample_general_launch(const struct sample_args *args, uint32_t rows, void *stream);
int sample_general_init(uint32_t vocab);

#ifdef __cplusplus
}
#endif

#endif
