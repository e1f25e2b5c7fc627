"""What acceptance by coupled noise costs against rejection sampling, over pairs of logits of the demo model and its assistant.

    python coupling.py [--assistant DIR] [--batches 2] [--temperatures 0.7,1]

A drafter's token is kept when the model, with the same Gumbel noise, picks the same one. With p the model's and q the drafter's distribution that happens with probability
sum_i 1 / sum_j max(p_j / p_i, q_j / q_i); rejection sampling, which needs q at the verifier and cannot repeat a text token by token, keeps sum_i min(p_i, q_i): as
much as any rule can of drafts drawn from q; and a drafter that always takes its likeliest token is right with p(argmax q), which is more where q is flatter than p. All three are exact here, no noise is drawn: each place of held-out
answers is a round, its drafts follow the text, and the expected length of a round is 1 + a1 + a1 a2 + ... over its places. Top-k 64 and top-p 0.95, the model's own defaults, can be
applied to both: the second row of each temperature.

Reads   ../demo, DIR/model.safetensors (assistant.py writes it). Writes a table to standard output.
"""
import argparse
import pathlib

import torch
import torch.nn.functional as F

import assistant as mtp
import checkpoint
from packing import Feed
from train import to_device

ROUNDS_MAX = 1500                   # of a batch
CANDIDATES = 64                     # tokens whose coupled mass is computed; what is left out is counted and printed


def filtered(logits):
    """Top-k 64, then top-p 0.95, as the sampler does it."""
    values, _ = logits.topk(64, dim=-1)
    logits = torch.where(logits < values[..., -1:], -torch.inf, logits)
    ordered, index = logits.sort(dim=-1, descending=True)
    before = torch.softmax(ordered, -1).cumsum(-1) - torch.softmax(ordered, -1)
    return torch.where(before >= 0.95, -torch.inf, ordered).scatter(-1, index, torch.where(before >= 0.95, -torch.inf, ordered))


def rates(p_logits, q_logits, temperature, use_filters):
    """Per row: chance to be kept by coupling, by rejection, by the likeliest token; and the mass of p that coupling left out."""
    p_logits, q_logits = p_logits / temperature, q_logits / temperature
    if use_filters:
        p_logits, q_logits = filtered(p_logits), filtered(q_logits)
    p, q = torch.softmax(p_logits, -1), torch.softmax(q_logits, -1)
    _, top = torch.minimum(p, q).topk(min(CANDIDATES, p.shape[-1]), dim=-1)
    pi, qi = p.gather(-1, top), q.gather(-1, top)
    coupled = torch.zeros(len(p))
    for i in range(top.shape[1]):
        alive = (pi[:, i] > 1e-12) & (qi[:, i] > 1e-12)
        ratio = torch.maximum(p / pi[:, i:i + 1].clamp(min=1e-12), q / qi[:, i:i + 1].clamp(min=1e-12)).sum(-1)
        coupled += torch.where(alive, 1 / ratio, torch.zeros_like(ratio))
    likeliest = p.gather(-1, q.argmax(-1, keepdim=True))[:, 0]
    return coupled, torch.minimum(p, q).sum(-1), likeliest, 1 - pi.sum(-1)


@torch.no_grad()
def pairs(target, drafter, batch):
    """For every round: logits [rounds, steps, vocab] of the model and of the drafter, and which steps lie inside the answer."""
    ids, positions, places, _ = batch
    e, h, kv = target.states(batch, torch.float32)
    teacher = target.logits(h)
    learn = torch.zeros(ids.numel(), dtype=torch.bool)
    learn[places] = True
    learn = learn.view_as(ids)
    hidden = torch.cat((h[:, :1], h[:, :-1]), dim=1)
    rounds = (learn & (positions > 0)).flatten().nonzero().squeeze(1)
    rounds = rounds[torch.linspace(0, len(rounds) - 1, min(len(rounds), ROUNDS_MAX)).long()]
    tables, masks = mtp.tables_of(drafter.text, positions, torch.float32), mtp.masks_of(target.config["sliding_window"], positions)
    p, q, alive = [], [], []
    for j in range(mtp.STEPS):
        logits, hidden = drafter.step(mtp.shifted(e, j), hidden, kv, tables, masks)
        inside = mtp.shifted(learn, j) & (mtp.shifted(positions, j) == positions + j)
        p.append(mtp.shifted(teacher, j).flatten(0, 1)[rounds].float())
        q.append(logits.flatten(0, 1)[rounds])
        alive.append(inside.flatten()[rounds])
    return p, q, alive


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--assistant", type=pathlib.Path, default=checkpoint.DEMO / "assistant")
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--batch-tokens", type=int, default=16384)
    parser.add_argument("--temperatures", default="0.5,0.7,1,1.3")
    args = parser.parse_args()
    demo = checkpoint.config(checkpoint.DEMO / "tokenizer.json")
    target = mtp.Target(demo["text_config"])
    checkpoint.load(target, checkpoint.DEMO / "model.safetensors")
    drafter = mtp.Assistant(mtp.config(demo))
    mtp.load(drafter, args.assistant)
    feed = Feed(mtp.HELD_OUT_SEED, 1, args.batch_tokens)
    data = [pairs(target, drafter, to_device(feed.take(), torch.device("cpu"))) for _ in range(args.batches)]
    feed.close()
    print("| temperature | filters | rounds | coupling | rejection | likeliest token | coupling by place | rejection by place |\n|" + " --- |" * 8)
    worst = 0.0
    for temperature in map(float, args.temperatures.split(",")):
        for use in (False, True):
            kept, count, length = torch.zeros(3, mtp.STEPS), torch.zeros(mtp.STEPS), torch.zeros(3)
            for p, q, alive in data:
                chain = torch.ones(3, len(p[0]))
                length += len(p[0])
                for j in range(mtp.STEPS):
                    c, r, t, left = rates(p[j], q[j], temperature, use)
                    worst = max(worst, float((left * alive[j]).mean()))
                    kept[:, j] += (torch.stack((c, r, t)) * alive[j]).sum(1)
                    count[j] += alive[j].sum()
                    chain = chain * torch.stack((c, r, t)) * alive[j]
                    length += chain.sum(1)
            n = sum(len(p[0]) for p, _, _ in data)
            mean, by = length / n, kept / count
            print(f"| {temperature:g} | {'top-k 64, top-p 0.95' if use else 'none'} | {n} | {mean[0]:.3f} | {mean[1]:.3f} | {mean[2]:.3f} | "
                  + " | ".join(" ".join(f"{x:.3f}" for x in by[k]) for k in (0, 1)) + " |", flush=True)
    print(f"\nmass of the model's choice outside the {CANDIDATES} tokens of each row: at most {worst:.1e} on average, counted as not kept")


if __name__ == "__main__":
    main()
