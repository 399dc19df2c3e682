"""Writes docs/api.md from the docstrings of the public names: `python docs/make_api.py`."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

MODULES = (
    "llmnas",
    "llmnas.space",
    "llmnas.cost",
    "llmnas.search",
    "llmnas.pareto",
    "llmnas.archive",
    "llmnas.supernet",
    "llmnas.data",
)
PAGE = Path(__file__).parent / "api.md"
HEAD = """# Python API

Made from the docstrings by `python docs/make_api.py`. What is not here is no promise.
"""


def public(module: ModuleType) -> list[str]:
    """The names of `__all__`, else what the module defines itself."""
    own = [name for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
    return sorted(getattr(module, "__all__", None) or [name for name in own if not name.startswith("_")])


def signature(value: Any) -> str:
    """As written in the code; empty where there is none."""
    try:
        text = str(inspect.signature(value))
    except (TypeError, ValueError):
        return ""
    text = re.sub(r" at 0x[0-9a-f]+", "", text.replace("'", ""))  # where a default lives differs by process
    return text if len(text) < 400 else "(...)"


def members(value: type) -> list[tuple[str, Any]]:
    """Public methods and properties that the class defines itself and describes."""
    found = []
    for name, member in vars(value).items():
        inner = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if not name.startswith("_") and inspect.isfunction(inner) and inner.__doc__:
            found.append((name, inner))
    return found


def entry(name: str, value: Any) -> str:
    """One heading with signature and docstring, and a line for each method of a class."""
    text = f"### `{name}`\n\n"
    if inspect.isclass(value) or inspect.isfunction(value):
        text += f"```\n{name}{signature(value)}\n```\n\n"
        text += f"```text\n{inspect.getdoc(value)}\n```\n" if value.__doc__ else ""
    else:
        text += f"`{type(value).__name__}`\n"
    if inspect.isclass(value):
        lines = [f"- `{member}`: {(inspect.getdoc(inner) or '').splitlines()[0]}" for member, inner in members(value)]
        text += "\n" + "\n".join(lines) + "\n" if lines else ""
    return text


def render() -> str:
    """The whole page."""
    parts = [HEAD]
    shown: set[int] = set()
    for name in MODULES:
        module = importlib.import_module(name)
        parts.append(f"## {name}\n\n{inspect.getdoc(module)}\n")
        for item in public(module):
            value = getattr(module, item)
            if id(value) not in shown:
                shown.add(id(value))
                parts.append(entry(item, value))
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    print(PAGE, file=sys.stderr)
