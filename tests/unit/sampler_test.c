/* tests/unit/sampler_test.c - the generator, the filters against transformers, the distribution of the draws. */
#include "model/philox.h"
#include "model/sampler.h"
#include "shm/error.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static void test_philox_gives_the_published_answers(void **state)
{
    static const struct { uint32_t counter[4], key[2], answer[4]; } known[] = {
        { { 0, 0, 0, 0 }, { 0, 0 }, { 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 } },
        { { ~0u, ~0u, ~0u, ~0u }, { ~0u, ~0u }, { 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd } },
        { { 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344 }, { 0xa4093822, 0x299f31d0 }, { 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1 } },
    };

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        struct philox_block block;

        memcpy(block.word, known[i].counter, sizeof(block.word));
        block = philox4x32_10(block, known[i].key[0], known[i].key[1]);
        assert_memory_equal(block.word, known[i].answer, sizeof(block.word));
    }
}

/* As logits_of in tests/oracle/make_sampler_golden.py. */
static float case_logit(uint64_t number, uint64_t token, uint32_t rounded, float scale)
{
    uint64_t z = token * 0x9e3779b97f4a7c15u + number;
    float u;

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    u = (float)((int64_t)(z >> 40) - (1 << 23)) * 0x1p-23f;
    u = u * u * u * scale;
    return rounded ? rintf(u * 8) / 8 : u;
}

static void fill(float *logits, uint32_t vocab, uint64_t number, uint32_t rounded, float scale)
{
    for (uint32_t i = 0; i < vocab; i++) logits[i] = case_logit(number, i, rounded, scale);
}

struct record { float temperature; uint32_t top_k; float top_p, min_p, repetition; uint32_t seen, suppressed, rounded, scale, kept; };

static void check_record(uint32_t number, uint32_t vocab, const struct record *r, const uint32_t *kept)
{
    struct sampling_params p = { .temperature = r->temperature, .top_k = r->top_k, .top_p = r->top_p, .min_p = r->min_p, .repetition_penalty = r->repetition };
    uint32_t suppress[16], *tokens = malloc(vocab * 4);
    float *logits = malloc(vocab * 4), *weights = malloc(vocab * 4), *share = calloc(vocab, 4);
    struct penalty_counts counts;
    struct sampler *s;
    const char *field;
    double total = 0;
    int n;

    for (uint32_t i = 0; i < r->suppressed; i++) suppress[i] = 5 * i;
    assert_int_equal(sampler_open(&s, vocab, suppress, r->suppressed), 0);
    assert_int_equal(penalty_counts_open(&counts, 200), 0);
    for (uint32_t i = 0; i < r->seen; i++) assert_int_equal(penalty_counts_add(&counts, 3 * i, i % 2), 0);
    assert_int_equal(sampling_params_check(&p, vocab, &field), 0);
    fill(logits, vocab, number, r->rounded, (float)r->scale);
    n = sampler_candidates(s, &p, logits, &counts, tokens, weights, vocab);
    if (n != (int)r->kept) fail_msg("case %u: %d candidates, transformers keeps %u", number, n, r->kept);
    for (int i = 0; i < n; i++) total += (double)weights[i];
    for (int i = 0; i < n; i++) share[tokens[i]] = (float)((double)weights[i] / total);
    for (uint32_t i = 0; i < r->kept; i++) {
        float probability;

        memcpy(&probability, &kept[2 * i + 1], 4);
        /* both work in f32: logit / T up to 240 has a unit of 1.5e-5, which is the relative error of its exponential */
        if (!(fabsf(share[kept[2 * i]] - probability) <= 4e-5f * probability + 1e-12f))
            fail_msg("case %u: token %u has %g, transformers says %g", number, kept[2 * i], (double)share[kept[2 * i]], (double)probability);
    }
    penalty_counts_close(&counts);
    sampler_close(s);
    free(tokens);
    free(logits);
    free(weights);
    free(share);
}

static void test_filters_keep_what_transformers_keeps(void **state)
{
    FILE *file = fopen("tests/golden/sampler/cases.bin", "rb");
    uint32_t head[2], kept[2 * 1000];
    struct record r;

    (void)state;
    assert_non_null(file);
    assert_int_equal(fread(head, 4, 2, file), 2);
    assert_int_equal(head[0], 1000);
    for (uint32_t i = 0; i < head[1]; i++) {
        assert_int_equal(fread(&r, sizeof(r), 1, file), 1);
        assert_true(r.kept <= 1000);
        assert_int_equal(fread(kept, 8, r.kept, file), r.kept);
        check_record(i, head[0], &r, kept);
    }
    assert_int_equal(fgetc(file), EOF);
    fclose(file);
}

static uint32_t pick(struct sampler *s, const struct sampling_params *p, const float *logits, uint32_t vocab, uint64_t position)
{
    static float copy[300000];
    struct sample_out out;
    uint32_t guess;
    float lead;

    memcpy(copy, logits, vocab * 4);
    assert_int_equal(sampler_pick(s, p, copy, position, NULL, &out), 0);
    memcpy(copy, logits, vocab * 4);
    assert_int_equal(sampler_guess(s, p, copy, position, NULL, &guess, &lead), 0);
    assert_int_equal(guess, out.token); /* a drafter with the target's logits always guesses right */
    assert_true(lead >= 0);
    return out.token;
}

static void test_greedy_takes_the_lowest_id_and_never_a_suppressed_one(void **state)
{
    const struct sampling_params greedy = { .temperature = 0 };
    const float logits[8] = { 1, 3, 9, 2, 3, 9, 9, 0 };
    const uint32_t suppress[1] = { 2 };
    struct sampler *s;

    (void)state;
    assert_int_equal(sampler_open(&s, 8, NULL, 0), 0);
    assert_int_equal(pick(s, &greedy, logits, 8, 5), 2);
    sampler_close(s);
    assert_int_equal(sampler_open(&s, 8, suppress, 1), 0);
    assert_int_equal(pick(s, &greedy, logits, 8, 5), 5);
    sampler_close(s);
}

/* chi-square of `draws` draws at successive positions against the softmax */
static double chi_square(struct sampler *s, const struct sampling_params *p, const float *logits, uint32_t vocab, uint32_t draws, uint32_t *cells)
{
    uint32_t *hits = calloc(vocab, 4), *tokens = malloc(vocab * 4);
    float *copy = malloc(vocab * 4), *weights = malloc(vocab * 4);
    double total = 0, chi = 0, rest = draws, rest_hits = draws;
    int n;

    memcpy(copy, logits, vocab * 4);
    n = sampler_candidates(s, p, copy, NULL, tokens, weights, vocab);
    for (int i = 0; i < n; i++) total += (double)weights[i];
    for (uint32_t i = 0; i < draws; i++) hits[pick(s, p, logits, vocab, i)]++;
    *cells = 0;
    for (int i = 0; i < n; i++) {
        const double expected = draws * (double)weights[i] / total;

        if (expected < 20) continue;                   /* small ones are counted together */
        chi += pow(hits[tokens[i]] - expected, 2) / expected;
        rest -= expected;
        rest_hits -= hits[tokens[i]];
        (*cells)++;
    }
    if (rest > 20) chi += pow(rest_hits - rest, 2) / rest, (*cells)++;
    free(hits);
    free(tokens);
    free(copy);
    free(weights);
    return chi;
}

static void test_draws_follow_the_distribution(void **state)
{
    static const struct sampling_params settings[] = {
        { .temperature = 1, .seed = 1 }, { .temperature = 1, .top_k = 64, .top_p = 0.95f, .seed = 2 },
        { .temperature = 0.5f, .seed = 0xfeedfacecafebeefull }, { .temperature = 3, .min_p = 0.2f, .seed = 4 },
    };
    float logits[500];
    struct sampler *s;

    (void)state;
    assert_int_equal(sampler_open(&s, 500, NULL, 0), 0);
    fill(logits, 500, 99, 0, 6);
    for (size_t i = 0; i < 4; i++) {
        uint32_t cells;
        const double chi = chi_square(s, &settings[i], logits, 500, 20000, &cells);

        print_message("  setting %zu: chi-square %.1f over %u cells\n", i, chi, cells);
        assert_true(cells > 5);
        /* mean cells - 1, deviation sqrt(2 (cells - 1)): five deviations, and the draws are the same every time */
        assert_true(chi < cells - 1 + 5 * sqrt(2.0 * (cells - 1)));
    }
    sampler_close(s);
}

/* The shortcut in draw() must not change the winner: against the plain argmax over all tokens. */
static void test_draw_equals_the_plain_formula(void **state)
{
    enum { VOCAB = 3001 };
    static float logits[VOCAB];
    const struct sampling_params p = { .temperature = 1, .seed = 12345678901234567ull };
    struct sampler *s;

    (void)state;
    assert_int_equal(sampler_open(&s, VOCAB, NULL, 0), 0);
    for (uint64_t position = 0; position < 300; position++) {
        const uint64_t at = position + (position % 3 == 0 ? 0xfffffff0u : 0);
        double best = -INFINITY;
        uint32_t winner = 0;

        fill(logits, VOCAB, position, 0, position % 2 ? 1 : 25);
        for (uint32_t i = 0; i < VOCAB; i++) {
            const struct philox_block b = philox4x32_10((struct philox_block){ { i / 4, (uint32_t)at, (uint32_t)(at >> 32), 0x746f6b65u } }, (uint32_t)p.seed, (uint32_t)(p.seed >> 32));
            const double u = (b.word[i % 4] + 0.5) * 0x1p-32, value = (double)logits[i] - log(-log(u));

            if (value > best) best = value, winner = i;
        }
        assert_int_equal(pick(s, &p, logits, VOCAB, at), winner);
    }
    sampler_close(s);
}

static void test_same_seed_same_token_whatever_else(void **state)
{
    float logits[500], other[500];
    struct sampling_params p = { .temperature = 1, .top_k = 40, .top_p = 0.9f, .seed = 7 };
    struct sampler *s, *t;
    uint32_t differ = 0;

    (void)state;
    fill(logits, 500, 5, 0, 8);
    fill(other, 500, 6, 0, 8);
    assert_int_equal(sampler_open(&s, 500, NULL, 0), 0);
    assert_int_equal(sampler_open(&t, 500, NULL, 0), 0);
    for (uint32_t i = 0; i < 100; i++) {
        const uint32_t token = pick(s, &p, logits, 500, i);

        pick(t, &p, other, 500, i + 1000);
        assert_int_equal(pick(t, &p, logits, 500, i), token);
        p.seed = 8;
        differ += pick(s, &p, logits, 500, i) != token;
        p.seed = 7;
    }
    assert_true(differ > 20);
    sampler_close(s);
    sampler_close(t);
}

static void test_bias_and_penalties_change_the_logits_as_stated(void **state)
{
    struct sampling_params p = { .temperature = 0, .presence_penalty = 0.5f, .frequency_penalty = 0.25f };
    float logits[4] = { 2, 3, 3.4f, 1 };
    struct penalty_counts counts;
    struct sample_out out;
    struct sampler *s;

    (void)state;
    assert_int_equal(sampler_open(&s, 4, NULL, 0), 0);
    assert_int_equal(penalty_counts_open(&counts, 2), 0);
    assert_int_equal(sampling_params_need_counts(&p), 1);
    assert_int_equal(penalty_counts_add(&counts, 2, 1), 0);
    assert_int_equal(penalty_counts_add(&counts, 2, 1), 0);   /* 3.4 - 0.5 - 2 * 0.25 = 2.4 */
    assert_int_equal(penalty_counts_add(&counts, 1, 0), 0);   /* in the prompt only: untouched */
    assert_int_equal(penalty_counts_add(&counts, 0, 0), -E_FULL);
    assert_int_equal(sampler_pick(s, &p, logits, 0, &counts, &out), 0);
    assert_int_equal(out.token, 1);
    assert_true(fabsf(logits[2] - 2.4f) < 1e-6f);
    assert_true(logits[1] == 3.0f);
    penalty_counts_reset(&counts);
    assert_int_equal(penalty_counts_add(&counts, 3, 1), 0);
    assert_int_equal(counts.count, 1);
    p = (struct sampling_params){ .temperature = 0, .logit_bias_count = 1, .logit_bias = { { 3, 50 } } };
    assert_int_equal(sampler_pick(s, &p, logits, 0, NULL, &out), 0);
    assert_int_equal(out.token, 3);
    penalty_counts_close(&counts);
    sampler_close(s);
}

static void test_logprobs_are_those_of_the_model(void **state)
{
    struct sampling_params p = { .temperature = 0.7f, .top_k = 3, .seed = 3, .want_logprobs = 1, .top_logprob_count = 5,
                                 .logit_bias_count = 1, .logit_bias = { { 400, 100 } } };
    float logits[500], copy[500];
    struct sample_out out;
    struct sampler *s;
    double sum = 0;

    (void)state;
    fill(logits, 500, 17, 1, 8);
    for (uint32_t i = 0; i < 500; i++) sum += exp((double)logits[i]);
    memcpy(copy, logits, sizeof(copy));
    assert_int_equal(sampler_open(&s, 500, NULL, 0), 0);
    assert_int_equal(sampler_pick(s, &p, copy, 0, NULL, &out), 0);
    assert_int_equal(out.token, 400);                         /* the bias decides, and does not show in the log probability */
    assert_true(fabs((double)out.logprob - ((double)logits[400] - log(sum))) < 1e-5);
    assert_int_equal(out.top_count, 5);
    for (uint32_t i = 0; i < 5; i++) {
        uint32_t rank = 0;

        for (uint32_t j = 0; j < 500; j++)
            rank += logits[j] > logits[out.top[i].token] || (logits[j] == logits[out.top[i].token] && j < out.top[i].token);
        assert_int_equal(rank, i);
        assert_true(fabs((double)out.top[i].logprob - ((double)logits[out.top[i].token] - log(sum))) < 1e-5);
    }
    sampler_close(s);
}

static void test_broken_logits_and_bad_parameters_are_refused(void **state)
{
    const uint32_t beyond[1] = { 9 };
    struct sampling_params p = { .temperature = 1 };
    struct sample_out out;
    struct sampler *s;
    const char *field;
    float logits[4] = { 0, NAN, 0, 0 };

    (void)state;
    assert_int_equal(sampler_open(&s, 9, beyond, 1), -E_RANGE);
    assert_int_equal(sampler_open(&s, 0, NULL, 0), -E_RANGE);
    assert_int_equal(sampler_open(&s, 4, NULL, 0), 0);
    assert_int_equal(sampler_pick(s, &p, logits, 0, NULL, &out), -E_RANGE);
    logits[1] = INFINITY;
    assert_int_equal(sampler_pick(s, &p, logits, 0, NULL, &out), -E_RANGE);
    for (int i = 0; i < 4; i++) logits[i] = -INFINITY;
    assert_int_equal(sampler_pick(s, &p, logits, 0, NULL, &out), -E_RANGE);
    logits[2] = -1e30f;
    assert_int_equal(sampler_pick(s, &p, logits, 0, NULL, &out), 0);
    assert_int_equal(out.token, 2);
    sampler_close(s);
#define BAD(name, setting) do { p = (struct sampling_params){ .temperature = 1 }; setting; \
    assert_int_equal(sampling_params_check(&p, 4, &field), -E_RANGE); assert_string_equal(field, name); } while (0)
    BAD("temperature", p.temperature = -1);
    BAD("temperature", p.temperature = NAN);
    BAD("top_p", p.top_p = 1.5f);
    BAD("min_p", p.min_p = -0.1f);
    BAD("presence_penalty", p.presence_penalty = 3);
    BAD("frequency_penalty", p.frequency_penalty = INFINITY);
    BAD("repetition_penalty", p.repetition_penalty = -1);
    BAD("top_logprobs", p.top_logprob_count = 21);
    BAD("logprobs", p.want_logprobs = 2);
    BAD("logit_bias", p.logit_bias_count = 65);
    BAD("logit_bias", (p.logit_bias_count = 1, p.logit_bias[0].token = 4));
    BAD("logit_bias", (p.logit_bias_count = 1, p.logit_bias[0].bias = NAN));
#undef BAD
}

/* The real vocabulary, all logits equal: every filter meets 262144 ties. */
static void test_ties_over_a_whole_vocabulary(void **state)
{
    enum { VOCAB = 262144 };
    static float logits[VOCAB];
    struct sampling_params p = { .temperature = 1, .top_k = 64, .top_p = 0.95f, .seed = 1 };
    struct sample_out out;
    struct sampler *s;

    (void)state;
    assert_int_equal(sampler_open(&s, VOCAB, NULL, 0), 0);
    assert_int_equal(sampler_pick(s, &p, logits, 3, NULL, &out), 0);
    assert_true(out.candidate_count >= (uint32_t)(0.9499 * VOCAB) && out.candidate_count <= (uint32_t)(0.9501 * VOCAB));
    sampler_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_philox_gives_the_published_answers),
        cmocka_unit_test(test_filters_keep_what_transformers_keeps),
        cmocka_unit_test(test_greedy_takes_the_lowest_id_and_never_a_suppressed_one),
        cmocka_unit_test(test_draws_follow_the_distribution),
        cmocka_unit_test(test_draw_equals_the_plain_formula),
        cmocka_unit_test(test_same_seed_same_token_whatever_else),
        cmocka_unit_test(test_bias_and_penalties_change_the_logits_as_stated),
        cmocka_unit_test(test_logprobs_are_those_of_the_model),
        cmocka_unit_test(test_broken_logits_and_bad_parameters_are_refused),
        cmocka_unit_test(test_ties_over_a_whole_vocabulary),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
