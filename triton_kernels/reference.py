"""Plain torch twins of the kernels: what each must compute, written for reading. Slow on purpose.

Letters: M tokens, K inputs, N outputs, B batch, T time, W channels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

GROUP, BASE3_GROUP = 64, 80
LEAST = 1e-5


def groups_of(matrix: Tensor, *sizes: int) -> Tensor:
    """[M, K] -> [M, K / prod(sizes), *sizes]."""
    m, k = matrix.shape
    return matrix.reshape(m, k // math.prod(sizes), *sizes)


def to_int8(values: Tensor) -> Tensor:
    """Whole numbers as int8: beyond its ends the nearest one, NaN 0.

    What a plain cast makes of either depends on the processor, and on the position in its vector registers.
    """
    return values.nan_to_num(0.0).clamp(-128, 127).to(torch.int8)


def token_scales(x: Tensor) -> Tensor:
    """[..., K] -> s [..., 1] = 127 / max(max |x|, 1e-5), in fp32 at least: half precision cannot hold it.

    A token that holds a NaN or an infinity gets s = 0 and only codes 0 (`to_int8`), so that code / s and every product
    of it is NaN again: no such token becomes ordinary numbers.
    """
    most = x.abs().amax(-1, keepdim=True).clamp_min(LEAST)
    most = most.float() if most.dtype.itemsize < 4 else most
    return 127 / most.nan_to_num(torch.inf, torch.inf)


def act_quant(x: Tensor) -> tuple[Tensor, Tensor]:
    """x [M, K] -> int8 codes [M, K] and s [M], codes = round(x s), s as `token_scales` has it."""
    x = x.float()
    scales = token_scales(x)
    return to_int8((x * scales).round()), scales[:, 0]


def rms(x: Tensor, gain: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """x [M, K], gain [K] -> x r gain in fp32 and r [M] = 1 / sqrt(mean x^2 + eps)."""
    x = x.float()
    inverse = (x.square().mean(-1) + eps).rsqrt()
    return x * inverse[:, None] * gain.float(), inverse


def add_rounded(x: Tensor, residual: Tensor | None) -> Tensor:
    """The residual stream after x: in x's dtype, as the next layer will read it."""
    return x if residual is None else (x.float() + residual.float()).to(x.dtype)


def rmsnorm_quant(
    x: Tensor, gain: Tensor, eps: float, residual: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x + residual) normalised, then `act_quant`: codes [M, K], s [M], x + residual [M, K], r [M]."""
    stream = add_rounded(x, residual)
    normal, inverse = rms(stream, gain, eps)
    return *act_quant(normal), stream, inverse


def swiglu_norm_quant(gate: Tensor, up: Tensor, gain: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """silu(gate) up [M, K] normalised, then `act_quant`: codes, s, r."""
    normal, inverse = rms(F.silu(gate.float()) * up.float(), gain, eps)
    return *act_quant(normal), inverse


def ternary_codes(weight: Tensor, gamma: Tensor) -> Tensor:
    """int8 [N, K] in {-1, 0, 1}: round(clip(W / gamma, -1, 1)), half to even (Ma et al. 2024, eq. 1).

    NaN has code 0; the mean magnitude gamma of such a weight is NaN, and with it the product.
    """
    return to_int8((weight.float() / gamma).clamp(-1, 1).round())


def pack2(codes: Tensor) -> Tensor:
    """[N, K] in {-1, 0, 1} -> uint8 [N, K / 4]: byte j of a group of 64 holds k = j + 16 i in bits 2i, as code + 1."""
    planes = groups_of((codes + 1).to(torch.uint8), 4, 16)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=codes.device)[:, None]
    return (planes << shifts).sum(-2, dtype=torch.uint8).flatten(-2)


def unpack2(packed: Tensor) -> Tensor:
    """The inverse of `pack2`: uint8 [N, K / 4] -> int8 [N, K]."""
    groups = groups_of(packed, 1, 16)
    shifts = torch.tensor([0, 2, 4, 6], dtype=torch.uint8, device=packed.device)[:, None]
    return ((groups >> shifts) & 3).to(torch.int8).flatten(-3) - 1


def check_codes(packed: Tensor) -> None:
    """Refuse 2-bit data [N, K / 4] with a code that no ternary weight has (3).

    Raises:
        ValueError: names the first wrong byte.
    """
    wrong = ((packed & (packed >> 1)) & 0x55).nonzero()
    if len(wrong):
        row, byte = wrong[0].tolist()
        raise ValueError(f"packed: row {row}, byte {byte} holds code 3, must be 0, 1 or 2 (weight + 1)")


def pack3(codes: Tensor) -> Tensor:
    """[N, K] in {-1, 0, 1} -> uint8 [N, 16 ceil(K / 80)]: five a byte, planar in groups of 80 (k = j + 16 i).

    Digits d_i = code + 1, most significant first, n = sum d_i 3^(4 - i), byte = ceil(256 n / 243).
    Missing weights at the end are zeros.
    """
    padded = F.pad(codes.int(), (0, -codes.shape[-1] % BASE3_GROUP)) + 1
    digits = groups_of(padded, 5, 16)
    powers = torch.tensor([81, 27, 9, 3, 1], dtype=torch.int32, device=codes.device)[:, None]
    number = (digits * powers).sum(-2)
    return ((256 * number + 242) // 243).to(torch.uint8).flatten(-2)


def unpack3(packed: Tensor, k: int) -> Tensor:
    """The inverse of `pack3`, by division: n = floor(243 byte / 256), then its base-3 digits. int8 [N, k]."""
    number = groups_of((packed.int() * 243).div(256, rounding_mode="floor"), 1, 16)
    powers = torch.tensor([81, 27, 9, 3, 1], dtype=torch.int32, device=packed.device)[:, None]
    return (number.div(powers, rounding_mode="floor") % 3 - 1).to(torch.int8).flatten(-3)[:, :k]


def ternary_matmul(codes: Tensor, scale: Tensor, packed: Tensor, gamma: Tensor) -> Tensor:
    """int8 codes [M, K], s [M], packed [N, K / 4] -> fp32 [M, N] = (codes T') (gamma / s); the sum is exact."""
    total = (codes.double() @ unpack2(packed).double().T).float()
    return total * (gamma / scale)[:, None]


def fake_quant(x: Tensor) -> Tensor:
    """x as the integers see it, gradient straight through."""
    codes, scale = act_quant(x.detach())
    return x + (codes / scale[:, None] - x).detach()


def ternary_linear(x: Tensor, weight: Tensor, gamma: Tensor) -> Tensor:
    """[M, K], [N, K] -> [M, N] with straight-through gradients by the detach trick (Bengio et al. 2013)."""
    dense = weight + (ternary_codes(weight.detach(), gamma) * gamma - weight).detach()
    return fake_quant(x) @ dense.T


def pack1(x: Tensor) -> Tensor:
    """[M, K] -> int32 [M, K / 32]: bit i of byte b is set where x[8 b + i] >= 0."""
    bits = groups_of((x >= 0).to(torch.uint8), 8)
    shifts = torch.arange(8, dtype=torch.uint8, device=x.device)
    return (bits << shifts).sum(-1, dtype=torch.uint8).view(torch.int32)


def unpack1(bits: Tensor) -> Tensor:
    """The inverse of `pack1`: int32 [M, K / 32] -> int8 [M, K] in {-1, 1}."""
    shifts = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (2 * ((bits.view(torch.uint8)[..., None] >> shifts) & 1).to(torch.int8) - 1).flatten(-2)


def xnor_matmul(x_bits: Tensor, w_bits: Tensor, beta: Tensor, alpha: Tensor) -> Tensor:
    """y[m, n] = alpha_n beta_m (K - 2 popcount(a_m xor w_n)), which is the product of the signs."""
    return (unpack1(x_bits).float() @ unpack1(w_bits).float().T) * beta[:, None] * alpha


def mlgru_scan(forget: Tensor, kept: Tensor, state: Tensor | None = None, starts: Tensor | None = None) -> Tensor:
    """h_t = f_t h_(t-1) + u_t, one step at a time; [B, T, W]. A start forgets what was before it."""
    if starts is not None:
        forget = forget.masked_fill(starts[:, :, None], 0)
    h = torch.zeros_like(kept[:, 0]) if state is None else state
    steps = []
    for t in range(kept.shape[1]):
        h = forget[:, t] * h + kept[:, t]
        steps.append(h)
    return torch.stack(steps, 1)
