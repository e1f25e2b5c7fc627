"""Trains a DSpark head (a drafter of blocks) for the demo model and writes its checkpoint.

    python dspark.py --minutes 1 --out DIR [--start ../demo/dspark]

The head sees what five layers of the demo model left behind at every position before the newest token, and guesses the next seven tokens in one pass
(model/dspark.h). Places of answers are drawn as newest tokens ("anchors"); all their blocks run together, each row of a block seeing the
positions before its anchor and the other rows of its block. Losses as DeepSpec has them: cross entropy, total variation against the
demo model's own distribution, and the confidence head's guess of that distance; earlier positions weigh more.

Reads   ../demo (the model that it drafts for).
Writes  DIR/model.safetensors (BF16) and config.json with the names of DeepSpec's Gemma4DSparkModel; progress on standard output, at the end accept
        rates per position on conversations that were not trained on.
Fails   if the loss is not finite.
"""
import json

import torch
import torch.nn.functional as F
from safetensors import torch as safetensors_torch
from torch import nn

import checkpoint
import drafter_loop
from network import FULL, Weight, frequencies, norm, rotate

BLOCK = 7
LAYERS = 2
TARGET_LAYERS = [0, 1, 2, 3, 4]     # never the last: its output is what the head shall foresee
RANK = 64
PLACES_PER_ANCHOR = 8               # of a row: about every third place that may be one
DECAY_POSITIONS = 4.0               # the loss of position k weighs exp(-k / this)
CE_SHARE, DISTANCE_SHARE, CONFIDENCE_SHARE = 0.1, 0.9, 1.0
WHOLLY_UNTIL, MIXED_FROM = 0.15, 0.5            # of the time: cross entropy against the model's distribution alone, then less and less of it, then the shares above
HELD_OUT_SEED = 78
TARGET_TABLES = ("embed_tokens.weight", "lm_head.weight")       # in the file as DeepSpec's model has them, equal to the target's


def config(target, mask_token):
    """config.json: the model's text part with the head's own layers."""
    text = {k: v for k, v in target["text_config"].items() if k not in ("use_bidirectional_attention", "use_cache")}
    text.update(architectures=["Gemma4DSparkModel"], model_type="gemma4_text", target_model_type=target["model_type"], target_text_model_type=target["text_config"]["model_type"],
                num_target_layers=text["num_hidden_layers"], num_hidden_layers=LAYERS, layer_types=[FULL] * LAYERS, global_head_dim=256, num_global_key_value_heads=1,
                tie_word_embeddings=False, block_size=BLOCK, mask_token_id=mask_token, target_layer_ids=TARGET_LAYERS, num_anchors=512, markov_rank=RANK,
                markov_head_type="vanilla", enable_confidence_head=True, confidence_head_with_markov=True, transformers_version="5.10.2")
    return text


class Target(drafter_loop.Target):
    """The demo model, which also hands out what its layers leave behind."""

    def states(self, batch, dtype):
        """Features [rows, length, layers * hidden] and hidden states after the final norm."""
        h, tables, masks = self.begin(batch, dtype)
        kept = []
        for i, layer in enumerate(self.layers):
            h = layer(h, *tables[layer.shape.kind], masks[layer.shape.kind])
            if i in TARGET_LAYERS:
                kept.append(h)
        return torch.cat(kept, dim=-1), norm(h, self.norm.weight)


class DraftLayer(nn.Module):
    def __init__(self, text):
        super().__init__()
        hidden, inner = text["hidden_size"], text["intermediate_size"]
        self.heads, self.head_dim = text["num_attention_heads"], text["global_head_dim"]
        q = self.heads * self.head_dim
        self.self_attn = nn.ModuleDict({"q_proj": nn.Linear(hidden, q, bias=False), "k_proj": nn.Linear(hidden, self.head_dim, bias=False),
                                        "o_proj": nn.Linear(q, hidden, bias=False), "q_norm": Weight(self.head_dim), "k_norm": Weight(self.head_dim)})
        self.mlp = nn.ModuleDict({"gate_proj": nn.Linear(hidden, inner, bias=False), "up_proj": nn.Linear(hidden, inner, bias=False),
                                  "down_proj": nn.Linear(inner, hidden, bias=False)})
        for name in ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"):
            setattr(self, name, Weight(hidden))
        self.register_buffer("layer_scalar", torch.ones(1))
        with torch.no_grad():       # as train.py prepares the model: scores near 1, small contributions
            for name in ("q_norm", "k_norm"):
                self.self_attn[name].weight.fill_(self.head_dim ** -0.25)
            self.post_attention_layernorm.weight.fill_(0.5)
            self.post_feedforward_layernorm.weight.fill_(0.5)

    def attend(self, y, features, block_tables, context_tables, mask):
        """y [rows, anchors, BLOCK, hidden], features [rows, length, hidden], mask [rows, anchors, length]: one key head for all queries."""
        a, (rows, anchors, block, _) = self.self_attn, y.shape
        q = rotate(norm(a["q_proj"](y).view(rows, anchors, block, self.heads, self.head_dim), a["q_norm"].weight), *(t[:, :, :, None] for t in block_tables))
        context, own = a["k_proj"](features), a["k_proj"](y)
        context_k, own_k = rotate(norm(context, a["k_norm"].weight), *context_tables), rotate(norm(own, a["k_norm"].weight), *block_tables)
        context_v, own_v = norm(context), norm(own)
        q = q.reshape(rows, anchors, block * self.heads, self.head_dim)
        before = (q.flatten(1, 2) @ context_k.transpose(1, 2)).view(rows, anchors, block * self.heads, -1)
        before = torch.where(mask[:, :, None], before.float(), -1e30)
        weights = torch.softmax(torch.cat((before, (q @ own_k.transpose(2, 3)).float()), dim=-1), dim=-1).type_as(q)
        length = features.shape[1]
        out = (weights[..., :length].flatten(1, 2) @ context_v).view_as(q) + weights[..., length:] @ own_v
        return a["o_proj"](out.reshape(rows, anchors, block, -1))

    def forward(self, x, features, block_tables, context_tables, mask):
        x = x + norm(self.attend(norm(x, self.input_layernorm.weight), features, block_tables, context_tables, mask), self.post_attention_layernorm.weight)
        y = norm(x, self.pre_feedforward_layernorm.weight)
        y = self.mlp["down_proj"](F.gelu(self.mlp["gate_proj"](y), approximate="tanh") * self.mlp["up_proj"](y))
        return (x + norm(y, self.post_feedforward_layernorm.weight)) * self.layer_scalar.type_as(x)


class Head(nn.Module):
    """The drafter. Embedding and output matrix are the target's and stay as they are."""

    def __init__(self, text, target):
        super().__init__()
        hidden, vocab = text["hidden_size"], text["vocab_size"]
        self.text, self.table = text, [target.embed_tokens.weight]          # in a list: not ours to train
        self.fc = nn.Linear(len(text["target_layer_ids"]) * hidden, hidden, bias=False)
        self.hidden_norm, self.norm = Weight(hidden), Weight(hidden)
        self.layers = nn.ModuleList(DraftLayer(text) for _ in text["layer_types"])
        self.markov_head = nn.ModuleDict({"markov_w1": nn.Embedding(vocab, text["markov_rank"]), "markov_w2": nn.Linear(text["markov_rank"], vocab, bias=False)})
        self.confidence_head = nn.ModuleDict({"proj": nn.Linear(hidden + text["markov_rank"], 1)})
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=text["initializer_range"] * 2)
        nn.init.zeros_(self.markov_head["markov_w2"].weight)

    def logits(self, h):
        cap = self.text["final_logit_softcapping"]
        return cap * torch.tanh(F.linear(h, self.table[0]).float() / cap)

    def blocks(self, features, ids, positions, anchors, dtype):
        """Hidden states [rows, anchors, BLOCK, hidden] after the last norm."""
        place = torch.arange(ids.shape[1], device=ids.device)
        start = place - positions
        mask = (start.gather(1, anchors)[:, :, None] == start[:, None, :]) & (place[None, None] < anchors[:, :, None])
        tokens = torch.full((*anchors.shape, BLOCK), self.text["mask_token_id"], device=ids.device)
        tokens[:, :, 0] = ids.gather(1, anchors)
        own = positions.gather(1, anchors)[:, :, None] + torch.arange(BLOCK, device=ids.device)
        x = F.embedding(tokens, self.table[0].to(dtype)) * torch.tensor(self.text["hidden_size"] ** 0.5, dtype=dtype)
        f = norm(self.fc(features), self.hidden_norm.weight)
        tables = [self.tables(p, dtype) for p in (own, positions)]
        for layer in self.layers:
            x = layer(x, f, *tables, mask)
        return norm(x, self.norm.weight)

    def tables(self, positions, dtype):
        angles = positions[..., None].float() * frequencies(self.text, FULL, positions.device)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def bias(self, previous):
        return self.markov_head["markov_w2"](self.markov_head["markov_w1"](previous)).float()

    def confidence(self, h, previous):
        return self.confidence_head["proj"](torch.cat((h, self.markov_head["markov_w1"](previous).type_as(h)), dim=-1)).squeeze(-1).float()


def draw_anchors(learn, positions, generator=None):
    """Places whose next token is learned, and which of them are real: [rows, anchors] each."""
    valid = torch.cat((learn[:, 1:], torch.zeros_like(learn[:, :1])), dim=1) & (positions > 0)
    order = torch.rand(learn.shape, device=learn.device, generator=generator) + valid
    anchors = order.topk(learn.shape[1] // PLACES_PER_ANCHOR, dim=1).indices
    return anchors, valid.gather(1, anchors)


def labels_of(ids, learn, positions, anchors, real):
    """The tokens behind each anchor, their places and whether they and all before them are to be learned."""
    steps = torch.arange(1, BLOCK + 1, device=ids.device)
    place = anchors[:, :, None] + steps
    inside = place < ids.shape[1]
    place = place.clamp(max=ids.shape[1] - 1)

    def at(x):
        return x.gather(1, place.flatten(1)).view(place.shape)

    same = at(positions) == positions.gather(1, anchors)[:, :, None] + steps
    alive = (real[:, :, None] & inside & at(learn) & same).long().cumprod(-1).bool()
    return at(ids), place, alive


def run_blocks(target, head, batch, dtype):
    """Everything about one batch's blocks: draft logits before the Markov bias, target logits, labels, previous tokens, which count, how much."""
    ids, positions, places = batch[:3]
    with torch.no_grad():
        features, h = target.states(batch, dtype)
    learn = torch.zeros(ids.numel(), dtype=torch.bool, device=ids.device)
    learn[places + 1] = True
    learn = learn.view_as(ids)
    anchors, real = draw_anchors(learn, positions)
    labels, place, alive = labels_of(ids, learn, positions, anchors, real)
    with torch.no_grad():
        wanted = target.logits(h.gather(1, (place - 1).flatten(1)[:, :, None].expand(-1, -1, h.shape[-1]))).view(*place.shape, -1)
    states = head.blocks(features, ids, positions, anchors, dtype)
    previous = torch.cat((ids.gather(1, anchors)[:, :, None], labels[:, :, :-1]), dim=-1)
    return states, wanted, labels, previous, alive, drafter_loop.weights_of(batch).view_as(ids).gather(1, anchors)


def losses(target, head, batch, dtype, done):
    """The loss, and per position the sum of what would be accepted and how many there were. done: the share of the training that is over."""
    states, wanted, labels, previous, alive, weights = run_blocks(target, head, batch, dtype)
    weight = weights[:, :, None] * alive * torch.exp(-torch.arange(BLOCK, device=alive.device) / DECAY_POSITIONS)
    total = weight.sum().clamp(min=1)
    ours, theirs = torch.log_softmax(head.logits(states) + head.bias(previous), dim=-1), torch.softmax(wanted, dim=-1)
    distance = (ours.exp() - theirs).abs().sum(-1)
    accepted = (1 - distance.detach() / 2).clamp(0, 1)
    label = (weight * -ours.gather(-1, labels[..., None]).squeeze(-1)).sum() / total
    whole = (weight * -(theirs * ours).sum(-1)).sum() / total       # the distance hardly pulls while nothing is right yet; this does
    confidence = (weight * F.binary_cross_entropy_with_logits(head.confidence(states, previous), accepted, reduction="none")).sum() / total
    share = min(1.0, max(0.0, (done - WHOLLY_UNTIL) / (MIXED_FROM - WHOLLY_UNTIL)))
    mixed = CE_SHARE * label + DISTANCE_SHARE * (weight * distance).sum() / total
    return share * mixed + (1 - share) * whole + CONFIDENCE_SHARE * confidence, (accepted * alive).sum((0, 1)), alive.sum((0, 1))


def chain(target, head, batch, dtype):
    """As it is used: each position follows the token drafted before it. Counts per position of blocks alive, of blocks right up to there, and of the confidence
    head's error there; right is a draft equal to the model's most likely token where the text has that token, too."""
    states, wanted, labels, previous, alive, _ = run_blocks(target, head, batch, dtype)
    base, token, right = head.logits(states), previous[:, :, 0], alive[:, :, 0].clone()
    alive = alive & (wanted.argmax(-1) == labels).long().cumprod(-1).bool()
    counts, hits, promised = [], [], []
    for k in range(BLOCK):
        promised.append((torch.sigmoid(head.confidence(states[:, :, k], token)) * (right & alive[:, :, k])).sum())
        token = (base[:, :, k] + head.bias(token)).argmax(-1)
        before = right & alive[:, :, k]
        right = before & (token == labels[:, :, k])
        counts.append(before.sum())
        hits.append(right.sum())
    return torch.stack(counts), torch.stack(hits), torch.stack(promised), alive.sum((0, 1))


def described(target, head, batches, device, dtype):
    kept = [torch.zeros(BLOCK, device=device) for _ in range(6)]
    for batch in batches:
        _, accepted, alive = losses(target, head, batch, dtype, 1.0)
        for total, part in zip(kept, (accepted, alive, *chain(target, head, batch, dtype))):
            total += part
    accepted, alive, reached, hits, promised, blocks = (k.cpu() for k in kept)
    shares = (accepted / alive.clamp(min=1)).tolist()
    ahead, length = 1.0, 1.0
    for share in shares:
        ahead *= share
        length += ahead
    return (f"{int(alive[0])} blocks, drawn at temperature 1, right tokens before: " + "  ".join(f"{x:.3f}" for x in shares) + f"   about {length:.2f} of {1 + BLOCK}\n"
            f"    greedy, {int(blocks[0])} blocks: position reached and right   " + "  ".join(f"{x:.3f}" for x in (hits / reached.clamp(min=1)).tolist()) + "\n"
            "    promised by the confidence head       " + "  ".join(f"{x:.3f}" for x in (promised / reached.clamp(min=1)).tolist()) + "\n"
            f"    accept length {1 + float((hits / blocks.clamp(min=1)).sum()):.2f} of {1 + BLOCK}")


def load(head, folder):
    tensors = safetensors_torch.load_file(str(folder / "model.safetensors"))
    head.load_state_dict({name: t.float() for name, t in tensors.items() if name not in TARGET_TABLES})


def save(head, target, out):
    tensors = {**head.state_dict(), **dict.fromkeys(TARGET_TABLES, target.embed_tokens.weight)}
    tensors = {name: p.detach().to(torch.bfloat16).cpu().clone().contiguous() for name, p in tensors.items()}
    out.mkdir(parents=True, exist_ok=True)
    safetensors_torch.save_file(tensors, str(out / "model.safetensors"), metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(head.text, indent=2) + "\n")


def main():
    args = drafter_loop.arguments("a head", seed=6, batch_tokens=16384, other_rate=0.003).parse_args()
    data = drafter_loop.Data(args, HELD_OUT_SEED)
    device, dtype = drafter_loop.place()
    torch.manual_seed(args.seed)
    demo, target = drafter_loop.demo_model(Target, device)
    head = Head(config(demo, checkpoint.token_ids(checkpoint.DEMO / "tokenizer.json")["<mask>"]), target)
    if args.start:
        load(head, args.start)
    head.to(device)

    def one(batch, done):
        loss, accepted, alive = losses(target, head, batch, dtype, 1.0 if args.start else done)
        return loss, lambda: "accepted " + "  ".join(f"{x:.3f}" for x in (accepted / alive.clamp(min=1)).tolist())

    drafter_loop.train(args, head, data, device, dtype, one)
    save(head, target, args.out)
    data.report(device, dtype, lambda batches: described(target, head, batches, device, dtype))
    data.close()


if __name__ == "__main__":
    main()
