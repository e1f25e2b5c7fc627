/* launcher/quantize_config.c - what each format's own library writes beside the tensors, so that it takes the files back.
 *
 * Field by field as torchao 0.18 (with transformers 5.17), compressed-tensors 0.20 and ModelOpt 0.47 write it; readers look for these. */
#include "launcher/quantize.h"
#include <string.h>

#define PRODUCER_NAME "sluice"
#define PRODUCER_VERSION "1"

/* torchao: the type of every parameter, as JSON inside strings. */
static const char torchao_tensor[] =
    "{\"_type\": \"Float8Tensor\", \"_data\": {\"block_size\": [1, %u], "
    "\"mm_config\": {\"_type\": \"Float8MMConfig\", \"_data\": {\"emulate\": false, \"use_fast_accum\": true, \"pad_inner_dim\": false}}, "
    "\"act_quant_kwargs\": {\"_type\": \"QuantizeTensorToFloat8Kwargs\", \"_data\": {\"float8_dtype\": {\"_type\": \"torch.dtype\", \"_data\": \"float8_e4m3fn\"}, "
    "\"granularity\": {\"_type\": \"PerRow\", \"_data\": {\"dim\": -1}}, \"mm_config\": null, \"hp_value_lb\": null, \"hp_value_ub\": null, "
    "\"kernel_preference\": {\"_type\": \"KernelPreference\", \"_data\": \"TORCH\"}}}, "
    "\"kernel_preference\": {\"_type\": \"KernelPreference\", \"_data\": \"TORCH\"}, \"dtype\": {\"_type\": \"torch.dtype\", \"_data\": \"bfloat16\"}}, "
    "\"_tensor_data_names\": [\"qdata\", \"scale\"]}";

static const char torchao_config[] =
    "{\"quant_method\": \"torchao\", \"modules_to_not_convert\": null, \"include_input_output_embeddings\": false, \"untie_embedding_weights\": false, "
    "\"quant_type\": {\"default\": {\"_type\": \"Float8DynamicActivationFloat8WeightConfig\", \"_version\": 2, \"_data\": {"
    "\"activation_dtype\": {\"_type\": \"torch.dtype\", \"_data\": \"float8_e4m3fn\"}, \"weight_dtype\": {\"_type\": \"torch.dtype\", \"_data\": \"float8_e4m3fn\"}, "
    "\"granularity\": [{\"_type\": \"PerRow\", \"_version\": 1, \"_data\": {\"dim\": -1}}, {\"_type\": \"PerRow\", \"_version\": 1, \"_data\": {\"dim\": -1}}], "
    "\"mm_config\": {\"_type\": \"Float8MMConfig\", \"_version\": 1, \"_data\": {\"emulate\": false, \"use_fast_accum\": true, \"pad_inner_dim\": false}}, "
    "\"kernel_preference\": {\"_type\": \"KernelPreference\", \"_data\": \"TORCH\"}, \"packing_format\": {\"_type\": \"Float8PackingFormat\", \"_data\": \"PLAIN\"}, "
    "\"activation_value_lb\": null, \"activation_value_ub\": null, \"set_inductor_config\": true}}}}";

static const char compressed_config[] =
    "{\"quant_method\": \"compressed-tensors\", \"format\": \"%s\", \"quantization_status\": \"compressed\", \"version\": \"0.20.0\", "
    "\"config_groups\": {\"group_0\": {\"targets\": [\"Linear\"], \"format\": \"%s\", \"output_activations\": null, \"input_activations\": %s, \"weights\": %s}}, "
    "\"ignore\": [\"lm_head\", \"re:.*vision.*\", \"re:.*audio.*\", \"re:.*multi_modal_projector.*\"], \"kv_cache_scheme\": null, \"global_compression_ratio\": null, "
    "\"sparsity_config\": {}, \"transform_config\": {}}";
static const char dynamic_weights[] =
    "{\"num_bits\": 8, \"type\": \"float\", \"symmetric\": true, \"strategy\": \"channel\", \"dynamic\": false, \"group_size\": null, \"observer\": \"memoryless_minmax\"}";
static const char dynamic_inputs[] = "{\"num_bits\": 8, \"type\": \"float\", \"symmetric\": true, \"strategy\": \"token\", \"dynamic\": true, \"group_size\": null}";
static const char fp4_weights[] =
    "{\"num_bits\": 4, \"type\": \"float\", \"symmetric\": true, \"strategy\": \"tensor_group\", \"dynamic\": false, \"group_size\": 16, "
    "\"scale_dtype\": \"torch.float8_e4m3fn\", \"observer\": \"memoryless_minmax\"}";

static const char modelopt_static[] =
    "{\"quant_method\": \"modelopt\", \"quant_algo\": \"FP8\", \"config_groups\": {\"group_0\": {\"targets\": [\"Linear\"], "
    "\"input_activations\": {\"dynamic\": false, \"num_bits\": 8, \"type\": \"float\"}, \"weights\": {\"dynamic\": false, \"num_bits\": 8, \"type\": \"float\"}}}}";
static const char modelopt_block[] = "{\"quant_method\": \"modelopt\", \"quant_algo\": \"fp8_pb_wo\"}";

static const char *const modelopt_ignored[] = { "lm_head", "*vision*", "*audio*", "*multi_modal_projector*" };

static json_t *formatted(const char *format, const char *a, const char *b, const char *c, const char *d)
{
    char text[4096];

    snprintf(text, sizeof(text), format, a, b, c, d);
    return json_loads(text, 0, NULL);
}

static json_t *ignored(void)
{
    json_t *list = json_array();

    for (size_t i = 0; i < sizeof(modelopt_ignored) / sizeof(modelopt_ignored[0]); i++) json_array_append_new(list, json_string(modelopt_ignored[i]));
    return list;
}

static json_t *producer(void) { return json_pack("{s:s, s:s}", "name", PRODUCER_NAME, "version", PRODUCER_VERSION); }

json_t *quantize_config(const struct quantize *q, json_t *config)
{
    json_t *own;

    switch (q->format) {
    case QUANTIZE_FP8_ROW: own = json_loads(torchao_config, 0, NULL); break;
    case QUANTIZE_FP8_DYNAMIC: own = formatted(compressed_config, "float-quantized", "float-quantized", dynamic_inputs, dynamic_weights); break;
    case QUANTIZE_NVFP4A16: own = formatted(compressed_config, "nvfp4-pack-quantized", "nvfp4-pack-quantized", "null", fp4_weights); break;
    default:
        own = json_loads(q->format == QUANTIZE_FP8_STATIC ? modelopt_static : modelopt_block, 0, NULL);
        json_object_set_new(own, "ignore", ignored());
        json_object_set_new(own, "producer", producer());
    }
    json_object_set_new(config, "quantization_config", own);
    return config;
}

json_t *quantize_hf_config(const struct quantize *q)
{
    if (q->format != QUANTIZE_FP8_STATIC && q->format != QUANTIZE_FP8_BLOCK128) return NULL;
    return json_pack("{s:o, s:{s:s, s:n, s:o}}", "producer", producer(), "quantization", "quant_algo", q->format == QUANTIZE_FP8_STATIC ? "FP8" : "fp8_pb_wo",
                     "kv_cache_quant_algo", "exclude_modules", ignored());
}

/* Is this tensor one of the matrices? */
static const struct stored_matrix *matrix_of(const struct quantize *q, const struct tensor *t)
{
    for (uint32_t layer = 0; layer < q->config.layer_count; layer++)
        for (uint32_t which = 0; which < MODEL_MATRICES; which++) {
            const struct stored_matrix *m = model_matrix(&q->weights, layer, which);

            if (m->data && m->data == t->data) return m;
        }
    return NULL;
}

json_t *quantize_metadata(const struct quantize *q)
{
    json_t *metadata = json_pack("{s:s}", "format", "pt"), *names = json_array();
    char text[2048], *list;

    for (uint32_t i = 0; i < q->index.count && q->format == QUANTIZE_FP8_ROW; i++) {
        const struct tensor *t = &q->index.tensor[i];
        const struct stored_matrix *m = matrix_of(q, t);

        if (m) snprintf(text, sizeof(text), torchao_tensor, m->k);
        json_object_set_new(metadata, t->name, json_string(m ? text : "{\"_type\": \"Tensor\"}"));
        json_array_append_new(names, json_string(t->name));
    }
    if (q->format == QUANTIZE_FP8_ROW && (list = json_dumps(names, 0)) != NULL) {
        json_object_set_new(metadata, "tensor_names", json_string(list));
        free(list);
    }
    json_decref(names);
    return metadata;
}
