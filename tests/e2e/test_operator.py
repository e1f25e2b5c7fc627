#!/usr/bin/env python3
"""What an operator reads: /health, /metrics, the Allow header of a wrong method, a stored response. `sluice status` is looked at in test_supervision.py."""
import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile

from server import BUILD, ROOT, SLUICE, Server, clean_environment, main, wait_until
from wsclient import http, run

SAMPLE = re.compile(r'^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[a-z_]+="[^"\\]*",?)*)\})? (-?[0-9.e+-]+)$')
BODY = {"input": "Spell the word river.", "max_output_tokens": 20, "temperature": 0}


def scrape(s):
    """/metrics, parsed strictly: {family: {labels: value}}. Each sample belongs to the family declared last."""
    status, head, data = asyncio.run(http(s, "GET", "/metrics"))
    assert status == 200 and head["content-type"].startswith("text/plain; version=0.0.4"), (status, head)
    text, kinds, found = data.decode(), {}, {}
    assert text.endswith("\n")
    for line in text.splitlines():
        if line.startswith("# HELP "):
            family = line.split()[2]
            assert family not in kinds and len(line.split()) > 3, f"declared twice, or without a text: {line}"
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert name == family and kind in ("counter", "gauge", "histogram"), line
            assert (kind == "counter") == name.endswith("_total"), f"a counter ends in _total, nothing else does: {line}"
            kinds[name] = kind
        else:
            m = SAMPLE.match(line)
            assert m, f"not a sample: {line!r}"
            name = re.sub("_(bucket|sum|count)$", "", m[1]) if kinds[family] == "histogram" else m[1]
            assert name == family, f"{line} stands under {family}"
            values = found.setdefault(m[1], {})
            assert m[2] not in values, f"twice: {line}"
            values[m[2]] = float(m[3])
    return found


def check_histogram(found, name, count):
    counts = list(found[name + "_bucket"].values())
    assert counts == sorted(counts) and list(found[name + "_bucket"])[-1] == 'le="+Inf"', (name, counts)
    assert counts[-1] == found[name + "_count"][None] == count and found[name + "_sum"][None] > 0, (name, counts, found[name + "_count"])


def test_metrics():
    with Server() as s:
        before = scrape(s)
        tokens = []
        for _ in range(3):
            usage = json.loads(asyncio.run(http(s, "POST", "/v1/responses", BODY))[2])["usage"]
            tokens.append((usage["input_tokens"], usage["output_tokens"]))
        assert asyncio.run(http(s, "POST", "/v1/responses", {"input": 5}))[0] == 400
        after = scrape(s)
        status = s.status()

    def grown(name, labels=None):
        return after[name][labels] - before[name][labels]
    assert grown("sluice_requests_total") == 3 and grown("sluice_requests_refused_total") == 1
    assert grown("sluice_prompt_tokens_total") == sum(t[0] for t in tokens) and grown("sluice_generation_tokens_total") == sum(t[1] for t in tokens)
    assert grown("sluice_request_success_total", 'finished_reason="stop"') == 3 and grown("sluice_request_success_total", 'finished_reason="failed"') == 0
    assert after["sluice_num_requests_running"][None] == after["sluice_num_requests_waiting"][None] == 0
    for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds", "request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds"):
        check_histogram(after, "sluice_" + name, 3)
    running = {f'stage="{x["name"]}"' for x in status["stages"] if x["state"] == "ready" and x["name"] != "launcher"}
    assert after["sluice_stage_up"] == dict.fromkeys(running, 1), "a stage that this server is without is not one that is down"
    assert set(after["sluice_stage_restarts_total"]) == running and all(after["sluice_stage_heartbeats_total"][x] > 0 for x in running)


def test_health_and_methods():
    with Server() as s:
        assert asyncio.run(http(s, "GET", "/health"))[0] == 200
        for path, wrong, allowed in (("/health", "POST", "GET, HEAD, OPTIONS"), ("/v1/models", "DELETE", "GET, HEAD, OPTIONS"), ("/v1/responses", "PUT", "GET, POST, OPTIONS"),
                                     ("/v1/chat/completions", "GET", "POST, OPTIONS")):
            status, head, data = asyncio.run(http(s, wrong, path))
            assert status == 405 and head["allow"] == allowed and json.loads(data)["error"]["code"] == "method_not_allowed", (path, status, head, data)
        for path in ("/v1/responses/resp_1/input_items", "/v1/responses/", "/v1/embeddings"):
            status, _, data = asyncio.run(http(s, "GET", path))
            assert status == 404 and path in json.loads(data)["error"]["message"], (path, status, data)
        assert asyncio.run(run(s, BODY)).final


def test_a_stored_response_outlives_the_gateway():
    """GET /v1/responses/{id} from a gateway that has not loaded its tokenizer yet: the same log probabilities, not empty ones."""
    with Server() as s:
        wanted = json.loads(asyncio.run(http(s, "POST", "/v1/responses", {**BODY, "top_logprobs": 2}))[2])
        assert wanted["output"][0]["content"][0]["logprobs"], wanted
        pid = s.stage("gateway")["pid"]
        os.kill(pid, signal.SIGKILL)
        wait_until("another gateway", lambda: s.stage("gateway")["state"] == "ready" and s.stage("gateway")["pid"] != pid)
        status, _, data = asyncio.run(http(s, "GET", "/v1/responses/" + wanted["id"]))
        found = json.loads(data)
        assert status == 200 and all(found[k] == wanted[k] for k in wanted if k != "sluice"), (found, wanted)


def test_a_folder_takes_its_own_model():
    """What `make dist` made, put where somebody else has a model/demo beside it."""
    with tempfile.TemporaryDirectory() as where:
        dist = os.path.join(where, "dist")
        os.makedirs(os.path.join(where, "model", "demo"))
        os.makedirs(os.path.join(dist, "model"))
        shutil.copy(SLUICE, dist)
        os.symlink(os.path.abspath(os.path.join(BUILD, "stages")), os.path.join(dist, "stages"))
        os.symlink(os.path.join(ROOT, "model", "demo"), os.path.join(dist, "model", "demo"))
        p = subprocess.Popen([os.path.join(dist, "sluice"), "serve", "--port", "0", "--run-dir", os.path.join(where, "run"), "--device", "cpu"],
                             stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=clean_environment())
        said = [next(p.stdout)]
        while said[-1] and "serving" not in said[-1]:
            said.append(p.stdout.readline())
        p.send_signal(signal.SIGTERM)
        p.communicate()
        assert "serving sluice-demo" in said[-1] and p.returncode == 0, said


if __name__ == "__main__":
    main(test_metrics, test_health_and_methods, test_a_stored_response_outlives_the_gateway, test_a_folder_takes_its_own_model)
