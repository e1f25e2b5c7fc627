#!/usr/bin/env python3
"""Makes tests/golden/assistant/: three draft steps of a small MTP assistant, as transformers computes them.

Needs torch and transformers >= 5.17. A real checkpoint as the library saves it (config.json, model.safetensors), and steps.txt. The target's keys and values, the
embeddings and the first hidden state are hashes of their names (make_forward_golden.py), so that tests/unit/assistant_test.c repeats them.
Lines of steps.txt: STEP logits|hidden VALUES; the hidden state of a step is fed to the next.
"""
import os
import shutil

import torch
from make_forward_golden import hashed
from transformers import Gemma4UnifiedTextConfig
from transformers.models.gemma4_unified_assistant.configuration_gemma4_unified_assistant import Gemma4UnifiedAssistantConfig
from transformers.models.gemma4_unified_assistant.modeling_gemma4_unified_assistant import Gemma4UnifiedAssistantForCausalLM

OUT = os.path.join(os.path.dirname(__file__), "..", "golden", "assistant")
BACKBONE, HIDDEN, VOCAB, WINDOW, KEYS, STEPS = 48, 32, 96, 64, 45, 3


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
    kv = {}
    for kind, heads, dim in (("sliding_attention", 2, 32), ("full_attention", 1, 64)):
        kv[kind] = tuple(torch.from_numpy(hashed(f"{kind}.{part}", heads * KEYS * dim)).reshape(1, heads, KEYS, dim) for part in "kv")
    hidden = torch.from_numpy(hashed("hidden", BACKBONE)).reshape(1, 1, BACKBONE)
    with open(os.path.join(OUT, "steps.txt"), "w") as f:
        for step in range(STEPS):
            embedding = torch.from_numpy(hashed(f"embedding.{step}", BACKBONE)).reshape(1, 1, BACKBONE) * 3.0
            with torch.no_grad():
                out = model(inputs_embeds=torch.cat([embedding, hidden], -1), position_ids=torch.tensor([[KEYS]]), shared_kv_states=kv)
            hidden = out.last_hidden_state
            for what, row in (("logits", out.logits), ("hidden", hidden)):
                f.write(f"{step} {what} " + " ".join(f"{v:.7g}" for v in row.flatten().tolist()) + "\n")
    print(os.listdir(OUT), [n for n, _ in model.named_parameters()][:4])


if __name__ == "__main__":
    main()
