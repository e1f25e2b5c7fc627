#!/usr/bin/env python3
"""tests/gpu/draft.py - neural drafters in the whole product at Gemma 4 12B's shapes, random weights, one stream or many.

    SLUICE_BUILD=build/dist python3 tests/gpu/draft.py [mtp|dspark] [P...]           (default: both, 0.755)
    SLUICE_BUILD=build/dist python3 tests/gpu/draft.py load [mtp|dspark] [P...]      many streams
    SLUICE_BUILD=build/dist python3 tests/gpu/draft.py blows [mtp|dspark]            SECONDS (60) of deaths and swaps under STREAMS (1,3), the last half of them under the last
    SLUICE_BUILD=build/dist python3 tests/gpu/draft.py pace [mtp|dspark] [P...]      one stream, RUNS turns of off, all drafts and adaptive
    WAYS='host device/32768'   one server for each: drafts over the hosts, of any token; over the device, of 32,768 tokens;   RUNS=1: timed runs of each;   OPTIONS: more options of the server

Random weights agree about nothing, so the acceptance is forced: SLUICE_BUILD/faulty/draft_forced (tests/faults/forced.c) computes every round as
the real stage does and then replaces its proposals by the tokens that an identical run gave, each with probability P. No arithmetic is touched.
Prints ms a round, split into the drafter's launch to answer, verify's step and the rest (hand-overs and hosts), and tokens a second; the output must be the
one without drafts, to the token. Also: drafter and verify killed in mid-stream. `load`: tokens a second of 1, 8, 32 and 128 streams (STREAMS) without drafts, with all that are proposed and where they
pay; adaptive drafting must not be more than 2 % slower than the better of the two. `blows`: SIGKILLs of the drafter and of verify, swaps of the drafter; a lone stream's rounds are begun ahead of
the step before. Needs a Hopper GPU, 3 GB in /dev/shm and the standard library.
"""
import array
import asyncio
import os
import random
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
RUNS = int(os.environ.get("RUNS", "2"))
WAYS = [(w + "/0").split("/")[:2] for w in os.environ.get("WAYS", "host device device/32768").split()]  # how drafts reach the step, tokens that may be drafted
CONTEXT = 1000
FORCED = os.path.join(BUILD, "faulty", "draft_forced")
OPTIONS = os.environ.get("OPTIONS", "").split()


def big(*options, environment=None):
    return Server("--random-weights", "gemma-4-12b", "--weights-dtype", FORMAT, "--max-context", 4096, "--max-sequences", 8, "--prefix-cache", "off", *GPU, *OPTIONS, *options, environment=environment or {})


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


async def forced(server, text, wanted, kind, p, signals, few):
    await run(server, request(text))          # the text becomes known
    outcome = (await run(server, request(text))).outcome()
    assert outcome == wanted, f"drafts changed the output\n  {wanted[:300]}\n  {outcome[:300]}"
    m = await metrics(server)
    handed, ahead = m["sluice_draft_handed_over_total"], m["sluice_draft_ahead_total"]
    for _ in range(RUNS):
        s, work, rounds = await timed(server, text)
        wall = s.final["sluice"]["stage_ms"]["decode"] / rounds
        draft, verify = 1e3 * work["draft"] / rounds, 1e3 * work["verify"] / rounds
        drafter = await asyncio.to_thread(server.status)
        say(f"drafter alone, by its own clock: {drafter['drafter']['round_us']:.0f} us and {drafter['drafter']['step_us']:.0f} us a draft")
        say(f"drafts over the {signals}, of {few if few != '0' else 'all'} tokens, forced P = {p}: accept length {TOKENS / rounds:.2f}, {1e3 * TOKENS / (wall * rounds):.0f} tok/s; a round {wall:.3f} ms = draft {draft:.3f} + verify {verify:.3f} + rest {wall - draft - verify:.3f}; "
            f"at 3.50 tokens a round {3500 / wall:.0f} tok/s")


    m = await metrics(server)
    handed, ahead = m["sluice_draft_handed_over_total"] - handed, m["sluice_draft_ahead_total"] - ahead
    say(f"{handed:.0f} of {RUNS * rounds:.0f} steps had their drafts over the device, {ahead:.0f} rounds of drafts began behind the step before")
    assert (handed > RUNS * rounds / 2) == (signals == "device"), f"{handed} of {RUNS * rounds} steps had their drafts over the device"
    assert (ahead > RUNS * rounds / 2) == (signals == "device"), f"{ahead} of {RUNS * rounds} rounds were begun ahead"


async def killed(server, text, wanted):
    task = asyncio.create_task(run(server, request(text)))
    for role in ("draft", "verify", "draft"):
        await asyncio.sleep(0.25)
        server.signal(role, signal.SIGKILL)
    assert (await task).outcome() == wanted, "a dead drafter, or verify's death while its step waited for drafts, changed the output"
    server.settle()
    assert (await run(server, request(text))).outcome() == wanted, "behind the deaths the output is another"
    say("drafter, verify and drafter killed in mid-stream: the same output, and afterwards")


HANDED = {"handed_over": "steps had their drafts over the device", "ahead": "rounds were begun ahead"}


async def note_handed(server, done):
    """Verify's counters begin anew with it."""
    now = await metrics(server)
    for name in HANDED:
        done[name] = done.get(name, 0) + now[f"sluice_draft_{name}_total"]


async def blows_on(server, rng, until, handed):
    """Deaths and swaps one after the other. Returns how many of each."""
    done, drafter = {"drafter killed": 0, "verify killed": 0, "drafter swapped": 0}, FORCED
    while time.monotonic() < until:
        await asyncio.sleep(rng.uniform(0.02, 0.45))  # a drafter needs a third of a second to come: some die before they are ready, ...
        if rng.random() < 0.8:
            await asyncio.to_thread(server.settle)  # ... most do not: the launcher gives up a stage that does so again and again
            await asyncio.sleep(rng.uniform(0.02, 0.2))
        what = rng.choice(("drafter killed", "drafter killed", "verify killed", "drafter swapped"))
        if what == "drafter swapped":  # an executable takes the drafter that is named: behind n-gram its folder comes first
            drafter = FOLDER if drafter == "ngram" else FORCED if drafter == FOLDER else rng.choice((FORCED, FORCED, FOLDER, "ngram"))
            done[what] += (await asyncio.to_thread(server.command, "swap", "draft", drafter))[0] == 0
        else:
            if what == "verify killed":
                await note_handed(server, handed)
            done[what] += bool(await asyncio.to_thread(server.signal, "draft" if what == "drafter killed" else "verify", signal.SIGKILL))
    return done


async def blown(server, requests, wanted, streams, seconds, rng):
    stop, ended, handed = asyncio.Event(), 0, {}

    async def client(number):
        nonlocal ended
        at = number
        while not stop.is_set():
            got = (await run(server, requests[at % len(requests)])).outcome()
            assert got == wanted[at % len(requests)], f"under blows the output is another\n  {wanted[at % len(requests)][:300]}\n  {got[:300]}"
            ended += 1
            at += streams
    clients = [asyncio.ensure_future(client(n)) for n in range(streams)]
    try:
        done = await blows_on(server, rng, time.monotonic() + seconds, handed)
    finally:
        stop.set()
    await asyncio.gather(*clients)
    await note_handed(server, handed)
    say(f"{streams} streams, {seconds:.0f} s: " + ", ".join(f"{n} {what}" for what, n in done.items())
        + f"; {ended} responses of {TOKENS} tokens, no byte differs; at least " + ", ".join(f"{handed[name]:.0f} {what}" for name, what in HANDED.items()))
    return handed["ahead"]


def blows(kinds):
    """The texts come from a server without drafts."""
    seconds, streams, rng = float(os.environ.get("SECONDS", "60")), [int(n) for n in os.environ.get("STREAMS", "1,3").split(",")], random.Random(int(os.environ.get("SEED", "1")))
    requests = [{**body(f"{i} {words(60, i)}", TOKENS, seed=i), "return_token_ids": True} for i in range(max(streams))]
    with big("--draft", "none") as s:
        wanted = asyncio.run(learn(s, requests))
    for kind in kinds:
        write_files, tokens = KINDS[kind]
        write_files()
        environment = {"SLUICE_FORCED_ACCEPTANCE": "0.755", "SLUICE_FORCED_TEXTS": TEXTS}
        with big("--draft", FOLDER, "--draft-tokens", tokens, "--draft-when", "always", "--restart-budget", 100000, environment=environment) as s:
            for n in streams:
                assert s.command("swap", "draft", FOLDER)[0] == 0 and s.command("swap", "draft", FORCED)[0] == 0, s.log()[-2000:]
                ahead = asyncio.run(blown(s, requests[:n], wanted, n, seconds / len(streams), rng))
                assert ahead > 0 or n > 1, "no round was begun ahead"
            others = {r: n for r, n in s.restarts().items() if n and r not in ("draft", "verify")}
            assert not others, f"other stages died: {others}\n{s.log()[-3000:]}"
        shutil.rmtree(FOLDER)
    os.remove(TEXTS)


STREAMS = [int(n) for n in os.environ.get("STREAMS", "1,8,32,128").split(",")]
LOAD_TOKENS = int(os.environ.get("LOAD_TOKENS", "192"))
TEXTS = "/dev/shm/sluice-forced-texts"


def crowded(*options, environment=None):
    return Server("--random-weights", "gemma-4-12b", "--weights-dtype", FORMAT, "--max-context", 1024, "--draft-context", 512, "--max-sequences", max(STREAMS), "--prefix-cache", "off", *GPU, *options,
                  environment=environment or {})


def load_request(i):
    return body(f"{i} {words(60, i)}", LOAD_TOKENS, seed=i)


async def at_once(server, streams):
    """Tokens a second of streams that begin together, from the first request to the last token; tokens a round."""
    begin = time.perf_counter()
    done = await asyncio.gather(*(Stream(load_request(i)).run(server) for i in range(streams)))
    seconds = time.perf_counter() - begin
    return sum(s.tokens() for s in done) / seconds, sum(s.tokens() for s in done) / max(1, sum(s.final["sluice"]["rounds"] for s in done))


async def learn(server, requests):
    """What the texts will be, for the forced drafter. Returns the outcomes."""
    done = await asyncio.gather(*(run(server, {**r, "return_token_ids": True}) for r in requests))
    with open(TEXTS, "wb") as f:
        for r in done:
            prompt, output = r.response["prompt_token_ids"], r.response["token_ids"]
            f.write(array.array("I", [len(prompt), len(prompt) + len(output), *prompt, *output]).tobytes())
    return [r.outcome() for r in done]


async def rates(server):
    out = {}
    for streams in STREAMS:
        await at_once(server, streams)  # the pace settles
        out[streams] = max([await at_once(server, streams) for _ in range(RUNS)])
    return out


def load(kinds, chances):
    with crowded("--draft", "none") as s:
        asyncio.run(learn(s, [load_request(i) for i in range(max(STREAMS))]))
        off = asyncio.run(rates(s))
    for kind in kinds:
        write_files, tokens = KINDS[kind]
        write_files()
        for p in chances:
            table = {"off": off}
            for when, name in (("always", "fixed"), ("paying", "adaptive")):
                with crowded("--draft", FOLDER, "--draft-tokens", tokens, "--draft-when", when, environment={"SLUICE_FORCED_ACCEPTANCE": p, "SLUICE_FORCED_TEXTS": TEXTS}) as s:
                    assert s.command("swap", "draft", FORCED)[0] == 0, s.log()[-2000:]
                    table[name] = asyncio.run(rates(s))
            for n in STREAMS:
                better = max(table["off"][n][0], table["fixed"][n][0])
                say(f"{kind}, P = {p}, {n} streams: " + ", ".join(f"{name} {table[name][n][0]:.0f} tok/s ({table[name][n][1]:.2f} tokens a round)" for name in table)
                    + f"; adaptive against the better {100 * (table['adaptive'][n][0] / better - 1):+.1f} %")
        shutil.rmtree(FOLDER)
    os.remove(TEXTS)


async def rate(server):
    s = await Stream(load_request(0)).run(server)
    return 1e3 * LOAD_TOKENS / s.final["sluice"]["stage_ms"]["decode"], LOAD_TOKENS / s.final["sluice"]["rounds"]


def paced(seen, name, *options, environment=None):
    """Some runs of a server of its own, behind one that warms it up."""
    with big(*options, environment=environment) as s:
        if environment:
            assert s.command("swap", "draft", FORCED)[0] == 0, s.log()[-2000:]
        else:
            asyncio.run(learn(s, [load_request(0)]))
        asyncio.run(rate(s))
        seen[name] += [asyncio.run(rate(s)) for _ in range(3)]


def pace(kinds, chances):
    """One stream in turns: two runs of one kind differ by more than what is looked for."""
    for kind in kinds:
        write_files, tokens = KINDS[kind]
        write_files()
        for p in chances:
            seen = {"off": [], "fixed": [], "adaptive": []}
            paced(seen, "off", "--draft", "none")
            for _ in range(RUNS):
                for name, when in (("fixed", "always"), ("adaptive", "paying")):
                    paced(seen, name, "--draft", FOLDER, "--draft-tokens", tokens, "--draft-when", when, environment={"SLUICE_FORCED_ACCEPTANCE": p, "SLUICE_FORCED_TEXTS": TEXTS})
            for name in seen:
                say(f"{kind}, P = {p}, {name}: " + ", ".join(f"{r:.0f} ({length:.2f})" for r, length in seen[name]) + " tok/s (tokens a round)")
            middle = {name: sorted(runs)[len(runs) // 2][0] for name, runs in seen.items()}
            say(f"medians {', '.join(f'{name} {v:.0f}' for name, v in middle.items())}: adaptive against the better {100 * (middle['adaptive'] / max(middle['off'], middle['fixed']) - 1):+.1f} %")
        shutil.rmtree(FOLDER)
        os.remove(TEXTS)


def one_kind(kind, text, wanted, chances):
    write_files, tokens = KINDS[kind]
    begin = time.perf_counter()
    write_files()
    say(f"{kind}: random weights in {time.perf_counter() - begin:.1f} s")
    try:
        for p in chances:
            for signals, few in WAYS:
                begin = time.perf_counter()
                with big("--draft", FOLDER, "--draft-tokens", tokens, "--draft-when", "always", "--draft-signals", signals, "--draft-vocab", few, environment={"SLUICE_FORCED_ACCEPTANCE": p}) as s:
                    say(f"ready after {time.perf_counter() - begin:.1f} s")
                    assert s.command("swap", "draft", FORCED)[0] == 0, s.log()[-2000:]
                    asyncio.run(forced(s, text, wanted, kind, p, signals, few))
                    asyncio.run(killed(s, text, wanted))
    finally:
        shutil.rmtree(FOLDER)


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    kinds = [w for w in sys.argv[1:] if w in KINDS] or list(KINDS)
    parts = {"load": load, "pace": pace, "blows": lambda kinds, _: blows(kinds)}
    chances = [w for w in sys.argv[1:] if w not in KINDS and w not in parts] or ["0.755"]
    for part in parts:
        if part in sys.argv[1:]:
            parts[part](kinds, chances)
            return
    with big("--draft", "none") as s:
        text, wanted = asyncio.run(without(s))
    for kind in kinds:
        one_kind(kind, text, wanted, chances)
    print("draft: passed")


if __name__ == "__main__":
    main()
