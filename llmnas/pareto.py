"""Evaluations, Pareto dominance, and what a front is empty for.

Conventions: an objective is a metric to be made small ("min") or great ("max"). A constraint is an
upper bound on a metric, or a pair (low, high) with None for an open end; both ends are inclusive.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import moocore  # type: ignore[import-untyped]
import numpy as np

from llmnas.errors import UserError
from llmnas.space import Architecture

Direction = Literal["min", "max"]
Objectives = Mapping[str, Direction]
Bound = float | Sequence[float | None]
Constraints = Mapping[str, Bound]


@dataclass(frozen=True)
class Evaluation:
    """What was measured of one architecture.

    Attributes:
        metrics: finite numbers by metric name; a metric that was NaN or infinite is left out.
        failure: why the evaluation failed, None where it did not. A failed one is never on a front.
        index: its position in the search, from 0.
        proposed: no search asked for it (`llmnas analyse` did): a search goes on as without it.
        dropped_after: windows of text after which successive halving dropped it, which is a failure; else None.
    """

    arch: Architecture
    metrics: dict[str, float]
    failure: str | None = None
    index: int = 0
    proposed: bool = False
    dropped_after: int | None = None


@dataclass(frozen=True)
class Failed:
    """What stands in place of an architecture's metrics where its evaluation failed.

    Attributes:
        reason: in words, one line.
        metrics: what was measured all the same.
        dropped_after: as in `Evaluation`.
    """

    reason: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    dropped_after: int | None = None


Result = Mapping[str, float] | Failed
"""What is measured of one architecture."""


def all_needed(metrics: Mapping[str, float]) -> Result:
    """The metrics of an evaluator whose every number counts: `Failed` where one of them is NaN or infinite."""
    wrong = [f"{name} is {value}" for name, value in metrics.items() if not math.isfinite(value)]
    return Failed(", ".join(wrong), metrics) if wrong else metrics


def check_objectives(objectives: Objectives) -> dict[str, Direction]:
    """The objectives themselves, or a `UserError` where there is none or a direction is unknown."""
    if not isinstance(objectives, Mapping):
        raise UserError(f'objectives: {objectives!r} names no directions; write them as {{"val_loss": "min"}}')
    if not objectives:
        raise UserError("objectives: none given; name at least one metric with min or max")
    for name, direction in objectives.items():
        if not isinstance(name, str) or direction not in get_args(Direction):
            raise UserError(f"objectives: {name}: {direction!r} is not a direction; allowed: min, max")
    return dict(objectives)


def _interval(name: str, bound: Bound) -> tuple[float, float]:
    """(low, high) of a constraint, open ends infinite."""
    plain = bound.tolist() if isinstance(bound, np.ndarray) else bound
    ends: Sequence[Any] = plain if isinstance(plain, list | tuple) else (None, plain)
    try:
        if any(isinstance(end, str | bytes | bool) for end in ends):
            raise TypeError
        low, high = ends
        low = -math.inf if low is None else float(low)
        high = math.inf if high is None else float(high)
    except (TypeError, ValueError):
        raise UserError(f"constraints: {name}: {bound!r} is neither an upper bound nor a (low, high) pair") from None
    if not low <= high or (math.isinf(low) and math.isinf(high)):
        raise UserError(f"constraints: {name}: {bound!r} bounds nothing; low <= high and one end must be a number")
    return low, high


def check_constraints(constraints: Constraints) -> dict[str, tuple[float, float]]:
    """Every constraint as (low, high) with infinite open ends; a `UserError` where one is malformed."""
    if not isinstance(constraints, Mapping):
        raise UserError(f'constraints: {constraints!r} has no bounds; write them as {{"latency_ms": 20}}')
    return {name: _interval(name, bound) for name, bound in constraints.items()}


def minimised(metrics: Mapping[str, float], objectives: Objectives) -> list[float]:
    """The objectives' values with the sign that makes less better, `[objectives]`."""
    return [metrics[name] * (1 if way == "min" else -1) for name, way in objectives.items()]


def violations(metrics: Mapping[str, float], constraints: Constraints) -> list[float]:
    """How far each constraint is missed, `[constraints]`, in units of the bound; 0 where it holds."""
    missed = []
    for name, bound in constraints.items():
        low, high = _interval(name, bound)
        value = metrics[name]
        end = low if value < low else high
        missed.append(0.0 if low <= value <= high else abs(value - end) / (abs(end) or 1.0))
    return missed


def dominates(a: Evaluation, b: Evaluation, objectives: Objectives) -> bool:
    """Whether `a` is at least as good as `b` in every objective and better in one; a failure loses to any success."""
    if a.failure is not None or b.failure is not None:
        return a.failure is None and b.failure is not None
    ours, theirs = minimised(a.metrics, objectives), minimised(b.metrics, objectives)
    return ours != theirs and all(x <= y for x, y in zip(ours, theirs, strict=True))


def front(
    evaluations: Sequence[Evaluation], objectives: Objectives, constraints: Constraints | None = None
) -> list[Evaluation]:
    """The evaluations that succeeded, meet every constraint, and that no other such one dominates.

    In the order given. Equal points stay together: architectures that measure the same are all on the front.
    """
    feasible = [e for e in evaluations if e.failure is None and not any(violations(e.metrics, constraints or {}))]
    if not feasible:
        return []
    points = np.array([minimised(e.metrics, objectives) for e in feasible])
    best = moocore.is_nondominated(points, keep_weakly=True)
    return [e for e, keep in zip(feasible, best, strict=True) if keep]


def hypervolume(evaluations: Sequence[Evaluation], objectives: Objectives, reference: Mapping[str, float]) -> float:
    """The volume that the evaluations dominate up to the reference point (exact; moocore).

    In the product of the objectives' units. Points that are not better than the reference in every
    objective add nothing.

    Raises:
        UserError: the reference names other metrics than the objectives, or is not finite.
    """
    if set(reference) != set(objectives) or not all(math.isfinite(value) for value in reference.values()):
        raise UserError(f"reference: needs one finite number for each of {sorted(objectives)}, got {dict(reference)}")
    points = [minimised(e.metrics, objectives) for e in evaluations if e.failure is None]
    if not points:
        return 0.0
    return float(moocore.hypervolume(np.array(points), ref=minimised(reference, objectives)))


def why_empty(evaluations: Sequence[Evaluation], constraints: Constraints) -> str:
    """Why nothing is on the front, as sentences; empty where something is.

    Either all evaluations failed: with the commonest reason. Or what succeeded misses a constraint: with the
    evaluation that is nearest to the constraints (the least sum of `violations`), and by how much it misses each.
    """
    done = [e for e in evaluations if e.failure is None]
    missed = [violations(e.metrics, constraints) for e in done]
    if not all(map(any, missed)):
        return ""
    if not evaluations:
        return "Nothing was evaluated."
    if not done:
        reason, count = Counter(str(e.failure) for e in evaluations).most_common(1)[0]
        return f"All {len(evaluations)} evaluations failed, {count} of them because {reason}."
    nearest, far = min(zip(done, missed, strict=True), key=lambda pair: sum(pair[1]))
    misses = [
        _miss(name, nearest.metrics[name], _interval(name, bound))
        for (name, bound), share in zip(constraints.items(), far, strict=True)
        if share
    ]
    return (
        f"None of the {len(done)} evaluations that succeeded (of {len(evaluations)}) meets all constraints; nearest is "
        f"{nearest.arch.id}: {', '.join(misses)}."
    )


def _miss(name: str, value: float, ends: tuple[float, float]) -> str:
    """`latency_ms = 12 is 2 above 10`."""
    low, high = ends
    end, side = (low, "below") if value < low else (high, "above")
    return f"{name} = {value:.6g} is {abs(value - end):.6g} {side} {end:.6g}"
