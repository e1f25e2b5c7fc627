#!/usr/bin/env python3
"""Load generator over the WebSocket: time to first token, time between deltas, tokens a second, accept length.

    build/sluice serve --port 8080 &
    python3 bench/load.py --url ws://127.0.0.1:8080/v1/responses --streams 1,8,32 --requests 64

Each stream sends its requests one after the other on a connection of its own; greedy unless --temperature is given.
Figures are medians and 99th percentiles over all requests of a row. Needs the package `websockets`.
"""
import argparse, asyncio, json, statistics, time

import websockets

PROMPTS = [
    "Count from 1 to 60.",
    "Tell me a story about a fox named Mila.",
    "List the letters of the alphabet.",
    "Sort these numbers: 42, 7, 19, 88, 3.",
    "What is 17 + 25?",
    "Spell the word lantern.",
]


def quantile(values, q):
    values = sorted(values)
    return values[min(len(values) - 1, int(q * len(values)))] if values else float("nan")


async def one_request(socket, prompt, args):
    request = {"type": "response.create", "model": args.model, "input": prompt, "max_output_tokens": args.max_tokens,
               "temperature": args.temperature, "seed": 1}
    if args.ignore_eos:
        request["ignore_eos"] = True
    begin = time.perf_counter()
    await socket.send(json.dumps(request))
    times = []
    while True:
        event = json.loads(await socket.recv())
        if event["type"].endswith(".delta"):
            times.append(time.perf_counter())
        elif event["type"] in ("response.completed", "response.incomplete"):
            response = event["response"]
            return {"ttft": times[0] - begin if times else None, "gaps": [b - a for a, b in zip(times, times[1:])],
                    "tokens": response["usage"]["output_tokens"], "seconds": time.perf_counter() - begin,
                    "accept_length": response.get("sluice", {}).get("accept_length")}
        elif event["type"] in ("error", "response.failed"):
            raise SystemExit(f"the server answered {json.dumps(event)[:400]}")


async def stream(number, count, args, results):
    async with websockets.connect(args.url, additional_headers={"Authorization": f"Bearer {args.key}"} if args.key else None,
                                  max_size=None, compression=None) as socket:
        for i in range(count):
            results.append(await one_request(socket, PROMPTS[(number + i) % len(PROMPTS)], args))


async def row(streams, args):
    results, begin = [], time.perf_counter()
    per_stream = max(1, args.requests // streams)
    await asyncio.gather(*(stream(n, per_stream, args, results) for n in range(streams)))
    seconds = time.perf_counter() - begin
    gaps = [g for r in results for g in r["gaps"]]
    ttft = [r["ttft"] for r in results if r["ttft"] is not None]
    tokens = sum(r["tokens"] for r in results)
    accept = [r["accept_length"] for r in results if r["accept_length"]]
    per_user = statistics.median(r["tokens"] / r["seconds"] for r in results)
    print(f"{streams:7d} {len(results):8d} {tokens:8d} {tokens / seconds:10.0f} {per_user:10.0f} "
          f"{1e3 * quantile(ttft, .5):9.1f} {1e3 * quantile(ttft, .99):9.1f} {1e3 * quantile(gaps, .5):9.2f} {1e3 * quantile(gaps, .99):9.2f} "
          f"{statistics.mean(accept) if accept else float('nan'):7.2f}", flush=True)


async def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--url", default="ws://127.0.0.1:8080/v1/responses")
    p.add_argument("--model", default="sluice-demo")
    p.add_argument("--key", default="")
    p.add_argument("--streams", default="1,8,32", help="rows of the table: concurrent streams")
    p.add_argument("--requests", type=int, default=64, help="requests a row, all streams together")
    p.add_argument("--max-tokens", type=int, default=200)
    p.add_argument("--temperature", type=float, default=0.0)
    p.add_argument("--ignore-eos", action="store_true", help="always generate --max-tokens")
    args = p.parse_args()
    print(f"{'streams':>7} {'requests':>8} {'tokens':>8} {'tok/s all':>10} {'tok/s one':>10} {'ttft p50':>9} {'ttft p99':>9} {'gap p50':>9} {'gap p99':>9} {'accept':>7}   (ms)")
    for streams in args.streams.split(","):
        await row(int(streams), args)


asyncio.run(main())
