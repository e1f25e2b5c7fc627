/* model/siglip.h - what Gemma 3 sees: a picture of 896 x 896 pixels through a SigLIP tower and a projector becomes 256 soft tokens.
 *
 *   x = patches (14 x 14) * embedding + bias + position
 *   27 times   x += attention(LN1(x)) ; x += fc2(gelu_tanh(fc1(LN2(x))))          every patch sees every patch
 *   soft = RMSNorm(mean of 4 x 4 neighbours of LN(x)) * projection
 *
 * The soft tokens take the place of embedding rows as they are, without the factor sqrt(hidden). f32 arithmetic over weights in any format of
 * kernels/stored.h. Bits depend on neither the number of threads nor on what else runs. Sizes come from config.json; smaller towers work too. */
#ifndef SLUICE_MODEL_SIGLIP_H
#define SLUICE_MODEL_SIGLIP_H

#include "kernels/kernels.h"
#include "kernels/pool.h"
#include "model/config.h"
#include "model/quantization.h"
#include "model/safetensors.h"

#define SIGLIP_LAYERS_MAX 64u
#define SIGLIP_CROPS_MAX 16u          /* of pan and scan, besides the whole picture */

struct siglip_config {
    uint32_t image;                   /* pixels along a side: 896; 0: the checkpoint sees nothing */
    uint32_t patch;                   /* pixels along a side: 14 */
    uint32_t side;                    /* patches along a side: 64 */
    uint32_t hidden, inner, heads, layers;
    uint32_t tokens_side;             /* soft tokens along a side: 16 */
    uint32_t text_hidden;             /* of the language model: what comes out */
    float eps;                        /* of LayerNorm, and of the norm before the projection */
};

struct siglip_layer {
    const float *ln1_weight, *ln1_bias, *ln2_weight, *ln2_bias;              /* [hidden], owned by siglip_weights */
    const float *q_bias, *k_bias, *v_bias, *out_bias, *fc1_bias, *fc2_bias;  /* the same */
    struct stored_matrix q, k, v, out;                                       /* [hidden, hidden] */
    struct stored_matrix fc1, fc2;                                           /* [inner, hidden], [hidden, inner] */
};

struct siglip_weights {
    struct siglip_config config;
    const float *patch;               /* [hidden][patch values rounded up to KERNELS_LANES]: colour, row, column; zeros behind */
    const float *patch_bias;          /* [hidden] */
    const float *position;            /* [side * side][hidden] */
    const float *post_weight, *post_bias;
    const float *norm;                /* [hidden]: 1 + the stored weight */
    const float *projection;          /* [text_hidden][hidden]: the stored matrix, turned */
    struct siglip_layer layer[SIGLIP_LAYERS_MAX];
    float *owned;
};

/* vision_config and mm_tokens_per_image of a Gemma 3 config.json; image 0 for other families and for text alone. 0, -E_FORMAT,
 * -E_UNSUPPORTED; err names the field. */
int siglip_config_parse(struct siglip_config *siglip, const struct model_config *config, const uint8_t *json, uint64_t byte_count, struct model_error *err);

/* Finds and checks the tensors. 0, -E_NOT_FOUND, -E_FORMAT, -E_UNSUPPORTED, -E_NOMEM; err names the tensor. */
int siglip_weights_load(struct siglip_weights *weights, const struct siglip_config *siglip, const struct quantization *quantization, struct safetensors *index, struct model_error *err);
/* The same without a checkpoint: every number follows from its place. All layers share one layer's matrices: for measuring. -E_NOMEM. */
int siglip_weights_random(struct siglip_weights *weights, const struct siglip_config *siglip);
void siglip_weights_free(struct siglip_weights *weights);

struct siglip;                        /* weights, kernels and pool are borrowed until siglip_close */
int siglip_open(struct siglip **siglip, const struct siglip_weights *weights, const struct kernels *kernels, struct pool *pool); /* 0, -E_NOMEM, -E_RANGE: no tower */
void siglip_close(struct siglip *siglip);
uint64_t siglip_bytes(const struct siglip_config *config, uint32_t threads);    /* what siglip_open allocates */

/* Called again and again while a picture is worked on, which takes seconds on a few cores. */
void siglip_set_progress(struct siglip *siglip, void (*progress)(void *context), void *context);

/* One picture rgb [image][image][3] (picture_resize with PICTURE_BILINEAR made it so) to out [tokens_side * tokens_side][text_hidden]. */
void siglip_embed(struct siglip *siglip, const uint8_t *rgb, float *out);

/* ---- pan and scan: long pictures are also shown in pieces -------------------------------------- */

struct siglip_crop { uint32_t x, y, width, height; };
struct siglip_pan {
    uint32_t side_min;                /* pixels; pieces smaller than this are not made: 256 */
    uint32_t crops_max;               /* 2 .. SIGLIP_CROPS_MAX: 4 */
    double ratio_min;                 /* of the longer to the shorter side: 1.2 */
};

/* The pieces in the order in which they are shown, behind the whole picture. Their number; 0: the picture is shown whole only. */
uint32_t siglip_crops(const struct siglip_pan *pan, uint32_t width, uint32_t height, struct siglip_crop crops[SIGLIP_CROPS_MAX]);

#endif
