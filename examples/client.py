#!/usr/bin/env python3
"""Asks Sluice a question and prints the answer as it is written: examples/client.py "Tell me a story about a lighthouse."

One WebSocket, one JSON object a message. When the connection is lost in mid-answer (try it: kill the gateway), a new
one takes over: response.resume says which event was the last one seen, and the server goes on behind it, so that no
word is lost or repeated. Needs the package websockets; the OpenAI client library works, too (see README.md).
"""
import argparse
import asyncio
import json
import sys

import websockets


async def answer(url, request, headers):
    """Yields the events of one response, each once, over as many connections as it takes."""
    response_id, seen, failures = None, -1, 0
    while True:
        try:
            async with websockets.connect(url, additional_headers=headers, max_size=None) as ws:
                if response_id:
                    await ws.send(json.dumps({"type": "response.resume", "response_id": response_id, "starting_after": seen}))
                else:
                    await ws.send(json.dumps({"type": "response.create", **request}))
                async for message in ws:
                    event = json.loads(message)
                    if event["type"] == "error":
                        raise SystemExit(f"error {event['status']}: {event['error']['message']}")
                    failures, seen = 0, event["sequence_number"]
                    response_id = event["response"]["id"] if "response" in event else response_id
                    yield event
                    if event["type"] in ("response.completed", "response.incomplete", "response.failed"):
                        return
        except (OSError, websockets.ConnectionClosed, websockets.InvalidMessage):
            pass
        failures += 1
        if failures > 20:
            raise SystemExit(f"{url} does not answer; is the server running?")
        await asyncio.sleep(min(0.05 * failures, 1))


async def main():
    options = argparse.ArgumentParser(description="Ask Sluice a question over its WebSocket.")
    options.add_argument("question", nargs="+")
    options.add_argument("--address", default="http://127.0.0.1:8080", help="as `sluice serve` prints it [%(default)s]")
    options.add_argument("--key", help="API key, if the server asks for one")
    options.add_argument("--seed", type=int, help="the same seed gives the same answer")
    options.add_argument("--greedy", action="store_true", help="always the most likely token")
    options.add_argument("--think", action="store_true", help="let the model think first; its thoughts go to stderr")
    given = options.parse_args()
    request = {"input": " ".join(given.question)}
    if given.seed is not None:
        request["seed"] = given.seed
    if given.greedy:
        request["temperature"] = 0
    if given.think:
        request["chat_template_kwargs"] = {"enable_thinking": True}
    headers = {"Authorization": f"Bearer {given.key}"} if given.key else {}
    url = given.address.replace("http", "ws", 1).rstrip("/") + "/v1/responses"

    async for event in answer(url, request, headers):
        if event["type"] == "response.output_text.delta":
            print(event["delta"], end="", flush=True)
        elif event["type"] == "response.reasoning_text.delta":
            print(event["delta"], end="", flush=True, file=sys.stderr)
        elif event["type"] == "response.failed":
            raise SystemExit(f"\nfailed: {event['response']['error']['message']}")
    usage = event["response"]["usage"]
    print(f"\n[{usage['input_tokens']} tokens in, {usage['output_tokens']} out]", file=sys.stderr)


if __name__ == "__main__":
    asyncio.run(main())
