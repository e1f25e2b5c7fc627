"""Compares the trainer's network with transformers on the checkpoint in a folder (default ../demo), in float32.

Fails  if the checkpoint does not load cleanly or the logits differ by more than 5e-3 anywhere (attention scores of random weights reach hundreds).
"""
import json
import pathlib
import sys

import torch
import transformers

import checkpoint
from network import Network


def main():
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else checkpoint.DEMO
    theirs, info = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    bad = {k: v for k, v in info.items() if v}
    if bad:
        sys.exit(f"not a clean load: {bad}")
    config = json.loads((folder / "config.json").read_text())["text_config"]
    ours = Network(config)
    checkpoint.load(ours, folder / "model.safetensors")
    torch.manual_seed(0)
    first, second = 300, 84
    ids = torch.randint(107, config["vocab_size"], (1, first + second))
    positions = torch.cat((torch.arange(first), torch.arange(second)))[None]
    with torch.no_grad():
        got = ours(ids, positions)[0]
        want = torch.cat([theirs(input_ids=part).logits[0] for part in (ids[:, :first], ids[:, first:])])
    worst = (got - want).abs().max().item()
    count = sum(p.numel() for p in ours.parameters())
    print(f"{type(theirs).__name__}, {count} parameters, largest difference of a logit {worst:.2e}")
    sys.exit(worst > 5e-3)


if __name__ == "__main__":
    main()
