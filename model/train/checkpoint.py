"""The demo model's files: its configuration, and weights between the trainer's names and the checkpoint's.

Writes  config.json, generation_config.json, processor_config.json and model.safetensors (BF16) as transformers' Gemma4UnifiedForConditionalGeneration reads them.
Fails   if the tokenizer lacks a special token.
"""
import json
import pathlib

import torch
from safetensors import torch as safetensors_torch

DEMO = pathlib.Path(__file__).resolve().parent.parent / "demo"
PREFIX = "model.language_model."
SENSES_PREFIX = "model."
PICTURE_TOKENS = 70         # the smallest budget that the processors know
SOUND_TOKENS = 750


def token_ids(tokenizer_json):
    """Content -> id of each added token."""
    return {t["content"]: t["id"] for t in json.loads(pathlib.Path(tokenizer_json).read_text())["added_tokens"]}


def text_config(vocab_size):
    return {
        "model_type": "gemma4_unified_text", "vocab_size": vocab_size, "hidden_size": 256, "intermediate_size": 768,
        "num_hidden_layers": 6, "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "num_global_key_value_heads": 1,
        "head_dim": 256, "global_head_dim": 512, "attention_k_eq_v": True, "attention_bias": False, "attention_dropout": 0.0,
        "sliding_window": 256, "max_position_embeddings": 8192, "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "proportional", "rope_theta": 1000000.0, "partial_rotary_factor": 0.25}},
        "final_logit_softcapping": 30.0, "use_bidirectional_attention": "vision", "num_kv_shared_layers": 0,
        "use_double_wide_mlp": False, "enable_moe_block": False, "hidden_size_per_layer_input": 0, "initializer_range": 0.02,
        "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "tie_word_embeddings": True, "use_cache": True, "dtype": "bfloat16"}


def vision_config():
    return {"model_type": "gemma4_unified_vision", "patch_size": 16, "pooling_kernel_size": 3, "model_patch_size": 48, "mm_embed_dim": 128, "mm_posemb_size": 280,
            "num_soft_tokens": PICTURE_TOKENS, "output_proj_dims": 128, "rms_norm_eps": 1e-6, "initializer_range": 0.02, "dtype": "bfloat16"}


def audio_config():
    return {"model_type": "gemma4_unified_audio", "audio_embed_dim": 640, "audio_samples_per_token": 640, "hidden_size": 640, "output_proj_dims": 640,
            "rms_norm_eps": 1e-6, "initializer_range": 0.02, "dtype": "bfloat16"}


def processor_config():
    """How pictures and sounds become soft tokens; resample 3: bicubic."""
    return {
        "processor_class": "Gemma4UnifiedProcessor", "image_seq_length": PICTURE_TOKENS, "audio_seq_length": SOUND_TOKENS, "audio_ms_per_token": 40,
        "image_processor": {"image_processor_type": "Gemma4UnifiedImageProcessor", "do_convert_rgb": True, "do_normalize": False, "do_rescale": True, "do_resize": True,
                            "image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0], "max_soft_tokens": PICTURE_TOKENS, "patch_size": 16,
                            "pooling_kernel_size": 3, "resample": 3, "rescale_factor": 1 / 255},
        "video_processor": {"video_processor_type": "Gemma4UnifiedVideoProcessor", "do_convert_rgb": True, "do_normalize": False, "do_rescale": True, "do_resize": True,
                            "image_mean": [0.0, 0.0, 0.0], "image_std": [1.0, 1.0, 1.0], "max_soft_tokens": 70, "num_frames": 32, "patch_size": 16,
                            "pooling_kernel_size": 3, "resample": 3, "rescale_factor": 1 / 255},
        "feature_extractor": {"feature_extractor_type": "Gemma4UnifiedAudioFeatureExtractor", "audio_samples_per_token": 640, "feature_size": 640,
                              "padding_value": 0.0, "sampling_rate": 16000}}


def config(tokenizer_json):
    ids = token_ids(tokenizer_json)
    vocab = len(json.loads(pathlib.Path(tokenizer_json).read_text())["model"]["vocab"])
    return {
        "architectures": ["Gemma4UnifiedForConditionalGeneration"], "model_type": "gemma4_unified", "dtype": "bfloat16",
        "tie_word_embeddings": True, "eos_token_id": [ids["<eos>"], ids["<turn|>"]], "initializer_range": 0.02,
        "image_token_id": ids["<|image|>"], "video_token_id": ids["<|video|>"], "audio_token_id": ids["<|audio|>"],
        "boi_token_id": ids["<|image>"], "eoi_token_id": ids["<image|>"], "boa_token_id": ids["<|audio>"],
        "eoa_token_index": ids["<audio|>"], "vision_config": vision_config(), "audio_config": audio_config(), "text_config": text_config(vocab),
        "transformers_version": "5.17.0"}


def generation_config(tokenizer_json):
    ids = token_ids(tokenizer_json)
    return {
        "bos_token_id": ids["<bos>"], "pad_token_id": ids["<pad>"],
        "eos_token_id": [ids["<eos>"], ids["<turn|>"], ids["<|tool_response>"]],
        "do_sample": True, "temperature": 1.0, "top_k": 64, "top_p": 0.95,
        "suppress_tokens": [ids["<audio|>"], ids["<image|>"]], "transformers_version": "5.17.0"}


def write_configs(folder=DEMO):
    tokenizer = DEMO / "tokenizer.json"
    files = (("config.json", config(tokenizer)), ("generation_config.json", generation_config(tokenizer)), ("processor_config.json", processor_config()))
    for name, value in files:
        (pathlib.Path(folder) / name).write_text(json.dumps(value, indent=2) + "\n")


def save(network, senses, path):
    """The weights as a BF16 checkpoint."""
    names = {PREFIX + name: p for name, p in network.state_dict().items()} | {SENSES_PREFIX + name: p for name, p in senses.state_dict().items()}
    tensors = {name: p.detach().to(torch.bfloat16).cpu().contiguous() for name, p in names.items()}
    safetensors_torch.save_file(tensors, str(path), metadata={"format": "pt"})


def load(network, path):
    """A checkpoint's weights of the language model into the network."""
    tensors = safetensors_torch.load_file(str(path))
    network.load_state_dict({name.removeprefix(PREFIX): t.float() for name, t in tensors.items() if name.startswith(PREFIX)})


def load_senses(senses, path):
    """Those of the parts that see and hear. False: the checkpoint has none."""
    tensors = {name: t for name, t in safetensors_torch.load_file(str(path)).items() if not name.startswith(PREFIX)}
    if tensors:
        senses.load_state_dict({name.removeprefix(SENSES_PREFIX): t.float() for name, t in tensors.items()})
    return bool(tensors)
