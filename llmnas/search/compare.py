"""Several strategies on one problem, several seeds: hypervolume against evaluations, with intervals and a paired test.

Shapes: S seeds, K checkpoints (numbers of evaluations).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import wilcoxon

from llmnas.archive import Archive
from llmnas.errors import UserError
from llmnas.pareto import Constraints, Evaluation, Objectives, front, hypervolume, violations
from llmnas.rng import generator

_RESAMPLES = 2000


class Curve(NamedTuple):
    """One strategy: the mean over seeds of its hypervolume's share of the best known one.

    Attributes:
        at: numbers of evaluations, [K].
        shares: of each seed, [S, K].
        low, high: 95 % bootstrap interval of the mean over seeds, [K].
        p_random: one-sided p of the paired Wilcoxon signed-rank test that it is better than random search, [K]; None
            where random search did not take part.
    """

    at: list[int]
    shares: np.ndarray
    low: np.ndarray
    high: np.ndarray
    p_random: list[float] | None

    @property
    def mean(self) -> np.ndarray:
        """[K]."""
        return np.asarray(self.shares.mean(0))


class Comparison(NamedTuple):
    """Every strategy's curve; `reference` and `best` (the hypervolume of all runs together) are common to all.

    Attributes:
        yardstick: (evaluations, share of `best`) of the long run that the strategies are measured by; None without one.
    """

    curves: dict[str, Curve]
    reference: dict[str, float]
    best: float
    yardstick: tuple[int, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return {
            "reference": self.reference,
            "best_hypervolume": self.best,
            "yardstick": dict(zip(("evaluations", "share"), self.yardstick, strict=True)) if self.yardstick else None,
            "strategies": {
                name: {
                    "evaluations": curve.at,
                    "mean": curve.mean.tolist(),
                    "low": curve.low.tolist(),
                    "high": curve.high.tolist(),
                    "p_against_random": curve.p_random,
                    "seeds": curve.shares.tolist(),
                }
                for name, curve in self.curves.items()
            },
        }


REPORTED = (50, 200, 1000)
"""Numbers of evaluations that every comparison reports."""


def checkpoints(evaluations: int, count: int = 24) -> list[int]:
    """About `count` numbers up to `evaluations`, evenly spaced in logarithm; those of `REPORTED` are among them."""
    spaced = np.geomspace(min(8, evaluations), evaluations, count).round().astype(int).tolist()
    return sorted({*spaced, *(n for n in REPORTED if n <= evaluations)})


def common_reference(
    runs: Sequence[Sequence[Evaluation]], objectives: Objectives, constraints: Constraints
) -> dict[str, float]:
    """The worst value of each objective among all feasible evaluations of all runs.

    Raises:
        UserError: nothing met the constraints.
    """
    feasible = [e for run in runs for e in _feasible(run, constraints)]
    if not feasible:
        raise UserError("compare: no evaluation of any strategy met the constraints; widen them or evaluate more")
    pick = {"min": max, "max": min}
    return {name: pick[way](e.metrics[name] for e in feasible) for name, way in objectives.items()}


def _feasible(run: Sequence[Evaluation], constraints: Constraints) -> list[Evaluation]:
    """Those that succeeded and meet the constraints."""
    return [e for e in run if e.failure is None and not any(violations(e.metrics, constraints))]


def shares(
    run: Sequence[Evaluation],
    objectives: Objectives,
    constraints: Constraints,
    reference: Mapping[str, float],
    best: float,
    at: Sequence[int],
) -> np.ndarray:
    """Hypervolume of the first n evaluations of a run over `best`, for every n in `at`; a run may be shorter."""
    volumes = [hypervolume(front(run[:n], objectives, constraints), objectives, reference) for n in at]
    return np.array(volumes) / (best or 1.0)


def compare(
    run: Callable[[str, int], Archive],
    strategies: Sequence[str],
    seeds: Sequence[int],
    evaluations: int,
    reference: Mapping[str, float] | None = None,
    on_run: Callable[[str, int], None] | None = None,
    yardstick: Sequence[Evaluation] = (),
) -> Comparison:
    """Run every strategy with every seed and compare how fast their fronts grow.

    Args:
        run: (strategy, seed) -> the archive of a search with `evaluations` evaluations.
        reference: of the hypervolume; None for the worst feasible value of each objective over all runs.
        on_run: called with (strategy, seed) before each search.
        yardstick: evaluations of one long run beside them (random search, say); their share is reported too.

    Raises:
        UserError: no strategy or seed, or one named twice.
    """
    for name, values in (("strategies", strategies), ("seeds", seeds)):
        if not values or len(set(values)) != len(values):
            raise UserError(f"compare: {name}: needs at least one and each once, got {list(values)}")
    found: dict[str, list[Sequence[Evaluation]]] = {}
    for strategy in strategies:
        for seed in seeds:
            if on_run is not None:
                on_run(strategy, seed)
            archive = run(strategy, seed)
            found.setdefault(strategy, []).append(archive.evaluations)
            goals, limits = archive.objectives, archive.constraints
            archive.close()
    everything = [*(evaluations_ for runs in found.values() for evaluations_ in runs), yardstick]
    point = dict(reference) if reference else common_reference(everything, goals, limits)
    union = [e for evaluations_ in everything for e in evaluations_]
    best = hypervolume(front(union, goals, limits), goals, point)
    at = checkpoints(evaluations)
    table = {
        name: np.array([shares(evaluations_, goals, limits, point, best, at) for evaluations_ in runs])
        for name, runs in found.items()
    }
    curves = {name: _curve(at, table[name], table.get("random")) for name in strategies}
    if not yardstick:
        return Comparison(curves, point, best)
    share = float(shares(yardstick, goals, limits, point, best, [len(yardstick)])[0])
    return Comparison(curves, point, best, (len(yardstick), share))


def _curve(at: list[int], found: np.ndarray, baseline: np.ndarray | None) -> Curve:
    rng = generator(0, "compare")
    chosen = rng.integers(len(found), size=(_RESAMPLES, len(found)))
    low, high = np.percentile(found[chosen].mean(1), [2.5, 97.5], axis=0)
    p_random = None
    if baseline is not None:
        pairs = zip(found.T, baseline.T, strict=True)
        p_random = [
            float(wilcoxon(ours, theirs, alternative="greater").pvalue) if (ours != theirs).any() else 1.0
            for ours, theirs in pairs
        ]
    return Curve(at, found, low, high, p_random)
