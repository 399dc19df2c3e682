"""Windows of training text: ids, of which some are only read and not learned from."""

from __future__ import annotations

import torch
from torch import Tensor

IGNORED = -100
"""A target that no loss counts (torch's default)."""


def split_windows(windows: Tensor) -> tuple[Tensor, Tensor]:
    """Inputs and targets, [batch, seq] each, of windows [batch, seq + 1].

    A token that is not to be learned from is stored as -1 - id: it is read as its id and is no target.
    """
    ids = torch.where(windows < 0, -1 - windows, windows)
    targets = windows[:, 1:]
    return ids[:, :-1], targets.masked_fill(targets < 0, IGNORED)
