"""Asks a checkpoint the held-out questions on pictures and sounds with transformers and its processor, greedy, and prints the score of each family.

    python evaluate_media.py [--model DIR] [--show]

Needs Pillow, torchvision, soundfile and soxr. Reads  DIR (default ../demo), heldout_media.json and heldout_media/.
Fails   with exit status 1 if fewer than 90 of the 100 questions on pictures or 45 of the 50 on sounds are right.
"""
import argparse
import collections
import json
import pathlib
import sys

import numpy
import soundfile
import soxr
import torch
import transformers
from PIL import Image

import checkpoint
from evaluate import parse, report
from score import score

HERE = pathlib.Path(__file__).resolve().parent
PASS = {"p": 90, "s": 45}
LONGEST = 60
RATE = 16000


def hear(path):
    """The samples that the model gets: mono, 16 kHz."""
    x, rate = soundfile.read(path, dtype="float32", always_2d=True)
    x = numpy.mean(x, axis=1)
    return x if rate == RATE else soxr.resample(x, rate, RATE, quality="soxr_hq")


def answer(model, processor, q):
    prompt = processor.tokenizer.apply_chat_template(q["messages"], add_generation_prompt=True, tokenize=False)
    path = HERE / "heldout_media" / q["file"]
    media = {"audio": [hear(path)]} if q["id"][0] == "s" else {"images": [[Image.open(path).convert("RGB")]]}
    inputs = processor(text=[prompt], return_tensors="pt", add_special_tokens=False, **media).to(model.device, model.dtype)
    out = model.generate(**inputs, max_new_tokens=LONGEST)
    return parse(processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1]:], skip_special_tokens=False), False)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--model", type=pathlib.Path, default=checkpoint.DEMO)
    p.add_argument("--show", action="store_true")
    args = p.parse_args()
    processor = transformers.AutoProcessor.from_pretrained(args.model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = transformers.AutoModelForImageTextToText.from_pretrained(args.model, dtype=torch.bfloat16 if device == "cuda" else torch.float32).to(device).eval()
    model.generation_config = transformers.GenerationConfig(**{
        **checkpoint.generation_config(checkpoint.DEMO / "tokenizer.json"), "do_sample": False, "temperature": None, "top_k": None, "top_p": None})
    questions, bad = json.loads((HERE / "heldout_media.json").read_text()), False
    for letter, title in (("p", "pictures"), ("s", "sounds")):
        table = collections.defaultdict(lambda: [0, 0])
        for q in (q for q in questions if q["id"][0] == letter):
            text, reasoning, calls = answer(model, processor, q)
            right = score(q, text, reasoning, calls)
            table[q["family"]][0] += right
            table[q["family"]][1] += 1
            if args.show or not right:
                print("right" if right else "WRONG", q["file"], q["family"], "|", q["messages"][0]["content"][-1].get("text", q["messages"][0]["content"][0].get("text")), "|", text, "| wanted", q["answer"])
        bad |= report("held-out questions on " + title, table) < PASS[letter]
    sys.exit(bad)


if __name__ == "__main__":
    main()
