"""Linear layers whose weights are packed: 2-bit codes or signs beside the scale of the full matrix. They only read."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from llmnas.nn import kernels
from llmnas.nn.elastic_linear import ElasticLinear, Sizes, axes
from llmnas.nn.expert_linear import ExpertLinear
from llmnas.nn.kernels import Codes, PackedTernary
from llmnas.nn.lowbit import PACKED, Signs, Tokens
from llmnas.nn.ternary import scale_name
from llmnas.space.architecture import Weights

GROUPS = {"ternary": kernels.GROUP, "binary": kernels.WORD}
"""A weight is packed where the number of its inputs is a multiple of this."""


class _Packed(nn.Module):
    """Codes [matrices * N, K / 4 or K / 32] and scales of one kind, without values."""

    weight: Tensor

    def __init__(self, like: ElasticLinear | ExpertLinear, kind: Weights) -> None:
        super().__init__()
        self.kind, self.shape = kind, like.weight.shape
        dtype, each = next((dtype, each) for dtype, (held, each) in PACKED.items() if held == kind)
        packed = torch.empty(self.shape[:-1].numel(), self.shape[-1] // each, dtype=dtype, device=like.weight.device)
        self.register_buffer("weight", packed)
        # in half precision it would be another network, and saving it again would store the rounded scale
        self.register_buffer(scale_name(kind), like.get_buffer(scale_name(kind)).float())

    def scale(self, kind: Weights) -> Tensor:
        """As stored."""
        return self.get_buffer(scale_name(kind))

    def _require_whole(self, wanted: tuple[int, ...], kind: Weights) -> None:
        """Refuse another kind or other sizes than those that are packed."""
        if tuple(self.shape) != wanted or kind != self.kind:
            raise ValueError(
                f"{list(self.shape)} {self.kind} weights are packed, {list(wanted)} {kind} ones are asked for"
            )


class PackedLinear(_Packed):
    """An `ElasticLinear` that is used whole and in one kind; its bias stays as it is."""

    def __init__(self, like: ElasticLinear, kind: Weights) -> None:
        super().__init__(like, kind)
        self.bias = like.bias

    def forward(self, x: Tokens, out: Sizes, kind: Weights, columns: Sizes | None = None) -> Tensor:  # noqa: ARG002
        """As `ElasticLinear.forward`.

        Raises:
            ValueError: not all of the weight, or tokens that are no integers.
        """
        self._require_whole((math.prod(axes(out)), x.shape[-1]), kind)
        y = _product(self.weight, self.scale(kind), x, kind)
        return y if self.bias is None else y + self.bias


class PackedExperts(_Packed):
    """An `ExpertLinear` that is used whole and in one kind."""

    def forward(self, x: Tokens, out: int, ends: Tensor, kind: Weights, first: int = 0) -> Tensor:  # noqa: ARG002
        """As `ExpertLinear.forward`: one product for each expert that has tokens, others are not read from memory.

        Raises:
            ValueError: not all of the weights, or tokens that are no integers.
        """
        self._require_whole((len(ends), out, x.shape[-1]), kind)
        matrices, scale, found = self.weight.view(len(ends), out, -1), self.scale(kind), []
        for e, (begin, end) in enumerate(pairwise([0, *ends.tolist()])):
            if end > begin:
                found.append(_product(matrices[e], scale[e], _some(x, begin, end), kind))
        link = x.x if isinstance(x, Signs) else x.link if isinstance(x, Codes) else x
        return torch.cat(found) if found else link.new_empty(0, out)


def packed_like(linear: nn.Module, kind: Weights) -> PackedLinear | PackedExperts | None:
    """The packed form of a layer, without values; None where its inputs would cut a group."""
    if not isinstance(linear, ElasticLinear | ExpertLinear) or linear.weight.shape[-1] % GROUPS[kind]:
        return None
    return PackedLinear(linear, kind) if isinstance(linear, ElasticLinear) else PackedExperts(linear, kind)


def _some(x: Tokens, begin: int, end: int) -> Tokens:
    """Tokens `begin` to `end` of [N, K]."""
    if isinstance(x, Codes):
        return Codes(x.codes[begin:end], x.scales[begin:end], x.link[begin:end])
    return Signs(x.x[begin:end]) if isinstance(x, Signs) else x[begin:end]


def _product(weight: Tensor, scale: Tensor, x: Tokens, kind: Weights) -> Tensor:
    if isinstance(x, Codes) and kind == "ternary":
        return kernels.packed_linear(x, PackedTernary(weight, scale))
    if isinstance(x, Codes | Signs):
        return kernels.packed_binary_linear(x.x if isinstance(x, Signs) else x, weight, scale)
    raise ValueError("tokens of a packed weight come from `inputs`")
