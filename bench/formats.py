#!/usr/bin/env python3
"""bench/formats.py DIR... - what each quantized checkpoint of the demo model costs in accuracy.

    python tests/oracle/make_format_golden.py --demo OUT     writes them, with the packages that own the formats
    .venv/bin/python bench/formats.py [--conversations N] [--questions] OUT/*

For each DIR, with the checkpoint's own rule for activations and, where that rounds them, without: perplexity and agreement with the
BF16 model on N conversations that training never saw (build/bench/format_eval), and with --questions how many of the 100
held-out questions the server answers. --kv: the KV cache's elements in all of them. Needs a built tree.
"""
import argparse
import array
import asyncio
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
TRAIN, DEMO = ROOT / "model/train", ROOT / "model/demo"
SEED = 4711
sys.path[:0] = [str(TRAIN), str(ROOT / "tests/e2e")]


def write_tokens(path, count):
    """Held-out conversations as ids, in the layout of format_eval."""
    import tokenizers

    import generate
    tok = tokenizers.Tokenizer.from_file(str(DEMO / "tokenizer.json"))
    render, r, seen, out = generate.Renderer(), random.Random(SEED), set(), array.array("I")
    while len(seen) < count:
        item = generate.draw(r)
        if not generate.is_held_out(item) or item.key() in seen:
            continue
        seen.add(item.key())
        prompt, answer = tok.encode(render.prompt(item)).ids, tok.encode(render.completion(item)).ids
        out.extend([len(prompt), len(answer), *prompt, *answer])
    path.write_bytes(out.tobytes())


def questions(folder, activations, kv):
    from server import Server
    from test_chat import AT_ONCE, request
    from wsclient import gather_limited, run

    from score import score
    items = json.loads((TRAIN / "heldout.json").read_text())
    with Server("--activations", activations, "--kv-cache-dtype", kv, "--device", "cpu", model=str(folder)) as s:
        results = asyncio.run(gather_limited(AT_ONCE, [run(s, request(i)) for i in items]))
    return sum(score(i, r.text, r.reasoning, r.calls) for i, r in zip(items, results)), len(items)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("folders", nargs="+", type=pathlib.Path)
    p.add_argument("--conversations", type=int, default=1000)
    p.add_argument("--questions", action="store_true")
    p.add_argument("--kv", choices=["bf16", "fp8", "f32"], default="bf16")
    p.add_argument("--tokens", type=pathlib.Path, help="a file of tokens made before, instead of drawing conversations")
    args = p.parse_args()
    build = ROOT / os.environ.get("SLUICE_BUILD", "build")
    with tempfile.TemporaryDirectory() as scratch:
        tokens = args.tokens or pathlib.Path(scratch) / "tokens"
        if not tokens.exists():
            write_tokens(tokens, args.conversations)
        for folder in args.folders:
            before = None
            for activations in ("auto", "bf16"):
                line = subprocess.run([build / "bench/format_eval", DEMO, folder, activations, tokens, args.kv], capture_output=True, text=True, check=True).stdout.strip()
                if line == before:
                    continue  # no rule to switch off
                before = line
                asked = ""
                if args.questions:
                    right, count = questions(folder, activations, args.kv)
                    asked = f", {right} of {count} questions"
                print(f"{folder.name:22} activations {activations:4} KV {args.kv}  {line}{asked}", flush=True)


if __name__ == "__main__":
    main()
