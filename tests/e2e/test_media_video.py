#!/usr/bin/env python3
"""Video files through the whole server: a file is its frames; every codec; what is refused; workers that die; hostile files. That the frames are the reference's and
answers about them transformers' is tests/unit/video_test.c's and test_media.py's.

SLUICE_HOSTILE_FILES or SLUICE_HOSTILE_SECONDS, and SLUICE_HOSTILE_SEED: how many hostile files, or for how long, and which. `test_media_video.py hostile` runs that test alone."""
import asyncio
import json
import math
import os
import random
import signal
import struct
import sys
import tempfile
import time

from hostile_videos import hostile
from server import BUILD, ROOT, SLUICE, Server, main, scaled, skip, wait_until
from test_media import b64, chat_body, chat_part, golden, input_body, post, serve, takes_video_files, video_file, video_part, workers_of
from wsclient import gather_limited, http, run
import workload

TIME_LIMIT_S = 600
VIDEOS = sorted(n for n in os.listdir(os.path.join(ROOT, "tests", "golden", "video")) if n not in ("frames.txt", "refused"))
CODECS = ["h264.mp4", "h264_709.mov", "hevc_10.mkv", "vp8.webm", "vp9_alpha.webm", "av1.webm", "mpeg4.mp4", "animated.gif", "sound.mp4"]
SCENES = ["p016.png", "p019.png", "p043.png", "p064.png", "p076.png", "p088.png"]  # of scenes.mp4, one a second


def video(name):
    return golden(f"video/{name}")


def scene(name):
    with open(os.path.join(ROOT, "model", "train", "heldout_media", name), "rb") as f:
        return f.read()


def ask(data, **more):
    return input_body([video_file(data, "input_video")], **more)


def test_a_file_is_its_frames():
    """The demo model, and a film of pictures that it was never shown: whether they come as a list or as a file makes no difference to a token."""
    question = "What does the picture show?"
    with Server() as s:
        listed = post(s, "/v1/chat/completions", chat_body([video_part([scene(n) for n in SCENES])], question, max_tokens=40))[1]
        for part in (video_file(video("scenes.mp4")), {"type": "video", "video_url": video_file(video("scenes.mp4"))["video_url"]}):
            filmed = post(s, "/v1/chat/completions", chat_body([part], question, max_tokens=40))[1]
            assert filmed["prompt_token_ids"] == listed["prompt_token_ids"] and len(listed["prompt_token_ids"]) > 64 * len(SCENES)
            assert filmed["choices"][0]["token_ids"] == listed["choices"][0]["token_ids"] and filmed["choices"][0]["message"] == listed["choices"][0]["message"]
        spoken = asyncio.run(run(s, input_body([video_file(video("scenes.mp4"), "input_video")], question, max_output_tokens=40)))
        assert spoken.response["token_ids"] == listed["choices"][0]["token_ids"], spoken.final
        print(f"     {listed['usage']['prompt_tokens']} tokens: {listed['choices'][0]['message']['content']!r}")
        single = post(s, "/v1/chat/completions", chat_body([chat_part(scene(SCENES[0]))], question))[1]
        assert single["choices"][0]["message"]["content"], single


def test_every_codec():
    with serve() as s:
        async def go():
            return await gather_limited(4, [run(s, ask(video(n))) for n in CODECS])
        for name, result in zip(CODECS, asyncio.run(go())):
            assert result.final["type"] in ("response.completed", "response.incomplete"), (name, result.final)
        media = s.status()["media"]
        assert media["worker_deaths"] == 0 and media["files"] == len(CODECS), media
        again = asyncio.run(run(s, ask(video(CODECS[-1]))))
        assert again.outcome() == result.outcome() and s.status()["media"]["cached"] == 1
        wait_until("the pixels are given back", lambda: s.status()["media"]["held_bytes"] == 0, 10)


def test_videos_of_a_conversation():
    with serve() as s:
        one, two = video_file(video("one.webm"), "input_video"), video_file(video("short.mp4"), "input_video")
        before = asyncio.run(run(s, input_body([one], store=True)))
        after = asyncio.run(run(s, {**input_body([two], "And this?"), "previous_response_id": before.id}))
        whole = {**input_body([], ""), "input": [input_body([one])["input"][0], {"role": "assistant", "content": before.text}, input_body([two], "And this?")["input"][0]]}
        again = asyncio.run(run(s, whole))
        assert after.response["prompt_token_ids"] == again.response["prompt_token_ids"] and after.response["token_ids"] == again.response["token_ids"]
        mixed = chat_body([video_file(video("short.mp4")), chat_part(golden("image/rgb.png")), video_part([golden("image/rgb.png")] * 2), video_file(video("one.webm"))])
        status, answer = post(s, "/v1/chat/completions", mixed)
        assert status == 200 and answer["usage"]["prompt_tokens"] > 60 * (7 + 1 + 2 + 1), answer


def wide(data, side):
    """The same file, claiming to be so many pixels wide."""
    out = bytearray(data)
    struct.pack_into(">H", out, out.find(b"avc1", out.find(b"stsd")) + 28, side)
    return bytes(out)


def refusals():
    good, small = video("h264.mp4"), golden("image/rgb.png")
    return [
        ("network", chat_body([{"type": "video_url", "video_url": {"url": "https://example.org/a.mp4"}}]), 400, "invalid_value"),
        ("file id", chat_body([{"type": "input_video", "file_id": "f"}]), 400, "unsupported_content"),
        ("nothing", chat_body([{"type": "video_url"}]), 400, "invalid_type"),
        ("fps of a file", chat_body([{**video_file(good), "fps": 2}]), 400, "invalid_value"),
        ("file and frames", chat_body([{**video_file(good), "frames": [b64(small)]}]), 400, "invalid_value"),
        ("base64", chat_body([{"type": "video_url", "video_url": "data:video/mp4;base64,a?b"}]), 400, "invalid_base64"),
        ("picture as video", chat_body([video_file(small)]), 400, "invalid_media"),
        ("video as picture", chat_body([chat_part(good)]), 400, "invalid_media"),
        ("sound alone", chat_body([video_file(video("refused/voice.m4a"))]), 400, "invalid_media"),
        ("codec", chat_body([video_file(video("refused/mjpeg.mov"))]), 400, "invalid_media"),
        ("cut", chat_body([video_file(good[:2000])]), 400, "invalid_media"),
        ("wide", chat_body([video_file(wide(good, 5000))]), 413, "media_too_large"),
        ("three of 32 frames", chat_body([video_file(good), video_file(video("vp9.webm")), video_file(video("hevc.mp4"))]), 413, "media_too_large"),
    ]


def test_refusals():
    with serve("--max-context", "16384") as s:
        for name, body, wanted, code in refusals():
            status, answer = post(s, "/v1/chat/completions", body)
            assert status == wanted and answer["error"]["code"] == code and answer["error"]["message"], (name, status, answer)
            print(f"     {name}: {answer['error']['message']}")
        failed = asyncio.run(run(s, ask(b"nonsense")))
        assert failed.final["type"] == "response.failed" and failed.response["error"]["code"] == "invalid_media", failed.final
        assert s.status()["media"]["worker_deaths"] == 0, "a file that is merely wrong killed its decoder"
        assert all(x["restarts"] == 0 for x in s.status()["stages"])


def test_without_the_library():
    """As a build without libav is: files are refused with advice, frames and pictures are as ever. And with a library that is none."""
    with serve(environment={"SLUICE_VIDEO_LIBRARY": "/nonexistent/libsluice_video.so"}) as s:
        assert not takes_video_files(s)
        status, answer = post(s, "/v1/chat/completions", chat_body([video_file(video("short.mp4"))]))
        assert status == 400 and answer["error"]["code"] == "unsupported_content" and "'frames'" in answer["error"]["message"], answer
        assert post(s, "/v1/chat/completions", chat_body([video_part([golden("image/rgb.png")])]))[0] == 200
    whole = os.path.join(BUILD, "libsluice_video.so")
    with tempfile.TemporaryDirectory() as where:
        bare = os.path.join(where, "bare.so")  # on a machine without libav
        with open(whole, "rb") as f, open(bare, "wb") as out:
            out.write(f.read().replace(b"libavformat.so.", b"libnowhere_.so."))
        for library, words in ((bare, "libnowhere_.so."), (os.path.join(BUILD, "sluice"), "cannot be loaded")):
            with serve(environment={"SLUICE_VIDEO_LIBRARY": library}) as s:
                assert not takes_video_files(s)
                status, answer = post(s, "/v1/chat/completions", chat_body([video_file(video("short.mp4"))]))
                assert status == 400 and answer["error"]["code"] == "unsupported_content", answer
                assert len([x for x in s.log().splitlines() if "video files are refused" in x and words in x]) == 1, s.log()
        link = os.path.join(where, "link.so")  # gone between the start and the first video
        os.symlink(os.path.abspath(whole), link)
        with serve(environment={"SLUICE_VIDEO_LIBRARY": link}) as s:
            assert takes_video_files(s)
            os.remove(link)
            os.symlink(SLUICE, link)
            status, answer = post(s, "/v1/chat/completions", chat_body([video_file(video("short.mp4"))]))
            assert status == 500 and "cannot be loaded" in answer["error"]["message"] and where not in answer["error"]["message"], answer
            assert "no-video-library" in s.log()
            assert post(s, "/v1/chat/completions", chat_body([chat_part(golden("image/rgb.png"))]))[0] == 200


def test_workers_come_with_the_first_video_and_die_alone():
    body, beside = ask(video("hevc.mp4"), max_output_tokens=2), input_body([{"type": "input_image", "image_url": "data:;base64," + b64(golden("image/rgb.png"))}])
    with serve("--media-cache-mib", "0") as s:
        wait_until("workers stand ready", lambda: len(workers_of(s)) == 2, 10)
        quiet = asyncio.run(run(s, beside)).outcome()
        assert len(workers_of(s)) == 2
        wanted = asyncio.run(run(s, body)).outcome()
        wait_until("a worker for videos stands ready, too", lambda: len(workers_of(s)) == 3, 10)
        for i in range(scaled(12, least=4)):
            async def go():
                answers = [asyncio.ensure_future(run(s, b)) for b in (body, beside)]
                for _ in range(2):  # a third death would be too many for one file
                    await asyncio.sleep(0.01 + 0.01 * (i % 6))
                    for pid in workers_of(s):
                        try:
                            os.kill(pid, signal.SIGKILL)
                        except ProcessLookupError:
                            pass
                return [r.outcome() for r in await asyncio.gather(*answers)]
            assert asyncio.run(go()) == [wanted, quiet], i
        print(f"     {s.status()['media']['worker_deaths']} workers died at work")
        assert s.status()["media"]["worker_deaths"] > 0 and s.stage("vision")["restarts"] == 0


def test_stage_killed():
    body = ask(video("av1.webm"), max_output_tokens=4)
    with serve("--media-cache-mib", "0", "--restart-budget", "100000") as s:
        wanted = asyncio.run(run(s, body)).outcome()
        for i in range(scaled(10, least=3)):
            async def go():
                answer = asyncio.ensure_future(run(s, body))
                await asyncio.sleep(0.012 * i)
                await asyncio.to_thread(s.signal, ("vision", "tokenize")[i % 4 == 3], signal.SIGKILL)
                return (await answer).outcome()
            assert asyncio.run(go()) == wanted, i
        s.settle()
        wait_until("the pixels are given back", lambda: s.status()["media"]["held_bytes"] == 0, 20)


async def throw(s, count, at_once, r, until):
    corpus, seen = [video(n) for n in VIDEOS if n != "scenes.mp4"], {}

    async def some(numbers):
        for i in numbers:
            if time.monotonic() > until:
                return
            data = hostile(r, corpus)
            status, _, body = await http(s, "POST", "/v1/chat/completions", chat_body([video_file(data)], max_tokens=1))
            seen[status] = seen.get(status, 0) + 1
            assert status in (200, 400, 413), (i, status, body[:300])
    numbers = iter(range(count))
    await asyncio.gather(*(some(numbers) for _ in range(at_once)))
    return seen


def test_hostile_videos():
    seconds = int(os.environ.get("SLUICE_HOSTILE_SECONDS", "0"))
    count = 1 << 40 if seconds else int(os.environ.get("SLUICE_HOSTILE_FILES", "0")) or scaled(300, least=40)
    seed = int(os.environ.get("SLUICE_HOSTILE_SEED", "1"))
    texts = workload.bodies(4, least=40, most=80)
    with serve("--media-cache-mib", "0", "--prefix-cache-mib", "8", "--restart-budget", "100000", "--max-sequences", "16", "--slots", "16", "--max-media-tokens", "600") as s:  # most good ones have too many tokens: the attack is on decoding
        wanted = [asyncio.run(run(s, b)).outcome() for b in texts]

        async def go(files, which, until):
            attack = asyncio.ensure_future(throw(s, files, 6, random.Random(which), until))
            rounds = 0
            while not attack.done() or rounds < 1:
                assert [r.outcome() for r in await asyncio.gather(*(run(s, b) for b in texts))] == wanted, "a text beside the attack differs"
                rounds += 1
            return await attack, rounds
        asyncio.run(go(40, -seed, math.inf))
        wait_until("the pixels are given back", lambda: s.status()["media"]["held_bytes"] == 0, 20)
        time.sleep(0.5)  # the last worker is being replaced: its socket is no leak that comes later
        before, descriptors = s.memory_bytes(), s.descriptors()
        began = time.monotonic()
        seen, rounds = asyncio.run(go(count, seed, began + seconds if seconds else math.inf))
        print(f"     seed {seed}: {sum(seen.values())} files in {time.monotonic() - began:.0f} s: {seen}; {s.status()['media']['worker_deaths']} decoders died; {rounds * len(texts)} texts beside them, byte for byte")
        assert all(x["restarts"] == 0 for x in s.status()["stages"]), s.restarts()
        wait_until("the pixels are given back", lambda: s.status()["media"]["held_bytes"] == 0, 20)
        time.sleep(0.5)
        wait_until(f"descriptors are {descriptors} again", lambda: s.descriptors() == descriptors, 10)  # a command's own socket may still be closing
        after = s.memory_bytes()
        grown = {n: v - before["segment"].get(n, 0) for n, v in after["segment"].items() if n != "sluice-kv"}  # pages of the KV cache are used for the first time all the while
        warm = grown.pop("sluice-vision")  # free areas keep up to 8 MiB of pages (stages/vision/areas.c), and forty files do not use them all
        assert warm < 9 << 20 and sum(grown.values()) < 4 << 20 and after["stage"]["vision"] - before["stage"]["vision"] < 4 << 20, (warm, grown, before, after)


if __name__ == "__main__":
    with Server() as probe:
        files = takes_video_files(probe)
    if not files:
        skip("this build decodes no video files (no libav)")
    if sys.argv[1:] == ["hostile"]:
        main(test_hostile_videos)
    main(test_a_file_is_its_frames, test_every_codec, test_videos_of_a_conversation, test_refusals, test_without_the_library, test_workers_come_with_the_first_video_and_die_alone, test_stage_killed,
         test_hostile_videos)
