"""Plain values of an archive: what tells searches apart, and metrics as numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from llmnas.errors import UserError


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys. None is left out: an option that is added later, and off, changes nothing."""
    found: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            found |= flat(item, f"{prefix}{key}.")
        elif item is not None:
            found[f"{prefix}{key}"] = item
    return found


def plain(value: Any) -> Any:
    """A number or array of NumPy as JSON's; a `UserError` for what JSON cannot say."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise UserError(f"evaluation: {value!r} is no plain value; say it with text, numbers, lists and mappings")


def numbers(result: Mapping[str, float]) -> dict[str, float]:
    """Metrics as Python's floats, whatever kind of number they are."""
    try:
        if all(isinstance(name, str) and not isinstance(value, str | bytes) for name, value in result.items()):
            return {name: float(value) for name, value in result.items()}
    except (AttributeError, TypeError, ValueError, OverflowError):
        pass
    raise UserError(f"evaluate: must return a mapping from metric to number, got {result!r}")
