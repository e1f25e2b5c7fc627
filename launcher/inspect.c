/* launcher/inspect.c - see inspect.h. Asks the very code that loads a checkpoint, but goes on after a problem and lists them all.
 *
 * Reads every FP8 code and group scale (a NaN among them is a problem), so it takes as long as reading the files does.
 * Owns nothing but what one run needs; allocates no more than the headers of the files justify. */
#include "launcher/inspect.h"
#include "model/format.h"
#include "model/weights.h"
#include "shm/error.h"
#include "shm/stage.h"
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define INSPECT_FORMATS_MAX 8         /* ways to store one kind of matrix within one checkpoint that are listed apart */
#define INSPECT_PROBLEMS_SHOWN 20

struct inspect {
    struct model_files files;
    struct model_config config;
    struct generation_config generation;
    struct quantization quantization;
    struct safetensors index;
    struct model_weights weights;
    bool has_config, has_quantization, has_index, loads;
    uint32_t problems;
};

/* Layers that store one kind of matrix alike. */
struct alike { char text[96]; uint32_t layers; uint64_t bytes; };

/* Names come from the file: what a terminal would obey is not printed. */
static void put_clean(const char *text, uint32_t width)
{
    uint32_t n = 0;

    for (; *text; text++, n++) putchar((unsigned char)*text < 0x20 || *text == 0x7f ? '?' : *text);
    while (n++ < width) putchar(' ');
}

static void problem(struct inspect *in, const char *text)
{
    if (in->problems == 0) printf("\nwould not load:\n");
    if (in->problems++ >= INSPECT_PROBLEMS_SHOWN) return;
    printf("  - ");
    put_clean(text, 0);
    printf("\n");
}

static double megabytes(uint64_t bytes) { return (double)bytes * 1e-6; }

static void show_architecture(const struct inspect *in)
{
    const struct model_config *c = &in->config;

    printf("model          %s, text: %u layers (%u sliding, %u full), hidden %u, MLP %u, vocabulary %u\n",
           c->family == MODEL_GEMMA3 ? "Gemma 3" : "Gemma 4 unified", c->layer_count, c->type_count[LAYER_SLIDING], c->type_count[LAYER_FULL], c->hidden, c->intermediate, c->vocab);
    printf("               %u query heads, window %u, up to %u positions\n", c->q_heads, c->window, c->max_position);
}

static void show_quantization(const struct inspect *in)
{
    const struct quantization *q = &in->quantization;

    printf("quantization   %s%s%s in the configuration\n", quantization_method_name(q->method), q->algorithm[0] ? ", " : "", q->algorithm);
}

static void show_files(const struct inspect *in)
{
    uint64_t bytes = 0;
    uint32_t shards = 0;

    for (uint32_t i = 0; i < in->files.count; i++)
        if (strstr(in->files.file[i].name, ".safetensors") && !strstr(in->files.file[i].name, ".json")) bytes += in->files.file[i].byte_count, shards++;
    printf("files          %u of tensors, %.1f MB; %u tensors\n", shards, megabytes(bytes), in->index.count);
}

/* Every tensor as the file has it. */
static void show_tensors(const struct inspect *in)
{
    char shape[160];

    printf("\n");
    for (uint32_t i = 0; i < in->index.count; i++) {
        format_shape(&in->index.tensor[i], shape, sizeof(shape));
        printf("  ");
        put_clean(in->index.tensor[i].name, 80);
        printf(" %s\n", shape);
    }
}

static void count_alike(struct alike *list, const char *text, uint64_t bytes)
{
    uint32_t i = 0;

    while (i + 1 < INSPECT_FORMATS_MAX && list[i].layers > 0 && strcmp(list[i].text, text) != 0) i++;
    if (list[i].layers == 0) snprintf(list[i].text, sizeof(list[i].text), "%s", text);
    list[i].layers++;
    list[i].bytes += bytes;
}

/* One line for each way in which each of the seven kinds of matrix is stored. */
static void show_modules(const struct inspect *in)
{
    printf("\n  %-20s %6s  %-44s %12s\n", "module", "layers", "stored as", "MB");
    for (uint32_t which = 0; which < MODEL_MATRICES; which++) {
        struct alike list[INSPECT_FORMATS_MAX] = { 0 };
        char text[96];

        for (uint32_t layer = 0; layer < in->config.layer_count; layer++) {
            const struct stored_matrix *m = model_matrix(&in->weights, layer, which);

            if (!m->data) continue;
            format_describe(m, text, sizeof(text));
            count_alike(list, text, stored_bytes(m));
        }
        for (uint32_t i = 0; i < INSPECT_FORMATS_MAX && list[i].layers > 0; i++)
            printf("  %-20s %6u  %-44s %12.1f\n", model_matrix_name(which), list[i].layers, list[i].text, megabytes(list[i].bytes));
    }
    printf("  %-20s %6s  %-44s %12.1f\n", "embed_tokens, head", "", tensor_dtype_name(in->weights.dtype),
           megabytes((uint64_t)in->config.vocab * in->config.hidden * (in->weights.dtype == DTYPE_BF16 ? 2 : 4)));
    printf("  %-20s %6s  %-44s %12.1f\n", "read for each token", "", "", megabytes(in->weights.step_bytes));
}

/* Every layer's matrices by themselves, so that one problem does not hide the next. */
static void find_problems(struct inspect *in, const char *prefix)
{
    struct model_error err = { "" };
    const uint64_t floats = format_floats(&in->index);
    float *room = malloc((floats + 1) * sizeof(float));
    char name[FORMAT_NAME_BYTES];

    for (uint32_t layer = 0; room && layer < in->config.layer_count; layer++)
        for (uint32_t which = 0; which < MODEL_MATRICES; which++) {
            struct format_source source = { .index = &in->index, .quantization = &in->quantization, .err = &err, .room = room, .room_floats = floats };
            struct stored_matrix m;
            uint32_t rows, k;

            if (!model_matrix_shape(&in->config, layer, which, &rows, &k)) continue;
            snprintf(name, sizeof(name), "%slayers.%u.%s", prefix, layer, model_matrix_name(which));
            if (format_matrix(&m, &source, name, rows, k) != 0 || model_matrix_scan(&m, name, &err) != 0) problem(in, err.text);
        }
    free(room);
}

static uint32_t count_names(const struct inspect *in, const char *part, uint64_t *bytes)
{
    uint32_t count = 0;

    for (uint32_t i = 0; i < in->index.count; i++)
        if (strstr(in->index.tensor[i].name, part)) count++, *bytes += in->index.tensor[i].byte_count;
    return count;
}

static void odd(uint32_t *count, const char *format, uint32_t n, double mb)
{
    if (n == 0) return;
    if ((*count)++ == 0) printf("\nworth knowing:\n");
    printf("  - ");
    printf(format, n, mb);
    printf("\n");
}

/* What a person would otherwise ask about. */
static void show_oddities(const struct inspect *in)
{
    static const char *const others[] = { "vision", "audio", "multi_modal_projector" };
    uint32_t count = 0, quantized = 0, n = 0;
    uint64_t bytes = 0, ignored = 0;
    const uint8_t *file;

    for (uint32_t i = 0; i < in->index.count; i++) quantized += in->index.tensor[i].dtype == DTYPE_E4M3 || in->index.tensor[i].dtype == DTYPE_U8;
    for (size_t i = 0; i < sizeof(others) / sizeof(others[0]); i++) n += count_names(in, others[i], &bytes);
    odd(&count, "%u tensors (%.1f MB) belong to pictures and sound and are not text", n, megabytes(bytes));
    odd(&count, "%u scales of a KV cache are in the file and not applied: normed keys and values need none", count_names(in, ".k_scale", &ignored) + count_names(in, ".v_scale", &ignored), 0);
    odd(&count, "its config asks for an FP8 KV cache: served with one, or with --kv-cache-dtype bf16 as it would be without", in->quantization.kv_cache_fp8, 0);
    odd(&count, "%u lm_head tensor is not read: the output matrix is the embedding table", count_names(in, "lm_head.weight", &ignored), 0);
    odd(&count, "its FP4 matrices were made for FP4 activations: here they meet activations as they are", in->quantization.fp4_activations && quantized, 0);
    odd(&count, "quantized tensors, but no quantization_config: activations are left as they are unless a layer has an input_scale", quantized && in->quantization.method == QUANTIZATION_NONE, 0);
    odd(&count, "a quantization_config, but no quantized tensor", !quantized && in->quantization.method != QUANTIZATION_NONE, 0);
    odd(&count, "static activation scales: values beyond 448 times the scale are cut off; --activations bf16 leaves activations alone", in->quantization.fp8_activation == STORED_STATIC && count_names(in, "input_scale", &ignored) && !in->quantization.fp4_activations, 0);
    odd(&count, "no tokenizer.json: it can be inspected, but not served", model_files_find(&in->files, "tokenizer.json", &file, &ignored) != 0, 0);
    odd(&count, "no chat_template.jinja or .json: only plain completions, unless tokenizer_config.json has a template",
        model_files_find(&in->files, "chat_template.jinja", &file, &ignored) != 0 && model_files_find(&in->files, "chat_template.json", &file, &ignored) != 0, 0);
}

/* Is it a drafter's? Then it is shown, and whether it loads. */
static bool inspect_as_drafter(struct inspect *in)
{
    struct model_error err = { "" };
    const int kind = engine_draft_kind(&in->files, &err);

    if (kind < 0) return false;
    if (inspect_drafter(&in->files, (uint32_t)kind, &err) != 0) problem(in, err.text);
    return true;
}

static void inspect_all(struct inspect *in, bool tensors)
{
    struct model_error err = { "" };
    const char *prefix;
    int rc;

    in->has_config = model_config_load(&in->config, &in->generation, &in->files, &err) == 0;
    if (in->has_config) show_architecture(in);
    else problem(in, err.text);
    in->has_quantization = quantization_load(&in->quantization, &in->files, &err) == 0;
    if (in->has_quantization) show_quantization(in);
    else problem(in, err.text);
    in->has_index = safetensors_load(&in->index, &in->files, &err) == 0;
    if (!in->has_index) problem(in, err.text);
    else show_files(in);
    if (in->has_index && tensors) show_tensors(in);
    if (!in->has_config || !in->has_quantization || !in->has_index) return;
    if ((rc = model_weights_load(&in->weights, &in->config, &in->quantization, &in->index, &err)) == 0) {
        show_modules(in);
        show_oddities(in);
        in->loads = true;
    }
    if (model_weights_prefix(&in->index, &prefix, NULL) == 0) find_problems(in, prefix);
    if (rc != 0 && in->problems == 0) problem(in, err.text);       /* not in a matrix: a norm, the table, an unknown tensor */
}

int inspect_command(int argc, char **argv)
{
    static struct inspect in;
    struct model_error err = { "" };
    const char *dir = NULL;
    bool tensors = false, bad = false;

    memset(&in, 0, sizeof(in));
    for (int i = 0; i < argc; i++) {
        if (strcmp(argv[i], "--tensors") == 0) tensors = true;
        else if (argv[i][0] == '-' || dir) bad = true;
        else dir = argv[i];
    }
    if (bad || !dir) {
        const bool asked = argc > 0 && (strcmp(argv[0], "--help") == 0 || strcmp(argv[0], "-h") == 0);
        fprintf(asked ? stdout : stderr, "usage: sluice inspect DIR [--tensors]\n\n"
                                         "What the checkpoint in DIR is, how each kind of matrix is stored, and what would keep it from loading.\n"
                                         "--tensors lists every tensor with its shape and type. Exit code 0: it would load, 1: it would not.\n");
        return asked ? 0 : EXIT_CONFIG;
    }
    if (model_files_open_dir(&in.files, dir, &err) != 0) {
        fprintf(stderr, "sluice: %s\n", err.text);
        return 1;
    }
    safetensors_init(&in.index);
    printf("checkpoint     %s\n", dir);
    if (tensors || !inspect_as_drafter(&in)) inspect_all(&in, tensors);
    if (in.problems > INSPECT_PROBLEMS_SHOWN) printf("  and %u more\n", in.problems - INSPECT_PROBLEMS_SHOWN);
    if (in.problems == 0) printf("\nloads\n");
    model_weights_free(&in.weights);
    safetensors_free(&in.index);
    model_files_close(&in.files);
    return in.problems == 0 ? 0 : 1;
}
