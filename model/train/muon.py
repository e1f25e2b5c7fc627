"""The optimizer: Muon (momentum made orthogonal) for the matrices of the layers, AdamW for the rest.

Matrices of one shape are treated together, so that a step is a few batched products.
"""
import collections

import torch

ROUNDS = 5
COEFFICIENTS = (3.4445, -4.7750, 2.0315)    # the usual quintic: pushes all singular values near 1


def orthogonal(batch):
    """[n, rows, columns] -> the nearest (roughly) orthogonal matrices."""
    a, b, c = COEFFICIENTS
    x = batch.to(torch.bfloat16) if batch.is_cuda else batch
    tall = x.shape[1] > x.shape[2]
    x = x.transpose(1, 2) if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(ROUNDS):
        square = x @ x.transpose(1, 2)
        x = a * x + (b * square + c * square @ square) @ x
    return (x.transpose(1, 2) if tall else x).float()


class Muon:
    def __init__(self, parameters, momentum=0.95):
        shapes = collections.defaultdict(list)
        for p in parameters:
            shapes[p.shape].append(p)
        self.groups = [(ps, torch.zeros((len(ps), *ps[0].shape), device=ps[0].device)) for ps in shapes.values()]
        self.momentum = momentum

    @torch.no_grad()
    def step(self, rate, decay):
        for parameters, state in self.groups:
            grads = torch.stack([p.grad for p in parameters])
            state.lerp_(grads, 1 - self.momentum)
            update = orthogonal(grads.lerp(state, self.momentum))
            rows, columns = parameters[0].shape
            scale = rate * max(1.0, rows / columns) ** 0.5
            torch._foreach_mul_(parameters, 1 - rate * decay)
            torch._foreach_add_(parameters, list(update.unbind(0)), alpha=-scale)


class Both:
    """Muon for `layers.*` matrices, AdamW for embeddings, norms and scalars; one learning-rate factor for both.

    more: [(parameter, its share of other_rate)], for AdamW too."""

    def __init__(self, network, matrix_rate, other_rate, decay, more=()):
        matrices = [p for n, p in network.named_parameters() if n.startswith("layers.") and p.dim() == 2]
        vectors = [p for n, p in network.named_parameters() if not (n.startswith("layers.") and p.dim() == 2)]
        self.muon, self.matrix_rate, self.other_rate, self.decay = Muon(matrices), matrix_rate, other_rate, decay
        shares = {}
        for p, share in [(p, 1.0) for p in vectors] + list(more):
            shares.setdefault(share, []).append(p)
        self.shares = list(shares)
        self.adam = torch.optim.AdamW([{"params": ps} for ps in shares.values()], lr=other_rate, betas=(0.9, 0.95), eps=1e-10, weight_decay=0.0, fused=vectors[0].is_cuda)

    def step(self, factor):
        self.muon.step(self.matrix_rate * factor, self.decay)
        for group, share in zip(self.adam.param_groups, self.shares):
            group["lr"] = self.other_rate * share * factor
        self.adam.step()

    def zero_grad(self):
        for parameters, _ in self.muon.groups:
            for p in parameters:
                p.grad = None
        self.adam.zero_grad(set_to_none=True)
