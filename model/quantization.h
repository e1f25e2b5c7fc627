/* model/quantization.h - what a checkpoint's config says about its quantization: who wrote it, and what x is meant to be.
 *
 * Read from "quantization_config" in config.json (torchao, compressed-tensors, ModelOpt) and ModelOpt's hf_quant_config.json.
 * The tensors decide how weights are stored (model/format.c); only what no tensor tells is taken from here: the rule for activations.
 * Lists of modules left alone are not believed: each writer spells the names in its own way.
 * Fails: a method or algorithm that this server does not compute is refused by name. */
#ifndef SLUICE_MODEL_QUANTIZATION_H
#define SLUICE_MODEL_QUANTIZATION_H

#include "model/files.h"
#include <stdbool.h>
#include <stdint.h>

#define QUANTIZATION_FILE "hf_quant_config.json"

enum quantization_method { QUANTIZATION_NONE = 0, QUANTIZATION_TORCHAO = 1, QUANTIZATION_COMPRESSED_TENSORS = 2, QUANTIZATION_MODELOPT = 3 };

struct quantization {
    enum quantization_method method;
    uint32_t fp8_activation;          /* enum stored_activation for matrices of FP8 codes; FP4 matrices are weight-only here */
    bool fp8_by_layer;                /* layers differ: one with an input_scale is STORED_STATIC, one without is as it is */
    bool fp4_activations;             /* the writer meant FP4 activations too: they are not rounded here */
    bool kv_cache_fp8;                /* the config asks for an FP8 KV cache; scales for it in the file are not applied: ours has none */
    char algorithm[80];               /* as the file calls it; "" when nothing is quantized */
};

/* Both may be absent (NULL, 0). 0, -E_FORMAT, -E_UNSUPPORTED; err names field and value. */
int quantization_parse(struct quantization *quantization, const uint8_t *config_json, uint64_t config_bytes,
                       const uint8_t *hf_json, uint64_t hf_bytes, struct model_error *err);

/* The same from a set of files. */
int quantization_load(struct quantization *quantization, const struct model_files *files, struct model_error *err);

/* "torchao", "compressed-tensors", "ModelOpt" or "none". */
const char *quantization_method_name(enum quantization_method method);

#endif
