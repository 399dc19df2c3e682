"""Bayesian optimisation over architectures (BoTorch): Gaussian processes, expected improvement, discrete proposals.

Shapes: N architectures of a pool; m metrics (objectives, then constraints); q architectures of a batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from botorch.acquisition.analytic import (
    ExpectedImprovement,
    LogConstrainedExpectedImprovement,
    LogExpectedImprovement,
    LogProbabilityOfFeasibility,
)
from botorch.exceptions.warnings import NumericsWarning
from linear_operator.utils.warnings import NumericalWarning
from pydantic import Field
from torch import Tensor

from llmnas.errors import UserError
from llmnas.pareto import Evaluation, check_constraints, front, minimised, violations
from llmnas.rng import torch_seed
from llmnas.search.arch_kernel import Layout
from llmnas.search.closed_forms import ClosedForms
from llmnas.search.hypervolume import LogExpectedHypervolumeImprovement
from llmnas.search.magnitude import unit_of
from llmnas.search.pool_model import FLOOR, PoolModel
from llmnas.search.sampled_hypervolume import noisy_improvement
from llmnas.search.strategy import Candidates, Options, Problem
from llmnas.search.surrogate import GaussianProcess, KernelName
from llmnas.space import Architecture

_ANCHORS = 32
_FINALISTS = 48
"""So many of a pool, those best alone, are compared again for every place of a batch."""
_FEW = 8
"""Of the best with one objective, or of what misses the constraints least."""
_FRONT = 64
"""Most points of the front that the hypervolume improvement is counted against at once."""


class BayesOptions(Options):
    """Options of `bayes`.

    Attributes:
        kernel: see `search/arch_kernel.py`.
        acquisition: of one objective `log_ei` (the default; with constraints times their probability), or `ei`, which
            has the same maximum (for comparison: flat where none is likely). Of several `log_ehvi` (the default), exact
            and fast, or `qlognehvi`, by samples: there the best told are uncertain too.
        start: evaluations (smallest, largest, middle, then random) before the first model.
        pool: architectures that a proposal is chosen from.
        points: most evaluations that a model is conditioned on, those nearest to the front.
    """

    kernel: KernelName = "hamming"
    acquisition: Literal["log_ei", "ei", "log_ehvi", "qlognehvi"] | None = None
    start: int = Field(16, ge=2)
    pool: int = Field(256, ge=8)
    points: int = Field(400, ge=16, le=1000)


class BayesianSearch:
    """Fits a Gaussian process to every metric and asks for what promises the greatest improvement.

    One objective: log expected improvement (Ament et al. 2023); several: that of the hypervolume, in closed form
    (`LogExpectedHypervolumeImprovement`) or by samples (`noisy_improvement`). Constraints multiply it by the
    probability that they hold (Gardner et al. 2014); while nothing meets them, that probability is sought. Batches by
    the kriging believer, those of samples by pending points. A metric that
    equals a cost in closed form is computed, not modelled. A failed evaluation stands in the models with the
    worst value told.

    The proposals are a pool from the budget: mutations of what is best, random members, and then mutations
    of those that the acquisition likes most. The models see at most `points` evaluations: the front, and those
    that share most decisions with a member of it (a trust region in the sense of Hamming distance).
    """

    def __init__(self, problem: Problem, options: BayesOptions) -> None:
        several = len(problem.objectives) > 1
        kinds = ("log_ehvi", "qlognehvi") if several else ("log_ei", "ei") if not problem.constraints else ("log_ei",)
        if options.acquisition not in (None, *kinds):
            limited = " and constraints" if problem.constraints else ""
            raise UserError(
                f"options: acquisition must be {' or '.join(kinds)} with {'several' if several else 'one'} "
                f"objective{'s' if several else ''}{limited}, got {options.acquisition!r}"
            )
        self._acquired, self._by_samples = options.acquisition or kinds[0], options.acquisition == "qlognehvi"
        self._problem, self._options = problem, options
        self._candidates, self._known = Candidates(problem), ClosedForms(problem)
        self._layout = Layout(problem.space)
        anchors = [self._candidates.sample() for _ in range(_ANCHORS)]
        self._metrics = [*problem.objectives, *(name for name in problem.constraints if name not in problem.objectives)]
        self._models = {name: GaussianProcess(options.kernel, self._layout, anchors) for name in self._metrics}
        self._limits = check_constraints(problem.constraints)
        self._told: list[Evaluation] = []
        self._best: list[Evaluation] = []
        self._alive = 0
        self._reached: dict[str, Tensor] = {}
        self._units = dict.fromkeys(self._metrics, 1.0)
        self._rows = self._decisions(anchors[:1])[:0]
        self._first = self._candidates.anchors()

    def ask(self, n: int) -> list[Architecture]:
        """Anchors and random architectures at the start, then the most promising of a pool."""
        asked, self._first = self._first[:n], self._first[n:]
        if len(self._told) + len(asked) < self._options.start or self._alive < 2:
            return asked + self._candidates.new(n - len(asked), self._candidates.sample)
        chosen = self._promising(n, self._region())
        self._candidates.hand_out(chosen)
        # fewer in the pool than asked for: the space within the budget is nearly exhausted
        return chosen + self._candidates.new(n - len(chosen), self._candidates.sample)

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Remember."""
        self._told += evaluations
        self._known.check(evaluations)
        alive = [e for e in evaluations if e.failure is None]
        self._alive += len(alive)
        # what is not among the best of some is not among those of more: the others need not be looked at again
        self._best = self._best_of([*self._best, *alive])

    def _region(self) -> list[Evaluation]:
        """At most `points` evaluations: the best, then those nearest to one of them, failed ones included."""
        self._elite = self._thinned() if len(self._problem.objectives) > 1 else self._best
        if len(self._told) <= self._options.points:
            return list(self._told)
        new = [e.arch for e in self._told[len(self._rows) :]]
        if new:
            self._rows = torch.cat([self._rows, self._decisions(new)])
        shared = (self._rows @ self._decisions([e.arch for e in self._elite]).T).amax(1)
        nearest = torch.argsort(shared, descending=True, stable=True)[: self._options.points]
        return [self._told[i] for i in sorted(nearest.tolist())]

    def _thinned(self) -> list[Evaluation]:
        """Along the front, evenly chosen where it is long."""
        name = next(iter(self._problem.objectives))
        ordered = sorted(self._best, key=lambda e: e.metrics[name])
        at = np.linspace(0, len(ordered) - 1, min(len(ordered), _FRONT)).round().astype(int)
        return [ordered[i] for i in at]

    def _decisions(self, archs: list[Architecture]) -> Tensor:
        """One-hot codes [n, F], small: their products are the numbers of decisions that two architectures share."""
        return self._layout.one_hot(self._layout.codes(archs), range(len(self._layout.values))).float()

    def _best_of(self, alive: list[Evaluation]) -> list[Evaluation]:
        """The front, with one objective the best few, where nothing meets the constraints what misses them least."""
        goals, limits = self._problem.objectives, self._problem.constraints
        feasible = [e for e in alive if not any(violations(e.metrics, limits))]
        if not feasible:
            return sorted(alive, key=lambda e: sum(violations(e.metrics, limits)))[:_FEW]
        if len(goals) > 1:
            return front(feasible, goals)
        return sorted(feasible, key=lambda e: minimised(e.metrics, goals))[:_FEW]

    def _promising(self, n: int, region: list[Evaluation]) -> list[Architecture]:
        """Up to `n` architectures that were not asked for, best acquisition first."""
        with warnings.catch_warnings():
            # jitter and clamped variances are expected where two architectures are all but the same to a kernel
            warnings.simplefilter("ignore", NumericalWarning)
            warnings.simplefilter("ignore", NumericsWarning)  # plain EI was asked for
            return self._search_pool(n, region)

    def _search_pool(self, n: int, region: list[Evaluation]) -> list[Architecture]:
        scale = self._fit(region)
        size = self._options.pool // 2
        elite = [e.arch for e in self._elite]
        varied = [self._vary(elite[i % len(elite)], elite) for i in range(size)]
        sampled = [self._candidates.sample() for _ in range(size // 2)]
        pool = self._candidates.unseen([*varied, *sampled], 2 * size)
        if not pool:
            return []
        scores = self._scores(pool, scale)
        order = torch.argsort(scores, descending=True, stable=True)[: size // 2].tolist()
        leaders = [pool[i] for i in order[: max(size // 8, 1)]]
        grown = [self._candidates.mutate(leaders[i % len(leaders)]) for i in range(size // 2)]
        known = set(pool)
        fresh = [arch for arch in self._candidates.unseen(grown, size) if arch not in known]
        pool = [*(pool[i] for i in order), *fresh]
        scores = torch.cat([scores[order], self._scores(fresh, scale)]) if fresh else scores[order]
        finalists = torch.argsort(scores, descending=True, stable=True)[: max(_FINALISTS, 2 * n)].tolist()
        return self._batch(n, [pool[i] for i in finalists], scale)

    def _scores(self, pool: list[Architecture], scale: tuple[Tensor, Tensor]) -> Tensor:
        """The acquisition of each alone, [N]."""
        value = self._acquisition(self._pool_model(pool, scale), len(pool))
        with torch.no_grad():
            return value(torch.arange(len(pool), dtype=torch.float64)[:, None, None])

    def _vary(self, arch: Architecture, elite: list[Architecture]) -> Architecture:
        """One to three mutations, or a child of two of the best."""
        rng = self._candidates.rng
        steps = int(rng.integers(4))
        if not steps and len(elite) > 1:
            return self._candidates.mutate(self._candidates.crossover(arch, elite[rng.integers(len(elite))]))
        for _ in range(max(steps, 1)):
            arch = self._candidates.mutate(arch)
        return arch

    def _fit(self, region: list[Evaluation]) -> tuple[Tensor, Tensor]:
        """Condition the models, in `_units`; the mean and spread [m] that standardise every metric, greater is better.

        What the models then say of the best told is computed here, once for all pools of an `ask`.
        """
        alive = [e for e in region if e.failure is None]
        known = self._known.names
        codes = self._layout.codes([e.arch for e in region])
        best = [e.arch for e in self._elite]
        computed = self._known.values(best)
        columns = []
        for name in self._metrics:
            values = [e.metrics[name] for e in alive]
            worst = self._worst(name, values)
            column = torch.tensor([worst if e.failure else e.metrics[name] for e in region], dtype=torch.float64)
            self._units[name] = unit = unit_of(column)
            column = column / unit
            columns.append(column)
            if name in known:
                self._reached[name] = torch.from_numpy(computed[:, known.index(name)]) / unit
                continue
            model = self._models[name]
            model.fit(model.kernel.embed(codes), column)
            self._reached[name] = model.mean(model.kernel.embed(self._layout.codes(best)))
        told = torch.stack(columns, dim=1)
        spread = told.std(dim=0, correction=0)
        return told.mean(0), torch.where(spread > 0, spread, torch.ones_like(spread))

    def _worst(self, name: str, values: list[float]) -> float:
        if name in self._limits:
            low, high = self._limits[name]
            misses = [(max(low - v, v - high, 0.0), v) for v in values]
            if max(misses)[0] > 0:
                return max(misses)[1]
        return max(values) if self._problem.objectives.get(name, "min") == "min" else min(values)

    def _pool_model(self, pool: list[Architecture], scale: tuple[Tensor, Tensor]) -> PoolModel:
        """The posterior of the pool, then means of the best told (with samples: their joint posterior); standardised,
        objectives so that greater is better.

        Outputs are the objectives, then the constrained metrics, an objective with a bound being there twice.
        """
        archs = [*pool, *(e.arch for e in self._elite)] if self._by_samples else pool
        codes, computed = self._layout.codes(archs), self._known.values(archs)
        parts = {}
        for k, name in enumerate(self._metrics):
            if name in self._known.names:
                mean = torch.from_numpy(computed[:, self._known.names.index(name)]) / self._units[name]
                covariance = torch.zeros(len(archs), len(archs), dtype=torch.float64)
            else:
                model = self._models[name]
                mean, covariance = model.joint(model.kernel.embed(codes))
            mean = mean if self._by_samples else torch.cat([mean, self._reached[name]])
            floor = FLOOR * torch.eye(len(archs), dtype=torch.float64)
            parts[name] = ((mean - scale[0][k]) / scale[1][k], covariance / scale[1][k] ** 2 + floor)
        goals = self._problem.objectives
        means = [parts[name][0] * (-1.0 if way == "min" else 1.0) for name, way in goals.items()]
        means += [parts[name][0] for name in self._limits]
        self._bounds = {}
        for output, (name, ends) in enumerate(self._limits.items(), len(goals)):
            k = self._metrics.index(name)
            low, high = ((end / self._units[name] - scale[0][k].item()) / scale[1][k].item() for end in ends)
            self._bounds[output] = (low, high)
        covariances = [parts[name][1] for name in (*goals, *self._limits)]
        return PoolModel(torch.stack(means, dim=1), torch.stack(covariances))

    def _acquisition(self, model: PoolModel, size: int, pending: Sequence[int] = ()) -> Callable[[Tensor], Tensor]:
        """What is to be maximised over the first `size` positions of the model's pool; the best told come after."""
        feasible = [i for i, e in enumerate(self._elite) if not any(violations(e.metrics, self._problem.constraints))]
        limits = {k: tuple(None if np.isinf(end) else end for end in ends) for k, ends in self._bounds.items()}
        if not feasible:
            return LogProbabilityOfFeasibility(model, constraints=limits)  # type: ignore[no-any-return]
        observed = model.mean[size:]
        if len(self._problem.objectives) == 1:
            best = observed[feasible, 0].max()
            if limits:
                return LogConstrainedExpectedImprovement(model, best, 0, limits)  # type: ignore[no-any-return]
            kind = LogExpectedImprovement if self._acquired == "log_ei" else ExpectedImprovement
            return kind(model, best)  # type: ignore[no-any-return]
        goals = len(self._problem.objectives)
        low, high = observed[feasible, :goals].amin(0), observed[feasible, :goals].amax(0)
        reference = low - 0.1 * (high - low).clamp_min(0.1)
        if self._by_samples:
            seed = torch_seed(self._problem.seed, "acquisition", len(self._told)) % 2**31
            return noisy_improvement(model, reference, [size + i for i in feasible], self._bounds, pending, seed)
        likely = [i for i in pending if _inside(model.mean[i], self._bounds)]
        volume = LogExpectedHypervolumeImprovement(
            model,
            reference,
            torch.cat([observed[feasible, :goals], model.mean[likely, :goals]]),
        )
        if not limits:
            return volume
        allowed = LogProbabilityOfFeasibility(model, constraints=limits)
        return lambda at: volume(at) + allowed(at)

    def _batch(self, n: int, pool: list[Architecture], scale: tuple[Tensor, Tensor]) -> list[Architecture]:
        """Greedy: each next one is chosen as if those before were already evaluated."""
        model = self._pool_model(pool, scale)
        chosen: list[int] = []
        free = list(range(len(pool)))
        while free and len(chosen) < n:
            value = self._acquisition(model, len(pool), chosen)
            with torch.no_grad():
                best = free.pop(int(value(torch.tensor(free, dtype=torch.float64)[:, None, None]).argmax()))
            chosen.append(best)
            model = model if self._by_samples else model.believe(best)
        return [pool[i] for i in chosen]


def _inside(metrics: Tensor, bounds: dict[int, tuple[float, float]]) -> bool:
    """Whether metrics [m] meet all bounds."""
    return all(low <= metrics[k].item() <= high for k, (low, high) in bounds.items())
