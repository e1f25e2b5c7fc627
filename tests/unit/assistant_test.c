/* tests/unit/assistant_test.c - the MTP assistant's steps equal transformers', the demo's too, as it is and in FP8; rows keep their bits among others; odd files and calls are refused.
 * Golden data: tests/golden/assistant/, made by tests/oracle/make_assistant_golden.py, which hashes the same keys and states. */
#include "model/assistant.h"

#include "shm/error.h"
#include "tests/synthetic.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#define GOLDEN "tests/golden/assistant"
#define DEMO "model/demo"
#define NUMBERS_MAX 2048u             /* of a line; the demo's vocabulary */
#define PAGES_MAX 16u                 /* of a sequence */
#define BACKBONE 48u
#define VOCAB 96u
#define WINDOW 64u
#define KEYS 45u
#define STEPS 3u
#define ROWS 3u
#define TOLERANCE 1e-5
#define TOLERANCE_DEMO 4e-5           /* the first logits of its third step are a tenth of the others in size: 2e-5, where all else is within 3e-6 */

/* A target with three sliding layers and two full ones; the assistant reads layers 3 and 4. */
static struct model_config target(void)
{
    struct model_config c = {.family = MODEL_GEMMA4_UNIFIED, .vocab = VOCAB, .hidden = BACKBONE, .intermediate = 64, .layer_count = 5, .q_heads = 4, .window = WINDOW,
                             .max_position = 4096, .norm_eps = 1e-6f, .attention_scale = 1};

    for (uint32_t i = 0; i < 5; i++) {
        const bool full = i == 1 || i == 4;
        c.layer[i] = (struct layer_config){.type = full ? LAYER_FULL : LAYER_SLIDING, .head_dim = full ? 64 : 32, .kv_heads = full ? 1 : 2, .has_v = !full};
        c.layer[i].type_index = c.type_count[c.layer[i].type]++;
    }
    return c;
}

struct world {
    struct model_files files;
    struct assistant_weights weights;
    struct model_config config;
    struct kv_geometry geo;
    uint8_t *arena;
    uint32_t pages[2][ROWS][PAGES_MAX];
    struct forward_seq seqs[ROWS];
    struct assistant *assistant;
};

/* The target's last layer of each kind. */
static uint32_t last_layer(const struct model_config *c, enum layer_type type)
{
    uint32_t found = 0;

    for (uint32_t i = 0; i < c->layer_count; i++)
        if (c->layer[i].type == type) found = i;
    return found;
}

static void write_keys(struct world *w, uint32_t seq)
{
    static const char *const name[2][2] = {[LAYER_SLIDING] = {"sliding_attention.k", "sliding_attention.v"}, [LAYER_FULL] = {"full_attention.k", "full_attention.v"}};

    for (uint32_t type = 0; type < 2; type++)
        for (int v = 0; v < 2; v++) {
            const uint32_t layer = last_layer(&w->config, (enum layer_type)type);
            const struct kv_layer *l = &w->geo.layer[layer];
            for (uint32_t h = 0; h < l->kv_heads; h++)
                for (uint32_t p = 0; p < KEYS; p++)
                    for (uint32_t d = 0; d < l->head_dim; d++) {
                        const uint32_t page = l->type == LAYER_FULL ? w->pages[0][seq][kv_full_index(p)] : w->pages[1][seq][kv_sliding_index(&w->geo, p)];
                        const float value = synthetic_hash(synthetic_fnv1a(name[type][v]), ((uint64_t)h * KEYS + p) * l->head_dim + d);
                        memcpy(w->arena + kv_token_offset(&w->geo, layer, v != 0, page, h, p % KV_PAGE_TOKENS) + 4 * d, &value, 4);
                    }
        }
}

static void load(struct world *w, const char *dir)
{
    struct model_error err = {""};

    memset(w, 0, sizeof *w);
    model_files_init(&w->files);
    if (model_files_open_dir(&w->files, dir, &err) != 0) fail_msg("%s", err.text);
    if (assistant_load(&w->weights, &w->files, &err) != 0) fail_msg("%s", err.text);
}

/* w->config: the target; w->weights are loaded. */
static void world_make(struct world *w, uint32_t threads)
{
    const struct forward_options options = {.threads = threads, .rows_max = ROWS};
    uint32_t full, sliding;

    assert_int_equal(kv_geometry_init(&w->geo, &w->config, KV_F32, 128, 16, 0, 0), 0);
    full = w->geo.full_pages_per_seq;
    sliding = w->geo.sliding_pages_per_seq;
    assert_true(full <= PAGES_MAX && sliding <= PAGES_MAX);
    assert_int_equal(kv_geometry_init(&w->geo, &w->config, KV_F32, 128, 16, full * ROWS, sliding * ROWS), 0);
    w->arena = aligned_alloc(4096, w->geo.arena_bytes);
    memset(w->arena, 0xff, w->geo.arena_bytes); /* NaN: a stale read shows */
    for (uint32_t s = 0; s < ROWS; s++) {
        for (uint32_t i = 0; i < full; i++) w->pages[0][s][i] = (full - 1 - i) * ROWS + s;
        for (uint32_t i = 0; i < sliding; i++) w->pages[1][s][i] = i * ROWS + (ROWS - 1 - s);
        w->seqs[s] = (struct forward_seq){w->pages[0][s], w->pages[1][s], full, sliding};
        write_keys(w, s);
    }
    assert_int_equal(assistant_open(&w->assistant, &w->weights, &w->config, &w->geo, w->arena, &options), 0);
}

static void world_open_from(struct world *w, const char *dir, uint32_t threads)
{
    load(w, dir);
    w->config = target();
    world_make(w, threads);
}

static void world_open(struct world *w, uint32_t threads)
{
    world_open_from(w, GOLDEN, threads);
}

static void world_close(struct world *w)
{
    assistant_close(w->assistant);
    assistant_weights_free(&w->weights);
    model_files_close(&w->files);
    free(w->arena);
}

static void hashed(float *out, const char *name, uint32_t count, float factor)
{
    for (uint32_t i = 0; i < count; i++) out[i] = synthetic_hash(synthetic_fnv1a(name), i) * factor;
}

/* The numbers of a line against the first of `got`. */
static double error_to(const char *line, const float *got, uint32_t count)
{
    double off = 0, size = 0, wanted;
    uint32_t n = 0;

    for (int more; sscanf(line, "%lf%n", &wanted, &more) == 1; line += more, n++) {
        assert_true(n < count);
        off += (got[n] - wanted) * (got[n] - wanted);
        size += wanted * wanted;
    }
    assert_true(n >= 32);
    return sqrt(off / size);
}

/* Three steps against the golden ones of a file; the largest error. */
static double check_steps(struct world *w, const char *path)
{
    static char line[8192];
    static float embedding[NUMBERS_MAX], hidden[NUMBERS_MAX], logits[NUMBERS_MAX];
    const uint32_t backbone = w->weights.backbone_hidden, vocab = w->weights.config.vocab;
    double worst = 0;

    assert_true(backbone <= NUMBERS_MAX && vocab <= NUMBERS_MAX);
    FILE *f = fopen(path, "r");
    assert_non_null(f);
    hashed(hidden, "hidden", backbone, 1);
    for (uint32_t step = 0; step < STEPS; step++) {
        const struct assistant_row row = {embedding, hidden, KEYS, KEYS, 1};
        char name[32], what[16];
        unsigned number;
        int at;
        snprintf(name, sizeof name, "embedding.%u", step);
        hashed(embedding, name, backbone, 3);
        assert_int_equal(assistant_step(w->assistant, &row, 1, w->seqs, ROWS, logits, hidden), 0);
        for (int part = 0; part < 2; part++) {
            assert_non_null(fgets(line, sizeof line, f));
            assert_int_equal(sscanf(line, "%u %15s%n", &number, what, &at), 2);
            assert_int_equal(number, step);
            assert_string_equal(what, part == 0 ? "logits" : "hidden");
            const double error = part == 0 ? error_to(line + at, logits, vocab) : error_to(line + at, hidden, backbone);
            if (!(error <= worst)) worst = error; /* a NaN stays */
        }
    }
    fclose(f);
    return worst;
}

static void test_steps(void **state)
{
    static const char *const dirs[] = {GOLDEN, GOLDEN "_fp8"};
    struct world w;

    (void)state;
    for (int i = 0; i < 2; i++) {
        world_open_from(&w, dirs[i], 2);
        if (i == 0) assert_true(w.weights.step_bytes > 4 * (VOCAB * 32 + 2 * BACKBONE * 32));
        const double error = check_steps(&w, i ? GOLDEN "_fp8/steps.txt" : GOLDEN "/steps.txt");
        if (!(error <= TOLERANCE)) fail_msg("%s: off by %g", dirs[i], error);
        world_close(&w);
    }
}

/* The demo model's assistant, BF16, and as --draft-dtype fp8 holds it: codes times scales of its rows are what the reference computes with there, too. */
static void test_demo(void **state)
{
    struct generation_config generation;
    struct model_files files;
    struct model_error err = {""};
    struct world w;

    (void)state;
    model_files_init(&files);
    if (model_files_open_dir(&files, DEMO, &err) != 0) fail_msg("%s", err.text);
    for (int fp8 = 0; fp8 < 2; fp8++) {
        load(&w, DEMO "/assistant");
        if (model_config_load(&w.config, &generation, &files, &err) != 0 || assistant_check(&w.weights, &w.config, &err) != 0) fail_msg("%s", err.text);
        if (fp8) assert_int_equal(assistant_to_fp8(&w.weights, 1), 0);
        world_make(&w, 1);
        const double error = check_steps(&w, fp8 ? GOLDEN "/demo_fp8.txt" : GOLDEN "/demo.txt");
        if (!(error <= TOLERANCE_DEMO)) fail_msg("%s: off by %g", fp8 ? "FP8" : "BF16", error);
        world_close(&w);
    }
    model_files_close(&files);
}

/* Rounded when loaded: a quarter of the bytes of F32, and off as FP8 is. Hashed weights are the worst case: 0.1 in the first step, as in
 * ModelOpt's layout, 0.2 in the third, whose input is already off. */
static void test_rounds_to_fp8(void **state)
{
    struct world w;

    (void)state;
    world_open(&w, 1);
    const uint64_t before = w.weights.step_bytes;
    assistant_close(w.assistant);
    assert_int_equal(assistant_to_fp8(&w.weights, 2), 0);
    assert_true(w.weights.step_bytes * 3 < before);
    const struct forward_options options = {.threads = 1, .rows_max = ROWS};
    assert_int_equal(assistant_open(&w.assistant, &w.weights, &w.config, &w.geo, w.arena, &options), 0);
    const double error = check_steps(&w, GOLDEN "/steps.txt");
    if (!(error > 1e-4 && error < 0.3)) fail_msg("off by %g", error);
    world_close(&w);
}

/* Alone or among others, with any number of threads. */
static void test_bits(void **state)
{
    static float embedding[ROWS][BACKBONE], hidden[ROWS][BACKBONE], alone[ROWS][VOCAB], together[ROWS][VOCAB], next[ROWS][BACKBONE], out[ROWS][BACKBONE];
    struct assistant_row rows[ROWS];
    struct world w;

    (void)state;
    for (uint32_t threads = 1; threads <= 3; threads += 2) {
        world_open(&w, threads);
        for (uint32_t r = 0; r < ROWS; r++) {
            char name[16];
            snprintf(name, sizeof name, "e%u", r);
            hashed(embedding[r], name, BACKBONE, 2);
            hashed(hidden[r], name + 1, BACKBONE, 1);
            rows[r] = (struct assistant_row){embedding[r], hidden[r], KEYS - r, KEYS - 7 * r, r};
            assert_int_equal(assistant_step(w.assistant, &rows[r], 1, w.seqs, ROWS, alone[r], out[r]), 0);
        }
        assert_int_equal(assistant_step(w.assistant, rows, ROWS, w.seqs, ROWS, together[0], next[0]), 0);
        assert_memory_equal(alone, together, sizeof alone);
        assert_memory_equal(out, next, sizeof out);
        world_close(&w);
    }
}

static void test_refusals(void **state)
{
    static float embedding[BACKBONE], hidden[BACKBONE], logits[VOCAB];
    const struct assistant_row good = {embedding, hidden, KEYS, KEYS, 0};
    struct assistant_row row;
    struct model_error err = {""};
    struct model_config other;
    struct forward_seq seqs[ROWS];
    struct world w;

    (void)state;
    world_open(&w, 1);
#define REFUSED(change) do { row = good; memcpy(seqs, w.seqs, sizeof seqs); change; \
    assert_int_equal(assistant_step(w.assistant, &row, 1, seqs, ROWS, logits, hidden), -E_RANGE); } while (0)
    REFUSED(row.seq = ROWS);
    REFUSED(row.key_count = 0);
    REFUSED(row.key_count = KEYS + 1);
    REFUSED(row.position = 128);
    REFUSED(seqs[0].full_page_count = 1);
    REFUSED(seqs[0].sliding_page_count = 1);
#undef REFUSED
    assert_int_equal(assistant_step(w.assistant, &good, 0, w.seqs, ROWS, logits, hidden), -E_RANGE);
#define UNFIT(change, word) do { other = w.config; change; assert_int_equal(assistant_check(&w.weights, &other, &err), -E_UNSUPPORTED); assert_non_null(strstr(err.text, word)); } while (0)
    UNFIT(other.hidden = 64, "hidden size 48");
    UNFIT(other.vocab = 97, "97");
    UNFIT(other.layer[3].kv_heads = 1, "layer 0");
    UNFIT(other.layer[4].head_dim = 32, "layer 3");
    UNFIT((other.layer[1].type = other.layer[4].type = LAYER_SLIDING, other.layer[4].head_dim = 32, other.layer[4].kv_heads = 2), "has not");
#undef UNFIT
    world_close(&w);
}

static void test_configs(void **state)
{
    static const struct { const char *json; int code; const char *word; } cases[] = {
        {"{\"model_type\":\"gemma4_unified\"}", -E_UNSUPPORTED, "model_type"},
        {"{\"model_type\":\"gemma4_unified_assistant\"}", -E_FORMAT, "text_config"},
        {"{\"model_type\":\"gemma4_unified_assistant\",\"text_config\":{}}", -E_FORMAT, "backbone_hidden_size"},
        {"{\"model_type\":\"gemma4_unified_assistant\",\"text_config\":{},\"backbone_hidden_size\":48,\"use_ordered_embeddings\":true}", -E_UNSUPPORTED, "use_ordered_embeddings"},
        {"{\"model_type\":\"gemma4_unified_assistant\",\"text_config\":{},\"backbone_hidden_size\":50}", -E_UNSUPPORTED, "backbone_hidden_size"},
        {"{\"model_type\":\"gemma4_unified_assistant\",\"text_config\":{},\"backbone_hidden_size\":48}", -E_FORMAT, "hidden_size"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct model_error err = {""};
        struct model_config c;
        uint32_t backbone;
        const int rc = assistant_config_parse(&c, &backbone, (const uint8_t *)cases[i].json, strlen(cases[i].json), &err);
        if (rc != cases[i].code || !strstr(err.text, cases[i].word)) fail_msg("%s: %d '%s'", cases[i].json, rc, err.text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_steps), cmocka_unit_test(test_demo), cmocka_unit_test(test_rounds_to_fp8), cmocka_unit_test(test_bits), cmocka_unit_test(test_refusals), cmocka_unit_test(test_configs)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
