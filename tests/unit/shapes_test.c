/* tests/unit/shapes_test.c - model/shapes: the built-in shapes parse as any checkpoint's configuration, and are what they claim. */
#include "model/config.h"
#include "model/kv.h"
#include "model/shapes.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>

static struct model_config config;
static struct generation_config generation;

static void parse(const struct model_shape *shape)
{
    struct model_error err = {""};

    if (model_config_parse(&config, (const uint8_t *)shape->config, strlen(shape->config), &err) != 0) fail_msg("%s", err.text);
    if (generation_config_parse(&generation, &config, (const uint8_t *)shape->generation, strlen(shape->generation), &err) != 0) fail_msg("%s", err.text);
}

static void test_unknown_shapes_are_not_found(void **state)
{
    (void)state;
    assert_null(model_shape_find(""));
    assert_null(model_shape_find("gemma-4"));
    assert_null(model_shape_find("gemma-4-12b "));
}

static void test_every_name_is_found(void **state)
{
    char names[256];

    (void)state;
    snprintf(names, sizeof names, "%s", model_shape_names());
    for (char *rest = names, *name; (name = strtok_r(rest, ", ", &rest)) != NULL;) {
        const struct model_shape *shape = model_shape_find(name);
        assert_non_null(shape);
        assert_string_equal(shape->name, name);
        parse(shape);
    }
}

static void test_gemma_4_12b_has_its_sizes(void **state)
{
    uint64_t weights = 0;

    (void)state;
    parse(model_shape_find("gemma-4-12b"));
    assert_int_equal(config.layer_count, 48);
    assert_int_equal(config.type_count[LAYER_SLIDING], 40);
    assert_int_equal(config.type_count[LAYER_FULL], 8);
    assert_int_equal(config.max_position, 262144);
    assert_true(config.final_softcap == 30.0f);
    assert_int_equal(config.layer[5].type, LAYER_FULL);
    assert_int_equal(config.layer[5].head_dim, 512);
    assert_int_equal(config.layer[5].kv_heads, 1);
    assert_false(config.layer[5].has_v);
    assert_int_equal(config.layer[6].head_dim, 256);
    assert_int_equal(config.layer[6].kv_heads, 8);
    assert_true(config.layer[6].has_v);
    for (uint32_t i = 0; i < config.layer_count; i++)
        weights += (uint64_t)config.hidden * (2 * model_q_dim(&config, i) + (config.layer[i].has_v ? 2 : 1) * model_kv_dim(&config, i) + 3 * config.intermediate);
    assert_int_equal(weights, 10899947520ull); /* and 1.007e9 of the embedding: the 12B */
    assert_int_equal(generation.suppress_count, 2);
    assert_int_equal(generation.eos_count, 3);
}

static void test_gemma_3_12b_has_its_sizes(void **state)
{
    uint64_t weights = 0;

    (void)state;
    parse(model_shape_find("gemma-3-12b"));
    assert_int_equal(config.family, MODEL_GEMMA3);
    assert_int_equal(config.vocab, 262208);
    assert_int_equal(config.type_count[LAYER_FULL], 8);
    assert_true(config.attention_scale == 0.0625f && config.final_softcap == 0.0f && config.norm_plus_one && !config.has_v_norm);
    assert_true(config.rope[LAYER_FULL].type == ROPE_LINEAR && config.rope[LAYER_FULL].factor == 8.0 && config.rope[LAYER_SLIDING].theta == 1e4);
    for (uint32_t i = 0; i < config.layer_count; i++) {
        assert_true(config.layer[i].head_dim == 256 && config.layer[i].kv_heads == 8 && config.layer[i].has_v);
        weights += (uint64_t)config.hidden * (2 * model_q_dim(&config, i) + 2 * model_kv_dim(&config, i) + 3 * config.intermediate);
    }
    assert_int_equal(weights, 10758389760ull); /* and 1.007e9 of the embedding, 0.42e9 of the tower */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_unknown_shapes_are_not_found),
        cmocka_unit_test(test_every_name_is_found),
        cmocka_unit_test(test_gemma_4_12b_has_its_sizes),
        cmocka_unit_test(test_gemma_3_12b_has_its_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
