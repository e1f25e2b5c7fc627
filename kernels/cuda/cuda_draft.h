/* kernels/cuda/cuda_draft.h - the MTP assistant on a Hopper GPU: a part of libsluice_cuda.so for the draft stage and for whoever loads its weights.
 *
 * A round proposes up to CUDA_DRAFT_STEPS_MAX tokens for 1 to CUDA_DRAFT_ROWS_MAX sequences in ONE kernel launch: embedding, projection, four
 * layers on the target's keys and values, output table, choice of the token, next step; nothing goes over the host between two steps. Plain C,
 * opened with dlopen. One handle serves one thread.
 *
 * Reads the target's packed weights (embedding table), its KV pools and the state rows, all borrowed and never written. Owns scratch only. What comes
 * out is advice: weights are FP8 by default, activations f16, sums in f32; the bits of a row do not depend on the other rows.
 *
 * Functions return 0 or a negative -E_CODE; cuda_backend_error() has the text. After -E_IO the CUDA context is lost. */
#ifndef SLUICE_CUDA_DRAFT_H
#define SLUICE_CUDA_DRAFT_H

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_handover.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CUDA_DRAFT_LAYERS_MAX 8
#define CUDA_DRAFT_STEPS_MAX 8
#define CUDA_DRAFT_ROWS_MAX 8         /* sequences of one round */

/* An assistant as the kernel needs it: hidden 1024, 16 query heads, layers of the target's two kinds, intermediate a multiple of 1024. */
struct cuda_draft_spec {
    uint32_t hidden, intermediate, vocab, layers;
    uint32_t choices;                 /* tokens that may be proposed (CUDA_DRAFT_CHOICE says which; a multiple of 16): the output table has only their rows; 0: all of vocab */
    uint32_t backbone_hidden;         /* of the target; at most 4096 */
    uint32_t q_heads;
    uint32_t format;                  /* WEIGHT_FP8 or WEIGHT_BF16, all matrices */
    float norm_eps, softcap, attention_scale;
    double rope_theta[2];             /* per layer type */
    uint32_t rope_turned[2];          /* pairs that turn */
    uint32_t layer_type[CUDA_DRAFT_LAYERS_MAX];   /* enum cuda_layer_type */
};

struct cuda_draft_options {
    const void *weights_device;       /* cuda_draft_weights_bytes(spec) */
    const void *target_device;        /* the target's weight arena: its embedding table is gathered */
    const void *kv_device[2];         /* the target's pools of pages */
    const float *states_device;       /* [seqs_max][states_rows][backbone_hidden]: the state of position p of a sequence in row p % states_rows */
    uint32_t states_rows;
    uint32_t seqs_max, context_max, ring_pages;   /* as in struct cuda_options */
    uint32_t context_keys;            /* newest keys that full layers look at; 0: all */
    uint32_t ring_slots;              /* of the weight stream; 0: as many as fit */
    uint32_t blocks;                  /* 0: one per SM */
    uint32_t lone_launch;             /* 1: without the driver's promise that all blocks run at once; what cannot run together gives up (cuda_draft_wait) */
    struct cuda_handover_record *handover;   /* device; NULL: drafts go over the host alone */
};

struct cuda_draft_question {
    uint32_t seq;
    uint32_t token, position;         /* newest token of the text and its position; states and keys are there for all before it; position >= 1 */
    uint32_t steps;                   /* tokens wanted, 1..CUDA_DRAFT_STEPS_MAX */
    float stop_below;                 /* a row ends when the product of its confidences falls below; 0: never */
    float temperature, top_p, min_p;  /* as struct step_sampling; penalties and bias are not looked at */
    uint32_t top_k;                   /* 0 or more than 64: 64 */
    uint32_t pad;
    uint64_t seed;
};

struct cuda_draft_answer {
    uint32_t count;
    uint32_t position;                /* of the newest token, which they follow; 0: a round that followed a step which told nothing */
    uint32_t ns;                      /* what the round took on the device */
    uint32_t token[CUDA_DRAFT_STEPS_MAX];
    float confidence[CUDA_DRAFT_STEPS_MAX];   /* probability of the token by the drafter's own softmax at temperature 1 */
};

struct cuda_draft;                    /* opaque */

/* Bytes of the drafter's weight arena; 0: the shape is not supported. */
uint64_t cuda_draft_weights_bytes(const struct cuda_draft_spec *spec);

enum cuda_draft_tensor {
    CUDA_DRAFT_Q, CUDA_DRAFT_O, CUDA_DRAFT_GATE, CUDA_DRAFT_UP, CUDA_DRAFT_DOWN, CUDA_DRAFT_INPUT_NORM, CUDA_DRAFT_POST_ATTENTION_NORM, CUDA_DRAFT_PRE_FF_NORM,
    CUDA_DRAFT_POST_FF_NORM, CUDA_DRAFT_Q_NORM, CUDA_DRAFT_LAYER_SCALAR, CUDA_DRAFT_PRE, CUDA_DRAFT_POST, CUDA_DRAFT_HEAD, CUDA_DRAFT_FINAL_NORM,
    CUDA_DRAFT_CHOICE,                /* u32 [choices]: the token of each row of the output table */
    CUDA_DRAFT_TENSORS
};

/* Packs a tensor into the arena, host memory in, finished on return. Matrices: rows x k, row-major, BF16 (quantised where the spec says FP8: E4M3, one scale
 * per row) or, with `scale` (host f32, per row if scale_stride is 1, one for all if 0), E4M3. Vectors: f32 (CHOICE: u32), rows of them, k = 1, source_format WEIGHT_F32. */
int cuda_draft_weights_put(const struct cuda_draft_spec *spec, void *weights_device, enum cuda_draft_tensor tensor, uint32_t layer, uint32_t rows, uint32_t k,
                           const void *source, uint32_t source_format, const float *scale, uint32_t scale_stride);
/* Random weights (norms near 1), a pure function of the seed. */
int cuda_draft_weights_fill_random(const struct cuda_draft_spec *spec, void *weights_device, uint64_t seed);

/* On the current device. target: the spec of the model it drafts for. 0, -E_UNSUPPORTED, -E_RANGE, -E_NOMEM, -E_IO. */
int cuda_draft_open(struct cuda_draft **draft, const struct cuda_draft_spec *spec, const struct cuda_model_spec *target, const struct cuda_draft_options *options);
void cuda_draft_close(struct cuda_draft *draft);

/* As cuda_backend_pages. */
int cuda_draft_pages(struct cuda_draft *draft, uint32_t seq, enum cuda_layer_type type, uint32_t first, const uint32_t *pages, uint32_t count);

/* Starts a round. 0, -E_RANGE (nothing was launched), -E_BUSY (one is under way), -E_IO. */
int cuda_draft_round(struct cuda_draft *draft, const struct cuda_draft_question *questions, uint32_t count);

/* The next round, if it is of one question, leaves its drafts in options.handover as well. 0, -E_RANGE. */
int cuda_draft_hand_over(struct cuda_draft *draft, const struct cuda_handover *hand);

/* The next round, if it is of one question, begins when the step of this tag has sampled (cuda_handover.h), with the token and position that the step leaves; those of the question must be
 * sound, and count for nothing. Needs options.handover. 0, -E_RANGE, -E_UNSUPPORTED. skip: it waits no longer, and gives nothing unless that step has told; at any time behind its start. */
int cuda_draft_follow(struct cuda_draft *draft, uint64_t tag);
int cuda_draft_skip(struct cuda_draft *draft);

/* Waits for it. 0; -E_TIMEOUT: not yet; -E_CANCELLED: the kernel gave up (other kernels kept its blocks out), no advice this time; -E_IO. */
int cuda_draft_wait(struct cuda_draft *draft, uint32_t timeout_us, struct cuda_draft_answer *answers);

/* For benches and tests: what a later step starts from, f32 [rows][backbone_hidden], and the last step's logits of sampled rows, f32 [rows][vocab]; device memory. */
const float *cuda_draft_hidden(const struct cuda_draft *draft);
const float *cuda_draft_logits(const struct cuda_draft *draft);
void *cuda_draft_stream(struct cuda_draft *draft);
/* Rounds after this call write the ns clock at the end of each of their parts (draft_round.cu, mark); NULL: no longer. */
void cuda_draft_trace(struct cuda_draft *draft, void *words_device);

#ifdef __cplusplus
}
#endif
#endif
