"""A space with fewer choices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from llmnas.space.architecture import DIMENSIONS
from llmnas.space.space import Depth, SearchSpace


def restricted(space: SearchSpace, only: Mapping[str, tuple[Any, ...]]) -> SearchSpace:
    """The space with some decisions restricted to some of their choices.

    Raises:
        ValueError: no such decision, or a choice that the space does not have.
    """
    names = ("hidden_size", "depth", *DIMENSIONS)
    changes: dict[str, Any] = {}
    for name, choices in only.items():
        if name not in names:
            raise ValueError(f"{name!r} is no decision; allowed: {', '.join(names)}")
        whole = getattr(space, name)
        known = whole if name == "hidden_size" else whole.choices
        wrong = [choice for choice in choices if choice not in known]
        if wrong or not choices:
            what = f"{wrong[0]!r} is no choice of the space" if wrong else "no choice is left"
            raise ValueError(f"{name}: {what}; allowed: {', '.join(map(str, known))}")
        left = tuple(choice for choice in known if choice in choices)
        if name == "depth":
            changes[name] = Depth(choices=left, policy=whole.policy)
        else:
            changes[name] = left if name == "hidden_size" else whole.model_copy(update={"choices": left})
    return space.model_copy(update=changes)
