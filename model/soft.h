/* model/soft.h - soft tokens: pictures and sound projected straight into the sequence (Gemma 4 unified has no encoders).
 *
 *   picture block  x = LN1(pixels) ; x = LN2(dense x + bias) ; x = LN3(x + pos[column, 0] + pos[row, 1]) ; soft = projection (x / rms(x))
 *   sound frame    soft = projection (x / rms(x)) of 640 samples
 *
 * LN is LayerNorm with weight, bias and eps 1e-5. The result takes the place of embedding rows as it is, without the factor sqrt(hidden)
 * (forward_set_soft). Checkpoints spell the tensors' names in two ways, both are known. Weights may be stored in any format of kernels/stored.h.
 *
 * f32 arithmetic, with one rounding of the reference kept: where the dense matrix is not F32, pixels are rounded to bf16 first; LN1 of an
 * almost even block divides by next to nothing, so that the rounding shows. The bits of a soft token do not depend on its neighbours. */
#ifndef SLUICE_MODEL_SOFT_H
#define SLUICE_MODEL_SOFT_H

#include "kernels/kernels.h"
#include "model/config.h"
#include "model/picture.h"
#include "model/quantization.h"
#include "model/safetensors.h"

#define SOFT_AUDIO_FRAME_MAX 4096u

struct soft_config {
    uint32_t hidden;                  /* of the text model: what comes out */
    uint32_t picture_dim;             /* mm_embed_dim; 0: the checkpoint sees no pictures */
    uint32_t picture_positions;       /* rows of the position table: most blocks along one side */
    float picture_eps;                /* of the norm before the projection */
    uint32_t audio_frame;             /* samples of a soft token; 0: the checkpoint hears nothing */
    float audio_eps;
};

struct soft_weights {
    struct soft_config config;
    const float *ln1_weight, *ln1_bias;          /* [PICTURE_PATCH_BYTES]   f32, owned */
    struct stored_matrix dense;                  /* [picture_dim, PICTURE_PATCH_BYTES] */
    const float *dense_bias;                     /* [picture_dim] */
    const float *ln2_weight, *ln2_bias;          /* [picture_dim] */
    const float *position;                       /* [picture_positions][2][picture_dim]: column, row */
    const float *position_weight, *position_bias;/* [picture_dim]: LN3 */
    struct stored_matrix projection;             /* [hidden, picture_dim] */
    struct stored_matrix audio_projection;       /* [hidden, audio_frame] */
    float *owned;
};

/* vision_config and audio_config of config.json. 0, -E_FORMAT, -E_UNSUPPORTED (other sizes of blocks); err names the field. */
int soft_config_parse(struct soft_config *soft, const struct model_config *config, const uint8_t *json, uint64_t byte_count, struct model_error *err);

/* Finds and checks the tensors of what the configuration has. 0, -E_NOT_FOUND, -E_FORMAT, -E_UNSUPPORTED, -E_NOMEM; err names the tensor. */
int soft_weights_load(struct soft_weights *weights, const struct soft_config *soft, const struct quantization *quantization, struct safetensors *index, struct model_error *err);
/* The same without a checkpoint: every number follows from its place, of a size that keeps the rows at that of an embedding. -E_NOMEM. */
int soft_weights_random(struct soft_weights *weights, const struct soft_config *soft);
void soft_weights_free(struct soft_weights *weights);

/* Floats of scratch that a call for `count` soft tokens needs. */
uint64_t soft_scratch_floats(const struct soft_config *soft, uint32_t count);

/* Blocks [count][PICTURE_PATCH_BYTES] of one picture that is `columns` blocks wide, the first of them number `first` in it, to out [count][hidden].
 * -E_RANGE: no pictures, or more blocks along a side than the position table has. */
int soft_picture(const struct soft_weights *weights, const struct kernels *kernels, const uint8_t *blocks, uint32_t count, uint32_t first, uint32_t columns, float *scratch, float *out);

/* Frames [count][audio_frame] to out [count][hidden]. -E_RANGE: no audio. */
int soft_sound(const struct soft_weights *weights, const struct kernels *kernels, const float *frames, uint32_t count, float *scratch, float *out);

#endif
