"""The only door to the low-bit kernels: tensors on a GPU go to Triton, tensors on the CPU to torch and numba.

Triton is imported when a GPU tensor arrives, so a machine without it works. Both paths compute the same integers.
Letters: B batch, T time, W channels, K inputs, N outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from llmnas.triton_kernels import reference

GROUP = reference.GROUP


@dataclass(frozen=True)
class PackedTernary:
    """A ternary weight at 2 bits: codes and the scale of the full matrix it was cut from."""

    codes: Tensor  # uint8 [N, K / 4], see triton_kernels/ternary_pack.py
    gamma: Tensor  # fp32, one number

    def leading(self, out_features: int, in_features: int) -> PackedTernary:
        """The weight of a smaller network, a view.

        Raises:
            ValueError: the slice cuts a group of 64 or is larger than the weight.
        """
        n, k = self.codes.shape[0], 4 * self.codes.shape[1]
        _whole_groups("in_features of the slice", in_features)
        if not (0 < out_features <= n and in_features <= k):
            raise ValueError(f"slice [{out_features}, {in_features}]: the packed weight is [{n}, {k}]")
        return PackedTernary(self.codes[:out_features, : in_features // 4], self.gamma)


def pack(weight: Tensor, gamma: Tensor) -> PackedTernary:
    """Ternary codes of a latent weight [N, K] with the scale `gamma` (one fp32 number) of the full matrix.

    Raises:
        ValueError: K is not a multiple of 64, or not a float matrix.
    """
    if weight.is_cuda:
        from llmnas.triton_kernels.ternary_pack import pack2

        return PackedTernary(pack2(weight.detach(), gamma.detach().float()), gamma.detach().float())
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ValueError(f"weight: {list(weight.shape)} of {weight.dtype}, must be a float matrix")
    _whole_groups("in_features of weight", weight.shape[1])
    gamma = gamma.detach().float()
    return PackedTernary(reference.pack2(reference.ternary_codes(weight.detach(), gamma)), gamma)


def packed_linear(x: Tensor, weight: PackedTernary) -> Tensor:
    """Ternary linear layer for inference: tokens to int8, integer product, scaled back. No gradients.

    Args:
        x: [..., K] float.
        weight: [N, K], perhaps a leading slice, on the device of x.

    Returns:
        [..., N] in x's dtype.

    Raises:
        ValueError: sizes, dtypes or devices do not fit.
    """
    tokens = x.detach().flatten(0, -2) if x.dim() > 1 else x.detach()[None]
    if x.is_cuda:
        from llmnas.triton_kernels.act_quant import act_quant
        from llmnas.triton_kernels.ternary_matmul import ternary_matmul

        quantised, scales = act_quant(tokens)
        y = ternary_matmul(quantised, scales, weight.codes, weight.gamma, x.dtype)
    else:
        y = _packed_cpu(tokens, weight).to(x.dtype)
    return y.view(*x.shape[:-1], weight.codes.shape[0])


def _packed_cpu(tokens: Tensor, weight: PackedTernary) -> Tensor:
    from llmnas.nn import packed_cpu  # numba takes a second to import, and only packed weights need it

    codes, k = weight.codes, tokens.shape[-1]
    _whole_groups("in_features of x", k)
    if codes.device != tokens.device:
        raise ValueError(f"packed weight: on {codes.device}, x is on {tokens.device}")
    if codes.dtype != torch.uint8 or codes.dim() != 2 or codes.shape[1] * 4 != k:
        raise ValueError(f"packed weight: {list(codes.shape)} of {codes.dtype}, must be uint8 [any, {k // 4}]")
    if codes.stride(1) != 1 or k > packed_cpu.EXACT_INPUTS:
        raise ValueError(f"packed weight: rows need neighbouring bytes and at most {packed_cpu.EXACT_INPUTS} inputs")
    if not len(tokens):
        return tokens.new_zeros(0, len(codes))
    quantised, scales = reference.act_quant(tokens)
    return packed_cpu.matmul(quantised, codes) * (weight.gamma / scales)[:, None]


def ternary_linear(x: Tensor, weight: Tensor, gamma: Tensor, out_features: int) -> Tensor:
    """Ternary linear layer for training, straight-through gradients into the leading block of `weight`.

    Args:
        x: [..., K] float; on a GPU K is a multiple of 64.
        weight: latent [max N, max K].
        gamma: one number, the scale of the full weight; no gradient.
        out_features: rows to use.

    Returns:
        [..., out_features].

    Raises:
        ValueError: sizes, dtypes or devices do not fit.
    """
    tokens = x.flatten(0, -2) if x.dim() > 1 else x[None]
    if x.is_cuda:
        from llmnas.triton_kernels import ternary_linear as kernel

        y = kernel.ternary_linear(kernel.quantise(tokens), weight, gamma.detach().float(), out_features)
    else:
        y = _ternary_linear_cpu(tokens, weight, gamma.detach(), out_features)
    return y.view(*x.shape[:-1], out_features)


def _ternary_linear_cpu(tokens: Tensor, weight: Tensor, gamma: Tensor, out_features: int) -> Tensor:
    """fp32 fake quantisation: the CPU's fastest matrix product is fp32's."""
    k = tokens.shape[-1]
    if not (0 < out_features <= weight.shape[0] and k <= weight.shape[1]):
        raise ValueError(f"block [{out_features}, {k}]: the weight is {list(weight.shape)}")
    block = weight[:out_features, :k]
    dense = block + ((block.detach() / gamma).round().clamp(-1, 1) * gamma - block).detach()
    return F.linear(reference.fake_quant(tokens), dense)


def mlgru_scan(forget: Tensor, kept: Tensor, state: Tensor | None = None, starts: Tensor | None = None) -> Tensor:
    """h_t = f_t h_(t-1) + u_t for all t.

    On the CPU by doubling (Hillis and Steele 1986): log2 T steps over the whole sequence.

    Args:
        forget: f, [B, T, W] in [0, 1].
        kept: u = (1 - f) c, [B, T, W].
        state: [B, W] before the first token, or None for zeros.
        starts: [B, T] bool, tokens that forget everything before them (u is formed with their f first).

    Returns:
        h, [B, T, W].
    """
    if kept.is_cuda:
        from llmnas.triton_kernels import mlgru_scan as kernel

        pair = [part if part.stride(-1) == 1 else part.contiguous() for part in (forget.to(kept.dtype), kept)]
        rest = [None if part is None else part.contiguous() for part in (state, starts)]
        return kernel.mlgru_scan(*pair, *rest)
    if starts is not None:
        forget = forget.masked_fill(starts[:, :, None], 0)
    if state is not None:
        kept = torch.cat([kept[:, :1] + forget[:, :1] * state[:, None], kept[:, 1:]], 1)
    reach = 1
    while reach < kept.shape[1]:
        earlier_kept, earlier_forget = kept[:, :-reach], forget[:, :-reach]
        kept = torch.cat([kept[:, :reach], kept[:, reach:] + forget[:, reach:] * earlier_kept], 1)
        forget = torch.cat([forget[:, :reach], forget[:, reach:] * earlier_forget], 1)
        reach *= 2
    return kept


def _whole_groups(name: str, size: int) -> None:
    if size <= 0 or size % GROUP:
        raise ValueError(f"{name}: {size} cuts a group, must be a positive multiple of {GROUP}")
