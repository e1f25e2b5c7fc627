/* plain_pick: a drafter's choice from a row of logits by model/sampler.c's rules and noise; all threads of a block of PICK_THREADS take part.
 *
 * Greedy, or top_k, top_p, min_p, then the largest of logit / temperature + Gumbel noise (sample_pick.cuh). What differs from the sampler, since it is advice: penalties and logit_bias are
 * not looked at, and a top_k beyond 64, or none beside a top_p or min_p, counts as 64. All else is its choice bit by bit, and so is by how much the token won. */
#ifndef SLUICE_CUDA_PLAIN_PICK_CUH
#define SLUICE_CUDA_PLAIN_PICK_CUH

#include "plain_math.cuh"
#include "sample_pick.cuh"

#define PLAIN_TOP_K_MAX 64u
#define PLAIN_NOISE_MOST 23.0         /* more than any Gumbel noise of a 32-bit word: log of 2^33 is 22.9 */
#define PLAIN_NOBODY 0xffffffffu

struct plain_choice {                 /* of one row */
    const float *base, *more;         /* logits are their sum; more NULL: base alone. 16-byte aligned */
    const uint32_t *left_out;         /* bit t % 32 of word t / 32: token t is never chosen */
    uint32_t vocab, not_this;         /* a multiple of 16; one more token that is left out, or PLAIN_NOBODY */
};

struct plain_picked { double value; uint32_t token; };       /* what the token won with; PLAIN_NOBODY: there was none */

/* A request's rules as the functions below take them. */
static __device__ __forceinline__ step_sampling plain_sampling(uint64_t seed, float temperature, uint32_t top_k, float top_p, float min_p, uint32_t vocab)
{
    step_sampling p = {};

    p.seed = seed, p.temperature = temperature, p.top_p = top_p, p.min_p = min_p, p.top_k = top_k >= vocab ? 0 : top_k;
    if (p.top_k > PLAIN_TOP_K_MAX || (p.top_k == 0 && ((top_p > 0.0f && top_p < 1.0f) || min_p > 0.0f))) p.top_k = PLAIN_TOP_K_MAX;
    return p;
}

/* Four neighbouring logits, those of tokens that are left out at -inf. */
static __device__ __forceinline__ void plain_load4(const plain_choice &c, uint32_t quad, float (&v)[4])
{
    const float4 base = __ldcg((const float4 *)c.base + quad);

    v[0] = base.x, v[1] = base.y, v[2] = base.z, v[3] = base.w;
    if (c.more) {
        const float4 z = __ldcg((const float4 *)c.more + quad);

        v[0] = plain_add(z.x, v[0]), v[1] = plain_add(z.y, v[1]), v[2] = plain_add(z.z, v[2]), v[3] = plain_add(z.w, v[3]);
    }
    const uint32_t out = __ldg(c.left_out + quad / 8) >> (4 * (quad % 8));

#pragma unroll
    for (uint32_t j = 0; j < 4; j++)
        if ((out >> j & 1) || 4 * quad + j == c.not_this) v[j] = -CUDART_INF_F;
}

static __device__ plain_picked plain_greedy(const plain_choice &c, pick_shared &sh)
{
    float best = -CUDART_INF_F, v[4];
    uint32_t token = PLAIN_NOBODY;

    for (uint32_t quad = threadIdx.x; quad < c.vocab / 4; quad += PICK_THREADS) {
        plain_load4(c, quad, v);
#pragma unroll
        for (uint32_t j = 0; j < 4; j++)
            if (v[j] > best) best = v[j], token = 4 * quad + j;
    }
    pick_best(best, token, sh.best, sh);
    return { (double)best, token };
}

/* Nothing is filtered: every token has its noise, which is computed where it can decide. */
static __device__ plain_picked plain_noisiest(const plain_choice &c, const step_sampling &p, uint64_t position, pick_shared &sh)
{
    double best = -CUDART_INF;
    uint32_t token = PLAIN_NOBODY;
    float v[4];

    for (uint32_t quad = threadIdx.x; quad < c.vocab / 4; quad += PICK_THREADS) {
        plain_load4(c, quad, v);
        const uint4 words = sample_philox(p.seed, position, quad);

        for (uint32_t j = 0; j < 4; j++) {
            const double logit = (double)(v[j] / p.temperature);

            if (!(logit + PLAIN_NOISE_MOST >= best) || v[j] == -CUDART_INF_F) continue;
            const double noisy = logit + sample_gumbel(sample_above(sample_word(words, j)));

            if (noisy > best) best = noisy, token = 4 * quad + j;
        }
    }
    pick_best(best, token, sh.noisy, sh);
    return { best, token };
}

/* Notes every logit that reaches the bound; how many there are, also beyond the room. */
static __device__ uint32_t plain_gather(const plain_choice &c, uint32_t bound, pick_shared &sh)
{
    float v[4];

    __syncthreads();
    if (threadIdx.x == 0) sh.count = 0;
    __syncthreads();
    for (uint32_t quad = threadIdx.x; quad < c.vocab / 4; quad += PICK_THREADS) {
        plain_load4(c, quad, v);
#pragma unroll
        for (uint32_t j = 0; j < 4; j++) {
            if (!(v[j] > -CUDART_INF_F) || sample_ordered(v[j]) < bound) continue;
            const uint32_t at = atomicAdd(&sh.count, 1);

            if (at < PICK_MAX) sh.found[at].logit = v[j], sh.found[at].token = 4 * quad + j;
        }
    }
    __syncthreads();
    return sh.count;
}

/* sh.sorted: at least the top_k best, how many is returned. The bound is one that at least top_k logits reach and hardly more, raised while there are more than there is room for. */
static __device__ uint32_t plain_best(const plain_choice &c, const step_sampling &p, pick_shared &sh)
{
    float own = -CUDART_INF_F, v[4];

    for (uint32_t quad = threadIdx.x; quad < c.vocab / 4; quad += PICK_THREADS) {
        plain_load4(c, quad, v);
        own = fmaxf(own, fmaxf(fmaxf(v[0], v[1]), fmaxf(v[2], v[3])));
    }
    uint32_t low = pick_bound(sample_ordered(own), p.top_k), high = 0xff800000u, n = plain_gather(c, low, sh);

    while (n > PICK_MAX && high - low > 1) {
        const uint32_t middle = low + (high - low) / 2, reached = plain_gather(c, middle, sh);

        if (reached >= p.top_k) low = middle, n = reached;
        else high = middle;
    }
    if (sh.count != n) n = plain_gather(c, low, sh);
    n = min(n, (uint32_t)PICK_MAX);   /* ties beyond the room are dropped, as in sample.h */
    pick_sort(n, sh);
    return n;
}

/* As pick_draw, of the n best that are sorted: what top_p, min_p and the noise leave. */
static __device__ plain_picked plain_draw(const step_sampling &p, uint64_t position, uint32_t n, uint32_t not_this, pick_shared &sh)
{
    const uint32_t i = threadIdx.x;
    plain_picked own = { -CUDART_INF, PLAIN_NOBODY };

    if (i < n) sh.mass[i] = sample_exp(sh.sorted[i].logit / p.temperature - sh.sorted[0].logit / p.temperature);
    __syncthreads();
    if (pick_keeps(p, sh, n, i) && sh.sorted[i].token != not_this) own = { pick_noisy(p, position, sh.sorted[i].logit, sh.sorted[i].token), sh.sorted[i].token };
    pick_best(own.value, own.token, sh.noisy, sh);
    return own;
}

/* The token of a row whose successor stands at `position`; PLAIN_NOBODY: no logit is finite. lead: by how much it won; NULL: nobody asks. The same in all threads. */
static __device__ uint32_t plain_pick(plain_choice c, const step_sampling &p, uint64_t position, pick_shared &sh, float *lead)
{
    const bool greedy = !(p.temperature >= SAMPLE_TEMPERATURE_MIN);
    const uint32_t n = greedy || p.top_k == 0 ? 0 : plain_best(c, p, sh);
    plain_picked best, second;

    best = greedy ? plain_greedy(c, sh) : p.top_k == 0 ? plain_noisiest(c, p, position, sh) : plain_draw(p, position, n, PLAIN_NOBODY, sh);
    if (lead == NULL) return best.token;
    c.not_this = best.token;
    second = greedy ? plain_greedy(c, sh) : p.top_k == 0 ? plain_noisiest(c, p, position, sh) : plain_draw(p, position, n, best.token, sh);
    *lead = greedy ? (float)best.value - (float)second.value : (float)(best.value - second.value);
    return best.token;
}

#endif
