#!/usr/bin/env python3
"""Makes tests/golden/image/: small picture files of every kind, and manifest.txt: what the reference's loader sees in each.

Needs Pillow and numpy. Lines: NAME WIDTH HEIGHT FNV1A of the upright RGB bytes. 16-bit grey is written down as value / 256,
which is what we decode on purpose (Pillow clips it at 255).
"""
import io
import os

import numpy as np
from PIL import Image, ImageOps

OUT = os.path.join(os.path.dirname(__file__), "..", "golden", "image")


def fnv(data):
    h = 0xCBF29CE484222325
    for b in data.tobytes():
        h = (h ^ b) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return h


def scene(width, height, channels, seed=0):
    y, x = np.mgrid[0:height, 0:width]
    a = np.stack([127 + 80 * np.sin(x / (3 + k) + k + seed) + 40 * np.cos(y / (4 + k)) for k in range(channels)], -1)
    return np.clip(a, 0, 255).astype(np.uint8)


def make(mode, width, height):
    channels = {"RGB": 3, "CMYK": 4, "RGBA": 4, "LA": 2, "P": 3}.get(mode, 1)
    a = scene(width, height, channels)
    if mode == "P":
        return Image.fromarray(a).quantize(13)
    if mode == "P-alpha":
        return Image.fromarray(scene(width, height, 4), "RGBA").quantize(13)
    if mode == "1":
        return Image.fromarray(a[..., 0]).convert("1")
    if mode == "I;16":
        return Image.fromarray(a[..., 0].astype(np.uint16) * 257)
    return Image.fromarray(a[..., 0] if channels == 1 else a, None if mode in ("L", "RGB") else mode)


def loaded(data, mode):
    picture = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if mode == "I;16":
        a = (np.array(picture) >> 8).astype(np.uint8)
        return np.stack([a, a, a], -1)
    return np.array(picture.convert("RGB"))


def main():
    os.makedirs(OUT, exist_ok=True)
    lines = []

    def keep(name, picture, fmt, mode, **options):
        buffer = io.BytesIO()
        picture.save(buffer, fmt, **options)
        data = buffer.getvalue()
        with open(os.path.join(OUT, name), "wb") as f:
            f.write(data)
        pixels = loaded(data, mode)
        lines.append(f"{name} {pixels.shape[1]} {pixels.shape[0]} {fnv(pixels):016x}")

    for mode in ("L", "RGB", "CMYK"):
        keep(f"{mode.lower()}.jpg", make(mode, 37, 23), "JPEG", mode, quality=80)
        keep(f"{mode.lower()}_progressive.jpg", make(mode, 37, 23), "JPEG", mode, quality=70, progressive=True)
    for name, subsampling in (("444", 0), ("422", 1), ("420", 2)):
        keep(f"rgb_{name}.jpg", make("RGB", 33, 31), "JPEG", "RGB", quality=90, subsampling=subsampling)
    for mode in ("L", "RGB", "RGBA", "LA", "P", "P-alpha", "1", "I;16"):
        name = mode.lower().replace(";", "").replace("-", "_")
        keep(f"{name}.png", make(mode, 29, 18), "PNG", mode)
    keep("one_pixel.png", make("RGB", 1, 1), "PNG", "RGB")
    keep("one_pixel.jpg", make("RGB", 1, 1), "JPEG", "RGB")
    keep("tall.png", make("L", 3, 400), "PNG", "L")
    for mode in ("RGB", "RGBA"):
        keep(f"{mode.lower()}.webp", make(mode, 40, 26), "WEBP", mode, quality=75)
        keep(f"{mode.lower()}_lossless.webp", make(mode, 21, 26), "WEBP", mode, lossless=True)
    frames = [Image.fromarray(scene(24, 20, 3, seed)) for seed in range(3)]
    keep("animated.webp", frames[0], "WEBP", "RGB", save_all=True, append_images=frames[1:], lossless=True)
    keep("animated.png", frames[0], "PNG", "RGB", save_all=True, append_images=frames[1:])
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x112] = orientation
        keep(f"turned_{orientation}.jpg", make("RGB", 26, 15), "JPEG", "RGB", quality=75, exif=exif)
    exif = Image.Exif()
    exif[0x112] = 6
    keep("turned_6.png", make("RGB", 26, 15), "PNG", "RGB", exif=exif)
    keep("turned_6.webp", make("RGB", 26, 15), "WEBP", "RGB", exif=exif, lossless=True)
    with open(os.path.join(OUT, "manifest.txt"), "w") as f:
        f.write("\n".join(lines) + "\n")
    print(f"{len(lines)} pictures")


if __name__ == "__main__":
    main()
