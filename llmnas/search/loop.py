"""The one search loop: ask, evaluate what is new, store, tell."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from llmnas.archive import Archive
from llmnas.cost import Budget
from llmnas.errors import UserError, explain
from llmnas.extras import require_modules
from llmnas.pareto import Constraints, Evaluation, Objectives, Result
from llmnas.search.arguments import require_kinds, whole_number
from llmnas.search.evaluating import Catch, Evaluate, results_of
from llmnas.search.strategy import Options, Problem, Strategy
from llmnas.space import Architecture, SearchSpace


class Entry(NamedTuple):
    """Where a strategy is: its module, in it the names of its options and its class; what it needs beyond the core."""

    module: str
    options: str
    strategy: str
    needs: tuple[str, ...] = ()


STRATEGIES: dict[str, Entry] = {
    "random": Entry("llmnas.search.random", "RandomOptions", "RandomSearch"),
    "evolution": Entry("llmnas.search.evolution", "EvolutionOptions", "RegularizedEvolution"),
    "nsga2": Entry("llmnas.search.nsga2", "Nsga2Options", "Nsga2"),
    "local": Entry("llmnas.search.local", "LocalOptions", "LocalSearch"),
    "bayes": Entry("llmnas.search.bayes", "BayesOptions", "BayesianSearch", ("torch", "botorch", "gpytorch")),
    "reinforce": Entry("llmnas.search.reinforce", "ReinforceOptions", "Reinforce", ("torch",)),
    "ofa": Entry("llmnas.search.ofa", "OfaOptions", "OnceForAll", ("torch", "safetensors")),
    "mip": Entry("llmnas.search.mip_search", "MipOptions", "MipSearch"),
}
"""Name -> where it is. Names, not classes: some strategies need torch, others pymoo, and a search (or a config that
is only checked) must not pay for the ones it does not use. `load_strategy` is the only place that imports them."""

_BARREN_ASKS = 20
_LOG = logging.getLogger(__name__)


def search(
    space: SearchSpace,
    evaluate: Evaluate,
    strategy: str = "nsga2",
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
        strategy: a key of `STRATEGIES`.
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
    evaluations, batch, seed = (
        whole_number(name, value, least)
        for name, value, least in (("evaluations", evaluations, 1), ("batch", batch, 1), ("seed", seed, 0))
    )
    measured = results_of(evaluate, catch)
    searcher, archive = open_search(
        space, strategy, objectives, budget, constraints, seed, archive_path=archive_path, options=options,
        first=first, evaluation=evaluation,
    )  # fmt: skip
    try:
        _run(searcher, measured, archive, evaluations, batch, first, on_progress)
    except BaseException:
        archive.close()
        raise
    if why := archive.why_empty():
        _LOG.warning("the front is empty. %s", why)
    return archive


def open_search(
    space: SearchSpace,
    strategy: str,
    objectives: Objectives,
    budget: Budget | None,
    constraints: Constraints,
    seed: int,
    *,
    archive_path: str | Path | None,
    options: Mapping[str, Any],
    first: Sequence[Architecture],
    evaluation: Mapping[str, Any],
) -> tuple[Strategy, Archive]:
    """(the strategy before its first `ask`, the archive) of a `search` with the same arguments; raises as it does."""
    require_kinds(space, strategy, budget, options, first, evaluation)
    problem = Problem.of(space, objectives, constraints, budget, seed, first)
    chosen, searcher = start_strategy(strategy, options, problem)
    identity = {
        "space": hashlib.sha256(space.model_dump_json().encode()).hexdigest(),
        "strategy": strategy,
        "options": chosen.model_dump(mode="json"),
        "seed": seed,
        "budget": asdict(budget) if budget else None,
        "first": [arch.id for arch in first] or None,
        "evaluation": evaluation or None,
    }
    outside = [
        arch.id for arch in first if not space.contains(arch) or (budget and not budget.admits(space.base, arch))
    ]
    if outside:
        raise UserError(f"first: {outside[0]} is not in the search space and budget")
    return searcher, Archive(archive_path or ":memory:", objectives, constraints, identity)


def load_strategy(name: str) -> tuple[type[Options], Callable[[Problem, Any], Strategy]]:
    """(options, constructor) of the strategy of this name.

    Raises:
        UserError: there is none.
    """
    if name not in STRATEGIES:
        raise UserError(f"strategy: {name!r} does not exist; allowed: {', '.join(STRATEGIES)}")
    entry = STRATEGIES[name]
    require_modules(*entry.needs, use=f"strategy {name}")
    module = import_module(entry.module)
    return getattr(module, entry.options), getattr(module, entry.strategy)


def options_of(strategy: str, options: Mapping[str, Any]) -> tuple[Options, Callable[[Problem, Any], Strategy]]:
    """(checked options, constructor) of the strategy of this name.

    Raises:
        UserError: there is no such strategy, it has no such option, or the option no such value.
    """
    kind, make = load_strategy(strategy)
    unknown = sorted(set(options) - set(kind.model_fields))
    if unknown:
        allowed = ", ".join(kind.model_fields) or "none"
        raise UserError(f"options: {strategy} has no {unknown[0]!r}; allowed: {allowed}")
    try:
        return kind.model_validate(dict(options)), make
    except ValidationError as error:
        raise explain(f"options of {strategy}", error) from None


def start_strategy(strategy: str, options: Mapping[str, Any], problem: Problem) -> tuple[Options, Strategy]:
    """(checked options, the strategy of this name before its first `ask`).

    Raises:
        UserError: as `options_of` does; an option that does nothing for this problem; a budget that nothing meets.
    """
    chosen, make = options_of(strategy, options)
    return chosen, make(problem, chosen)


def _run(
    searcher: Strategy,
    evaluate: Callable[[Sequence[Architecture]], list[Result]],
    archive: Archive,
    evaluations: int,
    batch: int,
    first: Sequence[Architecture],
    on_progress: Callable[[Archive], None] | None,
) -> None:
    """Ask, evaluate, store, tell. A turn takes time for its own batch, not for what the archive holds already."""
    # distinct architectures in the order first asked, as in the archive
    order: dict[Architecture, None] = dict.fromkeys(first)
    barren = 0

    def measure(archs: list[Architecture], asked: int) -> None:
        """Evaluate those that are new, up to the limit: only this stops there, never the asking, so that a longer
        search begins with this one."""
        new = [arch for arch in archs if archive.get(arch) is None][: evaluations - archive.asked]
        if new:
            archive.append(new, evaluate(new), batch=asked)
            if on_progress is not None:
                on_progress(archive)

    _require_replay(archive, list(order), 0)
    for i in range(0, len(order), batch):
        measure(list(order)[i : i + batch], batch)
    while archive.asked < evaluations:
        # what is replayed is asked for as it was, whatever the batch is now
        size = archive.batch_at(len(order)) or batch
        asked = searcher.ask(size)
        fresh = [arch for arch in dict.fromkeys(asked) if arch not in order and not _proposed(archive.get(arch))]
        _require_replay(archive, fresh, len(order))
        order.update(dict.fromkeys(fresh))
        barren = 0 if fresh else barren + 1
        if not asked or barren == _BARREN_ASKS:
            _LOG.warning(
                "search ends after %d of %d evaluations: no further architecture found in the space and budget",
                len(archive),
                evaluations,
            )
            return
        measure(fresh, size)
        if archive.asked < evaluations:
            searcher.tell([found for arch in asked if (found := archive.get(arch)) is not None])


def _proposed(evaluation: Evaluation | None) -> bool:
    """Whether the archive has it although no search asked for it."""
    return evaluation is not None and evaluation.proposed


def _require_replay(archive: Archive, fresh: list[Architecture], start: int) -> None:
    """The architectures first asked for from position `start` on must be those stored there."""
    for arch, stored in zip(fresh, archive.asked_from(start, len(fresh)), strict=False):
        if arch != stored.arch:
            raise UserError(
                f"{archive.path}: evaluation {stored.index} is of {stored.arch.id}, but this version of llmnas and its "
                f"libraries asks for {arch.id} there; continue with the versions that began the search, or start anew"
            )
