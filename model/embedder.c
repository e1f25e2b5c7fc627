/* model/embedder.c - tensors by one of several names, LayerNorm, products. */
#include "model/embedder.h"

#include "shm/error.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* The spelling of this checkpoint: name under one of the prefixes. NULL: none of them. */
static const char *spell(const struct safetensors *index, const char *const prefixes[], const char *name, char full[FORMAT_NAME_BYTES])
{
    static const char *const ends[] = {"", ".weight", "._weight_qdata", ".weight_packed"};

    for (size_t i = 0; prefixes[i]; i++)
        for (size_t k = 0; k < sizeof ends / sizeof *ends; k++) {
            snprintf(full, FORMAT_NAME_BYTES, "%s%s%s", prefixes[i], name, ends[k]);
            if (!safetensors_find(index, full)) continue;
            full[strlen(full) - strlen(ends[k])] = '\0';
            return full;
        }
    return NULL;
}

static int missing(struct embedder_source *s, const char *prefix, const char *name)
{
    return model_error_set(s->source.err, -E_NOT_FOUND, "tensor %s%s is missing: config.json says that the model has it", prefix, name);
}

int embedder_vector(struct embedder_source *s, const char *const prefixes[], const char *name, uint64_t count, const float **out)
{
    char full[FORMAT_NAME_BYTES], shape[128];

    if (!spell(s->source.index, prefixes, name, full)) return missing(s, prefixes[0], name);
    struct tensor *t = safetensors_find(s->source.index, full);
    uint64_t elements = 1;
    for (uint32_t i = 0; t && i < t->rank; i++) elements *= t->shape[i];
    if (!t || (t->dtype != DTYPE_BF16 && t->dtype != DTYPE_F32) || elements != count) {
        if (t) format_shape(t, shape, sizeof shape);
        return model_error_set(s->source.err, -E_FORMAT, "tensor %.200s is %s; %llu numbers in BF16 or F32 are needed", full, t ? shape : "missing", (unsigned long long)count);
    }
    for (uint64_t i = 0; i < count; i++) s->room[i] = t->dtype == DTYPE_F32 ? ((const float *)t->data)[i] : stored_from_bf16(((const uint16_t *)t->data)[i]);
    t->taken = true;
    *out = s->room;
    s->room += count;
    return 0;
}

int embedder_matrix(struct embedder_source *s, const char *const prefixes[], const char *name, uint32_t rows, uint32_t k, struct stored_matrix *out)
{
    char full[FORMAT_NAME_BYTES];

    if (!spell(s->source.index, prefixes, name, full)) return missing(s, prefixes[0], name);
    return format_matrix(out, &s->source, full, rows, k);
}

#define SUM_LANES 16                  /* as the kernels' sums: a device adds in the same order (kernels/cuda/soft_make.cu) */

static double join(const double lane[SUM_LANES])
{
    double sum[SUM_LANES];

    memcpy(sum, lane, sizeof sum);
    for (uint32_t d = SUM_LANES / 2; d >= 1; d /= 2)
        for (uint32_t l = 0; l < d; l++) sum[l] += sum[l + d];
    return sum[0];
}

void embedder_layer_norm(float *y, const float *x, const float *weight, const float *bias, uint32_t n, float eps)
{
    double sum[SUM_LANES] = {0}, square[SUM_LANES] = {0};

    for (uint32_t i = 0; i < n; i++) sum[i % SUM_LANES] += x[i];
    const double mean = join(sum) / n;
    for (uint32_t i = 0; i < n; i++) square[i % SUM_LANES] += (x[i] - mean) * (x[i] - mean);
    const double scale = 1.0 / sqrt(join(square) / n + (double)eps);
    for (uint32_t i = 0; i < n; i++) y[i] = (float)((x[i] - mean) * scale) * weight[i] + bias[i];
}

void embedder_multiply(const struct kernels *kernels, float *y, const float *x, uint32_t count, const struct stored_matrix *m)
{
    if (m->element == STORED_BF16 || m->element == STORED_F32)
        kernels->linear(y, m->rows, x, m->k, count, m->data, (enum kernels_dtype)m->element, m->k, 0, m->rows);
    else kernels->linear_stored(y, m->rows, x, m->k, NULL, count, m, 0, m->rows);
}
