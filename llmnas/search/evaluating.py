"""What a search makes of its user's `evaluate`: checked results, and failures where exceptions are caught."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from llmnas.errors import UserError
from llmnas.pareto import Failed, Result
from llmnas.space import Architecture

Evaluate = Callable[[Sequence[Architecture]], Sequence[Result]]
Catch = type[BaseException] | tuple[type[BaseException], ...]

_LONGEST = 200
"""Characters of an exception's message that are kept as a reason."""


def results_of(evaluate: Evaluate, catch: Catch) -> Callable[[Sequence[Architecture]], list[Result]]:
    """`evaluate` that gives one result for each architecture; see `catch` of `search`.

    Raises:
        UserError: `evaluate` cannot be called, or `catch` holds something else than exceptions. When called: not
            one result for each architecture.
    """
    if not callable(evaluate):
        raise UserError(f"evaluate: must be a function of a list of architectures, got {evaluate!r}")
    caught = catch if isinstance(catch, tuple) else (catch,)
    strange = [kind for kind in caught if not (isinstance(kind, type) and issubclass(kind, BaseException))]
    if strange:
        raise UserError(f"catch: must be types of exceptions, got {strange[0]!r}")

    def called(archs: Sequence[Architecture]) -> list[Result]:
        found: Any = evaluate(archs)
        if not isinstance(found, Iterable):
            raise _WrongResultsError(f"evaluate: must return a mapping for each architecture in a list, got {found!r}")
        results = list(found)
        if len(results) != len(archs):
            raise _WrongResultsError(f"evaluate: returned {len(results)} results for {len(archs)} architectures")
        return results

    def guarded(archs: Sequence[Architecture]) -> list[Result]:
        try:
            return called(archs)
        except _WrongResultsError:  # a mistake in the function, not in what it measures
            raise
        except caught as error:
            if len(archs) == 1:
                return [Failed(reason(error))]
        return [result for arch in archs for result in guarded([arch])]

    return guarded


class _WrongResultsError(UserError):
    """The results are not what `evaluate` must return."""


def reason(error: BaseException) -> str:
    """An exception in one line: its type, and the beginning of its message."""
    text = " ".join(str(error).split())
    short = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    return f"{type(error).__name__}: {short}" if short else type(error).__name__
