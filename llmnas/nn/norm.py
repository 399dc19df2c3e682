"""Norms over the active width."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * gain, Zhang and Sennrich 2019, eq. 4.

    The mean runs over the channels that are there, so a sub-network normalises exactly
    as its stand-alone copy does.

    Args:
        x: [..., width].
        gain: [max_width]; the leading `width` entries are used.
        eps: added to the mean square.
    """
    width = x.shape[-1]
    return F.rms_norm(x, (width,), gain[:width], eps)


def stream_norm(x: Tensor, gain: Tensor, eps: float, kind: Literal["rms", "layer"]) -> Tensor:
    """A norm of the residual stream: `rms_norm`, or LayerNorm without a shift (Ba et al. 2016)."""
    if kind == "rms":
        return rms_norm(x, gain, eps)
    return F.layer_norm(x, (x.shape[-1],), gain[: x.shape[-1]], None, eps)
