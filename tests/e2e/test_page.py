"""The chat page in a real browser (headless Chromium, driven over its DevTools socket): answers, folded thinking, tool
calls, pictures and sound by drop, paste and button, stopping, going on after the gateway was killed in mid-answer, and text that tries to be HTML.

Skips without Chromium. SLUICE_SCREENSHOT=FILE.png keeps a picture of a conversation.
"""
import asyncio
import base64
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import types
import urllib.request

import seeing
from server import ROOT, Server, main, skip
from wsclient import WebSocket

CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome")) if p), None)
TOOLS = [{"type": "function", "name": "get_weather", "description": "The weather of a city.",
          "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "The city."}}, "required": ["city"]}}]
NASTY = "# a <img src=x onerror=\"window.hacked=1\">\n[x](javascript:alert(1)) **b** `c<script>`\n```html\n<script>window.hacked=1</script>\n```"


class Browser:
    """One tab. The protocol is JSON over a WebSocket, answers by number, events between them."""

    def __init__(self):
        self.profile = tempfile.mkdtemp(prefix="sluice-page-")
        self.process = subprocess.Popen(
            [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-port=0", "--window-size=1100,900",
             f"--user-data-dir={self.profile}", "about:blank"], stderr=subprocess.PIPE, text=True)
        self.number, self.problems = 0, []

    async def open(self, url):
        match = None
        while not match:
            line = self.process.stderr.readline()
            assert line, "chromium ended before it was ready"
            match = re.search(r"ws://([\w.]+):(\d+)/", line)
        host, port = match.group(1), int(match.group(2))
        tabs = json.load(urllib.request.urlopen(f"http://{host}:{port}/json"))
        path = "/" + next(t for t in tabs if t["type"] == "page")["webSocketDebuggerUrl"].split("/", 3)[3]
        self.ws = await WebSocket.open(types.SimpleNamespace(host=host, port=port), path)
        for domain in ("Page", "Runtime", "Log"):
            await self.call(f"{domain}.enable")
        await self.call("Page.navigate", url=url)
        await self.until("typeof socket === 'object' && socket && socket.readyState === 1 && $('model').textContent !== ''")

    async def call(self, method, **params):
        self.number += 1
        mine = self.number
        await self.ws.send({"id": mine, "method": method, "params": params})
        while True:
            answer = await asyncio.wait_for(self.ws.receive(), 60)
            if answer.get("id") == mine:
                assert "error" not in answer, answer
                return answer["result"]
            if answer.get("method") == "Runtime.exceptionThrown" or (answer.get("method") == "Log.entryAdded" and answer["params"]["entry"]["level"] == "error"):
                self.problems.append(answer["params"])

    async def js(self, expression):
        result = await self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def until(self, expression, timeout_s=90):
        for _ in range(timeout_s * 20):
            if await self.js(expression):
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"the page never said {expression}: {await self.js('document.body.innerText')}")

    async def ask(self, text):
        await self.js(f"ask({json.dumps(text)})")

    async def answer(self):
        await self.until("running === null")
        return await self.js("[...document.querySelectorAll('.turn.model')].at(-1).querySelector('.text')?.innerText ?? ''")

    def close(self):
        self.process.terminate()
        self.process.wait(20)
        shutil.rmtree(self.profile, ignore_errors=True)


async def conversation(s, b):
    assert "Sluice" in await b.js("document.title")
    await b.js("$('temperature').value = '0'; $('thinking').checked = true")
    await b.ask("What is 17 + 25?")
    assert "42" in await b.answer()
    assert await b.js("document.querySelector('details').open === false && document.querySelector('details .inside').textContent.length > 0")
    assert "tokens/s" in await b.js("document.querySelector('.facts').innerText")
    await b.js("$('thinking').checked = false; fresh()")
    await b.ask("Tell me a short story about a fox.")
    wanted = await b.answer()
    assert len(wanted) > 40, wanted
    if os.environ.get("SLUICE_SCREENSHOT"):
        with open(os.environ["SLUICE_SCREENSHOT"], "wb") as f:
            f.write(base64.b64decode((await b.call("Page.captureScreenshot", format="png"))["data"]))
    return wanted


async def killed_gateway(s, b, wanted):
    """Killed when the page has seen the first words: the text ends up the same."""
    await b.js("fresh()")
    before = s.restarts()["gateway"]
    pid = s.stage("gateway")["pid"]
    await b.js("void (window.firstDelta = new Promise((resolve) => { const old = receive; receive = (e) => { old(e); if (e.type.endsWith('.delta')) resolve(1); }; }))")
    await b.ask("Tell me a short story about a fox.")
    await b.js("window.firstDelta")
    os.kill(pid, signal.SIGKILL)
    text = await b.answer()
    assert text == wanted, (text, wanted, await b.js("document.querySelector('#log').innerText"))
    await b.until("socket && socket.readyState === 1")
    assert s.restarts()["gateway"] == before + 1


async def tools_and_stop(s, b):
    await b.js(f"fresh(); $('tools').value = {json.dumps(json.dumps(TOOLS))}")
    await b.ask("What is the weather in Oslo?")
    await b.until("document.querySelector('.call form')")
    await b.js("(() => { const f = document.querySelector('.call form'); f.querySelector('input').value = 'rain'; f.requestSubmit(); })()")
    answer = await b.answer()
    assert "rain" in answer.lower(), answer
    await b.js("$('tools').value = ''; fresh()")
    await b.ask("Tell me a long story about a dragon.")
    await b.js("document.dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape'}))")
    await b.until("running === null && !$('send').disabled")


async def text_is_text(s, b):
    html = await b.js(f"(() => {{ const d = document.createElement('div'); d.append(markdown({json.dumps(NASTY)})); document.body.append(d); const h = d.innerHTML; d.remove(); return h; }})()")
    assert "<img" not in html and "<script" not in html and "javascript:" not in re.sub(r">[^<]*<", "><", html), html
    assert "<strong>b</strong>" in html and await b.js("window.hacked") is None


async def pictures_and_sound(s, b):
    with open(os.path.join(ROOT, "tests", "golden", "image", "rgb.png"), "rb") as f:
        picture = base64.b64encode(f.read()).decode()
    await b.js("""(() => { window.put = (kind, file) => { const t = new DataTransfer(); t.items.add(file);
        document.dispatchEvent(kind === 'drop' ? new DragEvent('drop', { dataTransfer: t, bubbles: true }) : new ClipboardEvent('paste', { clipboardData: t, bubbles: true })); };
        window.picture = () => new File([Uint8Array.from(atob('%s'), (c) => c.charCodeAt(0))], 'a.png', { type: 'image/png' }); })()""" % picture)
    assert await b.js("!$('attach').hidden && $('temperature').value === ''")
    await b.js("$('maximum').value = '8'; put('drop', picture())")
    await b.until("files.length === 1 && document.querySelector('.tray img') !== null")
    await b.js("put('paste', picture())")
    await b.until("files.length === 2")
    await b.js("document.querySelector('.tray .file button').click()")
    await b.until("files.length === 1")
    await b.ask("What is this?")
    await b.answer()
    assert await b.js("items[0].content.map((c) => c.type).join() === 'input_image,input_text' && files.length === 0 && document.querySelector('.turn.user img').naturalWidth > 0")
    await b.js("attach([new File([wav([new Float32Array(8000).map((x, i) => Math.sin(i / 5))], 16000)], 'a.wav', { type: 'audio/wav' })])")
    await b.until("files.length === 1")
    await b.js("ask('')")  # a sound alone is a message, too
    await b.answer()
    media = s.status()["media"]
    assert media["files"] == 3 and media["cached"] == 1 and media["refused"] == 0, media  # the picture came again with the second turn
    if "video" in await b.js("senses"):
        with open(os.path.join(ROOT, "tests", "golden", "video", "one.webm"), "rb") as f:
            film = base64.b64encode(f.read()).decode()
        await b.js("put('drop', new File([Uint8Array.from(atob('%s'), (c) => c.charCodeAt(0))], 'a.webm', { type: 'video/webm' }))" % film)
        await b.until("files.length === 1")
        await b.ask("What happens?")
        await b.answer()
        assert await b.js("items.at(-2).content.map((c) => c.type).join() === 'input_video,input_text' && document.querySelector('.turn.user video').controls")
        media = s.status()["media"]
        assert media["files"] == 6 and media["cached"] == 3 and media["refused"] == 0, media
    await b.js("put('drop', new File(['x'], 'a.txt', { type: 'text/plain' }))")
    await b.until("document.querySelector('.note')?.textContent.includes('neither')")


def test_pictures():
    if not CHROMIUM:
        skip("chromium is not installed")

    async def go(s):
        b = Browser()
        try:
            await b.open(s.address + "/")
            await pictures_and_sound(s, b)
            assert not b.problems, b.problems
        finally:
            b.close()

    with tempfile.TemporaryDirectory(prefix="sluice-seeing-") as directory, Server(model=seeing.make(directory)) as s:
        asyncio.run(go(s))


def test_page():
    if not CHROMIUM:
        skip("chromium is not installed")

    async def go(s):
        b = Browser()
        try:
            await b.open(s.address + "/")
            wanted = await conversation(s, b)
            await text_is_text(s, b)
            await tools_and_stop(s, b)
            assert not b.problems, b.problems
            await killed_gateway(s, b, wanted)
        finally:
            b.close()

    with Server() as s:
        asyncio.run(go(s))


if __name__ == "__main__":
    main(test_page, test_pictures)
