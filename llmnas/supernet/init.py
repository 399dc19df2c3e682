"""Initial weights as a pure function of a seed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from llmnas.nn.elastic_linear import ordered_parameters, role


class _Scale(NamedTuple):
    """Layers, deviation of the embedding, and of what all branches together add."""

    depth: int
    embedding: float
    branch: float


def initialise(
    model: nn.Module,
    depth: int,
    seed: int,
    opened: Callable[[nn.Parameter], contextlib.AbstractContextManager[None]] | None = None,
    embedding_std: float = 0.02,
) -> None:
    """Fill every parameter in place, one after the other, see `ordered_parameters`.

    Matrices: normal with variance 1 / fan_in (LeCun et al. 1998, eq. 16), so that the width
    of an activation does not change its size; those that write to the residual stream are
    scaled by embedding_std / sqrt(2 depth), so that all branches together add what the
    embedding has (GPT-2 leaves out the first factor: random branches then drown the
    embedding, and a short run ends 0.2 nat higher, see docs/benchmarks.md). Where a matrix
    may be read as low-bit, the factor is left out: its steps must not flip every sign.
    Embedding and head: normal with `embedding_std`. Gains 1, biases 0. Lower bounds of forget gates:
    from sigmoid(-3) to sigmoid(3) over the channels of a head, so that some forget at once and some hardly.

    Args:
        model: filled in place; values are drawn in fp32 on the CPU whatever its device and type, so equal
            seeds give equal weights everywhere.
        depth: layers that add to the residual stream.
        seed: of the one generator that all values come from.
        opened: entered around each parameter, for one that is whole only while it is open (ZeRO-3).
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = ordered_parameters(model)
    names = {name for name, _ in parameters}
    with torch.no_grad():
        for name, weight in parameters:
            low_bit = f"{name.rsplit('.', 2)[0]}.inner_norm" in names
            scale = _Scale(depth, embedding_std, 1.0 if low_bit else embedding_std)
            with opened(weight) if opened else contextlib.nullcontext():
                if weight.is_meta or (weight.device.type == "cpu" and weight.dtype == torch.float32):
                    _fill(name, weight, scale, generator)
                else:
                    drawn = torch.empty(weight.shape, dtype=torch.float32, device="cpu")
                    _fill(name, drawn, scale, generator)
                    weight.copy_(drawn)


def _fill(name: str, weight: Tensor, scale: _Scale, generator: torch.Generator) -> None:
    kind = role(name)
    if kind.endswith("norm"):
        weight.fill_(1)
    elif kind.endswith("bias"):
        weight.zero_()
    elif kind in {"embedding", "head"}:
        weight.normal_(std=scale.embedding, generator=generator)
    elif kind == "lower":
        weight.copy_(torch.linspace(-3, 3, weight.shape[-1]).expand_as(weight))
    elif kind in {"o", "down"}:
        weight.normal_(std=scale.branch * (2 * scale.depth * weight.shape[-1]) ** -0.5, generator=generator)
    else:
        weight.normal_(std=weight.shape[-1] ** -0.5, generator=generator)
