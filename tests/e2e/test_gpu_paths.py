#!/usr/bin/env python3
"""How the product lives on a GPU, without one: tests/faults/fake_gpu.c in place of the CUDA library, fake_mps.py in place of the MPS daemon.

The same kills as tests/gpu/faults.py makes on a real GPU (its code runs here), and what a machine may lack: no driver, no daemon,
a daemon that dies or says nothing. Every output is compared token by token with an undisturbed run.
"""
import asyncio
import os
import signal
import subprocess
import sys
import tempfile

from server import BUILD, ROOT, Server, main, skip, wait_until

os.environ.update(MODEL="demo", KILLS="4", STREAMS="4")
sys.path.insert(0, os.path.join(ROOT, "tests", "gpu"))
import drafter_files  # noqa: E402
import faults  # noqa: E402
from serve import metrics  # noqa: E402
from wsclient import run  # noqa: E402

TIME_LIMIT_S = 300
OPTIONS = list(faults.OPTIONS)
LIBRARY = os.path.join(BUILD, "faulty", "libfake_gpu.so")


class Machine:
    """A directory that stands first in PATH, with or without a daemon; the environment that shows it."""

    def __init__(self, mps=True, **more):
        self.dir = tempfile.TemporaryDirectory(prefix="sluice-bin-")
        if mps:
            os.symlink(os.path.join(ROOT, "tests", "faults", "fake_mps.py"), os.path.join(self.dir.name, "nvidia-cuda-mps-control"))
        self.environment = {"PATH": f"{self.dir.name}:{os.environ['PATH']}", "SLUICE_CUDA_LIBRARY": LIBRARY, **more}

    def server(self, *options, **more):
        return Server("--device", "cuda", "--max-context", "4096", *options, environment=self.environment, **more)


def need_fakes():
    if not os.path.exists(LIBRARY):
        skip(f"{os.path.relpath(LIBRARY, ROOT)} is not built (make faulty)")


def refuse(environment, options, *said, code):
    s = Server(*options, environment=environment, wait=False)
    try:
        assert s.wait_exit() == code, f"exit {s.process.returncode} instead of {code}\n{s.log()}"
        for words in said:
            assert words in s.log(), f"\"{words}\" is not in\n{s.log()}"
        s.expect_nothing_left()
    finally:
        s.kill_everything()


def test_every_death_under_mps():
    need_fakes()
    machine = Machine()
    with machine.server() as s:
        assert s.status()["device"]["sharing"] == "mps", s.log()
        assert "fake GPU" in s.out() and "mps" in s.out()
        faults.ENVIRONMENT, faults.OPTIONS = machine.environment, OPTIONS
        asyncio.run(faults.campaign(s, list(faults.PARTS)))
        assert "MPS" not in s.log().replace("event=mps", ""), "it fell back"


def test_every_death_by_turns():
    need_fakes()
    machine = Machine(mps=False)
    faults.ENVIRONMENT, faults.OPTIONS = machine.environment, [*OPTIONS, "--gpu-sharing", "time-slice"]
    with machine.server("--gpu-sharing", "time-slice") as s:
        assert s.status()["device"]["sharing"] == "time-slice"
        asyncio.run(faults.campaign(s, ["kill", "all", "access"]))


def test_a_daemon_that_says_nothing_of_a_fault():
    """The stage finds its context lost: the other one goes with it, both come back apart, nobody is refused."""
    need_fakes()
    with Machine(FAKE_MPS="silent").server() as s:
        async def work():
            once = faults.marked("verify", "gpu:once")
            wanted = await faults.outcomes(s, faults.BODIES + [once])
            assert s.command("swap", "verify", os.path.join(BUILD, "faulty", "verify"))[0] == 0
            got = await faults.outcomes(s, faults.BODIES + [once])
            assert got == wanted, "the outputs differ"
        asyncio.run(work())
        restarts = s.restarts()
        assert s.status()["device"]["sharing"] == "apart"
        assert restarts["verify"] == 1 and restarts["prefill"] == 1 and "quarantine" not in s.log(), s.log()[-3000:]


def test_a_keeper_killed_while_it_loads():
    need_fakes()
    machine = Machine(FAKE_GPU_LOAD_US="8000")
    with Machine().server() as s:
        wanted = asyncio.run(faults.outcomes(s, faults.BODIES[:4]))
    with machine.server(wait=False) as s:
        for _ in range(2):
            wait_until("the keeper loads", lambda: (st := s.try_status()) and st["device"]["name"] == "cuda" and 0 < st["device"]["load"]["bytes"] < st["device"]["load"]["bytes_total"], 60, 0.005)
            assert s.stage("verify")["state"] != "ready"
            pid = s.signal("keeper", signal.SIGKILL)
            wait_until("another keeper", lambda: s.stage("keeper")["pid"] not in (0, pid), 20, 0.005)
        s.wait_ready()
        assert asyncio.run(faults.outcomes(s, faults.BODIES[:4])) == wanted
        assert s.restarts()["keeper"] == 2


def test_a_neural_drafter():
    """Right and wrong drafts from the device, deaths of the drafter alone and of everybody: the outputs are those without drafts."""
    need_fakes()
    with Machine().server("--draft", "none") as s:
        wanted = asyncio.run(faults.outcomes(s, faults.BODIES))
    with tempfile.TemporaryDirectory(prefix="sluice-assistant-") as folder:
        drafter_files.write_assistant(folder, drafter_files.DEMO)
        with Machine().server("--draft", folder, "--draft-when", "always") as s:
            assert asyncio.run(faults.outcomes(s, faults.BODIES)) == wanted
            accepted = asyncio.run(metrics(s))["sluice_draft_tokens_accepted_total"]
            assert accepted > 100, accepted

            async def work():
                running = asyncio.create_task(faults.outcomes(s, faults.BODIES))
                for _ in range(3):
                    await asyncio.sleep(0.05)
                    s.signal("draft", signal.SIGKILL)
                return await running
            assert asyncio.run(work()) == wanted
            assert s.command("swap", "draft", "ngram")[0] == 0 and asyncio.run(faults.outcomes(s, faults.BODIES)) == wanted
            assert s.command("swap", "draft", folder)[0] == 0
            faults.ENVIRONMENT, faults.OPTIONS = Machine().environment, OPTIONS
            asyncio.run(faults.campaign(s, ["access"]))
            assert s.status()["device"]["sharing"] in ("apart", "mps") and s.stage("draft")["state"] == "ready"


def test_drafts_over_the_device():
    """One stream: drafts reach the step on the device, and the output is that without drafts, whatever dies; by turns, or when told so, they go over the hosts."""
    need_fakes()
    bodies = [b for b in faults.BODIES if b.get("temperature", 1) == 0 or b.get("top_k", 64) <= 64]

    async def one_by_one(s):
        return [(await run(s, b)).outcome() for b in bodies]

    async def under_kills(s):
        running = asyncio.create_task(one_by_one(s))
        for stage in ("draft", "verify", "draft", "draft"):
            await asyncio.sleep(0.04)
            s.signal(stage, signal.SIGKILL)
        return await running

    with Machine().server("--draft", "none") as s:
        wanted = asyncio.run(one_by_one(s))
    with tempfile.TemporaryDirectory(prefix="sluice-assistant-") as folder:
        drafter_files.write_assistant(folder, drafter_files.DEMO)
        for options, handed in ((["--draft-signals", "device"], True), ([], True), (["--draft-signals", "host"], False), (["--gpu-sharing", "time-slice"], False)):
            with Machine().server("--draft", folder, "--draft-when", "always", *options) as s:
                assert asyncio.run(one_by_one(s)) == wanted
                m = asyncio.run(metrics(s))
                steps, ahead = m["sluice_draft_handed_over_total"], m["sluice_draft_ahead_total"]
                assert (ahead > steps / 2) == handed, (options, steps, ahead)   # a round behind a step begins before anybody asks
                assert (steps > 20) == handed and m["sluice_draft_tokens_accepted_total"] > 50, (options, steps)
                if handed:
                    assert asyncio.run(under_kills(s)) == wanted


def test_random_weights():
    need_fakes()
    with Machine().server("--random-weights", "gemma-4-12b", "--weights-dtype", "fp8") as s:
        status = s.status()
        assert status["model"] == "gemma-4-12b" and status["device"]["weights"] == "fp8", status["device"]
        assert asyncio.run(faults.outcomes(s, faults.BODIES[:2]))
    refuse(Machine().environment, ["--random-weights", "gemma-9"], "the built-in shapes are gemma-4-12b", code=100)
    refuse(Machine().environment, ["--random-weights", "gemma-4-12b", "--model", "model/demo"], "leave model out", code=100)
    refuse({}, ["--random-weights", "gemma-4-12b", "--device", "cpu"], "needs a GPU", code=100)


def test_what_a_machine_may_lack():
    need_fakes()
    none = Machine(FAKE_GPU_MISSING="1").environment
    with Server(environment=none) as s:
        lines = [x for x in s.log().splitlines() if "computing on the CPU" in x]
        assert len(lines) == 1 and "there is no NVIDIA driver" in lines[0], s.log()
        assert s.status()["device"]["name"] == "cpu"
    with Server("--device", "cpu", environment=none) as s:
        assert "computing on" not in s.log()
    refuse(none, ["--device", "cuda"], "there is no NVIDIA driver", "--device cpu", code=111)
    refuse({"SLUICE_CUDA_LIBRARY": "/nowhere/lib.so"}, ["--device", "cuda"], "/nowhere/lib.so", code=111)
    refuse(Machine(mps=False, FAKE_GPU_FREE_MIB="3000").environment, ["--device", "cuda"], "the GPU has 3000 MiB free", "--weights-dtype fp8", code=111)
    refuse(Machine(mps=False).environment, ["--device", "cuda", "--kv-cache-mib", "1", "--max-context", "8192"], "--kv-cache-mib", "--max-context", code=100)
    for broken in (Machine(FAKE_MPS="broken"), Machine(mps=False)):
        if not os.path.lexists("/usr/bin/nvidia-cuda-mps-control"):
            with broken.server() as s:
                assert s.status()["device"]["sharing"] == "time-slice", s.log()
                assert len([x for x in s.log().splitlines() if "take turns" in x]) == 1, s.log()
            refuse(broken.environment, ["--device", "cuda", "--gpu-sharing", "mps"], "--gpu-sharing mps", "time-slice", code=111)


def test_formats_of_checkpoints():
    """Every format goes to the GPU as it is, and is named; what cannot be converted is refused."""
    need_fakes()
    with tempfile.TemporaryDirectory() as where:
        for form, shown in (("fp8-row", "fp8"), ("fp8-block128", "fp8-block128"), ("nvfp4a16", "nvfp4")):
            out = os.path.join(where, form)
            done = subprocess.run([os.path.join(BUILD, "sluice"), "quantize", os.path.join(ROOT, "model", "demo"), out, "--format", form], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            with Server(model=out, environment=Machine(mps=False).environment) as s:
                status = s.status()["device"]
                assert status["name"] == "cuda" and status["weights"] == shown, status
                assert asyncio.run(faults.outcomes(s, faults.BODIES[:2]))
            refuse(Machine(mps=False).environment, ["--device", "cuda", "--weights-dtype", "bf16", "--model", out], "--device cuda: ", f"q_proj is {shown}", code=111)
            if shown != "fp8":
                refuse(Machine(mps=False).environment, ["--device", "cuda", "--weights-dtype", "fp8", "--model", out], "only bf16 becomes something else", code=111)


def test_nothing_stays_when_the_launcher_is_killed():
    need_fakes()
    machine = Machine()
    s = machine.server()
    try:
        assert os.path.isdir(os.path.join(s.run_dir, "mps"))
        os.kill(s.pid, signal.SIGKILL)
        s.process.wait()
        s.expect_nothing_left()
    finally:
        s.kill_everything()


if __name__ == "__main__":
    main(test_every_death_under_mps, test_every_death_by_turns, test_a_daemon_that_says_nothing_of_a_fault, test_a_keeper_killed_while_it_loads,
         test_a_neural_drafter, test_drafts_over_the_device, test_random_weights, test_what_a_machine_may_lack, test_formats_of_checkpoints, test_nothing_stays_when_the_launcher_is_killed)
