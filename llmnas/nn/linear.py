"""The slicing rule: a smaller network uses the leading block of every weight.

A leading block is a strided view: no copy, no mask, and the cost of its own size.
"""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor


def linear(x: Tensor, weight: Tensor, out_features: int, bias: Tensor | None = None) -> Tensor:
    """`x @ weight[:out_features, :in].T + bias[:out_features]`.

    Args:
        x: [..., in], in <= max_in.
        weight: [max_out, max_in].
        out_features: rows to use, at most max_out.
        bias: [max_out] or None.

    Returns:
        [..., out_features].
    """
    return F.linear(x, weight[:out_features, : x.shape[-1]], None if bias is None else bias[:out_features])


def linear_heads(x: Tensor, weight: Tensor, sizes: tuple[int, ...], bias: Tensor | None = None) -> Tensor:
    """`linear` for a weight whose output features form a grid of heads.

    Slicing only the first axis of the grid is a view; slicing an inner one copies the
    block once (`reshape`), which a stand-alone model never pays.

    Args:
        x: [..., in], in <= max_in.
        weight: [*max_sizes, max_in], for instance [kv_heads, queries_per_group, head_dim, hidden].
        sizes: leading sizes to use of each grid axis.
        bias: [*max_sizes] or None.

    Returns:
        [..., prod(sizes)].
    """
    grid = tuple(slice(size) for size in sizes)
    block = weight[(*grid, slice(x.shape[-1]))].flatten(0, len(sizes) - 1)
    return F.linear(x, block, None if bias is None else bias[grid].flatten())


def linear_from_heads(x: Tensor, weight: Tensor, sizes: tuple[int, ...], out_features: int) -> Tensor:
    """Project a grid of heads back to the residual stream.

    Args:
        x: [..., prod(sizes)].
        weight: [max_out, *max_sizes].
        sizes: leading sizes that `x` holds of each grid axis.
        out_features: rows to use.

    Returns:
        [..., out_features].
    """
    grid = tuple(slice(size) for size in sizes)
    return F.linear(x, weight[(slice(out_features), *grid)].flatten(1))
