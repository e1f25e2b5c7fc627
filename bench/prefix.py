#!/usr/bin/env python3
"""Time to the first token with and without the prefix cache, the two servers asked in turn: bench/prefix.py [--rounds N] [SERVER OPTION...]

New prompts (what does the cache cost?), questions behind a known beginning, conversations that grow, eight at once behind a new beginning. Medians in ms, at the client."""
import asyncio
import os
import random
import statistics
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "tests", "e2e"))
from server import Server  # noqa: E402
from workload import long_text  # noqa: E402
from wsclient import run  # noqa: E402

WAYS = ("off", "on")


def text(seed, words):
    return long_text(random.Random(repr(seed)), words)


async def first_token(server, body):
    """ms until the first delta, prompt tokens, of them found."""
    first = []

    async def note(event, ws):
        if event["type"].endswith(".delta") and not first:
            first.append(time.perf_counter())

    began = time.perf_counter()
    r = (await run(server, {"max_output_tokens": 4, "ignore_eos": True, "temperature": 0, **body}, on_event=note)).response
    return 1e3 * ((first or [time.perf_counter()])[0] - began), r["usage"]["input_tokens"], r["usage"]["input_tokens_details"]["cached_tokens"]


def talk(seed, turns):
    messages = []
    for i in range(turns):
        messages.append({"role": "user" if i % 2 == 0 else "assistant", "content": text((seed, i), 100)})
    return messages


def report(name, results):
    print(f"{name:44}" + "".join(f"  {w}: {statistics.median(x[0] for x in results[w]):8.1f} ms ({statistics.median(x[1] for x in results[w]):.0f} tokens, {statistics.median(x[2] for x in results[w]):.0f} found)"
                                 for w in WAYS), flush=True)


def one_by_one(name, servers, rounds, make, before=None):
    results = {w: [] for w in WAYS}
    for w in WAYS:
        if before:
            asyncio.run(first_token(servers[w], before))
    for i in range(rounds):
        for w in WAYS:
            results[w].append(asyncio.run(first_token(servers[w], make(i))))
    report(name, results)


def main():
    rounds, options = 7, sys.argv[1:]
    if {"-h", "--help"} & set(options):
        sys.exit(__doc__)
    if options[:1] == ["--rounds"]:
        rounds, options = int(options[1]), options[2:]
    servers = {w: Server("--prefix-cache", w, *options) for w in WAYS}
    try:
        for words in (60, 900):
            one_by_one(f"new prompts of {words} words", servers, rounds, lambda i, w=words: {"input": text(("new", w, i), w)})
            one_by_one(f"a question of 15 words behind {words} known", servers, rounds, lambda i, w=words: {"input": text(("known", w), w) + " " + text(("asked", i), 15)},
                       {"input": text(("known", words), words)})
        one_by_one("a conversation, 2 x 100 words a turn", servers, rounds, lambda i: {"input": talk("talk", 2 * i + 3)}, {"input": talk("talk", 1)})

        async def eight(server, i):
            start = text(("eight", i), 400)
            return await asyncio.gather(*(first_token(server, {"input": start + " " + text(("one", i, n), 15)}) for n in range(8)))
        results = {w: [] for w in WAYS}
        for i in range(max(1, rounds // 2)):
            for w in WAYS:
                results[w] += asyncio.run(eight(servers[w], i))
        report("eight at once behind 400 new words", results)
    finally:
        for s in servers.values():
            s.kill_everything()


if __name__ == "__main__":
    main()
