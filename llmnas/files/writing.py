"""Files that are either whole or absent."""

from __future__ import annotations

import contextlib
import glob
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any


@contextlib.contextmanager
def atomic_open(path: Path) -> Iterator[IO[bytes]]:
    """Write a file under a temporary name, fsync it, then rename it to `path`.

    A crash at any moment (kill -9, power, full disk) leaves the old file or none. What a process of this machine that
    is gone left under the temporary name is deleted: token files are as large as a disk allows only once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        if not _alive(left.name.removeprefix(f".{path.name}.").removesuffix(".partial")):
            left.unlink(missing_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with naming(path), partial.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
        sync_dir(path.parent)
    finally:
        partial.unlink(missing_ok=True)


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
def naming(path: Path) -> Iterator[None]:
    """Let the `OSError` of a write (full disk) name its file, as that of an open does by itself."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def sync_dir(path: Path) -> None:
    """Make a rename inside `path` durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_text(path: Path, text: str) -> None:
    """Write `text` atomically as UTF-8."""
    with atomic_open(path) as stream:
        stream.write(text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` atomically as indented JSON with a final newline."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
