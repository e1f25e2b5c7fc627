/* kernels/cuda/cuda_prefill.h - fills the KV cache with prompts on the GPU: the prefill stage's part of libsluice_cuda.so.
 *
 * Reads the same packed weight arena and writes the same KV pages as cuda_backend.h, from another process. No LM head: the last token of a
 * prompt leaves its hidden state, from which a step begins (step_state.from_states). What a row writes depends on the tokens of its own sequence up to it alone: not on
 * the other rows of a call, nor on how a prompt is cut into calls. One handle serves one thread.
 *
 * Every function returns 0 or a negative -E_CODE; cuda_backend_error() has the text. After -E_IO the context is lost: the process must end. */
#ifndef SLUICE_CUDA_PREFILL_H
#define SLUICE_CUDA_PREFILL_H

#include "kernels/cuda/cuda_backend.h"
#include "kernels/stored.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CUDA_PREFILL_SPANS_MAX 64

/* Consecutive tokens of one sequence; everything before first_position is in the cache already. */
struct cuda_prefill_span {
    uint32_t seq;                     /* index of the sequence's page tables; no sequence twice in a call */
    uint32_t first_position;
    uint32_t first_row, rows;         /* its tokens are tokens[first_row .. first_row + rows) */
    uint32_t leaves_state;            /* 1: the hidden state of its last row goes to cuda_options.states_device */
};

struct cuda_prefill;                  /* opaque */

/* options: as for cuda_backend_open (graph_rows_mask and tuning fields are ignored). rows_max: most rows of a call. */
int cuda_prefill_open(struct cuda_prefill **prefill, const struct cuda_model_spec *spec, const struct cuda_options *options, uint32_t rows_max);
void cuda_prefill_close(struct cuda_prefill *prefill);

/* As cuda_backend_pages, for this handle's own page tables. */
int cuda_prefill_pages(struct cuda_prefill *prefill, uint32_t seq, enum cuda_layer_type type, uint32_t first, const uint32_t *pages, uint32_t count);

/* Copies KV pages of one layer type, from[i] onto to[i]; no page is in both lists. Launched only: await it (cuda_prefill_wait) before anything
 * else. 0, -E_RANGE (the type), -E_BUSY (the last call is not over), -E_IO. */
int cuda_prefill_copy(struct cuda_prefill *prefill, enum cuda_layer_type type, const uint32_t *from, const uint32_t *to, uint32_t count);

/* As cuda_backend_outputs and cuda_backend_generation, for calls that begin later; costs nothing. */
int cuda_prefill_outputs(struct cuda_prefill *prefill, uint64_t layers);
/* Rows of positions first .. first + count - 1 that another sequence with the same text has, as far as they are there, become rows of `seq`. Launched only: what is launched
 * later comes behind it. Nothing when nobody wants outputs. 0, -E_RANGE, -E_IO. */
int cuda_prefill_outputs_copy(struct cuda_prefill *prefill, uint32_t from_seq, uint32_t from_generation, uint32_t seq, uint32_t first, uint32_t count);
int cuda_prefill_generation(struct cuda_prefill *prefill, uint32_t seq, uint32_t generation);

/* What makes soft tokens of pictures and sound, as struct soft_weights of model/soft.h. Host memory, taken before a call returns. */
struct cuda_soft_matrix { struct stored_matrix stored; uint32_t format; };   /* enum weight_format */
struct siglip_weights;
struct cuda_soft_weights {
    uint32_t hidden;
    const struct siglip_weights *tower;           /* Gemma 3 (model/siglip.h): what follows is unused then */
    uint32_t picture_dim, picture_positions;      /* 0: no pictures */
    uint32_t audio_frame;             /* 0: no sound */
    float picture_eps, audio_eps;
    const float *ln1_weight, *ln1_bias, *dense_bias, *ln2_weight, *ln2_bias, *position, *position_weight, *position_bias;
    struct cuda_soft_matrix dense, projection, audio_projection;
};

/* Once behind an open with CUDA_SOFT_MADE. 0, -E_RANGE, -E_UNSUPPORTED (a format), -E_NOMEM, -E_IO. */
int cuda_prefill_soft_weights(struct cuda_prefill *prefill, const struct cuda_soft_weights *weights);

/* Rows of the next cuda_prefill_begin that are soft tokens (pictures, sound): they have an embedding of their own, their tokens are ignored. */
struct cuda_prefill_piece {
    uint32_t first_row, rows;
    uint32_t sees_ahead;              /* 1: a picture: in sliding layers (with spec.full_ahead in all) every row of the piece sees all of them. It lies in one span, and no row of it leaves a state */
    const float *soft;                /* CUDA_SOFT_GIVEN: host memory, f32 [rows][hidden], without the embedding's scale; taken before the call returns */
    const void *data;                 /* CUDA_SOFT_MADE: host memory: a whole picture's blocks, u8 [rows][48 * 48 * 3] (with a tower u8 [image][image][3]), or frames of sound, f32 [rows][audio_frame]; the same */
    uint32_t columns;                 /* with data: blocks in a row of the picture; 0: sound */
};

/* For the next begin alone. 0, -E_RANGE (or options.soft_rows was CUDA_SOFT_NONE), -E_BUSY (the last call is not over), -E_IO. */
int cuda_prefill_soft(struct cuda_prefill *prefill, const struct cuda_prefill_piece *pieces, uint32_t piece_count);
/* CUDA_SOFT_MADE: launches the next part of making them, to be awaited (cuda_prefill_wait) before the next. 1: there is more, 0: that was all, -E_RANGE, -E_IO. */
int cuda_prefill_soft_go(struct cuda_prefill *prefill);

/* Launches the rows of the spans (they stand one after the other in tokens, host memory, taken before the call returns).
 * 0, -E_RANGE (nothing launched), -E_BUSY (the last call is not over), -E_IO. */
int cuda_prefill_run(struct cuda_prefill *prefill, const struct cuda_prefill_span *spans, uint32_t span_count, const uint32_t *tokens);

/* The same in pieces, so that the work of others can go between them. begin: takes spans and tokens, launches nothing. go: launches the next
 * layers, at least one; 1: there are more, 0: these are the last. Each must be awaited (cuda_prefill_wait) before the next. Errors as above. */
int cuda_prefill_begin(struct cuda_prefill *prefill, const struct cuda_prefill_span *spans, uint32_t span_count, const uint32_t *tokens);
int cuda_prefill_go(struct cuda_prefill *prefill, uint32_t layers);

/* 0: the last run is complete, its K and V are in the pages, the states where they belong. -E_TIMEOUT: not yet. -E_IO. */
int cuda_prefill_wait(struct cuda_prefill *prefill, uint32_t timeout_us);

/* For tests: where runs after this call leave the residual stream behind the last layer, f32 [rows][hidden]. From then on they compute the whole
 * last layer, of which otherwise only K and V are made: nobody else reads more. */
void *cuda_prefill_residual(struct cuda_prefill *prefill);
/* For benches: the stream (cudaStream_t). */
void *cuda_prefill_stream(struct cuda_prefill *prefill);

#ifdef __cplusplus
}
#endif
#endif
