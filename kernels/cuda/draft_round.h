/* draft_round: one round of an MTP assistant as one cooperative kernel (what a round is: cuda_draft.h).
 *
 * One block per SM, alive for the whole round. A producer warp streams the block's share of every matrix, step after step, through a ring in shared
 * memory and never stops at the end of a matrix: while the blocks exchange results, the next weights arrive. 8 warps multiply (k split over
 * the warps, mma.m16n8k16, as in rowmm), norm, attend and choose. Between dependent parts stands a barrier over all blocks.
 * A block whose peers do not come within DRAFT_WAIT_NS (another kernel keeps them out) gives up, and all with it: a round is advice.
 * Needs     the plan of draft_layout.h, 1 <= rows <= CUDA_DRAFT_ROWS_MAX, all blocks resident at once (cooperative launch).
 * Checked   bench/cuda/draft_bench.cu against an f64 reference, three chained steps.
 * Measured  bench/RESULTS_cuda.md. */
#ifndef SLUICE_CUDA_DRAFT_ROUND_H
#define SLUICE_CUDA_DRAFT_ROUND_H

#include "cuda_handover.h"
#include "draft_layout.h"

#define DRAFT_PHASES_MAX (4 * CUDA_DRAFT_LAYERS_MAX + 3)
#define DRAFT_WAIT_NS 20000000ull
#define DRAFT_CHUNKS_MAX 160          /* blocks at most; partial results of a full layer per row and head */
#define DRAFT_SLIDING_CHUNKS 16
#define DRAFT_FOUND_MAX 512u
#define DRAFT_SUPPRESS_MAX CUDA_SUPPRESS_MAX
#define DRAFT_ROPE_SLIDING 128        /* pairs of a head of 256, of 512 */
#define DRAFT_ROPE_FULL 256
#define DRAFT_ROPE_PAIRS (DRAFT_ROPE_SLIDING + DRAFT_ROPE_FULL)

/* Written by the last block to leave, in mapped host memory: answers first, then `round` as the flag. */
struct draft_result {
    struct cuda_draft_answer answer[CUDA_DRAFT_ROWS_MAX];
    uint64_t round;
    uint64_t gave_up;                 /* = round: there are no answers */
};

/* Device words that outlive a round; between rounds all 0 but base. */
struct draft_control {
    uint32_t arrived, left, gave_up;
    uint32_t base;                    /* barriers of all rounds so far */
    uint32_t found[2][CUDA_DRAFT_ROWS_MAX];   /* candidates of sampled rows, of even and odd steps */
};

struct draft_top { float top; uint32_t token; float sum, pad; };   /* of one block's share of the vocabulary: largest logit; sum of exp(logit - top) */

struct draft_picked { uint32_t token; float logit; };              /* a row of the output table */

struct draft_phase { uint64_t offset; uint32_t units, slices; };

struct draft_layer_args {
    const float *input_norm, *post_attention_norm, *pre_ff_norm, *post_ff_norm, *q_norm, *scalar;
    uint64_t k_offset, v_offset;      /* of the target's layer, in a page */
    uint32_t type;
};

struct draft_round_args {
    const uint8_t *weights;
    struct draft_phase phase[DRAFT_PHASES_MAX];   /* in the order of a step: pre, (q, o, gate_up, down) x layers, post, head */
    struct draft_layer_args layer[CUDA_DRAFT_LAYERS_MAX];
    const float *norm;
    uint32_t phases, layers, rows, steps;
    uint32_t vocab, backbone_hidden, intermediate;
    uint32_t head_rows;               /* of the output table */
    const uint32_t *choice;           /* [head_rows]: the token of each; NULL: its number */
    float eps, softcap, attention_scale;
    /* the target's */
    const uint8_t *table;             /* packed BF16 */
    uint32_t table_slice_k, table_slices;
    float embed_scale;
    const float *states;
    uint32_t states_rows;
    const uint8_t *pool[2];
    uint64_t page_bytes[2];
    const uint32_t *pages[2];
    uint32_t pages_stride[2], window, context_keys;
    uint32_t kv_fp8;                  /* 1: the cache holds E4M3 (scale 1); 0: bf16 */
    uint32_t suppress_count, suppress[DRAFT_SUPPRESS_MAX];   /* rows of the output table */
    const float *inv_freq;            /* [DRAFT_ROPE_PAIRS], 0: does not turn */
    /* scratch */
    float *part;                      /* [8][rows][1024] */
    float *q;                         /* [rows][16 x 512] */
    float2 *rope;                     /* [rows][DRAFT_ROPE_PAIRS] */
    float *attn_part;                 /* [rows][16][DRAFT_CHUNKS_MAX][512] */
    float2 *attn_ml;                  /* [rows][16][DRAFT_CHUNKS_MAX] */
    uint16_t *attn_out;               /* [rows][16 x 512] f16 (bf16 with BF16 weights, the next one too) */
    uint16_t *act;                    /* [rows][intermediate] */
    float *lone_part, *lone_q, *lone_out, *lone_act; /* of one row (draft_lone.cuh): [8][1024], [16 x 512], [16 x 512], [intermediate] */
    float *hidden;                    /* [rows][backbone_hidden] */
    struct draft_top *top;            /* [rows][DRAFT_CHUNKS_MAX] */
    float *logits, *tile_top;         /* of sampled rows: [rows][head_rows], [rows][head_rows / 16] */
    uint64_t *found;                  /* [rows][DRAFT_FOUND_MAX]: candidates of sampled rows, their order in the high half, ~token in the low one */
    struct draft_picked *picked;      /* [rows] */
    struct draft_control *control;
    struct draft_result *result;
    unsigned long long *trace;        /* benches: [steps][phases + barriers] clock of block 0; NULL: off */
    uint64_t round;
    uint32_t ring_slots, zero;        /* zero: always 0 */
    uint32_t lone_launch;             /* host: no cooperative launch */
    struct cuda_handover_record *handover;   /* the first row's drafts are left there; NULL: nowhere */
    struct cuda_handover hand;
    const struct cuda_handover_record *follows;      /* token and position of the one row stand there, under this tag; NULL: in its question */
    uint64_t follows_tag;
    uint32_t context_max;             /* positions */
    struct cuda_draft_question question[CUDA_DRAFT_ROWS_MAX];
};

/* Blocks that can be resident at once on this device (or this process's share of it), and whether the kernel runs at all. 0 or -E_UNSUPPORTED, -E_IO. */
int draft_round_init(uint32_t format, bool kv_fp8, uint32_t *blocks);

/* Ring slots that fit beside everything else. */
uint32_t draft_round_slots(uint32_t format);

int draft_round_launch(const struct draft_round_args *args, uint32_t format, uint32_t blocks, void *stream);

#endif
