"""Regularized evolution (Real et al. 2019, "Regularized Evolution for Image Classifier Architecture Search")."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from pydantic import Field, model_validator

from llmnas.pareto import Evaluation, minimised, violations
from llmnas.search.strategy import Candidates, Options, Problem
from llmnas.space import Architecture


class EvolutionOptions(Options):
    """`population`: how many live at once; `tournament`: how many of them compete to be a parent."""

    population: int = Field(32, ge=2)
    tournament: int = Field(16, ge=1)

    @model_validator(mode="after")
    def _fits(self) -> EvolutionOptions:
        if "tournament" in self.model_fields_set and self.tournament > self.population:
            raise ValueError(f"a tournament of {self.tournament} needs a population of as many, got {self.population}")
        return self


class RegularizedEvolution:
    """A mutation of a tournament's winner joins the population, and the OLDEST member dies, however good it is.

    The paper has one objective. With several, every tournament draws weights w uniformly from the
    simplex and is won by the least max_i w_i z_i + 0.05 sum_i w_i z_i, z the objectives scaled to
    [0, 1] over the contestants (the augmented Chebyshev scalarisation of ParEGO, Knowles 2006): each
    tournament looks for another place on the front. With one objective the best wins. A failed
    contestant loses to all others, and one nearer to the constraints wins over one further away.
    """

    def __init__(self, problem: Problem, options: EvolutionOptions) -> None:
        self._problem = problem
        self._options = options
        self._candidates = Candidates(problem)
        self._population: deque[Evaluation] = deque(maxlen=options.population)

    def ask(self, n: int) -> list[Architecture]:
        """Random architectures until the population is full, then mutations of winners."""
        return self._candidates.new(n, self._propose)

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """All join the population; the oldest make room for them."""
        self._population.extend(evaluations)

    def _propose(self) -> Architecture:
        if len(self._population) < self._options.population:
            return self._candidates.sample()
        size = min(self._options.tournament, self._options.population)
        drawn = self._candidates.rng.choice(self._options.population, size, replace=False)
        return self._candidates.mutate(self._winner([self._population[i] for i in drawn]).arch)

    def _winner(self, contestants: list[Evaluation]) -> Evaluation:
        alive = [e for e in contestants if e.failure is None]
        if not alive:
            return contestants[0]
        missed = [sum(violations(e.metrics, self._problem.constraints)) for e in alive]
        alive = [e for e, miss in zip(alive, missed, strict=True) if miss == min(missed)]
        points = np.array([minimised(e.metrics, self._problem.objectives) for e in alive])
        span = np.ptp(points, axis=0)
        scaled = (points - points.min(axis=0)) / np.where(span > 0, span, 1.0)
        weighted = scaled * self._candidates.rng.dirichlet(np.ones(points.shape[1]))
        return alive[int(np.argmin(weighted.max(axis=1) + 0.05 * weighted.sum(axis=1)))]
