"""YAML that means what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from llmnas.errors import UserError


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
        UserError: no such file, not UTF-8, not YAML, a key twice, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder, not a YAML file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start})") from None
    value = parse_yaml(text, str(path))
    if not isinstance(value, dict):
        raise UserError(f"{path}: must hold a mapping (key: value), found {type(value).__name__}")
    return value


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text; what is wrong with it is a `UserError` that begins with `where`."""
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 (a SafeLoader)
    except RecursionError:
        raise UserError(f"{where}: not YAML that can be read: nested too deep") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date or number that cannot be
        raise UserError(f"{where}: not YAML: {' '.join(str(error).split())}") from None
