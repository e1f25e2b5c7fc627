"""The demo model's files: its configuration, and weights between the trainer's names and the checkpoint's.

Writes  config.json, generation_config.json and model.safetensors (BF16) as transformers' Gemma4UnifiedForConditionalGeneration reads them.
Fails   if the tokenizer lacks a special token.
"""
import json
import pathlib

import torch
from safetensors import torch as safetensors_torch

DEMO = pathlib.Path(__file__).resolve().parent.parent / "demo"
PREFIX = "model.language_model."


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


def config(tokenizer_json):
    ids = token_ids(tokenizer_json)
    vocab = len(json.loads(pathlib.Path(tokenizer_json).read_text())["model"]["vocab"])
    return {
        "architectures": ["Gemma4UnifiedForConditionalGeneration"], "model_type": "gemma4_unified", "dtype": "bfloat16",
        "tie_word_embeddings": True, "eos_token_id": [ids["<eos>"], ids["<turn|>"]], "initializer_range": 0.02,
        "image_token_id": ids["<|image|>"], "video_token_id": ids["<|video|>"], "audio_token_id": ids["<|audio|>"],
        "boi_token_id": ids["<|image>"], "eoi_token_id": ids["<image|>"], "boa_token_id": ids["<|audio>"],
        "eoa_token_index": ids["<audio|>"], "vision_config": None, "audio_config": None, "text_config": text_config(vocab),
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
    for name, value in (("config.json", config(tokenizer)), ("generation_config.json", generation_config(tokenizer))):
        (pathlib.Path(folder) / name).write_text(json.dumps(value, indent=2) + "\n")


def save(network, path):
    """The network's weights as a BF16 checkpoint."""
    tensors = {PREFIX + name: p.detach().to(torch.bfloat16).cpu().contiguous() for name, p in network.state_dict().items()}
    safetensors_torch.save_file(tensors, str(path), metadata={"format": "pt"})


def load(network, path):
    """Weights of a checkpoint into the network."""
    tensors = safetensors_torch.load_file(str(path))
    network.load_state_dict({name.removeprefix(PREFIX): t.float() for name, t in tensors.items()})
