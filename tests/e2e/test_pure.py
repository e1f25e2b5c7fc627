#!/usr/bin/env python3
"""The output is a function of model, request and seed, and of nothing else.

One list of requests (greedy and sampled, short and long prompts, penalties, thinking, tools) is run one after the other
on a plain server; then together, through the other interface, with stages dying under it, and on servers with other
drafting, prefill chunks and thread counts. Text, token ids, usage and the reason for the end must be the same each time.
"""
import asyncio
import json
import signal

from server import ROLES, SCALE, Server, main, scaled
from workload import as_chat, bodies
from wsclient import gather_limited, http, run

COUNT = max(8, scaled(16))
BODIES = bodies(COUNT, least=24, most=96)
reference = []

TIME_LIMIT_S = 900  # for the runner: a slow machine, a sanitized build


def compare(what, results):
    for i, (got, wanted) in enumerate(zip(results, reference, strict=True)):
        assert got.outcome() == wanted.outcome(), f"{what}: request {i} differs\n  wanted {wanted.outcome()[:1500]}\n  got    {got.outcome()[:1500]}"
    print(f"     {what}: {len(results)} outputs the same", flush=True)


async def one_by_one(server):
    return [await run(server, b) for b in BODIES]


async def together(server):
    return await gather_limited(COUNT, [run(server, b) for b in BODIES])


def draft_counts(server):
    return server.status()["rates"]


async def with_deaths(server):
    """Every role dies while all requests run."""
    jobs = asyncio.ensure_future(together(server))
    deaths = 0
    while not jobs.done() and deaths < 4 * len(ROLES):  # then let them end: a slow build would hardly get anywhere
        role = ROLES[deaths % len(ROLES)]
        if await asyncio.to_thread(lambda: server.stage(role)["state"]) == "ready":
            deaths += bool(await asyncio.to_thread(server.signal, role, signal.SIGKILL))
        await asyncio.sleep(0.05)
    assert deaths >= 3, f"only {deaths} deaths while the requests ran"
    print(f"     {deaths} deaths", flush=True)
    return await jobs


async def by_chat(server):
    """The other interface says the same text."""
    same = 0
    for b, wanted in zip(BODIES, reference):
        status, _, data = await http(server, "POST", "/v1/chat/completions", as_chat(b))
        assert status == 200, f"chat completions: {status} {data[:300]!r}"
        answer = json.loads(data)
        choice = answer["choices"][0]
        assert (choice["message"]["content"] or "") == wanted.text, f"chat completions differ: {choice['message']} / {wanted.outcome()[:800]}"
        assert (choice["message"].get("reasoning_content") or "") == wanted.reasoning
        assert answer["usage"]["completion_tokens"] == wanted.response["usage"]["output_tokens"]
        assert answer["usage"]["prompt_tokens"] == wanted.response["usage"]["input_tokens"]
        same += 1
    print(f"     through chat completions: {same} outputs the same", flush=True)


def test_one_server():
    with Server("--restart-budget", "100000", "--draft-when", "always") as s:
        reference.extend(asyncio.run(one_by_one(s)))
        tokens = sum(r.response["usage"]["output_tokens"] for r in reference)
        rates = draft_counts(s)
        print(f"     reference: {COUNT} requests, {tokens} tokens, draft acceptance {rates['draft_acceptance']:.2f}", flush=True)
        assert len({r.outcome() for r in reference}) > COUNT // 2, "the requests do not differ"
        assert any(r.response["sluice"]["draft_tokens"] for r in reference), f"nothing was drafted: {reference[4].response['sluice']}"
        compare("one by one again", asyncio.run(one_by_one(s)))
        compare(f"in a batch of {COUNT}", asyncio.run(together(s)))
        asyncio.run(by_chat(s))
        compare("with stages dying", asyncio.run(with_deaths(s)))
        s.settle()
        compare("after the deaths", asyncio.run(together(s)))


def on_server(what, *options):
    assert reference, "the reference run failed"
    with Server(*options) as s:
        compare(what, asyncio.run(together(s)))


def test_without_drafts():
    on_server("--draft none", "--draft", "none")


def test_drafts_where_they_pay():
    on_server("--draft-when paying", "--draft-when", "paying")


def test_draft_lengths():
    for n in (1, 3, 12) if SCALE >= 1 else (3,):
        on_server(f"--draft-tokens {n}", "--draft-tokens", n, "--draft-when", "always")


def test_prefill_chunks():
    for n in (1, 7) if SCALE < 1 else (1, 7, 64, 300):
        on_server(f"--prefill-chunk {n}", "--prefill-chunk", n)


def test_threads():
    for n in (1, 2) if SCALE < 1 else (1, 2, 3):
        on_server(f"--threads {n}", "--threads", n)


def test_few_sequences():
    on_server("--max-sequences 3", "--max-sequences", 3)


if __name__ == "__main__":
    main(test_one_server, test_without_drafts, test_drafts_where_they_pay, test_draft_lengths, test_prefill_chunks, test_threads, test_few_sequences)
