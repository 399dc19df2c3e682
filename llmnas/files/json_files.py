"""JSON that is read back, ours and that of others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from llmnas.errors import UserError, explain
from llmnas.files.opening import MOST_TEXT, read_bytes

DEEPEST = 100
"""Lists and mappings within each other; files of models have a handful."""

T = TypeVar("T")


def parse_json(data: bytes | str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: not UTF-8, not JSON, a number that cannot be, or nested deeper than `DEEPEST`; one line.
    """
    try:
        value = json.loads(data.decode() if isinstance(data, bytes) else data)
    except RecursionError:
        raise ValueError(f"nested deeper than {DEEPEST}") from None
    level, depth = [value], 1
    while level := [inner for outer in level for inner in _within(outer)]:
        depth += 1
        if depth > DEEPEST:
            raise ValueError(f"nested deeper than {DEEPEST}")
    return value


def _within(value: Any) -> list[Any]:
    """The lists and mappings directly within a value."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [item for item in inner if isinstance(item, dict | list)]


def read_json(path: Path, most: int = MOST_TEXT) -> Any:
    """Read JSON that llmnas wrote; a missing or damaged file is a `UserError` that names it."""
    data = read_bytes(path, most)
    try:
        return parse_json(data)
    except ValueError as error:
        raise UserError(f"{path}: damaged JSON ({error}); delete it to have it made again") from None


def read_as(path: Path, kind: type[T]) -> T:
    """Read JSON that llmnas wrote and that must be a value of `kind`: a pydantic model or a typed mapping.

    Raises:
        UserError: as `read_json`, or a key that is missing or of another type; it says which.
    """
    return as_kind(read_json(path), kind, path)


def as_kind(value: object, kind: type[T], path: Path) -> T:
    """A value read from `path` as `kind`, else a `UserError` that names the key."""
    try:
        return TypeAdapter(kind).validate_python(value)
    except (ValidationError, RecursionError) as error:
        why = explain(str(path), error) if isinstance(error, ValidationError) else f"{path}: nested too deep"
        raise UserError(f"{why}; damaged? Delete it to have it made again") from None


def read_object(path: Path, most: int = MOST_TEXT) -> dict[str, Any]:
    """Read a JSON object that somebody else wrote: a model's `config.json`, settings of DeepSpeed.

    Raises:
        UserError: no such file, a folder, not JSON, or not an object.
    """
    data = read_bytes(path, most)
    try:
        value = parse_json(data)
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: must hold a JSON object, found {type(value).__name__}")
    return value
