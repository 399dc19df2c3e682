"""Stores of evaluations that several searches of one supernet share: nothing is measured twice."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmnas.archive import Archive
from llmnas.config import Config, SearchConfig
from llmnas.pareto import Constraints, Objectives, all_needed
from llmnas.pipeline.context import Context
from llmnas.pipeline.metrics import measured_on
from llmnas.space import Architecture

Evaluate = Callable[[Sequence[Architecture]], list[dict[str, float]]]


def store_of(context: Context, path: Path, objectives: Objectives, constraints: Constraints | None = None) -> Archive:
    """An archive of evaluations of this run's supernet on the windows of its `search` section.

    Raises:
        UserError: the file holds evaluations of another supernet, on other windows, or of other hardware.
    """
    limits = constraints or {}
    return Archive(path, objectives, limits, evaluation_identity(context, (*objectives, *limits)))


def measured_how(config: Config) -> dict[str, Any]:
    """What the numbers of a search depend on besides the supernet: its run folder is bound to that."""
    search = config.search
    return _loss_of(search) | measured_on(config, (*search.objectives, *search.constraints))


def evaluation_identity(context: Context, metrics: Iterable[str] = ()) -> dict[str, Any]:
    """What the loss of a candidate and these other metrics depend on.

    Halving is left out, which changes no number of those it keeps.
    """
    how = _loss_of(context.config.search)
    # what is off is left out: stores made before it existed go on
    loss = {name: how[name] for name in how if how[name] and name != "halving"}
    return {"supernet": context.identity} | loss | measured_on(context.config, metrics)


def _loss_of(options: SearchConfig) -> dict[str, Any]:
    return options.model_dump(mode="json", include={"windows", "sample", "recalibrate", "halving"})


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
            store.append(new, [all_needed(row) for row in evaluate(new)])
        rows = [store.get(arch) for arch in archs]
        return [dict.fromkeys(wanted, math.nan) | row.metrics for row in rows if row is not None]

    return answer
