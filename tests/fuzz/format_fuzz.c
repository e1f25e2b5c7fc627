/* tests/fuzz/format_fuzz.c - a whole small quantized checkpoint whose header, config and bytes are mutated: no crash, no read outside
 * the file, no allocation beyond what the file's own size justifies.
 *
 * The input is: one byte that picks a format, one that says which part it replaces, then a list of (u16 place, u8 value) to
 * write into that part. So the fuzzer starts from checkpoints that load, and a few bytes reach deep. */
#include "model/format.h"
#include "model/weights.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define TEXT_MAX 4096u
#define DATA_BYTES (96u << 10)

static const char config_head[] =
    "{\"model_type\":\"gemma4_unified_text\",\"vocab_size\":16,\"hidden_size\":32,\"intermediate_size\":32,\"num_hidden_layers\":1,\"eos_token_id\":1,"
    "\"num_attention_heads\":1,\"num_key_value_heads\":1,\"head_dim\":32,\"global_head_dim\":32,\"num_global_key_value_heads\":1,\"attention_k_eq_v\":true,"
    "\"quantization_config\":";

static const char *const quantizations[] = {
    "{\"quant_method\":\"torchao\",\"quant_type\":{\"default\":{\"_type\":\"Float8DynamicActivationFloat8WeightConfig\",\"_data\":{\"granularity\":[{\"_type\":\"PerRow\"}]}}}}}",
    "{\"quant_method\":\"compressed-tensors\",\"format\":\"float-quantized\",\"config_groups\":{\"a\":{\"weights\":{\"num_bits\":8,\"type\":\"float\"},"
    "\"input_activations\":{\"num_bits\":8,\"type\":\"float\",\"strategy\":\"token\",\"dynamic\":true}}}}}",
    "{\"quant_method\":\"modelopt\",\"quant_algo\":\"FP8\"}}",
    "{\"quant_method\":\"modelopt\",\"quant_algo\":\"fp8_pb_wo\"}}",
    "{\"quant_method\":\"modelopt\",\"quant_algo\":\"NVFP4\"}}",
    "{\"quant_method\":\"compressed-tensors\",\"format\":\"nvfp4-pack-quantized\",\"config_groups\":{\"a\":{\"weights\":{\"num_bits\":4,\"type\":\"float\"},\"input_activations\":null}}}}",
};
#define FORMATS (sizeof(quantizations) / sizeof(quantizations[0]))

struct built { char config[TEXT_MAX], header[4 * TEXT_MAX]; uint8_t data[DATA_BYTES]; uint32_t config_bytes, header_bytes, data_bytes; };

static void tensor(struct built *b, const char *name, const char *end, const char *dtype, uint32_t element, const char *shape, uint32_t count)
{
    b->header_bytes += (uint32_t)snprintf(b->header + b->header_bytes, sizeof(b->header) - b->header_bytes, "%s\"%s%s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%u,%u]}",
                                          b->header_bytes > 1 ? "," : "", name, end, dtype, shape, b->data_bytes, b->data_bytes + count * element);
    for (uint32_t i = 0; i < count; i++) {           /* 0.5 in every type */
        static const uint8_t half[4][4] = { { 0x30 }, { 0x00, 0x3f }, { 0 }, { 0x00, 0x00, 0x00, 0x3f } };

        memcpy(b->data + b->data_bytes + i * element, half[element - 1], element);
    }
    b->data_bytes += count * element;
}

static void matrix(struct built *b, const char *module, uint32_t format)
{
    char name[64];

    snprintf(name, sizeof(name), "layers.0.%s", module);
    if (format == 0) tensor(b, name, "._weight_scale", "F32", 4, "32,1", 32), tensor(b, name, "._weight_qdata", "F8_E4M3", 1, "32,32", 1024);
    else if (format == 1) tensor(b, name, ".weight_scale", "BF16", 2, "32,1", 32), tensor(b, name, ".weight", "F8_E4M3", 1, "32,32", 1024);
    else if (format == 2) tensor(b, name, ".weight_scale", "F32", 4, "", 1), tensor(b, name, ".input_scale", "F32", 4, "", 1), tensor(b, name, ".weight", "F8_E4M3", 1, "32,32", 1024);
    else if (format == 3) tensor(b, name, ".weight_scale", "F32", 4, "1,1,1,1", 1), tensor(b, name, ".weight", "F8_E4M3", 1, "32,32", 1024);
    else {
        tensor(b, name, format == 4 ? ".weight_scale_2" : ".weight_global_scale", "F32", 4, format == 4 ? "" : "1", 1);
        tensor(b, name, ".weight_scale", "F8_E4M3", 1, "32,2", 64);
        tensor(b, name, format == 4 ? ".weight" : ".weight_packed", "U8", 1, "32,16", 512);
    }
}

static void build(struct built *b, uint32_t format)
{
    static const char *const modules[] = { "self_attn.q_proj", "self_attn.k_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj" };
    static const char *const norms[] = { "norm.weight", "layers.0.input_layernorm.weight", "layers.0.post_attention_layernorm.weight", "layers.0.pre_feedforward_layernorm.weight",
                                         "layers.0.post_feedforward_layernorm.weight", "layers.0.self_attn.q_norm.weight", "layers.0.self_attn.k_norm.weight" };

    b->header_bytes = b->data_bytes = 0;
    b->config_bytes = (uint32_t)snprintf(b->config, sizeof(b->config), "%s%s", config_head, quantizations[format]);
    b->header[b->header_bytes++] = '{';
    tensor(b, "embed_tokens.weight", "", "F32", 4, "16,32", 512);
    for (int i = 0; i < 7; i++) tensor(b, norms[i], "", "F32", 4, "32", 32);
    tensor(b, "layers.0.layer_scalar", "", "F32", 4, "1", 1);
    for (int i = 0; i < 6; i++) matrix(b, modules[i], format);
    b->header[b->header_bytes++] = '}';
    while (b->header_bytes % 8 != 0) b->header[b->header_bytes++] = ' ';
}

static void mutate(void *part, uint32_t bytes, const uint8_t *data, size_t size)
{
    for (size_t i = 0; i + 3 <= size; i += 3) ((uint8_t *)part)[(data[i] | data[i + 1] << 8) % bytes] = data[i + 2];
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct built b;
    struct generation_config generation;
    struct quantization quantization;
    struct model_weights weights;
    struct model_config config;
    struct safetensors index;
    struct model_error err;
    uint64_t length;
    uint8_t *file;

    if (size < 2) return 0;
    build(&b, data[0] % FORMATS);
    if (data[1] % 4 == 0) mutate(b.config, b.config_bytes, data + 2, size - 2);
    else if (data[1] % 4 == 1) mutate(b.data, b.data_bytes, data + 2, size - 2);
    else mutate(b.header, b.header_bytes, data + 2, size - 2);
    length = b.header_bytes;
    if (posix_memalign((void **)&file, 64, 8 + b.header_bytes + b.data_bytes) != 0) return 0;
    memcpy(file, &length, 8);
    memcpy(file + 8, b.header, b.header_bytes);
    memcpy(file + 8 + b.header_bytes, b.data, b.data_bytes);
    safetensors_init(&index);
    if (model_config_parse(&config, (const uint8_t *)b.config, b.config_bytes, &err) == 0
        && generation_config_parse(&generation, &config, NULL, 0, &err) == 0
        && quantization_parse(&quantization, (const uint8_t *)b.config, b.config_bytes, NULL, 0, &err) == 0
        && safetensors_add(&index, "fuzz", 0, file, 8 + b.header_bytes + b.data_bytes, &err) == 0 && safetensors_finish(&index, &err) == 0
        && (format_floats(&index) * 2 <= b.data_bytes || (abort(), 0))
        && model_weights_load(&weights, &config, &quantization, &index, &err) == 0) {
        model_weights_scan(&weights, &err);
        for (uint32_t which = 0; which < MODEL_MATRICES; which++) {      /* the first and the last element with their scales */
            const struct stored_matrix *m = model_matrix(&weights, 0, which);
            volatile float sink;

            if (m->data) sink = stored_value(m, 0, 0), sink = stored_value(m, m->rows - 1, m->k - 1), (void)sink;
        }
        model_weights_free(&weights);
    }
    safetensors_free(&index);
    free(file);
    return 0;
}
