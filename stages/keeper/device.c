/* stages/keeper/device.c - GPU or CPU? (contract in keeper.h)
 *
 * Reads    options device (auto, cpu, cuda), weights.dtype (auto, bf16, fp8; with random weights fp8-block128 and nvfp4, too), activations, the checkpoint's formats
 * Gives    gpu.formats: how each matrix lies in the GPU's memory
 * Fails    auto: any reason against the GPU becomes one sentence and the CPU is taken; cuda: exit 111 (nothing there) or 100 (not for this model). */
#include "stages/keeper/keeper.h"

#include "model/engine_gpu.h"
#include "shm/error.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const char *asked(const struct keeper *k, const char *option) { return wiring_text(&k->stage.wiring, option, "auto"); }

/* Random weights have the format that was asked for; BF16 otherwise. */
static int random_formats(struct keeper *k, struct cuda_layer_format *formats, char *why, size_t why_bytes)
{
    const char *dtype = asked(k, "weights.dtype");
    const uint32_t format = strcmp(dtype, "auto") == 0 ? WEIGHT_BF16 : engine_weights_format(dtype);

    if (format == 0 || format == WEIGHT_F32) {
        snprintf(why, why_bytes, "--weights-dtype %s: random weights are bf16, fp8, fp8-block128 or nvfp4", dtype);
        return -E_UNSUPPORTED;
    }
    memset(formats, 0, k->config.layer_count * sizeof *formats);
    for (uint32_t i = 0; i < k->config.layer_count; i++)
        for (uint32_t which = 0; which < MODEL_MATRICES; which++) formats[i].format[which] = (uint8_t)format;
    return 0;
}

/* The checkpoint's formats, or what --weights-dtype makes of them: only BF16 can become something else, FP8 with a scale for each row. */
static int choose_formats(struct keeper *k, struct cuda_layer_format *formats, char *why, size_t why_bytes)
{
    const char *dtype = asked(k, "weights.dtype");
    const uint32_t wanted = strcmp(dtype, "auto") == 0 ? 0 : engine_weights_format(dtype);
    const bool activations = strcmp(asked(k, "activations"), "bf16") != 0;
    struct model_error err = {""};

    if (k->random) return random_formats(k, formats, why, why_bytes);
    const int rc = engine_cuda_formats(formats, &k->config, &k->weights, activations, &err);
    if (rc != 0) snprintf(why, why_bytes, "%s", err.text);
    if (rc != 0 || wanted == 0) return rc;
    for (uint32_t i = 0; i < k->config.layer_count; i++)
        for (uint32_t which = 0; which < MODEL_MATRICES; which++) {
            uint8_t *f = &formats[i].format[which];
            if (*f == 0 || *f == wanted) continue;
            if (wanted != WEIGHT_FP8 || *f != WEIGHT_BF16) {
                snprintf(why, why_bytes, "--weights-dtype %s: layers.%u.%s is %s, and only bf16 becomes something else: fp8", dtype, i, model_matrix_name(which), engine_weights_format_name(*f));
                return -E_UNSUPPORTED;
            }
            *f = WEIGHT_FP8;
        }
    return 0;
}

static uint32_t table_format(const struct keeper *k) { return !k->random && k->weights.dtype == DTYPE_F32 ? WEIGHT_F32 : WEIGHT_BF16; }

/* Sizes in the spec do not depend on the number of pages, so any geometry serves. */
static int make_spec(struct keeper *k, uint32_t table, const struct cuda_layer_format *formats, char *why, size_t why_bytes)
{
    struct model_error err = {""};
    int rc = engine_cuda_spec(&k->spec, &k->config, &k->generation, &k->geometry, table, formats, &err);

    if (rc == 0) k->weights_bytes = k->lib.weights_bytes(&k->spec);
    if (rc == 0 && k->weights_bytes != 0) return 0;
    snprintf(why, why_bytes, "%s", rc != 0 && err.text[0] ? err.text : "the kernels are not made for the shapes of this model in these formats");
    return -E_UNSUPPORTED;
}

/* "fp8", or all that there are: "bf16+nvfp4". */
static void name_formats(const struct keeper *k, const struct cuda_layer_format *formats, char *text, size_t bytes)
{
    uint32_t found = 0;

    for (uint32_t i = 0; i < k->config.layer_count; i++)
        for (uint32_t which = 0; which < MODEL_MATRICES; which++) found |= 1u << formats[i].format[which];
    text[0] = '\0';
    for (uint32_t f = 1; f < WEIGHT_FORMATS; f++) {
        const size_t at = strlen(text);
        if (found >> f & 1) snprintf(text + at, bytes - at, "%s%s", at ? "+" : "", engine_weights_format_name(f));
    }
}

/* The formats for the stages: a sealed file of one record for each layer. */
static int send_formats(struct keeper *k, const struct cuda_layer_format *formats, char *why, size_t why_bytes)
{
    const size_t bytes = k->config.layer_count * sizeof *formats;
    const int fd = memfd_create("gpu.formats", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    char names[64];

    if (fd < 0 || write(fd, formats, bytes) != (ssize_t)bytes || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE) != 0) {
        snprintf(why, why_bytes, "the list of formats cannot be made: %s", strerror(errno));
        return -E_NOMEM;
    }
    name_formats(k, formats, names, sizeof names);
    wiring_set(&k->out, "gpu.weights_format", names);
    wiring_set(&k->out, "gpu.table_format", engine_weights_format_name(table_format(k)));
    wiring_add_fd(&k->out, "gpu.formats", fd);
    return 0;
}

/* 0, or why there will be no GPU. */
static int try_cuda(struct keeper *k, char *why, size_t why_bytes)
{
    static struct cuda_layer_format formats[MODEL_LAYERS_MAX];
    int rc = cuda_library_open(&k->lib, NULL, why, why_bytes);

    if (rc != 0) return rc;
    if ((rc = k->lib.device_open(&k->facts)) != 0) {
        snprintf(why, why_bytes, "%s", k->lib.backend_error());
        return rc;
    }
    rc = choose_formats(k, formats, why, why_bytes);
    if (rc == 0) rc = make_spec(k, table_format(k), formats, why, why_bytes);
    if (rc == 0) rc = send_formats(k, formats, why, why_bytes);
    if (rc != 0) {
        k->lib.device_close();
        return rc;
    }
    wiring_set(&k->out, "gpu.name", k->facts.name);
    wiring_set(&k->out, "gpu.library", k->lib.path);
    wiring_setf(&k->out, "gpu.weights_bytes", "%llu", (unsigned long long)k->weights_bytes);
    return 0;
}

void device_choose(struct keeper *k, char *why, size_t why_bytes)
{
    const char *device = asked(k, "device.asked");

    why[0] = '\0';
    k->cuda = strcmp(device, "cpu") != 0 && try_cuda(k, why, why_bytes) == 0;
    if (!k->cuda && strcmp(device, "cuda") == 0)
        stage_exit(&k->stage, EXIT_MISSING, "--device cuda: %s; --device cpu serves without a GPU", why);
    if (!k->cuda && k->random)
        stage_exit(&k->stage, EXIT_CONFIG, "--random-weights needs a GPU%s%s; give a checkpoint with --model DIR to serve on the CPU", why[0] ? ": " : "", why);
    if (!k->cuda && strcmp(asked(k, "weights.dtype"), "auto") != 0 && strcmp(asked(k, "weights.dtype"), "bf16") != 0)
        stage_exit(&k->stage, EXIT_CONFIG, "--weights-dtype needs a GPU%s%s; on the CPU weights are computed as the checkpoint has them", why[0] ? ": " : "", why);
    wiring_set(&k->out, "device", k->cuda ? "cuda" : "cpu");
    if (!k->cuda) wiring_set(&k->out, "device.why", why);
}

void device_reopen(struct keeper *k)
{
    const struct wiring *w = &k->stage.wiring;
    static struct cuda_layer_format formats[MODEL_LAYERS_MAX];
    char why[512] = "";

    engine_gpu_formats(&k->stage, formats, k->config.layer_count);
    k->cuda = true;
    int rc = cuda_library_open(&k->lib, wiring_text(w, "gpu.library", NULL), why, sizeof why);
    if (rc == 0 && (rc = k->lib.device_open(&k->facts)) != 0) snprintf(why, sizeof why, "%s", k->lib.backend_error());
    if (rc == 0) rc = make_spec(k, engine_weights_format(wiring_text(w, "gpu.table_format", "bf16")), formats, why, sizeof why);
    if (rc != 0) stage_exit(&k->stage, EXIT_MISSING, "the GPU cannot be opened again: %s", why);
}
