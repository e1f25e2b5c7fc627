#!/usr/bin/env python3
"""tests/gpu/serve.py - the whole product on this machine's GPU, through WebSocket clients.

    SLUICE_BUILD=build/dist python3 tests/gpu/serve.py [PART...]      (default: all parts)

  demo     the demo model on the GPU gives the bytes that it gives on the CPU: the held-out questions on texts, pictures and sounds, greedy, every token
  one      a 12B with random weights, one stream: ms a token at a context of 1k, through the client and in verify
  ttft     time to the first token of prompts of 145, 512, 2048 and 8192 tokens
  many     32 streams, 145 tokens in, 410 out: tokens a second
  eight    the same with 8 streams
  crowd    the same with 64, with 128, and with 256: 128 of them in a step
  long     times between tokens of running streams, alone and while a 32k prompt is filled
  drafts   one stream, a text in circles and one of noise, with and without drafts
  blocks   8 greedy streams whose texts go in circles: verify blocks of several sequences in a step; the same tokens as without drafts
Needs a Hopper GPU and the standard library only; SLUICE_BUILD names a build or a dist tree, FORMAT=fp8|bf16 the weights' type (default fp8),
KV, SHARING and SHARE the options --kv-cache-dtype, --gpu-sharing and --prefill-share. Prints figures; fails on wrong bytes and on a server that does not serve.
"""
import asyncio
import json
import os
import signal
import statistics
import struct
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tests", "e2e"))
from server import Server, percentile  # noqa: E402
from wsclient import CLOSE, PING, PONG, WebSocket, gather_limited, http, run  # noqa: E402

FORMAT = os.environ.get("FORMAT", "fp8")
KV = ["--kv-cache-dtype", os.environ["KV"]] if os.environ.get("KV") else []
GPU = ["--device", "cuda"] + KV + [w for name, option in (("SHARING", "--gpu-sharing"), ("SHARE", "--prefill-share")) if os.environ.get(name) for w in (option, os.environ[name])]
WORDS = "the red house stands by a river and seven birds sing in an old tree while rain falls on green hills".split()


def words(count, salt=0):
    return " ".join(WORDS[(i * 7 + i // 5 + salt * 3) % len(WORDS)] for i in range(count))


def say(text):
    print(f"     {text}", flush=True)


class Stream:
    """One response, timed: reads whole buffers and looks at frames by their bytes, so that the client costs little."""

    def __init__(self, body):
        self.body, self.times, self.sent, self.final = body, [], 0.0, None

    async def run(self, server):
        ws = await WebSocket.open(server)
        self.sent = time.perf_counter()
        await ws.send({"type": "response.create", **self.body})
        buffer = b""
        while self.final is None:
            data = await asyncio.wait_for(ws.reader.read(1 << 18), 300)
            assert data, "the connection ended"
            now = time.perf_counter()
            buffer = await self.take(ws, buffer + data, now)
        ws.drop()
        return self

    async def take(self, ws, buffer, now):
        at = 0
        while len(buffer) - at >= 2:
            size, head = buffer[at + 1] & 0x7f, 2
            if size == 126:
                head = 4
            elif size == 127:
                head = 10
            if len(buffer) - at < head:
                break
            if head > 2:
                size = struct.unpack(">H" if head == 4 else ">Q", buffer[at + 2:at + head])[0]
            if len(buffer) - at < head + size:
                break
            payload = buffer[at + head:at + head + size]
            opcode = buffer[at] & 0x0f
            at += head + size
            if opcode == PING:
                await ws.frame(PONG, payload)
            assert opcode != CLOSE, payload
            kind = payload[:80]
            if b".delta" in kind:
                self.times.append(now)
            elif b"response.completed" in kind or b"response.incomplete" in kind:
                self.final = json.loads(payload)["response"]
            else:
                assert b'"error"' not in kind and b"response.failed" not in kind, payload[:500]
        return buffer[at:]

    def tokens(self):
        return self.final["usage"]["output_tokens"]

    def prompt(self):
        return self.final["usage"]["input_tokens"]

    def ttft_ms(self):
        return 1e3 * (self.times[0] - self.sent)

    def ms_per_token(self):
        """Mean of the times between deltas: some tokens show no text, so there may be fewer deltas than tokens."""
        return statistics.mean(self.gaps_ms())

    def gaps_ms(self):
        return [1e3 * (b - a) for a, b in zip(self.times, self.times[1:]) if b > a]


def body(text, tokens, seed=1, **more):
    return {"input": text, "max_output_tokens": tokens, "ignore_eos": True, "temperature": 1.0, "top_k": 64, "top_p": 0.95, "seed": seed, **more}


async def ask(server, *args, **more):
    return await Stream(body(*args, **more)).run(server)


async def metrics(server):
    _, _, text = await http(server, "GET", "/metrics")
    out = {}
    for line in text.decode().splitlines():
        if line and not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            out[name] = float(value)
    return out


class Steps:
    """What verify did meanwhile: ms a step, tokens a step."""

    async def begin(self, server):
        self.before = await metrics(server)
        return self

    async def end(self, server):
        after = await metrics(server)
        rounds = after["sluice_decode_rounds_total"] - self.before["sluice_decode_rounds_total"]
        name = 'sluice_stage_work_seconds_total{stage="verify"}'
        return 1e3 * (after[name] - self.before[name]) / max(rounds, 1), rounds


async def prompt_of(server, tokens):
    """A text whose prompt has this many tokens, or hardly fewer: found by asking."""
    count, base, per = 64, 0.0, 1.0
    small, big = (await ask(server, words(16), 1)).prompt(), (await ask(server, words(256), 1)).prompt()
    per = (big - small) / 240
    base = small - 16 * per
    count = max(1, int((tokens - base) / per))
    for _ in range(4):
        got = (await ask(server, words(count), 1)).prompt()
        if tokens - 4 <= got <= tokens:
            break
        count += int((tokens - got) / per) or (1 if got < tokens else -1)
    return words(count)


def big_server(*options, context=16384, sequences=32):
    return Server("--random-weights", "gemma-4-12b", "--weights-dtype", FORMAT, "--max-context", context, "--max-sequences", sequences,
                  "--prefill-chunk", 2048, "--prefix-cache", "off", *GPU, *options, log_level="info")


def started(server, begin):
    line = next((x for x in server.out().splitlines() if "serving" in x), "")
    say(f"{FORMAT}: {time.perf_counter() - begin:.2f} s from exec to ready; {line}")


def part_demo():
    """Three workloads on both devices: the held-out questions, greedy; those on pictures and sounds; and 64 requests of many kinds, most of them sampled."""
    import test_chat
    import test_senses
    from workload import bodies
    asked = {"mixed requests": bodies(64)}
    for name, path, request in (("held-out questions", "heldout.json", test_chat.request), ("held-out pictures and sounds", "heldout_media.json", test_senses.request)):
        with open(os.path.join(ROOT, "model", "train", path), encoding="utf-8") as f:
            asked[name] = [{**request(i), "return_token_ids": True} for i in json.load(f)]
    outcomes = {}
    for device in (["--device", "cpu", *KV], GPU):
        begin = time.perf_counter()
        with Server(*device) as s:
            ready = time.perf_counter() - begin
            for name, requests in asked.items():
                begin = time.perf_counter()
                results = asyncio.run(gather_limited(16, [run(s, r) for r in requests]))
                outcomes[name, device[1]] = [r.outcome() for r in results]
                tokens = sum(r.response["usage"]["output_tokens"] for r in results)
                say(f"demo model, {device[1]}: ready in {ready:.2f} s; {name}: {tokens} tokens in {time.perf_counter() - begin:.2f} s")
    for name, requests in asked.items():
        pairs = list(zip(outcomes[name, "cpu"], outcomes[name, "cuda"]))
        same = sum(a == b for a, b in pairs)
        say(f"demo model: {same} of {len(pairs)} {name} have the same bytes and tokens on GPU and CPU")
        for r, (a, b) in zip(requests, pairs):
            if a != b:
                print(f"       {json.dumps(r)[:200]}\n         cpu  {a[:300]}\n         cuda {b[:300]}")
        assert same == len(pairs), f"{name}: GPU and CPU differ"


async def one(server):
    text = await prompt_of(server, 1000)
    for how in ({"temperature": 0}, {}):
        steps = await Steps().begin(server)
        s = await ask(server, text, 256, **how)
        ms, rounds = await steps.end(server)
        gaps = s.gaps_ms()
        say(f"one stream, {'greedy' if how else 'sampled'}, context {s.prompt()}..{s.prompt() + s.tokens()}: {s.ms_per_token():.3f} ms a token at the client (gaps p50 {statistics.median(gaps):.3f}, "
            f"p99 {percentile(gaps, 99):.3f}), verify {ms:.3f} ms a step, {s.tokens() / rounds:.2f} tokens a step")


async def ttft(server):
    for tokens in (145, 512, 2048, 8192):
        text = await prompt_of(server, tokens)
        runs = []
        for i in range(8):
            r = await ask(server, text, 2, seed=i)
            runs += [r] if len(r.times) == 2 else []  # a token without text would shift the first delta
        assert runs, "no output had two tokens with text"
        say(f"time to first token of {runs[0].prompt()}: best {min(r.ttft_ms() for r in runs):.2f} ms, median {statistics.median(r.ttft_ms() for r in runs):.2f} ms")
        say(f"  of it {json.dumps(runs[-1].final['sluice']['stage_ms'])}")


async def many(server, streams=32):
    text = await prompt_of(server, 145)
    steps = await Steps().begin(server)
    begin = time.perf_counter()
    done = await asyncio.gather(*(ask(server, text, 410, seed=i) for i in range(streams)))
    seconds = time.perf_counter() - begin
    ms, rounds = await steps.end(server)
    tokens = sum(d.tokens() for d in done)
    gaps = [g for d in done for g in d.gaps_ms()]
    say(f"{streams} streams of {done[0].prompt()} in, 410 out: {tokens / seconds:.0f} tok/s in all ({seconds:.2f} s; while decoding {statistics.median(d.ms_per_token() for d in done):.2f} ms a token), "
        f"verify {ms:.3f} ms a step of {tokens / rounds:.1f}, first token p50 {statistics.median(d.ttft_ms() for d in done):.1f} ms, gaps p50 {statistics.median(gaps):.2f} p99 {percentile(gaps, 99):.2f} ms")


async def long(server):
    """Eight streams run on; first alone, then beside a prompt of 32k tokens; they are left when it is done."""
    text, far = await prompt_of(server, 145), words(18800)
    streams = [Stream(body(text, 4000, seed=i)) for i in range(8)]
    running = [asyncio.create_task(s.run(server)) for s in streams]
    await asyncio.sleep(1.0)
    marks = [time.perf_counter()]
    await asyncio.sleep(1.0)
    marks.append(time.perf_counter())
    filler = await ask(server, far, 1)
    marks.append(time.perf_counter())
    medians = []
    for begin, end, what in ((marks[0], marks[1], "alone"), (marks[1], marks[2], f"while a prompt of {filler.prompt()} is filled in {1e3 * (marks[2] - marks[1]):.0f} ms")):
        gaps = [1e3 * (b - a) for s in streams for a, b in zip(s.times, s.times[1:]) if begin <= a and b <= end and b > a]
        say(f"8 streams {what}: {len(gaps) / (end - begin):.0f} tok/s, gaps p50 {statistics.median(gaps):.2f}, p99 {percentile(gaps, 99):.2f}, max {max(gaps):.2f} ms")
        medians.append(percentile(gaps, 99))
    say(f"the 99th percentile is {medians[1] / medians[0]:.2f} times what it is alone")
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def drafts(server, what):
    """A greedy text goes in circles with random weights: drafts pay. A sampled one is noise: they must cost nothing."""
    for how in ({"temperature": 0}, {}):
        steps = await Steps().begin(server)
        s = await ask(server, words(300), 300, **how)
        ms, rounds = await steps.end(server)
        facts = s.final["sluice"]
        say(f"{'greedy' if how else 'sampled'}, {what}: {facts['stage_ms']['decode'] / s.tokens():.3f} ms a token, {s.tokens() / rounds:.2f} tokens a step of {ms:.3f} ms; "
            f"{facts['accepted_tokens']} of {facts['draft_tokens']} drafts accepted")


async def blocks(server, what, outcomes):
    steps = await Steps().begin(server)
    begin = time.perf_counter()
    done = await asyncio.gather(*(ask(server, words(300, salt=i), 300, temperature=0, return_token_ids=True) for i in range(8)))
    seconds = time.perf_counter() - begin
    ms, rounds = await steps.end(server)
    accepted, drafted = (sum(d.final["sluice"][name] for d in done) for name in ("accepted_tokens", "draft_tokens"))
    say(f"8 streams, {what}: {sum(d.tokens() for d in done) / seconds:.0f} tok/s, {sum(d.tokens() for d in done) / rounds:.1f} tokens a step of {ms:.3f} ms; {accepted} of {drafted} drafts accepted")
    outcomes.append([d.final["token_ids"] for d in done])


def on_big(options, *parts, **shape):
    begin = time.perf_counter()
    with big_server(*options, **shape) as s:
        started(s, begin)
        for p in parts:
            asyncio.run(p(s))


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # no server is left behind
    parts = sys.argv[1:] or ["demo", "one", "ttft", "many", "eight", "crowd", "long", "drafts", "blocks"]
    if "demo" in parts:
        part_demo()
    plain = [p for name, p in (("one", one), ("ttft", ttft), ("many", many), ("eight", lambda s: many(s, 8))) if name in parts]
    if plain:
        on_big(["--draft", "none"], *plain)
    if "crowd" in parts:
        on_big(["--draft", "none"], *(lambda s, n=n: many(s, n) for n in (64, 128, 256)), context=2048, sequences=256)
    if "long" in parts:
        on_big(["--draft", "none"], long, context=40960, sequences=16)
    if "drafts" in parts:
        for options in (["--draft", "none"], ["--draft-when", "paying"]):
            on_big(options, lambda s, o=options: drafts(s, " ".join(o)))
    if "blocks" in parts:
        outcomes = []
        for options in (["--draft", "none"], ["--draft-when", "always"], ["--draft-when", "paying"]):
            on_big(options, lambda s, o=options: blocks(s, " ".join(o), outcomes))
        assert all(o == outcomes[0] for o in outcomes), "drafts changed what came out"
        say("the same tokens with and without drafts")
    print("serve: passed")


if __name__ == "__main__":
    main()
