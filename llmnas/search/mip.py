"""The best architecture as a mixed-integer program (Puzzle, Bercovich et al. 2024), solved by scipy's HiGHS.

Quality is taken to be additive over blocks: the parent's, plus what replacing each block alone changes ("replace-one"
scores). Costs are additive, or a maximum over blocks (activations). Both make a linear program with one binary
variable for every (layer, option). Whether quality is additive is an assumption that `additivity` tests.

Shapes: L layers of the supernet; O options of a layer, the first of them the skip.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from scipy import stats
from scipy.optimize import Bounds, LinearConstraint, milp

from llmnas.cost import Budget, Workload, costs, memory
from llmnas.errors import RunError, UserError
from llmnas.space import Architecture, LayerSpec, SearchSpace, even_subset

Evaluate = Callable[[Sequence[Architecture]], Sequence[Mapping[str, float]]]
Score = Callable[[int, LayerSpec | None], float]
"""(layer, what stands there) -> what that alone adds to the parent's quality; less is better."""

_TAU, _SHARE = 0.8, 0.5


@dataclass(frozen=True)
class Cell:
    """What all blocks of an architecture have in common: one program is solved for each cell.

    `options`: every block of the cell; None, the first, is the skip.
    """

    hidden_size: int
    options: tuple[LayerSpec | None, ...]


def cells(space: SearchSpace) -> list[Cell]:
    """Every (hidden size, shared sizes) of the space with its blocks."""
    own = list(space.settings(space.layer_dimensions))
    return [
        Cell(hidden_size, (None, *dict.fromkeys(LayerSpec(**shared, **sizes) for sizes in own)))
        for hidden_size in space.hidden_size
        for shared in space.settings(space.shared_dimensions)
    ]


@dataclass(frozen=True)
class BlockCosts:
    """A cost of a cell as fixed + sum over layers of `blocks` + max over layers of `peaks`.

    Attributes:
        blocks: [L, O].
        peaks: [L, O]; zeros where the cost has no maximum.
    """

    fixed: float
    blocks: np.ndarray
    peaks: np.ndarray

    def total(self, choice: Sequence[int]) -> float:
        """The cost of one option index a layer, `[L]`."""
        rows = range(len(choice))
        return float(self.fixed + self.blocks[rows, choice].sum() + self.peaks[rows, choice].max())


def closed_form(space: SearchSpace, cell: Cell, name: str, workload: Workload) -> BlockCosts:
    """A cost of `llmnas.cost.costs` over the blocks of a cell, exactly; see `BlockCosts`."""

    def price(specs: tuple[LayerSpec, ...]) -> tuple[float, float]:
        arch = Architecture(cell.hidden_size, specs)
        peak = memory(arch, space.base, workload).activations if name == "memory_bytes" else 0
        return costs(arch, space.base, workload)[name] - peak, float(peak)

    row, peaks, fixed = [0.0], [0.0], 0.0
    for spec in cell.options[1:]:
        assert spec is not None
        one, peak = price((spec,))
        two, _ = price((spec, spec))
        row.append(two - one)
        peaks.append(peak)
        fixed = 2 * one - two
    return BlockCosts(fixed, np.tile(row, (space.layers, 1)), np.tile(peaks, (space.layers, 1)))


def measured_costs(space: SearchSpace, cell: Cell, fixed: float, block: Score) -> BlockCosts:
    """An additive cost from a table of measured blocks (latency): `fixed` for the rest of the network."""
    table = [[0.0 if spec is None else block(i, spec) for spec in cell.options] for i in range(space.layers)]
    return BlockCosts(fixed, np.array(table, dtype=float), np.zeros((space.layers, len(cell.options))))


def replace_one(space: SearchSpace, parent: Architecture, evaluate: Evaluate, metric: str) -> dict[Any, float]:
    """Scores (layer, block or None) -> metric with that block in the parent's place, minus the parent's.

    Needs L x (O - 1) + 1 evaluations at most; the blocks are those of the parent's hidden and shared sizes. The depth
    policy does not bind here: a skip is scored although the policy may not admit one alone.

    Raises:
        UserError: the parent skips a layer (nothing can be replaced there) or is not of the space.
        RunError: an evaluation without the metric, or one that is not finite.
    """
    space.require(parent)
    if parent.depth < space.layers:
        raise UserError(f"mip: the parent {parent.id} skips a layer; replace-one needs a parent that keeps all of them")
    cell = next(
        cell for cell in cells(space) if cell.hidden_size == parent.hidden_size and {*parent.layers} <= {*cell.options}
    )
    options = cell.options if space.layers > 1 else cell.options[1:]  # the only layer cannot be skipped
    jobs = {(i, spec): _with(parent, i, spec) for i in range(space.layers) for spec in options}
    different = list(dict.fromkeys([parent, *jobs.values()]))
    found = dict(zip(different, evaluate(different), strict=True))
    values = {arch: float(result.get(metric, np.nan)) for arch, result in found.items()}
    wrong = [arch.id for arch, value in values.items() if not np.isfinite(value)]
    if wrong:
        raise RunError(f"mip: {metric} of {wrong[0]} (and {len(wrong) - 1} more) is missing or not finite")
    alone = {} if space.layers > 1 else {(0, None): np.inf}
    return {job: values[arch] - values[parent] for job, arch in jobs.items()} | alone


def _with(parent: Architecture, layer: int, spec: LayerSpec | None) -> Architecture:
    layers = list(parent.layers)
    layers[layer] = spec
    return Architecture(parent.hidden_size, tuple(layers))


@dataclass(frozen=True)
class Limit:
    """low <= cost <= high, the cost given for every cell."""

    name: str
    costs: Callable[[Cell], BlockCosts]
    low: float = -np.inf
    high: float = np.inf


def budget_limits(space: SearchSpace, budget: Budget) -> list[Limit]:
    """A budget's limits, in closed form."""

    def table(name: str) -> Callable[[Cell], BlockCosts]:
        return lambda cell: closed_form(space, cell, name, budget.workload)

    return [Limit(name, table(name), low, high) for name, (low, high) in budget.limits().items()]


class Solution(NamedTuple):
    """An optimum of the program: the architecture, and the sum of its block scores."""

    arch: Architecture
    score: float


def solve(
    space: SearchSpace,
    score: Score,
    limits: Sequence[Limit],
    only: Callable[[Cell], bool] = lambda _: True,
    count: int = 1,
    time_limit: float = 60.0,
    *,
    strict: bool = True,
) -> list[Solution]:
    """The `count` best architectures of the space by the sum of block scores within the limits, best first.

    Args:
        score: see `Score`; a table of `replace_one` is `lambda layer, spec: table[layer, spec]`. Scores of one cell
            compare with those of another only where `score` was made so: choose the cell by `only` otherwise.
        only: which cells (hidden size, shared sizes) take part.
        time_limit: seconds for one program.
        strict: an error where no architecture meets the limits; otherwise an empty list.

    Raises:
        UserError: no architecture meets the limits.
        RunError: HiGHS did not finish a program in time.
    """
    found: list[Solution] = []
    for cell in filter(only, cells(space)):
        program = _Program(space, cell, score, limits)
        for _ in range(count):
            solution = program.next(time_limit)
            if solution is None:
                break
            found.append(solution)
    if not found and strict:
        names = ", ".join(f"{limit.low:,.6g} <= {limit.name} <= {limit.high:,.6g}" for limit in limits)
        raise UserError(f"mip: no architecture of the chosen cells meets {names or 'the depth policy'}")
    return sorted(found, key=lambda solution: solution.score)[:count]


@dataclass
class _Program:
    """Binaries x[l, o] (option o stands at layer l) and y[d] (depth d), and one peak for every limited cost."""

    space: SearchSpace
    cell: Cell
    score: Score
    limits: Sequence[Limit]
    _cuts: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        layers, options = self.space.layers, len(self.cell.options)
        self._x = layers * options
        self._width = self._x + len(self.space.depth.choices) + len(self.limits)
        scores = np.array([[self.score(i, spec) for spec in self.cell.options] for i in range(layers)])
        self._scores = np.where(np.isfinite(scores), scores, 0.0)
        self._blocked = ~np.isfinite(scores)
        self._rows: list[tuple[np.ndarray, float, float]] = []
        self._structure()
        for k, limit in enumerate(self.limits):
            self._cost(k, limit)

    def _row(self, low: float, high: float) -> np.ndarray:
        row = np.zeros(self._width)
        self._rows.append((row, low, high))
        return row

    def _at(self, row: np.ndarray) -> np.ndarray:
        """The part of a row that belongs to x, as [L, O]."""
        return row[: self._x].reshape(self.space.layers, -1)

    def _structure(self) -> None:
        space = self.space
        depths = space.depth.choices
        ys = slice(self._x, self._x + len(depths))
        for i in range(space.layers):
            self._at(self._row(1, 1))[i] = 1
        self._row(1, 1)[ys] = 1
        total = self._row(space.layers, space.layers)  # skips + depth = layers
        self._at(total)[:, 0] = 1
        total[ys] = depths
        if space.depth.policy == "even":
            for i in range(space.layers):
                kept = self._row(1, 1)
                self._at(kept)[i, 0] = 1
                kept[ys] = [float(i in even_subset(space.layers, depth)) for depth in depths]
        if space.depth.policy == "keep_ends":
            for i in {0, space.layers - 1}:
                self._at(self._row(0, 0))[i, 0] = 1

    def _cost(self, k: int, limit: Limit) -> None:
        table = limit.costs(self.cell)
        unit = max(abs(end) for end in (limit.low, limit.high) if np.isfinite(end))
        peak = self._x + len(self.space.depth.choices) + k
        total = self._row((limit.low - table.fixed) / unit, (limit.high - table.fixed) / unit)
        self._at(total)[:] = table.blocks / unit
        total[peak] = 1
        if np.isfinite(limit.low) and table.peaks.any():
            raise UserError(f"mip: {limit.name} has a maximum over blocks in it; give it an upper limit only")
        for i in range(self.space.layers):
            above = self._row(-np.inf, 0)
            self._at(above)[i] = table.peaks[i] / unit
            above[peak] = -1
        if not table.peaks.any():
            self._row(0, 0)[peak] = 1

    def next(self, time_limit: float) -> Solution | None:
        """The best one that was not returned yet; None where there is no other."""
        rows, low, high = zip(*self._rows, strict=True)
        upper = np.ones(self._width)
        upper[: self._x][self._blocked.ravel()] = 0
        binaries = self._x + len(self.space.depth.choices)
        upper[binaries:] = np.inf
        objective = np.zeros(self._width)
        objective[: self._x] = self._scores.ravel()
        result = milp(
            objective, integrality=np.arange(self._width) < binaries, bounds=Bounds(0, upper),
            constraints=LinearConstraint(np.array(rows), low, high), options={"time_limit": time_limit},
        )  # fmt: skip
        if result.status == 2:  # infeasible
            return None
        if result.status != 0:
            raise RunError(f"mip: HiGHS stopped without an optimum ({result.message}); raise time_limit")
        chosen = result.x[: self._x].reshape(self.space.layers, -1).argmax(1)
        cut = self._row(-np.inf, self.space.layers - 1)
        self._at(cut)[np.arange(self.space.layers), chosen] = 1
        layers = tuple(self.cell.options[option] for option in chosen)
        score = float(self._scores[np.arange(self.space.layers), chosen].sum())
        return Solution(Architecture(self.cell.hidden_size, layers), score)


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
