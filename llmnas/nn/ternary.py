"""Low-bit weights and activations, fake-quantised with straight-through gradients.

Ternary (Ma et al. 2024, "The Era of 1-bit LLMs", eq. 1-3): codes clip(round(W / gamma), -1, 1) times
gamma = max(mean |W|, 1e-5); activations int8 a token, s = 127 / max(|x|). Binary (Rastegari et al. 2016,
"XNOR-Net", section 3): sign(W) times alpha_n = mean |W_n| of an output's row; activations sign(x) times mean |x|.

The magnitude (gamma, alpha) is that of the FULL weight, never of the active block: so the codes of a
slice are the slice of the codes. A network that was cut out keeps its supernet's magnitude in a buffer, bit for
bit; NaN there, the beginning of every other network, means the weight's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from llmnas.space.architecture import Weights
from llmnas.triton_kernels.reference import LEAST, to_int8, token_scales

LOW_BIT: tuple[Weights, ...] = ("ternary", "binary")


class StraightThrough(torch.autograd.Function):
    """A value in place of another, with the other's gradient (Bengio et al. 2013): nothing is kept or added."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, quantised: Tensor, factor: Tensor | None) -> Tensor:  # noqa: ARG004
        """`quantised`, a new tensor of x's shape."""
        ctx.factor = factor
        return quantised.view_as(quantised)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        """The gradient of the one is that of the other, times the factor."""
        return grad if ctx.factor is None else grad * ctx.factor, None, None


def straight_through(x: Tensor, quantised: Tensor, factor: Tensor | None = None) -> Tensor:
    """`quantised`, differentiated as if it were x times the factor (broadcast against x, no gradient; none: 1)."""
    result: Tensor = StraightThrough.apply(x, quantised, factor)  # type: ignore[no-untyped-call]
    return result


class SignProduct(torch.autograd.Function):
    """y[m, n] = alpha_n beta_m (signs of x_m . signs of W_n), straight-through gradients.

    Signs are summed before anything is scaled, so the sum is exact: one that is zero is zero and has the same sign
    in every order of summation, on every device.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, alpha: Tensor) -> Tensor:
        """x [M, K], weight [N, K], alpha [N] -> [M, N]."""
        up, weight_up = x >= 0, weight >= 0
        beta = x.abs().mean(-1, keepdim=True)
        ctx.save_for_backward(up, weight_up, beta, alpha)
        return F.linear(_signs(up, x.dtype), _signs(weight_up, x.dtype)) * beta * alpha

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients of x and of the weight."""
        up, weight_up, beta, alpha = ctx.saved_tensors
        dx = grad @ (_signs(weight_up, grad.dtype) * alpha[:, None])
        return dx, grad.T @ (_signs(up, grad.dtype) * beta), None


def _signs(up: Tensor, dtype: torch.dtype) -> Tensor:
    return up.to(dtype).mul_(2).sub_(1)


def sign_product(x: Tensor, weight: Tensor, alpha: Tensor) -> Tensor:
    """Binary product of tokens x [M, K] and a block of weights [N, K] with the scales `alpha` [N] of its full rows."""
    result: Tensor = SignProduct.apply(x, weight, alpha)  # type: ignore[no-untyped-call]
    return result


class CodeProduct(torch.autograd.Function):
    """y[m, n] = (scale_n / s_m) (q_m . C_n) for integers q and the codes C of a low-bit weight, straight-through.

    Integers are summed before anything is scaled. Such a sum is exact in fp32 (up to 2^17 inputs), so the product does
    not depend on how many tokens are multiplied at once, nor on whether the weights are packed. Between forward and
    backward both sides are kept as bytes, where a dense layer keeps its tokens as they are.
    """

    @staticmethod
    def forward(
        ctx: Any, link: Tensor, q: Tensor, scales: Tensor, weight: Tensor, scale: Tensor, kind: Weights  # noqa: ARG004
    ) -> Tensor:  # fmt: skip
        """link [M, K] takes the gradient of q / s; int8 q [M, K], s [M], weight [N, K], scale [1] or [N] -> [M, N]."""
        held = codes(weight, scale, kind)
        ctx.save_for_backward(q, scales, to_int8(held), scale)
        return F.linear(q.to(held.dtype), held).mul_(scale / scales[:, None])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor | None, None, None]:
        """Gradients of the tokens and of the weight."""
        q, scales, held, scale = ctx.saved_tensors
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = (grad * scale).to(grad.dtype) @ held.to(grad.dtype)
        if ctx.needs_input_grad[3]:
            dw = (grad / scales[:, None]).to(grad.dtype).T @ q.to(grad.dtype)
        return dx, None, None, dw, None, None


def code_product(link: Tensor, q: Tensor, scales: Tensor, weight: Tensor, scale: Tensor, kind: Weights) -> Tensor:
    """Quantised tokens times a block of a low-bit weight, see `CodeProduct.forward`."""
    result: Tensor = CodeProduct.apply(link, q, scales, weight, scale, kind)  # type: ignore[no-untyped-call]
    return result


def activation_codes(x: Tensor, scales: Tensor) -> Tensor:
    """Integers of the tokens, in the dtype of the scales; NaN where a token is not finite."""
    return (x * scales).round_().clamp_(-128, 127)


def magnitude(weight: Tensor, kind: Weights) -> Tensor:
    """The scale of a weight's codes, detached, with the reduced axes kept at size 1.

    Args:
        weight: [..., N, K].
        kind: ternary: one number a matrix, [..., 1, 1]; binary: one an output, [..., N, 1].
    """
    return weight.detach().abs().mean((-2, -1) if kind == "ternary" else -1, keepdim=True).clamp_min(LEAST)


def codes(block: Tensor, scale: Tensor, kind: Weights) -> Tensor:
    """{-1, 0, 1} or {-1, 1} of a block of weights, `scale` broadcast against it; rounds half to even."""
    if kind == "ternary":
        return (block / scale).round_().clamp_(-1, 1)
    return torch.where(block >= 0, 1.0, -1.0).to(block.dtype)


def fake_quantised(block: Tensor, scale: Tensor, kind: Weights) -> Tensor:
    """Code times scale of a block of weights, with straight-through gradients."""
    return straight_through(block, codes(block.detach(), scale, kind).mul_(scale))


class Latent(Protocol):
    """A linear layer of latent weights, [..., N, K], with scales from `add_scales`."""

    @property
    def weight(self) -> Tensor: ...  # noqa: D102

    def get_buffer(self, target: str) -> Tensor: ...  # noqa: D102

    def register_buffer(self, name: str, tensor: Tensor | None) -> None: ...  # noqa: D102


def scale_of(linear: Latent, kind: Weights) -> Tensor:
    """The scale in force of a linear layer's weight: the stored one, else its own magnitude.

    Integers cannot say that a latent weight is not finite; its scale does, the stored one too: NaN, or infinite.
    """
    stored, own = linear.get_buffer(scale_name(kind)), magnitude(linear.weight, kind)
    return torch.where(stored.isnan(), own, stored + 0 * own)


def scale_name(kind: Weights) -> str:
    """The buffer beside a weight."""
    return f"{kind}_scale"


def add_scales(linear: Latent, kinds: Sequence[Weights]) -> tuple[Weights, ...]:
    """Register scales (none stored) of a linear layer's weight for every low-bit kind that it serves; says which."""
    low_bit = tuple(kind for kind in LOW_BIT if kind in kinds)
    *some, rows, _ = linear.weight.shape
    for kind in low_bit:
        shape = (*some, 1 if kind == "ternary" else rows, 1)
        linear.register_buffer(scale_name(kind), torch.full(shape, torch.nan))
    return low_bit


def read_input(x: Tensor, kind: Weights, *, signed: bool = True) -> Tensor:
    """Activations as the matrix product sees them, with straight-through gradients.

    Args:
        x: [..., in], quantised for each position by itself.
        kind: of the weights: dense leaves x as it is.
        signed: whether the sign carries information. What comes out of a gated activation is never made binary.
    """
    if kind == "dense":
        return x
    plain = x.detach()
    if kind == "binary" and signed:
        beta = plain.abs().mean(-1, keepdim=True)
        return straight_through(x, torch.where(plain >= 0, beta, -beta))
    scales = token_scales(plain)
    return straight_through(x, activation_codes(plain, scales).div_(scales).to(x.dtype))
