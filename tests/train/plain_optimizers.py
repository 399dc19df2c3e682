"""The contracts of what an unused weight does, in plain torch: masks instead of slices, matrices one by one.

Nothing here comes from `llmnas.train`. What a network uses of a weight is the shape of its copy in the network that
`extract` cuts out.
"""

import torch

from llmnas.nn.elastic_linear import grids
from llmnas.supernet import extract

BETAS, EPS = (0.9, 0.95), 1e-8
# axes that are rows of the matrix, and those of them that tell matrices apart
ROWS = {"q": 3, "k": 2, "v": 2, "o": 1, "forget": 3, "candidate": 3, "output_gate": 3}


def role(name):
    """The last part of a name that says something: `q` of `layers.0.attention.q.weight`."""
    return name.removesuffix(".weight").split(".")[-1]


def sliced(model):
    """Every parameter by its name, in the shape in which it is sliced: views, without gradient."""
    shapes = grids(model)
    return {name: p.detach().view(shapes.get(name, p.shape)) for name, p in model.named_parameters()}


def used_sizes(model, arch):
    """name -> size of the leading block that the network uses."""
    kept = [i for i, spec in enumerate(arch.layers) if spec is not None]
    whole, found = sliced(model), {}
    for name, parameter in sliced(extract(model, arch)).items():
        parts = name.split(".")
        if parts[0] == "layers":
            parts[1] = str(kept[int(parts[1])])
        name = ".".join(parts)
        extra = (1,) * (whole[name].dim() - parameter.dim())
        found[name] = (*extra, *parameter.shape)
    return found


def masks(model, networks):
    """name -> which elements at least one network uses."""
    found = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in sliced(model).items()}
    for arch in networks:
        for name, size in used_sizes(model, arch).items():
            found[name][tuple(slice(length) for length in size)] = True
    return {name: found[name].view(p.shape) for name, p in model.named_parameters()}


class Masked:
    """AdamW whose moments, update and decay touch only what a step uses; the bias correction counts every step."""

    def __init__(self, model, decays):
        self.model, self.decays, self.steps = model, decays, 0
        self.moments = {name: (torch.zeros_like(p), torch.zeros_like(p)) for name, p in model.named_parameters()}

    @torch.no_grad()
    def step(self, networks, lr, weight_decay, only=None):
        self.steps += 1
        used = masks(self.model, networks)
        for name, p in self.model.named_parameters():
            if only is not None and name not in only:
                continue
            g = torch.zeros_like(p) if p.grad is None else p.grad
            m, v = self.moments[name]
            m = torch.where(used[name], BETAS[0] * m + (1 - BETAS[0]) * g, m)
            v = torch.where(used[name], BETAS[1] * v + (1 - BETAS[1]) * g * g, v)
            self.moments[name] = m, v
            step = (m / (1 - BETAS[0] ** self.steps)) / ((v / (1 - BETAS[1] ** self.steps)).sqrt() + EPS)
            decay = weight_decay if self.decays(name) else 0.0
            p.copy_(torch.where(used[name], p * (1 - lr * decay) - lr * step, p))


def orthogonal(matrix):
    """Five Newton-Schulz steps of one matrix, in float64."""
    x = matrix.double()
    x = x.T if x.shape[0] > x.shape[1] else x
    x = x / max(float(x.norm()), 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Muon:
    """Muon of the matrices of a model, each by itself, the rest by another optimizer."""

    def __init__(self, model, scope, momentum=0.95, scale=0.2):
        self.model, self.scope, self.momentum, self.scale = model, scope, momentum, scale
        self.moments = {name: torch.zeros_like(p) for name, p in sliced(model).items() if self.is_matrix(name)}

    @staticmethod
    def is_matrix(name):
        return role(name) in (*ROWS, "gate", "up", "down")

    @torch.no_grad()
    def step(self, networks, lr, weight_decay):
        gradients = {name: p.grad for name, p in self.model.named_parameters()}
        for name, p in sliced(self.model).items():
            if not self.is_matrix(name):
                continue
            sizes = [used_sizes(self.model, arch).get(name) for arch in networks]
            sizes = [size for size in sizes if size]
            if not sizes:
                continue
            size = [max(lengths) for lengths in zip(*sizes, strict=True)]
            experts = role(name) in ("gate", "up", "down") and p.dim() == 3
            if self.scope == "whole":
                size = [*size[: int(experts)], *p.shape[int(experts) :]]
            block = tuple(slice(length) for length in size)
            g = (torch.zeros_like(p) if gradients[name] is None else gradients[name].view(p.shape))[block]
            self.moments[name][block] = self.momentum * self.moments[name][block] + (1 - self.momentum) * g
            ahead = (1 - self.momentum) * g + self.momentum * self.moments[name][block]
            for e in range(size[0]) if experts else [slice(None)]:
                part = ahead[e]
                rows = 1 if experts else ROWS.get(role(name), 1)
                matrix = part.reshape(part.shape[:rows].numel(), -1)
                update = orthogonal(matrix) * self.scale * max(matrix.shape) ** 0.5
                old = p[block][e]
                p[block][e] = old * (1 - lr * weight_decay) - lr * update.reshape(part.shape).to(p.dtype)
