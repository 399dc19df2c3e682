"""The slicing rule: a smaller network uses the leading block of every weight.

A leading block is a strided view: no copy, no mask, and the cost of its own size. `read` says how the block's
values are used: as they are (None), or through a quantiser (see `ternary.reader`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor

Read = Callable[[Tensor], Tensor] | None


def linear(x: Tensor, weight: Tensor, out_features: int, bias: Tensor | None = None, read: Read = None) -> Tensor:
    """`x @ weight[:out_features, :in].T + bias[:out_features]`.

    Args:
        x: [..., in], in <= max_in.
        weight: [max_out, max_in].
        out_features: rows to use, at most max_out.
        bias: [max_out] or None.

    Returns:
        [..., out_features].
    """
    block = weight[:out_features, : x.shape[-1]]
    return F.linear(x, read(block) if read else block, None if bias is None else bias[:out_features])


def linear_heads(
    x: Tensor, weight: Tensor, sizes: tuple[int, ...], bias: Tensor | None = None, read: Read = None
) -> Tensor:
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
    block = weight[(*grid, slice(x.shape[-1]))]
    block = (read(block) if read else block).flatten(0, len(sizes) - 1)
    return F.linear(x, block, None if bias is None else bias[grid].flatten())


def linear_from_heads(
    x: Tensor, weight: Tensor, sizes: tuple[int, ...], out_features: int, read: Read = None
) -> Tensor:
    """Project a grid of heads back to the residual stream.

    Args:
        x: [..., prod(sizes)].
        weight: [max_out, *max_sizes].
        sizes: leading sizes that `x` holds of each grid axis.
        out_features: rows to use.

    Returns:
        [..., out_features].
    """
    block = weight[(slice(out_features), *(slice(size) for size in sizes))]
    return F.linear(x, (read(block) if read else block).flatten(1))
