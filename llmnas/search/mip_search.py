"""The integer program as a strategy: replace blocks, learn what each is worth, solve for targets along the front.

After Puzzle (Bercovich et al. 2024), which scores every block by replacing it alone and then solves one program for
each target. In a loop of asks, within a budget and with answers on the way, three things are otherwise: scores are
estimated from all that was told (`block_model`), replacements are members of the space within the budget
(`block_scores.replacement`), and programs are solved between replacements instead of after all of them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial

import numpy as np
from pydantic import Field

from llmnas.errors import UserError
from llmnas.pareto import Evaluation, check_constraints, front
from llmnas.search.block_model import BlockLayout, BlockModel
from llmnas.search.block_scores import chosen_cells, largest_within, replacement
from llmnas.search.cell_programs import CellPrograms
from llmnas.search.closed_forms import ClosedForms, quality_of
from llmnas.search.magnitude import unit_of
from llmnas.search.mip import BlockCosts, Cell, Limit, closed_form
from llmnas.search.strategy import Candidates, Options, Problem
from llmnas.space import Architecture

Ends = tuple[float, float]

_TARGETS = 6
"""So many targets are tried for one that has a new answer; then the next best answers to the last one count."""
_SOLVED = 64
"""Most networks of one ask that are solved for: every one adds a row to later programs. The others are mutations."""
_OPEN = 8
"""One target in so many is no limit at all: the front may grow beyond its dear end."""


class MipOptions(Options):
    """Options of `mip`.

    Attributes:
        cells: most cells (a width and shared sizes) in which blocks are replaced, evenly spaced; programs are solved
            for all of them.
        scoring: share of the proposals that replace blocks, until all are replaced; the others are solutions.
        points: most evaluations that scores are learned from.
    """

    cells: int = Field(8, ge=1)
    scoring: float = Field(0.25, gt=0, le=1)
    points: int = Field(1000, ge=16, le=4000)


class MipSearch:
    """Parents, then replacements of their blocks and solutions of the program in turn.

    First come the smallest, largest and middle network, then every parent: the largest network of its cell within the
    budget. The quality is `val_loss` where it is an objective, else the first one that is no cost in closed form; it is
    what programs minimise. The other objectives are costs with limits, drawn along the front. Constraints are limits
    of every program. A cost in closed form enters programs exactly, every other metric as a sum of learned block
    scores. A failed evaluation stands with the worst value told.

    Raises:
        UserError: memory is limited from below, which no program says.
    """

    def __init__(self, problem: Problem, options: MipOptions) -> None:
        self._problem = problem
        self._options = options
        self._candidates = Candidates(problem)
        self._known = ClosedForms(problem)
        self._layout = BlockLayout(problem.space)
        goals = problem.objectives
        self._quality = quality_of(goals, self._known.names)
        self._costs = [name for name in goals if name != self._quality]
        self._counts: dict[tuple[str, Cell], BlockCosts] = {}
        self._constraints = check_constraints(problem.constraints)
        budget = problem.budget.limits() if problem.budget else {}
        self._always = [Limit(name, partial(self._count, name), low, high) for name, (low, high) in budget.items()]
        self._require_limits()
        self._models = {name: BlockModel(self._layout) for name in dict.fromkeys((*goals, *problem.constraints))}
        self._units = dict.fromkeys(self._models, 1.0)
        self._told: list[Evaluation] = []
        self._programs = CellPrograms(problem.space, self._layout, self._is_new)
        self._turn = 0

    def ask(self, n: int) -> list[Architecture]:
        """The first networks, then replacements and solutions; random ones where programs find nothing new."""
        asked = list(itertools.islice(self._first, n)) or self._learned_asks(n)
        self._programs.know(asked)
        return asked

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Remember."""
        self._told += evaluations
        self._known.check(evaluations)

    def _learned_asks(self, n: int) -> list[Architecture]:
        alive = [e for e in self._told if e.failure is None]
        if len(alive) < 2:
            return self._candidates.new(n, self._candidates.sample)
        self._learn(alive)
        best = front(alive, self._problem.objectives, self._problem.constraints) or alive
        chosen: list[Architecture] = []
        while len(chosen) < min(n, _SOLVED):
            self._turn += 1
            scoring = int(self._turn * self._options.scoring) > int((self._turn - 1) * self._options.scoring)
            arch = (next(self._replacements, None) if scoring else None) or self._solution(best)
            if arch is None:
                break
            self._candidates.hand_out([arch])
            chosen.append(arch)
        return chosen + self._candidates.new(n - len(chosen), partial(self._beside, chosen))

    def _beside(self, chosen: Sequence[Architecture]) -> Architecture:
        """A mutation of one of these where there are more than programs are solved for, else a random network."""
        if len(chosen) < _SOLVED:
            return self._candidates.sample()
        return self._candidates.mutate(chosen[int(self._candidates.rng.integers(len(chosen)))])

    @cached_property
    def _first(self) -> Iterator[Architecture]:
        """The networks that come before anything is learned."""
        anchors = self._candidates.anchors()
        parents = self._candidates.unseen(self._parents.values(), len(self._parents))
        self._candidates.hand_out(parents)
        return iter([*anchors, *parents])

    @cached_property
    def _parents(self) -> dict[Cell, Architecture]:
        """The largest network of every scored cell that has one within the limits that need no measuring."""
        chosen = chosen_cells(self._problem.space, self._options.cells)
        found = {cell: largest_within(self._problem.space, cell, self._counted) for cell in chosen}
        return {cell: parent for cell, parent in found.items() if parent is not None}

    @cached_property
    def _replacements(self) -> Iterator[Architecture]:
        """Every block replaced in every parent, blocks in random order and cells in turn; only new ones."""
        space, counted = self._problem.space, self._counted
        lists = []
        for cell, parent in self._parents.items():
            jobs = [(i, spec) for i in range(space.layers) for spec in cell.options if spec != parent.layers[i]]
            lists.append([(cell, parent, jobs[k]) for k in self._candidates.rng.permutation(len(jobs))])
        dealt = (job for turn in itertools.zip_longest(*lists) for job in turn if job)
        archs = (replacement(space, cell, parent, job, counted) for cell, parent, job in dealt)
        return (arch for arch in archs if arch is not None and self._is_new(arch))

    @cached_property
    def _counted(self) -> list[Limit]:
        """The budget, and the constraints on costs in closed form."""
        known = self._known.names
        limits = [Limit(name, self._table(name), *ends) for name, ends in self._constraints.items() if name in known]
        return [*self._always, *limits]

    def _learn(self, alive: Sequence[Evaluation]) -> None:
        told = self._told
        if len(told) > self._options.points:
            keep = np.linspace(0, len(told) - 1, self._options.points).round().astype(int)
            told = [told[i] for i in np.unique(keep)]
        c, choice = self._layout.encode([e.arch for e in told])
        for name, model in self._models.items():
            if name not in self._known.names:
                values = [e.metrics[name] for e in alive]
                worst = max(values) if self._problem.objectives.get(name, "min") == "min" else min(values)
                self._units[name] = unit = unit_of(values)
                model.fit(c, choice, np.array([worst if e.failure else e.metrics[name] for e in told]) / unit)
        sign = 1.0 if self._problem.objectives[self._quality] == "min" else -1.0
        self._programs.score(self._table(self._quality), sign)

    def _solution(self, best: Sequence[Evaluation]) -> Architecture | None:
        """A new optimum of the program for some target along the front, else one of the next best."""
        limits = open_end = self._limits({})
        for _ in range(_TARGETS if self._costs else 0):
            limits = self._limits(self._target(best))
            found = self._programs.best(limits, passing=False)
            if found is not None:
                return found
        return self._programs.best(limits, passing=True) or self._programs.best(open_end, passing=True)

    def _target(self, best: Sequence[Evaluation]) -> dict[str, Ends]:
        """A limit for every cost between neighbours on the front, so that there are more where the front has more."""
        rng = self._candidates.rng
        if rng.integers(_OPEN) == 0:
            return {}
        found = {}
        for name in self._costs:
            sign = 1.0 if self._problem.objectives[name] == "min" else -1.0
            values = np.sort([sign * e.metrics[name] for e in best])
            beyond = values[0] - 0.1 * min(abs(values[0]), np.ptp(values))  # the front may grow at its cheap end too
            drawn = float(np.interp(rng.uniform(0, len(values)), np.arange(len(values) + 1), [beyond, *values]))
            found[name] = (-np.inf, drawn) if sign > 0 else (-drawn, np.inf)
        return found

    def _limits(self, target: Mapping[str, Ends]) -> list[Limit]:
        """The budget, and the constraints with the target's limits."""
        found = list(self._always)
        for name in dict.fromkeys((*self._constraints, *target)):
            ends = [limits[name] for limits in (self._constraints, target) if name in limits]
            low, high = max(low for low, _ in ends), min(high for _, high in ends)
            unit = self._units.get(name, 1.0)
            found.append(Limit(name, self._table(name), low / unit, high / unit))
        return found

    def _is_new(self, arch: Architecture) -> bool:
        return bool(self._candidates.unseen([arch], 1))

    def _table(self, name: str) -> Callable[[Cell], BlockCosts]:
        """Of any cell, counted where there is a closed form, else learned."""
        return partial(self._count if name in self._known.names else self._learned, name)

    def _count(self, name: str, cell: Cell) -> BlockCosts:
        if (name, cell) not in self._counts:
            self._counts[name, cell] = closed_form(self._problem.space, cell, name, self._known.workload)
        return self._counts[name, cell]

    def _learned(self, name: str, cell: Cell) -> BlockCosts:
        c = self._layout.cells.index(cell)
        scores = self._models[name].scores
        blocks = scores.blocks[c, :, : len(cell.options)]
        return BlockCosts(float(scores.base[c]), blocks, np.zeros_like(blocks))

    def _require_limits(self) -> None:
        """Refuse what no program can say, before anything is evaluated."""
        name = "memory_bytes"
        wrong = {
            f"budget.min_{name}": any(np.isfinite(limit.low) for limit in self._always if limit.name == name),
            f"constraints: {name} from below": np.isfinite(self._constraints.get(name, (-np.inf,))[0]),
            f"objectives: {name}: max": self._problem.objectives.get(name) == "max",
        }
        for what, given in wrong.items():
            if given:
                raise UserError(f"{what}: mip knows upper limits on memory only; leave it out or take another strategy")
