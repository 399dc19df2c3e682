"""Local search: small changes to what is best so far."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from llmnas.pareto import Evaluation, front, violations
from llmnas.search.strategy import Candidates, Options, Problem
from llmnas.space import Architecture


class LocalOptions(Options):
    """`start`: how many random architectures are evaluated before the first mutation."""

    start: int = Field(16, ge=1)


class LocalSearch:
    """One or two mutations of a random member of the current Pareto front.

    While nothing meets the constraints, the evaluation that misses them least stands in for the front.
    """

    def __init__(self, problem: Problem, options: LocalOptions) -> None:
        self._problem = problem
        self._start = options.start
        self._candidates = Candidates(problem)
        self._parents: list[Evaluation] = []
        self._told = 0

    def ask(self, n: int) -> list[Architecture]:
        """Random architectures at the start, then neighbours of the front."""
        return self._candidates.new(n, self._propose)

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Update the front."""
        self._told += len(evaluations)
        pool = [*self._parents, *(e for e in evaluations if e.failure is None)]
        constraints = self._problem.constraints
        nearest = sorted(pool, key=lambda e: sum(violations(e.metrics, constraints)))[:1]
        self._parents = front(pool, self._problem.objectives, constraints) or nearest

    def _propose(self) -> Architecture:
        if self._told < self._start or not self._parents:
            return self._candidates.sample()
        rng = self._candidates.rng
        child = self._candidates.mutate(self._parents[rng.integers(len(self._parents))].arch)
        return self._candidates.mutate(child) if rng.integers(2) else child
