#!/usr/bin/env python3
"""Makes tests/golden/sampler/cases.bin: which tokens transformers' logits processors leave, and with what probability.

Run:  .venv/bin/python tests/oracle/make_sampler_golden.py

Logits are a hash of (case, token), computed here and in tests/unit/sampler_test.c alike: 24-bit uniforms in [-1, 1), cubed and
scaled, and in some cases rounded to eighths so that there are ties. Record, little-endian: f32 temperature, u32 top_k, f32 top_p,
f32 min_p, f32 repetition_penalty, u32 seen, u32 suppressed, u32 round, u32 scale, u32 kept, then kept times (u32 token, f32 probability).
`seen` tokens 3 * i and `suppressed` tokens 5 * i are in those lists.
"""
import os
import struct

import numpy as np
import torch
from transformers import (LogitsProcessorList, MinPLogitsWarper, RepetitionPenaltyLogitsProcessor, SuppressTokensLogitsProcessor,
                          TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper)

HERE = os.path.dirname(os.path.abspath(__file__))
OUT = os.path.join(HERE, "..", "golden", "sampler")
VOCAB = 1000


def logits_of(case, rounded, scale):
    with np.errstate(over="ignore"):
        z = np.arange(VOCAB, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(case)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    u = ((z >> np.uint64(40)).astype(np.int64) - (1 << 23)).astype(np.float32) * np.float32(2.0**-23)
    x = u * u * u * np.float32(scale)
    return np.round(x * np.float32(8)) / np.float32(8) if rounded else x


def main():
    os.makedirs(OUT, exist_ok=True)
    records = []
    settings = [  # temperature, top_k, top_p, min_p, repetition, seen, suppressed, rounded, scale
        (1.0, 64, 0.95, 0.0, 1.0, 0, 0, 0, 12), (0.7, 64, 0.95, 0.0, 1.0, 0, 2, 0, 12), (1.5, 5, 1.0, 0.0, 1.0, 0, 0, 0, 12),
        (1.0, 0, 0.9, 0.0, 1.0, 0, 0, 0, 6), (1.0, 0, 0.99, 0.0, 1.0, 0, 0, 0, 1), (1.0, 0, 1.0, 0.05, 1.0, 0, 0, 0, 12),
        (0.3, 200, 0.5, 0.1, 1.0, 0, 0, 0, 12), (1.0, 50, 1.0, 0.0, 1.3, 40, 3, 0, 12), (2.0, 10, 1.0, 0.0, 1.0, 0, 0, 1, 12),
        (1.0, 40, 1.0, 0.0, 1.0, 0, 10, 1, 6), (1.0, 1, 1.0, 0.0, 1.0, 0, 0, 1, 12), (1.0, 0, 1.0, 0.0, 0.8, 100, 0, 0, 4),
        (1.0, 999, 1.0, 0.0, 1.0, 0, 0, 0, 4), (1.0, 64, 0.01, 0.0, 1.0, 0, 0, 0, 12), (0.05, 64, 0.95, 0.0, 1.0, 0, 0, 0, 12),
    ]
    for case, (t, k, p, m, rep, seen, sup, rounded, scale) in enumerate(settings):
        scores = torch.from_numpy(logits_of(case, rounded, scale))[None].clone()
        ids = torch.tensor([[3 * i for i in range(seen)]], dtype=torch.long)
        chain = LogitsProcessorList()
        if sup:
            chain.append(SuppressTokensLogitsProcessor([5 * i for i in range(sup)], device="cpu"))
        if rep != 1.0:
            chain.append(RepetitionPenaltyLogitsProcessor(rep))
        chain.append(TemperatureLogitsWarper(t))
        if k:
            chain.append(TopKLogitsWarper(k))
        if p < 1.0:
            chain.append(TopPLogitsWarper(p))
        if m > 0:
            chain.append(MinPLogitsWarper(m))
        probs = torch.softmax(chain(ids, scores).double(), -1)[0].numpy()
        kept = np.flatnonzero(probs > 0)
        records.append(struct.pack("<fIfffIIIII", t, k, p, m, rep, seen, sup, rounded, scale, len(kept))
                       + b"".join(struct.pack("<If", int(i), float(probs[i])) for i in kept))
        print(case, len(kept))
    with open(os.path.join(OUT, "cases.bin"), "wb") as f:
        f.write(struct.pack("<II", VOCAB, len(records)) + b"".join(records))


if __name__ == "__main__":
    main()
