"""What tells one content of a file from another: hashes that are made while it is written."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from llmnas.errors import UserError

BLOCK = 1 << 22
"""Bytes of a block that has a hash of its own, so that a large file is checked where it is read."""


@dataclass(frozen=True)
class Written:
    """A file as it was written."""

    path: Path
    bytes: int
    sha256: str


class Digest:
    """SHA-256 of a stream of bytes; with `blocks`, also of every `BLOCK` of them."""

    def __init__(self, *, blocks: bool = False) -> None:
        self.bytes = 0
        self._whole = hashlib.sha256()
        self._block = hashlib.sha256() if blocks else None
        self._blocks: list[str] = []

    def update(self, data: bytes | memoryview) -> None:
        """Add what comes next."""
        self._whole.update(data)
        view = memoryview(data).cast("B")
        while self._block is not None and len(view):
            piece = view[: BLOCK - self.bytes % BLOCK]
            self._block.update(piece)
            self.bytes += len(piece)
            view = view[len(piece) :]
            if self.bytes % BLOCK == 0:
                self._blocks.append(self._block.hexdigest())
                self._block = hashlib.sha256()
        self.bytes += len(view)

    def hexdigest(self) -> str:
        """Of everything."""
        return self._whole.hexdigest()

    def blocks(self) -> tuple[str, ...]:
        """Of every block, the last one as long as it is."""
        if self._block is None or self.bytes % BLOCK == 0:
            return tuple(self._blocks)
        return (*self._blocks, self._block.hexdigest())


class HashedStream:
    """Passes what is written on to a binary stream, and hashes it on the way.

    Attributes:
        failure: why a write failed, for callers to whom a library in between tells something else.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self.digest = stream, Digest()
        self.failure: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        """Write all of `data`."""
        try:
            self._stream.write(data)
        except OSError as error:
            self.failure = error
            raise
        self.digest.update(data)
        return memoryview(data).nbytes

    def flush(self) -> None:
        """Hand everything to the system."""
        self._stream.flush()


def content_hash(value: Any) -> str:
    """Hex SHA-256 of a JSON value, however it is laid out in a file."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file, read in chunks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def require_written(path: Path, size: int, digest: str, remedy: str) -> None:
    """Read a file whole and compare it with what was written.

    Raises:
        UserError: it is missing, or of another size or content; ends with the remedy.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; {remedy}")
    found = path.stat().st_size
    if found != size:
        raise UserError(f"{path}: damaged: {found:,} bytes instead of {size:,}; {remedy}")
    if sha256(path) != digest:
        raise UserError(f"{path}: damaged: its content is not what was written (SHA-256 differs); {remedy}")
