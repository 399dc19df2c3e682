"""How fast a search goes, and how much of its time the strategy takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmnas.pareto import Result
from llmnas.space import Architecture

SPEED = ("candidates_per_hour", "strategy_share", "processes", "dropped", "windows_share")


@dataclass
class Pace:
    """Of one start of a search, from its first evaluation on: what was replayed before costs no evaluation.

    Attributes:
        networks: evaluated.
        evaluating: seconds in which they were.
        between: seconds from the end of an evaluation to the next: `tell`, `ask`, and the archive's writing.
    """

    processes: int = 1
    networks: int = 0
    evaluating: float = 0.0
    between: float = 0.0
    _ended: float | None = None

    def timed(
        self, evaluate: Callable[[Sequence[Architecture]], Sequence[Result]]
    ) -> Callable[[Sequence[Architecture]], Sequence[Result]]:
        """`evaluate` with its time noted."""

        def noted(archs: Sequence[Architecture]) -> Sequence[Result]:
            begun = time.monotonic()
            if self._ended is not None:
                self.between += begun - self._ended
            found = evaluate(archs)
            self._ended = time.monotonic()
            self.evaluating += self._ended - begun
            self.networks += len(archs)
            return found

        return noted

    def facts(self) -> dict[str, float]:
        """The first three of `SPEED`; empty where nothing was evaluated."""
        if not self.networks:
            return {}
        seconds = self.evaluating + self.between
        return {
            "candidates_per_hour": round(3600 * self.networks / seconds, 1),
            "strategy_share": round(self.between / seconds, 5),
            "processes": self.processes,
        }
