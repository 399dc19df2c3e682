"""A whole search as one call."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from llmnas.archive import Archive
from llmnas.cost import Budget
from llmnas.pareto import Constraints, Objectives
from llmnas.search.evaluating import Catch, Evaluate, results_of
from llmnas.search.session import Search
from llmnas.search.strategy import Problem, Strategy
from llmnas.space import Architecture, SearchSpace

_LOG = logging.getLogger(__name__)


def search(
    space: SearchSpace,
    evaluate: Evaluate,
    strategy: str | Strategy | Callable[[Problem], Strategy] = "nsga2",
    objectives: Objectives = {"val_loss": "min", "params": "min"},  # noqa: B006 (never written to)
    budget: Budget | None = None,
    constraints: Constraints = {},  # noqa: B006
    evaluations: int = 200,
    seed: int = 0,
    *,
    archive_path: str | Path | None = None,
    options: Mapping[str, Any] = {},
    batch: int = 8,
    first: Sequence[Architecture] = (),
    on_progress: Callable[[Archive], None] | None = None,
    evaluation: Mapping[str, Any] = {},
    catch: Catch = (),
) -> Archive:
    """Search `space` for the Pareto front of `objectives`.

    The same arguments give the same evaluations, whatever the global random generators do. With
    an existing `archive_path` the search is replayed: the strategy is asked again from the start
    and answered from the archive until it comes to what was not evaluated yet. So an interrupted
    search ends with the same evaluations as an uninterrupted one, and at most the batch that was
    being evaluated is evaluated again.

    `batch` may differ when a search is resumed: what is stored is replayed with the batches that it was made with, so
    it stays exact, and from there on the strategy is asked for as many as are wanted now. The same batches give the
    same search; with others the strategy knows more or less when it is asked, so what follows differs.

    Args:
        evaluate: measures a few architectures (at most `batch`), one mapping from metric to number each, or
            `Failed`. An objective or constrained metric that is NaN or infinite is a failed evaluation: stored,
            never on the front. Any other one that is not finite is left out.
        strategy: a key of `STRATEGIES`, or one of your own; see `Search`.
        budget: limits on closed-form costs; no architecture outside of it is ever evaluated.
        constraints: limits on measured metrics: an upper bound, or (low, high) with None for an
            open end. What misses them is stored, and never on the front.
        evaluations: how many different architectures to evaluate in all, those already in the
            archive included. Fewer where the space, or what of it the budget admits, has no more.
        archive_path: where the evaluations are kept; None keeps them in memory.
        options: the strategy's own options.
        first: members of the space within the budget to evaluate before the strategy is asked, and what it begins with.
        on_progress: called with the archive after every stored batch.
        evaluation: plain values that say how `evaluate` measures; an archive of other ones is refused.
        catch: exceptions of `evaluate` that end one evaluation instead of the search, a type or several: those of a
            batch that raised one are evaluated again one by one, and what raises then is stored as failed, with the
            exception as its reason. Any other exception passes through, and what was stored before it is kept.

    Raises:
        UserError: a wrong argument, a budget that nothing meets, a damaged archive or that of another
            search, or results of `evaluate` without an objective.
    """
    results_of(evaluate, catch)  # here, other than there, somebody has to measure
    started = Search(
        space, evaluate, strategy=strategy, objectives=objectives, budget=budget, constraints=constraints, seed=seed,
        archive_path=archive_path, options=options, batch=batch, first=first, evaluation=evaluation, catch=catch,
        on_progress=on_progress,
    )  # fmt: skip
    try:
        started.run(evaluations)
    except BaseException:
        started.close()
        raise
    if why := started.archive.why_empty():
        _LOG.warning("the front is empty. %s", why)
    return started.archive
