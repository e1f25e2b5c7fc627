#!/usr/bin/env python3
"""tests/gpu/drafters.py - drafting on the GPU changes no byte: the demo model with every drafter that lies beside it.

    SLUICE_BUILD=build/dist python3 tests/gpu/drafters.py [PART...]      (default: all parts)

  text    PROMPTS (default 100) requests, greedy and at temperature 1, alone and 8 at once, with n-gram, MTP and DSpark against none; tokens a round of each, beside
          those of the CPU: its drafters, its arithmetic
  blows   SIGKILL of the draft stage and `sluice swap draft` in mid-stream, BLOWS (default 60) of them under STREAMS (default 8) streams; one stream's drafts go over the device
WAYS names some of the drafters. Needs a Hopper GPU and the standard library only.
"""
import asyncio
import os
import signal
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tests", "e2e"))
sys.path.insert(0, os.path.join(ROOT, "tests", "gpu"))
import test_draft  # noqa: E402
from serve import metrics  # noqa: E402
from server import Server  # noqa: E402
from streams import Streams  # noqa: E402
from test_draft import check  # noqa: E402
from workload import body  # noqa: E402
from wsclient import gather_limited, run  # noqa: E402

DEMO = os.path.join(ROOT, "model", "demo")
WAYS = ["ngram"] + [w for w, folder in (("mtp", "assistant"), ("dspark", "dspark")) if os.path.exists(os.path.join(DEMO, folder, "config.json"))]
DEVICE = os.environ.get("DEVICE", "cuda")
WAYS = os.environ.get("WAYS", " ".join(WAYS)).split()
PROMPTS = int(os.environ.get("PROMPTS", "100"))
BLOWS = int(os.environ.get("BLOWS", "60"))
STREAMS = int(os.environ.get("STREAMS", "8"))


def say(text):
    print(f"     {text}", flush=True)


def requests(temperature, count=PROMPTS):
    out = []
    for i in range(count):
        b = {k: v for k, v in body(i, least=16, most=64, seed=7).items() if k not in ("temperature", "top_p", "top_k", "seed", "min_p")}
        out.append({**b, "temperature": temperature, **({"seed": 1000 + i} if temperature else {})})
    return out


async def answers(server, bodies, streams):
    results = await gather_limited(streams, [run(server, b) for b in bodies])
    figures = [r.response.get("sluice") or {} for r in results]
    rounds = sum(f.get("rounds", 0) for f in figures)
    return [r.outcome() for r in results], sum(f.get("accepted_tokens", 0) for f in figures) / max(1, rounds) + 1


def text():
    """Every way against none, on both devices; on the CPU only for its accept lengths, and because it says the same."""
    wanted = {}
    with Server("--device", DEVICE, "--draft", "none") as s:
        for temperature in (0, 1):
            wanted[temperature] = asyncio.run(answers(s, requests(temperature), 8))[0]
            check("none, one by one", asyncio.run(answers(s, requests(temperature), 1))[0], wanted[temperature])
    for way in WAYS:
        lengths = []
        with Server("--device", DEVICE, "--draft", way, "--draft-when", "always") as s:
            for temperature in (0, 1):
                for streams in (1, 8):
                    got, length = asyncio.run(answers(s, requests(temperature), streams))
                    check(f"--draft {way}, temperature {temperature}, {streams} streams", got, wanted[temperature])
                    lengths.append(length)
            assert s.status()["drafter"]["kind"] == way, s.status()["drafter"]
        with Server("--device", "cpu", "--draft", way, "--draft-when", "always", "--threads", 4) as s:
            of_cpu = []
            for temperature in (0, 1):
                got, length = asyncio.run(answers(s, requests(temperature), 1))
                of_cpu.append(length)
                others = sum(a != b for a, b in zip(got, wanted[temperature]))
                assert others * 20 <= len(got), f"{others} of {len(got)} outputs differ between CPU and GPU without any drafter's doing"
        say(f"{way}: 4 x {PROMPTS} outputs as without drafts; tokens a round greedy {lengths[0]:.3f}, temperature 1 {lengths[2]:.3f} (8 streams {lengths[1]:.3f}, {lengths[3]:.3f}); "
            f"the CPU's {of_cpu[0]:.3f}, {of_cpu[1]:.3f}")
        assert PROMPTS < 50 or all(abs(a - b) < 0.1 * b for a, b in zip((lengths[0], lengths[2]), of_cpu)), "the GPU's drafts are worse than the CPU's"
        assert PROMPTS < 50 or all(b > 0.85 * a for a, b in ((lengths[0], lengths[1]), (lengths[2], lengths[3]))), "with 8 streams drafts come too late"


def blows():
    """The server begins with the DSpark head: it keeps outputs of layers then, whatever drafts."""
    bodies = requests(0, 8) + requests(1, 8)
    with Server("--device", DEVICE, "--draft", WAYS[-1], "--draft-when", "always", "--restart-budget", "100000") as s:
        wanted = asyncio.run(answers(s, bodies, 8))[0]
        before = asyncio.run(answers(s, bodies, 8))[1]  # the first time the drafter is timed

        streams = Streams(s, bodies, wanted, STREAMS)
        done = asyncio.run(streams.during(test_draft.blows(s, ["none", *WAYS], BLOWS, (0.1, 0.5))))  # a drafter needs a third of a second to come
        handed = asyncio.run(metrics(s))["sluice_draft_handed_over_total"]
        assert STREAMS > 1 or DEVICE != "cuda" or handed > streams.done, f"{handed} steps of {streams.done} responses had their drafts over the device"
        others = {r: n for r, n in s.restarts().items() if n and r != "draft"}
        assert not others, f"other stages died: {others}\n{s.log()[-3000:]}"
        code, _, err = s.command("swap", "draft", "--default")
        assert code == 0, err
        s.settle()
        for _ in range(2):  # the drafter that came is timed first
            got, length = asyncio.run(answers(s, bodies, 8))
        check("afterwards", got, wanted)
        say(f"{STREAMS} streams, {done['kill']} kills and {done['swap']} swaps of the draft stage, {streams.done} responses, no byte differs; {handed:.0f} steps had their drafts over the device; {before:.2f} tokens a round before, {length:.2f} afterwards")
        assert length - 1 >= 0.7 * (before - 1), "the drafter that is back drafts as before"


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    for part in sys.argv[1:] or ["text", "blows"]:
        print(part, flush=True)
        {"text": text, "blows": blows}[part]()
    print("drafters: passed")


if __name__ == "__main__":
    main()
