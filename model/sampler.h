/* model/sampler.h - picks a token from logits: a pure function of (parameters, logits, position, history).
 *
 * Order: suppressed tokens, logit_bias, repetition / frequency / presence penalty, temperature, top_k (ties kept), top_p (of
 * equal tokens at its edge those with lower ids stay), min_p, then argmax(logit / temperature + Gumbel noise) over what
 * is left, which draws from the softmax of the candidates. The noise is Philox keyed by the seed, counted by
 * (position, token): a drafter that uses the same seed and position meets the same noise. Nothing depends on other
 * sequences, batches or calls. */
#ifndef SLUICE_MODEL_SAMPLER_H
#define SLUICE_MODEL_SAMPLER_H

#include <stdint.h>

#define SAMPLER_BIAS_MAX 64
#define SAMPLER_LOGPROBS_MAX 20

/* Crosses processes in shared memory: fixed-width words only, no pointer. 0-initialised it means greedy. */
struct sampling_params {
    uint64_t seed;
    float temperature;                /* [0, 100]; below 1e-5: greedy, lowest id among equals */
    float top_p;                      /* (0, 1]; 1 or 0: off */
    float min_p;                      /* [0, 1]; 0: off */
    uint32_t top_k;                   /* 0: off */
    float presence_penalty;           /* [-2, 2], on generated tokens; 0: off */
    float frequency_penalty;          /* [-2, 2], times the count among generated tokens; 0: off */
    float repetition_penalty;         /* > 0, on prompt and generated tokens; 1 or 0: off */
    uint32_t want_logprobs;           /* 1: fill sample_out.logprob and the top list */
    uint32_t top_logprob_count;       /* 0..SAMPLER_LOGPROBS_MAX */
    uint32_t logit_bias_count;        /* 0..SAMPLER_BIAS_MAX */
    struct { uint32_t token; float bias; } logit_bias[SAMPLER_BIAS_MAX];
};
_Static_assert(sizeof(struct sampling_params) == 560, "sampling_params crosses processes: changing it changes a schema");

/* 0, or -E_RANGE when a field is not finite or outside the limits stated beside it; *field names it. */
int sampling_params_check(const struct sampling_params *params, uint32_t vocab, const char **field);

/* Does this request need the history of its tokens? */
int sampling_params_need_counts(const struct sampling_params *params);

/* Distinct tokens seen by one sequence. Memory is made in open and suffices for max_tokens distinct tokens. */
struct penalty_entry { uint32_t token, generated; };   /* generated: times among the output; 0: prompt only */
struct penalty_counts {
    struct penalty_entry *entry;      /* owned; in order of first appearance */
    uint32_t *slot;                   /* owned; hash: index of entry + 1, 0 = free */
    uint32_t count, capacity, slot_count;
};
int penalty_counts_open(struct penalty_counts *counts, uint32_t max_tokens);  /* 0, -E_NOMEM, -E_RANGE */
void penalty_counts_close(struct penalty_counts *counts);
void penalty_counts_reset(struct penalty_counts *counts);
int penalty_counts_add(struct penalty_counts *counts, uint32_t token, int generated);  /* 0, -E_FULL */

struct sample_logprob { uint32_t token; float logprob; };
struct sample_out {
    uint32_t token;
    uint32_t candidate_count;         /* tokens left after all filters (1 when greedy) */
    float logprob;                    /* of token, from the logits as the model gave them; 0 unless wanted */
    uint32_t top_count;
    struct sample_logprob top[SAMPLER_LOGPROBS_MAX];   /* most likely first, equal ones by id */
};

struct sampler;                       /* scratch space for one thread, opaque */

/* Makes scratch space for `vocab` logits and copies the list of tokens that are never picked.
 * 0, -E_NOMEM, -E_RANGE (vocab 0, a suppressed id >= vocab, all suppressed). */
int sampler_open(struct sampler **sampler, uint32_t vocab, const uint32_t *suppress, uint32_t suppress_count);
void sampler_close(struct sampler *sampler);

/* Picks the token for `position` (the position that the new token will have). logits [vocab] are overwritten.
 * counts may be NULL when sampling_params_need_counts is 0. params must have passed sampling_params_check.
 * 0, or -E_RANGE: a logit is NaN or +inf, or none is left (the model is broken). */
int sampler_pick(struct sampler *sampler, const struct sampling_params *params, float *logits, uint64_t position,
                 const struct penalty_counts *counts, struct sample_out *out);

/* The same choice for a drafter, who only needs to know how sure it is: lead is by how much the token won (logits over temperature, noise
 * added; greedy: logits), infinite when nothing else was left. */
int sampler_guess(struct sampler *sampler, const struct sampling_params *params, float *logits, uint64_t position,
                  const struct penalty_counts *counts, uint32_t *token, float *lead);

/* What sampler_pick would draw from: up to `max` tokens with their weights (probability times a common factor), in no
 * order. Returns how many there are, or -E_RANGE. For tests and for drafters that need a distribution. */
int sampler_candidates(struct sampler *sampler, const struct sampling_params *params, float *logits,
                       const struct penalty_counts *counts, uint32_t *tokens, float *weights, uint32_t max);

#endif
