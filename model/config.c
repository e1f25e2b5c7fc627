/* model/config.c - see config.h. Reads JSON once; every value that is not computed is refused here, by name. */
#include "model/config.h"
#include "shm/error.h"
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define CONFIG_BYTES_MAX (16u << 20)
#define CONFIG_VOCAB_MAX (1u << 24)
#define CONFIG_DIM_MAX (1u << 17)     /* hidden and intermediate */
#define CONFIG_HEADS_MAX 256
#define CONFIG_POSITION_MAX (1u << 24)  /* positions are exact in f32 up to here */

/* One JSON object being read; the first problem is kept in rc and everything after it is skipped. */
struct reader {
    const json_t *object;
    struct model_error *err;
    int rc;
};

static void reader_fail(struct reader *r, int code, const char *field, const json_t *value, const char *why)
{
    char *text = value ? json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;

    if (r->rc == 0) r->rc = model_error_set(r->err, code, "config: %s%s%.160s: %s", field, text ? " = " : "", text ? text : "", why);
    free(text);
}

/* The member, or NULL when absent or null. */
static const json_t *reader_member(const struct reader *r, const char *field)
{
    const json_t *value = json_object_get(r->object, field);

    return json_is_null(value) ? NULL : value;
}

#define REQUIRED INT64_MIN            /* as fallback: the field must be there */

static uint32_t reader_int(struct reader *r, const char *field, int64_t fallback, int64_t low, int64_t high)
{
    const json_t *value = reader_member(r, field);
    char why[96];

    if (!value && fallback != REQUIRED) return (uint32_t)fallback;
    if (!value) reader_fail(r, -E_FORMAT, field, NULL, "missing");
    else if (!json_is_integer(value)) reader_fail(r, -E_FORMAT, field, value, "must be an integer");
    else if (json_integer_value(value) < low || json_integer_value(value) > high) {
        snprintf(why, sizeof(why), "must be between %lld and %lld", (long long)low, (long long)high);
        reader_fail(r, -E_RANGE, field, value, why);
    } else return (uint32_t)json_integer_value(value);
    return (uint32_t)low;
}

static double reader_number(struct reader *r, const char *field, double fallback, double low, double high)
{
    const json_t *value = reader_member(r, field);
    char why[96];

    if (!value) return fallback;
    if (!json_is_number(value)) reader_fail(r, -E_FORMAT, field, value, "must be a number");
    else if (!(json_number_value(value) >= low && json_number_value(value) <= high)) {
        snprintf(why, sizeof(why), "must be between %g and %g", low, high);
        reader_fail(r, -E_RANGE, field, value, why);
    } else return json_number_value(value);
    return fallback;
}

static bool reader_bool(struct reader *r, const char *field, bool fallback)
{
    const json_t *value = reader_member(r, field);

    if (!value) return fallback;
    if (json_is_boolean(value)) return json_is_true(value);
    reader_fail(r, -E_FORMAT, field, value, "must be true or false");
    return fallback;
}

static const char *reader_text(struct reader *r, const char *field, const char *fallback)
{
    const json_t *value = reader_member(r, field);

    if (!value) return fallback;
    if (json_is_string(value)) return json_string_value(value);
    reader_fail(r, -E_FORMAT, field, value, "must be a string");
    return fallback;
}

/* A list of token ids, or one id; returns the count. */
static uint32_t reader_tokens(struct reader *r, const char *field, uint32_t *token, uint32_t max, uint32_t vocab)
{
    const json_t *value = reader_member(r, field), *item;
    const size_t count = json_is_array(value) ? json_array_size(value) : value != NULL;

    if (count > max) {
        reader_fail(r, -E_RANGE, field, NULL, "too many token ids");
        return 0;
    }
    for (size_t i = 0; i < count; i++) {
        item = json_is_array(value) ? json_array_get(value, i) : value;
        if (!json_is_integer(item)) reader_fail(r, -E_FORMAT, field, item, "must be a token id or a list of them");
        else if (json_integer_value(item) < 0 || json_integer_value(item) >= vocab)
            reader_fail(r, -E_RANGE, field, item, "not below vocab_size");
        else token[i] = (uint32_t)json_integer_value(item);
    }
    return r->rc == 0 ? (uint32_t)count : 0;
}

/* A special token that a checkpoint may lack; ids beyond the table (a text-only cut of a model) count as absent. */
static uint32_t reader_token(struct reader *r, const char *field, uint32_t vocab)
{
    const uint32_t token = reader_int(r, field, MODEL_TOKEN_NONE, 0, CONFIG_VOCAB_MAX);

    return token < vocab ? token : MODEL_TOKEN_NONE;
}

/* Refuses a field that is there with a value other than the one computed. */
static void reader_only_int(struct reader *r, const char *field, int64_t only)
{
    const json_t *value = reader_member(r, field);

    if (value && !(json_is_integer(value) && json_integer_value(value) == only)) reader_fail(r, -E_UNSUPPORTED, field, value, "not supported");
}

static void reader_only_false(struct reader *r, const char *field)
{
    const json_t *value = reader_member(r, field);

    if (value && !json_is_false(value)) reader_fail(r, -E_UNSUPPORTED, field, value, "not supported");
}

static void reader_only_null(struct reader *r, const char *field)
{
    const json_t *value = reader_member(r, field);

    if (value) reader_fail(r, -E_UNSUPPORTED, field, value, "not supported");
}

enum parsed_for { FOR_TARGET, FOR_ASSISTANT, FOR_DSPARK };

static void parse_refusals(struct reader *r, enum parsed_for use)
{
    const char *activation = reader_text(r, "hidden_activation", "gelu_pytorch_tanh");

    if (strcmp(activation, "gelu_pytorch_tanh") != 0) reader_fail(r, -E_UNSUPPORTED, "hidden_activation", reader_member(r, "hidden_activation"), "only gelu_pytorch_tanh is computed");
    reader_only_int(r, "hidden_size_per_layer_input", 0);
    if (use != FOR_ASSISTANT) reader_only_int(r, "num_kv_shared_layers", 0); /* an assistant's layers share all of theirs */
    reader_only_false(r, "enable_moe_block");
    reader_only_false(r, "attention_bias");
    reader_only_false(r, "use_double_wide_mlp");
    reader_only_null(r, "num_experts");
    reader_only_null(r, "attn_logit_softcapping");
    if (use != FOR_DSPARK && !reader_bool(r, "tie_word_embeddings", true)) reader_fail(r, -E_UNSUPPORTED, "tie_word_embeddings", reader_member(r, "tie_word_embeddings"), "the output matrix must be the embedding table");
}

static void parse_sizes(struct model_config *c, struct reader *r)
{
    c->vocab = reader_int(r, "vocab_size", c->family == MODEL_GEMMA3 ? 262208 : 262144, 1, CONFIG_VOCAB_MAX);
    c->hidden = reader_int(r, "hidden_size", REQUIRED, MODEL_DIM_ALIGN, CONFIG_DIM_MAX);
    c->intermediate = reader_int(r, "intermediate_size", REQUIRED, MODEL_DIM_ALIGN, CONFIG_DIM_MAX);
    c->layer_count = reader_int(r, "num_hidden_layers", REQUIRED, 1, MODEL_LAYERS_MAX);
    c->q_heads = reader_int(r, "num_attention_heads", c->family == MODEL_GEMMA3 ? 8 : REQUIRED, 1, CONFIG_HEADS_MAX);
    c->window = reader_int(r, "sliding_window", c->family == MODEL_GEMMA3 ? 4096 : 1024, 1, CONFIG_POSITION_MAX);
    c->max_position = reader_int(r, "max_position_embeddings", c->family == MODEL_GEMMA3 ? 131072 : 262144, 1, CONFIG_POSITION_MAX);
    c->norm_eps = (float)reader_number(r, "rms_norm_eps", 1e-6, 1e-12, 1.0);
    c->final_softcap = (float)reader_number(r, "final_logit_softcapping", 0, 1e-3, 1e6);
    if (c->hidden % MODEL_DIM_ALIGN != 0) reader_fail(r, -E_UNSUPPORTED, "hidden_size", reader_member(r, "hidden_size"), "must be a multiple of 16");
    if (c->intermediate % MODEL_DIM_ALIGN != 0) reader_fail(r, -E_UNSUPPORTED, "intermediate_size", reader_member(r, "intermediate_size"), "must be a multiple of 16");
    c->attention_scale = 1.0f;
    if (c->family == MODEL_GEMMA3) c->attention_scale = (float)pow(reader_number(r, "query_pre_attn_scalar", 256, 1e-3, 1e6), -0.5);
}

/* "layer_types", or every sixth (sliding_window_pattern-th) layer full. */
static void parse_layer_types(struct model_config *c, struct reader *r)
{
    const json_t *list = reader_member(r, "layer_types");
    const uint32_t pattern = reader_int(r, "sliding_window_pattern", 6, 1, MODEL_LAYERS_MAX);

    if (list && (!json_is_array(list) || json_array_size(list) != c->layer_count)) {
        reader_fail(r, -E_FORMAT, "layer_types", list, "must be a list of num_hidden_layers names");
        return;
    }
    for (uint32_t i = 0; i < c->layer_count; i++) {
        const char *name = list ? json_string_value(json_array_get(list, i)) : (i + 1) % pattern != 0 ? "sliding_attention" : "full_attention";

        if (name && strcmp(name, "sliding_attention") == 0) c->layer[i].type = LAYER_SLIDING;
        else if (name && strcmp(name, "full_attention") == 0) c->layer[i].type = LAYER_FULL;
        else reader_fail(r, -E_UNSUPPORTED, "layer_types", json_array_get(list, i), "must be sliding_attention or full_attention");
    }
    /* the reference makes the last layer of this family full whatever the list says */
    if (c->family == MODEL_GEMMA4_UNIFIED) c->layer[c->layer_count - 1].type = LAYER_FULL;
}

static void parse_layer_heads(struct model_config *c, struct reader *r)
{
    const bool gemma4 = c->family == MODEL_GEMMA4_UNIFIED, k_eq_v = gemma4 && reader_bool(r, "attention_k_eq_v", false);
    const uint32_t dim = reader_int(r, "head_dim", 256, MODEL_DIM_ALIGN, MODEL_HEAD_DIM_MAX);
    const uint32_t heads = reader_int(r, "num_key_value_heads", 4, 1, CONFIG_HEADS_MAX);
    const uint32_t full_dim = gemma4 ? reader_int(r, "global_head_dim", 512, MODEL_DIM_ALIGN, MODEL_HEAD_DIM_MAX) : dim;
    const uint32_t full_heads = k_eq_v ? reader_int(r, "num_global_key_value_heads", heads, 1, CONFIG_HEADS_MAX) : heads;
    const json_t *overrides = reader_member(r, "per_layer_config");
    const bool replaced = overrides != NULL;    /* a re-saved config: the map says all, the flat global fields are gone */

    if (overrides && !json_is_object(overrides)) reader_fail(r, -E_FORMAT, "per_layer_config", overrides, "must be an object");
    for (uint32_t i = 0; i < c->layer_count; i++) {
        struct layer_config *layer = &c->layer[i];
        const bool full = layer->type == LAYER_FULL;
        char index[16];
        struct reader own = { .err = r->err };

        snprintf(index, sizeof(index), "%u", i);
        own.object = json_object_get(overrides, index);
        layer->head_dim = full && !replaced ? full_dim : dim;
        layer->kv_heads = full && !replaced ? full_heads : heads;
        if (own.object) {
            layer->head_dim = reader_int(&own, "head_dim", layer->head_dim, MODEL_DIM_ALIGN, MODEL_HEAD_DIM_MAX);
            layer->kv_heads = reader_int(&own, "num_key_value_heads", layer->kv_heads, 1, CONFIG_HEADS_MAX);
            if (own.rc != 0 && r->rc == 0) r->rc = own.rc;
        }
        layer->has_v = !(full && k_eq_v);
        layer->type_index = c->type_count[layer->type]++;
    }
}

static void check_layer_heads(struct model_config *c, struct reader *r)
{
    char why[160];

    for (uint32_t i = 0; i < c->layer_count && r->rc == 0; i++) {
        const struct layer_config *layer = &c->layer[i];

        snprintf(why, sizeof(why), "layer %u has %u query heads, %u kv heads of %u: heads must divide, head_dim must be a multiple of 32",
                 i, c->q_heads, layer->kv_heads, layer->head_dim);
        if (c->q_heads % layer->kv_heads != 0 || layer->head_dim % 32 != 0) reader_fail(r, -E_UNSUPPORTED, "num_key_value_heads", NULL, why);
    }
}

static void parse_rope_one(struct reader *outer, struct rope_config *rope, const char *key, double theta)
{
    const json_t *all = reader_member(outer, "rope_parameters");
    struct reader r = { .object = json_object_get(all, key), .err = outer->err };
    const char *type;

    if (!json_is_object(r.object)) return;      /* the defaults stand */
    type = reader_text(&r, "rope_type", "default");
    if (strcmp(type, "default") == 0) rope->type = ROPE_DEFAULT;
    else if (strcmp(type, "proportional") == 0) rope->type = ROPE_PROPORTIONAL;
    else if (strcmp(type, "linear") == 0) rope->type = ROPE_LINEAR;
    else reader_fail(&r, -E_UNSUPPORTED, "rope_parameters.rope_type", reader_member(&r, "rope_type"), "must be default, proportional or linear");
    rope->theta = reader_number(&r, "rope_theta", theta, 1.0, 1e12);
    rope->partial_rotary_factor = reader_number(&r, "partial_rotary_factor", 1.0, 0.0, 1.0);
    rope->factor = reader_number(&r, "factor", 1.0, 1e-3, 1e6);
    if (rope->type == ROPE_DEFAULT) rope->partial_rotary_factor = rope->factor = 1.0;
    if (rope->type == ROPE_LINEAR && rope->partial_rotary_factor != 1.0)
        reader_fail(&r, -E_UNSUPPORTED, "rope_parameters.partial_rotary_factor", reader_member(&r, "partial_rotary_factor"), "only with rope_type proportional");
    if (r.rc != 0 && outer->rc == 0) outer->rc = r.rc;
}

/* Gemma 3 configs of the older layout: rope_theta, rope_local_base_freq and rope_scaling beside the sizes. */
static void parse_rope_scaling(struct reader *outer, struct rope_config *rope)
{
    struct reader r = { .object = reader_member(outer, "rope_scaling"), .err = outer->err };
    const char *type;

    if (!r.object) return;
    type = reader_text(&r, "rope_type", reader_text(&r, "type", "default"));
    if (strcmp(type, "linear") == 0) rope->type = ROPE_LINEAR;
    else if (strcmp(type, "default") != 0) reader_fail(&r, -E_UNSUPPORTED, "rope_scaling.rope_type", reader_member(&r, "rope_type"), "must be default or linear");
    if (rope->type == ROPE_LINEAR) rope->factor = reader_number(&r, "factor", 1.0, 1e-3, 1e6);
    if (r.rc != 0 && outer->rc == 0) outer->rc = r.rc;
}

static void parse_rope(struct model_config *c, struct reader *r)
{
    const bool gemma4 = c->family == MODEL_GEMMA4_UNIFIED;
    const json_t *all = reader_member(r, "rope_parameters");
    double local = 1e4, global = 1e6;

    if (all && !json_is_object(all)) reader_fail(r, -E_FORMAT, "rope_parameters", all, "must be an object");
    if (!gemma4) {
        global = reader_number(r, "rope_theta", 1e6, 1.0, 1e12);
        local = reader_number(r, "rope_local_base_freq", 1e4, 1.0, 1e12);
    }
    c->rope[LAYER_SLIDING] = (struct rope_config){ ROPE_DEFAULT, local, 1.0, 1.0 };
    c->rope[LAYER_FULL] = (struct rope_config){ gemma4 ? ROPE_PROPORTIONAL : ROPE_DEFAULT, global, gemma4 ? 0.25 : 1.0, 1.0 };
    if (!gemma4) parse_rope_scaling(r, &c->rope[LAYER_FULL]);
    parse_rope_one(r, &c->rope[LAYER_SLIDING], "sliding_attention", local);
    parse_rope_one(r, &c->rope[LAYER_FULL], "full_attention", global);
}

/* "vision" (or absent) is causal for text; "all" is an encoder. */
static void parse_bidirectional(struct model_config *c, struct reader *r)
{
    const json_t *value = reader_member(r, "use_bidirectional_attention");

    if (c->family == MODEL_GEMMA3) {
        if (value && !json_is_false(value)) reader_fail(r, -E_UNSUPPORTED, "use_bidirectional_attention", value, "not supported");
        c->vision_bidirectional = true;
        return;
    }
    if (value && !(json_is_string(value) && strcmp(json_string_value(value), "vision") == 0))
        reader_fail(r, -E_UNSUPPORTED, "use_bidirectional_attention", value, "must be \"vision\" or null");
    c->vision_bidirectional = value != NULL;
}

/* Token ids of the whole model: top level, or in the text part for a text-only export. */
static void parse_tokens(struct model_config *c, struct reader *top, struct reader *text)
{
    const bool gemma4 = c->family == MODEL_GEMMA4_UNIFIED;

    c->pad_token = reader_int(text, "pad_token_id", 0, 0, c->vocab - 1);
    c->bos_token = reader_int(text, "bos_token_id", 2, 0, c->vocab - 1);
    c->eos_count = reader_tokens(top, "eos_token_id", c->eos_token, MODEL_EOS_MAX, c->vocab);
    if (c->eos_count == 0 && text != top) c->eos_count = reader_tokens(text, "eos_token_id", c->eos_token, MODEL_EOS_MAX, c->vocab);
    c->image_token = reader_token(top, gemma4 ? "image_token_id" : "image_token_index", c->vocab);
    c->boi_token = reader_token(top, gemma4 ? "boi_token_id" : "boi_token_index", c->vocab);
    c->eoi_token = reader_token(top, gemma4 ? "eoi_token_id" : "eoi_token_index", c->vocab);
    c->video_token = reader_token(top, "video_token_id", c->vocab);
    c->audio_token = reader_token(top, "audio_token_id", c->vocab);
    c->boa_token = reader_token(top, "boa_token_id", c->vocab);
    c->eoa_token = reader_token(top, "eoa_token_index", c->vocab);
}

static int parse_family(struct model_config *c, struct reader *top, const char **text_type)
{
    const char *type = reader_text(top, "model_type", "");

    *text_type = "";
    if (strcmp(type, "gemma4_unified") == 0 || strcmp(type, "gemma4_unified_text") == 0) c->family = MODEL_GEMMA4_UNIFIED;
    else if (strcmp(type, "gemma3") == 0 || strcmp(type, "gemma3_text") == 0) c->family = MODEL_GEMMA3;
    else {
        reader_fail(top, -E_UNSUPPORTED, "model_type", reader_member(top, "model_type"), "this server runs gemma4_unified and gemma3");
        return top->rc;
    }
    *text_type = c->family == MODEL_GEMMA3 ? "gemma3_text" : "gemma4_unified_text";
    c->norm_plus_one = c->family == MODEL_GEMMA3;
    c->has_v_norm = c->has_layer_scalar = c->family == MODEL_GEMMA4_UNIFIED;
    return top->rc;
}

static void parse_text(struct model_config *c, struct reader *text, enum parsed_for use)
{
    parse_refusals(text, use);
    parse_sizes(c, text);
    if (text->rc != 0) return;
    parse_layer_types(c, text);
    parse_layer_heads(c, text);
    check_layer_heads(c, text);
    parse_rope(c, text);
    parse_bidirectional(c, text);
}

static int parse_all(struct model_config *c, const json_t *root, struct model_error *err)
{
    struct reader top = { .object = root, .err = err }, inner = { .err = err }, *text = &top;
    const char *text_type, *type;
    const json_t *nested = reader_member(&top, "text_config");

    if (parse_family(c, &top, &text_type) != 0) return top.rc;
    if (nested) {
        if (!json_is_object(nested)) reader_fail(&top, -E_FORMAT, "text_config", nested, "must be an object");
        inner.object = nested;
        text = &inner;
        type = reader_text(text, "model_type", text_type);
        if (strcmp(type, text_type) != 0) reader_fail(text, -E_UNSUPPORTED, "text_config.model_type", reader_member(text, "model_type"), "does not belong to this model_type");
    }
    parse_text(c, text, FOR_TARGET);
    if (top.rc == 0 && text->rc == 0) parse_tokens(c, &top, text);
    return top.rc != 0 ? top.rc : text->rc;
}

static int parse_assistant(struct model_config *c, uint32_t *backbone_hidden, const json_t *root, struct model_error *err)
{
    struct reader top = { .object = root, .err = err }, text = { .err = err };
    const json_t *nested = reader_member(&top, "text_config");
    const char *type = reader_text(&top, "model_type", "");

    if (strcmp(type, "gemma4_unified_assistant") != 0)
        reader_fail(&top, -E_UNSUPPORTED, "model_type", reader_member(&top, "model_type"), "gemma4_unified_assistant is the drafter that is built");
    else if (!json_is_object(nested)) reader_fail(&top, -E_FORMAT, "text_config", nested, "must be an object");
    reader_only_false(&top, "use_ordered_embeddings");
    *backbone_hidden = reader_int(&top, "backbone_hidden_size", REQUIRED, MODEL_DIM_ALIGN, CONFIG_DIM_MAX);
    if (*backbone_hidden % MODEL_DIM_ALIGN != 0) reader_fail(&top, -E_UNSUPPORTED, "backbone_hidden_size", reader_member(&top, "backbone_hidden_size"), "must be a multiple of 16");
    if (top.rc != 0) return top.rc;
    c->family = MODEL_GEMMA4_UNIFIED;
    c->has_v_norm = c->has_layer_scalar = true;
    text.object = nested;
    parse_text(c, &text, FOR_ASSISTANT);
    return top.rc != 0 ? top.rc : text.rc;
}

/* "target_layer_ids": ascending, never the target's last layer. */
static void parse_sources(struct dspark_config *c, struct reader *r)
{
    const json_t *list = reader_member(r, "target_layer_ids");
    const size_t count = json_array_size(list);

    if (!list || count == 0 || count > DSPARK_SOURCES_MAX) {
        reader_fail(r, list ? -E_RANGE : -E_FORMAT, "target_layer_ids", list, "must be a list of 1 to 8 layers");
        return;
    }
    for (size_t i = 0; i < count; i++) {
        const json_t *item = json_array_get(list, i);
        const json_int_t layer = json_is_integer(item) ? json_integer_value(item) : -1;

        if (layer < 0 || layer + 1 >= c->target_layer_count || (i > 0 && layer <= c->source[i - 1]))
            reader_fail(r, -E_UNSUPPORTED, "target_layer_ids", list, "must be ascending layers below the target's last");
        if (r->rc != 0) return;
        c->source[c->source_count++] = (uint32_t)layer;
    }
}

static void parse_dspark_heads(struct dspark_config *c, struct reader *r)
{
    const char *type = reader_text(r, "markov_head_type", "vanilla");

    c->markov_rank = reader_int(r, "markov_rank", REQUIRED, 0, DSPARK_RANK_MAX);
    c->confidence = reader_bool(r, "enable_confidence_head", false);
    c->confidence_sees_token = c->confidence && reader_bool(r, "confidence_head_with_markov", false);
    if (c->markov_rank % MODEL_DIM_ALIGN != 0) reader_fail(r, -E_UNSUPPORTED, "markov_rank", reader_member(r, "markov_rank"), "must be a multiple of 16");
    if (c->markov_rank > 0 && strcmp(type, "vanilla") != 0) reader_fail(r, -E_UNSUPPORTED, "markov_head_type", reader_member(r, "markov_head_type"), "only vanilla is computed");
    if (c->confidence_sees_token && c->markov_rank == 0) reader_fail(r, -E_FORMAT, "confidence_head_with_markov", NULL, "needs a markov_rank");
}

static int parse_dspark(struct dspark_config *c, const json_t *root, struct model_error *err)
{
    struct reader r = { .object = root, .err = err };
    const char *type = reader_text(&r, "model_type", "");

    if (strcmp(type, "gemma4_text") != 0 && strcmp(type, "gemma4_unified_text") != 0)
        reader_fail(&r, -E_UNSUPPORTED, "model_type", reader_member(&r, "model_type"), "gemma4_text is the DSpark drafter that is built");
    if (!reader_bool(&r, "attention_k_eq_v", false)) reader_fail(&r, -E_UNSUPPORTED, "attention_k_eq_v", reader_member(&r, "attention_k_eq_v"), "must be true");
    if (r.rc != 0) return r.rc;
    c->layers.family = MODEL_GEMMA4_UNIFIED;
    c->layers.has_v_norm = c->layers.has_layer_scalar = true;
    parse_text(&c->layers, &r, FOR_DSPARK);
    if (r.rc != 0) return r.rc;
    for (uint32_t i = 0; i < c->layers.layer_count; i++)
        if (c->layers.layer[i].type != LAYER_FULL) reader_fail(&r, -E_UNSUPPORTED, "layer_types", reader_member(&r, "layer_types"), "must all be full_attention");
    c->target_layer_count = reader_int(&r, "num_target_layers", REQUIRED, 2, MODEL_LAYERS_MAX);
    c->block = reader_int(&r, "block_size", REQUIRED, 1, DSPARK_BLOCK_MAX);
    c->mask_token = reader_int(&r, "mask_token_id", REQUIRED, 0, c->layers.vocab - 1);
    if (r.rc == 0) parse_sources(c, &r);
    parse_dspark_heads(c, &r);
    return r.rc;
}

static int config_json(json_t **root, const char *file, const uint8_t *json, uint64_t byte_count, struct model_error *err)
{
    json_error_t problem;

    if (!json || byte_count == 0 || byte_count > CONFIG_BYTES_MAX) return model_error_set(err, -E_FORMAT, "%s: %llu bytes", file, (unsigned long long)byte_count);
    *root = json_loadb((const char *)json, (size_t)byte_count, JSON_REJECT_DUPLICATES, &problem);
    if (!*root) return model_error_set(err, -E_FORMAT, "%s: line %d: %s", file, problem.line, problem.text);
    if (json_is_object(*root)) return 0;
    json_decref(*root);
    return model_error_set(err, -E_FORMAT, "%s: not a JSON object", file);
}

int model_config_parse(struct model_config *config, const uint8_t *json, uint64_t byte_count, struct model_error *err)
{
    json_t *root;
    int rc;

    memset(config, 0, sizeof(*config));
    if ((rc = config_json(&root, "config.json", json, byte_count, err)) != 0) return rc;
    rc = parse_all(config, root, err);
    json_decref(root);
    return rc;
}

int assistant_config_parse(struct model_config *config, uint32_t *backbone_hidden, const uint8_t *json, uint64_t byte_count, struct model_error *err)
{
    json_t *root;
    int rc;

    memset(config, 0, sizeof(*config));
    *backbone_hidden = 0;
    if ((rc = config_json(&root, "config.json", json, byte_count, err)) != 0) return rc;
    rc = parse_assistant(config, backbone_hidden, root, err);
    json_decref(root);
    return rc;
}

int dspark_config_parse(struct dspark_config *config, const uint8_t *json, uint64_t byte_count, struct model_error *err)
{
    json_t *root;
    int rc;

    memset(config, 0, sizeof(*config));
    if ((rc = config_json(&root, "config.json", json, byte_count, err)) != 0) return rc;
    rc = parse_dspark(config, root, err);
    json_decref(root);
    return rc;
}

static void parse_generation(struct generation_config *g, const struct model_config *c, struct reader *r)
{
    g->eos_count = reader_tokens(r, "eos_token_id", g->eos_token, MODEL_EOS_MAX, c->vocab);
    g->suppress_count = reader_tokens(r, "suppress_tokens", g->suppress_token, MODEL_SUPPRESS_MAX, c->vocab);
    g->do_sample = reader_bool(r, "do_sample", false);
    g->temperature = (float)reader_number(r, "temperature", 1.0, 0.0, 100.0);
    g->top_k = reader_int(r, "top_k", 0, 0, CONFIG_VOCAB_MAX);
    g->top_p = (float)reader_number(r, "top_p", 1.0, 0.0, 1.0);
    g->min_p = (float)reader_number(r, "min_p", 0.0, 0.0, 1.0);
}

int generation_config_parse(struct generation_config *generation, const struct model_config *config,
                            const uint8_t *json, uint64_t byte_count, struct model_error *err)
{
    struct reader r = { .err = err };
    json_t *root = NULL;
    int rc;

    *generation = (struct generation_config){ .temperature = 1.0f, .top_p = 1.0f };
    if (json) {
        if ((rc = config_json(&root, "generation_config.json", json, byte_count, err)) != 0) return rc;
        r.object = root;
        parse_generation(generation, config, &r);
        json_decref(root);
        if (r.rc != 0) return r.rc;
    }
    if (generation->eos_count == 0) {
        generation->eos_count = config->eos_count;
        memcpy(generation->eos_token, config->eos_token, sizeof(config->eos_token));
    }
    if (generation->eos_count == 0) return model_error_set(err, -E_RANGE, "eos_token_id: neither config.json nor generation_config.json names an end token");
    return 0;
}

int model_config_load(struct model_config *config, struct generation_config *generation,
                      const struct model_files *files, struct model_error *err)
{
    const uint8_t *json = NULL;
    uint64_t byte_count = 0;
    int rc;

    if (model_files_find(files, "config.json", &json, &byte_count) != 0) return model_error_set(err, -E_NOT_FOUND, "config.json: missing");
    if ((rc = model_config_parse(config, json, byte_count, err)) != 0) return rc;
    json = NULL;
    if (model_files_find(files, "generation_config.json", &json, &byte_count) == 0 && !json) json = (const uint8_t *)"";
    return generation_config_parse(generation, config, json, byte_count, err);
}
