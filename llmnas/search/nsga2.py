"""NSGA-II (Deb et al. 2002) by pymoo, over architectures as object variables. The only importer of pymoo."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import chain, takewhile
from typing import Any

import numpy as np
from pydantic import Field
from pymoo.algorithms.moo.nsga2 import NSGA2, binary_tournament
from pymoo.core.evaluator import Evaluator
from pymoo.core.population import Population
from pymoo.core.problem import Problem as PymooProblem
from pymoo.core.termination import NoTermination
from pymoo.operators.selection.tournament import TournamentSelection
from pymoo.problems.static import StaticProblem

from llmnas.pareto import Evaluation, minimised, violations
from llmnas.search.strategy import Candidates, Options, Problem
from llmnas.space import Architecture


class Nsga2Options(Options):
    """`population`: survivors, and children, of a generation; `crossover`: share of children with two parents."""

    population: int = Field(16, ge=4)
    crossover: float = Field(0.9, ge=0, le=1)


def _population(archs: list[Architecture]) -> Any:
    """A pymoo population of one object variable, X `[archs, 1]`."""
    variables = np.empty((len(archs), 1), dtype=object)
    variables[:, 0] = archs
    return Population.new(X=variables)


class _Mating:
    """pymoo's parent selection with our variation: children are new, in the space and within the budget."""

    def __init__(self, candidates: Candidates, crossover: float) -> None:
        self._candidates = candidates
        self._crossover = crossover
        self._selection = TournamentSelection(func_comp=binary_tournament)

    def do(self, problem: Any, pop: Any, n_offsprings: int, random_state: Any = None, **kwargs: Any) -> Any:
        """One child for each pair of parents that the tournaments chose, until no new one is found."""
        pairs = self._selection(problem, pop, n_offsprings, 2, random_state=random_state, **kwargs)
        born = (self._candidates.new(1, partial(self.child, a.X[0], b.X[0])) for a, b in pairs)
        return _population(list(chain.from_iterable(takewhile(bool, born))))

    def child(self, a: Architecture, b: Architecture) -> Architecture:
        """Of two parents, or of the first alone."""
        crossed = self._candidates.rng.random() < self._crossover
        return self._candidates.mutate(self._candidates.crossover(a, b) if crossed else a)


class Nsga2:
    """pymoo's NSGA2: rank and crowding choose survivors, binary tournaments choose parents.

    The first generation holds the smallest, largest and middle architecture within the budget, the
    rest of it is random. A generation may be asked for and told in several parts: it has the least multiple of what
    is asked for at once that is no less than the population, so nobody who evaluates is left without work; asked for
    more while some of it is still being evaluated, it grows by further children of the same parents. Whatever
    its size, the survivors are the best `population` of parents and children together. Constraints are
    pymoo's (a feasible one beats an infeasible one, then the smaller violation wins); a failed
    evaluation is one more constraint, missed by far.
    """

    def __init__(self, problem: Problem, options: Nsga2Options) -> None:
        self._problem = problem
        self._size = options.population
        self._candidates = Candidates(problem)
        first = self._candidates.anchors()
        first += self._candidates.new(options.population - len(first), self._candidates.sample)
        self._first: list[Architecture] | None = first
        self._mating = _Mating(self._candidates, options.crossover)
        self._algorithm = NSGA2(
            pop_size=options.population,
            mating=self._mating,
            eliminate_duplicates=False,
        )
        self._pymoo_problem = PymooProblem(
            n_var=1, n_obj=len(problem.objectives), n_ieq_constr=1 + len(problem.constraints)
        )
        self._algorithm.setup(self._pymoo_problem, termination=NoTermination(), seed=problem.seed)
        self._generation: Any = _population([])
        self._asked = 0
        self._told: list[Evaluation] = []

    def ask(self, n: int) -> list[Architecture]:
        """The next part, at most `n`, of the current generation; a new generation when it is used up."""
        if self._asked == len(self._generation) != len(self._told):
            self._generation = Population.merge(self._generation, _population(self._meanwhile(n)))
        elif self._asked == len(self._generation):
            generation = self._next(n * -(-self._size // n))
            if generation is None:
                return []
            self._generation, self._asked, self._told = generation, 0, []
        part = self._generation[self._asked : self._asked + n]
        self._asked += len(part)
        return [individual.X[0] for individual in part]

    def _meanwhile(self, n: int) -> list[Architecture]:
        """New children of the survivors, random ones as long as there are none."""
        parents = [individual.X[0] for individual in (() if self._algorithm.pop is None else self._algorithm.pop)]
        if not parents:
            return self._candidates.new(n, self._candidates.sample)
        pick = partial(self._candidates.rng.integers, len(parents))
        return self._candidates.new(n, lambda: self._mating.child(parents[pick()], parents[pick()]))

    def _next(self, size: int) -> Any:
        """A generation of `size`, fewer where nothing new is found, None where nothing at all."""
        if self._first is not None:
            first, self._first = self._first, None
            more = self._candidates.new(size - len(first), self._candidates.sample)
            self._algorithm.initialization.sampling = _population([*first, *more])
        self._algorithm.n_offsprings = size
        return self._algorithm.ask()

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Collect; a whole generation goes to pymoo, which then chooses the survivors."""
        self._told += evaluations
        if self._told and len(self._told) == len(self._generation):
            found = {e.arch: e for e in self._told}
            ordered = [found[individual.X[0]] for individual in self._generation]
            values = np.array([self._objectives(e) for e in ordered])
            missed = np.array([self._constraints(e) for e in ordered])
            Evaluator().eval(StaticProblem(self._pymoo_problem, F=values, G=missed), self._generation)
            self._algorithm.tell(infills=self._generation)
            if len(self._algorithm.pop) > self._size:  # pymoo lets all of a first generation live
                self._algorithm.pop = self._algorithm.survival.do(
                    self._pymoo_problem, self._algorithm.pop, n_survive=self._size, algorithm=self._algorithm,
                    random_state=self._algorithm.random_state,
                )  # fmt: skip

    def _objectives(self, evaluation: Evaluation) -> list[float]:
        if evaluation.failure is not None:
            return [0.0] * len(self._problem.objectives)  # never compared: infeasible
        return minimised(evaluation.metrics, self._problem.objectives)

    def _constraints(self, evaluation: Evaluation) -> list[float]:
        if evaluation.failure is not None:
            return [1e9] + [0.0] * len(self._problem.constraints)
        return [0.0, *violations(evaluation.metrics, self._problem.constraints)]
