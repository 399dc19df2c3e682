"""One process at a time writes in a run folder.

The holder keeps an advisory lock (`flock`) on `lock.json`, which says who it is. The kernel drops the lock with the
process, however it ends, so under one kernel what a dead process left is taken over at once. Not every shared file
system carries such locks from host to host, and names of hosts are used twice: the holder also touches the file again
and again, and a newcomer elsewhere watches whether it does.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from llmnas.errors import UserError

FILE = "lock.json"
REFRESH = 10.0
"""Seconds between two touches of the file."""
PATIENCE = 60.0
"""Seconds without a touch after which a holder elsewhere counts as gone."""

_UNSUPPORTED = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}
_OTHER = {errno.EAGAIN, errno.EACCES}


@dataclass(frozen=True)
class Holder:
    """Who holds a lock.

    Attributes:
        host: where it runs.
        process: its number there.
        started: when it began (clock ticks since boot; 0 where that is not known).
        since: when it took the lock.
        boot: `boot` there.
        space: `space` there.
    """

    host: str
    process: int
    started: int
    since: str
    boot: str = ""
    space: str = ""

    @classmethod
    def of_this_process(cls) -> Self:
        """This one, from now on."""
        now = time.strftime("%Y-%m-%d %H:%M:%S")
        return cls(socket.gethostname(), os.getpid(), started(os.getpid()) or 0, now, boot(), space())

    @classmethod
    def read(cls, fd: int) -> Self | None:
        """What a lock file says; None where it says nothing, as between its creation and its first writing."""
        try:
            values = json.loads(os.pread(fd, 4096, 0))
            where = str(values.get("boot", "")), str(values.get("space", ""))  # before, none was written
            return cls(
                str(values["host"]), int(values["process"]), int(values["started"]), str(values["since"]), *where
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
            return None

    @property
    def is_near(self) -> bool:
        """Whether it runs, or ran, under the kernel that this process runs under."""
        return self.host == socket.gethostname() and self.boot != "" and self.boot == boot()

    def lives(self) -> bool | None:
        """Whether the process runs; None where that cannot be known from here."""
        return runs(self.host, self.space, self.process, self.started)

    def __str__(self) -> str:
        """In words."""
        return f"process {self.process} on {self.host} since {self.since}"


def started(process: int) -> int | None:
    """When a process of this host began, in clock ticks since boot; None where there is none (or no /proc)."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def boot() -> str:
    """Tells this kernel, since it was started, from all others; empty where that is not known (no /proc)."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def space() -> str:
    """Tells apart where a number means different processes: kernels, and containers on one; empty where not known."""
    kernel = boot()
    try:
        return kernel and f"{kernel} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def runs(host: str, where: str, process: int, since: int) -> bool | None:
    """Whether the process that said this of itself runs; None where its number says nothing here.

    Args:
        host: its name; of two with one name, `where` differs.
        where: `space` there.
        process: its number there.
        since: `started` of it; another one may have its number now.
    """
    if since == 0 or not where or (host, where) != (socket.gethostname(), space()):
        return None
    return started(process) == since


@contextlib.contextmanager
def locked(folder: Path, *, refresh: float = REFRESH, patience: float = PATIENCE) -> Iterator[None]:
    """Hold the lock of a run folder, which is made where it is missing and removed again if nothing came into it.

    Raises:
        UserError: another process holds it; says which. Or the folder cannot be written.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fd = _acquire(folder / FILE, patience)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot write there ({error.strerror}); choose a --run-dir that can be written"
        ) from None
    done = threading.Event()
    keeper = threading.Thread(target=_touch, args=(folder / FILE, fd, refresh, done), daemon=True)
    keeper.start()
    try:
        yield
    finally:
        done.set()
        keeper.join()
        with contextlib.suppress(OSError):
            (folder / FILE).unlink()
        os.close(fd)
        with contextlib.suppress(OSError):
            for path in made:
                path.rmdir()


def _acquire(path: Path, patience: float) -> int:
    """The locked, open file, which names this process."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            _require_free(path, fd, patience)
            if not _same(path, fd):  # its holder has just removed it
                os.close(fd)
                continue
            os.ftruncate(fd, 0)
            os.pwrite(fd, json.dumps(asdict(Holder.of_this_process())).encode() + b"\n", 0)
        except BaseException:
            os.close(fd)
            raise
        return fd


def _require_free(path: Path, fd: int, patience: float) -> None:
    """Take the advisory lock, and look at who is named in the file; `UserError` where somebody lives."""
    supported = True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _OTHER:
            raise _taken(path, Holder.read(fd)) from None
        if error.errno not in _UNSUPPORTED:
            raise
        supported = False
    holder = Holder.read(fd)
    if holder is None or (supported and holder.is_near):  # the kernel has dropped its lock
        return
    lives = holder.lives()
    if lives or (lives is None and not _silent(path, holder, patience)):
        raise _taken(path, holder)


def _taken(path: Path, holder: Holder | None) -> UserError:
    who = holder or "another process"
    return UserError(
        f"{path.parent}: {who} works in this run folder; wait for its end, or use another --run-dir "
        "(`llmnas report --serve` watches a run)"
    )


def _silent(path: Path, holder: Holder, patience: float) -> bool:
    """Watch whether a holder elsewhere touches the file; clocks of two hosts are never compared."""
    print(f"llmnas: {path}: held by {holder}; watching for {patience:.0f} s whether it lives", file=sys.stderr)
    before, deadline = _touched(path), time.monotonic() + patience
    while time.monotonic() < deadline:
        time.sleep(min(1.0, patience / 10))
        if _touched(path) != before:
            return False
    return True


def _touched(path: Path) -> int | None:
    """Time stamp of the file, from its server (opening a file asks it anew); None where it is gone."""
    try:
        with path.open("rb") as stream:
            return os.fstat(stream.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def _same(path: Path, fd: int) -> bool:
    """Whether the open file is still the one of this name."""
    try:
        named, opened = path.stat(), os.fstat(fd)
    except FileNotFoundError:
        return False
    return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)


def _touch(path: Path, fd: int, refresh: float, done: threading.Event) -> None:
    """Touch the file until `done`; end the process when another one has taken its place."""
    own = os.pread(fd, 4096, 0)
    while not done.wait(refresh):
        with contextlib.suppress(OSError):  # a file server that is away for a while
            if _same(path, fd) and os.pread(fd, 4096, 0) == own:
                os.utime(fd)
                continue
            line = f"llmnas: {path}: another process has taken over this run while this one was silent; ending"
            print(line, file=sys.stderr, flush=True)
            os._exit(1)
