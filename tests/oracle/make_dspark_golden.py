#!/usr/bin/env python3
"""Makes tests/golden/dspark/: two rounds of a small DSpark drafter, as DeepSpec's own model computes them.

Run:  python tests/oracle/make_dspark_golden.py DEEPSPEC      (a checkout of github.com/deepseek-ai/DeepSpec, 2026-06-30; torch, transformers 5.10.2)

DeepSpec's Gemma4DSparkModel is imported and run as it is, with a cache, the way its evaluator drives it: new context rows and a block go in together,
then the cache is cut back to the context. Weights, features and tokens are hashes of their names (hashes.py), so that
tests/unit/dspark_test.c repeats them. A real checkpoint (config.json, model.safetensors in F32) and rounds.txt with lines
ROUND WHAT VALUES: f (features of the new positions behind fc and norm), embed, layer.I (the block's rows), hidden (after the last norm), base (logits without
the Markov head), logits (with it, the tokens before given), confidence (before the sigmoid).
"""
import json
import os
import shutil
import sys

import torch
from hashes import hashed
from safetensors.torch import save_file
from transformers import Gemma4TextConfig
from transformers.cache_utils import DynamicCache

OUT = os.path.join(os.path.dirname(__file__), "..", "golden", "dspark")
HIDDEN, VOCAB, LAYERS, BLOCK, RANK, MASK = 32, 64, 2, 7, 16, 4
SOURCES, TARGET_LAYERS = [0, 2, 3], 5
ROUNDS = ((0, 10), (10, 14))        # first new position, position of the newest token


FIELDS = {
    "architectures": ["Gemma4DSparkModel"], "model_type": "gemma4_text", "target_model_type": "gemma4_unified", "target_text_model_type": "gemma4_unified_text",
    "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 48, "num_hidden_layers": LAYERS, "num_target_layers": TARGET_LAYERS,
    "layer_types": ["full_attention"] * LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2, "num_global_key_value_heads": 2, "head_dim": 32, "global_head_dim": 64,
    "attention_k_eq_v": True, "attention_bias": False, "attention_dropout": 0.0, "hidden_activation": "gelu_pytorch_tanh", "rms_norm_eps": 1e-6,
    "final_logit_softcapping": 30.0, "sliding_window": 16, "max_position_embeddings": 4096, "rope_theta": None, "rope_type": "default",
    "rope_parameters": {"full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
                        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}},
    "hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "enable_moe_block": False, "use_double_wide_mlp": False, "initializer_range": 0.02,
    "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1, "tie_word_embeddings": False, "dtype": "float32",
    "block_size": BLOCK, "mask_token_id": MASK, "target_layer_ids": SOURCES, "num_anchors": 8, "markov_rank": RANK, "markov_head_type": "vanilla",
    "enable_confidence_head": True, "confidence_head_with_markov": True}


def config():
    """The fields of the released file; newer transformers fold some of them into others."""
    c = Gemma4TextConfig(**{k: v for k, v in FIELDS.items() if k not in ("architectures", "model_type", "rope_theta", "rope_type", "dtype")})
    for name in ("num_global_key_value_heads", "global_head_dim", "num_key_value_heads", "head_dim", "attention_k_eq_v"):
        setattr(c, name, FIELDS[name])
    c._attn_implementation = "sdpa"
    return c


def fill(model):
    with torch.no_grad():
        for name, p in [*model.named_parameters(), *model.named_buffers()]:
            h = torch.from_numpy(hashed(name, p.numel())).reshape(p.shape)
            if name.endswith("layer_scalar"):
                p.copy_(h * 0.125 + 0.875)
            elif "norm" in name:
                p.copy_(1.0 + 0.3 * h)
            elif "inv_freq" not in name and "embed_scale" not in name:
                p.copy_(h * (1.5 / p.shape[-1] ** 0.5))


def main():
    sys.path.insert(0, sys.argv[1])
    from deepspec.modeling.dspark.gemma4.modeling import Gemma4DSparkModel
    shutil.rmtree(OUT, ignore_errors=True)
    model = Gemma4DSparkModel(config()).float().eval()
    fill(model)
    os.makedirs(OUT)
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, os.path.join(OUT, "model.safetensors"), metadata={"format": "pt"})
    with open(os.path.join(OUT, "config.json"), "w") as f:
        json.dump(FIELDS, f, indent=1)
    kept = {}
    model.hidden_norm.register_forward_hook(lambda m, i, o: kept.update(f=o[0]))
    for i, layer in enumerate(model.layers):
        layer.register_forward_hook(lambda m, args, o, i=i: kept.update({f"layer.{i}": o[0]}))
    cache = DynamicCache()
    with open(os.path.join(OUT, "rounds.txt"), "w") as f, torch.no_grad():
        for number, (first, start) in enumerate(ROUNDS):
            features = torch.stack([torch.from_numpy(hashed(f"feature.{p}", len(SOURCES) * HIDDEN)) * 3 for p in range(first, start)])[None]
            tokens = torch.from_numpy((hashed(f"tokens.{number}", BLOCK) + 1) * (VOCAB / 2)).long()      # the newest token, then what is chosen
            ids = torch.full((1, BLOCK), MASK)
            ids[0, 0] = tokens[0]
            kept["embed"] = model.embed_tokens(ids)
            positions = torch.arange(first, start + BLOCK)[None]
            hidden = model._forward_backbone(position_ids=positions, noise_embedding=kept["embed"], target_hidden_states=features, past_key_values=cache, use_cache=True)
            cache.crop(start)
            base = model.compute_logits(hidden)
            logits = model.markov_head.apply_block_logits(base[:, None], token_ids=tokens[None, None], hidden_states=hidden[:, None])
            confidence = model.predict_confidence_step(hidden, tokens[None])
            kept.update(hidden=hidden, base=base, logits=logits, confidence=confidence)
            for what in ("f", "embed", *(f"layer.{i}" for i in range(LAYERS)), "hidden", "base", "logits", "confidence"):
                f.write(f"{number} {what} " + " ".join(f"{v:.7g}" for v in kept[what].flatten().tolist()) + "\n")
    print(sorted(os.listdir(OUT)), [n for n, _ in model.named_parameters()])


if __name__ == "__main__":
    main()
