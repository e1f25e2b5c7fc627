#!/usr/bin/env python3
"""Stages are replaced while they serve, by other executables and by a program in another language; no byte changes."""
import asyncio
import os
import shutil
import sys

from server import BUILD, ROOT, SANITIZED, Server, main, skip, wait_until
from workload import bodies
from wsclient import gather_limited, http, run, sse

LOOKUP = os.path.join(ROOT, "examples", "draft_lookup.py")
BODIES = bodies(8, least=60, most=120) if SANITIZED else bodies(8, least=150, most=300)

TIME_LIMIT_S = 900  # for the runner: a slow machine, a sanitized build


async def outcomes(server):
    return [r.outcome() for r in await gather_limited(8, [run(server, b) for b in BODIES])]


async def during(server, wanted, action):
    """Does `action` (blocking) while streams run, one batch after the other until it is done; its result. Every stream must be as wanted."""
    acting, batches = None, 0
    while not acting or not acting.done():
        batch = asyncio.ensure_future(outcomes(server))
        await asyncio.sleep(0.2)
        assert not batch.done(), "the streams ended before anything was swapped: nothing was shown"
        acting = acting or asyncio.ensure_future(asyncio.to_thread(action))
        assert await batch == wanted, "the streams changed"
        batches += 1
    return await acting


def swap(server, wanted, role, exe):
    try:
        return asyncio.run(during(server, wanted, lambda: server.command("swap", role, exe)))
    except AssertionError as e:
        raise AssertionError(f"swap {role} {exe}: {e}") from None


def check_swap(server, wanted, role, exe, exe_shown):
    code, _, err = swap(server, wanted, role, exe)
    assert code == 0, f"swap {role} {exe}: {err}"
    stage = server.stage(role)
    assert stage["exe"] == exe_shown and stage["state"] == "ready", stage
    assert asyncio.run(outcomes(server)) == wanted, f"after the swap of {role} by {exe} the outputs differ"


def test_python_drafter():
    try:
        import msgpack  # noqa: F401  (the drafter runs under the same python3)
    except ImportError:
        skip("the Python drafter needs the package msgpack")
    environment = {"PATH": os.path.dirname(sys.executable) + ":" + os.environ["PATH"]}
    with Server("--draft-when", "always", environment=environment) as s:
        wanted = asyncio.run(outcomes(s))
        before = s.status()["rates"]["draft_acceptance"]
        check_swap(s, wanted, "draft", LOOKUP, LOOKUP)
        pid = s.stage("draft")["pid"]
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            assert b"draft_lookup.py" in f.read()
        asked = next(r for r in s.status()["rings"] if r["name"] == "draft-verify")["messages"]
        drafted = s.status()["rates"]["draft_acceptance"]
        result = asyncio.run(run(s, BODIES[4]))
        answered = next(r for r in s.status()["rings"] if r["name"] == "draft-verify")["messages"] - asked
        figures = result.response["sluice"]
        print(f"     drafter in Python: {answered} proposals for one stream, {figures}; acceptance {before:.2f} with ours, {drafted:.2f} with both", flush=True)
        assert answered > 0 and figures["draft_tokens"] > 0, "no proposal came from the swapped drafter"
        assert s.stage("draft")["restarts"] == 0
        # it can die, too: the same executable comes back
        os.kill(pid, 9)
        wait_until("the Python drafter is back", lambda: s.stage("draft")["state"] == "ready" and s.stage("draft")["pid"] != pid, 60)
        assert s.stage("draft")["exe"] == LOOKUP
        check_swap(s, wanted, "draft", "--default", os.path.join(BUILD, "stages", "draft"))
        assert "level=error" not in s.log(), s.log()[-2000:]
        # and one that does not leave when it is asked to is made to, also where nobody takes its place
        stubborn = os.path.join(s.dir, "stubborn")
        with open(stubborn, "w") as f:
            f.write("#!/usr/bin/env python3\nimport runpy, signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nsignal.signal = lambda *_: None\n"
                    f"runpy.run_path({LOOKUP!r}, run_name='__main__')\n")
        os.chmod(stubborn, 0o755)
        check_swap(s, wanted, "draft", stubborn, stubborn)
        code, _, err = s.command("swap", "draft", "none")
        assert code == 0, err
        wait_until("the drafter that ignores SIGTERM is gone", lambda: s.stage("draft")["state"] == "off" and "other" not in s.processes().values(), 20)


def test_same_stage_from_elsewhere():
    with Server() as s:
        wanted = asyncio.run(outcomes(s))
        for role in ("verify", "detokenize", "tokenize", "prefill", "draft", "gateway", "vision"):
            where = os.path.join(s.dir, "elsewhere")
            os.makedirs(where, exist_ok=True)
            exe = shutil.copy(os.path.join(BUILD, "stages", role), os.path.join(where, role))
            check_swap(s, wanted, role, exe, exe)
            check_swap(s, wanted, role, "--default", os.path.join(BUILD, "stages", role))
            print(f"     {role}: there and back in mid-stream, 8 streams the same", flush=True)
        assert sum(s.restarts().values()) == 0, s.restarts()


def test_gateway_leaves_over_http():
    """HTTP cannot resume: who waits for an answer when the gateway is replaced hears that, in a status line or in an event."""
    with Server() as s:
        async def go():
            body = {"input": "Tell me a story.", "max_output_tokens": 4000, "ignore_eos": True}
            events = sse(s, "/v1/responses", {**body, "stream": True})
            first = await events.__anext__()
            assert first["type"] == "response.created", first
            whole = asyncio.ensure_future(http(s, "POST", "/v1/responses", body))
            await asyncio.sleep(0.3)
            acting = asyncio.ensure_future(asyncio.to_thread(s.command, "swap", "gateway", "--default"))
            last = first
            async for event in events:
                last = event
            assert last["type"] == "error" and last["error"]["code"] == "server_restarts", last
            status, headers, data = await whole
            assert status == 503 and b"server_restarts" in data and headers.get("retry-after"), (status, headers, data)
            assert (await acting)[0] == 0
            assert (await run(s, BODIES[0])).final
        asyncio.run(go())


def test_broken_executable():
    """What cannot run is refused or taken back, and the default serves on."""
    with Server() as s:
        wanted = asyncio.run(outcomes(s))
        broken = os.path.join(s.dir, "broken")
        with open(broken, "w") as f:
            f.write("#!/bin/sh\necho this stage is broken >&2\nexit 3\n")
        os.chmod(broken, 0o755)
        silent = os.path.join(s.dir, "silent")
        with open(silent, "w") as f:
            f.write("#!/bin/sh\nexec sleep 3600\n")
        os.chmod(silent, 0o755)
        for role, exe, words in (("verify", broken, "broken"), ("draft", broken, "broken"), ("verify", os.path.join(BUILD, "stages", "draft"), "draft"),
                                 ("draft", silent, "silent"), ("draft", "/nonexistent/stage", "/nonexistent/stage"), ("draft", ROOT, ROOT)):
            code, _, err = swap(s, wanted, role, exe)
            assert code != 0 and words in err, f"swap {role} {exe}: code {code}, {err!r}"
            wait_until("the default is back", lambda r=role: s.stage(r)["state"] == "ready" and s.stage(r)["exe"] == os.path.join(BUILD, "stages", r), 60)
            print(f"     swap {role} {os.path.basename(exe)}: {err.strip()}", flush=True)
        for words in (["swap", "keeper", broken], ["swap", "nonsense", broken], ["swap"], ["swap", "draft"]):
            code, _, err = s.command(*words)
            assert code != 0 and err, f"{words}: code {code}"
        assert asyncio.run(outcomes(s)) == wanted


if __name__ == "__main__":
    main(test_same_stage_from_elsewhere, test_python_drafter, test_gateway_leaves_over_http, test_broken_executable)
