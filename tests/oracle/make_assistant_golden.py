#!/usr/bin/env python3
"""Makes tests/golden/assistant/ and assistant_fp8/: three draft steps of a small MTP assistant, as transformers computes them.

Needs torch and transformers >= 5.17. A real checkpoint as the library saves it (config.json, model.safetensors), and steps.txt. The second one is the first with its
linear layers in static FP8, in ModelOpt's layout (weight, weight_scale, input_scale, hf_quant_config.json); its steps are those of the codes times their scales. The target's keys and values, the
embeddings and the first hidden state are hashes of their names (make_forward_golden.py), so that tests/unit/assistant_test.c repeats them.
Lines of steps.txt: STEP logits|hidden VALUES; the hidden state of a step is fed to the next.
assistant/demo.txt and demo_fp8.txt: the same of the assistant in model/demo, BF16 computed in F32, the first numbers of each line: as it is, and with its matrices rounded as `--draft-dtype fp8` holds
them (a scale for each row, bf16(largest / 448)).
"""
import json
import os
import shutil

import safetensors.torch
import torch
from make_forward_golden import hashed
from transformers import Gemma4UnifiedTextConfig
from transformers.models.gemma4_unified_assistant.configuration_gemma4_unified_assistant import Gemma4UnifiedAssistantConfig
from transformers.models.gemma4_unified_assistant.modeling_gemma4_unified_assistant import Gemma4UnifiedAssistantForCausalLM

OUT = os.path.join(os.path.dirname(__file__), "..", "golden", "assistant")
OUT_FP8 = OUT + "_fp8"
BACKBONE, HIDDEN, VOCAB, WINDOW, KEYS, STEPS = 48, 32, 96, 64, 45, 3
DEMO = os.path.join(os.path.dirname(__file__), "..", "..", "model", "demo", "assistant")
DEMO_SHAPES, DEMO_NUMBERS = ((2, 256), (1, 512)), 48


def main():
    shutil.rmtree(OUT, ignore_errors=True)
    text = Gemma4UnifiedTextConfig(vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
                                   num_global_key_value_heads=1, head_dim=32, global_head_dim=64, sliding_window=WINDOW, attention_k_eq_v=True,
                                   layer_types=["sliding_attention"] * 3 + ["full_attention"], num_kv_shared_layers=4, final_logit_softcapping=None, max_position_embeddings=4096)
    text._attn_implementation = "eager"
    config = Gemma4UnifiedAssistantConfig(text_config=text, backbone_hidden_size=BACKBONE)
    config._attn_implementation = "eager"
    model = Gemma4UnifiedAssistantForCausalLM(config).float().eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            h = torch.from_numpy(hashed(name, p.numel())).reshape(p.shape)
            p.copy_(1.0 + 0.3 * h if "norm" in name else h * (1.5 / p.shape[-1] ** 0.5))
        for name, b in model.named_buffers():
            if name.endswith("layer_scalar"):
                b.copy_(torch.from_numpy(hashed(name, 1)) * 0.125 + 0.875)
    model.save_pretrained(OUT)
    for extra in ("generation_config.json",):
        if os.path.exists(os.path.join(OUT, extra)):
            os.remove(os.path.join(OUT, extra))
    write_steps(model, OUT)
    write_fp8(model)
    write_demo()
    print(os.listdir(OUT), [n for n, _ in model.named_parameters()][:4])


def write_fp8(model):
    """The linear layers rounded to FP8, in the file and in the model."""
    shutil.rmtree(OUT_FP8, ignore_errors=True)
    os.makedirs(OUT_FP8)
    tensors = {n: t.contiguous() for n, t in safetensors.torch.load_file(os.path.join(OUT, "model.safetensors")).items()}
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear) or name == "lm_head":
            continue
        scale = module.weight.detach().abs().max() / 448
        codes = (module.weight.detach() / scale).to(torch.float8_e4m3fn)
        tensors.update({name + ".weight": codes, name + ".weight_scale": scale, name + ".input_scale": torch.tensor(0.0125)})
        with torch.no_grad():
            module.weight.copy_(codes.float() * scale)
    safetensors.torch.save_file(tensors, os.path.join(OUT_FP8, "model.safetensors"), metadata={"format": "pt"})
    quantization = {"quant_algo": "FP8", "kv_cache_quant_algo": None, "exclude_modules": ["lm_head"]}
    with open(os.path.join(OUT, "config.json")) as f:
        config = json.load(f)
    config["quantization_config"] = {"ignore": ["lm_head"], "quant_algo": "FP8", "quant_method": "modelopt", "producer": {"name": "modelopt", "version": "0.47.0"}}
    for name, content in (("config.json", config), ("hf_quant_config.json", {"producer": {"name": "modelopt", "version": "0.47.0"}, "quantization": quantization})):
        with open(os.path.join(OUT_FP8, name), "w") as f:
            f.write(json.dumps(content, indent=2) + "\n")
    write_steps(model, OUT_FP8)


def write_demo():
    model = Gemma4UnifiedAssistantForCausalLM.from_pretrained(DEMO, attn_implementation="eager", dtype=torch.float32).eval()
    write_steps(model, OUT, "demo.txt", DEMO_SHAPES, DEMO_NUMBERS)
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            weight = module.weight.detach()
            scale = (weight.abs().amax(1, keepdim=True) / 448).bfloat16().float()
            codes = (weight / scale).clamp(-448, 448).to(torch.float8_e4m3fn)
            module.weight = torch.nn.Parameter(codes.float() * scale)
    write_steps(model, OUT, "demo_fp8.txt", DEMO_SHAPES, DEMO_NUMBERS)


def write_steps(model, out_dir, name="steps.txt", shapes=((2, 32), (1, 64)), numbers=None):
    """shapes: heads and their size of the target's two kinds of layers."""
    backbone, kv = model.config.backbone_hidden_size, {}
    for kind, (heads, dim) in zip(("sliding_attention", "full_attention"), shapes, strict=True):
        kv[kind] = tuple(torch.from_numpy(hashed(f"{kind}.{part}", heads * KEYS * dim)).reshape(1, heads, KEYS, dim) for part in "kv")
    hidden = torch.from_numpy(hashed("hidden", backbone)).reshape(1, 1, backbone)
    with open(os.path.join(out_dir, name), "w") as f:
        for step in range(STEPS):
            embedding = torch.from_numpy(hashed(f"embedding.{step}", backbone)).reshape(1, 1, backbone) * 3.0
            with torch.no_grad():
                out = model(inputs_embeds=torch.cat([embedding, hidden], -1), position_ids=torch.tensor([[KEYS]]), shared_kv_states=kv)
            hidden = out.last_hidden_state
            for what, row in (("logits", out.logits), ("hidden", hidden)):
                f.write(f"{step} {what} " + " ".join(f"{v:.7g}" for v in row.flatten().tolist()[:numbers]) + "\n")


if __name__ == "__main__":
    main()
