#!/usr/bin/env python3
"""200 kills at random moments with 8 streams running: every stream ends with exactly the bytes of an undisturbed run.

First SIGKILL over keeper, gateway, tokenize, prefill, draft, verify and detokenize; then SIGSTOP, where the launcher has
to notice the silence. Only stages that are ready are hit (several may be down at once): a stage that dies before it is
ready five times in a row ends a server, as it should. Clients do what any client does: they come back and resume.
"""
import asyncio
import bisect
import os
import random
import signal
import time

from server import ROLES, SANITIZED, SCALE, Server, main, percentile, scaled
from streams import Streams
from workload import TOOL, bodies
from wsclient import gather_limited, run

TIME_LIMIT_S = 900  # for the runner; two idle cores need about two minutes
STREAMS = 8
KILLS = scaled(200, 14)
STOPS = scaled(28, 7)
CALM_S = 3  # at the beginning, to compare with
HANG_MS = 10000 if SANITIZED else 1000
CANDIDATES = bodies(32, least=150, most=400)
BODIES = []  # the 16 of them whose text flows most evenly: a pause must be the server's, not the model's


def pauses_ms(streams, moment):
    """For each stream that was in the middle of its text: how long after `moment` it went on."""
    out = []
    for deltas in streams.deltas:
        i = bisect.bisect_right(deltas, (moment, 1 << 60))
        if 0 < i < len(deltas) and deltas[i - 1][1] == deltas[i][1]:
            out.append(1000 * (deltas[i][0] - moment))
    return out


async def harm(server, number, count, rng, pause_s, one_at_a_time):
    """Signals `count` ready stages; [(role, moment)]. One at a time: so that a pause has one cause."""
    hits = []
    order = [ROLES[i % len(ROLES)] for i in range(count)]
    rng.shuffle(order)
    pids = {}
    for role in order:
        await asyncio.sleep(rng.uniform(*pause_s))
        for _ in range(100000):
            stage = await asyncio.to_thread(server.stage, role)
            if stage["state"] == "ready" and stage["pid"] != pids.get(role):
                break
            await asyncio.sleep(0.01)
        pids[role] = stage["pid"]
        hits.append((role, time.monotonic()))
        os.kill(stage["pid"], number)
        while one_at_a_time:  # a stopped stage looks ready until it is missed: wait for another one in its place
            now = await asyncio.to_thread(server.stage, role)
            if now["state"] == "ready" and now["pid"] != stage["pid"]:
                break
            await asyncio.sleep(0.05)
    return hits


async def campaign(server, wanted, number, count, pause_s, one_at_a_time):
    streams = Streams(server, BODIES, wanted, STREAMS)

    async def work():
        streams.calm_from = time.monotonic()
        await asyncio.sleep(CALM_S)
        streams.calm_to = time.monotonic()
        return await harm(server, number, count, random.Random(2026), pause_s, one_at_a_time)
    return await streams.during(work()), streams


def report(name, server, hits, streams):
    recovery = {s["name"]: s.get("last_recovery_ms") for s in server.status()["stages"]}
    print(f"     {name}: {len(hits)} hits, {streams.done} streams, all exact; {streams.connections - streams.done} reconnections", flush=True)
    print("     pauses in ms       hits   of a stream: p50      p99      max   of the slowest of all: p50      p99   last time back to ready", flush=True)
    rng = random.Random(1)
    show("nobody is hit", [rng.uniform(streams.calm_from, streams.calm_to) for _ in range(60)], streams, None)
    for role in ROLES:
        show(role, [m for r, m in hits if r == role], streams, recovery[role])
    show("all roles", [m for _, m in hits], streams, None)


def show(name, moments, streams, recovery_ms):
    each = [pauses_ms(streams, m) for m in moments]
    pauses, slowest = [p for e in each for p in e], [max(e) for e in each if e]
    print(f"     {name:15} {len(moments):7} {percentile(pauses, 50):19.1f} {percentile(pauses, 99):8.1f} {max(pauses, default=float('nan')):8.1f}"
          f" {percentile(slowest, 50):28.1f} {percentile(slowest, 99):8.1f}" + (f" {recovery_ms:20.1f} ms" if recovery_ms else ""), flush=True)


def choose(results):
    """Keeps the bodies that wrote the most deltas a token."""
    order = sorted(range(len(CANDIDATES)), key=lambda i: -results[i].deltas / results[i].response["usage"]["output_tokens"])
    BODIES[:] = [CANDIDATES[i] for i in sorted(order[:16])]


async def undisturbed(server):
    if not BODIES:
        choose(await gather_limited(STREAMS, [run(server, b) for b in CANDIDATES]))
    return [r.outcome() for r in await gather_limited(STREAMS, [run(server, b) for b in BODIES])]


def run_campaign(name, number, count, pause_s, one_at_a_time, *options):
    with Server("--restart-budget", "1000000", *options) as s:
        wanted = asyncio.run(undisturbed(s))
        began = time.monotonic()
        hits, streams = asyncio.run(campaign(s, wanted, number, count, pause_s, one_at_a_time))
        s.settle()
        report(f"{name} in {time.monotonic() - began:.0f} s", s, hits, streams)
        assert len(hits) == count
        restarts = s.restarts()
        for role in ROLES:
            expected = sum(r == role for r, _ in hits)
            assert restarts[role] == expected, f"{role}: {restarts[role]} restarts for {expected} hits"
        assert "event=quarantine" not in s.log(), "a kill from outside accused a request"
        again = asyncio.run(undisturbed(s))
        assert again == wanted, "after the kills an undisturbed run differs"


def test_sigkill():
    run_campaign("SIGKILL", signal.SIGKILL, KILLS, (0.02, 0.5), False)


def test_sigstop():
    run_campaign(f"SIGSTOP, hang timeout {HANG_MS} ms", signal.SIGSTOP, STOPS, (0.05, 0.6), True, "--hang-timeout-ms", HANG_MS)


def test_keeper_costs_nothing():
    """Nobody waits for the keeper: its death restarts nothing else, and no client reconnects."""
    with Server("--restart-budget", "1000000") as s:
        wanted = asyncio.run(undisturbed(s))

        streams = Streams(s, BODIES, wanted, STREAMS)

        async def work():
            calm = time.monotonic()
            await asyncio.sleep(1.5)
            began = time.monotonic()
            for _ in range(scaled(10, 3)):
                await asyncio.to_thread(s.signal, "keeper", signal.SIGKILL)
                await asyncio.sleep(0.15)
                await asyncio.to_thread(s.settle)
            return calm, began, time.monotonic()

        calm, began, ended = asyncio.run(streams.during(work()))

        def gaps(a, b):
            return [1000 * (y[0] - x[0]) for d in streams.deltas for x, y in zip(d, d[1:]) if x[1] == y[1] and a <= x[0] and y[0] <= b]
        print(f"     pauses between events, p99: {percentile(gaps(calm, began), 99):.1f} ms before, {percentile(gaps(began, ended), 99):.1f} ms while the keeper dies", flush=True)
        assert streams.connections == streams.done
        restarts = s.restarts()
        assert restarts["keeper"] >= scaled(10, 3) and sum(restarts.values()) == restarts["keeper"], restarts


def test_detokenize_dies_in_a_forced_call():
    """What the prompt has of a call is in the log once, whenever its writer dies."""
    body = {"input": "What is the weather in Oslo?", "tools": [TOOL, {**TOOL, "name": "get_time"}], "max_output_tokens": 40, "ignore_eos": True, "temperature": 0, "return_token_ids": True}
    with Server("--restart-budget", "1000000", "--draft", "none") as s:
        for more in ({"tool_choice": "required"}, {"tool_choice": {"type": "function", "name": "get_time"}}, {"tool_choice": "required", "parallel_tool_calls": False}):
            asked = {**body, **more}
            wanted = asyncio.run(run(s, asked)).outcome()
            assert "function_call" in wanted, wanted
            for kill_at in range(scaled(14, 7)):
                seen = [0]

                async def on_event(event, ws):
                    if seen[0] == kill_at:
                        await asyncio.to_thread(s.signal, "detokenize", signal.SIGKILL)
                    seen[0] += 1
                got = asyncio.run(run(s, asked, on_event=on_event)).outcome()
                assert got == wanted, f"killed at event {kill_at}\n  wanted {wanted}\n  got    {got}"
                s.settle()


if __name__ == "__main__":
    print(f"     {STREAMS} streams, {KILLS} kills, {STOPS} stops (scale {SCALE:g})", flush=True)
    main(test_sigkill, test_sigstop, test_keeper_costs_nothing, test_detokenize_dies_in_a_forced_call)
