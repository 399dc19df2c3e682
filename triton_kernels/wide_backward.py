"""Backward of the two norms on rows that the registers of a program do not hold: in blocks, each read twice.

The equations are those of `rmsnorm_quant` and `swiglu_norm_quant`. One kernel gives what flows on: a first pass over
a row sums gain dn z r, a second needs the mean of it. The other gives the gain's gradient, by blocks of columns.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmnas.triton_kernels.checks import device_of

WIDEST = 8192  # values of a row that one program keeps: more spill (benchmarks/kernel_compile_report.py)
BLOCK, WARPS = 2048, 8
GAIN_PROGRAMS = 64  # at most so many partial sums of a block of the gain's gradient


@triton.jit
def _row(source, row, stride, at, k):  # type: ignore[no-untyped-def]
    return tl.load(source + row * stride + at, mask=at < k, other=0.0).to(tl.float32)


@triton.jit
def _normed(first, second, row, stride_1, stride_2, at, k, GATED: tl.constexpr):  # type: ignore[no-untyped-def]  # noqa: N803
    """What the norm saw: the stream, or silu(gate) up."""
    z = _row(first, row, stride_1, at, k)
    if GATED:
        z = z * tl.sigmoid(z) * _row(second, row, stride_2, at, k)
    return z


@triton.jit
def wide_backward_kernel(  # type: ignore[no-untyped-def]
    grad, stream_grad, first, second, gain, inverses, dfirst, dsecond, k, stride_g, stride_s, stride_1, stride_2,
    GATED: tl.constexpr, STREAM: tl.constexpr, BLOCK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """One program a token."""
    row = tl.program_id(0).to(tl.int64)
    inverse = tl.load(inverses + row)
    products = tl.zeros([BLOCK], tl.float32)
    for start in range(0, k, BLOCK):
        at = start + tl.arange(0, BLOCK)
        unit = _normed(first, second, row, stride_1, stride_2, at, k, GATED) * inverse
        products += _row(grad, row, stride_g, at, k) * _row(gain, 0, 0, at, k) * unit
    mean = tl.sum(products, 0) / k
    for start in range(0, k, BLOCK):
        at = start + tl.arange(0, BLOCK)
        unit = _normed(first, second, row, stride_1, stride_2, at, k, GATED) * inverse
        dz = inverse * (_row(grad, row, stride_g, at, k) * _row(gain, 0, 0, at, k) - unit * mean)
        if GATED:
            g = _row(first, row, stride_1, at, k)
            u = _row(second, row, stride_2, at, k)
            s = tl.sigmoid(g)
            tl.store(dsecond + row * k + at, (dz * g * s).to(dsecond.dtype.element_ty), mask=at < k)
            dz = dz * u * s * (1 + g * (1 - s))
        if STREAM:
            dz += _row(stream_grad, row, stride_s, at, k)
        tl.store(dfirst + row * k + at, dz.to(dfirst.dtype.element_ty), mask=at < k)


@triton.jit
def wide_gain_kernel(  # type: ignore[no-untyped-def]
    grad, first, second, inverses, dgain, m, k, stride_g, stride_1, stride_2,
    GATED: tl.constexpr, BLOCK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Program (i, j) takes block j of each num_programs(0)-th token from i on, and writes it in row i of `dgain`."""
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for turn in range(0, tl.cdiv(m - tl.program_id(0), tl.num_programs(0))):
        row = tl.program_id(0).to(tl.int64) + turn * tl.num_programs(0)
        unit = _normed(first, second, row, stride_1, stride_2, at, k, GATED) * tl.load(inverses + row)
        total += _row(grad, row, stride_g, at, k) * unit
    tl.store(dgain + tl.program_id(0).to(tl.int64) * k + at, total, mask=at < k)


def wide_backward(
    grad: Tensor, inputs: tuple[Tensor, ...], gain: Tensor, inverses: Tensor, stream_grad: Tensor | None = None
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Gradients of the inputs and of the gain; arguments as their callers have checked them.

    Args:
        grad: [M, K], M at least 1.
        inputs: the stream, or gate and up; [M, K] each.
        gain: [K].
        inverses: fp32 [M].
        stream_grad: [M, K] that arrives on the residual stream, or None.
    """
    m, k = inputs[0].shape
    first, second = inputs[0], inputs[-1]
    gated, programs = len(inputs) == 2, min(m, GAIN_PROGRAMS)
    found = tuple(torch.empty((m, k), dtype=one.dtype, device=one.device) for one in inputs)
    dgain = torch.empty((programs, k), dtype=torch.float32, device=grad.device)
    arriving = grad if stream_grad is None else stream_grad
    with device_of(first):
        wide_backward_kernel[(m,)](
            grad, arriving, first, second, gain, inverses, found[0], found[-1], k,
            grad.stride(0), arriving.stride(0), first.stride(0), second.stride(0),
            GATED=gated, STREAM=stream_grad is not None, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip
        wide_gain_kernel[(programs, triton.cdiv(k, BLOCK))](
            grad, first, second, inverses, dgain, m, k, grad.stride(0), first.stride(0), second.stride(0),
            GATED=gated, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip
    return found, dgain.sum(0).to(gain.dtype)
