"""The door to files that others made: regular files only, as much of them as was agreed, one line for all else."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import IO

from llmnas.errors import UserError

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
MOST_TEXT = 1 << 26  # bytes that are read at once where a caller names no limit


def open_regular(path: Path) -> IO[bytes]:
    """A regular file, opened for reading without ever waiting: a named pipe or a device is refused.

    Raises:
        UserError: no such file, another kind of file, or one that cannot be read.
    """
    try:
        _require_regular(path, os.stat(path).st_mode)  # before opening: that alone can rewind a tape
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise _unreadable(path, error) from None
    try:
        _require_regular(path, os.fstat(descriptor).st_mode)  # nobody has put another in its place meanwhile
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def regular(path: Path) -> Path:
    """The path of a regular file that can be read, for libraries that open files by name; raises as `open_regular`."""
    open_regular(path).close()
    return path


def read_bytes(path: Path, most: int = MOST_TEXT) -> bytes:
    """All bytes of a regular file; `UserError` where it has more than `most`, and as `open_regular` raises."""
    with open_regular(path) as stream:
        try:
            data = read_most(stream, most + 1)
        except OSError as error:
            raise _unreadable(path, error) from None
    if len(data) > most:
        raise UserError(f"{path}: more than {most:,} bytes, the most that is read of such a file")
    return data


def read_most(stream: IO[bytes], most: int) -> bytes:
    """At most so many bytes of a stream; no more memory than it has."""
    pieces: list[bytes] = []
    while most and (piece := stream.read(min(most, 1 << 20))):
        pieces.append(piece)
        most -= len(piece)
    return b"".join(pieces)


def read_text(path: Path, most: int = MOST_TEXT) -> str:
    """A regular file in UTF-8; `UserError` with the byte that is none, and as `read_bytes` raises."""
    try:
        return read_bytes(path, most).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start})") from None


def inside(folder: Path, name: object) -> Path:
    """The path of `name` below `folder`, for names that a file tells.

    Raises:
        UserError: no relative path, or one that leads out of the folder (also through a link).
    """
    if not isinstance(name, str) or not name or "\0" in name:
        raise UserError(f"{folder}: {name!r} is no name of a file in this folder")
    path = folder / name
    try:
        within = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError) as error:  # a loop of links
        raise UserError(f"{path}: cannot be read ({error})") from None
    if Path(name).is_absolute() or ".." in Path(name).parts or not within:
        raise UserError(f"{folder}: {name!r} leads out of this folder")
    return path


def _require_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = next((words for test, words in _KINDS if test(mode)), "no regular file")
        raise UserError(f"{path}: is {kind}, not a file")


def _unreadable(path: Path, error: OSError | ValueError) -> UserError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return UserError(f"{path}: no such file")
    return UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})")
