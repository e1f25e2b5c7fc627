#!/usr/bin/env python3
"""What a video file costs, beside the reference: torchcodec and transformers' video processor. Processor time, since machines have other things to do.

    bench/video.py PYTHON [--rounds N]        PYTHON: one that has av (to code the videos), torchcodec, torch, torchvision and transformers (5.x); "-": this one

Ten seconds of drawn pictures that move, in several sizes and codecs. Ours: the vision stage and its workers (a new sandboxed process for each video, which opens libav's libraries), in a server
that gets one request at a time. The reference: the processor is given the file's path; its decoder takes as many threads as it likes, torch one."""
import argparse
import json
import os
import statistics
import sys
import tempfile
import time

from media import ROOT, Talker, draw, stage_seconds

SECONDS, FPS = 10, 30
KINDS = {  # name: codec, container, size, options of the coder
    "1080p H.264": ("libx264", "mp4", (1920, 1080), {"preset": "veryfast", "crf": "28", "bf": "3"}),
    "720p H.264": ("libx264", "mp4", (1280, 720), {"preset": "veryfast", "crf": "28", "bf": "3"}),
    "480p H.264": ("libx264", "mp4", (640, 480), {"preset": "veryfast", "crf": "28", "bf": "3"}),
    "720p VP9": ("libvpx-vp9", "webm", (1280, 720), {"deadline": "realtime", "cpu-used": "8"}),
}


def code(path, codec, size, options):
    import av
    import numpy as np
    width, height = size
    still = np.asarray(draw(width, height, 1))
    with av.open(path, "w") as c:
        s = c.add_stream(codec, rate=FPS)
        s.width, s.height, s.pix_fmt, s.options = width, height, "yuv420p", options
        for i in range(SECONDS * FPS):
            c.mux(s.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(np.roll(still, (i, 2 * i), (0, 1))), format="rgb24")))
        c.mux(s.encode())


def reference(directory):
    """In the other Python: codes the videos, then times the reference on request. Talks in lines of JSON."""
    import torch
    from transformers.models.gemma4_unified.video_processing_gemma4_unified import Gemma4UnifiedVideoProcessor
    torch.set_num_threads(1)
    processor, names = Gemma4UnifiedVideoProcessor(), []
    for kind, (codec, container, size, options) in KINDS.items():
        names.append(f"{kind}.{container}")
        code(os.path.join(directory, names[-1]), codec, size, options)
    processor(videos=[os.path.join(directory, names[-1])], return_tensors="pt")
    print(json.dumps(names), flush=True)
    for line in sys.stdin:
        began = time.process_time()
        processor(videos=[os.path.join(directory, line.rstrip("\n"))], return_tensors="pt")
        print(time.process_time() - began, flush=True)


def measure(directory, names, other, rounds):
    """{name: ([our seconds], [the reference's])}"""
    sys.path.insert(0, os.path.join(ROOT, "tests", "e2e"))
    import seeing
    import test_media as t
    from server import Server
    out = {name: ([], []) for name in names}
    with tempfile.TemporaryDirectory() as model, Server("--media-cache-mib", "0", "--vision-workers", "1", model=seeing.make(model)) as server:
        pid = server.stage("vision")["pid"]
        for i in range(rounds + 1):  # the first round warms up
            for name in names:
                with open(os.path.join(directory, name), "rb") as f:
                    body = t.chat_body([t.video_file(f.read())], max_tokens=1)
                before = stage_seconds(pid)
                status, answer = t.post(server, "/v1/chat/completions", body)
                assert status == 200, answer
                ours, its = stage_seconds(pid) - before, float(other.ask(name))
                if i > 0:
                    out[name][0].append(ours)
                    out[name][1].append(its)
    return out


def main():
    p = argparse.ArgumentParser()
    p.add_argument("python", nargs="?", default="-")
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--reference", help=argparse.SUPPRESS)
    o = p.parse_args()
    if o.reference:
        reference(o.reference)
        return
    with tempfile.TemporaryDirectory() as directory:
        other = Talker(os.sched_getaffinity(0), sys.executable if o.python == "-" else o.python, os.path.abspath(__file__), "--reference", directory)
        names = json.loads(other.read())
        times = measure(directory, names, other, o.rounds)
        other.end()
        print(f"{'10 s of video':<20} {'MB':>6} | {'ours, s':>8} {'reference, s':>13} {'times':>6}")
        for name, (ours, its) in times.items():
            a, b = statistics.median(ours), statistics.median(its)
            print(f"{name:<20} {os.path.getsize(os.path.join(directory, name)) / 1e6:6.2f} | {a:8.2f} {b:13.2f} {b / a:6.2f}")


if __name__ == "__main__":
    main()
