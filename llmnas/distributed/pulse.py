"""No process of a launch waits for ever for another one that has died, hangs or was stopped.

Every process shows a sign of life (`beats`) and watches those of the others, in a thread: the main thread may sit in
gloo or NCCL, where nothing reaches it. A process that finds another one gone, or silent for longer than agreed, ends
with one line that names it, and exit code 1.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from llmnas.distributed.beats import Beat, Writer, read
from llmnas.errors import Preempted, RunError, UserError
from llmnas.files import one_line

FOLDER = "processes"
"""Of a run folder: a file for every process while it works there."""
REFRESH = 10.0
"""Seconds between two signs of life; less where patience is short."""
GRACE = 30.0
"""Seconds in which the main thread may learn by itself, from a closed connection, that another process is gone."""

_CONNECTION = re.compile(r"gloo/|nccl|TCPStore|connection|broken pipe|timed out|timeout", re.IGNORECASE)
_POLL = 0.1


class _Peer:
    """Another process, as it is seen from here."""

    def __init__(self, folder: Path, launch: str, rank: int) -> None:
        self._folder, self._launch, self._rank = folder, launch, rank
        self._stamp: int | None = None
        self.beat: Beat | None = None
        self.silent = 0.0

    def look(self, seconds: float) -> None:
        """Look again, so many seconds after the last look."""
        stamp, beat = read(self._folder, self._rank, self._launch)
        self.beat = beat or self.beat
        if stamp != self._stamp or (stamp is None and self.beat is not None):  # it lives, or has ended in order
            self._stamp, self.silent = stamp, 0.0
        else:
            self.silent += seconds

    @property
    def is_there(self) -> bool:
        """Whether its file is."""
        return self._stamp is not None

    @property
    def lost(self) -> str | None:
        """Why nothing more is to be expected of it, as far as that is certain."""
        if not self.is_there or self.beat is None:
            return None
        if self.beat.ended is not None:
            return f"{self.beat} ended: {self.beat.ended}"
        return f"{self.beat} is gone" if self.beat.is_gone else None

    def __str__(self) -> str:
        """In words."""
        return str(self.beat or f"rank {self._rank}")


class Pulse:
    """Signs of life of this process, and a watch over the others; a context manager around all that is collective.

    Args:
        folder: shared by all processes, theirs alone.
        launch: the same for all processes that were started together, and for no others.
        rank: of this process.
        size: how many there are; nothing is done where it is one.
        patience: seconds of silence after which another process counts as lost.
        advice: what is left to go on from, in words.
    """

    def __init__(
        self, folder: Path, launch: str, rank: int, size: int, patience: float, advice: Callable[[], str] = str
    ) -> None:
        self._writer = Writer(folder, launch, rank)
        self._folder, self._launch, self._rank, self._patience, self._advice = folder, launch, rank, patience, advice
        self._peers = [_Peer(folder, launch, other) for other in range(size) if other != rank]
        self._refresh = min(REFRESH, patience / 5)
        self._place = "start"
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def at(self, place: str) -> None:
        """Say where this process is: `step 12`."""
        self._place = place

    def first(self, what: str, work: Callable[[], object]) -> None:
        """Rank 0 works; the others wait for the end of that, however long it takes, for as long as rank 0 lives.

        Raises:
            RunError: on the others, where rank 0 failed, or left before they saw it done.
        """
        self.at(what)
        if self._peers and self._rank != 0:
            self._await(what)
            return
        work()
        if self._peers:
            self._writer.mark(what)

    def _await(self, what: str) -> None:
        """Wait until rank 0 says that this is done."""
        beat, away = None, 0.0
        while True:
            stamp, found = read(self._folder, 0, self._launch)
            beat = found or self._peers[0].beat or beat
            if beat is not None and what in beat.marks:
                return
            if beat is not None and beat.ended is not None:
                raise RunError(self._line(f"{beat} ended: {beat.ended}"))
            # a file that was taken away by others comes back with the next sign of life; with the folder away, all are
            gone = beat is not None and stamp is None and self._writer.beat()
            away = away + _POLL if gone else 0.0
            if away > 2 * self._refresh:
                raise RunError(self._line(f"{beat} left, and this process did not see it done"))
            time.sleep(_POLL)

    def __enter__(self) -> Self:
        if self._peers:
            self._writer.beat()
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Tell the others how it ended; a lost connection becomes a `RunError` that names who is gone."""
        if not self._peers:
            return
        lost = self._explained(error) if isinstance(error, RuntimeError) else None
        self._done.set()
        self._thread.join()
        if error is None or isinstance(error, Preempted):
            self._writer.remove()
        else:
            self._writer.change(ended=one_line(lost or _words(error))[:1000])
        if lost is not None:
            raise RunError(self._line(lost)) from None

    def _explained(self, error: RuntimeError) -> str | None:
        """Who is gone, where an error may be that of a connection; None where it is another one."""
        if not _CONNECTION.search(str(error)):
            return None
        end = time.monotonic() + min(4 * self._refresh, self._patience)
        while (lost := self._lost(0.0)) is None and time.monotonic() < end:
            time.sleep(_POLL)
        silent = max(self._peers, key=lambda peer: peer.silent)
        if lost is None and silent.silent > 1.5 * self._refresh:  # on another host: its number says nothing here
            lost = f"{silent} is gone"
        return lost or f"lost another process ({str(error).splitlines()[0]})"

    def _lost(self, seconds: float) -> str | None:
        """Who is certainly gone; one that died before one that ended because of that."""
        for peer in self._peers:
            peer.look(seconds)
        found = sorted((peer for peer in self._peers if peer.lost), key=lambda peer: peer.beat.ended is not None)  # type: ignore[union-attr]
        return found[0].lost if found else None

    def _line(self, what: str) -> str:
        advice = self._advice()
        return f"{self._place}: {what}{f'; {advice}' if advice else ''}"

    def _watch(self) -> None:
        """Show a sign of life and look at the others, until `_done`."""
        before, certain = time.monotonic(), 0.0
        while not self._done.wait(self._refresh):
            now = time.monotonic()
            # where all processes were stopped for a while, nobody was silent
            seconds, before = min(now - before, 2 * self._refresh), now
            if not self._writer.beat():
                continue  # the folder is away: nothing is known of the others either
            lost = self._lost(seconds)
            certain = certain + seconds if lost else 0.0
            silent = max(self._peers, key=lambda peer: peer.silent)
            if lost and certain > min(GRACE, self._patience):
                self._end(lost)
            if silent.silent > self._patience:
                self._end(f"{silent} has given no sign of life for {_time(silent.silent)} (train.patience_minutes)")

    def _end(self, what: str) -> None:
        self._writer.change(ended=one_line(what)[:1000])
        print(f"llmnas: rank {self._rank}: {one_line(self._line(what))}", file=sys.stderr, flush=True)
        os._exit(1)


def _words(error: BaseException) -> str:
    return str(error) if isinstance(error, UserError | RunError) else f"{type(error).__name__} {error}".strip()


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"
