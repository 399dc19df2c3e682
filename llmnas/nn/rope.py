"""Rotary position embedding on adjacent channel pairs (Su et al. 2021, eq. 15).

Pair i of the supernet keeps its frequency in every architecture: a smaller head_dim drops
whole pairs and changes nothing for the others.
"""

from __future__ import annotations

import torch
from torch import Tensor

from llmnas.space.architecture import RopeOrder


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


def frequencies(head_dim: int, theta: float, order: RopeOrder) -> Tensor:
    """Radians a position for every stored pair, `[head_dim / 2]` float64: theta^(-2 i / head_dim)."""
    i = torch.tensor(pair_order(head_dim // 2, order), dtype=torch.float64)
    return theta ** (-2 * i / head_dim)


def rotations(freqs: Tensor, seq: int, device: torch.device, start: int = 0) -> Tensor:
    """Unit complex numbers exp(i * position * frequency) from position `start` on, `[seq, 1, pairs]` complex64.

    Angles are formed in float64: at position 100,000 float32 is off by 0.01 radian.
    """
    angles = torch.outer(torch.arange(start, start + seq, dtype=torch.float64), freqs)
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)[:, None].to(device)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn each pair (x[2i], x[2i+1]) by its angle, as one complex multiplication.

    Args:
        x: [batch, seq, heads, head_dim]; computed in float32, returned in its own dtype.
        rotation: [seq, 1, max_pairs] complex64; the leading head_dim / 2 are used.
    """
    pairs = torch.view_as_complex(x.float().view(*x.shape[:-1], -1, 2))
    turned = torch.view_as_real(pairs * rotation[..., : pairs.shape[-1]])
    return turned.flatten(-2).type_as(x)
