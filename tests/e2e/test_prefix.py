#!/usr/bin/env python3
"""The prefix cache: prompts that begin as earlier ones go on where they differ, and nobody can tell by the answers.

Every outcome is compared with that of a server without the cache: conversations that grow, one system prompt over many questions, pictures, eight streams
at once, a cache far too small, prefill killed all the time. Usage must say what was found.
"""
import asyncio
import base64
import json
import os
import random
import signal
import tempfile

import seeing
from server import ROOT, Server, main, scaled
from test_gpu_paths import Machine, need_fakes
from workload import body, long_text, said
from wsclient import gather_limited, http, run

TIME_LIMIT_S = 600
PAGE = 32
SYSTEM = "You are a careful assistant. " + long_text(random.Random("system"), 150)


def cached(result):
    return result.response["usage"]["input_tokens_details"]["cached_tokens"]


def prompt_tokens(result):
    return result.response["usage"]["input_tokens"]


def ask(server, bodies, at_once=1):
    results = asyncio.run(gather_limited(at_once, [run(server, b) for b in bodies]))
    for r in results:
        assert r.final["type"] != "response.failed", r.outcome()[:500]
    return results


def questions(count, seed=1):
    """One system prompt, many questions; some sampled."""
    out = []
    for i in range(count):
        r = random.Random(f"question {seed}/{i}")
        b = {"input": said(r), "instructions": SYSTEM, "max_output_tokens": r.choice((8, 20, 60)), "ignore_eos": True, "return_token_ids": True, "temperature": 0}
        if i % 3 == 1:
            b.update(temperature=1.0, seed=r.randrange(1 << 40))
        out.append(b)
    return out


def conversation(seed, turns, words=30):
    """Bodies of a conversation whose answers are given: each holds all before it."""
    r = random.Random(f"conversation {seed}")
    messages, out = [], []
    for _ in range(turns):
        messages = messages + [{"role": "user", "content": said(r) + " " + long_text(r, words)}]
        out.append({"input": messages, "max_output_tokens": 12, "ignore_eos": True, "return_token_ids": True, "temperature": 0})
        messages = messages + [{"role": "assistant", "content": long_text(r, 10)}]
    return out


def same(server, bodies, wanted, at_once=1):
    got = ask(server, bodies, at_once)
    for i, (g, w) in enumerate(zip(got, wanted)):
        assert g.outcome() == w, f"request {i} differs\n  wanted {w[:1200]}\n  got    {g.outcome()[:1200]}"
    return got


def outcomes(bodies, *options, **more):
    with Server("--prefix-cache", "off", *options, **more) as s:
        got = ask(s, bodies, 2)
        assert all(cached(g) == 0 for g in got), "cached tokens without a cache"
    return [g.outcome() for g in got]


def metric(server, name):
    text = asyncio.run(http(server, "GET", "/metrics"))[2].decode()
    return float(next(line for line in text.splitlines() if line.startswith("sluice_" + name + " ")).split()[1])


def common_pages(results):
    """For each prompt the tokens of whole pages that it shares with one before it; the last token is always computed."""
    prompts = [r.response["prompt_token_ids"] for r in results]
    out = []
    for i, p in enumerate(prompts):
        best = 0
        for q in prompts[:i]:
            n = 0
            while n < min(len(p) - 1, len(q)) and p[n] == q[n]:
                n += 1
            best = max(best, n // PAGE * PAGE)
        out.append(best)
    return out


# ---- one after the other: everything that is shared is found


def one_by_one(bodies, least_share, *options, **more):
    wanted = outcomes(bodies, *options, **more)
    with Server(*options, **more) as s:
        got = same(s, bodies, wanted)
        found, shared = [cached(g) for g in got], common_pages(got)
        print(f"     {sum(prompt_tokens(g) for g in got)} prompt tokens, {sum(shared)} in shared pages, {sum(found)} found", flush=True)
        assert all(f <= c for f, c in zip(found, shared)), (found, shared)
        assert sum(found) >= least_share * sum(shared), (found, shared)
        assert metric(s, "prefix_cache_hits_total") == sum(found) and metric(s, "prefix_cache_queries_total") == sum(prompt_tokens(g) for g in got)
    return found, shared


def test_one_system_prompt_many_questions():
    found, shared = one_by_one(questions(12), 0.9)
    assert found[0] == 0 and min(shared[1:]) >= 2 * PAGE, (found, shared)


def test_conversation_that_grows():
    """The end of a prompt is where the next one goes on."""
    for options in ((), ("--max-sequences", "1")):  # the second one has no room for copies
        found, shared = one_by_one(conversation(1, 7), 1.0, *options)
        assert shared[-1] > 256, "shorter than the window"


def test_long_beginning_behind_a_short_one():
    """Prompts far longer than the window and the ring: the place where they part is remembered after the second one."""
    r = random.Random("long")
    start = long_text(r, 300)
    bodies = [{"input": start + " " + long_text(r, 500), "max_output_tokens": 6, "ignore_eos": True, "return_token_ids": True, "temperature": 0} for _ in range(4)]
    found, shared = one_by_one(bodies, 0.6)
    assert found[1] == 0 and found[2] == shared[2] and found[3] == shared[3], (found, shared)


def test_long_answers_leave_the_prompt():
    """Outputs that write over the whole ring: the window behind the prompt was put aside."""
    bodies = conversation(2, 3)
    for b in bodies:
        b["max_output_tokens"] = 500
    found, shared = one_by_one(bodies, 1.0)
    assert found[1] > 0, (found, shared)


def test_a_stored_response_goes_on():
    """previous_response_id: the server's own record of the conversation leads to the same beginning."""
    def talk(s):
        out, previous = [], {}
        for turn in range(3):
            b = {"input": f"Turn {turn}. " + long_text(random.Random(turn), 60), "max_output_tokens": 20, "temperature": 0, "return_token_ids": True, "store": True, **previous}
            out.append(ask(s, [b])[0])
            previous = {"previous_response_id": out[-1].response["id"]}
        return out
    with Server("--prefix-cache", "off") as s:
        wanted = [g.outcome() for g in talk(s)]
    with Server() as s:
        got = talk(s)
    assert [g.outcome() for g in got] == wanted
    assert [cached(g) for g in got] == common_pages(got) and cached(got[2]) > cached(got[1]) > 0, [cached(g) for g in got]


def test_warming_up():
    """`generate: false` computes a beginning before anybody asks; one token more or less is another prompt, the last one is always computed."""
    start = long_text(random.Random("warm"), 120)
    with Server() as s:
        ask(s, [{"input": start, "generate": False}])
        got = ask(s, [{"input": start, "max_output_tokens": 5, "return_token_ids": True, "temperature": 0}])[0]
        assert cached(got) == (prompt_tokens(got) - 1) // PAGE * PAGE > 0, (cached(got), prompt_tokens(got))
        one = asyncio.run(http(s, "POST", "/v1/completions", {"prompt": [5], "max_tokens": 3, "temperature": 0}))  # a prompt of one token, twice
        two = asyncio.run(http(s, "POST", "/v1/completions", {"prompt": [5], "max_tokens": 3, "temperature": 0}))
        assert one[0] == two[0] == 200 and json.loads(one[2])["choices"][0]["text"] == json.loads(two[2])["choices"][0]["text"]
        page = {"prompt": list(range(300, 300 + 2 * PAGE)), "max_tokens": 3, "temperature": 0}
        whole = [json.loads(asyncio.run(http(s, "POST", "/v1/completions", page))[2]) for _ in range(2)]
        assert whole[0]["choices"][0]["text"] == whole[1]["choices"][0]["text"] and whole[1]["usage"]["prompt_tokens_details"]["cached_tokens"] == PAGE, whole


# ---- salts


def test_salts_keep_apart():
    base = conversation(3, 3)[2]
    with Server() as s:
        plain = ask(s, [base, base])
        other = ask(s, [{**base, "cache_salt": "a"}, {**base, "cache_salt": "a"}, {**base, "cache_salt": "b"}])
        chat = asyncio.run(http(s, "POST", "/v1/chat/completions", {"messages": base["input"], "max_tokens": 4, "cache_salt": ""}))
        number = asyncio.run(http(s, "POST", "/v1/responses", {"input": "x", "cache_salt": 5}))
        assert chat[0] == 400 and b"cache_salt" in chat[2] and number[0] == 400 and b"cache_salt" in number[2], (chat, number)
    assert len({g.outcome() for g in plain + other}) == 1, "a salt changed an answer"
    assert [cached(g) > 0 for g in plain + other] == [False, True, False, True, False], [cached(g) for g in plain + other]


# ---- pictures


def test_pictures():
    with tempfile.TemporaryDirectory(prefix="sluice-seeing-") as model:
        seeing.make(model)
        files = []
        for name in ("rgb.png", "l.png", "rgba.webp"):
            with open(os.path.join(ROOT, "tests", "golden", "image", name), "rb") as f:
                files.append(base64.b64encode(f.read()).decode())

        def turn(numbers, text):
            text = long_text(random.Random("look"), 60) + " " + text  # a page boundary behind the picture: prompts never go on inside one
            parts = [{"type": "input_image", "image_url": "data:image/png;base64," + files[n], "detail": "auto"} for n in numbers]
            return {"input": [{"role": "user", "content": [*parts, {"type": "input_text", "text": text}]}], "max_output_tokens": 8, "ignore_eos": True, "return_token_ids": True,
                    "temperature": 0}

        bodies = [turn(n, t) for n in ([0], [1], [0, 1], [1, 0], [0, 1, 2], [2]) for t in ("What is this?", "Which colours does this picture have?")]
        options = ("--kv-cache-dtype", "f32", "--vision-workers", "1")
        wanted = outcomes(bodies, *options, model=model)
        with Server(*options, model=model) as s:
            found = [cached(g) for g in same(s, bodies, wanted)]
            assert found[0] == 0 and found[1] >= 4 * PAGE and found[3] >= 4 * PAGE and found[2] == 0, found
            again = [cached(g) for g in same(s, bodies, wanted, 4)]
            assert all(a >= 4 * PAGE for a in again), again
            s.signal("prefill", signal.SIGKILL)
            same(s, bodies, wanted, 4)


# ---- many at once, little room, and death


def mixed(count):
    return [b for pair in zip(questions(count, 2), conversation(4, count, 12), [body(i) for i in range(count)]) for b in pair]


def test_eight_streams():
    bodies = mixed(14)
    wanted = outcomes(bodies)
    for options in ((), ("--max-context", "1024", "--kv-cache-mib", "24", "--max-sequences", "8"), ("--prefill-chunk", "32", "--draft", "none"), ("--prefix-cache-mib", "64")):
        with Server(*options) as s:
            got = same(s, bodies + bodies[::-1], wanted + wanted[::-1], 8)
            print(f"     {' '.join(options) or 'as it comes'}: {sum(map(cached, got))} of {sum(map(prompt_tokens, got))} prompt tokens found", flush=True)
            assert sum(map(cached, got)) > 0


def test_many_that_begin_alike_at_once():
    """One computes the beginning, the others wait for it; also when it is given up half-way."""
    r = random.Random("alike")
    start = long_text(r, 700)
    bodies = [{"input": start + " " + long_text(r, 20 + 15 * i), "max_output_tokens": 10, "ignore_eos": True, "return_token_ids": True, "temperature": i % 2, "seed": i} for i in range(8)]
    wanted = outcomes(bodies)
    with Server() as s:
        got = same(s, bodies, wanted, 8)
        found, shared = sum(map(cached, got)), max(common_pages(got))
        print(f"     {sum(map(prompt_tokens, got))} prompt tokens, {shared} shared, {found} found", flush=True)
        assert found >= 6 * shared, (list(map(cached, got)), common_pages(got))
        chat = {"messages": [{"role": "user", "content": "Again. " + start}], "max_tokens": 4, "n": 4, "temperature": 1.0, "seed": 3}
        status, _, data = asyncio.run(http(s, "POST", "/v1/chat/completions", chat))
        assert status == 200 and metric(s, "prefix_cache_hits_total") - found >= 3 * (shared - PAGE), (status, data[:300], metric(s, "prefix_cache_hits_total"), found)
    with Server("--grace", "0") as s:
        async def leave():
            leader = asyncio.ensure_future(run(s, {**bodies[0], "input": start + " and " + start}))
            await asyncio.sleep(0.15)
            others = [asyncio.ensure_future(run(s, b)) for b in bodies]
            await asyncio.sleep(0.3)
            leader.cancel()
            return await asyncio.gather(*others)
        assert [g.outcome() for g in asyncio.run(leave())] == wanted


def kill_all_the_time(s, bodies, wanted, roles, kills):
    async def harm():
        rng = random.Random(7)
        for i in range(kills):
            await asyncio.sleep(rng.uniform(0.05, 0.4))
            stage = await asyncio.to_thread(s.stage, roles[i % len(roles)])
            if stage["state"] == "ready":
                os.kill(stage["pid"], signal.SIGKILL)

    async def client(number, until):
        at, done = number, 0
        while not until.done():
            result = await run(s, bodies[at % len(bodies)])
            assert result.outcome() == wanted[at % len(bodies)], f"request {at % len(bodies)} differs\n  wanted {wanted[at % len(bodies)][:1000]}\n  got    {result.outcome()[:1000]}"
            at, done = at + 9, done + 1
        return done

    async def all_of_it():
        killer = asyncio.ensure_future(harm())
        clients = [asyncio.ensure_future(client(n, killer)) for n in range(8)]
        return sum(await asyncio.gather(*clients)) + (await killer or 0)

    done = asyncio.run(all_of_it())
    s.settle()
    print(f"     {done} streams, all exact; {sum(s.restarts()[r] for r in roles)} deaths; {metric(s, 'prefix_cache_hits_total'):.0f} tokens found", flush=True)
    assert metric(s, "prefix_cache_hits_total") > 0


def test_prefill_dies():
    bodies = mixed(10)
    wanted = outcomes(bodies)
    for options in ((), ("--max-context", "1024", "--kv-cache-mib", "24", "--max-sequences", "8")):
        with Server("--restart-budget", "1000000", *options) as s:
            kill_all_the_time(s, bodies, wanted, ("prefill", "prefill", "verify"), scaled(60, 12))


def test_on_a_gpu_path():
    """The cache of the fake GPU holds the tokens themselves: a wrong page, or one that was written over, is another answer."""
    need_fakes()
    machine = Machine()
    bodies = mixed(10) + conversation(5, 6, 60)
    with machine.server("--prefix-cache", "off") as s:
        wanted = [g.outcome() for g in ask(s, bodies, 4)]
    with machine.server("--restart-budget", "1000000") as s:
        got = same(s, bodies, wanted, 4)
        assert sum(map(cached, got)) > 0
        kill_all_the_time(s, bodies, wanted, ("prefill", "verify"), scaled(16, 6))


if __name__ == "__main__":
    main(test_one_system_prompt_many_questions, test_conversation_that_grows, test_long_beginning_behind_a_short_one, test_long_answers_leave_the_prompt, test_a_stored_response_goes_on, test_warming_up, test_salts_keep_apart,
         test_pictures, test_many_that_begin_alike_at_once, test_eight_streams, test_prefill_dies, test_on_a_gpu_path)
