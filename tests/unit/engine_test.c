/* tests/unit/engine_test.c - what the engine says to the GPU's library: the model's shape, and what is wrong with a library. */
#include "kernels/cuda/cuda_backend.h"
#include "model/cuda_library.h"
#include "model/engine.h"
#include "schemas/table.h"
#include "shm/error.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define TEXT "\"vocab_size\":262144,\"hidden_size\":3840,\"intermediate_size\":15360,\"num_hidden_layers\":48,\"num_attention_heads\":16," \
    "\"num_key_value_heads\":8,\"head_dim\":256,\"global_head_dim\":512,\"num_global_key_value_heads\":1,\"attention_k_eq_v\":true," \
    "\"sliding_window\":1024,\"max_position_embeddings\":262144,\"final_logit_softcapping\":30.0,\"rms_norm_eps\":1e-06," \
    "\"hidden_size_per_layer_input\":0,\"num_experts\":null,\"enable_moe_block\":false,\"use_bidirectional_attention\":\"vision\"," \
    "\"rope_parameters\":{\"sliding_attention\":{\"rope_type\":\"default\",\"rope_theta\":10000.0}," \
    "\"full_attention\":{\"rope_type\":\"proportional\",\"rope_theta\":1000000.0,\"partial_rotary_factor\":0.25}}"
#define GEMMA4 "{\"model_type\":\"gemma4_unified\",\"eos_token_id\":[1,106],\"tie_word_embeddings\":true,\"text_config\":{" \
    "\"model_type\":\"gemma4_unified_text\"," TEXT "}}"

static void read_model(struct model_config *config, struct kv_geometry *geometry, enum kv_dtype dtype)
{
    struct model_error err = {""};

    if (model_config_parse(config, (const uint8_t *)GEMMA4, strlen(GEMMA4), &err) != 0) fail_msg("%s", err.text);
    assert_int_equal(kv_geometry_init(geometry, config, dtype, 8192, 2048, 100, 200), 0);
}

static void test_spec_of_gemma4_12b(void **state)
{
    static struct cuda_model_spec spec;
    static struct model_config config;
    static struct kv_geometry geometry;
    struct generation_config generation = {.suppress_count = 2, .suppress_token = {258883, 258882}};
    struct model_error err = {""};

    (void)state;
    read_model(&config, &geometry, KV_BF16);
    assert_int_equal(engine_cuda_spec(&spec, &config, &generation, &geometry, WEIGHT_FP8, NULL, &err), 0);
    assert_int_equal(spec.hidden, 3840);
    assert_int_equal(spec.layers, 48);
    assert_int_equal(spec.format, WEIGHT_FP8);
    assert_int_equal(spec.q_heads, 16);
    assert_int_equal(spec.kv_heads[CUDA_SLIDING], 8);
    assert_int_equal(spec.kv_heads[CUDA_FULL], 1);
    assert_int_equal(spec.head_dim[CUDA_SLIDING], 256);
    assert_int_equal(spec.head_dim[CUDA_FULL], 512);
    assert_int_equal(spec.rope_turned[CUDA_SLIDING], 128);
    assert_int_equal(spec.rope_turned[CUDA_FULL], 64);
    assert_true(spec.rope_theta[CUDA_FULL] == 1e6 && spec.rope_divisor[CUDA_FULL] == 1.0);
    assert_true(spec.embed_scale == 62.0f); /* sqrt(3840) = 61.97, in bf16 */
    assert_true(spec.softcap == 30.0f && spec.attention_scale == 1.0f);
    assert_int_equal(spec.suppress_count, 2);
    assert_int_equal(spec.suppress[1], 258882);
    assert_int_equal(spec.page_bytes[CUDA_FULL], geometry.full_page_bytes);
    assert_int_equal(spec.page_bytes[CUDA_SLIDING], geometry.sliding_page_bytes);
    for (uint32_t i = 0; i < 48; i++) {
        assert_int_equal(spec.layer[i].type, i % 6 == 5 ? CUDA_FULL : CUDA_SLIDING);
        assert_int_equal(spec.layer[i].has_v, i % 6 != 5);
        assert_int_equal(spec.layer[i].k_offset, geometry.layer[i].k_offset);
        assert_int_equal(spec.layer[i].v_offset, geometry.layer[i].v_offset);
    }
}

static void test_spec_follows_the_weights_type(void **state)
{
    static struct cuda_model_spec spec;
    static struct model_config config;
    static struct kv_geometry geometry;
    struct generation_config generation = {0};
    struct model_error err = {""};

    (void)state;
    read_model(&config, &geometry, KV_F32);
    assert_int_equal(engine_cuda_spec(&spec, &config, &generation, &geometry, WEIGHT_F32, NULL, &err), 0);
    assert_true(spec.embed_scale > 61.96f && spec.embed_scale < 61.97f);
    assert_int_equal(spec.layer[0].v_offset - spec.layer[0].k_offset, 4 * 8 * 256 * KV_PAGE_TOKENS); /* how the library knows an f32 cache */
}

static void test_spec_refuses_what_the_kernels_do_not_know(void **state)
{
    static struct cuda_model_spec spec;
    static struct model_config config;
    static struct kv_geometry geometry;
    struct generation_config generation = {.suppress_count = CUDA_SUPPRESS_MAX + 1};
    struct model_error err = {""};

    (void)state;
    read_model(&config, &geometry, KV_BF16);
    assert_int_equal(engine_cuda_spec(&spec, &config, &generation, &geometry, WEIGHT_BF16, NULL, &err), -E_UNSUPPORTED);
    assert_non_null(strstr(err.text, "suppress_tokens"));
    generation.suppress_count = 0;
    config.layer[6].head_dim = 128;
    assert_int_equal(engine_cuda_spec(&spec, &config, &generation, &geometry, WEIGHT_BF16, NULL, &err), -E_UNSUPPORTED);
    assert_non_null(strstr(err.text, "layer 6"));
}

static void test_a_library_that_is_not_there(void **state)
{
    struct cuda_library lib;
    char err[1024];

    (void)state;
    assert_int_equal(cuda_library_open(&lib, "/nonexistent/" CUDA_LIBRARY_NAME, err, sizeof err), -E_NOT_FOUND);
    assert_non_null(strstr(err, "/nonexistent/"));
    setenv("SLUICE_CUDA_LIBRARY", "/nonexistent/elsewhere.so", 1);
    assert_int_equal(cuda_library_open(&lib, NULL, err, sizeof err), -E_NOT_FOUND);
    assert_non_null(strstr(err, "elsewhere.so"));
    unsetenv("SLUICE_CUDA_LIBRARY");
}

static void test_a_library_that_is_none(void **state)
{
    char path[] = "/tmp/sluice-engine-test-XXXXXX", err[1024];
    struct cuda_library lib;
    const int fd = mkstemp(path);

    (void)state;
    assert_true(fd >= 0 && write(fd, "no library", 10) == 10);
    close(fd);
    assert_int_equal(cuda_library_open(&lib, path, err, sizeof err), -E_IO);
    assert_non_null(strstr(err, "cannot be loaded"));
    unlink(path);
}

static void test_a_library_of_something_else(void **state)
{
    struct cuda_library lib;
    char err[1024];

    (void)state;
    const int rc = cuda_library_open(&lib, "/lib/x86_64-linux-gnu/libm.so.6", err, sizeof err);
    if (rc == -E_NOT_FOUND) skip(); /* another layout of system libraries */
    assert_int_equal(rc, -E_VERSION);
    assert_non_null(strstr(err, "lacks the function cuda_"));
}

static void test_which_token_ends_an_output(void **state)
{
    const struct generation_config generation = {.eos_count = 2, .eos_token = {1, 106}};
    static struct request_params params;

    (void)state;
    memset(&params, 0, sizeof params);
    params.stop_token_count = 1;
    params.stop_tokens[0] = 106;
    assert_int_equal(engine_finish_by_token(&generation, &params, 7), FINISH_NONE);
    assert_int_equal(engine_finish_by_token(&generation, &params, 1), FINISH_EOS);
    assert_int_equal(engine_finish_by_token(&generation, &params, 106), FINISH_STOP_TOKEN); /* what the client named goes first */
    params.flags = REQUEST_IGNORE_EOS;
    assert_int_equal(engine_finish_by_token(&generation, &params, 1), FINISH_NONE);
    assert_int_equal(engine_finish_by_token(&generation, &params, 106), FINISH_STOP_TOKEN);
}

static void test_rows_that_a_device_computes(void **state)
{
    static const struct engine_device by_rows = {.steps_by_graph = 0}, by_graph = {.steps_by_graph = 1};
    struct engine e = {.device = &by_rows};

    (void)state;
    assert_int_equal(engine_rows_computed(&e, 5), 5);
    e.device = &by_graph;
    assert_int_equal(engine_rows_computed(&e, 1), 1);
    assert_int_equal(engine_rows_computed(&e, 5), 8);
    assert_int_equal(engine_rows_computed(&e, 8), 8);
    assert_int_equal(engine_rows_computed(&e, 33), 64);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_spec_of_gemma4_12b),
        cmocka_unit_test(test_spec_follows_the_weights_type),
        cmocka_unit_test(test_spec_refuses_what_the_kernels_do_not_know),
        cmocka_unit_test(test_a_library_that_is_not_there),
        cmocka_unit_test(test_a_library_that_is_none),
        cmocka_unit_test(test_a_library_of_something_else),
        cmocka_unit_test(test_which_token_ends_an_output),
        cmocka_unit_test(test_rows_that_a_device_computes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
