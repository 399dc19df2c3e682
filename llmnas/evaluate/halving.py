"""Successive halving of a batch of candidates: hopeless ones are not run on all windows.

Jamieson and Talwalkar 2016 ("Non-stochastic best arm identification and hyperparameter optimization", algorithm 1),
with windows of validation text as the resource. All candidates of a batch are run on few windows; the worst are
dropped, the others go on with more, until those left have been run on all. What was run is never run again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from llmnas.evaluate.evaluator import Part
from llmnas.evaluate.quality import QUALITY
from llmnas.pareto import (
    Constraints,
    Evaluation,
    Failed,
    Objectives,
    Result,
    all_needed,
    front,
    minimised,
    violations,
)
from llmnas.space import Architecture

HALVED = "halved_val_loss"
"""A metric of dropped candidates: the loss estimated from the windows that they were run on."""
_MEASURED = (*QUALITY, "val_loss_error")

Row = dict[str, float]


def rungs(windows: int, first: int, keep: float) -> list[int]:
    """Windows after which candidates are compared: `first`, each time more by 1 / keep, at last all.

    So every rung costs about the same: fewer candidates, more windows each.
    """
    found = [min(first, windows)]
    while found[-1] < windows:
        found.append(min(windows, max(found[-1] + 1, round(first * keep ** -len(found)))))
    return found


def ranked(found: Sequence[Evaluation], objectives: Objectives, constraints: Constraints) -> list[int]:
    """Indices of evaluations, the best first: front after front (Deb et al. 2002, section III), in each the least
    crowded first; then what misses a constraint, the least miss first."""
    left = list(found)
    order: list[int] = []
    while best := front(left, objectives, constraints):
        points = np.array([minimised(e.metrics, objectives) for e in best])
        crowding = np.lexsort((np.arange(len(best)), -_crowding(points)))
        order += [best[i].index for i in crowding]
        taken = {e.index for e in best}
        left = [e for e in left if e.index not in taken]
    return order + [e.index for e in sorted(left, key=lambda e: sum(violations(e.metrics, constraints)))]


def _crowding(points: np.ndarray) -> np.ndarray:
    """[n] crowding distance of a front [n, objectives]: room between the neighbours; infinite at the ends.

    pymoo's, times the number of objectives (a test compares them); but the door of pymoo is in `search`, which this
    room may not import.
    """
    found = np.zeros(len(points))
    for column in points.T:
        order = np.argsort(column, kind="stable")
        width = column[order[-1]] - column[order[0]]
        found[order[[0, -1]]] = math.inf
        if width > 0:
            found[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / width
    return found


@dataclass
class Halving:
    """Evaluates batches; callable as `search` wants it. With one rung every candidate is run on all windows.

    A candidate that is dropped is `Failed`, with its costs, `HALVED`, and the windows it was run on: it is on no
    front, and is never asked for again. Survivors have the numbers, bit for bit, that they would have without
    halving; one of which some number is not finite is `Failed` too.

    Args:
        run: losses of parts.
        metrics: of a candidate, from its losses on the first windows.
        others: metrics that do not come from the losses (latency), of all candidates.
        rungs: numbers of windows, increasing; the last is all.
        keep: share of the candidates that goes on from a rung, at least one.

    Attributes:
        windows: run so far, over all candidates.
        dropped: candidates so far.
    """

    run: Callable[[Sequence[Part]], Sequence[np.ndarray]]
    metrics: Callable[[Architecture, np.ndarray], Row]
    others: Callable[[Sequence[Architecture]], Sequence[Mapping[str, float]]]
    objectives: Objectives
    constraints: Constraints
    rungs: Sequence[int]
    keep: float = 1.0
    windows: int = field(default=0, init=False)
    dropped: int = field(default=0, init=False)

    def __call__(self, archs: Sequence[Architecture]) -> list[Result]:
        """Metrics of every architecture."""
        others = self.others(archs)
        rows: list[Row] = [{} for _ in archs]
        dropped: dict[int, Failed] = {}
        losses = [np.empty(0) for _ in archs]
        alive, first = list(range(len(archs))), 0
        for last in self.rungs:
            found = self.run([Part(archs[i], first, last) for i in alive])
            self.windows += len(alive) * (last - first)
            for i, more in zip(alive, found, strict=True):
                losses[i] = np.concatenate([losses[i], more])
                rows[i] = {**self.metrics(archs[i], losses[i]), **others[i]}
            if last < self.rungs[-1]:
                going_on, sound = self._survivors(archs, rows, alive)
                dropped |= {i: _dropped(rows[i], last) for i in sound if i not in going_on}
                alive = sorted(going_on)
            first = last
        self.dropped += len(dropped)
        return [dropped[i] if i in dropped else all_needed(row) for i, row in enumerate(rows)]

    def _survivors(
        self, archs: Sequence[Architecture], rows: list[Row], alive: list[int]
    ) -> tuple[set[int], list[int]]:
        """(those that go on, those that could: what is asked for of the others is not finite)."""
        named = (*self.objectives, *self.constraints)
        sound = [i for i in alive if all(math.isfinite(rows[i][name]) for name in named)]
        order = ranked([Evaluation(archs[i], rows[i], None, i) for i in sound], self.objectives, self.constraints)
        return set(order[: max(1, math.ceil(self.keep * len(sound)))]), sound


def _dropped(row: Row, windows: int) -> Failed:
    """What is left of a candidate that was run on so many windows: its costs, and an estimate of its loss."""
    costs = {name: value for name, value in row.items() if name not in _MEASURED}
    return Failed(f"dropped after {windows} windows", costs | {HALVED: row["val_loss"]}, windows)
