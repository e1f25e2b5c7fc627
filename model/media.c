/* model/media.c - see media.h. */
#include "model/media.h"

#include "schemas/media.h"
#include "schemas/sound.h"
#include "shm/error.h"

#include <jansson.h>
#include <string.h>

static json_t *open_json(const struct model_files *files, const char *name)
{
    const uint8_t *bytes;
    uint64_t byte_count;

    return model_files_find(files, name, &bytes, &byte_count) == 0 ? json_loadb((const char *)bytes, byte_count, 0, NULL) : NULL;
}

/* A token id below the vocabulary under one of two names. */
static int read_token(const json_t *root, const char *name, const char *other_name, uint32_t vocab, uint32_t *out, struct model_error *err)
{
    const json_t *value = json_object_get(root, name);

    if (!value || json_is_null(value)) value = json_object_get(root, other_name);
    if (!json_is_integer(value) || json_integer_value(value) < 0 || json_integer_value(value) >= vocab)
        return model_error_set(err, -E_FORMAT, "config.json: %s is not a token id below %u, and pictures or sound need it", name, vocab);
    *out = (uint32_t)json_integer_value(value);
    return 0;
}

static int read_tokens(const json_t *root, const struct model_config *config, struct model_media *m, struct model_error *err)
{
    int rc = 0;

    if (m->soft.picture_dim || m->siglip.image) {
        rc = read_token(root, "image_token_id", "image_token_index", config->vocab, &m->picture.place, err);
        if (rc == 0) rc = read_token(root, "boi_token_id", "boi_token_index", config->vocab, &m->picture.begin, err);
        if (rc == 0) rc = read_token(root, "eoi_token_id", "eoi_token_index", config->vocab, &m->picture.end, err);
        m->video = m->picture;
        m->has_video = rc == 0 && m->soft.picture_dim && read_token(root, "video_token_id", "video_token_index", config->vocab, &m->video.place, NULL) == 0;
    }
    if (rc == 0 && m->soft.audio_frame) {
        rc = read_token(root, "audio_token_id", "audio_token_index", config->vocab, &m->sound.place, err);
        if (rc == 0) rc = read_token(root, "boa_token_id", "boa_token_index", config->vocab, &m->sound.begin, err);
        if (rc == 0) rc = read_token(root, "eoa_token_index", "eoa_token_id", config->vocab, &m->sound.end, err);
    }
    return rc;
}

/* The processor's own budget, wherever this checkpoint keeps it. */
static uint32_t find_budget(const json_t *root, const struct model_files *files)
{
    json_t *processor = open_json(files, "processor_config.json"), *older = open_json(files, "preprocessor_config.json");
    const json_t *value = json_object_get(json_object_get(processor, "image_processor"), "max_soft_tokens");

    if (!json_is_integer(value)) value = json_object_get(older, "max_soft_tokens");
    if (!json_is_integer(value)) value = json_object_get(json_object_get(root, "vision_config"), "num_soft_tokens");
    const json_int_t budget = json_is_integer(value) ? json_integer_value(value) : PICTURE_BUDGET_DEFAULT;
    json_decref(processor);
    json_decref(older);
    return budget > 0 && budget <= UINT32_MAX ? (uint32_t)budget : 0;
}

static void describe_pictures(struct model_media *m, const json_t *root, const struct model_files *files)
{
    const struct siglip_config *s = &m->siglip;

    if (s->image) {
        m->picture_positions = s->tokens_side;
        m->picture_budget = s->tokens_side * s->tokens_side;
        m->picture_side = s->image;
        m->picture_token_bytes = s->image * s->image * 3 / m->picture_budget;
    } else if (m->soft.picture_dim) {
        m->picture_positions = m->soft.picture_positions;
        m->picture_budget = find_budget(root, files);
        m->picture_token_bytes = PICTURE_PATCH_BYTES;
    }
}

int model_media_load(struct model_media *m, const struct model_config *config, const struct model_files *files, struct model_error *err)
{
    const uint8_t *bytes;
    uint64_t byte_count;

    memset(m, 0, sizeof *m);
    int rc = model_files_find(files, "config.json", &bytes, &byte_count);
    if (rc != 0) return model_error_set(err, rc, "there is no config.json");
    if ((rc = soft_config_parse(&m->soft, config, bytes, byte_count, err)) != 0) return rc;
    if ((rc = siglip_config_parse(&m->siglip, config, bytes, byte_count, err)) != 0) return rc;
    json_t *root = json_loadb((const char *)bytes, byte_count, 0, NULL); /* parsed once already: it is JSON */
    rc = read_tokens(root, config, m, err);
    if (rc == 0 && m->soft.audio_frame && m->soft.audio_frame != SOUND_FRAME)
        rc = model_error_set(err, -E_UNSUPPORTED, "config.json: sound frames of %u samples; only %u are built", m->soft.audio_frame, SOUND_FRAME);
    describe_pictures(m, root, files);
    m->sound_seconds = m->soft.audio_frame ? MEDIA_SOUND_SECONDS : 0;
    json_decref(root);
    if (rc == 0 && m->picture_token_bytes > MEDIA_TOKEN_BYTES)
        rc = model_error_set(err, -E_UNSUPPORTED, "config.json: %u bytes of a picture for a soft token; at most %u are built", m->picture_token_bytes, MEDIA_TOKEN_BYTES);
    if (rc == 0 && m->soft.picture_dim && !picture_budget_is_known(m->picture_budget))
        return model_error_set(err, -E_UNSUPPORTED, "a picture of this model has at most %u soft tokens; known are 70, 140, 280, 560 and 1120", m->picture_budget);
    return rc;
}

/* The checkpoint's tensors, open for loading. */
static int open_tensors(struct quantization *quantization, struct safetensors *index, const struct model_files *files, struct model_error *err)
{
    const int rc = quantization_load(quantization, files, err);

    safetensors_init(index);
    return rc ? rc : safetensors_load(index, files, err);
}

int model_media_tower(struct siglip_weights *weights, const struct model_media *m, const struct model_files *files, struct model_error *err)
{
    struct quantization quantization;
    struct safetensors index;

    if (m->random) return siglip_weights_random(weights, &m->siglip);
    int rc = open_tensors(&quantization, &index, files, err);
    if (rc == 0) rc = siglip_weights_load(weights, &m->siglip, &quantization, &index, err);
    safetensors_free(&index);
    return rc;
}

int model_media_weights(struct soft_weights *weights, const struct model_media *m, const struct model_files *files, struct model_error *err)
{
    struct quantization quantization;
    struct safetensors index;

    if (m->random) return soft_weights_random(weights, &m->soft);
    int rc = open_tensors(&quantization, &index, files, err);

    if (rc == 0) rc = soft_weights_load(weights, &m->soft, &quantization, &index, err);
    safetensors_free(&index);
    return rc;
}
