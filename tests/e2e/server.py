"""A Sluice server of a test's own: start it, ask it, harm it, stop it, and see that nothing of it stays behind.

Each server gets a free port, a run directory in a temporary directory, and a tag in its environment by which all of
its processes can be found, whatever they are called and whoever their parent is now. Python's standard library only.

Environment: SLUICE_BUILD        build directory, default "build"
             SLUICE_TEST_SCALE   1 (default): the full counts; 0.1: a tenth of them
"""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import uuid

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.path.join(ROOT, os.environ.get("SLUICE_BUILD", "build"))
SLUICE = os.path.join(BUILD, "sluice")
SCALE = float(os.environ.get("SLUICE_TEST_SCALE", "1"))
SANITIZED = "asan" in os.path.basename(BUILD) or "ubsan" in os.path.basename(BUILD)
ROLES = ("keeper", "gateway", "tokenize", "prefill", "draft", "verify", "detokenize")
READY_TIMEOUT_S = 180  # a sanitized build on two busy cores
TAG = "SLUICE_E2E_TAG"
REPORTS = ("ERROR: AddressSanitizer", "ERROR: LeakSanitizer", "runtime error:")


def scaled(count, least=1):
    """A count of the issue, as many as this run has time for."""
    return max(least, round(count * SCALE))


def skip(reason):
    print(f"skip: {reason}")
    sys.exit(77)


def need_build():
    """Skips when there is nothing to test yet."""
    for path in (SLUICE, os.path.join(BUILD, "stages", "gateway")):
        if not os.access(path, os.X_OK):
            skip(f"{os.path.relpath(path, ROOT)} is not built")


def made(make):
    """model(): the name of a folder that make(folder) has filled, made when it is first asked for and gone with the process."""
    folders = []

    def model():
        if not folders:
            folders.append(tempfile.TemporaryDirectory(prefix="sluice-model-"))
            make(folders[0].name)
        return folders[0].name
    return model


def wait_until(what, condition, timeout_s=60, every_s=0.02):
    """The first true value of condition(); AssertionError naming `what` when it does not come."""
    until = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < until, f"{what}: not within {timeout_s} s"
        time.sleep(every_s)


def percentile(values, p):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(p / 100 * len(ordered)))] if ordered else float("nan")


def clean_environment(**more):
    """The environment without settings of another server."""
    own = ("SLUICE_BUILD", "SLUICE_TEST_SCALE")
    return {**{k: v for k, v in os.environ.items() if not k.startswith("SLUICE_") or k in own}, **more}


class Server:
    """`with Server("--threads", "1") as s:` starts, waits until it serves, and on leaving stops it and checks for remains."""

    def __init__(self, *options, model=None, environment=None, log_level="info", wait=True):
        self.dir = tempfile.mkdtemp(prefix="sluice-e2e-")
        self.run_dir = os.path.join(self.dir, "run")
        self.log_path = os.path.join(self.dir, "log")
        self.out_path = os.path.join(self.dir, "out")
        self.tag = uuid.uuid4().hex
        self.memory = set()  # (device, inode) of every memfd seen
        self.finished = False
        self.faults_wanted = False  # sanitizer reports in the log are what the test asked for
        words = [SLUICE, "serve", "--port", "0", "--run-dir", self.run_dir, "--log-level", log_level]
        words += (["--model", model] if model else []) + [str(o) for o in options]
        with open(self.log_path, "wb") as log, open(self.out_path, "wb") as out:
            self.process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=log, cwd=ROOT,
                                            env=clean_environment(**{TAG: self.tag}, **(environment or {})))
        self.pid = self.process.pid
        if wait:
            try:
                self.wait_ready()
            except BaseException:
                self.kill_everything()
                raise

    # ---- what it says

    def log(self):
        with open(self.log_path, errors="replace") as f:
            return f.read()

    def out(self):
        with open(self.out_path, errors="replace") as f:
            return f.read()

    def command(self, *words, timeout_s=60):
        """`sluice WORDS --run-dir ...`: (exit code, stdout, stderr)."""
        p = subprocess.run([SLUICE, *words, "--run-dir", self.run_dir], capture_output=True, text=True, timeout=timeout_s, env=clean_environment())
        return p.returncode, p.stdout, p.stderr

    def try_status(self):
        code, out, _ = self.command("status", "--json")
        return json.loads(out) if code == 0 else None

    def status(self):
        status = self.try_status()
        assert status, f"sluice status --json does not answer; log:\n{self.log()[-3000:]}"
        return status

    def stage(self, role):
        return next(s for s in self.status()["stages"] if s["name"] == role)

    def restarts(self):
        return {s["name"]: s["restarts"] for s in self.status()["stages"]}

    def is_settled(self):
        """Every stage that this configuration has is ready."""
        status = self.try_status()
        return bool(status) and status["phase"] == "serving" and all(s["state"] in ("ready", "off") for s in status["stages"])

    def wait_ready(self, timeout_s=READY_TIMEOUT_S):
        def look():
            assert self.process.poll() is None, f"the server ended with {self.process.returncode} before it was ready:\n{self.log()[-3000:]}"
            return os.path.exists(os.path.join(self.run_dir, "control.sock")) and self.is_settled()

        try:
            wait_until("the server is ready", look, timeout_s, 0.05)
        except AssertionError as e:
            raise AssertionError(f"{e}\n{self.log()[-3000:]}") from None
        status = self.status()
        self.address = status["address"]
        self.host, port = re.fullmatch(r"http://(.*):(\d+)", self.address).groups()
        self.port = int(port)
        self.model = status["model"]
        self.note_memory()

    def settle(self, timeout_s=READY_TIMEOUT_S):
        wait_until("all stages are ready", self.is_settled, timeout_s)

    # ---- its processes

    def pid_of(self, role):
        """Pid of the role's process now, or 0. Read from /proc: costs the server nothing."""
        return next((pid for pid, name in self.processes().items() if name == role), 0)

    def processes(self):
        """{pid: role} of all its living processes; another executable, or a child before its exec, is called "other"."""
        found = {}
        for pid in tagged_processes(self.tag):
            if pid == self.pid:
                found[pid] = "launcher"
                continue
            try:
                with open(f"/proc/{pid}/cmdline", "rb") as f:
                    name = os.path.basename(f.read().split(b"\0")[0].decode())
            except OSError:
                continue
            found[pid] = name if name in ROLES or name in ("vision", "fetch") else "other"  # the vision stage's workers are called as it is
        return found

    def signal(self, role, number):
        """Sends a signal to a stage; the pid, or 0 when it is not there at this moment."""
        pid = next((s["pid"] for s in self.status()["stages"] if s["name"] == role), 0)
        if pid:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                return 0
        return pid

    def note_memory(self):
        """Remembers which memfds exist, to see later that nobody holds them any more."""
        for name in os.listdir(f"/proc/{self.pid}/fd"):
            path = f"/proc/{self.pid}/fd/{name}"
            try:
                if os.readlink(path).startswith("/memfd:"):
                    st = os.stat(path)
                    self.memory.add((st.st_dev, st.st_ino))
            except OSError:
                pass

    def memory_bytes(self):
        """{"rss": private memory of all processes, "memfd": bytes allocated in shared segments, "stage": {name: rss}, "segment": {name: bytes}}."""
        rss, shared, segment = {}, {}, {}
        for pid, name in self.processes().items():
            try:
                with open(f"/proc/{pid}/status") as f:
                    fields = dict(line.split(":", 1) for line in f if ":" in line)
                rss[name] = rss.get(name, 0) + 1024 * int(fields.get("RssAnon", "0 kB").split()[0])
                for fd in os.listdir(f"/proc/{pid}/fd"):
                    path = f"/proc/{pid}/fd/{fd}"
                    try:
                        target = os.readlink(path)
                        if target.startswith("/memfd:"):
                            st = os.stat(path)
                            shared[(st.st_dev, st.st_ino)] = st.st_blocks * 512, target[len("/memfd:"):].split(" ")[0]
                    except OSError:
                        pass
            except OSError:
                pass
        for size, label in shared.values():
            segment[label] = segment.get(label, 0) + size
        return {"rss": sum(rss.values()), "memfd": sum(segment.values()), "stage": rss, "segment": segment}

    def descriptors(self):
        """{role: open descriptors}; of the vision stage's processes the stage itself, which has more than its workers"""
        out = {}
        for pid, name in self.processes().items():
            try:
                out[name] = max(out.get(name, 0), len(os.listdir(f"/proc/{pid}/fd")))
            except OSError:
                pass
        return out

    # ---- its end

    def wait_exit(self, timeout_s=60):
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the server does not end; log:\n{self.log()[-3000:]}") from None

    def stop(self):
        """Stops it in order; the exit code."""
        if self.process.poll() is None:
            self.note_memory()
            self.command("stop")
        return self.wait_exit()

    def remains(self):
        """What is left of it, in words; [] when nothing is."""
        left = [f"process {pid} ({name})" for pid, name in self.processes().items()]
        if os.path.exists(os.path.join(self.run_dir, "control.sock")):
            left.append("the control socket")
        elif os.path.exists(self.run_dir):
            left.append("the run directory")
        if self.memory:
            left += [f"shared memory held by process {pid}" for pid in holders(self.memory)]
        return left

    def expect_nothing_left(self, timeout_s=30):
        try:
            wait_until("nothing is left", lambda: not self.remains(), timeout_s, 0.05)
        except AssertionError:
            raise AssertionError(f"left behind: {', '.join(self.remains())}\n{self.log()[-2000:]}") from None

    def kill_everything(self):
        """For a test that failed: its processes, by their pids, and its directory."""
        for pid in [self.pid, *tagged_processes(self.tag)]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait()
        shutil.rmtree(self.dir, ignore_errors=True)

    def finish(self, expect_code=0):
        """Stops, checks the exit code and that nothing stays."""
        if self.finished:
            return
        self.finished = True
        code = self.stop()
        assert code == expect_code, f"exit code {code}, expected {expect_code}; log:\n{self.log()[-3000:]}"
        self.expect_nothing_left()
        if not self.faults_wanted:
            for words in REPORTS:
                at = self.log().find(words)
                assert at < 0, f"sanitizer report:\n{self.log()[max(0, at - 500):at + 6000]}"
        shutil.rmtree(self.dir, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is None:
            try:
                self.finish()
            except BaseException:
                self.kill_everything()
                raise
            return
        if kind is not SystemExit:
            print(f"---- end of the server's log\n{self.log()[-4000:]}\n----", file=sys.stderr)
        self.kill_everything()


def tagged_processes(tag):
    """Pids of all processes, whatever became of their parents, that carry the tag; the dead that nobody waited for do not count."""
    mark, found = f"{TAG}={tag}".encode(), []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/environ", "rb") as f:
                if mark in f.read().split(b"\0"):
                    found.append(int(name))
        except OSError:
            pass
    return found


def holders(memory):
    """Pids of processes that hold one of the memfds by descriptor or mapping."""
    found = set()
    inodes = {str(inode) for _, inode in memory}
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            for fd in os.listdir(f"/proc/{name}/fd"):
                path = f"/proc/{name}/fd/{fd}"
                try:
                    if os.readlink(path).startswith("/memfd:sluice"):
                        st = os.stat(path)
                        if (st.st_dev, st.st_ino) in memory:
                            found.add(int(name))
                except OSError:
                    pass
            with open(f"/proc/{name}/maps") as f:
                for line in f:
                    if "/memfd:sluice" in line and line.split()[4] in inodes:
                        found.add(int(name))
        except OSError:
            pass
    return found


def main(*tests):
    """Runs test functions in order and exits: 0, 1 when one failed, 77 when all were skipped. An assertion's words are the report."""
    need_build()
    failed = skipped = 0
    for test in tests:
        began = time.monotonic()
        try:
            test()
        except SystemExit as e:
            if e.code != 77:
                raise
            skipped += 1
        except BaseException as e:
            failed += 1
            print(f"FAIL {test.__name__}: {e}", flush=True)
            if not isinstance(e, AssertionError) or not str(e):
                traceback.print_exc()
            if isinstance(e, KeyboardInterrupt):
                break
        else:
            print(f"ok   {test.__name__} ({time.monotonic() - began:.1f} s)", flush=True)
    print(f"{len(tests) - failed - skipped} of {len(tests)} passed, {skipped} skipped (scale {SCALE:g}, build {os.path.relpath(BUILD, ROOT)})", flush=True)
    sys.exit(1 if failed else 77 if skipped == len(tests) else 0)
