"""What a search strategy is, and what all strategies draw their architectures from."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, model_validator

from llmnas.cost import Budget, BudgetSampler
from llmnas.errors import UserError
from llmnas.pareto import Constraints, Evaluation, Objectives, check_constraints, check_objectives
from llmnas.rng import generator
from llmnas.space import Architecture, SearchSpace, crossover, mutate, plain_number

_VARIATIONS = 20
"""How often a variation that leaves the budget or was proposed before is tried again."""
_POOL = 64
_POOLS = 16
_RECENT = 4096
"""Architectures of which it is remembered whether the budget admits them: proposals are checked more than once."""


def _plain(value: Any) -> Any:
    """Mappings and lists of numbers with those of NumPy as Python's."""
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value.tolist() if isinstance(value, np.ndarray) else plain_number(value)


class Options(BaseModel):
    """The options of one strategy: unknown ones are refused, never ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _plain_numbers(cls, values: Any) -> Any:
        return _plain(values)

    def require_use(self, name: str, used: bool, why: str) -> None:
        """Raise `UserError` where an option was given that changes nothing for the problem at hand."""
        if name in self.model_fields_set and not used:
            raise UserError(f"options: {name} does nothing {why}; leave it out")


@dataclass(frozen=True)
class Problem:
    """What is searched: a strategy is a function of this, its options, and what it is told.

    `first`: members of the space within the budget that are known to be good: they begin what would be random.
    """

    space: SearchSpace
    objectives: Objectives
    constraints: Constraints
    budget: Budget | None
    seed: int
    first: tuple[Architecture, ...] = ()

    @classmethod
    def of(
        cls,
        space: SearchSpace,
        objectives: Objectives,
        constraints: Constraints,
        budget: Budget | None,
        seed: int,
        first: Sequence[Architecture] = (),
    ) -> Problem:
        """The same problem in whatever order objectives and constraints are named.

        Raises:
            UserError: no objective, an unknown direction, or a constraint that bounds nothing.
        """
        goals, limits = check_objectives(objectives), check_constraints(constraints)
        return cls(space, dict(sorted(goals.items())), dict(sorted(limits.items())), budget, seed, tuple(first))


class Strategy(Protocol):
    """Proposes architectures and learns from their evaluations.

    `ask` and `tell` alternate. A strategy depends on nothing but its problem and what it was told:
    asked again from the start and told the same, it proposes the same. That is how a search resumes.
    """

    def ask(self, n: int) -> list[Architecture]:
        """At most `n` members of the space within the budget; empty when it finds no new one."""
        ...

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """The evaluations of all architectures of the last `ask`, in its order."""
        ...


class Candidates:
    """Members of the space within the budget, with the search's own random stream."""

    def __init__(self, problem: Problem) -> None:
        self.rng = generator(problem.seed, "search")
        self._space = problem.space
        self._budget = problem.budget
        self._sampler = BudgetSampler(problem.space, problem.budget)
        self._pool: list[Architecture] = []
        self._first = iter(problem.first)
        self._handed: set[Architecture] = set()
        self._within = functools.lru_cache(_RECENT)(self._counted)

    def sample(self) -> Architecture:
        """A random one (drawn in pools, which is cheaper under a tight budget)."""
        if not self._pool:
            self._pool = self._sampler.sample_many(self.rng, _POOL)
        return self._pool.pop()

    def mutate(self, arch: Architecture) -> Architecture:
        """One decision changed; a random one where no mutation tried stays within the budget."""
        for _ in range(_VARIATIONS):
            child = mutate(self._space, arch, self.rng)
            if self.admits(child):
                return child
        return self.sample()

    def crossover(self, a: Architecture, b: Architecture) -> Architecture:
        """Every decision from one of the parents; may leave the budget, as `mutate` accepts."""
        return crossover(self._space, a, b, self.rng)

    def anchors(self) -> list[Architecture]:
        """Hand out the smallest, largest and middle of the space, those within the budget."""
        named = (self._space.smallest(), self._space.largest(), self._space.middle())
        inside = [arch for arch in dict.fromkeys(named) if self.admits(arch)]
        self._handed.update(inside)
        return inside

    def new(self, n: int, propose: Callable[[], Architecture]) -> list[Architecture]:
        """`n` architectures that were not handed out before, the problem's `first` before all others.

        Each is the first new one of a few proposals, else of about a thousand random ones. Fewer than
        `n` come back when these find none: the space within the budget is (all but) exhausted.
        """
        batch: list[Architecture] = []
        while len(batch) < n:
            proposals = (propose() for _ in range(_VARIATIONS))
            samples = (self.sample() for _ in range(_POOL * _POOLS))
            found = next((a for a in itertools.chain(self._first, proposals, samples) if a not in self._handed), None)
            if found is None:
                break
            self._handed.add(found)
            batch.append(found)
        return batch

    def unseen(self, proposals: Iterable[Architecture], most: int) -> list[Architecture]:
        """The first `most` different ones of the proposals that were not handed out yet and are within the budget.

        They stay free: `hand_out` takes those that are chosen.
        """
        fresh = (arch for arch in dict.fromkeys(proposals) if arch not in self._handed and self.admits(arch))
        return list(itertools.islice(fresh, most))

    def hand_out(self, archs: Iterable[Architecture]) -> None:
        """Never propose these again."""
        self._handed.update(archs)

    def admits(self, arch: Architecture) -> bool:
        """Whether the architecture is within the budget."""
        return self._within(arch)

    def _counted(self, arch: Architecture) -> bool:
        return self._budget is None or self._budget.admits(self._space.base, arch)
