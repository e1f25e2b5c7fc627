/* draft_plain_ops: what stands between the products of an MTP assistant of any shape, with the bits of model/assistant.c and engine_draft_mtp.c.
 *   start    joined[r] = [E[token] * scale ; state of position - 1], and where the row stands and what it sees: the same in all steps
 *   pick     the token of step i of each row, by how much it won, and joined[r] = [E[token] * scale ; hidden[r]]
 *   publish  tokens and leads to mapped host memory, then the flag
 * start begins a chain, the others are links. Never synchronize.
 * Checked   tests/gpu/draft_test.c, in whole rounds. */
#ifndef SLUICE_CUDA_DRAFT_PLAIN_OPS_CUH
#define SLUICE_CUDA_DRAFT_PLAIN_OPS_CUH

#include "cuda_draft.h"
#include "plain.h"
#include "plain_table.cuh"

struct draft_plain_step {             /* of a round */
    struct cuda_draft_question question[CUDA_DRAFT_ROWS_MAX];
    uint32_t count, backbone, vocab;
    struct plain_table table;
    float embed_scale;
    const float *states;              /* [seqs][states_rows][backbone] */
    uint32_t states_rows;
    struct plain_row *turn, *see;     /* [count]: the positions that queries turn by, and see up to */
    float *joined;                    /* [count][2 * backbone] */
    const float *hidden, *logits;     /* [count][backbone], [count][vocab] */
    const uint32_t *left_out;         /* plain_pick.cuh */
    uint32_t *token;                  /* [count][CUDA_DRAFT_STEPS_MAX] */
    float *lead;
};
int draft_plain_start_launch(const struct draft_plain_step *step, void *stream);
int draft_plain_pick_launch(const struct draft_plain_step *step, uint32_t index, void *stream);

struct draft_plain_result {           /* mapped host memory */
    uint32_t token[CUDA_DRAFT_ROWS_MAX][CUDA_DRAFT_STEPS_MAX];   /* >= vocab: there was none */
    float lead[CUDA_DRAFT_ROWS_MAX][CUDA_DRAFT_STEPS_MAX];
    uint64_t round;                   /* the flag */
};
int draft_plain_publish_launch(const struct draft_plain_step *step, struct draft_plain_result *result, uint64_t number, void *stream);

/* Once per process, before the first launch. 0 or -E_IO. */
int draft_plain_ops_init(void);

#endif
