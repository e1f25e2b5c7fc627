#!/usr/bin/env python3
"""The demo model answers 100 held-out questions through the WebSocket, greedily, eight at a time. Over 90 must be right.

The questions and the judge come from the trainer (model/train/heldout.json, score.py); none of them was trained on.
"""
import asyncio
import json
import os
import subprocess
import sys

from server import ROOT, Server, main, skip
from wsclient import gather_limited, run

TRAIN = os.path.join(ROOT, "model", "train")
WEIGHTS = os.path.join("model", "demo", "model.safetensors")
AT_ONCE, RIGHT_LEAST = 8, 91


def input_items(messages):
    """Chat messages as Responses input items."""
    items = []
    for m in messages:
        if m["role"] == "tool":
            items.append({"type": "function_call_output", "call_id": m["tool_call_id"], "output": m["content"]})
            continue
        if m.get("content"):
            items.append({"role": m["role"], "content": m["content"]})
        for call in m.get("tool_calls") or []:
            f = call["function"]
            arguments = f["arguments"] if isinstance(f["arguments"], str) else json.dumps(f["arguments"])
            items.append({"type": "function_call", "call_id": call["id"], "name": f["name"], "arguments": arguments})
    return items


def request(item):
    body = {"input": input_items(item["messages"]), "temperature": 0, "max_output_tokens": 1024}
    if item.get("tools"):
        body["tools"] = [{"type": "function", **t["function"]} for t in item["tools"]]
    if item.get("chat_template_kwargs"):
        body["chat_template_kwargs"] = item["chat_template_kwargs"]
    return body


def test_heldout_questions():
    if not os.path.exists(os.path.join(TRAIN, "heldout.json")) or not os.path.exists(os.path.join(TRAIN, "score.py")):
        skip("the held-out questions are not there")
    tracked = subprocess.run(["git", "ls-files", "--error-unmatch", WEIGHTS], cwd=ROOT, capture_output=True).returncode == 0
    if not tracked and not os.environ.get("SLUICE_TEST_UNCOMMITTED_MODEL"):
        skip("the trained model is not committed yet")
    sys.path.insert(0, TRAIN)
    from score import score
    with open(os.path.join(TRAIN, "heldout.json"), encoding="utf-8") as f:
        items = json.load(f)
    with Server() as s:
        results = asyncio.run(gather_limited(AT_ONCE, [run(s, request(i)) for i in items]))
        rates = s.status()["rates"]
    families, right = {}, 0
    for item, result in zip(items, results):
        good = score(item, result.text, result.reasoning, result.calls)
        right += good
        counts = families.setdefault(item["family"], [0, 0])
        counts[0] += good
        counts[1] += 1
        if not good:
            print(f"     wrong {item['id']} ({item['family']}): {item['messages'][-1]['content']!r:.150}\n           -> {result.text!r:.200} {result.calls}", flush=True)
    for name, (good, count) in sorted(families.items()):
        print(f"     {name:24} {good:3} of {count}", flush=True)
    tokens = sum(r.response["usage"]["output_tokens"] for r in results)
    print(f"     total {right} of {len(items)} right; {tokens} tokens, draft acceptance {rates['draft_acceptance']:.2f}", flush=True)
    assert right >= RIGHT_LEAST, f"{right} of {len(items)} right; at least {RIGHT_LEAST} are asked for"


if __name__ == "__main__":
    main(test_heldout_questions)
