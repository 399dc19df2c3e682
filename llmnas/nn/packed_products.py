"""Products with packed weights on the CPU: compiled loops where numba is installed, else plain torch; equal sums.

An exported folder runs wherever torch and transformers do, so numba makes it fast and is no condition. Without it a
weight is unpacked for every product: the same numbers, several times slower.
Letters: M tokens, K inputs, N outputs.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from llmnas.triton_kernels import reference

EXACT_INPUTS = 1 << 17  # 127 x 2^17 < 2^24: fp32 sums of so many products are exact


@functools.cache
def compiled() -> bool:
    """Whether numba is there; importing it takes a second, so only packed weights ask."""
    try:
        import numba  # noqa: F401
    except ImportError:
        return False
    return True


def unpacked(weight: Tensor) -> Tensor:
    """A packed weight as int8 [N, K]: {-1, 0, 1} of uint8 [N, K / 4], {-1, 1} of int32 [N, K / 32]."""
    return reference.unpack2(weight) if weight.dtype == torch.uint8 else reference.unpack1(weight)


def quantise(x: Tensor) -> tuple[Tensor, Tensor]:
    """fp32 tokens [M, K] with neighbouring features to int8 codes [M, K] and scales [M]."""
    if not compiled():
        return reference.act_quant(x)
    from llmnas.nn import packed_cpu

    return packed_cpu.quantise(x)


def ternary(codes: Tensor, packed: Tensor) -> Tensor:
    """int8 codes [M, K], K at most 2^17, times 2-bit weights, uint8 [N, K / 4] -> exact sums, fp32 [M, N]."""
    if not compiled():
        return F.linear(codes.float(), unpacked(packed).float())
    from llmnas.nn import packed_cpu

    return packed_cpu.matmul(codes, packed)


def signs(x: Tensor, bits: Tensor) -> Tensor:
    """Signs of fp32 tokens [M, K] times 1-bit weights, int32 [N, K / 32] -> exact sums, fp32 [M, N]."""
    if not compiled():
        return F.linear(torch.where(x >= 0, 1.0, -1.0), unpacked(bits).float())
    from llmnas.nn import packed_signs

    return packed_signs.count(x, bits)


def added(codes: Tensor, bits: Tensor) -> Tensor:
    """int8 codes [M, K] times 1-bit weights, int32 [N, K / 32] -> exact sums, fp32 [M, N]."""
    if not compiled():
        return F.linear(codes.float(), unpacked(bits).float())
    from llmnas.nn import packed_signs

    return packed_signs.add(codes, bits)
