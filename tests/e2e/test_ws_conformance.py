#!/usr/bin/env python3
"""RFC 6455, where servers differ: handshake, masks, reserved bits, opcodes, fragments, close codes, UTF-8, pings.

Raw sockets, so that every byte is ours. A message of text is answered with an error frame (it is no request), which
shows that it arrived whole; what breaks the protocol is answered with the right close code.
"""
import asyncio
import base64
import json
import os
import struct

from server import Server, main
from wsclient import BINARY, CLOSE, PING, PONG, TEXT, WAIT_S, Closed, WebSocket, read_head

CASES = [0]


async def handshake(s, changes=(), drop=(), line="GET /v1/responses HTTP/1.1"):
    """(status, headers) of an upgrade whose headers are changed or dropped."""
    headers = {"Host": f"{s.host}:{s.port}", "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
               "Sec-WebSocket-Version": "13", **dict(changes)}
    reader, writer = await asyncio.open_connection(s.host, s.port)
    text = "\r\n".join([line] + [f"{k}: {v}" for k, v in headers.items() if k not in drop]) + "\r\n\r\n"
    writer.write(text.encode())
    status, answer = await asyncio.wait_for(read_head(reader), WAIT_S)
    writer.transport.abort()
    CASES[0] += 1
    return status, answer


async def handshakes(s):
    for what, changes in (("case of the words", {"Upgrade": "WebSocket", "Connection": "keep-alive, UPGRADE"}), ("nothing special", {}),
                          ("unknown extension", {"Sec-WebSocket-Extensions": "x-none; a=1, permessage-deflate"}), ("query", {})):
        status, answer = await handshake(s, changes)
        assert status == 101, f"{what}: {status}"
        assert answer["upgrade"].lower() == "websocket" and "upgrade" in answer["connection"].lower(), (what, answer)
        assert "sec-websocket-extensions" not in answer, (what, answer)
        assert "sec-websocket-protocol" not in answer, (what, answer)
    status, answer = await handshake(s, {"Sec-WebSocket-Protocol": "realtime, responses"})
    assert status == 101 and answer.get("sec-websocket-protocol") in ("realtime", "responses"), (status, answer)
    status, answer = await handshake(s, {"Sec-WebSocket-Version": "8"})
    assert status in (400, 426) and answer.get("sec-websocket-version") == "13", (status, answer)
    for what, changes, drop in (("no key", {}, ("Sec-WebSocket-Key",)), ("key of 15 bytes", {"Sec-WebSocket-Key": base64.b64encode(b"x" * 15).decode()}, ()),
                                ("key that is not base64", {"Sec-WebSocket-Key": "!" * 24}, ()), ("no version", {}, ("Sec-WebSocket-Version",)),
                                ("no Connection: Upgrade", {"Connection": "close"}, ()), ("other upgrade", {"Upgrade": "h2c"}, ()),
                                ("no Host", {}, ("Host",))):
        status, answer = await handshake(s, changes, drop)
        assert 400 <= status < 500, f"{what}: {status}"
    status, _ = await handshake(s, line="GET /elsewhere HTTP/1.1")
    assert status == 404, status
    status, _ = await handshake(s, line="POST /v1/responses HTTP/1.1")
    assert 400 <= status < 500, status
    status, _ = await handshake(s, line="GET /v1/responses HTTP/1.0")
    assert 400 <= status < 600, status


async def expect_close(s, what, code, send):
    ws = await WebSocket.open(s)
    try:
        await send(ws)
    except Closed:
        pass
    closed = await ws.receive_close()
    assert closed.code == code, f"{what}: closed with {closed.code} {closed.reason!r}, expected {code}"
    assert await asyncio.wait_for(ws.reader.read(), WAIT_S) == b"", f"{what}: the TCP connection stays"
    ws.drop()
    CASES[0] += 1


async def answered(ws, what):
    """The message before arrived whole and was judged: an error frame about JSON."""
    event = await ws.receive()
    assert event["type"] == "error" and event["status"] == 400, f"{what}: {event}"
    CASES[0] += 1
    return event["error"]


async def messages(s):
    ws = await WebSocket.open(s)
    for size in (0, 1, 125, 126, 127, 65535, 65536, 200000):
        await ws.frame(TEXT, b"x" * size)
        await answered(ws, f"text of {size} bytes")
    for pieces in ((0, 0, 0), (1, 0, 1), (5, 5), (70000, 1), (1,) * 50):
        for i, size in enumerate(pieces):
            await ws.frame(TEXT if i == 0 else 0, b"x" * size, fin=i == len(pieces) - 1)
        await answered(ws, f"fragments {pieces[:5]}")
    # lengths written longer than they need to be are allowed by some and refused by others; sixteen bits for five bytes must at least not hang
    await ws.frame(TEXT, b"x", fin=False)
    await ws.frame(PING, b"in between")
    await ws.frame(0, b"y")
    await answered(ws, "ping between fragments")
    assert ws.pongs == [b"in between"], ws.pongs
    assert await ws.close() == 1000
    for what, send in (("unmasked", lambda w: w.frame(TEXT, b"x", mask=False)), ("rsv1", lambda w: w.frame(TEXT, b"x", rsv=4)), ("rsv2", lambda w: w.frame(TEXT, b"x", rsv=2)),
                       ("rsv3", lambda w: w.frame(TEXT, b"x", rsv=1)), ("rsv on ping", lambda w: w.frame(PING, b"x", rsv=4)),
                       *((f"opcode {o}", lambda w, o=o: w.frame(o, b"x")) for o in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)),
                       ("continuation first", lambda w: w.frame(0, b"x")), ("continuation first, more to come", lambda w: w.frame(0, b"x", fin=False)),
                       ("ping in two frames", lambda w: w.frame(PING, b"x", fin=False)), ("pong in two frames", lambda w: w.frame(PONG, b"x", fin=False)),
                       ("close in two frames", lambda w: w.frame(CLOSE, b"\x03\xe8", fin=False)), ("ping of 126", lambda w: w.frame(PING, b"x" * 126)),
                       ("length with its top bit set", lambda w: w.frame(TEXT, b"", length=(1 << 63) + 5))):
        await expect_close(s, what, 1002, send)

    async def nested(w):
        await w.frame(TEXT, b"a", fin=False)
        await w.frame(TEXT, b"b")
    await expect_close(s, "message inside a message", 1002, nested)
    await expect_close(s, "binary", 1003, lambda w: w.frame(BINARY, b"\0"))
    await expect_close(s, "empty binary", 1003, lambda w: w.frame(BINARY))


async def text_encoding(s):
    ws = await WebSocket.open(s)
    whole = "κόσμε € 𝄞 \U0010FFFF \ufeff \uffff".encode()
    for at in range(1, len(whole)):  # cut inside characters: legal
        await ws.frame(TEXT, whole[:at], fin=False)
        await ws.frame(0, whole[at:])
        await answered(ws, f"UTF-8 cut at {at}")
    for i in range(len(whole)):
        await ws.frame(TEXT if i == 0 else 0, whole[i:i + 1], fin=i == len(whole) - 1)
    await answered(ws, "UTF-8 in single bytes")
    ws.drop()
    for what, text in (("0xff", b"\xff"), ("lone continuation", b"a\x80"), ("overlong", b"\xc0\x80"), ("overlong of three", b"\xe0\x80\xaf"), ("surrogate", b"\xed\xa0\x80"),
                       ("beyond U+10FFFF", b"\xf4\x90\x80\x80"), ("five bytes", b"\xf8\x88\x80\x80\x80"), ("cut off", "€".encode()[:2])):
        await expect_close(s, what, 1007, lambda w, t=text: w.frame(TEXT, t))

        async def split(w, t=text):
            await w.frame(TEXT, b"ok " + t[:1], fin=False)
            await w.frame(0, t[1:])
        await expect_close(s, what + " over two frames", 1007, split)
    await expect_close(s, "close reason that is not UTF-8", 1007, lambda w: w.frame(CLOSE, b"\x03\xe8\xff\xfe"))


async def pings(s):
    ws = await WebSocket.open(s)
    sent = [b"", b"a", b"\x00\xff\xfe", b"x" * 125] + [str(i).encode() for i in range(10)]
    for p in sent:
        await ws.frame(PING, p)
    await ws.frame(PONG, b"unasked for")
    await ws.frame(TEXT, b"x")
    await answered(ws, "text after pings")
    assert ws.pongs == sent or ws.pongs == sent[-1:], f"pongs {ws.pongs}"
    await ws.close()


async def closing(s):
    for code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999):
        await expect_close(s, f"close {code}", code, lambda w, c=code: w.frame(CLOSE, struct.pack(">H", c) + b"bye"))
    for code in (0, 999, 1004, 1005, 1006, 1015, 1100, 2999, 5000, 65535):
        await expect_close(s, f"close {code}", 1002, lambda w, c=code: w.frame(CLOSE, struct.pack(">H", c)))
    await expect_close(s, "close of one byte", 1002, lambda w: w.frame(CLOSE, b"\x03"))
    ws = await WebSocket.open(s)
    await ws.frame(CLOSE)
    assert (await ws.receive_close()).code in (1000, 1005)
    ws = await WebSocket.open(s)  # nothing counts after a close frame
    await ws.frame(CLOSE, b"\x03\xe8")
    try:
        await ws.frame(TEXT, json.dumps({"type": "response.create", "input": "x"}).encode())
    except Closed:
        pass
    assert (await ws.receive_close()).code == 1000
    CASES[0] += 2


def test_conformance():
    with Server("--max-context", "512") as s:
        async def go():
            for part in (handshakes, messages, text_encoding, pings, closing):
                before = CASES[0]
                await part(s)
                print(f"     {part.__name__}: {CASES[0] - before} cases", flush=True)
        asyncio.run(go())
        assert sum(s.restarts().values()) == 0, s.restarts()
        assert (s.status()["rates"]["requests"]) <= 1, "a message that is no request became one"


if __name__ == "__main__":
    main(test_conformance)
