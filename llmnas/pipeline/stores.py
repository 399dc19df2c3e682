"""Stores of evaluations that several searches of one supernet share: nothing is measured twice."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmnas.pareto import Archive, Constraints, Objectives
from llmnas.pipeline.context import Context
from llmnas.space import Architecture

Evaluate = Callable[[Sequence[Architecture]], list[dict[str, float]]]


def store_of(context: Context, path: Path, objectives: Objectives, constraints: Constraints | None = None) -> Archive:
    """An archive of evaluations of this run's supernet on the windows of its `search` section.

    Raises:
        UserError: the file holds evaluations of another supernet or on other windows.
    """
    return Archive(path, objectives, constraints or {}, evaluation_identity(context))


def evaluation_identity(context: Context) -> dict[str, Any]:
    """What the loss of a candidate depends on."""
    options = context.config.search
    identity = {"supernet": context.identity, "windows": options.windows, "sample": options.sample}
    return identity | ({"recalibrate": options.recalibrate} if options.recalibrate else {})


def remembered(
    store: Archive,
    evaluate: Callable[[Sequence[Architecture]], Sequence[Mapping[str, float]]],
    keep: Sequence[str] = (),
) -> Evaluate:
    """`evaluate` that asks only for what the store does not hold, and stores it.

    Args:
        keep: metrics that are returned beside the store's objectives and constraints.
    """
    wanted = dict.fromkeys((*store.objectives, *store.constraints, *keep))

    def answer(archs: Sequence[Architecture]) -> list[dict[str, float]]:
        new = [arch for arch in dict.fromkeys(archs) if store.get(arch) is None]
        if new:
            store.append(new, list(evaluate(new)))
        rows = [store.get(arch) for arch in archs]
        return [dict.fromkeys(wanted, math.nan) | row.metrics for row in rows if row is not None]

    return answer
