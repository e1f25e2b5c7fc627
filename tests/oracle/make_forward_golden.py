#!/usr/bin/env python3
"""Makes tests/golden/forward: what transformers computes on small random checkpoints of the real structure.

Run:  .venv/bin/python tests/oracle/make_forward_golden.py      (torch on the CPU, transformers 5.x)

Weights of the larger cases are not stored: each element is a hash of its tensor's name and index, computed here
and in tests/synthetic.h alike, so that a 20 MB checkpoint costs nothing in the repository. The case "shards" is a real
sharded checkpoint as the library saves it: it checks names, index file and layout.

Per case directory: config.json, tokens.u32, rows.u32 (the positions whose results are stored), and for each run
blocks.u32 (first and last position of each picture, where there are any), and for each run
RUN.hidden [layers + 1, rows, hidden] (after the embedding and after every layer), RUN.final [rows, hidden] (after the last
norm) and RUN.logits [rows, vocab], raw little-endian float32. Runs:
  f32     everything in float32, the embedding scale rounded to the checkpoint's type
  bf16    the model as transformers runs it in bfloat16 (only for bf16 checkpoints)
  fp8     f32 with keys and values rounded to E4M3 before attention, as an FP8 cache without scales gives them back
"""
import json
import os
import shutil
import sys

import numpy as np
import torch
from hashes import hashed
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, Gemma4UnifiedForCausalLM, Gemma4UnifiedTextConfig
from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding
from transformers.models.gemma4_unified import modeling_gemma4_unified
from transformers.models.gemma4_unified.modeling_gemma4_unified import Gemma4UnifiedTextRotaryEmbedding, create_masks_for_vision_model

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, "..", "golden", "forward")


def synthetic(name, shape, plus_one):
    """Same rules as synthetic_rule() in tests/synthetic.h; name without prefix."""
    base = np.float32(0.0)
    if name.endswith("layer_scalar"):
        amp, base = np.float32(0.125), np.float32(0.875)
    elif name.endswith("q_norm.weight") or name.endswith("k_norm.weight"):
        amp, base = (np.float32(0.5), np.float32(0.0)) if plus_one else (np.float32(0.125), np.float32(0.25))
    elif name == "norm.weight":
        amp, base = np.float32(3.0), np.float32(5.0)
    elif "post_" in name:  # what a block adds stays below the stream: 12 random layers must not be chaos, or bf16 compares nothing
        amp, base = np.float32(0.25), np.float32(-0.5 if plus_one else 0.5)
    elif "norm" in name:
        amp, base = np.float32(0.5), np.float32(0.0 if plus_one else 1.0)
    elif name == "embed_tokens.weight":
        amp = np.float32(0.5)
    else:
        amp = np.float32(2.0 / np.sqrt(np.float64(shape[-1])))
    v = hashed(name, int(np.prod(shape))) * amp + base
    return torch.from_numpy(v.astype(np.float32)).reshape(shape)


def fill(model, plus_one):
    state = model.state_dict()
    for key, value in state.items():
        if key == "lm_head.weight":
            continue
        name = key.removeprefix("model.")
        with torch.no_grad():
            value.copy_(synthetic(name, tuple(value.shape), plus_one))
    model.tie_weights()


def picture_masks(model, tokens, blocks):
    """The masks that the library builds when tokens [first, last] of each block are one picture's; None without blocks."""
    if not blocks:
        return None
    ids = torch.full((1, len(tokens)), -1)
    for i, (first, last) in enumerate(blocks):
        ids[0, first:last + 1] = i
    embeds = torch.zeros(1, len(tokens), model.config.hidden_size)
    return create_masks_for_vision_model(model.config, embeds, None, None, torch.arange(len(tokens))[None], ids)


def run(model, tokens, rows, blocks=()):
    hidden = []
    hooks = [model.model.layers[0].register_forward_pre_hook(lambda m, a: hidden.append(a[0].detach().clone()))]
    for layer in model.model.layers:
        hooks.append(layer.register_forward_hook(lambda m, a, o: hidden.append((o[0] if isinstance(o, tuple) else o).detach().clone())))
    final = []
    hooks.append(model.model.norm.register_forward_hook(lambda m, a, o: final.append(o.detach().clone())))
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([tokens]), attention_mask=picture_masks(model, tokens, blocks), use_cache=False).logits
    for h in hooks:
        h.remove()
    pick = lambda t: t[0][rows].float().numpy()
    return np.stack([pick(h) for h in hidden]), pick(final[0]), pick(logits)


def run_rounded(model, *arguments):
    """The same with keys and values as an FP8 cache gives them back: the nearest E4M3 number, at most 448 in size."""
    plain = modeling_gemma4_unified.eager_attention_forward

    def rounded(module, query, key, value, *args, **kwargs):
        key, value = (x.clamp(-448, 448).to(torch.float8_e4m3fn).to(x.dtype) for x in (key, value))
        return plain(module, query, key, value, *args, **kwargs)

    modeling_gemma4_unified.eager_attention_forward = rounded
    try:
        return run(model, *arguments)
    finally:
        modeling_gemma4_unified.eager_attention_forward = plain


def write(case, name, result):
    for part, array in zip(("hidden", "final", "logits"), result):
        array.astype("<f4").tofile(os.path.join(OUT, case, f"{name}.{part}"))


def rows_of(count, window):
    picked = {0, 1, 5, 15, 16, 17, window - 2, window - 1, window, window + 1, 2 * window, count // 2, count - 5, count - 4, count - 3, count - 2, count - 1}
    return sorted(r for r in picked if r < count)


def case(name, model_class, config, dtype, count, plus_one, json_edit=None, save=None, blocks=(), kv_fp8=False):
    directory = os.path.join(OUT, name)
    shutil.rmtree(directory, ignore_errors=True)
    os.makedirs(directory)
    config._attn_implementation = "eager"
    model = model_class(config).to(torch.float32).eval()
    fill(model, plus_one)
    if dtype == torch.bfloat16:
        model = model.to(torch.bfloat16)
    tokens = [(7 * i * i + 3 * i + 2) % config.vocab_size for i in range(count)]
    rows = rows_of(count, config.sliding_window)
    scale = model.model.embed_tokens.embed_scale.to(dtype)
    if dtype == torch.bfloat16:
        write(name, "bf16", run(model, tokens, rows))
    model = model.to(torch.float32)
    model.model.embed_tokens.embed_scale = scale.to(torch.float32)
    # .to(bfloat16) also rounds the rotary buffers; the reference keeps them in float32
    model.model.rotary_emb = type(model.model.rotary_emb)(config)
    write(name, "f32", run(model, tokens, rows, blocks))
    if kv_fp8:
        write(name, "fp8", run_rounded(model, tokens, rows))
    np.array(tokens, dtype="<u4").tofile(os.path.join(directory, "tokens.u32"))
    np.array(rows, dtype="<u4").tofile(os.path.join(directory, "rows.u32"))
    if blocks:
        np.array(blocks, dtype="<u4").tofile(os.path.join(directory, "blocks.u32"))
    data = json.loads(config.to_json_string(use_diff=False)) if json_edit is None else json_edit(config)
    data["dtype"] = "bfloat16" if dtype == torch.bfloat16 else "float32"
    if save:
        model.config.dtype = torch.float32
        model.save_pretrained(directory, max_shard_size=save)
        os.path.exists(os.path.join(directory, "generation_config.json")) and os.remove(os.path.join(directory, "generation_config.json"))
    else:
        with open(os.path.join(directory, "config.json"), "w") as f:
            json.dump(data, f, indent=1, sort_keys=True)
            f.write("\n")
    print(name, "max |logit|", float(np.abs(run(model, tokens, rows)[2]).max()))


def gemma4(**over):
    base = dict(vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=12, num_attention_heads=16,
                num_key_value_heads=8, num_global_key_value_heads=1, head_dim=256, global_head_dim=512, sliding_window=32,
                attention_k_eq_v=True, final_logit_softcapping=30.0, max_position_embeddings=262144)
    base.update(over)
    return Gemma4UnifiedTextConfig(**base)


def flat(config):
    """The layout of the published config.json: nested, flat head sizes, no per_layer_config."""
    text = json.loads(config.to_json_string(use_diff=False))
    text.pop("per_layer_config", None)
    text["global_head_dim"], text["num_global_key_value_heads"] = 512, 1
    text["head_dim"], text["num_key_value_heads"] = 256, 8
    for key in ("_name_or_path", "architectures", "transformers_version"):
        text.pop(key, None)
    return {"architectures": ["Gemma4UnifiedForConditionalGeneration"], "model_type": "gemma4_unified",
            "eos_token_id": [1, 106], "image_token_id": 300, "audio_token_id": 301, "video_token_id": 302, "boi_token_id": 303,
            "eoi_token_id": 304, "boa_token_id": 305, "eoa_token_index": 306, "tie_word_embeddings": True, "text_config": text}


def rope_tables():
    """cos and sin at near and far positions: angles are float32 products, so one ulp of inv_freq shows."""
    positions = [0, 1, 2, 31, 1000, 1023, 1024, 4095, 65535, 100003, 131071, 200000, 262143]
    config = gemma4()
    rotary = Gemma4UnifiedTextRotaryEmbedding(config)
    at = torch.tensor([positions])
    out = {}
    for kind in ("sliding_attention", "full_attention"):
        cos, sin = rotary(torch.zeros(1, dtype=torch.float32), at, kind)
        half = cos.shape[-1] // 2
        out[kind] = (getattr(rotary, f"{kind}_inv_freq"), cos[0, :, :half], sin[0, :, :half])
    config3 = gemma3()
    rotary3 = Gemma3RotaryEmbedding(config3)
    cos, sin = rotary3(torch.zeros(1, dtype=torch.float32), at, "full_attention")
    out["gemma3_full"] = (rotary3.full_attention_inv_freq, cos[0, :, :128], sin[0, :, :128])
    np.array(positions, dtype="<u4").tofile(os.path.join(OUT, "rope.positions"))
    for kind, (inv, cos, sin) in out.items():
        np.concatenate([inv.numpy().ravel(), cos.numpy().ravel(), sin.numpy().ravel()]).astype("<f4").tofile(os.path.join(OUT, f"rope.{kind}"))


def gemma3(**over):
    base = dict(vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=7, num_attention_heads=4,
                num_key_value_heads=2, head_dim=256, sliding_window=32, query_pre_attn_scalar=256, max_position_embeddings=131072,
                rope_parameters={"full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                                 "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}})
    base.update(over)
    return Gemma3TextConfig(**base)


def gemma3_hub(config):
    """The older, sparse layout: rope_scaling and rope_local_base_freq, layers by sliding_window_pattern."""
    return {"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "boi_token_index": 303,
            "eoi_token_index": 304, "image_token_index": 300, "eos_token_id": [1, 106],
            "text_config": {"model_type": "gemma3_text", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128,
                            "num_hidden_layers": 7, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 256,
                            "sliding_window": 32, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}}


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    os.makedirs(OUT, exist_ok=True)
    rope_tables()
    case("real_heads_bf16", Gemma4UnifiedForCausalLM, gemma4(), torch.bfloat16, 100, False, flat)
    case("real_heads_f32", Gemma4UnifiedForCausalLM, gemma4(hidden_size=96, num_hidden_layers=6, sliding_window=24), torch.float32, 80, False, kv_fp8=True)
    case("picture_f32", Gemma4UnifiedForCausalLM, gemma4(hidden_size=96, num_hidden_layers=6, sliding_window=24, use_bidirectional_attention="vision"), torch.float32, 80,
         False, blocks=((3, 12), (20, 52), (53, 60)))  # the second is longer than the window, the third follows at once
    case("gemma3_bf16", Gemma3ForCausalLM, gemma3(), torch.bfloat16, 80, True, gemma3_hub)
    case("shards", Gemma4UnifiedForCausalLM,
         gemma4(vocab_size=160, num_attention_heads=4, num_key_value_heads=2, head_dim=32, global_head_dim=64, num_hidden_layers=7,
                sliding_window=16, intermediate_size=96, layer_types=None),
         torch.float32, 40, False, save="300KB")


if __name__ == "__main__":
    sys.exit(main())
