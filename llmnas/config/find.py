"""From what a person typed for a config to its file: a path, or the name of a shipped config."""

from __future__ import annotations

from pathlib import Path

from llmnas.errors import UserError
from llmnas.files.shipped import here_or_shipped, shipped_configs


def find_config(path: Path) -> Path:
    """The file of a config; a bare name without `.yaml` that is no file here is looked up among the shipped ones.

    Raises:
        UserError: a bare name that is neither.
    """
    if path.is_file() or path.suffix or len(path.parts) != 1:
        return here_or_shipped(path)
    return example_config(path.name, f"{path}: no such file, and no shipped config of that name")


def example_config(name: str, complaint: str) -> Path:
    """The file of the shipped config of a name.

    Raises:
        UserError: there is none; it begins with `complaint` and lists them all.
    """
    configs = shipped_configs()
    if name not in configs:
        raise UserError(f"{complaint}; shipped: {', '.join(configs)}")
    return configs[name]
