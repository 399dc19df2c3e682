"""From a YAML file and `key.key=value` overrides to a config; where two configs differ."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llmnas.config.find import find_config
from llmnas.config.relative import write_paths_out
from llmnas.config.run import Config
from llmnas.errors import UserError, explain
from llmnas.files import parse_yaml, read_yaml, user_path


def _set(values: dict[str, Any], assignment: str) -> None:
    key, equals, text = assignment.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise UserError(f"--set {assignment}: must read key.key=value, for instance --set train.lr=0.001")
    value = parse_yaml(text, f"--set {assignment}")
    for part in path[:-1]:
        if values.get(part) is None:  # a stored config has every key, and null for a section that is off
            values[part] = {}
        inner = values[part]
        if not isinstance(inner, dict):
            raise UserError(f"--set {assignment}: {part} is not a section of the config")
        values = inner
    values[path[-1]] = value


def load_config(path: Path, overrides: list[str]) -> Config:
    """Read a YAML config, or the shipped one of that name, and apply `key.key=value` overrides.

    Relative paths in it are relative to its folder, or to the working directory where nothing of that name lies there;
    those of overrides to the working directory.

    Raises:
        UserError: one line with file, key, what is wrong and what is allowed.
    """
    found = find_config(user_path(path))
    values = read_yaml(found)
    write_paths_out(values, found.parent)
    return make_config(values, overrides, str(path))


def make_config(values: dict[str, Any], overrides: list[str], where: str) -> Config:
    """The config of plain values with `key.key=value` overrides; an error begins with `where`."""
    for assignment in overrides:
        _set(values, assignment)
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise explain(where, error, Config) from None
    for key in _truths_read_as_numbers(values, config):
        raise UserError(f"{where}: {key}: true or false where a number is expected")
    return config


def _truths_read_as_numbers(given: Any, read: Any, key: str = "") -> Iterator[str]:
    """Keys of booleans that stand for numbers: to Python `true` is 1, and an option meant otherwise would pass."""
    if isinstance(given, bool):
        if isinstance(read, (int, float)) and not isinstance(read, bool):
            yield key
    elif isinstance(given, dict):
        for name, value in given.items():
            inner = read.get(name) if isinstance(read, dict) else getattr(read, str(name), None)
            yield from _truths_read_as_numbers(value, inner, f"{key}.{name}" if key else str(name))
    elif isinstance(given, list) and isinstance(read, (list, tuple)):
        for i, (value, inner) in enumerate(zip(given, read, strict=False)):
            yield from _truths_read_as_numbers(value, inner, f"{key}[{i}]")


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """Where two nested configs differ: 'train.lr: 0.001 -> 0.002'."""
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for name in sorted(old.keys() | new.keys(), key=str):
            inner = f"{key}.{name}" if key else str(name)
            found += differences(old.get(name), new.get(name), inner)
        return found
    return [] if old == new else [f"{key}: {old} -> {new}"]
