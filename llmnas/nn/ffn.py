"""SwiGLU feed-forward (Shazeer 2020, eq. 6) whose width is a leading slice."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from llmnas.nn.linear import linear
from llmnas.nn.norm import rms_norm
from llmnas.nn.ternary import LOW_BIT, add_scales, read_input, reader
from llmnas.space.architecture import BaseModel, LayerKinds, LayerSpec

OUT_DIMS = {"gate": 1, "up": 1, "down": 1}


class FeedForward(nn.Module):
    """down(silu(gate(x)) * up(x)), with the weights of the largest size.

    With low-bit weights the product is normalised before `down` (BitNet b1.58).
    """

    def __init__(self, base: BaseModel, hidden_size: int, ffn_size: int, kinds: LayerKinds) -> None:
        super().__init__()
        self.eps = base.norm_eps
        self.gate = nn.Parameter(torch.empty(ffn_size, hidden_size))
        self.up = nn.Parameter(torch.empty(ffn_size, hidden_size))
        self.down = nn.Parameter(torch.empty(hidden_size, ffn_size))
        low_bit = any(kind in kinds.weights for kind in LOW_BIT)
        self.inner_norm = nn.Parameter(torch.ones(ffn_size)) if low_bit else None
        add_scales(self, kinds, OUT_DIMS)

    def forward(self, x: Tensor, spec: LayerSpec) -> Tensor:
        """x: [..., hidden] -> [..., hidden], through the leading `spec.ffn_size` channels."""
        read = reader(self, "down", spec.weights, 1)
        return linear(self.gated(x, spec), self.down, x.shape[-1], read=read)

    def gated(self, x: Tensor, spec: LayerSpec) -> Tensor:
        """[..., hidden] -> the channels as `down` sees them, [..., spec.ffn_size]."""
        kind, seen = spec.weights, read_input(x, spec.weights)
        gate = linear(seen, self.gate, spec.ffn_size, read=reader(self, "gate", kind, 1))
        gated = F.silu(gate) * linear(seen, self.up, spec.ffn_size, read=reader(self, "up", kind, 1))
        if kind == "dense" or self.inner_norm is None:
            return gated
        return read_input(rms_norm(gated, self.inner_norm, self.eps), kind, signed=False)
