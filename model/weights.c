/* model/weights.c - see weights.h. Binds names to places: one table row per tensor of a layer, shapes from the config. */
#include "model/weights.h"
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
    float *room;                      /* next free place for a widened vector */
};

static void shape_text(char *text, size_t bytes, uint32_t rank, const uint64_t *shape)
{
    size_t used = 0;

    text[0] = '\0';
    for (uint32_t i = 0; i < rank && used < bytes; i++)
        used += (size_t)snprintf(text + used, bytes - used, "%s%llu", i ? ", " : "", (unsigned long long)shape[i]);
}

/* The tensor prefix + name with exactly this shape (columns 0: a vector), or NULL with *rc set. */
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
    if (t->rank != rank || memcmp(t->shape, want, rank * sizeof(want[0])) != 0) {
        shape_text(has, sizeof(has), t->rank, t->shape);
        *rc = columns ? model_error_set(b->err, -E_FORMAT, "tensor %s: shape [%s], the configuration says [%llu, %llu]", full, has, (unsigned long long)rows, (unsigned long long)columns)
                      : model_error_set(b->err, -E_FORMAT, "tensor %s: shape [%s], the configuration says [%llu]", full, has, (unsigned long long)rows);
        return NULL;
    }
    if (t->dtype != DTYPE_BF16 && t->dtype != DTYPE_F32) {
        *rc = model_error_set(b->err, -E_FORMAT, "tensor %s: stored as %s, only BF16 and F32 are supported", full, tensor_dtype_name(t->dtype));
        return NULL;
    }
    return t;
}

static const void *bind_matrix(struct binder *b, const char *name, uint64_t rows, uint64_t columns, int *rc)
{
    const struct tensor *t = bind(b, name, rows, columns, rc);

    if (!t) return NULL;
    if (b->weights->dtype == 0) b->weights->dtype = t->dtype;
    if (t->dtype != b->weights->dtype) {
        *rc = model_error_set(b->err, -E_FORMAT, "tensor %s: stored as %s, the embedding table as %s; all matrices must be alike", t->name,
                              tensor_dtype_name(t->dtype), tensor_dtype_name(b->weights->dtype));
        return NULL;
    }
    b->weights->step_bytes += t->byte_count;
    return t->data;
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
    const uint32_t q = model_q_dim(c, i), kv = model_kv_dim(c, i), head = c->layer[i].head_dim;
    char name[128];
    const struct tensor *scalar;
    int rc = 0;

#define NAMED(suffix) (snprintf(name, sizeof(name), "layers.%u." suffix, i), name)
    l->input_norm = bind_norm(b, NAMED("input_layernorm.weight"), c->hidden, &rc);
    l->q = bind_matrix(b, NAMED("self_attn.q_proj.weight"), q, c->hidden, &rc);
    l->k = bind_matrix(b, NAMED("self_attn.k_proj.weight"), kv, c->hidden, &rc);
    if (c->layer[i].has_v) l->v = bind_matrix(b, NAMED("self_attn.v_proj.weight"), kv, c->hidden, &rc);
    l->o = bind_matrix(b, NAMED("self_attn.o_proj.weight"), c->hidden, q, &rc);
    l->q_norm = bind_norm(b, NAMED("self_attn.q_norm.weight"), head, &rc);
    l->k_norm = bind_norm(b, NAMED("self_attn.k_norm.weight"), head, &rc);
    l->post_attention_norm = bind_norm(b, NAMED("post_attention_layernorm.weight"), c->hidden, &rc);
    l->pre_feedforward_norm = bind_norm(b, NAMED("pre_feedforward_layernorm.weight"), c->hidden, &rc);
    l->gate = bind_matrix(b, NAMED("mlp.gate_proj.weight"), c->intermediate, c->hidden, &rc);
    l->up = bind_matrix(b, NAMED("mlp.up_proj.weight"), c->intermediate, c->hidden, &rc);
    l->down = bind_matrix(b, NAMED("mlp.down_proj.weight"), c->hidden, c->intermediate, &rc);
    l->post_feedforward_norm = bind_norm(b, NAMED("post_feedforward_layernorm.weight"), c->hidden, &rc);
    l->scalar = 1.0f;
    if (c->has_layer_scalar && (scalar = bind(b, NAMED("layer_scalar"), 1, 0, &rc)) != NULL) l->scalar = widen(scalar, 0);
#undef NAMED
    return rc;
}

/* Every tensor left over must belong to another part of the model. */
static int check_rest(const struct binder *b)
{
    for (uint32_t i = 0; i < b->index->count; i++) {
        const struct tensor *t = &b->index->tensor[i];
        bool known = t->taken;

        for (size_t f = 0; f < sizeof(foreign) / sizeof(foreign[0]) && !known; f++)
            known = strncmp(t->name, foreign[f], strlen(foreign[f])) == 0;
        if (!known) return model_error_set(b->err, -E_FORMAT, "tensor %.200s: not a part of this model", t->name);
    }
    return 0;
}

/* The rounding of sqrt(hidden) that the reference makes: to the type of the table. */
static float embed_scale(uint32_t hidden, enum tensor_dtype dtype)
{
    float scale = (float)sqrt((double)hidden);
    uint32_t bits;

    if (dtype == DTYPE_F32) return scale;
    memcpy(&bits, &scale, sizeof(bits));
    bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000u;
    memcpy(&scale, &bits, sizeof(scale));
    return scale;
}

/* Finds the prefix by the embedding table, which every layout has. */
static int find_prefix(struct binder *b)
{
    char name[WEIGHTS_NAME_BYTES];

    for (size_t i = 0; i < sizeof(prefixes) / sizeof(prefixes[0]); i++) {
        snprintf(name, sizeof(name), "%sembed_tokens.weight", prefixes[i]);
        b->prefix = prefixes[i];
        if (safetensors_find(b->index, name)) return 0;
    }
    return model_error_set(b->err, -E_NOT_FOUND, "tensor embed_tokens.weight: missing (tried model.language_model., language_model.model., model. before it)");
}

static int bind_all(struct binder *b)
{
    struct model_weights *w = b->weights;
    int rc = 0;

    if ((rc = find_prefix(b)) != 0) return rc;
    w->embed = bind_matrix(b, "embed_tokens.weight", b->config->vocab, b->config->hidden, &rc);
    w->final_norm = bind_norm(b, "norm.weight", b->config->hidden, &rc);
    for (uint32_t i = 0; i < b->config->layer_count && rc == 0; i++) rc = bind_layer(b, i);
    if (rc != 0 || (rc = check_rest(b)) != 0) return rc;
    w->embed_scale = embed_scale(b->config->hidden, w->dtype);
    return 0;
}

int model_weights_load(struct model_weights *weights, const struct model_config *config,
                       struct safetensors *index, struct model_error *err)
{
    struct binder b = { .weights = weights, .config = config, .index = index, .err = err };
    uint64_t floats = config->hidden;
    int rc;

    memset(weights, 0, sizeof(*weights));
    weights->config = config;
    for (uint32_t i = 0; i < config->layer_count; i++) floats += 4 * (uint64_t)config->hidden + 2 * config->layer[i].head_dim;
    weights->owned = b.room = malloc(floats * sizeof(float));
    if (!weights->owned) return model_error_set(err, -E_NOMEM, "no memory for the norm weights");
    if ((rc = bind_all(&b)) != 0) model_weights_free(weights);
    else must(b.room == weights->owned + floats);
    return rc;
}

void model_weights_free(struct model_weights *weights)
{
    free(weights->owned);
    memset(weights, 0, sizeof(*weights));
}

int model_load(struct model_config *config, struct generation_config *generation, struct model_weights *weights,
               const struct model_files *files, struct model_error *err)
{
    struct safetensors index;
    int rc;

    memset(weights, 0, sizeof(*weights));
    if ((rc = model_config_load(config, generation, files, err)) != 0) return rc;
    safetensors_init(&index);
    if ((rc = safetensors_load(&index, files, err)) == 0) rc = model_weights_load(weights, config, &index, err);
    safetensors_free(&index);
    return rc;
}
