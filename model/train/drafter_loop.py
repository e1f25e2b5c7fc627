"""What the trainers of drafters (assistant.py, dspark.py) share: options, the demo model that they learn from, the loop over batches."""
import argparse
import pathlib
import time

import torch

import checkpoint
from muon import Both
from train import next_batch, rate_factor, to_device


def arguments(what, seed, batch_tokens, other_rate):
    """A parser; `what`: the drafter in words."""
    p = argparse.ArgumentParser()
    p.add_argument("--minutes", type=float, required=True)
    p.add_argument("--out", type=pathlib.Path, required=True)
    p.add_argument("--start", type=pathlib.Path, help=f"{what} to go on from: after the model was trained further")
    p.add_argument("--seed", type=int, default=seed)
    p.add_argument("--workers", type=int, default=14)
    p.add_argument("--batch-tokens", type=int, default=batch_tokens)
    p.add_argument("--matrix-rate", type=float, default=0.02)
    p.add_argument("--other-rate", type=float, default=other_rate)
    p.add_argument("--decay", type=float, default=0.02)
    p.add_argument("--max-steps", type=int, default=0)
    return p


def place():
    """Device, and the type of arithmetic there."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return device, torch.bfloat16 if device.type == "cuda" else torch.float32


def demo_model(network, device):
    """The demo's configuration, and the demo model as `network` (a class), frozen."""
    demo = checkpoint.config(checkpoint.DEMO / "tokenizer.json")
    target = network(demo["text_config"])
    checkpoint.load(target, checkpoint.DEMO / "model.safetensors")
    return demo, target.to(device).requires_grad_(False)


def train(args, drafter, feed, device, dtype, losses):
    """losses(batch, done): done is the share of the time that is over; returns a loss to go down, and a function that describes it in a line."""
    optimizer = Both(drafter, args.matrix_rate, args.other_rate, args.decay)
    batches = feed.ahead(lambda batch: to_device(batch, device))
    batch, start, shown, step = next_batch(batches), time.monotonic(), time.monotonic(), 0
    while (now := time.monotonic()) - start < args.minutes * 60 and (not args.max_steps or step < args.max_steps):
        done = step / args.max_steps if args.max_steps else (now - start) / (args.minutes * 60)
        with torch.autocast(device.type, dtype, enabled=device.type == "cuda"):
            loss, describe = losses(batch, done)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(drafter.parameters(), 1.0)
        optimizer.step(rate_factor(done))
        optimizer.zero_grad()
        step += 1
        batch = next_batch(batches)
        if time.monotonic() - shown > 5 or step == args.max_steps:
            mean = float(loss.detach())
            print(f"{now - start:6.1f} s  step {step:6d}  loss {mean:.4f}  {describe()}", flush=True)
            if not mean < 1e4:
                raise SystemExit("the loss is not finite")
            shown = time.monotonic()
