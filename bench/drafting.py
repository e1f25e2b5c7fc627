#!/usr/bin/env python3
"""What drafting is worth: tokens a second with and without it, and how many drafts are accepted, task by task.

    python3 bench/drafting.py speed --streams 1,8,32,128 --rounds 5
    python3 bench/drafting.py accept --temperature 1

Starts servers of its own (build/sluice, or --sluice), one for each way of drafting, with the demo model unless --model is given, and asks them in turn,
so that a machine that others use too treats all ways alike. `speed` prints medians over the rounds, tokens a second and the processor time of a token (which a busy
neighbour disturbs less); `accept` asks the held-out questions of
model/train/heldout.json (--media: those on pictures and sounds, heldout_media.json) one after the other, scoring all drafts (--draft-when always).
Python's standard library only.
"""
import argparse
import asyncio
import base64
import collections
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TRAIN = os.path.join(ROOT, "model", "train")
WAYS = {"none": ["--draft", "none"], "ngram": ["--draft", "ngram"], "mtp": ["--draft", "mtp"], "dspark": ["--draft", "dspark"]}
PROMPTS = ("Tell me a short story about a {a} and a {b}.", "What is {n} plus {m}?", "Write numbers from {n} on.", "List the letters of the word {a}.",
           "Make a JSON object with {a} {n} and {b} {m}.", "Why is the sky blue?", "Repeat after me: {a} {b} {a} {b} {a} {b}.", "Tell me about yourself.")
WORDS = "river stone lamp green garden clock paper north violin bread winter forest copper window island thread morning engine silver harbour".split()


class Server:
    def __init__(self, args, *options):
        self.dir = tempfile.mkdtemp(prefix="sluice-bench-")
        words = [args.sluice, "serve", "--port", "0", "--run-dir", os.path.join(self.dir, "run"), *options] + (["--model", args.model] if args.model else [])
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=ROOT)
        line = self.process.stdout.readline()
        found = re.search(r"http://([\d.]+):(\d+)", line)
        if not found:
            sys.exit(f"the server did not start: {' '.join(words)}\n{line}")
        self.host, self.port = found.group(1), int(found.group(2))

    def stop(self):
        self.process.terminate()
        self.process.wait()

    def cpu_seconds(self):
        """Processor time of all stages so far."""
        ticks = 0
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                with open(f"/proc/{pid}/stat") as f:
                    fields = f.read().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == self.process.pid:
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    async def ask(self, body, path="/v1/responses"):
        reader, writer = await asyncio.open_connection(self.host, self.port)
        data = json.dumps(body).encode() if body is not None else b""
        writer.write(f"{'POST' if body is not None else 'GET'} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        answer = await reader.read()
        writer.close()
        head, _, text = answer.partition(b"\r\n\r\n")
        if b" 200 " not in head.split(b"\r\n")[0]:
            sys.exit(f"the server answered {answer[:300]!r}")
        if b"transfer-encoding: chunked" in head.lower():
            out = b""
            while text and int(text.split(b"\r\n")[0], 16):
                size, _, text = text.partition(b"\r\n")
                out, text = out + text[:int(size, 16)], text[int(size, 16) + 2:]
            text = out
        return text.decode()

    async def positions(self):
        """[(scored, accepted)] for each place in a block, since the server started."""
        text = await self.ask(None, "/metrics")
        out = {}
        for kind, at, n in re.findall(r'sluice_draft_position_(tokens|accepted)_total\{position="(\d+)"\} (\d+)', text):
            out.setdefault(int(at), {})[kind] = int(n)
        return [(out[i]["tokens"], out[i]["accepted"]) for i in sorted(out)]


def prompt(i):
    return PROMPTS[i % len(PROMPTS)].format(a=WORDS[i * 7 % len(WORDS)], b=WORDS[i * 11 % len(WORDS)], n=i * 13 % 90, m=i * 29 % 90)


async def load(server, streams, args, seed):
    """Tokens a second of all streams and milliseconds of processor time a token; each asks its questions one after the other, and the clock stops when the first has
    no more."""
    tokens, whole, done = 0, 0, asyncio.Event()

    async def stream(n):
        nonlocal tokens, whole
        for i in range(args.requests):
            r = json.loads(await server.ask({"input": prompt(seed + n * 5 + i), "max_output_tokens": args.tokens, "ignore_eos": True, "temperature": args.temperature, "seed": n}))
            whole += r["usage"]["output_tokens"]
            if not done.is_set():
                tokens += r["usage"]["output_tokens"]
        done.set()

    begin, cpu = time.perf_counter(), server.cpu_seconds()
    jobs = [asyncio.ensure_future(stream(n)) for n in range(streams)]
    await done.wait()
    seconds, counted = time.perf_counter() - begin, tokens
    await asyncio.gather(*jobs)
    return counted / seconds, 1000 * (server.cpu_seconds() - cpu) / whole


def speed(args):
    ways = {w: WAYS[w] for w in args.ways.split(",")}
    for w in [w for w in ways if w != "none"]:
        ways[w + ", fixed"] = ways[w] + ["--draft-when", "always"]
    most = max(map(int, args.streams.split(",")))
    servers = {w: Server(args, *o, "--max-sequences", str(max(most, 1)), *args.options.split()) for w, o in ways.items()}
    print("Tokens a second; milliseconds of processor time a token\n\n| streams | " + " | ".join(servers) + " | adaptive against the better of off and fixed |\n|" + " --- |" * (len(servers) + 2), flush=True)
    try:
        for streams in map(int, args.streams.split(",")):
            rates = collections.defaultdict(list)
            for r in range(args.rounds + 1):
                for w, s in servers.items():
                    rate = asyncio.run(load(s, streams, args, r))
                    if r:  # the first round warms up
                        rates[w].append(rate)
            m = {w: [statistics.median(x) for x in zip(*v)] for w, v in rates.items()}
            shares = [f"{w} {m[w][0] / max(m[v][0] for v in ('none', w + ', fixed') if v in m) - 1:+.1%}, {m[w][1] / min(m[v][1] for v in ('none', w + ', fixed') if v in m) - 1:+.1%}"
                      for w in m if w + ", fixed" in m]
            print(f"| {streams} | " + " | ".join(f"{m[w][0]:,.0f}; {m[w][1]:.2f}" for w in m) + f" | {'; '.join(shares)} |", flush=True)
    finally:
        for s in servers.values():
            s.stop()


def with_media(item):
    """The question's messages, its file in place of its name."""
    kind = item["file"].rsplit(".", 1)[1]
    with open(os.path.join(TRAIN, "heldout_media", item["file"]), "rb") as f:
        data = base64.b64encode(f.read()).decode()
    picture = {"type": "image_url", "image_url": {"url": f"data:image/{'jpeg' if kind == 'jpg' else kind};base64,{data}"}}
    sound = {"type": "input_audio", "input_audio": {"data": data, "format": kind}}
    return [{"role": m["role"], "content": [c if c["type"] == "text" else picture if c["type"] == "image" else sound for c in m["content"]]} for m in item["messages"]]


async def ask_families(server, args):
    """{family: [tokens, rounds]}, and the positions."""
    sums = collections.defaultdict(lambda: [0, 0])
    with open(os.path.join(TRAIN, "heldout_media.json" if args.media else "heldout.json")) as f:
        items = json.load(f)
    for item in items:
        body = {"messages": with_media(item) if args.media else item["messages"], "max_tokens": args.tokens, "temperature": args.temperature, "seed": 5}
        body.update({k: item[k] for k in ("tools", "chat_template_kwargs") if k in item})
        r = json.loads(await server.ask(body, "/v1/chat/completions"))
        sluice = r.get("sluice") or {}
        if sluice.get("rounds"):
            tokens = r["usage"]["completion_tokens"]
            for family in (item["family"], "all"):
                sums[family][0] += tokens
                sums[family][1] += sluice["rounds"]
    return sums, await server.positions()


def accept(args):
    ways = [w for w in args.ways.split(",") if w != "none"]
    results = {}
    for w in ways:
        server = Server(args, *WAYS[w], "--draft-when", "always", *args.options.split())
        results[w] = asyncio.run(ask_families(server, args))
        server.stop()
    print(f"Accept length (tokens a round) at temperature {args.temperature:g}\n\n| task | " + " | ".join(ways) + " |\n|" + " --- |" * (len(ways) + 1))
    for family in sorted(results[ways[0]][0], key=lambda f: (f == "all", f)):
        print(f"| {family} | " + " | ".join("{:.2f}".format(results[w][0][family][0] / max(1, results[w][0][family][1])) for w in ways) + " |")
    print("\nAccepted of those scored, by place in the block: " + "; ".join(
        w + " " + " ".join(f"{a / n:.2f}" for n, a in results[w][1] if n >= 20) for w in ways))


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", choices=("speed", "accept"))
    p.add_argument("--sluice", default=os.path.join(ROOT, "build", "sluice"))
    p.add_argument("--model", default="")
    p.add_argument("--ways", default="none,ngram,mtp")
    p.add_argument("--options", default="", help="more options for every server, in one word")
    p.add_argument("--streams", default="1,8,32,128")
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--requests", type=int, default=2, help="of each stream in a round")
    p.add_argument("--tokens", type=int, default=128, help="of each answer, at most")
    p.add_argument("--temperature", type=float, default=0)
    p.add_argument("--media", action="store_true", help="accept: the questions on pictures and sounds")
    args = p.parse_args()
    {"speed": speed, "accept": accept}[args.what](args)


if __name__ == "__main__":
    main()
