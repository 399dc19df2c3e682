"""What stands between the two halves of a ternary SwiGLU, in one pass: a = silu(gate) up, RMSNorm, int8.

Shazeer 2020, eq. 6; the norm before a ternary linear is BitNet b1.58's. Backward recomputes a from gate and up:
dup = da silu(gate), dgate = da up sigmoid(gate) (1 + gate (1 - sigmoid(gate))).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmnas.triton_kernels.act_quant import quantise_row
from llmnas.triton_kernels.checks import FLOATS, device_of, row_block, same_device, tensor
from llmnas.triton_kernels.rmsnorm_quant import PROGRAMS, normalise, normalise_backward
from llmnas.triton_kernels.tiles import row_warps
from llmnas.triton_kernels.wide_backward import WIDEST, wide_backward


@triton.jit
def swiglu_norm_quant_kernel(  # type: ignore[no-untyped-def]
    gate, up, gain, codes, scales, inverses, k, eps, stride_g, stride_u, BLOCK: tl.constexpr  # noqa: N803
):  # fmt: skip
    """One program a token."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    g = tl.load(gate + row * stride_g + at, mask=at < k, other=0.0).to(tl.float32)
    u = tl.load(up + row * stride_u + at, mask=at < k, other=0.0).to(tl.float32)
    normal, inverse = normalise(g * tl.sigmoid(g) * u, gain, k, eps, at)
    quantised, scale = quantise_row(normal)
    tl.store(codes + row * k + at, quantised, mask=at < k)
    tl.store(scales + row, scale)
    tl.store(inverses + row, inverse)


@triton.jit
def swiglu_norm_backward_kernel(  # type: ignore[no-untyped-def]
    grad, gate, up, gain, inverses, dgate, dup, dgain, m, k, stride_d, stride_g, stride_u,
    BLOCK: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Every program takes each num_programs-th token and writes one row of `dgain`."""
    at = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for turn in range(0, tl.cdiv(m - tl.program_id(0), tl.num_programs(0))):
        wide = tl.program_id(0).to(tl.int64) + turn * tl.num_programs(0)
        g = tl.load(gate + wide * stride_g + at, mask=at < k, other=0.0).to(tl.float32)
        u = tl.load(up + wide * stride_u + at, mask=at < k, other=0.0).to(tl.float32)
        d = tl.load(grad + wide * stride_d + at, mask=at < k, other=0.0).to(tl.float32)
        s = tl.sigmoid(g)
        da, part = normalise_backward(d, g * s * u, tl.load(inverses + wide), gain, k, at)
        total += part
        tl.store(dup + wide * k + at, (da * g * s).to(dup.dtype.element_ty), mask=at < k)
        tl.store(dgate + wide * k + at, (da * u * s * (1 + g * (1 - s))).to(dgate.dtype.element_ty), mask=at < k)
    tl.store(dgain + tl.program_id(0).to(tl.int64) * k + at, total, mask=at < k)


def check(gate: Tensor, up: Tensor, gain: Tensor) -> tuple[int, int, int]:
    """M, K and the row block.

    Raises:
        ValueError: wrong shape, dtype, stride or device.
    """
    tensor("gate", gate, (None, None), FLOATS)
    m, k = gate.shape
    tensor("up", up, (m, k), (gate.dtype,))
    tensor("gain", gain, (k,), FLOATS)
    same_device("gate", gate, up=up, gain=gain)
    return m, k, row_block("gate", k)


def swiglu_norm_quant(gate: Tensor, up: Tensor, gain: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gate, normalise and quantise each token.

    Args:
        gate: [M, K] fp32, bf16 or fp16; rows may lie apart.
        up: [M, K], same dtype.
        gain: [K], a float type.
        eps: added to the mean square.

    Returns:
        int8 codes [M, K], fp32 scales s [M], r [M] = 1 / sqrt(mean a^2 + eps).

    Raises:
        ValueError: wrong shape, dtype, stride or device.
    """
    m, k, block = check(gate, up, gain)
    codes = torch.empty((m, k), dtype=torch.int8, device=gate.device)
    scales = torch.empty((m,), dtype=torch.float32, device=gate.device)
    inverses = torch.empty((m,), dtype=torch.float32, device=gate.device)
    if m:
        with device_of(gate):
            swiglu_norm_quant_kernel[(m,)](
                gate, up, gain, codes, scales, inverses, k, eps, gate.stride(0), up.stride(0),
                BLOCK=block, num_warps=row_warps(block), enable_fp_fusion=False,
            )  # fmt: skip
    return codes, scales, inverses


def swiglu_norm_backward(
    grad: Tensor, gate: Tensor, up: Tensor, gain: Tensor, inverses: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of gate [M, K], up [M, K] and gain [K], rounding ignored.

    Args:
        grad: [M, K] of the normalised product.
        gate: as given to `swiglu_norm_quant`, and so `up` and `gain`.
        up: [M, K].
        gain: [K].
        inverses: fp32 [M], as `swiglu_norm_quant` returned it.

    Raises:
        ValueError: wrong shape, dtype, stride or device.
    """
    m, k, block = check(gate, up, gain)
    tensor("grad", grad, (m, k), FLOATS)
    tensor("inverses", inverses, (m,), (torch.float32,))
    same_device("gate", gate, grad=grad, inverses=inverses)
    if m and block > WIDEST:
        (dgate, dup), wide = wide_backward(grad, (gate, up), gain, inverses)
        return dgate, dup, wide
    dgate = torch.empty((m, k), dtype=gate.dtype, device=gate.device)
    dup = torch.empty((m, k), dtype=gate.dtype, device=gate.device)
    programs = min(m, PROGRAMS)
    dgain = torch.empty((programs, k), dtype=torch.float32, device=gate.device)
    if m:
        with device_of(gate):
            swiglu_norm_backward_kernel[(programs,)](
                grad, gate, up, gain, inverses, dgate, dup, dgain, m, k,
                grad.stride(0), gate.stride(0), up.stride(0), BLOCK=block, num_warps=row_warps(block),
            )  # fmt: skip
    return dgate, dup, dgain.sum(0).to(gain.dtype)
