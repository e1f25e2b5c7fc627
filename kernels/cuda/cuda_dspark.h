/* kernels/cuda/cuda_dspark.h - the DSpark head (model/dspark.h) on a Hopper GPU: a part of libsluice_cuda.so for the draft stage.
 *
 * Positions of a sequence are absorbed once: outputs of the target's layers, which prefill and the steps leave in memory (struct cuda_features), become keys and values in
 * a ring of the handle's. A round then proposes up to a block of tokens for 1 to CUDA_DSPARK_ROWS_MAX sequences: embedding, layers, output matrix, then the guesses one
 * after the other with the target's noise, all launched at once; nothing goes over the host in between. Plain C, opened with dlopen. One handle serves one thread.
 *
 * Sequences live in places 0 .. places - 1 of the memory for outputs; who is in a place, and what of it is absorbed, the caller keeps. Whether an output is there finds the device:
 * a position whose row is another's is a gap, and what lies before the last gap is not seen (cuda_dspark_answer.low).
 *
 * A round of one sequence may also be started before the target's step is over (cuda_dspark_follow): it begins behind that step, and absorbs what the step commits itself.
 *
 * Reads the target's packed weights (embedding table) and the outputs, all borrowed and never written. Owns scratch and rings. What comes out is advice: weights are FP8
 * by default, activations then f16 (with BF16 weights bf16), sums in f32; the bits of a block do not depend on the others of the round, but for the product kernels' choice between up to 16
 * rows and more, which give the same bits too.
 *
 * Functions return 0 or a negative -E_CODE; cuda_backend_error() has the text. After -E_IO the CUDA context is lost. */
#ifndef SLUICE_CUDA_DSPARK_H
#define SLUICE_CUDA_DSPARK_H

#include "kernels/cuda/cuda_backend.h"
#include "kernels/cuda/cuda_handover.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CUDA_DSPARK_LAYERS_MAX 8
#define CUDA_DSPARK_SOURCES_MAX 8
#define CUDA_DSPARK_BLOCK_MAX 7
#define CUDA_DSPARK_GUESSES_MAX 12    /* of one answer: blocks of cuda_dspark_plain.h may be longer */
#define CUDA_DSPARK_ROWS_MAX 8        /* sequences of one round */
#define CUDA_DSPARK_ABSORB_MAX 64     /* positions of one absorb */

/* A head as the kernels need it: 16 query heads of 512 on one key head, 64 pairs that turn, Markov rank 256, hidden and intermediate size as the target's kernels. */
struct cuda_dspark_spec {
    uint32_t hidden, intermediate, vocab, layers;
    uint32_t q_heads, kv_heads, head_dim;
    uint32_t sources, block, rank, mask_token;
    uint32_t format;                  /* WEIGHT_FP8 or WEIGHT_BF16, all matrices */
    uint32_t choices;                 /* tokens that may be guessed (CUDA_DSPARK_CHOICE says which; a multiple of 64): HEAD and MARKOV_OUT have only their rows; 0: all of vocab */
    uint32_t has_confidence;
    uint32_t own_table;               /* 1: it brings an embedding table of its own; 0: the target's */
    uint32_t shared_head;             /* 1: the output matrix is the target's, read where the target has it (WEIGHT_BF16 and no choices): there is no CUDA_DSPARK_HEAD */
    float norm_eps, softcap, attention_scale, embed_scale;
    double rope_theta;
    uint32_t rope_turned;             /* pairs */
};

struct cuda_dspark_options {
    const void *weights_device;       /* cuda_dspark_weights_bytes(spec) */
    const void *target_device;        /* the target's weight arena */
    struct cuda_features features;    /* bf16 */
    struct cuda_handover_record *handover;   /* device; NULL: guesses go over the host alone */
    uint32_t window;                  /* positions before the newest token that a block sees */
    uint32_t context_max;
};

/* Bytes of the head's weight arena; 0: the shape is not supported. */
uint64_t cuda_dspark_weights_bytes(const struct cuda_dspark_spec *spec);

enum cuda_dspark_tensor {
    CUDA_DSPARK_Q, CUDA_DSPARK_K, CUDA_DSPARK_O, CUDA_DSPARK_GATE, CUDA_DSPARK_UP, CUDA_DSPARK_DOWN,                             /* matrices of a layer */
    CUDA_DSPARK_FC, CUDA_DSPARK_HEAD, CUDA_DSPARK_MARKOV_OUT,                                                                    /* matrices */
    CUDA_DSPARK_TABLE, CUDA_DSPARK_MARKOV_IN,                                                                                    /* looked up: BF16, kept as they are */
    CUDA_DSPARK_INPUT_NORM, CUDA_DSPARK_POST_ATTENTION_NORM, CUDA_DSPARK_PRE_FF_NORM, CUDA_DSPARK_POST_FF_NORM, CUDA_DSPARK_Q_NORM, CUDA_DSPARK_K_NORM,   /* vectors of a layer */
    CUDA_DSPARK_SCALAR, CUDA_DSPARK_HIDDEN_NORM, CUDA_DSPARK_FINAL_NORM, CUDA_DSPARK_CONFIDENCE,
    CUDA_DSPARK_CHOICE,               /* u32 [choices], before the head: the token of each row */
    CUDA_DSPARK_TENSORS
};

/* A whole tensor into the arena, host memory in, finished on return. Matrices and tables: BF16 row-major (quantised where the spec says FP8: E4M3, one scale per row). Vectors:
 * f32, kept as bf16; the scalar f32. CONFIDENCE: [hidden + rank], zeros for what the head does not look at. -E_RANGE: not its size. */
int cuda_dspark_weights_put(const struct cuda_dspark_spec *spec, void *weights_device, enum cuda_dspark_tensor tensor, uint32_t layer, const void *source, uint64_t elements);

/* The output matrix from the target's own table, where they are the same. The target's weights must be in place. */
int cuda_dspark_weights_head(const struct cuda_dspark_spec *spec, void *weights_device, const struct cuda_model_spec *target, const void *target_device);

struct cuda_dspark;                   /* opaque */

/* On the current device. target: the spec of the model it drafts for. 0, -E_UNSUPPORTED, -E_RANGE, -E_NOMEM, -E_IO. */
int cuda_dspark_open(struct cuda_dspark **dspark, const struct cuda_dspark_spec *spec, const struct cuda_model_spec *target, const struct cuda_dspark_options *options, float confidence_bias);
void cuda_dspark_close(struct cuda_dspark *dspark);

/* A sequence enters a place, or begins anew there: it sees nothing before `low`. */
int cuda_dspark_place(struct cuda_dspark *dspark, uint32_t place, uint32_t low);

struct cuda_dspark_absorb {
    uint32_t place, generation;
    uint32_t first, count;            /* positions */
};

/* Starts the absorbing of at most CUDA_DSPARK_ABSORB_MAX positions in all; no place twice. layers: as the rows must say. 0, -E_RANGE (nothing was launched), -E_IO. */
int cuda_dspark_absorb(struct cuda_dspark *dspark, const struct cuda_dspark_absorb *items, uint32_t count, uint64_t layers);

struct cuda_dspark_question {
    uint32_t place;
    uint32_t token, position;         /* newest token of the text and its position; all before it are absorbed; position + block <= context_max */
    uint32_t guesses;                 /* wanted, 1..block */
    float temperature;                /* 0: greedy. Penalties and bias are not looked at */
    uint64_t seed;
    float top_p, min_p;               /* this and the next ones: looked at by heads of cuda_dspark_plain.h only */
    uint32_t top_k;
};

struct cuda_dspark_answer {
    uint32_t low;                     /* the first position that the block saw */
    uint32_t position, ns;            /* of a round that followed a step: of the newest token, 0: that told nothing; and what it took on the device */
    uint32_t token[CUDA_DSPARK_GUESSES_MAX];
    float confidence[CUDA_DSPARK_GUESSES_MAX]; /* 1 without a confidence head */
};

/* Starts a round, behind what was absorbed. 0, -E_RANGE (nothing was launched), -E_BUSY (one is under way), -E_IO. */
int cuda_dspark_round(struct cuda_dspark *dspark, const struct cuda_dspark_question *questions, uint32_t count);

/* The next round, if it is of one question, leaves its guesses in options.handover as well. 0, -E_RANGE. */
int cuda_dspark_hand_over(struct cuda_dspark *dspark, const struct cuda_handover *hand);

/* The next round, if it is of one question, begins when the step of this tag has sampled (cuda_handover.h), with the token and position that the step leaves. Of its question the token counts for
 * nothing; the position, at least 1, is that of the newest token so far, at which absorbing goes on: what the step commits, up to a block and one more, is absorbed as outputs of `layers` of
 * that generation. Needs options.handover, and twice a block and two positions behind the question's. 0, -E_RANGE, -E_UNSUPPORTED. skip: it waits no longer, and gives nothing unless that step
 * has told; at any time behind its start. */
int cuda_dspark_follow(struct cuda_dspark *dspark, uint64_t tag, uint32_t generation, uint64_t layers);
int cuda_dspark_skip(struct cuda_dspark *dspark);

/* Waits for it. 0; -E_TIMEOUT: not yet; -E_IO. */
int cuda_dspark_wait(struct cuda_dspark *dspark, uint32_t timeout_us, struct cuda_dspark_answer *answers);

/* For tests: f32 [rows][vocab] before the Markov head, of the last round; device memory. */
const float *cuda_dspark_logits(const struct cuda_dspark *dspark);
void *cuda_dspark_stream(struct cuda_dspark *dspark);

#ifdef __cplusplus
}
#endif
#endif
