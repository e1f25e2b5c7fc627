/* model/forward.h - the text model: rows of tokens in, logits out, on the CPU.
 *
 * A row is one token at one position of one sequence. A call runs any mixture: prefill chunks of some
 * sequences, single decode rows and verify blocks of others. The bits of a row's result depend only
 * on the tokens of its own sequence up to that row: not on the other rows of the call,
 * nor on chunk sizes, thread count or instruction set (tests/unit/forward_test.c proves each).
 *
 * The KV arena is the only state. Running the same rows again writes the same bytes, so that a
 * stage that died in the middle of a call is repeated by its successor without harm.
 *
 * Owns: activations and threads, all made in forward_open. Nothing is allocated afterwards. */
#ifndef SLUICE_MODEL_FORWARD_H
#define SLUICE_MODEL_FORWARD_H

#include "model/kv.h"
#include "model/weights.h"
#include <stdint.h>

#define FORWARD_THREADS_MAX 256
#define FORWARD_ROWS_LIMIT 4096       /* largest rows_max */

/* A token of this value or above is not looked up: FORWARD_SOFT_TOKEN + i takes row i of forward_set_soft. */
#define FORWARD_SOFT_TOKEN 0x80000000u

struct forward_row {
    uint32_t token;                   /* < vocab, or FORWARD_SOFT_TOKEN + index */
    uint32_t position;                /* < max_context */
    uint32_t seq;                     /* index in seqs */
    uint8_t want_logits;              /* 1: this row gets a row of logits (and of hidden_out) */
    uint16_t ahead;                   /* positions behind this one that it sees too: the rest of its picture's block; 0: none */
};

struct forward_seq {
    const uint32_t *full_pages;       /* borrowed for the call; page of positions i*KV_PAGE_TOKENS.. */
    const uint32_t *sliding_pages;    /* borrowed for the call; the ring, see model/kv.h */
    uint32_t full_page_count;         /* entries; must cover the highest position of the call */
    uint32_t sliding_page_count;      /* entries; min(pages of the highest position, a whole ring) */
};

struct forward;                       /* opaque */

/* What to do with a matrix whose format rounds activations (kernels/stored.h). */
enum forward_activations {
    FORWARD_ACTIVATIONS_AUTO = 0,     /* as the checkpoint says */
    FORWARD_ACTIVATIONS_BF16 = 1      /* never round them to FP8: every matrix is weight-only */
};

struct forward_options {
    uint32_t threads;                 /* 0: one per online CPU; the caller's thread is one of them */
    uint32_t rows_max;                /* most rows in one call, all sequences together */
    uint32_t pin;                     /* 1: bind thread i to the i-th CPU this process may use */
    uint32_t kernels;                 /* enum kernels_isa, 0: the best this CPU has */
    uint32_t activations;             /* enum forward_activations */
};

/* Called between layers with the number of layers done (and once more after the logits): a heartbeat. */
typedef void forward_progress_fn(void *context, uint32_t layers_done, uint32_t layer_count);

/* For drafters that read the layers' outputs (model/features.h), and for tests: h [row_count, hidden] after the embedding (layer 0) and after each layer i (i+1). */
typedef void forward_hidden_fn(void *context, uint32_t layer, const float *hidden, uint32_t row_count);

/* Calibration hook: rows [row_count, matrix->k] that are about to meet `matrix`, before any rounding. */
typedef void forward_input_fn(void *context, const struct stored_matrix *matrix, const float *rows, uint32_t row_count);

/* Allocates everything. weights, geo and kv_base (geo->arena_bytes, 64-byte aligned) are borrowed until
 * forward_close. 0, -E_NOMEM, -E_RANGE (options), -E_IO (threads), -E_UNSUPPORTED (instruction set). */
int forward_open(struct forward **forward, const struct model_weights *weights, const struct kv_geometry *geo,
                 void *kv_base, const struct forward_options *options);

void forward_close(struct forward *forward);

void forward_set_progress(struct forward *forward, forward_progress_fn *fn, void *context);
void forward_set_hidden_hook(struct forward *forward, forward_hidden_fn *fn, void *context);

void forward_set_input_hook(struct forward *forward, forward_input_fn *fn, void *context);

/* Soft tokens (pictures, sound): rows [count, hidden] used as they are, without the embedding scale.
 * Borrowed until the next call of this function; NULL, 0 removes them. */
void forward_set_soft(struct forward *forward, const float *rows, uint32_t count);

/* Runs the rows. Rows of one sequence stand together, positions ascending by one; everything before the first position
 * must have been run before. What a row sees ahead must be in the call, in the same sequence; pictures are thus never cut. logits [wanted, vocab], after the softcap; NULL: none are made.
 * hidden [wanted, hidden], after the final norm; may be NULL. Rows that want something need one of the two. K and V of all rows are in the arena afterwards.
 * 0, or -E_RANGE with nothing written: a row is out of range, out of order, or lacks a page. */
int forward_run(struct forward *forward, const struct forward_row *rows, uint32_t row_count,
                const struct forward_seq *seqs, uint32_t seq_count, float *logits, float *hidden);

/* The logits of rows whose hidden state is known: hidden [count, hidden] as forward_run gives it, the same bits as its logits [count, vocab].
 * 0, or -E_RANGE: count is 0 or above rows_max. */
int forward_logits(struct forward *forward, const float *hidden, uint32_t count, float *logits);

/* "portable", "avx2" or "avx512": what forward_open chose. */
const char *forward_kernels_name(const struct forward *forward);
uint32_t forward_threads(const struct forward *forward);

#endif
