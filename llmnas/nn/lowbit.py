"""How tokens go into linear layers whose weights are dense, ternary or binary.

Tokens are prepared once for all layers that read them (`inputs`, or the fused forms that normalise too). Low-bit
products are sums of integers that are scaled afterwards, whoever computes them (Triton, packed bytes on the CPU, or
torch's fp32 product, the CPU's fastest for training and the way out for sizes that no kernel takes), so all give the
same bits.
Binary weights meet the signs of tokens, but int8 integers where the tokens come from a gate and have no sign.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from llmnas.nn import kernels
from llmnas.nn.kernels import Codes
from llmnas.nn.norm import rms_norm
from llmnas.nn.ternary import read_input
from llmnas.space.architecture import Weights


@dataclass(frozen=True)
class Signs:
    """Tokens [..., K] of which a binary product takes the signs and the mean magnitude by itself."""

    x: Tensor

    @property
    def shape(self) -> torch.Size:
        """Of the tokens: [..., K]."""
        return self.x.shape

    def values(self) -> Tensor:
        """The tokens as the product sees them."""
        return read_input(self.x, "binary")


Tokens = Tensor | Codes | Signs


class Weighted(Protocol):
    """A linear layer, packed or not."""

    weight: Any


PACKED = {torch.uint8: ("ternary", 4), torch.int32: ("binary", 32)}
"""What a packed weight holds, and how many weights in an element."""


def is_packed(weight: Tensor) -> bool:
    """Whether a weight holds 2-bit codes, uint8 [N, K / 4], or signs, int32 [N, K / 32], instead of latent values."""
    return weight.dtype in PACKED


def inputs(x: Tokens, kind: Weights, linear: Weighted, *, signed: bool = True) -> Tokens:
    """Tokens as a linear layer (and its like in the module) sees them.

    Args:
        x: [..., K], or what is prepared already.
        kind: of the weights.
        linear: with packed weights or latent ones.
        signed: whether the sign carries information, see `read_input`.
    """
    if not isinstance(x, Tensor):
        return x
    if kind == "dense":
        return x
    if kind == "binary" and signed:
        return Signs(x)
    return kernels.quantise(x, packed=is_packed(linear.weight))


def normed(x: Tensor, gain: Tensor, eps: float, kind: Weights) -> Tokens:
    """RMSNorm, and for ternary weights on Triton the quantisation with it in one pass; x: [..., K]."""
    if kind == "ternary" and kernels.fits_ternary(x):
        return kernels.norm_quantise(x, gain[: x.shape[-1]], eps)
    return rms_norm(x, gain, eps)


def swiglu_inputs(gate: Tensor, up: Tensor, gain: Tensor, eps: float, kind: Weights, down: Weighted) -> Tokens:
    """silu(gate) up, normalised, as a low-bit down projection sees it; gate, up: [..., K]."""
    if kind == "ternary" and kernels.fits_ternary(gate):
        return kernels.swiglu_norm_quantise(gate, up, gain[: gate.shape[-1]], eps)
    return inputs(rms_norm(F.silu(gate) * up, gain, eps), kind, down, signed=False)


def grouped_product(rows: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Rows [N, in], sorted by group, times the matrix of their group [E, in, out] -> [N, out].

    One call for all groups; one product a group in float64, which `grouped_mm` does not know.
    """
    if len(weight) == 1:
        return rows @ weight[0]
    if rows.dtype != torch.float64:
        return F.grouped_mm(rows, weight, offs=ends)
    pieces = rows.tensor_split(ends[:-1].cpu().long())
    return torch.cat([piece @ matrix for piece, matrix in zip(pieces, weight, strict=True)])


def values(x: Tokens) -> Tensor:
    """The tokens as the product sees them, [..., K]."""
    return x if isinstance(x, Tensor) else x.values()
