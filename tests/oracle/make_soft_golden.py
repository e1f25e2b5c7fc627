#!/usr/bin/env python3
"""Makes tests/golden/media/soft.txt: soft tokens of pictures and sound as transformers' modules compute them, on hashed weights.

Needs torch and transformers >= 5.17. Weights are a hash of the tensor's name and index (as in make_forward_golden.py), blocks and frames are drawn by a
generator that tests/unit/soft_test.c repeats. Lines: KIND ROW V0 .. V95, KIND one of f32, bf16 (weights and pixels rounded to bf16, arithmetic in
f32), sound_f32, sound_bf16.
"""
import os

import torch
from make_forward_golden import hashed
from transformers import Gemma4UnifiedTextConfig
from transformers.models.gemma4_unified.configuration_gemma4_unified import Gemma4UnifiedAudioConfig, Gemma4UnifiedVisionConfig
from transformers.models.gemma4_unified.modeling_gemma4_unified import Gemma4UnifiedMultimodalEmbedder, Gemma4UnifiedVisionEmbedder

OUT = os.path.join(os.path.dirname(__file__), "..", "golden", "media", "soft.txt")
HIDDEN, DIM, POSITIONS, FRAME, COLUMNS, ROWS, BLOCK = 96, 64, 40, 640, 3, 2, 48 * 48 * 3


def weight(name, shape):
    """Amplitude and middle by the kind of tensor, as soft_test.c has them."""
    h = torch.from_numpy(hashed(name, int(torch.Size(shape).numel()))).reshape(shape)
    if name.endswith("norm.weight") or "ln" in name and name.endswith(".weight"):
        return 1.0 + 0.25 * h
    if name.endswith(".bias"):
        return 0.125 * h
    if name.endswith("pos_embedding"):
        return 0.5 * h
    return h * (2.0 / shape[1] ** 0.5)


def blocks():
    """Noise, but the last block is one even colour: LN divides by next to nothing there."""
    state, out = 12345, []
    for _ in range(COLUMNS * ROWS * BLOCK):
        state = state * 6364136223846793005 + 1442695040888963407 & (1 << 64) - 1
        out.append(state >> 56)
    p = torch.tensor(out, dtype=torch.uint8).reshape(COLUMNS * ROWS, BLOCK)
    p[-1] = 77
    return p


def fill(module, names):
    with torch.no_grad():
        for key, parameter in module.named_parameters():
            parameter.copy_(weight(names(key), list(parameter.shape)))


def rounded(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(parameter.to(torch.bfloat16).float())


def main():
    text = Gemma4UnifiedTextConfig(hidden_size=HIDDEN)
    picture = Gemma4UnifiedVisionEmbedder(Gemma4UnifiedVisionConfig(mm_embed_dim=DIM, output_proj_dims=DIM, mm_posemb_size=POSITIONS), text).float()
    sound = Gemma4UnifiedMultimodalEmbedder(Gemma4UnifiedAudioConfig(output_proj_dims=FRAME), text).float()
    fill(picture, lambda k: "model.embed_vision.embedding_projection.weight" if "embedding_projection" in k else "model.vision_embedder." + k)
    fill(sound, lambda k: "model.embed_audio." + k)
    pixels = blocks().float() * torch.tensor(1.0 / 255.0, dtype=torch.float32)
    positions = torch.tensor([[[i % COLUMNS, i // COLUMNS] for i in range(COLUMNS * ROWS)]])
    frames = torch.from_numpy(hashed("frames", 3 * FRAME)).reshape(1, 3, FRAME) * 0.5
    frames[0, 2, 100:] = 0.0
    lines = []
    for kind in ("f32", "bf16"):
        if kind == "bf16":
            rounded(picture)
            rounded(sound)
            pixels, frames = pixels.to(torch.bfloat16).float(), frames.to(torch.bfloat16).float()
        with torch.no_grad():
            soft = picture(pixels[None], positions).pooler_output[0]
            heard = sound(frames)[0]
        for name, rows in ((kind, soft), ("sound_" + kind, heard)):
            lines += [f"{name} {i} " + " ".join(f"{v:.7g}" for v in row.tolist()) for i, row in enumerate(rows)]
    with open(OUT, "w") as f:
        f.write("\n".join(lines) + "\n")
    print(f"{len(lines)} rows; even block's spread {pixels[-1].std()}")


if __name__ == "__main__":
    main()
