#!/usr/bin/env python3
"""Do answers change because large JPEGs are decoded at a fraction of their size? The demo model's 100 held-out pictures, made as large as a telephone's (12 million pixels), are
asked about with --jpeg-scaling on and off, greedily.

    PYTHON bench/scaled.py          PYTHON: one that has Pillow

Prints how many answers are right in each way, and how many are the same to the character."""
import asyncio
import base64
import io
import json
import os
import sys

from PIL import Image

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path[:0] = [os.path.join(ROOT, "tests", "e2e"), os.path.join(ROOT, "model", "train")]
import test_senses  # noqa: E402
from score import score  # noqa: E402
from server import Server  # noqa: E402
from wsclient import gather_limited, run  # noqa: E402

PIXELS = 12e6


def enlarged(name):
    """A data: URL of the picture as a JPEG of about PIXELS."""
    picture = Image.open(os.path.join(test_senses.TRAIN, "heldout_media", name)).convert("RGB")
    times = max(1, round((PIXELS / (picture.width * picture.height)) ** 0.5))
    out = io.BytesIO()
    picture.resize((picture.width * times, picture.height * times), Image.BICUBIC).save(out, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(out.getvalue()).decode()


def request(item):
    body = test_senses.request(item)
    for message in body["input"]:
        for part in message["content"]:
            if part["type"] == "input_image":
                part["image_url"] = enlarged(item["file"])
    return body


def main():
    with open(os.path.join(test_senses.TRAIN, "heldout_media.json"), encoding="utf-8") as f:
        items = [i for i in json.load(f) if i["id"].startswith("p")]
    texts = {}
    for scaling in ("on", "off"):
        with Server("--jpeg-scaling", scaling) as s:
            results = asyncio.run(gather_limited(4, [run(s, request(i)) for i in items]))
        texts[scaling] = [r.text for r in results]
        right = sum(bool(score(i, r.text, r.reasoning, r.calls)) for i, r in zip(items, results))
        print(f"--jpeg-scaling {scaling}: {right} of {len(items)} right", flush=True)
    print(f"the same text: {sum(a == b for a, b in zip(*texts.values()))} of {len(items)}")


if __name__ == "__main__":
    main()
