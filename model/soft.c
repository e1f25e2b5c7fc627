/* model/soft.c - soft tokens: configuration, tensors, arithmetic. */
#include "model/soft.h"

#include "kernels/bf16.h"
#include "model/embedder.h"
#include "shm/error.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LAYER_NORM_EPS 1e-5f
#define POSITIONS_MAX 65536u
#define DIM_MAX 65536u

/* ---- configuration -------------------------------------------------------------------- */

static int read_u32(const json_t *object, const char *where, const char *name, uint32_t otherwise, uint32_t *out, struct model_error *err)
{
    const json_t *value = json_object_get(object, name);

    *out = otherwise;
    if (!value || json_is_null(value)) return 0;
    if (!json_is_integer(value) || json_integer_value(value) < 1 || json_integer_value(value) > DIM_MAX)
        return model_error_set(err, -E_FORMAT, "config.json: %s.%s is not a number from 1 to %u", where, name, DIM_MAX);
    *out = (uint32_t)json_integer_value(value);
    return 0;
}

static int read_eps(const json_t *object, const char *where, float *out, struct model_error *err)
{
    const json_t *value = json_object_get(object, "rms_norm_eps");

    *out = 1e-6f;
    if (!value) return 0;
    if (!json_is_number(value) || !(json_number_value(value) > 0) || json_number_value(value) > 1)
        return model_error_set(err, -E_FORMAT, "config.json: %s.rms_norm_eps is not between 0 and 1", where);
    *out = (float)json_number_value(value);
    return 0;
}

static int read_pictures(struct soft_config *soft, const json_t *vision, struct model_error *err)
{
    uint32_t patch, merge, out;
    int rc = read_u32(vision, "vision_config", "patch_size", 16, &patch, err);

    if (rc == 0) rc = read_u32(vision, "vision_config", "pooling_kernel_size", 3, &merge, err);
    if (rc == 0) rc = read_u32(vision, "vision_config", "mm_embed_dim", 3840, &soft->picture_dim, err);
    if (rc == 0) rc = read_u32(vision, "vision_config", "output_proj_dims", soft->picture_dim, &out, err);
    if (rc == 0) rc = read_u32(vision, "vision_config", "mm_posemb_size", 1120, &soft->picture_positions, err);
    if (rc == 0) rc = read_eps(vision, "vision_config", &soft->picture_eps, err);
    if (rc != 0) return rc;
    if (patch * merge != PICTURE_PATCH) return model_error_set(err, -E_UNSUPPORTED, "config.json: blocks of %u x %u pixels; only %u x %u are built", patch * merge, patch * merge, PICTURE_PATCH, PICTURE_PATCH);
    if (out != soft->picture_dim) return model_error_set(err, -E_UNSUPPORTED, "config.json: vision_config.output_proj_dims %u is not mm_embed_dim %u", out, soft->picture_dim);
    if (soft->picture_dim % MODEL_DIM_ALIGN) return model_error_set(err, -E_UNSUPPORTED, "config.json: vision_config.mm_embed_dim %u is not a multiple of %u", soft->picture_dim, MODEL_DIM_ALIGN);
    return 0;
}

static int read_audio(struct soft_config *soft, const json_t *audio, struct model_error *err)
{
    int rc = read_u32(audio, "audio_config", "output_proj_dims", 640, &soft->audio_frame, err);

    if (rc == 0) rc = read_u32(audio, "audio_config", "audio_samples_per_token", soft->audio_frame, &soft->audio_frame, err);
    if (rc == 0) rc = read_eps(audio, "audio_config", &soft->audio_eps, err);
    if (rc == 0 && (soft->audio_frame % MODEL_DIM_ALIGN || soft->audio_frame > SOFT_AUDIO_FRAME_MAX))
        rc = model_error_set(err, -E_UNSUPPORTED, "config.json: sound frames of %u samples are not built", soft->audio_frame);
    return rc;
}

int soft_config_parse(struct soft_config *soft, const struct model_config *config, const uint8_t *json, uint64_t byte_count, struct model_error *err)
{
    json_error_t why;
    json_t *root = json_loadb((const char *)json, byte_count, JSON_REJECT_DUPLICATES, &why);
    int rc = 0;

    memset(soft, 0, sizeof *soft);
    soft->hidden = config->hidden;
    if (!root) return model_error_set(err, -E_FORMAT, "config.json: %s", why.text);
    const json_t *vision = json_object_get(root, "vision_config"), *audio = json_object_get(root, "audio_config");
    if (config->family == MODEL_GEMMA4_UNIFIED) {
        if (json_is_object(vision)) rc = read_pictures(soft, vision, err);
        if (rc == 0 && json_is_object(audio)) rc = read_audio(soft, audio, err);
    }
    json_decref(root);
    return rc;
}

/* ---- tensors ------------------------------------------------------------------------------ */

static const char *const vision_prefixes[] = {"model.vision_embedder.", "model.embed_vision.", "vision_embedder.", "embed_vision.", NULL};
static const char *const projection_prefixes[] = {"model.embed_vision.", "model.embed_vision.multimodal_embedder.", "embed_vision.", "embed_vision.multimodal_embedder.", NULL};
static const char *const audio_prefixes[] = {"model.embed_audio.", "embed_audio.", NULL};

int soft_weights_load(struct soft_weights *w, const struct soft_config *soft, const struct quantization *quantization, struct safetensors *index, struct model_error *err)
{
    const uint64_t dim = soft->picture_dim, table = (uint64_t)soft->picture_positions * 2 * dim, scales = format_floats(index);
    const uint64_t floats = dim ? 2 * PICTURE_PATCH_BYTES + 5 * dim + table : 0;
    struct embedder_source b = {.source = {.index = index, .quantization = quantization, .err = err, .room_floats = scales}};
    int rc = 0;

    memset(w, 0, sizeof *w);
    w->config = *soft;
    if (soft->picture_positions > POSITIONS_MAX) return model_error_set(err, -E_UNSUPPORTED, "config.json: a position table of %u rows", soft->picture_positions);
    w->owned = malloc((floats + scales + 1) * sizeof *w->owned);
    if (!w->owned) return model_error_set(err, -E_NOMEM, "out of memory for the weights of pictures and sound");
    b.room = w->owned;
    b.source.room = w->owned + floats;
    if (dim) {
        rc = embedder_vector(&b, vision_prefixes, "patch_ln1.weight", PICTURE_PATCH_BYTES, &w->ln1_weight);
        if (rc == 0) rc = embedder_vector(&b, vision_prefixes, "patch_ln1.bias", PICTURE_PATCH_BYTES, &w->ln1_bias);
        if (rc == 0) rc = embedder_matrix(&b, vision_prefixes, "patch_dense", soft->picture_dim, PICTURE_PATCH_BYTES, &w->dense);
        if (rc == 0) rc = embedder_vector(&b, vision_prefixes, "patch_dense.bias", dim, &w->dense_bias);
        if (rc == 0) rc = embedder_vector(&b, vision_prefixes, "patch_ln2.weight", dim, &w->ln2_weight);
        if (rc == 0) rc = embedder_vector(&b, vision_prefixes, "patch_ln2.bias", dim, &w->ln2_bias);
        if (rc == 0) rc = embedder_vector(&b, vision_prefixes, "pos_embedding", table, &w->position);
        if (rc == 0) rc = embedder_vector(&b, vision_prefixes, "pos_norm.weight", dim, &w->position_weight);
        if (rc == 0) rc = embedder_vector(&b, vision_prefixes, "pos_norm.bias", dim, &w->position_bias);
        if (rc == 0) rc = embedder_matrix(&b, projection_prefixes, "embedding_projection", soft->hidden, soft->picture_dim, &w->projection);
    }
    if (rc == 0 && soft->audio_frame) rc = embedder_matrix(&b, audio_prefixes, "embedding_projection", soft->hidden, soft->audio_frame, &w->audio_projection);
    if (rc != 0) soft_weights_free(w);
    return rc;
}

/* A number in [-1, 1) from a place (splitmix64's finish). */
static float noise(uint64_t at)
{
    at = (at ^ at >> 30) * 0xbf58476d1ce4e5b9ull;
    at = (at ^ at >> 27) * 0x94d049bb133111ebull;
    return (float)((int64_t)((at ^ at >> 31) >> 40) - (1 << 23)) * 0x1p-23f;
}

static const float *draw_vector(float **room, uint64_t count, float base, float amplitude, uint64_t *seed)
{
    const float *begin = *room;

    for (uint64_t i = 0; i < count; i++) *(*room)++ = base + amplitude * noise(*seed += 0x9e3779b97f4a7c15ull);
    return begin;
}

static void draw_matrix(uint16_t **room, uint32_t rows, uint32_t k, uint64_t *seed, struct stored_matrix *m)
{
    const float amplitude = 1.7f / sqrtf((float)k);

    *m = (struct stored_matrix){.element = STORED_BF16, .rows = rows, .k = k, .data = *room};
    for (uint64_t i = 0; i < (uint64_t)rows * k; i++) {
        const float v = amplitude * noise(*seed += 0x9e3779b97f4a7c15ull);
        uint32_t bits;
        memcpy(&bits, &v, sizeof bits);
        *(*room)++ = (uint16_t)(bits >> 16);
    }
}

int soft_weights_random(struct soft_weights *w, const struct soft_config *soft)
{
    const uint64_t dim = soft->picture_dim, table = (uint64_t)soft->picture_positions * 2 * dim, floats = dim ? 2 * PICTURE_PATCH_BYTES + 5 * dim + table : 0;
    const uint64_t halves = dim * PICTURE_PATCH_BYTES + dim * soft->hidden + (uint64_t)soft->audio_frame * soft->hidden;
    uint64_t seed = 1;

    memset(w, 0, sizeof *w);
    w->config = *soft;
    w->owned = malloc((floats + halves / 2 + 1) * sizeof *w->owned);
    if (!w->owned) return -E_NOMEM;
    float *vectors = w->owned;
    uint16_t *matrices = (uint16_t *)(w->owned + floats);
    if (dim) {
        w->ln1_weight = draw_vector(&vectors, PICTURE_PATCH_BYTES, 1.0f, 0.1f, &seed);
        w->ln1_bias = draw_vector(&vectors, PICTURE_PATCH_BYTES, 0.0f, 0.1f, &seed);
        w->dense_bias = draw_vector(&vectors, dim, 0.0f, 0.1f, &seed);
        w->ln2_weight = draw_vector(&vectors, dim, 1.0f, 0.1f, &seed);
        w->ln2_bias = draw_vector(&vectors, dim, 0.0f, 0.1f, &seed);
        w->position_weight = draw_vector(&vectors, dim, 1.0f, 0.1f, &seed);
        w->position_bias = draw_vector(&vectors, dim, 0.0f, 0.1f, &seed);
        w->position = draw_vector(&vectors, table, 0.0f, 0.5f, &seed);
        draw_matrix(&matrices, soft->picture_dim, PICTURE_PATCH_BYTES, &seed, &w->dense);
        draw_matrix(&matrices, soft->hidden, soft->picture_dim, &seed, &w->projection);
    }
    if (soft->audio_frame) draw_matrix(&matrices, soft->hidden, soft->audio_frame, &seed, &w->audio_projection);
    return 0;
}

void soft_weights_free(struct soft_weights *w)
{
    free(w->owned);
    memset(w, 0, sizeof *w);
}

/* ---- arithmetic ------------------------------------------------------------------------------ */

uint64_t soft_scratch_floats(const struct soft_config *soft, uint32_t count)
{
    const uint64_t picture = soft->picture_dim ? PICTURE_PATCH_BYTES + soft->picture_dim : 0;

    return (picture > soft->audio_frame ? picture : soft->audio_frame) * count;
}

int soft_picture(const struct soft_weights *w, const struct kernels *kernels, const uint8_t *blocks, uint32_t count, uint32_t first, uint32_t columns, float *scratch, float *out)
{
    const uint32_t dim = w->config.picture_dim, last = first + count - 1;
    float *pixels = scratch, *x = scratch + (uint64_t)count * PICTURE_PATCH_BYTES, value[256];

    if (dim == 0 || count == 0 || columns == 0 || columns > w->config.picture_positions || last < first || last / columns >= w->config.picture_positions) return -E_RANGE;
    for (uint32_t v = 0; v < 256; v++) value[v] = w->dense.element == STORED_F32 ? (float)v * (float)(1.0 / 255.0) : bf16_round((float)v * (float)(1.0 / 255.0));
    for (uint32_t r = 0; r < count; r++) {
        float *row = pixels + (uint64_t)r * PICTURE_PATCH_BYTES;
        for (uint32_t i = 0; i < PICTURE_PATCH_BYTES; i++) row[i] = value[blocks[(uint64_t)r * PICTURE_PATCH_BYTES + i]];
        embedder_layer_norm(row, row, w->ln1_weight, w->ln1_bias, PICTURE_PATCH_BYTES, LAYER_NORM_EPS);
    }
    embedder_multiply(kernels, x, pixels, count, &w->dense);
    for (uint32_t r = 0; r < count; r++) {
        float *row = x + (uint64_t)r * dim;
        const float *column_position = w->position + (uint64_t)((first + r) % columns) * 2 * dim, *row_position = w->position + ((uint64_t)((first + r) / columns) * 2 + 1) * dim;
        for (uint32_t i = 0; i < dim; i++) row[i] += w->dense_bias[i];
        embedder_layer_norm(row, row, w->ln2_weight, w->ln2_bias, dim, LAYER_NORM_EPS);
        for (uint32_t i = 0; i < dim; i++) row[i] += column_position[i] + row_position[i];
        embedder_layer_norm(row, row, w->position_weight, w->position_bias, dim, LAYER_NORM_EPS);
        kernels->rmsnorm(row, row, NULL, dim, w->config.picture_eps);
    }
    embedder_multiply(kernels, out, x, count, &w->projection);
    return 0;
}

int soft_sound(const struct soft_weights *w, const struct kernels *kernels, const float *frames, uint32_t count, float *scratch, float *out)
{
    const uint32_t frame = w->config.audio_frame;

    if (frame == 0 || count == 0) return -E_RANGE;
    for (uint32_t r = 0; r < count; r++) {
        float *row = scratch + (uint64_t)r * frame;
        for (uint32_t i = 0; i < frame; i++) {
            const float sample = frames[(uint64_t)r * frame + i];
            row[i] = w->audio_projection.element == STORED_F32 ? sample : bf16_round(sample);
        }
        kernels->rmsnorm(row, row, NULL, frame, w->config.audio_eps);
    }
    embedder_multiply(kernels, out, scratch, count, &w->audio_projection);
    return 0;
}
