"""The one search loop: ask, evaluate what is new, store, tell."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from llmnas.cost import Budget
from llmnas.errors import UserError, explain
from llmnas.pareto import PROPOSED, Archive, Constraints, Evaluation, Objectives
from llmnas.search.strategy import Options, Problem, Strategy
from llmnas.space import Architecture, SearchSpace

Evaluate = Callable[[Sequence[Architecture]], Sequence[Mapping[str, float]]]


class Entry(NamedTuple):
    """Where a strategy is: its module, and in it the names of its options and of its class."""

    module: str
    options: str
    strategy: str


STRATEGIES: dict[str, Entry] = {
    "random": Entry("llmnas.search.random", "RandomOptions", "RandomSearch"),
    "evolution": Entry("llmnas.search.evolution", "EvolutionOptions", "RegularizedEvolution"),
    "nsga2": Entry("llmnas.search.nsga2", "Nsga2Options", "Nsga2"),
    "local": Entry("llmnas.search.local", "LocalOptions", "LocalSearch"),
    "bayes": Entry("llmnas.search.bayes", "BayesOptions", "BayesianSearch"),
    "reinforce": Entry("llmnas.search.reinforce", "ReinforceOptions", "Reinforce"),
    "ofa": Entry("llmnas.search.ofa", "OfaOptions", "OnceForAll"),
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
) -> Archive:
    """Search `space` for the Pareto front of `objectives`.

    The same arguments give the same evaluations, whatever the global random generators do. With
    an existing `archive_path` the search is replayed: the strategy is asked again from the start
    and answered from the archive until it comes to what was not evaluated yet. So an interrupted
    search ends with the same evaluations as an uninterrupted one, and at most the batch that was
    being evaluated is evaluated again.

    Args:
        evaluate: measures a few architectures (at most `batch`), one mapping from metric to
            number each. NaN or infinity is a failed evaluation: stored, never on the front.
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

    Raises:
        UserError: a wrong argument, a budget that nothing meets, a damaged archive or that of another
            search, or results of `evaluate` without an objective. What `evaluate` raises passes through.
    """
    for name, value, least in (("evaluations", evaluations, 1), ("batch", batch, 1), ("seed", seed, 0)):
        if type(value) is not int:
            raise UserError(f"{name} must be a whole number, got {value!r}")
        if value < least:
            raise UserError(f"{name} must be at least {least}, got {value}")
    searcher, archive = open_search(
        space, strategy, objectives, budget, constraints, seed, archive_path=archive_path, options=options,
        batch=batch, first=first, evaluation=evaluation,
    )  # fmt: skip
    try:
        _run(searcher, evaluate, archive, evaluations, batch, first, on_progress)
    except BaseException:
        archive.close()
        raise
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
    batch: int,
    first: Sequence[Architecture],
    evaluation: Mapping[str, Any],
) -> tuple[Strategy, Archive]:
    """(the strategy before its first `ask`, the archive) of a `search` with the same arguments; raises as it does."""
    problem = Problem.of(space, objectives, constraints, budget, seed, first)
    chosen, searcher = start_strategy(strategy, options, problem)
    identity = {
        "space": hashlib.sha256(space.model_dump_json().encode()).hexdigest(),
        "strategy": strategy,
        "options": chosen.model_dump(mode="json"),
        "seed": seed,
        "batch": batch,
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
    evaluate: Evaluate,
    archive: Archive,
    evaluations: int,
    batch: int,
    first: Sequence[Architecture],
    on_progress: Callable[[Archive], None] | None,
) -> None:
    # distinct architectures in the order first asked, as in the archive
    order: dict[Architecture, None] = dict.fromkeys(first)
    barren = 0

    def measure(archs: list[Architecture]) -> None:
        """Evaluate those that are new, up to the limit: only this stops there, never the asking, so that a longer
        search begins with this one."""
        new = [arch for arch in archs if archive.get(arch) is None][: evaluations - _own(archive)]
        if new:
            results: Any = evaluate(new)
            if not isinstance(results, Iterable):
                raise UserError(f"evaluate: must return a mapping for each architecture in a list, got {results!r}")
            archive.append(new, list(results))
            if on_progress is not None:
                on_progress(archive)

    _require_replay(archive, list(order), 0)
    for i in range(0, len(order), batch):
        measure(list(order)[i : i + batch])
    while _own(archive) < evaluations:
        asked = searcher.ask(batch)
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
        measure(fresh)
        if _own(archive) < evaluations:
            searcher.tell([found for arch in asked if (found := archive.get(arch)) is not None])


def _proposed(evaluation: Evaluation | None) -> bool:
    """Whether the archive has it although no search asked for it."""
    return evaluation is not None and PROPOSED in evaluation.metrics


def _own(archive: Archive) -> int:
    """How many evaluations the search itself asked for."""
    return sum(not _proposed(evaluation) for evaluation in archive.evaluations)


def _require_replay(archive: Archive, fresh: list[Architecture], start: int) -> None:
    """The architectures first asked for from position `start` on must be those stored there."""
    own = [evaluation for evaluation in archive.evaluations if not _proposed(evaluation)]
    for arch, stored in zip(fresh, own[start:], strict=False):
        if arch != stored.arch:
            raise UserError(
                f"{archive.path}: evaluation {stored.index} is of {stored.arch.id}, but this version of llmnas and its "
                f"libraries asks for {arch.id} there; continue with the versions that began the search, or start anew"
            )
