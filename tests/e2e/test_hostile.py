#!/usr/bin/env python3
"""Whatever a client sends, it gets its clear error and costs nobody else anything.

All attacks run against one server, while well-behaved streams run beside them without a pause: each of those must end
with exactly its bytes, on the connection it began with, and no stage may have died.
"""
import asyncio
import json
import resource
import socket
import struct
import time

from server import SANITIZED, Server, main, scaled
from workload import bodies
from wsclient import (BINARY, CLOSE, PING, TEXT, Closed, Refused, Result, ServerError, WebSocket, body_pieces, follow, http, http_request,
                      read_head, run)

GOOD = bodies(8, least=60, most=160)
BODY = {"input": "Say hello.", "max_output_tokens": 8, "temperature": 0}
MESSAGE_MIB = 2
CONNECTIONS_MAX, HEAD_S = 4096, 10  # of the gateway: connections, and how long a head may take
TRIED = []

TIME_LIMIT_S = 900  # for the runner: a slow machine, a sanitized build


def note(what, outcome):
    TRIED.append(what)
    print(f"     {what}: {outcome}"[:230], flush=True)


# ---- WebSocket: one bad message, an error frame, and the connection goes on

async def refused_frame(s, what, message, names, status=400, codes=None):
    """`message` must bring an error frame that names `names`; the same connection then answers a good request."""
    ws = await WebSocket.open(s)
    await ws.send(message)
    event = await ws.receive()
    assert event["type"] == "error", f"{what}: got {json.dumps(event)[:300]}"
    error = event["error"]
    assert event["status"] == status, f"{what}: status {event['status']}, expected {status}: {error}"
    assert error["type"] and error["code"] and error["message"], f"{what}: {error}"
    assert not codes or error["code"] in codes, f"{what}: code {error['code']}, expected one of {codes}"
    told = f"{error['message']} {error.get('param')}"
    for name in names:
        assert name in told, f"{what}: the message does not name {name!r}: {told}"
    await ws.send({"type": "response.create", **BODY})
    assert (await follow(ws, Result())).final["type"] in ("response.completed", "response.incomplete")
    await ws.close()
    note(what, error["message"])


def create(**fields):
    return {"type": "response.create", **BODY, **fields}


async def bad_messages(s):
    deep = '{"type":"response.create","input":' + "[" * 100000 + "]" * 100000 + "}"
    for what, message, names in (
            ("not JSON", "hello", ["JSON"]),
            ("half a JSON object", '{"type":"response.create","input":"', ["JSON"]),
            ("empty message", "", ["JSON"]),
            ("JSON array", "[1,2,3]", ["object"]),
            ("JSON number", "42", ["JSON"]),
            ("nested 100,000 deep", deep, ["nested"]),
            ("trailing bytes", '{"type":"response.create"} {}', ["JSON"]),
            ("the same key twice", '{"type":"response.create","input":"a","input":"b"}', ["JSON"]),
            ("NUL in a string", '{"type":"response.create","input":"a\\u0000b"}', ["JSON"]),
            ("lone surrogate", '{"type":"response.create","input":"\\ud800"}', ["JSON"]),
            ("number beyond 64 bits", '{"type":"response.create","input":"a","seed":99999999999999999999999}', []),
            ("NaN", '{"type":"response.create","input":"a","temperature":NaN}', ["JSON"]),
            ("no type", {"input": "a"}, ["type"]),
            ("type is a number", {"type": 7}, ["type"]),
            ("unknown type", {"type": "response.explode"}, ["response.explode"]),
            ("reserved type", {"type": "open"}, ["open"]),
            ("unknown field", create(flavour="mint"), ["flavour"]),
            ("input is a number", create(input=5), ["input"]),
            ("input is missing", {"type": "response.create"}, ["input"]),
            ("input item is a number", create(input=[5]), ["input[0]"]),
            ("role is unknown", create(input=[{"role": "wizard", "content": "x"}]), ["role"]),
            ("content is a number", create(input=[{"role": "user", "content": 5}]), ["content"]),
            ("content part of unknown type", create(input=[{"role": "user", "content": [{"type": "smell", "text": "x"}]}]), ["smell"]),
            ("temperature is a string", create(temperature="hot"), ["temperature", "a string"]),
            ("temperature too high", create(temperature=99), ["temperature"]),
            ("temperature infinite", '{"type":"response.create","input":"a","temperature":1e999}', []),
            ("top_p negative", create(top_p=-1), ["top_p"]),
            ("top_k a fraction", create(top_k=1.5), ["top_k"]),
            ("seed is a list", create(seed=[1]), ["seed"]),
            ("max_output_tokens zero", create(max_output_tokens=0), ["max_output_tokens"]),
            ("max_output_tokens negative", create(max_output_tokens=-5), ["max_output_tokens"]),
            ("stop is an object", create(stop={"a": 1}), ["stop"]),
            ("17 stop strings", create(stop=[f"stop{i}" for i in range(17)]), ["stop"]),
            ("stop string of 10,000 bytes", create(stop="x" * 10000), ["stop"]),
            ("tools is a string", create(tools="hammer"), ["tools"]),
            ("tool without a name", create(tools=[{"type": "function"}]), ["tools[0]"]),
            ("unbuilt feature", create(background=True), ["background"]),
            ("output format it cannot keep", create(text={"format": {"type": "json_schema", "name": "x", "schema": {}}}), ["json_schema"]),
            ("stream_id is a number", create(stream_id=3), ["stream_id"]),
            ("cancel without an id", {"type": "response.cancel"}, ["response_id"]),
            ("resume without an id", {"type": "response.resume", "starting_after": 3}, ["response_id"]),
            ("picture by address", create(input=[{"role": "user", "content": [{"type": "input_image", "image_url": "https://example.org/a.png"}]}]), ["data:"])):
        await refused_frame(s, what, message, names)
    await refused_frame(s, "unknown model", create(model="gpt-17"), ["gpt-17", s.model], 404, ["model_not_found"])
    await refused_frame(s, "cancel of nothing", {"type": "response.cancel", "response_id": "resp_0123456789abcdef"}, ["resp_0123456789abcdef"], 404)
    await refused_frame(s, "resume of nothing", {"type": "response.resume", "response_id": "resp_0123456789abcdef", "starting_after": 0},
                        ["resp_0123456789abcdef"], 404)
    await refused_frame(s, "previous response unknown", create(previous_response_id="resp_0123456789abcdef"), ["resp_0123456789abcdef"], 400,
                        ["previous_response_not_found"])


async def ends_failed(s, what, body, code, names):
    """A request that is found wrong later: an error frame or response.failed, with its words."""
    try:
        result = await run(s, body, come_back=False)
        assert result.final["type"] == "response.failed", f"{what}: {result.final['type']}"
        error = result.response["error"]
    except ServerError as e:
        error = e.error
    assert error["code"] == code, f"{what}: {error}"
    for name in names:
        assert name in error["message"], f"{what}: the message does not name {name!r}: {error}"
    note(what, error["message"])


async def broken_picture(s):
    body = {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,AAAA"}]}]}
    await ends_failed(s, "picture of no format", body, "invalid_media", ["Picture 1", "JPEG"])


async def too_long_prompts(s):
    await ends_failed(s, "prompt beyond the context", {"input": "word " * 20000}, "context_length_exceeded", ["1024"])
    status, _, data = await http(s, "POST", "/v1/responses", {"input": "word " * 20000})
    error = json.loads(data)["error"]
    assert status == 400 and error["code"] == "context_length_exceeded" and "1024" in error["message"], (status, error)
    status, _, data = await http(s, "POST", "/v1/completions", {"prompt": [5] * 5000})
    assert status == 400 and json.loads(data)["error"]["code"] == "context_length_exceeded", (status, data)
    status, _, data = await http(s, "POST", "/v1/completions", {"prompt": [10 ** 9]})
    assert status == 400 and "token id" in json.loads(data)["error"]["message"], (status, data)
    result = await run(s, {"input": "Say hello.", "max_output_tokens": 100000, "ignore_eos": True, "temperature": 0})
    usage = result.response["usage"]
    assert result.response["incomplete_details"]["reason"] == "max_output_tokens" and usage["total_tokens"] == 1024, usage
    note("output up to the end of the context", usage)


# ---- WebSocket: a broken protocol, a close code

async def closes(s, what, code, *steps):
    ws = await WebSocket.open(s)
    try:
        for step in steps:
            await step(ws)
    except Closed:
        pass  # the server did not wait for the rest
    closed = await ws.receive_close()
    ws.drop()
    codes = code if isinstance(code, tuple) else (code,)
    assert closed.code in codes, f"{what}: closed with {closed.code} {closed.reason!r}, expected {code}"
    note(what, f"close {closed.code} {closed.reason}")


def frame(*args, **kwargs):
    return lambda ws: ws.frame(*args, **kwargs)


async def bad_frames(s):
    text = json.dumps(create()).encode()
    await closes(s, "binary message", 1003, frame(BINARY, b"\0\1\2"))
    await closes(s, "not UTF-8", 1007, frame(TEXT, b'{"type":"\xff\xfe"}'))
    await closes(s, "overlong UTF-8", 1007, frame(TEXT, b'{"type":"\xc0\xaf"}'))
    await closes(s, "UTF-8 surrogate", 1007, frame(TEXT, b'"\xed\xa0\x80"'))
    await closes(s, "UTF-8 cut off by the end", 1007, frame(TEXT, b'"\xe2\x82'))
    await closes(s, "unmasked frame", 1002, frame(TEXT, text, mask=False))
    await closes(s, "reserved bit", 1002, frame(TEXT, text, rsv=4))
    await closes(s, "unknown opcode", 1002, frame(5, text))
    await closes(s, "continuation of nothing", 1002, frame(0, text))
    await closes(s, "text inside a text", 1002, frame(TEXT, text[:5], fin=False), frame(TEXT, text[5:]))
    await closes(s, "fragmented ping", 1002, frame(PING, b"x", fin=False))
    await closes(s, "ping of 126 bytes", 1002, frame(PING, b"x" * 126))
    await closes(s, "close with one byte", 1002, frame(CLOSE, b"x"))
    await closes(s, "close with code 1005", 1002, frame(CLOSE, struct.pack(">H", 1005)))
    await closes(s, "header that claims 3 MiB", 1009, frame(TEXT, b"x" * 1000, length=3 << 20))
    await closes(s, "header that claims 2^62 bytes", (1009, 1002), frame(TEXT, b"x" * 1000, length=1 << 62))
    await closes(s, "3 MiB in fragments", 1009, frame(TEXT, b"[" + b"1," * 500000, fin=False), frame(0, b"1," * 500000, fin=False), frame(0, b"1," * 500000, fin=False))
    await closes(s, "3 MiB in one frame", 1009, frame(TEXT, b"x" * (3 << 20)))


async def half_sent(s):
    """Cut off in the middle of a handshake, a header, a payload, a message."""
    text = json.dumps(create()).encode()
    for cut in (1, 2, 5, 9, len(text) // 2):
        ws = await WebSocket.open(s)
        await ws.frame(TEXT, text, cut=cut)
        ws.drop()
    ws = await WebSocket.open(s)
    await ws.frame(TEXT, text[:9], fin=False)
    ws.drop()
    for data in (b"", b"G", b"GET /v1/responses HTTP/1.1\r\nHost: x\r\nUpgrade: webso", b"POST /v1/responses HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"):
        _, writer = await asyncio.open_connection(s.host, s.port)
        writer.write(data)
        await writer.drain()
        writer.transport.abort()
    note("half-sent handshakes, frames and bodies", "gone")


async def fragments(s):
    """One message in one-byte frames, with pings between them, is a message like any other."""
    wanted = (await run(s, GOOD[0])).outcome()
    text = json.dumps({"type": "response.create", **GOOD[0]}).encode()
    ws = await WebSocket.open(s)
    for i in range(len(text)):
        await ws.frame(TEXT if i == 0 else 0, text[i:i + 1], fin=i == len(text) - 1)
        if i % 50 == 0:
            await ws.frame(PING, str(i).encode())
    assert (await follow(ws, Result())).outcome() == wanted, "the answer to a fragmented request differs"
    assert ws.pongs, "no pong came"
    await ws.close()
    reader, writer = await asyncio.open_connection(s.host, s.port)
    for byte in b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n":
        writer.write(bytes([byte]))
        await writer.drain()
        await asyncio.sleep(0)
    answer = await asyncio.wait_for(reader.read(), 60)
    assert answer.startswith(b"HTTP/1.1 200"), answer[:100]
    writer.close()
    note("a message in one-byte frames, a request in one-byte pieces", "answered")


async def floods(s):
    """Pings without end, and requests without end: throttled or closed, never stored."""
    before = s.memory_bytes()["stage"]["gateway"]
    ws = await WebSocket.open(s)
    count = scaled(50000, 2000)

    async def flood():
        for i in range(count):
            await ws.frame(PING, b"x" * 125)
    flooding = asyncio.ensure_future(flood())
    await asyncio.wait([flooding], timeout=60)
    outcome = f"stopped: {flooding.exception()!r}" if flooding.done() and flooding.exception() else f"{count} pings taken" if flooding.done() else "throttled"
    flooding.cancel()
    ws.drop()
    ws = await WebSocket.open(s)
    refused = 0
    try:
        for i in range(200):
            await ws.send(create(stream_id=f"lane {i}", max_output_tokens=200, ignore_eos=True))
        for _ in range(200):
            event = await ws.receive()
            if event["type"] == "error":
                assert event["error"]["code"] == "websocket_stream_limit_reached" and event["status"] in (400, 429), event
                refused += 1
            if refused >= 150:
                break
    except Closed as e:
        refused = e.code
        assert e.code in (1008, 1013), e
    ws.drop()
    assert refused, "200 lanes on one connection, and none was refused"
    grown = s.memory_bytes()["stage"]["gateway"] - before
    assert grown < 64 << 20 or SANITIZED, f"the gateway grew by {grown >> 20} MiB"
    note("ping flood without reading a pong; 200 lanes on one connection", f"{outcome}; lanes refused {refused}; gateway {grown / 2**20:+.1f} MiB")


async def slow_readers(s):
    """Clients that ask for much and read nothing: closed one day, and resumable; their answers are not kept without bound."""
    before = s.memory_bytes()["stage"]["gateway"]
    sockets = []
    for i in range(8):
        ws = await WebSocket.open(s, receive_buffer=4096)
        for lane in range(8):
            await ws.send(create(stream_id=f"{lane}", max_output_tokens=900, ignore_eos=True, return_token_ids=True, top_logprobs=10,
                                 include=["message.output_text.logprobs"]))
        sockets.append(ws)
    await asyncio.sleep(5)
    grown = s.memory_bytes()["stage"]["gateway"] - before
    for ws in sockets:
        ws.drop()
    assert grown < 64 << 20 or SANITIZED, f"the gateway keeps {grown >> 20} MiB for clients that read nothing"
    note("8 clients that read nothing, 8 streams each", f"gateway {grown / 2**20:+.1f} MiB")


async def hoards(s):
    """Many large messages begun and never ended: some are turned away, the rest fit in what is set aside for all together."""
    before = s.memory_bytes()["stage"]["gateway"]
    part = b'{"input":"' + b"x" * ((MESSAGE_MIB << 20) - 4096)
    told = {"http": 0, "ws": 0}

    async def half_body():
        reader, writer = await asyncio.open_connection(s.host, s.port)
        writer.write(b"POST /v1/responses HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % (len(part) + 100) + part)
        try:
            answer = await asyncio.wait_for(reader.read(), 3)
            assert answer.startswith(b"HTTP/1.1 503 ") and b'"overloaded"' in answer and b"Retry-After" in answer, answer[:300]
            told["http"] += 1
            writer.transport.abort()
        except asyncio.TimeoutError:
            pass
        return writer

    async def half_message():
        ws = await WebSocket.open(s)
        try:
            await ws.frame(TEXT, part, fin=False)
            end = await asyncio.wait_for(ws.receive_close(), 3)
            assert end.code == 1013, end
            told["ws"] += 1
        except Closed as e:
            assert e.code in (1013, 1006), e
            told["ws"] += 1
        except (asyncio.TimeoutError, TimeoutError):
            pass
        return ws
    bodies_begun = asyncio.gather(*(half_body() for _ in range(12)))
    writers, sockets = await bodies_begun, await asyncio.gather(*(half_message() for _ in range(12)))
    grown = s.memory_bytes()["stage"]["gateway"] - before
    assert told["http"] >= 2 and told["ws"] >= 8, f"turned away: {told}"
    assert grown < 64 << 20 or SANITIZED, f"the gateway grew by {grown >> 20} MiB"
    for w in writers:
        w.transport.abort()
    for ws in sockets:
        ws.drop()
    for _ in range(50):  # the room is there again once they are gone
        status, _, data = await http(s, "POST", "/v1/responses", {**BODY, "input": "x" * (1 << 20)})
        if status != 503:
            break
        await asyncio.sleep(0.1)
    assert status == 400, (status, data[:200])
    note("24 messages of 2 MiB begun and not ended", f"turned away {told}; gateway {grown / 2**20:+.1f} MiB")


# ---- HTTP

async def raw(s, data, then_wait=True, timeout_s=60):
    """Sends bytes, returns all that comes back until the server closes."""
    reader, writer = await asyncio.open_connection(s.host, s.port)
    try:
        try:
            writer.write(data)
            await writer.drain()
        except OSError:
            pass
        try:
            return await asyncio.wait_for(reader.read(), timeout_s)
        except ConnectionResetError:
            return b""
    finally:
        writer.transport.abort()


async def http_status(s, what, data, statuses):
    answer = await raw(s, data)
    got = int(answer.split()[1]) if answer.startswith(b"HTTP/1.1 ") else 0
    assert got in statuses, f"{what}: answered {got or answer[:100]}, expected {statuses}"
    assert answer.count(b"HTTP/1.1 ") == 1, f"{what}: {answer.count(b'HTTP/1.1 ')} answers"
    note(what, answer.split(b"\r\n")[0].decode() + " " + answer.split(b"\r\n\r\n", 1)[-1].decode(errors="replace").strip())


async def bad_http(s):
    host = b"Host: localhost\r\nConnection: close\r\n"
    body = json.dumps(BODY).encode()
    length = b"Content-Length: %d\r\n" % len(body)
    await http_status(s, "HTTP garbage", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200) + b"\r\n\r\n", (400,))
    await http_status(s, "no HTTP version", b"GET /\r\n\r\n", (400, 505))
    await http_status(s, "unknown method", b"BREW /v1/responses HTTP/1.1\r\n" + host + b"\r\n", (400, 405, 501))
    await http_status(s, "wrong method", b"DELETE /v1/responses HTTP/1.1\r\n" + host + b"\r\n", (405, 404))
    await http_status(s, "unknown path", b"GET /v2/nothing HTTP/1.1\r\n" + host + b"\r\n", (404,))
    await http_status(s, "path of 100,000 bytes", b"GET /" + b"a" * 100000 + b" HTTP/1.1\r\n" + host + b"\r\n", (400, 414, 431))
    await http_status(s, "header of 100,000 bytes", b"GET /v1/models HTTP/1.1\r\n" + host + b"X: " + b"a" * 100000 + b"\r\n\r\n", (400, 431))
    await http_status(s, "10,000 headers", b"GET /v1/models HTTP/1.1\r\n" + host + b"".join(b"X%d: y\r\n" % i for i in range(10000)) + b"\r\n", (400, 431))
    await http_status(s, "body announced as 1 TiB", b"POST /v1/responses HTTP/1.1\r\n" + host + b"Content-Length: 1099511627776\r\n\r\n{", (413,))
    await http_status(s, "negative length", b"POST /v1/responses HTTP/1.1\r\n" + host + b"Content-Length: -1\r\n\r\n{}", (400,))
    await http_status(s, "two lengths", b"POST /v1/responses HTTP/1.1\r\n" + host + length + b"Content-Length: 3\r\n\r\n" + body, (400,))
    await http_status(s, "length and chunks", b"POST /v1/responses HTTP/1.1\r\n" + host + length + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /v1/models HTTP/1.1\r\n" + host + b"\r\n", (400,))
    await http_status(s, "chunk size that is none", b"POST /v1/responses HTTP/1.1\r\n" + host + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", (400,))
    await http_status(s, "chunk size beyond 64 bits", b"POST /v1/responses HTTP/1.1\r\n" + host + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n{}\r\n0\r\n\r\n", (400, 413))
    await http_status(s, "unknown transfer coding", b"POST /v1/responses HTTP/1.1\r\n" + host + b"Transfer-Encoding: gzip\r\n\r\n", (400, 501))
    await http_status(s, "space before the colon", b"POST /v1/responses HTTP/1.1\r\n" + host + b"Content-Length : %d\r\n\r\n" % len(body) + body, (400,))
    await http_status(s, "NUL in a header value", b"GET /v1/models HTTP/1.1\r\n" + host + b"X: a\x00b\r\n\r\n", (400,))
    await http_status(s, "body that is not JSON", b"POST /v1/responses HTTP/1.1\r\n" + host + b"Content-Length: 3\r\n\r\nabc", (400,))
    await http_status(s, "no body", b"POST /v1/responses HTTP/1.1\r\n" + host + b"\r\n", (400, 411))
    await http_status(s, "chat without messages", b"POST /v1/chat/completions HTTP/1.1\r\n" + host + b"Content-Length: 2\r\n\r\n{}", (400,))
    status, _, data = await http(s, "POST", "/v1/responses", b'{"input":"' + b"x" * (3 << 20) + b'"}')
    assert status == 413 and json.loads(data)["error"]["message"], (status, data[:200])
    note("body of 3 MiB, 2 allowed", data.decode().strip())
    status, _, data = await http(s, "POST", "/v1/responses", {"input": "a", "stream_id": "x"})
    assert status == 400 and "stream_id" in data.decode(), data


async def good_http_oddities(s):
    """Unusual, but right: must work."""
    body = json.dumps(BODY).encode()
    chunked = b"".join(b"%x\r\n%s\r\n" % (1, body[i:i + 1]) for i in range(len(body))) + b"0\r\n\r\n"
    head = b"POST /v1/responses HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    answer = await raw(s, head + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked)
    assert answer.startswith(b"HTTP/1.1 200"), answer[:300]
    two = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    answer = await raw(s, two + two.replace(b"Host", b"Connection: close\r\nHost"))
    assert answer.count(b"HTTP/1.1 200") == 2, f"two pipelined requests got {answer.count(b'HTTP/1.1 200')} answers: {answer[:300]}"
    reader, writer = await asyncio.open_connection(s.host, s.port)
    writer.write(head + b"Connection: close\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
    await writer.drain()
    first = await asyncio.wait_for(reader.readline(), 60)
    assert b" 100 " in first, first
    writer.write(body)
    rest = await asyncio.wait_for(reader.read(), 120)
    assert b"HTTP/1.1 200" in rest, rest[:200]
    writer.close()
    note("one-byte chunks, pipelining, Expect: 100-continue", "200")


async def slowloris(s):
    """Connections that never finish their request are closed, and meanwhile hinder nobody."""
    held = []
    for i in range(200):
        reader, writer = await asyncio.open_connection(s.host, s.port)
        writer.write(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-A: ")
        held.append((reader, writer))
    began = time.monotonic()
    status, _, _ = await http(s, "GET", "/health")
    assert status == 200 and (await run(s, GOOD[1])).final
    took = time.monotonic() - began
    for _ in range(3):
        for _, writer in held:
            if not writer.transport.is_closing():
                writer.write(b"a")
        await asyncio.sleep(0.2)
    for _, writer in held:
        writer.transport.abort()
    note("200 requests that never end", f"a good one beside them took {took:.2f} s")


async def crowd(s):
    """More connections than there may be, all of which never finish a request: whoever does is served all the same."""
    def fill():
        held = []
        while len(held) < CONNECTIONS_MAX + 200:
            held.append(socket.create_connection((s.host, s.port), timeout=60))
            held[-1].sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\nX-A: ")
        return held

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < CONNECTIONS_MAX + 1000:
        note("as many connections as there may be", f"not tried: this machine allows {hard} descriptors")
        return
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    held = await asyncio.to_thread(fill)
    began = time.monotonic()
    status, _, _ = await http(s, "GET", "/health")
    assert status == 200 and (await run(s, GOOD[1])).final
    took = time.monotonic() - began
    assert took < HEAD_S or SANITIZED, f"{took:.1f} s: until the heads that never end had timed out"
    for c in held:
        c.close()
    note(f"{len(held)} requests that never end", f"a good one beside them took {took:.2f} s")


async def upgrade_refusals(s):
    for what, headers, statuses in (
            ("foreign origin", {"Origin": "https://evil.example"}, (403,)),
            ("null origin", {"Origin": "null"}, (403,)),
            ("a name that an attacker points here", {"Host": "evil.example", "Origin": "http://evil.example"}, (403, 421))):
        try:
            ws = await WebSocket.open(s, headers=headers)
            ws.drop()
            raise AssertionError(f"{what}: accepted")
        except Refused as e:
            assert e.status in statuses, f"{what}: {e}"
            note(what, e)
    ws = await WebSocket.open(s, headers={"Origin": s.address})
    assert await ws.close() == 1000
    ws = await WebSocket.open(s, headers={"Host": f"localhost:{s.port}", "Origin": f"http://localhost:{s.port}", "Sec-WebSocket-Protocol": "responses, openai-insecure-api-key.secret"})
    assert ws.headers.get("sec-websocket-protocol") == "responses", ws.headers
    ws.drop()


# ---- all of it, with good streams beside it

class Beside:
    def __init__(self, server, wanted):
        self.server, self.wanted, self.done, self.stop = server, wanted, 0, False

    async def run(self):
        while not self.stop:
            i = self.done % len(GOOD)
            result = await run(self.server, GOOD[i], come_back=False)
            assert result.outcome() == self.wanted[i], f"a stream beside the attack changed: request {i}"
            self.done += 1


def attack(*functions):
    async def go(s):
        wanted = [(await run(s, b)).outcome() for b in GOOD]
        beside = Beside(s, wanted)
        streams = asyncio.ensure_future(beside.run())
        for f in functions:
            attacking = asyncio.ensure_future(f(s))
            done, _ = await asyncio.wait([attacking, streams], return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        beside.stop = True
        await streams
        print(f"     {beside.done} streams beside it, all exact", flush=True)

    with Server("--max-context", "1024", "--max-message-mib", str(MESSAGE_MIB), "--grace", "1", "--max-sequences", "16") as s:
        asyncio.run(go(s))
        restarts = s.restarts()
        assert sum(restarts.values()) == 0, f"stages died: {restarts}\n{s.log()[-2000:]}"


def test_bad_messages():
    attack(bad_messages, broken_picture, too_long_prompts)


def test_bad_frames():
    attack(bad_frames, half_sent, fragments, upgrade_refusals)


def test_bad_http():
    attack(bad_http, good_http_oddities)


def test_too_much():
    attack(floods, slow_readers, hoards, slowloris, crowd)


def test_all_at_once():
    """Everything together, not one after the other."""
    async def everything(s):
        await asyncio.gather(bad_messages(s), bad_frames(s), half_sent(s), bad_http(s), slowloris(s), floods(s))
    attack(everything)


def test_late_refusal():
    """A request that turns out to be too large for its slot is refused also when it had to wait for one, and its lane goes on."""
    with Server("--max-context", "4096", "--max-message-mib", "1", "--slots", "1", "--max-sequences", "1") as s:
        large = {**BODY, "instructions": "x" * 900000}  # stands twice in the record: once for the model, once for the answer

        async def go():
            for over_http in (True, False):
                busy = await WebSocket.open(s)
                await busy.send({"type": "response.create", "input": "Tell me a story.", "max_output_tokens": 3000, "ignore_eos": True})
                while (await busy.receive())["type"] != "response.output_text.delta":
                    pass
                if over_http:
                    waiting = asyncio.ensure_future(http(s, "POST", "/v1/responses", large))
                else:
                    ws = await WebSocket.open(s)
                    await ws.send({"type": "response.create", "stream_id": "a", **large})
                    await ws.send({"type": "response.create", "stream_id": "a", **BODY})
                await asyncio.sleep(0.3)
                await busy.close()
                if over_http:
                    status, _, data = await waiting
                    assert status == 413 and json.loads(data)["error"]["code"] == "request_too_large", (status, data[:300])
                else:
                    event = await ws.receive()
                    assert event["type"] == "error" and event["status"] == 413 and event["stream_id"] == "a", event
                    assert (await follow(ws, Result())).final["type"] in ("response.completed", "response.incomplete")
                    await ws.close()
        asyncio.run(go())


def test_long_answer_slowly_read():
    """The last answer of a connection arrives whole, however long its reader pauses within the patience of the server."""
    with Server() as s:
        async def go():
            reader, writer = await asyncio.open_connection(s.host, s.port, limit=4096)
            writer.write(http_request(s, "POST", "/tokenize", {"prompt": "hello you " * 200000, "return_token_strs": True}))
            await writer.drain()
            writer.transport.pause_reading()
            await asyncio.sleep(4)
            writer.transport.resume_reading()
            status, headers = await read_head(reader)
            body = b"".join([p async for p in body_pieces(reader, headers)])
            assert status == 200 and len(body) > 8 << 20 and json.loads(body)["count"] > 200000, (status, len(body))
            writer.close()
        asyncio.run(go())


def test_api_keys():
    """With keys configured: no key, a wrong one, and the right one by header and by subprotocol."""
    import os
    import tempfile
    with tempfile.TemporaryDirectory() as d:
        path = os.path.join(d, "keys")
        with open(path, "w") as f:
            f.write("# who may come in\nsk-first\n\n  sk-second # a comment\nsk-with#sign\n")
        with Server("--api-key-file", path) as s:
            async def go():
                for headers in ({}, {"Authorization": "Bearer sk-wrong"}, {"Authorization": "Bearer sk-firs"}, {"Authorization": "Basic sk-first"},
                                {"Sec-WebSocket-Protocol": "responses, openai-insecure-api-key.sk-wrong"}):
                    try:
                        ws = await WebSocket.open(s, headers=headers)
                        raise AssertionError(f"accepted with {headers}: {await ws.receive_close()}")
                    except Refused as e:
                        assert e.status == 401, (headers, e)
                    except Closed as e:
                        assert e.code == 1008, (headers, e)
                    status, _, data = await http(s, "GET", "/v1/models", headers={k: v for k, v in headers.items() if k == "Authorization"})
                    assert status == 401 and json.loads(data)["error"]["message"], (headers, status, data)
                right = {"Authorization": "Bearer sk-second"}
                assert (await http(s, "GET", "/v1/models", headers=right))[0] == 200
                for key, status in (("sk-with#sign", 200), ("sk-with", 401), ("#", 401), ("sk-second # a comment", 401)):
                    assert (await http(s, "GET", "/v1/models", headers={"Authorization": f"Bearer {key}"}))[0] == status, key
                result = await run(s, BODY, headers=right)
                ws = await WebSocket.open(s, headers={"Sec-WebSocket-Protocol": "responses, openai-insecure-api-key.sk-first"})
                assert ws.headers["sec-websocket-protocol"] == "responses"
                await ws.send({"type": "response.resume", "response_id": result.id, "starting_after": -1})  # another key's response
                event = await ws.receive()
                assert event["type"] == "error" and event["status"] == 404, f"a response of another key was shown: {event}"
                ws.drop()
                assert (await http(s, "GET", "/health"))[0] == 200  # watchdogs have no key
                assert "sk-" not in s.log() and "sk-" not in json.dumps(await asyncio.to_thread(s.status)), "a key was written down"
            asyncio.run(go())


if __name__ == "__main__":
    main(test_bad_messages, test_bad_frames, test_bad_http, test_too_much, test_all_at_once, test_late_refusal, test_long_answer_slowly_read,
         test_api_keys)
