#!/usr/bin/env python3
"""The launcher: how a server starts, refuses to start, tells what it does, sets requests aside that kill stages, and ends."""
import asyncio
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

from server import BUILD, ROLES, ROOT, SANITIZED, SLUICE, Server, clean_environment, main, skip, wait_until
from workload import bodies
from wsclient import Closed, Refused, Result, ServerError, WebSocket, follow, gather_limited, http, run

DEMO = os.path.join(ROOT, "model", "demo")
BODIES = bodies(4, least=100, most=200)
LONG = {**bodies(1)[0], "max_output_tokens": 1500}
CONFIG, MISSING = 100, 111  # exit codes

TIME_LIMIT_S = 900  # for the runner: a slow machine, a sanitized build


# ---- the end

def test_launcher_killed():
    """SIGKILL of the launcher, idle and in mid-stream: no process, no socket, no shared memory stays."""
    for busy in (False, True):
        s = Server()
        try:
            if busy:
                async def go():
                    ws = await WebSocket.open(s)
                    await ws.send({"type": "response.create", **LONG})
                    for _ in range(6):
                        await ws.receive()
                    os.kill(s.pid, signal.SIGKILL)
                    return await ws.receive_close()
                closed = asyncio.run(go())
                assert closed.code in (1001, 1006, 1011, 1012), closed
            else:
                os.kill(s.pid, signal.SIGKILL)
            s.process.wait()
            s.expect_nothing_left()
        finally:
            s.kill_everything()


def test_launcher_and_keeper_killed():
    """Not even the keeper can sweep: the next server of this run directory does, and takes it over."""
    with Server() as s:
        keeper = s.stage("keeper")["pid"]
        os.kill(s.pid, signal.SIGSTOP)
        os.kill(keeper, signal.SIGKILL)
        os.kill(s.pid, signal.SIGKILL)
        s.process.wait()
        wait_until("the stages are gone", lambda: not s.processes(), 30)
        again = subprocess.Popen([SLUICE, "serve", "--port", "0", "--run-dir", s.run_dir], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                 env=clean_environment(SLUICE_E2E_TAG=s.tag))
        s.process, s.pid = again, again.pid
        s.memory.clear()
        s.wait_ready()
        assert asyncio.run(run(s, BODIES[0])).final
        assert s.stop() == 0
        wait_until("all processes are gone", lambda: not s.processes(), 30)
        assert not os.path.exists(os.path.join(s.run_dir, "control.sock"))
        shutil.rmtree(s.run_dir, ignore_errors=True)  # it was there before this server: not its to remove


async def status_of(s):
    return (await http(s, "GET", "/health"))[0]


def test_drain():
    """SIGTERM: what runs ends well, what is new is refused with 503, then the server ends with 0."""
    with Server("--drain-timeout", "120") as s:
        async def go():
            ws = await WebSocket.open(s)
            idle = await WebSocket.open(s)
            result = Result()
            await ws.send({"type": "response.create", **LONG})
            while result.next_sequence < 6:
                result.add(await ws.receive())
            os.kill(s.pid, signal.SIGTERM)
            for _ in range(600):
                if (await asyncio.to_thread(s.try_status) or {}).get("phase") == "draining":
                    break
                await asyncio.sleep(0.01)
            status, headers, data = await http(s, "GET", "/health")
            assert status == 503 and b"drain" in data, (status, data)
            status, headers, data = await http(s, "POST", "/v1/responses", BODIES[0])
            assert status == 503 and "retry-after" in headers, (status, headers, data)
            assert json.loads(data)["error"]["message"]
            try:
                await run(s, BODIES[0], come_back=False)
                raise AssertionError("a draining server took a request")
            except ServerError as e:
                assert e.status == 503, e
            except Refused as e:
                assert e.status == 503, e
            except Closed as e:
                assert e.code in (1001, 1012, 1013), e
            await follow(ws, result)
            assert result.response["usage"]["output_tokens"] == LONG["max_output_tokens"]
            closed = [await w.receive_close() for w in (ws, idle)]
            assert all(c.code in (1001, 1012) for c in closed), f"connections of a stopping server closed with {closed}"
        asyncio.run(go())
        assert s.wait_exit() == 0
        s.expect_nothing_left()


def test_second_sigterm_stops():
    with Server("--drain-timeout", "600") as s:
        async def go():
            ws = await WebSocket.open(s)
            await ws.send({"type": "response.create", **LONG, "max_output_tokens": 6000})
            for _ in range(4):
                await ws.receive()
            os.kill(s.pid, signal.SIGTERM)
            await asyncio.sleep(0.5)
            assert s.process.poll() is None and s.status()["phase"] == "draining", "it did not wait for the stream"
            began = time.monotonic()
            os.kill(s.pid, signal.SIGTERM)
            closed = await ws.receive_close()
            assert closed.code in (1001, 1012), closed
            return began
        began = asyncio.run(go())
        assert s.wait_exit() == 0
        print(f"     from the second SIGTERM to the end: {time.monotonic() - began:.2f} s", flush=True)
        s.expect_nothing_left()


def test_drain_timeout_and_commands():
    """`sluice drain` gives up on a stream that is too long; `sluice stop` ends at once."""
    with Server("--drain-timeout", "1") as s:
        async def go():
            ws = await WebSocket.open(s)
            await ws.send({"type": "response.create", **LONG, "max_output_tokens": 7000})
            for _ in range(4):
                await ws.receive()
            code, _, err = await asyncio.to_thread(s.command, "drain")
            assert code == 0, err
            return (await ws.receive_close()).code
        assert asyncio.run(go()) in (1001, 1012)
        assert s.wait_exit() == 0
        s.expect_nothing_left()
    with Server() as s:
        assert s.command("stop")[0] == 0
        assert s.wait_exit() == 0
        s.expect_nothing_left()
        code, _, err = s.command("status")
        assert code == MISSING and s.run_dir in err, (code, err)


def test_restart_budget():
    """More deaths within a minute than allowed: the server gives up with 1, and leaves nothing."""
    with Server("--restart-budget", "4") as s:
        for _ in range(5):
            wait_until("detokenize is ready", lambda: s.process.poll() is not None or (s.try_status() and s.is_settled()), 60)
            s.signal("detokenize", signal.SIGKILL)
        assert s.wait_exit() == 1, s.process.returncode
        assert "restart budget" in s.log()
        s.expect_nothing_left()
        s.finished = True


def test_stopped_while_it_starts():
    """SIGTERM at every moment of the start, also beside the keeper's word that the model is read: it ends, and leaves nothing."""
    held = 0
    for ms in range(2, 50, 4):
        s = Server(wait=False)
        try:
            time.sleep(ms / 1000)
            os.kill(s.pid, signal.SIGSTOP)  # what happens meanwhile, it finds all at once
            time.sleep(0.3)
            held += "keeper" in s.processes().values() and "stage=gateway" not in s.log()
            os.kill(s.pid, signal.SIGTERM)
            os.kill(s.pid, signal.SIGCONT)
            assert s.wait_exit(60) in (0, -signal.SIGTERM), s.process.returncode  # by the signal itself before there is anything to put away
            s.expect_nothing_left()
        finally:
            s.kill_everything()
    print(f"     {held} of 12 were held between the keeper's start and the model", flush=True)


def test_everything_stood_still():
    """A suspended machine, a frozen container: all processes stop for longer than the hang timeout. When they go on, nobody is taken for dead."""
    with Server("--hang-timeout-ms", "3000") as s:
        wanted = asyncio.run(run(s, BODIES[0])).outcome()

        async def go():
            async def freeze(event, ws):
                if not event["type"].endswith(".delta") or thawed:
                    return
                thawed.append(True)
                everybody = sorted(s.processes(), key=lambda pid: pid != s.pid)  # the launcher first: it goes on before the hearts beat again
                for pid in everybody:
                    os.kill(pid, signal.SIGSTOP)
                code, _, err = await asyncio.to_thread(s.command, "status")
                assert code == MISSING and s.run_dir in err and "5 s" in err, (code, err)
                for pid in everybody:
                    os.kill(pid, signal.SIGCONT)
                    await asyncio.sleep(0.3 if pid == s.pid else 0)
            thawed = []
            result = await run(s, BODIES[0], on_event=freeze, come_back=False)
            assert thawed and result.outcome() == wanted
        asyncio.run(go())
        assert sum(s.restarts().values()) == 0, s.restarts()


def test_a_starved_stage_is_not_hung():
    """A processor that another process has for itself: the stage that waits for it is silent for longer than a hang may be, is left alone, and nobody is accused. It need not wait for ever."""
    cpu = min(os.sched_getaffinity(0))

    def starve(s, role, count=8):
        os.sched_setaffinity(s.pid_of(role), {cpu})
        os.sched_setscheduler(s.pid_of(role), os.SCHED_IDLE, os.sched_param(0))
        hogs = [subprocess.Popen([sys.executable, "-c", f"import os\nos.sched_setaffinity(0, {{{cpu}}})\nprint(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE) for _ in range(count)]
        for hog in hogs:
            hog.stdout.readline()
        return hogs

    def end(hogs):
        for hog in hogs:
            hog.kill()
            hog.communicate()

    if not os.path.exists("/proc/self/schedstat"):
        skip("this kernel does not say what a thread has run")
    with Server("--hang-timeout-ms", "400", "--threads", "1", "--draft", "none") as s:
        wanted = asyncio.run(run(s, BODIES[0])).outcome()
        got = []
        answer = threading.Thread(target=lambda: got.append(asyncio.run(run(s, BODIES[0], come_back=False)).outcome()))
        hogs = starve(s, "verify")
        try:
            answer.start()
            wait_until("verify is silent for longer than a hang", lambda: "event=starved stage=verify" in s.log(), 30)
        finally:
            end(hogs)
        answer.join(60)
        assert got == [wanted] and sum(s.restarts().values()) == 0, s.log()[-3000:]
        if os.nice(0) > 0:
            print("     not tried how long it may be silent: we are niced, and starve nobody for good")
            return
        again = threading.Thread(target=lambda: got.append(asyncio.run(run(s, BODIES[0])).outcome()))
        hogs = starve(s, "verify", 24)  # one that works: after a turn it owes the others ten seconds and more; one that sleeps gets its turn soon
        try:
            again.start()
            wait_until("ten times as long is enough", lambda: s.restarts()["verify"] > 0, 60)
        finally:
            end(hogs)
        again.join(60)
        assert got == [wanted, wanted], s.log()[-3000:]
        s.settle()
        assert asyncio.run(run(s, BODIES[0])).outcome() == wanted


# ---- refusing to start

def refuse(words, *names, code=CONFIG, environment=None):
    """`sluice serve WORDS` must end with `code` and a message that names each of `names`."""
    with tempfile.TemporaryDirectory(prefix="sluice-e2e-") as d:
        words = [str(w) for w in words]
        port = [] if "--port" in words else ["--port", "0"]
        run_dir = [] if "--run-dir" in words else ["--run-dir", os.path.join(d, "run")]
        p = subprocess.run([SLUICE, "serve", *port, *run_dir, *words], capture_output=True, text=True, timeout=120, cwd=ROOT,
                           env=clean_environment(**(environment or {})))
        assert p.returncode == code, f"{words}: exit code {p.returncode}, expected {code}\n{p.stderr[-1500:]}"
        for name in names:
            assert name in p.stderr, f"{words}: the message does not name {name!r}:\n{p.stderr[-1500:]}"
        if run_dir:
            assert not os.path.exists(os.path.join(d, "run")), f"{words}: the run directory stays"
        wrong = [line for line in p.stderr.splitlines() if any(str(n) in line for n in names)]
        print(f"     {' '.join(words)[-50:]:50} {code}: {wrong[-1][:150] if wrong else ''}", flush=True)


def test_bad_options():
    refuse(["--modle", "x"], "--modle")
    refuse(["serve"], "serve")
    refuse(["--threads", "many"], "threads", "many")
    refuse(["--threads=-1"], "threads", "-1")
    refuse(["--port", "65536"], "port", "65536")
    refuse(["--max-sequences", "0"], "max-sequences")
    refuse(["--slots", "3", "--max-sequences", "4"], "slots", "max-sequences")
    refuse(["--draft", "magic"], "draft", "magic")
    refuse(["--device", "tpu"], "device", "tpu")
    refuse(["--kv-cache-dtype", "int8"], "kv-cache-dtype", "int8")
    refuse(["--prefix-cache", "maybe"], "prefix-cache", "maybe")
    refuse(["--log-level", "loud"], "log-level", "loud")
    refuse(["--model"], "--model")
    refuse(["--host", "0.0.0.0"], "0.0.0.0", "--api-key-file")
    refuse(["--host", "no.such.host.invalid"], "no.such.host.invalid")
    refuse(["--api-key-file", "/nonexistent/keys"], "/nonexistent/keys")
    refuse(["--config", "/nonexistent/config"], "/nonexistent/config")
    refuse([], "SLUICE_THREADS", "few", environment={"SLUICE_THREADS": "few"})
    with tempfile.TemporaryDirectory() as d:
        path = os.path.join(d, "sluice.conf")
        with open(path, "w") as f:
            f.write("# a comment\nthreads = 1\nspeed = high\n")
        refuse(["--config", path], path, "speed")
        refuse(["--run-dir", os.path.join(d, "x" * 120)], "x" * 120)
        refuse(["--run-dir", os.path.join(d, "no", "such", "place")], os.path.join(d, "no", "such", "place"))
        refuse(["--run-dir", path], path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refuse(["--port", port], str(port))
    for limit, word in (("-n 100", "256"), ("-f 100", "File too large")):
        p = subprocess.run(["sh", "-c", f'ulimit {limit}; exec "$@" 2>&1 | cat', "sh", SLUICE, "serve", "--port", "0", "--run-dir", os.path.join(tempfile.gettempdir(), "sluice-none")],
                           stdout=subprocess.PIPE, text=True, timeout=60, cwd=ROOT, env=clean_environment())
        assert word in p.stdout, (limit, p.stdout)
    for words, name in ((["serv"], "serv"), (["status", "--jsn"], "--jsn")):
        p = subprocess.run([SLUICE, *words], capture_output=True, text=True, timeout=60, env=clean_environment())
        assert p.returncode == CONFIG and name in p.stderr, (words, p.returncode, p.stderr)
    for words in (["--help"], ["--version"], *([c, "--help"] for c in ("serve", "status", "swap", "drain", "stop", "inspect", "quantize"))):
        p = subprocess.run([SLUICE, *words], capture_output=True, text=True, timeout=60, env=clean_environment())
        assert p.returncode == 0 and p.stdout and not p.stderr, (words, p)
    for role in (*ROLES, "vision", "fetch"):  # a stage started by hand says what it is
        p = subprocess.run([os.path.join(BUILD, "stages", role)], capture_output=True, text=True, timeout=60, env=clean_environment())
        assert p.returncode == MISSING and role in p.stderr and "sluice serve" in p.stderr, (role, p)


def test_second_server_in_run_dir():
    with Server() as s:
        refuse(["--run-dir", s.run_dir], s.run_dir)
        assert s.is_settled() and asyncio.run(run(s, BODIES[0])).final


def broken_model(edit):
    """A copy of the demo model (weights linked), changed by edit(directory)."""
    d = tempfile.mkdtemp(prefix="sluice-e2e-model-")
    for name in os.listdir(DEMO):
        if os.path.isfile(os.path.join(DEMO, name)):  # its drafters are models of their own
            shutil.copy(os.path.join(DEMO, name), os.path.join(d, name))
    edit(d)
    return d


def change(name, transform):
    def edit(d):
        path = os.path.join(d, name)
        with open(path, "rb") as f:
            data = f.read()
        with open(path, "wb") as f:
            f.write(transform(data))
    return edit


def config_with(**changes):
    def transform(data):
        config = json.loads(data)
        config.update({k: v for k, v in changes.items() if k != "text"})
        config["text_config"].update(changes.get("text", {}))
        return json.dumps(config).encode()
    return change("config.json", transform)


def header_with(edit):
    """Changes the JSON header of model.safetensors."""
    def transform(data):
        size, = struct.unpack("<Q", data[:8])
        header = json.loads(data[8:8 + size])
        edit(header)
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data[8 + size:]
    return change("model.safetensors", transform)


def first_tensor(header):
    return next(k for k in header if k != "__metadata__")


def test_bad_models():
    refuse(["--model", "/nonexistent/model"], "/nonexistent/model")
    cases = (
        ("no config", lambda d: os.unlink(os.path.join(d, "config.json")), ["config.json"]),
        ("no weights", lambda d: os.unlink(os.path.join(d, "model.safetensors")), ["safetensors"]),
        ("no tokenizer", lambda d: os.unlink(os.path.join(d, "tokenizer.json")), ["tokenizer.json"]),
        ("config cut off", change("config.json", lambda b: b[:len(b) // 2]), ["config.json"]),
        ("config empty", change("config.json", lambda b: b""), ["config.json"]),
        ("config is a list", change("config.json", lambda b: b"[]"), ["config.json"]),
        ("other architecture", config_with(architectures=["LlamaForCausalLM"], model_type="llama"), ["llama"]),
        ("heads do not divide", config_with(text={"num_attention_heads": 3}), ["head"]),
        ("no layers", config_with(text={"num_hidden_layers": 0}), ["num_hidden_layers"]),
        ("other width", config_with(text={"hidden_size": 384}), ["384"]),
        ("text where a number belongs", config_with(text={"hidden_size": "wide"}), ["hidden_size"]),
        ("weights cut off", change("model.safetensors", lambda b: b[:len(b) // 2]), ["model.safetensors"]),
        ("weights shorter than their header", change("model.safetensors", lambda b: b[:100]), ["model.safetensors"]),
        ("weights empty", change("model.safetensors", lambda b: b""), ["model.safetensors"]),
        ("header too long", change("model.safetensors", lambda b: struct.pack("<Q", 1 << 60) + b[8:]), ["model.safetensors"]),
        ("header is not JSON", change("model.safetensors", lambda b: b[:8] + b"}" + b[9:]), ["model.safetensors"]),
        ("tensor missing", header_with(lambda h: h.pop(first_tensor(h))), ["tensor "]),
        ("offsets beyond the file", header_with(lambda h: h[first_tensor(h)].update(data_offsets=[0, 1 << 40])), ["model.safetensors"]),
        ("unknown element type", header_with(lambda h: h[first_tensor(h)].update(dtype="Q3")), ["Q3"]),
        ("tokenizer is not JSON", change("tokenizer.json", lambda b: b[:-20]), ["tokenizer.json"]),
        ("template does not parse", change("chat_template.jinja", lambda b: b + b"{% if %}"), ["template"]),
    )
    for name, edit, words in cases:
        d = broken_model(edit)
        try:
            refuse(["--model", d], *words)
        except AssertionError as e:
            raise AssertionError(f"{name}: {e}") from None
        finally:
            shutil.rmtree(d)
    refuse(["--kv-cache-mib", "1", "--max-context", "8192"], "--max-context")


# ---- telling what it does

def test_status():
    with Server() as s:
        async def go():
            result = asyncio.ensure_future(run(s, LONG))
            while not (status := await asyncio.to_thread(s.status))["kv_cache"]["full_pages_used"]:
                assert not result.done(), "the response ended before it was seen"
            return status, await asyncio.to_thread(s.command, "status"), await result
        status, (code, human, err), _ = asyncio.run(go())
        assert {x["name"] for x in status["stages"]} == {"launcher", "vision", "fetch", *ROLES}
        for x in status["stages"]:
            if x["name"] == "fetch" or (x["name"] == "vision" and status["media"] is None):  # nobody asked for it; a model of text alone
                assert x["state"] == "off" and x["pid"] == 0, x
                continue
            assert x["state"] == "ready" and x["restarts"] == 0 and x["pid"] > 0, x
        assert status["phase"] == "serving" and status["address"].startswith("http://127.0.0.1:")
        assert status["sequences"]["live"] == 1 and status["sequences"]["list"][0]["state"] in ("tokenizing", "waiting", "prefilling", "decoding"), status["sequences"]
        assert {r["name"] for r in status["rings"]} >= {"verify-draft", "draft-verify", "detokenize-gateway"}
        assert status["kv_cache"]["full_pages_used"] > 0 and status["kv_cache"]["full_pages"] >= status["kv_cache"]["full_pages_used"]
        assert code == 0 and not err
        for word in (*ROLES, status["address"], status["model"], "verify-draft", "tok/s"):
            assert word in human, f"`sluice status` does not show {word}:\n{human}"
        end = s.status()["rates"]
        assert end["requests"] == 1 and end["output_tokens"] == LONG["max_output_tokens"] and end["decode_tokens_per_busy_s"] > 0, end
        assert s.log().count("level=info event=ready") >= len(ROLES)
        assert s.address in s.out(), "the address was not printed"


def test_quiet_by_default():
    with Server(log_level="warn") as s:
        asyncio.run(run(s, BODIES[0]))
        assert len(s.log().splitlines()) <= 3, s.log()
        os.kill(s.stage("draft")["pid"], signal.SIGKILL)
        wait_until("the death is told", lambda: "event=death stage=draft" in s.log(), 30)
        s.settle()


def test_health():
    """503 with the reason while a needed stage is away, 200 again when it is back."""
    with Server("--hang-timeout-ms", "4000" if not SANITIZED else "12000") as s:
        async def go():
            status, _, data = await http(s, "GET", "/health")
            assert status == 200, (status, data)
            pid = s.stage("verify")["pid"]
            os.kill(pid, signal.SIGKILL)
            seen = None
            for _ in range(400):  # it may be back before we look
                status, _, data = await http(s, "GET", "/health")
                if status == 503:
                    seen = data
                if status == 200 and seen:
                    break
                if status == 200:
                    await asyncio.to_thread(s.settle)
                    os.kill(s.stage("verify")["pid"], signal.SIGKILL)
            assert seen and b"verify" in seen, f"no 503 that names verify: {seen}"
            print(f"     {seen.decode().strip()[:200]}", flush=True)
        asyncio.run(go())
        s.settle()
        assert asyncio.run(status_of(s)) == 200


# ---- requests that kill

def fault(role, kind):
    return {"input": f"FAULT:{role}:{kind} please answer", "max_output_tokens": 60, "ignore_eos": True, "temperature": 0, "return_token_ids": True}


async def poison(s, role, kind):
    """The poisoned request beside three good streams: (its error text, how often others differed)."""
    good = asyncio.ensure_future(gather_limited(3, [run(s, b) for b in BODIES[:3]]))
    await asyncio.sleep(0.1)
    try:
        result = await run(s, fault(role, kind))
        error = result.response["error"] if result.final["type"] == "response.failed" else None
        words = f"{error['code']}: {error['message']}" if error else None
    except ServerError as e:
        words = f"{e.error.get('code')}: {e.error.get('message')}"
    return words, [r.outcome() for r in await good]


def test_quarantine():
    """A request that kills (or hangs) the same stage twice gets an error that names it; the streams beside it do not notice."""
    faulty = os.path.join(BUILD, "faulty")
    roles = ("tokenize", "prefill", "verify", "detokenize")
    if not all(os.access(os.path.join(faulty, r), os.X_OK) for r in roles):
        skip("build/faulty is not built (make faulty)")
    hang_ms = 10000 if SANITIZED else 1500
    with Server("--restart-budget", "1000", "--hang-timeout-ms", hang_ms) as s:
        s.faults_wanted = True
        wanted = [r.outcome() for r in asyncio.run(gather_limited(3, [run(s, b) for b in BODIES[:3]]))]
        for role in roles:
            code, _, err = s.command("swap", role, os.path.join(faulty, role))
            assert code == 0, err
            for kind in ("segv", "abort", "exit", "hang"):
                before = s.restarts()
                words, good = asyncio.run(poison(s, role, kind))
                assert words and role in words, f"{role} {kind}: the error does not name the stage: {words}"
                assert good == wanted, f"{role} {kind}: a stream beside the poisoned one changed"
                s.settle()
                after = s.restarts()
                deaths = after[role] - before[role]
                assert deaths == 2, f"{role} {kind}: {deaths} deaths for one poisoned request, expected 2"
                assert sum(after.values()) - sum(before.values()) == deaths, f"{role} {kind}: other stages died: {before} {after}"
                print(f"     {role} {kind}: {words}", flush=True)
            before = s.restarts()
            spared = asyncio.run(poison(s, role, "segv:once"))
            s.settle()
            assert spared == (None, wanted) and s.restarts()[role] == before[role] + 1, f"{role} segv:once: {spared[0]}; a request that killed once must be answered"
            assert s.stage(role)["exe"] == os.path.join(faulty, role)
            code, _, err = s.command("swap", role, "--default")
            assert code == 0, err
        assert [r.outcome() for r in asyncio.run(gather_limited(3, [run(s, b) for b in BODIES[:3]]))] == wanted


def test_poisoned_draft_costs_only_its_drafts():
    """A request that kills the drafter goes on without drafts, with the same bytes."""
    exe = os.path.join(BUILD, "faulty", "draft")
    if not os.access(exe, os.X_OK):
        skip("build/faulty is not built (make faulty)")
    with Server("--restart-budget", "1000") as s:
        s.faults_wanted = True
        wanted = asyncio.run(run(s, fault("draft", "segv"))).outcome()
        code, _, err = s.command("swap", "draft", exe)
        assert code == 0, err
        assert asyncio.run(run(s, fault("draft", "segv"))).outcome() == wanted
        s.settle()
        assert 1 <= s.stage("draft")["restarts"] <= 3, s.stage("draft")


if __name__ == "__main__":
    main(test_launcher_killed, test_launcher_and_keeper_killed, test_drain, test_second_sigterm_stops, test_drain_timeout_and_commands, test_restart_budget, test_stopped_while_it_starts, test_everything_stood_still, test_a_starved_stage_is_not_hung,
         test_bad_options, test_second_server_in_run_dir, test_bad_models, test_status, test_quiet_by_default, test_health, test_quarantine,
         test_poisoned_draft_costs_only_its_drafts)
