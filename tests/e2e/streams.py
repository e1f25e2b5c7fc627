"""Clients that ask one request after the other while a test harms the server; every outcome must be that of the undisturbed server, to the byte.

Python's standard library only. `done`, `connections` and `deltas` may be read at any time."""
import asyncio
import time

from wsclient import run


def differ(i, wanted, got):
    return f"request {i} differs\n  wanted {wanted[:1200]}\n  got    {got[:1200]}"


class Streams:
    """`count` clients; client n begins with body n, and each goes on `count` + 1 further: all of them meet all bodies unless their number shares a factor with that."""

    def __init__(self, server, bodies, wanted, count=8):
        self.server, self.bodies, self.wanted, self.count = server, bodies, wanted, count
        self.deltas = [[] for _ in range(count)]  # of each client (moment, number of the response) of every delta
        self.done = self.connections = 0
        self.stop = False

    async def client(self, number):
        at = number
        while not self.stop:
            async def note(event, ws):
                if event["type"].endswith(".delta"):
                    self.deltas[number].append((time.monotonic(), at))
            i = at % len(self.bodies)
            result = await run(self.server, self.bodies[i], on_event=note)
            assert result.outcome() == self.wanted[i], differ(i, self.wanted[i], result.outcome())
            self.done += 1
            self.connections += result.connections
            at += self.count + 1

    async def during(self, work):
        """Runs the clients while `work` goes on; what it returns. The first failure, of either, is the test's."""
        jobs = [asyncio.ensure_future(self.client(i)) for i in range(self.count)]
        worker = asyncio.ensure_future(work)
        try:
            done, _ = await asyncio.wait([*jobs, worker], return_when=asyncio.FIRST_COMPLETED)
            for job in done:
                job.result()
            self.stop = True
            await asyncio.gather(*jobs)
            return worker.result()
        finally:
            for job in (*jobs, worker):
                job.cancel()
