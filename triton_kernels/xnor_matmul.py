"""Binary weights and binary activations (Rastegari et al. 2016, section 3.2): signs only, 32 in a word.

    y[m, n] = alpha_n beta_m (K - 2 popcount(a_m xor w_n))

Bit i of byte b is set where value 8 b + i is >= 0. Up to four tokens count bits; more tokens unpack both sides to
int8 planes for the tensor cores (both sides have the same order, so no plane needs gathering).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmnas.triton_kernels import tiles
from llmnas.triton_kernels.checks import FLOATS, device_of, require, same_device, tensor, whole_groups
from llmnas.triton_kernels.ternary_gemv import MAX_TOKENS

WORD = 32
PACK_BLOCK = 64  # words a program packs
COUNT_N, COUNT_W = 16, 128


@triton.jit
def pack1_kernel(x, bits, words, stride_x, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def] # noqa: N803
    """BLOCK words of one row."""
    row = tl.program_id(0).to(tl.int64)
    word = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    bit = tl.arange(0, 32)
    inside = (word < words)[:, None] & (bit < 32)[None, :]
    value = tl.load(x + row * stride_x + word[:, None] * 32 + bit[None, :], mask=inside, other=0.0).to(tl.float32)
    tl.store(bits + row * words + word, tl.sum((value >= 0).to(tl.int32) << bit[None, :], 1), mask=word < words)


@triton.jit
def popcount(v):  # type: ignore[no-untyped-def]
    """Set bits of each 32-bit word; compilers know the pattern and emit the instruction."""
    v = v.to(tl.uint32, bitcast=True)
    v -= (v >> 1) & 0x55555555
    v = (v & 0x33333333) + ((v >> 2) & 0x33333333)
    v = (v + (v >> 4)) & 0x0F0F0F0F
    return ((v * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def xnor_count_kernel(  # type: ignore[no-untyped-def]
    x, w, beta, alpha, y, n, words, stride_x, stride_w, stride_y,
    BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """BLOCK_N outputs of one token."""
    out = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    token = tl.program_id(1).to(tl.int64)
    word = tl.arange(0, BLOCK_W)
    total = tl.zeros([BLOCK_N, BLOCK_W], tl.int32)
    for start in range(0, words, BLOCK_W):
        inside = word < words - start
        a = tl.load(x + token * stride_x + start + word, mask=inside, other=0)
        at = w + out.to(tl.int64)[:, None] * stride_w + start + word[None, :]
        b = tl.load(at, mask=(out < n)[:, None] & inside[None, :], other=0)
        total += popcount(a[None, :] ^ b)
    exact = 32 * words - 2 * tl.sum(total, 1)
    value = exact.to(tl.float32) * tl.load(beta + token) * tl.load(alpha + out, mask=out < n, other=0.0)
    tl.store(y + token * stride_y + out, value.to(y.dtype.element_ty), mask=out < n)


@triton.jit
def xnor_gemm_kernel(  # type: ignore[no-untyped-def]
    x, w, beta, alpha, y, m, n, width, stride_x, stride_w, stride_y,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Tile [BLOCK_N, BLOCK_M] of y transposed; `x` and `w` are bytes, `width` of them a row."""
    out = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    token = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    byte = tl.arange(0, BLOCK_B)
    total = tl.zeros([BLOCK_N, BLOCK_M], tl.int32)
    for start in range(0, width, BLOCK_B):
        inside = byte[None, :] < width - start
        at_x = x + token.to(tl.int64)[:, None] * stride_x + start + byte[None, :]
        at_w = w + out.to(tl.int64)[:, None] * stride_w + start + byte[None, :]
        a = tl.load(at_x, mask=(token < m)[:, None] & inside, other=0)
        b = tl.load(at_w, mask=(out < n)[:, None] & inside, other=0)
        for i in tl.static_range(8):
            left = (((b >> i) & 1) << 1).to(tl.int8) - 1
            right = (((a >> i) & 1) << 1).to(tl.int8) - 1
            total = tl.dot(left, tl.trans(right), total, out_dtype=tl.int32)
    # bytes behind the end were -1 on both sides: each added 8
    exact = total - 8 * (tl.cdiv(width, BLOCK_B) * BLOCK_B - width)
    magnitude = tl.load(beta + token, mask=token < m, other=0.0)[None, :]
    value = exact.to(tl.float32) * magnitude * tl.load(alpha + out, mask=out < n, other=0.0)[:, None]
    at = y + token.to(tl.int64)[None, :] * stride_y + out[:, None]
    tl.store(at, value.to(y.dtype.element_ty), mask=(out < n)[:, None] & (token < m)[None, :])


def pack1(x: Tensor) -> Tensor:
    """Signs of a matrix: [M, K] float, K a multiple of 32 -> int32 [M, K / 32].

    Raises:
        ValueError: wrong shape, dtype, stride or device.
    """
    tensor("x", x, (None, None), FLOATS)
    same_device("x", x)
    m, k = x.shape
    whole_groups("in_features of x", k, WORD)
    bits = torch.empty((m, k // WORD), dtype=torch.int32, device=x.device)
    if m:
        with device_of(x):
            grid = (m, triton.cdiv(k // WORD, PACK_BLOCK))
            pack1_kernel[grid](x, bits, k // WORD, x.stride(0), PACK_BLOCK, num_warps=4)
    return bits


def xnor_matmul(
    x_bits: Tensor, w_bits: Tensor, beta: Tensor, alpha: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Product of signs, scaled a token and an output.

    Args:
        x_bits: int32 [M, K / 32].
        w_bits: int32 [N, K / 32]; a leading slice is fine.
        beta: fp32 [M], mean |x| of the token.
        alpha: fp32 [N], mean |W_n| of the full row.
        dtype: of the result, a float type.

    Returns:
        [M, N].

    Raises:
        ValueError: wrong shape, dtype, stride or device.
    """
    tensor("x_bits", x_bits, (None, None), (torch.int32,))
    m, words = x_bits.shape
    require(words > 0, "x_bits: no words, must hold at least 32 features")
    tensor("w_bits", w_bits, (None, words), (torch.int32,))
    n = w_bits.shape[0]
    tensor("beta", beta, (m,), (torch.float32,))
    tensor("alpha", alpha, (n,), (torch.float32,))
    require(dtype in FLOATS, f"dtype: {dtype}, must be a float type")
    same_device("x_bits", x_bits, w_bits=w_bits, beta=beta, alpha=alpha)
    y = torch.empty((m, n), dtype=dtype, device=x_bits.device)
    if not (m and n):
        return y
    with device_of(x_bits):
        if m <= MAX_TOKENS:
            xnor_count_kernel[(triton.cdiv(n, COUNT_N), m)](
                x_bits, w_bits, beta, alpha, y, n, words, x_bits.stride(0), w_bits.stride(0), n, COUNT_N, COUNT_W
            )
        else:
            tile, x, w = tiles.xnor_gemm(), x_bits.view(torch.uint8), w_bits.view(torch.uint8)
            xnor_gemm_kernel[(triton.cdiv(n, tile.n), triton.cdiv(m, tile.m))](
                x, w, beta, alpha, y, m, n, 4 * words, x.stride(0), w.stride(0), n,
                BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_B=tile.k, num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip
    return y
