/* sample: picks each row's token on the device; logits never cross the bus.
 *   logits [rows, vocab] f32 after the softcap, suppressed tokens at -inf; tile_top [rows, vocab / 16] f32, the largest of each tile of
 *   16 logits (both written by the LM head's epilogue)
 * Order as in model/sampler.h: temperature, top_k (ties kept among the tiles looked at), top_p, min_p, then the largest of logit / temperature +
 * Gumbel noise. Noise of a token: Philox4x32-10, key = seed, counter = (next position, its high word, token, 0), first word. Greedy: lowest id.
 * Only the best SAMPLE_TOP_K_MAX tiles can hold the best SAMPLE_TOP_K_MAX tokens, so a block reads the tile maxima and those tiles.
 * With top_k off every logit gets its noise: about 0.1 ms more, and top_p must be off then.
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
