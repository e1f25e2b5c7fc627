/* model/dspark_load.c - the DSpark drafter's tensors: found, checked, and shared with the target where they are equal. See dspark.h.
 * Reads both tables once to compare them (the target's 2 GB of a 12B model are read by whoever computes with them anyway). */
#include "model/dspark.h"

#include "shm/error.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct table { const void *data; enum tensor_dtype dtype; bool shared; };

/* A table [vocab, hidden] that the target has, too: `name` of the files, or the target's own when that is equal, or when the files lack it. */
static void bind_table(struct drafter_binder *b, struct dspark_weights *w, const struct model_weights *target, const char *name, struct table *table)
{
    const struct model_config *c = &w->config.layers;
    const bool fits = target && target->config->vocab == c->vocab && target->config->hidden == c->hidden;
    const struct tensor *t = NULL;

    if (b->rc != 0) return;
    if (!fits || safetensors_find(b->source.index, name)) t = drafter_tensor(b, name, c->vocab, c->hidden);
    if (b->rc != 0) return;
    *table = t ? (struct table){t->data, t->dtype, false} : (struct table){target->embed, target->dtype, true};
    if (t && fits && target->embed && t->dtype == target->dtype && memcmp(t->data, target->embed, t->byte_count) == 0) *table = (struct table){target->embed, target->dtype, true};
    if (!table->shared) w->own_bytes += t->byte_count;
}

static void bind_layers(struct drafter_binder *b, struct dspark_weights *w)
{
    const struct model_config *c = &w->config.layers;
    char name[64];

    for (uint32_t i = 0; i < c->layer_count; i++) {
        drafter_bind_layer(b, &w->layer[i].shared, c, i, "");
        snprintf(name, sizeof name, "layers.%u.self_attn.k_proj", i);
        drafter_matrix(b, &w->layer[i].k, name, model_kv_dim(c, i), c->hidden);
        snprintf(name, sizeof name, "layers.%u.self_attn.k_norm.weight", i);
        w->layer[i].k_norm = drafter_vector(b, name, c->layer[i].head_dim);
    }
}

static void bind_heads(struct drafter_binder *b, struct dspark_weights *w)
{
    const struct dspark_config *c = &w->config;

    if (c->markov_rank > 0) {
        const struct tensor *t = drafter_tensor(b, "markov_head.markov_w1.weight", c->layers.vocab, c->markov_rank);
        if (t) {
            w->markov_in = t->data;
            w->markov_dtype = t->dtype;
            w->own_bytes += t->byte_count;
        }
        drafter_matrix(b, &w->markov_out, "markov_head.markov_w2", c->layers.vocab, c->markov_rank);
    }
    if (c->confidence) {
        w->confidence = drafter_vector(b, "confidence_head.proj.weight", c->layers.hidden + (c->confidence_sees_token ? c->markov_rank : 0));
        const float *bias = drafter_vector(b, "confidence_head.proj.bias", 1);
        w->confidence_bias = bias ? *bias : 0;
    }
}

#define MATRICES_PER_LAYER 6u

/* All matrices that products read. Returns how many. */
static uint32_t list_matrices(struct dspark_weights *w, struct stored_matrix *list[MATRICES_PER_LAYER * MODEL_LAYERS_MAX + 3])
{
    uint32_t n = 0;

    for (uint32_t i = 0; i < w->config.layers.layer_count; i++) {
        struct drafter_layer *l = &w->layer[i].shared;
        struct stored_matrix *const own[MATRICES_PER_LAYER] = {&l->q, &l->o, &l->gate, &l->up, &l->down, &w->layer[i].k};
        for (uint32_t m = 0; m < MATRICES_PER_LAYER; m++) list[n++] = own[m];
    }
    list[n++] = &w->fc;
    list[n++] = &w->head;
    if (w->markov_in) list[n++] = &w->markov_out;
    return n;
}

/* What one block reads: every matrix once, the Markov head's output for each guess. */
static void count_block(struct dspark_weights *w)
{
    struct stored_matrix *list[MATRICES_PER_LAYER * MODEL_LAYERS_MAX + 3];
    const uint32_t count = list_matrices(w, list);

    w->block_bytes = 0;
    for (uint32_t i = 0; i < count; i++) w->block_bytes += stored_bytes(list[i]) * (list[i] == &w->markov_out ? w->config.block : 1);
}

static int bind_all(struct dspark_weights *w, struct safetensors *index, const struct quantization *quantization, const struct model_weights *target, struct model_error *err)
{
    const struct dspark_config *c = &w->config;
    const uint32_t hidden = c->layers.hidden;
    const uint64_t scales = format_floats(index), vectors = drafter_layer_floats(&c->layers) + 3ull * hidden + c->markov_rank + 1;
    struct drafter_binder b = {.source = {.index = index, .quantization = quantization, .err = err, .room_floats = scales}, .bytes = &w->own_bytes};
    struct table embed = {0}, head = {0};

    w->owned = malloc((vectors + scales) * sizeof *w->owned);
    if (!w->owned) return model_error_set(err, -E_NOMEM, "out of memory for the drafter's norms");
    b.room = w->owned;
    b.source.room = w->owned + vectors;
    drafter_matrix(&b, &w->fc, "fc", hidden, dspark_feature_floats(c));
    w->hidden_norm = drafter_vector(&b, "hidden_norm.weight", hidden);
    w->norm = drafter_vector(&b, "norm.weight", hidden);
    bind_layers(&b, w);
    bind_heads(&b, w);
    bind_table(&b, w, target, "embed_tokens.weight", &embed);
    bind_table(&b, w, target, "lm_head.weight", &head);
    if (b.rc != 0) return b.rc;
    w->embed = embed.data;
    w->embed_dtype = embed.dtype;
    w->embed_is_shared = embed.shared;
    w->embed_scale = model_embed_scale(hidden, embed.dtype);
    w->head = drafter_plain(head.data, head.dtype, c->layers.vocab, hidden);
    w->head_is_shared = head.shared;
    count_block(w);
    return 0;
}

int dspark_load(struct dspark_weights *w, const struct model_files *files, const struct model_weights *target, struct model_error *err)
{
    struct quantization quantization;
    struct safetensors index;
    const uint8_t *json;
    uint64_t bytes;

    memset(w, 0, sizeof *w);
    if (model_files_find(files, "config.json", &json, &bytes) != 0) return model_error_set(err, -E_NOT_FOUND, "the drafter has no config.json");
    int rc = dspark_config_parse(&w->config, json, bytes, err);
    if (rc == 0) rc = quantization_load(&quantization, files, err);
    if (rc != 0) return rc;
    safetensors_init(&index);
    rc = safetensors_load(&index, files, err);
    if (rc == 0) rc = bind_all(w, &index, &quantization, target, err);
    safetensors_free(&index);
    if (rc != 0) dspark_weights_free(w);
    return rc;
}

int dspark_to_fp8(struct dspark_weights *w, uint32_t threads)
{
    struct stored_matrix *list[MATRICES_PER_LAYER * MODEL_LAYERS_MAX + 3];
    const uint32_t count = list_matrices(w, list);
    uint64_t before = w->head_is_shared ? 0 : stored_bytes(&w->head), after = 0;

    for (uint32_t i = 0; i < count; i++)
        if (list[i] != &w->head) before += stored_bytes(list[i]);
    const int rc = drafter_to_fp8(list, count, threads, &w->rounded);
    if (rc != 0) return rc;
    for (uint32_t i = 0; i < count; i++) after += stored_bytes(list[i]);
    w->own_bytes = w->own_bytes - before + after;
    w->head_is_shared = false;
    count_block(w);
    return 0;
}

void dspark_weights_free(struct dspark_weights *w)
{
    free(w->owned);
    free(w->rounded);
    memset(w, 0, sizeof *w);
}

int dspark_check(const struct dspark_config *c, const struct model_config *target, struct model_error *err)
{
    if (c->layers.hidden != target->hidden)
        return model_error_set(err, -E_UNSUPPORTED, "the drafter was made for a model of hidden size %u, this one has %u", c->layers.hidden, target->hidden);
    if (c->layers.vocab != target->vocab) return model_error_set(err, -E_UNSUPPORTED, "the drafter knows %u tokens, the model %u", c->layers.vocab, target->vocab);
    if (c->target_layer_count != target->layer_count)
        return model_error_set(err, -E_UNSUPPORTED, "the drafter was made for a model of %u layers, this one has %u", c->target_layer_count, target->layer_count);
    return 0;
}
