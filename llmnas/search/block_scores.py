"""Block scores over a whole space: one replace-one table for each cell, so that networks of all widths compare.

A cell (`mip.Cell`) has its own parent, the largest network with its hidden and shared sizes. What a network is
predicted to measure is its parent's value plus the scores of its blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from llmnas.cost import count_params
from llmnas.search.mip import Cell, Evaluate, Limit, Solution, cells, replace_one, solve
from llmnas.space import Architecture, LayerSpec, SearchSpace

Job = tuple[int, LayerSpec | None]


def chosen_cells(space: SearchSpace, most: int) -> list[Cell]:
    """All cells of the space, or `most` of them, evenly spaced from the least to the greatest width."""
    found = cells(space)
    if len(found) <= most:
        return found
    return [found[i] for i in np.linspace(0, len(found) - 1, most).round().astype(int)]


def parent_of(space: SearchSpace, cell: Cell) -> Architecture:
    """The largest network of a cell: in every layer the block with the most parameters."""

    def size(spec: LayerSpec | None) -> int:
        return 0 if spec is None else count_params(Architecture(cell.hidden_size, (spec,)), space.base).total

    return Architecture(cell.hidden_size, (max(cell.options, key=size),) * space.layers)


@dataclass(frozen=True)
class BlockScores:
    """What `measure` found.

    Attributes:
        tables: of every cell the parent's value, and (layer, block) -> what that block changes.
    """

    space: SearchSpace
    tables: dict[Cell, tuple[float, dict[Job, float]]]

    @classmethod
    def measure(cls, space: SearchSpace, chosen: Sequence[Cell], evaluate: Evaluate, metric: str) -> BlockScores:
        """Replace one block at a time in the parent of every cell; `evaluate` is asked cell by cell.

        Raises:
            UserError: the space has no network that keeps all layers.
            RunError: an evaluation without the metric, or one that is not finite.
        """
        tables = {}
        for cell in chosen:
            parent = parent_of(space, cell)
            scores = replace_one(space, parent, evaluate, metric)
            value = float(evaluate([parent])[0][metric])
            tables[cell] = (value, scores)
        return cls(space, tables)

    def predict(self, arch: Architecture) -> float:
        """The parent's value and the scores of the blocks; NaN for an architecture of a cell without scores."""
        for cell, (value, scores) in self.tables.items():
            if arch.hidden_size == cell.hidden_size and set(arch.layers) <= set(cell.options):
                return value + sum(scores[job] for job in enumerate(arch.layers))
        return float("nan")

    def best(self, limits: Sequence[Limit], count: int) -> list[Solution]:
        """The `count` architectures of the least predicted value within the limits, with that value, best first.

        Empty where no architecture of a scored cell meets the limits.

        Raises:
            RunError: HiGHS did not finish a program in time.
        """
        found: list[Solution] = []
        for cell, (value, scores) in self.tables.items():
            table = _lookup(scores)
            solutions = solve(self.space, table, limits, lambda other, cell=cell: other == cell, count, strict=False)  # type: ignore[misc]
            found += [Solution(solution.arch, value + solution.score) for solution in solutions]
        return sorted(found, key=lambda solution: solution.score)[:count]


def _lookup(scores: dict[Job, float]) -> Callable[[int, LayerSpec | None], float]:
    return lambda layer, spec: scores[layer, spec]
