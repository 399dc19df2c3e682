"""Rotary position embedding on adjacent channel pairs (Su et al. 2021, eq. 15).

Pair i of the supernet keeps its frequency in every architecture: a smaller head_dim drops
whole pairs and changes nothing for the others.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from llmnas.space.architecture import BaseModel, RopeOrder
from llmnas.space.rotary import RopeScaling


def pair_order(pairs: int, order: RopeOrder) -> list[int]:
    """Which frequency stands at each stored pair; leading pairs survive slicing.

    `leading` stores frequencies from high to low. `spread` visits them in bit-reversal
    order, so that any leading part is about evenly spaced from the highest to the lowest.
    """
    if order == "leading":
        return list(range(pairs))
    bits = max(1, (pairs - 1).bit_length())
    reversed_bits = (int(f"{i:0{bits}b}"[::-1], 2) for i in range(1 << bits))
    return [i for i in reversed_bits if i < pairs]


def frequencies(
    head_dim: int, theta: float, order: RopeOrder, scaling: RopeScaling | None = None, part: float = 1.0
) -> Tensor:
    """Radians a position for every stored pair, `[head_dim / 2]` float64: theta^(-2 i / turning), then scaled.

    Args:
        head_dim: channels that frequencies are spread over.
        theta: their base.
        order: how pairs are stored.
        scaling: what stretches them.
        part: share of `head_dim` that turns; the pairs of the rest have frequency 0.
    """
    turning = rotated(head_dim, part)
    plain = theta ** (-2 * torch.arange(turning // 2, dtype=torch.float64) / turning)
    if scaling is not None:
        plain = torch.tensor(scaling.stretched(plain.tolist(), theta), dtype=torch.float64)
    whole = torch.cat([plain, plain.new_zeros((head_dim - turning) // 2)])
    return whole[torch.tensor(pair_order(head_dim // 2, order))]


def rotated(head_dim: int, part: float) -> int:
    """How many channels of a head turn, as transformers rounds it; the others carry no position."""
    return int(head_dim * part)


def rotations(freqs: Tensor, seq: int, device: torch.device, start: int = 0, magnitude: float = 1.0) -> Tensor:
    """Complex numbers exp(i * position * frequency) from position `start` on, `[seq, 1, pairs]` complex64.

    Angles are formed in float64: at position 100,000 float32 is off by 0.01 radian. `magnitude` is the length of all
    that turn (YaRN's attention factor).
    """
    angles = torch.outer(torch.arange(start, start + seq, dtype=torch.float64), freqs)
    lengths = torch.ones_like(angles).masked_fill(freqs != 0, magnitude)
    return torch.polar(lengths, angles).to(torch.complex64)[:, None].to(device)


def layer_rotations(
    base: BaseModel, rope_dim: int, layers: Iterable[int], seq: int, device: torch.device, start: int = 0
) -> dict[int, Tensor | None]:
    """`rotations` for the layers at these places; None for one without positions."""
    scaling = base.rope_scaling
    freqs = frequencies(rope_dim, base.rope_theta, base.rope_order, scaling, base.rope_part)
    main = rotations(freqs, seq, device, start, scaling.magnitude if scaling else 1.0)
    other, others = None, base.layer_rope
    if others is not None and others.theta is not None:
        freqs = frequencies(rope_dim, others.theta, base.rope_order, None, base.rope_part)
        other = rotations(freqs, seq, device, start)
    return {i: other if others is not None and i in others.layers else main for i in layers}


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn each pair (x[2i], x[2i+1]) by its angle, as one complex multiplication.

    Args:
        x: [batch, seq, heads, head_dim]; computed in float32, returned in its own dtype.
        rotation: [seq, 1, max_pairs] complex64; the leading head_dim / 2 are used.
    """
    pairs = torch.view_as_complex(x.float().view(*x.shape[:-1], -1, 2))
    turned = torch.view_as_real(pairs * rotation[..., : pairs.shape[-1]])
    return turned.flatten(-2).type_as(x)
