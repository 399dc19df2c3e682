"""Packed ternary weights times one to four tokens: bound by the weight's bytes, so they are touched once.

A 32-bit word of the packed weight, shifted and masked, is four codes (T + 1, one a byte) that meet four
neighbouring activations: one four-way dot product (dp4a) instead of four unpackings. The + 1 is taken back with the
sum of the activations.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmnas.triton_kernels import tiles
from llmnas.triton_kernels.checks import device_of, interpreted, require

MAX_TOKENS = 4


@triton.jit
def dot4(a, b, total, ASM: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: N803
    """total + the four signed bytes of a times those of b. `ASM`: as NVIDIA's instruction, else spelled out."""
    if ASM:
        return tl.inline_asm_elementwise(
            "dp4a.s32.s32 $0, $1, $2, $3;", "=r,r,r,r", [a, b, total], dtype=tl.int32, is_pure=True, pack=1
        )
    for i in tl.static_range(4):
        total += ((a << (24 - 8 * i)) >> 24) * ((b << (24 - 8 * i)) >> 24)
    return total


@triton.jit
def ternary_gemv_kernel(  # type: ignore[no-untyped-def]
    codes, scales, packed, gamma, y, m, n, words, stride_c, stride_p, stride_y,
    TOKENS: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr, ASM: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """BLOCK_N outputs of all tokens; `codes`, `packed` and their strides count 32-bit words."""
    out = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    token = tl.arange(0, TOKENS)
    word = tl.arange(0, BLOCK_W)
    weights = packed + out.to(tl.int64)[:, None] * stride_p + word[None, :]
    inputs = codes + token.to(tl.int64)[:, None] * stride_c + ((word // 4) * 16 + word % 4)[None, :]
    total = tl.zeros([TOKENS, BLOCK_N, BLOCK_W], tl.int32)
    plain = tl.zeros([TOKENS, BLOCK_W], tl.int32)
    ones = tl.full([TOKENS, BLOCK_W], 0x01010101, tl.int32)
    for start in range(0, words, BLOCK_W):
        inside = word[None, :] < words - start
        w = tl.load(weights + start, mask=(out < n)[:, None] & inside, other=0)
        for i in tl.static_range(4):
            x = tl.load(inputs + 4 * start + 4 * i, mask=(token < m)[:, None] & inside, other=0)
            t = (w >> (2 * i)) & 0x03030303
            wide_t = tl.broadcast_to(t[None, :, :], [TOKENS, BLOCK_N, BLOCK_W])
            wide_x = tl.broadcast_to(x[:, None, :], [TOKENS, BLOCK_N, BLOCK_W])
            total = dot4(wide_t, wide_x, total, ASM)
            plain = dot4(ones, x, plain, ASM)
    s = tl.load(scales + token, mask=token < m, other=1.0)
    exact = tl.sum(total, 2) - tl.sum(plain, 1)[:, None]
    value = exact.to(tl.float32) * tl.div_rn(tl.broadcast_to(tl.load(gamma), [TOKENS]), s)[:, None]
    at = y + token.to(tl.int64)[:, None] * stride_y + out[None, :]
    tl.store(at, value.to(y.dtype.element_ty), mask=(token < m)[:, None] & (out < n)[None, :])


def as_words(name: str, value: Tensor) -> Tensor:
    """A byte matrix as 32-bit words.

    Raises:
        ValueError: its rows do not begin at multiples of 4 bytes.
    """
    aligned = value.stride(0) % 4 == 0 and value.data_ptr() % 4 == 0 and value.storage_offset() % 4 == 0
    require(aligned, f"{name}: row stride {value.stride(0)} or start is not a multiple of 4 bytes (.contiguous())")
    return value.view(torch.int32)


def ternary_gemv(codes: Tensor, scales: Tensor, packed: Tensor, gamma: Tensor, dtype: torch.dtype) -> Tensor:
    """`ternary_matmul` for at most four tokens; its arguments, already checked there."""
    m, n = codes.shape[0], packed.shape[0]
    y = torch.empty((m, n), dtype=dtype, device=codes.device)
    if m and n:
        x, w = as_words("codes", codes), as_words("packed", packed)
        block_n, block_w, warps = tiles.ternary_gemv(n, w.shape[1])
        with device_of(codes):
            ternary_gemv_kernel[(triton.cdiv(n, block_n),)](
                x, scales, w, gamma, y, m, n, w.shape[1], x.stride(0), w.stride(0), n,
                TOKENS=triton.next_power_of_2(m), BLOCK_N=block_n, BLOCK_W=block_w,
                ASM=not interpreted() and torch.version.hip is None, num_warps=warps,
            )  # fmt: skip
    return y
