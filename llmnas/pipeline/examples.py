"""Write out what the package brings: a shipped config to edit, the scripts that start a run on GPUs and clusters."""

from __future__ import annotations

from pathlib import Path

from llmnas.config import example_config
from llmnas.errors import UserError
from llmnas.files import read_text, write_text
from llmnas.files.shipped import shipped_launch_files

LAUNCHERS = {"one-node": "one_node.sh", "many-nodes": "many_nodes.sh", "slurm": "slurm.sh"}
"""Kind of machine -> the script that starts a run there."""
_ONLY_FOR = {"hostfile.example": "many-nodes"}


def write_example(name: str, path: Path | None, *, force: bool) -> Path:
    """Write the shipped config of a name as it is; returns the file, by default `NAME.yaml` here.

    Raises:
        UserError: no config of that name, another suffix than a config's, or the file exists.
    """
    source = example_config(name, f"--example {name}: no such config")
    target = path or Path(source.name)
    if target.suffix not in {".yaml", ".yml"}:
        raise UserError(f"{target}: a config's name ends in .yaml")
    _require_free([target], force)
    write_text(target, read_text(source))
    return target


def write_launcher(kind: str, folder: Path, *, force: bool) -> list[Path]:
    """Write the script of a kind of machine and DeepSpeed's ZeRO files into a folder; returns what was written.

    Raises:
        UserError: no such kind, the folder is a file, or one of the files exists.
    """
    if kind not in LAUNCHERS:
        raise UserError(f"--launch {kind}: no such launcher; allowed: {', '.join(LAUNCHERS)}")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; name a folder")
    sources = [source for source in shipped_launch_files() if _belongs(source.name, kind)]
    targets = [folder / source.name for source in sources]
    _require_free(targets, force)
    folder.mkdir(parents=True, exist_ok=True)
    for source, target in zip(sources, targets, strict=True):
        write_text(target, source.read_text(encoding="utf-8"))
    return targets


def _belongs(name: str, kind: str) -> bool:
    """Whether a launch file is of use on a kind of machine: its script, and what all of them share."""
    return name == LAUNCHERS[kind] if name in LAUNCHERS.values() else _ONLY_FOR.get(name, kind) == kind


def _require_free(targets: list[Path], force: bool) -> None:
    taken = [target for target in targets if target.exists()]
    if taken and not force:
        raise UserError(f"{taken[0]}: exists already; choose another place, or replace it with --force")
