/* model/weights.c - see weights.h. Binds names to places: one table row per tensor of a layer, shapes from the config. */
#include "model/weights.h"
#include "kernels/bf16.h"
#include "model/format.h"
#include "shm/error.h"
#include "shm/must.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define WEIGHTS_NAME_BYTES 256

/* Where the text model's tensors hang, newest layout first. */
static const char *const prefixes[] = { "model.language_model.", "language_model.model.", "model.", "language_model.", "" };
/* Tensors that belong to other parts of the model, or are known to be redundant. */
static const char *const foreign[] = {
    "model.vision_embedder.", "vision_embedder.", "model.embed_vision.", "embed_vision.", "model.embed_audio.", "embed_audio.",
    "model.vision_tower.", "vision_tower.", "model.multi_modal_projector.", "multi_modal_projector.",
    "lm_head.weight", "language_model.lm_head.weight", "model.lm_head.weight",
};

struct binder {
    struct model_weights *weights;
    const struct model_config *config;
    struct safetensors *index;
    struct model_error *err;
    const char *prefix;
    struct format_source source;
    float *room;                      /* next free place for a widened vector */
};

/* The tensor prefix + name with exactly this shape (columns 0: a vector), BF16 or F32, or NULL with *rc set. */
static const struct tensor *bind(struct binder *b, const char *name, uint64_t rows, uint64_t columns, int *rc)
{
    char full[WEIGHTS_NAME_BYTES], has[160];
    const uint64_t want[2] = { rows, columns };
    const uint32_t rank = columns ? 2 : 1;
    struct tensor *t;

    if (*rc != 0) return NULL;
    snprintf(full, sizeof(full), "%s%s", b->prefix, name);
    if (!(t = safetensors_find(b->index, full))) {
        *rc = model_error_set(b->err, -E_NOT_FOUND, "tensor %s: missing", full);
        return NULL;
    }
    t->taken = true;
    format_shape(t, has, sizeof(has));
    if (t->rank != rank || memcmp(t->shape, want, rank * sizeof(want[0])) != 0)
        *rc = columns ? model_error_set(b->err, -E_FORMAT, "tensor %s: %s: the configuration says [%llu, %llu]", full, has, (unsigned long long)rows, (unsigned long long)columns)
                      : model_error_set(b->err, -E_FORMAT, "tensor %s: %s: the configuration says [%llu]", full, has, (unsigned long long)rows);
    else if (t->dtype != DTYPE_BF16 && t->dtype != DTYPE_F32) *rc = model_error_set(b->err, -E_FORMAT, "tensor %s: %s: only BF16 and F32 are supported here", full, has);
    return *rc == 0 ? t : NULL;
}

static void bind_matrix(struct binder *b, struct stored_matrix *m, const char *name, uint32_t rows, uint32_t k, int *rc)
{
    char full[WEIGHTS_NAME_BYTES];

    if (*rc != 0) return;
    snprintf(full, sizeof(full), "%s%s", b->prefix, name);
    if ((*rc = format_matrix(m, &b->source, full, rows, k)) != 0) return;
    b->weights->step_bytes += stored_bytes(m);
    b->weights->rounds_activations |= m->activation != STORED_AS_IS;
}

static float widen(const struct tensor *t, uint64_t i)
{
    uint32_t bits;
    float value;

    if (t->dtype == DTYPE_F32) return ((const float *)t->data)[i];
    bits = (uint32_t)((const uint16_t *)t->data)[i] << 16;
    memcpy(&value, &bits, sizeof(value));
    return value;
}

static const float *bind_norm(struct binder *b, const char *name, uint32_t count, int *rc)
{
    const struct tensor *t = bind(b, name, count, 0, rc);
    float *own = b->room;

    if (!t) return NULL;
    for (uint32_t i = 0; i < count; i++) own[i] = (b->config->norm_plus_one ? 1.0f : 0.0f) + widen(t, i);
    b->room += count;
    return own;
}

static int bind_layer(struct binder *b, uint32_t i)
{
    const struct model_config *c = b->config;
    struct layer_weights *l = &b->weights->layer[i];
    struct stored_matrix *const matrix[MODEL_MATRICES] = { &l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down };
    const uint32_t head = c->layer[i].head_dim;
    char name[128];
    const struct tensor *scalar;
    uint32_t rows, k;
    int rc = 0;

#define NAMED(suffix) (snprintf(name, sizeof(name), "layers.%u." suffix, i), name)
    for (uint32_t which = 0; which < MODEL_MATRICES; which++) {
        if (!model_matrix_shape(c, i, which, &rows, &k)) continue;
        snprintf(name, sizeof(name), "layers.%u.%s", i, model_matrix_name(which));
        bind_matrix(b, matrix[which], name, rows, k, &rc);
    }
    l->input_norm = bind_norm(b, NAMED("input_layernorm.weight"), c->hidden, &rc);
    l->q_norm = bind_norm(b, NAMED("self_attn.q_norm.weight"), head, &rc);
    l->k_norm = bind_norm(b, NAMED("self_attn.k_norm.weight"), head, &rc);
    l->post_attention_norm = bind_norm(b, NAMED("post_attention_layernorm.weight"), c->hidden, &rc);
    l->pre_feedforward_norm = bind_norm(b, NAMED("pre_feedforward_layernorm.weight"), c->hidden, &rc);
    l->post_feedforward_norm = bind_norm(b, NAMED("post_feedforward_layernorm.weight"), c->hidden, &rc);
    l->scalar = 1.0f;
    if (c->has_layer_scalar && (scalar = bind(b, NAMED("layer_scalar"), 1, 0, &rc)) != NULL) l->scalar = widen(scalar, 0);
#undef NAMED
    return rc;
}

/* layers.N.self_attn.k_proj.k_scale and its like: factors for an FP8 cache, see weights.h. */
static bool is_cache_scale(const char *name)
{
    static const char *const ends[] = { ".k_scale", ".v_scale" };
    const size_t length = strlen(name);

    return strstr(name, "self_attn.") && length > 8 && (strcmp(name + length - 8, ends[0]) == 0 || strcmp(name + length - 8, ends[1]) == 0);
}

/* Every tensor left over must belong to another part of the model. */
static int check_rest(const struct binder *b)
{
    for (uint32_t i = 0; i < b->index->count; i++) {
        const struct tensor *t = &b->index->tensor[i];
        bool known = t->taken || is_cache_scale(t->name);

        for (size_t f = 0; f < sizeof(foreign) / sizeof(foreign[0]) && !known; f++)
            known = strncmp(t->name, foreign[f], strlen(foreign[f])) == 0;
        if (!known) return model_error_set(b->err, -E_FORMAT, "tensor %.200s: not a part of this model, or of the format of its layer", t->name);
    }
    return 0;
}

/* The rounding of sqrt(hidden) that the reference makes: to the type of the table. */
float model_embed_scale(uint32_t hidden, enum tensor_dtype dtype)
{
    const float scale = (float)sqrt((double)hidden);

    return dtype == DTYPE_F32 ? scale : bf16_round(scale);
}

/* Every layout has the embedding table. */
int model_weights_prefix(const struct safetensors *index, const char **prefix, struct model_error *err)
{
    char name[WEIGHTS_NAME_BYTES];

    for (size_t i = 0; i < sizeof(prefixes) / sizeof(prefixes[0]); i++) {
        snprintf(name, sizeof(name), "%sembed_tokens.weight", prefixes[i]);
        *prefix = prefixes[i];
        if (safetensors_find(index, name)) return 0;
    }
    return model_error_set(err, -E_NOT_FOUND, "tensor embed_tokens.weight: missing (tried model.language_model., language_model.model., model. before it)");
}

static int bind_all(struct binder *b)
{
    struct model_weights *w = b->weights;
    const struct tensor *table;
    int rc = 0;

    if ((rc = model_weights_prefix(b->index, &b->prefix, b->err)) != 0) return rc;
    if (!(table = bind(b, "embed_tokens.weight", b->config->vocab, b->config->hidden, &rc))) return rc;
    w->embed = table->data;
    w->dtype = table->dtype;
    w->step_bytes = table->byte_count;
    w->final_norm = bind_norm(b, "norm.weight", b->config->hidden, &rc);
    for (uint32_t i = 0; i < b->config->layer_count && rc == 0; i++) rc = bind_layer(b, i);
    if (rc != 0 || (rc = check_rest(b)) != 0) return rc;
    w->embed_scale = model_embed_scale(b->config->hidden, w->dtype);
    return 0;
}

int model_weights_load(struct model_weights *weights, const struct model_config *config, const struct quantization *quantization,
                       struct safetensors *index, struct model_error *err)
{
    struct binder b = { .weights = weights, .config = config, .index = index, .err = err };
    uint64_t floats = config->hidden, stored = 0, room;
    int rc;

    memset(weights, 0, sizeof(*weights));
    weights->config = config;
    for (uint32_t i = 0; i < config->layer_count; i++) floats += 4 * (uint64_t)config->hidden + 2 * config->layer[i].head_dim;
    for (uint32_t i = 0; i < index->count; i++) stored += index->tensor[i].byte_count;
    /* Whatever the configuration claims: a vector is bound only when it is in the files, with two bytes an element at least. */
    room = floats < stored / 2 ? floats : stored / 2;
    b.source = (struct format_source){ .index = index, .quantization = quantization, .err = err, .room_floats = format_floats(index) };
    weights->owned = b.room = malloc((room + b.source.room_floats + 1) * sizeof(float));
    if (!weights->owned) return model_error_set(err, -E_NOMEM, "no memory for the norm weights and scales");
    b.source.room = weights->owned + room;
    if ((rc = bind_all(&b)) != 0) model_weights_free(weights);
    else must(b.room == weights->owned + floats);
    return rc;
}

void model_weights_free(struct model_weights *weights)
{
    free(weights->owned);
    memset(weights, 0, sizeof(*weights));
}

const struct stored_matrix *model_matrix(const struct model_weights *weights, uint32_t layer, uint32_t which)
{
    const struct layer_weights *l = &weights->layer[layer];
    const struct stored_matrix *const list[MODEL_MATRICES] = { &l->q, &l->k, &l->v, &l->o, &l->gate, &l->up, &l->down };

    must(which < MODEL_MATRICES);
    return list[which];
}

const char *model_matrix_name(uint32_t which)
{
    static const char *const names[MODEL_MATRICES] = {
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj" };

    must(which < MODEL_MATRICES);
    return names[which];
}

bool model_matrix_shape(const struct model_config *c, uint32_t layer, uint32_t which, uint32_t *rows, uint32_t *k)
{
    const uint32_t q = model_q_dim(c, layer), kv = model_kv_dim(c, layer);
    const struct { uint32_t rows, k; } shape[MODEL_MATRICES] = {
        { q, c->hidden }, { kv, c->hidden }, { kv, c->hidden }, { c->hidden, q }, { c->intermediate, c->hidden }, { c->intermediate, c->hidden }, { c->hidden, c->intermediate } };

    must(which < MODEL_MATRICES);
    *rows = shape[which].rows;
    *k = shape[which].k;
    return which != 2 || c->layer[layer].has_v;
}

/* How many of `count` E4M3 codes are NaN, or, for scales, negative; *first is the first of them. */
static uint64_t count_bad(const uint8_t *code, uint64_t count, bool scales, uint64_t *first)
{
    const uint64_t low = 0x7f7f7f7f7f7f7f7fu, one = 0x0101010101010101u, high = 0x8080808080808080u;
    uint64_t bad = 0, word;

    for (uint64_t i = 0; i < count; i += 8) {
        if (i + 8 <= count) {                        /* eight at once: 0x7f + 1 sets the top bit */
            memcpy(&word, code + i, 8);
            if ((((word & low) + one) & high) == 0 && !(scales && (word & high))) continue;
        }
        for (uint64_t j = i; j < i + 8 && j < count; j++)
            if ((code[j] & 0x7f) == 0x7f || (scales && code[j] & 0x80)) {
                if (bad++ == 0) *first = j;
            }
    }
    return bad;
}

int model_matrix_scan(const struct stored_matrix *m, const char *name, struct model_error *err)
{
    uint64_t first = 0, bad = 0;

    if (m->data && m->element == STORED_E4M3 && (bad = count_bad(m->data, (uint64_t)m->rows * m->k, false, &first)) > 0)
        return model_error_set(err, -E_FORMAT, "%s: %llu of its FP8 codes are NaN, the first at row %llu, column %llu", name, (unsigned long long)bad,
                               (unsigned long long)(first / m->k), (unsigned long long)(first % m->k));
    if (m->data && m->element == STORED_E2M1 && (bad = count_bad(m->group_scale, (uint64_t)m->rows * stored_scale_stride(m), true, &first)) > 0)
        return model_error_set(err, -E_FORMAT, "%s: %llu of its group scales are NaN or negative, the first at row %llu, group %llu", name, (unsigned long long)bad,
                               (unsigned long long)(first / stored_scale_stride(m)), (unsigned long long)(first % stored_scale_stride(m)));
    return 0;
}

int model_weights_scan(const struct model_weights *weights, struct model_error *err)
{
    char name[96];
    int rc = 0;

    for (uint32_t i = 0; i < weights->config->layer_count && rc == 0; i++)
        for (uint32_t which = 0; which < MODEL_MATRICES && rc == 0; which++) {
            snprintf(name, sizeof(name), "layers.%u.%s", i, model_matrix_name(which));
            rc = model_matrix_scan(model_matrix(weights, i, which), name, err);
        }
    return rc;
}

int model_load(struct model_config *config, struct generation_config *generation, struct model_weights *weights,
               const struct model_files *files, struct model_error *err)
{
    struct quantization quantization;
    struct safetensors index;
    int rc;

    memset(weights, 0, sizeof(*weights));
    if ((rc = model_config_load(config, generation, files, err)) != 0 || (rc = quantization_load(&quantization, files, err)) != 0) return rc;
    safetensors_init(&index);
    if ((rc = safetensors_load(&index, files, err)) == 0) rc = model_weights_load(weights, config, &quantization, &index, err);
    if (rc == 0 && weights->step_bytes <= MODEL_SCAN_BYTES_MAX && (rc = model_weights_scan(weights, err)) != 0) model_weights_free(weights);
    safetensors_free(&index);
    return rc;
}
