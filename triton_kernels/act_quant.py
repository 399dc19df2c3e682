"""int8 activations, one scale a token (Ma et al. 2024, section 2): s = 127 / max(max |x|, 1e-5), codes = round(x s)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmnas.triton_kernels.checks import FLOATS, device_of, row_block, same_device, tensor
from llmnas.triton_kernels.tiles import row_warps


@triton.jit
def round_even(v):  # type: ignore[no-untyped-def]
    """Round half to even for |v| < 2^22: adding 1.5 x 2^23 leaves no fraction bits. Needs enable_fp_fusion=False."""
    return (v + 12582912.0) - 12582912.0


@triton.jit
def quantise_row(y):  # type: ignore[no-untyped-def]
    """A row of fp32 [BLOCK], zeros behind its end -> its int8 codes and scale."""
    # a GPU's maximum passes over a NaN, which must not become an ordinary number: codes and s are 0, as of an infinity
    size = tl.where(y == y, tl.abs(y), float("inf"))
    # torch computes 127 / v as (1 / v) 127: the same two roundings here, so that the codes agree bit for bit
    scale = tl.div_rn(1.0, tl.maximum(tl.max(size, 0), 1e-5)) * 127.0
    value = y * scale
    return round_even(tl.where(value == value, value, 0.0)).to(tl.int8), scale


@triton.jit
def act_quant_kernel(x, codes, scales, k, stride_x, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: N803
    """One program a token."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    y = tl.load(x + row * stride_x + at, mask=at < k, other=0.0).to(tl.float32)
    quantised, scale = quantise_row(y)
    tl.store(codes + row * k + at, quantised, mask=at < k)
    tl.store(scales + row, scale)


def act_quant(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise each token to int8.

    Args:
        x: [M, K] fp32, bf16 or fp16 on a GPU; rows may lie apart.

    Returns:
        int8 codes [M, K] and fp32 scales s [M]; codes / s is about x.

    Raises:
        ValueError: wrong shape, dtype, stride or device.
    """
    tensor("x", x, (None, None), FLOATS)
    same_device("x", x)
    m, k = x.shape
    block = row_block("x", k)
    codes = torch.empty((m, k), dtype=torch.int8, device=x.device)
    scales = torch.empty((m,), dtype=torch.float32, device=x.device)
    if m:
        with device_of(x):
            act_quant_kernel[(m,)](
                x, codes, scales, k, x.stride(0), BLOCK=block, num_warps=row_warps(block), enable_fp_fusion=False
            )
    return codes, scales
