#!/usr/bin/env python3
"""Pictures and sound through the whole server: what the model is given is what transformers gives it, whatever is killed meanwhile; hostile files cost
one request each and nothing else.

SLUICE_HOSTILE_FILES or SLUICE_HOSTILE_SECONDS, and SLUICE_HOSTILE_SEED: how many hostile files, or for how long, and which; SLUICE_HOSTILE_OPTIONS: of their server.
`test_media.py hostile` runs that test alone.

The model is the demo's text with senses that were never trained (seeing.py): answers mean nothing, but they are the reference's answers.
"""
import asyncio
import base64
import json
import math
import os
import random
import signal
import struct
import sys
import tempfile
import time
import zlib

import seeing
from hostile_files import hostile
from server import BUILD, ROOT, SANITIZED, Server, made, main, scaled, skip, wait_until
from wsclient import gather_limited, http, run, sse
import workload

TIME_LIMIT_S = 600
GOLDEN = os.path.join(ROOT, "tests", "golden")
TOOL = {"type": "function", "name": "paint", "description": "Paints.", "parameters": {"type": "object", "properties": {"colour": {"type": "string"}}}}
model = made(seeing.make)


def serve(*options, **more):
    return Server("--kv-cache-dtype", "f32", "--vision-workers", "2", *options, model=model(), **more)


def golden(name):
    with open(os.path.join(GOLDEN, name), "rb") as f:
        return f.read()


def b64(data):
    return base64.b64encode(data).decode()


def chat_part(data, sound=False):
    if sound:
        return {"type": "input_audio", "input_audio": {"data": b64(data), "format": "wav"}}
    return {"type": "image_url", "image_url": {"url": "data:image/png;base64," + b64(data)}}


def input_part(data, sound=False):
    if sound:
        return chat_part(data, True)
    return {"type": "input_image", "image_url": "data:image/jpeg;base64," + b64(data), "detail": "auto"}


def video_part(frames, fps=1):
    return {"type": "video", "frames": ["data:image/png;base64," + b64(f) for f in frames], "fps": fps}


def video_file(data, kind="video_url"):
    url = "data:video/mp4;base64," + b64(data)
    return {"type": kind, "video_url": url if kind == "input_video" else {"url": url}}


def golden_part(name, make):
    """A file of tests/golden as a part; a list of them is a video of a frame every two seconds."""
    if isinstance(name, list):
        return video_part([golden(n) for n in name], 0.5)
    if name.startswith("video"):
        return video_file(golden(name), "input_video" if make is input_part else "video_url")
    if name.startswith("heldout"):  # of the demo model's questions
        return make(golden(os.path.join(ROOT, "model", "train", "heldout_media", os.path.basename(name))), name.endswith(".wav"))
    return make(golden(name), name.startswith("sound"))


def chat_body(parts, text="What is this?", **more):
    return {"messages": [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}], "temperature": 0, "max_tokens": 8, "return_token_ids": True, **more}


def input_body(parts, text="What is this?", **more):
    return {"input": [{"role": "user", "content": [*parts, {"type": "input_text", "text": text}]}], "temperature": 0, "max_output_tokens": 8, "return_token_ids": True, **more}


def post(server, path, body):
    async def go():
        status, _, answer = await http(server, "POST", path, body)
        return status, json.loads(answer)
    return asyncio.run(go())


def png(width, height, seed=1):
    """A large picture in few bytes: bands of colour, with noise in every 64th row."""
    r = random.Random(seed)
    rows = bytearray()
    for y in range(height):
        rows += b"\0" + (r.randbytes(3 * width) if y % 64 == 0 else bytes((y * 3 % 256, y * 5 % 256, y * 7 % 256)) * width)
    out = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(bytes(rows), 1)), (b"IEND", b"")):
        out += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return out


def wav(samples):
    """A sound of floats."""
    data = struct.pack(f"<{len(samples)}f", *samples)
    return struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, 3, 1, 16000, 64000, 4, 32, b"data", len(data)) + data


def takes_video_files(server):
    async def go():
        return json.loads((await http(server, "GET", "/v1/models"))[2])
    return "video" in asyncio.run(go())["data"][0]["input_modalities"]


def workers_of(server):
    """Pids of the processes that decode."""
    parent, found = server.stage("vision")["pid"], []
    for name in os.listdir("/proc"):
        try:
            with open(f"/proc/{name}/stat") as f:
                if name.isdigit() and int(f.read().rsplit(")", 1)[1].split()[1]) == parent:
                    found.append(int(name))
        except (OSError, IndexError):
            pass
    return found


# ---- the right answers


def known_cases(name):
    with open(os.path.join(GOLDEN, "media", name), encoding="utf-8") as f:
        return json.load(f)


def check_case(s, name, case, most):
    status, answer = post(s, "/v1/chat/completions", chat_body([golden_part(n, chat_part) for n in case["files"]], case["question"], logprobs=True, top_logprobs=10, max_tokens=most))
    assert status == 200, (name, answer)
    choice = answer["choices"][0]
    assert answer["prompt_token_ids"] == case["prompt"], f"{name}: the prompt differs"
    assert choice["token_ids"] == case["answer"], (name, choice["token_ids"], case["answer"])
    got = [x["logprob"] for x in choice["logprobs"]["content"][0]["top_logprobs"]]
    worst = max(abs(a - b) for a, b in zip(got, case["logprobs"]))
    print(f"     {name}: {len(case['prompt'])} tokens, log probabilities off by {worst:.2g}")
    # f32 sums in another order: 3e-6 to 9e-6 as a rule, once 3e-5
    assert len(got) == 10 and worst < 5e-5, (name, got, case["logprobs"])
    result = asyncio.run(run(s, input_body([golden_part(n, input_part) for n in case["files"]], case["question"], max_output_tokens=most)))
    assert result.response["prompt_token_ids"] == case["prompt"] and result.response["token_ids"] == case["answer"], name


def test_answers_equal_transformers():
    cases = known_cases("seeing.json")
    with serve() as s:
        if not takes_video_files(s):
            cases = {name: case for name, case in cases.items() if "file" not in name}
        for name, case in cases.items():
            check_case(s, name, case, 8)
        media = s.status()["media"]
        assert media["files"] == 2 * sum(len(n) if isinstance(n, list) else 1 for c in cases.values() for n in c["files"]) and media["cached"] >= media["files"] // 2, media
        wait_until("the pixels are given back", lambda: s.status()["media"]["held_bytes"] == 0, 10)


def test_demo_equals_transformers():
    """The model that was trained to see and hear, so that answers mean something: whole ones, about pictures and sounds that it was never shown."""
    with Server("--kv-cache-dtype", "f32") as s:
        for name, case in known_cases("demo.json").items():
            check_case(s, name, case, 24)


def test_chunks_and_neighbours_change_nothing():
    parts = [chat_part(golden("image/rgb.png")), chat_part(golden("sound/pcm_16_16000_1.wav"), True), chat_part(golden("image/turned_6.jpg"))]
    bodies = [chat_body(parts[:n], workload.long_text(random.Random(n), 90), max_tokens=24) for n in (1, 2, 3)]
    outcomes = []
    for options in (("--prefill-chunk", "16"), ("--prefill-chunk", "512", "--threads", "1"), ("--kv-cache-dtype", "f32", "--vision-workers", "1", "--media-cache-mib", "0")):
        async def go():
            return await gather_limited(8, [http(s, "POST", "/v1/chat/completions", b) for b in bodies * 2])
        with serve(*options) as s:
            answers = [json.loads(body)["choices"][0]["token_ids"] for _, _, body in asyncio.run(go())]
        assert answers[:3] == answers[3:], "the same request has two answers"
        outcomes.append(answers)
    assert outcomes[0] == outcomes[1] == outcomes[2], "chunks, threads or workers change the output"


def test_every_codec():
    with serve() as s:
        pictures = sorted(n for n in os.listdir(os.path.join(GOLDEN, "image")) if not n.endswith(".txt"))
        sounds = sorted(n for n in os.listdir(os.path.join(GOLDEN, "sound")) if n.rsplit(".", 1)[-1] in ("wav", "flac", "mp3", "ogg"))
        assert len(pictures) > 30 and len(sounds) > 15

        async def go():
            bodies = [input_body([input_part(golden(f"image/{n}"))]) for n in pictures] + [input_body([input_part(golden(f"sound/{n}"), True)]) for n in sounds]
            return await gather_limited(4, [run(s, b) for b in bodies])
        for name, result in zip(pictures + sounds, asyncio.run(go())):
            assert result.final["type"] in ("response.completed", "response.incomplete"), (name, result.final)
            assert result.response["usage"]["input_tokens"] > 12, name


def test_two_pictures_tools_and_streaming():
    one, two = golden("image/rgb.png"), golden("image/rgba.webp")

    async def stream(s, body):
        return [e async for e in sse(s, "/v1/chat/completions", {**body, "stream": True, "stream_options": {"include_usage": True}})]

    with serve() as s:
        body = chat_body([chat_part(one), {"type": "text", "text": "and"}, chat_part(two)], tools=[{"type": "function", "function": {k: v for k, v in TOOL.items() if k != "type"}}], max_tokens=16)
        whole = post(s, "/v1/chat/completions", body)[1]
        events = asyncio.run(stream(s, body))
        assert events[-1] == "[DONE]" and events[-2]["usage"]["total_tokens"] == whole["usage"]["total_tokens"]
        text = "".join(c["delta"].get("content") or "" for e in events[:-2] for c in e["choices"])
        assert text == (whole["choices"][0]["message"]["content"] or ""), (text, whole)
        swapped = post(s, "/v1/chat/completions", chat_body([chat_part(two), {"type": "text", "text": "and"}, chat_part(one)], tools=body["tools"], max_tokens=16))[1]
        assert swapped["usage"]["prompt_tokens"] == whole["usage"]["prompt_tokens"]
        low = post(s, "/v1/chat/completions", chat_body([{"type": "image_url", "image_url": {"url": "data:;base64," + b64(one), "detail": "low"}}]))[1]
        assert low["usage"]["prompt_tokens"] > 60  # this model's only budget is the low one
        status, several = post(s, "/v1/chat/completions", chat_body([chat_part(one)], n=3))
        assert status == 200 and len({c["message"]["content"] for c in several["choices"]}) == 1, several


def test_conversation_goes_on():
    first = input_body([input_part(golden("image/rgb.png"))], store=True)
    with serve() as s:
        before = asyncio.run(run(s, first))
        after = asyncio.run(run(s, {**input_body([input_part(golden("image/p.png"))], "And this?"), "previous_response_id": before.id}))
        whole = {**input_body([], ""), "input": [first["input"][0], {"role": "assistant", "content": before.text}, input_body([input_part(golden("image/p.png"))], "And this?")["input"][0]]}
        again = asyncio.run(run(s, whole))
        assert after.response["prompt_token_ids"] == again.response["prompt_token_ids"] and after.response["token_ids"] == again.response["token_ids"]


# ---- what is refused


def refusals():
    small = golden("image/rgb.png")

    def picture(url, **more):
        return chat_body([{"type": "image_url", "image_url": {"url": url, **more}}])
    bomb = small[:16] + struct.pack(">II", 60000, 60000) + small[24:29]
    bomb += struct.pack(">I", zlib.crc32(bomb[12:29])) + small[33:]
    return [
        ("fetch", picture("https://example.org/a.png"), 400, "unsupported_content"),
        ("no data URL", picture("a.png"), 400, "invalid_value"),
        ("base64", picture("data:image/png;base64,a?b"), 400, "invalid_base64"),
        ("empty", picture("data:image/png;base64,"), 400, "invalid_value"),
        ("detail", picture("data:;base64," + b64(small), detail="huge"), 400, "invalid_value"),
        ("GIF", chat_body([chat_part(b"GIF89a" + bytes(40))]), 400, "invalid_media"),
        ("cut", chat_body([chat_part(small[:200])]), 400, "invalid_media"),
        ("bomb", chat_body([chat_part(bomb)]), 413, "media_too_large"),
        ("sound as picture", chat_body([chat_part(golden("sound/pcm_16_16000_1.wav"))]), 400, "invalid_media"),
        ("picture as sound", chat_body([chat_part(small, True)]), 400, "invalid_media"),
        ("no frames", chat_body([{"type": "video", "frames": []}]), 400, "invalid_value"),
        ("a broken frame", chat_body([video_part([small, small[:100]])]), 400, "invalid_media"),
        ("loud", chat_body([chat_part(wav([0.0, 3e38, -3e38, 1e30]), True)]), 400, "invalid_media"),
        ("sound without data", chat_body([{"type": "input_audio", "input_audio": {"format": "wav"}}]), 400, "invalid_type"),
        ("too many", chat_body([chat_part(small)] * 65), 400, "too_many_files"),
        ("too large", chat_body([chat_part(bytes(21 << 20))]), 413, "file_too_large"),
        ("context", chat_body([chat_part(png(96, 96, i)) for i in range(15)]), 400, "context_length_exceeded"),
        ("tokens", chat_body([chat_part(png(96, 96, i)) for i in range(30)]), 413, "media_too_large"),
    ]


def test_refusals():
    with serve("--max-context", "1000", "--max-media-tokens", "1000") as s:
        for name, body, wanted, code in refusals():
            status, answer = post(s, "/v1/chat/completions", body)
            assert status == wanted and answer["error"]["code"] == code and answer["error"]["message"], (name, status, answer)
            print(f"     {name}: {answer['error']['message']}")
        failed = asyncio.run(run(s, input_body([input_part(b"nonsense")])))  # over WebSocket the response has begun by then
        assert failed.final["type"] == "response.failed" and failed.response["error"]["code"] == "invalid_media", failed.final
        assert s.status()["media"]["worker_deaths"] == 0, "a file that is merely wrong killed its decoder"
        assert all(x["restarts"] == 0 for x in s.status()["stages"])


def test_a_model_of_text_alone():
    with tempfile.TemporaryDirectory(prefix="sluice-blind-") as directory, Server(model=seeing.make_blind(directory)) as s:
        assert s.status()["media"] is None
        assert s.stage("vision")["state"] == "off" and s.stage("vision")["pid"] == 0
        status, answer = post(s, "/v1/chat/completions", chat_body([chat_part(golden("image/rgb.png"))]))
        assert status == 400 and answer["error"]["code"] == "unsupported_content" and "no pictures" in answer["error"]["message"], answer
        code, _, err = s.command("swap", "vision", "--default")
        assert code != 0 and "text alone" in err, err


# ---- deaths


def test_worker_killed():
    body = input_body([input_part(png(3000, 3000))])
    with serve("--media-cache-mib", "0") as s:
        wanted = asyncio.run(run(s, body)).outcome()
        for i in range(scaled(16, least=8)):
            async def go():
                answer = asyncio.ensure_future(run(s, body))
                for _ in range(2):  # a third death would be too many for one file
                    await asyncio.sleep(0.005 * (1 + i % 8))
                    for pid in workers_of(s):
                        try:
                            os.kill(pid, signal.SIGKILL)
                        except ProcessLookupError:
                            pass
                return await answer
            assert asyncio.run(go()).outcome() == wanted
        wait_until("workers stand ready", lambda: len(workers_of(s)) == 2, 10)
        deaths = s.status()["media"]["worker_deaths"]
        print(f"     {deaths} workers died at work")
        assert deaths > 0 and s.stage("vision")["restarts"] == 0


def test_stages_killed():
    files = [golden("image/rgb.png"), golden("image/turned_6.jpg"), png(1200, 900)]
    bodies = [input_body([input_part(f)], max_output_tokens=24, ignore_eos=True) for f in files] + [input_body([input_part(golden("sound/pcm_16_16000_1.wav"), True)], max_output_tokens=24, ignore_eos=True)]
    with serve("--media-cache-mib", "0", "--restart-budget", "100000") as s:
        wanted = [asyncio.run(run(s, b)).outcome() for b in bodies]
        order = ["vision", "tokenize", "vision", "prefill", "vision", "verify", "vision", "gateway", "vision", "detokenize"]
        for i in range(scaled(60, least=10)):
            async def go():
                answers = [asyncio.ensure_future(run(s, b)) for b in bodies]
                await asyncio.sleep(0.003 * (i % 20))
                await asyncio.to_thread(s.signal, order[i % len(order)], signal.SIGKILL)
                return [r.outcome() for r in await asyncio.gather(*answers)]
            got = asyncio.run(go())
            assert got == wanted, f"round {i}, {order[i % len(order)]} killed: an answer differs"
        assert s.stage("vision")["restarts"] >= 4
        s.settle()
        wait_until("the pixels are given back", lambda: s.status()["media"]["held_bytes"] == 0, 20)


def test_poisoned_vision():
    """A request that kills the stage itself twice is set aside, by name; the others do not notice."""
    exe = os.path.join(BUILD, "faulty", "vision")
    if not os.access(exe, os.X_OK):
        skip("build/faulty is not built (make faulty)")
    picture, good = golden("image/rgb.png"), [input_body([input_part(golden("image/rgb.jpg"))]), {"input": "Spell the word river.", "temperature": 0, "max_output_tokens": 12, "return_token_ids": True}]
    with serve("--restart-budget", "1000", "--media-cache-mib", "0", "--hang-timeout-ms", 10000 if SANITIZED else 1500) as s:
        s.faults_wanted = True
        wanted = [asyncio.run(run(s, b)).outcome() for b in good]
        assert s.command("swap", "vision", exe)[0] == 0

        async def poison(kind):
            bad = asyncio.ensure_future(run(s, input_body([input_part(picture)], f"FAULT:vision:{kind}")))
            others = await asyncio.gather(*(run(s, b) for b in good))
            return await bad, [r.outcome() for r in others]
        for kind in ("segv", "abort", "exit", "hang"):
            before = s.stage("vision")["restarts"]
            bad, outcomes = asyncio.run(poison(kind))
            assert bad.final["type"] == "response.failed" and "vision" in bad.response["error"]["message"], (kind, bad.final)
            assert outcomes == wanted, f"{kind}: a response beside the poisoned one changed"
            s.settle()
            assert s.stage("vision")["restarts"] == before + 2, (kind, s.restarts())
        spared, outcomes = asyncio.run(poison("segv:once"))
        assert spared.final["type"] in ("response.completed", "response.incomplete") and outcomes == wanted, spared.final


# ---- hostile files


def seeds():
    out = [(golden(f"image/{n}"), False) for n in sorted(os.listdir(os.path.join(GOLDEN, "image"))) if not n.endswith(".txt")]
    out += [(golden(f"sound/{n}"), True) for n in sorted(os.listdir(os.path.join(GOLDEN, "sound"))) if not n.endswith(".txt")]
    for name, sound in (("image.seeds", False), ("sound.seeds", True)):
        odd = os.path.join(ROOT, "tests", "fuzz", name)
        out += [(golden(os.path.join(odd, n)), sound) for n in sorted(os.listdir(odd))]
    return out + [(golden("video/animated.gif"), False)]


async def throw(s, count, at_once, seed, until):
    """Sends `count` hostile files, or as many as there is time for; how many were taken and refused, by status."""
    corpus, r, seen = seeds(), random.Random(seed), {}

    async def one(i, data, sound):
        status, _, body = await http(s, "POST", "/v1/chat/completions", chat_body([chat_part(data, sound)], max_tokens=1))
        seen[status] = seen.get(status, 0) + 1
        assert status in (200, 400, 413), (i, status, body[:300])

    async def some(numbers):
        for i in numbers:  # one iterator for all: files are made one after the other, whoever sends them
            if time.monotonic() > until:
                return
            await one(i, *hostile(r, corpus, i))
    numbers = iter(range(count))
    await asyncio.gather(*(some(numbers) for _ in range(at_once)))
    return seen


def test_hostile_files():
    seconds = int(os.environ.get("SLUICE_HOSTILE_SECONDS", "0"))
    count = 1 << 40 if seconds else int(os.environ.get("SLUICE_HOSTILE_FILES", "0")) or scaled(2000, least=200)
    seed = int(os.environ.get("SLUICE_HOSTILE_SEED", "1"))
    texts = workload.bodies(8, least=40, most=80)
    options = os.environ.get("SLUICE_HOSTILE_OPTIONS", "--max-sequences 16 --slots 16").split()  # few slots: all of them are soon in use
    with serve("--media-cache-mib", "0", "--prefix-cache-mib", "8", "--restart-budget", "100000", *options) as s:
        wanted = [asyncio.run(run(s, b)).outcome() for b in texts]

        async def go(files, which, until, at_once=6):
            attack = asyncio.ensure_future(throw(s, files, at_once, which, until))
            rounds, shared = 0, []
            while not attack.done() or rounds < 1:
                shared.append(s.memory_bytes()["memfd"] >> 20)
                outcomes = [r.outcome() for r in await asyncio.gather(*(run(s, b) for b in texts))]
                assert outcomes == wanted, "a text beside the attack differs"
                rounds += 1
            return await attack, rounds, shared[::max(1, len(shared) // 12)]
        asyncio.run(go(400, -seed - 1, math.inf, 12))  # allocators fill their pools, slots and pages of the KV cache are used for the first time
        wait_until("the pixels are given back", lambda: s.status()["media"]["held_bytes"] == 0, 20)
        before, descriptors = s.memory_bytes(), s.descriptors()
        began = time.monotonic()
        seen, rounds, shared = asyncio.run(go(count, seed, began + seconds if seconds else math.inf))
        media = s.status()["media"]
        print(f"     seed {seed}: {sum(seen.values())} files in {time.monotonic() - began:.0f} s: {seen}; {media['worker_deaths']} decoders died; {rounds * len(texts)} texts beside them, byte for byte")
        assert all(x["restarts"] == 0 for x in s.status()["stages"]), s.restarts()
        wait_until("the pixels are given back", lambda: s.status()["media"]["held_bytes"] == 0, 20)
        time.sleep(0.5)
        after = s.memory_bytes()
        grown = {k: {n: (after[k].get(n, 0) - v) >> 10 for n, v in before[k].items()} for k in ("stage", "segment")}
        print(f"     memory: {before['rss'] >> 20} -> {after['rss'] >> 20} MiB private, {before['memfd'] >> 20} -> {after['memfd'] >> 20} MiB shared (on the way {shared}); KiB by stage {grown['stage']}, by segment {grown['segment']}")
        wait_until(f"descriptors are {descriptors} again", lambda: s.descriptors() == descriptors, 10)  # a command's own socket may still be closing
        assert after["memfd"] - before["memfd"] < 8 << 20, "shared memory grew"
        if not SANITIZED:
            assert after["stage"]["vision"] - before["stage"]["vision"] < 4 << 20, grown


if __name__ == "__main__":
    if sys.argv[1:] == ["hostile"]:
        main(test_hostile_files)
    main(test_answers_equal_transformers, test_demo_equals_transformers, test_chunks_and_neighbours_change_nothing, test_every_codec, test_two_pictures_tools_and_streaming, test_conversation_goes_on, test_refusals,
         test_a_model_of_text_alone, test_worker_killed, test_stages_killed, test_poisoned_vision, test_hostile_files)
