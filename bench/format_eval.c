/* bench/format_eval.c - how far a quantized checkpoint is from the one it came from: perplexity, same first choice, divergence.
 *
 *   build/bench/format_eval REFERENCE-DIR DIR auto|bf16 TOKENS [bf16|fp8|f32]
 *
 * TOKENS is a file of little-endian u32: for each conversation the count of prompt tokens, the count of the answer's tokens, then
 * the tokens (bench/formats.py writes it). Every position that predicts a token of an answer is scored in both
 * checkpoints with its true past. The last word: DIR's KV cache (else, and the reference's: bf16). Prints one line. */
#include "model/forward.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EVAL_TOKENS_MAX 1024u         /* of a conversation; longer ones are left out */
#define EVAL_PAGES 256u

struct model {
    struct model_files files;
    struct model_config config;
    struct generation_config generation;
    struct model_weights weights;
    struct kv_geometry geo;
    struct forward *forward;
    float *logits;                    /* [EVAL_TOKENS_MAX, vocab] */
    double loss;                      /* sum of -log p of the true token */
};

static void die(const char *what, const char *why)
{
    fprintf(stderr, "format_eval: %s: %s\n", what, why);
    exit(1);
}

static void open_model(struct model *m, const char *dir, uint32_t activations, enum kv_dtype cache)
{
    const struct forward_options options = { .rows_max = EVAL_TOKENS_MAX, .activations = activations };
    struct model_error err;
    void *arena;

    if (model_files_open_dir(&m->files, dir, &err) != 0 || model_load(&m->config, &m->generation, &m->weights, &m->files, &err) != 0) die(dir, err.text);
    if (kv_geometry_init(&m->geo, &m->config, cache, EVAL_TOKENS_MAX, EVAL_TOKENS_MAX, EVAL_PAGES, EVAL_PAGES) != 0) die(dir, "no layout of the cache");
    if (posix_memalign(&arena, 4096, m->geo.arena_bytes) != 0 || forward_open(&m->forward, &m->weights, &m->geo, arena, &options) != 0) die(dir, "no memory");
    if (!(m->logits = malloc((uint64_t)EVAL_TOKENS_MAX * m->config.vocab * sizeof(float)))) die(dir, "no memory");
}

static void run(struct model *m, const uint32_t *tokens, uint32_t first, uint32_t count)
{
    static struct forward_row rows[EVAL_TOKENS_MAX];
    static uint32_t pages[EVAL_PAGES];
    const struct forward_seq seq = { .full_pages = pages, .sliding_pages = pages, .full_page_count = EVAL_PAGES, .sliding_page_count = EVAL_PAGES };

    for (uint32_t i = 0; i < EVAL_PAGES; i++) pages[i] = i;
    for (uint32_t i = 0; i < count; i++) rows[i] = (struct forward_row){ .token = tokens[i], .position = i, .want_logits = i >= first };
    if (forward_run(m->forward, rows, count, &seq, 1, m->logits, NULL) != 0) die("forward_run", "refused");
}

/* log of the sum of exponentials, and the first choice. */
static double normalizer(const float *logits, uint32_t vocab, uint32_t *best)
{
    double sum = 0;

    *best = 0;
    for (uint32_t i = 1; i < vocab; i++)
        if (logits[i] > logits[*best]) *best = i;
    for (uint32_t i = 0; i < vocab; i++) sum += exp((double)(logits[i] - logits[*best]));
    return log(sum) + (double)logits[*best];
}

int main(int argc, char **argv)
{
    static struct model model[2];
    static uint32_t tokens[EVAL_TOKENS_MAX];
    uint64_t scored = 0, same = 0, left_out = 0;
    uint32_t head[2];
    double divergence = 0;
    FILE *in;

    if (argc < 5 || argc > 6 || (argc == 6 && !kv_dtype_named(argv[5])) || !(in = fopen(argv[4], "rb"))) die("usage", "format_eval REFERENCE-DIR DIR auto|bf16 TOKENS [bf16|fp8|f32]");
    open_model(&model[0], argv[1], FORWARD_ACTIVATIONS_AUTO, KV_BF16);
    open_model(&model[1], argv[2], strcmp(argv[3], "bf16") == 0 ? FORWARD_ACTIVATIONS_BF16 : FORWARD_ACTIVATIONS_AUTO, argc == 6 ? kv_dtype_named(argv[5]) : KV_BF16);
    if (model[0].config.vocab != model[1].config.vocab) die(argv[2], "another vocabulary");
    while (fread(head, 4, 2, in) == 2) {
        const uint32_t vocab = model[0].config.vocab, count = head[0] + head[1], first = head[0] - 1;

        if (head[0] == 0 || head[0] > 1u << 20 || head[1] > 1u << 20) die(argv[4], "not a file of tokens");
        if (count > EVAL_TOKENS_MAX) {
            fseek(in, 4l * count, SEEK_CUR);
            left_out++;
            continue;
        }
        if (fread(tokens, 4, count, in) != count) die(argv[4], "cut short");
        for (int i = 0; i < 2; i++) run(&model[i], tokens, first, count);
        for (uint32_t p = first; p + 1 < count; p++) {
            const float *a = model[0].logits + (uint64_t)(p - first) * vocab, *b = model[1].logits + (uint64_t)(p - first) * vocab;
            uint32_t best[2];
            const double na = normalizer(a, vocab, &best[0]), nb = normalizer(b, vocab, &best[1]);

            model[0].loss += na - (double)a[tokens[p + 1]];
            model[1].loss += nb - (double)b[tokens[p + 1]];
            for (uint32_t i = 0; i < vocab; i++) divergence += exp((double)a[i] - na) * (((double)a[i] - na) - ((double)b[i] - nb));
            same += best[0] == best[1];
            scored++;
        }
    }
    if (scored == 0) die(argv[4], "nothing to score");
    printf("%llu tokens, perplexity %.4f, reference %.4f, same first choice %.3f %%, divergence %.2e", (unsigned long long)scored, exp(model[1].loss / (double)scored),
           exp(model[0].loss / (double)scored), 100.0 * (double)same / (double)scored, divergence / (double)scored);
    if (left_out) printf(", %llu longer conversations left out", (unsigned long long)left_out);
    printf("\n");
    return 0;
}
