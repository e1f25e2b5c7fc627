/* model/assistant.h - the MTP assistant: a drafter that reads the target's keys and values and has none of its own.
 *
 * Source: transformers' Gemma4UnifiedAssistantForCausalLM. One step, for each row (the newest token of one sequence):
 *
 *   x = pre_projection [ target's scaled embedding of the token ; hidden ]
 *   layers: as the target's, but only queries are computed; keys and values are those of the target's LAST layer of the same type
 *   z = norm(x) ; logits = z embed^T (no softcap) ; hidden of the next step = post_projection z
 *
 * `hidden` of the first step of a round is the target's state after its final norm, of the newest position it has processed. The position is that of the
 * token itself and stays the same for all steps of a round. Nothing outlives a round but what the caller keeps: an assistant that was killed needs
 * only the next hidden state. Advice only: a wrong step costs speed.
 *
 * The bits of a row do not depend on other rows or on the number of threads. Owns activations and threads; weights are borrowed. */
#ifndef SLUICE_MODEL_ASSISTANT_H
#define SLUICE_MODEL_ASSISTANT_H

#include "model/drafter.h"
#include "model/forward.h"

struct assistant_weights {
    struct model_config config;       /* of the assistant's own layers */
    uint32_t backbone_hidden;         /* of the target */
    enum tensor_dtype dtype;          /* of the output table */
    const void *embed;                /* [vocab, hidden] as in the file: output matrix only */
    struct stored_matrix head;        /* the same as a matrix: what a step multiplies with */
    const float *norm;                /* [hidden] */
    struct stored_matrix pre;         /* [hidden, 2 * backbone_hidden]: embedding first */
    struct stored_matrix post;        /* [backbone_hidden, hidden] */
    struct drafter_layer layer[MODEL_LAYERS_MAX];
    uint64_t step_bytes;              /* weights that one step reads */
    float *owned;
    void *rounded;                    /* codes and scales of assistant_to_fp8 */
};

/* config.json and *.safetensors of a set of files. 0, or -E_NOT_FOUND, -E_FORMAT, -E_UNSUPPORTED, -E_NOMEM; err names field or tensor. */
int assistant_load(struct assistant_weights *weights, const struct model_files *files, struct model_error *err);
/* Rounds its plain matrices, the output table too, to FP8 row by row, in memory of its own. 0, -E_NOMEM, -E_IO. */
int assistant_to_fp8(struct assistant_weights *weights, uint32_t threads);
void assistant_weights_free(struct assistant_weights *weights);

/* Can it draft for this target: hidden size, vocabulary, heads of its last layers. 0, or -E_UNSUPPORTED with the reason. */
int assistant_check(const struct assistant_weights *weights, const struct model_config *target, struct model_error *err);

struct assistant_row {
    const float *embedding;           /* [backbone_hidden]: the target's table row times its embed_scale */
    const float *hidden;              /* [backbone_hidden] */
    uint32_t position;                /* of the token whose successor is drafted */
    uint32_t key_count;               /* positions 0 .. key_count - 1 are in the target's cache; at least 1, at most `position` */
    uint32_t seq;                     /* index in seqs */
};

struct assistant;                     /* opaque */

/* geo and kv: the target's arena, read only. 0, -E_NOMEM, -E_RANGE, -E_IO, -E_UNSUPPORTED. */
int assistant_open(struct assistant **assistant, const struct assistant_weights *weights, const struct model_config *target, const struct kv_geometry *geo,
                   const void *kv, const struct forward_options *options);
void assistant_close(struct assistant *assistant);

/* One step. logits [count, vocab], hidden [count, backbone_hidden] (may be where the rows' hidden states stand).
 * 0, or -E_RANGE (a row, or a page that it lacks) with nothing written. */
int assistant_step(struct assistant *assistant, const struct assistant_row *rows, uint32_t count, const struct forward_seq *seqs, uint32_t seq_count,
                   float *logits, float *hidden);

#endif
