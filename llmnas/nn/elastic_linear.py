"""Linear layers and an embedding of the largest network that any smaller one runs: it uses the leading block.

A leading block is a strided view: no copy, no mask, and the cost of its own size. Where features form a grid (heads,
their queries, channels of a head), leading means leading on every axis of it; the weight is that of an `nn.Linear`, two
dimensions, viewed as the grid. Only a cut through an inner axis copies the block, once a call; a stand-alone network
never pays that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor, nn

from llmnas.nn import kernels
from llmnas.nn.kernels import Codes
from llmnas.nn.lowbit import Tokens
from llmnas.nn.ternary import add_scales, fake_quantised, scale_name, scale_of
from llmnas.space.architecture import Weights

Sizes = int | tuple[int, ...]
"""How many features, or how many on every axis of a grid of them."""


def axes(sizes: Sizes) -> tuple[int, ...]:
    """The grid of `sizes`."""
    return (sizes,) if isinstance(sizes, int) else sizes


class ElasticLinear(nn.Linear):
    """An `nn.Linear` that is called with the sizes and the kind of weights of a sub-network.

    Args:
        columns: input features.
        rows: output features.
        bias: whether there is one, [prod(rows)].
        kinds: how the weight may be read; every low-bit kind has a scale, see `ternary.add_scales`.
    """

    __call__: Callable[..., Tensor]

    def __init__(self, columns: Sizes, rows: Sizes, *, bias: bool = False, kinds: Sequence[Weights] = ()) -> None:
        super().__init__(math.prod(axes(columns)), math.prod(axes(rows)), bias)
        self.columns, self.rows = axes(columns), axes(rows)
        self.kinds = add_scales(self, kinds)

    def reset_parameters(self) -> None:
        """Leave the weight unset, for `supernet.init` or a file, whatever the global generator holds; biases are 0."""
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @property
    def grid(self) -> torch.Size:
        """[*rows, *columns]: the shape in which a smaller network has the leading block of the weight."""
        return torch.Size((*self.rows, *self.columns))

    def forward(  # type: ignore[override]
        self, x: Tokens, out: Sizes, kind: Weights = "dense", columns: Sizes | None = None
    ) -> Tensor:
        """`x @ weight[:out, :columns].T + bias[:out]`.

        Args:
            x: [..., prod(columns)], from `lowbit.inputs` or its like.
            out: leading rows to use.
            kind: how the weight is read.
            columns: leading columns that `x` holds; None where they are no grid.

        Returns:
            [..., prod(out)].
        """
        out, columns = axes(out), axes(x.shape[-1] if columns is None else columns)
        weight = leading(self.weight, self.rows, self.columns, out, columns)
        bias = None if self.bias is None else leading_rows(self.bias, self.rows, out)
        if isinstance(x, Tensor):
            return F.linear(x, weight if kind == "dense" else fake_quantised(weight, self.scale(kind, out), kind), bias)
        if isinstance(x, Codes):
            y = kernels.code_linear(x, weight, self.scale(kind, out), kind)
        else:
            y = kernels.binary_linear(x.x, weight, self.scale(kind, out))
        return y if bias is None else y + bias

    def scale(self, kind: Weights, out: Sizes | None = None) -> Tensor:
        """The scale in force: [1, 1] (ternary) or that of the leading rows, [prod(out), 1]."""
        full = scale_of(self, kind)
        return full if out is None or len(full) == 1 else leading_rows(full, self.rows, axes(out))

    def extra_repr(self) -> str:
        """Its sizes."""
        return f"columns={self.columns}, rows={self.rows}, bias={self.bias is not None}"


class ElasticEmbedding(nn.Embedding):
    """An `nn.Embedding` of which smaller networks read the leading channels."""

    __call__: Callable[..., Tensor]

    def reset_parameters(self) -> None:
        """Leave the weight unset, as `ElasticLinear.reset_parameters`."""

    def forward(self, tokens: Tensor, hidden_size: int | None = None) -> Tensor:
        """[...] int64 -> [..., hidden_size], by default as wide as the weight."""
        return F.embedding(tokens, self.weight[:, :hidden_size])


def leading(
    weight: Tensor, rows: tuple[int, ...], columns: tuple[int, ...], out: tuple[int, ...], inner: tuple[int, ...]
) -> Tensor:
    """The leading `out` x `inner` of a weight [prod(rows), prod(columns)], [prod(out), prod(inner)]."""
    if rows[1:] == out[1:] and columns[1:] == inner[1:]:  # whole behind the first axes: still two dimensions
        wanted = (math.prod(out), math.prod(inner))
        return weight if weight.shape == wanted else weight[: wanted[0], : wanted[1]]
    block = weight.view(*rows, *columns)[tuple(slice(size) for size in (*out, *inner))]
    return block.flatten(len(out)).flatten(0, len(out) - 1)


def leading_rows(values: Tensor, rows: tuple[int, ...], out: tuple[int, ...]) -> Tensor:
    """The leading `out` of values [prod(rows), ...], [prod(out), ...]."""
    if rows == out:
        return values
    return values.view(*rows, *values.shape[1:])[tuple(slice(size) for size in out)].flatten(0, len(out) - 1)


def grids(model: nn.Module) -> dict[str, torch.Size]:
    """Of every tensor that is stored flatter than it is sliced, the shape in which it is sliced, by its name."""
    found: dict[str, torch.Size] = {}
    for path, module in model.named_modules():
        if isinstance(module, ElasticLinear):
            found[f"{path}.weight"] = module.grid
            found[f"{path}.bias"] = torch.Size(module.rows)
            found[f"{path}.{scale_name('binary')}"] = torch.Size((*module.rows, 1))
    return found


def role(name: str) -> str:
    """What a parameter is in its layer: `q` for `layers.0.attention.q.weight`, `bias` for that of any linear layer."""
    return name.removesuffix(".weight").rpartition(".")[2]


def ordered_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Parameters in the order that seeds and checkpoints know: by layer its matrices, their biases, then the rest."""
    place = {path: i for i, (path, _) in enumerate(model.named_modules())}

    def key(item: tuple[str, nn.Parameter]) -> tuple[int, int]:
        path, _, last = item[0].rpartition(".")
        matrix = last in {"weight", "bias"}
        layer = path.rpartition(".")[0] if matrix else path
        return place[layer], 3 if role(item[0]) == "head" else ("weight", "bias", last).index(last)

    return sorted(model.named_parameters(), key=key)
