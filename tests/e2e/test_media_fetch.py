#!/usr/bin/env python3
"""Pictures by their address (--allow-image-fetch): fetched like everything else that is sent, from nowhere but where it is allowed, and whatever the
other side does costs that request alone. A small server of the test's own plays the internet, and another one the secrets behind the wall."""
import asyncio
import http.server
import json
import os
import shutil
import signal
import ssl
import subprocess
import tempfile
import threading
import time

from server import BUILD, main, skip, wait_until
from test_media import chat_body, chat_part, golden, input_body, model, post, workers_of
from wsclient import gather_limited, http as ask, run
import workload
from server import Server

TIME_LIMIT_S = 300
PICTURE = golden("image/rgb.png")


class Web(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hits = []
    secrets = ""  # where the other server is

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", kind="image/png", **headers):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(headers.pop("length", len(body))))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def drip(self, piece, every_s, length=None):
        """Piece after piece, until the other side has enough."""
        self.send_response(200)
        self.send_header("Content-Type", "image/png")
        self.send_header("Content-Length", str(length)) if length else self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        until = time.monotonic() + 60
        while time.monotonic() < until:
            self.wfile.write(piece)
            time.sleep(every_s)

    def do_GET(self):
        Web.hits.append(self.path)
        name, _, query = self.path[1:].partition("?")
        try:
            {"ok": lambda: self.answer(200, PICTURE),
             "missing": lambda: self.answer(404, b"no"),
             "page": lambda: self.answer(200, b"<html>", "text/html"),
             "words": lambda: self.answer(200, b"these are no pixels" * 20),
             "empty": lambda: self.answer(200),
             "moved": lambda: self.answer(302, b"a page that says so", "text/html", Location="/ok"),
             "to": lambda: self.answer(302, Location=query),
             "loop": lambda: self.answer(302, Location="/loop"),
             "huge": lambda: self.answer(200, b"x", length=1 << 30),
             "endless": lambda: self.drip(b"\x89PNG" * 65536, 0),
             "slow": lambda: self.drip(b"x", 0.2, 100000),
             "silent": lambda: time.sleep(60),
             "late": lambda: (time.sleep(1.5), self.answer(200, PICTURE))}[name]()
        except (BrokenPipeError, ConnectionResetError):
            pass


class Behind(http.server.BaseHTTPRequestHandler):
    """What nobody outside may see."""
    hits = []

    def log_message(self, *_):
        pass

    def do_GET(self):
        Behind.hits.append(self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(PICTURE)


def start(handler, context=None):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, server.server_address[1]


web, WEB = start(Web)
behind, BEHIND = start(Behind)
AT = f"http://127.0.0.1:{WEB}"


def serve(*options, allow=()):
    listed = ",".join(f"127.0.0.1:{port}" for port in (WEB, *allow))
    return Server("--kv-cache-dtype", "f32", "--vision-workers", "2", "--allow-image-fetch", "--image-fetch-allow", listed, *options, model=model())


def link(url):
    return {"type": "image_url", "image_url": {"url": url}}


def fetchers_of(server):
    """Pids of the processes that fetch."""
    parent = server.stage("fetch")["pid"]
    with open(f"/proc/{parent}/task/{parent}/children") as f:
        return [int(x) for x in f.read().split()]


def test_the_picture_is_the_picture():
    with serve() as s:
        wanted = post(s, "/v1/chat/completions", chat_body([chat_part(PICTURE)]))[1]
        for path in ("/ok", "/moved", f"/to?{AT}/moved", f"/to?{AT.replace('127.0.0.1', '127.1')}/ok"):
            status, answer = post(s, "/v1/chat/completions", chat_body([link(AT + path)]))
            assert status == 200 and answer["choices"][0]["token_ids"] == wanted["choices"][0]["token_ids"] and answer["usage"] == wanted["usage"], (path, answer)
        result = asyncio.run(run(s, input_body([{"type": "input_image", "image_url": AT + "/ok"}])))
        assert result.final["type"] in ("response.completed", "response.incomplete"), result.final
        mixed = post(s, "/v1/chat/completions", chat_body([chat_part(golden("image/p.png")), link(AT + "/late"), chat_part(golden("image/l.png"))]))[1]
        same = post(s, "/v1/chat/completions", chat_body([chat_part(golden("image/p.png")), chat_part(PICTURE), chat_part(golden("image/l.png"))]))[1]
        assert mixed["choices"][0]["token_ids"] == same["choices"][0]["token_ids"]
        low = post(s, "/v1/chat/completions", chat_body([{"type": "image_url", "image_url": {"url": AT + "/ok", "detail": "low"}}]))[0]
        assert low == 200


def refusals():
    return [
        ("a status", AT + "/missing", 400, "404"), ("a page", AT + "/page", 400, "text/html"), ("no picture", AT + "/words", 400, "no format known"), ("nothing", AT + "/empty", 400, "empty"),
        ("a loop", AT + "/loop", 400, "more than 3 times"), ("too large, said", AT + "/huge", 413, "20 MiB"), ("too large, endless", AT + "/endless", 413, "20 MiB"),
        ("slow", AT + "/slow", 400, "in time"), ("silent", AT + "/silent", 400, "in time"),
        ("loopback", f"http://127.0.0.1:{BEHIND}/", 400, "not public"), ("loopback by number", f"http://2130706433:{BEHIND}/", 400, "not public"), ("in hex", f"http://0x7f.1:{BEHIND}/", 400, "not public"),
        ("loopback 6", f"http://[::1]:{BEHIND}/", 400, "not public"), ("mapped", f"http://[::ffff:127.0.0.1]:{BEHIND}/", 400, "not public"), ("metadata", "http://169.254.169.254/latest/meta-data/", 400, "not public"),
        ("private", "http://10.1.2.3/a.png", 400, "not public"), ("unique local", "https://[fd00::1]/a.png", 400, "not public"), ("a port", "http://8.8.8.8:22/", 400, "port 22"),
        ("redirect to loopback", f"{AT}/to?http://127.0.0.1:{BEHIND}/x", 400, "not public"), ("redirect to metadata", f"{AT}/to?http://169.254.169.254/", 400, "not public"),
        ("redirect to a file", f"{AT}/to?file:///etc/passwd", 400, "only http and https"), ("redirect with a name", f"{AT}/to?http://a:b@127.0.0.1:{WEB}/ok", 400, "user name"),
        ("a name and password", f"http://user:secret@127.0.0.1:{WEB}/ok", 400, "user name"), ("nobody there", "http://127.0.0.1:1/", 400, "not public"),
        ("no such host", "http://nothing.invalid/a.png", 400, "nothing.invalid"), ("no URL", "http://", 400, "not valid"), ("a space", AT + "/a b", 400, "%XX"),
        ("long", AT + "/" + "x" * 3000, 400, "longer"), ("a file", "file:///etc/passwd", 400, "data:image"), ("gopher", "gopher://127.0.0.1/", 400, "data:image"),
    ]


def test_refusals():
    with serve() as s:
        async def go():
            return await gather_limited(8, [ask(s, "POST", "/v1/chat/completions", chat_body([link(url)])) for _, url, _, _ in refusals()])
        for (name, url, wanted, words), (status, _, body) in zip(refusals(), asyncio.run(go())):
            message = json.loads(body)["error"]["message"]
            print(f"     {name}: {message}")
            assert status == wanted and words in message, (name, url, status, message)
        assert Behind.hits == [], "something that is not public was asked"
        assert s.stage("fetch")["restarts"] == 0 and s.stage("vision")["restarts"] == 0
        assert post(s, "/v1/chat/completions", chat_body([link(AT + "/ok")]))[0] == 200


def test_https():
    if not shutil.which("openssl"):
        skip("there is no openssl to make a certificate with")
    with tempfile.TemporaryDirectory() as d:
        subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", f"{d}/key", "-out", f"{d}/cert"],
                       check=True, capture_output=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(f"{d}/cert", f"{d}/key")
        server, port = start(Web, context)
        with serve(allow=(port,)) as s:
            before = len(Web.hits)
            status, answer = post(s, "/v1/chat/completions", chat_body([link(f"https://127.0.0.1:{port}/ok")]))
            assert status in (400, 500) and ("not trusted" in answer["error"]["message"] or "no certificates" in answer["error"]["message"]), answer
            assert len(Web.hits) == before, "something was asked of a server that nobody vouches for"
            print(f"     {answer['error']['message']}")
        server.shutdown()


def test_off():
    with Server("--kv-cache-dtype", "f32", model=model()) as s:
        assert s.stage("fetch")["state"] == "off" and s.stage("fetch")["pid"] == 0
        before = len(Web.hits)
        status, answer = post(s, "/v1/chat/completions", chat_body([link(AT + "/ok")]))
        assert status == 400 and answer["error"]["code"] == "unsupported_content" and len(Web.hits) == before, answer
        code, _, err = s.command("swap", "fetch", "--default")
        assert code != 0 and "--allow-image-fetch" in err, err
    # an option that would do nothing alone
    p = subprocess.run([os.path.join(BUILD, "sluice"), "serve", "--image-fetch-allow", "127.0.0.1:1"], capture_output=True, text=True)
    assert p.returncode == 100 and "allow-image-fetch" in p.stderr, (p.returncode, p.stderr)


def test_deaths():
    """A process that fetches dies: its request fails. The stage dies: nobody notices. The vision stage dies meanwhile: nor then."""
    texts = workload.bodies(4, least=40, most=80)
    body = chat_body([link(AT + "/late")])
    with serve("--restart-budget", "100000", "--media-cache-mib", "0") as s:
        wanted = [asyncio.run(run(s, b)).outcome() for b in texts]
        right = post(s, "/v1/chat/completions", body)[1]["choices"][0]["token_ids"]

        async def round_of(what):
            link_answer = asyncio.ensure_future(ask(s, "POST", "/v1/chat/completions", body))
            beside = asyncio.ensure_future(gather_limited(4, [run(s, b) for b in texts]))
            for _ in range(200):
                if await asyncio.to_thread(fetchers_of, s):
                    break
                await asyncio.sleep(0.02)
            await asyncio.to_thread(what)
            outcomes = [r.outcome() for r in await beside]
            assert outcomes == wanted, "a text beside it differs"
            status, _, answer = await link_answer
            return status, json.loads(answer)

        def kill_workers():
            for pid in fetchers_of(s):
                os.kill(pid, signal.SIGKILL)
        status, answer = asyncio.run(round_of(kill_workers))
        assert status == 500 and "was killed" in answer["error"]["message"], (status, answer)
        for role in ("fetch", "vision", "tokenize", "gateway", "fetch"):
            s.settle()
            if role == "gateway":
                continue  # a plain HTTP request does not outlive its gateway unless it is resumed
            status, answer = asyncio.run(round_of(lambda r=role: s.signal(r, signal.SIGKILL)))
            assert status == 200 and answer["choices"][0]["token_ids"] == right, (role, status, answer)
        s.settle()
        wait_until("nobody fetches any more", lambda: not fetchers_of(s), 20)
        assert s.stage("fetch")["restarts"] == 2


def test_crowd():
    """More links than are fetched at once, some of them bad."""
    with serve("--max-context", "4096") as s:
        bodies = [chat_body([link(f"{AT}/{('ok', 'late', 'missing')[(i + j) % 3]}") for j in range(4)], max_tokens=2) for i in range(12)]

        async def go():
            return await gather_limited(12, [ask(s, "POST", "/v1/chat/completions", b) for b in bodies])
        statuses = [x[0] for x in asyncio.run(go())]
        assert set(statuses) == {400}, statuses
        good = [chat_body([link(f"{AT}/{('ok', 'late')[(i + j) % 2]}") for j in range(4)], max_tokens=2) for i in range(10)]

        async def all_good():
            return await gather_limited(10, [ask(s, "POST", "/v1/chat/completions", b) for b in good])
        statuses = [(x[0], x[2][:200]) for x in asyncio.run(all_good())]
        assert all(x[0] == 200 for x in statuses), statuses
        assert workers_of(s)


def has_libcurl():
    stage = os.path.join(BUILD, "stages", "fetch")
    return not os.access(stage, os.X_OK) or "libcurl" in subprocess.run(["ldd", stage], capture_output=True, text=True).stdout


if __name__ == "__main__":
    if not has_libcurl():
        skip("the fetch stage was built without libcurl")
    main(test_the_picture_is_the_picture, test_refusals, test_https, test_off, test_deaths, test_crowd)
