"""Checkpoints that are whole or absent: written aside, hashed on the way, then renamed.

Layout: `checkpoints/step-00000200/` with DeepSpeed's files and `files.json`, the size and SHA-256 of each and which
process wrote it. A folder without the final name is a save that was cut off, or (`.damaged`, `.diverged`) one that was
given up.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from safetensors.numpy import load_file, save

from llmnas.errors import UserError
from llmnas.files import Written, sync_dir, write_bytes
from llmnas.train.agreement import all_of
from llmnas.train.checkpoint_manifest import Damaged, Manifest, read_manifest, require_files, write_manifest
from llmnas.train.engine import Engine
from llmnas.train.universal import convert

_LOG = logging.getLogger(__name__)

State = Mapping[str, np.ndarray]
"""What one part of a run learned, by name."""


def name_of(step: int) -> str:
    """The folder of the checkpoint after `step` steps."""
    return f"step-{step:08d}"


def saved_steps(folder: Path) -> list[int]:
    """Steps with a complete checkpoint, ascending."""
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*") if not path.suffix)


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay: the newest `last`, and the newest `last` of those at multiples of `every` steps.

    Those lie at the same steps however often a run was stopped, which saves it too.
    """

    last: int
    every: int = 0

    def of(self, steps: Sequence[int]) -> list[int]:
        """Those of `steps` (ascending) that stay."""
        regular = [step for step in steps if self.every and step % self.every == 0]
        return [step for step in steps if step in {*steps[-self.last :], *regular[-self.last :]}]


def _save(engine: Engine, folder: Path, step: int, keep: Keep, identity: str, learned: Mapping[str, State]) -> None:
    """Save the state after `step` steps; collective.

    Args:
        identity: tells runs apart that must not mix.
        learned: kept beside the weights, a file each; the same on every rank.
    """
    partial = folder / f"{name_of(step)}.partial"
    writer = engine.processes.rank == 0
    if writer:
        _begin(folder, partial)
    engine.barrier()
    written = list(engine.save(folder, partial.name))
    if writer:
        for name, state in learned.items():
            # safetensors' own writer calls a full disk no OSError
            write_bytes(partial / f"{name}.safetensors", save(dict(state)), written.append)
    shares = all_of(written, engine.processes.size)
    if writer:
        _finish(engine, folder, step, keep, identity, shares)
    engine.barrier()


def _begin(folder: Path, partial: Path) -> None:
    for cut_off in folder.glob("step-*.partial"):
        shutil.rmtree(cut_off)
    partial.mkdir(parents=True)


def _finish(
    engine: Engine, folder: Path, step: int, keep: Keep, identity: str, shares: Sequence[Sequence[Written]]
) -> None:
    """Describe the files of all processes, give the folder its name, drop older ones."""
    partial, final = folder / f"{name_of(step)}.partial", folder / name_of(step)
    write_manifest(partial, step, identity, engine.processes.size, engine.zero_stage, shares)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    sync_dir(folder)
    for old in set(saved_steps(folder)) - set(keep.of(saved_steps(folder))):
        shutil.rmtree(folder / name_of(old))
    for given_up in [*folder.glob("step-*.damaged"), *folder.glob("step-*.diverged")]:
        shutil.rmtree(given_up)


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
        self, engine: Engine, folder: Path | None, keep: Keep, identity: str, learned: Mapping[str, Learned | None]
    ) -> None:
        self._engine, self._folder, self._keep, self._identity = engine, folder, keep, identity
        self._learned = {name: item for name, item in learned.items() if item is not None}
        self._saved: int | None = None

    def restore(self) -> int:
        """Load the newest whole one and return the number of steps done; 0 where there is none. Collective.

        Raises:
            UserError: as `_load`.
        """
        if self._folder is None:
            return 0
        self._saved = _load(self._engine, self._folder, self._identity)
        if self._saved is None:
            return 0
        for name, item in self._learned.items():
            item.restore(_load_learned(self._folder, self._saved, name))
        return self._saved

    def damage(self, step: int) -> str | None:
        """What is wrong with the checkpoint of `step`, in words; None where it is whole. Collective.

        Raises:
            UserError: it is of another run.
        """
        return None if self._folder is None else _damage(self._engine, self._folder / name_of(step), self._identity)

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
    return f"the last good checkpoint is {folder / name_of(steps[-1])}" if steps else f"no checkpoint in {folder} yet"


def _load(engine: Engine, folder: Path, identity: str) -> int | None:
    """Restore the newest checkpoint that is whole and return its number of steps; None where there is none. Collective.

    One that is damaged is put aside, and that is said; the one before it counts. A checkpoint of another number of
    processes goes through DeepSpeed's universal format.

    Raises:
        UserError: all are damaged; or the newest is of another run, or of another ZeRO stage.
    """
    steps = saved_steps(folder)
    damages: dict[int, str] = {}
    for step in reversed(steps):
        damage = _damage(engine, folder / name_of(step), identity)
        if damage is None:
            _put_aside(engine, folder, damages, step)
            _restore(engine, folder / name_of(step), identity)
            return step
        damages[step] = damage
    if damages:
        raise UserError(
            f"{damages[steps[-1]]}; no whole checkpoint is left in {folder}: delete it to train from the beginning"
        )
    return None


def _damage(engine: Engine, path: Path, identity: str) -> str | None:
    """What is wrong with the files of a checkpoint, each hashed by one process only; collective."""
    rank, size = engine.processes.rank, engine.processes.size
    try:
        verify_checkpoint(path, identity, rank, size)
        complaint = None
    except Damaged as error:
        complaint = str(error)
    return next(filter(None, all_of(complaint, size)), None)


def _put_aside(engine: Engine, folder: Path, damages: Mapping[int, str], step: int) -> None:
    """Rename what is damaged, so that it is not kept in the place of a good one; collective."""
    for bad, complaint in damages.items():
        if engine.processes.rank == 0:
            aside = folder / f"{name_of(bad)}.damaged"
            shutil.rmtree(aside, ignore_errors=True)
            (folder / name_of(bad)).rename(aside)
            _LOG.warning("%s; moved to %s, going on from the checkpoint of step %d", complaint, aside.name, step)
    engine.barrier()


def _restore(engine: Engine, path: Path, identity: str) -> None:
    manifest = read_manifest(path, identity)
    if manifest.zero_stage != engine.zero_stage:
        raise UserError(f"{path}: saved at ZeRO stage {manifest.zero_stage}, now {engine.zero_stage}; use the same")
    if engine.zero_stage == 0 or manifest.processes == engine.processes.size:
        engine.load(path.parent, path.name)
        return
    # not inside `path`, whose files are all in its manifest
    converted = path.with_name(f"universal-{path.name}")
    if engine.processes.rank == 0:
        shutil.rmtree(converted, ignore_errors=True)
        convert(path, converted)
    engine.barrier()
    engine.load(path.parent, converted.name, universal=True)
    engine.barrier()
    if engine.processes.rank == 0:
        shutil.rmtree(converted)


def _load_learned(folder: Path, step: int, name: str) -> dict[str, np.ndarray]:
    """What was learned until the checkpoint of `step`, which `_load` has verified; empty where nothing."""
    path = folder / name_of(step) / f"{name}.safetensors"
    return load_file(path) if path.exists() else {}


def verify_checkpoint(path: Path, identity: str, rank: int = 0, size: int = 1) -> Manifest:
    """Compare the files of a checkpoint with what was written: all sizes, and content of this process's share.

    Args:
        path: the checkpoint.
        identity: of this run.
        rank: this process. The one of `size` that wrote a file hashes it; of another number of processes they take
            turns.
        size: all processes.

    Raises:
        Damaged: a file is missing, truncated or changed.
        UserError: a checkpoint of another run.
    """
    manifest = read_manifest(path, identity)
    own = manifest.processes == size
    names = [n for i, (n, f) in enumerate(manifest.files.items()) if (f.rank if own else i % size) == rank]
    require_files(path, manifest, names)
    return manifest
