"""Feeds the trainer: worker processes generate conversations, tokenize them and pack them into rows.

A row holds several whole conversations; `positions` starts at 0 in each, `learn` marks the tokens that the model must say.
Fails   if a worker dies: take() notices and raises.
"""
import multiprocessing
import queue
import threading

import numpy

LENGTHS = (256, 1024, 4096)       # of rows; a conversation goes into the shortest that holds it, a longer one is left out
BLOCK_TOKENS = 16384        # of one message from a worker
OPEN_ROWS = 24
SEED_STRIDE = 1_000_003


class Packer:
    """Rows of one length, filled first-fit."""

    def __init__(self, length):
        self.length, self.rows = length, []

    def add(self, prompt, completion):
        """Places a conversation; returns a finished row or None."""
        size = len(prompt) + len(completion)
        done = None
        row = next((x for x in self.rows if x[0] + size <= self.length), None)
        if row is None:
            if len(self.rows) == OPEN_ROWS:
                fullest = max(range(OPEN_ROWS), key=lambda i: self.rows[i][0])
                done = self.rows.pop(fullest)
            row = [0, []]
            self.rows.append(row)
        row[0] += size
        row[1].append((prompt, completion))
        return None if done is None else self.finish(done[1])

    def finish(self, conversations):
        ids, positions, learn = (numpy.zeros(self.length, t) for t in (numpy.int16, numpy.int16, bool))
        at = 0
        for prompt, completion in conversations:
            middle, end = at + len(prompt), at + len(prompt) + len(completion)
            ids[at:middle], ids[middle:end] = prompt, completion
            positions[at:end] = numpy.arange(end - at)
            learn[middle:end] = True
            at = end
        return ids, positions, learn


def work(seed, out):
    import generate
    packers = [Packer(n) for n in LENGTHS]
    blocks = [[] for _ in LENGTHS]
    for prompt, completion in generate.examples(seed):
        size = len(prompt) + len(completion)
        kind = next((i for i, n in enumerate(LENGTHS) if size <= n), None)
        if kind is None:
            continue
        row = packers[kind].add(prompt, completion)
        if row is None:
            continue
        blocks[kind].append(row)
        if len(blocks[kind]) * LENGTHS[kind] >= BLOCK_TOKENS:
            out.put((kind, [numpy.stack(part) for part in zip(*blocks[kind])]))
            blocks[kind] = []


class Feed:
    """Batches of `tokens` tokens from `workers` processes."""

    def __init__(self, seed, workers, tokens):
        self.queue = multiprocessing.Queue(maxsize=workers * 8)
        self.blocks = tokens // BLOCK_TOKENS
        self.kept = [[] for _ in LENGTHS]
        self.workers = [multiprocessing.Process(target=work, args=(seed * SEED_STRIDE + i, self.queue), daemon=True) for i in range(workers)]
        for worker in self.workers:
            worker.start()

    def take(self):
        """(ids, positions, learn) of one batch; its rows have one length."""
        while True:
            for blocks in self.kept:
                if len(blocks) >= self.blocks:
                    taken, blocks[:] = blocks[:self.blocks], blocks[self.blocks:]
                    return [numpy.concatenate(part) for part in zip(*taken)]
            try:
                kind, block = self.queue.get(timeout=5)
            except queue.Empty:
                if not all(w.is_alive() for w in self.workers):
                    raise RuntimeError("a worker that generates data has died") from None
                continue
            self.kept[kind].append(block)

    def ahead(self, prepare, count=3):
        """A queue of batches that a thread of ours keeps filled, each already through `prepare`."""
        out = queue.Queue(maxsize=count)

        def fill():
            try:
                while True:
                    out.put(prepare(self.take()))
            except BaseException as error:      # the trainer must hear of it, not wait for ever
                out.put(error)

        threading.Thread(target=fill, daemon=True).start()
        return out

    def close(self):
        for worker in self.workers:
            worker.terminate()
