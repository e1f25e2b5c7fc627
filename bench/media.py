#!/usr/bin/env python3
"""How fast pictures become what the model takes in, beside the reference: Pillow and transformers' own image processor, on the same machine and thread.

    bench/media.py PYTHON        PYTHON: one that has Pillow, torch, torchvision and transformers (5.x); default: this one

Processor time of one thread, on both sides, since machines have other things to do. Ours: all that the vision stage and its workers take in a server that runs: hash, copies, making the
worker, decoding, resizing, patches. The reference: Image.open, convert, processor. Photographs are drawn: noise of several sizes, so that JPEG has something to do.
Runs alternate; means of ROUNDS pictures are shown."""
import base64
import io
import json
import os
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SIZES = {"1080p": (1920, 1080), "12 MP": (4000, 3000)}
KINDS = {"jpg": {"format": "JPEG", "quality": 90}, "png": {"format": "PNG", "compress_level": 6}, "webp": {"format": "WEBP", "quality": 85}}
ROUNDS = 8
REPEATS = 4  # of ours: the system counts processor time in hundredths of a second


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


def reference():
    """In the other Python: makes the files, then times the reference on request. Talks in lines of JSON."""
    import torch
    from PIL import Image
    from transformers.models.gemma4_unified.image_processing_gemma4_unified import Gemma4UnifiedImageProcessor
    torch.set_num_threads(1)
    processor, files = Gemma4UnifiedImageProcessor(max_soft_tokens=280), {}
    for name, (width, height) in SIZES.items():
        for i in range(ROUNDS):
            picture = draw(width, height, i)
            for kind, options in KINDS.items():
                b = io.BytesIO()
                picture.save(b, **options)
                files[f"{name} {kind} {i}"] = b.getvalue()
    directory = sys.argv[2]
    for name, data in files.items():
        with open(os.path.join(directory, name), "wb") as f:
            f.write(data)
    processor(draw(640, 480, 0), return_tensors="pt")
    print(json.dumps(list(files)), flush=True)
    for line in sys.stdin:
        began = time.process_time()
        processor(Image.open(io.BytesIO(files[line.strip()])).convert("RGB"), return_tensors="pt")
        print(json.dumps(time.process_time() - began), flush=True)


def stage_seconds(pid):
    """Processor time of the vision stage and of the workers it has buried."""
    with open(f"/proc/{pid}/stat") as f:
        fields = f.read().rsplit(")", 1)[1].split()
    return sum(int(x) for x in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def main():
    if len(sys.argv) > 2:
        reference()
        return
    sys.path.insert(0, os.path.join(ROOT, "tests", "e2e"))
    import seeing
    import test_media as t
    from server import Server
    seeing.BUDGET, seeing.POSITIONS = 280, 300
    python = sys.argv[1] if len(sys.argv) > 1 else sys.executable
    with tempfile.TemporaryDirectory() as directory, tempfile.TemporaryDirectory() as model:
        other = subprocess.Popen([python, os.path.abspath(__file__), "reference", directory], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        names = json.loads(other.stdout.readline())
        times = {}
        options = ("--media-cache-mib", "0", "--vision-workers", "1")
        with Server(*options, model=seeing.make(model)) as usual, Server(*options, "--jpeg-scaling", "off", model=model) as exact:
            for name in names:
                with open(os.path.join(directory, name), "rb") as f:
                    body = t.chat_body([{"type": "image_url", "image_url": {"url": "data:;base64," + base64.b64encode(f.read()).decode()}}], max_tokens=1)
                other.stdin.write(name + "\n")
                other.stdin.flush()
                its, key = json.loads(other.stdout.readline()), name.rsplit(" ", 1)[0]
                for s, suffix in ((usual, ""), (exact, ", in full")) if key == "12 MP jpg" else ((usual, ""),):
                    pid = s.stage("vision")["pid"]
                    before = stage_seconds(pid)
                    for _ in range(REPEATS):
                        status, answer = t.post(s, "/v1/chat/completions", body)
                        assert status == 200, answer
                    times.setdefault(key + suffix, []).append(((stage_seconds(pid) - before) / REPEATS, its, os.path.getsize(os.path.join(directory, name))))
        other.stdin.close()
        other.wait()
    print(f"{'picture':<20} {'file MB':>8} {'ours ms':>8} {'a second':>9} {'reference ms':>13} {'times':>6}")
    for key, runs in times.items():
        ours, its, size = (sum(x) / len(x) for x in zip(*runs))
        print(f"{key:<20} {size / 1e6:8.2f} {ours * 1e3:8.1f} {1 / ours:9.1f} {its * 1e3:13.1f} {its / ours:6.1f}")


if __name__ == "__main__":
    main()
