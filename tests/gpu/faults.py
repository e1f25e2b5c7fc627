#!/usr/bin/env python3
"""tests/gpu/faults.py - the product on this machine's GPU while its processes are killed: streams go on with the same bytes.

    SLUICE_BUILD=build/dist python3 tests/gpu/faults.py [PART...]      (default: all parts but apart)

  kill     SIGKILL of verify and of prefill at random moments, KILLS times each (default 10)
  all      both GPU stages and the keeper at once, KILLS / 2 times: no weight is loaded again
  access   a kernel of each GPU stage reads where nothing is: once; FAULTS times more (default 1), each by a request of its own; and again and again
           by one (that request is refused, the others go on)
  apart    after an illegal access the stages run outside MPS; a quiet minute brings them back under it (takes that minute)
  daemon   SIGKILL of the MPS daemon, which takes every context along
  launcher SIGKILL of the launcher: nothing stays behind
Each part runs STREAMS clients (default 8) on MODEL (default gemma-4-12b with random weights; demo: the demo model) and compares every output, token by token,
with that of an undisturbed run; times from death to ready again and the pauses that clients saw are printed. SHARING sets --gpu-sharing.
`access` needs the stages of `make faulty` in SLUICE_BUILD/faulty. Needs a Hopper GPU and the standard library only.
"""
import asyncio
import os
import random
import shutil
import signal
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tests", "e2e"))
from server import BUILD, Server, percentile  # noqa: E402
from streams import Streams, differ  # noqa: E402
from workload import bodies  # noqa: E402
from wsclient import run  # noqa: E402

KILLS = int(os.environ.get("KILLS", "10"))
FAULTS = int(os.environ.get("FAULTS", "1"))
STREAMS = int(os.environ.get("STREAMS", "8"))
MODEL = os.environ.get("MODEL", "gemma-4-12b")
GPU_STAGES = ("prefill", "verify")
EFFECT_S = 0.5  # a silence that a kill causes has begun by then
OPTIONS = ["--device", "cuda", "--max-context", "8192"] + (["--random-weights", MODEL, "--weights-dtype", "fp8"] if MODEL != "demo" else []) + \
    (["--gpu-sharing", os.environ["SHARING"]] if os.environ.get("SHARING") else [])
ENVIRONMENT = {}  # of servers that a part starts itself
BODIES = bodies(16, least=120, most=300)


def say(text):
    print(f"     {text}", flush=True)


class Load(Streams):
    def __init__(self, server, wanted):
        super().__init__(server, BODIES, wanted, STREAMS)

    def longest_gaps_ms(self, begin, end):
        """Of each stream: the longest silence within one response that touches this time."""
        gaps = [[1000 * (b[0] - a[0]) for a, b in zip(d, d[1:]) if begin <= b[0] and a[0] <= end and a[1] == b[1]] for d in self.deltas]
        return [max(g) for g in gaps if g]

    async def during(self, work):
        async def later():
            await asyncio.sleep(0.5)
            return await work
        return await super().during(later())


def kill(pid, number=signal.SIGKILL):
    assert pid > 0, "no process to kill"
    try:
        os.kill(pid, number)
        return True
    except ProcessLookupError:
        return False


async def stages(server):
    return {s["name"]: s for s in (await asyncio.to_thread(server.status))["stages"]}


async def kill_and_wait(server, roles):
    """SIGKILL to all of them at once; (moment, {role: ms from death to ready again}) when new ones are ready."""
    before = await stages(server)
    pids = [before[r]["pid"] for r in roles]
    moment = time.monotonic()
    for pid in pids:
        kill(pid)
    until = moment + 60
    while True:
        now = await stages(server)
        if all(now[r]["state"] == "ready" and now[r]["pid"] != p for r, p in zip(roles, pids)):
            return moment, {r: now[r]["last_recovery_ms"] for r in roles}
        assert time.monotonic() < until, f"{roles} did not come back:\n{server.log()[-3000:]}"
        await asyncio.sleep(0.01)


def report(what, load, hits, effect_s=EFFECT_S):
    moments = [moment for moment, _ in hits] + [float("inf")]
    pauses = [p for begin, end in zip(moments, moments[1:]) for p in load.longest_gaps_ms(begin, min(end, begin + effect_s))]
    for role in sorted({r for _, times in hits for r in times}):
        times = [t[role] for _, t in hits if role in t]
        say(f"{what}: {role} is ready again after p50 {percentile(times, 50):.0f}, p99 {percentile(times, 99):.0f}, max {max(times):.0f} ms ({len(times)} deaths)")
    if pauses:
        say(f"{what}: longest silence of streams p50 {percentile(pauses, 50):.0f}, p99 {percentile(pauses, 99):.0f}, max {max(pauses):.0f} ms ({len(pauses)}); {load.done} outputs, all exact")


async def outcomes(server, requests):
    return [r.outcome() for r in await asyncio.gather(*(run(server, b) for b in requests))]


async def part_kill(server, wanted):
    rng = random.Random(7)
    for role in GPU_STAGES[::-1]:
        load = Load(server, wanted)

        async def work():
            hits = []
            for _ in range(KILLS):
                await asyncio.sleep(rng.uniform(0.05, 0.4))
                hits.append(await kill_and_wait(server, [role]))
            return hits
        report(f"SIGKILL of {role}", load, await load.during(work()))


async def part_all(server, wanted):
    load, rng = Load(server, wanted), random.Random(8)
    loaded = (await asyncio.to_thread(server.status))["device"]["load"]["seconds"]

    async def work():
        hits = []
        for _ in range(max(1, KILLS // 2)):
            await asyncio.sleep(rng.uniform(0.05, 0.4))
            hits.append(await kill_and_wait(server, [*GPU_STAGES, "keeper"]))
        return hits
    report("SIGKILL of prefill, verify and keeper", load, await load.during(work()))
    assert (await asyncio.to_thread(server.status))["device"]["load"]["seconds"] == loaded, "weights were loaded again"


def marked(role, kind, number=0):
    """A request that makes the role's kernel fault; those of different numbers share no page of the prefix cache."""
    return {**BODIES[0], "max_output_tokens": 60, "input": f"{number} FAULT:{role}:{kind} " + "a river and seven birds " * 8}


def show_log(server):
    """With LOG_LEVEL=debug: what the launcher and the GPU stages said of starts and deaths."""
    if os.environ.get("LOG_LEVEL") == "debug":
        print("".join(f"       {line}\n" for line in server.log().splitlines() if any(w in line for w in ("gpu", "mps", "death", "start", "recovered"))), flush=True)


async def part_access(_server, wanted):
    """Servers of its own: after a fault the stages run apart for a while."""
    for role in GPU_STAGES:
        with Server(*OPTIONS, environment=ENVIRONMENT, log_level=os.environ.get("LOG_LEVEL", "info")) as server:
            await access(server, wanted, role)
            show_log(server)


async def access(server, wanted, role):
    faulty = os.path.join(BUILD, "faulty", role)
    if not os.access(faulty, os.X_OK):
        say(f"skipped: {os.path.relpath(faulty, ROOT)} is not built")
        return
    once = [marked(role, "gpu:once", i) for i in range(1 + FAULTS)]
    healthy = await outcomes(server, once)
    code, _, err = await asyncio.to_thread(server.command, "swap", role, faulty)
    assert code == 0, err
    for what, bodies_of, wanted_of in (("an illegal access", once[:1], healthy[:1]), ("illegal accesses, one a request", once[1:], healthy[1:]),
                                       ("illegal accesses of one request", [marked(role, "gpu")], [None])):
        load, seen = Load(server, wanted), dict.fromkeys(GPU_STAGES, 0)

        async def work():
            sharing, hits = (await asyncio.to_thread(server.status))["device"]["sharing"], []
            for body, should in zip(bodies_of, wanted_of):
                begin, result, deaths, times = await access_once(server, body)
                assert deaths[role] >= 1, f"{role} did not fault: {deaths}"
                if should:
                    assert result.outcome() == should, differ(0, should, result.outcome())
                    assert deaths[role] == 1, f"one fault, {deaths} deaths"
                else:
                    assert result.final["type"] == "response.failed", result.outcome()[:600]
                hits.append((begin, times))
                for r in GPU_STAGES:
                    seen[r] += deaths[r]
            return sharing, hits
        sharing, hits = await load.during(work())
        say(f"{what} in {role} ({sharing}, {len(bodies_of)} requests): deaths {seen}, {'redone with the same bytes' if wanted_of[0] else 'the request is refused'}")
        report(f"  {what}", load, hits, effect_s=1.5)


async def access_once(server, body):
    """One request that sets off a fault; (when it was sent, its result, {role: deaths}, {role: ms to ready again} of those that died)."""
    before = {r: s["restarts"] for r, s in (await stages(server)).items()}
    begin = time.monotonic()
    result = await run(server, body)
    until = time.monotonic() + 60
    await asyncio.sleep(0.3)  # the other stage's context may go a moment later
    now = await stages(server)
    while not all(now[r]["state"] == "ready" for r in GPU_STAGES):
        assert time.monotonic() < until, f"a stage does not come back:\n{server.log()[-3000:]}"
        await asyncio.sleep(0.01)
        now = await stages(server)
    deaths = {r: now[r]["restarts"] - before[r] for r in GPU_STAGES}
    return begin, result, deaths, {r: now[r]["last_recovery_ms"] for r in GPU_STAGES if deaths[r]}


async def part_apart(_server, wanted):
    with Server(*OPTIONS, environment=ENVIRONMENT, log_level=os.environ.get("LOG_LEVEL", "info")) as server:
        code, _, err = await asyncio.to_thread(server.command, "swap", "verify", os.path.join(BUILD, "faulty", "verify"))
        assert code == 0, err
        await outcomes(server, [marked("verify", "gpu:once")])
        begin = time.monotonic()
        sharing = (await asyncio.to_thread(server.status))["device"]["sharing"]
        assert sharing == "apart", f"after a fault the stages share the GPU by {sharing}"
        while (sharing := (await asyncio.to_thread(server.status))["device"]["sharing"]) == "apart":
            assert time.monotonic() < begin + 90, "they stay apart"
            await asyncio.sleep(0.1)
        seconds = time.monotonic() - begin
        while not all(s["state"] == "ready" for r, s in (await stages(server)).items() if r in GPU_STAGES):
            assert time.monotonic() < begin + 100, "they do not get ready again"
            await asyncio.sleep(0.01)
        assert sharing == "mps" and await outcomes(server, BODIES[:STREAMS]) == wanted[:STREAMS], sharing
        say(f"apart after a fault, back under MPS after {seconds:.1f} quiet seconds; then {STREAMS} outputs, all exact")
        show_log(server)


async def part_daemon(server, wanted):
    status = await asyncio.to_thread(server.status)
    if status["device"]["sharing"] != "mps":
        say(f"skipped: the stages share the GPU by {status['device']['sharing']}")
        return
    load = Load(server, wanted)

    async def work():
        hits = []
        for _ in range(3):
            await asyncio.sleep(0.4)
            status = await asyncio.to_thread(server.status)
            pids = {s["name"]: s["pid"] for s in status["stages"]}
            moment = time.monotonic()
            kill(status["device"]["mps_pid"])
            while True:
                now = await stages(server)
                if all(now[r]["state"] == "ready" and now[r]["pid"] != pids[r] for r in GPU_STAGES):
                    break
                assert time.monotonic() < moment + 60, f"no recovery:\n{server.log()[-3000:]}"
                await asyncio.sleep(0.01)
            hits.append((moment, {r: now[r]["last_recovery_ms"] for r in GPU_STAGES}))
        return hits
    report("SIGKILL of the MPS daemon", load, await load.during(work()))


async def part_launcher(_server, _wanted):
    """A server of its own; its end is looked at from outside: no process, no file, and the GPU's memory is free for another one."""
    s = Server(*OPTIONS, environment=ENVIRONMENT)
    try:
        kill(s.pid)
        s.process.wait()
        begin = time.monotonic()
        s.expect_nothing_left()
        say(f"the launcher was killed: nothing of the server is left after {1000 * (time.monotonic() - begin):.0f} ms")
    finally:
        s.kill_everything()


PARTS = {"kill": part_kill, "all": part_all, "daemon": part_daemon, "access": part_access, "launcher": part_launcher}
LONG_PARTS = {"apart": part_apart}  # only when named


async def campaign(server, names):
    wanted = await outcomes(server, BODIES)
    again = await outcomes(server, BODIES)
    assert wanted == again, "two undisturbed runs differ"
    for name in names:
        begin = time.monotonic()
        await (PARTS | LONG_PARTS)[name](server, wanted)
        say(f"{name}: passed in {time.monotonic() - begin:.1f} s")


def main():
    names = sys.argv[1:] or list(PARTS)
    unknown = [n for n in names if n not in PARTS and n not in LONG_PARTS]
    if unknown:
        print(f"unknown part {unknown[0]}; there are {', '.join(PARTS | LONG_PARTS)}")
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # a time limit: our server goes with us
    if not os.path.exists("/dev/nvidiactl"):
        print("skip: no GPU")
        return 77
    with Server(*OPTIONS) as s:
        say(s.out().strip().splitlines()[-1])
        sharing = s.status()["device"]["sharing"]
        assert sharing == ("time-slice" if os.environ.get("SHARING") == "time-slice" else "mps") or not shutil.which("nvidia-cuda-mps-control"), f"the stages share the GPU by {sharing}"
        try:
            asyncio.run(campaign(s, names))
        except BaseException:
            print(s.log()[-6000:], flush=True)
            raise
    print("faults: passed", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
