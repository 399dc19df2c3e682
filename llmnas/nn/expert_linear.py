"""One matrix for each expert: the linear layers of a mixture, which tokens sorted by expert go through at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from llmnas.nn.kernels import Codes
from llmnas.nn.lowbit import Tokens, grouped_product
from llmnas.nn.ternary import add_scales, codes, scale_of, straight_through
from llmnas.space.architecture import Weights


class ExpertLinear(nn.Module):
    """Weights [experts, out, in] of which smaller networks use the leading block.

    Args:
        experts: matrices.
        columns: input features of each.
        rows: output features of each.
        kinds: how the weights may be read; every low-bit kind has a scale an expert.
    """

    __call__: Callable[..., Tensor]

    def __init__(self, experts: int, columns: int, rows: int, *, kinds: Sequence[Weights] = ()) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, rows, columns))
        self.kinds = add_scales(self, kinds)

    def forward(self, x: Tokens, out: int, ends: Tensor, kind: Weights = "dense", first: int = 0) -> Tensor:
        """Tokens times the leading blocks of their experts' matrices.

        Args:
            x: sorted by expert, from `lowbit.inputs` or its like, [N, in].
            out: leading rows to use.
            ends: [E] where the tokens of each expert end.
            kind: how the weights are read.
            first: the first of the E experts.

        Returns:
            [N, out].
        """
        block = (slice(first, first + len(ends)), slice(out), slice(x.shape[-1]))
        weight = self.weight[block]
        if isinstance(x, Tensor):
            return grouped_product(x, weight.mT, ends)
        scale = self.scale(kind)[block]
        held = straight_through(weight, codes(weight.detach(), scale, kind), 1 / scale)
        rows = scale.flatten(1).repeat_interleave(ends.diff(prepend=ends.new_zeros(1)), 0)
        if isinstance(x, Codes):
            q = straight_through(x.link, x.codes.to(x.link.dtype), x.scales[:, None])
            return grouped_product(q, held.mT, ends) * (rows / x.scales[:, None]).to(x.link.dtype)
        beta = x.x.detach().abs().mean(-1, keepdim=True)
        signs = torch.where(x.x.detach() >= 0, 1.0, -1.0).to(x.x.dtype)
        least = torch.finfo(beta.dtype).tiny  # of a token without any magnitude the product is zero whatever is divided
        signs = straight_through(x.x, signs, 1 / beta.clamp_min(least))
        return grouped_product(signs, held.mT, ends) * beta * rows

    def scale(self, kind: Weights) -> Tensor:
        """The scale in force: [experts, 1, 1] (ternary) or [experts, out, 1]."""
        return scale_of(self, kind)
