/* model/config.h - what a checkpoint's config.json and generation_config.json say, checked.
 *
 * model_config_parse accepts gemma4_unified (12B: text inside "text_config", or a text-only
 * export at the top level) and gemma3, and refuses every field value that this server
 * does not compute: the error names the field and the value. Nothing later in the
 * program looks at the JSON again, but for "quantization_config" (model/quantization.h). */
#ifndef SLUICE_MODEL_CONFIG_H
#define SLUICE_MODEL_CONFIG_H

#include "model/files.h"
#include <stdbool.h>
#include <stdint.h>

#define MODEL_LAYERS_MAX 128
#define MODEL_EOS_MAX 16
#define MODEL_SUPPRESS_MAX 64
#define DSPARK_SOURCES_MAX 8          /* layers of the target that a DSpark drafter reads */
#define DSPARK_BLOCK_MAX 16
#define DSPARK_RANK_MAX 4096
#define MODEL_TOKEN_NONE UINT32_MAX   /* the config has no such token */
#define MODEL_HEAD_DIM_MAX 512
#define MODEL_DIM_ALIGN 16            /* hidden, intermediate and head sizes are multiples: the lanes of a dot product */

enum model_family { MODEL_GEMMA4_UNIFIED = 1, MODEL_GEMMA3 = 2 };
enum layer_type { LAYER_SLIDING = 0, LAYER_FULL = 1, LAYER_TYPES = 2 };
enum rope_type { ROPE_DEFAULT = 0, ROPE_PROPORTIONAL = 1, ROPE_LINEAR = 2 };

struct rope_config {                  /* one per layer type */
    enum rope_type type;
    double theta;
    double partial_rotary_factor;     /* proportional: the share of the head's pairs that turns */
    double factor;                    /* linear: inv_freq is divided by it */
};

struct layer_config {
    enum layer_type type;
    uint32_t head_dim;                /* elements of one head */
    uint32_t kv_heads;                /* query head j reads kv head j / (q_heads / kv_heads) */
    bool has_v;                       /* false: the value is the key projection before norm and rotation */
    uint32_t type_index;              /* index among the layers of the same type: its place in a KV page */
};

struct model_config {
    enum model_family family;
    uint32_t vocab;                   /* rows of the embedding table */
    uint32_t hidden;
    uint32_t intermediate;
    uint32_t layer_count;
    uint32_t q_heads;
    uint32_t window;                  /* a sliding layer sees keys p - window + 1 .. p */
    uint32_t max_position;
    float norm_eps;
    float attention_scale;            /* multiplies q.k: 1 for gemma 4 */
    float final_softcap;              /* 0: none */
    bool norm_plus_one;               /* norm weights are stored as w - 1 (gemma 3) */
    bool has_v_norm;                  /* values are normed without weight (gemma 4) */
    bool has_layer_scalar;            /* each layer ends with h *= scalar (gemma 4) */
    bool vision_bidirectional;        /* image tokens of one block see each other */
    struct rope_config rope[LAYER_TYPES];
    uint32_t type_count[LAYER_TYPES]; /* layers of each type */
    struct layer_config layer[MODEL_LAYERS_MAX];
    uint32_t pad_token, bos_token;    /* MODEL_TOKEN_NONE if absent */
    uint32_t eos_count;
    uint32_t eos_token[MODEL_EOS_MAX];/* of config.json; generation_config usually has more */
    uint32_t image_token, video_token, audio_token;        /* MODEL_TOKEN_NONE if absent */
    uint32_t boi_token, eoi_token, boa_token, eoa_token;
};

/* A DSpark drafter: layers of its own, fed by what some of the target's layers leave behind. */
struct dspark_config {
    struct model_config layers;       /* the drafter's own; all see every position */
    uint32_t target_layer_count;      /* of the model that it drafts for */
    uint32_t source_count;
    uint32_t source[DSPARK_SOURCES_MAX];          /* layers of the target, ascending, the last layer never among them */
    uint32_t block;                   /* positions drafted in one pass */
    uint32_t mask_token;              /* stands at the positions to be guessed */
    uint32_t markov_rank;             /* 0: positions of a block do not see the token before them */
    bool confidence;                  /* has a head that foresees acceptance */
    bool confidence_sees_token;       /* which also reads the token before */
};

struct generation_config {
    uint32_t eos_count;
    uint32_t eos_token[MODEL_EOS_MAX];            /* never empty after parsing */
    uint32_t suppress_count;
    uint32_t suppress_token[MODEL_SUPPRESS_MAX];  /* never sampled, also greedily */
    bool do_sample;
    float temperature;                            /* as stored, or 1 */
    uint32_t top_k;                               /* as stored, or 0 = off */
    float top_p;                                  /* as stored, or 1 = off */
    float min_p;                                  /* as stored, or 0 = off */
};

/* Parses config.json. 0, -E_FORMAT (not JSON, wrong type, missing), -E_RANGE, -E_UNSUPPORTED; err names the field. */
int model_config_parse(struct model_config *config, const uint8_t *json, uint64_t byte_count, struct model_error *err);

/* Parses the config.json of an MTP assistant (gemma4_unified_assistant): its own text part, whose layers have queries only, and
 * the hidden size of the model that it drafts for. Errors as above; also -E_UNSUPPORTED for ordered embeddings. */
int assistant_config_parse(struct model_config *config, uint32_t *backbone_hidden, const uint8_t *json, uint64_t byte_count, struct model_error *err);

/* Parses the config.json of a DSpark drafter (architectures ["Gemma4DSparkModel"]). Errors as above. */
int dspark_config_parse(struct dspark_config *config, const uint8_t *json, uint64_t byte_count, struct model_error *err);

/* Parses generation_config.json; json NULL: the file is absent and config's eos list is used.
 * -E_FORMAT, -E_RANGE (also: no end token anywhere). */
int generation_config_parse(struct generation_config *generation, const struct model_config *config,
                            const uint8_t *json, uint64_t byte_count, struct model_error *err);

/* Both from the set of files. */
int model_config_load(struct model_config *config, struct generation_config *generation,
                      const struct model_files *files, struct model_error *err);

/* Elements of all query heads (or kv heads) of one layer. */
static inline uint32_t model_q_dim(const struct model_config *c, uint32_t layer) { return c->q_heads * c->layer[layer].head_dim; }
static inline uint32_t model_kv_dim(const struct model_config *c, uint32_t layer) { return c->layer[layer].kv_heads * c->layer[layer].head_dim; }

#endif
