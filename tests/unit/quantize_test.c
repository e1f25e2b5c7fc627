/* tests/unit/quantize_test.c - `sluice quantize`: the very codes and scales that the formats' own packages write, and files that are whole or not there.
 *
 * The packages' files are tests/golden/formats; the weights they were made from are hashes, computed here again. */
#include "launcher/quantize.h"
#include "shm/error.h"
#include "shm/stage.h"
#include "tests/synthetic.h"
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <cmocka.h>

#define GOLDEN "tests/golden/formats/"
#define SOURCE "tests/golden/forward/shards"   /* a checkpoint of several shards */

/* ---- codes ---- */

static void test_codes_are_the_nearest(void **state)
{
    static const struct { float value; uint8_t code; } known[] = {
        { 0x1p-10f, 0x00 }, { 0x1.8p-10f, 0x01 }, { 0x1p-9f, 0x01 }, { 0x1p-6f, 0x08 }, { 0.1f, 0x1d }, { -0.3f, 0xaa }, { 1, 0x38 }, { 1.0625f, 0x38 },
        { 1.1875f, 0x3a }, { 240, 0x77 }, { 447, 0x7e }, { 448, 0x7e }, { 464, 0x7e }, { 480, 0x7e }, { -1e9f, 0xfe }, { 0, 0 }, { -0.0f, 0x80 },
    };

    (void)state;
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) assert_int_equal(quantize_e4m3(known[i].value), known[i].code);
    for (uint32_t c = 0; c < 256; c++)
        if ((c & 0x7f) != 0x7f) assert_int_equal(quantize_e4m3(stored_from_e4m3((uint8_t)c)), c);
    for (uint32_t c = 0; c < 0x7e; c++) {                    /* between neighbours: to the nearer, in the middle to the even */
        const float low = stored_from_e4m3((uint8_t)c), high = stored_from_e4m3((uint8_t)(c + 1)), middle = (low + high) / 2;

        assert_int_equal(quantize_e4m3(middle), c % 2 == 0 ? c : c + 1);
        assert_int_equal(quantize_e4m3(nextafterf(middle, 0)), c);
        assert_int_equal(quantize_e4m3(nextafterf(middle, 1e9f)), c + 1);
    }
    for (uint32_t c = 0; c < 7; c++) {
        const float middle = (stored_from_e2m1(c) + stored_from_e2m1(c + 1)) / 2;

        assert_int_equal(quantize_e2m1(middle), c % 2 == 0 ? c : c + 1);
        assert_int_equal(quantize_e2m1(nextafterf(middle, 0)), c);
        assert_int_equal(quantize_e2m1(-nextafterf(middle, 1e9f)), (c + 1) | 8);
    }
    assert_int_equal(quantize_e2m1(1e9f), 7);
}

/* A row of 32 with the numbers that compressed-tensors gives: one factor, two scales, 32 codes. */
static void test_a_known_row_of_fp4(void **state)
{
    static const uint16_t weights[32] = {
        0x3CA4, 0xBC34, 0x3D0B, 0x0000, 0xBD76, 0x3AC5, 0x3D38, 0xBCEE, 0x3D6A, 0xBC03, 0x3C55, 0xBCB8, 0x3B45, 0x3D1A, 0xBD51, 0x3BC5,
        0x3E4D, 0xBDCD, 0x3D4D, 0x3CCD, 0xBE1A, 0x3DF6, 0xBD8F, 0x3C24, 0x3E38, 0xBE43, 0x3D0F, 0x3DB8, 0xBBA4, 0x3DE1, 0xBD80, 0x3E0F,
    };
    static const uint8_t expected[16] = { 0xa4, 0x06, 0x0f, 0xd6, 0xa7, 0xc3, 0x61, 0x1f, 0xd7, 0x23, 0x6e, 0x1c, 0xf7, 0x52, 0x58, 0x6c };
    const struct stored_matrix from = { .data = weights, .rows = 1, .k = 32, .element = STORED_BF16 };
    uint8_t codes[16], scales[2];
    struct quantize_job job = { .from = &from, .format = QUANTIZE_NVFP4A16, .codes = codes, .scales = scales };

    (void)state;
    assert_true(quantize_largest(&from, 0, 1) == 0x1.9ap-3f);
    assert_true((job.whole = quantize_whole(QUANTIZE_NVFP4A16, 0x1.9ap-3f)) == 13440.0f);
    quantize_rows(&job, 0, 1);
    assert_true(scales[0] == 0x70 && scales[1] == 0x7e);
    assert_memory_equal(codes, expected, sizeof(expected));
}

static void test_zeros_get_scales_that_readers_take(void **state)
{
    static const uint16_t weights[2 * 128];
    const struct stored_matrix from = { .data = weights, .rows = 2, .k = 128, .element = STORED_BF16 };
    uint8_t codes[256], groups[16];
    uint16_t rows16[2];
    float rows[2];

    (void)state;
    for (int f = QUANTIZE_FP8_ROW; f <= QUANTIZE_NVFP4A16; f++) {
        struct quantize_job job = { .from = &from, .format = (enum quantize_format)f, .codes = codes, .whole = quantize_whole((enum quantize_format)f, 0) };

        job.scales = f == QUANTIZE_NVFP4A16 ? (void *)groups : f == QUANTIZE_FP8_DYNAMIC ? (void *)rows16 : rows;
        memset(codes, 0x55, sizeof(codes));
        quantize_rows(&job, 0, 2);
        for (uint32_t i = 0; i < (f == QUANTIZE_NVFP4A16 ? 128 : 256); i++) assert_int_equal(codes[i], 0);
        assert_true(job.whole > 0);
        assert_true(f == QUANTIZE_NVFP4A16 ? groups[15] == 0x20 : f == QUANTIZE_FP8_DYNAMIC ? rows16[1] == 0x3c00 : f == QUANTIZE_FP8_STATIC || rows[0] == 0x1p-7f);
    }
}

/* ---- against the packages ---- */

/* The weights that make_format_golden.py gave to the package. */
static uint16_t *source_weights(const struct model_config *config, uint32_t layer, uint32_t which, uint32_t rows, uint32_t k)
{
    uint16_t *out = malloc((uint64_t)rows * k * 2);
    struct synthetic_tensor t = { .rows = rows, .columns = k };
    float amplitude, middle;
    uint64_t seed;

    snprintf(t.name, sizeof(t.name), "layers.%u.%s.weight", layer, model_matrix_name(which));
    seed = synthetic_fnv1a(t.name);
    synthetic_rule(&t, config->norm_plus_one, &amplitude, &middle);
    for (uint64_t i = 0; i < (uint64_t)rows * k; i++) {
        const float value = (synthetic_hash(seed, i) * amplitude + middle) * (i / k % 29 == 0 ? 8 : 1);
        uint32_t bits;

        memcpy(&bits, &value, 4);
        out[i] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
    return out;
}

static float round_bf16(float value)
{
    uint32_t bits;

    memcpy(&bits, &value, 4);
    return stored_from_bf16((uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16));
}

struct pair { const char *golden; enum quantize_format format; bool rounds_quotient; };

/* Codes and scales of one matrix. Where the package rounds w / scale to BF16 on the way, that must explain every other code. */
static void check_matrix(const struct pair *p, const struct model_config *config, const struct stored_matrix *golden, uint32_t layer, uint32_t which, float whole, uint64_t *other)
{
    uint16_t *weights = source_weights(config, layer, which, golden->rows, golden->k);
    const struct stored_matrix from = { .data = weights, .rows = golden->rows, .k = golden->k, .element = STORED_BF16 };
    const uint64_t code_bytes = stored_code_bytes(golden->element, (uint64_t)golden->rows * golden->k), scale_bytes = quantize_scale_bytes(p->format, golden->rows, golden->k);
    struct quantize_job job = { .from = &from, .format = p->format, .whole = whole, .codes = malloc(code_bytes), .scales = calloc(1, scale_bytes) };
    const uint8_t *theirs = golden->data;

    for (uint32_t row = 0; row < golden->rows; row += 128) quantize_rows(&job, row, golden->rows - row < 128 ? golden->rows : row + 128);
    if (p->format == QUANTIZE_NVFP4A16) assert_memory_equal(job.scales, golden->group_scale, scale_bytes);
    else if (p->format == QUANTIZE_FP8_STATIC) assert_true(whole == golden->scale[0]);
    else if (p->format == QUANTIZE_FP8_DYNAMIC)
        for (uint32_t i = 0; i < golden->rows; i++) assert_true(stored_from_bf16(((uint16_t *)job.scales)[i]) == golden->scale[i]);
    else assert_memory_equal(job.scales, golden->scale, scale_bytes);
    for (uint64_t i = 0; i < code_bytes; i++) {
        if (job.codes[i] == theirs[i]) continue;
        if (!p->rounds_quotient || quantize_e4m3(round_bf16(stored_from_bf16(weights[i]) / golden->scale[p->format == QUANTIZE_FP8_STATIC ? 0 : i / golden->k])) != theirs[i])
            fail_msg("%s: layer %u %s: code %llu is %02x, the package has %02x", p->golden, layer, model_matrix_name(which), (unsigned long long)i, job.codes[i], theirs[i]);
        ++*other;
    }
    free(weights);
    free(job.codes);
    free(job.scales);
}

/* The largest weight of the matrices first .. last of a layer. */
static float largest(const struct model_config *config, const struct model_weights *w, uint32_t layer, uint32_t first, uint32_t last)
{
    float most = 0;

    for (uint32_t which = first; which <= last; which++) {
        const struct stored_matrix *m = model_matrix(w, layer, which);
        uint16_t *weights;
        float one;

        if (!m->data) continue;
        weights = source_weights(config, layer, which, m->rows, m->k);
        one = quantize_largest(&(struct stored_matrix){ .data = weights, .rows = m->rows, .k = m->k, .element = STORED_BF16 }, 0, m->rows);
        if (one > most) most = one;
        free(weights);
    }
    return most;
}

static void test_the_packages_write_the_same(void **state)
{
    static const struct pair pairs[] = {
        { "torchao_row", QUANTIZE_FP8_ROW, false }, { "compressed_dynamic", QUANTIZE_FP8_DYNAMIC, true }, { "modelopt_static", QUANTIZE_FP8_STATIC, true },
        { "modelopt_block128", QUANTIZE_FP8_BLOCK128, false }, { "compressed_nvfp4a16", QUANTIZE_NVFP4A16, false },
    };
    static const uint32_t group[MODEL_MATRICES][2] = { { 0, 2 }, { 0, 2 }, { 0, 2 }, { 3, 3 }, { 4, 5 }, { 4, 5 }, { 6, 6 } };

    (void)state;
    for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++) {
        const bool shared = pairs[i].format == QUANTIZE_NVFP4A16;
        struct generation_config generation;
        struct model_weights weights;
        struct model_config config;
        struct model_files files;
        struct model_error err;
        uint64_t other = 0, all = 0;
        char dir[128];

        snprintf(dir, sizeof(dir), GOLDEN "%s", pairs[i].golden);
        if (model_files_open_dir(&files, dir, &err) != 0 || model_load(&config, &generation, &weights, &files, &err) != 0) fail_msg("%s", err.text);
        for (uint32_t layer = 0; layer < config.layer_count; layer++)
            for (uint32_t which = 0; which < MODEL_MATRICES; which++) {
                const struct stored_matrix *m = model_matrix(&weights, layer, which);
                const float whole = m->data ? quantize_whole(pairs[i].format, largest(&config, &weights, layer, shared ? group[which][0] : which, shared ? group[which][1] : which)) : 0;

                if (!m->data) continue;
                if (shared) assert_true(whole == m->global);
                check_matrix(&pairs[i], &config, m, layer, which, whole, &other);
                all += (uint64_t)m->rows * m->k;
            }
        print_message("  %-20s %llu of %llu codes differ by the package's rounding of quotients\n", pairs[i].golden, (unsigned long long)other, (unsigned long long)all);
        assert_true(other < all / 20);
        model_weights_free(&weights);
        model_files_close(&files);
    }
}

static void test_least_squares_only_improves(void **state)
{
    uint16_t *weights;
    struct model_config config = { .norm_plus_one = false };
    struct stored_matrix from = { .rows = 128, .k = 128, .element = STORED_BF16 };
    uint8_t codes[2][128 * 128];
    float scale[2];
    double error[2] = { 0 };

    (void)state;
    from.data = weights = source_weights(&config, 0, 4, 128, 128);
    weights[77] = 0x4348;                            /* an outlier: 200 */
    for (int i = 0; i < 2; i++) {
        const struct quantize_job job = { .from = &from, .format = QUANTIZE_FP8_BLOCK128, .least_squares = i == 1, .codes = codes[i], .scales = &scale[i] };
        const struct stored_matrix result = { .data = codes[i], .scale = &scale[i], .rows = 128, .k = 128, .scale_rows = 128, .scale_columns = 128, .element = STORED_E4M3 };

        quantize_rows(&job, 0, 128);
        for (uint32_t at = 0; at < 128 * 128; at++) error[i] += pow((double)(stored_value(&result, at / 128, at % 128) - stored_from_bf16(weights[at])), 2);
    }
    assert_true(error[1] <= error[0]);
    free(weights);
}

/* ---- the command ---- */

static char root[64];

static int quantize(const char *in, const char *out, const char *format, const char *option, const char *value)
{
    char *argv[] = { (char *)in, (char *)out, "--format", (char *)format, (char *)option, (char *)value };
    const int null = open("/dev/null", O_WRONLY), err = dup(2);
    int rc;

    fflush(stderr);
    dup2(null, 2);
    rc = quantize_command(option ? value ? 6 : 5 : 4, argv);
    dup2(err, 2);
    close(err);
    close(null);
    return rc;
}

static const char *path(const char *name)
{
    static char text[4][128];
    static int next;

    next = (next + 1) % 4;
    snprintf(text[next], sizeof(text[next]), "%s/%s", root, name);
    return text[next];
}

static bool exists(const char *name) { return access(path(name), F_OK) == 0; }

/* Loads what was written; every matrix must be near the source's. */
static void check_output(const char *name, double tolerance, uint32_t activation)
{
    struct generation_config generation;
    struct model_weights weights[2];
    struct model_config config[2];
    struct model_files files[2];
    struct model_error err;

    for (int i = 0; i < 2; i++)
        if (model_files_open_dir(&files[i], i ? path(name) : SOURCE, &err) != 0 || model_load(&config[i], &generation, &weights[i], &files[i], &err) != 0) fail_msg("%s: %s", name, err.text);
    for (uint32_t layer = 0; layer < config[0].layer_count; layer++)
        for (uint32_t which = 0; which < MODEL_MATRICES; which++) {
            const struct stored_matrix *a = model_matrix(&weights[0], layer, which), *b = model_matrix(&weights[1], layer, which);
            double off = 0, size = 0;

            if (!a->data) continue;
            assert_int_equal(b->activation, activation);
            for (uint64_t at = 0; at < (uint64_t)a->rows * a->k; at++) {
                const double want = (double)stored_value(a, at / a->k, at % a->k), got = (double)stored_value(b, at / a->k, at % a->k);

                off += (got - want) * (got - want);
                size += want * want;
            }
            assert_true(sqrt(off / size) < tolerance);
        }
    for (int i = 0; i < 2; i++) {
        model_weights_free(&weights[i]);
        model_files_close(&files[i]);
    }
}

static void test_the_command_writes_whole_checkpoints(void **state)
{
    char command[128];
    FILE *file;
    int fd;

    (void)state;
    snprintf(root, sizeof(root), "/tmp/quantize_test.XXXXXX");
    assert_non_null(mkdtemp(root));
    /* an FP8 code is within 2^-4 of its value, uniformly: 2^-4 / sqrt(3) at worst, less in the mean; FP4's steps are at most a third */
    assert_int_equal(quantize(SOURCE, path("row"), "fp8-row", "--threads", "2"), 0);
    check_output("row", 0.04, STORED_TOKEN);
    assert_true(!exists("row.partial") && exists("row/model.safetensors.index.json"));
    assert_int_equal(mkdir(path("block.partial"), 0755), 0);   /* left by a run that was killed */
    assert_non_null(file = fopen(path("block.partial/config.json"), "w"));
    fputs("{", file);
    fclose(file);
    assert_non_null(file = fopen(path("block.partial/model-00009-of-00009.safetensors"), "w"));      /* of another checkpoint */
    fclose(file);
    assert_true((fd = open(path("block.partial"), O_RDONLY | O_DIRECTORY)) >= 0 && flock(fd, LOCK_EX) == 0);
    assert_int_equal(quantize(SOURCE, path("block"), "fp8-block128", NULL, NULL), 1);      /* somebody writes there */
    assert_true(!exists("block") && exists("block.partial/model-00009-of-00009.safetensors"));
    close(fd);
    assert_int_equal(quantize(SOURCE, path("block"), "fp8-block128", "--least-squares", NULL), 0);
    check_output("block", 0.04, STORED_AS_IS);
    assert_true(!exists("block.partial") && exists("block/hf_quant_config.json") && !exists("block/model-00009-of-00009.safetensors"));
    assert_int_equal(quantize(SOURCE, path("dynamic"), "fp8-dynamic", NULL, NULL), 0);
    check_output("dynamic", 0.04, STORED_TOKEN);
    assert_int_equal(quantize(SOURCE, path("fp4"), "nvfp4a16", "--threads", "1"), 0);
    check_output("fp4", 0.15, STORED_AS_IS);
    /* what cannot be: OUT is there, the input is quantized, no text to calibrate with, unknown words */
    assert_int_equal(quantize(SOURCE, path("fp4"), "fp8-row", NULL, NULL), 1);
    assert_int_equal(quantize(path("fp4"), path("again"), "fp8-row", NULL, NULL), 1);
    assert_int_equal(quantize(SOURCE, path("static"), "fp8-static", NULL, NULL), EXIT_CONFIG);
    assert_int_equal(quantize(SOURCE, path("static"), "fp8-static", "--calibration", "/nonexistent"), 1);
    assert_int_equal(quantize(SOURCE, path("x"), "fp9", NULL, NULL), EXIT_CONFIG);
    assert_int_equal(quantize(SOURCE, path("x"), "fp8-row", "--least-squares", NULL), EXIT_CONFIG);
    assert_int_equal(quantize(SOURCE, path("no/such/place"), "fp8-row", NULL, NULL), 1);
    assert_true(!exists("again") && !exists("static") && !exists("x"));
    snprintf(command, sizeof(command), "rm -r %s", root);
    assert_int_equal(system(command), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_codes_are_the_nearest),
        cmocka_unit_test(test_a_known_row_of_fp4),
        cmocka_unit_test(test_zeros_get_scales_that_readers_take),
        cmocka_unit_test(test_the_packages_write_the_same),
        cmocka_unit_test(test_least_squares_only_improves),
        cmocka_unit_test(test_the_command_writes_whole_checkpoints),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
