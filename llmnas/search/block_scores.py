"""Block scores over a whole space: one replace-one table for each cell, so that networks of all widths compare; and
whether they add up.

A cell (`mip.Cell`) has its own parent, the largest network with its hidden and shared sizes. What a network is
predicted to measure is its parent's value plus the scores of its blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import stats

from llmnas.cost import count_params
from llmnas.cost.memory import DEFAULT_WORKLOAD
from llmnas.errors import UserError
from llmnas.search.mip import (
    NODES,
    Cell,
    Evaluate,
    Limit,
    Program,
    Score,
    Solution,
    cells,
    closed_form,
    replace_one,
    replaced,
    solve,
)
from llmnas.space import Architecture, LayerSpec, SearchSpace

Job = tuple[int, LayerSpec | None]

_TAU, _SHARE = 0.8, 0.5


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


def largest_within(space: SearchSpace, cell: Cell, limits: Sequence[Limit]) -> Architecture | None:
    """The member of a cell with the most parameters within the limits, as far as `NODES` go; None where there is none.

    Where neither limits nor the depth policy say otherwise, it has as many as `parent_of`.
    """
    sizes = closed_form(space, cell, "params", DEFAULT_WORKLOAD).blocks
    found = Program(space, cell, -sizes / sizes.max(), limits).next(nodes=NODES)
    return found and found.arch


def replacement(
    space: SearchSpace, cell: Cell, parent: Architecture, job: Job, limits: Sequence[Limit]
) -> Architecture | None:
    """The member within the limits that has the job's block and differs from the parent in the fewest other layers.

    Where replacing the block alone gives such a member, that is it. Where the depth policy or a limit forbids that (a
    skip alone with depths 6 and 8), other layers change too, as few as can be; of equal ones the largest; as far as
    `NODES` go. None where no member of the cell has the block in that layer.
    """
    layer, spec = job
    if spec is not None or parent.depth > 1:  # a network without its only layer is none
        alone = replaced(parent, layer, spec)
        if space.contains(alone) and all(limit.holds(cell, alone) for limit in limits):
            return alone
    sizes = closed_form(space, cell, "params", DEFAULT_WORKLOAD).blocks
    scores = -sizes / (sizes.sum(0).max() * 2 * space.layers)  # all layers together weigh less than one change
    scores += [[float(option != parent.layers[i]) for option in cell.options] for i in range(space.layers)]
    found = Program(space, cell, scores, limits, {layer: cell.options.index(spec)}).next(nodes=NODES)
    return found and found.arch


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


class Additivity(NamedTuple):
    """How well block scores add up to what whole networks measure.

    Attributes:
        networks: how many were compared.
        tau: Kendall's tau-b of predicted and measured values.
        bias: mean of predicted minus measured, in the metric's unit.
        rmse: root mean square of the same.
        spread: standard deviation of the measured values.
        holds: tau >= 0.8, and the error that is left after the bias is at most half the spread.
    """

    networks: int
    tau: float
    bias: float
    rmse: float
    spread: float
    holds: bool

    def message(self) -> str:
        """One line for a report."""
        facts = (
            f"over {self.networks} networks tau {self.tau:.2f}, bias {self.bias:+.4f}, "
            f"rmse {self.rmse:.4f} against a spread of {self.spread:.4f}"
        )
        if self.holds:
            return f"block scores are additive enough: {facts}"
        return f"block scores do NOT add up ({facts}): what the program calls best need not be; search by evaluation"


def additivity(score: Score, parent_value: float, archs: Sequence[Architecture], values: Sequence[float]) -> Additivity:
    """Compare the parent's value plus block scores with measured values of whole networks; see `judged`."""
    return judged([parent_value + sum(score(i, spec) for i, spec in enumerate(arch.layers)) for arch in archs], values)


def judged(predicted: Sequence[float], measured: Sequence[float]) -> Additivity:
    """Compare what block scores predict of whole networks with what these measure.

    Raises:
        UserError: fewer than three networks.
    """
    if len(predicted) < 3 or len(predicted) != len(measured):
        raise UserError(f"mip: additivity needs at least three networks with a value each, got {len(predicted)}")
    actual = np.asarray(measured, dtype=float)
    error = np.asarray(predicted, dtype=float) - actual
    tau = float(stats.kendalltau(predicted, actual).statistic)
    spread, bias = float(actual.std()), float(error.mean())
    holds = tau >= _TAU and float(error.std()) <= _SHARE * spread
    return Additivity(len(actual), tau, bias, float(np.sqrt(np.mean(error**2))), spread, holds)
