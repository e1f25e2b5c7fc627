#!/usr/bin/env python3
"""The demo model answers 100 held-out questions on pictures and 50 on sounds through the WebSocket, greedily, eight at a time.

Files and judge come from the trainer (model/train/heldout_media.json, heldout_media/, score.py); nothing that is to be seen or heard in them was trained on.
"""
import asyncio
import base64
import json
import os
import sys

from server import ROOT, Server, main
from wsclient import gather_limited, run

TIME_LIMIT_S = 300
TRAIN = os.path.join(ROOT, "model", "train")
AT_ONCE = 8
RIGHT_LEAST = {"p": 90, "s": 45}
KINDS = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}


def part(item, content):
    """One part of a message as the Responses API takes it."""
    if content["type"] == "text":
        return {"type": "input_text", "text": content["text"]}
    with open(os.path.join(TRAIN, "heldout_media", item["file"]), "rb") as f:
        data = base64.b64encode(f.read()).decode()
    end = item["file"].rsplit(".", 1)[1]
    if content["type"] == "image":
        return {"type": "input_image", "image_url": f"data:{KINDS[end]};base64,{data}"}
    return {"type": "input_audio", "input_audio": {"data": data, "format": end}}


def request(item):
    return {"input": [{"role": m["role"], "content": [part(item, c) for c in m["content"]]} for m in item["messages"]], "temperature": 0, "max_output_tokens": 60}


def test_heldout_media():
    sys.path.insert(0, TRAIN)
    from score import score
    with open(os.path.join(TRAIN, "heldout_media.json"), encoding="utf-8") as f:
        items = json.load(f)
    with Server() as s:
        results = asyncio.run(gather_limited(AT_ONCE, [run(s, request(i)) for i in items]))
    families, right, asked = {}, {"p": 0, "s": 0}, {"p": 0, "s": 0}
    for item, result in zip(items, results):
        good, letter = score(item, result.text, result.reasoning, result.calls), item["id"][0]
        right[letter] += good
        asked[letter] += 1
        counts = families.setdefault((letter, item["family"]), [0, 0])
        counts[0] += good
        counts[1] += 1
        if not good:
            print(f"     wrong {item['file']} ({item['family']}): {[c['text'] for c in item['messages'][0]['content'] if 'text' in c]} -> {result.text!r:.120}; {item['answer']!r}", flush=True)
    for (letter, name), (good, count) in sorted(families.items()):
        print(f"     {letter} {name:16} {good:3} of {count}", flush=True)
    print(f"     pictures {right['p']} of {asked['p']}, sounds {right['s']} of {asked['s']}", flush=True)
    assert asked == {"p": 100, "s": 50} and all(right[k] >= least for k, least in RIGHT_LEAST.items()), right


if __name__ == "__main__":
    main(test_heldout_media)
