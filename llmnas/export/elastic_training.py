"""Tuning an elastic checkpoint: which sub-network a step trains, and whether its table still tells the truth.

Travels inside exported checkpoints.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from llmnas.export.subnetworks import Subnetwork
from llmnas.space.architecture import Architecture
from llmnas.supernet.model import Transformer

STALE = "the weights changed since the losses of the sub-networks were measured; measure_losses(tokens) does it again"
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Draws:
    """The sub-network of every training step: each row of the table equally often, by (seed, step) alone.

    Processes that train together draw the same one, since they count the same steps.

    Args:
        table: what to draw from.
        seed: of the draws.
    """

    def __init__(self, table: Sequence[Subnetwork], seed: int) -> None:
        self.archs = [one.arch for one in table]
        self.seed = seed
        self.steps = 0

    def next(self) -> Architecture:
        """That of the next step."""
        turn, place = divmod(self.steps, len(self.archs))
        order = list(range(len(self.archs)))
        random.Random(f"{self.seed} {turn}").shuffle(order)
        self.steps += 1
        return self.archs[order[place]]


def checksum(tensors: Iterable[Tensor]) -> int:
    """Of all bits of all values, exact and in any order; a weight that changes changes it."""
    total = 0
    for tensor in tensors:
        if not tensor.is_meta:
            total += int(tensor.detach().view(_BITS[tensor.element_size()]).sum(dtype=torch.int64))
    return total


@torch.no_grad()
def validation_loss(model: Transformer, arch: Architecture, tokens: Tensor) -> float:
    """Nats a token of the texts [B, T], one after the other, each without its first token."""
    losses = [
        F.cross_entropy(model.hidden_states(row[None, :-1], arch)[0] @ model.head_weight(arch).T, row[1:])
        for row in tokens
    ]
    return float(torch.stack(losses).mean())


def measured(model: Transformer, table: Sequence[Subnetwork], tokens: Tensor) -> tuple[Subnetwork, ...]:
    """A table with the losses that the weights have now, on texts [B, T]; in its own order, best loss first."""
    found = [
        Subnetwork(one.arch, {**one.metrics, "val_loss": validation_loss(model, one.arch, tokens)}) for one in table
    ]
    return tuple(sorted(found, key=lambda one: (one.metrics["val_loss"], one.metrics["params"])))
