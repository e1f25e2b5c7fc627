#!/usr/bin/env python3
"""Drafting changes how fast text appears, never which text: n-gram, MTP and DSpark drafters against none, killed and exchanged in mid-stream.

In CI a slice of a few minutes; SLUICE_DRAFT_FULL=1 runs the whole: 500 prompts greedy and sampled, 1 and 8 streams, every drafter; 500 kills and swaps of the draft
stage under load. SLUICE_DRAFT_WAYS and SLUICE_DRAFT_WHEN name a part of it ("mtp", "always") and SLUICE_DRAFT_OPTIONS more options for the servers ("--threads 2"): parts run side by
side on a machine with many cores. Names of tests as arguments: those alone. Drafters that do not lie beside the demo model are left out, and said to be.
"""
import asyncio
import os
import random
import signal
import sys
import tempfile
import time

from server import ROOT, Server, main, scaled, skip
from streams import Streams
from test_supervision import refuse
from workload import body
from wsclient import gather_limited, run

FULL = os.environ.get("SLUICE_DRAFT_FULL") == "1"
OPTIONS = os.environ.get("SLUICE_DRAFT_OPTIONS", "").split()  # of every server of the first and the third test
TIME_LIMIT_S = 900  # for the runner; the whole takes about an hour on two cores
DEMO = os.path.join(ROOT, "model", "demo")
NEURAL = [w for w, folder in (("mtp", "assistant"), ("dspark", "dspark")) if os.path.exists(os.path.join(DEMO, folder, "config.json"))]
PROMPTS = 500 if FULL else max(8, scaled(16))
BLOWS = 500 if FULL else max(6, scaled(20))
ACCEPT_LEAST = 1.8  # tokens a round of the demo's drafters on the texts below; far below what they reach


def prompts(sampled):
    """The same requests with and without sampling: penalties, thinking, tools and long prompts among them."""
    out = []
    for i in range(PROMPTS):
        b = body(i, least=16, most=64 if FULL else 48, seed=7)
        for key in ("temperature", "top_p", "top_k", "seed", "min_p"):
            b.pop(key, None)
        b.update({"temperature": 1.0, "seed": 1000 + i} if sampled else {"temperature": 0})
        out.append(b)
    return out


async def outcomes(server, requests, streams):
    return [r.outcome() for r in await gather_limited(streams, [run(server, b) for b in requests])]


def check(what, got, wanted):
    wrong = [i for i, (a, b) in enumerate(zip(got, wanted, strict=True)) if a != b]
    assert not wrong, f"{what}: {len(wrong)} of {len(got)} differ, the first is request {wrong[0]}\n  wanted {wanted[wrong[0]][:1000]}\n  got    {got[wrong[0]][:1000]}"


def test_same_text():
    """Every drafter, greedy and sampled, alone and in company, all drafts scored and where they pay."""
    wanted = {}
    with Server("--draft", "none", *OPTIONS) as s:
        for sampled in (False, True):
            wanted[sampled] = asyncio.run(outcomes(s, prompts(sampled), 8))
    ways = ["ngram", *NEURAL]
    for way in os.environ.get("SLUICE_DRAFT_WAYS", " ".join(ways)).split():
        for when in os.environ.get("SLUICE_DRAFT_WHEN", "always paying").split():
            with Server("--draft", way, "--draft-when", when, *OPTIONS) as s:
                for sampled in (False, True):
                    for streams in (1, 8):
                        check(f"--draft {way} --draft-when {when}, {'sampled' if sampled else 'greedy'}, {streams} streams", asyncio.run(outcomes(s, prompts(sampled), streams)), wanted[sampled])
                status = s.status()
                assert status["drafter"]["kind"] == way, status["drafter"]
                print(f"     --draft {way} --draft-when {when}: 4 x {PROMPTS} outputs the same, {status['rates']['draft_acceptance']:.2f} of the drafts accepted", flush=True)
    if len(ways) < 3:
        print(f"     left out, not beside the demo model: {', '.join({'mtp', 'dspark'} - set(ways))}", flush=True)


def test_drafts_are_good():
    """A neural drafter's own choice is mostly the model's, greedy and sampled alike: the noise is the same."""
    if not NEURAL:
        skip("no neural drafter beside the demo model")
    for way in NEURAL:
        with Server("--draft", way, "--draft-when", "always") as s:
            for temperature in (0, 1.0):
                requests = [{"input": text, "max_output_tokens": 120, "temperature": temperature, "seed": 3 + i} for i, text in enumerate(
                    ("Tell me a story about a fox.", "Count from 1 to 40.", "Tell me about yourself.", "Make a JSON object with river 7 and stone 9."))]
                figures = [r.response["sluice"] for r in asyncio.run(gather_limited(1, [run(s, b) for b in requests]))]
                tokens = sum(f["accepted_tokens"] + f["rounds"] for f in figures)
                length = tokens / sum(f["rounds"] for f in figures)
                print(f"     {way}, temperature {temperature}: {length:.2f} tokens a round", flush=True)
                assert length > ACCEPT_LEAST, figures


def test_few_tokens():
    """A drafter that may propose the most frequent tokens only is right less often; the text is the same. What is no such list is refused."""
    if not NEURAL:
        skip("no neural drafter beside the demo model")
    with Server("--draft", "none") as s:
        wanted = [asyncio.run(outcomes(s, prompts(sampled)[:6], 2)) for sampled in (False, True)]
    for way in NEURAL:
        with Server("--draft", way, "--draft-when", "always", "--draft-vocab", "512") as s:
            for sampled in (False, True):
                check(f"{way}, 512 tokens", asyncio.run(outcomes(s, prompts(sampled)[:6], 2)), wanted[sampled])
            assert asyncio.run(run(s, {"input": "Tell me a story about a fox.", "max_output_tokens": 60, "temperature": 0})).response["sluice"]["accepted_tokens"] > 0
        refuse(["--draft", way, "--draft-vocab", "4096"], "draft-vocab 4096", "2048 tokens")


async def blows(server, ways, count, pause_s):
    """Kills the draft stage and has it draft in other ways, by turns; how often each was done."""
    done, rng = {"kill": 0, "swap": 0}, random.Random(5)
    while done["kill"] + done["swap"] < count:
        await asyncio.sleep(rng.uniform(*pause_s))
        if rng.random() < 0.6:
            done["kill"] += bool(await asyncio.to_thread(server.signal, "draft", signal.SIGKILL))
            continue
        code, _, err = await asyncio.to_thread(server.command, "swap", "draft", rng.choice(ways))
        assert code == 0 or "under way" in err, err
        done["swap"] += code == 0
    return done


def test_killed_and_exchanged():
    """SIGKILL and `sluice swap draft` while 8 streams run: zero differing bytes."""
    requests = [body(i, least=60, most=160, seed=9) for i in range(16)]
    ways = ["ngram", "none", *NEURAL]
    with Server("--draft", NEURAL[0] if NEURAL else "ngram", "--draft-when", "always", "--restart-budget", "100000", *OPTIONS) as s:
        wanted = asyncio.run(outcomes(s, requests, 8))

        streams = Streams(s, requests, wanted)
        done = asyncio.run(streams.during(blows(s, ways, BLOWS, (0.02, 0.12))))
        print(f"     {done['kill']} kills and {done['swap']} swaps of the draft stage among {', '.join(ways)}; {streams.done} responses, all the same", flush=True)
        others = {r: n for r, n in s.restarts().items() if n and r != "draft"}
        assert not others, f"other stages died: {others}"
        code, _, err = s.command("swap", "draft", "--default")
        assert code == 0, err
        s.settle()
        check("afterwards", asyncio.run(outcomes(s, requests, 8)), wanted)


def test_stopped_in_mid_stream():
    """A drafter that hangs costs a round's wait now and then, nothing else: it is not waited for, and nobody is restarted."""
    requests = [body(i, least=60, most=120, seed=11) for i in range(8)]
    with Server("--draft", NEURAL[0] if NEURAL else "ngram", "--draft-when", "always", "--hang-timeout-ms", "600000") as s:
        begin = time.monotonic()
        wanted = asyncio.run(outcomes(s, requests, 4))
        awake = time.monotonic() - begin
        pid = s.signal("draft", signal.SIGSTOP)
        begin = time.monotonic()
        check("with a stopped drafter", asyncio.run(outcomes(s, requests, 4)), wanted)
        stopped = time.monotonic() - begin
        status = s.status()
        print(f"     {awake:.2f} s with the drafter, {stopped:.2f} s with it stopped", flush=True)
        assert stopped < 10 * awake + 5, "the streams waited for a drafter that says nothing"
        assert s.pid_of("draft") == pid and not any(s.restarts().values()), status["stages"]
        os.kill(pid, signal.SIGCONT)
        check("awake again", asyncio.run(outcomes(s, requests, 4)), wanted)


def test_wrong_drafters():
    """What cannot draft for this model is refused in words, at the start and in mid-stream."""
    other = os.path.join(ROOT, "tests", "golden", "assistant")
    with tempfile.TemporaryDirectory() as d:
        for folder, words in ((DEMO, ("architectures", "Gemma4UnifiedAssistantForCausalLM")), (other, ("drafter", "48", "256")), (d, ("config.json",)),
                              (os.path.join(d, "nowhere"), ("nowhere",)), (os.path.join(DEMO, "config.json"), ("not a folder",))):
            refuse(["--draft", folder], *words)
    refuse(["--draft", "dspark"] if "dspark" not in NEURAL else ["--draft", "magic"], "dspark")
    with Server() as s:
        wanted = asyncio.run(outcomes(s, [body(0)], 1))
        for folder, words in ((other, ("48", "256")), (DEMO, ("architectures",)), (os.path.join(ROOT, "tests"), ("config.json",))):
            code, _, err = s.command("swap", "draft", folder)
            assert code != 0 and all(w in err for w in words), f"swap draft {folder}: {code} {err!r}"
            print(f"     swap draft {os.path.relpath(folder, ROOT)}: {err.strip()}", flush=True)
            s.settle()
            assert s.status()["drafter"]["kind"] == "ngram"
        assert asyncio.run(outcomes(s, [body(0)], 1)) == wanted


TESTS = (test_same_text, test_drafts_are_good, test_few_tokens, test_killed_and_exchanged, test_stopped_in_mid_stream, test_wrong_drafters)

if __name__ == "__main__":
    main(*[t for t in TESTS if not sys.argv[1:] or t.__name__ in sys.argv[1:]])
