"""tests/gpu/sampling.py - the device's choice of token against a plain reimplementation of model/sampler.h on the same logits.

Random weights, 16 sequences a step, many parameter combinations: greedy, top_k, top_p, min_p, temperatures, top_k off. The
device must pick the same token every time. Exit 0 pass, 1 fail, 77 no GPU."""
import math
import random
import sys

import numpy as np
import torch

import backend as b

DOMAIN = 0x746F6B65


def philox(counter, key):
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def noise(seed, position, token):
    word = philox((token // 4, position & 0xFFFFFFFF, position >> 32, DOMAIN), (seed & 0xFFFFFFFF, seed >> 32))[token % 4]
    above = (4294967295.5 - word) * 2.0 ** -32
    return -math.log(-math.log1p(-above))


def pick(logits, p, position):
    """logits: f32 numpy, suppressed at -inf."""
    if p.temperature < 1e-5:
        return int(np.argmax(logits))
    ids = np.flatnonzero(logits > -np.inf)
    if p.top_k:
        bound = np.sort(logits[ids])[-p.top_k]
        ids = ids[logits[ids] >= bound]
    scaled = (logits[ids] / np.float32(p.temperature)).astype(np.float32)
    order = np.lexsort((ids, -scaled))
    ids, scaled = ids[order], scaled[order]
    mass = np.exp((scaled - scaled[0]).astype(np.float64)).astype(np.float32).astype(np.float64)
    n = len(ids)
    if 0 < p.top_p < 1:
        n = int(np.searchsorted(np.cumsum(mass), float(np.float32(p.top_p)) * mass.sum())) + 1
    if p.min_p > 0:
        n = min(n, int((mass >= np.float32(p.min_p)).sum()))
    return max((float(scaled[i]) + noise(p.seed, position, int(ids[i])), -int(ids[i])) for i in range(min(n, len(ids))))[1] * -1


def main():
    if not torch.cuda.is_available():
        print("skip: no GPU")
        return 77
    model = b.Model(6, b.FP8)
    model.check(model.lib.cuda_weights_fill_random(model.loader, b.c.c_uint64(3)), "fill")
    rng, wrong, total = random.Random(7), 0, 0
    for step in range(24):
        sampling = []
        for _ in range(16):
            kind = rng.randrange(4)
            sampling.append(b.Sampling(rng.getrandbits(64), 0.0 if kind == 0 else rng.choice([0.2, 0.7, 1.0, 1.5]),
                                       rng.choice([0.0, 0.5, 0.9, 0.95, 1.0]), rng.choice([0.0, 0.0, 0.05, 0.3]), rng.choice([1, 2, 5, 40, 64])))
        if step % 8 == 7:
            sampling[3] = b.Sampling(rng.getrandbits(64), 1.0, 1.0, 0.5, 0)       # top_k off: min_p alone
        picked = model.step([(s, step, [rng.randrange(262144)]) for s in range(16)], sampling)
        logits = model.logits.cpu().numpy()
        for row in range(16):
            want = pick(logits[row], sampling[row], step + 1)
            total += 1
            if want != picked[row]:
                wrong += 1
                p = sampling[row]
                print(f"  step {step} row {row}: {picked[row]} instead of {want} (T {p.temperature} k {p.top_k} p {p.top_p} min {p.min_p})")
    model.close()
    print(f"sampling: {total - wrong} of {total} equal", "ok" if wrong == 0 else "FAIL", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
