"""Checkpoints that are whole or absent: written aside, hashed, then renamed.

Layout: `checkpoints/step-00000200/` with DeepSpeed's files and `files.json`, the size and
SHA-256 of each. A folder without the final name is a save that was cut off.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
from pydantic import BaseModel as Model
from pydantic import ConfigDict, NonNegativeInt, PositiveInt, ValidationError
from safetensors.numpy import load_file, save

from llmnas.errors import UserError
from llmnas.files import atomic_open, read_json, sha256, sync_dir, write_json
from llmnas.train.engine import Engine
from llmnas.train.universal import convert

_MANIFEST = "files.json"

State = Mapping[str, np.ndarray]
"""What one part of a run learned, by name."""


class _File(Model):
    model_config = ConfigDict(extra="forbid")

    bytes: int
    sha256: str


class _Manifest(Model):
    model_config = ConfigDict(extra="forbid")

    step: int
    identity: str
    processes: PositiveInt
    zero_stage: NonNegativeInt
    files: dict[str, _File]


def _name(step: int) -> str:
    return f"step-{step:08d}"


def saved_steps(folder: Path) -> list[int]:
    """Steps with a complete checkpoint, ascending."""
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*") if path.suffix != ".partial")


def _save(engine: Engine, folder: Path, step: int, keep: int, identity: str, learned: Mapping[str, State]) -> None:
    """Save the state after `step` steps; collective.

    Args:
        identity: tells runs apart that must not mix.
        learned: kept beside the weights, a file each; the same on every rank.
    """
    partial = folder / f"{_name(step)}.partial"
    writer = engine.processes.rank == 0
    if writer:
        for cut_off in folder.glob("step-*.partial"):
            shutil.rmtree(cut_off)
        partial.mkdir(parents=True)
    engine.barrier()
    engine.save(folder, partial.name)
    engine.barrier()
    if writer:
        for name, state in learned.items():
            path = partial / f"{name}.safetensors"
            with atomic_open(path) as stream:  # safetensors' own writer calls a full disk no OSError
                stream.write(save(dict(state)))
        files = {p.name: _File(bytes=p.stat().st_size, sha256=sha256(p)) for p in sorted(partial.iterdir())}
        manifest = _Manifest(
            step=step, identity=identity, processes=engine.processes.size, zero_stage=engine.zero_stage, files=files
        )
        write_json(partial / _MANIFEST, manifest.model_dump())
        final = folder / _name(step)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        sync_dir(folder)
        for old in saved_steps(folder)[:-keep]:
            shutil.rmtree(folder / _name(old))
    engine.barrier()


class Learned(Protocol):
    """What a run learns besides weights."""

    def state(self) -> State:
        """Everything that was learned; the same on every rank. Collective."""
        ...

    def restore(self, state: State) -> None:
        """Inverse of `state`; empty where the checkpoint has none."""
        ...


class Checkpoints:
    """The checkpoints of one run; without a folder there are none.

    Args:
        identity: of this run, so that a checkpoint of another one is refused.
        learned: kept beside the weights, by the name of its file (a sampler's predictor, alpha, who got tokens).
    """

    def __init__(
        self, engine: Engine, folder: Path | None, keep: int, identity: str, learned: Mapping[str, Learned | None]
    ) -> None:
        self._engine, self._folder, self._keep, self._identity = engine, folder, keep, identity
        self._learned = {name: item for name, item in learned.items() if item is not None}
        self._saved = 0

    def restore(self) -> int:
        """Load the newest one and return the number of steps done; 0 where there is none. Collective."""
        if self._folder is None:
            return 0
        self._saved = _load(self._engine, self._folder, self._identity)
        if self._saved:
            for name, item in self._learned.items():
                item.restore(_load_learned(self._folder, self._saved, name))
        return self._saved

    def save(self, step: int) -> None:
        """Save the state after `step` steps, unless it is on disk; collective."""
        if self._folder is None or step == self._saved:
            return
        learned = {name: item.state() for name, item in self._learned.items()}
        found = {name: state for name, state in learned.items() if state}
        _save(self._engine, self._folder, step, self._keep, self._identity, found)
        self._saved = step


def newest(folder: Path | None) -> str:
    """Where the run can go on from, in words."""
    if folder is None:
        return "this run keeps no checkpoints"
    steps = saved_steps(folder)
    return f"the last good checkpoint is {folder / _name(steps[-1])}" if steps else f"no checkpoint in {folder} yet"


def _load(engine: Engine, folder: Path, identity: str) -> int:
    """Restore the newest checkpoint and return the number of steps done; 0 where there is none. Collective.

    A checkpoint of another number of processes goes through DeepSpeed's universal format.

    Raises:
        UserError: a file is truncated or changed, the checkpoint is of another run or of another ZeRO stage.
    """
    steps = saved_steps(folder)
    if not steps:
        return 0
    path = folder / _name(steps[-1])
    manifest = verify_checkpoint(path, identity)
    if manifest.zero_stage != engine.zero_stage:
        raise UserError(f"{path}: saved at ZeRO stage {manifest.zero_stage}, now {engine.zero_stage}; use the same")
    if engine.zero_stage == 0 or manifest.processes == engine.processes.size:
        engine.load(folder, path.name)
        return steps[-1]
    # not inside `path`, whose files are all in its manifest
    converted = folder / f"universal-{path.name}"
    if engine.processes.rank == 0:
        shutil.rmtree(converted, ignore_errors=True)
        convert(path, converted)
    engine.barrier()
    engine.load(folder, converted.name, universal=True)
    engine.barrier()
    if engine.processes.rank == 0:
        shutil.rmtree(converted)
    return steps[-1]


def _load_learned(folder: Path, step: int, name: str) -> dict[str, np.ndarray]:
    """What was learned until the checkpoint of `step`, which `_load` has verified; empty where nothing."""
    path = folder / _name(step) / f"{name}.safetensors"
    return load_file(path) if path.exists() else {}


def verify_checkpoint(path: Path, identity: str) -> _Manifest:
    """Compare every file with its recorded size and hash before anything is loaded."""
    try:
        manifest = _Manifest.model_validate(read_json(path / _MANIFEST))
    except (UserError, ValidationError):
        raise UserError(
            f"{path / _MANIFEST}: missing or damaged; delete {path} to go on from the checkpoint before it"
        ) from None
    if manifest.identity != identity:
        raise UserError(
            f"{path}: a checkpoint of another run (config {manifest.identity}, now {identity}): its space, data or "
            "training differ; use the config it was made with, or another --run-dir"
        )
    for name, record in manifest.files.items():
        file = path / name
        if not file.exists() or file.stat().st_size != record.bytes:
            found = file.stat().st_size if file.exists() else "nothing"
            raise UserError(
                f"{file}: truncated: {record.bytes:,} bytes were written, {found} found; "
                f"delete {path} to go on from the checkpoint before it"
            )
        if sha256(file) != record.sha256:
            raise UserError(f"{file}: content changed since it was written; delete {path} to go on from the one before")
    return manifest
