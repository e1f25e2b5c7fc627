#!/usr/bin/env python3
"""tests/smoke.py DIR [--own-libraries] - one server of the executables in DIR, from start to stop.

Starts `DIR/sluice serve`, asks the same question three times (whole, streamed, and streamed while every stage is
killed once), and expects the same bytes each time; then stops it and expects exit code 0, nothing left behind, and
no sanitizer report in the log. --own-libraries: every shared library but libc's must come from DIR/lib.
Only the standard library is needed."""
import http.client
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import urllib.parse

START_LIMIT_S = 90
ANSWER_LIMIT_S = 120
STOP_LIMIT_S = 30
QUESTION = {"messages": [{"role": "user", "content": "Tell me a short story about a lighthouse."}], "max_tokens": 96, "temperature": 0.9, "seed": 7,
            "ignore_eos": True}
LIBC = {"libc", "libm", "libpthread", "libdl", "librt", "libresolv"}
REPORTS = ("AddressSanitizer", "runtime error:", "LeakSanitizer")


def check(condition, text):
    if not condition:
        raise AssertionError(text)


def status(sluice, run_dir):
    answer = subprocess.run([sluice, "status", "--json", "--run-dir", run_dir], capture_output=True, text=True)
    return json.loads(answer.stdout) if answer.returncode == 0 else None


def wait_until_ready(server, sluice, run_dir):
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        check(server.poll() is None, f"the server ended with exit code {server.returncode}")
        now = status(sluice, run_dir)
        if now and all(stage["state"] in ("ready", "off") for stage in now["stages"]):
            return now
        time.sleep(0.1)
    raise AssertionError(f"not ready after {START_LIMIT_S} s: {status(sluice, run_dir)}")


def connect(address):
    where = urllib.parse.urlsplit(address)
    return http.client.HTTPConnection(where.hostname, where.port, timeout=ANSWER_LIMIT_S)


def ask(address, **extra):
    connection = connect(address)
    connection.request("POST", "/v1/chat/completions", json.dumps({**QUESTION, **extra}), {"Content-Type": "application/json"})
    return connection.getresponse()


def whole(address):
    response = ask(address)
    body = response.read()
    check(response.status == 200, f"status {response.status}: {body[:500]}")
    answer = json.loads(body)
    check(answer["usage"]["completion_tokens"] == QUESTION["max_tokens"], f"usage is {answer['usage']}")
    return answer["choices"][0]["message"]["content"]


def streamed(address, on_delta=lambda count: None):
    response, text, count = ask(address, stream=True), "", 0
    check(response.status == 200, f"status {response.status}")
    for line in response:
        if not line.startswith(b"data: ") or line.strip() == b"data: [DONE]":
            continue
        event = json.loads(line[6:])
        check("error" not in event, f"the stream failed: {event}")
        for choice in event["choices"]:
            text += choice["delta"].get("content") or ""
        count += 1
        on_delta(count)
    return text


def killer(sluice, run_dir, killed):
    """Kills one stage after every second delta, each once. The gateway holds this connection: others test its death."""
    left = ["verify", "detokenize", "draft", "prefill", "tokenize", "keeper"]

    def on_delta(count):
        if count % 2 == 0 and left:
            name = left.pop(0)
            pid = next(stage["pid"] for stage in status(sluice, run_dir)["stages"] if stage["name"] == name)
            if pid:
                os.kill(pid, signal.SIGKILL)
                killed.append(name)
    return on_delta


def check_libraries(directory):
    for program in [directory / "sluice", *sorted((directory / "stages").iterdir())]:
        for line in subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout.splitlines():
            name, _, where = line.strip().partition(" => ")
            if where and name.split(".so")[0] not in LIBC:
                check(where.startswith(str(directory)), f"{program.name} takes {name} from {where}")


def talk(server, sluice, run_dir):
    address = wait_until_ready(server, sluice, run_dir)["address"]
    expected = whole(address)
    check(expected, "the answer is empty")
    check(streamed(address) == expected, "the streamed answer differs from the whole one")
    killed = []
    check(streamed(address, killer(sluice, run_dir, killed)) == expected, f"the answer changed when {killed} were killed")
    check(len(killed) >= 3, f"the stream was too short: only {killed} were killed")
    for path in ("/health", "/v1/models", "/metrics", "/"):
        connection = connect(address)
        connection.request("GET", path)
        response = connection.getresponse()
        check(response.status == 200 and response.read(), f"GET {path} gives {response.status}")
    print(f"{len(expected)} characters, the same alone, streamed, and with {len(killed)} stages killed")


def main():
    directory = pathlib.Path(sys.argv[1]).resolve()
    sluice = directory / "sluice"
    if "--own-libraries" in sys.argv:
        check_libraries(directory)
    with tempfile.TemporaryDirectory() as scratch:
        run_dir, log_path = f"{scratch}/run", f"{scratch}/log"
        with open(log_path, "w", encoding="utf-8") as log:
            server = subprocess.Popen([sluice, "serve", "--port", "0", "--run-dir", run_dir, "--max-context", "1024", "--max-sequences", "4"],
                                      stdout=log, stderr=log, cwd=scratch)
        try:
            talk(server, sluice, run_dir)
            server.send_signal(signal.SIGTERM)
            check(server.wait(STOP_LIMIT_S) == 0, f"SIGTERM ended it with exit code {server.returncode}")
            check(not os.path.exists(run_dir), f"left behind: {run_dir}")
            text = open(log_path, encoding="utf-8", errors="replace").read()
            check(not any(word in text for word in REPORTS), "a sanitizer reported")
        except BaseException:
            print(open(log_path, encoding="utf-8", errors="replace").read()[-6000:])
            raise
        finally:
            if server.poll() is None:
                server.kill()
                server.wait()


if __name__ == "__main__":
    main()
