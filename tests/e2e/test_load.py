#!/usr/bin/env python3
"""1,000 requests from 64 concurrent connections, a quarter cancelled or disconnected at random.

Over WebSocket, HTTP, HTTP streaming and chat completions. All that were left alone must be byte-exact, all that were cut
short must have been a beginning of the right text; afterwards slots, KV pages, descriptors and memory are back where
they were after a warm-up that was just as wide.
"""
import asyncio
import json
import random
import time

from server import SANITIZED, SCALE, Server, main, scaled, wait_until
from workload import as_chat, bodies
from wsclient import Closed, Refused, Result, WebSocket, follow, gather_limited, http, http_request, resume, run, sse

REQUESTS = scaled(1000, 64)
CONNECTIONS = 64
BODIES = bodies(40, least=8, most=48)
MIB = 1 << 20

TIME_LIMIT_S = 900  # for the runner: a slow machine, a sanitized build


class Tally:
    def __init__(self, wanted):
        self.wanted = wanted  # Results
        self.count = {}

    def note(self, kind):
        self.count[kind] = self.count.get(kind, 0) + 1


# ---- those that are left alone

async def by_websocket(server, i, t, rng, ws):
    await ws.send({"type": "response.create", **BODIES[i]})
    result = await follow(ws, Result())
    assert result.outcome() == t.wanted[i].outcome(), f"request {i} differs\n  wanted {t.wanted[i].outcome()[:1000]}\n  got    {result.outcome()[:1000]}"


async def by_http(server, i, t, rng, ws):
    status, _, data = await http(server, "POST", "/v1/responses", BODIES[i])
    assert status == 200, f"{status} {data[:300]!r}"
    answer = json.loads(data)
    assert answer["token_ids"] == t.wanted[i].response["token_ids"] and answer["usage"]["total_tokens"] == t.wanted[i].response["usage"]["total_tokens"], f"request {i} over HTTP differs"


async def by_sse(server, i, t, rng, ws):
    result = Result()
    async for event in sse(server, "/v1/responses", {**BODIES[i], "stream": True}):
        if event != "[DONE]":
            result.add(event)
    assert result.final and result.outcome() == t.wanted[i].outcome(), f"request {i} over SSE differs"


async def by_chat(server, i, t, rng, ws):
    text, done = "", False
    async for chunk in sse(server, "/v1/chat/completions", {**as_chat(BODIES[i]), "stream": True}):
        if chunk == "[DONE]":
            done = True
        else:
            text += "".join(c["delta"].get("content") or "" for c in chunk["choices"])
    assert done and text == t.wanted[i].text, f"request {i} over chat completions: {text!r}, not {t.wanted[i].text!r}"


# ---- those that are cut short

def is_beginning(result, wanted):
    return all(wanted.items.get(k, "").startswith(v) for k, v in result.items.items())


async def cancelled(server, i, t, rng, ws):
    after, result = rng.randrange(1, 8), Result()
    await ws.send({"type": "response.create", **BODIES[i]})

    async def cancel(event, socket):
        if result.next_sequence == after:
            await socket.send({"type": "response.cancel", "response_id": result.id})
    await follow(ws, result, cancel)
    if result.response["status"] == "incomplete" and result.response["incomplete_details"]["reason"] == "cancelled":
        assert is_beginning(result, t.wanted[i]), f"cancelled request {i}: {result.items} is no beginning of {t.wanted[i].items}"
        t.note("  of them ended as cancelled")
    else:
        assert result.outcome() == t.wanted[i].outcome()


async def dropped(server, i, t, rng, ws):
    other = await WebSocket.open(server)
    try:
        await other.send({"type": "response.create", **BODIES[i]})
        result = Result()
        for _ in range(rng.randrange(0, 6)):
            if result.final:
                break
            result.add(await other.receive())
        assert is_beginning(result, t.wanted[i])
    finally:
        other.drop()


async def dropped_and_resumed(server, i, t, rng, ws):
    """Not cut short after all: another connection fetches the rest."""
    other = await WebSocket.open(server)
    await other.send({"type": "response.create", **BODIES[i]})
    result = Result()
    for _ in range(rng.randrange(1, 6)):
        if not result.final:
            result.add(await other.receive())
    other.drop()
    if not result.final:
        third = await WebSocket.open(server)
        await third.send(resume(result))
        await follow(third, result)
        await third.close()
    assert result.outcome() == t.wanted[i].outcome(), f"resumed request {i} differs"


async def http_dropped(server, i, t, rng, ws):
    stream = rng.random() < 0.5
    _, writer = await asyncio.open_connection(server.host, server.port)
    writer.write(http_request(server, "POST", "/v1/responses", {**BODIES[i], "stream": stream}))
    await writer.drain()
    await asyncio.sleep(rng.random() * 0.3)
    writer.transport.abort()


ALONE = (by_websocket, by_websocket, by_http, by_sse, by_chat, dropped_and_resumed)
CUT = (cancelled, cancelled, dropped, http_dropped)


async def connection(server, queue, t, rng):
    ws, used = await WebSocket.open(server), time.monotonic()
    while queue:
        i, is_cut = queue.pop()
        kind = rng.choice(CUT if is_cut else ALONE)
        t.note(kind.__name__)
        try:
            if time.monotonic() - used > 20:  # nobody read it meanwhile: pings of the server may be waiting in vain
                ws.drop()
                ws, used = await WebSocket.open(server), time.monotonic()
            await kind(server, i, t, rng, ws)
            if kind in (by_websocket, cancelled):
                used = time.monotonic()
        except (Closed, Refused) as e:
            raise AssertionError(f"{kind.__name__} of request {i}: {e!r}") from e
    await ws.close()


async def load(server, count, t, seed):
    rng = random.Random(seed)
    queue = [(rng.randrange(len(BODIES)), n % 4 == 3) for n in range(count)]
    rng.shuffle(queue)
    await asyncio.gather(*(connection(server, queue, t, random.Random(f"{seed}/{c}")) for c in range(CONNECTIONS)))


# ---- where everything stands when nothing runs

def figures(server):
    def idle():
        s = server.status()
        return s if s["sequences"]["live"] == 0 and s["kv_cache"]["full_pages_used"] == 0 and s["kv_cache"]["sequences_waiting"] == 0 else None
    try:
        status = wait_until("the server is idle", idle, 120, 0.1)
    except AssertionError:
        s = server.status()
        raise AssertionError(f"not idle two minutes later: {s['sequences']} {s['kv_cache']}") from None
    memory, fds = server.memory_bytes(), server.descriptors()
    return {"live": status["sequences"]["live"], "kept": status["sequences"]["kept"], "full_pages": status["kv_cache"]["full_pages_used"],
            "sliding_pages": status["kv_cache"]["sliding_pages_used"], "rss": memory["rss"], "memfd": memory["memfd"], "fds": sum(fds.values()),
            "stage": memory["stage"], "lost": sum(r["lost"] for r in status["rings"]), "depth": sum(r["depth"] for r in status["rings"])}


def show(name, f):
    print(f"     {name:14} live {f['live']}, kept {f['kept']}, pages {f['full_pages']} full {f['sliding_pages']} sliding, private {f['rss'] / MIB:.1f} MiB, "
          f"shared {f['memfd'] / MIB:.1f} MiB, descriptors {f['fds']}, ring messages waiting {f['depth']}, lost {f['lost']}", flush=True)


def test_load():
    with Server("--grace", "1", "--slots", "96", "--max-sequences", "24", "--max-context", "1024", "--queue", "1000", "--prefix-cache-mib", "8") as s:
        wanted = asyncio.run(one_by_one(s))
        t = Tally(wanted)
        for n in range(2):  # warm-up: as wide, so that every buffer has its size and every slot was used
            asyncio.run(load(s, 192, Tally(wanted), f"warm-up {n}"))
        start = figures(s)
        show("after warm-up", start)
        asyncio.run(load(s, REQUESTS // 2, t, "first half"))
        middle = figures(s)
        show(f"+{REQUESTS // 2}", middle)
        asyncio.run(load(s, REQUESTS - REQUESTS // 2, t, "second half"))
        end = figures(s)
        show(f"+{REQUESTS}", end)
        print("     " + ", ".join(f"{k} {v}" for k, v in sorted(t.count.items())), flush=True)
        print("     private MiB by stage: " + ", ".join(f"{k} {start['stage'][k] / MIB:.1f} -> {end['stage'].get(k, 0) / MIB:.1f}" for k in sorted(start["stage"])), flush=True)
        for key in ("live", "full_pages", "sliding_pages", "fds", "lost"):
            assert end[key] == start[key], f"{key}: {start[key]} before, {end[key]} after"
        if not SANITIZED:  # a sanitizer keeps freed memory for a while
            assert end["rss"] - start["rss"] < 8 * MIB, f"private memory grew by {(end['rss'] - start['rss']) / MIB:.1f} MiB"
        assert end["memfd"] - start["memfd"] < 8 * MIB, f"shared memory grew by {(end['memfd'] - start['memfd']) / MIB:.1f} MiB"
        assert sum(s.restarts().values()) == 0, s.restarts()
        again = asyncio.run(one_by_one(s))
        assert [r.outcome() for r in again] == [r.outcome() for r in wanted], "after the load the outputs differ"


async def one_by_one(server):
    return await gather_limited(4, [run(server, b) for b in BODIES])


def test_refusal_when_full():
    """Past the queue new requests get 503 with Retry-After, and nobody else suffers."""
    with Server("--max-sequences", "2", "--slots", "4", "--queue", "4", "--max-context", "1024") as s:
        async def go():
            calm = await run(s, BODIES[0])
            many = await asyncio.gather(*(http(s, "POST", "/v1/responses", BODIES[0]) for _ in range(64)))
            codes = sorted(status for status, _, _ in many)
            print(f"     64 at once on 4 slots and a queue of 4: {codes.count(200)} x 200, {codes.count(503)} x 503, {codes.count(429)} x 429", flush=True)
            assert set(codes) <= {200, 429, 503} and codes.count(200) >= 4 and codes[-1] != 200, codes
            for status, headers, data in many:
                if status == 200:
                    assert json.loads(data)["token_ids"] == calm.response["token_ids"]
                else:
                    assert "retry-after" in headers and json.loads(data)["error"]["message"], (headers, data)
            assert (await run(s, BODIES[0])).outcome() == calm.outcome()
        asyncio.run(go())


if __name__ == "__main__":
    print(f"     {REQUESTS} requests, {CONNECTIONS} connections (scale {SCALE:g})", flush=True)
    main(test_load, test_refusal_when_full)
