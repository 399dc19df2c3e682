"""A binary linear layer for training: signs packed to bits and counted forward, straight-through gradients backward.

    Y = alpha_n beta_m (K - 2 popcount(x xor w))        dX = dY (alpha sign W)        dW = dY' (beta sign X)

with beta = mean |x| of a token and alpha = mean |W_n| of the full row (Rastegari et al. 2016, section 3). Between
forward and backward only the bits are kept. The backward products are ordinary ones: their other operand is dY.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from llmnas.triton_kernels.checks import FLOATS, require, same_device, tensor
from llmnas.triton_kernels.reference import unpack1
from llmnas.triton_kernels.xnor_matmul import pack1, xnor_matmul


class BinaryLinear(torch.autograd.Function):
    """The product of signs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, alpha: Tensor) -> Tensor:
        """Arguments as checked in `binary_linear`."""
        beta = x.abs().mean(-1).float()
        x_bits, w_bits = pack1(x), pack1(weight)
        ctx.save_for_backward(x_bits, w_bits, beta, alpha)
        ctx.dtypes = (x.dtype, weight.dtype)
        return xnor_matmul(x_bits, w_bits, beta, alpha, x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Gradients of the tokens and of the block of the latent weight."""
        x_bits, w_bits, beta, alpha = ctx.saved_tensors
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = (grad @ (unpack1(w_bits) * alpha[:, None]).to(grad.dtype)).to(ctx.dtypes[0])
        if ctx.needs_input_grad[1]:
            dw = (grad.T @ (unpack1(x_bits) * beta[:, None]).to(grad.dtype)).to(ctx.dtypes[1])
        return dx, dw, None


def binary_linear(x: Tensor, weight: Tensor, alpha: Tensor) -> Tensor:
    """Signs of the tokens times signs of a block of a latent weight.

    Args:
        x: [M, K], float, K a multiple of 32; rows may lie apart.
        weight: latent [N, K], float; rows may lie apart.
        alpha: fp32 [N]; no gradient.

    Returns:
        [M, N] in x's dtype.

    Raises:
        ValueError: wrong shape, dtype, stride or device; K not a multiple of 32.
    """
    tensor("x", x, (None, None), FLOATS)
    tensor("weight", weight, (None, x.shape[1]), FLOATS)
    tensor("alpha", alpha, (weight.shape[0],), (torch.float32,))
    same_device("x", x, weight=weight, alpha=alpha)
    require(x.shape[1] > 0, "x: no features, must be a positive multiple of 32")
    y: Tensor = BinaryLinear.apply(x, weight, alpha)  # type: ignore[no-untyped-call]
    return y
