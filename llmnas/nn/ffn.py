"""SwiGLU feed-forward (Shazeer 2020, eq. 6) whose width is a leading slice."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from llmnas.nn.elastic_linear import ElasticLinear
from llmnas.nn.lowbit import Tokens, inputs, swiglu_inputs
from llmnas.nn.ternary import LOW_BIT
from llmnas.space.architecture import BaseModel, LayerKinds, LayerSpec


class FeedForward(nn.Module):
    """down(silu(gate(x)) * up(x)), with the weights of the largest size; GELU's tanh form in place of SiLU is GEGLU.

    With low-bit weights the product is normalised before `down` (BitNet b1.58).
    """

    def __init__(self, base: BaseModel, hidden_size: int, ffn_size: int, kinds: LayerKinds) -> None:
        super().__init__()
        self.eps, self.activation = base.norm_eps, base.activation
        self.gate = ElasticLinear(hidden_size, ffn_size, kinds=kinds.weights)
        self.up = ElasticLinear(hidden_size, ffn_size, kinds=kinds.weights)
        self.down = ElasticLinear(ffn_size, hidden_size, kinds=kinds.weights)
        low_bit = any(kind in kinds.weights for kind in LOW_BIT)
        self.inner_norm = nn.Parameter(torch.ones(ffn_size)) if low_bit else None

    def forward(self, x: Tokens, spec: LayerSpec) -> Tensor:
        """x: [..., hidden] -> [..., hidden], through the leading `spec.ffn_size` channels."""
        return self.down(self.gated(x, spec), x.shape[-1], spec.weights)

    def gated(self, x: Tokens, spec: LayerSpec) -> Tokens:
        """[..., hidden] -> the channels as `down` sees them, [..., spec.ffn_size]."""
        kind, seen = spec.weights, inputs(x, spec.weights, self.gate)
        gate, up = (linear(seen, spec.ffn_size, kind) for linear in (self.gate, self.up))
        if kind == "dense" or self.inner_norm is None:
            return (F.silu(gate) if self.activation == "silu" else F.gelu(gate, approximate="tanh")) * up
        return swiglu_inputs(gate, up, self.inner_norm, self.eps, kind, self.down)
