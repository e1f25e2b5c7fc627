#!/usr/bin/env python3
"""soak.py SECONDS [SEED] [-- OPTIONS OF THE SERVER] - kills, stops and swaps of any stage at any moment, for as long as one likes; no byte may differ.

Not a part of `make test` (test_kills.py, test_draft.py and test_swap.py are). Clients ask over WebSockets, text, pictures and sound, prompts
of some hundred tokens that begin alike (the prefix cache), and come back when a connection breaks; meanwhile one stage or several at once
are killed (SIGKILL) or stopped (SIGSTOP), drafters and stages are exchanged. SOAK_STAGES=prefill,verify harms these alone. Each response is compared with that of the undisturbed server; afterwards descriptors and private memory must be what they were.
Prints a line a minute, and what was done. Exit code 1 with the difference, and the server's log kept, when there is one."""
import asyncio
import base64
import io
import math
import os
import random
import shutil
import signal
import struct
import sys
import time
import wave
import zlib

from server import ROLES, ROOT, Server
from workload import bodies, long_text, said
from wsclient import gather_limited, run

STREAMS = 8
HANG_MS = 4000
DRAFTERS = ("ngram", "none", "mtp", "dspark", os.path.join(ROOT, "examples", "draft_lookup.py"))
HARMED = tuple(os.environ.get("SOAK_STAGES", ",".join((*ROLES, "vision"))).split(","))
SWAPPED = ("gateway", "vision", "tokenize", "prefill", "verify", "detokenize", "draft")
RSS_SLACK = 8 << 20  # a stage that has just been replaced has touched less, one that worked a little more


def picture(seed):
    r = random.Random(seed)
    width, height = r.randint(20, 300), r.randint(20, 300)
    rows = b"".join(b"\0" + r.randbytes(3 * width) for _ in range(height))
    chunks = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)


def sound(seed):
    out = io.BytesIO()
    with wave.open(out, "wb") as w:
        w.setnchannels(1), w.setsampwidth(2), w.setframerate(16000)
        w.writeframes(b"".join(struct.pack("<h", int(9000 * math.sin(i * (0.05 + seed * 0.01)))) for i in range(16000)))
    return out.getvalue()


def with_media(i):
    if i % 3 == 2:
        part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(sound(i)).decode(), "format": "wav"}}
    else:
        part = {"type": "input_image", "image_url": "data:image/png;base64," + base64.b64encode(picture(i)).decode()}
    return {"input": [{"role": "user", "content": [part, {"type": "input_text", "text": "What is it?"}]}], "max_output_tokens": 60 + 7 * i,
            "ignore_eos": True, "return_token_ids": True, "temperature": i % 2, "seed": i}


def alike(count, seed):
    """Prompts of 150 to 900 tokens: a few beginnings, left at some place, then words of their own; answers short and longer than the window's slack."""
    beginnings = [long_text(random.Random(f"beginning {seed}/{i}"), 450) for i in range(3)]
    out = []
    for i in range(count):
        r = random.Random(f"alike {seed}/{i}")
        words = beginnings[i % 3].split()[:r.choice((60, 120, 200, 300, 450))]
        out.append({"input": " ".join(words) + " " + long_text(r, r.choice((0, 5, 40, 150))) + " " + said(r), "max_output_tokens": r.choice((4, 30, 300)), "ignore_eos": True,
                    "return_token_ids": True, "temperature": i % 2, "seed": i})
    return out


class Soak:
    def __init__(self, server, seconds, seed):
        self.server, self.until, self.rng = server, time.monotonic() + seconds, random.Random(seed)
        self.bodies = bodies(40, least=30, most=250, seed=seed) + [with_media(i) for i in range(12)] + alike(48, seed)
        self.done, self.hits, self.failed = 0, {}, False

    def running(self):
        return time.monotonic() < self.until and not self.failed

    def note(self, what):
        self.hits[what] = self.hits.get(what, 0) + 1

    async def all(self):
        return [r.outcome() for r in await gather_limited(STREAMS, [run(self.server, b) for b in self.bodies])]

    async def client(self, number):
        at = number * 5
        while self.running():
            got = (await run(self.server, self.bodies[at % len(self.bodies)])).outcome()
            if got != self.wanted[at % len(self.bodies)]:
                self.failed = True
                raise AssertionError(f"request {at % len(self.bodies)} differs\n  wanted {self.wanted[at % len(self.bodies)][:2000]}\n  got    {got[:2000]}")
            self.done += 1
            at += 2 * STREAMS + 1

    async def swap(self):
        swapped = [r for r in SWAPPED if r in HARMED]
        role, how = ("draft", self.rng.choice(DRAFTERS)) if self.rng.random() < 0.5 or not swapped else (self.rng.choice(swapped), "--default")
        code, _, err = await asyncio.to_thread(self.server.command, "swap", role, how)
        assert code == 0, f"swap {role} {how}: {err}"
        self.note("swap " + role)

    async def hit(self, roles, number):
        """Signals these stages when all of them are ready at once (five deaths in a row before readiness end a server, as they should)."""
        for _ in range(3000):
            stages = {s["name"]: s for s in (await asyncio.to_thread(self.server.status))["stages"]}
            roles = [r for r in roles if stages[r]["state"] != "off"]
            if all(stages[r]["state"] == "ready" for r in roles):
                break
            await asyncio.sleep(0.01)
        else:
            raise AssertionError(f"not ready: {[(n, s['state']) for n, s in stages.items()]}")
        for role in roles:
            try:
                os.kill(stages[role]["pid"], number)
                self.note(role + (" killed" if number == signal.SIGKILL else " stopped"))
            except ProcessLookupError:
                pass

    async def harm(self):
        try:
            while self.running():
                await asyncio.sleep(2 * self.rng.random() * self.rng.choice((0.01, 0.05, 0.2, 0.5, 1)))
                what = self.rng.random()
                if what < 0.55:
                    await self.hit([self.rng.choice(HARMED)], signal.SIGKILL)
                elif what < 0.75:
                    await self.hit(self.rng.sample(HARMED, self.rng.randint(min(2, len(HARMED)), len(HARMED))), signal.SIGKILL)
                elif what < 0.8:
                    await self.hit([self.rng.choice([r for r in HARMED if r != "vision"])], signal.SIGSTOP)
                else:
                    await self.swap()
        except BaseException:
            self.failed = True
            raise

    async def watch(self):
        while self.running():
            await asyncio.sleep(60)
            print(f"     {time.strftime('%H:%M:%S')} {sum(self.hits.values())} blows, {self.done} responses, all exact", flush=True)

    async def go(self, seconds):
        self.wanted = await self.all()
        assert await self.all() == self.wanted, "two undisturbed runs differ"
        before = self.server.descriptors(), self.server.memory_bytes()["rss"]
        self.until = time.monotonic() + seconds
        watching = asyncio.ensure_future(self.watch())
        await asyncio.gather(self.harm(), *(self.client(n) for n in range(STREAMS)))
        watching.cancel()
        await self.swap_back()
        assert await self.all() == self.wanted, "after the blows an undisturbed run differs"
        return before

    async def swap_back(self):
        code, _, err = await asyncio.to_thread(self.server.command, "swap", "draft", "--default")
        assert code == 0, err
        await asyncio.to_thread(self.server.settle)


def main():
    words, options = sys.argv[1:], []
    if "--" in words:
        words, options = words[:words.index("--")], words[words.index("--") + 1:]
    if not words or not all(w.isdigit() for w in words) or len(words) > 2:
        sys.exit(__doc__)
    seconds, seed = int(words[0]), int(words[1]) if len(words) > 1 else 1
    with Server("--restart-budget", "1000000", "--hang-timeout-ms", HANG_MS, "--threads", "1", "--max-sequences", STREAMS, *options) as s:
        soak = Soak(s, seconds, seed)
        try:
            descriptors, rss = asyncio.run(soak.go(seconds))
            time.sleep(2)
            print(f"     {dict(sorted(soak.hits.items()))}\n     {sum(soak.hits.values())} blows, {soak.done} responses, all exact")
            after = s.descriptors()
            assert all(after[r] == n for r, n in descriptors.items() if r not in ("keeper", "draft")), (descriptors, after)  # these two get what the drafter of the day needs
            assert s.memory_bytes()["rss"] < rss + RSS_SLACK, (rss, s.memory_bytes())
            assert "event=quarantine" not in s.log(), "a kill from outside accused a request"
        except BaseException:
            print(f"the server's log: {shutil.copy(s.log_path, f'soak.{seed}.log')}")
            raise


if __name__ == "__main__":
    main()
