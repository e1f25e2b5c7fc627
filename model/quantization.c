/* model/quantization.c - see quantization.h. One function per writer; each keeps only what the tensors cannot tell. */
#include "model/quantization.h"
#include "kernels/stored.h"
#include "shm/error.h"
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define QUANTIZATION_JSON_BYTES_MAX (16u << 20)

/* "quantization_config: FIELD = VALUE: why" */
static int refuse(struct model_error *err, int code, const char *field, const json_t *value, const char *why)
{
    char *text = value ? json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;

    model_error_set(err, code, "quantization_config: %s%s%.160s: %s", field, text ? " = " : "", text ? text : "", why);
    free(text);
    return code;
}

const char *quantization_method_name(enum quantization_method method)
{
    static const char *const names[] = { "none", "torchao", "compressed-tensors", "ModelOpt" };

    return names[method];
}

static const char *text_of(const json_t *object, const char *field)
{
    const char *text = json_string_value(json_object_get(object, field));

    return text ? text : "";
}

static void set_algorithm(struct quantization *q, const char *text) { snprintf(q->algorithm, sizeof(q->algorithm), "%s", text); }

/* ---- torchao ---- */

static int parse_torchao(struct quantization *q, const json_t *config, struct model_error *err)
{
    const json_t *entry = json_object_get(json_object_get(config, "quant_type"), "default"), *granularity, *item;
    const char *type = text_of(entry, "_type");
    size_t i;

    if (!json_is_object(entry)) return refuse(err, -E_FORMAT, "quant_type", json_object_get(config, "quant_type"), "must be an object with \"default\"");
    set_algorithm(q, type);
    if (strcmp(type, "Float8WeightOnlyConfig") == 0) return 0;
    if (strcmp(type, "Float8DynamicActivationFloat8WeightConfig") != 0)
        return refuse(err, -E_UNSUPPORTED, "quant_type.default._type", json_object_get(entry, "_type"),
                      "this server reads Float8DynamicActivationFloat8WeightConfig and Float8WeightOnlyConfig");
    granularity = json_object_get(json_object_get(entry, "_data"), "granularity");
    if (!json_is_array(granularity) || json_array_size(granularity) == 0) return refuse(err, -E_FORMAT, "granularity", granularity, "must be a list");
    json_array_foreach(granularity, i, item)
        if (strcmp(text_of(item, "_type"), "PerRow") != 0)
            return refuse(err, -E_UNSUPPORTED, "granularity", item, "only PerRow: one scale for all rows of a batch would let requests change each other");
    q->fp8_activation = STORED_TOKEN;
    return 0;
}

/* "kv_cache_scheme": an object for 8-bit floats; other caches than FP8 are not made, whatever it asks for. */
static bool scheme_is_fp8(const json_t *scheme)
{
    const json_t *bits = json_object_get(scheme, "num_bits"), *type = json_object_get(scheme, "type");

    return json_is_object(scheme) && (!bits || json_integer_value(bits) == 8) && (!type || strcmp(text_of(scheme, "type"), "float") == 0);
}

/* ---- compressed-tensors ---- */

/* The activation rule of one group of FP8 weights. */
static int compressed_activation(const json_t *input, uint32_t *rule, struct model_error *err)
{
    const char *strategy = text_of(input, "strategy");
    const json_t *bits = json_object_get(input, "num_bits");

    *rule = STORED_AS_IS;
    if (!input || json_is_null(input)) return 0;
    if (json_integer_value(bits) != 8 || strcmp(text_of(input, "type"), "float") != 0)
        return refuse(err, -E_UNSUPPORTED, "input_activations", input, "only 8-bit floats");
    if (json_is_true(json_object_get(input, "dynamic")) && strcmp(strategy, "token") == 0) *rule = STORED_TOKEN;
    else if (json_is_false(json_object_get(input, "dynamic")) && strcmp(strategy, "tensor") == 0) *rule = STORED_STATIC;
    else return refuse(err, -E_UNSUPPORTED, "input_activations", input, "only dynamic with strategy token, or static with strategy tensor");
    return 0;
}

static int parse_compressed(struct quantization *q, const json_t *config, struct model_error *err)
{
    const json_t *groups = json_object_get(config, "config_groups"), *kv = json_object_get(config, "kv_cache_scheme");
    const char *name;
    json_t *group;
    bool seen = false;

    set_algorithm(q, text_of(config, "format"));
    q->kv_cache_fp8 = scheme_is_fp8(kv);
    if (!json_is_object(groups) || json_object_size(groups) == 0) return refuse(err, -E_FORMAT, "config_groups", groups, "must be an object with groups");
    json_object_foreach((json_t *)groups, name, group) {
        const json_t *weights = json_object_get(group, "weights"), *input = json_object_get(group, "input_activations");
        const json_int_t bits = json_integer_value(json_object_get(weights, "num_bits"));
        uint32_t rule;
        int rc;

        if (!json_is_object(weights)) return refuse(err, -E_FORMAT, "config_groups.weights", weights, "must be an object");
        if (strcmp(text_of(weights, "type"), "float") != 0 || (bits != 8 && bits != 4))
            return refuse(err, -E_UNSUPPORTED, "config_groups.weights", weights, "only floats of 8 or 4 bits");
        if (bits == 4) {
            q->fp4_activations |= json_is_object(input);
            continue;
        }
        if ((rc = compressed_activation(input, &rule, err)) != 0) return rc;
        if (seen && rule != q->fp8_activation) return refuse(err, -E_UNSUPPORTED, "config_groups", NULL, "its groups of 8-bit weights round activations in different ways");
        q->fp8_activation = rule;
        seen = true;
    }
    return 0;
}

/* ---- ModelOpt ---- */

static int parse_modelopt(struct quantization *q, const json_t *config, const json_t *hf, struct model_error *err)
{
    static const struct { const char *name; uint32_t activation; bool by_layer, fp4; } known[] = {
        { "FP8", STORED_STATIC, false, false }, { "FP8_PB_WO", STORED_AS_IS, false, false }, { "FP8_PER_CHANNEL_PER_TOKEN", STORED_TOKEN, false, false },
        { "NVFP4", STORED_AS_IS, true, true }, { "W4A16_NVFP4", STORED_AS_IS, true, false }, { "MIXED_PRECISION", STORED_AS_IS, true, true },
    };
    const json_t *inner = json_object_get(hf, "quantization"), *algo = json_object_get(config, "quant_algo"), *kv = json_object_get(config, "kv_cache_scheme");

    if (!json_is_string(algo)) algo = json_object_get(json_object_get(config, "quantization"), "quant_algo");
    if (!json_is_string(algo)) algo = json_object_get(inner, "quant_algo");
    if (!json_is_string(algo)) return refuse(err, -E_FORMAT, "quant_algo", algo, "missing");
    set_algorithm(q, json_string_value(algo));
    q->kv_cache_fp8 = scheme_is_fp8(kv) || strcasecmp(text_of(inner, "kv_cache_quant_algo"), "FP8") == 0;
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (strcasecmp(known[i].name, json_string_value(algo)) != 0) continue;
        q->fp8_activation = known[i].activation;
        q->fp8_by_layer = known[i].by_layer;
        q->fp4_activations = known[i].fp4;
        return 0;
    }
    return refuse(err, -E_UNSUPPORTED, "quant_algo", algo, "this server reads FP8, FP8_PB_WO, FP8_PER_CHANNEL_PER_TOKEN, NVFP4, W4A16_NVFP4 and MIXED_PRECISION of them");
}

/* ---- all ---- */

static int read_json(json_t **root, const char *file, const uint8_t *json, uint64_t byte_count, struct model_error *err)
{
    json_error_t problem;

    *root = NULL;
    if (!json) return 0;
    if (byte_count == 0 || byte_count > QUANTIZATION_JSON_BYTES_MAX) return model_error_set(err, -E_FORMAT, "%s: %llu bytes", file, (unsigned long long)byte_count);
    if (!(*root = json_loadb((const char *)json, (size_t)byte_count, JSON_REJECT_DUPLICATES, &problem)))
        return model_error_set(err, -E_FORMAT, "%s: line %d: %s", file, problem.line, problem.text);
    return 0;
}

static int parse_roots(struct quantization *q, const json_t *root, const json_t *hf, struct model_error *err)
{
    const json_t *config = json_object_get(root, "quantization_config");
    const char *method;

    if (!config || json_is_null(config)) config = json_object_get(json_object_get(root, "text_config"), "quantization_config");
    if (json_is_null(config)) config = NULL;
    q->fp8_by_layer = !config && !json_is_object(json_object_get(hf, "quantization"));     /* nothing is said: the tensors say it */
    if (q->fp8_by_layer) return 0;
    if (config && !json_is_object(config)) return refuse(err, -E_FORMAT, "", config, "must be an object");
    method = config ? text_of(config, "quant_method") : "modelopt";
    if (strcasecmp(method, "torchao") == 0) q->method = QUANTIZATION_TORCHAO;
    else if (strcasecmp(method, "compressed-tensors") == 0) q->method = QUANTIZATION_COMPRESSED_TENSORS;
    else if (strncasecmp(method, "modelopt", 8) == 0) q->method = QUANTIZATION_MODELOPT;     /* also modelopt_fp4 */
    else return refuse(err, -E_UNSUPPORTED, "quant_method", json_object_get(config, "quant_method"), "this server reads torchao, compressed-tensors and modelopt");
    return q->method == QUANTIZATION_TORCHAO ? parse_torchao(q, config, err) : q->method == QUANTIZATION_MODELOPT ? parse_modelopt(q, config, hf, err)
                                                                                                               : parse_compressed(q, config, err);
}

int quantization_parse(struct quantization *quantization, const uint8_t *config_json, uint64_t config_bytes,
                       const uint8_t *hf_json, uint64_t hf_bytes, struct model_error *err)
{
    json_t *root = NULL, *hf = NULL;
    int rc;

    memset(quantization, 0, sizeof(*quantization));
    if ((rc = read_json(&root, "config.json", config_json, config_bytes, err)) == 0 && (rc = read_json(&hf, QUANTIZATION_FILE, hf_json, hf_bytes, err)) == 0)
        rc = parse_roots(quantization, root, hf, err);
    json_decref(root);
    json_decref(hf);
    return rc;
}

int quantization_load(struct quantization *quantization, const struct model_files *files, struct model_error *err)
{
    const uint8_t *config = NULL, *hf = NULL;
    uint64_t config_bytes = 0, hf_bytes = 0;

    model_files_find(files, "config.json", &config, &config_bytes);
    model_files_find(files, QUANTIZATION_FILE, &hf, &hf_bytes);
    return quantization_parse(quantization, config, config_bytes, hf, hf_bytes, err);
}
