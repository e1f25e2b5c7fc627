"""Trains an MTP assistant (a drafter) for the demo model and writes its checkpoint.

    python assistant.py --minutes 3 --out DIR [--start ../demo/assistant]

The assistant has query-only layers over the demo model's last keys and values (model/assistant.h). Every place of every answer is a round: the token there
and the model's state before it go in, the next tokens come out step by step, each step fed with the right token and with
the hidden state of the step before. Learned from the model's own distribution, not from the texts alone: what counts is what the model would say.

Reads   ../demo (the model that it drafts for).
Writes  DIR/model.safetensors (BF16) and config.json as transformers' Gemma4UnifiedAssistantForCausalLM reads them; progress on standard output, at
        the end accept rates per step on conversations that were not trained on.
Fails   if the loss is not finite.
"""
import json

import torch
import torch.nn.functional as F
from safetensors import torch as safetensors_torch
from torch import nn

import drafter_loop
from network import FULL, SLIDING, Weight, frequencies, norm, rotate, shape_of

STEPS = 6                           # of a round in training: as many as a round drafts
STEP_WEIGHT = 0.85                  # of a step's loss, against the step before: later tokens are drafted in vain more often
HELD_OUT_SEED = 77


def config(target):
    """config.json; a quarter of the model's layers, half of its width."""
    text = {k: v for k, v in target["text_config"].items() if k not in ("use_bidirectional_attention",)}
    text.update(hidden_size=128, intermediate_size=384, num_hidden_layers=2, layer_types=[SLIDING, FULL], num_kv_shared_layers=2, final_logit_softcapping=None)
    return {"architectures": ["Gemma4UnifiedAssistantForCausalLM"], "model_type": "gemma4_unified_assistant", "backbone_hidden_size": target["text_config"]["hidden_size"],
            "use_ordered_embeddings": False, "tie_word_embeddings": True, "dtype": "bfloat16", "text_config": text, "transformers_version": "5.17.0"}


class Target(drafter_loop.Target):
    """The demo model, which also hands out the keys and values of its last layers."""

    def states(self, batch, dtype):
        """Scaled embeddings, hidden states after the final norm, and {kind: (k, v)} [rows, length, kv_heads, head_dim]."""
        e, tables, masks = self.begin(batch, dtype)
        kv, h = {}, e
        for layer in self.layers:
            kind, s, a = layer.shape.kind, layer.shape, layer.self_attn
            x = norm(h, layer.input_layernorm.weight)
            raw = a["k_proj"](x).view(*batch[0].shape, s.kv_heads, s.head_dim)
            k = rotate(norm(raw, a["k_norm"].weight), *tables[kind])
            kv[kind] = k, norm(a["v_proj"](x).view_as(raw) if kind == SLIDING else raw)     # the last of a kind stays
            h = layer(h, *tables[kind], masks[kind])
        return e, norm(h, self.norm.weight), kv


class AssistantLayer(nn.Module):
    def __init__(self, text, kind):
        super().__init__()
        hidden, inner = text["hidden_size"], text["intermediate_size"]
        self.shape = shape_of(text, kind)
        q = self.shape.heads * self.shape.head_dim
        self.self_attn = nn.ModuleDict({"q_proj": nn.Linear(hidden, q, bias=False), "o_proj": nn.Linear(q, hidden, bias=False), "q_norm": Weight(self.shape.head_dim)})
        self.mlp = nn.ModuleDict({"gate_proj": nn.Linear(hidden, inner, bias=False), "up_proj": nn.Linear(hidden, inner, bias=False),
                                  "down_proj": nn.Linear(inner, hidden, bias=False)})
        for name in ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"):
            setattr(self, name, Weight(hidden))
        self.layer_scalar = nn.Parameter(torch.ones(1))
        with torch.no_grad():       # as train.py prepares the model: scores near 1, small contributions
            self.self_attn["q_norm"].weight.fill_(self.shape.head_dim ** -0.25)
            self.post_attention_layernorm.weight.fill_(0.5)
            self.post_feedforward_layernorm.weight.fill_(0.5)

    def forward(self, x, k, v, cos, sin, mask):
        rows, length, _ = x.shape
        s, a = self.shape, self.self_attn
        q = rotate(norm(a["q_proj"](norm(x, self.input_layernorm.weight)).view(rows, length, s.heads, s.head_dim), a["q_norm"].weight), cos, sin)
        group = s.heads // s.kv_heads
        q = q.view(rows, length, s.kv_heads, group, s.head_dim).permute(0, 2, 3, 1, 4).reshape(rows, s.kv_heads, group * length, s.head_dim)
        scores = (q @ k.permute(0, 2, 3, 1)).view(rows, s.kv_heads, group, length, length)
        weights = torch.softmax(torch.where(mask[:, None, None], scores.float(), -1e30), dim=-1).type_as(v)
        out = weights.view(rows, s.kv_heads, group * length, length) @ v.transpose(1, 2)
        out = out.view(rows, s.heads, length, s.head_dim).transpose(1, 2).reshape(rows, length, -1)
        x = x + norm(a["o_proj"](out), self.post_attention_layernorm.weight)
        y = norm(x, self.pre_feedforward_layernorm.weight)
        y = self.mlp["down_proj"](F.gelu(self.mlp["gate_proj"](y), approximate="tanh") * self.mlp["up_proj"](y))
        return (x + norm(y, self.post_feedforward_layernorm.weight)) * self.layer_scalar.type_as(x)


class Assistant(nn.Module):
    def __init__(self, full_config):
        super().__init__()
        text, backbone = full_config["text_config"], full_config["backbone_hidden_size"]
        self.text = text
        self.embed_tokens = nn.Embedding(text["vocab_size"], text["hidden_size"])
        self.pre_projection = nn.Linear(2 * backbone, text["hidden_size"], bias=False)
        self.post_projection = nn.Linear(text["hidden_size"], backbone, bias=False)
        self.layers = nn.ModuleList(AssistantLayer(text, kind) for kind in text["layer_types"])
        self.norm = Weight(text["hidden_size"])
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=text["initializer_range"] * 2)

    def step(self, embedding, hidden, kv, tables, masks):
        """Logits of the next token, and the hidden state of the next step."""
        x = self.pre_projection(torch.cat((embedding, hidden), dim=-1))
        for layer in self.layers:
            kind = layer.shape.kind
            x = layer(x, *kv[kind], *tables[kind], masks[kind])
        z = norm(x, self.norm.weight)
        return F.linear(z, self.embed_tokens.weight).float(), self.post_projection(z)


def tables_of(text, positions, dtype):
    out = {}
    for kind in (SLIDING, FULL):
        freqs = positions[..., None].float() * frequencies(text, kind, positions.device)
        angles = torch.cat((freqs, freqs), dim=-1)[:, :, None]
        out[kind] = angles.cos().to(dtype), angles.sin().to(dtype)
    return out


def masks_of(window, positions):
    """Keys before the newest token of the same conversation; in sliding layers the newest `window` of them."""
    place = torch.arange(positions.shape[1], device=positions.device)
    start = place - positions
    mask = (start[:, :, None] == start[:, None, :]) & (place[:, None] > place[None, :])
    return {FULL: mask, SLIDING: mask & (place[:, None] - place[None, :] <= window)}


def shifted(x, by):
    """x[p + by] at place p; what lies behind the end repeats the last."""
    return x if by == 0 else torch.cat((x[:, by:], x[:, -1:].expand(-1, by, *x.shape[2:])), dim=1)


def round_losses(target, assistant, batch, dtype):
    """Summed loss, and per step how many rounds there are and how many have all steps so far right."""
    ids, positions, places = batch[:3]
    with torch.no_grad():
        e, h, kv = target.states(batch, dtype)
        teacher = target.logits(h)
    learn = torch.zeros(ids.numel(), dtype=torch.bool, device=ids.device)
    learn[places] = True                                            # the token behind this place is said by the model
    learn = learn.view_as(ids)
    hidden = torch.cat((h[:, :1], h[:, :-1]), dim=1)                # the state before the newest token
    rounds = learn & (positions > 0)
    tables, masks = tables_of(assistant.text, positions, dtype), masks_of(target.config["sliding_window"], positions)
    total, counts, right, chain, weights = 0.0, [], [], rounds, drafter_loop.weights_of(batch)
    for j in range(STEPS):
        logits, hidden = assistant.step(shifted(e, j), hidden, kv, tables, masks)
        alive = rounds & shifted(learn, j) & (shifted(positions, j) == positions + j)
        index = alive.flatten().nonzero().squeeze(1)
        wanted = shifted(teacher, j).flatten(0, 1)[index]
        ours = logits.flatten(0, 1)[index]
        total = total + STEP_WEIGHT ** j * (weights[index] * F.cross_entropy(ours, torch.softmax(wanted, -1), reduction="none")).sum()
        hit = torch.zeros_like(rounds.flatten())
        hit[index] = ours.argmax(-1) == wanted.argmax(-1)
        chain = chain & hit.view_as(rounds)
        counts.append(len(index))
        right.append(chain.sum())
    return total, counts, right


def load(assistant, folder):
    assistant.load_state_dict({name.removeprefix("model."): t.float() for name, t in safetensors_torch.load_file(str(folder / "model.safetensors")).items()})


def save(assistant, full_config, out):
    tensors = {(name if "projection" in name else "model." + name): p.detach().to(torch.bfloat16).cpu().contiguous() for name, p in assistant.state_dict().items()}
    out.mkdir(parents=True, exist_ok=True)
    safetensors_torch.save_file(tensors, str(out / "model.safetensors"), metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(full_config, indent=2) + "\n")


def described(target, assistant, batches, dtype):
    counts, right = [0] * STEPS, [0] * STEPS
    for batch in batches:
        _, c, r = round_losses(target, assistant, batch, dtype)
        for j in range(STEPS):
            counts[j] += c[j]
            right[j] += int(r[j])
    rates = [r / max(1, c) for r, c in zip(right, counts)]
    return f"{counts[0]} rounds: " + "  ".join(f"{x:.3f}" for x in rates) + f"   accept length {1 + sum(right) / max(1, counts[0]):.2f} of {1 + STEPS}"


def main():
    parser = drafter_loop.arguments("an assistant", seed=5, batch_tokens=32768, other_rate=0.004)
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    data = drafter_loop.Data(args, HELD_OUT_SEED)
    device, dtype = drafter_loop.place()
    torch.manual_seed(args.seed)
    demo, target = drafter_loop.demo_model(Target, device)
    full_config = config(demo)
    assistant = Assistant(full_config)
    if args.start:
        load(assistant, args.start)
    assistant.to(device)
    if not args.no_compile:
        torch._dynamo.config.recompile_limit = 64
        for layer in [*target.layers, *assistant.layers]:
            layer.compile(dynamic=False)

    def losses(batch, done):
        total, counts, right = round_losses(target, assistant, batch, dtype)
        rounds = max(1, counts[0])
        return total / rounds, lambda: f"first right {int(right[0]) / rounds:.3f}  all {STEPS} right {int(right[-1]) / rounds:.3f}"

    drafter_loop.train(args, assistant, data, device, dtype, losses)
    save(assistant, full_config, args.out)
    data.report(device, dtype, lambda batches: described(target, assistant, batches, dtype))
    data.close()


if __name__ == "__main__":
    main()
