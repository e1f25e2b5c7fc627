/* tests/unit/forward_test.c - the forward pass against transformers, and against itself.
 *
 * Golden data: tests/golden/forward, made by tests/oracle/make_forward_golden.py. Tolerances are stated where they are used. */
#include "kernels/kernels.h"
#include "model/forward.h"
#include "shm/error.h"
#include "tests/read_whole.h"
#include "tests/synthetic.h"

#define GOLDEN "tests/golden/forward/"
#define SEQS 16

/* A model, its arena and a forward pass. */
struct bench {
    struct model_files files;
    struct model_config config;
    struct generation_config generation;
    struct model_weights weights;
    struct kv_geometry geo;
    void *arena;
    struct forward *forward;
    uint32_t pages[2][SEQS][64];      /* full, sliding */
    struct forward_seq seqs[SEQS];
    uint32_t seq_count;               /* sequences the arena is made for */
};

static void bench_load_case(struct bench *b, const char *name, bool f32, const char *prefix, uint32_t shards)
{
    const struct synthetic_options options = { .f32 = f32, .prefix = prefix, .shards = shards };
    struct model_error err;
    char path[256];
    uint64_t byte_count;
    char *json;

    snprintf(path, sizeof(path), GOLDEN "%s/config.json", name);
    json = read_whole(path, &byte_count);
    synthetic_checkpoint(&b->files, json, &options);
    free(json);
    if (model_load(&b->config, &b->generation, &b->weights, &b->files, &err) != 0) fail_msg("%s", err.text);
}

static void bench_open(struct bench *b, enum kv_dtype dtype, uint32_t max_context, uint32_t rows_max, uint32_t threads, uint32_t isa)
{
    const struct forward_options options = { .threads = threads, .rows_max = rows_max * 2, .kernels = isa };
    uint32_t full, sliding;
    const uint32_t seqs = b->seq_count ? b->seq_count : 6;

    assert_int_equal(kv_geometry_init(&b->geo, &b->config, dtype, max_context, rows_max, 0, 0), 0);
    full = b->geo.full_pages_per_seq, sliding = b->geo.sliding_pages_per_seq;
    assert_int_equal(kv_geometry_init(&b->geo, &b->config, dtype, max_context, rows_max, full * seqs, sliding * seqs), 0);
    assert_int_equal(posix_memalign(&b->arena, 4096, b->geo.arena_bytes), 0);
    memset(b->arena, 0xff, b->geo.arena_bytes);      /* NaN everywhere: a stale read shows at once */
    for (uint32_t s = 0; s < seqs; s++) {            /* the pages of a sequence lie apart and backwards */
        for (uint32_t i = 0; i < full; i++) b->pages[0][s][i] = (full - 1 - i) * seqs + s;
        for (uint32_t i = 0; i < sliding; i++) b->pages[1][s][i] = i * seqs + (seqs - 1 - s);
        b->seqs[s] = (struct forward_seq){ b->pages[0][s], b->pages[1][s], full, sliding };
    }
    assert_int_equal(forward_open(&b->forward, &b->weights, &b->geo, b->arena, &options), 0);
}

static void bench_stop(struct bench *b)
{
    forward_close(b->forward);
    free(b->arena);
    b->forward = NULL;
    b->arena = NULL;
}

static void bench_unload(struct bench *b)
{
    model_weights_free(&b->weights);
    model_files_close(&b->files);
}

/* Runs tokens[from, to) of one sequence in chunks; wanted[p] rows of logits (NULL: all) go to logits[p - from]. */
static void bench_prefill(struct bench *b, uint32_t seq, const uint32_t *tokens, uint32_t from, uint32_t to, uint32_t chunk, float *logits)
{
    struct forward_row *rows = calloc(chunk, sizeof(*rows));

    for (uint32_t p = from; p < to; p += chunk) {
        const uint32_t n = to - p < chunk ? to - p : chunk;

        for (uint32_t i = 0; i < n; i++) rows[i] = (struct forward_row){ tokens[p + i], p + i, seq, 1, 0 };
        assert_int_equal(forward_run(b->forward, rows, n, b->seqs, b->seq_count ? b->seq_count : 6, logits + (uint64_t)(p - from) * b->config.vocab, NULL), 0);
    }
    free(rows);
}

/* ---- against transformers ---- */

struct golden {
    const char *name;
    uint32_t *tokens, *rows;
    uint32_t token_count, row_count;
    float *hidden, *final, *logits;   /* [layers + 1][row_count][hidden], [row_count][hidden], [row_count][vocab] */
    uint32_t hidden_dim;
    float worst[MODEL_LAYERS_MAX + 1];
    double tolerance, first_tolerance;
};

static void golden_load(struct golden *g, const char *name, const char *run)
{
    char path[256];
    uint64_t bytes;

    g->name = name;
#define GOLDEN_READ(field, suffix) (snprintf(path, sizeof(path), GOLDEN "%s/%s", name, suffix), field = read_whole(path, &bytes))
    GOLDEN_READ(g->tokens, "tokens.u32");
    g->token_count = (uint32_t)bytes / 4;
    GOLDEN_READ(g->rows, "rows.u32");
    g->row_count = (uint32_t)bytes / 4;
#undef GOLDEN_READ
    snprintf(path, sizeof(path), GOLDEN "%s/%s.hidden", name, run);
    g->hidden = read_whole(path, &bytes);
    snprintf(path, sizeof(path), GOLDEN "%s/%s.final", name, run);
    g->final = read_whole(path, &bytes);
    snprintf(path, sizeof(path), GOLDEN "%s/%s.logits", name, run);
    g->logits = read_whole(path, &bytes);
}

static void golden_free(struct golden *g)
{
    free(g->tokens);
    free(g->rows);
    free(g->hidden);
    free(g->final);
    free(g->logits);
}

/* Root mean square of the difference, relative to that of the reference row. */
static double row_error(const float *ours, const float *reference, uint32_t n)
{
    double square = 0, off = 0;

    for (uint32_t i = 0; i < n; i++) {
        square += (double)reference[i] * reference[i];
        off += ((double)ours[i] - reference[i]) * ((double)ours[i] - reference[i]);
    }
    return sqrt(off / square);
}

static void golden_hook(void *context, uint32_t layer, const float *hidden, uint32_t row_count)
{
    struct golden *g = context;

    for (uint32_t i = 0; i < g->row_count; i++) {
        const float *reference = g->hidden + ((uint64_t)layer * g->row_count + i) * g->hidden_dim;
        double error;

        assert_true(g->rows[i] < row_count);
        error = row_error(hidden + (uint64_t)g->rows[i] * g->hidden_dim, reference, g->hidden_dim);
        if (!(error <= (layer <= 1 ? g->first_tolerance : g->tolerance))) fail_msg("%s: hidden state after layer %u, position %u: error %g above %g", g->name, layer, g->rows[i], error, g->tolerance);
        if (error > g->worst[layer]) g->worst[layer] = (float)error;
    }
}

/* The rows of a picture see each other. */
static void golden_pictures(const struct golden *g, struct forward_row *rows)
{
    char path[256];
    uint64_t bytes;

    snprintf(path, sizeof(path), GOLDEN "%s/blocks.u32", g->name);
    if (access(path, R_OK) != 0) return;
    uint32_t *blocks = read_whole(path, &bytes);
    for (uint64_t i = 0; i < bytes / 8; i++)
        for (uint32_t p = blocks[2 * i]; p <= blocks[2 * i + 1]; p++) rows[p].ahead = (uint16_t)(blocks[2 * i + 1] - p);
    free(blocks);
}

/* f32 against f32: the same values in another order of summing. A sum of a few hundred terms differs by some 1e-7 of its scale; the
 * layers of a random model pass that on and enlarge it to about 3e-6 after twelve. 2e-5 is far below any real mistake (rounding
 * the embedding scale in the wrong way alone is 5e-4). */
#define TOLERANCE_F32 2e-5
/* transformers in bfloat16 rounds each step to 8 bits: 2^-9 = 2e-3 of a value at most, 1.1e-3 in the mean. About ten such
 * roundings a layer add up as a random walk, and the layers enlarge them like the above: 4e-2 after twelve layers.
 * Ours rounds only weights and cache, so this is the distance of the reference from the truth; a wrong scale, mask or norm is O(1). */
#define TOLERANCE_BF16 0.06

/* Keys and values in E4M3: one that is 1e-6 off now and then rounds to the neighbouring code, an eighth away, and what that changes makes others do so: 1e-2 after six
 * layers (the run without rounding is 2 to 4e-2 away, truncation more). The first layer has met no such key and is as exact as the others: that tells rounding from its
 * likes. */
#define TOLERANCE_FP8 1.5e-2

/* One shot over the whole prompt; hidden states after each layer, the final norm and the logits. */
static void check_golden(struct bench *b, const char *name, const char *run, enum kv_dtype dtype, double tolerance)
{
    struct golden g = { .tolerance = tolerance, .first_tolerance = dtype == KV_FP8 ? TOLERANCE_F32 : tolerance };
    struct forward_row *rows;
    float *logits, *final;
    double worst = 0, worst_final = 0;

    golden_load(&g, name, run);
    g.hidden_dim = b->config.hidden;
    bench_open(b, dtype, 256, g.token_count, 1, KERNELS_BEST);
    forward_set_hidden_hook(b->forward, golden_hook, &g);
    rows = calloc(g.token_count, sizeof(*rows));
    logits = malloc((uint64_t)g.token_count * b->config.vocab * sizeof(float));
    final = malloc((uint64_t)g.token_count * b->config.hidden * sizeof(float));
    for (uint32_t i = 0; i < g.token_count; i++) rows[i] = (struct forward_row){ g.tokens[i], i, 3, 1, 0 };
    golden_pictures(&g, rows);
    assert_int_equal(forward_run(b->forward, rows, g.token_count, b->seqs, 6, logits, final), 0);
    for (uint32_t i = 0; i < g.row_count; i++) {
        const double error = row_error(logits + (uint64_t)g.rows[i] * b->config.vocab, g.logits + (uint64_t)i * b->config.vocab, b->config.vocab);
        const double other = row_error(final + (uint64_t)g.rows[i] * b->config.hidden, g.final + (uint64_t)i * b->config.hidden, b->config.hidden);

        worst = error > worst ? error : worst;
        worst_final = other > worst_final ? other : worst_final;
        if (!(error <= tolerance) || !(other <= tolerance)) fail_msg("%s: position %u: logits off by %g, final norm by %g, allowed %g", name, g.rows[i], error, other, tolerance);
    }
    print_message("  %s %s: worst relative error %.2g after layer 1, %.2g after the last, %.2g in the logits\n", name, run,
                  (double)g.worst[1], (double)g.worst[b->config.layer_count], worst);
    bench_stop(b);
    free(rows);
    free(logits);
    free(final);
    golden_free(&g);
}

static void test_gemma4_with_real_heads_equals_transformers(void **state)
{
    struct bench b = { .seq_count = 0 };

    (void)state;
    bench_load_case(&b, "real_heads_bf16", false, "model.language_model.", 1);
    assert_int_equal(b.config.type_count[LAYER_SLIDING], 10);
    check_golden(&b, "real_heads_bf16", "f32", KV_F32, TOLERANCE_F32);
    check_golden(&b, "real_heads_bf16", "bf16", KV_BF16, TOLERANCE_BF16);
    bench_unload(&b);
    bench_load_case(&b, "real_heads_f32", true, "model.", 2);
    check_golden(&b, "real_heads_f32", "f32", KV_F32, TOLERANCE_F32);
    check_golden(&b, "real_heads_f32", "fp8", KV_FP8, TOLERANCE_FP8);
    bench_unload(&b);
}

static void test_pictures_see_themselves_as_in_transformers(void **state)
{
    struct bench b = { .seq_count = 0 };

    (void)state;
    bench_load_case(&b, "picture_f32", true, "model.", 1);
    assert_true(b.config.vision_bidirectional);
    check_golden(&b, "picture_f32", "f32", KV_F32, TOLERANCE_F32);
    bench_unload(&b);
}

static void test_gemma3_equals_transformers(void **state)
{
    struct bench b = { .seq_count = 0 };

    (void)state;
    bench_load_case(&b, "gemma3_bf16", false, "language_model.model.", 1);
    check_golden(&b, "gemma3_bf16", "f32", KV_F32, TOLERANCE_F32);
    check_golden(&b, "gemma3_bf16", "bf16", KV_BF16, TOLERANCE_BF16);
    bench_unload(&b);
}

static void test_shards_written_by_the_library_equal_transformers(void **state)
{
    struct model_error err;
    struct bench b = { .seq_count = 0 };

    (void)state;
    if (model_files_open_dir(&b.files, GOLDEN "shards", &err) != 0) fail_msg("%s", err.text);
    if (model_load(&b.config, &b.generation, &b.weights, &b.files, &err) != 0) fail_msg("%s", err.text);
    check_golden(&b, "shards", "f32", KV_F32, TOLERANCE_F32);
    bench_unload(&b);
}

/* ---- against itself, bit for bit ---- */

#define PROMPT 64                     /* window 24: it is left more than once */

/* Logits of every position of a prompt by one run of the model with these settings. */
static float *logits_by(struct bench *b, const uint32_t *tokens, uint32_t chunk, uint32_t threads, uint32_t isa, enum kv_dtype dtype)
{
    float *logits = malloc((uint64_t)PROMPT * b->config.vocab * sizeof(float));

    bench_open(b, dtype, 256, PROMPT, threads, isa);
    bench_prefill(b, 5, tokens, 0, PROMPT, chunk, logits);
    bench_stop(b);
    return logits;
}

static void make_tokens(uint32_t *tokens, uint32_t count, uint32_t seed, uint32_t vocab)
{
    for (uint32_t i = 0; i < count; i++) tokens[i] = (seed * 31 + i * i * 13 + i * 5) % vocab;
}

static void same_bits(const char *what, const float *a, const float *b, uint64_t count)
{
    for (uint64_t i = 0; i < count; i++)
        if (memcmp(&a[i], &b[i], sizeof(float)) != 0) fail_msg("%s: value %llu differs: %a and %a", what, (unsigned long long)i, (double)a[i], (double)b[i]);
}

static void test_bits_do_not_depend_on_chunks_threads_or_instructions(void **state)
{
    static const struct { const char *what; uint32_t chunk, threads, isa; } variant[] = {
        { "row by row", 1, 1, 0 }, { "chunks of 7", 7, 1, 0 }, { "chunks of 50", 50, 1, 0 }, { "two threads", 64, 2, 0 },
        { "three threads, row by row", 1, 3, 0 }, { "avx2", 13, 1, KERNELS_AVX2 },
    };
    uint32_t tokens[PROMPT];
    float *reference, *other;
    struct bench b = { .seq_count = 0 };

    (void)state;
    bench_load_case(&b, "real_heads_f32", false, "", 1);
    make_tokens(tokens, PROMPT, 1, b.config.vocab);
    reference = logits_by(&b, tokens, PROMPT, 1, 0, KV_BF16);
    for (size_t i = 0; i < sizeof(variant) / sizeof(variant[0]); i++) {
        if (!kernels_get((enum kernels_isa)variant[i].isa)) continue;
        other = logits_by(&b, tokens, variant[i].chunk, variant[i].threads, variant[i].isa, KV_BF16);
        same_bits(variant[i].what, reference, other, (uint64_t)PROMPT * b.config.vocab);
        free(other);
    }
    free(reference);
    bench_unload(&b);
}

static void test_portable_bits_equal(void **state)
{
    uint32_t tokens[PROMPT];
    struct model_error err;
    float *reference, *other;
    struct bench b = { .seq_count = 0 };

    (void)state;
    if (model_files_open_dir(&b.files, GOLDEN "shards", &err) != 0) fail_msg("%s", err.text);
    if (model_load(&b.config, &b.generation, &b.weights, &b.files, &err) != 0) fail_msg("%s", err.text);
    make_tokens(tokens, PROMPT, 4, b.config.vocab);
    for (uint32_t dtype = KV_BF16; dtype <= KV_FP8; dtype++) {
        reference = logits_by(&b, tokens, 9, 1, KERNELS_PORTABLE, dtype);
        other = logits_by(&b, tokens, PROMPT, 1, 0, dtype);
        same_bits("portable", reference, other, (uint64_t)PROMPT * b.config.vocab);
        free(other);
        free(reference);
    }
    bench_unload(&b);
}

/* Sixteen sequences of different lengths in one call, some prefilling, some verifying blocks, some decoding. */
static void test_bits_do_not_depend_on_neighbours(void **state)
{
    uint32_t tokens[SEQS][PROMPT], at[SEQS] = { 0 }, ends[SEQS];
    float *alone[SEQS], *logits;
    struct forward_row rows[PROMPT * 2];
    struct bench b = { .seq_count = 0 };

    (void)state;
    bench_load_case(&b, "real_heads_f32", false, "", 1);
    b.seq_count = SEQS;
    for (uint32_t s = 0; s < SEQS; s++) {
        make_tokens(tokens[s], PROMPT, s + 7, b.config.vocab);
        ends[s] = 11 + s * 3;
        alone[s] = malloc((uint64_t)PROMPT * b.config.vocab * sizeof(float));
    }
    bench_open(&b, KV_BF16, 256, PROMPT, 1, 0);
    for (uint32_t s = 0; s < SEQS; s++) bench_prefill(&b, s, tokens[s], 0, ends[s], PROMPT, alone[s]);
    bench_stop(&b);

    bench_open(&b, KV_BF16, 256, PROMPT, 2, 0);
    logits = malloc((uint64_t)PROMPT * 2 * b.config.vocab * sizeof(float));
    for (uint32_t round = 0, left = 1; left > 0; round++) {
        uint32_t n = 0;

        left = 0;
        for (uint32_t i = 0; i < SEQS; i++) {
            const uint32_t s = (i * 5 + round) % SEQS, block = (s + round) % 4 == 0 ? 16 : (s + round) % 4 == 1 ? 5 : 1;

            for (uint32_t j = 0; j < block && at[s] < ends[s] && n < PROMPT * 2; j++, at[s]++)
                rows[n++] = (struct forward_row){ tokens[s][at[s]], at[s], s, 1, 0 };
            left += ends[s] - at[s];
        }
        if (n == 0) break;
        assert_int_equal(forward_run(b.forward, rows, n, b.seqs, b.seq_count ? b.seq_count : 6, logits, NULL), 0);
        for (uint32_t i = 0; i < n; i++)
            same_bits("in a batch", alone[rows[i].seq] + (uint64_t)rows[i].position * b.config.vocab, logits + (uint64_t)i * b.config.vocab, b.config.vocab);
    }
    bench_stop(&b);
    for (uint32_t s = 0; s < SEQS; s++) free(alone[s]);
    free(logits);
    bench_unload(&b);
}

/* A verify block whose tail is rejected: later rows overwrite it, also across the wrap of the ring. */
static void test_rejected_tail_leaves_no_trace(void **state)
{
    uint32_t tokens[PROMPT], wrong[PROMPT];
    float *reference, *logits;
    struct forward_row rows[8];
    struct bench b = { .seq_count = 0 };

    (void)state;
    bench_load_case(&b, "real_heads_f32", false, "", 1);
    make_tokens(tokens, PROMPT, 3, b.config.vocab);
    make_tokens(wrong, PROMPT, 77, b.config.vocab);
    reference = logits_by(&b, tokens, PROMPT, 1, 0, KV_BF16);
    logits = malloc(8ull * b.config.vocab * sizeof(float));
    bench_open(&b, KV_BF16, 256, 8, 1, 0);
    assert_int_equal(b.geo.ring_tokens, 32);         /* window 24 - 1 + 8 rows, whole pages: wraps inside the prompt */
    for (uint32_t p = 0; p + 8 <= PROMPT; p += 3) {  /* eight rows, three accepted */
        for (uint32_t i = 0; i < 8; i++) rows[i] = (struct forward_row){ i < 3 ? tokens[p + i] : wrong[p + i], p + i, 2, 1, 0 };
        assert_int_equal(forward_run(b.forward, rows, 8, b.seqs, b.seq_count ? b.seq_count : 6, logits, NULL), 0);
        same_bits("after a rejection", reference + (uint64_t)p * b.config.vocab, logits, 3ull * b.config.vocab);
    }
    bench_stop(&b);
    free(reference);
    free(logits);
    bench_unload(&b);
}

static void test_hidden_rows_and_wanted_rows_are_packed(void **state)
{
    uint32_t tokens[PROMPT];
    float *reference, *logits, *hidden, *all;
    struct forward_row rows[PROMPT];
    struct bench b = { .seq_count = 0 };

    (void)state;
    bench_load_case(&b, "real_heads_f32", true, "", 1);
    make_tokens(tokens, PROMPT, 2, b.config.vocab);
    reference = logits_by(&b, tokens, PROMPT, 1, 0, KV_F32);
    bench_open(&b, KV_F32, 256, PROMPT, 1, 0);
    logits = malloc(2ull * b.config.vocab * sizeof(float));
    hidden = malloc(2ull * b.config.hidden * sizeof(float));
    all = malloc((uint64_t)PROMPT * b.config.vocab * sizeof(float));
    for (uint32_t i = 0; i < 20; i++) rows[i] = (struct forward_row){ tokens[i], i, 0, i == 7 || i == 19, 0 };
    assert_int_equal(forward_run(b.forward, rows, 20, b.seqs, b.seq_count ? b.seq_count : 6, logits, hidden), 0);
    same_bits("row 7", reference + 7ull * b.config.vocab, logits, b.config.vocab);
    same_bits("row 19", reference + 19ull * b.config.vocab, logits + b.config.vocab, b.config.vocab);
    memcpy(all, hidden, 2ull * b.config.hidden * sizeof(float));
    memset(hidden, 0, 2ull * b.config.hidden * sizeof(float));
    assert_int_equal(forward_run(b.forward, rows, 20, b.seqs, b.seq_count ? b.seq_count : 6, NULL, hidden), 0); /* no logits: only states */
    same_bits("states alone", all, hidden, 2 * b.config.hidden);
    memset(logits, 0, 2ull * b.config.vocab * sizeof(float));
    assert_int_equal(forward_logits(b.forward, hidden, 2, logits), 0);
    same_bits("row 7 by its state", reference + 7ull * b.config.vocab, logits, b.config.vocab);
    same_bits("row 19 by its state", reference + 19ull * b.config.vocab, logits + b.config.vocab, b.config.vocab);
    assert_int_equal(forward_logits(b.forward, hidden, 0, logits), -E_RANGE);
    assert_int_equal(forward_logits(b.forward, hidden, FORWARD_ROWS_LIMIT + 1, logits), -E_RANGE);
    for (uint32_t i = 0; i < 20; i++) rows[i].want_logits = 0;
    assert_int_equal(forward_run(b.forward, rows, 20, b.seqs, b.seq_count ? b.seq_count : 6, NULL, NULL), 0);
    bench_stop(&b);
    free(reference);
    free(logits);
    free(hidden);
    free(all);
    bench_unload(&b);
}

/* A soft row that holds what the table would give makes the same bits. */
static void test_soft_token_replaces_the_table(void **state)
{
    uint32_t tokens[PROMPT];
    float *reference, *logits, soft[2][96];
    struct forward_row rows[PROMPT];
    struct bench b = { .seq_count = 0 };

    (void)state;
    bench_load_case(&b, "real_heads_f32", true, "", 1);
    make_tokens(tokens, PROMPT, 2, b.config.vocab);
    reference = logits_by(&b, tokens, PROMPT, 1, 0, KV_F32);
    for (uint32_t i = 0; i < 2; i++)
        for (uint32_t d = 0; d < 96; d++) soft[i][d] = ((const float *)b.weights.embed)[tokens[4 + i] * 96 + d] * b.weights.embed_scale;
    bench_open(&b, KV_F32, 256, PROMPT, 1, 0);
    logits = malloc((uint64_t)PROMPT * b.config.vocab * sizeof(float));
    for (uint32_t i = 0; i < 12; i++) rows[i] = (struct forward_row){ i == 4 || i == 5 ? FORWARD_SOFT_TOKEN + i - 4 : tokens[i], i, 0, 1, 0 };
    assert_int_equal(forward_run(b.forward, rows, 12, b.seqs, b.seq_count ? b.seq_count : 6, logits, NULL), -E_RANGE);
    forward_set_soft(b.forward, soft[0], 2);
    assert_int_equal(forward_run(b.forward, rows, 12, b.seqs, b.seq_count ? b.seq_count : 6, logits, NULL), 0);
    same_bits("soft rows", reference, logits, 12ull * b.config.vocab);
    bench_stop(&b);
    free(reference);
    free(logits);
    bench_unload(&b);
}

static void test_wrong_calls_are_refused_and_write_nothing(void **state)
{
    struct forward_row rows[4], good[4];
    struct forward_seq seqs[2];
    uint8_t *before;
    float *logits;
    struct bench b = { .seq_count = 0 };

    (void)state;
    bench_load_case(&b, "real_heads_f32", true, "", 1);
    bench_open(&b, KV_F32, 256, 3, 1, 0);
    before = malloc(b.geo.arena_bytes);
    memcpy(before, b.arena, b.geo.arena_bytes);
    logits = malloc(8ull * b.config.vocab * sizeof(float));
    for (uint32_t i = 0; i < 4; i++) good[i] = (struct forward_row){ i, i, 0, 1, 0 };
    seqs[0] = b.seqs[0];
    seqs[1] = b.seqs[1];
#define REFUSED(count, change) do { memcpy(rows, good, sizeof(rows)); change; \
    assert_int_equal(forward_run(b.forward, rows, count, seqs, 2, logits, NULL), -E_RANGE); seqs[0] = b.seqs[0]; } while (0)
    REFUSED(0, (void)0);
    REFUSED(4, (void)0);                              /* more rows of a sequence than the ring is made for */
    REFUSED(2, rows[1].position = 0);
    REFUSED(3, rows[1].token = b.config.vocab);
    REFUSED(3, rows[2].seq = 2);
    REFUSED(3, rows[2].position = 0);
    REFUSED(3, rows[2].position = 3);
    REFUSED(3, (rows[1].seq = 1, rows[1].position = 0));  /* rows of sequence 0 apart */
    REFUSED(1, rows[0].position = 256);
    REFUSED(1, rows[0].want_logits = 2);
    REFUSED(3, rows[1].ahead = 2);                    /* a picture cut at the end of the call */
    REFUSED(3, seqs[0].full_page_count = 0);
    REFUSED(3, seqs[0].sliding_page_count = 0);
    REFUSED(1, (rows[0].position = 32, seqs[0].full_page_count = 1));
#undef REFUSED
    assert_int_equal(forward_run(b.forward, good, 3, seqs, 2, NULL, NULL), -E_RANGE);
    assert_memory_equal(before, b.arena, b.geo.arena_bytes);
    assert_int_equal(forward_run(b.forward, good, 3, seqs, 2, logits, NULL), 0);
    free(before);
    free(logits);
    bench_stop(&b);
    bench_unload(&b);
}

static uint32_t progress_calls;
static void count_progress(void *context, uint32_t done, uint32_t layers)
{
    (void)context;
    assert_true(done <= layers);
    progress_calls++;
}

static void test_progress_is_called_for_every_layer(void **state)
{
    struct forward_row row = { 1, 0, 0, 1, 0 };
    float logits[512];
    struct bench b = { .seq_count = 0 };

    (void)state;
    bench_load_case(&b, "real_heads_f32", true, "", 1);
    bench_open(&b, KV_F32, 256, 3, 1, 0);
    forward_set_progress(b.forward, count_progress, NULL);
    assert_int_equal(forward_run(b.forward, &row, 1, b.seqs, 1, logits, NULL), 0);
    assert_int_equal(progress_calls, b.config.layer_count + 1);
    bench_stop(&b);
    bench_unload(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gemma4_with_real_heads_equals_transformers),
        cmocka_unit_test(test_pictures_see_themselves_as_in_transformers),
        cmocka_unit_test(test_gemma3_equals_transformers),
        cmocka_unit_test(test_shards_written_by_the_library_equal_transformers),
        cmocka_unit_test(test_bits_do_not_depend_on_chunks_threads_or_instructions),
        cmocka_unit_test(test_portable_bits_equal),
        cmocka_unit_test(test_bits_do_not_depend_on_neighbours),
        cmocka_unit_test(test_rejected_tail_leaves_no_trace),
        cmocka_unit_test(test_hidden_rows_and_wanted_rows_are_packed),
        cmocka_unit_test(test_soft_token_replaces_the_table),
        cmocka_unit_test(test_wrong_calls_are_refused_and_write_nothing),
        cmocka_unit_test(test_progress_is_called_for_every_layer),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
