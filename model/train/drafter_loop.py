"""What the trainers of drafters (assistant.py, dspark.py) share: options, the demo model that they learn from, the loop over batches.

A batch is train.with_media's, or train.to_device's for texts alone. A drafter never sees a picture or hears a sound: it learns what the model's states
and keys say of them.
"""
import argparse
import pathlib
import time

import torch

import checkpoint
from muon import Both
from network import Network
from packing import Feed
from senses import Senses
from train import AHEAD_IN, next_batch, rate_factor, with_media


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
    p.add_argument("--media", type=float, default=0.4, help="share of the conversations that are about pictures and sounds")
    p.add_argument("--pictures", type=float, default=0.72, help="share of pictures among these")
    p.add_argument("--media-weight", type=float, default=2.0, help="of a round in their answers against one in a text's")
    p.add_argument("--max-steps", type=int, default=0)
    return p


class Target(Network):
    """The demo model, frozen. Its parts that see and hear are no parameters of it."""

    def begin(self, batch, dtype):
        """What goes into the first layer, the tables and the masks."""
        ids, positions = batch[:2]
        shown = batch[4] if len(batch) > 4 else None
        soft = shown.soft(self.senses[0], dtype) if shown else None
        return self.embedded(ids, dtype, soft), self.tables(positions, dtype), self.masks(positions, shown.pictures if shown else None, AHEAD_IN[0])


def weights_of(batch):
    """How much each place counts, flattened."""
    return batch[5] if len(batch) > 5 else torch.ones(batch[0].numel(), device=batch[0].device)


def place():
    """Device, and the type of arithmetic there."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return device, torch.bfloat16 if device.type == "cuda" else torch.float32


def demo_model(kind, device):
    """The demo's configuration, and the demo model as `kind` of Target."""
    demo = checkpoint.config(checkpoint.DEMO / "tokenizer.json")
    target, senses = kind(demo["text_config"]), Senses(demo)
    checkpoint.load(target, checkpoint.DEMO / "model.safetensors")
    checkpoint.load_senses(senses, checkpoint.DEMO / "model.safetensors")
    target.senses = [senses.to(device).requires_grad_(False)]
    return demo, target.to(device).requires_grad_(False)


class Data:
    """Batches without end, and others that are never trained on: of texts, and of pictures and sounds. Made before the device is touched: the workers are forks."""

    def __init__(self, args, held_out_seed):
        self.args, self.feed = args, Feed(args.seed, args.workers, args.batch_tokens, args.media, args.pictures)
        self.held_out = {"text": Feed(held_out_seed, 1, args.batch_tokens), "pictures and sound": Feed(held_out_seed + 1000, 1, args.batch_tokens, 1.0, args.pictures)}

    def batches(self, device):
        return self.feed.ahead(lambda batch: with_media(batch, device, self.args.media_weight), take=self.feed.take_all)

    def report(self, device, dtype, describe, count=6):
        """describe(batches): a line or more; under each name of what was held out."""
        for name, feed in self.held_out.items():
            with torch.no_grad(), torch.autocast(device.type, dtype, enabled=device.type == "cuda"):
                print(f"held out, {name}: " + describe(with_media(feed.take_all(), device, 1.0) for _ in range(count)), flush=True)

    def close(self):
        for feed in (self.feed, *self.held_out.values()):
            feed.close()


def train(args, drafter, data, device, dtype, losses):
    """losses(batch, done): done is the share of the time that is over; returns a loss to go down, and a function that describes it in a line."""
    optimizer = Both(drafter, args.matrix_rate, args.other_rate, args.decay)
    batches = data.batches(device)
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
