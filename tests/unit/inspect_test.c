/* tests/unit/inspect_test.c - what `sluice inspect` says about whole, odd and broken checkpoints. */
#include "launcher/inspect.h"
#include "shm/stage.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#define GOLDEN "tests/golden/formats/"

static char said[1 << 16];

/* Runs the command with stdout in `said`. */
static int inspect(const char *dir, const char *option)
{
    char *argv[] = { (char *)dir, (char *)option };
    char name[] = "/tmp/inspect_test.XXXXXX";
    const int file = mkstemp(name), out = dup(1);
    ssize_t count;
    int rc;

    assert_true(file >= 0 && out >= 0);
    unlink(name);
    fflush(stdout);
    assert_int_equal(dup2(file, 1), 1);
    rc = inspect_command(option ? 2 : 1, argv);
    fflush(stdout);
    dup2(out, 1);
    close(out);
    count = pread(file, said, sizeof(said) - 1, 0);
    said[count > 0 ? count : 0] = '\0';
    close(file);
    return rc;
}

static void has(const char *words)
{
    if (!strstr(said, words)) fail_msg("\"%s\" is not in:\n%s", words, said);
}

static void test_whole_checkpoints(void **state)
{
    (void)state;
    assert_int_equal(inspect(GOLDEN "torchao_row", NULL), 0);
    has("Gemma 4 unified, text: 2 layers (1 sliding, 1 full)");
    has("torchao, Float8DynamicActivationFloat8WeightConfig");
    has("self_attn.q_proj          2  FP8 per row, activations FP8 per token");
    has("self_attn.v_proj          1  FP8");
    has("embed_tokens, head           BF16");
    has("no tokenizer.json");
    has("\nloads\n");
    assert_int_equal(inspect(GOLDEN "modelopt_nvfp4_mlp", "--tensors"), 0);
    has("mlp.down_proj             2  FP4 in groups of 16 (NVFP4), weight-only");
    has("self_attn.o_proj          2  BF16");
    has("4 scales of a KV cache");
    has("asks for an FP8 KV cache");
    has("model.language_model.layers.0.mlp.down_proj.weight_scale_2");
    assert_int_equal(inspect(GOLDEN "modelopt_static", NULL), 0);
    has("--activations bf16");
}

/* A copy of a golden in which `from` is replaced by `to`, of the same length, everywhere in one file. */
static void copy_edited(const char *dir, const char *golden, const char *file, const char *from, const char *to)
{
    static char data[1 << 20];
    char path[512];
    size_t count = 0;
    FILE *f;

    snprintf(path, sizeof(path), GOLDEN "%s/%s", golden, file);
    if ((f = fopen(path, "rb")) != NULL) {
        count = fread(data, 1, sizeof(data), f);
        fclose(f);
    }
    for (char *at = data; from && (at = memmem(at, count - (size_t)(at - data), from, strlen(from))) != NULL;) memcpy(at, to, strlen(to));
    snprintf(path, sizeof(path), "%s/%s", dir, file);
    assert_non_null(f = fopen(path, "wb"));
    assert_int_equal(fwrite(data, 1, count, f), count);
    fclose(f);
}

static void broken(const char *golden, const char *from, const char *to, const char *config_from, const char *config_to)
{
    char dir[] = "/tmp/inspect_test.XXXXXX", command[64];

    assert_non_null(mkdtemp(dir));
    copy_edited(dir, golden, "config.json", config_from, config_to);
    copy_edited(dir, golden, "model.safetensors", from, to);
    assert_int_equal(inspect(dir, NULL), 1);
    assert_null(strstr(said, "\nloads\n"));
    has("would not load:");
    snprintf(command, sizeof(command), "rm -r %s", dir);
    assert_int_equal(system(command), 0);
}

static void test_all_problems_are_listed(void **state)
{
    (void)state;
    broken("torchao_row", "down_proj._weight_scale", "down_proj._weight_sca1e", NULL, NULL);
    has("layers.0.mlp.down_proj._weight_qdata: [64, 96] F8_E4M3: codes without");
    has("layers.1.mlp.down_proj._weight_qdata: [64, 96] F8_E4M3: codes without");
    broken("compressed_nvfp4a16", "layers.0.input_layernorm", "layers.0.input_\\u001b[2J", NULL, NULL);
    has("layers.0.input_layernorm.weight: missing");
    assert_null(strchr(said, '\x1b'));
    broken("torchao_row", NULL, NULL, "\"torchao\"", "\"torch40\"");
    has("quant_method = \"torch40\"");
    broken("torchao_row", NULL, NULL, "\"gemma4_unified\"", "\"gemma5_unified\"");
    has("gemma5_unified");
    broken("torchao_row", "\"BF16\"", "\"BF71\"", NULL, NULL);
    has("unknown dtype BF71");
}

static void test_wrong_use(void **state)
{
    char *two[] = { "a", "b" };

    (void)state;
    assert_int_equal(inspect_command(2, two), EXIT_CONFIG);
    assert_int_equal(inspect_command(0, NULL), EXIT_CONFIG);
    assert_int_equal(inspect("/nonexistent/model", NULL), 1);
}

static void test_drafters(void **state)
{
    (void)state;
    assert_int_equal(inspect("tests/golden/dspark", NULL), 0);
    assert_non_null(strstr(said, "DSpark head, for a model of hidden size 32 and 5 layers"));
    assert_non_null(strstr(said, "outputs of layers 0 2 3"));
    assert_non_null(strstr(said, "loads"));
    assert_int_equal(inspect("tests/golden/assistant", NULL), 0);
    assert_non_null(strstr(said, "MTP assistant, for a model of hidden size 48"));
    /* a head without its weights */
    char dir[] = "/tmp/inspect_test.XXXXXX", command[256];
    assert_non_null(mkdtemp(dir));
    snprintf(command, sizeof command, "cp tests/golden/dspark/config.json %s && cp tests/golden/assistant/model.safetensors %s", dir, dir);
    assert_int_equal(system(command), 0);
    assert_int_equal(inspect(dir, NULL), 1);
    assert_non_null(strstr(said, "fc"));
    snprintf(command, sizeof command, "rm -r %s", dir);
    assert_int_equal(system(command), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_drafters), cmocka_unit_test(test_whole_checkpoints),
        cmocka_unit_test(test_all_problems_are_listed),
        cmocka_unit_test(test_wrong_use),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
