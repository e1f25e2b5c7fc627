"""Compares the trainer's network with transformers on the checkpoint in a folder (default ../demo), in float32: text, a picture, a sound.

Fails  if the checkpoint does not load cleanly or the logits differ by more than 5e-3 anywhere (attention scores of random weights reach hundreds).
"""
import json
import pathlib
import sys

import torch
import transformers

import checkpoint
from network import Network
from senses import FRAME, Senses, blocks_of, enlarge


def media_case(senses, config):
    """(ids, soft tokens' places, soft tokens, pictures, arguments for transformers) of a prompt with a picture and a sound."""
    picture = torch.randint(0, 256, (1, 96, 128, 3), dtype=torch.uint8)
    blocks, columns, rows = blocks_of(enlarge(picture, senses.budget))
    blocks, frames = blocks / 255, torch.rand(20, FRAME) - 0.5
    count = blocks.shape[1]
    ids = torch.cat([torch.randint(107, 2000, (40,)), torch.tensor([config["boi_token_id"]] + [config["image_token_id"]] * count + [config["eoi_token_id"]]),
                     torch.randint(107, 2000, (9,)), torch.tensor([config["boa_token_id"]] + [config["audio_token_id"]] * len(frames) + [config["eoa_token_index"]]),
                     torch.randint(107, 2000, (30,))])[None]
    see, hear = ids == config["image_token_id"], ids == config["audio_token_id"]
    soft = torch.cat((senses.see(blocks, columns, rows, torch.float32)[0], senses.hear(frames, torch.float32)))
    places = torch.cat((see[0].nonzero()[:, 0], hear[0].nonzero()[:, 0]))
    theirs = dict(input_ids=ids, mm_token_type_ids=see.long() + 3 * hear.long(), pixel_values=blocks, image_position_ids=torch.stack((columns, rows), -1)[None],
                  input_features=frames[None], input_features_mask=torch.ones(1, len(frames), dtype=torch.bool))
    return ids, (places, soft), see.int(), theirs


def main():
    folder = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else checkpoint.DEMO
    theirs, info = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    bad = {k: v for k, v in info.items() if v}
    if bad:
        sys.exit(f"not a clean load: {bad}")
    whole = json.loads((folder / "config.json").read_text())
    config = whole["text_config"]
    ours, senses = Network(config), Senses(whole)
    checkpoint.load(ours, folder / "model.safetensors")
    if not checkpoint.load_senses(senses, folder / "model.safetensors"):
        sys.exit("the checkpoint sees and hears nothing")
    torch.manual_seed(0)
    first, second = 300, 84
    ids = torch.randint(107, config["vocab_size"], (1, first + second))
    positions = torch.cat((torch.arange(first), torch.arange(second)))[None]
    with torch.no_grad():
        got = ours(ids, positions)[0]
        want = torch.cat([theirs(input_ids=part).logits[0] for part in (ids[:, :first], ids[:, first:])])
        ids, soft, pictures, arguments = media_case(senses, whole)
        seen = ours.logits(ours.hidden(ids, torch.arange(ids.shape[1])[None], soft=soft, pictures=pictures))
        seen_worst = (seen - theirs(**arguments).logits).abs().max().item()
    worst = (got - want).abs().max().item()
    count = sum(p.numel() for p in ours.parameters())
    print(f"{type(theirs).__name__}, {count} parameters, largest difference of a logit {worst:.2e}, with a picture and a sound {seen_worst:.2e}")
    sys.exit(max(worst, seen_worst) > 5e-3)


if __name__ == "__main__":
    main()
