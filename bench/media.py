#!/usr/bin/env python3
"""How fast pictures become what the model takes in, beside the reference: Pillow and transformers' own image processor, on the same machine and thread.

    bench/media.py PYTHON [--rounds N] [--no-server]        PYTHON: one that has Pillow, torch, torchvision and transformers (5.x); "-": this one

Three measurements, of N drawn photographs of each kind (noise of several sizes, so that decoders have something to do), in turns, medians shown:

- busy: a worker of the vision stage that is kept busy (build/bench/vision_bench): everything the stage does for a picture, with a new sandboxed process for each;
- alone: the same in a server that has nothing else to do and gets one request at a time, processor time of the vision stage and its workers (--no-server leaves it out);
- the reference: Image.open, convert, processor; torch with one thread.

Busy and reference run on one and the same core, one after the other. Pictures a second are by the clock; milliseconds are processor time, since machines have other things to do. Beside
both stands what the decoding libraries take alone: ours behind the code that calls it here, the reference's as Image.open and convert (it has libraries of its own)."""
import argparse
import base64
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SIZES = {"1080p": (1920, 1080), "12 MP": (4000, 3000)}
KINDS = {"jpg": {"format": "JPEG", "quality": 90}, "png": {"format": "PNG", "compress_level": 6}, "webp": {"format": "WEBP", "quality": 85},
         "lossless webp": {"format": "WEBP", "lossless": True, "method": 2}}
IN_FULL = ", in full"
REPEATS = 4  # of a request: the system counts processor time in hundredths of a second


def draw(width, height, seed):
    import numpy as np
    from PIL import Image
    r = np.random.default_rng(seed)
    out = np.zeros((height, width, 3), np.float32)
    for scale, strength in ((256, 110), (64, 50), (16, 24), (4, 10), (1, 4)):
        small = r.normal(0, strength, (height // scale + 2, width // scale + 2, 3)).astype(np.float32)
        big = Image.fromarray((np.clip(small + 128, 0, 255)).astype(np.uint8)).resize((width, height), Image.BICUBIC)
        out += np.asarray(big, np.float32) - 128
    return Image.fromarray(np.clip(out + 128, 0, 255).astype(np.uint8))


def reference(directory, rounds):
    """In the other Python: makes the files, then times the reference on request. Talks in lines of JSON."""
    import torch
    from PIL import Image
    from transformers.models.gemma4_unified.image_processing_gemma4_unified import Gemma4UnifiedImageProcessor
    torch.set_num_threads(1)
    processor, names = Gemma4UnifiedImageProcessor(max_soft_tokens=280), []
    for size, (width, height) in SIZES.items():
        for i in range(rounds):
            picture = draw(width, height, i)
            for kind, options in KINDS.items():
                names.append(f"{size} {kind} {i}")
                picture.save(os.path.join(directory, names[-1]), **options)
    processor(draw(640, 480, 0), return_tensors="pt")
    print(json.dumps(names), flush=True)
    for line in sys.stdin:
        with open(os.path.join(directory, line.rstrip("\n")), "rb") as f:
            data = f.read()
        clock, began = time.perf_counter(), time.process_time()
        picture = Image.open(io.BytesIO(data)).convert("RGB")
        decoded = time.process_time()
        processor(picture, return_tensors="pt")
        print(json.dumps({"all": (time.process_time() - began) * 1e3, "library": (decoded - began) * 1e3, "clock": (time.perf_counter() - clock) * 1e3}), flush=True)


class Talker:
    """A program that answers each line with one, on one core (or on a set of them)."""
    def __init__(self, core, *command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: os.sched_setaffinity(0, core if isinstance(core, set) else {core}))

    def read(self):
        line = self.process.stdout.readline()
        assert line, f"{self.process.args[0]} has ended"
        return line

    def ask(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.read()

    def end(self):
        self.process.stdin.close()
        assert self.process.wait() == 0


def kind_of(name):
    return name.rsplit(" ", 1)[0]


def variants(name):
    """Beside the usual one: large JPEGs decoded in full."""
    return ("", IN_FULL) if kind_of(name) == "12 MP jpg" else ("",)


def measure_busy(core, directory, names, other):
    """{kind: [{our and the reference's costs}]}"""
    program = os.path.join(ROOT, "build", "bench", "vision_bench")
    program = os.environ.get("SLUICE_VISION_BENCH", program)
    ours = {"": Talker(core, program, "-"), IN_FULL: Talker(core, program, "--exact", "-")}
    out = {}
    for name in names:
        path = os.path.join(directory, name)
        for warm in (True, False):
            its = json.loads(other.ask(name))
            for suffix in variants(name):
                row = dict(zip(("all", "clock", "work", "library"), map(float, ours[suffix].ask(path).split())))
                if not warm:
                    out.setdefault(kind_of(name) + suffix, []).append({"ours": row, "its": its, "bytes": os.path.getsize(path)})
    for o in ours.values():
        o.end()
    return out


def stage_seconds(pid):
    """Processor time of the vision stage and of the workers it has buried."""
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return sum(int(x) for x in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def measure_alone(directory, names):
    """{kind: [milliseconds]}"""
    sys.path.insert(0, os.path.join(ROOT, "tests", "e2e"))
    import seeing
    import test_media as t
    from server import Server
    seeing.BUDGET, seeing.POSITIONS = 280, 300
    options, out = ("--media-cache-mib", "0", "--vision-workers", "1"), {}
    with tempfile.TemporaryDirectory() as model, Server(*options, model=seeing.make(model)) as usual, Server(*options, "--jpeg-scaling", "off", model=model) as exact:
        for name in names:
            with open(os.path.join(directory, name), "rb") as f:
                body = t.chat_body([{"type": "image_url", "image_url": {"url": "data:;base64," + base64.b64encode(f.read()).decode()}}], max_tokens=1)
            for suffix in variants(name):
                server = exact if suffix else usual
                pid = server.stage("vision")["pid"]
                before = stage_seconds(pid)
                for _ in range(REPEATS):
                    status, answer = t.post(server, "/v1/chat/completions", body)
                    assert status == 200, answer
                out.setdefault(kind_of(name) + suffix, []).append((stage_seconds(pid) - before) / REPEATS * 1e3)
    return out


def show(busy, alone):
    print(f"{'':<22} {'':>6} | {'ours, ms':^34} | {'reference, ms':^15} | {'pictures/s':^12} | {'times':^11}")
    print(f"{'picture':<22} {'MB':>6} | {'alone':>6} {'busy':>6} {'1 process':>10} {'library':>8} | {'all':>6} {'library':>8} | {'ours':>5} {'its':>6} | {'busy':>5} {'alone':>5}")
    for kind, rows in busy.items():
        def middle(who, what):
            return statistics.median(row[who][what] for row in rows)
        one = statistics.fmean(alone[kind]) if kind in alone else float("nan")
        print(f"{kind:<22} {statistics.fmean(row['bytes'] for row in rows) / 1e6:6.2f} | {one:6.1f} {middle('ours', 'all'):6.1f} {middle('ours', 'work'):10.1f} {middle('ours', 'library'):8.1f} | "
              f"{middle('its', 'all'):6.1f} {middle('its', 'library'):8.1f} | {1e3 / middle('ours', 'clock'):5.1f} {1e3 / middle('its', 'clock'):6.1f} | "
              f"{middle('its', 'all') / middle('ours', 'all'):5.2f} {middle('its', 'all') / one:5.2f}")


def main():
    p = argparse.ArgumentParser()
    p.add_argument("python", nargs="?", default="-")
    p.add_argument("--rounds", type=int, default=8)
    p.add_argument("--no-server", action="store_true")
    p.add_argument("--reference", help=argparse.SUPPRESS)
    o = p.parse_args()
    if o.reference:
        reference(o.reference, o.rounds)
        return
    core = max(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as directory:
        other = Talker(core, sys.executable if o.python == "-" else o.python, os.path.abspath(__file__), "--reference", directory, "--rounds", str(o.rounds))
        names = json.loads(other.read())
        busy = measure_busy(core, directory, names, other)
        other.end()
        show(busy, {} if o.no_server else measure_alone(directory, names))


if __name__ == "__main__":
    main()
