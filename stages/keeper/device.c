/* stages/keeper/device.c - GPU or CPU? (contract in keeper.h)
 *
 * Reads    options device (auto, cpu, cuda), weights.dtype (auto, bf16, fp8), the checkpoint's formats
 * Fails    auto: any reason against the GPU becomes one sentence and the CPU is taken; cuda: exit 111 (nothing there) or 100 (not for this model). */
#include "stages/keeper/keeper.h"

#include "shm/error.h"

#include <stdio.h>
#include <string.h>

static const char *asked(const struct keeper *k, const char *option) { return wiring_text(&k->stage.wiring, option, "auto"); }

static bool is_row_scaled(const struct stored_matrix *m)
{
    return m->element == STORED_E4M3 && m->scale_columns >= m->k && (m->scale_rows == 1 || m->scale_rows >= m->rows);
}

/* One format for all matrices of the layers; -E_UNSUPPORTED with the reason. */
static int stored_format(const struct keeper *k, uint32_t *format, char *why, size_t why_bytes)
{
    uint32_t found = 0;

    if (k->random) {
        *format = WEIGHT_BF16;
        return 0;
    }
    for (uint32_t i = 0; i < k->config.layer_count; i++)
        for (uint32_t which = 0; which < MODEL_MATRICES; which++) {
            const struct stored_matrix *m = model_matrix(&k->weights, i, which);
            if (!m->data) continue;
            const uint32_t f = m->element == STORED_BF16 ? WEIGHT_BF16 : m->element == STORED_F32 ? WEIGHT_F32 : is_row_scaled(m) ? WEIGHT_FP8 : 0;
            if (f == 0) { /* what the format says about activations is for the CPU: here they stay BF16 */
                snprintf(why, why_bytes, "layers.%u.%s is stored in a format that the GPU does not compute yet", i, model_matrix_name(which));
                return -E_UNSUPPORTED;
            }
            if (found && f != found) {
                snprintf(why, why_bytes, "layers.%u.%s is stored otherwise than the matrices before it; --weights-dtype fp8 makes them alike", i, model_matrix_name(which));
                if (strcmp(asked(k, "weights.dtype"), "fp8") != 0) return -E_UNSUPPORTED;
            }
            found = f;
        }
    *format = found;
    return 0;
}

static int choose_format(const struct keeper *k, uint32_t *format, char *why, size_t why_bytes)
{
    const char *dtype = asked(k, "weights.dtype");
    const int rc = stored_format(k, format, why, why_bytes);

    if (rc != 0) return rc;
    if (strcmp(dtype, "bf16") == 0 && *format != WEIGHT_BF16) {
        snprintf(why, why_bytes, "--weights-dtype bf16: the checkpoint's weights are not BF16");
        return -E_UNSUPPORTED;
    }
    if (strcmp(dtype, "fp8") == 0) *format = WEIGHT_FP8;
    return 0;
}


/* Sizes in the spec do not depend on the number of pages, so any geometry serves. */
static int make_spec(struct keeper *k, uint32_t format, char *why, size_t why_bytes)
{
    struct model_error err = {""};
    int rc = engine_cuda_spec(&k->spec, &k->config, &k->generation, &k->geometry, format, &err);

    if (rc == 0) k->weights_bytes = k->lib.weights_bytes(&k->spec);
    if (rc == 0 && k->weights_bytes != 0) return 0;
    snprintf(why, why_bytes, "%s", rc != 0 && err.text[0] ? err.text : format == WEIGHT_FP8 ? "the GPU computes FP8 weights only in the shapes of Gemma 4 12B, with a BF16 KV cache" : "the kernels are not made for the shapes of this model");
    return -E_UNSUPPORTED;
}

/* 0, or why there will be no GPU. */
static int try_cuda(struct keeper *k, char *why, size_t why_bytes)
{
    uint32_t format;
    int rc = cuda_library_open(&k->lib, NULL, why, why_bytes);

    if (rc != 0) return rc;
    if ((rc = k->lib.device_open(&k->facts)) != 0) {
        snprintf(why, why_bytes, "%s", k->lib.backend_error());
        return rc;
    }
    rc = choose_format(k, &format, why, why_bytes);
    if (rc == 0) rc = make_spec(k, format, why, why_bytes);
    if (rc != 0) {
        k->lib.device_close();
        return rc;
    }
    wiring_set(&k->out, "gpu.name", k->facts.name);
    wiring_set(&k->out, "gpu.library", k->lib.path);
    wiring_set(&k->out, "gpu.weights_format", engine_weights_format_name(format));
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
    if (!k->cuda && strcmp(asked(k, "weights.dtype"), "fp8") == 0)
        stage_exit(&k->stage, EXIT_CONFIG, "--weights-dtype fp8 needs a GPU%s%s; on the CPU weights are computed as the checkpoint has them", why[0] ? ": " : "", why);
    wiring_set(&k->out, "device", k->cuda ? "cuda" : "cpu");
    if (!k->cuda) wiring_set(&k->out, "device.why", why);
}

void device_reopen(struct keeper *k)
{
    const struct wiring *w = &k->stage.wiring;
    const char *name = wiring_text(w, "gpu.weights_format", "");
    const uint32_t format = engine_weights_format(name);
    char why[512] = "";

    if (!format) stage_exit(&k->stage, EXIT_CONFIG, "gpu.weights_format is \"%s\", known are fp8, bf16 and f32", name);
    k->cuda = true;
    int rc = cuda_library_open(&k->lib, wiring_text(w, "gpu.library", NULL), why, sizeof why);
    if (rc == 0 && (rc = k->lib.device_open(&k->facts)) != 0) snprintf(why, sizeof why, "%s", k->lib.backend_error());
    if (rc == 0) rc = make_spec(k, format, why, sizeof why);
    if (rc != 0) stage_exit(&k->stage, EXIT_MISSING, "the GPU cannot be opened again: %s", why);
}
