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
from workload import bodies
from wsclient import gather_limited, run

STREAMS = 8
KILLS = scaled(200, 14)
STOPS = scaled(28, 7)
HANG_MS = 10000 if SANITIZED else 1000
BODIES = bodies(16, least=150, most=400)


class Streams:
    """8 clients, each asking one request after the other, until told to stop."""

    def __init__(self, server, wanted):
        self.server, self.wanted = server, wanted
        self.times = [[] for _ in range(STREAMS)]
        self.done = self.connections = 0
        self.stop = False

    async def client(self, number):
        at = number
        while not self.stop:
            async def note(event, ws):
                self.times[number].append(time.monotonic())
            result = await run(self.server, BODIES[at % len(BODIES)], on_event=note)
            assert result.outcome() == self.wanted[at % len(BODIES)], \
                f"request {at % len(BODIES)} differs\n  wanted {self.wanted[at % len(BODIES)][:1200]}\n  got    {result.outcome()[:1200]}"
            self.done += 1
            self.connections += result.connections
            at += STREAMS + 1

    def pauses_ms(self, moment):
        """For each stream: how long after `moment` its next event came."""
        out = []
        for times in self.times:
            i = bisect.bisect_right(times, moment)
            if i < len(times):
                out.append(1000 * (times[i] - moment))
        return out


async def harm(server, number, count, rng, pause_s):
    """Signals `count` ready stages; [(role, moment)]"""
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
    return hits


async def campaign(server, wanted, number, count, pause_s):
    streams = Streams(server, wanted)
    jobs = [asyncio.ensure_future(streams.client(i)) for i in range(STREAMS)]
    harmer = asyncio.ensure_future(harm(server, number, count, random.Random(2026), pause_s))
    done, _ = await asyncio.wait([*jobs, harmer], return_when=asyncio.FIRST_EXCEPTION)
    for job in done:
        job.result()  # the first failure is the test's
    streams.stop = True
    await asyncio.gather(*jobs)
    return harmer.result(), streams


def report(name, server, hits, streams):
    recovery = {s["name"]: s.get("last_recovery_ms") for s in server.status()["stages"]}
    print(f"     {name}: {len(hits)} hits, {streams.done} streams, all exact; {streams.connections - streams.done} reconnections", flush=True)
    print("     role          hits   pause seen by a client ms: p50      p99   all streams' last: p50      p99   back ready (last) ms", flush=True)
    for role in ROLES:
        moments = [m for r, m in hits if r == role]
        pauses = [p for m in moments for p in streams.pauses_ms(m)]
        worst = [max(streams.pauses_ms(m), default=float("nan")) for m in moments]
        print(f"     {role:12} {len(moments):5} {percentile(pauses, 50):31.1f} {percentile(pauses, 99):8.1f} {percentile(worst, 50):24.1f} {percentile(worst, 99):8.1f}"
              f" {recovery[role] or float('nan'):14.1f}", flush=True)
    every = [p for _, m in hits for p in streams.pauses_ms(m)]
    print(f"     all          {len(hits):5} {percentile(every, 50):31.1f} {percentile(every, 99):8.1f}", flush=True)


async def undisturbed(server):
    return [r.outcome() for r in await gather_limited(STREAMS, [run(server, b) for b in BODIES])]


def run_campaign(name, number, count, pause_s, *options):
    with Server("--restart-budget", "1000000", *options) as s:
        wanted = asyncio.run(undisturbed(s))
        began = time.monotonic()
        hits, streams = asyncio.run(campaign(s, wanted, number, count, pause_s))
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
    run_campaign("SIGKILL", signal.SIGKILL, KILLS, (0.02, 0.5))


def test_sigstop():
    run_campaign(f"SIGSTOP, hang timeout {HANG_MS} ms", signal.SIGSTOP, STOPS, (0.05, 0.6), "--hang-timeout-ms", HANG_MS)


def test_keeper_costs_nothing():
    """Nobody waits for the keeper: its death restarts nothing else, and no client reconnects."""
    with Server("--restart-budget", "1000000") as s:
        wanted = asyncio.run(undisturbed(s))

        async def go():
            streams = Streams(s, wanted)
            jobs = [asyncio.ensure_future(streams.client(i)) for i in range(STREAMS)]
            calm = time.monotonic()
            await asyncio.sleep(1.5)
            began = time.monotonic()
            for _ in range(scaled(10, 3)):
                await asyncio.to_thread(s.signal, "keeper", signal.SIGKILL)
                await asyncio.sleep(0.15)
                await asyncio.to_thread(s.settle)
            ended = time.monotonic()
            streams.stop = True
            await asyncio.gather(*jobs)
            return streams, calm, began, ended

        streams, calm, began, ended = asyncio.run(go())

        def gaps(a, b):
            return [1000 * (y - x) for t in streams.times for x, y in zip(t, t[1:]) if a <= x and y <= b]
        print(f"     pauses between events, p99: {percentile(gaps(calm, began), 99):.1f} ms before, {percentile(gaps(began, ended), 99):.1f} ms while the keeper dies", flush=True)
        assert streams.connections == streams.done
        restarts = s.restarts()
        assert restarts["keeper"] >= scaled(10, 3) and sum(restarts.values()) == restarts["keeper"], restarts


if __name__ == "__main__":
    print(f"     {STREAMS} streams, {KILLS} kills, {STOPS} stops (scale {SCALE:g})", flush=True)
    main(test_sigkill, test_sigstop, test_keeper_costs_nothing)
