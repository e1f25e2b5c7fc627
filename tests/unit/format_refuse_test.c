/* tests/unit/format_refuse_test.c - odd and broken quantized checkpoints: what must load all the same, and what must be refused by name.
 *
 * Each case edits a checkpoint of tests/golden/formats in memory: its header as JSON, its config, or single bytes. */
#include "model/format.h"
#include "model/weights.h"
#include "shm/error.h"
#include <fcntl.h>
#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <cmocka.h>

#define GOLDEN "tests/golden/formats/"
#define LAYER "model.language_model.layers.0."

struct checkpoint {
    json_t *header, *config, *hf;     /* hf may be NULL */
    uint8_t *data;
};

static json_t *read_json(const char *name, const char *file)
{
    char path[256];

    snprintf(path, sizeof(path), GOLDEN "%s/%s", name, file);
    return json_load_file(path, 0, NULL);
}

static void open_golden(struct checkpoint *c, const char *name)
{
    char path[256];
    uint64_t header_bytes;
    FILE *in;
    char *text;

    snprintf(path, sizeof(path), GOLDEN "%s/model.safetensors", name);
    if (!(in = fopen(path, "rb"))) fail_msg("cannot open %s: run the tests from the top of the repository", path);
    assert_int_equal(fread(&header_bytes, 8, 1, in), 1);
    assert_non_null(text = malloc(header_bytes));
    assert_int_equal(fread(text, 1, header_bytes, in), header_bytes);
    assert_non_null(c->header = json_loadb(text, header_bytes, 0, NULL));
    assert_non_null(c->data = malloc(1 << 20));
    assert_true(fread(c->data, 1, 1 << 20, in) > 0);
    fclose(in);
    free(text);
    assert_non_null(c->config = read_json(name, "config.json"));
    c->hf = read_json(name, "hf_quant_config.json");
}

static void close_golden(struct checkpoint *c)
{
    json_decref(c->header);
    json_decref(c->config);
    json_decref(c->hf);
    free(c->data);
}

static void add_bytes(struct model_files *files, const char *name, const void *a, uint64_t a_bytes, const void *b, uint64_t b_bytes)
{
    const int fd = memfd_create(name, MFD_CLOEXEC);
    struct model_error err;

    assert_true(fd >= 0 && write(fd, a, a_bytes) == (ssize_t)a_bytes && write(fd, b, b_bytes) == (ssize_t)b_bytes);
    if (model_files_add(files, name, fd, &err) != 0) fail_msg("%s", err.text);
    close(fd);
}

static void add_json(struct model_files *files, const char *name, const json_t *json)
{
    char *text = json_dumps(json, 0);

    add_bytes(files, name, text, strlen(text), "", 0);
    free(text);
}

static json_int_t begin_of(const json_t *e) { return json_integer_value(json_array_get(json_object_get(e, "data_offsets"), 0)); }

static int compare_begin(const void *a, const void *b)
{
    const json_int_t x = begin_of(*(json_t *const *)a), y = begin_of(*(json_t *const *)b);

    return x < y ? -1 : x > y;
}

/* The tensors of a header as one file, moved together where the edits left holes. */
static void add_tensors(struct model_files *files, const char *name, const json_t *header, const uint8_t *data)
{
    json_t *packed = json_deep_copy(header), *list[512], *value;
    uint64_t length, padded, at = 0;
    uint8_t *head, *moved = malloc(1 << 20);
    uint32_t count = 0;
    const char *key;
    char *text;

    json_object_foreach(packed, key, value)
        if (strcmp(key, "__metadata__") != 0) list[count++] = value;
    qsort(list, count, sizeof(list[0]), compare_begin);
    for (uint32_t i = 0; i < count; i++) {
        json_t *offsets = json_object_get(list[i], "data_offsets");
        const uint64_t from = (uint64_t)begin_of(list[i]), bytes = (uint64_t)json_integer_value(json_array_get(offsets, 1)) - from;

        memcpy(moved + at, data + from, bytes);
        json_array_set_new(offsets, 0, json_integer((json_int_t)at));
        json_array_set_new(offsets, 1, json_integer((json_int_t)(at += bytes)));
    }
    text = json_dumps(packed, JSON_COMPACT);
    length = strlen(text);
    padded = (length + 7) / 8 * 8;
    head = malloc(8 + padded);
    memset(head, ' ', 8 + padded);
    memcpy(head, &padded, 8);
    memcpy(head + 8, text, length);
    add_bytes(files, name, head, 8 + padded, moved, at);
    free(head);
    free(text);
    free(moved);
    json_decref(packed);
}

static int load_files(struct model_files *files, struct model_weights *weights, struct model_error *err)
{
    static struct model_config config;
    struct generation_config generation;

    err->text[0] = '\0';
    return model_load(&config, &generation, weights, files, err);
}

/* Loads the checkpoint as it is now. */
static int load(const struct checkpoint *c, struct model_weights *weights, struct model_files *files, struct model_error *err)
{
    model_files_init(files);
    add_json(files, "config.json", c->config);
    if (c->hf) add_json(files, "hf_quant_config.json", c->hf);
    add_tensors(files, "model.safetensors", c->header, c->data);
    return load_files(files, weights, err);
}

/* The value of a sample of every matrix, to compare two loads. */
static double sample(const struct model_weights *w, uint32_t layers)
{
    double sum = 0;

    for (uint32_t layer = 0; layer < layers; layer++)
        for (uint32_t which = 0; which < MODEL_MATRICES; which++) {
            const struct stored_matrix *m = model_matrix(w, layer, which);

            for (uint64_t i = 0; m->data && i < (uint64_t)m->rows * m->k; i += 7) sum += (double)stored_value(m, i / m->k, i % m->k) * (double)(1 + i % 13);
        }
    return sum;
}

/* ---- edits ---- */

static json_t *entry(struct checkpoint *c, const char *name)
{
    json_t *e = json_object_get(c->header, name);

    if (!e) fail_msg("the golden has no tensor %s", name);
    return e;
}

static void rename_tensor(struct checkpoint *c, const char *from, const char *to)
{
    json_object_set(c->header, to, entry(c, from));
    json_object_del(c->header, from);
}

/* Gives every tensor that ends in `from` the end `to`. */
static void rename_all(struct checkpoint *c, const char *from, const char *to)
{
    const char *name;
    json_t *value, *renamed = json_object();

    json_object_foreach(c->header, name, value) {
        char other[256];
        const size_t length = strlen(name), end = strlen(from);

        if (length > end && strcmp(name + length - end, from) == 0) snprintf(other, sizeof(other), "%.*s%s", (int)(length - end), name, to);
        else snprintf(other, sizeof(other), "%s", name);
        json_object_set(renamed, other, value);
    }
    json_decref(c->header);
    c->header = renamed;
}

static void set_shape(struct checkpoint *c, const char *name, const char *shape) { json_object_set_new(entry(c, name), "shape", json_loads(shape, 0, NULL)); }
static void set_dtype(struct checkpoint *c, const char *name, const char *dtype) { json_object_set_new(entry(c, name), "dtype", json_string(dtype)); }

static uint8_t *place(struct checkpoint *c, const char *name)
{
    return c->data + json_integer_value(json_array_get(json_object_get(entry(c, name), "data_offsets"), 0));
}

static void put_float(struct checkpoint *c, const char *name, float value) { memcpy(place(c, name), &value, 4); }

/* ---- what loads ---- */

static json_t *quantization(struct checkpoint *c) { return json_object_get(c->config, "quantization_config"); }

static void set_modules(struct checkpoint *c, const char *json) { json_object_set_new(quantization(c), "modules_to_not_convert", json_loads(json, JSON_DECODE_ANY, NULL)); }
static void odd_null(struct checkpoint *c) { set_modules(c, "null"); }
static void odd_list(struct checkpoint *c) { set_modules(c, "[]"); }
static void odd_text(struct checkpoint *c) { set_modules(c, "\"lm_head\""); }
static void odd_empty(struct checkpoint *c) { set_modules(c, "\"\""); }
static void odd_old_names(struct checkpoint *c)
{
    rename_all(c, "._weight_qdata", ".weight:qdata");
    rename_all(c, "._weight_scale", ".weight:scale");
}
static void odd_upper(struct checkpoint *c) { json_object_set_new(quantization(c), "quant_algo", json_string("FP8_PB_WO")); }
static void odd_hf_alone(struct checkpoint *c) { json_object_del(c->config, "quantization_config"); }
static void odd_inverse_name(struct checkpoint *c) { rename_all(c, ".weight_scale", ".weight_scale_inv"); }
static void odd_flat_blocks(struct checkpoint *c) { set_shape(c, LAYER "mlp.gate_proj.weight_scale", "[2, 1]"); }
static void odd_one_scale(struct checkpoint *c) { set_shape(c, LAYER "self_attn.q_proj.weight_scale", "[1]"); }
static void odd_row_scale(struct checkpoint *c) { set_shape(c, "model.layers.0.mlp.up_proj.weight_scale", "[96]"); }
static void odd_ignore(struct checkpoint *c) { json_object_set_new(quantization(c), "ignore", json_loads("[\"re:.*mlp.*\", \"model.layers.0\"]", 0, NULL)); }
static void odd_in_text(struct checkpoint *c)
{
    json_object_set(json_object_get(c->config, "text_config"), "quantization_config", quantization(c));
    json_object_del(c->config, "quantization_config");
}
static void odd_vision(struct checkpoint *c)
{
    json_object_set_new(c->header, "model.embed_vision.patch_dense._weight_qdata", json_loads("{\"dtype\":\"F8_E4M3\",\"shape\":[0,16],\"data_offsets\":[0,0]}", 0, NULL));
}

/* The layout of a model with a vision tower: sizes in text_config, another prefix, layers of other parts quantized as well. */
static void odd_with_a_tower(struct checkpoint *c)
{
    json_t *renamed = json_object(), *whole = json_pack("{s:s, s:O, s:O}", "model_type", "gemma3", "text_config", c->config, "quantization_config", quantization(c)), *value;
    const char *name;
    char other[256];

    json_object_foreach(c->header, name, value) {
        snprintf(other, sizeof(other), "%s%s", strncmp(name, "model.", 6) == 0 ? "language_model." : "", name);
        json_object_set(renamed, other, value);
    }
    json_object_set_new(renamed, "vision_tower.vision_model.encoder.layers.0.mlp.fc1.weight", json_loads("{\"dtype\":\"F8_E4M3\",\"shape\":[0,16],\"data_offsets\":[0,0]}", 0, NULL));
    json_object_set_new(whole, "eos_token_id", json_integer(1));
    json_object_del(c->config, "quantization_config");
    json_decref(c->header);
    json_decref(c->config);
    c->header = renamed;
    c->config = whole;
}

static void test_odd_checkpoints_load_the_same(void **state)
{
    static const struct { const char *golden; void (*edit)(struct checkpoint *c); } odd[] = {
        { "torchao_row", odd_null }, { "torchao_row", odd_list }, { "torchao_row", odd_text }, { "torchao_row", odd_empty }, { "torchao_row", odd_old_names },
        { "torchao_row", odd_in_text }, { "torchao_row", odd_vision }, { "modelopt_block128", odd_upper }, { "modelopt_block128", odd_hf_alone },
        { "modelopt_block128", odd_inverse_name }, { "modelopt_block128", odd_flat_blocks }, { "modelopt_static", odd_one_scale }, { "modelopt_static", odd_hf_alone },
        { "compressed_dynamic", odd_row_scale }, { "compressed_dynamic", odd_ignore }, { "compressed_nvfp4a16", odd_ignore }, { "compressed_dynamic", odd_with_a_tower }, { "modelopt_nvfp4_mlp", odd_hf_alone },
    };

    (void)state;
    for (size_t i = 0; i < sizeof(odd) / sizeof(odd[0]); i++) {
        struct model_weights weights;
        struct model_files files;
        struct model_error err;
        struct checkpoint c;
        double before;
        uint32_t rule;

        open_golden(&c, odd[i].golden);
        assert_int_equal(load(&c, &weights, &files, &err), 0);
        before = sample(&weights, 2);
        rule = weights.layer[0].gate.activation;
        model_weights_free(&weights);
        model_files_close(&files);
        odd[i].edit(&c);
        if (load(&c, &weights, &files, &err) != 0) fail_msg("case %zu: %s", i, err.text);
        assert_true(sample(&weights, 2) == before && weights.layer[0].gate.activation == rule);
        model_weights_free(&weights);
        model_files_close(&files);
        close_golden(&c);
    }
}

/* Codes in one shard, their scales in the other. */
static void test_codes_and_scales_may_lie_in_different_shards(void **state)
{
    struct model_weights weights;
    struct model_files files;
    struct model_error err;
    struct checkpoint c;
    json_t *codes = json_object(), *scales = json_object(), *value;
    const char *name;
    double before;

    (void)state;
    open_golden(&c, "torchao_row");
    assert_int_equal(load(&c, &weights, &files, &err), 0);
    before = sample(&weights, 2);
    model_weights_free(&weights);
    model_files_close(&files);
    json_object_foreach(c.header, name, value) json_object_set(strstr(name, "_weight_scale") ? scales : codes, name, value);
    model_files_init(&files);
    add_json(&files, "config.json", c.config);
    add_tensors(&files, "model-00001-of-00002.safetensors", codes, c.data);
    add_tensors(&files, "model-00002-of-00002.safetensors", scales, c.data);
    if (load_files(&files, &weights, &err) != 0) fail_msg("%s", err.text);
    assert_true(sample(&weights, 2) == before);
    model_weights_free(&weights);
    model_files_close(&files);
    json_decref(codes);
    json_decref(scales);
    close_golden(&c);
}

/* ModelOpt's and compressed-tensors' FP4 are the same numbers when the one's factor is the inverse of the other's. */
static void test_the_two_kinds_of_fp4_meet(void **state)
{
    struct model_weights weights;
    struct model_files files;
    struct model_error err;
    struct checkpoint c;
    double before;

    (void)state;
    open_golden(&c, "compressed_nvfp4a16");
    put_float(&c, LAYER "mlp.up_proj.weight_global_scale", 1024.0f);
    assert_int_equal(load(&c, &weights, &files, &err), 0);
    before = sample(&weights, 2);
    model_weights_free(&weights);
    model_files_close(&files);
    rename_tensor(&c, LAYER "mlp.up_proj.weight_packed", LAYER "mlp.up_proj.weight");
    rename_tensor(&c, LAYER "mlp.up_proj.weight_global_scale", LAYER "mlp.up_proj.weight_scale_2");
    put_float(&c, LAYER "mlp.up_proj.weight_scale_2", 1.0f / 1024);
    if (load(&c, &weights, &files, &err) != 0) fail_msg("%s", err.text);
    assert_true(weights.layer[0].up.global_divides == 0 && weights.layer[0].gate.global_divides == 1);
    assert_true(sample(&weights, 2) == before);
    model_weights_free(&weights);
    model_files_close(&files);
    close_golden(&c);
}

static void test_what_a_config_says_of_the_cache(void **state)
{
    static const struct { const char *scheme; bool fp8; } cases[] = {
        { "{\"num_bits\":8,\"type\":\"float\",\"dynamic\":false}", true }, { "{\"num_bits\":4,\"type\":\"float\"}", false }, { "{\"num_bits\":8,\"type\":\"int\"}", false }, { "null", false },
    };
    char json[512];

    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct quantization q;
        struct model_error err;
        const int n = snprintf(json, sizeof json, "{\"quantization_config\":{\"quant_method\":\"modelopt\",\"quant_algo\":\"FP8\",\"kv_cache_scheme\":%s}}", cases[i].scheme);

        assert_int_equal(quantization_parse(&q, (const uint8_t *)json, (uint64_t)n, NULL, 0, &err), 0);
        assert_int_equal(q.kv_cache_fp8, cases[i].fp8);
    }
}

static void test_cache_scales_are_known_and_not_applied(void **state)
{
    struct quantization q;
    struct model_weights weights;
    struct model_files files;
    struct model_error err;
    struct checkpoint c;

    (void)state;
    open_golden(&c, "modelopt_block128");
    put_float(&c, LAYER "self_attn.k_proj.k_scale", 0.003f);
    assert_non_null(json_object_get(c.header, "model.language_model.layers.1.self_attn.v_proj.v_scale"));   /* a layer without v_proj */
    assert_int_equal(load(&c, &weights, &files, &err), 0);
    assert_int_equal(quantization_load(&q, &files, &err), 0);
    assert_true(q.kv_cache_fp8 && q.method == QUANTIZATION_MODELOPT);
    model_weights_free(&weights);
    model_files_close(&files);
    close_golden(&c);
}

/* A recipe of several algorithms: the layer's own tensors say which it is. */
static void test_layers_of_one_checkpoint_may_differ(void **state)
{
    struct model_weights weights;
    struct model_files files;
    struct model_error err;
    struct checkpoint c;

    (void)state;
    for (int i = 0; i < 2; i++) {
        open_golden(&c, "modelopt_static");
        if (i == 0) json_object_set_new(quantization(&c), "quant_algo", json_string("MIXED_PRECISION"));
        else {
            json_object_del(c.config, "quantization_config");
            json_decref(c.hf);
            c.hf = NULL;
        }
        json_object_del(c.header, LAYER "mlp.up_proj.input_scale");
        if (load(&c, &weights, &files, &err) != 0) fail_msg("%s", err.text);
        assert_true(weights.layer[0].up.activation == STORED_AS_IS && weights.layer[0].gate.activation == STORED_STATIC && weights.rounds_activations);
        model_weights_free(&weights);
        model_files_close(&files);
        close_golden(&c);
    }
}

/* ---- what is refused ---- */

static void bad_code(struct checkpoint *c) { place(c, LAYER "mlp.up_proj._weight_qdata")[130] = 0xff; }
static void bad_nan(struct checkpoint *c) { put_float(c, LAYER "mlp.up_proj._weight_scale", NAN); }
static void bad_zero(struct checkpoint *c) { put_float(c, LAYER "mlp.up_proj._weight_scale", 0); }
static void bad_negative(struct checkpoint *c) { put_float(c, LAYER "self_attn.q_proj.weight_scale", -1e-3f); }
static void bad_infinite(struct checkpoint *c) { put_float(c, LAYER "self_attn.q_proj.input_scale", INFINITY); }
static void bad_no_scale(struct checkpoint *c) { json_object_del(c->header, LAYER "mlp.down_proj._weight_scale"); }
static void bad_no_input(struct checkpoint *c) { json_object_del(c->header, LAYER "mlp.down_proj.input_scale"); }
static void bad_no_global(struct checkpoint *c) { json_object_del(c->header, LAYER "mlp.down_proj.weight_global_scale"); }
static void bad_no_factor(struct checkpoint *c) { json_object_del(c->header, LAYER "mlp.down_proj.weight_scale_2"); }
static void bad_no_groups(struct checkpoint *c) { json_object_del(c->header, LAYER "mlp.down_proj.weight_scale"); }
static void bad_dtype(struct checkpoint *c) { set_dtype(c, LAYER "mlp.down_proj.weight", "F8_E5M2"); }
static void bad_int8(struct checkpoint *c) { set_dtype(c, LAYER "mlp.down_proj.weight", "I8"); }
static void bad_packed_shape(struct checkpoint *c) { set_shape(c, LAYER "mlp.down_proj.weight_packed", "[128, 24]"); }
static void bad_scale_shape(struct checkpoint *c) { set_shape(c, LAYER "mlp.down_proj._weight_scale", "[32, 2]"); }
static void bad_group(struct checkpoint *c) { place(c, LAYER "mlp.gate_proj.weight_scale")[9] = 0x7f; }
static void bad_group_sign(struct checkpoint *c) { place(c, LAYER "mlp.gate_proj.weight_scale")[9] = 0x81; }
static void bad_global(struct checkpoint *c) { put_float(c, LAYER "mlp.gate_proj.weight_global_scale", 0); }
static void bad_extra(struct checkpoint *c) { rename_tensor(c, LAYER "self_attn.k_proj.k_scale", LAYER "self_attn.k_proj.pre_quant_scale"); }
static void bad_method(struct checkpoint *c) { json_object_set_new(quantization(c), "quant_method", json_string("gptq")); }
static void bad_algo(struct checkpoint *c) { json_object_set_new(quantization(c), "quant_algo", json_string("W4A8_AWQ")); }
static void bad_type(struct checkpoint *c) { json_object_set_new(json_object_get(json_object_get(quantization(c), "quant_type"), "default"), "_type", json_string("Int8WeightOnlyConfig")); }
static void bad_grain(struct checkpoint *c)
{
    json_t *data = json_object_get(json_object_get(json_object_get(quantization(c), "quant_type"), "default"), "_data");

    json_object_set_new(data, "granularity", json_loads("[{\"_type\":\"PerTensor\"},{\"_type\":\"PerTensor\"}]", 0, NULL));
}
static json_t *group0(struct checkpoint *c) { return json_object_get(json_object_get(quantization(c), "config_groups"), "group_0"); }
static void bad_bits(struct checkpoint *c) { json_object_set_new(json_object_get(group0(c), "weights"), "type", json_string("int")); }
static void bad_strategy(struct checkpoint *c) { json_object_set_new(json_object_get(group0(c), "input_activations"), "strategy", json_string("group")); }
static void bad_object(struct checkpoint *c) { json_object_set_new(c->config, "quantization_config", json_string("fp8")); }

static void test_broken_checkpoints_are_refused_by_name(void **state)
{
    static const struct { const char *golden; void (*edit)(struct checkpoint *c); int code; const char *words[2]; } bad[] = {
        { "torchao_row", bad_code, -E_FORMAT, { "layers.0.mlp.up_proj", "row 2, column 2" } },
        { "torchao_row", bad_nan, -E_FORMAT, { "mlp.up_proj._weight_scale", "element 0" } },
        { "torchao_row", bad_zero, -E_FORMAT, { "mlp.up_proj._weight_scale: [96, 1] F32", "positive" } },
        { "modelopt_static", bad_negative, -E_FORMAT, { "q_proj.weight_scale: [] F32", "positive" } },
        { "modelopt_static", bad_infinite, -E_FORMAT, { "q_proj.input_scale", "finite" } },
        { "torchao_row", bad_no_scale, -E_NOT_FOUND, { "down_proj._weight_qdata: [64, 96] F8_E4M3", "without " LAYER "mlp.down_proj._weight_scale" } },
        { "modelopt_static", bad_no_input, -E_NOT_FOUND, { "down_proj.weight", "without " LAYER "mlp.down_proj.input_scale" } },
        { "compressed_nvfp4a16", bad_no_global, -E_NOT_FOUND, { "down_proj.weight_packed: [64, 48] U8", "weight_global_scale" } },
        { "modelopt_nvfp4_mlp", bad_no_factor, -E_NOT_FOUND, { "down_proj.weight: [64, 48] U8", "weight_scale_2" } },
        { "modelopt_nvfp4_mlp", bad_no_groups, -E_NOT_FOUND, { "down_proj.weight: [64, 48] U8", "weight_scale" } },
        { "modelopt_static", bad_dtype, -E_UNSUPPORTED, { "down_proj.weight: [64, 96] F8_E5M2", "stored as" } },
        { "modelopt_static", bad_int8, -E_UNSUPPORTED, { "down_proj.weight: [64, 96] I8", "stored as" } },
        { "compressed_nvfp4a16", bad_packed_shape, -E_FORMAT, { "weight_packed: [128, 24] U8", "[64, 48] U8" } },
        { "torchao_row", bad_scale_shape, -E_FORMAT, { "_weight_scale: [32, 2] F32", "[64, 1]" } },
        { "compressed_nvfp4a16", bad_group, -E_FORMAT, { "layers.0.mlp.gate_proj", "row 2, group 1" } },
        { "compressed_nvfp4a16", bad_group_sign, -E_FORMAT, { "layers.0.mlp.gate_proj", "negative" } },
        { "compressed_nvfp4a16", bad_global, -E_FORMAT, { "gate_proj.weight_global_scale", "positive" } },
        { "modelopt_block128", bad_extra, -E_FORMAT, { "pre_quant_scale", "not a part" } },
        { "torchao_row", bad_method, -E_UNSUPPORTED, { "quant_method = \"gptq\"", "torchao" } },
        { "modelopt_static", bad_algo, -E_UNSUPPORTED, { "quant_algo = \"W4A8_AWQ\"", "FP8" } },
        { "torchao_row", bad_type, -E_UNSUPPORTED, { "Int8WeightOnlyConfig", "reads" } },
        { "torchao_row", bad_grain, -E_UNSUPPORTED, { "PerTensor", "PerRow" } },
        { "compressed_dynamic", bad_bits, -E_UNSUPPORTED, { "weights", "floats" } },
        { "compressed_dynamic", bad_strategy, -E_UNSUPPORTED, { "input_activations", "strategy" } },
        { "compressed_dynamic", bad_object, -E_FORMAT, { "quantization_config", "object" } },
    };

    (void)state;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        struct model_weights weights;
        struct model_files files;
        struct model_error err;
        struct checkpoint c;
        int rc;

        open_golden(&c, bad[i].golden);
        bad[i].edit(&c);
        rc = load(&c, &weights, &files, &err);
        if (rc != bad[i].code || !strstr(err.text, bad[i].words[0]) || !strstr(err.text, bad[i].words[1]))
            fail_msg("case %zu: %d \"%s\"", i, rc, rc ? err.text : "accepted");
        model_files_close(&files);
        close_golden(&c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_odd_checkpoints_load_the_same),
        cmocka_unit_test(test_codes_and_scales_may_lie_in_different_shards),
        cmocka_unit_test(test_the_two_kinds_of_fp4_meet),
        cmocka_unit_test(test_what_a_config_says_of_the_cache),
        cmocka_unit_test(test_cache_scales_are_known_and_not_applied),
        cmocka_unit_test(test_layers_of_one_checkpoint_may_differ),
        cmocka_unit_test(test_broken_checkpoints_are_refused_by_name),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
