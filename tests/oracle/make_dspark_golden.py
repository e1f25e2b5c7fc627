#!/usr/bin/env python3
"""Makes tests/golden/dspark/: two rounds of a small DSpark drafter, as DeepSpec's own model computes them.

Run:  python tests/oracle/make_dspark_golden.py DEEPSPEC      (a checkout of github.com/deepseek-ai/DeepSpec, 2026-06-30; torch, transformers 5.10.2)

DeepSpec's Gemma4DSparkModel is imported and run as it is, with a cache, the way its evaluator drives it: new context rows and a block go in together,
then the cache is cut back to the context. Weights, features and tokens are hashes of their names (hashes.py), so that
tests/unit/dspark_test.c repeats them. A real checkpoint (config.json, model.safetensors in F32) and rounds.txt with lines
ROUND WHAT VALUES: f (features of the new positions behind fc and norm), embed, layer.I (the block's rows), hidden (after the last norm), base (logits without
the Markov head), logits (with it, the tokens before given), confidence (before the sigmoid). demo.txt: the first 32 logits of each row and confidence for the
head in model/demo/dspark (BF16, computed in F32), over one round. rounds_fp8.txt and demo_fp8.txt: logits and confidence of the same with the matrices rounded as
`--draft-dtype fp8` holds them (a scale for each row, bf16(largest / 448)).
"""
import json
import os
import shutil
import sys

import torch
from hashes import hashed
from safetensors.torch import load_file, save_file
from transformers import Gemma4TextConfig
from transformers.cache_utils import DynamicCache

OUT = os.path.join(os.path.dirname(__file__), "..", "golden", "dspark")
HIDDEN, VOCAB, LAYERS, BLOCK, RANK, MASK = 32, 64, 2, 7, 16, 4
SOURCES, TARGET_LAYERS = [0, 2, 3], 5
ROUNDS = ((0, 10), (10, 14))        # first new position, position of the newest token
DEMO = os.path.join(os.path.dirname(__file__), "..", "..", "model", "demo", "dspark")
DEMO_LOGITS = 32


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


def config(fields):
    """The fields of the released file; newer transformers fold some of them into others."""
    c = Gemma4TextConfig(**{k: v for k, v in fields.items() if k not in ("architectures", "model_type", "rope_theta", "rope_type", "dtype")})
    for name in ("num_global_key_value_heads", "global_head_dim", "num_key_value_heads", "head_dim", "attention_k_eq_v"):
        setattr(c, name, fields[name])
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


def round_to_fp8(model):
    """Every matrix of a product; the confidence head and what is looked up stay."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "confidence" not in name:
            weight = module.weight.detach()
            scale = (weight.abs().amax(1, keepdim=True) / 448).bfloat16().float()
            module.weight = torch.nn.Parameter((weight / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale)


def hashed_tokens(name, vocab):
    return torch.from_numpy((hashed(name, BLOCK) + 1) * (vocab / 2)).long()


def run(model, number, first, start, cache):
    """One round as the evaluator drives it: everything that is compared, by name."""
    fields, kept, hooks = model.config, {}, []
    hooks.append(model.hidden_norm.register_forward_hook(lambda m, i, o: kept.update(f=o[0])))
    for i, layer in enumerate(model.layers):
        hooks.append(layer.register_forward_hook(lambda m, args, o, i=i: kept.update({f"layer.{i}": o[0]})))
    width = len(fields.target_layer_ids) * fields.hidden_size
    features = torch.stack([torch.from_numpy(hashed(f"feature.{p}", width)) * 3 for p in range(first, start)])[None]
    tokens = hashed_tokens(f"tokens.{number}", fields.vocab_size)       # the newest token, then what is chosen
    ids = torch.full((1, BLOCK), fields.mask_token_id)
    ids[0, 0] = tokens[0]
    kept["embed"] = model.embed_tokens(ids)
    positions = torch.arange(first, start + BLOCK)[None]
    hidden = model._forward_backbone(position_ids=positions, noise_embedding=kept["embed"], target_hidden_states=features, past_key_values=cache, use_cache=True)
    cache.crop(start)
    base = model.compute_logits(hidden)
    logits = model.markov_head.apply_block_logits(base[:, None], token_ids=tokens[None, None], hidden_states=hidden[:, None])
    kept.update(hidden=hidden, base=base, logits=logits, confidence=model.predict_confidence_step(hidden, tokens[None]))
    for hook in hooks:
        hook.remove()
    return kept


def write(f, number, kept, names):
    for what in names:
        f.write(f"{number} {what} " + " ".join(f"{v:.7g}" for v in kept[what].flatten().tolist()) + "\n")


def main():
    sys.path.insert(0, sys.argv[1])
    from deepspec.modeling.dspark.gemma4.modeling import Gemma4DSparkModel
    shutil.rmtree(OUT, ignore_errors=True)
    os.makedirs(OUT)
    model = Gemma4DSparkModel(config(FIELDS)).float().eval()
    fill(model)
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, os.path.join(OUT, "model.safetensors"), metadata={"format": "pt"})
    os.chmod(os.path.join(OUT, "model.safetensors"), 0o644)
    with open(os.path.join(OUT, "config.json"), "w") as f:
        json.dump(FIELDS, f, indent=1)
    for name, what in (("rounds.txt", ("f", "embed", *(f"layer.{i}" for i in range(LAYERS)), "hidden", "base", "logits", "confidence")), ("rounds_fp8.txt", ("logits", "confidence"))):
        if "fp8" in name:
            round_to_fp8(model)
        with open(os.path.join(OUT, name), "w") as f, torch.no_grad():
            cache = DynamicCache()
            for number, (first, start) in enumerate(ROUNDS):
                write(f, number, run(model, number, first, start, cache), what)
    with open(os.path.join(DEMO, "config.json")) as f:
        demo = Gemma4DSparkModel(config(json.load(f))).eval()
    demo.load_state_dict({name: t.float() for name, t in load_file(os.path.join(DEMO, "model.safetensors")).items()})
    demo.embed_tokens.embed_scale = torch.tensor(float(torch.tensor(demo.config.hidden_size ** 0.5).bfloat16()))     # as the model has it in BF16
    for name in ("demo.txt", "demo_fp8.txt"):
        if "fp8" in name:
            round_to_fp8(demo)
        with open(os.path.join(OUT, name), "w") as f, torch.no_grad():
            kept = run(demo, 0, *ROUNDS[0], DynamicCache())
            kept["logits"] = kept["logits"][..., :DEMO_LOGITS]
            write(f, 0, kept, ("logits", "confidence"))


if __name__ == "__main__":
    main()
