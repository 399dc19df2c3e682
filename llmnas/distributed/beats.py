"""Signs of life of the processes of a launch: a small file each, written and touched again and again.

The files lie in the run folder, which all processes share. Clocks of two hosts are never compared: a reader sees
whether a file's time changes.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from llmnas.distributed.lock import runs, space, started
from llmnas.errors import UserError
from llmnas.files import open_regular, parse_json, write_bytes

_MOST = 1 << 14  # bytes of a file


@dataclass(frozen=True)
class Beat:
    """What a process says of itself.

    Attributes:
        launch: the same for all processes that were started together.
        rank: of the process.
        host: where it runs.
        process: its number there.
        started: when it began (clock ticks since boot; 0 where that is not known), so that a number used again is not
            taken for it.
        marks: what it has done that others wait for.
        ended: why it ended before its end; None while it runs.
        space: where its number means this process.
    """

    launch: str
    rank: int
    host: str
    process: int
    started: int
    marks: tuple[str, ...] = ()
    ended: str | None = None
    space: str = ""

    def __str__(self) -> str:
        """In words."""
        return f"rank {self.rank} on {self.host} (process {self.process})"

    @property
    def is_gone(self) -> bool:
        """Whether its process is known to have died: only one whose number means the same here can be."""
        return runs(self.host, self.space, self.process, self.started) is False


def path_of(folder: Path, rank: int) -> Path:
    """Where a rank's file is."""
    return folder / f"rank{rank}.json"


class Writer:
    """Writes this process's file, whole or not at all; `beat` and `change` may be called by several threads."""

    def __init__(self, folder: Path, launch: str, rank: int) -> None:
        own = os.getpid()
        self.now = Beat(launch, rank, socket.gethostname(), own, started(own) or 0, space=space())
        self._path = path_of(folder, rank)
        self._written: Beat | None = None
        self._lock = threading.RLock()

    def change(self, **values: Any) -> None:
        """Say something else, at once."""
        with self._lock:
            self.now = replace(self.now, **values)
            self.beat()

    def mark(self, what: str) -> None:
        """Say that something is done that others wait for."""
        with self._lock:
            self.change(marks=(*self.now.marks, what))

    def beat(self) -> bool:
        """Write the file where it says something else, touch it otherwise; whether that was possible."""
        with self._lock, contextlib.suppress(OSError):
            if self.now != self._written or not self._path.exists():
                self._written = None
                with contextlib.suppress(OSError):  # a full disk: the file's time alone is a sign of life, too
                    self._write(self.now)
            self._path.touch()
            return True
        return False

    def _write(self, now: Beat) -> None:
        write_bytes(self._path, json.dumps(asdict(now)).encode())
        self._written = now

    def remove(self) -> None:
        """Take the file away, and the folder with the last one."""
        with contextlib.suppress(OSError):
            self._path.unlink()
            self._path.parent.rmdir()


def read(folder: Path, rank: int, launch: str) -> tuple[int | None, Beat | None]:
    """When a rank's file was last written or touched, and what it says; None for what is not there or of no sense.

    What another launch left counts as nothing.
    """
    try:
        with open_regular(path_of(folder, rank)) as stream:
            stamp = os.fstat(stream.fileno()).st_mtime_ns
            values = parse_json(stream.read(_MOST))
        beat = Beat(**{**values, "marks": tuple(values["marks"])})
    except (UserError, OSError):
        return None, None
    except (ValueError, KeyError, TypeError):  # made where there was no room for what it says
        return stamp, None
    return (stamp, beat) if beat.launch == launch else (None, None)
