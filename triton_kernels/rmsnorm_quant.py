"""RMSNorm (Zhang and Sennrich 2019, eq. 4) and int8 quantisation of a token in one pass, residual added first.

    z = x + residual      r = 1 / sqrt(mean z^2 + eps)      n = z r gain      codes, s = act_quant(n)

Backward, with the gradient of n straight through the rounding: dz = r (gain dn - z r mean(gain dn z r)) + what
arrives on the residual stream; dgain = sum over tokens of dn z r, each program summing its own tokens.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmnas.triton_kernels.act_quant import quantise_row
from llmnas.triton_kernels.checks import FLOATS, device_of, row_block, same_device, tensor
from llmnas.triton_kernels.tiles import row_warps
from llmnas.triton_kernels.wide_backward import WIDEST, wide_backward

PROGRAMS = 256  # at most so many partial sums of the gain's gradient


@triton.jit
def normalise(z, gain, k, eps, at):  # type: ignore[no-untyped-def]
    """fp32 row z [BLOCK] -> z r gain and r."""
    inverse = tl.div_rn(1.0, tl.sqrt_rn(tl.sum(z * z, 0) / k + eps))
    return z * inverse * tl.load(gain + at, mask=at < k, other=0.0).to(tl.float32), inverse


@triton.jit
def normalise_backward(grad, z, inverse, gain, k, at):  # type: ignore[no-untyped-def]
    """Gradient of a row z, and the row's part of the gain's gradient."""
    unit = z * inverse
    scaled = grad * tl.load(gain + at, mask=at < k, other=0.0).to(tl.float32)
    return inverse * (scaled - unit * (tl.sum(scaled * unit, 0) / k)), grad * unit


@triton.jit
def rmsnorm_quant_kernel(  # type: ignore[no-untyped-def]
    x, residual, gain, stream, codes, scales, inverses, k, eps, stride_x, stride_r,
    RESIDUAL: tl.constexpr, BLOCK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """One program a token."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    z = tl.load(x + row * stride_x + at, mask=at < k, other=0.0).to(tl.float32)
    if RESIDUAL:
        z += tl.load(residual + row * stride_r + at, mask=at < k, other=0.0).to(tl.float32)
        rounded = z.to(stream.dtype.element_ty)
        tl.store(stream + row * k + at, rounded, mask=at < k)
        z = rounded.to(tl.float32)
    normal, inverse = normalise(z, gain, k, eps, at)
    quantised, scale = quantise_row(normal)
    tl.store(codes + row * k + at, quantised, mask=at < k)
    tl.store(scales + row, scale)
    tl.store(inverses + row, inverse)


@triton.jit
def rmsnorm_backward_kernel(  # type: ignore[no-untyped-def]
    grad, stream_grad, stream, gain, inverses, dx, dgain, m, k, stride_g, stride_s, stride_z,
    STREAM: tl.constexpr, BLOCK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Every program takes each num_programs-th token and writes one row of `dgain`."""
    at = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for turn in range(0, tl.cdiv(m - tl.program_id(0), tl.num_programs(0))):
        wide = tl.program_id(0).to(tl.int64) + turn * tl.num_programs(0)
        z = tl.load(stream + wide * stride_z + at, mask=at < k, other=0.0).to(tl.float32)
        g = tl.load(grad + wide * stride_g + at, mask=at < k, other=0.0).to(tl.float32)
        dz, part = normalise_backward(g, z, tl.load(inverses + wide), gain, k, at)
        total += part
        if STREAM:
            dz += tl.load(stream_grad + wide * stride_s + at, mask=at < k, other=0.0).to(tl.float32)
        tl.store(dx + wide * k + at, dz.to(dx.dtype.element_ty), mask=at < k)
    tl.store(dgain + tl.program_id(0).to(tl.int64) * k + at, total, mask=at < k)


def rmsnorm_quant(
    x: Tensor, gain: Tensor, eps: float, residual: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Normalise and quantise each token.

    Args:
        x: [M, K] fp32, bf16 or fp16; rows may lie apart.
        gain: [K], a float type.
        eps: added to the mean square.
        residual: [M, K] of x's dtype, added first; None for nothing.

    Returns:
        int8 codes [M, K], fp32 scales s [M], the stream x + residual [M, K] (x itself without a residual), r [M].

    Raises:
        ValueError: wrong shape, dtype, stride or device.
    """
    tensor("x", x, (None, None), FLOATS)
    m, k = x.shape
    tensor("gain", gain, (k,), FLOATS)
    if residual is not None:
        tensor("residual", residual, (m, k), (x.dtype,))
    same_device("x", x, gain=gain, residual=residual)
    block = row_block("x", k)
    stream = x if residual is None else torch.empty((m, k), dtype=x.dtype, device=x.device)
    codes = torch.empty((m, k), dtype=torch.int8, device=x.device)
    scales = torch.empty((m,), dtype=torch.float32, device=x.device)
    inverses = torch.empty((m,), dtype=torch.float32, device=x.device)
    if m:
        with device_of(x):
            rmsnorm_quant_kernel[(m,)](
                x, x if residual is None else residual, gain, stream, codes, scales, inverses, k, eps,
                x.stride(0), 0 if residual is None else residual.stride(0),
                RESIDUAL=residual is not None, BLOCK=block, num_warps=row_warps(block), enable_fp_fusion=False,
            )  # fmt: skip
    return codes, scales, stream, inverses


def rmsnorm_backward(
    grad: Tensor, stream: Tensor, gain: Tensor, inverses: Tensor, stream_grad: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Gradients of the norm, rounding ignored.

    Args:
        grad: [M, K] of the normalised token.
        stream: [M, K], as `rmsnorm_quant` returned it.
        gain: [K].
        inverses: fp32 [M], as `rmsnorm_quant` returned it.
        stream_grad: [M, K] that arrives on the residual stream, or None.

    Returns:
        Gradient of x (and of the residual) [M, K] in the stream's dtype; of the gain [K] in the gain's dtype.

    Raises:
        ValueError: wrong shape, dtype, stride or device.
    """
    tensor("stream", stream, (None, None), FLOATS)
    m, k = stream.shape
    tensor("grad", grad, (m, k), FLOATS)
    tensor("gain", gain, (k,), FLOATS)
    tensor("inverses", inverses, (m,), (torch.float32,))
    if stream_grad is not None:
        tensor("stream_grad", stream_grad, (m, k), FLOATS)
    same_device("stream", stream, grad=grad, gain=gain, inverses=inverses, stream_grad=stream_grad)
    block = row_block("stream", k)
    if m and block > WIDEST:
        (dx,), wide = wide_backward(grad, (stream,), gain, inverses, stream_grad)
        return dx, wide
    dx = torch.empty((m, k), dtype=stream.dtype, device=stream.device)
    programs = min(m, PROGRAMS)
    dgain = torch.empty((programs, k), dtype=torch.float32, device=stream.device)
    if m:
        with device_of(stream):
            rmsnorm_backward_kernel[(programs,)](
                grad, grad if stream_grad is None else stream_grad, stream, gain, inverses, dx, dgain, m, k,
                grad.stride(0), 0 if stream_grad is None else stream_grad.stride(0), stream.stride(0),
                STREAM=stream_grad is not None, BLOCK=block, num_warps=row_warps(block),
            )  # fmt: skip
    return dx, dgain.sum(0).to(gain.dtype)
