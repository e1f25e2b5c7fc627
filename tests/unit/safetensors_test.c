/* tests/unit/safetensors_test.c - checkpoint files: hostile headers, missing and wrong tensors, and the words of each refusal. */
#include "model/weights.h"
#include "shm/error.h"
#include "tests/synthetic.h"
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

/* A file of this header and `data_bytes` zeros. */
static int add(struct safetensors *index, const char *header, uint64_t data_bytes, struct model_error *err)
{
    static uint8_t file[1 << 16] __attribute__((aligned(8)));
    uint64_t header_bytes = strlen(header);

    memset(file, 0, sizeof(file));
    memcpy(file + 8, header, header_bytes);
    while (header_bytes % 8 != 0) file[8 + header_bytes++] = ' ';
    memcpy(file, &header_bytes, 8);
    safetensors_init(index);
    return safetensors_add(index, "a.safetensors", 0, file, 8 + header_bytes + data_bytes, err);
}

#define T(name, dtype, shape, from, to) "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":[" shape "],\"data_offsets\":[" #from "," #to "]}"

static void test_a_good_header_is_indexed(void **state)
{
    struct safetensors index;
    struct model_error err;
    struct tensor *t;

    (void)state;
    if (add(&index, "{\"__metadata__\":{\"format\":\"pt\"}," T("b", "BF16", "2,3", 0, 12) "," T("a", "F32", "", 12, 16) "," T("c", "I64", "0", 16, 16) "}", 16, &err) != 0)
        fail_msg("%s", err.text);
    assert_int_equal(safetensors_finish(&index, &err), 0);
    assert_int_equal(index.count, 3);
    assert_non_null(t = safetensors_find(&index, "b"));
    assert_true(t->rank == 2 && t->shape[0] == 2 && t->shape[1] == 3 && t->byte_count == 12 && t->dtype == DTYPE_BF16);
    assert_non_null(t = safetensors_find(&index, "a"));
    assert_int_equal(t->rank, 0);
    assert_null(safetensors_find(&index, "d"));
    assert_null(safetensors_find(&index, "__metadata__"));
    safetensors_free(&index);
}

static void test_hostile_headers_are_refused(void **state)
{
    static const struct { const char *header; uint64_t data; const char *words; } bad[] = {
        { "{" T("x", "BF16", "4", 0, 8) "}", 7, "x: its data ends at byte 8 of 7" },
        { "{" T("x", "BF16", "4", 0, 6) "}", 8, "do not fit" },
        { "{" T("x", "BF16", "4", 8, 0) "}", 8, "backwards" },
        { "{" T("x", "BF16", "4", -8, 0) "}", 8, "no data_offsets" },
        { "{" T("x", "BF16", "-1", 0, 8) "}", 8, "not a count" },
        { "{" T("x", "BF16", "1.5", 0, 8) "}", 8, "not a count" },
        { "{" T("x", "BF16", "4294967296,4294967296", 0, 0) "}", 8, "overflows" },
        { "{" T("x", "BF16", "9223372036854775807", 0, 8) "}", 8, "do not fit" },
        { "{" T("x", "BF16", "1,1,1,1,1,1,1,1,1", 0, 2) "}", 8, "too many dimensions" },
        { "{" T("x", "BF17", "4", 0, 8) "}", 8, "unknown dtype BF17" },
        { "{" T("x", "F32", "1", 2, 6) "}", 8, "not aligned" },
        { "{" T("x", "BF16", "4", 0, 8) "," T("y", "BF16", "4", 6, 14) "}", 16, "overlaps" },
        { "{" T("x", "BF16", "4", 0, 8) "," T("x", "BF16", "4", 8, 16) "}", 16, "duplicate" },
        { "{" T("x", "BF16", "4", 0, 8) "," T("y", "BF16", "4", 10, 18) "}", 18, "y: there is a hole" },
        { "{" T("x", "BF16", "4", 2, 10) "}", 10, "x: there is a hole" },
        { "{" T("x", "BF16", "4", 0, 8) "}", 12, "4 bytes behind the last tensor" },
        { "{" T("x", "BF16", "4", 0, 8) "," T("y", "U8", "0", 4, 4) "}", 8, "overlaps" },
        { "{\"x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", 16, "no data_offsets" },
        { "{\"x\":{\"dtype\":\"F32\",\"shape\":[1]}}", 16, "no data_offsets" },
        { "{\"x\":{\"dtype\":4,\"shape\":[1],\"data_offsets\":[0,4]}}", 16, "no dtype" },
        { "{\"x\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 16, "no shape" },
        { "{\"x\":3}", 16, "not an object" },
        { "[1]", 16, "not an object" },
        { "{\"x\":", 16, "header:" },
        { "", 16, "header:" },
    };
    struct safetensors index;
    struct model_error err;

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        if (add(&index, bad[i].header, bad[i].data, &err) == 0) fail_msg("accepted: %s", bad[i].header);
        if (!strstr(err.text, bad[i].words)) fail_msg("\"%s\" does not say \"%s\"", err.text, bad[i].words);
        safetensors_free(&index);
    }
}

static void test_lengths_that_lie_are_refused(void **state)
{
    static const uint64_t lengths[] = { 1, 9, 1ull << 40, UINT64_MAX, UINT64_MAX - 7 };
    uint8_t file[16] = { 0 };
    struct safetensors index;
    struct model_error err;

    (void)state;
    safetensors_init(&index);
    for (uint64_t n = 0; n < 8; n++) assert_int_equal(safetensors_add(&index, "a", 0, file, n, &err), -E_FORMAT);
    for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
        memcpy(file, &lengths[i], 8);
        assert_int_equal(safetensors_add(&index, "a", 0, file, sizeof(file), &err), -E_FORMAT);
    }
    assert_int_equal(index.count, 0);
    safetensors_free(&index);
}

#define SMALL "{\"model_type\":\"gemma4_unified_text\",\"vocab_size\":48,\"hidden_size\":32,\"intermediate_size\":64,\"num_hidden_layers\":6,\"eos_token_id\":1," \
    "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"head_dim\":32,\"global_head_dim\":64,\"num_global_key_value_heads\":1,\"attention_k_eq_v\":true}"

static int load(const struct synthetic_options *o, struct model_error *err)
{
    struct generation_config generation;
    struct model_config config;
    struct model_weights weights;
    struct model_files files;
    int rc;

    synthetic_checkpoint(&files, SMALL, o);
    rc = model_load(&config, &generation, &weights, &files, err);
    if (rc == 0) {
        assert_int_equal(weights.dtype, o->f32 ? DTYPE_F32 : DTYPE_BF16);
        assert_null(weights.layer[5].v.data);
        model_weights_free(&weights);
    }
    model_files_close(&files);
    return rc;
}

static void test_every_layout_of_names_is_accepted(void **state)
{
    static const char *const prefixes[] = { "", "model.", "model.language_model.", "language_model.model.", "language_model." };
    struct model_error err;

    (void)state;
    for (size_t i = 0; i < 5; i++)
        for (uint32_t shards = 1; shards <= 3; shards++) {
            const struct synthetic_options o = { .prefix = prefixes[i], .shards = shards, .f32 = i == 2, .extra = "lm_head.weight" };

            if (load(&o, &err) != 0) fail_msg("%s", err.text);
        }
    for (size_t i = 0; i < 2; i++) {
        const struct synthetic_options o = { .prefix = "model.language_model.", .extra = i ? "model.vision_embedder.patch_dense.bias" : "embed_vision.pos_norm.weight" };

        if (load(&o, &err) != 0) fail_msg("%s", err.text);
    }
}

static void test_wrong_tensors_are_named(void **state)
{
    static const struct { struct synthetic_options o; int code; const char *words[2]; } wrong[] = {
        { { .prefix = "model.", .omit = "layers.3.mlp.up_proj.weight" }, -E_NOT_FOUND, { "model.layers.3.mlp.up_proj.weight", "missing" } },
        { { .prefix = "model.", .omit = "layers.5.layer_scalar" }, -E_NOT_FOUND, { "model.layers.5.layer_scalar", "missing" } },
        { { .omit = "embed_tokens.weight" }, -E_NOT_FOUND, { "embed_tokens.weight", "missing" } },
        { { .misshape = "layers.5.self_attn.q_proj.weight" }, -E_FORMAT, { "[255, 32] BF16", "[256, 32]" } },
        { { .misshape = "layers.0.self_attn.q_norm.weight" }, -E_FORMAT, { "[31] BF16", "[32]" } },
        { { .retype = "layers.1.mlp.gate_proj.weight" }, -E_UNSUPPORTED, { "layers.1.mlp.gate_proj.weight", "[64, 32] F16" } },
        { { .extra = "layers.5.self_attn.v_proj.weight" }, -E_FORMAT, { "layers.5.self_attn.v_proj.weight", "not a part" } },
        { { .extra = "layers.6.layer_scalar" }, -E_FORMAT, { "layers.6.layer_scalar", "not a part" } },
        { { .cut_bytes = 2 }, -E_FORMAT, { "cut short", "model.safetensors" } },
        { { .cut_bytes = 2, .shards = 2 }, -E_FORMAT, { "cut short", "model-00002-of-00002.safetensors" } },
    };
    struct model_error err;

    (void)state;
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        const int rc = load(&wrong[i].o, &err);

        if (rc != wrong[i].code || !strstr(err.text, wrong[i].words[0]) || !strstr(err.text, wrong[i].words[1]))
            fail_msg("case %zu: %d \"%s\"", i, rc, rc ? err.text : "accepted");
    }
}

static void test_a_tensor_in_two_shards_is_refused(void **state)
{
    const struct synthetic_options o = { .prefix = "model." };
    struct safetensors index;
    struct model_files files;
    struct model_error err;

    (void)state;
    synthetic_checkpoint(&files, SMALL, &o);
    assert_int_equal(model_files_add(&files, "again.safetensors", files.file[1].fd, &err), 0);
    safetensors_init(&index);
    assert_int_equal(safetensors_load(&index, &files, &err), -E_FORMAT);
    assert_non_null(strstr(err.text, "stored twice"));
    safetensors_free(&index);
    model_files_close(&files);
}

/* ---- directories ---- */

static void write_file(const char *dir, const char *name, const char *text)
{
    char path[512];
    FILE *file;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    assert_non_null(file = fopen(path, "w"));
    fputs(text, file);
    fclose(file);
}

static void test_a_directory_is_opened_by_its_index(void **state)
{
    char dir[] = "/tmp/safetensors_test.XXXXXX", command[600];
    struct model_files files;
    struct model_error err;
    const uint8_t *bytes;
    uint64_t byte_count;
    int fd;

    (void)state;
    assert_non_null(mkdtemp(dir));
    assert_int_equal(model_files_open_dir(&files, "/nonexistent/model", &err), -E_NOT_FOUND);
    assert_non_null(strstr(err.text, "/nonexistent/model"));
    assert_int_equal(model_files_open_dir(&files, dir, &err), -E_NOT_FOUND);
    assert_non_null(strstr(err.text, "config.json"));
    write_file(dir, "config.json", "{}");
    assert_int_equal(model_files_open_dir(&files, dir, &err), -E_NOT_FOUND);
    assert_non_null(strstr(err.text, "neither model.safetensors nor"));
    write_file(dir, "model.safetensors.index.json", "{\"weight_map\":{\"a\":\"../config.json\"}}");
    assert_int_equal(model_files_open_dir(&files, dir, &err), -E_FORMAT);
    assert_non_null(strstr(err.text, "../config.json"));
    write_file(dir, "model.safetensors.index.json", "{\"weight_map\":{\"a\":7}}");
    assert_int_equal(model_files_open_dir(&files, dir, &err), -E_FORMAT);
    write_file(dir, "model.safetensors.index.json", "{}");
    assert_int_equal(model_files_open_dir(&files, dir, &err), -E_FORMAT);
    write_file(dir, "model.safetensors.index.json", "{\"weight_map\":{\"a\":\"one.safetensors\",\"b\":\"two.safetensors\",\"c\":\"one.safetensors\"}}");
    write_file(dir, "one.safetensors", "1");
    assert_int_equal(model_files_open_dir(&files, dir, &err), -E_NOT_FOUND);
    assert_non_null(strstr(err.text, "two.safetensors"));
    write_file(dir, "two.safetensors", "");
    write_file(dir, "chat_template.jinja", "hello");
    if (model_files_open_dir(&files, dir, &err) != 0) fail_msg("%s", err.text);
    assert_int_equal(files.count, 5);
    assert_int_equal(model_files_find(&files, "chat_template.jinja", &bytes, &byte_count), 0);
    assert_int_equal(byte_count, 5);
    assert_memory_equal(bytes, "hello", 5);
    assert_int_equal(model_files_find(&files, "two.safetensors", &bytes, &byte_count), 0);
    assert_int_equal(byte_count, 0);
    assert_int_equal(model_files_find(&files, "tokenizer.json", &bytes, &byte_count), -E_NOT_FOUND);
    assert_int_equal(model_files_add(&files, "config.json", files.file[0].fd, &err), -E_FORMAT);
    assert_int_equal(model_files_add(&files, "a/b", files.file[0].fd, &err), -E_FORMAT);
    fd = open(dir, O_RDONLY);
    assert_int_equal(model_files_add(&files, "directory", fd, &err), -E_IO);
    close(fd);
    model_files_close(&files);
    snprintf(command, sizeof(command), "rm -r %s", dir);
    assert_int_equal(system(command), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_good_header_is_indexed),
        cmocka_unit_test(test_hostile_headers_are_refused),
        cmocka_unit_test(test_lengths_that_lie_are_refused),
        cmocka_unit_test(test_every_layout_of_names_is_accepted),
        cmocka_unit_test(test_wrong_tensors_are_named),
        cmocka_unit_test(test_a_tensor_in_two_shards_is_refused),
        cmocka_unit_test(test_a_directory_is_opened_by_its_index),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
