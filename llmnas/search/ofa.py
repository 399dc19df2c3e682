"""Once-for-all search (Cai et al. 2020): measure some sub-networks, train predictors, evolve on the predictions.

Shapes: n architectures.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
from pydantic import Field

from llmnas.errors import UserError
from llmnas.pareto import Evaluation, front, violations
from llmnas.search.closed_forms import ClosedForms, quality_of
from llmnas.search.predictor import Kind, Predictor
from llmnas.search.strategy import Candidates, Options, Problem
from llmnas.space import Architecture

Predict = Callable[[Sequence[Architecture]], list[dict[str, float]]]
Target = Mapping[str, float]
"""Metric -> the greatest value it may have, the least where more of it is better."""

_PARENTS = 8
_ANCIENT = 1.3


class OfaOptions(Options):
    """Options of `ofa`.

    Attributes:
        samples: random evaluations before the first predictor (the paper has 16 thousand; a few hundred rank well
            with a Gaussian process).
        predictor: `gp` or `ensemble`.
        targets: the limits to extract a network for, metric -> list, for instance {"latency_ms": [10, 20, 40]}; each
            batch goes through them in turn. Of an objective that is maximised they are least values. Without targets
            they are drawn between the ends of the present front.
        population: children of a generation.
        generations: of one extraction.
        points: most evaluations that a Gaussian process (`gp`) is conditioned on.
    """

    samples: int = Field(48, ge=4)
    predictor: Kind = "gp"
    targets: dict[str, list[float]] = Field({})
    population: int = Field(64, ge=8)
    generations: int = Field(6, ge=1)
    points: int = Field(600, ge=16, le=1000)


def extract(
    candidates: Candidates,
    predict: Predict,
    goodness: Callable[[dict[str, float]], float],
    targets: Sequence[Target],
    start: Sequence[Architecture],
    population: int,
    generations: int,
    maximised: Collection[str] = (),
) -> list[list[Architecture]]:
    """For every target the architectures found, the best first: those that meet it by goodness, then by least excess.

    One evolution serves all targets: each generation's parents are the best few for each of them, its children
    are mutations and crossovers within the budget. What was evolved for one target is a candidate for all.

    Args:
        predict: metrics of architectures, one mapping each.
        goodness: of an architecture's predicted metrics, greater is better.
        start: architectures of the first generation, filled up with random ones.
        maximised: metrics whose limits are least values.
    """
    rng = candidates.rng
    found: dict[Architecture, dict[str, float]] = {}
    worse: list[float] = []

    def grow(archs: Sequence[Architecture]) -> None:
        new = [arch for arch in dict.fromkeys(archs) if arch not in found]
        found.update(zip(new, predict(new) if new else [], strict=True))
        worse.extend(-goodness(found[arch]) for arch in new)

    def ranked(target: Target, most: int | None = None) -> list[Architecture]:
        excess = np.zeros(len(found))
        for name, limit in target.items():
            values = np.array([metrics[name] for metrics in found.values()])
            over = limit - values if name in maximised else values - limit
            excess += np.maximum(over, 0.0) / (np.ptp(values) or 1.0)  # a share of the span: any sign and unit
        archs = list(found)
        return [archs[i] for i in np.lexsort((np.array(worse), excess))[:most]]

    grow([*start, *(candidates.sample() for _ in range(max(population - len(start), population // 2)))])
    for _ in range(generations):
        parents = list(dict.fromkeys(arch for target in targets for arch in ranked(target, _PARENTS)))
        children = []
        for _ in range(population):
            parent = parents[rng.integers(len(parents))]
            if rng.integers(2):
                parent = candidates.crossover(parent, parents[rng.integers(len(parents))])
            children.append(candidates.mutate(parent))
        grow(children)
    return [ranked(target) for target in targets]


class OnceForAll:
    """Random evaluations, then what evolution on predictors extracts for a target each; predictors learn as it goes.

    The quality is the first objective that is no cost in closed form (`val_loss` where it is one); the other objectives
    are costs with targets. A cost that equals its closed form is computed, any other is predicted too. Constraints
    are targets of every extraction. A failed evaluation stands with the worst value told.
    """

    def __init__(self, problem: Problem, options: OfaOptions) -> None:
        options.require_use("points", options.predictor == "gp", "with predictor ensemble, which sees all evaluations")
        self._problem = problem
        self._options = options
        self._candidates = Candidates(problem)
        self._known = ClosedForms(problem)
        goals = problem.objectives
        self._quality = quality_of(goals, self._known.names)
        self._costs = [name for name in goals if name != self._quality]
        for name, limits in options.targets.items():
            if name not in self._costs or not limits or not np.isfinite(limits).all():
                raise UserError(
                    f"options of ofa: targets: {name}: {limits} must be limits of an objective that is not "
                    f"{self._quality}; allowed: {self._costs}"
                )
        names = dict.fromkeys((*goals, *problem.constraints))
        self._predictors = {name: Predictor(problem.space, options.predictor, problem.seed) for name in names}
        self._learned_from = 0
        self._told: list[Evaluation] = []
        self._turn = 0

    def ask(self, n: int) -> list[Architecture]:
        """Random architectures at first, then one extracted for each of `n` targets."""
        alive = [e for e in self._told if e.failure is None]
        if len(self._told) < self._options.samples or len(alive) < 2:
            return self._candidates.new(n, self._candidates.sample)
        self._learn(alive)
        best = front(alive, self._problem.objectives, self._problem.constraints) or alive
        targets = [self._target(best) for _ in range(n)]
        start = [e.arch for e in best[-self._options.population // 2 :]]
        lists = extract(
            self._candidates, self._predict, self._goodness, targets, start,
            self._options.population, self._options.generations,
            [name for name in self._costs if self._problem.objectives[name] == "max"],
        )  # fmt: skip
        chosen: list[Architecture] = []
        for ranking in lists:
            new = self._candidates.unseen(ranking, 1)
            self._candidates.hand_out(new)
            chosen += new
        return chosen + self._candidates.new(n - len(chosen), self._candidates.sample)

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Remember."""
        self._told += evaluations
        self._known.check(evaluations)

    def _learn(self, alive: list[Evaluation]) -> None:
        """Fit the predictors; networks only when there is much new, since each fit trains them from scratch."""
        if self._options.predictor == "ensemble" and len(self._told) < _ANCIENT * self._learned_from:
            return
        self._learned_from = len(self._told)
        told = self._told
        if self._options.predictor == "gp" and len(told) > self._options.points:
            keep = np.linspace(0, len(told) - 1, self._options.points).round().astype(int)
            told = [told[i] for i in np.unique(keep)]
        for name, predictor in self._predictors.items():
            if name in self._known.names:
                continue
            values = [e.metrics[name] for e in alive]
            worst = max(values) if self._problem.objectives.get(name, "min") == "min" else min(values)
            predictor.fit([e.arch for e in told], [worst if e.failure else e.metrics[name] for e in told])

    def _predict(self, archs: Sequence[Architecture]) -> list[dict[str, float]]:
        computed = self._known.values(archs)
        columns = {name: computed[:, i] for i, name in enumerate(self._known.names)}
        for name, predictor in self._predictors.items():
            if name not in columns:
                columns[name] = predictor.mean(archs)
        return [{name: float(column[i]) for name, column in columns.items()} for i in range(len(archs))]

    def _goodness(self, metrics: dict[str, float]) -> float:
        """Predicted quality, greater is better; what is predicted to miss a constraint comes after all others."""
        missed = sum(violations(metrics, self._problem.constraints))
        sign = 1.0 if self._problem.objectives[self._quality] == "max" else -1.0
        return sign * metrics[self._quality] if not missed else -1e12 * (1.0 + missed)

    def _target(self, best: list[Evaluation]) -> Target:
        """The next of the targets given, or limits drawn between the ends of the front."""
        given = [(name, limit) for name, limits in self._options.targets.items() for limit in limits]
        if given:
            name, limit = given[self._turn % len(given)]
            self._turn += 1
            return {name: limit}
        drawn: dict[str, float] = {}
        if self._candidates.rng.integers(8) == 0:
            return drawn  # no limit: the front may grow beyond its dear end
        for name in self._costs:
            sign = 1.0 if self._problem.objectives[name] == "min" else -1.0
            values = [sign * e.metrics[name] for e in best]
            low, high = min(values), max(values)
            beyond = 0.1 * min(abs(low), high - low)  # the front may grow at its cheap end too
            drawn[name] = sign * float(self._candidates.rng.uniform(low - beyond, high))
        return drawn
