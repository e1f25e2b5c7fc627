#!/usr/bin/env python3
"""tests/gpu/prefix.py - the prefix cache on this machine's GPU: the same tokens as without it, and what it saves.

    SLUICE_BUILD=build/dist python3 tests/gpu/prefix.py [PART...]      (default: all parts)

  demo     the demo model on the GPU, conversations, system prompts and pictures, stages killed meanwhile: every outcome that of a server without the cache
  drafts   the demo model with its DSpark head: drafts accepted with and without the cache
  exact    the same for a 12B with random weights and prompts of up to 5,000 tokens, eight at once, prefill and verify killed
  ttft     time to the first token: prompts that nobody sent before, with and without the cache; a question behind 2,048 and 8,192 known tokens
  burst    32 questions behind one new beginning of 2,048 tokens, and 8 behind one of 8,000, all at once
OPTIONS: more options of the 12B server, as "--kv-cache-dtype fp8". Needs a Hopper GPU and the standard library only. Prints figures; fails on wrong tokens and on beginnings that were not found.
"""
import asyncio
import os
import random
import signal
import statistics
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tests", "e2e"))
sys.path.insert(0, os.path.join(ROOT, "tests", "gpu"))
import test_prefix as t  # noqa: E402
from serve import FORMAT, GPU, WORDS, ask, body, say  # noqa: E402
from server import Server  # noqa: E402


def text(seed, count):
    r = random.Random(f"text {seed}")
    return " ".join(r.choice(WORDS) for _ in range(count))


def big(*options):
    return Server("--random-weights", "gemma-4-12b", "--weights-dtype", FORMAT, "--max-context", 16384, "--max-sequences", 32, "--draft", "none", "--restart-budget", 100000, *GPU,
                  *os.environ.get("OPTIONS", "").split(), *options)


def part_demo():
    bodies = t.mixed(8) + t.conversation(5, 5, 60)
    with Server(*GPU, "--prefix-cache", "off") as s:
        wanted = [g.outcome() for g in t.ask(s, bodies, 4)]
    with Server(*GPU, "--restart-budget", "100000") as s:
        got = t.same(s, bodies, wanted, 4)
        say(f"demo model: {len(got)} outcomes as without the cache, {sum(map(t.cached, got))} of {sum(map(t.prompt_tokens, got))} prompt tokens found")
        assert sum(map(t.cached, got)) > 0
        t.kill_all_the_time(s, bodies, wanted, ("prefill", "verify"), 6)


def part_drafts():
    """A DSpark head reads what prefill leaves of each position: of those that were found, too."""
    bodies = t.conversation(9, 6, 20) + t.questions(12, 5)
    for options in (["--prefix-cache", "off"], []):
        with Server(*GPU, "--draft", "dspark", "--draft-when", "always", *options) as s:
            got = t.ask(s, bodies)
            accepted, rounds = (sum(g.response["sluice"][name] for g in got) for name in ("accepted_tokens", "rounds"))
            say(f"demo model, DSpark, {' '.join(options) or '--prefix-cache on'}: {sum(map(t.cached, got))} tokens found, {accepted} drafts accepted in {rounds} rounds")


def long_bodies():
    """Conversations and system prompts beyond the window, and shorter ones; greedy and sampled."""
    out = []
    for talk in range(3):
        messages = []
        for turn in range(4):
            messages = messages + [{"role": "user", "content": text((talk, turn), (60, 700, 1500)[talk])}]
            out.append({"input": messages, "max_output_tokens": 24, "ignore_eos": True, "return_token_ids": True, "temperature": turn % 2, "seed": turn})
            messages = messages + [{"role": "assistant", "content": text((talk, turn, "said"), 40)}]
    system = text("system", 900)
    for i in range(8):
        out.append({"instructions": system, "input": text(("question", i), 20), "max_output_tokens": (8, 200)[i % 2], "ignore_eos": True, "return_token_ids": True, "temperature": 0})
    return out


def part_exact():
    bodies = long_bodies()
    with big("--prefix-cache", "off") as s:
        wanted = [g.outcome() for g in t.ask(s, bodies, 4)]
    with big() as s:
        alone = t.same(s, bodies, wanted)
        found, shared = sum(map(t.cached, alone)), sum(t.common_pages(alone))
        say(f"12B, {FORMAT}: one after the other the same tokens as without the cache; {sum(map(t.prompt_tokens, alone))} prompt tokens, {shared} in shared pages, {found} found")
        assert found >= 0.9 * shared, (list(map(t.cached, alone)), t.common_pages(alone))
        again = t.same(s, bodies + bodies, wanted + wanted, 8)
        say(f"12B, {FORMAT}: eight at once the same; {sum(map(t.prompt_tokens, again))} prompt tokens, {sum(map(t.cached, again))} found")
        t.kill_all_the_time(s, bodies, wanted, ("prefill", "verify"), 6)


async def first_token(server, make, count):
    """Medians of the time to the first token in ms, at the client and of it in prefill, and of the tokens found."""
    got = [(await ask(server, make(i), 2, seed=i)) for i in range(count)]
    return tuple(statistics.median(v) for v in ([g.final["sluice"]["ttft_ms"] for g in got], [g.final["sluice"]["stage_ms"]["prefill"] for g in got],
                                                [g.final["usage"]["input_tokens_details"]["cached_tokens"] for g in got], [g.prompt() for g in got]))


def part_ttft():
    kinds = {}
    for words in (80, 1120, 4500):
        kinds[f"new prompt of {words} words"] = lambda i, w=words: text(("new", w, i), w)
        kinds[f"question of 40 words behind {words} known ones"] = lambda i, w=words: text(("known", w), w) + " " + text(("asked", w, i), 40)
    for options in (["--prefix-cache", "off"], []):
        with big(*options) as s:
            for name, make in kinds.items():
                asyncio.run(first_token(s, lambda i: make(-1 - i), 3))  # known from now on, and warm
                ms, prefill, found, prompt = asyncio.run(first_token(s, make, 8))
                say(f"{' '.join(options) or '--prefix-cache on '}: {name}: {prompt:.0f} tokens, {found:.0f} found, first token after {ms:.2f} ms, prefill {prefill:.2f} ms")


async def burst(server, count, words):
    system = text(("burst", words), words)
    begin = time.perf_counter()
    got = await asyncio.gather(*(ask(server, system + " " + text(("burst", i), 20), 16, seed=i) for i in range(count)))
    ttft = [g.final["sluice"]["ttft_ms"] for g in got]
    say(f"{count} at once behind a new beginning: {got[0].prompt()} tokens each, {sum(g.final['usage']['input_tokens_details']['cached_tokens'] for g in got)} of "
        f"{sum(g.prompt() for g in got)} found; first token p50 {statistics.median(ttft):.1f} ms, last {max(ttft):.1f} ms; all done after {1e3 * (time.perf_counter() - begin):.0f} ms")


def part_burst():
    for options in (["--prefix-cache", "off"], []):
        with big(*options) as s:
            asyncio.run(ask(s, text("warm", 200), 4))
            say(" ".join(options) or "--prefix-cache on")
            asyncio.run(burst(s, 32, 1120))
            asyncio.run(burst(s, 8, 4500))


def main():
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # no server is left behind
    parts = {"demo": part_demo, "drafts": part_drafts, "exact": part_exact, "ttft": part_ttft, "burst": part_burst}
    for name in sys.argv[1:] or parts:
        parts[name]()
    print("prefix: passed")


if __name__ == "__main__":
    main()
