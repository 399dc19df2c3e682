"""What a report shows, and the same as plain JSON values that the page draws from.

The page gets numbers and names only, never markup: it makes every element itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from llmnas.pareto import Constraints, Evaluation, Objectives, front, hypervolume, violations
from llmnas.report.series import NUMBER, axis_label, loss_curves, thin
from llmnas.space import LayerSpec

_STEPS = 200  # points of the hypervolume curve
_FAILURES = 50  # failed evaluations that are listed one by one
_DIGITS = 9  # significant digits of a metric that is no whole number


@dataclass(frozen=True)
class Table:
    """A table of text, ready to be shown; `note` says below it what the numbers are."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""

    def __post_init__(self) -> None:
        wrong = [row for row in self.rows if len(row) != len(self.columns)]
        if wrong:
            raise ValueError(f"table {self.title!r} has {len(self.columns)} columns, but a row is {wrong[0]}")


@dataclass(frozen=True)
class Findings:
    """Everything that is known of a run.

    Attributes:
        summary: facts in words, shown on top.
        evaluations: of the search, in order; failed ones are counted and listed, not drawn.
        records: of metrics.jsonl, each with `stage`, `step` and metrics; the losses are drawn.
        tables: shown in the order given.
        correlation: of the K networks of the `correlate` stage `id`, `params`, `supernet_loss` (nats/token),
            `stand_alone_loss` [seeds][K], and `agreement`: tau, low, high of each score; None where it has not run.
        ladder: a rung a depth: `depth`, `layers` (of the whole network), `kept` (their indices), `params`, and in
            nats/token `loss` (of the kept layers), `first_layers`, `even_layers`, `alone` (one a seed, may be none).
    """

    title: str
    summary: Mapping[str, str]
    evaluations: Sequence[Evaluation]
    objectives: Objectives
    constraints: Constraints
    records: Sequence[Mapping[str, Any]]
    tables: Sequence[Table]
    correlation: Mapping[str, Any] | None = None
    ladder: Sequence[Mapping[str, Any]] = ()


def packed(evaluations: Sequence[Evaluation], after: int = 0) -> dict[str, Any]:
    """Evaluations from number `after` on, column by column.

    Layers that are equal are stored once: `specs` holds the different ones, `layers` their indices (-1: skipped),
    `unused` the fields of each that make no difference to it and are not drawn.
    A metric that an evaluation lacks is None. Failed evaluations are left out; `total` counts them too, and `last` is
    the architecture of the very last one.
    """
    good = [e for e in evaluations[after:] if e.failure is None]
    specs: dict[LayerSpec, int] = {}
    layers = [
        [-1 if spec is None else specs.setdefault(spec, len(specs)) for spec in e.arch.layers] for e in good
    ]  # fmt: skip
    names = dict.fromkeys(name for e in good for name in e.metrics)
    return {
        "after": after,
        "total": len(evaluations),
        "last": evaluations[-1].arch.id if evaluations else "",
        "index": [e.index for e in good],
        "id": [e.arch.id for e in good],
        "hidden_size": [e.arch.hidden_size for e in good],
        "layers": layers,
        "specs": [asdict(spec) for spec in specs],
        "unused": [[field.name for field in fields(spec) if not spec.uses(field.name)] for spec in specs],
        "metrics": {name: [_short(e.metrics.get(name)) for e in good] for name in names},
    }


def _short(value: float | None) -> float | None:
    if value is None or value.is_integer():
        return None if value is None else int(value)
    return float(f"{value:.{_DIGITS}g}")


def described(findings: Findings) -> dict[str, Any]:
    """Everything but the evaluations themselves, as JSON values: what changes as a whole while a run goes on."""
    objectives, done = findings.objectives, findings.evaluations
    names = dict.fromkeys([*objectives, *(name for e in done for name in e.metrics)])
    failed = [e for e in done if e.failure is not None]
    return {
        "title": findings.title,
        "summary": list(findings.summary.items()),
        "metrics": [[name, axis_label(name), objectives.get(name)] for name in names],
        "number": axis_label(NUMBER),
        "front": [e.index for e in front(done, objectives, findings.constraints)],
        "outside": [
            e.index for e in done if e.failure is None and any(violations(e.metrics, findings.constraints))
        ],
        "failed": {"count": len(failed), "first": [[e.index, e.arch.id, e.failure] for e in failed[:_FAILURES]]},
        "hypervolume": hypervolume_curve(done, objectives, findings.constraints),
        "curves": [thin(curve)._asdict() for curve in loss_curves(findings.records)],
        "tables": [asdict(table) for table in findings.tables],
        "correlation": _finite(findings.correlation),
        "ladder": _finite(list(findings.ladder)),
    }  # fmt: skip


def _finite(value: Any) -> Any:
    """The same JSON value with None for each number that is NaN or infinite, which JSON cannot say."""
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def hypervolume_curve(
    evaluations: Sequence[Evaluation], objectives: Objectives, constraints: Constraints
) -> dict[str, Any]:
    """The front's hypervolume after n evaluations, at most 200 values of n.

    In shares of the box between the best and the worst value that any successful evaluation has in each
    objective (Zitzler and Thiele's measure with the worst point as reference). Empty where the box has no volume.
    """
    good = [e for e in evaluations if e.failure is None]
    ends = {}
    for name, way in objectives.items():
        values = [e.metrics[name] for e in good]
        ends[name] = (min(values, default=0.0), max(values, default=0.0))[:: 1 if way == "min" else -1]
    box = math.prod(abs(worst - best) for best, worst in ends.values())
    if box == 0 or not math.isfinite(box):
        return {"evaluations": [], "share": [], "reference": {}}
    reference = {name: worst for name, (_, worst) in ends.items()}
    counts = sorted({int(n) for n in np.linspace(1, len(evaluations), min(_STEPS, len(evaluations)))})
    best: list[Evaluation] = []
    shares, seen = [], 0
    for count in counts:
        best = front([*best, *evaluations[seen:count]], objectives, constraints)
        shares.append(hypervolume(best, objectives, reference) / box)
        seen = count
    return {"evaluations": counts, "share": shares, "reference": reference}
