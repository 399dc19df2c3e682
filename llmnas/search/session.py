"""A search as an object: it proposes architectures, is told what they measured, and goes on where it was."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

from llmnas.archive import Archive
from llmnas.cost import Budget
from llmnas.errors import UserError
from llmnas.pareto import Constraints, Evaluation, Objectives, Result
from llmnas.report.notebook import Picture
from llmnas.search.arguments import require_kinds, whole_number
from llmnas.search.dialogue import Dialogue, Trial
from llmnas.search.evaluating import Catch, Evaluate, results_of
from llmnas.search.strategies import start_strategy
from llmnas.search.strategy import Problem, Strategy
from llmnas.space import Architecture, SearchSpace

if TYPE_CHECKING:
    import pandas

_LOG = logging.getLogger(__name__)


@runtime_checkable
class Measured(Protocol):
    """A search space with a way to measure its members: a trained supernet."""

    space: SearchSpace

    def measure(self, archs: Sequence[Architecture]) -> Sequence[Result]:
        """One result for each architecture."""
        ...


class Search:
    """Search a space for the Pareto front of some objectives.

    `run` measures by itself; `ask` and `tell` let others measure, as many at once and in whatever order they like. The
    same arguments and the same order of asks and tells give the same proposals. With an existing `archive_path`
    the search goes on: what was asked for and not told is in `pending`, and is handed out, or measured, again first.
    A search belongs to the thread that made it; only `stop` may be called from another.

    Args:
        space: a search space, or what has one and measures its members (a trained supernet).
        evaluate: measures a few architectures (at most `batch`), one mapping from metric to number each, or `Failed`.
            None where `space` measures, or where results are told.
        strategy: a key of `STRATEGIES`, or your own: a function of the `Problem` that gives a `Strategy`, such as a
            class, or a `Strategy` that was told nothing yet.
        objectives, budget, constraints, seed, options, batch, first, evaluation, catch: see `search`.
        archive_path: where evaluations and the log are kept; None keeps them in memory.
        on_progress: called with the archive after every stored batch of `run`.

    Attributes:
        archive: every evaluation.

    Raises:
        UserError: a wrong argument, a budget that nothing meets, a damaged archive or that of another search.
    """

    def __init__(
        self,
        space: SearchSpace | Measured,
        evaluate: Evaluate | None = None,
        *,
        strategy: str | Strategy | Callable[[Problem], Strategy] = "nsga2",
        objectives: Objectives = {"val_loss": "min", "params": "min"},  # noqa: B006 (never written to)
        budget: Budget | None = None,
        constraints: Constraints = {},  # noqa: B006
        seed: int = 0,
        archive_path: str | Path | None = None,
        options: Mapping[str, Any] = {},
        batch: int = 8,
        first: Sequence[Architecture] = (),
        evaluation: Mapping[str, Any] = {},
        catch: Catch = (),
        on_progress: Callable[[Archive], None] | None = None,
    ) -> None:
        if not isinstance(space, SearchSpace) and isinstance(space, Measured):
            evaluate, space = evaluate or space.measure, space.space
        self.batch, seed = whole_number("batch", batch, 1), whole_number("seed", seed, 0)
        require_kinds(space, budget, options, first, evaluation)
        self._evaluate = None if evaluate is None else results_of(evaluate, catch)
        problem = Problem.of(space, objectives, constraints, budget, seed, first)
        self.strategy, chosen, started = _started(strategy, options, problem)
        identity = {
            "space": hashlib.sha256(space.model_dump_json().encode()).hexdigest(),
            "strategy": self.strategy,
            "options": chosen,
            "seed": seed,
            "budget": asdict(budget) if budget else None,
            "first": [arch.id for arch in first] or None,
            "evaluation": evaluation or None,
        }
        _require_members(first, space, budget)
        self._on_progress = on_progress
        self._handed: set[int] = set()
        self._stopped = Event()
        self.archive = Archive(archive_path or ":memory:", objectives, constraints, identity)
        try:
            self._dialogue = Dialogue(started, self.archive, first, self.batch)
        except BaseException:
            self.archive.close()
            raise

    def ask(self, n: int = 1) -> list[Trial]:
        """At most `n` trials to be measured elsewhere; fewer, or none, where the space has no more within the budget.

        They are in the archive's log when this returns. The strategy may be asked while trials are pending.
        """
        n = whole_number("n", n, 1)
        free = [trial for trial in self.pending if trial.id not in self._handed][:n]
        while len(free) < n and (more := self._dialogue.propose(n - len(free))):
            free += more
        self._dialogue.flush()
        self._handed |= {trial.id for trial in free}
        return free

    def tell(self, trial: Trial | int, result: Result) -> Evaluation:
        """Store what was measured of a pending trial, in any order, and let the strategy hear it.

        Args:
            trial: as `ask` gave it, or its id.
            result: metrics by name, or `Failed`.

        Raises:
            UserError: there is no such trial, it was told already, it is of another search, or the result has no
                objective.
        """
        found = self._dialogue.find(whole_number("trial", trial.id if isinstance(trial, Trial) else trial, 0))
        if isinstance(trial, Trial) and trial != found:
            raise UserError(f"trial {trial.id} is of {found.arch.id} in this search, not of {trial.arch.id}")
        (evaluation,) = self._dialogue.store([found], [result], complete=False)
        return evaluation

    def step(self, most: int | None = None) -> list[Evaluation]:
        """Propose a batch, measure it, store it, and let the strategy hear it; what is pending comes first.

        Args:
            most: measure at most so many; what is left of the batch stays pending.

        Returns:
            What was measured; nothing where the strategy proposed nothing new.

        Raises:
            UserError: there is no `evaluate`, or it returned something else than results.
        """
        if self._evaluate is None:
            raise UserError("step and run need evaluate=...; without one, use ask and tell")
        trials = (self._dialogue.oldest() or self._dialogue.propose(self.batch))[: min(self.batch, most or self.batch)]
        if not trials:
            return []
        results = self._evaluate([trial.arch for trial in trials])
        found = self._dialogue.store(trials, results, complete=True)
        if self._on_progress is not None:
            self._on_progress(self.archive)
        return found

    def run(self, evaluations: int, *, timeout: float | None = None) -> Self:
        """`step` until so many different architectures are evaluated in all, those of earlier starts included.

        Ends earlier where the space, or what of it the budget admits, has no more; at a `stop`; or before the first
        step that would begin `timeout` seconds from now or later.
        """
        evaluations = whole_number("evaluations", evaluations, 1)
        end = None if timeout is None else time.monotonic() + timeout
        self._stopped.clear()
        while self.archive.asked < evaluations and not self._dialogue.exhausted and not self._stopped.is_set():
            if end is not None and time.monotonic() >= end:
                break
            self.step(evaluations - self.archive.asked)
        if self._dialogue.exhausted and self.archive.asked < evaluations:
            _LOG.warning(
                "search ends after %d of %d evaluations: no further architecture found in the space and budget",
                len(self.archive),
                evaluations,
            )
        return self

    def stop(self) -> None:
        """Let `run` end after the step that it is in; from a callback, a signal handler or another thread."""
        self._stopped.set()

    @property
    def pending(self) -> list[Trial]:
        """The trials whose results are not told yet, in the order of their ids."""
        return self._dialogue.pending

    @property
    def front(self) -> list[Evaluation]:
        """The Pareto front within the constraints."""
        return self.archive.front()

    def best(self, metric: str | None = None) -> Evaluation:
        """See `Archive.best`."""
        return self.archive.best(metric)

    def to_frame(self) -> pandas.DataFrame:
        """See `Archive.to_frame`."""
        return self.archive.to_frame()

    def plot(self) -> Picture:
        """See `Archive.plot`."""
        return self.archive.plot()

    def __repr__(self) -> str:
        return f"Search({self.strategy}; {len(self.pending)} pending; {self.archive!r})"

    def _repr_html_(self) -> str:
        return self.archive._repr_html_()

    def close(self) -> None:
        """Close the archive; what was read stays readable."""
        self.archive.close()


def _started(
    strategy: str | Strategy | Callable[[Problem], Strategy], options: Mapping[str, Any], problem: Problem
) -> tuple[str, dict[str, Any], Strategy]:
    """(name, checked options, the strategy before its first `ask`)."""
    if isinstance(strategy, str):
        chosen, started = start_strategy(strategy, options, problem)
        return strategy, chosen.model_dump(mode="json"), started
    if options:
        raise UserError("options: are for strategies by name; give your own theirs when you make it")
    named = getattr(strategy, "__qualname__", type(strategy).__qualname__)
    own: Any = strategy(problem) if callable(strategy) else strategy
    if not _is_strategy(own):
        raise UserError(f"strategy: must be a name, or something with ask(n) and tell(evaluations), got {strategy!r}")
    return named, {}, own


def _is_strategy(value: Any) -> bool:
    return not isinstance(value, type) and all(callable(getattr(value, name, None)) for name in ("ask", "tell"))


def _require_members(first: Sequence[Architecture], space: SearchSpace, budget: Budget | None) -> None:
    outside = [arch for arch in first if not space.contains(arch) or (budget and not budget.admits(space.base, arch))]
    if outside:
        raise UserError(f"first: {outside[0].id} is not in the search space and budget")
