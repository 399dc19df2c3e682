"""The ways a command ends before its end, each one line for a person to read."""

from __future__ import annotations

from dataclasses import is_dataclass
from typing import Any, get_args, get_type_hints

from pydantic import BaseModel, ValidationError


class UserError(Exception):
    """Bad input: says what is wrong, where, and what is allowed. The CLI exits with 2."""


class RunError(Exception):
    """A run that failed although its input was good. The CLI exits with 1."""


class Preempted(Exception):  # noqa: N818 (not an error: the run goes on later)
    """The run was asked to stop (SIGTERM) and has saved its state. The CLI exits with 75 (EX_TEMPFAIL): start again."""


def explain(where: str, error: ValidationError, model: type[BaseModel] | None = None) -> UserError:
    """Turn pydantic's report into one line: file, dotted key, what is wrong with it, and the keys of `model` there."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:
        allowed = _keys(model, first["loc"][:-1])
        message = f"unknown key; allowed: {', '.join(allowed)}" if allowed else "unknown key"
    elif first["type"] == "missing":
        message = "missing key"
    elif first["type"] not in {"value_error", "literal_error"}:
        message = f"{message}, got {_short(first['input'])}"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return UserError(f"{where}: {f'{key}: ' if key else ''}{message}{more}")


def _short(value: Any) -> str:
    """The value as Python writes it, or its beginning: a file may hold anything."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # an integer of too many digits
        return f"a huge {type(value).__name__}"
    return text if len(text) <= 200 else f"{text[:200]}..."


def _keys(kind: Any, place: tuple[int | str, ...]) -> list[str]:
    """What may be written at a place within a model; empty where that cannot be told."""
    for part in place:
        if isinstance(part, str):  # not a place in a list
            kind = _fields(kind).get(part)
    return list(_fields(kind))


def _fields(kind: Any) -> dict[str, Any]:
    """Name -> type of the fields of a model or a dataclass, also of one that may be absent (`X | None`)."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    if isinstance(kind, type) and is_dataclass(kind):
        return get_type_hints(kind)
    return next((found for part in get_args(kind) if (found := _fields(part))), {})
