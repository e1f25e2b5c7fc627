"""tests/gpu/drafter_files.py - writes a random MTP assistant or DSpark head that fits a target: real shapes and bytes without a checkpoint. Standard library only."""
import json
import math
import os
import random
import struct

GEMMA_12B = {"backbone": 3840, "vocab": 262144, "hidden": 1024, "intermediate": 8192, "layers": ["sliding_attention"] * 3 + ["full_attention"], "heads": 16, "kv_heads": 8, "global_kv_heads": 1,
             "head_dim": 256, "global_head_dim": 512, "window": 1024}
DEMO = {"backbone": 256, "vocab": 2048, "hidden": 128, "intermediate": 384, "layers": ["sliding_attention", "full_attention"], "heads": 4, "kv_heads": 2, "global_kv_heads": 1,
        "head_dim": 256, "global_head_dim": 512, "window": 256}
BLOCK = 1 << 18  # random values, repeated: as many as rows of a vocabulary, so that no two rows are the same (equal logits make the drafter's choice slow)


def config(s):
    text = {"model_type": "gemma4_unified_text", "vocab_size": s["vocab"], "hidden_size": s["hidden"], "intermediate_size": s["intermediate"], "num_hidden_layers": len(s["layers"]),
            "layer_types": s["layers"], "num_attention_heads": s["heads"], "num_key_value_heads": s["kv_heads"], "num_global_key_value_heads": s["global_kv_heads"], "head_dim": s["head_dim"],
            "global_head_dim": s["global_head_dim"], "attention_k_eq_v": True, "attention_bias": False, "sliding_window": s["window"], "max_position_embeddings": 262144,
            "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-06,
            "rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                                "full_attention": {"rope_type": "proportional", "rope_theta": 1000000.0, "partial_rotary_factor": 0.25}},
            "final_logit_softcapping": None, "num_kv_shared_layers": len(s["layers"]), "use_double_wide_mlp": False, "enable_moe_block": False, "hidden_size_per_layer_input": 0,
            "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "tie_word_embeddings": True}
    return {"architectures": ["Gemma4UnifiedAssistantForCausalLM"], "model_type": "gemma4_unified_assistant", "backbone_hidden_size": s["backbone"], "use_ordered_embeddings": False,
            "tie_word_embeddings": True, "dtype": "bfloat16", "text_config": text}


def tensors(s):
    """Name, shape and the size of a value (None: all ones) of every tensor."""
    hidden, wide = s["hidden"], s["intermediate"]
    yield "model.embed_tokens.weight", [s["vocab"], hidden], 1 / math.sqrt(hidden)
    yield "model.norm.weight", [hidden], None
    yield "pre_projection.weight", [hidden, 2 * s["backbone"]], 1 / math.sqrt(2 * s["backbone"])
    yield "post_projection.weight", [s["backbone"], hidden], 1 / math.sqrt(hidden)
    for i, kind in enumerate(s["layers"]):
        at, dim = f"model.layers.{i}.", s["global_head_dim"] if kind == "full_attention" else s["head_dim"]
        for name in ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"):
            yield at + name + ".weight", [hidden], None
        yield at + "layer_scalar", [1], None
        yield at + "self_attn.q_norm.weight", [dim], None
        yield at + "self_attn.q_proj.weight", [s["heads"] * dim, hidden], 1 / math.sqrt(hidden)
        yield at + "self_attn.o_proj.weight", [hidden, s["heads"] * dim], 1 / math.sqrt(s["heads"] * dim)
        yield at + "mlp.gate_proj.weight", [wide, hidden], 1 / math.sqrt(hidden)
        yield at + "mlp.up_proj.weight", [wide, hidden], 1 / math.sqrt(hidden)
        yield at + "mlp.down_proj.weight", [hidden, wide], 1 / math.sqrt(wide)


def bf16(x):
    return struct.pack("<f", x)[2:]


DSPARK_12B = {"vocab": 262144, "hidden": 3840, "intermediate": 15360, "layers": 5, "heads": 16, "head_dim": 512, "rank": 256, "block": 7, "sources": [5, 17, 29, 41, 46], "target_layers": 48}


def dspark_config(s):
    return {"architectures": ["Gemma4DSparkModel"], "model_type": "gemma4_text", "target_model_type": "gemma4_unified", "target_text_model_type": "gemma4_unified_text",
            "num_target_layers": s["target_layers"], "target_layer_ids": s["sources"], "block_size": s["block"], "mask_token_id": 4, "num_anchors": 512, "markov_rank": s["rank"],
            "markov_head_type": "vanilla", "enable_confidence_head": True, "confidence_head_with_markov": True, "vocab_size": s["vocab"], "hidden_size": s["hidden"],
            "intermediate_size": s["intermediate"], "num_hidden_layers": s["layers"], "layer_types": ["full_attention"] * s["layers"], "num_attention_heads": s["heads"], "num_key_value_heads": 8,
            "num_global_key_value_heads": 1, "head_dim": 256, "global_head_dim": s["head_dim"], "attention_k_eq_v": True, "attention_bias": False, "sliding_window": 1024,
            "max_position_embeddings": 262144, "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-06,
            "rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                                "full_attention": {"rope_type": "proportional", "rope_theta": 1000000.0, "partial_rotary_factor": 0.25}},
            "final_logit_softcapping": 30.0, "num_kv_shared_layers": 0, "use_double_wide_mlp": False, "enable_moe_block": False, "hidden_size_per_layer_input": 0,
            "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "tie_word_embeddings": False, "dtype": "bfloat16"}


def dspark_tensors(s):
    """As tensors(), without embedding and output matrix: they are the target's."""
    hidden, wide, dim, heads = s["hidden"], s["intermediate"], s["head_dim"], s["heads"]
    yield "fc.weight", [hidden, len(s["sources"]) * hidden], 1 / math.sqrt(len(s["sources"]) * hidden)
    yield "hidden_norm.weight", [hidden], None
    yield "norm.weight", [hidden], None
    yield "markov_head.markov_w1.weight", [s["vocab"], s["rank"]], 1.0
    yield "markov_head.markov_w2.weight", [s["vocab"], s["rank"]], 0.1
    yield "confidence_head.proj.weight", [1, hidden + s["rank"]], 0.01
    yield "confidence_head.proj.bias", [1], None
    for i in range(s["layers"]):
        at = f"layers.{i}."
        for name in ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"):
            yield at + name + ".weight", [hidden], None
        yield at + "layer_scalar", [1], None
        yield at + "self_attn.q_norm.weight", [dim], None
        yield at + "self_attn.k_norm.weight", [dim], None
        yield at + "self_attn.q_proj.weight", [heads * dim, hidden], 1 / math.sqrt(hidden)
        yield at + "self_attn.k_proj.weight", [dim, hidden], 1 / math.sqrt(hidden)
        yield at + "self_attn.o_proj.weight", [hidden, heads * dim], 1 / math.sqrt(heads * dim)
        yield at + "mlp.gate_proj.weight", [wide, hidden], 1 / math.sqrt(hidden)
        yield at + "mlp.up_proj.weight", [wide, hidden], 1 / math.sqrt(hidden)
        yield at + "mlp.down_proj.weight", [hidden, wide], 1 / math.sqrt(wide)


def write_assistant(folder, shape):
    write(folder, config(shape), list(tensors(shape)))


def write_dspark(folder, shape):
    write(folder, dspark_config(shape), list(dspark_tensors(shape)))


def write(folder, settings, named):
    """config.json, model.safetensors (BF16) and draft_vocab.json, tokens in no order that means anything, in `folder`."""
    os.makedirs(folder, exist_ok=True)
    vocab = settings.get("text_config", settings)["vocab_size"]
    with open(os.path.join(folder, "draft_vocab.json"), "w", encoding="utf-8") as f:
        json.dump(random.Random(8).sample(range(vocab), vocab), f, separators=(",", ":"))
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as f:
        json.dump(settings, f, indent=2)
    header, at = {}, 0
    for name, size, _ in named:
        count = 2 * math.prod(size)
        header[name] = {"dtype": "BF16", "shape": size, "data_offsets": [at, at + count]}
        at += count
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pick = random.Random(7)
    normal = [pick.gauss(0, 1) for _ in range(BLOCK + 3)]  # an odd number of values: rows differ
    blocks = {}
    with open(os.path.join(folder, "model.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for _, size, deviation in named:
            left = 2 * math.prod(size)
            if deviation not in blocks:
                blocks[deviation] = bf16(1.0) * BLOCK if deviation is None else b"".join(bf16(x * deviation) for x in normal)
            block = blocks[deviation]
            while left > 0:
                left -= f.write(block[:left])
