"""Feeds the trainer: worker processes generate conversations, tokenize them and pack them into rows.

A row holds several whole conversations; `positions` starts at 0 in each, `learn` marks the tokens that the model must say. Conversations may
hold a picture or a sound: its soft tokens' places stand in the row, what to put there travels beside it.
Fails   if a worker dies: take() notices and raises.
"""
import multiprocessing
import queue
import random
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

    def add(self, ids, learn, shown=None):
        """Places a conversation; shown: (place of the first soft token, medium). Returns a finished row or None."""
        size = len(ids)
        done = None
        row = next((x for x in self.rows if x[0] + size <= self.length), None)
        if row is None:
            if len(self.rows) == OPEN_ROWS:
                fullest = max(range(OPEN_ROWS), key=lambda i: self.rows[i][0])
                done = self.rows.pop(fullest)
            row = [0, []]
            self.rows.append(row)
        row[0] += size
        row[1].append((ids, learn, shown))
        return None if done is None else self.finish(done[1])

    def finish(self, conversations):
        ids, positions, learn = (numpy.zeros(self.length, t) for t in (numpy.int16, numpy.int16, bool))
        media, at = [], 0
        for said, learned, shown in conversations:
            end = at + len(said)
            ids[at:end], learn[at:end] = said, learned
            positions[at:end] = numpy.arange(end - at)
            if shown:
                media.append((at + shown[0], shown[1]))
            at = end
        return ids, positions, learn, media


def conversations(seed, media_share, picture_share):
    """(ids, learned?, what is shown) without end; media_share: of the conversations are about pictures and sounds, picture_share of these about pictures."""
    import generate
    text = generate.examples(seed)
    shown = generate.shown_examples(seed, picture_share) if media_share else None
    r = random.Random(seed)
    while True:
        if media_share and r.random() < media_share:
            ids, learn, place, medium = next(shown)
            yield ids, learn, (place, medium)
        else:
            prompt, completion = next(text)
            yield prompt + completion, [False] * len(prompt) + [True] * len(completion), None


def stack(rows, length):
    """Rows as one block: the three arrays, and {size of picture, or None for sound: (media in one array, places)}; places count through the block's rows."""
    media = {}
    for i, row in enumerate(rows):
        for place, medium in row[3]:
            kind = medium.shape if medium.ndim == 3 else None
            media.setdefault(kind, []).append((i * length + place, medium))
    packed = {}
    for kind, found in media.items():
        if kind is None:
            packed[kind] = numpy.concatenate([m for _, m in found]), numpy.concatenate([place + numpy.arange(len(m)) for place, m in found])
        else:
            packed[kind] = numpy.stack([m for _, m in found]), numpy.array([place for place, _ in found])
    return [numpy.stack(part) for part in list(zip(*rows))[:3]], packed


def work(seed, out, media_share, picture_share):
    packers = [Packer(n) for n in LENGTHS]
    blocks = [[] for _ in LENGTHS]
    for ids, learn, shown in conversations(seed, media_share, picture_share):
        kind = next((i for i, n in enumerate(LENGTHS) if len(ids) <= n), None)
        if kind is None:
            continue
        row = packers[kind].add(ids, learn, shown)
        if row is None:
            continue
        blocks[kind].append(row)
        if len(blocks[kind]) * LENGTHS[kind] >= BLOCK_TOKENS:
            out.put((kind, stack(blocks[kind], LENGTHS[kind])))
            blocks[kind] = []


def join(blocks):
    """Blocks as one batch: its three arrays and its media."""
    arrays = [numpy.concatenate(part) for part in zip(*(b[0] for b in blocks))]
    media, tokens = {}, 0
    for (ids, _, _), found in blocks:
        for kind, (array, places) in found.items():
            media.setdefault(kind, []).append((array, places + tokens))
        tokens += ids.size
    return arrays, {kind: tuple(numpy.concatenate(part) for part in zip(*found)) for kind, found in media.items()}


class Feed:
    """Batches of `tokens` tokens from `workers` processes; the shares as in conversations()."""

    def __init__(self, seed, workers, tokens, media_share=0.0, picture_share=0.0):
        if tokens < BLOCK_TOKENS:
            raise SystemExit(f"--batch-tokens {tokens}: a batch holds at least {BLOCK_TOKENS} tokens")
        self.queue = multiprocessing.Queue(maxsize=workers * 8)
        self.blocks = tokens // BLOCK_TOKENS
        self.kept = [[] for _ in LENGTHS]
        self.workers = [multiprocessing.Process(target=work, args=(seed * SEED_STRIDE + i, self.queue, media_share, picture_share), daemon=True) for i in range(workers)]
        for worker in self.workers:
            worker.start()

    def take(self):
        """(ids, positions, learn) of one batch; its rows have one length."""
        return self.take_all()[0]

    def take_all(self):
        """take() and the media: {size of picture, or None: (array, places in the flattened batch)}."""
        while True:
            for blocks in self.kept:
                if len(blocks) >= self.blocks:
                    taken, blocks[:] = blocks[:self.blocks], blocks[self.blocks:]
                    return join(taken)
            try:
                kind, block = self.queue.get(timeout=5)
            except queue.Empty:
                if not all(w.is_alive() for w in self.workers):
                    raise RuntimeError("a worker that generates data has died") from None
                continue
            self.kept[kind].append(block)

    def ahead(self, prepare, count=3, take=None):
        """A queue of batches that a thread of ours keeps filled, each already through `prepare`; take: take() or take_all()."""
        take = take or self.take
        out = queue.Queue(maxsize=count)

        def fill():
            try:
                while True:
                    out.put(prepare(take()))
            except BaseException as error:      # the trainer must hear of it, not wait for ever
                out.put(error)

        threading.Thread(target=fill, daemon=True).start()
        return out

    def close(self):
        for worker in self.workers:
            worker.terminate()
