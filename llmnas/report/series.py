"""What the page and the pictures draw alike: axes, their labels with units, curves, colours."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from llmnas.pareto import Evaluation, Objectives

# Okabe and Ito (2008): told apart with every common kind of colour blindness.
GREY, VERMILION = "#9a9a9a", "#d55e00"
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")

NUMBER = "evaluation"  # the horizontal axis of a search with one objective

_LABELS = {
    NUMBER: "evaluation number",
    "val_loss": "validation loss (nats/token)",
    "val_loss_error": "standard error of the loss",
    "perplexity": "perplexity",
    "bits_per_byte": "bits per byte",
    "params": "parameters",
    "active_params": "active parameters",
    "flops_per_token": "FLOPs per token",
    "latency_ms": "latency (ms)",
    "prefill_latency_ms": "prefill latency (ms)",
    "decode_latency_ms": "decode latency (ms)",
    "memory_bytes": "memory (bytes)",
    "energy_j": "energy (J)",
}


class Curve(NamedTuple):
    """One line over optimizer steps."""

    label: str
    steps: list[int]
    values: list[float]


def axis_label(metric: str) -> str:
    """The metric in words, with its unit; one that llmnas does not know keeps its name."""
    return _LABELS.get(metric, metric)


def panels(objectives: Objectives) -> list[tuple[str, str]]:
    """(horizontal, vertical) metrics of each scatter: the first objective over every other one."""
    first, *others = objectives
    return [(other, first) for other in others] or [(NUMBER, first)]


def points(evaluations: Iterable[Evaluation], x: str, y: str) -> list[tuple[float, float, Evaluation]]:
    """(x, y, evaluation) from left to right, of those that have both numbers."""
    found = []
    for e in evaluations:
        values = {NUMBER: float(e.index), **e.metrics}
        if x in values and y in values:
            found.append((values[x], values[y], e))
    return sorted(found, key=lambda point: point[:2])


def loss_curves(records: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """A curve for every loss of every stage in the records of metrics.jsonl (nats/token), in order of appearance."""
    found: dict[tuple[str, str], list[tuple[int, float]]] = {}
    for record in records:
        for name, value in record.items():
            if "loss" in name and isinstance(value, int | float) and math.isfinite(value):
                found.setdefault((str(record["stage"]), name), []).append((int(record["step"]), float(value)))
    several = len({stage for stage, _ in found}) > 1
    curves = []
    for (stage, name), pairs in found.items():
        steps, values = zip(*sorted(pairs), strict=True)
        words = name.replace("_", " ")
        curves.append(Curve(f"{stage}: {words}" if several else words, list(steps), list(values)))
    return curves


def thin(curve: Curve, limit: int = 1500) -> Curve:
    """About `limit` points at most: the least and the greatest of each of equal stretches, so that no peak is lost."""
    if len(curve.steps) <= limit:
        return curve
    values = np.array(curve.values)
    kept = {0, len(values) - 1}
    for stretch in np.array_split(np.arange(len(values)), limit // 2):
        kept |= {int(stretch[values[stretch].argmin()]), int(stretch[values[stretch].argmax()])}
    order = sorted(kept)
    return Curve(curve.label, [curve.steps[i] for i in order], [curve.values[i] for i in order])
