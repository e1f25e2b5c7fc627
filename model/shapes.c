/* model/shapes.c - see shapes.h. Only fields whose value is not the family's default, and those that a reader would look for. */
#include "model/shapes.h"

#include <stddef.h>
#include <string.h>

static const char gemma4_12b_config[] =
    "{\"architectures\":[\"Gemma4UnifiedForConditionalGeneration\"],\"model_type\":\"gemma4_unified\",\"dtype\":\"bfloat16\",\"tie_word_embeddings\":true,\n"
    " \"eos_token_id\":[1,106],\"image_token_id\":258880,\"audio_token_id\":258881,\"video_token_id\":258884,\"boi_token_id\":255999,\"eoi_token_id\":258882,\"boa_token_id\":256000,\"eoa_token_index\":258883,\n"
    " \"vision_config\":{\"model_type\":\"gemma4_unified_vision\",\"patch_size\":16,\"pooling_kernel_size\":3,\"model_patch_size\":48,\"mm_embed_dim\":3840,\"mm_posemb_size\":1120,\"num_soft_tokens\":280,\"output_proj_dims\":3840,\"rms_norm_eps\":1e-06},\n"
    " \"audio_config\":{\"model_type\":\"gemma4_unified_audio\",\"audio_embed_dim\":640,\"audio_samples_per_token\":640,\"hidden_size\":640,\"output_proj_dims\":640,\"rms_norm_eps\":1e-06},\n"
    " \"text_config\":{\"model_type\":\"gemma4_unified_text\",\"vocab_size\":262144,\"hidden_size\":3840,\"intermediate_size\":15360,\"num_hidden_layers\":48,\n"
    "  \"sliding_window_pattern\":6,\"num_attention_heads\":16,\"num_key_value_heads\":8,\"num_global_key_value_heads\":1,\"head_dim\":256,\"global_head_dim\":512,\n"
    "  \"attention_k_eq_v\":true,\"sliding_window\":1024,\"max_position_embeddings\":262144,\"hidden_activation\":\"gelu_pytorch_tanh\",\"rms_norm_eps\":1e-06,\n"
    "  \"rope_parameters\":{\"sliding_attention\":{\"rope_type\":\"default\",\"rope_theta\":10000.0},\n"
    "   \"full_attention\":{\"rope_type\":\"proportional\",\"rope_theta\":1000000.0,\"partial_rotary_factor\":0.25}},\n"
    "  \"final_logit_softcapping\":30.0,\"use_bidirectional_attention\":\"vision\",\"pad_token_id\":0,\"bos_token_id\":2,\"eos_token_id\":1,\"dtype\":\"bfloat16\"}}\n";
static const char gemma4_12b_generation[] =
    "{\"bos_token_id\":2,\"pad_token_id\":0,\"eos_token_id\":[1,106,50],\"do_sample\":true,\"temperature\":1.0,\"top_k\":64,\"top_p\":0.95,\n"
    " \"suppress_tokens\":[258883,258882]}\n";

static const char gemma3_12b_config[] =
    "{\"architectures\":[\"Gemma3ForConditionalGeneration\"],\"model_type\":\"gemma3\",\"dtype\":\"bfloat16\",\"tie_word_embeddings\":true,\n"
    " \"eos_token_id\":[1,106],\"image_token_index\":262144,\"boi_token_index\":255999,\"eoi_token_index\":256000,\"mm_tokens_per_image\":256,\n"
    " \"vision_config\":{\"model_type\":\"siglip_vision_model\",\"hidden_size\":1152,\"intermediate_size\":4304,\"num_hidden_layers\":27,\"num_attention_heads\":16,\"image_size\":896,\"patch_size\":14,\n"
    "  \"hidden_act\":\"gelu_pytorch_tanh\",\"layer_norm_eps\":1e-06,\"vision_use_head\":false},\n"
    " \"text_config\":{\"model_type\":\"gemma3_text\",\"vocab_size\":262208,\"hidden_size\":3840,\"intermediate_size\":15360,\"num_hidden_layers\":48,\n"
    "  \"sliding_window_pattern\":6,\"num_attention_heads\":16,\"num_key_value_heads\":8,\"head_dim\":256,\"query_pre_attn_scalar\":256,\"sliding_window\":1024,\n"
    "  \"max_position_embeddings\":131072,\"hidden_activation\":\"gelu_pytorch_tanh\",\"rms_norm_eps\":1e-06,\"rope_theta\":1000000.0,\"rope_local_base_freq\":10000.0,\n"
    "  \"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":8.0},\"pad_token_id\":0,\"bos_token_id\":2,\"eos_token_id\":1,\"dtype\":\"bfloat16\"}}\n";
static const char gemma3_12b_generation[] =
    "{\"bos_token_id\":2,\"pad_token_id\":0,\"eos_token_id\":[1,106],\"do_sample\":true,\"temperature\":1.0,\"top_k\":64,\"top_p\":0.95}\n";

static const struct model_shape shapes[] = {
    {"gemma-4-12b", gemma4_12b_config, gemma4_12b_generation},
    {"gemma-3-12b", gemma3_12b_config, gemma3_12b_generation},
};

const struct model_shape *model_shape_find(const char *name)
{
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        if (strcmp(shapes[i].name, name) == 0) return &shapes[i];
    return NULL;
}

const char *model_shape_names(void)
{
    return "gemma-4-12b, gemma-3-12b";
}
