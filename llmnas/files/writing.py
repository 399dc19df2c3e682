"""Files that are either whole or absent."""

from __future__ import annotations

import contextlib
import errno
import glob
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from llmnas.files.hashing import HashedStream, Written

Seal = Callable[[Written], None]
"""Notes what a file is going to be; called when all of it is on disk, before it gets its name."""


@contextlib.contextmanager
def atomic_open(path: Path, *, needs: int | None = None) -> Iterator[IO[bytes]]:
    """Write a file under a temporary name, fsync it, then rename it to `path`.

    A crash at any moment (kill -9, power, full disk) leaves the old file or none. What a process of this machine that
    is gone left under the temporary name is deleted: token files are as large as a disk allows only once.

    Args:
        path: the file to make.
        needs: bytes that it will have, for the message of a full disk.

    Raises:
        OSError: it cannot be written; names `path`, and what is missing where the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        if not _alive(left.name.removeprefix(f".{path.name}.").removesuffix(".partial")):
            left.unlink(missing_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with naming(path, needs), partial.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
        sync_dir(path.parent)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def hashed_open(path: Path, seal: Seal, *, needs: int | None = None) -> Iterator[HashedStream]:
    """`atomic_open` for a file whose content is hashed while it is written.

    `seal` is told before the file gets its name, so what it notes is there for every file that is: a crash between the
    two leaves a note of a file that is not there yet.
    """
    with atomic_open(path, needs=needs) as stream:
        hashed = HashedStream(stream)
        yield hashed
        stream.flush()
        os.fsync(stream.fileno())
        seal(Written(path, hashed.digest.bytes, hashed.digest.hexdigest()))


def _alive(process: str) -> bool:
    """Whether a process of this id runs here; True for what is no id."""
    if not process.isdecimal():
        return True
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


@contextlib.contextmanager
def naming(path: Path, needs: int | None = None) -> Iterator[None]:
    """Let the `OSError` of a write name its file, as that of an open does by itself, and say what a full disk lacks."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            error.strerror = f"{_FULL[error.errno]}{_lacking(path, needs)}"
        if error.filename is None:
            error.filename = str(path)
        raise


_FULL = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "no file may grow so large here (ulimit -f)",
}


def _lacking(path: Path, needs: int | None) -> str:
    """`: 5,000 bytes are needed, 200 are free`, as far as that is known."""
    facts = [] if needs is None else [f"{needs:,} bytes are needed"]
    with contextlib.suppress(OSError):
        facts.append(f"{shutil.disk_usage(path.parent).free:,} are free")
    return f": {', '.join(facts)}" if facts else ""


def sync_dir(path: Path) -> None:
    """Make a rename inside `path` durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_bytes(path: Path, data: bytes, seal: Seal | None = None) -> None:
    """Write `data` atomically; `seal` as in `hashed_open`."""
    with atomic_open(path, needs=len(data)) if seal is None else hashed_open(path, seal, needs=len(data)) as stream:
        stream.write(data)


def write_text(path: Path, text: str, seal: Seal | None = None) -> None:
    """Write `text` atomically as UTF-8; `seal` as in `hashed_open`."""
    write_bytes(path, text.encode(), seal)


def write_json(path: Path, value: Any, seal: Seal | None = None) -> None:
    """Write `value` atomically as indented JSON with a final newline; `seal` as in `hashed_open`."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n", seal)
