"""The parts of the network that see and hear: blocks of pixels and frames of sound as rows of the sequence (model/soft.h).

Same arithmetic and tensor names as transformers' Gemma4Unified embedders (check.py compares the logits).

Reads   pictures as the workers draw them, small; brings them to the size that the model sees, spoils some as JPEG files are spoiled.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

from network import norm

PATCH = 48
PATCH_VALUES = PATCH * PATCH * 3
FRAME = 640
EPS = 1e-5
SPOILED_SHARE = 0.35            # of the pictures have been through something like JPEG
GRAINY_SHARE = 0.25             # of the pictures have a grain of up to GRAIN levels
GRAIN = 1.5
SOFT_SIZE = 3.2                 # root mean square of a soft token at the start: as that of the trained word embeddings
DENSE_SCALE = 20.0              # the second norm takes it out again; it sets how far a step of the optimizer turns the rows


def target_size(height, width, budget):
    """model/picture.h's picture_target for ordinary proportions."""
    factor = math.sqrt(budget * PATCH * PATCH / (height * width))
    return int(factor * height // PATCH) * PATCH, int(factor * width // PATCH) * PATCH


def cosines(device):
    k = torch.arange(8, device=device, dtype=torch.float32)
    basis = torch.cos(math.pi * (2 * k[None, :] + 1) * k[:, None] / 16) * 0.5
    basis[0] /= math.sqrt(2)
    return basis


def spoil(pictures):
    """[n, 3, height, width] in 0..255 after a coarse cosine transform of 8 x 8 blocks: steps that grow with the frequency, larger for colour."""
    n, _, height, width = pictures.shape
    device = pictures.device
    turn = torch.tensor([[0.299, 0.587, 0.114], [-0.1687, -0.3313, 0.5], [0.5, -0.4187, -0.0813]], device=device)
    y = torch.einsum("ij,njhw->nihw", turn, pictures).reshape(n, 3, height // 8, 8, width // 8, 8)
    basis = cosines(device)
    c = torch.einsum("ua,vb,nihawb->nihuwv", basis, basis, y)
    far = torch.arange(8, device=device)
    steps = 2.0 + (far[:, None] + far[None, :]) * 1.5
    strength = torch.rand(n, 1, 1, 1, 1, 1, device=device) * 2.5 + 0.3
    size = steps[None, None, None, :, None, :] * torch.tensor([1.0, 2.0, 2.0], device=device)[None, :, None, None, None, None] * strength
    c = torch.round(c / size) * size
    y = torch.einsum("ua,vb,nihuwv->nihawb", basis, basis, c).reshape(n, 3, height, width)
    return torch.einsum("ij,njhw->nihw", torch.linalg.inv(turn), y).round_().clamp_(0, 255)


def enlarge(pictures, budget):
    """uint8 [n, height, width, 3] as the model sees them: [n, 3, H, W], whole levels as float."""
    x = pictures.permute(0, 3, 1, 2).float()
    size = target_size(x.shape[2], x.shape[3], budget)
    return F.interpolate(x, size=size, mode="bicubic", antialias=True, align_corners=False).round_().clamp_(0, 255)


def blocks_of(x):
    """[n, 3, H, W] -> [n, blocks, PATCH_VALUES] and their columns and rows."""
    n, _, height, width = x.shape
    rows, columns = height // PATCH, width // PATCH
    blocks = x.reshape(n, 3, rows, PATCH, columns, PATCH).permute(0, 2, 4, 3, 5, 1).reshape(n, rows * columns, PATCH_VALUES)
    place = torch.arange(rows * columns, device=x.device)
    return blocks, place % columns, place // columns


def as_trained(pictures, budget):
    """blocks_of the pictures, some of them spoiled or with a grain; values in 0..1."""
    x = pictures
    kind = torch.rand(len(x), device=x.device)
    small = x.permute(0, 3, 1, 2).float()
    small = torch.where((kind < SPOILED_SHARE)[:, None, None, None], spoil(small), small)
    big = enlarge(small.permute(0, 2, 3, 1), budget)
    grain = (kind > 1 - GRAINY_SHARE).float() * torch.rand(len(x), device=x.device) * GRAIN
    if GRAINY_SHARE:
        big = (big + torch.randn_like(big) * grain[:, None, None, None]).round_().clamp_(0, 255)
    blocks, columns, rows = blocks_of(big)
    return blocks * (1.0 / 255.0), columns, rows


class Senses(nn.Module):
    """Names as in the checkpoint, behind "model."."""

    def __init__(self, config):
        super().__init__()
        vision, hidden = config["vision_config"], config["text_config"]["hidden_size"]
        self.dim, self.budget, self.eps = vision["mm_embed_dim"], vision["num_soft_tokens"], vision["rms_norm_eps"]
        self.vision_embedder = nn.ModuleDict({
            "patch_ln1": nn.LayerNorm(PATCH_VALUES, EPS), "patch_dense": nn.Linear(PATCH_VALUES, self.dim), "patch_ln2": nn.LayerNorm(self.dim, EPS),
            "pos_norm": nn.LayerNorm(self.dim, EPS)})
        self.vision_embedder.pos_embedding = nn.Parameter(torch.randn(vision["mm_posemb_size"], 2, self.dim) * 0.3)
        self.embed_vision = nn.ModuleDict({"embedding_projection": nn.Linear(self.dim, hidden, bias=False)})
        self.embed_audio = nn.ModuleDict({"embedding_projection": nn.Linear(FRAME, hidden, bias=False)})

    def see(self, blocks, columns, rows, dtype):
        """[n, count, PATCH_VALUES] in 0..1 -> soft tokens [n, count, hidden]."""
        v = self.vision_embedder
        x = v["patch_dense"](v["patch_ln1"](blocks.to(dtype)).to(dtype))
        x = v["patch_ln2"](x)
        x = x + (v.pos_embedding[columns, 0] + v.pos_embedding[rows, 1])
        x = v["pos_norm"](x)
        return self.embed_vision["embedding_projection"](norm(x, eps=self.eps).to(dtype))

    def hear(self, frames, dtype):
        """[count, FRAME] -> soft tokens [count, hidden]."""
        return self.embed_audio["embedding_projection"](norm(frames.to(dtype), eps=self.eps))

    @torch.no_grad()
    def start(self, blocks):
        """Starting values. Pictures: the main components of many blocks, each as large as the others. Sound: a Fourier basis, turned at random."""
        device = blocks.device
        x = F.layer_norm(blocks.reshape(-1, PATCH_VALUES).float(), (PATCH_VALUES,), eps=EPS)
        x = x[x.pow(2).mean(1) > 0.5]           # an even block of paper teaches nothing
        middle = x.mean(0)
        _, sizes, directions = torch.svd_lowrank(x - middle, q=self.dim, niter=4)
        spread = sizes / math.sqrt(len(x))
        weight = (directions / spread.clamp(min=spread[0] * 1e-3)).T * DENSE_SCALE
        v = self.vision_embedder
        v["patch_dense"].weight.copy_(weight)
        v["patch_dense"].bias.copy_(-weight @ middle)
        hidden = self.embed_audio["embedding_projection"].weight.shape[0]
        nn.init.normal_(self.embed_vision["embedding_projection"].weight, std=SOFT_SIZE / math.sqrt(self.dim))
        k = torch.arange(hidden // 2, device=device)[:, None] + 4          # from 100 Hz on, every 25 Hz
        t = torch.arange(FRAME, device=device)[None, :] * (2 * math.pi / FRAME)
        waves = torch.cat((torch.cos(k * t), torch.sin(k * t))) * math.sqrt(2.0 / FRAME)
        turned, _ = torch.linalg.qr(torch.randn(hidden, hidden, device=device))
        self.embed_audio["embedding_projection"].weight.copy_(turned @ waves * (SOFT_SIZE * math.sqrt(hidden / FRAME)))


RATES = (("patch_dense", 0.1), ("patch_ln1", 0.25), ("embed_audio", 0.5), ("", 1.0))        # of the optimizer's rate for what is not a matrix of a layer


def rate_of(name):
    return next(rate for part, rate in RATES if part in name)
