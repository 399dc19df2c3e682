"""Memory that was asked for and not there, in words: who asked, for how much, what to lower."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

from llmnas.errors import RunError

_ASKED = re.compile(
    r"tried to allocate ([\d.]+ (?:bytes|[KMGTP]iB))|unable to allocate ([\d.]+ [KMGTP]iB)", re.IGNORECASE
)
_SAYS_SO = re.compile(r"out of memory|can't allocate memory|cannot allocate memory|bad_alloc", re.IGNORECASE)


def asked_for(error: BaseException) -> str | None:
    """How much memory an error says was asked for in vain (`memory` where it says no number); None for other errors.

    Those of Python, numpy and torch's allocators, of main memory and of a GPU.
    """
    if not isinstance(error, MemoryError | RuntimeError) or isinstance(error, RecursionError):
        return None
    text = str(error)
    if not isinstance(error, MemoryError) and not _SAYS_SO.search(text):
        return None
    found = _ASKED.search(text)
    amount = next(filter(None, found.groups()), "") if found else ""
    number, _, unit = amount.partition(" ")
    return f"{int(number):,} bytes" if unit == "bytes" else amount or "memory"


@contextlib.contextmanager
def asking(what: str | Callable[[], str], advice: str) -> Iterator[None]:
    """Say what was being done when memory ran out.

    Args:
        what: was being done.
        advice: keys of the config, and what to do with them.

    Raises:
        RunError: memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        amount = asked_for(error)
        if amount is None:
            raise
        doing = what if isinstance(what, str) else what()
        raise RunError(f"{doing}: out of memory, {amount} could not be had; {advice}") from None
