"""Metrics that need no model: costs that are counted, as long as what is measured agrees."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Sequence

import numpy as np

from llmnas.cost import costs
from llmnas.cost.memory import DEFAULT_WORKLOAD
from llmnas.pareto import Evaluation, Objectives
from llmnas.search.strategy import Problem
from llmnas.space import Architecture

_KEPT = 4096
"""Architectures whose costs are remembered: a search asks for the same ones several times in a row."""


class ClosedForms:
    """Which metrics are costs in closed form, as far as what was told says.

    A metric of the name of a cost may still be something else (another workload, a measured number). One whose
    every told value equals the closed form needs no model: it is computed.
    """

    def __init__(self, problem: Problem) -> None:
        self._base = problem.space.base
        self.workload = problem.budget.workload if problem.budget else DEFAULT_WORKLOAD
        named = costs(problem.space.smallest(), self._base, self.workload)
        self.names = [name for name in dict.fromkeys((*problem.objectives, *problem.constraints)) if name in named]
        self._row = functools.lru_cache(_KEPT)(self._counted)

    def check(self, evaluations: Sequence[Evaluation]) -> None:
        """Drop the metrics that some evaluation contradicts."""
        for evaluation in evaluations if self.names else ():
            found = costs(evaluation.arch, self._base, self.workload, self.names)
            self.names = [
                name
                for name in self.names
                if math.isclose(evaluation.metrics.get(name, found[name]), found[name], rel_tol=1e-9)
            ]

    def values(self, archs: Sequence[Architecture]) -> np.ndarray:
        """[archs, names]."""
        if not self.names:
            return np.zeros((len(archs), 0))
        return np.array([self._row(arch, tuple(self.names)) for arch in archs])

    def _counted(self, arch: Architecture, names: tuple[str, ...]) -> list[float]:
        return list(costs(arch, self._base, self.workload, names).values())


def quality_of(objectives: Objectives, closed: Collection[str]) -> str:
    """The objective that the others are costs of: `val_loss` where it is one, else the first that is not counted."""
    measured = [name for name in objectives if name not in closed]
    return "val_loss" if "val_loss" in objectives else next(iter(measured or objectives))
