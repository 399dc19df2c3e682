"""Every step the processes compare what they are about to do, before any of them waits for the others in vain.

Ranks that train different networks hang or crash far from the cause under ZeRO 2 and 3. The
comparison is one all-reduce of four integers over gloo: no GPU is synchronised for it. The same
message carries what any one of them wishes, so that all processes do it before the same step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist

from llmnas.errors import RunError
from llmnas.space import Architecture

T = TypeVar("T")
WHILE_WATCHED = timedelta(days=7)
"""Of a group in which one process may wait long for another: who is gone or silent, the watch over them finds."""


def digest(identity: str, step: int, networks: Sequence[Architecture]) -> int:
    """60 bits of the run, the step and its networks in order."""
    text = "\n".join([identity, str(step), *(arch.id for arch in networks)])
    return int(hashlib.sha256(text.encode()).hexdigest()[:15], 16)


def all_of(value: T, size: int) -> list[T]:
    """What each of `size` processes says, by rank; collective."""
    if size == 1:
        return [value]
    found: list[Any] = [None] * size
    dist.all_gather_object(found, value)
    return found


class Wishes(NamedTuple):
    """What is to be done before a step: stop, or look at the number of threads again."""

    stop: bool
    look: bool


class Agreement:
    """The comparison among `size` processes; nothing to do for one."""

    def __init__(self, size: int, identity: str) -> None:
        self.identity = identity
        self._group = dist.new_group(backend="gloo", timeout=WHILE_WATCHED) if size > 1 else None
        self._size = size

    def check(self, step: int, networks: Sequence[Architecture], wishes: Wishes) -> Wishes:
        """Compare, and say what any process wishes before this step; collective.

        Raises:
            RunError: on every rank, naming the step and the ranks that differ from rank 0.
        """
        if self._group is None:
            return wishes
        own = digest(self.identity, step, networks)
        message = torch.tensor([own, -own, int(wishes.stop), int(wishes.look)])
        dist.all_reduce(message, dist.ReduceOp.MAX, group=self._group)
        if message[0] != -message[1]:
            every = [torch.zeros(1, dtype=torch.int64) for _ in range(self._size)]
            dist.all_gather(every, torch.tensor([own]), group=self._group)
            ranks = [rank for rank, value in enumerate(every) if value != every[0]]
            raise RunError(
                f"step {step}: rank {', '.join(map(str, ranks))} would train other networks than rank 0 "
                "(another config, seed, code or checkpoint); start all ranks from the same files"
            )
        return Wishes(*map(bool, message[2:].tolist()))
