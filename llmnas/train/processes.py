"""The processes of a launch."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist


@dataclass(frozen=True)
class Processes:
    """This process among those of the launch."""

    rank: int
    size: int
    local_rank: int
    local_size: int


def wait_for_all(processes: Processes) -> None:
    """Go on when every process is here."""
    if processes.size > 1:
        dist.barrier()
