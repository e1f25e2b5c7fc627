#!/usr/bin/env python3
"""tests/gpu/draft.py - neural drafters in the whole product at Gemma 4 12B's shapes, random weights, one stream.

    SLUICE_BUILD=build/dist python3 tests/gpu/draft.py [mtp|dspark] [P...]      (default: both, 0.755)

Random weights agree about nothing, so the acceptance is forced: SLUICE_BUILD/faulty/draft_forced (tests/faults/forced.c) computes every round as
the real stage does and then replaces its proposals by the tokens that an identical run gave, each with probability P. No arithmetic is touched.
Prints ms a round, split into the drafter's launch to answer, verify's step and the rest (hand-overs and hosts), and tokens a second; the output must be the
one without drafts, to the token. Also: a drafter killed in mid-stream. Needs a Hopper GPU, 3 GB in /dev/shm and the standard library.
"""
import asyncio
import os
import shutil
import signal
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tests", "e2e"))
sys.path.insert(0, os.path.join(ROOT, "tests", "gpu"))
from drafter_files import DSPARK_12B, GEMMA_12B, write_assistant, write_dspark  # noqa: E402
from server import BUILD, Server  # noqa: E402
from serve import FORMAT, GPU, Stream, body, metrics, prompt_of, say, words  # noqa: E402
from wsclient import run  # noqa: E402

FOLDER = "/dev/shm/sluice-drafter"
KINDS = {"mtp": (lambda: write_assistant(FOLDER, GEMMA_12B), "6"), "dspark": (lambda: write_dspark(FOLDER, DSPARK_12B), "7")}
TOKENS = 600
CONTEXT = 1000
FORCED = os.path.join(BUILD, "faulty", "draft_forced")


def big(*options, environment=None):
    return Server("--random-weights", "gemma-4-12b", "--weights-dtype", FORMAT, "--max-context", 4096, "--max-sequences", 8, "--prefix-cache", "off", *GPU, *options, environment=environment or {})


def request(text):
    return {**body(text, TOKENS), "return_token_ids": True}


async def timed(server, text):
    """One response, timed by a client that costs little."""
    before = await metrics(server)
    s = await Stream(body(text, TOKENS)).run(server)
    after = await metrics(server)
    work = {r: after[f'sluice_stage_work_seconds_total{{stage="{r}"}}'] - before[f'sluice_stage_work_seconds_total{{stage="{r}"}}'] for r in ("draft", "verify")}
    rounds = after["sluice_decode_rounds_total"] - before["sluice_decode_rounds_total"]
    return s, work, rounds


async def without(server):
    text = await prompt_of(server, CONTEXT)
    await run(server, request(text))
    s, work, rounds = await timed(server, text)
    ms = s.final["sluice"]["stage_ms"]["decode"] / TOKENS
    say(f"without drafts: {1e3 / ms:.0f} tok/s, {ms:.3f} ms a token, verify {1e3 * work['verify'] / rounds:.3f} ms a step")
    return text, (await run(server, request(text))).outcome()


async def forced(server, text, wanted, p):
    await run(server, request(text))          # the text becomes known
    outcome = (await run(server, request(text))).outcome()
    assert outcome == wanted, f"drafts changed the output\n  {wanted[:300]}\n  {outcome[:300]}"
    for _ in range(2):
        s, work, rounds = await timed(server, text)
        wall = s.final["sluice"]["stage_ms"]["decode"] / rounds
        draft, verify = 1e3 * work["draft"] / rounds, 1e3 * work["verify"] / rounds
        say(f"forced P = {p}: accept length {TOKENS / rounds:.2f}, {1e3 * TOKENS / (wall * rounds):.0f} tok/s; a round {wall:.3f} ms = draft {draft:.3f} + verify {verify:.3f} + rest {wall - draft - verify:.3f}; "
            f"at 3.50 tokens a round {3500 / wall:.0f} tok/s")


async def killed(server, text, wanted):
    task = asyncio.create_task(run(server, request(text)))
    for _ in range(3):
        await asyncio.sleep(0.3)
        server.signal("draft", signal.SIGKILL)
    assert (await task).outcome() == wanted, "a dead drafter changed the output"
    say("drafter killed three times in mid-stream: the same output")


def one_kind(kind, text, wanted, rates):
    write_files, tokens = KINDS[kind]
    begin = time.perf_counter()
    write_files()
    say(f"{kind}: random weights in {time.perf_counter() - begin:.1f} s")
    try:
        for p in rates:
            begin = time.perf_counter()
            with big("--draft", FOLDER, "--draft-tokens", tokens, "--draft-when", "always", environment={"SLUICE_FORCED_ACCEPTANCE": p}) as s:
                say(f"ready after {time.perf_counter() - begin:.1f} s")
                assert s.command("swap", "draft", FORCED)[0] == 0, s.log()[-2000:]
                asyncio.run(forced(s, text, wanted, p))
                asyncio.run(killed(s, text, wanted))
    finally:
        shutil.rmtree(FOLDER)


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    kinds = [w for w in sys.argv[1:] if w in KINDS] or list(KINDS)
    rates = [w for w in sys.argv[1:] if w not in KINDS] or ["0.755"]
    with big("--draft", "none") as s:
        text, wanted = asyncio.run(without(s))
    for kind in kinds:
        one_kind(kind, text, wanted, rates)
    print("draft: passed")


if __name__ == "__main__":
    main()
