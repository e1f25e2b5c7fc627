"""Trains the demo model for a given number of minutes and writes its checkpoint.

    python train.py --minutes 8 --out DIR [--start DIR] [--media 0.5]

Reads   ../demo (configuration, tokenizer, template), with --start the weights of an earlier checkpoint (what it lacks of seeing and hearing starts
        anew).
Writes  DIR/model.safetensors (BF16) every --save-minutes and at the end; a line of progress every few seconds on standard output, with --media
        also how many answers about pictures and sounds never trained on are right word for word, each word given the right ones before it.
Fails   if the loss is not finite.
"""
import argparse
import collections
import pathlib
import random
import time

import numpy
import torch
import torch.nn.functional as F

import checkpoint
import generate
from muon import Both
from network import FULL, SLIDING, Network
from packing import LENGTHS, Feed, Packer, stack
from senses import Senses, as_trained, rate_of

TYPICAL_SHARE = 0.35                # of a batch's tokens are learned: every such token weighs the same, however many its batch has
START_PICTURES = 256                # whose blocks give the seeing part its starting values
AHEAD_IN = ((SLIDING,), (SLIDING, FULL))
PROBE_ROWS, PROBE_SEED = 256, 4711
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
    p.add_argument("--media", type=float, default=0.5, help="share of the conversations that are about pictures and sounds")
    p.add_argument("--pictures", type=float, default=0.72, help="share of pictures among these")
    p.add_argument("--media-weight", type=float, default=2.0, help="of a learned token of theirs against one of a text's")
    p.add_argument("--probes", type=int, default=768, help="held-out questions on pictures and sounds that are tried now and then")
    p.add_argument("--probe-seconds", type=float, default=25)
    p.add_argument("--save-minutes", type=float, default=2.0)
    p.add_argument("--max-steps", type=int, default=0)
    p.add_argument("--no-compile", action="store_true")
    p.add_argument("--compile-to", type=int, default=LENGTHS[0], help="longest rows that the layers are compiled for: each length costs about 15 s at first")
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


def move_to(array, device):
    t = torch.from_numpy(array)
    return t.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else t


def to_device(batch, device):
    """The arrays on the device, with the places whose next token must be learned."""
    ids, positions, learn = batch
    places = numpy.flatnonzero(numpy.concatenate((learn[:, 1:], numpy.zeros((len(learn), 1), bool)), axis=1))

    return tuple(move_to(x, device) for x in (ids.astype(numpy.int64), positions.astype(numpy.int64), places, ids.reshape(-1)[places + 1].astype(numpy.int64)))


class Shown:
    """The media of a batch on the device: {size, or None: (array, places)}, and which places belong to a picture."""

    def __init__(self, media, shape, device):
        self.parts, pictures = [], numpy.zeros(shape[0] * shape[1], numpy.int32)
        for kind, (array, places) in media.items():
            if kind is not None:
                columns, rows = generate.CANVAS_BLOCKS[kind[1], kind[0]]
                places = places[:, None] + numpy.arange(columns * rows)
                pictures[places] = places[:, :1] + 1
            self.parts.append((kind, move_to(array, device), move_to(places.reshape(-1), device)))
        self.pictures = move_to(pictures.reshape(shape), device)

    def soft(self, senses, dtype):
        """(places, soft tokens), or None for a batch of texts alone."""
        if not self.parts:
            return None
        rows = []
        for kind, array, _ in self.parts:
            if kind is None:
                rows.append(senses.hear(array.float() / 32768, dtype))
            else:
                rows.append(senses.see(*as_trained(array, senses.budget), dtype).flatten(0, 1))
        return torch.cat([places for _, _, places in self.parts]), torch.cat([r.to(dtype) for r in rows])


def with_media(batch, device, media_weight):
    """to_device and the media; learned tokens of conversations about media weigh more."""
    arrays, media = batch
    moved = to_device(arrays, device)
    ids, positions, _ = arrays
    shown = Shown(media, ids.shape, device)
    start = numpy.arange(ids.size).reshape(ids.shape) - positions      # names the conversation
    about = numpy.zeros(ids.size, bool)
    for _, places in media.values():
        about[start.reshape(-1)[places]] = True
    weights = move_to(numpy.where(about[start], numpy.float32(media_weight), numpy.float32(1.0)).reshape(-1), device)
    return *moved, shown, weights


def scores_of(network, senses, batch, dtype, ahead_in):
    """Logits of the learned places."""
    ids, positions, places, _, shown, _ = batch
    h = network.hidden(ids, positions, dtype, shown.soft(senses, dtype), shown.pictures, ahead_in)
    return network.logits(h.flatten(0, 1)[places])


def loss_of(network, senses, batch, dtype, step):
    """(what is minimized, the plain sum). Both readings of how far a picture sees itself are trained in turn, so that either may serve it."""
    places, targets, weights = batch[2], batch[3], batch[5]
    losses = F.cross_entropy(scores_of(network, senses, batch, dtype, AHEAD_IN[step % 2]), targets, reduction="none")
    return (losses * weights[places]).sum(), losses.sum()


class Probe:
    """Held-out questions on pictures and sounds, one to a conversation."""

    def __init__(self, device, picture_share, count):
        import tokenizers
        encoder = generate.ShownEncoder(tokenizers.Tokenizer.from_file(str(checkpoint.DEMO / "tokenizer.json")))
        r, packer, rows, self.families = random.Random(PROBE_SEED), Packer(256), [], []
        while len(rows) < count:
            shown = generate.draw_shown(r, picture_share, count=1)
            if generate.shown_is_held_out(shown):
                medium, soft_count = generate.medium_of(shown)
                ids, learn, place = encoder.encode(shown, soft_count)
                rows.append(packer.finish([(ids, learn, (place, medium))]))
                self.families.append(shown.questions[0].family)
        self.batches = [with_media(stack(rows[i:i + PROBE_ROWS], 256), device, 1.0) for i in range(0, len(rows), PROBE_ROWS)]

    @torch.no_grad()
    def run(self, network, senses, dtype, device):
        row = []
        torch.compiler.set_stance("force_eager")        # compiling for these shapes, too, would take longer than they do
        for i, batch in enumerate(self.batches):
            with torch.autocast(device.type, dtype, enabled=device.type == "cuda"):
                wrong = scores_of(network, senses, batch, dtype, AHEAD_IN[0]).argmax(-1) != batch[3]
            row += [i * PROBE_ROWS + k for k in (batch[2] // 256)[wrong].unique().tolist()]
        torch.compiler.set_stance("default")
        asked, right = collections.Counter(self.families), collections.Counter(self.families)
        right.subtract(self.families[i] for i in row)
        print(f"    held out {sum(right.values()) / len(self.families):.1%}: " + ", ".join(f"{f} {right[f]}/{n}" for f, n in sorted(asked.items())), flush=True)


def next_batch(batches):
    batch = batches.get()
    if isinstance(batch, BaseException):
        raise batch
    return batch


def first_pictures(device, budget):
    """Blocks of pictures as they are trained on."""
    r = random.Random(PROBE_SEED)
    found = {}
    while sum(len(v) for v in found.values()) < START_PICTURES:
        medium, _ = generate.medium_of(generate.draw_shown(r, 1.0))
        found.setdefault(medium.shape, []).append(medium)
    return torch.cat([as_trained(torch.from_numpy(numpy.stack(v)).to(device), budget)[0].flatten(0, 1) for v in found.values()])


def networks(args, device):
    """The language model, and the parts that see and hear."""
    config = checkpoint.config(checkpoint.DEMO / "tokenizer.json")
    network, senses = Network(config["text_config"]), Senses(config).to(device)
    prepare(network)
    if args.start:
        checkpoint.load(network, args.start / "model.safetensors")
    if not args.start or not checkpoint.load_senses(senses, args.start / "model.safetensors"):
        senses.start(first_pictures(device, senses.budget))
    network.to(device)
    if not args.no_compile:
        network.whole_to = args.compile_to
        for layer in network.layers:
            layer.compile(dynamic=False)
    return network, senses


def main():
    args = arguments()
    feed = Feed(args.seed, args.workers, args.batch_tokens, args.media, args.pictures)     # before the device is touched: the workers are forks
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    torch.manual_seed(args.seed)
    torch.backends.cuda.matmul.allow_tf32 = True
    network, senses = networks(args, device)
    optimizer = Both(network, args.matrix_rate, args.other_rate, args.decay, [(p, rate_of(n)) for n, p in senses.named_parameters()])
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint.write_configs(args.out)
    probe = Probe(device, args.pictures, args.probes) if args.media and args.probes else None
    run(args, network, senses, optimizer, feed, device, dtype, probe)
    checkpoint.save(network, senses, args.out / "model.safetensors")
    feed.close()


def run(args, network, senses, optimizer, feed, device, dtype, probe):
    """Steps until the time is over. The clock starts with the first batch, so compiling counts."""
    batches = feed.ahead(lambda batch: with_media(batch, device, args.media_weight), take=feed.take_all)
    batch = next_batch(batches)
    start = shown = saved = probed = time.monotonic()
    total, step, waited = args.minutes * 60, 0, 0.0
    sum_loss, learned, tokens = torch.zeros((), device=device), 0, 0
    while (now := time.monotonic()) - start < total and (not args.max_steps or step < args.max_steps):
        with torch.autocast(device.type, dtype, enabled=device.type == "cuda"):
            weighted, plain = loss_of(network, senses, batch, dtype, step)
        (weighted / (TYPICAL_SHARE * args.batch_tokens)).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        torch.nn.utils.clip_grad_norm_(senses.parameters(), 1.0)
        done = step / args.max_steps if args.max_steps else (now - start) / total
        optimizer.step(rate_factor(done))
        optimizer.zero_grad()
        sum_loss += plain.detach()
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
        if probe and now - probed > args.probe_seconds:
            probe.run(network, senses, dtype, device)
            probed = now
        if now - saved > args.save_minutes * 60:
            checkpoint.save(network, senses, args.out / "model.safetensors")
            saved = now
    if probe:
        probe.run(network, senses, dtype, device)


if __name__ == "__main__":
    main()
