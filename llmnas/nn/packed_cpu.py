"""Packed ternary weights times quantised tokens on the CPU: 2 bits a weight are all that is read from memory.

Integers as on the GPU (`triton_kernels/ternary_matmul.py`), so the result is the same to the last bit. The four
planes of the groups meet four planes of the token, prepared once; then the inner loop runs over neighbouring bytes
and LLVM makes vector code of it. With codes T + 1 the product is sum(code q) - sum(q). Few tokens read the bytes
directly; many tokens unpack a block of rows, small enough for the cache, for the ordinary fp32 product.
Letters: M tokens, K inputs, N outputs.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

DIRECT_TOKENS = 16
ROWS_A_BLOCK = 64
EXACT_INPUTS = 1 << 17  # 127 x 2^17 < 2^24: fp32 sums of so many products are exact


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _rows(packed: Any, stride: int, width: int, planes: Any, minus: int, first: int, last: int, out: Any) -> None:
    """out[n] = sum T[n, k] q[k] for rows first..last; planes: int8 [4 width], minus: sum of q."""
    for n in range(first, last):
        row = packed[n * stride : n * stride + width]
        a, b, c, d = np.int32(0), np.int32(0), np.int32(0), np.int32(0)
        for i in range(width):
            v = np.int32(row[i])
            a += (v & 3) * np.int32(planes[i])
            b += ((v >> 2) & 3) * np.int32(planes[width + i])
            c += ((v >> 4) & 3) * np.int32(planes[2 * width + i])
            d += (v >> 6) * np.int32(planes[3 * width + i])
        # numba adds in 64 bits; cutting the sum to 32 lets LLVM keep all of it in 32, twice as fast
        out[n] = np.float32(np.int32(a + b + c + d - minus))


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _unpack(packed: Any, stride: int, width: int, first: int, last: int, out: Any) -> None:
    """Rows first..last as fp32 -1, 0, 1 in plane order, [rows, 4, width]."""
    for n in range(first, last):
        row = packed[n * stride : n * stride + width]
        for plane in range(4):
            into, shift = out[n - first, plane], np.int32(2 * plane)
            for i in range(width):
                into[i] = np.float32(((np.int32(row[i]) >> shift) & np.int32(3)) - np.int32(1))


def matmul(codes: Tensor, packed: Tensor) -> Tensor:
    """The sums of products, exact, as fp32 [M, N].

    Uses torch's number of threads. Arguments are checked by the caller (`llmnas.nn.kernels`).

    Args:
        codes: int8 [M, K], K at most 2^17.
        packed: uint8 [N, K / 4]; a leading slice is fine, it is not copied.
    """
    (m, k), (n, width) = codes.shape, packed.shape
    y = torch.zeros(m, n)
    if not (m and n):
        return y
    # token features in the order of the planes: [groups, 4, 16] -> [4, groups, 16]
    planes = codes.reshape(m, k // 64, 4, 16).transpose(1, 2).reshape(m, k)
    flat = packed.as_strided(((n - 1) * packed.stride(0) + width,), (1,)).numpy()
    workers = min(torch.get_num_threads(), n) if m * n * k >= 1 << 20 else 1
    bounds = [n * i // workers for i in range(workers + 1)]
    share = _few_tokens if m <= DIRECT_TOKENS else _many_tokens
    work = [(planes, flat, packed.stride(0), width, lo, hi, y) for lo, hi in pairwise(bounds)]
    if workers == 1:
        share(*work[0])
    else:
        with ThreadPoolExecutor(workers) as pool:
            for done in [pool.submit(share, *one) for one in work]:
                done.result()
    return y


def _few_tokens(planes: Tensor, flat: Any, stride: int, width: int, first: int, last: int, y: Tensor) -> None:
    for token, minus, out in zip(planes.numpy(), planes.sum(1, dtype=torch.int32).numpy(), y.numpy(), strict=True):
        _rows(flat, stride, width, token, minus, first, last, out)


def _many_tokens(planes: Tensor, flat: Any, stride: int, width: int, first: int, last: int, y: Tensor) -> None:
    block, tokens = torch.empty(min(ROWS_A_BLOCK, last - first), 4, width), planes.float()
    for lo in range(first, last, ROWS_A_BLOCK):
        hi = min(lo + ROWS_A_BLOCK, last)
        _unpack(flat, stride, width, lo, hi, block.numpy())
        y[:, lo:hi] = tokens @ block[: hi - lo].flatten(1).T
