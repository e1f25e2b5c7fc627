/* model/engine_spec.c - says a model's shape in the words of the CUDA kernels. Arithmetic only: no GPU, no library. */
#include "kernels/cuda/cuda_backend.h"
#include "model/engine.h"
#include "model/weights.h"
#include "shm/error.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

_Static_assert(CUDA_Q == 0 && CUDA_DOWN == MODEL_MATRICES - 1 && MODEL_MATRICES <= CUDA_MATRICES, "matrices are numbered alike");
_Static_assert(WEIGHT_GROUP == STORED_GROUP && WEIGHT_BLOCK == STORED_BLOCK, "one size of groups and blocks");
_Static_assert(MODEL_LAYERS_MAX <= CUDA_LAYERS_MAX, "every layer has a place");

static const char *const format_names[] = {[WEIGHT_FP8] = "fp8", [WEIGHT_BF16] = "bf16", [WEIGHT_F32] = "f32", [WEIGHT_FP8_BLOCK] = "fp8-block128", [WEIGHT_FP4] = "nvfp4"};

const char *engine_weights_format_name(uint32_t format)
{
    return format > 0 && format < sizeof format_names / sizeof *format_names ? format_names[format] : "?";
}

uint32_t engine_weights_format(const char *name)
{
    for (uint32_t i = 1; i < sizeof format_names / sizeof *format_names; i++)
        if (strcmp(format_names[i], name) == 0) return i;
    return 0;
}

uint32_t engine_matrix_format(const struct stored_matrix *m)
{
    if (m->element == STORED_BF16) return WEIGHT_BF16;
    if (m->element == STORED_F32) return WEIGHT_F32;
    if (m->element == STORED_E2M1) return m->scale_columns == WEIGHT_GROUP ? WEIGHT_FP4 : 0;
    if (m->scale_columns >= m->k && (m->scale_rows == 1 || m->scale_rows >= m->rows)) return WEIGHT_FP8;
    return m->scale_columns == WEIGHT_BLOCK && m->scale_rows == WEIGHT_BLOCK ? WEIGHT_FP8_BLOCK : 0;
}

int engine_cuda_formats(struct cuda_layer_format *formats, const struct model_config *config, const struct model_weights *weights, bool activations, struct model_error *err)
{
    memset(formats, 0, config->layer_count * sizeof *formats);
    for (uint32_t i = 0; i < config->layer_count; i++)
        for (uint32_t which = 0; which < MODEL_MATRICES; which++) { /* in the order of enum cuda_tensor */
            const struct stored_matrix *m = model_matrix(weights, i, which);
            struct cuda_layer_format *f = &formats[i];
            if (!m->data) continue;
            if ((f->format[which] = (uint8_t)engine_matrix_format(m)) == 0) {
                snprintf(err->text, sizeof err->text, "layers.%u.%s is stored in a format that the GPU does not compute", i, model_matrix_name(which));
                return -E_UNSUPPORTED;
            }
            f->activation[which] = activations ? (uint8_t)m->activation : STORED_AS_IS;
            f->input_scale[which] = f->activation[which] == STORED_STATIC ? m->input_scale : 0;
        }
    return 0;
}

/* Pairs that turn, and what positions are divided by: as model/forward_rope.c does it. */
static void put_rope(struct cuda_model_spec *spec, const struct rope_config *rope, uint32_t type)
{
    const uint32_t head_dim = spec->head_dim[type];

    spec->rope_theta[type] = rope->theta;
    spec->rope_divisor[type] = rope->factor;
    spec->rope_turned[type] = rope->type == ROPE_PROPORTIONAL ? (uint32_t)floor(rope->partial_rotary_factor * head_dim / 2) : head_dim / 2;
}

static int put_layers(struct cuda_model_spec *spec, const struct model_config *c, const struct kv_geometry *geometry, struct model_error *err)
{
    for (uint32_t i = 0; i < c->layer_count; i++) {
        const struct layer_config *l = &c->layer[i];
        if (spec->head_dim[l->type] && (spec->head_dim[l->type] != l->head_dim || spec->kv_heads[l->type] != l->kv_heads)) {
            snprintf(err->text, sizeof err->text, "layer %u has other heads than the layers of its type before it", i);
            return -E_UNSUPPORTED;
        }
        spec->head_dim[l->type] = l->head_dim;
        spec->kv_heads[l->type] = l->kv_heads;
        spec->layer[i] = (struct cuda_layer_spec){.type = l->type, .has_v = l->has_v, .k_offset = geometry->layer[i].k_offset, .v_offset = geometry->layer[i].v_offset};
    }
    for (uint32_t type = 0; type < LAYER_TYPES; type++) { /* a model may have layers of one type only: the other has a shape all the same */
        if (spec->head_dim[type]) continue;
        spec->head_dim[type] = spec->head_dim[!type];
        spec->kv_heads[type] = spec->kv_heads[!type];
    }
    return 0;
}

int engine_cuda_spec(struct cuda_model_spec *spec, const struct model_config *config, const struct generation_config *generation,
                     const struct kv_geometry *geometry, uint32_t weights_format, const struct cuda_layer_format *formats, struct model_error *err)
{
    memset(spec, 0, sizeof *spec);
    if (generation->suppress_count > CUDA_SUPPRESS_MAX) {
        snprintf(err->text, sizeof err->text, "suppress_tokens names %u tokens, the GPU's sampler takes %u", generation->suppress_count, CUDA_SUPPRESS_MAX);
        return -E_UNSUPPORTED;
    }
    spec->hidden = config->hidden;
    spec->intermediate = config->intermediate;
    spec->vocab = config->vocab;
    spec->layers = config->layer_count;
    spec->q_heads = config->q_heads;
    spec->window = config->window;
    spec->format = weights_format;
    spec->norm_plus_one = config->norm_plus_one;
    spec->has_v_norm = config->has_v_norm;
    spec->norm_eps = config->norm_eps;
    spec->softcap = config->final_softcap;
    spec->embed_scale = model_embed_scale(config->hidden, weights_format == WEIGHT_F32 ? DTYPE_F32 : DTYPE_BF16);
    spec->attention_scale = config->attention_scale;
    spec->full_ahead = config->vision_bidirectional && config->family == MODEL_GEMMA3;
    spec->suppress_count = generation->suppress_count;
    memcpy(spec->suppress, generation->suppress_token, generation->suppress_count * sizeof *spec->suppress);
    spec->page_bytes[CUDA_SLIDING] = geometry->sliding_page_bytes;
    spec->page_bytes[CUDA_FULL] = geometry->full_page_bytes;
    const int rc = put_layers(spec, config, geometry, err);
    if (rc != 0) return rc;
    for (uint32_t i = 0; formats && i < config->layer_count; i++) spec->layer[i].stored = formats[i];
    put_rope(spec, &config->rope[LAYER_SLIDING], CUDA_SLIDING);
    put_rope(spec, &config->rope[LAYER_FULL], CUDA_FULL);
    return 0;
}
