"""Checkpoints that are whole or absent: written aside, hashed, then renamed.

Layout: `checkpoints/step-00000200/` with DeepSpeed's files and `files.json`, the size and
SHA-256 of each. A folder without the final name is a save that was cut off.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from pydantic import BaseModel as Model
from pydantic import ConfigDict, ValidationError

from llmnas.errors import UserError
from llmnas.files import read_json, sha256, sync_dir, write_json
from llmnas.train.engine import Engine

_MANIFEST = "files.json"


class _File(Model):
    model_config = ConfigDict(extra="forbid")

    bytes: int
    sha256: str


class _Manifest(Model):
    model_config = ConfigDict(extra="forbid")

    step: int
    identity: str
    files: dict[str, _File]


def _name(step: int) -> str:
    return f"step-{step:08d}"


def saved_steps(folder: Path) -> list[int]:
    """Steps with a complete checkpoint, ascending."""
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*") if path.suffix != ".partial")


def save_checkpoint(engine: Engine, folder: Path, step: int, keep: int, identity: str) -> None:
    """Save the state after `step` steps; collective. `identity` tells runs apart that must not mix."""
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
        files = {p.name: _File(bytes=p.stat().st_size, sha256=sha256(p)) for p in sorted(partial.iterdir())}
        write_json(partial / _MANIFEST, _Manifest(step=step, identity=identity, files=files).model_dump())
        final = folder / _name(step)
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
        sync_dir(folder)
        for old in saved_steps(folder)[:-keep]:
            shutil.rmtree(folder / _name(old))
    engine.barrier()


def load_checkpoint(engine: Engine, folder: Path, identity: str) -> int:
    """Restore the newest checkpoint and return the number of steps done; 0 where there is none.

    Raises:
        UserError: a file is truncated or changed, or the checkpoint is of another run.
    """
    steps = saved_steps(folder)
    if not steps:
        return 0
    path = folder / _name(steps[-1])
    verify_checkpoint(path, identity)
    engine.load(folder, path.name)
    return steps[-1]


def verify_checkpoint(path: Path, identity: str) -> None:
    """Compare every file with its recorded size and hash before anything is loaded."""
    try:
        manifest = _Manifest.model_validate(read_json(path / _MANIFEST))
    except (UserError, ValidationError):
        raise UserError(
            f"{path / _MANIFEST}: missing or damaged; delete {path} to go on from the checkpoint before it"
        ) from None
    if manifest.identity != identity:
        raise UserError(f"{path}: a checkpoint of another run (config {manifest.identity}, now {identity})")
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
