/* model/engine.h - a stage's view of the model: files by descriptor, configuration, weights, KV arena, and the forward pass on
 * the CPU or on a GPU, behind one interface.
 *
 * Used by the stages that compute (prefill, verify) and, without engine_open_forward,
 * by those that only need the configuration. Everything comes through the wiring: no
 * path of a model is opened, so that a restarted stage sees the very files the server began with.
 *
 * A sequence is known by its slot. engine_admit tells where its pages are and how it samples; from then on calls name slot,
 * positions and tokens. Both devices give each row a result that depends on its own sequence alone, and running rows again writes
 * the same bytes: what a dead stage left unfinished is repeated by its successor. One thing would not be the same: drafts that a dead
 * verify's last step still writes behind the committed text. That step ends within milliseconds, a successor's first one begins
 * after its GPU context is made, a tenth of a second at least.
 *
 * Fails: out of memory, a wrong configuration: the process exits with the reason. A GPU context that is lost cannot be used
 * again by this process: EXIT_GPU, the launcher starts another one, whose weights and KV cache are still there.
 * For the stage's main thread. */
#ifndef SLUICE_MODEL_ENGINE_H
#define SLUICE_MODEL_ENGINE_H

#include "model/config.h"
#include "model/forward.h"
#include "model/soft_rows.h"
#include "model/sampler.h"
#include "model/tokenizer.h"
#include "model/weights.h"
#include "shm/stage.h"

#define ENGINE_ROWS_MAX 128u          /* rows of one step on any device; engine.rows_max may be less */
#define ENGINE_FILL_SPANS_MAX 64u     /* sequences of one engine_fill */

enum engine_use { ENGINE_FILL, ENGINE_STEP };      /* prefill's calls, or verify's */

/* What a sequence brings along. All pointers are borrowed until engine_leave. */
struct engine_sequence {
    uint32_t generation;              /* of the slot */
    const uint32_t *full_pages, *sliding_pages;
    uint32_t full_page_count, sliding_page_count;
    const struct sampling_params *sampling;        /* checked; NULL: it is only filled here, never sampled */
    const uint32_t *prompt, *output;               /* its tokens so far: penalties count them */
    uint32_t prompt_count, output_count, output_max;
};

/* Consecutive positions of one sequence in one call; no sequence twice. Its tokens are tokens[first_row .. first_row + rows). */
struct engine_span {
    uint32_t slot, first_position;
    uint32_t first_row, rows;
    uint32_t leaves_state;            /* engine_fill: 1: its last row is the prompt's last, whose state (model/states.h) is to be left */
};

/* Rows of a call that are soft tokens: their entries in tokens[] are placeholders. A picture is one piece, whole, and its rows see each other. */
struct engine_piece {
    uint32_t row, rows;
    uint32_t kind;                    /* enum media_kind */
    uint32_t columns;                 /* picture: blocks in a row */
    const void *data;                 /* u8 [rows][PICTURE_PATCH_BYTES] or f32 [rows][audio frame]; borrowed for the call */
};

struct engine;
struct engine_device {                /* one of engine_cpu, engine_cuda */
    void (*admit)(struct engine *e, uint32_t slot, const struct engine_sequence *seq);
    void (*leave)(struct engine *e, uint32_t slot);
    void (*fill)(struct engine *e, const struct engine_span *spans, uint32_t span_count, const uint32_t *tokens, uint32_t rows, const struct engine_piece *pieces, uint32_t piece_count);
    void (*told)(struct engine *e);
    void (*step)(struct engine *e, const struct engine_span *spans, uint32_t span_count, const uint32_t *tokens, uint32_t rows);
    void (*first)(struct engine *e, const struct engine_span *spans, uint32_t span_count, const uint32_t *tokens);
    void (*wait)(struct engine *e);
    void (*copy)(struct engine *e, enum layer_type type, const uint32_t *from, const uint32_t *to, uint32_t count);
    void (*copy_outputs)(struct engine *e, uint32_t from_slot, uint32_t from_generation, uint32_t slot, uint32_t first, uint32_t count);
    int (*pick)(struct engine *e, const struct engine_span *span, uint32_t row, struct sample_out *out);
    uint32_t (*fill_rows)(const struct engine *e);
    /* NULL where drafts cannot come over the device */
    bool (*hands_over)(const struct engine *e, uint32_t slot);
    void (*step_behind)(struct engine *e, const struct engine_span *span, const uint32_t *tokens, uint64_t tag);
    bool (*begun)(const struct engine *e);
    void (*release)(struct engine *e);
    uint32_t (*scored)(const struct engine *e, uint32_t *tokens);
    uint32_t steps_by_graph;          /* 1: a step computes the next power of two of rows */
};

struct engine {
    struct model_files files;
    struct model_config config;
    struct generation_config generation;
    struct kv_geometry geometry;
    struct stage *stage;              /* borrowed: its heart beats while we wait */
    const struct engine_device *device;
    void *state;                      /* the device's own; lives as long as the process */
    uint32_t rows_max, block_max;     /* rows of one step, and of one sequence in it */
    uint32_t slot_count;
    uint32_t beginners;               /* set by prefill before engine_fill: sequences that wait for their first token, those of the call included */
};

/* Files and configuration. Exits through stage_exit() with a reason on failure. */
void engine_open_config(struct engine *e, struct stage *s);

/* Also the layout of the KV cache's pages. */
void engine_open_geometry(struct engine *e, struct stage *s);

/* Returns when the keeper has put the weights in place; exits if asked to stop meanwhile. */
void engine_await_weights(struct engine *e);

/* Also weights, KV arena and the forward pass of the device that the wiring names. rows_max: most rows of one engine_fill
 * (ENGINE_STEP chooses its own). Returns when the weights are in place; beats the stage's heart meanwhile. */
void engine_open_forward(struct engine *e, struct stage *s, enum engine_use use, uint32_t slot_count, uint32_t rows_max);

/* A sequence begins in this slot, or is found there after a restart. */
static inline void engine_admit(struct engine *e, uint32_t slot, const struct engine_sequence *seq) { e->device->admit(e, slot, seq); }
/* It is over: nothing of it is kept. */
static inline void engine_leave(struct engine *e, uint32_t slot) { e->device->leave(e, slot); }

/* Prefill: K and V of these rows, and the states that are to be left, are in memory when it returns. */
static inline void engine_fill(struct engine *e, const struct engine_span *spans, uint32_t span_count, const uint32_t *tokens, uint32_t rows, const struct engine_piece *pieces, uint32_t piece_count)
{
    e->device->fill(e, spans, span_count, tokens, rows, pieces, piece_count);
}

/* Prefill, behind each engine_fill: those whom it concerns have been told. On a device that both share the turn of the call's last slice ends only here, so that a verify that gave it
 * and waits for its end (50 ms at most, schemas/turns.h) has them in its next step. */
static inline void engine_told(struct engine *e) { e->device->told(e); }

/* Prefill: pages of the KV cache onto others, none of which is both; complete when it returns. */
static inline void engine_copy_pages(struct engine *e, enum layer_type type, const uint32_t *from, const uint32_t *to, uint32_t count)
{
    if (count) e->device->copy(e, type, from, to, count);
}

/* Prefill: what a drafter wants of positions that a sequence was given with its pages (model/features.h), from another sequence with the same text up to there, as far as it is
 * still there. Advice for a drafter: nothing else depends on it. */
static inline void engine_copy_outputs(struct engine *e, uint32_t from_slot, uint32_t from_generation, uint32_t slot, uint32_t first, uint32_t count)
{
    e->device->copy_outputs(e, from_slot, from_generation, slot, first, count);
}

/* Rows that one engine_fill should have now: rows_max, or fewer while sequences run on the same device. */
static inline uint32_t engine_fill_rows(const struct engine *e) { return e->device->fill_rows(e); }

/* Verify: begins a step of at most rows_max rows (a GPU starts at once, a CPU in engine_wait). Spans and tokens are borrowed until the next
 * step: engine_pick reads them. One step at a time. The states of all rows are in memory behind engine_wait. */
static inline void engine_step(struct engine *e, const struct engine_span *spans, uint32_t span_count, const uint32_t *tokens, uint32_t rows)
{
    e->device->step(e, spans, span_count, tokens, rows);
}
/* The same for sequences that begin: a row each, at the prompt's last position, whose state prefill has left. Only the LM head and the sampler
 * work: the first token's bits come from prefill's arithmetic, whatever else runs and whoever died in between. */
static inline void engine_first(struct engine *e, const struct engine_span *spans, uint32_t span_count, const uint32_t *tokens)
{
    e->device->first(e, spans, span_count, tokens);
}
static inline void engine_wait(struct engine *e) { e->device->wait(e); }

/* Verify: drafts that come over the device (kernels/cuda/cuda_handover.h). Can a step of this sequence, alone, wait for them there? */
static inline bool engine_hands_over(const struct engine *e, uint32_t slot) { return e->device->hands_over && e->device->hands_over(e, slot); }
/* As engine_step for one span; the tokens behind the first are placeholders. Its rows are settled, fewer perhaps, when the drafter has left what it has for this tag, or
 * behind engine_release, which may come at any time until then. engine_begun: they are; engine_scored, behind engine_wait: how many, and their tokens. */
static inline void engine_step_behind(struct engine *e, const struct engine_span *span, const uint32_t *tokens, uint64_t tag) { e->device->step_behind(e, span, tokens, tag); }
static inline bool engine_begun(const struct engine *e) { return e->device->begun(e); }
static inline void engine_release(struct engine *e) { e->device->release(e); }
static inline uint32_t engine_scored(const struct engine *e, uint32_t *tokens) { return e->device->scored(e, tokens); }

/* The sampler's choice behind row `row` of the span (0-based), which is meaningful when the tokens of the rows before it
 * were the sampler's own choices, too: ask in order, stop at the first that differs. 0, or -E_RANGE: the logits are broken. */
static inline int engine_pick(struct engine *e, const struct engine_span *span, uint32_t row, struct sample_out *out) { return e->device->pick(e, span, row, out); }

/* Rows that the device computes when it is given so many: what a step costs goes by these. */
uint32_t engine_rows_computed(const struct engine *e, uint32_t rows);

/* Only fault tests define it: true makes the kernels of the next call on this slot read where no memory is. */
extern bool engine_fault_hook(struct stage *s, uint32_t slot) __attribute__((weak));

/* For the CPU. engine_open_soft: NULL where the server takes text alone; exits on failure. engine_soft_rows: makes the rows of all pieces. */
struct soft_rows *engine_open_soft(struct engine *e);
void engine_soft_rows(struct engine *e, struct soft_rows *soft, const struct engine_piece *pieces, uint32_t piece_count);
/* For the GPU. engine_load_senses: the weights of pictures and sound; false where the server takes text alone; exits on failure.
 * engine_describe_soft: those of Gemma 4 in the words of the CUDA kernels, pointers borrowed from the weights. */
struct engine_senses { bool by_tower; struct soft_weights soft; struct siglip_weights tower; };   /* one of the two */
struct cuda_soft_weights;
bool engine_load_senses(struct engine *e, struct engine_senses *senses);
void engine_free_senses(struct engine_senses *senses);
void engine_describe_soft(struct cuda_soft_weights *out, const struct soft_weights *weights);
void engine_open_cpu(struct engine *e, enum engine_use use, uint32_t rows_max);
void engine_open_cuda(struct engine *e, enum engine_use use, uint32_t rows_max);

/* The checkpoint's tokenizer, checked against the model's vocabulary; open until the process ends. Exits on failure. */
struct tokenizer *engine_open_tokenizer(const struct engine *e, struct stage *s);

/* Does this token end the output of a request? The one rule, for verify (which ends there) and detokenize
 * (which does not print it). FINISH_NONE, FINISH_EOS or FINISH_STOP_TOKEN. */
struct request_params;
uint32_t engine_finish_by_token(const struct generation_config *g, const struct request_params *p, uint32_t token);

/* How the GPU takes each layer's matrices from a checkpoint; activations: with the rules that its format has for them. 0, or -E_UNSUPPORTED with the reason. */
struct cuda_layer_format;
struct model_weights;
struct stored_matrix;
uint32_t engine_matrix_format(const struct stored_matrix *matrix);   /* enum weight_format; 0: none of them */
int engine_cuda_formats(struct cuda_layer_format *formats, const struct model_config *config, const struct model_weights *weights, bool activations, struct model_error *err);

/* The model as the CUDA kernels need it; weights_format: enum weight_format (kernels/cuda/layout.h) of the embedding table, and of the matrices when formats is NULL;
 * formats: [layers]. Also for the keeper.
 * 0, or -E_UNSUPPORTED: err names what the kernels do not know. */
struct cuda_model_spec;
int engine_cuda_spec(struct cuda_model_spec *spec, const struct model_config *config, const struct generation_config *generation,
                     const struct kv_geometry *geometry, uint32_t weights_format, const struct cuda_layer_format *formats, struct model_error *err);
/* "fp8", "bf16", "f32", "fp8-block128" or "nvfp4", and back; 0: no such format. */
const char *engine_weights_format_name(uint32_t format);
uint32_t engine_weights_format(const char *name);

#endif
