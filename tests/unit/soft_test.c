/* tests/unit/soft_test.c - soft tokens of pictures and sound against transformers' modules; missing and misshapen tensors are named.
 * Golden data: tests/golden/media/soft.txt, made by tests/oracle/make_soft_golden.py, which hashes the same weights. */
#include "model/soft.h"

#include "shm/error.h"
#include "tests/golden_rows.h"
#include "tests/memory_checkpoint.h"

#define GOLDEN "tests/golden/media/soft.txt"
#define HIDDEN 96u
#define DIM 64u
#define POSITIONS 40u
#define FRAME 640u
#define COLUMNS 3u
#define BLOCKS 6u
#define FRAMES 3u

static const char config_json[] = "{\"vision_config\":{\"patch_size\":16,\"pooling_kernel_size\":3,\"mm_embed_dim\":64,\"output_proj_dims\":64,\"mm_posemb_size\":40,\"rms_norm_eps\":1e-06},"
                                  "\"audio_config\":{\"output_proj_dims\":640}}";

static const struct { const char *old_name, *new_name; uint32_t rows, columns; } tensors[] = {
    {"model.embed_vision.embedding_projection.weight", "embed_vision.multimodal_embedder.embedding_projection.weight", HIDDEN, DIM},
    {"model.vision_embedder.patch_ln1.weight", "embed_vision.patch_ln1.weight", PICTURE_PATCH_BYTES, 0},
    {"model.vision_embedder.patch_ln1.bias", "embed_vision.patch_ln1.bias", PICTURE_PATCH_BYTES, 0},
    {"model.vision_embedder.patch_dense.weight", "embed_vision.patch_dense.weight", DIM, PICTURE_PATCH_BYTES},
    {"model.vision_embedder.patch_dense.bias", "embed_vision.patch_dense.bias", DIM, 0},
    {"model.vision_embedder.patch_ln2.weight", "embed_vision.patch_ln2.weight", DIM, 0},
    {"model.vision_embedder.patch_ln2.bias", "embed_vision.patch_ln2.bias", DIM, 0},
    {"model.vision_embedder.pos_embedding", "embed_vision.pos_embedding", POSITIONS * 2, DIM},
    {"model.vision_embedder.pos_norm.weight", "embed_vision.pos_norm.weight", DIM, 0},
    {"model.vision_embedder.pos_norm.bias", "embed_vision.pos_norm.bias", DIM, 0},
    {"model.embed_audio.embedding_projection.weight", "embed_audio.embedding_projection.weight", HIDDEN, FRAME},
};
#define TENSORS (sizeof tensors / sizeof *tensors)

static float weight(const struct memory_tensor *t, uint64_t i) /* as the golden script's weight() */
{
    const char *name = t->rule;
    const float h = synthetic_hash(synthetic_fnv1a(name), i);

    if (synthetic_ends(name, "norm.weight") || (strstr(name, "ln") && synthetic_ends(name, ".weight"))) return 1.0f + 0.25f * h;
    if (synthetic_ends(name, ".bias")) return 0.125f * h;
    if (synthetic_ends(name, "pos_embedding")) return 0.5f * h;
    return h * (float)(2.0 / sqrt((double)t->columns));
}

/* omit: index of a tensor to leave out; cut: one whose first dimension is one too small; -1: none. */
static void make_checkpoint(struct memory_checkpoint *c, bool f32, bool new_names, int omit, int cut)
{
    struct memory_tensor list[TENSORS];
    uint32_t count = 0;

    for (size_t i = 0; i < TENSORS; i++) {
        if ((int)i == omit) continue;
        struct memory_tensor *t = &list[count++];
        snprintf(t->name, sizeof t->name, "%s", new_names ? tensors[i].new_name : tensors[i].old_name);
        t->rule = tensors[i].old_name;
        t->rows = tensors[i].rows - ((int)i == cut);
        t->columns = tensors[i].columns;
    }
    memory_checkpoint_make(c, list, count, f32, weight);
}

static struct soft_config parsed(void)
{
    const struct model_config model = {.family = MODEL_GEMMA4_UNIFIED, .hidden = HIDDEN};
    struct model_error err = {""};
    struct soft_config soft;

    if (soft_config_parse(&soft, &model, (const uint8_t *)config_json, sizeof config_json - 1, &err) != 0) fail_msg("%s", err.text);
    assert_int_equal(soft.picture_dim, DIM);
    assert_int_equal(soft.picture_positions, POSITIONS);
    assert_int_equal(soft.audio_frame, FRAME);
    return soft;
}

static void draw_blocks(uint8_t *blocks)
{
    uint64_t state = 12345;

    for (uint32_t i = 0; i < BLOCKS * PICTURE_PATCH_BYTES; i++) {
        state = state * 6364136223846793005ull + 1442695040888963407ull;
        blocks[i] = (uint8_t)(state >> 56);
    }
    memset(blocks + (BLOCKS - 1) * PICTURE_PATCH_BYTES, 77, PICTURE_PATCH_BYTES);
}

static void draw_frames(float *frames)
{
    for (uint32_t i = 0; i < FRAMES * FRAME; i++) frames[i] = i >= 2 * FRAME + 100 ? 0.0f : synthetic_hash(synthetic_fnv1a("frames"), i) * 0.5f;
}

static void run(bool f32, bool new_names)
{
    static uint8_t blocks[BLOCKS * PICTURE_PATCH_BYTES];
    static float frames[FRAMES * FRAME], soft[BLOCKS * HIDDEN], part[BLOCKS * HIDDEN];
    const struct soft_config config = parsed();
    const struct kernels *kernels = kernels_get(KERNELS_BEST);
    const struct quantization none = {0};
    struct model_error err = {""};
    struct soft_weights w;
    struct memory_checkpoint c;

    make_checkpoint(&c, f32, new_names, -1, -1);
    if (soft_weights_load(&w, &config, &none, &c.index, &err) != 0) fail_msg("%s", err.text);
    for (uint32_t i = 0; i < c.index.count; i++) assert_true(c.index.tensor[i].taken);
    float *scratch = malloc(sizeof(float) * soft_scratch_floats(&config, BLOCKS));
    draw_blocks(blocks);
    draw_frames(frames);
    assert_int_equal(soft_picture(&w, kernels, blocks, BLOCKS, 0, COLUMNS, scratch, soft), 0);
    golden_rows_check(GOLDEN, f32 ? "f32" : "bf16", soft, BLOCKS, HIDDEN, 3e-6);
    /* in pieces: the same bits */
    assert_int_equal(soft_picture(&w, kernels, blocks, 1, 0, COLUMNS, scratch, part), 0);
    assert_int_equal(soft_picture(&w, kernels, blocks + PICTURE_PATCH_BYTES, BLOCKS - 1, 1, COLUMNS, scratch, part + HIDDEN), 0);
    assert_memory_equal(part, soft, sizeof soft);
    assert_int_equal(soft_sound(&w, kernels, frames, FRAMES, scratch, soft), 0);
    golden_rows_check(GOLDEN, f32 ? "sound_f32" : "sound_bf16", soft, FRAMES, HIDDEN, 3e-6);
    assert_int_equal(soft_picture(&w, kernels, blocks, 1, POSITIONS * COLUMNS, COLUMNS, scratch, part), -E_RANGE);
    assert_int_equal(soft_picture(&w, kernels, blocks, 1, 0, POSITIONS + 1, scratch, part), -E_RANGE);
    soft_weights_free(&w);
    free(scratch);
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
    const struct soft_config config = parsed();
    const struct quantization none = {0};
    struct soft_weights w;
    struct memory_checkpoint c;

    (void)state;
    for (size_t i = 0; i < TENSORS; i++) {
        struct model_error err = {""};
        make_checkpoint(&c, false, false, (int)i, -1);
        assert_int_equal(soft_weights_load(&w, &config, &none, &c.index, &err), -E_NOT_FOUND);
        assert_non_null(strstr(err.text, "missing"));
        memory_checkpoint_free(&c);
        make_checkpoint(&c, false, false, -1, (int)i);
        assert_int_equal(soft_weights_load(&w, &config, &none, &c.index, &err), -E_FORMAT);
        assert_true(strlen(err.text) > 20);
        memory_checkpoint_free(&c);
    }
}

static void test_configs(void **state)
{
    static const struct { const char *json; int code; const char *word; } cases[] = {
        {"{}", 0, ""},
        {"{\"vision_config\":null,\"audio_config\":null}", 0, ""},
        {"{\"vision_config\":{\"patch_size\":14}}", -E_UNSUPPORTED, "42 x 42"},
        {"{\"vision_config\":{\"mm_embed_dim\":-3}}", -E_FORMAT, "mm_embed_dim"},
        {"{\"vision_config\":{\"mm_embed_dim\":24}}", -E_UNSUPPORTED, "mm_embed_dim"},
        {"{\"vision_config\":{\"mm_embed_dim\":64,\"output_proj_dims\":32}}", -E_UNSUPPORTED, "output_proj_dims"},
        {"{\"vision_config\":{\"rms_norm_eps\":\"x\"}}", -E_FORMAT, "rms_norm_eps"},
        {"{\"audio_config\":{\"output_proj_dims\":641}}", -E_UNSUPPORTED, "641"},
        {"{", -E_FORMAT, "config.json"},
    };
    const struct model_config model = {.family = MODEL_GEMMA4_UNIFIED, .hidden = HIDDEN};

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct model_error err = {""};
        struct soft_config soft;
        assert_int_equal(soft_config_parse(&soft, &model, (const uint8_t *)cases[i].json, strlen(cases[i].json), &err), cases[i].code);
        if (!strstr(err.text, cases[i].word)) fail_msg("%s: '%s'", cases[i].json, err.text);
        if (cases[i].code == 0) assert_true(soft.picture_dim == 0 && soft.audio_frame == 0);
    }
}

/* Weights out of nothing give rows of the size of an embedding: neither zeros nor infinities. */
static void test_random_weights_compute(void **state)
{
    const struct soft_config soft = parsed();
    struct soft_weights w;
    static uint8_t blocks[BLOCKS * PICTURE_PATCH_BYTES];
    static float frames[FRAMES * FRAME], out[BLOCKS * HIDDEN];
    float *scratch = malloc(soft_scratch_floats(&soft, BLOCKS) * sizeof *scratch);

    (void)state;
    draw_blocks(blocks);
    draw_frames(frames);
    assert_int_equal(soft_weights_random(&w, &soft), 0);
    for (int kind = 0; kind < 2; kind++) {
        const uint32_t rows = kind ? FRAMES : BLOCKS;
        double square = 0;
        if (kind) assert_int_equal(soft_sound(&w, kernels_get(KERNELS_BEST), frames, rows, scratch, out), 0);
        else assert_int_equal(soft_picture(&w, kernels_get(KERNELS_BEST), blocks, rows, 0, COLUMNS, scratch, out), 0);
        for (uint32_t i = 0; i < rows * HIDDEN; i++) square += (double)out[i] * out[i];
        assert_true(square / (rows * HIDDEN) > 0.1 && square / (rows * HIDDEN) < 10);
    }
    soft_weights_free(&w);
    free(scratch);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_f32), cmocka_unit_test(test_bf16_and_other_names), cmocka_unit_test(test_refusals), cmocka_unit_test(test_configs), cmocka_unit_test(test_random_weights_compute)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
