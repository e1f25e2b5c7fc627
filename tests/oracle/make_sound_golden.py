#!/usr/bin/env python3
"""Makes tests/golden/sound/: short sound files of every kind, and manifest.txt: the samples that the reference's loader hears.

Needs numpy, soundfile and soxr (what librosa.load uses). Lines: NAME FRAMES S0 .. S15, where FRAMES counts soft tokens of 640 samples
at 16 kHz and Si is sample i * (640 * FRAMES) / 16.
"""
import io
import os

import numpy as np
import soundfile
import soxr

OUT = os.path.join(os.path.dirname(__file__), "..", "golden", "sound")
KINDS = [("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "PCM_32"), ("WAV", "PCM_U8"), ("WAV", "FLOAT"), ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"),
         ("MP3", "MPEG_LAYER_III")]


def tone(rate, channels, seconds):
    t = np.arange(int(rate * seconds)) / rate
    return np.stack([0.5 * np.sin(2 * np.pi * (300 + 170 * k) * t) + 0.2 * np.sin(2 * np.pi * 1900 * t * t) for k in range(channels)], -1).astype(np.float32)


def heard(data):
    x, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    y = np.mean(x.T, axis=0) if x.shape[1] > 1 else x[:, 0]
    if rate != 16000:
        y = soxr.resample(y, rate, 16000, quality="soxr_hq")
    return np.pad(y, (0, -len(y) % 640))


def main():
    os.makedirs(OUT, exist_ok=True)
    lines = []
    for fmt, sub in KINDS:
        for rate, channels in ((16000, 1), (24000 if sub == "OPUS" else 22050, 2)):
            buffer = io.BytesIO()
            soundfile.write(buffer, tone(rate, channels, 0.09), rate, format=fmt, subtype=sub)
            name = f"{sub.lower()}_{rate}_{channels}.{fmt.lower()}"
            with open(os.path.join(OUT, name), "wb") as f:
                f.write(buffer.getvalue())
            y = heard(buffer.getvalue())
            lines.append(" ".join([name, str(len(y) // 640)] + [f"{y[i * len(y) // 16]:.7g}" for i in range(16)]))
    with open(os.path.join(OUT, "manifest.txt"), "w") as f:
        f.write("\n".join(lines) + "\n")
    print(f"{len(lines)} sounds")


if __name__ == "__main__":
    main()
