"""int8 activations times packed ternary weights on tensor cores: y = (codes T') gamma / s, int32 sums.

The packed tile is loaded contiguously and unpacked in registers, one plane of the groups at a time; the matching
activations lie in runs of 16. Weights are the LEFT operand, which tensor cores may read from registers; the tile is
therefore [N, M]. A leading slice of a packed weight is pointer arithmetic.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from llmnas.triton_kernels import tiles
from llmnas.triton_kernels.checks import FLOATS, device_of, number, require, same_device, tensor, whole_groups
from llmnas.triton_kernels.ternary_gemv import MAX_TOKENS, ternary_gemv


@triton.jit
def ternary_gemm_kernel(  # type: ignore[no-untyped-def]
    codes, scales, packed, gamma, y, m, n, width, stride_c, stride_p, stride_y,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr,  # noqa: N803
):  # fmt: skip
    """Tile [BLOCK_N, BLOCK_M] of y transposed; `width` is packed bytes a row."""
    out = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    token = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    byte = tl.arange(0, BLOCK_B)
    weights = packed + out.to(tl.int64)[:, None] * stride_p + byte[None, :]
    inputs = codes + token.to(tl.int64)[:, None] * stride_c + ((byte // 16) * 64 + byte % 16)[None, :]
    total = tl.zeros([BLOCK_N, BLOCK_M], tl.int32)
    for start in range(0, width, BLOCK_B):
        inside = byte[None, :] < width - start
        w = tl.load(weights + start, mask=(out < n)[:, None] & inside, other=0)
        for i in tl.static_range(4):
            x = tl.load(inputs + 4 * start + 16 * i, mask=(token < m)[:, None] & inside, other=0)
            t = ((w >> (2 * i)) & 3).to(tl.int8) - 1
            total = tl.dot(t, tl.trans(x), total, out_dtype=tl.int32)
    s = tl.load(scales + token, mask=token < m, other=1.0)
    value = total.to(tl.float32) * tl.div_rn(tl.broadcast_to(tl.load(gamma), [BLOCK_M]), s)[None, :]
    at = y + token.to(tl.int64)[None, :] * stride_y + out[:, None]
    tl.store(at, value.to(y.dtype.element_ty), mask=(out < n)[:, None] & (token < m)[None, :])


def ternary_matmul(
    codes: Tensor, scales: Tensor, packed: Tensor, gamma: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Quantised activations times a packed ternary weight; few tokens go to the matrix-vector kernel.

    Args:
        codes: int8 [M, K].
        scales: fp32 [M], see `act_quant`.
        packed: uint8 [N, K / 4], see `ternary_pack`; a leading slice is fine.
        gamma: one fp32 number, the weight's scale.
        dtype: of the result, a float type.

    Returns:
        [M, N].

    Raises:
        ValueError: wrong shape, dtype, stride or device; K not a multiple of 64.
    """
    tensor("codes", codes, (None, None), (torch.int8,))
    m, k = codes.shape
    whole_groups("in_features of codes", k)
    tensor("scales", scales, (m,), (torch.float32,))
    tensor("packed", packed, (None, k // 4), (torch.uint8,))
    number("gamma", gamma, (torch.float32,))
    require(dtype in FLOATS, f"dtype: {dtype}, must be a float type")
    same_device("codes", codes, scales=scales, packed=packed, gamma=gamma)
    if m <= MAX_TOKENS:
        return ternary_gemv(codes, scales, packed, gamma, dtype)
    n = packed.shape[0]
    y = torch.empty((m, n), dtype=dtype, device=codes.device)
    if n:
        tile = tiles.ternary_gemm(m)
        with device_of(codes):
            ternary_gemm_kernel[(triton.cdiv(n, tile.n), triton.cdiv(m, tile.m))](
                codes, scales, packed, gamma, y, m, n, k // 4, codes.stride(0), packed.stride(0), n,
                BLOCK_M=tile.m, BLOCK_N=tile.n, BLOCK_B=tile.k, num_warps=tile.warps, num_stages=tile.stages,
            )  # fmt: skip
    return y
