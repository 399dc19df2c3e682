"""The only door to the low-bit kernels: tensors on a GPU go to Triton, on the CPU to torch, and numba if it is there.

Triton is imported when a GPU tensor arrives, so a machine without it works. Both paths compute the same integers.
Under Triton's own TRITON_INTERPRET=1 tensors on the CPU go to Triton's interpreter too, as a GPU's would.
Sizes, dtypes and devices are checked before the paths part, so that both refuse the same in the same words.
Letters: B batch, T time, W channels, M tokens, K inputs, N outputs.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import Tensor

from llmnas.nn import packed_products
from llmnas.nn.ternary import activation_codes, code_product, sign_product
from llmnas.space.architecture import Weights
from llmnas.triton_kernels import reference
from llmnas.triton_kernels.checks import FLOATS as TRITON_FLOATS
from llmnas.triton_kernels.checks import form, number, tensor, together, whole_groups

GROUP, WORD = reference.GROUP, 32
FLOATS = (*TRITON_FLOATS, torch.float64)


def takes_triton(x: Tensor) -> bool:
    """Whether work on this tensor goes to Triton."""
    return x.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"


@dataclass(frozen=True)
class Codes:
    """Tokens as an integer product sees them: codes / scales. Products refuse other dtypes and sizes than these.

    Attributes:
        codes: int8 [M, K].
        scales: [M].
        link: [..., K] of the tokens' dtype: carries shape and gradient, its values are never read.
    """

    codes: Tensor
    scales: Tensor
    link: Tensor

    @property
    def shape(self) -> torch.Size:
        """Of the tokens: [..., K]."""
        return self.link.shape

    def values(self) -> Tensor:
        """The tokens as the product sees them, [..., K], without gradient."""
        return (self.codes / self.scales[:, None]).to(self.link.dtype).view(self.shape)


def _rows(x: Tensor) -> Tensor:
    """[..., K] -> [M, K] with neighbouring features, as kernels want it."""
    rows = x.flatten(0, -2) if x.dim() > 1 else x[None]
    return rows if rows.stride(-1) == 1 or rows.shape[-1] == 1 else rows.contiguous()


def _require_codes(x: Codes) -> None:
    form("codes", x.codes, (None, None), (torch.int8,))
    form("scales", x.scales, (len(x.codes),), FLOATS)
    together("codes", x.codes, scales=x.scales)


def fits_ternary(x: Tensor) -> bool:
    """Whether the Triton kernels of ternary layers take these tokens."""
    return takes_triton(x) and x.shape[-1] % GROUP == 0 and x.dtype != torch.float64


def quantise(x: Tensor, *, packed: bool) -> Codes:
    """Tokens [..., K] to integers, one scale each, differentiable straight through; `packed`: for `packed_linear`.

    Raises:
        ValueError: tokens that are no floats.
    """
    if not x.is_floating_point():
        raise ValueError(f"tokens: {list(x.shape)} of {x.dtype}, must be floats")
    if fits_ternary(x):
        from llmnas.triton_kernels import ternary_linear as kernel

        found = kernel.quantise(_rows(x))
        return Codes(found.codes, found.scales, found.link.view(x.shape))
    rows = _rows(x.detach())
    if packed and not x.is_cuda:
        return Codes(*packed_products.quantise(rows.float()), x)
    scales = reference.token_scales(rows)
    return Codes(reference.to_int8(activation_codes(rows, scales)), scales[:, 0], x)


def norm_quantise(x: Tensor, gain: Tensor, eps: float) -> Codes:
    """`quantise` of the RMS-normalised tokens in one pass, on a GPU; x: [..., K], gain: [K]."""
    from llmnas.triton_kernels import ternary_linear as kernel

    found, _ = kernel.norm_quantise(_rows(x), gain.contiguous(), eps)
    return Codes(found.codes, found.scales, found.link.view(x.shape))


def swiglu_norm_quantise(gate: Tensor, up: Tensor, gain: Tensor, eps: float) -> Codes:
    """`norm_quantise` of silu(gate) up, on a GPU; gate, up: [..., K], gain: [K]."""
    from llmnas.triton_kernels import ternary_linear as kernel

    found = kernel.swiglu_norm_quantise(_rows(gate), _rows(up), gain.contiguous(), eps)
    return Codes(found.codes, found.scales, found.link.view(gate.shape))


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
        whole_groups("in_features of the slice", in_features)
        if not (0 < out_features <= n and in_features <= k):
            raise ValueError(f"slice [{out_features}, {in_features}]: the packed weight is [{n}, {k}]")
        return PackedTernary(self.codes[:out_features, : in_features // 4], self.gamma)


def pack(weight: Tensor, gamma: Tensor) -> PackedTernary:
    """Ternary codes of a latent weight [N, K] with the scale `gamma` (one fp32 number) of the full matrix.

    Raises:
        ValueError: K is not a multiple of 64, no float matrix, or no one number.
    """
    tensor("weight", weight, (None, None), FLOATS)
    whole_groups("in_features of weight", weight.shape[1])
    number("gamma", gamma, FLOATS)
    together("weight", weight, gamma=gamma)
    weight, gamma = weight.detach(), gamma.detach().float()
    if takes_triton(weight):
        from llmnas.triton_kernels.ternary_pack import pack2

        return PackedTernary(pack2(weight, gamma), gamma)
    return PackedTernary(reference.pack2(reference.ternary_codes(weight, gamma)), gamma)


def packed_linear(x: Codes, weight: PackedTernary) -> Tensor:
    """Ternary linear layer for inference: integer product, scaled back. No gradients.

    Args:
        x: from `quantise`, tokens [..., K].
        weight: [N, K], perhaps a leading slice, on the device of x. Its codes are not looked at: 3, which no weight
            has, is multiplied as 2. Bytes from outside go through `check_codes` once, as `load_packed` does.

    Returns:
        [..., N] in the tokens' dtype.

    Raises:
        ValueError: sizes, dtypes or devices do not fit.
    """
    _require_codes(x)
    dtype, k = x.link.dtype, x.codes.shape[1]
    whole_groups("in_features of codes", k)
    tensor("packed", weight.codes, (None, k // 4), (torch.uint8,))
    number("gamma", weight.gamma, FLOATS)
    together("codes", x.codes, packed=weight.codes, gamma=weight.gamma)
    if takes_triton(x.codes):
        from llmnas.triton_kernels.ternary_matmul import ternary_matmul

        y = ternary_matmul(x.codes, x.scales, weight.codes, weight.gamma.float(), dtype)
    else:
        if k > packed_products.EXACT_INPUTS:
            raise ValueError(f"in_features of codes: {k}, must be at most {packed_products.EXACT_INPUTS} on a CPU")
        y = (packed_products.ternary(x.codes, weight.codes) * (weight.gamma.flatten() / x.scales)[:, None]).to(dtype)
    return y.view(*x.shape[:-1], weight.codes.shape[0])


def pack_signs(weight: Tensor) -> Tensor:
    """Signs of a latent binary weight [N, K] -> int32 [N, K / 32].

    Raises:
        ValueError: K is not a multiple of 32, or not a float matrix.
    """
    tensor("weight", weight, (None, None), FLOATS)
    whole_groups("in_features of weight", weight.shape[1], WORD)
    if takes_triton(weight):
        from llmnas.triton_kernels.xnor_matmul import pack1

        return pack1(weight.detach())
    return reference.pack1(weight.detach())


def packed_binary_linear(x: Tensor | Codes, bits: Tensor, alpha: Tensor) -> Tensor:
    """Binary linear layer for inference from 1-bit weights: exact sums, scaled back. No gradients.

    Args:
        x: tokens [..., K], of which signs and mean magnitude count, or integers from `quantise`.
        bits: int32 [N, K / 32], on the device of x.
        alpha: N numbers, mean |W_n| of the full rows.

    Returns:
        [..., N] in the tokens' dtype.

    Raises:
        ValueError: sizes, dtypes or devices do not fit.
    """
    alpha, dtype = alpha.flatten(), x.link.dtype if isinstance(x, Codes) else x.dtype
    rows = x.codes if isinstance(x, Codes) else _rows(x)
    if isinstance(x, Codes):
        _require_codes(x)
    else:
        form("x", rows, (None, None), FLOATS)
    whole_groups("in_features of x", rows.shape[1], WORD)
    tensor("packed", bits, (None, rows.shape[1] // WORD), (torch.int32,))
    form("alpha", alpha, (len(bits),), FLOATS)
    together("x", rows, packed=bits, alpha=alpha)
    if takes_triton(rows):
        y = _packed_binary_triton(x, rows, bits, alpha)
    elif isinstance(x, Codes):
        y = packed_products.added(rows, bits) * (alpha / x.scales[:, None])
    else:
        y = packed_products.signs(rows.float(), bits) * rows.abs().mean(-1, keepdim=True) * alpha
    return y.to(dtype).view(*x.shape[:-1], bits.shape[0])


def _packed_binary_triton(x: Tensor | Codes, rows: Tensor, bits: Tensor, alpha: Tensor) -> Tensor:
    from llmnas.triton_kernels.xnor_matmul import pack1, xnor_matmul

    if isinstance(x, Codes):
        # no kernel multiplies integers by bits: the bits are stored, the product is an ordinary one
        signs = reference.unpack1(bits).to(x.link.dtype)
        return torch.nn.functional.linear(rows.to(x.link.dtype), signs) * (alpha / x.scales[:, None])
    return xnor_matmul(pack1(rows), bits, rows.abs().mean(-1).float(), alpha.float(), rows.dtype)


def check_codes(codes: Tensor) -> None:
    """Refuse packed bytes with a code that no ternary weight has.

    Raises:
        ValueError: names the first one.
    """
    reference.check_codes(codes)


def code_linear(x: Codes, weight: Tensor, scale: Tensor, kind: Weights) -> Tensor:
    """Integer tokens times a low-bit weight, for training: straight-through gradients into both.

    Args:
        x: from `quantise` or a fused norm, tokens [..., K].
        weight: latent [N, K], perhaps a leading slice.
        scale: of the full weight: one number (ternary) or one a row (binary, N of them); no gradient.
        kind: ternary, or binary where the tokens come from a gate.

    Returns:
        [..., N].

    Raises:
        ValueError: sizes, dtypes or devices do not fit.
    """
    _require_codes(x)
    scale = scale.detach().flatten()
    tensor("weight", weight, (None, x.codes.shape[1]), FLOATS)
    form("scale", scale, (1 if kind == "ternary" else len(weight),), FLOATS)
    together("codes", x.codes, weight=weight, scale=scale)
    link = x.link.reshape(x.codes.shape)
    if kind == "ternary" and fits_ternary(x.link):
        from llmnas.triton_kernels import ternary_linear as kernel

        y = kernel.ternary_linear(kernel.Quantised(x.codes, x.scales, link), weight, scale.float(), weight.shape[0])
    else:
        y = code_product(link, x.codes, x.scales, weight, scale, kind)
    return y.view(*x.shape[:-1], weight.shape[0])


def binary_linear(x: Tensor, weight: Tensor, alpha: Tensor) -> Tensor:
    """Binary linear layer: signs of both sides, straight-through gradients; any K that is no multiple of 32 in torch.

    Args:
        x: [..., K].
        weight: latent [N, K], perhaps a leading slice.
        alpha: N numbers, mean |W_n| of the full rows; no gradient.

    Returns:
        [..., N].

    Raises:
        ValueError: sizes, dtypes or devices do not fit.
    """
    rows, alpha = _rows(x), alpha.detach().flatten()
    form("x", rows, (None, None), FLOATS)
    tensor("weight", weight, (None, rows.shape[1]), FLOATS)
    form("alpha", alpha, (len(weight),), FLOATS)
    together("x", rows, weight=weight, alpha=alpha)
    if takes_triton(x) and x.shape[-1] % WORD == 0 and x.dtype != torch.float64:
        from llmnas.triton_kernels.binary_linear import binary_linear as kernel

        y = kernel(rows, weight, alpha.float())
    else:
        y = sign_product(rows, weight, alpha)
    return y.view(*x.shape[:-1], weight.shape[0])


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

    Raises:
        ValueError: sizes, dtypes or devices do not fit.
    """
    form("kept", kept, (None, None, None), FLOATS)
    batch, time, width = kept.shape
    form("forget", forget, kept.shape, FLOATS)
    if state is not None:
        form("state", state, (batch, width), FLOATS)
    if starts is not None:
        form("starts", starts, (batch, time), (torch.bool,))
    together("kept", kept, forget=forget, state=state, starts=starts)
    if takes_triton(kept):
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
