"""tests/gpu/many.py - steps of 17 to 128 rows against single rows, bit by bit, on a random-weight model of 12B's shapes.

128 sequences of many lengths (short, at and past the window, long) go on together, 128 to 17 at a time and as blocks of 6; the same texts go on
alone in sequences of their own. The logits of every step must have the same bits. Exit 0 pass, 1 fail, 77 no GPU.

    python3 tests/gpu/many.py --layers 6 --format fp8 [--kv fp8]"""
import argparse
import random
import sys

import torch

import backend as b

LENGTHS = [0, 5, 60, 500, 1015, 1100, 1180, 1500]
SEQS, STEPS = 128, 6


def feed(model, seqs, texts, ends, block_rows):
    """Brings every sequence to its length, `block_rows` rows a sequence and as many sequences a step as fit."""
    at = {s: 0 for s in seqs}
    while True:
        groups = []
        for s in seqs:
            n = min(block_rows, ends[s] - at[s])
            if n > 0 and sum(len(g[2]) for g in groups) + n <= b.ROWS_MAX:
                groups.append((s, at[s], texts[s][at[s]:at[s] + n]))
                at[s] += n
        if not groups:
            return
        model.step(groups)


def alone(model, text, seq, start, count):
    """Logits of `count` single rows behind a text fed in blocks of 8, by the kernels for few rows."""
    for at in range(0, start, 8):
        model.step([(seq, at, text[at:min(at + 8, start)])])
    rows = []
    for at in range(start, start + count):
        model.step([(seq, at, [text[at]])])
        rows.append(model.logits[0].clone())
    return rows


def together(model, texts, lengths, want, rows, first_step, steps, checked):
    """The first `rows` sequences take one step after the other; returns how many of the checked rows had other bits."""
    wrong = 0
    for step in range(first_step, first_step + steps):
        model.step([(s, lengths[s] + step, [texts[s][lengths[s] + step]]) for s in range(rows)])
        for s in checked:
            if s < rows and not torch.equal(model.logits[s].view(torch.int32), want[s][step].view(torch.int32)):
                wrong += 1
                print(f"  {rows} rows: sequence {s} at {lengths[s] + step}: other bits, {int((model.logits[s] != want[s][step]).sum())} logits, "
                      f"largest difference {float((model.logits[s] - want[s][step]).abs().max()):.3e}")
    return wrong


def blocks(model, texts, lengths, want, checked, count):
    """The same steps as verify blocks of 6 rows, `count` sequences together."""
    wrong = 0
    for first in range(0, SEQS, count):
        seqs = list(range(first, min(first + count, SEQS)))
        model.step([(s, lengths[s], texts[s][lengths[s]:lengths[s] + STEPS]) for s in seqs])
        for i, s in enumerate(seqs):
            if s in checked:
                for step in range(STEPS):
                    wrong += not torch.equal(model.logits[i * STEPS + step].view(torch.int32), want[s][step].view(torch.int32))
    return wrong


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--format", choices=["bf16", "fp8"], default="fp8")
    parser.add_argument("--kv", choices=["bf16", "fp8"], default="bf16")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("skip: no GPU")
        return 77
    rng, lengths = random.Random(3), [LENGTHS[s % 8] for s in range(SEQS)]
    model = b.Model(args.layers, b.FP8 if args.format == "fp8" else b.BF16, seqs=SEQS + 1, context=2048, rows_mask=255, kv=args.kv)
    model.check(model.lib.cuda_weights_fill_random(model.loader, b.c.c_uint64(5)), "fill")
    texts = {s: [rng.randrange(262144) for _ in range(lengths[s] + STEPS)] for s in range(SEQS)}
    checked = [s for s in range(SEQS) if s // 8 in (s % 8, 8 + (s + 3) % 8)]
    want = {s: alone(model, texts[s], SEQS, lengths[s], STEPS) for s in checked}
    feed(model, list(range(SEQS)), texts, lengths, 8)
    counts = {"128 rows": together(model, texts, lengths, want, 128, 0, STEPS, checked)}
    for rows in (100, 65, 64, 40, 32, 17):             # once more over the same positions: the same bytes again
        counts[f"{rows} rows"] = together(model, texts, lengths, want, rows, 0, STEPS, checked)
    for count in (10, 21):
        counts[f"blocks of 6, {6 * count} rows"] = blocks(model, texts, lengths, want, checked, count)
    model.close()
    print(f"many: {args.format}, KV {args.kv}, {len(checked)} sequences checked;", ", ".join(f"{k}: {v} with other bits" for k, v in counts.items()),
          "ok" if not any(counts.values()) else "FAIL", flush=True)
    return 1 if any(counts.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
