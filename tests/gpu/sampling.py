"""tests/gpu/sampling.py - the device's choice of token in whole steps against a plain reimplementation of model/sampler.h on the same logits.

Random weights, 16 rows a step: single rows of 16 sequences and verify blocks of 8, greedy, top_k, top_p, min_p, temperatures, top_k off, logit_bias and
penalties that count a history which only the steps themselves wrote behind a prompt. The device must pick the same token every
time. sample_test.c does the same for the two kernels alone, with log probabilities, against model/sampler.c. Exit 0 pass, 1 fail, 77 no GPU."""
import math
import random
import sys

import numpy as np
import torch

import backend as b

DOMAIN = 0x746F6B65
PROMPT = 20


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


def change(logits, p, bias, history):
    """Bias, then penalties, in f32. history: the tokens before the one that is picked."""
    f = np.float32
    for token, x in bias[:p.bias_count]:
        logits[token] += f(x)
    if p.presence_penalty == 0 and p.frequency_penalty == 0 and p.repetition_penalty in (0, 1):
        return
    for token in set(history):
        generated = history[p.prompt_tokens:].count(token)
        if p.repetition_penalty not in (0, 1):
            logits[token] = logits[token] * f(p.repetition_penalty) if logits[token] < 0 else logits[token] / f(p.repetition_penalty)
        if generated:
            logits[token] -= f(p.presence_penalty) + f(generated) * f(p.frequency_penalty)


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


def make_sampling(rng, general):
    p = b.Sampling(rng.getrandbits(64), 0.0 if rng.randrange(4) == 0 else rng.choice([0.2, 0.7, 1.0, 1.5]), rng.choice([0.0, 0.5, 0.9, 0.95, 1.0]),
                   rng.choice([0.0, 0.0, 0.05, 0.3]), rng.choice([1, 2, 5, 40, 64]))
    if not general:
        return p
    p.prompt_tokens = PROMPT
    kind = rng.randrange(4)
    if kind == 0:
        p.top_k, p.min_p = 0, 0.3                       # the reimplementation is slow for many candidates
    if kind == 1:
        p.top_k = rng.choice([65, 300])
    p.bias_count = rng.choice([0, 3, 64])
    p.presence_penalty, p.frequency_penalty = rng.uniform(-1, 1), rng.choice([0.0, rng.uniform(-1, 1)])
    p.repetition_penalty = rng.choice([0.0, 1.0, 1.2, 0.8])
    return p


def main():
    if not torch.cuda.is_available():
        print("skip: no GPU")
        return 77
    model = b.Model(6, b.FP8)
    model.check(model.lib.cuda_weights_fill_random(model.loader, b.c.c_uint64(3)), "fill")
    rng, wrong, total = random.Random(7), 0, 0
    text = [[rng.randrange(40) if rng.randrange(2) else rng.randrange(262144) for _ in range(PROMPT)] for _ in range(16)]
    bias = [[(rng.randrange(262144) if i % 2 else rng.randrange(40), rng.uniform(-5, 5)) for i in range(64)] for _ in range(16)]
    for s in range(16):
        for at in range(0, PROMPT, 8):
            model.step([(s, at, text[s][at:at + 8])])
        model.check(model.lib.cuda_backend_bias(model.handle, s, (b.Bias * 64)(*bias[s]), 64), "bias")
        if s % 2:                                       # the steps above have written it already: the same once more
            model.check(model.lib.cuda_backend_history(model.handle, s, 0, (b.c.c_uint32 * PROMPT)(*text[s]), PROMPT), "history")
    for step in range(24):
        if step % 3 == 2:                               # two verify blocks; all drafts stay
            groups = [(s, len(text[s]), [rng.randrange(40) for _ in range(8)]) for s in rng.sample(range(16), 2)]
        else:
            groups = [(s, len(text[s]), [rng.randrange(40)]) for s in range(16)]
        sampling = [make_sampling(rng, rng.randrange(2)) for _ in range(16)]
        picked = model.step(groups, sampling)
        logits = model.logits.cpu().numpy()
        row = 0
        for s, position, tokens in groups:
            for i in range(len(tokens)):
                text[s].append(tokens[i])
                x, p = logits[row].copy(), sampling[row]
                x[[model.spec.suppress[0], model.spec.suppress[1]]] = -np.inf
                change(x, p, bias[s], text[s])
                want = pick(x, p, position + i + 1)
                total += 1
                if want != picked[row]:
                    wrong += 1
                    print(f"  step {step} row {row}: {picked[row]} instead of {want} (T {p.temperature} k {p.top_k} p {p.top_p} min {p.min_p} "
                          f"bias {p.bias_count} penalties {p.presence_penalty} {p.frequency_penalty} {p.repetition_penalty})")
                row += 1
    model.close()
    print(f"sampling: {total - wrong} of {total} equal", "ok" if wrong == 0 else "FAIL", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
