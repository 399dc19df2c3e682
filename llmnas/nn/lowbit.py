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
from itertools import pairwise

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from llmnas.nn import kernels
from llmnas.nn.kernels import Codes, PackedTernary
from llmnas.nn.norm import rms_norm
from llmnas.nn.ternary import codes, read_input, reader, scale_of, straight_through
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


def project_experts(
    module: nn.Module, name: str, x: Tokens, kind: Weights, size: tuple[int, int], ends: Tensor, first: int = 0
) -> Tensor:
    """Tokens, sorted by expert, times the leading blocks of their experts' matrices.

    Args:
        module: owns the weight `name` [experts, out, in] and its scale.
        x: from `inputs` or its like, [N, in].
        kind: how the weight is read.
        size: (out, in) of the blocks.
        ends: [E] where the tokens of each expert end.
        first: the first of the E experts.

    Returns:
        [N, out].

    Raises:
        ValueError: a packed weight that is not used whole.
    """
    weight: Tensor = getattr(module, name)
    if is_packed(weight):
        return _packed_experts(module, name, weight, x, kind, size, ends)
    leading = (slice(first, first + len(ends)), slice(size[0]), slice(size[1]))
    block = weight[leading]
    if isinstance(x, Tensor):
        return grouped_product(x, block.mT, ends)
    scale = scale_of(module, name, kind, 2, 1)[leading]
    held = straight_through(block, codes(block.detach(), scale, kind), 1 / scale)
    rows = scale.flatten(1).repeat_interleave(ends.diff(prepend=ends.new_zeros(1)), 0)
    if isinstance(x, Codes):
        q = straight_through(x.link, x.codes.to(x.link.dtype), x.scales[:, None])
        return grouped_product(q, held.mT, ends) * (rows / x.scales[:, None]).to(x.link.dtype)
    beta = x.x.detach().abs().mean(-1, keepdim=True)
    signs = torch.where(x.x.detach() >= 0, 1.0, -1.0).to(x.x.dtype)
    least = torch.finfo(beta.dtype).tiny  # of a token without any magnitude the product is zero whatever is divided
    signs = straight_through(x.x, signs, 1 / beta.clamp_min(least))
    return grouped_product(signs, held.mT, ends) * beta * rows


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


def _matrix(block: Tensor, out_dims: int) -> Tensor:
    """[*out, *in] -> [N, K]: a view where the block is whole in its inner axes, else a copy."""
    return block.flatten(out_dims).flatten(0, out_dims - 1)


def _packed(
    module: nn.Module, name: str, weight: Tensor, x: Tokens, kind: Weights, sizes: tuple[int, ...], out_dims: int
) -> Tensor:
    wanted = [math.prod(sizes[:out_dims]), math.prod(sizes[out_dims:])]
    _require_whole(name, weight, kind, wanted, [])
    return _packed_product(name, weight, scale_of(module, name, kind, out_dims), x, kind)


def _packed_experts(
    module: nn.Module, name: str, weight: Tensor, x: Tokens, kind: Weights, size: tuple[int, int], ends: Tensor
) -> Tensor:
    """One product for each expert that has tokens: an expert without any is not read from memory."""
    scale = scale_of(module, name, kind, 2, 1)
    _require_whole(name, weight, kind, [len(ends), *size], [len(scale)])
    matrices, found = weight.view(len(scale), size[0], -1), []
    for e, (begin, end) in enumerate(pairwise([0, *ends.tolist()])):
        if end > begin:
            found.append(_packed_product(name, matrices[e], scale[e], _some(x, begin, end), kind))
    link = x.x if isinstance(x, Signs) else x.link if isinstance(x, Codes) else x
    return torch.cat(found) if found else link.new_empty(0, size[0])


def _some(x: Tokens, begin: int, end: int) -> Tokens:
    """Tokens `begin` to `end` of [N, K]."""
    if isinstance(x, Codes):
        return Codes(x.codes[begin:end], x.scales[begin:end], x.link[begin:end])
    return Signs(x.x[begin:end]) if isinstance(x, Signs) else x[begin:end]


def _require_whole(name: str, weight: Tensor, kind: Weights, wanted: list[int], matrices: list[int]) -> None:
    """Refuse another kind or other sizes, [*matrices, N, K], than those that are packed."""
    held, each = PACKED[weight.dtype]
    stored = [*matrices, weight.shape[0] // math.prod(matrices), each * weight.shape[1]]
    if stored != wanted or kind != held:
        raise ValueError(f"{name}: {stored} {held} weights are packed, {wanted} {kind} ones are asked for")


def _packed_product(name: str, weight: Tensor, scale: Tensor, x: Tokens, kind: Weights) -> Tensor:
    if isinstance(x, Codes) and kind == "ternary":
        return kernels.packed_linear(x, PackedTernary(weight, scale))
    if isinstance(x, Codes | Signs):
        return kernels.packed_binary_linear(x.x if isinstance(x, Signs) else x, weight, scale)
    raise ValueError(f"{name}: tokens of a packed weight come from `inputs`")
