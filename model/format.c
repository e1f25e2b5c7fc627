/* model/format.c - see format.h. What is there decides; the config is asked only for the activation rule. */
#include "model/format.h"
#include "shm/error.h"
#include "shm/must.h"
#include <stdio.h>
#include <string.h>

#define FORMAT_SCALE_MAX 0x1p100f     /* kernels shift exponents by a few bits; a real scale is below 1 */

void format_shape(const struct tensor *t, char *text, size_t bytes)
{
    size_t used = (size_t)snprintf(text, bytes, "[");

    for (uint32_t i = 0; i < t->rank && used < bytes; i++)
        used += (size_t)snprintf(text + used, bytes - used, "%s%llu", i ? ", " : "", (unsigned long long)t->shape[i]);
    if (used < bytes) snprintf(text + used, bytes - used, "] %s", tensor_dtype_name(t->dtype));
}

static int wrong(const struct format_source *s, const struct tensor *t, int code, const char *why)
{
    char shape[160];

    format_shape(t, shape, sizeof(shape));
    return model_error_set(s->err, code, "tensor %.200s: %s: %s", t->name, shape, why);
}

/* name + suffix, marked as taken; NULL when it is not there. */
static struct tensor *take(const struct format_source *s, const char *name, const char *suffix)
{
    char full[FORMAT_NAME_BYTES];
    struct tensor *t;

    snprintf(full, sizeof(full), "%s%s", name, suffix);
    if ((t = safetensors_find(s->index, full)) != NULL) t->taken = true;
    return t;
}

static bool is_scale_name(const char *name)
{
    static const char *const ends[] = { "weight_scale", "weight_scale_inv", "weight:scale" };
    const size_t length = strlen(name);

    for (size_t i = 0; i < sizeof(ends) / sizeof(ends[0]); i++)
        if (length >= strlen(ends[i]) && strcmp(name + length - strlen(ends[i]), ends[i]) == 0) return true;
    return false;
}

static bool is_widened(enum tensor_dtype dtype) { return dtype == DTYPE_F32 || dtype == DTYPE_BF16 || dtype == DTYPE_F16; }

uint64_t format_floats(const struct safetensors *index)
{
    uint64_t floats = 0;

    for (uint32_t i = 0; i < index->count; i++)      /* no more than there are bytes in the files */
        if (is_scale_name(index->tensor[i].name) && is_widened(index->tensor[i].dtype)) floats += index->tensor[i].byte_count / 2;
    return floats;
}

static float from_f16(uint16_t code)
{
    const int exponent = code >> 10 & 31;
    const float mantissa = (float)(code & 1023);
    const float size = exponent == 31 ? (code & 1023 ? NAN : INFINITY) : exponent == 0 ? ldexpf(mantissa, -24) : ldexpf(1024 + mantissa, exponent - 25);

    return code & 0x8000 ? -size : size;
}

static float element(const struct tensor *t, uint64_t i)
{
    if (t->dtype == DTYPE_F32) return ((const float *)t->data)[i];
    if (t->dtype == DTYPE_F16) return from_f16(((const uint16_t *)t->data)[i]);
    return stored_from_bf16(((const uint16_t *)t->data)[i]);
}

static int scale_ok(const struct format_source *s, const struct tensor *t, uint64_t i, float value)
{
    char why[96];

    if (value > 0 && value <= FORMAT_SCALE_MAX) return 0;
    snprintf(why, sizeof(why), "element %llu is %g, a scale must be positive and finite", (unsigned long long)i, (double)value);
    return wrong(s, t, -E_FORMAT, why);
}

static bool shape_is(const struct tensor *t, uint64_t rows, uint64_t columns)
{
    return t->rank == 2 && t->shape[0] == rows && t->shape[1] == columns;
}

static int want_codes(const struct format_source *s, const struct tensor *t, enum tensor_dtype dtype, uint64_t rows, uint64_t columns)
{
    char why[128];

    if (t->dtype == dtype && shape_is(t, rows, columns)) return 0;
    snprintf(why, sizeof(why), "the configuration asks for [%llu, %llu] %s", (unsigned long long)rows, (unsigned long long)columns, tensor_dtype_name(dtype));
    return wrong(s, t, t->dtype == dtype ? -E_FORMAT : -E_UNSUPPORTED, why);
}

/* One value of F32, shape [] or [1]. */
static int scalar(const struct format_source *s, const struct tensor *t, float *value)
{
    if (t->dtype != DTYPE_F32 || t->rank > 1 || t->byte_count != 4) return wrong(s, t, -E_FORMAT, "must be one F32");
    *value = element(t, 0);
    return scale_ok(s, t, 0, *value);
}

/* ---- FP8 ---- */

/* What block of the matrix a scale belongs to, by the shape of the scales. */
static int scale_grid(struct stored_matrix *m, const struct format_source *s, const struct tensor *t)
{
    const uint64_t down = ((uint64_t)m->rows + STORED_BLOCK - 1) / STORED_BLOCK, across = ((uint64_t)m->k + STORED_BLOCK - 1) / STORED_BLOCK;
    uint64_t elements = 1;
    char why[160];

    for (uint32_t i = 0; i < t->rank; i++) elements *= t->shape[i];
    if (elements == 1) m->scale_rows = m->rows, m->scale_columns = m->k;
    else if ((t->rank == 1 && t->shape[0] == m->rows) || shape_is(t, m->rows, 1)) m->scale_rows = 1, m->scale_columns = m->k;
    else if (shape_is(t, down, across) || (t->rank == 4 && t->shape[0] == down && t->shape[1] == 1 && t->shape[2] == across && t->shape[3] == 1))
        m->scale_rows = m->scale_columns = STORED_BLOCK;
    else {
        snprintf(why, sizeof(why), "for [%u, %u] codes there is one scale, or [%u, 1], or [%llu, %llu] (blocks of 128)", m->rows, m->k, m->rows,
                 (unsigned long long)down, (unsigned long long)across);
        return wrong(s, t, -E_FORMAT, why);
    }
    return 0;
}

static int take_scales(struct stored_matrix *m, struct format_source *s, const struct tensor *t)
{
    uint64_t count;
    int rc;

    if (!is_widened(t->dtype)) return wrong(s, t, -E_UNSUPPORTED, "scales of FP8 codes are F32, BF16 or F16");
    if ((rc = scale_grid(m, s, t)) != 0) return rc;
    count = t->byte_count / (t->dtype == DTYPE_F32 ? 4 : 2);
    must(count <= s->room_floats);
    for (uint64_t i = 0; i < count; i++)
        if ((rc = scale_ok(s, t, i, s->room[i] = element(t, i))) != 0) return rc;
    m->scale = s->room;
    s->room += count;
    s->room_floats -= count;
    return 0;
}

static int missing_scale(const struct format_source *s, const struct tensor *codes, const char *name, const char *suffix)
{
    char why[FORMAT_NAME_BYTES];

    snprintf(why, sizeof(why), "codes without %.220s%s", name, suffix);
    return wrong(s, codes, -E_NOT_FOUND, why);
}

static int bind_e4m3(struct stored_matrix *m, struct format_source *s, const char *name, const struct tensor *codes, const struct tensor *scales, const char *suffix)
{
    const struct tensor *input = take(s, name, ".input_scale");
    int rc;

    if ((rc = want_codes(s, codes, DTYPE_E4M3, m->rows, m->k)) != 0) return rc;
    if (!scales) return missing_scale(s, codes, name, suffix);
    m->element = STORED_E4M3;
    m->data = codes->data;
    m->activation = s->quantization->fp8_activation;
    if ((rc = take_scales(m, s, scales)) != 0) return rc;
    if (input && s->quantization->fp8_by_layer) m->activation = STORED_STATIC;
    if (m->activation != STORED_STATIC) return 0;
    return input ? scalar(s, input, &m->input_scale) : missing_scale(s, codes, name, ".input_scale");
}

/* ---- FP4 ---- */

static int bind_e2m1(struct stored_matrix *m, struct format_source *s, const char *name, const struct tensor *codes, const char *global_suffix)
{
    const struct tensor *groups = take(s, name, ".weight_scale"), *global = take(s, name, global_suffix);
    int rc;

    if ((rc = want_codes(s, codes, DTYPE_U8, m->rows, m->k / 2)) != 0) return rc;
    if (!groups) return missing_scale(s, codes, name, ".weight_scale");
    if (!global) return missing_scale(s, codes, name, global_suffix);
    if ((rc = want_codes(s, groups, DTYPE_E4M3, m->rows, m->k / STORED_GROUP)) != 0) return rc;
    if ((rc = scalar(s, global, &m->global)) != 0) return rc;
    take(s, name, ".input_scale");                   /* for FP4 activations, which only Blackwell multiplies: read over */
    take(s, name, ".input_global_scale");
    m->element = STORED_E2M1;
    m->data = codes->data;
    m->group_scale = groups->data;
    m->scale_rows = 1;
    m->scale_columns = STORED_GROUP;
    return 0;
}

/* ---- all ---- */

static int bind_plain(struct stored_matrix *m, const struct format_source *s, const char *name, const struct tensor *t)
{
    char why[128];

    if (t->dtype != DTYPE_BF16 && t->dtype != DTYPE_F32) return wrong(s, t, -E_UNSUPPORTED, "weights are stored as BF16, F32, F8_E4M3 or FP4 in U8 with weight_scale_2");
    if (!shape_is(t, m->rows, m->k)) {
        snprintf(why, sizeof(why), "the configuration says [%u, %u]", m->rows, m->k);
        return wrong(s, t, -E_FORMAT, why);
    }
    if (take(s, name, ".weight_scale")) return wrong(s, t, -E_FORMAT, "has a weight_scale, but is not quantized");
    m->element = t->dtype == DTYPE_BF16 ? STORED_BF16 : STORED_F32;
    m->data = t->data;
    return 0;
}

int format_matrix(struct stored_matrix *matrix, struct format_source *source, const char *name, uint32_t rows, uint32_t k)
{
    const struct tensor *t, *scales;

    *matrix = (struct stored_matrix){ .rows = rows, .k = k };
    if ((t = take(source, name, "._weight_qdata")) != NULL) return bind_e4m3(matrix, source, name, t, take(source, name, "._weight_scale"), "._weight_scale");
    if ((t = take(source, name, ".weight:qdata")) != NULL) return bind_e4m3(matrix, source, name, t, take(source, name, ".weight:scale"), ".weight:scale");
    if ((t = take(source, name, ".weight_packed")) != NULL) {
        matrix->global_divides = 1;
        return bind_e2m1(matrix, source, name, t, ".weight_global_scale");
    }
    if (!(t = take(source, name, ".weight"))) return model_error_set(source->err, -E_NOT_FOUND, "tensor %.220s.weight: missing", name);
    if (t->dtype == DTYPE_U8) return bind_e2m1(matrix, source, name, t, ".weight_scale_2");
    if (t->dtype != DTYPE_E4M3) return bind_plain(matrix, source, name, t);
    if (!(scales = take(source, name, ".weight_scale"))) scales = take(source, name, ".weight_scale_inv");
    return bind_e4m3(matrix, source, name, t, scales, ".weight_scale");
}

void format_describe(const struct stored_matrix *m, char *text, size_t bytes)
{
    static const char *const rules[] = { "weight-only", "activations FP8 per token", "activations FP8 static" };
    const char *grain = m->scale_columns == STORED_BLOCK && m->scale_rows == STORED_BLOCK ? "in blocks of 128x128" : m->scale_rows == 1 ? "per row" : "per tensor";

    if (m->element == STORED_BF16 || m->element == STORED_F32) snprintf(text, bytes, "%s", m->element == STORED_BF16 ? "BF16" : "F32");
    else if (m->element == STORED_E2M1) snprintf(text, bytes, "FP4 in groups of 16 (NVFP4), weight-only");
    else snprintf(text, bytes, "FP8 %s, %s", grain, rules[m->activation]);
}
