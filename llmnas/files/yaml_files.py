"""YAML that means what it says, and no more of it than a person writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from llmnas.errors import UserError
from llmnas.files.opening import read_text

MOST_YAML = 1 << 18
"""Bytes of a YAML file; a config has a few thousand, and reading takes seconds for each million."""
MOST_VALUES = 100_000
"""Values of a YAML text when every alias is written out: twelve lines of aliases can stand for billions."""
DEEPEST = 50


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML in which a key written twice is an error instead of a silent override."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, list | dict | set):
                raise yaml.constructor.ConstructorError(None, None, "a key must be plain text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        UserError: no such file, not UTF-8, not YAML, a key twice, more than a person writes, or not a mapping.
    """
    value = parse_yaml(read_text(path, MOST_YAML), str(path))
    if not isinstance(value, dict):
        raise UserError(f"{path}: must hold a mapping (key: value), found {type(value).__name__}")
    return value


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text; what is wrong with it is a `UserError` that begins with `where`."""
    try:
        loader = _StrictLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _written_out(node, {}, 1)
        return loader.construct_document(node)
    except RecursionError:
        raise UserError(f"{where}: not YAML that can be read: nested too deep") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # a date or number that cannot be
        raise UserError(f"{where}: not YAML: {' '.join(str(error).split())}") from None


def _written_out(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """How many values a node stands for, every alias counted as often as it is written.

    Raises:
        YAMLError: too many, too deep, or a node within itself.
    """
    if depth > DEEPEST:
        raise yaml.YAMLError(f"nested deeper than {DEEPEST}")
    if id(node) in known:
        if not known[id(node)]:
            raise yaml.YAMLError("an alias stands within what it names")
        return known[id(node)]
    known[id(node)] = 0
    total = 1
    for part in [] if isinstance(node, yaml.ScalarNode) else node.value:
        for inner in part if isinstance(part, tuple) else (part,):
            total += _written_out(inner, known, depth + 1)
            if total > MOST_VALUES:
                raise yaml.YAMLError(f"more than {MOST_VALUES:,} values, with its aliases written out")
    known[id(node)] = total
    return total
