"""Files of a checkpoint, hashed while DeepSpeed writes them: each process knows its own without reading them again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, Any, cast

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine
from torch import Tensor

from llmnas.files import Written, naming
from llmnas.files.hashing import HashedStream


class StateFiles(CheckpointEngine):  # type: ignore[misc]
    """What DeepSpeed writes and reads states with.

    Attributes:
        written: every file that this process wrote since `begin`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.written: list[Written] = []

    def begin(self) -> None:
        """Forget what was written before."""
        self.written = []

    def create(self, info: CheckpointCommitInfo) -> None:
        """Nothing to do before the files come."""

    def save(self, state_dict: dict[str, Any], path: str) -> None:
        """Write a state.

        Raises:
            OSError: it cannot be written; names the file, and what is missing where the disk is full.
        """
        self.written.append(write_state(state_dict, Path(path)))

    def load(self, path: str, map_location: Any = None) -> Any:
        """Read a state (within `no_pickle`: tensors and plain values)."""
        return torch.load(path, map_location=map_location, weights_only=False)

    def commit(self, info: CheckpointCommitInfo) -> bool:  # noqa: ARG002 (DeepSpeed's interface)
        """Nothing to do: a checkpoint counts when its folder is renamed."""
        return True


def write_state(state: dict[str, Any], path: Path) -> Written:
    """Write `state` with torch's writer, through a hash, to the disk."""
    with naming(path, tensor_bytes(state)), path.open("wb") as raw:
        stream = HashedStream(raw)
        try:
            torch.save(state, cast(IO[bytes], stream))
        except (RuntimeError, OSError):
            if stream.failure is not None:  # torch's writer calls it "unexpected pos"
                raise stream.failure from None
            raise
        raw.flush()
        os.fsync(raw.fileno())
    return Written(path, stream.digest.bytes, stream.digest.hexdigest())


def tensor_bytes(state: Any) -> int:
    """Bytes of all tensors in nested dictionaries and lists, shared ones once."""
    found: dict[int, int] = {}
    todo = [state]
    while todo:
        value = todo.pop()
        if isinstance(value, Tensor):
            found[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, dict):
            todo += value.values()
        elif isinstance(value, list | tuple):
            todo += value
    return sum(found.values())
