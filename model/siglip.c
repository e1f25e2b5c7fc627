/* model/siglip.c - the SigLIP tower of Gemma 3: configuration and tensors (the arithmetic is in siglip_run.c), pan and scan. */
#include "model/siglip.h"

#include "model/embedder.h"
#include "shm/error.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COLOURS 3u
#define IMAGE_SIDE_MAX 4096u
#define HIDDEN_MAX 16384u

/* ---- configuration -------------------------------------------------------------------------- */

static int read_count(const json_t *object, const char *name, uint32_t otherwise, uint32_t most, uint32_t *out, struct model_error *err)
{
    const json_t *value = json_object_get(object, name);

    *out = otherwise;
    if (!value || json_is_null(value)) return 0;
    if (!json_is_integer(value) || json_integer_value(value) < 1 || json_integer_value(value) > most)
        return model_error_set(err, -E_FORMAT, "config.json: %s of the vision tower is not a number from 1 to %u", name, most);
    *out = (uint32_t)json_integer_value(value);
    return 0;
}

static int read_eps(const json_t *vision, float *out, struct model_error *err)
{
    const json_t *value = json_object_get(vision, "layer_norm_eps");

    *out = 1e-6f;
    if (!value) return 0;
    if (!json_is_number(value) || !(json_number_value(value) > 0) || json_number_value(value) > 1)
        return model_error_set(err, -E_FORMAT, "config.json: vision_config.layer_norm_eps is not between 0 and 1");
    *out = (float)json_number_value(value);
    return 0;
}

static int check(const struct siglip_config *s, const json_t *vision, uint32_t tokens, struct model_error *err)
{
    const char *kind = json_string_value(json_object_get(vision, "model_type")), *act = json_string_value(json_object_get(vision, "hidden_act"));

    if (kind && strcmp(kind, "siglip_vision_model") != 0) return model_error_set(err, -E_UNSUPPORTED, "config.json: vision_config.model_type '%.60s'; only siglip_vision_model is built", kind);
    if (act && strcmp(act, "gelu_pytorch_tanh") != 0) return model_error_set(err, -E_UNSUPPORTED, "config.json: vision_config.hidden_act '%.60s'; only gelu_pytorch_tanh is built", act);
    if (s->image % s->patch) return model_error_set(err, -E_UNSUPPORTED, "config.json: a picture of %u pixels is not cut by patches of %u", s->image, s->patch);
    if (s->tokens_side * s->tokens_side != tokens || s->tokens_side > s->side || s->side % s->tokens_side)
        return model_error_set(err, -E_UNSUPPORTED, "config.json: mm_tokens_per_image %u does not divide %u x %u patches into squares", tokens, s->side, s->side);
    if (s->hidden % s->heads) return model_error_set(err, -E_UNSUPPORTED, "config.json: %u heads of the vision tower do not divide its hidden size %u", s->heads, s->hidden);
    if (s->hidden / s->heads > MODEL_HEAD_DIM_MAX) return model_error_set(err, -E_UNSUPPORTED, "config.json: heads of %u in the vision tower", s->hidden / s->heads);
    if (s->hidden % MODEL_DIM_ALIGN || s->inner % MODEL_DIM_ALIGN)
        return model_error_set(err, -E_UNSUPPORTED, "config.json: sizes %u, %u of the vision tower are not multiples of %u", s->hidden, s->inner, MODEL_DIM_ALIGN);
    return 0;
}

static int parse(struct siglip_config *s, const json_t *root, const json_t *vision, struct model_error *err)
{
    uint32_t colours, tokens;
    int rc = read_count(vision, "image_size", 224, IMAGE_SIDE_MAX, &s->image, err);     /* defaults: the reference's */

    if (rc == 0) rc = read_count(vision, "patch_size", 16, IMAGE_SIDE_MAX, &s->patch, err);
    if (rc == 0) rc = read_count(vision, "num_channels", COLOURS, COLOURS, &colours, err);
    if (rc == 0) rc = read_count(vision, "hidden_size", 768, HIDDEN_MAX, &s->hidden, err);
    if (rc == 0) rc = read_count(vision, "intermediate_size", 3072, 4 * HIDDEN_MAX, &s->inner, err);
    if (rc == 0) rc = read_count(vision, "num_attention_heads", 12, HIDDEN_MAX, &s->heads, err);
    if (rc == 0) rc = read_count(vision, "num_hidden_layers", 12, SIGLIP_LAYERS_MAX, &s->layers, err);
    if (rc == 0) rc = read_count(root, "mm_tokens_per_image", 256, IMAGE_SIDE_MAX, &tokens, err);
    if (rc == 0) rc = read_eps(vision, &s->eps, err);
    if (rc != 0) return rc;
    if (colours != COLOURS) return model_error_set(err, -E_UNSUPPORTED, "config.json: vision_config.num_channels %u", colours);
    s->side = s->image / s->patch;
    s->tokens_side = (uint32_t)lround(sqrt((double)tokens));
    return check(s, vision, tokens, err);
}

int siglip_config_parse(struct siglip_config *s, const struct model_config *config, const uint8_t *json, uint64_t byte_count, struct model_error *err)
{
    json_error_t why;
    json_t *root = json_loadb((const char *)json, byte_count, JSON_REJECT_DUPLICATES, &why);
    int rc = 0;

    memset(s, 0, sizeof *s);
    s->text_hidden = config->hidden;
    if (!root) return model_error_set(err, -E_FORMAT, "config.json: %s", why.text);
    const json_t *vision = json_object_get(root, "vision_config");
    if (config->family == MODEL_GEMMA3 && json_is_object(vision)) rc = parse(s, root, vision, err);
    if (rc != 0) s->image = 0;
    json_decref(root);
    return rc;
}

/* ---- tensors ----------------------------------------------------------------------------------- */

static const char *const tower_prefixes[] = {"model.vision_tower.vision_model.", "vision_tower.vision_model.", "model.vision_tower.", "vision_tower.", NULL};
static const char *const projector_prefixes[] = {"model.multi_modal_projector.", "multi_modal_projector.", NULL};

static uint32_t patch_values(const struct siglip_config *s) { return s->patch * s->patch * COLOURS; }
static uint32_t patch_room(const struct siglip_config *s) { return (patch_values(s) + KERNELS_LANES - 1) / KERNELS_LANES * KERNELS_LANES; }

static int load_vector(struct embedder_source *b, uint32_t layer, const char *name, uint64_t count, const float **out)
{
    char full[96];

    snprintf(full, sizeof full, "encoder.layers.%u.%s", layer, name);
    return embedder_vector(b, tower_prefixes, full, count, out);
}

static int load_matrix(struct embedder_source *b, uint32_t layer, const char *name, uint32_t rows, uint32_t k, struct stored_matrix *out)
{
    char full[96];

    snprintf(full, sizeof full, "encoder.layers.%u.%s", layer, name);
    return embedder_matrix(b, tower_prefixes, full, rows, k, out);
}

static int load_layer(struct embedder_source *b, const struct siglip_config *s, uint32_t i, struct siglip_layer *l)
{
    const struct { const char *name; uint32_t count; const float **out; } vectors[] = {
        {"layer_norm1.weight", s->hidden, &l->ln1_weight}, {"layer_norm1.bias", s->hidden, &l->ln1_bias},
        {"layer_norm2.weight", s->hidden, &l->ln2_weight}, {"layer_norm2.bias", s->hidden, &l->ln2_bias},
        {"self_attn.q_proj.bias", s->hidden, &l->q_bias}, {"self_attn.k_proj.bias", s->hidden, &l->k_bias},
        {"self_attn.v_proj.bias", s->hidden, &l->v_bias}, {"self_attn.out_proj.bias", s->hidden, &l->out_bias},
        {"mlp.fc1.bias", s->inner, &l->fc1_bias}, {"mlp.fc2.bias", s->hidden, &l->fc2_bias},
    };
    const struct { const char *name; uint32_t rows, k; struct stored_matrix *out; } matrices[] = {
        {"self_attn.q_proj", s->hidden, s->hidden, &l->q}, {"self_attn.k_proj", s->hidden, s->hidden, &l->k},
        {"self_attn.v_proj", s->hidden, s->hidden, &l->v}, {"self_attn.out_proj", s->hidden, s->hidden, &l->out},
        {"mlp.fc1", s->inner, s->hidden, &l->fc1}, {"mlp.fc2", s->hidden, s->inner, &l->fc2},
    };
    int rc = 0;

    for (size_t k = 0; rc == 0 && k < sizeof vectors / sizeof *vectors; k++) rc = load_vector(b, i, vectors[k].name, vectors[k].count, vectors[k].out);
    for (size_t k = 0; rc == 0 && k < sizeof matrices / sizeof *matrices; k++) rc = load_matrix(b, i, matrices[k].name, matrices[k].rows, matrices[k].k, matrices[k].out);
    return rc;
}

/* The convolution's weights as rows of a matrix, zeros up to a whole number of lanes. */
static int load_patch(struct embedder_source *b, const struct siglip_config *s, struct siglip_weights *w)
{
    const uint32_t values = patch_values(s), room = patch_room(s);
    float *to = b->room;
    const float *stored;

    b->room += (uint64_t)s->hidden * room;
    int rc = embedder_vector(b, tower_prefixes, "embeddings.patch_embedding.weight", (uint64_t)s->hidden * values, &stored);
    for (uint32_t n = 0; rc == 0 && n < s->hidden; n++) {
        memcpy(to + (uint64_t)n * room, stored + (uint64_t)n * values, values * sizeof *to);
        memset(to + (uint64_t)n * room + values, 0, (room - values) * sizeof *to);
    }
    b->room = to + (uint64_t)s->hidden * room;     /* the copy as it was stored is done with */
    w->patch = to;
    return rc;
}

/* The reference multiplies by this matrix from the right, [hidden, text_hidden]: turned, it is a product like all others. And its norm adds 1. */
static int load_projector(struct embedder_source *b, const struct siglip_config *s, struct siglip_weights *w)
{
    float *to = b->room, *norm;
    const float *stored;
    const uint64_t count = (uint64_t)s->hidden * s->text_hidden;

    b->room += count;
    int rc = embedder_vector(b, projector_prefixes, "mm_input_projection_weight", count, &stored);
    for (uint64_t n = 0; rc == 0 && n < s->text_hidden; n++)
        for (uint64_t k = 0; k < s->hidden; k++) to[n * s->hidden + k] = stored[k * s->text_hidden + n];
    b->room = to + count;
    w->projection = to;
    norm = b->room;
    if (rc == 0) rc = embedder_vector(b, projector_prefixes, "mm_soft_emb_norm.weight", s->hidden, &w->norm);
    for (uint32_t k = 0; rc == 0 && k < s->hidden; k++) norm[k] += 1.0f;
    return rc;
}

/* Floats of what is kept, and of the larger of the two copies that are made on the way. */
static uint64_t owned_floats(const struct siglip_config *s)
{
    const uint64_t hidden = s->hidden, layer = 9 * hidden + s->inner, patch = hidden * patch_room(s), projection = hidden * s->text_hidden;

    return patch + hidden + (uint64_t)s->side * s->side * hidden + s->layers * layer + 3 * hidden + projection + (patch > projection ? patch : projection);
}

int siglip_weights_load(struct siglip_weights *w, const struct siglip_config *s, const struct quantization *quantization, struct safetensors *index, struct model_error *err)
{
    const uint64_t floats = owned_floats(s), scales = format_floats(index);
    struct embedder_source b = {.source = {.index = index, .quantization = quantization, .err = err, .room_floats = scales}};

    memset(w, 0, sizeof *w);
    w->config = *s;
    w->owned = malloc((floats + scales + 1) * sizeof *w->owned);
    if (!w->owned) return model_error_set(err, -E_NOMEM, "out of memory for the weights of the vision tower");
    b.room = w->owned;
    b.source.room = w->owned + floats;
    int rc = load_patch(&b, s, w);
    if (rc == 0) rc = embedder_vector(&b, tower_prefixes, "embeddings.patch_embedding.bias", s->hidden, &w->patch_bias);
    if (rc == 0) rc = embedder_vector(&b, tower_prefixes, "embeddings.position_embedding.weight", (uint64_t)s->side * s->side * s->hidden, &w->position);
    for (uint32_t i = 0; rc == 0 && i < s->layers; i++) rc = load_layer(&b, s, i, &w->layer[i]);
    if (rc == 0) rc = embedder_vector(&b, tower_prefixes, "post_layernorm.weight", s->hidden, &w->post_weight);
    if (rc == 0) rc = embedder_vector(&b, tower_prefixes, "post_layernorm.bias", s->hidden, &w->post_bias);
    if (rc == 0) rc = load_projector(&b, s, w);
    if (rc != 0) siglip_weights_free(w);
    return rc;
}

/* A number in [-1, 1) from the next place (splitmix64). */
static float noise(uint64_t *seed)
{
    uint64_t at = *seed += 0x9e3779b97f4a7c15ull;

    at = (at ^ at >> 30) * 0xbf58476d1ce4e5b9ull;
    at = (at ^ at >> 27) * 0x94d049bb133111ebull;
    return (float)((int64_t)((at ^ at >> 31) >> 40) - (1 << 23)) * 0x1p-23f;
}

static const float *draw(float **room, uint64_t count, float base, float amplitude, uint64_t *seed)
{
    const float *begin = *room;

    for (uint64_t i = 0; i < count; i++) *(*room)++ = base + amplitude * noise(seed);
    return begin;
}

static struct stored_matrix draw_matrix(float **room, uint32_t rows, uint32_t k, uint64_t *seed)
{
    return (struct stored_matrix){.element = STORED_F32, .rows = rows, .k = k, .data = draw(room, (uint64_t)rows * k, 0, 1.7f / sqrtf((float)k), seed)};
}

static void draw_layer(struct siglip_layer *l, const struct siglip_config *s, float **room, uint64_t *seed)
{
    const float **const biases[] = {&l->q_bias, &l->k_bias, &l->v_bias, &l->out_bias, &l->fc2_bias, &l->ln1_bias, &l->ln2_bias};
    struct stored_matrix *const squares[] = {&l->q, &l->k, &l->v, &l->out};

    for (size_t i = 0; i < sizeof biases / sizeof *biases; i++) *biases[i] = draw(room, s->hidden, 0, 0.1f, seed);
    l->ln1_weight = draw(room, s->hidden, 1, 0.1f, seed);
    l->ln2_weight = draw(room, s->hidden, 1, 0.1f, seed);
    l->fc1_bias = draw(room, s->inner, 0, 0.1f, seed);
    for (size_t i = 0; i < sizeof squares / sizeof *squares; i++) *squares[i] = draw_matrix(room, s->hidden, s->hidden, seed);
    l->fc1 = draw_matrix(room, s->inner, s->hidden, seed);
    l->fc2 = draw_matrix(room, s->hidden, s->inner, seed);
}

int siglip_weights_random(struct siglip_weights *w, const struct siglip_config *s)
{
    const uint64_t hidden = s->hidden, layer = 9 * hidden + s->inner + 4 * hidden * hidden + 2 * hidden * s->inner;
    uint64_t seed = 1;

    memset(w, 0, sizeof *w);
    w->config = *s;
    float *room = w->owned = malloc((hidden * patch_room(s) + 4 * hidden + (uint64_t)s->side * s->side * hidden + hidden * s->text_hidden + layer) * sizeof *w->owned);
    if (!room) return -E_NOMEM;
    w->patch = draw(&room, hidden * patch_room(s), 0, 1.7f / sqrtf((float)patch_values(s)), &seed); /* what stands behind a patch's values meets zeros */
    w->patch_bias = draw(&room, hidden, 0, 0.1f, &seed);
    w->position = draw(&room, (uint64_t)s->side * s->side * hidden, 0, 0.5f, &seed);
    w->post_weight = draw(&room, hidden, 1, 0.1f, &seed);
    w->post_bias = draw(&room, hidden, 0, 0.1f, &seed);
    w->norm = draw(&room, hidden, 1, 0.1f, &seed);
    w->projection = draw(&room, hidden * s->text_hidden, 0, 1.7f / sqrtf((float)hidden), &seed);
    draw_layer(&w->layer[0], s, &room, &seed);
    for (uint32_t i = 1; i < s->layers; i++) w->layer[i] = w->layer[0];
    return 0;
}

void siglip_weights_free(struct siglip_weights *w)
{
    free(w->owned);
    memset(w, 0, sizeof *w);
}

/* ---- pan and scan ----------------------------------------------------------------------------------- */

uint32_t siglip_crops(const struct siglip_pan *pan, uint32_t width, uint32_t height, struct siglip_crop crops[SIGLIP_CROPS_MAX])
{
    const uint32_t longer = width >= height ? width : height, shorter = width >= height ? height : width;
    uint32_t count, piece, made = 0;

    if (shorter == 0 || pan->side_min == 0 || (double)longer / shorter < pan->ratio_min) return 0;
    count = (uint32_t)fmin(floor((double)longer / shorter + 0.5), (double)(longer / pan->side_min));
    if (count < 2) count = 2;
    if (count > pan->crops_max) count = pan->crops_max;
    if (count > SIGLIP_CROPS_MAX) count = SIGLIP_CROPS_MAX;
    piece = (longer + count - 1) / count;
    if ((piece < shorter ? piece : shorter) < pan->side_min) return 0;
    for (uint32_t i = 0; i < count && i * piece < longer; i++) {
        const uint32_t from = i * piece, room = longer - from, n = room < piece ? room : piece;
        crops[made++] = width >= height ? (struct siglip_crop){from, 0, n, height} : (struct siglip_crop){0, from, width, n};
    }
    return made;
}
