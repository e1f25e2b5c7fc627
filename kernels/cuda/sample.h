/* sample: picks each row's token on the device; logits never cross the bus.
 *   logits [rows, vocab] f32 after the softcap, suppressed tokens at -inf; tile_top [rows, vocab / 16] f32, the largest of each tile of
 *   16 logits (both written by the LM head's epilogue)
 * Order, noise and arithmetic as in model/sampler.c, so that both pick the same token from the same logits: temperature, top_k (ties kept), top_p,
 * min_p, then the largest of logit / temperature + Gumbel noise (Philox4x32-10 of seed, position and token, f64). Greedy: lowest id.
 * The top_k-th largest of 1024 partial maxima bounds the candidates from below; more than 1024 tokens above that bound
 * (a flood of equal logits) are cut to 1024, which is the only case where the tie rule does not hold.
 * With top_k off every logit gets its noise: slower, and top_p must be off then.
 * Penalties and logit_bias are not here yet. One block of 1024 threads per row. */
#ifndef SLUICE_CUDA_SAMPLE_H
#define SLUICE_CUDA_SAMPLE_H

#include "state.h"

#define SAMPLE_TOP_K_MAX 64

struct sample_args {
    const struct step_state *state;
    const float *logits;
    const float *tile_top;
    uint32_t vocab;                   /* multiple of 16, at most 2^18 */
    uint32_t *last_token;             /* [STEP_ROWS_MAX] for STEP_TOKEN_LAST of the next step */
    uint32_t *done;                   /* one zeroed word: rows finished */
    struct step_result *result;       /* mapped host memory */
};

/* 0, -E_RANGE, -E_IO. */
int sample_launch(const struct sample_args *args, uint32_t rows, void *stream);
int sample_init(void);

#endif
