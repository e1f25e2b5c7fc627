#!/usr/bin/env python3
"""tests/gpu/formats.py - the demo model in every format that `sluice quantize` writes gives the same bytes on the GPU as on the CPU.

    SLUICE_BUILD=build/dist python3 tests/gpu/formats.py [FORMAT...]      (default: all)

Held-out questions, greedy, every token compared, activations rounded as each format says; then with --activations bf16 where it has a rule.
QUESTIONS=N asks only the first N of 100. Needs a Hopper GPU and the standard library only.
"""
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tests", "e2e"))
from server import SLUICE, Server  # noqa: E402
from test_chat import TRAIN, request  # noqa: E402
from wsclient import gather_limited, run  # noqa: E402

DEMO = os.path.join(ROOT, "model", "demo")
FORMATS = {"fp8-row": True, "fp8-dynamic": True, "fp8-static": True, "fp8-block128": False, "nvfp4a16": False}      # has an activation rule
AT_ONCE = 16


def write(name, out):
    options = []
    if name == "fp8-static":
        text = os.path.join(out, "text")
        with open(os.path.join(TRAIN, "heldout.json"), encoding="utf-8") as f, open(text, "w", encoding="utf-8") as g:
            g.write("\n".join(str(m.get("content")) for q in json.load(f)[-20:] for m in q["messages"]))
        options = ["--calibration", text]
    folder = os.path.join(out, name)
    subprocess.run([SLUICE, "quantize", DEMO, folder, "--format", name, *options], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT, timeout=120)
    return folder


def answers(folder, asked, *options):
    begin = time.perf_counter()
    with Server(*options, model=folder) as s:
        results = asyncio.run(gather_limited(AT_ONCE, [run(s, b) for b in asked]))
        where = next((line for line in s.out().splitlines() if "serving" in line), "")
    return [r.outcome() for r in results], time.perf_counter() - begin, where


def main():
    names = sys.argv[1:] or list(FORMATS)
    with open(os.path.join(TRAIN, "heldout.json"), encoding="utf-8") as f:
        items = json.load(f)[:int(os.environ.get("QUESTIONS", "100"))]
    asked = [{**request(i), "temperature": 0, "return_token_ids": True} for i in items]
    bad = 0
    with tempfile.TemporaryDirectory(prefix="sluice-formats-") as out:
        for name in names:
            folder = write(name, out)
            for options in [[], ["--activations", "bf16"]][:1 + FORMATS[name]]:
                cpu, cpu_s, _ = answers(folder, asked, "--device", "cpu", *options)
                gpu, gpu_s, where = answers(folder, asked, "--device", "cuda", *options)
                other = sum(a != b for a, b in zip(cpu, gpu))
                bad += other != 0
                print(f"{'FAIL' if other else 'ok':4} {name} {' '.join(options)}: {len(items) - other} of {len(items)} answers equal on GPU ({gpu_s:.1f} s) and CPU ({cpu_s:.1f} s); {where}", flush=True)
    return bad != 0


if __name__ == "__main__":
    sys.exit(main())
