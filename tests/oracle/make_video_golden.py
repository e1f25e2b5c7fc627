#!/usr/bin/env python3
"""Makes tests/golden/video/: small video files of every format, codec and kind of colour, and what the reference makes of them (frames.txt).

Run:  python tests/oracle/make_video_golden.py [frames]      (av 18, torchcodec 0.17 on the machine's libav, torch, transformers 5.x; `frames`: the files stay as they are)

The files are drawn here and coded by PyAV's own libraries. The reference is transformers' Gemma4UnifiedVideoProcessor, which has torchcodec decode: with the libav
that the machine has, so the same one that the server is built with. A video of fewer than 32 frames it refuses; it is told to take all of them. Lines of frames.txt:
  libavcodec MAJOR
  file NAME TOTAL FPS FRAMES COLUMNS ROWS
  frame MM:SS FNV1A MEAN...      a frame of it: its time, the hash of its blocks of pixels as bytes, and the mean red, green and blue of its quarters (by whole blocks)
"""
import fractions
import os
import struct
import sys

import numpy as np

OUT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "golden", "video")
SENSES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "model", "train", "heldout_media")
SCENES = ["p016.png", "p019.png", "p043.png", "p064.png", "p076.png", "p088.png"]  # drawn scenes that the demo model was never shown, in scenes.mp4 bit for bit, one a second
X265 = "log-level=none"


def draw(i, width, height):
    a = np.zeros((height, width, 3), np.uint8)
    a[..., 0] = (np.arange(width)[None, :] * 3 + i * 5) % 256
    a[..., 1] = (np.arange(height)[:, None] * 2 + i * 3) % 256
    a[..., 2] = i * 6 % 256
    x = i * 4 % width
    a[height // 4:height // 2, x:x + width // 6] = [255, 30, 10]
    return a


def code(name, codec, pix, frames, fps, size, times=None, audio=False, **options):
    """frames: how many, or arrays. times: of each frame, in 1/1000 s."""
    import av
    pictures = [draw(i, *size) for i in range(frames)] if isinstance(frames, int) else frames
    with av.open(os.path.join(OUT, name), "w", options={"fflags": "+bitexact"}) as c:
        s = c.add_stream(codec, rate=fps)
        s.width, s.height, s.pix_fmt, s.options = *size, pix, options
        s.thread_count = 1
        if times:
            s.codec_context.time_base = fractions.Fraction(1, 1000)
        voice = c.add_stream("aac", rate=16000, layout="mono") if audio else None
        for i, picture in enumerate(pictures):
            f = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times:
                f.pts, f.time_base = times[i], fractions.Fraction(1, 1000)
            c.mux(s.encode(f))
        c.mux(s.encode())
        for i in range(16 if audio else 0):
            f = av.AudioFrame.from_ndarray((np.sin(np.arange(1024)[None] * 0.2) * 9000).astype(np.int16), format="s16", layout="mono")
            f.sample_rate, f.pts = 16000, i * 1024
            c.mux(voice.encode(f))
        if audio:
            c.mux(voice.encode())


def voice(name):
    import av
    with av.open(os.path.join(OUT, name), "w", format="mp4", options={"fflags": "+bitexact"}) as c:
        s = c.add_stream("aac", rate=16000, layout="mono")
        f = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), format="s16", layout="mono")
        f.sample_rate = 16000
        c.mux(s.encode(f))
        c.mux(s.encode())


def turn(name, source, matrix):
    """The track's header with another display matrix."""
    with open(os.path.join(OUT, source), "rb") as f:
        data = bytearray(f.read())
    a, b, c, d = (v << 16 for v in matrix)
    struct.pack_into(">9i", data, data.find(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    with open(os.path.join(OUT, name), "wb") as f:
        f.write(data)


def make_files():
    from PIL import Image
    small = (96, 64)
    code("h264.mp4", "libx264", "yuv420p", 50, 25, (128, 96), g="12", bf="3")
    code("h264_709.mov", "libx264", "yuv420p", 36, 30, (98, 66), **{"x264-params": "colormatrix=bt709:colorprim=bt709:transfer=bt709"})
    code("h264_full.mkv", "libx264", "yuv420p", 34, 30, small, **{"x264-params": "colormatrix=bt709:fullrange=on"})
    code("h264_odd.mp4", "libx264", "yuv444p", 40, 30, (97, 65))
    code("h264_422.mp4", "libx264", "yuv422p", 33, 30, (98, 66))
    code("h264_10.mp4", "libx264", "yuv420p10le", 40, 30, (98, 66))
    code("h264_grey.mp4", "libx264", "gray", 40, 30, small)
    code("hevc.mp4", "libx265", "yuv420p", 100, 30, small, **{"x265-params": X265 + ":keyint=20:open-gop=1"})
    code("hevc_10.mkv", "libx265", "yuv420p10le", 40, 30, small, **{"x265-params": X265 + ":colormatrix=bt2020nc:range=full"})
    code("vp8.webm", "libvpx", "yuv420p", 40, 30, small)
    code("vp9.webm", "libvpx-vp9", "yuv420p", 40, 24, (97, 65))
    code("vp9_full.webm", "libvpx-vp9", "yuv420p", 40, 24, small, color_range="pc", colorspace="bt709")
    code("vp9_alpha.webm", "libvpx-vp9", "yuva420p", 33, 24, small)
    code("av1.webm", "libsvtav1", "yuv420p", 40, 24, (128, 96))
    code("av1_10.mp4", "libsvtav1", "yuv420p10le", 40, 24, (96, 128))
    code("mpeg4.mp4", "mpeg4", "yuv420p", 40, 15, small)
    code("animated.gif", "gif", "rgb8", 36, 10, (32, 24))
    code("long.mp4", "libx264", "yuv420p", 600, 4, (48, 32), g="250", bf="3", crf="40")
    code("uneven.mkv", "libx264", "yuv420p", 40, 25, small, times=[i * i * 20 for i in range(40)])
    code("sound.mp4", "libx264", "yuv420p", 40, 30, small, audio=True)
    code("short.mp4", "libx264", "yuv420p", 7, 30, (98, 66))
    code("one.webm", "libvpx-vp9", "yuv420p", 1, 30, small)
    turn("turned_90.mp4", "h264_422.mp4", (0, 1, -1, 0))
    turn("turned_180.mp4", "h264_422.mp4", (-1, 0, 0, -1))
    turn("turned_270.mp4", "h264_422.mp4", (0, -1, 1, 0))
    os.makedirs(os.path.join(OUT, "refused"), exist_ok=True)
    code("refused/mjpeg.mov", "mjpeg", "yuvj420p", 2, 25, small)
    voice("refused/voice.m4a")
    scenes = [np.array(Image.open(os.path.join(SENSES, n)).convert("RGB")) for n in SCENES]
    code("scenes.mp4", "libx264rgb", "rgb24", scenes, 1, scenes[0].shape[1::-1], qp="0")


def fnv(data):
    h = 0xCBF29CE484222325
    for b in data.tobytes():
        h = (h ^ b) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return h


def describe(processor, name):
    import torch
    from torchcodec.decoders import VideoDecoder
    path = os.path.join(OUT, name)
    total = VideoDecoder(path).metadata.num_frames
    out = processor(videos=[path], num_frames=min(32, total), return_metadata=True, return_tensors="pt")
    metadata, tokens = out["video_metadata"][0], out["num_soft_tokens_per_video"][0]
    values = out["pixel_values_videos"].reshape(-1, out["pixel_values_videos"].shape[-2], 6912)[:, :tokens]
    positions = out["video_position_ids"].reshape(-1, out["video_position_ids"].shape[-2], 2)[:, :tokens]
    pixels = (values * 255).round().to(dtype=torch.uint8).numpy()
    columns, rows = int(positions[..., 0].max()) + 1, int(positions[..., 1].max()) + 1
    assert columns * rows == tokens and len(pixels) == min(32, total)
    yield f"file {name} {total} {metadata.fps!r} {len(pixels)} {columns} {rows}"
    for seconds, frame in zip(metadata.timestamps, pixels):
        seconds = float(seconds)
        blocks = frame.reshape(rows, columns, -1, 3)
        quarters = [blocks[y, x] for y in (slice(0, rows // 2), slice(rows // 2, rows)) for x in (slice(0, columns // 2), slice(columns // 2, columns))]
        means = np.concatenate([q.reshape(-1, 3).mean(0) for q in quarters]).round().astype(int)
        yield f"frame {int(seconds // 60):02d}:{int(seconds % 60):02d} {fnv(frame):016x} {' '.join(map(str, means))}"


def main():
    os.makedirs(OUT, exist_ok=True)
    if sys.argv[1:] != ["frames"]:
        make_files()
    from transformers.models.gemma4_unified.video_processing_gemma4_unified import Gemma4UnifiedVideoProcessor
    import torchcodec
    processor = Gemma4UnifiedVideoProcessor()
    lines = [f"libavcodec {torchcodec.ffmpeg_major_version + 54}"]
    for name in sorted(os.listdir(OUT)):
        if name not in ("frames.txt", "refused"):
            lines += describe(processor, name)
    with open(os.path.join(OUT, "frames.txt"), "w", encoding="utf-8") as f:
        f.write("\n".join(lines) + "\n")
    print(len(lines), "lines")


if __name__ == "__main__":
    main()
