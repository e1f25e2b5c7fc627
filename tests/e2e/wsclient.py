"""A WebSocket and HTTP client for tests: asyncio and the standard library only.

Unlike a client for users it can also misbehave: single frames with any bits, connections that vanish. On top of the
frames: run() sends one response.create and follows its events to the end, over as many connections as it takes.
"""
import asyncio
import base64
import hashlib
import json
import os
import struct

GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
WAIT_S = 300  # for the next byte, on a slow machine with a sanitized build
TERMINAL = ("response.completed", "response.incomplete", "response.failed")
COME_BACK = (1001, 1006, 1011, 1012, 1013)  # close codes after which a client reconnects; 1006: it ended without one


class Closed(Exception):
    """The connection ended; code 1006 when there was no close frame."""

    def __init__(self, code, reason=""):
        super().__init__(f"closed with {code} {reason}")
        self.code, self.reason = code, reason


class Refused(Exception):
    """The upgrade was answered with something else."""

    def __init__(self, status, headers, body):
        super().__init__(f"HTTP {status}: {body[:300]!r}")
        self.status, self.headers, self.body = status, headers, body


class ServerError(Exception):
    """An error frame."""

    def __init__(self, frame):
        super().__init__(json.dumps(frame))
        self.frame, self.status, self.error = frame, frame.get("status"), frame.get("error", {})


async def read_head(reader):
    """(status, {name: value}) of an HTTP answer."""
    line = await reader.readline()
    if not line:
        raise Closed(1006, "no answer")
    status = int(line.split()[1])
    headers = {}
    while True:
        line = (await reader.readline()).decode("latin-1").strip()
        if not line:
            return status, headers
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()


async def body_pieces(reader, headers):
    """The body as it arrives, without its chunk framing."""
    if "chunked" in headers.get("transfer-encoding", "").lower():
        while True:
            line = await reader.readline()
            if not line:
                raise Closed(1006, "the body is cut off")
            size = int(line.split(b";")[0], 16)
            piece = await reader.readexactly(size)
            await reader.readline()
            if size == 0:
                return
            yield piece
    elif "content-length" in headers:
        left = int(headers["content-length"])
        while left:
            piece = await reader.read(min(left, 65536))
            if not piece:
                raise Closed(1006, "the body is cut off")
            left -= len(piece)
            yield piece
    else:
        while piece := await reader.read(65536):
            yield piece


async def http(server, method, path, body=None, headers=None):
    """One request on its own connection: (status, headers, body). A dict as body is sent as JSON."""
    async def ask():
        reader, writer = await asyncio.open_connection(server.host, server.port)
        try:
            writer.write(http_request(server, method, path, body, headers))
            await writer.drain()
            status, answer = await read_head(reader)
            return status, answer, b"".join([p async for p in body_pieces(reader, answer)])
        finally:
            writer.close()
    return await asyncio.wait_for(ask(), WAIT_S)


def http_request(server, method, path, body=None, headers=None):
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", f"Host: {server.host}:{server.port}", "Connection: close"]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(data)}"]
    lines += [f"{k}: {v}" for k, v in (headers or {}).items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


async def sse(server, path, body, headers=None):
    """The `data:` lines of an event stream, parsed; "[DONE]" as that text. Raises Refused when the answer is no stream."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        writer.write(http_request(server, "POST", path, body, headers))
        await writer.drain()
        status, answer = await asyncio.wait_for(read_head(reader), WAIT_S)
        if status != 200:
            raise Refused(status, answer, b"".join([p async for p in body_pieces(reader, answer)]))
        kept = b""
        async for piece in body_pieces(reader, answer):
            kept += piece
            while b"\n" in kept:
                line, kept = kept.split(b"\n", 1)
                if line.startswith(b"data:"):
                    data = line[5:].strip().decode()
                    yield data if data == "[DONE]" else json.loads(data)
    finally:
        writer.transport.abort()


class WebSocket:
    """One connection. Pings of the server are answered while a message is awaited."""

    def __init__(self, reader, writer, headers):
        self.reader, self.writer, self.headers = reader, writer, headers
        self.pongs = []

    @classmethod
    async def open(cls, server, path="/v1/responses", headers=None, receive_buffer=None):
        """Raises Refused when the upgrade is, Closed when the connection ends before it is answered."""
        async def connect():
            if receive_buffer:
                import socket
                sock = socket.socket(socket.AF_INET6 if ":" in server.host else socket.AF_INET)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
                sock.setblocking(False)
                await asyncio.get_running_loop().sock_connect(sock, (server.host, server.port))
                return await asyncio.open_connection(sock=sock, limit=receive_buffer)
            return await asyncio.open_connection(server.host, server.port, limit=1 << 24)

        try:
            reader, writer = await asyncio.wait_for(connect(), WAIT_S)
            key = base64.b64encode(os.urandom(16)).decode()
            every = {"Host": f"{server.host}:{server.port}", "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Key": key,
                     "Sec-WebSocket-Version": "13", **(headers or {})}
            lines = [f"GET {path} HTTP/1.1"] + [f"{k}: {v}" for k, v in every.items()]
            writer.write("\r\n".join(lines).encode() + b"\r\n\r\n")
            await writer.drain()
            status, answer = await asyncio.wait_for(read_head(reader), WAIT_S)
            if status != 101:
                body = b"".join([p async for p in body_pieces(reader, answer)])
                writer.close()
                raise Refused(status, answer, body)
        except (OSError, asyncio.IncompleteReadError) as e:
            raise Closed(1006, str(e)) from None
        wanted = base64.b64encode(hashlib.sha1((key + GUID).encode()).digest()).decode()
        assert answer.get("sec-websocket-accept") == wanted, f"Sec-WebSocket-Accept is {answer.get('sec-websocket-accept')}, not {wanted}"
        return cls(reader, writer, answer)

    async def frame(self, opcode, payload=b"", fin=True, mask=True, rsv=0, length=None, cut=None):
        """One frame. length: what the header claims; cut: bytes of the whole frame that are really sent."""
        claimed = len(payload) if length is None else length
        head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
        bit = 0x80 if mask else 0
        if claimed < 126:
            head += bytes([bit | claimed])
        elif claimed < 65536:
            head += bytes([bit | 126]) + struct.pack(">H", claimed)
        else:
            head += bytes([bit | 127]) + struct.pack(">Q", claimed)
        if mask:
            key = os.urandom(4)
            pad = (key * (len(payload) // 4 + 1))[:len(payload)]
            payload = (int.from_bytes(payload, "big") ^ int.from_bytes(pad, "big")).to_bytes(len(payload), "big") if payload else b""
            head += key
        try:
            self.writer.write((head + payload)[:cut])
            await asyncio.wait_for(self.writer.drain(), WAIT_S)
        except OSError as e:
            raise Closed(1006, str(e)) from None

    async def send(self, message):
        """A text message: a str as it is, bytes as they are, anything else as JSON."""
        data = message if isinstance(message, bytes) else (message if isinstance(message, str) else json.dumps(message)).encode()
        await self.frame(TEXT, data)

    async def receive_frame(self):
        """(fin, opcode, payload); checks what a server must keep: no mask, no reserved bits."""
        async def get():
            a, b = await self.reader.readexactly(2)
            assert not b & 0x80, "the server masked a frame"
            assert not a & 0x70, "the server set reserved bits"
            size = b & 0x7f
            if size == 126:
                size, = struct.unpack(">H", await self.reader.readexactly(2))
            elif size == 127:
                size, = struct.unpack(">Q", await self.reader.readexactly(8))
            return bool(a & 0x80), a & 0x0f, await self.reader.readexactly(size)

        try:
            return await asyncio.wait_for(get(), WAIT_S)
        except (asyncio.IncompleteReadError, OSError):
            raise Closed(1006) from None

    async def receive_text(self):
        """The next text message. Raises Closed at the end."""
        parts = []
        while True:
            fin, opcode, payload = await self.receive_frame()
            if opcode == PING:
                await self.frame(PONG, payload)
            elif opcode == PONG:
                self.pongs.append(payload)
            elif opcode == CLOSE:
                code = struct.unpack(">H", payload[:2])[0] if len(payload) >= 2 else 1005
                try:
                    await self.frame(CLOSE, payload[:2])
                except Closed:
                    pass
                self.writer.close()
                raise Closed(code, payload[2:].decode(errors="replace"))
            else:
                parts.append(payload)
                if fin:
                    return b"".join(parts).decode()

    async def receive(self):
        return json.loads(await self.receive_text())

    async def receive_close(self):
        """Reads on to the end, whatever comes before: the close code (1006: none was sent)."""
        try:
            while True:
                await self.receive_text()
        except Closed as e:
            return e

    async def close(self, code=1000):
        """In order: close frame out, close frame in. The server's code."""
        try:
            await self.frame(CLOSE, struct.pack(">H", code))
            return (await self.receive_close()).code
        except Closed as e:
            return e.code

    def drop(self):
        """As if the cable were cut."""
        self.writer.transport.abort()


class Result:
    """The events of one response, folded. Raises AssertionError when they do not fit together."""

    def __init__(self):
        self.id = None
        self.next_sequence = 0
        self.items = {}  # output_index: text of its deltas
        self.added = {}
        self.final = None  # the terminal event
        self.connections = 0
        self.deltas = 0

    def add(self, event):
        kind = event["type"]
        number = event["sequence_number"]
        assert number == self.next_sequence, f"sequence_number {number} of {kind}, expected {self.next_sequence}"
        assert not self.final, f"{kind} after the terminal event"
        self.next_sequence += 1
        if kind == "response.created":
            assert number == 0
            self.id = event["response"]["id"]
        elif kind == "response.output_item.added":
            self.added[event["output_index"]] = event["item"]["type"]
            self.items[event["output_index"]] = ""
        elif kind.endswith(".delta"):
            self.deltas += 1
            self.items[event["output_index"]] += event["delta"]
        elif kind.endswith("_text.done"):
            assert self.items[event["output_index"]] == event["text"], "deltas and .done differ"
        elif kind == "response.function_call_arguments.done":
            assert self.items[event["output_index"]] == event["arguments"], "deltas and .done differ"
        elif kind in TERMINAL:
            self.final = event
            self.check()

    def check(self):
        output = self.final["response"]["output"]
        assert len(output) == len(self.items), f"{len(output)} items in the response, {len(self.items)} in the events"
        for i, item in enumerate(output):
            text = item["arguments"] if item["type"] == "function_call" else "".join(p["text"] for p in item["content"])
            assert text == self.items[i], f"item {i}: deltas and the final response differ"

    def of_type(self, kind):
        return "".join(t for i, t in sorted(self.items.items()) if self.added[i] == kind)

    @property
    def text(self):
        return self.of_type("message")

    @property
    def reasoning(self):
        return self.of_type("reasoning")

    @property
    def response(self):
        return self.final["response"]

    @property
    def calls(self):
        return [{"name": i["name"], "arguments": i["arguments"], "call_id": i["call_id"]} for i in self.response["output"] if i["type"] == "function_call"]

    def outcome(self):
        """All that must be the same for the same request: everything but ids, times and measurements (and how much of the prompt had been computed before)."""
        r = self.response
        usage = {k: v for k, v in r["usage"].items() if k != "input_tokens_details"} if r["usage"] else r["usage"]
        output = [{k: v for k, v in item.items() if k not in ("id", "call_id")} for item in r["output"]]
        return json.dumps({"end": self.final["type"], "why": r.get("incomplete_details"), "error": r.get("error"), "output": output, "usage": usage,
                           "token_ids": r.get("token_ids"), "prompt_token_ids": r.get("prompt_token_ids")}, sort_keys=True)


def resume(result):
    return {"type": "response.resume", "response_id": result.id, "starting_after": result.next_sequence - 1}


async def follow(ws, result, on_event=None):
    """Reads events of the only response on this connection until its end."""
    while not result.final:
        event = await ws.receive()
        if event["type"] == "error":
            raise ServerError(event)
        result.add(event)
        if on_event:
            await on_event(event, ws)
    return result


async def run(server, body, on_event=None, come_back=True, headers=None, tries=200):
    """One response from beginning to end, on connections of its own. A connection that is lost is replaced, and the
    response resumed; before its id is known there is nothing to resume, and the request is sent again."""
    result = Result()
    for _ in range(tries):
        try:
            ws = await WebSocket.open(server, headers=headers)
        except Closed:
            await asyncio.sleep(0.02)
            continue
        result.connections += 1
        try:
            await ws.send(resume(result) if result.id else {"type": "response.create", **body})
            await follow(ws, result, on_event)
            await ws.close()
            return result
        except Closed as e:
            if not come_back or e.code not in COME_BACK:
                raise
        finally:
            ws.drop()
    raise AssertionError(f"no end after {tries} connections")


async def gather_limited(limit, jobs):
    """Runs coroutines, `limit` at a time, in order; their results."""
    gate = asyncio.Semaphore(limit)

    async def one(job):
        async with gate:
            return await job
    return await asyncio.gather(*(one(j) for j in jobs))
