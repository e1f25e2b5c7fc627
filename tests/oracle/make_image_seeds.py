#!/usr/bin/env python3
"""Makes tests/fuzz/image.seeds/: pictures a few times larger than what the tests' model sees, for the hostile files to be made from (tests/e2e/test_media.py). The small ones
of tests/golden/image never reach scaled decoding, nor a picture that is made smaller. Needs Pillow and numpy."""
import os

import numpy as np
from PIL import Image, ImageDraw

OUT = os.path.join(os.path.dirname(__file__), "..", "fuzz", "image.seeds")
WIDTH, HEIGHT = 1200, 900


def scene():
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    picture = Image.fromarray(np.stack([x * 255 // WIDTH, y * 255 // HEIGHT, (x + y) * 255 // (WIDTH + HEIGHT)], -1).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    for i in range(12):
        pen.ellipse((i * 90, i * 65, i * 90 + 130, i * 65 + 100), fill=(i * 20, 255 - i * 20, i * 70 % 256))
    return picture


def main():
    os.makedirs(OUT, exist_ok=True)
    picture = scene()
    picture.save(os.path.join(OUT, "large_420.jpg"), quality=20, subsampling=2)
    picture.save(os.path.join(OUT, "large_422.jpg"), quality=12, subsampling=1, optimize=True)
    picture.save(os.path.join(OUT, "large_restarts.jpg"), quality=8, subsampling=0, restart_marker_rows=4)
    picture.save(os.path.join(OUT, "large_progressive.jpg"), quality=10, progressive=True)
    picture.convert("L").save(os.path.join(OUT, "large_l.jpg"), quality=15)
    picture.save(os.path.join(OUT, "large.webp"), quality=5, method=6)
    picture.save(os.path.join(OUT, "large_simple.webp"), quality=1, method=0)


if __name__ == "__main__":
    main()
