"""Initial weights as a pure function of a seed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor, nn

EMBEDDING_STD = 0.02


def initialise(
    model: nn.Module,
    depth: int,
    seed: int,
    opened: Callable[[nn.Parameter], contextlib.AbstractContextManager[None]] | None = None,
) -> None:
    """Fill every parameter in place, one after the other in the order of the module.

    Matrices: normal with variance 1 / fan_in (LeCun et al. 1998, eq. 16), so that the width
    of an activation does not change its size; those that write to the residual stream are
    scaled by 1 / sqrt(2 depth) (GPT-2), so that all branches together add unit variance.
    Embedding and head: normal with `EMBEDDING_STD`. Gains 1, biases 0. Lower bounds of forget gates:
    from sigmoid(-3) to sigmoid(3) over the channels of a head, so that some forget at once and some hardly.

    Args:
        model: filled in place; values are drawn in fp32 on the CPU whatever its device and type, so equal
            seeds give equal weights everywhere.
        depth: layers that add to the residual stream.
        seed: of the one generator that all values come from.
        opened: entered around each parameter, for one that is whole only while it is open (ZeRO-3).
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            with opened(weight) if opened else contextlib.nullcontext():
                if weight.is_meta or (weight.device.type == "cpu" and weight.dtype == torch.float32):
                    _fill(name, weight, depth, generator)
                else:
                    drawn = torch.empty(weight.shape, dtype=torch.float32, device="cpu")
                    _fill(name, drawn, depth, generator)
                    weight.copy_(drawn)


def _fill(name: str, weight: Tensor, depth: int, generator: torch.Generator) -> None:
    kind = name.rsplit(".", 1)[-1]
    if kind.endswith("norm"):
        weight.fill_(1)
    elif kind.endswith("bias"):
        weight.zero_()
    elif kind in {"embedding", "head"}:
        weight.normal_(std=EMBEDDING_STD, generator=generator)
    elif kind == "lower":
        weight.copy_(torch.linspace(-3, 3, weight.shape[-1]).expand_as(weight))
    elif kind in {"o", "down"}:
        fan_in = weight.shape[-1] if kind == "down" else weight[0].numel()
        weight.normal_(std=(2 * depth * fan_in) ** -0.5, generator=generator)
    else:
        weight.normal_(std=weight.shape[-1] ** -0.5, generator=generator)
