"""Do sub-networks pull their shared weights the same way?

Two networks of a supernet are two tasks with shared weights. Their gradients conflict when they point away from each
other, cos(g_1, g_2) < 0: a step for one is then a step against the other, to first order (Yu et al. 2020, "Gradient
surgery for multi-task learning", definition 1). Both gradients are taken on the same text, over the weights that both
networks use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from llmnas.space import Architecture
from llmnas.supernet import Transformer, document_numbers, grids, split_windows, used_blocks


class Conflict(NamedTuple):
    """How two gradients stand to each other over the weights that both networks use.

    Attributes:
        cosine: of the angle between them; the networks conflict where it is negative. 0 where one of them is zero.
        opposed: share of the weights that both move which they move in opposite directions.
        shared: weights that both networks use.
    """

    cosine: float
    opposed: float
    shared: int


def network_gradient(
    model: Transformer, arch: Architecture, windows: np.ndarray, batch: int = 16, eos_id: int | None = None
) -> dict[str, Tensor]:
    """The gradient of a sub-network's mean next-token cross entropy, by parameter of the supernet.

    Of every parameter that the network uses there is the leading block that it uses, in the shape in which it is
    sliced (`grids`); gradients of the model itself
    (`.grad`) are left alone.

    Args:
        model: a supernet; its mode stays as it is.
        windows: [count, seq + 1] int64.
        batch: windows at once.
        eos_id: the token that ends a document, for a model trained with attention within documents.
    """
    blocks = used_blocks(model, arch)
    parameters = dict(model.named_parameters())
    used, shapes = [parameters[name] for name in blocks], grids(model)
    total = {name: parameters[name].new_zeros(size) for name, size in blocks.items()}
    for first in range(0, len(windows), batch):
        tokens, targets = split_windows(
            torch.from_numpy(windows[first : first + batch]).to(model.embedding.weight.device)
        )
        documents = document_numbers(tokens, eos_id)
        found = model(tokens, arch, targets=targets, documents=documents)
        loss = found.loss * len(tokens) / len(windows)
        # an expert that no token chose, and with it a router that had no choice, has none
        gradients = torch.autograd.grad(loss, used, allow_unused=True)
        for name, gradient in zip(blocks, gradients, strict=True):
            if gradient is not None:
                total[name] += _block(gradient.view(shapes.get(name, gradient.shape)), blocks[name])
    return total


def conflict(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Conflict:
    """Compare two gradients of `network_gradient`.

    Args:
        first, second: of networks of one supernet; leave out parameters to look at a part of it alone.

    Raises:
        ValueError: they share no weight.
    """
    names = [name for name in first if name in second]
    product, squares, moved, opposed, shared = 0.0, [0.0, 0.0], 0, 0, 0
    for name in names:
        size = torch.Size(map(min, first[name].shape, second[name].shape))
        a, b = _block(first[name], size).double(), _block(second[name], size).double()
        both = a * b
        product += float(both.sum())
        squares[0] += float(a.square().sum())
        squares[1] += float(b.square().sum())
        moved += int((a.sign() * b.sign()).count_nonzero())
        opposed += int((a.sign() * b.sign() < 0).count_nonzero())
        shared += both.numel()
    if not shared:
        raise ValueError("the gradients share no weight: not two networks of one supernet, or no common part of it")
    length = (squares[0] * squares[1]) ** 0.5
    return Conflict(product / length if length else 0.0, opposed / moved if moved else 0.0, shared)


def neighbour_conflicts(
    model: Transformer,
    archs: Sequence[Architecture],
    windows: np.ndarray,
    batch: int = 16,
    eos_id: int | None = None,
) -> list[Conflict]:
    """Every network against the next, the last against the first; two gradients are in memory at a time, three at most.

    Args:
        archs: in any order that has nothing to do with their likeness; one alone has no neighbour.
        windows: [count, seq + 1] int64.
        eos_id: as in `network_gradient`.
    """
    if len(archs) < 2:
        return []
    first = before = network_gradient(model, archs[0], windows, batch, eos_id)
    found = []
    for arch in archs[1:]:
        after = network_gradient(model, arch, windows, batch, eos_id)
        found.append(conflict(before, after))
        before = after
    return [*found, conflict(before, first)] if len(archs) > 2 else found


def _block(tensor: Tensor, size: torch.Size) -> Tensor:
    return tensor[tuple(slice(length) for length in size)]
