"""A ternary linear layer for training: packed product forward, straight-through gradients backward.

    Y = gamma X' T',  X' = codes / s        dX = gamma dY T        dW = dY' X' into the leading block of the full weight

Quantisation is a separate, differentiable step that yields `Quantised`: integers for the product, and an empty
tensor through which the gradient of X flows back, so no dense copy of X' exists.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmnas.triton_kernels import tiles
from llmnas.triton_kernels.act_quant import act_quant
from llmnas.triton_kernels.checks import FLOATS, device_of, interpreted, require, tensor
from llmnas.triton_kernels.rmsnorm_quant import rmsnorm_backward, rmsnorm_quant
from llmnas.triton_kernels.swiglu_norm_quant import swiglu_norm_backward, swiglu_norm_quant
from llmnas.triton_kernels.ternary_matmul import ternary_matmul
from llmnas.triton_kernels.ternary_pack import pack2


class Quantised(NamedTuple):
    """Tokens as the integers see them: codes / scales."""

    codes: Tensor  # int8 [M, K]
    scales: Tensor  # fp32 [M]
    link: Tensor  # [M, K], one number's storage: carries the gradient, never read


@triton.jit
def grad_input_kernel(  # type: ignore[no-untyped-def]
    grad, packed, gamma, dx, m, n, width, stride_g, stride_p, stride_d,
    DOT: tl.constexpr, PRECISION: tl.constexpr,  # noqa: N803
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """dX tile: BLOCK_M tokens, the four planes of BLOCK_B bytes; DOT: the operands' type, PRECISION: of fp32 ones."""
    token = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    byte = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B)
    out = tl.arange(0, BLOCK_N)
    plane0 = tl.zeros([BLOCK_M, BLOCK_B], tl.float32)
    plane1 = tl.zeros([BLOCK_M, BLOCK_B], tl.float32)
    plane2 = tl.zeros([BLOCK_M, BLOCK_B], tl.float32)
    plane3 = tl.zeros([BLOCK_M, BLOCK_B], tl.float32)
    for start in range(0, n, BLOCK_N):
        row = (start + out).to(tl.int64)
        at = grad + token.to(tl.int64)[:, None] * stride_g + row[None, :]
        g = tl.load(at, mask=(token < m)[:, None] & (row < n)[None, :], other=0.0).to(DOT)
        at_w = packed + row[:, None] * stride_p + byte[None, :]
        w = tl.load(at_w, mask=(row < n)[:, None] & (byte < width)[None, :], other=0).to(tl.int32)
        plane0 = tl.dot(g, ((w & 3) - 1).to(DOT), plane0, input_precision=PRECISION)
        plane1 = tl.dot(g, (((w >> 2) & 3) - 1).to(DOT), plane1, input_precision=PRECISION)
        plane2 = tl.dot(g, (((w >> 4) & 3) - 1).to(DOT), plane2, input_precision=PRECISION)
        plane3 = tl.dot(g, (((w >> 6) & 3) - 1).to(DOT), plane3, input_precision=PRECISION)
    scale = tl.load(gamma)
    at_d = dx + token.to(tl.int64)[:, None] * stride_d + ((byte // 16) * 64 + byte % 16)[None, :]
    inside = (token < m)[:, None] & (byte < width)[None, :]
    tl.store(at_d, (plane0 * scale).to(dx.dtype.element_ty), mask=inside)
    tl.store(at_d + 16, (plane1 * scale).to(dx.dtype.element_ty), mask=inside)
    tl.store(at_d + 32, (plane2 * scale).to(dx.dtype.element_ty), mask=inside)
    tl.store(at_d + 48, (plane3 * scale).to(dx.dtype.element_ty), mask=inside)


@triton.jit
def grad_weight_kernel(  # type: ignore[no-untyped-def]
    grad, codes, scales, dw, m, n, k, stride_g, stride_c, stride_d,
    DOT: tl.constexpr, PRECISION: tl.constexpr,  # noqa: N803
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """dW tile [BLOCK_N, BLOCK_K], summed over tokens; int8 codes are exact in DOT, 1 / s goes with dY."""
    out = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    feature = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    total = tl.zeros([BLOCK_N, BLOCK_K], tl.float32)
    for start in range(0, m, BLOCK_M):
        token = (start + tl.arange(0, BLOCK_M)).to(tl.int64)
        at_g = grad + token[:, None] * stride_g + out[None, :]
        g = tl.load(at_g, mask=(token < m)[:, None] & (out < n)[None, :], other=0.0).to(tl.float32)
        s = tl.load(scales + token, mask=token < m, other=1.0)
        at_c = codes + token[:, None] * stride_c + feature[None, :]
        x = tl.load(at_c, mask=(token < m)[:, None] & (feature < k)[None, :], other=0)
        total = tl.dot(tl.trans((g / s[:, None]).to(DOT)), x.to(DOT), total, input_precision=PRECISION)
    at = dw + out.to(tl.int64)[:, None] * stride_d + feature[None, :]
    tl.store(at, total.to(dw.dtype.element_ty), mask=(out < n)[:, None] & (feature < k)[None, :])


def operands(dtype: torch.dtype) -> dict[str, Any]:
    """Operand type and precision of the backward products; the interpreter has no sound bf16.

    fp32 goes to NVIDIA's tensor cores in three parts: as plain fp32 products the kernels spill (5.9 kB a thread on an
    H100). The other operand, an integer of at most 8 bits, is exact in tf32, so a gradient keeps 22 bits.
    """
    if dtype == torch.float32 or interpreted():
        return {"DOT": tl.float32, "PRECISION": "ieee" if torch.version.hip else "tf32x3"}
    return {"DOT": tl.bfloat16 if dtype == torch.bfloat16 else tl.float16, "PRECISION": "ieee"}


def grad_input(grad: Tensor, packed: Tensor, gamma: Tensor, dtype: torch.dtype) -> Tensor:
    """gamma dY T: [M, N], uint8 [N, K / 4] -> [M, K]; called with checked arguments."""
    (m, n), width = grad.shape, packed.shape[1]
    dx = torch.empty((m, 4 * width), dtype=dtype, device=grad.device)
    if m:
        tile = tiles.grad_gemm(fp32=grad.dtype == torch.float32)
        with device_of(grad):
            grad_input_kernel[(triton.cdiv(m, tile.m), triton.cdiv(width, tile.k))](
                grad, packed, gamma, dx, m, n, width, grad.stride(0), packed.stride(0), 4 * width,
                **operands(grad.dtype), BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_B=tile.k,
                num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip
    return dx


def grad_weight(grad: Tensor, codes: Tensor, scales: Tensor, weight: Tensor) -> Tensor:
    """dY' (codes / s) in the leading block of a zero tensor like `weight`; called with checked arguments."""
    (m, n), k = grad.shape, codes.shape[1]
    full = tuple(weight.shape) == (n, k)
    dw = (torch.empty if full and m else torch.zeros)(weight.shape, dtype=weight.dtype, device=weight.device)
    if m and n:
        tile = tiles.grad_gemm(fp32=grad.dtype == torch.float32)
        with device_of(grad):
            grad_weight_kernel[(triton.cdiv(n, tile.n), triton.cdiv(k, tile.m))](
                grad, codes, scales, dw, m, n, k, grad.stride(0), codes.stride(0), weight.shape[1],
                **operands(grad.dtype), BLOCK_M=tile.k, BLOCK_N=tile.n, BLOCK_K=tile.m,
                num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip
    return dw


def empty_link(like: Tensor, shape: torch.Size) -> Tensor:
    """A tensor of `shape` that stores one number."""
    return torch.zeros((), dtype=like.dtype, device=like.device).expand(shape)


class ActQuant(torch.autograd.Function):
    """`act_quant`, gradient straight through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[M, K] -> codes, scales, link."""
        codes, scales = act_quant(x)
        ctx.mark_non_differentiable(codes, scales)
        return codes, scales, empty_link(x, x.shape)

    @staticmethod
    def backward(ctx: Any, _codes: None, _scales: None, link: Tensor) -> Tensor:  # noqa: ARG004 (torch's signature)
        """The gradient of the quantised token is that of the token."""
        return link


class NormQuant(torch.autograd.Function):
    """`rmsnorm_quant`, gradient straight through the rounding; the stream is a second differentiable output."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, gain: Tensor, eps: float, residual: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """[M, K] -> codes, scales, link, stream."""
        codes, scales, stream, inverses = rmsnorm_quant(x, gain, eps, residual)
        ctx.save_for_backward(stream, gain, inverses)
        ctx.mark_non_differentiable(codes, scales)
        ctx.residual = residual is not None
        return codes, scales, empty_link(x, x.shape), stream.view_as(stream)

    @staticmethod
    def backward(
        ctx: Any, _codes: None, _scales: None, link: Tensor, stream_grad: Tensor
    ) -> tuple[Tensor, Tensor, None, Tensor | None]:
        """Gradients of x, gain and residual."""
        stream, gain, inverses = ctx.saved_tensors
        dx, dgain = rmsnorm_backward(link.contiguous(), stream, gain, inverses, stream_grad.contiguous())
        return dx, dgain, None, dx if ctx.residual else None


class SwigluNormQuant(torch.autograd.Function):
    """`swiglu_norm_quant`, gradient straight through the rounding."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, gain: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        """[M, K], [M, K] -> codes, scales, link."""
        codes, scales, inverses = swiglu_norm_quant(gate, up, gain, eps)
        ctx.save_for_backward(gate, up, gain, inverses)
        ctx.mark_non_differentiable(codes, scales)
        return codes, scales, empty_link(gate, gate.shape)

    @staticmethod
    def backward(ctx: Any, _codes: None, _scales: None, link: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Gradients of gate, up and gain."""
        return *swiglu_norm_backward(link.contiguous(), *ctx.saved_tensors), None


class TernaryLinear(torch.autograd.Function):
    """The product; packs the active block of the latent weight on the way and keeps the packed form."""

    @staticmethod
    def forward(
        ctx: Any, link: Tensor, codes: Tensor, scales: Tensor, weight: Tensor, gamma: Tensor, out_features: int
    ) -> Tensor:
        """Arguments as checked in `ternary_linear`."""
        packed = pack2(weight[:out_features, : codes.shape[1]], gamma)
        ctx.save_for_backward(codes, scales, packed, gamma, weight)
        return ternary_matmul(codes, scales, packed, gamma, link.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor | None, None, None]:
        """Gradients of the tokens and of the full latent weight."""
        codes, scales, packed, gamma, weight = ctx.saved_tensors
        grad = grad.contiguous()
        dx = grad_input(grad, packed, gamma, grad.dtype) if ctx.needs_input_grad[0] else None
        dw = grad_weight(grad, codes, scales, weight) if ctx.needs_input_grad[3] else None
        return dx, None, None, dw, None, None


def quantise(x: Tensor) -> Quantised:
    """[M, K] -> its integers, differentiable straight through; checks as `act_quant`."""
    return Quantised(*ActQuant.apply(x))  # type: ignore[no-untyped-call]


def norm_quantise(x: Tensor, gain: Tensor, eps: float, residual: Tensor | None = None) -> tuple[Quantised, Tensor]:
    """[M, K] -> integers of the normalised tokens and the stream x + residual; checks as `rmsnorm_quant`."""
    *parts, stream = NormQuant.apply(x, gain, eps, residual)  # type: ignore[no-untyped-call]
    return Quantised(*parts), stream


def swiglu_norm_quantise(gate: Tensor, up: Tensor, gain: Tensor, eps: float) -> Quantised:
    """[M, K], [M, K] -> integers of the normalised silu(gate) up; checks as `swiglu_norm_quant`."""
    return Quantised(*SwigluNormQuant.apply(gate, up, gain, eps))  # type: ignore[no-untyped-call]


def ternary_linear(x: Quantised, weight: Tensor, gamma: Tensor, out_features: int) -> Tensor:
    """A leading block of a ternary weight applied to quantised tokens.

    Args:
        x: from `quantise`, `norm_quantise` or `swiglu_norm_quantise`; [M, K], K a multiple of 64.
        weight: latent [max N, max K], float; rows may lie apart.
        gamma: one fp32 number, the scale of the full weight; no gradient.
        out_features: rows to use.

    Returns:
        [M, out_features] in the dtype of the tokens that were quantised.

    Raises:
        ValueError: wrong shape, dtype, stride or device; K not a multiple of 64.
    """
    tensor("weight", weight, (None, None), FLOATS)
    k = x.codes.shape[1]
    fits = 0 < out_features <= weight.shape[0] and k <= weight.shape[1]
    require(fits, f"block [{out_features}, {k}]: the weight is {list(weight.shape)}")
    y: Tensor = TernaryLinear.apply(x.link, x.codes, x.scales, weight, gamma, out_features)  # type: ignore[no-untyped-call]
    return y
