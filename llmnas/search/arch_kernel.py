"""Covariances of architectures for Gaussian processes (GPyTorch).

Shapes: n architectures; P positions of a code; F features. A kernel has two parts: `embed` turns codes
[n, P] into features [n, F] without any hyperparameter, once an architecture; `forward` turns features into
covariances. Every kernel is positive semi-definite by construction: no eigenvalue is ever clipped.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gpytorch.constraints import GreaterThan, Interval
from gpytorch.kernels import Kernel
from gpytorch.priors import LogNormalPrior
from torch import Tensor

from llmnas.space import Architecture, LayerSpec, SearchSpace, cardinalities
from llmnas.space.encode import encode_globals

_LEAST = 1e-6
"""Of a weight: a softplus alone underflows to 0 in a long step of the fit, where no prior is defined."""
_WALK = 3
_KINDS = 4096


class Layout:
    """Where each decision of a space stands in a code, and how many values it takes.

    A code is `encode`'s, in which a decision that a layer does not use (the layer is skipped, or has no attention) has
    a value of its own, `absent`, the number of its choices: what is not there is not the first of the choices.
    Positions: `globals` (hidden size, shared dimensions), then for each layer a keep flag and its own dimensions.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        self.globals = 1 + len(space.shared_dimensions)
        self.own = len(space.layer_dimensions)
        self.choices = cardinalities(space)
        # one more value, `absent`, for what a skipped layer does not decide
        flags = {self.globals + i * (1 + self.own) for i in range(space.layers)}
        extended = range(self.globals, len(self.choices))
        self.values = [n + (i in extended and i not in flags) for i, n in enumerate(self.choices)]
        self._known: dict[Architecture, np.ndarray] = {}
        # a pool has thousands of layers, of few kinds
        self._layer = functools.lru_cache(_KINDS)(self._layer_code)

    def codes(self, archs: Sequence[Architecture]) -> Tensor:
        """Codes of the architectures, [n, P] int64; computed once for each: a search asks for the same ones again."""
        new = [arch for arch in dict.fromkeys(archs) if arch not in self._known]
        if new:
            self._known |= zip(new, self._coded(new).numpy(), strict=True)
        return torch.from_numpy(np.stack([self._known[arch] for arch in archs]))

    def _coded(self, archs: Sequence[Architecture]) -> Tensor:
        """[n, P] int64."""
        rows = []
        for arch in archs:
            row = encode_globals(self.space, arch)
            for spec in arch.layers:
                row += self._layer(spec)
            rows.append(row)
        return torch.from_numpy(np.array(rows, dtype=np.int64))

    def _layer_code(self, spec: LayerSpec | None) -> list[int]:
        """Keep flag and own dimensions."""
        dimensions = [(name, self.space.dimension(name).choices) for name in self.space.layer_dimensions]
        return [int(spec is not None)] + [
            choices.index(getattr(spec, name)) if spec is not None and spec.uses(name) else len(choices)
            for name, choices in dimensions
        ]

    def layers(self, codes: Tensor) -> Tensor:
        """A view of the layers' part of the codes, [n, layers, 1 + own dimensions]."""
        return codes[:, self.globals :].view(len(codes), self.space.layers, 1 + self.own)

    def one_hot(self, codes: Tensor, positions: Sequence[int]) -> Tensor:
        """[n, sum of values] float64, one column for each value of each of these positions."""
        counts = [self.values[i] for i in positions]
        starts = torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int64)
        found = torch.zeros(len(codes), sum(counts), dtype=torch.float64)
        return found.scatter_(1, codes[:, list(positions)] + starts[:-1], 1.0)


def _repeat(weights: Tensor, counts: Sequence[int]) -> Tensor:
    """One weight a position -> one a one-hot column."""
    return weights.repeat_interleave(torch.tensor(counts))


def _weights(kernel: Kernel, name: str, count: int, total: float) -> None:
    """Register `count` positive weights that sum to `total` before they are learned."""
    start = total / max(count, 1)
    kernel.register_parameter(f"raw_{name}", torch.nn.Parameter(torch.zeros(count, dtype=torch.float64)))
    kernel.register_constraint(f"raw_{name}", GreaterThan(_LEAST, initial_value=start))
    kernel.register_prior(
        f"{name}_prior",
        LogNormalPrior(float(np.log(start)), 1.5),
        lambda m: getattr(m, name),
        lambda m, value: m.initialize(**{f"raw_{name}": getattr(m, f"raw_{name}_constraint").inverse_transform(value)}),
    )


class HammingKernel(Kernel):  # type: ignore[misc]
    """k(a, b) = exp(-sum_i w_i [a_i != b_i]): a product of one factor for each decision i of the code.

    The sum is a weighted Hamming distance of one-hot codes. With O the one-hot rows whose columns are scaled
    by sqrt(w_i), k = exp(O_a . O_b - sum_i w_i). The entrywise exponential of a positive semi-definite matrix
    is one (Schur). Every decision learns its own w_i > 0: how much it matters.
    """

    has_lengthscale = False

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        _weights(self, "weight", len(layout.values), 2.0)

    @property
    def weight(self) -> Tensor:
        """w, [P]."""
        value: Tensor = self.raw_weight_constraint.transform(self.raw_weight)
        return value

    def embed(self, codes: Tensor) -> Tensor:
        """One-hot codes, [n, F]."""
        return self.layout.one_hot(codes, range(len(self.layout.values)))

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **_: Any) -> Tensor:
        """[..., n, F] and [..., m, F] -> [..., n, m]; [..., n] with `diag`."""
        scale = _repeat(self.weight, self.layout.values)
        if diag:
            return torch.exp((x1 * x2 * scale).sum(-1) - self.weight.sum())
        return torch.exp((x1 * scale) @ x2.transpose(-1, -2) - self.weight.sum())


def edit_distances(layout: Layout, codes: Tensor, anchors: Tensor) -> Tensor:
    """d(a, b) = Levenshtein distance of the kept layers + number of global decisions that differ, [n, anchors].

    Dropping or inserting a layer costs 1; replacing one by another costs the share of its own dimensions
    that differ (nothing, where all dimensions are shared).
    """
    differ = (codes[:, None, : layout.globals] != anchors[None, :, : layout.globals]).sum(-1).double()
    first, second = layout.layers(codes), layout.layers(anchors)
    a, b = first[:, None].expand(-1, len(anchors), -1, -1), second[None].expand(len(codes), -1, -1, -1)
    layers = layout.space.layers
    # A skipped layer costs nothing to drop or to insert, so the table can run over all layers of the supernet.
    drop, insert = a[..., 0].double(), b[..., 0].double()
    row = [torch.zeros_like(differ)]
    for j in range(layers):
        row.append(row[-1] + insert[..., j])
    for i in range(layers):
        above, row = row, [row[0] + drop[..., i]]
        for j in range(layers):
            change = (a[..., i, 1:] != b[..., j, 1:]).sum(-1).double() / max(layout.own, 1)
            both = drop[..., i] * insert[..., j] == 1
            replace = above[j] + torch.where(both, change, drop[..., i] + insert[..., j])
            row.append(torch.minimum(torch.minimum(above[j + 1] + drop[..., i], row[j] + insert[..., j]), replace))
    return differ + row[-1]


class EditDistanceKernel(Kernel):  # type: ignore[misc]
    """k(a, b) = exp(-sum_j (d(a, z_j) - d(b, z_j))^2 / (2 J l^2)), z_1 ... z_J anchor architectures.

    d is `edit_distances`, l a length scale in edits. exp(-d(a, b)) itself is not positive semi-definite; this
    is a Gaussian kernel on vectors of R^J, which is. Architectures equally far from all anchors are not told
    apart, so a few dozen anchors are drawn from the space.
    """

    has_lengthscale = False

    def __init__(self, layout: Layout, anchors: Tensor) -> None:
        super().__init__()
        self.layout = layout
        self.anchors = anchors
        _weights(self, "scale", 1, 1.0)

    @property
    def scale(self) -> Tensor:
        """l, [1]."""
        value: Tensor = self.raw_scale_constraint.transform(self.raw_scale)
        return value

    def embed(self, codes: Tensor) -> Tensor:
        """Distances to the anchors over sqrt(J), [n, J]."""
        distances: Tensor = edit_distances(self.layout, codes, self.anchors) / len(self.anchors) ** 0.5
        return distances

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **_: Any) -> Tensor:
        """[..., n, F] and [..., m, F] -> [..., n, m]; [..., n] with `diag`."""
        if diag:
            return torch.exp(-((x1 - x2) ** 2).sum(-1) / (2 * self.scale**2))
        square = (x1**2).sum(-1)[..., :, None] + (x2**2).sum(-1)[..., None, :] - 2 * x1 @ x2.transpose(-1, -2)
        return torch.exp(-square.clamp_min(0) / (2 * self.scale**2))


class WalkKernel(Kernel):  # type: ignore[misc]
    """k(a, b) = exp(-sum_g w_g [a_g != b_g]) W(a, b) / sqrt(W(a, a) W(b, b)).

    W(a, b) = sum_t v_t sum_{m=1}^{3} r^(m-1) c_{t,m}(a) . c_{t,m}(b): common label walks (Gaertner, Flach and
    Wrobel 2003). The graph is the path of the kept layers; a walk of m layers is labelled by their values of
    one dimension t, and c_{t,m} counts every such sequence of labels. g runs over the global decisions and the
    depth. W is an inner product of scaled counts, normalised; its product with the Hamming factor is positive
    semi-definite (Schur). Learned: w_g, v_t > 0 and the decay 0 < r < 1.

    Features hold the words themselves (numbers of label sequences, -1 for none): a column for each possible word
    would be the cube of a dimension's choices.
    """

    has_lengthscale = False

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout
        self._values = [*layout.values[: layout.globals], layout.space.layers + 1]
        own = layout.values[layout.globals + 1 : layout.globals + 1 + layout.own]
        self._letters = [*own] or [1]  # without own dimensions all layers carry one label
        self._widths = [max(layout.space.layers - m, 0) for _ in self._letters for m in range(_WALK)]
        _weights(self, "weight", len(self._values), 2.0)
        _weights(self, "share", len(self._letters), float(len(self._letters)))
        self.register_parameter("raw_decay", torch.nn.Parameter(torch.zeros(1, dtype=torch.float64)))
        self.register_constraint("raw_decay", Interval(0.01, 0.99))

    @property
    def weight(self) -> Tensor:
        """w: of the global decisions and, last, of the depth."""
        value: Tensor = self.raw_weight_constraint.transform(self.raw_weight)
        return value

    @property
    def share(self) -> Tensor:
        """v: of each of a layer's own dimensions."""
        value: Tensor = self.raw_share_constraint.transform(self.raw_share)
        return value

    @property
    def decay(self) -> Tensor:
        """r: what one more layer of a common walk counts, [1]."""
        value: Tensor = self.raw_decay_constraint.transform(self.raw_decay)
        return value

    def embed(self, codes: Tensor) -> Tensor:
        """One-hot global decisions and depth, then the words of every t and m, [n, F]."""
        layers = self.layout.layers(codes)
        depth = torch.nn.functional.one_hot(layers[..., 0].sum(1), self.layout.space.layers + 1).double()
        columns = [self.layout.one_hot(codes, range(self.layout.globals)), depth]
        labels = layers[..., 1:] if self.layout.own else torch.zeros_like(layers[..., :1])
        kept = layers[..., 0] == 1
        # every row's kept layers moved to the front, so that neighbours in the path are neighbours here
        order = torch.argsort((~kept).to(torch.int8), dim=1, stable=True)
        valid = kept.gather(1, order)
        for t, letters in enumerate(self._letters):
            label = labels[..., t].gather(1, order)
            word = torch.zeros_like(label)
            for m in range(1, _WALK + 1):
                width = max(label.shape[1] - m + 1, 0)
                word = word[:, :width] * letters + label[:, m - 1 : m - 1 + width]
                counted = valid[:, m - 1 : m - 1 + width]
                columns.append(torch.where(counted, word, -1).double())
        return torch.cat(columns, dim=1)

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **_: Any) -> Tensor:
        """[..., n, F] and [..., m, F] -> [..., n, m]; [..., n] with `diag`."""
        head = sum(self._values)
        hamming = _repeat(self.weight, self._values)
        a, b = x1[..., :head], x2[..., :head]
        common, own1, own2 = self._walks(x1[..., head:], x2[..., head:], diag)
        if diag:
            return torch.exp((a * b * hamming).sum(-1) - self.weight.sum()) * common / (own1.sqrt() * own2.sqrt())
        same = torch.exp((a * hamming) @ b.transpose(-1, -2) - self.weight.sum())
        return same * common / (own1.sqrt()[..., :, None] * own2.sqrt()[..., None, :])

    def _walks(self, x1: Tensor, x2: Tensor, diag: bool) -> tuple[Tensor, Tensor, Tensor]:
        """W(a, b), W(a, a) and W(b, b) of the words of two sets."""
        powers = self.decay ** torch.arange(_WALK, dtype=torch.float64)
        weights = (self.share[:, None] * powers).flatten()
        parts = zip(*(torch.split(x, self._widths, dim=-1) for x in (x1, x2)), strict=True)
        counted = [_common_words(a, b, diag) for a, b in parts]
        common, own1, own2 = (
            sum((w * part for w, part in zip(weights, column, strict=True)), torch.zeros((), dtype=torch.float64))
            for column in zip(*counted, strict=True)
        )
        return common, own1, own2


@torch.no_grad()
def _common_words(a: Tensor, b: Tensor, diag: bool) -> tuple[Tensor, Tensor, Tensor]:
    """c(a) . c(b), c(a) . c(a), c(b) . c(b), where c counts words: [..., n, W] and [..., m, W] with -1 for none.

    Only words that occur get a column.
    """
    words, places = torch.unique(torch.cat([a.flatten(), b.flatten()]), return_inverse=True)
    counts = [
        torch.zeros(*x.shape[:-1], len(words), dtype=x.dtype).scatter_add_(-1, at.view(x.shape), (x >= 0).to(x.dtype))
        for x, at in zip((a, b), torch.split(places, [a.numel(), b.numel()]), strict=True)
    ]
    x, y = counts
    return (x * y).sum(-1) if diag else x @ y.transpose(-1, -2), (x * x).sum(-1), (y * y).sum(-1)


def make_kernel(name: str, layout: Layout, anchors: Sequence[Architecture]) -> Kernel:
    """`hamming`, `edit_distance` or `walk`; only the second uses the anchors."""
    if name == "edit_distance":
        return EditDistanceKernel(layout, layout.codes(anchors))
    return {"hamming": HammingKernel, "walk": WalkKernel}[name](layout)
