/* model/dspark.h - the DSpark drafter: guesses a block of tokens in one pass, from what some of the target's layers left behind.
 *
 * Source: DeepSpec's Gemma4DSparkModel. A *feature row* of position p is the target's residual stream behind each layer of config.source (after the
 * layer's scalar, before the final norm), side by side. f(p) = norm(fc feature). Block of a sequence whose newest token t stands at
 * position s (not yet run through the target): rows t, mask, mask ... at positions s .. s + block - 1;
 *
 *   each layer: queries from the block; keys and values from f(p) of the positions before s and from the block's own rows, which all see each other
 *   h = norm(x) ; row i guesses position s + 1 + i:   logits(i) = cap(lm_head h(i)) + W2 W1[token at s + i]
 *   confidence(i) = sigmoid(w [h(i) ; W1[token at s + i]] + b): will the target take the guess if it took those before
 *
 * The token at s + i is the caller's choice of guess i - 1, so guesses are made one after the other (dspark_guess), all from one pass (dspark_block).
 *
 * Keys and values of the positions seen lie in memory of the caller, a ring of `window` positions and a block for each sequence: dspark_absorb puts
 * positions there, once and in any order; a process that dies leaves them to its successor. A block's own rows are put behind them and mean nothing afterwards.
 * The bits of a row depend on its sequence alone: not on other rows of the call, chunks or threads. Advice only: a wrong step costs speed.
 * Owns activations and threads; weights and caches are borrowed. */
#ifndef SLUICE_MODEL_DSPARK_H
#define SLUICE_MODEL_DSPARK_H

#include "model/drafter.h"
#include "model/forward.h"
#include "model/weights.h"

#define DSPARK_BLOCKS_MAX 256         /* sequences in one call */

struct dspark_layer {
    struct drafter_layer shared;
    struct stored_matrix k;           /* [kv_heads * head_dim, hidden]; values are the same, normed without weight and not turned */
    const float *k_norm;              /* [head_dim] */
};

struct dspark_weights {
    struct dspark_config config;
    struct stored_matrix fc;          /* [hidden, source_count * hidden] */
    const float *hidden_norm, *norm;  /* [hidden] */
    struct dspark_layer layer[MODEL_LAYERS_MAX];
    const void *embed;                /* [vocab, hidden] of embed_dtype; the target's own when they are equal */
    enum tensor_dtype embed_dtype;
    float embed_scale;
    struct stored_matrix head;        /* [vocab, hidden] likewise */
    const void *markov_in;            /* [vocab, rank] of markov_dtype; NULL: no Markov head */
    enum tensor_dtype markov_dtype;
    struct stored_matrix markov_out;  /* [vocab, rank] */
    const float *confidence;          /* [hidden (+ rank)]; NULL: no confidence head */
    float confidence_bias;
    bool embed_is_shared, head_is_shared;         /* with the target: these bytes are in memory anyway */
    uint64_t own_bytes;               /* weights that only the drafter needs */
    uint64_t block_bytes;             /* weights that one block reads, all its guesses included */
    float *owned;
    void *rounded;                    /* codes and scales of dspark_to_fp8 */
};

/* config.json and *.safetensors of a set of files. Embedding and output matrix that equal the target's (or are not in the files) are the target's; NULL: no
 * target at hand, all must be there. 0, or -E_NOT_FOUND, -E_FORMAT, -E_UNSUPPORTED, -E_NOMEM; err names field or tensor. */
int dspark_load(struct dspark_weights *weights, const struct model_files *files, const struct model_weights *target, struct model_error *err);
void dspark_weights_free(struct dspark_weights *weights);

/* Rounds every matrix that is BF16 or F32 to FP8, a scale for each row: half the bytes of a block. The output matrix then is the drafter's own. What is
 * looked up (embeddings, the Markov head's input) stays. threads: 0: one per CPU. 0, -E_NOMEM, -E_IO. */
int dspark_to_fp8(struct dspark_weights *weights, uint32_t threads);

/* Can it draft for this target: hidden size, vocabulary, layers. 0, or -E_UNSUPPORTED with the reason. */
int dspark_check(const struct dspark_config *config, const struct model_config *target, struct model_error *err);

/* Floats of a feature row. */
static inline uint32_t dspark_feature_floats(const struct dspark_config *c) { return c->source_count * c->layers.hidden; }

/* ---- the cache: one piece of `slot_bytes` for each sequence, 64-byte aligned, any contents at first ---- */

struct dspark_cache {
    enum kv_dtype dtype;
    uint32_t element_bytes;
    uint32_t window;                  /* positions before the newest token that a block sees */
    uint32_t ring_tokens;             /* position p lies in place p % ring_tokens; >= window + block, multiple of KV_PAGE_TOKENS */
    uint32_t max_context;
    uint64_t page_bytes;              /* KV_PAGE_TOKENS positions: for each layer K [kv_heads][KV_PAGE_TOKENS][head_dim], then V */
    uint64_t slot_bytes;              /* multiple of 64 */
};

/* 0, or -E_RANGE: window or max_context 0. window is cut to max_context. */
int dspark_cache_init(struct dspark_cache *cache, const struct dspark_config *config, enum kv_dtype dtype, uint32_t window, uint32_t max_context);

/* ---- drafting ----------------------------------------------------------------------------------------- */

struct dspark_feature {
    const float *feature;             /* [dspark_feature_floats] */
    void *cache;                      /* of the sequence */
    uint32_t position;
};

struct dspark_row {                   /* one sequence's block */
    void *cache;
    uint32_t token, position;         /* the newest token */
    uint32_t low;                     /* positions low .. position - 1 are in the cache (of them the newest `window` are seen) */
};

struct dspark_guess {
    uint32_t row, index;              /* row of the last dspark_block; guess 0 .. wanted - 1 */
    uint32_t previous;                /* the token before it: row's token, or the choice of guess index - 1 */
};

struct dspark;                        /* opaque */

/* Test and debug hook: stage -1: f of the rows absorbed; 0: embedded block rows; i + 1: after layer i. rows [count, hidden]. */
typedef void dspark_hidden_fn(void *context, int stage, const float *rows, uint32_t count);

/* options->rows_max: blocks in one call. 0, -E_NOMEM, -E_RANGE, -E_IO, -E_UNSUPPORTED. */
int dspark_open(struct dspark **dspark, const struct dspark_weights *weights, const struct dspark_cache *cache, const struct forward_options *options);
void dspark_close(struct dspark *dspark);
void dspark_set_hook(struct dspark *dspark, dspark_hidden_fn *fn, void *context);

/* Puts positions into their caches; any count. 0, or -E_RANGE (a position) with nothing written. */
int dspark_absorb(struct dspark *dspark, const struct dspark_feature *rows, uint32_t count);

/* One pass for `count` blocks. All block rows are computed; `wanted` guesses of each will be asked for. A block near max_context is cut
 * by the caller: position + block <= max_context. 0, or -E_RANGE with nothing done. */
int dspark_block(struct dspark *dspark, const struct dspark_row *rows, uint32_t count, uint32_t wanted);

/* Logits [count, vocab] of guesses of the last block, at most rows_max of them; -E_RANGE otherwise. */
int dspark_logits(struct dspark *dspark, const struct dspark_guess *guesses, uint32_t count, float *logits);

/* The chance that the target takes this guess if it took those before it, whatever the guess will be; 1 without a confidence head.
 * Negative: -E_RANGE. */
float dspark_confidence(const struct dspark *dspark, const struct dspark_guess *guess);

#endif
