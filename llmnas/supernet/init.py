"""Initial weights as a pure function of a seed."""

from __future__ import annotations

import torch
from torch import nn


def initialise(model: nn.Module, depth: int, seed: int, embedding_std: float = 0.02) -> None:
    """Fill every parameter in place.

    Matrices: normal with variance 1 / fan_in (LeCun et al. 1998, eq. 16), so that the width
    of an activation does not change its size; those that write to the residual stream are
    scaled by 1 / sqrt(2 depth) (GPT-2), so that all branches together add unit variance.
    Embedding and head: normal with `embedding_std`. Gains 1, biases 0. Lower bounds of forget gates:
    from sigmoid(-3) to sigmoid(3) over the channels of a head, so that some forget at once and some hardly.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            kind = name.rsplit(".", 1)[-1]
            if kind.endswith("norm"):
                weight.fill_(1)
            elif kind.endswith("bias"):
                weight.zero_()
            elif kind in {"embedding", "head"}:
                weight.normal_(std=embedding_std, generator=generator)
            elif kind == "lower":
                weight.copy_(torch.linspace(-3, 3, weight.shape[-1]).expand_as(weight))
            elif kind in {"o", "down"}:
                fan_in = weight.shape[-1] if kind == "down" else weight[0].numel()
                weight.normal_(std=(2 * depth * fan_in) ** -0.5, generator=generator)
            else:
                weight.normal_(std=weight.shape[-1] ** -0.5, generator=generator)
