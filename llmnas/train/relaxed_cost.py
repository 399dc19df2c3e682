"""The expected parameter count of a mixture, differentiable in its weights, and what it costs to miss the budget."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import torch
from torch import Tensor

from llmnas.cost import Budget
from llmnas.cost.params import embedding_params, layer_params
from llmnas.space import DIMENSIONS, LayerSpec, SearchSpace
from llmnas.supernet.mixture import kept


class ExpectedParams:
    """E[parameters] where every decision is drawn by itself with its weights: exact, from a table of every layer.

    E[embedding + final norm] + sum_i keep_i E[layer_i]; a decision that all layers share is independent of the others
    within each term, which is all that a sum needs.
    """

    def __init__(self, space: SearchSpace) -> None:
        self.space = space
        base, sizes = space.base, [space.dimension(name).choices for name in DIMENSIONS]
        rows = [
            [layer_params(base, hidden, LayerSpec(*values)) for values in itertools.product(*sizes)]
            for hidden in space.hidden_size
        ]
        # [hidden sizes, choices of the first dimension, of the second, ...]
        self.layer = torch.tensor(rows, dtype=torch.float64).view(len(space.hidden_size), *map(len, sizes))
        outside = [embedding_params(base, hidden) + hidden for hidden in space.hidden_size]
        self.outside = torch.tensor(outside, dtype=torch.float64)

    def __call__(self, weights: Mapping[str, Tensor]) -> Tensor:
        """Scalar float64; `weights` are those of `mixture.weights_of`."""
        space, hidden = self.space, weights["hidden_size"][0].double()
        keep = kept(space, weights).double()
        total = self.outside.to(hidden.device) @ hidden
        by_size = torch.tensordot(hidden, self.layer.to(hidden.device), dims=1)
        for i in range(space.layers):
            layer = by_size
            for name in DIMENSIONS:
                row = weights[name][i if name in space.layer_dimensions else 0]
                layer = torch.tensordot(row.double(), layer, dims=1)
            total = total + keep[i] * layer
        return total


def budget_penalty(expected: Tensor, budget: Budget) -> Tensor:
    """How far the expected count is outside of the budget, in units of its logarithm; 0 inside.

    ln(E / max) above the greatest, ln(min / E) below the least: a relative excess, whatever the scale.
    """
    missed = torch.zeros_like(expected)
    if budget.max_params is not None:
        missed = missed + (expected / budget.max_params).log().relu()
    if budget.min_params is not None:
        missed = missed + (budget.min_params / expected).log().relu()
    return missed
