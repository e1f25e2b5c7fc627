#!/usr/bin/env python3
"""The demo model in FP8 and FP4: `sluice quantize` writes it, `sluice inspect` knows it, the server answers held-out questions with it.

Fewer questions than test_chat.py, the first of the same list; what each format costs is measured by bench/formats.py.
"""
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

from server import ROOT, SCALE, SLUICE, Server, main
from test_chat import AT_ONCE, TRAIN, request
from wsclient import gather_limited, run

DEMO = os.path.join(ROOT, "model", "demo")
QUESTIONS = max(10, int(40 * SCALE))
RIGHT_SHARE = 0.9


def sluice(*words, code=0):
    p = subprocess.run([SLUICE, *words], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert p.returncode == code, f"sluice {' '.join(words)}: exit code {p.returncode}\n{p.stdout}\n{p.stderr}"
    return p.stdout + p.stderr


def ask(folder, *options):
    sys.path.insert(0, TRAIN)
    from score import score
    with open(os.path.join(TRAIN, "heldout.json"), encoding="utf-8") as f:
        items = json.load(f)[:QUESTIONS]
    with Server("--device", "cpu", *options, model=folder) as s:
        results = asyncio.run(gather_limited(AT_ONCE, [run(s, request(i)) for i in items]))
    right = sum(bool(score(i, r.text, r.reasoning, r.calls)) for i, r in zip(items, results))
    print(f"     {os.path.basename(folder)} {' '.join(options)}: {right} of {len(items)} right", flush=True)
    assert right >= RIGHT_SHARE * len(items), f"{right} of {len(items)} right"


def test_quantized_checkpoints_are_served():
    with tempfile.TemporaryDirectory(prefix="sluice-formats-") as out:
        text = os.path.join(out, "text")
        with open(os.path.join(TRAIN, "heldout.json"), encoding="utf-8") as f, open(text, "w", encoding="utf-8") as g:
            g.write("\n".join(str(m.get("content")) for q in json.load(f)[-20:] for m in q["messages"]))
        for name, options, words in (("fp8-static", ["--calibration", text], "FP8 per tensor, activations FP8 static"),
                                     ("nvfp4a16", [], "FP4 in groups of 16 (NVFP4), weight-only")):
            folder = os.path.join(out, name)
            sluice("quantize", DEMO, folder, "--format", name, *options)
            shown = sluice("inspect", folder)
            assert words in shown and "\nloads\n" in shown, shown
            ask(folder)
        ask(os.path.join(out, "fp8-static"), "--activations", "bf16")
    ask(DEMO, "--kv-cache-dtype", "fp8")


def cache_of(folder, *options):
    with Server("--device", "cpu", *options, model=folder) as s:
        return s.status()["kv_cache"]["dtype"]


def test_the_cache_is_what_the_checkpoint_asks_for():
    with tempfile.TemporaryDirectory(prefix="sluice-formats-") as out:
        folder = os.path.join(out, "block128")
        sluice("quantize", DEMO, folder, "--format", "fp8-block128")
        assert cache_of(folder) == "bf16"
        path = os.path.join(folder, "hf_quant_config.json")
        with open(path, encoding="utf-8") as f:
            config = json.load(f)
        config["quantization"]["kv_cache_quant_algo"] = "FP8"
        with open(path, "w", encoding="utf-8") as f:
            json.dump(config, f)
        assert "asks for an FP8 KV cache" in sluice("inspect", folder)
        assert cache_of(folder) == "fp8" and cache_of(folder, "--kv-cache-dtype", "bf16") == "bf16"
    assert cache_of(DEMO) == "bf16" and cache_of(DEMO, "--kv-cache-dtype", "f32") == "f32"


def test_drafts_and_found_prefixes_over_an_fp8_cache_change_nothing():
    with open(os.path.join(TRAIN, "heldout.json"), encoding="utf-8") as f:
        requests = [{**request(i), "return_token_ids": True} for i in json.load(f)[:max(8, int(16 * SCALE))]]
    said = {}
    for draft in ("none", "ngram", "mtp"):
        with Server("--device", "cpu", "--kv-cache-dtype", "fp8", "--draft", draft) as s:
            for turn in ("first", "again"):         # the second time the prompts are found
                said[draft, turn] = [r.outcome() for r in asyncio.run(gather_limited(AT_ONCE, [run(s, r) for r in requests]))]
            assert s.status()["kv_cache"]["prompt_tokens_found"] > 0
    for how, outcomes in said.items():
        assert outcomes == said["none", "first"], f"{how}: other answers than without drafts"


def bytes_of(folder):
    content = {}
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), "rb") as f:
            content[name] = f.read()
    return content


def test_a_killed_quantize_leaves_a_whole_checkpoint_or_none():
    with tempfile.TemporaryDirectory(prefix="sluice-formats-") as out:
        folder, words = os.path.join(out, "killed"), ["--format", "fp8-row", "--threads", "1"]
        began = time.monotonic()
        sluice("quantize", DEMO, os.path.join(out, "whole"), *words)
        took, caught = time.monotonic() - began, 0
        for i in range(max(6, int(12 * SCALE))):
            p = subprocess.Popen([SLUICE, "quantize", DEMO, folder, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
            time.sleep(took * (i % 6 + 0.5) / 8)
            p.kill()
            p.wait()
            if os.path.exists(folder):             # the last thing that it did
                assert bytes_of(folder) == bytes_of(os.path.join(out, "whole"))
                shutil.rmtree(folder)
                continue
            caught += os.path.exists(folder + ".partial")
            sluice("inspect", folder, code=1)
        assert caught > 0, "no run was killed while it wrote"
        sluice("quantize", DEMO, folder, *words)
        assert not os.path.exists(folder + ".partial") and bytes_of(folder) == bytes_of(os.path.join(out, "whole"))


def test_a_broken_quantized_checkpoint_is_named_before_it_serves():
    with tempfile.TemporaryDirectory(prefix="sluice-formats-") as out:
        folder = os.path.join(out, "fp8-row")
        sluice("quantize", DEMO, folder, "--format", "fp8-row")
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
            config = json.load(f)
        config["quantization_config"]["quant_method"] = "awq"
        with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as f:
            json.dump(config, f)
        assert '"awq"' in sluice("inspect", folder, code=1)
        p = subprocess.run([SLUICE, "serve", "--port", "0", "--run-dir", os.path.join(out, "run"), "--device", "cpu", "--model", folder],
                           capture_output=True, text=True, timeout=60, cwd=ROOT)
        assert p.returncode == 100 and '"awq"' in p.stdout + p.stderr, (p.returncode, p.stderr)


def bytes_taken(pid):
    """What a process has read, and what it has touched of the files that it maps."""
    with open(f"/proc/{pid}/io") as f:
        read = int(next(line for line in f if line.startswith("rchar")).split()[1])
    with open(f"/proc/{pid}/status") as f:
        mapped = int(next(line for line in f if line.startswith("RssFile")).split()[1]) * 1024
    return read + mapped


def test_a_checkpoint_of_any_size_starts_on_a_cpu_unread():
    """24 GB that are holes but for the headers and norms: a file that is mapped is not read. How long the start takes is printed."""
    sys.path.insert(0, os.path.join(ROOT, "tests", "gpu"))
    import coldstart
    with tempfile.TemporaryDirectory(prefix="sluice-formats-") as out:
        coldstart.write_checkpoint(out, holes=True)
        size = sum(os.path.getsize(os.path.join(out, name)) for name in os.listdir(out))
        began = time.monotonic()
        with Server("--device", "cpu", "--max-context", "4096", "--kv-cache-mib", "1024", model=out) as s:
            took = time.monotonic() - began
            taken = {x["name"]: bytes_taken(x["pid"]) for x in s.status()["stages"] if x.get("pid")}
        print(f"     {size * 1e-9:.1f} GB: ready {took:.2f} s after exec; of all files read or touched: {', '.join(f'{r} {b * 1e-6:.0f} MB' for r, b in taken.items())}", flush=True)
        assert size > 20e9 and "verify" in taken and max(taken.values()) < 100e6, taken  # a layer has 440 MB; executables and headers have a few


if __name__ == "__main__":
    main(test_quantized_checkpoints_are_served, test_the_cache_is_what_the_checkpoint_asks_for, test_drafts_and_found_prefixes_over_an_fp8_cache_change_nothing,
         test_a_killed_quantize_leaves_a_whole_checkpoint_or_none, test_a_broken_quantized_checkpoint_is_named_before_it_serves,
         test_a_checkpoint_of_any_size_starts_on_a_cpu_unread)
