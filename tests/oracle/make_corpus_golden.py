#!/usr/bin/env python3
"""Makes tests/golden/corpus/: sounds (sounds.bin, sounds.txt, below) and more than 200 pictures of every codec, colour mode, size and orientation in pictures.bin, and in manifest.txt what the reference
makes of each: Pillow's loader, then transformers' image processor of Gemma 4 (unified).

Needs Pillow, numpy, soundfile, soxr, torch, torchvision and transformers >= 5.17. Lines of the manifest:
  NAME OFFSET BYTES WIDTH HEIGHT PIXELS BUDGET TOKENS COLUMNS PATCHES
PIXELS and PATCHES are the first 16 digits of SHA-256 over the upright RGB bytes and over pixel_values * 255 of the real soft tokens, TOKENS 0: the reference
refuses the picture. Lines of sounds.txt: NAME OFFSET BYTES FRAMES SAMPLES_OFFSET; there lie FRAMES * 640 samples as 16-bit integers (of 32767), as the reference's
loader (soundfile, then soxr) hears them. 16-bit grey is written down as value / 256, which is what we decode on purpose (Pillow clips it at 255)."""
import hashlib
import io
import os
import random
import struct
import zlib

import numpy as np
import torch
from PIL import Image, ImageOps
import soundfile
import soxr
from transformers.models.gemma4_unified.image_processing_gemma4_unified import Gemma4UnifiedImageProcessor, get_aspect_ratio_preserving_size

OUT = os.path.join(os.path.dirname(__file__), "..", "golden", "corpus")
BUDGETS = (70, 140, 280)
SIZES = [(1, 1), (1, 17), (17, 1), (2, 2), (7, 9), (8, 8), (16, 16), (17, 33), (47, 49), (96, 48), (255, 3), (3, 255), (1000, 10), (10, 1000), (10000, 10), (10, 10000)]
processor = Gemma4UnifiedImageProcessor()
lines, blob = [], bytearray()


def digest(data):
    return hashlib.sha256(data).hexdigest()[:16]


def scene(width, height, channels, seed=0):
    if max(width, height) > 2000:  # in few bytes
        return np.resize(scene(min(width, 97), min(height, 97), channels, 1).repeat(2, 0).repeat(2, 1), (height, width, channels))
    y, x = np.mgrid[0:height, 0:width]
    a = np.stack([127 + 80 * np.sin(x / (3 + k) + k + seed) + 40 * np.cos(y / (4 + k) + seed) for k in range(channels)], -1)
    if seed % 3 == 2:
        a += np.random.default_rng(seed).normal(0, 25, a.shape)
    return np.clip(a, 0, 255).astype(np.uint8)


def make(mode, width, height, seed=0):
    channels = {"RGB": 3, "CMYK": 4, "RGBA": 4, "LA": 2}.get(mode, 1)
    a = scene(width, height, channels, seed)
    return Image.fromarray(a[..., 0] if channels == 1 else a, None if mode in ("L", "RGB") else mode)


def keep(name, data, grey16=False, budget=0):
    picture = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if grey16:
        a = (np.array(picture).astype(np.uint32) >> 8).astype(np.uint8)
        rgb = np.stack([a, a, a], -1)
    else:
        rgb = np.array(picture.convert("RGB"))
    height, width = rgb.shape[:2]
    budget = budget or BUDGETS[len(lines) % len(BUDGETS)]
    try:
        _, target = get_aspect_ratio_preserving_size(height, width, 16, budget * 9, 3)
        out = processor(images=[Image.fromarray(rgb)], max_soft_tokens=budget, return_tensors="pt")
        tokens, columns = int(out["num_soft_tokens_per_image"][0]), target // 48
        assert out["image_position_ids"][0, :tokens].tolist() == [[i % columns, i // columns] for i in range(tokens)], "positions are not raster order"
        patches = digest((out["pixel_values"][0, :tokens] * 255).round().to(torch.uint8).numpy().tobytes())
    except ValueError:
        tokens, columns, patches = 0, 0, "-"
    lines.append(f"{name} {len(blob)} {len(data)} {width} {height} {digest(rgb.tobytes())} {budget} {tokens} {columns} {patches}")
    blob.extend(data)


def saved(picture, fmt, **options):
    b = io.BytesIO()
    picture.save(b, fmt, **options)
    return b.getvalue()


def exif_of(orientation, order="<"):
    """A TIFF directory with nothing but an orientation, in either byte order."""
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return b"Exif\0\0" + mark + struct.pack(order + "IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def jpegs():
    for w, h in SIZES:
        keep(f"rgb_{w}x{h}.jpg", saved(make("RGB", w, h, w + h), "JPEG", quality=80))
        keep(f"grey_progressive_{w}x{h}.jpg", saved(make("L", w, h, h), "JPEG", quality=60, progressive=True))
    for quality in (1, 10, 50, 100):
        for sub in (0, 1, 2):
            keep(f"rgb_q{quality}_s{sub}.jpg", saved(make("RGB", 61, 45, quality), "JPEG", quality=quality, subsampling=sub))
    for mode in ("L", "RGB", "CMYK"):
        for progressive in (False, True):
            for optimize in (False, True):
                keep(f"{mode.lower()}_{'progressive' if progressive else 'baseline'}{'_optimized' if optimize else ''}.jpg",
                     saved(make(mode, 50, 35, 5), "JPEG", quality=70, progressive=progressive, optimize=optimize))
    keep("restarts.jpg", saved(make("RGB", 90, 70, 2), "JPEG", quality=85, restart_marker_blocks=3))
    keep("restart_rows.jpg", saved(make("RGB", 90, 70, 2), "JPEG", quality=85, restart_marker_rows=1))
    keep("keep_rgb.jpg", saved(make("RGB", 40, 30, 2), "JPEG", quality=85, keep_rgb=True))
    keep("profile_and_comment.jpg", saved(make("RGB", 40, 30, 2), "JPEG", quality=85, icc_profile=bytes(3000), comment=b"a comment"))
    for orientation in range(0, 10):
        for order in "<>":
            keep(f"exif_{orientation}_{'le' if order == '<' else 'be'}.jpg", saved(make("RGB", 53, 29, 1), "JPEG", quality=90, exif=exif_of(orientation, order)))
    for orientation, size in ((1, (1900, 1650)), (6, (1650, 1900)), (3, (2600, 900))):
        coarse = Image.fromarray(scene(size[0] // 24, size[1] // 24, 3, 1)).resize(size, Image.BICUBIC)
        keep(f"large_{orientation}.jpg", saved(coarse, "JPEG", quality=40, exif=exif_of(orientation)), budget=70)


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_filtered(rows, pixel_bytes, pick):
    """Scanlines with the filter that `pick` says for each."""
    out, above = bytearray(), bytes(len(rows[0])) if rows else b""
    for y, row in enumerate(rows):
        kind, line = pick(y), bytearray(len(row))
        for i, v in enumerate(row):
            a, b, c = (row[i - pixel_bytes] if i >= pixel_bytes else 0), above[i], (above[i - pixel_bytes] if i >= pixel_bytes else 0)
            p = a + b - c
            nearest = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
            line[i] = (v - (0, a, b, (a + b) // 2, nearest)[kind]) & 255
        out += bytes((kind,)) + line
        above = row
    return bytes(out)


def png_raw(width, height, depth, colour, interlace, r, pick, palette=b"", transparent=None, pieces=1):
    """Any PNG there is: random bits, or smooth ones where a pixel has whole bytes."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]

    def rows_of(w, h):
        n = (w * channels * depth + 7) // 8
        if depth < 8:
            rows = [bytearray(r.randbytes(n)) for _ in range(h)]
            for row in rows:
                if w * depth % 8:
                    row[-1] &= 0xFF << (8 - w * depth % 8) & 0xFF
            return [bytes(x) for x in rows]
        a = scene(w, h, channels, 4)
        if colour == 3:
            a = a % (len(palette) // 3)
        return [(a[y].astype(">u2") * 257 + 13 if depth == 16 else a[y]).tobytes() for y in range(h)]
    pixel_bytes = max(1, channels * depth // 8)
    data = b""
    for x0, y0, dx, dy in ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)) if interlace else ((0, 0, 1, 1),):
        w, h = (width - x0 + dx - 1) // dx, (height - y0 + dy - 1) // dy
        if w > 0 and h > 0:
            data += png_filtered(rows_of(w, h), pixel_bytes, pick)
    packed = zlib.compress(data, 9)
    cut = max(1, -(-len(packed) // pieces))
    out = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)) + png_chunk(b"gAMA", struct.pack(">I", 45455))
    out += (png_chunk(b"PLTE", palette) if palette else b"") + (png_chunk(b"tRNS", transparent) if transparent is not None else b"")
    return out + b"".join(png_chunk(b"IDAT", packed[i:i + cut]) for i in range(0, len(packed), cut)) + png_chunk(b"tEXt", b"Comment\0behind") + png_chunk(b"IEND", b"")


def pngs():
    r = random.Random(7)
    for colour, depths in ((0, (1, 2, 4, 8, 16)), (2, (8, 16)), (3, (1, 2, 4, 8)), (4, (8, 16)), (6, (8, 16))):
        for depth in depths:
            palette = r.randbytes(3 * (1 << min(depth, 6))) if colour == 3 else b""
            for interlace in (0, 1):
                for name, pick in (("mixed", lambda y: y % 5),) if interlace else (("mixed", lambda y: y % 5), ("random", lambda y: r.randrange(5))):
                    data = png_raw(37, 26, depth, colour, interlace, r, pick, palette, pieces=1 + interlace * 3)
                    keep(f"png_c{colour}_d{depth}_i{interlace}_{name}.png", data, grey16=depth == 16 and colour == 0)
    for kind in range(5):
        for colour in (2, 6):
            keep(f"png_c{colour}_filter{kind}.png", png_raw(45, 20, 8, colour, 0, r, lambda y, k=kind: k))
    keep("palette_transparent.png", png_raw(20, 20, 8, 3, 0, r, lambda y: 0, r.randbytes(192), r.randbytes(64)))
    keep("grey_transparent.png", png_raw(20, 20, 8, 0, 0, r, lambda y: 1, transparent=b"\0\x40"))
    keep("rgb_transparent.png", png_raw(20, 20, 8, 2, 0, r, lambda y: 4, transparent=bytes(6)))
    keep("many_pieces.png", png_raw(30, 30, 8, 2, 0, r, lambda y: 4, pieces=40))
    for w, h in SIZES:
        keep(f"png_rgb_{w}x{h}.png", saved(make("RGB", w, h, 1), "PNG"))
        keep(f"png_la_{w}x{h}.png", saved(make("LA", w, h, 4), "PNG"))
    for orientation in (3, 6, 8):
        keep(f"png_exif_{orientation}.png", saved(make("RGB", 26, 15, 1), "PNG", exif=exif_of(orientation)[6:]))
    frames = [Image.fromarray(scene(24, 20, 3, seed)) for seed in range(3)]
    keep("animated.png", saved(frames[0], "PNG", save_all=True, append_images=frames[1:]))


def webps():
    for w, h in SIZES:
        keep(f"webp_{w}x{h}.webp", saved(make("RGB", w, h, w), "WEBP", quality=70))
    for mode in ("RGB", "RGBA"):
        for options in ({"quality": 5}, {"quality": 100}, {"lossless": True}, {"lossless": True, "quality": 100, "method": 6}, {"quality": 60, "method": 0}, {"quality": 60, "method": 6}):
            keep(f"webp_{mode.lower()}_{'_'.join(f'{k}{int(v)}' for k, v in options.items())}.webp", saved(make(mode, 59, 43, 2), "WEBP", **options))
    for orientation in range(1, 9):
        keep(f"webp_exif_{orientation}.webp", saved(make("RGB", 26, 15, 1), "WEBP", lossless=True, exif=exif_of(orientation)))
    for lossless in (True, False):
        frames = [Image.fromarray(scene(34, 28, 3, seed)) for seed in range(3)]
        keep(f"animated_{'lossless' if lossless else 'lossy'}.webp", saved(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=lossless))
    part = saved(make("RGB", 16, 12, 1), "WEBP", lossless=True)[12:]  # a first frame that covers a corner of its canvas
    u24 = lambda v: struct.pack("<I", v)[:3]
    chunk = lambda kind, data: kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) & 1)
    body = b"WEBP" + chunk(b"VP8X", b"\x02\0\0\0" + u24(39) + u24(29)) + chunk(b"ANIM", bytes(6)) + chunk(b"ANMF", u24(5) + u24(4) + u24(15) + u24(11) + u24(100) + b"\0" + part)
    keep("animated_corner.webp", b"RIFF" + struct.pack("<I", len(body)) + body)


SOUNDS = [("WAV", sub, rate, channels) for sub in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW", "IMA_ADPCM", "MS_ADPCM") for rate, channels in ((16000, 1), (44100, 2))]
SOUNDS += [("WAV", "PCM_16", rate, channels) for rate in (8000, 11025, 22050, 32000, 48000, 96000, 192000) for channels in (1, 3)] + [("WAVEX", "PCM_24", 48000, 6), ("WAV", "FLOAT", 48000, 8)]
SOUNDS += [("FLAC", sub, rate, channels) for sub in ("PCM_S8", "PCM_16", "PCM_24") for rate, channels in ((16000, 1), (44100, 2), (48000, 6))]
SOUNDS += [("OGG", "VORBIS", rate, channels) for rate in (8000, 16000, 44100, 48000) for channels in (1, 2)]
SOUNDS += [("OGG", "OPUS", rate, channels) for rate in (8000, 12000, 16000, 24000, 48000) for channels in (1, 2)]
SOUNDS += [("MP3", "MPEG_LAYER_III", rate, channels) for rate in (8000, 16000, 22050, 32000, 44100, 48000) for channels in (1, 2)]


def sounds():
    names, data = [], bytearray()
    for fmt, sub, rate, channels in SOUNDS:
        t = np.arange(int(rate * 0.035)) / rate
        tone = np.stack([0.5 * np.sin(2 * np.pi * (300 + 170 * k) * t) + 0.2 * np.sin(2 * np.pi * 1900 * t * t) for k in range(channels)], -1).astype(np.float32)
        b = io.BytesIO()
        soundfile.write(b, tone, rate, format=fmt, subtype=sub)
        x, rate = soundfile.read(io.BytesIO(b.getvalue()), dtype="float32", always_2d=True)
        y = np.mean(x.T, axis=0) if x.shape[1] > 1 else x[:, 0]
        y = soxr.resample(y, rate, 16000, quality="soxr_hq") if rate != 16000 else y
        y = np.pad(y, (0, -len(y) % 640))
        heard = np.round(np.clip(y, -1, 1) * 32767).astype("<i2").tobytes()
        names.append(f"{fmt.lower()}_{sub.lower()}_{rate}_{channels} {len(data)} {len(b.getvalue())} {len(y) // 640} {len(data) + len(b.getvalue())}")
        data += b.getvalue() + heard
    with open(os.path.join(OUT, "sounds.bin"), "wb") as f:
        f.write(data)
    with open(os.path.join(OUT, "sounds.txt"), "w") as f:
        f.write("\n".join(names) + "\n")
    print(f"{len(names)} sounds, {len(data)} bytes")


def main():
    os.makedirs(OUT, exist_ok=True)
    sounds()
    jpegs()
    pngs()
    webps()
    with open(os.path.join(OUT, "pictures.bin"), "wb") as f:
        f.write(blob)
    with open(os.path.join(OUT, "manifest.txt"), "w") as f:
        f.write("\n".join(lines) + "\n")
    print(f"{len(lines)} pictures, {len(blob)} bytes")


if __name__ == "__main__":
    main()
