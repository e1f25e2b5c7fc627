#!/usr/bin/env python3
"""Makes tests/golden/media/siglip.txt: soft tokens of a picture as transformers' Gemma 3 computes them on hashed weights, and the pieces of pan and scan.

Needs torch and transformers >= 5.17. Weights are a hash of the tensor's name (as in newer checkpoints, without "model.") and index; the picture is drawn
by a generator that tests/unit/siglip_test.c repeats. Lines: "KIND ROW V0 .. V63" with KIND f32 or bf16 (weights rounded to bf16, arithmetic in f32),
"crops WIDTH HEIGHT SIDE_MIN CROPS_MAX RATIO COUNT" and then COUNT times "WIDTH HEIGHT" of a piece.
"""
import os

import torch
from hashes import hashed
from transformers import Gemma3Config, Gemma3Model
from transformers.models.gemma3.image_processing_gemma3 import Gemma3ImageProcessor

OUT = os.path.join(os.path.dirname(__file__), "..", "golden", "media", "siglip.txt")
IMAGE, PATCH, HIDDEN, INNER, HEADS, LAYERS, TOKENS, TEXT = 252, 14, 48, 80, 4, 2, 36, 64
SIZES = [(896, 896), (1000, 800), (1200, 1000), (1199, 1000), (1920, 1080), (1080, 1920), (3000, 1000), (5000, 600), (600, 5000), (400, 300), (511, 256), (512, 256), (1023, 257),
         (1021, 300), (300, 1021), (4000, 256), (4000, 255), (10000, 10), (1, 1)]
PANS = [(256, 4, 1.2), (100, 7, 1.5)]


def weight(name, shape):
    """Amplitude and middle by the kind of tensor, as siglip_test.c has them."""
    h = torch.from_numpy(hashed(name, int(torch.Size(shape).numel()))).reshape(shape)
    if name.endswith("mm_soft_emb_norm.weight"):
        return 0.25 * h
    if "norm" in name and name.endswith(".weight"):
        return 1.0 + 0.25 * h
    if name.endswith(".bias"):
        return 0.125 * h
    if "position" in name:
        return 0.5 * h
    fan = shape[0] if name.endswith("projection_weight") else int(torch.Size(shape[1:]).numel())
    return h * (2.0 / fan ** 0.5)


def picture():
    """Slow waves of three colours, and noise."""
    state, out = 12345, []
    for i in range(IMAGE * IMAGE * 3):
        state = state * 6364136223846793005 + 1442695040888963407 & (1 << 64) - 1
        out.append(((i // 3 % IMAGE * (i % 3 + 1) + i // 3 // IMAGE * 2) & 127) + (state >> 57))
    return torch.tensor(out, dtype=torch.uint8).reshape(IMAGE, IMAGE, 3)


def main():
    config = Gemma3Config(
        text_config=dict(hidden_size=TEXT, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=16, vocab_size=300),
        vision_config=dict(hidden_size=HIDDEN, intermediate_size=INNER, num_hidden_layers=LAYERS, num_attention_heads=HEADS, image_size=IMAGE, patch_size=PATCH, vision_use_head=False),
        mm_tokens_per_image=TOKENS, attn_implementation="eager")
    model = Gemma3Model(config).float().eval()
    pixels = ((picture().float() - 127.5) / 127.5).permute(2, 0, 1)[None]
    lines = []
    for kind in ("f32", "bf16"):
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name.startswith(("vision_tower.", "multi_modal_projector.")):
                    value = weight(name, list(p.shape))
                    p.copy_(value.to(torch.bfloat16).float() if kind == "bf16" else value)
            soft = model.get_image_features(pixels, return_dict=True).pooler_output[0]
        lines += [f"{kind} {i} " + " ".join(f"{v:.7g}" for v in row.tolist()) for i, row in enumerate(soft)]
    processor = Gemma3ImageProcessor()
    for least, most, ratio in PANS:
        for width, height in SIZES:
            crops = processor.pan_and_scan_batched(torch.zeros(1, 1, height, width), least, most, ratio)
            lines.append(f"crops {width} {height} {least} {most} {ratio} {len(crops)}" + "".join(f" {c.shape[-1]} {c.shape[-2]}" for c in crops))
    with open(OUT, "w") as f:
        f.write("\n".join(lines) + "\n")
    print(f"{len(lines)} lines, soft tokens' size {soft.pow(2).mean().sqrt():.3f}, shape {tuple(soft.shape)}")


if __name__ == "__main__":
    main()
