"""What may be given to a search: a wrong kind of value is one line, not a traceback from somewhere inside."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

from llmnas.cost import Budget
from llmnas.errors import UserError
from llmnas.space import Architecture, SearchSpace


def whole_number(name: str, value: Any, least: int) -> int:
    """The value as an int, NumPy's integers too.

    Raises:
        UserError: no integer, or one below `least`.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise UserError(f"{name} must be a whole number, got {value!r}")
    if number < least:
        raise UserError(f"{name} must be at least {least}, got {number}")
    return number


def require_kinds(space: Any, budget: Any, options: Any, first: Any, evaluation: Any) -> None:
    """Refuse arguments of `search` that are of another kind than it wants."""
    wanted = {
        "space": (space, SearchSpace, "a SearchSpace (SearchSpace.from_yaml(path) reads one)"),
        "budget": (budget, Budget | None, "a Budget or None, for instance Budget(max_params=1_000_000)"),
        "options": (options, Mapping, "a mapping from option to value"),
        "evaluation": (evaluation, Mapping, "a mapping of plain values"),
        "first": (first, Sequence, "a list of architectures"),
    }
    for name, (value, kind, what) in wanted.items():
        if not isinstance(value, kind):
            raise UserError(f"{name}: must be {what}, got {value!r}")
    strange = [value for value in first if not isinstance(value, Architecture)]
    if strange:
        raise UserError(f"first: must be a list of architectures, found {strange[0]!r} in it")
