"""What `files.json` of a checkpoint says of its files, and whether they are still so."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import BaseModel as Model
from pydantic import ConfigDict, NonNegativeInt, PositiveInt, ValidationError

from llmnas.errors import UserError
from llmnas.files import Written, content_hash, read_json, require_written, write_json

_NAME = "files.json"


class Damaged(UserError):  # noqa: N818 (what the checkpoint is)
    """A checkpoint whose files are not what was written: the one before it may be whole."""


class StoredFile(Model):
    """One file; `rank` is the process that wrote it."""

    model_config = ConfigDict(extra="forbid")

    bytes: int
    sha256: str
    rank: NonNegativeInt = 0


class Manifest(Model):
    """The description of a checkpoint; `sha256` is that of everything else in it (older ones have none)."""

    model_config = ConfigDict(extra="forbid")

    step: int
    identity: str
    processes: PositiveInt
    zero_stage: NonNegativeInt
    files: dict[str, StoredFile]
    sha256: str | None = None

    def own_hash(self) -> str:
        """What `sha256` has to be."""
        return content_hash(self.model_dump(exclude={"sha256"}))


def write_manifest(
    path: Path, step: int, identity: str, processes: int, zero_stage: int, shares: Sequence[Sequence[Written]]
) -> None:
    """Describe what every process, by rank, wrote into the folder `path`."""
    files = {
        one.path.name: StoredFile(bytes=one.bytes, sha256=one.sha256, rank=rank)
        for rank, share in enumerate(shares)
        for one in share
    }
    manifest = Manifest(
        step=step, identity=identity, processes=processes, zero_stage=zero_stage, files=dict(sorted(files.items()))
    )
    write_json(path / _NAME, manifest.model_dump(exclude={"sha256"}) | {"sha256": manifest.own_hash()})


def read_manifest(path: Path, identity: str | None = None) -> Manifest:
    """The description of the checkpoint in the folder `path`.

    Raises:
        Damaged: it is missing, or not what was written.
        UserError: it is of another run than `identity` (None: of any).
    """
    try:
        manifest = Manifest.model_validate(read_json(path / _NAME))
    except (UserError, ValidationError):
        raise Damaged(f"{path / _NAME}: missing or damaged") from None
    if manifest.sha256 not in (None, manifest.own_hash()):
        raise Damaged(f"{path / _NAME}: damaged: its content is not what was written (SHA-256 differs)")
    if identity is not None and manifest.identity != identity:
        raise UserError(
            f"{path}: a checkpoint of another run (config {manifest.identity}, now {identity}): its space, data or "
            "training differ; use the config it was made with, or another --run-dir"
        )
    return manifest


def require_files(path: Path, manifest: Manifest, hashed: Iterable[str]) -> None:
    """`Damaged` where a file has another size, or one of those to be hashed another content."""
    for name, record in manifest.files.items():
        file = path / name
        found = file.stat().st_size if file.is_file() else None
        if found != record.bytes:
            raise Damaged(f"{file}: truncated: {record.bytes:,} bytes were written, {found or 'nothing'} found")
    for name in hashed:
        record = manifest.files[name]
        try:
            require_written(path / name, record.bytes, record.sha256, "")
        except UserError:
            raise Damaged(f"{path / name}: content changed since it was written") from None
