"""The best architecture as a mixed-integer program (Puzzle, Bercovich et al. 2024), solved by scipy's HiGHS.

Quality is taken to be additive over blocks: the parent's, plus what replacing each block alone changes ("replace-one"
scores). Costs are additive, or a maximum over blocks (activations). Both make a linear program with one binary
variable for every (layer, option). Whether quality is additive is an assumption that `block_scores.additivity` tests.

Shapes: L layers of the supernet; O options of a layer, the first of them the skip.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from llmnas.cost import Budget, Workload, costs, memory
from llmnas.errors import RunError, UserError
from llmnas.space import Architecture, LayerSpec, SearchSpace, even_subset

Evaluate = Callable[[Sequence[Architecture]], Sequence[Mapping[str, float]]]
Score = Callable[[int, LayerSpec | None], float]
"""(layer, what stands there) -> what that alone adds to the parent's quality; less is better."""

NODES = 200
"""Where a good answer serves as well as the best, a program ends after so many nodes: the proof that nothing is better
by a thousandth can take hours with many equal layers, and a time limit would give other answers on other machines."""


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
    jobs = {(i, spec): replaced(parent, i, spec) for i in range(space.layers) for spec in options}
    different = list(dict.fromkeys([parent, *jobs.values()]))
    found = dict(zip(different, evaluate(different), strict=True))
    values = {arch: float(result.get(metric, np.nan)) for arch, result in found.items()}
    wrong = [arch.id for arch, value in values.items() if not np.isfinite(value)]
    if wrong:
        raise RunError(f"mip: {metric} of {wrong[0]} (and {len(wrong) - 1} more) is missing or not finite")
    alone = {} if space.layers > 1 else {(0, None): np.inf}
    return {job: values[arch] - values[parent] for job, arch in jobs.items()} | alone


def replaced(parent: Architecture, layer: int, spec: LayerSpec | None) -> Architecture:
    """The parent with another block, or none, in one layer."""
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

    def holds(self, cell: Cell, arch: Architecture) -> bool:
        """Whether an architecture of the cell meets it."""
        return self.low <= self.costs(cell).total([cell.options.index(spec) for spec in arch.layers]) <= self.high


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
        scores = np.array([[score(i, spec) for spec in cell.options] for i in range(space.layers)], dtype=float)
        program = Program(space, cell, scores, limits)
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
class Program:
    """The best blocks of one cell: binaries x[l, o] (option o stands at layer l) and y[d] (depth d), and one peak for
    every limited cost that has a maximum in it.

    Attributes:
        scores: [L, O], less is better; an option whose score is not finite is never chosen.
        pinned: layer -> index of the option that stands there.
    """

    space: SearchSpace
    cell: Cell
    scores: np.ndarray
    limits: Sequence[Limit]
    pinned: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        layers, options = self.space.layers, len(self.cell.options)
        self._x = layers * options
        costs = [(limit, limit.costs(self.cell)) for limit in self.limits]
        costs.sort(key=lambda cost: not cost[1].peaks.any())  # those with a peak, a continuous variable, come first
        peaks = sum(bool(table.peaks.any()) for _, table in costs)
        self._width = self._x + len(self.space.depth.choices) + peaks
        self._scores = np.where(np.isfinite(self.scores), self.scores, 0.0)
        self._free = np.isfinite(self.scores)
        for layer, option in self.pinned.items():
            self._free[layer] &= np.arange(options) == option
        self._rows: list[tuple[np.ndarray, float, float]] = []
        self._structure()
        for k, (limit, table) in enumerate(costs):
            self._cost(k, limit, table)

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

    def _cost(self, k: int, limit: Limit, table: BlockCosts) -> None:
        unit = max(abs(end) for end in (limit.low, limit.high) if np.isfinite(end)) or 1.0
        total = self._row((limit.low - table.fixed) / unit, (limit.high - table.fixed) / unit)
        self._at(total)[:] = table.blocks / unit
        if not table.peaks.any():
            return
        if np.isfinite(limit.low):
            raise UserError(f"mip: {limit.name} has a maximum over blocks in it; give it an upper limit only")
        peak = self._x + len(self.space.depth.choices) + k
        total[peak] = 1
        for i in range(self.space.layers):
            above = self._row(-np.inf, 0)
            self._at(above)[i] = table.peaks[i] / unit
            above[peak] = -1

    def cut(self, chosen: Sequence[int] | np.ndarray) -> None:
        """Never return the network with these options, [L]."""
        row = self._row(-np.inf, self.space.layers - 1)
        self._at(row)[np.arange(self.space.layers), chosen] = 1

    def next(self, time_limit: float = 60.0, nodes: int | None = None) -> Solution | None:
        """The best one that was not returned yet; None where there is no other.

        Args:
            nodes: of the search tree, after which the best one found is taken, or None where there is none.

        Raises:
            RunError: HiGHS did not finish in time.
        """
        rows, low, high = zip(*self._rows, strict=True)
        upper = np.ones(self._width)
        upper[: self._x] = self._free.ravel()
        binaries = self._x + len(self.space.depth.choices)
        upper[binaries:] = np.inf
        objective = np.zeros(self._width)
        objective[: self._x] = self._scores.ravel()
        options = {"time_limit": time_limit} | ({} if nodes is None else {"node_limit": nodes})
        result = milp(
            objective, integrality=np.arange(self._width) < binaries, bounds=Bounds(0, upper),
            constraints=LinearConstraint(np.array(rows), low, high), options=options,
        )  # fmt: skip
        stopped = nodes is not None and result.status == 4 and "limit reached" in result.message
        if result.status == 2 or (stopped and result.x is None):  # infeasible, or nothing found
            return None
        if result.status != 0 and not stopped:
            raise RunError(f"mip: HiGHS stopped without an optimum ({result.message}); raise time_limit")
        chosen = result.x[: self._x].reshape(self.space.layers, -1).argmax(1)
        self.cut(chosen)
        layers = tuple(self.cell.options[option] for option in chosen)
        score = float(self._scores[np.arange(self.space.layers), chosen].sum())
        return Solution(Architecture(self.cell.hidden_size, layers), score)
