"""Linear layers whose weights are dense, ternary or binary: how tokens go in, and the product.

One rule for every projection of a block. Tokens are prepared once for all projections that read them (`inputs`, or the
fused forms that normalise too) and multiplied by leading blocks of weights (`project`). Low-bit products are sums of
integers that are scaled afterwards, whoever computes them (Triton, packed bytes on the CPU, or torch's fp32 product,
the CPU's fastest for training and the way out for sizes that no kernel takes), so all give the same bits.
Binary weights meet the signs of tokens, but int8 integers where the tokens come from a gate and have no sign.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from llmnas.nn import kernels
from llmnas.nn.kernels import Codes, PackedTernary
from llmnas.nn.norm import rms_norm
from llmnas.nn.ternary import read_input, reader, scale_of
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


PACKED = {torch.uint8: ("ternary", 4), torch.int32: ("binary", 32)}
"""What a packed weight holds, and how many weights in an element."""


def is_packed(weight: Tensor) -> bool:
    """Whether a weight holds 2-bit codes, uint8 [N, K / 4], or signs, int32 [N, K / 32], instead of latent values."""
    return weight.dtype in PACKED


def inputs(x: Tokens, kind: Weights, weight: Tensor, *, signed: bool = True) -> Tokens:
    """Tokens as the projections by `weight` (and its like in the module) see them.

    Args:
        x: [..., K], or what is prepared already.
        kind: of the weights.
        weight: as stored.
        signed: whether the sign carries information, see `read_input`.
    """
    if not isinstance(x, Tensor):
        return x
    if kind == "dense":
        return x
    if kind == "binary" and signed:
        return Signs(x)
    return kernels.quantise(x, packed=is_packed(weight))


def normed(x: Tensor, gain: Tensor, eps: float, kind: Weights) -> Tokens:
    """RMSNorm, and for ternary weights on Triton the quantisation with it in one pass; x: [..., K]."""
    if kind == "ternary" and kernels.fits_ternary(x):
        return kernels.norm_quantise(x, gain[: x.shape[-1]], eps)
    return rms_norm(x, gain, eps)


def swiglu_inputs(gate: Tensor, up: Tensor, gain: Tensor, eps: float, kind: Weights, weight: Tensor) -> Tokens:
    """silu(gate) up, normalised, as a low-bit down projection sees it; gate, up: [..., K]."""
    if kind == "ternary" and kernels.fits_ternary(gate):
        return kernels.swiglu_norm_quantise(gate, up, gain[: gate.shape[-1]], eps)
    return inputs(rms_norm(F.silu(gate) * up, gain, eps), kind, weight, signed=False)


def project(
    module: nn.Module, name: str, x: Tokens, kind: Weights, sizes: tuple[int, ...], out_dims: int,
    bias: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Tokens times the leading block of one weight of a module.

    Args:
        module: owns the weight `name` [*out, *in] and its scale.
        x: from `inputs` or its like, [..., prod(in)].
        kind: how the weight is read.
        sizes: leading sizes to use of each of its axes.
        out_dims: how many of its axes are outputs.
        bias: [prod(out)] or None.

    Returns:
        [..., prod(out)].

    Raises:
        ValueError: a packed weight that is not used whole.
    """
    weight: Tensor = getattr(module, name)
    if is_packed(weight):
        y = _packed(module, name, weight, x, kind, sizes, out_dims)
        return y if bias is None else y + bias
    block = weight[tuple(slice(size) for size in sizes)]
    if isinstance(x, Tensor):
        read = reader(module, name, kind, out_dims)
        return F.linear(x, _matrix(read(block) if read else block, out_dims), bias)
    scale = scale_of(module, name, kind, out_dims)[tuple(slice(size) for size in sizes)]
    if isinstance(x, Codes):
        y = kernels.code_linear(x, _matrix(block, out_dims), scale, kind)
    else:
        y = kernels.binary_linear(x.x, _matrix(block, out_dims), scale)
    return y if bias is None else y + bias


def values(x: Tokens) -> Tensor:
    """The tokens as the product sees them, [..., K]."""
    return x if isinstance(x, Tensor) else x.values()


def _matrix(block: Tensor, out_dims: int) -> Tensor:
    """[*out, *in] -> [N, K]: a view where the block is whole in its inner axes, else a copy."""
    return block.flatten(out_dims).flatten(0, out_dims - 1)


def _packed(
    module: nn.Module, name: str, weight: Tensor, x: Tokens, kind: Weights, sizes: tuple[int, ...], out_dims: int
) -> Tensor:
    held, each = PACKED[weight.dtype]
    stored = [weight.shape[0], each * weight.shape[1]]
    wanted = [math.prod(sizes[:out_dims]), math.prod(sizes[out_dims:])]
    if stored != wanted or kind != held:
        raise ValueError(f"{name}: {stored} {held} weights are packed, {wanted} {kind} ones are asked for")
    scale = scale_of(module, name, kind, out_dims)
    if isinstance(x, Codes) and kind == "ternary":
        return kernels.packed_linear(x, PackedTernary(weight, scale))
    if isinstance(x, Codes | Signs):
        return kernels.packed_binary_linear(x.x if isinstance(x, Signs) else x, weight, scale)
    raise ValueError(f"{name}: tokens of a packed weight come from `inputs`")
