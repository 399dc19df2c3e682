"""Packed binary weights on the CPU: 1 bit a weight is all that is read from memory.

Signs lie as `triton_kernels/xnor_matmul.py` has them: bit i of byte b is set where weight 8 b + i is >= 0. Against the
signs of a token bits are counted, K - 2 popcount(a xor w) (Rastegari et al. 2016, section 3.2); against the int8
integers of a token that has no signs (from a gate) the product is 2 sum(q where the bit is set) - sum(q), 64 features
an instruction with AVX-512 VNNI, and on other processors the fp32 product of a block of rows unpacked.
Letters: M tokens, K inputs (a multiple of 32), N outputs.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from llmnas.nn import packed_cpu
from llmnas.nn.packed_cpu import ROWS_A_BLOCK, horizontal_sum, vnni


@intrinsic  # type: ignore[untyped-decorator]
def _popcount(_typing: Any, word: Any) -> Any:
    """Set bits of an unsigned 32-bit word."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.ctpop(arguments[0])

    return numba.types.uint32(word), generate


@intrinsic  # type: ignore[untyped-decorator]
def _dot_signs(_typing: Any, bits: Any, token: Any, size: Any) -> Any:
    """sum of q where the bit is set: addresses of `size` bits and as many int8 values -> int32. Needs AVX-512 VNNI."""
    wide = ir.IntType(64)

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        row, q = (builder.inttoptr(at, ir.IntType(8).as_pointer()) for at in arguments[:2])
        whole = builder.and_(arguments[2], ir.Constant(wide, -64))
        most = _sign_blocks(builder, row, q, 64, ir.Constant(wide, 0), whole)
        return builder.add(most, _sign_blocks(builder, row, q, 32, whole, arguments[2]))

    return numba.types.int32(bits, token, size), generate


def _sign_blocks(builder: Any, row: Any, token: Any, lanes: int, start: Any, stop: Any) -> Any:
    """The part of the sum from feature `start` to `stop`, `lanes` of them at once."""
    byte, word, wide = (ir.IntType(size) for size in (8, 32, 64))
    sums, bytes_ = ir.VectorType(word, lanes // 4), ir.VectorType(byte, lanes)
    total = cgutils.alloca_once_value(builder, ir.Constant(sums, [0] * (lanes // 4)))
    with cgutils.for_range_slice(builder, start, stop, ir.Constant(wide, lanes)) as (at, _):
        place = builder.gep(row, [builder.lshr(at, ir.Constant(wide, 3))])
        mask = builder.load(builder.bitcast(place, ir.IntType(lanes).as_pointer()), align=1)
        ones = builder.zext(builder.bitcast(mask, ir.VectorType(ir.IntType(1), lanes)), bytes_)
        q = builder.load(builder.bitcast(builder.gep(token, [at]), sums.as_pointer()), align=1)
        found = builder.call(vnni(builder, lanes), [builder.load(total), builder.bitcast(ones, sums), q])
        builder.store(found, total)
    return horizontal_sum(builder, builder.load(total), lanes // 4)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _pack(x: Any, words: Any) -> None:
    """Signs of rows [M, 32 words] -> uint32 [M, words]."""
    for m in range(len(x)):
        for w in range(words.shape[1]):
            word = np.uint32(0)
            for i in range(32):
                if x[m, 32 * w + i] >= 0:
                    word |= np.uint32(1) << np.uint32(i)
            words[m, w] = word


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _count(tokens: Any, rows: Any, out: Any) -> None:
    """out[m, n] = K - 2 popcount(tokens[m] xor rows[n])."""
    words = rows.shape[1]
    for m in range(len(tokens)):
        for n in range(len(rows)):
            differ = np.uint32(0)
            for w in range(words):
                differ += _popcount(tokens[m, w] ^ rows[n, w])
            out[m, n] = np.float32(np.int32(32 * words) - 2 * np.int32(differ))


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _add_vnni(rows: Any, stride: int, codes: Any, out: Any) -> None:
    """out[m, n] = sum of codes[m, k] times the sign of weight n, k; `stride` is bytes between rows."""
    base, tokens, k = rows.ctypes.data, codes.ctypes.data, codes.shape[1]
    for m in range(len(codes)):
        total = np.int32(0)
        for i in range(k):
            total += np.int32(codes[m, i])
        for n in range(len(rows)):
            found = _dot_signs(np.int64(base + n * stride), np.int64(tokens + m * k), np.int64(k))
            out[m, n] = np.float32(2 * found - total)


@numba.njit(cache=True, nogil=True)  # type: ignore[untyped-decorator]
def _unpack(rows: Any, out: Any) -> None:
    """Signs as fp32 -1, 1: uint32 [rows, words] -> [rows, 32 words]."""
    for n in range(len(rows)):
        for w in range(rows.shape[1]):
            for i in range(32):
                bit = (rows[n, w] >> np.uint32(i)) & np.uint32(1)
                out[n, 32 * w + i] = np.float32(2.0) * np.float32(bit) - np.float32(1.0)


def count(x: Tensor, rows: Tensor) -> Tensor:
    """Sums of products of signs, exact: fp32 tokens [M, K] with neighbouring features, int32 [N, K / 32] -> [M, N]."""
    words = np.empty((len(x), rows.shape[1]), dtype=np.uint32)
    _pack(x.numpy(), words)
    y = torch.empty(len(x), len(rows))
    _count(words, rows.numpy().view(np.uint32), y.numpy())
    return y


def add(codes: Tensor, rows: Tensor) -> Tensor:
    """Sums of integers with the signs of weights, exact: int8 [M, K], int32 [N, K / 32] -> fp32 [M, N]."""
    y, bits = torch.empty(len(codes), len(rows)), rows.numpy().view(np.uint32)
    if packed_cpu.HAS_VNNI:
        _add_vnni(bits, 4 * rows.stride(0), codes.contiguous().numpy(), y.numpy())
        return y
    tokens, block = codes.float(), torch.empty(min(ROWS_A_BLOCK, len(rows)), codes.shape[1])
    for first in range(0, len(rows), ROWS_A_BLOCK):
        last = min(first + ROWS_A_BLOCK, len(rows))
        _unpack(bits[first:last], block.numpy())
        y[:, first:last] = tokens @ block[: last - first].T
    return y
