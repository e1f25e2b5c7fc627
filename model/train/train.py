"""Trains the demo model for a given number of minutes and writes its checkpoint.

    python train.py --minutes 8 --out DIR [--start DIR]

Reads   ../demo (configuration, tokenizer, template), with --start the weights of an earlier checkpoint.
Writes  DIR/model.safetensors (BF16) every --save-minutes and at the end; a line of progress every few seconds on standard output.
Fails   if the loss is not finite.
"""
import argparse
import pathlib
import time

import numpy
import torch
import torch.nn.functional as F

import checkpoint
from muon import Both
from network import Network
from packing import Feed

TYPICAL_SHARE = 0.35                # of a batch's tokens are learned: every such token weighs the same, however many its batch has
WARM_UP, DECAY_FROM = 0.01, 0.45    # of the time: rising to the full rate, then constant, then down to zero in a line


def arguments():
    p = argparse.ArgumentParser()
    p.add_argument("--minutes", type=float, required=True)
    p.add_argument("--out", type=pathlib.Path, required=True)
    p.add_argument("--start", type=pathlib.Path)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--workers", type=int, default=14)
    p.add_argument("--batch-tokens", type=int, default=65536)
    p.add_argument("--matrix-rate", type=float, default=0.02)
    p.add_argument("--other-rate", type=float, default=0.002)
    p.add_argument("--decay", type=float, default=0.02)
    p.add_argument("--save-minutes", type=float, default=2.0)
    p.add_argument("--max-steps", type=int, default=0)
    p.add_argument("--no-compile", action="store_true")
    return p.parse_args()


def prepare(network):
    """Starting values that keep the scores of attention, which Gemma does not scale, near 1."""
    with torch.no_grad():
        for layer in network.layers:
            for name in ("q_norm", "k_norm"):
                layer.self_attn[name].weight.fill_(layer.shape.head_dim ** -0.25)
            for part in (layer.post_attention_layernorm, layer.post_feedforward_layernorm):
                part.weight.fill_(0.5)


def rate_factor(done):
    if done < WARM_UP:
        return done / WARM_UP
    return 1.0 if done < DECAY_FROM else max(0.0, (1.0 - done) / (1.0 - DECAY_FROM))


def to_device(batch, device):
    """The arrays on the device, with the places whose next token must be learned."""
    ids, positions, learn = batch
    places = numpy.flatnonzero(numpy.concatenate((learn[:, 1:], numpy.zeros((len(learn), 1), bool)), axis=1))

    def move(array):
        t = torch.from_numpy(array)
        return t.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else t

    return move(ids.astype(numpy.int64)), move(positions.astype(numpy.int64)), move(places), move(ids.reshape(-1)[places + 1].astype(numpy.int64))


def loss_of(network, batch, dtype):
    ids, positions, places, targets = batch
    h = network.hidden(ids, positions, dtype)
    return F.cross_entropy(network.logits(h.flatten(0, 1)[places]), targets, reduction="sum")


def next_batch(batches):
    batch = batches.get()
    if isinstance(batch, BaseException):
        raise batch
    return batch


def main():
    args = arguments()
    feed = Feed(args.seed, args.workers, args.batch_tokens)     # before the device is touched: the workers are forks
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(args.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    network = Network(checkpoint.config(checkpoint.DEMO / "tokenizer.json")["text_config"])
    prepare(network)
    if args.start:
        checkpoint.load(network, args.start / "model.safetensors")
    network.to(device)
    if not args.no_compile:
        torch._dynamo.config.recompile_limit = 64       # one version for each kind of layer and length of row
        for layer in network.layers:
            layer.compile(dynamic=False)
    optimizer = Both(network, args.matrix_rate, args.other_rate, args.decay)
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint.write_configs(args.out)
    run(args, network, optimizer, feed, device, dtype)
    checkpoint.save(network, args.out / "model.safetensors")
    feed.close()


def run(args, network, optimizer, feed, device, dtype):
    """Steps until the time is over. The clock starts with the first batch, so compiling counts."""
    batches = feed.ahead(lambda batch: to_device(batch, device))
    batch = next_batch(batches)
    start = shown = saved = time.monotonic()
    total, step, waited = args.minutes * 60, 0, 0.0
    sum_loss, learned, tokens = torch.zeros((), device=device), 0, 0
    while (now := time.monotonic()) - start < total and (not args.max_steps or step < args.max_steps):
        with torch.autocast(device.type, dtype, enabled=device.type == "cuda"):
            loss = loss_of(network, batch, dtype)
        (loss / (TYPICAL_SHARE * args.batch_tokens)).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        done = step / args.max_steps if args.max_steps else (now - start) / total
        optimizer.step(rate_factor(done))
        optimizer.zero_grad()
        sum_loss += loss.detach()
        tokens += batch[0].numel()
        learned += len(batch[3])
        step += 1
        before = time.monotonic()
        batch = next_batch(batches)
        waited += time.monotonic() - before
        if now - shown > 5 or step == args.max_steps:
            mean = (sum_loss / learned).item()
            spent = time.monotonic() - shown
            print(f"{now - start:6.1f} s  step {step:6d}  loss {mean:.4f}  {tokens / spent / 1e6:.2f} M tokens/s  waited {waited / spent:.0%}", flush=True)
            if not mean < 1e4:
                raise SystemExit("the loss is not finite")
            sum_loss.zero_()
            shown, learned, tokens, waited = time.monotonic(), 0, 0, 0.0
        if now - saved > args.save_minutes * 60:
            checkpoint.save(network, args.out / "model.safetensors")
            saved = now


if __name__ == "__main__":
    main()
