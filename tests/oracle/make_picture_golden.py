#!/usr/bin/env python3
"""Makes tests/golden/media/picture.txt: what the reference processor makes of pictures, as hashes.

Needs torch, torchvision, numpy and transformers >= 5.17. Pictures are drawn by a generator that the C test repeats; lines:
  target WIDTH HEIGHT BUDGET TARGET_WIDTH TARGET_HEIGHT      (0 0: the reference refuses it)
  resize WIDTH HEIGHT OUT_WIDTH OUT_HEIGHT FILTER SEED FNV1A (filter 1 bilinear, 2 bicubic; antialiased; of the bytes [height][width][3])
  patches WIDTH HEIGHT BUDGET SEED COUNT FNV1A               (pixel_values * 255 as bytes, of the real soft tokens)
"""
import os

import numpy as np
import torch
import torchvision.transforms.v2.functional as F
from torchvision.transforms import InterpolationMode
from transformers.models.gemma4_unified.image_processing_gemma4_unified import Gemma4UnifiedImageProcessor, get_aspect_ratio_preserving_size

OUT = os.path.join(os.path.dirname(__file__), "..", "golden", "media", "picture.txt")
SIDES = [1, 2, 3, 7, 16, 47, 48, 49, 95, 96, 100, 144, 257, 333, 480, 512, 640, 768, 896, 1000, 1080, 1920, 3024, 4032, 10000, 65535]
BUDGETS = [70, 140, 280, 560, 1120]


def draw(width, height, seed):
    """A multiplicative generator, top 8 bits; even seeds only black and white, where every rounding shows at the edges."""
    n = width * height * 3
    state = np.uint64(seed * 2 + 1)
    factor = np.uint64(6364136223846793005)
    with np.errstate(over="ignore"):
        powers = np.cumprod(np.full(n, factor, dtype=np.uint64))
        values = (powers * state >> np.uint64(56)).astype(np.uint8)
    if seed % 2 == 0:
        values = np.where(values > 127, 255, 0).astype(np.uint8)
    return values.reshape(height, width, 3)


def fnv(data):
    h = 0xCBF29CE484222325
    for b in data.tobytes():
        h = (h ^ b) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return h


def main():
    lines = []
    for i, w in enumerate(SIDES):
        for j, h in enumerate(SIDES):
            budget = BUDGETS[(i + j) % 5]
            try:
                th, tw = get_aspect_ratio_preserving_size(h, w, 16, budget * 9, 3)
            except ValueError:
                th = tw = 0
            lines.append(f"target {w} {h} {budget} {tw} {th}")
    rng = np.random.default_rng(11)
    sizes = [tuple(int(v) for v in rng.integers(1, 160, 4)) for _ in range(60)]
    sizes += [(1, 1, 48, 48), (1, 100, 48, 96), (97, 1, 96, 48), (50, 60, 50, 30), (50, 60, 20, 60), (300, 7, 96, 144), (640, 480, 96, 48), (33, 31, 896, 96)]
    for seed, (w, h, ow, oh) in enumerate(sizes):
        for kind, mode in ((1, InterpolationMode.BILINEAR), (2, InterpolationMode.BICUBIC)):
            picture = torch.from_numpy(draw(w, h, seed)).permute(2, 0, 1)
            out = F.resize(picture, [oh, ow], interpolation=mode, antialias=True).permute(1, 2, 0).numpy()
            lines.append(f"resize {w} {h} {ow} {oh} {kind} {seed} {fnv(np.ascontiguousarray(out)):016x}")
    processor = Gemma4UnifiedImageProcessor()
    for seed, (w, h, budget) in enumerate([(64, 48, 70), (200, 130, 70), (13, 300, 70), (500, 333, 140), (1, 1, 70)]):
        out = processor(images=[draw(w, h, seed)], max_soft_tokens=budget, input_data_format="channels_last", return_tensors="pt")
        count = int(out["num_soft_tokens_per_image"][0])
        pixels = (out["pixel_values"][0, :count] * 255).round().to(torch.uint8).numpy()
        tw = processor_width(w, h, budget)
        expected = [[i % tw, i // tw] for i in range(count)]
        assert out["image_position_ids"][0, :count].tolist() == expected, "positions are not raster order"
        lines.append(f"patches {w} {h} {budget} {seed} {count} {fnv(pixels):016x}")
    with open(OUT, "w") as f:
        f.write("\n".join(lines) + "\n")
    print(f"{len(lines)} lines")


def processor_width(w, h, budget):
    return get_aspect_ratio_preserving_size(h, w, 16, budget * 9, 3)[1] // 48


if __name__ == "__main__":
    main()
