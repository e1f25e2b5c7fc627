"""Writes the held-out questions on pictures and sounds as files: heldout_media/ and heldout_media.json.

    python media_files.py

Needs Pillow and soundfile. Pictures in PNG, JPEG and WebP at one to four times the size of the trainer's canvas, sounds in WAV, FLAC, Ogg Vorbis and MP3 at
several rates; none of what is to be seen or heard occurs in training. Follows from a seed (the encoders may change a byte).
Fails   if a family does not fill up.
"""
import io
import json
import pathlib
import random

import soundfile
from PIL import Image

import generate
import scenes
import sounds

HERE = pathlib.Path(__file__).resolve().parent
FOLDER = HERE / "heldout_media"
SEED = 20261121
DRAWS_MOST = 400_000
PICTURES = {"colour": 14, "shape": 18, "place": 16, "count": 18, "is there": 10, "side": 6, "word": 12, "all of it": 6}
SOUNDS = {"beeps": 16, "high or low": 14, "short or long": 10, "up or down": 10}
SOUND_KINDS = (("wav", "WAV", "PCM_16", 16000), ("flac", "FLAC", "PCM_16", 16000), ("ogg", "OGG", "VORBIS", 22050), ("mp3", "MP3", "MPEG_LAYER_III", 24000),
               ("flac", "FLAC", "PCM_16", 22050))
WAV_SECONDS_MOST = 0.8


def chosen(r, quotas, picture_share):
    """One held-out conversation of one question for each place in the quotas, families in turn."""
    left, out, seen = dict(quotas), [], set()
    for _ in range(DRAWS_MOST):
        shown = generate.draw_shown(r, picture_share, count=1)
        family = shown.questions[0].family
        if left.get(family) and shown.key not in seen and generate.shown_is_held_out(shown):
            seen.add(shown.key)
            left[family] -= 1
            out.append(shown)
            if not any(left.values()):
                return sorted(out, key=lambda s: (s.questions[0].family, s.key))
    raise SystemExit(f"too few held-out questions: {left}")


def picture_file(r, scene, number):
    """(name's end, bytes)"""
    image = Image.fromarray(scenes.draw(scene, r.choice((1, 2, 2, 3, 4))))
    out = io.BytesIO()
    kind = number % 3
    if kind == 0:
        image.save(out, "PNG", optimize=True)
    elif kind == 1:
        image.save(out, "JPEG", quality=r.choice((80, 90, 95)), subsampling=r.choice((0, 2)))
    else:
        image.save(out, "WEBP", quality=r.choice((80, 90)), lossless=r.random() < 0.3)
    return ("png", "jpg", "webp")[kind], out.getvalue()


def sound_file(sound, number):
    name, form, sub, rate = SOUND_KINDS[number % len(SOUND_KINDS)]
    signal = sounds.samples(sound, rate)
    if form == "WAV" and len(signal) > WAV_SECONDS_MOST * rate:       # long ones would fill the repository
        sub = "PCM_U8"
    out = io.BytesIO()
    soundfile.write(out, signal, rate, format=form, subtype=sub)
    return name, out.getvalue()


def main():
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.iterdir():
        old.unlink()
    r, items, total = random.Random(SEED), [], 0
    for letter, found in (("p", chosen(r, PICTURES, 1.0)), ("s", chosen(r, SOUNDS, 0.0))):
        for i, shown in enumerate(found):
            end, data = picture_file(r, shown.medium, i) if letter == "p" else sound_file(shown.medium, i)
            name = f"{letter}{i + 1:03d}.{end}"
            (FOLDER / name).write_bytes(data)
            total += len(data)
            q = shown.questions[0]
            items.append({"id": name.split(".")[0], "family": q.family, "file": name, "messages": shown.messages(), "check": q.check, "answer": q.answer})
    (HERE / "heldout_media.json").write_text(json.dumps(items, indent=1, ensure_ascii=False) + "\n")
    print(len(items), "questions,", total, "bytes")


if __name__ == "__main__":
    main()
