/* model/media.h - what a checkpoint says about pictures and sound: sizes, budgets, and the tokens that stand for them.
 *
 *   picture   begin, n x place, end       n soft tokens take the places; n <= picture_budget
 *   video     for each frame its time as text (mm:ss), begin, n x place, end, with a space between two frames
 *   sound     begin, n x place, end       25 a second
 * Gemma 3: "\n\n", begin, 256 x place, end, "\n\n", as text, so that the newlines join those beside them; no video, no sound.
 *
 * From config.json, and the picture budget from processor_config.json (image_processor.max_soft_tokens) or preprocessor_config.json, as the
 * reference's processor reads them; without either from vision_config.num_soft_tokens. */
#ifndef SLUICE_MODEL_MEDIA_H
#define SLUICE_MODEL_MEDIA_H

#include "model/files.h"
#include "model/siglip.h"
#include "model/soft.h"

#include <stdbool.h>

#define MEDIA_SOUND_SECONDS 30u

struct media_tokens { uint32_t begin, place, end; };

struct model_media {
    struct soft_config soft;          /* picture_dim or audio_frame 0: the model does not take it */
    struct siglip_config siglip;      /* Gemma 3; image 0: there is no tower */
    uint32_t picture_budget;          /* soft tokens of a picture, at most (with a tower: of every picture); 0: no pictures */
    uint32_t picture_positions;       /* soft tokens along a side, at most */
    uint32_t picture_side;            /* with a tower: pixels along both sides of what it takes; else 0 */
    uint32_t picture_token_bytes;     /* of what a soft token is made from */
    uint32_t sound_seconds;           /* of one sound, at most; 0: no sound */
    struct media_tokens picture, sound;
    bool has_video;                   /* frames of a video have a place token of their own: video.place; begin and end are a picture's */
    struct media_tokens video;
    bool random;                      /* set by the caller: no tensors are looked for, random ones are made */
};

/* 0 (a model of text alone: all zero), -E_FORMAT, -E_UNSUPPORTED; err names the field. */
int model_media_load(struct model_media *media, const struct model_config *config, const struct model_files *files, struct model_error *err);

/* The tensors of the tower, when there is one. Errors as siglip_weights_load. */
int model_media_tower(struct siglip_weights *weights, const struct model_media *media, const struct model_files *files, struct model_error *err);

/* The tensors for it without a tower; `media` says which. 0, -E_NOT_FOUND (config.json promises what the files lack), and as soft_weights_load. */
int model_media_weights(struct soft_weights *weights, const struct model_media *media, const struct model_files *files, struct model_error *err);

#endif
