"""SwiGLU feed-forward (Shazeer 2020, eq. 6) whose width is a leading slice."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from llmnas.nn.linear import linear


class FeedForward(nn.Module):
    """down(silu(gate(x)) * up(x)), with the weights of the largest size."""

    def __init__(self, hidden_size: int, ffn_size: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.empty(ffn_size, hidden_size))
        self.up = nn.Parameter(torch.empty(ffn_size, hidden_size))
        self.down = nn.Parameter(torch.empty(hidden_size, ffn_size))

    def forward(self, x: Tensor, ffn_size: int) -> Tensor:
        """x: [..., hidden] -> [..., hidden], through the leading `ffn_size` channels."""
        gated = F.silu(linear(x, self.gate, ffn_size)) * linear(x, self.up, ffn_size)
        return linear(gated, self.down, x.shape[-1])
