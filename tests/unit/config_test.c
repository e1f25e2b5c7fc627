/* tests/unit/config_test.c - config.json and generation_config.json: what is accepted, derived and refused, and with which words. */
#include "model/config.h"
#include "shm/error.h"
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

/* The published gemma-4-12B-it, as far as the text model goes. %s: more fields of text_config, %s: more top fields. */
#define GEMMA4 "{\"model_type\":\"gemma4_unified\",\"eos_token_id\":[1,106],\"image_token_id\":258880,\"eoa_token_index\":258883," \
    "\"tie_word_embeddings\":true%s,\"text_config\":{\"model_type\":\"gemma4_unified_text\",\"vocab_size\":262144,\"hidden_size\":3840," \
    "\"intermediate_size\":15360,\"num_hidden_layers\":48,\"num_attention_heads\":16,\"num_key_value_heads\":8,\"head_dim\":256," \
    "\"global_head_dim\":512,\"num_global_key_value_heads\":1,\"attention_k_eq_v\":true,\"sliding_window\":1024," \
    "\"max_position_embeddings\":262144,\"final_logit_softcapping\":30.0,\"rms_norm_eps\":1e-06,\"hidden_size_per_layer_input\":0," \
    "\"num_experts\":null,\"enable_moe_block\":false,\"use_bidirectional_attention\":\"vision\",\"rope_parameters\":{" \
    "\"sliding_attention\":{\"rope_type\":\"default\",\"rope_theta\":10000.0}," \
    "\"full_attention\":{\"rope_type\":\"proportional\",\"rope_theta\":1000000.0,\"partial_rotary_factor\":0.25}}%s}}"

static int parse(struct model_config *c, struct model_error *err, const char *json)
{
    return model_config_parse(c, (const uint8_t *)json, strlen(json), err);
}

static int parse4(struct model_config *c, struct model_error *err, const char *top, const char *text)
{
    char json[4096];

    assert_true(snprintf(json, sizeof(json), GEMMA4, top, text) < (int)sizeof(json));
    return parse(c, err, json);
}

static void test_gemma4_12b_is_understood(void **state)
{
    struct model_config c;
    struct model_error err;

    (void)state;
    if (parse4(&c, &err, "", "") != 0) fail_msg("%s", err.text);
    assert_int_equal(c.family, MODEL_GEMMA4_UNIFIED);
    assert_int_equal(c.layer_count, 48);
    assert_int_equal(c.type_count[LAYER_SLIDING], 40);
    assert_int_equal(c.type_count[LAYER_FULL], 8);
    for (uint32_t i = 0; i < 48; i++) {
        const bool full = i % 6 == 5;

        assert_int_equal(c.layer[i].type, full ? LAYER_FULL : LAYER_SLIDING);
        assert_int_equal(c.layer[i].head_dim, full ? 512 : 256);
        assert_int_equal(c.layer[i].kv_heads, full ? 1 : 8);
        assert_int_equal(c.layer[i].has_v, !full);
        assert_int_equal(c.layer[i].type_index, full ? i / 6 : i - i / 6);
    }
    assert_int_equal(model_q_dim(&c, 5), 8192);
    assert_int_equal(model_kv_dim(&c, 0), 2048);
    assert_true(c.attention_scale == 1.0f && c.final_softcap == 30.0f && c.norm_eps == 1e-6f);
    assert_true(c.has_v_norm && c.has_layer_scalar && !c.norm_plus_one && c.vision_bidirectional);
    assert_true(c.rope[LAYER_FULL].type == ROPE_PROPORTIONAL && c.rope[LAYER_FULL].theta == 1e6 && c.rope[LAYER_FULL].partial_rotary_factor == 0.25);
    assert_true(c.rope[LAYER_SLIDING].type == ROPE_DEFAULT && c.rope[LAYER_SLIDING].theta == 1e4);
    assert_int_equal(c.eos_count, 2);
    assert_int_equal(c.eos_token[1], 106);
    assert_int_equal(c.image_token, 258880);
    assert_int_equal(c.eoa_token, 258883);
    assert_int_equal(c.audio_token, MODEL_TOKEN_NONE);
}

static void test_per_layer_config_replaces_the_global_fields(void **state)
{
    struct model_config c;
    struct model_error err;

    (void)state;
    if (parse(&c, &err, "{\"model_type\":\"gemma4_unified_text\",\"vocab_size\":32,\"hidden_size\":32,\"intermediate_size\":32,\"num_hidden_layers\":3,"
              "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"head_dim\":32,\"attention_k_eq_v\":true,"
              "\"layer_types\":[\"full_attention\",\"sliding_attention\",\"sliding_attention\"],"
              "\"per_layer_config\":{\"0\":{\"head_dim\":64,\"num_key_value_heads\":1},\"2\":{\"head_dim\":96}}}") != 0) fail_msg("%s", err.text);
    assert_int_equal(c.layer[0].head_dim, 64);
    assert_int_equal(c.layer[0].kv_heads, 1);
    assert_int_equal(c.layer[1].head_dim, 32);
    assert_int_equal(c.layer[2].head_dim, 96);
    assert_int_equal(c.layer[2].kv_heads, 2);
    assert_int_equal(c.layer[2].type, LAYER_FULL);    /* the last one always is */
    assert_false(c.layer[2].has_v);
}

static void test_sparse_gemma3_gets_the_class_defaults(void **state)
{
    struct model_config c;
    struct model_error err;

    (void)state;
    if (parse(&c, &err, "{\"model_type\":\"gemma3\",\"image_token_index\":262144,\"eos_token_id\":[1,106],\"text_config\":{\"model_type\":\"gemma3_text\","
              "\"hidden_size\":3840,\"intermediate_size\":15360,\"num_hidden_layers\":48,\"num_attention_heads\":16,\"num_key_value_heads\":8,"
              "\"rope_scaling\":{\"factor\":8.0,\"rope_type\":\"linear\"},\"sliding_window\":1024}}") != 0) fail_msg("%s", err.text);
    assert_int_equal(c.family, MODEL_GEMMA3);
    assert_int_equal(c.vocab, 262208);
    assert_int_equal(c.layer[5].type, LAYER_FULL);
    assert_int_equal(c.layer[47].head_dim, 256);
    assert_int_equal(c.layer[47].kv_heads, 8);
    assert_true(c.layer[47].has_v && c.norm_plus_one && !c.has_v_norm && !c.has_layer_scalar);
    assert_true(c.attention_scale == 0.0625f && c.final_softcap == 0);
    assert_true(c.rope[LAYER_FULL].type == ROPE_LINEAR && c.rope[LAYER_FULL].factor == 8.0 && c.rope[LAYER_FULL].theta == 1e6);
    assert_true(c.rope[LAYER_SLIDING].type == ROPE_DEFAULT && c.rope[LAYER_SLIDING].theta == 1e4);
    assert_int_equal(c.image_token, 262144);
}

/* A later member of the same name would be refused as a duplicate, so these use fields that GEMMA4 does not set. */
static void test_refusals_name_the_field_and_the_value(void **state)
{
    static const struct { const char *top, *text; int code; const char *words[2]; } wrong[] = {
        { "", ",\"num_kv_shared_layers\":20", -E_UNSUPPORTED, { "num_kv_shared_layers", "20" } },
        { "", ",\"attention_bias\":true", -E_UNSUPPORTED, { "attention_bias", "true" } },
        { "", ",\"use_double_wide_mlp\":true", -E_UNSUPPORTED, { "use_double_wide_mlp", "true" } },
        { "", ",\"hidden_activation\":\"silu\"", -E_UNSUPPORTED, { "hidden_activation", "silu" } },
        { "", ",\"tie_word_embeddings\":false", -E_UNSUPPORTED, { "tie_word_embeddings", "false" } },
        { "", ",\"layer_types\":[\"full_attention\"]", -E_FORMAT, { "layer_types", "num_hidden_layers" } },
        { "", ",\"per_layer_config\":[]", -E_FORMAT, { "per_layer_config", "object" } },
        { "", ",\"per_layer_config\":{\"3\":{\"head_dim\":1024}}", -E_RANGE, { "head_dim", "1024" } },
        { "", ",\"per_layer_config\":{\"3\":{\"num_key_value_heads\":3}}", -E_UNSUPPORTED, { "layer 3", "3 kv heads" } },
        { "", ",\"pad_token_id\":262144", -E_RANGE, { "pad_token_id", "262144" } },
        { ",\"video_token_id\":\"x\"", "", -E_FORMAT, { "video_token_id", "integer" } },
        { "", ",\"vocab_size\":5", -E_FORMAT, { "config.json", "duplicate" } },
    };
    struct model_config c;
    struct model_error err;

    (void)state;
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        const int rc = parse4(&c, &err, wrong[i].top, wrong[i].text);

        if (rc != wrong[i].code || !strstr(err.text, wrong[i].words[0]) || !strstr(err.text, wrong[i].words[1]))
            fail_msg("case %zu: %d \"%s\"", i, rc, rc ? err.text : "accepted");
    }
}

static void test_fields_of_wrong_size_or_type_are_refused(void **state)
{
    static const struct { const char *from, *to, *word; } wrong[] = {
        { "\"hidden_size\":3840", "\"hidden_size\":3841", "hidden_size = 3841" },
        { "\"hidden_size\":3840,", "", "hidden_size: missing" },
        { "\"hidden_size\":3840", "\"hidden_size\":\"3840\"", "must be an integer" },
        { "\"intermediate_size\":15360", "\"intermediate_size\":-16", "must be between" },
        { "\"num_hidden_layers\":48", "\"num_hidden_layers\":129", "must be between 1 and 128" },
        { "\"num_hidden_layers\":48", "\"num_hidden_layers\":4.5", "must be an integer" },
        { "\"head_dim\":256", "\"head_dim\":48", "multiple of 32" },
        { "\"hidden_size_per_layer_input\":0", "\"hidden_size_per_layer_input\":256", "hidden_size_per_layer_input = 256" },
        { "\"enable_moe_block\":false", "\"enable_moe_block\":true", "enable_moe_block = true" },
        { "\"rope_type\":\"proportional\"", "\"rope_type\":\"yarn\"", "yarn" },
        { "\"partial_rotary_factor\":0.25", "\"partial_rotary_factor\":1.5", "partial_rotary_factor = 1.5" },
        { "\"use_bidirectional_attention\":\"vision\"", "\"use_bidirectional_attention\":\"all\"", "use_bidirectional_attention = \"all\"" },
        { "\"model_type\":\"gemma4_unified\"", "\"model_type\":\"llama\"", "model_type = \"llama\"" },
        { "\"model_type\":\"gemma4_unified_text\"", "\"model_type\":\"gemma3_text\"", "text_config.model_type" },
        { "\"eos_token_id\":[1,106]", "\"eos_token_id\":[1,262144]", "eos_token_id = 262144" },
        { "\"eos_token_id\":[1,106]", "\"eos_token_id\":[1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]", "too many" },
        { "\"final_logit_softcapping\":30.0", "\"final_logit_softcapping\":\"30\"", "must be a number" },
        { "\"text_config\":{", "\"text_config\":[{", "config.json: line 1" },
    };
    char json[4096], changed[4096];
    struct model_config c;
    struct model_error err;

    (void)state;
    snprintf(json, sizeof(json), GEMMA4, "", "");
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        const char *at = strstr(json, wrong[i].from);

        assert_non_null(at);
        snprintf(changed, sizeof(changed), "%.*s%s%s", (int)(at - json), json, wrong[i].to, at + strlen(wrong[i].from));
        if (parse(&c, &err, changed) == 0) fail_msg("accepted: %s", wrong[i].to);
        if (!strstr(err.text, wrong[i].word)) fail_msg("\"%s\" does not say \"%s\"", err.text, wrong[i].word);
    }
    assert_int_equal(parse(&c, &err, ""), -E_FORMAT);
    assert_int_equal(parse(&c, &err, "[]"), -E_FORMAT);
    assert_int_equal(parse(&c, &err, "{}"), -E_UNSUPPORTED);
}

static int parse_generation(struct generation_config *g, const struct model_config *c, struct model_error *err, const char *json)
{
    return generation_config_parse(g, c, (const uint8_t *)json, json ? strlen(json) : 0, err);
}

static void test_generation_config(void **state)
{
    struct generation_config g;
    struct model_config c;
    struct model_error err;

    (void)state;
    assert_int_equal(parse4(&c, &err, "", ""), 0);
    if (parse_generation(&g, &c, &err, "{\"bos_token_id\":2,\"eos_token_id\":[1,106,50],\"do_sample\":true,\"temperature\":1.0,\"top_k\":64,\"top_p\":0.95,"
                         "\"suppress_tokens\":[258883,258882]}") != 0) fail_msg("%s", err.text);
    assert_int_equal(g.eos_count, 3);
    assert_int_equal(g.suppress_count, 2);
    assert_int_equal(g.suppress_token[1], 258882);
    assert_true(g.do_sample && g.top_k == 64 && g.top_p == 0.95f && g.temperature == 1.0f && g.min_p == 0);
    assert_int_equal(parse_generation(&g, &c, &err, NULL), 0);       /* absent: the end tokens of config.json */
    assert_int_equal(g.eos_count, 2);
    assert_int_equal(parse_generation(&g, &c, &err, "{\"eos_token_id\":107}"), 0);
    assert_int_equal(g.eos_count, 1);
    assert_int_equal(g.eos_token[0], 107);
    assert_int_equal(parse_generation(&g, &c, &err, "{\"suppress_tokens\":[300000]}"), -E_RANGE);
    assert_non_null(strstr(err.text, "suppress_tokens = 300000"));
    assert_int_equal(parse_generation(&g, &c, &err, "{\"top_p\":2}"), -E_RANGE);
    assert_int_equal(parse_generation(&g, &c, &err, "{\"temperature\":\"hot\"}"), -E_FORMAT);
    assert_int_equal(parse_generation(&g, &c, &err, ""), -E_FORMAT);
    c.eos_count = 0;
    assert_int_equal(parse_generation(&g, &c, &err, "{}"), -E_RANGE);
    assert_non_null(strstr(err.text, "eos_token_id"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gemma4_12b_is_understood),
        cmocka_unit_test(test_per_layer_config_replaces_the_global_fields),
        cmocka_unit_test(test_sparse_gemma3_gets_the_class_defaults),
        cmocka_unit_test(test_refusals_name_the_field_and_the_value),
        cmocka_unit_test(test_fields_of_wrong_size_or_type_are_refused),
        cmocka_unit_test(test_generation_config),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
