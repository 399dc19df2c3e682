"""Candidates measured by all processes of a launch: rank 0 asks, tells and stores, every rank runs a share.

What a rank has measured it writes to a journal of its own at once. So when a process dies, and the launcher ends the
others, `--resume` finds every finished measurement, also those of a batch that never reached the archive. SIGTERM to
one of them ends all, after what they are running.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

import numpy as np
import torch.distributed as dist

from llmnas.cost import count_params
from llmnas.errors import Preempted, UserError
from llmnas.evaluate.evaluator import Part
from llmnas.files import naming, parse_json, read_bytes
from llmnas.space import Architecture, BaseModel
from llmnas.train.agreement import WHILE_WATCHED
from llmnas.train.processes import Processes


def deal(parts: Sequence[Part], base: BaseModel, ranks: int) -> list[list[int]]:
    """Positions of the parts that each rank runs: the longest first, each to the rank with the least to do.

    (Graham 1969: at most 4/3 of the best possible time.)
    """
    work = [count_params(part.arch, base).active * (part.last - part.first) for part in parts]
    hands: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for i in sorted(range(len(parts)), key=lambda i: (-work[i], i)):
        rank = loads.index(min(loads))
        hands[rank].append(i)
        loads[rank] += work[i]
    return hands


_MOST = 1 << 30  # bytes of a journal


class Journal:
    """Finished parts of one rank, one JSON line each, on disk when `add` returns.

    Args:
        identity: of the supernet and the windows; a journal of others is refused.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self._identity = json.dumps(identity, sort_keys=True)
        self._stream: IO[bytes] | None = None

    def read(self) -> dict[Part, np.ndarray]:
        """What was measured; a line that a crash cut off is none.

        Raises:
            UserError: the file is damaged, or was written for another supernet or other windows.
        """
        first, *lines = read_bytes(self.path, _MOST).decode(errors="replace").split("\n")[:-1] or [self._identity]
        if first != self._identity:
            raise UserError(f"{self.path}: of another supernet or other windows ({first}); delete it to measure anew")
        found = {}
        for number, line in enumerate(lines, 2):
            try:
                row = parse_json(line)
                losses = np.array(row["losses"], dtype=np.float64)
                found[Part(Architecture.from_dict(row["architecture"]), row["first"], row["last"])] = losses
            except (ValueError, KeyError, TypeError, UserError) as error:
                raise UserError(f"{self.path}: line {number}: damaged ({error}); delete it to measure anew") from None
        return found

    def add(self, part: Part, losses: np.ndarray) -> None:
        """Append what was measured and wait until it is on disk."""
        row = {"architecture": part.arch.to_dict(), "first": part.first, "last": part.last, "losses": losses.tolist()}
        with naming(self.path):
            if self._stream is None:
                self._stream = self._open()
            self._stream.write(json.dumps(row).encode() + b"\n")
            self._stream.flush()
            os.fsync(self._stream.fileno())

    def _open(self) -> IO[bytes]:
        """Open for appending, without what a crash cut off."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        stream = self.path.open("ab+")
        stream.seek(0)
        stream.truncate(stream.read().rfind(b"\n") + 1)
        if not stream.tell():
            stream.write(self._identity.encode() + b"\n")
        return stream


Message = list[Part] | Literal["done", "preempted"]
"""What rank 0 sends: parts to run, or why there are no more."""


def preempted() -> Preempted:
    """How a search ends that was told to."""
    return Preempted("SIGTERM: all finished evaluations are stored; start again with --resume")


class Team:
    """The processes of a launch as one that measures; a context manager on rank 0, `serve` on the others.

    Args:
        measure: the losses of a part; every rank has its own.
        folder: of the journals.
        identity: of the supernet and the windows.
        stop: whether this process was told to end.

    Raises:
        UserError: a journal that is damaged, or of another supernet or other windows.
    """

    def __init__(
        self,
        processes: Processes,
        measure: Callable[[Part], np.ndarray],
        base: BaseModel,
        folder: Path,
        identity: Mapping[str, Any],
        stop: Callable[[], bool],
    ) -> None:
        self._processes = processes
        self._measure = measure
        self._stop = stop
        self._base = base
        self._folder = folder
        self._journal = Journal(folder / f"rank{processes.rank}.jsonl", identity)
        # over main memory: what is exchanged are lists, on GPUs too
        self._group = dist.new_group(backend="gloo", timeout=WHILE_WATCHED) if processes.size > 1 else None
        self._known: dict[Part, np.ndarray] = {}
        self._busy = False
        self.helpers_cpu = 0.0
        if processes.rank == 0:
            for path in sorted(folder.glob("rank*.jsonl")):
                self._known |= Journal(path, identity).read()

    @property
    def size(self) -> int:
        """How many processes there are."""
        return self._processes.size

    def __call__(self, parts: Sequence[Part]) -> list[np.ndarray]:
        """On rank 0: the losses of every part, each run by one rank, or read in a journal of an earlier start.

        Raises:
            RuntimeError: the connection to another process is lost.
            Preempted: a process was told to end; what is finished is in the journals.
        """
        new = [part for part in dict.fromkeys(parts) if part not in self._known]
        if new and not self._stop():
            self._busy = True
            self._broadcast(new)
            self._known |= self._work(new)
            self._busy = False
        if not all(part in self._known for part in new):
            raise preempted()
        return [self._known[part] for part in parts]

    def serve(self) -> None:
        """On every other rank: run a share of what rank 0 sends, until it has no more.

        Raises:
            RuntimeError: the connection to rank 0 is lost.
            Preempted: a process was told to end.
        """
        while isinstance(message := self._broadcast("done"), list):
            self._work(message)
        if message == "preempted":
            raise preempted()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        """Let the others end; where a batch broke off, or a signal came, they learn it from the closed connection."""
        if not self._busy and (error is None or isinstance(error, Exception)):
            self._broadcast("preempted" if isinstance(error, Preempted) else "done")

    def forget(self) -> None:
        """Delete the journals, when an archive has what is in them."""
        shutil.rmtree(self._folder, ignore_errors=True)  # what a file system keeps hurts nobody

    def _work(self, parts: list[Part]) -> dict[Part, np.ndarray]:
        """Run this rank's share, or what of it was done when it was told to end; on rank 0 the shares of all."""
        begun, mine = time.process_time(), {}
        for i in deal(parts, self._base, self._processes.size)[self._processes.rank]:
            if self._stop():
                break
            mine[parts[i]] = self._measure(parts[i])
            self._journal.add(parts[i], mine[parts[i]])
        return self._gather(mine, time.process_time() - begun)

    def _broadcast(self, sent: Message) -> Message:
        """What rank 0 sends to all."""
        if self._group is None:
            return sent
        message = [sent]
        dist.broadcast_object_list(message, src=0, group=self._group)
        return message[0]

    def _gather(self, mine: dict[Part, np.ndarray], cpu_seconds: float) -> dict[Part, np.ndarray]:
        """Every rank's results, on rank 0."""
        if self._group is None:
            return mine
        shares: list[Any] | None = [None] * self._processes.size if self._processes.rank == 0 else None
        dist.gather_object((mine, cpu_seconds), shares, dst=0, group=self._group)
        for found, seconds in (shares or [])[1:]:
            mine |= found
            self.helpers_cpu += seconds
        return mine
