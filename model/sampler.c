/* model/sampler.c - see sampler.h.
 *
 * With a top_k the whole vocabulary is read twice (to find the k-th value, to gather) and nothing else touches
 * it. Without one every token draws its noise, but the logarithms are taken only for the few whose uniform number is large enough
 * to win: (1 - u) must be below the token's weight relative to the best value so far. */
#include "model/sampler.h"
#include "kernels/kernels.h"
#include "model/philox.h"
#include "shm/error.h"
#include "shm/must.h"
#include <float.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define SAMPLER_TEMPERATURE_MIN 1e-5f /* below it: greedy; a division by less could overflow */
#define SAMPLER_DOMAIN 0x746f6b65u    /* fourth counter word: noise for other uses gets another */
#define SAMPLER_PREFIX 512u           /* first guess of how many tokens top_p keeps */

struct candidate { float logit; uint32_t token; };    /* logit: divided by the temperature */

struct sampler {
    const struct kernels *kernels;
    uint32_t vocab, suppress_count;
    uint32_t *suppress;               /* owned, as all below */
    float *value;                     /* [vocab] scratch for selection */
    float *original;                  /* [vocab] the logits as they came, when log probabilities are wanted */
    float *weight;                    /* [vocab, rounded up to 16] exp(logit - max) of each candidate */
    struct candidate *candidate;      /* [vocab] */
};

/* ---- parameters ---- */

static bool within(float x, float low, float high) { return x >= low && x <= high; }      /* false for NaN */

int sampling_params_check(const struct sampling_params *p, uint32_t vocab, const char **field)
{
    const struct { const char *name; bool ok; } check[] = {
        { "temperature", within(p->temperature, 0, 100) },
        { "top_p", within(p->top_p, 0, 1) },
        { "min_p", within(p->min_p, 0, 1) },
        { "presence_penalty", within(p->presence_penalty, -2, 2) },
        { "frequency_penalty", within(p->frequency_penalty, -2, 2) },
        { "repetition_penalty", within(p->repetition_penalty, 0, 100) && (p->repetition_penalty == 0 || p->repetition_penalty >= 0.01f) },
        { "top_logprobs", p->top_logprob_count <= SAMPLER_LOGPROBS_MAX },
        { "logprobs", p->want_logprobs <= 1 },
        { "logit_bias", p->logit_bias_count <= SAMPLER_BIAS_MAX },
    };

    *field = NULL;
    for (size_t i = 0; i < sizeof(check) / sizeof(check[0]) && !*field; i++)
        if (!check[i].ok) *field = check[i].name;
    for (uint32_t i = 0; !*field && i < p->logit_bias_count; i++)
        if (p->logit_bias[i].token >= vocab || !within(p->logit_bias[i].bias, -100, 100)) *field = "logit_bias";
    return *field ? -E_RANGE : 0;
}

static bool repetition_on(const struct sampling_params *p) { return p->repetition_penalty != 0 && p->repetition_penalty != 1; }

int sampling_params_need_counts(const struct sampling_params *p)
{
    return repetition_on(p) || p->presence_penalty != 0 || p->frequency_penalty != 0;
}

/* ---- scratch space ---- */

int sampler_open(struct sampler **sampler, uint32_t vocab, const uint32_t *suppress, uint32_t suppress_count)
{
    struct sampler *s;

    if (vocab == 0 || vocab > 1u << 24 || suppress_count >= vocab) return -E_RANGE;
    for (uint32_t i = 0; i < suppress_count; i++)
        if (suppress[i] >= vocab) return -E_RANGE;
    if (!(s = calloc(1, sizeof(*s)))) return -E_NOMEM;
    s->kernels = kernels_get(KERNELS_BEST);
    s->vocab = vocab;
    s->suppress_count = suppress_count;
    s->suppress = malloc((suppress_count + 1) * sizeof(*s->suppress));
    s->value = malloc(vocab * sizeof(*s->value));
    s->original = malloc(vocab * sizeof(*s->original));
    s->weight = malloc((vocab + 15) / 16 * 16 * sizeof(*s->weight));
    s->candidate = malloc(vocab * sizeof(*s->candidate));
    if (!s->suppress || !s->value || !s->original || !s->weight || !s->candidate) {
        sampler_close(s);
        return -E_NOMEM;
    }
    if (suppress_count > 0) memcpy(s->suppress, suppress, suppress_count * sizeof(*suppress));
    *sampler = s;
    return 0;
}

void sampler_close(struct sampler *s)
{
    if (!s) return;
    free(s->suppress);
    free(s->value);
    free(s->original);
    free(s->weight);
    free(s->candidate);
    free(s);
}

/* ---- selection ---- */

/* Orders x[0, n) so that the `keep` largest come first (in any order); 0 < keep <= n. */
static void select_values(float *x, uint32_t n, uint32_t keep)
{
    uint32_t low = 0, high = n - 1;

    while (low < high) {
        const float pivot = x[low + (high - low) / 2];
        uint32_t i = low, j = high;

        for (;;) {
            while (x[i] > pivot) i++;
            while (x[j] < pivot) j--;
            if (i >= j) break;
            const float swap = x[i];
            x[i++] = x[j];
            x[j--] = swap;
        }
        if (keep - 1 <= j) high = j;
        else low = j + 1;
    }
}

/* The k-th largest of x, or -INFINITY when fewer than k are above it. `room` holds n values. */
static float kth_largest(const float *x, uint32_t n, uint32_t k, float *room)
{
    const uint32_t full = 2 * (uint64_t)k < n ? 2 * k : n;
    float least = -INFINITY;          /* of the k largest so far, once there are k */
    uint32_t used = 0;

    for (uint32_t i = 0; i < n; i++) {
        if (!(x[i] > least)) continue;
        room[used++] = x[i];
        if (used < full || full == n) continue;
        select_values(room, used, k);
        used = k;
        least = room[0];
        for (uint32_t j = 1; j < k; j++) least = room[j] < least ? room[j] : least;
    }
    if (used < k) return -INFINITY;
    select_values(room, used, k);
    for (uint32_t j = 0; j < k; j++) least = j == 0 || room[j] < least ? room[j] : least;
    return least;
}

static int compare_candidates(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;

    if (x->logit != y->logit) return x->logit > y->logit ? -1 : 1;
    return x->token < y->token ? -1 : x->token > y->token;
}

/* Moves the candidates of at least `bound` to the front; returns how many. */
static uint32_t gather_front(struct candidate *c, uint32_t n, float bound)
{
    uint32_t front = 0;

    for (uint32_t i = 0; i < n; i++) {
        if (!(c[i].logit >= bound)) continue;
        const struct candidate swap = c[front];
        c[front++] = c[i];
        c[i] = swap;
    }
    return front;
}

/* ---- the steps ---- */

static void apply_penalties(const struct sampler *s, const struct sampling_params *p, float *logits, const struct penalty_counts *counts)
{
    for (uint32_t i = 0; i < s->suppress_count; i++) logits[s->suppress[i]] = -INFINITY;
    for (uint32_t i = 0; i < p->logit_bias_count; i++) logits[p->logit_bias[i].token] += p->logit_bias[i].bias;
    if (!sampling_params_need_counts(p)) return;
    must(counts != NULL);
    for (uint32_t i = 0; i < counts->count; i++) {
        const struct penalty_entry *e = &counts->entry[i];
        float *logit = &logits[e->token];

        must(e->token < s->vocab);
        if (repetition_on(p)) *logit = *logit < 0 ? *logit * p->repetition_penalty : *logit / p->repetition_penalty;
        if (e->generated > 0) *logit -= p->presence_penalty + (float)e->generated * p->frequency_penalty;
    }
}

/* The token with the largest logit, the lowest id among equals; -E_RANGE when a logit is NaN or +inf, or all are -inf. */
static int find_best(const float *logits, uint32_t vocab, uint32_t *best)
{
    float top = -INFINITY;
    bool bad = false;

    *best = 0;
    for (uint32_t i = 0; i < vocab; i++) {
        bad |= !(logits[i] <= FLT_MAX);
        if (logits[i] > top) {
            top = logits[i];
            *best = i;
        }
    }
    return bad || top == -INFINITY ? -E_RANGE : 0;
}

/* Gathers what top_k leaves, by id, divided by the temperature. */
static uint32_t gather(struct sampler *s, const struct sampling_params *p, const float *logits)
{
    const bool all = p->top_k == 0 || p->top_k >= s->vocab;
    const float bound = all ? -INFINITY : kth_largest(logits, s->vocab, p->top_k, s->value);
    uint32_t n = 0;

    for (uint32_t i = 0; i < s->vocab; i++)
        if (logits[i] >= bound && logits[i] != -INFINITY) s->candidate[n++] = (struct candidate){ logits[i] / p->temperature, i };
    return n;
}

/* weight[i] = exp(candidate[i] - top) */
static void weigh(struct sampler *s, uint32_t n, float top)
{
    for (uint32_t i = 0; i < n; i++) s->weight[i] = s->candidate[i].logit - top;
    for (uint32_t i = n; i % 16 != 0; i++) s->weight[i] = 0;
    s->kernels->exp(s->weight, (n + 15) / 16 * 16);
}

/* Keeps the smallest set of largest candidates whose share reaches top_p; the set stands in order of size. */
static uint32_t keep_top_p(struct sampler *s, uint32_t n, float top, float top_p)
{
    double total = 0, sum = 0;
    uint32_t front = 0, done = 0;

    for (uint32_t i = 0; i < n; i++) total += (double)s->weight[i];
    for (uint32_t guess = SAMPLER_PREFIX; done < n; guess *= 8) {
        float bound = -INFINITY;

        if (guess < n - done) {       /* the next `guess` largest of the rest */
            float *value = s->value;

            for (uint32_t i = done; i < n; i++) value[i - done] = s->candidate[i].logit;
            select_values(value, n - done, guess);
            bound = value[0];
            for (uint32_t i = 1; i < guess; i++) bound = value[i] < bound ? value[i] : bound;
        }
        front = done + gather_front(s->candidate + done, n - done, bound);
        qsort(s->candidate + done, front - done, sizeof(*s->candidate), compare_candidates);
        weigh(s, front, top);
        for (; done < front; done++) {
            sum += (double)s->weight[done];
            if (sum >= (double)top_p * total) return done + 1;
        }
    }
    return n;
}

/* Drops candidates whose weight against the largest is below min_p; keeps the order. */
static uint32_t keep_min_p(struct sampler *s, uint32_t n, float min_p)
{
    uint32_t kept = 0;

    for (uint32_t i = 0; i < n; i++) {
        if (s->weight[i] < min_p) continue;
        s->weight[kept] = s->weight[i];
        s->candidate[kept++] = s->candidate[i];
    }
    return kept;
}

/* argmax of logit + Gumbel noise, lowest id among equals. lead: by how much it won; NULL: nobody asks, and fewer logarithms are taken. */
static uint32_t draw(const struct sampler *s, uint64_t seed, uint64_t position, uint32_t n, float top, float *lead)
{
    struct philox_block block = { { 0 } };
    uint32_t block_index = UINT32_MAX, winner = UINT32_MAX;
    double best = -INFINITY, second = -INFINITY, reach = INFINITY; /* reach: a token counts only if 1 - u <= weight * reach */

    for (uint32_t i = 0; i < n; i++) {
        const struct candidate *c = &s->candidate[i];
        double above, noisy;                        /* above: 1 - u, exact */

        if (c->token / 4 != block_index) {
            block_index = c->token / 4;
            block = philox4x32_10((struct philox_block){ { block_index, (uint32_t)position, (uint32_t)(position >> 32), SAMPLER_DOMAIN } },
                                  (uint32_t)seed, (uint32_t)(seed >> 32));
        }
        above = (4294967295.5 - block.word[c->token % 4]) * 0x1p-32;
        if (above > (double)s->weight[i] * reach) continue;
        noisy = (double)c->logit - log(-log1p(-above));
        if (noisy > best || (noisy == best && c->token < winner)) {
            second = best;
            best = noisy;
            winner = c->token;
        } else if (lead && noisy > second) second = noisy;
        else continue;
        /* -log(-log u) > d needs 1 - u < e^-d; the weights carry a few units of f32 */
        reach = exp((double)top - (lead ? second : best)) * 1.0001;
    }
    if (lead) *lead = (float)(best - second);
    return winner;
}

/* ---- log probabilities ---- */

static void insert_top(struct sample_out *out, uint32_t max, uint32_t token, float logit)
{
    uint32_t at = out->top_count;

    if (at == max) {
        if (max == 0 || !(logit > out->top[max - 1].logprob)) return;
        at--;
    } else out->top_count++;
    for (; at > 0 && logit > out->top[at - 1].logprob; at--) out->top[at] = out->top[at - 1];
    out->top[at] = (struct sample_logprob){ token, logit };
}

/* Fills the top list with logits, most likely first, and returns log(sum(exp)). */
static double take_logprobs(struct sampler *s, const struct sampling_params *p, const float *logits, struct sample_out *out)
{
    float top = -INFINITY;
    double sum = 0;

    for (uint32_t i = 0; i < s->vocab; i++) {
        top = logits[i] > top ? logits[i] : top;
        insert_top(out, p->top_logprob_count, i, logits[i]);
    }
    for (uint32_t i = 0; i < s->vocab; i++) s->weight[i] = logits[i] - top;
    for (uint32_t i = s->vocab; i % 16 != 0; i++) s->weight[i] = -INFINITY;
    s->kernels->exp(s->weight, (s->vocab + 15) / 16 * 16);
    for (uint32_t i = 0; i < s->vocab; i++) sum += (double)s->weight[i];
    return (double)top + log(sum);
}

/* All filters: leaves the candidates and their weights; returns how many, or -E_RANGE. */
static int filter(struct sampler *s, const struct sampling_params *p, float *logits, const struct penalty_counts *counts, float *top)
{
    uint32_t best, n;

    apply_penalties(s, p, logits, counts);
    if (find_best(logits, s->vocab, &best) != 0) return -E_RANGE;
    *top = logits[best];
    if (p->temperature < SAMPLER_TEMPERATURE_MIN) {
        s->candidate[0] = (struct candidate){ *top, best };
        s->weight[0] = 1.0f;
        return 1;
    }
    n = gather(s, p, logits);
    *top /= p->temperature;
    weigh(s, n, *top);
    if (p->top_p > 0 && p->top_p < 1) n = keep_top_p(s, n, *top, p->top_p);
    if (p->min_p > 0) n = keep_min_p(s, n, p->min_p);
    return (int)n;
}

int sampler_guess(struct sampler *s, const struct sampling_params *p, float *logits, uint64_t position,
                  const struct penalty_counts *counts, uint32_t *token, float *lead)
{
    float top, second = -INFINITY;
    const int n = filter(s, p, logits, counts, &top);

    if (n < 0) return n;
    *token = s->candidate[0].token;
    *lead = INFINITY;
    if (n > 1) *token = draw(s, p->seed, position, (uint32_t)n, top, lead);
    if (p->temperature >= SAMPLER_TEMPERATURE_MIN) return 0;
    for (uint32_t i = 0; i < s->vocab; i++)
        if (i != *token && logits[i] > second) second = logits[i];
    *lead = top - second;
    return 0;
}

int sampler_pick(struct sampler *s, const struct sampling_params *p, float *logits, uint64_t position,
                 const struct penalty_counts *counts, struct sample_out *out)
{
    double total = 0;
    float top;
    int n;

    *out = (struct sample_out){ 0 };
    if (p->want_logprobs) {
        memcpy(s->original, logits, s->vocab * sizeof(*logits));
        total = take_logprobs(s, p, logits, out);
    }
    if ((n = filter(s, p, logits, counts, &top)) < 0) return n;
    out->candidate_count = (uint32_t)n;
    out->token = n == 1 ? s->candidate[0].token : draw(s, p->seed, position, (uint32_t)n, top, NULL);
    must(out->token < s->vocab);
    if (!p->want_logprobs) return 0;
    out->logprob = (float)((double)s->original[out->token] - total);
    for (uint32_t i = 0; i < out->top_count; i++) out->top[i].logprob = (float)((double)out->top[i].logprob - total);
    return 0;
}

int sampler_candidates(struct sampler *s, const struct sampling_params *p, float *logits, const struct penalty_counts *counts,
                       uint32_t *tokens, float *weights, uint32_t max)
{
    float top;
    const int n = filter(s, p, logits, counts, &top);

    for (int i = 0; i < n && (uint32_t)i < max; i++) {
        tokens[i] = s->candidate[i].token;
        weights[i] = s->weight[i];
    }
    return n;
}
