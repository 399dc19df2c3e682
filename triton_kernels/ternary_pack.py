"""Ternary codes of a weight, packed: 2 bits group-planar for computing, 5 in a byte for storing.

Codes are T = round(clip(W / gamma, -1, 1)), half to even; gamma is an argument (the scale of the FULL weight), so
packing a slice gives the slice of the packed weight. 2 bits: in each group of 64 weights byte j holds k = j + 16 i in
bits 2i as T + 1, so four neighbouring bytes are four neighbouring weights of one plane, ready for a four-way
dot product. Base 3: in each group of 80 weights byte j holds k = j + 16 i as digit i, most significant first.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmnas.triton_kernels.act_quant import round_even
from llmnas.triton_kernels.checks import FLOATS, device_of, number, same_device, tensor, whole_groups

BASE3_GROUP = 80
BLOCK_N, BLOCK_B = 8, 128


@triton.jit
def trit(weight, at, inside, gamma):  # type: ignore[no-untyped-def]
    """T + 1 of the weights at `at`; 1 (a zero weight) outside."""
    w = tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    ratio = tl.div_rn(w, gamma)
    ratio = tl.where(ratio == ratio, ratio, 0.0)  # NaN: what a cast would make of it depends on the device
    return round_even(tl.where(ratio > 1, 1.0, tl.where(ratio > -1, ratio, -1.0))).to(tl.int32) + 1


@triton.jit
def pack2_kernel(weight, gamma, packed, n, width, stride_w, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: N803
    """A tile of bytes [BLOCK_N, BLOCK_B]; `width` is bytes a row."""
    row = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)[:, None]
    byte = (tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B))[None, :]
    inside = (row < n) & (byte < width)
    first = row * stride_w + (byte // 16) * 64 + byte % 16
    g = tl.load(gamma)
    value = trit(weight, first, inside, g)
    for i in tl.static_range(1, 4):
        value |= trit(weight, first + 16 * i, inside, g) << (2 * i)
    tl.store(packed + row * width + byte, value.to(tl.uint8), mask=inside)


@triton.jit
def unpack2_kernel(packed, codes, n, width, stride_p, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: N803
    """The inverse of `pack2_kernel`."""
    row = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)[:, None]
    byte = (tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B))[None, :]
    inside = (row < n) & (byte < width)
    value = tl.load(packed + row * stride_p + byte, mask=inside, other=0).to(tl.int32)
    first = row * (4 * width) + (byte // 16) * 64 + byte % 16
    for i in tl.static_range(4):
        tl.store(codes + first + 16 * i, (((value >> (2 * i)) & 3) - 1).to(tl.int8), mask=inside)


@triton.jit
def pack3_kernel(weight, gamma, packed, n, k, width, stride_w, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: N803
    """Five weights a byte: byte = ceil(256 n / 243)."""
    row = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)[:, None]
    byte = (tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B))[None, :]
    inside = (row < n) & (byte < width)
    at = (byte // 16) * 80 + byte % 16
    g = tl.load(gamma)
    number = tl.zeros([BLOCK_N, BLOCK_B], tl.int32)
    for i in tl.static_range(5):
        number = number * 3 + trit(weight, row * stride_w + at + 16 * i, inside & (at + 16 * i < k), g)
    tl.store(packed + row * width + byte, ((256 * number + 242) // 243).to(tl.uint8), mask=inside)


@triton.jit
def unpack3_kernel(packed, codes, n, k, width, stride_p, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: N803
    """digit = (3 (byte 3^i mod 256)) >> 8: no division."""
    row = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)).to(tl.int64)[:, None]
    byte = (tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B))[None, :]
    inside = (row < n) & (byte < width)
    rest = tl.load(packed + row * stride_p + byte, mask=inside, other=0).to(tl.int32)
    at = (byte // 16) * 80 + byte % 16
    for i in tl.static_range(5):
        digit = (rest * 3) >> 8
        rest = (rest * 3) & 255
        tl.store(codes + row * k + at + 16 * i, (digit - 1).to(tl.int8), mask=inside & (at + 16 * i < k))


def grid(n: int, width: int) -> tuple[int, int]:
    """Programs that cover a packed matrix."""
    return triton.cdiv(n, BLOCK_N), triton.cdiv(width, BLOCK_B)


def check_weight(weight: Tensor, gamma: Tensor) -> None:
    """A latent weight and its scale.

    Raises:
        ValueError: wrong shape, dtype, stride or device.
    """
    tensor("weight", weight, (None, None), FLOATS)
    number("gamma", gamma, (torch.float32,))
    same_device("weight", weight, gamma=gamma)


def pack2(weight: Tensor, gamma: Tensor) -> Tensor:
    """Quantise and pack to 2 bits.

    Args:
        weight: [N, K] fp32, bf16 or fp16, K a multiple of 64; a leading slice is fine.
        gamma: one fp32 number on the same device, positive.

    Returns:
        uint8 [N, K / 4].

    Raises:
        ValueError: wrong shape, dtype, stride or device.
    """
    check_weight(weight, gamma)
    n, k = weight.shape
    whole_groups("in_features of weight", k)
    packed = torch.empty((n, k // 4), dtype=torch.uint8, device=weight.device)
    if n:
        with device_of(weight):
            pack2_kernel[grid(n, k // 4)](
                weight, gamma, packed, n, k // 4, weight.stride(0), BLOCK_N, BLOCK_B, enable_fp_fusion=False
            )
    return packed


def unpack2(packed: Tensor) -> Tensor:
    """uint8 [N, K / 4] -> int8 codes [N, K]. Raises `ValueError` on wrong shape, dtype, stride or device."""
    tensor("packed", packed, (None, None), (torch.uint8,))
    same_device("packed", packed)
    n, width = packed.shape
    whole_groups("in_features of packed", 4 * width)
    codes = torch.empty((n, 4 * width), dtype=torch.int8, device=packed.device)
    if n:
        with device_of(packed):
            unpack2_kernel[grid(n, width)](packed, codes, n, width, packed.stride(0), BLOCK_N, BLOCK_B)
    return codes


def pack3(weight: Tensor, gamma: Tensor) -> Tensor:
    """Quantise and pack five in a byte: [N, K] -> uint8 [N, 16 ceil(K / 80)], any K; arguments as `pack2`."""
    check_weight(weight, gamma)
    n, k = weight.shape
    width = 16 * triton.cdiv(k, BASE3_GROUP)
    packed = torch.empty((n, width), dtype=torch.uint8, device=weight.device)
    if n and k:
        with device_of(weight):
            pack3_kernel[grid(n, width)](
                weight, gamma, packed, n, k, width, weight.stride(0), BLOCK_N, BLOCK_B, enable_fp_fusion=False
            )
    return packed


def unpack3(packed: Tensor, k: int) -> Tensor:
    """uint8 [N, 16 ceil(k / 80)] -> int8 codes [N, k]. Raises `ValueError` on wrong shape, dtype, stride or device."""
    tensor("packed", packed, (None, 16 * triton.cdiv(k, BASE3_GROUP)), (torch.uint8,))
    same_device("packed", packed)
    n, width = packed.shape
    codes = torch.empty((n, k), dtype=torch.int8, device=packed.device)
    if n and k:
        with device_of(packed):
            unpack3_kernel[grid(n, width)](packed, codes, n, k, width, packed.stride(0), BLOCK_N, BLOCK_B)
    return codes
