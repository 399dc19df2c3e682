"""Random search: the baseline that every other strategy has to beat."""

from __future__ import annotations

from collections.abc import Sequence

from llmnas.pareto import Evaluation
from llmnas.search.strategy import Candidates, Options, Problem
from llmnas.space import Architecture


class RandomOptions(Options):
    """Random search has no options."""


class RandomSearch:
    """Draws from the space within the budget, without repeats."""

    def __init__(self, problem: Problem, _options: RandomOptions) -> None:
        self._candidates = Candidates(problem)

    def ask(self, n: int) -> list[Architecture]:
        """The next `n` draws."""
        return self._candidates.new(n, self._candidates.sample)

    def tell(self, evaluations: Sequence[Evaluation]) -> None:
        """Random search learns nothing."""
