/* tests/unit/dspark_test.c - the DSpark drafter's rounds equal DeepSpec's; blocks keep their bits among others, in any chunks and across the ring's end; tables
 * equal to the target's are shared; odd files and calls are refused.
 * Golden data: tests/golden/dspark/, made by tests/oracle/make_dspark_golden.py, which hashes the same features and tokens. */
#include "model/dspark.h"

#include "shm/error.h"
#include "tests/synthetic.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#define GOLDEN "tests/golden/dspark"
#define HIDDEN 32u
#define VOCAB 64u
#define BLOCK 7u
#define FEATURE (3 * HIDDEN)
#define CONTEXT 256u
#define BLOCKS 3u
#define TOLERANCE 1e-5

static float feature_of[CONTEXT][FEATURE];

struct world {
    struct model_files files;
    struct dspark_weights weights;
    struct dspark_cache cache;
    uint8_t *memory[BLOCKS];
    struct dspark *d;
};

static void world_open(struct world *w, uint32_t threads, uint32_t window, uint32_t blocks)
{
    const struct forward_options options = {.threads = threads, .rows_max = blocks};
    struct model_error err = {""};

    memset(w, 0, sizeof *w);
    model_files_init(&w->files);
    if (model_files_open_dir(&w->files, GOLDEN, &err) != 0) fail_msg("%s", err.text);
    if (dspark_load(&w->weights, &w->files, NULL, &err) != 0) fail_msg("%s", err.text);
    assert_int_equal(dspark_cache_init(&w->cache, &w->weights.config, KV_F32, window, CONTEXT), 0);
    for (uint32_t i = 0; i < BLOCKS; i++) {
        w->memory[i] = aligned_alloc(64, w->cache.slot_bytes);
        memset(w->memory[i], 0xff, w->cache.slot_bytes); /* NaN: a stale read shows */
    }
    assert_int_equal(dspark_open(&w->d, &w->weights, &w->cache, &options), 0);
}

static void world_close(struct world *w)
{
    dspark_close(w->d);
    dspark_weights_free(&w->weights);
    model_files_close(&w->files);
    for (uint32_t i = 0; i < BLOCKS; i++) free(w->memory[i]);
}

static int make_features(void **state)
{
    (void)state;
    for (uint32_t p = 0; p < CONTEXT; p++) {
        char name[32];
        snprintf(name, sizeof name, "feature.%u", p);
        for (uint32_t i = 0; i < FEATURE; i++) feature_of[p][i] = 3 * synthetic_hash(synthetic_fnv1a(name), i);
    }
    return 0;
}

static void absorb(struct world *w, uint32_t sequence, uint32_t from, uint32_t to)
{
    struct dspark_feature rows[CONTEXT];

    for (uint32_t p = from; p < to; p++) rows[p - from] = (struct dspark_feature){feature_of[p], w->memory[sequence], p};
    assert_int_equal(dspark_absorb(w->d, rows, to - from), 0);
}

/* ---- golden rounds ---------------------------------------------------------------------------------- */

struct line { char name[16]; double value[2048]; uint32_t count; };
struct round { struct line line[16]; uint32_t count; };
static struct round golden[2];

static void read_golden(const char *path)
{
    static char text[65536];
    FILE *f = fopen(path, "r");
    unsigned number;
    int at, more;

    assert_non_null(f);
    memset(golden, 0, sizeof golden);
    while (fgets(text, sizeof text, f)) {
        char name[16];
        assert_int_equal(sscanf(text, "%u %15s%n", &number, name, &at), 2);
        assert_in_range(number, 0, 1);
        struct line *l = &golden[number].line[golden[number].count++];
        memcpy(l->name, name, sizeof name);
        for (const char *s = text + at; l->count < 2048 && sscanf(s, "%lf%n", &l->value[l->count], &more) == 1; s += more) l->count++;
    }
    fclose(f);
}

static double tolerance = TOLERANCE;

static void compare(uint32_t number, const char *name, const float *got, uint32_t count)
{
    double off = 0, size = 0;

    for (uint32_t i = 0; i < golden[number].count; i++) {
        const struct line *l = &golden[number].line[i];
        if (strcmp(l->name, name) != 0) continue;
        assert_int_equal(l->count, count);
        for (uint32_t j = 0; j < count; j++) {
            off += (got[j] - l->value[j]) * (got[j] - l->value[j]);
            size += l->value[j] * l->value[j];
        }
        if (!(sqrt(off / size) <= tolerance)) fail_msg("round %u: %s off by %g", number, name, sqrt(off / size));
        return;
    }
    fail_msg("round %u has no %s", number, name);
}

static uint32_t compared;

static void compare_stage(void *context, int stage, const float *rows, uint32_t count)
{
    char name[16];

    if (stage > 0) snprintf(name, sizeof name, "layer.%d", stage - 1);
    else snprintf(name, sizeof name, "%s", stage == 0 ? "embed" : "f");
    compare(*(const uint32_t *)context, name, rows, count * HIDDEN);
    compared++;
}

/* A round as DeepSpec's evaluator drives its model; what is chosen is given. */
static void run_round(struct world *w, uint32_t number, uint32_t token[BLOCK], float logits[BLOCK][VOCAB])
{
    static const uint32_t first[2] = {0, 10}, start[2] = {10, 14};
    float chances[BLOCK];
    char name[16];

    snprintf(name, sizeof name, "tokens.%u", number);
    for (uint32_t i = 0; i < BLOCK; i++) token[i] = (uint32_t)((synthetic_hash(synthetic_fnv1a(name), i) + 1) * (VOCAB / 2));
    absorb(w, 0, first[number], start[number]);
    const struct dspark_row row = {w->memory[0], token[0], start[number], 0};
    assert_int_equal(dspark_block(w->d, &row, 1, BLOCK), 0);
    for (uint32_t i = 0; i < BLOCK; i++) {
        const struct dspark_guess guess = {0, i, token[i]};
        const float chance = dspark_confidence(w->d, &guess);
        assert_true(chance > 0 && chance < 1);
        chances[i] = logf(chance / (1 - chance));
        assert_int_equal(dspark_logits(w->d, &guess, 1, logits[i]), 0);
    }
    compare(number, "logits", &logits[0][0], BLOCK * VOCAB);
    compare(number, "confidence", chances, BLOCK);
}

/* Two rounds, every stage of both. */
static void test_rounds(void **state)
{
    float logits[BLOCK][VOCAB], base[BLOCK][VOCAB];
    uint32_t number, token[BLOCK];
    struct world w;

    (void)state;
    read_golden(GOLDEN "/rounds.txt");
    world_open(&w, 2, CONTEXT, 1);
    dspark_set_hook(w.d, compare_stage, &number);
    for (number = 0; number < 2; number++) {
        run_round(&w, number, token, logits);
        for (uint32_t i = 0; i < BLOCK; i++) /* the bias is added behind the cap */
            for (uint32_t t = 0; t < VOCAB; t++) {
                double bias = 0;
                const float *in = (const float *)w.weights.markov_in + token[i] * w.weights.config.markov_rank;
                for (uint32_t r = 0; r < w.weights.config.markov_rank; r++)
                    bias += (double)in[r] * ((const float *)w.weights.markov_out.data)[t * w.weights.config.markov_rank + r];
                base[i][t] = logits[i][t] - (float)bias;
            }
        compare(number, "base", &base[0][0], BLOCK * VOCAB);
    }
    assert_int_equal(compared, 2 * 4); /* f, embed, two layers */
    world_close(&w);
}

/* The same with matrices in FP8: the reference computes with codes times scales. */
static void test_rounds_in_fp8(void **state)
{
    float logits[BLOCK][VOCAB];
    uint32_t token[BLOCK];
    struct world w;

    (void)state;
    read_golden(GOLDEN "/rounds_fp8.txt");
    world_open(&w, 2, CONTEXT, 1);
    assert_int_equal(dspark_to_fp8(&w.weights, 1), 0);
    for (uint32_t number = 0; number < 2; number++) run_round(&w, number, token, logits);
    world_close(&w);
}

/* The demo model's head: BF16, its tables shared with the model's, one round; then in FP8. The cache is F32 here; what the product's BF16 cache costs is bounded, too. */
static void test_demo(void **state)
{
    static float logits[BLOCK][2048], seen[BLOCK][32];
    float chances[BLOCK];
    struct model_files files[2];
    struct model_config config;
    struct generation_config generation;
    struct model_weights target;
    struct dspark_weights weights;
    struct dspark_cache cache;
    struct model_error err = {""};
    struct dspark_feature rows[10];
    const struct forward_options options = {.threads = 1, .rows_max = 1};
    struct dspark *d;

    (void)state;
    for (int i = 0; i < 2; i++) {
        model_files_init(&files[i]);
        if (model_files_open_dir(&files[i], i ? "model/demo/dspark" : "model/demo", &err) != 0) fail_msg("%s", err.text);
    }
    if (model_load(&config, &generation, &target, &files[0], &err) != 0 || dspark_load(&weights, &files[1], &target, &err) != 0 || dspark_check(&weights.config, &config, &err) != 0)
        fail_msg("%s", err.text);
    assert_true(weights.embed_is_shared && weights.head_is_shared);
    for (int how = 0; how < 3; how++) {
        const bool bf16 = how == 1;
        read_golden(how == 2 ? GOLDEN "/demo_fp8.txt" : GOLDEN "/demo.txt");
        if (how == 2) assert_int_equal(dspark_to_fp8(&weights, 1), 0);
        assert_int_equal(dspark_cache_init(&cache, &weights.config, bf16 ? KV_BF16 : KV_F32, 64, 128), 0);
        void *memory = aligned_alloc(64, cache.slot_bytes);
        memset(memory, 0xff, cache.slot_bytes);
        assert_int_equal(dspark_open(&d, &weights, &cache, &options), 0);
        const uint32_t floats = dspark_feature_floats(&weights.config);
        float *features = malloc(sizeof(float) * floats * 10);
        for (uint32_t p = 0; p < 10; p++) {
            char name[32];
            snprintf(name, sizeof name, "feature.%u", p);
            for (uint32_t i = 0; i < floats; i++) features[p * floats + i] = 3 * synthetic_hash(synthetic_fnv1a(name), i);
            rows[p] = (struct dspark_feature){features + p * floats, memory, p};
        }
        assert_int_equal(dspark_absorb(d, rows, 10), 0);
        uint32_t token[BLOCK];
        for (uint32_t i = 0; i < BLOCK; i++) token[i] = (uint32_t)((synthetic_hash(synthetic_fnv1a("tokens.0"), i) + 1) * ((float)config.vocab / 2));
        const struct dspark_row row = {memory, token[0], 10, 0};
        assert_int_equal(dspark_block(d, &row, 1, BLOCK), 0);
        for (uint32_t i = 0; i < BLOCK; i++) {
            const struct dspark_guess guess = {0, i, token[i]};
            const float chance = dspark_confidence(d, &guess);
            chances[i] = logf(chance / (1 - chance));
            assert_true(config.vocab <= 2048 && dspark_logits(d, &guess, 1, logits[i]) == 0);
            memcpy(seen[i], logits[i], sizeof seen[i]);
        }
        tolerance = bf16 ? 0.02 : TOLERANCE;
        compare(0, "logits", &seen[0][0], BLOCK * 32);
        tolerance = bf16 ? 0.02 : 1e-4; /* taken back from chances near 1, which are f32 */
        compare(0, "confidence", chances, BLOCK);
        tolerance = TOLERANCE;
        dspark_close(d);
        free(features);
        free(memory);
    }
    dspark_weights_free(&weights);
    model_weights_free(&target);
    for (int i = 0; i < 2; i++) model_files_close(&files[i]);
}

/* ---- bits --------------------------------------------------------------------------------------------- */

static void guess_all(struct world *w, uint32_t row, uint32_t wanted, float (*logits)[VOCAB], float *chances)
{
    for (uint32_t i = 0; i < wanted; i++) {
        const struct dspark_guess guess = {row, i, 7 * i + 3};
        chances[i] = dspark_confidence(w->d, &guess);
        assert_int_equal(dspark_logits(w->d, &guess, 1, logits[i]), 0);
    }
}

/* Alone or among others, in one piece or in chunks, with any number of threads, all guesses or some. */
static void test_bits(void **state)
{
    static const uint32_t start[BLOCKS] = {33, 1, 90};
    static float alone[BLOCKS][BLOCK][VOCAB], together[BLOCKS][BLOCK][VOCAB];
    float chance_alone[BLOCKS][BLOCK], chance_together[BLOCKS][BLOCK];
    struct dspark_row rows[BLOCKS];
    struct world w;

    (void)state;
    for (uint32_t threads = 1; threads <= 3; threads += 2) {
        world_open(&w, threads, CONTEXT, BLOCKS);
        for (uint32_t s = 0; s < BLOCKS; s++) {
            for (uint32_t p = 0; p < start[s]; p += 1 + p % 5) absorb(&w, s, p, p + 1 + p % 5 < start[s] ? p + 1 + p % 5 : start[s]);
            rows[s] = (struct dspark_row){w.memory[s], 5 + s, start[s], 0};
            assert_int_equal(dspark_block(w.d, &rows[s], 1, BLOCK), 0);
            guess_all(&w, 0, BLOCK, alone[s], chance_alone[s]);
            memset(w.memory[s], 0xff, w.cache.slot_bytes);
            absorb(&w, s, 0, start[s]);
        }
        assert_int_equal(dspark_block(w.d, rows, BLOCKS, BLOCK), 0);
        for (uint32_t s = 0; s < BLOCKS; s++) guess_all(&w, s, BLOCK, together[s], chance_together[s]);
        assert_memory_equal(alone, together, sizeof alone);
        assert_memory_equal(chance_alone, chance_together, sizeof chance_alone);
        assert_int_equal(dspark_block(w.d, rows, BLOCKS, 2), 0);
        const struct dspark_guess some[3] = {{2, 1, 10}, {0, 0, 3}, {2, 0, 3}};
        assert_int_equal(dspark_logits(w.d, some, 3, together[0][0]), 0);
        assert_memory_equal(together[0][0], alone[2][1], sizeof alone[0][0]);
        assert_memory_equal(together[0][1], alone[0][0], sizeof alone[0][0]);
        assert_memory_equal(together[0][2], alone[2][0], sizeof alone[0][0]);
        world_close(&w);
    }
}

/* A window of 57 in a ring of 64: growing by rounds of 1 to 8 positions over several turns, each block equals the one of a big cache that may see as little. */
static void test_ring(void **state)
{
    enum { WINDOW = 57 };
    static float small[BLOCK][VOCAB], big[BLOCK][VOCAB];
    float chances[2][BLOCK];
    struct world ring, all;

    (void)state;
    world_open(&ring, 1, WINDOW, 1);
    world_open(&all, 1, CONTEXT, 1);
    assert_int_equal(ring.cache.ring_tokens, 64);
    assert_true(ring.cache.slot_bytes < all.cache.slot_bytes / 3);
    for (uint32_t done = 0, n = 1; done + n + BLOCK <= CONTEXT; done += n, n = done * 7 % 8 + 1) {
        const uint32_t start = done + n;
        const struct dspark_row a = {ring.memory[0], 9, start, 0}, b = {all.memory[0], 9, start, start > WINDOW ? start - WINDOW : 0};
        absorb(&ring, 0, done, start);
        absorb(&all, 0, done, start);
        assert_int_equal(dspark_block(ring.d, &a, 1, BLOCK), 0);
        guess_all(&ring, 0, BLOCK, small, chances[0]);
        assert_int_equal(dspark_block(all.d, &b, 1, BLOCK), 0);
        guess_all(&all, 0, BLOCK, big, chances[1]);
        for (uint32_t i = 0; i < BLOCK * VOCAB; i++) assert_true(isfinite(small[i / VOCAB][i % VOCAB]));
        assert_memory_equal(small, big, sizeof small);
        assert_memory_equal(chances[0], chances[1], sizeof chances[0]);
    }
    world_close(&ring);
    world_close(&all);
}

/* ---- loading ------------------------------------------------------------------------------------------ */

/* The drafter's own output matrix as the target's table: that one is shared, the other stays. */
static void test_sharing(void **state)
{
    struct model_config config = {.vocab = VOCAB, .hidden = HIDDEN, .layer_count = 5};
    struct model_weights target = {.config = &config, .dtype = DTYPE_F32};
    struct model_error err = {""};
    struct dspark_weights shared;
    struct world w;

    (void)state;
    world_open(&w, 1, CONTEXT, 1);
    assert_false(w.weights.embed_is_shared || w.weights.head_is_shared);
    float *table = malloc(VOCAB * HIDDEN * sizeof(float));
    memcpy(table, w.weights.head.data, VOCAB * HIDDEN * sizeof(float));
    target.embed = table;
    assert_int_equal(dspark_load(&shared, &w.files, &target, &err), 0);
    assert_true(shared.head_is_shared && shared.head.data == table);
    assert_true(!shared.embed_is_shared && shared.embed != table);
    assert_int_equal(shared.own_bytes + VOCAB * HIDDEN * sizeof(float), w.weights.own_bytes);
    assert_int_equal(shared.block_bytes, w.weights.block_bytes);
    dspark_weights_free(&shared);
    table[7] += 1;
    assert_int_equal(dspark_load(&shared, &w.files, &target, &err), 0);
    assert_false(shared.head_is_shared);
    dspark_weights_free(&shared);
    config.hidden = 16; /* another model: nothing is compared */
    assert_int_equal(dspark_load(&shared, &w.files, &target, &err), 0);
    assert_false(shared.head_is_shared);
    dspark_weights_free(&shared);
    free(table);
    world_close(&w);
}

/* What a block reads: everything but two tables that are looked up, and the Markov output seven times. */
static void test_bytes(void **state)
{
    struct world w;

    (void)state;
    world_open(&w, 1, CONTEXT, 1);
    const uint64_t q = 256 * HIDDEN, k = 128 * HIDDEN, mlp = 3 * 48 * HIDDEN, markov = VOCAB * 16;
    const uint64_t matrices = FEATURE * HIDDEN + 2 * (2 * q + k + mlp);
    assert_int_equal(w.weights.block_bytes, 4 * (matrices + BLOCK * markov + VOCAB * HIDDEN));
    assert_int_equal(w.weights.own_bytes, 4 * (matrices + 2 * markov + 2 * VOCAB * HIDDEN));
    world_close(&w);
}

/* The same numbers as plain floats; to be freed. */
static float *widen(struct stored_matrix *m)
{
    float *values = malloc(sizeof(float) * m->rows * m->k);

    assert_int_equal(m->element, STORED_E4M3);
    for (uint32_t r = 0; r < m->rows; r++)
        for (uint32_t c = 0; c < m->k; c++) values[r * m->k + c] = stored_value(m, r, c);
    *m = (struct stored_matrix){.data = values, .rows = m->rows, .k = m->k, .element = STORED_F32};
    return values;
}

static double distance(const float *a, const float *b, uint32_t count)
{
    double off = 0, size = 0;

    for (uint32_t i = 0; i < count; i++) {
        off += (a[i] - b[i]) * (a[i] - b[i]);
        size += b[i] * b[i];
    }
    return sqrt(off / size);
}

/* In FP8: a quarter of the bytes of F32 and a scale a row. All products are done with the codes: the same drafter with the codes' values written out agrees. */
static void test_fp8(void **state)
{
    static float logits[2][BLOCK][VOCAB];
    float chances[2][BLOCK], *values[15];
    uint32_t count = 0;
    struct world w;

    (void)state;
    world_open(&w, 1, CONTEXT, 1);
    const struct dspark_row row = {w.memory[0], 9, 30, 0};
    const uint64_t block_bytes = w.weights.block_bytes, own_bytes = w.weights.own_bytes;
    assert_int_equal(dspark_to_fp8(&w.weights, 1), 0);
    const uint64_t rows = HIDDEN + 2 * (256 + 128 + HIDDEN + 48 + 48 + HIDDEN) + VOCAB, looked_up = 4 * (VOCAB * 16 + VOCAB * HIDDEN);
    assert_int_equal(w.weights.block_bytes, block_bytes / 4 + 4 * (rows + BLOCK * VOCAB));
    assert_int_equal(w.weights.own_bytes, looked_up + (own_bytes - looked_up) / 4 + 4 * (rows + VOCAB));
    for (int written_out = 0; written_out < 2; written_out++) {
        absorb(&w, 0, 0, 30);
        assert_int_equal(dspark_block(w.d, &row, 1, BLOCK), 0);
        guess_all(&w, 0, BLOCK, logits[written_out], chances[written_out]);
        if (written_out) break;
        struct stored_matrix *all[15] = {&w.weights.fc, &w.weights.head, &w.weights.markov_out};
        for (uint32_t i = 0; i < 2; i++) {
            struct drafter_layer *l = &w.weights.layer[i].shared;
            struct stored_matrix *own[6] = {&l->q, &l->o, &l->gate, &l->up, &l->down, &w.weights.layer[i].k};
            memcpy(all + 3 + 6 * i, own, sizeof own);
        }
        for (; count < 15; count++) values[count] = widen(all[count]);
    }
    assert_true(distance(&logits[0][0][0], &logits[1][0][0], BLOCK * VOCAB) < TOLERANCE);
    assert_true(distance(chances[0], chances[1], BLOCK) < TOLERANCE);
    while (count > 0) free(values[--count]);
    world_close(&w);
}

static void test_refusals(void **state)
{
    struct model_config target = {.vocab = VOCAB, .hidden = HIDDEN, .layer_count = 5};
    struct model_error err = {""};
    float logits[VOCAB];
    struct world w;

    (void)state;
    world_open(&w, 1, CONTEXT, 1);
    assert_int_equal(dspark_check(&w.weights.config, &target, &err), 0);
#define UNFIT(change, word) do { struct model_config good = target; change; assert_int_equal(dspark_check(&w.weights.config, &target, &err), -E_UNSUPPORTED); \
    assert_non_null(strstr(err.text, word)); target = good; } while (0)
    UNFIT(target.hidden = 64, "hidden size 32");
    UNFIT(target.vocab = 65, "65");
    UNFIT(target.layer_count = 6, "5 layers");
#undef UNFIT
    const struct dspark_row good = {w.memory[0], 1, 10, 0};
#define REFUSED(change) do { struct dspark_row row = good; change; assert_int_equal(dspark_block(w.d, &row, 1, BLOCK), -E_RANGE); } while (0)
    REFUSED(row.token = VOCAB);
    REFUSED(row.low = 11);
    REFUSED(row.position = CONTEXT - BLOCK + 1);
    REFUSED(row.position = UINT32_MAX);
#undef REFUSED
    absorb(&w, 0, 0, 10);
    const struct dspark_guess guess = {0, 0, 1};
    assert_int_equal(dspark_logits(w.d, &guess, 1, logits), -E_RANGE); /* no block yet */
    assert_int_equal(dspark_block(w.d, &good, 2, BLOCK), -E_RANGE);
    assert_int_equal(dspark_block(w.d, &good, 1, 0), -E_RANGE);
    assert_int_equal(dspark_block(w.d, &good, 1, BLOCK + 1), -E_RANGE);
    assert_int_equal(dspark_block(w.d, &good, 1, 3), 0);
    assert_int_equal(dspark_logits(w.d, &guess, 1, logits), 0);
    const struct dspark_guess bad[] = {{1, 0, 1}, {0, 3, 1}, {0, 0, VOCAB}};
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(dspark_logits(w.d, &bad[i], 1, logits), -E_RANGE);
        assert_true(dspark_confidence(w.d, &bad[i]) < 0);
    }
    const struct dspark_feature far = {feature_of[0], w.memory[0], CONTEXT};
    assert_int_equal(dspark_absorb(w.d, &far, 1), -E_RANGE);
    world_close(&w);
}

/* The golden config with one field replaced. */
static int parse_with(const char *from, const char *to, struct dspark_config *c, struct model_error *err)
{
    static char json[8192], changed[8192];
    FILE *f = fopen(GOLDEN "/config.json", "r");

    assert_non_null(f);
    json[fread(json, 1, sizeof json - 1, f)] = 0;
    fclose(f);
    char *at = strstr(json, from);
    if (!at) fail_msg("no %s in the golden config", from);
    snprintf(changed, sizeof changed, "%.*s%s%s", (int)(at - json), json, to, at + strlen(from));
    return dspark_config_parse(c, (const uint8_t *)changed, strlen(changed), err);
}

static void test_configs(void **state)
{
    static const struct { const char *from, *to; int code; const char *word; } cases[] = {
        {"\"gemma4_text\"", "\"qwen3\"", -E_UNSUPPORTED, "model_type"},
        {"\"attention_k_eq_v\": true", "\"attention_k_eq_v\": false", -E_UNSUPPORTED, "attention_k_eq_v"},
        {"\"attention_bias\": false", "\"attention_bias\": true", -E_UNSUPPORTED, "attention_bias"},
        {"\"vanilla\"", "\"gated\"", -E_UNSUPPORTED, "markov_head_type"},
        {"\"markov_rank\": 16", "\"markov_rank\": 20", -E_UNSUPPORTED, "markov_rank"},
        {"\"markov_rank\": 16", "\"markov_rank\": 0", -E_FORMAT, "confidence_head_with_markov"},
        {"\"block_size\": 7", "\"block_size\": 17", -E_RANGE, "block_size"},
        {"\"mask_token_id\": 4", "\"mask_token_id\": 64", -E_RANGE, "mask_token_id"},
        {"\"num_target_layers\": 5", "\"num_target_layers\": 4", -E_UNSUPPORTED, "target_layer_ids"},
        {"\"target_layer_ids\"", "\"target_layers\"", -E_FORMAT, "target_layer_ids"},
        {"\"full_attention\"", "\"sliding_attention\"", -E_UNSUPPORTED, "layer_types"},
    };
    struct dspark_config c;

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct model_error err = {""};
        const int rc = parse_with(cases[i].from, cases[i].to, &c, &err);
        if (rc != cases[i].code || !strstr(err.text, cases[i].word)) fail_msg("%s: %d '%s'", cases[i].to, rc, err.text);
    }
    struct model_error err = {""};
    assert_int_equal(parse_with("\"block_size\": 7", "\"block_size\": 5", &c, &err), 0);
    assert_int_equal(c.block, 5);
    assert_int_equal(c.source_count, 3);
    assert_int_equal(c.source[2], 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_rounds), cmocka_unit_test(test_rounds_in_fp8), cmocka_unit_test(test_demo), cmocka_unit_test(test_bits), cmocka_unit_test(test_ring), cmocka_unit_test(test_sharing),
                                       cmocka_unit_test(test_bytes), cmocka_unit_test(test_fp8), cmocka_unit_test(test_refusals), cmocka_unit_test(test_configs)};

    return cmocka_run_group_tests(tests, make_features, NULL);
}
