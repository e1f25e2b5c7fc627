"""The demo model's network in plain PyTorch, for training: the text part of gemma4_unified.

Same arithmetic and tensor names as transformers' Gemma4UnifiedTextModel (check.py compares the logits), but it takes packed rows: several
conversations a row, each attending only to itself, positions starting at 0 in each. Weights are float32, the matrix products run in
the autocast type.

Reads   a configuration dictionary as in config.json's text_config.
Fails   on layer types it does not know.
"""
import dataclasses

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

SLIDING, FULL = "sliding_attention", "full_attention"


@dataclasses.dataclass(frozen=True)
class Shape:
    """One layer's attention."""
    kind: str
    heads: int
    kv_heads: int
    head_dim: int


def norm(x, weight=None, eps=1e-6):
    """RMSNorm as Gemma 4 has it: statistics in float32, multiplied by the weight itself."""
    y = x.float()
    y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + eps)
    return (y if weight is None else y * weight).type_as(x)


def rotate(x, cos, sin):
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin


class Layer(nn.Module):
    def __init__(self, config, shape):
        super().__init__()
        hidden, inner = config["hidden_size"], config["intermediate_size"]
        self.shape = shape
        q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self.self_attn = nn.ModuleDict({"q_proj": nn.Linear(hidden, q, bias=False), "k_proj": nn.Linear(hidden, kv, bias=False),
                                        "o_proj": nn.Linear(q, hidden, bias=False)})
        if shape.kind == SLIDING:
            self.self_attn["v_proj"] = nn.Linear(hidden, kv, bias=False)
        self.self_attn["q_norm"] = Weight(shape.head_dim)
        self.self_attn["k_norm"] = Weight(shape.head_dim)
        self.mlp = nn.ModuleDict({"gate_proj": nn.Linear(hidden, inner, bias=False), "up_proj": nn.Linear(hidden, inner, bias=False),
                                  "down_proj": nn.Linear(inner, hidden, bias=False)})
        self.input_layernorm = Weight(hidden)
        self.post_attention_layernorm = Weight(hidden)
        self.pre_feedforward_layernorm = Weight(hidden)
        self.post_feedforward_layernorm = Weight(hidden)
        self.layer_scalar = nn.Parameter(torch.ones(1))

    def attend(self, x, cos, sin, mask):
        rows, length, _ = x.shape
        s, a = self.shape, self.self_attn
        q = norm(a["q_proj"](x).view(rows, length, s.heads, s.head_dim), a["q_norm"].weight)
        raw = a["k_proj"](x).view(rows, length, s.kv_heads, s.head_dim)
        k = norm(raw, a["k_norm"].weight)
        v = norm(a["v_proj"](x).view_as(raw) if s.kind == SLIDING else raw)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        # Query heads that share a key head are stacked along the length: one matrix product for each key head.
        group = s.heads // s.kv_heads
        q = q.view(rows, length, s.kv_heads, group, s.head_dim).permute(0, 2, 3, 1, 4).reshape(rows, s.kv_heads, group * length, s.head_dim)
        scores = q @ k.permute(0, 2, 3, 1)
        scores = scores.view(rows, s.kv_heads, group, length, length)
        weights = torch.softmax(torch.where(mask[:, None, None], scores.float(), -1e30), dim=-1).type_as(v)
        out = weights.view(rows, s.kv_heads, group * length, length) @ v.transpose(1, 2)
        out = out.view(rows, s.heads, length, s.head_dim).transpose(1, 2).reshape(rows, length, -1)
        return a["o_proj"](out)

    def forward(self, h, cos, sin, mask):
        a = self.attend(norm(h, self.input_layernorm.weight), cos, sin, mask)
        h = h + norm(a, self.post_attention_layernorm.weight)
        x = norm(h, self.pre_feedforward_layernorm.weight)
        x = self.mlp["down_proj"](F.gelu(self.mlp["gate_proj"](x), approximate="tanh") * self.mlp["up_proj"](x))
        h = h + norm(x, self.post_feedforward_layernorm.weight)
        return h * self.layer_scalar.type_as(h)


class Weight(nn.Module):
    """A norm's weight under the name that the checkpoint gives it."""

    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))


class Network(nn.Module):
    """whole_to: longer rows are trained without the compiled layers, each layer's inside computed again on the way back: they are rare, and compiling
    for them takes longer than they do."""
    whole_to = 1 << 30

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config["vocab_size"], config["hidden_size"])
        self.layers = nn.ModuleList(Layer(config, shape_of(config, kind)) for kind in config["layer_types"])
        self.norm = Weight(config["hidden_size"])
        self.init_weights()

    def init_weights(self):
        std = self.config["initializer_range"]
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=std)

    def tables(self, positions, dtype):
        """Cosines and sines for each kind of layer, [rows, length, 1, head_dim]."""
        out = {}
        for kind in (SLIDING, FULL):
            freqs = positions[..., None].float() * frequencies(self.config, kind, positions.device)
            angles = torch.cat((freqs, freqs), dim=-1)[:, :, None]
            out[kind] = angles.cos().to(dtype), angles.sin().to(dtype)
        return out

    def masks(self, positions, pictures=None, ahead_in=(SLIDING, FULL)):
        """Who may see whom: earlier places of the same conversation, in sliding layers only the newest `sliding_window`; and in the kinds of layers
        `ahead_in` all of a picture all of it (the model's authors: in sliding layers; transformers 5.17: in all).
        pictures [rows, length]: 0 or which picture of the row a place belongs to.

        Positions grow by one inside a conversation and start again at 0: place minus position names the conversation."""
        place = torch.arange(positions.shape[1], device=positions.device)
        start = place - positions
        mask = (start[:, :, None] == start[:, None, :]) & (place[:, None] >= place[None, :])
        near = (place[:, None] - place[None, :]) < self.config["sliding_window"]
        out = {FULL: mask, SLIDING: mask & near}
        if pictures is not None:
            same = (pictures[:, :, None] == pictures[:, None, :]) & (pictures[:, :, None] > 0)
            out = {kind: m | same if kind in ahead_in else m for kind, m in out.items()}
        return out

    def embedded(self, ids, dtype, soft=None):
        """soft: (places in the flattened rows, soft tokens): they stand there instead of the embeddings, without the factor."""
        h = F.embedding(ids, self.embed_tokens.weight.to(dtype)) * torch.tensor(self.config["hidden_size"] ** 0.5, dtype=dtype)
        return h if soft is None else h.flatten(0, 1).index_put((soft[0],), soft[1].to(h.dtype)).view_as(h)

    def hidden(self, ids, positions, dtype=torch.float32, soft=None, pictures=None, ahead_in=(SLIDING, FULL)):
        """soft as for embedded(), the rest as for masks()."""
        h = self.embedded(ids, dtype, soft)
        tables, masks = self.tables(positions, dtype), self.masks(positions, pictures, ahead_in)
        for layer in self.layers:
            kind = layer.shape.kind
            if torch.is_grad_enabled() and ids.shape[1] > self.whole_to:
                h = checkpoint(layer.forward, h, *tables[kind], masks[kind], use_reentrant=False)
            else:
                h = layer(h, *tables[kind], masks[kind])
        return norm(h, self.norm.weight)

    def logits(self, h):
        cap = self.config["final_logit_softcapping"]
        x = F.linear(h, self.embed_tokens.weight).float()
        return cap * torch.tanh(x / cap)

    def forward(self, ids, positions, dtype=torch.float32):
        return self.logits(self.hidden(ids, positions, dtype))


def shape_of(config, kind):
    heads = config["num_attention_heads"]
    if kind == SLIDING:
        return Shape(kind, heads, config["num_key_value_heads"], config["head_dim"])
    if kind == FULL:
        return Shape(kind, heads, config["num_global_key_value_heads"], config["global_head_dim"])
    raise ValueError(f"unknown layer type {kind!r}")


def frequencies(config, kind, device):
    rope = config["rope_parameters"][kind]
    size = shape_of(config, kind).head_dim
    inverse = 1.0 / rope["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.float32, device=device) / size)
    if rope["rope_type"] == "proportional":
        turning = int(rope["partial_rotary_factor"] * size // 2)
        inverse[turning:] = 0.0
    return inverse
