/* tests/unit/siglip_test.c - Gemma 3's vision tower against transformers, pan and scan against its processor; missing and misshapen tensors are named.
 * Golden data: tests/golden/media/siglip.txt, made by tests/oracle/make_siglip_golden.py, which hashes the same weights. */
#include "model/siglip.h"

#include "shm/error.h"
#include "tests/golden_rows.h"
#include "tests/memory_checkpoint.h"

#define GOLDEN "tests/golden/media/siglip.txt"
#define IMAGE 252u
#define HIDDEN 48u
#define INNER 80u
#define LAYERS 2u
#define TEXT 64u
#define TOKENS 36u
#define POSITIONS 324u
#define PATCH_VALUES 588u

static const char config_json[] = "{\"mm_tokens_per_image\":36,\"vision_config\":{\"model_type\":\"siglip_vision_model\",\"hidden_act\":\"gelu_pytorch_tanh\",\"image_size\":252,\"patch_size\":14,"
                                  "\"hidden_size\":48,\"intermediate_size\":80,\"num_attention_heads\":4,\"num_hidden_layers\":2,\"layer_norm_eps\":1e-06}}";

static const struct { const char *name; uint32_t rows, columns; } tensors[] = {   /* %u: the layer */
    {"vision_tower.embeddings.patch_embedding.weight", HIDDEN, PATCH_VALUES}, {"vision_tower.embeddings.patch_embedding.bias", HIDDEN, 0},
    {"vision_tower.embeddings.position_embedding.weight", POSITIONS, HIDDEN},
    {"vision_tower.encoder.layers.%u.layer_norm1.weight", HIDDEN, 0}, {"vision_tower.encoder.layers.%u.layer_norm1.bias", HIDDEN, 0},
    {"vision_tower.encoder.layers.%u.layer_norm2.weight", HIDDEN, 0}, {"vision_tower.encoder.layers.%u.layer_norm2.bias", HIDDEN, 0},
    {"vision_tower.encoder.layers.%u.self_attn.q_proj.weight", HIDDEN, HIDDEN}, {"vision_tower.encoder.layers.%u.self_attn.q_proj.bias", HIDDEN, 0},
    {"vision_tower.encoder.layers.%u.self_attn.k_proj.weight", HIDDEN, HIDDEN}, {"vision_tower.encoder.layers.%u.self_attn.k_proj.bias", HIDDEN, 0},
    {"vision_tower.encoder.layers.%u.self_attn.v_proj.weight", HIDDEN, HIDDEN}, {"vision_tower.encoder.layers.%u.self_attn.v_proj.bias", HIDDEN, 0},
    {"vision_tower.encoder.layers.%u.self_attn.out_proj.weight", HIDDEN, HIDDEN}, {"vision_tower.encoder.layers.%u.self_attn.out_proj.bias", HIDDEN, 0},
    {"vision_tower.encoder.layers.%u.mlp.fc1.weight", INNER, HIDDEN}, {"vision_tower.encoder.layers.%u.mlp.fc1.bias", INNER, 0},
    {"vision_tower.encoder.layers.%u.mlp.fc2.weight", HIDDEN, INNER}, {"vision_tower.encoder.layers.%u.mlp.fc2.bias", HIDDEN, 0},
    {"vision_tower.post_layernorm.weight", HIDDEN, 0}, {"vision_tower.post_layernorm.bias", HIDDEN, 0},
    {"multi_modal_projector.mm_input_projection_weight", HIDDEN, TEXT}, {"multi_modal_projector.mm_soft_emb_norm.weight", HIDDEN, 0},
};
#define KINDS (sizeof tensors / sizeof *tensors)
#define TENSORS_MAX (KINDS * LAYERS)

static float weight(const struct memory_tensor *t, uint64_t i) /* as the golden script's weight() */
{
    const char *name = t->rule;
    const float h = synthetic_hash(synthetic_fnv1a(name), i);

    if (synthetic_ends(name, "mm_soft_emb_norm.weight")) return 0.25f * h;
    if (strstr(name, "norm") && synthetic_ends(name, ".weight")) return 1.0f + 0.25f * h;
    if (synthetic_ends(name, ".bias")) return 0.125f * h;
    if (strstr(name, "position")) return 0.5f * h;
    return h * (float)(2.0 / sqrt((double)(synthetic_ends(name, "projection_weight") ? t->rows : t->columns)));
}

static char rules[TENSORS_MAX][96];   /* names without what the reference puts before them */

/* All tensors; old: named as the reference saves them, with vision_model. and behind model.; omit: number of one to leave out; cut: one whose first dimension
 * is one too small; -1: none. Returns how many there are. */
static uint32_t entries(struct memory_tensor list[TENSORS_MAX], bool old, int omit, int cut)
{
    uint32_t count = 0, number = 0;

    for (size_t i = 0; i < KINDS; i++)
        for (uint32_t layer = 0; layer < (strchr(tensors[i].name, '%') ? LAYERS : 1); layer++, number++) {
            if ((int)number == omit) continue;
            struct memory_tensor *t = &list[count++];
            const char *mark = strchr(tensors[i].name, '%');
            char *name = rules[number];
            if (mark) snprintf(name, sizeof rules[0], "%.*s%u%s", (int)(mark - tensors[i].name), tensors[i].name, layer, mark + 2);
            else snprintf(name, sizeof rules[0], "%s", tensors[i].name);
            if (old && strncmp(name, "vision_tower.", 13) == 0) snprintf(t->name, sizeof t->name, "model.vision_tower.vision_model.%s", name + 13);
            else snprintf(t->name, sizeof t->name, "%s%s", old ? "model." : "", name);
            t->rule = name;
            t->rows = tensors[i].rows - ((int)number == cut);
            t->columns = tensors[i].columns;
        }
    return count;
}

static void make_checkpoint(struct memory_checkpoint *c, bool f32, bool old, int omit, int cut)
{
    struct memory_tensor list[TENSORS_MAX];

    memory_checkpoint_make(c, list, entries(list, old, omit, cut), f32, weight);
}

static struct siglip_config parsed(void)
{
    const struct model_config model = {.family = MODEL_GEMMA3, .hidden = TEXT};
    struct model_error err = {""};
    struct siglip_config s;

    if (siglip_config_parse(&s, &model, (const uint8_t *)config_json, sizeof config_json - 1, &err) != 0) fail_msg("%s", err.text);
    assert_int_equal(s.side, 18);
    assert_int_equal(s.tokens_side, 6);
    return s;
}

static void draw(uint8_t *rgb)
{
    uint64_t state = 12345;

    for (uint32_t i = 0; i < IMAGE * IMAGE * 3; i++) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        rgb[i] = (uint8_t)(((i / 3 % IMAGE * (i % 3 + 1) + i / 3 / IMAGE * 2) & 127) + (state >> 57));
    }
}

static void run(bool f32, bool old)
{
    static uint8_t rgb[IMAGE * IMAGE * 3];
    static float soft[TOKENS * TEXT], again[TOKENS * TEXT];
    const struct siglip_config config = parsed();
    const struct quantization none = {0};
    struct model_error err = {""};
    struct siglip_weights w;
    struct memory_checkpoint c;
    struct siglip *s;

    make_checkpoint(&c, f32, old, -1, -1);
    if (siglip_weights_load(&w, &config, &none, &c.index, &err) != 0) fail_msg("%s", err.text);
    for (uint32_t i = 0; i < c.index.count; i++) assert_true(c.index.tensor[i].taken);
    draw(rgb);
    for (uint32_t threads = 1; threads <= 3; threads += 2) {   /* the same bits whoever does the work, by whatever instructions, and in a tower that has worked before */
        struct pool *pool;
        assert_int_equal(pool_open(&pool, threads, 0), 0);
        assert_int_equal(siglip_open(&s, &w, kernels_get(threads == 1 ? KERNELS_BEST : KERNELS_PORTABLE), pool), 0);
        assert_true(siglip_bytes(&config, threads) > 0);
        siglip_embed(s, rgb, threads == 1 ? soft : again);
        siglip_embed(s, rgb, again);
        siglip_close(s);
        pool_close(pool);
        assert_memory_equal(soft, again, sizeof soft);
    }
    golden_rows_check(GOLDEN, f32 ? "f32" : "bf16", soft, TOKENS, TEXT, 5e-6);
    siglip_weights_free(&w);
    memory_checkpoint_free(&c);
}

static void test_f32(void **state)
{
    (void)state;
    run(true, false);
}

static void test_bf16_and_other_names(void **state)
{
    (void)state;
    run(false, true);
}

static void test_refusals(void **state)
{
    const struct siglip_config config = parsed();
    const struct quantization none = {0};
    struct memory_tensor list[TENSORS_MAX];
    struct siglip_weights w;
    struct memory_checkpoint c;

    (void)state;
    for (int i = 0; i < (int)entries(list, false, -1, -1); i++) {
        struct model_error err = {""};
        make_checkpoint(&c, false, false, i, -1);
        assert_int_equal(siglip_weights_load(&w, &config, &none, &c.index, &err), -E_NOT_FOUND);
        assert_non_null(strstr(err.text, "missing"));
        memory_checkpoint_free(&c);
        make_checkpoint(&c, false, false, -1, i);
        assert_int_equal(siglip_weights_load(&w, &config, &none, &c.index, &err), -E_FORMAT);
        assert_true(strlen(err.text) > 20);
        memory_checkpoint_free(&c);
    }
}

static void test_configs(void **state)
{
    static const struct { const char *json; int code; const char *word; } cases[] = {
        {"{}", 0, ""}, {"{\"vision_config\":null}", 0, ""},
        {"{\"vision_config\":{\"model_type\":\"clip_vision_model\"}}", -E_UNSUPPORTED, "clip_vision_model"},
        {"{\"vision_config\":{\"hidden_act\":\"relu\"}}", -E_UNSUPPORTED, "relu"},
        {"{\"vision_config\":{\"image_size\":900,\"patch_size\":14}}", -E_UNSUPPORTED, "900"},
        {"{\"mm_tokens_per_image\":255,\"vision_config\":{\"image_size\":896,\"patch_size\":14}}", -E_UNSUPPORTED, "255"},
        {"{\"vision_config\":{\"image_size\":896,\"patch_size\":14,\"num_attention_heads\":7}}", -E_UNSUPPORTED, "7 heads"},
        {"{\"vision_config\":{\"image_size\":896,\"patch_size\":14,\"intermediate_size\":4300}}", -E_UNSUPPORTED, "4300"},
        {"{\"vision_config\":{\"num_channels\":1}}", -E_UNSUPPORTED, "num_channels"},
        {"{\"vision_config\":{\"num_hidden_layers\":0}}", -E_FORMAT, "num_hidden_layers"},
        {"{\"vision_config\":{\"layer_norm_eps\":\"x\"}}", -E_FORMAT, "layer_norm_eps"},
        {"{", -E_FORMAT, "config.json"},
    };
    struct model_config model = {.family = MODEL_GEMMA3, .hidden = TEXT};
    struct siglip_config s;
    struct model_error none = {""};

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct model_error err = {""};
        assert_int_equal(siglip_config_parse(&s, &model, (const uint8_t *)cases[i].json, strlen(cases[i].json), &err), cases[i].code);
        if (!strstr(err.text, cases[i].word)) fail_msg("%s: '%s'", cases[i].json, err.text);
        assert_int_equal(s.image, 0);
    }
    model.family = MODEL_GEMMA4_UNIFIED;
    assert_int_equal(siglip_config_parse(&s, &model, (const uint8_t *)config_json, sizeof config_json - 1, &none), 0);
    assert_int_equal(s.image, 0);
    const struct siglip_weights blind = {.config = s};
    struct siglip *nothing;
    assert_int_equal(siglip_open(&nothing, &blind, kernels_get(KERNELS_BEST), NULL), -E_RANGE);
}

static void test_crops_as_the_processor(void **state)
{
    char line[4096];
    unsigned width, height, count, seen = 0;
    int at, more;
    struct siglip_pan pan;
    FILE *f = fopen(GOLDEN, "r");

    (void)state;
    assert_non_null(f);
    while (fgets(line, sizeof line, f)) {
        if (sscanf(line, "crops %u %u %u %u %lf %u%n", &width, &height, &pan.side_min, &pan.crops_max, &pan.ratio_min, &count, &at) != 6) continue;
        struct siglip_crop crops[SIGLIP_CROPS_MAX];
        uint32_t x = 0, y = 0;
        assert_int_equal(siglip_crops(&pan, width, height, crops), count);
        for (uint32_t i = 0; i < count; i++, at += more) {
            unsigned w, h;
            assert_int_equal(sscanf(line + at, "%u %u%n", &w, &h, &more), 2);
            assert_true(crops[i].width == w && crops[i].height == h && crops[i].x == x && crops[i].y == y);
            if (width >= height) x += w;
            else y += h;
        }
        if (count) assert_true(width >= height ? x == width : y == height);   /* nothing is left out */
        seen++;
    }
    fclose(f);
    assert_int_equal(seen, 38);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_f32), cmocka_unit_test(test_bf16_and_other_names), cmocka_unit_test(test_refusals), cmocka_unit_test(test_configs),
                                       cmocka_unit_test(test_crops_as_the_processor)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
